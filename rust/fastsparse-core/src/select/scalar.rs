//! The scan in plain Rust: the reference of the others.

use super::scan::{Compared, Found, Mode, Query, Seen, store_word};
use crate::element::Word;

/// See [`super::scan::ScanWord::scan`].
pub fn scan<K: Word>(
    data: &[K],
    and: K,
    query: &Query<K>,
    base: usize,
    bits: &mut [u8],
    found: &mut Found<'_>,
) -> Seen<K> {
    let mut seen = Seen::<K>::default();
    for (i, (data, bits)) in data.chunks(64).zip(bits.chunks_mut(8)).enumerate() {
        let mut words = Compared::default();
        for (bit, &key) in data.iter().enumerate() {
            let key = K::from_u64(key.to_u64() & and.to_u64());
            seen.max = seen.max.max(key);
            words.above_hi |= ((key > query.hi) as u64) << bit;
            words.from_hi |= ((key >= query.hi) as u64) << bit;
            words.above_lo |= ((key > query.lo) as u64) << bit;
            words.from_lo |= ((key >= query.lo) as u64) << bit;
        }
        store_word(bits, words.written(query));
        words.count(query.mode, &mut seen);
        if query.mode != Mode::Cut {
            append(words.inside(query.mode), base + i * 64, found);
        }
    }
    seen
}

/// Appends the positions of the set bits.
#[inline(always)]
fn append(mut word: u64, base: usize, found: &mut Found<'_>) {
    while word != 0 {
        found.positions[found.len] = (base + word.trailing_zeros() as usize) as u16;
        found.len += 1;
        word &= word - 1;
    }
}
