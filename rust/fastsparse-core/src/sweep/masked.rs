//! Energy of the items that a mask keeps.

use crate::error::Result;
use crate::isa::Kernel;
use crate::keys::Keys;
use crate::matrix::Matrix;
use crate::parallel::{Exec, try_map};

/// Items of a task, about.
const PER_TASK: usize = 1 << 16;

/// Keys made at a time, a multiple of the lanes.
const CHUNK: usize = 2048;

/// Sums beside each other: two vectors of eight, one for each bit of two mask bytes.
const LANES: usize = 16;

/// The energy of the items of a matrix that `mask` keeps. The mask may have been made by another
/// thread's writes meanwhile; NaN where a kept key is.
pub fn of_mask<K: Keys>(keys: &K, shape: Matrix, mask: &[u8], exec: Exec) -> Result<f64> {
    assert!(keys.len() == shape.len() && mask.len() == shape.mask_bytes(), "the mask is as large as the matrix");
    if shape.is_empty() {
        return Ok(0.0);
    }
    // Some rows, or a part of one.
    let rows = (PER_TASK / shape.cols).max(1);
    let parts = if rows > 1 { 1 } else { shape.cols.div_ceil(PER_TASK) };
    let threads = exec.for_work(shape.len(), PER_TASK).threads;
    let sums = try_map(threads, shape.rows.div_ceil(rows) * parts, |i| {
        let (first, start) = (i / parts * rows, i % parts * PER_TASK);
        let end = if parts > 1 { shape.cols.min(start + PER_TASK) } else { shape.cols };
        let mut chunk = [K::Key::default(); CHUNK];
        let mut lanes = [0.0; LANES];
        for row in first..shape.rows.min(first + rows) {
            let mask = &mask[row * shape.row_bytes()..][..shape.row_bytes()];
            for col in (start..end).step_by(CHUNK) {
                let chunk = &mut chunk[..CHUNK.min(end - col)];
                keys.fill(row * shape.cols + col, chunk)?;
                exec.isa.run(Sum { keys, chunk, mask: &mask[col / 8..], lanes: &mut lanes });
            }
        }
        Ok(lanes.iter().sum::<f64>())
    })?;
    Ok(sums.iter().sum())
}

struct Sum<'a, K: Keys> {
    keys: &'a K,
    chunk: &'a [K::Key],
    mask: &'a [u8],
    lanes: &'a mut [f64; LANES],
}

impl<K: Keys> Kernel for Sum<'_, K> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let mut lanes = *self.lanes;
        let (groups, tail) = self.chunk.as_chunks::<LANES>();
        let (masks, rest) = self.mask.as_chunks::<2>();
        for (group, mask) in groups.iter().zip(masks) {
            let bits = u16::from_le_bytes(*mask) as u64;
            for i in 0..LANES {
                // Whether a bit is set cannot be predicted; zero times an infinity would be NaN.
                let kept = 0u64.wrapping_sub(bits >> i & 1);
                let x = self.keys.value(group[i]);
                lanes[i] += f64::from_bits((x * x).to_bits() & kept);
            }
        }
        let rest = masks.get(groups.len()).map_or(rest, |mask| &mask[..]);
        for (i, &key) in tail.iter().enumerate() {
            if rest[i / 8] >> (i % 8) & 1 == 1 {
                let x = self.keys.value(key);
                lanes[i] += x * x;
            }
        }
        *self.lanes = lanes;
    }
}
