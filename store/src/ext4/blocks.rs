//! Reading blocks of metadata, of which some are kept.

use std::collections::HashMap;
use std::sync::Arc;

use driver::disk::Disk;

use super::superblock::Superblock;
use super::{CACHED_BLOCKS, Ext4, Ext4Error, MAX_WORK};

/// Blocks that were read: those asked for since `young` was last full, and those of the time before. Only blocks that
/// belong to the file system or were taken into its zone are in it, so nobody writes them through an opened file.
#[derive(Default, Debug)]
pub(super) struct Cache {
    young: HashMap<u64, Arc<[u8]>>,
    old: HashMap<u64, Arc<[u8]>>,
}

impl Cache {
    fn get(&mut self, block: u64) -> Option<Arc<[u8]>> {
        if let Some(content) = self.young.get(&block) {
            return Some(content.clone());
        }
        let content = self.old.remove(&block)?;
        self.put(block, content.clone());
        Some(content)
    }

    fn put(&mut self, block: u64, content: Arc<[u8]>) {
        if self.young.len() >= CACHED_BLOCKS / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(block, content);
    }
}

/// Reads whole blocks of the file system from block `first`.
pub(super) fn read(
    disk: &mut dyn Disk,
    superblock: &Superblock,
    first: u64,
    data: &mut [u8],
) -> Result<(), Ext4Error> {
    let shift = superblock.block_shift - disk.geometry().block_shift;
    Ok(disk.read(first << shift, data)?)
}

impl Ext4 {
    /// Counts work for the present answer: a block looked at, or an extent.
    pub(super) fn spend(&mut self, work: u64) -> Result<(), Ext4Error> {
        self.work += work;
        if self.work > MAX_WORK {
            return Err(Ext4Error::TooMuch {
                what: "the number of blocks and extents to look at for one answer",
                value: self.work,
                most: MAX_WORK,
                advice: "use a shorter path, or smaller directories on the way",
            });
        }
        Ok(())
    }

    /// The content of a block of metadata. Counts as work.
    pub(super) fn block(&mut self, disk: &mut dyn Disk, block: u64) -> Result<Arc<[u8]>, Ext4Error> {
        self.spend(1)?;
        if let Some(content) = self.cache.get(block) {
            return Ok(content);
        }
        let mut data = vec![0; self.superblock.block_size()];
        read(disk, &self.superblock, block, &mut data)?;
        let content: Arc<[u8]> = data.into();
        self.cache.put(block, content.clone());
        Ok(content)
    }
}
