//! The sweep over a block of columns and a step of refinement.
//!
//! `cargo bench -p fastsparse-core --bench calibration [-- WORD…]`; each word, a list separated by
//! commas, selects kernels, shapes, ISAs or threads, as a case's name has them. GFLOP/s count what
//! the definition of the sweep multiplies and subtracts, kept weights included; for the refinement
//! GB/s of what it must read and write. Times are medians.

mod common;

use std::hint::black_box;
use std::time::Instant;

use fastsparse_core::calibration::{Choice, Columns, Groups, Refinement, prune_columns, refine_step};
use fastsparse_core::isa::Isa;
use fastsparse_core::matrix::Matrix;
use fastsparse_core::parallel::Exec;

const ROUNDS: usize = 15;
const BLOCK: usize = 128;

fn numbers(count: usize) -> Vec<f32> {
    let mut uniform = common::uniform();
    (0..count).map(|_| uniform()).collect()
}

fn median(mut f: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    for rows in [576, 1536, 4096] {
        let shape = Matrix { rows, cols: BLOCK };
        let (weights, scale) = (numbers(shape.len()), vec![1.0; BLOCK]);
        let inverse: Vec<f32> = numbers(BLOCK * BLOCK).iter().map(|x| 0.1 * x).collect();
        let mask = vec![0x55; shape.mask_bytes()];
        let wide = Matrix { rows, cols: 1536 };
        let (product, wide_scale) = (numbers(wide.len()), vec![1.0; wide.cols]);
        for isa in Isa::available() {
            for threads in [1, 2] {
                let exec = Exec { isa, threads };
                for kernel in ["mask", "2:4", "8:16", "refine"] {
                    let title = format!("{kernel} {rows} {} {threads}t", isa.name());
                    if !words.iter().all(|word| title.split(' ').any(|part| word.split(',').any(|w| w == part))) {
                        continue;
                    }
                    if kernel == "refine" {
                        let mut x = [weights.len(); 3].map(|_| numbers(wide.len()));
                        let [ref mut x, ref mut residual, ref mut direction] = x;
                        let (mut energy, bits) = (vec![1.0; rows], vec![0x55; wide.mask_bytes()]);
                        let time = median(|| {
                            let all = Refinement { shape: wide, x, residual, direction, energy: &mut energy };
                            refine_step(all, Some(&product), &wide_scale, &bits, exec);
                        });
                        let bytes = 7 * 4 * wide.len();
                        println!("{title:24} {:8.3} ms {:7.1} GB/s", time * 1e3, bytes as f64 / time * 1e-9);
                        continue;
                    }
                    let choice = match kernel {
                        "2:4" => Choice::Groups(Groups { zeros: 2, of: 4, zeros_at_end: 0 }),
                        "8:16" => Choice::Groups(Groups { zeros: 8, of: 16, zeros_at_end: 0 }),
                        _ => Choice::Mask(&mask),
                    };
                    let columns = Columns { shape, weights: &weights, inverse: &inverse, scale: &scale };
                    let (mut out, mut bits) = (vec![0.0; shape.len()], vec![0; shape.mask_bytes()]);
                    let time = median(|| {
                        prune_columns(columns, choice, exec, &mut out, &mut bits).unwrap();
                        black_box(&out);
                    });
                    assert_eq!(fastsparse_core::matrix::popcount(&bits), shape.len() / 2);
                    let flops = rows * BLOCK * (BLOCK - 1);
                    println!("{title:24} {:8.3} ms {:7.1} GFLOP/s", time * 1e3, flops as f64 / time * 1e-9);
                }
            }
        }
    }
}
