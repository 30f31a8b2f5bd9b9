//! Linear layers by column indices against the same weights by their mask.
//!
//! `cargo bench -p fastsparse-core --bench linear_indexed [-- WORD…]`; each word must occur in a
//! case's name: dtypes (`F32`, `BF16`, `F16`, activations of the same), batches (`b1` …),
//! sparsities (`75` …), ISAs, threads. Layers of 4096 × 11008 take turns, so that no cache holds
//! them; a figure is the least time of a layer. Every result is checked.

mod common;

use fastsparse_core::element::{BF16, F16, F32, Word};
use fastsparse_core::isa::Isa;
use fastsparse_core::linear::indexed::{self, Column, Indexed, linear_indexed};
use fastsparse_core::linear::{Real, Weights, linear};
use fastsparse_core::matrix::Matrix;
use fastsparse_core::parallel::Exec;

use common::layers::{HugePages, Packed, SHAPE, activations, against, agree, copies, random_mask, weight};

/// The layers of [`Packed`] by column indices, with values and columns of their own.
struct Layers<W: Word, C: Column> {
    values: HugePages<W>,
    columns: HugePages<C>,
    steps: Vec<u16>,
    starts: Vec<i64>,
    /// Slots of a layer.
    len: usize,
}

impl<W: Word, C: Column> Layers<W, C> {
    fn new(weights: Weights<'_, W>, layers: usize) -> Self {
        let (exec, grid) = (Exec { isa: Isa::detect(), threads: 2 }, indexed::grid::<C>(SHAPE));
        let (mut steps, mut starts) = (vec![0; grid.len()], vec![0; grid.rows + 1]);
        indexed::count::<C>(SHAPE, weights.mask, exec, &mut steps, &mut starts);
        let len = starts[grid.rows] as usize * C::SLOTS;
        let (mut values, mut columns) = (vec![W::default(); len], vec![C::default(); len]);
        indexed::index(weights, &steps, &starts, exec, &mut values, &mut columns).unwrap();
        Layers { values: copies(&values, layers), columns: copies(&columns, layers), steps, starts, len }
    }

    fn layer(&self, i: usize) -> Indexed<'_, W, C> {
        let slots = i * self.len..(i + 1) * self.len;
        let (values, columns) = (&self.values[slots.clone()], &self.columns[slots]);
        Indexed { shape: SHAPE, values, columns, steps: &self.steps, starts: &self.starts }
    }
}

fn measure<E: Real, C: Column>(words: &[String], isa: Isa, sparsity: &str, density: f32) {
    let mut layers = None;
    for (batch, threads) in [1, 2, 4].into_iter().flat_map(|batch| [(batch, 1), (batch, 2)]) {
        let name = format!("{:?} b{batch} {sparsity} {} t{threads}", E::DTYPE, isa.name());
        if !common::wanted(words, &name) {
            continue;
        }
        let (packed, layers) = layers.get_or_insert_with(|| {
            let packed = Packed::new(random_mask(density, Matrix { rows: 1, cols: 1 }), weight::<E>);
            let layers = Layers::<E::Bits, C>::new(packed.layer(0), packed.layers);
            (packed, layers)
        });
        let (exec, x) = (Exec { isa, threads }, activations::<E>(batch));
        let (mut out, mut expected) =
            (vec![E::Bits::default(); batch * SHAPE.rows], vec![E::Bits::default(); batch * SHAPE.rows]);
        against(
            &name,
            "mask",
            packed.layers,
            |i| linear::<E, E>(packed.layer(i), &x, None, exec, &mut expected).unwrap(),
            |i| linear_indexed::<E, E, C>(layers.layer(i), &x, None, exec, &mut out).unwrap(),
        );
        agree::<E>(&out, &expected);
    }
}

fn all<E: Real>(words: &[String]) {
    for isa in Isa::available() {
        for (sparsity, density) in [("75", 0.25), ("90", 0.1), ("95", 0.05)] {
            if indexed::in_bytes(isa, E::DTYPE) {
                measure::<E, u8>(words, isa, sparsity, density);
            } else {
                measure::<E, u16>(words, isa, sparsity, density);
            }
        }
    }
}

fn main() {
    let words = common::words();
    all::<F32>(&words);
    all::<BF16>(&words);
    all::<F16>(&words);
}
