//! Unpacking: the kept elements back in place, zeros between them.
//!
//! Contract. `mask` and `offsets` are those of `shape`, `values` the kept elements. Whatever they hold, nothing is read or written
//! out of bounds. What is written never depends on `offsets`: where they disagree with `mask` the result is an error, and the
//! content of `out` unspecified, or the row in question needed no offset. Slices of a wrong length are a bug of the caller and
//! panic.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

use crate::element::Word;
use crate::error::{Error, Result};
use crate::isa::Isa;
use crate::matrix::{Matrix, popcount};
use crate::parallel::{Exec, SharedMut};
use crate::stretch::Packed;
use crate::vector::streams;

/// Writes the dense tensor to `out`.
pub fn unpack<W: Word>(
    values: &[W],
    shape: Matrix,
    mask: &[u8],
    offsets: &[i64],
    exec: Exec,
    out: &mut [W],
) -> Result<()> {
    assert!(out.len() == shape.len());
    let bytes = size_of_val(out);
    let out = SharedMut::new(out);
    let packed = Packed { shape, mask, offsets, kept: values.len() };
    packed.each(W::BYTES, exec, |stretch, range| {
        // SAFETY: the elements of distinct stretches are disjoint.
        let out = unsafe { out.slice(stretch.elements.start, stretch.elements.len()) };
        let stream = streams(bytes, stretch.cols * W::BYTES);
        rows(exec.isa, &values[range.clone()], stretch.cols, &mask[stretch.mask], out, stream) == Some(range.len())
    })
}

/// Unpacks whole rows of `cols` > 0 columns on this thread, past the caches if `stream`, and returns how many values they took;
/// `None` where there are not enough.
fn rows<W: Word>(isa: Isa, values: &[W], cols: usize, mask: &[u8], out: &mut [W], stream: bool) -> Option<usize> {
    match (isa, stream) {
        // SAFETY: the token proves the features.
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512(token), true) => unsafe { avx512::rows::<W, true>(token, values, cols, mask, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512(token), false) => unsafe { avx512::rows::<W, false>(token, values, cols, mask, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2(token), true) => unsafe { avx2::rows::<W, true>(token, values, cols, mask, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2(token), false) => unsafe { avx2::rows::<W, false>(token, values, cols, mask, out) },
        _ => scalar::rows(values, cols, mask, out),
    }
}

/// Checks the parts of a packed tensor against each other. `offsets` are the `rows + 1` row offsets.
pub fn check_parts(values: usize, shape: Matrix, mask: &[u8], offsets: &[i64]) -> Result<()> {
    let (row_bytes, padding) = (shape.row_bytes(), !shape.last_byte());
    let mut total = 0usize;
    for row in 0..shape.rows {
        let bits = &mask[row * row_bytes..(row + 1) * row_bytes];
        if bits.last().is_some_and(|last| last & padding != 0) {
            return Err(Error::Padding { row });
        }
        let found = popcount(bits);
        let expected = offsets[row + 1].wrapping_sub(offsets[row]);
        if offsets[row] != total as i64 || expected != found as i64 {
            return Err(Error::RowCount { row, found, expected: expected.max(0) as usize });
        }
        total += found;
    }
    if total != values {
        return Err(Error::ValueCount { found: total, expected: values });
    }
    Ok(())
}
