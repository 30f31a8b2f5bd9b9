//! AMX: 16 rows of weights by 16 rows of activations at a time, bfloat16 or int8.
//!
//! ```text
//! for each 16 rows of weights, for each chunk of 512 columns:
//!     expand the rows; their 64 bytes of a step are a tile, and there are 8 or 16 steps
//!     for each 64 rows of activations, for each step that has weights:
//!         sums[16][64] += tile · activations
//! ```
//! Activations are laid out once: a line of 64 bytes has four bytes of each of sixteen rows, which
//! are two bfloat16 or four int8 of neighbouring columns; sixteen such lines are a tile.
//!
//! The tile registers: 0 to 3 sums, 4 weights, 5 and 6 activations. They are configured when a task
//! begins and released when it ends, so that a thread that does something else has none to be
//! saved. `tdpbf16ps` takes subnormal numbers as zero. Sums of int8 are int32, for as many columns
//! as cannot overflow them.

use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::activations::{Block, CHUNK_COLS, COPY_PER_THREAD, flat, flat_mut};
use super::real::Real;
use super::rows::{ChunkMask, Task};
use crate::element::Word;
use crate::error::Result;
use crate::isa::{Amx, Kernel};
use crate::memory::filled;
use crate::parallel::{Exec, run_chunks};
use crate::vector::prefetch;

/// Rows of a tile, of weights or activations.
pub(super) const ROWS: usize = 16;

/// Bytes of a row of a tile.
const LINE: usize = 64;

/// Tiles of sums that are held at a time.
const TILES: usize = 4;

/// Steps of a chunk at most.
const STEPS: usize = CHUNK_COLS / 32;

/// Columns whose int8 products are summed in an int32 at most.
pub(super) const INT8_COLS: usize = i32::MAX as usize / (128 * 128);

/// What the tiles consist of.
pub(super) trait Numbers: Copy + Send + Sync {
    /// Bits of a weight or an activation.
    type Bits: Word;
    /// A sum of products.
    type Sum: Copy + Default + Send + Sync;

    /// What the features were proven by.
    fn token(self) -> Amx;
    /// The next elements at `from` in the columns that the low bits of `keep` select, zeros
    /// elsewhere; all 64 bytes are written to `to`.
    ///
    /// # Safety
    /// `from` is valid for reading and `to` for writing 64 bytes, to which it is aligned.
    unsafe fn expand(self, from: *const Self::Bits, keep: u64, to: *mut u8);
    /// Adds the products of `count` tiles of weights, whose numbers `steps` gives, and those of
    /// activations to `tiles` tiles of sums.
    ///
    /// # Safety
    /// `tiles` is 1 to 4. For each step `i` the 16 rows of 64 bytes at `weights + 64 i`, `stride`
    /// apart, and the `tiles` tiles at `x + i * x_step` are readable. `sums` are `tiles` tiles. The
    /// tile registers are configured.
    unsafe fn multiply(self, tiles: usize, steps: &[u16], panel: Panel, sums: *mut Self::Sum);
}

/// Where the tiles of a product are.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    weights: *const u8,
    stride: usize,
    x: *const u8,
    x_step: usize,
}

/// Elements in the four bytes that are multiplied at once.
const fn packed<K: Numbers>() -> usize {
    4 / K::Bits::BYTES
}

/// Columns of a step.
const fn step_cols<K: Numbers>() -> usize {
    LINE / K::Bits::BYTES
}

/// Activations in tiles: of each step those of all rows.
pub(super) struct Tiles {
    lines: Vec<Block<u8>>,
    tiles: usize,
    batch: usize,
    cols: usize,
}

impl Tiles {
    /// The rows of `cols` elements that `row` gives, `batch` of them; zeros for those it does not.
    pub fn new<'a, K: Numbers, W: Word>(
        _: K,
        row: impl Fn(usize) -> Option<&'a [W]> + Sync,
        batch: usize,
        cols: usize,
        exec: Exec,
    ) -> Result<Self> {
        assert!(W::BYTES == K::Bits::BYTES);
        let tiles = batch.div_ceil(ROWS);
        let steps = cols.div_ceil(step_cols::<K>());
        let mut lines = filled(steps.saturating_mul(tiles * ROWS), Block([0; LINE]))?;
        let threads = exec.for_work(batch * cols, COPY_PER_THREAD).threads;
        run_chunks(threads, &mut lines, (tiles * ROWS).max(1), |step, lines| {
            let to = flat_mut(lines);
            for b in 0..batch {
                let Some(row) = row(b) else { continue };
                let from = &row[step * step_cols::<K>()..cols.min((step + 1) * step_cols::<K>())];
                let tile = b / ROWS * ROWS * LINE + b % ROWS * 4;
                for (i, from) in from.chunks(packed::<K>()).enumerate() {
                    for (to, from) in to[tile + i * LINE..][..4].chunks_exact_mut(W::BYTES).zip(from) {
                        to.copy_from_slice(&from.to_u64().to_le_bytes()[..W::BYTES]);
                    }
                }
            }
        });
        Ok(Tiles { lines, tiles, batch, cols })
    }
}

/// What a thread keeps between its tasks.
pub(super) struct Scratch<K: Numbers> {
    /// Values of a row that is followed by too few.
    values: [K::Bits; CHUNK_COLS],
    mask: ChunkMask,
    /// A chunk of the weights, expanded: rows of `CHUNK_COLS`.
    weights: Vec<Block<u8>>,
    /// Sums of sixteen rows of weights: tiles.
    sums: Vec<Block<K::Sum>>,
}

impl<K: Numbers> Scratch<K> {
    /// For `batch` rows of activations.
    pub fn new(_: K, batch: usize) -> Result<Self> {
        Ok(Scratch {
            values: [K::Bits::default(); CHUNK_COLS],
            mask: [0; CHUNK_COLS / 8],
            weights: filled(ROWS * CHUNK_COLS * K::Bits::BYTES / LINE, Block([0; LINE]))?,
            sums: filled(batch.div_ceil(ROWS) * ROWS * ROWS / LINE, Block([K::Sum::default(); LINE]))?,
        })
    }
}

/// Takes (row, batch, sums of the rows from there on).
type Emit<'a, S> = dyn Fn(usize, usize, &[S]) + 'a;

/// A task on its way into a function that names the features. Returns whether mask and offsets
/// agree.
pub(super) struct Work<'a, K: Numbers> {
    pub numbers: K,
    pub task: &'a Task<'a, K::Bits>,
    pub x: &'a Tiles,
    pub scratch: &'a mut Scratch<K>,
    pub emit: &'a Emit<'a, K::Sum>,
}

impl<K: Numbers> Work<'_, K> {
    /// Computes it.
    pub fn compute(self) -> bool {
        self.numbers.token().vectors().run(self)
    }
}

impl<K: Numbers> Kernel for Work<'_, K> {
    type Output = bool;

    #[inline(always)]
    fn run(mut self) -> bool {
        assert!(self.x.cols == self.task.weights.shape.cols);
        assert!(flat(&self.scratch.sums).len() == self.x.tiles * ROWS * ROWS);
        // SAFETY: the token proves that the system lets this process use tiles.
        unsafe { configure() };
        let mut agreed = true;
        for first in self.task.rows.clone().step_by(ROWS) {
            agreed &= self.rows(first);
        }
        // SAFETY: as above.
        unsafe { release() };
        agreed
    }
}

impl<K: Numbers> Work<'_, K> {
    /// Sixteen rows of weights from `first` on.
    #[inline(always)]
    fn rows(&mut self, first: usize) -> bool {
        let (tiles, cols) = (self.x.tiles, self.x.cols);
        let steps = cols.div_ceil(step_cols::<K>());
        let steps_of_chunk = CHUNK_COLS / step_cols::<K>();
        self.scratch.sums.fill(Block([K::Sum::default(); LINE]));
        let mut passed = [0; ROWS];
        for chunk in 0..cols.div_ceil(CHUNK_COLS) {
            let len = steps_of_chunk.min(steps - chunk * steps_of_chunk);
            let mut used = [0; STEPS];
            let used = self.expand(first, chunk, len, &mut passed, &mut used);
            let x_step = tiles * ROWS * LINE;
            for some in (0..tiles).step_by(TILES) {
                let x = &self.x.lines[chunk * steps_of_chunk * tiles * ROWS + some * ROWS..];
                let panel = Panel {
                    weights: self.scratch.weights.as_ptr().cast(),
                    stride: CHUNK_COLS * K::Bits::BYTES,
                    x: x.as_ptr().cast(),
                    x_step,
                };
                let sums = flat_mut(&mut self.scratch.sums)[some * ROWS * ROWS..].as_mut_ptr();
                // SAFETY: steps of this chunk, whose weights are expanded; the tiles of these rows
                // of activations, as many as `Tiles` has for each step, and of their sums, as many
                // as `run` has checked.
                unsafe { self.numbers.multiply(TILES.min(tiles - some), used, panel, sums) };
            }
        }
        let len = ROWS.min(self.task.rows.end - first);
        let sums = flat(&self.scratch.sums);
        for b in 0..self.x.batch {
            let mut column = [K::Sum::default(); ROWS];
            for (r, sum) in column.iter_mut().enumerate() {
                *sum = sums[(b / ROWS * ROWS + r) * ROWS + b % ROWS];
            }
            (self.emit)(first, b, &column[..len]);
        }
        let mut agreed = true;
        for (r, passed) in passed.into_iter().enumerate().take(len) {
            let mut row = self.task.row(first + r);
            row.skip(passed);
            agreed &= row.complete();
        }
        agreed
    }

    /// Expands `len` steps of a chunk of the rows, which have `passed` so many values. Returns the
    /// steps that hold anything.
    #[inline(always)]
    fn expand<'b>(
        &mut self,
        first: usize,
        chunk: usize,
        len: usize,
        passed: &mut [usize; ROWS],
        used: &'b mut [u16; STEPS],
    ) -> &'b [u16] {
        let cols = self.x.cols;
        let mut any = [0; STEPS];
        for (r, passed) in passed.iter_mut().enumerate() {
            let mut row = self.task.row(first + r);
            row.skip(*passed);
            let mask = row.mask(chunk, cols, &mut self.scratch.mask);
            let start = row.window(&mut self.scratch.values).as_ptr();
            let mut from = start;
            let to: *mut u8 = self.scratch.weights[r * CHUNK_COLS * K::Bits::BYTES / LINE..].as_mut_ptr().cast();
            for (step, any) in any.iter_mut().enumerate().take(len) {
                let keep = match K::Bits::BYTES {
                    2 => u32::from_le_bytes(mask.as_chunks().0[step]) as u64,
                    _ => u64::from_le_bytes(mask.as_chunks().0[step]),
                };
                // SAFETY: as many bits as columns have been passed at most, and 512 values are
                // there; a step of the row, a multiple of 64 bytes after an aligned block.
                unsafe { self.numbers.expand(from, keep, to.add(step * LINE)) };
                prefetch(from.wrapping_byte_add(AHEAD));
                from = from.wrapping_add(keep.count_ones() as usize);
                *any |= keep;
            }
            *passed += (from.addr() - start.addr()) / K::Bits::BYTES;
        }
        let mut count = 0;
        for (step, any) in any.into_iter().enumerate().take(len) {
            used[count] = step as u16;
            count += (any != 0) as usize;
        }
        &used[..count]
    }
}

/// How far ahead of its use each stream of values is fetched, in bytes.
const AHEAD: usize = 1024;

/// All eight tile registers: sixteen rows of 64 bytes.
///
/// # Safety
/// This process may use tiles.
#[inline(always)]
unsafe fn configure() {
    #[repr(C, align(64))]
    struct Config([u8; 64]);
    let mut config = Config([0; 64]);
    config.0[0] = 1;
    for tile in 0..8 {
        config.0[16 + 2 * tile] = LINE as u8;
        config.0[48 + tile] = ROWS as u8;
    }
    // SAFETY: the caller's promise; palette 1 with these sizes is valid on every CPU with AMX.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, preserves_flags)) };
}

/// Gives the tile registers up.
///
/// # Safety
/// This process may use tiles.
#[inline(always)]
unsafe fn release() {
    // SAFETY: the caller's promise.
    unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
}

/// One tile of sums after another: the same loop for one to four.
macro_rules! multiply {
    ($product:literal, $steps:expr, $panel:expr, $sums:expr, $($tile:literal $x:literal $offset:literal),*) => {
        asm!(
            $(concat!("tileloadd tmm", $tile, ", [{sums} + {line} + ", $offset, "]"),)*
            "2:",
            "movzx {i:e}, word ptr [{list}]",
            "add {list}, 2",
            "mov {at}, {i}",
            "shl {at}, 6",
            "add {at}, {weights}",
            "imul {i}, {x_step}",
            "add {i}, {x}",
            "tileloadd tmm4, [{at} + {stride}]",
            $(
                concat!("tileloadd tmm", $x, ", [{i} + {line} + ", $offset, "]"),
                concat!($product, " tmm", $tile, ", tmm4, tmm", $x),
            )*
            "dec {count}",
            "jnz 2b",
            $(concat!("tilestored [{sums} + {line} + ", $offset, "], tmm", $tile),)*
            sums = in(reg) $sums,
            line = in(reg) LINE,
            list = inout(reg) $steps.as_ptr() => _,
            count = inout(reg) $steps.len() => _,
            weights = in(reg) $panel.weights,
            stride = in(reg) $panel.stride,
            x = in(reg) $panel.x,
            x_step = in(reg) $panel.x_step,
            i = out(reg) _,
            at = out(reg) _,
            options(nostack),
        )
    };
}

/// Implements `multiply` with an instruction.
macro_rules! product {
    ($product:literal) => {
        #[inline(always)]
        unsafe fn multiply(self, tiles: usize, steps: &[u16], panel: Panel, sums: *mut Self::Sum) {
            if steps.is_empty() {
                return;
            }
            // SAFETY: the token proves the features; what is read and written is the caller's
            // promise. The compiler itself never uses the tile registers.
            unsafe {
                match tiles {
                    1 => multiply!($product, steps, panel, sums, "0" "5" "0"),
                    2 => multiply!($product, steps, panel, sums, "0" "5" "0", "1" "6" "1024"),
                    3 => multiply!($product, steps, panel, sums, "0" "5" "0", "1" "6" "1024", "2" "5" "2048"),
                    _ => multiply!(
                        $product, steps, panel, sums, "0" "5" "0", "1" "6" "1024", "2" "5" "2048", "3" "6" "3072"
                    ),
                }
            }
        }
    };
}

/// bfloat16, sums of float32.
#[derive(Clone, Copy)]
pub(super) struct Bf16<E>(pub Amx, pub PhantomData<E>);

impl<E: Real> Numbers for Bf16<E> {
    type Bits = E::Bits;
    type Sum = f32;

    fn token(self) -> Amx {
        self.0
    }

    #[inline(always)]
    unsafe fn expand(self, from: *const E::Bits, keep: u64, to: *mut u8) {
        assert!(E::Bits::BYTES == 2);
        // SAFETY: the token proves the features; the rest is the caller's promise.
        unsafe {
            let values = _mm512_maskz_expand_epi16(keep as u32, _mm512_loadu_si512(from.cast()));
            _mm512_store_si512(to.cast(), values);
        }
    }

    product!("tdpbf16ps");
}

/// int8, sums of int32.
#[derive(Clone, Copy)]
pub(super) struct Int8(pub Amx);

impl Numbers for Int8 {
    type Bits = u8;
    type Sum = i32;

    fn token(self) -> Amx {
        self.0
    }

    #[inline(always)]
    unsafe fn expand(self, from: *const u8, keep: u64, to: *mut u8) {
        // SAFETY: the token proves the features; the rest is the caller's promise.
        unsafe {
            let values = _mm512_maskz_expand_epi8(keep, _mm512_loadu_si512(from.cast()));
            _mm512_store_si512(to.cast(), values);
        }
    }

    product!("tdpbssd");
}
