//! The l2 norms of blocks along an axis, to the bit as NumPy gives them in the dtype of the
//! weights: what coremltools ranks by.
//!
//! ```text
//! square(w)           rounded to the dtype
//! lines (inner > 1):  s = square(w[0]); s = round(s + square(w[j])) for each next line j
//!                     a lane is a column
//! side by side:       s = round(pairwise(square(w[0..length])))
//! pairwise(x[0..n]):  n < 8      one after the other
//!                     n ≤ 128    r[i] = x[i] + x[8 + i] + …;
//!                                ((r0 + r1) + (r2 + r3)) + ((r4 + r5) + (r6 + r7)), then the rest
//!                     otherwise  the sum of two parts, the first of n/2 rounded down to a
//!                                multiple of 8
//! norm = round(√s)
//! ```
//!
//! All is computed in float32; `round` is to what float16 can hold for float16 weights, and nothing
//! for float32. Elements that a last block lacks are zeros, which change no sum.

use std::marker::PhantomData;

use crate::element::Element;
use crate::error::Result;
use crate::isa::Kernel;
use crate::memory;
use crate::nm::Axis;
use crate::parallel::{Exec, try_run_chunks};

/// Columns, or elements side by side, that are summed at a time: they stay in the first-level
/// cache.
const CHUNK: usize = 2048;

/// Elements for which a thread of its own pays.
const PER_THREAD: usize = 1 << 16;

/// Writes the norm of each block of `length` neighbours along `axis`: `out` is `outer × ⌈len /
/// length⌉ × inner`.
pub fn l2_like_numpy<E: Element>(
    weights: &[E::Bits],
    axis: Axis,
    length: usize,
    exec: Exec,
    out: &mut [f32],
) -> Result<()> {
    let Axis { outer, len, inner } = axis;
    assert!(length > 0 && weights.len() == outer * len * inner, "the axis is one of the weights");
    if out.is_empty() {
        return Ok(());
    }
    let blocks = len.div_ceil(length);
    let threads = exec.for_work(weights.len(), PER_THREAD).threads;
    if inner > 1 {
        try_run_chunks(threads, out, inner, |stripe, norms| {
            let (outer, block) = (stripe / blocks, stripe % blocks);
            let (first, lines) = (outer * len + block * length, length.min(len - block * length));
            let lines = &weights[first * inner..(first + lines) * inner];
            for (i, norms) in norms.chunks_mut(CHUNK).enumerate() {
                exec.isa.run(Lines::<E> { lines: &lines[i * CHUNK..], inner, norms, of: PhantomData });
            }
            Ok(())
        })
    } else {
        try_run_chunks(threads, out, blocks, |outer, norms| {
            let mut squares = Vec::new();
            let step = (CHUNK / length).max(1);
            for (i, norms) in norms.chunks_mut(step).enumerate() {
                let first = i * step * length;
                let end = len.min(first + norms.len() * length);
                let squares = memory::grown(&mut squares, norms.len() * length, 0.0)?;
                squares.fill(0.0);
                let weights = &weights[outer * len..][first..end];
                exec.isa.run(Beside::<E> { weights, squares, length, norms, of: PhantomData });
            }
            Ok(())
        })
    }
}

/// To what the element type can hold, for numbers ≥ 0.
#[inline(always)]
fn round<E: Element>(x: f32) -> f32 {
    if size_of::<E::Bits>() > 2 {
        return x;
    }
    // Beside 2^13 times its power of two, a float32 has the eleven bits of a float16 left; below
    // 2^-14 always the same ones.
    let power = (x.to_bits() & 0x7f80_0000).max((127 - 14) << 23).wrapping_add(13 << 23);
    let power = f32::from_bits(power);
    let rounded = (x + power) - power;
    if rounded > 65504.0 { f32::INFINITY } else { rounded }
}

#[inline(always)]
fn square<E: Element>(bits: E::Bits) -> f32 {
    let x = E::to_f64(bits) as f32;
    round::<E>(x * x)
}

#[inline(always)]
fn norm<E: Element>(sum: f32) -> f32 {
    round::<E>(sum.sqrt())
}

/// Blocks across lines.
struct Lines<'a, E: Element> {
    /// From the first element of the first line on.
    lines: &'a [E::Bits],
    inner: usize,
    norms: &'a mut [f32],
    of: PhantomData<E>,
}

impl<E: Element> Kernel for Lines<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        self.norms.fill(0.0);
        for line in self.lines.chunks(self.inner) {
            for (sum, &bits) in self.norms.iter_mut().zip(line) {
                *sum = round::<E>(*sum + square::<E>(bits));
            }
        }
        self.norms.iter_mut().for_each(|sum| *sum = norm::<E>(*sum));
    }
}

/// Blocks side by side.
struct Beside<'a, E: Element> {
    weights: &'a [E::Bits],
    /// Zeros, as many as the blocks have elements.
    squares: &'a mut [f32],
    length: usize,
    norms: &'a mut [f32],
    of: PhantomData<E>,
}

impl<E: Element> Kernel for Beside<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Beside { weights, squares, length, norms, .. } = self;
        for (slot, &bits) in squares.iter_mut().zip(weights) {
            *slot = square::<E>(bits);
        }
        match length {
            2 => groups::<2>(squares, norms),
            4 => groups::<4>(squares, norms),
            _ => squares.chunks_exact(length).zip(&mut *norms).for_each(|(block, sum)| *sum = pairwise(block)),
        }
        norms.iter_mut().for_each(|sum| *sum = norm::<E>(round::<E>(*sum)));
    }
}

/// The commonest short blocks, of which the compiler makes vectors.
#[inline(always)]
fn groups<const LENGTH: usize>(squares: &[f32], sums: &mut [f32]) {
    for (block, sum) in squares.as_chunks::<LENGTH>().0.iter().zip(sums) {
        *sum = block.iter().skip(1).fold(block[0], |sum, x| sum + x);
    }
}

fn pairwise(x: &[f32]) -> f32 {
    if x.len() < 8 {
        return x.iter().fold(0.0, |sum, x| sum + x);
    }
    if x.len() > 128 {
        let (a, b) = x.split_at(x.len() / 16 * 8);
        return pairwise(a) + pairwise(b);
    }
    let (eights, rest) = x.as_chunks::<8>();
    let mut r = [0.0; 8];
    for eight in eights {
        for (r, x) in r.iter_mut().zip(eight) {
            *r += x;
        }
    }
    let sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
    rest.iter().fold(sum, |sum, x| sum + x)
}
