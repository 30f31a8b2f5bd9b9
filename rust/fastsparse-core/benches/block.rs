//! Block pruning against reading the weights.
//!
//! `cargo bench -p fastsparse-core --bench block [-- WORD…]`; each word, a list separated by
//! commas, selects parts, types, blocks, norms, ISAs or threads, as a case's name has them. `keys`
//! makes the keys of all blocks, `select` is all of it at 50 %, `verify` the check of that mask.
//! The probe is the sum of the same bytes as float32 on one thread, in interleaved sums as NumPy's
//! `sum` has them. Probe and kernels take turns; times are medians over the rounds. On a machine
//! that does something else too the work says more: processor time of all threads, the least of the
//! rounds.

mod common;

use std::hint::black_box;
use std::time::Instant;

use fastsparse_core::block::{self, BlockKeys, Blocks, Norm};
use fastsparse_core::element::{Elements, Word};
use fastsparse_core::isa::Isa;
use fastsparse_core::keys::{Keys, Ranking};
use fastsparse_core::matrix::{Matrix, popcount};
use fastsparse_core::nm::Axis;
use fastsparse_core::parallel::{self, Exec};

const SHAPE: Matrix = Matrix { rows: 4096, cols: 11008 };
const ROUNDS: usize = 7;
const PIECE: usize = 2048;
const TILES: [(usize, usize); 12] =
    [(4, 1), (1, 4), (1, 16), (16, 16), (8, 8), (32, 1), (1, 2), (1, 32), (1, 128), (3, 3), (1, 5), (12, 12)];

/// Numbers of which not too many are made.
fn weights() -> Vec<f32> {
    let pool = common::normal(1 << 20);
    (0..SHAPE.len()).map(|i| pool[(i ^ i >> 20) & (pool.len() - 1)]).collect()
}

/// Seconds that pass, and seconds of processor time of all threads.
fn seconds(f: impl FnOnce()) -> [f64; 2] {
    unsafe extern "C" {
        safe fn clock() -> std::ffi::c_long;
    }
    let (start, work) = (Instant::now(), clock());
    f();
    [start.elapsed().as_secs_f64(), (clock() - work) as f64 * 1e-6]
}

fn median(times: &[[f64; 2]], f: impl Fn(&[f64; 2]) -> f64) -> f64 {
    let mut times: Vec<f64> = times.iter().map(f).collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Keys of all blocks, piece by piece as the selection asks for them.
fn all_keys(keys: &BlockKeys<'_>, exec: Exec) {
    let tasks = keys.len().div_ceil(PIECE * 8);
    parallel::run(exec.threads, tasks, |task| {
        let mut buffer = [0u64; PIECE];
        let end = ((task + 1) * PIECE * 8).min(keys.len());
        for start in (task * PIECE * 8..end).step_by(PIECE) {
            let buffer = &mut buffer[..PIECE.min(end - start)];
            keys.fill(start, buffer).unwrap();
            black_box(buffer);
        }
    });
}

fn run<T: Word>(words: &[String], name: &str, data: &[T], elements: Elements<'_>) {
    let mut mask = vec![0u8; SHAPE.mask_bytes()];
    for (tall, wide) in TILES {
        let blocks = Blocks { axis: Axis { outer: 1, len: SHAPE.rows, inner: SHAPE.cols }, tall, wide };
        for (norm, norm_name) in [(Norm::L2, "l2"), (Norm::L1, "l1"), (Norm::Max, "max")] {
            for isa in Isa::available() {
                for threads in [1, 2] {
                    let exec = Exec { isa, threads };
                    for part in ["keys", "select", "verify"] {
                        let title = format!("{part} {name} {tall}x{wide} {norm_name} {} {threads}t", isa.name());
                        if !words.iter().all(|word| title.split(' ').any(|part| word.split(',').any(|w| w == part))) {
                            continue;
                        }
                        let ranking = Ranking::Magnitude(elements);
                        let zeros = blocks.grid().len() / 2;
                        let (mut probes, mut times) = (vec![], vec![]);
                        if part == "verify" {
                            block::select(ranking, SHAPE, blocks, norm, zeros, exec, &mut mask).unwrap();
                        }
                        for _ in 0..ROUNDS {
                            let read = seconds(|| {
                                black_box(common::read_probe(data));
                            });
                            let time = seconds(|| match part {
                                "keys" => all_keys(&BlockKeys::new(ranking, SHAPE, blocks, norm, isa).unwrap(), exec),
                                "select" => {
                                    block::select(ranking, SHAPE, blocks, norm, zeros, exec, &mut mask).unwrap()
                                }
                                _ => block::verify(SHAPE, blocks, zeros, &mask, exec).unwrap(),
                            });
                            probes.push(read);
                            times.push(time);
                        }
                        if part == "select" {
                            let kept = popcount(&mask) as f64 / SHAPE.len() as f64;
                            assert!((kept - 0.5).abs() < 0.01, "{kept} kept");
                        }
                        let [time, read] = [&times, &probes].map(|t| median(t, |t| t[0]));
                        let work = times.iter().map(|t| t[1]).fold(f64::MAX, f64::min);
                        let read_work = probes.iter().map(|t| t[1]).fold(f64::MAX, f64::min);
                        println!(
                            "{title:36} {:6.2} × read; {:7.2} ms, read {:6.2} ms; least work {:6.2} ms, read {:6.2} ms",
                            time / read,
                            time * 1e3,
                            read * 1e3,
                            work * 1e3,
                            read_work * 1e3
                        );
                    }
                }
            }
        }
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let floats = weights();
    let f32s: Vec<u32> = floats.iter().map(|x| x.to_bits()).collect();
    run(&words, "f32", &f32s, Elements::F32(&f32s));
    let bf16s: Vec<u16> = floats.iter().map(|&x| half::bf16::from_f32(x).to_bits()).collect();
    run(&words, "bf16", &bf16s, Elements::BF16(&bf16s));
    let f16s: Vec<u16> = floats.iter().map(|&x| half::f16::from_f32(x).to_bits()).collect();
    run(&words, "f16", &f16s, Elements::F16(&f16s));
    let bytes: Vec<u8> = f16s.iter().map(|&x| (x >> 8) as u8).collect();
    run(&words, "e5m2", &bytes, Elements::F8E5M2(&bytes));
    run(&words, "e4m3", &bytes, Elements::F8E4M3(&bytes));
    run(&words, "i8", &bytes, Elements::I8(&bytes));
    let doubles: Vec<u64> = floats.iter().map(|&x| (x as f64).to_bits()).collect();
    run(&words, "f64", &doubles, Elements::F64(&doubles));
}
