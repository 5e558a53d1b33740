//! Against e2fsprogs: what debugfs says of an image, file by file, and what has to be refused.

mod agree;
mod hostile;
mod refuse;
mod rights;
mod walk;

use driver::disk::MemoryDisk;

use super::forge::Part;
use super::image::Image;
use super::superblock::Superblock;
use super::{Ext4, Ext4Error, OpenedFile, Place};
use crate::permission::{Credentials, Rights};

const ROOT: Credentials<'static> = Credentials::ROOT;

/// A healthy image of 1 KiB blocks in memory, and what can be forged in it.
struct Healthy {
    disk: MemoryDisk,
    superblock: Superblock,
    parts: Vec<Part>,
}

impl Healthy {
    /// Of an image, as it is now.
    fn of(image: &Image) -> Self {
        let mut disk = image.disk(9).unwrap();
        let mut ext4 = Ext4::open(&mut disk).unwrap();
        let parts = ext4.parts(&mut disk).unwrap();
        Self { disk, superblock: ext4.superblock, parts }
    }

    /// The part at a place.
    fn part(&self, is: impl Fn(Place) -> bool) -> &Part {
        self.parts.iter().find(|part| is(part.place)).unwrap()
    }

    /// A copy in which `bytes` stand at `at` of a part, with a checksum that fits.
    fn forged(&self, is: impl Fn(Place) -> bool, at: usize, bytes: &[u8]) -> MemoryDisk {
        let disk = self.disk.copy();
        self.part(is)
            .forge(&self.superblock, &disk, |part| part[at..at + bytes.len()].copy_from_slice(bytes));
        disk
    }

    /// What opening says of a copy with another superblock.
    fn with_superblock(&self, at: usize, bytes: &[u8]) -> Result<Ext4, Ext4Error> {
        Ext4::open(&mut self.forged(|place| place == Place::Superblock, at, bytes))
    }

    /// The inode that a path names.
    fn inode(&self, path: &str) -> u32 {
        let mut disk = self.disk.clone();
        Ext4::open(&mut disk).unwrap().lookup(&mut disk, path.as_bytes(), &ROOT, false).unwrap()
    }
}

fn read(ext4: &mut Ext4, disk: &mut MemoryDisk, path: &str) -> Result<OpenedFile, Ext4Error> {
    ext4.open_file(disk, path.as_bytes(), &ROOT, Rights::READ)
}

fn write(ext4: &mut Ext4, disk: &mut MemoryDisk, path: &str) -> Result<OpenedFile, Ext4Error> {
    ext4.open_file(disk, path.as_bytes(), &ROOT, Rights::READ | Rights::WRITE)
}
