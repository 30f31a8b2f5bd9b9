//! Vectors of sixteen.

use std::arch::x86_64::*;

use super::sweep::{Tile, Work, rows};
use super::vector::Vector;
use crate::error::Result;
use crate::isa::Avx512;

/// Sixteen numbers. Only the functions that take an [`Avx512`] make the first one.
#[derive(Clone, Copy)]
struct Zmm(__m512);

/// An expression of intrinsics.
macro_rules! avx512 {
    ($e:expr) => {
        // SAFETY: an `Avx512` or a `Zmm` is at hand, which exists only where the CPU runs these;
        // nothing else is required.
        unsafe { $e }
    };
}

/// In each 16 bytes, four by four numbers change rows with columns.
#[inline(always)]
fn transpose([a, b, c, d]: [Zmm; 4]) -> [Zmm; 4] {
    avx512!({
        let (ab_low, ab_high) = (_mm512_unpacklo_ps(a.0, b.0), _mm512_unpackhi_ps(a.0, b.0));
        let (cd_low, cd_high) = (_mm512_unpacklo_ps(c.0, d.0), _mm512_unpackhi_ps(c.0, d.0));
        [
            Zmm(_mm512_shuffle_ps::<0b01_00_01_00>(ab_low, cd_low)),
            Zmm(_mm512_shuffle_ps::<0b11_10_11_10>(ab_low, cd_low)),
            Zmm(_mm512_shuffle_ps::<0b01_00_01_00>(ab_high, cd_high)),
            Zmm(_mm512_shuffle_ps::<0b11_10_11_10>(ab_high, cd_high)),
        ]
    })
}

impl Vector for Zmm {
    type Proof = Avx512;
    const LANES: usize = 16;

    #[inline(always)]
    fn splat(_: Avx512, number: f32) -> Self {
        avx512!(Zmm(_mm512_set1_ps(number)))
    }
    #[inline(always)]
    fn load(_: Avx512, from: &[f32]) -> Self {
        let from = &from[..16];
        avx512!(Zmm(_mm512_loadu_ps(from.as_ptr())))
    }
    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        let to = &mut to[..16];
        avx512!(_mm512_storeu_ps(to.as_mut_ptr(), self.0));
    }
    #[inline(always)]
    unsafe fn load_columns(_: Avx512, from: *const f32, stride: usize) -> [Self; 4] {
        let mut side_by_side = [avx512!(Zmm(_mm512_setzero_ps())); 4];
        for (l, vector) in side_by_side.iter_mut().enumerate() {
            // SAFETY: rows l, l + 4, l + 8 and l + 12, as the caller promises.
            unsafe {
                let row = from.add(l * stride);
                let rows = _mm512_castps128_ps512(_mm_loadu_ps(row));
                let rows = _mm512_insertf32x4::<1>(rows, _mm_loadu_ps(row.add(4 * stride)));
                let rows = _mm512_insertf32x4::<2>(rows, _mm_loadu_ps(row.add(8 * stride)));
                *vector = Zmm(_mm512_insertf32x4::<3>(rows, _mm_loadu_ps(row.add(12 * stride))));
            }
        }
        transpose(side_by_side)
    }
    #[inline(always)]
    unsafe fn store_columns(columns: [Self; 4], to: *mut f32, stride: usize) {
        for (l, rows) in transpose(columns).iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                _mm_storeu_ps(to.add(l * stride), _mm512_castps512_ps128(rows.0));
                _mm_storeu_ps(to.add((l + 4) * stride), _mm512_extractf32x4_ps::<1>(rows.0));
                _mm_storeu_ps(to.add((l + 8) * stride), _mm512_extractf32x4_ps::<2>(rows.0));
                _mm_storeu_ps(to.add((l + 12) * stride), _mm512_extractf32x4_ps::<3>(rows.0));
            }
        }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        avx512!(Zmm(_mm512_add_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        avx512!(Zmm(_mm512_sub_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        avx512!(Zmm(_mm512_mul_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn abs(self) -> Self {
        avx512!(Zmm(_mm512_abs_ps(self.0)))
    }
    #[inline(always)]
    fn below(self, other: Self) -> u32 {
        avx512!(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, other.0) as u32)
    }
    #[inline(always)]
    fn pick(self, lanes: u32) -> Self {
        avx512!(Zmm(_mm512_maskz_mov_ps(lanes as u16, self.0)))
    }
}

/// Prunes some rows.
#[target_feature(
    enable = "avx2,bmi1,bmi2,fma,f16c,lzcnt,popcnt,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2"
)]
pub(super) fn prune(
    proof: Avx512,
    work: &Work<'_>,
    tile: &mut Tile,
    weights: &mut [f32],
    bits: &mut [u8],
) -> Result<()> {
    rows::<Zmm, 8>(proof, work, tile, weights, bits)
}
