//! Vectors of 64 bytes: AVX-512 with BW and VBMI.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::kernel::Work;
use super::vector::Vector;
use crate::element::Word;
use crate::error::Result;
use crate::isa::Avx512;

/// 64 bytes of keys. Only the functions that take an [`Avx512`] make the first one.
#[derive(Clone, Copy)]
struct Zmm<W>(__m512i, PhantomData<W>);

/// The intrinsic for the width of `$W`, as a vector.
macro_rules! vector {
    ($W:ident: $one:expr, $two:expr, $four:expr, $eight:expr) => {
        Zmm(
            // SAFETY: an `Avx512` or a `Zmm` is at hand, which exists only where the CPU runs
            // these; what an intrinsic requires beside stands where it is named.
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

/// The intrinsic for the width of `$W`, as a mask.
macro_rules! mask {
    ($W:ident: $one:expr, $two:expr, $four:expr, $eight:expr) => {
        // SAFETY: as for vectors.
        unsafe {
            match $W::BYTES {
                1 => $one,
                2 => $two as u64,
                4 => $four as u64,
                _ => $eight as u64,
            }
        }
    };
}

/// Where byte b of each 16 comes from when the keys of each four move by `by`.
const fn rotation(width: usize, by: usize) -> [u8; 64] {
    let mut from = [0; 64];
    let mut b = 0;
    while b < 64 {
        let (key, byte) = (b % 16 / width, b % width);
        from[b] = (((key & !3) + (key + by) % 4) * width + byte) as u8;
        b += 1;
    }
    from
}

static ROTATIONS: [[[u8; 64]; 3]; 2] =
    [[rotation(1, 1), rotation(1, 2), rotation(1, 3)], [rotation(2, 1), rotation(2, 2), rotation(2, 3)]];

impl<W: Word> Vector<W> for Zmm<W> {
    type Proof = Avx512;
    type Mask = u64;
    const LANES: usize = 64 / W::BYTES;
    const PIECE: usize = 16 / W::BYTES;

    #[inline(always)]
    fn splat(_: Avx512, key: W) -> Self {
        let key = key.to_u64();
        vector!(W: _mm512_set1_epi8(key as i8), _mm512_set1_epi16(key as i16), _mm512_set1_epi32(key as i32),
            _mm512_set1_epi64(key as i64))
    }
    #[inline(always)]
    unsafe fn load(_: Avx512, keys: *const W) -> Self {
        // SAFETY: 64 bytes can be read (the caller's promise), and the proof is at hand.
        Zmm(unsafe { _mm512_loadu_si512(keys.cast()) }, PhantomData)
    }
    #[inline(always)]
    unsafe fn load_some(_: Avx512, keys: *const W, count: usize) -> Self {
        let lanes = (1u64 << count) - 1;
        // The caller's promise covers the lanes that are read; a masked load touches no others.
        vector!(W: _mm512_maskz_loadu_epi8(lanes, keys.cast()), _mm512_maskz_loadu_epi16(lanes as u32, keys.cast()),
            _mm512_maskz_loadu_epi32(lanes as u16, keys.cast()), _mm512_maskz_loadu_epi64(lanes as u8, keys.cast()))
    }
    #[inline(always)]
    unsafe fn load_pieces(_: Avx512, keys: *const W, starts: &[usize; 64], p: usize) -> Self {
        // SAFETY: the four pieces can be read (the caller's promise), and the proof is at hand.
        unsafe {
            let piece = |q: usize| _mm_loadu_si128(keys.add(starts[q * Self::PIECE + p]).cast());
            let low = _mm512_castsi128_si512(piece(0));
            let low = _mm512_inserti32x4::<1>(low, piece(1));
            let low = _mm512_inserti32x4::<2>(low, piece(2));
            Zmm(_mm512_inserti32x4::<3>(low, piece(3)), PhantomData)
        }
    }
    #[inline(always)]
    fn prefetch(keys: *const W) {
        // SAFETY: a hint, valid for any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(keys.cast()) };
    }
    #[inline(always)]
    fn store(self, out: &mut [W; 64]) {
        // SAFETY: `out` has at least 64 bytes; a vector is at hand.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), self.0) };
    }

    #[inline(always)]
    fn and(self, other: Self) -> Self {
        // SAFETY: a vector is at hand.
        Zmm(unsafe { _mm512_and_si512(self.0, other.0) }, PhantomData)
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        let (a, b) = (self.0, other.0);
        vector!(W: _mm512_add_epi8(a, b), _mm512_add_epi16(a, b), _mm512_add_epi32(a, b), _mm512_add_epi64(a, b))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        let (a, b) = (self.0, other.0);
        vector!(W: _mm512_sub_epi8(a, b), _mm512_sub_epi16(a, b), _mm512_sub_epi32(a, b), _mm512_sub_epi64(a, b))
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        let (a, b) = (self.0, other.0);
        vector!(W: _mm512_min_epu8(a, b), _mm512_min_epu16(a, b), _mm512_min_epu32(a, b), _mm512_min_epu64(a, b))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        let (a, b) = (self.0, other.0);
        vector!(W: _mm512_max_epu8(a, b), _mm512_max_epu16(a, b), _mm512_max_epu32(a, b), _mm512_max_epu64(a, b))
    }
    #[inline(always)]
    fn interleave_low(self, other: Self) -> Self {
        let (a, b) = (self.0, other.0);
        vector!(W: _mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi16(a, b), _mm512_unpacklo_epi32(a, b),
            _mm512_unpacklo_epi64(a, b))
    }
    #[inline(always)]
    fn interleave_high(self, other: Self) -> Self {
        let (a, b) = (self.0, other.0);
        vector!(W: _mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi16(a, b), _mm512_unpackhi_epi32(a, b),
            _mm512_unpackhi_epi64(a, b))
    }
    #[inline(always)]
    fn rotate4(self, by: usize) -> Self {
        let v = self.0;
        if W::BYTES < 4 {
            let from = &ROTATIONS[W::BYTES - 1][by - 1];
            // SAFETY: `from` has 64 bytes; a vector is at hand.
            return Zmm(unsafe { _mm512_shuffle_epi8(v, _mm512_loadu_si512(from.as_ptr().cast())) }, PhantomData);
        }
        // SAFETY: a vector is at hand.
        let rotated = unsafe {
            match (W::BYTES, by) {
                (4, 1) => _mm512_shuffle_epi32::<0b00_11_10_01>(v),
                (4, 2) => _mm512_shuffle_epi32::<0b01_00_11_10>(v),
                (4, _) => _mm512_shuffle_epi32::<0b10_01_00_11>(v),
                (_, 1) => _mm512_permutex_epi64::<0b00_11_10_01>(v),
                (_, 2) => _mm512_permutex_epi64::<0b01_00_11_10>(v),
                (_, _) => _mm512_permutex_epi64::<0b10_01_00_11>(v),
            }
        };
        Zmm(rotated, PhantomData)
    }

    #[inline(always)]
    fn ge(self, other: Self) -> u64 {
        let (a, b) = (self.0, other.0);
        mask!(W: _mm512_cmpge_epu8_mask(a, b), _mm512_cmpge_epu16_mask(a, b), _mm512_cmpge_epu32_mask(a, b),
            _mm512_cmpge_epu64_mask(a, b))
    }
    #[inline(always)]
    fn equal(self, other: Self) -> u64 {
        let (a, b) = (self.0, other.0);
        mask!(W: _mm512_cmpeq_epu8_mask(a, b), _mm512_cmpeq_epu16_mask(a, b), _mm512_cmpeq_epu32_mask(a, b),
            _mm512_cmpeq_epu64_mask(a, b))
    }
    #[inline(always)]
    fn nonzero_where(self, mask: u64) -> u64 {
        let v = self.0;
        mask!(W: _mm512_mask_test_epi8_mask(mask, v, v), _mm512_mask_test_epi16_mask(mask as u32, v, v),
            _mm512_mask_test_epi32_mask(mask as u16, v, v), _mm512_mask_test_epi64_mask(mask as u8, v, v))
    }
    #[inline(always)]
    fn increment(self, mask: u64) -> Self {
        let v = self.0;
        vector!(W: _mm512_mask_sub_epi8(v, mask, v, _mm512_set1_epi8(-1)),
            _mm512_mask_sub_epi16(v, mask as u32, v, _mm512_set1_epi16(-1)),
            _mm512_mask_sub_epi32(v, mask as u16, v, _mm512_set1_epi32(-1)),
            _mm512_mask_sub_epi64(v, mask as u8, v, _mm512_set1_epi64(-1)))
    }
    #[inline(always)]
    fn decrement(self, mask: u64) -> Self {
        let v = self.0;
        vector!(W: _mm512_mask_add_epi8(v, mask, v, _mm512_set1_epi8(-1)),
            _mm512_mask_add_epi16(v, mask as u32, v, _mm512_set1_epi16(-1)),
            _mm512_mask_add_epi32(v, mask as u16, v, _mm512_set1_epi32(-1)),
            _mm512_mask_add_epi64(v, mask as u8, v, _mm512_set1_epi64(-1)))
    }
    #[inline(always)]
    fn shift_in(self, mask: u64) -> Self {
        self.add(self).increment(mask)
    }

    #[inline(always)]
    fn both(a: u64, b: u64) -> u64 {
        a & b
    }
    #[inline(always)]
    fn either(a: u64, b: u64) -> u64 {
        a | b
    }
    #[inline(always)]
    fn without(a: u64, b: u64) -> u64 {
        a & !b
    }
    #[inline(always)]
    fn bits(mask: u64) -> u64 {
        mask
    }
}

/// Unit `i` of the work; the largest key seen.
///
/// # Safety
/// The unit does not run elsewhere at the same time.
#[target_feature(
    enable = "avx2,bmi1,bmi2,fma,f16c,lzcnt,popcnt,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2"
)]
pub(super) unsafe fn unit<W: Word>(proof: Avx512, work: &Work<W>, i: usize) -> Result<W> {
    // SAFETY: the caller's promise.
    unsafe { work.unit::<Zmm<W>>(proof, i) }
}
