//! Norms of blocks that lie side by side.
//!
//! ```text
//! line r of a region:     t[r][c] = term(weight[r][c])
//! sum over lines:         v[c]    = fold(t[0][c], t[1][c], …)            lane = column
//! sum over columns:       n[b]    = fold(v[b·wide], v[b·wide + 1], …)    groups of `wide`
//! fold(x[0..p]), p = 2^k: x[i] += x[i + p/2] for i < p/2, then the same over x[0..p/2],
//!                         until one is left
//! ```
//!
//! Where `wide` is a power of two the two sums in this order *are* the fold over the block's
//! elements row by row: the upper half of the elements is the upper half of the lines as long as
//! there are several. Other blocks are first laid out so that they are lines, either one block an
//! array, cut into lines of [`LINE`] elements, or, where blocks are small, one block a column.
//!
//! `fold` is a tree: over lines `a, a + s, a + 2s, …` it is the fold over every second of them (`a,
//! a + 2s, …`) plus that over the others (`a + s, a + 3s, …`). That is how it is computed, from
//! leaves of up to [`LEAF`] lines in registers. A line that is missing at the end is a line of
//! zeros; leaving it out changes at most the sign of a zero, which no key shows.
//!
//! Sums travel as the bits of a float64, because the key that they become is a word: so they can
//! stay where keys go.

use std::marker::PhantomData;

use crate::element::{Element, F64, Word};
use crate::error::Result;
use crate::isa::{Isa, Kernel};
use crate::memory;

/// Columns that are summed at a time: 8 KiB of sums, so that they, and one more level of the tree,
/// stay in the first-level cache, yet a line is read in stretches that the hardware prefetches.
pub(super) const LINE: usize = 1024;
/// Lines that are read at a time.
const LEAF: usize = 8;
/// Widest groups that are folded in registers, and not in place.
const GROUP: usize = 64;
/// Elements of the largest block, not a power of two wide, that becomes a column.
const COLUMN: usize = 64;

/// How the elements of a block become its key.
pub(super) trait Measure<E: Element>: Sync + 'static {
    /// What an element contributes.
    fn term(bits: E::Bits) -> u64;
    /// Two contributions as one.
    fn join(a: u64, b: u64) -> u64;
    /// The key of a block with this total, `mean` making the mean of a sum.
    fn key(total: u64, mean: impl Fn(f64) -> f64) -> u64;
}

#[inline(always)]
fn add(a: u64, b: u64) -> u64 {
    (f64::from_bits(a) + f64::from_bits(b)).to_bits()
}

/// Without the sign, which no sum of magnitudes has, but a NaN may.
#[inline(always)]
fn unsigned(x: f64) -> u64 {
    x.abs().to_bits()
}

/// Mean of |w|.
pub(super) struct L1;

impl<E: Element> Measure<E> for L1 {
    #[inline(always)]
    fn term(bits: E::Bits) -> u64 {
        unsigned(E::to_f64(bits))
    }
    #[inline(always)]
    fn join(a: u64, b: u64) -> u64 {
        add(a, b)
    }
    #[inline(always)]
    fn key(total: u64, mean: impl Fn(f64) -> f64) -> u64 {
        unsigned(mean(f64::from_bits(total)))
    }
}

/// Mean of w².
pub(super) struct L2;

impl<E: Element> Measure<E> for L2 {
    #[inline(always)]
    fn term(bits: E::Bits) -> u64 {
        let x = E::to_f64(bits);
        (x * x).to_bits()
    }
    #[inline(always)]
    fn join(a: u64, b: u64) -> u64 {
        add(a, b)
    }
    #[inline(always)]
    fn key(total: u64, mean: impl Fn(f64) -> f64) -> u64 {
        unsigned(mean(f64::from_bits(total)))
    }
}

/// Largest |w|, by magnitude keys.
pub(super) struct Largest;

impl<E: Element> Measure<E> for Largest {
    #[inline(always)]
    fn term(bits: E::Bits) -> u64 {
        E::magnitude(bits).to_u64()
    }
    #[inline(always)]
    fn join(a: u64, b: u64) -> u64 {
        a.max(b)
    }
    #[inline(always)]
    fn key(total: u64, _mean: impl Fn(f64) -> f64) -> u64 {
        unsigned(E::magnitude_value(E::Bits::from_u64(total)))
    }
}

/// Mean of signed scores.
pub(super) struct Signed;

impl<E: Element> Measure<E> for Signed {
    #[inline(always)]
    fn term(bits: E::Bits) -> u64 {
        E::to_f64(bits).to_bits()
    }
    #[inline(always)]
    fn join(a: u64, b: u64) -> u64 {
        add(a, b)
    }
    #[inline(always)]
    fn key(total: u64, mean: impl Fn(f64) -> f64) -> u64 {
        F64::ordered(mean(f64::from_bits(total)).to_bits())
    }
}

/// A rectangle of elements in memory.
#[derive(Clone, Copy)]
pub(super) struct Region<'a, T> {
    /// From its first element on.
    pub data: &'a [T],
    /// Distance of its lines.
    pub stride: usize,
    /// Lines.
    pub lines: usize,
    /// Elements of a line.
    pub cols: usize,
}

impl<'a, T> Region<'a, T> {
    fn line(&self, line: usize) -> &'a [T] {
        &self.data[line * self.stride..][..self.cols]
    }

    /// Some of its columns.
    fn columns(&self, first: usize, cols: usize) -> Self {
        Region { data: &self.data[first..], cols, ..*self }
    }
}

/// Memory that a thread computes in; it grows to what is needed.
pub(super) struct Scratch<T> {
    sums: Vec<u64>,
    spare: Vec<u64>,
    elements: Vec<T>,
}

impl<T> Default for Scratch<T> {
    fn default() -> Self {
        Scratch { sums: Vec::new(), spare: Vec::new(), elements: Vec::new() }
    }
}

/// Writes the keys of the blocks of `region`, which are `region.lines` tall and `wide` wide; the
/// last may be narrower.
pub(super) fn keys<E: Element, M: Measure<E>>(
    isa: Isa,
    region: Region<'_, E::Bits>,
    wide: usize,
    scratch: &mut Scratch<E::Bits>,
    keys: &mut [u64],
) -> Result<()> {
    let full = region.cols / wide;
    let (whole, last) = keys.split_at_mut(full);
    if wide.is_power_of_two() && wide <= LINE {
        grouped::<E, M>(isa, region, wide, scratch, whole)?;
    } else if region.lines * wide <= COLUMN {
        as_columns::<E, M>(isa, region, wide, scratch, whole)?;
    } else {
        for (block, key) in whole.iter_mut().enumerate() {
            *key = as_array::<E, M>(isa, region.columns(block * wide, wide), scratch)?;
        }
    }
    if let [last] = last {
        *last = as_array::<E, M>(isa, region.columns(full * wide, region.cols % wide), scratch)?;
    }
    Ok(())
}

/// Blocks a power of two wide, up to [`LINE`].
fn grouped<E: Element, M: Measure<E>>(
    isa: Isa,
    region: Region<'_, E::Bits>,
    wide: usize,
    scratch: &mut Scratch<E::Bits>,
    keys: &mut [u64],
) -> Result<()> {
    let count = region.lines * wide;
    for (i, keys) in keys.chunks_mut(LINE / wide).enumerate() {
        let part = region.columns(i * (LINE / wide) * wide, keys.len() * wide);
        if wide == 1 {
            sum_lines::<E, M>(isa, part, &mut scratch.spare, keys)?;
        } else if part.lines == 1 && wide <= GROUP {
            let four = grown(&mut scratch.spare, if wide > 4 { 4 * keys.len() } else { 0 })?;
            isa.run(Across::<E, M, _, _> { from: part.line(0), term: M::term, wide, four, out: keys, of: PhantomData });
        } else {
            let sums = grown(&mut scratch.sums, part.cols)?;
            sum_lines::<E, M>(isa, part, &mut scratch.spare, sums)?;
            if wide <= GROUP {
                let four = grown(&mut scratch.spare, if wide > 4 { 4 * keys.len() } else { 0 })?;
                isa.run(Across::<E, M, _, _> { from: sums, term: |sum| sum, wide, four, out: keys, of: PhantomData });
            } else {
                isa.run(Within::<E, M> { sums, wide, out: keys, of: PhantomData });
            }
        }
        isa.run(Finish::<E, M> { totals: keys, count, of: PhantomData });
    }
    Ok(())
}

/// Small blocks: each becomes a column.
fn as_columns<E: Element, M: Measure<E>>(
    isa: Isa,
    region: Region<'_, E::Bits>,
    wide: usize,
    scratch: &mut Scratch<E::Bits>,
    keys: &mut [u64],
) -> Result<()> {
    let count = region.lines * wide;
    for (i, keys) in keys.chunks_mut(LINE / count).enumerate() {
        let cols = keys.len();
        let part = region.columns(i * (LINE / count) * wide, cols * wide);
        let elements = grown(&mut scratch.elements, cols * count)?;
        // With AVX-512 the compiler gathers, which takes twice as long.
        isa.avx2().map_or(isa, Isa::Avx2).run(Transpose { region: part, wide, out: elements });
        let columns = Region { data: elements, stride: cols, lines: count, cols };
        sum_lines::<E, M>(isa, columns, &mut scratch.spare, keys)?;
        isa.run(Finish::<E, M> { totals: keys, count, of: PhantomData });
    }
    Ok(())
}

/// One block of any size, cut into lines of its own.
fn as_array<E: Element, M: Measure<E>>(
    isa: Isa,
    region: Region<'_, E::Bits>,
    scratch: &mut Scratch<E::Bits>,
) -> Result<u64> {
    let count = region.lines * region.cols;
    let data = if region.lines == 1 || region.cols == region.stride {
        &region.data[..count]
    } else {
        let elements = grown(&mut scratch.elements, count)?;
        for (line, elements) in elements.chunks_exact_mut(region.cols).enumerate() {
            elements.copy_from_slice(region.line(line));
        }
        &*elements
    };
    let (lines, rest) = (count / LINE, count % LINE);
    let folded = LINE.min(count.next_power_of_two());
    let sums = grown(&mut scratch.sums, folded)?;
    sums.fill(0);
    // The last line may be shorter: its columns have one line more than the others.
    let first = Region { data, stride: LINE, lines: lines + 1, cols: rest };
    let others = Region { data: &data[rest..], stride: LINE, lines, cols: if lines > 0 { LINE - rest } else { 0 } };
    for (part, start) in [(first, 0), (others, rest)] {
        if part.cols > 0 {
            sum_lines::<E, M>(isa, part, &mut scratch.spare, &mut sums[start..start + part.cols])?;
        }
    }
    let mut key = 0;
    let out = std::slice::from_mut(&mut key);
    isa.run(Within::<E, M> { sums, wide: folded, out, of: PhantomData });
    isa.run(Finish::<E, M> { totals: out, count, of: PhantomData });
    Ok(key)
}

fn grown<T: Word>(buffer: &mut Vec<T>, len: usize) -> Result<&mut [T]> {
    memory::grown(buffer, len, T::default())
}

/// `fold` over the lines of `region`, column by column.
fn sum_lines<E: Element, M: Measure<E>>(
    isa: Isa,
    region: Region<'_, E::Bits>,
    spare: &mut Vec<u64>,
    out: &mut [u64],
) -> Result<()> {
    let depth = region.lines.next_power_of_two().ilog2();
    // Powers of two end in full leaves, others in leaves of two and one.
    let levels = depth.saturating_sub(if region.lines.is_power_of_two() { LEAF.ilog2() } else { 1 }) as usize;
    tree::<E, M>(isa, region, 0, 1, grown(spare, levels * region.cols)?, out);
    Ok(())
}

/// `fold` over the lines `first, first + step, …`.
fn tree<E: Element, M: Measure<E>>(
    isa: Isa,
    region: Region<'_, E::Bits>,
    first: usize,
    step: usize,
    spare: &mut [u64],
    out: &mut [u64],
) {
    match (region.lines - first).div_ceil(step) {
        1 => leaf::<E, M, 1>(isa, region, first, step, out),
        2 => leaf::<E, M, 2>(isa, region, first, step, out),
        4 => leaf::<E, M, 4>(isa, region, first, step, out),
        LEAF => leaf::<E, M, LEAF>(isa, region, first, step, out),
        _ => {
            let (odd, spare) = spare.split_at_mut(out.len());
            tree::<E, M>(isa, region, first, 2 * step, spare, out);
            tree::<E, M>(isa, region, first + step, 2 * step, spare, odd);
            isa.run(Join::<E, M> { out, other: odd, of: PhantomData });
        }
    }
}

fn leaf<E: Element, M: Measure<E>, const LINES: usize>(
    isa: Isa,
    region: Region<'_, E::Bits>,
    first: usize,
    step: usize,
    out: &mut [u64],
) {
    let lines = std::array::from_fn(|i| region.line(first + i * step));
    isa.run(Leaf::<E, M, LINES> { lines, out, of: PhantomData });
}

struct Leaf<'a, E: Element, M, const LINES: usize> {
    lines: [&'a [E::Bits]; LINES],
    out: &'a mut [u64],
    of: PhantomData<M>,
}

impl<E: Element, M: Measure<E>, const LINES: usize> Kernel for Leaf<'_, E, M, LINES> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let lines = self.lines.map(|line| &line[..self.out.len()]);
        for (i, out) in self.out.iter_mut().enumerate() {
            *out = fold::<E, M, LINES>(lines.map(|line| M::term(line[i])));
        }
    }
}

#[inline(always)]
fn fold<E: Element, M: Measure<E>, const LEN: usize>(mut x: [u64; LEN]) -> u64 {
    let mut half = LEN;
    while half > 1 {
        half /= 2;
        for i in 0..half {
            x[i] = M::join(x[i], x[i + half]);
        }
    }
    x[0]
}

/// `out[i]` and `other[i]` as one.
struct Join<'a, E, M> {
    out: &'a mut [u64],
    other: &'a [u64],
    of: PhantomData<(E, M)>,
}

impl<E: Element, M: Measure<E>> Kernel for Join<'_, E, M> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for (out, &other) in self.out.iter_mut().zip(self.other) {
            *out = M::join(*out, other);
        }
    }
}

/// `fold` over each group of `wide` elements or sums, a power of two from 2 to [`GROUP`]. Groups
/// larger than four are folded to four first, in vectors of neighbours.
struct Across<'a, E, M, T, F> {
    from: &'a [T],
    term: F,
    wide: usize,
    four: &'a mut [u64],
    out: &'a mut [u64],
    of: PhantomData<(E, M)>,
}

impl<E: Element, M: Measure<E>, T: Word, F: Fn(T) -> u64 + Copy> Kernel for Across<'_, E, M, T, F> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Across { from, term, wide, four, out, .. } = self;
        match wide {
            2 => return groups::<E, M, T, 2>(from, term, out),
            4 => return groups::<E, M, T, 4>(from, term, out),
            8 => to_four::<E, M, T, 8, 2>(from, term, four),
            16 => to_four::<E, M, T, 16, 4>(from, term, four),
            32 => to_four::<E, M, T, 32, 8>(from, term, four),
            _ => to_four::<E, M, T, 64, 16>(from, term, four),
        }
        groups::<E, M, u64, 4>(four, |sum| sum, out);
    }
}

/// The compiler makes vectors of groups of this: it loads the bits and sorts them by their place in
/// the group.
#[inline(always)]
fn groups<E: Element, M: Measure<E>, T: Word, const WIDE: usize>(from: &[T], term: impl Fn(T) -> u64, out: &mut [u64]) {
    for (out, group) in out.iter_mut().zip(from.as_chunks::<WIDE>().0) {
        *out = fold::<E, M, WIDE>(group.map(&term));
    }
}

/// The first steps of `fold` over groups of `WIDE`, until four sums of `SHARE` each are left.
#[inline(always)]
fn to_four<E: Element, M: Measure<E>, T: Word, const WIDE: usize, const SHARE: usize>(
    from: &[T],
    term: impl Fn(T) -> u64,
    out: &mut [u64],
) {
    for (out, group) in out.as_chunks_mut::<4>().0.iter_mut().zip(from.as_chunks::<WIDE>().0) {
        // Vectors of groups would need gathering loads here, which take four times as long as
        // vectors inside a group. The compiler makes no vectors of groups out of a loop with
        // assembly in it.
        // SAFETY: no instruction is executed.
        #[cfg(not(miri))]
        unsafe {
            std::arch::asm!("", options(nomem, nostack, preserves_flags))
        };
        *out = std::array::from_fn(|i| fold::<E, M, SHARE>(std::array::from_fn(|j| term(group[i + 4 * j]))));
    }
}

/// `fold` over each group of `wide` sums, a power of two, in place.
struct Within<'a, E, M> {
    sums: &'a mut [u64],
    wide: usize,
    out: &'a mut [u64],
    of: PhantomData<(E, M)>,
}

impl<E: Element, M: Measure<E>> Kernel for Within<'_, E, M> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for (out, mut sums) in self.out.iter_mut().zip(self.sums.chunks_exact_mut(self.wide)) {
            while sums.len() > 1 {
                let (lower, upper) = sums.split_at_mut(sums.len() / 2);
                for (a, &b) in lower.iter_mut().zip(&*upper) {
                    *a = M::join(*a, b);
                }
                sums = lower;
            }
            *out = sums[0];
        }
    }
}

/// Totals of blocks of `count` elements into keys.
struct Finish<'a, E, M> {
    totals: &'a mut [u64],
    count: usize,
    of: PhantomData<(E, M)>,
}

impl<E: Element, M: Measure<E>> Kernel for Finish<'_, E, M> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let count = self.count as f64;
        if self.count.is_power_of_two() {
            // The same quotient, from an instruction that is several times as fast.
            let factor = 1.0 / count;
            self.totals.iter_mut().for_each(|total| *total = M::key(*total, |sum| sum * factor));
        } else {
            self.totals.iter_mut().for_each(|total| *total = M::key(*total, |sum| sum / count));
        }
    }
}

/// Element `i` of block `b` to `out[i · blocks + b]`.
struct Transpose<'a, T> {
    region: Region<'a, T>,
    wide: usize,
    out: &'a mut [T],
}

impl<T: Word> Kernel for Transpose<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        // The compiler has shuffles for the distances that it knows.
        match self.wide {
            3 => self.by(|line, col, out| pick(line.as_chunks::<3>().0, col, out)),
            5 => self.by(|line, col, out| pick(line.as_chunks::<5>().0, col, out)),
            6 => self.by(|line, col, out| pick(line.as_chunks::<6>().0, col, out)),
            7 => self.by(|line, col, out| pick(line.as_chunks::<7>().0, col, out)),
            wide => self.by(|line, col, out| {
                for (out, group) in out.iter_mut().zip(line.chunks_exact(wide)) {
                    *out = group[col];
                }
            }),
        }
    }
}

impl<T: Word> Transpose<'_, T> {
    /// Calls `pick` with each line, each place in a group of it, and where those elements go.
    #[inline(always)]
    fn by(self, pick: impl Fn(&[T], usize, &mut [T])) {
        let blocks = self.region.cols / self.wide;
        for (i, out) in self.out.chunks_exact_mut(blocks).enumerate() {
            pick(self.region.line(i / self.wide), i % self.wide, out);
        }
    }
}

#[inline(always)]
fn pick<T: Word, const WIDE: usize>(groups: &[[T; WIDE]], col: usize, out: &mut [T]) {
    for (out, group) in out.iter_mut().zip(groups) {
        *out = group[col];
    }
}
