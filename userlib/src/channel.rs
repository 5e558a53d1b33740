//! A processing queue in shared memory, and waiting for it: what [`crate::Queue`] and [`crate::raw::RawQueue`] share.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{hint, io, thread};

use wire::control::{Reply, Request};
use wire::doorbell::{self, Bell};
use wire::layout::{CompletionEntry, Entries, MAX_ENTRIES, MIN_ENTRIES, STATE_READY};
use wire::ring::ApplicationEnd;
use wire::shm::SharedMemory;
use wire::view::{QueueMemory, QueueView};

use crate::error::Error;
use crate::link::Link;
use crate::memory::unexpected;

/// A wait spins at most so long before it sleeps. To be woken on another core takes 30 to 60 µs, so less would cost more
/// than it saves, and a fast disk answers within.
const SPIN: Duration = Duration::from_micros(100);
/// The same where this thread turns the adapter, which can only look whether the device is done: longer than most take.
const EMBEDDED_SPIN: Duration = Duration::from_millis(1);
/// A spin that is longer than this offers the core to others between looks: the adapter may be waiting for it.
const YIELD_AFTER: Duration = Duration::from_micros(10);
/// With each wait in a row that took far longer than the spin, the next spins half as long, so many times.
const MOST_HALVINGS: u32 = 5;
/// An embedded adapter that waits for its device is looked after so often.
const EMBEDDED_NAP: Duration = Duration::from_micros(50);

pub(crate) struct Channel {
    pub(crate) end: ApplicationEnd<QueueView>,
    pub(crate) link: Arc<Link>,
    /// That of the session in which it was made, and in which it ends.
    pub(crate) life: u32,
    queue: u32,
    bell: Bell,
    /// Waits in a row in which spinning was of no use.
    outlasted: u32,
}

impl Channel {
    pub(crate) fn create(link: &Arc<Link>, entries: u32) -> Result<Self, Error> {
        let entries = Entries::new(entries).ok_or_else(|| {
            Error::Argument(format!(
                "a queue of {entries} entries is not possible: give a power of two from {MIN_ENTRIES} to {MAX_ENTRIES}"
            ))
        })?;
        link.in_some_life(|life| Self::create_in(link, life, entries))
    }

    /// The same in this life of the session and no other.
    pub(crate) fn create_in(link: &Arc<Link>, life: u32, entries: Entries) -> Result<Self, Error> {
        let (memory, descriptor) = SharedMemory::create("portcullis-queue", entries.bytes())
            .map_err(|source| Error::os("making a memfd for a queue", source))?;
        let view = QueueView::create(Arc::new(memory), entries)
            .map_err(|error| Error::os("laying out a queue", io::Error::other(error)))?;
        let end = ApplicationEnd::new(view, entries);
        let request = Request::CreateQueue { entries: entries.get() };
        let (queue, bell) = match link.call_in(life, &request, &[descriptor.as_fd()])? {
            (Reply::Queue { queue }, mut descriptors) if descriptors.len() == 1 => (queue, descriptors.pop()),
            (Reply::Queue { .. }, descriptors) => {
                return Err(Error::Protocol(format!("a queue came with {} eventfds", descriptors.len())));
            }
            (other, _) => return Err(unexpected(&other)),
        };
        let bell = bell.ok_or_else(|| Error::Protocol("a queue came without eventfd".to_owned()))?;
        let bell = Bell::adopt(bell).map_err(|source| Error::os("taking the eventfd of a queue", source))?;
        Ok(Self { end, link: link.clone(), life, queue, bell, outlasted: 0 })
    }

    /// Which queue of the session it is.
    pub(crate) fn number(&self) -> u32 {
        self.queue
    }

    #[inline]
    pub(crate) fn is_down(&self) -> bool {
        self.end.state() != STATE_READY
    }

    /// Announces what was pushed.
    #[inline]
    pub(crate) fn ring(&mut self) -> Result<(), Error> {
        if self.link.embedded().is_some() {
            // It looks at the doorbell in the turns that this side gives it, and never sleeps.
            self.end.announce();
            return Ok(());
        }
        if self.end.ring() { self.wake() } else { Ok(()) }
    }

    #[cold]
    pub(crate) fn wake(&self) -> Result<(), Error> {
        match self.bell.ring() {
            // Full: the adapter has more wakes before it than it can miss.
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                Err(Error::os("waking the adapter by its eventfd", error))
            }
            _ => Ok(()),
        }
    }

    /// The next completion. If there is none and the adapter is embedded, it gets a turn first.
    #[inline]
    pub(crate) fn poll(&mut self) -> Option<CompletionEntry> {
        let ready = self.end.pop();
        if ready.is_some() {
            return ready;
        }
        self.link.embedded()?.turn_for(self.queue);
        self.end.pop()
    }

    /// The next completion, waited for until `deadline` (`None`: for ever).
    pub(crate) fn wait(&mut self, deadline: Option<Instant>) -> Result<Option<CompletionEntry>, Error> {
        if let Some(entry) = self.poll() {
            return Ok(Some(entry));
        }
        let embedded = self.link.embedded().is_some();
        let longest = if embedded { EMBEDDED_SPIN } else { SPIN };
        let spin = longest / (1 << self.outlasted);
        let start = Instant::now();
        loop {
            for _ in 0..16 {
                if let Some(entry) = self.poll() {
                    self.outlasted = 0;
                    return Ok(Some(entry));
                }
                // It says that another processor is waited for: not where the turn just now was all that there is to it.
                if !embedded {
                    hint::spin_loop();
                }
            }
            let now = Instant::now();
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Ok(None);
            }
            let spun = now.duration_since(start);
            if spun >= spin {
                break;
            }
            if spun >= YIELD_AFTER {
                thread::yield_now();
            }
        }
        let waited = if embedded { self.nap(deadline) } else { self.sleep(deadline) };
        let in_vain = start.elapsed() >= 2 * longest;
        self.outlasted = if in_vain { (self.outlasted + 1).min(MOST_HALVINGS) } else { 0 };
        waited
    }

    /// Sleeps on the futex until a completion is there.
    fn sleep(&mut self, deadline: Option<Instant>) -> Result<Option<CompletionEntry>, Error> {
        let heartbeat = self.link.heartbeat();
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(self.end.pop());
            }
            let mut rested = true;
            if self.end.begin_wait() {
                let time = left.map_or(heartbeat, |left| left.min(heartbeat));
                let woken = doorbell::wait(self.end.memory().cq_wait(), 1, Some(time));
                self.end.end_wait();
                let woken = woken.map_err(|source| Error::os("waiting for a completion", source))?;
                rested = woken == doorbell::Woken::TimedOut;
            }
            if let Some(entry) = self.end.pop() {
                return Ok(Some(entry));
            }
            if rested {
                self.link.check_alive(self.life)?;
                if self.is_down() {
                    return Err(Error::QueueDown);
                }
            }
        }
    }

    /// Turns the embedded adapter, which waits for its device, with short naps between.
    fn nap(&mut self, deadline: Option<Instant>) -> Result<Option<CompletionEntry>, Error> {
        let mut idle = 0u32;
        loop {
            let worked = self.link.embedded().is_some_and(|adapter| adapter.turn_for(self.queue));
            if let Some(entry) = self.end.pop() {
                return Ok(Some(entry));
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(None);
            }
            if worked {
                idle = 0;
                continue;
            }
            idle += 1;
            // What was flushed comes first; another thread may be just turning.
            if idle > 100 && self.is_down() {
                return Err(Error::QueueDown);
            }
            thread::sleep(EMBEDDED_NAP);
        }
    }

    /// Ends the queue. After success the adapter touches nothing of its requests any more.
    pub(crate) fn destroy(&self) -> Result<(), Error> {
        match self.link.call_in(self.life, &Request::DestroyQueue { queue: self.queue }, &[]) {
            Ok((Reply::Done, _)) => Ok(()),
            Ok((other, _)) => Err(unexpected(&other)),
            // The session goes on with another adapter, so this one is dead.
            Err(_) if self.link.life() != self.life => Ok(()),
            Err(error) => Err(error),
        }
    }
}
