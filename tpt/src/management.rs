//! What the control plane says to the tables and what they answer.

use alloc::vec::Vec;

use crate::{Access, Blocks, Domain, Iova, Key, LbaRange};

/// How large the tables are. All of it is allocated when the tables are made: 64 bytes an entry and an LBA entry, 32 a
/// region; and in each poller's directory 2 an entry, 1 a segment and 4 a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Entries of the adapter protection table, handed to domains in segments of
    /// [`SEGMENT_ENTRIES`](crate::SEGMENT_ENTRIES): at least one segment for each domain that holds a grant.
    pub entries: u32,
    /// Entries of the LBA table: one for each contiguous range of each grant.
    pub lba_entries: u32,
    /// Entries of the memory-region table.
    pub regions: u32,
}

/// What a grant is to be.
#[derive(Clone, Copy, Debug)]
pub struct GrantSpec<'a> {
    /// Whose it is.
    pub domain: Domain,
    /// What it allows.
    pub access: Access,
    /// The block size as a power of two, 9 (512 bytes) to 16 (64 KiB).
    pub block_shift: u8,
    /// The device blocks in the order in which the grant numbers them. At least one range; none empty, none wrapping,
    /// no two overlapping.
    pub ranges: &'a [LbaRange],
    /// Other domains may hold shared grants of the same blocks. A block is either shared or one domain's own, never
    /// both at once.
    pub shared: bool,
}

/// What a memory region is to be.
#[derive(Clone, Copy, Debug)]
pub struct RegionSpec {
    /// Whose it is.
    pub domain: Domain,
    /// READ: the device may read it (a source of writes); WRITE: the device may write it (a target of reads).
    pub access: Access,
    /// Where the device sees its first byte; a multiple of 4.
    pub iova: Iova,
    /// Its size in bytes, at least 1; it must not wrap the address space.
    pub bytes: u64,
}

/// What is to change in a grant; `None` leaves it as it is.
#[derive(Clone, Copy, Default, Debug)]
pub struct Modification<'a> {
    /// The new rights.
    pub access: Option<Access>,
    /// The new blocks, by the rules of [`GrantSpec::ranges`].
    pub ranges: Option<&'a [LbaRange]>,
}

/// Why no I/O may run on an entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Purpose {
    /// Requests that arrive are held until it ends.
    Modify,
    /// Requests that arrive fail; the entry opens again if the timer ends first.
    Delete,
    /// Requests that arrive fail; the entry never opens again.
    Revoke,
}

/// What an entry says about itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// Its key.
    pub key: Key,
    /// Whose it is.
    pub domain: Domain,
    /// What it allows.
    pub access: Access,
    /// The block size as a power of two.
    pub block_shift: u8,
    /// Its size in device blocks.
    pub blocks: Blocks,
    /// Where its blocks are. For the control plane: an application never learns an LBA.
    pub ranges: Vec<LbaRange>,
    /// Whether other domains may hold the same blocks.
    pub shared: bool,
}

/// What is in use.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Usage {
    /// Entries of the adapter protection table.
    pub entries: u32,
    /// Entries of the LBA table.
    pub lba_entries: u32,
    /// Memory regions.
    pub regions: u32,
}

/// Why a management operation was refused. A refused operation changes nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum TableError {
    /// E_KEY_RANGE
    #[error("the key's index is beyond the table")]
    KeyRange,
    /// E_PD_MISMATCH: the entry, or the segment that its index lies in, is another domain's.
    #[error("the entry belongs to another protection domain")]
    Domain,
    /// E_ENTRY_INVALID: nothing there, or it is being deleted or was revoked.
    #[error("the entry is not valid")]
    EntryInvalid,
    /// E_KEY_INSTANCE
    #[error("the key is stale: its instance differs from the entry's")]
    KeyInstance,
    /// E_PARAM
    #[error(
        "a range is empty, wraps or overlaps another, the block size is not supported, or an address is unaligned"
    )]
    Parameter,
    /// E_NO_RESOURCES
    #[error("no free entry, LBA entry or region")]
    NoResources,
    /// The blocks are held by another domain, or shared where exclusive ones were asked for, or the reverse.
    #[error("some of the blocks are granted to another domain, and not as shared")]
    Overlap,
    /// The next key instance is not below the persistent ceiling: raise and persist it, then ask again.
    #[error("the key instance would reach the persistent ceiling")]
    Ceiling,
    /// Another management operation has begun on this entry and not ended.
    #[error("another management operation is active on the entry")]
    Busy,
}
