//! AVX2: products of bytes, two a lane of int16, which are added up to four a lane of int32.
//!
//! `vpmaddubsw` multiplies unsigned by signed bytes and saturates the sum of two: |w| is at most
//! 128 and x with the sign of the weight at most 127, so that two products are 32512 at most and
//! nothing is lost. An activation of −128 has no opposite: where there is one, weights and
//! activations are widened to int16.

use std::arch::x86_64::*;

use super::kernel::{BlockMask, Engine, ROWS};
use crate::isa::{Avx2, Isa, Kernel};
use crate::linear::activations::Block;
use crate::vector::avx2::expand_16_bytes;

/// Weights and x as they are: no x is −128.
#[derive(Clone, Copy)]
pub struct Bytes(Avx2);

impl Bytes {
    /// The token proves what the methods use.
    pub fn new(token: Avx2) -> Self {
        Bytes(token)
    }
}

/// Weights and x as int16.
#[derive(Clone, Copy)]
pub struct Widened(Avx2);

impl Widened {
    /// The token proves what the methods use.
    pub fn new(token: Avx2) -> Self {
        Widened(token)
    }
}

/// The columns of a block, sixteen a vector.
///
/// # Safety
/// `from` is valid for reading 64 bytes.
#[inline(always)]
unsafe fn expanded(_: Avx2, mut from: *const u8, keep: &BlockMask) -> [__m128i; 4] {
    let keep = keep.as_chunks().0;
    // SAFETY: the token proves the features.
    let mut vectors = [unsafe { _mm_setzero_si128() }; 4];
    for i in 0..4 {
        // SAFETY: as above; no more values have been passed than columns (the caller's promise).
        vectors[i] = unsafe { expand_16_bytes(from, keep[i]) };
        from = from.wrapping_add(u16::from_le_bytes(keep[i]).count_ones() as usize);
    }
    vectors
}

#[inline(always)]
fn totals(sums: [__m256i; ROWS]) -> [i32; ROWS] {
    // SAFETY: the same bits in arrays of as many integers.
    let lanes = unsafe { std::mem::transmute::<[__m256i; ROWS], [[i32; 8]; ROWS]>(sums) };
    let mut totals = [0; ROWS];
    for (total, lanes) in totals.iter_mut().zip(lanes) {
        *total = lanes.iter().sum();
    }
    totals
}

impl Engine for Bytes {
    type Lane = u8;
    type Vectors = [__m256i; 2];
    type Sums = __m256i;
    /// Eight sums; x, a weight and what becomes of it are the rest of 16 registers.
    const BATCH: usize = 2;
    const CHUNKS: usize = 2;
    const ADDED: i64 = 0;

    #[inline(always)]
    fn lane(x: u8) -> u8 {
        x
    }

    #[inline(always)]
    fn zero(self) -> __m256i {
        // SAFETY: the token proves the features.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn expand(self, from: *const u8, keep: &BlockMask, to: &mut Block<u8>) {
        // SAFETY: the token proves the features; the caller's promise; sixteen writable bytes each.
        unsafe {
            let (vectors, to) = (expanded(self.0, from, keep), to.0.as_chunks_mut::<16>().0);
            for i in 0..4 {
                _mm_storeu_si128(to[i].as_mut_ptr().cast(), vectors[i]);
            }
        }
    }

    #[inline(always)]
    fn load(self, from: &Block<u8>) -> [__m256i; 2] {
        let from: *const __m256i = from.0.as_ptr().cast();
        // SAFETY: the token proves the features; 64 readable bytes.
        unsafe { [_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))] }
    }

    #[inline(always)]
    fn add(self, mut sums: __m256i, w: [__m256i; 2], x: [__m256i; 2]) -> __m256i {
        for i in 0..2 {
            // SAFETY: the token proves the features.
            unsafe {
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w[i]), _mm256_sign_epi8(x[i], w[i]));
                sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
            }
        }
        sums
    }

    #[inline(always)]
    fn totals(self, sums: [__m256i; ROWS]) -> [i32; ROWS] {
        totals(sums)
    }

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        Isa::Avx2(self.0).run(kernel)
    }
}

impl Engine for Widened {
    type Lane = i16;
    type Vectors = [__m256i; 4];
    type Sums = __m256i;
    const BATCH: usize = 2;
    const CHUNKS: usize = 1;
    const ADDED: i64 = 0;

    #[inline(always)]
    fn lane(x: u8) -> i16 {
        x as i8 as i16
    }

    #[inline(always)]
    fn zero(self) -> __m256i {
        // SAFETY: the token proves the features.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn expand(self, from: *const u8, keep: &BlockMask, to: &mut Block<i16>) {
        // SAFETY: the token proves the features; the caller's promise; sixteen writable elements
        // each.
        unsafe {
            let (vectors, to) = (expanded(self.0, from, keep), to.0.as_chunks_mut::<16>().0);
            for i in 0..4 {
                _mm256_storeu_si256(to[i].as_mut_ptr().cast(), _mm256_cvtepi8_epi16(vectors[i]));
            }
        }
    }

    #[inline(always)]
    fn load(self, from: &Block<i16>) -> [__m256i; 4] {
        let from: *const __m256i = from.0.as_ptr().cast();
        // SAFETY: the token proves the features; 128 readable bytes.
        unsafe {
            [
                _mm256_loadu_si256(from),
                _mm256_loadu_si256(from.add(1)),
                _mm256_loadu_si256(from.add(2)),
                _mm256_loadu_si256(from.add(3)),
            ]
        }
    }

    #[inline(always)]
    fn add(self, mut sums: __m256i, w: [__m256i; 4], x: [__m256i; 4]) -> __m256i {
        for i in 0..4 {
            // SAFETY: the token proves the features.
            sums = unsafe { _mm256_add_epi32(sums, _mm256_madd_epi16(w[i], x[i])) };
        }
        sums
    }

    #[inline(always)]
    fn totals(self, sums: [__m256i; ROWS]) -> [i32; ROWS] {
        totals(sums)
    }

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        Isa::Avx2(self.0).run(kernel)
    }
}
