//! Vectors of 32 bytes: AVX2.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::kernel::Work;
use super::vector::Vector;
use crate::element::Word;
use crate::error::Result;
use crate::isa::Avx2;

/// 32 bytes of keys, or of masks, whose lanes are all ones or all zeros. Only the functions that
/// take an [`Avx2`] make the first one.
#[derive(Clone, Copy)]
struct Ymm<W>(__m256i, PhantomData<W>);

/// The intrinsic for the width of `$W`.
macro_rules! vector {
    ($W:ident: $one:expr, $two:expr, $four:expr, $eight:expr) => {
        Ymm(
            // SAFETY: an `Avx2` or a `Ymm` is at hand, which exists only where the CPU runs these;
            // what an intrinsic requires beside stands where it is named.
            unsafe {
                match $W::BYTES {
                    1 => $one,
                    2 => $two,
                    4 => $four,
                    _ => $eight,
                }
            },
            PhantomData,
        )
    };
}

/// Where byte b of each 16 comes from when the keys of each four move by `by`.
const fn rotation(width: usize, by: usize) -> [u8; 32] {
    let mut from = [0; 32];
    let mut b = 0;
    while b < 32 {
        let (key, byte) = (b % 16 / width, b % width);
        from[b] = (((key & !3) + (key + by) % 4) * width + byte) as u8;
        b += 1;
    }
    from
}

static ROTATIONS: [[[u8; 32]; 3]; 2] =
    [[rotation(1, 1), rotation(1, 2), rotation(1, 3)], [rotation(2, 1), rotation(2, 2), rotation(2, 3)]];

impl<W: Word> Ymm<W> {
    /// All ones where `self > other`, for keys of eight bytes: the comparison is a signed one.
    #[inline(always)]
    fn above(self, other: Self) -> __m256i {
        // SAFETY: a vector is at hand.
        unsafe {
            let sign = _mm256_set1_epi64x(i64::MIN);
            _mm256_cmpgt_epi64(_mm256_xor_si256(self.0, sign), _mm256_xor_si256(other.0, sign))
        }
    }
}

impl<W: Word> Vector<W> for Ymm<W> {
    type Proof = Avx2;
    type Mask = Self;
    const LANES: usize = 32 / W::BYTES;
    const PIECE: usize = 16 / W::BYTES;

    #[inline(always)]
    fn splat(_: Avx2, key: W) -> Self {
        let key = key.to_u64();
        vector!(W: _mm256_set1_epi8(key as i8), _mm256_set1_epi16(key as i16), _mm256_set1_epi32(key as i32),
            _mm256_set1_epi64x(key as i64))
    }
    #[inline(always)]
    unsafe fn load(_: Avx2, keys: *const W) -> Self {
        // SAFETY: 32 bytes can be read (the caller's promise), and the proof is at hand.
        Ymm(unsafe { _mm256_loadu_si256(keys.cast()) }, PhantomData)
    }
    #[inline(always)]
    unsafe fn load_some(proof: Avx2, keys: *const W, count: usize) -> Self {
        let mut lanes = [W::default(); 32];
        // SAFETY: `count` keys can be read (the caller's promise) and are fewer than 32; the array
        // holds a vector.
        unsafe {
            std::ptr::copy_nonoverlapping(keys.cast::<u8>(), lanes.as_mut_ptr().cast(), count.min(32) * W::BYTES);
            Self::load(proof, lanes.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn load_pieces(_: Avx2, keys: *const W, starts: &[usize; 64], p: usize) -> Self {
        // SAFETY: both pieces can be read (the caller's promise), and the proof is at hand.
        unsafe {
            let piece = |q: usize| _mm_loadu_si128(keys.add(starts[q * Self::PIECE + p]).cast());
            Ymm(_mm256_inserti128_si256::<1>(_mm256_castsi128_si256(piece(0)), piece(1)), PhantomData)
        }
    }
    #[inline(always)]
    fn prefetch(keys: *const W) {
        // SAFETY: a hint, valid for any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(keys.cast()) };
    }
    #[inline(always)]
    fn store(self, out: &mut [W; 64]) {
        // SAFETY: `out` has at least 32 bytes; a vector is at hand.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), self.0) };
    }

    #[inline(always)]
    fn and(self, other: Self) -> Self {
        // SAFETY: a vector is at hand.
        Ymm(unsafe { _mm256_and_si256(self.0, other.0) }, PhantomData)
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        let (a, b) = (self.0, other.0);
        vector!(W: _mm256_add_epi8(a, b), _mm256_add_epi16(a, b), _mm256_add_epi32(a, b), _mm256_add_epi64(a, b))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        let (a, b) = (self.0, other.0);
        vector!(W: _mm256_sub_epi8(a, b), _mm256_sub_epi16(a, b), _mm256_sub_epi32(a, b), _mm256_sub_epi64(a, b))
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        let (a, b) = (self.0, other.0);
        vector!(W: _mm256_min_epu8(a, b), _mm256_min_epu16(a, b), _mm256_min_epu32(a, b),
            _mm256_blendv_epi8(a, b, self.above(other)))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        let (a, b) = (self.0, other.0);
        vector!(W: _mm256_max_epu8(a, b), _mm256_max_epu16(a, b), _mm256_max_epu32(a, b),
            _mm256_blendv_epi8(b, a, self.above(other)))
    }
    #[inline(always)]
    fn interleave_low(self, other: Self) -> Self {
        let (a, b) = (self.0, other.0);
        vector!(W: _mm256_unpacklo_epi8(a, b), _mm256_unpacklo_epi16(a, b), _mm256_unpacklo_epi32(a, b),
            _mm256_unpacklo_epi64(a, b))
    }
    #[inline(always)]
    fn interleave_high(self, other: Self) -> Self {
        let (a, b) = (self.0, other.0);
        vector!(W: _mm256_unpackhi_epi8(a, b), _mm256_unpackhi_epi16(a, b), _mm256_unpackhi_epi32(a, b),
            _mm256_unpackhi_epi64(a, b))
    }
    #[inline(always)]
    fn rotate4(self, by: usize) -> Self {
        let v = self.0;
        if W::BYTES < 4 {
            let from = &ROTATIONS[W::BYTES - 1][by - 1];
            // SAFETY: `from` has 32 bytes; a vector is at hand.
            return Ymm(unsafe { _mm256_shuffle_epi8(v, _mm256_loadu_si256(from.as_ptr().cast())) }, PhantomData);
        }
        // SAFETY: a vector is at hand.
        let rotated = unsafe {
            match (W::BYTES, by) {
                (4, 1) => _mm256_shuffle_epi32::<0b00_11_10_01>(v),
                (4, 2) => _mm256_shuffle_epi32::<0b01_00_11_10>(v),
                (4, _) => _mm256_shuffle_epi32::<0b10_01_00_11>(v),
                (_, 1) => _mm256_permute4x64_epi64::<0b00_11_10_01>(v),
                (_, 2) => _mm256_permute4x64_epi64::<0b01_00_11_10>(v),
                (_, _) => _mm256_permute4x64_epi64::<0b10_01_00_11>(v),
            }
        };
        Ymm(rotated, PhantomData)
    }

    #[inline(always)]
    fn ge(self, other: Self) -> Self {
        if W::BYTES < 8 {
            // There is no unsigned comparison for the narrow ones, but a maximum.
            return self.max(other).equal(self);
        }
        // SAFETY: a vector is at hand.
        Ymm(unsafe { _mm256_xor_si256(other.above(self), _mm256_set1_epi64x(-1)) }, PhantomData)
    }
    #[inline(always)]
    fn equal(self, other: Self) -> Self {
        let (a, b) = (self.0, other.0);
        vector!(W: _mm256_cmpeq_epi8(a, b), _mm256_cmpeq_epi16(a, b), _mm256_cmpeq_epi32(a, b),
            _mm256_cmpeq_epi64(a, b))
    }
    #[inline(always)]
    fn nonzero_where(self, mask: Self) -> Self {
        // SAFETY: a vector is at hand.
        let zero = Ymm(unsafe { _mm256_setzero_si256() }, PhantomData);
        Self::without(mask, self.equal(zero))
    }
    #[inline(always)]
    fn increment(self, mask: Self) -> Self {
        self.sub(mask)
    }
    #[inline(always)]
    fn decrement(self, mask: Self) -> Self {
        self.add(mask)
    }
    #[inline(always)]
    fn shift_in(self, mask: Self) -> Self {
        self.add(self).sub(mask)
    }

    #[inline(always)]
    fn both(a: Self, b: Self) -> Self {
        a.and(b)
    }
    #[inline(always)]
    fn either(a: Self, b: Self) -> Self {
        // SAFETY: a vector is at hand.
        Ymm(unsafe { _mm256_or_si256(a.0, b.0) }, PhantomData)
    }
    #[inline(always)]
    fn without(a: Self, b: Self) -> Self {
        // SAFETY: a vector is at hand.
        Ymm(unsafe { _mm256_andnot_si256(b.0, a.0) }, PhantomData)
    }
    #[inline(always)]
    fn bits(mask: Self) -> u64 {
        let m = mask.0;
        // SAFETY: a vector is at hand.
        unsafe {
            match W::BYTES {
                1 => _mm256_movemask_epi8(m) as u32 as u64,
                2 => {
                    // A byte a lane: the lanes of each half in the lower eight bytes of it.
                    let halves = _mm256_movemask_epi8(_mm256_packs_epi16(m, _mm256_setzero_si256())) as u64;
                    halves & 0xff | halves >> 8 & 0xff00
                }
                4 => _mm256_movemask_ps(_mm256_castsi256_ps(m)) as u64,
                _ => _mm256_movemask_pd(_mm256_castsi256_pd(m)) as u64,
            }
        }
    }
    #[inline(always)]
    fn bits_of_two(a: Self, b: Self) -> u64 {
        if W::BYTES != 2 {
            return Self::bits(a) | Self::bits(b) << Self::LANES;
        }
        // SAFETY: vectors are at hand.
        unsafe {
            let bytes = _mm256_packs_epi16(a.0, b.0);
            _mm256_movemask_epi8(_mm256_permute4x64_epi64::<0b11_01_10_00>(bytes)) as u32 as u64
        }
    }
}

/// Unit `i` of the work; the largest key seen.
///
/// # Safety
/// The unit does not run elsewhere at the same time.
#[target_feature(enable = "avx2,bmi1,bmi2,fma,f16c,lzcnt,popcnt")]
pub(super) unsafe fn unit<W: Word>(proof: Avx2, work: &Work<W>, i: usize) -> Result<W> {
    // SAFETY: the caller's promise.
    unsafe { work.unit::<Ymm<W>>(proof, i) }
}
