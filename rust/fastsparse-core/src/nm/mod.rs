//! Groups: keep the largest few of each run along an axis (n:m and top-k).
//!
//! Contract. The tensor is `outer × len × inner`; a group is `of` neighbours along `len`, the last
//! one may be shorter. Of each full group exactly `zeros` items are dropped, of a shorter one as
//! many as [`Tail`] says: the smallest, of equal items those with the higher index. `bits` is the
//! mask of the matrix view, padding bits 0.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod bits;
mod columns;
mod common;
mod cursor;
mod geometry;
mod kernel;
mod large;
mod lines;
mod network;
mod quads;
mod scalar;
mod vector;
mod verify;

use std::sync::atomic::{AtomicBool, Ordering};

pub use self::common::{Common, common_zeros};
use self::geometry::Geometry;
use self::kernel::Work;
use self::network::{LARGEST, Plan};
pub use self::verify::verify;
use crate::error::{Error, Result, ZerosInEvery};
use crate::isa::Isa;
use crate::keys::{Keys, first_nan};
use crate::matrix::Matrix;
use crate::parallel::{self, Exec, SharedMut};

/// A tensor seen along one axis: `outer × len × inner`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Axis {
    /// Product of the dimensions before the axis.
    pub outer: usize,
    /// Length of the axis.
    pub len: usize,
    /// Product of the dimensions after it: the distance of neighbours along the axis.
    pub inner: usize,
}

/// What becomes of a last group that is shorter than the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// `round(zeros · length / of)` of it are dropped, half to even.
    Proportional,
    /// It is kept.
    Keep,
    /// It is an error.
    Error,
}

/// Groups of `of`, of which `zeros` are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Groups {
    /// Items that are dropped.
    pub zeros: usize,
    /// Items of a group; at least 1.
    pub of: usize,
    /// Shorter last groups.
    pub tail: Tail,
}

impl Groups {
    /// What errors say of them.
    fn in_words(self) -> ZerosInEvery {
        ZerosInEvery { zeros: self.zeros, of: self.of }
    }

    /// Zeros in a group of `length` items, which is `of` or, at the end of the axis, less.
    pub fn zeros_in(self, length: usize) -> usize {
        match self.tail {
            _ if length == self.of => self.zeros,
            Tail::Keep | Tail::Error => 0,
            Tail::Proportional => (self.zeros as f64 * length as f64 / self.of as f64).round_ties_even() as usize,
        }
    }

    /// Number of items kept along an axis, over everything.
    pub fn kept(self, axis: Axis) -> usize {
        let tail = axis.len % self.of;
        let per_line =
            axis.len / self.of * (self.of - self.zeros) + tail - if tail > 0 { self.zeros_in(tail) } else { 0 };
        axis.outer * axis.inner * per_line
    }
}

impl Groups {
    /// The same groups along an axis of `len`, with groups that are never longer than the axis.
    fn within(self, len: usize) -> Result<Groups> {
        if self.tail == Tail::Error && !len.is_multiple_of(self.of) {
            return Err(Error::Tail { len, groups: self.in_words() });
        }
        if len < self.of {
            return Ok(Groups { zeros: self.zeros_in(len), of: len, ..self });
        }
        Ok(self)
    }

    /// How to select in groups of one length, where that is short enough.
    fn plan(self, length: usize) -> Plan {
        let length = if self.of > LARGEST { 0 } else { length };
        Plan::new(length, length - self.zeros_in(length))
    }
}

/// Keys for which a second thread pays: some ten microseconds of work, as long as it takes to wake
/// one.
const KEYS_PER_THREAD: usize = 1 << 16;

/// Selects within groups. `keys` has the tensor's elements, `bits` the bytes of its mask.
pub fn select<K: Keys>(keys: &K, shape: Matrix, axis: Axis, groups: Groups, exec: Exec, bits: &mut [u8]) -> Result<()> {
    assert!(bits.len() == shape.mask_bytes() && keys.len() == shape.len(), "the mask is as large as the tensor");
    assert!(axis.outer * axis.len * axis.inner == shape.len(), "the axis is one of the tensor");
    assert!(groups.zeros <= groups.of && groups.of > 0, "a group has items, and not more zeros than those");
    if shape.is_empty() {
        bits.fill(0);
        return groups.within(axis.len).map(|_| ());
    }
    let groups = groups.within(axis.len)?;
    let work = Work {
        keys,
        masked: keys.masked(),
        groups,
        geometry: Geometry::new(shape, axis, groups),
        full: groups.plan(groups.of),
        tail: groups.plan(axis.len % groups.of),
        mask: SharedMut::new(bits),
    };
    let nan = AtomicBool::new(false);
    let threads = exec.for_work(shape.len(), KEYS_PER_THREAD).threads;
    parallel::try_run(threads, work.geometry.units(), |i| {
        // SAFETY: `run` takes each unit once; a token proves that the CPU runs what its function is
        // compiled for.
        let largest = unsafe {
            match exec.isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512(proof) => avx512::unit(proof, &work, i),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2(proof) => avx2::unit(proof, &work, i),
                _ => scalar::unit(&work, i),
            }?
        };
        if largest > keys.max_key() {
            nan.store(true, Ordering::Relaxed);
        }
        Ok(())
    })?;
    if nan.into_inner() { Err(first_nan(keys, 0..keys.len())) } else { Ok(()) }
}
