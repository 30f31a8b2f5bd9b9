//! More rows of activations than fit the registers: weights are expanded once for all of them.
//!
//! Some rows are expanded to a tile that stays in the first cache, and all the activations go over
//! it:
//! ```text
//! for each tile of rows, for each chunk:
//!     expand the rows to the tile
//!     for each six rows of activations, for each four rows of the tile:
//!         sums[b][r] += tile[r] · x[b]
//! ```
//! The sums of a row lie in the lanes of one vector to the end and are then folded in halves.

use super::engine::{Engine, ROWS, Work, lines, step, unroll, vectors, word};
use crate::element::Word;
use crate::linear::activations::{CHUNK, CHUNK_COLS};
use crate::vector::prefetch;

/// Bytes of a tile: half of the first cache.
const TILE_BYTES: usize = 16 << 10;

/// Rows of a tile.
pub(super) const fn tile_rows<V: Engine>() -> usize {
    TILE_BYTES / (CHUNK_COLS * size_of::<V::Lane>())
}

#[expect(clippy::needless_range_loop, reason = "the indices are those of registers")]
impl<V: Engine> Work<'_, V> {
    /// A tile of rows of weights from `first` on, all activations.
    #[inline(always)]
    pub(super) fn tiled(&mut self, first: usize) -> bool {
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
            let sums = &self.scratch.sums[b * groups..][..groups];
            let mut totals = [[0.0; ROWS]; 16];
            for (totals, &sums) in totals.iter_mut().zip(sums) {
                *totals = engine.totals(sums);
            }
            (self.emit)(first, b, &totals.as_flattened()[..len]);
        }
        for r in 0..len {
            let mut row = self.task.row(first + r);
            row.skip(passed[r]);
            agreed &= row.complete();
        }
        agreed
    }

    /// Expands a chunk of the rows, which have `passed` so many values. Returns which vectors of
    /// each four rows hold anything.
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
            let tile: *mut V::Lane = self.scratch.tile[r * CHUNK..][..CHUNK].as_mut_ptr().cast();
            for vector in (0..vectors).step_by(const { step::<V>() }) {
                // SAFETY: vectors of the chunk.
                let word = unsafe { word::<V>(mask, vector) };
                unroll!(V, I, {
                    // SAFETY: as many bits as columns have been passed at most, and 512 values are
                    // there; a vector of the chunk.
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
                std::array::from_fn(|r| self.scratch.tile[(group * ROWS + r) * CHUNK..][..CHUNK].as_ptr().cast());
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
                // SAFETY: as above: there are no bits after the chunk.
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
