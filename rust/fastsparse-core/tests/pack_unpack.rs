//! Packing, unpacking and masking on every ISA against plain loops.

mod common;

use fastsparse_core::element::{BF16, Element, F8E4M3, F8E5M2, F16, F32, F64, I8, U8, Word};
use fastsparse_core::error::Error;
use fastsparse_core::isa::Isa;
use fastsparse_core::matrix::{Matrix, from_bool, to_bool};
use fastsparse_core::pack::{self, apply_mask, apply_mask_in_place, offsets, pack, pack_nonzero};
use fastsparse_core::parallel::Exec;
use fastsparse_core::select::ScanWord;
use fastsparse_core::unpack::{RowOffsets, check_parts, unpack};
use proptest::prelude::*;

use common::{Random, some};

/// Canaries on either side of what a kernel may write: more than two vectors.
const MARGIN: usize = 130;

impl Random {
    fn bits(&mut self, shape: Matrix, keep_of_64: u64) -> Vec<bool> {
        (0..shape.len()).map(|_| self.one_of_64(keep_of_64)).collect()
    }
}

/// The expected: a tensor with its mask, its packed and its masked form, by plain loops.
struct Sample<W> {
    shape: Matrix,
    weights: Vec<W>,
    mask: Vec<u8>,
    offsets: Vec<i64>,
    values: Vec<W>,
    dense: Vec<W>,
}

impl<W: Word> Sample<W> {
    fn new(shape: Matrix, bits: &[bool], random: &mut Random) -> Sample<W> {
        // No weight is zero: a zero in a result is a dropped one.
        let weights: Vec<W> = (0..shape.len()).map(|_| W::from_u64(random.next() | 1)).collect();
        let mut mask = vec![0; shape.mask_bytes()];
        let (mut offsets, mut values, mut dense) = (vec![0], Vec::new(), Vec::new());
        for row in 0..shape.rows {
            for col in 0..shape.cols {
                let i = row * shape.cols + col;
                if bits[i] {
                    mask[row * shape.row_bytes() + col / 8] |= 1 << (col % 8);
                    values.push(weights[i]);
                }
                dense.push(if bits[i] { weights[i] } else { W::default() });
            }
            offsets.push(values.len() as i64);
        }
        Sample { shape, weights, mask, offsets, values, dense }
    }

    fn random(shape: Matrix, keep_of_64: u64, random: &mut Random) -> Sample<W> {
        let bits = random.bits(shape, keep_of_64);
        Sample::new(shape, &bits, random)
    }

    /// Runs every operation; all slices begin `start` elements into their allocation.
    fn check(&self, exec: Exec, start: usize) {
        let Sample { shape, offsets: starts, .. } = self;
        let context = format!("{shape:?} u{} {exec:?} start {start}", 8 * W::BYTES);
        let (weights, mask, values) = (Shifted::of(&self.weights, start), Shifted::of(&self.mask, start), &self.values);
        let mut counts = vec![-1; shape.rows + 1];
        assert_eq!(offsets(*shape, mask.get(), exec, &mut counts), values.len(), "{context}");
        assert_eq!(&counts, starts, "{context}");
        assert_eq!(check_parts(values.len(), *shape, mask.get(), starts), Ok(()), "{context}");

        let starts = RowOffsets::new(starts, *shape, values.len(), exec).unwrap();
        let mut packed = Shifted::blank(values.len(), start);
        assert_eq!(pack(weights.get(), *shape, mask.get(), starts, exec, packed.get_mut()), Ok(()), "{context}");
        assert!(packed.get() == values, "pack {context}");
        packed.check_margins(&context);

        let mut out = Shifted::blank(shape.len(), start);
        assert_eq!(unpack(packed.get(), *shape, mask.get(), starts, exec, out.get_mut()), Ok(()), "{context}");
        assert!(out.get() == self.dense, "unpack {context}");
        out.check_margins(&context);

        let mut out = Shifted::blank(shape.len(), start);
        apply_mask(weights.get(), *shape, mask.get(), exec, out.get_mut());
        assert!(out.get() == self.dense, "apply_mask {context}");
        out.check_margins(&context);

        let mut out = Shifted::of(&self.weights, start);
        apply_mask_in_place(out.get_mut(), *shape, mask.get(), exec);
        assert!(out.get() == self.dense, "apply_mask_in_place {context}");
        out.check_margins(&context);

        let bools: Vec<u8> = self.dense.iter().map(|&w| (w != W::default()) as u8).collect();
        let mut elements = Shifted::blank(shape.len(), start);
        to_bool(*shape, mask.get(), exec, elements.get_mut());
        assert!(elements.get() == bools, "to_bool {context}");
        elements.check_margins(&context);

        // Whatever is not 0 is true: these are 1, 3, … 255 in turn.
        elements.get_mut().iter_mut().enumerate().for_each(|(i, element)| *element *= (2 * i + 1) as u8);
        let mut bits = Shifted::blank(self.mask.len(), start);
        from_bool(*shape, elements.get(), exec, bits.get_mut());
        assert!(bits.get() == self.mask, "from_bool {context}");
        bits.check_margins(&context);
    }
}

/// A slice between canaries, at any distance from an aligned address.
struct Shifted<W> {
    memory: Vec<W>,
    start: usize,
    len: usize,
}

impl<W: Word> Shifted<W> {
    fn blank(len: usize, start: usize) -> Shifted<W> {
        let memory = vec![W::from_u64(0xa5a5_a5a5_a5a5_a5a5); len + 2 * MARGIN + start];
        Shifted { memory, start: start + MARGIN, len }
    }

    fn of(content: &[W], start: usize) -> Shifted<W> {
        let mut shifted = Shifted::blank(content.len(), start);
        shifted.get_mut().copy_from_slice(content);
        shifted
    }

    fn get(&self) -> &[W] {
        &self.memory[self.start..][..self.len]
    }

    fn get_mut(&mut self) -> &mut [W] {
        &mut self.memory[self.start..][..self.len]
    }

    fn check_margins(&self, context: &str) {
        let canary = W::from_u64(0xa5a5_a5a5_a5a5_a5a5);
        let (before, after) = (&self.memory[..self.start], &self.memory[self.start + self.len..]);
        assert!(before.iter().chain(after).all(|&w| w == canary), "wrote beyond the end: {context}");
    }
}

/// Calls a generic function for every width.
macro_rules! every_width {
    ($f:ident($($arg:expr),*)) => {{
        $f::<u8>($($arg),*);
        $f::<u16>($($arg),*);
        $f::<u32>($($arg),*);
        $f::<u64>($($arg),*);
    }};
}

const COLS: [usize; 27] =
    [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 40, 56, 63, 64, 65, 71, 72, 120, 127, 128, 200];

#[test]
fn every_length_density_and_start() {
    fn run<W: Word>() {
        let mut random = Random(1);
        for cols in some(COLS, 2) {
            for (rows, keep) in [(0, 32), (1, 0), (1, 1), (1, 32), (1, 63), (1, 64), (2, 32), (3, 32), (9, 60)] {
                let sample = Sample::<W>::random(Matrix { rows, cols }, keep, &mut random);
                for isa in Isa::available() {
                    for start in [0, 1, 5] {
                        sample.check(Exec::single(isa), start);
                    }
                }
            }
        }
    }
    every_width!(run());
}

#[test]
fn every_count_in_a_vector() {
    // Runs of kept and dropped elements of every length at every position of a word.
    fn run<W: Word>() {
        let shape = Matrix { rows: 1, cols: 64 };
        for from in some(0..64, 5) {
            for to in some(from..=64, 3) {
                let bits: Vec<bool> = (0..64).map(|i| (from..to).contains(&i)).collect();
                let sample = Sample::<W>::new(shape, &bits, &mut Random(from as u64));
                Isa::available().into_iter().for_each(|isa| sample.check(Exec::single(isa), 0));
            }
        }
    }
    every_width!(run());
}

#[test]
fn threads_do_not_show() {
    // Beyond what is split over threads: whole rows, rows that begin anywhere in a byte, one long
    // row, few long rows.
    fn run<W: Word>() {
        let mut random = Random(7);
        for (rows, cols) in [(700, 1000), (1000, 701), (200_001, 3), (1, 700_001), (3, 200_003), (2, 263_168)] {
            for keep in [7, 64] {
                let sample = Sample::<W>::random(Matrix { rows, cols }, keep, &mut random);
                for isa in Isa::available() {
                    (1..=3).for_each(|threads| sample.check(Exec { isa, threads }, 1));
                }
            }
        }
    }
    every_width!(run());
}

#[test]
fn what_is_not_zero() {
    // Numbers, zeros of both signs and NaN; every shape of `threads_do_not_show` and shorter ones.
    fn run<E: Element<Bits: ScanWord>>(codes: [u64; 4]) {
        let mut random = Random(11);
        for (rows, cols) in
            [(0, 5), (5, 0), (1, 1), (3, 63), (40, 8), (700, 1000), (200_001, 3), (1, 700_001), (2, 263_168)]
        {
            let shape = Matrix { rows, cols };
            let weights: Vec<E::Bits> =
                (0..shape.len()).map(|_| E::Bits::from_u64(codes[(random.next() >> 40 & 3) as usize])).collect();
            let keep: Vec<bool> = weights.iter().map(|&bits| E::to_f64(bits) != 0.0).collect();
            let mut expected = vec![0; shape.mask_bytes()];
            from_bool(
                shape,
                &keep.iter().map(|&keep| keep as u8).collect::<Vec<_>>(),
                Exec::single(Isa::Scalar),
                &mut expected,
            );
            let values: Vec<_> = (0..shape.len()).filter(|&i| keep[i]).map(|i| weights[i]).collect();
            let mut starts = vec![0; rows + 1];
            offsets(shape, &expected, Exec::single(Isa::Scalar), &mut starts);
            for exec in Isa::available().into_iter().flat_map(|isa| (1..=3).map(move |threads| Exec { isa, threads })) {
                let (mut mask, mut found) = (vec![0xa5; shape.mask_bytes()], vec![-1; rows + 1]);
                let mut packed = Shifted::blank(shape.len(), 1);
                let kept = pack_nonzero::<E>(&weights, shape, exec, &mut mask, &mut found, packed.get_mut());
                assert!(kept == values.len() && mask == expected && found == starts, "{shape:?} {exec:?}");
                assert!(packed.get()[..kept] == values, "{shape:?} {exec:?}");
                packed.check_margins("not zero");
            }
        }
    }
    run::<F64>([1.5f64.to_bits(), 0, 1 << 63, f64::NAN.to_bits()]);
    run::<F32>([1e-45f32.to_bits() as u64, 0, 1 << 31, f32::NAN.to_bits() as u64]);
    run::<F16>([0x0001, 0, 0x8000, 0x7e00]);
    run::<BF16>([0x3f80, 0, 0x8000, 0xffc0]);
    run::<F8E4M3>([0x01, 0, 0x80, 0x7f]);
    run::<F8E5M2>([0x84, 0, 0x80, 0x7e]);
    run::<I8>([0x80, 0, 0x7f, 0x00]);
    run::<U8>([0x80, 0, 0x01, 0x00]);
}

#[test]
fn large_outputs() {
    // Beyond what is written past the caches, from every alignment.
    fn run<W: Word>() {
        let mut random = Random(3);
        let len = (17 << 20) / W::BYTES;
        for (rows, cols, start) in
            [(1, len + 77, 0), (1, len + 77, 3), (len / 8200 + 1, 8200, 64 / W::BYTES - 1), (len / 8201 + 1, 8201, 1)]
        {
            let sample = Sample::<W>::random(Matrix { rows, cols }, 20, &mut random);
            for (threads, isa) in Isa::available().into_iter().enumerate() {
                sample.check(Exec { isa, threads: threads + 1 }, start);
            }
        }
    }
    every_width!(run());
}

#[test]
fn parts_that_disagree_are_errors() {
    fn run<W: Word>() {
        for (shape, threads) in [
            (Matrix { rows: 3, cols: 100 }, 1),
            (Matrix { rows: 1, cols: 64 }, 1),
            (Matrix { rows: 700, cols: 1001 }, 3),
            (Matrix { rows: 2, cols: 400_000 }, 3),
        ] {
            let Sample { mask, values, offsets: starts, weights, .. } = Sample::<W>::random(shape, 30, &mut Random(2));
            for isa in Isa::available() {
                let exec = Exec { isa, threads };
                let agrees = |mask: &[u8], starts: &[i64], kept: usize| {
                    let mut packed = Shifted::blank(kept, 1);
                    let mut out = Shifted::blank(shape.len(), 1);
                    let mut content = values.clone();
                    content.resize(kept, W::default());
                    let checked = check_parts(kept, shape, mask, starts);
                    let Ok(starts) = RowOffsets::new(starts, shape, kept, exec) else {
                        assert!(checked.is_err());
                        return false;
                    };
                    let results = (
                        pack(&weights, shape, mask, starts, exec, packed.get_mut()),
                        unpack(&content, shape, mask, starts, exec, out.get_mut()),
                    );
                    packed.check_margins("pack");
                    out.check_margins("unpack");
                    assert_eq!(results.0, results.1);
                    assert_eq!(results.0.is_ok(), checked.is_ok());
                    results.0.is_ok()
                };
                assert!(agrees(&mask, &starts, values.len()));
                assert!(!agrees(&mask, &starts, values.len() - 1));
                assert!(!agrees(&mask, &starts, values.len() + 1));
                assert!(!agrees(&mask, &starts, 0));
                assert!(!agrees(&vec![0; mask.len()], &starts, values.len()));
                let mut ones = mask.clone();
                fastsparse_core::matrix::fill_ones(shape, &mut ones);
                assert!(!agrees(&ones, &starts, values.len()));
                for bad in [i64::MIN, -1, 1, i64::MAX] {
                    let shifted: Vec<i64> = starts.iter().map(|at| at.wrapping_add(bad)).collect();
                    assert!(!agrees(&mask, &shifted, values.len()));
                    let mut last = starts.clone();
                    *last.last_mut().unwrap() = bad;
                    assert!(!agrees(&mask, &last, values.len()));
                }
                let reversed: Vec<i64> = starts.iter().rev().copied().collect();
                assert!(!agrees(&mask, &reversed, values.len()));
                // Both ends are right. Rows that one task takes together need no offsets between
                // them.
                let half = |row| if 2 * row < shape.rows { 0 } else { values.len() as i64 };
                let half: Vec<i64> = (0..=shape.rows).map(half).collect();
                assert!(shape.len() < 1 << 17 || !agrees(&mask, &half, values.len()));
            }
        }
    }
    every_width!(run());
}

#[test]
fn offsets_ascend() {
    let shape = Matrix { rows: 3, cols: 100 };
    for (offsets, expected) in [
        ([0, 0, 7, 7], Ok(())),
        ([0, 7, 0, 7], Err(Error::RowOffsets { index: 2 })),
        ([0, 3, 8, 7], Err(Error::RowOffsets { index: 3 })),
        ([0, -1, 3, 7], Err(Error::RowOffsets { index: 1 })),
        ([1, 2, 3, 7], Err(Error::RowOffsets { index: 0 })),
        ([0, 2, 3, 6], Err(Error::RowOffsets { index: 3 })),
    ] {
        let found = RowOffsets::new(&offsets, shape, 7, Exec::single(Isa::Scalar));
        assert_eq!(found.map(|found| assert_eq!(found.as_slice(), offsets)), expected, "{offsets:?}");
    }
    // So many that threads share them; the first row that descends is named.
    let shape = Matrix { rows: 5 << 20, cols: 1 };
    let mut offsets: Vec<i64> = (0..=shape.rows as i64).collect();
    for row in [shape.rows - 1, 3 << 20, (1 << 20) - 1] {
        offsets[row + 1] = row as i64 - 1;
        let exec = Exec { isa: Isa::Scalar, threads: 3 };
        let found = RowOffsets::new(&offsets, shape, shape.rows, exec).map(|_| ());
        assert_eq!(found, Err(Error::RowOffsets { index: row + 1 }));
    }
}

#[test]
fn checks_name_the_row() {
    let shape = Matrix { rows: 3, cols: 10 };
    let mask = [0x82, 0x02, 0x00, 0x02, 0x00, 0x00];
    assert_eq!(check_parts(4, shape, &mask, &[0, 3, 4, 4]), Ok(()));
    assert_eq!(check_parts(5, shape, &mask, &[0, 3, 4, 4]), Err(Error::ValueCount { found: 4, expected: 5 }));
    let wrong = Error::RowCount { row: 1, found: 1, expected: 0 };
    assert_eq!(check_parts(4, shape, &mask, &[0, 3, 3, 4]), Err(wrong));
    let padded = [0x82, 0x02, 0x00, 0x06, 0x00, 0x00];
    assert_eq!(check_parts(4, shape, &padded, &[0, 3, 4, 4]), Err(Error::Padding { row: 1 }));
    let no_rows = Matrix { rows: 0, cols: 8 };
    assert_eq!(check_parts(0, no_rows, &[], &[5]), Err(Error::RowOffsets { index: 0 }));
}

#[test]
fn rows_stop_where_the_values_end() {
    for isa in Isa::available() {
        let weights: Vec<u16> = (1..=200).collect();
        for room in 0..200 {
            let mut values = Shifted::blank(room, 0);
            assert_eq!(pack::rows(isa, &weights, 200, &[0xff; 25], values.get_mut()), None);
            values.check_margins("rows");
        }
        let mut values = [0; 200];
        assert_eq!(pack::rows(isa, &weights, 200, &[0xff; 25], &mut values), Some(200));
    }
}

/// Memory between two pages that nobody may touch: a read beyond either end kills the test.
#[cfg(target_os = "linux")]
mod guarded {
    use super::*;
    use std::ffi::c_void;

    unsafe extern "C" {
        fn mmap(at: *mut c_void, len: usize, access: i32, flags: i32, file: i32, offset: i64) -> *mut c_void;
        fn mprotect(at: *mut c_void, len: usize, access: i32) -> i32;
        fn munmap(at: *mut c_void, len: usize) -> i32;
    }

    /// At least as large as a page anywhere.
    const PAGE: usize = 1 << 16;

    struct Memory(*mut u8);

    impl Memory {
        fn new() -> Memory {
            // SAFETY: a fresh private mapping without a file (2 | 0x20); its middle is made
            // readable and writable (1 | 2).
            unsafe {
                let start: *mut u8 = mmap(std::ptr::null_mut(), 3 * PAGE, 0, 0x22, -1, 0).cast();
                assert_eq!(mprotect(start.add(PAGE).cast(), PAGE, 3), 0);
                Memory(start)
            }
        }

        /// `len` words that touch the guard after them, or the one before.
        fn words<W: Word>(&mut self, len: usize, at_end: bool) -> &mut [W] {
            let skip = if at_end { PAGE - len * W::BYTES } else { 0 };
            // SAFETY: within the accessible page, aligned since the page and its length are;
            // borrowed from `self`.
            unsafe { std::slice::from_raw_parts_mut(self.0.add(PAGE + skip).cast(), len) }
        }

        fn filled<W: Word>(&mut self, content: &[W], at_end: bool) -> &mut [W] {
            let words = self.words(content.len(), at_end);
            words.copy_from_slice(content);
            words
        }
    }

    impl Drop for Memory {
        fn drop(&mut self) {
            // SAFETY: the mapping made in `new`, which nothing borrows any more.
            unsafe { munmap(self.0.cast(), 3 * PAGE) };
        }
    }

    #[test]
    fn nothing_beyond_the_ends_is_touched() {
        fn run<W: Word>() {
            let mut random = Random(5);
            let mut memory = [(); 5].map(|_| Memory::new());
            for (cols, keep, at_end) in COLS.iter().flat_map(|&c| [(c, 32, true), (c, 32, false), (c, 64, true)]) {
                let shape = Matrix { rows: 3, cols };
                let sample = Sample::<W>::random(shape, keep, &mut random);
                let [weights, mask, values, out, bools] = &mut memory;
                let weights = weights.filled(&sample.weights, at_end);
                let mask = mask.filled(&sample.mask, at_end);
                let values = values.words::<W>(sample.values.len(), at_end);
                let out = out.words::<W>(shape.len(), at_end);
                let bools = bools.words::<u8>(shape.len(), at_end);
                for isa in Isa::available() {
                    let exec = Exec::single(isa);
                    let offsets = RowOffsets::new(&sample.offsets, shape, values.len(), exec).unwrap();
                    assert_eq!(pack(weights, shape, mask, offsets, exec, values), Ok(()));
                    assert_eq!(values, &sample.values);
                    apply_mask(weights, shape, mask, exec, out);
                    apply_mask_in_place(out, shape, mask, exec);
                    assert_eq!(unpack(values, shape, mask, offsets, exec, out), Ok(()));
                    assert_eq!(out, &sample.dense);
                    to_bool(shape, mask, exec, bools);
                    from_bool(shape, bools, exec, mask);
                    assert_eq!(mask, &sample.mask);
                }
            }
        }
        every_width!(run());
    }
}

/// A few small cases of every operation: what `make miri` runs of this file.
#[test]
fn small() {
    fn run<W: Word>() {
        let mut random = Random(3);
        for (rows, cols, keep) in [(1, 9, 32), (3, 67, 40), (2, 130, 64)] {
            let sample = Sample::<W>::random(Matrix { rows, cols }, keep, &mut random);
            Isa::available().into_iter().for_each(|isa| sample.check(Exec::single(isa), 1));
        }
    }
    every_width!(run());
}

proptest! {
    #[test]
    fn any_shape_and_density(rows in 0usize..20, cols in 0usize..400, keep in 0u64..=64, seed: u64, start in 0usize..64) {
        fn run<W: Word>(shape: Matrix, keep: u64, seed: u64, start: usize) {
            let sample = Sample::<W>::random(shape, keep, &mut Random(seed));
            Isa::available().into_iter().for_each(|isa| sample.check(Exec::single(isa), start));
        }
        every_width!(run(Matrix { rows, cols }, keep, seed, start));
    }
}
