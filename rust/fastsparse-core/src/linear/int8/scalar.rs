//! One kept weight at a time.
//!
//! ```text
//! for each row, for each set bit of its mask, from the lowest, at column c:
//!     sum += next value · x[c]
//! ```

use super::Emit;
use crate::linear::activations::BLOCK;
use crate::linear::rows::Task;

/// Computes the rows of a task for `batch` rows of x. Returns whether mask and offsets agree.
pub fn rows(task: &Task<'_, u8>, x: &[u8], batch: usize, emit: &Emit<'_>) -> bool {
    let cols = task.weights.shape.cols;
    let mut agreed = true;
    for row in task.rows.clone() {
        for b in 0..batch {
            let mut from = task.row(row);
            let mut sum = 0;
            let mut buffer = [0; BLOCK];
            for (block, x) in x[b * cols..(b + 1) * cols].chunks(BLOCK).enumerate() {
                let word = from.word(block, cols);
                let (mut left, mut values) = (word, from.window(&mut buffer).iter());
                while left != 0
                    && let Some(&value) = values.next()
                {
                    sum += value as i8 as i64 * x[left.trailing_zeros() as usize] as i8 as i64;
                    left &= left - 1;
                }
                from.advance(word);
            }
            emit(row, b, &[sum]);
            agreed &= from.complete();
        }
    }
    agreed
}
