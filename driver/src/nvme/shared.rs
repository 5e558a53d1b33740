//! What a controller and its queues tell each other: one word of state down, one epoch per queue up.

use std::sync::atomic::{AtomicU64, Ordering};

/// What the controller is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Queues exist and take commands.
    Running,
    /// It failed or is being reset, and may still touch memory.
    Stopping,
    /// It is seen disabled: it touches nothing. Queues end what is outstanding and start over.
    Stopped,
    /// It is stopped and will not run again.
    Gone,
}

/// A phase, and how often the controller has been reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct State(u64);

impl State {
    pub(super) const fn new(phase: Phase, epoch: u64) -> Self {
        Self(epoch << 2 | phase as u64)
    }

    pub(super) const fn phase(self) -> Phase {
        match self.0 & 3 {
            0 => Phase::Running,
            1 => Phase::Stopping,
            2 => Phase::Stopped,
            _ => Phase::Gone,
        }
    }

    pub(super) const fn epoch(self) -> u64 {
        self.0 >> 2
    }
}

/// One queue's word back.
#[derive(Default)]
#[repr(align(64))] // each written by another thread
struct Report {
    /// The epoch for which it has nothing outstanding and clean memory; `LET_GO` when it was dropped.
    clean: AtomicU64,
    /// Completions that answered nothing.
    anomalies: AtomicU64,
}

const LET_GO: u64 = u64::MAX;

/// Written by the controller alone, but for the reports.
pub(super) struct Shared {
    state: AtomicU64,
    reports: Box<[Report]>,
}

impl Shared {
    /// Stopped, in epoch 0, for `queues` queues, which are clean.
    pub(super) fn new(queues: u16) -> Self {
        let reports = (0..queues).map(|_| Report::default()).collect();
        Self { state: AtomicU64::new(State::new(Phase::Stopped, 0).0), reports }
    }

    /// Acquire, with the Release in `set`: who sees `Stopped` sees all that the controller's owner saw before.
    #[inline]
    pub(super) fn state(&self) -> State {
        State(self.state.load(Ordering::Acquire))
    }

    pub(super) fn set(&self, phase: Phase, epoch: u64) {
        self.state.store(State::new(phase, epoch).0, Ordering::Release);
    }

    /// A queue is clean for `epoch`. Release, with the Acquire in `all_clean`: its memory is initialised.
    pub(super) fn report_clean(&self, index: usize, epoch: u64) {
        self.reports[index].clean.store(epoch, Ordering::Release);
    }

    /// A queue has no owner any more: nobody waits for it.
    pub(super) fn report_let_go(&self, index: usize) {
        self.reports[index].clean.store(LET_GO, Ordering::Release);
    }

    pub(super) fn is_let_go(&self, index: usize) -> bool {
        self.reports[index].clean.load(Ordering::Acquire) == LET_GO
    }

    pub(super) fn all_clean(&self, epoch: u64) -> bool {
        self.reports.iter().all(|report| report.clean.load(Ordering::Acquire) >= epoch)
    }

    pub(super) fn count_anomaly(&self, index: usize) {
        self.reports[index].anomalies.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn anomalies(&self) -> u64 {
        self.reports.iter().map(|report| report.anomalies.load(Ordering::Relaxed)).sum()
    }
}
