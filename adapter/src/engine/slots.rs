//! The requests that the engine has admitted, at fixed positions.
//!
//! A slot is in two parts. What starting, ending and listing a request takes is one [`Slot`] of two cache lines. What only
//! a request needs that waits, or that has something beside its grant, stands elsewhere ([`Asked`], [`Beside`]), and nearly
//! all requests never touch it.

use driver::block::{DeviceStatus, SubmitError};
use tpt::{ExtensionKey, Grant, Key, Memory, Operation, RegionKey, Request};
use wire::Status;

use super::files::Reach;
use super::gates::Claim;
use super::touched;

/// Where an admitted request stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SlotState {
    /// Not in use.
    Free,
    /// Just taken.
    Taken,
    /// To be admitted later: its entry is being modified, or it is short of something that others use.
    Held,
    /// To be admitted when its volume's limits let it.
    Throttled,
    /// Some or all of its pieces wait for room in the device queue.
    Starved,
    /// Waits until others have left the blocks that it has claimed.
    Gated,
    /// An append of which the device has nothing more: it waits until those before it have landed.
    Landing,
    /// A flush that waits for the next merged one.
    FlushWaiting,
    /// A management request that waits for a place, or for the control plane.
    Managed,
    /// The device has all of it.
    Running,
}

/// A request as it was taken, parsed and not decided.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    /// Of its queue.
    pub(super) port: usize,
    pub(super) user_data: u64,
    /// Of a management request, memory and length are that, and the offset is the room for its reply.
    pub(super) request: Request,
    /// Entries of its scatter list; zero if it has none.
    pub(super) segments: u8,
    /// A write of bytes: complete only when durable.
    pub(super) durable: bool,
    /// A write of bytes that goes to the end of its file, wherever that is.
    pub(super) append: bool,
    pub(super) deadline_ns: u64,
}

const NOTHING: Asked = Asked {
    port: 0,
    user_data: 0,
    request: Request {
        operation: Operation::Flush,
        key: Key(0),
        extension: ExtensionKey::NONE,
        offset: 0,
        length: 0,
        memory: Memory { region: RegionKey(0), offset: 0 },
    },
    segments: 0,
    durable: false,
    append: false,
    deadline_ns: 0,
};

/// What the memory of a request is, if not one range of it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) enum Aside {
    /// It is.
    #[default]
    Nothing,
    /// A scatter list.
    List(u16),
    /// A buffer of private memory.
    Buffer(u16),
    /// A management request, handed over to a place or not yet.
    Managed(Option<u16>),
}

/// What an admitted request has beside its grant, to be given back when it ends.
#[derive(Default)]
pub(super) struct Beside {
    pub(super) aside: Aside,
    pub(super) claim: Option<Claim>,
    /// Somebody's gate waits for its end.
    pub(super) delays: bool,
    pub(super) reach: Reach,
}

/// No slot.
const NONE: u32 = u32::MAX;

/// An admitted request.
#[repr(align(64))]
pub(super) struct Slot {
    pub(super) grant: Option<Grant>,
    pub(super) user_data: u64,
    /// When the device got a piece of it while it had none, or ended one.
    pub(super) progress_ns: u64,
    /// The slot's number, and from bit 16 on how many requests were here before: in the tags of this one's commands.
    mark: u32,
    /// Of a free slot, the next free one.
    next: u32,
    /// Device blocks of the request, handed to the device, and ended well.
    pub(super) blocks: u32,
    pub(super) submitted: u32,
    pub(super) done: u32,
    /// Commands at the device.
    pub(super) outstanding: u32,
    pub(super) status: Status,
    pub(super) device_status: u16,
    pub(super) state: SlotState,
    /// What was asked is known ([`Slots::asked`]).
    noted: bool,
    /// It may have something [`Beside`].
    pub(super) beside: bool,
}

const _: () = assert!(size_of::<Slot>() == 128);

impl Slot {
    fn free(number: u32) -> Self {
        Self {
            grant: None,
            user_data: 0,
            progress_ns: 0,
            mark: number,
            next: NONE,
            blocks: 0,
            submitted: 0,
            done: 0,
            outstanding: 0,
            status: Status::OK,
            device_status: 0,
            state: SlotState::Free,
            noted: false,
            beside: false,
        }
    }

    /// What the tags of its commands begin with; the caller adds the command's blocks from bit 32.
    #[inline]
    pub(super) fn tag(&self) -> u64 {
        u64::from(self.mark)
    }

    /// It was granted.
    #[inline]
    pub(super) fn give(&mut self, grant: Grant) {
        // The length of a request has 32 bits, and a block more than one byte.
        self.blocks = u32::try_from(grant.blocks()).expect("no more blocks than a request has bytes");
        self.grant = Some(grant);
    }

    /// The device took a command of it.
    #[inline]
    pub(super) fn record_submitted(&mut self, blocks: u32, now_ns: u64) {
        if self.outstanding == 0 {
            self.progress_ns = now_ns;
        }
        self.submitted += blocks;
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

/// The slot that the next request gets. What the short way begins is written here before the device gets its command, so that
/// nothing of it has to be kept until then; the slot is taken only when the device has.
pub(super) struct Vacancy<'a> {
    slot: &'a mut Slot,
    port: &'a mut u32,
    free: &'a mut u32,
    used: &'a mut usize,
}

impl<'a> Vacancy<'a> {
    /// What the tags of its commands will begin with.
    #[inline]
    pub(super) fn tag(&self) -> u64 {
        self.slot.tag()
    }

    /// All but the request's own, as if the device had all of it as one command of so many blocks: to be followed by
    /// [`Vacancy::take`] if it takes that, else by [`Vacancy::empty`].
    #[inline(always)]
    pub(super) fn begin(&mut self, user_data: u64, grant: Grant, blocks: u32, now_ns: u64) {
        // A slot is freed without a grant, so that none is to be dropped here.
        std::mem::forget(self.slot.grant.replace(grant));
        (self.slot.blocks, self.slot.submitted) = (blocks, blocks);
        self.clear(SlotState::Running, 1);
        (self.slot.user_data, self.slot.progress_ns) = (user_data, now_ns);
    }

    /// What the last request left is as good as new where nothing is written.
    #[inline(always)]
    fn clear(&mut self, state: SlotState, outstanding: u32) {
        let slot = &mut *self.slot;
        (slot.outstanding, slot.done) = (outstanding, 0);
        (slot.status, slot.device_status) = (Status::OK, 0);
        (slot.state, slot.noted, slot.beside) = (state, false, false);
    }

    /// It is a request's of the queue of that port.
    #[inline(always)]
    pub(super) fn take(self, port: usize) -> &'a mut Slot {
        let Self { slot, port: its, free, used } = self;
        #[allow(clippy::cast_possible_truncation)] // a few thousand at the most
        let port = port as u32;
        *its = port;
        *used += 1;
        *free = slot.next;
        slot
    }

    /// It is nobody's, as before. Gives back the grant.
    #[cold]
    pub(super) fn empty(mut self) -> Option<Grant> {
        self.clear(SlotState::Free, 0);
        self.slot.grant.take()
    }
}

/// A fixed number of slots. Each has a life count in its device tag, so that a tag never resolves to a later request.
pub(super) struct Slots {
    slots: Box<[Slot]>,
    /// Of each slot in use the port of its request's queue, else `NONE`: all together, so that the requests of a queue are
    /// found by a look at few lines.
    ports: Vec<u32>,
    asked: Box<[Asked]>,
    beside: Box<[Beside]>,
    /// The free one that was used last.
    free: u32,
    used: usize,
}

impl Slots {
    pub(super) fn new(count: u16) -> Self {
        let mut slots: Box<[Slot]> = (0..u32::from(count)).map(Slot::free).collect();
        for (slot, next) in slots.iter_mut().zip(1..u32::from(count)) {
            slot.next = next;
        }
        let mut ports = touched(slots.len());
        ports.resize(slots.len(), NONE);
        Self {
            slots,
            ports,
            asked: vec![NOTHING; usize::from(count)].into(),
            beside: (0..count).map(|_| Beside::default()).collect(),
            free: if count == 0 { NONE } else { 0 },
            used: 0,
        }
    }

    #[inline]
    pub(super) fn has_room(&self) -> bool {
        self.free != NONE
    }

    pub(super) fn count(&self) -> usize {
        self.slots.len()
    }

    /// Whether half of them are in use.
    #[inline]
    pub(super) fn is_crowded(&self) -> bool {
        self.until_crowded() == 0
    }

    /// How many more can be used before half of them are.
    #[inline]
    pub(super) fn until_crowded(&self) -> usize {
        self.slots.len().div_ceil(2).saturating_sub(self.used)
    }

    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// The slot that [`Slots::allocate`] will give. The caller saw [`Slots::has_room`].
    pub(super) fn next_free(&self) -> u32 {
        self.free
    }

    /// That slot, to be taken or not. The caller saw [`Slots::has_room`].
    #[inline]
    pub(super) fn vacancy(&mut self) -> Vacancy<'_> {
        let Self { slots, ports, free, used, .. } = self;
        let (slot, port) = (&mut slots[*free as usize], &mut ports[*free as usize]);
        Vacancy { slot, port, free, used }
    }

    /// Gives a request a slot. The caller saw [`Slots::has_room`], and counts it for its queue.
    #[inline]
    pub(super) fn allocate(&mut self, port: usize, user_data: u64) -> &mut Slot {
        let mut vacancy = self.vacancy();
        vacancy.clear(SlotState::Taken, 0);
        let slot = vacancy.take(port);
        (slot.user_data, slot.submitted) = (user_data, 0);
        slot
    }

    /// The port of the queue whose request has the slot.
    #[inline]
    pub(super) fn port(&self, number: u32) -> usize {
        self.ports[number as usize] as usize
    }

    /// The first slot from `number` on that a request of a queue has. To look at all of them, of which some may end
    /// meanwhile.
    pub(super) fn next_of(&self, port: usize, number: u32) -> Option<u32> {
        let ports = self.ports.get(number as usize..)?;
        let at = ports.iter().position(|&its| its as usize == port)?;
        u32::try_from(at).ok().map(|at| number + at)
    }

    /// Ends the life of a slot, of which the device has nothing, and whose request has nothing beside its grant. Gives that,
    /// which is to be released, and the port of its queue, which counts one less.
    #[inline]
    pub(super) fn free(&mut self, number: u32) -> (Option<Grant>, usize) {
        let slot = &mut self.slots[number as usize];
        assert!(slot.outstanding == 0, "a request ends only when the device has ended all its pieces");
        assert!(
            slot.state != SlotState::Free && !slot.beside,
            "a slot is freed once, when all was given back"
        );
        slot.state = SlotState::Free;
        slot.mark = slot.mark.wrapping_add(1 << 16);
        slot.next = self.free;
        self.free = number;
        self.used -= 1;
        let port = std::mem::replace(&mut self.ports[number as usize], NONE);
        (slot.grant.take(), port as usize)
    }

    #[inline]
    pub(super) fn get(&self, number: u32) -> &Slot {
        &self.slots[number as usize]
    }

    #[inline]
    pub(super) fn get_mut(&mut self, number: u32) -> &mut Slot {
        &mut self.slots[number as usize]
    }

    /// Keeps what was asked: before the request waits, or gets something beside its grant.
    pub(super) fn note(&mut self, number: u32, asked: &Asked) {
        self.slots[number as usize].noted = true;
        self.asked[number as usize] = *asked;
    }

    /// What was asked, of a request for which it was noted.
    pub(super) fn asked(&self, number: u32) -> &Asked {
        assert!(self.get(number).noted, "what waits or has something beside its grant was noted");
        &self.asked[number as usize]
    }

    /// What the memory of the request is.
    #[inline]
    pub(super) fn aside(&self, number: u32) -> Aside {
        if self.get(number).beside { self.beside[number as usize].aside } else { Aside::Nothing }
    }

    /// The blocks that it has claimed.
    pub(super) fn claim(&self, number: u32) -> Option<Claim> {
        if self.get(number).beside { self.beside[number as usize].claim } else { None }
    }

    /// What its end has to do with the length of its file.
    pub(super) fn reach(&self, number: u32) -> Reach {
        if self.get(number).beside { self.beside[number as usize].reach } else { Reach::Inside }
    }

    /// What it has beside its grant, to add to it.
    pub(super) fn beside_mut(&mut self, number: u32) -> &mut Beside {
        self.get_mut(number).beside = true;
        &mut self.beside[number as usize]
    }

    /// Takes what it has beside its grant.
    pub(super) fn take_beside(&mut self, number: u32) -> Beside {
        self.get_mut(number).beside = false;
        std::mem::take(&mut self.beside[number as usize])
    }

    /// The slot and the blocks of the command with this tag. Tags come back from our own driver, which returns each
    /// exactly once, so a wrong one is a bug here and not hostile data.
    #[inline]
    pub(super) fn resolve(&self, tag: u64) -> (u32, u32) {
        #[allow(clippy::cast_possible_truncation)] // the halves of a tag
        let (mark, blocks) = (tag as u32, (tag >> 32) as u32);
        let number = mark & 0xffff;
        // A free slot has the mark of a life that has not begun.
        assert_eq!(self.get(number).mark, mark, "tag {tag:#x} of a request that has ended");
        (number, blocks)
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
