//! A split virtqueue as its driver sees it: what it has written, what it has told, what it has seen (virtio 1.2, 2.7).
//!
//! What the driver knows it keeps to itself; of what the device writes only the used ring and the status bytes are read,
//! each once.

use std::sync::atomic::{Ordering, fence};

use zerocopy::transmute;

use crate::dma::DmaBuffer;
use crate::hal::{DmaAccess, DmaError, Mapper};
use crate::spec::virtio::block::{HEADER_LEN, RANGE_LEN, Range, RequestHeader};
use crate::spec::virtio::split::{
    DESCRIPTOR_LEN, Descriptor, MOST_ENTRIES, available, descriptor, passes, used,
};

use super::identity::Traits;

/// Entries of a ring at least: a chain of header, buffer and status has to fit.
pub(super) const LEAST_ENTRIES: u16 = 4;

/// Descriptors of a request besides its buffers: header and status.
const BESIDES: u16 = 2;

/// Lengths as a descriptor says them.
#[expect(clippy::cast_possible_truncation, reason = "it is 16")]
const HEADER_BYTES: u32 = HEADER_LEN as u32;
#[expect(clippy::cast_possible_truncation, reason = "it is 16")]
const RANGE_BYTES: u32 = RANGE_LEN as u32;
#[expect(clippy::cast_possible_truncation, reason = "it is 16")]
const DESCRIPTOR_BYTES: u32 = DESCRIPTOR_LEN as u32;

/// Buffers of a request that a ring of `size` entries has room for. No chain is longer than its ring (2.7.5.3.1); chains that
/// lie in the ring itself leave room for others.
pub(super) const fn room(size: u16, indirect: bool) -> u16 {
    let room = if indirect { size } else { size / 8 };
    let buffers = room.saturating_sub(BESIDES);
    if buffers > 0 { buffers } else { 1 }
}

/// The largest power of two that is no more than both.
pub(super) fn fitting_size(most: u16, wanted: u16) -> u16 {
    let least = most.min(wanted).min(MOST_ENTRIES);
    least.checked_ilog2().map_or(0, |shift| 1 << shift)
}

/// What the device sees of a queue. Dropped only when it no longer can.
pub(super) struct QueueMemory {
    /// Descriptor table and available ring: the device reads them.
    ours: DmaBuffer,
    /// Used ring and status bytes: the device writes them.
    theirs: DmaBuffer,
    /// A place for each slot: header, range and, if indirect, its descriptors. The device reads them.
    lists: DmaBuffer,
    stride: usize,
    size: u16,
    /// Descriptors of a slot.
    chain: u16,
    indirect: bool,
}

impl QueueMemory {
    /// For a queue of `size` entries, a power of two, at least [`LEAST_ENTRIES`].
    pub(super) fn new(mapper: &dyn Mapper, size: u16, traits: &Traits) -> Result<Self, DmaError> {
        assert!(size.is_power_of_two() && (LEAST_ENTRIES..=MOST_ENTRIES).contains(&size), "{size} entries");
        let (chain, indirect) = (traits.buffers + BESIDES, traits.indirect);
        assert!(chain <= size, "a chain of {chain} in {size} entries");
        let entries = usize::from(size);
        let table = if indirect { usize::from(chain) * DESCRIPTOR_LEN } else { 0 };
        let stride = (HEADER_LEN + RANGE_LEN + table).next_multiple_of(64);
        let slots = usize::from(if indirect { size } else { size / chain });
        Ok(Self {
            ours: DmaBuffer::new(
                mapper,
                entries * DESCRIPTOR_LEN + available::used_event(size) + 4,
                DmaAccess::Read,
            )?,
            theirs: DmaBuffer::new(mapper, Self::statuses(size) + entries, DmaAccess::ReadWrite)?,
            lists: DmaBuffer::new(mapper, slots * stride, DmaAccess::Read)?,
            stride,
            size,
            chain,
            indirect,
        })
    }

    /// Where the status bytes begin: a line after the used ring.
    fn statuses(size: u16) -> usize {
        (used::avail_event(size) + 4).next_multiple_of(64)
    }

    /// Where the available ring begins.
    fn available(&self) -> usize {
        usize::from(self.size) * DESCRIPTOR_LEN
    }

    /// Requests that there is room for.
    pub(super) fn slots(&self) -> u16 {
        if self.indirect { self.size } else { self.size / self.chain }
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// Where the device finds descriptor table, available ring and used ring.
    pub(super) fn places(&self) -> [u64; 3] {
        [self.ours.iova(0).0, self.ours.iova(self.available()).0, self.theirs.iova(0).0]
    }

    /// As new.
    fn zero(&self) {
        self.ours.zero();
        self.theirs.zero();
    }

    /// Writes a slot's descriptors, one after the other.
    pub(super) fn chain(&self, slot: u16) -> Chain<'_> {
        Chain { memory: self, slot, count: 0 }
    }

    /// The status byte of a slot.
    #[inline]
    pub(super) fn status(&self, slot: u16) -> u8 {
        self.theirs.load8(Self::statuses(self.size) + usize::from(slot), Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(super) fn parts(&self) -> (&DmaBuffer, &DmaBuffer) {
        (&self.ours, &self.theirs)
    }
}

/// What a status byte is before the device writes it: no status at all.
pub(super) const UNWRITTEN: u8 = 0xff;

/// The descriptors of a request, in the making.
pub(super) struct Chain<'a> {
    memory: &'a QueueMemory,
    slot: u16,
    count: u16,
}

impl Chain<'_> {
    fn list(&self) -> usize {
        usize::from(self.slot) * self.memory.stride
    }

    /// Appends a buffer. There is room for it: the traits see to that.
    #[inline]
    pub(super) fn push(&mut self, addr: u64, len: u32, writable: bool) {
        assert!(self.count < self.memory.chain, "a chain of more than {} descriptors", self.memory.chain);
        let write = if writable { descriptor::WRITE } else { 0 };
        let (buffer, at, first) = if self.memory.indirect {
            (&self.memory.lists, self.list() + HEADER_LEN + RANGE_LEN, 0)
        } else {
            (&self.memory.ours, 0, self.slot * self.memory.chain)
        };
        let index = first + self.count;
        let entry = Descriptor { addr, len, flags: descriptor::NEXT | write, next: index.wrapping_add(1) };
        let words: [u64; 2] = transmute!(entry);
        buffer.write(at + usize::from(index) * DESCRIPTOR_LEN, words);
        self.count += 1;
    }

    /// Appends the header.
    #[inline]
    pub(super) fn header(&mut self, header: RequestHeader) {
        let words: [u64; 2] = transmute!(header);
        self.memory.lists.write(self.list(), words);
        self.push(self.memory.lists.iova(self.list()).0, HEADER_BYTES, false);
    }

    /// Appends a range.
    pub(super) fn range(&mut self, range: Range) {
        let (at, words): (usize, [u64; 2]) = (self.list() + HEADER_LEN, transmute!(range));
        self.memory.lists.write(at, words);
        self.push(self.memory.lists.iova(at).0, RANGE_BYTES, false);
    }

    /// Appends the status, and ends the chain. Returns its head.
    #[inline]
    pub(super) fn end(mut self) -> u16 {
        let at = QueueMemory::statuses(self.memory.size) + usize::from(self.slot);
        self.memory.theirs.store8(at, UNWRITTEN);
        let last =
            Descriptor { addr: self.memory.theirs.iova(at).0, len: 1, flags: descriptor::WRITE, next: 0 };
        self.push(last.addr, last.len, true);
        let words: [u64; 2] = transmute!(last);
        if !self.memory.indirect {
            let head = self.slot * self.memory.chain;
            self.memory.ours.write(usize::from(head + self.count - 1) * DESCRIPTOR_LEN, words);
            return head;
        }
        let table = self.list() + HEADER_LEN + RANGE_LEN;
        self.memory.lists.write(table + usize::from(self.count - 1) * DESCRIPTOR_LEN, words);
        let lead = Descriptor {
            addr: self.memory.lists.iova(table).0,
            len: u32::from(self.count) * DESCRIPTOR_BYTES,
            flags: descriptor::INDIRECT,
            next: 0,
        };
        let words: [u64; 2] = transmute!(lead);
        self.memory.ours.write(usize::from(self.slot) * DESCRIPTOR_LEN, words);
        self.slot
    }
}

/// What no honest device does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Breach {
    /// The used index went further than there is anything with the device.
    Index {
        /// Entries that it claims are new.
        new: u16,
        /// Chains that the device has.
        with_device: u16,
    },
    /// The used entry names no chain that the device has.
    Id(u32),
    /// It claims to have written more than it may, or less than a request that succeeded takes.
    Length(u32),
    /// The status byte was not written.
    NoStatus,
}

/// The indexes of a queue, which count freely and wrap.
pub(super) struct Ring {
    event_index: bool,
    /// Entered into the available ring.
    entered: u16,
    /// Published.
    told: u16,
    /// Seen of the used ring.
    seen: u16,
    /// Interrupts are wanted.
    armed: bool,
    /// With event indexes and no interrupts wanted: what was seen when the event was put out of reach.
    quiet_since: u16,
}

/// The event that stands behind what was seen comes up again when indexes wrap; it is moved on long before.
const QUIET: u16 = 1 << 14;

impl Ring {
    /// Of an empty queue.
    pub(super) fn new(event_index: bool) -> Self {
        Self { event_index, entered: 0, told: 0, seen: 0, armed: false, quiet_since: 0 }
    }

    /// The device is stopped: queue and memory become as new.
    pub(super) fn start_over(&mut self, memory: &QueueMemory) {
        memory.zero();
        (self.entered, self.told, self.seen) = (0, 0, 0);
        self.arm(memory, self.armed);
    }

    /// Where the next chain goes.
    #[inline]
    pub(super) fn next(&self) -> u16 {
        self.entered
    }

    /// Whether something is entered that the device was not told of.
    #[inline]
    pub(super) fn untold(&self) -> bool {
        self.entered != self.told
    }

    /// Chains that the device has.
    #[inline]
    fn with_device(&self) -> u16 {
        self.told.wrapping_sub(self.seen)
    }

    /// Whether the device was told of what stands at this index, of those that are still under way.
    #[inline]
    fn is_told(&self, at: u16) -> bool {
        at.wrapping_sub(self.told) >= 1 << 15
    }

    /// Enters a chain.
    #[inline]
    pub(super) fn enter(&mut self, memory: &QueueMemory, head: u16) {
        let place = usize::from(self.entered & (memory.size - 1)) * available::ENTRY;
        memory.ours.store16(memory.available() + available::HEAD + place, head);
        self.entered = self.entered.wrapping_add(1);
    }

    /// Publishes what was entered. Says whether the device wants to be notified.
    #[inline]
    pub(super) fn publish(&mut self, memory: &QueueMemory) -> bool {
        let old = std::mem::replace(&mut self.told, self.entered);
        // The entries are there before the index says so.
        fence(Ordering::Release);
        self.store_head(memory);
        // A device that is about to sleep writes what it wants, and then looks at the index: one of the two sees the other.
        fence(Ordering::SeqCst);
        if self.event_index {
            let at = used::avail_event(memory.size);
            passes(low(memory.theirs.load32(at, Ordering::Relaxed)), old, self.told)
        } else {
            low(memory.theirs.load32(0, Ordering::Relaxed)) & used::NO_NOTIFY == 0
        }
    }

    /// Flags and index, in one word.
    fn store_head(&self, memory: &QueueMemory) {
        let silent = !self.event_index && !self.armed;
        let flags = if silent { available::NO_INTERRUPT } else { 0 };
        memory.ours.store32(memory.available(), u32::from(flags) | u32::from(self.told) << 16);
    }

    /// Asks for an interrupt with what the device uses next, or for none.
    pub(super) fn arm(&mut self, memory: &QueueMemory, armed: bool) {
        self.armed = armed;
        if self.event_index {
            // Behind what was seen it is passed only when indexes wrap.
            let event = if armed { self.seen } else { self.seen.wrapping_sub(1) };
            self.quiet_since = self.seen;
            memory.ours.store32(memory.available() + available::used_event(memory.size), event.into());
        } else {
            self.store_head(memory);
        }
        // Before the used ring is looked at once more.
        fence(Ordering::SeqCst);
    }

    /// After some were seen: the event keeps its distance.
    #[inline]
    pub(super) fn keep_armed(&mut self, memory: &QueueMemory) {
        if self.event_index && (self.armed || self.seen.wrapping_sub(self.quiet_since) >= QUIET) {
            self.arm(memory, self.armed);
        }
    }

    /// Used entries that are there to be taken. Acquire: what the device wrote for them is read after it.
    #[inline]
    pub(super) fn ready(&self, memory: &QueueMemory) -> Result<u16, Breach> {
        let index = high(memory.theirs.load32(0, Ordering::Acquire));
        let (new, with_device) = (index.wrapping_sub(self.seen), self.with_device());
        if new > with_device { Err(Breach::Index { new, with_device }) } else { Ok(new) }
    }

    /// The next used entry, of those that are ready: its slot, and how many bytes the device says that it has written.
    #[inline]
    pub(super) fn take(&mut self, memory: &QueueMemory) -> Result<(u16, u32), Breach> {
        let at = used::HEAD + usize::from(self.seen & (memory.size - 1)) * used::ENTRY;
        let id = memory.theirs.load32(at, Ordering::Relaxed);
        let len = memory.theirs.load32(at + 4, Ordering::Relaxed);
        let head = u16::try_from(id).map_err(|_| Breach::Id(id))?;
        let slot = match memory.indirect {
            true => Some(head),
            false => head.is_multiple_of(memory.chain).then(|| head / memory.chain),
        };
        let slot = slot.filter(|slot| *slot < memory.slots()).ok_or(Breach::Id(id))?;
        self.seen = self.seen.wrapping_add(1);
        Ok((slot, len))
    }

    /// Refuses what the device cannot have used: nobody has that place, or the device was never told.
    #[inline]
    pub(super) fn check(&self, slot: u16, at: Option<u16>) -> Result<(), Breach> {
        match at {
            Some(at) if self.is_told(at) => Ok(()),
            _ => Err(Breach::Id(slot.into())),
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "half of it is meant")]
const fn low(word: u32) -> u16 {
    word as u16
}

const fn high(word: u32) -> u16 {
    low(word >> 16)
}
