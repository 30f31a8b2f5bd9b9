//! Column indices: back to the mask, and products on every ISA against float64.

mod common;

use fastsparse_core::element::{BF16, F16, F32, Word};
use fastsparse_core::error::Error;
use fastsparse_core::isa::Isa;
use fastsparse_core::linear::Real;
use fastsparse_core::linear::indexed::{Column, Indexed, count, grid, index, linear_indexed, unindex};
use fastsparse_core::matrix::Matrix;
use fastsparse_core::parallel::Exec;

use common::{Packed, Random};

/// A packed matrix by column indices.
struct Laid<W, C> {
    shape: Matrix,
    values: Vec<W>,
    columns: Vec<C>,
    steps: Vec<u16>,
    starts: Vec<i64>,
}

impl<W: Word> Packed<W> {
    fn laid<C: Column>(&self, exec: Exec) -> Laid<W, C> {
        let grid = grid::<C>(self.shape);
        let (mut steps, mut starts) = (vec![0; grid.len()], vec![0; grid.rows + 1]);
        count::<C>(self.shape, &self.mask, exec, &mut steps, &mut starts);
        let len = starts[grid.rows] as usize * C::SLOTS;
        let (mut values, mut columns) = (vec![W::default(); len], vec![C::default(); len]);
        index(self.weights(), &steps, &starts, exec, &mut values, &mut columns).unwrap();
        Laid { shape: self.shape, values, columns, steps, starts }
    }
}

impl<W: Word, C: Column> Laid<W, C> {
    fn weights(&self) -> Indexed<'_, W, C> {
        let Laid { shape, values, columns, steps, starts } = self;
        Indexed { shape: *shape, values, columns, steps, starts }
    }
}

fn check<E: Real, X: Real>(shape: Matrix, keep: u64, batch: usize) {
    check_layout::<E, X, u8>(shape, keep, batch);
    check_layout::<E, X, u16>(shape, keep, batch);
}

fn check_layout<E: Real, X: Real, C: Column>(shape: Matrix, keep: u64, batch: usize) {
    let mut random = Random(keep + 7);
    let packed = Packed::random::<E>(shape, keep, &mut random);
    let x = random.numbers::<X>(batch * shape.cols);
    let bias: Vec<f32> = (0..shape.rows).map(|row| row as f32).collect();
    for isa in Isa::available() {
        let laid = packed.laid::<C>(Exec { isa, threads: 2 });
        let (mut values, mut mask) = (vec![E::Bits::default(); packed.values.len()], vec![0xff; packed.mask.len()]);
        unindex(laid.weights(), &mut values, &mut mask).unwrap();
        assert!(values == packed.values && mask == packed.mask, "{shape:?}");
        let mut out = vec![X::Bits::default(); batch * shape.rows];
        linear_indexed::<E, X, C>(laid.weights(), &x, Some(&bias), Exec::single(isa), &mut out).unwrap();
        // A slot has one column in sixteen at least, or all that are kept.
        packed.check::<E, X>(&x, Some(&bias), shape.cols + 6, &out, &format!("{isa:?} batch {batch}"));
        let mut again = vec![X::Bits::default(); batch * shape.rows];
        linear_indexed::<E, X, C>(laid.weights(), &x, Some(&bias), Exec { isa, threads: 3 }, &mut again).unwrap();
        assert!(again == out, "{isa:?} {shape:?}");
    }
}

#[test]
fn shapes_and_densities() {
    for cols in [0, 1, 7, 63, 254, 255, 256, 510, 511, 1021] {
        for rows in [0, 1, 15, 16, 17, 33] {
            for keep in [0, 1, 6, 32, 64] {
                let shape = Matrix { rows, cols };
                check::<F32, F32>(shape, keep, 2);
                check::<BF16, BF16>(shape, keep, 1);
                check::<BF16, F32>(shape, keep, 1);
                check::<F16, F32>(shape, keep, 1);
                check::<F16, F16>(shape, keep, 3);
            }
        }
    }
}

/// Rows of more than one block of columns of either type.
#[test]
fn long_rows() {
    for cols in [8191, 8192, 20_000] {
        check::<F32, F32>(Matrix { rows: 3, cols }, 5, 2);
        check::<BF16, BF16>(Matrix { rows: 18, cols }, 60, 1);
    }
}

#[test]
fn layouts_that_disagree() {
    disagree::<u8>();
    disagree::<u16>();
}

fn disagree<C: Column>() {
    let packed = Packed::random::<F32>(Matrix { rows: 40, cols: 700 }, 30, &mut Random(1));
    for isa in Isa::available() {
        let exec = Exec::single(isa);
        let good = packed.laid::<C>(exec);
        let refuses = |weights: Indexed<'_, u32, C>| {
            let error = linear_indexed::<F32, F32, C>(weights, &[0; 700], None, exec, &mut [0; 40]).unwrap_err();
            assert!(matches!(error, Error::Changed));
            let (mut values, mut mask) = (packed.values.clone(), packed.mask.clone());
            unindex(weights, &mut values, &mut mask).unwrap_err();
        };
        let more: Vec<u16> = good.steps.iter().map(|steps| steps + 1).collect();
        refuses(Indexed { steps: &more, ..good.weights() });
        for wrong in [i64::MIN, -1, i64::MAX] {
            let starts: Vec<i64> = good.starts.iter().map(|start| start.wrapping_add(wrong)).collect();
            refuses(Indexed { starts: &starts, ..good.weights() });
        }
        // Any columns are within bounds for the product, not for the mask.
        for column in [C::from_u64(254), C::MAX] {
            let columns = vec![column; good.columns.len()];
            let weights = Indexed { columns: &columns, ..good.weights() };
            linear_indexed::<F32, F32, C>(weights, &[0; 700], None, exec, &mut [0; 40]).unwrap();
            let (mut values, mut mask) = (packed.values.clone(), packed.mask.clone());
            unindex(weights, &mut values, &mut mask).unwrap_err();
        }
    }
}

/// Groups that would overlap, begin before the values or end beyond them are refused before
/// anything is written.
#[test]
fn starts_that_do_not_ascend() {
    let exec = Exec { isa: Isa::detect(), threads: 2 };
    let packed = Packed::random::<F32>(Matrix { rows: 40, cols: 300 }, 20, &mut Random(3));
    let laid = packed.laid::<u8>(exec);
    for (at, value) in [(1, 0), (1, i64::MAX), (1, -1), (0, 1), (3, laid.starts[3] + 1), (3, laid.starts[3] - 1)] {
        let mut starts = laid.starts.clone();
        starts[at] = value;
        if (at, value) == (1, 0) {
            starts[2] = 0;
            starts[1] = laid.starts[3];
        }
        let (mut values, mut columns) = (laid.values.clone(), laid.columns.clone());
        let written = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            index(packed.weights(), &laid.steps, &starts, exec, &mut values, &mut columns)
        }));
        assert!(written.is_err(), "{at} {value}");
        assert!(values == laid.values && columns == laid.columns);
    }
}

/// A few small cases of every operation: what `make miri` runs of this file.
#[test]
fn small() {
    check::<F32, F32>(Matrix { rows: 17, cols: 67 }, 16, 2);
    check::<BF16, BF16>(Matrix { rows: 17, cols: 67 }, 16, 1);
}
