//! The sweep over columns and the steps that refine kept weights, against their definitions in
//! plain loops; the same bits on every ISA and thread count.

mod common;

use fastsparse_core::calibration::{Choice, Columns, Groups, Refinement, prune_columns, refine_step};
use fastsparse_core::isa::Isa;
use fastsparse_core::matrix::{Matrix, from_bool, popcount};
use fastsparse_core::parallel::Exec;

use common::Random;

impl Random {
    /// A number around zero.
    fn half(&mut self) -> f32 {
        self.number() / 2.0
    }
    fn halves(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.half()).collect()
    }
}

/// Weights with ties, a triangle with rubbish on and below its diagonal, scales.
fn block(rows: usize, cols: usize) -> (Matrix, Vec<f32>, Vec<f32>, Vec<f32>) {
    let mut random = Random((rows * 1000 + cols) as u64);
    let mut weights = random.halves(rows * cols);
    weights.iter_mut().step_by(5).for_each(|w| *w = 0.25);
    let mut inverse = random.halves(cols * cols);
    for j in 0..cols {
        inverse[j * cols..j * cols + j + 1].fill(f32::MAX);
    }
    let scale = random.halves(cols).into_iter().map(|x| x + 0.75).collect();
    (Matrix { rows, cols }, weights, inverse, scale)
}

/// One row, column by column.
fn expected(row: &mut [f32], inverse: &[f32], scale: &[f32], kept: &mut [bool], groups: Option<Groups>) {
    let cols = row.len();
    for j in 0..cols {
        if let Some(groups) = groups
            && j % groups.of == 0
        {
            let end = cols.min(j + groups.of);
            let zeros = if end - j == groups.of { groups.zeros } else { groups.zeros_at_end };
            let mut order: Vec<usize> = (j..end).collect();
            order.sort_by(|&a, &b| (row[a].abs() * scale[a]).total_cmp(&(row[b].abs() * scale[b])).then(b.cmp(&a)));
            order.iter().enumerate().for_each(|(rank, &k)| kept[k] = rank >= zeros);
        }
        if !kept[j] {
            let error = row[j] * scale[j];
            for k in j + 1..cols {
                row[k] -= error * inverse[j * cols + k];
            }
            row[j] = 0.0;
        }
    }
}

fn mask_of(shape: Matrix, kept: &[bool]) -> Vec<u8> {
    let mut bits = vec![0; shape.mask_bytes()];
    let bytes: Vec<u8> = kept.iter().map(|&kept| kept as u8).collect();
    from_bool(shape, &bytes, Exec::single(Isa::Scalar), &mut bits);
    bits
}

fn check(rows: usize, cols: usize, groups: Option<Groups>) {
    let (shape, weights, inverse, scale) = block(rows, cols);
    let mut random = Random(7);
    let mut kept: Vec<bool> = (0..rows * cols).map(|_| random.half() > 0.1).collect();
    let given = mask_of(shape, &kept);
    let mut wanted = weights.clone();
    for (row, kept) in wanted.chunks_mut(cols.max(1)).zip(kept.chunks_mut(cols.max(1))) {
        expected(row, &inverse, &scale, kept, groups);
    }
    let wanted_mask = mask_of(shape, &kept);
    let columns = Columns { shape, weights: &weights, inverse: &inverse, scale: &scale };
    let choice = groups.map_or(Choice::Mask(&given), Choice::Groups);
    for isa in Isa::available() {
        for threads in [1, 3] {
            let (mut out, mut bits) = (vec![f32::NAN; rows * cols], vec![0xaa; shape.mask_bytes()]);
            prune_columns(columns, choice, Exec { isa, threads }, &mut out, &mut bits).unwrap();
            let name = format!("{rows} x {cols} {groups:?} {} {threads}", isa.name());
            assert_eq!(bits, wanted_mask, "{name}");
            assert_eq!(out, wanted, "{name}");
        }
    }
}

#[test]
fn masks_at_every_edge() {
    for rows in [1, 3, 8, 15, 16, 17, 31, 32, 33, 64, 65, 130] {
        for cols in [1, 2, 7, 8, 9, 16, 31, 64, 127, 128] {
            check(rows, cols, None);
        }
    }
}

#[test]
fn groups_of_every_kind() {
    for (zeros, of) in [(2, 4), (0, 4), (4, 4), (1, 2), (3, 7), (5, 8), (9, 16), (20, 31), (50, 64), (0, 1), (1, 1)] {
        for (rows, cols) in [(1, 1), (5, 30), (33, 64), (40, 127), (130, 128)] {
            check(rows, cols, Some(Groups { zeros, of, zeros_at_end: zeros * (cols % of) / of }));
        }
    }
    check(3, 300, Some(Groups { zeros: 150, of: 260, zeros_at_end: 3 }));
    check(3, 20, Some(Groups { zeros: 5, of: usize::MAX / 2, zeros_at_end: 11 }));
}

#[test]
fn nothing_to_do() {
    for (rows, cols) in [(0, 0), (0, 5), (5, 0)] {
        check(rows, cols, None);
    }
}

/// Symmetric, and larger on its diagonal than beside it.
fn positive_definite(cols: usize) -> Vec<f32> {
    let factors = Random(cols as u64).halves(cols * cols);
    let mut matrix = vec![0.0; cols * cols];
    for i in 0..cols {
        for j in 0..cols {
            matrix[i * cols + j] = (0..cols).map(|k| factors[i * cols + k] * factors[j * cols + k]).sum();
        }
        matrix[i * cols + i] += 1.0;
    }
    matrix
}

fn product(a: &[f32], matrix: &[f32], cols: usize) -> Vec<f32> {
    let entry = |row: &[f32], j: usize| row.iter().enumerate().map(|(k, &a)| a * matrix[k * cols + j]).sum();
    a.chunks(cols).flat_map(|row| (0..cols).map(move |j| entry(row, j))).collect()
}

#[test]
fn refinement_ends_where_the_gradient_does() {
    for (rows, cols) in [(1, 1), (3, 7), (20, 33), (5, 64)] {
        let shape = Matrix { rows, cols };
        let matrix = positive_definite(cols);
        let target = Random(3).halves(rows * cols);
        let mut random = Random(5);
        let mut kept: Vec<bool> = (0..rows * cols).map(|_| random.half() > 0.0).collect();
        kept[..cols].fill(false);
        let bits = mask_of(shape, &kept);
        let scale: Vec<f32> = (0..cols).map(|j| 1.0 / matrix[j * cols + j]).collect();
        let solve = |exec: Exec| {
            let mut x: Vec<f32> = target.iter().zip(&kept).map(|(&w, &kept)| if kept { w } else { 0.0 }).collect();
            let lost: Vec<f32> = target.iter().zip(&x).map(|(w, x)| w - x).collect();
            let mut residual = product(&lost, &matrix, cols);
            let mut direction = vec![0.0; rows * cols];
            let mut energy = vec![0.0; rows];
            for step in 0..2 * cols + 2 {
                let q = (step > 0).then(|| product(&direction, &matrix, cols));
                let all = Refinement {
                    shape,
                    x: &mut x,
                    residual: &mut residual,
                    direction: &mut direction,
                    energy: &mut energy,
                };
                refine_step(all, q.as_deref(), &scale, &bits, exec);
            }
            x
        };
        let found = solve(Exec::single(Isa::Scalar));
        let gradient = product(&target.iter().zip(&found).map(|(w, x)| w - x).collect::<Vec<_>>(), &matrix, cols);
        for ((&kept, &x), gradient) in kept.iter().zip(&found).zip(gradient) {
            if kept { assert!(gradient.abs() < 1e-4, "{gradient}") } else { assert_eq!(x, 0.0) }
        }
        assert!(popcount(&bits) == 0 || found.iter().any(|&x| x != 0.0));
        for isa in Isa::available() {
            for threads in [1, 3] {
                assert_eq!(solve(Exec { isa, threads }), found, "{rows} x {cols} {} {threads}", isa.name());
            }
        }
    }
}

/// A few small cases of every operation: what `make miri` runs of this file.
#[test]
fn small() {
    check(3, 17, None);
    check(2, 12, Some(Groups { zeros: 2, of: 4, zeros_at_end: 0 }));
}
