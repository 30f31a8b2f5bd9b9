//! AVX-512: a block of x lies in registers, from which `vpermi2w` takes 32 words at a time: four of
//! them and three blends look up 32 bfloat16, twice that the halves of 32 float32.
//!
//! A kernel that gathered float32 from the first cache took Zen 4 half as long again as this one.

use std::arch::x86_64::*;

use super::product::totals;
use super::{Column, Group};
use crate::isa::{Avx512, Avx512Bf16};
use crate::linear::Real;
use crate::linear::float::FloatVector;

const ROWS: usize = <u8 as Column>::ROWS;
const SLOTS: usize = u8::SLOTS;
const LEN: usize = u8::LEN;

/// x is float32. The sums of the rows of a group; `None` where steps are missing.
#[target_feature(enable = "avx2,bmi1,bmi2,fma,f16c,lzcnt,popcnt")]
#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2")]
pub fn floats<E: Real>(token: Avx512, group: Group<'_, E::Bits, u8>, x: &[[f32; LEN]]) -> Option<[f32; ROWS]> {
    let Group { values, columns, steps } = group;
    let (mut values, mut columns) = (values.as_chunks::<SLOTS>().0, columns.as_chunks::<SLOTS>().0);
    // Four slots in turn of the first and of the second sixteen: what interleaving the halves puts
    // in order again.
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    let [mut first, mut second, mut other_first, mut other_second] = [_mm512_setzero_ps(); 4];
    for (&steps, x) in steps.iter().zip(x) {
        let (now, now_columns) = (values.split_off(..steps as usize)?, columns.split_off(..steps as usize)?);
        let [low, high] = halves(x);
        for (values, columns) in now.iter().zip(now_columns) {
            // SAFETY: 32 columns are readable.
            let at = unsafe { _mm256_loadu_si256(columns.as_ptr().cast()) };
            let at = _mm512_cvtepu8_epi16(_mm256_permutevar8x32_epi32(at, order));
            let (low, high) = (lookup(&low, at), lookup(&high, at));
            let x_first = _mm512_castsi512_ps(_mm512_unpacklo_epi16(low, high));
            let x_second = _mm512_castsi512_ps(_mm512_unpackhi_epi16(low, high));
            // SAFETY: twice 16 values are readable.
            let (w_first, w_second) =
                unsafe { (token.widen::<E>(values.as_ptr()), token.widen::<E>(values.as_ptr().add(SLOTS / 2))) };
            let sums = (_mm512_fmadd_ps(w_first, x_first, first), _mm512_fmadd_ps(w_second, x_second, second));
            (first, second, other_first, other_second) = (other_first, other_second, sums.0, sums.1);
        }
    }
    let sums = [_mm512_add_ps(first, other_first), _mm512_add_ps(second, other_second)];
    // SAFETY: the same bits.
    Some(totals(unsafe { std::mem::transmute::<[__m512; 2], [f32; SLOTS]>(sums) }))
}

/// The low and the high words of a block.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn halves(x: &[f32; LEN]) -> [[__m512i; 8]; 2] {
    // SAFETY: a block is sixteen vectors.
    let x: [__m512i; 16] = unsafe { std::mem::transmute::<[f32; LEN], [__m512i; 16]>(*x) };
    let words: [u16; 32] = std::array::from_fn(|i| 2 * i as u16);
    // SAFETY: 32 words are a vector.
    let even = unsafe { _mm512_loadu_si512(words.as_ptr().cast()) };
    let odd = _mm512_add_epi16(even, _mm512_set1_epi16(1));
    let mut halves = [[even; 8]; 2];
    for i in 0..8 {
        halves[0][i] = _mm512_permutex2var_epi16(x[2 * i], even, x[2 * i + 1]);
        halves[1][i] = _mm512_permutex2var_epi16(x[2 * i], odd, x[2 * i + 1]);
    }
    halves
}

/// bfloat16 on both sides. A lane of float32 takes both slots of a row.
#[target_feature(enable = "avx2,bmi1,bmi2,fma,f16c,lzcnt,popcnt")]
#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512bf16")]
pub fn pairs<W>(_: Avx512Bf16, group: Group<'_, W, u8>, x: &[[u16; LEN]]) -> Option<[f32; ROWS]> {
    assert!(size_of::<W>() == 2);
    let Group { values, columns, steps } = group;
    let (mut values, mut columns) = (values.as_chunks::<SLOTS>().0, columns.as_chunks::<SLOTS>().0);
    let [mut sums, mut other] = [_mm512_setzero_ps(); 2];
    for (&steps, x) in steps.iter().zip(x) {
        let (now, now_columns) = (values.split_off(..steps as usize)?, columns.split_off(..steps as usize)?);
        // SAFETY: a block is eight vectors.
        let x: [__m512i; 8] = unsafe { std::mem::transmute::<[u16; LEN], [__m512i; 8]>(*x) };
        for (values, columns) in now.iter().zip(now_columns) {
            // SAFETY: 32 values of two bytes and 32 columns are readable; a vector of pairs is a
            // vector of bits.
            let sum = unsafe {
                let at = _mm512_cvtepu8_epi16(_mm256_loadu_si256(columns.as_ptr().cast()));
                let w = std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(values.as_ptr().cast()));
                _mm512_dpbf16_ps(sums, w, std::mem::transmute::<__m512i, __m512bh>(lookup(&x, at)))
            };
            (sums, other) = (other, sum);
        }
    }
    // SAFETY: the same bits.
    Some(unsafe { std::mem::transmute::<__m512, [f32; ROWS]>(_mm512_add_ps(sums, other)) })
}

/// The words of `x` at the indices `at`, up to 255.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn lookup(x: &[__m512i; 8], at: __m512i) -> __m512i {
    // `vpermi2w` looks at six bits of an index; the seventh and eighth choose between its results.
    let seventh = _mm512_movepi16_mask(_mm512_slli_epi16::<9>(at));
    let eighth = _mm512_movepi16_mask(_mm512_slli_epi16::<8>(at));
    let low = _mm512_mask_blend_epi16(
        seventh,
        _mm512_permutex2var_epi16(x[0], at, x[1]),
        _mm512_permutex2var_epi16(x[2], at, x[3]),
    );
    let high = _mm512_mask_blend_epi16(
        seventh,
        _mm512_permutex2var_epi16(x[4], at, x[5]),
        _mm512_permutex2var_epi16(x[6], at, x[7]),
    );
    _mm512_mask_blend_epi16(eighth, low, high)
}
