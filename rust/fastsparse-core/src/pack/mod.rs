//! Packing: the kept elements, row after row.
//!
//! Contract. `mask` is the mask of `shape` with padding bits 0, `offsets` its exclusive prefix sum
//! ([`offsets`]). `pack` writes the elements whose bit is set to `values`, in order. Whatever
//! `mask` and `offsets` hold, nothing is read or written out of bounds. What is written never
//! depends on `offsets`: where they disagree with `mask` the result is an error, or the row in
//! question needed no offset. Slices of a wrong length are a bug of the caller and panic.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod nonzero;
mod scalar;

use crate::element::Word;
use crate::error::Result;
use crate::isa::Isa;
use crate::matrix::{COUNT_BYTES, Matrix, popcount};
use crate::parallel::{Exec, SharedMut, run_chunks};
use crate::partition::{self, Packed, RowOffsets};
use crate::vector::streams;
pub use nonzero::{mask_nonzero, pack_nonzero};

/// Writes the `rows + 1` row offsets of `mask` and returns the number of bits set.
pub fn offsets(shape: Matrix, mask: &[u8], exec: Exec, offsets: &mut [i64]) -> usize {
    assert!(mask.len() == shape.mask_bytes() && offsets.len() == shape.rows + 1);
    offsets.fill(0);
    if shape.is_empty() {
        return 0;
    }
    let row_bytes = shape.row_bytes();
    let exec = exec.for_work(mask.len(), COUNT_BYTES);
    let rows = (COUNT_BYTES / row_bytes).max(1);
    run_chunks(exec.threads, &mut offsets[1..], rows, |i, counts| {
        for (count, row) in counts.iter_mut().zip(mask[i * rows * row_bytes..].chunks_exact(row_bytes)) {
            *count = popcount(row) as i64;
        }
    });
    let mut total = 0;
    for offset in offsets {
        total += *offset;
        *offset = total;
    }
    total as usize
}

/// Writes the kept elements of `weights` to `values`.
pub fn pack<W: Word>(
    weights: &[W],
    shape: Matrix,
    mask: &[u8],
    offsets: RowOffsets<'_>,
    exec: Exec,
    values: &mut [W],
) -> Result<()> {
    assert!(weights.len() == shape.len() && offsets.kept() == values.len());
    let values = SharedMut::new(values);
    Packed { shape, mask, offsets }.each(W::BYTES, exec, |part, range| {
        // SAFETY: the ranges of calls at the same time are disjoint, as `each` promises.
        let values = unsafe { values.slice(range.start, range.len()) };
        rows(exec.isa, &weights[part.elements], part.cols, &mask[part.mask], values) == Some(values.len())
    })
}

/// Packs whole rows of `cols` > 0 columns on this thread and returns how many elements were kept;
/// `None` where `values` is too short for them.
pub fn rows<W: Word>(isa: Isa, weights: &[W], cols: usize, mask: &[u8], values: &mut [W]) -> Option<usize> {
    match isa {
        // SAFETY: the token proves the features.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(token) => unsafe { avx512::rows(token, weights, cols, mask, values) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(token) => unsafe { avx2::rows(token, weights, cols, mask, values) },
        _ => scalar::rows(weights, cols, mask, values),
    }
}

/// Writes `weights` with zeros where the mask has none to `out`.
pub fn apply_mask<W: Word>(weights: &[W], shape: Matrix, mask: &[u8], exec: Exec, out: &mut [W]) {
    assert!(weights.len() == shape.len());
    apply(Some(weights), shape, mask, exec, out);
}

/// Zeroes the elements of `weights` whose bit is not set.
pub fn apply_mask_in_place<W: Word>(weights: &mut [W], shape: Matrix, mask: &[u8], exec: Exec) {
    apply(None, shape, mask, exec, weights);
}

fn apply<W: Word>(from: Option<&[W]>, shape: Matrix, mask: &[u8], exec: Exec, to: &mut [W]) {
    assert!(to.len() == shape.len() && mask.len() == shape.mask_bytes());
    let bytes = size_of_val(to);
    let to = SharedMut::new(to);
    partition::each(shape, W::BYTES, exec, |part| {
        // SAFETY: the elements of distinct parts are disjoint.
        let to = unsafe { to.slice(part.elements.start, part.elements.len()) };
        let from = from.map(|from| &from[part.elements]);
        // In place the lines are in the caches already.
        let stream = from.is_some() && streams(bytes, part.cols * W::BYTES);
        apply_rows(exec.isa, from, part.cols, &mask[part.mask], to, stream);
    });
}

/// [`apply`] to whole rows on this thread; from `to` itself where `from` is none.
fn apply_rows<W: Word>(isa: Isa, from: Option<&[W]>, cols: usize, mask: &[u8], to: &mut [W], stream: bool) {
    match (isa, stream) {
        // SAFETY: the token proves the features.
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512(token), true) => unsafe { avx512::apply_rows::<W, true>(token, from, cols, mask, to) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512(token), false) => unsafe { avx512::apply_rows::<W, false>(token, from, cols, mask, to) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2(token), true) => unsafe { avx2::apply_rows::<W, true>(token, from, cols, mask, to) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2(token), false) => unsafe { avx2::apply_rows::<W, false>(token, from, cols, mask, to) },
        _ => scalar::apply_rows(from, cols, mask, to),
    }
}
