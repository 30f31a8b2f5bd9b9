//! Vectors of eight.

use std::arch::x86_64::*;

use super::sweep::{Tile, Work, rows};
use super::vector::Vector;
use crate::error::Result;
use crate::isa::Avx2;

/// Eight numbers. Only the functions that take an [`Avx2`] make the first one.
#[derive(Clone, Copy)]
struct Ymm(__m256);

/// An expression of intrinsics.
macro_rules! avx2 {
    ($e:expr) => {
        // SAFETY: an `Avx2` or a `Ymm` is at hand, which exists only where the CPU runs these;
        // nothing else is required.
        unsafe { $e }
    };
}

/// Bit l of lane l.
const BITS: [i32; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// In each 16 bytes, four by four numbers change rows with columns.
#[inline(always)]
fn transpose([a, b, c, d]: [Ymm; 4]) -> [Ymm; 4] {
    avx2!({
        let (ab_low, ab_high) = (_mm256_unpacklo_ps(a.0, b.0), _mm256_unpackhi_ps(a.0, b.0));
        let (cd_low, cd_high) = (_mm256_unpacklo_ps(c.0, d.0), _mm256_unpackhi_ps(c.0, d.0));
        [
            Ymm(_mm256_shuffle_ps::<0b01_00_01_00>(ab_low, cd_low)),
            Ymm(_mm256_shuffle_ps::<0b11_10_11_10>(ab_low, cd_low)),
            Ymm(_mm256_shuffle_ps::<0b01_00_01_00>(ab_high, cd_high)),
            Ymm(_mm256_shuffle_ps::<0b11_10_11_10>(ab_high, cd_high)),
        ]
    })
}

impl Vector for Ymm {
    type Proof = Avx2;
    const LANES: usize = 8;

    #[inline(always)]
    fn splat(_: Avx2, number: f32) -> Self {
        avx2!(Ymm(_mm256_set1_ps(number)))
    }
    #[inline(always)]
    fn load(_: Avx2, from: &[f32]) -> Self {
        let from = &from[..8];
        avx2!(Ymm(_mm256_loadu_ps(from.as_ptr())))
    }
    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        let to = &mut to[..8];
        avx2!(_mm256_storeu_ps(to.as_mut_ptr(), self.0));
    }
    #[inline(always)]
    unsafe fn load_columns(_: Avx2, from: *const f32, stride: usize) -> [Self; 4] {
        let mut side_by_side = [avx2!(Ymm(_mm256_setzero_ps())); 4];
        for (l, vector) in side_by_side.iter_mut().enumerate() {
            // SAFETY: rows l and l + 4, as the caller promises.
            unsafe {
                let row = from.add(l * stride);
                let low = _mm256_castps128_ps256(_mm_loadu_ps(row));
                *vector = Ymm(_mm256_insertf128_ps::<1>(low, _mm_loadu_ps(row.add(4 * stride))));
            }
        }
        transpose(side_by_side)
    }
    #[inline(always)]
    unsafe fn store_columns(columns: [Self; 4], to: *mut f32, stride: usize) {
        for (l, rows) in transpose(columns).iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                _mm_storeu_ps(to.add(l * stride), _mm256_castps256_ps128(rows.0));
                _mm_storeu_ps(to.add((l + 4) * stride), _mm256_extractf128_ps::<1>(rows.0));
            }
        }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        avx2!(Ymm(_mm256_add_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        avx2!(Ymm(_mm256_sub_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        avx2!(Ymm(_mm256_mul_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn abs(self) -> Self {
        avx2!(Ymm(_mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0)))
    }
    #[inline(always)]
    fn below(self, other: Self) -> u32 {
        avx2!(_mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(self.0, other.0)) as u32)
    }
    #[inline(always)]
    fn pick(self, lanes: u32) -> Self {
        avx2!({
            let bits = _mm256_loadu_si256(BITS.as_ptr().cast());
            let chosen = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(lanes as i32), bits), bits);
            Ymm(_mm256_and_ps(self.0, _mm256_castsi256_ps(chosen)))
        })
    }
}

/// Prunes some rows.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) fn prune(proof: Avx2, work: &Work<'_>, tile: &mut Tile, weights: &mut [f32], bits: &mut [u8]) -> Result<()> {
    rows::<Ymm, 4>(proof, work, tile, weights, bits)
}
