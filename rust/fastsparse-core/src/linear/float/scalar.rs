//! One kept weight at a time; nothing is multiplied that was dropped.
//!
//! ```text
//! for each row, for each set bit of its mask, from the lowest, at column c:
//!     sums[c mod 16] += next value · x[c]
//! ```
//!
//! Sixteen sums, as the vectors have them: the error of a sum grows with its length.

use crate::linear::Real;
use crate::linear::activations::{Activations, BLOCK, CHUNK};
use crate::linear::rows::{Task, fold};

/// Sums of a row.
const LANES: usize = 16;

/// Computes the rows of a task and emits (row, batch, sums of the rows from there on). Returns
/// whether mask and offsets agree.
pub fn rows<E: Real>(task: &Task<'_, E::Bits>, x: &Activations<f32>, emit: &dyn Fn(usize, usize, &[f32])) -> bool {
    let cols = task.weights.shape.cols;
    let mut agreed = true;
    for row in task.rows.clone() {
        for b in 0..x.len {
            let mut from = task.row(row);
            let mut sums = [0.0; LANES];
            let mut buffer = [Default::default(); BLOCK];
            for chunk in 0..x.chunks() {
                let (width, x) = x.chunk(chunk);
                for (block, x) in x[b * width..(b + 1) * width].iter().enumerate() {
                    let word = from.word(chunk * CHUNK + block, cols);
                    let (mut left, mut values) = (word, from.window(&mut buffer).iter());
                    while left != 0
                        && let Some(&value) = values.next()
                    {
                        let col = left.trailing_zeros() as usize;
                        sums[col % LANES] += E::to_f32(value) * x.0[col];
                        left &= left - 1;
                    }
                    from.advance(word);
                }
            }
            emit(row, b, &[fold(sums)]);
            agreed &= from.complete();
        }
    }
    agreed
}
