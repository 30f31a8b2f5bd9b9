//! Groups of four, without leaving their places: each lane is compared with the three others of its
//! four.
//!
//! ```text
//! wins(i, by) = key[i] ≥ key[j] + [i > j]     where j = (i + by) mod 4;
//!                                             of equal keys the earlier one wins
//! keep i where it wins 3 times (1 kept), at least 2 times (2 kept), at least once (3 kept)
//! ```
//!
//! The sum cannot overflow as long as the largest number is below the largest word.

use super::bits;
use super::geometry::Lines;
use super::kernel::Work;
use super::vector::Vector;
use crate::element::Word;

/// Bytes ahead that are asked for.
const PREFETCH: usize = 4096;

/// Whether the groups are such, the keys leave room for the tie-break, and lines start on bytes of
/// the mask.
pub(super) fn can<W: Word>(work: &Work<W>, geometry: &Lines) -> bool {
    geometry.of == 4 && (1..4).contains(&work.full.keep) && work.keys.max_key() < W::MAX && geometry.start_on_bytes()
}

/// The mask bits of the groups in `keys`, one after the other.
#[inline(always)]
pub(super) fn line<W: Word, V: Vector<W>>(
    proof: V::Proof,
    keys: &[W],
    and: W,
    keep: usize,
    mask: &mut [u8],
    largest: &mut V,
) {
    match keep {
        1 => words::<W, V, 1>(proof, keys, and, mask, largest),
        2 => words::<W, V, 2>(proof, keys, and, mask, largest),
        _ => words::<W, V, 3>(proof, keys, and, mask, largest),
    }
}

#[inline(always)]
fn words<W: Word, V: Vector<W>, const KEEP: usize>(
    proof: V::Proof,
    keys: &[W],
    and: W,
    mask: &mut [u8],
    largest: &mut V,
) {
    let and = V::splat(proof, and);
    let handicaps = [handicap(proof, 1), handicap(proof, 2), handicap(proof, 3)];
    let (blocks, rest) = keys.as_chunks::<64>();
    let (whole, last) = mask.split_at_mut(8 * blocks.len());
    for (block, bytes) in blocks.iter().zip(whole.as_chunks_mut::<8>().0) {
        *bytes = word::<W, V, KEEP>(proof, block, and, &handicaps, largest).to_le_bytes();
    }
    if !rest.is_empty() {
        let mut block = [W::default(); 64];
        block[..rest.len()].copy_from_slice(rest);
        let kept = word::<W, V, KEEP>(proof, &block, and, &handicaps, largest);
        bits::put(last, 0, kept & (u64::MAX >> (64 - rest.len())), rest.len());
    }
}

#[inline(always)]
fn word<W: Word, V: Vector<W>, const KEEP: usize>(
    proof: V::Proof,
    block: &[W; 64],
    and: V,
    handicaps: &[V; 3],
    largest: &mut V,
) -> u64 {
    let mut bits = 0;
    for first in (0..64).step_by(V::LANES) {
        V::prefetch(block.as_ptr().wrapping_add(first + PREFETCH / W::BYTES));
        // SAFETY: `first + LANES ≤ 64`.
        let keys = unsafe { V::load(proof, block.as_ptr().add(first)) }.and(and);
        *largest = largest.max(keys);
        let (a, b, c) = (wins(keys, 1, handicaps), wins(keys, 2, handicaps), wins(keys, 3, handicaps));
        bits |= V::bits(winners::<W, V, KEEP>(a, b, c)) << first;
    }
    bits
}

#[inline(always)]
fn wins<W: Word, V: Vector<W>>(keys: V, by: usize, handicaps: &[V; 3]) -> V::Mask {
    keys.ge(keys.rotate4(by).add(handicaps[by - 1]))
}

/// [i > (i + by) mod 4] in every lane.
#[inline(always)]
fn handicap<W: Word, V: Vector<W>>(proof: V::Proof, by: usize) -> V {
    let lanes: [W; 64] = std::array::from_fn(|i| W::from_u64((i % 4 + by > 3) as u64));
    // SAFETY: a vector has at most 64 lanes.
    unsafe { V::load(proof, lanes.as_ptr()) }
}

#[inline(always)]
fn winners<W: Word, V: Vector<W>, const KEEP: usize>(a: V::Mask, b: V::Mask, c: V::Mask) -> V::Mask {
    match KEEP {
        1 => V::both(V::both(a, b), c),
        2 => V::either(V::both(a, b), V::both(c, V::either(a, b))),
        _ => V::either(V::either(a, b), c),
    }
}
