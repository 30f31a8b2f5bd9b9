//! Masks as arrays of a byte an element, and back.
//!
//! Contract. In an array any byte other than 0 is true; true is written as 1. Padding bits are
//! written as 0 and not looked at. Slices of a wrong length are a bug of the caller and panic.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod scalar;

use crate::matrix::Matrix;
use crate::parallel::{Exec, SharedMut};
use crate::partition;
use crate::vector::streams;

/// Writes the mask of `shape` that has the bits of the elements that are true.
pub fn from_bool(shape: Matrix, elements: &[u8], exec: Exec, bits: &mut [u8]) {
    assert!(elements.len() == shape.len() && bits.len() == shape.mask_bytes());
    let bits = SharedMut::new(bits);
    partition::each(shape, 1, exec, |part| {
        let elements = &elements[part.elements];
        // SAFETY: the mask bytes of distinct parts are disjoint.
        let bits = unsafe { bits.slice(part.mask.start, part.mask.len()) };
        match exec.isa.avx2() {
            // SAFETY: the token proves the features.
            #[cfg(target_arch = "x86_64")]
            Some(token) => unsafe { avx2::pack_rows(token, elements, part.cols, bits) },
            _ => scalar::pack_rows(elements, part.cols, bits),
        }
    });
}

/// Writes 1 for each bit of the mask and 0 elsewhere.
pub fn to_bool(shape: Matrix, bits: &[u8], exec: Exec, elements: &mut [u8]) {
    assert!(elements.len() == shape.len() && bits.len() == shape.mask_bytes());
    let bytes = elements.len();
    let elements = SharedMut::new(elements);
    partition::each(shape, 1, exec, |part| {
        let bits = &bits[part.mask];
        // SAFETY: the elements of distinct parts are disjoint.
        let elements = unsafe { elements.slice(part.elements.start, part.elements.len()) };
        match (exec.isa.avx2(), streams(bytes, part.cols)) {
            // SAFETY: the token proves the features.
            #[cfg(target_arch = "x86_64")]
            (Some(token), true) => unsafe { avx2::unpack_rows::<true>(token, bits, part.cols, elements) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (Some(token), false) => unsafe { avx2::unpack_rows::<false>(token, bits, part.cols, elements) },
            _ => scalar::unpack_rows(bits, part.cols, elements),
        }
    });
}
