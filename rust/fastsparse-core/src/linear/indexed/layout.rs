//! From a mask to column indices and back. Done once for weights that are multiplied many times.

use super::{COLS, Indexed, PADDING, ROWS, SLOTS, grid};
use crate::element::Word;
use crate::error::{Error, Result};
use crate::linear::Weights;
use crate::matrix::{Matrix, low, word_at};
use crate::parallel::{Exec, SharedMut, run, run_chunks};
use crate::unpack::check_parts;

/// The mask of a row in a block.
fn words(shape: Matrix, mask: &[u8], row: usize, block: usize) -> [u64; 4] {
    let (start, end) = (block * COLS, shape.cols.min((block + 1) * COLS));
    std::array::from_fn(|i| {
        let from = start + 64 * i;
        word_at(mask, 8 * row * shape.row_bytes() + from) & low(end.saturating_sub(from))
    })
}

/// Writes the steps of each block of each group, and where groups begin: what has to be known to allocate the rest.
pub fn count(shape: Matrix, mask: &[u8], exec: Exec, steps: &mut [u8], starts: &mut [i64]) {
    let grid = grid(shape);
    assert!(mask.len() == shape.mask_bytes() && steps.len() == grid.len() && starts.len() == grid.rows + 1);
    run_chunks(exec.threads, steps, grid.cols.max(1), |group, steps| {
        for (block, steps) in steps.iter_mut().enumerate() {
            let rows = group * ROWS..shape.rows.min((group + 1) * ROWS);
            let kept = |row| words(shape, mask, row, block).iter().map(|word| word.count_ones()).sum::<u32>();
            *steps = rows.map(kept).max().unwrap_or(0).div_ceil(2) as u8;
        }
    });
    starts[0] = 0;
    for group in 0..grid.rows {
        let all = &steps[group * grid.cols..(group + 1) * grid.cols];
        starts[group + 1] = starts[group] + all.iter().map(|&steps| steps as i64).sum::<i64>();
    }
}

/// Writes values and columns, given the steps that [`count`] found.
pub fn index<W: Word>(
    weights: Weights<'_, W>,
    steps: &[u8],
    starts: &[i64],
    exec: Exec,
    values: &mut [W],
    columns: &mut [u8],
) -> Result<()> {
    let Weights { shape, mask, offsets, .. } = weights;
    assert!(mask.len() == shape.mask_bytes() && offsets.len() == shape.rows + 1);
    Indexed { shape, values, columns, steps, starts }.check_lengths();
    check_parts(weights.values.len(), shape, mask, offsets)?;
    let grid = grid(shape);
    let (out, places) =
        (SharedMut::new(values.as_chunks_mut::<SLOTS>().0), SharedMut::new(columns.as_chunks_mut::<SLOTS>().0));
    let complete = std::sync::atomic::AtomicBool::new(true);
    run(exec.threads, grid.rows, |group| {
        let (start, end) = (starts[group] as usize, starts[group + 1] as usize);
        // SAFETY: `starts` ascends (it belongs to the caller, who shares it with nobody), so groups are disjoint.
        let (out, places) = unsafe { (out.slice(start, end - start), places.slice(start, end - start)) };
        if fill(weights, group, &steps[group * grid.cols..(group + 1) * grid.cols], out, places).is_none() {
            complete.store(false, std::sync::atomic::Ordering::Relaxed);
        }
    });
    if complete.into_inner() { Ok(()) } else { Err(Error::Changed) }
}

/// Writes the steps of a group; `None` where mask, offsets and values disagree.
fn fill<W: Word>(
    weights: Weights<'_, W>,
    group: usize,
    steps: &[u8],
    values: &mut [[W; SLOTS]],
    columns: &mut [[u8; SLOTS]],
) -> Option<()> {
    let Weights { shape, mask, offsets, .. } = weights;
    values.fill([W::default(); SLOTS]);
    columns.fill([PADDING; SLOTS]);
    for row in group * ROWS..shape.rows.min((group + 1) * ROWS) {
        let mut kept = weights.values.get(offsets[row] as usize..offsets[row + 1] as usize)?.iter();
        let mut first = 0;
        for (block, &steps) in steps.iter().enumerate() {
            let mut slot = 0;
            for (i, mut word) in words(shape, mask, row, block).into_iter().enumerate() {
                while word != 0 {
                    let at = first + slot / 2;
                    let lane = 2 * (row % ROWS) + slot % 2;
                    *values.get_mut(at)?.get_mut(lane)? = *kept.next()?;
                    columns[at][lane] = (64 * i) as u8 + word.trailing_zeros() as u8;
                    (word, slot) = (word & (word - 1), slot + 1);
                }
            }
            first += steps as usize;
        }
        if kept.next().is_some() {
            return None;
        }
    }
    Some(())
}

/// Writes values and mask of the packed form, whose number of values is known.
pub fn unindex<W: Word>(weights: Indexed<'_, W>, values: &mut [W], mask: &mut [u8]) -> Result<()> {
    let shape = weights.shape;
    weights.check_lengths();
    assert!(mask.len() == shape.mask_bytes());
    mask.fill(0);
    let mut out = values.iter_mut();
    for row in 0..shape.rows {
        let group = weights.group(row / ROWS).ok_or(Error::Changed)?;
        let bits = &mut mask[row * shape.row_bytes()..(row + 1) * shape.row_bytes()];
        let (mut first, lane) = (0, 2 * (row % ROWS));
        for (block, &steps) in group.steps.iter().enumerate() {
            for at in first..first + steps as usize {
                let (values, columns) = (group.values.get(at), group.columns.get(at));
                let (values, columns) = values.zip(columns).ok_or(Error::Changed)?;
                for slot in lane..lane + 2 {
                    if columns[slot] != PADDING {
                        let col = block * COLS + columns[slot] as usize;
                        *bits.get_mut(col / 8).ok_or(Error::Changed)? |= 1 << (col % 8);
                        *out.next().ok_or(Error::Changed)? = values[slot];
                    }
                }
            }
            first += steps as usize;
        }
    }
    if out.next().is_some() { Err(Error::Changed) } else { Ok(()) }
}
