//! The zeros that all groups of a mask have: what n:m a tensor obeys that somebody else has pruned.
//!
//! A group *has* n:m if it drops at least n. Quantising a pruned tensor makes some more zeros, so
//! that groups with more do not speak against it as long as they are few; where many have more, the
//! least number is chance. Thus the result is the least number of zeros of all full groups, where
//! at least three in four have exactly that.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use super::geometry::{Geometry, Item, Lines, Slabs};
use super::verify::{count, fields};
use super::{Axis, Groups, Tail};
use crate::matrix::{Matrix, low, word_at};
use crate::parallel::{self, Exec};

/// Longest groups that are looked at.
const LONGEST: usize = 64;

/// Elements for which a second thread pays.
const ELEMENTS_PER_THREAD: usize = 1 << 20;

/// What groups have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Common {
    /// Zeros of a full group.
    pub zeros: usize,
    /// The least number of zeros in a shorter group at the end of the axis; None where there are no
    /// such groups.
    pub in_tail: Option<usize>,
}

/// The number of zeros that the full groups of `of` neighbours along the axis have in common, if
/// that is not zero. The axis is at least as long as a group.
pub fn common_zeros(shape: Matrix, axis: Axis, of: usize, mask: &[u8], exec: Exec) -> Option<Common> {
    assert!(mask.len() == shape.mask_bytes(), "the mask is as large as the tensor");
    assert!(axis.outer * axis.len * axis.inner == shape.len(), "the axis is one of the tensor");
    assert!((1..=LONGEST.min(axis.len)).contains(&of), "a group has items, and not too many");
    if shape.is_empty() {
        return None;
    }
    let geometry = Geometry::new(shape, axis, Groups { zeros: 0, of, tail: Tail::Keep });
    let groups = (axis.outer * (axis.len / of) * axis.inner) as u64;
    let (found, hopeless) = (Mutex::new(Tally::default()), AtomicBool::new(false));
    parallel::run(exec.for_work(shape.len(), ELEMENTS_PER_THREAD).threads, geometry.units(), |unit| {
        if hopeless.load(Ordering::Relaxed) {
            return;
        }
        let mut tally = Tally::default();
        match &geometry {
            Geometry::Lines(geometry) => in_lines(geometry, mask, unit, &mut tally),
            Geometry::Slabs(geometry) => {
                geometry.unit(unit).for_each(|item| in_slab(geometry, mask, of, item, &mut tally))
            }
        }
        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
        found.add(&tally);
        if found.kept[of] > 0 || 4 * found.uncommon() > groups {
            hopeless.store(true, Ordering::Relaxed);
        }
    });
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    let most = found.most_kept()?;
    let common = Common { zeros: of - most, in_tail: found.in_tail };
    (!hopeless.into_inner() && common.zeros > 0).then_some(common)
}

/// How many groups keep how many.
struct Tally {
    kept: [u64; LONGEST + 1],
    in_tail: Option<usize>,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally { kept: [0; LONGEST + 1], in_tail: None }
    }
}

impl Tally {
    fn add(&mut self, other: &Tally) {
        self.kept.iter_mut().zip(other.kept).for_each(|(sum, count)| *sum += count);
        self.in_tail = self.in_tail.into_iter().chain(other.in_tail).min();
    }

    fn add_tail(&mut self, zeros: usize) {
        self.in_tail = self.in_tail.into_iter().chain([zeros]).min();
    }

    fn most_kept(&self) -> Option<usize> {
        self.kept.iter().rposition(|&count| count > 0)
    }

    /// Groups with more zeros than the least number. A group that is one of them stays so, whatever
    /// comes after it.
    fn uncommon(&self) -> u64 {
        self.most_kept().map_or(0, |most| self.kept[..most].iter().sum())
    }
}

fn in_lines(geometry: &Lines, mask: &[u8], unit: usize, tally: &mut Tally) {
    let stretch = geometry.unit(unit);
    let of = geometry.of;
    let tail = if geometry.has_tail(&stretch) { geometry.tail() } else { 0 };
    for line in stretch.lines.clone() {
        let bit = geometry.bit(line);
        in_run(mask, bit + stretch.groups.start * of, stretch.groups.len(), of, tally);
        if tail > 0 {
            tally.add_tail(tail - count(mask, bit + stretch.groups.end * of, tail));
        }
        if tally.kept[of] > 0 {
            return;
        }
    }
}

/// Counts the next `number` groups from bit `at` on, 64 bits at a time where the length of a group
/// is a power of two.
fn in_run(mask: &[u8], at: usize, number: usize, of: usize, tally: &mut Tally) {
    let mut done = 0;
    if of.is_power_of_two() {
        let ones = u64::MAX >> (64 - of);
        let each = u64::MAX / ones;
        while (number - done) * of >= 64 {
            let counts = fields(word_at(mask, at + done * of), of);
            let first = counts & ones;
            if counts == first * each {
                tally.kept[first as usize] += 64 / of as u64;
            } else {
                (0..64).step_by(of).for_each(|k| tally.kept[(counts >> k & ones) as usize] += 1);
            }
            if tally.kept[of] > 0 {
                return;
            }
            done += 64 / of;
        }
    }
    (done..number).for_each(|group| tally.kept[count(mask, at + group * of, of)] += 1);
}

/// Counts the groups of an item: bit p of the count of lane l is bit l of plane p.
fn in_slab(geometry: &Slabs, mask: &[u8], of: usize, item: Item, tally: &mut Tally) {
    for part in item.parts(64) {
        let lanes = low(part.width);
        let (mut planes, mut all) = ([0u64; 7], lanes);
        for row in 0..part.length {
            let mut carry = word_at(mask, part.bit + row * geometry.bit_pitch) & lanes;
            all &= carry;
            for plane in &mut planes {
                (*plane, carry) = (*plane ^ carry, *plane & carry);
                if carry == 0 {
                    break;
                }
            }
        }
        if part.length == of && all != 0 {
            tally.kept[of] += 1;
            return;
        }
        let kept = |lane: usize| {
            planes.iter().enumerate().fold(0, |kept, (p, plane)| kept | ((plane >> lane & 1) as usize) << p)
        };
        if part.length < of {
            let most = (0..part.width).map(kept).max().unwrap_or(0);
            tally.add_tail(part.length - most);
        } else if planes.iter().all(|&plane| plane == 0 || plane == lanes) {
            tally.kept[kept(0)] += part.width as u64;
        } else {
            (0..part.width).for_each(|lane| tally.kept[kept(lane)] += 1);
        }
    }
}
