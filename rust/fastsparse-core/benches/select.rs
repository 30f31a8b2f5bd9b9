//! Exact selection against reading the weights.
//!
//! `cargo bench -p fastsparse-core --bench select [-- WORD…]`; each word must occur in a case's
//! name. The probe is the sum of the same bytes as float32, in 32 interleaved sums on one thread,
//! as NumPy's `sum` does it. Probe and kernel take turns; a figure is the median over the rounds of
//! kernel ÷ probe, and the best kernel time. Each result's count is checked.

mod common;

use fastsparse_core::element::{BF16, Element, F32, F64, I8};
use fastsparse_core::isa::Isa;
use fastsparse_core::keys::Magnitude;
use fastsparse_core::matrix::{Matrix, popcount};
use fastsparse_core::parallel::Exec;
use fastsparse_core::select::{self, ScanWord};

const SHAPE: Matrix = Matrix { rows: 4096, cols: 11008 };
/// Words that choose among the data.
const CHOICES: [&[&str]; 2] = [&["F32", "BF16", "F64", "I8"], &["normal", "equal", "two", "zeros", "sorted", "int4"]];

fn bench<E: Element<Bits: ScanWord>>(words: &[String], kind: &str, data: &[E::Bits]) {
    let mut bits = vec![0u8; SHAPE.mask_bytes()];
    let keys = Magnitude::<E>(data);
    for isa in Isa::available() {
        for threads in [1, 2] {
            for (what, sparsity) in [("tensor", 0.5), ("tensor", 0.75), ("tensor", 0.9), ("row", 0.5), ("nonzero", 0.0)]
            {
                let name = format!("{:?} {kind} {what} {sparsity} {} {threads}", E::DTYPE, isa.name());
                if !common::wanted(words, &name) {
                    continue;
                }
                let exec = Exec { isa, threads };
                let zeros = select::zeros_of(sparsity, SHAPE.len());
                common::against_reading(&name, data, || match what {
                    "tensor" => select::smallest(&keys, SHAPE, zeros, exec, &mut bits).unwrap(),
                    "row" => {
                        let zeros = select::zeros_of(sparsity, SHAPE.cols);
                        select::smallest_per_row(&keys, SHAPE, zeros, exec, &mut bits).unwrap()
                    }
                    _ => select::nonzero(&keys, SHAPE, exec, &mut bits).unwrap(),
                });
                assert!(what == "nonzero" || popcount(&bits) == SHAPE.len() - zeros);
            }
        }
    }
}

fn all<E: Element<Bits: ScanWord>>(words: &[String], normal: &[f32], convert: impl Fn(f32) -> E::Bits) {
    for kind in ["normal", "equal", "two", "zeros", "sorted", "int4"] {
        let wanted = |word: &String| CHOICES.iter().all(|set| !set.contains(&word.as_str()));
        let names = [format!("{:?}", E::DTYPE), kind.to_string()];
        if !words.iter().all(|word| wanted(word) || names.contains(word)) {
            continue;
        }
        let change = |x: f32| match kind {
            "equal" => 0.5,
            "two" => {
                if x > 0.0 {
                    1.0
                } else {
                    2.0
                }
            }
            "zeros" => {
                if x.abs() > 0.0392 {
                    x
                } else {
                    0.0
                }
            }
            "int4" => (x * 150.0).round() / 150.0,
            _ => x,
        };
        let mut values: Vec<f32> = normal.iter().map(|&x| change(x)).collect();
        if kind == "sorted" {
            values.sort_by(f32::total_cmp);
        }
        let data: Vec<E::Bits> = values.into_iter().map(&convert).collect();
        bench::<E>(words, kind, &data);
    }
}

fn main() {
    let (words, normal) = (common::words(), common::normal(SHAPE.len()));
    all::<F32>(&words, &normal, f32::to_bits);
    all::<BF16>(&words, &normal, |x| half::bf16::from_f32(x).to_bits());
    all::<F64>(&words, &normal, |x| (x as f64).to_bits());
    all::<I8>(&words, &normal, |x| (x * 1000.0) as i8 as u8);
}
