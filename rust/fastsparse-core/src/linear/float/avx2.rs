//! AVX2: eight float32 sums a vector, weights widened to float32.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::avx2_asm::*;
use super::engine::Engine;
use super::strategy::{AVX2_AT_MOST_HALF_UP_TO, AVX2_PASS};
use super::vector::{FloatVector, SetBits};
use crate::element::DType;
use crate::isa::{Avx2, Isa, Kernel};
use crate::linear::Real;
use crate::linear::rows::{ChunkMask, fold};
use crate::vector::avx2::*;

/// Weights are widened to float32 and multiplied with float32.
#[derive(Clone, Copy)]
pub struct Floats<E>(Avx2, PhantomData<E>);

impl<E> Floats<E> {
    /// The token proves what the methods use.
    pub fn new(token: Avx2) -> Self {
        Floats(token, PhantomData)
    }
}

impl<E: Real> Engine for Floats<E> {
    type Weight = E::Bits;
    type Lane = f32;
    type Vector = __m256;
    type Sums = __m256;
    type Floats = Avx2;
    const LANES: usize = 8;
    /// Entries of the tables have 16 and 32 bytes.
    const SHIFT: u32 = if matches!(E::DTYPE, DType::F16) { 4 } else { 5 };
    const AT_MOST_HALF_UP_TO: usize = if matches!(E::DTYPE, DType::F32) { AVX2_AT_MOST_HALF_UP_TO } else { 0 };
    /// Measured on Zen 3, one row of activations, 2:4, nanoseconds a weight of bfloat16: 0.059, and
    /// 0.075 without; of float16 no less, as it is the conversion that takes time.
    const PAIRS: bool = matches!(E::DTYPE, DType::BF16);
    /// Twelve sums, three of x and a weight are all 16 registers.
    const BATCH: usize = 3;
    const SUMS: usize = 8;
    const PASS: usize = AVX2_PASS;
    /// Measured on Zen 3, 4096 × 11008 of float32 in blocks of 4 × 1 and of 16 × 16, 75 % pruned, one
    /// thread, milliseconds at one, two and four rows: 5.2, 14.4, 31.8 and 7.5, 12.5, 24.2; without
    /// compressing three rows take 10.5 and 6.5, four 13.5 and 7.2.
    const COMPRESSED_UP_TO: usize = 1;

    #[inline(always)]
    fn floats(self) -> Avx2 {
        self.0
    }

    #[inline(always)]
    fn used(self, mask: &ChunkMask) -> u64 {
        let [low, high] = mask.as_chunks::<32>().0 else { unreachable!("64 bytes") };
        // SAFETY: the token proves the features; 32 bytes are readable, twice.
        unsafe {
            let low = _mm256_cmpeq_epi8(_mm256_loadu_si256(low.as_ptr().cast()), _mm256_setzero_si256());
            let high = _mm256_cmpeq_epi8(_mm256_loadu_si256(high.as_ptr().cast()), _mm256_setzero_si256());
            !(_mm256_movemask_epi8(low) as u32 as u64 | (_mm256_movemask_epi8(high) as u64) << 32)
        }
    }

    #[inline(always)]
    fn over_half(self, mask: &ChunkMask) -> u64 {
        let mut bits = 0;
        for (i, half) in mask.as_chunks::<32>().0.iter().enumerate() {
            // SAFETY: the token proves the features; 32 bytes are readable.
            let over_half = unsafe {
                let counts = _mm256_setr_epi64x(
                    0x0302_0201_0201_0100,
                    0x0403_0302_0302_0201,
                    0x0302_0201_0201_0100,
                    0x0403_0302_0302_0201,
                );
                let (mask, low) = (_mm256_loadu_si256(half.as_ptr().cast()), _mm256_set1_epi8(15));
                let high = _mm256_and_si256(_mm256_srli_epi16::<4>(mask), low);
                let low = _mm256_shuffle_epi8(counts, _mm256_and_si256(mask, low));
                let count = _mm256_add_epi8(_mm256_shuffle_epi8(counts, high), low);
                _mm256_movemask_epi8(_mm256_cmpgt_epi8(count, _mm256_set1_epi8(4)))
            };
            bits |= (over_half as u32 as u64) << (32 * i);
        }
        bits
    }

    #[inline(always)]
    unsafe fn expand(self, from: *const E::Bits, keep: u32) -> __m256 {
        let (from, keep) = (from.cast(), keep as usize);
        // SAFETY: the token proves the features; eight elements are readable (the caller's
        // promise).
        unsafe {
            match E::DTYPE {
                DType::F32 => _mm256_castsi256_ps(expand_lanes(from, keep)),
                DType::F16 => _mm256_cvtph_ps(expand_pairs(from, keep)),
                _ => _mm256_castsi256_ps(expand_upper_pairs(from, keep)),
            }
        }
    }

    #[inline(always)]
    unsafe fn expand_at_most_half(self, from: *const E::Bits, keep: u32) -> __m256 {
        // SAFETY: the token proves the features; eight elements are readable (the caller's
        // promise).
        unsafe {
            match E::DTYPE {
                DType::F32 => _mm256_castsi256_ps(expand_lanes_at_most_half(from.cast(), keep as usize)),
                _ => self.expand(from, keep),
            }
        }
    }

    #[inline(always)]
    fn table(self, at_most_half: bool) -> *const u8 {
        match E::DTYPE {
            DType::F32 if at_most_half => floats_table_at_most_half(),
            DType::F32 => floats_table(),
            DType::F16 => halves_table(),
            _ => bfloats_table(),
        }
    }

    #[inline(always)]
    unsafe fn next<const I: usize>(
        self,
        at_most_half: bool,
        table: *const u8,
        word: u64,
        from: *const E::Bits,
        kept: Option<usize>,
    ) -> (__m256, *const E::Bits) {
        let from = from.cast();
        // SAFETY: the token proves the features; eight elements are readable (the caller's
        // promise).
        let (vector, next) = unsafe {
            match E::DTYPE {
                DType::F32 if at_most_half => next_floats_at_most_half::<I>(table, word, from, kept),
                DType::F32 => next_floats::<I>(table, word, from, kept),
                DType::F16 => next_halves::<I>(table, word, from, kept),
                _ => next_bfloats::<I>(table, word, from, kept),
            }
        };
        (vector, next.cast())
    }

    #[inline(always)]
    unsafe fn pair<const I: usize>(
        self,
        table: *const u8,
        word: u64,
        from: *const E::Bits,
        kept: usize,
    ) -> ([__m256; 2], *const E::Bits) {
        // SAFETY: the token proves the features; eight elements are readable (the caller's
        // promise).
        let (vectors, next) = unsafe { next_two_bfloats::<I>(table, word, from.cast(), kept) };
        (vectors, next.cast())
    }

    #[inline(always)]
    unsafe fn widen(self, from: *const E::Bits) -> __m256 {
        // SAFETY: eight elements are readable (the caller's promise).
        unsafe { FloatVector::widen::<E>(self.0, from) }
    }

    #[inline(always)]
    unsafe fn compress(self, from: *const f32, keep: u32, to: *mut f32) {
        // SAFETY: the token proves the features; the rest is the caller's promise.
        unsafe { compress::<u32>(from.cast(), keep as u8, to.cast()) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m256 {
        // SAFETY: eight elements are readable (the caller's promise).
        unsafe { FloatVector::load(self.0, from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, vector: __m256) {
        // SAFETY: eight elements are writable (the caller's promise).
        unsafe { FloatVector::store(self.0, to, vector) }
    }

    #[inline(always)]
    fn add(self, sums: __m256, w: __m256, x: __m256) -> __m256 {
        self.0.multiply_add(sums, w, x)
    }

    #[inline(always)]
    fn opt_barrier(self, sums: __m256) -> __m256 {
        // SAFETY: the token proves the features.
        unsafe { opt_barrier(sums) }
    }
}

impl FloatVector for Avx2 {
    type Vector = __m256;
    const LANES: usize = 8;

    #[inline(always)]
    fn zero(self) -> __m256 {
        // SAFETY: the token proves the features.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    fn splat(self, number: f32) -> __m256 {
        // SAFETY: the token proves the features.
        unsafe { _mm256_set1_ps(number) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m256 {
        // SAFETY: the token proves the features; eight numbers are readable (the caller's promise).
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, vector: __m256) {
        // SAFETY: the token proves the features; eight numbers are writable (the caller's promise).
        unsafe { _mm256_storeu_ps(to, vector) }
    }

    #[inline(always)]
    unsafe fn widen<E: Real>(self, from: *const E::Bits) -> __m256 {
        // SAFETY: the token proves the features; eight elements are readable (the caller's
        // promise).
        unsafe {
            match E::DTYPE {
                DType::F32 => _mm256_loadu_ps(from.cast()),
                DType::F16 => _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                _ => {
                    let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
                }
            }
        }
    }

    #[inline(always)]
    fn multiply_add(self, sums: __m256, w: __m256, x: __m256) -> __m256 {
        // SAFETY: the token proves the features.
        unsafe { _mm256_fmadd_ps(w, x, sums) }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves the features.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn total(self, vector: __m256) -> f32 {
        // SAFETY: the same bits in an array of as many floats.
        fold(unsafe { std::mem::transmute::<__m256, [f32; 8]>(vector) })
    }

    #[inline(always)]
    fn totals(self, [a, b, c, d]: [__m256; 4]) -> [f32; 4] {
        // SAFETY: the token proves the features.
        unsafe {
            // Four sums of two vectors each, then two of each of the four.
            let ab = _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
            let cd = _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(c, d), _mm256_permute2f128_ps::<0x31>(c, d));
            let all = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(ab, cd), _mm256_shuffle_ps::<0xee>(ab, cd));
            // Each twice: a, a, c, c and b, b, d, d.
            let all = _mm256_add_ps(all, _mm256_permute_ps::<0xb1>(all));
            let [ac, bd] = [_mm256_castps256_ps128(all), _mm256_extractf128_ps::<1>(all)];
            std::mem::transmute::<__m128, [f32; 4]>(_mm_blend_ps::<0b1010>(ac, bd))
        }
    }

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        Isa::Avx2(self).run(kernel)
    }
}

impl SetBits for Avx2 {
    #[inline(always)]
    unsafe fn set_bit_offsets(self, word: u64, first: u16, scale: u16, to: *mut u16) -> usize {
        // SAFETY: the token proves the features; the rest is the caller's promise.
        unsafe { set_bit_offsets(word, first, scale, to) }
    }
}
