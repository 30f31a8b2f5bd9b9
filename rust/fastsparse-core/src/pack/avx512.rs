//! Packing with compress.
//!
//! ```text
//! for each mask word of each row:
//!     for each vector of the 64 elements:
//!         store(values + next + bits below, compress(bits of the vector, vector))
//!     next += bits
//! ```
//!
//! Compress goes to a register and the whole register to memory: the form that stores by itself is
//! microcoded on Zen 4 (77 – 165 cycles). So a store runs over what follows the kept elements,
//! which later stores mend; where fewer than 64 places are left, loads and stores are masked. What
//! is written is bounded by the room that was checked, whatever the mask turns into meanwhile.

use std::arch::x86_64::*;

use crate::element::Word;
use crate::isa::Avx512;
use crate::matrix::{low, word_at};
use crate::vector::Fence;
use crate::vector::avx512::{compress, lanes, load, load_some, store, store_some, zero};

/// As [`super::rows`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
pub fn rows<W: Word>(_: Avx512, weights: &[W], cols: usize, mask: &[u8], values: &mut [W]) -> Option<usize> {
    let zero = zero();
    let mut at = 0;
    for (row, weights) in weights.chunks_exact(cols).enumerate() {
        let mask = &mask[row * cols.div_ceil(8)..];
        let (blocks, tail) = weights.as_chunks::<64>();
        let (words, _) = mask.as_chunks::<8>();
        for (block, word) in blocks.iter().zip(words) {
            let word = u64::from_le_bytes(*word);
            let room = values.get_mut(at..)?;
            match room.first_chunk_mut() {
                Some(room) => whole_block(zero, block, word, room),
                None => block_at(zero, block, word, room)?,
            }
            at += word.count_ones() as usize;
        }
        if !tail.is_empty() {
            let word = word_at(mask, 64 * blocks.len()) & low(tail.len());
            block_at(zero, tail, word, values.get_mut(at..)?)?;
            at += word.count_ones() as usize;
        }
    }
    Some(at)
}

/// Packs 64 elements where there is room for as many.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
#[inline]
fn whole_block<W: Word>(zero: __m512i, block: &[W; 64], word: u64, values: &mut [W; 64]) {
    for from in (0..64).step_by(lanes::<W>()) {
        // At most `from`, so that the store ends within the 64.
        let to = (word & low(from)).count_ones() as usize;
        // SAFETY: `from + lanes` and `to + lanes` are at most 64.
        unsafe {
            let packed = compress::<W>(zero, word >> from, load(block.as_ptr().add(from)));
            store::<W, false>(values.as_mut_ptr().add(to), packed);
        }
    }
}

/// Packs up to 64 elements, touching the kept ones only; `None` where they do not fit. `word` has
/// no bits after the end of `block`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
#[inline]
fn block_at<W: Word>(zero: __m512i, block: &[W], word: u64, values: &mut [W]) -> Option<()> {
    let mut at = 0;
    for from in (0..block.len()).step_by(lanes::<W>()) {
        let keep = word >> from & low(lanes::<W>());
        let kept = keep.count_ones() as usize;
        let room = values.get_mut(at..at + kept)?;
        // SAFETY: the bits of `keep` belong to elements of the block; as many places as it has bits
        // were checked.
        unsafe {
            let packed = compress::<W>(zero, keep, load_some(keep, block.as_ptr().add(from)));
            store_some(room.as_mut_ptr(), low(kept), packed);
        }
        at += kept;
    }
    Some(())
}

/// As [`super::apply_rows`]; past the caches if `STREAM`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
pub fn apply_rows<W: Word, const STREAM: bool>(_: Avx512, from: Option<&[W]>, cols: usize, mask: &[u8], to: &mut [W]) {
    let _fence = Fence::<STREAM>;
    for (row, to) in to.chunks_exact_mut(cols).enumerate() {
        let first = row * cols.next_multiple_of(8);
        let head = if STREAM { to.as_ptr().align_offset(64).min(cols) } else { 0 };
        let to = to.as_mut_ptr();
        let from = from.map_or(to.cast_const(), |from| from[row * cols..][..cols].as_ptr());
        // SAFETY: `from` and `to` hold `cols` elements; whole blocks begin where `to` is aligned if
        // `STREAM`.
        unsafe {
            if head > 0 {
                masked_block(from, word_at(mask, first), to, head);
            }
            let mut col = head;
            while cols - col >= 64 {
                let word = word_at(mask, first + col);
                for i in (0..64).step_by(lanes::<W>()) {
                    store::<W, STREAM>(to.add(col + i), load_some(word >> i, from.add(col + i)));
                }
                col += 64;
            }
            masked_block(from.add(col), word_at(mask, first + col), to.add(col), cols - col);
        }
    }
}

/// Writes `n` ≤ 64 elements, zeros where `word` has none.
///
/// # Safety
/// `from` is valid for reading and `to` for writing `n` elements.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
#[inline]
unsafe fn masked_block<W: Word>(from: *const W, word: u64, to: *mut W, n: usize) {
    for i in (0..n).step_by(lanes::<W>()) {
        let inside = low(n - i);
        // SAFETY: only lanes below `n` are touched.
        unsafe { store_some(to.add(i), inside, load_some(word >> i & inside, from.add(i))) };
    }
}
