//! Workers, barriers, panics: more workers than cores, many short jobs.
#![allow(clippy::unwrap_used)]

use deepfuse_runtime::pool::{Barrier, Pinning, Pool, allowed_cpus};
use std::sync::atomic::{AtomicU64, Ordering};

/// In every round each worker adds its index; after the barrier all must see the sum of all.
fn rounds(workers: u32, pinning: Pinning, jobs: u32, rounds: u64) {
    let mut pool = Pool::new(workers, pinning).unwrap();
    let (sum, seen) = (AtomicU64::new(0), AtomicU64::new(0));
    let each = u64::from(workers) * (u64::from(workers) + 1) / 2;
    for job in 0..u64::from(jobs) {
        let base = job * rounds * each;
        pool.run(&|w| {
            assert_eq!(w.workers, workers);
            for round in 1..=rounds {
                sum.fetch_add(u64::from(w.index) + 1, Ordering::Relaxed);
                w.barrier().unwrap();
                assert_eq!(sum.load(Ordering::Relaxed), base + round * each);
                w.barrier().unwrap();
            }
            seen.fetch_add(1, Ordering::Relaxed);
        })
        .unwrap();
    }
    assert_eq!(seen.load(Ordering::Relaxed), u64::from(jobs) * u64::from(workers));
}

#[test]
fn barriers_hold_with_more_workers_than_cores() {
    let cores = allowed_cpus().ids.len() as u32;
    for workers in [1, 2, 3, cores, cores + 1, 4 * cores + 3] {
        rounds(workers, Pinning::WorkersOnly, 20, 20);
    }
}

#[test]
fn many_short_jobs() {
    rounds(2, Pinning::Off, 1000, 1);
}

#[test]
fn the_caller_is_pinned_only_while_the_pool_lives() {
    std::thread::spawn(|| {
        let cpus = allowed_cpus().ids.len();
        let pool = Pool::new(1, Pinning::WithCaller).unwrap();
        assert!(pool.pinned());
        assert_eq!(current_cpus(), 1);
        drop(pool);
        assert_eq!(current_cpus(), cpus);
    })
    .join()
    .unwrap();
}

fn current_cpus() -> usize {
    // SAFETY: the set is plain data that the call fills.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set);
        libc::CPU_COUNT(&set) as usize
    }
}

#[test]
fn a_panic_lets_the_others_go_and_the_pool_lives_on() {
    let mut pool = Pool::new(4, Pinning::Off).unwrap();
    for culprit in 0..4 {
        let failed = pool.run(&|w| {
            for round in 0..100 {
                assert!(!(round == 50 && w.index == culprit), "on purpose");
                if w.barrier().is_err() {
                    return;
                }
            }
            unreachable!("one worker never arrives");
        });
        assert!(failed.is_err());
        let count = AtomicU64::new(0);
        pool.run(&|w| {
            w.barrier().unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            w.barrier().unwrap();
            assert_eq!(count.load(Ordering::Relaxed), 4);
        })
        .unwrap();
    }
}

#[test]
fn a_broken_barrier_stays_open_until_repaired() {
    let barrier = Barrier::new(2, 0);
    barrier.break_up();
    assert!(barrier.wait().is_err());
    assert!(barrier.wait().is_err());
    barrier.repair();
    std::thread::scope(|s| {
        s.spawn(|| barrier.wait().unwrap());
        barrier.wait().unwrap();
    });
}
