//! Entry points for fuzzers: plain functions of the input, which panic when a promise is broken.

use crate::control::{Reply, Request};
use crate::index::distance;
use crate::layout::{Entries, SubmissionEntry};
use crate::ring::{AdapterEnd, Completion};
use crate::sync::Ordering;
use crate::view::{LocalQueue, QueueMemory};
use crate::{Status, frame};

/// Decodes a packet both ways. What decodes must encode, and decode to the same again.
///
/// # Panics
/// If it does not.
pub fn control(data: &[u8]) {
    if let Ok((id, request)) = frame::decode_request(data) {
        let packet = frame::encode(id, &request).unwrap_or_else(|e| panic!("{request:?}: {e}"));
        assert!(packet.len() <= data.len(), "the shortest encoding is used");
        assert_eq!(frame::decode_request(&packet), Ok((id, request)));
    }
    if let Ok((id, reply)) = frame::decode_reply(data) {
        let packet = frame::encode(id, &reply).unwrap_or_else(|e| panic!("{reply:?}: {e}"));
        assert!(packet.len() <= data.len(), "the shortest encoding is used");
        assert_eq!(frame::decode_reply(&packet), Ok((id, reply)));
    }
    body::<Request>(data);
    body::<Reply>(data);
}

/// The same without a header, as a management entry carries it.
fn body<T: frame::Message + PartialEq + core::fmt::Debug>(data: &[u8]) {
    let Ok(message) = frame::decode_body::<T>(data) else { return };
    let mut again = vec![0; data.len()];
    let bytes = frame::encode_body(&message, &mut again).unwrap_or_else(|e| panic!("{message:?}: {e}"));
    assert_eq!(frame::encoded_len(&message), Ok(bytes));
    assert_eq!(frame::decode_body(&again[..bytes]), Ok(message));
}

/// A hostile application scribbles over its words between the steps of the adapter's end.
///
/// # Panics
/// If the adapter takes more than was announced, reserves more than there is room for, completes into a slot that the
/// application did not give back, or executes anything in the error state.
pub fn peer(data: &[u8]) {
    let Some((&[size, laps], steps)) = data.split_first_chunk() else {
        return;
    };
    let Some(entries) = Entries::new(2 << (size % 4)) else {
        return;
    };
    // Up to 4 pairs of laps before the wrap of the counts.
    let laps = (u32::MAX / (2 * entries.get())).wrapping_sub(u32::from(laps % 4));
    let memory = LocalQueue::new(entries);
    let start = laps.wrapping_mul(2 * entries.get());
    memory.tail().store(start, Ordering::Relaxed);
    memory.cq_head().store(start, Ordering::Relaxed);
    let mut model = Model::new(AdapterEnd::starting_at(&memory, entries, laps), start);
    for step in steps.chunks(2) {
        let (what, value) = (step[0], step.get(1).copied().unwrap_or(0));
        scribble(&model, what >> 4, value);
        model.step(what & 7, value);
        model.check();
    }
    model.finish();
}

/// What the application does: mostly what it may, near misses around the counts, plain nonsense, and stores to words
/// that are not its own.
fn scribble(model: &Model<'_>, what: u8, value: u8) {
    let memory: &LocalQueue = model.end.memory();
    let far = u32::from(value).wrapping_mul(0x9e37_79b9);
    let tail = memory.tail().load(Ordering::Relaxed);
    let head = memory.cq_head().load(Ordering::Relaxed);
    let full = model.count(model.taken).wrapping_add(model.end.entries().get());
    match (what, value & 15) {
        (0..=5, _) if tail != full => memory.tail().store(tail.wrapping_add(1), Ordering::Relaxed),
        (6..=7, _) => memory.tail().store(full, Ordering::Relaxed),
        (8..=10, _) if head != model.count(model.completed) => {
            memory.cq_head().store(head.wrapping_add(1), Ordering::Relaxed);
        }
        (11, _) => memory.cq_head().store(model.count(model.completed), Ordering::Relaxed),
        (12, 0..=1) => {
            memory.tail().store(tail.wrapping_add(u32::from(value >> 4)).wrapping_sub(2), Ordering::Relaxed);
        }
        (12, 2..=7) => memory
            .cq_head()
            .store(head.wrapping_add(u32::from(value >> 4)).wrapping_sub(2), Ordering::Relaxed),
        (12, 8) => memory.tail().store(far, Ordering::Relaxed),
        (12, 9..=10) => memory.cq_head().store(far, Ordering::Relaxed),
        (13, i) => memory.sq_word(usize::from(value >> 4), i.into()).store(far.into(), Ordering::Relaxed),
        (14, i) => memory.cq_word(usize::from(value >> 4), i.into()).store(u64::MAX, Ordering::Relaxed),
        (15, 0..=4) => memory.cq_wait().store(far, Ordering::Relaxed),
        (15, 5..=9) => memory.need_wake().store(far, Ordering::Relaxed),
        (15, _) => memory.state().store(far, Ordering::Relaxed),
        _ => {}
    }
}

/// The adapter's end with counts of what must hold, kept in 64 bits so that nothing wraps.
struct Model<'a> {
    end: AdapterEnd<&'a LocalQueue>,
    start: u32,
    rung: u64,
    taken: u64,
    completed: u64,
    /// Completion slots that the application gave back, at most.
    given_back: u64,
    pending: Vec<u64>,
}

impl<'a> Model<'a> {
    fn new(end: AdapterEnd<&'a LocalQueue>, start: u32) -> Self {
        Self { end, start, rung: 0, taken: 0, completed: 0, given_back: 0, pending: Vec::new() }
    }

    fn step(&mut self, what: u8, value: u8) {
        let said = distance(self.start, self.end.memory().cq_head().load(Ordering::Relaxed));
        if u64::from(said) <= self.completed {
            self.given_back = self.given_back.max(said.into());
        }
        match what {
            0 | 1 => match self.end.poll_doorbell() {
                Ok(new) => {
                    assert!(new <= self.end.entries().get());
                    self.rung += u64::from(new);
                }
                Err(overrun) => {
                    assert_eq!(overrun.head, self.count(self.taken));
                    self.end.fail();
                }
            },
            2 | 3 => match self.end.take() {
                Ok(None) => {}
                Ok(Some(SubmissionEntry { user_data, .. })) => {
                    assert!(!self.end.is_failed(), "nothing is executed in the error state");
                    self.took(user_data);
                }
                Err(violation) => {
                    assert_eq!(violation.posted, self.count(self.completed));
                    self.end.fail();
                }
            },
            4 => self.complete(usize::from(value), Status::OK),
            5 => {
                if let Some(user_data) = self.end.take_flushed() {
                    assert!(self.end.is_failed());
                    self.took(user_data);
                    self.complete(self.pending.len() - 1, Status::E_FLUSHED);
                }
            }
            6 => {
                self.end.end_turn();
                self.end.set_need_wake(value & 1 == 1);
                let _ = self.end.has_rung();
            }
            _ if value == 0 => self.end.fail(),
            _ => {}
        }
    }

    fn took(&mut self, user_data: u64) {
        self.taken += 1;
        self.pending.push(user_data);
    }

    fn complete(&mut self, which: usize, status: Status) {
        if self.pending.is_empty() {
            return;
        }
        let user_data = self.pending.swap_remove(which % self.pending.len());
        self.end.complete(&Completion::failed(user_data, status));
        self.completed += 1;
    }

    /// The 32-bit count of a number of steps.
    fn count(&self, steps: u64) -> u32 {
        self.start.wrapping_add(u32::try_from(steps).unwrap_or(u32::MAX))
    }

    fn check(&self) {
        let (end, entries) = (&self.end, self.end.entries().get());
        assert!(self.taken <= self.rung, "never more taken than announced");
        assert_eq!(u64::from(end.waiting()), self.rung - self.taken);
        assert_eq!(u64::from(end.in_flight()), self.taken - self.completed);
        assert_eq!(usize::try_from(end.in_flight()), Ok(self.pending.len()));
        assert!(end.waiting() <= entries && end.in_flight() <= entries && end.room() <= entries);
        assert!(end.in_flight() + end.room() <= entries, "a reservation never exceeds the entries");
    }

    /// Whatever happened: every request taken can be completed.
    fn finish(&mut self) {
        while !self.pending.is_empty() {
            self.complete(0, Status::E_FLUSHED);
            self.check();
        }
    }
}
