//! What a float kernel needs of an instruction set, and the loop over the rows of a task.
//!
//! Columns go by chunks of 512. A few rows of activations are multiplied while the weights are
//! expanded: [`super::direct`]. For more of them some rows are expanded to a tile first:
//! [`super::tiled`].

use super::FloatVector;
use super::direct::ExpandMode;
use super::tiled::tile_rows;
use crate::element::Word;
use crate::error::Result;
use crate::isa::{Isa, Kernel};
use crate::linear::activations::{Activations, BLOCK, Block, CHUNK, CHUNK_COLS};
use crate::linear::rows::{ChunkMask, Task};
use crate::linear::{Groups, Weights};
use crate::matrix::low;
use crate::memory::filled;

/// Rows of weights that share a load of x.
pub(super) const ROWS: usize = 4;

/// The activations of a chunk that are kept, and a block for what compressing writes after them.
/// Aligned to a page: on Zen 3 a store across two pages takes 25 cycles, and others that are not
/// aligned two.
#[derive(Clone)]
#[repr(C, align(4096))]
pub(super) struct Kept<T>([Block<T>; CHUNK + 1]);

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
    /// What computes with them.
    type Floats: FloatVector<Vector = Self::Sums>;
    /// Columns of a vector: 8, 16 or 32.
    const LANES: usize;
    /// Sums that the direct kernel has registers for, beside what is being expanded.
    const SUMS: usize;
    /// Rows of activations of a pass of the direct kernel, at most.
    const PASS: usize;
    /// Rows of activations, at most six, for whose sums with four rows of weights there are
    /// registers.
    const BATCH: usize;

    /// How far the bits of a vector's mask are shifted to the left in a `keep`: where a table is
    /// indexed by them, they address an entry.
    const SHIFT: u32 = 0;

    /// Kept weights in a thousand up to which `expand_at_most_half` and what it leaves out are
    /// faster than `expand`.
    const AT_MOST_HALF_UP_TO: usize = 0;

    /// Whether one load holds the elements of two vectors that keep half, and `pair` makes use of
    /// that.
    const PAIRS: bool = false;

    /// Rows of activations up to which these are compressed where rows of weights share their mask.
    /// For that columns have to stay in order.
    const COMPRESSED_UP_TO: usize = Self::PASS;

    /// Where column `i` of a block is put.
    #[inline(always)]
    fn place(i: usize) -> usize {
        i
    }
    /// The same, of this engine.
    fn floats(self) -> Self::Floats;
    /// No sum yet.
    #[inline(always)]
    fn zero(self) -> Self::Sums {
        self.floats().zero()
    }
    /// A bit for each vector of a chunk whose mask is not zero.
    fn used(self, mask: &ChunkMask) -> u64;
    /// The next elements at `from` in the columns that `keep` selects, zeros elsewhere.
    ///
    /// # Safety
    /// `from` is valid for reading `LANES` elements. `keep` has no other bits.
    unsafe fn expand(self, from: *const Self::Weight, keep: u32) -> Self::Vector;
    /// A bit for each vector of a chunk more than half of whose columns are kept, where
    /// `AT_MOST_HALF_UP_TO` is not 0.
    fn over_half(self, _: &ChunkMask) -> u64 {
        0
    }
    /// `expand` of half of the lanes at most: where `keep` has more bits, of those first.
    ///
    /// # Safety
    /// That of `expand`; half of the elements suffice where `AT_MOST_HALF_UP_TO` is not 0.
    #[inline(always)]
    unsafe fn expand_at_most_half(self, from: *const Self::Weight, keep: u32) -> Self::Vector {
        // SAFETY: the caller's promise.
        unsafe { self.expand(from, keep) }
    }
    /// What `next` looks up, to be kept in a register.
    fn table(self, _at_most_half: bool) -> *const u8 {
        std::ptr::null()
    }
    /// `expand` or, if `at_most_half`, `expand_at_most_half` by the bits of vector `I` of a step,
    /// whose mask `word` is, and where the elements after them are: by `kept` further or, if
    /// `None`, by as many as there are bits.
    ///
    /// # Safety
    /// That of `expand`; `table` is the one for `at_most_half`.
    #[inline(always)]
    unsafe fn next<const I: usize>(
        self,
        at_most_half: bool,
        _table: *const u8,
        word: u64,
        from: *const Self::Weight,
        kept: Option<usize>,
    ) -> (Self::Vector, *const Self::Weight) {
        let keep = part::<Self, I>(word) << Self::SHIFT;
        // SAFETY: the caller's promise.
        let vector =
            unsafe { if at_most_half { self.expand_at_most_half(from, keep) } else { self.expand(from, keep) } };
        (vector, from.wrapping_add(kept.unwrap_or(keep.count_ones() as usize)))
    }
    /// Vectors `I` and `I + 1` of a step, as `next` makes them of `kept` elements each, no more
    /// than half; and where the elements after them are.
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
    /// Writes the activations at `from` that the bits of `keep` select, which are not shifted, to
    /// `to`, side by side, and something after them, `LANES` in all.
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
    /// The same, computed by now: otherwise the compiler may put additions off until there are no
    /// registers for what is to be added.
    #[inline(always)]
    fn opt_barrier(self, sums: Self::Sums) -> Self::Sums {
        sums
    }
    /// The sum of each of the sums.
    #[inline(always)]
    fn totals(self, sums: [Self::Sums; ROWS]) -> [f32; ROWS] {
        self.floats().totals(sums)
    }
    /// Runs a kernel, compiled for this engine.
    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        self.floats().run(kernel)
    }
}

/// Vectors of a chunk.
pub(super) const fn vectors<V: Engine>() -> usize {
    CHUNK_COLS / V::LANES
}

/// Vectors that are written out in a loop: those of a block, or one that is wider than eight
/// columns.
pub(super) const fn step<V: Engine>() -> usize {
    if V::LANES == 8 { BLOCK / 8 } else { 1 }
}

/// `$body` for each vector `$i`, a constant, of a step. So large a loop is not unrolled by the
/// compiler.
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
    /// Values of a row that is followed by too few.
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
    /// For `batch` rows of activations. Tile and sums are empty where weights are multiplied while
    /// they are expanded, `kept` where not.
    pub fn new(engine: V, batch: usize, direct: bool) -> Result<Self> {
        let (kept, tile, sums) =
            if direct { (batch.min(V::PASS), 0, 0) } else { (0, tile_rows::<V>(), batch * tile_rows::<V>()) };
        Ok(Scratch {
            values: [[V::Weight::default(); CHUNK_COLS]; ROWS],
            masks: [[0; CHUNK_COLS / 8]; ROWS],
            kept: filled(kept, Kept([Block([V::Lane::default(); BLOCK]); CHUNK + 1]))?,
            tile: filled(tile * CHUNK, Block([V::Lane::default(); BLOCK]))?,
            sums: filled(sums / ROWS, [engine.zero(); ROWS])?,
        })
    }
}

/// Rows of weights that are computed together.
pub(super) fn rows_per_tile<V: Engine>(direct: bool) -> usize {
    if direct { ROWS } else { tile_rows::<V>() }
}

/// A task on its way into a function that names the features. Returns whether mask and offsets
/// agree.
pub(super) struct Work<'a, V: Engine> {
    pub engine: V,
    pub task: &'a Task<'a, V::Weight>,
    pub x: &'a Activations<V::Lane>,
    pub scratch: &'a mut Scratch<V>,
    /// Whether weights are multiplied while they are expanded.
    pub direct: bool,
    pub emit: &'a dyn Fn(usize, usize, &[f32]),
}

impl<V: Engine> Kernel for Work<'_, V> {
    type Output = bool;

    #[inline(always)]
    fn run(mut self) -> bool {
        let mut agreed = true;
        // A loop, not a fold: a closure is a function of its own, compiled without the features,
        // where every intrinsic is a call.
        for first in self.task.rows.clone().step_by(rows_per_tile::<V>(self.direct)) {
            agreed &= if self.direct { self.passes(first) } else { self.tiled(first) };
        }
        agreed
    }
}

impl<V: Engine> Work<'_, V> {
    /// Four rows of weights from `first` on, all activations, in passes that are as even as
    /// possible.
    #[inline(always)]
    fn passes(&mut self, first: usize) -> bool {
        let passes = self.x.len.div_ceil(V::PASS);
        let (mut agreed, mut b) = (true, 0);
        for pass in 0..passes {
            let end = self.x.len * (pass + 1) / passes;
            agreed &= self.pass(first, b, end - b);
            b = end;
        }
        agreed
    }

    /// Four rows of weights from `first` on, `len` rows of activations from `b` on.
    #[inline(always)]
    fn pass(&mut self, first: usize, b: usize, len: usize) -> bool {
        match len {
            1 => match self.task.weights.groups {
                Some(Groups { keep, of }) if V::LANES % of == 0 => {
                    let kept = Some(V::LANES / of * keep);
                    if 2 * keep <= of {
                        self.direct::<1, ROWS>(first, b, ExpandMode { kept, at_most_half: true })
                    } else {
                        self.direct::<1, ROWS>(first, b, ExpandMode { kept, at_most_half: false })
                    }
                }
                _ if const { V::AT_MOST_HALF_UP_TO > 0 } && self.keeps_at_most_half() => {
                    self.direct::<1, ROWS>(first, b, ExpandMode { kept: None, at_most_half: true })
                }
                _ => self.direct::<1, ROWS>(first, b, ExpandMode::COUNTED),
            },
            2 => self.four::<2>(first, b),
            3 => self.four::<3>(first, b),
            4 => self.four::<4>(first, b),
            5 if const { V::PASS >= 5 } => self.four::<5>(first, b),
            6 if const { V::PASS >= 6 } => self.four::<6>(first, b),
            7 if const { V::PASS >= 7 } => self.four::<7>(first, b),
            8 if const { V::PASS >= 8 } => self.four::<8>(first, b),
            _ => unreachable!("at most PASS"),
        }
    }

    /// Four rows of weights from `first` on, `B` rows of activations: at a time or, where registers
    /// do not hold the sums, two by two.
    #[inline(always)]
    fn four<const B: usize>(&mut self, first: usize, b: usize) -> bool {
        if const { V::SUMS >= B * ROWS } {
            self.direct::<B, ROWS>(first, b, ExpandMode::COUNTED)
        } else {
            self.direct::<B, 2>(first, b, ExpandMode::COUNTED) & self.direct::<B, 2>(first + 2, b, ExpandMode::COUNTED)
        }
    }

    /// Whether hardly any vector has more than half of its columns kept.
    #[inline(always)]
    fn keeps_at_most_half(&self) -> bool {
        let Weights { shape, values, groups, .. } = self.task.weights;
        let few = |Groups { keep, of }| of.is_multiple_of(V::LANES) && 2 * keep <= V::LANES;
        groups.is_some_and(few)
            || values.len().saturating_mul(1000) <= shape.len().saturating_mul(V::AT_MOST_HALF_UP_TO)
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
