//! The requests that the engine has admitted, at fixed positions.

use driver::block::{DeviceStatus, SubmitError};
use tpt::{Grant, Key, Memory, Operation, RegionKey, Request};
use wire::Status;

use super::gates::Claim;

/// Where an admitted request stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SlotState {
    /// Not in use.
    Free,
    /// Just taken.
    Taken,
    /// To be admitted later: its entry is being modified, or it is short of something that others use.
    Held,
    /// Some or all of its pieces wait for room in the device queue.
    Starved,
    /// Waits until others have left the blocks that it has claimed.
    Gated,
    /// A flush that waits for the next merged one.
    FlushWaiting,
    /// The device has all of it.
    Running,
}

/// What an admitted request has beside its slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Aside {
    /// Nothing.
    Nothing,
    /// A scatter list.
    List(u16),
    /// A buffer of private memory.
    Buffer(u16),
}

/// What a request is when it is taken.
#[derive(Clone, Copy)]
pub(super) struct New {
    pub(super) port: usize,
    pub(super) user_data: u64,
    pub(super) request: Request,
    /// Entries of its scatter list; zero if it has none.
    pub(super) segments: u8,
    /// A write of bytes: complete only when durable.
    pub(super) durable: bool,
    pub(super) deadline_ns: u64,
}

/// An admitted request.
pub(super) struct Slot {
    pub(super) port: usize,
    pub(super) user_data: u64,
    pub(super) request: Request,
    pub(super) grant: Option<Grant>,
    pub(super) state: SlotState,
    /// Requests that were here before, in the tags of this one's commands.
    life: u16,
    /// As in [`New`].
    pub(super) segments: u8,
    pub(super) aside: Aside,
    /// As in [`New`].
    pub(super) durable: bool,
    /// Somebody's gate waits for its end.
    pub(super) delays: bool,
    pub(super) claim: Option<Claim>,
    /// Device blocks of the request, handed to the device, and ended well.
    pub(super) blocks: u64,
    pub(super) submitted: u64,
    pub(super) done_blocks: u64,
    /// Commands at the device.
    pub(super) outstanding: u32,
    pub(super) status: Status,
    pub(super) device_status: u16,
    pub(super) deadline_ns: u64,
    /// When the device got a piece of it while it had none, or ended one.
    pub(super) progress_ns: u64,
    /// Where it stands in its queue's list of requests in flight.
    position: u32,
}

const NOTHING: Request = Request {
    operation: Operation::Flush,
    key: Key(0),
    offset: 0,
    length: 0,
    memory: Memory { region: RegionKey(0), offset: 0 },
};

impl Slot {
    fn free() -> Self {
        Self {
            port: 0,
            user_data: 0,
            request: NOTHING,
            grant: None,
            state: SlotState::Free,
            life: 0,
            segments: 0,
            aside: Aside::Nothing,
            durable: false,
            delays: false,
            claim: None,
            blocks: 0,
            submitted: 0,
            done_blocks: 0,
            outstanding: 0,
            status: Status::OK,
            device_status: 0,
            deadline_ns: 0,
            progress_ns: 0,
            position: 0,
        }
    }

    /// The device took a command of it.
    #[inline]
    pub(super) fn record_submitted(&mut self, blocks: u32, now_ns: u64) {
        if self.outstanding == 0 {
            self.progress_ns = now_ns;
        }
        self.submitted += u64::from(blocks);
        self.outstanding += 1;
    }

    /// What came of a command of it that was handed to the device. True if there was no room.
    #[inline]
    pub(super) fn hand(&mut self, result: Result<(), SubmitError>, blocks: u32, now_ns: u64) -> bool {
        match result {
            Ok(()) => self.record_submitted(blocks, now_ns),
            Err(SubmitError::Full | SubmitError::Down) => return true,
            Err(SubmitError::Invalid) => self.fail(Status::E_DEVICE, DeviceStatus::LBA_OUT_OF_RANGE.0),
        }
        false
    }

    /// Records a failure; the first one stays.
    pub(super) fn fail(&mut self, status: Status, device_status: u16) {
        if self.status == Status::OK {
            self.status = status;
            self.device_status = device_status;
        }
    }
}

/// A fixed number of slots. Each has a life count in its device tag, so that a tag never resolves to a later request.
pub(super) struct Slots {
    slots: Box<[Slot]>,
    free: Vec<u16>,
}

impl Slots {
    pub(super) fn new(count: u16) -> Self {
        Self { slots: (0..count).map(|_| Slot::free()).collect(), free: (0..count).rev().collect() }
    }

    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    pub(super) fn count(&self) -> usize {
        self.slots.len()
    }

    /// Whether half of them are in use.
    pub(super) fn is_crowded(&self) -> bool {
        self.free.len() <= self.slots.len() / 2
    }

    pub(super) fn used(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Gives a request a slot, and notes it in its queue's list. The caller saw [`Slots::has_room`].
    #[inline]
    pub(super) fn allocate(&mut self, new: New, in_flight: &mut Vec<u32>) -> u32 {
        let index = self.free.pop().expect("the caller saw room");
        let slot = &mut self.slots[usize::from(index)];
        // Field by field: what the last request left is as good as new where nothing is written.
        slot.port = new.port;
        slot.user_data = new.user_data;
        slot.request = new.request;
        slot.state = SlotState::Taken;
        slot.segments = new.segments;
        slot.durable = new.durable;
        slot.deadline_ns = new.deadline_ns;
        slot.submitted = 0;
        slot.done_blocks = 0;
        slot.status = Status::OK;
        slot.device_status = 0;
        slot.position = u32::try_from(in_flight.len()).expect("bounded by the queue's entries");
        in_flight.push(u32::from(index));
        u32::from(index)
    }

    /// Ends the life of `index`, which has nothing any more, and takes it out of its queue's list.
    #[inline]
    pub(super) fn free(&mut self, index: u32, in_flight: &mut Vec<u32>) {
        let slot = &mut self.slots[index as usize];
        assert!(
            slot.state != SlotState::Free && slot.grant.is_none(),
            "a slot is freed once, and after its grant"
        );
        debug_assert!(
            slot.aside == Aside::Nothing && slot.claim.is_none() && !slot.delays,
            "all was given back"
        );
        slot.state = SlotState::Free;
        slot.life = slot.life.wrapping_add(1);
        let position = slot.position as usize;
        in_flight.swap_remove(position);
        if let Some(&moved) = in_flight.get(position) {
            self.get_mut(moved).position = u32::try_from(position).expect("bounded by the queue's entries");
        }
        self.free.push(u16::try_from(index).expect("an index of this table"));
    }

    #[inline]
    pub(super) fn get(&self, index: u32) -> &Slot {
        &self.slots[index as usize]
    }

    #[inline]
    pub(super) fn get_mut(&mut self, index: u32) -> &mut Slot {
        &mut self.slots[index as usize]
    }

    /// The tag of a slot's commands; the caller adds the command's blocks from bit 32.
    #[inline]
    pub(super) fn tag(&self, index: u32) -> u64 {
        u64::from(index) | u64::from(self.slots[index as usize].life) << 16
    }

    /// The slot and the blocks of the command with this tag. Tags come back from our own driver, which returns each
    /// exactly once, so a wrong one is a bug here and not hostile data.
    #[inline]
    pub(super) fn resolve(&self, tag: u64) -> (u32, u64) {
        let index = (tag & 0xffff) as usize;
        let slot = &self.slots[index];
        assert!(
            slot.state != SlotState::Free && u64::from(slot.life) == tag >> 16 & 0xffff,
            "tag {tag:#x} of a request that has ended"
        );
        ((tag & 0xffff) as u32, tag >> 32)
    }

    /// When the device last showed that it works on the request that it has left alone for longest.
    pub(super) fn oldest_progress(&self) -> Option<u64> {
        // A free slot has nothing at the device.
        let running = self.slots.iter().filter(|s| s.outstanding > 0);
        running.map(|s| s.progress_ns).min()
    }

    /// Takes all grants out.
    pub(super) fn take_grants(&mut self, mut take: impl FnMut(Grant)) {
        self.slots.iter_mut().filter_map(|s| s.grant.take()).for_each(&mut take);
    }
}
