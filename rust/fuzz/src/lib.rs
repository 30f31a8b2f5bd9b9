//! A packed tensor made of a fuzzer's bytes, and what it has to unpack to.

use fastsparse_core::element::BF16;
use fastsparse_core::error::Result;
use fastsparse_core::isa::Isa;
use fastsparse_core::linear::{self, Scaled, Weights};
use fastsparse_core::matrix::Matrix;
use fastsparse_core::pack;
use fastsparse_core::parallel::Exec;
use fastsparse_core::unpack::{self, RowOffsets};
use libfuzzer_sys::arbitrary::{Result as Made, Unstructured};

/// Parts that may contradict each other.
pub struct Parts {
    /// On one of this machine's instruction sets.
    pub exec: Exec,
    /// At most 20 rows, 300 columns, 1500 elements.
    pub shape: Matrix,
    /// As long as that of the shape; padding bits may be set.
    pub mask: Vec<u8>,
    /// Any number of them.
    pub values: Vec<u16>,
}

impl Parts {
    /// Takes what it needs from `bytes`. The values count up, so that each is told from the others.
    pub fn take(bytes: &mut Unstructured<'_>) -> Made<Parts> {
        let isas = Isa::available();
        let exec = Exec::single(*bytes.choose(&isas)?);
        let rows: usize = bytes.int_in_range(0..=20)?;
        let cols = bytes.int_in_range(0..=300.min(1500 / rows.max(1)))?;
        let shape = Matrix { rows, cols };
        let off = bytes.int_in_range(-2..=2)?;
        let mut mask = vec![0; shape.mask_bytes()];
        bytes.fill_buffer(&mut mask)?;
        let set: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
        // Mostly as many as there are bits, so that it goes on from there.
        let len = (set as usize).saturating_add_signed(off);
        Ok(Parts { exec, shape, mask, values: (1..=len as u16).collect() })
    }

    /// The dense tensor, one element at a time. The mask has to have as many bits as there are
    /// values.
    pub fn dense(&self) -> Vec<u16> {
        let mut values = self.values.iter();
        let mut dense = Vec::with_capacity(self.shape.len());
        for row in 0..self.shape.rows {
            for col in 0..self.shape.cols {
                let kept = self.mask[row * self.shape.row_bytes() + col / 8] >> (col % 8) & 1 == 1;
                dense.push(if kept { *values.next().expect("as many as bits") } else { 0 });
            }
        }
        dense
    }

    /// The matrix, as layers take it.
    pub fn weights<'a, W>(&'a self, values: &'a [W], offsets: &'a [i64]) -> Weights<'a, W> {
        Weights { shape: self.shape, values, mask: &self.mask, offsets, groups: None }
    }

    /// Everything that takes offsets, with these: the dense tensor and the values of `dense` if all
    /// agree.
    pub fn through(&self, offsets: &[i64], dense: &[u16]) -> Result<(Vec<u16>, Vec<u16>)> {
        let Parts { exec, shape, ref mask, ref values } = *self;
        let ones = vec![0x3f80u16; 2 * shape.cols];
        let layer = linear::linear::<BF16, BF16>(
            self.weights(values, offsets),
            &ones,
            None,
            exec,
            &mut vec![0; 2 * shape.rows],
        );
        let (bytes, scale) = (vec![1u8; values.len()], vec![1f32; shape.rows]);
        let int8 = linear::linear_int8::<BF16>(
            Scaled { weights: self.weights(&bytes, offsets), scale: &scale },
            &ones,
            None,
            exec,
            &mut vec![0; 2 * shape.rows],
        );
        let checked = RowOffsets::new(offsets, shape, values.len(), exec)?;
        let (mut unpacked, mut packed) = (vec![0xffff; shape.len()], vec![0; values.len()]);
        let there = unpack::unpack(values, shape, mask, checked, exec, &mut unpacked);
        let back = pack::pack(dense, shape, mask, checked, exec, &mut packed);
        layer.and(int8).and(there).and(back).map(|()| (unpacked, packed))
    }
}
