//! The control plane's side of the FEPT: which segments of it are free.
//!
//! A buddy system: segments are powers of two, aligned to their size, and the lowest one that fits is taken. When one is
//! given back it joins its free neighbour of the same size, and so on, so that what is free is always in the largest
//! pieces that there can be. A segment of `n` entries is refused only if every aligned run of `n` entries has something
//! in it; a run that is all free is found, however what is beside it is divided.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

/// The free segments by size. `free[k]` has the first entry of each free segment of 2^k entries whose neighbour is not
/// free as a whole.
#[derive(Debug)]
pub(crate) struct Segments {
    limit: u32,
    free: Vec<BTreeSet<u32>>,
    used: u32,
}

/// One file's part of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FileSegment {
    pub(crate) base: u32,
    /// How many entries, as a power of two.
    pub(crate) order: u8,
}

impl FileSegment {
    /// How many entries it has.
    pub(crate) const fn capacity(self) -> u32 {
        1 << self.order
    }
}

impl Segments {
    /// `limit` entries, cut into the largest aligned powers of two.
    pub(crate) fn new(limit: u32) -> Self {
        let mut free: Vec<BTreeSet<u32>> = (0..u32::BITS).map(|_| BTreeSet::new()).collect();
        let mut base = 0;
        for order in (0..u32::BITS).rev() {
            if limit & 1 << order != 0 {
                free[order as usize].insert(base);
                base += 1 << order;
            }
        }
        Self { limit, free, used: 0 }
    }

    /// Entries in segments that are taken.
    pub(crate) fn used(&self) -> u32 {
        self.used
    }

    /// The power of two of the least segment that has `entries`; `None` if no segment has.
    pub(crate) fn order_of(entries: usize) -> Option<u8> {
        let capacity = u32::try_from(entries).ok()?.checked_next_power_of_two()?;
        u8::try_from(capacity.trailing_zeros()).ok()
    }

    /// The lowest free segment of 2^order entries.
    pub(crate) fn take(&mut self, order: u8) -> Option<FileSegment> {
        let larger = self.free.iter().enumerate().skip(usize::from(order));
        let (base, mut from) = larger.filter_map(|(its, bases)| Some((*bases.first()?, its))).min()?;
        self.free[from].remove(&base);
        while from > usize::from(order) {
            from -= 1;
            self.free[from].insert(base + (1 << from));
        }
        self.used += 1 << order;
        Some(FileSegment { base, order })
    }

    /// Makes a segment as large as 2^order where it is, if what is behind it is free and the larger one is aligned.
    /// `false`: nothing has changed.
    pub(crate) fn grow(&mut self, segment: &mut FileSegment, order: u8) -> bool {
        let FileSegment { base, order: had } = *segment;
        let halves = had..order;
        if base & ((1 << order) - 1) != 0
            || !halves.clone().all(|its| self.free[usize::from(its)].contains(&(base + (1 << its))))
        {
            return false;
        }
        for its in halves {
            self.free[usize::from(its)].remove(&(base + (1 << its)));
        }
        self.used += (1 << order) - (1 << had);
        segment.order = order;
        true
    }

    /// Gives a segment back.
    pub(crate) fn give_back(&mut self, segment: FileSegment) {
        let FileSegment { mut base, order } = segment;
        self.used -= 1 << order;
        let mut order = usize::from(order);
        // The neighbour of a power of two that the limit cut off is never in the list.
        while self.free[order].remove(&(base ^ 1 << order)) {
            base &= !(1 << order);
            order += 1;
        }
        self.free[order].insert(base);
    }

    /// What must hold, given the segments that are taken.
    pub(crate) fn self_check(&self, taken: impl Iterator<Item = FileSegment>) -> Result<(), &'static str> {
        let free = self
            .free
            .iter()
            .zip(0..)
            .flat_map(|(bases, order)| bases.iter().map(move |&base| FileSegment { base, order }));
        if free.clone().any(|its| self.free[usize::from(its.order)].contains(&(its.base ^ its.capacity()))) {
            return Err("two free segments of the FEPT that belong together are apart");
        }
        let taken: Vec<_> = taken.collect();
        if taken.iter().map(|its| its.capacity()).sum::<u32>() != self.used {
            return Err("FEPT entries in use are miscounted");
        }
        let mut all: Vec<_> = taken.into_iter().chain(free).collect();
        all.sort_unstable_by_key(|its| its.base);
        let mut next = 0;
        for its in all {
            if its.base != next || its.base & (its.capacity() - 1) != 0 {
                return Err("FEPT entries are lost, or taken twice");
            }
            next += its.capacity();
        }
        if next == self.limit { Ok(()) } else { Err("FEPT entries are lost at the end") }
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)]
mod tests {
    use super::*;

    /// Against a plain array of who has which entry: the lowest aligned run that is free is taken, and none is refused
    /// that there is.
    #[test]
    fn segments_are_found_as_in_a_plain_array() {
        for limit in [0, 1, 13, 64, 77] {
            let mut segments = Segments::new(limit);
            let mut plain = alloc::vec![false; limit as usize];
            let mut held: Vec<FileSegment> = Vec::new();
            let mut seed = u64::from(limit) + 1;
            for _ in 0..5_000 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let draw = (seed >> 33) as usize;
                let order = (draw / 8 % 5) as u8;
                let fill = |plain: &mut [bool], its: FileSegment, with: bool| {
                    for place in &mut plain[its.base as usize..(its.base + its.capacity()) as usize] {
                        assert_ne!(*place, with);
                        *place = with;
                    }
                };
                match draw % 3 {
                    0 if !held.is_empty() => {
                        let its = held.swap_remove(draw / 64 % held.len());
                        segments.give_back(its);
                        fill(&mut plain, its, false);
                    }
                    1 if !held.is_empty() => {
                        let which = draw / 64 % held.len();
                        let mut its = held[which];
                        let to = its.order + 1 + order % 2;
                        let (base, size) = (its.base as usize, 1usize << to);
                        let rest = plain.get(base + its.capacity() as usize..base + size);
                        let can = base % size == 0 && rest.is_some_and(|rest| rest.iter().all(|used| !used));
                        assert_eq!(segments.grow(&mut its, to), can);
                        if can {
                            fill(&mut plain, held[which], false);
                            fill(&mut plain, its, true);
                            held[which] = its;
                        }
                    }
                    _ => {
                        let runs = plain.chunks_exact(1 << order);
                        let lowest = runs.map(|run| run.iter().all(|used| !used)).position(|free| free);
                        let taken = segments.take(order);
                        let expected = lowest.map(|run| FileSegment { base: (run << order) as u32, order });
                        assert_eq!(taken, expected);
                        if let Some(its) = taken {
                            fill(&mut plain, its, true);
                            held.push(its);
                        }
                    }
                }
                assert_eq!(segments.used() as usize, plain.iter().filter(|used| **used).count());
                assert_eq!(segments.self_check(held.iter().copied()), Ok(()));
            }
            held.drain(..).for_each(|its| segments.give_back(its));
            assert_eq!(segments.used(), 0);
        }
    }

    #[test]
    fn the_least_power_of_two_is_taken() {
        let orders = [0, 1, 2, 3, 4, 5, 1000].map(|entries| Segments::order_of(entries).unwrap());
        assert_eq!(orders, [0, 0, 1, 2, 2, 3, 10]);
        assert_eq!(Segments::order_of(1 << 31), Some(31));
        assert_eq!(Segments::order_of((1 << 31) + 1), None);
    }
}
