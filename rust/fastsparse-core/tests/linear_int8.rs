//! Linear layers of int8 weights on every ISA against sums of integers.

mod common;

use fastsparse_core::element::{BF16, F16, F32};
use fastsparse_core::error::Error;
use fastsparse_core::isa::Isa;
use fastsparse_core::linear::{Real, Scaled, Weights, linear_int8, linear_of_int8};
use fastsparse_core::matrix::Matrix;
use fastsparse_core::parallel::Exec;

use common::{Packed, Random};

/// Packed int8 weights and a scale for each of their rows.
struct Layer {
    packed: Packed<u8>,
    scale: Vec<f32>,
}

impl Layer {
    fn random(shape: Matrix, keep_of_64: u64, random: &mut Random) -> Layer {
        let packed = Packed::sparse(shape, keep_of_64, random, |random| (random.next() >> 40) as u8);
        Layer { packed, scale: (0..shape.rows).map(|_| random.number()).collect() }
    }

    fn shape(&self) -> Matrix {
        self.packed.shape
    }

    fn scaled(&self) -> Scaled<'_> {
        Scaled { weights: self.packed.weights(), scale: &self.scale }
    }

    fn sum(&self, row: usize, x: &[i8]) -> i64 {
        self.packed.row(row).map(|(col, i)| self.packed.values[i] as i8 as i64 * x[col] as i64).sum()
    }

    /// int8 activations on every ISA against the sums, as they are and without −128, which takes
    /// another way.
    fn check(&self, x: &[i8], batch: usize, bias: Option<&[f32]>) {
        self.check_sums(x, batch, bias);
        let x: Vec<i8> = x.iter().map(|&x| x.max(-i8::MAX)).collect();
        self.check_sums(&x, batch, bias);
    }

    fn check_sums(&self, x: &[i8], batch: usize, bias: Option<&[f32]>) {
        let bytes: Vec<u8> = x.iter().map(|&x| x as u8).collect();
        for isa in Isa::available() {
            let mut out = vec![u32::MAX; batch * self.shape().rows];
            linear_of_int8(self.scaled(), &bytes, bias, Exec::single(isa), &mut out).unwrap();
            for (i, &got) in out.iter().enumerate() {
                let (b, row) = (i / self.shape().rows, i % self.shape().rows);
                let sum =
                    self.sum(row, &x[b * self.shape().cols..(b + 1) * self.shape().cols]) as f32 * self.scale[row];
                let expected = bias.map_or(sum, |bias| sum + bias[row]);
                assert_eq!(f32::from_bits(got), expected, "{isa:?} {:?} batch {batch}, {b} {row}", self.shape());
            }
        }
    }

    /// Float activations on every ISA, against the plain way to the same integers.
    fn check_rounded<X: Real>(&self, x: &[X::Bits], batch: usize) {
        let mut expected = Vec::new();
        for x in x.chunks_exact(self.shape().cols) {
            let x: Vec<f32> = x.iter().map(|&x| X::to_f32(x)).collect();
            let max = x.iter().fold(0f32, |max, x| max.max(x.abs()));
            let whole: Vec<i8> =
                x.iter().map(|x| if max > 0.0 { (x / max * 127.0).round_ties_even() as i8 } else { 0 }).collect();
            for row in 0..self.shape().rows {
                expected.push(X::from_f32(self.sum(row, &whole) as f32 * (max / 127.0 * self.scale[row])));
            }
        }
        for isa in Isa::available() {
            for threads in [1, 2, 5] {
                let mut out = vec![X::Bits::default(); batch * self.shape().rows];
                linear_int8::<X>(self.scaled(), x, None, Exec { isa, threads }, &mut out).unwrap();
                assert!(out == expected, "{isa:?} {:?} batch {batch}", self.shape());
            }
        }
    }
}

fn bytes(len: usize, random: &mut Random) -> Vec<i8> {
    (0..len).map(|_| (random.next() >> 40) as i8).collect()
}

#[test]
fn shapes() {
    let mut random = Random(1);
    for cols in [0, 1, 7, 8, 9, 15, 16, 31, 33, 63, 64, 65, 200, 257, 515, 1023, 1100, 2500] {
        for rows in [1, 2, 4, 5, 9, 17] {
            let layer = Layer::random(Matrix { rows, cols }, 32, &mut random);
            let bias: Vec<f32> = (0..rows).map(|_| random.number()).collect();
            for batch in [1, 2, 3, 4, 5, 9] {
                layer.check(&bytes(batch * cols, &mut random), batch, (cols % 2 == 0).then_some(&bias));
            }
        }
    }
}

#[test]
fn densities_and_batches() {
    let mut random = Random(2);
    for keep in [0, 1, 6, 63, 64] {
        let layer = Layer::random(Matrix { rows: 21, cols: 330 }, keep, &mut random);
        for batch in [0, 1, 6, 65, 130] {
            layer.check(&bytes(batch * 330, &mut random), batch, None);
        }
    }
}

#[test]
fn largest_sums() {
    // Beyond what an int32 holds, and one more block than its lanes are kept for.
    for (cols, batch) in [(65536, 1), (65600, 1), (140_000, 1), (140_000, 5)] {
        let mut layer = Layer::random(Matrix { rows: 5, cols }, 64, &mut Random(3));
        for (weight, x) in [(-128, -128), (127, -128), (-128, 127), (127, 127)] {
            layer.packed.values.fill(weight as i8 as u8);
            layer.check(&vec![x; batch * cols], batch, None);
        }
    }
}

#[test]
fn rounded_activations() {
    fn all<X: Real>() {
        let mut random = Random(4);
        let layer = Layer::random(Matrix { rows: 40, cols: 2001 }, 32, &mut random);
        for batch in [1, 4, 7] {
            let scale = [1.0, 1e-30, 1e30, 0.0, 1e-44, 300.0, 3e38];
            let x: Vec<_> =
                (0..batch * 2001).map(|i| X::from_f32(random.number() * scale[i / 2001 % scale.len()])).collect();
            if x.iter().all(|&x| X::to_f32(x).is_finite()) {
                layer.check_rounded::<X>(&x, batch);
            }
        }
        let halves: Vec<_> = (0..2001).map(|i| X::from_f32((i % 255) as f32 / 2.0 - 63.5)).collect();
        layer.check_rounded::<X>(&halves, 1);
    }
    all::<F32>();
    all::<BF16>();
    all::<F16>();
}

#[test]
fn no_step_no_number() {
    let layer = Layer::random(Matrix { rows: 6, cols: 70 }, 64, &mut Random(5));
    for special in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        for batch in [2, 6] {
            let mut x = vec![1f32.to_bits(); batch * 70];
            x[75] = special.to_bits();
            for isa in Isa::available() {
                let mut out = vec![0; batch * 6];
                linear_int8::<F32>(layer.scaled(), &x, None, Exec::single(isa), &mut out).unwrap();
                assert!(out.iter().enumerate().all(|(i, &y)| f32::from_bits(y).is_nan() == (i / 6 == 1)), "{isa:?}");
            }
        }
    }
}

#[test]
fn parts_that_disagree() {
    let shape = Matrix { rows: 9, cols: 131 };
    let good = Layer::random(shape, 32, &mut Random(6));
    for batch in [1, 6] {
        let x = vec![1; batch * shape.cols];
        let mut out = vec![0; batch * shape.rows];
        for isa in Isa::available() {
            let mut errors = |weights: Weights<'_, u8>| {
                let scaled = Scaled { weights, scale: &good.scale };
                let error = linear_of_int8(scaled, &x, None, Exec::single(isa), &mut out).unwrap_err();
                assert!(!matches!(error, Error::Changed), "{isa:?}");
            };
            let Packed { values, mask, offsets, .. } = &good.packed;
            let weights = good.packed.weights();
            errors(Weights { values: &values[..values.len() - 1], ..weights });
            errors(Weights { values: &[], ..weights });
            errors(Weights { mask: &vec![0xff; mask.len()], ..weights });
            errors(Weights { mask: &vec![0; mask.len()], ..weights });
            for wrong in [i64::MIN, -1, 1, 100_000, i64::MAX] {
                let mut offsets = offsets.clone();
                offsets[3] = offsets[3].wrapping_add(wrong);
                errors(Weights { offsets: &offsets, ..weights });
            }
        }
    }
}

/// A few small cases of every operation: what `make miri` runs of this file.
#[test]
fn small() {
    let mut random = Random(1);
    let layer = Layer::random(Matrix { rows: 5, cols: 67 }, 40, &mut random);
    for batch in [1, 5] {
        layer.check(&bytes(batch * 67, &mut random), batch, None);
    }
}
