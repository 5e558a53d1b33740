//! The application's end.

use crate::index::{advance, distance, phase};
use crate::layout::{
    CompletionEntry, CompletionWords, Entries, STATE_READY, SubmissionEntry, SubmissionWords,
};
use crate::sync::{Ordering, fence};
use crate::view::QueueMemory;

/// As many requests are between push and pop as the queue has entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the queue is full: take completions out of it first")]
pub struct Full;

/// Writes requests, reads completions. One thread at a time owns it.
#[derive(Debug)]
pub struct ApplicationEnd<M> {
    memory: M,
    entries: Entries,
    /// Submission entries written.
    pushed: u32,
    /// Of them, those announced.
    rung: u32,
    /// Of them, those that the adapter said it has taken.
    taken: u32,
    /// Completion entries consumed.
    popped: u32,
}

impl<M: QueueMemory> ApplicationEnd<M> {
    /// An end over fresh, zeroed memory.
    pub fn new(memory: M, entries: Entries) -> Self {
        Self::starting_at(memory, entries, 0)
    }

    /// As if `laps` pairs of laps had gone by already, so that tests reach the wrap of the counts.
    #[doc(hidden)]
    pub fn starting_at(memory: M, entries: Entries, laps: u32) -> Self {
        let start = laps.wrapping_mul(2 * entries.get());
        memory.tail().store(start, Ordering::Relaxed);
        memory.cq_head().store(start, Ordering::Relaxed);
        Self { memory, entries, pushed: start, rung: start, taken: start, popped: start }
    }

    /// The memory beneath.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Entries in each direction.
    pub fn entries(&self) -> Entries {
        self.entries
    }

    /// How many requests may be pushed now.
    #[inline]
    pub fn free(&self) -> u32 {
        self.entries.get().saturating_sub(self.outstanding())
    }

    /// Requests pushed whose completion was not popped yet.
    #[inline]
    pub fn outstanding(&self) -> u32 {
        distance(self.popped, self.pushed)
    }

    /// Requests pushed and not announced yet.
    #[inline]
    pub fn unrung(&self) -> u32 {
        distance(self.rung, self.pushed)
    }

    /// Requests announced that the adapter had not taken when it posted the last completion seen.
    pub fn untaken(&self) -> u32 {
        distance(self.taken, self.rung)
    }

    /// The user data of requests pushed and not announced.
    pub fn unrung_user_data(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.unrung()).map(|at| {
            let slot = self.entries.slot(advance(self.rung, at));
            let words: SubmissionWords =
                core::array::from_fn(|i| self.memory.sq_word(slot, i).load(Ordering::Relaxed));
            let entry: SubmissionEntry = zerocopy::transmute!(words);
            entry.user_data
        })
    }

    /// Writes a request into its slot. The adapter does not see it before [`Self::ring`].
    ///
    /// # Errors
    /// [`Full`]; nothing was written.
    #[inline]
    pub fn push(&mut self, entry: &SubmissionEntry) -> Result<(), Full> {
        if self.free() == 0 {
            return Err(Full);
        }
        raw_overwrite(&self.memory, self.entries.slot(self.pushed), entry);
        self.pushed = advance(self.pushed, 1);
        Ok(())
    }

    /// Rings the doorbell: announces all that was pushed. True if the adapter sleeps: its eventfd must be written
    /// ([`crate::doorbell::Bell::ring`]). With nothing pushed it does nothing and says false.
    #[inline]
    pub fn ring(&mut self) -> bool {
        self.announce() && self.adapter_sleeps()
    }

    /// As [`Self::ring`] to an adapter that never sleeps, as one embedded in this process: does not look whether it does.
    /// False if nothing was pushed.
    #[inline]
    pub fn announce(&mut self) -> bool {
        if self.rung == self.pushed {
            return false;
        }
        self.rung = self.pushed;
        // Release: pairs with the Acquire load of poll_doorbell; the entries are there before the count says so.
        self.memory.tail().store(self.rung, Ordering::Release);
        true
    }

    /// Store (tail), fence, load (need_wake) against set_need_wake's store (need_wake), fence, load (tail).
    #[inline]
    fn adapter_sleeps(&self) -> bool {
        fence(Ordering::SeqCst);
        self.memory.need_wake().load(Ordering::Relaxed) != 0
    }

    /// The next completion, if it is there. Its room is given back to the adapter.
    #[inline]
    pub fn pop(&mut self) -> Option<CompletionEntry> {
        let slot = self.entries.slot(self.popped);
        let last = self.arrived(slot)?;
        let word = |i| self.memory.cq_word(slot, i).load(Ordering::Relaxed);
        let words: CompletionWords = [word(0), word(1), word(2), last];
        let entry: CompletionEntry = zerocopy::transmute!(words);
        // Only forward, and not beyond what was announced: anything else is not a count of ours.
        if distance(self.taken, entry.sq_head) <= self.untaken() {
            self.taken = entry.sq_head;
        }
        self.popped = advance(self.popped, 1);
        // Release: pairs with the Acquire load of take; the entry was copied before its slot is free.
        self.memory.cq_head().store(self.popped, Ordering::Release);
        Some(entry)
    }

    /// Whether [`Self::pop`] would give a completion.
    #[inline]
    pub fn has_completion(&self) -> bool {
        self.arrived(self.entries.slot(self.popped)).is_some()
    }

    /// The last word of the completion in `slot`, if its phase says that it is of this lap.
    #[inline]
    fn arrived(&self, slot: usize) -> Option<u64> {
        // Acquire: pairs with the Release store of complete.
        let last = self.memory.cq_word(slot, 3).load(Ordering::Acquire);
        ((last >> 16) & 1 == u64::from(phase(self.entries, self.popped))).then_some(last)
    }

    /// The state word: one of the `STATE_` constants of [`crate::layout`]. In the error state the adapter answers what
    /// is announced with E_FLUSHED.
    #[inline]
    pub fn state(&self) -> u32 {
        // Acquire: pairs with the Release store of fail.
        self.memory.state().load(Ordering::Acquire)
    }

    /// Says that this side is about to sleep, and looks once more. True: nothing has come, now wait on
    /// [`QueueMemory::cq_wait`] for the value 1 to go ([`crate::doorbell::wait`]), then call [`Self::end_wait`].
    /// False: there is a completion, or the queue is in error; there is nothing to end.
    pub fn begin_wait(&self) -> bool {
        self.memory.cq_wait().store(1, Ordering::Relaxed);
        // Store (cq_wait), fence, load (completion, state) against end_turn's store (completion, state), fence, load
        // (cq_wait).
        fence(Ordering::SeqCst);
        if self.has_completion() || self.state() != STATE_READY && self.outstanding() == 0 {
            self.end_wait();
            return false;
        }
        true
    }

    /// Says that this side is awake again.
    pub fn end_wait(&self) {
        self.memory.cq_wait().store(0, Ordering::Relaxed);
    }

    /// For tests and demonstrations of what the adapter refuses: stores any value as the doorbell. The counts of this
    /// end follow it. True if the adapter sleeps, as [`Self::ring`] says it.
    pub fn raw_tail_store(&mut self, tail: u32) -> bool {
        self.pushed = tail;
        self.rung = tail;
        self.memory.tail().store(tail, Ordering::Release);
        self.adapter_sleeps()
    }

    /// For tests and demonstrations likewise: overwrites any submission slot at any time, announced or not.
    pub fn raw_overwrite(&self, slot: usize, entry: &SubmissionEntry) {
        raw_overwrite(&self.memory, slot, entry);
    }
}

/// Writes a submission slot, announced or not: what [`ApplicationEnd::raw_overwrite`] does, for those who have the memory
/// and not the end.
#[inline]
pub fn raw_overwrite(memory: &impl QueueMemory, slot: usize, entry: &SubmissionEntry) {
    let words: SubmissionWords = zerocopy::transmute!(*entry);
    for (i, word) in words.into_iter().enumerate() {
        // Relaxed: the doorbell's Release comes after.
        memory.sq_word(slot, i).store(word, Ordering::Relaxed);
    }
}
