//! Threads: the OpenMP team that was adopted ([`crate::openmp`]), else an own pool; both survive `fork`; and one way to spread tasks over them.
//!
//! rayon's global pool hangs in a forked child, where its threads do not exist. This pool is made at the first parallel call
//! and belongs to one process id; a child that finds another id forgets it and makes its own.

use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::isa::Isa;
use crate::openmp;

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

struct Pool {
    process: u32,
    threads: usize,
    pool: rayon::ThreadPool,
}

/// How long a thread without work waits for more before it sleeps: waking it costs both sides, and the layers of a model follow each other
/// within less than this. Measured in a virtual machine, two threads, calls 150 µs apart, one row of activations: 0.5 and 1 million
/// weights took 99 and 134 µs, with this 62 and 103.
const LINGER: Duration = Duration::from_micros(200);

/// Parallel calls so far: while there is no other the threads of the last one linger.
static CALLS: AtomicUsize = AtomicUsize::new(0);

static POOL: AtomicPtr<Pool> = AtomicPtr::new(std::ptr::null_mut());

/// A pool of this process with at least `threads` workers. A pool that is replaced is leaked: another thread may still be
/// in it, and after a fork its threads are gone, so that dropping it would wait for ever. Growth happens a few times at most.
fn pool(threads: usize) -> Option<&'static rayon::ThreadPool> {
    let process = std::process::id();
    loop {
        let seen = POOL.load(Ordering::Acquire);
        // SAFETY: the pointer is null or comes from Box::into_raw below, and is never freed.
        if let Some(entry) = unsafe { seen.as_ref() }
            && entry.process == process
            && entry.threads >= threads
        {
            return Some(&entry.pool);
        }
        let built = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("fastsparse-{i}"))
            .build()
            .ok()?;
        let fresh = Box::into_raw(Box::new(Pool { process, threads, pool: built }));
        if POOL.compare_exchange(seen, fresh, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: `fresh` was made above and nobody else has seen it.
            drop(unsafe { Box::from_raw(fresh) });
        }
    }
}

/// Calls `task(i)` once for every `i < tasks`, on up to `threads` threads, the calling one among them, and no more than the OpenMP team
/// that was adopted has; tasks are taken in increasing order. Where no pool can be had (the system refuses threads) the caller does all of it.
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
                rayon::spawn(move || linger(|| CALLS.load(Ordering::Relaxed) != call));
                finished.fetch_add(1, Ordering::Relaxed);
            });
        }
        work();
        linger(|| finished.load(Ordering::Relaxed) == workers - 1);
    });
}

/// Waits until it is `over`, but not long: others may run meanwhile.
fn linger(over: impl Fn() -> bool) {
    let start = Instant::now();
    while !over() && start.elapsed() < LINGER {
        std::thread::yield_now();
    }
}

/// [`run`] over the disjoint pieces of `out`: piece `i` is `out[i * piece .. (i + 1) * piece]`, the last one may be shorter.
pub fn run_chunks<T: Send>(threads: usize, out: &mut [T], piece: usize, task: impl Fn(usize, &mut [T]) + Sync) {
    let len = out.len();
    let base = SharedMut::new(out);
    run(threads, len.div_ceil(piece), |i| {
        let start = i * piece;
        // SAFETY: pieces of distinct `i` do not overlap and `run` calls each `i` once.
        task(i, unsafe { base.slice(start, piece.min(len - start)) });
    });
}

/// A mutable slice whose disjoint parts go to several tasks.
pub struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    life: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it only hands out parts through `slice`, whose contract forbids overlap, so this is sending `&mut [T]` around.
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

/// [`run`] whose tasks give results, in the order of the tasks.
pub fn map<T: Send>(threads: usize, tasks: usize, task: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let mut results: Vec<Option<T>> = (0..tasks).map(|_| None).collect();
    run_chunks(threads, &mut results, 1, |i, result| result[0] = Some(task(i)));
    results.into_iter().flatten().collect()
}

/// [`run`] with a state for each thread, made by `init` at its first task. Returns the states, in no particular order.
pub fn run_with<S: Send>(
    threads: usize,
    tasks: usize,
    init: impl Fn() -> S + Sync,
    task: impl Fn(&mut S, usize) + Sync,
) -> Vec<S> {
    if threads.min(tasks) <= 1 {
        let mut state = init();
        (0..tasks).for_each(|i| task(&mut state, i));
        return vec![state];
    }
    let next = AtomicUsize::new(0);
    let states = std::sync::Mutex::new(Vec::new());
    let workers = threads.min(tasks);
    run(threads, workers, |_| {
        let mut state = None;
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= tasks {
                break;
            }
            task(state.get_or_insert_with(&init), i);
        }
        if let Some(state) = state {
            states.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(state);
        }
    });
    states.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
}
