//! AVX-512: sixteen float32 sums a vector, of single products or of pairs of bfloat16 products.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::engine::Engine;
use super::strategy::AVX512_PASS;
use super::vector::{FloatVector, SetBits};
use crate::element::{DType, Word};
use crate::isa::{Avx512, Avx512Bf16, Isa, Kernel};
use crate::linear::Real;
use crate::linear::rows::{ChunkMask, fold};
use crate::vector::avx2::set_bit_offsets;
use crate::vector::avx512::{load_unfused, zero};

/// float32 weights times float32.
#[derive(Clone, Copy)]
pub struct Floats<E>(Avx512, PhantomData<E>);

impl<E> Floats<E> {
    /// The token proves what the methods use.
    pub fn new(token: Avx512) -> Self {
        Floats(token, PhantomData)
    }
}

impl<E: Real> Engine for Floats<E> {
    type Weight = E::Bits;
    type Lane = f32;
    type Vector = __m512;
    type Sums = __m512;
    type Floats = Avx512;
    const LANES: usize = 16;
    const SUMS: usize = 24;
    const PASS: usize = AVX512_PASS;
    const BATCH: usize = 6;

    #[inline(always)]
    fn floats(self) -> Avx512 {
        self.0
    }

    #[inline(always)]
    fn used(self, mask: &ChunkMask) -> u64 {
        // SAFETY: the token proves the features; 64 bytes are readable.
        unsafe {
            let mask = _mm512_loadu_si512(mask.as_ptr().cast());
            _mm512_test_epi16_mask(mask, mask) as u64
        }
    }

    #[inline(always)]
    unsafe fn expand(self, from: *const E::Bits, keep: u32) -> __m512 {
        assert!(E::Bits::BYTES == 4);
        // SAFETY: the token proves the features; sixteen elements are readable (the caller's
        // promise).
        unsafe { _mm512_castsi512_ps(_mm512_mask_expand_epi32(zero(), keep as u16, load_unfused(from))) }
    }

    #[inline(always)]
    unsafe fn widen(self, from: *const E::Bits) -> __m512 {
        // SAFETY: sixteen elements are readable (the caller's promise).
        unsafe { FloatVector::widen::<E>(self.0, from) }
    }

    #[inline(always)]
    unsafe fn compress(self, from: *const f32, keep: u32, to: *mut f32) {
        // SAFETY: the token proves the features; sixteen elements are readable and writable (the
        // caller's promise).
        unsafe { _mm512_storeu_ps(to, _mm512_maskz_compress_ps(keep as u16, _mm512_loadu_ps(from))) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m512 {
        // SAFETY: sixteen elements are readable (the caller's promise).
        unsafe { FloatVector::load(self.0, from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, vector: __m512) {
        // SAFETY: sixteen elements are writable (the caller's promise).
        unsafe { FloatVector::store(self.0, to, vector) }
    }

    #[inline(always)]
    fn add(self, sums: __m512, w: __m512, x: __m512) -> __m512 {
        self.0.multiply_add(sums, w, x)
    }
}

/// Bits of which vectors of 32 columns are not all zero.
///
/// # Safety
/// AVX-512 F is there.
#[inline(always)]
unsafe fn used_32(mask: &ChunkMask) -> u64 {
    // SAFETY: the caller's promise; 64 bytes are readable.
    unsafe {
        let mask = _mm512_loadu_si512(mask.as_ptr().cast());
        _mm512_test_epi32_mask(mask, mask) as u64
    }
}

/// float16 and bfloat16 weights, widened to float32 times float32. Those of bfloat16 are taken as
/// the two halves of 32 bits, so that even columns come first in each 32.
#[derive(Clone, Copy)]
pub struct Halves<E>(Avx512, PhantomData<E>);

impl<E> Halves<E> {
    /// The token proves what the methods use.
    pub fn new(token: Avx512) -> Self {
        Halves(token, PhantomData)
    }
}

impl<E: Real> Halves<E> {
    /// Whether columns stay in order.
    const ORDERED: bool = matches!(E::DTYPE, DType::F16);
}

impl<E: Real> Engine for Halves<E> {
    type Weight = E::Bits;
    type Lane = f32;
    type Vector = [__m512; 2];
    type Sums = __m512;
    type Floats = Avx512;
    const LANES: usize = 32;
    const SUMS: usize = 16;
    const PASS: usize = AVX512_PASS;
    const BATCH: usize = 4;
    const COMPRESSED_UP_TO: usize = if Self::ORDERED { Self::PASS } else { 0 };

    #[inline(always)]
    fn place(i: usize) -> usize {
        if !Self::ORDERED { i & !31 | (i & 1) << 4 | (i & 31) >> 1 } else { i }
    }

    #[inline(always)]
    fn floats(self) -> Avx512 {
        self.0
    }

    #[inline(always)]
    fn used(self, mask: &ChunkMask) -> u64 {
        // SAFETY: the token proves the features.
        unsafe { used_32(mask) }
    }

    #[inline(always)]
    unsafe fn expand(self, from: *const E::Bits, keep: u32) -> [__m512; 2] {
        assert!(E::Bits::BYTES == 2);
        // SAFETY: the token proves the features; 32 elements are readable (the caller's promise).
        unsafe {
            let bits = _mm512_mask_expand_epi16(zero(), keep, load_unfused(from));
            if E::DTYPE == DType::F16 {
                let [low, high] = [_mm512_castsi512_si256(bits), _mm512_extracti64x4_epi64::<1>(bits)];
                return [_mm512_cvtph_ps(low), _mm512_cvtph_ps(high)];
            }
            let odd = _mm512_and_si512(bits, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)), _mm512_castsi512_ps(odd)]
        }
    }

    #[inline(always)]
    unsafe fn widen(self, from: *const E::Bits) -> [__m512; 2] {
        // SAFETY: 32 elements are readable (the caller's promise).
        unsafe { [FloatVector::widen::<E>(self.0, from), FloatVector::widen::<E>(self.0, from.add(16))] }
    }

    #[inline(always)]
    unsafe fn compress(self, from: *const f32, keep: u32, to: *mut f32) {
        // SAFETY: the token proves the features; 32 elements are readable and writable (the
        // caller's promise).
        unsafe {
            let (low, high) = (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16)));
            _mm512_storeu_ps(to, _mm512_maskz_compress_ps(keep as u16, low));
            let passed = (keep as u16).count_ones() as usize;
            _mm512_storeu_ps(to.add(passed), _mm512_maskz_compress_ps((keep >> 16) as u16, high));
        }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> [__m512; 2] {
        // SAFETY: the token proves the features; 32 elements are readable (the caller's promise).
        unsafe { [_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16))] }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, [low, high]: [__m512; 2]) {
        // SAFETY: the token proves the features; 32 elements are writable (the caller's promise).
        unsafe {
            _mm512_storeu_ps(to, low);
            _mm512_storeu_ps(to.add(16), high);
        }
    }

    #[inline(always)]
    fn add(self, sums: __m512, w: [__m512; 2], x: [__m512; 2]) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_fmadd_ps(w[1], x[1], _mm512_fmadd_ps(w[0], x[0], sums)) }
    }
}

/// bfloat16 on both sides: each lane adds two products.
#[derive(Clone, Copy)]
pub struct Pairs<E>(Avx512Bf16, PhantomData<E>);

impl<E> Pairs<E> {
    /// The token proves what the methods use.
    pub fn new(token: Avx512Bf16) -> Self {
        Pairs(token, PhantomData)
    }
}

impl<E: Real> Engine for Pairs<E> {
    type Weight = E::Bits;
    type Lane = u16;
    type Vector = __m512i;
    type Sums = __m512;
    type Floats = Avx512;
    const LANES: usize = 32;
    const SUMS: usize = 16;
    const PASS: usize = AVX512_PASS;
    const BATCH: usize = 6;

    #[inline(always)]
    fn floats(self) -> Avx512 {
        self.0.avx512()
    }

    #[inline(always)]
    fn used(self, mask: &ChunkMask) -> u64 {
        // SAFETY: the token proves the features.
        unsafe { used_32(mask) }
    }

    #[inline(always)]
    unsafe fn expand(self, from: *const E::Bits, keep: u32) -> __m512i {
        assert!(E::Bits::BYTES == 2);
        // SAFETY: the token proves the features; 32 elements are readable (the caller's promise).
        unsafe { _mm512_mask_expand_epi16(zero(), keep, load_unfused(from)) }
    }

    #[inline(always)]
    unsafe fn widen(self, from: *const E::Bits) -> __m512i {
        // SAFETY: the token proves the features; 32 elements are readable (the caller's promise).
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn compress(self, from: *const u16, keep: u32, to: *mut u16) {
        // SAFETY: the token proves the features; 32 elements are readable and writable (the
        // caller's promise).
        unsafe { _mm512_storeu_si512(to.cast(), _mm512_maskz_compress_epi16(keep, _mm512_loadu_si512(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const u16) -> __m512i {
        // SAFETY: the token proves the features; 32 elements are readable (the caller's promise).
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u16, vector: __m512i) {
        // SAFETY: the token proves the features; 32 elements are writable (the caller's promise).
        unsafe { _mm512_storeu_si512(to.cast(), vector) }
    }

    #[inline(always)]
    fn add(self, sums: __m512, w: __m512i, x: __m512i) -> __m512 {
        // SAFETY: the token proves the features; a vector of pairs is a vector of bits.
        unsafe {
            let w = std::mem::transmute::<__m512i, __m512bh>(w);
            _mm512_dpbf16_ps(sums, w, std::mem::transmute::<__m512i, __m512bh>(x))
        }
    }

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the token proves the features.
        unsafe { run(kernel) }
    }
}

#[target_feature(enable = "avx2,bmi1,bmi2,fma,f16c,lzcnt,popcnt")]
#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512bf16")]
fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

impl FloatVector for Avx512 {
    type Vector = __m512;
    const LANES: usize = 16;

    #[inline(always)]
    fn zero(self) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    fn splat(self, number: f32) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_set1_ps(number) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m512 {
        // SAFETY: the token proves the features; sixteen numbers are readable (the caller's
        // promise).
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, vector: __m512) {
        // SAFETY: the token proves the features; sixteen numbers are writable (the caller's
        // promise).
        unsafe { _mm512_storeu_ps(to, vector) }
    }

    #[inline(always)]
    unsafe fn widen<E: Real>(self, from: *const E::Bits) -> __m512 {
        // SAFETY: the token proves the features; sixteen elements are readable (the caller's
        // promise).
        unsafe {
            match E::DTYPE {
                DType::F32 => _mm512_loadu_ps(from.cast()),
                DType::F16 => _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())),
                _ => {
                    let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
                }
            }
        }
    }

    #[inline(always)]
    fn multiply_add(self, sums: __m512, w: __m512, x: __m512) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_fmadd_ps(w, x, sums) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn total(self, vector: __m512) -> f32 {
        // SAFETY: the same bits in an array of as many floats.
        fold(unsafe { std::mem::transmute::<__m512, [f32; 16]>(vector) })
    }

    #[inline(always)]
    fn totals(self, [a, b, c, d]: [__m512; 4]) -> [f32; 4] {
        // SAFETY: the token proves the features.
        unsafe {
            // Eight sums of two vectors each, then four of each of the four, which stay in their
            // quarters.
            let ab = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
            let cd = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xee>(c, d));
            let all = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd));
            let all = _mm512_add_ps(all, _mm512_permute_ps::<0x4e>(all));
            let all = _mm512_add_ps(all, _mm512_permute_ps::<0xb1>(all));
            let totals = _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, all));
            std::mem::transmute::<__m128, [f32; 4]>(totals)
        }
    }

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        Isa::Avx512(self).run(kernel)
    }
}

impl SetBits for Avx512 {
    #[inline(always)]
    unsafe fn set_bit_offsets(self, word: u64, first: u16, scale: u16, to: *mut u16) -> usize {
        // SAFETY: the token proves the features; the rest is the caller's promise.
        unsafe { set_bit_offsets(word, first, scale, to) }
    }
}
