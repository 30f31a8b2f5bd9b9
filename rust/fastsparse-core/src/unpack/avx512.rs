//! Unpacking with expand.
//!
//! ```text
//! for each row:  a head up to the first aligned block, if streaming
//!     for each 64 mask bits:
//!         for each vector of 64 elements:
//!             store(out, expand(bits of the vector, load(values + next + bits below)))
//!         next += bits
//! ```
//!
//! The mask is read at any bit, so that blocks can begin where the output is aligned. A load runs
//! over what follows the values of its vector; where fewer than 64 values are left, loads and
//! stores are masked. What is read is bounded by what was checked, whatever the mask turns into
//! meanwhile.

use std::arch::x86_64::*;

use crate::element::Word;
use crate::isa::Avx512;
use crate::matrix::{low, word_at};
use crate::vector::Fence;
use crate::vector::avx512::{expand, lanes, load, load_some, store, store_some, zero};

/// As [`super::rows`]; past the caches if `STREAM`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
pub fn rows<W: Word, const STREAM: bool>(
    _: Avx512,
    values: &[W],
    cols: usize,
    mask: &[u8],
    out: &mut [W],
) -> Option<usize> {
    let _fence = Fence::<STREAM>;
    let zero = zero();
    let mut at = 0;
    for (row, out) in out.chunks_exact_mut(cols).enumerate() {
        let first = row * cols.next_multiple_of(8);
        let start = if STREAM { out.as_ptr().align_offset(64).min(cols) } else { 0 };
        let (head, rest) = out.split_at_mut(start);
        let (blocks, tail) = rest.as_chunks_mut::<64>();
        let end = cols - tail.len();
        if start > 0 {
            at += block_at(zero, values.get(at..)?, word_at(mask, first) & low(start), head)?;
        }
        for (i, block) in blocks.iter_mut().enumerate() {
            let word = word_at(mask, first + start + 64 * i);
            let left = values.get(at..)?;
            match left.first_chunk() {
                // SAFETY: blocks begin a multiple of 64 bytes apart, the first one at an aligned
                // address if `STREAM`.
                Some(left) => unsafe { whole_block::<W, STREAM>(zero, left, word, block) },
                None => {
                    block_at(zero, left, word, block)?;
                }
            }
            at += word.count_ones() as usize;
        }
        at += block_at(zero, values.get(at..)?, word_at(mask, first + end) & low(tail.len()), tail)?;
    }
    Some(at)
}

/// Unpacks 64 elements where there are as many values.
///
/// # Safety
/// If `STREAM`, `block` is aligned to 64 bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
#[inline]
unsafe fn whole_block<W: Word, const STREAM: bool>(zero: __m512i, values: &[W; 64], word: u64, block: &mut [W; 64]) {
    for to in (0..64).step_by(lanes::<W>()) {
        // At most `to`, so that the load ends within the 64.
        let from = (word & low(to)).count_ones() as usize;
        // SAFETY: `from + lanes` and `to + lanes` are at most 64; a vector of an aligned block is
        // aligned.
        unsafe {
            let v = expand::<W>(zero, word >> to, load(values.as_ptr().add(from)));
            store::<W, STREAM>(block.as_mut_ptr().add(to), v);
        }
    }
}

/// Unpacks up to 64 elements, touching nothing else, and returns how many values they took; `None`
/// where there are not enough. `word` has no bits after the end of `block`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
#[inline]
fn block_at<W: Word>(zero: __m512i, values: &[W], word: u64, block: &mut [W]) -> Option<usize> {
    let mut at = 0;
    for to in (0..block.len()).step_by(lanes::<W>()) {
        let keep = word >> to & low(lanes::<W>());
        let kept = keep.count_ones() as usize;
        let taken = values.get(at..at + kept)?;
        // SAFETY: as many values as `keep` has bits were checked; lanes after the end of the block
        // are not stored.
        unsafe {
            let v = expand::<W>(zero, keep, load_some(low(kept), taken.as_ptr()));
            store_some(block.as_mut_ptr().add(to), low(block.len() - to), v);
        }
        at += kept;
    }
    Some(at)
}
