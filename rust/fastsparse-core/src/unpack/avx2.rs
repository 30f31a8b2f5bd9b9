//! Unpacking with a table of shuffles.
//!
//! ```text
//! for each row:  a head up to the first aligned block, if streaming
//!     for each 64 mask bits:
//!         for each byte of them:
//!             store(out, shuffle(table[byte], load(values + next + bits below)))
//!         next += bits
//! ```
//!
//! A load runs over what follows the values of its byte; where fewer than 64 values are left the
//! scalar form takes over. What is read is bounded by what was checked, whatever the mask turns
//! into meanwhile.

use super::scalar;
use crate::element::Word;
use crate::isa::Avx2;
use crate::matrix::{low, word_at};
use crate::vector::Fence;
use crate::vector::avx2::expand;

/// As [`super::rows`]; past the caches if `STREAM`.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub fn rows<W: Word, const STREAM: bool>(
    _: Avx2,
    values: &[W],
    cols: usize,
    mask: &[u8],
    out: &mut [W],
) -> Option<usize> {
    let _fence = Fence::<STREAM>;
    let mut at = 0;
    for (row, out) in out.chunks_exact_mut(cols).enumerate() {
        let first = row * cols.next_multiple_of(8);
        let start = if STREAM { out.as_ptr().align_offset(64).min(cols) } else { 0 };
        let (head, rest) = out.split_at_mut(start);
        let (blocks, tail) = rest.as_chunks_mut::<64>();
        let end = cols - tail.len();
        if start > 0 {
            at += scalar::block_at(values.get(at..)?, word_at(mask, first) & low(start), head)?;
        }
        for (i, block) in blocks.iter_mut().enumerate() {
            let word = word_at(mask, first + start + 64 * i);
            let left = values.get(at..)?;
            at += match left.first_chunk() {
                // SAFETY: blocks begin a multiple of 64 bytes apart, the first one at an aligned
                // address if `STREAM`.
                Some(left) => unsafe { whole_block::<W, STREAM>(left, word, block) },
                None => scalar::block_at(left, word, block)?,
            };
        }
        at += scalar::block_at(values.get(at..)?, word_at(mask, first + end) & low(tail.len()), tail)?;
    }
    Some(at)
}

/// Unpacks 64 elements where there are as many values and returns how many they took.
///
/// # Safety
/// If `STREAM`, `block` is aligned to 64 bytes.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
#[inline]
unsafe fn whole_block<W: Word, const STREAM: bool>(values: &[W; 64], word: u64, block: &mut [W; 64]) -> usize {
    for to in (0..64).step_by(16) {
        // At most `to`, so that the loads end within the 64.
        let from = (word & low(to)).count_ones() as usize;
        // SAFETY: `from + 16` and `to + 16` are at most 64; sixteen elements of an aligned block
        // are aligned as they have to be.
        unsafe {
            expand::<W, STREAM>(values.as_ptr().add(from), (word >> to) as u16, block.as_mut_ptr().add(to));
        }
    }
    word.count_ones() as usize
}
