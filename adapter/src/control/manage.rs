//! Management requests that come by processing queues: the same requests as on the socket, of the same sessions, with the
//! same rights. How they come and how their answers go is all that differs.
//!
//! Sessions have their turns one after the other, and no session more than a few requests in a row. What exceeds the limit
//! of requests without an answer is refused, where the socket would not be read any more: memory that a waiting request holds may
//! be what one before it waits for.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use wire::Status;
use wire::control::{Reply, Request};

use super::limits::What;
use super::{Caller, Control, Refusal, SessionId};
use crate::mailbox::{Bell, Command, Managed};

/// Requests of one session that are begun before others have their turn, and of all before the socket has.
const IN_A_ROW: usize = 4;
const PER_TURN: usize = 64;

/// See the module.
pub(super) struct Management {
    pub(super) bell: Arc<Bell>,
    /// Of each session what has come, and from which poller.
    waiting: BTreeMap<SessionId, VecDeque<(usize, Box<Managed>)>>,
    /// What is being done, by the number in its caller.
    begun: BTreeMap<u32, (SessionId, usize, Box<Managed>)>,
    next: u32,
    /// The session whose turn was the last.
    last: SessionId,
}

impl Management {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            bell: Arc::new(Bell::new()?),
            waiting: BTreeMap::new(),
            begun: BTreeMap::new(),
            next: 0,
            last: SessionId(0),
        })
    }

    /// The session after the last one that has something waiting.
    fn next_session(&self) -> Option<SessionId> {
        let mut after = self.waiting.range((Bound::Excluded(self.last), Bound::Unbounded));
        after.next().or_else(|| self.waiting.iter().next()).map(|(session, _)| *session)
    }

    /// A number that nothing has that is being done.
    fn number(&mut self) -> u32 {
        while self.begun.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        self.next
    }
}

impl Control {
    /// Whether pollers have, or had, something for it that has not been begun.
    pub(super) fn has_managed(&self) -> bool {
        !self.management.waiting.is_empty() || self.pollers.iter().any(|poller| poller.shared().has_managed())
    }

    /// Whoever calls [`Control::advance`] is about to sleep until one of its descriptors becomes readable. False if there is
    /// something to do. To be ended by [`Control::wake_up`].
    pub fn fall_asleep(&self) -> bool {
        self.management.bell.fall_asleep();
        !self.has_managed()
    }

    /// See [`Control::fall_asleep`].
    pub fn wake_up(&self) {
        self.management.bell.wake_up();
    }

    /// Whether there are queues whose pollers do not say when they have a request: somebody must look.
    pub fn must_look(&self) -> bool {
        self.pollers.iter().any(|poller| !poller.shared().rings())
            && self.sessions.values().any(|session| !session.queues.is_empty())
    }

    /// Takes what has come by queues, and begins some of it.
    pub(super) fn advance_management(&mut self) {
        for (poller, from) in self.pollers.iter().enumerate() {
            while let Some(managed) = from.shared().take_managed() {
                let waiting = self.management.waiting.entry(SessionId(managed.session)).or_default();
                waiting.push_back((poller, managed));
            }
        }
        let mut left = PER_TURN;
        while left > 0 {
            let Some(session) = self.management.next_session() else { return };
            self.management.last = session;
            for _ in 0..IN_A_ROW.min(left) {
                let Some(waiting) = self.management.waiting.get_mut(&session) else { break };
                let Some((poller, managed)) = waiting.pop_front() else {
                    self.management.waiting.remove(&session);
                    break;
                };
                if waiting.is_empty() {
                    self.management.waiting.remove(&session);
                }
                self.begin_managed(session, poller, managed);
                left -= 1;
            }
        }
    }

    /// Does a request, unless it was withdrawn.
    fn begin_managed(&mut self, id: SessionId, poller: usize, mut managed: Box<Managed>) {
        let live = self.sessions.get(&id).is_some_and(|session| {
            !session.closing && session.queues.get(&managed.queue.0).is_some_and(|queue| !queue.ending)
        });
        if !managed.begin() {
            return self.send(poller, Command::Answer(managed));
        }
        let request = match self.check_managed(id, live, &managed) {
            Ok(request) => request,
            Err(refusal) => {
                managed.answer(&refusal.into_reply());
                return self.send(poller, Command::Answer(managed));
            }
        };
        let number = self.management.number();
        self.management.begun.insert(number, (id, poller, managed));
        self.request(Caller { session: id, id: number, by_queue: true }, request, Vec::new());
    }

    /// What is wrong with a request that came by a queue, beyond what is with any.
    fn check_managed(&self, id: SessionId, live: bool, managed: &Managed) -> Result<Request, Refusal> {
        if !live {
            return Err(Refusal::new(Status::E_FLUSHED, "the queue ends"));
        }
        self.check_outstanding(id)?;
        let request = managed.request().map_err(|e| Refusal::new(Status::E_PARAM, e.to_string()))?;
        if !request.goes_by_queue() {
            return Err(Refusal::new(Status::E_PARAM, "this request goes by the control socket only"));
        }
        let (room, needed) = (managed.room, request.reply_room());
        if room < needed {
            let text = format!("the entry has room for {room} bytes of reply, this request needs {needed}");
            return Err(Refusal::new(Status::E_PARAM, text));
        }
        match request {
            Request::DestroyQueue { queue } if queue == managed.queue.0 => {
                let text =
                    format!("queue {queue} cannot be ended by a request that it carries: use the socket");
                Err(Refusal::new(Status::E_PARAM, text))
            }
            Request::ReleaseMemory { region } if region == managed.region.0 => {
                let text =
                    "a region cannot be released by a request that lies in it: use another, or the socket";
                Err(Refusal::new(Status::E_PARAM, text))
            }
            // Each could wait for the other to end.
            Request::ReleaseMemory { region } if self.holds_managed(id, region) => {
                let text = "another request lies in the region and is not answered yet: ask again when it is";
                Err(Refusal::new(Status::E_BUSY_TIMEOUT, text))
            }
            _ => Ok(request),
        }
    }

    /// Whether a request of the session that is being done lies in a region.
    fn holds_managed(&self, id: SessionId, region: u64) -> bool {
        let mut begun = self.management.begun.values();
        begun.any(|(session, _, managed)| *session == id && managed.region.0 == region)
    }

    /// Whether the session, and its user, may have one more request without an answer.
    fn check_outstanding(&self, id: SessionId) -> Result<(), Refusal> {
        let caller = Caller { session: id, id: 0, by_queue: true };
        let session = self.session(caller)?;
        let of_user = self.users.get(session.credentials.uid).map_or(0, |user| user.outstanding);
        let (own, most) = (session.outstanding, self.policy.limits.outstanding);
        if own < most && of_user < self.ceilings.of_user(What::Requests) {
            return Ok(());
        }
        let text = format!(
            "{own} requests of the session and {of_user} of its user wait for their answers; a session may have {most}, \
             a user {}",
            self.ceilings.of_user(What::Requests)
        );
        Err(Refusal::new(Status::E_NO_RESOURCES, text))
    }

    /// The answer to a request that came by a queue.
    pub(super) fn answer_managed(&mut self, number: u32, reply: &Reply) {
        if let Some((_, poller, mut managed)) = self.management.begun.remove(&number) {
            managed.answer(reply);
            self.send(poller, Command::Answer(managed));
        }
    }

    /// A session is gone: nobody waits for what is still being done for it.
    pub(super) fn forget_managed(&mut self, id: SessionId) {
        let numbers: Vec<u32> = self
            .management
            .begun
            .iter()
            .filter(|(_, (session, ..))| *session == id)
            .map(|(n, _)| *n)
            .collect();
        for number in numbers {
            let gone = Refusal::new(Status::E_PATH, "the session is gone").into_reply();
            self.answer_managed(number, &gone);
        }
    }
}

#[cfg(test)]
mod tests;
