//! What several tests share.

#![allow(dead_code, unused_imports, reason = "each test uses a part of it")]

mod cases;

pub use cases::some;

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

    /// A number from −1 to 1.
    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}
