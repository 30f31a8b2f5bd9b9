//! The key of a given rank in groups of up to 64, a lane a group: sorting networks of 4, 8 and 16
//! places, and merging.
//!
//! A comparator puts the smaller of two keys on the first place, the larger on the second. Up to 16
//! keys are sorted where they are, in registers. Longer groups are sorted by 16; of two sorted
//! halves A and B of n keys each, the r-th key (from 0) is
//!
//! ```text
//! min over i + j = r + 1 of max(A[i − 1], B[j − 1])
//! ```
//!
//! since the r + 1 smallest keys are the i smallest of A and the j smallest of B for some i and j,
//! and for any others the larger of the two is not smaller. Places without a key hold the largest
//! word.
//!
//! The networks are straight code. A loop over a table of comparators took three times as long for
//! 8:16: all its loads are one instruction, which the CPU soon makes wait for every store before
//! it.

use super::vector::Vector;
use crate::element::Word;

/// Largest group that has a network.
pub(super) const LARGEST: usize = 64;

/// Where the smallest kept key of a group is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Smallest {
    /// Nothing is kept.
    Nothing,
    /// Everything is kept.
    Everything,
    /// It has this many smaller or equal keys before it.
    Rank(usize),
}

/// How to select in groups of one length.
#[derive(Debug)]
pub(super) struct Plan {
    /// Items of a group, at most [`LARGEST`].
    pub length: usize,
    /// Items of them that are kept.
    pub keep: usize,
    smallest: Smallest,
}

impl Plan {
    /// The plan that keeps `keep` of `length`.
    pub fn new(length: usize, keep: usize) -> Plan {
        assert!(length <= LARGEST && keep <= length);
        let smallest = match keep {
            0 => Smallest::Nothing,
            _ if keep == length => Smallest::Everything,
            _ => Smallest::Rank(length - keep),
        };
        Plan { length, keep, smallest }
    }

    /// The smallest kept key of every lane, among the first `length` of `keys`. Uses the places
    /// after those, and `sorted`.
    #[inline(always)]
    pub fn smallest<W: Word, V: Vector<W>>(
        &self,
        proof: V::Proof,
        keys: &mut [V; LARGEST],
        sorted: &mut [V; LARGEST],
    ) -> V {
        let rank = match self.smallest {
            Smallest::Nothing => return V::splat(proof, W::MAX),
            Smallest::Everything => return V::splat(proof, W::default()),
            Smallest::Rank(rank) => rank,
        };
        let places = self.length.next_power_of_two().max(4);
        keys[self.length..places].fill(V::splat(proof, W::MAX));
        match places {
            4 => sort::<W, V, 4>(keys, sorted),
            8 => sort::<W, V, 8>(keys, sorted),
            _ => {
                for first in (0..places).step_by(16) {
                    sort::<W, V, 16>(&keys[first..], &mut sorted[first..]);
                }
            }
        }
        if places == 64 {
            for half in sorted.chunks_exact_mut(32) {
                merge::<W, V>(half);
            }
        }
        match places {
            32 | 64 => of_halves(&sorted[..places / 2], &sorted[places / 2..places], rank),
            _ => sorted[rank % 16],
        }
    }
}

#[inline(always)]
fn compare<W: Word, V: Vector<W>, const N: usize>(keys: &mut [V; N], low: usize, high: usize) {
    (keys[low], keys[high]) = (keys[low].min(keys[high]), keys[low].max(keys[high]));
}

/// The first `N` keys of `from`, in order, to the first places of `to`: Batcher's merge exchange
/// (Knuth, The Art of Computer Programming 5.2.2, algorithm M).
#[inline(always)]
fn sort<W: Word, V: Vector<W>, const N: usize>(from: &[V], to: &mut [V]) {
    let mut keys: [V; N] = std::array::from_fn(|i| from[i]);
    if N == 16 {
        exchange(&mut keys, 8, 0, 8);
        exchange(&mut keys, 4, 0, 4);
        exchange(&mut keys, 4, 4, 4);
        exchange(&mut keys, 2, 0, 2);
        exchange(&mut keys, 2, 2, 6);
        exchange(&mut keys, 2, 2, 2);
        exchange(&mut keys, 1, 0, 1);
        exchange(&mut keys, 1, 1, 7);
        exchange(&mut keys, 1, 1, 3);
        exchange(&mut keys, 1, 1, 1);
    } else if N == 8 {
        exchange(&mut keys, 4, 0, 4);
        exchange(&mut keys, 2, 0, 2);
        exchange(&mut keys, 2, 2, 2);
        exchange(&mut keys, 1, 0, 1);
        exchange(&mut keys, 1, 1, 3);
        exchange(&mut keys, 1, 1, 1);
    } else {
        exchange(&mut keys, 2, 0, 2);
        exchange(&mut keys, 1, 0, 1);
        exchange(&mut keys, 1, 1, 1);
    }
    to[..N].copy_from_slice(&keys);
}

/// One layer: place i is compared with place i + `distance` wherever the bits of i under `bit` are
/// `value`.
#[inline(always)]
fn exchange<W: Word, V: Vector<W>, const N: usize>(keys: &mut [V; N], bit: usize, value: usize, distance: usize) {
    for i in 0..N - distance {
        if i & bit == value {
            compare(keys, i, i + distance);
        }
    }
}

/// Sorts 32 keys whose halves are sorted: a bitonic merge.
#[inline(always)]
fn merge<W: Word, V: Vector<W>>(places: &mut [V]) {
    let mut keys: [V; 32] = std::array::from_fn(|i| if i < 16 { places[i] } else { places[47 - i] });
    for distance in [16, 8, 4, 2, 1] {
        for i in 0..32 {
            if i & distance == 0 {
                compare(&mut keys, i, i + distance);
            }
        }
    }
    places.copy_from_slice(&keys);
}

/// The key of rank `rank` of two sorted halves.
#[inline(always)]
fn of_halves<W: Word, V: Vector<W>>(a: &[V], b: &[V], rank: usize) -> V {
    let n = a.len();
    // i keys of a and rank + 1 − i of b; where one of them gives none, the other gives all.
    let mut smallest = if rank < n { a[rank].min(b[rank]) } else { a[n - 1].max(b[rank - n]) };
    for i in (rank + 1).saturating_sub(n).max(1)..=rank.min(n) {
        smallest = smallest.min(a[i - 1].max(b[rank - i]));
    }
    smallest
}
