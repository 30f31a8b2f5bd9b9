//! Energies of what patterns would keep, against reading the weights.
//!
//! `cargo bench -p fastsparse-core --bench sweep [-- WORD…]`; each word must occur in a case's
//! name: `shares` is nine shares of the tensor, `2:4`, `32:64` and `axis` are groups, `mask` is
//! what a mask keeps. Energies are checked.

mod common;

use fastsparse_core::element::{BF16, Element, F32};
use fastsparse_core::energy::sum_of_squares;
use fastsparse_core::isa::Isa;
use fastsparse_core::keys::Magnitude;
use fastsparse_core::matrix::Matrix;
use fastsparse_core::nm::Axis;
use fastsparse_core::parallel::Exec;
use fastsparse_core::sweep::{by_rank, of_largest, of_mask};

const SHAPE: Matrix = Matrix { rows: 4096, cols: 11008 };

fn all<E: Element>(words: &[String], normal: &[f32], convert: impl Fn(f32) -> E::Bits) {
    let data: Vec<E::Bits> = normal.iter().map(|&x| convert(x)).collect();
    let keys = Magnitude::<E>(&data);
    let zeros: Vec<usize> = (0..10).map(|tenths| SHAPE.len() / 10 * tenths).collect();
    let mask = vec![0xff; SHAPE.mask_bytes()];
    let row = Axis { outer: SHAPE.rows, len: SHAPE.cols, inner: 1 };
    let column = Axis { outer: 1, len: SHAPE.rows, inner: SHAPE.cols };
    let expected = sum_of_squares::<E>(&data, Exec::single(Isa::Scalar));
    for isa in Isa::available() {
        for threads in [1, 2] {
            let exec = Exec { isa, threads };
            for what in ["shares", "2:4", "32:64", "axis", "mask"] {
                let name = format!("{:?} {what} {} {threads}", E::DTYPE, isa.name());
                if !common::wanted(words, &name) {
                    continue;
                }
                let mut found = 0.0;
                common::against_reading(&name, &data, || {
                    found = match what {
                        "shares" => of_largest(&keys, &zeros, exec).unwrap()[0],
                        "2:4" => by_rank(&keys, row, 4, exec).unwrap().0.iter().sum(),
                        "32:64" => by_rank(&keys, row, 64, exec).unwrap().0.iter().sum(),
                        "axis" => by_rank(&keys, column, 4, exec).unwrap().0.iter().sum(),
                        _ => of_mask(&keys, SHAPE, &mask, exec).unwrap(),
                    };
                });
                assert!((found - expected).abs() < 1e-9 * expected, "{name}");
            }
        }
    }
}

fn main() {
    let (words, normal) = (common::words(), common::normal(SHAPE.len()));
    all::<F32>(&words, &normal, f32::to_bits);
    all::<BF16>(&words, &normal, |x| half::bf16::from_f32(x).to_bits());
}
