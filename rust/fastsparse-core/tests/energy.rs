//! The sum of squares: exact where it can be, the same bits on every ISA and thread count.

mod common;

use fastsparse_core::element::{BF16, Element, F16, F32, F64, I8, U8};
use fastsparse_core::energy::sum_of_squares;
use fastsparse_core::isa::Isa;
use fastsparse_core::parallel::Exec;

use common::Random;

fn everywhere<E: Element>(weights: &[E::Bits]) -> f64 {
    let expected = sum_of_squares::<E>(weights, Exec::single(Isa::Scalar));
    for isa in Isa::available() {
        for threads in [1, 2, 5] {
            let found = sum_of_squares::<E>(weights, Exec { isa, threads });
            assert_eq!(found.to_bits(), expected.to_bits(), "{} {threads}", isa.name());
        }
    }
    expected
}

#[test]
fn whole_numbers_are_exact_at_every_length() {
    for len in (0..70).chain([1023, 1024, 1025, 200_001]) {
        let numbers: Vec<i64> = (0..len).map(|i| i * 7919 % 251 - 125).collect();
        let expected = numbers.iter().map(|x| x * x).sum::<i64>() as f64;
        assert_eq!(everywhere::<F64>(&numbers.iter().map(|&x| (x as f64).to_bits()).collect::<Vec<_>>()), expected);
        assert_eq!(everywhere::<F32>(&numbers.iter().map(|&x| (x as f32).to_bits()).collect::<Vec<_>>()), expected);
        assert_eq!(everywhere::<I8>(&numbers.iter().map(|&x| x as u8).collect::<Vec<_>>()), expected);
        let halves: Vec<_> = numbers.iter().map(|&x| half::f16::from_f64(x as f64).to_bits()).collect();
        assert_eq!(everywhere::<F16>(&halves), expected);
        let brains: Vec<_> = numbers.iter().map(|&x| half::bf16::from_f64(x as f64).to_bits()).collect();
        assert_eq!(everywhere::<BF16>(&brains), expected);
    }
    assert_eq!(everywhere::<U8>(&[255, 1]), 65026.0);
}

#[test]
fn rounding_is_the_same_everywhere() {
    let mut random = Random(1);
    let weights: Vec<u32> = (0..300_007).map(|_| (random.uniform() as f32).to_bits()).collect();
    let naive: f64 = weights.iter().map(|&bits| (f32::from_bits(bits) as f64).powi(2)).sum();
    assert!((everywhere::<F32>(&weights) / naive - 1.0).abs() < 1e-12);
}

#[test]
fn what_is_not_finite_shows() {
    let mut weights = vec![1f32.to_bits(); 1000];
    weights[777] = f32::INFINITY.to_bits();
    assert_eq!(everywhere::<F32>(&weights), f64::INFINITY);
    weights[3] = f32::NAN.to_bits();
    assert!(sum_of_squares::<F32>(&weights, Exec::single(Isa::Scalar)).is_nan());
    assert_eq!(everywhere::<F32>(&[f32::MAX.to_bits()]), (f32::MAX as f64).powi(2));
}

/// A few small cases of every operation: what `make miri` runs of this file.
#[test]
fn small() {
    assert_eq!(everywhere::<U8>(&[3; 67]), 9.0 * 67.0);
    assert_eq!(everywhere::<F32>(&[1.5f32.to_bits(); 67]), 2.25 * 67.0);
    assert_eq!(everywhere::<BF16>(&[half::bf16::from_f32(1.5).to_bits(); 67]), 2.25 * 67.0);
}
