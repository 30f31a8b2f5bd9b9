//! Which groups there are, where their keys and their bits lie, and how the work is cut into units.
//!
//! A unit is what one task does: no byte of the mask belongs to two. Bits of neighbouring groups
//! share bytes, and mask rows start on bytes, so units are whole bytes of a row or whole rows.

use std::ops::Range;

use super::{Axis, Groups};
use crate::matrix::Matrix;
use crate::parallel::SharedMut;

/// Keys of a unit, about: some ten microseconds of work, and a mask that stays in the first-level
/// cache.
const UNIT: usize = 1 << 16;

/// The groups of a tensor.
#[derive(Debug)]
pub(super) enum Geometry {
    /// Groups are runs of neighbours.
    Lines(Lines),
    /// The neighbours of a group lie apart.
    Slabs(Slabs),
}

impl Geometry {
    /// The groups of a tensor that is not empty; `groups.of` is not longer than the axis.
    pub fn new(shape: Matrix, axis: Axis, groups: Groups) -> Geometry {
        if axis.inner == 1 && shape.cols.is_multiple_of(axis.len) {
            Geometry::Lines(Lines::new(shape, axis, groups))
        } else {
            Geometry::Slabs(Slabs::new(shape, axis, groups))
        }
    }

    /// Number of units.
    pub fn units(&self) -> usize {
        match self {
            Geometry::Lines(lines) => lines.count.div_ceil(lines.lines_per_unit) * lines.units_per_line(),
            Geometry::Slabs(slabs) => slabs.items().div_ceil(slabs.items_per_unit),
        }
    }
}

/// Lines of neighbours, one after the other in memory, each cut into groups from its start.
#[derive(Debug)]
pub(super) struct Lines {
    /// Elements of a line.
    pub line: usize,
    /// Items of a full group.
    pub of: usize,
    /// Full groups of a line; what is left is its tail.
    pub groups: usize,
    count: usize,
    lines_per_row: usize,
    row_bits: usize,
    lines_per_unit: usize,
    groups_per_unit: usize,
}

/// Some lines, and some full groups of each: all of them unless it is one line. The tail belongs to
/// the last full group.
#[derive(Debug, Clone)]
pub(super) struct Span {
    /// The lines.
    pub lines: Range<usize>,
    /// Full groups of each.
    pub groups: Range<usize>,
}

impl Lines {
    fn new(shape: Matrix, axis: Axis, groups: Groups) -> Lines {
        // Without padding bits between the rows, the mask is as flat as the tensor.
        let flat = shape.rows == 1 || shape.cols.is_multiple_of(8);
        let row = if flat { shape.len() } else { shape.cols };
        let line = if axis.len.is_multiple_of(groups.of) { row } else { axis.len };
        let lines_per_row = row / line;
        let mut lines = Lines {
            line,
            of: groups.of,
            groups: line / groups.of,
            count: shape.len() / line,
            lines_per_row,
            row_bits: if flat { row } else { 8 * shape.row_bytes() },
            lines_per_unit: 1,
            groups_per_unit: line / groups.of,
        };
        if line > UNIT && lines.start_on_bytes() {
            let whole_bytes = 8 >> groups.of.trailing_zeros().min(3);
            lines.groups_per_unit = (UNIT / groups.of).max(1).next_multiple_of(whole_bytes);
        } else {
            let start_on_bytes = if flat { 8 >> line.trailing_zeros().min(3) } else { lines_per_row };
            lines.lines_per_unit = start_on_bytes * (UNIT / (line * start_on_bytes)).max(1);
        }
        lines
    }

    fn units_per_line(&self) -> usize {
        self.groups.div_ceil(self.groups_per_unit)
    }

    /// Whether all lines start on bytes of the mask. Spans of groups of four, eight, … then do,
    /// too.
    pub fn start_on_bytes(&self) -> bool {
        self.lines_per_row == 1 || self.line.is_multiple_of(8)
    }

    /// What unit `i` covers.
    pub fn unit(&self, i: usize) -> Span {
        let first = i / self.units_per_line() * self.lines_per_unit;
        let group = i % self.units_per_line() * self.groups_per_unit;
        Span {
            lines: first..(first + self.lines_per_unit).min(self.count),
            groups: group..(group + self.groups_per_unit).min(self.groups),
        }
    }

    /// First bit of a line.
    pub fn bit(&self, line: usize) -> usize {
        line / self.lines_per_row * self.row_bits + line % self.lines_per_row * self.line
    }

    /// First byte of a unit. Those after the last one belong to it.
    pub fn byte(&self, unit: usize) -> usize {
        let span = self.unit(unit);
        (self.bit(span.lines.start) + span.groups.start * self.of) / 8
    }

    /// The elements of a span.
    pub fn elements(&self, span: &Span) -> Range<usize> {
        let end = if self.has_tail(span) { self.line } else { span.groups.end * self.of };
        span.lines.start * self.line + span.groups.start * self.of..(span.lines.end - 1) * self.line + end
    }

    /// Whether a span reaches the end of its lines.
    pub fn has_tail(&self, span: &Span) -> bool {
        span.groups.end == self.groups
    }

    /// Length of the last, shorter group of each line.
    pub fn tail(&self) -> usize {
        self.line - self.groups * self.of
    }

    /// The span in parts of at most `limit` elements and a tail, cut at lines or at multiples of
    /// eight groups.
    pub fn parts(&self, whole: Span, limit: usize) -> impl Iterator<Item = Span> {
        let complete = whole.groups.len() == self.groups;
        let lines = if complete { (limit / self.line).max(1) } else { 1 };
        let groups = if lines > 1 || (complete && self.line <= limit) { self.groups } else { limit / self.of / 8 * 8 };
        whole.lines.clone().step_by(lines).flat_map(move |line| {
            let end = whole.lines.end;
            whole.groups.clone().step_by(groups).map({
                let last = whole.groups.end;
                move |group| Span {
                    lines: line..line.saturating_add(lines).min(end),
                    groups: group..group.saturating_add(groups).min(last),
                }
            })
        })
    }
}

/// Slabs of `len` rows of `inner` columns; a group is a column of `of` rows.
#[derive(Debug)]
pub(super) struct Slabs {
    /// Distance of the neighbours of a group, in elements.
    pub inner: usize,
    /// Distance of the neighbours of a group, in mask bits.
    pub bit_pitch: usize,
    len: usize,
    of: usize,
    count: usize,
    slabs_per_row: usize,
    row_bits: usize,
    block: usize,
    aligned: bool,
    items_per_unit: usize,
}

/// Some neighbouring columns of one row of groups.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item {
    /// First element.
    pub element: usize,
    /// Its bit.
    pub bit: usize,
    /// Length of the groups.
    pub length: usize,
    /// Number of groups.
    pub width: usize,
}

impl Item {
    /// The item in parts of at most `most` columns.
    pub fn parts(self, most: usize) -> impl Iterator<Item = Item> {
        (0..self.width).step_by(most).map(move |first| Item {
            element: self.element + first,
            bit: self.bit + first,
            width: most.min(self.width - first),
            ..self
        })
    }
}

impl Slabs {
    fn new(shape: Matrix, axis: Axis, groups: Groups) -> Slabs {
        // Along the first axis each neighbour lies in a mask row of its own.
        let first_axis = axis.outer == 1 && axis.len == shape.rows && axis.inner == shape.cols;
        let aligned = first_axis || axis.inner.is_multiple_of(8);
        let mut slabs = Slabs {
            inner: axis.inner,
            bit_pitch: if first_axis { 8 * shape.row_bytes() } else { axis.inner },
            len: axis.len,
            of: groups.of,
            count: axis.outer,
            slabs_per_row: if first_axis { 1 } else { axis.outer / shape.rows },
            row_bits: 8 * shape.row_bytes(),
            block: axis.inner,
            aligned,
            items_per_unit: 1,
        };
        if aligned {
            slabs.block = (UNIT / groups.of).max(1).next_multiple_of(64).min(axis.inner);
            slabs.items_per_unit = (UNIT / (slabs.block * groups.of)).max(1);
        } else {
            let rows = (UNIT / shape.cols).max(1);
            slabs.items_per_unit = rows * slabs.slabs_per_row * slabs.items_per_slab();
        }
        slabs
    }

    fn blocks(&self) -> usize {
        self.inner.div_ceil(self.block)
    }

    fn items_per_slab(&self) -> usize {
        self.len.div_ceil(self.of) * self.blocks()
    }

    fn items(&self) -> usize {
        self.count * self.items_per_slab()
    }

    /// The items of unit `i`.
    pub fn unit(&self, i: usize) -> impl Iterator<Item = Item> {
        let first = i * self.items_per_unit;
        (first..(first + self.items_per_unit).min(self.items())).map(|item| self.item(item))
    }

    fn item(&self, item: usize) -> Item {
        let (row, block) = (item / self.blocks(), item % self.blocks() * self.block);
        let rows = self.len.div_ceil(self.of);
        let (slab, first) = (row / rows, row % rows * self.of);
        let slab_bit = slab / self.slabs_per_row * self.row_bits + slab % self.slabs_per_row * self.len * self.inner;
        Item {
            element: (slab * self.len + first) * self.inner + block,
            bit: slab_bit + first * self.bit_pitch + block,
            length: self.of.min(self.len - first),
            width: self.block.min(self.inner - block),
        }
    }

    /// Clears the bits of unit `i`: mask rows where its items share bytes, else the bytes of each
    /// item.
    ///
    /// # Safety
    /// Nobody else has those bytes.
    pub unsafe fn clear(&self, i: usize, mask: &SharedMut<u8>) {
        if self.aligned {
            for item in self.unit(i) {
                for row in 0..item.length {
                    let bit = item.bit + row * self.bit_pitch;
                    // SAFETY: the bits of an aligned item fill bytes of its unit: the caller's
                    // promise.
                    unsafe { mask.slice(bit / 8, item.width.div_ceil(8)) }.fill(0);
                }
            }
        } else {
            let rows = self.items_per_unit / (self.slabs_per_row * self.items_per_slab());
            let total = self.count / self.slabs_per_row;
            let byte = |row: usize| row.min(total) * (self.row_bits / 8);
            // SAFETY: such a unit has whole mask rows: the caller's promise.
            unsafe { mask.slice(byte(i * rows), byte((i + 1) * rows) - byte(i * rows)) }.fill(0);
        }
    }
}
