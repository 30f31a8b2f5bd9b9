//! Exact selection of the items to keep: over everything, in each row, or above a value.
//!
//! Contract. `keys` holds the items of a grid row by row; a set bit in `bits` (mask layout of the
//! grid, padding bits 0) is an item that is kept. Exactly `zeros` items are dropped; they are the
//! smallest, and of equal items those with the higher index. The result does not depend on the ISA
//! or the number of threads. A NaN among the keys is an error that names the first one.
//!
//! Method. A random sample brackets the wanted key between `lo` and `hi`, 3.5 standard deviations
//! of the sample's rank around it. One pass over the data then writes the mask of what is above the
//! bracket, counts it, and collects the items inside (about two per cent); the wanted key is found
//! among those, and their bits are set. Counting makes it exact: a bracket that misses is seen to
//! miss, and the next one is wider, at last a bisection that cannot miss. The bisection collects
//! nothing, so it also serves where there is no memory for the candidates.
//!
//! ```text
//! loop:
//!     (lo, hi) = bracket of rank `keep`              from the last row, the sample, or bisection
//!     scan: mask = key > hi; count it; collect lo ≤ key ≤ hi
//!     if count ≤ keep ≤ count + collected: break
//! T = (keep − count)-th largest of the collected
//! set the bits of the collected that are > T, and of the first that are = T
//! ```
//!
//! Repeated values. By construction at most a few per cent of the sample lie strictly inside the
//! bracket, so only its edges can be heavy. Where the sample says they are, the pass counts the
//! items equal to `lo` and to `hi` instead of collecting them. Which of the four masks `> hi`, `≥
//! hi`, `> lo`, `≥ lo` is written is a guess that costs a second look only at the part of the data
//! where it was wrong.
//!
//! Small inputs, and rows of 8 and 16 bits, take another way: a cache holds them, so the cut is
//! found by counting and the mask written once it is known (`counting.rs`). Nothing is collected.

mod bracket;
mod buffers;
mod candidates;
mod counting;
mod engine;
mod scan;
mod tasks;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

use crate::element::Word;
use crate::error::Result;
use crate::matrix::Matrix;
use crate::parallel::{Exec, SharedMut, try_run_with};
use engine::Engine;
pub(crate) use scan::{Cut, Found, Query};
pub use scan::{ScanKeys, ScanWord};
use tasks::Tasks;

/// Number of zeros that a sparsity means for `items`: half to even on the float64 product.
pub fn zeros_of(sparsity: f64, items: usize) -> usize {
    ((sparsity * items as f64).round_ties_even() as usize).min(items)
}

/// Drops the `zeros` smallest items of the whole grid.
pub fn smallest<K: ScanKeys>(keys: &K, grid: Matrix, zeros: usize, exec: Exec, bits: &mut [u8]) -> Result<()> {
    let tasks = Tasks::new(grid, 0, keys.masked().is_some());
    Engine::new(keys, tasks, exec).select(grid.len() - zeros, &mut None, bits)
}

/// Drops the `zeros` smallest items of each row.
pub fn smallest_per_row<K: ScanKeys>(keys: &K, grid: Matrix, zeros: usize, exec: Exec, bits: &mut [u8]) -> Result<()> {
    if grid.is_empty() {
        return Ok(());
    }
    let row = Matrix { rows: 1, cols: grid.cols };
    // Rows of a weight are alike: where the last one was cut is where to look in the next.
    let rows_per_task = (tasks::TASK_ITEMS / grid.cols).max(1);
    let shared = SharedMut::new(bits);
    let exec = exec.for_work(grid.len(), tasks::TASK_ITEMS);
    try_run_with(
        exec.threads,
        grid.rows.div_ceil(rows_per_task),
        || Ok(None),
        |hint, task| {
            for at in task * rows_per_task..grid.rows.min((task + 1) * rows_per_task) {
                // SAFETY: rows of distinct tasks do not overlap.
                let bits = unsafe { shared.slice(at * grid.row_bytes(), grid.row_bytes()) };
                let engine = Engine::new(keys, Tasks::new(row, at * grid.cols, false), Exec::single(exec.isa));
                engine.select(grid.cols - zeros, hint, bits)?;
            }
            Ok(())
        },
    )?;
    Ok(())
}

/// Keeps the items whose number is above `value`.
pub fn above_value<K: ScanKeys>(keys: &K, grid: Matrix, value: f64, exec: Exec, bits: &mut [u8]) -> Result<()> {
    let cut = match floor_key(keys, value) {
        Some(floor) => Cut { at: floor, ties: false },
        None => Cut { at: Word::from_u64(0), ties: true },
    };
    Engine::new(keys, Tasks::new(grid, 0, keys.masked().is_some()), exec).write(Query::cut(cut), bits)
}

/// Keeps the items whose key is not 0.
pub fn nonzero<K: ScanKeys>(keys: &K, grid: Matrix, exec: Exec, bits: &mut [u8]) -> Result<()> {
    let cut = Cut { at: Word::from_u64(0), ties: false };
    Engine::new(keys, Tasks::new(grid, 0, keys.masked().is_some()), exec).write(Query::cut(cut), bits)
}

/// The largest key that stands for a number ≤ `value`, or `None` if every number is above it.
fn floor_key<K: ScanKeys>(keys: &K, value: f64) -> Option<K::Key> {
    let (mut low, mut high) = (0u64, keys.max_key().to_u64());
    if keys.value(K::Key::from_u64(high)) <= value {
        return Some(keys.max_key());
    }
    // Invariant: value(high) > value; everything below `low` is ≤ value. Keys below that of the
    // smallest number stand for NaN; they do not occur, and `!(x > value)` puts them below.
    while low < high {
        let middle = low + (high - low) / 2;
        if keys.value(K::Key::from_u64(middle)) > value { high = middle } else { low = middle + 1 }
    }
    low.checked_sub(1).map(K::Key::from_u64)
}
