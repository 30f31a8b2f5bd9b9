//! Groups (n:m, top-k) against a stable sort, on every instruction set, for every width of key.

mod common;

use fastsparse_core::element::{BF16, Element, F8E4M3, F8E5M2, F16, F32, F64, I8, U8, Word};
use fastsparse_core::error::{Error, ZerosInEvery};
use fastsparse_core::isa::Isa;
use fastsparse_core::keys::{ColumnScale, Keys, Magnitude, Ordered, Scaled32, Scaled64};
use fastsparse_core::matrix::Matrix;
use fastsparse_core::nm::{self, Axis, Groups, Tail};
use fastsparse_core::parallel::Exec;
use proptest::prelude::*;

use common::{Random, some};

/// What the values are like.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Any bits but NaN.
    Any,
    /// A handful of values of both signs.
    Few,
    /// Zeros of both signs, infinities and the largest numbers.
    Extreme,
    /// One value.
    Equal,
}

const KINDS: [Kind; 4] = [Kind::Any, Kind::Few, Kind::Extreme, Kind::Equal];

fn values<E: Element>(kind: Kind, len: usize, seed: u64) -> Vec<E::Bits> {
    let mut random = Random(seed);
    let sign = 1u64 << (8 * E::Bits::BYTES - 1);
    let largest = E::MAX_MAGNITUDE.to_u64();
    let number = |random: &mut Random| {
        let word = random.next();
        let wide = word ^ random.next() << 40;
        match kind {
            Kind::Any => wide,
            Kind::Few => (word % 5) * (largest / 5) + if word & 64 == 0 { sign } else { 0 },
            Kind::Extreme => [0, sign, largest, largest | sign, largest - 1, 1][word as usize % 6],
            Kind::Equal => largest / 3,
        }
    };
    let mut one = || {
        loop {
            let bits = E::Bits::from_u64(number(&mut random));
            if E::magnitude(bits) <= E::MAX_MAGNITUDE {
                return bits;
            }
        }
    };
    (0..len).map(|_| one()).collect()
}

/// A tensor, an axis of it and the mask's shape.
#[derive(Debug, Clone, Copy)]
struct Case {
    shape: Matrix,
    axis: Axis,
    groups: Groups,
}

impl Case {
    fn new(dimensions: &[usize], axis: usize, groups: Groups) -> Case {
        let product = |d: &[usize]| d.iter().product::<usize>();
        let shape = match dimensions {
            [cols] => Matrix { rows: 1, cols: *cols },
            [rows, rest @ ..] => Matrix { rows: *rows, cols: product(rest) },
            [] => Matrix { rows: 1, cols: 1 },
        };
        let (before, after) = (&dimensions[..axis], &dimensions[axis + 1..]);
        let axis = Axis { outer: product(before), len: dimensions[axis], inner: product(after) };
        Case { shape, axis, groups }
    }

    fn bit(&self, element: usize) -> usize {
        element / self.shape.cols * self.shape.row_bytes() * 8 + element % self.shape.cols
    }

    fn reference<K: Keys>(&self, keys: &K) -> Vec<u8> {
        let mut all = vec![K::Key::default(); keys.len()];
        keys.fill(0, &mut all).unwrap();
        let mut mask = vec![0u8; self.shape.mask_bytes()];
        let Axis { outer, len, inner } = self.axis;
        for line in 0..outer * inner {
            for first in (0..len).step_by(self.groups.of) {
                let length = self.groups.of.min(len - first);
                let element = |i: usize| (line / inner * len + first + i) * inner + line % inner;
                let mut order: Vec<usize> = (0..length).collect();
                order.sort_by_key(|&i| std::cmp::Reverse(all[element(i)]));
                for &i in &order[..length - self.groups.zeros_in(length)] {
                    mask[self.bit(element(i)) / 8] |= 1 << (self.bit(element(i)) % 8);
                }
            }
        }
        mask
    }

    fn check<K: Keys>(&self, keys: &K, threads: usize) {
        let expected = self.reference(keys);
        for isa in Isa::available() {
            let mut mask = vec![0xa5; expected.len()];
            nm::select(keys, self.shape, self.axis, self.groups, Exec { isa, threads }, &mut mask).unwrap();
            assert!(mask == expected, "{self:?} on {}, {threads} threads: {mask:x?}, not {expected:x?}", isa.name());
        }
    }

    /// Magnitudes, and one of the other kinds of keys, of every element type.
    fn check_types(&self, kind: Kind, seed: u64, threads: usize) {
        fn each<E: Element>(case: &Case, kind: Kind, seed: u64, threads: usize) {
            // One element more in front: the data start anywhere a type may.
            let data = &values::<E>(kind, case.shape.len() + 1, seed)[1..];
            case.check(&Magnitude::<E>(data), threads);
            case.check(&Ordered::<E>(data), threads);
        }
        each::<F64>(self, kind, seed, threads);
        each::<F32>(self, kind, seed, threads);
        each::<F16>(self, kind, seed, threads);
        each::<BF16>(self, kind, seed, threads);
        each::<F8E4M3>(self, kind, seed, threads);
        each::<F8E5M2>(self, kind, seed, threads);
        each::<I8>(self, kind, seed, threads);
        each::<U8>(self, kind, seed, threads);
    }

    fn check_scaled(&self, seed: u64, threads: usize) {
        let len = self.shape.len();
        let repeat = if self.shape.cols.is_multiple_of(3) { 3 } else { 1 };
        let mut random = Random(seed);
        let factors: Vec<f64> = (0..self.shape.cols / repeat).map(|_| (random.next() % 7) as f64 * 0.3).collect();
        let narrow: Vec<f32> = factors.iter().map(|&x| x as f32).collect();
        let scale32 = ColumnScale { values: &narrow[..], cols: self.shape.cols, repeat };
        let scale64 = ColumnScale { values: &factors[..], cols: self.shape.cols, repeat };
        let wide: Vec<u64> = (0..len).map(|_| ((random.next() % 1000) as f64 - 500.0).to_bits()).collect();
        let half: Vec<u16> = (0..len).map(|_| (random.next() % 0x7f80) as u16).collect();
        self.check(&Scaled64(&wide, scale64), threads);
        // 0 · infinity is not in the data: the exponent stays below the largest.
        self.check(&Scaled32::<BF16>(&half, scale32), threads);
    }
}

fn groups(zeros: usize, of: usize) -> Groups {
    Groups { zeros, of, tail: Tail::Proportional }
}

#[test]
fn every_group_length() {
    for of in some((1..=70).chain([96, 127, 128, 129, 200]), 9) {
        for zeros in [0, 1, of / 2, of - 1, of] {
            let kind = KINDS[(of + zeros) % 4];
            // Whole vectors, what is left of them, and a tail.
            Case::new(&[3, of * 37 + of / 2], 1, groups(zeros, of)).check_types(kind, of as u64, 1);
            Case::new(&[of * 2 + of / 3, 83], 0, groups(zeros, of)).check_types(kind, of as u64, 1);
        }
    }
}

#[test]
fn every_axis_of_small_tensors() {
    for dimensions in [&[1][..], &[7], &[64], &[5, 1], &[1, 9], &[3, 16, 5], &[4, 6, 3, 3], &[2, 8, 16], &[9, 3, 2, 7]]
    {
        for axis in 0..dimensions.len() {
            let groups = [(1, 2), (1, 3), (2, 4), (3, 4), (2, 5), (4, 8), (5, 16), (60, 64), (3, 100)];
            for (zeros, of) in some(groups, 4) {
                for tail in [Tail::Proportional, Tail::Keep] {
                    let case = Case::new(dimensions, axis, Groups { zeros, of, tail });
                    for kind in some(KINDS, 2) {
                        case.check_types(kind, of as u64, 1);
                    }
                    case.check_scaled(of as u64, 1);
                }
            }
        }
    }
}

#[test]
fn threads_share_no_byte() {
    for (dimensions, axis) in [
        (&[200_003][..], 0),
        (&[64, 4096], 1),
        (&[64, 4099], 1),
        (&[512, 515], 0),
        (&[40, 12, 700], 1),
        (&[40, 12, 703], 1),
        (&[300, 96, 3, 3], 1),
        (&[2, 70_000, 3], 1),
        (&[2, 140_004], 1),
    ] {
        for (zeros, of) in some([(2, 4), (3, 7), (4, 8), (20, 33), (100, 300)], 3) {
            let case = Case::new(dimensions, axis, groups(zeros, of));
            let data = values::<F32>(Kind::Any, case.shape.len(), 3);
            let expected = case.reference(&Magnitude::<F32>(&data));
            for isa in Isa::available() {
                for threads in some(1..=3, 2) {
                    let mut mask = vec![0xff; expected.len()];
                    let exec = Exec { isa, threads };
                    nm::select(&Magnitude::<F32>(&data), case.shape, case.axis, case.groups, exec, &mut mask).unwrap();
                    assert!(mask == expected, "{case:?}, {} with {threads} threads", isa.name());
                }
            }
        }
    }
}

#[test]
fn large_scaled_tensors() {
    for (dimensions, axis) in [(&[30, 4101][..], 1), (&[300, 411], 0), (&[30, 64, 9], 1)] {
        for (zeros, of) in [(2, 4), (4, 8), (5, 12), (100, 200)] {
            Case::new(dimensions, axis, groups(zeros, of)).check_scaled(1, 2);
        }
    }
}

#[test]
fn the_first_nan_is_named() {
    for (dimensions, axis) in [(&[30, 4100][..], 1), (&[300, 411], 0), (&[40, 30, 110], 1)] {
        for (zeros, of) in [(2, 4), (4, 8), (7, 7), (5, 0x41)] {
            let case = Case::new(dimensions, axis, groups(zeros, of));
            for index in some([0, 4097, 77_777, case.shape.len() - 1], 2) {
                let mut data = vec![0x3f80u16; case.shape.len()];
                data[index] = 0xffc0;
                *data.last_mut().unwrap() = 0x7fff;
                for isa in Isa::available() {
                    for threads in 1..=3 {
                        let mut mask = vec![0; case.shape.mask_bytes()];
                        let exec = Exec { isa, threads };
                        let (shape, axis) = (case.shape, case.axis);
                        let found = nm::select(&Magnitude::<BF16>(&data), shape, axis, case.groups, exec, &mut mask);
                        assert_eq!(found, Err(Error::Nan { index }), "{case:?} on {}", isa.name());
                        let found = nm::select(&Ordered::<BF16>(&data), shape, axis, case.groups, exec, &mut mask);
                        assert_eq!(found, Err(Error::Nan { index }), "{case:?} on {}", isa.name());
                    }
                }
            }
        }
    }
}

#[test]
fn a_tail_may_be_an_error() {
    let exec = Exec::single(Isa::detect());
    let strict = Groups { zeros: 2, of: 4, tail: Tail::Error };
    let groups = ZerosInEvery { zeros: 2, of: 4 };
    for (len, expected) in
        [(8, Ok(())), (9, Err(Error::Tail { len: 9, groups })), (3, Err(Error::Tail { len: 3, groups }))]
    {
        let case = Case::new(&[2, len], 1, strict);
        let data = vec![1u8; 2 * len];
        let mut mask = vec![0; case.shape.mask_bytes()];
        assert_eq!(nm::select(&Magnitude::<I8>(&data), case.shape, case.axis, strict, exec, &mut mask), expected);
    }
}

#[test]
fn empty_tensors() {
    for dimensions in [&[0][..], &[0, 5], &[5, 0], &[2, 0, 3]] {
        for axis in 0..dimensions.len() {
            Case::new(dimensions, axis, groups(2, 4)).check(&Magnitude::<F32>(&[]), 2);
        }
    }
}

/// The first group of a mask, by its first element, that does not keep what it should.
fn first_wrong(case: &Case, mask: &[u8]) -> Option<Error> {
    let Axis { outer, len, inner } = case.axis;
    let mut wrong = Vec::new();
    for line in 0..outer * inner {
        for first in (0..len).step_by(case.groups.of) {
            let length = case.groups.of.min(len - first);
            let element = |i: usize| (line / inner * len + first + i) * inner + line % inner;
            let kept = |&i: &usize| mask[case.bit(element(i)) / 8] >> (case.bit(element(i)) % 8) & 1 == 1;
            if (0..length).filter(kept).count() != length - case.groups.zeros_in(length) {
                wrong.push(element(0));
            }
        }
    }
    let groups = ZerosInEvery { zeros: case.groups.zeros, of: case.groups.of };
    wrong.into_iter().min().map(|first| Error::Group { first, groups })
}

#[test]
fn masks_obey_their_groups_and_no_others() {
    let mut random = Random(9);
    for (dimensions, axis) in [
        (&[5, 200][..], 1),
        (&[5, 203], 1),
        (&[203], 0),
        (&[203, 130], 0),
        (&[6, 20, 9], 1),
        (&[6, 20, 80], 1),
        (&[40, 7], 1),
        (&[3, 1], 0),
        (&[300, 16_384], 1),
    ] {
        for of in some([1, 2, 3, 4, 7, 8, 12, 16, 32, 64, 65, 130], 4) {
            for zeros in [0, of / 2, of] {
                let case = Case::new(dimensions, axis, groups(zeros, of));
                let data = values::<I8>(Kind::Any, case.shape.len(), of as u64);
                let mut mask = vec![0; case.shape.mask_bytes()];
                let exec = Exec { isa: Isa::detect(), threads: 2 };
                let Case { shape, axis, groups } = case;
                nm::select(&Magnitude::<I8>(&data), shape, axis, groups, exec, &mut mask).unwrap();
                assert_eq!(nm::verify(shape, axis, groups, &mask, exec), Ok(()), "{case:?}");
                for flips in 1..3 {
                    let element = random.next() as usize % shape.len();
                    mask[case.bit(element) / 8] ^= 1 << (case.bit(element) % 8);
                    let expected = first_wrong(&case, &mask).map_or(Ok(()), Err);
                    assert!(flips == 2 || expected.is_err());
                    assert_eq!(nm::verify(shape, axis, groups, &mask, exec), expected, "{case:?}");
                }
            }
        }
    }
}

/// A few small cases of every operation: what `make miri` runs of this file.
#[test]
fn small() {
    for (zeros, of) in [(2, 4), (5, 7), (40, 64)] {
        Case::new(&[2, of + 9], 1, groups(zeros, of)).check_types(Kind::Few, 1, 1);
        Case::new(&[of + 3, 10], 0, groups(zeros, of)).check_types(Kind::Any, 2, 1);
    }
    Case::new(&[2, 13], 1, groups(2, 4)).check_scaled(3, 1);
}

proptest! {
    #[test]
    fn any_shape(
        dimensions in prop::collection::vec(1usize..24, 1..4),
        axis in 0usize..4,
        of in 1usize..70,
        zeros in 0usize..70,
        keep_tail: bool,
        kind in prop::sample::select(&KINDS[..]),
        seed: u64,
        threads in 1usize..3,
    ) {
        let tail = if keep_tail { Tail::Keep } else { Tail::Proportional };
        let case = Case::new(&dimensions, axis % dimensions.len(), Groups { zeros: zeros.min(of), of, tail });
        case.check_types(kind, seed, threads);
        case.check_scaled(seed, threads);
    }
}

/// The zeros that groups have in common, one group after the other.
fn naive_common(case: &Case, least: usize, mask: &[u8]) -> Option<nm::Common> {
    let Axis { outer, len, inner } = case.axis;
    let of = case.groups.of;
    let (mut counts, mut in_tail) = (Vec::new(), None::<usize>);
    for line in 0..outer * inner {
        for first in (0..len).step_by(of) {
            let element = |i: usize| (line / inner * len + i) * inner + line % inner;
            let zero = |&i: &usize| mask[case.bit(element(i)) / 8] >> (case.bit(element(i)) % 8) & 1 == 0;
            let zeros = (first..len.min(first + of)).filter(zero).count();
            if len - first < of {
                in_tail = in_tail.into_iter().chain([zeros]).min();
            } else {
                counts.push(zeros);
            }
        }
    }
    let zeros = counts.iter().copied().min()?;
    let more = counts.iter().filter(|&&count| count > zeros).count();
    (zeros >= least && 4 * more <= counts.len()).then_some(nm::Common { zeros, in_tail })
}

#[test]
fn zeros_in_common() {
    let mut random = Random(11);
    let tensors: [(&[usize], usize); 6] =
        [(&[130], 0), (&[7, 72], 1), (&[7, 72], 0), (&[70, 9], 0), (&[5, 9, 3, 3], 1), (&[3, 8, 8], 2)];
    for (dimensions, axis) in tensors {
        for of in [1usize, 2, 3, 4, 8, 16, 31, 32, 64] {
            let case = Case::new(dimensions, axis, groups(of.div_ceil(2), of));
            if of > case.axis.len {
                continue;
            }
            let pruned = case.reference(&Magnitude::<F32>(&values::<F32>(Kind::Any, case.shape.len(), 3)));
            // As it was pruned; with a few zeros more; with many.
            for more in [0, 40, 2, 1] {
                let mut mask = pruned.clone();
                mask.iter_mut().for_each(|byte| {
                    if more > 0 && random.next().is_multiple_of(more) {
                        *byte &= random.next() as u8;
                    }
                });
                let zeros = case.groups.zeros;
                for (threads, least) in [(1, 1), (3, 1), (1, zeros), (3, zeros), (3, of.min(zeros + 1)), (1, of)] {
                    let exec = Exec { isa: Isa::detect(), threads };
                    let found = nm::common_zeros(case.shape, case.axis, of, least, &mask, exec);
                    assert_eq!(found, naive_common(&case, least, &mask), "{case:?} {more} {least}");
                }
            }
            let nothing = vec![0; pruned.len()];
            let exec = Exec::single(Isa::Scalar);
            let found = nm::common_zeros(case.shape, case.axis, of, of, &nothing, exec).map(|found| found.zeros);
            assert_eq!(found, Some(of));
        }
    }
}
