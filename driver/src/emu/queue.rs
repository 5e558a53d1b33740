//! Submission and completion queues, and how commands go through them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};

use super::admin::EVENT_BAD_DOORBELL_VALUE;
use super::controller::Controller;
use super::doorbell::Shadow;
use super::interpose::{Posting, Verdict};
use super::iommu::{Direction, Fault, Window};
use super::memory::Span;
use super::nvm::blocks;
use crate::spec::nvme::{CQE_LEN, Cqe, SQE_LEN, Sqe, Status, StatusField, nvm};

/// Takes `mutex` without ever going to sleep in the kernel: its holders only run for as long as a batch takes, and
/// each queue pair has one user.
#[inline]
pub(super) fn spin<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    let mut spins = 0u32;
    loop {
        match mutex.try_lock() {
            Ok(guard) => return guard,
            Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                spins += 1;
                // A holder that was preempted, on this core perhaps: the only case for a system call here.
                if spins.is_multiple_of(1 << 16) {
                    std::thread::yield_now();
                } else {
                    std::hint::spin_loop();
                }
            }
        }
    }
}

/// A submission queue that exists.
#[derive(Debug)]
pub(super) struct Submission {
    pub(super) id: u16,
    base: u64,
    entries: u32,
    head: u32,
    /// Its completion queue.
    pub(super) completion: u16,
    /// Where the host was asked to write the doorbell, if its doorbells are in memory.
    event: Option<u32>,
    /// Commands fetched and kept from running.
    pub(super) held: Vec<Sqe>,
}

/// Room for a submission queue. What the doorbell's writer touches is outside of the lock.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct SubmissionSlot {
    /// The doorbell's last value.
    pub(super) tail: AtomicU32,
    /// Entries of the queue; 0 while there is none.
    pub(super) entries: AtomicU32,
    /// Its completion queue.
    pub(super) completion: AtomicU16,
    pub(super) state: Mutex<Option<Submission>>,
    pub(super) traffic: Traffic,
}

/// What went through a queue since the controller was made.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub(super) commands: AtomicU64,
    pub(super) blocks_read: AtomicU64,
    pub(super) blocks_written: AtomicU64,
    pub(super) reads: AtomicU64,
    pub(super) writes: AtomicU64,
}

/// Adds to a counter that only the holder of the queue's lock changes.
fn count(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

impl Traffic {
    #[inline]
    fn note(&self, command: &Sqe) {
        count(&self.commands, 1);
        match command.cdw0.opc() {
            nvm::READ => {
                count(&self.reads, 1);
                count(&self.blocks_read, u64::from(blocks(command)));
            }
            nvm::WRITE => {
                count(&self.writes, 1);
                count(&self.blocks_written, u64::from(blocks(command)));
            }
            _ => {}
        }
    }
}

/// A completion queue that exists.
#[derive(Debug)]
pub(super) struct Completion {
    base: u64,
    entries: u32,
    tail: u32,
    phase: bool,
    /// Completions that found no room.
    backlog: VecDeque<[u64; 2]>,
}

/// Room for a completion queue.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct CompletionSlot {
    /// The doorbell's last value.
    pub(super) head: AtomicU32,
    /// Entries of the queue; 0 while there is none.
    pub(super) entries: AtomicU32,
    /// Completions wait for room, and the queue's commands with them.
    pub(super) stalled: AtomicBool,
    /// Its interrupt vector plus one; 0 if it raises none.
    interrupt: AtomicU32,
    pub(super) state: Mutex<Option<Completion>>,
}

impl SubmissionSlot {
    /// Makes a queue of `entries` at `base`.
    pub(super) fn create(&self, id: u16, base: u64, entries: u32, completion: u16) {
        let mut state = spin(&self.state);
        self.tail.store(0, Ordering::Relaxed);
        self.completion.store(completion, Ordering::Relaxed);
        self.entries.store(entries, Ordering::Release);
        *state = Some(Submission { id, base, entries, head: 0, completion, event: None, held: Vec::new() });
    }

    /// Ends the queue; when this returns none of its commands runs.
    pub(super) fn delete(&self) {
        let mut state = spin(&self.state);
        self.entries.store(0, Ordering::Release);
        *state = None;
    }

    pub(super) fn exists(&self) -> bool {
        self.entries.load(Ordering::Acquire) != 0
    }
}

impl CompletionSlot {
    /// Makes a queue of `entries` at `base`.
    pub(super) fn create(&self, base: u64, entries: u32, interrupt: Option<u16>) {
        let mut state = spin(&self.state);
        self.head.store(0, Ordering::Relaxed);
        self.stalled.store(false, Ordering::Relaxed);
        self.interrupt.store(interrupt.map_or(0, |vector| u32::from(vector) + 1), Ordering::Relaxed);
        self.entries.store(entries, Ordering::Release);
        *state = Some(Completion { base, entries, tail: 0, phase: true, backlog: VecDeque::new() });
    }

    /// Ends the queue.
    pub(super) fn delete(&self) {
        let mut state = spin(&self.state);
        self.entries.store(0, Ordering::Release);
        *state = None;
    }

    pub(super) fn exists(&self) -> bool {
        self.entries.load(Ordering::Acquire) != 0
    }

    /// The vector, if it raises interrupts.
    #[inline]
    pub(super) fn interrupt(&self) -> Option<u32> {
        self.interrupt.load(Ordering::Relaxed).checked_sub(1)
    }

    /// Whether there are completions that the host has not taken.
    pub(super) fn waiting(&self) -> bool {
        spin(&self.state).as_ref().is_some_and(|queue| queue.tail != self.head.load(Ordering::SeqCst))
    }

    /// Posts as many waiting completions as there is room for. `shadow` is the head in the host's memory, if it is there.
    fn drain(
        &self,
        queue: &mut Completion,
        window: &Window<'_>,
        shadow: Option<Shadow>,
    ) -> Result<(), Fault> {
        while let Some(&entry) = queue.backlog.front() {
            let next = (queue.tail + 1) % queue.entries;
            if next == self.newest_head(window, shadow)? {
                self.stalled.store(true, Ordering::SeqCst);
                if let Some(shadow) = shadow {
                    shadow.ask(window, next)?;
                }
                // The host may have moved the head just before it could see that.
                if next == self.newest_head(window, shadow)? {
                    return Ok(());
                }
            }
            queue.write(window, entry)?;
            queue.backlog.pop_front();
        }
        self.stalled.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn newest_head(&self, window: &Window<'_>, shadow: Option<Shadow>) -> Result<u32, Fault> {
        if let Some(shadow) = shadow {
            let head = shadow.read(window)?;
            // One that does not exist makes no room.
            if head < self.entries.load(Ordering::Relaxed) {
                self.head.store(head, Ordering::SeqCst);
            }
        }
        Ok(self.head.load(Ordering::SeqCst))
    }

    /// Posts `entry`, or lets it wait for room.
    #[inline]
    fn post(
        &self,
        queue: &mut Completion,
        window: &Window<'_>,
        entry: [u64; 2],
        shadow: impl FnOnce() -> Option<Shadow>,
    ) -> Result<(), Fault> {
        let next = if queue.tail + 1 == queue.entries { 0 } else { queue.tail + 1 };
        if queue.backlog.is_empty() && next != self.head.load(Ordering::Acquire) {
            return queue.write(window, entry);
        }
        queue.backlog.push_back(entry);
        self.drain(queue, window, shadow())
    }
}

impl Completion {
    #[inline]
    fn write(&mut self, window: &Window<'_>, [low, high]: [u64; 2]) -> Result<(), Fault> {
        let at = self.base + u64::from(self.tail) * CQE_LEN as u64;
        // See `complete`.
        let phase = u64::from(self.phase) << 48;
        let span = window.find(at, CQE_LEN, Direction::ToHost)?;
        if !span.publish([low, high ^ phase]) {
            return Err(Fault);
        }
        self.tail += 1;
        if self.tail == self.entries {
            self.tail = 0;
            self.phase = !self.phase;
        }
        Ok(())
    }
}

/// Whom a completion is for.
#[derive(Clone, Copy)]
pub(super) struct Sender {
    pub(super) queue: u16,
    pub(super) head: u16,
    pub(super) completion: u16,
}

impl Submission {
    #[expect(clippy::cast_possible_truncation, reason = "queues have at most 65,536 entries")]
    pub(super) fn sender(&self) -> Sender {
        Sender { queue: self.id, head: self.head as u16, completion: self.completion }
    }

    /// All its entries.
    fn ring<'w>(&self, window: &'w Window<'_>) -> Result<Span<'w>, Fault> {
        window.find(self.base, self.entries as usize * SQE_LEN, Direction::FromHost)
    }

    /// The entry at the head, as it is now.
    #[inline]
    fn peek(&self, ring: Span<'_>) -> Option<Sqe> {
        let words: [u64; 8] = ring.part(self.head as usize * SQE_LEN, SQE_LEN)?.load()?;
        Some(zerocopy::transmute!(words))
    }

    #[inline]
    fn fetch(&mut self, ring: Span<'_>) -> Option<Sqe> {
        let command = self.peek(ring)?;
        self.head = if self.head + 1 == self.entries { 0 } else { self.head + 1 };
        Some(command)
    }
}

impl Controller {
    /// Runs at most `budget` commands of a submission queue, on this thread; `awake` if it is looked at again soon, whether
    /// or not its doorbell is written. Says whether any ran.
    pub(super) fn serve(&self, queue: u16, budget: usize, awake: bool) -> bool {
        let slot = &self.submissions[usize::from(queue)];
        let mut state = spin(&slot.state);
        let Some(submission) = state.as_mut() else {
            return false;
        };
        let window = self.iommu.window(usize::from(queue));
        let shadow = self.shadows.tail(queue);
        let mut ran = 0;
        loop {
            let before = ran;
            if let Some(shadow) = shadow
                && self.is_running()
                && self.follow(&window, submission, shadow, awake).is_err()
            {
                self.fail("a shadow doorbell could not be read, or its event index not be written");
            }
            ran += self.advance(&window, submission, budget - ran);
            // The host may have moved a tail in memory before it could see that its doorbell is wanted.
            if shadow.is_none() || ran == before || ran >= budget {
                break;
            }
        }
        if queue == 0 {
            self.deliver_events(&window, submission);
        }
        let completion = submission.completion;
        drop(window);
        drop(state);
        if ran > 0 {
            self.interrupt(completion);
        }
        ran > 0
    }

    /// Runs what lies between head and tail, at most `budget` commands. Returns how many ran.
    #[inline]
    fn advance(&self, window: &Window<'_>, submission: &mut Submission, budget: usize) -> usize {
        let slot = &self.submissions[usize::from(submission.id)];
        let completions = &self.completions[usize::from(submission.completion)];
        if submission.head == slot.tail.load(Ordering::Acquire) {
            return 0;
        }
        let ring = submission.ring(window).ok();
        let mut ran = 0;
        while ran < budget
            && submission.head != slot.tail.load(Ordering::Acquire)
            && !completions.stalled.load(Ordering::Relaxed)
            && self.is_running()
        {
            let Some(command) = ring.and_then(|ring| submission.fetch(ring)) else {
                self.fail("a submission queue entry could not be read");
                break;
            };
            ran += 1;
            slot.traffic.note(&command);
            // Nobody announced the first of a batch. Only writes are the better for it: a read of one block is slower
            // with its lines asked for twice at the same time.
            if ran == 1 && submission.id != 0 && command.cdw0.opc() == nvm::WRITE {
                self.expect(&command);
            }
            if submission.id != 0
                && submission.head != slot.tail.load(Ordering::Relaxed)
                && let Some(next) = ring.and_then(|ring| submission.peek(ring))
            {
                self.expect(&next);
            }
            self.begin(window, submission, &command);
        }
        ran
    }

    /// Takes the tail from the host's memory. Before, it says whether the doorbell is wanted when the tail moves on.
    fn follow(
        &self,
        window: &Window<'_>,
        submission: &mut Submission,
        shadow: Shadow,
        awake: bool,
    ) -> Result<(), Fault> {
        let slot = &self.submissions[usize::from(submission.id)];
        let tail = slot.tail.load(Ordering::Relaxed);
        // The index before the tail is one that it does not leave for long.
        let event = if awake { tail.checked_sub(1).unwrap_or(submission.entries - 1) } else { tail };
        if submission.event != Some(event) {
            let mut said = event;
            if let Some(interposer) = &self.shape.interposer {
                interposer.event(submission.id, &mut said);
            }
            shadow.ask(window, said)?;
            submission.event = Some(event);
        }
        let told = shadow.read(window)?;
        if told < submission.entries {
            slot.tail.store(told, Ordering::Release);
        } else {
            spin(&self.admin).note_event(EVENT_BAD_DOORBELL_VALUE);
        }
        Ok(())
    }

    /// Runs a command that was just fetched, unless something keeps it from running.
    #[inline]
    fn begin(&self, window: &Window<'_>, submission: &mut Submission, command: &Sqe) {
        if let Some(interposer) = &self.shape.interposer {
            match interposer.before(submission.id, command) {
                Verdict::Run => {}
                Verdict::Hold => {
                    submission.held.push(*command);
                    return;
                }
                Verdict::RunAndHold => {
                    self.run(window, submission, command);
                    submission.held.push(*command);
                    return;
                }
                Verdict::Fail(status) => {
                    return self.complete(window, submission.sender(), command.cdw0.cid(), Err(status));
                }
            }
        }
        if submission.held.iter().any(|held| held.cdw0.cid() == command.cdw0.cid()) {
            return self.complete(
                window,
                submission.sender(),
                command.cdw0.cid(),
                Err(Status::COMMAND_ID_CONFLICT),
            );
        }
        self.run(window, submission, command);
    }

    #[inline]
    fn run(&self, window: &Window<'_>, submission: &mut Submission, command: &Sqe) {
        let outcome = if submission.id == 0 {
            match self.administer(window, submission, command) {
                Ok(None) => return,
                Ok(Some(result)) => Ok(result),
                Err(status) => Err(status),
            }
        } else {
            self.execute(window, command).map(|()| 0)
        };
        self.complete(window, submission.sender(), command.cdw0.cid(), outcome);
    }

    /// Runs all held commands of a queue, on this thread. Returns how many.
    pub(super) fn release(&self, queue: u16) -> usize {
        let mut state = spin(&self.submissions[usize::from(queue)].state);
        let Some(submission) = state.as_mut() else {
            return 0;
        };
        let window = self.iommu.window(usize::from(queue));
        let held = std::mem::take(&mut submission.held);
        for command in &held {
            self.run(&window, submission, command);
        }
        let completion = submission.completion;
        drop(window);
        drop(state);
        self.interrupt_from_afar(completion);
        held.len()
    }

    /// Runs one held command of a queue, chosen by `pick`, on this thread. Says whether there was one.
    pub(super) fn release_one(&self, queue: u16, pick: usize) -> bool {
        let mut state = spin(&self.submissions[usize::from(queue)].state);
        let Some(submission) = state.as_mut().filter(|submission| !submission.held.is_empty()) else {
            return false;
        };
        let window = self.iommu.window(usize::from(queue));
        let command = submission.held.swap_remove(pick % submission.held.len());
        self.run(&window, submission, &command);
        let completion = submission.completion;
        drop(window);
        drop(state);
        self.interrupt_from_afar(completion);
        true
    }

    /// Posts the completion of command `id`.
    #[inline]
    pub(super) fn complete(&self, window: &Window<'_>, from: Sender, id: u16, outcome: Result<u32, Status>) {
        let mut entry = Cqe { sqhd: from.head, sqid: from.queue, cid: id, ..Cqe::default() };
        match outcome {
            Ok(result) => entry.dw0 = result,
            Err(status) => {
                entry.status = StatusField::new(status, false);
                entry.status.set_dnr(true);
                self.note_error(from.queue, id, entry.status);
            }
        }
        let mut posting = Posting { entry, wrong_phase: false, copies: 1 };
        if let Some(interposer) = &self.shape.interposer {
            interposer.completion(&mut posting);
        }
        // Until it is posted, the phase bit says whether to lie about the phase.
        posting.entry.status.set_phase(posting.wrong_phase);
        let entry: [u64; 2] = zerocopy::transmute!(posting.entry);
        let slot = &self.completions[usize::from(from.completion)];
        let mut state = spin(&slot.state);
        let Some(queue) = state.as_mut() else { return };
        for _ in 0..posting.copies {
            if slot.post(queue, window, entry, || self.shadows.head(from.completion)).is_err() {
                self.fail("a completion queue entry could not be written");
                return;
            }
        }
    }

    /// The host has made room in a completion queue that had none.
    pub(super) fn resume(&self, completion: u16) {
        let slot = &self.completions[usize::from(completion)];
        {
            let mut state = spin(&slot.state);
            let Some(queue) = state.as_mut() else { return };
            let window = self.iommu.window(self.resume_gate());
            if slot.drain(queue, &window, self.shadows.head(completion)).is_err() {
                self.fail("a completion queue entry could not be written");
            }
        }
        self.interrupt(completion);
        for (queue, submissions) in (0u16..).zip(&self.submissions) {
            if submissions.exists() && submissions.completion.load(Ordering::Relaxed) == completion {
                self.ring(queue);
            }
        }
    }
}
