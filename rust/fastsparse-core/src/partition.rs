//! Partition of a matrix into the parts that the passes over a mask hand to their threads, and of
//! the values that belong to them.
//!
//! A part is some whole rows or, where rows are long and there are threads to feed, a piece of one
//! row. Cuts depend on the shape alone.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};
use crate::matrix::{Matrix, popcount};
use crate::memory;
use crate::parallel::{Exec, run, run_chunks, try_run};

/// Elements of a part, about: 64 kB to 512 kB, some ten microseconds of work, so that threads end
/// at the same time.
const ELEMENTS: usize = 1 << 16;

/// Most pieces of a row. Their counts live on the stack.
const PIECES: usize = 256;

/// Bytes of the dense tensor below which a second thread costs more than it saves. An estimate:
/// waking a thread takes some microseconds, packing 256 kB about ten.
const BYTES_PER_THREAD: usize = 1 << 18;

/// Row offsets that one task checks; a second thread comes in from twice as many on.
const OFFSETS: usize = 1 << 20;

/// A part of the matrix.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// Its elements.
    pub elements: Range<usize>,
    /// Columns of its rows: rows that end on a byte make one.
    pub cols: usize,
    /// Its mask bytes.
    pub mask: Range<usize>,
}

/// A matrix cut into parts: several rows each, or several pieces a row.
struct Cuts {
    shape: Matrix,
    rows: usize,
    piece: usize,
    pieces: usize,
}

impl Cuts {
    /// `shape` is not empty.
    fn new(shape: Matrix, threads: usize) -> Cuts {
        if threads > 1 && shape.cols > 2 * ELEMENTS {
            let piece = ELEMENTS.max(shape.cols.div_ceil(PIECES)).next_multiple_of(64);
            Cuts { shape, rows: 1, piece, pieces: shape.cols.div_ceil(piece) }
        } else {
            Cuts { shape, rows: (ELEMENTS / shape.cols).max(1), piece: shape.cols, pieces: 1 }
        }
    }

    fn len(&self) -> usize {
        self.shape.rows.div_ceil(self.rows) * self.pieces
    }

    /// The rows that part `i` is of.
    fn rows(&self, i: usize) -> Range<usize> {
        let first = i / self.pieces * self.rows;
        first..self.shape.rows.min(first + self.rows)
    }

    fn part(&self, i: usize) -> Part {
        let (Matrix { cols, .. }, rows, row_bytes) = (self.shape, self.rows(i), self.shape.row_bytes());
        if self.pieces > 1 {
            let start = i % self.pieces * self.piece;
            let end = cols.min(start + self.piece);
            return Part {
                elements: rows.start * cols + start..rows.start * cols + end,
                cols: end - start,
                mask: rows.start * row_bytes + start / 8..rows.start * row_bytes + end.div_ceil(8),
            };
        }
        Part {
            elements: rows.start * cols..rows.end * cols,
            cols: if cols.is_multiple_of(8) { cols * rows.len() } else { cols },
            mask: rows.start * row_bytes..rows.end * row_bytes,
        }
    }
}

/// `exec`, on one thread where `shape` is small.
pub(crate) fn sized(exec: Exec, shape: Matrix, bytes: usize) -> Exec {
    exec.for_work(shape.len() * bytes, BYTES_PER_THREAD)
}

/// Calls `kernel` once for every part of `shape`; elements are of `bytes` bytes.
pub(crate) fn each(shape: Matrix, bytes: usize, exec: Exec, kernel: impl Fn(Part) + Sync) {
    if shape.is_empty() {
        return;
    }
    let exec = sized(exec, shape, bytes);
    let cuts = Cuts::new(shape, exec.threads);
    run(exec.threads, cuts.len(), |i| kernel(cuts.part(i)));
}

/// Calls `kernel(i, part, rows)` once for every part of `shape`, `rows` being those that end in it.
/// Parts are begun in order; a row that no second-level cache holds is cut on one thread too.
pub(crate) fn in_order(shape: Matrix, bytes: usize, exec: Exec, kernel: impl Fn(usize, Part, Range<usize>) + Sync) {
    if shape.is_empty() {
        return;
    }
    let exec = sized(exec, shape, bytes);
    let cuts = Cuts::new(shape, 2);
    run(exec.threads, cuts.len(), |i| {
        let rows = cuts.rows(i);
        let ended = if (i + 1) % cuts.pieces == 0 { rows } else { rows.start..rows.start };
        kernel(i, cuts.part(i), ended);
    });
}

/// Where the values of each row begin, and where the last ones end: checked to begin at 0, to
/// ascend, and to end at the number of values.
#[derive(Debug, Clone, Copy)]
pub struct RowOffsets<'a> {
    offsets: &'a [i64],
    kept: usize,
}

impl<'a> RowOffsets<'a> {
    /// `offsets` as those of `kept` values; one more than there are rows, else the caller has a bug
    /// and this panics.
    pub fn new(offsets: &'a [i64], shape: Matrix, kept: usize, exec: Exec) -> Result<RowOffsets<'a>> {
        assert!(offsets.len() == shape.rows + 1);
        let (first, last) = (offsets[0], offsets[shape.rows]);
        if first != 0 {
            return Err(Error::RowOffsets { index: 0 });
        }
        let threads = exec.for_work(offsets.len(), OFFSETS).threads;
        try_run(threads, shape.rows.div_ceil(OFFSETS), |i| {
            let from = i * OFFSETS;
            let (begins, ends) = (&offsets[from..shape.rows.min(from + OFFSETS)], &offsets[from + 1..]);
            // Without an early end, so that the comparison vectorises.
            if begins.iter().zip(ends).fold(true, |ascend, (begin, end)| ascend & (begin <= end)) {
                return Ok(());
            }
            let row = begins.iter().zip(ends).position(|(begin, end)| begin > end).unwrap_or(0);
            Err(Error::RowOffsets { index: from + row + 1 })
        })?;
        if last != kept as i64 {
            return Err(Error::RowOffsets { index: shape.rows });
        }
        Ok(RowOffsets { offsets, kept })
    }

    /// Number of values.
    pub fn kept(self) -> usize {
        self.kept
    }

    /// The offsets.
    pub fn as_slice(self) -> &'a [i64] {
        self.offsets
    }
}

/// A packed tensor, as far as it decides who works on what.
#[derive(Clone, Copy)]
pub(crate) struct Packed<'a> {
    /// Shape.
    pub shape: Matrix,
    /// Mask.
    pub mask: &'a [u8],
    /// Row offsets.
    pub offsets: RowOffsets<'a>,
}

impl Packed<'_> {
    /// Calls `kernel(part, values)` once for every part with its range of the values: ranges lie
    /// within the values and those of calls at the same time are disjoint, whatever the mask and
    /// the offsets hold and whoever changes them meanwhile. `kernel` returns whether the mask of
    /// the part has as many bits; where one says no the result is an error.
    pub(crate) fn each(
        self,
        bytes: usize,
        exec: Exec,
        kernel: impl Fn(Part, Range<usize>) -> bool + Sync,
    ) -> Result<()> {
        let Packed { shape, mask, offsets } = self;
        assert!(mask.len() == shape.mask_bytes() && offsets.offsets.len() == shape.rows + 1);
        let agreed = AtomicBool::new(true);
        if !shape.is_empty() {
            let exec = sized(exec, shape, bytes);
            let cuts = Cuts::new(shape, exec.threads);
            let visit = |i: usize, values: Range<usize>| {
                if !kernel(cuts.part(i), values) {
                    agreed.store(false, Ordering::Relaxed);
                }
            };
            if cuts.len() == 1 {
                visit(0, 0..offsets.kept);
            } else if cuts.pieces == 1 {
                let bounds = self.bounds(&cuts)?;
                run(exec.threads, cuts.len(), |i| visit(i, bounds[i]..bounds[i + 1]));
            } else {
                let row_agrees = |row| self.pieces_of_row(&cuts, row, exec, &visit);
                agreed.fetch_and((0..shape.rows).all(row_agrees), Ordering::Relaxed);
            }
        }
        if agreed.into_inner() {
            return Ok(());
        }
        check_parts(offsets.kept, shape, mask, offsets.offsets)?;
        Err(Error::Changed)
    }

    /// Where the values of each part begin and end, in ascending order. A copy: the offsets may lie
    /// in memory that another thread writes to, and tasks at work at the same time must not get the
    /// same values.
    fn bounds(self, cuts: &Cuts) -> Result<Vec<usize>> {
        let rows = (0..cuts.len()).map(|i| cuts.rows(i).start).chain([self.shape.rows]);
        let bounds = memory::collect(rows.map(|row| self.offsets.offsets[row] as usize))?;
        let within = bounds.is_sorted() && bounds.last().is_none_or(|&end| end <= self.offsets.kept);
        if within { Ok(bounds) } else { Err(Error::Changed) }
    }

    /// Calls `visit` with the pieces of a row and their ranges of the values, found by counting.
    /// Returns whether the offsets of the row say the same.
    fn pieces_of_row(self, cuts: &Cuts, row: usize, exec: Exec, visit: &(impl Fn(usize, Range<usize>) + Sync)) -> bool {
        let (start, end) = (self.offsets.offsets[row] as usize, self.offsets.offsets[row + 1] as usize);
        let first = row * cuts.pieces;
        let mut ends = [0; PIECES];
        let ends = &mut ends[..cuts.pieces];
        run_chunks(exec.threads, ends, 1, |i, count| {
            count[0] = popcount(&self.mask[cuts.part(first + i).mask]);
        });
        let mut total = start;
        for count in ends.iter_mut() {
            total = total.wrapping_add(*count);
            *count = total;
        }
        let agrees = total == end && start <= end && end <= self.offsets.kept;
        if agrees {
            run(exec.threads, cuts.pieces, |i| {
                let from = if i == 0 { start } else { ends[i - 1] };
                visit(first + i, from..ends[i]);
            });
        }
        agrees
    }
}

/// Checks the parts of a packed tensor against each other. `offsets` are the `rows + 1` row
/// offsets.
pub fn check_parts(values: usize, shape: Matrix, mask: &[u8], offsets: &[i64]) -> Result<()> {
    let (row_bytes, padding) = (shape.row_bytes(), !shape.last_byte());
    let mut total = 0usize;
    for row in 0..shape.rows {
        let bits = &mask[row * row_bytes..(row + 1) * row_bytes];
        if bits.last().is_some_and(|last| last & padding != 0) {
            return Err(Error::Padding { row });
        }
        let found = popcount(bits);
        let expected = offsets[row + 1].wrapping_sub(offsets[row]);
        if offsets[row] != total as i64 || expected != found as i64 {
            return Err(Error::RowCount { row, found, expected: expected.max(0) as usize });
        }
        total += found;
    }
    if total != values {
        return Err(Error::ValueCount { found: total, expected: values });
    }
    if offsets[shape.rows] != total as i64 {
        return Err(Error::RowOffsets { index: shape.rows }); // there are no rows
    }
    Ok(())
}
