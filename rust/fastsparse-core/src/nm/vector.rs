//! Vectors of keys: what the kernels need of an instruction set, once for every width of key.

use crate::element::Word;

/// `LANES` keys. Unsigned order throughout. The values of a vector type are made from a proof that
/// the CPU runs it, so whoever holds one may compute with it.
pub(super) trait Vector<W: Word>: Copy {
    /// What proves that the CPU runs the instructions.
    type Proof: Copy;
    /// A truth value a lane.
    type Mask: Copy;
    /// Keys of a vector: 4, or a multiple of 8 up to 64.
    const LANES: usize;
    /// Neighbouring keys that are loaded together when groups become lanes. Divides `LANES`, at
    /// most 16.
    const PIECE: usize;

    /// The same key in every lane.
    fn splat(proof: Self::Proof, key: W) -> Self;
    /// # Safety
    /// `LANES` keys can be read at `keys`, at any alignment.
    unsafe fn load(proof: Self::Proof, keys: *const W) -> Self;
    /// `count` keys, zeros after them.
    ///
    /// # Safety
    /// `count < LANES` keys can be read at `keys`, at any alignment.
    unsafe fn load_some(proof: Self::Proof, keys: *const W, count: usize) -> Self;
    /// The pieces at `keys + starts[p]`, `keys + starts[PIECE + p]`, `keys + starts[2 · PIECE +
    /// p]`, … side by side.
    ///
    /// # Safety
    /// `PIECE` keys can be read at `keys + starts[q · PIECE + p]` for every `q < LANES / PIECE`.
    unsafe fn load_pieces(proof: Self::Proof, keys: *const W, starts: &[usize; 64], p: usize) -> Self;
    /// Asks for the cache line at `keys`; nothing happens if there is none.
    fn prefetch(keys: *const W);
    /// The lanes, in order, to the beginning of `out`.
    fn store(self, out: &mut [W; 64]);

    /// Bits in both.
    fn and(self, other: Self) -> Self;
    /// Sums; no lane overflows.
    fn add(self, other: Self) -> Self;
    /// Differences; no lane underflows.
    fn sub(self, other: Self) -> Self;
    /// The smaller of each two.
    fn min(self, other: Self) -> Self;
    /// The larger of each two.
    fn max(self, other: Self) -> Self;
    /// The lower halves of the 16-byte parts, key by key: a0 b0 a1 b1 …
    fn interleave_low(self, other: Self) -> Self;
    /// The upper halves of the 16-byte parts, key by key.
    fn interleave_high(self, other: Self) -> Self;
    /// Lane i of each four gets lane (i + by) mod 4 of it; `by` is 1, 2 or 3.
    fn rotate4(self, by: usize) -> Self;

    /// `self ≥ other`
    fn ge(self, other: Self) -> Self::Mask;
    /// `self = other`
    fn equal(self, other: Self) -> Self::Mask;
    /// Lanes of `mask` where `self` is not zero.
    fn nonzero_where(self, mask: Self::Mask) -> Self::Mask;
    /// One more in the lanes of `mask`.
    fn increment(self, mask: Self::Mask) -> Self;
    /// One less in the lanes of `mask`.
    fn decrement(self, mask: Self::Mask) -> Self;
    /// Twice each lane, and one more in the lanes of `mask`: shifts a bit in from below.
    fn shift_in(self, mask: Self::Mask) -> Self;

    /// Lanes in both.
    fn both(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    /// Lanes in either.
    fn either(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    /// Lanes in `a` but not in `b`.
    fn without(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    /// The mask as a word, lane i as bit i.
    fn bits(mask: Self::Mask) -> u64;
    /// The bits of two masks, those of `b` after those of `a`; for vectors of less than 64 lanes.
    #[inline(always)]
    fn bits_of_two(a: Self::Mask, b: Self::Mask) -> u64 {
        Self::bits(a) | Self::bits(b) << Self::LANES
    }
}

/// `PIECE` vectors of pieces become the keys of their groups by position: lane l of vector c is key
/// c of the piece of lane l.
///
/// With `PIECE` = 2^k, interleaving vector v with vector v + PIECE/2 moves the top bit of v to the
/// bottom of the position, and the top bit of the position to the bottom of v; k times over, the
/// two have changed places.
#[inline(always)]
pub(super) fn transpose<W: Word, V: Vector<W>>(tile: &mut [V; 16]) {
    let mut span = 1;
    while span < V::PIECE {
        let from = *tile;
        for v in 0..V::PIECE / 2 {
            tile[2 * v] = from[v].interleave_low(from[v + V::PIECE / 2]);
            tile[2 * v + 1] = from[v].interleave_high(from[v + V::PIECE / 2]);
        }
        span *= 2;
    }
}
