//! Block pruning against a reference that follows the contract word by word.

use std::cmp::Reverse;

mod common;

use fastsparse_core::block::{self, BlockKeys, Blocks, Norm};
use fastsparse_core::element::{BF16, DType, Element, Elements, F8E4M3, F8E5M2, F16};
use fastsparse_core::error::Error;
use fastsparse_core::isa::Isa;
use fastsparse_core::keys::{ColumnScale, Keys, Ranking};
use fastsparse_core::matrix::Matrix;
use fastsparse_core::nm::Axis;
use fastsparse_core::parallel::Exec;
use proptest::prelude::*;

use common::{Random, some};

const DTYPES: [DType; 8] =
    [DType::F64, DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2, DType::I8, DType::U8];

/// Owned elements of one type.
#[derive(Debug, Clone)]
struct Data {
    dtype: DType,
    words: Vec<u64>,
    narrow: Narrow,
}

#[derive(Debug, Clone)]
enum Narrow {
    W8(Vec<u8>),
    W16(Vec<u16>),
    W32(Vec<u32>),
    W64,
}

impl Data {
    fn new(dtype: DType, words: Vec<u64>) -> Data {
        let narrow = match dtype.size() {
            1 => Narrow::W8(words.iter().map(|&w| w as u8).collect()),
            2 => Narrow::W16(words.iter().map(|&w| w as u16).collect()),
            4 => Narrow::W32(words.iter().map(|&w| w as u32).collect()),
            _ => Narrow::W64,
        };
        Data { dtype, words, narrow }
    }

    /// Numbers of the type nearest to (floats) or scaled from (integers) `x`.
    fn of(dtype: DType, numbers: impl IntoIterator<Item = f64>) -> Data {
        let words = numbers.into_iter().map(|x| match dtype {
            DType::F64 => x.to_bits(),
            DType::F32 => (x as f32).to_bits() as u64,
            DType::F16 => half::f16::from_f64(x).to_bits() as u64,
            DType::BF16 => half::bf16::from_f64(x).to_bits() as u64,
            DType::F8E5M2 => (half::f16::from_f64(x).to_bits() >> 8) as u64,
            DType::F8E4M3 => nearest_e4m3(x),
            DType::I8 => (x * 40.0) as i8 as u8 as u64,
            DType::U8 => (x.abs() * 40.0) as u8 as u64,
        });
        Data::new(dtype, words.collect())
    }

    fn elements(&self) -> Elements<'_> {
        match (&self.narrow, self.dtype) {
            (Narrow::W64, _) => Elements::F64(&self.words),
            (Narrow::W32(w), _) => Elements::F32(w),
            (Narrow::W16(w), DType::F16) => Elements::F16(w),
            (Narrow::W16(w), _) => Elements::BF16(w),
            (Narrow::W8(w), DType::F8E4M3) => Elements::F8E4M3(w),
            (Narrow::W8(w), DType::F8E5M2) => Elements::F8E5M2(w),
            (Narrow::W8(w), DType::I8) => Elements::I8(w),
            (Narrow::W8(w), _) => Elements::U8(w),
        }
    }

    fn number(&self, i: usize) -> f64 {
        let word = self.words[i];
        match self.dtype {
            DType::F64 => f64::from_bits(word),
            DType::F32 => f32::from_bits(word as u32) as f64,
            DType::F16 => half::f16::from_bits(word as u16).to_f64(),
            DType::BF16 => half::bf16::from_bits(word as u16).to_f64(),
            DType::F8E5M2 => half::f16::from_bits((word as u16) << 8).to_f64(),
            DType::F8E4M3 => e4m3(word as u8),
            DType::I8 => word as u8 as i8 as f64,
            DType::U8 => word as u8 as f64,
        }
    }
}

fn e4m3(bits: u8) -> f64 {
    let (exponent, mantissa) = ((bits >> 3 & 15) as i32, (bits & 7) as f64);
    let magnitude = match (exponent, bits & 7) {
        (15, 7) => f64::NAN,
        (0, _) => mantissa / 8.0 * 2f64.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
    };
    if bits & 0x80 != 0 { -magnitude } else { magnitude }
}

fn nearest_e4m3(x: f64) -> u64 {
    let code = (0..0x7f).min_by(|&a, &b| (e4m3(a) - x.abs()).abs().total_cmp(&(e4m3(b) - x.abs()).abs())).unwrap();
    (code | (x.is_sign_negative() as u8) << 7) as u64
}

/// What to rank by, beside the data.
#[derive(Debug, Clone)]
enum How {
    Magnitude,
    Scaled { factors: Vec<f64>, repeat: usize },
    Scores,
}

struct Case {
    data: Data,
    shape: Matrix,
    blocks: Blocks,
    norm: Norm,
    how: How,
}

impl Case {
    /// The ranked value of an element, as the contract has it.
    fn term(&self, i: usize) -> f64 {
        let x = self.data.number(i);
        let x = match &self.how {
            How::Scores => return x,
            How::Magnitude => x,
            How::Scaled { factors, repeat } => {
                let factor = factors[i % self.shape.cols / repeat];
                if self.data.dtype == DType::F64 { x * factor } else { (x as f32 * factor as f32) as f64 }
            }
        };
        if self.norm == Norm::L2 { x * x } else { x.abs() }
    }

    /// The elements of every block, row by row.
    fn members(&self) -> Vec<Vec<usize>> {
        let Blocks { axis, tall, wide } = self.blocks;
        let mut blocks = Vec::new();
        for outer in 0..axis.outer {
            for row in (0..axis.len).step_by(tall) {
                for col in (0..axis.inner).step_by(wide) {
                    let rows = row..(row + tall).min(axis.len);
                    let member = |r: usize| {
                        (col..(col + wide).min(axis.inner)).map(move |c| (outer * axis.len + r) * axis.inner + c)
                    };
                    blocks.push(rows.flat_map(member).collect());
                }
            }
        }
        blocks
    }

    fn key(&self, members: &[usize]) -> f64 {
        let mut terms: Vec<f64> = members.iter().map(|&i| self.term(i)).collect();
        if self.norm == Norm::Max && !matches!(self.how, How::Scores) {
            return if terms.iter().any(|x| x.is_nan()) { f64::NAN } else { terms.into_iter().fold(0.0, f64::max) };
        }
        let count = terms.len();
        terms.resize(count.next_power_of_two(), 0.0);
        while terms.len() > 1 {
            let upper = terms.split_off(terms.len() / 2);
            terms.iter_mut().zip(upper).for_each(|(a, b)| *a += b);
        }
        terms[0] / count as f64
    }

    fn reference(&self, zeros: usize) -> Result<Vec<u8>, Error> {
        let members = self.members();
        let keys: Vec<f64> = members.iter().map(|block| self.key(block)).collect();
        if let Some(block) = keys.iter().position(|key| key.is_nan()) {
            let nan = members[block].iter().find(|&&i| self.term(i).is_nan());
            return Err(nan.map_or(Error::BlockNan { block }, |&index| Error::Nan { index }));
        }
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_by(|&a, &b| keys[a].partial_cmp(&keys[b]).unwrap().then(Reverse(a).cmp(&Reverse(b))));
        let kept = order[zeros..].iter().flat_map(|&block| &members[block]);
        let mut mask = vec![0u8; self.shape.mask_bytes()];
        kept.for_each(|&i| self.flip(&mut mask, i));
        Ok(mask)
    }

    fn flip(&self, mask: &mut [u8], i: usize) {
        let (row, col) = (i / self.shape.cols, i % self.shape.cols);
        mask[row * self.shape.row_bytes() + col / 8] ^= 1 << (col % 8);
    }

    fn bit(&self, mask: &[u8], i: usize) -> bool {
        let (row, col) = (i / self.shape.cols, i % self.shape.cols);
        mask[row * self.shape.row_bytes() + col / 8] >> (col % 8) & 1 == 1
    }

    fn with_ranking<R>(&self, f: impl FnOnce(Ranking<'_>) -> R) -> R {
        let elements = self.data.elements();
        match &self.how {
            How::Magnitude => f(Ranking::Magnitude(elements)),
            How::Scores => f(Ranking::Scores(elements)),
            How::Scaled { factors, repeat } => match elements {
                Elements::F64(data) => {
                    f(Ranking::Scaled64(data, ColumnScale { values: factors, cols: self.shape.cols, repeat: *repeat }))
                }
                _ => {
                    let values: Vec<f32> = factors.iter().map(|&x| x as f32).collect();
                    let scale = ColumnScale { values: &values, cols: self.shape.cols, repeat: *repeat };
                    f(Ranking::Scaled32(elements, scale))
                }
            },
        }
    }

    fn select(&self, zeros: usize, exec: Exec) -> Result<Vec<u8>, Error> {
        let mut mask = vec![0xa5; self.shape.mask_bytes()];
        self.with_ranking(|ranking| {
            block::select(ranking, self.shape, self.blocks, self.norm, zeros, exec, &mut mask)
        })?;
        Ok(mask)
    }

    /// Same keys, same mask, and a mask that passes the check, on every ISA.
    fn check(&self) {
        let members = self.members();
        let keys: Vec<f64> = members.iter().map(|block| self.key(block)).collect();
        let name = format!("{:?} {:?} {:?} {:?} {:?}", self.data.dtype, self.shape, self.blocks, self.norm, self.how);
        for isa in Isa::available() {
            self.check_keys(isa, &keys, &name);
            for (threads, zeros) in [(1, 0), (2, members.len() / 3), (3, members.len() / 2), (2, members.len())] {
                let exec = Exec { isa, threads };
                let expected = self.reference(zeros);
                assert_eq!(self.select(zeros, exec), expected, "{name} {zeros} zeros, {exec:?}");
                if let Ok(mask) = expected {
                    assert_eq!(block::verify(self.shape, self.blocks, zeros, &mask, exec), Ok(()), "{name} {exec:?}");
                }
            }
        }
    }

    /// The keys, filled in stretches of several lengths, stand for exactly the numbers that the
    /// reference has.
    fn check_keys(&self, isa: Isa, expected: &[f64], name: &str) {
        self.with_ranking(|ranking| {
            let keys = BlockKeys::new(ranking, self.shape, self.blocks, self.norm, isa).unwrap();
            assert_eq!(keys.len(), expected.len(), "{name}");
            for stretch in [1, 5, 64, expected.len().max(1)] {
                let mut filled = vec![0; expected.len()];
                for (i, part) in filled.chunks_mut(stretch).enumerate() {
                    keys.fill(i * stretch, part).unwrap();
                }
                for (block, (&key, &number)) in filled.iter().zip(expected).enumerate() {
                    if number.is_nan() {
                        assert!(key > keys.max_key(), "{name} {isa:?}: block {block} should be NaN");
                    } else {
                        assert_eq!(keys.value(key), number, "{name} {isa:?}: block {block}");
                    }
                }
            }
        });
    }
}

fn tile(shape: Matrix, tall: usize, wide: usize) -> Blocks {
    Blocks { axis: Axis { outer: 1, len: shape.rows, inner: shape.cols }, tall, wide }
}

fn noise(dtype: DType, len: usize, seed: u64) -> Data {
    let mut random = Random(seed);
    Data::of(dtype, (0..len).map(|_| random.uniform()))
}

#[test]
fn narrow_floats_are_widened_exactly() {
    fn same(a: f64, b: f64) -> bool {
        a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
    }
    for bits in 0..=u16::MAX {
        assert!(same(F16::to_f64(bits), half::f16::from_bits(bits).to_f64()), "float16 {bits:#x}");
        assert!(same(BF16::to_f64(bits), half::bf16::from_bits(bits).to_f64()), "bfloat16 {bits:#x}");
    }
    for bits in 0..=u8::MAX {
        let upper = (bits as u16) << 8;
        assert!(same(F8E5M2::to_f64(bits), half::f16::from_bits(upper).to_f64()), "float8_e5m2 {bits:#x}");
        assert!(same(F8E4M3::to_f64(bits), e4m3(bits)), "float8_e4m3fn {bits:#x}");
    }
}

#[test]
fn tiles_of_every_shape() {
    let shape = Matrix { rows: 37, cols: 141 };
    let data = noise(DType::F32, shape.len(), 1);
    let sides = [1, 2, 3, 4, 5, 7, 8, 16, 24, 32, 37, 40, 64, 65, 128, 141, 1000];
    for tall in sides {
        for wide in sides {
            let case = Case {
                data: data.clone(),
                shape,
                blocks: tile(shape, tall, wide),
                norm: Norm::L1,
                how: How::Magnitude,
            };
            case.check();
        }
    }
}

#[test]
fn every_type_norm_and_ranking() {
    let shape = Matrix { rows: 11, cols: 72 };
    for dtype in DTYPES {
        let data = noise(dtype, shape.len(), 2);
        let mut random = Random(3);
        let factors = |len, random: &mut Random| (0..len).map(|_| random.uniform().abs()).collect();
        let rankings = [
            How::Magnitude,
            How::Scores,
            How::Scaled { factors: factors(72, &mut random), repeat: 1 },
            How::Scaled { factors: factors(8, &mut random), repeat: 9 },
        ];
        for how in rankings {
            for norm in [Norm::L1, Norm::L2, Norm::Max] {
                for (tall, wide) in
                    some([(4, 1), (1, 4), (1, 16), (8, 8), (3, 3), (1, 20), (9, 9), (2, 72), (16, 1)], 4)
                {
                    Case { data: data.clone(), shape, blocks: tile(shape, tall, wide), norm, how: how.clone() }.check();
                }
            }
        }
    }
}

#[test]
fn runs_along_any_axis() {
    let dims = [6, 10, 3, 5];
    let len: usize = dims.iter().product();
    let shape = Matrix { rows: dims[0], cols: len / dims[0] };
    for dtype in [DType::BF16, DType::I8] {
        let data = noise(dtype, len, 4);
        for at in 0..dims.len() {
            let axis =
                Axis { outer: dims[..at].iter().product(), len: dims[at], inner: dims[at + 1..].iter().product() };
            for run in some([1, 2, 3, 4, 7, 16], 3) {
                for how in [How::Magnitude, How::Scaled { factors: (0..10).map(f64::from).collect(), repeat: 15 }] {
                    let blocks = Blocks { axis, tall: run, wide: 1 };
                    Case { data: data.clone(), shape, blocks, norm: Norm::L2, how }.check();
                }
            }
        }
    }
    // One dimension is one row.
    let shape = Matrix { rows: 1, cols: 1003 };
    let axis = Axis { outer: 1, len: 1003, inner: 1 };
    for run in [1, 4, 5, 100, 2000] {
        let blocks = Blocks { axis, tall: run, wide: 1 };
        Case { data: noise(DType::F16, 1003, 5), shape, blocks, norm: Norm::L1, how: How::Magnitude }.check();
    }
    // A column.
    let shape = Matrix { rows: 203, cols: 1 };
    Case { data: noise(DType::F64, 203, 6), shape, blocks: tile(shape, 8, 1), norm: Norm::L2, how: How::Magnitude }
        .check();
}

#[test]
fn blocks_larger_than_a_stretch() {
    for (rows, cols) in some([(1, 2500), (3, 5000), (130, 33), (70, 1100), (2100, 3)], 2) {
        let shape = Matrix { rows, cols };
        let data = noise(DType::F32, shape.len(), 7);
        for (tall, wide) in [(rows, cols), (rows, 1), (1, cols), (rows / 2 + 1, 30), (1, 1024), (2, 1025), (rows, 4)] {
            let how = How::Scores;
            Case { data: data.clone(), shape, blocks: tile(shape, tall, wide), norm: Norm::L1, how }.check();
        }
    }
}

#[test]
fn ties_keep_the_lower_block() {
    let shape = Matrix { rows: 24, cols: 100 };
    for dtype in DTYPES {
        for values in [[0.0, 0.0], [1.0, -1.0], [0.0, -0.0], [0.5, 1.0]] {
            let mut random = Random(8);
            let data = Data::of(dtype, (0..shape.len()).map(|_| values[(random.next() & 1) as usize]));
            for how in [How::Magnitude, How::Scores] {
                for (tall, wide) in [(4, 1), (1, 4), (2, 3)] {
                    let blocks = tile(shape, tall, wide);
                    Case { data: data.clone(), shape, blocks, norm: Norm::L1, how: how.clone() }.check();
                }
            }
        }
    }
}

#[test]
fn extreme_numbers() {
    let shape = Matrix { rows: 9, cols: 90 };
    let extremes = [
        (DType::F64, [1e200, f64::MIN_POSITIVE / 8.0, 1e-200, f64::INFINITY]),
        (DType::F32, [3e38, 1e-44, 1e-38, f64::INFINITY]),
        (DType::F16, [65504.0, 6e-8, 5e-5, f64::INFINITY]),
        (DType::BF16, [3e38, 1e-40, 1e-38, f64::INFINITY]),
        (DType::F8E5M2, [57344.0, 2e-5, 5e-5, f64::INFINITY]),
        (DType::F8E4M3, [448.0, 0.002, 0.01, 0.1]),
        (DType::I8, [-3.2, 3.175, 0.025, 0.0]),
    ];
    for (dtype, values) in extremes {
        let mut random = Random(9);
        let data = Data::of(
            dtype,
            (0..shape.len()).map(|_| {
                let x = values[(random.next() >> 60) as usize % 4];
                if random.next() & 1 == 0 { x } else { -x }
            }),
        );
        for how in [How::Magnitude, How::Scores, How::Scaled { factors: vec![0.7; 90], repeat: 1 }] {
            for norm in [Norm::L1, Norm::L2, Norm::Max] {
                for (tall, wide) in [(4, 1), (1, 4), (3, 5), (9, 90)] {
                    Case { data: data.clone(), shape, blocks: tile(shape, tall, wide), norm, how: how.clone() }.check();
                }
            }
        }
    }
}

#[test]
fn nan_is_an_error_that_names_it() {
    let shape = Matrix { rows: 10, cols: 50 };
    let nans = [
        (DType::F64, 0xfff8_0000_0000_0000),
        (DType::F32, 0x7f80_0001),
        (DType::F16, 0xfe00),
        (DType::BF16, 0x7fc0),
        (DType::F8E5M2, 0x7d),
        (DType::F8E4M3, 0xff),
    ];
    for (dtype, nan) in nans {
        let mut words = noise(dtype, shape.len(), 10).words;
        words[317] = nan;
        words[471] = nan;
        let data = Data::new(dtype, words);
        for how in [How::Magnitude, How::Scores, How::Scaled { factors: vec![0.5; 50], repeat: 1 }] {
            for norm in [Norm::L1, Norm::L2, Norm::Max] {
                for (tall, wide) in [(4, 1), (1, 4), (3, 3), (10, 50)] {
                    let case =
                        Case { data: data.clone(), shape, blocks: tile(shape, tall, wide), norm, how: how.clone() };
                    assert!(matches!(case.reference(1), Err(Error::Nan { .. })));
                    case.check();
                }
            }
        }
    }
    let numbers = |i: usize| {
        if i == 7 {
            f64::INFINITY
        } else if i == 8 {
            f64::NEG_INFINITY
        } else {
            0.5
        }
    };
    let data = Data::of(DType::F32, (0..shape.len()).map(numbers));
    let case = Case { data, shape, blocks: tile(shape, 1, 5), norm: Norm::L1, how: How::Scores };
    assert_eq!(case.select(3, Exec::single(Isa::detect())), Err(Error::BlockNan { block: 1 }));
    case.check();
}

#[test]
fn nothing_to_prune() {
    for (rows, cols) in [(0, 5), (5, 0), (0, 0)] {
        let shape = Matrix { rows, cols };
        let data = noise(DType::F32, 0, 0);
        let case = Case { data, shape, blocks: tile(shape, 4, 4), norm: Norm::L2, how: How::Magnitude };
        assert_eq!(case.select(0, Exec::single(Isa::detect())), Ok(vec![]));
        assert_eq!(block::verify(shape, case.blocks, 0, &[], Exec::single(Isa::detect())), Ok(()));
    }
}

#[test]
fn a_mask_of_other_blocks_is_named() {
    for (rows, cols, tall, wide) in [(13, 61, 4, 1), (13, 61, 1, 3), (12, 200, 5, 70), (3, 50, 2, 8), (8, 33, 3, 33)] {
        let shape = Matrix { rows, cols };
        let blocks = tile(shape, tall, wide);
        let case =
            Case { data: noise(DType::F32, shape.len(), 11), shape, blocks, norm: Norm::L1, how: How::Magnitude };
        let members = case.members();
        let zeros = members.len() / 2;
        let mask = case.reference(zeros).unwrap();
        for exec in Isa::available().into_iter().map(|isa| Exec { isa, threads: 2 }) {
            let expected = Error::BlockCount { found: zeros, expected: zeros + 1 };
            assert_eq!(block::verify(shape, blocks, zeros + 1, &mask, exec), Err(expected));
            assert_eq!(block::uniform(shape, blocks, &mask, exec), Some((zeros, members.len() - zeros)));
            let several = || members.iter().enumerate().filter(|(_, block)| block.len() > 1);
            let (last_index, last_block) = several().next_back().unwrap();
            for (index, block) in several() {
                for i in [block[0], block[block.len() - 1]] {
                    let mut broken = mask.clone();
                    case.flip(&mut broken, i);
                    if index < last_index {
                        // The first one is named.
                        case.flip(&mut broken, last_block[0]);
                    }
                    let found = block::verify(shape, blocks, zeros, &broken, exec);
                    assert_eq!(found, Err(Error::BlockMixed { block: index }), "{shape:?} {blocks:?} {exec:?}");
                    let kept = |block: &[usize]| block.iter().filter(|&&i| case.bit(&broken, i)).count();
                    let none = members.iter().filter(|block| kept(block) == 0).count();
                    let all = members.iter().filter(|block| kept(block) == block.len()).count();
                    let few = 4 * (members.len() - none - all) <= members.len() - none;
                    assert_eq!(block::uniform(shape, blocks, &broken, exec), few.then_some((none, all)));
                }
            }
            let mut padded = mask.clone();
            padded[shape.row_bytes() - 1] |= 0x80;
            if cols % 8 != 0 {
                assert_eq!(block::verify(shape, blocks, zeros, &padded, exec), Err(Error::Padding { row: 0 }));
            }
        }
    }
}

fn norms() -> impl Strategy<Value = Norm> {
    prop_oneof![Just(Norm::L1), Just(Norm::L2), Just(Norm::Max)]
}

/// A few small cases of every operation: what `make miri` runs of this file.
#[test]
fn small() {
    let shape = Matrix { rows: 3, cols: 21 };
    for dtype in DTYPES {
        let data = noise(dtype, shape.len(), 2);
        for (norm, (tall, wide)) in [(Norm::L1, (2, 3)), (Norm::L2, (1, 16)), (Norm::Max, (4, 1))] {
            Case { data: data.clone(), shape, blocks: tile(shape, tall, wide), norm, how: How::Magnitude }.check();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_bits(
        dims in (1..7usize, 1..9usize, 1..70usize),
        at in 0..3usize,
        sides in (1..12usize, 1..40usize),
        dtype in prop::sample::select(&DTYPES[..]),
        norm in norms(),
        scores in any::<bool>(),
        seed in any::<u64>(),
        finite in prop::bool::weighted(0.8),
    ) {
        let (a, b, c) = dims;
        let shape = Matrix { rows: a, cols: b * c };
        let axis = [
            Axis { outer: 1, len: a, inner: b * c },
            Axis { outer: a, len: b, inner: c },
            Axis { outer: a * b, len: c, inner: 1 },
        ][at];
        let mut random = Random(seed);
        let mut words: Vec<u64> = (0..a * b * c).map(|_| random.next() >> (64 - 8 * dtype.size())).collect();
        if finite {
            let numbers = Data::new(dtype, words.clone());
            for (i, word) in words.iter_mut().enumerate() {
                if !numbers.number(i).is_finite() {
                    *word = 1;
                }
            }
        }
        let how = if scores { How::Scores } else { How::Magnitude };
        let blocks = Blocks { axis, tall: sides.0, wide: sides.1 };
        Case { data: Data::new(dtype, words), shape, blocks, norm, how }.check();
    }
}
