//! A packed matrix, and how much work it is.

use crate::matrix::Matrix;
use crate::parallel::{self, Exec};

/// A packed matrix.
#[derive(Debug, Clone, Copy)]
pub struct Weights<'a, W> {
    /// Shape.
    pub shape: Matrix,
    /// Kept elements, by rows.
    pub values: &'a [W],
    /// Mask.
    pub mask: &'a [u8],
    /// Where each row begins in `values`, and the end.
    pub offsets: &'a [i64],
    /// The groups of columns that they are known to have, if any.
    pub groups: Option<Groups>,
}

/// Of each `of` neighbouring columns of a row, from the first on, `keep` are kept: at least one
/// column, no more kept than there are. Where the mask does not keep to it the result is
/// unspecified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Groups {
    /// Weights kept in each group.
    pub keep: usize,
    /// Columns of a group.
    pub of: usize,
}

impl Groups {
    /// The groups of a matrix with `kept` weights, where each has at most that many: it has as many
    /// if the sum is that of full groups.
    pub fn equal(keep: usize, of: usize, shape: Matrix, kept: usize) -> Option<Groups> {
        let full = of > 0 && keep <= of && shape.cols.is_multiple_of(of) && kept == shape.len() / of * keep;
        full.then_some(Groups { keep, of })
    }
}

/// [`work`] below which a second thread that is awake costs more than it saves, and one that has to
/// be woken.
///
/// Measured on Zen 3 in a virtual machine, bfloat16 at 50 %, one row of activations, one thread and
/// two, microseconds. Where threads are awake: 88 and 49 for 576 × 576, 33 and 25 for 192 × 576
/// (torch's team), 24 and 23 for 512 × 512, 84 and 66 for 1024 × 1024 (the pool). Where they sleep:
/// 69 and 94 for 768 × 768, 92 and 109 for 1024 × 1024, 193 and 176 for 1448 × 1448.
const WORK_PER_THREAD: [usize; 2] = [1 << 17, 1 << 19];

/// How to run so much work: on no more threads than pay.
pub(super) fn threads_for(exec: Exec, work: usize) -> Exec {
    if exec.threads == 1 {
        return exec;
    }
    let [awake, woken] = WORK_PER_THREAD.map(|per_thread| exec.for_work(work, per_thread).threads);
    Exec { threads: awake.min(parallel::awake()).max(woken), ..exec }
}

/// Multiplications with `batch` rows of activations, and, as half of one for each weight, going
/// through the mask, however little is kept.
pub(super) fn work<W>(weights: Weights<'_, W>, batch: usize) -> usize {
    weights.values.len() * batch + weights.shape.len() / 2
}
