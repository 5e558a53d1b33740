//! The quiescent point: what was begun on entries, regions and queues ends here, when every poller has acknowledged that
//! no I/O uses them, or when the timer ends.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use driver::hal::PinnedMemory;
use tpt::{Key, Modification, Purpose, Quiesce, RegionKey, RegionQuiesce, TableError};
use wire::Status;
use wire::control::Reply;

use super::{Caller, Control, QUIESCE_TIMEOUT, Refusal, SessionId};
use crate::engine::QueueId;
use crate::mailbox::{Command, Drained, Ticket};

/// What is being quiesced.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) grants: Vec<(SessionId, Key, Quiesce)>,
    pub(super) regions: Vec<(SessionId, RegionKey, RegionQuiesce)>,
    pub(super) queues: Vec<(SessionId, u32)>,
    tickets: Vec<Arc<Ticket>>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.grants.is_empty() && self.regions.is_empty() && self.queues.is_empty()
    }
}

/// What follows when all of a batch is quiet.
#[derive(Clone, Copy)]
pub(super) enum Then {
    /// Everything in it ends; the caller is told Done.
    End(Caller),
    /// Everything in it ends; nobody waits for it.
    EndQuietly,
    /// The volume operation in the lane goes on.
    Lane,
}

/// What becomes of a grant that cannot be changed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unchanged {
    /// It stays as it was.
    Stays,
    /// It ends, as some of its blocks are somebody else's next.
    Ends,
}

/// A batch on its way to the quiescent point.
pub(super) struct Pending {
    batch: Batch,
    deadline: Option<Instant>,
    then: Then,
}

/// At most this many denials are logged in a second; the rest is counted.
const DENIALS_PER_SECOND: u32 = 10;

/// Keeps the log from being flooded.
#[derive(Default)]
pub(super) struct LogLimit {
    since: Option<Instant>,
    logged: u32,
    suppressed: u64,
}

impl Control {
    /// Sends a command to a poller, in order; what finds its mailbox full is sent by a later [`Control::advance`].
    pub(super) fn send(&mut self, poller: usize, command: Command) {
        self.unsent.push_back((poller, command));
        self.send_commands();
    }

    pub(super) fn send_commands(&mut self) {
        while let Some((poller, command)) = self.unsent.pop_front() {
            if let Err(command) = self.pollers[poller].send(command) {
                self.unsent.push_front((poller, command));
                break;
            }
        }
    }

    /// Asks every poller to acknowledge that it no longer uses something.
    fn drain(&mut self, what: Drained) -> Arc<Ticket> {
        let ticket = Ticket::new(u32::try_from(self.pollers.len()).unwrap_or(u32::MAX));
        for poller in 0..self.pollers.len() {
            self.send(poller, Command::Drain(what, ticket.clone()));
        }
        ticket
    }

    /// Begins to quiesce a grant for `purpose`. From here no request is admitted under it.
    pub(super) fn quiesce_grant(
        &mut self,
        batch: &mut Batch,
        session: SessionId,
        key: Key,
        purpose: Purpose,
    ) -> Result<(), Refusal> {
        let Some(held) = self.sessions.get_mut(&session).and_then(|s| s.grants.get_mut(&key)) else {
            return Err(Refusal::new(Status::E_ENTRY_INVALID, format!("no grant {key} is held")));
        };
        held.revoked |= matches!(purpose, Purpose::Revoke);
        let quiesce = self.tables.begin(None, key, purpose).map_err(table_refusal)?;
        held.quiescing = true;
        batch.grants.push((session, key, quiesce));
        let ticket = self.drain(Drained::Entry(key.index()));
        batch.tickets.push(ticket);
        Ok(())
    }

    /// For a grant that is being closed or revoked already, when its blocks are about to be somebody else's: it must not
    /// open again, and the batch waits for what runs under it.
    pub(super) fn wait_for_ending(&mut self, batch: &mut Batch, session: SessionId, key: Key) {
        if self.quiesce_grant(batch, session, key, Purpose::Revoke).is_err() {
            let ticket = self.drain(Drained::Entry(key.index()));
            batch.tickets.push(ticket);
        }
    }

    /// Begins to end a region.
    pub(super) fn quiesce_region(
        &mut self,
        batch: &mut Batch,
        session: SessionId,
        key: RegionKey,
    ) -> Result<(), Refusal> {
        let quiesce = self.tables.begin_region_delete(None, key).map_err(table_refusal)?;
        if let Some(held) = self.sessions.get_mut(&session).and_then(|s| s.regions.get_mut(&key)) {
            held.quiescing = true;
        }
        batch.regions.push((session, key, quiesce));
        let ticket = self.drain(Drained::Region(key.index()));
        batch.tickets.push(ticket);
        Ok(())
    }

    /// Begins to take a queue away from its poller.
    pub(super) fn quiesce_queue(&mut self, batch: &mut Batch, session: SessionId, queue: u32) {
        let Some(held) = self.sessions.get_mut(&session).and_then(|s| s.queues.get_mut(&queue)) else {
            return;
        };
        held.ending = true;
        let (poller, ticket) = (held.poller, Ticket::new(1));
        self.send(poller, Command::Detach(QueueId(queue), ticket.clone()));
        batch.queues.push((session, queue));
        batch.tickets.push(ticket);
    }

    /// Waits for the batch, for ever or until the timer ends.
    pub(super) fn wait_for(&mut self, batch: Batch, timeout: Option<Duration>, then: Then) {
        self.pending.push(Pending { batch, deadline: timeout.map(|t| Instant::now() + t), then });
    }

    pub(super) fn advance_pending(&mut self, now: Instant) {
        let mut at = 0;
        while at < self.pending.len() {
            let pending = &mut self.pending[at];
            pending.batch.tickets.retain(|ticket| !ticket.is_done());
            if pending.batch.tickets.is_empty() {
                let Pending { batch, then, .. } = self.pending.swap_remove(at);
                self.quiet(batch, then);
            } else if pending.deadline.is_some_and(|deadline| now >= deadline) {
                let Pending { batch, then, .. } = self.pending.swap_remove(at);
                self.timed_out(batch, then);
            } else {
                at += 1;
            }
        }
    }

    fn quiet(&mut self, batch: Batch, then: Then) {
        match then {
            Then::End(caller) => {
                self.end_batch(batch);
                self.reply(caller, Reply::Done);
            }
            Then::EndQuietly => self.end_batch(batch),
            Then::Lane => self.lane_quiet(batch),
        }
    }

    fn timed_out(&mut self, batch: Batch, then: Then) {
        match then {
            Then::End(caller) => {
                self.cancel_batch(batch);
                let text =
                    format!("I/O under it was still running after {QUIESCE_TIMEOUT:?}; it stays as it was");
                self.answer(caller, Err(Refusal::new(Status::E_BUSY_TIMEOUT, text)));
            }
            Then::EndQuietly => self.wait_for(batch, None, Then::EndQuietly),
            Then::Lane => self.lane_timed_out(batch),
        }
    }

    /// Ends all that is in a quiet batch: entries are free, memory is unmapped and given back.
    pub(super) fn end_batch(&mut self, batch: Batch) {
        for (session, key, quiesce) in batch.grants {
            self.tables.finish_delete(quiesce);
            if let Some(session) = self.sessions.get_mut(&session) {
                session.grants.remove(&key);
            }
        }
        for (session, key, quiesce) in batch.regions {
            self.tables.finish_region_delete(quiesce);
            let Some(session) = self.sessions.get_mut(&session) else { continue };
            if let Some(held) = session.regions.remove(&key) {
                session.pinned_bytes -= held.bytes;
                drop(held.mapping);
            }
        }
        for (session, queue) in batch.queues {
            let Some(session) = self.sessions.get_mut(&session) else { continue };
            let Some(held) = session.queues.remove(&queue) else { continue };
            self.pollers[held.poller].waker().forget(held.eventfd.as_fd());
            session.pinned_bytes -= held.memory.len() as u64;
            self.completed_before += held.counters.completed();
        }
        self.forget_empty_sessions();
    }

    /// The timer ended: entries go back to what they were, but for those that were revoked meanwhile, which are waited
    /// for and end.
    pub(super) fn cancel_batch(&mut self, batch: Batch) {
        let mut left = Batch { regions: batch.regions, queues: batch.queues, ..Batch::default() };
        for (session, key, quiesce) in batch.grants {
            let held = self.sessions.get_mut(&session).and_then(|s| s.grants.get_mut(&key));
            match held {
                Some(held) if !held.revoked => {
                    held.quiescing = false;
                    self.tables.cancel(quiesce);
                }
                _ => left.grants.push((session, key, quiesce)),
            }
        }
        if !left.is_empty() {
            left.tickets = batch.tickets;
            self.wait_for(left, None, Then::EndQuietly);
        }
    }

    /// A quiet batch of modifications: each grant of it gets the new ranges, and is open again.
    pub(super) fn modify_batch(
        &mut self,
        batch: Batch,
        ranges: &[tpt::LbaRange],
        bytes: u64,
        unchanged: Unchanged,
    ) {
        for (session, key, quiesce) in batch.grants {
            let held = self.sessions.get_mut(&session).and_then(|s| s.grants.get_mut(&key));
            let quiesce = match held {
                Some(held) if !held.revoked => {
                    held.quiescing = false;
                    let change = Modification { access: None, ranges: Some(ranges) };
                    match self.tables.finish_modify(quiesce, &change) {
                        Ok(()) => {
                            held.bytes = bytes;
                            continue;
                        }
                        Err((quiesce, error)) if unchanged == Unchanged::Stays => {
                            tracing::warn!(session = session.0, %key, %error, "a grant keeps its old size");
                            self.tables.cancel(quiesce);
                            continue;
                        }
                        Err((quiesce, error)) => {
                            tracing::warn!(session = session.0, %key, %error, "a grant that cannot shrink ends");
                            quiesce
                        }
                    }
                }
                _ => quiesce, // Revoked, or closed meanwhile.
            };
            self.tables.finish_delete(quiesce);
            self.sessions.get_mut(&session).map(|s| s.grants.remove(&key));
        }
        self.forget_empty_sessions();
    }

    /// The connection ended: everything the session held is taken back, as soon as no I/O uses it.
    pub fn disconnect(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if std::mem::replace(&mut session.closing, true) {
            return;
        }
        tracing::info!(session = id.0, "session ended");
        let queues: Vec<u32> = session.queues.iter().filter(|(_, q)| !q.ending).map(|(&id, _)| id).collect();
        let grants: Vec<Key> = session.grants.keys().copied().collect();
        let regions: Vec<RegionKey> =
            session.regions.iter().filter(|(_, r)| !r.quiescing).map(|(&key, _)| key).collect();
        let mut batch = Batch::default();
        for queue in queues {
            self.quiesce_queue(&mut batch, id, queue);
        }
        for key in grants {
            // One that is quiescing already ends with that, as it is marked revoked.
            let _ = self.quiesce_grant(&mut batch, id, key, Purpose::Revoke);
        }
        for key in regions {
            let _ = self.quiesce_region(&mut batch, id, key);
        }
        self.wait_for(batch, None, Then::EndQuietly);
    }

    fn forget_empty_sessions(&mut self) {
        self.sessions.retain(|_, session| !session.closing || !session.is_empty());
    }

    /// Logs what pollers refused, at a bounded rate.
    pub(super) fn log_denials(&mut self, now: Instant) {
        let limit = &mut self.denials_logged;
        let since = *limit.since.get_or_insert(now);
        if now.saturating_duration_since(since) > Duration::from_secs(1) {
            if limit.suppressed > 0 {
                tracing::warn!(suppressed = limit.suppressed, "more requests were denied");
            }
            *limit = LogLimit { since: Some(now), ..LogLimit::default() };
        }
        for poller in &self.pollers {
            while let Some(denial) = poller.shared().take_denial() {
                if limit.logged < DENIALS_PER_SECOND {
                    limit.logged += 1;
                    tracing::warn!(session = denial.session, key = %denial.key, status = %denial.status, "request denied");
                } else {
                    limit.suppressed += 1;
                }
            }
        }
    }
}

/// What an application is told when the tables refuse.
pub(super) fn table_refusal(error: TableError) -> Refusal {
    let status = match error {
        TableError::KeyRange => Status::E_KEY_RANGE,
        TableError::Domain => Status::E_PD_MISMATCH,
        TableError::EntryInvalid => Status::E_ENTRY_INVALID,
        TableError::KeyInstance => Status::E_KEY_INSTANCE,
        TableError::Parameter | TableError::Overlap => Status::E_PARAM,
        TableError::NoResources | TableError::Ceiling => Status::E_NO_RESOURCES,
        TableError::Busy => Status::E_BUSY_TIMEOUT,
    };
    Refusal::new(status, error.to_string())
}
