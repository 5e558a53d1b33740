//! Arithmetic of free-running counts.
//!
//! Every index of a queue is a 32-bit count that starts at 0, is never reset and wraps. Because the number of entries
//! is a power of two of at most 4096, slots and phases go on through the wrap without a seam.

use crate::layout::Entries;

/// How far `to` is ahead of `from`.
#[inline]
pub const fn distance(from: u32, to: u32) -> u32 {
    to.wrapping_sub(from)
}

/// The count `by` steps after `count`.
#[inline]
pub const fn advance(count: u32, by: u32) -> u32 {
    count.wrapping_add(by)
}

/// How far the other side moved a count from `known` to `seen`; `None` if that is more than the `limit` that it may
/// move, which is also what a step backwards looks like.
#[inline]
pub const fn movement(known: u32, seen: u32, limit: u32) -> Option<u32> {
    let moved = distance(known, seen);
    if moved <= limit { Some(moved) } else { None }
}

/// The phase of the completion entry with free-running number `count`: 1 on the first lap, 0 on the second, and so on.
#[inline]
pub const fn phase(entries: Entries, count: u32) -> u16 {
    if count & entries.get() == 0 { 1 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{MAX_ENTRIES, MIN_ENTRIES};
    use proptest::prelude::*;

    #[test]
    fn distance_goes_through_the_wrap() {
        assert_eq!(distance(u32::MAX, 0), 1);
        assert_eq!(distance(u32::MAX - 3, 4), 8);
        assert_eq!(distance(7, 7), 0);
        assert_eq!(advance(u32::MAX, 1), 0);
        assert_eq!(advance(u32::MAX - 1, 4096), 4094);
    }

    #[test]
    fn movement_refuses_too_far_and_backwards() {
        assert_eq!(movement(u32::MAX, 0, 1), Some(1));
        assert_eq!(movement(u32::MAX, 1, 1), None);
        assert_eq!(movement(5, 5, 0), Some(0));
        assert_eq!(movement(5, 4, 4096), None);
        assert_eq!(movement(0, u32::MAX, 4096), None);
    }

    #[test]
    fn phase_flips_each_lap_and_at_the_wrap() {
        for shift in 1..=12 {
            let entries = Entries::new(1 << shift).unwrap();
            let n = entries.get();
            assert_eq!(phase(entries, 0), 1);
            assert_eq!(phase(entries, n - 1), 1);
            assert_eq!(phase(entries, n), 0);
            assert_eq!(phase(entries, 2 * n), 1);
            assert_eq!(
                phase(entries, u32::MAX),
                0,
                "the lap before the wrap differs from the first after it"
            );
        }
        assert!(Entries::new(MIN_ENTRIES).is_some() && Entries::new(MAX_ENTRIES).is_some());
    }

    proptest! {
        #[test]
        fn advance_and_distance_are_inverse(from: u32, by: u32) {
            prop_assert_eq!(distance(from, advance(from, by)), by);
            prop_assert_eq!(movement(from, advance(from, by), u32::MAX), Some(by));
        }

        #[test]
        fn a_slot_comes_again_after_a_lap_with_the_other_phase(count: u32, shift in 1u32..=12) {
            let entries = Entries::new(1 << shift).unwrap();
            let later = advance(count, entries.get());
            prop_assert_eq!(entries.slot(count), entries.slot(later));
            prop_assert_ne!(phase(entries, count), phase(entries, later));
        }
    }
}
