//! Groups of more than 64: the smallest kept key by bisection of the numbers between the smallest
//! and the largest key.
//!
//! ```text
//! low = min, high = max + 1                  count(key ≥ low) ≥ keep > count(key ≥ high)
//! until high = low + 1, or some count(key ≥ middle) is exactly keep:  halve
//! ```
//!
//! Each step counts over keys that lie in the first or second cache: for normal numbers some twelve
//! steps, never more than the key has bits.

use super::bits;
use super::geometry::{Geometry, Item, Lines, Slabs};
use super::kernel::Work;
use super::lines::Target;
use super::vector::Vector;
use crate::element::Word;
use crate::error::Result;
use crate::memory;

/// Unit `i`; the largest key seen.
///
/// # Safety
/// The unit does not run elsewhere at the same time.
#[inline(always)]
pub(super) unsafe fn unit<W: Word, V: Vector<W>>(proof: V::Proof, work: &Work<W>, i: usize) -> Result<W> {
    // SAFETY: the caller's promise.
    unsafe {
        match &work.geometry {
            Geometry::Lines(geometry) => lines::<W, V>(proof, work, geometry, i),
            Geometry::Slabs(geometry) => slabs::<W, V>(proof, work, geometry, i),
        }
    }
}

/// # Safety
/// As for [`unit`].
#[inline(always)]
unsafe fn lines<W: Word, V: Vector<W>>(proof: V::Proof, work: &Work<W>, geometry: &Lines, i: usize) -> Result<W> {
    // SAFETY: the caller's promise.
    let Target { mask, first_bit } = unsafe { Target::new(work, geometry, i) };
    let unit = geometry.unit(i);
    let mut group = Group::new(geometry.of)?;
    let mut largest = W::default();
    for line in unit.lines.clone() {
        for g in unit.groups.start..unit.groups.end + geometry.has_tail(&unit) as usize {
            let length = geometry.of.min(geometry.line - g * geometry.of);
            if length == 0 {
                continue;
            }
            work.keys.fill(line * geometry.line + g * geometry.of, &mut group.keys[..length])?;
            largest = largest.max(group.select::<V>(proof, length, length - work.groups.zeros_in(length)));
            let bit = geometry.bit(line) + g * geometry.of - first_bit;
            for (k, &word) in group.kept[..length.div_ceil(64)].iter().enumerate() {
                bits::put(mask, bit + 64 * k, word, (length - 64 * k).min(64));
            }
        }
    }
    Ok(largest)
}

/// # Safety
/// As for [`unit`].
#[inline(always)]
unsafe fn slabs<W: Word, V: Vector<W>>(proof: V::Proof, work: &Work<W>, geometry: &Slabs, i: usize) -> Result<W> {
    // A cache line of columns at a time.
    let columns = (64 / W::BYTES).min(geometry.inner);
    // SAFETY: the caller's promise.
    unsafe { geometry.clear(i, &work.mask) };
    let longest = work.groups.of;
    let mut group = Group::new(longest)?;
    let mut keys = memory::zeros(longest * columns)?;
    let mut rows = memory::zeros(longest)?;
    let mut largest = W::default();
    for item in geometry.unit(i) {
        let keep = item.length - work.groups.zeros_in(item.length);
        for first in (0..item.width).step_by(columns) {
            let width = columns.min(item.width - first);
            for (row, out) in keys.chunks_exact_mut(columns).take(item.length).enumerate() {
                work.keys.fill(item.element + row * geometry.inner + first, &mut out[..width])?;
            }
            rows.fill(0);
            for column in 0..width {
                for (key, row) in group.keys.iter_mut().zip(keys.chunks_exact(columns)).take(item.length) {
                    *key = row[column];
                }
                largest = largest.max(group.select::<V>(proof, item.length, keep));
                group.spread(column, &mut rows[..item.length]);
            }
            // SAFETY: the caller's promise: the item belongs to the unit.
            unsafe { put_rows(work, geometry, Item { bit: item.bit + first, width, ..item }, &rows) };
        }
    }
    Ok(largest)
}

/// Writes `width` bits for each row of an item.
///
/// # Safety
/// The unit of the item runs here and nowhere else.
unsafe fn put_rows<W: Word>(work: &Work<W>, geometry: &Slabs, item: Item, rows: &[u64]) {
    for (row, &word) in rows[..item.length].iter().enumerate() {
        let bit = item.bit + row * geometry.bit_pitch;
        // SAFETY: the bytes that the bits of an item lie in belong to its unit.
        let bytes = unsafe { work.mask.slice(bit / 8, (bit + item.width).div_ceil(8) - bit / 8) };
        bits::put(bytes, bit % 8, word, item.width);
    }
}

/// The keys of a group, and which of them are kept.
struct Group<W> {
    keys: Vec<W>,
    kept: Vec<u64>,
}

impl<W: Word> Group<W> {
    fn new(longest: usize) -> Result<Self> {
        let words = longest.div_ceil(64);
        Ok(Group { keys: memory::zeros(64 * words)?, kept: memory::zeros(words)? })
    }

    /// Selects among the first `length` keys; the largest of them.
    #[inline(always)]
    fn select<V: Vector<W>>(&mut self, proof: V::Proof, length: usize, keep: usize) -> W {
        let keys = &self.keys[..length];
        let smallest = keys.iter().copied().min().unwrap_or_default();
        let largest = keys.iter().copied().max().unwrap_or_default();
        // Zeros after the last key: they are below every threshold that is tried.
        self.keys[length..length.next_multiple_of(64)].fill(W::default());
        let (threshold, mut excess) = self.bisect::<V>(proof, smallest.to_u64(), largest.to_u64(), length, keep);
        let threshold = V::splat(proof, W::from_u64(threshold));
        for k in (0..length.div_ceil(64)).rev() {
            let real = u64::MAX >> (64 - (length - 64 * k).min(64));
            let (reach, equal) = compare::<W, V>(proof, &self.keys.as_chunks::<64>().0[k], threshold);
            self.kept[k] = (reach & real) ^ last_ones(equal & real, &mut excess);
        }
        largest
    }

    /// The smallest kept key (or a word above the next smaller one), and how many keys too many
    /// reach it.
    #[inline(always)]
    fn bisect<V: Vector<W>>(
        &self,
        proof: V::Proof,
        mut low: u64,
        largest: u64,
        length: usize,
        keep: usize,
    ) -> (u64, usize) {
        let mut reach_low = length;
        let mut last = largest;
        while reach_low > keep && low < last {
            let middle = last - (last - low) / 2;
            let reach = count::<W, V>(proof, &self.keys[..length.next_multiple_of(64)], W::from_u64(middle));
            if reach >= keep {
                (low, reach_low) = (middle, reach);
            } else {
                last = middle - 1;
            }
        }
        (low, reach_low - keep)
    }

    /// Puts what is kept into bit `column` of the rows.
    #[inline(always)]
    fn spread(&self, column: usize, rows: &mut [u64]) {
        for (rows, &word) in rows.chunks_mut(64).zip(&self.kept) {
            for (k, row) in rows.iter_mut().enumerate() {
                *row |= (word >> k & 1) << column;
            }
        }
    }
}

/// The highest `wanted` bits of `word`, or all; takes them off `wanted`.
#[inline(always)]
fn last_ones(word: u64, wanted: &mut usize) -> u64 {
    let mut left = word;
    while *wanted > 0 && left != 0 {
        left ^= 1 << (63 - left.leading_zeros());
        *wanted -= 1;
    }
    word ^ left
}

/// How many keys reach the threshold.
#[inline(always)]
fn count<W: Word, V: Vector<W>>(proof: V::Proof, keys: &[W], threshold: W) -> usize {
    let threshold = V::splat(proof, threshold);
    let mut count = 0;
    for chunk in keys.as_chunks::<64>().0 {
        for first in (0..64).step_by(V::LANES) {
            // SAFETY: `first + LANES ≤ 64`.
            let keys = unsafe { V::load(proof, chunk.as_ptr().add(first)) };
            count += V::bits(keys.ge(threshold)).count_ones() as usize;
        }
    }
    count
}

/// Which keys reach the threshold, and which equal it.
#[inline(always)]
fn compare<W: Word, V: Vector<W>>(proof: V::Proof, chunk: &[W; 64], threshold: V) -> (u64, u64) {
    let (mut reach, mut equal) = (0, 0);
    for first in (0..64).step_by(V::LANES) {
        // SAFETY: `first + LANES ≤ 64`.
        let keys = unsafe { V::load(proof, chunk.as_ptr().add(first)) };
        reach |= V::bits(keys.ge(threshold)) << first;
        equal |= V::bits(keys.equal(threshold)) << first;
    }
    (reach, equal)
}
