//! Memory that a kernel asks for: where there is not enough, that is an error, where `vec!` would
//! end the process. Everything that grows with the input comes from here.

use std::alloc::{Layout, alloc_zeroed};

use crate::element::Word;
use crate::error::{Error, Result};

/// The error for `len` items of a type.
fn too_much<T>(len: usize) -> Error {
    Error::OutOfMemory { bytes: len.saturating_mul(size_of::<T>()) }
}

/// An empty vector with room for `len` items.
pub(crate) fn with_capacity<T>(len: usize) -> Result<Vec<T>> {
    let mut items = Vec::new();
    items.try_reserve_exact(len).map_err(|_| too_much::<T>(len))?;
    Ok(items)
}

/// `len` copies of a value.
pub(crate) fn filled<T: Clone>(len: usize, value: T) -> Result<Vec<T>> {
    let mut items = with_capacity(len)?;
    items.resize(len, value);
    Ok(items)
}

/// `len` zeros, as the system gives them: pages that nobody writes to cost nothing.
pub(crate) fn zeros<W: Word>(len: usize) -> Result<Vec<W>> {
    let layout = Layout::array::<W>(len).map_err(|_| too_much::<W>(len))?;
    if len == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the layout is not empty.
    let start = unsafe { alloc_zeroed(layout) };
    if start.is_null() {
        return Err(too_much::<W>(len));
    }
    // SAFETY: allocated above by the allocator of vectors, with the layout of `len` words, and
    // words may be zero.
    Ok(unsafe { Vec::from_raw_parts(start.cast(), len, len) })
}

/// What the iterator gives.
pub(crate) fn collect<T>(items: impl Iterator<Item = T>) -> Result<Vec<T>> {
    let mut collected = with_capacity(items.size_hint().0)?;
    for item in items {
        push(&mut collected, item)?;
    }
    Ok(collected)
}

/// Appends an item.
pub(crate) fn push<T>(items: &mut Vec<T>, item: T) -> Result<()> {
    items.try_reserve(1).map_err(|_| too_much::<T>(items.len() + 1))?;
    items.push(item);
    Ok(())
}

/// Appends items.
pub(crate) fn extend<T: Clone>(items: &mut Vec<T>, more: &[T]) -> Result<()> {
    items.try_reserve(more.len()).map_err(|_| too_much::<T>(items.len() + more.len()))?;
    items.extend_from_slice(more);
    Ok(())
}

/// The first `len` items, after as many copies of `value` were appended as are missing.
pub(crate) fn grown<T: Clone>(items: &mut Vec<T>, len: usize, value: T) -> Result<&mut [T]> {
    if let Some(more) = len.checked_sub(items.len()) {
        items.try_reserve(more).map_err(|_| too_much::<T>(len))?;
        items.resize(len, value);
    }
    Ok(&mut items[..len])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "it asks for more memory than Miri allows")]
    fn too_much_is_an_error() {
        assert_eq!(filled(3, 7u16), Ok(vec![7; 3]));
        assert_eq!(zeros::<u64>(5), Ok(vec![0; 5]));
        assert_eq!(zeros::<u8>(0), Ok(vec![]));
        assert_eq!(collect((0..9).filter(|i| i % 2 == 0)), Ok(vec![0, 2, 4, 6, 8]));
        let mut items = vec![1];
        assert_eq!(grown(&mut items, 3, 2), Ok(&mut [1, 2, 2][..]));
        assert_eq!(grown(&mut items, 2, 9), Ok(&mut [1, 2][..]));
        assert_eq!(filled(usize::MAX, 0u64), Err(Error::OutOfMemory { bytes: usize::MAX }));
        // More than any address space has.
        for bytes in [1 << 60, usize::MAX] {
            assert_eq!(filled(bytes, 0u8), Err(Error::OutOfMemory { bytes }));
            assert_eq!(zeros::<u8>(bytes), Err(Error::OutOfMemory { bytes }));
            assert_eq!(grown(&mut vec![0u8], bytes, 0), Err(Error::OutOfMemory { bytes }));
        }
        assert!(with_capacity::<u32>(9).unwrap().capacity() >= 9);
    }
}
