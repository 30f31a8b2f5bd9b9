//! Pruning with what is known of a layer's inputs: the sweep of SparseGPT over a block of columns,
//! and the steps that refine kept weights.
//!
//! Contract. Everything is float32, without NaN. Results are the same bits on every ISA and for any
//! number of threads: each element takes its updates one by one in the order of the columns,
//! nothing fuses a product into a difference, and sums are float64 in eight lanes.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod refine;
mod scalar;
mod sweep;
mod vector;

use crate::error::Result;
use crate::isa::Isa;
use crate::matrix::Matrix;
use crate::parallel::{Exec, SharedMut, try_run_with};
pub use refine::{Refinement, refine_step};
use sweep::{Tile, Work};

/// Rows of a task: a few tiles of the widest vectors.
const TASK_ROWS: usize = 64;

/// Products for which a thread of its own pays.
const PER_THREAD: usize = 1 << 18;

/// A block of columns whose weights are those left after the columns before it.
#[derive(Debug, Clone, Copy)]
pub struct Columns<'a> {
    /// Rows and columns of the block.
    pub shape: Matrix,
    /// The weights.
    pub weights: &'a [f32],
    /// The upper triangle U, `[cols, cols]`: column j passes `U[j, k]` of its error on to column k.
    /// Only what is above the diagonal counts.
    pub inverse: &'a [f32],
    /// `1 / U[j, j]`: the error of column j is what it loses, times this.
    pub scale: &'a [f32],
}

/// What is pruned.
#[derive(Debug, Clone, Copy)]
pub enum Choice<'a> {
    /// What this mask does not keep.
    Mask(&'a [u8]),
    /// The weights with the smallest `|w| · scale` of each group of columns, ranked when the sweep
    /// arrives there; of equal ones those with the higher index.
    Groups(Groups),
}

/// Groups of neighbouring columns.
#[derive(Debug, Clone, Copy)]
pub struct Groups {
    /// Pruned of each group.
    pub zeros: usize,
    /// Length of a group, at least 1.
    pub of: usize,
    /// Pruned of the shorter group at the end of the block, if there is one.
    pub zeros_at_end: usize,
}

/// Prunes the columns of a block from left to right; each makes those after it take over what it
/// loses. Writes the weights, 0 where they are pruned, and the mask of what is kept.
pub fn prune_columns(
    columns: Columns<'_>,
    choice: Choice<'_>,
    exec: Exec,
    out: &mut [f32],
    bits: &mut [u8],
) -> Result<()> {
    let Columns { shape, weights, inverse, scale } = columns;
    assert!(weights.len() == shape.len() && out.len() == shape.len() && bits.len() == shape.mask_bytes());
    assert!(inverse.len() == shape.cols * shape.cols && scale.len() == shape.cols);
    let (mask, groups) = match choice {
        Choice::Mask(mask) => (Some(mask), None),
        Choice::Groups(groups) => (None, Some(groups)),
    };
    assert!(mask.is_none_or(|mask| mask.len() == bits.len()) && groups.is_none_or(|groups| groups.of > 0));
    if shape.is_empty() {
        return Ok(());
    }
    let work = Work { cols: shape.cols, inverse, scale, groups };
    let exec = exec.for_work(shape.len() * shape.cols / 2, PER_THREAD);
    let (out, bits) = (SharedMut::new(out), SharedMut::new(bits));
    let tile = || Ok(Tile::default());
    try_run_with(exec.threads, shape.rows.div_ceil(TASK_ROWS), tile, |tile, task| {
        let (first, count) = (task * TASK_ROWS, TASK_ROWS.min(shape.rows - task * TASK_ROWS));
        let (start, len) = (first * shape.cols, count * shape.cols);
        let (mask_start, mask_len) = (first * shape.row_bytes(), count * shape.row_bytes());
        // SAFETY: rows of distinct tasks do not overlap, and each task runs once.
        let (out, bits) = unsafe { (out.slice(start, len), bits.slice(mask_start, mask_len)) };
        out.copy_from_slice(&weights[start..start + len]);
        match mask {
            Some(mask) => bits.copy_from_slice(&mask[mask_start..mask_start + mask_len]),
            None => bits.fill(0),
        }
        match exec.isa {
            Isa::Scalar => scalar::prune(&work, tile, out, bits),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the token proves the features.
            Isa::Avx2(token) => unsafe { avx2::prune(token, &work, tile, out, bits) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the token proves the features.
            Isa::Avx512(token) => unsafe { avx512::prune(token, &work, tile, out, bits) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => scalar::prune(&work, tile, out, bits),
        }
    })?;
    Ok(())
}
