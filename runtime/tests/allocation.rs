//! A step allocates nothing, on any thread. A program without the test harness: its waiting thread allocates when it likes.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use common::*;
use deepfuse_runtime::Feed;
use deepfuse_runtime::trace::Recording;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting;

fn main() {
    let mut s = session(limits(64, 4, 40), &deepfuse_runtime::Options { prefill_chunk: Some(50), ..options(2) });
    s.record(Recording::Totals);
    let ids = ids(1, 500);
    let (a, b) = (s.add_sequence().unwrap(), s.add_sequence().unwrap());
    s.step(&[Feed::last(a, &ids[..1])]).unwrap(); // now all threads have started
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    s.step(&[Feed::all(a, &ids[..60])]).unwrap();
    s.step(&[Feed::last(b, &ids[..300]), Feed::last(a, &ids[..1])]).unwrap();
    let c = s.fork(a).unwrap();
    for i in 0..200 {
        s.step(&[Feed::last(c, &ids[i..=i]), Feed::last(a, &ids[i..=i]), Feed::last(b, &ids[i..=i])]).unwrap();
        assert!(s.logits(2).is_some());
    }
    s.truncate(b, 7).unwrap();
    s.remove_sequence(c).unwrap();
    let d = s.add_sequence().unwrap();
    s.step(&[Feed::last(d, &ids[..100])]).unwrap();
    assert_eq!(ALLOCATIONS.load(Ordering::SeqCst) - before, 0);
    println!("test a_step_allocates_nothing ... ok");
}
