//! Requests that wait beyond their deadline end, whatever they wait for.
//!
//! Once the device has begun to change or to return anything for a request its deadline is over: it ends as it will.

use wire::Status;

use super::State;

/// Waiting requests are looked through for late ones no more often than this.
const SWEEP_INTERVAL_NS: u64 = 1_000_000;

impl State {
    /// A request waits that has this deadline.
    #[inline]
    pub(super) fn note_deadline(&mut self, deadline_ns: u64) {
        self.next_deadline_ns = self.next_deadline_ns.min(deadline_ns);
    }

    /// Ends what is late, if anything can be.
    #[inline]
    pub(super) fn end_late(&mut self) {
        if self.now_ns > self.next_deadline_ns && self.now_ns >= self.next_sweep_ns {
            self.sweep();
        }
    }

    /// Looks through all lists of waiting requests.
    #[cold]
    fn sweep(&mut self) {
        self.next_sweep_ns = self.now_ns.saturating_add(SWEEP_INTERVAL_NS);
        self.next_deadline_ns = u64::MAX;
        let Self { slots, management, now_ns, next_deadline_ns, late, .. } = self;
        // One of which the device has something is left to whoever goes on with it.
        let mut keep = |slot: &u32| {
            let s = slots.get(*slot);
            if s.submitted > 0 || s.outstanding > 0 {
                return true;
            }
            let deadline_ns = slots.asked(*slot).deadline_ns;
            let is_late = *now_ns > deadline_ns;
            if is_late {
                late.push(*slot);
            } else {
                *next_deadline_ns = (*next_deadline_ns).min(deadline_ns);
            }
            !is_late
        };
        self.held.retain(&mut keep);
        self.starved.retain(&mut keep);
        self.gated.retain(&mut keep);
        self.flush_next.retain(&mut keep);
        self.throttle.retain(&mut keep);
        management.retain(&mut keep);
        let is_late = |slot: u32| {
            let deadline_ns = slots.asked(slot).deadline_ns;
            if *now_ns <= deadline_ns {
                *next_deadline_ns = (*next_deadline_ns).min(deadline_ns);
            }
            *now_ns > deadline_ns
        };
        management.withdraw_late(is_late, late);
        while let Some(slot) = self.late.pop() {
            self.slots.get_mut(slot).fail(Status::E_DEADLINE, 0);
            self.finish(slot);
        }
    }
}
