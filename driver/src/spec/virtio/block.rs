//! Block devices (5.2).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Capacity, positions and lengths count these, whatever the size of a block is (5.2.4).
pub const SECTOR_SHIFT: u8 = 9;

/// Feature bits (5.2.3).
pub mod feature {
    /// `size_max` says how long a segment may be.
    pub const SIZE_MAX: u64 = 1 << 1;
    /// `seg_max` says how many segments a request may have.
    pub const SEG_MAX: u64 = 1 << 2;
    /// The device cannot be written.
    pub const RO: u64 = 1 << 5;
    /// `blk_size` says how long a block is.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// There is a flush.
    pub const FLUSH: u64 = 1 << 9;
    /// Optimal sizes and alignments are told.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// `writeback` says whether there is a volatile write cache, and changes it.
    pub const CONFIG_WCE: u64 = 1 << 11;
    /// There is more than one queue.
    pub const MQ: u64 = 1 << 12;
    /// There is a discard.
    pub const DISCARD: u64 = 1 << 13;
    /// There is a write zeroes.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Offsets in `struct virtio_blk_config` (5.2.4), in bytes.
pub mod config {
    /// Sectors of the device, 64 bits.
    pub const CAPACITY: usize = 0;
    /// Bytes of a segment at most, 32 bits.
    pub const SIZE_MAX: usize = 8;
    /// Segments of a request at most, 32 bits.
    pub const SEG_MAX: usize = 12;
    /// Bytes of a block, 32 bits.
    pub const BLK_SIZE: usize = 20;
    /// Blocks of a physical block, as a power of two, 8 bits.
    pub const PHYSICAL_BLOCK_EXP: usize = 24;
    /// Where the first aligned block is, 8 bits.
    pub const ALIGNMENT_OFFSET: usize = 25;
    /// The smallest good transfer, in blocks, 16 bits.
    pub const MIN_IO_SIZE: usize = 26;
    /// The best transfer, in blocks, 32 bits.
    pub const OPT_IO_SIZE: usize = 28;
    /// 1 with a volatile write cache, 8 bits.
    pub const WRITEBACK: usize = 32;
    /// Request queues, 16 bits.
    pub const NUM_QUEUES: usize = 34;
    /// Sectors of a discard at most, 32 bits.
    pub const MAX_DISCARD_SECTORS: usize = 36;
    /// Ranges of a discard at most, 32 bits.
    pub const MAX_DISCARD_SEG: usize = 40;
    /// What discards are best aligned to, in sectors, 32 bits.
    pub const DISCARD_SECTOR_ALIGNMENT: usize = 44;
    /// Sectors of a write zeroes at most, 32 bits.
    pub const MAX_WRITE_ZEROES_SECTORS: usize = 48;
    /// Ranges of a write zeroes at most, 32 bits.
    pub const MAX_WRITE_ZEROES_SEG: usize = 52;
    /// 1 if a write zeroes may deallocate, 8 bits.
    pub const WRITE_ZEROES_MAY_UNMAP: usize = 56;
    /// Bytes up to here.
    pub const BYTES: usize = 60;
}

/// Types of requests (5.2.6).
pub mod request {
    /// Read.
    pub const IN: u32 = 0;
    /// Write.
    pub const OUT: u32 = 1;
    /// Flush.
    pub const FLUSH: u32 = 4;
    /// The device's id: [`super::ID_LEN`] bytes of ASCII, filled up with zeros.
    pub const GET_ID: u32 = 8;
    /// Discard.
    pub const DISCARD: u32 = 11;
    /// Write zeroes.
    pub const WRITE_ZEROES: u32 = 13;
}

/// Bytes of a device's id (5.2.6).
pub const ID_LEN: usize = 20;

/// Status of a request (5.2.6): the last byte that the device writes of it.
pub mod status {
    /// Done.
    pub const OK: u8 = 0;
    /// An error of device or driver.
    pub const IOERR: u8 = 1;
    /// The device does not have that.
    pub const UNSUPP: u8 = 2;
}

/// How a request begins (5.2.6).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RequestHeader {
    /// See [`request`].
    pub kind: u32,
    /// 0.
    pub reserved: u32,
    /// The first sector of a read or write; 0 for others.
    pub sector: u64,
}

/// Bytes of one.
pub const HEADER_LEN: usize = 16;
const _: () = assert!(size_of::<RequestHeader>() == HEADER_LEN);

/// A range to discard or to zero (5.2.6: `struct virtio_blk_discard_write_zeroes`).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Range {
    /// The first sector.
    pub sector: u64,
    /// How many.
    pub sectors: u32,
    /// [`UNMAP`], or 0.
    pub flags: u32,
}

/// Bytes of one.
pub const RANGE_LEN: usize = 16;
const _: () = assert!(size_of::<Range>() == RANGE_LEN);

/// In a [`Range`] to be zeroed: the device may deallocate it. It reads as zero all the same (5.2.6.2).
pub const UNMAP: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literal_bytes() {
        let header = RequestHeader { kind: request::OUT, reserved: 0, sector: 0x0102 };
        assert_eq!(header.as_bytes(), [1, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
        let range = Range { sector: 7, sectors: 0x1_0000, flags: UNMAP };
        assert_eq!(range.as_bytes(), [7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0]);
    }
}
