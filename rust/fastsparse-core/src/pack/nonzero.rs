//! Packing what is not zero, in one pass over the weights.
//!
//! ```text
//! for each part of the matrix, in order but on several threads:
//!     mask = weights ≠ 0;  count it            the weights come from memory
//!     wait for the part before;     take the next `count` places of the values
//!     pack the part            the weights come from the second-level cache
//! ```
//!
//! One thread has nobody to wait for: it packs a part chunk by chunk, while the weights are in the
//! first-level cache.
//!
//! How many there are is known at the end only, so `values` has room for all: memory that is never
//! written costs nothing but addresses.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::rows;
use crate::element::{Element, Word};
use crate::matrix::{Matrix, popcount};
use crate::parallel::{Exec, SharedMut};
use crate::partition;
use crate::select::{Cut, Found, Query, ScanWord};

/// Elements of a chunk, about, a multiple of 64: the first-level cache holds them and what they are
/// packed to.
const CHUNK: usize = 1 << 11;

/// Writes the mask, the row offsets and the values of what is `!= 0`: NaN is kept, −0.0 is not.
/// `values` is as long as `weights`. Returns how many values were written.
pub fn pack_nonzero<E: Element<Bits: ScanWord>>(
    weights: &[E::Bits],
    shape: Matrix,
    exec: Exec,
    mask: &mut [u8],
    offsets: &mut [i64],
    values: &mut [E::Bits],
) -> usize {
    assert!(weights.len() == shape.len() && values.len() == shape.len());
    assert!(mask.len() == shape.mask_bytes() && offsets.len() == shape.rows + 1);
    offsets.fill(0);
    let (mask, values) = (SharedMut::new(mask), SharedMut::new(values));
    let row_ends = SharedMut::new(&mut offsets[1..]);
    let (turn, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let alone = partition::sized(exec, shape, E::Bits::BYTES).threads == 1;
    partition::in_order(shape, E::Bits::BYTES, exec, |i, part, rows_ended| {
        let data = &weights[part.elements];
        // SAFETY: the mask bytes of distinct parts are disjoint.
        let mask = unsafe { mask.slice(part.mask.start, part.mask.len()) };
        let count = if alone {
            // SAFETY: there is no other thread; no more were kept before than there were elements.
            let values = unsafe { values.slice(taken.load(Ordering::Relaxed), data.len()) };
            scan_and_pack::<E>(exec, data, part.cols, mask, values)
        } else {
            scan::<E>(exec, data, part.cols, mask);
            popcount(mask)
        };
        while turn.load(Ordering::Acquire) != i {
            // The part before was begun before this one.
            std::thread::yield_now();
        }
        let first = taken.load(Ordering::Relaxed);
        taken.store(first + count, Ordering::Relaxed);
        turn.store(i + 1, Ordering::Release);
        // SAFETY: each row ends in one part.
        let ends = unsafe { row_ends.slice(rows_ended.start, rows_ended.len()) };
        let row_bytes = mask.len() / ends.len().max(1);
        let mut end = first;
        for (end_of_row, bits) in ends.iter_mut().zip(mask.chunks(row_bytes.max(1))) {
            end += popcount(bits);
            *end_of_row = end as i64;
        }
        if !alone {
            // SAFETY: every part has taken places of its own.
            let values = unsafe { values.slice(first, count) };
            let packed = rows(exec.isa, data, part.cols, mask, values);
            debug_assert!(packed == Some(count));
        }
    });
    taken.into_inner()
}

/// Writes the mask and the row offsets of what is `!= 0`, as [`pack_nonzero`], without the values.
/// Returns their number.
pub fn mask_nonzero<E: Element<Bits: ScanWord>>(
    weights: &[E::Bits],
    shape: Matrix,
    exec: Exec,
    mask: &mut [u8],
    offsets: &mut [i64],
) -> usize {
    assert!(weights.len() == shape.len() && mask.len() == shape.mask_bytes());
    let shared = SharedMut::new(mask);
    partition::each(shape, E::Bits::BYTES, exec, |part| {
        // SAFETY: the mask bytes of distinct parts are disjoint.
        let mask = unsafe { shared.slice(part.mask.start, part.mask.len()) };
        scan::<E>(exec, &weights[part.elements], part.cols, mask);
    });
    super::offsets(shape, mask, exec, offsets)
}

/// [`scan`] and [`rows`] in turns, a chunk at a time; `values` has room for all. Returns how many
/// were kept.
fn scan_and_pack<E: Element<Bits: ScanWord>>(
    exec: Exec,
    data: &[E::Bits],
    cols: usize,
    mask: &mut [u8],
    values: &mut [E::Bits],
) -> usize {
    // Some short rows at a time, or parts of a long one.
    let some = (CHUNK / cols).max(1);
    let (part, part_bytes) = if cols > CHUNK { (CHUNK, CHUNK / 8) } else { (some * cols, some * cols.div_ceil(8)) };
    let mut count = 0;
    for (data, mask) in data.chunks(some * cols).zip(mask.chunks_mut(some * cols.div_ceil(8))) {
        for (data, mask) in data.chunks(part).zip(mask.chunks_mut(part_bytes)) {
            let cols = cols.min(data.len());
            scan::<E>(exec, data, cols, mask);
            count += rows(exec.isa, data, cols, mask, &mut values[count..]).expect("there is room for all");
        }
    }
    count
}

/// Writes the mask of what is not zero in whole rows.
fn scan<E: Element<Bits: ScanWord>>(exec: Exec, data: &[E::Bits], cols: usize, mask: &mut [u8]) {
    // Where magnitudes are more than bits under a mask, zero is zero in every bit.
    let and = E::MAGNITUDE_MASK.unwrap_or(E::Bits::MAX);
    let query = Query::cut(Cut { at: E::Bits::default(), ties: false });
    for (data, mask) in data.chunks_exact(cols).zip(mask.chunks_exact_mut(cols.div_ceil(8))) {
        for (data, bits) in data.chunks(CHUNK).zip(mask.chunks_mut(CHUNK / 8)) {
            ScanWord::scan(exec.isa, data, and, &query, 0, bits, &mut Found { positions: &mut [], len: 0 });
        }
    }
}
