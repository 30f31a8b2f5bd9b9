//! The sum of squares against reading the weights.
//!
//! `cargo bench -p fastsparse-core --bench energy [-- WORD…]`; each word must occur in a case's
//! name. Each result is checked.

mod common;

use fastsparse_core::element::{BF16, Element, F8E4M3, F16, F32, F64, I8};
use fastsparse_core::energy::sum_of_squares;
use fastsparse_core::isa::Isa;
use fastsparse_core::parallel::Exec;

const LEN: usize = 4096 * 11008;

fn all<E: Element>(words: &[String], normal: &[f32], convert: impl Fn(f32) -> E::Bits) {
    let mut data = Vec::new();
    for isa in Isa::available() {
        for threads in [1, 2] {
            let name = format!("{:?} {} {threads}", E::DTYPE, isa.name());
            if !common::wanted(words, &name) {
                continue;
            }
            if data.is_empty() {
                data = normal.iter().map(|&x| convert(x)).collect();
            }
            let mut sum = 0.0;
            common::against_reading(&name, &data, || sum = sum_of_squares::<E>(&data, Exec { isa, threads }));
            let expected: f64 = data.iter().map(|&bits| E::to_f64(bits).powi(2)).sum();
            assert!((sum / expected - 1.0).abs() < 1e-9, "{sum} {expected}");
        }
    }
}

fn main() {
    let (words, normal) = (common::words(), common::normal(LEN));
    all::<F32>(&words, &normal, f32::to_bits);
    all::<BF16>(&words, &normal, |x| half::bf16::from_f32(x).to_bits());
    all::<F16>(&words, &normal, |x| half::f16::from_f32(x).to_bits());
    all::<F64>(&words, &normal, |x| (x as f64).to_bits());
    all::<F8E4M3>(&words, &normal, |x| (x * 500.0) as i8 as u8 & 0x7e);
    all::<I8>(&words, &normal, |x| (x * 1000.0) as i8 as u8);
}
