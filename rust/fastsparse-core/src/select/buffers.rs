//! Working memory of the passes, kept from one call to the next.
//!
//! A pass over a large tensor collects some megabytes. Memory of that size goes back to the system
//! when it is freed and comes as fresh pages the next time, and those page faults cost more than
//! the scan of the data (measured: 12 % of a call against 9 %). So a few buffers wait here.

use std::sync::Mutex;

use super::scan::ScanWord;
use crate::error::Result;
use crate::memory;

/// Larger buffers are not kept.
const KEPT_BYTES: usize = 16 << 20;

/// As many buffers are kept for each key type.
const KEPT: usize = 8;

/// The working memory of one thread of a pass.
#[derive(Debug, Default)]
pub struct Buffers<K> {
    /// Keys of the candidates.
    pub keys: Vec<K>,
    /// Positions of the candidates in their tasks.
    pub positions: Vec<u16>,
    /// Room for the positions that one scan collects.
    pub found: Vec<u16>,
    /// Room for keys that are made.
    pub made: Vec<K>,
}

/// Where the buffers of a key type wait. Never waited for: whoever finds it in use (or was forked
/// while it was) allocates.
pub type Spare<K> = Mutex<Vec<Buffers<K>>>;

impl<K: ScanWord> Buffers<K> {
    /// Buffers with no candidates, room for `found` positions and `made` keys.
    pub fn take(found: usize, made: usize) -> Result<Self> {
        let mut buffers = K::spare().try_lock().ok().and_then(|mut spare| spare.pop()).unwrap_or_default();
        buffers.keys.clear();
        buffers.positions.clear();
        memory::grown(&mut buffers.found, found, 0)?;
        memory::grown(&mut buffers.made, made, K::default())?;
        Ok(buffers)
    }

    /// Keeps the buffers for the next call.
    pub fn give_back(self) {
        let bytes = self.keys.capacity() * size_of::<K>() + self.positions.capacity() * size_of::<u16>();
        if let Ok(mut spare) = K::spare().try_lock()
            && bytes <= KEPT_BYTES
            && spare.len() < KEPT
            && spare.try_reserve(1).is_ok()
        {
            spare.push(self);
        }
    }
}
