//! Row offsets from elsewhere, with any mask and any number of values: nothing is read or written
//! out of bounds, and what is no error is the result of one element at a time.

#![no_main]

use fastsparse_core::matrix::{check_padding, popcount};
use fastsparse_core::pack;
use fastsparse_core::unpack::check_parts;
use fastsparse_fuzz::Parts;
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = run(&mut Unstructured::new(data));
});

fn run(bytes: &mut Unstructured<'_>) -> Result<()> {
    // From the front, where there may be none left after a long mask.
    let changes = (0..bytes.int_in_range(0..=3)?)
        .map(|_| Ok((bytes.arbitrary::<u8>()?, bytes.arbitrary::<bool>()?, bytes.arbitrary::<i64>()?)))
        .collect::<Result<Vec<_>>>()?;
    let parts = Parts::take(bytes)?;
    let mut offsets = vec![0; parts.shape.rows + 1];
    pack::offsets(parts.shape, &parts.mask, parts.exec, &mut offsets);
    for (row, near, value) in changes {
        let row = row as usize % offsets.len();
        offsets[row] = if near { offsets[row].wrapping_add(value % 4) } else { value };
    }
    let Parts { shape, ref mask, ref values, .. } = parts;
    let sound = check_parts(values.len(), shape, mask, &offsets);
    let whole = check_padding(shape, mask).is_ok() && popcount(mask) == values.len();
    let dense = if whole { parts.dense() } else { vec![7; shape.len()] };
    // Offsets that no part begins at need not be looked at: then the result is that of the mask.
    match parts.through(&offsets, &dense) {
        Ok(found) if whole => assert_eq!(found, (dense, parts.values)),
        Ok(_) => assert!(shape.is_empty() || check_padding(shape, mask).is_err()),
        Err(error) => assert!(sound.is_err(), "{error}"),
    }
    Ok(())
}
