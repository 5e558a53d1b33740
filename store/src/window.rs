//! A volume as a disk of its own.

use std::fmt;
use std::sync::{Arc, Weak};

use driver::block::Geometry;
use driver::disk::{Disk, DiskError, DiskFault};
use tpt::LbaRange;

use crate::Volume;
use crate::shadow::SharedShadow;
use crate::volume::map;

/// The blocks of a volume as a disk, over the disk of its store. Blocks count from the volume's start; nothing outside
/// the volume can be reached.
pub struct Window {
    shadow: SharedShadow,
    geometry: Geometry,
    extents: Vec<LbaRange>,
    /// The store looks whether it is still there.
    _in_use: Arc<()>,
}

impl Window {
    pub(crate) fn new(shadow: SharedShadow, geometry: &Geometry, volume: &Volume) -> (Self, Weak<()>) {
        let in_use = Arc::new(());
        let token = Arc::downgrade(&in_use);
        let geometry = Geometry { blocks: volume.blocks, ..*geometry };
        (Self { shadow, geometry, extents: volume.extents.clone(), _in_use: in_use }, token)
    }

    /// Calls `work` for each part of `blocks` blocks from `lba`, in order: with the disk, the part's first block there
    /// and how many it has.
    fn each(
        &mut self,
        what: &'static str,
        lba: u64,
        blocks: u64,
        mut work: impl FnMut(&mut dyn Disk, u64, u64) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        if blocks == 0 && lba <= self.geometry.blocks {
            return Ok(());
        }
        let parts = LbaRange::new(lba, blocks).and_then(|range| map(&self.extents, range));
        let parts = parts.ok_or(DiskError { what, lba, cause: DiskFault::Bounds })?;
        let mut shadow = self.shadow.lock();
        parts.into_iter().try_for_each(|part| work(shadow.disk(), part.first.0, part.count.0))
    }

    fn blocks_of(&self, what: &'static str, lba: u64, bytes: usize) -> Result<u64, DiskError> {
        let (bytes, size) = (bytes as u64, u64::from(self.geometry.block_size()));
        if bytes.is_multiple_of(size) {
            Ok(bytes / size)
        } else {
            Err(DiskError { what, lba, cause: DiskFault::Bounds })
        }
    }
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a window of {} blocks", self.geometry.blocks)
    }
}

impl Disk for Window {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn read(&mut self, lba: u64, data: &mut [u8]) -> Result<(), DiskError> {
        let blocks = self.blocks_of("read", lba, data.len())?;
        let shift = self.geometry.block_shift;
        let mut rest = data;
        self.each("read", lba, blocks, |disk, lba, blocks| {
            let bytes = usize::try_from(blocks << shift).unwrap_or(usize::MAX);
            let (part, after) = std::mem::take(&mut rest).split_at_mut(bytes);
            rest = after;
            disk.read(lba, part)
        })
    }

    fn write(&mut self, lba: u64, data: &[u8]) -> Result<(), DiskError> {
        let blocks = self.blocks_of("write", lba, data.len())?;
        let mut rest = data;
        let shift = self.geometry.block_shift;
        self.each("write", lba, blocks, |disk, lba, blocks| {
            let bytes = usize::try_from(blocks << shift).unwrap_or(usize::MAX);
            let (part, after) = rest.split_at(bytes);
            rest = after;
            disk.write(lba, part)
        })
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        self.shadow.lock().disk().flush()
    }

    fn write_zeroes(&mut self, lba: u64, blocks: u64) -> Result<(), DiskError> {
        self.each("write zeroes", lba, blocks, |disk, lba, blocks| disk.write_zeroes(lba, blocks))
    }

    fn deallocate(&mut self, lba: u64, blocks: u64) -> Result<(), DiskError> {
        self.each("deallocate", lba, blocks, |disk, lba, blocks| disk.deallocate(lba, blocks))
    }
}

#[cfg(test)]
mod tests {
    use driver::disk::MemoryDisk;

    use super::*;
    use crate::{FormatOptions, Store, StoreError};

    const UNIT: u64 = 64 << 10;

    /// A volume in two pieces, with a neighbour before, between and behind them.
    fn store(disk: &MemoryDisk) -> Store {
        let mut store = Store::format(Box::new(disk.clone()), FormatOptions::default()).unwrap();
        for name in ["a", "v", "b", "c"] {
            store.create(name, 2 * UNIT, 0).unwrap();
        }
        store.delete("b").unwrap();
        store.grow("v", 4 * UNIT).unwrap();
        store.shrink("v", 3 * UNIT).unwrap();
        store.create("fill", UNIT, 0).unwrap();
        store.grow("v", 5 * UNIT).unwrap();
        assert_eq!(store.volume("v").unwrap().extents.len(), 2);
        store
    }

    #[test]
    fn a_window_shows_its_volume_and_nothing_else() {
        for shift in [9, 12] {
            let disk = MemoryDisk::new(shift, (16 << 20) >> shift);
            let mut store = store(&disk);
            let before = disk.content();
            let mut window = store.window("v").unwrap();
            let blocks = window.geometry().blocks;
            assert_eq!(blocks << shift, 5 * UNIT);
            let mut all: Vec<u8> = (0..5 * UNIT).map(|at| ((at >> shift) % 250) as u8 + 1).collect();
            window.write(0, &all).unwrap();
            let mut found = vec![0; all.len()];
            window.read(0, &mut found).unwrap();
            assert!(found == all);
            let volume = store.volume("v").unwrap();
            for (at, lba) in
                volume.extents.iter().flat_map(|extent| extent.first.0..extent.end().0).enumerate()
            {
                let mut block = vec![0; 1 << shift];
                disk.clone().read(lba, &mut block).unwrap();
                assert!(block == all[at << shift..][..1 << shift], "block {at}");
            }
            window.write_zeroes(1, blocks - 2).unwrap();
            window.deallocate(0, blocks).unwrap();
            window.flush().unwrap();
            all[1 << shift..usize::try_from((blocks - 1) << shift).unwrap()].fill(0);
            window.read(0, &mut found).unwrap();
            assert!(found == all);
            for (lba, count) in [(blocks, 1), (blocks - 1, 2), (u64::MAX, 1), (u64::MAX - 1, 2)] {
                let data = vec![7; count << shift];
                assert_eq!(window.write(lba, &data).unwrap_err().cause, DiskFault::Bounds);
                assert_eq!(window.read(lba, &mut data.clone()).unwrap_err().cause, DiskFault::Bounds);
                assert_eq!(window.write_zeroes(lba, count as u64).unwrap_err().cause, DiskFault::Bounds);
            }
            assert_eq!(window.write(0, &[1, 2, 3]).unwrap_err().cause, DiskFault::Bounds);
            window.write_zeroes(0, blocks).unwrap();
            assert!(disk.content() == before, "nothing else was touched");
        }
    }

    #[test]
    fn a_volume_in_use_stays() {
        let disk = MemoryDisk::new(12, 4096);
        let mut store = store(&disk);
        let window = store.window("v").unwrap();
        let in_use = StoreError::InUse { name: "v".to_owned() };
        assert_eq!(store.delete("v"), Err(in_use.clone()));
        assert_eq!(store.shrink("v", 1), Err(in_use.clone()));
        assert_eq!(store.window("v").unwrap_err(), in_use);
        store.delete("a").unwrap();
        store.grow("v", 6 * UNIT).unwrap();
        assert_eq!(window.geometry().blocks << 12, 5 * UNIT, "as it was");
        drop(window);
        assert_eq!(store.window("v").unwrap().geometry().blocks << 12, 6 * UNIT);
        store.delete("v").unwrap();
    }
}
