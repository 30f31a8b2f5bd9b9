//! Linear layers of int8 weights against the same in bfloat16.
//!
//! `cargo bench -p fastsparse-core --bench linear_int8 [-- WORD…]`; each word must occur in a
//! case's name: activations (`I8`, `F32`, `BF16`), batches (`b1` …), sparsities (`50` …), ISAs,
//! threads. The scalar kernels are measured with one row. Layers of 4096 × 11008 take turns, so
//! that no cache holds them; a figure is the least time of a layer. Every result is checked.

mod common;

use fastsparse_core::element::{BF16, Element, F32, I8};
use fastsparse_core::isa::Isa;
use fastsparse_core::linear::{Real, Scaled, Weights, linear, linear_int8, linear_of_int8};
use fastsparse_core::matrix::Matrix;
use fastsparse_core::parallel::Exec;

use common::layers::{Packed, SHAPE, activations, against, random_mask, weight};

/// Layers of one mask.
struct Layers {
    int8: Packed<u8>,
    bf16: Packed<u16>,
    scale: Vec<f32>,
}

impl Layers {
    fn scaled(&self, i: usize) -> Scaled<'_> {
        Scaled { weights: self.int8.layer(i % self.int8.layers), scale: &self.scale }
    }
}

/// The first result of each row of activations, from those as int8 and what they count.
fn check(weights: Weights<'_, u8>, x: &[i8], step: impl Fn(usize) -> f32, out: &[f32]) {
    for (b, x) in x.chunks_exact(SHAPE.cols).enumerate() {
        let kept = (0..SHAPE.cols).filter(|col| weights.mask[col / 8] >> (col % 8) & 1 == 1);
        let sum: i64 = kept.zip(weights.values).map(|(col, &value)| x[col] as i64 * value as i8 as i64).sum();
        let (got, sum) = (out[b * SHAPE.rows], sum as f32 * step(b));
        assert!((got - sum).abs() <= 1e-3 + 0.01 * sum.abs(), "{got} for {sum}");
    }
}

/// Activations that are rounded to int8 first.
fn rounded<X: Real>(layers: &Layers, name: &str, batch: usize, exec: Exec) {
    let (x, x_bf16) = (activations::<X>(batch), activations::<BF16>(batch));
    let (mut out, mut other) = (vec![X::Bits::default(); batch * SHAPE.rows], vec![0; batch * SHAPE.rows]);
    against(
        name,
        "bfloat16",
        layers.int8.layers,
        |i| linear::<BF16, BF16>(layers.bf16.layer(i % layers.bf16.layers), &x_bf16, None, exec, &mut other).unwrap(),
        |i| linear_int8::<X>(layers.scaled(i), &x, None, exec, &mut out).unwrap(),
    );
    // Activations are 1 at most.
    let bytes: Vec<i8> = x.iter().map(|&x| (X::to_f32(x) * 127.0).round_ties_even() as i8).collect();
    let out: Vec<f32> = out.iter().map(|&y| X::to_f32(y)).collect();
    check(layers.scaled(0).weights, &bytes, |_| 1.0 / 127.0, &out);
}

/// Those that are int8.
fn bytes(layers: &Layers, name: &str, batch: usize, exec: Exec) {
    let x: Vec<u8> = (0..batch * SHAPE.cols).map(|i| (i * 7919 % 201) as u8).collect();
    let x_bf16 = activations::<BF16>(batch);
    let (mut out, mut other) = (vec![0; batch * SHAPE.rows], vec![0; batch * SHAPE.rows]);
    against(
        name,
        "bfloat16",
        layers.int8.layers,
        |i| linear::<BF16, BF16>(layers.bf16.layer(i % layers.bf16.layers), &x_bf16, None, exec, &mut other).unwrap(),
        |i| linear_of_int8(layers.scaled(i), &x, None, exec, &mut out).unwrap(),
    );
    let x: Vec<i8> = x.iter().map(|&x| x as i8).collect();
    let out: Vec<f32> = out.iter().map(|&y| f32::from_bits(y)).collect();
    check(layers.scaled(0).weights, &x, |_| 1.0, &out);
}

fn main() {
    let words = common::words();
    for (sparsity, density) in [("50", 0.5), ("75", 0.25), ("90", 0.1)] {
        let mut layers = None;
        for (isa, batch) in Isa::available().into_iter().flat_map(|isa| [1, 4, 16, 64].map(|batch| (isa, batch))) {
            for (types, threads) in [I8::DTYPE, F32::DTYPE, BF16::DTYPE].into_iter().flat_map(|t| [(t, 1), (t, 2)]) {
                let name = format!("{types:?} b{batch} {sparsity} {} t{threads}", isa.name());
                if !common::wanted(&words, &name) || isa == Isa::Scalar && batch > 1 {
                    continue;
                }
                let layers = layers.get_or_insert_with(|| {
                    let mask = random_mask(density, Matrix { rows: 1, cols: 1 });
                    Layers {
                        int8: Packed::new(mask.clone(), |i| (i % 251) as u8),
                        bf16: Packed::new(mask, weight::<BF16>),
                        scale: vec![1.0; SHAPE.rows],
                    }
                });
                let exec = Exec { isa, threads };
                match types {
                    I8::DTYPE => bytes(layers, &name, batch, exec),
                    F32::DTYPE => rounded::<F32>(layers, &name, batch, exec),
                    _ => rounded::<BF16>(layers, &name, batch, exec),
                }
            }
        }
    }
}
