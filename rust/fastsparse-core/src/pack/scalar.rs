//! Packing, one kept element at a time.
//!
//! ```text
//! for each mask word of each row:
//!     for each set bit i, from the lowest:  values[next] = weights[i];  next += 1
//! ```

use crate::element::Word;
use crate::matrix::{low, word_at};

/// As [`super::rows`].
pub fn rows<W: Word>(weights: &[W], cols: usize, mask: &[u8], values: &mut [W]) -> Option<usize> {
    let mut at = 0;
    for (row, weights) in weights.chunks_exact(cols).enumerate() {
        let first = row * cols.next_multiple_of(8);
        for (i, block) in weights.chunks(64).enumerate() {
            let word = word_at(mask, first + 64 * i) & low(block.len());
            at += block_at(block, word, values.get_mut(at..)?)?;
        }
    }
    Some(at)
}

/// Packs up to 64 elements and returns how many were kept; `None`, and nothing written, where
/// `values` is too short. `word` has no bits after the end of `block`.
pub fn block_at<W: Word>(block: &[W], mut word: u64, values: &mut [W]) -> Option<usize> {
    let kept = word.count_ones() as usize;
    let values = values.get_mut(..kept)?;
    if word == u64::MAX {
        values.copy_from_slice(block);
        return Some(kept);
    }
    for value in values {
        *value = *block.get(word.trailing_zeros() as usize)?;
        word &= word - 1;
    }
    Some(kept)
}

/// As [`super::apply_rows`].
pub fn apply_rows<W: Word>(from: Option<&[W]>, cols: usize, mask: &[u8], to: &mut [W]) {
    for (row, to) in to.chunks_exact_mut(cols).enumerate() {
        let first = row * cols.next_multiple_of(8);
        for (i, block) in to.chunks_mut(64).enumerate() {
            if let Some(from) = from {
                block.copy_from_slice(&from[row * cols + 64 * i..][..block.len()]);
            }
            clear_block(block, word_at(mask, first + 64 * i));
        }
    }
}

/// Zeroes the elements of a block that `word` does not select.
pub fn clear_block<W: Word>(block: &mut [W], word: u64) {
    for (lane, weight) in block.iter_mut().enumerate() {
        // Arithmetic: a condition becomes a branch here, and a random mask mispredicts it every
        // other time.
        *weight = W::from_u64(weight.to_u64() & (word >> lane & 1).wrapping_neg());
    }
}
