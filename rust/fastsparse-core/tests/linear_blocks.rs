//! Blocks: back to the mask, and products on every ISA against float64.

mod common;

use fastsparse_core::element::{BF16, F16, F32, Word};
use fastsparse_core::error::Error;
use fastsparse_core::isa::Isa;
use fastsparse_core::linear::Real;
use fastsparse_core::linear::blocks::{Blocks, bands, block_for, count, lay, linear_blocks, unlay};
use fastsparse_core::matrix::Matrix;
use fastsparse_core::parallel::Exec;

use common::{Packed, Random};

/// A packed matrix by blocks.
struct Laid<W> {
    shape: Matrix,
    block: Matrix,
    values: Vec<W>,
    index: Vec<u16>,
    starts: Vec<i64>,
}

impl<W: Word> Packed<W> {
    /// One block in `one_of` is kept, and none of the second band.
    fn of_blocks<E: Real<Bits = W>>(shape: Matrix, block: Matrix, one_of: u64, random: &mut Random) -> Self {
        let grid = Matrix { rows: shape.rows.div_ceil(block.rows), cols: shape.cols.div_ceil(block.cols) };
        let kept: Vec<bool> = (0..grid.len()).map(|_| (random.next() >> 40).is_multiple_of(one_of)).collect();
        let keep = |_: &mut Random, row: usize, col: usize| {
            let (band, number) = (row / block.rows, col / block.cols);
            band != 1 && kept[band * grid.cols + number]
        };
        Packed::of(shape, random, keep, |random| E::from_f32(random.number()))
    }

    fn laid(&self, block: Matrix, exec: Exec) -> Result<Laid<W>, Error> {
        let block = block_for(self.shape, block).unwrap();
        let mut starts = vec![0; bands(self.shape, block) + 1];
        count(self.shape, block, &self.mask, &mut starts);
        let len = starts[starts.len() - 1] as usize;
        let (mut values, mut index) = (vec![W::default(); len * block.len()], vec![0; len]);
        lay(self.weights(), block, &starts, exec, &mut values, &mut index)?;
        Ok(Laid { shape: self.shape, block, values, index, starts })
    }
}

impl<W: Word> Laid<W> {
    fn weights(&self) -> Blocks<'_, W> {
        let Laid { shape, block, values, index, starts } = self;
        Blocks { shape: *shape, block: *block, values, index, starts }
    }
}

fn check<E: Real, X: Real>(shape: Matrix, block: Matrix, one_of: u64, batches: &[usize]) {
    let mut random = Random((shape.len() + block.len()) as u64);
    let packed = Packed::of_blocks::<E>(shape, block, one_of, &mut random);
    let laid = packed.laid(block, Exec { isa: Isa::detect(), threads: 2 }).unwrap();
    let (mut values, mut mask) = (vec![E::Bits::default(); packed.values.len()], vec![0xff; packed.mask.len()]);
    unlay(laid.weights(), &mut values, &mut mask).unwrap();
    assert!(values == packed.values && mask == packed.mask, "{shape:?} {block:?}");
    for &batch in batches {
        let x = random.numbers::<X>(batch * shape.cols);
        let bias: Vec<f32> = (0..shape.rows).map(|row| row as f32 / 8.0).collect();
        for isa in Isa::available() {
            let mut results = Vec::new();
            for threads in [1, 3] {
                let mut out = vec![X::from_f32(f32::NAN); batch * shape.rows];
                linear_blocks::<E, X>(laid.weights(), &x, Some(&bias), Exec { isa, threads }, &mut out).unwrap();
                results.push(out);
            }
            assert!(results[0] == results[1]);
            // Two chains at least of a sum of a column each.
            let context = format!("{block:?} {isa:?} batch {batch}");
            packed.check::<E, X>(&x, Some(&bias), shape.cols + 6, &results[0], &context);
        }
    }
}

#[test]
fn shapes_of_blocks() {
    let shapes = [(1, 700), (9, 131), (33, 64), (37, 300), (16, 0), (0, 9)].map(|(rows, cols)| Matrix { rows, cols });
    for (rows, cols) in [(16, 16), (1, 16), (4, 1), (2, 2), (8, 3), (5, 48), (64, 40), (17, 5), (1, 4), (3, 128)] {
        for shape in shapes {
            let block = Matrix { rows, cols };
            check::<F32, F32>(shape, block, 3, &[1, 2, 3, 4, 8, 9, 17, 40]);
            check::<BF16, BF16>(shape, block, 2, &[1, 7, 33, 70]);
            check::<F16, F32>(shape, block, 4, &[3, 20]);
            check::<F16, F16>(shape, block, 1, &[1, 64]);
            check::<BF16, F32>(shape, block, 3, &[6, 48]);
        }
    }
}

/// More rows of activations than are computed at a time.
#[test]
fn panels_of_activations() {
    check::<F32, F32>(Matrix { rows: 5, cols: 9 }, Matrix { rows: 4, cols: 2 }, 2, &[1030]);
}

/// What is dropped, and what pads, adds nothing whatever x holds.
#[test]
fn not_finite() {
    let (shape, block) = (Matrix { rows: 20, cols: 91 }, Matrix { rows: 4, cols: 3 });
    let mut random = Random(5);
    let packed = Packed::of_blocks::<F32>(shape, block, 3, &mut random);
    for batch in [1, 4, 20] {
        for col in [0, 44, 90] {
            let mut x = random.numbers::<F32>(batch * shape.cols);
            x[(batch - 1) * shape.cols + col] = f32::INFINITY.to_bits();
            for isa in Isa::available() {
                let laid = packed.laid(block, Exec::single(isa)).unwrap();
                let mut out = vec![0; batch * shape.rows];
                linear_blocks::<F32, F32>(laid.weights(), &x, None, Exec::single(isa), &mut out).unwrap();
                for (i, &got) in out.iter().enumerate() {
                    let (b, row) = (i / shape.rows, i % shape.rows);
                    let kept = packed.keeps(row, col);
                    assert_eq!(f32::from_bits(got).is_finite(), !(kept && b == batch - 1), "{isa:?} {batch} {col} {i}");
                }
            }
        }
    }
}

#[test]
fn masks_of_no_blocks() {
    let (shape, block) = (Matrix { rows: 8, cols: 32 }, Matrix { rows: 4, cols: 4 });
    let packed = Packed::of_blocks::<F32>(shape, Matrix { rows: 1, cols: 1 }, 2, &mut Random(2));
    assert!(matches!(packed.laid(block, Exec::single(Isa::Scalar)), Err(Error::BlockMixed { .. })));
    assert!(block_for(Matrix { rows: 4, cols: 1 << 16 }, Matrix { rows: 4, cols: 1 }).is_none());
}

#[test]
fn parts_that_disagree() {
    let (shape, block) = (Matrix { rows: 40, cols: 300 }, Matrix { rows: 4, cols: 8 });
    let packed = Packed::of_blocks::<F32>(shape, block, 2, &mut Random(2));
    for isa in Isa::available() {
        let good = packed.laid(block, Exec::single(isa)).unwrap();
        for batch in [1, 20] {
            let x = vec![0; batch * shape.cols];
            let mut out = vec![0; batch * shape.rows];
            // Any number is within bounds.
            let index = vec![u16::MAX; good.index.len()];
            let weights = Blocks { index: &index, ..good.weights() };
            assert_eq!(linear_blocks::<F32, F32>(weights, &x, None, Exec::single(isa), &mut out), Ok(()));
            for wrong in [i64::MIN, -1, 1, 100_000, i64::MAX] {
                let mut starts = good.starts.clone();
                starts[3] = starts[3].wrapping_add(wrong);
                let weights = Blocks { starts: &starts, ..good.weights() };
                let got = linear_blocks::<F32, F32>(weights, &x, None, Exec::single(isa), &mut out);
                assert_eq!(got, Err(Error::Changed), "{wrong}");
            }
        }
    }
}

/// A few small cases of every operation: what `make miri` runs of this file.
#[test]
fn small() {
    check::<F32, F32>(Matrix { rows: 9, cols: 35 }, Matrix { rows: 4, cols: 2 }, 3, &[1, 5]);
    check::<BF16, BF16>(Matrix { rows: 9, cols: 35 }, Matrix { rows: 1, cols: 16 }, 2, &[1, 5]);
}
