//! Vectors of words of any width: what the kernels of several operations share, one file an ISA.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;

/// Bytes of an output from which on it is written past the caches: a constant, since what the CPU
/// says about its caches is no share that one process can count on. Measured on Zen 4 (32 MiB of
/// L3), against plain stores, unpacking and masking float32 alone and with a reader after it: 1.2 –
/// 2 times the time up to 4 MiB, level at 16 MiB, 0.7 – 0.9 from 24 MiB on.
const STREAM_BYTES: usize = 16 << 20;

/// Bytes of a row below which it is not: both its ends, where lines are shared with other rows, go
/// through the caches.
const STREAM_ROW_BYTES: usize = 4096;

/// Whether an output of `bytes`, in rows of `row_bytes`, is written past the caches.
pub(crate) fn streams(bytes: usize, row_bytes: usize) -> bool {
    bytes >= STREAM_BYTES && row_bytes >= STREAM_ROW_BYTES
}

/// Stores past the caches are in order with other stores only after a fence. This one is made where
/// the scope of the guard ends, however it is left.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Fence<const STREAM: bool>;

#[cfg(target_arch = "x86_64")]
impl<const STREAM: bool> Drop for Fence<STREAM> {
    #[inline]
    fn drop(&mut self) {
        if STREAM {
            // SAFETY: every x86-64 has the instruction.
            unsafe { std::arch::x86_64::_mm_sfence() };
        }
    }
}

/// Asks for the cache line of a place that will be read soon; any address may be named.
#[inline(always)]
pub(crate) fn prefetch<T>(place: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: every x86-64 has the instruction, which neither faults nor changes what the program
    // sees.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(place.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = place;
}
