//! What is ranked, as unsigned keys: the one interface between the selection algorithms and the
//! data.
//!
//! A [`Keys`] gives, for every item, an unsigned word whose order is the order of importance:
//! magnitudes, magnitudes times a column scale, signed scores, or the norms of blocks. Nothing is
//! materialised: `fill` makes a stretch of keys in a buffer that stays in the first-level cache.
//! Where the keys are the weights' bits under a mask, `masked` offers those, so that a kernel can
//! load them itself.

use std::ops::Range;

use crate::element::{Element, Word};
use crate::error::{Error, Result};
use crate::vector::prefetch;

/// Items to be ranked. Keys above [`Keys::max_key`] are NaN.
pub trait Keys: Sync {
    /// The word of a key.
    type Key: Word;
    /// Number of items.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The largest key that is a number.
    fn max_key(&self) -> Self::Key;
    /// The number that a key stands for, exact.
    fn value(&self, key: Self::Key) -> f64;
    /// Writes the keys of the items from `start` on. Fails only where memory is short.
    fn fill(&self, start: usize, out: &mut [Self::Key]) -> Result<()>;
    /// Bits and mask with `key = bits & mask`, where that is what the keys are.
    fn masked(&self) -> Option<(&[Self::Key], Self::Key)> {
        None
    }
    /// Asks for the memory of an item that will be filled soon.
    fn prefetch(&self, index: usize);
    /// Elements that an item is made of: what it costs to fill its key.
    fn elements_per_item(&self) -> usize {
        1
    }
    /// The error for item `index` being NaN.
    fn nan_error(&self, index: usize) -> Error {
        Error::Nan { index }
    }
}

/// Keys that are looked through at a time.
const CHUNK: usize = 2048;

/// The error for the first NaN among `items`, which were seen to hold one.
#[cold]
pub fn first_nan<K: Keys>(keys: &K, items: Range<usize>) -> Error {
    let mut made = [K::Key::default(); CHUNK];
    for start in items.clone().step_by(CHUNK) {
        let made = &mut made[..CHUNK.min(items.end - start)];
        if let Err(error) = keys.fill(start, made) {
            return error;
        }
        if let Some(at) = made.iter().position(|&key| key > keys.max_key()) {
            return keys.nan_error(start + at);
        }
    }
    Error::Changed
}

/// |w|.
pub struct Magnitude<'a, E: Element>(pub &'a [E::Bits]);

impl<E: Element> Keys for Magnitude<'_, E> {
    type Key = E::Bits;
    fn len(&self) -> usize {
        self.0.len()
    }
    fn max_key(&self) -> E::Bits {
        E::MAX_MAGNITUDE
    }
    #[inline]
    fn value(&self, key: E::Bits) -> f64 {
        E::magnitude_value(key)
    }
    #[inline]
    fn fill(&self, start: usize, out: &mut [E::Bits]) -> Result<()> {
        for (key, &bits) in out.iter_mut().zip(&self.0[start..]) {
            *key = E::magnitude(bits);
        }
        Ok(())
    }
    fn prefetch(&self, index: usize) {
        prefetch(self.0.as_ptr().wrapping_add(index));
    }
    fn masked(&self) -> Option<(&[E::Bits], E::Bits)> {
        E::MAGNITUDE_MASK.map(|mask| (self.0, mask))
    }
}

/// Signed scores: the larger is kept, −0.0 equals +0.0.
pub struct Ordered<'a, E: Element>(pub &'a [E::Bits]);

impl<E: Element> Keys for Ordered<'_, E> {
    type Key = E::Bits;
    fn len(&self) -> usize {
        self.0.len()
    }
    fn max_key(&self) -> E::Bits {
        E::MAX_ORDERED
    }
    #[inline]
    fn value(&self, key: E::Bits) -> f64 {
        E::ordered_value(key)
    }
    fn prefetch(&self, index: usize) {
        prefetch(self.0.as_ptr().wrapping_add(index));
    }
    #[inline]
    fn fill(&self, start: usize, out: &mut [E::Bits]) -> Result<()> {
        for (key, &bits) in out.iter_mut().zip(&self.0[start..]) {
            *key = E::ordered(bits);
        }
        Ok(())
    }
}

/// A factor for each column of the matrix view: column `j` takes `values[j / repeat]`. All factors
/// are ≥ 0 and not NaN.
#[derive(Debug, Clone, Copy)]
pub struct ColumnScale<'a, T> {
    /// The factors.
    pub values: &'a [T],
    /// Columns of the matrix view.
    pub cols: usize,
    /// Neighbouring columns that share a factor.
    pub repeat: usize,
}

impl<T: Copy> ColumnScale<'_, T> {
    /// Calls `f(i, factor)` for the items `start .. start + len`, `i` counting from 0.
    #[inline(always)]
    fn each(&self, start: usize, len: usize, mut f: impl FnMut(usize, T)) {
        let mut done = 0;
        let mut col = start % self.cols.max(1);
        while done < len {
            let run = (self.cols - col).min(len - done);
            if self.repeat == 1 {
                for (i, &factor) in self.values[col..col + run].iter().enumerate() {
                    f(done + i, factor);
                }
            } else {
                for i in 0..run {
                    f(done + i, self.values[(col + i) / self.repeat]);
                }
            }
            done += run;
            col = 0;
        }
    }
}

/// |w| times a column scale, in float32.
pub struct Scaled32<'a, E: Element>(pub &'a [E::Bits], pub ColumnScale<'a, f32>);

impl<E: Element> Keys for Scaled32<'_, E> {
    type Key = u32;
    fn len(&self) -> usize {
        self.0.len()
    }
    fn max_key(&self) -> u32 {
        crate::element::F32::MAX_MAGNITUDE
    }
    #[inline]
    fn value(&self, key: u32) -> f64 {
        f32::from_bits(key) as f64
    }
    fn prefetch(&self, index: usize) {
        prefetch(self.0.as_ptr().wrapping_add(index));
    }
    #[inline]
    fn fill(&self, start: usize, out: &mut [u32]) -> Result<()> {
        let weights = &self.0[start..start + out.len()];
        self.1.each(start, weights.len(), |i, factor| {
            // Exact: every type that comes here is narrower than float32 or is float32.
            out[i] = ((E::to_f64(weights[i]).abs() as f32) * factor).to_bits() & 0x7fff_ffff;
        });
        Ok(())
    }
}

/// |w| times a column scale, in float64.
pub struct Scaled64<'a>(pub &'a [u64], pub ColumnScale<'a, f64>);

impl Keys for Scaled64<'_> {
    type Key = u64;
    fn len(&self) -> usize {
        self.0.len()
    }
    fn max_key(&self) -> u64 {
        crate::element::F64::MAX_MAGNITUDE
    }
    #[inline]
    fn value(&self, key: u64) -> f64 {
        f64::from_bits(key)
    }
    fn prefetch(&self, index: usize) {
        prefetch(self.0.as_ptr().wrapping_add(index));
    }
    #[inline]
    fn fill(&self, start: usize, out: &mut [u64]) -> Result<()> {
        let weights = &self.0[start..start + out.len()];
        self.1.each(start, weights.len(), |i, factor| {
            out[i] = (f64::from_bits(weights[i]).abs() * factor).to_bits() & (u64::MAX >> 1);
        });
        Ok(())
    }
}

/// What a tensor's elements are ranked by, with the element type still open.
#[derive(Debug, Clone, Copy)]
pub enum Ranking<'a> {
    /// |w|
    Magnitude(crate::element::Elements<'a>),
    /// |w| · scale, float32 (weights other than float64)
    Scaled32(crate::element::Elements<'a>, ColumnScale<'a, f32>),
    /// |w| · scale, float64
    Scaled64(&'a [u64], ColumnScale<'a, f64>),
    /// Scores, signed
    Scores(crate::element::Elements<'a>),
}

impl Ranking<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Ranking::Magnitude(w) | Ranking::Scaled32(w, _) | Ranking::Scores(w) => w.len(),
            Ranking::Scaled64(w, _) => w.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// `with_keys!(ranking, keys => expression)`: the expression with `keys` a [`Keys`] of the right
/// type.
#[macro_export]
macro_rules! with_keys {
    ($ranking:expr, $keys:ident => $body:expr) => {
        match $ranking {
            $crate::keys::Ranking::Magnitude(weights) => $crate::dispatch!(weights, E, data => {
                let $keys = $crate::keys::Magnitude::<E>(data);
                $body
            }),
            $crate::keys::Ranking::Scaled32(weights, scale) => $crate::dispatch!(weights, E, data => {
                let $keys = $crate::keys::Scaled32::<E>(data, scale);
                $body
            }),
            $crate::keys::Ranking::Scaled64(data, scale) => {
                let $keys = $crate::keys::Scaled64(data, scale);
                $body
            }
            $crate::keys::Ranking::Scores(scores) => $crate::dispatch!(scores, E, data => {
                let $keys = $crate::keys::Ordered::<E>(data);
                $body
            }),
        }
    };
}
