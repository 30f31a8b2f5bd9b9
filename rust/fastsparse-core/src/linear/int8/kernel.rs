//! The vector kernel, once for all engines.
//!
//! ```text
//! for each eight rows of weights, for each few chunks of 512 columns:
//!     tile[r] = expand(mask of the chunks, next values of row r) + added
//!     for each few rows of activations, for each four rows of the tile,
//!     for each block of 64 columns whose four mask words are not all zero:
//!         sums[r][b] += tile[r] · x[b]
//! ```
//! The tile stays in the first cache, sums are in registers. What was `added` to the weights,
//! dropped ones included, times the sum of the activations of the block, is taken off again.
//!
//! A lane of int32 holds the sum of [`SPAN`] chunks; after each span the lanes are added up and go
//! on as int64.

use std::ops::Range;

use super::Emit;
use crate::error::Result;
use crate::isa::Kernel;
use crate::linear::activations::{Activations, BLOCK, Block, CHUNK, CHUNK_COLS};
use crate::linear::rows::{ChunkMask, Row, Task};
use crate::memory::filled;
use crate::parallel::Exec;
use crate::vector::prefetch;

/// Rows of weights that share a load of x.
pub(super) const ROWS: usize = 4;

/// Rows of a tile.
pub(super) const TILE_ROWS: usize = 8;

/// Groups of rows in a tile.
const GROUPS: usize = TILE_ROWS / ROWS;

/// Rows of activations whose sums are held at a time: 32 kB of them, which the second cache keeps.
const PANEL: usize = 64;

/// Chunks whose sum, with weights up to 255 and activations down to −128, is an int32.
const SPAN: usize = 128;

const _: () = assert!(SPAN * CHUNK_COLS * 255 * 128 <= i32::MAX as usize);

/// The mask of a block.
pub(super) type BlockMask = [u8; BLOCK / 8];

/// Vectors of an instruction set, and how weights and activations meet in them.
pub(super) trait Engine: Copy + Send + Sync {
    /// What activations and tiles consist of.
    type Lane: Copy + Default + Send + Sync;
    /// A block of those.
    type Vectors: Copy;
    /// A vector of sums.
    type Sums: Copy + Send;
    /// Rows of activations, at most four, for whose sums there are registers.
    const BATCH: usize;
    /// Chunks of a tile, a power of two: the more, the less often sums are loaded and stored.
    const CHUNKS: usize;
    /// What `expand` adds to each weight.
    const ADDED: i64;

    /// An activation.
    fn lane(x: u8) -> Self::Lane;
    /// No sum yet.
    fn zero(self) -> Self::Sums;
    /// Stores the next elements at `from` in the lanes that `keep` selects, zeros elsewhere; plus
    /// what is added.
    ///
    /// # Safety
    /// `from` is valid for reading 64 bytes.
    unsafe fn expand(self, from: *const u8, keep: &BlockMask, to: &mut Block<Self::Lane>);
    /// Loads a block.
    fn load(self, from: &Block<Self::Lane>) -> Self::Vectors;
    /// `sums + w · x`.
    fn add(self, sums: Self::Sums, w: Self::Vectors, x: Self::Vectors) -> Self::Sums;
    /// The sum of each of the sums.
    fn totals(self, sums: [Self::Sums; ROWS]) -> [i32; ROWS];
    /// Runs a kernel, compiled for this engine.
    fn run<K: Kernel>(self, kernel: K) -> K::Output;
}

/// Activations as the kernel reads them.
pub(super) struct Integers<V: Engine> {
    x: Activations<V::Lane>,
    /// For each block of each row what `added` contributes to its sum.
    excess: Vec<i32>,
}

impl<V: Engine> Integers<V> {
    /// `len` rows of `cols` int8.
    pub fn new(_: V, x: &[u8], len: usize, cols: usize, exec: Exec) -> Result<Self> {
        let sum = |block: &[u8]| V::ADDED as i32 * block.iter().map(|&x| x as i8 as i32).sum::<i32>();
        let sums = x.chunks(cols.max(1)).flat_map(|row| row.chunks(BLOCK)).map(sum);
        let mut excess = filled(if V::ADDED == 0 { 0 } else { len * cols.div_ceil(BLOCK) }, 0)?;
        for (excess, sum) in excess.iter_mut().zip(sums) {
            *excess = sum;
        }
        let row = |b| Some(&x[b * cols..(b + 1) * cols]);
        Ok(Integers { x: Activations::new(row, len, cols, exec, V::lane, |i| i)?, excess })
    }

    /// What to take off the sum of a block.
    #[inline(always)]
    fn excess(&self, b: usize, block: usize) -> i32 {
        if V::ADDED == 0 { 0 } else { self.excess[b * self.x.each + block] }
    }
}

/// What a thread keeps between its tasks.
pub(super) struct Scratch<V: Engine> {
    /// Values of a row that is followed by too few.
    values: [u8; CHUNK_COLS],
    tile: Vec<[[Block<V::Lane>; CHUNK]; TILE_ROWS]>,
    /// Blocks of each chunk of the tile and each four rows of it that hold anything, as bits.
    used: Vec<[u32; GROUPS]>,
    sums: Vec<Sums<V>>,
}

/// The sums of four rows of weights and one of activations, within a span and before it.
#[derive(Clone, Copy)]
struct Sums<V: Engine> {
    lanes: [V::Sums; ROWS],
    excess: i32,
    total: [i64; ROWS],
}

impl<V: Engine> Sums<V> {
    #[inline(always)]
    fn zero(engine: V) -> Self {
        Sums { lanes: [engine.zero(); ROWS], excess: 0, total: [0; ROWS] }
    }

    /// Moves what the lanes hold to the total.
    #[inline(always)]
    fn fold(&mut self, engine: V) {
        for (total, sum) in self.total.iter_mut().zip(engine.totals(self.lanes)) {
            *total += sum.wrapping_sub(self.excess) as i64;
        }
        (self.lanes, self.excess) = ([engine.zero(); ROWS], 0);
    }
}

impl<V: Engine> Scratch<V> {
    /// For `batch` rows of activations.
    pub fn new(engine: V, batch: usize) -> Result<Self> {
        Ok(Scratch {
            values: [0; CHUNK_COLS],
            tile: filled(V::CHUNKS, [[Block([V::Lane::default(); BLOCK]); CHUNK]; TILE_ROWS])?,
            used: filled(V::CHUNKS, [0; GROUPS])?,
            sums: filled(GROUPS * batch.min(PANEL), Sums::zero(engine))?,
        })
    }
}

/// A task on its way into a function that names the features. Returns whether mask and offsets
/// agree.
pub(super) struct Work<'a, V: Engine> {
    pub engine: V,
    pub task: &'a Task<'a, u8>,
    pub x: &'a Integers<V>,
    pub scratch: &'a mut Scratch<V>,
    pub emit: &'a Emit<'a>,
}

impl<V: Engine> Kernel for Work<'_, V> {
    type Output = bool;

    #[inline(always)]
    fn run(mut self) -> bool {
        let mut agreed = true;
        // A loop, not a fold: a closure is a function of its own, compiled without the features,
        // where every intrinsic is a call.
        for first in self.task.rows.clone().step_by(TILE_ROWS) {
            agreed &= self.tile(first);
        }
        agreed
    }
}

/// The mask of a block of a chunk.
#[inline(always)]
fn block_of(mask: &ChunkMask, block: usize) -> &BlockMask {
    &mask.as_chunks().0[block]
}

#[inline(always)]
fn word(keep: &BlockMask) -> u64 {
    u64::from_le_bytes(*keep)
}

// Loops over rows and sums are written out, without closures: those are functions of their own,
// compiled without the features, and an array that is indexed by something the compiler does not
// know never gets into registers.
#[expect(clippy::needless_range_loop, reason = "several arrays have one index")]
impl<V: Engine> Work<'_, V> {
    /// Eight rows of weights from `first` on, all activations.
    #[inline(always)]
    fn tile(&mut self, first: usize) -> bool {
        let engine = self.engine;
        let rows = TILE_ROWS.min(self.task.rows.end - first);
        let chunks = self.x.x.chunks();
        let mut agreed = true;
        for start in (0..self.x.x.len).step_by(PANEL) {
            let panel = PANEL.min(self.x.x.len - start);
            let mut from: [Row<'_, u8>; TILE_ROWS] = std::array::from_fn(|r| self.task.row(first + r));
            self.scratch.sums.fill(Sums::zero(engine));
            for begin in (0..chunks).step_by(V::CHUNKS) {
                let end = chunks.min(begin + V::CHUNKS);
                for chunk in begin..end {
                    self.expand(&mut from, chunk, self.task.ahead(chunk, first, TILE_ROWS));
                }
                for b in (0..panel).step_by(V::BATCH) {
                    match V::BATCH.min(panel - b) {
                        1 => self.multiply::<1>(start, b, begin..end),
                        2 => self.multiply::<2>(start, b, begin..end),
                        3 => self.multiply::<3>(start, b, begin..end),
                        _ => self.multiply::<4>(start, b, begin..end),
                    }
                }
                if end.is_multiple_of(SPAN) || end == chunks {
                    for i in 0..self.scratch.sums.len() {
                        self.scratch.sums[i].fold(engine);
                    }
                }
            }
            for b in 0..panel {
                let mut totals = [[0; ROWS]; GROUPS];
                for group in 0..GROUPS {
                    totals[group] = self.scratch.sums[b * GROUPS + group].total;
                }
                (self.emit)(first, start + b, &totals.as_flattened()[..rows]);
            }
            agreed &= from.iter().all(Row::complete);
        }
        agreed
    }

    /// Expands a chunk of the rows, values being fetched so far ahead, and sees which blocks of each
    /// four rows hold anything.
    #[inline(always)]
    fn expand(&mut self, rows: &mut [Row<'_, u8>; TILE_ROWS], chunk: usize, ahead: usize) {
        let (engine, cols) = (self.engine, self.task.weights.shape.cols);
        let (width, _) = self.x.x.chunk(chunk);
        let mut used = [0; GROUPS];
        for r in 0..TILE_ROWS {
            let (row, tile) = (&mut rows[r], &mut self.scratch.tile[chunk % V::CHUNKS][r]);
            let mut buffer = [0; CHUNK_COLS / 8];
            let mask = row.mask(chunk, cols, &mut buffer);
            row.prefetch_mask(chunk, TILE_ROWS);
            let start = row.window(&mut self.scratch.values).as_ptr();
            let mut values = start;
            for i in 0..width {
                let keep = block_of(mask, i);
                // SAFETY: no more values than columns have been passed, and those of a chunk are
                // there.
                unsafe { engine.expand(values, keep, &mut tile[i]) };
                prefetch(values.wrapping_add(ahead));
                used[r / ROWS] |= ((word(keep) != 0) as u32) << i;
                values = values.wrapping_add(word(keep).count_ones() as usize);
            }
            row.skip(values.addr() - start.addr());
        }
        self.scratch.used[chunk % V::CHUNKS] = used;
    }

    /// Adds the tile, which is these chunks, times activations `start + b` to the sums of `b`, for
    /// `B` of them.
    #[inline(always)]
    fn multiply<const B: usize>(&mut self, start: usize, b: usize, chunks: Range<usize>) {
        let engine = self.engine;
        for group in 0..GROUPS {
            let mut sums = [[engine.zero(); B]; ROWS];
            let mut excess = [0; B];
            for i in 0..B {
                let before = &self.scratch.sums[(b + i) * GROUPS + group];
                excess[i] = before.excess;
                for r in 0..ROWS {
                    sums[r][i] = before.lanes[r];
                }
            }
            for chunk in chunks.clone() {
                let (width, all) = self.x.x.chunk(chunk);
                let mut x = [&all[(start + b) * width..(start + b + 1) * width]; B];
                for i in 1..B {
                    x[i] = &all[(start + b + i) * width..(start + b + i + 1) * width];
                }
                let tile = &self.scratch.tile[chunk % V::CHUNKS][group * ROWS..(group + 1) * ROWS];
                let mut left = self.scratch.used[chunk % V::CHUNKS][group];
                while left != 0 {
                    let block = left.trailing_zeros() as usize;
                    left &= left - 1;
                    let mut loaded = [engine.load(&x[0][block]); B];
                    for i in 1..B {
                        loaded[i] = engine.load(&x[i][block]);
                    }
                    for r in 0..ROWS {
                        let w = engine.load(&tile[r][block]);
                        for i in 0..B {
                            sums[r][i] = engine.add(sums[r][i], w, loaded[i]);
                        }
                    }
                    for i in 0..B {
                        excess[i] += self.x.excess(start + b + i, chunk * CHUNK + block);
                    }
                }
            }
            for i in 0..B {
                let after = &mut self.scratch.sums[(b + i) * GROUPS + group];
                after.excess = excess[i];
                for r in 0..ROWS {
                    after.lanes[r] = sums[r][i];
                }
            }
        }
    }
}
