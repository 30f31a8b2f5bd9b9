//! Memory that a kernel asks for: too much of it is an error, where `vec!` would end the process.

use crate::error::{Error, Result};

/// `len` copies of a value.
pub(crate) fn filled<T: Clone>(len: usize, value: T) -> Result<Vec<T>> {
    let mut items = with_capacity(len)?;
    items.resize(len, value);
    Ok(items)
}

/// An empty vector with room for `len` items.
pub(crate) fn with_capacity<T>(len: usize) -> Result<Vec<T>> {
    let mut items = Vec::new();
    let bytes = len.saturating_mul(size_of::<T>());
    items.try_reserve_exact(len).map_err(|_| Error::OutOfMemory { bytes })?;
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_much_is_an_error() {
        assert_eq!(filled(3, 7u16), Ok(vec![7; 3]));
        assert_eq!(filled(usize::MAX, 0u64), Err(Error::OutOfMemory { bytes: usize::MAX }));
        // More than any address space has.
        assert_eq!(filled(1 << 60, 0u8), Err(Error::OutOfMemory { bytes: 1 << 60 }));
        assert!(with_capacity::<u32>(9).unwrap().capacity() >= 9);
    }
}
