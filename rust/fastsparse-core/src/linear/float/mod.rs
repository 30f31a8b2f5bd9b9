//! Layers of float weights: which kernel computes a call, and the tasks that share it.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_asm;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod broadcast;
#[cfg(target_arch = "x86_64")]
mod direct;
#[cfg(target_arch = "x86_64")]
mod engine;
mod scalar;
pub(super) mod strategy;
#[cfg(target_arch = "x86_64")]
mod tiled;
mod vector;

use std::marker::PhantomData;

use super::activations::{self, Activations};
#[cfg(target_arch = "x86_64")]
use super::amx;
use super::call::{Call, each_panel};
use super::rows::{self, Task};
use super::{Real, Weights, threads_for, work};
use crate::element::Word;
use crate::error::{Error, Result};
use crate::parallel::Exec;
#[cfg(target_arch = "x86_64")]
use crate::parallel::try_map;
use crate::unpack::check_parts;
use strategy::{Level, Method, Product};
pub(super) use vector::{FloatVector, Plain};

/// Writes `x · weightsᵀ + bias` to `out`: `x` has as many rows of `cols` elements as `out` has of
/// `rows`.
pub fn linear<E: Real, X: Real>(
    weights: Weights<'_, E::Bits>,
    x: &[X::Bits],
    bias: Option<&[f32]>,
    exec: Exec,
    out: &mut [X::Bits],
) -> Result<()> {
    linear_by::<E, X>(|product| strategy::method(Level::of(exec.isa), product), weights, x, bias, exec, out)
}

/// [`linear`] with a kernel that `method` chooses, for tests and measurements. What the ISA does
/// not have is computed by one that it has.
pub fn linear_by<E: Real, X: Real>(
    method: impl Fn(Product) -> Method,
    weights: Weights<'_, E::Bits>,
    x: &[X::Bits],
    bias: Option<&[f32]>,
    exec: Exec,
    out: &mut [X::Bits],
) -> Result<()> {
    let Weights { shape, values, mask, offsets, .. } = weights;
    assert!(mask.len() == shape.mask_bytes() && offsets.len() == shape.rows + 1);
    assert!(weights.groups.is_none_or(|groups| groups.of > 0 && groups.keep <= groups.of));
    let mut agreed = offsets[0] == 0 && offsets[shape.rows] == values.len() as i64;
    let exec = |batch| threads_for(exec, work(weights, batch));
    each_panel((weights, shape), x, bias, exec, out, |call: Call<'_, _, X>| {
        let product =
            Product { weights: E::DTYPE, x: X::DTYPE, batch: call.batch, kept: values.len(), all: shape.len() };
        agreed &= call.run::<E>(method(product))?;
        Ok(())
    })?;
    if agreed {
        return Ok(());
    }
    check_parts(values.len(), shape, mask, offsets)?;
    Err(Error::Changed)
}

impl<W: Word, X: Real> Call<'_, Weights<'_, W>, X> {
    /// Computes it. Returns whether mask and offsets agree.
    fn run<E: Real<Bits = W>>(&self, method: Method) -> Result<bool> {
        #[cfg(target_arch = "x86_64")]
        if let Some(agreed) = self.on_x86::<E>(method)? {
            return Ok(agreed);
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = method;
        let all: Vec<usize> = (0..self.batch).collect();
        self.scalar::<E>(&all)
    }

    /// Computes some rows of x one weight at a time.
    fn scalar<E: Real<Bits = W>>(&self, batch: &[usize]) -> Result<bool> {
        let row = |i| Some(self.row(batch[i]));
        let x = Activations::new(row, batch.len(), self.weights.shape.cols, self.exec, X::to_f32, |i| i)?;
        self.each_task(
            rows::rows(self.weights.shape, 1, self.exec.threads),
            || Ok(()),
            |(), task, emit| scalar::rows::<E>(task, &x, &|row, i, sums| emit(row, batch[i], sums)),
        )
    }

    /// With vectors, where the ISA has them. They multiply dropped weights as zeros: rows of x that
    /// are not finite are zeros to them and computed once more.
    #[cfg(target_arch = "x86_64")]
    fn on_x86<E: Real<Bits = W>>(&self, method: Method) -> Result<Option<bool>> {
        use crate::element::DType;
        use crate::isa::Isa;

        let threads = self.exec.for_work(self.x.len(), activations::COPY_PER_THREAD).threads;
        let finite = try_map(threads, self.batch, |b| {
            Ok(engine::finite(self.exec.isa, self.row(b), X::magnitude, X::MAX_MAGNITUDE))
        })?;
        let direct = method == Method::Direct;
        // Conditions of constants, so that no engine is compiled for types that it does not take.
        let agreed = match self.exec.isa {
            Isa::Avx512(token) => {
                if method == Method::Broadcast {
                    self.broadcast::<E, _>(token, &finite)
                } else if const { strategy::is_bf16(E::DTYPE, X::DTYPE) }
                    && method == Method::Amx
                    && let Some(token) = self.exec.isa.amx()
                {
                    self.tiles(amx::Bf16::<E>(token, PhantomData), &finite)
                } else if const { strategy::is_bf16(E::DTYPE, X::DTYPE) }
                    && strategy::in_pairs(Level::of(self.exec.isa))
                    && let Some(token) = self.exec.isa.avx512_bf16()
                {
                    self.vectors(avx512::Pairs::<E>::new(token), direct, &finite, |x| x.to_u64() as u16)
                } else if const { matches!(E::DTYPE, DType::F32) } {
                    self.vectors(avx512::Floats::<E>::new(token), direct, &finite, X::to_f32)
                } else {
                    self.vectors(avx512::Halves::<E>::new(token), direct, &finite, X::to_f32)
                }
            }
            Isa::Avx2(token) if method == Method::Broadcast => self.broadcast::<E, _>(token, &finite),
            Isa::Avx2(token) => self.vectors(avx2::Floats::<E>::new(token), direct, &finite, X::to_f32),
            Isa::Scalar => return Ok(None),
        }?;
        let others: Vec<usize> = (0..self.batch).filter(|&b| !finite[b]).collect();
        Ok(Some(agreed && (others.is_empty() || self.scalar::<E>(&others)?)))
    }

    #[cfg(target_arch = "x86_64")]
    fn vectors<V: engine::Engine<Weight = W>>(
        &self,
        engine: V,
        direct: bool,
        finite: &[bool],
        convert: impl Fn(X::Bits) -> V::Lane + Copy + Sync,
    ) -> Result<bool> {
        let row = |b: usize| finite[b].then(|| self.row(b));
        let x = &Activations::new(row, self.batch, self.weights.shape.cols, self.exec, convert, V::place)?;
        let scratch = || engine::Scratch::new(engine, x.len, direct);
        let rows = rows::rows(self.weights.shape, engine::rows_per_tile::<V>(direct), self.exec.threads);
        self.each_task(rows, scratch, |scratch, task, emit| {
            engine.run(engine::Work { engine, task, x, scratch, direct, emit })
        })
    }

    #[cfg(target_arch = "x86_64")]
    fn tiles<K: amx::Numbers<Bits = W, Sum = f32>>(&self, numbers: K, finite: &[bool]) -> Result<bool> {
        let row = |b: usize| finite[b].then(|| self.row(b));
        let x = &amx::Tiles::new(numbers, row, self.batch, self.weights.shape.cols, self.exec)?;
        let rows = rows::rows(self.weights.shape, amx::ROWS, self.exec.threads);
        let scratch = || amx::Scratch::new(numbers, self.batch);
        self.each_task(rows, scratch, |scratch, task, emit| amx::Work { numbers, task, x, scratch, emit }.compute())
    }

    #[cfg(target_arch = "x86_64")]
    fn broadcast<E: Real<Bits = W>, V: vector::SetBits>(&self, vectors: V, finite: &[bool]) -> Result<bool> {
        let row = |b: usize| finite[b].then(|| self.row(b));
        let x = &broadcast::Columns::new::<V, X>(vectors, row, self.batch, self.weights.shape.cols, self.exec)?;
        let rows = broadcast::rows(self.weights.shape.rows, self.exec.threads);
        self.each_task(rows, broadcast::Scratch::new, |scratch, task, emit| {
            vectors.run(broadcast::Work::<V, E> { vectors, task, x, scratch, emit })
        })
    }

    /// Calls `kernel(state, task, emit)` for every task of `rows` rows; it emits (row, batch, sums
    /// of the rows from there on).
    fn each_task<S: Send>(
        &self,
        rows: usize,
        state: impl Fn() -> Result<S> + Sync,
        kernel: impl Fn(&mut S, &Task<'_, W>, &dyn Fn(usize, usize, &[f32])) -> bool + Sync,
    ) -> Result<bool> {
        rows::each_task(self.weights, &self.results, rows, self.exec.threads, state, |state, task, part| {
            kernel(state, task, &|row, b, sums| part.write(row, b, sums))
        })
    }
}
