//! The threads of an OpenMP library that the process has loaded anyway, to run tasks on.
//!
//! The threads of an OpenMP team spin for a while after each parallel region. Where another library
//! computes with them between our calls, as torch does, a pool beside them has to share the cores
//! with threads that spin. So once [`adopt`] has found such a team, [`crate::parallel::run`] uses
//! it.
//!
//! What is called is `GOMP_parallel`, the entry point that GCC emits for `#pragma omp parallel`;
//! libgomp exports it, and on Linux the libraries of LLVM and Intel do as well. A team that was
//! started before a `fork` does not exist in the child, and libgomp waits for it there for ever:
//! the team belongs to the process that adopted it.

use std::any::Any;
use std::ffi::{CStr, c_int, c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, OnceLock};

/// `GOMP_parallel(work, data, threads, flags)`: calls `work(data)` on each thread of a team of at
/// most so many, the calling one among them, and returns when all have returned.
type Parallel = unsafe extern "C" fn(unsafe extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);
/// `omp_get_max_threads()`.
type MaxThreads = unsafe extern "C" fn() -> c_int;

/// A team of threads.
#[derive(Clone, Copy)]
pub struct Team {
    process: u32,
    parallel: Parallel,
    max_threads: MaxThreads,
}

static TEAM: OnceLock<Team> = OnceLock::new();

/// Uses the OpenMP library that `library`, a shared library of this process, was linked with;
/// returns whether there is one. The first that is found stays. Nothing is loaded.
pub fn adopt(library: &CStr) -> bool {
    if TEAM.get().is_none()
        && let Some(team) = find(library)
    {
        // Where another thread was first, its team is as good.
        let _ = TEAM.set(team);
    }
    team().is_some()
}

/// The team that was adopted in this process.
pub fn team() -> Option<Team> {
    TEAM.get().filter(|team| team.process == std::process::id()).copied()
}

#[cfg(target_os = "linux")]
fn find(library: &CStr) -> Option<Team> {
    // SAFETY: a string that ends with a zero. With RTLD_NOLOAD nothing is loaded, so no foreign
    // code runs.
    let handle = unsafe { libc::dlopen(library.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY) };
    if handle.is_null() {
        return None;
    }
    // The search goes through what the library was linked with. The handle is never closed, so what
    // is found stays loaded.
    // SAFETY: an open handle, and strings that end with a zero.
    let symbol = |name: &CStr| unsafe { libc::dlsym(handle, name.as_ptr()) };
    let (parallel, max_threads) = (symbol(c"GOMP_parallel"), symbol(c"omp_get_max_threads"));
    if parallel.is_null() || max_threads.is_null() {
        // SAFETY: opened above, and nothing of it is used.
        unsafe { libc::dlclose(handle) };
        return None;
    }
    // SAFETY: functions of these names have these types: the ABI of GCC's OpenMP, and the OpenMP
    // standard.
    let (parallel, max_threads) = unsafe {
        (
            std::mem::transmute::<*mut c_void, Parallel>(parallel),
            std::mem::transmute::<*mut c_void, MaxThreads>(max_threads),
        )
    };
    Some(Team { process: std::process::id(), parallel, max_threads })
}

/// Elsewhere the entry points differ, and the own pool serves.
#[cfg(not(target_os = "linux"))]
fn find(_: &CStr) -> Option<Team> {
    None
}

/// What [`Team::run`] hands to each thread.
struct Call<'a> {
    work: &'a (dyn Fn() + Sync),
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Team {
    /// How many threads a team has at most, as the library was told: `torch.set_num_threads`,
    /// `OMP_NUM_THREADS`.
    pub fn max_threads(&self) -> usize {
        // SAFETY: a function of no arguments that any thread may call.
        let threads = unsafe { (self.max_threads)() };
        usize::try_from(threads).unwrap_or(1).max(1)
    }

    /// Calls `work` on up to `threads` threads, the calling one among them, and returns when all
    /// have returned. A panic in one of them comes out of this call.
    pub fn run(&self, threads: usize, work: &(dyn Fn() + Sync)) {
        let call = Call { work, panic: Mutex::new(None) };
        let threads = c_uint::try_from(threads).unwrap_or(c_uint::MAX);
        let data = std::ptr::from_ref(&call).cast_mut().cast();
        // SAFETY: `enter` takes a pointer to a Call, which lives until all threads have returned
        // from it; it is shared, as `work` may be.
        unsafe { (self.parallel)(enter, data, threads, 0) };
        let panic = call.panic.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

/// The work on one thread. No panic may cross the frames of C that called it.
unsafe extern "C" fn enter(data: *mut c_void) {
    // SAFETY: a pointer to a Call that is alive (the contract of `Team::run`).
    let call = unsafe { &*data.cast::<Call<'_>>() };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(call.work)) {
        call.panic.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get_or_insert(panic);
    }
}
