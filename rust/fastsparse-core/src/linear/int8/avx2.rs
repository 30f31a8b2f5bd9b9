//! AVX2: sixteen columns a vector, widened to int16, two products a lane of int32. (`vpmaddubsw` on bytes would saturate.)

use std::arch::x86_64::*;

use super::kernel::Engine;
use crate::isa::{Avx2, Isa, Kernel};
use crate::vector::avx2::expand_bytes;

/// Weights and x as int16.
#[derive(Clone, Copy)]
pub struct Widened(Avx2);

impl Widened {
    /// The token proves what the methods use.
    pub fn new(token: Avx2) -> Self {
        Widened(token)
    }
}

impl Engine for Widened {
    type Lane = i16;
    type Vector = __m256i;
    type Sums = __m256i;
    const LANES: usize = 16;
    /// Eight sums, four weights and x: more do not fit 16 registers.
    const BATCH: usize = 2;
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
    unsafe fn expand(self, from: *const u8, keep: u64) -> __m256i {
        // SAFETY: the token proves the features; sixteen bytes are readable (the caller's promise), the second eight of them after
        // at most eight.
        unsafe {
            let low = expand_bytes(from, keep as u8);
            let high = expand_bytes(from.add((keep as u8).count_ones() as usize), (keep >> 8) as u8);
            _mm256_cvtepi8_epi16(_mm_unpacklo_epi64(low, high))
        }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const i16) -> __m256i {
        // SAFETY: the token proves the features; sixteen elements are readable (the caller's promise).
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i16, vector: __m256i) {
        // SAFETY: the token proves the features; sixteen elements are writable (the caller's promise).
        unsafe { _mm256_storeu_si256(to.cast(), vector) }
    }

    #[inline(always)]
    fn add(self, sums: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the token proves the features.
        unsafe { _mm256_add_epi32(sums, _mm256_madd_epi16(w, x)) }
    }

    #[inline(always)]
    fn total(self, sums: __m256i) -> i32 {
        // SAFETY: the same bits in an array of as many integers.
        unsafe { std::mem::transmute::<__m256i, [i32; 8]>(sums) }.iter().sum()
    }

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        Isa::Avx2(self.0).run(kernel)
    }
}
