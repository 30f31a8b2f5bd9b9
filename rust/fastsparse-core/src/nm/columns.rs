//! Groups whose neighbours lie apart, side by side with other groups: a vector is a row of groups
//! as it lies in memory.

use super::bits;
use super::geometry::{Item, Slabs};
use super::kernel::{BUFFER, State, Work, kept};
use super::network::Plan;
use super::vector::Vector;
use crate::element::Word;
use crate::error::Result;
use crate::memory;
use crate::parallel::SharedMut;

/// Bytes ahead that are asked for in each row of a group of four.
const AHEAD: usize = 1024;

/// Unit `i`.
///
/// # Safety
/// The unit does not run elsewhere at the same time.
#[inline(always)]
pub(super) unsafe fn unit<W: Word, V: Vector<W>>(
    proof: V::Proof,
    work: &Work<W>,
    geometry: &Slabs,
    i: usize,
    state: &mut State<W, V>,
) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { geometry.clear(i, &work.mask) };
    let mut buffer = memory::zeros(if work.masked.is_some() { 0 } else { BUFFER })?;
    for item in geometry.unit(i) {
        // Keys that have to be made are made for as many columns at a time as fit.
        let most = if work.masked.is_some() { usize::MAX } else { BUFFER / item.length / 64 * 64 };
        for part in item.parts(most) {
            let plan = if item.length == work.full.length { &work.full } else { &work.tail };
            let block = match work.masked {
                Some((data, and)) => Block { keys: &data[part.element..], and, pitch: geometry.inner },
                None => {
                    for (row, keys) in buffer.chunks_exact_mut(most).take(part.length).enumerate() {
                        work.keys.fill(part.element + row * geometry.inner, &mut keys[..part.width])?;
                    }
                    Block { keys: &buffer, and: W::MAX, pitch: most }
                }
            };
            let place = Place { item: part, bit_pitch: geometry.bit_pitch, mask: &work.mask };
            // SAFETY: the caller's promise: the item belongs to the unit.
            unsafe {
                match (plan.length, plan.keep) {
                    (4, 1) => fours::<W, V, 1>(proof, &block, place, &mut state.largest),
                    (4, 2) => fours::<W, V, 2>(proof, &block, place, &mut state.largest),
                    (4, 3) => fours::<W, V, 3>(proof, &block, place, &mut state.largest),
                    _ => columns(proof, plan, &block, place, state),
                }
            };
        }
    }
    Ok(())
}

/// Keys of groups side by side, `key = bits & and`; row i begins at `i · pitch`.
struct Block<'a, W> {
    keys: &'a [W],
    and: W,
    pitch: usize,
}

/// Where the bits of an item go.
struct Place<'a, 'm> {
    item: Item,
    bit_pitch: usize,
    mask: &'a SharedMut<'m, u8>,
}

impl Place<'_, '_> {
    /// Sets the bits of `kept` for `lanes` columns of a row, from column `first` on.
    ///
    /// # Safety
    /// The unit of the item runs here and nowhere else.
    #[inline(always)]
    unsafe fn put(&self, row: usize, first: usize, kept: u64, lanes: usize) {
        let bit = self.item.bit + row * self.bit_pitch + first;
        // SAFETY: the bytes that the bits of an item lie in belong to its unit: the caller's
        // promise.
        let bytes = unsafe { self.mask.slice(bit / 8, (bit + lanes).div_ceil(8) - bit / 8) };
        bits::put(bytes, bit % 8, kept, lanes);
    }
}

/// Groups of four, 64 side by side: each pair is compared once, and wins are counted on the words
/// of bits.
///
/// ```text
/// a beats b where key[a] ≥ key[b], for a before b; b beats a where a does not beat b
/// keep what beats at least 4 − KEEP of the three others
/// ```
///
/// # Safety
/// The unit of the item runs here and nowhere else.
#[inline(always)]
unsafe fn fours<W: Word, V: Vector<W>, const KEEP: usize>(
    proof: V::Proof,
    block: &Block<W>,
    place: Place<'_, '_>,
    largest: &mut V,
) {
    let width = place.item.width;
    assert!(3 * block.pitch + width <= block.keys.len());
    let zero = V::splat(proof, W::default());
    for first in (0..width).step_by(64) {
        let count = 64.min(width - first);
        let mut beats = [[0u64; 4]; 4];
        for lane in (0..count).step_by(2 * V::LANES) {
            // SAFETY: these columns are within the block, as just checked.
            let x = unsafe { four_rows(proof, block, first + lane, count - lane) };
            let y = if V::LANES < 64 && lane + V::LANES < count {
                // SAFETY: as above.
                unsafe { four_rows(proof, block, first + lane + V::LANES, count - lane - V::LANES) }
            } else {
                [zero; 4]
            };
            for keys in [x, y] {
                *largest = largest.max(keys[0].max(keys[1])).max(keys[2].max(keys[3]));
            }
            for (a, b) in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)] {
                let (x, y) = (x[a].ge(x[b]), y[a].ge(y[b]));
                beats[a][b] |= if V::LANES < 64 { V::bits_of_two(x, y) << lane } else { V::bits(x) };
            }
        }
        for (a, b) in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)] {
            beats[b][a] = !beats[a][b];
        }
        for row in 0..4 {
            let [x, y, z] = [1, 2, 3].map(|other| beats[row][(row + other) % 4]);
            let kept = match KEEP {
                1 => x & y & z,
                2 => (x & y) | (z & (x | y)),
                _ => x | y | z,
            };
            // SAFETY: the caller's promise.
            unsafe { place.put(row, first, kept & (u64::MAX >> (64 - count)), count) };
        }
    }
}

/// The keys of up to `LANES` of `count` columns from `first` on. In a loop: a closure with vectors
/// that is given to a function of the standard library may be compiled without the instructions for
/// them.
///
/// # Safety
/// The columns are within the block.
#[inline(always)]
unsafe fn four_rows<W: Word, V: Vector<W>>(proof: V::Proof, block: &Block<W>, first: usize, count: usize) -> [V; 4] {
    let and = V::splat(proof, block.and);
    let mut rows = [and; 4];
    for (i, row) in rows.iter_mut().enumerate() {
        let keys = block.keys.as_ptr().wrapping_add(i * block.pitch + first);
        V::prefetch(keys.wrapping_add(AHEAD / W::BYTES));
        // SAFETY: the caller's promise.
        let loaded = unsafe { if count >= V::LANES { V::load(proof, keys) } else { V::load_some(proof, keys, count) } };
        *row = loaded.and(and);
    }
    rows
}

/// # Safety
/// The unit of the item runs here and nowhere else.
#[inline(always)]
unsafe fn columns<W: Word, V: Vector<W>>(
    proof: V::Proof,
    plan: &Plan,
    block: &Block<W>,
    place: Place<'_, '_>,
    state: &mut State<W, V>,
) {
    let item = place.item;
    assert!((item.length - 1) * block.pitch + item.width <= block.keys.len());
    let and = V::splat(proof, block.and);
    for first in (0..item.width).step_by(V::LANES) {
        let lanes = V::LANES.min(item.width - first);
        let mut largest = state.largest;
        for row in 0..item.length {
            let keys = block.keys[row * block.pitch + first..].as_ptr();
            V::prefetch(keys.wrapping_add(4 * V::LANES));
            // SAFETY: lanes `first .. first + lanes` of the row end within the keys, as just
            // checked.
            let loaded =
                unsafe { if lanes == V::LANES { V::load(proof, keys) } else { V::load_some(proof, keys, lanes) } };
            state.keys[row] = loaded.and(and);
            largest = largest.max(state.keys[row]);
        }
        state.largest = largest;
        let (smallest, mut excess) = state.rank(proof, plan);
        for row in (0..item.length).rev() {
            let kept = V::bits(kept(state.keys[row], smallest, &mut excess)) & (u64::MAX >> (64 - lanes));
            // SAFETY: the caller's promise.
            unsafe { place.put(row, first, kept, lanes) };
        }
    }
}
