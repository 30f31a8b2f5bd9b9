//! A few rows of activations, multiplied while weights are expanded, sums in registers.
//!
//! ```text
//! for each four rows of weights, for each chunk, for each vector of it:
//!     w[r] = expand(bits of the vector, next values of row r)
//!     sums[r][b] += w[r] · x[b]
//! ```
//! Four rows share each load of x, or two where registers hold no more sums. Two kinds of chunks go
//! another way:
//! - The masks of the rows are the same, as in blocks of four and more rows: x is compressed once,
//!   and the values are multiplied as they lie; with AVX2 for one row of activations only.
//! - So many vectors have no weight at all (wide blocks, runs of zeros) that each row had better go
//!   through its own.
//!
//! Where each group of columns keeps as many, the values of the next vector begin at a known place:
//! nothing is counted on the way to them, nor are vectors without weights looked for. Measured on
//! Zen 3, one row of activations, 2:4, nanoseconds a weight of bfloat16 and of float16: 0.059 and
//! 0.080, and 0.065 and 0.086 where they are.

use super::engine::{Engine, Kept, ROWS, Work, keep, leading, lines, part, step, unroll, vectors, word};
use super::strategy::each_up_to;
use crate::element::Word;
use crate::linear::activations::{BLOCK, CHUNK_COLS};
use crate::linear::rows::{ChunkMask, Row};
use crate::matrix::low;
use crate::vector::prefetch;

/// How many values a vector of columns takes. Its fields are constants where it is made: functions
/// that take it are inlined there.
#[derive(Clone, Copy)]
pub(super) struct ExpandMode {
    /// Each vector as many, or `None`: as many as there are bits.
    pub kept: Option<usize>,
    /// Hardly ever more than half of the columns: those of the first half are expanded, the rest
    /// goes another way.
    pub at_most_half: bool,
}

impl ExpandMode {
    pub const COUNTED: ExpandMode = ExpandMode { kept: None, at_most_half: false };

    /// All values from `start` to `from`, which lie in the columns of `mask`. A promise may not be
    /// kept: then the bits say how many there are.
    #[inline(always)]
    fn all<W: Word>(self, start: *const W, from: *const W, mask: &ChunkMask) -> usize {
        if self.kept.is_some() { bits(mask.as_chunks().0) } else { (from.addr() - start.addr()) / W::BYTES }
    }
}

/// Rows for columns. An array that a loop indexes lies in memory, where every addition would be
/// stored; so sums get there this way, and those that are added to stay in registers.
#[inline(always)]
fn transposed<T: Copy, const A: usize, const B: usize>(from: [[T; B]; A]) -> [[T; A]; B] {
    let mut to = [[from[0][0]; A]; B];
    for a in 0..A {
        for b in 0..B {
            to[b][a] = from[a][b];
        }
    }
    to
}

/// The bits of some mask words. A loop, unlike [`crate::matrix::popcount`]: closures are compiled
/// without the features.
#[inline(always)]
fn bits(words: &[[u8; 8]]) -> usize {
    let mut count = 0;
    for word in words {
        count += u64::from_le_bytes(*word).count_ones();
    }
    count as usize
}

/// The bits of a mask before a column.
#[inline(always)]
fn before(mask: &ChunkMask, column: usize) -> usize {
    let words = mask.as_chunks().0;
    bits(&words[..column / BLOCK])
        + (u64::from_le_bytes(words[column / BLOCK]) & low(column % BLOCK)).count_ones() as usize
}

/// A chunk of some rows, and activations.
struct Chunk<V: Engine, const B: usize, const R: usize> {
    /// Mask of the first row; the others follow by `stride` bytes.
    mask: *const u8,
    stride: usize,
    from: [*const V::Weight; R],
    /// How far after those the values are that are fetched, in bytes.
    ahead: usize,
    x: [*const V::Lane; B],
    /// Vectors that have columns.
    vectors: usize,
}

/// A vector of each row of activations.
///
/// # Safety
/// The vector after `at` numbers of each row is readable.
#[inline(always)]
unsafe fn load_rows<V: Engine, const B: usize>(engine: V, rows: [*const V::Lane; B], at: usize) -> [V::Vector; B] {
    // SAFETY: the caller's promise, here and below.
    let mut loaded = [unsafe { engine.load(rows[0].add(at)) }; B];
    for b in 1..B {
        // SAFETY: as above.
        loaded[b] = unsafe { engine.load(rows[b].add(at)) };
    }
    loaded
}

type Sums<V, const B: usize, const R: usize> = [[<V as Engine>::Sums; B]; R];

#[expect(clippy::needless_range_loop, reason = "the indices are those of registers")]
impl<V: Engine, const B: usize, const R: usize> Chunk<V, B, R> {
    /// Mask of a row.
    ///
    /// # Safety
    /// The masks of the rows are readable, and outlive what is done with this one.
    #[inline(always)]
    unsafe fn mask<'a>(&self, r: usize) -> &'a ChunkMask {
        // SAFETY: the caller's promise.
        unsafe { &*self.mask.add(r * self.stride).cast() }
    }

    /// All rows at a time.
    ///
    /// # Safety
    /// The values of a chunk are readable at `from`, the vectors at `x`, the masks. `mode` takes no
    /// more than a vector has columns.
    #[inline(always)]
    unsafe fn all(&mut self, engine: V, mode: ExpandMode, mut sums: Sums<V, B, R>) -> Sums<V, B, R> {
        let table = engine.table(mode.at_most_half);
        for first in (0..self.vectors).step_by(const { step::<V>() }) {
            let mut words = [0; R];
            for r in 0..R {
                // SAFETY: the caller's promise.
                words[r] = unsafe { word::<V>(self.mask(r), first) };
            }
            unroll!(V, I, {
                if V::PAIRS
                    && mode.at_most_half
                    && let Some(kept) = mode.kept
                {
                    if const { I.is_multiple_of(2) } {
                        // SAFETY: as below; a step that is written out has an even number of
                        // vectors.
                        sums = unsafe { self.two::<I>(engine, kept, table, words, first, sums) };
                    }
                } else {
                    // SAFETY: the caller's promise; the vectors of a block are a multiple of the
                    // step.
                    sums = unsafe { self.one::<I>(engine, mode, table, words, first, sums) };
                }
            });
            for r in 0..R {
                for line in 0..const { lines::<V>() } {
                    prefetch(self.from[r].wrapping_byte_add(self.ahead).wrapping_byte_add(64 * line));
                }
            }
        }
        sums
    }

    /// Vector `first + I`.
    ///
    /// # Safety
    /// As for `all`; `table` is the engine's.
    #[inline(always)]
    unsafe fn one<const I: usize>(
        &mut self,
        engine: V,
        mode: ExpandMode,
        table: *const u8,
        words: [u64; R],
        first: usize,
        mut sums: Sums<V, B, R>,
    ) -> Sums<V, B, R> {
        let at = (first + I) * V::LANES;
        // SAFETY: the caller's promise.
        let loaded = unsafe { load_rows(engine, self.x, at) };
        for r in 0..R {
            // SAFETY: the caller's promise; no more values than columns have been passed.
            let (w, next) = unsafe { engine.next::<I>(mode.at_most_half, table, words[r], self.from[r], mode.kept) };
            for b in 0..B {
                sums[r][b] = engine.opt_barrier(engine.add(sums[r][b], w, loaded[b]));
            }
            self.from[r] = next;
        }
        sums
    }

    /// Vectors `first + I` and the next, which keep `kept` each, no more than half.
    ///
    /// # Safety
    /// As for `one`.
    #[inline(always)]
    unsafe fn two<const I: usize>(
        &mut self,
        engine: V,
        kept: usize,
        table: *const u8,
        words: [u64; R],
        first: usize,
        mut sums: Sums<V, B, R>,
    ) -> Sums<V, B, R> {
        let at = (first + I) * V::LANES;
        // SAFETY: the caller's promise.
        let loaded = unsafe { [load_rows(engine, self.x, at), load_rows(engine, self.x, at + V::LANES)] };
        for r in 0..R {
            // SAFETY: the caller's promise; no more values than columns have been passed.
            let (w, next) = unsafe { engine.pair::<I>(table, words[r], self.from[r], kept) };
            for b in 0..B {
                for i in 0..2 {
                    sums[r][b] = engine.opt_barrier(engine.add(sums[r][b], w[i], loaded[i][b]));
                }
            }
            self.from[r] = next;
        }
        sums
    }

    /// What `expand_at_most_half` leaves out of vectors that keep more than half of their columns.
    ///
    /// # Safety
    /// As for `all`, before which this is called.
    #[inline(always)]
    unsafe fn rest(&self, engine: V, mut sums: Sums<V, B, R>) -> Sums<V, B, R> {
        for r in 0..R {
            // SAFETY: the caller's promise.
            let mask = unsafe { self.mask(r) };
            let (mut row, mut left) = (sums[r], engine.over_half(mask));
            while left != 0 {
                let vector = left.trailing_zeros() as usize;
                left &= left - 1;
                let mut keep = keep::<V>(mask, vector);
                for _ in 0..V::LANES / 2 {
                    keep &= keep.wrapping_sub(1);
                }
                // SAFETY: as in `all`: no more values than columns are before the vector and in its
                // first half, and half a vector is left; there are no bits after the columns.
                unsafe {
                    let w = engine
                        .expand_at_most_half(self.from[r].add(before(mask, vector * V::LANES) + V::LANES / 2), keep);
                    for b in 0..B {
                        row[b] = engine.add(row[b], w, engine.load(self.x[b].add(vector * V::LANES)));
                    }
                }
            }
            sums[r] = row;
        }
        sums
    }

    /// Each row by the vectors that hold anything, which are the bits of `used`.
    ///
    /// # Safety
    /// As for `all`.
    #[inline(always)]
    unsafe fn each(&mut self, engine: V, used: [u64; R], mut sums: Sums<V, B, R>) -> Sums<V, B, R> {
        for r in 0..R {
            // What is named by a variable lies in memory: not within the loop.
            // SAFETY: the caller's promise.
            let mask = unsafe { self.mask(r) };
            let (mut from, mut row, mut left) = (self.from[r], sums[r], used[r]);
            while left != 0 {
                let vector = left.trailing_zeros() as usize;
                left &= left - 1;
                let keep = keep::<V>(mask, vector);
                // SAFETY: as in `all`.
                let w = unsafe { engine.expand(from, keep) };
                from = from.wrapping_add(keep.count_ones() as usize);
                prefetch(from.wrapping_byte_add(self.ahead));
                for b in 0..B {
                    // SAFETY: as in `all`: there are no bits after the columns.
                    let x = unsafe { engine.load(self.x[b].add(vector * V::LANES)) };
                    row[b] = engine.add(row[b], w, x);
                }
            }
            (self.from[r], sums[r]) = (from, row);
        }
        sums
    }

    /// Rows that share their mask: activations are compressed to `kept`.
    ///
    /// # Safety
    /// As for `all`; `kept` is valid for reading and writing `B` rows.
    #[inline(always)]
    unsafe fn shared(&mut self, engine: V, kept: *mut Kept<V::Lane>, mut sums: Sums<V, B, R>) -> Sums<V, B, R> {
        let kept: [*mut V::Lane; B] = std::array::from_fn(|b| kept.wrapping_add(b).cast());
        let mut count = 0;
        for first in (0..self.vectors).step_by(const { step::<V>() }) {
            // SAFETY: the caller's promise; the vectors of a block are a multiple of the step.
            let word = unsafe { word::<V>(self.mask(0), first) };
            if word == 0 {
                continue;
            }
            for r in 0..R {
                let later = self.from[r].wrapping_add(count).wrapping_byte_add(self.ahead);
                for line in 0..const { lines::<V>() } {
                    prefetch(later.wrapping_byte_add(64 * line));
                }
            }
            unroll!(V, I, {
                let keep = part::<V, I>(word);
                for b in 0..B {
                    // SAFETY: the caller's promise; no more than the columns before have been
                    // written, and a block is left.
                    unsafe { engine.compress(self.x[b].add((first + I) * V::LANES), keep, kept[b].add(count)) };
                }
                count += keep.count_ones() as usize;
            });
        }
        let whole = count - count % V::LANES;
        for at in (0..whole).step_by(V::LANES) {
            // SAFETY: as above, and of values there are as many as columns.
            unsafe {
                let loaded = load_rows(engine, kept.map(<*mut V::Lane>::cast_const), at);
                for r in 0..R {
                    let w = engine.widen(self.from[r].add(at));
                    for b in 0..B {
                        sums[r][b] = engine.add(sums[r][b], w, loaded[b]);
                    }
                }
            }
        }
        if whole < count {
            for b in 0..B {
                // What an earlier task left there would be multiplied by nothing, which has a sign.
                // SAFETY: as above: a block is left.
                unsafe { std::ptr::write_bytes(kept[b].add(count), 0, V::LANES) };
            }
            for r in 0..R {
                // SAFETY: as above.
                unsafe {
                    let w = engine.expand(self.from[r].add(whole), leading::<V>(count - whole));
                    for b in 0..B {
                        sums[r][b] = engine.add(sums[r][b], w, engine.load(kept[b].add(whole)));
                    }
                }
            }
        }
        for r in 0..R {
            self.from[r] = self.from[r].wrapping_add(count);
        }
        sums
    }
}

impl<V: Engine> Work<'_, V> {
    /// `R` rows of weights from `first` on, `B` rows of activations from `from_b` on. Returns
    /// whether mask and offsets agree.
    #[inline(always)]
    pub(super) fn direct<const B: usize, const R: usize>(
        &mut self,
        first: usize,
        from_b: usize,
        mode: ExpandMode,
    ) -> bool {
        if first >= self.task.rows.end {
            return true;
        }
        let (engine, cols) = (self.engine, self.task.weights.shape.cols);
        let mut rows: [Row<'_, V::Weight>; R] = std::array::from_fn(|r| self.task.row(first + r));
        let mut sums = [[engine.zero(); B]; R];
        let mut full = true;
        for row in &rows {
            full &= row.has_full_chunks(cols);
        }
        for chunk in 0..self.x.chunks() {
            let (width, x) = self.x.chunk(chunk);
            let ahead = self.task.ahead(chunk, first, R);
            let mut from = [std::ptr::null(); R];
            let (mask, stride);
            if full && (chunk + 1) * CHUNK_COLS <= cols {
                for r in 0..R {
                    from[r] = rows[r].next();
                }
                (mask, stride) = (rows[0].bits(chunk), rows[0].bytes());
            } else {
                self.window(&rows, chunk, &mut from);
                (mask, stride) = (self.scratch.masks.as_ptr().cast(), size_of::<ChunkMask>());
            }
            for r in 0..R {
                prefetch(rows[0].later_bits(chunk, R).wrapping_add(r * rows[0].bytes()));
            }
            let x: [*const V::Lane; B] = std::array::from_fn(|b| x[(from_b + b) * width..][..width].as_ptr().cast());
            let mut work = Chunk { mask, stride, from, ahead, x, vectors: width * vectors::<V>() / (CHUNK_COLS / 64) };
            let kept = if const { B <= V::COMPRESSED_UP_TO } {
                self.scratch.kept[..B].as_mut_ptr()
            } else {
                std::ptr::null_mut()
            };
            let (mut used, mut holding, mut same) = ([0; R], 0, true);
            // SAFETY: 512 values are there, in the buffers or since rows with full chunks have
            // them; the vectors of the chunk and the masks; `kept` has `B` rows.
            unsafe {
                for (r, used) in used.iter_mut().enumerate() {
                    *used = engine.used(work.mask(r));
                    holding += used.count_ones() as usize;
                    // Mostly the first word tells.
                    same = same && work.mask(r)[..8] == work.mask(0)[..8] && work.mask(r) == work.mask(0);
                }
                if const { B <= V::COMPRESSED_UP_TO } && same {
                    sums = work.shared(engine, kept, sums);
                } else if mode.kept.is_some() || 100 * holding > R * work.vectors * const { each_up_to(V::LANES, B) } {
                    if mode.at_most_half && mode.kept.is_none() {
                        sums = work.rest(engine, sums);
                    }
                    sums = work.all(engine, mode, sums);
                    for r in 0..R {
                        rows[r].skip(mode.all(from[r], work.from[r], work.mask(r)));
                    }
                    continue;
                } else {
                    sums = work.each(engine, used, sums);
                }
                for r in 0..R {
                    rows[r].skip(ExpandMode::COUNTED.all(from[r], work.from[r], work.mask(r)));
                }
            }
        }
        let len = R.min(self.task.rows.end - first);
        for (b, sums) in transposed(sums).iter().enumerate() {
            let mut four = [sums[0]; ROWS];
            four[..R].copy_from_slice(sums);
            (self.emit)(first, from_b + b, &engine.totals(four)[..len]);
        }
        rows.iter().all(Row::complete)
    }

    /// Puts masks and values of a chunk into the buffers, where they may not be whole.
    #[cold]
    #[inline(never)]
    fn window<const R: usize>(
        &mut self,
        rows: &[Row<'_, V::Weight>; R],
        chunk: usize,
        from: &mut [*const V::Weight; R],
    ) {
        let cols = self.task.weights.shape.cols;
        for (r, row) in rows.iter().enumerate() {
            row.partial(chunk, cols, &mut self.scratch.masks[r]);
            from[r] = row.window(&mut self.scratch.values[r]).as_ptr();
        }
    }
}
