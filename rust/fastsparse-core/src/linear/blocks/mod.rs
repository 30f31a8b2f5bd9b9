//! Packed weights as dense blocks, for masks that keep or drop whole blocks: nothing is spent on
//! finding what is kept.
//!
//! A *band* is as many rows as a block has. The kept blocks of a band, side by side, are a dense
//! matrix of that many rows, which is cut into *panels* of 16 columns; panels lie one after the
//! other, each by rows. Of a block the layout has its number among those of the band. So that
//! panels are whole, a band ends with blocks of zeros whose number is one beyond the last:
//! activations are followed by zeros there, and padding adds nothing whatever x holds. Blocks that
//! reach beyond the matrix are filled up with zeros.
//!
//! ```text
//! few rows of activations:   sums[row][lane] += panel[row][lane] · x[columns of the panel]
//! more:                      sums[row][activations] += panel[row][column] · x[column][activations]
//! ```
//! Where a block is narrower than a panel, the activations of a band's columns are put side by side
//! first, once for all its rows.
//!
//! Contract: that of [`super`]; `index` and `starts` take the place of mask and offsets. Whatever
//! they hold, nothing is read out of bounds.

mod layout;
mod product;

pub use layout::{count, lay, unlay};
pub use product::linear_blocks;

use super::float::strategy::{self, Level};
use crate::element::{DType, Word};
use crate::isa::Isa;
use crate::matrix::Matrix;

/// Columns of a panel.
pub const PANEL: usize = 16;

/// Rows of a band at most: taller blocks are cut.
const MOST_ROWS: usize = 16;

/// The blocks of the layout for those of a mask: no taller than a band may be. `None` where there
/// is no layout: too many blocks in a row.
pub fn block_for(shape: Matrix, block: Matrix) -> Option<Matrix> {
    let rows = (1..=MOST_ROWS.min(block.rows)).rev().find(|rows| block.rows.is_multiple_of(*rows))?;
    let cut = Matrix { rows, cols: block.cols };
    (block.cols > 0 && blocks_of_row(shape, cut) < u16::MAX as usize).then_some(cut)
}

/// Whether blocks compute faster than the mask: measured constants. `block` is that of the mask.
pub fn pays(isa: Isa, dtype: DType, shape: Matrix, block: Matrix, kept: usize, batch: usize) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
        && block_for(shape, block)
            .is_some_and(|block| strategy::blocks_pay(Level::of(isa), block, kept, shape.len(), batch))
}

/// Bands of a matrix.
pub fn bands(shape: Matrix, block: Matrix) -> usize {
    shape.rows.div_ceil(block.rows)
}

/// Blocks side by side, the last perhaps beyond the matrix; and the number of those that hold
/// nothing.
fn blocks_of_row(shape: Matrix, block: Matrix) -> usize {
    shape.cols.div_ceil(block.cols)
}

/// A multiple of so many blocks fills panels.
fn whole_panels(block: Matrix) -> usize {
    PANEL >> block.cols.trailing_zeros().min(PANEL.trailing_zeros())
}

/// A packed matrix by blocks.
#[derive(Debug, Clone, Copy)]
pub struct Blocks<'a, W> {
    /// Shape.
    pub shape: Matrix,
    /// Shape of a block.
    pub block: Matrix,
    /// Panels, band by band.
    pub values: &'a [W],
    /// The number of each block within its band.
    pub index: &'a [u16],
    /// The block at which each band begins, and the end.
    pub starts: &'a [i64],
}

/// The blocks of a band.
#[derive(Clone, Copy)]
struct Band<'a, W> {
    values: &'a [W],
    index: &'a [u16],
}

impl<'a, W: Word> Blocks<'a, W> {
    /// Panics where the lengths contradict each other.
    fn check_lengths(&self) {
        let Blocks { shape, block, values, index, starts } = *self;
        assert!((1..=MOST_ROWS).contains(&block.rows) && block.cols > 0);
        assert!(starts.len() == bands(shape, block) + 1 && values.len() == index.len() * block.len());
    }

    /// A band; `None` where its blocks are not there or do not fill panels.
    fn band(&self, band: usize) -> Option<Band<'a, W>> {
        let size = self.block.len();
        let (start, end) = (self.starts[band] as usize, self.starts[band + 1] as usize);
        let index = self.index.get(start..end)?;
        let whole = index.len().is_multiple_of(whole_panels(self.block));
        // As many values as blocks of the index, so that the products are in range.
        whole.then(|| Band { values: &self.values[start * size..end * size], index })
    }
}
