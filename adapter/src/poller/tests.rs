//! Pollers with threads, over a device that does nothing.

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;

use driver::block;
use driver::null::NullQueue;
use portcullis::raw::RawQueue;
use portcullis::{Access, MemoryAccess, Request, Session};
use tpt::{Domain, GrantSpec, KeyInstance, LbaRange, RegionSpec, Tables};
use wire::layout::{Entries, SubmissionEntry, opcode};
use wire::ring::ApplicationEnd;
use wire::shm::SharedMemory;
use wire::view::QueueView;

use super::*;
use crate::control::MOVED;
use crate::engine::{MonotonicClock, Port};
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

/// A device that ends nothing until it is told to, or, to be found out, in the moment in which its interrupt is armed, without
/// raising it: as one would that ended a command just before.
struct SlowDevice {
    under: NullQueue,
    told: Arc<Told>,
    armed_at: Option<Instant>,
}

#[derive(Default)]
struct Told {
    may_end: AtomicBool,
    ends_when_armed: AtomicBool,
    /// Times that the interrupt was armed, and nanoseconds from there to the next look at completions: the least.
    armed: AtomicU64,
    looked_after: AtomicU64,
}

impl BlockQueue for SlowDevice {
    fn geometry(&self) -> &block::Geometry {
        self.under.geometry()
    }

    fn submit(&mut self, command: &block::Command) -> Result<(), block::SubmitError> {
        self.under.submit(command)
    }

    fn submit_scattered(
        &mut self,
        command: &block::Command,
        segments: &[block::Segment],
    ) -> Result<(), block::SubmitError> {
        self.under.submit_scattered(command, segments)
    }

    fn commit(&mut self) {
        self.under.commit();
    }

    fn poll(&mut self, budget: usize, ended: &mut dyn FnMut(block::Completed)) -> usize {
        if let Some(at) = self.armed_at.take() {
            let after = u64::try_from(at.elapsed().as_nanos()).unwrap();
            self.told.looked_after.fetch_min(after, Ordering::Relaxed);
        }
        let may = self.under.outstanding() > 0 && self.told.may_end.swap(false, Ordering::AcqRel);
        if may { self.under.poll(budget, ended) } else { 0 }
    }

    fn outstanding(&self) -> usize {
        self.under.outstanding()
    }

    fn state(&self) -> block::QueueState {
        self.under.state()
    }

    fn arm_interrupt(&mut self, armed: bool) {
        if armed && self.outstanding() > 0 {
            self.told.armed.fetch_add(1, Ordering::Relaxed);
            self.armed_at = Some(Instant::now());
            if self.told.ends_when_armed.load(Ordering::Relaxed) {
                self.told.may_end.store(true, Ordering::Release);
            }
        }
    }
}

/// A poller over it, and an application of which it knows.
struct SlowRig {
    poller: Poller,
    told: Arc<Told>,
    interrupt: OwnedFd,
    /// Of the poller's thread.
    thread: i32,
    application: ApplicationEnd<QueueView>,
    read: SubmissionEntry,
}

impl SlowRig {
    fn new() -> Self {
        const DOMAIN: Domain = Domain(7);
        let limits = tpt::Limits { entries: 16, lba_entries: 16, extensions: 0, regions: 4 };
        let mut tables = Tables::<32>::new(limits, KeyInstance(1));
        let ranges = [LbaRange::new(0, 64).unwrap()];
        let access = tpt::Access::READ_WRITE;
        let grant = GrantSpec { domain: DOMAIN, access, block_shift: 9, ranges: &ranges, shared: false };
        let key = tables.create(&grant).unwrap();
        let region = RegionSpec { domain: DOMAIN, access, iova: tpt::Iova(0), bytes: 4096 };
        let region = tables.create_region(&region).unwrap();
        let (told, shared) = (Arc::new(Told::default()), Arc::new(PollerShared::default()));
        told.looked_after.store(u64::MAX, Ordering::Relaxed);
        let queue = SlowDevice { under: NullQueue::new(1 << 10), told: told.clone(), armed_at: None };
        let directory = tpt::Directory::new(tables.published(), 4);
        let engine = Engine::new(queue, MonotonicClock::default(), directory, shared.clone(), 64);
        let entries = Entries::new(4).unwrap();
        let memory = Arc::new(SharedMemory::create("slow", entries.bytes()).unwrap().0);
        let view = || QueueView::new(memory.clone(), entries).unwrap();
        let interrupt = eventfd().unwrap();
        let (say, hear) = std::sync::mpsc::channel();
        let idle = Idle::Adaptive { spin: Duration::from_micros(100) };
        let its = Some(interrupt.try_clone().unwrap());
        let started = move || say.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
        let poller = Poller::spawn("slow".into(), engine, shared, idle, its, started).unwrap();
        let port = Port::new(QueueId(0), 1, DOMAIN, view(), entries);
        assert!(poller.send(Command::Attach(Box::new(port))).is_ok());
        let read = SubmissionEntry {
            opcode: opcode::READ,
            key: key.0,
            length: 512,
            region: region.0,
            ..SubmissionEntry::default()
        };
        let thread = hear.recv_timeout(PATIENCE).unwrap();
        Self { poller, told, interrupt, thread, application: ApplicationEnd::new(view(), entries), read }
    }

    fn ask(&mut self) {
        self.application.push(&self.read).unwrap();
        self.application.ring();
        self.poller.waker().wake();
    }

    fn wait(&mut self) {
        let start = Instant::now();
        while self.application.pop().is_none() {
            assert!(start.elapsed() < PATIENCE, "the request does not end");
            std::thread::yield_now();
        }
    }

    /// Processor time of the poller so far.
    fn spent(&self) -> Duration {
        let text = std::fs::read_to_string(format!("/proc/self/task/{}/schedstat", self.thread)).unwrap();
        Duration::from_nanos(text.split_whitespace().next().unwrap().parse().unwrap())
    }
}

#[test]
fn a_poller_sleeps_while_a_device_takes_long_and_its_interrupt_wakes_it() {
    let mut rig = SlowRig::new();
    for _ in 0..3 {
        let armed = rig.told.armed.load(Ordering::Relaxed);
        rig.ask();
        let start = Instant::now();
        while rig.told.armed.load(Ordering::Relaxed) == armed {
            assert!(start.elapsed() < PATIENCE, "it polls on");
            std::thread::yield_now();
        }
        let (spent, since) = (rig.spent(), Instant::now());
        while since.elapsed() < Duration::from_millis(300) {
            std::thread::sleep(Duration::from_millis(10)); // The time for which the device takes.
        }
        let spent = rig.spent().saturating_sub(spent);
        assert!(spent < Duration::from_millis(60), "of 300 ms asleep it was busy for {spent:?}");
        rig.told.may_end.store(true, Ordering::Release);
        rustix::io::write(&rig.interrupt, &1u64.to_ne_bytes()).unwrap();
        rig.wait();
    }
}

#[test]
fn a_poller_looks_once_more_after_it_armed_the_interrupt() {
    let mut rig = SlowRig::new();
    rig.told.ends_when_armed.store(true, Ordering::Relaxed);
    for _ in 0..20 {
        rig.ask();
        rig.wait();
    }
    // Nobody interrupts: one that slept would look when it looks for commands that are stuck.
    let least = Duration::from_nanos(rig.told.looked_after.load(Ordering::Relaxed));
    assert!(least < SLEEP_WITH_WORK / 2, "it looked {least:?} after");
}
