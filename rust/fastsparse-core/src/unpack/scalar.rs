//! Unpacking, one kept element at a time.
//!
//! ```text
//! for each mask word of each row:
//!     64 zeros;  for each set bit i, from the lowest:  out[i] = values[next];  next += 1
//! ```

use crate::element::Word;
use crate::matrix::{low, word_at};

/// As [`super::rows`].
pub fn rows<W: Word>(values: &[W], cols: usize, mask: &[u8], out: &mut [W]) -> Option<usize> {
    let mut at = 0;
    for (row, out) in out.chunks_exact_mut(cols).enumerate() {
        let first = row * cols.next_multiple_of(8);
        for (i, block) in out.chunks_mut(64).enumerate() {
            let word = word_at(mask, first + 64 * i) & low(block.len());
            at += block_at(values.get(at..)?, word, block)?;
        }
    }
    Some(at)
}

/// Unpacks up to 64 elements and returns how many values they took; `None` where there are not
/// enough. `word` has no bits after the end of `block`.
pub fn block_at<W: Word>(values: &[W], mut word: u64, block: &mut [W]) -> Option<usize> {
    let kept = word.count_ones() as usize;
    let values = values.get(..kept)?;
    if word == u64::MAX {
        block.copy_from_slice(values);
        return Some(kept);
    }
    block.fill(W::default());
    for &value in values {
        *block.get_mut(word.trailing_zeros() as usize)? = value;
        word &= word - 1;
    }
    Some(kept)
}
