//! A device without a store of ours: what another program made on it is served as it is found.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use driver::block::Geometry;
use driver::disk::{Disk, DiskError};
use rustix::rand::{GetRandomFlags, getrandom};
use tpt::{Access, LbaRange};

use crate::ext4::{Ext4Error, Mounted};
use crate::probe::{find_superblock, read_ends};
use crate::superblock::Kind;
use crate::{Limits, StoreError, Subject, Volume, VolumeId, VolumeKind};

/// See the module. All of the device is one volume, [`Found::VOLUME`]. Nothing of ours is ever written to it; what users may
/// do with its files is what the files say.
pub struct Found {
    disk: SharedDisk,
    geometry: Geometry,
    volume: Volume,
    next_instance: u32,
}

impl Found {
    /// What the volume is called.
    pub const VOLUME: &str = "disk";

    /// Looks at what is on `disk`.
    ///
    /// # Errors
    /// [`StoreError::NotServed`] for anything but an ext4 that was left clean and has nothing that is refused.
    pub fn open(mut disk: Box<dyn Disk>) -> Result<Self, StoreError> {
        let ends = read_ends(&mut *disk)?;
        let not_served = |what: String| StoreError::NotServed { what };
        let is_ours = match find_superblock(Kind::Store, &ends) {
            Err(error) => {
                !matches!(error, StoreError::Foreign { .. } | StoreError::Blank | StoreError::TooSmall { .. })
            }
            Ok(_) => true,
        };
        if is_ours {
            return Err(not_served("it is a portcullis store: start without --as-found".to_owned()));
        }
        let geometry = *disk.geometry();
        let all = LbaRange::new(0, geometry.blocks);
        let all = all.ok_or_else(|| not_served("it has no blocks".to_owned()))?;
        let disk = SharedDisk::new(disk);
        Mounted::open(Box::new(disk.clone())).map_err(|error| match error {
            Ext4Error::Disk(error) => StoreError::Disk(error),
            Ext4Error::NotExt4 { .. } => {
                let what = ends.foreign().unwrap_or("nothing that is known here");
                not_served(format!("an ext4 is, and it holds {what}"))
            }
            error => not_served(error.to_string()),
        })?;
        let volume = Volume {
            id: VolumeId(1),
            name: Self::VOLUME.to_owned(),
            owner: 0,
            blocks: geometry.blocks,
            extents: vec![all],
            access: vec![(Subject::Everyone, Access::READ_WRITE)],
            limits: Limits::default(),
            kind: VolumeKind::AsFound,
        };
        Ok(Self { disk, geometry, volume, next_instance: first_instance()? })
    }

    /// The one volume.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    /// All of the device as a disk.
    pub fn disk(&self) -> Box<dyn Disk> {
        Box::new(self.disk.clone())
    }

    /// The device's shape.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// `count` key instances that this value did not return before. There is no place on the device to write down which were
    /// used: each start begins somewhere in the lower half of all, by chance.
    ///
    /// # Errors
    /// [`StoreError::InstancesExhausted`].
    pub fn reserve_instances(&mut self, count: u32) -> Result<Range<u32>, StoreError> {
        let first = self.next_instance;
        let left = u32::MAX - first;
        self.next_instance =
            first.checked_add(count).ok_or(StoreError::InstancesExhausted { asked: count, left })?;
        Ok(first..self.next_instance)
    }

    /// Reads one block, so that the device's queue is polled at least once.
    ///
    /// # Errors
    /// The device's.
    pub fn touch(&mut self) -> Result<(), StoreError> {
        let mut block = vec![0; self.geometry.block_size() as usize];
        Ok(self.disk.read(0, &mut block)?)
    }
}

fn first_instance() -> Result<u32, StoreError> {
    let mut bytes = [0; 4];
    // Up to 256 bytes come whole or not at all.
    getrandom(&mut bytes, GetRandomFlags::empty()).map_err(|error| StoreError::NotServed {
        what: format!("the kernel gives no random number to begin keys with ({error})"),
    })?;
    Ok(u32::from_ne_bytes(bytes) >> 1 | 1)
}

/// A disk that several use, one call after another.
#[derive(Clone)]
struct SharedDisk {
    disk: Arc<Mutex<Box<dyn Disk>>>,
    geometry: Geometry,
}

impl SharedDisk {
    fn new(disk: Box<dyn Disk>) -> Self {
        let geometry = *disk.geometry();
        Self { disk: Arc::new(Mutex::new(disk)), geometry }
    }

    /// A panic in a call leaves nothing of ours half done.
    fn lock(&self) -> MutexGuard<'_, Box<dyn Disk>> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk for SharedDisk {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn read(&mut self, lba: u64, data: &mut [u8]) -> Result<(), DiskError> {
        self.lock().read(lba, data)
    }

    fn write(&mut self, lba: u64, data: &[u8]) -> Result<(), DiskError> {
        self.lock().write(lba, data)
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        self.lock().flush()
    }

    fn write_zeroes(&mut self, lba: u64, blocks: u64) -> Result<(), DiskError> {
        self.lock().write_zeroes(lba, blocks)
    }

    fn deallocate(&mut self, lba: u64, blocks: u64) -> Result<(), DiskError> {
        self.lock().deallocate(lba, blocks)
    }
}

#[cfg(test)]
mod tests {
    use driver::disk::MemoryDisk;

    use super::*;
    use crate::ext4::image::Image;
    use crate::permission::Credentials;
    use crate::{FormatOptions, Store};

    #[test]
    fn a_device_with_an_ext4_is_one_volume_and_nothing_is_written() {
        let image = Image::make(16 << 20, &[]).unwrap();
        let disk = image.disk(9).unwrap();
        let before = disk.content();
        let mut found = Found::open(Box::new(disk.clone())).unwrap();
        let volume = found.volume().clone();
        assert_eq!((volume.name.as_str(), volume.blocks, volume.kind), ("disk", 32768, VolumeKind::AsFound));
        assert_eq!(volume.access_for(1234, 5, &[]), Access::READ_WRITE);
        assert_eq!(found.geometry().blocks, 32768);
        let mut mounted = Mounted::open(found.disk()).unwrap();
        let root = mounted.guarded(|ext4, disk| ext4.lookup(disk, b"/", &Credentials::ROOT, true));
        assert_eq!(root, Ok(2));
        found.touch().unwrap();
        let first = found.reserve_instances(10).unwrap();
        let second = found.reserve_instances(5).unwrap();
        assert!(first.start > 0 && first.start < 1 << 31);
        assert_eq!((first.len(), second.start, second.len()), (10, first.end, 5));
        let left = found.reserve_instances(u32::MAX).unwrap_err();
        assert!(matches!(left, StoreError::InstancesExhausted { asked: u32::MAX, .. }));
        assert!(disk.content() == before);
    }

    #[test]
    fn what_is_no_clean_ext4_is_refused_by_name() {
        let refused = |disk: MemoryDisk| Found::open(Box::new(disk)).err().unwrap().to_string();
        let image = Image::make(16 << 20, &[]).unwrap();
        let dirty = image.disk(9).unwrap();
        dirty.alter(2, |bytes| bytes[0x60] |= 4); // needs_recovery
        let why = refused(dirty);
        assert!(why.contains("checksum") || why.contains("journal"), "{why}");
        let mut image = vec![0; 512];
        image[510..].copy_from_slice(&[0x55, 0xaa]);
        let partitioned = MemoryDisk::new(9, 4096);
        partitioned.alter(0, |bytes| bytes.copy_from_slice(&image));
        assert!(refused(partitioned).contains("an MBR partition table"));
        assert!(refused(MemoryDisk::new(9, 4096)).contains("nothing that is known here"));
        let ours = MemoryDisk::new(9, 64 << 11);
        drop(Store::format(Box::new(ours.clone()), FormatOptions::default()).unwrap());
        assert!(refused(ours).contains("start without --as-found"));
    }
}
