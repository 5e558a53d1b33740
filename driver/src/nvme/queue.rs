//! An I/O queue pair, used by one thread.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use zerocopy::transmute;

use crate::block::{
    BlockQueue, Command, Completed, DeviceStatus, Geometry, Operation, QueueState, Segment, SubmitError,
    segments_fit,
};
use crate::dma::DmaBuffer;
use crate::hal::{DmaAccess, DmaError, Mapper, Registers};
use crate::spec::nvme::{
    CQE_LEN, Cqe, DsmCdw10, DsmCdw11, DsmRange, IoCdw12, SGL_DESCRIPTOR_LEN, SQE_LEN, Sqe, cq_head_doorbell,
    nvm, sq_tail_doorbell,
};

use super::doorbell::{Bell, ShadowDoorbells};
use super::identity::Traits;
use super::slots::Slots;
use super::{prp, sgl};
use crate::lifecycle::{Phase, Shared, State};

/// Where the high half of a completion lies: SQHD, SQID, CID, phase and status.
const CQE_HIGH: usize = 8;

/// Polls that find nothing, in a row, after which the device is told again what it was told by way of memory alone.
const PATIENCE: u32 = 1024;

/// What the device sees of a queue pair.
pub(super) struct QueueMemory {
    pub(super) submissions: DmaBuffer,
    pub(super) completions: DmaBuffer,
    /// PRP lists, SGLs and ranges, `stride` bytes for each slot. The device only reads them.
    lists: DmaBuffer,
    stride: usize,
}

impl QueueMemory {
    /// For queues of `entries` entries and transfers that `geometry` allows.
    pub(super) fn new(mapper: &dyn Mapper, entries: u16, geometry: &Geometry) -> Result<Self, DmaError> {
        let entries = usize::from(entries);
        let transfer = u64::from(geometry.max_transfer_blocks) << geometry.block_shift;
        // A power of two, so that no list crosses a page (Base 2.0, 4.1.1).
        let list = usize::try_from(prp::list_entries(transfer)).unwrap_or(512).clamp(2, 512) * 8;
        let scattered = geometry.max_segments.min(sgl::MOST) as usize * SGL_DESCRIPTOR_LEN;
        let stride = list.max(scattered).next_power_of_two();
        Ok(Self {
            submissions: DmaBuffer::new(mapper, entries * SQE_LEN, DmaAccess::Read)?,
            completions: DmaBuffer::new(mapper, entries * CQE_LEN, DmaAccess::ReadWrite)?,
            lists: DmaBuffer::new(mapper, (entries - 1) * stride, DmaAccess::Read)?,
            stride,
        })
    }
}

/// What a queue is made of.
pub(super) struct QueueParts<R> {
    pub(super) registers: Arc<R>,
    pub(super) shared: Arc<Shared>,
    pub(super) memory: Arc<QueueMemory>,
    pub(super) traits: Traits,
    pub(super) nsid: u32,
    /// From 1.
    pub(super) qid: u16,
    pub(super) entries: u16,
    pub(super) dstrd: u8,
    pub(super) shadows: Option<Arc<ShadowDoorbells>>,
    pub(super) interrupt: Option<OwnedFd>,
}

/// An I/O queue pair of a [`super::Controller`].
///
/// Drop it only when nothing is outstanding: what is, may go on, and nobody is told when it ends. Its own memory stays
/// until the controller is seen disabled.
pub struct Queue<R: Registers> {
    registers: Arc<R>,
    shared: Arc<Shared>,
    memory: Arc<QueueMemory>,
    traits: Traits,
    nsid: u32,
    qid: u16,
    entries: u16,
    shadows: Option<Arc<ShadowDoorbells>>,
    tail_bell: Bell,
    head_bell: Bell,
    /// Doorbell registers written so far.
    rings: u64,
    /// Where the next submission goes.
    tail: u16,
    /// Where the next completion is expected, and with which phase.
    head: u16,
    phase: bool,
    /// Completions taken since the device was told the head.
    untold: u16,
    /// How many are told together. What is left keeps room for a completion at all times, so that the device goes on.
    together: u16,
    /// Polls in a row that found nothing.
    quiet: u32,
    slots: Slots,
    /// The state in which this queue works, or for which it is clean; anything else is looked into.
    running: State,
    state: QueueState,
    interrupt: Option<OwnedFd>,
    /// It is wanted.
    armed: bool,
}

impl<R: Registers> Queue<R> {
    pub(super) fn new(parts: QueueParts<R>) -> Self {
        let QueueParts { registers, shared, memory, traits, nsid, qid, entries, dstrd, shadows, interrupt } =
            parts;
        // Until someone is about to sleep.
        registers.arm_interrupt(u32::from(qid), false);
        Self {
            registers,
            shared,
            memory,
            traits,
            nsid,
            qid,
            entries,
            shadows,
            tail_bell: Bell::new(sq_tail_doorbell(qid, dstrd)),
            head_bell: Bell::new(cq_head_doorbell(qid, dstrd)),
            rings: 0,
            tail: 0,
            head: 0,
            phase: true,
            untold: 0,
            together: (entries / 4).max(1),
            quiet: 0,
            slots: Slots::new(entries - 1),
            running: State::new(Phase::Running, 0),
            state: QueueState::Running,
            interrupt,
            armed: false,
        }
    }

    /// Becomes readable with completions, once armed, if the device has an interrupt for this queue. The owner reads it.
    pub fn interrupt_fd(&self) -> Option<BorrowedFd<'_>> {
        self.interrupt.as_ref().map(AsFd::as_fd)
    }

    #[cfg(test)]
    pub(super) fn registers(&self) -> Arc<R> {
        Arc::clone(&self.registers)
    }

    fn index(&self) -> usize {
        usize::from(self.qid - 1)
    }

    /// Fills in everything but the data pointer, or refuses.
    #[inline]
    fn prepare(&self, command: &Command) -> Result<Sqe, SubmitError> {
        let geometry = &self.traits.geometry;
        let (opcode, most, supported) = match command.operation {
            Operation::Read => (nvm::READ, geometry.max_transfer_blocks, true),
            Operation::Write { .. } => (nvm::WRITE, geometry.max_transfer_blocks, true),
            Operation::Compare => (nvm::COMPARE, geometry.max_transfer_blocks, geometry.compare),
            Operation::WriteZeroes { .. } => {
                (nvm::WRITE_ZEROES, geometry.max_zeroes_blocks, geometry.write_zeroes)
            }
            Operation::Deallocate if self.traits.deallocate_by_zeroes => {
                (nvm::WRITE_ZEROES, geometry.max_zeroes_blocks, true)
            }
            Operation::Deallocate => {
                (nvm::DATASET_MANAGEMENT, geometry.max_zeroes_blocks, geometry.deallocate)
            }
            Operation::Flush => {
                let mut sqe = Sqe::new(nvm::FLUSH);
                sqe.nsid = self.nsid;
                return Ok(sqe);
            }
        };
        let inside =
            command.lba <= geometry.blocks && u64::from(command.blocks) <= geometry.blocks - command.lba;
        if !supported || command.blocks == 0 || command.blocks > most || !inside {
            return Err(SubmitError::Invalid);
        }
        let mut sqe = Sqe::new(opcode);
        sqe.nsid = self.nsid;
        if opcode == nvm::DATASET_MANAGEMENT {
            let mut cdw11 = DsmCdw11(0);
            cdw11.set_ad(true);
            (sqe.cdw10, sqe.cdw11) = (DsmCdw10(0).0, cdw11.0);
            return Ok(sqe);
        }
        sqe.set_slba(command.lba);
        // NLB counts from zero in 16 bits; `most` is at most 65536.
        let mut cdw12 = IoCdw12(command.blocks - 1);
        match command.operation {
            Operation::Write { fua } => cdw12.set_fua(fua),
            Operation::WriteZeroes { deallocate } => {
                cdw12.set_deac(deallocate && self.traits.zeroes_deallocate);
            }
            Operation::Deallocate => cdw12.set_deac(true),
            _ => {}
        }
        sqe.cdw12 = cdw12.0;
        Ok(sqe)
    }

    /// Points the entry at the command's data, or at its range, by way of the slot's list.
    #[inline]
    fn point(&self, sqe: &mut Sqe, command: &Command, slot: u16) {
        let bytes = u64::from(command.blocks) << self.traits.geometry.block_shift;
        if command.operation.moves_data()
            && let Some(entries) = prp::without_list(command.data.0, bytes)
        {
            (sqe.prp1, sqe.prp2) = entries;
            return;
        }
        let lists = &self.memory.lists;
        let at = usize::from(slot) * self.memory.stride;
        if command.operation.moves_data() {
            let mut next = at;
            (sqe.prp1, sqe.prp2) = prp::build(command.data.0, bytes, lists.iova(at).0, |_, page| {
                lists.store64(next, page);
                next += 8;
            });
        } else if sqe.cdw0.opc() == nvm::DATASET_MANAGEMENT {
            let range = DsmRange { attributes: 0, blocks: command.blocks, slba: command.lba };
            lists.write::<2>(at, transmute!(range));
            sqe.prp1 = lists.iova(at).0;
        }
    }

    /// Points the entry at the segments, by way of the slot's list if there is more than one.
    #[inline]
    fn scatter(&self, sqe: &mut Sqe, segments: &[Segment], slot: u16) {
        let lists = &self.memory.lists;
        let at = usize::from(slot) * self.memory.stride;
        sqe.set_sgl(sgl::build(segments, lists.iova(at).0, |index, descriptor| {
            lists.write::<2>(at + index * SGL_DESCRIPTOR_LEN, transmute!(descriptor));
        }));
    }

    #[inline]
    fn takes_commands(&self) -> bool {
        self.state == QueueState::Running && self.shared.state() == self.running
    }

    /// Takes a slot for the command and gives the entry its id.
    ///
    /// A free slot means a free entry: each entry that the device has not fetched belongs to an outstanding command,
    /// and there is one slot less than entries.
    #[inline]
    fn take_slot(&mut self, sqe: &mut Sqe, command: &Command) -> Result<u16, SubmitError> {
        let (slot, cid) = self.slots.take(command.tag).ok_or(SubmitError::Full)?;
        sqe.cdw0.set_cid(cid);
        Ok(slot)
    }

    /// Puts the entry into the queue.
    #[inline]
    fn enter(&mut self, sqe: Sqe) {
        self.memory.submissions.write::<8>(usize::from(self.tail) * SQE_LEN, transmute!(sqe));
        self.tail = if self.tail + 1 == self.entries { 0 } else { self.tail + 1 };
    }

    /// The next completion, if there is one: its high half, read in one access so that phase and rest belong together.
    /// Acquire: the command's data is read after it.
    #[inline]
    fn next_completion(&mut self) -> Option<Cqe> {
        let at = usize::from(self.head) * CQE_LEN + CQE_HIGH;
        let high = self.memory.completions.load64(at, Ordering::Acquire);
        let cqe: Cqe = transmute!([0, high]);
        if cqe.status.phase() != self.phase {
            return None;
        }
        self.head += 1;
        if self.head == self.entries {
            self.head = 0;
            self.phase = !self.phase;
        }
        Some(cqe)
    }

    /// Ends what the device says is done, at most `budget`. Looks at no more entries than there are.
    #[inline]
    fn reap(&mut self, budget: usize, ended: &mut dyn FnMut(Completed)) -> (usize, u16) {
        let mut count = 0;
        let mut looked = 0;
        while count < budget && looked < self.entries {
            let Some(cqe) = self.next_completion() else { break };
            looked += 1;
            let ours = cqe.sqid == self.qid && cqe.sqhd < self.entries;
            match if ours { self.slots.give_back(cqe.cid) } else { None } {
                Some(tag) => {
                    count += 1;
                    ended(Completed { tag, status: DeviceStatus(cqe.status.status().0) });
                }
                None => self.note_anomaly(cqe),
            }
        }
        (count, looked)
    }

    #[cold]
    fn note_anomaly(&self, cqe: Cqe) {
        self.shared.count_anomaly(self.index());
        tracing::debug!(queue = self.qid, ?cqe, "a completion that answers nothing");
    }

    /// The controller is not as it was at the last poll.
    #[cold]
    fn look(&mut self, now: State, budget: usize, ended: &mut dyn FnMut(Completed)) -> usize {
        let mut count = 0;
        match now.phase() {
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
                        self.shared.report_clean(self.index(), now.epoch());
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
        assert!(
            self.slots.outstanding() == 0 && self.tail == 0 && self.head == 0,
            "resumed without starting over"
        );
        self.running = now;
        self.state = QueueState::Running;
        // A reset of the function has unmasked it, or a device that came anew.
        self.registers.arm_interrupt(u32::from(self.qid), self.armed);
    }

    /// The device has stopped: what it completed before ends as it said, the rest as aborted.
    fn end_all(&mut self, budget: usize, ended: &mut dyn FnMut(Completed)) -> usize {
        let (mut count, _) = self.reap(budget, ended);
        while count < budget {
            let Some(tag) = self.slots.abandon() else { break };
            ended(Completed { tag, status: DeviceStatus::ABORTED });
            count += 1;
        }
        count
    }

    /// The memory becomes as new.
    fn start_over(&mut self) {
        self.memory.submissions.zero();
        self.memory.completions.zero();
        (self.tail, self.head, self.phase, self.untold, self.quiet) = (0, 0, true, 0, 0);
        self.tail_bell.start_over();
        self.head_bell.start_over();
    }

    /// Tells the device how far its completions were taken.
    #[inline]
    fn tell_head(&mut self) {
        self.untold = 0;
        let rang = self.head_bell.tell(&*self.registers, self.shadows.as_deref(), self.head);
        self.rings += u64::from(rang);
    }

    /// Nothing came for long, or somebody is about to sleep: the device is told everything, by registers.
    #[cold]
    fn insist(&mut self) {
        self.quiet = 0;
        if self.untold > 0 && (self.armed || self.slots.outstanding() == 0) {
            self.tell_head();
        }
        for bell in [&mut self.tail_bell, &mut self.head_bell] {
            self.rings += u64::from(bell.insist(&*self.registers));
        }
    }
}

impl<R: Registers> BlockQueue for Queue<R> {
    fn geometry(&self) -> &Geometry {
        &self.traits.geometry
    }

    #[inline]
    fn submit(&mut self, command: &Command) -> Result<(), SubmitError> {
        if !self.takes_commands() {
            return Err(SubmitError::Down);
        }
        let mut sqe = self.prepare(command)?;
        if command.operation.moves_data() {
            let bytes = u64::from(command.blocks) << self.traits.geometry.block_shift;
            if !command.data.0.is_multiple_of(4) || command.data.0.checked_add(bytes).is_none() {
                return Err(SubmitError::Invalid);
            }
        }
        let slot = self.take_slot(&mut sqe, command)?;
        self.point(&mut sqe, command, slot);
        self.enter(sqe);
        Ok(())
    }

    fn submit_scattered(&mut self, command: &Command, segments: &[Segment]) -> Result<(), SubmitError> {
        if !self.takes_commands() {
            return Err(SubmitError::Down);
        }
        let mut sqe = self.prepare(command)?;
        if !segments_fit(&self.traits.geometry, command, segments) {
            return Err(SubmitError::Invalid);
        }
        if self.traits.geometry.max_segments == 1 {
            return self.submit(&Command { data: segments[0].data, ..*command });
        }
        let slot = self.take_slot(&mut sqe, command)?;
        self.scatter(&mut sqe, segments, slot);
        self.enter(sqe);
        Ok(())
    }

    #[inline]
    fn commit(&mut self) {
        if self.tail != self.tail_bell.told() && self.shared.state() == self.running {
            let rang = self.tail_bell.tell(&*self.registers, self.shadows.as_deref(), self.tail);
            self.rings += u64::from(rang);
        }
    }

    #[inline]
    fn poll(&mut self, budget: usize, ended: &mut dyn FnMut(Completed)) -> usize {
        let now = self.shared.state();
        if now != self.running || self.state != QueueState::Running {
            return self.look(now, budget, ended);
        }
        let (count, looked) = self.reap(budget, ended);
        if looked > 0 {
            self.quiet = 0;
            self.untold += looked;
            if self.untold >= self.together {
                self.tell_head();
            }
        } else {
            self.quiet += 1;
            if self.quiet == PATIENCE {
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

    /// For the machine to make use of: the device has no register of its own to mask one queue's MSI-X interrupt.
    fn arm_interrupt(&mut self, armed: bool) {
        self.armed = armed;
        self.registers.arm_interrupt(u32::from(self.qid), armed);
        if armed && self.takes_commands() {
            self.insist();
        }
    }

    fn doorbells(&self) -> u64 {
        self.rings
    }
}

impl<R: Registers> Drop for Queue<R> {
    fn drop(&mut self) {
        if self.slots.outstanding() > 0 && self.shared.state() == self.running {
            tracing::error!(
                queue = self.qid,
                outstanding = self.slots.outstanding(),
                "a queue dropped in use"
            );
        }
        self.shared.report_let_go(self.index());
    }
}
