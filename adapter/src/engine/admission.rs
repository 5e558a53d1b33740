//! From a queue's entry to an admitted request: parsed, checked, held, cancelled or refused.
//!
//! All of it is decided on the stack. A request gets a slot when the device has taken it or when it must wait: one that is
//! refused never has one.

use driver::block::{self, BlockQueue, DeviceStatus};
use driver::hal::Iova;
use tpt::{Denied, Directory, Domain, ExtensionKey, Grant, Key, Operation, Request};
use wire::Status;
use wire::layout::{SubmissionEntry, opcode};

use super::State;
use super::bytes::writes;
use super::files::{Outside, Reach, is_inside};
use super::gates::Claim;
use super::lengths::Lengths;
use super::lists::Refused;
use super::parse::{self, Parsed, parse};
use super::port::PortState;
use super::share::Allowance;
use super::slots::{Aside, Asked, SlotState, Slots};
use crate::mailbox::Denial;

/// Requests that a cancel looks at for the price of one more entry of its queue's share.
const CANCEL_COST: usize = 8;

/// Entries that are copied, and whose keys are looked for, before the first is decided.
pub(super) const BATCH: usize = 32;

/// Entries that were taken from a queue.
pub(super) struct Batch {
    pub(super) number: usize,
    pub(super) end: End,
}

/// Why no more were taken.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// No more were wanted.
    Full,
    /// There are no more, or the application does not consume completions.
    Empty,
    /// The application says what cannot be.
    Violation,
}

/// What the short way of nearly all requests works with: see [`State::begin_plain`].
struct ShortWay<'a, Q> {
    queue: &'a mut Q,
    slots: &'a mut Slots,
    directory: &'a mut Directory,
    lengths: &'a Lengths,
    domain: Domain,
    /// Of the port.
    index: usize,
    now_ns: u64,
}

impl<Q: BlockQueue> ShortWay<'_, Q> {
    /// Begins a request, or says that it goes the long way, with which grant if it has one.
    #[inline(always)]
    fn begin<const IN_FILE: bool>(
        &mut self,
        request: &Request,
        operation: block::Operation,
        user_data: u64,
    ) -> Result<(), Option<Grant>> {
        let Self { queue, slots, directory, lengths, domain, index, now_ns } = self;
        let (grant, inside) = if IN_FILE {
            let Some((grant, file)) = directory.check_in_file(*domain, request) else { return Err(None) };
            (grant, is_inside(lengths, file, request))
        } else {
            let Some(grant) = directory.check_plain(*domain, request) else { return Err(None) };
            let is_inside = |file| is_inside(lengths, file, request);
            let inside = !grant.is_file() || directory.context(&grant).is_some_and(is_inside);
            (grant, inside)
        };
        let most = u64::from(queue.geometry().most_blocks(operation));
        let Some(piece) = grant.as_one(most).filter(|_| inside) else { return Err(Some(grant)) };
        #[allow(clippy::cast_possible_truncation)] // no more than `most`
        let blocks = piece.blocks as u32;
        let mut vacancy = slots.vacancy();
        let tag = vacancy.tag() | piece.blocks << 32;
        vacancy.begin(user_data, grant, blocks, *now_ns);
        let data = Iova(piece.iova.0);
        let command = block::Command { operation, lba: piece.lba.0, blocks, data, tag };
        if queue.submit(&command).is_err() {
            return Err(vacancy.empty());
        }
        vacancy.take(*index);
        Ok(())
    }
}

impl State {
    /// Ends every request of the port that the device has not got; what it has ends with `status` too, but only when
    /// the device is done with it.
    pub(super) fn end_unstarted(&mut self, index: usize, status: Status) {
        let slots = &self.slots;
        let keep = |slot: &u32| slots.port(*slot) != index || slots.get(*slot).outstanding > 0;
        self.starved.retain(keep);
        self.held.retain(keep);
        self.gated.retain(keep);
        self.flush_next.retain(keep);
        self.throttle.retain(keep);
        self.management.retain(keep);
        let mut next = 0;
        while let Some(slot) = self.slots.next_of(index, next) {
            next = slot + 1;
            let s = self.slots.get_mut(slot);
            if s.state == SlotState::Landing {
                continue; // Its work is done.
            }
            s.fail(status, 0);
            if self.slots.get(slot).outstanding == 0 {
                self.finish(slot);
            }
        }
    }

    /// Looks again at requests that were held or found the device full.
    #[cold]
    pub(super) fn retry<Q: BlockQueue>(&mut self, queue: &mut Q, most: usize) -> usize {
        let mut work = self.retry_landing();
        for _ in 0..most.min(self.held.len()) {
            let Some(slot) = self.held.pop_front() else { break };
            let asked = *self.slots.asked(slot);
            self.admit(queue, &asked, Some(slot), None);
            // Still held: it is at the end now, and the others have their turn first.
            work += usize::from(self.held.back() != Some(&slot));
        }
        for _ in 0..most.min(self.starved.len()) {
            let Some(slot) = self.starved.pop_front() else { break };
            let submitted = self.slots.get(slot).submitted;
            // One that got only a part waits at the end for the next: a large request does not keep small ones waiting.
            if !self.start(queue, slot) && self.slots.get(slot).submitted == submitted {
                // No room at all: it keeps its place at the front.
                if let Some(back) = self.starved.pop_back() {
                    self.starved.push_front(back);
                }
                break;
            }
            work += 1;
        }
        work
    }

    /// Copies the next entries of a queue, each once, into memory of the engine: at most `most`, and nothing behind a cancel
    /// or a management request, which cost more than their part of a turn. Room for their completions is theirs from then on.
    pub(super) fn take_batch(&mut self, index: usize, most: usize, allowance: &mut Allowance) -> Batch {
        let Self { ports, taken, directory, .. } = self;
        let Some(port) = ports[index].as_mut() else { return Batch { number: 0, end: End::Empty } };
        let into = &mut taken[..most.min(BATCH)];
        let (most, mut enough) = (into.len(), false);
        let mut goes_on = |entry: &SubmissionEntry| {
            enough =
                !allowance.take(entry) || entry.opcode == opcode::CANCEL || opcode::manages(entry.opcode);
            !enough
        };
        // Twice: a hint in the loop would have it read again what it knows, of which the near one has no need.
        let number = if directory.is_far() {
            port.ring.take_into(into, |entry| {
                directory.prefetch(Key(entry.key));
                goes_on(entry)
            })
        } else {
            port.ring.take_into(into, goes_on)
        };
        match number {
            Ok(number) if enough || number == most => Batch { number, end: End::Full },
            Ok(number) => Batch { number, end: End::Empty },
            Err(_) => Batch { number: 0, end: End::Violation },
        }
    }

    /// Does what the first `number` entries that were copied ask for. Returns what it costs of the queue's share: 1 for each,
    /// and for a cancel more, as it looks through the queue's requests.
    #[inline(never)] // The turn around it would take registers from its loop.
    pub(super) fn process_batch<Q: BlockQueue>(
        &mut self,
        queue: &mut Q,
        index: usize,
        number: usize,
    ) -> usize {
        let (mut at, mut cost) =
            if self.in_files { self.go_on_in_files(queue, index, number) } else { (0, 0) };
        loop {
            let (begun, mut granted) = self.begin_plain::<Q, false>(queue, index, at, number);
            at += begun;
            cost += begun;
            if at >= number {
                return cost;
            }
            if granted.is_none() {
                let (begun, its) = self.begin_in_file(queue, index, at, number);
                at += begun;
                cost += begun;
                self.in_files = begun > 0;
                if begun > 0 && its.is_none() {
                    continue;
                }
                granted = its;
            }
            let Some(&entry) = self.taken.get(at).filter(|_| at < number) else { return cost };
            cost += self.process(queue, index, &entry, granted);
            at += 1;
        }
    }

    /// The beginning of a batch that goes the way that the last one went: how many entries are done, and what they cost.
    #[inline(never)]
    fn go_on_in_files<Q: BlockQueue>(
        &mut self,
        queue: &mut Q,
        index: usize,
        number: usize,
    ) -> (usize, usize) {
        let (begun, granted) = self.begin_in_file(queue, index, 0, number);
        self.in_files = begun > 0;
        match self.taken.get(begun) {
            Some(&entry) if granted.is_some() => {
                (begun + 1, begun + self.process(queue, index, &entry, granted))
            }
            _ => (begun, begun),
        }
    }

    /// The short way of nearly all requests: reads and writes in the first range of their grants, of one range of memory and
    /// a size that the device takes, under no limit and with no gate in sight, while the device has room. Nothing is written
    /// of them but what their end will need, and only when the device has taken their one command. Begins those from `at` to
    /// the first of which any of this is not so. Returns how many have begun, and the grant of that one, if it has it.
    ///
    /// With `IN_FILE` the same of files and any one of their extensions.
    #[inline(always)]
    fn begin_plain<Q: BlockQueue, const IN_FILE: bool>(
        &mut self,
        queue: &mut Q,
        index: usize,
        at: usize,
        number: usize,
    ) -> (usize, Option<Grant>) {
        let Self { ports, slots, directory, lengths, gates, throttle, taken, now_ns, .. } = self;
        let (Some(port), Some(entries)) = (ports[index].as_ref(), taken.get(at..number)) else {
            return (0, None);
        };
        let before = slots.used();
        let mut short =
            ShortWay { queue, slots, directory, lengths, domain: port.domain, index, now_ns: *now_ns };
        let mut granted = None;
        for entry in entries {
            let Some(request) = parse::plain(entry) else { break };
            if throttle.limits(request.key) {
                break;
            }
            // Each with its operation known, which is then not kept anywhere.
            let begun = match request.operation {
                Operation::Read => {
                    let request = Request { operation: Operation::Read, ..request };
                    short.begin::<IN_FILE>(&request, block::Operation::Read, entry.user_data)
                }
                Operation::Write { fua } if !gates.any() => {
                    short.begin::<IN_FILE>(&request, block::Operation::Write { fua }, entry.user_data)
                }
                _ => break,
            };
            if let Err(its) = begun {
                granted = its;
                break;
            }
        }
        (slots.used() - before, granted)
    }

    /// The short way in the other extensions of files, apart from that of nearly all, which it would make longer.
    #[inline(never)]
    fn begin_in_file<Q: BlockQueue>(
        &mut self,
        queue: &mut Q,
        index: usize,
        at: usize,
        number: usize,
    ) -> (usize, Option<Grant>) {
        self.begin_plain::<Q, true>(queue, index, at, number)
    }

    /// The long way, for anything that an entry may ask for, and may be `granted` already. Returns what it costs of the
    /// queue's share.
    #[cold]
    fn process<Q: BlockQueue>(
        &mut self,
        queue: &mut Q,
        index: usize,
        entry: &SubmissionEntry,
        granted: Option<Grant>,
    ) -> usize {
        match parse(entry) {
            Ok(Parsed::Io { request, .. })
                if request.operation == Operation::WriteBytes && !self.takes_bytes() =>
            {
                self.answer(index, entry.user_data, Status::E_OPCODE)
            }
            Ok(Parsed::Io { request, deadline_us, segments, durable, append }) => {
                let deadline_ns = self.deadline(deadline_us);
                let user_data = entry.user_data;
                let asked = Asked { port: index, user_data, request, segments, durable, append, deadline_ns };
                self.admit(queue, &asked, None, granted);
                1
            }
            Ok(Parsed::Manage { memory, length, room, deadline_us }) => {
                let operation = Operation::Write { fua: false };
                let extension = ExtensionKey::NONE;
                let request = Request { operation, key: Key(0), extension, offset: room, length, memory };
                let deadline_ns = self.deadline(deadline_us);
                let user_data = entry.user_data;
                self.manage(&Asked {
                    port: index,
                    user_data,
                    request,
                    segments: 0,
                    durable: false,
                    append: false,
                    deadline_ns,
                })
            }
            Ok(Parsed::Cancel { target }) => self.cancel(index, entry.user_data, target),
            Err(status) => self.answer(index, entry.user_data, status),
        }
    }

    /// When a request taken now is late.
    fn deadline(&self, deadline_us: u32) -> u64 {
        match deadline_us {
            0 => u64::MAX,
            us => self.now_ns.saturating_add(u64::from(us) * 1000),
        }
    }

    /// Answers a request that never got a slot. Returns what it costs of the queue's share.
    #[cold]
    fn answer(&mut self, index: usize, user_data: u64, status: Status) -> usize {
        if let Some(port) = self.ports[index].as_mut() {
            port.complete(user_data, status, 0, 0, 0);
        }
        1
    }

    /// Checks a request against the tables, unless it is `granted`, and starts it, holds it or ends it. One that was held has
    /// a slot already.
    #[cold]
    pub(super) fn admit<Q: BlockQueue>(
        &mut self,
        queue: &mut Q,
        asked: &Asked,
        slot: Option<u32>,
        granted: Option<Grant>,
    ) {
        if granted.is_none() && self.now_ns > asked.deadline_ns {
            return self.refuse(asked, slot, Status::E_DEADLINE);
        }
        let Some(port) = self.ports[asked.port].as_ref() else {
            unreachable!("a queue outlives its requests")
        };
        let domain = port.domain;
        let placed = if asked.append { self.place(domain, asked) } else { Ok(*asked) };
        let asked = match &placed {
            Ok(placed) => placed,
            Err(denied) => return self.turn_away(asked, slot, *denied),
        };
        let checked = match (granted, asked.segments) {
            (Some(grant), _) => Ok(grant),
            (None, 0) => self.directory.check(domain, &asked.request),
            (None, _) => self.directory.check_scattered(domain, &asked.request),
        };
        let grant = match checked {
            Ok(grant) => grant,
            Err(Denied::Bounds) => return self.admit_outside(queue, asked, slot),
            // Nobody did what he may not: to read zeros there is the application's own matter, to write needs room.
            Err(Denied::Hole) if writes(asked.request.operation) => {
                return self.refuse(asked, slot, Status::E_NO_RESOURCES);
            }
            Err(Denied::Hole) => return self.refuse(asked, slot, Status::E_HOLE),
            Err(denied) => return self.turn_away(asked, slot, denied),
        };
        let reach = match self.reach(asked, &grant) {
            Ok(reach) => reach,
            Err(status) => {
                self.directory.release(grant);
                return self.refuse(asked, slot, status);
            }
        };
        let slot = self.slot_for(asked, slot);
        if let Err(volume) = self.pay_for(asked) {
            self.directory.release(grant);
            return self.wait_for_tokens(asked, slot, volume);
        }
        let claim = match self.gather(slot, asked, &grant) {
            Ok(claim) => claim,
            Err(refused) => {
                self.directory.release(grant);
                self.throttle.pay_back(&asked.request);
                return match refused {
                    Refused::Later => self.hold(asked, Some(slot)),
                    Refused::Denied(denied) => self.turn_away(asked, Some(slot), denied),
                };
            }
        };
        if reach != Reach::Inside {
            self.slots.beside_mut(slot).reach = reach;
        }
        let s = self.slots.get_mut(slot);
        s.give(grant);
        if asked.request.operation == Operation::Flush {
            if self.ports[asked.port].as_mut().is_some_and(|port| port.witness.is_news()) {
                s.fail(Status::E_DEVICE, DeviceStatus::ABORTED.0);
                return self.finish(slot);
            }
            s.state = SlotState::FlushWaiting;
            self.flush_next.push(slot);
            self.note_deadline(asked.deadline_ns);
            self.start_flush(queue);
        } else if claim.is_some() {
            s.state = SlotState::Gated;
            self.slots.beside_mut(slot).claim = claim;
            self.gated.push(slot);
            self.note_deadline(asked.deadline_ns);
        } else {
            self.start(queue, slot);
        }
    }

    /// It reaches to where nothing is granted: of a file that may be well, else it is refused.
    #[cold]
    fn admit_outside<Q: BlockQueue>(&mut self, queue: &mut Q, asked: &Asked, slot: Option<u32>) {
        let Some(port) = self.ports[asked.port].as_ref() else {
            unreachable!("a queue outlives its requests")
        };
        match self.outside(port.domain, asked) {
            Outside::Refuse(Status::E_BOUNDS) => self.turn_away(asked, slot, Denied::Bounds),
            Outside::Refuse(status) => self.refuse(asked, slot, status),
            Outside::Empty => self.refuse(asked, slot, Status::OK),
            Outside::Less(request) => self.admit(queue, &Asked { request, ..*asked }, slot, None),
        }
    }

    /// Gets what a granted request needs beside its grant: its list, or a buffer, and a claim where blocks are gated.
    fn gather(&mut self, slot: u32, asked: &Asked, grant: &Grant) -> Result<Option<Claim>, Refused> {
        let operation = asked.request.operation;
        if operation == Operation::WriteBytes {
            return self.take_buffer(slot, asked, grant);
        }
        if asked.segments != 0 {
            self.take_list(slot, asked, grant.block_shift())?;
        }
        if !writes(operation) {
            return Ok(None);
        }
        let claim = self.claim_if_closed(grant);
        if claim.is_err()
            && let Aside::List(list) = self.slots.take_beside(slot).aside
        {
            self.give_list(list);
        }
        claim
    }

    /// The slot of a request that needs one for more than to be ended.
    pub(super) fn slot_for(&mut self, asked: &Asked, slot: Option<u32>) -> u32 {
        slot.unwrap_or_else(|| {
            let slot = self.slots.next_free();
            self.slots.allocate(asked.port, asked.user_data);
            self.slots.note(slot, asked);
            slot
        })
    }

    /// The tables did not grant it: it waits, or ends.
    #[cold]
    pub(super) fn turn_away(&mut self, asked: &Asked, slot: Option<u32>, denied: Denied) {
        if denied == Denied::Held {
            return self.hold(asked, slot);
        }
        let status = status_of(denied);
        if let Some(port) = &self.ports[asked.port] {
            let denial = Denial { session: port.session, key: asked.request.key, status };
            self.shared.record_denial(denial, &port.gate);
        }
        self.refuse(asked, slot, status);
    }

    /// It waits, with nothing counted as active, and is checked again from the start.
    fn hold(&mut self, asked: &Asked, slot: Option<u32>) {
        let slot = self.slot_for(asked, slot);
        self.slots.get_mut(slot).state = SlotState::Held;
        self.held.push_back(slot);
        self.note_deadline(asked.deadline_ns);
    }

    /// Ends a request of which nothing is granted, or nothing more than that.
    pub(super) fn refuse(&mut self, asked: &Asked, slot: Option<u32>, status: Status) {
        match slot {
            Some(slot) => {
                self.slots.get_mut(slot).fail(status, 0);
                self.finish(slot);
            }
            None => {
                self.answer(asked.port, asked.user_data, status);
            }
        }
    }

    /// Cancels a request that the device, or the control plane, has not got; one that it has ends as it will. Returns what it costs of the
    /// queue's share.
    #[cold]
    fn cancel(&mut self, index: usize, user_data: u64, target: u64) -> usize {
        let Some(port) = self.ports[index].as_ref() else { return 1 };
        let cost = 1 + port.in_flight() / CANCEL_COST;
        let slots = &self.slots;
        let mut all = std::iter::successors(slots.next_of(index, 0), |slot| slots.next_of(index, slot + 1));
        let Some(slot) = all.find(|&slot| self.slots.get(slot).user_data == target) else {
            self.answer(index, user_data, Status::E_NOT_FOUND);
            return cost;
        };
        let begun =
            self.slots.get(slot).state == SlotState::Managed && !self.management.withdraw(&self.slots, slot);
        let s = self.slots.get_mut(slot);
        if s.submitted == 0 && s.outstanding == 0 && s.state != SlotState::Landing && !begun {
            s.fail(Status::E_CANCELLED, 0);
            match s.state {
                SlotState::Starved => self.starved.retain(|&s| s != slot),
                SlotState::Held => self.held.retain(|&s| s != slot),
                SlotState::Throttled => self.throttle.retain(|&s| s != slot),
                SlotState::Gated => self.gated.retain(|&s| s != slot),
                SlotState::FlushWaiting => self.flush_next.retain(|&s| s != slot),
                SlotState::Managed => self.management.retain(|&s| s != slot),
                SlotState::Free | SlotState::Taken | SlotState::Running | SlotState::Landing => {}
            }
            self.finish(slot);
        } else if s.submitted == 0 && matches!(self.slots.aside(slot), Aside::Buffer(_)) {
            // It is still reading: it ends with that, and writes nothing.
            self.slots.get_mut(slot).fail(Status::E_CANCELLED, 0);
        }
        self.answer(index, user_data, Status::OK);
        cost
    }

    /// A protocol violation: the queue goes to the error state; no stale slot is executed and no other queue notices.
    pub(super) fn fail_port(&mut self, index: usize) {
        self.shared.record_queue_error();
        self.end_unstarted(index, Status::E_FLUSHED);
        if let Some(port) = self.ports[index].as_mut().filter(|port| port.state == PortState::Ready) {
            port.fail();
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
        Denied::Hole => Status::E_HOLE,
        // The engine holds such requests; if one gets here the queue is being torn down.
        Denied::Held => Status::E_ENTRY_INVALID,
    }
}
