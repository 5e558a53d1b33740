//! A request queue, used by one thread.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::block::{
    BlockQueue, Command, Completed, DeviceStatus, Geometry, Operation, QueueState, Segment, SubmitError,
    segments_fit,
};
use crate::hal::NarrowRegisters;
use crate::lifecycle::{Phase, Shared, State};
use crate::spec::virtio::block::{Range, RequestHeader, SECTOR_SHIFT, UNMAP, request, status};

use super::identity::Traits;
use super::ring::{Breach, QueueMemory, Ring, UNWRITTEN};
use super::slots::{Request, Slots};
use super::transport::Notifier;

/// Polls that find nothing, in a row, after which the device is notified of what it did not want to be notified of.
const PATIENCE: u32 = 1024;

/// What a queue is made of.
pub(super) struct QueueParts<R> {
    pub(super) notifier: Notifier<R>,
    pub(super) shared: Arc<Shared>,
    pub(super) memory: Arc<QueueMemory>,
    pub(super) traits: Traits,
    /// From 0.
    pub(super) index: u16,
    pub(super) interrupt: Option<OwnedFd>,
}

/// A request queue of a [`super::Controller`].
///
/// Drop it only when nothing is outstanding: what is, may go on, and nobody is told when it ends. Its own memory stays
/// until the device is seen reset.
pub struct Queue<R: NarrowRegisters> {
    notifier: Notifier<R>,
    shared: Arc<Shared>,
    memory: Arc<QueueMemory>,
    traits: Traits,
    index: u16,
    ring: Ring,
    slots: Slots,
    /// Flushes of a device that has nothing to flush, and how many of them were committed: they end at the next poll.
    idle_flushes: VecDeque<u16>,
    idle_committed: usize,
    /// Notifications so far.
    rings: u64,
    /// The device was told of something by way of memory alone.
    unrung: bool,
    /// Polls in a row that found nothing.
    quiet: u32,
    /// The device broke the rules since its last reset.
    broken: bool,
    /// The state in which this queue works, or for which it is clean; anything else is looked into.
    running: State,
    state: QueueState,
    interrupt: Option<OwnedFd>,
}

impl<R: NarrowRegisters> Queue<R> {
    pub(super) fn new(parts: QueueParts<R>) -> Self {
        let QueueParts { notifier, shared, memory, traits, index, interrupt } = parts;
        let mut ring = Ring::new(traits.event_index);
        // No interrupts until someone is about to sleep.
        ring.arm(&memory, false);
        Self {
            notifier,
            shared,
            traits,
            index,
            ring,
            slots: Slots::new(memory.slots()),
            idle_flushes: VecDeque::with_capacity(memory.slots().into()),
            idle_committed: 0,
            rings: 0,
            unrung: false,
            quiet: 0,
            broken: false,
            running: State::new(Phase::Running, 0),
            state: QueueState::Running,
            memory,
            interrupt,
        }
    }

    /// Becomes readable with completions, once armed, if the device has an interrupt for this queue. The owner reads it.
    pub fn interrupt_fd(&self) -> Option<BorrowedFd<'_>> {
        self.interrupt.as_ref().map(AsFd::as_fd)
    }

    #[cfg(test)]
    pub(super) fn memory(&self) -> Arc<QueueMemory> {
        Arc::clone(&self.memory)
    }

    fn place(&self) -> usize {
        usize::from(self.index)
    }

    #[inline]
    fn takes_commands(&self) -> bool {
        self.state == QueueState::Running && self.shared.state() == self.running
    }

    /// The type of the request, and whether a write zeroes is to deallocate; or refuses.
    #[inline]
    fn prepare(&self, command: &Command) -> Result<(u32, bool), SubmitError> {
        let geometry = &self.traits.geometry;
        let unmaps = self.traits.zeroes_unmap;
        let (kind, unmap, supported) = match command.operation {
            Operation::Read => (request::IN, false, true),
            Operation::Write { .. } => (request::OUT, false, true),
            Operation::Flush => return Ok((request::FLUSH, false)),
            Operation::WriteZeroes { deallocate } => {
                (request::WRITE_ZEROES, deallocate && unmaps, geometry.write_zeroes)
            }
            Operation::Deallocate if unmaps => (request::WRITE_ZEROES, true, true),
            Operation::Deallocate => (request::DISCARD, false, geometry.deallocate),
            Operation::Compare => return Err(SubmitError::Invalid),
        };
        let inside =
            command.lba <= geometry.blocks && u64::from(command.blocks) <= geometry.blocks - command.lba;
        let most = geometry.most_blocks(command.operation);
        if !supported || command.blocks == 0 || command.blocks > most || !inside {
            return Err(SubmitError::Invalid);
        }
        Ok((kind, unmap))
    }

    /// Takes a place for the command and writes its chain, with its memory in `segments`.
    #[inline]
    fn start(
        &mut self,
        command: &Command,
        (kind, unmap): (u32, bool),
        segments: &[Segment],
    ) -> Result<(), SubmitError> {
        let reads = kind == request::IN;
        let bytes = command.blocks << self.traits.geometry.block_shift; // of a transfer: 1 MiB at most
        let fua = matches!(command.operation, Operation::Write { fua: true });
        let entry = Request {
            tag: command.tag,
            at: self.ring.next(),
            writable: if reads { bytes + 1 } else { 1 },
            flush_after: fua && self.traits.geometry.write_cache,
        };
        let slot = self.slots.take(entry).ok_or(SubmitError::Full)?;
        if kind == request::FLUSH && !self.traits.flush {
            self.idle_flushes.push_back(slot);
            return Ok(());
        }
        let per_block = self.traits.geometry.block_shift - SECTOR_SHIFT;
        let moves = command.operation.moves_data();
        let sector = command.lba << per_block; // inside the device, whose sectors are counted in 64 bits
        let mut chain = self.memory.chain(slot);
        chain.header(RequestHeader { kind, reserved: 0, sector: if moves { sector } else { 0 } });
        if moves {
            for segment in segments {
                let (mut at, mut left) = (segment.data.0, segment.bytes);
                while left > 0 {
                    let len = left.min(self.traits.buffer_bytes);
                    chain.push(at, len, reads);
                    (at, left) = (at + u64::from(len), left - len);
                }
            }
        } else if kind != request::FLUSH {
            let flags = if unmap { UNMAP } else { 0 };
            chain.range(Range { sector, sectors: command.blocks << per_block, flags });
        }
        let head = chain.end();
        self.ring.enter(&self.memory, head);
        Ok(())
    }

    /// The write in `slot` is done; it ends when a flush after it is.
    #[cold]
    fn flush_after(&mut self, slot: u16) {
        let published = !self.ring.untold();
        let mut chain = self.memory.chain(slot);
        chain.header(RequestHeader { kind: request::FLUSH, ..RequestHeader::default() });
        let head = chain.end();
        if let Some(entry) = self.slots.get_mut(slot) {
            *entry = Request { at: self.ring.next(), writable: 1, flush_after: false, ..*entry };
        }
        self.ring.enter(&self.memory, head);
        // What was submitted and not committed must not start with it: then it waits for the commit.
        if published {
            self.publish();
        }
    }

    #[inline]
    fn publish(&mut self) {
        let wanted = self.ring.publish(&self.memory);
        self.unrung = !wanted;
        if wanted {
            self.notify();
        }
    }

    #[inline]
    fn notify(&mut self) {
        self.notifier.notify();
        self.rings += 1;
    }

    /// The next used entry: how its request ended, or `None` if it goes on. With `stopped` nothing goes on.
    #[inline]
    fn finish(&mut self, stopped: bool) -> Result<Option<Completed>, Breach> {
        let (slot, len) = self.ring.take(&self.memory)?;
        let entry = self.slots.get_mut(slot).copied();
        self.ring.check(slot, entry.map(|entry| entry.at))?;
        let Some(entry) = entry else { return Err(Breach::Id(slot.into())) };
        let said = self.memory.status(slot);
        if said == UNWRITTEN {
            return Err(Breach::NoStatus);
        }
        // The status is the last byte: what succeeded has written all (2.7.8.2: at least `len` bytes were written, and
        // nothing is known of those beyond).
        if len > entry.writable || said == status::OK && len < entry.writable {
            return Err(Breach::Length(len));
        }
        if said == status::OK && entry.flush_after {
            if !stopped {
                self.flush_after(slot);
                return Ok(None);
            }
            self.slots.give_back(slot);
            return Ok(Some(Completed { tag: entry.tag, status: DeviceStatus::ABORTED }));
        }
        self.slots.give_back(slot);
        let status = if said == status::OK { DeviceStatus::OK } else { DeviceStatus::virtio(said) };
        Ok(Some(Completed { tag: entry.tag, status }))
    }

    /// Ends what the device says is done, at most `budget`; returns how many, and whether anything was found.
    #[inline]
    fn reap(&mut self, budget: usize, stopped: bool, ended: &mut dyn FnMut(Completed)) -> (usize, bool) {
        let (mut count, mut found) = (0, false);
        loop {
            let mut ready = match self.ring.ready(&self.memory) {
                Ok(ready) => ready,
                Err(breach) => {
                    self.break_off(breach);
                    return (count, true);
                }
            };
            if ready == 0 || count >= budget {
                return (count, found);
            }
            found = true;
            while ready > 0 && count < budget {
                ready -= 1;
                match self.finish(stopped) {
                    Ok(Some(completed)) => {
                        count += 1;
                        ended(completed);
                    }
                    Ok(None) => {}
                    Err(breach) => {
                        self.break_off(breach);
                        return (count, true);
                    }
                }
            }
            // What came before the event was moved is looked for once more: nobody interrupts for it.
            self.ring.keep_armed(&self.memory);
        }
    }

    /// The device breaks the rules. Its ids have no generation, so nothing that it says from now on is to be believed:
    /// nothing ends until it is reset.
    #[cold]
    fn break_off(&mut self, breach: Breach) {
        tracing::warn!(queue = self.index, ?breach, "the device breaks the rules of its queue");
        self.shared.count_anomaly(self.place());
        self.shared.report_broken(self.place(), self.running.epoch());
        (self.state, self.broken) = (QueueState::Down, true);
    }

    /// The device is not as it was at the last poll, or broke the rules.
    #[cold]
    fn look(&mut self, now: State, budget: usize, ended: &mut dyn FnMut(Completed)) -> usize {
        let mut count = 0;
        match now.phase() {
            // Broken, and not reset yet.
            Phase::Running if now == self.running => {}
            Phase::Running => self.resume(now),
            // It may still touch memory: nothing ends.
            Phase::Stopping => self.state = QueueState::Down,
            Phase::Stopped | Phase::Gone => {
                self.state = QueueState::Down;
                // Once clean it is not looked into again: the device may not have stopped writing for all that it says.
                let clean = State::new(Phase::Stopped, now.epoch());
                if self.running != clean {
                    count = self.end_all(budget, ended);
                    if self.slots.outstanding() == 0 {
                        self.start_over();
                        self.running = clean;
                        self.shared.report_clean(self.place(), now.epoch());
                    }
                }
                if self.slots.outstanding() == 0 && now.phase() == Phase::Gone {
                    self.state = QueueState::Gone;
                }
            }
        }
        count
    }

    fn resume(&mut self, now: State) {
        assert!(self.slots.outstanding() == 0 && self.ring.next() == 0, "resumed without starting over");
        self.running = now;
        self.state = QueueState::Running;
    }

    /// The device has stopped: what it completed before ends as it said, if it was to be believed, the rest as aborted.
    fn end_all(&mut self, budget: usize, ended: &mut dyn FnMut(Completed)) -> usize {
        let mut count = if self.broken { 0 } else { self.reap(budget, true, ended).0 };
        while count < budget {
            let Some(tag) = self.slots.abandon() else { break };
            ended(Completed { tag, status: DeviceStatus::ABORTED });
            count += 1;
        }
        count
    }

    fn start_over(&mut self) {
        self.ring.start_over(&self.memory);
        self.idle_flushes.clear();
        (self.idle_committed, self.unrung, self.quiet, self.broken) = (0, false, 0, false);
    }

    /// Flushes that had nothing to do.
    #[cold]
    fn end_idle(&mut self, budget: usize, ended: &mut dyn FnMut(Completed)) -> usize {
        let count = budget.min(self.idle_committed);
        for slot in self.idle_flushes.drain(..count) {
            if let Some(tag) = self.slots.give_back(slot) {
                ended(Completed { tag, status: DeviceStatus::OK });
            }
        }
        self.idle_committed -= count;
        count
    }

    /// Nothing came for long, or somebody is about to sleep: the device is notified after all.
    #[cold]
    fn insist(&mut self) {
        self.quiet = 0;
        if std::mem::take(&mut self.unrung) {
            self.notify();
        }
    }
}

impl<R: NarrowRegisters> BlockQueue for Queue<R> {
    fn geometry(&self) -> &Geometry {
        &self.traits.geometry
    }

    #[inline]
    fn submit(&mut self, command: &Command) -> Result<(), SubmitError> {
        if !self.takes_commands() {
            return Err(SubmitError::Down);
        }
        let kind = self.prepare(command)?;
        if !command.operation.moves_data() {
            return self.start(command, kind, &[]);
        }
        let bytes = command.blocks << self.traits.geometry.block_shift;
        if !command.data.0.is_multiple_of(4) || command.data.0.checked_add(bytes.into()).is_none() {
            return Err(SubmitError::Invalid);
        }
        self.start(command, kind, &[Segment { data: command.data, bytes }])
    }

    fn submit_scattered(&mut self, command: &Command, segments: &[Segment]) -> Result<(), SubmitError> {
        if !self.takes_commands() {
            return Err(SubmitError::Down);
        }
        let kind = self.prepare(command)?;
        if !segments_fit(&self.traits.geometry, command, segments) {
            return Err(SubmitError::Invalid);
        }
        self.start(command, kind, segments)
    }

    #[inline]
    fn commit(&mut self) {
        self.idle_committed = self.idle_flushes.len();
        if self.ring.untold() && self.takes_commands() {
            self.publish();
        }
    }

    #[inline]
    fn poll(&mut self, budget: usize, ended: &mut dyn FnMut(Completed)) -> usize {
        let now = self.shared.state();
        if now != self.running || self.state != QueueState::Running {
            return self.look(now, budget, ended);
        }
        let mut count = if self.idle_committed > 0 { self.end_idle(budget, ended) } else { 0 };
        let (reaped, found) = self.reap(budget - count, false, ended);
        count += reaped;
        if found {
            self.quiet = 0;
        } else {
            self.quiet += 1;
            if self.quiet >= PATIENCE {
                self.insist();
            }
        }
        count
    }

    fn outstanding(&self) -> usize {
        self.slots.outstanding()
    }

    fn state(&self) -> QueueState {
        self.state
    }

    fn arm_interrupt(&mut self, armed: bool) {
        self.ring.arm(&self.memory, armed);
        if armed && self.takes_commands() {
            self.insist();
        }
    }

    fn doorbells(&self) -> u64 {
        self.rings
    }
}

impl<R: NarrowRegisters> Drop for Queue<R> {
    fn drop(&mut self) {
        if self.slots.outstanding() > 0 && self.shared.state() == self.running {
            tracing::error!(
                queue = self.index,
                outstanding = self.slots.outstanding(),
                "a queue dropped in use"
            );
        }
        self.shared.report_let_go(self.place());
    }
}
