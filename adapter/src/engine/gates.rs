//! Gates: blocks that one request at a time may write, agreed between all engines of a device.
//!
//! A request that reads blocks, changes a part of them and writes them back must not lose what somebody else writes in
//! between, also on another engine. So it first claims a gate: a row in the one table that the engines of a device share.
//! Each engine keeps a copy of the table, renewed when the epoch word has changed, which is all that it looks at in a
//! turn. It admits no write to blocks behind a gate in its copy, and acknowledges the gate once none of its own writes
//! that were admitted before touches those blocks. A claim is had when all engines have acknowledged it and no earlier
//! one for the same blocks is in the table; so claims are served in the order in which they were made, and wait for
//! nothing but claims before them and for the device. A plain write that meets a gate claims one too, and has its turn.
//!
//! An engine that sleeps has nothing at the device and is not waited for. It renews its copy when it wakes, before it
//! admits anything.
//!
//! The table is behind a lock that is only ever tried: what finds it taken is done in a later turn.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use crossbeam::utils::CachePadded;
use tpt::Piece;

/// Gates of all engines together.
const ROWS: usize = 64;
/// Engines that can share a table.
const ENGINES: usize = 64;
/// Ranges of one gate.
const RANGES: usize = 4;

/// Names a gate; never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Claim(NonZeroU64);

/// Blocks of the device: few ranges, and where there were more the last covers all the rest and what is between.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Blocks {
    ranges: [(u64, u64); RANGES],
    count: usize,
}

impl Blocks {
    /// Those of a grant's pieces.
    pub(super) fn of(pieces: impl Iterator<Item = Piece>) -> Self {
        let mut blocks = Self::default();
        for piece in pieces {
            let (first, end) = (piece.lba.0, piece.lba.0.saturating_add(piece.blocks));
            match blocks.ranges[..blocks.count].last_mut() {
                Some(last) if last.1 == first => last.1 = end,
                Some(last) if blocks.count == RANGES => *last = (last.0.min(first), last.1.max(end)),
                _ => {
                    blocks.ranges[blocks.count] = (first, end);
                    blocks.count += 1;
                }
            }
        }
        blocks
    }

    fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges[..self.count]
    }

    /// Whether it has one of the blocks of a piece.
    pub(super) fn touches(&self, piece: &Piece) -> bool {
        let (first, end) = (piece.lba.0, piece.lba.0.saturating_add(piece.blocks));
        self.ranges().iter().any(|range| range.0 < end && first < range.1)
    }

    /// Whether both have a block.
    fn meets(&self, other: &Self) -> bool {
        self.ranges().iter().any(|a| other.ranges().iter().any(|b| a.0 < b.1 && b.0 < a.1))
    }
}

#[derive(Clone, Copy, Debug)]
struct Row {
    claim: Claim,
    owner: u8,
    blocks: Blocks,
    /// Engines that have not acknowledged it.
    missing: u64,
}

#[derive(Debug)]
struct Table {
    /// In the order in which they were claimed.
    rows: Vec<Row>,
    next: NonZeroU64,
    joined: usize,
    asleep: u64,
}

/// The table that all engines of a device share. See the module.
#[derive(Debug)]
pub struct Gates {
    /// Counts changes of the table that engines must learn of.
    epoch: CachePadded<AtomicU64>,
    engines: usize,
    table: Mutex<Table>,
}

impl Gates {
    /// For `engines` engines; `None` if they are too many.
    pub fn new(engines: usize) -> Option<Arc<Self>> {
        let table = Table { rows: super::touched(ROWS), next: NonZeroU64::MIN, joined: 0, asleep: 0 };
        let gates = Self { epoch: CachePadded::default(), engines: engines.max(1), table: Mutex::new(table) };
        (engines <= ENGINES).then(|| Arc::new(gates))
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, Table>> {
        match self.table.try_lock() {
            Ok(table) => Some(table),
            // Nothing that is done under it panics half way.
            Err(TryLockError::Poisoned(table)) => Some(table.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Release: whoever sees the new count finds the change in the table. Called with the lock held.
    fn changed(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
    }
}

/// What an engine has to say to a gate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    /// It was not looked at yet.
    Unknown,
    /// A write of its own touches the blocks.
    NotYet,
    /// None does.
    Acknowledge,
    /// The table knows.
    Given,
}

/// One engine's side of the gates.
#[derive(Debug, Default)]
pub(super) struct Own {
    shared: Option<Arc<Gates>>,
    bit: u64,
    number: u8,
    seen: u64,
    asleep: bool,
    /// There is something to tell or to look at, whatever the epoch says.
    due: bool,
    rows: Vec<(Row, Answer)>,
    /// The copy before, for its room.
    former: Vec<(Row, Answer)>,
    /// Gates of its own that are over.
    over: Vec<Claim>,
}

impl Own {
    /// Joins the engines that share `gates`, asleep at first.
    ///
    /// # Panics
    /// If more join than it was made for.
    pub(super) fn join(gates: Arc<Gates>) -> Self {
        let mut table = gates.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        assert!(table.joined < gates.engines, "the gates were made for {} engines", gates.engines);
        let number = table.joined;
        table.joined += 1;
        table.asleep |= 1 << number;
        drop(table);
        Self {
            bit: 1 << number,
            number: u8::try_from(number).expect("at most 64 engines"),
            seen: 0,
            asleep: true,
            due: true,
            rows: super::touched(ROWS),
            former: super::touched(ROWS),
            over: super::touched(ROWS),
            shared: Some(gates),
        }
    }

    /// Whether there are gates to be had.
    pub(super) fn exist(&self) -> bool {
        self.shared.is_some()
    }

    /// Whether [`Own::tend`] has something to do: one load of a word that is rarely written.
    #[inline]
    pub(super) fn need_tending(&self) -> bool {
        self.due || self.shared.as_ref().is_some_and(|g| g.epoch.load(Ordering::Acquire) != self.seen)
    }

    /// Whether any gate is closed, as far as this engine knows.
    #[inline]
    pub(super) fn any(&self) -> bool {
        !self.rows.is_empty()
    }

    /// Whether writes may be admitted: not before the copy was renewed after a sleep.
    pub(super) fn is_awake(&self) -> bool {
        !self.asleep
    }

    /// Tells the table what is due and renews the copy. False if the table was in use: the next turn tries again.
    pub(super) fn tend(&mut self) -> bool {
        let Some(shared) = self.shared.clone() else { return true };
        let Some(mut table) = shared.try_lock() else {
            self.due = true;
            return false;
        };
        if std::mem::take(&mut self.asleep) {
            table.asleep &= !self.bit;
        }
        let mut tell = self.take_out(&mut table);
        for (known, _) in self.rows.iter().filter(|(_, answer)| *answer == Answer::Acknowledge) {
            if let Some(row) = table.rows.iter_mut().find(|row| row.claim == known.claim) {
                row.missing &= !self.bit;
                tell |= row.missing == 0;
            }
        }
        if tell {
            shared.changed();
        }
        self.seen = shared.epoch.load(Ordering::Relaxed); // Changed under the lock only.
        self.copy(&table);
        self.due = false;
        true
    }

    /// Takes this engine's gates that are over out of the table. True if there were any.
    fn take_out(&mut self, table: &mut Table) -> bool {
        let before = table.rows.len();
        table.rows.retain(|row| !self.over.contains(&row.claim));
        self.over.clear();
        table.rows.len() != before
    }

    /// Renews the copy. What was found out about a gate stays.
    fn copy(&mut self, table: &Table) {
        std::mem::swap(&mut self.rows, &mut self.former);
        self.rows.clear();
        for row in &table.rows {
            let known = self.former.iter().find(|(known, _)| known.claim == row.claim);
            let answer = match known {
                _ if row.missing & self.bit == 0 => Answer::Given,
                Some((_, answer)) => *answer,
                None => Answer::Unknown,
            };
            self.rows.push((*row, answer));
        }
    }

    /// Finds out which gates can be acknowledged. `busy` says whether a write of this engine touches the blocks. True if
    /// there are some, which [`Own::tend`] tells the table.
    pub(super) fn answer(&mut self, mut busy: impl FnMut(&Blocks) -> bool) -> bool {
        let mut some = false;
        for (row, answer) in self.rows.iter_mut().filter(|(_, answer)| *answer == Answer::Unknown) {
            *answer = if busy(&row.blocks) { Answer::NotYet } else { Answer::Acknowledge };
            some |= *answer == Answer::Acknowledge;
        }
        self.due |= some;
        some
    }

    /// A write that gates wait for has ended.
    #[cold]
    pub(super) fn look_again(&mut self) {
        for (_, answer) in self.rows.iter_mut().filter(|(_, answer)| *answer == Answer::NotYet) {
            *answer = Answer::Unknown;
        }
        self.due = true;
    }

    /// Whether a piece of a write is behind a gate of somebody.
    pub(super) fn close(&self, piece: &Piece) -> bool {
        self.rows.iter().any(|(row, _)| row.blocks.touches(piece))
    }

    /// Claims a gate. `None` if the table is full or in use, or this engine has its share of it.
    pub(super) fn claim(&mut self, blocks: Blocks) -> Option<Claim> {
        let shared = self.shared.as_ref()?;
        let mut table = shared.try_lock()?;
        let own = table.rows.iter().filter(|row| row.owner == self.number).count();
        if table.rows.len() == ROWS || own >= (ROWS / shared.engines).max(1) {
            return None;
        }
        let claim = Claim(table.next);
        table.next = table.next.checked_add(1).expect("2^64 claims take longer than the machine lives");
        let everybody = u64::MAX >> (ENGINES - table.joined);
        let missing = everybody & !table.asleep;
        table.rows.push(Row { claim, owner: self.number, blocks, missing });
        shared.changed();
        Some(claim)
    }

    /// Whether a claim is had: all have acknowledged it, and no earlier one is in the way. Once had it stays so.
    pub(super) fn has(&self, claim: Claim) -> bool {
        let Some(at) = self.rows.iter().position(|(row, _)| row.claim == claim) else { return false };
        let own = &self.rows[at].0;
        own.missing == 0 && !self.rows[..at].iter().any(|(row, _)| row.blocks.meets(&own.blocks))
    }

    /// The request that claimed it has ended.
    #[cold]
    pub(super) fn give_up(&mut self, claim: Claim) {
        self.over.push(claim);
        self.due = true;
    }

    /// Goes to sleep, if the table can be told. Only with nothing at the device.
    pub(super) fn fall_asleep(&mut self) -> bool {
        let Some(shared) = self.shared.clone() else { return true };
        let Some(mut table) = shared.try_lock() else { return false };
        let mut tell = self.take_out(&mut table);
        for row in &mut table.rows {
            tell |= row.missing == self.bit;
            row.missing &= !self.bit;
        }
        table.asleep |= self.bit;
        if tell {
            shared.changed();
        }
        (self.asleep, self.due) = (true, true);
        true
    }
}
