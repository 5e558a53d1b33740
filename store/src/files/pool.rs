//! Where new blocks come from, and where given-up ones go.

use crate::space::{Run, Space};

/// Every unit is in a file, or in one of these.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Pool {
    /// Free and zero.
    clean: Space,
    /// Free, with what somebody left in it.
    dirty: Space,
    /// In files, and not durably so: allocated since the last sync. After a power cut they are nobody's.
    fresh: Space,
    /// Given up by a change that is not durable yet: after a power cut they are where they were.
    freed: Vec<Run>,
    /// The sum of `freed`.
    waiting: u64,
}

/// A part of an allocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub(super) run: Run,
    /// Whether it is to be zeroed before it is used.
    pub(super) dirty: bool,
}

impl Pool {
    /// All that no file has is dirty: who knows what was written before the power went.
    pub(super) fn new(dirty: Space) -> Self {
        Self { dirty, ..Self::default() }
    }

    /// Units that can be allocated now.
    pub(super) fn free(&self) -> u64 {
        self.clean.free() + self.dirty.free()
    }

    /// Units that are free after the next sync.
    pub(super) fn waiting(&self) -> u64 {
        self.waiting
    }

    /// Zeroed units.
    pub(super) fn clean(&self) -> u64 {
        self.clean.free()
    }

    /// All free units, as one map.
    pub(super) fn all(&self) -> Space {
        let mut all = self.dirty.clone();
        self.clean.runs().chain(self.freed.iter().copied()).for_each(|run| all.give(run));
        all
    }

    /// Takes `units` units: those that follow `after`, then one run that is zero already, one that is not, or else as
    /// few as possible. `None`, and nothing is taken, if there are not so many.
    pub(super) fn allocate(&mut self, units: u64, after: Option<u64>) -> Option<Vec<Piece>> {
        if units > self.free() {
            return None;
        }
        let mut pieces: Vec<Piece> = Vec::new();
        let (mut left, mut next) = (units, after);
        while left > 0 {
            let Piece { run, dirty } = self.candidate(left, next)?;
            let run = Run { count: run.count.min(left), ..run };
            let space = if dirty { &mut self.dirty } else { &mut self.clean };
            assert!(space.take(run), "the run was seen to be free");
            self.fresh.give(run);
            left -= run.count;
            next = Some(run.first + run.count);
            pieces.push(Piece { run, dirty });
        }
        Some(pieces)
    }

    fn candidate(&self, left: u64, next: Option<u64>) -> Option<Piece> {
        let clean = |run| Piece { run, dirty: false };
        let dirty = |run| Piece { run, dirty: true };
        let in_place = next.and_then(|next| {
            self.clean.run_at(next).map(clean).or_else(|| self.dirty.run_at(next).map(dirty))
        });
        let largest = || {
            let both = [self.clean.largest().map(clean), self.dirty.largest().map(dirty)];
            both.into_iter().flatten().max_by_key(|piece| piece.run.count)
        };
        in_place
            .or_else(|| self.clean.fitting(left).map(clean))
            .or_else(|| self.dirty.fitting(left).map(dirty))
            .or_else(largest)
    }

    /// Takes back what was allocated and never used.
    pub(super) fn undo(&mut self, pieces: &[Piece]) {
        pieces.iter().for_each(|piece| self.give_up(piece.run));
    }

    /// Takes what a file gave up. What it had since before the last sync can be used again after the next one.
    pub(super) fn give_up(&mut self, run: Run) {
        let mut rest = run;
        while let Some(part) = self.fresh.part_of(rest) {
            self.free_later(Run { first: rest.first, count: part.first - rest.first });
            assert!(self.fresh.take(part), "the part was seen to be there");
            // It may have been written since.
            self.dirty.give(part);
            let end = part.first + part.count;
            rest = Run { first: end, count: rest.first + rest.count - end };
        }
        self.free_later(rest);
    }

    fn free_later(&mut self, run: Run) {
        if run.count > 0 {
            self.waiting += run.count;
            self.freed.push(run);
        }
    }

    /// What was given up is given up for good, and what was allocated too.
    pub(super) fn synced(&mut self) {
        self.fresh = Space::default();
        self.waiting = 0;
        for run in std::mem::take(&mut self.freed) {
            self.dirty.give(run);
        }
    }

    /// A run of at most `most` units to be zeroed; [`Pool::zeroed`] or [`Pool::not_zeroed`] takes it back.
    pub(super) fn take_dirty(&mut self, most: u64) -> Option<Run> {
        let largest = self.dirty.largest().filter(|_| most > 0)?;
        let run = Run { count: largest.count.min(most), ..largest };
        assert!(self.dirty.take(run), "the run was seen to be free");
        Some(run)
    }

    /// `run` is zero now.
    pub(super) fn zeroed(&mut self, run: Run) {
        self.clean.give(run);
    }

    /// `run` could not be zeroed.
    pub(super) fn not_zeroed(&mut self, run: Run) {
        self.dirty.give(run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn run(first: u64, count: u64) -> Run {
        Run { first, count }
    }

    fn pool() -> Pool {
        // Clean: 0+10, 40+10. Dirty: 10+20, 60+40. In files: 30+10, 50+10.
        let mut space = Space::default();
        [run(10, 20), run(60, 40)].into_iter().for_each(|run| space.give(run));
        let mut pool = Pool::new(space);
        [run(0, 10), run(40, 10)].into_iter().for_each(|run| pool.zeroed(run));
        pool
    }

    fn taken(units: u64, after: Option<u64>) -> Vec<(u64, u64, bool)> {
        let pieces = pool().allocate(units, after).unwrap();
        pieces.iter().map(|piece| (piece.run.first, piece.run.count, piece.dirty)).collect()
    }

    #[test]
    fn blocks_come_in_place_then_clean_then_in_few_pieces() {
        assert_eq!(taken(5, None), [(0, 5, false)]);
        assert_eq!(taken(5, Some(10)), [(10, 5, true)], "in place, though not clean");
        assert_eq!(taken(5, Some(40)), [(40, 5, false)]);
        assert_eq!(taken(15, Some(0)), [(0, 10, false), (10, 5, true)], "on over the border");
        assert_eq!(taken(20, None), [(10, 20, true)], "one piece rather than clean ones");
        assert_eq!(taken(60, None), [(60, 40, true), (10, 20, true)]);
        assert_eq!(taken(80, None).iter().map(|piece| piece.1).sum::<u64>(), 80);
        assert_eq!(pool().allocate(81, None), None);
        assert_eq!(pool().allocate(0, None), Some(Vec::new()));
    }

    #[test]
    fn what_is_given_up_waits_for_a_sync() {
        let mut pool = pool();
        pool.give_up(run(30, 10));
        assert_eq!((pool.free(), pool.waiting()), (80, 10));
        assert_eq!(pool.allocate(81, None), None);
        assert_eq!(pool.all().free(), 90);
        pool.synced();
        assert_eq!((pool.free(), pool.waiting(), pool.clean()), (90, 0, 20));
        assert_eq!(pool.take_dirty(100), Some(run(60, 40)));
        pool.zeroed(run(60, 40));
        assert_eq!(pool.clean(), 60);
    }

    #[test]
    fn what_no_sync_has_seen_waits_for_none() {
        let mut pool = pool();
        assert_eq!(pool.allocate(5, Some(40)).unwrap().len(), 1);
        assert_eq!(pool.allocate(5, Some(10)).unwrap().len(), 1);
        // The file at 30 has had its first blocks for long; those at 10 and 40 are new.
        pool.give_up(run(30, 13));
        assert_eq!((pool.free(), pool.waiting()), (80 - 10 + 3, 10));
        pool.give_up(run(10, 5));
        assert_eq!((pool.free(), pool.waiting()), (78, 10));
        assert_eq!(pool.clean(), 15, "whoever had them may have written there");
        pool.synced();
        pool.give_up(run(43, 2));
        assert_eq!((pool.free(), pool.waiting()), (88, 2), "a sync has made them the file's");
    }
}
