//! What a controller of any kind and its queues tell each other: one word of state down, one epoch per queue up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::block::ResetProgress;

/// What the controller is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
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
pub(crate) struct State(u64);

impl State {
    pub(crate) const fn new(phase: Phase, epoch: u64) -> Self {
        Self(epoch << 2 | phase as u64)
    }

    pub(crate) const fn phase(self) -> Phase {
        match self.0 & 3 {
            0 => Phase::Running,
            1 => Phase::Stopping,
            2 => Phase::Stopped,
            _ => Phase::Gone,
        }
    }

    pub(crate) const fn epoch(self) -> u64 {
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
    /// One more than the epoch in which it found that its device breaks the rules; 0 for none.
    broken: AtomicU64,
}

const LET_GO: u64 = u64::MAX;

/// Written by the controller alone, but for the reports.
pub(crate) struct Shared {
    state: AtomicU64,
    reports: Box<[Report]>,
}

impl Shared {
    /// Stopped, in epoch 0, for `queues` queues, which are clean.
    pub(crate) fn new(queues: u16) -> Self {
        let reports = (0..queues).map(|_| Report::default()).collect();
        Self { state: AtomicU64::new(State::new(Phase::Stopped, 0).0), reports }
    }

    /// Acquire, with the Release in `set`: who sees `Stopped` sees all that the controller's owner saw before.
    #[inline]
    pub(crate) fn state(&self) -> State {
        State(self.state.load(Ordering::Acquire))
    }

    pub(crate) fn set(&self, phase: Phase, epoch: u64) {
        self.state.store(State::new(phase, epoch).0, Ordering::Release);
    }

    /// A queue is clean for `epoch`. Release, with the Acquire in `all_clean`: its memory is initialised.
    pub(crate) fn report_clean(&self, index: usize, epoch: u64) {
        self.reports[index].clean.store(epoch, Ordering::Release);
    }

    /// A queue has no owner any more: nobody waits for it.
    pub(crate) fn report_let_go(&self, index: usize) {
        self.reports[index].clean.store(LET_GO, Ordering::Release);
    }

    pub(crate) fn is_let_go(&self, index: usize) -> bool {
        self.reports[index].clean.load(Ordering::Acquire) == LET_GO
    }

    pub(crate) fn all_clean(&self, epoch: u64) -> bool {
        self.reports.iter().all(|report| report.clean.load(Ordering::Acquire) >= epoch)
    }

    /// A queue can make no sense of what its device says in `epoch`: nothing more of it ends before a reset.
    pub(crate) fn report_broken(&self, index: usize, epoch: u64) {
        self.reports[index].broken.store(epoch.wrapping_add(1), Ordering::Release);
    }

    /// Whether any queue has said so of this epoch.
    pub(crate) fn any_broken(&self, epoch: u64) -> bool {
        self.reports.iter().any(|report| report.broken.load(Ordering::Acquire) == epoch.wrapping_add(1))
    }

    pub(crate) fn count_anomaly(&self, index: usize) {
        self.reports[index].anomalies.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn anomalies(&self) -> u64 {
        self.reports.iter().map(|report| report.anomalies.load(Ordering::Relaxed)).sum()
    }
}

/// The controller's side of it, which alone says what it is doing.
pub(crate) struct Life {
    shared: Arc<Shared>,
    epoch: u64,
}

impl Life {
    /// Stopped, with so many queues.
    pub(crate) fn new(queues: u16) -> Self {
        Self { shared: Arc::new(Shared::new(queues)), epoch: 0 }
    }

    /// For its queues.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn phase(&self) -> Phase {
        self.shared.state().phase()
    }

    /// A reset begins, or the end: queues take nothing from now on. Whether there is anything to stop.
    pub(crate) fn begin(&mut self) -> bool {
        match self.phase() {
            Phase::Gone => return false,
            Phase::Stopping => {} // the last one got stuck
            Phase::Running | Phase::Stopped => {
                self.epoch += 1;
                self.enter(Phase::Stopping);
            }
        }
        true
    }

    /// It is in that phase now.
    pub(crate) fn enter(&self, phase: Phase) {
        self.shared.set(phase, self.epoch);
    }

    /// Whether all queues have ended what was outstanding, and start over.
    pub(crate) fn queues_are_clean(&self) -> bool {
        self.shared.all_clean(self.epoch)
    }

    /// Whether a queue found that its device breaks the rules, since the last reset.
    pub(crate) fn is_broken(&self) -> bool {
        self.shared.any_broken(self.epoch)
    }

    /// How the last reset ended.
    pub(crate) fn outcome(&self) -> ResetProgress {
        match self.phase() {
            Phase::Running => ResetProgress::Done,
            Phase::Gone => ResetProgress::Gone,
            Phase::Stopping | Phase::Stopped => ResetProgress::Stuck,
        }
    }
}
