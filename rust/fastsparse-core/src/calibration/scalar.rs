//! Vectors without instructions of their own: arrays, which the compiler turns into what the target
//! guarantees.

use super::sweep::{Tile, Work, rows};
use super::vector::Vector;
use crate::error::Result;

const LANES: usize = 4;

#[derive(Clone, Copy)]
struct Array([f32; LANES]);

impl Array {
    #[inline(always)]
    fn each(mut self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        for l in 0..LANES {
            self.0[l] = f(self.0[l], other.0[l]);
        }
        self
    }
}

impl Vector for Array {
    type Proof = ();
    const LANES: usize = LANES;

    #[inline(always)]
    fn splat(_: (), number: f32) -> Self {
        Array([number; LANES])
    }
    #[inline(always)]
    fn load(_: (), from: &[f32]) -> Self {
        let mut lanes = [0.0; LANES];
        lanes.copy_from_slice(&from[..LANES]);
        Array(lanes)
    }
    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        to[..LANES].copy_from_slice(&self.0);
    }
    #[inline(always)]
    unsafe fn load_columns(_: (), from: *const f32, stride: usize) -> [Self; 4] {
        let mut columns = [Array([0.0; LANES]); 4];
        for l in 0..LANES {
            // SAFETY: the caller's promise.
            let row = unsafe { from.add(l * stride).cast::<[f32; 4]>().read() };
            for c in 0..4 {
                columns[c].0[l] = row[c];
            }
        }
        columns
    }
    #[inline(always)]
    unsafe fn store_columns(columns: [Self; 4], to: *mut f32, stride: usize) {
        for l in 0..LANES {
            let row = [columns[0].0[l], columns[1].0[l], columns[2].0[l], columns[3].0[l]];
            // SAFETY: the caller's promise.
            unsafe { to.add(l * stride).cast::<[f32; 4]>().write(row) };
        }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.each(other, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.each(other, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.each(other, |a, b| a * b)
    }
    #[inline(always)]
    fn abs(self) -> Self {
        self.each(self, |a, _| a.abs())
    }
    #[inline(always)]
    fn below(self, other: Self) -> u32 {
        let mut lanes = 0;
        for l in 0..LANES {
            lanes |= ((self.0[l] < other.0[l]) as u32) << l;
        }
        lanes
    }
    #[inline(always)]
    fn pick(mut self, lanes: u32) -> Self {
        for l in 0..LANES {
            self.0[l] = if lanes >> l & 1 == 1 { self.0[l] } else { 0.0 };
        }
        self
    }
}

/// Prunes some rows.
pub(super) fn prune(work: &Work<'_>, tile: &mut Tile, weights: &mut [f32], bits: &mut [u8]) -> Result<()> {
    rows::<Array, 4>((), work, tile, weights, bits)
}
