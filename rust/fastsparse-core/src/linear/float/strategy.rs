//! Which kernel computes a product: measured constants, a table for each instruction set.
//!
//! Pure functions of sizes and types, so that a table of cases tests them on any machine. Whoever
//! measures another CPU changes what stands here and nothing else; `make tune` measures the tables
//! and prints them as they stand here.

use crate::element::DType;
use crate::isa::{Isa, is_intel};
use crate::matrix::Matrix;

/// What an instruction set offers to float kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// One number at a time.
    Scalar,
    /// Eight float32.
    Avx2,
    /// Sixteen float32.
    Avx512,
    /// Pairs of bfloat16 beside those.
    Avx512Bf16,
    /// Sixteen float32 on a CPU of Intel's, whose pairs of bfloat16 do not pay.
    Avx512Intel,
    /// Tiles of bfloat16 beside those.
    Amx,
}

impl Level {
    /// What this ISA offers on this CPU.
    pub fn of(isa: Isa) -> Level {
        match isa {
            Isa::Scalar => Level::Scalar,
            Isa::Avx2(_) => Level::Avx2,
            Isa::Avx512(_) if isa.amx().is_some() => Level::Amx,
            Isa::Avx512(_) if is_intel() => Level::Avx512Intel,
            Isa::Avx512(_) if isa.avx512_bf16().is_some() => Level::Avx512Bf16,
            Isa::Avx512(_) => Level::Avx512,
        }
    }
}

/// A kernel for packed float weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// One weight at a time.
    Scalar,
    /// Weights are multiplied while they are expanded.
    Direct,
    /// Weights are expanded to a tile, which all activations go over.
    Tiled,
    /// Kept weights alone are multiplied, with rows of activations in the lanes.
    Broadcast,
    /// The tile registers of AMX.
    Amx,
}

/// A product.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// Type of the weights.
    pub weights: DType,
    /// Type of the activations.
    pub x: DType,
    /// Rows of activations.
    pub batch: usize,
    /// Weights kept.
    pub kept: usize,
    /// All weights.
    pub all: usize,
}

impl Product {
    /// Whether at most so many weights in a thousand are kept.
    fn keeps_up_to(self, per_mille: usize) -> bool {
        self.kept.saturating_mul(1000) <= self.all.saturating_mul(per_mille)
    }
}

/// When to take which kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table<'a> {
    /// Rows of activations up to which multiplying weights while they are expanded is faster than a
    /// tile.
    pub direct: usize,
    /// Kept weights in a thousand up to which multiplying these alone is faster than both, by the
    /// least number of rows of activations, the largest first. With fewer rows than the last it
    /// never is.
    pub broadcast: &'a [(usize, usize)],
}

impl Table<'_> {
    /// The fastest kernel for a product.
    pub fn method(&self, product: Product) -> Method {
        match self.broadcast.iter().find(|(least, _)| product.batch >= *least) {
            Some((_, up_to)) if product.keeps_up_to(*up_to) => Method::Broadcast,
            _ if product.batch <= self.direct => Method::Direct,
            _ => Method::Tiled,
        }
    }
}

/// Rows of activations of a pass of the direct kernel at most, with 16 registers.
pub(super) const AVX2_PASS: usize = 4;

/// The same with 32 registers.
pub(super) const AVX512_PASS: usize = 8;

/// Measured on Zen 3, nanoseconds a weight and row of float32. With a tile: 0.047, 0.037, 0.032 at
/// 16, 32, 64 rows and about any density; broadcast, at 700, 500 and 250: 0.054 / 0.040 / 0.025,
/// 0.037 / 0.026 / 0.018, 0.029 / 0.021 / 0.015. One thread, 1024 × 11008 from memory, milliseconds
/// direct / tile / broadcast: at 5 rows 3.6 / 5.7 / 6.0 (float32, 500), 3.9 / 6.6 / 8.0 (bfloat16,
/// 900), 3.2 / 4.4 / 4.9 (bfloat16, 150); at 8 rows 5.3 / 6.2 / 7.0 (float16, 500), 6.2 / 7.1 / 5.8
/// (float32, 250), 4.0 / 4.9 / 4.5 (bfloat16, 250); at 12 rows 10.8 / 9.7 / 7.2 (float32, 250), 7.9
/// / 8.3 / 8.6 (float16, 350).
const AVX2: Table = Table { direct: 8, broadcast: &[(64, 750), (32, 700), (16, 600), (12, 400), (8, 250)] };

/// float32 weights. Measured on Zen 4, one thread, 1024 × 4096, milliseconds direct / tile /
/// broadcast: at 50 %, 5 rows 0.58 / 1.16 / 2.17, 16 rows 2.0 / 2.26 / 2.13, 32 rows 4.0 / 3.9 /
/// 3.0; at 20 % kept, 12 rows 1.32 / 1.51 / 1.17; at 10 %, 8 rows 0.85 / 0.99 / 0.77, but from
/// memory 3.5 / 4.5 / 4.1 (4096 × 4096).
const AVX512: Table =
    Table { direct: 24, broadcast: &[(64, 850), (32, 720), (24, 580), (16, 400), (12, 220), (9, 100)] };

/// 16-bit weights, widened. The same, float16: at 50 %, 5 rows 0.59 / 0.70 / 2.0, 16 rows 1.96 /
/// 1.72 / 2.12, 32 rows 4.0 / 3.26 / 2.97; at 25 % kept, 16 rows 1.91 / 1.60 / 1.25; at 10 %, 8
/// rows 0.96 / 0.90 / 0.81.
const AVX512_HALVES: Table =
    Table { direct: 8, broadcast: &[(64, 750), (32, 550), (24, 450), (16, 350), (12, 250), (9, 120)] };

/// bfloat16 on both sides: each multiplication adds two products. The same: at 50 %, 5 rows 0.36 /
/// 0.46 / 2.1, 16 rows 1.13 / 0.98 / 2.14 and from memory 4.6 / 5.2 / 8.8, 64 rows 4.4 / 3.7 / 4.7;
/// at 30 % kept, 64 rows 4.2 / 3.7 / 3.3; at 15 %, 24 rows 1.50 / 1.33 / 1.29.
const AVX512_PAIRS: Table = Table { direct: 16, broadcast: &[(64, 350), (32, 250), (24, 160), (16, 110), (12, 60)] };

/// float32 weights on Intel. Measured on Emerald Rapids, two threads, 1024 × 11008 from memory,
/// milliseconds: at 15 %, 12 rows direct 1.8, broadcast 2.5, 20 rows tile 2.8, broadcast 3.3; at
/// 25 %, 24 rows tile 4.2, broadcast 3.9; at 90 %, 64 rows tile 11.1, broadcast 9.5.
const INTEL: Table =
    Table { direct: 12, broadcast: &[(64, 900), (40, 470), (32, 400), (24, 250), (16, 110), (12, 50)] };

/// 16-bit weights on Intel, widened. The same, float16: at 25 %, 12 rows tile 1.6, broadcast 2.4; at
/// 35 %, 17 rows tile 3.6, broadcast 8.8, and 32 rows tile 4.0, broadcast 3.7.
const INTEL_HALVES: Table = Table { direct: 6, broadcast: &[(64, 900), (32, 350), (24, 150)] };

/// Kept float32 weights in a thousand up to which AVX2 had better expand the first four of each
/// eight and the rest another way. Measured on Zen 3, one row of activations, from memory,
/// nanoseconds a weight: 0.086, 0.097 and 0.150 at 10, 15 and 25 %; without 0.114, 0.118 and 0.122.
pub(super) const AVX2_AT_MOST_HALF_UP_TO: usize = 200;

/// Vectors in a hundred that hold weights up to which each row had better go through its own.
/// Measured on Zen 3 with AVX2 for one, two and four rows of activations: level between 30
/// (bfloat16) and 43 (float32), at 57 and 50. On Zen 4 with AVX-512, 1024 × 4096 in cache, all
/// vectors against each row's own, milliseconds of float32 at 50 % of blocks of 1 × 16: 0.41 and
/// 0.37 with one row, 0.57 and 0.73 with four; of float16, whose vectors have 32 columns, 0.26 and
/// 0.23, 0.47 and 0.46.
pub(super) const fn each_up_to(lanes: usize, batch: usize) -> usize {
    match (lanes, batch) {
        (8, 1) => 33,
        (8, _) => 50,
        (16, 1) => 60,
        (16, _) => 40,
        _ => 75,
    }
}

/// Rows of activations up to which blocks are multiplied with sums by columns, and with sums by
/// rows of activations beyond.
pub(in crate::linear) const BLOCKS_DIRECT: usize = 8;

/// Elements of a block from which on the layout by blocks is worth its numbers.
const BLOCKS_FROM: usize = 4;

/// Kept weights in a thousand up to which the layout by blocks is faster than the mask, for each
/// class of blocks and each range of rows of activations. Tall blocks have four rows and more,
/// wide ones a multiple of 16 columns.
struct BlocksTable {
    /// The last number of rows of activations of each range but the last.
    batches: [usize; 3],
    tall_and_wide: [usize; 4],
    tall: [usize; 4],
    wide: [usize; 4],
    others: [usize; 4],
}

/// Not measured by itself.
const BLOCKS_SCALAR: BlocksTable = BlocksTable {
    batches: [1, BLOCKS_DIRECT, 32],
    tall_and_wide: [700; 4],
    tall: [0, 0, 700, 700],
    wide: [700, 700, 700, 0],
    others: [0; 4],
};

/// Measured on Zen 3, one thread, 1024 × 4096, how many times as fast as the mask, at 1 / 2 / 4 / 8
/// / 16 / 24 / 64 rows. 25 % kept, float32: 16 × 16 1.7 / 2.1 / .85 / 1.3 / 2.2 / 1.5 / 1.2, 4 × 4
/// 1.7 / 2.1 / 1.0 / 1.0 / 1.7 / 1.0 / .8, 1 × 16 1.5 / 1.7 / 1.2 / 2.0 / 1.3 / 1.0 / .6, 1 × 8 1.3
/// / .9 / .7 / .8 / .7 / .4; bfloat16: 1.9 / 1.9 / .67 / 1.3 / 2.1 / 1.2 / 1.2, 2.0 / 1.9 / .9 / 1.0
/// / 1.7 / 1.0 / .7, 1.7 / 1.3 / 1.2 / 2.1 / 1.5 / 1.1 / .6, 1.3 / .8 / .5 / .7 / .6 / .4. Of two to
/// eight rows, one range here, tall blocks gain 1.2 to 2.1 times at all but four and seven (1.0 –
/// 1.3). 50 % kept, one row of float32 and bfloat16: .9 and 1.7, 1.0 and 1.4, 1.4 and 1.1, 1.0 and
/// .8; 16 rows: 2.0 and 1.9, 1.5 and 1.2, 1.1 and 1.1.
const BLOCKS_AVX2: BlocksTable = BlocksTable {
    batches: [1, BLOCKS_DIRECT, 16],
    tall_and_wide: [700, 300, 700, 700],
    tall: [300, 300, 700, 0],
    wide: [700, 300, 700, 0],
    others: [300, 0, 0, 0],
};

/// Measured on Zen 4, one thread, 1024 × 4096 in cache, 25 % kept, milliseconds with the mask and
/// by blocks, 1 / 4 / 16 / 64 rows. float32: 16 × 16 0.17 / 0.27 / 1.34 / 2.7 and 0.10 / 0.23 /
/// 0.55 / 1.7; 1 × 16 0.19 / 0.43 / 1.6 / 3.4 and 0.17 / 0.40 / 1.0 / 3.7; 4 × 1 0.28 / 0.47 / 1.5 /
/// 2.9 and 0.38 / 0.86 / 0.93 / 2.5. bfloat16, 1 × 16: 0.12 / 0.23 / 0.88 / 3.4 and 0.16 / 0.29 /
/// 0.83 / 3.8.
const BLOCKS_AVX512: BlocksTable = BlocksTable {
    batches: [1, BLOCKS_DIRECT, 32],
    tall_and_wide: [700; 4],
    tall: [0, 0, 700, 700],
    wide: [0, 0, 700, 0],
    others: [0; 4],
};

/// Whether the layout by blocks computes faster than the mask.
pub(in crate::linear) fn blocks_pay(level: Level, block: Matrix, kept: usize, all: usize, batch: usize) -> bool {
    let table = match level {
        Level::Scalar => BLOCKS_SCALAR,
        Level::Avx2 => BLOCKS_AVX2,
        Level::Avx512 | Level::Avx512Bf16 | Level::Avx512Intel | Level::Amx => BLOCKS_AVX512,
    };
    let up_to = match (block.rows >= 4, block.cols.is_multiple_of(16)) {
        (true, true) => table.tall_and_wide,
        (true, false) => table.tall,
        (false, true) => table.wide,
        (false, false) => table.others,
    }[table.batches.partition_point(|&last| last < batch)];
    up_to > 0 && block.len() >= BLOCKS_FROM && kept.saturating_mul(1000) <= all.saturating_mul(up_to)
}

/// Rows of activations from which on AMX is faster: up to four the sums of the vector kernel stay
/// in registers.
pub const AMX_FROM: usize = 5;

/// Whether both sides are bfloat16, which some instruction sets multiply in pairs.
pub(in crate::linear) const fn is_bf16(weights: DType, x: DType) -> bool {
    matches!((weights, x), (DType::BF16, DType::BF16))
}

/// Whether bfloat16 on both sides is multiplied in pairs, where there are any, or widened. On Intel
/// one such instruction takes as long as four of float32. Measured on Emerald Rapids, one thread,
/// 512 × 4096 at 50 %, nanoseconds a weight and row, in pairs and widened: 0.061 and 0.051 with one
/// row, 0.042 and 0.032 with two, 0.034 and 0.025 with four, 0.027 and 0.018 with 64.
pub(in crate::linear) const fn in_pairs(level: Level) -> bool {
    matches!(level, Level::Avx512Bf16)
}

/// The table for products of these types, and its name; `None` where there is one kernel only.
pub fn table(level: Level, weights: DType, x: DType) -> Option<(&'static str, Table<'static>)> {
    match level {
        Level::Scalar => None,
        Level::Avx2 => Some(("AVX2", AVX2)),
        _ if in_pairs(level) && is_bf16(weights, x) => Some(("AVX512_PAIRS", AVX512_PAIRS)),
        Level::Avx512Bf16 | Level::Avx512 if weights == DType::F32 => Some(("AVX512", AVX512)),
        Level::Avx512Bf16 | Level::Avx512 => Some(("AVX512_HALVES", AVX512_HALVES)),
        Level::Amx | Level::Avx512Intel if weights == DType::F32 => Some(("INTEL", INTEL)),
        Level::Amx | Level::Avx512Intel => Some(("INTEL_HALVES", INTEL_HALVES)),
    }
}

/// The fastest kernel for a product.
pub(in crate::linear) fn method(level: Level, product: Product) -> Method {
    let Product { weights, x, batch, .. } = product;
    if level == Level::Amx && is_bf16(weights, x) && batch >= AMX_FROM {
        return Method::Amx;
    }
    table(level, weights, x).map_or(Method::Scalar, |(_, table)| table.method(product))
}

#[cfg(test)]
mod tests {
    use super::*;

    const F32: (DType, DType) = (DType::F32, DType::F32);
    const F16: (DType, DType) = (DType::F16, DType::F16);
    const BF16: (DType, DType) = (DType::BF16, DType::BF16);
    const MIXED: (DType, DType) = (DType::BF16, DType::F32);

    /// The method at each of these batches, as letters, for so many weights kept in a thousand.
    fn row(level: Level, (weights, x): (DType, DType), kept: usize) -> String {
        let letter = |batch: usize| match method(level, Product { weights, x, batch, kept, all: 1000 }) {
            Method::Scalar => 's',
            Method::Direct => 'd',
            Method::Tiled => 't',
            Method::Broadcast => 'b',
            Method::Amx => 'a',
        };
        [1, 4, 5, 8, 9, 12, 16, 17, 24, 25, 32, 64, 256].map(letter).iter().collect()
    }

    #[test]
    fn table() {
        use Level::*;
        // Batches                    1, 4, 5, 8, 9, 12, 16, 17, 24, 25, 32, 64, 256.
        for (level, types, kept, expected) in [
            (Scalar, F32, 500, "sssssssssssss"),
            (Scalar, BF16, 0, "sssssssssssss"),
            (Avx2, F32, 800, "ddddttttttttt"),
            (Avx2, F32, 500, "ddddttbbbbbbb"),
            (Avx2, BF16, 400, "ddddtbbbbbbbb"),
            (Avx2, F16, 100, "dddbbbbbbbbbb"),
            (Avx512, F32, 1000, "dddddddddtttt"),
            (Avx512, F32, 500, "ddddddddbbbbb"),
            (Avx512, F32, 100, "ddddbbbbbbbbb"),
            (Avx512, F16, 500, "ddddttttttbbb"),
            (Avx512, F16, 250, "ddddtbbbbbbbb"),
            (Avx512, BF16, 500, "ddddttttttbbb"),
            (Avx512Bf16, F32, 500, "ddddddddbbbbb"),
            (Avx512Bf16, BF16, 500, "dddddddtttttt"),
            (Avx512Bf16, BF16, 250, "dddddddtttbbb"),
            (Avx512Bf16, BF16, 50, "dddddbbbbbbbb"),
            (Avx512Bf16, MIXED, 500, "ddddttttttbbb"),
            (Avx512Intel, F32, 500, "ddddddtttttbb"),
            (Avx512Intel, F32, 50, "dddddbbbbbbbb"),
            (Avx512Intel, BF16, 500, "dddttttttttbb"),
            (Avx512Intel, F16, 250, "dddtttttttbbb"),
            (Amx, BF16, 100, "ddaaaaaaaaaaa"),
            (Amx, MIXED, 100, "dddtttttbbbbb"),
            (Amx, F32, 1000, "ddddddttttttt"),
        ] {
            assert_eq!(row(level, types, kept), expected, "{level:?} {types:?} {kept}");
        }
    }

    /// More zeros never lead away from multiplying only what is kept, nor do more rows of
    /// activations.
    #[test]
    fn broadcast_is_monotonous() {
        for table in [AVX2, AVX512, AVX512_HALVES, AVX512_PAIRS, INTEL, INTEL_HALVES] {
            assert!(table.broadcast.is_sorted_by(|a, b| a.0 > b.0 && a.1 > b.1));
        }
    }

    /// With one to four rows of activations nothing beats registers, even where nothing is kept.
    #[test]
    fn nothing_kept() {
        for level in [Level::Avx2, Level::Avx512, Level::Avx512Bf16, Level::Avx512Intel, Level::Amx] {
            for types in [F32, F16, BF16, MIXED] {
                assert!(row(level, types, 0).starts_with("dd"), "{level:?} {types:?}");
            }
        }
    }

    #[test]
    fn blocks() {
        // The batches 1, 2, 8, 9, 16, 17, 32, 33, as letters: by blocks or with the mask.
        for (level, rows, cols, kept, expected) in [
            (Level::Avx512Bf16, 16, 16, 250, "bbbbbbbb"),
            (Level::Avx512, 1, 16, 250, "mmmbbbbm"),
            (Level::Amx, 4, 1, 250, "mmmbbbbb"),
            (Level::Avx512, 16, 16, 701, "mmmmmmmm"),
            (Level::Avx2, 16, 16, 250, "bbbbbbbb"),
            (Level::Avx2, 16, 16, 500, "bmmbbbbb"),
            (Level::Avx2, 4, 4, 250, "bbbbbmmm"),
            (Level::Avx2, 4, 1, 500, "mmmbbmmm"),
            (Level::Avx2, 1, 16, 250, "bbbbbmmm"),
            (Level::Avx2, 1, 8, 250, "bmmmmmmm"),
            (Level::Avx2, 1, 8, 301, "mmmmmmmm"),
            (Level::Avx2, 1, 3, 0, "mmmmmmmm"),
            (Level::Scalar, 1, 32, 700, "bbbbbbbm"),
        ] {
            let letter = |batch| if blocks_pay(level, Matrix { rows, cols }, kept, 1000, batch) { 'b' } else { 'm' };
            let found: String = [1, 2, 8, 9, 16, 17, 32, 33].map(letter).iter().collect();
            assert_eq!(found, expected, "{level:?} {rows} × {cols}, {kept}");
        }
    }

    #[test]
    fn sizes_beyond_the_range_saturate() {
        let product = Product { weights: DType::F32, x: DType::F32, batch: 64, kept: usize::MAX, all: usize::MAX };
        assert_eq!(method(Level::Avx2, product), Method::Broadcast);
    }
}
