//! Energy of the largest items, for many numbers of items at once.
//!
//! ```text
//! one pass:   count and energy of each bin, a bin being the keys with the same upper bits
//! for each number of zeros: the bin that the cut falls into
//! one pass:   collect the keys in those bins, and sort them            where a bin has more than one key
//! energy = bins above + the upper part of the cut's bin
//! ```
//!
//! Bins have eight bits of a float32's mantissa: no more than 0.3 % of normal weights share one.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::element::Word;
use crate::error::Result;
use crate::keys::{Keys, first_nan};
use crate::memory;
use crate::parallel::{Exec, try_map};

/// Upper bits of a key that a bin has.
const BITS: u32 = 16;

/// Runs with a table of their own, at most, and what makes one more worth its megabyte.
const PIECES: usize = 16;
const PER_PIECE: usize = 1 << 20;

/// Items that are sorted as they are: less work than a table.
const FEW: usize = 1 << 14;

/// Keys made at a time.
const CHUNK: usize = 2048;

#[derive(Clone, Copy, Default)]
struct Bin {
    count: u64,
    energy: f64,
}

/// Where a cut lies: `offset` items of bin `bin` are below it.
#[derive(Clone, Copy)]
struct Cut {
    bin: usize,
    offset: u64,
}

/// The energy of all items but the smallest `n`, for each `n` of `zeros`, which are not more than
/// there are.
pub fn of_largest<K: Keys>(keys: &K, zeros: &[usize], exec: Exec) -> Result<Vec<f64>> {
    assert!(zeros.iter().all(|&zeros| zeros <= keys.len()), "no more go than there are");
    let bits = u64::BITS - keys.max_key().to_u64().leading_zeros();
    let shift = if keys.len() <= FEW { bits } else { bits.saturating_sub(BITS) };
    let bins = count(keys, shift, exec)?;
    // Added from the largest down, so that what little is kept keeps its digits.
    let mut above = memory::filled(bins.len() + 1, 0.0)?;
    for (at, bin) in bins.iter().enumerate().rev() {
        above[at] = above[at + 1] + bin.energy;
    }
    let cuts = memory::collect(zeros.iter().map(|&zeros| cut(&bins, zeros as u64)))?;
    let mut wanted = memory::filled(bins.len(), false)?;
    for cut in cuts.iter().filter(|cut| cut.offset > 0 && shift > 0) {
        wanted[cut.bin] = true;
    }
    let inside = collect(keys, shift, &wanted, exec)?;
    memory::collect(cuts.iter().map(|cut| {
        let Some(bin) = bins.get(cut.bin) else { return 0.0 };
        if cut.offset == 0 {
            return above[cut.bin];
        }
        let part = if shift == 0 {
            (bin.count - cut.offset) as f64 * square(keys, K::Key::from_u64(cut.bin as u64))
        } else {
            let first = inside.partition_point(|&key| bin_of(key, shift) < cut.bin);
            let end = inside.partition_point(|&key| bin_of(key, shift) <= cut.bin);
            // Weights that another thread writes to meanwhile may have left the bin.
            let upper = inside[first..end].iter().skip(cut.offset as usize);
            upper.rev().map(|&key| square(keys, key)).sum()
        };
        above[cut.bin + 1] + part
    }))
}

/// The cut with `zeros` items below it.
fn cut(bins: &[Bin], zeros: u64) -> Cut {
    let mut below = 0;
    for (bin, &Bin { count, .. }) in bins.iter().enumerate() {
        if zeros < below + count {
            return Cut { bin, offset: zeros - below };
        }
        below += count;
    }
    Cut { bin: bins.len(), offset: 0 }
}

#[inline(always)]
fn square<K: Keys>(keys: &K, key: K::Key) -> f64 {
    let x = keys.value(key);
    x * x
}

#[inline(always)]
fn bin_of<W: Word>(key: W, shift: u32) -> usize {
    key.to_u64().checked_shr(shift).unwrap_or(0) as usize
}

/// Calls `f` with the keys of each chunk of a run and the index of its first.
fn each_chunk<K: Keys>(keys: &K, run: Range<usize>, mut f: impl FnMut(usize, &[K::Key]) -> Result<()>) -> Result<()> {
    let mut chunk = [K::Key::default(); CHUNK];
    for start in run.clone().step_by(CHUNK) {
        let chunk = &mut chunk[..CHUNK.min(run.end - start)];
        keys.fill(start, chunk)?;
        f(start, chunk)?;
    }
    Ok(())
}

/// Calls `f` with each run of the items, on several threads; runs follow from the number of items
/// alone.
fn map_runs<T: Send>(len: usize, exec: Exec, f: impl Fn(Range<usize>) -> Result<T> + Sync) -> Result<Vec<T>> {
    let pieces = (len / PER_PIECE).clamp(1, PIECES);
    let each = len.div_ceil(pieces);
    try_map(exec.threads, pieces, |i| f((i * each).min(len)..((i + 1) * each).min(len)))
}

/// Count and energy of each bin. Fails on the first NaN.
fn count<K: Keys>(keys: &K, shift: u32, exec: Exec) -> Result<Vec<Bin>> {
    let nan = AtomicUsize::new(usize::MAX);
    let number = bin_of(keys.max_key(), shift) + 1;
    let tables = map_runs(keys.len(), exec, |run| {
        let mut bins = memory::filled(number, Bin::default())?;
        each_chunk(keys, run, |start, chunk| {
            if chunk.iter().fold(K::Key::default(), |most, &key| most.max(key)) > keys.max_key() {
                nan.fetch_min(start, Ordering::Relaxed);
                return Ok(());
            }
            for &key in chunk {
                let bin = &mut bins[bin_of(key, shift)];
                bin.count += 1;
                if shift > 0 {
                    bin.energy += square(keys, key);
                }
            }
            Ok(())
        })?;
        Ok(bins)
    })?;
    let nan = nan.into_inner();
    if nan < keys.len() {
        return Err(first_nan(keys, nan..keys.len()));
    }
    let mut total = memory::filled(number, Bin::default())?;
    for (i, bin) in total.iter_mut().enumerate() {
        bin.count = tables.iter().map(|bins| bins[i].count).sum();
        bin.energy = if shift > 0 {
            tables.iter().map(|bins| bins[i].energy).sum()
        } else if bin.count > 0 {
            bin.count as f64 * square(keys, K::Key::from_u64(i as u64))
        } else {
            0.0
        };
    }
    Ok(total)
}

/// The keys in the wanted bins, sorted.
fn collect<K: Keys>(keys: &K, shift: u32, wanted: &[bool], exec: Exec) -> Result<Vec<K::Key>> {
    if !wanted.contains(&true) {
        return Ok(Vec::new());
    }
    let parts = map_runs(keys.len(), exec, |run| {
        let mut found = Vec::new();
        each_chunk(keys, run, |_, chunk| {
            // Written always, kept by moving on: whether a key is wanted cannot be predicted.
            let mut some = [K::Key::default(); CHUNK];
            let mut number = 0;
            for &key in chunk {
                some[number] = key;
                number += wanted.get(bin_of(key, shift)).is_some_and(|&wanted| wanted) as usize;
            }
            memory::extend(&mut found, &some[..number])
        })?;
        Ok(found)
    })?;
    let mut all = memory::with_capacity(parts.iter().map(Vec::len).sum())?;
    parts.iter().for_each(|part| all.extend_from_slice(part));
    all.sort_unstable();
    Ok(all)
}
