//! Activations as the kernels read them.

use crate::element::Word;
use crate::error::Result;
use crate::isa::Kernel;
use crate::memory::filled;
use crate::parallel::{Exec, run_chunks};

/// Columns of a mask word.
pub(super) const BLOCK: usize = 64;

/// Blocks of a chunk of columns: a cache line of mask.
pub(super) const CHUNK: usize = 8;

/// Columns of a chunk.
pub(super) const CHUNK_COLS: usize = CHUNK * BLOCK;

/// Elements below which a second thread costs more than it saves.
pub(super) const COPY_PER_THREAD: usize = 1 << 17;

/// 64 columns, aligned to a cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Block<T>(pub [T; BLOCK]);

/// The columns of some blocks.
pub(super) fn flat<T>(blocks: &[Block<T>]) -> &[T] {
    // SAFETY: a block of 64 numbers of 64, 128 or 256 bytes is those numbers: there is no padding
    // after them.
    unsafe { std::slice::from_raw_parts(blocks.as_ptr().cast(), blocks.len() * BLOCK) }
}

/// [`flat`], to be written to.
pub(super) fn flat_mut<T>(blocks: &mut [Block<T>]) -> &mut [T] {
    // SAFETY: as above.
    unsafe { std::slice::from_raw_parts_mut(blocks.as_mut_ptr().cast(), blocks.len() * BLOCK) }
}

/// A converted copy: the first chunk of all rows, then the second …, so that what is read together
/// lies together. Zeros after the last column, so that kernels need no masks there.
pub(super) struct Activations<T> {
    blocks: Vec<Block<T>>,
    /// Blocks of a row.
    pub each: usize,
    /// Number of rows.
    pub len: usize,
}

impl<T: Copy + Default + Send> Activations<T> {
    /// The rows of `cols` elements that `row` gives, `len` of them; zeros for those it does not.
    /// Element `i` of a block becomes element `place(i)`.
    pub fn new<'a, W: Word>(
        row: impl Fn(usize) -> Option<&'a [W]> + Copy + Sync,
        len: usize,
        cols: usize,
        exec: Exec,
        convert: impl Fn(W) -> T + Copy + Sync,
        place: impl Fn(usize) -> usize + Copy + Sync,
    ) -> Result<Self> {
        let each = cols.div_ceil(BLOCK);
        let mut blocks = filled(len.saturating_mul(each), Block([T::default(); BLOCK]))?;
        let threads = exec.for_work(len * cols, COPY_PER_THREAD).threads;
        run_chunks(threads, &mut blocks, (CHUNK * len).max(1), |chunk, blocks| {
            for (b, blocks) in blocks.chunks_exact_mut(blocks.len() / len).enumerate() {
                if let Some(row) = row(b) {
                    let from = &row[chunk * CHUNK_COLS..cols.min((chunk + 1) * CHUNK_COLS)];
                    exec.isa.run(Fill { from, blocks, convert, place });
                }
            }
        });
        Ok(Activations { blocks, each, len })
    }

    /// Number of chunks.
    #[inline(always)]
    pub fn chunks(&self) -> usize {
        self.each.div_ceil(CHUNK)
    }

    /// Blocks of a chunk in each row, and the chunk of all rows, one after the other.
    #[inline(always)]
    pub fn chunk(&self, chunk: usize) -> (usize, &[Block<T>]) {
        let width = CHUNK.min(self.each - chunk * CHUNK);
        let start = chunk * CHUNK * self.len;
        (width, &self.blocks[start..start + width * self.len])
    }
}

struct Fill<'a, W, T, F, P> {
    from: &'a [W],
    blocks: &'a mut [Block<T>],
    convert: F,
    place: P,
}

impl<W: Word, T, F: Fn(W) -> T, P: Fn(usize) -> usize> Kernel for Fill<'_, W, T, F, P> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (whole, rest) = self.from.as_chunks::<BLOCK>();
        // Of a length that the compiler knows.
        for (from, to) in whole.iter().zip(self.blocks.iter_mut()) {
            for (i, from) in from.iter().enumerate() {
                to.0[(self.place)(i)] = (self.convert)(*from);
            }
        }
        for (i, from) in rest.iter().enumerate() {
            self.blocks[whole.len()].0[(self.place)(i)] = (self.convert)(*from);
        }
    }
}
