//! Pollers with threads, over a device that does nothing.

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;

use portcullis::raw::RawQueue;
use portcullis::{Access, MemoryAccess, Request, Session};
use wire::layout::{SubmissionEntry, opcode};

use super::*;
use crate::control::MOVED;
use crate::{Adapter, DeviceUri, Options};

const PATIENCE: Duration = Duration::from_secs(10);

struct Rig {
    adapter: Adapter,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn new(pollers: u16, spin: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket: PathBuf = dir.path().join("socket");
        let options =
            Options { pollers, idle: Idle::Adaptive { spin }, ..Options::new(DeviceUri::Null(64 << 20)) };
        let adapter = Adapter::start(&options, &socket).unwrap();
        Session::connect(adapter.socket()).unwrap().create_volume("v", 1 << 20).unwrap();
        Self { adapter, _dir: dir }
    }

    fn session(&self) -> Session {
        Session::connect(self.adapter.socket()).unwrap()
    }
}

/// Reads as fast as it can, so many at a time, until told to stop, and counts.
fn read_on(session: &Session, depth: u32, stop: &AtomicBool, count: &AtomicU64) {
    let volume = session.open("v", Access::READ).unwrap();
    let memory = session.register(4096, MemoryAccess::Both).unwrap();
    let mut queue = RawQueue::create(session, depth).unwrap();
    let read = SubmissionEntry {
        opcode: opcode::READ,
        key: volume.key(),
        length: 4096,
        region: memory.key(),
        ..SubmissionEntry::default()
    };
    let (mut running, mut last) = (0, Instant::now());
    while !stop.load(Ordering::Relaxed) || running > 0 {
        while running < depth && !stop.load(Ordering::Relaxed) {
            queue.push(&read).unwrap();
            running += 1;
        }
        queue.ring().unwrap();
        assert!(last.elapsed() < PATIENCE, "{running} requests are running, and no more end");
        while let Some(done) = queue.poll() {
            assert_eq!(done.status, 0);
            (running, last) = (running - 1, Instant::now());
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Tells others to stop, also when its owner panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits until somebody else has done so much more, and so much time has gone by.
fn wait_for_more(count: &AtomicU64, more: u64, time: Duration) {
    let (start, from) = (Instant::now(), count.load(Ordering::Relaxed));
    while start.elapsed() < time || count.load(Ordering::Relaxed) < from + more {
        assert!(start.elapsed() < PATIENCE, "nothing goes on");
        std::thread::yield_now();
    }
}

/// Whether a poller that spins for so long hears of a queue that was not in use: beside a busy one, and then alone.
fn hears(spin: Duration) -> bool {
    let rig = Rig::new(1, spin);
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let busy = rig.session();
    std::thread::scope(|scope| {
        let stops = Stop(&stop);
        scope.spawn(|| read_on(&busy, 16, &stop, &count));
        let session = rig.session();
        let volume = session.open("v", Access::READ).unwrap();
        let mut queue = session.queue(8).unwrap();
        let mut buffer = Some(session.buffer(4096).unwrap());
        let mut heard = |count: &AtomicU64, more| {
            wait_for_more(count, more, Duration::from_millis(5)); // Long enough for it to be parked, or the poller to sleep.
            queue.prepare(Request::read(&volume, 0, buffer.take().unwrap())).ok().unwrap();
            queue.ring().unwrap();
            buffer = queue.wait(PATIENCE).unwrap().and_then(|done| done.buffer);
            buffer.is_some()
        };
        let beside = (0..5).all(|_| heard(&count, 20_000));
        wait_for_more(&count, 20_000, Duration::from_millis(5));
        drop(stops);
        beside && heard(&count, 0)
    })
}

#[test]
fn a_busy_poller_hears_of_a_queue_that_was_not_in_use() {
    assert!(hears(Duration::from_secs(3600)), "it never sleeps");
}

#[test]
fn a_poller_that_sleeps_hears_of_a_queue_that_was_not_in_use() {
    assert!(hears(Duration::ZERO));
}

#[test]
fn one_of_two_busy_queues_moves_to_the_poller_that_has_nothing_to_do() {
    let rig = Rig::new(2, Duration::from_micros(100));
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let sessions: Vec<_> = (0..2).map(|_| rig.session()).collect();
    let before = MOVED.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        let _stops = Stop(&stop);
        let mut idle = Vec::new();
        for session in &sessions {
            let (stop, count) = (&stop, &count);
            let done = count.load(Ordering::Relaxed);
            scope.spawn(move || read_on(session, 1024, stop, count));
            // When it reads its queue is there, on the first poller; one that does nothing is on the second.
            wait_for_more(count, done + 1, Duration::ZERO);
            idle.push(session.queue(8).unwrap());
        }
        let start = Instant::now();
        while MOVED.load(Ordering::Relaxed) == before && start.elapsed() < 3 * PATIENCE {
            wait_for_more(&count, 1, Duration::from_millis(10));
        }
        assert_ne!(MOVED.load(Ordering::Relaxed), before, "no queue was moved");
        for _ in 0..2 {
            wait_for_more(&count, 1000, Duration::from_millis(10)); // Whoever it is, each goes on.
        }
    });
    let completed: u64 = sessions[0].statistics().unwrap().completed;
    assert_eq!(completed, count.load(Ordering::Relaxed), "each was counted once, on whichever poller");
}
