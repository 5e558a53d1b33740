//! What a store on a device and a file system in a volume have in common: a superblock with its copy, a metadata file,
//! and how they come about and are opened again.

use driver::block::Geometry;
use driver::disk::Disk;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::StoreError;
use crate::probe::{find_superblock, occupant, read_ends, repair_superblocks};
use crate::shadow::{Shadow, SharedShadow};
use crate::signature::{Ends, WINDOW};
use crate::superblock::{FIRST_VERSION, Kind, Layout, PAGE, Superblock};

/// Opened: the metadata file can be read, and what is in it was not looked at.
pub(crate) struct Container {
    pub(crate) shadow: SharedShadow,
    pub(crate) superblock: Superblock,
    pub(crate) geometry: Geometry,
}

impl Container {
    /// Lays `kind` out on `disk`, whose ends are `ends`, with what `fill` puts into the metadata file. Refuses a disk
    /// that holds something, unless forced.
    pub(crate) fn format(
        kind: Kind,
        mut disk: Box<dyn Disk>,
        ends: &Ends,
        layout: Layout,
        (uuid, force): (Option<[u8; 16]>, bool),
        fill: impl FnOnce(SharedShadow) -> Result<(), StoreError>,
    ) -> Result<Self, StoreError> {
        if let Some(what) = occupant(ends).filter(|_| !force) {
            return Err(StoreError::Occupied { what });
        }
        let uuid = uuid.map_or_else(random_uuid, Ok)?;
        let superblock = Superblock { kind, version: FIRST_VERSION, uuid, layout };
        let geometry = *disk.geometry();
        // A crash from here on leaves neither what was there nor something of ours, until the superblocks are written.
        let window = WINDOW >> layout.block_shift;
        for first in [0, layout.blocks - window] {
            disk.write_zeroes(first, window)?;
        }
        disk.flush()?;
        let shadow = SharedShadow::new(Shadow::create(disk, layout, superblock.uuid)?);
        fill(shadow.clone())?;
        write_superblocks(&shadow, &superblock)?;
        shadow.lock().reload()?;
        Ok(Self { shadow, superblock, geometry })
    }

    /// What of `kind` is on `disk`.
    pub(crate) fn open(kind: Kind, mut disk: Box<dyn Disk>) -> Result<Self, StoreError> {
        let ends = read_ends(&mut *disk)?;
        let superblock = find_superblock(kind, &ends)?;
        let layout = superblock.layout;
        let geometry = *disk.geometry();
        if geometry.block_shift != layout.block_shift {
            let wanted = format!("the {} was formatted with {}", kind.name(), 1u32 << layout.block_shift);
            return Err(StoreError::BlockSize { found: geometry.block_size().into(), wanted });
        }
        if geometry.blocks < layout.blocks {
            let needed = layout.blocks << layout.block_shift;
            return Err(StoreError::TooSmall { bytes: ends.bytes, needed });
        }
        let mut shadow = Shadow::open(disk, layout, superblock.uuid)?;
        if shadow.len() == 0 {
            // The database would take it for a new file.
            let what = format!("the metadata is as it was before the {} was first used", kind.name());
            return Err(StoreError::Damaged { what });
        }
        // Only now is it known whose they are.
        repair_superblocks(shadow.disk(), &superblock)?;
        Ok(Self { shadow: SharedShadow::new(shadow), superblock, geometry })
    }
}

/// Writes both copies, one after the other, so that there is always a good one.
pub(crate) fn write_superblocks(shadow: &SharedShadow, superblock: &Superblock) -> Result<(), StoreError> {
    let mut shadow = shadow.lock();
    for copy in [1, 0] {
        shadow.disk().write(superblock.layout.superblocks()[copy], &superblock.encode())?;
        shadow.disk().flush()?;
    }
    Ok(())
}

/// What [`verify`] does not like.
pub(crate) enum Unsound {
    /// A copy of the superblock, 0 at the start, 1 at the end.
    Superblock { copy: usize, what: String },
    /// A block of the metadata area.
    Metadata { what: String },
}

/// Reads the superblocks and all of the metadata area that counts.
pub(crate) fn verify(shadow: &SharedShadow, superblock: &Superblock) -> Vec<Unsound> {
    let mut found = Vec::new();
    let mut shadow = shadow.lock();
    for (copy, lba) in superblock.layout.superblocks().into_iter().enumerate() {
        let mut page = vec![0; PAGE];
        let what = match shadow.disk().read(lba, &mut page) {
            Err(error) => error.to_string(),
            Ok(()) if page != superblock.encode() => "it is not what was written".to_owned(),
            Ok(()) => continue,
        };
        found.push(Unsound::Superblock { copy, what });
    }
    let faults = shadow.verify().into_iter().map(StoreError::from);
    found.extend(faults.map(|fault| Unsound::Metadata { what: fault.to_string() }));
    found
}

/// A random UUID, version 4 (RFC 9562, section 5.4). An adapter that serves may open no file, so that the kernel is asked by its call.
fn random_uuid() -> Result<[u8; 16], StoreError> {
    let mut uuid = [0; 16];
    // Up to 256 bytes come whole or not at all.
    getrandom(&mut uuid, GetRandomFlags::empty()).map_err(|error| StoreError::Options {
        what: format!("the kernel gives no random UUID ({error}): give one"),
    })?;
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Ok(uuid)
}
