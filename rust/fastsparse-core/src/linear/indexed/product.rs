//! The product: activations in blocks, groups of rows shared among threads, and which kernel
//! computes a group.

use super::{Column, Group, Indexed, grid, scalar, width};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::element::{DType, Word};
use crate::error::{Error, Result};
use crate::isa::{Isa, Kernel};
use crate::linear::Real;
use crate::linear::activations::COPY_PER_THREAD;
use crate::linear::call::Call;
use crate::memory::filled;
use crate::parallel::{run_chunks, try_run};

/// Rows that a thread takes at a time.
const TASK: usize = 32;

impl Column for u8 {
    const ROWS: usize = 16;
    const SLOTS: usize = 32;
    const LEN: usize = 256;

    fn compute<E: Real, X: Real>(call: &Call<'_, Indexed<'_, E::Bits, u8>, X>) -> Result<()> {
        const LEN: usize = u8::LEN;
        const ROWS: usize = <u8 as Column>::ROWS;
        let isa = call.exec.isa;
        #[cfg(target_arch = "x86_64")]
        {
            if let (Some(token), DType::BF16, DType::BF16) = (isa.avx512_bf16(), E::DTYPE, X::DTYPE) {
                let x = call.activations::<_, LEN>(|x| x.to_u64() as u16)?;
                // SAFETY: the token proves the features.
                return call.each_group(&x, |group, x| unsafe { avx512::pairs(token, group, x) });
            }
            if let Isa::Avx512(token) = isa {
                let x = call.activations::<_, LEN>(X::to_f32)?;
                // SAFETY: the token proves the features.
                return call.each_group(&x, |group, x| unsafe { avx512::floats::<E>(token, group, x) });
            }
        }
        let x = call.activations::<_, LEN>(X::to_f32)?;
        call.each_group(&x, |group, x| isa.run(scalar::Steps::<E, u8, { u8::SLOTS }, ROWS, LEN> { group, x }))
    }
}

impl Column for u16 {
    const ROWS: usize = 1;
    const SLOTS: usize = 16;
    const LEN: usize = 1 << 13;

    fn compute<E: Real, X: Real>(call: &Call<'_, Indexed<'_, E::Bits, u16>, X>) -> Result<()> {
        const LEN: usize = u16::LEN;
        let isa = call.exec.isa;
        let x = call.activations::<_, LEN>(X::to_f32)?;
        #[cfg(target_arch = "x86_64")]
        if let Some(token) = isa.avx2() {
            // SAFETY: the token proves the features.
            return call.each_group(&x, |group, x| unsafe { avx2::floats::<E>(token, group, x) });
        }
        call.each_group(&x, |group, x| isa.run(scalar::Steps::<E, u16, { u16::SLOTS }, 1, LEN> { group, x }))
    }
}

/// The sums of rows from those of their slots, upper half onto lower half.
#[inline(always)]
pub fn totals<const SLOTS: usize, const ROWS: usize>(mut sums: [f32; SLOTS]) -> [f32; ROWS] {
    let mut totals = [0.0; ROWS];
    for (total, slots) in totals.iter_mut().zip(sums.chunks_exact_mut(SLOTS / ROWS)) {
        let mut half = SLOTS / ROWS / 2;
        while half > 0 {
            for i in 0..half {
                slots[i] += slots[i + half];
            }
            half /= 2;
        }
        *total = slots[0];
    }
    totals
}

impl<W: Word, C: Column, X: Real> Call<'_, Indexed<'_, W, C>, X> {
    /// Rows of blocks, each with zeros after it.
    fn activations<T: Copy + Default + Send, const LEN: usize>(
        &self,
        convert: impl Fn(X::Bits) -> T + Copy + Sync,
    ) -> Result<Vec<T>> {
        let shape = self.weights.shape;
        let (cols, each) = (shape.cols, grid::<C>(shape).cols);
        let mut blocks = filled(self.batch.saturating_mul(each * LEN), T::default())?;
        let threads = self.exec.for_work(self.x.len(), COPY_PER_THREAD).threads;
        run_chunks(threads, &mut blocks, each.max(1) * LEN, |b, to| {
            let from = &self.x[b * cols..(b + 1) * cols];
            let to = to.as_chunks_mut::<LEN>().0;
            self.exec.isa.run(Fill { from, width: width::<C>(shape), to, convert });
        });
        Ok(blocks)
    }

    /// Computes and writes the results of each group for each row of activations.
    fn each_group<T: Sync, const LEN: usize, const ROWS: usize>(
        &self,
        x: &[T],
        sums: impl Fn(Group<'_, W, C>, &[[T; LEN]]) -> Option<[f32; ROWS]> + Sync,
    ) -> Result<()> {
        let Call { weights, batch, ref results, .. } = *self;
        let (rows, grid) = (weights.shape.rows, grid::<C>(weights.shape));
        let groups = TASK / ROWS;
        let x = x.as_chunks::<LEN>().0;
        try_run(self.exec.threads, grid.rows.div_ceil(groups), |task| {
            let numbers = task * groups..grid.rows.min((task + 1) * groups);
            // SAFETY: tasks have distinct groups, those have distinct rows, and a task runs once.
            let part = unsafe { results.of(numbers.start * ROWS..rows.min(numbers.end * ROWS)) };
            for number in numbers {
                let group = weights.group(number).ok_or(Error::Changed)?;
                let first = number * ROWS;
                let len = ROWS.min(rows - first);
                for b in 0..batch {
                    let x = &x[b * grid.cols..(b + 1) * grid.cols];
                    let sums = sums(group, x).ok_or(Error::Changed)?;
                    part.write(first, b, &sums[..len]);
                }
            }
            Ok(())
        })
    }
}

struct Fill<'a, W, T, F, const LEN: usize> {
    from: &'a [W],
    width: usize,
    to: &'a mut [[T; LEN]],
    convert: F,
}

impl<W: Word, T, F: Fn(W) -> T, const LEN: usize> Kernel for Fill<'_, W, T, F, LEN> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (from, to) in self.from.chunks(self.width).zip(self.to) {
            for (from, to) in from.iter().zip(to) {
                *to = (self.convert)(*from);
            }
        }
    }
}
