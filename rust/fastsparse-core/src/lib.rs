//! The kernels of fastsparse: selecting what to prune, packing what is kept, unpacking it,
//! computing with it.
//!
//! Pure functions over slices: no Python, no environment, no files. The caller detects the
//! instruction set once ([`isa::Isa::detect`]) and hands it down with the number of threads in an
//! [`parallel::Exec`].

pub mod block;
mod boolean;
pub mod calibration;
pub mod element;
pub mod energy;
pub mod error;
pub mod histogram;
pub mod isa;
pub mod keys;
pub mod linear;
pub mod matrix;
mod memory;
pub mod nm;
pub mod openmp;
pub mod pack;
pub mod parallel;
mod partition;
pub mod select;
pub mod sweep;
pub mod unpack;
mod vector;

/// How many cases the tests take.
#[cfg(test)]
#[path = "../tests/common/cases.rs"]
mod cases;
