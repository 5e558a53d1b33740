//! The engine: one bounded turn after another, each request from its queue through the tables to the device and back.
//!
//! An engine belongs to one thread and owns its [`Directory`], its device queue and its end of every processing queue
//! attached to it. A turn makes no system call, takes no lock, allocates nothing and is bounded in every direction, so
//! that it can be run from a seed as well as from a thread. Time, device and shared memory are given to it.

mod parse;
mod port;
mod slots;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use driver::block::{self, BlockQueue, Completed, DeviceStatus, QueueState, SubmitError};
use tpt::{Denied, Directory, Operation};
use wire::Status;
use wire::layout::SubmissionEntry;

use crate::mailbox::{Command, Denial, Drained, PollerShared, Ticket};
pub use parse::{Parsed, parse};
use port::PortState;
pub use port::{Port, PortCounters, QueueId};
use slots::{Slot, SlotState, Slots};

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
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
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
}

impl Default for TurnLimits {
    fn default() -> Self {
        Self { burst: 32, reap: 256, commands: 16, retries: 64 }
    }
}

/// A request that the device has not ended after this long makes the engine ask for a controller reset.
pub const DEVICE_TIMEOUT_NS: u64 = 10_000_000_000;
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
    /// Admitted, waiting for room in the device queue, oldest first.
    starved: std::collections::VecDeque<u32>,
    /// Under an entry that is being modified.
    held: Vec<u32>,
    /// Under the flush that the device is executing, and waiting for the next one.
    flushing: Vec<u32>,
    flush_next: Vec<u32>,
    flush_running: bool,
    drains: Vec<(Drained, Arc<Ticket>)>,
    next_port: usize,
    now_ns: u64,
    next_scan_ns: u64,
    turns: u64,
}

/// The tag of the one merged flush that runs at a time.
const FLUSH_TAG: u64 = u64::MAX;

impl<Q: BlockQueue, C: Clock> Engine<Q, C> {
    /// An engine over `queue` with room for `requests` admitted requests (at most 65,535).
    pub fn new(queue: Q, clock: C, directory: Directory, shared: Arc<PollerShared>, requests: u16) -> Self {
        let room = usize::from(requests);
        let state = State {
            shared,
            directory,
            ports: Vec::with_capacity(64),
            slots: Slots::new(requests),
            starved: std::collections::VecDeque::with_capacity(room),
            held: Vec::with_capacity(room),
            flushing: Vec::with_capacity(room),
            flush_next: Vec::with_capacity(room),
            flush_running: false,
            drains: Vec::with_capacity(64),
            next_port: 0,
            now_ns: clock.now_ns(),
            next_scan_ns: 0,
            turns: 0,
        };
        Self { queue, clock, limits: TurnLimits::default(), state }
    }

    /// Takes other bounds for its turns.
    pub fn set_limits(&mut self, limits: TurnLimits) {
        self.limits = limits;
    }

    /// One turn. Returns how many things it did; 0 means idle.
    pub fn turn(&mut self) -> usize {
        let Self { queue, clock, limits, state } = self;
        if state.turns % CLOCK_INTERVAL == 0 {
            state.now_ns = clock.now_ns();
            state.look_for_stuck(queue);
            state.shared.record_turns(state.turns);
        }
        state.turns += 1;

        let mut work = state.take_commands(limits.commands);
        work += state.retry(queue, limits.retries);
        work += state.take_entries(queue, limits.burst);
        queue.commit();
        work += queue.poll(limits.reap, &mut |done| state.ended(done));
        state.after_poll(queue);
        state.acknowledge_drains();
        state.finish_turn();
        work
    }

    /// Requests admitted and not yet ended.
    pub fn in_flight(&self) -> usize {
        self.state.slots.used()
    }

    /// The device queue, for arming its interrupt.
    pub fn queue_mut(&mut self) -> &mut Q {
        &mut self.queue
    }

    /// Wakes the applications that sleep on queues with new completions: the one system call, made after the turn.
    pub fn wake_sleepers(&mut self) {
        for port in self.state.ports.iter_mut().flatten() {
            if std::mem::take(&mut port.wake_due) {
                port.wake();
            }
        }
    }

    /// Announces that the engine is about to sleep. Returns whether it may: false if there is work after all, or if the
    /// device has some and its interrupts do not wake the sleeper.
    pub fn prepare_sleep(&mut self, device_wakes: bool) -> bool {
        let state = &mut self.state;
        for port in state.ports.iter_mut().flatten() {
            port.ring.set_need_wake(true);
        }
        // Pairs with the fence between an application's doorbell and its look at need_wake.
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let work = (self.queue.outstanding() > 0 && !device_wakes)
            || !state.starved.is_empty()
            || !state.held.is_empty()
            || !state.shared.commands_is_empty()
            || state
                .ports
                .iter()
                .flatten()
                .any(|port| port.state == PortState::Ready && port.ring.has_rung());
        if work {
            self.end_sleep();
        }
        !work
    }

    /// The engine is awake again.
    pub fn end_sleep(&mut self) {
        for port in self.state.ports.iter_mut().flatten() {
            port.ring.set_need_wake(false);
        }
        self.state.now_ns = self.clock.now_ns();
    }
}

impl State {
    /// Commands from the control plane.
    fn take_commands(&mut self, most: usize) -> usize {
        let mut work = 0;
        while work < most {
            let Some(command) = self.shared.take_command() else { break };
            work += 1;
            match command {
                Command::Attach(port) => match self.ports.iter_mut().find(|p| p.is_none()) {
                    Some(free) => *free = Some(*port),
                    None => self.ports.push(Some(*port)),
                },
                Command::Detach(queue, ticket) => self.detach(queue, ticket),
                Command::Drain(what, ticket) => self.drains.push((what, ticket)),
            }
        }
        work
    }

    /// Stops taking from a queue. What has not started ends unanswered, what runs at the device is waited for.
    fn detach(&mut self, queue: QueueId, ticket: Arc<Ticket>) {
        let Some(index) = self.ports.iter().position(|p| p.as_ref().is_some_and(|p| p.id == queue)) else {
            ticket.acknowledge();
            return;
        };
        let port = self.ports[index].as_mut().expect("found above");
        port.state = PortState::Detaching(ticket);
        self.end_unstarted(index, Status::E_FLUSHED);
    }

    /// Ends every request of the port that the device has not got; what it has ends with `status` too, but only when
    /// the device is done with it.
    fn end_unstarted(&mut self, index: usize, status: Status) {
        let slots = &self.slots;
        let keep = |slot: &u32| slots.get(*slot).port != index || slots.get(*slot).outstanding > 0;
        self.starved.retain(keep);
        self.held.retain(keep);
        self.flush_next.retain(keep);
        let mut at = 0;
        while let Some(slot) = self.ports[index].as_ref().and_then(|p| p.in_flight.get(at).copied()) {
            self.slots.get_mut(slot).fail(status, 0);
            if self.slots.get(slot).outstanding == 0 {
                self.finish(slot); // takes it out of the list
            } else {
                at += 1;
            }
        }
    }

    /// Looks again at requests that were held or found the device full.
    fn retry<Q: BlockQueue>(&mut self, queue: &mut Q, most: usize) -> usize {
        let mut work = 0;
        let mut at = 0;
        for _ in 0..most.min(self.held.len()) {
            let Some(&slot) = self.held.get(at) else { break };
            self.held.swap_remove(at);
            self.admit(queue, slot);
            match self.held.last() {
                // Still held: it went to the end again; look at the next one.
                Some(&last) if last == slot => {
                    let end = self.held.len() - 1;
                    self.held.swap(at.min(end), end);
                    at += 1;
                }
                _ => work += 1,
            }
        }
        for _ in 0..most.min(self.starved.len()) {
            let Some(slot) = self.starved.pop_front() else { break };
            if !self.start(queue, slot) {
                // Still no room: keep its place at the front.
                if let Some(back) = self.starved.pop_back() {
                    self.starved.push_front(back);
                }
                break;
            }
            work += 1;
        }
        work
    }

    /// Takes a bounded share from each queue, beginning with another one each turn.
    fn take_entries<Q: BlockQueue>(&mut self, queue: &mut Q, burst: u32) -> usize {
        let count = self.ports.len();
        if count == 0 {
            return 0;
        }
        self.next_port = if self.next_port + 1 >= count { 0 } else { self.next_port + 1 };
        let mut work = 0;
        let mut index = self.next_port;
        for _ in 0..count {
            work += self.take_from(queue, index, burst);
            index = if index + 1 >= count { 0 } else { index + 1 };
        }
        work
    }

    fn take_from<Q: BlockQueue>(&mut self, queue: &mut Q, index: usize, burst: u32) -> usize {
        let Some(port) = self.ports[index].as_mut() else { return 0 };
        match port.state {
            PortState::Ready => {}
            PortState::Error => return port.flush(),
            PortState::Detaching(_) => return 0,
        }
        let rung = match port.ring.poll_doorbell() {
            Ok(rung) => rung,
            Err(_) => {
                self.fail_port(index);
                return 1;
            }
        };
        let mut work = 0;
        for _ in 0..rung.min(burst) {
            let Some(port) = self.ports[index].as_mut() else { break };
            // While the device is full each queue may have a burst of requests waiting for it, so that its cancels are
            // still seen; the rest waits in the application's own queue and delays nobody.
            let device_full = !self.starved.is_empty() && port.in_flight.len() >= burst as usize;
            if device_full || !self.slots.has_room() {
                break;
            }
            match port.ring.take() {
                Ok(Some(entry)) => self.process(queue, index, &entry),
                Ok(None) => break, // No room for its completion: the application does not consume.
                Err(_) => {
                    self.fail_port(index);
                    break;
                }
            }
            work += 1;
        }
        work
    }

    fn process<Q: BlockQueue>(&mut self, queue: &mut Q, index: usize, entry: &SubmissionEntry) {
        match parse(entry) {
            Ok(Parsed::Io { request, deadline_us }) => {
                let deadline_ns = match deadline_us {
                    0 => u64::MAX,
                    us => self.now_ns.saturating_add(u64::from(us) * 1000),
                };
                let Some(port) = self.ports[index].as_mut() else { return };
                let slot = self
                    .slots
                    .allocate(Slot::new(index, entry.user_data, request, deadline_ns), &mut port.in_flight);
                self.admit(queue, slot);
            }
            Ok(Parsed::Cancel { target }) => self.cancel(index, entry.user_data, target),
            Err(status) => self.answer(index, entry.user_data, status),
        }
    }

    /// Answers a request that never got a slot.
    fn answer(&mut self, index: usize, user_data: u64, status: Status) {
        if let Some(port) = self.ports[index].as_mut() {
            port.complete(user_data, status, 0, 0);
        }
    }

    /// Checks a request against the tables and starts it, holds it or ends it.
    fn admit<Q: BlockQueue>(&mut self, queue: &mut Q, slot: u32) {
        let &Slot { port, request, deadline_ns, .. } = self.slots.get(slot);
        if self.now_ns > deadline_ns {
            self.slots.get_mut(slot).fail(Status::E_DEADLINE, 0);
            return self.finish(slot);
        }
        let Some(domain) = self.ports[port].as_ref().map(|p| p.domain) else { return self.finish(slot) };
        match self.directory.check(domain, &request) {
            Ok(grant) => {
                let s = self.slots.get_mut(slot);
                s.blocks = grant.blocks();
                s.grant = Some(grant);
                if request.operation == Operation::Flush {
                    s.state = SlotState::FlushWaiting;
                    self.flush_next.push(slot);
                    self.start_flush(queue);
                } else {
                    self.start(queue, slot);
                }
            }
            Err(Denied::Held) => {
                self.slots.get_mut(slot).state = SlotState::Held;
                self.held.push(slot);
            }
            Err(denied) => {
                let status = status_of(denied);
                self.shared.record_denial(Denial {
                    session: self.session_of(port),
                    key: request.key,
                    status,
                });
                self.slots.get_mut(slot).fail(status, 0);
                self.finish(slot);
            }
        }
    }

    fn session_of(&self, port: usize) -> u64 {
        self.ports[port].as_ref().map_or(0, |p| p.session)
    }

    /// Hands the pieces of an admitted request to the device, from where it left off. False if the device had no room
    /// for all: the rest waits in the starved list.
    fn start<Q: BlockQueue>(&mut self, queue: &mut Q, slot: u32) -> bool {
        let geometry = *queue.geometry();
        let tag = self.slots.tag(slot);
        let s = self.slots.get_mut(slot);
        let Some(operation) = device_operation(s.request.operation, &geometry) else {
            s.fail(Status::E_OPCODE, 0);
            self.finish(slot);
            return true;
        };
        if s.submitted == 0 && self.now_ns > s.deadline_ns {
            s.fail(Status::E_DEADLINE, 0);
            self.finish(slot);
            return true;
        }
        let grant = s.grant.as_ref().expect("an admitted request has its grant");
        let mut full = false;
        'pieces: for piece in self.directory.pieces(grant, s.submitted) {
            let whole = block::Command {
                operation,
                lba: piece.lba.0,
                blocks: 0,
                data: driver::hal::Iova(piece.iova.0),
                tag: 0,
            };
            for command in block::pieces(whole, piece.blocks, &geometry) {
                if s.status != Status::OK {
                    break 'pieces;
                }
                let command = block::Command { tag: tag | u64::from(command.blocks) << 32, ..command };
                match queue.submit(&command) {
                    Ok(()) => {
                        s.submitted += u64::from(command.blocks);
                        s.outstanding += 1;
                    }
                    Err(SubmitError::Full | SubmitError::Down) => {
                        full = true;
                        break 'pieces;
                    }
                    Err(SubmitError::Invalid) => s.fail(Status::E_DEVICE, DeviceStatus::LBA_OUT_OF_RANGE.0),
                }
            }
        }
        if s.started_ns == 0 && s.outstanding > 0 {
            s.started_ns = self.now_ns.max(1);
        }
        if full {
            s.state = SlotState::Starved;
            self.starved.push_back(slot);
        } else {
            s.state = SlotState::Running;
            if s.status == Status::OK && s.submitted < s.blocks {
                s.fail(Status::E_TABLE_CORRUPT, 0); // The LBA list ended before the request did.
            }
            if s.outstanding == 0 {
                self.finish(slot);
            }
        }
        !full
    }

    /// One flush at a time serves all who asked before it started.
    fn start_flush<Q: BlockQueue>(&mut self, queue: &mut Q) {
        if self.flush_running || self.flush_next.is_empty() {
            return;
        }
        let flush = block::Command {
            operation: block::Operation::Flush,
            lba: 0,
            blocks: 0,
            data: driver::hal::Iova(0),
            tag: FLUSH_TAG,
        };
        if queue.submit(&flush).is_err() {
            return; // Tried again after each poll.
        }
        self.flush_running = true;
        std::mem::swap(&mut self.flushing, &mut self.flush_next);
        for &slot in &self.flushing {
            let s = self.slots.get_mut(slot);
            s.outstanding = 1;
            s.state = SlotState::Running;
            s.started_ns = self.now_ns.max(1);
        }
    }

    /// The device ended a command.
    fn ended(&mut self, done: Completed) {
        if done.tag == FLUSH_TAG {
            self.flush_running = false;
            while let Some(slot) = self.flushing.pop() {
                let s = self.slots.get_mut(slot);
                s.outstanding = 0;
                if !done.status.is_ok() {
                    s.fail(Status::E_DEVICE, done.status.0);
                }
                self.finish(slot);
            }
            return;
        }
        let (slot, blocks) = self.slots.resolve(done.tag);
        let s = self.slots.get_mut(slot);
        s.outstanding -= 1;
        match done.status {
            DeviceStatus::OK => s.done_blocks += blocks,
            DeviceStatus::COMPARE_FAILURE => s.fail(Status::E_MISCOMPARE, done.status.0),
            status => s.fail(Status::E_DEVICE, status.0),
        }
        if s.outstanding == 0 && s.state == SlotState::Running {
            self.finish(slot);
        }
    }

    /// A starved request that failed meanwhile ends; a device that is gone takes everything with it.
    fn after_poll<Q: BlockQueue>(&mut self, queue: &mut Q) {
        self.start_flush(queue);
        if queue.state() == QueueState::Gone {
            while let Some(slot) = self.starved.pop_front() {
                self.slots.get_mut(slot).fail(Status::E_PATH, 0);
                if self.slots.get(slot).outstanding == 0 {
                    self.finish(slot);
                }
            }
            while let Some(slot) = self.flush_next.pop() {
                self.slots.get_mut(slot).fail(Status::E_PATH, 0);
                self.finish(slot);
            }
        }
    }

    /// Ends a request that the device can no longer touch: its grant and its slot are free, its completion is posted.
    fn finish(&mut self, slot: u32) {
        let s = self.slots.get_mut(slot);
        assert_eq!(s.outstanding, 0, "a request ends only when the device has ended all its pieces");
        let (index, user_data, status, device) = (s.port, s.user_data, s.status, s.device_status);
        let mut bytes = 0;
        if let Some(grant) = s.grant.take() {
            if s.done_blocks > 0 {
                bytes = grant.bytes() / s.blocks * s.done_blocks;
            }
            self.directory.release(grant);
        }
        let Some(port) = self.ports[index].as_mut() else { unreachable!("a queue outlives its requests") };
        self.slots.free(slot, &mut port.in_flight);
        port.complete(user_data, status, u32::try_from(bytes).unwrap_or(u32::MAX), device);
    }

    /// Cancels a request that the device has not got; one that it has ends as it will.
    fn cancel(&mut self, index: usize, user_data: u64, target: u64) {
        let Some(port) = self.ports[index].as_ref() else { return };
        let found = port.in_flight.iter().copied().find(|&s| self.slots.get(s).user_data == target);
        let Some(slot) = found else { return self.answer(index, user_data, Status::E_NOT_FOUND) };
        if self.slots.get(slot).submitted == 0 && self.slots.get(slot).outstanding == 0 {
            self.starved.retain(|&s| s != slot);
            self.held.retain(|&s| s != slot);
            self.flush_next.retain(|&s| s != slot);
            self.slots.get_mut(slot).fail(Status::E_CANCELLED, 0);
            self.finish(slot);
        }
        self.answer(index, user_data, Status::OK);
    }

    /// A protocol violation: the queue goes to the error state; no stale slot is executed and no other queue notices.
    fn fail_port(&mut self, index: usize) {
        self.shared.record_queue_error();
        self.end_unstarted(index, Status::E_FLUSHED);
        if let Some(port) = self.ports[index].as_mut().filter(|port| port.state == PortState::Ready) {
            port.fail();
        }
    }

    /// Tells the control plane of entries and regions that no request uses any more.
    fn acknowledge_drains(&mut self) {
        let mut at = 0;
        while at < self.drains.len() {
            let idle = match self.drains[at].0 {
                Drained::Entry(entry) => self.directory.entry_is_idle(entry),
                Drained::Region(region) => self.directory.region_is_idle(region),
            };
            if idle {
                self.drains.swap_remove(at).1.acknowledge();
            } else {
                at += 1;
            }
        }
    }

    /// Notes who sleeps, and lets go of queues whose last request has ended.
    fn finish_turn(&mut self) {
        for index in 0..self.ports.len() {
            let Some(port) = self.ports[index].as_mut() else { continue };
            port.end_turn();
            if matches!(port.state, PortState::Detaching(_)) && port.in_flight.is_empty() {
                if let Some(Port { state: PortState::Detaching(ticket), .. }) = self.ports[index].take() {
                    ticket.acknowledge();
                }
            }
        }
    }

    /// A command that the device keeps for too long means that only a reset will end it.
    fn look_for_stuck<Q: BlockQueue>(&mut self, queue: &Q) {
        if self.now_ns < self.next_scan_ns {
            return;
        }
        self.next_scan_ns = self.now_ns + SCAN_INTERVAL_NS;
        let oldest = if queue.outstanding() == 0 { None } else { self.slots.oldest_start() };
        let stuck = oldest.is_some_and(|at| self.now_ns.saturating_sub(at) > DEVICE_TIMEOUT_NS);
        self.shared.record_stuck(stuck);
    }
}

/// What the device is asked for. Blocks given up must read as zero afterwards, so a deallocate that does not promise
/// it becomes write zeroes.
fn device_operation(operation: Operation, geometry: &block::Geometry) -> Option<block::Operation> {
    match operation {
        Operation::Read => Some(block::Operation::Read),
        Operation::Write { fua } => Some(block::Operation::Write { fua }),
        Operation::Flush => Some(block::Operation::Flush),
        Operation::Compare => geometry.compare.then_some(block::Operation::Compare),
        Operation::Deallocate if geometry.deallocate && geometry.deallocate_zeroes => {
            Some(block::Operation::Deallocate)
        }
        Operation::Deallocate => {
            geometry.write_zeroes.then_some(block::Operation::WriteZeroes { deallocate: true })
        }
        Operation::WriteZeroes { deallocate } => {
            geometry.write_zeroes.then_some(block::Operation::WriteZeroes { deallocate })
        }
    }
}

/// The code that the application gets for a refusal.
fn status_of(denied: Denied) -> Status {
    match denied {
        Denied::KeyRange => Status::E_KEY_RANGE,
        Denied::Segment => Status::E_SEGMENT,
        Denied::EntryInvalid => Status::E_ENTRY_INVALID,
        Denied::KeyInstance => Status::E_KEY_INSTANCE,
        Denied::Domain => Status::E_PD_MISMATCH,
        Denied::Access => Status::E_ACCESS,
        Denied::Bounds => Status::E_BOUNDS,
        Denied::Alignment => Status::E_ALIGN,
        Denied::Memory => Status::E_LOCAL_MEM,
        Denied::TableCorrupt => Status::E_TABLE_CORRUPT,
        // The engine holds such requests; if one gets here the queue is being torn down.
        Denied::Held => Status::E_ENTRY_INVALID,
    }
}
