//! From a queue's entry to an admitted request: parsed, checked, held, cancelled or refused.

use driver::block::BlockQueue;
use tpt::{Denied, Domain, Grant, Operation};
use wire::Status;
use wire::layout::SubmissionEntry;

use super::bytes::writes;
use super::gates::Claim;
use super::lists::Refused;
use super::port::PortState;
use super::slots::{Aside, New, Slot, SlotState};
use super::{Parsed, State, parse};
use crate::mailbox::Denial;

/// Requests that a cancel looks at for the price of one more entry of its queue's share.
const CANCEL_COST: usize = 8;

impl State {
    /// Ends every request of the port that the device has not got; what it has ends with `status` too, but only when
    /// the device is done with it.
    pub(super) fn end_unstarted(&mut self, index: usize, status: Status) {
        let slots = &self.slots;
        let keep = |slot: &u32| slots.get(*slot).port != index || slots.get(*slot).outstanding > 0;
        self.starved.retain(keep);
        self.held.retain(keep);
        self.gated.retain(keep);
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
    pub(super) fn retry<Q: BlockQueue>(&mut self, queue: &mut Q, most: usize) -> usize {
        let mut work = 0;
        for _ in 0..most.min(self.held.len()) {
            let Some(slot) = self.held.pop_front() else { break };
            self.admit(queue, slot);
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

    /// Returns what it costs of the queue's share: 1, and for a cancel more, as it looks through the queue's requests.
    pub(super) fn process<Q: BlockQueue>(
        &mut self,
        queue: &mut Q,
        index: usize,
        entry: &SubmissionEntry,
    ) -> usize {
        match parse(entry) {
            Ok(Parsed::Io { request, .. })
                if request.operation == Operation::WriteBytes && !self.takes_bytes() =>
            {
                self.answer(index, entry.user_data, Status::E_OPCODE);
            }
            Ok(Parsed::Io { request, deadline_us, segments, durable }) => {
                let deadline_ns = match deadline_us {
                    0 => u64::MAX,
                    us => self.now_ns.saturating_add(u64::from(us) * 1000),
                };
                let Some(port) = self.ports[index].as_mut() else { return 1 };
                let user_data = entry.user_data;
                let new = New { port: index, user_data, request, segments, durable, deadline_ns };
                let slot = self.slots.allocate(new, &mut port.in_flight);
                self.admit(queue, slot);
            }
            Ok(Parsed::Cancel { target }) => {
                let looked_at = self.ports[index].as_ref().map_or(0, |port| port.in_flight.len());
                self.cancel(index, entry.user_data, target);
                return 1 + looked_at / CANCEL_COST;
            }
            Err(status) => self.answer(index, entry.user_data, status),
        }
        1
    }

    /// Answers a request that never got a slot.
    pub(super) fn answer(&mut self, index: usize, user_data: u64, status: Status) {
        if let Some(port) = self.ports[index].as_mut() {
            port.complete(user_data, status, 0, 0);
        }
    }

    /// Checks a request against the tables and starts it, holds it or ends it.
    pub(super) fn admit<Q: BlockQueue>(&mut self, queue: &mut Q, slot: u32) {
        let &Slot { port, request, segments, deadline_ns, .. } = self.slots.get(slot);
        if self.now_ns > deadline_ns {
            self.slots.get_mut(slot).fail(Status::E_DEADLINE, 0);
            return self.finish(slot);
        }
        let Some(domain) = self.ports[port].as_ref().map(|p| p.domain) else { return self.finish(slot) };
        let checked = match segments {
            0 => self.directory.check(domain, &request),
            _ => self.directory.check_scattered(domain, &request),
        };
        let grant = match checked {
            Ok(grant) => grant,
            Err(Denied::Held) => return self.hold(slot),
            Err(denied) => return self.deny(slot, denied),
        };
        let operation = request.operation;
        let mut claim = None;
        if segments != 0 || operation == Operation::WriteBytes || (self.gates.any() && writes(operation)) {
            match self.gather(slot, domain, &grant) {
                Ok(its) => claim = its,
                Err(refused) => {
                    self.directory.release(grant);
                    return match refused {
                        Refused::Later => self.hold(slot),
                        Refused::Denied(denied) => self.deny(slot, denied),
                    };
                }
            }
        }
        let s = self.slots.get_mut(slot);
        s.blocks = grant.blocks();
        s.grant = Some(grant);
        if operation == Operation::Flush {
            s.state = SlotState::FlushWaiting;
            self.flush_next.push(slot);
            self.note_deadline(deadline_ns);
            self.start_flush(queue);
        } else if claim.is_some() {
            s.claim = claim;
            s.state = SlotState::Gated;
            self.gated.push(slot);
            self.note_deadline(deadline_ns);
        } else {
            self.start(queue, slot);
        }
    }

    /// Gets what a granted request needs beside its slot: its list, or a buffer, and a claim where blocks are gated.
    #[cold]
    fn gather(&mut self, slot: u32, domain: Domain, grant: &Grant) -> Result<Option<Claim>, Refused> {
        let &Slot { segments, request, .. } = self.slots.get(slot);
        if request.operation == Operation::WriteBytes {
            return self.take_buffer(slot, grant);
        }
        if segments != 0 {
            self.take_list(slot, domain, grant.block_shift())?;
        }
        if !writes(request.operation) {
            return Ok(None);
        }
        let claim = self.claim_if_closed(grant);
        if claim.is_err()
            && let Aside::List(list) = std::mem::replace(&mut self.slots.get_mut(slot).aside, Aside::Nothing)
        {
            self.give_list(list);
        }
        claim
    }

    /// It waits, with nothing counted as active, and is checked again from the start.
    #[cold]
    fn hold(&mut self, slot: u32) {
        let s = self.slots.get_mut(slot);
        s.state = SlotState::Held;
        let deadline_ns = s.deadline_ns;
        self.held.push_back(slot);
        self.note_deadline(deadline_ns);
    }

    #[cold]
    fn deny(&mut self, slot: u32, denied: Denied) {
        let status = status_of(denied);
        let s = self.slots.get_mut(slot);
        s.fail(status, 0);
        let key = s.request.key;
        if let Some(port) = &self.ports[s.port] {
            let denial = Denial { session: port.session, key, status };
            self.shared.record_denial(denial, &port.gate);
        }
        self.finish(slot);
    }

    /// Cancels a request that the device has not got; one that it has ends as it will.
    pub(super) fn cancel(&mut self, index: usize, user_data: u64, target: u64) {
        let Some(port) = self.ports[index].as_ref() else { return };
        let found = port.in_flight.iter().copied().find(|&s| self.slots.get(s).user_data == target);
        let Some(slot) = found else { return self.answer(index, user_data, Status::E_NOT_FOUND) };
        let s = self.slots.get_mut(slot);
        if s.submitted == 0 && s.outstanding == 0 {
            s.fail(Status::E_CANCELLED, 0);
            match s.state {
                SlotState::Starved => self.starved.retain(|&s| s != slot),
                SlotState::Held => self.held.retain(|&s| s != slot),
                SlotState::Gated => self.gated.retain(|&s| s != slot),
                SlotState::FlushWaiting => self.flush_next.retain(|&s| s != slot),
                SlotState::Free | SlotState::Taken | SlotState::Running => {}
            }
            self.finish(slot);
        } else if s.submitted == 0 && s.request.operation == Operation::WriteBytes {
            s.fail(Status::E_CANCELLED, 0); // It is still reading: it ends with that, and writes nothing.
        }
        self.answer(index, user_data, Status::OK);
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
        // The engine holds such requests; if one gets here the queue is being torn down.
        Denied::Held => Status::E_ENTRY_INVALID,
    }
}
