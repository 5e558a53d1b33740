//! What one poller keeps for itself: which segments are at hand, and how many I/O are active where.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use core::hint;

use crate::published::{self, NONE, Region};
use crate::{Domain, EntryIndex, Key, Memory, Operation, RegionIndex, Request, SEGMENT_ENTRIES};

/// What a poller knows of one segment of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Pointer {
    /// It is not at hand. None of its entries is looked at.
    Dropped,
    /// It is at hand.
    AtHand,
    /// And was used since the hand last passed it.
    Used,
}

/// What a poller has for one segment of the table, on one line as a rule, so that one look finds both.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Own {
    pub(super) pointer: Pointer,
    /// How many I/O are active on each entry, also while the pointer is dropped.
    active: [u16; SEGMENT_ENTRIES as usize],
}

impl Own {
    pub(super) const NEW: Self = Self { pointer: Pointer::Dropped, active: [0; SEGMENT_ENTRIES as usize] };
    const OTHER: Self = Self { pointer: Pointer::Used, active: [1; SEGMENT_ENTRIES as usize] };

    /// For so many segments; see [`touched`].
    pub(super) fn of(segments: usize) -> Box<[Self]> {
        touched(segments, Self::OTHER, Self::NEW)
    }

    /// How many I/O are active on an entry of the segment.
    #[inline]
    pub(super) fn active(&self, entry: EntryIndex) -> u16 {
        self.active[(entry.0 % SEGMENT_ENTRIES) as usize]
    }

    /// One more is.
    #[inline(always)]
    pub(super) fn begin(&mut self, key: Key) {
        let active = &mut self.active[(key.index().0 % SEGMENT_ENTRIES) as usize];
        *active = active.wrapping_add(1);
        assert!(*active != 0, "an entry has at most 65,535 I/O active on one poller");
    }

    /// One less is.
    #[inline(always)]
    pub(super) fn end(&mut self, key: Key) {
        self.active[(key.index().0 % SEGMENT_ENTRIES) as usize] -= 1;
    }
}

/// The segment of an entry.
#[inline]
pub(super) fn segment_of(entry: EntryIndex) -> usize {
    (entry.0 / SEGMENT_ENTRIES) as usize
}

/// A region, and above it the number of the directory that counts something active on it: what a grant or a hold takes along,
/// and what ends with it. So it is no region at all for another directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Counted(u64);

impl Counted {
    /// Of the region; `NONE` if no data moves, or memory is held otherwise.
    #[inline]
    #[allow(clippy::cast_possible_truncation)] // the low half is meant
    pub(crate) fn region(self) -> u32 {
        self.0 as u32
    }
}

/// The memory regions, and how many I/O are active on each on one poller.
#[derive(Debug)]
pub(super) struct Memories {
    regions: Arc<[Region]>,
    active: Box<[u32]>,
    /// The number of the directory, above what has a region's.
    number: u64,
}

impl Memories {
    pub(super) fn new(regions: Arc<[Region]>, count: usize, number: u32) -> Self {
        Self { regions, active: touched(count, 1, 0), number: u64::from(number) << 32 }
    }

    /// Where the memory of a request is and the device finds it, as [`published::memory`].
    #[inline(always)]
    pub(super) fn find(&self, domain: Domain, request: &Request) -> Option<(u32, u64)> {
        self.find_piece(domain, request.operation, request.memory, request.length)
    }

    /// The same of one piece.
    #[inline(always)]
    pub(super) fn find_piece(
        &self,
        domain: Domain,
        operation: Operation,
        memory: Memory,
        length: u64,
    ) -> Option<(u32, u64)> {
        published::memory(&self.regions, domain, operation, memory, length)
    }

    /// One more I/O is active on a region, or on none.
    #[inline(always)]
    pub(super) fn begin(&mut self, region: u32) -> Counted {
        // `NONE` is beyond the table.
        if let Some(active) = self.active.get_mut(region as usize) {
            *active += 1;
        }
        Counted(self.number | u64::from(region))
    }

    /// One less is.
    ///
    /// # Panics
    /// If it was not counted here.
    #[inline(always)]
    pub(super) fn end(&mut self, counted: Counted) {
        let region = counted.0 ^ self.number;
        match usize::try_from(region).ok().and_then(|region| self.active.get_mut(region)) {
            Some(active) => *active -= 1,
            None => assert!(region == u64::from(NONE), "what is released was counted elsewhere"),
        }
    }

    /// Whether nothing is active on it.
    #[inline]
    pub(super) fn is_idle(&self, region: RegionIndex) -> bool {
        self.active.get(region.0 as usize).is_none_or(|count| *count == 0)
    }
}

/// So many of `value`, each page of which was written to, first with another: no check waits for the kernel to give one.
pub(super) fn touched<T: Copy>(count: usize, other: T, value: T) -> Box<[T]> {
    let mut all = vec![other; count];
    hint::black_box(&mut all).fill(value);
    all.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KeyInstance;

    #[test]
    #[should_panic(expected = "at most 65,535 I/O active")]
    fn an_entry_has_no_more_active_than_can_be_counted() {
        let key = Key::new(EntryIndex(17), KeyInstance(1));
        let mut own = Own::NEW;
        (0..u16::MAX).for_each(|_| own.begin(key));
        assert_eq!((own.active(EntryIndex(17)), own.active(EntryIndex(16))), (u16::MAX, 0));
        own.begin(key);
    }
}
