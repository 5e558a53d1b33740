//! Translation protection tables: the one place that decides who may touch which blocks.
//!
//! A request names a grant by a [`Key`] (an index and an instance) and a range of bytes inside it. [`Directory::check`]
//! finds the entry, compares instance, domain, access and bounds, checks the memory region, and answers with a
//! [`Grant`] that knows the device blocks, or with a [`Denied`] that says which check failed first.
//!
//! Two sides share the tables:
//! - [`Tables`], owned by the control plane, is authoritative: create, query, modify, delete, revoke, quiesce.
//! - [`Directory`], one for each poller, holds a bounded number of pointers to published segments and its own
//!   counts of active I/O. Nothing shared is written on the hot path.
//!
//! What is deliberately not here: no ring, no device, no thread, no clock, no file, no unsafe code.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
#[cfg(any(test, debug_assertions, feature = "oracle"))]
extern crate std; // in a debug build only for `std::thread::panicking`

mod access;
mod claims;
mod directory;
mod grant;
mod id;
mod lba_table;
mod management;
#[cfg(feature = "oracle")]
pub mod oracle;
mod published;
mod regions;
mod request;
mod self_check;
mod slots;
mod tables;

pub use access::{Access, Operation};
pub use directory::{Directory, DirectoryCounters, Pieces};
pub use grant::{Grant, Piece, leaked_grants};
pub use id::{Blocks, Domain, EntryIndex, Iova, Key, KeyInstance, Lba, LbaRange, RegionIndex, RegionKey};
pub use management::{Attributes, GrantSpec, Limits, Modification, Purpose, RegionSpec, TableError, Usage};
pub use published::{Published, SEGMENT_ENTRIES, Segment, SegmentSource};
pub use regions::RegionQuiesce;
pub use request::{Denied, Memory, Request};
pub use tables::{Quiesce, Tables};
