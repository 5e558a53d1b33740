//! Queues and memory regions: how their memory comes in and goes out. It does both on the registrar's threads, and
//! counts for its session from the request on until it is all given back.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use driver::hal::DmaAccess;
use tpt::{Access, RegionKey, RegionSpec};
use wire::Status;
use wire::control::Reply;
use wire::discard::{Owner, discard};
use wire::layout::{Entries, MAX_ENTRIES, MIN_ENTRIES};
use wire::shm::{Lock, Offer};
use wire::view::QueueView;

use super::drain::{Batch, Then, table_refusal};
use super::limits::What;
use super::registrar::{Job, Kept, Outcome, Report, Taken, Work};
use super::session::{QueueHeld, RegionHeld};
use super::{Caller, Control, Refusal, SessionId};
use crate::engine::{Port, QueueId};
use crate::mailbox::Command;
use crate::poller::eventfd;

/// Memory on its way in or out.
pub(super) struct Moving {
    pub(super) bytes: u64,
    pub(super) what: What,
    way: Way,
}

enum Way {
    In { caller: Caller, cancelled: Arc<AtomicBool>, becomes: Becomes },
    Out { tell: Option<Caller> },
}

#[derive(Clone, Copy)]
enum Becomes {
    Queue(Entries),
    Region(Access),
}

impl Moving {
    /// Descriptors that it costs: the memfd, and what will follow.
    pub(super) fn descriptors(&self) -> u64 {
        match self.way {
            Way::In { becomes: Becomes::Queue(_), .. } => 3,
            Way::In { becomes: Becomes::Region(_), .. } => 1,
            Way::Out { .. } => 0,
        }
    }

    /// Nobody waits for it any more.
    pub(super) fn cancel(&self) {
        if let Way::In { cancelled, .. } = &self.way {
            cancelled.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }
}

impl Control {
    pub(super) fn create_queue(&mut self, caller: Caller, entries: u32, descriptor: Option<OwnedFd>) {
        let parsed = Entries::new(entries).ok_or_else(|| {
            let text =
                format!("{entries} entries: a queue has a power of two from {MIN_ENTRIES} to {MAX_ENTRIES}");
            Refusal::new(Status::E_PARAM, text)
        });
        let checked = self.check(caller, What::Queues, 1).and(parsed);
        let bytes = checked.as_ref().map_or(0, |entries| entries.bytes() as u64);
        self.take(caller, checked.map(Becomes::Queue), bytes, descriptor, None);
    }

    pub(super) fn register(&mut self, caller: Caller, bytes: u64, access: u8, descriptor: Option<OwnedFd>) {
        let parsed = match access {
            1 => Ok((Access::READ, DmaAccess::Read)),
            2 => Ok((Access::WRITE, DmaAccess::Write)),
            3 => Ok((Access::READ_WRITE, DmaAccess::ReadWrite)),
            _ => {
                let text = format!(
                    "memory access {access:#x}: 1 is a source of writes, 2 a target of reads, 3 both"
                );
                Err(Refusal::new(Status::E_PARAM, text))
            }
        };
        let checked = self.check(caller, What::Regions, 1).and(parsed);
        let dma = checked.as_ref().ok().map(|(_, dma)| *dma);
        self.take(caller, checked.map(|(access, _)| Becomes::Region(access)), bytes, descriptor, dma);
    }

    /// Has memory taken from an application, if nothing speaks against it; [`Control::advance_memory`] goes on.
    fn take(
        &mut self,
        caller: Caller,
        becomes: Result<Becomes, Refusal>,
        bytes: u64,
        descriptor: Option<OwnedFd>,
        dma: Option<DmaAccess>,
    ) {
        let Some(fd) = descriptor else {
            let missing = Refusal::new(Status::E_PARAM, "no descriptor came along");
            return self.answer(caller, Err(becomes.err().unwrap_or(missing)));
        };
        let uid = self.sessions.get(&caller.session).map_or(u32::MAX, |s| s.credentials.uid);
        let cancelled = Arc::new(AtomicBool::new(false));
        let checked = becomes.and_then(|becomes| {
            let what = if dma.is_some() { What::Regions } else { What::Queues };
            let moving =
                Moving { bytes, what, way: Way::In { caller, cancelled: cancelled.clone(), becomes } };
            self.check(caller, What::Descriptors, moving.descriptors())?;
            self.check(caller, What::Pinned, bytes)?;
            Ok(moving)
        });
        let moving = match checked {
            Ok(moving) => moving,
            Err(refusal) => {
                discard(Owner::User(uid), fd);
                return self.answer(caller, Err(refusal));
            }
        };
        let lock = if dma.is_some() { self.lock } else { Lock::Mlock };
        let max = self.policy.limits.pinned_bytes;
        let offer = Offer { fd, bytes, max, lock, owner: Owner::User(uid) };
        self.begin(caller.session, moving, Work::Take { offer, dma, cancelled });
    }

    fn begin(&mut self, id: SessionId, moving: Moving, work: Work) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        self.next_move += 1;
        session.moving.insert(self.next_move, moving);
        self.registrar.submit(Job { session: id, id: self.next_move, uid: session.credentials.uid, work });
    }

    /// Has memory let go of; it counts for its session until it is, and only then is `tell` told.
    pub(super) fn give_back(
        &mut self,
        session: SessionId,
        (what, bytes): (What, u64),
        memory: Kept,
        tell: Option<Caller>,
    ) {
        self.begin(session, Moving { bytes, what, way: Way::Out { tell } }, Work::GiveBack(memory));
    }

    /// Takes what the registrar has done.
    pub(super) fn advance_memory(&mut self) {
        while let Some(Report { session: id, id: number, outcome }) = self.registrar.take_report() {
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            let Some(Moving { bytes, what, way }) = session.moving.remove(&number) else { continue };
            let closing = session.closing;
            match (way, outcome) {
                (Way::In { caller, becomes, .. }, Outcome::Taken(taken)) if !closing => {
                    self.taken(caller, becomes, bytes, taken);
                }
                // It died meanwhile: what came in goes out again, and counts until it has.
                (Way::In { .. }, Outcome::Taken(taken)) => {
                    self.give_back(id, (what, bytes), Box::new(taken), None);
                }
                (Way::In { caller, .. }, Outcome::Refused(refusal)) => self.answer(caller, Err(refusal)),
                (Way::Out { tell: Some(caller) }, _) => self.reply(caller, Reply::Done),
                (Way::Out { tell: None } | Way::In { .. }, _) => {}
            }
            self.forget_if_empty(id);
        }
    }

    fn taken(&mut self, caller: Caller, becomes: Becomes, bytes: u64, taken: Taken) {
        let result = match becomes {
            Becomes::Queue(entries) => self.make_queue(caller, entries, taken),
            Becomes::Region(access) => self.make_region(caller, access, bytes, taken),
        };
        if let Err((refusal, taken)) = result {
            let what = if matches!(becomes, Becomes::Queue(_)) { What::Queues } else { What::Regions };
            self.give_back(caller.session, (what, bytes), Box::new(taken), None);
            self.answer(caller, Err(refusal));
        }
    }

    fn make_queue(&mut self, caller: Caller, entries: Entries, taken: Taken) -> Result<(), (Refusal, Taken)> {
        match self.open_queue(caller, entries, &taken) {
            Ok((queue, theirs)) => {
                self.reply_with(caller, Reply::Queue { queue }, vec![theirs]);
                Ok(())
            }
            Err(refusal) => Err((refusal, taken)),
        }
    }

    fn open_queue(
        &mut self,
        caller: Caller,
        entries: Entries,
        taken: &Taken,
    ) -> Result<(u32, OwnedFd), Refusal> {
        let view = QueueView::open(taken.memory.shared(), entries)
            .map_err(|e| Refusal::new(Status::E_PARAM, e.to_string()))?;
        let os = |e: std::io::Error| Refusal::os("an eventfd for the queue", &e);
        let eventfd = eventfd().map_err(os)?;
        let theirs = eventfd.try_clone().map_err(os)?;
        let session = self.session(caller)?;
        let (domain, uid, witness) = (session.domain, session.credentials.uid, session.witness.another());
        let queue = self.next_queue;
        let next = queue.checked_add(1).ok_or_else(|| {
            Refusal::new(Status::E_NO_RESOURCES, "the adapter has used up its queue numbers; restart it")
        })?;
        let poller = self.balance.place();
        self.pollers[poller].waker().watch(eventfd.as_fd(), QueueId(queue)).map_err(os)?;
        self.next_queue = next;
        let gate = self.users.gate(uid);
        let port = Port::new(QueueId(queue), caller.session.0, domain, view, entries);
        let port = port.with_gate(gate).with_witness(witness).with_terms(self.terms_of(caller.session));
        let port = port.with_management(self.policy.limits.outstanding);
        let counters = port.counters();
        if let Some(session) = self.sessions.get_mut(&caller.session) {
            let memory = taken.memory.clone();
            session.pinned_bytes += entries.bytes() as u64;
            let held = QueueHeld { poller, eventfd, memory, counters, ending: false, completed_before: 0 };
            session.queues.insert(queue, held);
            self.balance.came(poller);
        }
        self.send(poller, Command::Attach(Box::new(port)));
        Ok((queue, theirs))
    }

    pub(super) fn destroy_queue(&mut self, caller: Caller, queue: u32) {
        let live =
            self.sessions.get(&caller.session).and_then(|s| s.queues.get(&queue)).is_some_and(|q| !q.ending);
        if !live {
            let text = format!("the session has no queue {queue}");
            return self.answer(caller, Err(Refusal::new(Status::E_NOT_OPEN, text)));
        }
        let mut batch = Batch::default();
        self.quiesce_queue(&mut batch, caller.session, queue);
        self.wait_for(batch, None, Then::End(caller));
    }

    fn make_region(
        &mut self,
        caller: Caller,
        access: Access,
        bytes: u64,
        mut taken: Taken,
    ) -> Result<(), (Refusal, Taken)> {
        let Some(mapping) = taken.mapping.take() else {
            return Err((Refusal::new(Status::E_LOCAL_MEM, "the memory was not mapped"), taken));
        };
        let Some(session) = self.sessions.get_mut(&caller.session) else { return Ok(()) };
        let iova = tpt::Iova(mapping.iova().0);
        let spec = RegionSpec { domain: session.domain, access, iova, bytes };
        let key = match self.tables.create_region(&spec) {
            Ok(key) => key,
            Err(error) => {
                taken.mapping = Some(mapping);
                return Err((table_refusal(error), taken));
            }
        };
        session.pinned_bytes += bytes;
        session.regions.insert(key, RegionHeld { mapping, bytes, quiescing: false });
        // Before the reply: the pollers know the region before the first request can name it.
        let shared = taken.memory.shared();
        for poller in 0..self.pollers.len() {
            self.send(poller, Command::Region(key.index(), shared.clone()));
        }
        self.reply(caller, Reply::Region { region: key.0 });
        Ok(())
    }

    pub(super) fn release(&mut self, caller: Caller, key: RegionKey) {
        let live = self
            .sessions
            .get(&caller.session)
            .and_then(|s| s.regions.get(&key))
            .is_some_and(|r| !r.quiescing);
        if !live {
            let text = format!("the session has no memory region {key}");
            return self.answer(caller, Err(Refusal::new(Status::E_LOCAL_MEM, text)));
        }
        let mut batch = Batch::default();
        match self.quiesce_region(&mut batch, caller.session, key) {
            Ok(()) => self.wait_for(batch, None, Then::End(caller)),
            Err(refusal) => self.answer(caller, Err(refusal)),
        }
    }
}
