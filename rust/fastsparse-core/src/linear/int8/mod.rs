//! Linear layers of int8 weights with a scale for each row.
//!
//! ```text
//! step[b]   = max |x[b][·]| / 127,    q[b][c] = round(x[b][c] / max · 127), half to even
//! out[b][r] = bias[r] + (step[b] · scale[r]) · sum over the kept columns c of row r:  weight[r][c] · q[b][c]
//! ```
//!
//! Contract. The sum is one of integers and exact; the products with it, the addition and the rounding to the type of `out` are
//! float32 operations, one after the other. So all results are the same to the bit on every ISA and for every number of threads. A
//! row of x that holds an infinity or NaN has no step: all its results are NaN. Activations that are int8 already have a step of 1.
//! What is said of mask and offsets in [`super`] holds here.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod kernel;
mod scalar;

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::float::strategy::AMX_FROM;
use super::rows::{self, each_task};
use super::{Real, WORK_PER_THREAD, Weights, work};
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

/// Writes `x · weightsᵀ + bias` to `out`, with x rounded to int8, each of its rows by a step of its own.
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
    let exec_of_x = exec.for_work(x.len(), WORK_PER_THREAD);
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
    assert!(bias.is_none_or(|bias| bias.len() == shape.rows));
    assert!(out.len() == batch * shape.rows && (shape.rows == 0 || x.len() == batch * shape.cols));
    let exec = exec.for_work(work(weights, batch), WORK_PER_THREAD);
    let out = SharedMut::new(out);
    let emit = |row: usize, b: usize, sum: i64| {
        // SAFETY: each result is written once, by the task that owns the row.
        let to = unsafe { out.slice(b * shape.rows + row, 1) };
        let product = sum as f32 * (step(b) * scale[row]);
        to[0] = Y::from_f32(bias.map_or(product, |bias| product + bias[row]));
    };
    let ends = offsets[0] == 0 && offsets[shape.rows] == values.len() as i64;
    if sums(weights, x, batch, exec, &emit)? && ends {
        return Ok(());
    }
    check_parts(values.len(), shape, mask, offsets)?;
    Err(Error::Changed)
}

/// Emits (row, batch, sum) for each result, with the best kernel. Returns whether mask and offsets agree.
fn sums(weights: Weights<'_, u8>, x: &[u8], batch: usize, exec: Exec, emit: &Emit<'_>) -> Result<bool> {
    #[cfg(target_arch = "x86_64")]
    if let Some(token) = exec.isa.amx()
        && batch >= AMX_FROM
        && weights.shape.cols <= amx::INT8_COLS
    {
        return tiles(amx::Int8(token), weights, x, batch, exec, emit);
    } else if let Some(token) = exec.isa.avx512_vnni() {
        return vectors(avx512::Biased::new(token), weights, x, batch, exec, emit);
    } else if let Some(token) = exec.isa.avx2() {
        if x.contains(&(i8::MIN as u8)) {
            return vectors(avx2::Widened::new(token), weights, x, batch, exec, emit);
        }
        return vectors(avx2::Bytes::new(token), weights, x, batch, exec, emit);
    }
    each_task(
        weights,
        rows::rows(weights.shape, 1),
        exec.threads,
        || Ok(()),
        |(), task| scalar::rows(task, x, batch, emit),
    )
}

/// Takes (row, batch, sum).
type Emit<'a> = dyn Fn(usize, usize, i64) + Sync + 'a;

#[cfg(target_arch = "x86_64")]
fn vectors<V: kernel::Engine>(
    engine: V,
    weights: Weights<'_, u8>,
    x: &[u8],
    batch: usize,
    exec: Exec,
    emit: &Emit<'_>,
) -> Result<bool> {
    let x = &kernel::Integers::new(engine, x, batch, weights.shape.cols, exec)?;
    let scratch = || kernel::Scratch::new(engine, batch);
    each_task(weights, rows::rows(weights.shape, kernel::TILE_ROWS), exec.threads, scratch, |scratch, task| {
        engine.run(kernel::Work { engine, task, x, scratch, emit })
    })
}

#[cfg(target_arch = "x86_64")]
fn tiles(
    numbers: amx::Int8,
    weights: Weights<'_, u8>,
    x: &[u8],
    batch: usize,
    exec: Exec,
    emit: &Emit<'_>,
) -> Result<bool> {
    let cols = weights.shape.cols;
    let x = &amx::Tiles::new(numbers, |b| Some(&x[b * cols..(b + 1) * cols]), batch, cols, exec)?;
    let emit = |row: usize, b: usize, sums: &[i32]| {
        for (r, &sum) in sums.iter().enumerate() {
            emit(row + r, b, sum as i64);
        }
    };
    let scratch = || amx::Scratch::new(numbers, batch);
    each_task(weights, rows::rows(weights.shape, amx::ROWS), exec.threads, scratch, |scratch, task| {
        amx::Work { numbers, task, x, scratch, emit: &emit }.compute()
    })
}
