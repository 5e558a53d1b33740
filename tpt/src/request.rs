//! A request as the tables see it, and the reasons to refuse it.

use crate::{ExtensionKey, Key, Operation, RegionKey};

/// Memory named by a request: a range of a registered region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memory {
    /// The region.
    pub region: RegionKey,
    /// Bytes from the region's start; a multiple of 4, but for [`Operation::WriteBytes`]. The length is the request's.
    pub offset: u64,
}

/// A typed request. Nothing in it has been checked yet; all of it is hostile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// What is asked for.
    pub operation: Operation,
    /// Under which grant, or of which opened file.
    pub key: Key,
    /// In which extension of the file. With [`ExtensionKey::NONE`] the request may reach over several, and of a grant of
    /// blocks it must be that: a grant has no extensions.
    pub extension: ExtensionKey,
    /// Bytes from the start of the grant, the file, or the extension if one is named. Zero for a flush.
    pub offset: u64,
    /// Bytes. Zero for a flush, and only then.
    pub length: u64,
    /// Where the data is; ignored for operations that move none, and for lists of memory
    /// ([`Directory::check_scattered`](crate::Directory::check_scattered)).
    pub memory: Memory,
}

/// Why a request was refused: the first check that failed, in the order of SYSTEMS 0.3 with the segment's domain
/// first. A refused request changes nothing and costs no other domain a fetch or an eviction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum Denied {
    /// E_KEY_RANGE
    #[error("the key's index is beyond the table, or the extension's number beyond those of the file")]
    KeyRange,
    /// E_SEGMENT
    #[error("the table segment could not be fetched")]
    Segment,
    /// E_ENTRY_INVALID: of the grant or file, or of the extension.
    #[error("the entry is not valid")]
    EntryInvalid,
    /// E_KEY_INSTANCE: of the key, or of the extension's.
    #[error("the key is stale: its instance differs from the entry's")]
    KeyInstance,
    /// E_PD_MISMATCH: also where the whole segment is another domain's, or nobody's yet.
    #[error("the entry belongs to another protection domain")]
    Domain,
    /// E_ACCESS
    #[error("the access control value does not permit the operation")]
    Access,
    /// E_BOUNDS
    #[error("the range is empty or goes beyond the entry, or beyond the extension that was named")]
    Bounds,
    /// E_ALIGN
    #[error("offset or length is not a multiple of the block size")]
    Alignment,
    /// E_LOCAL_MEM
    #[error("the memory region's key, rights, bounds or alignment do not cover the request")]
    Memory,
    /// E_TABLE_CORRUPT
    #[error("a pointer of the entry leads outside its table, or to what was damaged")]
    TableCorrupt,
    /// E_HOLE, or E_NO_RESOURCES to who would write
    #[error("the range touches a part of the file that has no blocks")]
    Hole,
    /// The entry is being modified: hold the request and ask again next turn (SYSTEMS, requests during quiesce).
    /// Not an answer to the application.
    #[error("the entry is being modified; ask again")]
    Held,
}
