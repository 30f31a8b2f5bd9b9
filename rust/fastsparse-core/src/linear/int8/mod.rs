//! Linear layers of int8 weights with a scale for each row.
//!
//! ```text
//! step[b]   = max |x[b][·]| / 127,    q[b][c] = round(x[b][c] / max · 127), half to even
//! out[b][r] = bias[r] + (step[b] · scale[r]) · sum[b][r]
//! sum[b][r] = over the kept columns c of row r:  weight[r][c] · q[b][c]
//! ```
//!
//! Contract. The sum is one of integers and exact; the products with it, the addition and the
//! rounding to the type of `out` are float32 operations, one after the other. So all results are
//! the same to the bit on every ISA and for every number of threads. A row of x that holds an
//! infinity or NaN has no step: all its results are NaN. Activations that are int8 already have a
//! step of 1. What is said of mask and offsets in [`super`] holds here.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod kernel;
mod scalar;

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::call::Results;
use super::float::strategy::AMX_FROM;
use super::rows::{self, Task};
use super::{Real, Weights, threads_for, work};
use crate::element::F32;
use crate::error::{Error, Result};
use crate::isa::Kernel;
use crate::memory::filled;
use crate::parallel::{Exec, SharedMut, run_chunks};
use crate::unpack::check_parts;

/// Largest magnitude of an activation.
const LARGEST: f32 = 127.0;

/// Int8 weights, and what each of their rows is multiplied by.
#[derive(Debug, Clone, Copy)]
pub struct Scaled<'a> {
    /// The weights.
    pub weights: Weights<'a, u8>,
    /// A factor for each row.
    pub scale: &'a [f32],
}

/// Writes `x · weightsᵀ + bias` to `out`, with x rounded to int8, each of its rows by a step of its
/// own.
pub fn linear_int8<X: Real>(
    layer: Scaled<'_>,
    x: &[X::Bits],
    bias: Option<&[f32]>,
    exec: Exec,
    out: &mut [X::Bits],
) -> Result<()> {
    let (rows, cols) = (layer.weights.shape.rows, layer.weights.shape.cols);
    let batch = out.len().checked_div(rows).unwrap_or(0);
    assert!(rows == 0 || x.len() == batch * cols);
    let (mut quantized, mut steps) = (filled(batch * cols, 0)?, filled(batch, 0.0)?);
    let exec_of_x = threads_for(exec, x.len());
    let to = SharedMut::new(&mut quantized);
    run_chunks(exec_of_x.threads, &mut steps, 1, |b, step| {
        // SAFETY: one row of x for each step.
        let to = unsafe { to.slice(b * cols, cols) };
        step[0] = exec.isa.run(Quantize::<X> { from: &x[b * cols..(b + 1) * cols], to });
    });
    multiply::<X>(layer, &quantized, |b| steps[b], bias, exec, out)
}

/// The same for activations that are int8: the sums times the scales.
pub fn linear_of_int8(layer: Scaled<'_>, x: &[u8], bias: Option<&[f32]>, exec: Exec, out: &mut [u32]) -> Result<()> {
    multiply::<F32>(layer, x, |_| 1.0, bias, exec, out)
}

/// Rounds a row of activations and returns its step.
struct Quantize<'a, X: Real> {
    from: &'a [X::Bits],
    to: &'a mut [u8],
}

impl<X: Real> Kernel for Quantize<'_, X> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let largest = self.from.iter().map(|&x| X::magnitude(x)).max().unwrap_or_default();
        if largest >= X::MAX_MAGNITUDE {
            return f32::NAN;
        }
        let max = X::to_f32(largest);
        // Division by the largest first: neither a quotient nor a product leaves the range,
        // whatever the magnitude.
        let unit = if max == 0.0 { 1.0 } else { max };
        for (&from, to) in self.from.iter().zip(self.to) {
            *to = nearest(X::to_f32(from) / unit * LARGEST) as u8;
        }
        max / LARGEST
    }
}

/// The nearest integer, half to even, of a number between −127 and 127: what is left of it when the
/// last place of the sum is 1.
#[inline(always)]
fn nearest(x: f32) -> i8 {
    const LAST_PLACE_IS_ONE: f32 = (3 << 22) as f32;
    (x + LAST_PLACE_IS_ONE).to_bits() as i8
}

/// Multiplies with int8 activations of which row b counts `step(b)`.
fn multiply<Y: Real>(
    layer: Scaled<'_>,
    x: &[u8],
    step: impl Fn(usize) -> f32 + Sync,
    bias: Option<&[f32]>,
    exec: Exec,
    out: &mut [Y::Bits],
) -> Result<()> {
    let Scaled { weights, scale } = layer;
    let Weights { shape, values, mask, offsets, .. } = weights;
    let batch = out.len().checked_div(shape.rows).unwrap_or(0);
    assert!(mask.len() == shape.mask_bytes() && offsets.len() == shape.rows + 1 && scale.len() == shape.rows);
    assert!(out.len() == batch * shape.rows && (shape.rows == 0 || x.len() == batch * shape.cols));
    let exec = threads_for(exec, work(weights, batch));
    let results: Results<'_, Y> = Results::new(shape.rows, bias, out);
    let ends = offsets[0] == 0 && offsets[shape.rows] == values.len() as i64;
    if (Product { layer, x, batch, step, exec, results }).compute()? && ends {
        return Ok(());
    }
    check_parts(values.len(), shape, mask, offsets)?;
    Err(Error::Changed)
}

/// What all tasks share.
struct Product<'a, F, Y: Real> {
    layer: Scaled<'a>,
    x: &'a [u8],
    /// Rows of x.
    batch: usize,
    step: F,
    exec: Exec,
    results: Results<'a, Y>,
}

/// Takes (row, batch, sums of the rows from there on).
type Emit<'a> = dyn Fn(usize, usize, &[i64]) + 'a;

/// Rows whose sums are taken at once, at most.
const EMITTED: usize = 16;

impl<F: Fn(usize) -> f32 + Sync, Y: Real> Product<'_, F, Y> {
    /// Computes it with the best kernel. Returns whether mask and offsets agree.
    fn compute(&self) -> Result<bool> {
        #[cfg(target_arch = "x86_64")]
        if let Some(token) = self.exec.isa.amx()
            && self.batch >= AMX_FROM
            && self.cols() <= amx::INT8_COLS
        {
            return self.tiles(amx::Int8(token));
        } else if let Some(token) = self.exec.isa.avx512_vnni() {
            return self.vectors(avx512::Biased::new(token));
        } else if let Some(token) = self.exec.isa.avx2() {
            if self.x.contains(&(i8::MIN as u8)) {
                return self.vectors(avx2::Widened::new(token));
            }
            return self.vectors(avx2::Bytes::new(token));
        }
        self.each_task(1, || Ok(()), |(), task, emit| scalar::rows(task, self.x, self.batch, emit))
    }

    fn cols(&self) -> usize {
        self.layer.weights.shape.cols
    }

    #[cfg(target_arch = "x86_64")]
    fn vectors<V: kernel::Engine>(&self, engine: V) -> Result<bool> {
        let x = &kernel::Integers::new(engine, self.x, self.batch, self.cols(), self.exec)?;
        let scratch = || kernel::Scratch::new(engine, self.batch);
        self.each_task(kernel::TILE_ROWS, scratch, |scratch, task, emit| {
            engine.run(kernel::Work { engine, task, x, scratch, emit })
        })
    }

    #[cfg(target_arch = "x86_64")]
    fn tiles(&self, numbers: amx::Int8) -> Result<bool> {
        let cols = self.cols();
        let row = |b: usize| Some(&self.x[b * cols..(b + 1) * cols]);
        let x = &amx::Tiles::new(numbers, row, self.batch, cols, self.exec)?;
        let scratch = || amx::Scratch::new(numbers, self.batch);
        self.each_task(amx::ROWS, scratch, |scratch, task, emit| {
            let emit = |row: usize, b: usize, sums: &[i32]| {
                let mut wide = [0; EMITTED];
                for (wide, &sum) in wide.iter_mut().zip(sums) {
                    *wide = i64::from(sum);
                }
                emit(row, b, &wide[..sums.len()]);
            };
            amx::Work { numbers, task, x, scratch, emit: &emit }.compute()
        })
    }

    /// Calls `kernel(state, task, emit)` for every task, of rows that are a multiple of
    /// `rows_per_tile`.
    fn each_task<S: Send>(
        &self,
        rows_per_tile: usize,
        state: impl Fn() -> Result<S> + Sync,
        kernel: impl Fn(&mut S, &Task<'_, u8>, &Emit<'_>) -> bool + Sync,
    ) -> Result<bool> {
        let Product { layer: Scaled { weights, scale }, ref step, ref results, .. } = *self;
        let rows = rows::rows(weights.shape, rows_per_tile, self.exec.threads);
        rows::each_task(weights, results, rows, self.exec.threads, state, |state, task, part| {
            let emit = |row: usize, b: usize, sums: &[i64]| {
                let (mut numbers, step) = ([0.0; EMITTED], step(b));
                for (number, (&sum, &scale)) in numbers.iter_mut().zip(sums.iter().zip(&scale[row..])) {
                    *number = sum as f32 * (step * scale);
                }
                part.write(row, b, &numbers[..sums.len()]);
            };
            kernel(state, task, &emit)
        })
    }
}
