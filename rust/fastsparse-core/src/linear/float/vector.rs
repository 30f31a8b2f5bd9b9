//! Vectors of float32, what kernels share that do without a mask.

use crate::isa::Kernel;
use crate::linear::Real;
use crate::linear::rows::fold;

/// Vectors of float32.
pub(in crate::linear) trait FloatVector: Copy + Send + Sync {
    /// `LANES` numbers.
    type Vector: Copy + Send;
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
    /// `sums + w · x`.
    fn multiply_add(self, sums: Self::Vector, w: Self::Vector, x: Self::Vector) -> Self::Vector;
    /// `a + b`.
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// The sum of the lanes, upper half onto lower half.
    fn total(self, vector: Self::Vector) -> f32;
    /// Those of four vectors, to the same bits.
    #[inline(always)]
    fn totals(self, vectors: [Self::Vector; 4]) -> [f32; 4] {
        [self.total(vectors[0]), self.total(vectors[1]), self.total(vectors[2]), self.total(vectors[3])]
    }
    /// Runs a kernel, compiled for these vectors.
    fn run<K: Kernel>(self, kernel: K) -> K::Output;
}

/// What multiplying kept weights alone needs beside them.
#[cfg(target_arch = "x86_64")]
pub(super) trait SetBits: FloatVector {
    /// Writes `(first + i) * scale` for each set bit `i` of the word, and something after them.
    /// Returns the number of bits.
    ///
    /// # Safety
    /// `to` is valid for writing that many numbers and eight.
    unsafe fn set_bit_offsets(self, word: u64, first: u16, scale: u16, to: *mut u16) -> usize;
}

/// Eight numbers in plain Rust, which the compiler makes the best of.
#[derive(Clone, Copy)]
pub(in crate::linear) struct Plain;

impl FloatVector for Plain {
    type Vector = [f32; 8];
    const LANES: usize = 8;

    #[inline(always)]
    fn zero(self) -> [f32; 8] {
        [0.0; 8]
    }

    #[inline(always)]
    fn splat(self, number: f32) -> [f32; 8] {
        [number; 8]
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> [f32; 8] {
        // SAFETY: eight numbers are readable (the caller's promise).
        unsafe { from.cast::<[f32; 8]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, vector: [f32; 8]) {
        // SAFETY: eight numbers are writable (the caller's promise).
        unsafe { to.cast::<[f32; 8]>().write_unaligned(vector) }
    }

    #[inline(always)]
    unsafe fn widen<E: Real>(self, from: *const E::Bits) -> [f32; 8] {
        // SAFETY: eight elements are readable (the caller's promise).
        unsafe { from.cast::<[E::Bits; 8]>().read_unaligned() }.map(E::to_f32)
    }

    #[inline(always)]
    fn multiply_add(self, mut sums: [f32; 8], w: [f32; 8], x: [f32; 8]) -> [f32; 8] {
        for i in 0..8 {
            sums[i] += w[i] * x[i];
        }
        sums
    }

    #[inline(always)]
    fn add(self, mut a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        for i in 0..8 {
            a[i] += b[i];
        }
        a
    }

    #[inline(always)]
    fn total(self, vector: [f32; 8]) -> f32 {
        fold(vector)
    }

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run()
    }
}
