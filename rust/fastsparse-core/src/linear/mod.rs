//! Linear layers: activations times a packed matrix, without unpacking it to memory.
//!
//! ```text
//! out[b][r] = bias[r] + sum over the kept columns c of row r:  weight[r][c] · x[b][c]
//! ```
//!
//! Contract. Products and sums are float32, `out` is rounded once. What is dropped contributes
//! nothing, whatever x holds. The order of a sum depends on the ISA, the batch, the shape and the
//! mask, never on the threads. `mask` and `offsets` are those of `shape`; whatever they hold,
//! nothing is read or written out of bounds, and where they disagree the result is an error and
//! `out` unspecified. Slices of a wrong length are a bug of the caller and panic.
//!
//! With bfloat16 on both sides AVX-512 may multiply in pairs (`vdpbf16ps`), AMX in tiles
//! (`tdpbf16ps`): where these are used subnormal numbers are zeros.

mod activations;
#[cfg(target_arch = "x86_64")]
mod amx;
pub mod blocks;
mod call;
mod float;
pub mod indexed;
mod int8;
mod real;
mod rows;
mod weights;

pub use float::linear;
/// The choice of a kernel, for tests and measurements. No part of the interface.
#[doc(hidden)]
pub mod choice {
    pub use super::float::linear_by;
    pub use super::float::strategy::{AMX_FROM, Level, Method, Product, Table, table};
}
pub use int8::{Scaled, linear_int8, linear_of_int8};
pub use real::Real;
pub use weights::{Groups, Weights};

use weights::{threads_for, work};
