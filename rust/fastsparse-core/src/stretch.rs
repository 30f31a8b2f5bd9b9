//! Stretches: the pieces of a matrix that the passes over a mask hand to their threads.
//!
//! A stretch is some whole rows or, where rows are long and there are threads to feed, a part of one row. Cuts depend on the
//! shape alone.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};
use crate::matrix::{Matrix, popcount};
use crate::parallel::{Exec, run, run_chunks};
use crate::unpack::check_parts;

/// Elements of a stretch, about: 64 kB to 512 kB, some ten microseconds of work, so that threads end at the same time.
const ELEMENTS: usize = 1 << 16;

/// Most parts of a row. The counts of its parts live on the stack.
const PARTS: usize = 256;

/// Bytes of the dense tensor below which a second thread costs more than it saves. An estimate: waking a thread takes some
/// microseconds, packing 256 kB about ten.
const BYTES_PER_THREAD: usize = 1 << 18;

/// A piece of the matrix.
#[derive(Debug, Clone)]
pub(crate) struct Stretch {
    /// Its elements.
    pub elements: Range<usize>,
    /// Columns of its rows: rows that end on a byte make one.
    pub cols: usize,
    /// Its mask bytes.
    pub mask: Range<usize>,
}

/// A matrix cut into stretches: several rows each, or several a row.
struct Cuts {
    shape: Matrix,
    rows: usize,
    part: usize,
    parts: usize,
}

impl Cuts {
    /// `shape` is not empty.
    fn new(shape: Matrix, threads: usize) -> Cuts {
        if threads > 1 && shape.cols > 2 * ELEMENTS {
            let part = ELEMENTS.max(shape.cols.div_ceil(PARTS)).next_multiple_of(64);
            Cuts { shape, rows: 1, part, parts: shape.cols.div_ceil(part) }
        } else {
            Cuts { shape, rows: (ELEMENTS / shape.cols).max(1), part: shape.cols, parts: 1 }
        }
    }

    fn len(&self) -> usize {
        self.shape.rows.div_ceil(self.rows) * self.parts
    }

    /// The rows that stretch `i` is of.
    fn rows(&self, i: usize) -> Range<usize> {
        let first = i / self.parts * self.rows;
        first..self.shape.rows.min(first + self.rows)
    }

    fn stretch(&self, i: usize) -> Stretch {
        let (Matrix { cols, .. }, rows, row_bytes) = (self.shape, self.rows(i), self.shape.row_bytes());
        if self.parts > 1 {
            let start = i % self.parts * self.part;
            let end = cols.min(start + self.part);
            return Stretch {
                elements: rows.start * cols + start..rows.start * cols + end,
                cols: end - start,
                mask: rows.start * row_bytes + start / 8..rows.start * row_bytes + end.div_ceil(8),
            };
        }
        Stretch {
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

/// Calls `kernel` once for every stretch of `shape`; elements are of `bytes` bytes.
pub(crate) fn each(shape: Matrix, bytes: usize, exec: Exec, kernel: impl Fn(Stretch) + Sync) {
    if shape.is_empty() {
        return;
    }
    let exec = sized(exec, shape, bytes);
    let cuts = Cuts::new(shape, exec.threads);
    run(exec.threads, cuts.len(), |i| kernel(cuts.stretch(i)));
}

/// Calls `kernel(i, stretch, rows)` once for every stretch of `shape`, `rows` being those that end in it. Stretches are begun in
/// order; a row that no second-level cache holds is cut on one thread too.
pub(crate) fn in_order(shape: Matrix, bytes: usize, exec: Exec, kernel: impl Fn(usize, Stretch, Range<usize>) + Sync) {
    if shape.is_empty() {
        return;
    }
    let exec = sized(exec, shape, bytes);
    let cuts = Cuts::new(shape, 2);
    run(exec.threads, cuts.len(), |i| {
        let rows = cuts.rows(i);
        let ended = if (i + 1) % cuts.parts == 0 { rows } else { rows.start..rows.start };
        kernel(i, cuts.stretch(i), ended);
    });
}

/// A packed tensor, as far as it decides who works on what.
#[derive(Clone, Copy)]
pub(crate) struct Packed<'a> {
    /// Shape.
    pub shape: Matrix,
    /// Mask.
    pub mask: &'a [u8],
    /// Row offsets.
    pub offsets: &'a [i64],
    /// Number of values.
    pub kept: usize,
}

impl Packed<'_> {
    /// Calls `kernel(stretch, values)` once for every stretch with its range of the values, in bounds whatever the mask and the
    /// offsets hold. It answers whether the mask of the stretch has as many bits; where one says no the result is an error.
    pub(crate) fn each(
        self,
        bytes: usize,
        exec: Exec,
        kernel: impl Fn(Stretch, Range<usize>) -> bool + Sync,
    ) -> Result<()> {
        let Packed { shape, mask, offsets, kept } = self;
        assert!(mask.len() == shape.mask_bytes() && offsets.len() == shape.rows + 1);
        let agreed = AtomicBool::new(offsets[0] == 0 && offsets[shape.rows] == kept as i64);
        if !shape.is_empty() {
            let exec = sized(exec, shape, bytes);
            let cuts = Cuts::new(shape, exec.threads);
            let visit = |i: usize, values: Range<usize>| {
                let fits = values.start <= values.end && values.end <= kept;
                if !(fits && kernel(cuts.stretch(i), values)) {
                    agreed.store(false, Ordering::Relaxed);
                }
            };
            if cuts.parts == 1 {
                run(exec.threads, cuts.len(), |i| {
                    let rows = cuts.rows(i);
                    visit(i, offsets[rows.start] as usize..offsets[rows.end] as usize);
                });
            } else {
                let row_agrees = |row| self.parts_of_row(&cuts, row, exec, &visit);
                agreed.fetch_and((0..shape.rows).all(row_agrees), Ordering::Relaxed);
            }
        }
        if agreed.into_inner() {
            return Ok(());
        }
        check_parts(kept, shape, mask, offsets)?;
        Err(Error::Changed)
    }

    /// Calls `visit` with the parts of a row and their ranges of the values, found by counting. Answers whether the offsets of the
    /// row say the same.
    fn parts_of_row(self, cuts: &Cuts, row: usize, exec: Exec, visit: &(impl Fn(usize, Range<usize>) + Sync)) -> bool {
        let (start, end) = (self.offsets[row], self.offsets[row + 1]);
        let first = row * cuts.parts;
        let mut ends = [0; PARTS];
        let ends = &mut ends[..cuts.parts];
        run_chunks(exec.threads, ends, 1, |i, count| {
            count[0] = popcount(&self.mask[cuts.stretch(first + i).mask]);
        });
        let mut total = start as usize;
        for count in ends.iter_mut() {
            total = total.wrapping_add(*count);
            *count = total;
        }
        if total as i64 == end {
            run(exec.threads, cuts.parts, |i| {
                let from = if i == 0 { start as usize } else { ends[i - 1] };
                visit(first + i, from..ends[i]);
            });
        }
        total as i64 == end
    }
}
