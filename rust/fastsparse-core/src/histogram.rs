//! Counting magnitudes by value: what pruning a whole checkpoint at one threshold is made of.
//!
//! |x| as float64 has 63 bits, which order as the numbers do. A count looks at a window of them:
//!
//! ```text
//! key = bits of |x| as float64
//! key < low:                          below += 1
//! (key − low) >> shift < BINS:        bins[(key − low) >> shift] += 1
//! ```
//!
//! Three windows of 21 bits, each inside of one bin of the one before, find any threshold exactly;
//! the first alone settles every type with no more than ten bits of mantissa, the second float32.
//! Types of up to 16 bits are counted by their codes, of which each stands for one key.
//!
//! Once the threshold is known, what lies below it and at it needs no bins: [`rank`] compares at
//! the speed of memory.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::element::{Element, Word};
use crate::error::Result;
use crate::isa::Kernel;
use crate::keys::{Magnitude, first_nan};
use crate::memory;
use crate::parallel::{Exec, try_run_with};

/// Bits of a key that one count tells apart.
pub const WINDOW: u32 = 21;

/// Bins of a count.
pub const BINS: usize = 1 << WINDOW;

/// Magnitudes of the types that are counted by their codes.
const CODES: usize = 1 << 15;

/// Elements of a task.
const PER_TASK: usize = 1 << 16;

/// Elements for which a thread of its own pays: each fills and hands in a table of its own.
const PER_THREAD: usize = 1 << 22;

/// What a count found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts {
    /// Elements below the window.
    pub below: u64,
    /// Number and elements of each bin that is not empty, in order.
    pub bins: Vec<(usize, u64)>,
}

/// How magnitudes stand to a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rank {
    /// How many are below it.
    pub below: u64,
    /// How many equal it.
    pub equal: u64,
    /// How many are zero.
    pub zero: u64,
}

/// Counts the magnitudes of `weights` in the window that starts at `low` with bins of `1 << shift`
/// keys; `shift` is below 64. Fails on the first NaN.
pub fn count<E: Element>(weights: &[E::Bits], low: u64, shift: u32, exec: Exec) -> Result<Counts> {
    let narrow = E::Bits::BYTES <= 2;
    let nan = AtomicUsize::new(usize::MAX);
    let threads = exec.for_work(weights.len(), PER_THREAD).threads;
    let table = || Ok((0, memory::zeros(if narrow { 2 * CODES } else { BINS })?));
    let mut tables = try_run_with(threads, weights.len().div_ceil(PER_TASK), table, |(below, slots), i| {
        let start = i * PER_TASK;
        let chunk = &weights[start..weights.len().min(start + PER_TASK)];
        if exec.isa.run(Compare::<E> { chunk, cut: E::MAX_MAGNITUDE }).1 {
            nan.fetch_min(start, Ordering::Relaxed);
        } else if narrow {
            by_code::<E>(chunk, slots);
        } else {
            by_value::<E>(chunk, low, shift, below, slots);
        }
        Ok(())
    })?;
    check_nan::<E>(weights, nan.into_inner())?;
    let Some((mut below, mut slots)) = tables.pop() else { return Ok(Counts::default()) };
    for (other, counts) in tables {
        below += other;
        slots.iter_mut().zip(counts).for_each(|(slot, count)| *slot += count);
    }
    if narrow {
        let (first, second) = slots.split_at_mut(CODES);
        first.iter_mut().zip(second).for_each(|(slot, count)| *slot += *count);
        slots.truncate(CODES);
    }
    let filled = slots.into_iter().enumerate().filter(|&(_, count)| count != 0);
    if narrow { from_codes::<E>(filled, low, shift) } else { Ok(Counts { below, bins: memory::collect(filled)? }) }
}

/// Fails with the first NaN from `start` on, if that is one of the weights.
fn check_nan<E: Element>(weights: &[E::Bits], start: usize) -> Result<()> {
    if start < weights.len() { Err(first_nan(&Magnitude::<E>(weights), start..weights.len())) } else { Ok(()) }
}

/// How the magnitudes stand to the one whose float64 has the bits `low`. Fails on the first NaN.
pub fn rank<E: Element>(weights: &[E::Bits], low: u64, exec: Exec) -> Result<Rank> {
    let (mut least, mut beyond) = (0, E::MAX_MAGNITUDE.to_u64() + 1);
    while least < beyond {
        let middle = least + (beyond - least) / 2;
        if key::<E>(E::Bits::from_u64(middle)) < low { least = middle + 1 } else { beyond = middle }
    }
    // Above all magnitudes everything is below; `MAX_MAGNITUDE` then has to be counted in.
    let all_below = least > E::MAX_MAGNITUDE.to_u64();
    let cut = E::Bits::from_u64(least.min(E::MAX_MAGNITUDE.to_u64()));
    let tied = all_below || key::<E>(cut) == low;
    let nan = AtomicUsize::new(usize::MAX);
    let threads = exec.for_work(weights.len(), PER_TASK).threads;
    let counts = try_run_with(
        threads,
        weights.len().div_ceil(PER_TASK),
        || Ok(Rank::default()),
        |sum, i| {
            let start = i * PER_TASK;
            let chunk = &weights[start..weights.len().min(start + PER_TASK)];
            let (found, invalid) = exec.isa.run(Compare::<E> { chunk, cut });
            if invalid {
                nan.fetch_min(start, Ordering::Relaxed);
            }
            *sum = add(*sum, found);
            Ok(())
        },
    )?;
    check_nan::<E>(weights, nan.into_inner())?;
    let Rank { below, equal, zero } = counts.into_iter().fold(Rank::default(), add);
    Ok(if all_below {
        Rank { below: below + equal, equal: 0, zero }
    } else {
        Rank { below, equal: if tied { equal } else { 0 }, zero }
    })
}

fn add(a: Rank, b: Rank) -> Rank {
    Rank { below: a.below + b.below, equal: a.equal + b.equal, zero: a.zero + b.zero }
}

/// How the magnitudes of a task stand to the cut, and whether one is above all numbers.
struct Compare<'a, E: Element> {
    chunk: &'a [E::Bits],
    cut: E::Bits,
}

impl<E: Element> Kernel for Compare<'_, E> {
    type Output = (Rank, bool);
    #[inline(always)]
    fn run(self) -> (Rank, bool) {
        let (mut less, mut same, mut none, mut invalid) = (0u32, 0u32, 0u32, 0u32);
        for &bits in self.chunk {
            let magnitude = E::magnitude(bits);
            less += (magnitude < self.cut) as u32;
            same += (magnitude == self.cut) as u32;
            none += (magnitude == E::Bits::default()) as u32;
            invalid += (magnitude > E::MAX_MAGNITUDE) as u32;
        }
        (Rank { below: less.into(), equal: same.into(), zero: none.into() }, invalid != 0)
    }
}

/// Neighbours count in tables of their own: equal ones need not wait for each other's sums.
fn by_code<E: Element>(weights: &[E::Bits], slots: &mut [u64]) {
    let (even, odd) = slots.split_at_mut(CODES);
    let slot = |bits| E::magnitude(bits).to_u64() as usize % CODES;
    let (pairs, last) = weights.as_chunks::<2>();
    for &[first, second] in pairs {
        even[slot(first)] += 1;
        odd[slot(second)] += 1;
    }
    for &bits in last {
        even[slot(bits)] += 1;
    }
}

fn by_value<E: Element>(weights: &[E::Bits], low: u64, shift: u32, below: &mut u64, slots: &mut [u64]) {
    let mut less = 0;
    for &bits in weights {
        let key = key::<E>(E::magnitude(bits));
        less += (key < low) as u64;
        // What is below wraps around and lands beyond the last bin; whether one is hit is easy to
        // predict: in the first window always, in the others hardly ever.
        if let Some(slot) = slots.get_mut((key.wrapping_sub(low) >> shift) as usize)
            && key >= low
        {
            *slot += 1;
        }
    }
    *below += less;
}

fn from_codes<E: Element>(codes: impl Iterator<Item = (usize, u64)>, low: u64, shift: u32) -> Result<Counts> {
    let mut counts = Counts::default();
    for (code, count) in codes {
        let key = key::<E>(E::Bits::from_u64(code as u64));
        let bin = (key.wrapping_sub(low) >> shift) as usize;
        if key < low {
            counts.below += count;
        } else if bin < BINS {
            match counts.bins.last_mut() {
                Some((last, total)) if *last == bin => *total += count,
                _ => memory::push(&mut counts.bins, (bin, count))?,
            }
        }
    }
    Ok(counts)
}

fn key<E: Element>(magnitude: E::Bits) -> u64 {
    E::magnitude_value(magnitude).to_bits()
}
