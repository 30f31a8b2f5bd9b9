//! The sum of squares of a tensor, in float64: what a mask keeps of it is a share of this.
//!
//! ```text
//! cut the elements into PIECES runs; in each, lane j sums the squares of elements j, j + LANES, …
//! add the lanes, then the runs, in order
//! ```
//!
//! Neither the ISA nor the number of threads changes a bit of the result: the runs follow from the
//! length alone, and nothing fuses the product into the sum.

use crate::element::Element;
use crate::isa::Kernel;
use crate::parallel::{Exec, run_chunks};

/// Runs that threads take in turn.
const PIECES: usize = 64;

/// Two vectors of eight, so that one addition need not wait for the last.
const LANES: usize = 16;

/// Elements for which a thread of its own pays.
const PER_THREAD: usize = 1 << 16;

/// Σ x² over `weights`; NaN and infinity where they lead.
pub fn sum_of_squares<E: Element>(weights: &[E::Bits], exec: Exec) -> f64 {
    let len = weights.len().div_ceil(PIECES).next_multiple_of(LANES);
    let mut sums = [0.0; PIECES];
    run_chunks(exec.for_work(weights.len(), PER_THREAD).threads, &mut sums, 1, |i, sum| {
        let (start, end) = ((i * len).min(weights.len()), ((i + 1) * len).min(weights.len()));
        sum[0] = exec.isa.run(Piece::<E>(&weights[start..end]));
    });
    sums.iter().sum()
}

/// A run of elements.
struct Piece<'a, E: Element>(&'a [E::Bits]);

impl<E: Element> Kernel for Piece<'_, E> {
    type Output = f64;
    #[inline(always)]
    fn run(self) -> f64 {
        let mut lanes = [0.0; LANES];
        let (groups, tail) = self.0.as_chunks::<LANES>();
        for group in groups {
            for (lane, &bits) in lanes.iter_mut().zip(group) {
                let x = E::to_f64(bits);
                *lane += x * x;
            }
        }
        for (lane, &bits) in lanes.iter_mut().zip(tail) {
            let x = E::to_f64(bits);
            *lane += x * x;
        }
        lanes.iter().sum()
    }
}
