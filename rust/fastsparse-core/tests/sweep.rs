//! Energies against sorting and summing, for every ISA and thread count.

mod common;

use fastsparse_core::element::{BF16, Element, F8E4M3, F16, F32, F64, I8, U8, Word};
use fastsparse_core::error::Error;
use fastsparse_core::isa::Isa;
use fastsparse_core::keys::{ColumnScale, Keys, Magnitude, Scaled32};
use fastsparse_core::matrix::Matrix;
use fastsparse_core::nm::Axis;
use fastsparse_core::parallel::Exec;
use fastsparse_core::sweep::{by_rank, of_largest, of_mask};

use common::{Random, some};

/// The squares of what is ranked.
fn squares<K: Keys>(keys: &K) -> Vec<f64> {
    let mut made = vec![K::Key::default(); keys.len()];
    keys.fill(0, &mut made).unwrap();
    made.iter().map(|&key| keys.value(key).powi(2)).collect()
}

/// Sorted sums, the smallest added first.
fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

fn assert_close(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-12 * expected.abs(), "{found} {expected}");
}

fn everywhere<T: PartialEq + std::fmt::Debug>(f: impl Fn(Exec) -> T) -> T {
    let first = f(Exec::single(Isa::Scalar));
    for isa in Isa::available() {
        for threads in [1, 3] {
            assert_eq!(f(Exec { isa, threads }), first, "{} {threads}", isa.name());
        }
    }
    first
}

fn check<K: Keys>(keys: &K) {
    let squares = squares(keys);
    let len = squares.len();
    let ordered = sorted(squares.clone());
    let zeros = [0, 1, len / 3, len / 2, len - len / 50 - 1, len.saturating_sub(1), len];
    let found = everywhere(|exec| of_largest(keys, &zeros, exec).unwrap());
    for (zeros, found) in zeros.into_iter().zip(found) {
        assert_close(found, ordered[zeros..].iter().sum());
    }
    let axes = [(1, len, 1), (len / 8, 8, 1), (len / 20, 20, 1), (2, len / 6, 3), (1, len / 70, 70)];
    for (outer, length, inner) in axes {
        if outer * length * inner != len {
            continue;
        }
        for of in some([1, 2, 3, 4, 7, 8, 16, 31, 64], 3) {
            let axis = Axis { outer, len: length, inner };
            let (full, rest) = everywhere(|exec| by_rank(keys, axis, of, exec).unwrap());
            let mut expected = (vec![0.0; of], vec![0.0; length % of]);
            for line in 0..outer * inner {
                let start = line / inner * length * inner + line % inner;
                let items: Vec<f64> = (0..length).map(|i| squares[start + i * inner]).collect();
                for group in items.chunks(of) {
                    let sums = if group.len() == of { &mut expected.0 } else { &mut expected.1 };
                    sums.iter_mut().zip(sorted(group.to_vec())).for_each(|(sum, square)| *sum += square);
                }
            }
            for (found, expected) in full.iter().chain(&rest).zip(expected.0.iter().chain(&expected.1)) {
                assert_close(*found, *expected);
            }
        }
    }
    for (rows, cols) in [(1, len), (len / 40, 40), (len / 35, 35), (len, 1)] {
        let shape = Matrix { rows, cols };
        if shape.len() != len {
            continue;
        }
        let mut random = Random(7);
        let mut mask = vec![0u8; shape.mask_bytes()];
        mask.iter_mut().for_each(|byte| *byte = random.next() as u8);
        let kept = |at: usize| mask[at / cols * shape.row_bytes() + at % cols / 8] >> (at % cols % 8) & 1 == 1;
        let expected = (0..len).filter(|&at| kept(at)).map(|at| squares[at]).sum();
        assert_close(everywhere(|exec| of_mask(keys, shape, &mask, exec).unwrap()), expected);
    }
}

/// `len` elements that are numbers, not too large to be squared.
fn numbers<E: Element>(len: usize) -> Vec<E::Bits> {
    let mut random = Random(1);
    let mut next = || E::Bits::from_u64(random.next());
    let fits = |&bits: &E::Bits| E::magnitude(bits) <= E::MAX_MAGNITUDE && E::to_f64(bits).abs() < 1e100;
    std::iter::repeat_with(&mut next).filter(fits).take(len).collect()
}

fn check_type<E: Element>() {
    for len in [280, 25_200] {
        let mut weights = numbers::<E>(len);
        check(&Magnitude::<E>(&weights));
        weights.iter_mut().skip(1).step_by(3).for_each(|bits| *bits = E::Bits::default());
        let common = weights[0];
        weights.iter_mut().skip(2).step_by(3).for_each(|bits| *bits = common);
        check(&Magnitude::<E>(&weights));
    }
}

#[test]
fn every_type() {
    check_type::<F64>();
    check_type::<F32>();
    check_type::<F16>();
    check_type::<BF16>();
    check_type::<F8E4M3>();
    check_type::<I8>();
    check_type::<U8>();
}

#[test]
fn scaled() {
    let weights: Vec<u16> = numbers::<BF16>(25_200).into_iter().map(|bits| bits & 0xbfff).collect();
    let factors: Vec<f32> = (0..70).map(|i| i as f32 / 7.0).collect();
    check(&Scaled32::<BF16>(&weights, ColumnScale { values: &factors, cols: 70, repeat: 1 }));
    check(&Scaled32::<BF16>(&weights, ColumnScale { values: &factors, cols: 140, repeat: 2 }));
}

#[test]
fn several_runs_of_a_histogram() {
    let weights: Vec<u32> = numbers::<F32>((2 << 20) + 5).into_iter().map(|bits| bits & 0xbfff_ffff).collect();
    let keys = Magnitude::<F32>(&weights);
    let ordered = sorted(squares(&keys));
    let zeros = [0, 5, 1 << 19, 1 << 20, 2 << 20];
    for (zeros, found) in zeros.into_iter().zip(everywhere(|exec| of_largest(&keys, &zeros, exec).unwrap())) {
        assert_close(found, ordered[zeros..].iter().rev().sum());
    }
}

#[test]
fn the_first_nan_is_named() {
    for len in [100, 40_000] {
        let mut weights = vec![1f32.to_bits(); len];
        weights[len - 2] = f32::NAN.to_bits();
        weights[len / 2] = f32::NAN.to_bits();
        let keys = Magnitude::<F32>(&weights);
        let error = Error::Nan { index: len / 2 };
        let axis = Axis { outer: 1, len, inner: 1 };
        assert_eq!(everywhere(|exec| of_largest(&keys, &[3], exec)), Err(error));
        assert_eq!(everywhere(|exec| by_rank(&keys, axis, 4, exec)), Err(error));
    }
}

/// A few small cases of every operation: what `make miri` runs of this file.
#[test]
fn small() {
    check(&Magnitude::<F32>(&numbers::<F32>(280)));
}
