//! One slot at a time.

use super::Group;
use super::product::totals;
use crate::element::Word;
use crate::isa::Kernel;
use crate::linear::Real;

/// The sums of the rows of a group; `None` where steps are missing.
pub struct Steps<'a, E: Real, C, const SLOTS: usize, const ROWS: usize, const LEN: usize> {
    pub group: Group<'a, E::Bits, C>,
    pub x: &'a [[f32; LEN]],
}

impl<E: Real, C: Word, const SLOTS: usize, const ROWS: usize, const LEN: usize> Kernel
    for Steps<'_, E, C, SLOTS, ROWS, LEN>
{
    type Output = Option<[f32; ROWS]>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let Group { values, columns, steps } = self.group;
        let (mut values, mut columns) = (values.as_chunks::<SLOTS>().0, columns.as_chunks::<SLOTS>().0);
        let [mut now, mut other] = [[0.0; SLOTS]; 2];
        for (&steps, x) in steps.iter().zip(self.x) {
            for (values, columns) in
                values.split_off(..steps as usize)?.iter().zip(columns.split_off(..steps as usize)?)
            {
                for slot in 0..SLOTS {
                    now[slot] += E::to_f32(values[slot]) * x[columns[slot].to_u64() as usize % LEN];
                }
                (now, other) = (other, now);
            }
        }
        for (sum, other) in now.iter_mut().zip(other) {
            *sum += other;
        }
        Some(totals(now))
    }
}
