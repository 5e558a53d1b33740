//! The database of a file system: tables in redb on the metadata file, and the one transaction that is open.
//!
//! All changes between two syncs go into one transaction. An operation looks at everything that could stand against it
//! before it changes anything, so that it never has to be undone; what fails after that is the disk or a bug, and then the
//! file system does nothing more until it is opened again, as of its last sync.

use redb::{Database, ReadableTable, TableDefinition, WriteTransaction};

use super::error::FileError;
use super::inode::Inode;
use crate::StoreError;
use crate::catalog::{caught_in_redb, open_database};
use crate::shadow::{Fault, SharedShadow};
use crate::space::Run;
use crate::superblock::{Layout, PAGE};

/// Inode number to record, see `inode`.
const INODES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("inodes");
/// Directory and name to inode.
const NAMES: TableDefinition<'_, (u64, &[u8]), u64> = TableDefinition::new("names");
/// Inode and where in the file, to the first unit and how many.
const EXTENTS: TableDefinition<'_, (u64, u64), (u64, u64)> = TableDefinition::new("extents");
/// Inodes that have no name any more and are still open.
const ORPHANS: TableDefinition<'_, u64, ()> = TableDefinition::new("orphans");
/// User to units and inodes that it has, and the most that it may have (0: no limit).
const USERS: TableDefinition<'_, u32, (u64, u64, u64, u64)> = TableDefinition::new("users");
/// What was granted by a name of the application's own: see `crate::ledger`. Its few rows do not count as weight.
const GRANTED: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("granted");
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");

/// Bytes of the longest row of what was granted.
const MOST_GRANTED: usize = 64;
/// Bytes that a row takes beside its key and value, roughly.
const ROW: u64 = 8;
/// Pages that a changed row touches beside those that the rows before it touched already: its leaf, half of another by
/// splitting, and its share of what is above.
const PAGES_A_ROW: u32 = 3;

/// A part of a file, in allocation units.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    /// Where in the file.
    pub(super) at: u64,
    /// Where on the disk.
    pub(super) run: Run,
}

/// What a user has and may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct User {
    pub(super) units: u64,
    pub(super) inodes: u64,
    /// 0: no limit.
    pub(super) unit_limit: u64,
    /// 0: no limit.
    pub(super) inode_limit: u64,
}

impl User {
    fn of((units, inodes, unit_limit, inode_limit): (u64, u64, u64, u64)) -> Self {
        Self { units, inodes, unit_limit, inode_limit }
    }
}

/// Numbers that belong to the whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Counters {
    /// The next inode's number.
    pub(super) next_inode: u64,
    /// Inodes that there are.
    pub(super) inodes: u64,
    /// The weight of all rows, see [`Metadata::has_room`].
    pub(super) weight: u64,
    /// How often it was lost while it was in use: the power went, or the program. Whoever wrote to a file then may have written
    /// behind its end and not lived to say how far, so what is there is zeroed before anybody writes to that file again.
    pub(super) lost: u64,
    /// Somebody has opened a file to write it, and the file system was not closed since.
    pub(super) in_use: bool,
}

/// The tables, opened for one step of an operation.
struct Tables<'a> {
    transaction: &'a WriteTransaction,
}

pub(super) struct Metadata {
    /// Dropped before the database.
    transaction: Option<WriteTransaction>,
    /// `None` once poisoned.
    database: Option<Database>,
    shadow: SharedShadow,
    layout: Layout,
    poison: Option<String>,
    /// Rows changed since the last sync.
    changes: u32,
    pub(super) counters: Counters,
    /// That it is in use would be found after a power cut.
    use_is_durable: bool,
}

impl Metadata {
    /// Opens the database in the metadata file, made if the file is empty, and checks all of it.
    pub(super) fn open(shadow: SharedShadow, layout: Layout, cache: usize) -> Result<Self, StoreError> {
        let database = open_database(&shadow, cache)?;
        shadow.lock().gather();
        let mut metadata = Self {
            transaction: None,
            database: Some(database),
            shadow,
            layout,
            poison: None,
            changes: 0,
            counters: Counters::default(),
            use_is_durable: false,
        };
        metadata.counters = metadata.load_counters()?;
        Ok(metadata)
    }

    fn load_counters(&mut self) -> Result<Counters, StoreError> {
        self.run(|tables| {
            let counters = tables.transaction.open_table(COUNTERS)?;
            let get = |name| Ok::<_, redb::Error>(counters.get(name)?.map_or(0, |value| value.value()));
            Ok(Counters {
                next_inode: get("next inode")?,
                inodes: get("inodes")?,
                weight: get("weight")?,
                lost: get("lost")?,
                in_use: get("in use")? != 0,
            })
        })
    }

    /// Fails if an earlier call did.
    pub(super) fn healthy(&self) -> Result<(), StoreError> {
        self.poison.as_ref().map_or(Ok(()), |why| Err(StoreError::Poisoned { why: why.clone() }))
    }

    /// Stops everything for good; the first reason stays.
    pub(super) fn poisoned(&mut self, why: String) -> StoreError {
        if self.poison.is_none() {
            // That the file was used after a failure is never the first reason.
            let fault = self.shadow.lock().fault().filter(|fault| **fault != Fault::Misuse).cloned();
            let why = fault.map_or(why, |fault| StoreError::from(fault).to_string());
            tracing::error!(why, "a file system failed; it takes no more requests");
            self.poison = Some(why);
            self.shadow.lock().stop();
            self.close();
        }
        StoreError::Poisoned { why: self.poison.clone().unwrap_or_default() }
    }

    fn run<T>(&mut self, work: impl FnOnce(Tables<'_>) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        self.healthy()?;
        let Self { transaction, database, .. } = self;
        let result = caught_in_redb(|| {
            if transaction.is_none()
                && let Some(database) = database
            {
                let mut begun = database.begin_write()?;
                // As in the catalogue: the database never takes the state before for the present.
                begun.set_two_phase_commit(true);
                *transaction = Some(begun);
            }
            let transaction = transaction.as_ref().expect("a healthy file system has a database");
            work(Tables { transaction })
        });
        result.map_err(|why| self.poisoned(why))
    }

    /// Whether so much changed that the next sync should not wait: what a transaction copies stays below an eighth of
    /// the metadata file.
    pub(super) fn is_due(&self) -> bool {
        self.changes.saturating_mul(PAGES_A_ROW) > self.layout.pages / 8
    }

    /// Whether rows of `more` bytes can be added. A quarter of the metadata file may be rows: pages are at least a third
    /// full, that makes three quarters, and what a transaction copies is an eighth. So a file can always be removed.
    pub(super) fn has_room(&self, more: u64) -> bool {
        self.counters.weight.saturating_add(more) <= self.most_weight()
    }

    pub(super) fn most_weight(&self) -> u64 {
        u64::from(self.layout.pages) * PAGE as u64 / 4
    }

    /// Makes all changes durable, at once.
    pub(super) fn sync(&mut self) -> Result<(), StoreError> {
        let counters = self.counters;
        self.run(|tables| {
            let mut table = tables.transaction.open_table(COUNTERS)?;
            table.insert("next inode", counters.next_inode)?;
            table.insert("inodes", counters.inodes)?;
            table.insert("weight", counters.weight)?;
            table.insert("lost", counters.lost)?;
            table.insert("in use", u64::from(counters.in_use))?;
            Ok(())
        })?;
        let transaction = self.transaction.take();
        let result = caught_in_redb(|| transaction.map_or(Ok(()), |open| Ok(open.commit()?)));
        let shadow = self.shadow.clone();
        let settled = result.and_then(|()| {
            let mut shadow = shadow.lock();
            let settled = shadow.settle().map_err(|fault| StoreError::from(fault).to_string());
            shadow.gather();
            settled
        });
        self.changes = 0;
        self.use_is_durable = counters.in_use;
        settled.map_err(|why| self.poisoned(why))
    }

    /// Notes that files are written from now on, or not any more.
    pub(super) fn set_in_use(&mut self, in_use: bool) {
        self.changes += u32::from(self.counters.in_use != in_use);
        self.counters.in_use = in_use;
    }

    /// Whether it would be known after a power cut that files were written.
    pub(super) fn use_is_durable(&self) -> bool {
        self.use_is_durable
    }

    /// Flushes the disk when there is nothing else to make durable.
    pub(super) fn is_clean(&self) -> bool {
        self.changes == 0
    }

    fn changed(&mut self, old: u64, new: u64) {
        self.changes += 1;
        self.counters.weight = self.counters.weight.saturating_add(new).saturating_sub(old);
    }

    /// The record of an inode; damage if it is not one.
    pub(super) fn inode(&mut self, number: u64) -> Result<Option<Inode>, FileError> {
        let record = self.run(|tables| {
            let table = tables.transaction.open_table(INODES)?;
            Ok(table.get(number)?.map(|record| record.value().to_vec()))
        })?;
        let Some(record) = record else { return Ok(None) };
        let decoded = Inode::decode(&record, &self.layout);
        Ok(Some(decoded.map_err(|what| StoreError::Damaged { what: format!("inode {number}: {what}") })?))
    }

    pub(super) fn put_inode(&mut self, number: u64, inode: &Inode) -> Result<(), StoreError> {
        self.put_record(number, &inode.encode())
    }

    pub(super) fn put_record(&mut self, number: u64, record: &[u8]) -> Result<(), StoreError> {
        let weight = |length: usize| length as u64 + 8 + ROW;
        let old = self.run(|tables| {
            let mut table = tables.transaction.open_table(INODES)?;
            let old = table.insert(number, record)?;
            Ok(old.map_or(0, |old| weight(old.value().len())))
        })?;
        self.counters.inodes += u64::from(old == 0);
        self.changed(old, weight(record.len()));
        Ok(())
    }

    pub(super) fn remove_inode(&mut self, number: u64) -> Result<(), StoreError> {
        let old = self.run(|tables| {
            let mut table = tables.transaction.open_table(INODES)?;
            let old = table.remove(number)?;
            Ok(old.map_or(0, |old| old.value().len() as u64 + 8 + ROW))
        })?;
        self.counters.inodes = self.counters.inodes.saturating_sub(u64::from(old > 0));
        self.changed(old, 0);
        Ok(())
    }

    pub(super) fn name(&mut self, directory: u64, name: &[u8]) -> Result<Option<u64>, StoreError> {
        self.run(|tables| {
            let table = tables.transaction.open_table(NAMES)?;
            Ok(table.get((directory, name))?.map(|inode| inode.value()))
        })
    }

    pub(super) fn put_name(&mut self, directory: u64, name: &[u8], inode: u64) -> Result<(), StoreError> {
        let weight = name_weight(name);
        let old = self.run(|tables| {
            let mut table = tables.transaction.open_table(NAMES)?;
            Ok(table.insert((directory, name), inode)?.map_or(0, |_| weight))
        })?;
        self.changed(old, weight);
        Ok(())
    }

    pub(super) fn remove_name(&mut self, directory: u64, name: &[u8]) -> Result<(), StoreError> {
        let weight = name_weight(name);
        let old = self.run(|tables| {
            let mut table = tables.transaction.open_table(NAMES)?;
            Ok(table.remove((directory, name))?.map_or(0, |_| weight))
        })?;
        self.changed(old, 0);
        Ok(())
    }

    /// At most `limit` names of a directory after `after`, in order, with their inodes.
    pub(super) fn names(
        &mut self,
        directory: u64,
        after: &[u8],
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, u64)>, StoreError> {
        self.run(|tables| {
            let table = tables.transaction.open_table(NAMES)?;
            let mut names = Vec::new();
            for row in table.range((directory, after)..)? {
                let (key, inode) = row?;
                let (parent, name) = key.value();
                if parent != directory || names.len() >= limit {
                    break;
                }
                if name != after {
                    names.push((name.to_vec(), inode.value()));
                }
            }
            Ok(names)
        })
    }

    /// At most `limit` pieces of a file that begin at `from` or later, in order.
    pub(super) fn pieces(&mut self, inode: u64, from: u64, limit: usize) -> Result<Vec<Piece>, StoreError> {
        self.run(|tables| {
            let table = tables.transaction.open_table(EXTENTS)?;
            let mut pieces = Vec::new();
            for row in table.range((inode, from)..=(inode, u64::MAX))?.take(limit) {
                let (key, value) = row?;
                let (first, count) = value.value();
                pieces.push(Piece { at: key.value().1, run: Run { first, count } });
            }
            Ok(pieces)
        })
    }

    /// The last piece of a file that begins before `end`.
    pub(super) fn last_piece(&mut self, inode: u64, end: u64) -> Result<Option<Piece>, StoreError> {
        self.run(|tables| {
            let table = tables.transaction.open_table(EXTENTS)?;
            let Some(row) = table.range((inode, 0)..(inode, end))?.next_back() else { return Ok(None) };
            let (key, value) = row?;
            let (first, count) = value.value();
            Ok(Some(Piece { at: key.value().1, run: Run { first, count } }))
        })
    }

    pub(super) fn put_piece(&mut self, inode: u64, piece: Piece) -> Result<(), StoreError> {
        let old = self.run(|tables| {
            let mut table = tables.transaction.open_table(EXTENTS)?;
            let old = table.insert((inode, piece.at), (piece.run.first, piece.run.count))?;
            Ok(old.map_or(0, |_| 32 + ROW))
        })?;
        self.changed(old, 32 + ROW);
        Ok(())
    }

    pub(super) fn remove_piece(&mut self, inode: u64, at: u64) -> Result<(), StoreError> {
        let old = self.run(|tables| {
            let mut table = tables.transaction.open_table(EXTENTS)?;
            Ok(table.remove((inode, at))?.map_or(0, |_| 32 + ROW))
        })?;
        self.changed(old, 0);
        Ok(())
    }

    pub(super) fn put_orphan(&mut self, inode: u64) -> Result<(), StoreError> {
        let old = self.run(|tables| {
            Ok(tables.transaction.open_table(ORPHANS)?.insert(inode, ())?.map_or(0, |_| 8 + ROW))
        })?;
        self.changed(old, 8 + ROW);
        Ok(())
    }

    pub(super) fn remove_orphan(&mut self, inode: u64) -> Result<(), StoreError> {
        let old = self.run(|tables| {
            Ok(tables.transaction.open_table(ORPHANS)?.remove(inode)?.map_or(0, |_| 8 + ROW))
        })?;
        self.changed(old, 0);
        Ok(())
    }

    pub(super) fn orphans(&mut self, limit: usize) -> Result<Vec<u64>, StoreError> {
        self.run(|tables| {
            let table = tables.transaction.open_table(ORPHANS)?;
            let rows = table.iter()?.take(limit);
            rows.map(|row| Ok(row?.0.value())).collect()
        })
    }

    pub(super) fn user(&mut self, uid: u32) -> Result<User, StoreError> {
        self.run(|tables| {
            let table = tables.transaction.open_table(USERS)?;
            Ok(table.get(uid)?.map_or_else(User::default, |user| User::of(user.value())))
        })
    }

    /// A user who has nothing and no limits takes no row.
    pub(super) fn put_user(&mut self, uid: u32, user: User) -> Result<(), StoreError> {
        let old = self.run(|tables| {
            let mut table = tables.transaction.open_table(USERS)?;
            let old = if user == User::default() {
                table.remove(uid)?
            } else {
                table.insert(uid, (user.units, user.inodes, user.unit_limit, user.inode_limit))?
            };
            Ok(old.map_or(0, |_| 36 + ROW))
        })?;
        self.changed(old, if user == User::default() { 0 } else { 36 + ROW });
        Ok(())
    }

    /// All users after `after`, in order.
    pub(super) fn users(&mut self, after: Option<u32>, limit: usize) -> Result<Vec<(u32, User)>, StoreError> {
        let Some(from) = after.map_or(Some(0), |after| after.checked_add(1)) else { return Ok(Vec::new()) };
        self.run(|tables| {
            let table = tables.transaction.open_table(USERS)?;
            let rows = table.range(from..)?.take(limit);
            rows.map(|row| row.map(|(uid, user)| (uid.value(), User::of(user.value()))).map_err(Into::into))
                .collect()
        })
    }

    /// The last `limit` things that were granted, the first of them first. What is too long to be one is left out.
    pub(super) fn granted(&mut self, limit: usize) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        self.run(|tables| {
            let table = tables.transaction.open_table(GRANTED)?;
            let mut rows = Vec::new();
            for row in table.iter()?.rev().take(limit) {
                let (number, bytes) = row?;
                if bytes.value().len() <= MOST_GRANTED {
                    rows.push((number.value(), bytes.value().to_vec()));
                }
            }
            rows.reverse();
            Ok(rows)
        })
    }

    /// Adds something that was granted, and forgets others.
    pub(super) fn put_granted(&mut self, number: u64, row: &[u8], gone: &[u64]) -> Result<(), StoreError> {
        self.run(|tables| {
            let mut table = tables.transaction.open_table(GRANTED)?;
            for number in gone {
                table.remove(number)?;
            }
            table.insert(number, row)?;
            Ok(())
        })?;
        self.changes = self.changes.saturating_add(1 + u32::try_from(gone.len()).unwrap_or(u32::MAX));
        Ok(())
    }

    /// Calls `visit` with every inode's number and record, in order, each followed by its pieces, in order. Pieces of an
    /// inode that does not exist come with no record.
    pub(super) fn each_file(
        &mut self,
        mut visit: impl FnMut(u64, Option<&[u8]>, &[Piece]),
    ) -> Result<(), StoreError> {
        self.run(|tables| {
            let extents = tables.transaction.open_table(EXTENTS)?;
            let inodes = tables.transaction.open_table(INODES)?;
            let mut inodes = inodes.iter()?.peekable();
            let mut pieces: Vec<Piece> = Vec::new();
            let mut rows = extents.iter()?.peekable();
            loop {
                let of_piece = rows.peek().and_then(|row| row.as_ref().ok()).map(|(key, _)| key.value().0);
                let of_inode = inodes.peek().and_then(|row| row.as_ref().ok()).map(|(key, _)| key.value());
                let Some(number) = of_piece.into_iter().chain(of_inode).min() else { break };
                pieces.clear();
                while let Some(row) =
                    rows.next_if(|row| row.as_ref().is_ok_and(|row| row.0.value().0 == number))
                {
                    let (key, value) = row?;
                    let (first, count) = value.value();
                    pieces.push(Piece { at: key.value().1, run: Run { first, count } });
                }
                match inodes.next_if(|row| row.as_ref().is_ok_and(|row| row.0.value() == number)) {
                    Some(row) => visit(number, Some(row?.1.value()), &pieces),
                    None => visit(number, None, &pieces),
                }
            }
            // What could not be read.
            rows.next().transpose()?;
            inodes.next().transpose()?;
            Ok(())
        })
    }

    /// Calls `visit` with every directory, name and inode, in order.
    pub(super) fn each_name(&mut self, mut visit: impl FnMut(u64, &[u8], u64)) -> Result<(), StoreError> {
        self.run(|tables| {
            for row in tables.transaction.open_table(NAMES)?.iter()? {
                let (key, inode) = row?;
                let (directory, name) = key.value();
                visit(directory, name, inode.value());
            }
            Ok(())
        })
    }

    /// The weight of all rows.
    pub(super) fn weigh(&mut self) -> Result<u64, StoreError> {
        let mut weight = 0;
        self.each_file(|_, record, pieces| {
            weight +=
                record.map_or(0, |record| record.len() as u64 + 8 + ROW) + pieces.len() as u64 * (32 + ROW);
        })?;
        self.each_name(|_, name, _| weight += name_weight(name))?;
        weight += self.orphans(usize::MAX)?.len() as u64 * (8 + ROW);
        weight += self.users(None, usize::MAX)?.len() as u64 * (36 + ROW);
        Ok(weight)
    }

    /// The greatest inode number in use.
    pub(super) fn last_inode(&mut self) -> Result<u64, StoreError> {
        self.run(|tables| {
            Ok(tables.transaction.open_table(INODES)?.last()?.map_or(0, |(number, _)| number.value()))
        })
    }

    /// What redb's own check finds; it repairs what it can. Nothing may be unsynced.
    pub(super) fn check_integrity(&mut self) -> Result<bool, StoreError> {
        self.healthy()?;
        assert!(self.is_clean(), "changes would be lost");
        let Self { transaction, database, .. } = self;
        let result = caught_in_redb(|| {
            if let Some(open) = transaction.take() {
                open.abort()?;
            }
            database.as_mut().map_or(Ok(false), |database| Ok(database.check_integrity()?))
        });
        result.map_err(|why| self.poisoned(why))
    }

    /// Lets go of the database, which may write a last time. What was not synced is lost.
    fn close(&mut self) {
        let (transaction, database) = (self.transaction.take(), self.database.take());
        // The database may leave its file tidy; nothing that an operation did since the last sync is in it.
        let closed = caught_in_redb(|| {
            drop(transaction);
            drop(database);
            Ok(())
        });
        if let Err(why) = closed {
            tracing::error!(why, "closing the metadata database of a file system");
        }
    }
}

impl Drop for Metadata {
    fn drop(&mut self) {
        self.close();
        self.shadow.lock().stop();
    }
}

fn name_weight(name: &[u8]) -> u64 {
    name.len() as u64 + 16 + ROW
}
