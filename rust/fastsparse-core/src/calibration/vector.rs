//! Vectors of float32, a lane a row: what the sweep needs of an instruction set.

/// `LANES` numbers. The values of a vector type are made from a proof that the CPU runs it, so
/// whoever holds one may compute with it. Lanes as bits: lane l is bit l.
pub(super) trait Vector: Copy {
    /// What proves that the CPU runs the instructions.
    type Proof: Copy;
    /// Numbers of a vector: 4, 8 or 16.
    const LANES: usize;

    /// The same number in every lane.
    fn splat(proof: Self::Proof, number: f32) -> Self;
    /// The first `LANES` of some numbers; panics if they are fewer.
    fn load(proof: Self::Proof, from: &[f32]) -> Self;
    /// To the first `LANES` of some numbers; panics if they are fewer.
    fn store(self, to: &mut [f32]);
    /// Four columns of `LANES` rows: lane l of vector c is number c of row l.
    ///
    /// # Safety
    /// Four numbers can be read at `from + l · stride` for each lane l.
    unsafe fn load_columns(proof: Self::Proof, from: *const f32, stride: usize) -> [Self; 4];
    /// The other way round.
    ///
    /// # Safety
    /// Four numbers can be written at `to + l · stride` for each lane l.
    unsafe fn store_columns(columns: [Self; 4], to: *mut f32, stride: usize);

    /// Sums.
    fn add(self, other: Self) -> Self;
    /// Differences.
    fn sub(self, other: Self) -> Self;
    /// Products.
    fn mul(self, other: Self) -> Self;
    /// Magnitudes.
    fn abs(self) -> Self;
    /// `self < other`
    fn below(self, other: Self) -> u32;
    /// The lanes of some bits, 0 elsewhere; bits above the last lane are ignored.
    fn pick(self, lanes: u32) -> Self;
}
