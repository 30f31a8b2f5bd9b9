//! Whether a mask keeps in every group what it should.
//!
//! Neighbouring groups of 2^k bits are counted 64 bits at a time, in fields of a word; groups that
//! lie side by side are, too: bit p of the count of lane l is bit l of word p. All others are
//! counted one by one.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::bits;
use super::geometry::{Geometry, Item, Lines, Slabs};
use super::{Axis, Groups};
use crate::error::{Error, Result};
use crate::matrix::Matrix;
use crate::parallel::{self, Exec};

/// Elements for which a second thread pays.
const ELEMENTS_PER_THREAD: usize = 1 << 20;

/// Checks a mask against the groups it is said to obey: every full group keeps exactly `of −
/// zeros`, a shorter one what the tail says. Fails with the first group that does not.
pub fn verify(shape: Matrix, axis: Axis, groups: Groups, mask: &[u8], exec: Exec) -> Result<()> {
    assert!(mask.len() == shape.mask_bytes(), "the mask is as large as the tensor");
    assert!(axis.outer * axis.len * axis.inner == shape.len(), "the axis is one of the tensor");
    assert!(groups.zeros <= groups.of && groups.of > 0, "a group has items, and not more zeros than those");
    let asked = groups;
    let groups = groups.within(axis.len)?;
    if shape.is_empty() {
        return Ok(());
    }
    let geometry = Geometry::new(shape, axis, groups);
    let first = AtomicUsize::new(usize::MAX);
    parallel::run(exec.for_work(shape.len(), ELEMENTS_PER_THREAD).threads, geometry.units(), |unit| {
        let found = match &geometry {
            Geometry::Lines(geometry) => in_lines(geometry, groups, mask, unit),
            Geometry::Slabs(geometry) => {
                geometry.unit(unit).filter_map(|item| in_slab(geometry, groups, mask, item)).min()
            }
        };
        first.fetch_min(found.unwrap_or(usize::MAX), Ordering::Relaxed);
    });
    match first.into_inner() {
        usize::MAX => Ok(()),
        first => Err(Error::Group { first, groups: asked.in_words() }),
    }
}

/// First element of the first group of a unit that keeps something else.
fn in_lines(geometry: &Lines, groups: Groups, mask: &[u8], unit: usize) -> Option<usize> {
    let span = geometry.unit(unit);
    let tail = if geometry.has_tail(&span) { geometry.tail() } else { 0 };
    span.lines.clone().find_map(|line| {
        let (element, bit) = (line * geometry.line, geometry.bit(line));
        let start = span.groups.start * geometry.of;
        let keep = geometry.of - groups.zeros;
        let wrong = in_run(mask, bit + start, span.groups.len(), geometry.of, keep).map(|at| element + start + at);
        let end = span.groups.end * geometry.of;
        wrong.or_else(|| (count(mask, bit + end, tail) != tail - groups.zeros_in(tail)).then_some(element + end))
    })
}

/// First bit, from bit `at` on, of the first of the next `number` groups that does not keep `keep`
/// of its `of` bits.
fn in_run(mask: &[u8], at: usize, number: usize, of: usize, keep: usize) -> Option<usize> {
    let mut done = 0;
    if of.is_power_of_two() && of <= 64 {
        let expected = u64::MAX / (u64::MAX >> (64 - of)) * keep as u64;
        while (number - done) * of >= 64 {
            let wrong = fields(bits::get(mask, at + done * of, 64), of) ^ expected;
            if wrong != 0 {
                return Some(done * of + wrong.trailing_zeros() as usize / of * of);
            }
            done += 64 / of;
        }
    }
    (done..number).map(|group| group * of).find(|&start| count(mask, at + start, of) != keep)
}

/// The number of ones in each field of `of` bits, `of` a power of two.
pub(super) fn fields(word: u64, of: usize) -> u64 {
    const LOWER: [u64; 6] =
        [u64::MAX / 3, u64::MAX / 5, u64::MAX / 17, u64::MAX / 257, u64::MAX / 65537, u64::MAX >> 32];
    let steps = of.trailing_zeros() as usize;
    LOWER[..steps].iter().enumerate().fold(word, |word, (k, lower)| (word & lower) + (word >> (1 << k) & lower))
}

/// The number of ones among `length` bits.
pub(super) fn count(mask: &[u8], at: usize, length: usize) -> usize {
    (0..length).step_by(64).map(|k| bits::get(mask, at + k, 64.min(length - k)).count_ones() as usize).sum()
}

/// First element of the first group of an item that keeps something else.
fn in_slab(geometry: &Slabs, groups: Groups, mask: &[u8], item: Item) -> Option<usize> {
    let keep = item.length - groups.zeros_in(item.length);
    item.parts(64).find_map(|part| {
        let mut counts = [0u64; usize::BITS as usize];
        for row in 0..part.length {
            let mut carry = bits::get(mask, part.bit + row * geometry.bit_pitch, part.width);
            for count in &mut counts {
                (*count, carry) = (*count ^ carry, *count & carry);
                if carry == 0 {
                    break;
                }
            }
        }
        let bit = |p: usize| if keep >> p & 1 == 1 { u64::MAX >> (64 - part.width) } else { 0 };
        let wrong = counts.iter().enumerate().fold(0, |wrong, (p, count)| wrong | (count ^ bit(p)));
        (wrong != 0).then(|| part.element + wrong.trailing_zeros() as usize)
    })
}
