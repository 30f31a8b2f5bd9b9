//! The scan with AVX2: signed compares of keys with a flipped top bit, words of bits through
//! `movemask`.
//!
//! ```text
//! for each 32 items:
//!     bits of 1 … 3 compares: narrowed to bytes and put in order, then one movemask each
//! for each 64: store the cut's word; count
//!     store the places of its collected bits, at least four; advance by their number
//! ```

use std::arch::x86_64::*;

use super::scan::{Compared, Found, Mode, Query, Seen, store_word};
use crate::isa::Avx2;
use crate::vector::prefetch;

/// Bytes that the scan asks for ahead of where it reads.
const PREFETCH: usize = 4096;

/// The loops: one a mode, and two for the cut, of which each compares once.
const ABOVE: u8 = 0;
const REACH: u8 = 1;
const COLLECT: u8 = 2;
const EDGES: u8 = 3;

/// Positions that are written without asking whether there are as many.
const AT_ONCE: usize = 4;

/// Appends the positions of the set bits. How many there are is as good as random: a loop over them
/// would mispredict its end in two words of three.
#[inline]
#[target_feature(enable = "bmi1,popcnt")]
fn append(mut word: u64, base: usize, found: &mut Found<'_>) {
    let room = &mut found.positions[found.len..][..64];
    found.len += word.count_ones() as usize;
    for positions in room.as_chunks_mut::<AT_ONCE>().0 {
        for position in positions {
            *position = (base + word.trailing_zeros() as usize) as u16;
            word &= word.wrapping_sub(1);
        }
        if word == 0 {
            break;
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn bits8([all]: [__m256i; 1]) -> u64 {
    _mm256_movemask_epi8(all) as u32 as u64
}

#[inline]
#[target_feature(enable = "avx2")]
fn bits16([a, b]: [__m256i; 2]) -> u64 {
    bits8([_mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi16(a, b))])
}

#[inline]
#[target_feature(enable = "avx2")]
fn bits32([a, b, c, d]: [__m256i; 4]) -> u64 {
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    let bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    bits8([_mm256_permutevar8x32_epi32(bytes, order)])
}

#[inline]
#[target_feature(enable = "avx2")]
fn bits64([a, b, c, d, e, f, g, h]: [__m256i; 8]) -> u64 {
    let bytes = _mm256_packs_epi16(
        _mm256_packs_epi32(lower_halves(a, b), lower_halves(c, d)),
        _mm256_packs_epi32(lower_halves(e, f), lower_halves(g, h)),
    );
    // a0 a1 b0 b1 … d1, a2 a3 b2 b3 … d3, and the same of e to h.
    let quarters = _mm256_permute4x64_epi64::<0b11_01_10_00>(bytes);
    let order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
    bits8([_mm256_shuffle_epi8(quarters, order)])
}

/// The lower halves of 64-bit lanes: a0 a1 b0 b1, a2 a3 b2 b3.
#[inline]
#[target_feature(enable = "avx2")]
fn lower_halves(a: __m256i, b: __m256i) -> __m256i {
    let halves = _mm256_shuffle_ps::<0b10_00_10_00>(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b));
    _mm256_castps_si256(halves)
}

#[inline]
#[target_feature(enable = "avx2")]
fn max64(a: __m256i, b: __m256i) -> __m256i {
    _mm256_blendv_epi8(b, a, _mm256_cmpgt_epi64(a, b))
}

macro_rules! width {
    ($K:ident, $signed:ty, $lanes:literal, $splat:ident, $gt:ident, $sub:ident, $max:ident, $bits:ident) => {
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
                        Mode::Cut if query.cut.ties => run::<REACH>(data, and, query, base, bits, found),
                        Mode::Cut => run::<ABOVE>(data, and, query, base, bits, found),
                        Mode::Collect => run::<COLLECT>(data, and, query, base, bits, found),
                        Mode::Edges => run::<EDGES>(data, and, query, base, bits, found),
                    }
                }
            }

            /// See [`super::super::scan::ScanWord::reached`].
            pub fn reached(_: Avx2, data: &[$K], and: $K, at: [$K; 4]) -> [usize; 4] {
                // SAFETY: the token proves the features.
                unsafe { count(data, and, at) }
            }

            #[target_feature(enable = "avx2")]
            fn count(data: &[$K], and: $K, at: [$K; 4]) -> [usize; 4] {
                const FLIP: $signed = <$signed>::MIN;
                // As many as a lane can count.
                const MOST: usize = if $lanes == 32 { 255 } else { 1 << 15 };
                let (all, flip) = ($splat(and as $signed), $splat(FLIP));
                let mut edges = [flip; 4];
                for (edge, at) in edges.iter_mut().zip(at) {
                    *edge = $splat(at as $signed ^ FLIP);
                }
                let mut total = [data.len(); 4];
                for data in data.chunks(MOST * $lanes) {
                    let mut below = [_mm256_setzero_si256(); 4];
                    let (vectors, rest) = data.as_chunks::<$lanes>();
                    for vector in vectors {
                        // SAFETY: 32 bytes of `data`.
                        let raw = unsafe { _mm256_loadu_si256(vector.as_ptr().cast()) };
                        let key = _mm256_xor_si256(_mm256_and_si256(raw, all), flip);
                        for (below, &edge) in below.iter_mut().zip(&edges) {
                            *below = $sub(*below, $gt(edge, key));
                        }
                    }
                    for ((total, below), at) in total.iter_mut().zip(below).zip(at) {
                        let mut lanes: [$K; $lanes] = [0; $lanes];
                        // SAFETY: 32 bytes.
                        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), below) };
                        *total -= lanes.iter().map(|&lane| lane as usize).sum::<usize>();
                        *total -= rest.iter().filter(|&&key| key & and < at).count();
                    }
                }
                total
            }

            // Loops, here and below: a closure that is given to a function of the standard library
            // is compiled without AVX2.
            #[inline]
            #[target_feature(enable = "avx2")]
            fn above(mut keys: [__m256i; 32 / $lanes], edge: __m256i) -> u64 {
                for key in &mut keys {
                    *key = $gt(*key, edge);
                }
                $bits(keys)
            }

            #[inline]
            #[target_feature(enable = "avx2")]
            fn below(mut keys: [__m256i; 32 / $lanes], edge: __m256i) -> u64 {
                for key in &mut keys {
                    *key = $gt(edge, *key);
                }
                $bits(keys)
            }

            #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
            fn run<const LOOP: u8>(
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
                    for line in (0..size_of_val(data)).step_by(64) {
                        prefetch(data.as_ptr().cast::<u8>().wrapping_add(line + PREFETCH));
                    }
                    for (half, data) in data.as_chunks::<32>().0.iter().enumerate() {
                        let mut keys = [flip; 32 / $lanes];
                        for (key, data) in keys.iter_mut().zip(data.as_chunks::<$lanes>().0) {
                            // SAFETY: 32 bytes of `data`.
                            let raw = unsafe { _mm256_loadu_si256(data.as_ptr().cast()) };
                            *key = _mm256_xor_si256(_mm256_and_si256(raw, and), flip);
                            max = $max(max, *key);
                        }
                        if LOOP != REACH {
                            words.above_hi |= above(keys, hi) << (32 * half);
                        }
                        // AVX2 has no ≥: what is below is collected and turned round at the end.
                        if LOOP == REACH || LOOP == EDGES {
                            words.from_hi |= below(keys, hi) << (32 * half);
                        }
                        if LOOP == EDGES {
                            words.above_lo |= above(keys, lo) << (32 * half);
                        }
                        if LOOP == COLLECT || LOOP == EDGES {
                            words.from_lo |= below(keys, lo) << (32 * half);
                        }
                    }
                    Compared { from_hi: !words.from_hi, from_lo: !words.from_lo, ..words }
                };
                let mode = match LOOP {
                    COLLECT => Mode::Collect,
                    EDGES => Mode::Edges,
                    _ => Mode::Cut,
                };
                // One place that compares, so that it is inlined.
                for (i, (data, bits)) in data.chunks(64).zip(bits.chunks_mut(8)).enumerate() {
                    let mut padded;
                    let block = match data.first_chunk::<64>() {
                        Some(block) => block,
                        None => {
                            padded = [0; 64];
                            padded[..data.len()].copy_from_slice(data);
                            &padded
                        }
                    };
                    let words = compare(block).first(data.len());
                    match bits.first_chunk_mut::<8>() {
                        Some(bits) => *bits = words.written(query).to_le_bytes(),
                        None => store_word(bits, words.written(query)),
                    }
                    words.count(mode, &mut seen);
                    if mode != Mode::Cut {
                        append(words.inside(mode), base + 64 * i, found);
                    }
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

width!(u8, i8, 32, _mm256_set1_epi8, _mm256_cmpgt_epi8, _mm256_sub_epi8, _mm256_max_epi8, bits8);
width!(u16, i16, 16, _mm256_set1_epi16, _mm256_cmpgt_epi16, _mm256_sub_epi16, _mm256_max_epi16, bits16);
width!(u32, i32, 8, _mm256_set1_epi32, _mm256_cmpgt_epi32, _mm256_sub_epi32, _mm256_max_epi32, bits32);
width!(u64, i64, 4, _mm256_set1_epi64x, _mm256_cmpgt_epi64, _mm256_sub_epi64, max64, bits64);
