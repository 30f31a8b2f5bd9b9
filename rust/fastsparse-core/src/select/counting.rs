//! The cut found by counting, where the keys are in a cache: they are read several times and
//! nothing is collected.
//!
//! The cut is the largest key that at least `keep` keys reach.
//!
//! ```text
//! lo, hi = 0, beyond all                         reached(lo) ≥ keep > reached(hi)
//! while hi − lo > 1:
//!     count the keys that reach each of four between lo and hi     around a guess, or evenly
//!     lo, hi = the two of them next to the cut
//! cut = lo
//! ```
//!
//! Few codes make few passes: a row of bfloat16 takes two where it is like the row before. Wider
//! keys are sorted as soon as few are left between lo and hi.

use std::ops::Range;

use super::scan::{Query, ScanWord};
use crate::element::Word;
use crate::isa::Isa;

/// So many keys of 32 and 64 bits are sorted rather than counted any further.
const FEW: usize = 16;

/// Where to look first: at a key, and as far from it to either side as the cut probably is.
#[derive(Debug, Clone, Copy)]
pub struct Near {
    /// The key.
    pub key: u64,
    /// The distance.
    pub reach: u64,
}

impl Near {
    /// In the middle of a bracket.
    pub fn between<K: Word>(lo: K, hi: K) -> Near {
        let reach = (hi.to_u64() - lo.to_u64()) / 2;
        Near { key: lo.to_u64() + reach, reach }
    }

    /// The bracket.
    pub fn query<K: Word>(self) -> Query<K> {
        let hi = self.key.saturating_add(self.reach).min(K::MAX.to_u64());
        Query::collect(K::from_u64(self.key.saturating_sub(self.reach)), K::from_u64(hi))
    }
}

/// A cut: its key, and how many are above it.
#[derive(Debug, Clone, Copy)]
pub struct Counted<K> {
    /// The largest key that at least `keep` keys reach.
    pub at: K,
    /// Keys above it.
    pub above: usize,
    /// Where to look in keys that are alike.
    pub near: Near,
}

/// The cut of `keys & and` that at least `keep` of them reach, `keep` from 1 to their number. None
/// is above `max`, or it does not matter.
pub fn cut<K: ScanWord>(isa: Isa, keys: &[K], and: K, keep: usize, max: K, near: Option<Near>) -> Counted<K> {
    let (mut lo, mut hi) = ((0, keys.len()), (max.to_u64() + 1, 0));
    let guess = near.unwrap_or(Near { key: 0, reach: 1 });
    for pass in 0.. {
        let width = hi.0 - lo.0;
        if width <= 1 || K::BYTES > 2 && lo.1 - hi.1 <= FEW {
            break;
        }
        let around = |key: u64, reach: u64| [key.saturating_sub(reach), key, key + 1, (key + 1).saturating_add(reach)];
        let at = match (pass, near) {
            (0, Some(Near { key, reach })) => around(key, reach),
            // On the straight line between what is known.
            (1 | 3 | 5, _) => {
                let part = (lo.1 - keep) as u128 * width as u128 / (lo.1 - hi.1) as u128;
                around(lo.0 + part as u64, 1 + width / 16)
            }
            _ => [1, 2, 3, 4].map(|part| lo.0 + (width as u128 * part / 5) as u64),
        };
        let at = at.map(|at| at.clamp(lo.0 + 1, hi.0 - 1));
        let reached = K::reached(isa, keys, and, at.map(K::from_u64));
        for (at, reached) in at.into_iter().zip(reached) {
            if reached < keep {
                hi = (at, reached);
                break;
            }
            lo = (at, reached);
        }
    }
    let (at, above) = if hi.0 - lo.0 <= 1 { (lo.0, hi.1) } else { among_few(keys, and, keep, lo.0..hi.0, hi.1) };
    // Twice the distance on average.
    let reach = if near.is_some() { at.abs_diff(guess.key) + guess.reach / 2 + 1 } else { 1 };
    Counted { at: K::from_u64(at), above, near: Near { key: at, reach } }
}

/// The cut, which is one of the few keys in `range`, and how many are above it; `above` are above
/// the range.
fn among_few<K: Word>(keys: &[K], and: K, keep: usize, range: Range<u64>, above: usize) -> (u64, usize) {
    let mut few = [0; FEW + 1];
    let mut found = 0;
    for key in keys {
        let key = key.to_u64() & and.to_u64();
        few[found] = key;
        found = (found + range.contains(&key) as usize).min(FEW);
    }
    let few = &mut few[..found];
    few.sort_unstable();
    // Keys that changed since they were counted may be fewer.
    let at = few.get((found + above).saturating_sub(keep)).map_or(range.start, |&at| at);
    (at, above + few.iter().filter(|&&key| key > at).count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::some;

    fn check<K: ScanWord>(keys: &[K], and: K, max: K) {
        let mut sorted: Vec<K> = keys.iter().map(|&key| K::from_u64(key.to_u64() & and.to_u64())).collect();
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        let far = [(0, 1), (max.to_u64(), 3), (max.to_u64() / 2, u64::MAX)].map(|(key, reach)| Near { key, reach });
        for isa in Isa::available() {
            for keep in some((1..=keys.len()).step_by(keys.len() / 50 + 1).chain([keys.len()]), 4) {
                let expected = sorted[keep - 1];
                let right = Near { key: expected.to_u64(), reach: 2 };
                for near in far.into_iter().chain([right]).map(Some).chain([None]) {
                    let found = cut(isa, keys, and, keep, max, near);
                    assert_eq!(found.at, expected, "{keep} of {} near {near:?} {isa:?}", keys.len());
                    assert_eq!(found.above, sorted.iter().filter(|&&key| key > expected).count());
                }
            }
        }
    }

    fn every_kind<K: ScanWord>(max: K) {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state >> 20
        };
        for len in some([1, 2, 15, 16, 17, 63, 64, 500, 5000], 3) {
            // Any, few, equal, and far apart with most of them at one end.
            let kinds: [&dyn Fn(u64) -> u64; 4] = [&|x| x, &|x| x % 3, &|_| 7, &|x| x >> (x % 64)];
            for kind in kinds {
                let keys: Vec<K> = (0..len).map(|_| K::from_u64(kind(random() << 20) % (max.to_u64() + 1))).collect();
                check(&keys, K::MAX, max);
                check(&keys, K::from_u64(max.to_u64() >> 1), max);
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes too long there")]
    fn every_cut_is_found_from_anywhere() {
        every_kind::<u8>(0x80);
        every_kind::<u16>(0x7f80);
        every_kind::<u16>(u16::MAX);
        every_kind::<u32>(0x7f80_0000);
        every_kind::<u64>(0x7ff0_0000_0000_0000);
    }
}
