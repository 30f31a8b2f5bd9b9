//! The items that a pass has collected, and the wanted key among them.

use std::ops::Range;

use super::scan::Query;
use super::tasks::Tasks;
use crate::element::Word;
use crate::error::Result;
use crate::memory;
use crate::parallel::try_map;

/// Bins of the histogram over the bracket: the wanted key is looked for in one of them only.
const BINS: usize = 64;

/// Neighbouring candidates count in different tables: keys of few values would make each addition
/// wait for the one before.
const TABLES: usize = 4;

/// What one task found.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    /// The task.
    pub task: usize,
    /// Where its candidates begin.
    start: usize,
    /// Where they end.
    end: usize,
    /// Its items equal to the upper edge.
    pub equal_hi: usize,
    /// Its items equal to the lower edge.
    pub equal_lo: usize,
}

impl Segment {
    /// Where its candidates are.
    fn range(&self) -> Range<usize> {
        self.start..self.end
    }
}

/// Candidates of one thread: keys, positions in their tasks, and a histogram of the keys.
pub struct Candidates<K> {
    /// Their keys.
    pub keys: Vec<K>,
    /// Their positions, in order within a task.
    pub positions: Vec<u16>,
    /// One for each task that the thread did.
    pub segments: Vec<Segment>,
    tables: [[u32; BINS]; TABLES],
    lo: K,
    shift: u32,
    limit: usize,
    /// Whether there were more than the limit, or than memory could be had for, so that some are
    /// missing here.
    pub overflow: bool,
    /// How many there were, the missing ones among them.
    pub seen: usize,
}

impl<K: Word> Candidates<K> {
    /// None yet; at most about `limit` are stored, in the vectors given, which are empty.
    pub fn new(query: &Query<K>, limit: usize, keys: Vec<K>, positions: Vec<u16>) -> Self {
        let span = query.hi.to_u64() - query.lo.to_u64();
        let shift = (64 - span.leading_zeros()).saturating_sub(BINS.trailing_zeros());
        Candidates {
            keys,
            positions,
            segments: Vec::new(),
            tables: [[0; BINS]; TABLES],
            lo: query.lo,
            shift,
            limit,
            overflow: false,
            seen: 0,
        }
    }

    /// Number of candidates in a bin.
    fn count(&self, bin: usize) -> usize {
        self.tables.iter().map(|table| table[bin] as usize).sum()
    }

    fn bin(&self, key: K) -> usize {
        bin(key, self.lo, self.shift)
    }

    /// Stores collected items; `key` gives the key at a position.
    pub fn extend(&mut self, positions: &[u16], key: impl Fn(u16) -> K) {
        self.seen += positions.len();
        self.overflow |= self.seen > self.limit
            || self.positions.try_reserve(positions.len()).is_err()
            || self.keys.try_reserve(positions.len()).is_err();
        if self.overflow {
            return;
        }
        self.positions.extend_from_slice(positions);
        let (lo, shift, tables) = (self.lo, self.shift, &mut self.tables);
        self.keys.extend(positions.iter().enumerate().map(|(i, &position)| {
            let key = key(position);
            tables[i % TABLES][bin(key, lo, shift)] += 1;
            key
        }));
    }

    /// Ends a task: what was stored since the last end is its.
    pub fn end_task(&mut self, task: usize, equal_hi: usize, equal_lo: usize) -> Result<()> {
        let start = self.segments.last().map_or(0, |last| last.end);
        memory::push(&mut self.segments, Segment { task, start, end: self.keys.len(), equal_hi, equal_lo })
    }

    /// How many of each segment's candidates equal `key`.
    pub fn equal(&self, key: K) -> Result<Vec<usize>> {
        let equal = |segment: &Segment| self.keys[segment.range()].iter().filter(|&&other| other == key).count();
        memory::collect(self.segments.iter().map(equal))
    }

    /// Sets the bits of those of a segment's candidates that are above `key`, and of the first
    /// `ties` of the `equal` ones.
    pub fn set(&self, segment: &Segment, key: K, ties: usize, equal: usize, tasks: &Tasks, bits: &mut [u8]) {
        // No branch: which of the candidates are kept is as random as can be.
        let kept = |candidate: K| candidate > key || (ties > 0 && ties == equal && candidate == key);
        for (&candidate, &position) in self.of(segment) {
            tasks.set(bits, position, kept(candidate));
        }
        if ties < equal {
            for (_, &position) in self.of(segment).filter(|&(&candidate, _)| candidate == key).take(ties) {
                tasks.set(bits, position, true);
            }
        }
    }

    fn of(&self, segment: &Segment) -> impl Iterator<Item = (&K, &u16)> {
        self.keys[segment.range()].iter().zip(&self.positions[segment.range()])
    }
}

#[inline(always)]
fn bin<K: Word>(key: K, lo: K, shift: u32) -> usize {
    // A key that changed since it was collected may be anything; it lands somewhere.
    (key.to_u64().wrapping_sub(lo.to_u64()) >> shift).min(BINS as u64 - 1) as usize
}

/// The `rank`-th largest key (from 1) of all candidates, and how many of the candidates equal to it
/// belong to the `rank` largest. `None` where there are fewer.
pub fn nth_largest<K: Word>(all: &[&Candidates<K>], rank: usize, threads: usize) -> Result<Option<(K, usize)>> {
    let mut above = 0;
    let found = (0..BINS).rev().find(|&bin| {
        let here: usize = all.iter().map(|part| part.count(bin)).sum();
        let found = above + here >= rank;
        above += if found { 0 } else { here };
        found
    });
    let (Some(bin), Some(Candidates { lo, shift, .. })) = (found, all.first()) else { return Ok(None) };
    if *shift == 0 {
        // A bin is a key.
        return Ok(Some((K::from_u64(lo.to_u64() + bin as u64), rank - above)));
    }
    let parts = try_map(threads, all.len(), |i| {
        let mut keys = memory::with_capacity(all[i].count(bin))?;
        keys.extend(all[i].keys.iter().copied().filter(|&key| all[i].bin(key) == bin));
        Ok(keys)
    })?;
    let mut keys = memory::with_capacity(parts.iter().map(Vec::len).sum())?;
    parts.iter().for_each(|part| keys.extend_from_slice(part));
    let Some(nth) = keys.len().checked_sub(rank - above).filter(|&nth| nth < keys.len()) else { return Ok(None) };
    let (_, &mut key, larger) = keys.select_nth_unstable(nth);
    let larger = larger.iter().filter(|&&other| other > key).count();
    Ok(Some((key, rank - above - larger)))
}

/// A bracket around `key` for data that is alike: about `reach` candidates on either side.
pub fn bracket_around<K: Word>(candidates: &Candidates<K>, key: K, reach: usize) -> (K, K) {
    if candidates.seen > 4 * reach {
        // Twice as wide as it should be: its bins may be too wide to tell.
        return ranks_around(&candidates.keys, key, reach);
    }
    let centre = candidates.bin(key);
    let reached = |passed: &mut usize, bin| {
        *passed += candidates.count(bin);
        *passed >= reach
    };
    let (mut passed_below, mut passed_above) = (0, 0);
    let below = (0..centre).rev().position(|bin| reached(&mut passed_below, bin));
    let above = (centre + 1..BINS).position(|bin| reached(&mut passed_above, bin));
    // A side on which the bracket ended before is like the other one.
    let bins = |other: Option<usize>| other.unwrap_or(BINS) as u64 + 1;
    let (below, above) = (bins(below.or(above)), bins(above.or(below)));
    let bin = |bin: u64| candidates.lo.to_u64().saturating_add(bin.saturating_mul(1 << candidates.shift));
    let lo = bin(centre as u64).saturating_sub(below.saturating_mul(1 << candidates.shift));
    let hi = bin(centre as u64 + above + 1);
    (K::from_u64(lo.min(key.to_u64())), K::from_u64(hi.clamp(key.to_u64(), K::MAX.to_u64())))
}

/// The keys `reach` ranks below and above `key`, as far as there are. Where memory is short, the
/// key alone: a bracket that misses costs time only.
fn ranks_around<K: Word>(keys: &[K], key: K, reach: usize) -> (K, K) {
    let Ok(mut keys) = memory::collect(keys.iter().copied()) else { return (key, key) };
    let rank = keys.iter().filter(|&&other| other < key).count();
    let Some(last) = keys.len().checked_sub(1) else { return (key, key) };
    let (lower, upper) = (rank.saturating_sub(reach).min(last), (rank + reach).min(last));
    let hi = *keys.select_nth_unstable(upper).1;
    let lo = *keys.select_nth_unstable(lower).1;
    (lo.min(key), hi.max(key))
}
