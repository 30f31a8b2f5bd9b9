//! The pass over the data: what it is asked, what it returns, and the match on the ISA.

use super::buffers::Spare;
use super::scalar;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::element::Word;
use crate::isa::Isa;
use crate::keys::Keys;

/// Keep what is above `at`, and with `ties` also what equals it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut<K> {
    /// The key.
    pub at: K,
    /// Whether items equal to `at` are kept.
    pub ties: bool,
}

/// What a scan does about the items near the wanted rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Write the mask of the cut, nothing else.
    Cut = 0,
    /// Collect `lo ≤ key ≤ hi`; the cut is `> hi`.
    Collect = 1,
    /// Collect `lo < key < hi`, count `= lo` and `= hi`; the cut is at one of them.
    Edges = 2,
}

/// What a scan is asked.
#[derive(Debug, Clone, Copy)]
pub struct Query<K> {
    /// What to do.
    pub mode: Mode,
    /// Lower edge of the bracket.
    pub lo: K,
    /// Upper edge of the bracket.
    pub hi: K,
    /// The mask that is written.
    pub cut: Cut<K>,
}

impl<K: Word> Query<K> {
    /// Only writes a mask.
    pub fn cut(cut: Cut<K>) -> Self {
        Query { mode: Mode::Cut, lo: cut.at, hi: cut.at, cut }
    }

    /// Collects a bracket.
    pub fn collect(lo: K, hi: K) -> Self {
        Query { mode: Mode::Collect, lo, hi, cut: Cut { at: hi, ties: false } }
    }

    /// Counts what equals the cut's key and what is above it.
    pub fn value(cut: Cut<K>) -> Self {
        Query { mode: Mode::Edges, lo: cut.at, hi: cut.at, cut }
    }
}

/// What a scan has seen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen<K> {
    /// Items above `hi`.
    pub above: usize,
    /// Items equal to `hi` (only with [`Mode::Edges`]).
    pub equal_hi: usize,
    /// Items equal to `lo` (only with [`Mode::Edges`], and where `lo < hi`).
    pub equal_lo: usize,
    /// The largest key.
    pub max: K,
}

impl<K: Word> Seen<K> {
    /// Adds what another part has seen.
    pub fn add(&mut self, other: &Seen<K>) {
        self.above += other.above;
        self.equal_hi += other.equal_hi;
        self.equal_lo += other.equal_lo;
        self.max = self.max.max(other.max);
    }
}

/// Positions of collected items. A word of 64 items may be written whole, so it has that much room
/// to spare.
pub struct Found<'a> {
    /// The positions; as long as the stretch and 64 more.
    pub positions: &'a mut [u16],
    /// How many there are.
    pub len: usize,
}

/// The comparisons of 64 items as words of bits.
#[derive(Debug, Clone, Copy, Default)]
pub struct Compared {
    /// key > hi
    pub above_hi: u64,
    /// key ≥ hi (only with [`Mode::Edges`])
    pub from_hi: u64,
    /// key > lo (only with [`Mode::Edges`])
    pub above_lo: u64,
    /// key ≥ lo
    pub from_lo: u64,
}

impl Compared {
    /// The mask word to write: the cut's.
    #[inline(always)]
    pub fn written<K: Word>(&self, query: &Query<K>) -> u64 {
        match (query.cut.at == query.hi, query.cut.ties) {
            (true, false) => self.above_hi,
            (true, true) => self.from_hi,
            (false, false) => self.above_lo,
            (false, true) => self.from_lo,
        }
    }

    /// The items to collect.
    #[inline(always)]
    pub fn inside(&self, mode: Mode) -> u64 {
        match mode {
            Mode::Cut => 0,
            Mode::Collect => self.from_lo & !self.above_hi,
            Mode::Edges => self.above_lo & !self.from_hi,
        }
    }

    /// The first `len` items only.
    #[inline(always)]
    pub fn first(self, len: usize) -> Compared {
        let kept = if len < 64 { (1 << len) - 1 } else { u64::MAX };
        Compared {
            above_hi: self.above_hi & kept,
            from_hi: self.from_hi & kept,
            above_lo: self.above_lo & kept,
            from_lo: self.from_lo & kept,
        }
    }

    /// Counts the items.
    #[inline(always)]
    pub fn count<K: Word>(&self, mode: Mode, seen: &mut Seen<K>) {
        if mode != Mode::Cut {
            seen.above += self.above_hi.count_ones() as usize;
        }
        if mode == Mode::Edges {
            seen.equal_hi += (self.from_hi & !self.above_hi).count_ones() as usize;
            // Items of a bracket with one value count as equal to `hi`.
            seen.equal_lo += (self.from_lo & !self.above_lo & !self.from_hi).count_ones() as usize;
        }
    }
}

/// Keys whose words can be scanned.
pub trait ScanKeys: Keys<Key: ScanWord> {}

impl<K: Keys<Key: ScanWord>> ScanKeys for K {}

/// A key word that can be scanned.
pub trait ScanWord: Word {
    /// Where working memory waits between calls.
    fn spare() -> &'static Spare<Self>;

    /// Compares `data & and` with the query, writes the bits of the cut to `bits` (unused bits of
    /// the last byte 0), appends the positions (`base` + index) of the items to collect. `data` has
    /// at most 2^16 items, `bits` a bit for each.
    fn scan(
        isa: Isa,
        data: &[Self],
        and: Self,
        query: &Query<Self>,
        base: usize,
        bits: &mut [u8],
        found: &mut Found<'_>,
    ) -> Seen<Self>;

    /// How many of `data & and` reach each of `at`.
    fn reached(isa: Isa, data: &[Self], and: Self, at: [Self; 4]) -> [usize; 4];
}

macro_rules! scan_word {
    ($($K:ident),*) => { $(
        impl ScanWord for $K {
            fn spare() -> &'static Spare<$K> {
                static SPARE: Spare<$K> = Spare::new(Vec::new());
                &SPARE
            }

            fn scan(
                isa: Isa,
                data: &[$K],
                and: $K,
                query: &Query<$K>,
                base: usize,
                bits: &mut [u8],
                found: &mut Found<'_>,
            ) -> Seen<$K> {
                assert!(bits.len() == data.len().div_ceil(8) && base + data.len() <= 1 << 16);
                assert!(query.mode == Mode::Cut || found.positions.len() >= found.len + data.len() + 64);
                match isa {
                    Isa::Scalar => scalar::scan(data, and, query, base, bits, found),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2(token) => avx2::$K::scan(token, data, and, query, base, bits, found),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512(token) => avx512::$K::scan(token, data, and, query, base, bits, found),
                    #[cfg(not(target_arch = "x86_64"))]
                    _ => scalar::scan(data, and, query, base, bits, found),
                }
            }

            fn reached(isa: Isa, data: &[$K], and: $K, at: [$K; 4]) -> [usize; 4] {
                match isa.avx2() {
                    #[cfg(target_arch = "x86_64")]
                    Some(token) => avx2::$K::reached(token, data, and, at),
                    _ => at.map(|at| data.iter().filter(|&&key| key & and >= at).count()),
                }
            }
        }
    )* };
}
scan_word!(u8, u16, u32, u64);

/// Writes a mask word to the first bytes of `bits`.
#[inline(always)]
pub fn store_word(bits: &mut [u8], word: u64) {
    bits.copy_from_slice(&word.to_le_bytes()[..bits.len()]);
}
