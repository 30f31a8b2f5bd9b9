//! How many cases the tests take. The crate's own tests include this file too.

/// All of some cases or, where the variable `FASTSPARSE_SHORT_TESTS` is set, every `nth` of them
/// from the first on: under an emulator the tests take some thirty times as long.
pub fn some<T>(cases: impl IntoIterator<Item = T>, nth: usize) -> impl Iterator<Item = T> {
    let short = std::env::var_os("FASTSPARSE_SHORT_TESTS").is_some();
    cases.into_iter().step_by(if short { nth } else { 1 })
}
