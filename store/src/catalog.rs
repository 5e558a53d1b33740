//! The database: what the store knows, in redb on the metadata file.
//!
//! All of redb runs behind `catch_unwind`. A panic or an error in it leaves the catalogue poisoned: it does nothing
//! more, and nothing more reaches the device, until the store is opened again. The one error that it recovers from is
//! a full metadata file.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::StoreError;
use crate::shadow::{Fault, SharedShadow};

/// Volume number to record, see `record`.
const VOLUMES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("volumes");
/// Number to what was granted, see `ledger`.
const GRANTED: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("granted");
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");

/// Bytes of redb's own cache: the store keeps the volumes in memory anyway.
const CACHE: usize = 4 << 20;

/// A number that only grows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Counter {
    /// The number of the next volume.
    Volume,
    /// The next key instance that was never reserved.
    Instance,
    /// How often somebody began to serve it.
    Life,
    /// The last of these times that ended in order.
    Settled,
}

impl Counter {
    const fn name(self) -> &'static str {
        match self {
            Self::Volume => "next volume",
            Self::Instance => "next key instance",
            Self::Life => "lives",
            Self::Settled => "settled",
        }
    }
}

/// One change; a commit makes several at once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    Put(u64, Vec<u8>),
    Remove(u64),
    Set(Counter, u64),
    Grant(u64, Vec<u8>),
    Forget(u64),
}

/// All that the database holds. Nothing in it was checked.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Contents {
    pub(crate) volumes: Vec<(u64, Vec<u8>)>,
    pub(crate) next_volume: u64,
    pub(crate) next_instance: u64,
    pub(crate) lives: u64,
    pub(crate) settled: u64,
    pub(crate) granted: Vec<(u64, Vec<u8>)>,
}

pub(crate) struct Catalog {
    /// `None` once poisoned.
    database: Option<Database>,
    shadow: SharedShadow,
    poison: Option<String>,
}

impl Catalog {
    /// Opens the database in the metadata file, made if the file is empty, and checks all of it.
    pub(crate) fn open(shadow: SharedShadow) -> Result<Self, StoreError> {
        let database = open_database(&shadow, CACHE)?;
        Ok(Self { database: Some(database), shadow, poison: None })
    }

    /// Reads everything.
    pub(crate) fn load(&mut self) -> Result<Contents, StoreError> {
        self.run(|database| {
            let transaction = database.begin_read()?;
            let mut contents = Contents::default();
            let counters = transaction.open_table(COUNTERS)?;
            let counter = |counter: Counter| {
                Ok::<_, redb::Error>(counters.get(counter.name())?.map_or(0, |value| value.value()))
            };
            contents.next_volume = counter(Counter::Volume)?;
            contents.next_instance = counter(Counter::Instance)?;
            contents.lives = counter(Counter::Life)?;
            contents.settled = counter(Counter::Settled)?;
            match transaction.open_table(GRANTED) {
                Ok(table) => {
                    for row in table.iter()? {
                        let (number, record) = row?;
                        contents.granted.push((number.value(), record.value().to_vec()));
                    }
                }
                Err(redb::TableError::TableDoesNotExist(_)) => {} // Nobody has granted anything yet.
                Err(error) => return Err(error.into()),
            }
            for row in transaction.open_table(VOLUMES)?.iter()? {
                let (id, record) = row?;
                contents.volumes.push((id.value(), record.value().to_vec()));
            }
            Ok(contents)
        })
    }

    /// Makes all of `changes` durable, or, with [`StoreError::MetadataFull`], none. After another error it is unknown
    /// which, until the store is opened again.
    pub(crate) fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        self.shadow.lock().gather();
        let result = self.attempt(|database| apply(database, changes));
        let result = result
            .and_then(|()| self.shadow.lock().settle().map_err(|fault| StoreError::from(fault).to_string()));
        if !matches!(self.shadow.lock().fault(), Some(Fault::Full)) {
            return result.map_err(|why| self.poisoned(why));
        }
        // Back to what is durable. That may include the changes, if there was no room only for what redb does after.
        self.reopen()?;
        let contents = self.load()?;
        if changes.iter().all(|change| contents.includes(change)) {
            Ok(())
        } else {
            Err(StoreError::MetadataFull)
        }
    }

    /// What redb's own check finds; it repairs what it can.
    pub(crate) fn check_integrity(&mut self) -> Result<bool, StoreError> {
        let Some(mut database) = self.database.take() else {
            return Err(self.poisoned(String::new()));
        };
        let result = caught_in_redb(|| Ok(database.check_integrity()?));
        self.database = Some(database);
        result.map_err(|why| self.poisoned(why))
    }

    /// Fails if an earlier call did.
    pub(crate) fn healthy(&self) -> Result<(), StoreError> {
        self.poison.as_ref().map_or(Ok(()), |why| Err(StoreError::Poisoned { why: why.clone() }))
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        self.close();
        let reloaded = self.shadow.lock().reload();
        reloaded.map_err(|fault| self.poisoned(StoreError::from(fault).to_string()))?;
        let shadow = self.shadow.clone();
        self.database = Some(open_database(&shadow, CACHE).map_err(|why| self.poisoned(why.to_string()))?);
        Ok(())
    }

    fn attempt<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, String> {
        self.database
            .as_ref()
            .map_or_else(|| Err(String::new()), |database| caught_in_redb(|| work(database)))
    }

    fn run<T>(&mut self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        self.attempt(work).map_err(|why| self.poisoned(why))
    }

    /// Stops everything for good; the first reason stays.
    pub(crate) fn poisoned(&mut self, why: String) -> StoreError {
        if self.poison.is_none() {
            // That the file was used after a failure is never the first reason.
            let fault = self.shadow.lock().fault().filter(|fault| **fault != Fault::Misuse).cloned();
            let why = fault.map_or(why, |fault| StoreError::from(fault).to_string());
            tracing::error!(why, "the store failed; it takes no more requests");
            self.poison = Some(why);
            self.shadow.lock().stop();
            self.close();
        }
        StoreError::Poisoned { why: self.poison.clone().unwrap_or_default() }
    }

    /// Lets go of the database, which may write a last time.
    fn close(&mut self) {
        if let Some(database) = self.database.take()
            && let Err(why) = caught_in_redb(|| {
                drop(database);
                Ok(())
            })
        {
            tracing::error!(why, "closing the metadata database");
        }
    }
}

impl Drop for Catalog {
    fn drop(&mut self) {
        self.close();
        self.shadow.lock().stop();
    }
}

impl Contents {
    fn includes(&self, change: &Change) -> bool {
        fn row(rows: &[(u64, Vec<u8>)], number: u64) -> Option<&Vec<u8>> {
            let found = rows.binary_search_by_key(&number, |(number, _)| *number).ok()?;
            rows.get(found).map(|(_, record)| record)
        }
        let record = |id: u64| row(&self.volumes, id);
        match change {
            Change::Put(id, bytes) => record(*id) == Some(bytes),
            Change::Remove(id) => record(*id).is_none(),
            Change::Set(Counter::Volume, value) => self.next_volume == *value,
            Change::Set(Counter::Instance, value) => self.next_instance == *value,
            Change::Set(Counter::Life, value) => self.lives == *value,
            Change::Set(Counter::Settled, value) => self.settled == *value,
            Change::Grant(number, bytes) => row(&self.granted, *number) == Some(bytes),
            Change::Forget(number) => row(&self.granted, *number).is_none(),
        }
    }
}

/// Opens the database in a metadata file, made if the file is empty, with a cache of `cache` bytes. After an error the
/// file is of no more use.
pub(crate) fn open_database(shadow: &SharedShadow, cache: usize) -> Result<Database, StoreError> {
    // The check reads the whole database and believes no page before its checksum fits.
    let opened = caught_in_redb(|| {
        let mut builder = Database::builder();
        builder.set_cache_size(cache).set_check_integrity_on_open(true);
        Ok(builder.create_with_backend(shadow.clone())?)
    });
    opened.map_err(|why| {
        let mut file = shadow.lock();
        // To look beyond its end is no failure of the file, but of what the database was told.
        let fault = file.fault().filter(|fault| **fault != Fault::Misuse).cloned();
        file.stop();
        fault.map_or(StoreError::Damaged { what: format!("the metadata database: {why}") }, Into::into)
    })
}

fn apply(database: &Database, changes: &[Change]) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    // Or the database would take the state before for the present if it finds this one damaged. It costs nothing: all
    // steps of a commit become durable at once.
    transaction.set_two_phase_commit(true);
    {
        let mut volumes = transaction.open_table(VOLUMES)?;
        let mut counters = transaction.open_table(COUNTERS)?;
        let grants = |change: &Change| matches!(change, Change::Grant(..) | Change::Forget(_));
        let mut granted =
            if changes.iter().any(grants) { Some(transaction.open_table(GRANTED)?) } else { None };
        for change in changes {
            match change {
                Change::Put(id, record) => drop(volumes.insert(id, record.as_slice())?),
                Change::Remove(id) => drop(volumes.remove(id)?),
                Change::Set(counter, value) => drop(counters.insert(counter.name(), value)?),
                Change::Grant(number, record) => {
                    if let Some(granted) = &mut granted {
                        granted.insert(number, record.as_slice())?;
                    }
                }
                Change::Forget(number) => {
                    if let Some(granted) = &mut granted {
                        granted.remove(number)?;
                    }
                }
            }
        }
    }
    Ok(transaction.commit()?)
}

/// Runs code of redb; a panic is an error like any other.
pub(crate) fn caught_in_redb<T>(work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, String> {
    // What a panic may have left half done is never looked at again: the caller closes the database.
    caught(work)?.map_err(|error| error.to_string())
}

/// Runs `work`; the error is what it panicked with.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| format!("panic: {}", message(&*panic)))
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use driver::disk::{Disk, MemoryDisk};

    use super::*;
    use crate::shadow::Shadow;
    use crate::superblock::Layout;

    fn catalog() -> (MemoryDisk, Catalog) {
        let disk = MemoryDisk::new(12, 4096);
        let layout = Layout::new(disk.geometry().blocks, 12, 16, 1040).unwrap();
        let shadow = Shadow::create(Box::new(disk.clone()), layout, [1; 16]).unwrap();
        (disk, Catalog::open(SharedShadow::new(shadow)).unwrap())
    }

    #[test]
    fn a_full_metadata_file_changes_nothing_and_goes_on() {
        let (_, mut catalog) = catalog();
        catalog.commit(&[Change::Set(Counter::Instance, 5), Change::Put(1, vec![7; 500_000])]).unwrap();
        let before = catalog.load().unwrap();
        let many: Vec<Change> = (2..20).map(|id| Change::Put(id, vec![8; 500_000])).collect();
        assert_eq!(catalog.commit(&many), Err(StoreError::MetadataFull));
        assert_eq!(catalog.load().unwrap(), before);
        catalog.healthy().unwrap();
        catalog.commit(&[Change::Remove(1), Change::Set(Counter::Instance, 6)]).unwrap();
        assert!(catalog.check_integrity().unwrap());
        assert_eq!(catalog.load().unwrap(), Contents { next_instance: 6, ..Contents::default() });
    }

    #[test]
    fn a_panic_of_the_database_poisons_only_the_catalogue() {
        let (disk, mut catalog) = catalog();
        catalog.commit(&[Change::Put(1, vec![7])]).unwrap();
        let error =
            catalog.run(|_| -> Result<(), redb::Error> { panic!("as if redb had a bug") }).unwrap_err();
        assert!(matches!(&error, StoreError::Poisoned { why } if why.contains("as if redb had a bug")));
        assert_eq!(catalog.load(), Err(error.clone()));
        assert_eq!(catalog.commit(&[Change::Remove(1)]), Err(error.clone()));
        assert_eq!(catalog.healthy(), Err(error));
        let steps = disk.steps();
        drop(catalog);
        assert_eq!(disk.steps(), steps, "nothing is written any more");
    }
}
