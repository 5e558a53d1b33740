//! The adapter's end.

use crate::Status;
use crate::index::{advance, distance, movement, phase};
use crate::layout::{
    CompletionEntry, CompletionWords, Entries, STATE_ERROR, STATE_READY, SubmissionEntry, SubmissionWords,
};
use crate::sync::{Ordering, fence};
use crate::view::QueueMemory;

/// The doorbell moved by more than the queue has room for, or backwards ([`Status::E_DOORBELL_OVERRUN`]). The queue
/// must go to the error state: [`AdapterEnd::fail`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the doorbell says {tail} where {head} requests were taken from a queue of {entries} entries")]
pub struct Overrun {
    /// The free-running count that the application stored.
    pub tail: u32,
    /// The free-running count of requests taken.
    pub head: u32,
    /// Entries of the queue.
    pub entries: u32,
}

/// The application says that it consumed completions that it was never given, or un-consumed some. The queue must go
/// to the error state: [`AdapterEnd::fail`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the application says it consumed {said} completions, after {known} of the {posted} that were posted"
)]
pub struct Violation {
    /// The free-running count that the application stored.
    pub said: u32,
    /// The last valid one before.
    pub known: u32,
    /// The free-running count of completions posted.
    pub posted: u32,
}

/// How one request ended. Phase and submission head are added where it is posted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// From the request.
    pub user_data: u64,
    /// How it ended.
    pub status: Status,
    /// The device's own status where `status` is E_DEVICE, see [`CompletionEntry::device_status`].
    pub device_status: u32,
    /// Bytes moved.
    pub bytes: u32,
    /// Operation-specific.
    pub value: u64,
}

impl Completion {
    /// A success that moved `bytes`.
    pub const fn ok(user_data: u64, bytes: u32) -> Self {
        Self { user_data, status: Status::OK, device_status: 0, bytes, value: 0 }
    }

    /// A failure that moved nothing.
    pub const fn failed(user_data: u64, status: Status) -> Self {
        Self { user_data, status, device_status: 0, bytes: 0, value: 0 }
    }
}

/// Takes requests, posts completions. One poller at a time owns it.
///
/// Counts are private. From shared memory it reads only the application's own words, each once per decision, and
/// believes none that it did not check.
#[derive(Debug)]
pub struct AdapterEnd<M> {
    memory: M,
    entries: Entries,
    /// Requests announced within bounds.
    rung: u32,
    /// Of them, those taken, for execution or for flushing.
    taken: u32,
    /// Of them, those completed.
    posted: u32,
    /// Of them, those that the application has consumed, as it said last.
    consumed: u32,
    failed: bool,
    /// Something was posted since the last [`Self::end_turn`].
    unannounced: bool,
}

impl<M: QueueMemory> AdapterEnd<M> {
    /// An end over the memory of a new queue, ready.
    pub fn new(memory: M, entries: Entries) -> Self {
        Self::starting_at(memory, entries, 0)
    }

    /// As if `laps` pairs of laps had gone by already, so that tests reach the wrap of the counts.
    #[doc(hidden)]
    pub fn starting_at(memory: M, entries: Entries, laps: u32) -> Self {
        let start = laps.wrapping_mul(2 * entries.get());
        memory.need_wake().store(0, Ordering::Relaxed);
        memory.state().store(STATE_READY, Ordering::Relaxed);
        Self {
            memory,
            entries,
            rung: start,
            taken: start,
            posted: start,
            consumed: start,
            failed: false,
            unannounced: false,
        }
    }

    /// The memory beneath.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Entries in each direction.
    pub fn entries(&self) -> Entries {
        self.entries
    }

    /// Requests announced and not taken yet.
    #[inline]
    pub fn waiting(&self) -> u32 {
        distance(self.taken, self.rung)
    }

    /// Requests taken and not completed yet.
    #[inline]
    pub fn in_flight(&self) -> u32 {
        distance(self.posted, self.taken)
    }

    /// Completion slots not reserved, as far as known without asking the application's words.
    #[inline]
    pub fn room(&self) -> u32 {
        // Reserved: taken and not completed, plus completed and not consumed.
        self.entries.get() - distance(self.consumed, self.taken)
    }

    /// Whether [`Self::fail`] was called.
    #[inline]
    pub fn is_failed(&self) -> bool {
        self.failed
    }

    /// Reads the doorbell once. Gives the number of requests announced since the last time; 0 changes nothing.
    ///
    /// In the error state an impossible doorbell counts as 0, a possible one still announces, for
    /// [`Self::take_flushed`].
    ///
    /// # Errors
    /// [`Overrun`]; nothing changed.
    #[inline]
    pub fn poll_doorbell(&mut self) -> Result<u32, Overrun> {
        // Acquire: pairs with the Release store of ring; it covers the Relaxed loads of the entries in take.
        let tail = self.memory.tail().load(Ordering::Acquire);
        match movement(self.rung, tail, self.entries.get() - self.waiting()) {
            Some(0) => {
                // So that the next entry, which is written before the tail is, comes along with it and not after it.
                self.memory.prefetch(self.entries.slot(tail));
                Ok(0)
            }
            Some(new) => {
                self.rung = tail;
                Ok(new)
            }
            None if self.failed => Ok(0),
            None => Err(Overrun { tail, head: self.taken, entries: self.entries.get() }),
        }
    }

    /// Copies the next announced request out of the shared memory, as [`Self::take_into`] does.
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub fn take(&mut self) -> Result<Option<SubmissionEntry>, Violation> {
        let mut one = [SubmissionEntry::default()];
        let number = self.take_into(&mut one, |_| false)?;
        Ok((number != 0).then_some(one[0]))
    }

    /// Copies announced requests out of the shared memory, each once, and reserves the slots of their completions: as many
    /// as are there, as `into` has room for, and as completion slots are known to be free or turn out to be; none in the
    /// error state. `goes_on` sees each copy and says whether another one is wanted. Gives how many they are.
    ///
    /// Each request given out must be completed, exactly once, in any order.
    ///
    /// # Errors
    /// [`Violation`], found where completion room had to be asked for; nothing was taken.
    #[inline]
    pub fn take_into(
        &mut self,
        into: &mut [SubmissionEntry],
        mut goes_on: impl FnMut(&SubmissionEntry) -> bool,
    ) -> Result<usize, Violation> {
        let wanted = (self.waiting() as usize).min(into.len());
        if self.failed || wanted == 0 {
            return Ok(0);
        }
        if (self.room() as usize) < wanted {
            self.consumed = self.read_consumed()?;
        }
        let most = wanted.min(self.room() as usize);
        let mut number = 0;
        for entry in &mut into[..most] {
            let slot = advance(self.taken, number) as usize; // The memory comes round by itself.
            // Relaxed: the Acquire load of the tail came before. Each word is read exactly once.
            let words: SubmissionWords =
                core::array::from_fn(|i| self.memory.sq_word(slot, i).load(Ordering::Relaxed));
            *entry = zerocopy::transmute!(words);
            number += 1;
            if !goes_on(entry) {
                break;
            }
        }
        self.taken = advance(self.taken, number);
        if self.waiting() != 0 {
            self.memory.prefetch(self.entries.slot(self.taken));
        }
        Ok(number as usize)
    }

    /// The application's count of consumed completions, if it can be true.
    fn read_consumed(&self) -> Result<u32, Violation> {
        // Acquire: pairs with the Release store of pop; the completion was copied before its slot is written again.
        let said = self.memory.cq_head().load(Ordering::Acquire);
        let given = distance(self.consumed, self.posted);
        match movement(self.consumed, said, given) {
            Some(_) => Ok(said),
            None => Err(Violation { said, known: self.consumed, posted: self.posted }),
        }
    }

    /// Posts the completion of a request that was taken. Its slot was reserved then, so there is room.
    ///
    /// # Panics
    /// If there is no request without a completion: then the adapter completed one twice.
    #[inline]
    pub fn complete(&mut self, completion: &Completion) {
        assert!(self.in_flight() != 0, "a completion was posted for which no request was taken");
        let entry = CompletionEntry {
            user_data: completion.user_data,
            bytes: completion.bytes,
            device_status: completion.device_status,
            value: completion.value,
            status: completion.status.0,
            phase: phase(self.entries, self.posted),
            sq_head: self.taken,
        };
        let words: CompletionWords = zerocopy::transmute!(entry);
        let slot = self.posted as usize; // The memory comes round by itself.
        for (i, word) in words.into_iter().enumerate().take(3) {
            self.memory.cq_word(slot, i).store(word, Ordering::Relaxed);
        }
        // Release: pairs with the Acquire load of pop; phase and head come after the rest of the entry, and after the
        // requests up to that head were copied.
        self.memory.cq_word(slot, 3).store(words[3], Ordering::Release);
        self.posted = advance(self.posted, 1);
        self.unannounced = true;
    }

    /// Moves the queue to the error state, for good. No request is taken for execution any more; those announced within
    /// bounds, before and after, come out of [`Self::take_flushed`].
    pub fn fail(&mut self) {
        self.failed = true;
        // Release: pairs with the Acquire load of ApplicationEnd::state.
        self.memory.state().store(STATE_ERROR, Ordering::Release);
        self.unannounced = true;
    }

    /// In the error state: takes the next announced request and gives its user data, to be completed with
    /// [`Status::E_FLUSHED`], exactly once. `None`: there is none, no completion slot is free, or the queue is not in
    /// the error state.
    pub fn take_flushed(&mut self) -> Option<u64> {
        if !self.failed || self.waiting() == 0 {
            return None;
        }
        if self.room() == 0 {
            // A head that cannot be true frees nothing.
            self.consumed = self.read_consumed().ok()?;
            if self.room() == 0 {
                return None;
            }
        }
        let slot = self.entries.slot(self.taken);
        let user_data = self.memory.sq_word(slot, USER_DATA_WORD).load(Ordering::Relaxed);
        self.taken = advance(self.taken, 1);
        Some(user_data)
    }

    /// Ends a turn: true if something was posted since the last end and the application sleeps, so that a futex wake
    /// on [`QueueMemory::cq_wait`] is due ([`crate::doorbell::wake`]); its word is cleared already.
    #[inline]
    pub fn end_turn(&mut self) -> bool {
        if !self.has_posted() {
            return false;
        }
        fence_posts();
        self.find_sleeper()
    }

    /// Whether something was posted since the last [`Self::find_sleeper`], which is due then.
    #[inline]
    pub fn has_posted(&self) -> bool {
        self.unannounced
    }

    /// For one who ends turns of many queues at once, with one fence for all: as [`Self::end_turn`], and
    /// [`fence_posts`] must have been called since the last post to any of them. Without a post it says false.
    #[inline]
    pub fn find_sleeper(&mut self) -> bool {
        if !core::mem::take(&mut self.unannounced) || self.memory.cq_wait().load(Ordering::Relaxed) == 0 {
            return false;
        }
        // An application that begins to wait again between these two loses nothing: the wake comes after the store.
        self.memory.cq_wait().store(0, Ordering::Relaxed);
        true
    }

    /// Says whether the adapter sleeps. Before sleeping: `set_need_wake(true)`, then sleep only if [`Self::has_rung`]
    /// says false.
    pub fn set_need_wake(&self, sleeps: bool) {
        self.memory.need_wake().store(u32::from(sleeps), Ordering::Relaxed);
        if sleeps {
            // Store (need_wake), fence, load (tail) against ring's store (tail), fence, load (need_wake).
            fence(Ordering::SeqCst);
        }
    }

    /// Whether a turn would find something to do here: a doorbell not seen yet, or an announced request with room for
    /// its completion. An application that left no room cannot keep the adapter awake.
    pub fn has_rung(&self) -> bool {
        let tail = self.memory.tail().load(Ordering::Relaxed);
        let doorbell = match movement(self.rung, tail, self.entries.get() - self.waiting()) {
            Some(new) => new != 0,
            None => !self.failed,
        };
        doorbell || self.waiting() != 0 && (self.room() != 0 || self.would_free())
    }

    /// Whether reading the application's head would change something: room, or the error state.
    fn would_free(&self) -> bool {
        match self.read_consumed() {
            Ok(said) => said != self.consumed,
            Err(_) => !self.failed,
        }
    }
}

/// Stands between what was posted to queues and [`AdapterEnd::find_sleeper`] of each of them: store (completions, state),
/// fence, load (cq_wait) against begin_wait's store (cq_wait), fence, load (completion, state).
#[inline]
pub fn fence_posts() {
    fence(Ordering::SeqCst);
}

/// The word of a submission entry that holds the user data.
const USER_DATA_WORD: usize = core::mem::offset_of!(SubmissionEntry, user_data) / 8;
