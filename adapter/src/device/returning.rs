//! Queues of a device that may go away and come back: when the device is gone for good as its driver sees it, each queue is
//! handed back by the thread that has it, and when it has come back, as a controller anew, a new one takes its place.
//!
//! A device that is to be let go in order is given nothing more: what it has ends as it says, then each queue flushes its
//! cache (NVMe Base 2.0, 3.6.1: outstanding commands complete before the shutdown).

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use driver::block::{BlockQueue, Command, Completed, Geometry, Operation, QueueState, Segment, SubmitError};
use driver::hal::Iova;
use rustix::event::epoll;

/// Where a thread's queue is handed over, both ways.
pub(super) struct Seat<Q> {
    /// The thread has no queue.
    empty: AtomicBool,
    /// There is a new one for it.
    ready: AtomicBool,
    /// Nothing comes back any more.
    closed: AtomicBool,
    /// The device is to be let go: nothing more is given to it.
    wanted: AtomicBool,
    /// The device has nothing of this queue, and is given nothing.
    rested: AtomicBool,
    /// Nothing of this queue is in the device's cache, since it is given nothing.
    flushed: AtomicBool,
    /// The one that it left, or the new one.
    queue: Mutex<Option<Q>>,
    /// Readable when the queue that sits here interrupts: an epoll instance over its eventfd. `None` if it has none.
    bell: Option<OwnedFd>,
}

impl<Q: BlockQueue> Seat<Q> {
    /// What the thread waits on, for as long as it lives.
    pub(super) fn bell(&self) -> Option<OwnedFd> {
        self.bell.as_ref().and_then(|bell| bell.try_clone().ok())
    }

    /// Takes the queue that was left; `None` if the thread still has it. What is left is to be dropped.
    pub(super) fn take_left(&self) -> Option<Q> {
        if !self.empty.load(Ordering::Acquire) {
            return None;
        }
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// From now on the device is gone for good: nobody goes on waiting.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.empty.load(Ordering::Acquire)
    }

    /// The device is to be let go, or is kept after all.
    pub(super) fn set_wanted(&self, wanted: bool) {
        self.rested.store(false, Ordering::Relaxed);
        self.flushed.store(false, Ordering::Relaxed);
        self.wanted.store(wanted, Ordering::Release);
    }

    /// Whether the device, which is to be let go, has nothing of this queue any more.
    pub(super) fn has_rested(&self) -> bool {
        self.rested.load(Ordering::Acquire)
    }

    /// Whether the device was let go with nothing of this queue in its cache.
    pub(super) fn was_flushed(&self) -> bool {
        self.flushed.load(Ordering::Acquire)
    }

    /// Offers the thread a new queue, with what becomes readable when that interrupts.
    pub(super) fn offer(&self, queue: Q, interrupt: Option<&OwnedFd>) -> std::io::Result<()> {
        if let (Some(bell), Some(interrupt)) = (&self.bell, interrupt) {
            ring(bell, interrupt)?;
        }
        *self.queue.lock().unwrap_or_else(PoisonError::into_inner) = Some(queue);
        self.set_wanted(false);
        self.ready.store(true, Ordering::Release);
        Ok(())
    }
}

fn ring(bell: &OwnedFd, interrupt: &OwnedFd) -> std::io::Result<()> {
    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
    Ok(epoll::add(bell, interrupt.as_fd(), epoll::EventData::new_u64(0), flags)?)
}

/// What a queue is when its device is away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Away {
    /// Gone: what is asked for ends at once.
    Gone,
    /// Down: whoever waits for it goes on waiting. Unless writes that were not flushed may be lost: then it is gone for good,
    /// so that nobody takes what follows them for whole.
    Down,
}

/// What a queue takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Takes {
    All,
    /// All but lists, and what is not flushed is known.
    Counted,
    Nothing,
}

/// How far a queue is whose device is to be let go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rest {
    /// It is not.
    Works,
    /// What the device has ends.
    Drains,
    /// The device has a flush of this queue's own, and nothing else.
    Flushes,
    Rests,
}

/// A queue whose device may be exchanged. Used by one thread, as any queue.
pub(super) struct Returning<Q> {
    queue: Option<Q>,
    takes: Takes,
    seat: Arc<Seat<Q>>,
    geometry: Geometry,
    away: Away,
    rest: Rest,
    /// Writes ended since the last flush.
    unflushed: bool,
    flushing: bool,
    /// See [`Away::Down`].
    torn: bool,
}

impl<Q: BlockQueue> Returning<Q> {
    /// Puts `queue` on a seat.
    pub(super) fn new(queue: Q, interrupt: Option<&OwnedFd>, away: Away) -> std::io::Result<Self> {
        let bell = match interrupt {
            None => None,
            Some(interrupt) => {
                let bell = epoll::create(epoll::CreateFlags::CLOEXEC)?;
                ring(&bell, interrupt)?;
                Some(bell)
            }
        };
        let [empty, ready, closed, wanted, rested, flushed] = [(); 6].map(|()| AtomicBool::new(false));
        let queue_left = Mutex::new(None);
        let seat = Arc::new(Seat { empty, ready, closed, wanted, rested, flushed, queue: queue_left, bell });
        let geometry = *queue.geometry();
        let (unflushed, flushing, torn) = (false, false, false);
        let (takes, rest) = (Takes::Nothing, Rest::Works);
        let mut new =
            Self { queue: Some(queue), takes, seat, geometry, away, rest, unflushed, flushing, torn };
        new.go(Rest::Works);
        Ok(new)
    }

    /// From now on it is as far as `rest`.
    fn go(&mut self, rest: Rest) {
        self.rest = rest;
        self.takes = match self.away {
            _ if self.torn || rest != Rest::Works => Takes::Nothing,
            Away::Gone => Takes::All,
            Away::Down => Takes::Counted,
        };
    }

    pub(super) fn seat(&self) -> Arc<Seat<Q>> {
        Arc::clone(&self.seat)
    }

    /// The device is gone, and nothing is outstanding: the queue is handed back, as dropping it takes system calls.
    #[cold]
    fn leave(&mut self) {
        // Nobody looks at what was not left yet.
        let Ok(mut left) = self.seat.queue.try_lock() else { return };
        *left = self.queue.take();
        drop(left);
        self.torn |= self.away == Away::Down && self.unflushed && self.geometry.write_cache;
        // Who closes it does without it.
        if self.torn && !self.seat.closed.load(Ordering::Acquire) {
            tracing::error!(
                "the device went away with writes of the store that were not flushed: until the adapter is started \
                 again, nothing that needs the store is done"
            );
        }
        self.go(Rest::Works);
        self.seat.empty.store(true, Ordering::Release);
    }

    /// Takes the new queue, if there is one.
    #[cold]
    fn arrive(&mut self) {
        if !self.seat.ready.load(Ordering::Acquire) {
            return;
        }
        let mut offered = match self.seat.queue.try_lock() {
            Ok(offered) => offered,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        self.queue = offered.take();
        (self.unflushed, self.flushing) = (false, false);
        self.seat.ready.store(false, Ordering::Release);
        self.seat.empty.store(false, Ordering::Release);
    }

    /// Goes on towards a device that has nothing of this queue, or back to work.
    #[cold]
    fn rest(&mut self) {
        let wanted = self.seat.wanted.load(Ordering::Acquire);
        if wanted && self.rest == Rest::Works {
            self.go(Rest::Drains);
        }
        let Some(queue) = &mut self.queue else { return };
        let busy = queue.outstanding() > 0;
        let flush = Command { operation: Operation::Flush, lba: 0, blocks: 0, data: Iova(0), tag: 0 };
        match self.rest {
            // Nobody but this queue may hear of the flush.
            Rest::Flushes if busy => {}
            _ if !wanted => self.go(Rest::Works),
            _ if busy => {}
            // One that does not take it is about to go, and says so by its state.
            Rest::Drains if self.geometry.write_cache && queue.submit(&flush).is_ok() => {
                queue.commit();
                self.go(Rest::Flushes);
            }
            _ => {
                self.go(Rest::Rests);
                self.seat.rested.store(true, Ordering::Release);
            }
        }
    }

    /// A poll of a queue that takes not just everything.
    #[cold]
    fn poll_apart(&mut self, budget: usize, ended: &mut dyn FnMut(Completed)) -> usize {
        let Some(queue) = &mut self.queue else { return 0 };
        let ours = self.rest == Rest::Flushes;
        let (flushing, unflushed, flushed) = (&mut self.flushing, &mut self.unflushed, &self.seat.flushed);
        // Whoever waits for each call flushes with nothing else under way.
        let count = queue.poll(budget, &mut |done| {
            if (ours || std::mem::take(flushing)) && done.status.is_ok() {
                *unflushed = false;
                flushed.store(ours, Ordering::Release);
            }
            if !ours {
                ended(done);
            }
        });
        if ours { 0 } else { count }
    }
}

impl<Q: BlockQueue> BlockQueue for Returning<Q> {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    #[inline]
    fn submit(&mut self, command: &Command) -> Result<(), SubmitError> {
        match &mut self.queue {
            Some(queue) if self.takes == Takes::All => queue.submit(command),
            Some(queue) if self.takes == Takes::Counted => {
                queue.submit(command)?;
                match command.operation {
                    Operation::Flush => self.flushing = true,
                    Operation::Read | Operation::Compare => {}
                    Operation::Write { .. } | Operation::WriteZeroes { .. } | Operation::Deallocate => {
                        self.unflushed = true;
                    }
                }
                Ok(())
            }
            _ => Err(SubmitError::Down),
        }
    }

    #[inline]
    fn submit_scattered(&mut self, command: &Command, segments: &[Segment]) -> Result<(), SubmitError> {
        match &mut self.queue {
            // The store has no lists.
            Some(queue) if self.takes == Takes::All => queue.submit_scattered(command, segments),
            _ => Err(SubmitError::Down),
        }
    }

    #[inline]
    fn commit(&mut self) {
        if let Some(queue) = &mut self.queue {
            queue.commit();
        }
    }

    #[inline]
    fn poll(&mut self, budget: usize, ended: &mut dyn FnMut(Completed)) -> usize {
        let count = match &mut self.queue {
            Some(queue) if self.takes == Takes::All => queue.poll(budget, ended),
            Some(_) => self.poll_apart(budget, ended),
            None => {
                self.arrive();
                return 0;
            }
        };
        let Some(queue) = &self.queue else { return count };
        if queue.state() == QueueState::Gone && queue.outstanding() == 0 {
            self.leave();
        } else if self.rest != Rest::Works || self.seat.wanted.load(Ordering::Relaxed) {
            self.rest();
        }
        count
    }

    fn outstanding(&self) -> usize {
        self.queue.as_ref().map_or(0, BlockQueue::outstanding)
    }

    fn state(&self) -> QueueState {
        match (&self.queue, self.away) {
            _ if self.torn => QueueState::Gone,
            (None, Away::Down) if self.seat.closed.load(Ordering::Acquire) => QueueState::Gone,
            (None, Away::Gone) => QueueState::Gone,
            (None, Away::Down) => QueueState::Down,
            (Some(queue), Away::Down) if queue.state() == QueueState::Gone => QueueState::Down,
            (Some(queue), _) if queue.state() == QueueState::Running && self.rest != Rest::Works => {
                QueueState::Down
            }
            (Some(queue), _) => queue.state(),
        }
    }

    fn arm_interrupt(&mut self, armed: bool) {
        if let Some(queue) = &mut self.queue {
            queue.arm_interrupt(armed);
        }
    }

    fn doorbells(&self) -> u64 {
        self.queue.as_ref().map_or(0, BlockQueue::doorbells)
    }
}
