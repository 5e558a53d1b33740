//! A processing queue: requests there, completions back.
//!
//! One iteration pushes a batch of requests, rings the doorbell once, has the adapter's end take and complete each (at
//! once, with success: no check, no device), and pops all completions. Unit: time for the whole batch. The memory is a
//! memfd mapped shared, as between processes.
//!
//! - `one thread`: both ends on the calling thread. What the instructions cost; no cache line changes its core.
//! - `two threads/round trip`: a batch of one, each end on a thread of its own, both spinning, each kept on a core.
//! - `two threads/ping-pong before`, `after`: the floor. One cache line, written by one thread and answered by the
//!   other, measured on the same cores right before and right after. If the two differ, or differ from another day's,
//!   the machine has changed and the round trip is not to be compared with it.
//!
//! What it does not show: two processes (the same memory traffic, other page tables), the sleeping path (an eventfd and a
//! futex, tens of microseconds), many queues for one poller, and any check. With one processor allowed, the figures
//! between threads are left out and a line says so.

use std::hint::{black_box, spin_loop};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use benches::cpu::{self, Pinned};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use wire::layout::{CompletionEntry, Entries, SubmissionEntry, opcode};
use wire::ring::{AdapterEnd, ApplicationEnd, Completion};
use wire::shm::SharedMemory;
use wire::view::QueueView;

const ENTRIES: u32 = 64;
const BATCHES: [u64; 2] = [1, 32];
/// The user data of a request that ends the answering thread.
const STOP: u64 = u64::MAX;

/// The two ends of a new queue.
fn ends() -> (ApplicationEnd<QueueView>, AdapterEnd<QueueView>) {
    let entries = Entries::new(ENTRIES).expect("a power of two");
    let (memory, _) = SharedMemory::create("portcullis-bench", entries.bytes()).expect("a memfd");
    let memory = Arc::new(memory);
    let application = QueueView::create(Arc::clone(&memory), entries).expect("the memory is large enough");
    let adapter = QueueView::open(memory, entries).expect("the header was written");
    (ApplicationEnd::new(application, entries), AdapterEnd::new(adapter, entries))
}

fn read(user_data: u64) -> SubmissionEntry {
    SubmissionEntry {
        opcode: opcode::READ,
        user_data,
        key: 1 << 32,
        length: 4096,
        region: 1 << 32,
        ..SubmissionEntry::default()
    }
}

fn send(end: &mut ApplicationEnd<QueueView>, batch: u64) {
    for user_data in 0..batch {
        end.push(&black_box(read(user_data))).expect("as many were popped as pushed");
    }
    end.ring();
}

/// Takes and completes what is there. Gives how many those were, or `None` if one of them said stop.
#[inline]
fn answer(end: &mut AdapterEnd<QueueView>) -> Option<u32> {
    if end.poll_doorbell().expect("the doorbell is honest") == 0 {
        return Some(0);
    }
    let mut stop = false;
    let mut answered = 0;
    while let Some(entry) = end.take().expect("the head is honest") {
        stop |= entry.user_data == STOP;
        end.complete(&Completion::ok(entry.user_data, entry.length));
        answered += 1;
    }
    end.end_turn();
    (!stop).then_some(answered)
}

fn receive(end: &mut ApplicationEnd<QueueView>) -> CompletionEntry {
    loop {
        match end.pop() {
            Some(done) => return black_box(done),
            None => spin_loop(),
        }
    }
}

fn one_thread(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring, one thread");
    for batch in BATCHES {
        let (mut application, mut adapter) = ends();
        group.throughput(Throughput::Elements(batch));
        group.bench_function(BenchmarkId::new("batch", batch), |b| {
            b.iter(|| {
                send(&mut application, batch);
                assert_eq!(answer(&mut adapter).map(u64::from), Some(batch));
                for user_data in 0..batch {
                    let done = application.pop().expect("all were completed");
                    assert_eq!(done.user_data, user_data);
                }
            });
        });
    }
    group.finish();
}

/// A cache line to itself, and the one that the machine may fetch with it.
#[repr(align(128))]
struct Line(AtomicU64);

/// One line: odd numbers go there, the next even one comes back.
fn ping_pong(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, other: usize) {
    let line = Line(AtomicU64::new(0));
    let line = &line.0;
    thread::scope(|scope| {
        scope.spawn(move || {
            let _pinned = Pinned::to(other).expect("the processor is allowed");
            loop {
                match line.load(Ordering::Acquire) {
                    STOP => break,
                    ping if ping % 2 == 1 => line.store(ping + 1, Ordering::Release),
                    _ => spin_loop(),
                }
            }
        });
        let mut ping = 1;
        group.bench_function(name, |b| {
            b.iter(|| {
                line.store(ping, Ordering::Release);
                while line.load(Ordering::Acquire) != ping + 1 {
                    spin_loop();
                }
                ping += 2;
            });
        });
        line.store(STOP, Ordering::Release);
    });
}

fn round_trip(group: &mut BenchmarkGroup<'_, WallTime>, other: usize) {
    let (mut application, mut adapter) = ends();
    thread::scope(|scope| {
        scope.spawn(move || {
            let _pinned = Pinned::to(other).expect("the processor is allowed");
            while let Some(answered) = answer(&mut adapter) {
                if answered == 0 {
                    spin_loop();
                }
            }
        });
        group.bench_function("round trip", |b| {
            b.iter(|| {
                send(&mut application, 1);
                receive(&mut application)
            });
        });
        application.push(&read(STOP)).expect("nothing is in flight");
        application.ring();
        receive(&mut application);
    });
}

fn two_threads(criterion: &mut Criterion) {
    let Some((here, other)) = cpu::pair().expect("the kernel says where this thread may run") else {
        eprintln!("ring, two threads: left out, as only one processor is allowed");
        return;
    };
    let _pinned = Pinned::to(here).expect("the processor is allowed");
    eprintln!("ring, two threads: on processors {here} and {other}");
    let mut group = criterion.benchmark_group("ring, two threads");
    ping_pong(&mut group, "ping-pong before", other);
    round_trip(&mut group, other);
    ping_pong(&mut group, "ping-pong after", other);
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    cpu::note_load("before");
    one_thread(&mut criterion);
    two_threads(&mut criterion);
    cpu::note_load("after");
    criterion.final_summary();
}
