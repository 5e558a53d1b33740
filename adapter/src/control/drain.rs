//! The quiescent point: what was begun on entries, regions and queues ends here, when every poller has acknowledged that
//! no I/O uses them, or when the timer ends.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use driver::hal::PinnedMemory;
use tpt::{Key, Modification, Purpose, Quiesce, RegionKey, RegionQuiesce, TableError};
use wire::Status;
use wire::control::Reply;

use super::limits::What;
use super::memory::Moving;
use super::registrar::Kept;
use super::users::Suppressed;
use super::{Caller, Control, QUIESCE_TIMEOUT, Refusal, SessionId};
use crate::engine::QueueId;
use crate::mailbox::{Command, Denial, Drained, Ticket};

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
    /// The operation on files of this volume goes on.
    Files(store::VolumeId),
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
                // Where memory goes with it, the caller is told when that is given back.
                if !self.end_batch_for(batch, Some(caller)) {
                    self.reply(caller, Reply::Done);
                }
            }
            Then::EndQuietly => self.end_batch(batch),
            Then::Lane => self.lane_quiet(batch),
            Then::Files(volume) => self.files_quiet(volume, batch),
        }
    }

    fn timed_out(&mut self, batch: Batch, then: Then) {
        match then {
            Then::End(caller) => {
                // A shrink or a delete may have overtaken the close: then the grant is lost all the same.
                let revoked = batch.grants.iter().any(|(session, key, _)| self.is_revoked(*session, *key));
                self.cancel_batch(batch);
                let outlook = if revoked {
                    "it was revoked meanwhile, and ends when that I/O has"
                } else {
                    "it stays as it was"
                };
                let text = format!("I/O under it was still running after {QUIESCE_TIMEOUT:?}; {outlook}");
                self.answer(caller, Err(Refusal::new(Status::E_BUSY_TIMEOUT, text)));
            }
            Then::EndQuietly => self.wait_for(batch, None, Then::EndQuietly),
            Then::Lane => self.lane_timed_out(batch),
            Then::Files(volume) => self.files_timed_out(volume, batch),
        }
    }

    fn is_revoked(&self, session: SessionId, key: Key) -> bool {
        self.sessions.get(&session).and_then(|s| s.grants.get(&key)).is_none_or(|held| held.revoked)
    }

    /// Ends all that is in a quiet batch: entries are free, memory begins to be unmapped and given back.
    pub(super) fn end_batch(&mut self, batch: Batch) {
        self.end_batch_for(batch, None);
    }

    /// Whether there is memory to be given back; `tell` is told when the last of it is.
    fn end_batch_for(&mut self, batch: Batch, tell: Option<Caller>) -> bool {
        self.take_moved(); // A queue of it may have been on its way: then only this still has its memory.
        for (session, key, quiesce) in batch.grants {
            self.end_grant(session, key, quiesce);
        }
        let mut memory: Vec<(SessionId, (What, u64), Kept)> = Vec::new();
        for (id, key, quiesce) in batch.regions {
            self.tables.finish_region_delete(quiesce);
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            if let Some(held) = session.regions.remove(&key) {
                session.pinned_bytes -= held.bytes;
                memory.push((id, (What::Regions, held.bytes), Box::new(held.mapping)));
            }
        }
        for (id, queue) in batch.queues {
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            let Some(held) = session.queues.remove(&queue) else { continue };
            self.pollers[held.poller].waker().forget(held.eventfd.as_fd());
            self.balance.went(held.poller);
            let bytes = held.memory.len() as u64;
            session.pinned_bytes -= bytes;
            self.completed_before += held.counters.completed();
            memory.push((id, (What::Queues, bytes), Box::new(held.memory)));
        }
        let mut left = memory.len();
        let any = left > 0;
        for (id, held, memory) in memory {
            left -= 1;
            self.give_back(id, held, memory, tell.filter(|_| left == 0));
        }
        any
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
                    let more = (ranges.len() as u64).saturating_sub(held.ranges);
                    match self.modify_grant(session, quiesce, (ranges, more)) {
                        Ok(()) => {
                            let held = self.sessions.get_mut(&session);
                            held.into_iter().for_each(|s| s.resize_grant(key, bytes, ranges.len() as u64));
                            continue;
                        }
                        Err((quiesce, why)) if unchanged == Unchanged::Stays => {
                            tracing::warn!(session = session.0, %key, why, "a grant keeps its old size");
                            self.tables.cancel(quiesce);
                            continue;
                        }
                        Err((quiesce, why)) => {
                            tracing::warn!(session = session.0, %key, why, "a grant that cannot shrink ends");
                            quiesce
                        }
                    }
                }
                _ => quiesce, // Revoked, or closed meanwhile.
            };
            self.end_grant(session, key, quiesce);
        }
    }

    /// A quiet grant, or key of a file, ends.
    pub(super) fn end_grant(&mut self, session: SessionId, key: Key, quiesce: Quiesce) {
        self.lift_limit(session, key);
        self.tables.finish_delete(quiesce);
        if let Some(held) = self.sessions.get_mut(&session).and_then(|s| s.remove_grant(key)) {
            self.file_key_ended(session, key, &held);
        }
        self.forget_if_empty(session);
    }

    /// Gives a grant new ranges, `more` of them than it had, if its user may have so many.
    fn modify_grant(
        &mut self,
        session: SessionId,
        quiesce: Quiesce,
        (ranges, more): (&[tpt::LbaRange], u64),
    ) -> Result<(), (Quiesce, String)> {
        let caller = Caller::new(session, 0);
        if let Err(refusal) = self.check(caller, What::Ranges, more) {
            return Err((quiesce, refusal.detail));
        }
        let change = Modification { access: None, ranges: Some(ranges) };
        self.tables.finish_modify(quiesce, &change).map_err(|(quiesce, error)| (quiesce, error.to_string()))
    }

    /// The connection ended: everything the session held is taken back, as soon as no I/O uses it.
    pub fn disconnect(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if std::mem::replace(&mut session.closing, true) {
            return;
        }
        let uid = session.credentials.uid;
        if self.users.may_log(uid) {
            tracing::info!(session = id.0, uid, "session ended");
        }
        session.moving.values().for_each(Moving::cancel);
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
        if batch.is_empty() {
            return self.forget_if_empty(id);
        }
        self.wait_for(batch, None, Then::EndQuietly);
    }

    /// The last of a session whose connection has ended.
    pub(super) fn forget_if_empty(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(&id).filter(|s| s.closing && s.is_empty()) else { return };
        let user = self.users.entry(session.credentials.uid);
        user.sessions.remove(&id);
        user.outstanding -= u64::from(session.outstanding);
        self.sessions.remove(&id);
        self.forget_managed(id);
        self.quotas.forget_session(id);
    }

    /// Logs what pollers refused and let through to the log, and what was left out of it.
    pub(super) fn log_denials(&mut self, now: Instant) {
        for poller in &self.pollers {
            while let Some(Denial { session, key, status }) = poller.shared().take_denial() {
                let uid = self.sessions.get(&SessionId(session)).map(|s| s.credentials.uid);
                tracing::warn!(session, ?uid, %key, %status, "request denied");
            }
        }
        self.users.sweep(now, |uid, Suppressed { lines, denials }| {
            tracing::warn!(uid, lines, denials, "a user kept the log busy: so many lines were left out");
        });
    }
}

/// What an application is told when the tables refuse.
pub(super) fn table_refusal(error: TableError) -> Refusal {
    let status = match error {
        TableError::KeyRange => Status::E_KEY_RANGE,
        TableError::Domain => Status::E_PD_MISMATCH,
        TableError::EntryInvalid => Status::E_ENTRY_INVALID,
        TableError::KeyInstance => Status::E_KEY_INSTANCE,
        TableError::Parameter | TableError::Overlap | TableError::Kind => Status::E_PARAM,
        TableError::NoResources | TableError::SegmentFull | TableError::Ceiling => Status::E_NO_RESOURCES,
        TableError::Busy => Status::E_BUSY_TIMEOUT,
    };
    Refusal::new(status, error.to_string())
}
