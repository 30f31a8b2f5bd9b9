//! What several tests share.

#![allow(dead_code, unused_imports, reason = "each test uses a part of it")]

mod cases;
mod packed;

use fastsparse_core::linear::Real;

pub use cases::some;
pub use packed::Packed;

/// Pseudo-random numbers, the same ones in every run: splitmix64.
pub struct Random(pub u64);

impl Random {
    /// Any word.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    /// Yes in `n` of 64 cases.
    pub fn one_of_64(&mut self, n: u64) -> bool {
        self.next() >> 40 & 63 < n
    }

    /// A number from −1 to 1.
    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// The same as float32.
    pub fn number(&mut self) -> f32 {
        self.uniform() as f32
    }

    /// `len` of them as elements of a type.
    pub fn numbers<E: Real>(&mut self, len: usize) -> Vec<E::Bits> {
        (0..len).map(|_| E::from_f32(self.number())).collect()
    }
}
