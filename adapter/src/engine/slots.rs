//! The requests that the engine has admitted, at fixed positions.

use tpt::{Grant, Request};
use wire::Status;

use super::gates::Claim;

/// Where an admitted request stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SlotState {
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

/// An admitted request.
pub(super) struct Slot {
    pub(super) port: usize,
    pub(super) user_data: u64,
    pub(super) request: Request,
    pub(super) grant: Option<Grant>,
    pub(super) state: SlotState,
    /// Entries of its scatter list; zero if it has none.
    pub(super) segments: u8,
    pub(super) aside: Aside,
    /// A write of bytes: complete only when durable.
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

impl Slot {
    pub(super) fn new(port: usize, user_data: u64, request: Request, deadline_ns: u64) -> Self {
        Self {
            port,
            user_data,
            request,
            grant: None,
            state: SlotState::Taken,
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
            deadline_ns,
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
    slots: Vec<(u16, Option<Slot>)>,
    free: Vec<u16>,
}

impl Slots {
    pub(super) fn new(count: u16) -> Self {
        Self { slots: (0..count).map(|_| (0, None)).collect(), free: (0..count).rev().collect() }
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

    /// Places `slot`, and notes it in its queue's list. The caller saw [`Slots::has_room`].
    pub(super) fn allocate(&mut self, mut slot: Slot, in_flight: &mut Vec<u32>) -> u32 {
        let index = self.free.pop().expect("the caller saw room");
        slot.position = u32::try_from(in_flight.len()).expect("bounded by the queue's entries");
        in_flight.push(u32::from(index));
        self.slots[usize::from(index)].1 = Some(slot);
        u32::from(index)
    }

    /// Ends the life of `index` and takes it out of its queue's list.
    pub(super) fn free(&mut self, index: u32, in_flight: &mut Vec<u32>) {
        let (life, slot) = &mut self.slots[index as usize];
        let position = slot.take().expect("a slot is freed once").position as usize;
        *life = life.wrapping_add(1);
        in_flight.swap_remove(position);
        if let Some(&moved) = in_flight.get(position) {
            self.get_mut(moved).position = u32::try_from(position).expect("bounded by the queue's entries");
        }
        self.free.push(u16::try_from(index).expect("an index of this table"));
    }

    #[inline]
    pub(super) fn get(&self, index: u32) -> &Slot {
        self.slots[index as usize].1.as_ref().expect("a slot in use")
    }

    #[inline]
    pub(super) fn get_mut(&mut self, index: u32) -> &mut Slot {
        self.slots[index as usize].1.as_mut().expect("a slot in use")
    }

    /// The tag of a slot's commands; the caller adds the command's blocks from bit 32.
    #[inline]
    pub(super) fn tag(&self, index: u32) -> u64 {
        u64::from(index) | u64::from(self.slots[index as usize].0) << 16
    }

    /// The slot and the blocks of the command with this tag. Tags come back from our own driver, which returns each
    /// exactly once, so a wrong one is a bug here and not hostile data.
    #[inline]
    pub(super) fn resolve(&self, tag: u64) -> (u32, u64) {
        let index = (tag & 0xffff) as usize;
        let (life, slot) = &self.slots[index];
        assert!(
            slot.is_some() && u64::from(*life) == tag >> 16 & 0xffff,
            "tag {tag:#x} of a request that has ended"
        );
        ((tag & 0xffff) as u32, tag >> 32)
    }

    /// When the device last showed that it works on the request that it has left alone for longest.
    pub(super) fn oldest_progress(&self) -> Option<u64> {
        let running = self.slots.iter().filter_map(|(_, s)| s.as_ref()).filter(|s| s.outstanding > 0);
        running.map(|s| s.progress_ns).min()
    }

    /// Takes all grants out.
    pub(super) fn take_grants(&mut self, mut take: impl FnMut(Grant)) {
        self.slots.iter_mut().filter_map(|(_, s)| s.as_mut()?.grant.take()).for_each(&mut take);
    }
}
