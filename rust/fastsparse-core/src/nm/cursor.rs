//! Batches of groups of one length: as many as a vector has lanes, wherever they lie.

use std::ops::Range;

use super::bits;
use super::geometry::{Lines, Span};

/// Where groups begin, in increasing order: only a [`Cursor`] makes one.
#[derive(Clone, Copy)]
pub(super) struct Starts<'a>(&'a [usize; 64]);

impl<'a> Starts<'a> {
    #[inline(always)]
    pub fn get(self) -> &'a [usize; 64] {
        self.0
    }
}

/// Walks over the full groups, or over the tails, of a span.
pub(super) struct Cursor<'a> {
    geometry: &'a Lines,
    lines: Range<usize>,
    /// The groups of each line.
    groups: Range<usize>,
    /// The next group.
    group: usize,
    first_element: usize,
    first_bit: usize,
    batch: Batch,
    /// Where the groups of a run begin, from its first one on.
    run: [usize; 64],
    /// The first keys of a scattered batch.
    starts: [usize; 64],
    /// Their bits.
    bits: [usize; 64],
}

/// Some groups.
enum Batch {
    /// One after the other: their first key and bit, and how many.
    Run { start: usize, bit: usize, count: usize },
    /// From several lines: how many.
    Scattered { count: usize },
}

impl<'a> Cursor<'a> {
    /// The full groups of a span. Positions count from its first element and from `first_bit`.
    pub fn full(geometry: &'a Lines, span: &Span, first_bit: usize) -> Self {
        Self::new(geometry, span, span.groups.clone(), first_bit)
    }

    /// The tails of a span.
    pub fn tails(geometry: &'a Lines, span: &Span, first_bit: usize) -> Self {
        let here = geometry.has_tail(span) && geometry.tail() > 0;
        Self::new(geometry, span, geometry.groups..geometry.groups + here as usize, first_bit)
    }

    fn new(geometry: &'a Lines, span: &Span, groups: Range<usize>, first_bit: usize) -> Self {
        Cursor {
            geometry,
            lines: if groups.is_empty() { 0..0 } else { span.lines.clone() },
            group: groups.start,
            groups,
            first_element: geometry.elements(span).start,
            first_bit,
            batch: Batch::Run { start: 0, bit: 0, count: 0 },
            run: std::array::from_fn(|i| i * geometry.of),
            starts: [0; 64],
            bits: [0; 64],
        }
    }

    /// First key and first bit of the next group.
    #[inline(always)]
    fn position(&self) -> (usize, usize) {
        let offset = self.group * self.geometry.of;
        let element = self.lines.start * self.geometry.line + offset;
        (element - self.first_element, self.geometry.bit(self.lines.start) + offset - self.first_bit)
    }

    #[inline(always)]
    fn advance(&mut self, groups: usize) {
        self.group += groups;
        if self.group == self.groups.end {
            self.group = self.groups.start;
            self.lines.start += 1;
        }
    }

    /// All that is left of a line: its first key, its first bit, and the number of its groups.
    #[inline(always)]
    pub fn next_line(&mut self) -> Option<(usize, usize, usize)> {
        if self.lines.is_empty() {
            return None;
        }
        let (start, bit) = self.position();
        let count = self.groups.end - self.group;
        self.advance(count);
        Some((start, bit, count))
    }

    /// Goes on to the next up to `lanes` groups; whether there is one.
    #[inline(always)]
    pub fn next_batch(&mut self, lanes: usize) -> bool {
        if self.lines.is_empty() {
            return false;
        }
        if self.groups.end - self.group >= lanes {
            let (start, bit) = self.position();
            self.batch = Batch::Run { start, bit, count: lanes };
            self.advance(lanes);
        } else {
            self.gather(lanes);
        }
        true
    }

    fn gather(&mut self, lanes: usize) {
        let mut count = 0;
        while count < lanes && !self.lines.is_empty() {
            (self.starts[count], self.bits[count]) = self.position();
            count += 1;
            self.advance(1);
        }
        // Lanes to spare repeat the last group, so that the last lane has the last one.
        let last = self.starts[count - 1];
        self.starts[count..].fill(last);
        self.batch = Batch::Scattered { count };
    }

    /// Where the groups of the batch begin: from the first number on.
    #[inline(always)]
    pub fn starts(&self) -> (usize, Starts<'_>) {
        match self.batch {
            Batch::Run { start, .. } => (start, Starts(&self.run)),
            Batch::Scattered { .. } => (0, Starts(&self.starts)),
        }
    }

    /// Writes the `width` bits of each group.
    #[inline(always)]
    pub fn put(&self, mask: &mut [u8], values: &[u64; 64], width: usize) {
        match self.batch {
            Batch::Run { bit, count, .. } => bits::put_run(mask, bit, &values[..count], width),
            Batch::Scattered { count } => {
                for (&bit, &value) in self.bits[..count].iter().zip(values) {
                    bits::put(mask, bit, value, width);
                }
            }
        }
    }
}
