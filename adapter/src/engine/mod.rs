//! The engine: one bounded turn after another, each request from its queue through the tables to the device and back.
//!
//! An engine belongs to one thread and owns its [`Directory`], its device queue and its end of every processing queue
//! attached to it. A turn makes no system call, takes no lock, allocates nothing for a request and is bounded in every
//! direction, so that it can be run from a seed as well as from a thread. Time, device and shared memory are given to it.

mod admission;
mod bytes;
mod deadlines;
mod files;
mod gates;
mod lengths;
mod limiter;
mod lists;
mod manage;
mod parse;
mod port;
mod schedule;
mod share;
mod slots;
mod submission;
#[cfg(test)]
mod tests;
mod throttle;

use std::sync::Arc;
use std::time::Duration;

use driver::block::BlockQueue;
use lists::Lists;
use manage::Management;
use tpt::Directory;
use wire::layout::SubmissionEntry;
use wire::shm::SharedMemory;

use crate::mailbox::{Command, Drained, PollerShared, Ticket};
pub use bytes::Bounce;
use bytes::Buffers;
pub use gates::Gates;
pub use lengths::Lengths;
pub use limiter::Limiter;
pub use parse::{Parsed, parse};
pub use port::{Port, PortCounters, QueueId};
use schedule::Schedule;
use share::Shares;
pub use share::{Cost, DEFAULT_WEIGHT, MAX_WEIGHT, QUANTUM, Terms, step};
use slots::Slots;
use throttle::Throttle;

/// Nanoseconds from some fixed moment. A simulation has its own.
pub trait Clock: Send {
    /// Now.
    fn now_ns(&self) -> u64;
}

/// The machine's monotonic clock, read without a system call.
#[derive(Clone, Copy, Debug)]
pub struct MonotonicClock(std::time::Instant);

impl Default for MonotonicClock {
    fn default() -> Self {
        Self(std::time::Instant::now())
    }
}

impl Clock for MonotonicClock {
    fn now_ns(&self) -> u64 {
        nanoseconds(self.0.elapsed())
    }
}

/// Cache lines are brought in pairs.
const TWO_LINES: usize = 128;

/// An empty vector with room for so many, each page of which was written to: what the kernel gives at the first touch only
/// is given here, so that no turn waits for it. It has more room than it needs, so that what stands behind it in memory,
/// and may be another poller's, shares no line with it.
pub(crate) fn touched<T>(room: usize) -> Vec<T> {
    let mut vector = Vec::with_capacity(room + TWO_LINES.div_ceil(size_of::<T>().max(1)));
    std::hint::black_box(vector.spare_capacity_mut()).fill_with(std::mem::MaybeUninit::zeroed);
    vector
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The bounds of a turn.
#[derive(Clone, Copy, Debug)]
pub struct TurnLimits {
    /// Entries taken from one queue.
    pub burst: u32,
    /// Completions reaped from the device.
    pub reap: usize,
    /// Commands from the control plane.
    pub commands: usize,
    /// Held and starved requests looked at again.
    pub retries: usize,
    /// Device commands of one request at a time.
    pub pieces: u32,
}

impl Default for TurnLimits {
    fn default() -> Self {
        Self { burst: 32, reap: 256, commands: 16, retries: 64, pieces: 16 }
    }
}

/// A request on which the device shows no progress for this long makes the engine ask for a controller reset.
pub const DEVICE_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests are searched for ones that are stuck this often.
const SCAN_INTERVAL_NS: u64 = 100_000_000;
/// The clock is read every this many turns.
const CLOCK_INTERVAL: u64 = 32;

/// See the module.
pub struct Engine<Q, C> {
    queue: Q,
    clock: C,
    limits: TurnLimits,
    state: State,
}

/// Everything but the device queue, so that the queue can hand completions into it.
struct State {
    shared: Arc<PollerShared>,
    directory: Directory,
    ports: Vec<Option<Port>>,
    slots: Slots,
    /// Entries that are being processed, as they were copied.
    taken: [SubmissionEntry; admission::BATCH],
    /// Admitted, waiting for room in the device queue, oldest first.
    starved: std::collections::VecDeque<u32>,
    /// To be admitted later: under an entry that is being modified, or short of something that others use.
    held: std::collections::VecDeque<u32>,
    /// Under the flush that the device is executing, and waiting for the next one.
    flushing: Vec<u32>,
    flush_next: Vec<u32>,
    flush_running: bool,
    drains: Vec<(Drained, Arc<Ticket>)>,
    /// The memory of each region that this engine was told of.
    regions: Box<[Option<Arc<SharedMemory>>]>,
    lists: Lists,
    management: Management,
    buffers: Buffers,
    gates: gates::Own,
    /// Waiting for the blocks that they claimed.
    gated: Vec<u32>,
    lengths: Arc<Lengths>,
    /// Appends that wait until those before them have landed.
    landing: Vec<u32>,
    /// Of requests that wait, the first; requests found late.
    next_deadline_ns: u64,
    next_sweep_ns: u64,
    late: Vec<u32>,
    schedule: Schedule,
    shares: Shares,
    throttle: Throttle,
    /// As in [`TurnLimits`].
    pieces: u32,
    /// The last request that was decided at once was on a file.
    in_files: bool,
    device_timeout_ns: u64,
    now_ns: u64,
    next_scan_ns: u64,
    turns: u64,
    /// Turns since the last look at the clock that found work, and the time that such turns took before, as it is told to
    /// the control plane.
    busy_turns: u64,
    busy_ns: u64,
}

/// The tag of the one merged flush that runs at a time.
const FLUSH_TAG: u64 = u64::MAX;

impl<Q: BlockQueue, C: Clock> Engine<Q, C> {
    /// An engine over `queue` with room for `requests` admitted requests, or [`tpt::MOST_ACTIVE`]: all may be of one entry.
    pub fn new(queue: Q, clock: C, directory: Directory, shared: Arc<PollerShared>, requests: u16) -> Self {
        let requests = requests.min(tpt::MOST_ACTIVE);
        let room = usize::from(requests);
        let state = State {
            shared,
            regions: vec![None; directory.limits().regions as usize].into(),
            directory,
            lists: Lists::new(),
            management: Management::new(room),
            buffers: Buffers::default(),
            gates: gates::Own::default(),
            gated: touched(room),
            lengths: Arc::new(Lengths::new(0)),
            landing: touched(room),
            next_deadline_ns: u64::MAX,
            next_sweep_ns: 0,
            late: touched(room),
            ports: touched(64),
            slots: Slots::new(requests),
            taken: [SubmissionEntry::default(); admission::BATCH],
            starved: touched(room).into(),
            held: touched(room).into(),
            flushing: touched(room),
            flush_next: touched(room),
            flush_running: false,
            drains: touched(64),
            schedule: Schedule::new(64),
            shares: Shares::default(),
            throttle: Throttle::new(room),
            pieces: TurnLimits::default().pieces,
            in_files: false,
            device_timeout_ns: nanoseconds(DEVICE_TIMEOUT),
            now_ns: clock.now_ns(),
            next_scan_ns: 0,
            turns: 0,
            busy_turns: 0,
            busy_ns: 0,
        };
        Self { queue, clock, limits: TurnLimits::default(), state }
    }

    /// Takes other bounds for its turns.
    pub fn set_limits(&mut self, limits: TurnLimits) {
        self.limits = limits;
        self.state.pieces = limits.pieces.max(1);
    }

    /// Takes another [`DEVICE_TIMEOUT`].
    pub fn set_device_timeout(&mut self, timeout: Duration) {
        self.state.device_timeout_ns = nanoseconds(timeout);
    }

    /// Somebody hears the eventfds of its queues and calls [`Engine::unpark`] for each that was written: queues that are
    /// not in use ask their applications to write them. Before its first turn.
    pub fn hear_bells(&mut self) {
        self.state.schedule.hear_bells();
        self.state.shared.will_ring();
    }

    /// Takes another time after which a queue that gave nothing counts as not in use.
    pub fn set_park_after(&mut self, idle: Duration) {
        self.state.schedule.set_park_after(nanoseconds(idle));
    }

    /// Queues that are not in use, of which turns look at none, or at one of them in each if nobody hears bells.
    pub fn parked(&self) -> usize {
        self.state.schedule.parked()
    }

    /// The eventfd of `queue` was written. Whether it was parked and had rung: now the next turn takes from it. Anybody may
    /// write, at any time, and a write for nothing changes nothing.
    pub fn unpark(&mut self, queue: QueueId) -> bool {
        self.state.unpark(queue)
    }

    /// Gives it memory for writes of bytes, which it takes if it has [`Engine::set_gates`] too, and else refuses with
    /// E_OPCODE. Before its first turn.
    pub fn set_bounce(&mut self, bounce: Bounce) {
        self.state.buffers = Buffers::new(bounce);
    }

    /// Joins the other engines of the device, all of which must share the same gates. Before its first turn.
    pub fn set_gates(&mut self, gates: Arc<Gates>) {
        self.state.gates = gates::Own::join(gates);
    }

    /// Joins the other engines of the device, all of which must share the same lengths of files. Before its first turn.
    pub fn set_lengths(&mut self, lengths: Arc<Lengths>) {
        self.state.lengths = lengths;
    }

    /// One turn. Returns how many things it did; 0 means idle.
    pub fn turn(&mut self) -> usize {
        let Self { queue, clock, limits, state } = self;
        if state.turns % CLOCK_INTERVAL == 0 {
            let now_ns = clock.now_ns();
            let passed = now_ns.saturating_sub(state.now_ns);
            state.busy_ns += passed / CLOCK_INTERVAL * std::mem::take(&mut state.busy_turns);
            state.now_ns = now_ns;
            state.look_for_stuck(queue);
            state.end_late();
            state.park_idle();
            state.shared.record_turns(state.turns, state.busy_ns, state.directory.counters());
        }
        state.turns += 1;

        let mut work = 0;
        if !state.shared.commands_is_empty() {
            work += state.take_commands(limits.commands);
        }
        if state.gates.need_tending() {
            work += state.tend_gates(queue);
        }
        if state.gates.is_awake() {
            if !(state.held.is_empty() && state.starved.is_empty() && state.landing.is_empty()) {
                work += state.retry(queue, limits.retries);
            }
            if state.throttle.is_due(state.now_ns) {
                work += state.retry_throttled(queue, limits.retries);
            }
            work += state.take_entries(queue, limits.burst);
        }
        queue.commit();
        work += queue.poll(limits.reap, &mut |done| state.ended(done));
        work += state.after_poll(queue);
        if !state.drains.is_empty() {
            state.acknowledge_drains();
        }
        work += state.finish_turn();
        state.busy_turns += u64::from(work > 0);
        work
    }

    /// Requests admitted and not yet ended.
    pub fn in_flight(&self) -> usize {
        self.state.slots.used()
    }

    /// Whether something is at the device.
    pub fn device_is_busy(&self) -> bool {
        self.queue.outstanding() > 0
    }

    /// How long until something is due that waits for its limits: the thread that turns the engine sleeps no longer.
    pub fn next_due(&self) -> Option<Duration> {
        let (shares, throttle) =
            (self.state.shares.next_due_ns(self.state.now_ns), self.state.throttle.next_due_ns());
        let due_ns = shares.into_iter().chain(throttle).min()?;
        Some(Duration::from_nanos(due_ns.saturating_sub(self.clock.now_ns())))
    }

    /// The device queue, for arming its interrupt.
    pub fn queue_mut(&mut self) -> &mut Q {
        &mut self.queue
    }

    /// Wakes the applications that sleep on queues with new completions, and the control plane if it sleeps and is asked for
    /// something: the only system calls, made after the turn.
    pub fn wake_sleepers(&mut self) {
        self.state.wake_sleepers();
        self.state.ring_for_management();
    }

    /// Announces that the engine is about to sleep. Returns whether it may: false if there is work after all, or if the
    /// device has some and its interrupts do not wake the sleeper.
    pub fn prepare_sleep(&mut self, device_wakes: bool) -> bool {
        let state = &mut self.state;
        state.announce_sleep(true);
        let mut work = (self.queue.outstanding() > 0 && !device_wakes)
            || !state.starved.is_empty()
            || !state.held.is_empty()
            || !state.gated.is_empty()
            || !state.landing.is_empty()
            || (!state.flush_next.is_empty() && !state.flush_running)
            || !state.shared.commands_is_empty()
            || state.has_rung();
        if !work {
            // With something at the device it is still waited for by others' gates, and wakes for that soon enough.
            let idle = state.slots.used() == state.throttle.waiting() + state.management.waiting();
            work = if idle { !state.gates.fall_asleep() } else { state.gates.need_tending() };
        }
        if work {
            self.end_sleep();
        }
        !work
    }

    /// The engine is awake again.
    pub fn end_sleep(&mut self) {
        self.state.announce_sleep(false);
        self.state.now_ns = self.clock.now_ns();
    }
}

impl<Q, C> Drop for Engine<Q, C> {
    /// The grants of what still runs go with the directory that counted them: nobody is told that they were idle, so
    /// whatever waits for them keeps waiting, until the device has been stopped.
    fn drop(&mut self) {
        let State { slots, directory, lists, management, gates, .. } = &mut self.state;
        slots.take_grants(|grant| directory.release(grant));
        lists.release_all(directory);
        management.release_all(directory);
        if slots.used() == 0 {
            while !gates.fall_asleep() {
                std::hint::spin_loop();
            }
        }
    }
}

impl State {
    /// Commands from the control plane.
    #[cold]
    fn take_commands(&mut self, most: usize) -> usize {
        let (mut work, mut looks_again) = (0, false);
        while work < most {
            let Some(command) = self.shared.take_command() else { break };
            work += 1;
            match command {
                Command::Attach(port) => self.attach(*port),
                Command::Give(moving) => self.give(moving),
                Command::Detach(queue, ticket) => self.detach(queue, ticket),
                Command::Terms(session, terms) => self.shares.set_terms(session, &terms),
                Command::Limit(entry, limiter) => self.throttle.limit(entry, limiter.as_ref()),
                Command::Region(region, memory) => {
                    let known = self.regions[region.0 as usize].replace(memory);
                    assert!(known.is_none(), "a region is drained before its index is used again");
                    looks_again = true;
                }
                Command::Answer(managed) => {
                    self.take_answer(managed);
                    looks_again = true;
                }
                Command::Drain(what, ticket) => self.drains.push((what, ticket)),
            }
        }
        if looks_again {
            self.retry_management();
        }
        work
    }

    /// Tells the control plane of entries and regions that no request uses any more.
    #[cold]
    fn acknowledge_drains(&mut self) {
        let mut at = 0;
        while at < self.drains.len() {
            let idle = match self.drains[at].0 {
                Drained::Entry(entry) => self.directory.entry_is_idle(entry),
                Drained::Region(region) => self.directory.region_is_idle(region),
            };
            if idle {
                let (what, ticket) = self.drains.swap_remove(at);
                if let Drained::Region(region) = what {
                    self.regions[region.0 as usize] = None;
                }
                ticket.acknowledge();
            } else {
                at += 1;
            }
        }
    }
}
