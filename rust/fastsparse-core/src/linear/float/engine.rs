//! What a float kernel needs of an instruction set, and the loop over the rows of a task.
//!
//! Columns go by chunks of 512. A few rows of activations are multiplied while the weights are expanded: [`super::direct`]. For more of them
//! some rows are expanded to a tile first: [`super::tiled`].

use super::direct::ExpandMode;
use super::tiled::tile_rows;
use crate::element::Word;
use crate::isa::{Isa, Kernel};
use crate::linear::activations::{Activations, BLOCK, Block, CHUNK, CHUNK_COLS};
use crate::linear::rows::{ChunkMask, Task};
use crate::linear::{Groups, Weights};
use crate::matrix::low;

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
    fn opt_barrier(self, sums: Self::Sums) -> Self::Sums {
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

/// Vectors that are written out in a loop: those of a block, or one that is wider than eight columns.
pub(super) const fn step<V: Engine>() -> usize {
    if V::LANES == 8 { BLOCK / 8 } else { 1 }
}

/// `$body` for each vector `$i`, a constant, of a step. So large a loop is not unrolled by the compiler.
macro_rules! unroll {
    ($engine:ty, $i:ident, $body:expr) => { unroll!(@ $engine, $i, $body; 0 1 2 3 4 5 6 7) };
    (@ $engine:ty, $i:ident, $body:expr; $($number:literal)*) => { $(
        if const { $number < step::<$engine>() } {
            const $i: usize = $number;
            $body;
        }
    )* };
}
pub(super) use unroll;

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
    /// Rows of weights, expanded.
    pub tile: Vec<Block<V::Lane>>,
    /// Sums of a tile: of each row of activations those of all its rows of weights.
    pub sums: Vec<[V::Sums; ROWS]>,
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
pub(super) fn rows_per_tile<V: Engine>(batch: usize) -> usize {
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
        for first in self.task.rows.clone().step_by(rows_per_tile::<V>(batch)) {
            agreed &= if batch <= DIRECT { self.few(first) } else { self.tiled(first) };
        }
        agreed
    }
}

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
                        self.direct::<1, ROWS>(first, ExpandMode { kept, few: true })
                    } else {
                        self.direct::<1, ROWS>(first, ExpandMode { kept, few: false })
                    }
                }
                _ if const { V::FEW_UP_TO > 0 } && self.few_kept() => {
                    self.direct::<1, ROWS>(first, ExpandMode { kept: None, few: true })
                }
                _ => self.direct::<1, ROWS>(first, ExpandMode::COUNTED),
            },
            2 => self.direct::<2, ROWS>(first, ExpandMode::COUNTED),
            3 if const { V::SUMS >= 3 * ROWS } => self.direct::<3, ROWS>(first, ExpandMode::COUNTED),
            4 if const { V::SUMS >= 4 * ROWS } => self.direct::<4, ROWS>(first, ExpandMode::COUNTED),
            3 => self.direct::<3, 2>(first, ExpandMode::COUNTED) & self.direct::<3, 2>(first + 2, ExpandMode::COUNTED),
            4 => self.direct::<4, 2>(first, ExpandMode::COUNTED) & self.direct::<4, 2>(first + 2, ExpandMode::COUNTED),
            _ => unreachable!("at most DIRECT"),
        }
    }

    /// Whether so few weights are kept.
    #[inline(always)]
    fn few_kept(&self) -> bool {
        let Weights { shape, values, .. } = self.task.weights;
        values.len().saturating_mul(1000) <= shape.len().saturating_mul(V::FEW_UP_TO)
    }
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
