//! The sweep over the columns of a few rows, a lane a row.
//!
//! ```text
//! transpose the rows                                   weights[k] holds column k
//! for each panel of columns first .. end:
//!     for k in first .. end:                           a few columns at a time, from registers
//!         for j in 0 .. first: weights[k] −= errors[j] · U[j, k]
//!     for j in first .. end:
//!         at the start of a group: choose its pruned lanes
//!         errors[j] = weights[j] · scale[j] where pruned, else 0;  weights[j] = 0 where pruned
//!         for k in j + 1 .. end: weights[k] −= errors[j] · U[j, k]
//! transpose back
//! ```
//!
//! What is not pruned is multiplied too, as 0: that costs less than to branch on it, and the time
//! does not depend on the sparsity. A panel is a group or several, so that a group's weights are up
//! to date when it is ranked.

use super::Groups;
use super::vector::Vector;
use crate::error::Result;
use crate::memory::grown;

/// Vectors of rows that are swept together: one waits for a product while the other computes.
const VECTORS: usize = 2;

/// All that the tasks of one call have in common.
pub(super) struct Work<'a> {
    pub cols: usize,
    pub inverse: &'a [f32],
    pub scale: &'a [f32],
    /// None: the mask is given.
    pub groups: Option<Groups>,
}

/// Memory of a thread. Columns lie one after the other, `VECTORS` vectors each.
#[derive(Default)]
pub(super) struct Tile {
    weights: Vec<f32>,
    errors: Vec<f32>,
    scores: Vec<f32>,
    /// For each column the lanes that are pruned.
    pruned: Vec<u32>,
    /// Rows that do not fill a tile, or do not end on four columns.
    padded: Vec<f32>,
}

/// Prunes rows; `bits` is their mask, which is read where it is given and written where it is not.
/// `WIDE` columns are updated together.
#[inline(always)]
pub(super) fn rows<V: Vector, const WIDE: usize>(
    proof: V::Proof,
    work: &Work<'_>,
    tile: &mut Tile,
    weights: &mut [f32],
    bits: &mut [u8],
) -> Result<()> {
    let (cols, height, row_bytes) = (work.cols, VECTORS * V::LANES, work.cols.div_ceil(8));
    let width = cols.next_multiple_of(4);
    let size = height * width;
    grown(&mut tile.weights, size, 0.0)?;
    grown(&mut tile.errors, cols * height, 0.0)?;
    grown(&mut tile.scores, work.groups.map_or(0, |groups| groups.of.min(cols)) * height, 0.0)?;
    grown(&mut tile.pruned, 8 * row_bytes, 0)?;
    for (rows, bits) in weights.chunks_mut(height * cols).zip(bits.chunks_mut(height * row_bytes)) {
        let whole = rows.len() == height * cols && cols == width;
        if whole {
            // SAFETY: `height` rows of `width` numbers.
            unsafe { load_tile::<V>(proof, rows.as_ptr(), width, &mut tile.weights[..size]) };
        } else {
            let padded = grown(&mut tile.padded, size, 0.0)?;
            padded.fill(0.0);
            for (padded, row) in padded.chunks_exact_mut(width).zip(rows.chunks_exact(cols)) {
                padded[..cols].copy_from_slice(row);
            }
            // SAFETY: as above.
            unsafe { load_tile::<V>(proof, padded.as_ptr(), width, &mut tile.weights[..size]) };
        }
        if work.groups.is_none() {
            lanes_of_rows(bits, row_bytes, &mut tile.pruned);
            tile.pruned.iter_mut().for_each(|kept| *kept = !*kept);
        }
        sweep::<V, WIDE>(proof, work, tile);
        if work.groups.is_some() {
            tile.pruned[..cols].iter_mut().for_each(|pruned| *pruned = !*pruned);
            tile.pruned[cols..].fill(0);
            rows_of_lanes(&tile.pruned, row_bytes, bits);
        }
        if whole {
            // SAFETY: `height` rows of `width` numbers.
            unsafe { store_tile::<V>(proof, &tile.weights[..size], width, rows.as_mut_ptr()) };
        } else {
            let padded = grown(&mut tile.padded, size, 0.0)?;
            // SAFETY: as above.
            unsafe { store_tile::<V>(proof, &tile.weights[..size], width, padded.as_mut_ptr()) };
            for (padded, row) in padded.chunks_exact(width).zip(rows.chunks_exact_mut(cols)) {
                row.copy_from_slice(&padded[..cols]);
            }
        }
    }
    Ok(())
}

/// # Safety
/// `VECTORS · LANES` rows of `width` numbers, a multiple of four, can be read at `from`.
#[inline(always)]
unsafe fn load_tile<V: Vector>(proof: V::Proof, from: *const f32, width: usize, tile: &mut [f32]) {
    for (quad, columns) in tile.chunks_exact_mut(4 * VECTORS * V::LANES).enumerate() {
        for half in 0..VECTORS {
            // SAFETY: the rows from `half · LANES` on, from column 4 · `quad` on: inside what the
            // caller promises.
            let loaded = unsafe { V::load_columns(proof, from.add(half * V::LANES * width + 4 * quad), width) };
            for (c, column) in loaded.iter().enumerate() {
                column.store(&mut columns[(VECTORS * c + half) * V::LANES..]);
            }
        }
    }
}

/// # Safety
/// `VECTORS · LANES` rows of `width` numbers, a multiple of four, can be written at `to`.
#[inline(always)]
unsafe fn store_tile<V: Vector>(proof: V::Proof, tile: &[f32], width: usize, to: *mut f32) {
    for (quad, columns) in tile.chunks_exact(4 * VECTORS * V::LANES).enumerate() {
        for half in 0..VECTORS {
            let mut rows = [V::splat(proof, 0.0); 4];
            for (c, column) in rows.iter_mut().enumerate() {
                *column = V::load(proof, &columns[(VECTORS * c + half) * V::LANES..]);
            }
            // SAFETY: as in `load_tile`.
            unsafe { V::store_columns(rows, to.add(half * V::LANES * width + 4 * quad), width) };
        }
    }
}

#[inline(always)]
fn sweep<V: Vector, const WIDE: usize>(proof: V::Proof, work: &Work<'_>, tile: &mut Tile) {
    let panel = work.groups.map_or(8, |groups| groups.of * 8usize.div_ceil(groups.of));
    for first in (0..work.cols).step_by(panel) {
        let end = work.cols.min(first.saturating_add(panel));
        let mut k = first;
        while k + WIDE <= end {
            update::<V, WIDE>(proof, work, tile, first, k);
            k += WIDE;
        }
        while k < end {
            update::<V, 1>(proof, work, tile, first, k);
            k += 1;
        }
        for j in first..end {
            if let Some(groups) = work.groups
                && j % groups.of == 0
            {
                choose::<V>(proof, work, tile, groups, j);
            }
            prune_column::<V>(proof, work, tile, j, end);
        }
    }
}

/// Passes the errors of all columns before `first` on to `WIDE` columns from `k` on. Loops by
/// index: they are unrolled whole, and the sums stay in registers.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "iterators over arrays of vectors are not always inlined")]
fn update<V: Vector, const WIDE: usize>(proof: V::Proof, work: &Work<'_>, tile: &mut Tile, first: usize, k: usize) {
    let height = VECTORS * V::LANES;
    let mut sums = [[V::splat(proof, 0.0); VECTORS]; WIDE];
    for c in 0..WIDE {
        for half in 0..VECTORS {
            sums[c][half] = V::load(proof, &tile.weights[(k + c) * height + half * V::LANES..]);
        }
    }
    for (errors, passed_on) in tile.errors.chunks_exact(height).zip(work.inverse.chunks_exact(work.cols)).take(first) {
        let passed_on = &passed_on[k..k + WIDE];
        let mut error = [V::splat(proof, 0.0); VECTORS];
        for half in 0..VECTORS {
            error[half] = V::load(proof, &errors[half * V::LANES..]);
        }
        for c in 0..WIDE {
            let share = V::splat(proof, passed_on[c]);
            for half in 0..VECTORS {
                sums[c][half] = sums[c][half].sub(error[half].mul(share));
            }
        }
    }
    for c in 0..WIDE {
        for half in 0..VECTORS {
            sums[c][half].store(&mut tile.weights[(k + c) * height + half * V::LANES..]);
        }
    }
}

/// Prunes column `j` and passes its error on to the columns up to `end`.
#[inline(always)]
fn prune_column<V: Vector>(proof: V::Proof, work: &Work<'_>, tile: &mut Tile, j: usize, end: usize) {
    let height = VECTORS * V::LANES;
    let scale = V::splat(proof, work.scale[j]);
    let passed_on = &work.inverse[j * work.cols..][..end];
    for half in 0..VECTORS {
        let lanes = tile.pruned[j] >> (half * V::LANES);
        let (before, rest) = tile.weights[j * height..end * height].split_at_mut(height);
        let weights = V::load(proof, &before[half * V::LANES..]);
        let error = weights.mul(scale).pick(lanes);
        weights.pick(!lanes).store(&mut before[half * V::LANES..]);
        error.store(&mut tile.errors[j * height + half * V::LANES..]);
        for (later, &share) in rest.chunks_exact_mut(height).zip(&passed_on[j + 1..]) {
            let later = &mut later[half * V::LANES..];
            V::load(proof, later).sub(error.mul(V::splat(proof, share))).store(later);
        }
    }
}

/// Chooses the pruned lanes of the group that begins at column `first`. A weight is pruned if fewer
/// than `zeros` others come before it: smaller ones, and equal ones with a higher index.
#[inline(always)]
fn choose<V: Vector>(proof: V::Proof, work: &Work<'_>, tile: &mut Tile, groups: Groups, first: usize) {
    let height = VECTORS * V::LANES;
    let length = groups.of.min(work.cols - first);
    let zeros = if length == groups.of { groups.zeros } else { groups.zeros_at_end };
    tile.pruned[first..first + length].fill(0);
    let (one, zeros) = (V::splat(proof, 1.0), V::splat(proof, zeros as f32));
    for half in 0..VECTORS {
        for i in 0..length {
            let weights = V::load(proof, &tile.weights[(first + i) * height + half * V::LANES..]);
            let score = weights.abs().mul(V::splat(proof, work.scale[first + i]));
            score.store(&mut tile.scores[i * V::LANES..]);
        }
        for i in 0..length {
            let score = V::load(proof, &tile.scores[i * V::LANES..]);
            let mut before = V::splat(proof, 0.0);
            for other in 0..length {
                let compared = V::load(proof, &tile.scores[other * V::LANES..]);
                let lanes = if other > i { !score.below(compared) } else { compared.below(score) };
                before = before.add(one.pick(lanes));
            }
            let pruned = before.below(zeros) & (u32::MAX >> (32 - V::LANES));
            tile.pruned[first + i] |= pruned << (half * V::LANES);
        }
    }
}

/// For each column the bits of up to 32 rows, row r as bit r.
fn lanes_of_rows(bits: &[u8], row_bytes: usize, lanes: &mut [u32]) {
    lanes.fill(0);
    for (octet, rows) in bits.chunks(8 * row_bytes).enumerate() {
        for (byte, lanes) in lanes.chunks_exact_mut(8).enumerate() {
            let mut square = 0u64;
            for (r, row) in rows.chunks_exact(row_bytes).enumerate() {
                square |= (row[byte] as u64) << (8 * r);
            }
            for (lanes, column) in lanes.iter_mut().zip(transpose_bits(square).to_le_bytes()) {
                *lanes |= (column as u32) << (8 * octet);
            }
        }
    }
}

/// The other way round.
fn rows_of_lanes(lanes: &[u32], row_bytes: usize, bits: &mut [u8]) {
    for (octet, rows) in bits.chunks_mut(8 * row_bytes).enumerate() {
        for (byte, lanes) in lanes.chunks_exact(8).enumerate() {
            let columns: [u8; 8] = std::array::from_fn(|c| (lanes[c] >> (8 * octet)) as u8);
            let square = transpose_bits(u64::from_le_bytes(columns)).to_le_bytes();
            for (row, bits) in rows.chunks_exact_mut(row_bytes).zip(square) {
                row[byte] = bits;
            }
        }
    }
}

/// Bit c of byte r becomes bit r of byte c: squares of 1, 2 and 4 bits on either side of the
/// diagonal change places.
fn transpose_bits(mut square: u64) -> u64 {
    for (shift, upper) in [(7, 0x00aa_00aa_00aa_00aa), (14, 0x0000_cccc_0000_cccc), (28, 0x0000_0000_f0f0_f0f0)] {
        let swapped = (square ^ square >> shift) & upper;
        square ^= swapped ^ swapped << shift;
    }
    square
}
