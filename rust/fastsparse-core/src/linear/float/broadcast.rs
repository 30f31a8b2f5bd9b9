//! Rows of activations in the lanes: only kept weights are multiplied.
//!
//! ```text
//! for each tile of activations (up to 64 rows, by columns), for each chunk of columns,
//! for each row of weights:
//!     for each set bit of the mask, at column c:
//!         sums[row][lanes] += next value · x[c][lanes]
//! ```
//! The multiplications are those of the kept weights, where the other kernels have those of a dense
//! layer; each of them costs an offset in a list made from the mask, the broadcast of a value and a
//! load of activations. So it takes a few rows of activations until this is faster, the fewer the
//! more zeros there are.
//!
//! The activations of a chunk stay in the nearer caches while the rows of a task go over them. The
//! sum of a chunk has a few chains, by turns, which are added up before the chunk is added to the
//! row.

use super::vector::{FloatVector, SetBits};
use crate::element::DType;
use crate::error::Result;
use crate::isa::Kernel;
use crate::linear::Real;
use crate::linear::Weights;
use crate::linear::activations::{BLOCK, Block, COPY_PER_THREAD, flat, flat_mut};
use crate::linear::rows::{Row, Task};
use crate::memory::filled;
use crate::parallel::{Exec, SharedMut, run};

/// Rows of activations of a tile at most.
const TILE: usize = 64;

/// Bytes of the activations of a chunk, and those where more than [`SPARSE_UP_TO`] weights in a
/// thousand are kept. Fewer bytes stay in the first cache, more mean that fewer chunks are begun.
/// Measured on Zen 3, nanoseconds a weight and row at 64 rows, with 64 and with 32 kB: 0.035 and
/// 0.023 at 50 %, 0.015 and 0.015 at 25 %, 0.008 and 0.009 at 10 %.
const CHUNK_BYTES: usize = 64 << 10;
const DENSE_CHUNK_BYTES: usize = 32 << 10;
const SPARSE_UP_TO: usize = 250;

// An offset in a chunk is a u16.
const _: () = assert!(CHUNK_BYTES <= 1 << 16);

/// Blocks of a chunk at most. Measured on Zen 3: with 32, 8 rows at 25 % took 0.058 ns a weight and
/// row, with 8 0.043.
const BLOCKS: usize = 8;

/// Rows of weights of a task at most, so that loading the activations of a chunk into the first
/// cache is a small part of it.
const ROWS: usize = 128;

/// Rows of a task: [`ROWS`], fewer where that would be less than two tasks a thread.
pub(super) fn rows(all: usize, threads: usize) -> usize {
    all.div_ceil(2 * threads).clamp(1, ROWS)
}

/// Some rows of activations by columns: the elements of a column lie together.
struct Tile {
    /// The first of the rows.
    first: usize,
    /// Vectors of a column.
    vectors: usize,
    /// Where the columns begin.
    start: usize,
}

/// Activations as float32, in tiles; zeros where there are no more rows.
pub(super) struct Columns {
    blocks: Vec<Block<f32>>,
    tiles: Vec<Tile>,
    batch: usize,
}

impl Columns {
    /// The rows of `cols` elements that `row` gives, `batch` of them; zeros for those it does not.
    pub fn new<'a, V: FloatVector, X: Real>(
        _: V,
        row: impl Fn(usize) -> Option<&'a [X::Bits]> + Sync,
        batch: usize,
        cols: usize,
        exec: Exec,
    ) -> Result<Self> {
        let vectors = batch.div_ceil(V::LANES);
        let parts = vectors.div_ceil(TILE / V::LANES);
        let each = cols.div_ceil(BLOCK);
        let mut tiles = Vec::with_capacity(parts);
        let mut before = 0;
        for part in 0..parts {
            // As even as possible.
            let end = vectors * (part + 1) / parts;
            let first = before * V::LANES;
            tiles.push(Tile { first, vectors: end - before, start: before * V::LANES * each });
            before = end;
        }
        let mut blocks = filled((vectors * V::LANES).saturating_mul(each), Block([0.0; BLOCK]))?;
        let shared = SharedMut::new(&mut blocks);
        let threads = exec.for_work(batch * cols, COPY_PER_THREAD).threads;
        run(threads, parts * each, |i| {
            let (tile, block) = (&tiles[i / each], i % each);
            let width = tile.vectors * V::LANES;
            // SAFETY: distinct tasks have distinct blocks of columns, of `width` rows each.
            let to = unsafe { shared.slice(tile.start + block * width, width) };
            for lane in 0..width.min(batch - tile.first) {
                if let Some(row) = row(tile.first + lane) {
                    let from = &row[block * BLOCK..cols.min((block + 1) * BLOCK)];
                    exec.isa.run(Fill::<X> { from, to, lane, width });
                }
            }
        });
        Ok(Columns { blocks, tiles, batch })
    }
}

struct Fill<'a, X: Real> {
    from: &'a [X::Bits],
    to: &'a mut [Block<f32>],
    lane: usize,
    width: usize,
}

impl<X: Real> Kernel for Fill<'_, X> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let to = flat_mut(self.to);
        let mut wide = [0.0; BLOCK];
        for (from, wide) in self.from.iter().zip(&mut wide) {
            *wide = X::to_f32(*from);
        }
        for (column, wide) in to.chunks_exact_mut(self.width).zip(wide) {
            column[self.lane] = wide;
        }
    }
}

/// What a thread keeps between its tasks.
pub(super) struct Scratch {
    /// Sums of a tile by rows of weights.
    sums: Vec<Block<f32>>,
    /// Values of a chunk as float32, and what is after them in a vector.
    wide: [f32; BLOCKS * BLOCK],
    /// Where the columns of the set bits of a chunk are, in bytes, and what the last eight bits may
    /// be followed by.
    offsets: [u16; BLOCKS * BLOCK + 8],
}

impl Scratch {
    pub fn new() -> Result<Self> {
        Ok(Scratch {
            sums: filled(ROWS * TILE / BLOCK, Block([0.0; BLOCK]))?,
            wide: [0.0; BLOCKS * BLOCK],
            offsets: [0; BLOCKS * BLOCK + 8],
        })
    }
}

/// A task of at most [`ROWS`] rows on its way into a function that names the features. Returns
/// whether mask and offsets agree.
pub(super) struct Work<'a, V, E: Real> {
    pub vectors: V,
    pub task: &'a Task<'a, E::Bits>,
    pub x: &'a Columns,
    pub scratch: &'a mut Scratch,
    pub emit: &'a dyn Fn(usize, usize, &[f32]),
}

impl<V: SetBits, E: Real> Kernel for Work<'_, V, E> {
    type Output = bool;

    #[inline(always)]
    fn run(mut self) -> bool {
        let mut agreed = true;
        for tile in 0..self.x.tiles.len() {
            // Chains enough to hide the latency of a multiplication.
            agreed &= match self.x.tiles[tile].vectors {
                1 => self.tile::<1, 4>(tile),
                2 => self.tile::<2, 4>(tile),
                3 => self.tile::<3, 2>(tile),
                4 => self.tile::<4, 2>(tile),
                5 if const { TILE / V::LANES >= 5 } => self.tile::<5, 1>(tile),
                6 if const { TILE / V::LANES >= 6 } => self.tile::<6, 1>(tile),
                7 if const { TILE / V::LANES >= 7 } => self.tile::<7, 1>(tile),
                8 if const { TILE / V::LANES >= 8 } => self.tile::<8, 1>(tile),
                _ => unreachable!("at most TILE rows"),
            };
        }
        agreed
    }
}

#[expect(clippy::needless_range_loop, reason = "the indices are those of registers")]
impl<V: SetBits, E: Real> Work<'_, V, E> {
    /// All rows of the task with a tile of `A` vectors, in `CHAINS` chains of sums.
    #[inline(always)]
    fn tile<const A: usize, const CHAINS: usize>(&mut self, tile: usize) -> bool {
        let Tile { first, start, .. } = self.x.tiles[tile];
        let Weights { shape, values, .. } = self.task.weights;
        let mut from: [Row<'_, E::Bits>; ROWS] = std::array::from_fn(|r| self.task.row(self.task.rows.start + r));
        let rows = self.task.rows.len();
        let width = A * V::LANES;
        let sparse = values.len().saturating_mul(1000) <= shape.len().saturating_mul(SPARSE_UP_TO);
        let bytes = if sparse { CHUNK_BYTES } else { DENSE_CHUNK_BYTES };
        let blocks = (bytes / (4 * width * BLOCK)).clamp(1, BLOCKS);
        let each = shape.cols.div_ceil(BLOCK);
        flat_mut(&mut self.scratch.sums)[..rows * width].fill(0.0);
        let mut agreed = true;
        for chunk in (0..each).step_by(blocks) {
            let len = blocks.min(each - chunk);
            let x = &self.x.blocks[start + chunk * width..start + (chunk + len) * width];
            for r in 0..rows {
                agreed &= self.chunk::<A, CHAINS>(r, &mut from[r], chunk, len, x);
            }
        }
        let mut column = [0.0; ROWS];
        for lane in 0..width.min(self.x.batch - first) {
            let sums = flat(&self.scratch.sums);
            for r in 0..rows {
                column[r] = sums[r * width + lane];
            }
            (self.emit)(self.task.rows.start, first + lane, &column[..rows]);
        }
        agreed && from[..rows].iter().all(Row::complete)
    }

    /// Adds `len` blocks of a row to its sums. Returns whether there were values for all the bits.
    #[inline(always)]
    fn chunk<const A: usize, const CHAINS: usize>(
        &mut self,
        r: usize,
        row: &mut Row<'_, E::Bits>,
        chunk: usize,
        len: usize,
        x: &[Block<f32>],
    ) -> bool {
        const NOTHING: f32 = 0.0;
        let (vectors, width) = (self.vectors, A * V::LANES);
        assert!(len <= BLOCKS && x.len() == len * width);
        let mut count = 0;
        for block in 0..len {
            let word = row.word(chunk + block, self.task.weights.shape.cols);
            if word != 0 {
                let to = self.scratch.offsets[count..].as_mut_ptr();
                // SAFETY: there is room for an offset for each column of a chunk and for eight
                // more.
                count += unsafe { vectors.set_bit_offsets(word, (block * BLOCK) as u16, (4 * width) as u16, to) };
            }
        }
        let Some(values) = row.values(count) else { return false };
        // The rows of a task are more streams than hardware follows.
        row.skip(count);
        row.prefetch(chunk + len, len, count);
        let mut from: *const f32 = match E::DTYPE {
            DType::F32 => values.as_ptr().cast(),
            _ => self.widen(values),
        };
        let mut offset: *const u16 = self.scratch.offsets.as_ptr();
        let x: *const f32 = x.as_ptr().cast();
        let mut sums = [[vectors.zero(); A]; CHAINS];
        for _ in 0..count / CHAINS {
            for chain in 0..CHAINS {
                // SAFETY: a value and an offset for each bit; the offset is that of a column of the
                // chunk.
                unsafe {
                    let (w, x) = (vectors.splat(*from.add(chain)), x.byte_add(*offset.add(chain) as usize));
                    for a in 0..A {
                        sums[chain][a] = vectors.multiply_add(sums[chain][a], w, vectors.load(x.add(a * V::LANES)));
                    }
                }
            }
            // SAFETY: as above.
            (from, offset) = unsafe { (from.add(CHAINS), offset.add(CHAINS)) };
        }
        // What is left, without a branch: nothing times the first column where there is no bit.
        for chain in 0..CHAINS - 1 {
            let some = chain < count % CHAINS;
            // SAFETY: as above; a chunk has a first column.
            unsafe {
                let w = vectors.splat(*if some { from.add(chain) } else { &NOTHING });
                let x = x.byte_add(if some { *offset.add(chain) as usize } else { 0 });
                for a in 0..A {
                    sums[chain][a] = vectors.multiply_add(sums[chain][a], w, vectors.load(x.add(a * V::LANES)));
                }
            }
        }
        let mut half = CHAINS / 2;
        while half > 0 {
            for chain in 0..half {
                for a in 0..A {
                    sums[chain][a] = vectors.add(sums[chain][a], sums[chain + half][a]);
                }
            }
            half /= 2;
        }
        let to = &mut flat_mut(&mut self.scratch.sums)[r * width..(r + 1) * width];
        for a in 0..A {
            // SAFETY: a vector of the row's sums.
            unsafe {
                let to = to[a * V::LANES..][..V::LANES].as_mut_ptr();
                vectors.store(to, vectors.add(vectors.load(to), sums[0][a]));
            }
        }
        true
    }

    /// The values as float32, at most those of a chunk.
    #[inline(always)]
    fn widen(&mut self, values: &[E::Bits]) -> *const f32 {
        let wide = &mut self.scratch.wide[..values.len().next_multiple_of(V::LANES)];
        let vectors = values.len() / V::LANES;
        for vector in 0..vectors {
            // SAFETY: whole vectors of both.
            unsafe {
                let from = values.as_ptr().add(vector * V::LANES);
                self.vectors.store(wide.as_mut_ptr().add(vector * V::LANES), self.vectors.widen::<E>(from));
            }
        }
        if vectors * V::LANES < values.len() {
            let mut rest = [<E::Bits as Default>::default(); TILE];
            let tail = &values[vectors * V::LANES..];
            rest[..tail.len()].copy_from_slice(tail);
            // SAFETY: `wide` is as long as whole vectors, and `rest` longer than one.
            unsafe {
                self.vectors.store(wide.as_mut_ptr().add(vectors * V::LANES), self.vectors.widen::<E>(rest.as_ptr()));
            }
        }
        wide.as_ptr()
    }
}
