//! A packed matrix, and how much work it is.

use crate::matrix::Matrix;

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

/// [`work`] below which a second thread costs more than it saves: some 10 µs, twice what waking it
/// takes.
pub(super) const WORK_PER_THREAD: usize = 1 << 18;

/// Multiplications with `batch` rows of activations, and, as half of one for each weight, going
/// through the mask, however little is kept.
pub(super) fn work<W>(weights: Weights<'_, W>, batch: usize) -> usize {
    weights.values.len() * batch + weights.shape.len() / 2
}
