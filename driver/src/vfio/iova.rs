//! Which device addresses are free: plain arithmetic over ranges.

use std::collections::BTreeMap;

/// An inclusive range of device addresses, as the kernel states them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IovaRange {
    /// The first address.
    pub first: u64,
    /// The last address.
    pub last: u64,
}

/// Below this, addresses are not handed out: a null pointer in a descriptor must fault.
const LOWEST: u64 = 1 << 21;
/// Above this, addresses are not handed out: every IOMMU and every device reaches that far.
const HIGHEST: u64 = (1 << 39) - 1;

/// Free device addresses.
///
/// Search starts where the last one ended, so that freed addresses are used again only after all others: a device
/// that still holds a freed address meets a fault for long, not another's memory.
#[derive(Debug)]
pub(crate) struct IovaSpace {
    /// Free ranges by their first address, to their last; they neither touch nor overlap.
    free: BTreeMap<u64, u64>,
    cursor: u64,
}

impl IovaSpace {
    /// All of `ranges`, in any order, overlapping or not, as far as they lie in whole units of `page` bytes (a power
    /// of two).
    pub(crate) fn new(ranges: &[IovaRange], page: u64) -> Self {
        let mut sorted: Vec<(u64, u64)> = ranges.iter().filter_map(|range| usable(*range, page)).collect();
        sorted.sort_unstable();
        let mut free: BTreeMap<u64, u64> = BTreeMap::new();
        for (first, last) in sorted {
            match free.last_entry() {
                Some(mut before) if *before.get() >= first - 1 => {
                    let joined = last.max(*before.get());
                    before.insert(joined);
                }
                _ => {
                    free.insert(first, last);
                }
            }
        }
        Self { free, cursor: 0 }
    }

    /// Takes `bytes` (not 0) at an address that is `phase` modulo `align` (a power of two above `phase`).
    pub(crate) fn take(&mut self, bytes: u64, align: u64, phase: u64) -> Option<u64> {
        let fit = |first: u64, last: u64| {
            let lead = phase.wrapping_sub(first) & (align - 1);
            let start = first.checked_add(lead)?;
            let end = start.checked_add(bytes.checked_sub(1)?)?;
            (end <= last).then_some((start, end))
        };
        // From the cursor on: the rest of the range that it lies in, then the ranges above, then all from the bottom.
        let rest =
            self.free.range(..=self.cursor).next_back().map(|(&range, &last)| (range, self.cursor, last));
        let above = self.free.range(self.cursor..).map(|(&first, &last)| (first, first, last));
        let all = self.free.iter().map(|(&first, &last)| (first, first, last));
        let (range, start, end) = rest
            .into_iter()
            .chain(above)
            .chain(all)
            .find_map(|(range, from, last)| fit(from, last).map(|(start, end)| (range, start, end)))?;
        let last = self.free.remove(&range)?;
        if start > range {
            self.free.insert(range, start - 1);
        }
        if end < last {
            self.free.insert(end + 1, last);
        }
        self.cursor = end.wrapping_add(1);
        Some(start)
    }

    /// Gives back what [`IovaSpace::take`] gave out.
    pub(crate) fn give_back(&mut self, start: u64, bytes: u64) {
        let Some(mut last) = bytes.checked_sub(1).and_then(|more| start.checked_add(more)) else {
            return;
        };
        let mut first = start;
        if let Some((&before, &before_last)) = self.free.range(..start).next_back() {
            assert!(before_last < start, "device addresses given back twice");
            if before_last + 1 == start {
                first = before;
            }
        }
        if let Some((&after, &after_last)) = self.free.range(start..).next() {
            assert!(after > last, "device addresses given back twice");
            if after == last + 1 {
                self.free.remove(&after);
                last = after_last;
            }
        }
        self.free.insert(first, last);
    }

    /// Bytes that are free.
    #[cfg(test)]
    fn free_bytes(&self) -> u64 {
        self.free.iter().map(|(first, last)| last - first + 1).sum()
    }
}

/// The part of `range` in whole pages and within the bounds.
fn usable(range: IovaRange, page: u64) -> Option<(u64, u64)> {
    let first = range.first.max(LOWEST).checked_next_multiple_of(page)?;
    let end = range.last.min(HIGHEST).checked_add(1)? & !(page - 1);
    (first < end).then(|| (first, end - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: u64 = 4096;
    /// As a machine with an Intel IOMMU states them: a hole for message-signalled interrupts.
    const INTEL: [IovaRange; 2] =
        [IovaRange { first: 0, last: 0xfedf_ffff }, IovaRange { first: 0xfef0_0000, last: 0x7f_ffff_ffff }];

    #[test]
    fn reserved_addresses_and_the_first_ones_are_never_given_out() {
        let mut space = IovaSpace::new(&INTEL, PAGE);
        // Pieces of 512 MiB: eight would fit below the hole if it were not there.
        let size = 1 << 29;
        let mut count = 0;
        while let Some(start) = space.take(size, size, 0) {
            let end = start + size;
            assert!(start >= LOWEST && end <= HIGHEST + 1);
            assert!(end <= 0xfee0_0000 || start >= 0xfef0_0000, "{start:#x}");
            count += 1;
        }
        assert_eq!(count, 1024 - 2); // all of 39 bits but the piece at 0 and the one with the hole
    }

    #[test]
    fn freed_addresses_rest_until_all_others_were_used() {
        let range = IovaRange { first: LOWEST, last: LOWEST + 8 * PAGE - 1 };
        let mut space = IovaSpace::new(&[range], PAGE);
        let mut seen = Vec::new();
        for _ in 0..8 {
            let start = space.take(PAGE, PAGE, 0).unwrap();
            space.give_back(start, PAGE);
            assert!(!seen.contains(&start));
            seen.push(start);
        }
        assert_eq!(space.take(PAGE, PAGE, 0), Some(LOWEST));
        assert_eq!(space.take(8 * PAGE, PAGE, 0), None);
    }

    #[test]
    fn phase_makes_large_pages_possible() {
        let mut space = IovaSpace::new(&INTEL, PAGE);
        let large = 1 << 21;
        space.take(PAGE, PAGE, 0).unwrap();
        assert_eq!(space.take(3 * large, large, 5 * PAGE).unwrap() % large, 5 * PAGE);
    }

    #[test]
    fn hostile_ranges_leave_an_empty_or_sane_space() {
        let range = |first, last| IovaRange { first, last };
        for ranges in [
            vec![],
            vec![range(u64::MAX, 0)],
            vec![range(u64::MAX, u64::MAX)],
            vec![range(0, 5)],
            vec![range(LOWEST + 1, LOWEST + PAGE)],
        ] {
            assert_eq!(IovaSpace::new(&ranges, PAGE).free_bytes(), 0, "{ranges:x?}");
        }
        let all = IovaSpace::new(&[range(0, u64::MAX), range(7, 9), range(0, u64::MAX)], PAGE);
        assert_eq!(all.free_bytes(), HIGHEST + 1 - LOWEST);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take { pages: u64, align: u32, phase: u64 },
        GiveBack(prop::sample::Index),
    }

    proptest! {
        #[test]
        fn pieces_never_overlap_and_all_come_back(
            ranges in prop::collection::vec((0u64..1 << 30, 0u64..1 << 26), 0..6),
            steps in prop::collection::vec(prop_oneof![
                (1u64..2000, 0u32..11, 0u64..1024).prop_map(|(pages, align, phase)| Step::Take { pages, align, phase }),
                any::<prop::sample::Index>().prop_map(Step::GiveBack),
            ], 0..200),
        ) {
            let ranges: Vec<IovaRange> =
                ranges.into_iter().map(|(first, more)| IovaRange { first, last: first + more }).collect();
            let mut space = IovaSpace::new(&ranges, PAGE);
            let before = space.free.clone();
            let total = space.free_bytes();
            let mut held: Vec<(u64, u64)> = Vec::new();
            for step in steps {
                match step {
                    Step::Take { pages, align, phase } => {
                        let (bytes, align) = (pages * PAGE, PAGE << align);
                        let phase = phase * PAGE % align;
                        if let Some(start) = space.take(bytes, align, phase) {
                            prop_assert_eq!(start % align, phase);
                            let inside = |r: &(&u64, &u64)| start >= *r.0 && start + bytes - 1 <= *r.1;
                            prop_assert!(before.iter().any(|range| inside(&range)));
                            prop_assert!(held.iter().all(|&(s, b)| start + bytes <= s || s + b <= start));
                            held.push((start, bytes));
                        }
                    }
                    Step::GiveBack(_) if held.is_empty() => {}
                    Step::GiveBack(index) => {
                        let (start, bytes) = held.swap_remove(index.index(held.len()));
                        space.give_back(start, bytes);
                    }
                }
                prop_assert_eq!(space.free_bytes() + held.iter().map(|piece| piece.1).sum::<u64>(), total);
            }
            for (start, bytes) in held {
                space.give_back(start, bytes);
            }
            prop_assert_eq!(space.free, before);
        }
    }
}
