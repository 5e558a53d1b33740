//! Block groups: where inodes are, and which blocks are the file system's own (kernel documentation,
//! filesystems/ext4, "Block Group Descriptors" and "Block Groups").

use driver::disk::Disk;
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::checksum::{crc16, crc32c};
use super::error::damaged;
use super::superblock::{Checksums, Superblock};
use super::zone::{Owner, Ranges};
use super::{Ext4Error, Place, blocks, features};

/// The part of a descriptor that is there without the feature `64bit`.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Low {
    block_bitmap: U32,
    inode_bitmap: U32,
    inode_table: U32,
    _counts: [U16; 9],
    checksum: U16,
}

/// What follows with it.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct High {
    block_bitmap: U32,
    inode_bitmap: U32,
    inode_table: U32,
}

/// Where the checksum is in a descriptor.
pub(super) const CHECKSUM_AT: usize = 0x1e;
const _: () = assert!(size_of::<Low>() == CHECKSUM_AT + 2);

/// The groups of a file system.
#[derive(Debug, Default)]
pub(super) struct Groups {
    /// The first block of each group's inode table.
    pub(super) tables: Vec<u64>,
    /// The blocks that are the file system's own.
    pub(super) zone: Ranges,
}

impl Groups {
    /// Reads all descriptors. What they name lies in the file system and does not overlap.
    pub(super) fn read(disk: &mut dyn Disk, superblock: &Superblock) -> Result<Self, Ext4Error> {
        let mut groups = Self::default();
        let per_block = superblock.descriptors_per_block();
        let descriptor_blocks = u64::from(superblock.groups).div_ceil(per_block);
        if superblock.has(features::META_BG) && superblock.first_meta_group > descriptor_blocks {
            let what = format!("its first meta block group is {}", superblock.first_meta_group);
            return Err(damaged(Place::Superblock, what));
        }
        let mut block = vec![0; superblock.block_size()];
        let mut group = 0;
        for number in 0..descriptor_blocks {
            blocks::read(disk, superblock, superblock.descriptor_block(number), &mut block)?;
            for descriptor in block.chunks_exact(superblock.descriptor_size) {
                if group == superblock.groups {
                    break;
                }
                groups.take(superblock, group, descriptor)?;
                group += 1;
            }
        }
        Ok(groups)
    }

    /// Takes one descriptor, and what belongs to the file system in its group.
    fn take(&mut self, superblock: &Superblock, group: u32, descriptor: &[u8]) -> Result<(), Ext4Error> {
        check(superblock, group, descriptor)?;
        let broken = || damaged(Place::Group(group), "it is too short");
        let (low, rest) = Low::ref_from_prefix(descriptor).map_err(|_| broken())?;
        let [mut block_bitmap, mut inode_bitmap, mut table] =
            [&low.block_bitmap, &low.inode_bitmap, &low.inode_table].map(|word| u64::from(word.get()));
        if superblock.has(features::BITS64) {
            let (high, _) = High::ref_from_prefix(rest).map_err(|_| broken())?;
            block_bitmap |= u64::from(high.block_bitmap.get()) << 32;
            inode_bitmap |= u64::from(high.inode_bitmap.get()) << 32;
            table |= u64::from(high.inode_table.get()) << 32;
        }
        let head = superblock.head_blocks(group);
        for (owner, first, count) in [
            (Owner::GroupHead(group), superblock.group_start(group), head),
            (Owner::BlockBitmap(group), block_bitmap, 1),
            (Owner::InodeBitmap(group), inode_bitmap, 1),
            (Owner::InodeTable(group), table, superblock.table_blocks()),
        ] {
            let lies_inside = first >= superblock.first_data_block
                && first.checked_add(count).is_some_and(|end| end <= superblock.blocks);
            if !lies_inside {
                let what =
                    format!("{owner} is said to be {count} blocks from {first} of {}", superblock.blocks);
                return Err(damaged(Place::Group(group), what));
            }
            if count > 0 {
                self.claim(owner, first, count)?;
            }
        }
        self.tables.push(table);
        Ok(())
    }

    /// Adds blocks to those that are the file system's own; refused if they are already.
    pub(super) fn claim(&mut self, owner: Owner, first: u64, count: u64) -> Result<(), Ext4Error> {
        match self.zone.owner(first, count) {
            Some(other) => Err(Ext4Error::Overlap { claimant: owner, first, count, owner: other }),
            None => self.zone.add(owner, first, count),
        }
    }
}

/// Looks at a descriptor's checksum.
fn check(superblock: &Superblock, group: u32, descriptor: &[u8]) -> Result<(), Ext4Error> {
    let Some(computed) = checksum(superblock, group, descriptor) else { return Ok(()) };
    let stored = Low::ref_from_prefix(descriptor).map_or(0, |(low, _)| low.checksum.get());
    if stored != computed {
        let (stored, computed) = (stored.into(), computed.into());
        return Err(Ext4Error::Checksum { place: Place::Group(group), stored, computed });
    }
    Ok(())
}

/// What a descriptor's checksum should be, if it has one.
pub(super) fn checksum(superblock: &Superblock, group: u32, descriptor: &[u8]) -> Option<u16> {
    let number = group.to_le_bytes();
    let before = descriptor.get(..CHECKSUM_AT).unwrap_or_default();
    let after = descriptor.get(CHECKSUM_AT + 2..).unwrap_or_default();
    match superblock.checksums {
        Checksums::None => None,
        Checksums::Groups => Some([&superblock.uuid[..], &number, before, after].into_iter().fold(!0, crc16)),
        Checksums::Everything => {
            let sum = [&number[..], before, &[0; 2], after].into_iter().fold(superblock.seed, crc32c);
            u16::try_from(sum & 0xffff).ok()
        }
    }
}

impl Superblock {
    /// Where block `number` of the descriptors is: behind the superblock, or with `meta_bg` at the start of the first
    /// group that it describes.
    pub(super) fn descriptor_block(&self, number: u64) -> u64 {
        if !self.has(features::META_BG) || number < self.first_meta_group {
            return self.first_data_block + 1 + number;
        }
        let group = u32::try_from(number * self.descriptors_per_block()).unwrap_or(u32::MAX);
        self.group_start(group) + u64::from(self.has_superblock(group))
    }

    /// Blocks at the start of a group that are a superblock, descriptors and their room to grow.
    fn head_blocks(&self, group: u32) -> u64 {
        let superblock = u64::from(self.has_superblock(group));
        let per_block = self.descriptors_per_block();
        let meta_group = u64::from(group) / per_block;
        if self.has(features::META_BG) && meta_group >= self.first_meta_group {
            // In the first two and the last group of a meta group there is the one block with its descriptors.
            let place = u64::from(group) % per_block;
            return superblock + u64::from(place < 2 || place == per_block - 1);
        }
        let descriptors = if self.has(features::META_BG) {
            self.first_meta_group
        } else {
            u64::from(self.groups).div_ceil(per_block)
        };
        superblock * (1 + descriptors + self.reserved_gdt_blocks)
    }
}
