//! The scan with AVX-512: compares into mask registers, positions through a compress of bytes.
//!
//! ```text
//! for each 64 items:
//!     words of bits from 1 … 8 compares
//!     store the cut's word; count
//!     store compress(positions, collected word); advance by its popcount
//! ```
//!
//! The compress stays in a register and the store is whole: compressing to memory costs two orders
//! of magnitude more on Zen 4. Its merge form with a register that the compiler knows nothing of
//! avoids the false dependency of the zeroing form.

use std::arch::asm;
use std::arch::x86_64::*;

use super::scan::{Compared, Found, Mode, Query, Seen, store_word};
use crate::isa::Avx512;

/// Bytes that the scan asks for ahead of where it reads; the hardware prefetchers alone leave a
/// loop this light waiting.
const PREFETCH: usize = 4096;

/// Appends the positions of the set bits: all of them written, `found.len` advanced by their
/// number. Without a branch on there being any: about two words in three have some, which no
/// predictor learns.
///
/// # Safety
/// `found.positions` has room for 64 after `found.len`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,popcnt")]
unsafe fn append(word: u64, base: usize, any: __m512i, found: &mut Found<'_>) {
    let lanes = _mm512_mask_compress_epi8(any, word, lanes8());
    let base = _mm512_set1_epi16(base as i16);
    let count = word.count_ones() as usize;
    // SAFETY: the caller's promise leaves room for 32 lanes at both stores.
    unsafe {
        let to = found.positions.as_mut_ptr().add(found.len);
        let first = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(lanes));
        _mm512_storeu_epi16(to.cast(), _mm512_add_epi16(base, first));
        if count > 32 {
            let second = _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64::<1>(lanes));
            _mm512_storeu_epi16(to.add(32).cast(), _mm512_add_epi16(base, second));
        }
    }
    found.len += count;
}

#[inline]
#[target_feature(enable = "avx512f")]
fn lanes8() -> __m512i {
    const LANES: [u8; 64] = {
        let mut lanes = [0; 64];
        let mut i = 0;
        while i < 64 {
            lanes[i] = i as u8;
            i += 1;
        }
        lanes
    };
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_si512(LANES.as_ptr().cast()) }
}

macro_rules! width {
    ($K:ident, $signed:ty, $lanes:literal, $splat:ident, $gt:ident, $ge:ident, $max:ident) => {
        pub mod $K {
            use super::*;

            /// See [`super::super::scan::ScanWord::scan`].
            pub fn scan(
                _: Avx512,
                data: &[$K],
                and: $K,
                query: &Query<$K>,
                base: usize,
                bits: &mut [u8],
                found: &mut Found<'_>,
            ) -> Seen<$K> {
                assert!(query.mode == Mode::Cut || found.positions.len() >= found.len + data.len() + 64);
                // SAFETY: the token proves the features; there is room for the positions (checked
                // above).
                unsafe {
                    match query.mode {
                        Mode::Cut => run::<0>(data, and, query, base, bits, found),
                        Mode::Collect => run::<1>(data, and, query, base, bits, found),
                        Mode::Edges => run::<2>(data, and, query, base, bits, found),
                    }
                }
            }

            /// # Safety
            /// The CPU has the features; `found.positions` has room for as many as `data` is long
            /// and 64 more.
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
            unsafe fn run<const MODE: u8>(
                data: &[$K],
                and: $K,
                query: &Query<$K>,
                base: usize,
                bits: &mut [u8],
                found: &mut Found<'_>,
            ) -> Seen<$K> {
                let (lo, hi) = ($splat(query.lo as $signed), $splat(query.hi as $signed));
                let and = $splat(and as $signed);
                let mut max = _mm512_setzero_si512();
                let mut seen = Seen::default();
                let mut any = _mm512_setzero_si512();
                // SAFETY: clears a register; hides from the compiler that it is zero.
                unsafe { asm!("vpxord {0}, {0}, {0}", inout(zmm_reg) any, options(pure, nomem, nostack, preserves_flags)) };
                let mut compare = |data: &[$K; 64]| {
                    let mut words = Compared::default();
                    for part in 0..64 / $lanes {
                        let from = data[part * $lanes..].as_ptr();
                        // SAFETY: 64 bytes of `data`; a prefetch may name any address.
                        let raw = unsafe {
                            _mm_prefetch::<_MM_HINT_T0>(from.cast::<i8>().wrapping_add(PREFETCH));
                            _mm512_loadu_si512(from.cast())
                        };
                        let key = _mm512_and_si512(raw, and);
                        max = $max(max, key);
                        words.above_hi |= ($gt(key, hi) as u64) << (part * $lanes);
                        if MODE != 1 {
                            words.from_hi |= ($ge(key, hi) as u64) << (part * $lanes);
                        }
                        if MODE == 2 {
                            words.above_lo |= ($gt(key, lo) as u64) << (part * $lanes);
                        }
                        if MODE != 0 {
                            words.from_lo |= ($ge(key, lo) as u64) << (part * $lanes);
                        }
                    }
                    words
                };
                let mode = [Mode::Cut, Mode::Collect, Mode::Edges][MODE as usize];
                let (full, last) = data.as_chunks::<64>();
                let (full_bits, last_bits) = bits.split_at_mut(full.len() * 8);
                let mut at = base;
                for (data, bits) in full.iter().zip(full_bits.as_chunks_mut::<8>().0) {
                    let words = compare(data);
                    *bits = words.written(query).to_le_bytes();
                    words.count(mode, &mut seen);
                    if MODE != 0 {
                        // SAFETY: at most as many positions were appended as items came before.
                        unsafe { append(words.inside(mode), at, any, found) };
                    }
                    at += 64;
                }
                if !last.is_empty() {
                    let mut padded = [0; 64];
                    padded[..last.len()].copy_from_slice(last);
                    let words = compare(&padded).first(last.len());
                    store_word(last_bits, words.written(query));
                    words.count(mode, &mut seen);
                    if MODE != 0 {
                        // SAFETY: as above.
                        unsafe { append(words.inside(mode), at, any, found) };
                    }
                }
                let mut lanes = [0; $lanes];
                // SAFETY: 64 bytes.
                unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), max) };
                seen.max = lanes.into_iter().fold(0, $K::max);
                seen
            }
        }
    };
}

width!(u8, i8, 64, _mm512_set1_epi8, _mm512_cmpgt_epu8_mask, _mm512_cmpge_epu8_mask, _mm512_max_epu8);
width!(u16, i16, 32, _mm512_set1_epi16, _mm512_cmpgt_epu16_mask, _mm512_cmpge_epu16_mask, _mm512_max_epu16);
width!(u32, i32, 16, _mm512_set1_epi32, _mm512_cmpgt_epu32_mask, _mm512_cmpge_epu32_mask, _mm512_max_epu32);
width!(u64, i64, 8, _mm512_set1_epi64, _mm512_cmpgt_epu64_mask, _mm512_cmpge_epu64_mask, _mm512_max_epu64);
