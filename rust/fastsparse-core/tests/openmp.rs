//! Tasks on the OpenMP team of libgomp: a process of its own, because a team that was adopted
//! stays.
#![cfg(target_os = "linux")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use fastsparse_core::{openmp, parallel};

/// Whether there is a libgomp; says so where there is none.
fn adopted() -> bool {
    let library = c"libgomp.so.1";
    // SAFETY: a string that ends with a zero; libgomp may be loaded at any time.
    if unsafe { libc::dlopen(library.as_ptr(), libc::RTLD_NOW) }.is_null() {
        eprintln!("SKIPPED: there is no libgomp.so.1");
        return false;
    }
    assert!(openmp::adopt(library));
    assert!(openmp::team().is_some());
    true
}

fn counted(threads: usize, tasks: usize) -> Vec<usize> {
    let calls: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
    parallel::run(threads, tasks, |i| {
        calls[i].fetch_add(1, Ordering::Relaxed);
    });
    calls.into_iter().map(AtomicUsize::into_inner).collect()
}

#[test]
fn each_task_is_called_once() {
    if !adopted() {
        return;
    }
    for threads in [1, 2, 3, 64] {
        for tasks in [0, 1, 2, 7, 1000] {
            assert_eq!(counted(threads, tasks), vec![1; tasks], "{threads} threads");
        }
    }
}

#[test]
fn tasks_within_tasks_and_callers_at_once() {
    if !adopted() {
        return;
    }
    let sum = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                parallel::run(2, 10, |i| {
                    sum.fetch_add(i + counted(2, 5).len(), Ordering::Relaxed);
                })
            });
        }
    });
    assert_eq!(sum.into_inner(), 8 * (45 + 10 * 5));
}

#[test]
fn a_panic_comes_out_and_the_team_works_on() {
    if !adopted() {
        return;
    }
    for _ in 0..3 {
        let called = Mutex::new(Vec::new());
        let result = catch_unwind(AssertUnwindSafe(|| {
            parallel::run(2, 20, |i| {
                called.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(i);
                assert_ne!(i, 7, "seven");
            });
        }));
        let message = result.unwrap_err();
        assert!(message.downcast_ref::<String>().is_some_and(|text| text.contains("seven")));
        assert!(called.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()).contains(&7));
        assert_eq!(counted(2, 100), vec![1; 100]);
    }
}

#[test]
fn what_is_not_loaded_or_has_no_team_is_not_adopted() {
    // The team of another test of this process may be there already, so what is asked is only that
    // nothing is loaded.
    let _ = openmp::adopt(c"/no/such/library.so");
    let _ = openmp::adopt(c"");
    assert_eq!(counted(2, 10), vec![1; 10]);
}
