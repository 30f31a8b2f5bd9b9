//! Packed weights as column indices, for which few kept weights are needed: nothing is spent on
//! those that were dropped.
//!
//! A *group* of rows, and in it a *block* of columns, takes as many *steps* of slots as its fullest
//! row needs:
//!
//! | type of a column | rows of a group | slots of a step | columns of a block, at most |
//! |---|---|---|---|
//! | `u8` | 16 | 32: two of each row in turn | 255, so that their x fit the registers of AVX-512 |
//! | `u16` | 1 | 16 | 8191, whose x are read from the cache |
//!
//! A slot holds a weight and its column within the block. Where a row has no more of them, the
//! weight is zero and the column the one after the most that there can be: activations lie in
//! blocks of so many and one more, which is a zero, so that padding adds nothing whatever x holds.
//! Any byte is a column within bounds, and so are 13 bits of any `u16`. Blocks are as even as
//! possible. A vector holds slots of all the rows of a group, so that nothing is added across lanes
//! before the end.
//!
//! ```text
//! for each group, for each block, for each step:
//!     sums[slot] += values[slot] · x[block][columns[slot]]
//! ```
//! Every other step may have sums of its own. The order of a sum depends on the ISA, not on threads
//! or batch.
//!
//! Contract: that of [`super`]; `steps` and `starts` take the place of mask and offsets.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod layout;
mod product;
mod scalar;

pub use layout::{count, index, unindex};

use super::call::{Call, each_panel};
use super::{Real, threads_for};
use crate::element::{DType, Word};
use crate::error::Result;
use crate::isa::{Isa, is_intel};
use crate::matrix::Matrix;
use crate::parallel::Exec;

/// The layout that belongs to a type of columns.
pub trait Column: Word {
    /// Rows of a group.
    const ROWS: usize;
    /// Slots of a step.
    const SLOTS: usize;
    /// Numbers of a block of activations: its columns, at most, and a zero.
    const LEN: usize;
    /// Slots of a row in a step.
    const EACH: usize = Self::SLOTS / Self::ROWS;
    /// The column of a slot that holds nothing.
    const PADDING: u64 = Self::LEN as u64 - 1;
    /// Computes a product with the best kernel.
    fn compute<E: Real, X: Real>(call: &Call<'_, Indexed<'_, E::Bits, Self>, X>) -> Result<()>;
}

/// Kept weights in a thousand up to which indices are faster than the mask with AVX-512, for one
/// row of activations and for two to four. Measured on Zen 4, 4096 × 11008: with one row 1.2 – 2.3
/// times at 250 and 2 – 4 times at 100, whatever the dtype; with more, level between 200 (two rows
/// of float32) and 300.
const INDICES_UP_TO: [usize; 2] = [250, 150];

/// The same with AVX2, for one row and for two, of float32, float16 and bfloat16. Measured on Zen
/// 3, rows of 11008 columns, nanoseconds a weight and row: with the mask 0.101, 0.082 and 0.074 at
/// 250 – 300 and 0.056, 0.049 and 0.041 for two rows; indices 0.065 at 200, 0.085 – 0.09 at 300,
/// 0.054 at 150.
const INDICES_UP_TO_AVX2: [[usize; 2]; 3] = [[300, 150], [220, 130], [200, 110]];

/// The same with AVX-512 of Intel's, for one row and for two or, of bfloat16, up to four. Measured
/// on Emerald Rapids, 4096 × 11008, times as fast as the mask: float32 0.95, 1.25 and 1.6 at 200,
/// 150 and 100, with two rows 0.98 at 100 and 1.45 at 50; float16 0.97 and 1.1 at 250 and 200, 1.03
/// at 100; bfloat16 1.02, 1.13 and 1.6 at 200, 150 and 100, with two to four 0.95 at 150 and 1.4 at
/// 100.
const INDICES_UP_TO_INTEL: [[usize; 2]; 3] = [[180, 90], [230, 100], [180, 130]];

/// Whether column indices compute faster than the mask: measured constants.
pub fn pays(isa: Isa, dtype: DType, shape: Matrix, kept: usize, batch: usize) -> bool {
    let tables = match isa {
        Isa::Avx512(_) if is_intel() => INDICES_UP_TO_INTEL,
        Isa::Avx512(_) => [INDICES_UP_TO; 3],
        Isa::Avx2(_) => INDICES_UP_TO_AVX2,
        Isa::Scalar => return false,
    };
    let [one, several] = match dtype {
        DType::F32 => tables[0],
        DType::F16 => tables[1],
        DType::BF16 => tables[2],
        _ => return false,
    };
    let rows = if in_bytes(isa, dtype) { 4 } else { 2 };
    let up_to = if batch <= 1 { one } else { several };
    batch <= rows && kept.saturating_mul(1000) <= shape.len().saturating_mul(up_to)
}

/// Whether this ISA computes with columns of one byte, and with those of two otherwise. Intel takes
/// twice as long as AMD to look x up in registers: measured on Emerald Rapids, one row, 10 %,
/// 4096 × 11008, columns of one byte and of two take 1.9 and 1.3 ms (float32), 1.2 and 1.0
/// (float16), 0.97 and 0.99 (bfloat16, whose x take half the registers; four rows 2.3 and 3.9).
pub fn in_bytes(isa: Isa, dtype: DType) -> bool {
    matches!(isa, Isa::Avx512(_)) && (dtype == DType::BF16 || !is_intel())
}

/// Groups and blocks of a matrix.
pub fn grid<C: Column>(shape: Matrix) -> Matrix {
    Matrix { rows: shape.rows.div_ceil(C::ROWS), cols: shape.cols.div_ceil(C::LEN - 1) }
}

/// Columns of a block, of which the last may have fewer.
fn width<C: Column>(shape: Matrix) -> usize {
    shape.cols.div_ceil(grid::<C>(shape).cols.max(1)).max(1)
}

/// A packed matrix by column indices.
#[derive(Debug, Clone, Copy)]
pub struct Indexed<'a, W, C> {
    /// Shape.
    pub shape: Matrix,
    /// Weights, by steps.
    pub values: &'a [W],
    /// Their columns within the block.
    pub columns: &'a [C],
    /// Steps of each block of each group.
    pub steps: &'a [u16],
    /// The step at which each group begins, and the end.
    pub starts: &'a [i64],
}

impl<'a, W: Word, C: Column> Indexed<'a, W, C> {
    /// Panics where the lengths contradict each other.
    fn check_lengths(&self) {
        let grid = grid::<C>(self.shape);
        assert!(self.values.len() == self.columns.len() && self.values.len().is_multiple_of(C::SLOTS));
        assert!(self.steps.len() == grid.len() && self.starts.len() == grid.rows + 1);
    }

    /// A group; `None` where its steps are not there.
    fn group(&self, group: usize) -> Option<Group<'a, W, C>> {
        let blocks = grid::<C>(self.shape).cols;
        let slots = |group: usize| (self.starts[group] as usize).checked_mul(C::SLOTS);
        let (start, end) = (slots(group)?, slots(group + 1)?);
        Some(Group {
            values: self.values.get(start..end)?,
            columns: self.columns.get(start..end)?,
            steps: &self.steps[group * blocks..(group + 1) * blocks],
        })
    }
}

/// The steps of a group.
#[derive(Clone, Copy)]
pub struct Group<'a, W, C> {
    values: &'a [W],
    columns: &'a [C],
    steps: &'a [u16],
}

/// Writes `x · weightsᵀ + bias` to `out`: `x` has as many rows of `cols` elements as `out` has of
/// `rows`.
pub fn linear_indexed<E: Real, X: Real, C: Column>(
    weights: Indexed<'_, E::Bits, C>,
    x: &[X::Bits],
    bias: Option<&[f32]>,
    exec: Exec,
    out: &mut [X::Bits],
) -> Result<()> {
    let shape = weights.shape;
    weights.check_lengths();
    let exec = |batch| threads_for(exec, weights.values.len().saturating_mul(batch));
    each_panel((weights, shape), x, bias, exec, out, |call| C::compute::<E, X>(&call))
}
