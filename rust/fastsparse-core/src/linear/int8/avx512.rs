//! AVX-512 VNNI: 64 columns a vector, four products a lane of int32.
//!
//! `vpdpbusd` multiplies unsigned by signed bytes. So 128 is added to every weight, dropped ones
//! included: the lanes that expand does not fill keep the 128 of the vector that it merges into.
//! `128 · Σx` is subtracted from the sum.

use std::arch::x86_64::*;

use super::kernel::{BlockMask, Engine, ROWS};
use crate::isa::{Avx512Vnni, Kernel};
use crate::linear::activations::Block;

/// Weights plus 128, times x.
#[derive(Clone, Copy)]
pub struct Biased(Avx512Vnni);

impl Biased {
    /// The token proves what the methods use.
    pub fn new(token: Avx512Vnni) -> Self {
        Biased(token)
    }
}

/// Flips the top bit of a byte, which adds 128 to a signed one and makes it unsigned.
const FLIP: i8 = i8::MIN;

impl Engine for Biased {
    type Lane = u8;
    type Vectors = __m512i;
    type Sums = __m512i;
    const BATCH: usize = 4;
    const CHUNKS: usize = 4;
    const ADDED: i64 = 128;

    #[inline(always)]
    fn lane(x: u8) -> u8 {
        x
    }

    #[inline(always)]
    fn zero(self) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn expand(self, from: *const u8, keep: &BlockMask, to: &mut Block<u8>) {
        // SAFETY: the token proves the features; 64 bytes are readable (the caller's promise) and
        // writable.
        unsafe {
            let flip = _mm512_set1_epi8(FLIP);
            let values = _mm512_xor_si512(flip, _mm512_loadu_si512(from.cast()));
            let expanded = _mm512_mask_expand_epi8(flip, u64::from_le_bytes(*keep), values);
            _mm512_storeu_si512(to.0.as_mut_ptr().cast(), expanded);
        }
    }

    #[inline(always)]
    fn load(self, from: &Block<u8>) -> __m512i {
        // SAFETY: the token proves the features; 64 readable bytes.
        unsafe { _mm512_loadu_si512(from.0.as_ptr().cast()) }
    }

    #[inline(always)]
    fn add(self, sums: __m512i, w: __m512i, x: __m512i) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe { _mm512_dpbusd_epi32(sums, w, x) }
    }

    #[inline(always)]
    fn totals(self, [a, b, c, d]: [__m512i; ROWS]) -> [i32; ROWS] {
        // SAFETY: the token proves the features.
        unsafe {
            // Eight sums of two vectors each, then four of each of the four, which stay in their
            // quarters.
            let ab = _mm512_add_epi32(_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xee>(a, b));
            let cd = _mm512_add_epi32(_mm512_shuffle_i32x4::<0x44>(c, d), _mm512_shuffle_i32x4::<0xee>(c, d));
            let all = _mm512_add_epi32(_mm512_shuffle_i32x4::<0x88>(ab, cd), _mm512_shuffle_i32x4::<0xdd>(ab, cd));
            let all = _mm512_add_epi32(all, _mm512_shuffle_epi32::<0x4e>(all));
            let all = _mm512_add_epi32(all, _mm512_shuffle_epi32::<0xb1>(all));
            let totals = _mm512_castsi512_si128(_mm512_maskz_compress_epi32(0x1111, all));
            std::mem::transmute::<__m128i, [i32; ROWS]>(totals)
        }
    }

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the token proves the features.
        unsafe { run(kernel) }
    }
}

#[target_feature(enable = "avx2,bmi1,bmi2,fma,f16c,lzcnt,popcnt")]
#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni")]
fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}
