//! Energy by rank within groups.
//!
//! ```text
//! for some groups, a lane each:  row k = key k of every group
//! sort the lanes                 Batcher's merge exchange, a comparator being a minimum and a maximum of rows
//! energy[k] += squares of row k
//! ```
//!
//! A comparator works on rows of [`WIDTH`] lanes: long enough that looking it up in a table costs
//! nothing.

use super::LARGEST_GROUP;
use crate::element::Word;
use crate::error::Result;
use crate::isa::Kernel;
use crate::keys::{Keys, first_nan};
use crate::memory;
use crate::nm::Axis;
use crate::parallel::{Exec, try_map};

/// Groups that are sorted at a time.
const WIDTH: usize = 64;

/// Runs of groups that threads take in turn.
const PIECES: usize = 64;

/// Keys for which a thread of its own pays.
const PER_THREAD: usize = 1 << 16;

/// The energy of the items of each rank, the smallest first: of the full groups of `of` neighbours
/// along the axis, and of the shorter ones at its end, of which there may be none.
pub fn by_rank<K: Keys>(keys: &K, axis: Axis, of: usize, exec: Exec) -> Result<(Vec<f64>, Vec<f64>)> {
    assert!(axis.outer * axis.len * axis.inner == keys.len(), "the axis is one of the tensor");
    assert!((1..=LARGEST_GROUP).contains(&of), "a group has items, and not too many");
    // Lines without a rest are one long line.
    let whole = axis.inner == 1 && axis.len.is_multiple_of(of);
    let axis = if whole { Axis { outer: 1, len: keys.len(), inner: 1 } } else { axis };
    let (full, rest) = (axis.len / of, axis.len % of);
    let groups = Groups { axis, start: 0, of, per_line: full };
    let tails = Groups { axis, start: full * of, of: rest, per_line: 1 };
    Ok((groups.energies(keys, exec)?, tails.energies(keys, exec)?))
}

/// Groups of one length, numbered as their first items follow each other in memory.
#[derive(Clone, Copy)]
struct Groups {
    axis: Axis,
    /// Where the first of a line begins.
    start: usize,
    of: usize,
    per_line: usize,
}

impl Groups {
    fn len(self) -> usize {
        self.axis.outer * self.per_line * self.axis.inner
    }

    fn energies<K: Keys>(self, keys: &K, exec: Exec) -> Result<Vec<f64>> {
        if self.of == 0 || self.len() == 0 {
            return memory::filled(self.of, 0.0);
        }
        let comparators = merge_exchange(self.of);
        let each = self.len().div_ceil(PIECES).next_multiple_of(WIDTH);
        let threads = exec.for_work(self.len() * self.of, PER_THREAD).threads;
        let pieces = try_map(threads, self.len().div_ceil(each), |piece| {
            let mut energies = memory::filled(self.of, 0.0)?;
            let mut rows = memory::filled(self.of, [K::Key::default(); WIDTH])?;
            let mut run = memory::filled(self.of * WIDTH, K::Key::default())?;
            let end = self.len().min((piece + 1) * each);
            for first in (piece * each..end).step_by(WIDTH) {
                let width = WIDTH.min(end - first);
                rows.iter_mut().for_each(|row| row[width..].fill(K::Key::default()));
                self.load(keys, first, width, &mut run, &mut rows)?;
                let comparators = &comparators[..];
                if exec.isa.run(SortAndSum { keys, comparators, rows: &mut rows, energies: &mut energies }) {
                    return Err(first_nan(keys, 0..keys.len()));
                }
            }
            Ok(energies)
        })?;
        memory::collect((0..self.of).map(|rank| pieces.iter().map(|energies| energies[rank]).sum()))
    }

    /// Writes the keys of `width` groups from number `first` on, a lane each. `run` has room for as
    /// many.
    fn load<K: Keys>(
        self,
        keys: &K,
        first: usize,
        width: usize,
        run: &mut [K::Key],
        rows: &mut [[K::Key; WIDTH]],
    ) -> Result<()> {
        let Axis { len, inner, .. } = self.axis;
        // Groups side by side: those of one line, or those that begin in one row.
        let side_by_side = if inner == 1 { self.per_line } else { inner };
        let mut lane = 0;
        while lane < width {
            let group = first + lane;
            let (line, at) = (group / inner / self.per_line, group / inner % self.per_line);
            let item = (line * len + self.start + at * self.of) * inner + group % inner;
            let count = (side_by_side - group % side_by_side).min(width - lane);
            if inner == 1 {
                let run = &mut run[..count * self.of];
                keys.fill(item, run)?;
                match self.of {
                    2 => transpose::<_, 2>(run, lane, rows),
                    4 => transpose::<_, 4>(run, lane, rows),
                    8 => transpose::<_, 8>(run, lane, rows),
                    16 => transpose::<_, 16>(run, lane, rows),
                    of => rows.iter_mut().enumerate().for_each(|(k, row)| {
                        let column = run[k..].iter().step_by(of);
                        row[lane..lane + count].iter_mut().zip(column).for_each(|(place, &key)| *place = key);
                    }),
                }
            } else {
                for (k, row) in rows.iter_mut().enumerate() {
                    keys.fill(item + k * inner, &mut row[lane..lane + count])?;
                }
            }
            lane += count;
        }
        Ok(())
    }
}

/// Groups of `N` keys that follow each other to the lanes from `lane` on. With their length known
/// the loop takes half as long.
fn transpose<W: Word, const N: usize>(run: &[W], lane: usize, rows: &mut [[W; WIDTH]]) {
    let (groups, _) = run.as_chunks::<N>();
    let rows: &mut [[W; WIDTH]; N] = rows.first_chunk_mut().expect("there is a row for each key of a group");
    assert!(lane + groups.len() <= WIDTH);
    for (i, group) in groups.iter().enumerate() {
        for k in 0..N {
            rows[k][lane + i] = group[k];
        }
    }
}

/// The comparators that sort `n` places, each the place of the smaller key and that of the larger
/// (Knuth, The Art of Computer Programming 5.2.2, algorithm M).
fn merge_exchange(n: usize) -> Vec<(usize, usize)> {
    let mut comparators = Vec::new();
    let top = n.next_power_of_two() / 2;
    let mut p = top;
    while p > 0 {
        let (mut q, mut r, mut d) = (top, 0, p);
        loop {
            comparators.extend((0..n.saturating_sub(d)).filter(|i| i & p == r).map(|i| (i, i + d)));
            if q == p {
                break;
            }
            (d, q, r) = (q - p, q / 2, p);
        }
        p /= 2;
    }
    comparators
}

struct SortAndSum<'a, K: Keys> {
    keys: &'a K,
    comparators: &'a [(usize, usize)],
    rows: &'a mut [[K::Key; WIDTH]],
    energies: &'a mut [f64],
}

impl<K: Keys> Kernel for SortAndSum<'_, K> {
    /// Whether a key is NaN.
    type Output = bool;
    #[inline(always)]
    fn run(self) -> bool {
        for &(low, high) in self.comparators {
            let (before, after) = self.rows.split_at_mut(high);
            for (a, b) in before[low].iter_mut().zip(&mut after[0]) {
                (*a, *b) = ((*a).min(*b), (*a).max(*b));
            }
        }
        for (energy, row) in self.energies.iter_mut().zip(self.rows.iter()) {
            let mut lanes = [0.0; 8];
            for group in row.as_chunks::<8>().0 {
                for (lane, &key) in lanes.iter_mut().zip(group) {
                    let x = self.keys.value(key);
                    *lane += x * x;
                }
            }
            *energy += lanes.iter().sum::<f64>();
        }
        self.rows.last().is_some_and(|largest| largest.iter().any(|&key| key > self.keys.max_key()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "takes too long there")]
    fn every_length_is_sorted() {
        for n in 1..=LARGEST_GROUP {
            // Zeros and ones suffice (Knuth 5.3.4, theorem Z): all of them up to ten places, else
            // runs of ones.
            let all = (0..1u64 << n.min(10)).filter(|_| n <= 10);
            let runs = (0..=n).flat_map(|end| (0..end).map(move |first| u64::MAX >> (64 - end) >> first << first));
            for ones in all.chain(runs) {
                let mut places: Vec<u64> = (0..n).map(|i| ones >> i & 1).collect();
                for (low, high) in merge_exchange(n) {
                    if places[low] > places[high] {
                        places.swap(low, high);
                    }
                }
                assert!(places.is_sorted(), "{n} {ones:b}");
            }
        }
    }
}
