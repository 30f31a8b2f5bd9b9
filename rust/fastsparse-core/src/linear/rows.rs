//! Tasks: some rows each, several for each thread, so that threads share the kept weights evenly
//! however they lie.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::activations::{BLOCK, CHUNK, CHUNK_COLS};
use super::call::{Part, Results};
use super::{Real, Weights};
use crate::element::Word;
use crate::error::Result;
use crate::isa::is_intel;
use crate::matrix::{Matrix, low};
use crate::parallel::try_run_with;
use crate::vector::prefetch;

/// Elements of a task at most, about: some ten microseconds of work.
const ELEMENTS: usize = 1 << 16;

/// Tasks of each of several threads, about, where there are rows enough: none waits long for the
/// others.
const TASKS: usize = 4;

/// What a row costs at least, in elements.
const ROW_COST: usize = 16;

/// How far ahead of their use values are fetched, in bytes, at most a row: rows are too short for
/// hardware to see streams. Measured on Zen 3 with AVX2, two threads, one row of activations,
/// nanoseconds a weight of bfloat16 at 50 %, rows of 2048 and of 4096 columns: 0.071 and 0.073 with
/// 1024, 0.063 and 0.069 with 2048, 0.062 and 0.061 with 3072, 0.061 and 0.066 with 4096.
const AHEAD: usize = 3072;

/// The same on Intel, whose hardware sees more streams and has fewer lines on their way. Measured on
/// Emerald Rapids, two threads, one row, rows of 11008 columns from memory, nanoseconds a weight at
/// 50 and 25 % with 512, 1024 and 3072, two runs each: bfloat16 0.048 and 0.046, 0.050 and 0.043,
/// 0.046 and 0.051; 0.034 and 0.033, 0.035 and 0.036, 0.040 and 0.041; int8 0.039 and 0.034, 0.045
/// and 0.039, 0.044 and 0.058.
const AHEAD_INTEL: usize = 512;

/// Chunks ahead at least, where a row has as many: one takes no longer than memory does. Measured on
/// Emerald Rapids in a model with rows of 576 columns, bfloat16 at 50 %, tokens a second over those
/// of dense layers, two runs each: 1.12 and 1.15 with one chunk, 1.24 and 1.23 with two.
const LEAST_LATER: usize = 2;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Rows of a task: a multiple of those of a tile.
pub(super) fn rows(shape: Matrix, rows_per_tile: usize, threads: usize) -> usize {
    let most = ELEMENTS / shape.cols.max(ROW_COST);
    let rows = if threads > 1 { most.min(shape.rows / (TASKS * threads)) } else { most };
    rows.max(1).next_multiple_of(rows_per_tile)
}

/// Calls `kernel(state, task, part)` for every task of `rows` rows, with a state for each thread
/// and the task's part of the results. Returns whether all calls agreed; an error where a state
/// could not be made.
pub(super) fn each_task<W: Word, Y: Real, S: Send>(
    weights: Weights<'_, W>,
    results: &Results<'_, Y>,
    rows: usize,
    threads: usize,
    state: impl Fn() -> Result<S> + Sync,
    kernel: impl Fn(&mut S, &Task<'_, W>, &Part<'_, Y>) -> bool + Sync,
) -> Result<bool> {
    let all = weights.shape.rows;
    let agreed = AtomicBool::new(true);
    try_run_with(threads, all.div_ceil(rows), state, |state, i| {
        let task = Task::new(weights, i * rows..all.min((i + 1) * rows));
        // SAFETY: tasks have distinct rows, and each is called once.
        let part = unsafe { results.of(task.rows.clone()) };
        if !kernel(state, &task, &part) {
            agreed.store(false, Ordering::Relaxed);
        }
        Ok(())
    })?;
    Ok(agreed.into_inner())
}

/// Some rows of a packed matrix.
pub(super) struct Task<'a, W> {
    pub weights: Weights<'a, W>,
    pub rows: Range<usize>,
    /// Chunks of a row.
    chunks: usize,
    /// Values of a chunk, on average.
    chunk_values: usize,
    /// The values of the chunk that is later by so many are fetched.
    later: usize,
}

impl<'a, W: Word> Task<'a, W> {
    pub fn new(weights: Weights<'a, W>, rows: Range<usize>) -> Self {
        let chunks = weights.shape.cols.div_ceil(CHUNK_COLS).max(1);
        let chunk_values = (weights.values.len() / (weights.shape.rows * chunks)).max(1);
        let ahead = if is_intel() { AHEAD_INTEL } else { AHEAD };
        let later = (ahead / (chunk_values * W::BYTES)).clamp(LEAST_LATER.min(chunks), chunks);
        Task { weights, rows, chunks, chunk_values, later }
    }

    /// A row of the matrix from its first column on; one without weights after the end.
    #[inline(always)]
    pub fn row(&self, row: usize) -> Row<'a, W> {
        let Weights { shape, values, mask, offsets, .. } = self.weights;
        if row >= self.rows.end {
            return Row { bits: &[], bytes: 0, values, at: 0, end: 0 };
        }
        let bytes = shape.row_bytes();
        Row { bits: &mask[row * bytes..], bytes, values, at: offsets[row] as usize, end: offsets[row + 1] as usize }
    }

    /// How far after the values of `chunk` those are that are to be fetched while it is computed,
    /// in bytes, where `rows_per_tile` rows from `first` on are read at a time. After the last
    /// chunk of a row comes the first of the one that is read in its place.
    #[inline(always)]
    pub fn ahead(&self, chunk: usize, first: usize, rows_per_tile: usize) -> usize {
        let Task { chunks, later, chunk_values, .. } = *self;
        let start = |row: usize| self.weights.offsets[row.min(self.weights.shape.rows)] as usize;
        let mut values = later * chunk_values;
        if chunk + later >= chunks {
            let next = start(first + rows_per_tile).wrapping_sub(start(first));
            values = next.wrapping_add(values).wrapping_sub(chunks * chunk_values);
        }
        values.wrapping_mul(W::BYTES)
    }
}

/// The mask of a chunk that keeps all, and one that keeps nothing.
static LEADING: [u8; CHUNK_COLS / 4] = {
    let mut bytes = [0; CHUNK_COLS / 4];
    let mut i = 0;
    while i < CHUNK_COLS / 8 {
        bytes[i] = 0xff;
        i += 1;
    }
    bytes
};

/// Mask of a chunk of columns of a row.
pub(super) type ChunkMask = [u8; CHUNK_COLS / 8];

/// A row and how far it has been read.
#[derive(Clone, Copy)]
pub(super) struct Row<'a, W> {
    /// Its mask and those of the rows after it.
    bits: &'a [u8],
    /// Bytes of its own.
    bytes: usize,
    values: &'a [W],
    at: usize,
    end: usize,
}

impl<'a, W: Word> Row<'a, W> {
    /// Mask of a block; 0 after the end. `cols` are those of the matrix.
    #[inline(always)]
    pub fn word(&self, block: usize, cols: usize) -> u64 {
        let rest = self.bits.get(8 * block..).unwrap_or_default();
        let word = match rest.first_chunk() {
            Some(word) => u64::from_le_bytes(*word),
            None => rest.iter().rev().fold(0, |word, &byte| word << 8 | byte as u64),
        };
        word & low(cols.saturating_sub(BLOCK * block))
    }

    /// Mask of a chunk of columns, put into `buffer` where it is not whole: bits after the end are
    /// 0.
    #[inline(always)]
    pub fn mask<'b>(&self, chunk: usize, cols: usize, buffer: &'b mut ChunkMask) -> &'b ChunkMask
    where
        'a: 'b,
    {
        if (chunk + 1) * CHUNK_COLS <= cols
            && let Some(mask) = self.bits.get(CHUNK_COLS / 8 * chunk..).and_then(<[u8]>::first_chunk)
        {
            return mask;
        }
        self.partial(chunk, cols, buffer)
    }

    /// Whether, whatever the mask holds, there are as many values as a chunk has columns at the
    /// start of each of its chunks.
    #[inline(always)]
    pub fn has_full_chunks(&self, cols: usize) -> bool {
        !self.bits.is_empty() && self.at.saturating_add(cols).saturating_add(CHUNK_COLS) <= self.values.len()
    }

    /// The mask from a chunk on.
    #[inline(always)]
    pub fn bits(&self, chunk: usize) -> *const u8 {
        self.bits.as_ptr().wrapping_add(CHUNK_COLS / 8 * chunk)
    }

    /// Bytes of the mask.
    #[inline(always)]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The values from the next one on.
    #[inline(always)]
    pub fn next(&self) -> *const W {
        self.values.as_ptr().wrapping_add(self.at)
    }

    /// [`Row::mask`] of the last chunk. Not inlined: the compiler would prepare for it before each
    /// chunk.
    #[cold]
    #[inline(never)]
    pub fn partial<'b>(&self, chunk: usize, cols: usize, buffer: &'b mut ChunkMask) -> &'b ChunkMask {
        let rest = self.bits.get(CHUNK_COLS / 8 * chunk..).unwrap_or_default();
        // Where so many bytes are left in the mask of the matrix, in one go.
        if let Some(mask) = rest.first_chunk::<{ CHUNK_COLS / 8 }>() {
            let cols = cols.saturating_sub(CHUNK_COLS * chunk).min(CHUNK_COLS);
            let keep = &LEADING[CHUNK_COLS / 8 - cols / 8..];
            for ((to, from), keep) in buffer.iter_mut().zip(mask).zip(keep) {
                *to = from & keep;
            }
            if !cols.is_multiple_of(8) {
                buffer[cols / 8] = mask[cols / 8] & low(cols % 8) as u8;
            }
            return buffer;
        }
        for (block, word) in buffer.as_chunks_mut().0.iter_mut().enumerate() {
            *word = self.word(CHUNK * chunk + block, cols).to_le_bytes();
        }
        buffer
    }

    /// The next `N` values, zeros where there are no more, which are put into `buffer`.
    #[inline(always)]
    pub fn window<'b, const N: usize>(&self, buffer: &'b mut [W; N]) -> &'b [W; N]
    where
        'a: 'b,
    {
        let rest = self.values.get(self.at..).unwrap_or_default();
        match rest.first_chunk() {
            Some(window) => window,
            None => fill(rest, buffer),
        }
    }

    /// The next `len` values; `None` where there are fewer.
    #[inline(always)]
    pub fn values(&self, len: usize) -> Option<&'a [W]> {
        self.values.get(self.at..)?.get(..len)
    }

    /// Asks for the mask that follows that of a chunk of columns by two, where `rows_per_tile` rows
    /// are read at a time: rows of masks are too short for hardware to see a stream.
    #[inline(always)]
    pub fn prefetch_mask(&self, chunk: usize, rows_per_tile: usize) {
        prefetch(self.later_bits(chunk, rows_per_tile));
    }

    /// Where that mask is.
    #[inline(always)]
    pub fn later_bits(&self, chunk: usize, rows_per_tile: usize) -> *const u8 {
        let (at, len) = (CHUNK_COLS / 8 * (chunk + 2), self.bytes);
        let at = if at < len { at } else { at - len.next_multiple_of(LINE) + rows_per_tile * len };
        self.bits.as_ptr().wrapping_add(at)
    }

    /// Asks for the lines that hold the last of the next `blocks` words of the mask, from `block`
    /// on, and the next `len` values: what is before them in the first line is being used.
    #[inline(always)]
    pub fn prefetch(&self, block: usize, blocks: usize, len: usize) {
        prefetch(self.bits.as_ptr().wrapping_add(8 * (block + blocks) - 1));
        let next = self.values.as_ptr().wrapping_add(self.at);
        for line in 1..=(len * W::BYTES).div_ceil(LINE) {
            prefetch(next.wrapping_byte_add(line * LINE));
        }
    }

    /// Goes past the values of a block's mask.
    #[inline(always)]
    pub fn advance(&mut self, word: u64) {
        self.skip(word.count_ones() as usize);
    }

    /// Goes past as many values.
    #[inline(always)]
    pub fn skip(&mut self, values: usize) {
        self.at = self.at.wrapping_add(values);
    }

    /// Whether the mask had as many bits as the offsets say, and there were as many values.
    #[inline(always)]
    pub fn complete(&self) -> bool {
        self.at == self.end && self.end <= self.values.len()
    }
}

/// `rest` and zeros after it. Only the last rows of a matrix come here.
#[cold]
fn fill<'b, W: Word, const N: usize>(rest: &[W], buffer: &'b mut [W; N]) -> &'b [W; N] {
    buffer.fill(W::default());
    buffer[..rest.len()].copy_from_slice(rest);
    buffer
}

/// The sum of `N` (a power of two) numbers, upper half onto lower half.
#[inline(always)]
pub(super) fn fold<const N: usize>(mut sums: [f32; N]) -> f32 {
    let mut half = N / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}
