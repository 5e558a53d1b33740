//! From a ring to the completion when everybody sleeps: the adapter on its epoll set, the application on its futex.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use adapter::engine::{Engine, Gates, MonotonicClock, Port, QueueId};
use adapter::mailbox::{Command, PollerShared};
use adapter::poller::{Idle, Poller};
use anyhow::{Context, Result, ensure};
use driver::null::NullQueue;
use rustix::event::epoll::{self, EventData, EventFlags};
use tpt::{Access, Directory, Domain, GrantSpec, Iova, KeyInstance, LbaRange, Limits, RegionSpec, Tables};
use wire::doorbell::{self, Bell};
use wire::layout::{Entries, SubmissionEntry, opcode};
use wire::ring::ApplicationEnd;
use wire::shm::SharedMemory;
use wire::view::{QueueMemory, QueueView};

use crate::cpu::Pinned;

/// Between two wakes: longer than any poller spins.
const APART: Duration = Duration::from_millis(2);
const LATEST: Duration = Duration::from_secs(10);
const DOMAIN: Domain = Domain(1);

/// Medians of the time from a ring to the completion.
#[derive(Clone, Copy, Debug)]
pub struct Wakes {
    /// A read over the null device, with adapter and application asleep.
    pub ours: Duration,
    /// An eventfd one way and a futex the other, with nothing between.
    pub bare: Duration,
}

/// Wakes both sides `rounds` times each, by turns. The calling thread is on processor `here`, who answers on `other`.
///
/// # Errors
/// The kernel's.
pub fn wakes(rounds: usize, here: usize, other: usize) -> Result<Wakes> {
    let _pinned = Pinned::to(here)?;
    let mut ours = Ours::new(other)?;
    let mut bare = Bare::new(other)?;
    let (mut of_ours, mut of_bare) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        thread::sleep(APART);
        of_ours.push(ours.round()?);
        thread::sleep(APART);
        of_bare.push(bare.round()?);
    }
    of_ours.sort_unstable();
    of_bare.sort_unstable();
    let middle = |times: Vec<Duration>| times.get(times.len() / 2).copied().context("no rounds");
    Ok(Wakes { ours: middle(of_ours)?, bare: middle(of_bare)? })
}

/// A poller with one queue, and the application's end of that.
struct Ours {
    end: ApplicationEnd<QueueView>,
    bell: Bell,
    read: SubmissionEntry,
    _poller: Poller,
    _tables: Tables,
}

impl Ours {
    fn new(cpu: usize) -> Result<Self> {
        let limits = Limits { entries: 16, lba_entries: 16, extensions: 0, regions: 4 };
        let mut tables = Tables::new(limits, KeyInstance(1));
        let ranges = [LbaRange::new(0, 64).context("a range of some blocks")?];
        let spec = GrantSpec {
            domain: DOMAIN,
            access: Access::READ,
            block_shift: 9,
            ranges: &ranges,
            shared: false,
        };
        let key = tables.create(&spec)?;
        let spec =
            RegionSpec { domain: DOMAIN, access: Access::READ_WRITE, iova: Iova(1 << 20), bytes: 4096 };
        let region = tables.create_region(&spec)?;

        let shared = Arc::new(PollerShared::default());
        let directory = Directory::new(tables.published(), 4);
        let queue = NullQueue::new(1 << 12);
        let mut engine = Engine::new(queue, MonotonicClock::default(), directory, shared.clone(), 64);
        engine.set_gates(Gates::new(1).context("one engine is not too many")?);
        let started = move || {
            if let Ok(pinned) = Pinned::to(cpu) {
                std::mem::forget(pinned); // For the life of the thread.
            }
        };
        let poller = Poller::spawn("wake-poll".into(), engine, shared, Idle::default(), None, started)?;

        let entries = Entries::new(4).context("a power of two")?;
        let memory = Arc::new(SharedMemory::create("wake", entries.bytes())?.0);
        let view = || QueueView::new(memory.clone(), entries);
        let bell = Bell::new()?;
        let id = QueueId(1);
        poller.waker().watch(bell.as_fd(), id)?;
        let port = Port::new(id, 1, DOMAIN, view()?, entries);
        ensure!(poller.send(Command::Attach(Box::new(port))).is_ok(), "the mailbox is full");
        let read = SubmissionEntry {
            opcode: opcode::READ,
            key: key.0,
            length: 4096,
            region: region.0,
            ..SubmissionEntry::default()
        };
        Ok(Self { end: ApplicationEnd::new(view()?, entries), bell, read, _poller: poller, _tables: tables })
    }

    fn round(&mut self) -> Result<Duration> {
        let start = Instant::now();
        self.end.push(&self.read)?;
        if self.end.ring() {
            self.bell.ring()?;
        }
        loop {
            if self.end.begin_wait() {
                doorbell::wait(self.end.memory().cq_wait(), 1, Some(LATEST))?;
                self.end.end_wait();
            }
            if let Some(entry) = self.end.pop() {
                ensure!(entry.status == 0, "the read failed with status {}", entry.status);
                return Ok(start.elapsed());
            }
            ensure!(start.elapsed() < LATEST, "nothing wakes");
        }
    }
}

/// A thread that sleeps on an eventfd in an epoll set, and wakes whoever sleeps on the word.
struct Bare {
    bell: Bell,
    shared: Arc<(AtomicU32, AtomicBool)>,
    thread: Option<thread::JoinHandle<Result<()>>>,
}

impl Bare {
    fn new(cpu: usize) -> Result<Self> {
        let bell = Bell::new()?;
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&set, &bell, EventData::new_u64(0), EventFlags::IN | EventFlags::ET)?;
        let shared = Arc::new((AtomicU32::new(0), AtomicBool::new(false)));
        let theirs = shared.clone();
        let thread = thread::spawn(move || {
            let _pinned = Pinned::to(cpu)?;
            let mut events = Vec::with_capacity(16);
            loop {
                events.clear();
                match epoll::wait(&set, rustix::buffer::spare_capacity(&mut events), None) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
                if theirs.1.load(Ordering::Acquire) {
                    return Ok(());
                }
                theirs.0.store(0, Ordering::Release);
                doorbell::wake(&theirs.0)?;
            }
        });
        Ok(Self { bell, shared, thread: Some(thread) })
    }

    fn round(&mut self) -> Result<Duration> {
        let word = &self.shared.0;
        let start = Instant::now();
        word.store(1, Ordering::Release);
        self.bell.ring()?;
        while word.load(Ordering::Acquire) != 0 {
            doorbell::wait(word, 1, Some(LATEST))?;
            ensure!(start.elapsed() < LATEST, "nothing wakes");
        }
        Ok(start.elapsed())
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.shared.1.store(true, Ordering::Release);
        let _ = self.bell.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu;

    #[test]
    fn both_sides_wake() {
        let Some((here, other)) = cpu::pair().unwrap() else { return };
        let wakes = wakes(3, here, other).unwrap();
        assert!(wakes.ours > Duration::ZERO && wakes.bare > Duration::ZERO);
    }
}
