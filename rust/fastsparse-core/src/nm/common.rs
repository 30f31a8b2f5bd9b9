//! The zeros that all groups of a mask have: what n:m a tensor obeys that somebody else has pruned.
//!
//! A group *has* n:m if it drops at least n. Quantising a pruned tensor makes some more zeros, so
//! that groups with more do not speak against it as long as they are few; where many have more, the
//! least number is chance. Thus the result is the least number of zeros of all full groups, where
//! at least three in four have exactly that.
//!
//! The caller knows how many zeros there are in all, and with that a number that a group of such a
//! mask has at least. The first group with fewer ends the search: that of scattered zeros soon.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use super::geometry::{Geometry, Lines, Slabs};
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
/// that is `least` or more. The axis is at least as long as a group.
pub fn common_zeros(shape: Matrix, axis: Axis, of: usize, least: usize, mask: &[u8], exec: Exec) -> Option<Common> {
    assert!(mask.len() == shape.mask_bytes(), "the mask is as large as the tensor");
    assert!(axis.outer * axis.len * axis.inner == shape.len(), "the axis is one of the tensor");
    assert!((1..=LONGEST.min(axis.len)).contains(&of), "a group has items, and not too many");
    assert!((1..=of).contains(&least), "groups have zeros in common, no more than items");
    if shape.is_empty() {
        return None;
    }
    let geometry = Geometry::new(shape, axis, Groups { zeros: 0, of, tail: Tail::Keep });
    let groups = (axis.outer * (axis.len / of) * axis.inner) as u64;
    let (found, hopeless) = (Mutex::new(Tally::new(of - least)), AtomicBool::new(false));
    parallel::run(exec.for_work(shape.len(), ELEMENTS_PER_THREAD).threads, geometry.units(), |unit| {
        if hopeless.load(Ordering::Relaxed) {
            return;
        }
        let mut tally = Tally::new(of - least);
        match &geometry {
            Geometry::Lines(geometry) => in_lines(geometry, mask, unit, &mut tally),
            Geometry::Slabs(geometry) => in_slabs(geometry, mask, of, unit, &mut tally),
        }
        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
        found.add(&tally);
        if found.over || 4 * found.uncommon() > groups {
            hopeless.store(true, Ordering::Relaxed);
        }
    });
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    let common = Common { zeros: of - found.most_kept()?, in_tail: found.in_tail };
    (!hopeless.into_inner()).then_some(common)
}

/// How many groups keep how many.
struct Tally {
    kept: [u64; LONGEST + 1],
    in_tail: Option<usize>,
    /// What a group may keep.
    most: usize,
    /// Whether one keeps more.
    over: bool,
}

impl Tally {
    fn new(most: usize) -> Tally {
        Tally { kept: [0; LONGEST + 1], in_tail: None, most, over: false }
    }

    fn add(&mut self, other: &Tally) {
        self.over |= other.over;
        self.kept.iter_mut().zip(other.kept).for_each(|(sum, count)| *sum += count);
        self.in_tail = self.in_tail.into_iter().chain(other.in_tail).min();
    }

    fn add_groups(&mut self, kept: usize, groups: u64) {
        self.kept[kept] += groups;
        self.over |= kept > self.most;
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
        if tally.over {
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
                tally.add_groups(first as usize, 64 / of as u64);
            } else {
                (0..64).step_by(of).for_each(|k| tally.add_groups((counts >> k & ones) as usize, 1));
            }
            if tally.over {
                return;
            }
            done += 64 / of;
        }
    }
    (done..number).for_each(|group| tally.add_groups(count(mask, at + group * of, of), 1));
}

/// Counts the groups of a unit, 64 that lie side by side at a time: bit p of the count of lane l is
/// bit l of plane p.
fn in_slabs(geometry: &Slabs, mask: &[u8], of: usize, unit: usize, tally: &mut Tally) {
    for part in geometry.unit(unit).flat_map(|item| item.parts(64)) {
        let lanes = low(part.width);
        let mut planes = [0u64; 7];
        for row in 0..part.length {
            let mut carry = word_at(mask, part.bit + row * geometry.bit_pitch) & lanes;
            for plane in &mut planes {
                (*plane, carry) = (*plane ^ carry, *plane & carry);
                if carry == 0 {
                    break;
                }
            }
        }
        let kept = |lane: usize| {
            planes.iter().enumerate().fold(0, |kept, (p, plane)| kept | ((plane >> lane & 1) as usize) << p)
        };
        if part.length < of {
            let most = (0..part.width).map(kept).max().unwrap_or(0);
            tally.add_tail(part.length - most);
        } else if planes.iter().all(|&plane| plane == 0 || plane == lanes) {
            tally.add_groups(kept(0), part.width as u64);
        } else {
            (0..part.width).for_each(|lane| tally.add_groups(kept(lane), 1));
        }
        if tally.over {
            return;
        }
    }
}
