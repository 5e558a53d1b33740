//! The journal: that there is nothing in it to be replayed (kernel documentation, filesystems/ext4, "Journal (jbd2)").

use driver::disk::Disk;
use zerocopy::byteorder::big_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::checksum::crc32c;
use super::error::damaged;
use super::{Ext4, Ext4Error, Place};

const MAGIC: u32 = 0xc03b_3998;
/// A superblock of the second version; the first has no features and is no longer made.
const SUPERBLOCK_V2: u32 = 4;
/// The superblock has a checksum (JBD2_FEATURE_INCOMPAT_CSUM_V2, _V3).
const CHECKSUMS: u32 = 0x8 | 0x10;
const BYTES: usize = 1024;
const CHECKSUM_AT: usize = 0xfc;

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    magic: U32,
    kind: U32,
    _header_sequence: U32,
    block_size: U32,
    _length: U32,
    _first: U32,
    _sequence: U32,
    start: U32,
    errno: U32,
    _compatible: U32,
    incompatible: U32,
}

impl Ext4 {
    /// Looks at the superblock of the journal, which begins in this block.
    pub(super) fn check_journal(&mut self, disk: &mut dyn Disk, block: u64) -> Result<(), Ext4Error> {
        let content = self.block(disk, block)?;
        let short = || damaged(Place::Journal, "it is too short");
        let bytes = content.get(..BYTES).ok_or_else(short)?;
        let (raw, _) = Raw::ref_from_prefix(bytes).map_err(|_| short())?;
        let wrong = raw.magic.get() != MAGIC
            || raw.kind.get() != SUPERBLOCK_V2
            || u64::from(raw.block_size.get()) != self.superblock.block_size() as u64;
        if wrong {
            let what = format!(
                "it has magic {:#x}, block type {}, blocks of {} bytes",
                raw.magic.get(),
                raw.kind.get(),
                raw.block_size.get()
            );
            return Err(damaged(Place::Journal, what));
        }
        if let Some(computed) = checksum(bytes) {
            let stored = bytes.get(CHECKSUM_AT..CHECKSUM_AT + 4).unwrap_or_default();
            let stored = stored.try_into().map_or(0, u32::from_be_bytes);
            if stored != computed {
                return Err(Ext4Error::Checksum { place: Place::Journal, stored, computed });
            }
        }
        let what = if raw.start.get() != 0 {
            format!("the journal has transactions from its block {}", raw.start.get())
        } else if raw.errno.get() != 0 {
            format!("the journal was given up with error {}", raw.errno.get().cast_signed())
        } else {
            return Ok(());
        };
        Err(Ext4Error::NotClean { what })
    }
}

/// What the checksum of a journal's superblock should be, if it has one.
pub(super) fn checksum(bytes: &[u8]) -> Option<u32> {
    let (raw, _) = Raw::ref_from_prefix(bytes).ok()?;
    let (before, rest) = bytes.split_at_checked(CHECKSUM_AT)?;
    let pieces = [before, &[0; 4], rest.get(4..BYTES - CHECKSUM_AT)?];
    (raw.incompatible.get() & CHECKSUMS != 0).then(|| pieces.into_iter().fold(!0, crc32c))
}
