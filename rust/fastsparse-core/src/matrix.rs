//! The matrix view and its mask: rows of bits, least significant first, each row starting on a
//! byte.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, Result};
use crate::isa::Kernel;
use crate::parallel::{Exec, run};

pub use crate::boolean::{from_bool, to_bool};

/// The matrix view of a tensor: `rows = d0`, `cols = d1·d2·…`. `rows · cols` fits (the tensor
/// exists).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
}

impl Matrix {
    /// Number of elements.
    pub fn len(self) -> usize {
        self.rows * self.cols
    }

    /// Whether it has no elements.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Bytes of a mask row.
    pub fn row_bytes(self) -> usize {
        self.cols.div_ceil(8)
    }

    /// Bytes of the mask.
    pub fn mask_bytes(self) -> usize {
        self.rows * self.row_bytes()
    }

    /// The bits of a row's last byte that belong to columns; 0xff where the row ends on a byte.
    pub fn last_byte(self) -> u8 {
        match self.cols % 8 {
            0 => 0xff,
            used => (1u8 << used) - 1,
        }
    }
}

/// The mask with the lowest `n` bits set; all 64 where `n` is more.
#[inline(always)]
pub(crate) fn low(n: usize) -> u64 {
    if n < 64 { !(u64::MAX << n) } else { u64::MAX }
}

/// The 64 bits of `mask` from `bit` on; bits after its end are 0.
#[inline(always)]
pub(crate) fn word_at(mask: &[u8], bit: usize) -> u64 {
    let (byte, shift) = (bit / 8, bit % 8);
    match mask.get(byte..).and_then(|rest| rest.first_chunk::<9>()) {
        Some(&[low @ .., high]) => u64::from_le_bytes(low) >> shift | (high as u64) << 1 << (63 - shift),
        None => last_word(mask, byte, shift),
    }
}

/// [`word_at`] where fewer than nine bytes are left.
fn last_word(mask: &[u8], byte: usize, shift: usize) -> u64 {
    if let (Some(last), Some(start)) = (mask.last_chunk::<8>(), mask.len().checked_sub(8)) {
        let beyond = 8 * (byte.max(start) - start) + shift;
        return u64::from_le_bytes(*last).checked_shr(beyond as u32).unwrap_or(0);
    }
    let rest = mask.get(byte..).unwrap_or_default();
    rest.iter().rev().fold(0, |word, &b| word << 8 | b as u64) >> shift
}

/// Mask bytes that one task counts, about; a second thread comes in from twice as many on. Counting
/// takes 60 µs/MiB on Zen 4 without instructions for it.
pub(crate) const COUNT_BYTES: usize = 1 << 20;

/// Number of set bits, with the instructions and threads of `exec`.
pub fn count_ones(bits: &[u8], exec: Exec) -> usize {
    let total = AtomicUsize::new(0);
    let threads = exec.for_work(bits.len(), COUNT_BYTES).threads;
    run(threads, bits.len().div_ceil(COUNT_BYTES), |i| {
        let end = bits.len().min((i + 1) * COUNT_BYTES);
        total.fetch_add(exec.isa.run(CountOnes(&bits[i * COUNT_BYTES..end])), Ordering::Relaxed);
    });
    total.into_inner()
}

/// [`popcount`], compiled for an ISA.
struct CountOnes<'a>(&'a [u8]);

impl Kernel for CountOnes<'_> {
    type Output = usize;
    #[inline(always)]
    fn run(self) -> usize {
        popcount(self.0)
    }
}

/// Number of set bits.
#[inline(always)]
pub fn popcount(bytes: &[u8]) -> usize {
    let (words, tail) = bytes.as_chunks::<8>();
    let full: usize = words.iter().map(|w| u64::from_le_bytes(*w).count_ones() as usize).sum();
    full + tail.iter().map(|b| b.count_ones() as usize).sum::<usize>()
}

/// Checks that no padding bit of `mask` is set.
pub fn check_padding(shape: Matrix, mask: &[u8]) -> Result<()> {
    let allowed = shape.last_byte();
    if allowed == 0xff || shape.is_empty() {
        return Ok(());
    }
    for (row, bytes) in mask.chunks_exact(shape.row_bytes()).enumerate() {
        if bytes[bytes.len() - 1] & !allowed != 0 {
            return Err(Error::Padding { row });
        }
    }
    Ok(())
}

/// Sets every bit that belongs to a column, and no padding bit.
pub fn fill_ones(shape: Matrix, mask: &mut [u8]) {
    mask.fill(0xff);
    if shape.is_empty() {
        return;
    }
    for bytes in mask.chunks_exact_mut(shape.row_bytes()) {
        if let Some(last) = bytes.last_mut() {
            *last = shape.last_byte();
        }
    }
}
