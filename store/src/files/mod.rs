//! Files in a volume: our own file system.
//!
//! A [`FileSystem`] lies on a [`Disk`]: mostly a [`Window`](crate::Window), the blocks of one volume as a disk of their
//! own. It has a superblock with a copy, a metadata file with a redb database in it, and data blocks, laid out as a
//! store is (module `superblock`). It moves no data of files: it says in which blocks a file lies, and whoever does the
//! I/O goes there. What is promised when is told in docs/files.md.
//!
//! # How the adapter uses it
//!
//! All calls are made on the store's thread. [`Extent::blocks`] are blocks of the disk that the file system lies on;
//! [`Volume::device_blocks`](crate::Volume::device_blocks) says where those of a volume are on the device.
//!
//! 1. **Open**: [`FileSystem::open_file`] with the opener's [`Credentials`] checks the path and the rights, makes the
//!    file if it is to be made, and counts an open. The extents in [`Opened`] become table entries; [`Attributes::length`]
//!    is where the engine's length begins. If the file is open elsewhere too and is to be emptied, then
//!    [`Opened::truncation`] is a plan, to be carried out as in step 3.
//! 2. **Grow**: [`FileSystem::grow`] makes room and returns the new extents. They read as zero and are beyond what the
//!    file had: entries that exist stay good. [`FileSystem::reserve`] does so for good.
//! 3. **Truncate**: [`FileSystem::truncate`] returns a [`Truncation`]: what would be given up. Nothing has happened yet.
//!    The adapter closes the entries that lie in [`Truncation::given_up`] (and, if [`Truncation::tail`] is set, holds
//!    I/O to that block too), waits until they drained, and then calls [`FileSystem::drained`], which does it. If they do
//!    not drain in time it drops the plan, and the file is as it was.
//! 4. **Length**: the engine owns it while a file is open. [`FileSystem::report`] tells the file system, at the latest
//!    before a sync and before the last release.
//! 5. **Sync**: report the lengths that are to be durable, then [`FileSystem::sync`]. It flushes the disk, so that what
//!    was written before is durable too, and makes all changes of all files durable at once.
//! 6. **Release**: [`FileSystem::release`] once for each open, after its I/O drained. A file without a name goes with
//!    the last, and one with a name gives back the room behind its end that nobody asked for by name.
//!
//! At the end: [`FileSystem::settle`].
//!
//! What is to be made once, whoever asks for it again: [`FileSystem::granted`] says before whether it was, and
//! [`FileSystem::grant`] right after it that it is; both become durable at once.
//!
//! When there is nothing else to do: [`FileSystem::zero_some`], so that growing finds zeroed blocks.
//!
//! After an error that wraps [`StoreError::Poisoned`] or [`StoreError::Disk`] the file system does nothing more; opened
//! again it is as of its last sync. Any other error means that nothing was changed.

mod attributes;
mod check;
mod error;
mod extents;
mod inode;
mod metadata;
mod names;
mod once;
mod path;
pub(crate) mod plant;
mod pool;

use std::collections::BTreeMap;
use std::time::SystemTime;

use driver::disk::Disk;
use tpt::LbaRange;

pub use attributes::{Changes, Quota, Usage};
pub use check::Finding;
pub use error::FileError;
pub use extents::{Opened, Truncation};
pub use inode::{Attributes, InodeNumber, Timestamp};
pub use names::{How, Listed};

use crate::StoreError;
use crate::catalog::caught;
use crate::container::Container;
use crate::ledger::{Ledger, WISHES};
use crate::permission::{Credentials, Permissions, TYPE_DIRECTORY};
use crate::probe::{find_superblock, read_ends};
use crate::shadow::SharedShadow;
use crate::space::{Run, Space};
use crate::superblock::{Kind, Layout, Superblock};
use inode::Inode;
use metadata::{Metadata, Piece};
use pool::Pool;

/// The most bytes of a name.
pub const MAX_NAME: usize = 255;
/// The most bytes of a path.
pub const MAX_PATH: usize = 4096;
/// The most names of a path.
pub const MAX_DEPTH: usize = 256;
/// The most extents of a file.
pub const MAX_FILE_EXTENTS: u64 = 65_536;
/// The most entries of a file's access list.
pub const MAX_ACL: usize = 128;
/// The most names that one call lists.
pub const MAX_LINKS_LISTED: usize = 4096;

/// Bytes of the database's cache.
const CACHE: usize = 32 << 20;
/// Bytes zeroed in one go.
const ZERO_STEP: u64 = 64 << 20;
/// The most bytes that are kept zeroed in advance, and at most a sixteenth of all.
const CLEAN_POOL: u64 = 1 << 30;
/// What the rows of an operation that adds something may weigh: two names, inodes with access lists, an extent, a user.
const OPERATION: u64 = 8 << 10;

/// How a volume is made a file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FormatOptions {
    /// Also if the disk holds something that is recognised.
    pub force: bool,
    /// Bytes that files' blocks are multiples of: a power of two from 4 KiB to 1 GiB.
    pub allocation_unit: u32,
    /// Bytes for metadata; it takes twice that on the disk. A quarter of it can be records: see docs/files.md for what
    /// a file takes. By default 1/32 of the disk, from 4 MiB to 16 GiB.
    pub metadata: Option<u64>,
    /// What the file system is known by; random by default.
    pub uuid: Option<[u8; 16]>,
    /// The owner of the root directory.
    pub uid: u32,
    /// The group of the root directory.
    pub gid: u32,
    /// The mode of the root directory, nine bits.
    pub mode: u16,
}

impl Default for FormatOptions {
    fn default() -> Self {
        Self { force: false, allocation_unit: 4096, metadata: None, uuid: None, uid: 0, gid: 0, mode: 0o755 }
    }
}

/// A part of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// The first byte of the file that lies in it.
    pub offset: u64,
    /// Blocks of the disk that the file system lies on.
    pub blocks: LbaRange,
}

/// What a file that is open needs to be known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Open {
    /// Opens that were not released.
    count: u32,
    /// It has no name any more.
    orphan: bool,
    /// Another with every open and every truncation: a plan made before is stale.
    epoch: u64,
}

/// A file system that is open. See the module's description.
pub struct FileSystem {
    metadata: Metadata,
    shadow: SharedShadow,
    superblock: Superblock,
    pool: Pool,
    open: BTreeMap<u64, Open>,
    ledger: Ledger,
    /// The last that was given out.
    epoch: u64,
    clock: Box<dyn FnMut() -> Timestamp + Send>,
}

impl FileSystem {
    /// Makes `disk` an empty file system. Refuses one that holds anything that is recognised, unless forced.
    pub fn format(mut disk: Box<dyn Disk>, options: FormatOptions) -> Result<Self, FileError> {
        let ends = read_ends(&mut *disk)?;
        let layout = layout_for(&*disk, &options)?;
        let root = Permissions {
            mode: TYPE_DIRECTORY | options.mode & 0o777,
            uid: options.uid,
            gid: options.gid,
            acl: None,
        };
        let fill = |shadow| {
            let mut metadata = Metadata::open(shadow, layout, CACHE)?;
            metadata.put_inode(InodeNumber::ROOT.0, &Inode::new(root, system_clock()))?;
            metadata.put_user(options.uid, metadata::User { inodes: 1, ..metadata::User::default() })?;
            metadata.counters.next_inode = InodeNumber::ROOT.0 + 1;
            metadata.sync()
        };
        let how = (options.uuid, options.force);
        Self::mount(Container::format(Kind::Files, disk, &ends, layout, how, fill)?)
    }

    /// Opens the file system on `disk`, after checking its metadata, and removes files that had no name any more when
    /// it was used last. A panic on the way is an error like damage.
    pub fn open(disk: Box<dyn Disk>) -> Result<Self, FileError> {
        let opened = caught(|| Self::mount(Container::open(Kind::Files, disk)?));
        opened.unwrap_or_else(|what| Err(StoreError::Damaged { what }.into()))
    }

    /// Whether there is a file system on `disk`, damaged or not.
    pub fn is_on(disk: &mut dyn Disk) -> Result<bool, FileError> {
        let found = find_superblock(Kind::Files, &read_ends(disk)?);
        Ok(!matches!(
            found,
            Err(StoreError::Foreign { .. } | StoreError::Blank | StoreError::TooSmall { .. })
        ))
    }

    fn mount(container: Container) -> Result<Self, FileError> {
        let Container { shadow, superblock, .. } = container;
        let mut metadata = Metadata::open(shadow.clone(), superblock.layout, CACHE)?;
        let last = metadata.last_inode()?;
        if last >= metadata.counters.next_inode || metadata.counters.next_inode >= 1 << 63 {
            let what = format!(
                "inode {last} exists, and the next number to be given is {}",
                metadata.counters.next_inode
            );
            return Err(StoreError::Damaged { what }.into());
        }
        // Nothing but a close takes the note away.
        let lost = u64::from(std::mem::take(&mut metadata.counters.in_use));
        metadata.counters.lost = metadata.counters.lost.saturating_add(lost);
        let (space, roomy) = free_space(&mut metadata, &superblock.layout)?;
        let ledger = Ledger::load(&metadata.granted(WISHES)?);
        let mut files = Self {
            metadata,
            shadow,
            superblock,
            pool: Pool::new(space),
            open: BTreeMap::new(),
            ledger,
            epoch: 0,
            clock: Box::new(system_clock),
        };
        match files.metadata.inode(InodeNumber::ROOT.0)? {
            Some(root) if root.is_directory() => {}
            _ => return Err(StoreError::Damaged { what: "there is no root directory".to_owned() }.into()),
        }
        files.collect_orphans()?;
        for number in roomy {
            files.begin()?;
            if let Some(inode) = files.metadata.inode(number)? {
                files.give_back_room(number, inode)?;
            }
        }
        Ok(files)
    }

    /// Runs `work`. If it panics, which is a bug of ours or of the disk beneath, the file system has failed: this and
    /// every later call is an error, nothing more reaches the disk, and nobody else notices.
    pub fn guarded<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, FileError>,
    ) -> Result<T, FileError> {
        caught(|| work(self)).unwrap_or_else(|why| Err(self.metadata.poisoned(why).into()))
    }

    /// Takes the time from `clock` instead of the system.
    pub fn set_clock(&mut self, clock: impl FnMut() -> Timestamp + Send + 'static) {
        self.clock = Box::new(clock);
    }

    /// Makes everything durable at once: all changes that were made so far, and, because it flushes the disk, all data
    /// whose writes have completed. After a power cut the file system is as at the last sync that was completed, or at
    /// one under way.
    pub fn sync(&mut self) -> Result<(), FileError> {
        self.metadata.healthy()?;
        if self.metadata.is_clean() {
            return Ok(self.shadow.lock().disk().flush().map_err(StoreError::from)?);
        }
        self.metadata.sync()?;
        self.pool.synced();
        Ok(())
    }

    /// Makes everything durable, and that nobody writes to a file now: whoever opens the file system next need not expect
    /// anything behind the end of one. As long as a file is open it is a [`FileSystem::sync`].
    pub fn settle(&mut self) -> Result<(), FileError> {
        self.metadata.healthy()?;
        if self.open.is_empty() {
            self.metadata.set_in_use(false);
        }
        self.sync()
    }

    /// Settles it and lets go of the disk. Dropping it without this is like a power cut.
    pub fn close(mut self) -> Result<(), FileError> {
        self.settle()
    }

    /// Zeroes about `budget` bytes of free blocks in advance, if there are not enough, and returns how many.
    pub fn zero_some(&mut self, budget: u64) -> Result<u64, FileError> {
        self.metadata.healthy()?;
        let layout = self.superblock.layout;
        let wanted = (CLEAN_POOL >> layout.unit_shift).min(layout.units / 16);
        let most = wanted.saturating_sub(self.pool.clean()).min(budget.div_ceil(1 << layout.unit_shift));
        let Some(run) = self.pool.take_dirty(most) else { return Ok(0) };
        if let Err(error) = self.zero(run) {
            self.pool.not_zeroed(run);
            return Err(error.into());
        }
        self.pool.zeroed(run);
        Ok(run.count << layout.unit_shift)
    }

    /// What the file system is known by, given when it was formatted.
    pub fn uuid(&self) -> [u8; 16] {
        self.superblock.uuid
    }

    /// Bytes that files' blocks are multiples of.
    pub fn allocation_unit(&self) -> u64 {
        1 << self.superblock.layout.unit_shift
    }

    /// Blocks of the disk that can never belong to a file.
    pub fn metadata_extents(&self) -> Vec<LbaRange> {
        let mut extents = self.superblock.layout.metadata();
        let (formatted, blocks) =
            (self.superblock.layout.blocks, self.shadow.lock().disk().geometry().blocks);
        extents.extend(LbaRange::new(formatted, blocks.saturating_sub(formatted)));
        extents
    }

    /// The time of a change.
    fn now(&mut self) -> Timestamp {
        (self.clock)()
    }

    /// Before every change: a sync, if the open transaction grew large.
    fn begin(&mut self) -> Result<(), FileError> {
        self.metadata.healthy()?;
        if self.metadata.is_due() {
            self.sync()?;
        }
        Ok(())
    }

    /// Before every change that adds something: whether there is room for it.
    fn begin_adding(&mut self) -> Result<(), FileError> {
        self.begin()?;
        if !self.metadata.has_room(OPERATION) {
            return Err(self.metadata_full());
        }
        Ok(())
    }

    /// Makes a run read as zero. It is durable with the next sync, as is whose it is.
    fn zero(&mut self, run: Run) -> Result<(), StoreError> {
        let layout = self.superblock.layout;
        let mut lba = layout.data + run.first * layout.unit_blocks();
        let end = lba + run.count * layout.unit_blocks();
        let mut shadow = self.shadow.lock();
        while lba < end {
            let blocks = (ZERO_STEP >> layout.block_shift).min(end - lba);
            shadow.disk().write_zeroes(lba, blocks)?;
            lba += blocks;
        }
        Ok(())
    }

    fn collect_orphans(&mut self) -> Result<(), FileError> {
        loop {
            let orphans = self.metadata.orphans(64)?;
            if orphans.is_empty() {
                return Ok(());
            }
            for number in orphans {
                self.begin()?;
                self.metadata.remove_orphan(number)?;
                if let Some(inode) = self.metadata.inode(number)? {
                    self.destroy(number, &inode)?;
                }
            }
        }
    }
}

const PAGE_BYTES: u64 = crate::superblock::PAGE as u64;

fn system_clock() -> Timestamp {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(now.as_nanos()).unwrap_or(i64::MAX))
}

/// What no file has, and which files have room behind their ends that nobody asked for. That each file is what its inode says,
/// and lies where nothing else does, is seen here once; all else relies on it.
fn free_space(metadata: &mut Metadata, layout: &Layout) -> Result<(Space, Vec<u64>), StoreError> {
    let (mut space, mut roomy) = (Space::new(layout.units), Vec::new());
    let mut bad = None;
    metadata.each_file(|number, record, pieces| match check_file(record, pieces, layout, &mut space) {
        Ok(inode) if inode.units > inode.kept(layout) => roomy.push(number),
        Ok(_) => {}
        Err(what) => bad = bad.take().or(Some(format!("inode {number}: {what}"))),
    })?;
    bad.map_or(Ok((space, roomy)), |what| Err(StoreError::Damaged { what }))
}

/// Takes a file's pieces out of `space`.
fn check_file(
    record: Option<&[u8]>,
    pieces: &[Piece],
    layout: &Layout,
    space: &mut Space,
) -> Result<Inode, String> {
    let inode = Inode::decode(record.ok_or("it has extents and does not exist")?, layout)?;
    let mut end = 0;
    for Piece { at, run } in pieces {
        if !space.take(*run) {
            let Run { first, count } = run;
            return Err(format!(
                "its {count} allocation units from {first} are another's too, or none of the disk's"
            ));
        }
        if *at != end {
            return Err(format!("its extent at unit {at} should be at unit {end}"));
        }
        end += run.count;
    }
    let count = pieces.len() as u64;
    if (end, count) != (inode.units, inode.pieces) {
        let Inode { units, pieces, .. } = inode;
        return Err(format!(
            "it should have {units} allocation units in {pieces} pieces, it has {end} in {count}"
        ));
    }
    Ok(inode)
}

fn layout_for(disk: &dyn Disk, options: &FormatOptions) -> Result<Layout, FileError> {
    let unit = options.allocation_unit;
    if !unit.is_power_of_two() || !(4 << 10..=1 << 30).contains(&unit) {
        let what = format!("an allocation unit of {unit} bytes is not a power of two from 4 KiB to 1 GiB");
        return Err(StoreError::Options { what }.into());
    }
    let geometry = disk.geometry();
    let bytes = geometry.blocks.saturating_mul(geometry.block_size().into());
    let pages = options.metadata.map_or_else(|| Layout::suitable_for_files(bytes), Layout::pages_for);
    let unit_shift = u8::try_from(unit.ilog2()).unwrap_or(u8::MAX);
    let layout = Layout::new(geometry.blocks, geometry.block_shift, unit_shift, pages);
    Ok(layout.map_err(|needed| {
        if needed > 0 {
            return StoreError::TooSmall { bytes, needed };
        }
        let metadata = options.metadata.unwrap_or(0);
        StoreError::Options {
            what: format!("a metadata area of {metadata} bytes is not from 4 MiB to 16 GiB"),
        }
    })?)
}

/// Only the superuser.
fn only_root(who: &Credentials<'_>, what: &'static str) -> Result<(), FileError> {
    if who.is_root() {
        return Ok(());
    }
    Err(FileError::NotPermitted { uid: who.uid, what, whom: "the superuser" })
}

#[cfg(test)]
mod tests;
