//! Metadata changed with checksums that fit again: how tests and fuzzers get behind the checksums.

use std::ops::ControlFlow;

use driver::disk::{Disk, MemoryDisk};

use super::checksum::crc32c;
use super::inode::flags;
use super::superblock::{Checksums, Superblock};
use super::{Ext4, Ext4Error, Kind, Place, ROOT, attributes, blocks, directory, groups, inode, journal};

/// A piece of metadata that has a checksum, in a healthy image.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) place: Place,
    /// The file system's block that it is in, and where.
    pub(super) block: u64,
    pub(super) start: usize,
    pub(super) length: usize,
    /// What its checksum begins with, where that is not its own business.
    seed: u32,
    /// Of a block of a directory: which one, and whether it is part of an index.
    index: usize,
    indexed: bool,
}

impl Ext4 {
    /// All parts of a healthy image that a path leads to, and those of the whole.
    pub(super) fn parts(&mut self, disk: &mut dyn Disk) -> Result<Vec<Part>, Ext4Error> {
        let size = self.superblock.block_size();
        let part = |place, block, start, length| Part {
            place,
            block,
            start,
            length,
            seed: self.superblock.seed,
            index: 0,
            indexed: false,
        };
        let mut parts = vec![part(Place::Superblock, self.superblock.first_data_block, 1024 % size, 1024)];
        let each = self.superblock.descriptors_per_block();
        for group in 0..self.superblock.groups {
            let (number, at) =
                (u64::from(group) / each, usize::try_from(u64::from(group) % each).unwrap_or(0));
            let length = self.superblock.descriptor_size;
            let block = self.superblock.descriptor_block(number);
            parts.push(part(Place::Group(group), block, at * length, length));
        }
        if let Some(journal) = self.superblock.journal {
            // The first extent of a tree without depth: its blocks are in the zone, so a mapping is refused.
            let body = self.any_inode(disk, journal)?.body;
            let first = body.get(20..24).and_then(|word| word.try_into().ok()).map_or(0, u32::from_le_bytes);
            let block = u64::from(first);
            parts.push(Part { place: Place::Journal, block, start: 0, length: 1024, ..parts[0].clone() });
        }
        let mut todo = vec![ROOT];
        let mut seen = Vec::new();
        while let Some(number) = todo.pop() {
            if !seen.contains(&number) {
                seen.push(number);
                self.parts_of(disk, number, &mut parts, &mut todo)?;
            }
        }
        Ok(parts)
    }

    /// Those of one inode; what it contains goes to `todo`.
    fn parts_of(
        &mut self,
        disk: &mut dyn Disk,
        number: u32,
        parts: &mut Vec<Part>,
        todo: &mut Vec<u32>,
    ) -> Result<(), Ext4Error> {
        let inode = self.any_inode(disk, number)?;
        let (block, start) = self.locate(number).unwrap_or_default();
        let whole = Part {
            place: inode.place(),
            block,
            start,
            length: self.superblock.inode_size,
            seed: inode.seed,
            index: 0,
            indexed: false,
        };
        parts.push(whole.clone());
        let of_block = |place, block| Part {
            place,
            block,
            start: 0,
            length: self.superblock.block_size(),
            ..whole.clone()
        };
        if inode.attribute_block != 0 {
            let block = inode.attribute_block;
            parts.push(of_block(Place::AttributeBlock { inode: number, block }, block));
        }
        if !inode.has(flags::EXTENTS) {
            return Ok(());
        }
        let mapping = self.mapping(disk, &inode)?;
        for node in mapping.nodes {
            let size = self.superblock.block_size();
            let place = Place::ExtentNode { inode: number, block: node };
            parts.push(Part { place, block: node, start: 0, length: size, ..whole.clone() });
        }
        if inode.kind != Kind::Directory {
            return Ok(());
        }
        let numbers =
            mapping.extents.iter().flat_map(|extent| extent.physical..extent.physical + extent.count);
        for (index, block) in numbers.enumerate() {
            let content = self.block(disk, block)?;
            let indexed = inode.has(flags::INDEX) && directory::is_index(index, &content);
            let place = Place::DirectoryBlock { inode: number, block };
            parts.push(Part {
                place,
                block,
                start: 0,
                length: content.len(),
                index,
                indexed,
                ..whole.clone()
            });
        }
        self.scan(disk, &inode, 0, &mut |entry| {
            if entry.name != b"." && entry.name != b".." {
                todo.push(entry.inode);
            }
            ControlFlow::Continue(())
        })
    }
}

impl Part {
    /// Changes its bytes, and nothing else.
    pub(super) fn alter(&self, superblock: &Superblock, disk: &MemoryDisk, change: impl FnOnce(&mut [u8])) {
        let mut disk = disk.clone();
        let mut content = vec![0; superblock.block_size()];
        if blocks::read(&mut disk, superblock, self.block, &mut content).is_err() {
            return;
        }
        content.get_mut(self.start..self.start + self.length).map(change);
        let shift = superblock.block_shift - disk.geometry().block_shift;
        let _ = disk.write(self.block << shift, &content);
    }

    /// Changes its bytes, and its checksum so that it fits.
    pub(super) fn forge(&self, superblock: &Superblock, disk: &MemoryDisk, change: impl FnOnce(&mut [u8])) {
        self.alter(superblock, disk, |bytes| {
            change(bytes);
            self.seal(superblock, bytes);
        });
    }

    /// Writes the checksum that fits, where there is one.
    fn seal(&self, superblock: &Superblock, bytes: &mut [u8]) {
        for (at, half) in self.checksum(superblock, bytes).into_iter().flatten() {
            if let Some(place) = bytes.get_mut(at..at + half.len()) {
                place.copy_from_slice(&half);
            }
        }
    }

    /// The checksum, in two halves, each with its place.
    fn checksum(&self, superblock: &Superblock, bytes: &[u8]) -> Option<[(usize, [u8; 2]); 2]> {
        let whole = |at: usize, sum: u32| {
            let [a, b, c, d] = sum.to_le_bytes();
            Some([(at, [a, b]), (at + 2, [c, d])])
        };
        let word =
            |at: usize| bytes.get(at..at + 2).and_then(|word| Some(u16::from_le_bytes(*word.first_chunk()?)));
        if let Place::Group(group) = self.place {
            let sum = groups::checksum(superblock, group, bytes)?.to_le_bytes();
            return Some([(groups::CHECKSUM_AT, sum); 2]);
        }
        if superblock.checksums != Checksums::Everything {
            return None;
        }
        match self.place {
            Place::Superblock => whole(1020, crc32c(!0, bytes.get(..1020)?)),
            Place::Group(_) => None,
            Place::Inode(number) => {
                let generation = u32::from_le_bytes(*bytes.get(0x64..)?.first_chunk()?);
                let extra = word(128).filter(|_| bytes.len() > 128).map_or(0, usize::from);
                let (_, sum, high) =
                    inode::checksum(inode::seed(superblock, number, generation), bytes, extra);
                let [a, b, c, d] = sum.to_le_bytes();
                Some([(0x7c, [a, b]), if high { (0x82, [c, d]) } else { (0x7c, [a, b]) }])
            }
            Place::ExtentNode { .. } => {
                let at = 12 + 12 * usize::from(word(4)?);
                whole(at, crc32c(self.seed, bytes.get(..at)?))
            }
            Place::DirectoryBlock { .. } => {
                let (at, sum) = directory::checksum(self.seed, self.indexed, self.index, bytes)?;
                whole(at, sum)
            }
            Place::AttributeBlock { block, .. } => {
                whole(attributes::CHECKSUM_AT, attributes::checksum(superblock.seed, block, bytes))
            }
            Place::Journal => whole(0xfc, journal::checksum(bytes)?.swap_bytes()),
        }
    }
}
