//! A product as kernels see it: arguments checked once, activations in panels, results written by
//! the task that has the row of weights.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;

use super::Real;
use crate::error::Result;
use crate::matrix::Matrix;
use crate::parallel::{Exec, SharedMut};

/// Rows of activations that are computed at a time: a bound for what their copies and sums take.
const PANEL: usize = 1024;

/// A panel of a product with weights in some form.
pub struct Call<'a, M, X: Real> {
    pub weights: M,
    /// Columns of the weights.
    pub cols: usize,
    pub x: &'a [X::Bits],
    /// Rows of `x`.
    pub batch: usize,
    pub exec: Exec,
    pub results: Results<'a, X>,
}

/// Calls `compute` with each panel of `x · weightsᵀ + bias`: `x` has as many rows of `shape.cols`
/// elements as `out` has of `shape.rows`, else this panics. `exec` is how to run so many rows of
/// activations.
pub fn each_panel<M: Copy, X: Real>(
    (weights, shape): (M, Matrix),
    x: &[X::Bits],
    bias: Option<&[f32]>,
    exec: impl Fn(usize) -> Exec,
    out: &mut [X::Bits],
    mut compute: impl FnMut(Call<'_, M, X>) -> Result<()>,
) -> Result<()> {
    let batch = out.len().checked_div(shape.rows).unwrap_or(0);
    assert!(out.len() == batch * shape.rows && (shape.rows == 0 || x.len() == batch * shape.cols));
    for first in (0..batch).step_by(PANEL) {
        let batch = PANEL.min(batch - first);
        compute(Call {
            weights,
            cols: shape.cols,
            x: &x[first * shape.cols..(first + batch) * shape.cols],
            batch,
            exec: exec(batch),
            results: Results::new(shape.rows, bias, &mut out[first * shape.rows..(first + batch) * shape.rows]),
        })?;
    }
    Ok(())
}

impl<M, X: Real> Call<'_, M, X> {
    /// A row of the activations.
    pub fn row(&self, b: usize) -> &[X::Bits] {
        &self.x[b * self.cols..(b + 1) * self.cols]
    }
}

/// What a product writes: for each row of activations a result for each row of weights.
pub struct Results<'a, Y: Real> {
    out: SharedMut<'a, Y::Bits>,
    rows: usize,
    bias: Option<&'a [f32]>,
}

impl<'a, Y: Real> Results<'a, Y> {
    /// For `rows` rows of weights, as many as the bias has numbers.
    pub fn new(rows: usize, bias: Option<&'a [f32]>, out: &'a mut [Y::Bits]) -> Self {
        assert!(bias.is_none_or(|bias| bias.len() == rows));
        Results { out: SharedMut::new(out), rows, bias }
    }

    /// Those of some rows of weights.
    ///
    /// # Safety
    /// No other part that is alive has any of these rows.
    pub unsafe fn of(&self, rows: Range<usize>) -> Part<'_, Y> {
        assert!(rows.end <= self.rows);
        Part { results: self, rows, one_thread: PhantomData }
    }
}

/// The results of some rows of weights, for one thread.
pub struct Part<'a, Y: Real> {
    results: &'a Results<'a, Y>,
    rows: Range<usize>,
    one_thread: PhantomData<Cell<()>>,
}

impl<Y: Real> Part<'_, Y> {
    /// Writes the sums of the rows of weights from `row` on, plus the bias, for row `b` of the
    /// activations.
    #[inline]
    pub fn write(&self, row: usize, b: usize, sums: &[f32]) {
        let Results { out, rows, bias } = self.results;
        assert!(self.rows.start <= row && row <= self.rows.end && sums.len() <= self.rows.end - row);
        // SAFETY: results of rows that this part has (checked above) and no other; the one thread
        // that has the part keeps no reference to them.
        let to = unsafe { out.slice(b * rows + row, sums.len()) };
        for (i, (to, &sum)) in to.iter_mut().zip(sums).enumerate() {
            *to = Y::from_f32(bias.map_or(sum, |bias| sum + bias[row + i]));
        }
    }
}
