//! Packed weights as column indices, for which few kept weights are needed: nothing is spent on those that were dropped.
//!
//! Sixteen rows make a group, 255 columns a block. The kept weights of a row in a block take two slots of each *step* of 32:
//! ```text
//! step:     row 0, row 0, row 1, row 1, …  row 15, row 15
//! values:   the next two of each row
//! columns:  where in the block they are, one byte each; 255 where a row has no more of them
//! ```
//! A block takes as many steps as its fullest row needs. Activations lie in blocks of 256 whose last is a zero: that is what padding
//! is multiplied with, so that it adds nothing whatever x holds, and any byte is an index within bounds. A vector holds slots of
//! all the rows, so that nothing is added across lanes before the end.
//!
//! ```text
//! for each group, for each block, for each step:  sums[slot] += values[slot] · x[block][columns[slot]]
//! ```
//! Every other step has sums of its own. The order of a sum depends on the ISA, not on threads or batch.
//!
//! Contract: that of [`super`]; `steps` and `starts` take the place of mask and offsets.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod layout;
mod scalar;

pub use layout::{count, index, unindex};

use std::sync::atomic::{AtomicBool, Ordering};

use super::activations::COPY_PER_THREAD;
use super::task::fold;
use super::{Real, WORK_PER_THREAD};
use crate::element::{DType, Word};
use crate::error::{Error, Result};
use crate::isa::{Isa, Kernel};
use crate::matrix::Matrix;
use crate::parallel::{Exec, SharedMut, run, run_chunks};

/// Rows of a group.
pub const ROWS: usize = 16;

/// Slots of a step.
pub const SLOTS: usize = 2 * ROWS;

/// Columns of a block.
pub const COLS: usize = 255;

/// The column of a slot that holds nothing.
pub const PADDING: u8 = 255;

/// Groups that a thread takes at a time.
const TASK: usize = 2;

/// Kept weights in a thousand up to which indices are quicker than the mask with AVX-512, for one row of activations and for two
/// to four. Measured on Zen 4, 4096 × 11008: with one row 1.2 – 2.3 times at 250 and 2 – 4 times at 100, whatever the dtype; with
/// more, level between 200 (two rows of float32) and 300.
const INDICES_UP_TO: [usize; 2] = [250, 150];

/// The same with AVX2, for one row and for two of float32, though its indices have no vectors. Measured on Zen 3, nanoseconds a weight and
/// row, with the mask about the same at any density: 0.125 and 0.065; indices 0.09 at 250, 0.043 at 100.
const INDICES_UP_TO_AVX2: [usize; 2] = [250, 150];

/// The same for bfloat16: 0.086 and 0.051; indices 0.089 at 250, 0.042 at 100.
const INDICES_UP_TO_AVX2_BF16: [usize; 2] = [200, 120];

/// The same for one row of float16, whose numbers take longer to widen one by one: 0.087; indices 0.13 at 250, 0.062 at 100.
const INDICES_UP_TO_AVX2_F16: usize = 150;

/// Whether column indices compute faster than the mask: measured constants.
pub fn pays(isa: Isa, dtype: DType, shape: Matrix, kept: usize, batch: usize) -> bool {
    let up_to = match (isa, dtype, batch) {
        (Isa::Avx512(_), DType::F32 | DType::F16 | DType::BF16, 0..=1) => INDICES_UP_TO[0],
        (Isa::Avx512(_), DType::F32 | DType::F16 | DType::BF16, 2..=4) => INDICES_UP_TO[1],
        (Isa::Avx2(_), DType::F32, 0..=1) => INDICES_UP_TO_AVX2[0],
        (Isa::Avx2(_), DType::F32, 2) => INDICES_UP_TO_AVX2[1],
        (Isa::Avx2(_), DType::BF16, 0..=1) => INDICES_UP_TO_AVX2_BF16[0],
        (Isa::Avx2(_), DType::BF16, 2) => INDICES_UP_TO_AVX2_BF16[1],
        (Isa::Avx2(_), DType::F16, 0..=1) => INDICES_UP_TO_AVX2_F16,
        _ => return false,
    };
    kept.saturating_mul(1000) <= shape.len().saturating_mul(up_to)
}

/// Groups and blocks of a matrix.
pub fn grid(shape: Matrix) -> Matrix {
    Matrix { rows: shape.rows.div_ceil(ROWS), cols: shape.cols.div_ceil(COLS) }
}

/// A packed matrix by column indices.
#[derive(Debug, Clone, Copy)]
pub struct Indexed<'a, W> {
    /// Shape.
    pub shape: Matrix,
    /// Weights, by steps.
    pub values: &'a [W],
    /// Their columns within the block.
    pub columns: &'a [u8],
    /// Steps of each block of each group.
    pub steps: &'a [u8],
    /// The step at which each group begins, and the end.
    pub starts: &'a [i64],
}

impl<'a, W: Word> Indexed<'a, W> {
    /// Panics where the lengths contradict each other.
    fn check_lengths(&self) {
        let grid = grid(self.shape);
        assert!(self.values.len() == self.columns.len() && self.values.len().is_multiple_of(SLOTS));
        assert!(self.steps.len() == grid.len() && self.starts.len() == grid.rows + 1);
    }

    /// A group; `None` where its steps are not there.
    fn group(&self, group: usize) -> Option<Group<'a, W>> {
        let blocks = grid(self.shape).cols;
        let (start, end) = (self.starts[group] as usize, self.starts[group + 1] as usize);
        Some(Group {
            values: self.values.as_chunks().0.get(start..end)?,
            columns: self.columns.as_chunks().0.get(start..end)?,
            steps: &self.steps[group * blocks..(group + 1) * blocks],
        })
    }
}

/// The steps of sixteen rows.
#[derive(Clone, Copy)]
struct Group<'a, W> {
    values: &'a [[W; SLOTS]],
    columns: &'a [[u8; SLOTS]],
    steps: &'a [u8],
}

/// Activations of a block and the zero behind them.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Block<T>([T; COLS + 1]);

/// The sums of all slots, of even and of odd steps.
type Sums = [[f32; SLOTS]; 2];

/// Writes `x · weightsᵀ + bias` to `out`: `x` has as many rows of `cols` elements as `out` has of `rows`.
pub fn linear_indexed<E: Real, X: Real>(
    weights: Indexed<'_, E::Bits>,
    x: &[X::Bits],
    bias: Option<&[f32]>,
    exec: Exec,
    out: &mut [X::Bits],
) -> Result<()> {
    let shape = weights.shape;
    weights.check_lengths();
    assert!(bias.is_none_or(|bias| bias.len() == shape.rows));
    let batch = out.len().checked_div(shape.rows).unwrap_or(0);
    assert!(out.len() == batch * shape.rows && (shape.rows == 0 || x.len() == batch * shape.cols));
    let exec = exec.for_work(weights.values.len() * batch, WORK_PER_THREAD);
    let call: Call<'_, _, X> = Call { weights, bias, x, batch, exec, out: SharedMut::new(out) };
    if call.run::<E>() { Ok(()) } else { Err(Error::Changed) }
}

/// What all tasks share.
struct Call<'a, W, X: Real> {
    weights: Indexed<'a, W>,
    bias: Option<&'a [f32]>,
    x: &'a [X::Bits],
    batch: usize,
    exec: Exec,
    out: SharedMut<'a, X::Bits>,
}

impl<W: Word, X: Real> Call<'_, W, X> {
    /// Computes it with the best kernel. Answers whether all the steps were there.
    fn run<E: Real<Bits = W>>(&self) -> bool {
        let isa = self.exec.isa;
        #[cfg(target_arch = "x86_64")]
        {
            if let (Some(token), DType::BF16, DType::BF16) = (isa.avx512_bf16(), E::DTYPE, X::DTYPE) {
                let x = self.activations(|x| x.to_u64() as u16);
                // SAFETY: the token proves the features.
                return self.each_group(&x, |group, x| unsafe { avx512::pairs(token, group, x) });
            }
            if let Isa::Avx512(token) = isa {
                let x = self.activations(X::to_f32);
                // SAFETY: the token proves the features.
                return self.each_group(&x, |group, x| unsafe { avx512::floats::<E>(token, group, x) });
            }
        }
        let x = self.activations(X::to_f32);
        self.each_group(&x, |group, x| isa.run(scalar::Rows::<E> { group, x }))
    }

    /// Rows of blocks.
    fn activations<T: Copy + Default + Send>(&self, convert: impl Fn(X::Bits) -> T + Copy + Sync) -> Vec<Block<T>> {
        let (cols, each) = (self.weights.shape.cols, grid(self.weights.shape).cols);
        let mut blocks = vec![Block([T::default(); COLS + 1]); self.batch * each];
        let threads = self.exec.for_work(self.x.len(), COPY_PER_THREAD).threads;
        run_chunks(threads, &mut blocks, each.max(1), |b, to| {
            self.exec.isa.run(Fill { from: &self.x[b * cols..(b + 1) * cols], to, convert });
        });
        blocks
    }

    /// Computes and writes the results of each group for each row of activations.
    fn each_group<T: Sync>(
        &self,
        x: &[Block<T>],
        sums: impl Fn(Group<'_, W>, &[Block<T>]) -> Option<Sums> + Sync,
    ) -> bool {
        let Call { weights, bias, batch, ref out, .. } = *self;
        let (rows, grid) = (weights.shape.rows, grid(weights.shape));
        let complete = AtomicBool::new(true);
        run(self.exec.threads, grid.rows.div_ceil(TASK), |task| {
            for group in task * TASK..grid.rows.min((task + 1) * TASK) {
                let first = group * ROWS;
                let bias = bias.map(|bias| &bias[first..]);
                for b in 0..batch {
                    let x = &x[b * grid.cols..(b + 1) * grid.cols];
                    let Some([even, odd]) = weights.group(group).and_then(|group| sums(group, x)) else {
                        complete.store(false, Ordering::Relaxed);
                        return;
                    };
                    // SAFETY: the results of distinct groups and batches are disjoint.
                    let out = unsafe { out.slice(b * rows + first, ROWS.min(rows - first)) };
                    for (r, out) in out.iter_mut().enumerate() {
                        let sum = fold([even[2 * r], odd[2 * r], even[2 * r + 1], odd[2 * r + 1]]);
                        *out = X::from_f32(bias.map_or(sum, |bias| sum + bias[r]));
                    }
                }
            }
        });
        complete.into_inner()
    }
}

struct Fill<'a, W, T, F> {
    from: &'a [W],
    to: &'a mut [Block<T>],
    convert: F,
}

impl<W: Word, T, F: Fn(W) -> T> Kernel for Fill<'_, W, T, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (from, to) in self.from.chunks(COLS).zip(self.to) {
            for (from, to) in from.iter().zip(&mut to.0) {
                *to = (self.convert)(*from);
            }
        }
    }
}
