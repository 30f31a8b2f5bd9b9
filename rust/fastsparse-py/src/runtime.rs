//! Settings of the process: instruction set and threads. The only place that reads the environment.

use std::cell::Cell;
use std::ffi::CString;
use std::sync::RwLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use fastsparse_core::isa::{CEILINGS, Isa};
use fastsparse_core::openmp;
use fastsparse_core::parallel::Exec;
use pyo3::prelude::*;

use crate::errors;

/// Set by [`init`].
static ISA: RwLock<Option<Isa>> = RwLock::new(None);
/// 0: not set, take the default.
static THREADS: AtomicUsize = AtomicUsize::new(0);
static DEFAULT_THREADS: AtomicUsize = AtomicUsize::new(1);

/// The instruction set in use.
pub fn isa() -> Isa {
    // A lock that a panicking thread left behind still holds a valid value.
    ISA.read().unwrap_or_else(|poisoned| poisoned.into_inner()).unwrap_or(Isa::Scalar)
}

thread_local! {
    /// The most threads of calls that this thread makes without naming a number.
    static LIMIT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Instruction set and threads of a call; `threads` is its argument.
pub fn exec(py: Python<'_>, threads: Option<&Bound<'_, PyAny>>) -> PyResult<Exec> {
    let threads = match threads {
        None => num_threads(),
        Some(value) => positive(py, value)?,
    };
    Ok(Exec { isa: isa(), threads })
}

fn positive(py: Python<'_>, value: &Bound<'_, PyAny>) -> PyResult<usize> {
    match value.extract::<usize>() {
        Ok(threads) if threads >= 1 && !value.is_instance_of::<pyo3::types::PyBool>() => Ok(threads.min(MAX_THREADS)),
        _ => Err(errors::general(py, format!("threads: expected an integer ≥ 1 or None, got {}", value.repr()?))),
    }
}

/// More threads than this are taken as this many: nobody has more cores, and each costs memory.
const MAX_THREADS: usize = 1024;

fn num_threads() -> usize {
    let threads = match THREADS.load(Ordering::Relaxed) {
        0 => DEFAULT_THREADS.load(Ordering::Relaxed),
        set => set,
    };
    threads.min(LIMIT.get())
}

/// Reads the environment; called once, when the module is imported.
pub fn init(py: Python<'_>) -> PyResult<()> {
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    let default = match variable("FASTSPARSE_NUM_THREADS") {
        None => available,
        Some(text) => match text.trim().parse::<usize>() {
            Ok(threads) if threads >= 1 => threads.min(MAX_THREADS),
            _ => {
                return Err(errors::general(
                    py,
                    format!("FASTSPARSE_NUM_THREADS: expected an integer ≥ 1, got {text:?}"),
                ));
            }
        },
    };
    DEFAULT_THREADS.store(default, Ordering::Relaxed);
    match variable("FASTSPARSE_ISA") {
        Some(name) => set(py, &name, "FASTSPARSE_ISA"),
        None => set(py, Isa::detect().name(), "isa"),
    }
}

/// A variable of the environment; what is not Unicode in it becomes what no setting is.
fn variable(name: &str) -> Option<String> {
    std::env::var_os(name).map(|text| text.to_string_lossy().into_owned())
}

fn set(py: Python<'_>, name: &str, source: &str) -> PyResult<()> {
    let Ok(isa) = Isa::up_to(name) else {
        let why = if CEILINGS.contains(&name) { "this machine lacks it" } else { "no such name" };
        let have: Vec<_> = Isa::available().iter().map(|isa| isa.name()).collect();
        let message = format!("{source}: {name:?} cannot be used: {why}; available: {}", have.join(", "));
        return Err(errors::general(py, message));
    };
    *ISA.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(isa);
    Ok(())
}

/// Sets the threads of calls that name none; None: back to the default.
#[pyfunction]
pub fn set_num_threads(py: Python<'_>, threads: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
    let threads = threads.map_or(Ok(0), |value| positive(py, value))?;
    THREADS.store(threads, Ordering::Relaxed);
    Ok(())
}

/// Sets the most threads of the calls that this thread makes without naming a number; None: no
/// limit. Returns the limit before.
#[pyfunction]
pub fn limit_threads(py: Python<'_>, threads: Option<&Bound<'_, PyAny>>) -> PyResult<Option<usize>> {
    let limit = threads.map_or(Ok(usize::MAX), |value| positive(py, value))?;
    Ok(Some(LIMIT.replace(limit)).filter(|&before| before != usize::MAX))
}

/// The threads of calls that name none.
#[pyfunction]
pub fn get_num_threads() -> usize {
    num_threads()
}

/// Sets the ceiling of the instruction set.
#[pyfunction]
pub fn set_isa(py: Python<'_>, name: &str) -> PyResult<()> {
    set(py, name, "isa")
}

/// Name of the instruction set in use.
#[pyfunction]
pub fn get_isa() -> &'static str {
    isa().name()
}

/// The instruction sets of this machine, lowest first.
#[pyfunction]
pub fn available_isas() -> Vec<&'static str> {
    Isa::available().into_iter().map(Isa::name).collect()
}

/// "release" or "debug".
#[pyfunction]
pub fn build_profile() -> &'static str {
    if cfg!(debug_assertions) { "debug" } else { "release" }
}

/// Uses the OpenMP threads of a shared library that the process has loaded; returns whether there
/// are any.
#[pyfunction]
pub fn adopt_openmp(library: &str) -> bool {
    CString::new(library).is_ok_and(|library| openmp::adopt(&library))
}

/// Whether tasks run on OpenMP threads that were adopted.
#[pyfunction]
pub fn uses_openmp() -> bool {
    openmp::team().is_some()
}
