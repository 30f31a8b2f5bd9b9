//! 32 elements a vector: compared with zero and their top bits collected; a mask spread over lanes.
//! Both wait for memory already, AVX-512 has nothing to add.

use std::arch::x86_64::*;

use super::scalar;
use crate::isa::Avx2;
use crate::matrix::word_at;
use crate::vector::Fence;
use crate::vector::avx2::{lane_mask, store};

/// Writes the bits of rows of `cols` > 0 elements.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub fn pack_rows(_: Avx2, elements: &[u8], cols: usize, bits: &mut [u8]) {
    for (elements, bits) in elements.chunks_exact(cols).zip(bits.chunks_exact_mut(cols.div_ceil(8))) {
        let (vectors, tail) = elements.as_chunks::<32>();
        let (words, last) = bits.split_at_mut(4 * vectors.len());
        for (vector, word) in vectors.iter().zip(words.as_chunks_mut::<4>().0) {
            // SAFETY: a vector is 32 bytes.
            let v = unsafe { _mm256_loadu_si256(vector.as_ptr().cast()) };
            let dropped = _mm256_movemask_epi8(_mm256_cmpeq_epi8(v, _mm256_setzero_si256()));
            *word = (!dropped).to_le_bytes();
        }
        scalar::pack_row(tail, last);
    }
}

/// Writes the elements of rows of `cols` > 0 elements; past the caches if `STREAM`.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub fn unpack_rows<const STREAM: bool>(_: Avx2, bits: &[u8], cols: usize, elements: &mut [u8]) {
    let _fence = Fence::<STREAM>;
    for (row, elements) in elements.chunks_exact_mut(cols).enumerate() {
        let first = row * cols.next_multiple_of(8);
        let start = if STREAM { elements.as_ptr().align_offset(64).min(cols) } else { 0 };
        let (head, rest) = elements.split_at_mut(start);
        let (blocks, tail) = rest.as_chunks_mut::<64>();
        scalar::unpack_word(word_at(bits, first), head);
        for (i, block) in blocks.iter_mut().enumerate() {
            let word = word_at(bits, first + start + 64 * i);
            for lane in [0, 32] {
                let v = _mm256_and_si256(lane_mask::<u8>(word >> lane), _mm256_set1_epi8(1));
                // SAFETY: `lane + 32 <= 64`; blocks are 64 bytes apart, the first one aligned if
                // `STREAM`.
                unsafe { store::<STREAM>(block.as_mut_ptr().add(lane), v) };
            }
        }
        scalar::unpack_word(word_at(bits, first + cols - tail.len()), tail);
    }
}
