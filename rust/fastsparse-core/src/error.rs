//! Everything that can go wrong in a kernel.

use std::fmt;

/// What n:m groups are, as every message says it: `3 zeros in every 4 (75 %)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZerosInEvery {
    /// Zeros of a group.
    pub zeros: usize,
    /// Items of a group; at least 1.
    pub of: usize,
}

impl fmt::Display for ZerosInEvery {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = format!("{:.4}", 100.0 * self.zeros as f64 / self.of as f64);
        let percent = percent.trim_end_matches('0').trim_end_matches('.');
        write!(formatter, "{} zeros in every {} ({percent} %)", self.zeros, self.of)
    }
}

/// The error of every operation of this crate. Indices are flat, row-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// What is ranked holds a NaN.
    #[error("NaN at flat index {index}")]
    Nan {
        /// Flat index of a NaN (the first one).
        index: usize,
    },
    /// The scores of a block add up to NaN (infinities of both signs).
    #[error("the scores of block {block} add up to NaN")]
    BlockNan {
        /// Index of the block, row-major.
        block: usize,
    },
    /// A mask keeps some weights of a block and drops others.
    #[error("block {block} is neither kept nor dropped as a whole")]
    BlockMixed {
        /// Index of the first such block, row-major.
        block: usize,
    },
    /// A mask drops another number of blocks than its pattern says.
    #[error("{found} blocks are dropped, the pattern says {expected}")]
    BlockCount {
        /// Blocks that are dropped.
        found: usize,
        /// What the pattern says.
        expected: usize,
    },
    /// A group does not fit and `tail="error"` was asked for.
    #[error("an axis of length {len} is not a multiple of {}: {groups}", groups.of)]
    Tail {
        /// Length of the axis.
        len: usize,
        /// The groups.
        groups: ZerosInEvery,
    },
    /// A padding bit after the last column of a mask row is set.
    #[error("padding bits of mask row {row} are set")]
    Padding {
        /// The row.
        row: usize,
    },
    /// Row offsets that do not go up from 0 to the number of values.
    #[error("row offset {index} is out of order: they go up from 0 to the number of values")]
    RowOffsets {
        /// The first offset that is wrong.
        index: usize,
    },
    /// The row offsets disagree with the mask.
    #[error("row {row} has {found} mask bits, its offsets say {expected}")]
    RowCount {
        /// The row.
        row: usize,
        /// Bits set in the mask row.
        found: usize,
        /// What the offsets say.
        expected: usize,
    },
    /// The number of values disagrees with the mask.
    #[error("the mask keeps {found} elements, there are {expected} values")]
    ValueCount {
        /// Bits set in the mask.
        found: usize,
        /// Length of `values`.
        expected: usize,
    },
    /// A group keeps another number of elements than its pattern says.
    #[error("the group of the element at flat index {first} does not fit {groups}")]
    Group {
        /// Flat index of the group's first element.
        first: usize,
        /// What the pattern says.
        groups: ZerosInEvery,
    },
    /// A buffer changed under a kernel that reads it.
    #[error("the data changed while it was read")]
    Changed,
    /// The system does not give a kernel the memory that it needs.
    #[error("cannot allocate {bytes} bytes")]
    OutOfMemory {
        /// What was asked for.
        bytes: usize,
    },
    /// No such ISA on this CPU.
    #[error("this CPU lacks it")]
    IsaUnavailable,
}

/// Result of an operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;
