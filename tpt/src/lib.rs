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
//! ```
//! use tpt::*;
//!
//! let limits = Limits { entries: 1024, lba_entries: 4096, extensions: 0, regions: 64 };
//! let mut tables = Tables::<32>::new(limits, KeyInstance(1));
//! let mut directory = Directory::new(tables.published(), 16);
//!
//! // The control plane grants blocks 1000..1008 and 20..24 for reading, into memory that the device may write.
//! let (domain, access) = (Domain(7), Access::READ);
//! let ranges = [LbaRange::new(1000, 8), LbaRange::new(20, 4)].map(Option::unwrap);
//! let key = tables.create(&GrantSpec { domain, access, block_shift: 9, ranges: &ranges, shared: false })?;
//! let region = RegionSpec { domain, access: Access::WRITE, iova: Iova(0x10000), bytes: 65536 };
//! let memory = Memory { region: tables.create_region(&region)?, offset: 0 };
//!
//! // A poller decides, and has a token until the device is done.
//! let request = Request { operation: Operation::Read, key, extension: ExtensionKey::NONE, offset: 7 * 512, length: 1024, memory };
//! let grant = directory.check(domain, &request)?;
//! let pieces: Vec<_> = directory.pieces(&grant, 0).map(|piece| (piece.lba.0, piece.iova.0)).collect();
//! assert_eq!(pieces, [(1007, 0x10000), (20, 0x10200)]);
//!
//! // Revoked: nothing more is admitted, and the entry ends when no poller has I/O on it.
//! let revocation = tables.begin(None, key, Purpose::Revoke)?;
//! assert_eq!(directory.check(domain, &request).unwrap_err(), Denied::EntryInvalid);
//! assert!(!directory.entry_is_idle(revocation.entry()));
//! directory.release(grant);
//! assert!(directory.entry_is_idle(revocation.entry()));
//! tables.finish_delete(revocation);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A key may also name an opened file, which has extensions: contiguous ranges of blocks, each with a key of its own that
//! means something only beside the file's. A request names a byte of the file and may reach over several extensions, or
//! one of them and a byte of that. Extensions are appended while requests run; the keys that there are stay good.
//!
//! ```
//! use tpt::*;
//!
//! let limits = Limits { entries: 64, lba_entries: 64, extensions: 64, regions: 1 };
//! let mut tables = Tables::<32>::new(limits, KeyInstance(1));
//! let mut directory = Directory::new(tables.published(), 4);
//! let (domain, access) = (Domain(7), Access::READ | Access::WRITE | Access::TRIM);
//!
//! let extents = [LbaRange::new(1000, 8), LbaRange::new(20, 4), LbaRange::new(50, 4)].map(Option::unwrap);
//! let spec = FileSpec { domain, access, block_shift: 12, extents: &extents, shared: false, context: 3 };
//! let FileKeys { file, extensions } = tables.create_file(&spec)?;
//!
//! let memory = Memory { region: RegionKey::default(), offset: 0 };
//! let (operation, none) = (Operation::Deallocate, ExtensionKey::NONE);
//! let over = Request { operation, key: file, extension: none, offset: 7 * 4096, length: 8192, memory };
//! let grant = directory.check(domain, &over)?;
//! assert_eq!(directory.pieces(&grant, 0).map(|piece| piece.lba.0).collect::<Vec<_>>(), [1007, 20]);
//! assert_eq!(directory.context(&grant), Some(3));
//! directory.release(grant);
//!
//! // With the key of an extension its end is the end.
//! let inside = Request { extension: extensions[1], offset: 3 * 4096, ..over };
//! assert_eq!(directory.check(domain, &inside).unwrap_err(), Denied::Bounds);
//!
//! let more = tables.extend_file(Some(domain), file, &[LbaRange::new(70, 4).unwrap()])?;
//! let appended = Request { extension: more[0], offset: 0, ..over };
//! let grant = directory.check(domain, &appended)?;
//! assert_eq!(directory.only_piece(&grant).map(|piece| (piece.lba.0, piece.blocks)), Some((70, 2)));
//! directory.release(grant);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
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
mod fept;
mod files;
mod grant;
mod id;
mod lba_table;
mod management;
#[cfg(feature = "oracle")]
pub mod oracle;
mod published;
mod regions;
mod request;
mod segments;
mod self_check;
mod slots;
mod tables;
mod trace;

pub use access::{Access, Operation};
pub use directory::{Directory, DirectoryCounters, MOST_ACTIVE, OpenFile, Pieces, Place};
pub use grant::{Grant, Hold, Piece, leaked_grants};
pub use id::{
    Blocks, Domain, EntryIndex, ExtensionKey, ExtensionNumber, Iova, Key, KeyInstance, Lba, LbaRange,
    RegionIndex, RegionKey,
};
pub use management::{
    Attributes, ExtensionAttributes, FileAttributes, FileKeys, FileModification, FileSpec, GrantSpec, Limits,
    Modification, Purpose, RegionSpec, TableError, Usage,
};
pub use published::{Published, SEGMENT_ENTRIES, Segment, SegmentSource};
pub use regions::RegionQuiesce;
pub use request::{Denied, Memory, Request};
pub use tables::{Quiesce, Tables};
#[cfg(any(test, feature = "oracle"))]
pub use trace::Touch;
