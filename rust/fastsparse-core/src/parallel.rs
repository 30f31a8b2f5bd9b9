//! Threads: the OpenMP team that was adopted ([`crate::openmp`]), else an own pool; both survive
//! `fork`; and one way to spread tasks over them.
//!
//! rayon's global pool hangs in a forked child, where its threads do not exist. This pool is made
//! at the first parallel call and belongs to one process id; a child that finds another id forgets
//! it and makes its own.

use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::isa::Isa;
use crate::{memory, openmp};

/// How to run: which instructions, on how many threads. Passed down by value; kernels never ask.
#[derive(Debug, Clone, Copy)]
pub struct Exec {
    /// Instruction set.
    pub isa: Isa,
    /// Upper bound of the threads, the caller's among them; at least 1.
    pub threads: usize,
}

impl Exec {
    /// `isa` on the calling thread only.
    pub fn single(isa: Isa) -> Exec {
        Exec { isa, threads: 1 }
    }

    /// The same, but on one thread where there is less than `per_thread` work for each of two.
    pub fn for_work(self, work: usize, per_thread: usize) -> Exec {
        Exec { threads: self.threads.min(work / per_thread.max(1)).max(1), ..self }
    }
}

/// How long a thread without work waits for more before it sleeps: waking it costs both sides, and
/// the layers of a model follow each other within less than this. Measured in a virtual machine,
/// two threads, calls 150 µs apart, one row of activations: 0.5 and 1 million weights took 99 and
/// 134 µs, with this 62 and 103.
const LINGER: Duration = Duration::from_micros(200);

/// Parallel calls so far: while there is no other the threads of the last one linger.
static CALLS: AtomicUsize = AtomicUsize::new(0);

/// The pool of one process.
struct Process {
    id: u32,
    pool: Mutex<Option<Arc<rayon::ThreadPool>>>,
    /// Threads that wait for more and do not sleep yet.
    lingering: AtomicUsize,
}

static PROCESS: AtomicPtr<Process> = AtomicPtr::new(std::ptr::null_mut());

/// That of this process. A forked child leaves its parent's alone for good: the threads are gone,
/// and somebody may have held the lock while it was forked.
fn process() -> &'static Process {
    let id = std::process::id();
    loop {
        let seen = PROCESS.load(Ordering::Acquire);
        // SAFETY: the pointer is null or comes from Box::into_raw below, and is never freed.
        if let Some(process) = unsafe { seen.as_ref() }
            && process.id == id
        {
            return process;
        }
        let fresh = Box::into_raw(Box::new(Process { id, pool: Mutex::new(None), lingering: AtomicUsize::new(0) }));
        if PROCESS.compare_exchange(seen, fresh, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: `fresh` was made above and nobody else has seen it.
            drop(unsafe { Box::from_raw(fresh) });
        }
    }
}

/// A pool with `threads` workers, or fewer where the system refuses more. One that is replaced by a
/// larger one ends with the last call in it.
fn pool(threads: usize) -> Option<Arc<rayon::ThreadPool>> {
    let mut current = process().pool.lock().unwrap_or_else(PoisonError::into_inner);
    if current.as_ref().is_none_or(|pool| pool.current_num_threads() < threads) {
        let name = |i| format!("fastsparse-{i}");
        if let Ok(built) = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(name).build() {
            *current = Some(Arc::new(built));
        }
    }
    current.clone()
}

/// Calls `task(i)` once for every `i < tasks`, on up to `threads` threads, the calling one among
/// them, and no more than the OpenMP team that was adopted has; tasks are taken in increasing
/// order. Where no pool can be had (the system refuses threads) the caller does all of it.
pub fn run(threads: usize, tasks: usize, task: impl Fn(usize) + Sync) {
    let team = openmp::team();
    let most = team.map_or(usize::MAX, |team| team.max_threads());
    let workers = threads.min(tasks).min(most);
    if workers <= 1 {
        (0..tasks).for_each(task);
        return;
    }
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= tasks {
                return;
            }
            task(i);
        }
    };
    if let Some(team) = team {
        team.run(workers, &work);
        return;
    }
    let Some(pool) = pool(workers - 1) else {
        work();
        return;
    };
    let call = CALLS.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
    let finished = AtomicUsize::new(0);
    pool.in_place_scope(|scope| {
        for _ in 1..workers {
            scope.spawn(|_| {
                work();
                rayon::spawn(move || {
                    let lingering = &process().lingering;
                    lingering.fetch_add(1, Ordering::Relaxed);
                    linger(|| CALLS.load(Ordering::Relaxed) != call);
                    lingering.fetch_sub(1, Ordering::Relaxed);
                });
                finished.fetch_add(1, Ordering::Relaxed);
            });
        }
        work();
        linger(|| finished.load(Ordering::Relaxed) == workers - 1);
    });
}

/// How many threads would begin at once, the calling one among them: all of an OpenMP team, which
/// are taken to spin between the calls of whoever else computes with them, and those of the pool
/// that have not gone to sleep yet.
pub fn awake() -> usize {
    match openmp::team() {
        Some(team) => team.max_threads(),
        None => process().lingering.load(Ordering::Relaxed) + 1,
    }
}

/// Waits until it is `over`, but not long: others may run meanwhile.
fn linger(over: impl Fn() -> bool) {
    let start = Instant::now();
    while !over() && start.elapsed() < LINGER {
        std::thread::yield_now();
    }
}

/// [`run`] of tasks that may fail: the error of the first one that did. Later ones are left out.
pub fn try_run(threads: usize, tasks: usize, task: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    let failures = Failures::new();
    run(threads, tasks, |i| failures.watch(i, || task(i)));
    failures.first()
}

/// The first task that failed, so far. Tasks are begun in order, so those before it are done in any
/// case.
struct Failures {
    before: AtomicUsize,
    first: Mutex<Option<(usize, Error)>>,
}

impl Failures {
    fn new() -> Failures {
        Failures { before: AtomicUsize::new(usize::MAX), first: Mutex::new(None) }
    }

    /// Does task `i`, unless one before it has failed.
    fn watch(&self, i: usize, task: impl FnOnce() -> Result<()>) {
        if i < self.before.load(Ordering::Relaxed)
            && let Err(error) = task()
        {
            self.before.fetch_min(i, Ordering::Relaxed);
            let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
            if first.is_none_or(|(at, _)| i < at) {
                *first = Some((i, error));
            }
        }
    }

    fn first(self) -> Result<()> {
        match self.first.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }
}

/// [`run`] over the disjoint pieces of `out`: piece `i` is `out[i * piece .. (i + 1) * piece]`, the
/// last one may be shorter.
pub fn run_chunks<T: Send>(threads: usize, out: &mut [T], piece: usize, task: impl Fn(usize, &mut [T]) + Sync) {
    let len = out.len();
    let base = SharedMut::new(out);
    run(threads, len.div_ceil(piece), |i| {
        let start = i * piece;
        // SAFETY: pieces of distinct `i` do not overlap and `run` calls each `i` once.
        task(i, unsafe { base.slice(start, piece.min(len - start)) });
    });
}

/// [`run_chunks`] of tasks that may fail, as [`try_run`].
pub fn try_run_chunks<T: Send>(
    threads: usize,
    out: &mut [T],
    piece: usize,
    task: impl Fn(usize, &mut [T]) -> Result<()> + Sync,
) -> Result<()> {
    let failures = Failures::new();
    run_chunks(threads, out, piece, |i, part| failures.watch(i, || task(i, part)));
    failures.first()
}

/// A mutable slice whose disjoint parts go to several tasks.
pub struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    life: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it only hands out parts through `slice`, whose contract forbids overlap, so this is
// sending `&mut [T]` around.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    /// Takes the slice over.
    pub fn new(slice: &'a mut [T]) -> Self {
        SharedMut { start: slice.as_mut_ptr(), len: slice.len(), life: std::marker::PhantomData }
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The part `start .. start + len`; panics where it is out of range.
    ///
    /// # Safety
    /// No two parts that are alive at the same time overlap.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: in range (checked), and not aliased (the caller's promise).
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

/// [`try_run`] whose tasks give results, in the order of the tasks.
pub fn try_map<T: Send>(threads: usize, tasks: usize, task: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let mut results = memory::collect((0..tasks).map(|_| None))?;
    try_run_chunks(threads, &mut results, 1, |i, result| {
        result[0] = Some(task(i)?);
        Ok(())
    })?;
    memory::collect(results.into_iter().flatten())
}

/// [`try_run`] with a state for each thread, made by `init` at its first task. Returns the states,
/// in no particular order.
pub fn try_run_with<S: Send>(
    threads: usize,
    tasks: usize,
    init: impl Fn() -> Result<S> + Sync,
    task: impl Fn(&mut S, usize) -> Result<()> + Sync,
) -> Result<Vec<S>> {
    let workers = threads.min(tasks).max(1);
    let mut states = memory::with_capacity(workers)?;
    if workers == 1 {
        let mut state = init()?;
        (0..tasks).try_for_each(|i| task(&mut state, i))?;
        states.push(state);
        return Ok(states);
    }
    let (next, failures, states) = (AtomicUsize::new(0), Failures::new(), Mutex::new(states));
    run(workers, workers, |_| {
        let mut state = None;
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= tasks {
                break;
            }
            failures.watch(i, || {
                let state = match &mut state {
                    Some(state) => state,
                    none => none.insert(init()?),
                };
                task(state, i)
            });
        }
        // There is room for one state a worker.
        states.lock().unwrap_or_else(PoisonError::into_inner).extend(state);
    });
    failures.first()?;
    Ok(states.into_inner().unwrap_or_else(PoisonError::into_inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_task_that_fails_is_named() {
        for threads in [1, 3] {
            let fails = |i: usize| if i % 7 == 5 { Err(Error::Nan { index: i }) } else { Ok(()) };
            assert_eq!(try_run(threads, 100, fails), Err(Error::Nan { index: 5 }));
            assert_eq!(try_run(threads, 5, fails), Ok(()));
            assert_eq!(try_map(threads, 5, |i| fails(i).map(|()| i)), Ok(vec![0, 1, 2, 3, 4]));
            assert_eq!(try_map(threads, 9, |i| fails(i).map(|()| i)), Err(Error::Nan { index: 5 }));
            let sum = |init: Result<usize>, tasks| {
                let add = |sum: &mut usize, i| fails(i).map(|()| *sum += i);
                Ok(try_run_with(threads, tasks, || init, add)?.into_iter().sum::<usize>())
            };
            assert_eq!(sum(Ok(0), 5), Ok(10));
            assert_eq!(sum(Ok(0), 50), Err(Error::Nan { index: 5 }));
            assert_eq!(sum(Err(Error::OutOfMemory { bytes: 1 }), 5), Err(Error::OutOfMemory { bytes: 1 }));
        }
    }

    /// Threads of this process, as Linux counts them.
    #[cfg(target_os = "linux")]
    fn threads_of_process() -> usize {
        std::fs::read_dir("/proc/self/task").unwrap().count()
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_pool_that_is_replaced_ends() {
        let before = threads_of_process();
        for threads in 2..40 {
            run(threads, threads, |_| ());
        }
        // 38 pools that stayed would have 780 threads; ending takes them a moment.
        let enough = (0..1000).any(|_| {
            std::thread::sleep(Duration::from_millis(5));
            threads_of_process() <= before + 60
        });
        assert!(enough, "{} threads, {before} before", threads_of_process());
    }
}
