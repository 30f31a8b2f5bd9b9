//! From the times of kernels to the table that chooses among them.

use fastsparse_core::linear::choice::{Method, Product, Table};

/// Columns of a line of source.
const LINE: usize = 120;

/// What a product took with each kernel. Its weights are a thousand, so that `kept` is a share.
pub struct Case {
    pub product: Product,
    pub times: Vec<(Method, f64)>,
}

impl Case {
    /// What it took with a kernel.
    pub fn time(&self, method: Method) -> f64 {
        self.times.iter().find(|(measured, _)| *measured == method).expect("a kernel that was measured").1
    }

    /// What it takes with a kernel over the least that it takes, as a natural logarithm.
    pub fn loss(&self, method: Method) -> f64 {
        let least = self.times.iter().map(|(_, time)| *time).fold(f64::INFINITY, f64::min);
        (self.time(method) / least).ln()
    }
}

/// The sum of the losses where kernels are chosen this way.
pub fn total_loss<'a>(cases: impl IntoIterator<Item = &'a Case>, method: impl Fn(Product) -> Method) -> f64 {
    cases.into_iter().map(|case| case.loss(method(case.product))).sum()
}

/// A [`Table`] that was measured.
#[derive(Debug, PartialEq)]
pub struct Measured {
    direct: usize,
    broadcast: Vec<(usize, usize)>,
}

impl Measured {
    pub fn table(&self) -> Table<'_> {
        Table { direct: self.direct, broadcast: &self.broadcast }
    }
}

/// The table that loses least. Cases are those of all batches with all densities.
pub fn fit(cases: &[Case]) -> Measured {
    let sorted = |of: &dyn Fn(&Case) -> usize| {
        let mut all: Vec<usize> = cases.iter().map(of).collect();
        all.sort_unstable();
        all.dedup();
        all
    };
    let (batches, densities) = (sorted(&|case| case.product.batch), sorted(&|case| case.product.kept));
    let with = |direct| {
        let fit = Fit { cases, direct, densities: &densities };
        (fit.thresholds(&batches), fit)
    };
    let fits = batches.iter().map(|&direct| with(direct));
    let (path, fit) = fits.min_by(|(a, _), (b, _)| a.loss.total_cmp(&b.loss)).expect("some batches");
    let mut broadcast: Vec<(usize, usize)> = Vec::new();
    for (&batch, &threshold) in batches.iter().zip(&path.thresholds) {
        let up_to = fit.up_to(batch, threshold);
        if up_to > broadcast.last().map_or(0, |(_, before)| *before) {
            broadcast.push((batch, up_to));
        }
    }
    broadcast.reverse();
    Measured { direct: fit.direct, broadcast }
}

/// Where broadcasting begins, given the rows of activations up to which the direct kernel is taken
/// in the place of a tile.
struct Fit<'a> {
    cases: &'a [Case],
    direct: usize,
    densities: &'a [usize],
}

impl Fit<'_> {
    /// Cases of a batch.
    fn of(&self, batch: usize) -> impl Iterator<Item = &Case> {
        self.cases.iter().filter(move |case| case.product.batch == batch)
    }

    /// The kernel that is taken where there is no broadcasting.
    fn other(&self, batch: usize) -> Method {
        if batch <= self.direct { Method::Direct } else { Method::Tiled }
    }

    /// Where broadcasting is chosen with the least loss, never less than for a smaller batch.
    fn thresholds(&self, batches: &[usize]) -> Path {
        // By the threshold of the last batch.
        let mut paths = vec![Path { loss: 0.0, thresholds: Vec::new() }; self.densities.len() + 1];
        for &batch in batches {
            let path = |threshold: usize| {
                let Path { loss, mut thresholds } = Path::best(&paths[..=threshold]);
                let chosen = |product: Product| {
                    let broadcast = self.densities[..threshold].contains(&product.kept);
                    if broadcast { Method::Broadcast } else { self.other(batch) }
                };
                thresholds.push(threshold);
                Path { loss: loss + total_loss(self.of(batch), chosen), thresholds }
            };
            paths = (0..=self.densities.len()).map(path).collect();
        }
        Path::best(&paths)
    }

    /// Kept weights in a thousand up to which broadcasting is faster, where it is for so many
    /// densities: between the last of these and the next, where the lead changes sides.
    fn up_to(&self, batch: usize, threshold: usize) -> usize {
        let lead = |kept: usize| {
            let cases = self.of(batch).filter(|case| case.product.kept == kept);
            cases.map(|case| (case.time(self.other(batch)) / case.time(Method::Broadcast)).ln()).sum::<f64>()
        };
        let (below, above) = self.densities.split_at(threshold);
        match (below.last(), above.first()) {
            (None, _) => 0,
            (Some(&below), None) => below,
            (Some(&below), Some(&above)) => {
                let (gain, loss) = (lead(below).max(0.0), (-lead(above)).max(f64::MIN_POSITIVE));
                let between = (above - below) as f64 * gain / (gain + loss);
                (below + (between / 10.0) as usize * 10).min(above - 1)
            }
        }
    }
}

/// How many densities broadcasting is chosen for with each batch, and what is lost by that.
#[derive(Clone)]
struct Path {
    loss: f64,
    thresholds: Vec<usize>,
}

impl Path {
    /// The first of those that lose least.
    fn best(paths: &[Path]) -> Path {
        paths.iter().min_by(|a, b| a.loss.total_cmp(&b.loss)).expect("some paths").clone()
    }
}

/// The table as it stands in `strategy.rs`.
pub fn source(name: &str, Table { direct, broadcast }: Table<'_>) -> String {
    let value = format!("Table {{ direct: {direct}, broadcast: &{broadcast:?} }};");
    let line = format!("const {name}: Table = {value}");
    if line.len() <= LINE { line } else { format!("const {name}: Table =\n    {value}") }
}

/// From how many rows of activations on AMX is taken, as it stands there.
pub fn amx_source(from: usize) -> String {
    format!("pub const AMX_FROM: usize = {from};")
}
