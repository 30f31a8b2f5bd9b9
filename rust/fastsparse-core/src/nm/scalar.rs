//! Vectors without instructions of their own: arrays, which the compiler turns into what the target
//! guarantees.

use super::kernel::Work;
use super::vector::Vector;
use crate::element::Word;
use crate::error::Result;

const LANES: usize = 8;

/// Eight keys.
#[derive(Clone, Copy)]
struct Array<W>([W; LANES]);

impl<W: Word> Array<W> {
    #[inline(always)]
    fn each(self, other: Self, f: impl Fn(W, W) -> W) -> Self {
        Array(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }

    #[inline(always)]
    fn compare(self, other: Self, f: impl Fn(&W, &W) -> bool) -> [bool; LANES] {
        std::array::from_fn(|i| f(&self.0[i], &other.0[i]))
    }

    #[inline(always)]
    fn count(self, mask: [bool; LANES], f: impl Fn(u64, u64) -> u64) -> Self {
        Array(std::array::from_fn(|i| W::from_u64(f(self.0[i].to_u64(), mask[i] as u64))))
    }
}

impl<W: Word> Vector<W> for Array<W> {
    type Proof = ();
    type Mask = [bool; LANES];
    const LANES: usize = LANES;
    const PIECE: usize = 1;

    #[inline(always)]
    fn splat(_: (), key: W) -> Self {
        Array([key; LANES])
    }
    #[inline(always)]
    unsafe fn load(_: (), keys: *const W) -> Self {
        // SAFETY: the caller's promise; an array of keys is aligned to 1 after `read_unaligned`.
        Array(unsafe { keys.cast::<[W; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_some(_: (), keys: *const W, count: usize) -> Self {
        // SAFETY: index i is below `count`, so it can be read: the caller's promise.
        let key = |i: usize| if i < count { unsafe { keys.add(i).read_unaligned() } } else { W::default() };
        Array(std::array::from_fn(key))
    }
    #[inline(always)]
    unsafe fn load_pieces(_: (), keys: *const W, starts: &[usize; 64], p: usize) -> Self {
        // SAFETY: a piece is one key, and it can be read: the caller's promise.
        Array(std::array::from_fn(|i| unsafe { keys.add(starts[i + p]).read_unaligned() }))
    }
    #[inline(always)]
    fn prefetch(_: *const W) {}
    #[inline(always)]
    fn store(self, out: &mut [W; 64]) {
        out[..LANES].copy_from_slice(&self.0);
    }

    #[inline(always)]
    fn and(self, other: Self) -> Self {
        self.each(other, |a, b| W::from_u64(a.to_u64() & b.to_u64()))
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.each(other, |a, b| W::from_u64(a.to_u64().wrapping_add(b.to_u64())))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.each(other, |a, b| W::from_u64(a.to_u64().wrapping_sub(b.to_u64())))
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.each(other, W::min)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.each(other, W::max)
    }
    #[inline(always)]
    fn interleave_low(self, _: Self) -> Self {
        self
    }
    #[inline(always)]
    fn interleave_high(self, _: Self) -> Self {
        self
    }
    #[inline(always)]
    fn rotate4(self, by: usize) -> Self {
        Array(std::array::from_fn(|i| self.0[i / 4 * 4 + (i + by) % 4]))
    }

    #[inline(always)]
    fn ge(self, other: Self) -> Self::Mask {
        self.compare(other, W::ge)
    }
    #[inline(always)]
    fn equal(self, other: Self) -> Self::Mask {
        self.compare(other, W::eq)
    }
    #[inline(always)]
    fn nonzero_where(self, mask: Self::Mask) -> Self::Mask {
        std::array::from_fn(|i| mask[i] & (self.0[i] != W::default()))
    }
    #[inline(always)]
    fn increment(self, mask: Self::Mask) -> Self {
        self.count(mask, u64::wrapping_add)
    }
    #[inline(always)]
    fn decrement(self, mask: Self::Mask) -> Self {
        self.count(mask, u64::wrapping_sub)
    }
    #[inline(always)]
    fn shift_in(self, mask: Self::Mask) -> Self {
        self.count(mask, |bits, bit| bits << 1 | bit)
    }

    #[inline(always)]
    fn both(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        std::array::from_fn(|i| a[i] & b[i])
    }
    #[inline(always)]
    fn either(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn without(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        std::array::from_fn(|i| a[i] & !b[i])
    }
    #[inline(always)]
    fn bits(mask: Self::Mask) -> u64 {
        mask.iter().rev().fold(0, |word, &bit| word << 1 | bit as u64)
    }
}

/// Unit `i` of the work; the largest key seen.
///
/// # Safety
/// The unit does not run elsewhere at the same time.
pub(super) unsafe fn unit<W: Word>(work: &Work<W>, i: usize) -> Result<W> {
    // SAFETY: the caller's promise.
    unsafe { work.unit::<Array<W>>((), i) }
}
