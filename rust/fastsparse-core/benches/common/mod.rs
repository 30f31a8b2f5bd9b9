//! What several benchmarks share: data, clocks, and which cases were asked for.

#![allow(dead_code, reason = "each benchmark uses a part of it")]

pub mod layers;

use std::time::Instant;

/// Rounds of a measurement; the first one warms up.
pub const ROUNDS: usize = 9;

/// Numbers from −0.5 to 0.5, the same every time.
pub fn uniform() -> impl FnMut() -> f32 {
    let mut state = 88172645463325252u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    }
}

/// `len` numbers about normal with standard deviation 0.02: sums of twelve uniform ones.
pub fn normal(len: usize) -> Vec<f32> {
    let mut uniform = uniform();
    (0..len).map(|_| 0.02 * (0..12).map(|_| uniform()).sum::<f32>()).collect()
}

/// The read probe: NumPy's `sum` of the same bytes as float32, in 32 interleaved sums on one
/// thread.
pub fn read_probe<T>(words: &[T]) -> f32 {
    // SAFETY: the bytes of words are floats, whichever they are; the length rounds down.
    let floats: &[f32] = unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words) / 4) };
    let mut sums = [0.0; 32];
    for part in floats.as_chunks::<32>().0 {
        for (sum, x) in sums.iter_mut().zip(part) {
            *sum += x;
        }
    }
    sums.iter().sum()
}

/// How long a call takes.
pub fn seconds(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

/// The middle one.
pub fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The words of the command line that choose cases.
pub fn words() -> Vec<String> {
    std::env::args().skip(1).filter(|word| word != "--bench").collect()
}

/// Whether each word occurs in the name of a case.
pub fn wanted(words: &[String], name: &str) -> bool {
    words.iter().all(|word| name.split(' ').any(|part| part == word))
}

/// Times `kernel` in turns with the read probe over `data` and prints the median ratio and the
/// least time.
pub fn against_reading<T>(name: &str, data: &[T], mut kernel: impl FnMut()) {
    let (mut ratios, mut least) = (Vec::new(), f64::MAX);
    for round in 0..ROUNDS {
        let read = seconds(|| {
            std::hint::black_box(read_probe(data));
        });
        let time = seconds(&mut kernel);
        if round > 0 {
            ratios.push(time / read);
            least = least.min(time);
        }
    }
    println!("{name:44} {:6.2} x read probe, least {:8.3} ms", median(&mut ratios), least * 1e3);
}
