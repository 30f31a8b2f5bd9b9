//! Unpacking: the kept elements back in place, zeros between them.
//!
//! Contract. `mask` and `offsets` are those of `shape`, `values` the kept elements. Whatever they
//! hold, nothing is read or written out of bounds. What is written never depends on `offsets`:
//! where they disagree with `mask` the result is an error, and the content of `out` unspecified, or
//! the row in question needed no offset. Slices of a wrong length are a bug of the caller and
//! panic.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

use crate::element::Word;
use crate::error::Result;
use crate::isa::Isa;
use crate::matrix::Matrix;
use crate::parallel::{Exec, SharedMut};
use crate::partition::Packed;
use crate::vector::streams;

pub use crate::partition::{RowOffsets, check_parts};

/// Writes the dense tensor to `out`.
pub fn unpack<W: Word>(
    values: &[W],
    shape: Matrix,
    mask: &[u8],
    offsets: RowOffsets<'_>,
    exec: Exec,
    out: &mut [W],
) -> Result<()> {
    assert!(out.len() == shape.len() && offsets.kept() == values.len());
    let bytes = size_of_val(out);
    let out = SharedMut::new(out);
    let packed = Packed { shape, mask, offsets };
    packed.each(W::BYTES, exec, |part, range| {
        // SAFETY: the elements of distinct parts are disjoint.
        let out = unsafe { out.slice(part.elements.start, part.elements.len()) };
        let stream = streams(bytes, part.cols * W::BYTES);
        rows(exec.isa, &values[range.clone()], part.cols, &mask[part.mask], out, stream) == Some(range.len())
    })
}

/// Unpacks whole rows of `cols` > 0 columns on this thread, past the caches if `stream`, and
/// returns how many values they took; `None` where there are not enough.
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
