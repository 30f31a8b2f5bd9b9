//! One slot at a time.

use super::{Block, Group, SLOTS, Sums};
use crate::isa::Kernel;
use crate::linear::Real;

/// The sums of a group; `None` where steps are missing.
pub struct Rows<'a, E: Real> {
    pub group: Group<'a, E::Bits>,
    pub x: &'a [Block<f32>],
}

impl<E: Real> Kernel for Rows<'_, E> {
    type Output = Option<Sums>;

    #[inline(always)]
    fn run(self) -> Option<Sums> {
        let Group { mut values, mut columns, steps } = self.group;
        let [mut now, mut other] = [[0.0; SLOTS]; 2];
        for (&steps, x) in steps.iter().zip(self.x) {
            for (values, columns) in
                values.split_off(..steps as usize)?.iter().zip(columns.split_off(..steps as usize)?)
            {
                for slot in 0..SLOTS {
                    now[slot] += E::to_f32(values[slot]) * x.0[columns[slot] as usize];
                }
                (now, other) = (other, now);
            }
        }
        Some([now, other])
    }
}
