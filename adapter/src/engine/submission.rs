//! From an admitted request to the device's commands, and back to one completion.

use driver::block::{self, BlockQueue, Completed, DeviceStatus, QueueState};
use driver::hal::Iova;
use tpt::Operation;
use wire::Status;

use super::slots::{Aside, Beside, SlotState};
use super::{FLUSH_TAG, SCAN_INTERVAL_NS, State};

impl State {
    /// Hands the pieces of an admitted request to the device, from where it left off, at most a turn's share. False if
    /// that or the device's room was not enough for all: the rest waits in the starved list.
    pub(super) fn start<Q: BlockQueue>(&mut self, queue: &mut Q, slot: u32) -> bool {
        let deadline_ns = self.slots.asked(slot).deadline_ns;
        let aside = self.slots.aside(slot);
        let s = self.slots.get_mut(slot);
        if s.submitted == 0 && self.now_ns > deadline_ns {
            s.fail(Status::E_DEADLINE, 0);
            return self.settle(slot, false);
        }
        let asked = s.grant.as_ref().expect("an admitted request has its grant").operation();
        let operation = match (aside, device_operation(asked, queue.geometry())) {
            (Aside::Buffer(buffer), _) => return self.start_bytes(queue, slot, buffer),
            (_, Some(operation)) => operation,
            (_, None) => {
                s.fail(Status::E_OPCODE, 0);
                return self.settle(slot, false);
            }
        };
        let left = match aside {
            Aside::List(list) => self.submit_scattered(queue, slot, list, operation),
            Aside::Nothing | Aside::Buffer(_) | Aside::Managed(_) => {
                self.submit_pieces(queue, slot, operation)
            }
        };
        self.settle(slot, left)
    }

    /// After a share of a request's commands was submitted, with or without some left: it waits for more room, or for
    /// the device, or has ended. Returns whether none are left.
    pub(super) fn settle(&mut self, slot: u32, left: bool) -> bool {
        let s = self.slots.get_mut(slot);
        if left {
            s.state = SlotState::Starved;
            self.starved.push_back(slot);
            self.note_deadline(self.slots.asked(slot).deadline_ns);
        } else {
            s.state = SlotState::Running;
            if s.status == Status::OK && s.submitted < s.blocks {
                s.fail(Status::E_TABLE_CORRUPT, 0); // The LBA list ended before the request did.
            }
            if s.outstanding == 0 {
                self.finish(slot);
            }
        }
        !left
    }

    /// The commands of a request whose memory is one range. True if some are left.
    fn submit_pieces<Q: BlockQueue>(
        &mut self,
        queue: &mut Q,
        slot: u32,
        operation: block::Operation,
    ) -> bool {
        let s = self.slots.get_mut(slot);
        let tag = s.tag();
        let grant = s.grant.as_ref().expect("an admitted request has its grant");
        let geometry = *queue.geometry();
        let mut share = self.pieces;
        for piece in self.directory.pieces(grant, u64::from(s.submitted)) {
            let whole =
                block::Command { operation, lba: piece.lba.0, blocks: 0, data: Iova(piece.iova.0), tag: 0 };
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

    /// One flush at a time serves all who asked before it started. Whether one started: it is still to be announced.
    pub(super) fn start_flush<Q: BlockQueue>(&mut self, queue: &mut Q) -> bool {
        if self.flush_running || self.flush_next.is_empty() {
            return false;
        }
        self.end_late();
        if self.flush_next.is_empty() {
            return false;
        }
        let flush = block::Command {
            operation: block::Operation::Flush,
            lba: 0,
            blocks: 0,
            data: Iova(0),
            tag: FLUSH_TAG,
        };
        if queue.submit(&flush).is_err() {
            return false; // Tried again after each poll.
        }
        self.flush_running = true;
        std::mem::swap(&mut self.flushing, &mut self.flush_next);
        for &slot in &self.flushing {
            let s = self.slots.get_mut(slot);
            s.outstanding = 1;
            s.state = SlotState::Running;
            s.progress_ns = self.now_ns;
        }
        true
    }

    /// The device ended a command.
    #[inline]
    pub(super) fn ended(&mut self, done: Completed) {
        if done.tag == FLUSH_TAG {
            return self.flushed(done.status);
        }
        let (slot, blocks) = self.slots.resolve(done.tag);
        let s = self.slots.get_mut(slot);
        s.outstanding -= 1;
        match done.status {
            DeviceStatus::OK => s.done += blocks,
            DeviceStatus::COMPARE_FAILURE => s.fail(Status::E_MISCOMPARE, done.status.0),
            status => s.fail(Status::E_DEVICE, status.0),
        }
        if s.outstanding != 0 {
            s.progress_ns = self.now_ns;
        } else if s.state == SlotState::Running {
            if s.beside { self.ended_all(slot) } else { self.end(slot, None, 0) }
        }
    }

    /// The device ended the last command of a request that may have something beside its grant.
    #[cold]
    fn ended_all(&mut self, slot: u32) {
        match self.slots.aside(slot) {
            Aside::Buffer(buffer) if self.has_read(slot, buffer) => {}
            _ => self.finish(slot),
        }
    }

    /// The flush that the device was executing ended, and with it all requests under it.
    #[cold]
    fn flushed(&mut self, status: DeviceStatus) {
        self.flush_running = false;
        while let Some(slot) = self.flushing.pop() {
            let s = self.slots.get_mut(slot);
            s.outstanding = 0;
            if !status.is_ok() {
                s.fail(Status::E_DEVICE, status.0);
            }
            self.finish(slot);
        }
    }

    /// The next flush starts; a device that is gone takes everything with it. Returns how much was submitted, which the
    /// next turn announces.
    #[inline]
    pub(super) fn after_poll<Q: BlockQueue>(&mut self, queue: &mut Q) -> usize {
        let waits = !self.flush_next.is_empty();
        let submitted = usize::from(waits && self.start_flush(queue));
        if queue.state() == QueueState::Gone {
            self.end_what_waits();
        }
        submitted
    }

    /// The device is gone.
    #[cold]
    fn end_what_waits(&mut self) {
        self.starved.extend(self.gated.drain(..));
        while let Some(slot) = self.starved.pop_front() {
            let s = self.slots.get_mut(slot);
            s.fail(Status::E_PATH, 0);
            s.state = SlotState::Running; // Should the device have some of it after all, it ends with that.
            if self.slots.get(slot).outstanding == 0 {
                self.finish(slot);
            }
        }
        while let Some(slot) = self.flush_next.pop() {
            self.slots.get_mut(slot).fail(Status::E_PATH, 0);
            self.finish(slot);
        }
    }

    /// Ends a request that the device can no longer touch: its grant and its slot are free, its completion is posted.
    #[cold]
    pub(super) fn finish(&mut self, slot: u32) {
        if !self.slots.get(slot).beside {
            return self.end(slot, None, 0);
        }
        if self.lands(slot) {
            let (bytes, value) = self.tidy(slot);
            self.end(slot, bytes, value);
        }
    }

    /// As [`State::finish`], when nothing is left beside its grant. `bytes` were done, if not whole blocks.
    #[inline]
    fn end(&mut self, slot: u32, bytes: Option<u64>, value: u64) {
        let Self { ports, slots, directory, .. } = self;
        let s = slots.get(slot);
        let (done, user_data) = (u64::from(s.done), s.user_data);
        let (status, device_status) = (s.status, s.device_status);
        let mut whole = 0;
        let (grant, index) = slots.free(slot);
        if let Some(grant) = grant {
            whole = done << grant.block_shift();
            directory.release(grant);
        }
        #[allow(clippy::cast_possible_truncation)] // no more than was asked for, with 32 bits
        let bytes = bytes.unwrap_or(whole) as u32;
        let Some(port) = ports[index].as_mut() else { unreachable!("a queue outlives its requests") };
        port.complete(user_data, status, bytes, device_status, value);
    }

    /// Gives back what an ending request has beside its grant. Returns how many of its bytes were done, if not those of
    /// whole blocks, and the value that its completion has.
    fn tidy(&mut self, slot: u32) -> (Option<u64>, u64) {
        let Beside { aside, claim, delays, reach } = self.slots.take_beside(slot);
        let (cut, value) = self.told_of(slot, reach);
        claim.into_iter().for_each(|claim| self.gates.give_up(claim));
        if delays {
            self.gates.look_again();
        }
        let bytes = match aside {
            Aside::Nothing => cut,
            Aside::List(list) => {
                self.give_list(list);
                cut
            }
            Aside::Managed(place) => Some(self.give_place(self.slots.port(slot), place)),
            Aside::Buffer(buffer) => {
                self.give_buffer(buffer);
                let all = self.slots.asked(slot).request.length;
                Some(if self.slots.get(slot).status == Status::OK { all } else { 0 })
            }
        };
        (bytes, value)
    }

    /// A command that the device keeps for too long means that only a reset will end it.
    pub(super) fn look_for_stuck<Q: BlockQueue>(&mut self, queue: &Q) {
        if self.now_ns < self.next_scan_ns {
            return;
        }
        self.next_scan_ns = self.now_ns + SCAN_INTERVAL_NS;
        let oldest = if queue.outstanding() == 0 { None } else { self.slots.oldest_progress() };
        let stuck = oldest.is_some_and(|at| self.now_ns.saturating_sub(at) > self.device_timeout_ns);
        self.shared.record_stuck(stuck);
    }
}

/// What the device is asked for. Blocks given up must read as zero afterwards, so a deallocate that does not promise
/// it becomes write zeroes.
fn device_operation(operation: Operation, geometry: &block::Geometry) -> Option<block::Operation> {
    match operation {
        Operation::Read => Some(block::Operation::Read),
        Operation::Write { fua } => Some(block::Operation::Write { fua }),
        Operation::Flush => Some(block::Operation::Flush),
        Operation::Compare => geometry.compare.then_some(block::Operation::Compare),
        Operation::WriteBytes => None, // It is reads and writes.
        Operation::Deallocate if geometry.deallocate && geometry.deallocate_zeroes => {
            Some(block::Operation::Deallocate)
        }
        Operation::Deallocate => {
            geometry.write_zeroes.then_some(block::Operation::WriteZeroes { deallocate: true })
        }
        Operation::WriteZeroes { deallocate } => {
            geometry.write_zeroes.then_some(block::Operation::WriteZeroes { deallocate })
        }
    }
}
