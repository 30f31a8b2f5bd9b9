//! Groups of neighbours: pieces of as many groups as there are lanes are loaded and transposed.

use super::cursor::{Cursor, Starts};
use super::geometry::Lines;
use super::kernel::{BUFFER, State, Work, kept};
use super::network::{LARGEST, Plan};
use super::quads;
use super::vector::{Vector, transpose};
use crate::element::Word;
use crate::error::Result;
use crate::memory;

/// The mask bytes of a unit.
pub(super) struct Target<'a> {
    /// The bytes, cleared.
    pub mask: &'a mut [u8],
    /// The bit of the whole mask that the first of them begins with.
    pub first_bit: usize,
}

impl<'a> Target<'a> {
    /// # Safety
    /// There is no other target of unit `i` at the same time.
    pub unsafe fn new<W: Word>(work: &'a Work<W>, geometry: &Lines, i: usize) -> Self {
        let first = geometry.byte(i);
        let end = if i + 1 == work.geometry.units() { work.mask.len() } else { geometry.byte(i + 1) };
        // SAFETY: units do not share bytes, and nobody else has those of this one: the caller's
        // promise.
        let mask = unsafe { work.mask.slice(first, end - first) };
        mask.fill(0);
        Target { mask, first_bit: 8 * first }
    }
}

/// Some keys, `key = bits & and`.
struct Source<'a, W> {
    keys: &'a [W],
    and: W,
}

/// Unit `i`.
///
/// # Safety
/// The unit does not run elsewhere at the same time.
#[inline(always)]
pub(super) unsafe fn unit<W: Word, V: Vector<W>>(
    proof: V::Proof,
    work: &Work<W>,
    geometry: &Lines,
    i: usize,
    state: &mut State<W, V>,
) -> Result<()> {
    // SAFETY: the caller's promise.
    let Target { mask, first_bit } = unsafe { Target::new(work, geometry, i) };
    let in_place = quads::can(work, geometry);
    let limit = if work.masked.is_some() { usize::MAX } else { BUFFER - LARGEST };
    let mut buffer = memory::zeros(if work.masked.is_some() { 0 } else { BUFFER })?;
    for part in geometry.parts(geometry.unit(i), limit) {
        let elements = geometry.elements(&part);
        let source = match work.masked {
            Some((data, and)) => Source { keys: &data[elements], and },
            None => {
                let keys = &mut buffer[..elements.len()];
                work.keys.fill(elements.start, keys)?;
                Source { keys, and: W::MAX }
            }
        };
        let mut full = Cursor::full(geometry, &part, first_bit);
        while in_place && let Some((start, bit, count)) = full.next_line() {
            let (keys, mask) = (&source.keys[start..start + 4 * count], &mut mask[bit / 8..]);
            quads::line(proof, keys, source.and, work.full.keep, mask, &mut state.largest);
        }
        for (mut groups, plan) in [(full, &work.full), (Cursor::tails(geometry, &part, first_bit), &work.tail)] {
            while groups.next_batch(V::LANES) {
                let (first, starts) = groups.starts();
                let keys = &source.keys[first..];
                let values = select(proof, &Source { keys, ..source }, starts, plan, state)?;
                groups.put(mask, &values, plan.length);
            }
        }
    }
    Ok(())
}

/// What is kept of the groups at `starts`, bit i for key i.
#[inline(always)]
fn select<W: Word, V: Vector<W>>(
    proof: V::Proof,
    source: &Source<W>,
    starts: Starts<'_>,
    plan: &Plan,
    state: &mut State<W, V>,
) -> Result<[u64; 64]> {
    let starts = starts.get();
    let (padded, starts_in_padded);
    let (keys, starts) = if starts[V::LANES - 1] + plan.length.next_multiple_of(V::PIECE) > source.keys.len() {
        (padded, starts_in_padded) = pad(source.keys, &starts[..V::LANES], plan.length)?;
        (&padded[..], &starts_in_padded)
    } else {
        (source.keys, starts)
    };
    // SAFETY: the pieces of the last group end within the keys, as just checked, and so do those of
    // the others, which begin before it (`Starts`). A padded group of up to LARGEST keys has
    // LARGEST places, a multiple of the length of a piece.
    unsafe { load(proof, keys.as_ptr(), source.and, starts, plan.length, state) };
    let (smallest, excess) = state.rank(proof, plan);
    let ties = V::bits(excess.nonzero_where(excess.equal(excess))) != 0;
    Ok(if ties {
        collect::<W, V, true>(proof, plan.length, smallest, excess, &state.keys)
    } else {
        collect::<W, V, false>(proof, plan.length, smallest, excess, &state.keys)
    })
}

/// Groups whose last pieces would reach beyond the keys, with room after each, and where they
/// begin.
#[cold]
fn pad<W: Word>(keys: &[W], starts: &[usize], length: usize) -> Result<(Vec<W>, [usize; 64])> {
    let mut padded = memory::zeros(starts.len() * LARGEST)?;
    for (room, &start) in padded.chunks_exact_mut(LARGEST).zip(starts) {
        room[..length].copy_from_slice(&keys[start..start + length]);
    }
    Ok((padded, std::array::from_fn(|lane| lane * LARGEST)))
}

/// # Safety
/// From every start, `length` keys, rounded up to pieces, can be read.
#[inline(always)]
unsafe fn load<W: Word, V: Vector<W>>(
    proof: V::Proof,
    keys: *const W,
    and: W,
    starts: &[usize; 64],
    length: usize,
    state: &mut State<W, V>,
) {
    let and = V::splat(proof, and);
    let mut largest = state.largest;
    let mut tile = [and; 16];
    for first in (0..length).step_by(V::PIECE) {
        for (p, piece) in tile.iter_mut().enumerate().take(V::PIECE) {
            // SAFETY: the caller's promise.
            *piece = unsafe { V::load_pieces(proof, keys.add(first), starts, p) }.and(and);
        }
        transpose(&mut tile);
        for (c, &column) in tile.iter().enumerate().take(V::PIECE.min(length - first)) {
            state.keys[first + c] = column;
            largest = largest.max(column);
        }
    }
    state.largest = largest;
}

/// The kept keys of every group, as bits: from the last key to the first, each shifts its bit in
/// from below.
#[inline(always)]
fn collect<W: Word, V: Vector<W>, const TIES: bool>(
    proof: V::Proof,
    length: usize,
    smallest: V,
    mut excess: V,
    keys: &[V; LARGEST],
) -> [u64; 64] {
    let width = 8 * W::BYTES;
    let mut groups = [0; 64];
    for first in (0..length).step_by(width).rev() {
        let mut word = V::splat(proof, W::default());
        for &keys in keys[first..length.min(first + width)].iter().rev() {
            let mask = if TIES { kept(keys, smallest, &mut excess) } else { keys.ge(smallest) };
            word = word.shift_in(mask);
        }
        let mut lanes = [W::default(); 64];
        word.store(&mut lanes);
        for (group, lane) in groups.iter_mut().zip(&lanes[..V::LANES]) {
            *group |= lane.to_u64() << first;
        }
    }
    groups
}
