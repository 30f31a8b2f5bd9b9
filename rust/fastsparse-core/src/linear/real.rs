//! The element types that are computed with: to float32 and, rounded to the nearest, back.

use crate::element::{BF16, Element, F16, F32};

/// An element type whose numbers are all float32 numbers.
pub trait Real: Element {
    /// The value, exact.
    fn to_f32(bits: Self::Bits) -> f32;
    /// The nearest value, ties to even; NaN stays NaN.
    fn from_f32(x: f32) -> Self::Bits;
}

impl Real for F32 {
    #[inline(always)]
    fn to_f32(bits: u32) -> f32 {
        f32::from_bits(bits)
    }

    #[inline(always)]
    fn from_f32(x: f32) -> u32 {
        x.to_bits()
    }
}

impl Real for BF16 {
    #[inline(always)]
    fn to_f32(bits: u16) -> f32 {
        f32::from_bits((bits as u32) << 16)
    }

    #[inline(always)]
    fn from_f32(x: f32) -> u16 {
        let bits = x.to_bits();
        if x.is_nan() {
            return (bits >> 16) as u16 | 0x40;
        }
        ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
    }
}

impl Real for F16 {
    #[inline(always)]
    fn to_f32(bits: u16) -> f32 {
        F16::to_f64(bits) as f32
    }

    #[inline(always)]
    fn from_f32(x: f32) -> u16 {
        const SMALLEST_NORMAL: u32 = (127 - 14) << 23;
        const REBIAS: u32 = (127 - 15) << 23;
        /// Halfway between the largest number and what would follow it.
        const OVERFLOW: f32 = 65520.0;
        let magnitude = x.abs();
        let bits = magnitude.to_bits();
        let rounded = if x.is_nan() {
            0x7e00
        } else if magnitude >= OVERFLOW {
            0x7c00
        } else if bits < SMALLEST_NORMAL {
            // The last place of numbers from 0.5 on is the smallest subnormal, so the addition
            // rounds to it.
            (magnitude + 0.5).to_bits() - 0.5f32.to_bits()
        } else {
            (bits - REBIAS + 0xfff + (bits >> 13 & 1)) >> 13
        };
        (rounded | x.to_bits() >> 16 & 0x8000) as u16
    }
}
