//! Linear layers on every ISA against float64.

mod common;

use fastsparse_core::element::{BF16, F16, F32, Word};
use fastsparse_core::error::Error;
use fastsparse_core::isa::Isa;
use fastsparse_core::linear::choice::{Method, linear_by};
use fastsparse_core::linear::{Groups, Real, Weights, linear};
use fastsparse_core::matrix::Matrix;
use fastsparse_core::parallel::Exec;

use common::{Packed, Random};

impl<W: Word> Packed<W> {
    fn run<E: Real<Bits = W>, X: Real>(&self, x: &[X::Bits], bias: Option<&[f32]>, exec: Exec) -> Vec<X::Bits> {
        let batch = x.len().checked_div(self.shape.cols).unwrap_or(3);
        let mut out = vec![X::from_f32(f32::NAN); batch * self.shape.rows];
        assert_eq!(linear::<E, X>(self.weights(), x, bias, exec, &mut out), Ok(()));
        out
    }
}

fn check<E: Real, X: Real>(shape: Matrix, batch: usize, keep_of_64: u64, bias: bool) {
    let mut random = Random((shape.len() + 7 * batch) as u64);
    let packed = Packed::random::<E>(shape, keep_of_64, &mut random);
    check_packed::<E, X>(&packed, batch, bias, &mut random);
}

fn check_packed<E: Real, X: Real>(packed: &Packed<E::Bits>, batch: usize, bias: bool, random: &mut Random) {
    let shape = packed.shape;
    let x = random.numbers::<X>(batch * shape.cols);
    let bias: Option<Vec<f32>> = bias.then(|| (0..shape.rows).map(|_| random.number()).collect());
    for isa in Isa::available() {
        let got = packed.run::<E, X>(&x, bias.as_deref(), Exec::single(isa));
        // Eight lanes at least, each a sum of that many, and the folding of them.
        packed.check::<E, X>(&x, bias.as_deref(), shape.cols / 8 + 6, &got, &format!("{isa:?} batch {batch}"));
    }
}

fn all(shape: Matrix, batch: usize, keep_of_64: u64, bias: bool) {
    check::<F32, F32>(shape, batch, keep_of_64, bias);
    check::<BF16, F32>(shape, batch, keep_of_64, bias);
    check::<BF16, BF16>(shape, batch, keep_of_64, bias);
    check::<F16, F32>(shape, batch, keep_of_64, bias);
    check::<F16, F16>(shape, batch, keep_of_64, bias);
}

#[test]
fn shapes() {
    for cols in [0, 1, 7, 8, 9, 15, 16, 31, 33, 63, 64, 65, 200, 257, 300, 515, 1100] {
        for rows in [1, 2, 4, 5, 17, 33] {
            for batch in [1, 2, 3, 4, 5, 7, 9] {
                all(Matrix { rows, cols }, batch, 32, cols % 2 == 0);
            }
        }
    }
}

#[test]
fn densities_and_batches() {
    for keep in [0, 1, 6, 63, 64] {
        for batch in [0, 1, 6, 65, 130] {
            all(Matrix { rows: 21, cols: 330 }, batch, keep, true);
        }
    }
}

/// Blocks of rows that share a mask, wide blocks, and n:m with and without the promise that all
/// groups are full.
#[test]
fn structured_masks() {
    fn same<E: Real, X: Real>(shape: Matrix, groups: Option<Groups>, keep: impl Fn(usize, usize) -> bool + Copy) {
        for batch in [1, 2, 3, 4, 6, 8, 9] {
            let mut random = Random(shape.len() as u64);
            let value = |random: &mut Random| E::from_f32(random.number());
            let mut packed = Packed::of(shape, &mut random, |_, row, col| keep(row, col), value);
            packed.groups = groups.and_then(|Groups { keep, of }| Groups::equal(keep, of, shape, packed.values.len()));
            assert!(packed.groups == groups);
            check_packed::<E, X>(&packed, batch, batch == 2, &mut random);
        }
    }
    fn both(shape: Matrix, groups: Option<Groups>, keep: impl Fn(usize, usize) -> bool + Copy) {
        same::<F32, F32>(shape, groups, keep);
        same::<BF16, F32>(shape, groups, keep);
        same::<BF16, BF16>(shape, groups, keep);
        same::<F16, F16>(shape, groups, keep);
    }
    for (rows, cols) in [(1, 700), (9, 1030), (16, 512), (23, 96)] {
        for (height, width) in [(4, 1), (1, 16), (16, 16), (8, 3), (64, 40)] {
            both(Matrix { rows, cols }, None, |row, col| hash(row / height, col / width).is_multiple_of(3));
        }
        both(Matrix { rows, cols }, None, |_, _| true);
        // Few weights, but in some eight columns three to eight of them.
        both(Matrix { rows, cols }, None, |row, col| match hash(row, col / 8) % 48 {
            many @ 0..6 => col % 8 < 3 + many || many == 0 && col % 8 > 4,
            _ => hash(row + 100, col).is_multiple_of(10),
        });
    }
    for (keep, of) in [(2, 4), (1, 4), (0, 4), (4, 4), (1, 2), (4, 8), (1, 8), (8, 16), (2, 16), (5, 32), (1, 1)] {
        for cols in [of, 64 + of, 512, 1024 + 3 * of] {
            let shape = Matrix { rows: 7, cols };
            let places = |row, col| (hash(row, col / of) + (col % of) * 5) % of;
            // The places of a group are distinct, since five divides no `of`.
            both(shape, Some(Groups { keep, of }), |row, col| places(row, col) < keep);
        }
    }
    assert_eq!(Groups::equal(2, 4, Matrix { rows: 3, cols: 8 }, 11), None);
    assert_eq!(Groups::equal(2, 4, Matrix { rows: 3, cols: 10 }, 15), None);
}

fn hash(a: usize, b: usize) -> usize {
    (Random((a * 1_000_003 + b) as u64).next() >> 40) as usize
}

/// Several tasks, chunks and tiles; passes of the direct kernel; the kernel that has activations in
/// its lanes.
#[test]
fn many_rows() {
    for (batch, keep) in [(4, 5), (8, 15), (15, 10), (17, 25), (20, 60), (26, 62), (40, 20), (64, 32), (130, 30)] {
        all(Matrix { rows: 141, cols: 1103 }, batch, keep, batch % 2 == 0);
    }
}

/// Every kernel with any batch and density, whichever are chosen for these.
#[test]
fn all_kernels() {
    fn holds<E: Real, X: Real>(batch: usize, keep: u64) {
        let shape = Matrix { rows: 37, cols: 1103 };
        let mut random = Random(keep);
        let packed = Packed::random::<E>(shape, keep, &mut random);
        let x = random.numbers::<X>(batch * shape.cols);
        for isa in Isa::available() {
            for method in [Method::Scalar, Method::Direct, Method::Tiled, Method::Broadcast, Method::Amx] {
                let mut out = vec![X::from_f32(f32::NAN); batch * shape.rows];
                let exec = Exec::single(isa);
                assert_eq!(linear_by::<E, X>(|_| method, packed.weights(), &x, None, exec, &mut out), Ok(()));
                packed.check::<E, X>(&x, None, shape.cols / 8 + 6, &out, &format!("{isa:?} {method:?} batch {batch}"));
            }
        }
    }
    for (batch, keep) in [(1, 3), (3, 50), (8, 32), (21, 8), (66, 60)] {
        holds::<F32, F32>(batch, keep);
        holds::<BF16, F32>(batch, keep);
        holds::<BF16, BF16>(batch, keep);
        holds::<F16, F16>(batch, keep);
    }
}

/// More rows of activations than are computed at a time.
#[test]
fn panels() {
    all(Matrix { rows: 3, cols: 9 }, 2100, 32, true);
}

#[test]
fn no_rows() {
    let packed = Packed::random::<F32>(Matrix { rows: 0, cols: 70 }, 32, &mut Random(1));
    assert!(packed.run::<F32, F32>(&[0; 140], None, Exec::single(Isa::detect())).is_empty());
}

#[test]
fn threads_do_not_change_a_bit() {
    fn same<E: Real, X: Real>() {
        let mut random = Random(3);
        // Enough to wake eight threads; few rows for each; both for direct kernels and tiles.
        for (rows, cols, batches) in [(1201, 4001, [1, 3, 8].as_slice()), (21, 70_001, &[1, 12])] {
            let packed = Packed::random::<E>(Matrix { rows, cols }, 20, &mut random);
            for &batch in batches {
                let x = random.numbers::<X>(batch * cols);
                for isa in Isa::available() {
                    let one = packed.run::<E, X>(&x, None, Exec::single(isa));
                    for threads in [2, 3, 8] {
                        assert!(packed.run::<E, X>(&x, None, Exec { isa, threads }) == one, "{isa:?} {threads}");
                    }
                }
            }
        }
    }
    same::<F32, F32>();
    same::<BF16, BF16>();
    same::<F16, F32>();
}

#[test]
fn dropped_weights_contribute_nothing() {
    fn holds<E: Real, X: Real>(batch: usize) {
        let shape = Matrix { rows: 20, cols: 150 };
        let mut random = Random(9);
        let packed = Packed::random::<E>(shape, 20, &mut random);
        for special in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            let mut x = random.numbers::<X>(batch * shape.cols);
            let clean = packed.run::<E, X>(&x, None, Exec::single(Isa::Scalar));
            let (at, col) = (batch - 1, 37);
            x[at * shape.cols + col] = X::from_f32(special);
            for isa in Isa::available() {
                let got = packed.run::<E, X>(&x, None, Exec::single(isa));
                for row in 0..shape.rows {
                    let kept = packed.row(row).any(|(c, _)| c == col);
                    for b in 0..batch {
                        let (got, clean) = (got[b * shape.rows + row], clean[b * shape.rows + row]);
                        if kept && b == at {
                            assert!(!X::to_f32(got).is_finite(), "{isa:?}");
                        } else {
                            let (got, clean) = (X::to_f32(got), X::to_f32(clean));
                            assert!((got - clean).abs() <= 0.02 * clean.abs() + 1e-3, "{isa:?} {got} {clean}");
                        }
                    }
                }
            }
        }
    }
    for batch in [1, 4, 7] {
        holds::<F32, F32>(batch);
        holds::<BF16, BF16>(batch);
        holds::<F16, F16>(batch);
    }
}

#[test]
fn special_weights() {
    fn holds<E: Real, X: Real>() {
        let shape = Matrix { rows: 6, cols: 70 };
        for (special, batch) in [(f32::INFINITY, 1), (f32::NAN, 2), (f32::NEG_INFINITY, 6)] {
            let mut packed = Packed::random::<E>(shape, 30, &mut Random(4));
            let (_, index) = packed.row(2).nth(3).unwrap();
            packed.values[index] = E::from_f32(special);
            let x = vec![X::from_f32(0.5); batch * shape.cols];
            for isa in Isa::available() {
                let got = packed.run::<E, X>(&x, None, Exec::single(isa));
                for (i, &got) in got.iter().enumerate() {
                    let got = X::to_f32(got);
                    let expected = i % shape.rows != 2;
                    assert_eq!(got.is_finite(), expected, "{isa:?} {i} {got}");
                    assert!(expected || special.is_nan() == got.is_nan() && (got.is_nan() || got == special));
                }
            }
        }
    }
    holds::<F32, F32>();
    holds::<BF16, BF16>();
    holds::<F16, F16>();
    holds::<F16, F32>();
}

#[test]
fn parts_that_disagree() {
    parts_of_shape_disagree(Matrix { rows: 9, cols: 131 });
    // Most rows have more values after them than they have columns, and are read without a look at
    // the end.
    parts_of_shape_disagree(Matrix { rows: 33, cols: 1100 });
}

fn parts_of_shape_disagree(shape: Matrix) {
    let mut random = Random(5);
    let good = Packed::random::<BF16>(shape, 32, &mut random);
    for batch in [1, 6] {
        let x = random.numbers::<BF16>(batch * shape.cols);
        let mut out = vec![0; batch * shape.rows];
        for isa in Isa::available() {
            let mut errors = |weights: Weights<'_, u16>| {
                let error = linear::<BF16, BF16>(weights, &x, None, Exec::single(isa), &mut out).unwrap_err();
                assert!(!matches!(error, Error::Changed), "{isa:?}");
            };
            errors(Weights { values: &good.values[..good.values.len() - 1], ..good.weights() });
            errors(Weights { values: &[], ..good.weights() });
            errors(Weights { mask: &vec![0xff; good.mask.len()], ..good.weights() });
            errors(Weights { mask: &vec![0; good.mask.len()], ..good.weights() });
            for shift in [-1, 1] {
                let offsets: Vec<i64> = good.offsets.iter().map(|at| at + shift).collect();
                errors(Weights { offsets: &offsets, ..good.weights() });
            }
            for wrong in [i64::MIN, -1, 1, 100_000, i64::MAX] {
                let mut offsets = good.offsets.clone();
                offsets[3] = offsets[3].wrapping_add(wrong);
                errors(Weights { offsets: &offsets, ..good.weights() });
            }
        }
    }
}

#[test]
fn narrow_types_round_to_nearest() {
    for bits in 0..=u16::MAX {
        let (f16, bf16) = (half::f16::from_bits(bits), half::bf16::from_bits(bits));
        assert!(F16::to_f32(bits) == f16.to_f32() || f16.is_nan());
        for x in [f16.to_f32(), bf16.to_f32()] {
            for near in [x.to_bits(), x.to_bits().wrapping_add(1), x.to_bits().wrapping_sub(1)].map(f32::from_bits) {
                for x in [near, near * (1.0 + 1.0 / 2048.0), near * (1.0 + 1.0 / 256.0)] {
                    let (f16, bf16) = (half::f16::from_f32(x), half::bf16::from_f32(x));
                    assert!(F16::from_f32(x) == f16.to_bits() || f16.is_nan(), "{x:e}");
                    assert!(BF16::from_f32(x) == bf16.to_bits() || bf16.is_nan(), "{x:e}");
                    if x.is_nan() {
                        assert!(F16::to_f32(F16::from_f32(x)).is_nan() && BF16::to_f32(BF16::from_f32(x)).is_nan());
                    }
                }
            }
        }
    }
}

/// A few small cases of every operation: what `make miri` runs of this file.
#[test]
fn small() {
    for batch in [1, 5] {
        all(Matrix { rows: 5, cols: 67 }, batch, 40, true);
    }
}
