//! From a bit for each block to a bit for each weight, and back.
//!
//! A line of the tensor (`inner` neighbours) has a row of the block mask, each bit of which stands
//! for `wide` weights:
//!
//! ```text
//! expand:   spread some block bits to every `wide`-th bit of a word, times 2^wide − 1
//!           (copies do not overlap: no carry)
//! collapse: every `wide`-th bit of a word, moved together
//! ```
//!
//! Lines follow each other without gaps in a row of the weight mask, so words are appended at any
//! bit.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Blocks;
use crate::isa::{Avx2, Kernel};
use crate::matrix::{Matrix, low, word_at};
use crate::nm::Axis;
use crate::parallel::{self, Exec};

/// Bytes of mask that a task writes, about.
const PIECE: usize = 1 << 15;
/// Bits that [`bits_at`] gives, whatever the position.
const READ: usize = 57;

/// Writes the mask that keeps the weights of the blocks in `kept`. `blocks` is normal for `shape`.
pub(super) fn expand(kept: &[u8], shape: Matrix, blocks: Blocks, exec: Exec, mask: &mut [u8]) {
    if shape.is_empty() {
        return;
    }
    let rows = (PIECE / shape.row_bytes()).next_multiple_of(blocks.tall).max(1);
    parallel::run_chunks(exec.threads, mask, rows * shape.row_bytes(), |piece, mask| {
        let (lines, first) = (Lines { shape, blocks }, piece * rows);
        match exec.isa.avx2() {
            Some(bits) => exec.isa.run(Expand { lines, kept, first, mask, bits }),
            None => exec.isa.run(Expand { lines, kept, first, mask, bits: Portable }),
        }
    });
}

/// Writes for each block whether `mask` keeps its first weight.
pub(super) fn collapse(mask: &[u8], shape: Matrix, blocks: Blocks, exec: Exec, kept: &mut [u8]) {
    let row_bytes = blocks.grid().row_bytes();
    if shape.is_empty() {
        return;
    }
    let stripes = (PIECE / row_bytes).max(1);
    parallel::run_chunks(exec.threads, kept, stripes * row_bytes, |piece, kept| {
        let (lines, first) = (Lines { shape, blocks }, piece * stripes);
        match exec.isa.avx2() {
            Some(bits) => exec.isa.run(Collapse { lines, mask, first, kept, bits }),
            None => exec.isa.run(Collapse { lines, mask, first, kept, bits: Portable }),
        }
    });
}

/// How many blocks `mask` drops as a whole, and how many it keeps as a whole; None where more than
/// a quarter of what it does not drop is mixed.
pub(super) fn uniform(mask: &[u8], shape: Matrix, blocks: Blocks, exec: Exec) -> Option<(usize, usize)> {
    let (lines, grid) = (Lines { shape, blocks }, blocks.grid());
    if shape.is_empty() {
        return Some((0, 0));
    }
    let stripes = (8 * PIECE / (blocks.tall * blocks.axis.inner)).max(1);
    let [dropped, kept, mixed] = [0; 3].map(AtomicUsize::new);
    let hopeless = || 4 * mixed.load(Ordering::Relaxed) > grid.len() - dropped.load(Ordering::Relaxed);
    parallel::run(exec.threads, grid.rows.div_ceil(stripes), |task| {
        if hopeless() {
            return;
        }
        let of_task = task * stripes..grid.rows.min((task + 1) * stripes);
        let (none, all) = exec.isa.run(Uniform { lines, mask, stripes: of_task.clone() });
        dropped.fetch_add(none, Ordering::Relaxed);
        kept.fetch_add(all, Ordering::Relaxed);
        mixed.fetch_add(of_task.len() * grid.cols - none - all, Ordering::Relaxed);
    });
    (!hopeless()).then(|| (dropped.into_inner(), kept.into_inner()))
}

/// The first block of which `mask` differs from `whole`.
pub(super) fn first_mixed(whole: &[u8], mask: &[u8], shape: Matrix, blocks: Blocks) -> Option<usize> {
    let lines = Lines { shape, blocks };
    let inner = blocks.axis.inner;
    let across = blocks.grid().cols;
    let differing = whole.iter().zip(mask).enumerate().filter(|(_, (whole, mask))| whole != mask);
    let blocks = differing.flat_map(|(at, (whole, mask))| {
        let (row, byte) = (at / shape.row_bytes(), at % shape.row_bytes());
        (0..8).filter(move |bit| (whole ^ mask) >> bit & 1 == 1).map(move |bit| {
            let col = byte * 8 + bit;
            lines.stripe(row * lines.per_row() + col / inner).0 * across + col % inner / blocks.wide
        })
    });
    blocks.min()
}

/// How the lines of the tensor lie in the rows of its mask.
#[derive(Clone, Copy)]
struct Lines {
    shape: Matrix,
    blocks: Blocks,
}

impl Lines {
    /// Lines in a mask row.
    fn per_row(self) -> usize {
        self.shape.cols / self.blocks.axis.inner
    }

    /// The stripe of blocks that a line is in, and its place there.
    fn stripe(self, line: usize) -> (usize, usize) {
        let Blocks { axis, tall, .. } = self.blocks;
        let along = line % axis.len;
        (line / axis.len * axis.len.div_ceil(tall) + along / tall, along % tall)
    }

    /// The first line of a stripe.
    fn first_line(self, stripe: usize) -> usize {
        let Blocks { axis, tall, .. } = self.blocks;
        let down = axis.len.div_ceil(tall);
        stripe / down * axis.len + stripe % down * tall
    }

    /// Blocks that are handled at a time, and the lowest bit of each in a word of weights.
    fn step(self) -> (usize, u64) {
        let wide = self.blocks.wide;
        let step = (64 / wide).clamp(1, READ);
        (step, (0..step).fold(0, |places, block| places | 1 << (block * wide)))
    }
}

struct Expand<'a, B> {
    lines: Lines,
    kept: &'a [u8],
    first: usize,
    mask: &'a mut [u8],
    bits: B,
}

impl<B: Bits> Kernel for Expand<'_, B> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let row_bytes = self.lines.shape.row_bytes();
        let per_row = self.lines.per_row();
        for row in 0..self.mask.len() / row_bytes {
            let line = (self.first + row) * per_row;
            let (before, now) = self.mask.split_at_mut(row * row_bytes);
            if row > 0 && per_row == 1 && self.lines.stripe(line).1 > 0 {
                now[..row_bytes].copy_from_slice(&before[(row - 1) * row_bytes..]);
                continue;
            }
            let mut writer = BitWriter { out: &mut now[..row_bytes], word: 0, used: 0 };
            for line in line..line + per_row {
                expand_line(self.lines, self.kept, line, self.bits, &mut writer);
            }
            writer.finish();
        }
    }
}

#[inline(always)]
fn expand_line(lines: Lines, kept: &[u8], line: usize, bits: impl Bits, writer: &mut BitWriter<'_>) {
    let grid = lines.blocks.grid();
    let kept = &kept[lines.stripe(line).0 * grid.row_bytes()..][..grid.row_bytes()];
    let (wide, inner) = (lines.blocks.wide, lines.blocks.axis.inner);
    let (step, places) = lines.step();
    let ones = low_bits(wide.min(64));
    for block in (0..grid.cols).step_by(step) {
        let cols = (step * wide).min(inner - block * wide);
        let word = bits.spread(bits_at(kept, block), places).wrapping_mul(ones);
        for done in (0..cols).step_by(64) {
            let count = (cols - done).min(64);
            writer.push(word & low_bits(count), count);
        }
    }
}

struct Collapse<'a, B> {
    lines: Lines,
    mask: &'a [u8],
    first: usize,
    kept: &'a mut [u8],
    bits: B,
}

impl<B: Bits> Kernel for Collapse<'_, B> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Lines { shape, blocks } = self.lines;
        let grid = blocks.grid();
        let per_row = self.lines.per_row();
        let (step, places) = self.lines.step();
        // No more blocks than begin in the bits of one reading.
        let step = step.min((READ - 1) / blocks.wide + 1);
        for (stripe, kept) in self.kept.chunks_exact_mut(grid.row_bytes()).enumerate() {
            let line = self.lines.first_line(self.first + stripe);
            let row = &self.mask[line / per_row * shape.row_bytes()..][..shape.row_bytes()];
            let start = line % per_row * blocks.axis.inner;
            let mut writer = BitWriter { out: kept, word: 0, used: 0 };
            for block in (0..grid.cols).step_by(step) {
                let word = bits_at(row, start + block * blocks.wide);
                let count = step.min(grid.cols - block);
                writer.push(self.bits.gather(word, places) & low_bits(count), count);
            }
            writer.finish();
        }
    }
}

struct Uniform<'a> {
    lines: Lines,
    mask: &'a [u8],
    stripes: Range<usize>,
}

impl Kernel for Uniform<'_> {
    type Output = (usize, usize);
    #[inline(always)]
    fn run(self) -> (usize, usize) {
        let Lines { shape, blocks } = self.lines;
        let Blocks { axis: Axis { len, inner, .. }, tall, wide } = blocks;
        let (per_row, down) = (self.lines.per_row(), len.div_ceil(tall));
        let row_bits = 8 * shape.row_bytes();
        // The lines of a stripe are rows of the mask, or follow each other in one.
        let pitch = if per_row == 1 { row_bits } else { inner };
        // As many blocks as a word has, or one that is wider, whose words are put together.
        let in_word = (64 / wide).max(1);
        let step = in_word * wide;
        let starts = (0..in_word).fold(0u64, |starts, block| starts | 1 << (block * wide));
        let (mut none, mut all) = (0, 0);
        for stripe in self.stripes {
            let first = self.lines.first_line(stripe);
            let height = tall.min(len - stripe % down * tall);
            let bit = first / per_row * row_bits + first % per_row * inner;
            for start in (0..inner).step_by(step) {
                let width = step.min(inner - start);
                let (mut some, mut whole) = (0u64, u64::MAX);
                for col in (0..width).step_by(64) {
                    let lanes = low(width - col);
                    for line in 0..height {
                        let word = word_at(self.mask, bit + line * pitch + start + col);
                        some |= word & lanes;
                        whole &= word | !lanes;
                    }
                }
                // Into the first bit of each block, what its bits have in common.
                let mut reach = 1;
                while reach < wide.min(64) {
                    let by = reach.min(wide.min(64) - reach);
                    (some, whole) = (some | some >> by, whole & whole >> by);
                    reach += by;
                }
                let starts = starts & low(width);
                none += (!some & starts).count_ones() as usize;
                all += (whole & starts).count_ones() as usize;
            }
        }
        (none, all)
    }
}

/// Moving bits between neighbouring places and those that are set in `places`.
trait Bits: Copy {
    /// Bit `i` of `word` to the `i`-th place.
    fn spread(self, word: u64, places: u64) -> u64;
    /// The bit in the `i`-th place to bit `i`.
    fn gather(self, word: u64, places: u64) -> u64;
}

#[cfg(target_arch = "x86_64")]
impl Bits for Avx2 {
    #[inline(always)]
    fn spread(self, word: u64, places: u64) -> u64 {
        // SAFETY: the token proves BMI2.
        unsafe { std::arch::x86_64::_pdep_u64(word, places) }
    }
    #[inline(always)]
    fn gather(self, word: u64, places: u64) -> u64 {
        // SAFETY: the token proves BMI2.
        unsafe { std::arch::x86_64::_pext_u64(word, places) }
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl Bits for Avx2 {
    fn spread(self, word: u64, places: u64) -> u64 {
        Portable.spread(word, places)
    }
    fn gather(self, word: u64, places: u64) -> u64 {
        Portable.gather(word, places)
    }
}

#[derive(Clone, Copy)]
struct Portable;

impl Bits for Portable {
    #[inline(always)]
    fn spread(self, mut word: u64, mut places: u64) -> u64 {
        let mut spread = 0;
        while places != 0 {
            spread |= (places & places.wrapping_neg()) * (word & 1);
            word >>= 1;
            places &= places - 1;
        }
        spread
    }
    #[inline(always)]
    fn gather(self, word: u64, mut places: u64) -> u64 {
        let mut gathered = 0;
        let mut bit = 1;
        while places != 0 {
            if word & places & places.wrapping_neg() != 0 {
                gathered |= bit;
            }
            bit <<= 1;
            places &= places - 1;
        }
        gathered
    }
}

/// The lowest `count` bits, `count` from 1 to 64.
#[inline(always)]
fn low_bits(count: usize) -> u64 {
    u64::MAX >> (64 - count)
}

/// At least [`READ`] bits from bit `at` on, zeros after the end.
#[inline(always)]
fn bits_at(bytes: &[u8], at: usize) -> u64 {
    let bytes = &bytes[at / 8..];
    let word = match bytes.first_chunk::<8>() {
        Some(word) => u64::from_le_bytes(*word),
        None => bytes.iter().rev().fold(0, |word, &byte| word << 8 | byte as u64),
    };
    word >> (at % 8)
}

/// Appends bits to bytes.
struct BitWriter<'a> {
    out: &'a mut [u8],
    word: u64,
    used: usize,
}

impl BitWriter<'_> {
    /// Appends `count` bits, 1 to 64; those above are zero.
    #[inline(always)]
    fn push(&mut self, bits: u64, count: usize) {
        self.word |= bits << self.used;
        let free = 64 - self.used;
        if count < free {
            self.used += count;
            return;
        }
        let (word, rest) = std::mem::take(&mut self.out).split_at_mut(8);
        word.copy_from_slice(&self.word.to_le_bytes());
        self.out = rest;
        self.word = bits.checked_shr(free as u32).unwrap_or(0);
        self.used = count - free;
    }

    /// Writes the last, incomplete word.
    #[inline(always)]
    fn finish(self) {
        for (byte, out) in self.word.to_le_bytes().iter().zip(self.out) {
            *out = *byte;
        }
    }
}
