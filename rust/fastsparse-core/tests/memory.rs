//! Memory that cannot be had: whichever allocation fails, the operation returns an error, or the
//! right result without it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use fastsparse_core::block::{self, Blocks, Norm};
use fastsparse_core::element::{Elements, F32, F64};
use fastsparse_core::error::{Error, Result};
use fastsparse_core::histogram;
use fastsparse_core::isa::Isa;
use fastsparse_core::keys::{ColumnScale, Magnitude, Ranking, Scaled32};
use fastsparse_core::matrix::Matrix;
use fastsparse_core::nm::{self, Axis, Groups, Tail};
use fastsparse_core::pack::{offsets, pack};
use fastsparse_core::parallel::Exec;
use fastsparse_core::select;
use fastsparse_core::unpack::{RowOffsets, unpack};

/// The system's memory, but for one allocation of the thread that asked for it.
struct Failing;

/// Smaller ones are not counted: they do not grow with the input.
const COUNTED: usize = 512;

thread_local! {
    /// Allocations to go until one fails.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Whether this one fails.
fn fails(size: usize) -> bool {
    size >= COUNTED && LEFT.get() != usize::MAX && {
        LEFT.set(LEFT.get().wrapping_sub(1));
        LEFT.get() == usize::MAX
    }
}

// SAFETY: the system's allocator, but that it sometimes says no.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        if fails(layout.size()) { std::ptr::null_mut() } else { unsafe { System.alloc(layout) } }
    }
    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(start, layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        if fails(layout.size()) { std::ptr::null_mut() } else { unsafe { System.alloc_zeroed(layout) } }
    }
    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        if fails(size) { std::ptr::null_mut() } else { unsafe { System.realloc(start, layout, size) } }
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

const SHAPE: Matrix = Matrix { rows: 300, cols: 1000 };

/// Numbers with few equal ones.
fn weights() -> Vec<u32> {
    (0..SHAPE.len() as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 9) | 0x3f00_0000).collect()
}

/// Calls `operation` with each of its allocations failing in turn, until none does. Errors must be
/// that one, and results those of a call with memory enough. At least `least` allocations are
/// expected to fail it.
fn check<T: PartialEq + std::fmt::Debug>(what: &str, least: usize, operation: impl Fn() -> Result<T>) {
    let expected = operation().unwrap();
    let mut failed = 0;
    for allowed in 0.. {
        LEFT.set(allowed);
        let found = operation();
        let reached = LEFT.replace(usize::MAX) == usize::MAX;
        match found {
            Err(Error::OutOfMemory { .. }) if reached => failed += 1,
            Err(other) => panic!("{what}: {other}"),
            Ok(found) => assert!(found == expected, "{what}: another result without allocation {allowed}"),
        }
        if !reached {
            break;
        }
    }
    assert!(failed >= least, "{what}: {failed} allocations failed it, {least} expected");
}

fn execs() -> impl Iterator<Item = Exec> {
    Isa::available().into_iter().map(Exec::single)
}

/// A fresh mask, which `write` fills. Its memory is there.
fn mask_of(write: impl Fn(&mut [u8]) -> Result<()>) -> impl Fn() -> Result<Vec<u8>> {
    move || {
        let left = LEFT.replace(usize::MAX);
        let mut bits = vec![0; SHAPE.mask_bytes()];
        LEFT.set(left);
        write(&mut bits)?;
        Ok(bits)
    }
}

#[test]
fn selecting() {
    let data = weights();
    let scale: Vec<f32> = (0..SHAPE.cols).map(|col| 1.0 + col as f32 / 7.0).collect();
    let keys = Magnitude::<F32>(&data);
    let scaled = Scaled32::<F32>(&data, ColumnScale { values: &scale, cols: SHAPE.cols, repeat: 1 });
    let few: Vec<u32> = data.iter().map(|bits| bits & 0xffc0_0000).collect();
    let few = Magnitude::<F32>(&few);
    for exec in execs() {
        let half = SHAPE.len() / 2;
        check("tensor", 3, mask_of(|bits| select::smallest(&keys, SHAPE, half, exec, bits)));
        check("few values", 2, mask_of(|bits| select::smallest(&few, SHAPE, half, exec, bits)));
        check("scaled", 3, mask_of(|bits| select::smallest(&scaled, SHAPE, half, exec, bits)));
        check("rows", 0, mask_of(|bits| select::smallest_per_row(&keys, SHAPE, 700, exec, bits)));
        check("threshold", 0, mask_of(|bits| select::above_value(&scaled, SHAPE, 3.0, exec, bits)));
    }
}

#[test]
fn groups() {
    let data = weights();
    let scale: Vec<f32> = (0..SHAPE.cols).map(|col| 1.0 + col as f32 / 7.0).collect();
    let keys = Magnitude::<F32>(&data);
    let scaled = Scaled32::<F32>(&data, ColumnScale { values: &scale, cols: SHAPE.cols, repeat: 1 });
    let rows = Axis { outer: SHAPE.rows, len: SHAPE.cols, inner: 1 };
    let columns = Axis { outer: 1, len: SHAPE.rows, inner: SHAPE.cols };
    for exec in execs() {
        for axis in [rows, columns] {
            for (zeros, of, least) in [(2, 4, 0), (5, 11, 0), (90, 300, 1)] {
                let groups = Groups { zeros, of, tail: Tail::Proportional };
                let name = format!("{zeros}:{of} {axis:?}");
                check(&name, least, mask_of(|bits| nm::select(&keys, SHAPE, axis, groups, exec, bits)));
                check(&name, 1, mask_of(|bits| nm::select(&scaled, SHAPE, axis, groups, exec, bits)));
            }
        }
    }
}

#[test]
fn blocks() {
    let data = weights();
    let scale: Vec<f32> = (0..SHAPE.cols / 4).map(|col| 1.0 + col as f32 / 7.0).collect();
    let scale = ColumnScale { values: &scale, cols: SHAPE.cols, repeat: 4 };
    let axis = Axis { outer: 1, len: SHAPE.rows, inner: SHAPE.cols };
    for exec in execs() {
        for (tall, wide) in [(1, 4), (4, 1), (3, 5), (20, 30)] {
            let blocks = Blocks { axis, tall, wide };
            let zeros = blocks.grid().len() / 2;
            for norm in [Norm::L2, Norm::Max] {
                let name = format!("{tall}x{wide} {norm:?}");
                for ranking in [
                    Ranking::Magnitude(Elements::F32(&data)),
                    Ranking::Scaled32(Elements::F32(&data), scale),
                    Ranking::Scores(Elements::F32(&data)),
                ] {
                    let select = |bits: &mut [u8]| block::select(ranking, SHAPE, blocks, norm, zeros, exec, bits);
                    check(&name, 1, mask_of(select));
                }
            }
            let mask = mask_of(|bits| {
                block::select(Ranking::Magnitude(Elements::F32(&data)), SHAPE, blocks, Norm::L1, zeros, exec, bits)
            })()
            .unwrap();
            check("verify", 1, || block::verify(SHAPE, blocks, zeros, &mask, exec));
        }
        for (axis, length) in [(axis, 4), (Axis { outer: SHAPE.rows, len: SHAPE.cols, inner: 1 }, 700)] {
            check("like NumPy", (axis.inner == 1) as usize, || {
                let left = LEFT.replace(usize::MAX);
                let mut out = vec![0.0; axis.outer * axis.len.div_ceil(length) * axis.inner];
                LEFT.set(left);
                block::l2_like_numpy::<F32>(&data, axis, length, exec, &mut out)?;
                Ok(out)
            });
        }
    }
}

#[test]
fn counting() {
    let data = weights();
    let wide: Vec<u64> = data.iter().map(|&bits| (f32::from_bits(bits) as f64).to_bits()).collect();
    for exec in execs() {
        check("float32", 1, || histogram::count::<F32>(&data, 0, 42, exec));
        check("float64", 1, || histogram::count::<F64>(&wide, 0, 42, exec));
        check("rank", 0, || histogram::rank::<F32>(&data, 0.75f64.to_bits(), exec));
    }
}

#[test]
fn packing() {
    // Parts of several rows each, of which the bounds are remembered.
    let shape = Matrix { rows: 8_000_000, cols: 1 };
    let weights = vec![7u8; shape.len()];
    let mask = vec![1; shape.mask_bytes()];
    let mut starts = vec![0; shape.rows + 1];
    let kept = offsets(shape, &mask, Exec::single(Isa::Scalar), &mut starts);
    for exec in execs() {
        let starts = RowOffsets::new(&starts, shape, kept, exec).unwrap();
        let filled = |write: &dyn Fn(&mut [u8]) -> Result<()>| {
            let left = LEFT.replace(usize::MAX);
            let mut out = vec![0; kept];
            LEFT.set(left);
            write(&mut out)?;
            Ok(out)
        };
        check("pack", 1, || filled(&|out| pack(&weights, shape, &mask, starts, exec, out)));
        check("unpack", 1, || filled(&|out| unpack(&weights, shape, &mask, starts, exec, out)));
    }
}
