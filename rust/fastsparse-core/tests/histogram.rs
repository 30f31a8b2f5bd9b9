//! Counts of magnitudes against a loop over the values, for every ISA and thread count.

mod common;

use fastsparse_core::element::{BF16, Element, F8E4M3, F16, F32, F64, I8, U8, Word};
use fastsparse_core::error::Error;
use fastsparse_core::histogram::{BINS, Counts, Rank, count, rank};
use fastsparse_core::isa::Isa;
use fastsparse_core::parallel::Exec;

use common::{Random, some};

fn naive<E: Element>(weights: &[E::Bits], low: u64, shift: u32) -> Counts {
    let keys = weights.iter().map(|&bits| E::to_f64(bits).abs().to_bits());
    let (below, inside): (Vec<_>, Vec<_>) = keys.partition(|&key| key < low);
    let mut bins = std::collections::BTreeMap::new();
    for key in inside {
        *bins.entry(((key - low) >> shift) as usize).or_insert(0) += 1;
    }
    Counts { below: below.len() as u64, bins: bins.into_iter().filter(|&(bin, _)| bin < BINS).collect() }
}

fn check<E: Element>(weights: &[E::Bits]) {
    let threshold = E::to_f64(weights[weights.len() / 2]).abs().to_bits();
    let windows = [(0, 42), (threshold >> 42 << 42, 21), (threshold, 0), (u64::MAX >> 1, 63), (0, 0)];
    for (low, shift) in some(windows, 2) {
        let expected = naive::<E>(weights, low, shift);
        for isa in Isa::available() {
            for threads in [1, 3] {
                assert_eq!(count::<E>(weights, low, shift, Exec { isa, threads }), Ok(expected.clone()));
            }
        }
    }
}

fn check_rank<E: Element>(weights: &[E::Bits]) {
    let mut weights = weights.to_vec();
    weights.iter_mut().skip(3).step_by(5).for_each(|bits| *bits = E::Bits::default());
    let weights = &weights[..];
    let values: Vec<u64> = weights.iter().map(|&bits| E::to_f64(bits).abs().to_bits()).collect();
    let middle = values[weights.len() / 2];
    // A value that occurs, its neighbours, which narrow types do not have, and both ends.
    for low in [middle, middle + 1, middle.saturating_sub(1), 0, f64::INFINITY.to_bits(), u64::MAX >> 1] {
        let below = values.iter().filter(|&&value| value < low).count() as u64;
        let equal = values.iter().filter(|&&value| value == low).count() as u64;
        let zero = values.iter().filter(|&&value| value == 0).count() as u64;
        for isa in Isa::available() {
            for threads in [1, 3] {
                let expected = Rank { below, equal, zero };
                assert_eq!(rank::<E>(weights, low, Exec { isa, threads }), Ok(expected), "{low:#x}");
            }
        }
    }
}

/// `len` elements that are numbers.
fn numbers<E: Element>(len: usize) -> Vec<E::Bits> {
    let mut random = Random(1);
    let mut next = || E::Bits::from_u64(random.next());
    std::iter::repeat_with(&mut next).filter(|&bits| E::magnitude(bits) <= E::MAX_MAGNITUDE).take(len).collect()
}

#[test]
fn counts_are_those_of_the_values() {
    for len in some([1, 2, 1000, 65_536, 65_537], 2) {
        check::<F64>(&numbers::<F64>(len));
        check::<F32>(&numbers::<F32>(len));
        check::<F16>(&numbers::<F16>(len));
        check::<BF16>(&numbers::<BF16>(len));
        check::<F8E4M3>(&numbers::<F8E4M3>(len));
        check::<I8>(&numbers::<I8>(len));
    }
}

#[test]
fn ranks_are_those_of_the_values() {
    for len in some([1, 2, 1000, 65_536, 65_537, 200_000], 2) {
        check_rank::<F64>(&numbers::<F64>(len));
        check_rank::<F32>(&numbers::<F32>(len));
        check_rank::<F16>(&numbers::<F16>(len));
        check_rank::<BF16>(&numbers::<BF16>(len));
        check_rank::<F8E4M3>(&numbers::<F8E4M3>(len));
        check_rank::<I8>(&numbers::<I8>(len));
        check_rank::<U8>(&numbers::<U8>(len));
    }
    assert_eq!(rank::<F32>(&[], 7, Exec::single(Isa::Scalar)), Ok(Rank::default()));
}

#[test]
fn threads_add_up() {
    let weights = numbers::<F32>(9_000_000);
    let one = count::<F32>(&weights, 0, 42, Exec::single(Isa::Scalar));
    assert_eq!(one, Ok(naive::<F32>(&weights, 0, 42)));
    assert_eq!(count::<F32>(&weights, 0, 42, Exec { isa: Isa::Scalar, threads: 2 }), one);
}

#[test]
fn nothing_counts_as_nothing() {
    assert_eq!(count::<F32>(&[], 0, 42, Exec::single(Isa::Scalar)), Ok(Counts::default()));
}

#[test]
fn the_first_nan_is_named() {
    for at in some([0, 70_000, 199_999], 2) {
        let mut wide = numbers::<F32>(200_000);
        wide[at] = f32::NAN.to_bits();
        wide[199_999] = f32::NAN.to_bits();
        assert_eq!(count::<F32>(&wide, 0, 42, Exec::single(Isa::Scalar)), Err(Error::Nan { index: at }));
        for isa in Isa::available() {
            assert_eq!(rank::<F32>(&wide, 0, Exec { isa, threads: 2 }), Err(Error::Nan { index: at }));
        }
        let mut narrow = numbers::<F16>(200_000);
        narrow[at] = 0xfe00;
        narrow[199_999] = 0x7e00;
        assert_eq!(count::<F16>(&narrow, 0, 42, Exec::single(Isa::Scalar)), Err(Error::Nan { index: at }));
    }
}

/// A few small cases of every operation: what `make miri` runs of this file.
#[test]
fn small() {
    check::<F32>(&numbers::<F32>(70));
    check::<BF16>(&numbers::<BF16>(70));
    check::<I8>(&numbers::<I8>(70));
    check_rank::<F32>(&numbers::<F32>(70));
}
