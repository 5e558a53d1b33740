//! Directories (kernel documentation, filesystems/ext4, "Directory Entries").
//!
//! A directory with an index is read as one without: the blocks of the index look like blocks with unused entries
//! ("Hash Tree Directories"), and are checked for what they are.

use std::ops::ControlFlow;
use std::sync::Arc;

use driver::disk::Disk;
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::checksum::crc32c;
use super::error::damaged;
use super::extents::{Mapping, owner_of};
use super::inode::{Inode, flags};
use super::superblock::Checksums;
use super::{Ext4, Ext4Error, Kind, MAX_DIRECTORY, Place};

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    inode: U32,
    length: U16,
    name_length: u8,
    kind: u8,
}

/// Bytes before the name.
const HEAD: usize = 8;
const _: () = assert!(size_of::<Raw>() == HEAD);
/// Bytes of the smallest entry: a name of one byte, filled up to four.
const LEAST: usize = 12;
/// The entry at the end of a block that holds its checksum.
const TAIL: usize = 12;
const TAIL_KIND: u8 = 0xde;
/// Bytes of an entry of an index, and of the tail behind the last that there is room for.
const INDEX_ENTRY: usize = 8;

/// An entry that is in use.
pub(super) struct Entry<'a> {
    pub(super) inode: u32,
    pub(super) name: &'a [u8],
    pub(super) kind: Option<Kind>,
    /// Where the next entry begins, in bytes from the start of the directory.
    pub(super) next: u64,
}

impl Ext4 {
    /// Shows each entry from byte `cursor` of the directory on, until told to stop.
    pub(super) fn scan(
        &mut self,
        disk: &mut dyn Disk,
        directory: &Inode,
        cursor: u64,
        show: &mut dyn FnMut(&Entry<'_>) -> ControlFlow<()>,
    ) -> Result<(), Ext4Error> {
        let blocks = self.directory_blocks(disk, directory)?;
        let size = self.superblock.block_size() as u64;
        for (index, number) in
            blocks.numbers().enumerate().skip(usize::try_from(cursor / size).unwrap_or(usize::MAX))
        {
            let start = index as u64 * size;
            let place = Place::DirectoryBlock { inode: directory.number, block: number };
            let content: Arc<[u8]> = self.block(disk, number)?;
            let mut at = 0;
            let end = self.checked_block(place, directory, index, &content)?;
            while at < end {
                let (raw, name, next) = entry(place, content.get(..end).unwrap_or_default(), at)?;
                self.check_first(place, directory, start + at as u64, raw.inode.get(), name)?;
                let skipped = raw.inode.get() == 0 || start + (at as u64) < cursor;
                at = next;
                if skipped {
                    continue;
                }
                if raw.inode.get() > self.superblock.inodes || name.is_empty() || name.contains(&b'/') {
                    let what =
                        format!("an entry {:?} names inode {}", name.escape_ascii().to_string(), raw.inode);
                    return Err(damaged(place, what));
                }
                let shown = Entry {
                    inode: raw.inode.get(),
                    name,
                    kind: Kind::of_entry(raw.kind),
                    next: start + next as u64,
                };
                if show(&shown).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Where the directory is. Its blocks are part of the zone from then on.
    fn directory_blocks(&mut self, disk: &mut dyn Disk, directory: &Inode) -> Result<Mapping, Ext4Error> {
        let place = directory.place();
        let refuse = |what: &str| Err(Ext4Error::Refused { inode: directory.number, what: what.to_owned() });
        if directory.has(flags::CASEFOLD) {
            return refuse("is a directory without regard to case, whose names cannot be compared here");
        }
        let size = self.superblock.block_size() as u64;
        if directory.length == 0 || !directory.length.is_multiple_of(size) {
            return Err(damaged(place, format!("it is a directory of {} bytes", directory.length)));
        }
        if directory.length > MAX_DIRECTORY {
            return Err(Ext4Error::TooMuch {
                what: "the length of the directory",
                value: directory.length,
                most: MAX_DIRECTORY,
                advice: "spread its files over several directories",
            });
        }
        let mut mapping = self.mapping(disk, directory)?;
        let mut blocks = directory.length / size;
        let mut next = 0;
        for extent in &mut mapping.extents {
            if next < blocks && (extent.logical != next || !extent.written) {
                return Err(damaged(place, format!("its block {next} was never written")));
            }
            next = extent.logical + extent.count;
        }
        if next < blocks {
            return Err(damaged(place, format!("it is a directory of {blocks} blocks and has {next}")));
        }
        // What was allocated ahead is no part of it.
        for extent in &mut mapping.extents {
            extent.count = extent.count.min(blocks);
            blocks -= extent.count;
        }
        mapping.extents.retain(|extent| extent.count > 0);
        for extent in &mapping.extents {
            self.touch(owner_of(directory), extent.physical, extent.count)?;
        }
        Ok(mapping)
    }

    /// Looks at a block's checksum; where its entries end.
    fn checked_block(
        &self,
        place: Place,
        directory: &Inode,
        index: usize,
        content: &[u8],
    ) -> Result<usize, Ext4Error> {
        if self.superblock.checksums != Checksums::Everything {
            return Ok(content.len());
        }
        let indexed = directory.has(flags::INDEX) && is_index(index, content);
        let missing = || damaged(place, "there is no checksum at its end");
        let (at, computed) = checksum(directory.seed, indexed, index, content).ok_or_else(missing)?;
        let stored = content.get(at..at + 4).unwrap_or_default().try_into().map_or(0, u32::from_le_bytes);
        // The entry with the checksum is none.
        let end = if indexed { content.len() } else { content.len() - TAIL };
        if stored != computed {
            return Err(Ext4Error::Checksum { place, stored, computed });
        }
        Ok(end)
    }

    /// The first entry of a directory is itself, the second the one that it is in.
    fn check_first(
        &self,
        place: Place,
        directory: &Inode,
        at: u64,
        inode: u32,
        name: &[u8],
    ) -> Result<(), Ext4Error> {
        let good = match at {
            0 => name == b"." && inode == directory.number,
            12 => name == b"..",
            _ => true,
        };
        if !good {
            let name = name.escape_ascii();
            return Err(damaged(place, format!("its entry at byte {at} is \"{name}\", of inode {inode}")));
        }
        Ok(())
    }
}

impl Mapping {
    /// Block for block.
    fn numbers(&self) -> impl Iterator<Item = u64> {
        self.extents.iter().flat_map(|extent| extent.physical..extent.physical + extent.count)
    }
}

/// Where the head of the index (its limit and count) is, if the block is part of one: behind "." and ".." in the first
/// block, behind one unused entry as long as the block in others.
fn index_head(index: usize, content: &[u8]) -> Option<usize> {
    if index == 0 {
        return Some(32);
    }
    let (raw, _) = Raw::ref_from_prefix(content).ok()?;
    let inner = raw.inode.get() == 0 && usize::from(raw.length.get()) == content.len();
    inner.then_some(8)
}

/// Whether the block is part of the index of a directory that has one.
pub(super) fn is_index(index: usize, content: &[u8]) -> bool {
    index_head(index, content).is_some()
}

/// Where the checksum of a block is, and what it should be.
///
/// Of a block of an index it covers all up to the last entry in use, and the tail behind the last entry that there is
/// room for, with zero for the checksum; of another, all but the entry that holds it.
pub(super) fn checksum(seed: u32, indexed: bool, index: usize, content: &[u8]) -> Option<(usize, u32)> {
    if !indexed {
        let (covered, tail) = content.split_at_checked(content.len().checked_sub(TAIL)?)?;
        return match tail {
            [0, 0, 0, 0, 12, 0, 0, TAIL_KIND, ..] => Some((content.len() - 4, crc32c(seed, covered))),
            _ => None,
        };
    }
    let head = index_head(index, content)?;
    let word = |at: usize| Some(usize::from(u16::from_le_bytes(*content.get(at..)?.first_chunk()?)));
    let (limit, count) = (word(head)?, word(head + 2)?);
    let tail = head + limit * INDEX_ENTRY;
    let reserved = content.get(tail..)?.first_chunk::<INDEX_ENTRY>()?.get(..4)?;
    let covered = content.get(..head + count * INDEX_ENTRY).filter(|_| count <= limit)?;
    Some((tail + 4, [covered, reserved, &[0; 4]].into_iter().fold(seed, crc32c)))
}

/// The entry at byte `at` of a block: with its name, and where the next one begins.
fn entry(place: Place, content: &[u8], at: usize) -> Result<(&Raw, &[u8], usize), Ext4Error> {
    let broken = |why: &str| damaged(place, format!("the entry at byte {at} {why}"));
    let rest = content.get(at..).unwrap_or_default();
    let (raw, names) = Raw::ref_from_prefix(rest).map_err(|_| broken("is cut off"))?;
    let length = usize::from(raw.length.get());
    if length < LEAST || !length.is_multiple_of(4) || length > rest.len() {
        return Err(broken(&format!("has {length} bytes")));
    }
    let name = names.get(..raw.name_length.into()).filter(|name| HEAD + name.len() <= length);
    let name =
        name.ok_or_else(|| broken(&format!("has {length} bytes and a name of {}", raw.name_length)))?;
    Ok((raw, name, at + length))
}
