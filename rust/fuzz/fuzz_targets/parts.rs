//! Values, mask and pattern from elsewhere, as `from_parts` checks them: what passes unpacks, packs
//! again, obeys its pattern, and comes back from column indices.

#![no_main]

use fastsparse_core::block::{self, Blocks};
use fastsparse_core::linear::indexed::{self, Column, Indexed};
use fastsparse_core::matrix::{Matrix, check_padding};
use fastsparse_core::nm::{self, Axis, Groups, Tail};
use fastsparse_core::pack;
use fastsparse_fuzz::Parts;
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = run(&mut Unstructured::new(data));
});

fn run(bytes: &mut Unstructured<'_>) -> Result<()> {
    let of = bytes.int_in_range(1..=70)?;
    let tail = *bytes.choose(&[Tail::Proportional, Tail::Keep, Tail::Error])?;
    let groups = Groups { zeros: bytes.int_in_range(0..=of)?, of, tail };
    let (tall, wide, zeros) = (bytes.int_in_range(1..=9)?, bytes.int_in_range(1..=70)?, bytes.int_in_range(0..=9)?);
    let parts = Parts::take(bytes)?;
    let Parts { exec, shape, ref mask, ref values } = parts;
    let mut offsets = vec![0; shape.rows + 1];
    let kept = pack::offsets(shape, mask, exec, &mut offsets);
    if check_padding(shape, mask).is_err() || kept != values.len() {
        return Ok(());
    }
    let dense = parts.dense();
    assert_eq!(parts.through(&offsets, &dense).unwrap(), (dense, values.clone()));

    let across = Axis { outer: shape.rows, len: shape.cols, inner: 1 };
    let obeys = nm::verify(shape, across, groups, mask, exec).is_ok();
    assert_eq!(obeys, groups_hold(&parts, groups), "{groups:?}");
    let down = Axis { outer: 1, len: shape.rows, inner: shape.cols };
    let _ = nm::verify(shape, down, groups, mask, exec);
    let _ = block::verify(shape, Blocks { axis: down, tall, wide }, zeros, mask, exec);
    through_indices::<u8>(&parts, &offsets);
    through_indices::<u16>(&parts, &offsets);
    Ok(())
}

/// Whether every group of every row has its zeros, one bit at a time.
fn groups_hold(parts: &Parts, groups: Groups) -> bool {
    let Matrix { rows, cols } = parts.shape;
    let bit = |row, col: usize| parts.mask[row * parts.shape.row_bytes() + col / 8] >> (col % 8) & 1 == 0;
    if groups.tail == Tail::Error && !cols.is_multiple_of(groups.of) {
        return false;
    }
    (0..rows).all(|row| {
        (0..cols).step_by(groups.of).all(|first| {
            let columns = first..cols.min(first + groups.of);
            let length = columns.len();
            columns.filter(|&col| bit(row, col)).count() == groups.zeros_in(length)
        })
    })
}

/// To the layout of column indices and back.
fn through_indices<C: Column + Default>(parts: &Parts, offsets: &[i64]) {
    let Parts { exec, shape, ref mask, ref values } = *parts;
    let grid = indexed::grid::<C>(shape);
    let (mut steps, mut starts) = (vec![0; grid.len()], vec![0; grid.rows + 1]);
    indexed::count::<C>(shape, mask, exec, &mut steps, &mut starts);
    let slots = starts[grid.rows] as usize * C::SLOTS;
    let (mut laid, mut columns) = (vec![0u16; slots], vec![C::default(); slots]);
    let weights = parts.weights(values, offsets);
    indexed::index(weights, &steps, &starts, exec, &mut laid, &mut columns).unwrap();
    let (mut back, mut bits) = (vec![0; values.len()], vec![0xff; mask.len()]);
    let laid = Indexed { shape, values: &laid, columns: &columns, steps: &steps, starts: &starts };
    indexed::unindex(laid, &mut back, &mut bits).unwrap();
    assert_eq!((&back, &bits), (values, mask));
}
