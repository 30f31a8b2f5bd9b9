//! Blocks: weights that live or die together.
//!
//! Contract. The tensor is `outer × len × inner`; a block is `tall` neighbours along `len` times
//! `wide` along `inner`, those at the ends may be smaller. A block's key is the mean over its real
//! elements of |w| (`l1`), w² (`l2`) or a signed score, or the largest |w| (`max`), in float64. The
//! sum has one order: elements row-major, padded with zeros to a power of two, upper half added
//! onto the lower half until one is left. Exactly `round(sparsity · blocks)` blocks are dropped,
//! the smallest, of equal ones those with the higher index.

mod keys;
mod like_numpy;
mod mask;
mod norms;
mod widen;

pub use keys::BlockKeys;
pub use like_numpy::l2_like_numpy;

use crate::element::F32;
use crate::error::{Error, Result};
use crate::keys::{Magnitude, Ranking};
use crate::matrix::{self, Matrix};
use crate::memory;
use crate::nm::Axis;
use crate::parallel::Exec;
use crate::select;

/// What a block is ranked by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// Mean of |w|.
    L1,
    /// Mean of w².
    L2,
    /// Largest |w|.
    Max,
}

/// Blocks of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// The tensor, seen along the axis that `tall` counts on.
    pub axis: Axis,
    /// Items along the axis; at least 1.
    pub tall: usize,
    /// Items along `inner`; at least 1.
    pub wide: usize,
}

impl Blocks {
    /// The grid of blocks: one row for each stripe of `tall` along the axis.
    pub fn grid(self) -> Matrix {
        Matrix { rows: self.axis.outer * self.axis.len.div_ceil(self.tall), cols: self.axis.inner.div_ceil(self.wide) }
    }

    /// The same blocks in the same order, without what makes them look more complicated: blocks as
    /// wide as the tensor are stretches of one line, where the lines do not go beyond a row of the
    /// matrix view.
    fn normal(self, shape: Matrix) -> Blocks {
        let Axis { outer, len, inner } = self.axis;
        let (tall, wide) = (self.tall.min(len).max(1), self.wide.min(inner).max(1));
        let line = len * inner;
        if wide == inner && line > 0 && shape.cols.is_multiple_of(line) {
            return Blocks { axis: Axis { outer: 1, len: outer, inner: line }, tall: 1, wide: tall * wide };
        }
        Blocks { axis: self.axis, tall, wide }
    }

    /// Elements of a block that is not short.
    fn size(self) -> usize {
        self.tall * self.wide
    }

    /// Where block `index` and those beside it lie, up to `count` of them.
    fn place(self, index: usize, count: usize) -> Place {
        let Axis { len, inner, .. } = self.axis;
        let across = inner.div_ceil(self.wide);
        let down = len.div_ceil(self.tall);
        let (stripe, col) = (index / across, index % across * self.wide);
        let (outer, row) = (stripe / down, stripe % down * self.tall);
        Place {
            first: (outer * len + row) * inner + col,
            stride: inner,
            lines: self.tall.min(len - row),
            cols: count.saturating_mul(self.wide).min(inner - col),
        }
    }
}

/// A rectangle of elements: `lines` stretches of `cols`, `stride` apart.
#[derive(Debug, Clone, Copy)]
struct Place {
    first: usize,
    stride: usize,
    lines: usize,
    cols: usize,
}

/// Drops the `zeros` smallest blocks. Scores rank by their mean, whatever the norm.
pub fn select(
    ranking: Ranking<'_>,
    shape: Matrix,
    blocks: Blocks,
    norm: Norm,
    zeros: usize,
    exec: Exec,
    bits: &mut [u8],
) -> Result<()> {
    let blocks = blocks.normal(shape);
    let keys = BlockKeys::new(ranking, shape, blocks, norm, exec.isa)?;
    whole(shape, blocks, exec, bits, |grid, kept| select::smallest(&keys, grid, zeros, exec, kept))
}

/// Keeps the blocks whose norm, a float32 ≥ 0 by its bits, is above `value`.
pub fn above_value(
    norms: &[u32],
    shape: Matrix,
    blocks: Blocks,
    value: f64,
    exec: Exec,
    bits: &mut [u8],
) -> Result<()> {
    let norms = Magnitude::<F32>(norms);
    whole(shape, blocks.normal(shape), exec, bits, |grid, kept| select::above_value(&norms, grid, value, exec, kept))
}

/// Selects blocks, a bit for each, and writes the bits of their weights.
fn whole(
    shape: Matrix,
    blocks: Blocks,
    exec: Exec,
    bits: &mut [u8],
    select: impl FnOnce(Matrix, &mut [u8]) -> Result<()>,
) -> Result<()> {
    let grid = blocks.grid();
    if grid.is_empty() {
        return Ok(());
    }
    let mut kept = memory::zeros::<u8>(grid.mask_bytes())?;
    select(grid, &mut kept)?;
    mask::expand(&kept, shape, blocks, exec, bits);
    Ok(())
}

/// How many blocks `bits` drops as a whole, and how many it keeps as a whole. The others are mixed:
/// None where they are more than a quarter of those that are not dropped, which is found early.
pub fn uniform(shape: Matrix, blocks: Blocks, bits: &[u8], exec: Exec) -> Option<(usize, usize)> {
    assert!(bits.len() == shape.mask_bytes(), "the mask is as large as the tensor");
    mask::uniform(bits, shape, blocks.normal(shape), exec)
}

/// Fails unless `bits` keeps or drops every block as a whole and drops exactly `zeros` of them.
pub fn verify(shape: Matrix, blocks: Blocks, zeros: usize, bits: &[u8], exec: Exec) -> Result<()> {
    matrix::check_padding(shape, bits)?;
    let blocks = blocks.normal(shape);
    let grid = blocks.grid();
    let mut kept = memory::zeros::<u8>(grid.mask_bytes())?;
    mask::collapse(bits, shape, blocks, exec, &mut kept);
    let mut whole = memory::zeros::<u8>(shape.mask_bytes())?;
    mask::expand(&kept, shape, blocks, exec, &mut whole);
    if whole != bits
        && let Some(block) = mask::first_mixed(&whole, bits, shape, blocks)
    {
        return Err(Error::BlockMixed { block });
    }
    let found = grid.len() - matrix::count_ones(&kept, exec);
    if found != zeros {
        return Err(Error::BlockCount { found, expected: zeros });
    }
    Ok(())
}
