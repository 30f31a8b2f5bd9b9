//! Packing with a table of shuffles, eight elements at a time.
//!
//! ```text
//! for each mask word of each row:
//!     for each byte of it:
//!         store(values + next + bits below, shuffle(table[byte], eight elements))
//!     next += bits
//! ```
//!
//! A store runs over what follows the kept elements, which later stores mend; where fewer than 64
//! places are left the scalar form takes over. What is written is bounded by the room that was
//! checked, whatever the mask turns into meanwhile.

use std::arch::x86_64::*;

use super::scalar;
use crate::element::Word;
use crate::isa::Avx2;
use crate::matrix::{low, word_at};
use crate::vector::Fence;
use crate::vector::avx2::{compress, lane_mask, store};

/// As [`super::rows`].
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub fn rows<W: Word>(_: Avx2, weights: &[W], cols: usize, mask: &[u8], values: &mut [W]) -> Option<usize> {
    let mut at = 0;
    for (row, weights) in weights.chunks_exact(cols).enumerate() {
        let mask = &mask[row * cols.div_ceil(8)..];
        let (blocks, tail) = weights.as_chunks::<64>();
        let (words, _) = mask.as_chunks::<8>();
        for (block, word) in blocks.iter().zip(words) {
            let word = u64::from_le_bytes(*word);
            let room = values.get_mut(at..)?;
            at += match room.first_chunk_mut() {
                Some(room) => whole_block(block, word, room),
                None => scalar::block_at(block, word, room)?,
            };
        }
        let word = word_at(mask, 64 * blocks.len()) & low(tail.len());
        at += scalar::block_at(tail, word, values.get_mut(at..)?)?;
    }
    Some(at)
}

/// Packs 64 elements where there is room for as many and returns how many were kept.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
#[inline]
fn whole_block<W: Word>(block: &[W; 64], word: u64, values: &mut [W; 64]) -> usize {
    for from in (0..64).step_by(8) {
        // At most `from`, so that the store ends within the 64.
        let to = (word & low(from)).count_ones() as usize;
        // SAFETY: `from + 8` and `to + 8` are at most 64.
        unsafe { compress(block.as_ptr().add(from), (word >> from) as u8, values.as_mut_ptr().add(to)) };
    }
    word.count_ones() as usize
}

/// As [`super::apply_rows`]; past the caches if `STREAM`.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub fn apply_rows<W: Word, const STREAM: bool>(_: Avx2, from: Option<&[W]>, cols: usize, mask: &[u8], to: &mut [W]) {
    let _fence = Fence::<STREAM>;
    for (row, to) in to.chunks_exact_mut(cols).enumerate() {
        let first = row * cols.next_multiple_of(8);
        let start = if STREAM { to.as_ptr().align_offset(64).min(cols) } else { 0 };
        let end = start + (cols - start) / 64 * 64;
        if let Some(from) = from {
            let from = &from[row * cols..][..cols];
            to[..start].copy_from_slice(&from[..start]);
            to[end..].copy_from_slice(&from[end..]);
        }
        scalar::clear_block(&mut to[..start], word_at(mask, first));
        scalar::clear_block(&mut to[end..], word_at(mask, first + end));
        let to = to.as_mut_ptr();
        let from = from.map_or(to.cast_const(), |from| from[row * cols..][..cols].as_ptr());
        for col in (start..end).step_by(64) {
            let word = word_at(mask, first + col);
            for i in (0..64).step_by(32 / W::BYTES) {
                // SAFETY: `from` and `to` hold `cols` elements and `col + 64 <= cols`;
                // `to.add(start)` is aligned if `STREAM`.
                unsafe {
                    let v = _mm256_loadu_si256(from.add(col + i).cast());
                    store::<STREAM>(to.add(col + i).cast(), _mm256_and_si256(v, lane_mask::<W>(word >> i)));
                }
            }
        }
    }
}
