//! 64-byte vectors of words of any width.
//!
//! A block is 64 elements, one mask word: `W::BYTES` vectors of `lanes::<W>()` elements. Masks are
//! the low bits of a `u64`; bits after the last lane are ignored.

use std::arch::x86_64::*;

use crate::element::Word;

/// Elements of a vector.
pub(crate) const fn lanes<W: Word>() -> usize {
    64 / W::BYTES
}

/// A zero that the compiler does not know to be one.
///
/// Compress and expand that zero the other lanes wait for the last use of their destination on Zen
/// 4 and 5; the merging forms into this register do not, and the compiler cannot turn them back.
#[target_feature(enable = "avx512f")]
#[inline]
pub(crate) fn zero() -> __m512i {
    let zero;
    // SAFETY: clears one register and touches nothing else; AVX-512 F is enabled here.
    unsafe {
        std::arch::asm!("vpxord {0}, {0}, {0}", out(zmm_reg) zero, options(pure, nomem, nostack, preserves_flags));
    }
    zero
}

/// The elements of `v` selected by `keep`, side by side, zeros after them.
#[target_feature(enable = "avx512f,avx512vbmi2")]
#[inline]
pub(crate) fn compress<W: Word>(zero: __m512i, keep: u64, v: __m512i) -> __m512i {
    match W::BYTES {
        1 => _mm512_mask_compress_epi8(zero, keep, v),
        2 => _mm512_mask_compress_epi16(zero, keep as u32, v),
        4 => _mm512_mask_compress_epi32(zero, keep as u16, v),
        _ => _mm512_mask_compress_epi64(zero, keep as u8, v),
    }
}

/// The first elements of `v` in the lanes selected by `keep`, zeros elsewhere.
#[target_feature(enable = "avx512f,avx512vbmi2")]
#[inline]
pub(crate) fn expand<W: Word>(zero: __m512i, keep: u64, v: __m512i) -> __m512i {
    match W::BYTES {
        1 => _mm512_mask_expand_epi8(zero, keep, v),
        2 => _mm512_mask_expand_epi16(zero, keep as u32, v),
        4 => _mm512_mask_expand_epi32(zero, keep as u16, v),
        _ => _mm512_mask_expand_epi64(zero, keep as u8, v),
    }
}

/// Loads a vector.
///
/// # Safety
/// `from` is valid for reading `lanes::<W>()` elements.
#[target_feature(enable = "avx512f")]
#[inline]
pub(crate) unsafe fn load<W: Word>(from: *const W) -> __m512i {
    // SAFETY: 64 readable bytes (the caller's promise).
    unsafe { _mm512_loadu_si512(from.cast()) }
}

/// Loads 64 bytes into a register, which the compiler cannot fold into the instruction that uses
/// them: with expand from memory linear layers take one and a half to two times as long on Zen 4.
///
/// # Safety
/// `from` is valid for reading 64 bytes.
#[target_feature(enable = "avx512f")]
#[inline]
pub(crate) unsafe fn load_unfused<W: Word>(from: *const W) -> __m512i {
    let loaded;
    // SAFETY: reads 64 bytes, which are there (the caller's promise), into one register; AVX-512 F
    // is enabled here.
    unsafe {
        std::arch::asm!("vmovdqu64 {0}, [{1}]", out(zmm_reg) loaded, in(reg) from,
            options(pure, readonly, nostack, preserves_flags));
    }
    loaded
}

/// Loads the lanes selected by `keep`, zeros elsewhere.
///
/// # Safety
/// `from.add(i)` is valid for reading for every lane `i` selected. Other lanes are not touched: the
/// CPU suppresses their faults.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(crate) unsafe fn load_some<W: Word>(keep: u64, from: *const W) -> __m512i {
    // SAFETY: the selected lanes are readable (the caller's promise).
    unsafe {
        match W::BYTES {
            1 => _mm512_maskz_loadu_epi8(keep, from.cast()),
            2 => _mm512_maskz_loadu_epi16(keep as u32, from.cast()),
            4 => _mm512_maskz_loadu_epi32(keep as u16, from.cast()),
            _ => _mm512_maskz_loadu_epi64(keep as u8, from.cast()),
        }
    }
}

/// Stores a vector, past the caches if `STREAM`.
///
/// # Safety
/// `to` is valid for writing `lanes::<W>()` elements and, if `STREAM`, aligned to 64 bytes.
#[target_feature(enable = "avx512f")]
#[inline]
pub(crate) unsafe fn store<W: Word, const STREAM: bool>(to: *mut W, v: __m512i) {
    // SAFETY: 64 writable bytes, aligned where that matters (the caller's promise).
    unsafe {
        if STREAM {
            _mm512_stream_si512(to.cast(), v);
        } else {
            _mm512_storeu_si512(to.cast(), v);
        }
    }
}

/// Stores the lanes selected by `keep`.
///
/// # Safety
/// `to.add(i)` is valid for writing for every lane `i` selected. Other lanes are not touched.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(crate) unsafe fn store_some<W: Word>(to: *mut W, keep: u64, v: __m512i) {
    // SAFETY: the selected lanes are writable (the caller's promise).
    unsafe {
        match W::BYTES {
            1 => _mm512_mask_storeu_epi8(to.cast(), keep, v),
            2 => _mm512_mask_storeu_epi16(to.cast(), keep as u32, v),
            4 => _mm512_mask_storeu_epi32(to.cast(), keep as u16, v),
            _ => _mm512_mask_storeu_epi64(to.cast(), keep as u8, v),
        }
    }
}
