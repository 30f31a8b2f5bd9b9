//! Linear layers against reading the dense weights once.
//!
//! `cargo bench -p fastsparse-core --bench linear [-- WORD…]`; words select dtypes (`f32`, `bf16`,
//! `f16`, activations of the same), batches (`b1` …), sparsities (`50` …), ISAs (scalar up to `b4`,
//! it takes seconds) and threads (`t1`, `t2`). 24 layers of 4096 × 11008 take turns (12 in f32), as
//! in a real model, so that no cache holds them. They share one mask, which is small, and have
//! values of their own. The probe sums the dense weights of such a layer on as many threads: no
//! dense product is faster. Probe and kernels take turns; a figure is the least time of a layer,
//! and the probe's ÷ that. Every result is checked.

mod common;

use std::hint::black_box;
use std::time::Instant;

use fastsparse_core::element::{BF16, F16, F32, Word};
use fastsparse_core::isa::Isa;
use fastsparse_core::linear::{Real, Weights, linear};
use fastsparse_core::matrix::Matrix;
use fastsparse_core::parallel::{Exec, run};

use common::layers::{HugePages, ROUNDS, SHAPE, activations, random_mask, weight};

/// Bytes of dense weights in rotation.
const DENSE_BYTES: usize = 24 * 2 * SHAPE.rows * SHAPE.cols;

/// Sums all words of a layer, in as many lanes as keep the loads busy.
fn read(exec: Exec, layer: &[u64]) {
    const PIECE: usize = 1 << 16;
    struct Sum<'a>(&'a [u64]);
    impl fastsparse_core::isa::Kernel for Sum<'_> {
        type Output = u64;
        #[inline(always)]
        fn run(self) -> u64 {
            let mut sums = [0u64; 64];
            for block in self.0.as_chunks::<64>().0 {
                for (sum, word) in sums.iter_mut().zip(block) {
                    *sum = sum.wrapping_add(*word);
                }
            }
            sums.iter().fold(0, |sum, x| sum.wrapping_add(*x))
        }
    }
    run(exec.threads, layer.len().div_ceil(PIECE), |i| {
        black_box(exec.isa.run(Sum(&layer[i * PIECE..layer.len().min((i + 1) * PIECE)])));
    });
}

/// What is measured, with the least time of a layer so far.
struct Case {
    exec: Exec,
    least: f64,
}

fn measure<E: Real>(name: &str, sparsity: &str, density: f32, dense: &[u64], wanted: &dyn Fn(&str) -> bool) {
    let (mask, offsets) = random_mask(density, Matrix { rows: 1, cols: 1 });
    let kept = offsets[SHAPE.rows] as usize;
    let layers = DENSE_BYTES / (SHAPE.len() * E::Bits::BYTES);
    let values = HugePages::filled(layers * kept, |i| weight::<E>(i % kept));
    let words = SHAPE.len() * E::Bits::BYTES / 8;
    for batch in [1, 2, 4, 8, 16, 64, 256] {
        if !wanted(&format!("b{batch}")) {
            continue;
        }
        let x = activations::<E>(batch);
        let mut out = vec![E::Bits::default(); batch * SHAPE.rows];
        let mut cases = Vec::new();
        for isa in Isa::available() {
            for threads in [1, 2] {
                if (isa != Isa::Scalar || batch <= 4) && wanted(isa.name()) && wanted(&format!("t{threads}")) {
                    cases.push(Case { exec: Exec { isa, threads }, least: f64::INFINITY });
                }
            }
        }
        let mut probe = [f64::INFINITY; 2];
        for i in 0..ROUNDS * layers {
            let values = &values[i % layers * kept..(i % layers + 1) * kept];
            for case in &mut cases {
                let start = Instant::now();
                read(case.exec, &dense[i % layers * words..(i % layers + 1) * words]);
                let slot = &mut probe[case.exec.threads - 1];
                *slot = slot.min(start.elapsed().as_secs_f64());
                let weights = Weights { shape: SHAPE, values, mask: &mask, offsets: &offsets, groups: None };
                let start = Instant::now();
                linear::<E, E>(weights, &x, None, case.exec, &mut out).unwrap();
                case.least = case.least.min(start.elapsed().as_secs_f64());
                check::<E>(values, &mask, &x, &out);
            }
        }
        for Case { exec, least } in &cases {
            let label = format!("{name} b{batch} {sparsity} % {} t{}", exec.isa.name(), exec.threads);
            let read = probe[exec.threads - 1];
            println!("{label:32} {:9.3} ms, read {:7.3} ms, x {:6.2}", 1e3 * least, 1e3 * read, read / least);
        }
    }
}

/// Compares the first row of the result with the plain loop.
fn check<E: Real>(values: &[E::Bits], mask: &[u8], x: &[E::Bits], out: &[E::Bits]) {
    for (b, x) in x.chunks_exact(SHAPE.cols).enumerate() {
        let kept = (0..SHAPE.cols).filter(|col| mask[col / 8] >> (col % 8) & 1 == 1);
        let sum: f64 = kept.zip(values).map(|(col, &value)| E::to_f64(x[col]) * E::to_f64(value)).sum();
        let got = E::to_f64(out[b * SHAPE.rows]);
        assert!((got - sum).abs() <= 1e-3 + 0.01 * sum.abs(), "{got} for {sum}");
    }
}

fn all<E: Real>(name: &str, dense: &[u64], wanted: &dyn Fn(&str) -> bool) {
    for (sparsity, density) in [("50", 0.5), ("75", 0.25), ("90", 0.1)] {
        if wanted(name) && wanted(sparsity) {
            measure::<E>(name, sparsity, density, dense, wanted);
        }
    }
}

fn main() {
    const GROUPS: [&[&str]; 5] = [
        &["f32", "bf16", "f16"],
        &["b1", "b2", "b4", "b8", "b16", "b64", "b256"],
        &["50", "75", "90"],
        &["scalar", "avx2", "avx512"],
        &["t1", "t2"],
    ];
    let words: Vec<String> = std::env::args().skip(1).collect();
    let named = |group: &[&str]| words.iter().any(|word| group.contains(&word.as_str()));
    // A group of words from which none is given is wanted whole.
    let wanted = |word: &str| {
        let group = GROUPS.iter().find(|group| group.contains(&word)).expect("a known word");
        !named(group) || words.iter().any(|given| given == word)
    };
    let dense = &HugePages::filled(DENSE_BYTES / 8, |i| i as u64);
    all::<F32>("f32", dense, &wanted);
    all::<BF16>("bf16", dense, &wanted);
    all::<F16>("f16", dense, &wanted);
}
