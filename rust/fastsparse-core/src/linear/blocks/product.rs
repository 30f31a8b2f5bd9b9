//! The product: bands shared among threads, and how a band is multiplied.

use super::{Band, Blocks, PANEL, bands, blocks_of_row};
use crate::element::{DType, Word};
use crate::error::{Error, Result};
use crate::isa::{Isa, Kernel};
use crate::linear::Real;
use crate::linear::activations::COPY_PER_THREAD;
use crate::linear::call::{Call, each_panel};
use crate::linear::float::{FloatVector, Plain, strategy};
use crate::linear::threads_for;
use crate::matrix::Matrix;
use crate::memory::filled;
use crate::parallel::{Exec, SharedMut, run, try_run_with};
use crate::vector::prefetch;

/// Elements of a task, about.
const ELEMENTS: usize = 1 << 14;

/// Rows of activations of a pass with sums by columns at most.
const PASS: usize = 4;

/// How far ahead values are fetched: so many panels, and bytes at least. Some rows of each panel
/// are read at a time, which hardware does not see as a stream.
const PANELS_AHEAD: usize = 8;
const AHEAD: usize = 2048;

/// Writes `x · weightsᵀ + bias` to `out`: `x` has as many rows of `cols` elements as `out` has of
/// `rows`.
pub fn linear_blocks<E: Real, X: Real>(
    weights: Blocks<'_, E::Bits>,
    x: &[X::Bits],
    bias: Option<&[f32]>,
    exec: Exec,
    out: &mut [X::Bits],
) -> Result<()> {
    let shape = weights.shape;
    weights.check_lengths();
    let exec = |batch| threads_for(exec, weights.values.len().saturating_mul(batch));
    each_panel((weights, shape), x, bias, exec, out, |call: Call<'_, _, X>| match call.exec.isa {
        Isa::Scalar => call.compute::<E, _>(Plain),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(token) => call.compute::<E, _>(token),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(token) => call.compute::<E, _>(token),
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx2(_) | Isa::Avx512(_) => call.compute::<E, _>(Plain),
    })
}

/// Takes (row, batch, sums of the rows from there on).
type Emit<'a> = dyn Fn(usize, usize, &[f32]) + 'a;

impl<W: Word, X: Real> Call<'_, Blocks<'_, W>, X> {
    fn compute<E: Real<Bits = W>, V: FloatVector>(&self, vectors: V) -> Result<()> {
        let Call { weights, batch, .. } = *self;
        let Blocks { shape, block, .. } = weights;
        let direct = batch <= strategy::BLOCKS_DIRECT;
        // Columns of all the blocks and of one that holds nothing, and what a panel reads beyond.
        let cols = (blocks_of_row(shape, block) + 1) * block.cols + PANEL;
        let x = if direct { self.by_rows(cols)? } else { self.by_columns(vectors, cols)? };
        let bands = bands(shape, block);
        let bands_per_task = (ELEMENTS / (shape.cols * block.rows).max(1)).max(1);
        let longest = (0..bands).map(|band| weights.starts[band + 1].saturating_sub(weights.starts[band])).max();
        // No more than there are, whatever `starts` says.
        let columns = (longest.unwrap_or(0).max(0) as usize).min(weights.index.len()) * block.cols;
        let narrow = !block.cols.is_multiple_of(PANEL);
        let gathered = if narrow && direct { columns * PASS.min(batch) } else { 0 };
        let columns = if narrow && !direct { columns } else { 0 };
        let scratch = || Ok(Scratch { gathered: filled(gathered, 0.0)?, columns: filled(columns, 0)? });
        try_run_with(self.exec.threads, bands.div_ceil(bands_per_task), scratch, |scratch, task| {
            let numbers = task * bands_per_task..bands.min((task + 1) * bands_per_task);
            // SAFETY: tasks have distinct bands, those have distinct rows, and a task runs once.
            let part = unsafe { self.results.of(numbers.start * block.rows..shape.rows.min(numbers.end * block.rows)) };
            for number in numbers {
                let band = weights.band(number).ok_or(Error::Changed)?;
                let first = number * block.rows;
                let end = shape.rows.min(first + block.rows);
                let emit = |row: usize, b: usize, sums: &[f32]| {
                    if row < end {
                        part.write(row, b, &sums[..sums.len().min(end - row)]);
                    }
                };
                let work: Work<'_, V, E> =
                    Work { vectors, shape, block, band, first, x: &x, cols, batch, scratch, emit: &emit };
                if direct { vectors.run(ByRows(work)) } else { vectors.run(ByColumns(work)) }
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Activations as float32, in rows of `cols`, zeros beyond the last.
    fn by_rows(&self, cols: usize) -> Result<Vec<f32>> {
        let all = self.weights.shape.cols;
        let mut rows = filled(self.batch.saturating_mul(cols), 0.0)?;
        for (b, to) in rows.chunks_exact_mut(cols).enumerate() {
            self.exec.isa.run(Widen::<X> { from: &self.x[b * all..(b + 1) * all], to });
        }
        Ok(rows)
    }

    /// Activations as float32 in tiles of some of their rows, in each tile by columns, of which
    /// there are `cols`, zeros beyond the last.
    fn by_columns<V: FloatVector>(&self, _: V, cols: usize) -> Result<Vec<f32>> {
        const PIECE: usize = 64;
        let all = self.weights.shape.cols;
        let mut tiles = filled(self.batch.next_multiple_of(V::LANES).saturating_mul(cols), 0.0)?;
        let shared = SharedMut::new(&mut tiles);
        let threads = self.exec.for_work(self.x.len(), COPY_PER_THREAD).threads;
        for (first, width) in tiles_of::<V>(self.batch) {
            run(threads, all.div_ceil(PIECE), |piece| {
                let (start, end) = (piece * PIECE, all.min((piece + 1) * PIECE));
                // SAFETY: distinct pieces have distinct columns.
                let to = unsafe { shared.slice(first * cols + start * width, (end - start) * width) };
                for lane in 0..width.min(self.batch - first) {
                    let from = &self.x[(first + lane) * all..][start..end];
                    for (to, &from) in to.chunks_exact_mut(width).zip(from) {
                        to[lane] = X::to_f32(from);
                    }
                }
            });
        }
        Ok(tiles)
    }
}

/// The tiles of a batch: their first row, and how many rows, in whole vectors.
fn tiles_of<V: FloatVector>(batch: usize) -> impl Iterator<Item = (usize, usize)> {
    let most = MOST_VECTORS * V::LANES;
    (0..batch).step_by(most).map(move |first| (first, most.min((batch - first).next_multiple_of(V::LANES))))
}

/// Vectors of a tile for whose sums with four rows there are registers.
const MOST_VECTORS: usize = 2;

struct Widen<'a, X: Real> {
    from: &'a [X::Bits],
    to: &'a mut [f32],
}

impl<X: Real> Kernel for Widen<'_, X> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (from, to) in self.from.iter().zip(self.to) {
            *to = X::to_f32(*from);
        }
    }
}

/// What a thread keeps between its tasks.
struct Scratch {
    /// Activations of the columns of a band, side by side.
    gathered: Vec<f32>,
    /// Where the activations of each column of a band begin.
    columns: Vec<usize>,
}

/// A band on its way into a function that names the features.
struct Work<'a, V, E: Real> {
    vectors: V,
    shape: Matrix,
    block: Matrix,
    band: Band<'a, E::Bits>,
    /// Its first row.
    first: usize,
    x: &'a [f32],
    cols: usize,
    batch: usize,
    scratch: &'a mut Scratch,
    emit: &'a Emit<'a>,
}

impl<V: FloatVector, E: Real> Work<'_, V, E> {
    /// The first column of a block. Numbers that there cannot be are those of padding.
    #[inline(always)]
    fn column(&self, block: usize) -> usize {
        (self.band.index[block] as usize).min(blocks_of_row(self.shape, self.block)) * self.block.cols
    }

    /// That activations have the columns of all blocks and of one that holds nothing: what kernels
    /// read without a look at the end.
    #[inline(always)]
    fn assert_columns(&self) {
        assert!(self.cols >= (blocks_of_row(self.shape, self.block) + 1) * self.block.cols);
    }

    #[inline(always)]
    fn panels(&self) -> usize {
        self.band.index.len() * self.block.cols / PANEL
    }
}

/// Puts the activations of the columns of some blocks side by side. `all` is the number of those
/// that hold nothing, `width` that of a block; `WIDTH` is the same, or 0 where it is not a
/// constant.
#[inline(always)]
fn gather<const WIDTH: usize>(index: &[u16], all: usize, width: usize, row: &[f32], to: &mut [f32]) {
    let width = if WIDTH > 0 { WIDTH } else { width };
    assert!((all + 1) * width <= row.len() && index.len() * width <= to.len());
    for (block, &number) in index.iter().enumerate() {
        // SAFETY: no column is beyond those of the block after the last, and there is room for all
        // blocks (checked above).
        unsafe {
            let from = row.as_ptr().add((number as usize).min(all) * width);
            from.copy_to_nonoverlapping(to.as_mut_ptr().add(block * width), width);
        }
    }
}

/// Sums by columns.
struct ByRows<'a, V, E: Real>(Work<'a, V, E>);

impl<V: FloatVector, E: Real> Kernel for ByRows<'_, V, E> {
    type Output = ();

    #[inline(always)]
    fn run(mut self) {
        self.0.assert_columns();
        let passes = self.0.batch.div_ceil(PASS);
        let mut b = 0;
        for pass in 0..passes {
            let end = self.0.batch * (pass + 1) / passes;
            match end - b {
                1 => self.pass::<1>(b),
                2 => self.pass::<2>(b),
                3 => self.pass::<3>(b),
                _ => self.pass::<4>(b),
            }
            b = end;
        }
    }
}

#[expect(clippy::needless_range_loop, reason = "the indices are those of registers")]
impl<V: FloatVector, E: Real> ByRows<'_, V, E> {
    /// `B` rows of activations from `b` on.
    #[inline(always)]
    fn pass<const B: usize>(&mut self, b: usize) {
        let work = &mut self.0;
        let (width, columns) = (work.block.cols, work.panels() * PANEL);
        let narrow = !width.is_multiple_of(PANEL);
        if narrow {
            let all = blocks_of_row(work.shape, work.block);
            for i in 0..B {
                let row = &work.x[(b + i) * work.cols..][..work.cols];
                let to = &mut work.scratch.gathered[i * columns..][..columns];
                match width {
                    1 => gather::<1>(work.band.index, all, width, row, to),
                    2 => gather::<2>(work.band.index, all, width, row, to),
                    4 => gather::<4>(work.band.index, all, width, row, to),
                    8 => gather::<8>(work.band.index, all, width, row, to),
                    _ => gather::<0>(work.band.index, all, width, row, to),
                }
            }
        }
        let (from, stride) =
            if narrow { (&work.scratch.gathered[..], columns) } else { (&work.x[b * work.cols..], work.cols) };
        let mut x = [std::ptr::null(); B];
        for i in 0..B {
            x[i] = from[i * stride..][..stride].as_ptr();
        }
        let (mut row, rows) = (0, work.block.rows);
        if const { B == 1 && V::LANES == PANEL } {
            while row + 16 <= rows {
                self.rows::<16, B>(row, b, narrow, x);
                row += 16;
            }
        }
        while row + 4 <= rows {
            self.rows::<4, B>(row, b, narrow, x);
            row += 4;
        }
        while row < rows {
            self.rows::<1, B>(row, b, narrow, x);
            row += 1;
        }
    }

    /// `R` rows of the band from `row` on.
    #[inline(always)]
    fn rows<const R: usize, const B: usize>(&mut self, row: usize, b: usize, narrow: bool, x: [*const f32; B]) {
        let work = &self.0;
        let (vectors, rows) = (work.vectors, work.block.rows);
        let (panels, of_block) = (work.panels(), work.block.cols / PANEL);
        // Two chains hide the latency of additions where there are registers for them.
        let other = if const { R * B <= 8 } { 1 } else { 0 };
        let ahead = (PANELS_AHEAD * rows * PANEL * E::Bits::BYTES).max(AHEAD);
        let mut sums = [[[vectors.zero(); B]; R]; 2];
        let from = work.band.values.as_ptr();
        for panel in 0..panels {
            let at = if narrow {
                panel * PANEL
            } else if of_block == 1 {
                work.column(panel)
            } else {
                work.column(panel / of_block) + panel % of_block * PANEL
            };
            let from = from.wrapping_add((panel * rows + row) * PANEL);
            for r in 0..R {
                prefetch(from.wrapping_add(r * PANEL).wrapping_byte_add(ahead));
            }
            if const { V::LANES == PANEL } {
                let mut loaded = [vectors.zero(); B];
                for i in 0..B {
                    // SAFETY: 16 numbers from any column of a block on (`assert_columns`), and of
                    // those that were put side by side.
                    loaded[i] = unsafe { vectors.load(x[i].add(at)) };
                }
                for r in 0..R {
                    // SAFETY: a row of the panel.
                    let w = unsafe { vectors.widen::<E>(from.add(r * PANEL)) };
                    for i in 0..B {
                        sums[0][r][i] = vectors.multiply_add(sums[0][r][i], w, loaded[i]);
                    }
                }
                if other == 1 {
                    sums.swap(0, 1);
                }
            } else {
                for part in 0..PANEL / V::LANES {
                    let mut loaded = [vectors.zero(); B];
                    for i in 0..B {
                        // SAFETY: as above.
                        loaded[i] = unsafe { vectors.load(x[i].add(at + part * V::LANES)) };
                    }
                    for r in 0..R {
                        // SAFETY: as above.
                        let w = unsafe { vectors.widen::<E>(from.add(r * PANEL + part * V::LANES)) };
                        for i in 0..B {
                            let chain = part % 2;
                            sums[chain][r][i] = vectors.multiply_add(sums[chain][r][i], w, loaded[i]);
                        }
                    }
                }
            }
        }
        for i in 0..B {
            let mut totals = [0.0; R];
            for r in 0..R {
                totals[r] = vectors.total(vectors.add(sums[0][r][i], sums[1][r][i]));
            }
            (work.emit)(work.first + row, b + i, &totals);
        }
    }
}

/// Sums by rows of activations.
struct ByColumns<'a, V, E: Real>(Work<'a, V, E>);

impl<V: FloatVector, E: Real> Kernel for ByColumns<'_, V, E> {
    type Output = ();

    #[inline(always)]
    fn run(mut self) {
        self.0.assert_columns();
        for (first, width) in tiles_of::<V>(self.0.batch) {
            match width / V::LANES {
                1 => self.tile::<1, 2, 4>(first),
                2 => self.tile::<2, 1, 4>(first),
                _ => unreachable!("at most the vectors of a tile"),
            }
        }
    }
}

#[expect(clippy::needless_range_loop, reason = "the indices are those of registers")]
impl<V: FloatVector, E: Real> ByColumns<'_, V, E> {
    /// `A` vectors of activations from row `first` on, with so many chains of sums where four rows
    /// of weights are taken at a time, and one.
    #[inline(always)]
    fn tile<const A: usize, const OF_FOUR: usize, const OF_ONE: usize>(&mut self, first: usize) {
        let width = A * V::LANES;
        let work = &mut self.0;
        let narrow = !work.block.cols.is_multiple_of(PANEL);
        if narrow {
            for block in 0..work.band.index.len() {
                let from = work.column(block);
                for col in 0..work.block.cols {
                    work.scratch.columns[block * work.block.cols + col] = (from + col) * width;
                }
            }
        }
        let (mut row, rows) = (0, work.block.rows);
        if const { V::LANES == PANEL } {
            while row + 8 <= rows {
                self.rows::<8, A, 1>(row, first, narrow);
                row += 8;
            }
        }
        while row + 4 <= rows {
            self.rows::<4, A, OF_FOUR>(row, first, narrow);
            row += 4;
        }
        while row < rows {
            self.rows::<1, A, OF_ONE>(row, first, narrow);
            row += 1;
        }
    }

    /// `R` rows of the band from `row` on.
    #[inline(always)]
    fn rows<const R: usize, const A: usize, const CHAINS: usize>(&mut self, row: usize, first: usize, narrow: bool) {
        let work = &self.0;
        let (vectors, rows, width) = (work.vectors, work.block.rows, A * V::LANES);
        let (panels, of_block) = (work.panels(), work.block.cols / PANEL);
        let x = work.x[first * work.cols..][..width * work.cols].as_ptr();
        let ahead = (PANELS_AHEAD * rows * PANEL * E::Bits::BYTES).max(AHEAD);
        let mut sums = [[[vectors.zero(); A]; R]; CHAINS];
        let mut wide = [[0.0f32; PANEL]; R];
        for panel in 0..panels {
            let from = work.band.values[(panel * rows + row) * PANEL..][..R * PANEL].as_ptr();
            for r in 0..R {
                prefetch(from.wrapping_add(r * PANEL).wrapping_byte_add(ahead));
            }
            let w: *const f32 = if E::DTYPE == DType::F32 {
                from.cast()
            } else {
                for r in 0..R {
                    for part in 0..PANEL / V::LANES {
                        // SAFETY: a vector of a row of the panel, and of `wide`.
                        unsafe {
                            let at = r * PANEL + part * V::LANES;
                            vectors.store(wide[r].as_mut_ptr().add(part * V::LANES), vectors.widen::<E>(from.add(at)));
                        }
                    }
                }
                wide.as_ptr().cast()
            };
            let start = if narrow { 0 } else { (work.column(panel / of_block) + panel % of_block * PANEL) * width };
            for col in (0..PANEL).step_by(CHAINS) {
                for chain in 0..CHAINS {
                    let at = if narrow {
                        work.scratch.columns[panel * PANEL + col + chain]
                    } else {
                        start + (col + chain) * width
                    };
                    // SAFETY: the activations of a column of a block (`assert_columns`), whose
                    // offsets `tile` has written; the weights of the panel.
                    unsafe {
                        let mut loaded = [vectors.zero(); A];
                        for a in 0..A {
                            loaded[a] = vectors.load(x.add(at + a * V::LANES));
                        }
                        for r in 0..R {
                            let w = vectors.splat(*w.add(r * PANEL + col + chain));
                            for a in 0..A {
                                sums[chain][r][a] = vectors.multiply_add(sums[chain][r][a], w, loaded[a]);
                            }
                        }
                    }
                }
            }
        }
        for chain in 1..CHAINS {
            for r in 0..R {
                for a in 0..A {
                    sums[0][r][a] = vectors.add(sums[0][r][a], sums[chain][r][a]);
                }
            }
        }
        let mut lanes = [[[0.0; PANEL]; A]; R];
        for r in 0..R {
            for a in 0..A {
                // SAFETY: a vector has no more lanes than a panel columns.
                unsafe { vectors.store(lanes[r][a].as_mut_ptr(), sums[0][r][a]) };
            }
        }
        for lane in 0..width.min(work.batch - first) {
            let mut totals = [0.0; R];
            for r in 0..R {
                totals[r] = lanes[r][lane / V::LANES][lane % V::LANES];
            }
            (work.emit)(work.first + row, first + lane, &totals);
        }
    }
}
