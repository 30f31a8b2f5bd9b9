//! Measures the tables of `linear/float/strategy.rs` on this machine: `make tune`, about a minute.
//!
//! `cargo bench -p fastsparse-core --bench tune [-- WORD…]`; words are an ISA, else the best of the
//! machine is taken, and `t1` for one thread instead of two. Every kernel computes products of each
//! type, density and batch, the kernels by turns, each time with weights that no cache holds: parts
//! of layers of 4096 × 11008.
//! From the medians follows the table that loses least, which is printed beside the one that
//! stands, with what both lose against the fastest kernel of each case, and the cases where it
//! gains most. With AMX it is the number of rows from which on it is faster; `-- avx512` measures
//! the table of pairs on such a machine. Results are compared.

#[path = "../common/mod.rs"]
mod common;
mod fit;

use fastsparse_core::element::{BF16, DType, F16, F32, Word};
use fastsparse_core::isa::Isa;
use fastsparse_core::linear::choice::{AMX_FROM, Level, Method, Product, Table, linear_by, table};
use fastsparse_core::linear::{Real, Weights};
use fastsparse_core::matrix::Matrix;
use fastsparse_core::parallel::Exec;

use common::layers::{Packed, SHAPE, activations, agree, random_mask, weight};
use common::{median, seconds};
use fit::{Case, amx_source, fit, source, total_loss};

/// Rows of weights of a product: a part of a layer, so that there is time for many cases.
const PART: Matrix = Matrix { rows: 1024, cols: SHAPE.cols };

/// Rows of activations.
const BATCHES: [usize; 13] = [4, 5, 6, 8, 9, 12, 16, 17, 20, 24, 32, 40, 64];

/// Kept weights in a thousand.
const KEPT: [usize; 8] = [50, 100, 150, 250, 350, 500, 700, 900];

/// Kernels among which tables choose.
const VECTORS: [Method; 3] = [Method::Direct, Method::Tiled, Method::Broadcast];

/// Times that each kernel is measured in a case.
const ROUNDS: usize = 5;

/// Cases that are shown at most.
const SHOWN: usize = 10;

/// Layers in parts of [`PART`].
struct Parts<W: Word> {
    layers: Packed<W>,
    /// Row offsets of the parts of a layer.
    offsets: Vec<Vec<i64>>,
}

impl<W: Word> Parts<W> {
    fn new(layers: Packed<W>) -> Self {
        let all = layers.layer(0).offsets;
        let part = |first: usize| all[first..=first + PART.rows].iter().map(|at| at - all[first]).collect();
        let offsets = (0..SHAPE.rows).step_by(PART.rows).map(part).collect();
        Parts { layers, offsets }
    }

    /// Part `i` of all the layers, round and round.
    fn part(&self, i: usize) -> Weights<'_, W> {
        let (layer, part) = (i / self.offsets.len() % self.layers.layers, i % self.offsets.len());
        let Weights { values, mask, offsets, .. } = self.layers.layer(layer);
        let (first, end) = (part * PART.rows, (part + 1) * PART.rows);
        Weights {
            shape: PART,
            values: &values[offsets[first] as usize..offsets[end] as usize],
            mask: &mask[first * SHAPE.row_bytes()..end * SHAPE.row_bytes()],
            offsets: &self.offsets[part],
            groups: None,
        }
    }
}

/// What products of a type take with each of these kernels.
fn measure<E: Real>(methods: &[Method], exec: Exec) -> Vec<Case> {
    let mut cases = Vec::new();
    for kept in KEPT {
        let mask = random_mask(kept as f32 / 1000.0, Matrix { rows: 1, cols: 1 });
        let parts = Parts::new(Packed::new(mask, weight::<E>));
        let mut next = 0;
        for batch in BATCHES {
            let x = activations::<E>(batch);
            let [mut out, mut expected] = [(); 2].map(|()| vec![E::Bits::default(); batch * PART.rows]);
            let run = |method, part, out: &mut [E::Bits]| {
                linear_by::<E, E>(|_| method, parts.part(part), &x, None, exec, out).unwrap()
            };
            run(methods[0], 0, &mut expected);
            for &method in methods {
                run(method, 0, &mut out);
                agree::<E>(&out, &expected);
            }
            let mut times = vec![Vec::new(); methods.len()];
            for _ in 0..ROUNDS {
                for (&method, times) in methods.iter().zip(&mut times) {
                    times.push(seconds(|| run(method, next, &mut out)));
                    next += 1;
                }
            }
            let product = Product { weights: E::DTYPE, x: E::DTYPE, batch, kept, all: 1000 };
            let medians = times.iter_mut().map(|times| median(times));
            cases.push(Case { product, times: methods.iter().copied().zip(medians).collect() });
        }
    }
    cases
}

fn percent(loss: f64) -> f64 {
    100.0 * loss.exp_m1()
}

/// What is lost where kernels are chosen this way.
fn losses(cases: &[Case], method: impl Fn(Product) -> Method + Copy) -> String {
    let mean = total_loss(cases, method) / cases.len() as f64;
    let most = cases.iter().map(|case| case.loss(method(case.product))).fold(0.0, f64::max);
    format!("loses {:.1} % on average, {:.0} % at most", percent(mean), percent(most))
}

/// Prints the table that was measured beside the one that stands, and where it gains most.
fn report(name: &str, stands: Table<'_>, cases: &[Case]) {
    let measured = fit(cases);
    for (table, what) in [(stands, "Stands"), (measured.table(), "Measured")] {
        println!("// {what}: {}.\n{}", losses(cases, |product| table.method(product)), source(name, table));
    }
    let chosen = |case: &Case| (stands.method(case.product), measured.table().method(case.product));
    let gain = |case: &Case| case.loss(chosen(case).0) - case.loss(chosen(case).1);
    let mut differ: Vec<&Case> = cases.iter().filter(|case| chosen(case).0 != chosen(case).1).collect();
    differ.sort_by(|a, b| gain(b).total_cmp(&gain(a)));
    for case in differ.iter().take(SHOWN) {
        let Product { weights, batch, kept, .. } = case.product;
        let side = |method| format!("{method:?} {:.2} ms", 1e3 * case.time(method));
        let (before, after) = (side(chosen(case).0), side(chosen(case).1));
        println!("{:7.1} %  {weights:?}, {kept} kept, {batch} rows: {before}, {after}", percent(gain(case)));
    }
    if let Some(rest) = differ.get(SHOWN..).filter(|rest| !rest.is_empty()) {
        let mean = rest.iter().map(|case| gain(case)).sum::<f64>() / rest.len() as f64;
        println!("{:7.1} %  on average of {} more", percent(mean), rest.len());
    }
    println!();
}

/// Prints from how many rows of activations on AMX loses less than the table.
fn report_amx(table: Table<'_>, cases: &[Case]) {
    let by = |from| move |product: Product| if product.batch >= from { Method::Amx } else { table.method(product) };
    let loss = |from: &usize| total_loss(cases, by(*from));
    let measured = BATCHES.into_iter().min_by(|a, b| loss(a).total_cmp(&loss(b))).expect("some batches");
    for (from, what) in [(AMX_FROM, "Stands"), (measured, "Measured")] {
        println!("// {what}: {}.\n{}", losses(cases, by(from)), amx_source(from));
    }
    println!();
}

fn main() {
    let words = common::words();
    let (one, names): (Vec<_>, Vec<_>) = words.iter().partition(|word| *word == "t1");
    let isa = names.first().map_or_else(Isa::detect, |name| Isa::up_to(name).expect("an ISA of this machine"));
    let (level, exec) = (Level::of(isa), Exec { isa, threads: if one.is_empty() { 2 } else { 1 } });
    let mut tables: Vec<(&str, Table<'_>, Vec<Case>)> = Vec::new();
    let types = [
        (DType::F32, measure::<F32> as fn(&[Method], Exec) -> Vec<Case>),
        (DType::BF16, measure::<BF16>),
        (DType::F16, measure::<F16>),
    ];
    for (dtype, measure) in types {
        let Some((name, stands)) = table(level, dtype, dtype) else {
            println!("{} has one kernel: there is nothing to choose", isa.name());
            return;
        };
        if level == Level::Amx && dtype == DType::BF16 {
            report_amx(stands, &measure(&[VECTORS.as_slice(), &[Method::Amx]].concat(), exec));
            continue;
        }
        let cases = measure(&VECTORS, exec);
        match tables.iter_mut().find(|(other, ..)| *other == name) {
            Some((.., all)) => all.extend(cases),
            None => tables.push((name, stands, cases)),
        }
    }
    for (name, stands, cases) in tables {
        report(name, stands, &cases);
    }
}
