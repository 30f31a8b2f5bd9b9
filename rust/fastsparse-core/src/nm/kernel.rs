//! The kernel for groups of up to 64, with a lane a group.
//!
//! ```text
//! keys[0 .. length]      vectors: keys[i] holds key i of every group
//! smallest = the (length − keep)-th of keys, upwards             a network of minimum and maximum
//! excess   = count(keys[i] ≥ smallest) − keep                    equal keys that are too many
//! from the last i to the first:
//!     drop = keys[i] = smallest and excess > 0;  excess −= drop   of equal keys the later ones go
//!     kept[i] = keys[i] ≥ smallest and not drop
//! ```

use std::marker::PhantomData;

use super::Groups;
use super::geometry::Geometry;
use super::network::{LARGEST, Plan};
use super::vector::Vector;
use super::{columns, large, lines};
use crate::element::Word;
use crate::error::Result;
use crate::keys::Keys;
use crate::parallel::SharedMut;

/// Keys that are made at a time, where they are not the weights' bits.
pub(super) const BUFFER: usize = 4096;

/// All that the units of one call have in common.
pub(super) struct Work<'a, W: Word> {
    /// What is ranked.
    pub keys: &'a dyn Keys<Key = W>,
    /// Bits and mask of the keys, where that is what they are.
    pub masked: Option<(&'a [W], W)>,
    /// The groups.
    pub groups: Groups,
    /// Where they are.
    pub geometry: Geometry,
    /// For full groups of up to [`LARGEST`].
    pub full: Plan,
    /// For the shorter ones after them.
    pub tail: Plan,
    /// The mask.
    pub mask: SharedMut<'a, u8>,
}

impl<W: Word> Work<'_, W> {
    /// Selects in the groups of unit `i`; the largest key seen.
    ///
    /// # Safety
    /// The unit does not run elsewhere at the same time.
    #[inline(always)]
    pub unsafe fn unit<V: Vector<W>>(&self, proof: V::Proof, i: usize) -> Result<W> {
        let mut state = State::new(proof);
        // SAFETY: the caller's promise.
        unsafe {
            match &self.geometry {
                _ if self.groups.of > LARGEST => return large::unit::<W, V>(proof, self, i),
                Geometry::Lines(geometry) => lines::unit::<W, V>(proof, self, geometry, i, &mut state)?,
                Geometry::Slabs(geometry) => columns::unit::<W, V>(proof, self, geometry, i, &mut state)?,
            }
        }
        let mut lanes = [W::default(); 64];
        state.largest.store(&mut lanes);
        Ok(lanes.into_iter().max().unwrap_or_default())
    }
}

/// What a kernel carries from one batch of groups to the next.
pub(super) struct State<W, V> {
    /// Key i of every group.
    pub keys: [V; LARGEST],
    /// The largest key of every lane so far.
    pub largest: V,
    sorted: [V; LARGEST],
    keys_of: PhantomData<W>,
}

impl<W: Word, V: Vector<W>> State<W, V> {
    #[inline(always)]
    fn new(proof: V::Proof) -> Self {
        let zero = V::splat(proof, W::default());
        State { keys: [zero; LARGEST], largest: zero, keys_of: PhantomData, sorted: [zero; LARGEST] }
    }

    /// The smallest key that is kept of each group, and how many too many are not smaller.
    #[inline(always)]
    pub fn rank(&mut self, proof: V::Proof, plan: &Plan) -> (V, V) {
        let smallest = plan.smallest::<W, V>(proof, &mut self.keys, &mut self.sorted);
        let mut count = V::splat(proof, W::default());
        for &keys in &self.keys[..plan.length] {
            count = count.increment(keys.ge(smallest));
        }
        (smallest, count.sub(V::splat(proof, W::from_u64(plan.keep as u64))))
    }
}

/// The lanes whose key is kept; takes the dropped ones off the excess.
#[inline(always)]
pub(super) fn kept<W: Word, V: Vector<W>>(keys: V, smallest: V, excess: &mut V) -> V::Mask {
    let drop = excess.nonzero_where(keys.equal(smallest));
    *excess = excess.decrement(drop);
    V::without(keys.ge(smallest), drop)
}
