//! Looking at a device: is there a store on it, something else, or nothing?

use driver::disk::Disk;

use crate::StoreError;
use crate::shadow::has_root;
use crate::signature::{Ends, WINDOW};
use crate::superblock::{Found, Kind, Layout, PAGE, Superblock};

/// Reads the device's first and last part.
pub(crate) fn read_ends(disk: &mut dyn Disk) -> Result<Ends, StoreError> {
    let geometry = *disk.geometry();
    if ![9, 12].contains(&geometry.block_shift) {
        let found = 1u64.checked_shl(geometry.block_shift.into()).unwrap_or(0);
        return Err(StoreError::BlockSize { found, wanted: "a store needs 512 or 4096".to_owned() });
    }
    let window = geometry.blocks.min(WINDOW >> geometry.block_shift);
    let bytes = geometry.blocks.saturating_mul(geometry.block_size().into());
    let mut read = |lba| {
        let mut data = vec![0; usize::try_from(window << geometry.block_shift).unwrap_or(0)];
        disk.read(lba, &mut data).map(|()| data)
    };
    Ok(Ends { head: read(0)?, tail: read(geometry.blocks - window)?, bytes })
}

/// Where the second copy of the superblock is, if the device did not change its size.
fn second_copy(kind: Kind, ends: &Ends) -> Found {
    let rest = usize::try_from(ends.bytes % PAGE as u64).unwrap_or(0);
    let start = ends.tail.len().checked_sub(rest + PAGE);
    let page = start.and_then(|start| ends.tail.get(start..));
    page.map_or(Found::Nothing, |page| Superblock::decode(kind, page))
}

/// The superblock that counts.
pub(crate) fn find_superblock(kind: Kind, ends: &Ends) -> Result<Superblock, StoreError> {
    let first = Superblock::decode(kind, &ends.head);
    if let Found::Superblock(superblock) = first {
        // Of a device of this size both copies are written together and only their version is ever changed.
        return match second_copy(kind, ends) {
            Found::Superblock(second)
                if (second.uuid, second.layout) != (superblock.uuid, superblock.layout)
                    && second.layout.blocks == superblock.layout.blocks =>
            {
                let what = "its two superblocks contradict each other: a part of another store lies on it";
                Err(StoreError::Damaged { what: what.to_owned() })
            }
            Found::Superblock(second) if second.uuid == superblock.uuid => {
                Ok(Superblock { version: superblock.version.max(second.version), ..superblock })
            }
            _ => Ok(superblock),
        };
    }
    if let Found::Refused(error @ (StoreError::Version { .. } | StoreError::Features { .. })) = first {
        return Err(error);
    }
    // Somebody else's disk by now, even if our second copy is still there.
    if let (Found::Nothing, Some(what)) = (&first, ends.foreign()) {
        return Err(StoreError::Foreign { what: what.to_owned() });
    }
    match (second_copy(kind, ends), first) {
        (Found::Superblock(superblock), _) => Ok(superblock),
        (Found::Refused(error), _) | (_, Found::Refused(error)) => Err(error),
        _ if ends.head.get(PAGE..).is_some_and(has_root) => Err(StoreError::Damaged {
            what: "there is metadata, but no superblock: it was destroyed, or formatting was interrupted"
                .to_owned(),
        }),
        _ if ends.blank() && ends.bytes > 0 => Err(StoreError::Blank),
        _ if ends.bytes < WINDOW => {
            Err(StoreError::TooSmall { bytes: ends.bytes, needed: Layout::smallest() })
        }
        _ => Err(StoreError::Foreign { what: "data of an unknown kind".to_owned() }),
    }
}

/// What formatting would destroy.
pub(crate) fn occupant(ends: &Ends) -> Option<String> {
    occupant_of(Kind::Store, ends).or_else(|| occupant_of(Kind::Files, ends))
}

fn occupant_of(kind: Kind, ends: &Ends) -> Option<String> {
    match find_superblock(kind, ends) {
        Ok(superblock) => Some(format!("a portcullis {} ({})", kind.name(), hex(&superblock.uuid))),
        Err(StoreError::Foreign { .. } | StoreError::Blank | StoreError::TooSmall { .. }) => {
            ends.foreign().map(str::to_owned)
        }
        // Only what is left of an interrupted format has no superblock at all.
        Err(_)
            if matches!(
                (Superblock::decode(kind, &ends.head), second_copy(kind, ends)),
                (Found::Nothing, Found::Nothing)
            ) =>
        {
            None
        }
        Err(error) => Some(format!("a portcullis {} that cannot be opened ({error})", kind.name())),
    }
}

/// Writes a copy of the superblock that is not as it should be.
pub(crate) fn repair_superblocks(disk: &mut dyn Disk, superblock: &Superblock) -> Result<(), StoreError> {
    let wanted = superblock.encode();
    for lba in superblock.layout.superblocks() {
        let mut page = vec![0; PAGE];
        if disk.read(lba, &mut page).is_err() || page != wanted {
            tracing::warn!(lba, "a copy of the superblock was damaged; it is written anew");
            disk.write(lba, &wanted)?;
            disk.flush()?;
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
