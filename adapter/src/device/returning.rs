//! Queues of a device that may go away and come back: when the device is gone for good as its driver sees it, each queue is
//! handed back by the thread that has it, and when it has come back, as a controller anew, a new one takes its place.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use driver::block::{BlockQueue, Command, Completed, Geometry, Operation, QueueState, Segment, SubmitError};
use rustix::event::epoll;

/// Where a thread's queue is handed over, both ways.
pub(super) struct Seat<Q> {
    /// The thread has no queue.
    empty: AtomicBool,
    /// There is a new one for it.
    ready: AtomicBool,
    /// Nothing comes back any more.
    closed: AtomicBool,
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

    /// Offers the thread a new queue, with what becomes readable when that interrupts.
    pub(super) fn offer(&self, queue: Q, interrupt: Option<&OwnedFd>) -> std::io::Result<()> {
        if let (Some(bell), Some(interrupt)) = (&self.bell, interrupt) {
            ring(bell, interrupt)?;
        }
        *self.queue.lock().unwrap_or_else(PoisonError::into_inner) = Some(queue);
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

/// A queue whose device may be exchanged. Used by one thread, as any queue.
pub(super) struct Returning<Q> {
    queue: Option<Q>,
    seat: Arc<Seat<Q>>,
    geometry: Geometry,
    away: Away,
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
        let [empty, ready, closed] = [(); 3].map(|()| AtomicBool::new(false));
        let seat = Arc::new(Seat { empty, ready, closed, queue: Mutex::new(None), bell });
        let geometry = *queue.geometry();
        let (unflushed, flushing, torn) = (false, false, false);
        Ok(Self { queue: Some(queue), seat, geometry, away, unflushed, flushing, torn })
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
        self.torn |= self.away == Away::Down && self.unflushed && self.geometry.write_cache;
        if self.torn {
            tracing::error!(
                "the device went away with writes of the store that were not flushed: until the adapter is started \
                 again, nothing that needs the store is done"
            );
        }
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
}

impl<Q: BlockQueue> BlockQueue for Returning<Q> {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    #[inline]
    fn submit(&mut self, command: &Command) -> Result<(), SubmitError> {
        match &mut self.queue {
            Some(queue) if self.away == Away::Gone => queue.submit(command),
            Some(queue) if !self.torn => {
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
            Some(queue) if self.away == Away::Gone => queue.submit_scattered(command, segments),
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
        let Some(queue) = &mut self.queue else {
            self.arrive();
            return 0;
        };
        if self.away == Away::Gone {
            let count = queue.poll(budget, ended);
            if queue.state() == QueueState::Gone && queue.outstanding() == 0 {
                self.leave();
            }
            return count;
        }
        let (flushing, unflushed) = (&mut self.flushing, &mut self.unflushed);
        // Whoever waits for each call flushes with nothing else under way.
        let count = queue.poll(budget, &mut |done| {
            if std::mem::take(flushing) && done.status.is_ok() {
                *unflushed = false;
            }
            ended(done);
        });
        if queue.state() == QueueState::Gone && queue.outstanding() == 0 {
            self.leave();
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
