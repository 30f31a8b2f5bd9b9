//! Narrow elements as float32, exactly.
//!
//! float16 has instructions for that, which the compiler does not find in the arithmetic of
//! [`Element::to_f64`]; the 8-bit floats become float16 by shifts, float8_e4m3fn with an exponent
//! that is 8 too small.

use crate::element::{BF16, Element, F8E4M3, F8E5M2, F16, F32, F64, I8, U8};
use crate::isa::{Avx2, Isa, Kernel};

/// An element type that float32 holds; float64, which it does not, comes with scales of its own.
pub(super) trait Widen: Element {
    /// Writes the bits of the float32 numbers.
    fn widen(isa: Isa, weights: &[Self::Bits], out: &mut [u32]) {
        isa.run(ByValue::<Self> { weights, out });
    }
}

impl Widen for F64 {}
impl Widen for F32 {}
impl Widen for BF16 {}
impl Widen for I8 {}
impl Widen for U8 {}
impl Widen for F16 {
    fn widen(isa: Isa, weights: &[u16], out: &mut [u32]) {
        by_half::<F16>(isa, weights, out);
    }
}
impl Widen for F8E4M3 {
    fn widen(isa: Isa, weights: &[u8], out: &mut [u32]) {
        by_half::<F8E4M3>(isa, weights, out);
    }
}
impl Widen for F8E5M2 {
    fn widen(isa: Isa, weights: &[u8], out: &mut [u32]) {
        by_half::<F8E5M2>(isa, weights, out);
    }
}

struct ByValue<'a, E: Element> {
    weights: &'a [E::Bits],
    out: &'a mut [u32],
}

impl<E: Element> Kernel for ByValue<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for (out, &weight) in self.out.iter_mut().zip(self.weights) {
            *out = (E::to_f64(weight) as f32).to_bits();
        }
    }
}

/// Elements that are made float16 at a time.
const CHUNK: usize = 256;

/// A type whose numbers are those of float16 times a power of two.
trait Half: Element {
    /// The power of two.
    const FACTOR: f32;
    /// Up to [`CHUNK`] elements as float16, where they are or in `buffer`.
    fn halves<'a>(weights: &'a [Self::Bits], buffer: &'a mut [u16; CHUNK]) -> &'a [u16];
}

impl Half for F16 {
    const FACTOR: f32 = 1.0;
    #[inline(always)]
    fn halves<'a>(weights: &'a [u16], _buffer: &'a mut [u16; CHUNK]) -> &'a [u16] {
        weights
    }
}

impl Half for F8E5M2 {
    const FACTOR: f32 = 1.0;
    #[inline(always)]
    fn halves<'a>(weights: &'a [u8], buffer: &'a mut [u16; CHUNK]) -> &'a [u16] {
        each(weights, buffer, |bits| bits << 8)
    }
}

impl Half for F8E4M3 {
    const FACTOR: f32 = 256.0;
    #[inline(always)]
    fn halves<'a>(weights: &'a [u8], buffer: &'a mut [u16; CHUNK]) -> &'a [u16] {
        each(weights, buffer, |bits| {
            let magnitude = bits & 0x7f;
            (bits & 0x80) << 8 | magnitude << 7 | if magnitude == 0x7f { 0x7fff } else { 0 }
        })
    }
}

#[inline(always)]
fn each<'a>(weights: &[u8], buffer: &'a mut [u16; CHUNK], half: impl Fn(u16) -> u16) -> &'a [u16] {
    for (out, &bits) in buffer.iter_mut().zip(weights) {
        *out = half(bits as u16);
    }
    &buffer[..weights.len()]
}

fn by_half<E: Half>(isa: Isa, weights: &[E::Bits], out: &mut [u32]) {
    match isa.avx2() {
        #[cfg(target_arch = "x86_64")]
        Some(proof) => isa.run(ByHalf::<E> { weights, out, proof }),
        _ => isa.run(ByValue::<E> { weights, out }),
    }
}

#[cfg(target_arch = "x86_64")]
struct ByHalf<'a, E: Element> {
    weights: &'a [E::Bits],
    out: &'a mut [u32],
    proof: Avx2,
}

#[cfg(target_arch = "x86_64")]
impl<E: Half> Kernel for ByHalf<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let mut buffer = [0; CHUNK];
        for (weights, out) in self.weights.chunks(CHUNK).zip(self.out.chunks_mut(CHUNK)) {
            let (halves, last_halves) = E::halves(weights, &mut buffer).as_chunks::<8>();
            let (out, last_out) = out.as_chunks_mut::<8>();
            for (out, &halves) in out.iter_mut().zip(halves) {
                *out = eight::<E>(self.proof, halves);
            }
            let mut last = [0; 8];
            last[..last_halves.len()].copy_from_slice(last_halves);
            last_out.copy_from_slice(&eight::<E>(self.proof, last)[..last_out.len()]);
        }
    }
}

/// Eight elements, given as float16, as float32.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn eight<E: Half>(_: Avx2, halves: [u16; 8]) -> [u32; 8] {
    use std::arch::x86_64::{__m128i, _mm256_cvtph_ps, _mm256_mul_ps, _mm256_set1_ps};
    // SAFETY: the token proves F16C and AVX; arrays and vectors of the same size hold any bits.
    unsafe {
        let numbers = _mm256_cvtph_ps(std::mem::transmute::<[u16; 8], __m128i>(halves));
        std::mem::transmute(_mm256_mul_ps(numbers, _mm256_set1_ps(E::FACTOR)))
    }
}
