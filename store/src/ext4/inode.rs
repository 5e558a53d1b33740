//! Inodes (kernel documentation, filesystems/ext4, "Index Nodes").

use std::sync::Arc;

use driver::disk::Disk;
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::checksum::crc32c;
use super::error::damaged;
use super::superblock::{Checksums, Superblock};
use super::{Ext4, Ext4Error, Place, features};
use crate::permission::TYPE_MASK;

/// The part of an inode that each has.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    mode: U16,
    uid: U16,
    size_lo: U32,
    atime: U32,
    ctime: U32,
    mtime: U32,
    _dtime: U32,
    gid: U16,
    links: U16,
    blocks_lo: U32,
    flags: U32,
    _version: U32,
    block: [u8; 60],
    generation: U32,
    file_acl_lo: U32,
    size_high: U32,
    _fragment: U32,
    blocks_high: U16,
    file_acl_high: U16,
    uid_high: U16,
    gid_high: U16,
    checksum_lo: U16,
    _reserved: U16,
}

/// Bytes of that part.
const CORE: usize = 128;
const _: () = assert!(size_of::<Raw>() == CORE);

/// What may follow it, as far as `extra_isize` says.
const CHECKSUM_LO_AT: usize = 0x7c;
const CHECKSUM_HI_AT: usize = 0x82;
const CTIME_EXTRA_AT: usize = 0x84;
const MTIME_EXTRA_AT: usize = 0x88;
const ATIME_EXTRA_AT: usize = 0x8c;

/// Flags of inodes ("i_flags"); the names are those of chattr(1) where it has one.
pub(super) mod flags {
    /// Nothing may change the file.
    pub(crate) const IMMUTABLE: u32 = 0x10;
    /// The file only grows.
    pub(crate) const APPEND: u32 = 0x20;
    /// The content is encrypted.
    pub(crate) const ENCRYPT: u32 = 0x800;
    /// A directory has an index.
    pub(crate) const INDEX: u32 = 0x1000;
    /// Its number of blocks counts blocks of the file system, not of 512 bytes.
    pub(crate) const HUGE_FILE: u32 = 0x4_0000;
    /// There is an extent tree.
    pub(crate) const EXTENTS: u32 = 0x8_0000;
    /// The content is protected by a hash tree.
    pub(crate) const VERITY: u32 = 0x10_0000;
    /// It is the value of an extended attribute.
    pub(crate) const EA_INODE: u32 = 0x20_0000;
    /// The content is in the inode.
    pub(crate) const INLINE_DATA: u32 = 0x1000_0000;
    /// Names are compared without regard to case.
    pub(crate) const CASEFOLD: u32 = 0x4000_0000;
    /// Those that change nothing for us: secrm, unrm, compr, sync, nodump, noatime, dirty, nocompr, journal_data, notail,
    /// dirsync, topdir, huge_file, eofblocks, dax, projinherit, reserved.
    pub(crate) const HARMLESS: u32 = 0x1
        | 0x2
        | 0x4
        | 0x8
        | 0x40
        | 0x80
        | 0x100
        | 0x400
        | 0x4000
        | 0x8000
        | 0x1_0000
        | 0x2_0000
        | 0x4_0000
        | 0x40_0000
        | 0x200_0000
        | 0x2000_0000
        | 0x8000_0000;
}

/// What an inode is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Pipe,
    /// A socket.
    Socket,
}

impl Kind {
    /// With its article.
    pub const fn name(self) -> &'static str {
        match self {
            Self::File => "a regular file",
            Self::Directory => "a directory",
            Self::Link => "a symbolic link",
            Self::CharacterDevice => "a character device",
            Self::BlockDevice => "a block device",
            Self::Pipe => "a named pipe",
            Self::Socket => "a socket",
        }
    }

    fn of_mode(mode: u16) -> Option<Self> {
        Some(match mode & TYPE_MASK {
            0o100_000 => Self::File,
            0o040_000 => Self::Directory,
            0o120_000 => Self::Link,
            0o020_000 => Self::CharacterDevice,
            0o060_000 => Self::BlockDevice,
            0o010_000 => Self::Pipe,
            0o140_000 => Self::Socket,
            _ => return None,
        })
    }

    /// As a directory entry says it ("Directory Entries").
    pub(super) fn of_entry(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::File,
            2 => Self::Directory,
            3 => Self::CharacterDevice,
            4 => Self::BlockDevice,
            5 => Self::Pipe,
            6 => Self::Socket,
            7 => Self::Link,
            _ => return None,
        })
    }
}

/// A moment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Timestamp {
    /// Seconds since the start of 1970, UTC.
    pub seconds: i64,
    /// Nanoseconds after that, less than 10^9.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// "Inode Timestamps": two bits of `extra` widen the seconds, the others are nanoseconds.
    fn new(seconds: u32, extra: u32) -> Self {
        let epoch = i64::from(extra & 3) << 32;
        Self { seconds: i64::from(seconds.cast_signed()) + epoch, nanoseconds: (extra >> 2).min(999_999_999) }
    }
}

/// An inode, parsed.
#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub(super) number: u32,
    pub(super) kind: Kind,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) links: u16,
    pub(super) flags: u32,
    pub(super) length: u64,
    /// Bytes of blocks that it has, by its own account.
    pub(super) allocated: u64,
    /// What checksums of its other metadata begin with.
    pub(super) seed: u32,
    /// The block with extended attributes, or 0.
    pub(super) attribute_block: u64,
    pub(super) accessed: Timestamp,
    pub(super) changed: Timestamp,
    pub(super) modified: Timestamp,
    /// An extent tree's root, or a short link's target.
    pub(super) body: [u8; 60],
    /// What follows the inode proper: extended attributes.
    pub(super) tail: Arc<[u8]>,
}

impl Inode {
    pub(super) fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn place(&self) -> Place {
        Place::Inode(self.number)
    }
}

impl Ext4 {
    /// Reads an inode that somebody may name: the root, or none of the file system's own.
    pub(super) fn inode(&mut self, disk: &mut dyn Disk, number: u32) -> Result<Inode, Ext4Error> {
        let own = number < self.superblock.first_inode && number != super::ROOT;
        if own || self.superblock.journal == Some(number) || self.superblock.hidden.contains(&number) {
            return Err(damaged(
                Place::Inode(number),
                "a directory names it, but it is the file system's own",
            ));
        }
        self.any_inode(disk, number)
    }

    /// Where an inode is: the block and the byte in it ("Finding an Inode").
    pub(super) fn locate(&self, number: u32) -> Option<(u64, usize)> {
        let superblock = &self.superblock;
        let index = number.checked_sub(1).filter(|_| number <= superblock.inodes)?;
        let table = self.groups.tables.get((index / superblock.inodes_per_group) as usize)?;
        let at = (index % superblock.inodes_per_group) as usize * superblock.inode_size;
        Some((table + (at / superblock.block_size()) as u64, at % superblock.block_size()))
    }

    /// Reads any inode.
    pub(super) fn any_inode(&mut self, disk: &mut dyn Disk, number: u32) -> Result<Inode, Ext4Error> {
        let place = Place::Inode(number);
        let missing = || damaged(place, "it is named, but there is no such inode");
        let (block, start) = self.locate(number).ok_or_else(missing)?;
        let block = self.block(disk, block)?;
        let bytes = block.get(start..start + self.superblock.inode_size).ok_or_else(missing)?;
        let (raw, _) = Raw::ref_from_prefix(bytes).map_err(|_| missing())?;
        let extra = extra_size(place, bytes)?;
        let seed = seed(&self.superblock, number, raw.generation.get());
        if self.superblock.checksums == Checksums::Everything {
            let (stored, computed, _) = checksum(seed, bytes, extra);
            if stored != computed {
                return Err(Ext4Error::Checksum { place, stored, computed });
            }
        }
        if raw.links.get() == 0 {
            return Err(damaged(place, "it is named, but was deleted (0 links)"));
        }
        self.parse(number, seed, raw, bytes, extra)
    }

    fn parse(
        &self,
        number: u32,
        seed: u32,
        raw: &Raw,
        bytes: &[u8],
        extra: usize,
    ) -> Result<Inode, Ext4Error> {
        let place = Place::Inode(number);
        let mode = raw.mode.get();
        let kind = Kind::of_mode(mode).ok_or_else(|| damaged(place, format!("its mode is {mode:#o}")))?;
        let wide = |low: &U16, high: &U16| {
            let high = if self.superblock.wide_owners { high.get() } else { 0 };
            u32::from(high) << 16 | u32::from(low.get())
        };
        // The upper half means something else in other inodes.
        let long = kind == Kind::File || kind == Kind::Directory && self.superblock.has(features::LARGE_DIR);
        let high = if long { raw.size_high.get() } else { 0 };
        let length = u64::from(high) << 32 | u64::from(raw.size_lo.get());
        if length > 1 << (32 + self.superblock.block_shift) {
            return Err(damaged(place, format!("its length is {length}")));
        }
        // "i_blocks": the upper half and the flag mean something with `huge_file` only.
        let huge = self.superblock.has_huge_files();
        let blocks_high = if huge { raw.blocks_high.get() } else { 0 };
        let blocks = u64::from(blocks_high) << 32 | u64::from(raw.blocks_lo.get());
        let counted = huge && raw.flags.get() & flags::HUGE_FILE != 0;
        let allocated = blocks << if counted { self.superblock.block_shift } else { 9 };
        let time = |seconds: &U32, at: usize| {
            let end = at + 4;
            let word =
                bytes.get(at..end).filter(|_| end <= CORE + extra).and_then(|word| word.try_into().ok());
            Timestamp::new(seconds.get(), word.map_or(0, u32::from_le_bytes))
        };
        Ok(Inode {
            number,
            kind,
            mode,
            uid: wide(&raw.uid, &raw.uid_high),
            gid: wide(&raw.gid, &raw.gid_high),
            links: raw.links.get(),
            flags: raw.flags.get(),
            length,
            allocated,
            seed,
            attribute_block: u64::from(raw.file_acl_high.get()) << 32 | u64::from(raw.file_acl_lo.get()),
            accessed: time(&raw.atime, ATIME_EXTRA_AT),
            changed: time(&raw.ctime, CTIME_EXTRA_AT),
            modified: time(&raw.mtime, MTIME_EXTRA_AT),
            body: raw.block,
            tail: bytes.get(CORE + extra..).filter(|_| extra > 0).unwrap_or_default().into(),
        })
    }
}

/// What checksums of an inode begin with.
pub(super) fn seed(superblock: &Superblock, number: u32, generation: u32) -> u32 {
    [number, generation].iter().fold(superblock.seed, |seed, word| crc32c(seed, &word.to_le_bytes()))
}

/// The bytes behind the first 128 that the inode proper has.
fn extra_size(place: Place, bytes: &[u8]) -> Result<usize, Ext4Error> {
    let Some(word) = bytes.get(CORE..CORE + 2).and_then(|word| word.try_into().ok()) else { return Ok(0) };
    let extra = usize::from(u16::from_le_bytes(word));
    if extra > bytes.len() - CORE || !extra.is_multiple_of(4) {
        return Err(damaged(place, format!("its i_extra_isize is {extra}")));
    }
    Ok(extra)
}

/// The checksum of an inode as it is and as it should be (all of it, the two halves of the checksum taken as zero), and
/// whether it has the upper half.
pub(super) fn checksum(seed: u32, bytes: &[u8], extra: usize) -> (u32, u32, bool) {
    let part = |range: std::ops::Range<usize>| bytes.get(range).unwrap_or_default();
    let half = |at: usize| part(at..at + 2).try_into().map_or(0, u16::from_le_bytes);
    let high = CORE + extra >= CHECKSUM_HI_AT + 2;
    let hole = CHECKSUM_HI_AT.min(bytes.len());
    let skipped = if high { &[0; 2][..] } else { part(hole..hole + 2) };
    let after = part((hole + 2).min(bytes.len())..bytes.len());
    let pieces =
        [part(0..CHECKSUM_LO_AT), &[0; 2], part(CHECKSUM_LO_AT + 2..CORE), part(CORE..hole), skipped, after];
    let sum = pieces.into_iter().fold(seed, crc32c);
    let low = u32::from(half(CHECKSUM_LO_AT));
    if high { (u32::from(half(CHECKSUM_HI_AT)) << 16 | low, sum, true) } else { (low, sum & 0xffff, false) }
}
