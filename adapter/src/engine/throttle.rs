//! Requests of volumes with limits: which volume a key belongs to is known only when the tables have admitted it, so such a
//! request waits after it was taken, in one list for all volumes, in the order in which they came. The list is looked through
//! when tokens are due, and not before. What waits has no grant: it is checked anew when its time comes.

use std::collections::VecDeque;
use std::sync::Arc;

use driver::block::BlockQueue;
use tpt::{EntryIndex, Key, Request};

use super::limiter::{Limiter, Purse, Tokens};
use super::slots::{Asked, SlotState};
use super::{State, touched};

/// What a request costs the volume.
fn tokens_of(request: &Request) -> Tokens {
    let moves = request.operation.required_memory_access().is_some();
    Tokens { requests: 1, bytes: if moves { request.length } else { 0 } }
}

/// A volume with limits.
struct Limited {
    purse: Purse,
    /// Grants over it.
    entries: usize,
    /// Requests that wait for its tokens.
    waiting: usize,
}

/// So many requests of one queue may wait; then nothing more is taken from it until some have gone.
const OF_A_QUEUE: u32 = 32;

/// A request that waits.
#[derive(Clone, Copy)]
struct Waiting {
    slot: u32,
    volume: u16,
    port: usize,
}

/// See the module.
pub(super) struct Throttle {
    /// The volume of each table entry, if it has limits; empty while there are none.
    by_entry: Vec<Option<u16>>,
    volumes: Vec<Option<Limited>>,
    waiting: VecDeque<Waiting>,
    /// How many of each queue wait.
    of_port: Vec<u32>,
    /// The list is to be looked through at this time.
    due_ns: u64,
    /// It is being looked through.
    looking: bool,
}

impl Throttle {
    /// With room for so many requests.
    pub(super) fn new(requests: usize) -> Self {
        Self {
            by_entry: Vec::new(),
            volumes: Vec::new(),
            waiting: touched(requests).into(),
            of_port: touched(64),
            due_ns: u64::MAX,
            looking: false,
        }
    }

    /// Whether any volume has limits.
    #[inline]
    fn any(&self) -> bool {
        !self.by_entry.is_empty()
    }

    /// Whether what is asked under this key, whosever it is, may have to be paid for.
    #[inline]
    pub(super) fn limits(&self, key: Key) -> bool {
        self.any() && self.of(key).is_some()
    }

    /// Requests that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether so many requests of a queue wait that no more are taken from it.
    #[inline]
    pub(super) fn is_full(&self, port: usize) -> bool {
        !self.waiting.is_empty() && self.of_port.get(port).is_some_and(|&waiting| waiting >= OF_A_QUEUE)
    }

    #[inline]
    pub(super) fn is_due(&self, now_ns: u64) -> bool {
        now_ns >= self.due_ns
    }

    /// When tokens come that a request waits for.
    pub(super) fn next_due_ns(&self) -> Option<u64> {
        (!self.waiting.is_empty()).then_some(self.due_ns)
    }

    /// What requests under an entry are limited by from now on. Those that wait for something else are looked at again.
    pub(super) fn limit(&mut self, entry: EntryIndex, limiter: Option<&Arc<Limiter>>) {
        let index = entry.0 as usize;
        if let Some(old) = self.by_entry.get_mut(index).and_then(Option::take) {
            self.volume(old).entries -= 1;
            self.let_go(old);
        }
        if let Some(limiter) = limiter {
            let new = self.find(limiter);
            self.volume(new).entries += 1;
            if self.by_entry.len() <= index {
                self.by_entry.resize(index + 1, None);
            }
            self.by_entry[index] = Some(new);
        } else if self.volumes.iter().all(Option::is_none) {
            self.by_entry.clear();
        }
        self.due_ns = 0;
    }

    fn find(&mut self, limiter: &Arc<Limiter>) -> u16 {
        let is_it = |volume: &Option<Limited>| volume.as_ref().is_some_and(|its| its.purse.is_of(limiter));
        let known = self.volumes.iter().position(is_it);
        let at =
            known.or_else(|| self.volumes.iter().position(Option::is_none)).unwrap_or(self.volumes.len());
        if at == self.volumes.len() {
            self.volumes.push(None);
        }
        self.volumes[at].get_or_insert_with(|| Limited {
            purse: Purse::new(limiter.clone()),
            entries: 0,
            waiting: 0,
        });
        u16::try_from(at).expect("there are fewer volumes than grants, and the store has at most 4096")
    }

    fn volume(&mut self, at: u16) -> &mut Limited {
        self.volumes[usize::from(at)].as_mut().expect("it goes after all that refers to it")
    }

    /// Forgets a volume that nothing refers to.
    fn let_go(&mut self, at: u16) {
        let its = self.volume(at);
        if its.entries == 0 && its.waiting == 0 {
            self.volumes[usize::from(at)] = None;
        }
    }

    /// Pays for an admitted request. The volume that it has to wait for, if there is no token, or if others wait.
    fn pay(&mut self, request: &Request, now_ns: u64) -> Result<(), u16> {
        let Some(at) = self.of(request.key) else { return Ok(()) };
        let looking = self.looking;
        let its = self.volume(at);
        let left = its.purse.fill(now_ns);
        if left.requests == 0 || left.bytes == 0 || its.waiting > 0 && !looking {
            return Err(at);
        }
        its.purse.pay(tokens_of(request), now_ns);
        Ok(())
    }

    fn of(&self, key: Key) -> Option<u16> {
        self.by_entry.get(key.index().0 as usize).copied().flatten()
    }

    /// A request that was paid for was not begun.
    pub(super) fn pay_back(&mut self, request: &Request) {
        if let Some(at) = self.of(request.key) {
            self.volume(at).purse.pay_back(tokens_of(request));
        }
    }

    fn wait(&mut self, waiting: Waiting) {
        let its = self.volume(waiting.volume);
        its.waiting += 1;
        let due_ns = its.purse.due_ns();
        self.due_ns = self.due_ns.min(due_ns);
        if self.of_port.len() <= waiting.port {
            self.of_port.resize(waiting.port + 1, 0);
        }
        self.of_port[waiting.port] += 1;
        self.waiting.push_back(waiting);
    }

    fn take_oldest(&mut self) -> Option<Waiting> {
        let oldest = self.waiting.pop_front()?;
        self.volume(oldest.volume).waiting -= 1;
        self.of_port[oldest.port] -= 1;
        Some(oldest)
    }

    /// Takes the oldest out of the list if its time has come, and else puts it at the end.
    fn next(&mut self, now_ns: u64) -> Option<u32> {
        let oldest = self.take_oldest()?;
        let its = self.volume(oldest.volume);
        let left = its.purse.fill(now_ns);
        if its.entries == 0 || left.requests > 0 && left.bytes > 0 {
            self.let_go(oldest.volume);
            return Some(oldest.slot);
        }
        self.wait(oldest);
        None
    }

    /// Takes all out of the list that `keep` does not want.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&u32) -> bool) {
        for _ in 0..self.waiting.len() {
            let Some(oldest) = self.take_oldest() else { break };
            if keep(&oldest.slot) {
                self.wait(oldest);
            } else {
                self.let_go(oldest.volume);
            }
        }
    }
}

impl State {
    /// Pays for a request that was admitted, if its volume has limits. The volume that it has to wait for, if it has to: its
    /// grant is to be released.
    pub(super) fn pay_for(&mut self, asked: &Asked) -> Result<(), u16> {
        if self.throttle.any() { self.throttle.pay(&asked.request, self.now_ns) } else { Ok(()) }
    }

    /// A request waits for tokens of a volume.
    pub(super) fn wait_for_tokens(&mut self, asked: &Asked, slot: u32, volume: u16) {
        self.slots.get_mut(slot).state = SlotState::Throttled;
        self.throttle.wait(Waiting { slot, volume, port: asked.port });
        self.note_deadline(asked.deadline_ns);
    }

    /// Looks at requests that waited for tokens, now that there are some.
    #[cold]
    pub(super) fn retry_throttled<Q: BlockQueue>(&mut self, queue: &mut Q, most: usize) -> usize {
        self.throttle.due_ns = u64::MAX;
        self.throttle.looking = true;
        let mut work = 0;
        for _ in 0..self.throttle.waiting() {
            if work == most {
                self.throttle.due_ns = 0; // The rest in the next turn.
                break;
            }
            if let Some(slot) = self.throttle.next(self.now_ns) {
                let asked = *self.slots.asked(slot);
                self.admit(queue, &asked, Some(slot), None);
                work += 1;
            }
        }
        self.throttle.looking = false;
        work
    }
}
