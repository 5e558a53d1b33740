//! Which allocation units are free. Kept in memory only: the extents of what is there are the truth. A run costs less
//! here than an extent does on the disk, and there is at most one more of them.

use std::collections::{BTreeMap, BTreeSet};

/// Free runs of units, by first unit; never empty, never adjacent.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Space {
    runs: BTreeMap<u64, u64>,
    /// The same by size: count and first unit.
    sizes: BTreeSet<(u64, u64)>,
    /// The sum.
    free: u64,
}

/// A run of units.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    pub(crate) first: u64,
    pub(crate) count: u64,
}

impl Space {
    /// `units` units, all free.
    pub(crate) fn new(units: u64) -> Self {
        let mut space = Self::default();
        space.give(Run { first: 0, count: units });
        space
    }

    /// Free units.
    pub(crate) fn free(&self) -> u64 {
        self.free
    }

    /// The runs, by first unit.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        self.runs.iter().map(|(&first, &count)| Run { first, count })
    }

    /// The run that begins at `first`.
    pub(crate) fn run_at(&self, first: u64) -> Option<Run> {
        self.runs.get(&first).map(|&count| Run { first, count })
    }

    /// The first part of `run` that is free.
    pub(crate) fn part_of(&self, run: Run) -> Option<Run> {
        let end = run.first.saturating_add(run.count);
        let before = self.runs.range(..=run.first).next_back();
        let behind = self.runs.range(run.first..end).find(|(first, _)| **first > run.first);
        let part = |(&first, &count): (&u64, &u64)| {
            let from = first.max(run.first);
            let count = (first + count).min(end).checked_sub(from).filter(|count| *count > 0);
            count.map(|count| Run { first: from, count })
        };
        before.and_then(part).or_else(|| behind.and_then(part))
    }

    /// The smallest run of at least `count` units, the first of those.
    pub(crate) fn fitting(&self, count: u64) -> Option<Run> {
        self.sizes.range((count, 0)..).next().map(|&(count, first)| Run { first, count })
    }

    /// The largest run.
    pub(crate) fn largest(&self) -> Option<Run> {
        self.sizes.last().map(|&(count, first)| Run { first, count })
    }

    fn insert(&mut self, first: u64, count: u64) {
        self.runs.insert(first, count);
        self.sizes.insert((count, first));
        self.free += count;
    }

    fn remove(&mut self, first: u64) {
        if let Some(count) = self.runs.remove(&first) {
            self.sizes.remove(&(count, first));
            self.free -= count;
        }
    }

    /// Takes exactly `run`; false, and nothing is taken, if a part of it is not free.
    pub(crate) fn take(&mut self, run: Run) -> bool {
        let Some((&first, &count)) = self.runs.range(..=run.first).next_back() else {
            return false;
        };
        let (Some(end), Some(run_end)) = (first.checked_add(count), run.first.checked_add(run.count)) else {
            return false;
        };
        if run.count == 0 || run_end > end {
            return false;
        }
        self.remove(first);
        self.give(Run { first, count: run.first - first });
        self.give(Run { first: run_end, count: end - run_end });
        true
    }

    /// Gives back a run that is not free.
    pub(crate) fn give(&mut self, run: Run) {
        let Run { mut first, mut count } = run;
        if count == 0 {
            return;
        }
        if let Some((&before, &length)) = self.runs.range(..first).next_back() {
            assert!(before + length <= first, "units given back twice");
            if before + length == first {
                self.remove(before);
                (first, count) = (before, length + count);
            }
        }
        if let Some((&after, &length)) = self.runs.range(first..).next() {
            assert!(first + count <= after, "units given back twice");
            if first + count == after {
                self.remove(after);
                count += length;
            }
        }
        self.insert(first, count);
    }

    /// Takes `units` units: first those that follow `after`, then the smallest run that holds the rest, or, where there
    /// is none, as few runs as possible. `None`, and nothing is taken, if there are not so many.
    pub(crate) fn allocate(&mut self, units: u64, after: Option<u64>) -> Option<Vec<Run>> {
        if units > self.free {
            return None;
        }
        let mut taken = Vec::new();
        let mut left = units;
        let mut next = after.and_then(|after| self.run_at(after));
        while left > 0 {
            let Some(run) = next.take().or_else(|| self.fitting(left)).or_else(|| self.largest()) else {
                unreachable!("the sum says that there are {left} more");
            };
            let run = Run { count: run.count.min(left), ..run };
            assert!(self.take(run), "the run was seen to be free");
            left -= run.count;
            taken.push(run);
        }
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn run(first: u64, count: u64) -> Run {
        Run { first, count }
    }

    #[test]
    fn first_fit_then_fewest_pieces() {
        let mut space = Space::new(100);
        assert!(space.take(run(10, 10)));
        assert!(space.take(run(50, 10)));
        // Free: 0+10, 20+30, 60+40.
        assert_eq!(space.clone().allocate(5, None), Some(vec![run(0, 5)]));
        assert_eq!(space.clone().allocate(30, None), Some(vec![run(20, 30)]));
        assert_eq!(space.clone().allocate(60, None), Some(vec![run(60, 40), run(20, 20)]));
        assert_eq!(space.clone().allocate(80, None).map(|runs| runs.len()), Some(3));
        assert_eq!(space.clone().allocate(81, None), None);
        assert_eq!(space.clone().allocate(5, Some(20)), Some(vec![run(20, 5)]), "in place");
        assert_eq!(space.clone().allocate(35, Some(20)), Some(vec![run(20, 30), run(0, 5)]));
        assert_eq!(space.clone().allocate(5, Some(10)), Some(vec![run(0, 5)]), "what follows is not free");
    }

    #[test]
    fn only_what_is_free_can_be_taken() {
        let mut space = Space::new(10);
        for bad in [run(0, 11), run(10, 1), run(5, u64::MAX), run(u64::MAX, 1), run(3, 0)] {
            assert!(!space.take(bad), "{bad:?}");
        }
        assert!(space.take(run(3, 2)));
        assert!(!space.take(run(2, 2)));
        assert_eq!(space.free(), 8);
    }

    proptest! {
        /// S8-R10: what is freed is used again; the runs always equal a plain bitmap.
        #[test]
        fn agrees_with_a_bitmap(steps in proptest::collection::vec((any::<bool>(), 0u64..80, proptest::option::of(0u64..64)), 1..60)) {
            let mut space = Space::new(64);
            let mut free = [true; 64];
            let mut held: Vec<Run> = Vec::new();
            for (take, amount, after) in steps {
                if take {
                    let count = free.iter().filter(|f| **f).count() as u64;
                    match space.allocate(amount, after) {
                        None => prop_assert!(amount > count),
                        Some(runs) => {
                            prop_assert_eq!(runs.iter().map(|run| run.count).sum::<u64>(), amount);
                            for run in runs {
                                for unit in run.first..run.first + run.count {
                                    let unit = usize::try_from(unit).unwrap();
                                    prop_assert!(std::mem::replace(&mut free[unit], false));
                                }
                                held.push(run);
                            }
                        }
                    }
                } else if !held.is_empty() {
                    let run = held.swap_remove(usize::try_from(amount).unwrap() % held.len());
                    space.give(run);
                    for unit in run.first..run.first + run.count {
                        free[usize::try_from(unit).unwrap()] = true;
                    }
                }
                prop_assert_eq!(space.free(), free.iter().filter(|f| **f).count() as u64);
            }
            for run in held {
                space.give(run);
            }
            prop_assert_eq!(space, Space::new(64));
        }
    }
}
