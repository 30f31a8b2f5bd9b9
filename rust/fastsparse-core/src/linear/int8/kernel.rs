//! The vector kernel, once for all engines.
//!
//! A few rows of activations, sums in registers:
//! ```text
//! for each four rows of weights, for each block of 64 columns whose four mask words are not all zero, for each vector of it:
//!     w[r] = expand(bits of the vector, next values of row r) + added
//!     sums[r][b] += w[r] · x[b]
//! ```
//! More of them: eight rows are expanded to a tile that stays in the first cache, and all the activations go over it, a few at a
//! time, with the sums in registers again. What was `added` to the weights, dropped ones included, times the sum of the
//! activations of the block, is taken off again.
//!
//! A lane of int32 holds the sum of [`SPAN`] blocks; behind each span the lanes are added up and go on as int64.

use super::Emit;
use crate::isa::Kernel;
use crate::linear::Weights;
use crate::linear::activations::{BLOCK, Block, COPY_PER_THREAD};
use crate::linear::task::Task;
use crate::matrix::low;
use crate::parallel::{Exec, run_chunks};

/// Rows of weights that share a load of x.
const ROWS: usize = 4;

/// Rows of a tile.
const TILE_ROWS: usize = 8;

/// Groups of rows in a tile.
const GROUPS: usize = TILE_ROWS / ROWS;

/// Rows of activations whose sums are held at a time: 32 kB of them, which the second cache keeps.
const PANEL: usize = 64;

/// Blocks of a row of the tile: 16 kB in all at most, half of the first cache.
const CHUNK: usize = 16;

/// Bytes of values that are asked for ahead.
const PREFETCH: usize = 512;

/// Blocks whose sum, with weights up to 255 and activations down to −128, is an int32.
const SPAN: usize = 1024;

const _: () = assert!(SPAN * BLOCK * 255 * 128 <= i32::MAX as usize && SPAN.is_multiple_of(CHUNK));

/// Vectors of an instruction set, and how weights and activations meet in them.
pub(super) trait Engine: Copy + Send + Sync {
    /// What activations and tiles consist of.
    type Lane: Copy + Default + Send + Sync;
    /// A vector of those.
    type Vector: Copy;
    /// A vector of sums.
    type Sums: Copy + Send;
    /// Columns of a vector.
    const LANES: usize;
    /// Rows of activations, at most four, for whose sums there are registers.
    const BATCH: usize;
    /// What `expand` adds to each weight.
    const ADDED: i64;

    /// An activation.
    fn lane(x: u8) -> Self::Lane;
    /// No sum yet.
    fn zero(self) -> Self::Sums;
    /// The next elements at `from` in the lanes that the low bits of `keep` select, zeros elsewhere; plus what is added.
    ///
    /// # Safety
    /// `from` is valid for reading `LANES` elements.
    unsafe fn expand(self, from: *const u8, keep: u64) -> Self::Vector;
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
    /// The sum of the sums.
    fn total(self, sums: Self::Sums) -> i32;
    /// Runs a kernel, compiled for this engine.
    fn run<K: Kernel>(self, kernel: K) -> K::Output;
}

/// Activations as the kernel reads them: rows of blocks, zeros behind the last column.
pub(super) struct Integers<V: Engine> {
    blocks: Vec<Block<V::Lane>>,
    /// For each block what `added` contributes to its sum.
    excess: Vec<i32>,
    /// Blocks of a row.
    each: usize,
    /// Number of rows.
    len: usize,
}

impl<V: Engine> Integers<V> {
    /// `len` rows of `cols` int8.
    pub fn new(_: V, x: &[u8], len: usize, cols: usize, exec: Exec) -> Self {
        let each = cols.div_ceil(BLOCK);
        let mut blocks = vec![Block([V::Lane::default(); BLOCK]); len * each];
        let threads = exec.for_work(x.len(), COPY_PER_THREAD).threads;
        run_chunks(threads, &mut blocks, each.max(1), |b, blocks| {
            for (from, to) in x[b * cols..(b + 1) * cols].chunks(BLOCK).zip(blocks) {
                for (&from, to) in from.iter().zip(&mut to.0) {
                    *to = V::lane(from);
                }
            }
        });
        let sum = |block: &[u8]| V::ADDED as i32 * block.iter().map(|&x| x as i8 as i32).sum::<i32>();
        let sums = x.chunks(cols.max(1)).flat_map(|row| row.chunks(BLOCK)).map(sum);
        Integers { blocks, excess: if V::ADDED == 0 { Vec::new() } else { sums.collect() }, each, len }
    }

    /// A row.
    #[inline(always)]
    fn row(&self, b: usize) -> &[Block<V::Lane>] {
        &self.blocks[b * self.each..(b + 1) * self.each]
    }

    /// What to take off the sum of a block.
    #[inline(always)]
    fn excess(&self, b: usize, block: usize) -> i32 {
        if V::ADDED == 0 { 0 } else { self.excess[b * self.each + block] }
    }
}

/// What a thread keeps between its tasks. Empty where the batch fits the registers.
pub(super) struct Scratch<V: Engine> {
    tile: Vec<Block<V::Lane>>,
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
        for r in 0..ROWS {
            self.total[r] += engine.total(self.lanes[r]).wrapping_sub(self.excess) as i64;
        }
        (self.lanes, self.excess) = ([engine.zero(); ROWS], 0);
    }
}

impl<V: Engine> Scratch<V> {
    /// For `batch` rows of activations.
    pub fn new(engine: V, batch: usize) -> Self {
        if batch <= V::BATCH {
            return Scratch { tile: Vec::new(), sums: Vec::new() };
        }
        let tile = vec![Block([V::Lane::default(); BLOCK]); TILE_ROWS * CHUNK];
        Scratch { tile, sums: vec![Sums::zero(engine); GROUPS * batch.min(PANEL)] }
    }
}

/// Rows of weights that are computed together, for `batch` rows of activations.
pub(super) fn together<V: Engine>(batch: usize) -> usize {
    if batch <= V::BATCH { ROWS } else { TILE_ROWS }
}

/// A task on its way into a function that names the features. Answers whether mask and offsets agree.
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
        let batch = self.x.len;
        let mut agreed = true;
        // A loop, not a fold: a closure is a function of its own, compiled without the features, where every intrinsic is a call.
        for first in self.task.rows.clone().step_by(together::<V>(batch)) {
            agreed &= match batch {
                0 => true,
                1 => self.direct::<1>(first),
                2 if V::BATCH >= 2 => self.direct::<2>(first),
                3 if V::BATCH >= 3 => self.direct::<3>(first),
                4 if V::BATCH >= 4 => self.direct::<4>(first),
                _ => self.tiled(first),
            };
        }
        agreed
    }
}

/// A row and how far it has been read.
#[derive(Clone, Copy)]
struct Cursor<'a> {
    words: &'a [[u8; 8]],
    tail: u64,
    at: usize,
    end: usize,
}

impl<'a> Cursor<'a> {
    #[inline(always)]
    fn new(weights: &Weights<'a, u8>, row: usize) -> Self {
        let Weights { shape, mask, offsets, .. } = *weights;
        let (words, rest) = mask[row * shape.row_bytes()..(row + 1) * shape.row_bytes()].as_chunks();
        // Seven whole bytes and a part of the eighth make a word of their own, too.
        let whole = shape.cols / BLOCK;
        let tail = match words.get(whole) {
            Some(word) => u64::from_le_bytes(*word),
            None => rest.iter().rev().fold(0, |word, &byte| word << 8 | byte as u64),
        };
        let tail = tail & low(shape.cols % BLOCK);
        Cursor { words: &words[..whole], tail, at: offsets[row] as usize, end: offsets[row + 1] as usize }
    }

    /// Mask of a block, which may be the last one.
    #[inline(always)]
    fn word(&self, block: usize) -> u64 {
        self.words.get(block).map_or(self.tail, |word| u64::from_le_bytes(*word))
    }

    /// Goes past the values of a block's mask.
    #[inline(always)]
    fn advance(&mut self, word: u64) {
        self.at = self.at.wrapping_add(word.count_ones() as usize);
    }

    /// Whether the mask had as many bits as the offsets say, and there were as many values.
    #[inline(always)]
    fn complete(&self, values: &[u8]) -> bool {
        self.at == self.end && self.end <= values.len()
    }
}

/// The 64 values from `at` on, zeros where there are no more, which are put into `buffer`.
#[inline(always)]
fn window<'a>(values: &'a [u8], at: usize, buffer: &'a mut [u8; BLOCK]) -> &'a [u8; BLOCK] {
    match values.get(at..).and_then(|rest| rest.first_chunk()) {
        Some(window) => window,
        None => fill(values.get(at..).unwrap_or_default(), buffer),
    }
}

/// `rest` and zeros behind it. Only the last rows of a matrix come here.
#[cold]
#[inline(never)]
fn fill<'a>(rest: &[u8], buffer: &'a mut [u8; BLOCK]) -> &'a [u8; BLOCK] {
    buffer.fill(0);
    buffer[..rest.len()].copy_from_slice(rest);
    buffer
}

/// Asks for the values that a row will need some blocks later: each row is a stream of its own, too many for the hardware to see.
#[inline(always)]
fn prefetch(values: &[u8], at: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a hint, which reads nothing.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(values.as_ptr().wrapping_add(at.wrapping_add(PREFETCH)).cast()) }
}

// Loops over rows and sums are written out, without closures: those are functions of their own, compiled without the features, and
// an array that is indexed by something the compiler does not know never gets into registers.
#[expect(clippy::needless_range_loop, reason = "several arrays have one index")]
impl<V: Engine> Work<'_, V> {
    /// Four rows of weights from `first` on, `B` rows of activations, sums in registers.
    #[inline(always)]
    fn direct<const B: usize>(&mut self, first: usize) -> bool {
        let (engine, weights, rows) = (self.engine, &self.task.weights, &self.task.rows);
        let (values, blocks) = (weights.values, weights.shape.cols.div_ceil(BLOCK));
        // Behind the last row it is computed again.
        let mut from = [Cursor::new(weights, first); ROWS];
        for r in 1..ROWS {
            from[r] = Cursor::new(weights, (first + r).min(rows.end - 1));
        }
        let mut x = [self.x.row(0); B];
        for b in 1..B {
            x[b] = self.x.row(b);
        }
        let mut totals = [[0i64; B]; ROWS];
        let mut buffers = [[0; BLOCK]; ROWS];
        for span in (0..blocks).step_by(SPAN) {
            let mut sums = [[engine.zero(); B]; ROWS];
            let mut excess = [0; B];
            for block in span..blocks.min(span + SPAN) {
                let mut words = [0; ROWS];
                for r in 0..ROWS {
                    words[r] = from[r].word(block);
                }
                if words[0] | words[1] | words[2] | words[3] == 0 {
                    continue;
                }
                let [b0, b1, b2, b3] = &mut buffers;
                let windows = [
                    window(values, from[0].at, b0),
                    window(values, from[1].at, b1),
                    window(values, from[2].at, b2),
                    window(values, from[3].at, b3),
                ];
                for r in 0..ROWS {
                    prefetch(values, from[r].at);
                    from[r].advance(words[r]);
                }
                for to in (0..BLOCK).step_by(V::LANES) {
                    let mut w = [expand(engine, windows[0], words[0], to); ROWS];
                    for r in 1..ROWS {
                        w[r] = expand(engine, windows[r], words[r], to);
                    }
                    for b in 0..B {
                        // SAFETY: `to + LANES` is at most 64.
                        let x = unsafe { engine.load(x[b][block].0.as_ptr().add(to)) };
                        for r in 0..ROWS {
                            sums[r][b] = engine.add(sums[r][b], w[r], x);
                        }
                    }
                }
                for b in 0..B {
                    excess[b] += self.x.excess(b, block);
                }
            }
            for r in 0..ROWS {
                for b in 0..B {
                    totals[r][b] += engine.total(sums[r][b]).wrapping_sub(excess[b]) as i64;
                }
            }
        }
        for (r, totals) in totals.iter().enumerate().take(rows.end - first) {
            for (b, &total) in totals.iter().enumerate() {
                (self.emit)(first + r, b, total);
            }
        }
        from.iter().all(|row| row.complete(values))
    }

    /// Eight rows of weights from `first` on, all activations.
    #[inline(always)]
    fn tiled(&mut self, first: usize) -> bool {
        let (engine, weights) = (self.engine, &self.task.weights);
        let rows = TILE_ROWS.min(self.task.rows.end - first);
        let blocks = weights.shape.cols.div_ceil(BLOCK);
        let mut agreed = true;
        for start in (0..self.x.len).step_by(PANEL) {
            let panel = PANEL.min(self.x.len - start);
            let mut from = [Cursor::new(weights, first); TILE_ROWS];
            for r in 1..rows {
                from[r] = Cursor::new(weights, first + r);
            }
            self.scratch.sums.fill(Sums::zero(engine));
            for at in (0..blocks).step_by(CHUNK) {
                let len = CHUNK.min(blocks - at);
                let used = self.expand_tile(&mut from[..rows], at, len);
                for b in (0..panel).step_by(V::BATCH) {
                    match V::BATCH.min(panel - b) {
                        1 => self.multiply::<1>(start, b, at, used),
                        2 => self.multiply::<2>(start, b, at, used),
                        3 => self.multiply::<3>(start, b, at, used),
                        _ => self.multiply::<4>(start, b, at, used),
                    }
                }
                if (at + CHUNK).is_multiple_of(SPAN) || at + len == blocks {
                    for i in 0..self.scratch.sums.len() {
                        self.scratch.sums[i].fold(engine);
                    }
                }
            }
            for r in 0..rows {
                for b in 0..panel {
                    (self.emit)(first + r, start + b, self.scratch.sums[b * GROUPS + r / ROWS].total[r % ROWS]);
                }
                agreed &= from[r].complete(weights.values);
            }
        }
        agreed
    }

    /// Expands `len` blocks of the rows, from block `at` on. Returns which blocks of each four rows hold anything, as bits.
    #[inline(always)]
    fn expand_tile(&mut self, rows: &mut [Cursor<'_>], at: usize, len: usize) -> [u32; GROUPS] {
        let (engine, values) = (self.engine, self.task.weights.values);
        let mut used = [0; GROUPS];
        let mut buffer = [0; BLOCK];
        for (r, (row, tile)) in rows.iter_mut().zip(self.scratch.tile.chunks_exact_mut(CHUNK)).enumerate() {
            let mut any = 0;
            for i in 0..len {
                let word = row.word(at + i);
                let window = window(values, row.at, &mut buffer);
                prefetch(values, row.at);
                for to in (0..BLOCK).step_by(V::LANES) {
                    // SAFETY: `to + LANES` is at most 64.
                    unsafe { engine.store(tile[i].0.as_mut_ptr().add(to), expand(engine, window, word, to)) };
                }
                any |= ((word != 0) as u32) << i;
                row.advance(word);
            }
            used[r / ROWS] |= any;
        }
        used
    }

    /// Adds the tile, whose first block is block `at`, times activations `start + b` to the sums of `b`, for `B` of them.
    #[inline(always)]
    fn multiply<const B: usize>(&mut self, start: usize, b: usize, at: usize, used: [u32; GROUPS]) {
        let engine = self.engine;
        let mut x = [&self.x.row(start + b)[at..]; B];
        for i in 1..B {
            x[i] = &self.x.row(start + b + i)[at..];
        }
        for (group, used) in used.into_iter().enumerate() {
            let tile = &self.scratch.tile[group * ROWS * CHUNK..(group + 1) * ROWS * CHUNK];
            let mut sums = [[engine.zero(); B]; ROWS];
            let mut excess = [0; B];
            for i in 0..B {
                let before = &self.scratch.sums[(b + i) * GROUPS + group];
                excess[i] = before.excess;
                for r in 0..ROWS {
                    sums[r][i] = before.lanes[r];
                }
            }
            let mut left = used;
            while left != 0 {
                let block = left.trailing_zeros() as usize;
                left &= left - 1;
                for to in (0..BLOCK).step_by(V::LANES) {
                    // SAFETY: `to + LANES` is at most 64, here and below.
                    let mut w = [unsafe { engine.load(tile[block].0.as_ptr().add(to)) }; ROWS];
                    for r in 1..ROWS {
                        // SAFETY: as above.
                        w[r] = unsafe { engine.load(tile[r * CHUNK + block].0.as_ptr().add(to)) };
                    }
                    for i in 0..B {
                        // SAFETY: as above.
                        let x = unsafe { engine.load(x[i][block].0.as_ptr().add(to)) };
                        for r in 0..ROWS {
                            sums[r][i] = engine.add(sums[r][i], w[r], x);
                        }
                    }
                }
                for i in 0..B {
                    excess[i] += self.x.excess(start + b + i, at + block);
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

/// The vector of a block that begins at column `to`; `from` are the values of the block.
#[inline(always)]
fn expand<V: Engine>(engine: V, from: &[u8; BLOCK], word: u64, to: usize) -> V::Vector {
    let before = (word & low(to)).count_ones() as usize;
    // SAFETY: `before` is at most `to`, and `to + LANES` at most 64.
    unsafe { engine.expand(from.as_ptr().add(before), word >> to) }
}
