//! A step of conjugate gradients for each row, on the kept weights.
//!
//! ```text
//! without a product:  r = r where kept;  previous = 0
//! with one (q = G d): previous = energy;  α = previous / Σ d·q;  x += α·d;  r −= α·q where kept
//! energy = Σ r·(r·scale);  β = energy / previous;  d = r·scale + β·d
//! ```
//!
//! A row that fits the caches is read from memory once. Divisions by zero give zero: what is found
//! already stays.

use crate::isa::Kernel;
use crate::matrix::Matrix;
use crate::parallel::{Exec, SharedMut, run};

/// Two vectors of eight float64, so that one addition need not wait for the last.
const LANES: usize = 16;

/// Rows of a task have about this many elements.
const TASK_ELEMENTS: usize = 1 << 15;

/// All rows of one problem.
#[derive(Debug)]
pub struct Refinement<'a> {
    /// Rows and columns.
    pub shape: Matrix,
    /// The weights.
    pub x: &'a mut [f32],
    /// Their negative gradient.
    pub residual: &'a mut [f32],
    /// Where each row moves next.
    pub direction: &'a mut [f32],
    /// What a row's residual, so scaled, has of itself: float64, one a row.
    pub energy: &'a mut [f64],
}

/// One step, from the product of the directions and the matrix; without one, the first directions.
/// `scale` is one number a column, `bits` the mask of what is kept.
pub fn refine_step(all: Refinement<'_>, product: Option<&[f32]>, scale: &[f32], bits: &[u8], exec: Exec) {
    let Refinement { shape, x, residual, direction, energy } = all;
    assert!([x.len(), residual.len(), direction.len()] == [shape.len(); 3] && energy.len() == shape.rows);
    assert!(product.is_none_or(|product| product.len() == shape.len()));
    assert!(scale.len() == shape.cols && bits.len() == shape.mask_bytes());
    if shape.is_empty() {
        return;
    }
    let (cols, row_bytes) = (shape.cols, shape.row_bytes());
    let rows_per_task = (TASK_ELEMENTS / cols).max(1);
    let exec = exec.for_work(shape.len(), TASK_ELEMENTS);
    let (x, residual, direction) = (SharedMut::new(x), SharedMut::new(residual), SharedMut::new(direction));
    let energy = SharedMut::new(energy);
    run(exec.threads, shape.rows.div_ceil(rows_per_task), |task| {
        for at in task * rows_per_task..shape.rows.min((task + 1) * rows_per_task) {
            let start = at * cols;
            // SAFETY: distinct rows do not overlap, and each runs once.
            let row = unsafe {
                Row {
                    x: x.slice(start, cols),
                    residual: residual.slice(start, cols),
                    direction: direction.slice(start, cols),
                    energy: &mut energy.slice(at, 1)[0],
                    product: product.map(|product| &product[start..start + cols]),
                    scale,
                    bits: &bits[at * row_bytes..][..row_bytes],
                }
            };
            exec.isa.run(row);
        }
    });
}

struct Row<'a> {
    x: &'a mut [f32],
    residual: &'a mut [f32],
    direction: &'a mut [f32],
    energy: &'a mut f64,
    product: Option<&'a [f32]>,
    scale: &'a [f32],
    bits: &'a [u8],
}

impl Kernel for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Row { x, residual, direction, energy, product, scale, bits } = self;
        let mut previous = 0.0;
        if let Some(product) = product {
            previous = *energy;
            let step = quotient(previous, sum(direction, product, |d, q| d as f64 * q as f64));
            for (x, d) in x.iter_mut().zip(&*direction) {
                *x += step * d;
            }
            for (r, q) in residual.iter_mut().zip(product) {
                *r -= step * q;
            }
        }
        clear_pruned(residual, bits);
        *energy = sum(residual, scale, |r, scale| r as f64 * (r * scale) as f64);
        let ratio = quotient(*energy, previous);
        for ((d, r), scale) in direction.iter_mut().zip(&*residual).zip(scale) {
            *d = r * scale + ratio * *d;
        }
    }
}

#[inline(always)]
fn quotient(a: f64, b: f64) -> f32 {
    if b > 0.0 { (a / b) as f32 } else { 0.0 }
}

#[inline(always)]
fn sum(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f64) -> f64 {
    let mut lanes = [0.0; LANES];
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += f(a, b);
        }
    }
    for ((lane, &a), &b) in lanes.iter_mut().zip(a_tail).zip(b_tail) {
        *lane += f(a, b);
    }
    lanes.iter().sum()
}

/// Zero where a bit is not set.
#[inline(always)]
fn clear_pruned(numbers: &mut [f32], bits: &[u8]) {
    let (groups, tail) = numbers.as_chunks_mut::<8>();
    for (group, &byte) in groups.iter_mut().zip(bits) {
        for (bit, number) in group.iter_mut().enumerate() {
            *number = if byte >> bit & 1 == 1 { *number } else { 0.0 };
        }
    }
    for (bit, number) in tail.iter_mut().enumerate() {
        *number = if bits[bits.len() - 1] >> bit & 1 == 1 { *number } else { 0.0 };
    }
}
