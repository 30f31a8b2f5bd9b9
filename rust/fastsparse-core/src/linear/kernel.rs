//! The vector kernel, once for all engines.
//!
//! Columns go by chunks of 512. A few rows of activations are multiplied while the weights are expanded: [`super::direct`].
//!
//! More of them: some rows are expanded to a tile that stays in the first cache, and all the activations go over it:
//! ```text
//! for each tile of rows, for each chunk:
//!     expand the rows to the tile
//!     for each six rows of activations, for each four rows of the tile:  sums[b][r] += tile[r] · x[b]
//! ```
//! The sums of a row lie in the lanes of one vector to the end and are then folded in halves.

use super::activations::{Activations, BLOCK, Block, CHUNK, CHUNK_COLS};
use super::direct::Pace;
use super::task::{ChunkMask, Task};
use super::{Groups, Weights};
use crate::element::Word;
use crate::isa::{Isa, Kernel};
use crate::matrix::low;
use crate::vector::prefetch;

/// Rows of weights that share a load of x.
pub(super) const ROWS: usize = 4;

/// The activations of a chunk that are kept, and a block for what compressing writes behind them. Aligned to a page: on Zen 3 a store across
/// two pages takes 25 cycles, and others that are not aligned two.
#[derive(Clone)]
#[repr(C, align(4096))]
pub(super) struct Kept<T>([Block<T>; CHUNK + 1]);

/// Rows of activations up to which weights are multiplied while they are expanded. Measured on Zen 3 with AVX2, nanoseconds a weight and row of
/// float32 at 50 %: 0.049 and 0.041 at three and four rows, with a tile 0.087 and 0.075.
const DIRECT: usize = 4;

/// Bytes of a tile: half of the first cache.
const TILE_BYTES: usize = 16 << 10;

/// Vectors of an instruction set, and how weights and activations meet in them.
pub(super) trait Engine: Copy + Send + Sync {
    /// Bits of a packed weight.
    type Weight: Word;
    /// What activations and tiles consist of.
    type Lane: Copy + Default + Send + Sync;
    /// Columns.
    type Vector: Copy;
    /// A vector of sums.
    type Sums: Copy + Send;
    /// Columns of a vector: 8, 16 or 32.
    const LANES: usize;
    /// Sums that there are registers for, beside what is being expanded: four rows of weights by four of activations, or half of that.
    const SUMS: usize;
    /// Rows of activations, at most six, for whose sums with four rows of weights there are registers.
    const BATCH: usize;

    /// How far the bits of a vector's mask are shifted to the left in a `keep`: where a table is indexed by them, they address an entry.
    const SHIFT: u32 = 0;

    /// Kept weights in a thousand up to which `expand_few` and what it leaves out are quicker than `expand`.
    const FEW_UP_TO: usize = 0;

    /// Whether one load holds the elements of two vectors that keep half, and `pair` makes use of that.
    const PAIRS: bool = false;

    /// Whether columns stay in order, so that activations can be compressed.
    const ORDERED: bool = true;

    /// Where column `i` of a block is put.
    #[inline(always)]
    fn place(i: usize) -> usize {
        i
    }
    /// No sum yet.
    fn zero(self) -> Self::Sums;
    /// A bit for each vector of a chunk whose mask is not zero.
    fn used(self, mask: &ChunkMask) -> u64;
    /// The next elements at `from` in the columns that `keep` selects, zeros elsewhere.
    ///
    /// # Safety
    /// `from` is valid for reading `LANES` elements. `keep` has no other bits.
    unsafe fn expand(self, from: *const Self::Weight, keep: u32) -> Self::Vector;
    /// A bit for each vector of a chunk more than half of whose columns are kept, where `FEW_UP_TO` is not 0.
    fn many(self, _: &ChunkMask) -> u64 {
        0
    }
    /// `expand` of half of the lanes at most: where `keep` has more bits, of those first.
    ///
    /// # Safety
    /// That of `expand`; half of the elements suffice where `FEW_UP_TO` is not 0.
    #[inline(always)]
    unsafe fn expand_few(self, from: *const Self::Weight, keep: u32) -> Self::Vector {
        // SAFETY: the caller's promise.
        unsafe { self.expand(from, keep) }
    }
    /// What `next` looks up, to be kept in a register.
    fn table(self, _few: bool) -> *const u8 {
        std::ptr::null()
    }
    /// `expand` or, if `few`, `expand_few` by the bits of vector `I` of a step, whose mask `word` is, and where the elements behind are: by `kept` further
    /// or, if `None`, by as many as there are bits.
    ///
    /// # Safety
    /// That of `expand`; `table` is the one for `few`.
    #[inline(always)]
    unsafe fn next<const I: usize>(
        self,
        few: bool,
        _table: *const u8,
        word: u64,
        from: *const Self::Weight,
        kept: Option<usize>,
    ) -> (Self::Vector, *const Self::Weight) {
        let keep = part::<Self, I>(word) << Self::SHIFT;
        // SAFETY: the caller's promise.
        let vector = unsafe { if few { self.expand_few(from, keep) } else { self.expand(from, keep) } };
        (vector, from.wrapping_add(kept.unwrap_or(keep.count_ones() as usize)))
    }
    /// Vectors `I` and `I + 1` of a step, as `next` makes them of `kept` elements each, no more than half; and where the elements behind are.
    ///
    /// # Safety
    /// That of `next`.
    unsafe fn pair<const I: usize>(
        self,
        _table: *const u8,
        _word: u64,
        _from: *const Self::Weight,
        _kept: usize,
    ) -> ([Self::Vector; 2], *const Self::Weight) {
        unreachable!("PAIRS is false")
    }
    /// The elements at `from`, of which none is missing.
    ///
    /// # Safety
    /// `from` is valid for reading `LANES` elements.
    unsafe fn widen(self, from: *const Self::Weight) -> Self::Vector;
    /// Writes the activations at `from` that the bits of `keep` select, which are not shifted, to `to`, side by side, and something behind
    /// them, `LANES` in all.
    ///
    /// # Safety
    /// `from` is valid for reading and `to` for writing `LANES` elements.
    unsafe fn compress(self, from: *const Self::Lane, keep: u32, to: *mut Self::Lane);
    /// Loads a vector.
    ///
    /// # Safety
    /// `from` is valid for reading `LANES` elements.
    unsafe fn load(self, from: *const Self::Lane) -> Self::Vector;
    /// Stores a vector.
    ///
    /// # Safety
    /// `to` is valid for writing `LANES` elements.
    unsafe fn store(self, to: *mut Self::Lane, vector: Self::Vector);
    /// `sums + w · x`.
    fn add(self, sums: Self::Sums, w: Self::Vector, x: Self::Vector) -> Self::Sums;
    /// The same, computed by now: otherwise the compiler may put additions off until there are no registers for what is to be added.
    #[inline(always)]
    fn settled(self, sums: Self::Sums) -> Self::Sums {
        sums
    }
    /// The sum of the sums.
    fn total(self, sums: Self::Sums) -> f32;
    /// Runs a kernel, compiled for this engine.
    fn run<K: Kernel>(self, kernel: K) -> K::Output;
}

/// Vectors of a chunk.
pub(super) const fn vectors<V: Engine>() -> usize {
    CHUNK_COLS / V::LANES
}

/// Rows of a tile.
const fn tile_rows<V: Engine>() -> usize {
    TILE_BYTES / (CHUNK_COLS * size_of::<V::Lane>())
}

/// Vectors that are written out in a loop: those of a block, or one that is wider than eight columns.
pub(super) const fn step<V: Engine>() -> usize {
    if V::LANES == 8 { BLOCK / 8 } else { 1 }
}

/// `$body` for each vector `$i`, a constant, of a step. So large a loop is not unrolled by the compiler.
macro_rules! written_out {
    ($engine:ty, $i:ident, $body:expr) => { written_out!(@ $engine, $i, $body; 0 1 2 3 4 5 6 7) };
    (@ $engine:ty, $i:ident, $body:expr; $($number:literal)*) => { $(
        if const { $number < step::<$engine>() } {
            const $i: usize = $number;
            $body;
        }
    )* };
}
pub(super) use written_out;

/// Cache lines of the values of a step that keeps half.
pub(super) const fn lines<V: Engine>() -> usize {
    (step::<V>() * V::LANES * size_of::<V::Weight>() / 2).div_ceil(64)
}

/// The bits of a vector, shifted as the engine wants them.
#[inline(always)]
pub(super) fn keep<V: Engine>(mask: &ChunkMask, vector: usize) -> u32 {
    let bits = match V::LANES {
        8 => mask[vector] as u32,
        16 => u16::from_le_bytes(mask.as_chunks().0[vector]) as u32,
        _ => u32::from_le_bytes(mask.as_chunks().0[vector]),
    };
    bits << V::SHIFT
}

/// The bits of the vectors of a step.
///
/// # Safety
/// The chunk has these vectors.
#[inline(always)]
pub(super) unsafe fn word<V: Engine>(mask: &ChunkMask, first: usize) -> u64 {
    let from = mask.as_ptr().wrapping_add(first * (V::LANES / 8));
    // SAFETY: that many bytes of the mask (the caller's promise).
    unsafe {
        match V::LANES {
            8 => u64::from_le_bytes(*from.cast()),
            16 => u16::from_le_bytes(*from.cast()) as u64,
            _ => u32::from_le_bytes(*from.cast()) as u64,
        }
    }
}

/// The bits of vector `I` among those of a step.
#[inline(always)]
pub(super) fn part<V: Engine, const I: usize>(word: u64) -> u32 {
    (word >> (I * V::LANES)) as u32 & low(V::LANES) as u32
}

/// The first columns of a vector.
#[inline(always)]
pub(super) fn leading<V: Engine>(columns: usize) -> u32 {
    (low(columns) as u32) << V::SHIFT
}

/// What a thread keeps between its tasks.
pub(super) struct Scratch<V: Engine> {
    /// Values of a row behind which there are not enough more.
    pub values: [[V::Weight; CHUNK_COLS]; ROWS],
    /// Masks of rows that end within a chunk.
    pub masks: [ChunkMask; ROWS],
    /// Activations of the columns that the rows keep, where these are the same.
    pub kept: Vec<Kept<V::Lane>>,
    tile: Vec<Block<V::Lane>>,
    sums: Vec<[V::Sums; ROWS]>,
}

impl<V: Engine> Scratch<V> {
    /// For `batch` rows of activations. Tile and sums are empty where the batch fits the registers, `kept` where not.
    pub fn new(engine: V, batch: usize) -> Self {
        let (kept, tile, sums) =
            if batch <= DIRECT { (batch, 0, 0) } else { (0, tile_rows::<V>(), batch * tile_rows::<V>()) };
        Scratch {
            values: [[V::Weight::default(); CHUNK_COLS]; ROWS],
            masks: [[0; CHUNK_COLS / 8]; ROWS],
            kept: vec![Kept([Block([V::Lane::default(); BLOCK]); CHUNK + 1]); kept],
            tile: vec![Block([V::Lane::default(); BLOCK]); tile * CHUNK],
            sums: vec![[engine.zero(); ROWS]; sums / ROWS],
        }
    }
}

/// Rows of weights that are computed together, for `batch` rows of activations.
pub(super) fn together<V: Engine>(batch: usize) -> usize {
    if batch <= DIRECT { ROWS } else { tile_rows::<V>() }
}

/// A task on its way into a function that names the features. Answers whether mask and offsets agree.
pub(super) struct Work<'a, V: Engine> {
    pub engine: V,
    pub task: &'a Task<'a, V::Weight>,
    pub x: &'a Activations<V::Lane>,
    pub scratch: &'a mut Scratch<V>,
    pub emit: &'a dyn Fn(usize, usize, &[f32]),
}

impl<V: Engine> Kernel for Work<'_, V> {
    type Output = bool;

    #[inline(always)]
    fn run(mut self) -> bool {
        let batch = self.x.len;
        let mut agreed = true;
        // A loop, not a fold: a closure is a function of its own, compiled without the features, where every intrinsic is a call.
        for first in self.task.rows.clone().step_by(together::<V>(batch)) {
            agreed &= if batch <= DIRECT { self.few(first) } else { self.tiled(first) };
        }
        agreed
    }
}

#[expect(clippy::needless_range_loop, reason = "the indices are those of registers")]
impl<V: Engine> Work<'_, V> {
    /// Four rows of weights from `first` on, all activations, of which there are few.
    #[inline(always)]
    fn few(&mut self, first: usize) -> bool {
        match self.x.len {
            0 => true,
            1 => match self.task.weights.groups {
                Some(Groups { keep, of }) if V::LANES % of == 0 => {
                    let kept = Some(V::LANES / of * keep);
                    if 2 * keep <= of {
                        self.direct::<1, ROWS>(first, Pace { kept, few: true })
                    } else {
                        self.direct::<1, ROWS>(first, Pace { kept, few: false })
                    }
                }
                _ if const { V::FEW_UP_TO > 0 } && self.few_kept() => {
                    self.direct::<1, ROWS>(first, Pace { kept: None, few: true })
                }
                _ => self.direct::<1, ROWS>(first, Pace::COUNTED),
            },
            2 => self.direct::<2, ROWS>(first, Pace::COUNTED),
            3 if const { V::SUMS >= 3 * ROWS } => self.direct::<3, ROWS>(first, Pace::COUNTED),
            4 if const { V::SUMS >= 4 * ROWS } => self.direct::<4, ROWS>(first, Pace::COUNTED),
            3 => self.direct::<3, 2>(first, Pace::COUNTED) & self.direct::<3, 2>(first + 2, Pace::COUNTED),
            4 => self.direct::<4, 2>(first, Pace::COUNTED) & self.direct::<4, 2>(first + 2, Pace::COUNTED),
            _ => unreachable!("at most DIRECT"),
        }
    }

    /// Whether so few weights are kept.
    #[inline(always)]
    fn few_kept(&self) -> bool {
        let Weights { shape, values, .. } = self.task.weights;
        values.len().saturating_mul(1000) <= shape.len().saturating_mul(V::FEW_UP_TO)
    }

    /// A tile of rows of weights from `first` on, all activations.
    #[inline(always)]
    fn tiled(&mut self, first: usize) -> bool {
        let (engine, groups) = (self.engine, tile_rows::<V>() / ROWS);
        let len = tile_rows::<V>().min(self.task.rows.end - first);
        self.scratch.sums.fill([self.engine.zero(); ROWS]);
        let mut agreed = true;
        let mut passed = [0; 64];
        for chunk in 0..self.x.chunks() {
            let used = self.expand_tile(first, chunk, &mut passed);
            let mut b = 0;
            // As even as possible.
            let parts = self.x.len.div_ceil(V::BATCH);
            for part in 0..parts {
                let some = self.x.len * (part + 1) / parts - b;
                match some {
                    1 if const { V::BATCH >= 1 } => self.multiply::<1>(chunk, b, &used),
                    2 if const { V::BATCH >= 2 } => self.multiply::<2>(chunk, b, &used),
                    3 if const { V::BATCH >= 3 } => self.multiply::<3>(chunk, b, &used),
                    4 if const { V::BATCH >= 4 } => self.multiply::<4>(chunk, b, &used),
                    5 if const { V::BATCH >= 5 } => self.multiply::<5>(chunk, b, &used),
                    6 if const { V::BATCH >= 6 } => self.multiply::<6>(chunk, b, &used),
                    _ => unreachable!("at most BATCH"),
                }
                b += some;
            }
        }
        for b in 0..self.x.len {
            for group in 0..len.div_ceil(ROWS) {
                let sums = &self.scratch.sums[b * groups + group];
                let mut totals = [0.0; ROWS];
                for r in 0..ROWS {
                    totals[r] = engine.total(sums[r]);
                }
                (self.emit)(first + group * ROWS, b, &totals[..ROWS.min(len - group * ROWS)]);
            }
        }
        for r in 0..len {
            let mut row = self.task.row(first + r);
            row.skip(passed[r]);
            agreed &= row.complete();
        }
        agreed
    }

    /// Expands a chunk of the rows, which have `passed` so many values. Returns which vectors of each four rows hold anything.
    #[inline(always)]
    fn expand_tile(&mut self, first: usize, chunk: usize, passed: &mut [usize; 64]) -> [u64; 16] {
        let (engine, cols) = (self.engine, self.task.weights.shape.cols);
        let (width, _) = self.x.chunk(chunk);
        let vectors = width * (vectors::<V>() / CHUNK);
        let ahead = self.task.ahead(chunk, first, tile_rows::<V>());
        let table = engine.table(false);
        let mut used = [0; 16];
        for r in 0..tile_rows::<V>() {
            let mut row = self.task.row(first + r);
            row.skip(passed[r]);
            let mut buffer = [0; CHUNK_COLS / 8];
            let mask = row.mask(chunk, cols, &mut buffer);
            let start = row.window(&mut self.scratch.values[0]).as_ptr();
            let mut from = start;
            let tile: *mut V::Lane = self.scratch.tile[r * CHUNK..].as_mut_ptr().cast();
            for vector in (0..vectors).step_by(const { step::<V>() }) {
                // SAFETY: vectors of the chunk.
                let word = unsafe { word::<V>(mask, vector) };
                written_out!(V, I, {
                    // SAFETY: as many bits as columns have been passed at most, and 512 values are there; a vector of the chunk.
                    let (weights, next) = unsafe { engine.next::<I>(false, table, word, from, None) };
                    // SAFETY: a vector of the tile.
                    unsafe { engine.store(tile.add((vector + I) * V::LANES), weights) };
                    from = next;
                });
                for line in 0..const { lines::<V>() } {
                    prefetch(from.wrapping_byte_add(ahead.wrapping_add(64 * line)));
                }
            }
            used[r / ROWS] |= engine.used(mask);
            passed[r] += (from.addr() - start.addr()) / V::Weight::BYTES;
        }
        used
    }

    /// Adds the tile times activations `b` to the sums of `b`, for `B` of them.
    #[inline(always)]
    fn multiply<const B: usize>(&mut self, chunk: usize, b: usize, used: &[u64; 16]) {
        assert!(B <= V::BATCH);
        let (engine, groups) = (self.engine, tile_rows::<V>() / ROWS);
        let (width, x) = self.x.chunk(chunk);
        let x: [*const V::Lane; B] = std::array::from_fn(|i| x[(b + i) * width..(b + i + 1) * width].as_ptr().cast());
        for group in 0..groups {
            let tile: [*const V::Lane; ROWS] =
                std::array::from_fn(|r| self.scratch.tile[(group * ROWS + r) * CHUNK..].as_ptr().cast());
            let mut sums = [[engine.zero(); ROWS]; B];
            for i in 0..B {
                sums[i] = self.scratch.sums[(b + i) * groups + group];
            }
            let vectors = width * (vectors::<V>() / CHUNK);
            let mut left = used[group];
            if left == u64::MAX >> (64 - vectors) {
                for vector in 0..vectors {
                    // SAFETY: a vector of the chunk.
                    sums = unsafe { multiplied(engine, sums, tile, x, vector * V::LANES) };
                }
                left = 0;
            }
            while left != 0 {
                let vector = left.trailing_zeros() as usize;
                left &= left - 1;
                // SAFETY: as above: there are no bits behind the chunk.
                sums = unsafe { multiplied(engine, sums, tile, x, vector * V::LANES) };
            }
            for i in 0..B {
                self.scratch.sums[(b + i) * groups + group] = sums[i];
            }
        }
    }
}

/// The sums with the vectors at `at` of four rows of weights and of `B` rows of activations.
///
/// # Safety
/// All of these are valid for reading a vector at `at`.
#[inline(always)]
unsafe fn multiplied<V: Engine, const B: usize>(
    engine: V,
    mut sums: [[V::Sums; ROWS]; B],
    tile: [*const V::Lane; ROWS],
    x: [*const V::Lane; B],
    at: usize,
) -> [[V::Sums; ROWS]; B] {
    // SAFETY: the caller's promise.
    unsafe {
        // The fewer of the two stay in registers.
        if B < ROWS {
            let mut loaded = [engine.load(x[0].add(at)); B];
            for b in 1..B {
                loaded[b] = engine.load(x[b].add(at));
            }
            for r in 0..ROWS {
                let w = engine.load(tile[r].add(at));
                for b in 0..B {
                    sums[b][r] = engine.add(sums[b][r], w, loaded[b]);
                }
            }
        } else {
            let mut w = [engine.load(tile[0].add(at)); ROWS];
            for r in 1..ROWS {
                w[r] = engine.load(tile[r].add(at));
            }
            for b in 0..B {
                let x = engine.load(x[b].add(at));
                for r in 0..ROWS {
                    sums[b][r] = engine.add(sums[b][r], w[r], x);
                }
            }
        }
    }
    sums
}

/// Whether no element has a key of `infinity` or more.
pub(super) fn finite<W: Word>(isa: Isa, x: &[W], magnitude: impl Fn(W) -> W, infinity: W) -> bool {
    isa.run(Largest { x, magnitude }) < infinity
}

struct Largest<'a, W, F> {
    x: &'a [W],
    magnitude: F,
}

impl<W: Word, F: Fn(W) -> W> Kernel for Largest<'_, W, F> {
    type Output = W;

    #[inline(always)]
    fn run(self) -> W {
        self.x.iter().fold(W::default(), |largest, &bits| largest.max((self.magnitude)(bits)))
    }
}
