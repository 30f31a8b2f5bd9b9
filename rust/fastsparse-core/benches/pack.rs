//! Packing (under a mask, and what is not zero), unpacking and masking against a copy of the dense
//! tensor.
//!
//! `cargo bench -p fastsparse-core --bench pack [-- WORD…]`; words select operations, widths, ISAs
//! and `small`. The probe is `memcpy` of the dense tensor on one thread. Probe and kernels take
//! turns; a figure is the least time of the kernel ÷ the least of the probe: others may use the
//! machine. Every result is checked.

use std::time::{Duration, Instant};

use fastsparse_core::element::{BF16, Element, F32, F64, U8, Word};
use fastsparse_core::isa::Isa;
use fastsparse_core::matrix::{Matrix, from_bool, popcount, to_bool};
use fastsparse_core::pack::{apply_mask, apply_mask_in_place, offsets, pack, pack_nonzero};
use fastsparse_core::parallel::Exec;
use fastsparse_core::select::ScanWord;
use fastsparse_core::unpack::{RowOffsets, check_parts, unpack};

const STANDARD: Matrix = Matrix { rows: 4096, cols: 11008 };
const ROUNDS: usize = 15;

/// Zeroed memory on huge pages, where the system has them, as NumPy asks for from 4 MiB on.
fn zeros<W: Word>(len: usize) -> &'static mut [W] {
    unsafe extern "C" {
        fn madvise(start: *mut std::ffi::c_void, len: usize, advice: i32) -> i32;
    }
    const HUGE: usize = 2 << 20;
    let layout = std::alloc::Layout::from_size_align((len * W::BYTES).next_multiple_of(HUGE) + 64, HUGE).unwrap();
    // SAFETY: the layout is not empty; the advice (14: huge pages) changes no content; zeroed words
    // are words. 16 bytes in, as NumPy's allocations begin.
    unsafe {
        let start = std::alloc::alloc_zeroed(layout);
        assert!(!start.is_null());
        madvise(start.cast(), layout.size(), 14);
        let slice = std::slice::from_raw_parts_mut(start.add(16).cast::<W>(), len);
        slice.fill(W::MAX);
        slice.fill(W::default());
        slice
    }
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

/// A mask of independent bits.
fn random_mask(shape: Matrix, density: f64) -> &'static mut [u8] {
    let mask = zeros::<u8>(shape.mask_bytes());
    let mut state = 88172645463325252;
    for row in 0..shape.rows {
        for col in 0..shape.cols {
            let keep = (random(&mut state) >> 11) as f64 / (1u64 << 53) as f64 <= density;
            mask[row * shape.row_bytes() + col / 8] |= (keep as u8) << (col % 8);
        }
    }
    mask
}

fn timed(f: impl FnOnce()) -> Duration {
    let start = Instant::now();
    f();
    start.elapsed()
}

fn least(times: &[f64]) -> f64 {
    times.iter().copied().fold(f64::INFINITY, f64::min)
}

/// What is measured: a name and a closure.
type Case<'a> = (String, Box<dyn FnMut() + 'a>);

/// Runs the probe and the cases in turns and prints the least times.
fn turns(title: &str, repeat: usize, mut probe: impl FnMut(), cases: &mut [Case<'_>]) {
    let mut times = vec![Vec::new(); cases.len()];
    let mut probes = Vec::new();
    for _ in 0..ROUNDS {
        let each = |f: &mut dyn FnMut()| timed(|| (0..repeat).for_each(|_| f())).as_secs_f64() / repeat as f64;
        for ((_, case), times) in cases.iter_mut().zip(&mut times) {
            probes.push(each(&mut probe));
            times.push(each(case));
        }
    }
    let probe = least(&probes);
    println!("{title}: memcpy {:.3} us", 1e6 * probe);
    for ((name, _), times) in cases.iter().zip(&times) {
        println!("  {name:32} {:10.3} us  x {:.3}", 1e6 * least(times), least(times) / probe);
    }
}

struct Buffers<W: 'static> {
    weights: &'static mut [W],
    copy: &'static mut [W],
    out: &'static mut [W],
    values: &'static mut [W],
}

fn buffers<W: Word>(len: usize) -> Buffers<W> {
    let weights = zeros::<W>(len);
    let mut state = 1;
    for weight in weights.iter_mut() {
        *weight = W::from_u64(random(&mut state) | 1);
    }
    Buffers { weights, copy: zeros(len), out: zeros(len), values: zeros(len) }
}

fn measure<E: Element<Bits: ScanWord>>(
    buffers: &mut Buffers<E::Bits>,
    shape: Matrix,
    density: f64,
    repeat: usize,
    wanted: &dyn Fn(&str) -> bool,
) {
    let mask: &[u8] = random_mask(shape, density);
    let mut starts = vec![0; shape.rows + 1];
    let single = Exec::single(Isa::detect());
    let kept = offsets(shape, mask, single, &mut starts);
    assert_eq!(kept, popcount(mask));
    let weights: &[E::Bits] = &buffers.weights[..shape.len()];
    let pruned = zeros::<E::Bits>(if wanted("nonzero") { shape.len() } else { 0 });
    if wanted("nonzero") {
        apply_mask(weights, shape, mask, single, pruned);
    }
    let pruned: &[E::Bits] = pruned;
    let starts = RowOffsets::new(&starts, shape, kept, single).unwrap();
    pack(weights, shape, mask, starts, single, &mut buffers.values[..kept]).unwrap();
    buffers.out[..shape.len()].copy_from_slice(weights);
    let bools =
        std::cell::RefCell::new(zeros::<u8>(if wanted("tobool") || wanted("frombool") { shape.len() } else { 0 }));
    let bits = std::cell::RefCell::new(vec![0; mask.len()]);
    for op in ["pack", "inplace", "unpack", "apply", "nonzero", "tobool", "frombool", "offsets", "check"] {
        if !wanted(op) {
            continue;
        }
        let (out, values) = (&mut buffers.out[..shape.len()], &mut buffers.values[..shape.len()]);
        let mut cases: Vec<Case<'_>> = Vec::new();
        let (out_at, values_at) = (std::cell::RefCell::new(out), std::cell::RefCell::new(values));
        for isa in Isa::available() {
            for threads in [1, 2] {
                if !wanted(isa.name()) || !wanted(&format!("t{threads}")) {
                    continue;
                }
                let exec = Exec { isa, threads };
                let (out, values, bools, bits) = (&out_at, &values_at, &bools, &bits);
                // Checked at each call, as callers do.
                let ascending = starts.as_slice();
                let starts = move || RowOffsets::new(ascending, shape, kept, exec).unwrap();
                let mut counts = vec![0; shape.rows + 1];
                cases.push((
                    format!("{op} {} t{threads}", isa.name()),
                    Box::new(move || match op {
                        "pack" => pack(weights, shape, mask, starts(), exec, &mut values.borrow_mut()[..kept]).unwrap(),
                        "unpack" => {
                            unpack(&values.borrow()[..kept], shape, mask, starts(), exec, &mut out.borrow_mut())
                                .unwrap()
                        }
                        "apply" => apply_mask(weights, shape, mask, exec, &mut out.borrow_mut()),
                        "inplace" => apply_mask_in_place(&mut out.borrow_mut(), shape, mask, exec),
                        "nonzero" => {
                            let (bits, values) = (&mut bits.borrow_mut(), &mut values.borrow_mut());
                            assert_eq!(pack_nonzero::<E>(pruned, shape, exec, bits, &mut counts, values), kept);
                        }
                        "tobool" => to_bool(shape, mask, exec, &mut bools.borrow_mut()),
                        "frombool" => from_bool(shape, &bools.borrow(), exec, &mut bits.borrow_mut()),
                        "offsets" => assert_eq!(offsets(shape, mask, exec, &mut counts), kept),
                        _ => check_parts(kept, shape, mask, ascending).unwrap(),
                    }),
                ));
            }
        }
        let title = format!("{op} {}x{} u{} density {density}", shape.rows, shape.cols, 8 * E::Bits::BYTES);
        let copy = &mut *buffers.copy;
        turns(&title, repeat, || copy[..weights.len()].copy_from_slice(weights), &mut cases);
        drop(cases);
        assert!(!["frombool", "nonzero"].contains(&op) || *bits.borrow() == mask);
        check(op, weights, shape, mask, &out_at.borrow(), &values_at.borrow()[..kept]);
    }
}

/// Compares the results with the plain loop.
fn check<W: Word>(op: &str, weights: &[W], shape: Matrix, mask: &[u8], out: &[W], values: &[W]) {
    let kept =
        |i: usize| mask[i / shape.cols * shape.row_bytes() + i % shape.cols / 8] >> (i % shape.cols % 8) & 1 == 1;
    match op {
        "pack" | "nonzero" => {
            assert!((0..shape.len()).filter(|&i| kept(i)).map(|i| weights[i]).eq(values.iter().copied()))
        }
        "unpack" | "apply" | "inplace" => {
            assert!((0..shape.len()).all(|i| out[i] == if kept(i) { weights[i] } else { W::default() }));
        }
        _ => (),
    }
}

fn all<E: Element<Bits: ScanWord>>(wanted: &dyn Fn(&str) -> bool) {
    if !wanted(&format!("u{}", 8 * E::Bits::BYTES)) {
        return;
    }
    let mut buffers = buffers::<E::Bits>(STANDARD.len());
    for (sparsity, density) in [("50", 0.5), ("75", 0.25), ("90", 0.1)] {
        if wanted(sparsity) {
            measure::<E>(&mut buffers, STANDARD, density, 1, wanted);
        }
    }
    if wanted("small") {
        measure::<E>(&mut buffers, Matrix { rows: 10, cols: 100 }, 0.5, 2000, wanted);
        measure::<E>(&mut buffers, Matrix { rows: 1, cols: 1000 }, 0.5, 2000, wanted);
        measure::<E>(&mut buffers, Matrix { rows: 256, cols: 1024 }, 0.5, 20, wanted);
    }
    if wanted("shapes") {
        measure::<E>(&mut buffers, Matrix { rows: 1, cols: STANDARD.len() }, 0.5, 1, wanted);
        measure::<E>(&mut buffers, Matrix { rows: 3, cols: 10_000_001 }, 0.5, 1, wanted);
        measure::<E>(&mut buffers, Matrix { rows: 10_000_000, cols: 3 }, 0.5, 1, wanted);
        measure::<E>(&mut buffers, Matrix { rows: 1_000_000, cols: 27 }, 0.5, 1, wanted);
        measure::<E>(&mut buffers, Matrix { rows: 4096, cols: 11007 }, 0.5, 1, wanted);
    }
}

fn main() {
    const GROUPS: [&[&str]; 6] = [
        &["pack", "unpack", "apply", "inplace", "nonzero", "offsets", "check", "tobool", "frombool"],
        &["u8", "u16", "u32", "u64"],
        &["scalar", "avx2", "avx512"],
        &["t1", "t2"],
        &["50", "75", "90", "small", "shapes"],
        &["--bench"],
    ];
    let words: Vec<String> = std::env::args().skip(1).collect();
    let named = |group: &[&str]| words.iter().any(|word| group.contains(&word.as_str()));
    // A group of words from which none is given is wanted whole.
    let wanted = |word: &str| {
        let group = GROUPS.iter().find(|group| group.contains(&word)).expect("a known word");
        !named(group) || words.iter().any(|given| given == word)
    };
    all::<U8>(&wanted);
    all::<BF16>(&wanted);
    all::<F32>(&wanted);
    all::<F64>(&wanted);
}
