//! The adapter's end of one processing queue, as the engine keeps it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tpt::Domain;
use wire::Status;
use wire::layout::Entries;
use wire::ring::{AdapterEnd, Completion};
use wire::view::{QueueMemory, QueueView};

use super::share::Terms;
use crate::device::Witness;
use crate::mailbox::{DenialGate, Moving, Ticket};

/// Names a queue for the life of the adapter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct QueueId(pub u32);

/// What has been counted for one queue: written by its poller alone, read by anyone. On lines of its own, as the next in
/// memory may be another poller's.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct PortCounters {
    completed: AtomicU64,
    failed: AtomicU64,
}

impl PortCounters {
    /// Requests completed, whatever their status.
    pub fn completed(&self) -> u64 {
        self.completed.load(Ordering::Relaxed)
    }

    /// Of them, those with a status other than OK.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

pub(super) enum PortState {
    Ready,
    Error,
    Detaching(Arc<Ticket>),
    /// To be handed back when nothing of it runs, if that is soon: until this moment.
    Leaving(Box<Moving>, u64),
}

impl PartialEq for PortState {
    fn eq(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

/// See the module.
pub struct Port {
    pub(super) id: QueueId,
    pub(super) session: u64,
    pub(super) domain: Domain,
    pub(super) ring: AdapterEnd<QueueView>,
    pub(super) state: PortState,
    /// Management requests that wait, and how many may.
    pub(super) managed: u32,
    pub(super) may_manage: u32,
    /// The application sleeps and has completions.
    pub(super) wake_due: bool,
    /// Of its user.
    pub(super) gate: Arc<DenialGate>,
    /// What who flushes here was told.
    pub(super) witness: Witness,
    /// When a turn looks at it.
    pub(super) attention: super::schedule::Attention,
    /// What holds for its session, until it is attached; then where the session's share is kept.
    pub(super) terms: Terms,
    pub(super) account: usize,
    counters: Arc<PortCounters>,
    failed: u64,
}

impl Port {
    /// The adapter's end of the queue in `view`, whose memory is pinned and sealed.
    pub fn new(id: QueueId, session: u64, domain: Domain, view: QueueView, entries: Entries) -> Self {
        Self {
            id,
            session,
            domain,
            ring: AdapterEnd::new(view, entries),
            state: PortState::Ready,
            managed: 0,
            may_manage: 0,
            wake_due: false,
            gate: Arc::default(),
            witness: Witness::default(),
            attention: super::schedule::Attention::default(),
            terms: Terms::default(),
            account: 0,
            counters: Arc::default(),
            failed: 0,
        }
    }

    /// With the gate that all queues of its user share.
    #[must_use]
    pub fn with_gate(self, gate: Arc<DenialGate>) -> Self {
        Self { gate, ..self }
    }

    /// With what its session knows of losses.
    #[must_use]
    pub fn with_witness(self, witness: Witness) -> Self {
        Self { witness, ..self }
    }

    /// With the weight and the limits of its session, which are those that its other queues have.
    #[must_use]
    pub fn with_terms(self, terms: Terms) -> Self {
        Self { terms, ..self }
    }

    /// With so many management requests at a time; without, it takes none.
    #[must_use]
    pub fn with_management(self, requests: u32) -> Self {
        Self { may_manage: requests, ..self }
    }

    /// The queue's counters.
    pub fn counters(&self) -> Arc<PortCounters> {
        self.counters.clone()
    }

    /// Requests that were taken from it and have not ended.
    pub(super) fn in_flight(&self) -> usize {
        self.ring.in_flight() as usize
    }

    /// Posts a completion into the room that was reserved when the request was taken.
    pub(super) fn complete(
        &mut self,
        user_data: u64,
        status: Status,
        bytes: u32,
        device_status: u16,
        value: u64,
    ) {
        self.counters.completed.store(self.completed() + 1, Ordering::Relaxed);
        if status != Status::OK {
            self.failed += 1;
            self.counters.failed.store(self.failed, Ordering::Relaxed);
        }
        let device_status = u32::from(device_status);
        self.ring.complete(&Completion { user_data, status, device_status, bytes, value });
    }

    /// Moves to the error state.
    pub(super) fn fail(&mut self) {
        self.state = PortState::Error;
        self.ring.fail();
    }

    /// In the error state: answers what was rung within bounds, each once, as far as there is room for the answers, at
    /// most `burst` in a turn. Returns how many.
    pub(super) fn flush(&mut self, burst: u32) -> usize {
        // An impossible tail counts as none here.
        let _ = self.ring.poll_doorbell();
        let mut flushed = 0;
        for _ in 0..burst {
            let Some(user_data) = self.ring.take_flushed() else { break };
            self.complete(user_data, Status::E_FLUSHED, 0, 0, 0);
            flushed += 1;
        }
        flushed
    }

    /// Looks whether the application went to sleep before it saw what this turn posted. True if it is to be woken and
    /// was not before.
    pub(super) fn end_turn(&mut self) -> bool {
        let asleep = self.ring.end_turn();
        asleep && !std::mem::replace(&mut self.wake_due, true)
    }

    /// Whether entries are taken from it, to be executed or flushed.
    pub(super) fn is_served(&self) -> bool {
        matches!(self.state, PortState::Ready | PortState::Error)
    }

    /// Whether something was posted of which the application does not know yet, or it is to be woken.
    pub(super) fn has_news(&self) -> bool {
        self.ring.has_posted() || self.wake_due
    }

    /// Requests completed so far.
    pub(super) fn completed(&self) -> u64 {
        self.counters.completed()
    }

    /// Wakes the application: a system call, made outside of turns.
    pub(super) fn wake(&self) {
        // The word is in memory that stays mapped; nothing else can go wrong with a wake.
        let _ = wire::doorbell::wake(self.ring.memory().cq_wait());
    }
}
