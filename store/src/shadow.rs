//! The metadata file: what the database sees as its storage.
//!
//! Each page of the file has two slots on the device. A write goes to the slot that does not hold the page's durable
//! content; which slot counts, and the checksum of what must be in it, stand in tables, whose pages have two slots in
//! the same way; which of those count, and their checksums, stand in the root, or, of a large file, in tables of tables
//! between them. [`Shadow::sync`] writes pages and tables,
//! flushes, writes the root, flushes. So after a crash at any point the file is, as a whole, what it was at the last
//! sync that was completed or under way: a torn write only ever hits a slot that does not count yet.
//!
//! After that a table of the former state is erased, so that not even both copies of a former root, put back, are
//! taken for the present.
//!
//! The root is 512 bytes at the start of a page and never torn (NVMe Base 2.0, AWUPF: at least one logical block is
//! written atomically with respect to a power failure). It has two copies, both written in each sync: if one of them is
//! damaged the other decides. A page or table whose checksum does not fit is an error and never an older content. A
//! page that was never written, or was cut off by a shorter length, reads as zero.
//!
//! Cost: twice the file's space; for each sync, beside the pages themselves, a page for every 512 that hold a changed
//! one, and one for every 512 of those in a large file, two root writes, an erased page and two flushes.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use driver::disk::{Disk, DiskError};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::StoreError;
use crate::superblock::{Layout, PAGE, ROOT_ENTRIES, TABLE_ENTRIES};

const MAGIC: [u8; 8] = *b"PORTROOT";
/// Bytes of the root that mean something.
const ROOT: usize = 512;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawEntry {
    sum: U32,
    /// 0: never written; 1 or 2: that slot counts.
    slot: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
struct RawRoot {
    magic: [u8; 8],
    uuid: [u8; 16],
    /// Counts syncs.
    epoch: U64,
    /// Bytes of the file.
    length: U64,
    reserved: [u8; 20],
    /// Of the root with this field zero.
    sum: U32,
    tables: [RawEntry; ROOT_ENTRIES as usize],
}

const _: () = assert!(size_of::<RawRoot>() == ROOT);

/// Whether the device bears a root, whosever it is.
pub(crate) fn has_root(page: &[u8]) -> bool {
    page.starts_with(&MAGIC)
}

/// What went wrong beneath the database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    Disk(DiskError),
    Damaged(String),
    /// The file cannot grow any more.
    Full,
    /// Used against its contract, or after a fault.
    Misuse,
}

impl From<DiskError> for Fault {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Disk(error) => Self::Disk(error),
            Fault::Damaged(what) => Self::Damaged { what },
            Fault::Full => Self::MetadataFull,
            Fault::Misuse => Self::Poisoned { why: "the metadata was used after a failure".to_owned() },
        }
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        let kind = match fault {
            Fault::Disk(_) | Fault::Misuse => io::ErrorKind::Other,
            Fault::Damaged(_) => io::ErrorKind::InvalidData,
            Fault::Full => io::ErrorKind::StorageFull,
        };
        Self::new(kind, StoreError::from(fault))
    }
}

/// Where the content of a page or table is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Entry {
    sum: u32,
    /// 0, 1 or 2, as on disk.
    slot: u8,
    /// The slot that a crash would bring back; not written before the next sync.
    durable: u8,
}

impl Entry {
    fn decode(raw: &RawEntry) -> Option<Self> {
        let slot = u8::try_from(raw.slot.get()).ok().filter(|slot| *slot <= 2)?;
        Some(Self { sum: raw.sum.get(), slot, durable: slot })
    }

    fn encode(self) -> RawEntry {
        RawEntry { sum: self.sum.into(), slot: u32::from(self.slot).into() }
    }

    /// The slot to write to.
    fn spare(self) -> u8 {
        if self.durable == 1 { 2 } else { 1 }
    }
}

/// A page of a level, 0 being the file's own: level and number go into the checksum, so that one page is never taken for
/// another.
#[derive(Clone, Copy)]
struct What {
    level: usize,
    index: u32,
}

impl What {
    const fn page(index: u32) -> Self {
        Self { level: 0, index }
    }

    /// What the level is called in checksums.
    fn kind(self) -> u8 {
        match self.level {
            0 => 2,
            1 => 1,
            _ => 3,
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = ["metadata page", "metadata table"].get(self.level).unwrap_or(&"metadata table of tables");
        write!(f, "{name} {}", self.index)
    }
}

/// The file. After a fault other than [`Fault::Full`] it refuses all further use.
pub(crate) struct Shadow {
    disk: Box<dyn Disk>,
    layout: Layout,
    uuid: [u8; 16],
    epoch: u64,
    length: u64,
    /// The entries of each level, the file's own pages first.
    levels: Vec<Vec<Entry>>,
    /// Pages whose entry differs from the durable one.
    changed: BTreeSet<u32>,
    length_changed: bool,
    /// Syncs of the database wait for [`Shadow::settle`].
    gathering: bool,
    fault: Option<Fault>,
}

impl Shadow {
    /// An empty file on a device that is being formatted.
    pub(crate) fn create(disk: Box<dyn Disk>, layout: Layout, uuid: [u8; 16]) -> Result<Self, Fault> {
        let mut shadow = Self::new(disk, layout, uuid);
        shadow.write_roots(&[0, 1])?;
        Ok(shadow)
    }

    /// The file as of its last sync.
    pub(crate) fn open(disk: Box<dyn Disk>, layout: Layout, uuid: [u8; 16]) -> Result<Self, Fault> {
        let mut shadow = Self::new(disk, layout, uuid);
        shadow.load()?;
        Ok(shadow)
    }

    fn new(disk: Box<dyn Disk>, layout: Layout, uuid: [u8; 16]) -> Self {
        let empty = |pages: u32| vec![Entry::default(); pages as usize];
        let levels = layout.levels().map(empty).collect();
        let changed = BTreeSet::new();
        Self {
            disk,
            layout,
            uuid,
            epoch: 1,
            length: 0,
            levels,
            changed,
            length_changed: false,
            gathering: false,
            fault: None,
        }
    }

    /// The device beneath.
    pub(crate) fn disk(&mut self) -> &mut dyn Disk {
        &mut *self.disk
    }

    /// What stopped the file, or kept it from growing.
    pub(crate) fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    /// Nothing is written from here on.
    pub(crate) fn stop(&mut self) {
        self.fault.get_or_insert(Fault::Misuse);
    }

    /// Forgets what was not synced.
    pub(crate) fn reload(&mut self) -> Result<(), Fault> {
        self.levels.iter_mut().for_each(|entries| entries.fill(Entry::default()));
        self.changed.clear();
        self.length_changed = false;
        self.gathering = false;
        self.fault = None;
        self.load()
    }

    /// From here to [`Shadow::settle`] the database's syncs do nothing: what it does in several steps becomes one.
    pub(crate) fn gather(&mut self) {
        self.gathering = true;
    }

    /// Makes all that was gathered durable, at once.
    pub(crate) fn settle(&mut self) -> Result<(), Fault> {
        self.gathering = false;
        self.sync()
    }

    fn load(&mut self) -> Result<(), Fault> {
        // After a crash of the program alone, what is read here may be in the device's cache only, and all that
        // follows takes it for durable.
        self.disk.flush()?;
        let roots = [self.read_root(0), self.read_root(1)];
        let newest = roots.iter().flatten().max_by_key(|root| root.epoch.get());
        let Some(root) = newest.cloned() else {
            return Err(Fault::Damaged("both copies of the metadata root are damaged".to_owned()));
        };
        self.epoch = root.epoch.get();
        self.length = root.length.get();
        if self.length > u64::from(self.layout.pages) * PAGE as u64 {
            return Err(Fault::Damaged("the metadata root has an impossible length".to_owned()));
        }
        let top = self.levels.len() - 1;
        for (index, entry) in (0..).zip(&mut self.levels[top]) {
            let decoded = root.tables.get(index as usize).and_then(Entry::decode);
            let nowhere = || Fault::Damaged(format!("{} has no place", What { level: top, index }));
            *entry = decoded.ok_or_else(nowhere)?;
        }
        for level in (1..=top).rev() {
            for index in (0..).zip(self.levels[level].clone()) {
                self.load_table(What { level, index: index.0 }, index.1)?;
            }
        }
        for (copy, found) in (0..).zip(&roots) {
            if found.as_ref().is_none_or(|found| found.epoch != root.epoch) {
                tracing::warn!(copy, "a copy of the metadata root was old or damaged; it is written anew");
                self.write_roots(&[copy])?;
            }
        }
        Ok(())
    }

    /// A copy of the root; `None` if it cannot be read or is not as it was written.
    fn read_root(&mut self, copy: u64) -> Option<RawRoot> {
        let mut page = vec![0; PAGE];
        self.disk.read(self.layout.root(copy), &mut page).ok()?;
        let (root, _) = RawRoot::read_from_prefix(&page).ok()?;
        let ours = root.magic == MAGIC && root.uuid == self.uuid && root_sum(&root) == root.sum.get();
        ours.then_some(root)
    }

    fn load_table(&mut self, what: What, entry: Entry) -> Result<(), Fault> {
        let page = self.fetch(what, entry)?;
        let entries = <[RawEntry]>::ref_from_bytes(&page).unwrap_or(&[]);
        let first = (what.index * TABLE_ENTRIES) as usize;
        for (number, (page, raw)) in self.levels[what.level - 1][first..].iter_mut().zip(entries).enumerate()
        {
            let nonsense = || Fault::Damaged(format!("entry {number} of {what} is nonsense"));
            *page = Entry::decode(raw).ok_or_else(nonsense)?;
        }
        Ok(())
    }

    /// Writes these copies of the root, and flushes.
    fn write_roots(&mut self, copies: &[u64]) -> Result<(), Fault> {
        let mut root = RawRoot::new_zeroed();
        root.magic = MAGIC;
        root.uuid = self.uuid;
        root.epoch = self.epoch.into();
        root.length = self.length.into();
        for (raw, table) in root.tables.iter_mut().zip(self.levels.last().into_iter().flatten()) {
            *raw = table.encode();
        }
        root.sum = root_sum(&root).into();
        let mut page = root.as_bytes().to_vec();
        page.resize(PAGE, 0);
        for copy in copies {
            self.disk.write(self.layout.root(*copy), &page)?;
        }
        self.disk.flush()?;
        Ok(())
    }

    fn sum(&self, what: What, page: &[u8]) -> u32 {
        let seed = crc32c::crc32c_append(crc32c::crc32c(&self.uuid), &[what.kind()]);
        crc32c::crc32c_append(crc32c::crc32c_append(seed, &what.index.to_le_bytes()), page)
    }

    fn place(&self, what: What, slot: u8) -> u64 {
        self.layout.place(what.level, slot, what.index)
    }

    /// The content that was last written, or an error.
    fn fetch(&mut self, what: What, entry: Entry) -> Result<Vec<u8>, Fault> {
        let mut page = vec![0; PAGE];
        if entry.slot == 0 {
            return Ok(page);
        }
        self.disk.read(self.place(what, entry.slot), &mut page)?;
        if self.sum(what, &page) == entry.sum {
            Ok(page)
        } else {
            let lba = self.place(what, entry.slot);
            Err(Fault::Damaged(format!("{what} (device block {lba}) is not what was written")))
        }
    }

    /// Writes a page or table where it does no harm yet and returns its entry.
    fn put(&mut self, what: What, entry: Entry, page: &[u8]) -> Result<Entry, Fault> {
        let slot = entry.spare();
        self.disk.write(self.place(what, slot), page)?;
        Ok(Entry { sum: self.sum(what, page), slot, ..entry })
    }

    /// Does `work` unless there was a fault, and keeps its fault.
    fn guarded<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, Fault>) -> Result<T, Fault> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        work(self).inspect_err(|fault| self.fault = Some(fault.clone()))
    }

    /// Bytes of the file.
    pub(crate) fn len(&self) -> u64 {
        self.length
    }

    /// The pages that `length` bytes at `offset` touch, with the part of each and of the bytes.
    fn parts(&self, offset: u64, length: usize) -> Result<impl Iterator<Item = Part> + use<>, Fault> {
        let end = offset.checked_add(length as u64).filter(|end| *end <= self.length).ok_or(Fault::Misuse)?;
        let mut at = offset;
        Ok(std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let page = at / PAGE as u64;
            let stop = end.min((page + 1) * PAGE as u64);
            let within = |at: u64| usize::try_from(at - page * PAGE as u64).ok();
            let bytes = |at: u64| usize::try_from(at - offset).ok();
            let part = Part {
                page: u32::try_from(page).ok()?,
                within: within(at)?..within(stop)?,
                bytes: bytes(at)?..bytes(stop)?,
            };
            at = stop;
            Some(part)
        }))
    }

    /// Reads from the file.
    pub(crate) fn read(&mut self, offset: u64, out: &mut [u8]) -> Result<(), Fault> {
        self.guarded(|shadow| {
            for part in shadow.parts(offset, out.len())? {
                let page = shadow.fetch(What::page(part.page), shadow.levels[0][part.page as usize])?;
                out[part.bytes].copy_from_slice(&page[part.within]);
            }
            Ok(())
        })
    }

    /// Writes to the file; durable after the next sync, and all of it or nothing.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Fault> {
        self.guarded(|shadow| {
            for part in shadow.parts(offset, data.len())? {
                let (what, entry) = (What::page(part.page), shadow.levels[0][part.page as usize]);
                let whole = part.within.len() == PAGE;
                let old = if whole { vec![0; PAGE] } else { shadow.fetch(what, entry)? };
                let mut page = old;
                page[part.within].copy_from_slice(&data[part.bytes]);
                shadow.levels[0][part.page as usize] = shadow.put(what, entry, &page)?;
                shadow.changed.insert(part.page);
            }
            Ok(())
        })
    }

    /// Makes the file shorter, or longer with zeros.
    pub(crate) fn set_len(&mut self, length: u64) -> Result<(), Fault> {
        self.guarded(|shadow| {
            if length > u64::from(shadow.layout.pages) * PAGE as u64 {
                return Err(Fault::Full);
            }
            if length < shadow.length {
                // The rest of the last page, then all pages after it.
                let rest = length.next_multiple_of(PAGE as u64).min(shadow.length) - length;
                let zeros = vec![0; usize::try_from(rest).map_err(|_| Fault::Misuse)?];
                shadow.write(length, &zeros)?;
                let first = u32::try_from(length.div_ceil(PAGE as u64)).map_err(|_| Fault::Misuse)?;
                for page in first..shadow.layout.pages {
                    let entry = &mut shadow.levels[0][page as usize];
                    if entry.slot != 0 {
                        *entry = Entry { durable: entry.durable, ..Entry::default() };
                        shadow.changed.insert(page);
                    }
                }
            }
            shadow.length_changed |= length != shadow.length;
            shadow.length = length;
            Ok(())
        })
    }

    /// Makes all changes durable, at once.
    pub(crate) fn sync(&mut self) -> Result<(), Fault> {
        self.guarded(|shadow| {
            if shadow.changed.is_empty() && !shadow.length_changed {
                return Ok(());
            }
            let mut changed = vec![std::mem::take(&mut shadow.changed)];
            for level in 1..shadow.levels.len() {
                let tables = changed[level - 1].iter().map(|index| index / TABLE_ENTRIES).collect();
                shadow.write_tables(level, &tables)?;
                changed.push(tables);
            }
            shadow.disk.flush()?;
            shadow.epoch += 1;
            shadow.write_roots(&[0, 1])?;
            shadow.erase_former(&changed)?;
            for (entries, changed) in shadow.levels.iter_mut().zip(changed) {
                for index in changed {
                    let entry = &mut entries[index as usize];
                    entry.durable = entry.slot;
                }
            }
            shadow.length_changed = false;
            Ok(())
        })
    }

    /// Writes these tables of a level, as the level below is.
    fn write_tables(&mut self, level: usize, tables: &BTreeSet<u32>) -> Result<(), Fault> {
        for &index in tables {
            let first = (index * TABLE_ENTRIES) as usize;
            let entries = self.levels[level - 1][first..].iter().take(TABLE_ENTRIES as usize);
            let mut page = entries.flat_map(|entry| entry.encode().as_bytes().to_vec()).collect::<Vec<u8>>();
            page.resize(PAGE, 0);
            let entry = self.levels[level][index as usize];
            self.levels[level][index as usize] = self.put(What { level, index }, entry, &page)?;
        }
        Ok(())
    }

    /// Erases the content of a table that the last sync replaced, and that the root named. Nothing needs it any more, and
    /// without it both copies of the root of before, put back, are an error and not an older content.
    fn erase_former(&mut self, changed: &[BTreeSet<u32>]) -> Result<(), Fault> {
        let level = self.levels.len() - 1;
        let Some(&index) = changed.get(level).and_then(BTreeSet::first) else { return Ok(()) };
        let former = self.levels[level][index as usize].durable;
        if former != 0 {
            self.disk.write(self.place(What { level, index }, former), &[0; PAGE])?;
        }
        Ok(())
    }

    /// Reads everything that counts and says what is damaged.
    pub(crate) fn verify(&mut self) -> Vec<Fault> {
        let mut faults = Vec::new();
        for copy in 0..2 {
            if self.read_root(copy).is_none_or(|root| root.epoch.get() != self.epoch) {
                faults.push(Fault::Damaged(format!("copy {copy} of the metadata root is damaged")));
            }
        }
        for level in (0..self.levels.len()).rev() {
            for index in 0..self.levels[level].len() {
                let entry = self.levels[level][index];
                let index = u32::try_from(index).unwrap_or(u32::MAX);
                if entry.slot != 0 {
                    faults.extend(self.fetch(What { level, index }, entry).err());
                }
            }
        }
        faults
    }
}

/// A piece of a read or write that lies in one page.
struct Part {
    page: u32,
    /// Of the page.
    within: Range<usize>,
    /// Of the caller's bytes.
    bytes: Range<usize>,
}

fn root_sum(root: &RawRoot) -> u32 {
    let mut root = root.clone();
    root.sum = 0.into();
    crc32c::crc32c(root.as_bytes())
}

/// The file, shared by the database, which reads and writes it, and the store, which uses the device beneath.
#[derive(Clone)]
pub(crate) struct SharedShadow(Arc<Mutex<Shadow>>);

impl SharedShadow {
    pub(crate) fn new(shadow: Shadow) -> Self {
        Self(Arc::new(Mutex::new(shadow)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Shadow> {
        self.0.lock().unwrap_or_else(|poisoned| {
            let mut shadow = poisoned.into_inner();
            shadow.stop();
            shadow
        })
    }
}

impl fmt::Debug for SharedShadow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the metadata file")
    }
}

impl redb::StorageBackend for SharedShadow {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.lock().len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        Ok(self.lock().read(offset, out)?)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        Ok(self.lock().set_len(len)?)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        let mut shadow = self.lock();
        if shadow.gathering {
            return Ok(());
        }
        Ok(shadow.sync()?)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        Ok(self.lock().write(offset, data)?)
    }
}

#[cfg(test)]
mod tests;
