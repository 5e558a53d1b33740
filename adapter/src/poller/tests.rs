//! Pollers with threads, over a device that does nothing.

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;

use portcullis::{Access, Request, Session};

use super::*;
use crate::{Adapter, DeviceUri, Options};

const PATIENCE: Duration = Duration::from_secs(10);

struct Rig {
    adapter: Adapter,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn new(pollers: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket: PathBuf = dir.path().join("socket");
        let options = Options { pollers, ..Options::new(DeviceUri::Null(64 << 20)) };
        let adapter = Adapter::start(&options, &socket).unwrap();
        Session::connect(adapter.socket()).unwrap().create_volume("v", 1 << 20).unwrap();
        Self { adapter, _dir: dir }
    }

    fn session(&self) -> Session {
        Session::connect(self.adapter.socket()).unwrap()
    }
}

/// Reads as fast as it can until told to stop, and counts.
fn read_on(session: &Session, depth: usize, stop: &AtomicBool, count: &AtomicU64) {
    let volume = session.open("v", Access::READ).unwrap();
    let mut queue = session.queue(64).unwrap();
    let mut buffers: Vec<_> = (0..depth).map(|_| session.buffer(4096).unwrap()).collect();
    while !stop.load(Ordering::Relaxed) || queue.in_flight() > 0 {
        while let Some(buffer) = buffers.pop().filter(|_| !stop.load(Ordering::Relaxed)) {
            queue.prepare(Request::read(&volume, 0, buffer)).ok().unwrap();
        }
        queue.ring().unwrap();
        while let Some(done) = queue.poll().unwrap() {
            assert!(done.result.is_ok());
            buffers.extend(done.buffer);
            count.fetch_add(1, Ordering::Relaxed);
        }
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

#[test]
fn a_queue_that_was_not_in_use_is_heard_beside_a_busy_one() {
    let rig = Rig::new(1);
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let busy = rig.session();
        let (stop, count) = (&stop, &count);
        scope.spawn(move || read_on(&busy, 16, stop, count));
        let session = rig.session();
        let volume = session.open("v", Access::READ).unwrap();
        let mut queue = session.queue(8).unwrap();
        let mut buffer = Some(session.buffer(4096).unwrap());
        let mut heard = 0;
        for round in 0..20 {
            wait_for_more(count, 1000, Duration::from_millis(5)); // Long enough for it to be parked.
            if round == 19 {
                stop.store(true, Ordering::Relaxed);
                wait_for_more(count, 0, Duration::from_millis(5)); // And now for the poller to sleep.
            }
            let request = Request::read(&volume, 0, buffer.take().unwrap());
            queue.prepare(request).ok().unwrap();
            queue.ring().unwrap();
            let Some(done) = queue.wait(PATIENCE).unwrap() else { break };
            buffer = done.buffer;
            heard += 1;
        }
        stop.store(true, Ordering::Relaxed);
        assert_eq!(heard, 20);
    });
}
