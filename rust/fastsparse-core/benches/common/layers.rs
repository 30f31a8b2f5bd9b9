//! Layers in rotation: what the benchmarks of linear layers share.

use std::ops::{Deref, DerefMut};

use fastsparse_core::element::{Element, Word};
use fastsparse_core::linear::{Real, Weights};
use fastsparse_core::matrix::Matrix;

use super::{seconds, uniform};

pub const SHAPE: Matrix = Matrix { rows: 4096, cols: 11008 };

/// Times that all layers are gone through.
pub const ROUNDS: usize = 2;

/// Bytes in rotation at least, so that no cache holds them.
const BYTES: usize = 512 << 20;

/// Zeroed memory on huge pages, where the system has them, as NumPy asks for from 4 MiB on.
pub struct HugePages<W: Word> {
    start: *mut W,
    len: usize,
}

impl<W: Word> HugePages<W> {
    const HUGE: usize = 2 << 20;

    fn layout(len: usize) -> std::alloc::Layout {
        let bytes = (len * W::BYTES).next_multiple_of(Self::HUGE).max(Self::HUGE);
        std::alloc::Layout::from_size_align(bytes, Self::HUGE).unwrap()
    }

    /// `value(i)` for each `i` below `len`.
    pub fn filled(len: usize, value: impl Fn(usize) -> W) -> Self {
        unsafe extern "C" {
            fn madvise(start: *mut std::ffi::c_void, len: usize, advice: i32) -> i32;
        }
        let layout = Self::layout(len);
        // SAFETY: the layout is not empty; the advice (14: huge pages) changes no content.
        let start = unsafe {
            let start = std::alloc::alloc_zeroed(layout);
            assert!(!start.is_null());
            madvise(start.cast(), layout.size(), 14);
            start.cast()
        };
        let mut pages = HugePages { start, len };
        pages.iter_mut().enumerate().for_each(|(i, word)| *word = value(i));
        pages
    }
}

impl<W: Word> Deref for HugePages<W> {
    type Target = [W];
    fn deref(&self) -> &[W] {
        // SAFETY: `len` words allocated by `filled`, which may be zero.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl<W: Word> DerefMut for HugePages<W> {
    fn deref_mut(&mut self) -> &mut [W] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl<W: Word> Drop for HugePages<W> {
    fn drop(&mut self) {
        // SAFETY: allocated by `filled` with this layout.
        unsafe { std::alloc::dealloc(self.start.cast(), Self::layout(self.len)) };
    }
}

/// A mask whose `block`s are kept independently of each other, and its row offsets.
pub fn random_mask(density: f32, block: Matrix) -> (Vec<u8>, Vec<i64>) {
    let (mut mask, mut offsets) = (vec![0u8; SHAPE.mask_bytes()], vec![0i64]);
    let mut uniform = uniform();
    let mut kept = vec![false; SHAPE.cols.div_ceil(block.cols)];
    for (row, bits) in mask.chunks_exact_mut(SHAPE.row_bytes()).enumerate() {
        if row % block.rows == 0 {
            kept.fill_with(|| uniform() + 0.5 < density);
        }
        for col in (0..SHAPE.cols).filter(|col| kept[col / block.cols]) {
            bits[col / 8] |= 1 << (col % 8);
        }
        let count: u32 = bits.iter().map(|byte| byte.count_ones()).sum();
        offsets.push(offsets[offsets.len() - 1] + count as i64);
    }
    (mask, offsets)
}

/// A weight around 0.02.
pub fn weight<E: Real>(i: usize) -> E::Bits {
    E::from_f32(((i as u32).wrapping_mul(2654435761) >> 16) as f32 / 65536.0 * 0.04 - 0.02)
}

/// `batch` rows of activations.
pub fn activations<X: Real>(batch: usize) -> Vec<X::Bits> {
    (0..batch * SHAPE.cols).map(|i| X::from_f32((i * 7919 % 201) as f32 / 100.0 - 1.0)).collect()
}

/// Layers with one mask, which is small, and values of their own: they differ in memory, not in
/// results.
pub struct Packed<W: Word> {
    mask: Vec<u8>,
    offsets: Vec<i64>,
    values: HugePages<W>,
    /// How many.
    pub layers: usize,
}

impl<W: Word> Packed<W> {
    pub fn new((mask, offsets): (Vec<u8>, Vec<i64>), value: impl Fn(usize) -> W) -> Self {
        let kept = offsets[SHAPE.rows] as usize;
        let layers = BYTES.div_ceil(kept * W::BYTES);
        let values = HugePages::filled(layers * kept, |i| value(i % kept));
        Packed { mask, offsets, values, layers }
    }

    pub fn layer(&self, i: usize) -> Weights<'_, W> {
        let kept = self.offsets[SHAPE.rows] as usize;
        let values = &self.values[i * kept..(i + 1) * kept];
        Weights { shape: SHAPE, values, mask: &self.mask, offsets: &self.offsets, groups: None }
    }
}

/// `layers` copies of words.
pub fn copies<W: Word>(words: &[W], layers: usize) -> HugePages<W> {
    HugePages::filled(layers * words.len(), |i| words[i % words.len()])
}

/// Times `kernel` and `other` in turns on layer after layer. Prints the least times, and how many
/// times as fast the kernel is.
pub fn against(name: &str, what: &str, layers: usize, mut other: impl FnMut(usize), mut kernel: impl FnMut(usize)) {
    let mut least = [f64::INFINITY; 2];
    for i in (0..ROUNDS).flat_map(|_| 0..layers) {
        least[0] = least[0].min(seconds(|| other(i)));
        least[1] = least[1].min(seconds(|| kernel(i)));
    }
    let [other, kernel] = least;
    println!("{name:40} {:9.3} ms, {what} {:9.3} ms, x {:6.2}", 1e3 * kernel, 1e3 * other, other / kernel);
}

/// Holds results against others within what rounding may do.
pub fn agree<X: Element>(a: &[X::Bits], b: &[X::Bits]) {
    for (&a, &b) in a.iter().zip(b) {
        let (a, b) = (X::to_f64(a), X::to_f64(b));
        assert!((a - b).abs() <= 1e-3 + 0.01 * b.abs(), "{a} for {b}");
    }
}
