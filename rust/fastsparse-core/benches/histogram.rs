//! Counting magnitudes by value, and their rank, against reading the weights.
//!
//! `cargo bench -p fastsparse-core --bench histogram [-- WORD…]`; each word must occur in a case's
//! name: `first`, `second` and `third` are the windows that find a threshold, `rank` compares with
//! it. Totals are checked.

mod common;

use fastsparse_core::element::{BF16, Element, F32, F64, I8};
use fastsparse_core::histogram::{BINS, count, rank};
use fastsparse_core::isa::Isa;
use fastsparse_core::parallel::Exec;

const LEN: usize = 4096 * 11008;

fn all<E: Element>(words: &[String], normal: &[f32], convert: impl Fn(f32) -> E::Bits) {
    let mut data = Vec::new();
    for isa in Isa::available() {
        for threads in [1, 2] {
            for what in ["first", "second", "third", "rank"] {
                let name = format!("{:?} {what} {} {threads}", E::DTYPE, isa.name());
                if !common::wanted(words, &name) {
                    continue;
                }
                if data.is_empty() {
                    data = normal.iter().map(|&x| convert(x)).collect();
                }
                let exec = Exec { isa, threads };
                let threshold = E::to_f64(data[LEN / 2]).abs().to_bits();
                let (low, shift) = match what {
                    "first" => (0, 42),
                    "second" => (threshold >> 42 << 42, 21),
                    _ => (threshold >> 21 << 21, 0),
                };
                let mut counted = 0;
                common::against_reading(&name, &data, || {
                    counted = if what == "rank" {
                        let rank = rank::<E>(&data, threshold, exec).unwrap();
                        rank.below + rank.equal
                    } else {
                        let counts = count::<E>(&data, low, shift, exec).unwrap();
                        counts.below + counts.bins.iter().map(|bin| bin.1).sum::<u64>()
                    };
                });
                let end = if what == "rank" { threshold + 1 } else { low + ((BINS as u64) << shift) };
                let expected = data.iter().filter(|&&bits| E::to_f64(bits).abs().to_bits() < end).count();
                assert_eq!(counted, expected as u64, "{name}");
            }
        }
    }
}

fn main() {
    let (words, normal) = (common::words(), common::normal(LEN));
    all::<F32>(&words, &normal, f32::to_bits);
    all::<BF16>(&words, &normal, |x| half::bf16::from_f32(x).to_bits());
    all::<F64>(&words, &normal, |x| (x as f64).to_bits());
    all::<I8>(&words, &normal, |x| (x * 1000.0) as i8 as u8);
}
