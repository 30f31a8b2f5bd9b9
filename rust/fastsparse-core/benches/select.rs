//! Exact selection against reading the weights.
//!
//! `cargo bench -p fastsparse-core --bench select [-- WORD…]`; each word must occur in a case's name. The probe is the sum of
//! the same bytes as float32, in 32 interleaved sums on one thread, as NumPy's `sum` does it. Probe and kernel take turns; a
//! figure is the median over the rounds of kernel ÷ probe, and the best kernel time. Each result's count is checked.

use std::hint::black_box;
use std::time::Instant;

use fastsparse_core::element::{BF16, Element, F32, F64, I8};
use fastsparse_core::isa::Isa;
use fastsparse_core::keys::Magnitude;
use fastsparse_core::matrix::{Matrix, popcount};
use fastsparse_core::parallel::Exec;
use fastsparse_core::select::{self, ScanWord};

const SHAPE: Matrix = Matrix { rows: 4096, cols: 11008 };
const ROUNDS: usize = 9;
/// Words that choose among the data.
const CHOICES: [&[&str]; 2] = [&["F32", "BF16", "F64", "I8"], &["normal", "equal", "two", "zeros", "sorted", "int4"]];

/// Standard normal × 0.02, roughly: the sum of twelve uniform numbers.
fn weights() -> Vec<f32> {
    let mut state = 88172645463325252u64;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..SHAPE.len()).map(|_| 0.02 * (0..12).map(|_| uniform()).sum::<f32>()).collect()
}

/// NumPy's `sum` of a float32 array.
fn probe(floats: &[f32]) -> f32 {
    let mut sums = [0.0; 32];
    for part in floats.as_chunks::<32>().0 {
        for (sum, x) in sums.iter_mut().zip(part) {
            *sum += x;
        }
    }
    sums.iter().sum()
}

fn same_bytes<T>(words: &[T]) -> &[f32] {
    // SAFETY: the bytes of words are floats, whichever they are; the length rounds down.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words) / 4) }
}

fn seconds(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn bench<E: Element<Bits: ScanWord>>(words: &[String], kind: &str, data: &[E::Bits]) {
    let mut bits = vec![0u8; SHAPE.mask_bytes()];
    let keys = Magnitude::<E>(data);
    for isa in Isa::available() {
        for threads in [1, 2] {
            for (what, sparsity) in [("tensor", 0.5), ("tensor", 0.75), ("tensor", 0.9), ("row", 0.5), ("nonzero", 0.0)]
            {
                let name = format!("{:?} {kind} {what} {sparsity} {} {threads}", E::DTYPE, isa.name());
                if !words.iter().all(|word| name.split(' ').any(|part| part == word)) {
                    continue;
                }
                let exec = Exec { isa, threads };
                let (mut ratios, mut best) = (Vec::new(), f64::MAX);
                for round in 0..ROUNDS {
                    let read = seconds(|| {
                        black_box(probe(same_bytes(data)));
                    });
                    let zeros = select::zeros_of(sparsity, SHAPE.len());
                    let time = seconds(|| match what {
                        "tensor" => select::smallest(&keys, SHAPE, zeros, exec, &mut bits).unwrap(),
                        "row" => {
                            let zeros = select::zeros_of(sparsity, SHAPE.cols);
                            select::smallest_per_row(&keys, SHAPE, zeros, exec, &mut bits).unwrap()
                        }
                        _ => select::nonzero(&keys, SHAPE, exec, &mut bits).unwrap(),
                    });
                    assert!(what == "nonzero" || popcount(&bits) == SHAPE.len() - zeros);
                    if round > 0 {
                        ratios.push(time / read);
                        best = best.min(time);
                    }
                }
                println!("{name:44} {:6.2} x read probe, best {:7.2} ms", median(&mut ratios), best * 1e3);
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
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let normal = weights();
    all::<F32>(&words, &normal, f32::to_bits);
    all::<BF16>(&words, &normal, |x| half::bf16::from_f32(x).to_bits());
    all::<F64>(&words, &normal, |x| (x as f64).to_bits());
    all::<I8>(&words, &normal, |x| (x * 1000.0) as i8 as u8);
}
