//! Compress, expand and masks as vectors, for elements of any width.
//!
//! AVX2 has no compress: a table indexed by eight mask bits holds the shuffle, applied by `vpermd`
//! to 32-bit lanes (two of which make a 64-bit one) and by `pshufb` to bytes.

use std::arch::asm;
use std::arch::x86_64::*;

use crate::element::Word;

/// An index whose lane becomes zero: `pshufb` looks at the top bit of a byte, `vblendvps` at that
/// of a 32-bit lane.
const ZERO: u8 = 0x80;

/// An entry for each eight mask bits. Aligned, so that none lies across two cache lines.
#[repr(C, align(64))]
pub(crate) struct Table<const N: usize>(pub(crate) [[u8; N]; 256]);

/// For eight mask bits, where the selected elements are: the k-th byte is the place of the k-th set
/// bit.
static COMPRESS: Table<8> = Table(compress_table());

/// For eight mask bits, where each lane's element comes from: the number of set bits below it, or
/// [`ZERO`].
static EXPAND: Table<8> = Table(expand_table());

/// [`EXPAND`] for elements that lie eight bytes later.
static EXPAND_UPPER: Table<8> = {
    let mut table = expand_table();
    let mut i = 0;
    while i < 256 * 8 {
        let from = &mut table[i / 8][i % 8];
        if *from != ZERO {
            *from += 8;
        }
        i += 1;
    }
    Table(table)
};

/// [`COMPRESS`] and [`EXPAND`] for two-byte elements, as bytes.
static COMPRESS_PAIRS: Table<16> = Table(in_bytes(&compress_table()));
pub(crate) static EXPAND_PAIRS: Table<16> = Table(in_bytes(&expand_table()));

/// For eight mask bits, where the bytes of each 32-bit lane come from, or [`ZERO`]: the upper four
/// begin again, as those of a load of their own.
pub(crate) static EXPAND_QUADS: Table<32> = Table(in_quads(4, true));

/// The same where the upper four go on, for four bits at most.
pub(crate) static EXPAND_AT_MOST_HALF: Table<32> = Table(in_quads(4, false));

/// The same for two-byte elements, which become the upper half of a lane.
pub(crate) static EXPAND_UPPER_PAIRS: Table<32> = Table(in_quads(2, false));

/// For elements of `width` bytes that end where the lane ends.
const fn in_quads(width: usize, again: bool) -> [[u8; 32]; 256] {
    let table = expand_table();
    let mut bytes = [[ZERO; 32]; 256];
    let mut i = 0;
    while i < 256 * 32 {
        let (bits, lane, byte) = (i / 32, i % 32 / 4, i % 4);
        let from = if again && lane >= 4 { table[bits >> 4][lane - 4] } else { table[bits][lane] } as usize;
        if from < 16 / width && byte >= 4 - width {
            bytes[bits][i % 32] = (width * from + byte + width - 4) as u8;
        }
        i += 1;
    }
    bytes
}

const fn compress_table() -> [[u8; 8]; 256] {
    let mut table = [[ZERO; 8]; 256];
    let mut bits = 0;
    while bits < 256 {
        let (mut lane, mut found) = (0, 0);
        while lane < 8 {
            if bits >> lane & 1 == 1 {
                table[bits][found] = lane;
                found += 1;
            }
            lane += 1;
        }
        bits += 1;
    }
    table
}

const fn expand_table() -> [[u8; 8]; 256] {
    let mut table = [[ZERO; 8]; 256];
    let mut bits = 0;
    while bits < 256 {
        let (mut lane, mut found) = (0, 0);
        while lane < 8 {
            if bits >> lane & 1 == 1 {
                table[bits][lane] = found;
                found += 1;
            }
            lane += 1;
        }
        bits += 1;
    }
    table
}

const fn in_bytes(table: &[[u8; 8]; 256]) -> [[u8; 16]; 256] {
    let mut bytes = [[ZERO; 16]; 256];
    let mut bits = 0;
    while bits < 256 {
        let mut lane = 0;
        while lane < 8 {
            let from = table[bits][lane];
            if from != ZERO {
                bytes[bits][2 * lane] = 2 * from;
                bytes[bits][2 * lane + 1] = 2 * from + 1;
            }
            lane += 1;
        }
        bits += 1;
    }
    bytes
}

/// The eight indices of a table entry, sign-extended to 32 bits.
#[target_feature(enable = "avx2")]
#[inline]
fn indices(entry: &[u8; 8]) -> __m256i {
    _mm256_cvtepi8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(*entry)))
}

/// Four mask bits as eight, each doubled: 64-bit lanes as pairs of 32-bit ones.
#[inline]
fn doubled(nibble: u8) -> usize {
    const TABLE: [u8; 16] = {
        let mut table = [0; 16];
        let mut bits = 0;
        while bits < 16 {
            let mut lane = 0;
            while lane < 4 {
                table[bits] |= ((bits as u8 >> lane & 1) * 3) << (2 * lane);
                lane += 1;
            }
            bits += 1;
        }
        table
    };
    TABLE[nibble as usize & 15] as usize
}

/// Loads 32 bytes into a register, which the compiler cannot fold into the instruction that uses
/// them: on Zen 3 `vpermd` takes two cycles where it loads what it permutes, and one where that is
/// in a register.
///
/// # Safety
/// `from` is valid for reading 32 bytes.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn load_unfused(from: *const u8) -> __m256i {
    // SAFETY: 32 readable bytes (the caller's promise).
    _mm256_castps_si256(opt_barrier(unsafe { _mm256_loadu_ps(from.cast()) }))
}

/// Writes the elements among `from[0..8]` that `keep` selects to `to`, side by side; what follows
/// them there, up to eight elements in all, is overwritten.
///
/// # Safety
/// `from` is valid for reading and `to` for writing eight elements.
#[target_feature(enable = "avx2,popcnt")]
#[inline]
pub(crate) unsafe fn compress<W: Word>(from: *const W, keep: u8, to: *mut W) {
    // SAFETY: eight elements are readable at `from` and writable at `to` (the caller's promise).
    // For eight-byte elements the second store begins at most four elements in and writes four.
    unsafe {
        match W::BYTES {
            1 => {
                let entry = _mm_cvtsi64_si128(i64::from_le_bytes(COMPRESS.0[keep as usize]));
                _mm_storel_epi64(to.cast(), _mm_shuffle_epi8(_mm_loadl_epi64(from.cast()), entry));
            }
            2 => {
                let entry = _mm_loadu_si128(COMPRESS_PAIRS.0[keep as usize].as_ptr().cast());
                _mm_storeu_si128(to.cast(), _mm_shuffle_epi8(_mm_loadu_si128(from.cast()), entry));
            }
            4 => {
                let v = load_unfused(from.cast());
                let packed = _mm256_permutevar8x32_epi32(v, indices(&COMPRESS.0[keep as usize]));
                _mm256_storeu_si256(to.cast(), packed);
            }
            _ => {
                let (low, high) = (load_unfused(from.cast()), load_unfused(from.add(4).cast()));
                let low = _mm256_permutevar8x32_epi32(low, indices(&COMPRESS.0[doubled(keep)]));
                let high = _mm256_permutevar8x32_epi32(high, indices(&COMPRESS.0[doubled(keep >> 4)]));
                _mm256_storeu_si256(to.cast(), low);
                _mm256_storeu_si256(to.add((keep & 15).count_ones() as usize).cast(), high);
            }
        }
    }
}

/// Writes `(first + i) * scale` for each set bit `i` of the word, side by side, and something
/// after them, up to seven numbers. Returns the number of bits.
///
/// # Safety
/// `to` is valid for writing that many numbers and eight.
#[target_feature(enable = "avx2,popcnt")]
#[inline]
pub(crate) unsafe fn set_bit_offsets(word: u64, first: u16, scale: u16, to: *mut u16) -> usize {
    let mut base = _mm_set1_epi16(first.wrapping_mul(scale) as i16);
    let (scales, step) = (_mm_set1_epi16(scale as i16), _mm_set1_epi16(scale.wrapping_mul(8) as i16));
    let mut count = 0;
    for mask in word.to_le_bytes() {
        let places = _mm_cvtepu8_epi16(_mm_cvtsi64_si128(i64::from_le_bytes(COMPRESS.0[mask as usize])));
        // SAFETY: no more than the bits of the word are before these eight numbers (the caller's
        // promise).
        unsafe { _mm_storeu_si128(to.add(count).cast(), _mm_add_epi16(_mm_mullo_epi16(places, scales), base)) };
        base = _mm_add_epi16(base, step);
        count += mask.count_ones() as usize;
    }
    count
}

/// Writes sixteen elements to `to`: the next of `from` where `keep` has a bit, zero elsewhere; past
/// the caches if `STREAM`.
///
/// Sixteen, so that no store is shorter than 16 bytes: streaming single bytes eight at a time takes
/// twice as long on Zen 4.
///
/// # Safety
/// `from` and `from.add(bits in the low half of keep)` are valid for reading eight elements, `to`
/// for writing sixteen; if `STREAM`, `to` is aligned to sixteen elements or 32 bytes, whichever is
/// less.
#[target_feature(enable = "avx2,popcnt")]
#[inline]
pub(crate) unsafe fn expand<W: Word, const STREAM: bool>(from: *const W, keep: u16, to: *mut W) {
    let [low, high] = keep.to_le_bytes();
    // SAFETY: eight elements are readable at `from` and at `next`, sixteen writable at `to`,
    // aligned where that matters (the caller's promise). For eight-byte elements a second load
    // begins at most four elements in and reads four.
    unsafe {
        let next = from.add(low.count_ones() as usize);
        match W::BYTES {
            1 => {
                let v = expand_16_bytes(from.cast(), keep.to_le_bytes());
                if STREAM {
                    _mm_stream_si128(to.cast(), v);
                } else {
                    _mm_storeu_si128(to.cast(), v);
                }
            }
            2 => {
                let v = _mm256_set_m128i(
                    expand_pairs(next.cast(), 16 * high as usize),
                    expand_pairs(from.cast(), 16 * low as usize),
                );
                store::<STREAM>(to.cast(), v);
            }
            4 => {
                for (from, keep, to) in [(from, low, to), (next, high, to.add(8))] {
                    store::<STREAM>(to.cast(), expand_lanes(from.cast(), 32 * keep as usize));
                }
            }
            _ => {
                for (from, keep, to) in [(from, low, to), (next, high, to.add(8))] {
                    let next = from.add((keep & 15).count_ones() as usize);
                    for (from, keep, to) in [(from, keep & 15, to), (next, keep >> 4, to.add(4))] {
                        store::<STREAM>(to.cast(), expand_lanes(from.cast(), 32 * doubled(keep)));
                    }
                }
            }
        }
    }
}

/// Sixteen one-byte lanes: the next of `from` where `keep` has a bit, zero elsewhere.
///
/// # Safety
/// `from` and `from.add(bits in the first byte of keep)` are valid for reading 8 bytes.
#[target_feature(enable = "avx2,popcnt")]
#[inline]
pub(crate) unsafe fn expand_16_bytes(from: *const u8, keep: [u8; 2]) -> __m128i {
    let (low, high) = (keep[0] as usize, keep[1] as usize);
    // SAFETY: twice 8 readable bytes (the caller's promise); 8 in the tables.
    unsafe {
        // Two loads make a vector, whose upper half is shuffled from the upper eight bytes.
        let next = from.add(low.count_ones() as usize);
        let values = _mm_unpacklo_epi64(_mm_loadl_epi64(from.cast()), _mm_loadl_epi64(next.cast()));
        let (low, high) = (EXPAND.0[low].as_ptr(), EXPAND_UPPER.0[high].as_ptr());
        let places = _mm_unpacklo_epi64(_mm_loadl_epi64(low.cast()), _mm_loadl_epi64(high.cast()));
        _mm_shuffle_epi8(values, places)
    }
}

/// Entry `at / N` of a table. `at` is what addresses it: computed by the caller, it need not be
/// shifted here.
///
/// # Safety
/// `at` is a multiple of `N` and less than `256 * N`.
#[inline(always)]
unsafe fn entry<const N: usize, V>(table: &Table<N>, at: usize) -> *const V {
    debug_assert!(at.is_multiple_of(N) && at < 256 * N);
    // SAFETY: the caller's promise.
    unsafe { table.0.as_ptr().byte_add(at).cast() }
}

/// Eight two-byte lanes: the next of `from` where `keep`, 16 times the mask bits, has a bit, zero
/// elsewhere.
///
/// # Safety
/// `from` is valid for reading 16 bytes. `keep` is 16 times a byte.
#[target_feature(enable = "avx2")]
#[inline]
pub(crate) unsafe fn expand_pairs(from: *const u8, keep: usize) -> __m128i {
    // SAFETY: 16 readable bytes in the table and at `from` (the caller's promise).
    unsafe { _mm_shuffle_epi8(_mm_loadu_si128(from.cast()), _mm_load_si128(entry(&EXPAND_PAIRS, keep))) }
}

/// Eight 32-bit lanes with two-byte elements in their upper halves: the next of `from` where
/// `keep`, 32 times the mask bits, has a bit; zero elsewhere.
///
/// # Safety
/// `from` is valid for reading 16 bytes. `keep` is 32 times a byte.
#[target_feature(enable = "avx2")]
#[inline]
pub(crate) unsafe fn expand_upper_pairs(from: *const u8, keep: usize) -> __m256i {
    // SAFETY: 16 readable bytes (the caller's promise), 32 in the table.
    unsafe {
        let both = _mm256_broadcastsi128_si256(_mm_loadu_si128(from.cast()));
        _mm256_shuffle_epi8(both, _mm256_load_si256(entry(&EXPAND_UPPER_PAIRS, keep)))
    }
}

/// Eight 32-bit lanes: the next of `from` where `keep`, 32 times the mask bits, has a bit, zero
/// elsewhere.
///
/// Each half of the bits shuffles a load of its own: `pshufb` makes zeros by itself, which `vpermd`
/// does not.
///
/// # Safety
/// `from` is valid for reading 32 bytes. `keep` is 32 times a byte.
#[target_feature(enable = "avx2,popcnt")]
#[inline]
pub(crate) unsafe fn expand_lanes(from: *const u8, keep: usize) -> __m256i {
    let half = (keep & (15 * 32)).count_ones() as usize;
    // SAFETY: 32 readable bytes in the table and at `from` (the caller's promise), of which the
    // second load begins in the middle at most.
    unsafe {
        let low = _mm256_castsi128_si256(_mm_loadu_si128(from.cast()));
        let both = _mm256_inserti128_si256::<1>(low, _mm_loadu_si128(from.add(4 * half).cast()));
        _mm256_shuffle_epi8(both, _mm256_load_si256(entry(&EXPAND_QUADS, keep)))
    }
}

/// [`expand_lanes`] for a `keep` of four bits at most.
///
/// # Safety
/// `from` is valid for reading 16 bytes. `keep` is 32 times a byte.
#[target_feature(enable = "avx2")]
#[inline]
pub(crate) unsafe fn expand_lanes_at_most_half(from: *const u8, keep: usize) -> __m256i {
    // SAFETY: 16 readable bytes (the caller's promise), 32 in the table.
    unsafe {
        let both = _mm256_broadcastsi128_si256(_mm_loadu_si128(from.cast()));
        _mm256_shuffle_epi8(both, _mm256_load_si256(entry(&EXPAND_AT_MOST_HALF, keep)))
    }
}

/// The same vector, computed by now: the compiler cannot put off what this reads.
#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn opt_barrier(mut vector: __m256) -> __m256 {
    // SAFETY: no instruction.
    unsafe { asm!("/* {0} */", inout(ymm_reg) vector, options(nomem, nostack, preserves_flags)) };
    vector
}

/// Stores a vector, past the caches if `STREAM`.
///
/// # Safety
/// `to` is valid for writing 32 bytes and, if `STREAM`, aligned to 32 bytes.
#[target_feature(enable = "avx2")]
#[inline]
pub(crate) unsafe fn store<const STREAM: bool>(to: *mut u8, v: __m256i) {
    // SAFETY: 32 writable bytes, aligned where that matters (the caller's promise).
    unsafe {
        if STREAM {
            _mm256_stream_si256(to.cast(), v);
        } else {
            _mm256_storeu_si256(to.cast(), v);
        }
    }
}

/// The low bits of `bits` as a vector of words: all ones where there is a bit, zero elsewhere.
#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn lane_mask<W: Word>(bits: u64) -> __m256i {
    match W::BYTES {
        1 => {
            const SPREAD: [u8; 32] = {
                let mut spread = [0; 32];
                let mut lane = 0;
                while lane < 32 {
                    spread[lane] = lane as u8 / 8;
                    lane += 1;
                }
                spread
            };
            // SAFETY: 32 readable bytes.
            let spread = unsafe { _mm256_loadu_si256(SPREAD.as_ptr().cast()) };
            let of_lane = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), spread);
            _mm256_cmpeq_epi8(_mm256_and_si256(bytes, of_lane), of_lane)
        }
        2 => {
            let of_lane =
                _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, -32768);
            _mm256_cmpeq_epi16(_mm256_and_si256(_mm256_set1_epi16(bits as i16), of_lane), of_lane)
        }
        4 => {
            let of_lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(bits as i32), of_lane), of_lane)
        }
        _ => {
            let of_lane = _mm256_setr_epi64x(1, 2, 4, 8);
            _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(bits as i64), of_lane), of_lane)
        }
    }
}
