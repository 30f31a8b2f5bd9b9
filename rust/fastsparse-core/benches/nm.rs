//! n:m on 4096 × 11008 weights: time over that of reading the same bytes once, on one thread, in
//! turns.
//!
//! `cargo bench --bench nm -- [THREADS [ROWS]] [NAME …]`: names are ISAs and element types to keep
//! to, "axis0", "axis1", groups like "4:8", or "thousand" (weights) and "3x3" (a convolution's,
//! along its channels). Each figure is the best of its rounds, and every mask is checked for its
//! number of kept weights.

use std::hint::black_box;
use std::time::Instant;

use fastsparse_core::element::{BF16, Element, F32};
use fastsparse_core::isa::Isa;
use fastsparse_core::keys::Magnitude;
use fastsparse_core::matrix::{Matrix, popcount};
use fastsparse_core::nm::{self, Axis, Groups, Tail};
use fastsparse_core::parallel::Exec;

const COLS: usize = 11008;

/// Standard normal × 0.02: sums of uniform numbers are close enough for the order of keys.
fn normal(len: usize) -> Vec<f32> {
    let mut seed = 1u64;
    let mut uniform = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..len).map(|_| 0.02 * ((0..6).map(|_| uniform()).sum::<f32>() - 3.0) * std::f32::consts::SQRT_2).collect()
}

/// Reads the data once, as a sum does: memory's speed with one thread.
fn probe<W: Copy + Into<u64>>(data: &[W]) -> f64 {
    let start = Instant::now();
    let sum = data.chunks_exact(64).fold([0u64; 8], |mut sums, chunk| {
        for part in chunk.chunks_exact(8) {
            for (sum, &word) in sums.iter_mut().zip(part) {
                *sum ^= word.into();
            }
        }
        sums
    });
    black_box(sum);
    start.elapsed().as_secs_f64()
}

fn best(times: &[f64]) -> f64 {
    times.iter().copied().fold(f64::INFINITY, f64::min)
}

/// Whether the command line asks for all of `words`: of each kind that it names at all, it names
/// this one.
fn wanted(words: &[&str]) -> bool {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let kinds: [&dyn Fn(&str) -> bool; 4] = [
        &|word| ["scalar", "avx2", "avx512"].contains(&word),
        &|word| ["f32", "bf16", "thousand", "3x3"].contains(&word),
        &|word| word.starts_with("axis"),
        &|word| word.contains(':'),
    ];
    kinds.iter().all(|kind| {
        let mut named = asked.iter().filter(|word| kind(word)).peekable();
        named.peek().is_none() || named.any(|word| words.contains(&word.as_str()))
    })
}

fn measure<E: Element<Bits: Into<u64>>>(name: &str, data: &[E::Bits], axis: Axis, groups: Groups, threads: usize) {
    let shape = Matrix { rows: data.len() / COLS, cols: COLS };
    let mut mask = vec![0u8; shape.mask_bytes()];
    for isa in Isa::available() {
        let pattern = format!("{}:{}", groups.zeros, groups.of);
        let direction = if axis.inner == 1 { "axis1" } else { "axis0" };
        if !wanted(&[name, &pattern, direction, isa.name()]) {
            continue;
        }
        let (mut probes, mut times) = (Vec::new(), Vec::new());
        let rounds = (9 * 4096 / shape.rows).clamp(9, 200);
        for _ in 0..rounds {
            probes.push(probe(data));
            let start = Instant::now();
            let keys = Magnitude::<E>(data);
            nm::select(&keys, shape, axis, groups, Exec { isa, threads }, &mut mask).expect("no NaN");
            times.push(start.elapsed().as_secs_f64());
        }
        assert_eq!(popcount(&mask), groups.kept(axis));
        let (probe, time) = (best(&probes), best(&times));
        println!(
            "{name:5} {pattern:8} {direction}  {:7}  {:8.2} ms  probe {:6.2} ms  {:6.2} x",
            isa.name(),
            time * 1e3,
            probe * 1e3,
            time / probe
        );
    }
}

/// One call on a small or an awkward tensor, without a probe.
fn call(name: &str, data: &[u32], shape: Matrix, axis: Axis, groups: Groups, threads: usize, calls: usize) {
    let mut mask = vec![0u8; shape.mask_bytes()];
    for isa in Isa::available().into_iter().filter(|isa| wanted(&[name, isa.name()])) {
        let mut times = Vec::new();
        for _ in 0..9 {
            let start = Instant::now();
            for _ in 0..calls {
                let keys = Magnitude::<F32>(black_box(&data[..shape.len()]));
                nm::select(&keys, shape, axis, groups, Exec { isa, threads }, &mut mask).expect("no NaN");
            }
            times.push(start.elapsed().as_secs_f64() / calls as f64);
        }
        assert_eq!(popcount(&mask), groups.kept(axis));
        println!("{name} {}:{} {:7} {:10.2} µs a call", groups.zeros, groups.of, isa.name(), best(&times) * 1e6);
    }
}

fn main() {
    let mut numbers = std::env::args().filter_map(|word| word.parse().ok());
    let threads = numbers.next().unwrap_or(2);
    let shape = Matrix { rows: numbers.next().unwrap_or(4096), cols: COLS };
    let values = normal(shape.len());
    let wide: Vec<u32> = values.iter().map(|x| x.to_bits()).collect();
    let narrow: Vec<u16> = values.iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect();
    let last = Axis { outer: shape.rows, len: shape.cols, inner: 1 };
    let first = Axis { outer: 1, len: shape.rows, inner: shape.cols };
    for (zeros, of) in [(2, 4), (1, 2), (4, 8), (8, 16), (14, 16), (16, 32), (32, 64), (56, 64), (3, 12), (128, 256)] {
        let groups = Groups { zeros, of, tail: Tail::Proportional };
        for axis in [last, first] {
            measure::<F32>("f32", &wide, axis, groups, threads);
            measure::<BF16>("bf16", &narrow, axis, groups, threads);
        }
    }
    for (zeros, of) in [(2, 4), (4, 8), (32, 64)] {
        let groups = Groups { zeros, of, tail: Tail::Proportional };
        let row = Matrix { rows: 1, cols: 1000 };
        call("thousand", &wide, row, Axis { outer: 1, len: 1000, inner: 1 }, groups, threads, 1000);
        let convolution = Matrix { rows: 128, cols: 512 * 9 };
        call("3x3", &wide, convolution, Axis { outer: 128, len: 512, inner: 9 }, groups, threads, 10);
    }
}
