//! Writes of any bytes: the blocks at both ends are read into private memory, merged there with what the application
//! wants written, and written back, while a gate keeps all other writes away from them.
//!
//! What was in the blocks never reaches memory of the application, nor its completion. What the application writes is
//! copied once when the request is admitted.

use std::sync::Arc;

use driver::block::{self, BlockQueue, DeviceStatus, SubmitError};
use driver::dma::{DmaBuffer, PAGE};
use driver::hal::{DmaAccess, DmaError, Iova, Mapper};
use tpt::{Denied, Directory, Grant, Operation, Request};
use wire::Status;
use wire::layout::MAX_WRITE_BYTES;

use super::State;
use super::gates::{Blocks, Claim};
use super::lists::Refused;
use super::slots::{Aside, Asked, Slot, SlotState};

/// Writes of bytes that one engine works on at the same time. More wait.
const BUFFERS: u16 = 4;
/// What is copied at a time.
const CHUNK: usize = 1024;

/// Private memory that the device sees, in which blocks are read, merged and written back. One for each engine; a few
/// hundred KiB.
#[derive(Clone)]
pub struct Bounce {
    memory: Arc<DmaBuffer>,
    block_shift: u8,
}

impl Bounce {
    /// For a device with blocks of `1 << block_shift` bytes.
    ///
    /// # Errors
    /// Those of the mapper.
    pub fn new(mapper: &dyn Mapper, block_shift: u8) -> Result<Self, DmaError> {
        let bytes = usize::from(BUFFERS) * Self::stride(block_shift);
        let memory = Arc::new(DmaBuffer::new(mapper, bytes, DmaAccess::ReadWrite)?);
        Ok(Self { memory, block_shift })
    }

    /// The memory, for tests and simulations that play the device.
    pub fn memory(&self) -> Arc<DmaBuffer> {
        self.memory.clone()
    }

    /// Bytes of the blocks that one request can touch.
    fn data(block_shift: u8) -> usize {
        MAX_WRITE_BYTES as usize + (1 << block_shift)
    }

    /// From one buffer to the next: the blocks of a request, then the first and the last of them as they were.
    fn stride(block_shift: u8) -> usize {
        (Self::data(block_shift) + (2 << block_shift)).next_multiple_of(PAGE)
    }
}

/// One write of bytes on its way.
#[derive(Clone, Copy, Default)]
struct Work {
    port: usize,
    /// Bytes of the first block before the payload, and of the payload.
    head: usize,
    payload: usize,
    /// Numbers of the blocks that are read, and how many of these reads the device was given.
    reads: [u64; 2],
    to_read: u8,
    begun: u8,
    /// What was read is merged: from here on it is written.
    merged: bool,
}

/// A fixed number of buffers.
#[derive(Default)]
pub(super) struct Buffers {
    bounce: Option<Bounce>,
    work: [Work; BUFFERS as usize],
    free: Vec<u16>,
}

impl Buffers {
    pub(super) fn new(bounce: Bounce) -> Self {
        Self { bounce: Some(bounce), work: Default::default(), free: (0..BUFFERS).rev().collect() }
    }

    /// Whether there are any.
    pub(super) fn exist(&self) -> bool {
        self.bounce.is_some()
    }

    fn bounce(&self) -> &Bounce {
        self.bounce.as_ref().expect("a buffer of it is in use")
    }

    /// A free buffer. Of the second half nobody gets more than an equal part.
    fn take(&mut self, port: usize, ports: usize) -> Option<u16> {
        let half = usize::from(BUFFERS) / 2;
        if self.free.len() <= half {
            let used = (0..BUFFERS).filter(|buffer| !self.free.contains(buffer));
            let own = used.filter(|buffer| self.work[usize::from(*buffer)].port == port).count();
            if own >= (half / ports.max(1)).max(1) {
                return None;
            }
        }
        self.free.pop()
    }

    /// Buffers that are in use.
    #[cfg(test)]
    pub(super) fn in_use(&self) -> usize {
        usize::from(BUFFERS) - self.free.len()
    }

    fn give(&mut self, buffer: u16) {
        self.free.push(buffer);
    }

    /// Where a buffer begins.
    fn start(&self, buffer: u16) -> usize {
        usize::from(buffer) * Bounce::stride(self.bounce().block_shift)
    }

    /// Where the block that was read as number `read` is put.
    fn staging(&self, buffer: u16, read: usize) -> usize {
        let shift = self.bounce().block_shift;
        self.start(buffer) + Bounce::data(shift) + (read << shift)
    }

    /// Puts what the blocks held around the payload where the payload is.
    fn merge(&mut self, buffer: u16) {
        let start = self.start(buffer);
        let work = self.work[usize::from(buffer)];
        let size = 1usize << self.bounce().block_shift;
        let end = work.head + work.payload;
        let tail = (size - end % size) % size;
        if work.head > 0 {
            self.copy(self.staging(buffer, 0), start, work.head);
        }
        if tail > 0 {
            let last = self.staging(buffer, usize::from(work.to_read) - 1);
            self.copy(last + size - tail, start + end, tail);
        }
        self.work[usize::from(buffer)].merged = true;
    }

    fn copy(&self, from: usize, to: usize, bytes: usize) {
        let memory = &self.bounce().memory;
        let mut chunk = [0; CHUNK];
        for at in (0..bytes).step_by(CHUNK) {
            let chunk = &mut chunk[..CHUNK.min(bytes - at)];
            memory.copy_out(from + at, chunk);
            memory.copy_in(to + at, chunk);
        }
    }
}

/// What is to be done for a request: which of its blocks are read, and where its payload goes.
fn plan(port: usize, request: &Request, grant: &Grant) -> Work {
    let size = 1usize << grant.block_shift();
    let head = usize::try_from(request.offset & (size as u64 - 1)).expect("less than a block");
    let payload = usize::try_from(request.length).expect("at most MAX_WRITE_BYTES");
    let blocks = grant.blocks();
    let tail = (head + payload) % size != 0;
    let mut work = Work { port, head, payload, ..Work::default() };
    let last = blocks - 1;
    for (block, wanted) in [(0, head > 0 || tail && last == 0), (last, tail && last > 0)] {
        if wanted {
            work.reads[usize::from(work.to_read)] = block;
            work.to_read += 1;
        }
    }
    work.merged = work.to_read == 0;
    work
}

impl State {
    /// Whether writes of bytes can be taken.
    pub(super) fn takes_bytes(&self) -> bool {
        self.buffers.exist() && self.gates.exist()
    }

    /// Gets a buffer for the request, and a claim to its blocks if they must be gated; copies the payload.
    pub(super) fn take_buffer(
        &mut self,
        slot: u32,
        asked: &Asked,
        grant: &Grant,
    ) -> Result<Option<Claim>, Refused> {
        let Asked { port, request, .. } = *asked;
        if self.regions[request.memory.region.index().0 as usize].is_none() {
            return Err(Refused::Later); // It is in the mailbox.
        }
        let buffer = self.buffers.take(port, self.ports.len()).ok_or(Refused::Later)?;
        let work = plan(port, &request, grant);
        self.buffers.work[usize::from(buffer)] = work;
        let claim = match work.to_read {
            0 => self.claim_if_closed(grant),
            _ => self.claim(grant).map(Some),
        };
        let claim = claim.map_err(|refused| (None, refused));
        let copied = claim.and_then(|claim| match self.copy_payload(buffer, &request) {
            Some(()) => Ok(claim),
            None => Err((claim, Refused::Denied(Denied::Memory))),
        });
        // Last: whoever has a place has all else that it needs to get there.
        let ready = copied.and_then(|claim| match self.reserve(asked, grant) {
            Ok(()) => Ok(claim),
            Err(refused) => Err((claim, refused)),
        });
        match &ready {
            Ok(_) => self.slots.beside_mut(slot).aside = Aside::Buffer(buffer),
            Err((claim, _)) => {
                claim.iter().for_each(|claim| self.gates.give_up(*claim));
                self.buffers.give(buffer);
            }
        }
        ready.map_err(|(_, refused)| refused)
    }

    /// The one look at what the application wants written.
    fn copy_payload(&self, buffer: u16, request: &Request) -> Option<()> {
        let work = &self.buffers.work[usize::from(buffer)];
        let region = self.regions[request.memory.region.index().0 as usize].as_ref()?;
        let from = usize::try_from(request.memory.offset).ok()?;
        let to = self.buffers.start(buffer) + work.head;
        let mut chunk = [0; CHUNK];
        for at in (0..work.payload).step_by(CHUNK) {
            let chunk = &mut chunk[..CHUNK.min(work.payload - at)];
            region.copy_out(from + at, chunk)?;
            self.buffers.bounce().memory.copy_in(to + at, chunk);
        }
        Some(())
    }

    /// Goes on with a write of bytes: reads what must be read, then writes. As [`State::start`].
    #[cold]
    pub(super) fn start_bytes<Q: BlockQueue>(&mut self, queue: &mut Q, slot: u32, buffer: u16) -> bool {
        if !self.buffers.work[usize::from(buffer)].merged {
            if self.slots.get(slot).status == Status::OK && self.submit_reads(queue, slot, buffer) {
                return self.settle(slot, true);
            }
            let s = self.slots.get_mut(slot);
            s.state = SlotState::Running;
            if s.outstanding > 0 {
                return true; // The end of the last read sends it on.
            }
            if s.status == Status::OK {
                self.buffers.merge(buffer);
            }
        }
        let left = self.submit_merged(queue, slot, buffer);
        self.settle(slot, left)
    }

    /// Reads the blocks that are only written in part. True if the device had no room for all.
    fn submit_reads<Q: BlockQueue>(&mut self, queue: &mut Q, slot: u32, buffer: u16) -> bool {
        let s = self.slots.get_mut(slot);
        let tag = s.tag(); // No blocks in it: nothing of the request is done by a read.
        let at = usize::from(buffer);
        while self.buffers.work[at].begun < self.buffers.work[at].to_read {
            let read = usize::from(self.buffers.work[at].begun);
            let grant = s.grant.as_ref().expect("an admitted request has its grant");
            let Some(piece) = self.directory.pieces(grant, self.buffers.work[at].reads[read]).next() else {
                s.fail(Status::E_TABLE_CORRUPT, 0);
                return false;
            };
            let data = self.buffers.bounce().memory.iova(self.buffers.staging(buffer, read));
            let operation = block::Operation::Read;
            match queue.submit(&block::Command { operation, lba: piece.lba.0, blocks: 1, data, tag }) {
                Ok(()) => s.record_submitted(0, self.now_ns),
                Err(SubmitError::Full | SubmitError::Down) => return true,
                Err(SubmitError::Invalid) => {
                    s.fail(Status::E_DEVICE, DeviceStatus::LBA_OUT_OF_RANGE.0);
                    return false;
                }
            }
            self.buffers.work[at].begun += 1;
        }
        false
    }

    /// Writes all blocks, as they are merged. True if some are left.
    fn submit_merged<Q: BlockQueue>(&mut self, queue: &mut Q, slot: u32, buffer: u16) -> bool {
        let geometry = *queue.geometry();
        let start = self.buffers.bounce().memory.iova(self.buffers.start(buffer)).0;
        let operation = block::Operation::Write { fua: self.slots.asked(slot).durable };
        let s = self.slots.get_mut(slot);
        let tag = s.tag();
        let grant = s.grant.as_ref().expect("an admitted request has its grant");
        let mut share = self.pieces;
        for piece in self.directory.pieces(grant, u64::from(s.submitted)) {
            let data = Iova(start + (u64::from(s.submitted) << geometry.block_shift));
            let whole = block::Command { operation, lba: piece.lba.0, blocks: 0, data, tag: 0 };
            for command in block::pieces(whole, piece.blocks, &geometry) {
                if s.status != Status::OK {
                    return false;
                }
                if share == 0 {
                    return true;
                }
                share -= 1;
                let command = block::Command { tag: tag | u64::from(command.blocks) << 32, ..command };
                if s.hand(queue.submit(&command), command.blocks, self.now_ns) {
                    return true;
                }
            }
        }
        false
    }

    /// All reads of a request have ended. True if it is a write of bytes that goes on with that.
    #[cold]
    pub(super) fn has_read(&mut self, slot: u32, buffer: u16) -> bool {
        let goes_on =
            !self.buffers.work[usize::from(buffer)].merged && self.slots.get(slot).status == Status::OK;
        if goes_on {
            self.settle(slot, true);
        }
        goes_on
    }

    /// The request has ended.
    pub(super) fn give_buffer(&mut self, buffer: u16) {
        self.buffers.give(buffer);
    }

    /// A claim to the blocks of a grant.
    fn claim(&mut self, grant: &Grant) -> Result<Claim, Refused> {
        self.gates.claim(Blocks::of(self.directory.pieces(grant, 0))).ok_or(Refused::Later)
    }

    /// A claim to the blocks of a write, if some are behind a gate.
    #[cold]
    pub(super) fn claim_if_closed(&mut self, grant: &Grant) -> Result<Option<Claim>, Refused> {
        if self.directory.pieces(grant, 0).any(|piece| self.gates.close(&piece)) {
            self.claim(grant).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Looks after the gates. Returns how many requests got through one.
    #[cold]
    pub(super) fn tend_gates<Q: BlockQueue>(&mut self, queue: &mut Q) -> usize {
        if !self.gates.tend() {
            return 0;
        }
        let Self { gates, ports, slots, directory, .. } = self;
        let some = gates.answer(|blocks| {
            let mut busy = false;
            for port in (0..ports.len()).filter(|&port| ports[port].is_some()) {
                let mut next = 0;
                while let Some(slot) = slots.next_of(port, next) {
                    next = slot + 1;
                    if slots.get(slot).writes_to(blocks, directory) {
                        slots.beside_mut(slot).delays = true;
                        busy = true;
                    }
                }
            }
            busy
        });
        if some {
            self.gates.tend();
        }
        let mut passed = 0;
        let mut at = 0;
        while let Some(&slot) = self.gated.get(at) {
            if self.slots.claim(slot).is_some_and(|claim| self.gates.has(claim)) {
                self.gated.remove(at);
                self.start(queue, slot);
                passed += 1;
            } else {
                at += 1;
            }
        }
        passed
    }
}

/// Whether an operation changes blocks.
#[inline]
pub(super) fn writes(operation: Operation) -> bool {
    match operation {
        Operation::Write { .. }
        | Operation::WriteBytes
        | Operation::WriteZeroes { .. }
        | Operation::Deallocate => true,
        Operation::Read | Operation::Compare | Operation::Flush => false,
    }
}

impl Slot {
    /// Whether it is a write that has begun, or may at any time, and changes one of the blocks.
    fn writes_to(&self, blocks: &Blocks, directory: &Directory) -> bool {
        let touches = |grant: &Grant| directory.pieces(grant, 0).any(|piece| blocks.touches(&piece));
        self.state != SlotState::Gated
            && self.grant.as_ref().is_some_and(|grant| writes(grant.operation()) && touches(grant))
    }
}
