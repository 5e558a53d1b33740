//! What the control plane says to the tables and what they answer.

use alloc::vec::Vec;

use crate::{Access, Blocks, Domain, ExtensionKey, Iova, Key, LbaRange};

/// How large the tables are. All of it is allocated when the tables are made: 64 bytes an entry, an extension and an LBA
/// entry, 32 a region; and in each poller's directory 2 an entry, 1 a segment and 4 a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Entries of the adapter protection table, handed to domains in segments of
    /// [`SEGMENT_ENTRIES`](crate::SEGMENT_ENTRIES): at least one segment for each domain that holds a grant.
    pub entries: u32,
    /// Entries of the LBA table: one for each contiguous range of each grant, and one for each extension of each file.
    pub lba_entries: u32,
    /// Entries of the file extension protection table. Each opened file has a segment of it: as many as it has extensions,
    /// and up to the next power of two.
    pub extensions: u32,
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

/// What an opened file is to be. Opened by several domains it has an entry for each.
#[derive(Clone, Copy, Debug)]
pub struct FileSpec<'a> {
    /// Whose it is.
    pub domain: Domain,
    /// What it allows.
    pub access: Access,
    /// The block size as a power of two, 9 (512 bytes) to 16 (64 KiB).
    pub block_shift: u8,
    /// The device blocks of its extensions in the order of the file: each range becomes one extension, also one that is a
    /// [hole](LbaRange::hole). There may be none; none is empty or wraps, no two overlap.
    pub extents: &'a [LbaRange],
    /// Other domains may have the same blocks in files that are shared, too. A block of a file is never granted by
    /// [`GrantSpec`] meanwhile, to nobody.
    pub shared: bool,
    /// What [`Directory::context`](crate::Directory::context) says of what is granted of it: the caller's number.
    pub context: u32,
}

/// The keys of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileKeys {
    /// Of the file (FN_Key).
    pub file: Key,
    /// Of its extensions (FE_Keys), in the order of the file.
    pub extensions: Vec<ExtensionKey>,
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

/// What is to change in an opened file. By default nothing does.
#[derive(Clone, Copy, Default, Debug)]
pub struct FileModification<'a> {
    /// The new rights.
    pub access: Option<Access>,
    /// So many device blocks stay, from the start of the file: what is behind them is cut off. Extensions of which nothing
    /// stays end, and their keys are stale for ever; the last one of which something stays is shorter and keeps its key.
    pub keep: Option<Blocks>,
    /// What is appended after that, by the rules of [`FileSpec::extents`]. A range that goes on, on the device, where the
    /// file ends makes the last extension longer, which keeps its key; each other one becomes an extension.
    pub append: &'a [LbaRange],
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
    /// Where its blocks are; of a file those of each extension. For the control plane: an application never learns an
    /// LBA.
    pub ranges: Vec<LbaRange>,
    /// Whether other domains may hold the same blocks.
    pub shared: bool,
    /// What only a file has; `None` of a grant of blocks.
    pub file: Option<FileAttributes>,
}

/// What only a file says about itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileAttributes {
    /// The number that it was created with.
    pub context: u32,
    /// Its extensions, in its order: one for each of [`Attributes::ranges`].
    pub extensions: Vec<ExtensionAttributes>,
}

/// One extension of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExtensionAttributes {
    /// Its key.
    pub key: ExtensionKey,
    /// Bytes of the file before it.
    pub offset: u64,
    /// Its size in bytes.
    pub bytes: u64,
}

/// What is in use.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Usage {
    /// Entries of the adapter protection table.
    pub entries: u32,
    /// Entries of the LBA table.
    pub lba_entries: u32,
    /// Entries of the file extension protection table, in the segments of files: those that are in reserve there, too.
    pub extensions: u32,
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
    #[error(
        "no free entry, LBA entry, region or segment of file extensions, or too many extensions in one file"
    )]
    NoResources,
    /// The blocks are held by another domain, or shared where exclusive ones were asked for, or the reverse.
    #[error("some of the blocks are granted to another domain, and not as shared")]
    Overlap,
    /// The next key instance is not below the persistent ceiling: raise and persist it, then ask again.
    #[error("the key instance would reach the persistent ceiling")]
    Ceiling,
    /// E_PARAM
    #[error("the key is of an opened file where a grant of blocks is meant, or the reverse")]
    Kind,
    /// The file's segment has no room for more extensions, or the file has no extension yet: append by a modification.
    #[error(
        "the file's segment of the extension table is full, or the file is empty; append by a modification"
    )]
    SegmentFull,
    /// Another management operation has begun on this entry and not ended.
    #[error("another management operation is active on the entry")]
    Busy,
}
