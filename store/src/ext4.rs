//! An ext4 as it is found on a disk: its files by name, and where their bytes are.
//!
//! [`Ext4`] reads the metadata of a file system that nobody has mounted and answers with extents; whoever opened a file
//! then reads and overwrites it in place. Nothing is ever written here: no length, no time, no block allocated.
//!
//! - The content of the disk is hostile. Checksums are looked at first, each number is checked before it is used, and
//!   work and memory are bounded, whatever an image says.
//! - Each extent that is given out lies in the file system, and outside of its *zone*: superblocks and descriptors with
//!   their copies, bitmaps, inode tables, the journal and other files of its own; the extent trees, directories, symbolic
//!   links and extended attributes that were read until then; and all other files that are open.
//! - Rights are those that the kernel would give: search on each directory of the path, then the mode or the access list.
//!   A name leads nowhere else than in the kernel, but for symbolic links with an absolute target, which are refused.
//! - What cannot be served as the kernel would is refused, with the reason and what to do. The device has to be
//!   left alone by everybody else; that somebody mounted it for writing is noticed by the superblock, each time something is
//!   asked.
//!
//! The format is that of the kernel's documentation, filesystems/ext4 ("Data Structures and Algorithms"), named by section
//! where it is used.

mod attributes;
mod blocks;
mod checksum;
mod directory;
mod error;
mod extents;
mod features;
mod forge;
pub mod fuzz;
mod groups;
pub mod image;
mod inode;
mod journal;
mod mounted;
mod open;
mod superblock;
mod walk;
mod zone;

use std::collections::HashMap;
use std::ops::ControlFlow;

use driver::disk::Disk;

use self::blocks::Cache;
use self::groups::Groups;
use self::inode::Inode;
use self::superblock::Superblock;
use self::zone::{Owner, Ranges};
use crate::permission::{Credentials, Permissions, Rights};

pub use self::error::{Ext4Error, Place};
pub use self::inode::{Kind, Timestamp};
pub use self::mounted::Mounted;
pub use self::open::{FileExtent, Hole, HoleKind, OpenedFile};
pub use self::zone::Owner as BlockOwner;

/// The inode of the root directory ("Special Inodes").
const ROOT: u32 = 2;
/// The inode that holds the room for descriptors to grow.
const RESIZE: u32 = 7;

/// The most symbolic links on one path, as in the kernel (path_resolution(7)).
pub const MAX_LINKS: usize = 40;
/// The most bytes of a path with the zero at its end, and of a name (limits.h).
const MAX_PATH: usize = 4096;
const MAX_NAME: usize = 255;
/// The most names on one path, with those of its symbolic links.
const MAX_STEPS: usize = 8192;
/// The most block groups: 32 TiB of groups of the usual size.
const MAX_GROUPS: u32 = 1 << 18;
/// The most extents of a file.
pub const MAX_FILE_EXTENTS: usize = 1 << 16;
/// The most bytes of a directory: room for about two million names.
const MAX_DIRECTORY: u64 = 64 << 20;
/// The most blocks and extents looked at for one answer.
const MAX_WORK: u64 = 1 << 18;
/// The most pieces that are remembered of the zone, and of files that are open.
const MAX_RANGES: usize = 1 << 20;
/// The most names in one answer.
const MAX_LISTED: usize = 4096;
/// The most files open at a time.
const MAX_OPEN: usize = 1 << 16;
/// The most blocks kept in memory.
const CACHED_BLOCKS: usize = 4096;

/// What is known of an inode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// Its number.
    pub inode: u32,
    /// What it is.
    pub kind: Kind,
    /// Who may use it.
    pub permissions: Permissions,
    /// Its length in bytes.
    pub length: u64,
    /// Bytes of the blocks that it has, by its own account.
    pub allocated: u64,
    /// How many names it has.
    pub links: u16,
    /// When it was last read.
    pub accessed: Timestamp,
    /// When its attributes last changed.
    pub changed: Timestamp,
    /// When its content last changed.
    pub modified: Timestamp,
}

impl Attributes {
    fn new(inode: &Inode, permissions: Permissions) -> Self {
        Self {
            inode: inode.number,
            kind: inode.kind,
            permissions,
            length: inode.length,
            allocated: inode.allocated,
            links: inode.links,
            accessed: inode.accessed,
            changed: inode.changed,
            modified: inode.modified,
        }
    }
}

/// How full a file system is, by its own account of when it was unmounted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// Bytes of a block.
    pub block_size: u32,
    /// Bytes of all blocks.
    pub bytes: u64,
    /// Bytes of those that are free.
    pub free: u64,
    /// Inodes in use.
    pub inodes: u32,
}

/// A name in a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirectoryEntry {
    /// Any bytes but `/`; never empty.
    pub name: Vec<u8>,
    /// What it names.
    pub inode: u32,
    /// What that is, if the directory says so.
    pub kind: Option<Kind>,
    /// Where a listing goes on behind it.
    pub next: u64,
}

/// An ext4 that is in use. Each call names the device again: it has to be the same one, and hold what it held.
#[derive(Debug)]
pub struct Ext4 {
    superblock: Superblock,
    groups: Groups,
    /// The device's block has `1 << device_shift` bytes; the device this many blocks.
    device_shift: u8,
    device_blocks: u64,
    cache: Cache,
    /// Metadata of files that was read.
    touched: Ranges,
    /// The data of files that are open.
    data: Ranges,
    open: HashMap<u32, open::Open>,
    /// Extents of all of them.
    held: usize,
    /// Blocks and extents looked at for the present answer.
    work: u64,
}

impl Ext4 {
    /// Opens the file system on `disk`.
    ///
    /// # Errors
    /// Says what is wrong with it, or what it has that is not served; [`Ext4Error::NotClean`] if it is mounted somewhere or
    /// has a journal to be replayed.
    pub fn open(disk: &mut dyn Disk) -> Result<Self, Ext4Error> {
        let superblock = Superblock::read(disk)?;
        let groups = Groups::read(disk, &superblock)?;
        let geometry = disk.geometry();
        let mut ext4 = Self {
            superblock,
            groups,
            device_shift: geometry.block_shift,
            device_blocks: geometry.blocks,
            cache: Cache::default(),
            touched: Ranges::default(),
            data: Ranges::default(),
            open: HashMap::new(),
            held: 0,
            work: 0,
        };
        ext4.take_own_files(disk)?;
        let root = ext4.inode(disk, ROOT)?;
        if root.kind != Kind::Directory {
            return Err(error::damaged(root.place(), format!("the root is {}", root.kind.name())));
        }
        Ok(ext4)
    }

    /// Takes the blocks of the files that are the file system's own, and looks at the journal.
    fn take_own_files(&mut self, disk: &mut dyn Disk) -> Result<(), Ext4Error> {
        let mut own = self.superblock.hidden.clone();
        own.extend(self.superblock.journal);
        for number in own {
            let inode = self.any_inode(disk, number)?;
            let mapping = self.mapping(disk, &inode)?;
            for extent in &mapping.extents {
                self.groups.claim(Owner::Hidden(number), extent.physical, extent.count)?;
            }
            for node in &mapping.nodes {
                self.groups.claim(Owner::Hidden(number), *node, 1)?;
            }
            if self.superblock.journal == Some(number) {
                let first = mapping.extents.first().filter(|first| first.logical == 0 && first.written);
                let first = first.ok_or_else(|| error::damaged(Place::Journal, "it has no first block"))?;
                self.check_journal(disk, first.physical)?;
            }
        }
        if self.superblock.features.compatible & features::RESIZE_INODE != 0 {
            // A block map; the blocks that its one block names are counted as room behind the descriptors.
            let body = self.any_inode(disk, RESIZE)?.body;
            let double = body.get(52..56).and_then(|word| word.try_into().ok()).map_or(0, u32::from_le_bytes);
            if double != 0 {
                self.reserve(Owner::Hidden(RESIZE), double.into(), 1)?;
                self.groups.claim(Owner::Hidden(RESIZE), double.into(), 1)?;
            }
        }
        Ok(())
    }

    /// Begins an answer: the device is the one that was opened, and nobody mounted or mended the file system since, all
    /// of which would have written the superblock.
    fn begin(&mut self, disk: &mut dyn Disk) -> Result<(), Ext4Error> {
        self.work = 0;
        let geometry = *disk.geometry();
        if (geometry.block_shift, geometry.blocks) != (self.device_shift, self.device_blocks) {
            return Err(Ext4Error::Changed);
        }
        if Superblock::image(disk)? != self.superblock.image {
            return Err(Ext4Error::Changed);
        }
        Ok(())
    }

    /// Why no file can be opened for writing, if so.
    pub fn read_only(&self) -> Option<&str> {
        self.superblock.no_writes.as_deref()
    }

    /// How full it is.
    pub fn usage(&self) -> Usage {
        let Superblock { block_shift, blocks, free_blocks, inodes, free_inodes, .. } = self.superblock;
        Usage {
            block_size: 1 << block_shift,
            bytes: blocks << block_shift,
            free: free_blocks.min(blocks) << block_shift,
            inodes: inodes.saturating_sub(free_inodes),
        }
    }

    /// The inode that `path` names from the root (a slash at its start makes no difference). Symbolic links on the way
    /// are followed, one at the end if `follow`.
    ///
    /// # Errors
    /// Besides those of the path, everything that is wrong with what lies on the way.
    pub fn lookup(
        &mut self,
        disk: &mut dyn Disk,
        path: &[u8],
        who: &Credentials<'_>,
        follow: bool,
    ) -> Result<u32, Ext4Error> {
        self.begin(disk)?;
        Ok(self.walk(disk, path, who, follow)?.inode.number)
    }

    /// What is known of the file that `path` names; see [`Ext4::lookup`].
    ///
    /// # Errors
    /// As [`Ext4::lookup`]; no right on the file itself is needed.
    pub fn stat(
        &mut self,
        disk: &mut dyn Disk,
        path: &[u8],
        who: &Credentials<'_>,
        follow: bool,
    ) -> Result<Attributes, Ext4Error> {
        self.begin(disk)?;
        let inode = self.walk(disk, path, who, follow)?.inode;
        let permissions = self.permissions(disk, &inode)?;
        Ok(Attributes::new(&inode, permissions))
    }

    /// Opens a regular file for reading, writing (in place) or both. It stays open, and its blocks its own, until
    /// [`Ext4::close`] was called as often as it was opened.
    ///
    /// # Errors
    /// As [`Ext4::lookup`]; the rights on the file; what is not served; blocks that are not the file's alone.
    pub fn open_file(
        &mut self,
        disk: &mut dyn Disk,
        path: &[u8],
        who: &Credentials<'_>,
        wanted: Rights,
    ) -> Result<OpenedFile, Ext4Error> {
        self.begin(disk)?;
        let found = self.walk(disk, path, who, true)?;
        self.open_found(disk, found, who, wanted)
    }

    /// Where a symbolic link leads.
    ///
    /// # Errors
    /// As [`Ext4::lookup`]; if it is no symbolic link.
    pub fn read_link(
        &mut self,
        disk: &mut dyn Disk,
        path: &[u8],
        who: &Credentials<'_>,
    ) -> Result<Vec<u8>, Ext4Error> {
        self.begin(disk)?;
        let inode = self.walk(disk, path, who, false)?.inode;
        if inode.kind != Kind::Link {
            let wanted = Kind::Link.name();
            return Err(Ext4Error::WrongKind { inode: inode.number, found: inode.kind.name(), wanted });
        }
        self.target(disk, &inode)
    }

    /// At most `most` names of a directory (and never more than 4096), in the order in which they lie in it, from `cursor` on: 0, or
    /// [`DirectoryEntry::next`] of the last that was had. None: there are no more. `.` and `..` are not among them.
    ///
    /// Directories of a hostile image may contain each other: who walks down has to limit the depth.
    ///
    /// # Errors
    /// As [`Ext4::lookup`]; without read permission on the directory.
    pub fn list(
        &mut self,
        disk: &mut dyn Disk,
        path: &[u8],
        who: &Credentials<'_>,
        cursor: u64,
        most: usize,
    ) -> Result<Vec<DirectoryEntry>, Ext4Error> {
        self.begin(disk)?;
        let found = self.walk(disk, path, who, true)?;
        let inode = found.inode;
        if inode.kind != Kind::Directory {
            return Err(Ext4Error::NotADirectory { path: found.path });
        }
        let permissions = self.permissions(disk, &inode)?;
        if !permissions.allows(who, Rights::READ) {
            return Err(walk::denied(who, "list", found.path, &permissions));
        }
        walk::check_served(&inode)?;
        let mut entries = Vec::new();
        let most = most.min(MAX_LISTED);
        if most == 0 {
            return Ok(entries);
        }
        self.scan(disk, &inode, cursor, &mut |entry| {
            if entry.name != b"." && entry.name != b".." {
                let (name, inode, kind, next) = (entry.name.to_vec(), entry.inode, entry.kind, entry.next);
                entries.push(DirectoryEntry { name, inode, kind, next });
            }
            if entries.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(entries)
    }

    /// What is known of entries of a directory: of each what [`Ext4::stat`] would say of it, and `None` where that is an error.
    /// None of all if `who` may not search the directory.
    ///
    /// # Errors
    /// As [`Ext4::lookup`] of the directory.
    pub fn attributes_of(
        &mut self,
        disk: &mut dyn Disk,
        path: &[u8],
        who: &Credentials<'_>,
        entries: &[DirectoryEntry],
    ) -> Result<Vec<Option<Attributes>>, Ext4Error> {
        self.begin(disk)?;
        let inode = self.walk(disk, path, who, true)?.inode;
        let searches = self.permissions(disk, &inode)?.allows(who, Rights::SEARCH);
        let mut known = |entry: &DirectoryEntry| {
            let inode = self.inode(disk, entry.inode).ok()?;
            let permissions = self.permissions(disk, &inode).ok()?;
            Some(Attributes::new(&inode, permissions))
        };
        Ok(entries.iter().map(|entry| if searches { known(entry) } else { None }).collect())
    }
}

#[cfg(test)]
mod tests;
