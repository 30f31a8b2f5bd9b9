//! What a pattern would keep, without making its mask: sums of squares of what is ranked.
//!
//! Contract. The *energy* of items is the sum over them of the square of the number that their key
//! stands for, in float64. Items with equal keys have equal energy, so it does not matter which of
//! them goes, and a sum is that of the mask which a selection would give. Neither the ISA nor the
//! number of threads changes a bit of a result: work is cut by its size alone, and sums are added
//! in order. A NaN among the keys is an error that names the first one.
//!
//! - [`of_largest`]: of all but the smallest `zeros`, for many `zeros` at once, from one histogram;
//! - [`by_rank`]: of the smallest, second smallest, … of each group, from which all n:m of that
//!   length follow;
//! - [`of_mask`]: of what a mask keeps, for everything else.

mod groups;
mod histogram;
mod masked;

pub use groups::by_rank;
pub use histogram::of_largest;
pub use masked::of_mask;

/// Largest group that [`by_rank`] takes.
pub const LARGEST_GROUP: usize = 64;
