//! What `make tune` makes of the times of kernels, and that what it prints is what stands in the
//! source.

use fastsparse_core::element::DType;
use fastsparse_core::linear::choice::{AMX_FROM, Level, Method, Product, Table, table};

#[path = "../benches/tune/fit.rs"]
mod fit;

use fit::{Case, amx_source, fit, source, total_loss};

const BATCHES: [usize; 8] = [4, 5, 8, 12, 16, 24, 32, 64];
const KEPT: [usize; 6] = [50, 120, 250, 400, 600, 900];

/// Each batch with each density: `time` says what a kernel takes.
fn cases(time: impl Fn(Method, Product) -> f64) -> Vec<Case> {
    let case = |batch: usize, kept: usize| {
        let product = Product { weights: DType::F32, x: DType::F32, batch, kept, all: 1000 };
        let methods = [Method::Direct, Method::Tiled, Method::Broadcast];
        Case { product, times: methods.map(|method| (method, time(method, product))).into() }
    };
    BATCHES.iter().flat_map(|&batch| KEPT.map(|kept| case(batch, kept))).collect()
}

#[test]
fn the_table_without_a_loss_is_found() {
    for (direct, broadcast) in [
        (4, &[(64, 650), (16, 600), (8, 300), (5, 120)][..]),
        (24, &[(24, 130)]),
        (64, &[]),
        (12, &[(32, 900), (12, 50)]),
    ] {
        let table = Table { direct, broadcast };
        let cases = cases(|method, product| if method == table.method(product) { 1.0 } else { 1.5 });
        let measured = fit(&cases);
        let loss = total_loss(&cases, |product| measured.table().method(product));
        assert_eq!(loss, 0.0, "{measured:?} for {table:?}");
    }
}

/// Between two densities a threshold is where the times are level.
#[test]
fn thresholds_between_densities() {
    let time = |method, Product { batch, kept, .. }: Product| {
        let (batch, kept) = (batch as f64, kept as f64 / 1000.0);
        match method {
            Method::Direct => batch,
            Method::Tiled => 9.0 + batch / 2.0,
            _ => kept * (20.0 + batch),
        }
    };
    let measured = fit(&cases(time));
    let Table { direct, broadcast } = measured.table();
    assert_eq!(direct, 16);
    for (batch, level) in [(4, 167), (8, 286), (16, 444), (64, 488)] {
        let (_, up_to) = broadcast.iter().find(|(least, _)| batch >= *least).unwrap();
        assert!(up_to.abs_diff(level) <= 30, "{batch} rows: {up_to} for {level}");
    }
}

/// One case that was disturbed does not turn the table around.
#[test]
fn more_rows_never_lead_away_from_broadcasting() {
    let time = |method, product: Product| match method {
        Method::Broadcast if product.batch == 24 => 3.0,
        Method::Broadcast if product.batch >= 8 && product.kept <= 400 => 1.0,
        Method::Direct => 2.0,
        _ => 2.5,
    };
    let measured = fit(&cases(time));
    assert_eq!(measured.table().broadcast.iter().map(|(least, _)| *least).collect::<Vec<_>>(), [8]);
}

#[test]
fn what_is_printed_is_what_stands() {
    let standing = include_str!("../src/linear/float/strategy.rs");
    let holds = |source: String| assert!(standing.contains(&format!("\n{source}\n")), "{source}");
    let mut names = Vec::new();
    for level in [Level::Scalar, Level::Avx2, Level::Avx512, Level::Avx512Bf16, Level::Avx512Intel, Level::Amx] {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            if let Some((name, table)) = table(level, dtype, dtype) {
                holds(source(name, table));
                names.push(name);
            }
        }
    }
    holds(amx_source(AMX_FROM));
    names.sort_unstable();
    names.dedup();
    assert_eq!(names, ["AVX2", "AVX512", "AVX512_HALVES", "AVX512_PAIRS", "INTEL", "INTEL_HALVES"]);
}
