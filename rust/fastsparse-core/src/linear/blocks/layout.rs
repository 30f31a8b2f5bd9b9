//! From a mask of blocks to the layout and back. Done once for weights that are multiplied many
//! times.

use super::{Blocks, PANEL, bands, blocks_of_row, whole_panels};
use crate::element::Word;
use crate::error::{Error, Result};
use crate::linear::{Weights, threads_for};
use crate::matrix::Matrix;
use crate::parallel::{Exec, SharedMut, run};
use crate::unpack::check_parts;

fn is_set(bits: &[u8], col: usize) -> bool {
    bits[col / 8] >> (col % 8) & 1 == 1
}

/// Writes the block at which each band begins, padding included: what has to be known to allocate
/// the rest.
pub fn count(shape: Matrix, block: Matrix, mask: &[u8], starts: &mut [i64]) {
    assert!(mask.len() == shape.mask_bytes() && starts.len() == bands(shape, block) + 1);
    starts[0] = 0;
    for band in 0..bands(shape, block) {
        let bits = &mask[band * block.rows * shape.row_bytes()..][..shape.row_bytes()];
        let kept = (0..shape.cols).step_by(block.cols).filter(|&col| is_set(bits, col)).count();
        starts[band + 1] = starts[band] + kept.next_multiple_of(whole_panels(block)) as i64;
    }
}

/// Writes values and numbers of blocks, given the starts that [`count`] found. A block that is
/// neither kept nor dropped as a whole is an error.
pub fn lay<W: Word>(
    weights: Weights<'_, W>,
    block: Matrix,
    starts: &[i64],
    exec: Exec,
    values: &mut [W],
    index: &mut [u16],
) -> Result<()> {
    let Weights { shape, mask, offsets, .. } = weights;
    assert!(mask.len() == shape.mask_bytes() && offsets.len() == shape.rows + 1);
    Blocks { shape, block, values, index, starts }.check_lengths();
    check_parts(weights.values.len(), shape, mask, offsets)?;
    // So that bands follow each other and none is beyond the end.
    assert!(starts.is_sorted() && starts[0] == 0 && starts[starts.len() - 1] as usize == index.len());
    let exec = threads_for(exec, shape.len());
    let (values, index) = (SharedMut::new(values), SharedMut::new(index));
    let error = std::sync::OnceLock::new();
    run(exec.threads, bands(shape, block), |band| {
        let (start, len) = (starts[band] as usize, (starts[band + 1] - starts[band]) as usize);
        // SAFETY: `starts` ascends from zero (checked above), so bands are disjoint.
        let (values, index) =
            unsafe { (values.slice(start * block.len(), len * block.len()), index.slice(start, len)) };
        if let Err(found) = fill(weights, block, band, values, index) {
            error.get_or_init(|| found);
        }
    });
    error.into_inner().map_or(Ok(()), Err)
}

/// Where an element of a band is among its panels, for column `at` of its kept ones.
fn place(block: Matrix, row: usize, at: usize) -> usize {
    (at / PANEL * block.rows + row) * PANEL + at % PANEL
}

/// Writes a band.
fn fill<W: Word>(
    weights: Weights<'_, W>,
    block: Matrix,
    band: usize,
    values: &mut [W],
    index: &mut [u16],
) -> Result<()> {
    let Weights { shape, mask, offsets, .. } = weights;
    let row_of = |row: usize| &mask[row * shape.row_bytes()..(row + 1) * shape.row_bytes()];
    let (first, all) = (band * block.rows, blocks_of_row(shape, block));
    let kept = (0..all).filter(|number| is_set(row_of(first), number * block.cols));
    let mut count = 0;
    for (number, slot) in kept.zip(index.iter_mut()) {
        *slot = number as u16;
        count += 1;
    }
    index[count..].fill(all as u16);
    values.fill(W::default());
    for row in first..shape.rows.min(first + block.rows) {
        let kept = weights.values.get(offsets[row] as usize..offsets[row + 1] as usize).ok_or(Error::Changed)?;
        let mut kept = kept.iter();
        let mixed = |number: usize| Error::BlockMixed { block: band * all + number };
        for (at, &number) in index[..count].iter().enumerate() {
            let start = number as usize * block.cols;
            for col in start..shape.cols.min(start + block.cols) {
                if !is_set(row_of(row), col) {
                    return Err(mixed(number as usize));
                }
                values[place(block, row - first, at * block.cols + col - start)] =
                    *kept.next().ok_or(Error::Changed)?;
            }
        }
        if kept.next().is_some() {
            // Of a block whose first weight is dropped.
            let other = (0..shape.cols)
                .find(|&col| is_set(row_of(row), col) && !index[..count].contains(&((col / block.cols) as u16)));
            return Err(other.map_or(Error::Changed, |col| mixed(col / block.cols)));
        }
    }
    Ok(())
}

/// Writes values and mask of the packed form, whose number of values is known.
pub fn unlay<W: Word>(weights: Blocks<'_, W>, values: &mut [W], mask: &mut [u8]) -> Result<()> {
    let Blocks { shape, block, .. } = weights;
    weights.check_lengths();
    assert!(mask.len() == shape.mask_bytes());
    mask.fill(0);
    let mut out = values.iter_mut();
    for row in 0..shape.rows {
        let band = weights.band(row / block.rows).ok_or(Error::Changed)?;
        let bits = &mut mask[row * shape.row_bytes()..(row + 1) * shape.row_bytes()];
        for (at, &number) in band.index.iter().enumerate() {
            let start = number as usize * block.cols;
            for col in start..shape.cols.min(start + block.cols) {
                bits[col / 8] |= 1 << (col % 8);
                let value = band.values[place(block, row % block.rows, at * block.cols + col - start)];
                *out.next().ok_or(Error::Changed)? = value;
            }
        }
    }
    if out.next().is_some() { Err(Error::Changed) } else { Ok(()) }
}
