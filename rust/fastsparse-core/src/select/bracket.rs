//! Where to look for the wanted key: two keys that a random sample says it lies between.

use super::scan::{Cut, Mode, Query};
use crate::element::Word;
use crate::error::Result;
use crate::keys::Keys;
use crate::memory;

/// Most keys of a sample. The rank of a sample of this size is off by 0.2 % of the data (one
/// standard deviation, at the median), so a bracket of 3.5 of them on either side holds 1.4 %.
const SAMPLE: usize = 1 << 16;

/// Fewest keys of a sample.
const LEAST: usize = 256;

/// An item that is made of several elements costs as much more to sample, up to this many.
const COSTLY: usize = 16;

/// Neighbouring keys taken at each random place: they share a cache line.
const NEIGHBOURS: usize = 4;

/// Bins by leading bits that a sample is sorted into: a quarter of a binade in float32 and
/// bfloat16.
const BINS: usize = 1024;

/// Places of a sample that are asked for ahead of their turn: they are far apart, and each would be
/// waited for.
const AHEAD: usize = 16;

/// The rank that is looked for: `keep` of `items` are to be at it or above.
#[derive(Debug, Clone, Copy)]
pub struct Rank {
    /// Items kept.
    pub keep: usize,
    /// All items.
    pub items: usize,
}

/// Keys at random places of the `items` from `start` on, whose rows are `cols` long. The places
/// depend on the sizes alone, so a call can be repeated; being random, they find a fair sample in
/// data of any period.
pub fn sample<K: Keys>(keys: &K, start: usize, items: usize, cols: usize) -> Result<Vec<K::Key>> {
    let size = size(items, keys.elements_per_item());
    let mut taken = memory::zeros(size)?;
    let place = |state: &mut u64| ((random(state) as u128 * items as u128) >> 64) as usize;
    let (mut state, mut ahead) = (items as u64, items as u64);
    (0..AHEAD).for_each(|_| keys.prefetch(start + place(&mut ahead)));
    let mut filled = 0;
    while filled < size {
        keys.prefetch(start + place(&mut ahead));
        let place = place(&mut state);
        let run = NEIGHBOURS.min(cols - place % cols).min(size - filled);
        keys.fill(start + place, &mut taken[filled..filled + run])?;
        filled += run;
    }
    Ok(taken)
}

/// Keys of a sample. With `s` of them the bracket holds some `items / √s` candidates, so
/// `a · e · s + b · items / √s` is to be least, `e` being the elements of an item: `s` grows with
/// `(items / e)^(2/3)`. A sampled key costs about three times what a candidate does, which makes
/// the factor a half.
fn size(items: usize, elements_per_item: usize) -> usize {
    let best = (items as f64 / elements_per_item.clamp(1, COSTLY) as f64).powf(2.0 / 3.0) / 2.0;
    (best as usize).clamp(LEAST, SAMPLE)
}

/// SplitMix64 (Steele, Lea, Flood 2014).
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The keys of two ranks (from 0, upwards) of a sample, each looked for among those that share its
/// leading bits only.
fn at_ranks<K: Word>(sample: &[K], max: K, ranks: [usize; 2]) -> Result<[K; 2]> {
    let shift = (64 - max.to_u64().leading_zeros()).saturating_sub(BINS.ilog2());
    let bin = |key: K| (key.to_u64() >> shift).min(BINS as u64 - 1) as usize;
    let mut counts = [0; BINS];
    sample.iter().for_each(|&key| counts[bin(key)] += 1);
    let at_rank = |rank| {
        let mut below = 0;
        let found = counts.iter().position(|&count| {
            below += count;
            below > rank
        });
        let found = found.expect("the rank is one of the sample's");
        let mut alike = memory::with_capacity(counts[found])?;
        alike.extend(sample.iter().copied().filter(|&key| bin(key) == found));
        Ok(*alike.select_nth_unstable(rank + counts[found] - below).1)
    };
    Ok([at_rank(ranks[0])?, at_rank(ranks[1])?])
}

/// The query for the bracket that reaches `sigmas` standard deviations to either side of the wanted
/// rank, inside `bounds`.
pub fn query<K: Word>(sample: &[K], rank: Rank, sigmas: f64, bounds: (K, K)) -> Result<Query<K>> {
    let size = sample.len() as f64;
    let kept = rank.keep as f64 / rank.items as f64;
    // Index of the wanted key in the sample, were it sorted upwards.
    let centre = (1.0 - kept) * size;
    let reach = sigmas * (size * kept * (1.0 - kept)).sqrt() + 1.0;
    let (first, last) = (centre - reach, centre + reach);
    let [lo, hi] = at_ranks(sample, bounds.1, [first, last].map(|rank| rank.clamp(0.0, size - 1.0) as usize))?;
    let hi = if last >= size - 1.0 { bounds.1 } else { hi };
    let lo = if first < 0.0 { bounds.0 } else { lo };
    let (lo, hi) = (lo.clamp(bounds.0, bounds.1), hi.clamp(bounds.0, bounds.1));
    let inside = sample.iter().filter(|&&key| lo <= key && key <= hi).count();
    // More than the bracket was made for: equal keys pile up at its edges.
    if inside as f64 <= 2.5 * reach + size / 256.0 {
        return Ok(Query::collect(lo, hi));
    }
    Ok(Query { mode: Mode::Edges, lo, hi, cut: likely_cut(sample, kept * size, lo, hi) })
}

/// The mask that will most likely need no second look. `kept` is the wanted number of kept keys of
/// the sample.
fn likely_cut<K: Word>(sample: &[K], kept: f64, lo: K, hi: K) -> Cut<K> {
    let count = |test: fn(K, K) -> bool, edge: K| sample.iter().filter(|&&key| test(key, edge)).count() as f64;
    let (above_hi, from_hi) = (count(|key, edge| key > edge, hi), count(|key, edge| key >= edge, hi));
    let (above_lo, from_lo) = (count(|key, edge| key > edge, lo), count(|key, edge| key >= edge, lo));
    if kept <= from_hi {
        Cut { at: hi, ties: kept > (above_hi + from_hi) / 2.0 }
    } else if kept <= above_lo {
        Cut { at: hi, ties: true }
    } else {
        Cut { at: lo, ties: kept > (above_lo + from_lo) / 2.0 }
    }
}
