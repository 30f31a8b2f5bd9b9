//! The keys of blocks, made on the fly from weights or scores.

use std::borrow::Cow;
use std::marker::PhantomData;

use super::norms::{self, L1, L2, Largest, Measure, Region, Scratch, Signed};
use super::widen::Widen;
use super::{Blocks, Norm, Place};
use crate::dispatch;
use crate::element::{BF16, Element, Elements, F8E4M3, F8E5M2, F16, F32, F64, I8, U8, Word};
use crate::error::{Error, Result};
use crate::isa::{Isa, Kernel};
use crate::keys::{ColumnScale, Keys, Ranking};
use crate::matrix::Matrix;
use crate::memory;
use crate::vector::prefetch;

/// Weights that are widened or scaled at a time: 8 KiB of float32.
const MADE: usize = 2048;

/// `with_weights!(elements, weights => expression)`: the expression with `weights` the [`Weights`]
/// that serve best. Narrow types other than bfloat16, which takes a shift, become float32 first:
/// that costs little and saves a copy of all kernels each.
macro_rules! with_weights {
    ($elements:expr, $weights:ident => $body:expr) => {
        match $elements {
            Elements::F64(data) => with_weights!(Plain::<F64>(data), $weights, $body),
            Elements::F32(data) => with_weights!(Plain::<F32>(data), $weights, $body),
            Elements::BF16(data) => with_weights!(Plain::<BF16>(data), $weights, $body),
            Elements::F16(data) => with_weights!(Widened::<F16>(data, None), $weights, $body),
            Elements::F8E4M3(data) => with_weights!(Widened::<F8E4M3>(data, None), $weights, $body),
            Elements::F8E5M2(data) => with_weights!(Widened::<F8E5M2>(data, None), $weights, $body),
            Elements::I8(data) => with_weights!(Widened::<I8>(data, None), $weights, $body),
            Elements::U8(data) => with_weights!(Widened::<U8>(data, None), $weights, $body),
        }
    };
    ($made:expr, $weights:ident, $body:expr) => {{
        let $weights = $made;
        $body
    }};
}

/// The norms of blocks as keys: the bits of a float64 ≥ 0, or its order key where scores are
/// signed.
pub struct BlockKeys<'a> {
    blocks: Blocks,
    signed: bool,
    norms: Box<dyn Norms + 'a>,
}

impl<'a> BlockKeys<'a> {
    /// The keys of `blocks`, one after the other, in the tensor that `ranking` holds and `shape` is
    /// the matrix view of.
    pub fn new(ranking: Ranking<'a>, shape: Matrix, blocks: Blocks, norm: Norm, isa: Isa) -> Result<Self> {
        let blocks = blocks.normal(shape);
        let norms = match ranking {
            Ranking::Magnitude(w) => with_weights!(w, weights => of_magnitudes(weights, blocks, norm, isa)),
            Ranking::Scaled32(w, scale) => dispatch!(w, E, data => {
                of_magnitudes(Widened::<E>(data, Some(expanded(scale)?)), blocks, norm, isa)
            }),
            Ranking::Scaled64(data, scale) => of_magnitudes(Scaled64(data, expanded(scale)?), blocks, norm, isa),
            Ranking::Scores(scores) => with_weights!(scores, weights => boxed::<_, Signed>(weights, blocks, isa)),
        };
        Ok(BlockKeys { blocks, signed: matches!(ranking, Ranking::Scores(_)), norms })
    }
}

impl Keys for BlockKeys<'_> {
    type Key = u64;

    fn len(&self) -> usize {
        self.blocks.grid().len()
    }

    fn max_key(&self) -> u64 {
        if self.signed { F64::MAX_ORDERED } else { F64::MAX_MAGNITUDE }
    }

    fn value(&self, key: u64) -> f64 {
        if self.signed { F64::ordered_value(key) } else { F64::magnitude_value(key) }
    }

    fn fill(&self, start: usize, out: &mut [u64]) -> Result<()> {
        self.norms.fill(start, out)
    }

    fn prefetch(&self, block: usize) {
        let place = self.blocks.place(block, 1);
        (0..place.lines).for_each(|line| self.norms.prefetch(place.first + line * place.stride));
    }

    fn elements_per_item(&self) -> usize {
        self.blocks.size()
    }

    fn nan_error(&self, block: usize) -> Error {
        let place = self.blocks.place(block, 1);
        for line in 0..place.lines {
            let start = place.first + line * place.stride;
            for index in start..start + place.cols {
                match self.norms.is_nan(index) {
                    Ok(true) => return Error::Nan { index },
                    Ok(false) => {}
                    Err(error) => return error,
                }
            }
        }
        Error::BlockNan { block }
    }
}

/// Norms without the types of elements and measures: one instance of the selection serves all of
/// them.
trait Norms: Sync {
    /// Writes the keys of the blocks from `start` on.
    fn fill(&self, start: usize, keys: &mut [u64]) -> Result<()>;
    /// Asks for the memory of element `index`.
    fn prefetch(&self, index: usize);
    /// Whether element `index` is ranked as NaN.
    fn is_nan(&self, index: usize) -> Result<bool>;
}

fn of_magnitudes<'a, W: Weights + 'a>(weights: W, blocks: Blocks, norm: Norm, isa: Isa) -> Box<dyn Norms + 'a> {
    match norm {
        Norm::L1 => boxed::<W, L1>(weights, blocks, isa),
        Norm::L2 => boxed::<W, L2>(weights, blocks, isa),
        Norm::Max => boxed::<W, Largest>(weights, blocks, isa),
    }
}

fn boxed<'a, W: Weights + 'a, M: Measure<W::E>>(weights: W, blocks: Blocks, isa: Isa) -> Box<dyn Norms + 'a> {
    Box::new(Measured { weights, blocks, isa, measure: PhantomData::<M> })
}

struct Measured<W, M> {
    weights: W,
    blocks: Blocks,
    isa: Isa,
    measure: PhantomData<M>,
}

impl<W: Weights, M: Measure<W::E>> Norms for Measured<W, M> {
    fn fill(&self, start: usize, mut keys: &mut [u64]) -> Result<()> {
        let mut scratch = Scratch::default();
        let mut buffer = Vec::new();
        let mut block = start;
        while !keys.is_empty() {
            let place = self.blocks.place(block, keys.len().min(W::PIECE / self.blocks.size()).max(1));
            let (now, later) = keys.split_at_mut(place.cols.div_ceil(self.blocks.wide));
            let region = self.weights.region(place, self.isa, &mut buffer)?;
            norms::keys::<W::E, M>(self.isa, region, self.blocks.wide, &mut scratch, now)?;
            block += now.len();
            keys = later;
        }
        Ok(())
    }

    fn prefetch(&self, index: usize) {
        self.weights.prefetch(index);
    }

    fn is_nan(&self, index: usize) -> Result<bool> {
        let place = Place { first: index, stride: 0, lines: 1, cols: 1 };
        let mut buffer = Vec::new();
        Ok(W::E::to_f64(self.weights.region(place, self.isa, &mut buffer)?.data[0]).is_nan())
    }
}

/// What blocks are made of, as elements of type `E`.
trait Weights: Sync {
    /// The type of what is ranked.
    type E: Element;
    /// Elements to ask for at a time.
    const PIECE: usize;
    /// Asks for the memory of element `index`.
    fn prefetch(&self, index: usize);
    /// The elements at `place`, where they are or made in `buffer`.
    fn region<'s>(
        &'s self,
        place: Place,
        isa: Isa,
        buffer: &'s mut Vec<<Self::E as Element>::Bits>,
    ) -> Result<Region<'s, <Self::E as Element>::Bits>>;
}

/// As they are.
struct Plain<'a, E: Element>(&'a [E::Bits]);

impl<E: Element> Weights for Plain<'_, E> {
    type E = E;
    const PIECE: usize = usize::MAX;
    fn prefetch(&self, index: usize) {
        prefetch(self.0.as_ptr().wrapping_add(index));
    }
    fn region<'s>(&'s self, place: Place, _isa: Isa, _buffer: &'s mut Vec<E::Bits>) -> Result<Region<'s, E::Bits>> {
        Ok(Region { data: &self.0[place.first..], stride: place.stride, lines: place.lines, cols: place.cols })
    }
}

/// In float32, times a factor for each column where there are any.
struct Widened<'a, E: Element>(&'a [E::Bits], Option<Cow<'a, [f32]>>);

impl<E: Widen> Weights for Widened<'_, E> {
    type E = F32;
    const PIECE: usize = MADE;
    fn prefetch(&self, index: usize) {
        prefetch(self.0.as_ptr().wrapping_add(index));
    }
    fn region<'s>(&'s self, place: Place, isa: Isa, buffer: &'s mut Vec<u32>) -> Result<Region<'s, u32>> {
        made(place, buffer, |start, out| {
            E::widen(isa, &self.0[start..][..out.len()], out);
            if let Some(factors) = &self.1 {
                let product = |a: u32, b: f32| (f32::from_bits(a) * b).to_bits();
                isa.run(Multiply { out, factors: of_columns(factors, start), product });
            }
        })
    }
}

/// Times a factor for each column, in float64.
struct Scaled64<'a>(&'a [u64], Cow<'a, [f64]>);

impl Weights for Scaled64<'_> {
    type E = F64;
    const PIECE: usize = MADE;
    fn prefetch(&self, index: usize) {
        prefetch(self.0.as_ptr().wrapping_add(index));
    }
    fn region<'s>(&'s self, place: Place, isa: Isa, buffer: &'s mut Vec<u64>) -> Result<Region<'s, u64>> {
        made(place, buffer, |start, out| {
            out.copy_from_slice(&self.0[start..][..out.len()]);
            let product = |a: u64, b: f64| (f64::from_bits(a) * b).to_bits();
            isa.run(Multiply { out, factors: of_columns(&self.1, start), product });
        })
    }
}

/// A factor for each column of the matrix view.
fn expanded<'a, T: Copy>(scale: ColumnScale<'a, T>) -> Result<Cow<'a, [T]>> {
    Ok(match scale.repeat {
        1 => Cow::Borrowed(scale.values),
        repeat => memory::collect((0..scale.cols).map(|col| scale.values[col / repeat]))?.into(),
    })
}

/// The factors from that of element `start` on.
fn of_columns<T>(factors: &[T], start: usize) -> &[T] {
    &factors[start % factors.len()..]
}

/// The elements at `place`, each line made by `line` from the index of its first.
fn made<T: Word>(place: Place, buffer: &mut Vec<T>, line: impl Fn(usize, &mut [T])) -> Result<Region<'_, T>> {
    let data = memory::grown(buffer, place.lines * place.cols, T::default())?;
    for (i, out) in data.chunks_exact_mut(place.cols).enumerate() {
        line(place.first + i * place.stride, out);
    }
    Ok(Region { data, stride: place.cols, lines: place.lines, cols: place.cols })
}

struct Multiply<'a, T, F, P> {
    out: &'a mut [T],
    factors: &'a [F],
    product: P,
}

impl<T: Word, F: Copy, P: Fn(T, F) -> T> Kernel for Multiply<'_, T, F, P> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for (out, &factor) in self.out.iter_mut().zip(self.factors) {
            *out = (self.product)(*out, factor);
        }
    }
}
