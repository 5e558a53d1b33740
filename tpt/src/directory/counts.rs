//! What one poller keeps for itself: which segments are at hand, and how many I/O are active where.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use core::hint;

use crate::published::{self, NONE, Region};
use crate::{Domain, Memory, Operation, RegionIndex, Request, SEGMENT_ENTRIES};

/// What a poller has for one entry of the table, in 16 bits: how many I/O are active on it, whether its segment is at hand, and
/// whether it was used lately. All of that by one look, and a line has it for 32 entries: of a million entries it stays in
/// a processor's own cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Own(u16);

/// The segment is not at hand. None of its entries is looked at. Said of all of them alike.
const DROPPED: u16 = 1 << 15;
/// The entry was used since the hand last passed its segment.
const USED: u16 = 1 << 14;
const ACTIVE: u16 = USED - 1;

/// So many I/O can be active on one entry on one poller.
pub const MOST_ACTIVE: u16 = ACTIVE;

impl Own {
    pub(super) const NEW: Self = Self(DROPPED);
    const OTHER: Self = Self(USED);

    /// For so many segments; see [`touched`].
    pub(super) fn of(segments: usize) -> Box<[Self]> {
        touched(segments * SEGMENT_ENTRIES as usize, Self::OTHER, Self::NEW)
    }

    /// Whether the segment is at hand.
    #[inline(always)]
    pub(super) fn is_at_hand(self) -> bool {
        self.0 & DROPPED == 0
    }

    /// How many I/O are active on the entry, also while the segment is not at hand.
    #[inline(always)]
    pub(super) fn active(self) -> u16 {
        self.0 & ACTIVE
    }

    /// The hand passes by later.
    #[inline(always)]
    pub(super) fn mark_used(&mut self) {
        self.0 |= USED;
    }

    /// One more is active.
    #[inline(always)]
    pub(super) fn begin(&mut self) {
        self.0 = self.0.wrapping_add(1);
        assert!(self.active() != 0, "an entry has at most 16,383 I/O active on one poller");
    }

    /// One less is.
    #[inline(always)]
    pub(super) fn end(&mut self) {
        debug_assert!(self.active() != 0, "what ends was begun here");
        self.0 = self.0.wrapping_sub(1);
    }
}

/// The entries of a segment that are a poller's own; none of no segment.
pub(super) fn of_segment(own: &mut [Own], segment: u32) -> &mut [Own] {
    let first = segment as usize * SEGMENT_ENTRIES as usize;
    own.get_mut(first..first + SEGMENT_ENTRIES as usize).unwrap_or_default()
}

/// It is at hand, and not used yet.
pub(super) fn bring(segment: &mut [Own]) {
    segment.iter_mut().for_each(|own| own.0 &= ACTIVE);
}

/// It is not at hand any more.
pub(super) fn drop_segment(segment: &mut [Own]) {
    segment.iter_mut().for_each(|own| own.0 = own.0 & ACTIVE | DROPPED);
}

/// The hand passes: whether any entry was used since it last did.
pub(super) fn pass(segment: &mut [Own]) -> bool {
    let used = segment.iter().any(|own| own.0 & USED != 0);
    segment.iter_mut().for_each(|own| own.0 &= !USED);
    used
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
        Counted(self.number.wrapping_add(u64::from(region)))
    }

    /// One less is.
    ///
    /// # Panics
    /// If it was not counted here.
    #[inline(always)]
    pub(super) fn end(&mut self, counted: Counted) {
        // Not by xor, which would not come to nothing where both are seen together.
        let region = counted.0.wrapping_sub(self.number);
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

    #[test]
    #[should_panic(expected = "at most 16,383 I/O active")]
    fn an_entry_has_no_more_active_than_can_be_counted() {
        let mut own = Own::NEW;
        bring(std::slice::from_mut(&mut own));
        own.mark_used();
        (0..MOST_ACTIVE).for_each(|_| own.begin());
        assert_eq!((own.active(), own.is_at_hand()), (MOST_ACTIVE, true));
        own.begin();
    }

    /// What is active is counted whatever becomes of the segment, and the segment is one thing for all its entries.
    #[test]
    fn counts_stay_while_segments_come_and_go() {
        let mut all = Own::of(2);
        assert_eq!((all.len(), of_segment(&mut all, 2).len(), of_segment(&mut all, NONE).len()), (32, 0, 0));
        assert!(all.iter().all(|own| !own.is_at_hand() && own.active() == 0));
        bring(of_segment(&mut all, 1));
        assert!(!all[15].is_at_hand() && all[16..].iter().all(|own| own.is_at_hand()));
        assert!(!pass(of_segment(&mut all, 1)), "nothing was used");
        all[31].begin();
        all[31].mark_used();
        assert!(pass(of_segment(&mut all, 1)) && !pass(of_segment(&mut all, 1)));
        drop_segment(of_segment(&mut all, 1));
        assert_eq!((all[31].active(), all[31].is_at_hand(), all[16].is_at_hand()), (1, false, false));
        bring(of_segment(&mut all, 1));
        all[31].end();
        assert_eq!((all[31].active(), all[31].is_at_hand()), (0, true));
    }
}
