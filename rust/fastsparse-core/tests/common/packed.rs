//! A packed matrix made by plain loops, and what its products with activations are in float64.

use fastsparse_core::element::{F32, Word};
use fastsparse_core::linear::{Groups, Real, Weights};
use fastsparse_core::matrix::Matrix;

use super::Random;

pub struct Packed<W> {
    pub shape: Matrix,
    pub values: Vec<W>,
    pub mask: Vec<u8>,
    pub offsets: Vec<i64>,
    pub groups: Option<Groups>,
}

impl<W: Word> Packed<W> {
    /// The weights that `keep` names by row and column, from left to right; `value` gives them.
    pub fn of(
        shape: Matrix,
        random: &mut Random,
        mut keep: impl FnMut(&mut Random, usize, usize) -> bool,
        value: impl Fn(&mut Random) -> W,
    ) -> Packed<W> {
        let (mut values, mut mask, mut offsets) = (Vec::new(), vec![0; shape.mask_bytes()], vec![0]);
        for row in 0..shape.rows {
            for col in 0..shape.cols {
                if keep(random, row, col) {
                    mask[row * shape.row_bytes() + col / 8] |= 1 << (col % 8);
                    values.push(value(random));
                }
            }
            offsets.push(values.len() as i64);
        }
        Packed { shape, values, mask, offsets, groups: None }
    }

    /// `keep_of_64` of 64 weights are kept; in every fifth row none, and none of columns 64 to 192
    /// and 250 to 520.
    pub fn sparse(shape: Matrix, keep_of_64: u64, random: &mut Random, value: impl Fn(&mut Random) -> W) -> Packed<W> {
        let empty = |row: usize, col| row % 5 == 4 || (64..192).contains(&col) || (250..520).contains(&col);
        Packed::of(shape, random, |random, row, col| !empty(row, col) && random.one_of_64(keep_of_64), value)
    }

    /// The same with numbers from −1 to 1.
    pub fn random<E: Real<Bits = W>>(shape: Matrix, keep_of_64: u64, random: &mut Random) -> Packed<W> {
        Packed::sparse(shape, keep_of_64, random, |random| E::from_f32(random.number()))
    }

    pub fn weights(&self) -> Weights<'_, W> {
        let Packed { shape, values, mask, offsets, groups } = self;
        Weights { shape: *shape, values, mask, offsets, groups: *groups }
    }

    /// Whether a weight is kept.
    pub fn keeps(&self, row: usize, col: usize) -> bool {
        self.mask[row * self.shape.row_bytes() + col / 8] >> (col % 8) & 1 == 1
    }

    /// Columns and indices of the values of a row.
    pub fn row(&self, row: usize) -> impl Iterator<Item = (usize, usize)> {
        (0..self.shape.cols).filter(move |&col| self.keeps(row, col)).zip(self.offsets[row] as usize..)
    }

    /// Holds a product with activations against float64. `additions` follow each other in a sum at
    /// most.
    pub fn check<E: Real<Bits = W>, X: Real>(
        &self,
        x: &[X::Bits],
        bias: Option<&[f32]>,
        additions: usize,
        out: &[X::Bits],
        context: &str,
    ) {
        let Matrix { rows, cols } = self.shape;
        for (i, &got) in out.iter().enumerate() {
            let (b, row) = (i / rows, i % rows);
            let bias = bias.map_or(0.0, |bias| bias[row]) as f64;
            let terms = self.row(row).map(|(col, i)| E::to_f64(self.values[i]) * X::to_f64(x[b * cols + col]));
            let (sum, size) = terms.fold((bias, bias.abs()), |(sum, size), term| (sum + term, size + term.abs()));
            let bound = additions as f64 * size * rounding::<F32>() + rounding::<X>() * sum.abs() + 2f64.powi(-24);
            let got = X::to_f64(got);
            let types = (E::DTYPE, X::DTYPE, self.shape);
            assert!((got - sum).abs() <= bound, "{types:?} {context} row {row} of {b}: {got} for {sum}");
        }
    }
}

/// Half a unit in the last place, relative, of a rounding to this type.
fn rounding<X: Real>() -> f64 {
    let one = X::from_f32(1.0).to_u64();
    (X::to_f64(X::Bits::from_u64(one + 1)) - 1.0) / 2.0
}
