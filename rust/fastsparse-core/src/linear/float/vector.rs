//! Vectors of float32, what kernels share that do without a mask.

use crate::isa::Kernel;
use crate::linear::Real;

/// Vectors of float32.
pub(in crate::linear) trait FloatVector: Copy + Send + Sync {
    /// `LANES` numbers.
    type Vector: Copy;
    /// How many.
    const LANES: usize;
    /// Zeros.
    fn zero(self) -> Self::Vector;
    /// A number in all lanes.
    fn splat(self, number: f32) -> Self::Vector;
    /// Loads a vector.
    ///
    /// # Safety
    /// `from` is valid for reading `LANES` numbers.
    unsafe fn load(self, from: *const f32) -> Self::Vector;
    /// Stores a vector.
    ///
    /// # Safety
    /// `to` is valid for writing `LANES` numbers.
    unsafe fn store(self, to: *mut f32, vector: Self::Vector);
    /// Weights as float32.
    ///
    /// # Safety
    /// `from` is valid for reading `LANES` elements.
    unsafe fn widen<E: Real>(self, from: *const E::Bits) -> Self::Vector;
    /// Writes `(first + i) * scale` for each set bit `i` of the word, and something behind them. Returns the number of bits.
    ///
    /// # Safety
    /// `to` is valid for writing that many numbers and eight.
    unsafe fn set_bit_offsets(self, word: u64, first: u16, scale: u16, to: *mut u16) -> usize;
    /// `sums + w · x`.
    fn multiply_add(self, sums: Self::Vector, w: Self::Vector, x: Self::Vector) -> Self::Vector;
    /// `a + b`.
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// Runs a kernel, compiled for these vectors.
    fn run<K: Kernel>(self, kernel: K) -> K::Output;
}
