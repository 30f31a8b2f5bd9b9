//! From a mask to column indices and back. Done once for weights that are multiplied many times.

use super::{Column, Indexed, grid, width};
use crate::element::Word;
use crate::error::{Error, Result};
use crate::linear::{Weights, threads_for};
use crate::matrix::{Matrix, low, word_at};
use crate::parallel::{Exec, SharedMut, run, run_chunks};
use crate::unpack::check_parts;

/// The mask of a row in a block.
fn words<C: Column>(shape: Matrix, mask: &[u8], row: usize, block: usize) -> impl Iterator<Item = u64> {
    let width = width::<C>(shape);
    let (start, end) = (block * width, shape.cols.min((block + 1) * width));
    (start..end).step_by(64).map(move |from| word_at(mask, 8 * row * shape.row_bytes() + from) & low(end - from))
}

/// Writes the steps of each block of each group, and where groups begin: what has to be known to
/// allocate the rest.
pub fn count<C: Column>(shape: Matrix, mask: &[u8], exec: Exec, steps: &mut [u16], starts: &mut [i64]) {
    let grid = grid::<C>(shape);
    assert!(mask.len() == shape.mask_bytes() && steps.len() == grid.len() && starts.len() == grid.rows + 1);
    let exec = threads_for(exec, shape.len());
    run_chunks(exec.threads, steps, grid.cols.max(1), |group, steps| {
        for (block, steps) in steps.iter_mut().enumerate() {
            let rows = group * C::ROWS..shape.rows.min((group + 1) * C::ROWS);
            let kept = |row| words::<C>(shape, mask, row, block).map(u64::count_ones).sum::<u32>();
            *steps = rows.map(kept).max().unwrap_or(0).div_ceil(C::EACH as u32) as u16;
        }
    });
    starts[0] = 0;
    for group in 0..grid.rows {
        let all = &steps[group * grid.cols..(group + 1) * grid.cols];
        starts[group + 1] = starts[group] + all.iter().map(|&steps| steps as i64).sum::<i64>();
    }
}

/// Writes values and columns, given the steps that [`count`] found.
pub fn index<W: Word, C: Column>(
    weights: Weights<'_, W>,
    steps: &[u16],
    starts: &[i64],
    exec: Exec,
    values: &mut [W],
    columns: &mut [C],
) -> Result<()> {
    let Weights { shape, mask, offsets, .. } = weights;
    assert!(mask.len() == shape.mask_bytes() && offsets.len() == shape.rows + 1);
    Indexed { shape, values, columns, steps, starts }.check_lengths();
    check_parts(weights.values.len(), shape, mask, offsets)?;
    let grid = grid::<C>(shape);
    let exec = threads_for(exec, shape.len());
    // So that groups follow each other and none is beyond the end.
    assert!(starts.is_sorted() && starts[0] == 0 && starts[starts.len() - 1] as usize == values.len() / C::SLOTS);
    let (out, indices) = (SharedMut::new(values), SharedMut::new(columns));
    let complete = std::sync::atomic::AtomicBool::new(true);
    run(exec.threads, grid.rows, |group| {
        let start = starts[group] as usize * C::SLOTS;
        let len = (starts[group + 1] - starts[group]) as usize * C::SLOTS;
        // SAFETY: `starts` ascends from zero (checked above), so groups are disjoint.
        let (out, indices) = unsafe { (out.slice(start, len), indices.slice(start, len)) };
        if fill(weights, group, &steps[group * grid.cols..(group + 1) * grid.cols], out, indices).is_none() {
            complete.store(false, std::sync::atomic::Ordering::Relaxed);
        }
    });
    if complete.into_inner() { Ok(()) } else { Err(Error::Changed) }
}

/// Where the slot of a row is among those of a group.
fn slot<C: Column>(row: usize, number: usize) -> usize {
    number / C::EACH * C::SLOTS + row % C::ROWS * C::EACH + number % C::EACH
}

/// Writes the steps of a group; `None` where mask, offsets and values disagree.
fn fill<W: Word, C: Column>(
    weights: Weights<'_, W>,
    group: usize,
    steps: &[u16],
    values: &mut [W],
    columns: &mut [C],
) -> Option<()> {
    let Weights { shape, mask, offsets, .. } = weights;
    values.fill(W::default());
    columns.fill(C::from_u64(C::PADDING));
    for row in group * C::ROWS..shape.rows.min((group + 1) * C::ROWS) {
        let mut kept = weights.values.get(offsets[row] as usize..offsets[row + 1] as usize)?.iter();
        let mut first = 0;
        for (block, &steps) in steps.iter().enumerate() {
            let mut number = 0;
            for (i, mut word) in words::<C>(shape, mask, row, block).enumerate() {
                while word != 0 {
                    let at = first + slot::<C>(row, number);
                    *values.get_mut(at)? = *kept.next()?;
                    columns[at] = C::from_u64(64 * i as u64 + word.trailing_zeros() as u64);
                    (word, number) = (word & (word - 1), number + 1);
                }
            }
            first += steps as usize * C::SLOTS;
        }
        if kept.next().is_some() {
            return None;
        }
    }
    Some(())
}

/// Writes values and mask of the packed form, whose number of values is known.
pub fn unindex<W: Word, C: Column>(weights: Indexed<'_, W, C>, values: &mut [W], mask: &mut [u8]) -> Result<()> {
    let shape = weights.shape;
    weights.check_lengths();
    assert!(mask.len() == shape.mask_bytes());
    mask.fill(0);
    let mut out = values.iter_mut();
    for row in 0..shape.rows {
        let group = weights.group(row / C::ROWS).ok_or(Error::Changed)?;
        let bits = &mut mask[row * shape.row_bytes()..(row + 1) * shape.row_bytes()];
        let mut first = 0;
        for (block, &steps) in group.steps.iter().enumerate() {
            for number in 0..steps as usize * C::EACH {
                let at = first + slot::<C>(row, number);
                let (value, column) = group.values.get(at).zip(group.columns.get(at)).ok_or(Error::Changed)?;
                if column.to_u64() != C::PADDING {
                    let col = block * width::<C>(shape) + column.to_u64() as usize;
                    *bits.get_mut(col / 8).ok_or(Error::Changed)? |= 1 << (col % 8);
                    *out.next().ok_or(Error::Changed)? = *value;
                }
            }
            first += steps as usize * C::SLOTS;
        }
    }
    if out.next().is_some() { Err(Error::Changed) } else { Ok(()) }
}
