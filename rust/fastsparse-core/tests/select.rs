//! Exact selection on every ISA and thread count against a stable sort.

mod common;

use fastsparse_core::element::{BF16, Element, F8E4M3, F8E5M2, F16, F32, F64, I8, U8, Word};
use fastsparse_core::error::Error;
use fastsparse_core::isa::Isa;
use fastsparse_core::keys::{ColumnScale, Magnitude, Ordered, Scaled32, Scaled64};
use fastsparse_core::matrix::Matrix;
use fastsparse_core::parallel::Exec;
use fastsparse_core::select::{self, ScanKeys, ScanWord};
use proptest::prelude::*;

use common::{Random, some};

fn execs() -> impl Iterator<Item = Exec> {
    Isa::available().into_iter().flat_map(|isa| (1..4).map(move |threads| Exec { isa, threads }))
}

/// Bits of the items kept, from their numbers.
fn mask(grid: Matrix, kept: impl IntoIterator<Item = usize>) -> Vec<u8> {
    let mut bits = vec![0; grid.mask_bytes()];
    for at in kept {
        bits[at / grid.cols * grid.row_bytes() + at % grid.cols / 8] |= 1 << (at % grid.cols % 8);
    }
    bits
}

/// The items of `from .. from + len` that a stable sort by number, largest first, puts before the
/// last `zeros`.
fn largest(numbers: &[f64], from: usize, len: usize, zeros: usize) -> impl Iterator<Item = usize> {
    let mut order: Vec<usize> = (from..from + len).collect();
    order.sort_by(|&a, &b| numbers[b].partial_cmp(&numbers[a]).unwrap());
    order.truncate(len - zeros);
    order.into_iter()
}

fn check<K: ScanKeys>(keys: &K, numbers: &[f64], grid: Matrix, zeros: &[usize]) {
    // What was there before must not matter.
    let mut bits = vec![0xa5; grid.mask_bytes()];
    for &zeros in some(zeros, 2) {
        let expected = mask(grid, largest(numbers, 0, grid.len(), zeros));
        for exec in execs() {
            select::smallest(keys, grid, zeros, exec, &mut bits).unwrap();
            assert!(bits == expected, "{grid:?} {zeros} {exec:?}");
        }
        if zeros <= grid.cols {
            let rows = (0..grid.rows).flat_map(|row| largest(numbers, row * grid.cols, grid.cols, zeros));
            let expected = mask(grid, rows);
            for exec in execs() {
                select::smallest_per_row(keys, grid, zeros, exec, &mut bits).unwrap();
                assert!(bits == expected, "per row {grid:?} {zeros} {exec:?}");
            }
        }
    }
    let above_zero = mask(grid, (0..grid.len()).filter(|&i| numbers[i] > 0.0));
    let value = numbers.get(numbers.len() / 2).copied().unwrap_or(0.0);
    let above_value = mask(grid, (0..grid.len()).filter(|&i| numbers[i] > value));
    for exec in execs() {
        select::above_value(keys, grid, 0.0, exec, &mut bits).unwrap();
        assert!(bits == above_zero, "above 0 {grid:?} {exec:?}");
        select::above_value(keys, grid, value, exec, &mut bits).unwrap();
        assert!(bits == above_value, "above {value} {grid:?} {exec:?}");
    }
}

/// Kinds of data: bits that make no NaN.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Any,
    Few,
    Equal,
    MostlyZero,
    Sorted,
}

const KINDS: [Kind; 5] = [Kind::Any, Kind::Few, Kind::Equal, Kind::MostlyZero, Kind::Sorted];

fn data<E: Element<Bits: ScanWord>>(len: usize, kind: Kind) -> Vec<E::Bits> {
    let mut random = Random(len as u64);
    let mut any = || loop {
        let bits = E::Bits::from_u64(random.next() >> 3);
        if E::magnitude(bits) <= E::MAX_MAGNITUDE {
            return bits;
        }
    };
    let pool: Vec<E::Bits> = (0..5).map(|_| any()).collect();
    let mut bits: Vec<E::Bits> = (0..len).map(|_| any()).collect();
    let sign = if E::MAX_ORDERED == E::Bits::MAX { 0 } else { 1 << (E::Bits::BYTES * 8 - 1) };
    for bits in &mut bits {
        let choice = bits.to_u64() as usize;
        match kind {
            Kind::Few => *bits = pool[choice % 5],
            Kind::Equal => *bits = pool[0],
            // Zeros of both signs.
            Kind::MostlyZero if !choice.is_multiple_of(20) => *bits = E::Bits::from_u64([0, 0, sign][choice % 3]),
            Kind::Any | Kind::Sorted | Kind::MostlyZero => {}
        }
    }
    if matches!(kind, Kind::Sorted) {
        bits.sort_by_key(|&bits| E::magnitude(bits));
    }
    bits
}

fn some_zeros(items: usize, cols: usize) -> Vec<usize> {
    let mut zeros =
        vec![0, 1, cols / 2, cols, items / 2, items / 10 * 9, items / 20 * 19, items.saturating_sub(1), items];
    zeros.retain(|&zeros| zeros <= items);
    zeros.sort_unstable();
    zeros.dedup();
    zeros
}

fn every_type(run: impl Fn(&dyn Fn(usize, Kind) -> Box<dyn Case>)) {
    fn of<E: Element<Bits: ScanWord>>(run: &impl Fn(&dyn Fn(usize, Kind) -> Box<dyn Case>)) {
        run(&|len, kind| Box::new(Data::<E>(data::<E>(len, kind))));
    }
    of::<F64>(&run);
    of::<F32>(&run);
    of::<F16>(&run);
    of::<BF16>(&run);
    of::<F8E4M3>(&run);
    of::<F8E5M2>(&run);
    of::<I8>(&run);
    of::<U8>(&run);
}

struct Data<E: Element<Bits: ScanWord>>(Vec<E::Bits>);

trait Case {
    /// Checks |w|, and with `scores` also the signed order, from element `offset` on.
    fn check(&self, grid: Matrix, offset: usize, scores: bool);
}

impl<E: Element<Bits: ScanWord>> Case for Data<E> {
    fn check(&self, grid: Matrix, offset: usize, scores: bool) {
        let bits = &self.0[offset..offset + grid.len()];
        let zeros = some_zeros(grid.len(), grid.cols);
        let numbers: Vec<f64> = bits.iter().map(|&bits| E::to_f64(bits)).collect();
        let magnitudes: Vec<f64> = numbers.iter().map(|x| x.abs()).collect();
        check(&Magnitude::<E>(bits), &magnitudes, grid, &zeros);
        if scores {
            check(&Ordered::<E>(bits), &numbers, grid, &zeros);
        }
    }
}

#[test]
fn lengths_around_every_boundary() {
    every_type(|make| {
        let data = make(2300, Kind::Any);
        let lengths = (0..70).chain([127, 128, 129, 191, 193, 255, 257, 1000, 2047, 2048, 2049]);
        for len in some(lengths, 3) {
            data.check(Matrix { rows: 1, cols: len }, len % 7, len < 70);
        }
    });
}

#[test]
fn grids_whose_rows_end_anywhere() {
    every_type(|make| {
        for kind in KINDS {
            let data = make(9000, kind);
            for (rows, cols) in [(0, 5), (5, 0), (1, 1), (7, 1), (9, 3), (5, 8), (3, 63), (8, 64), (4, 65), (33, 129)] {
                data.check(Matrix { rows, cols }, rows, true);
            }
        }
    });
}

#[test]
fn large_enough_to_be_sampled() {
    every_type(|make| {
        for kind in some(KINDS, 2) {
            let data = make(70_001, kind);
            data.check(Matrix { rows: 1, cols: 70_001 }, 0, false);
            data.check(Matrix { rows: 5, cols: 13_000 }, 1, false);
            data.check(Matrix { rows: 7, cols: 9_999 }, 3, true);
        }
    });
}

#[test]
fn rows_longer_than_a_task() {
    for kind in KINDS {
        Data::<F32>(data::<F32>(240_000, kind)).check(Matrix { rows: 3, cols: 79_997 }, 2, false);
        Data::<BF16>(data::<BF16>(240_000, kind)).check(Matrix { rows: 3, cols: 80_000 }, 0, true);
    }
}

#[test]
fn column_scales() {
    let grid = Matrix { rows: 37, cols: 300 };
    let mut random = Random(7);
    let scale: Vec<f32> = (0..300).map(|_| (random.next() % 1000) as f32 / 37.0).collect();
    let wide: Vec<f64> = scale.iter().map(|&x| x as f64 / 3.0).collect();
    for repeat in [1, 4] {
        let bits: Vec<u16> = (0..grid.len())
            .map(|_| (random.next() % 0xbf00) as u16)
            .map(|b| if b & 0x7fff > 0x7f00 { 0 } else { b })
            .collect();
        let numbers: Vec<f64> = bits
            .iter()
            .enumerate()
            .map(|(i, &bits)| (BF16::to_f64(bits).abs() as f32 * scale[i % 300 / repeat]) as f64)
            .collect();
        let columns = ColumnScale { values: &scale[..300 / repeat], cols: 300, repeat };
        check(&Scaled32::<BF16>(&bits, columns), &numbers, grid, &[0, 17, 150, 5000, 11_100]);
        let doubles: Vec<u64> = numbers.iter().map(|x| (x - 3.0).to_bits()).collect();
        let numbers: Vec<f64> =
            doubles.iter().enumerate().map(|(i, &bits)| f64::from_bits(bits).abs() * wide[i % 300 / repeat]).collect();
        let columns = ColumnScale { values: &wide[..300 / repeat], cols: 300, repeat };
        check(&Scaled64(&doubles, columns), &numbers, grid, &[0, 17, 150, 5000, 11_100]);
    }
}

#[test]
fn the_first_nan_is_named() {
    fn each<E: Element<Bits: ScanWord>>() {
        let nan = E::Bits::from_u64(E::MAX_MAGNITUDE.to_u64() + 1);
        for (rows, cols) in [(1, 10), (1, 5000), (3, 33_000), (50, 1001)] {
            let grid = Matrix { rows, cols };
            let clean = data::<E>(grid.len(), Kind::Any);
            let mut bits = vec![0; grid.mask_bytes()];
            for first in some([0, 1, grid.len() / 2, grid.len() - 1], 3) {
                let mut weights = clean.clone();
                weights[first] = nan;
                weights[grid.len() - 1] = nan;
                let keys = Magnitude::<E>(&weights);
                for exec in execs() {
                    let named = Err(Error::Nan { index: first });
                    for zeros in [0, cols / 2, cols] {
                        assert_eq!(select::smallest(&keys, grid, zeros, exec, &mut bits), named);
                        assert_eq!(select::smallest_per_row(&keys, grid, zeros, exec, &mut bits), named);
                    }
                    assert_eq!(select::above_value(&keys, grid, 0.5, exec, &mut bits), named);
                    assert_eq!(select::nonzero(&keys, grid, exec, &mut bits), named);
                    assert_eq!(select::smallest(&Ordered::<E>(&weights), grid, cols / 2, exec, &mut bits), named);
                }
            }
        }
    }
    each::<F64>();
    each::<F32>();
    each::<F16>();
    each::<BF16>();
    each::<F8E4M3>();
    each::<F8E5M2>();
}

#[test]
fn sparsities_round_half_to_even() {
    for (sparsity, items, zeros) in
        [(0.5, 5, 2), (0.5, 7, 4), (0.1, 25, 2), (0.3, 5, 2), (0.0, 9, 0), (1.0, 9, 9), (0.29, 100, 29)]
    {
        assert_eq!(select::zeros_of(sparsity, items), zeros);
    }
}

/// A few small cases of every operation: what `make miri` runs of this file.
#[test]
fn small() {
    every_type(|make| make(140, Kind::Few).check(Matrix { rows: 2, cols: 65 }, 3, true));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_grid_and_count(
        rows in 0usize..9,
        cols in 0usize..400,
        few in 1u32..1000,
        seed in any::<u64>(),
        share in 0.0f64..=1.0,
    ) {
        let grid = Matrix { rows, cols };
        let mut random = Random(seed);
        let numbers: Vec<f64> = (0..grid.len()).map(|_| (random.next() % few as u64) as f64 * 0.37).collect();
        let bits: Vec<u32> = numbers.iter().map(|&x| (x as f32).to_bits()).collect();
        let zeros = select::zeros_of(share, grid.len());
        check(&Magnitude::<F32>(&bits), &numbers.iter().map(|&x| x as f32 as f64).collect::<Vec<_>>(), grid, &[zeros]);
    }
}
