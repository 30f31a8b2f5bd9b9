//! Linear layers by blocks against the same weights by their mask, 75 % pruned.
//!
//! `cargo bench -p fastsparse-core --bench linear_blocks [-- WORD…]`; each word must occur in a
//! case's name: dtypes (`F32`, `BF16`, `F16`, activations of the same), blocks (`16x16` …), batches
//! (`b1` …), ISAs, threads. The scalar kernels are measured with one row. Layers of 4096 × 11008
//! take turns, so that no cache holds them; a figure is the least time of a layer. Every result is
//! checked.

mod common;

use fastsparse_core::element::{BF16, F16, F32, Word};
use fastsparse_core::isa::Isa;
use fastsparse_core::linear::blocks::{self, Blocks, linear_blocks};
use fastsparse_core::linear::{Real, Weights, linear};
use fastsparse_core::matrix::Matrix;
use fastsparse_core::parallel::Exec;

use common::layers::{HugePages, Packed, SHAPE, activations, against, agree, copies, random_mask, weight};

/// The layers of [`Packed`] by blocks, with values of their own.
struct Layers<W: Word> {
    block: Matrix,
    values: HugePages<W>,
    index: Vec<u16>,
    starts: Vec<i64>,
}

impl<W: Word> Layers<W> {
    fn new(weights: Weights<'_, W>, block: Matrix, layers: usize) -> Self {
        let block = blocks::block_for(SHAPE, block).unwrap();
        let mut starts = vec![0; blocks::bands(SHAPE, block) + 1];
        blocks::count(SHAPE, block, weights.mask, &mut starts);
        let len = starts[starts.len() - 1] as usize;
        let (mut values, mut index) = (vec![W::default(); len * block.len()], vec![0; len]);
        let exec = Exec { isa: Isa::detect(), threads: 2 };
        blocks::lay(weights, block, &starts, exec, &mut values, &mut index).unwrap();
        Layers { block, values: copies(&values, layers), index, starts }
    }

    fn layer(&self, i: usize) -> Blocks<'_, W> {
        let len = self.index.len() * self.block.len();
        let values = &self.values[i * len..(i + 1) * len];
        Blocks { shape: SHAPE, block: self.block, values, index: &self.index, starts: &self.starts }
    }
}

fn all<E: Real>(words: &[String]) {
    for (rows, cols) in [(16, 16), (1, 16), (4, 1), (4, 4)] {
        let block = Matrix { rows, cols };
        let mut layers = None;
        for (isa, batch) in Isa::available().into_iter().flat_map(|isa| [1, 4, 16, 64].map(|batch| (isa, batch))) {
            for threads in [1, 2] {
                let name = format!("{:?} {rows}x{cols} b{batch} {} t{threads}", E::DTYPE, isa.name());
                if !common::wanted(words, &name) || isa == Isa::Scalar && batch > 1 {
                    continue;
                }
                let (packed, layers) = layers.get_or_insert_with(|| {
                    let packed = Packed::new(random_mask(0.25, block), weight::<E>);
                    let layers = Layers::new(packed.layer(0), block, packed.layers);
                    (packed, layers)
                });
                let (exec, x) = (Exec { isa, threads }, activations::<E>(batch));
                let mut out = vec![E::Bits::default(); batch * SHAPE.rows];
                let mut expected = out.clone();
                against(
                    &name,
                    "mask",
                    packed.layers,
                    |i| linear::<E, E>(packed.layer(i), &x, None, exec, &mut expected).unwrap(),
                    |i| linear_blocks::<E, E>(layers.layer(i), &x, None, exec, &mut out).unwrap(),
                );
                agree::<E>(&out, &expected);
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
