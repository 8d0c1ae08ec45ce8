//! Workers, phases, panics: more workers than cores, many short jobs.
#![allow(clippy::unwrap_used)]

use deepfuse_runtime::pool::{Job, MOST_PARTS, Part, Pinning, Pool, allowed_cpus};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

/// In every phase each part adds its index and one; each must see the sum of the phases before.
struct Sums {
    phases: u32,
    parts: u32,
    sum: AtomicU64,
    ran: Vec<AtomicU32>,
}

impl Sums {
    fn new(phases: u32, parts: u32) -> Self {
        Self { phases, parts, sum: AtomicU64::new(0), ran: (0..phases * parts).map(|_| AtomicU32::new(0)).collect() }
    }

    fn whole(&self) -> u64 {
        u64::from(self.parts) * (u64::from(self.parts) + 1) / 2
    }
}

impl Job for Sums {
    fn parts(&self, phase: u32) -> Option<u32> {
        assert_eq!(self.sum.load(Ordering::Relaxed), u64::from(phase) * self.whole(), "all parts before are done");
        (phase < self.phases).then_some(self.parts)
    }

    fn run(&self, part: Part, _worker: u32) {
        assert_eq!(part.parts, self.parts);
        assert!(self.sum.load(Ordering::Relaxed) >= u64::from(part.phase) * self.whole());
        self.ran[(part.phase * self.parts + part.index) as usize].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(u64::from(part.index) + 1, Ordering::Relaxed);
    }
}

fn check(pool: &mut Pool, phases: u32, parts: u32) {
    let job = Sums::new(phases, parts);
    pool.run(&job).unwrap();
    assert!(job.ran.iter().all(|n| n.load(Ordering::Relaxed) == 1), "every part runs once");
    assert_eq!(job.sum.load(Ordering::Relaxed), u64::from(phases) * job.whole());
}

#[test]
fn every_part_runs_once_and_phases_do_not_overlap() {
    let cores = allowed_cpus().ids.len() as u32;
    for workers in [1, 2, 3, cores, cores + 1, 4 * cores + 3] {
        let mut pool = Pool::new(workers, Pinning::WorkersOnly).unwrap();
        for parts in [1, 2, 3, workers, 4 * workers + 1, 100] {
            for _ in 0..10 {
                check(&mut pool, 20, parts);
            }
        }
    }
    check(&mut Pool::new(3, Pinning::Off).unwrap(), 1, MOST_PARTS);
}

#[test]
fn many_short_jobs() {
    let mut pool = Pool::new(2, Pinning::Off).unwrap();
    (0..1000).for_each(|_| check(&mut pool, 1, 2));
}

/// Longer than any machine is busy: a wait of this length is a failure.
const LONG: Duration = Duration::from_mins(2);

/// A part of the first phase that lasts until all others are done.
struct Straggler {
    workers: Mutex<Vec<u32>>,
    done: Condvar,
}

impl Job for Straggler {
    fn parts(&self, phase: u32) -> Option<u32> {
        (phase < 1).then_some(8)
    }

    fn run(&self, part: Part, worker: u32) {
        let mut workers = self.workers.lock().unwrap();
        if part.index == 0 {
            workers = self.done.wait_timeout_while(workers, LONG, |w| w.len() < 7).unwrap().0;
        }
        workers.push(worker);
        self.done.notify_all();
    }
}

#[test]
fn who_holds_a_part_holds_no_other() {
    let mut pool = Pool::new(2, Pinning::Off).unwrap();
    let job = Straggler { workers: Mutex::default(), done: Condvar::new() };
    pool.run(&job).unwrap();
    let workers = job.workers.into_inner().unwrap();
    // Seven parts while one waited; the waiting worker came last and had no other.
    assert_eq!(workers.len(), 8);
    assert!(workers[..7].iter().all(|w| *w != workers[7]), "{workers:?}");
}

/// Says which threads of the system the workers are: a part takes so long that every worker gets one.
struct Names(Mutex<Vec<libc::pid_t>>);

impl Job for Names {
    fn parts(&self, phase: u32) -> Option<u32> {
        (phase < 1).then_some(2)
    }

    fn run(&self, _part: Part, worker: u32) {
        std::thread::sleep(Duration::from_millis(100));
        if worker > 0 {
            // SAFETY: a plain system call.
            self.0.lock().unwrap().push(unsafe { libc::gettid() });
        }
    }
}

#[test]
fn an_idle_pool_sleeps() {
    let mut pool = Pool::new(2, Pinning::Off).unwrap();
    let names = Names(Mutex::default());
    while names.0.lock().unwrap().is_empty() {
        pool.run(&names).unwrap();
    }
    let thread = names.0.lock().unwrap()[0];
    std::thread::sleep(Duration::from_millis(100)); // the worker's patience ends
    let before = cpu_time(thread);
    std::thread::sleep(Duration::from_millis(200));
    let used = cpu_time(thread).checked_sub(before).unwrap();
    assert!(used < Duration::from_millis(50), "{used:?} of CPU time while nothing happened");
    check(&mut pool, 3, 2);
}

/// CPU time of a thread of this process.
fn cpu_time(thread: libc::pid_t) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
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

/// Panics in one part of phase 50, or when asked for the parts of phase 50.
struct Panics {
    part: Option<u32>,
    last: AtomicU32,
}

impl Job for Panics {
    fn parts(&self, phase: u32) -> Option<u32> {
        assert!(phase != 50 || self.part.is_some(), "on purpose");
        (phase < 100).then_some(4)
    }

    fn run(&self, part: Part, _worker: u32) {
        self.last.fetch_max(part.phase, Ordering::Relaxed);
        assert!(!(part.phase == 50 && Some(part.index) == self.part), "on purpose");
    }
}

#[test]
fn a_panic_ends_the_job_and_the_pool_lives_on() {
    let mut pool = Pool::new(4, Pinning::Off).unwrap();
    for part in [Some(0), Some(1), Some(2), Some(3), None] {
        let job = Panics { part, last: AtomicU32::new(0) };
        assert!(pool.run(&job).is_err());
        assert_eq!(job.last.load(Ordering::Relaxed), if part.is_some() { 50 } else { 49 });
        check(&mut pool, 3, 8);
    }
}
