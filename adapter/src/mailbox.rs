//! What the control plane and a poller say to each other: commands one way, acknowledgements, records and
//! management requests the other.

mod management;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, OnceLock};

use crossbeam::queue::ArrayQueue;
use tpt::{DirectoryCounters, EntryIndex, Key, RegionIndex};
use wire::Status;
use wire::shm::SharedMemory;

use crate::engine::{Limiter, Port, QueueId, Terms};
pub(crate) use management::Stage;
pub use management::{MANAGED, Managed};

/// Commands that may wait for one poller.
const COMMANDS: usize = 1024;
/// Denials that may wait to be logged.
const DENIALS: usize = 64;
/// Queues that one poller may be asked for at a time.
const MOVING: usize = 4;

/// What the control plane asks of a poller. Processed between turns, so that whatever was stored before is seen by every
/// request admitted after.
pub enum Command {
    /// Serve this queue.
    Attach(Box<Port>),
    /// Stop taking from a queue, and hand it back when nothing of it runs any more.
    Give(Box<Moving>),
    /// Stop serving it; acknowledged when its last request has ended.
    Detach(QueueId, Arc<Ticket>),
    /// What holds for the queues of this session from now on.
    Terms(u64, Box<Terms>),
    /// What requests under this grant are limited by from now on.
    Limit(EntryIndex, Option<Arc<Limiter>>),
    /// The sealed and filled memory of a new region, for what the engine itself reads there. Forgotten, before the
    /// acknowledgement, when the region drains: so the control plane, which still has it then, is always the last owner.
    Region(RegionIndex, Arc<SharedMemory>),
    /// A management request comes back, answered or withdrawn.
    Answer(Box<Managed>),
    /// Acknowledge when no request of this poller uses it.
    Drain(Drained, Arc<Ticket>),
}

/// A queue on its way from one poller to another. A poller that is asked for one gives this back, with the queue or, if
/// it does not have it, keeps it or is to end it, without.
pub struct Moving {
    /// Which.
    pub queue: QueueId,
    /// On its way back: the adapter's end of it, with nothing in flight.
    pub port: Option<Port>,
}

/// What is being drained.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drained {
    /// A grant.
    Entry(EntryIndex),
    /// A memory region.
    Region(RegionIndex),
}

/// Counts the acknowledgements of all pollers.
#[derive(Debug)]
pub struct Ticket(AtomicU32);

impl Ticket {
    /// A ticket that `pollers` must acknowledge.
    pub fn new(pollers: u32) -> Arc<Self> {
        Arc::new(Self(AtomicU32::new(pollers)))
    }

    /// One poller is done. Release: pairs with the Acquire of [`Ticket::is_done`], so that whoever re-uses what was drained does so
    /// after the poller's last use.
    pub(crate) fn acknowledge(&self) {
        self.0.fetch_sub(1, Ordering::Release);
    }

    /// Whether all pollers are done.
    pub fn is_done(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }
}

/// A refused request, for the log.
#[derive(Clone, Copy, Debug)]
pub struct Denial {
    /// Whose.
    pub session: u64,
    /// Under which key.
    pub key: Key,
    /// Why.
    pub status: Status,
}

/// Denials of one user that are logged before the gate is opened again; the rest is counted.
const DENIALS_LOGGED: u32 = 10;

/// Lets some denials of one user through to the log, so that none of its queues can flood it. Shared by those, and
/// touched only when a request was refused.
#[derive(Debug)]
pub struct DenialGate {
    left: AtomicU32,
    suppressed: AtomicU64,
}

impl Default for DenialGate {
    fn default() -> Self {
        Self { left: AtomicU32::new(DENIALS_LOGGED), suppressed: AtomicU64::new(0) }
    }
}

impl DenialGate {
    /// Whether one more may be logged; if not, it is counted.
    pub fn pass(&self) -> bool {
        let pass =
            self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        if !pass {
            self.suppress();
        }
        pass
    }

    fn suppress(&self) {
        self.suppressed.fetch_add(1, Ordering::Relaxed);
    }

    /// Opens it again, and gives how many were not let through.
    pub fn open_again(&self) -> u64 {
        self.left.store(DENIALS_LOGGED, Ordering::Relaxed);
        self.suppressed.swap(0, Ordering::Relaxed)
    }
}

/// What wakes the control plane, if it sleeps, when a poller has something for it.
#[derive(Debug)]
pub struct Bell {
    eventfd: OwnedFd,
    asleep: AtomicBool,
}

impl Bell {
    /// With an eventfd of its own, which is never read.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { eventfd: crate::poller::eventfd()?, asleep: AtomicBool::new(false) })
    }

    /// Becomes readable (edge-triggered) when it rings.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }

    /// Whoever looks is about to sleep, unless it finds something in a look after this.
    pub fn fall_asleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        // Pairs with the fence in `ring`: either the sleeper sees what there is, or this sees it sleeping.
        fence(Ordering::SeqCst);
    }

    /// It is awake.
    pub fn wake_up(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// There is something. A system call if nobody is awake to see it, once for each sleep.
    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::Relaxed) {
            // Only the adapter holds this description; should the count ever be full, it rings already.
            let _ = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
        }
    }
}

/// What one poller and the control plane share. Nothing here is written on the hot path but the turn count, now and
/// then, and denials.
pub struct PollerShared {
    commands: ArrayQueue<Command>,
    denials: ArrayQueue<Denial>,
    moved: ArrayQueue<Box<Moving>>,
    managed: ArrayQueue<Box<Managed>>,
    bell: OnceLock<Arc<Bell>>,
    rings: AtomicBool,
    denied: AtomicU64,
    queue_errors: AtomicU64,
    turns: AtomicU64,
    busy_ns: AtomicU64,
    fetches: AtomicU64,
    evictions: AtomicU64,
    stuck: AtomicBool,
}

impl Default for PollerShared {
    fn default() -> Self {
        Self {
            commands: ArrayQueue::new(COMMANDS),
            denials: ArrayQueue::new(DENIALS),
            moved: ArrayQueue::new(MOVING),
            managed: ArrayQueue::new(MANAGED),
            bell: OnceLock::new(),
            rings: AtomicBool::new(false),
            denied: AtomicU64::new(0),
            queue_errors: AtomicU64::new(0),
            turns: AtomicU64::new(0),
            busy_ns: AtomicU64::new(0),
            fetches: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
            stuck: AtomicBool::new(false),
        }
    }
}

impl PollerShared {
    /// Queues a command; gives it back if too many wait.
    pub fn send(&self, command: Command) -> Result<(), Command> {
        self.commands.push(command)
    }

    /// The next denial to log.
    pub fn take_denial(&self) -> Option<Denial> {
        self.denials.pop()
    }

    /// Requests denied.
    pub fn denied(&self) -> u64 {
        self.denied.load(Ordering::Relaxed)
    }

    /// Queues that went to the error state.
    pub fn queue_errors(&self) -> u64 {
        self.queue_errors.load(Ordering::Relaxed)
    }

    /// Turns made, give or take a few.
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// Time in which it found work, give or take a few turns.
    pub fn busy_ns(&self) -> u64 {
        self.busy_ns.load(Ordering::Relaxed)
    }

    /// The answer to a [`Command::Give`].
    pub fn take_moved(&self) -> Option<Box<Moving>> {
        self.moved.pop()
    }

    /// The next management request. Each goes back by [`Command::Answer`].
    pub fn take_managed(&self) -> Option<Box<Managed>> {
        self.managed.pop()
    }

    /// Whether there is one.
    pub fn has_managed(&self) -> bool {
        !self.managed.is_empty()
    }

    /// What is rung when there is one. The first that is given stays.
    pub fn set_bell(&self, bell: Arc<Bell>) {
        let _ = self.bell.set(bell);
    }

    /// Whether it rings. If not, whoever takes management requests must look for them.
    pub fn rings(&self) -> bool {
        self.rings.load(Ordering::Relaxed)
    }

    /// What its directory has done, up to a few turns ago.
    pub fn directory(&self) -> DirectoryCounters {
        DirectoryCounters {
            fetches: self.fetches.load(Ordering::Relaxed),
            evictions: self.evictions.load(Ordering::Relaxed),
        }
    }

    /// Whether the device keeps a command for too long.
    pub fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Relaxed)
    }

    pub(crate) fn take_command(&self) -> Option<Command> {
        self.commands.pop()
    }

    pub(crate) fn commands_is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// One writer: the poller.
    pub(crate) fn record_denial(&self, denial: Denial, gate: &DenialGate) {
        self.denied.store(self.denied.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        if gate.pass() && self.denials.push(denial).is_err() {
            gate.suppress(); // A full list loses log lines, never counts.
        }
    }

    pub(crate) fn record_queue_error(&self) {
        self.queue_errors.store(self.queue_errors.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Answers a [`Command::Give`].
    pub(crate) fn give_back(&self, moving: Box<Moving>) {
        assert!(self.moved.push(moving).is_ok(), "nobody asks for more than {MOVING} queues at a time");
    }

    pub(crate) fn record_turns(&self, turns: u64, busy_ns: u64, directory: DirectoryCounters) {
        self.turns.store(turns, Ordering::Relaxed);
        self.busy_ns.store(busy_ns, Ordering::Relaxed);
        self.fetches.store(directory.fetches, Ordering::Relaxed);
        self.evictions.store(directory.evictions, Ordering::Relaxed);
    }

    pub(crate) fn hand_over(&self, managed: Box<Managed>) {
        assert!(self.managed.push(managed).is_ok(), "an engine has no more than {MANAGED} of them");
    }

    pub(crate) fn ring(&self) {
        self.bell.get().into_iter().for_each(|bell| bell.ring());
    }

    pub(crate) fn will_ring(&self) {
        self.rings.store(true, Ordering::Relaxed);
    }

    pub(crate) fn record_stuck(&self, stuck: bool) {
        self.stuck.store(stuck, Ordering::Relaxed);
    }
}
