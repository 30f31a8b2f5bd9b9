//! The scan with AVX2: signed compares of keys with a flipped top bit, words of bits through `movemask`.

use std::arch::x86_64::*;

use super::scalar::append;
use super::scan::{Compared, Found, Mode, Query, Seen, store_word};
use crate::isa::Avx2;

#[inline]
#[target_feature(enable = "avx2")]
fn bits8(compared: __m256i) -> u64 {
    _mm256_movemask_epi8(compared) as u32 as u64
}

#[inline]
#[target_feature(enable = "avx2,bmi2")]
fn bits16(compared: __m256i) -> u64 {
    _pext_u64(_mm256_movemask_epi8(compared) as u32 as u64, 0x5555_5555)
}

#[inline]
#[target_feature(enable = "avx2")]
fn bits32(compared: __m256i) -> u64 {
    _mm256_movemask_ps(_mm256_castsi256_ps(compared)) as u64
}

#[inline]
#[target_feature(enable = "avx2")]
fn bits64(compared: __m256i) -> u64 {
    _mm256_movemask_pd(_mm256_castsi256_pd(compared)) as u64
}

#[inline]
#[target_feature(enable = "avx2")]
fn max64(a: __m256i, b: __m256i) -> __m256i {
    _mm256_blendv_epi8(b, a, _mm256_cmpgt_epi64(a, b))
}

macro_rules! width {
    ($K:ident, $signed:ty, $lanes:literal, $splat:ident, $gt:ident, $max:ident, $bits:ident) => {
        pub mod $K {
            use super::*;

            /// See [`super::super::scan::ScanWord::scan`].
            pub fn scan(
                _: Avx2,
                data: &[$K],
                and: $K,
                query: &Query<$K>,
                base: usize,
                bits: &mut [u8],
                found: &mut Found<'_>,
            ) -> Seen<$K> {
                // SAFETY: the token proves the features.
                unsafe {
                    match query.mode {
                        Mode::Cut => run::<0>(data, and, query, base, bits, found),
                        Mode::Collect => run::<1>(data, and, query, base, bits, found),
                        Mode::Edges => run::<2>(data, and, query, base, bits, found),
                    }
                }
            }

            #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
            fn run<const MODE: u8>(
                data: &[$K],
                and: $K,
                query: &Query<$K>,
                base: usize,
                bits: &mut [u8],
                found: &mut Found<'_>,
            ) -> Seen<$K> {
                const FLIP: $signed = <$signed>::MIN;
                let (lo, hi) = ($splat(query.lo as $signed ^ FLIP), $splat(query.hi as $signed ^ FLIP));
                let (and, flip) = ($splat(and as $signed), $splat(FLIP));
                let mut max = flip;
                let mut seen = Seen::default();
                let mut compare = |data: &[$K; 64]| {
                    let mut words = Compared::default();
                    for part in 0..64 / $lanes {
                        // SAFETY: 32 bytes of `data`.
                        let raw = unsafe { _mm256_loadu_si256(data[part * $lanes..].as_ptr().cast()) };
                        let key = _mm256_xor_si256(_mm256_and_si256(raw, and), flip);
                        max = $max(max, key);
                        words.above_hi |= $bits($gt(key, hi)) << (part * $lanes);
                        // AVX2 has no ≥: what is below is collected and turned round at the end.
                        if MODE != 1 {
                            words.from_hi |= $bits($gt(hi, key)) << (part * $lanes);
                        }
                        if MODE == 2 {
                            words.above_lo |= $bits($gt(key, lo)) << (part * $lanes);
                        }
                        if MODE != 0 {
                            words.from_lo |= $bits($gt(lo, key)) << (part * $lanes);
                        }
                    }
                    Compared { from_hi: !words.from_hi, from_lo: !words.from_lo, ..words }
                };
                let mode = [Mode::Cut, Mode::Collect, Mode::Edges][MODE as usize];
                let (full, last) = data.as_chunks::<64>();
                let (full_bits, last_bits) = bits.split_at_mut(full.len() * 8);
                let mut at = base;
                for (data, bits) in full.iter().zip(full_bits.as_chunks_mut::<8>().0) {
                    let words = compare(data);
                    *bits = words.written(query).to_le_bytes();
                    words.count(mode, &mut seen);
                    append(words.inside(mode), at, found);
                    at += 64;
                }
                if !last.is_empty() {
                    let mut padded = [0; 64];
                    padded[..last.len()].copy_from_slice(last);
                    let words = compare(&padded).first(last.len());
                    store_word(last_bits, words.written(query));
                    words.count(mode, &mut seen);
                    append(words.inside(mode), at, found);
                }
                let mut lanes = [0; $lanes];
                // SAFETY: 32 bytes.
                unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), _mm256_xor_si256(max, flip)) };
                seen.max = lanes.into_iter().fold(0, $K::max);
                seen
            }
        }
    };
}

width!(u8, i8, 32, _mm256_set1_epi8, _mm256_cmpgt_epi8, _mm256_max_epi8, bits8);
width!(u16, i16, 16, _mm256_set1_epi16, _mm256_cmpgt_epi16, _mm256_max_epi16, bits16);
width!(u32, i32, 8, _mm256_set1_epi32, _mm256_cmpgt_epi32, _mm256_max_epi32, bits32);
width!(u64, i64, 4, _mm256_set1_epi64x, _mm256_cmpgt_epi64, max64, bits64);
