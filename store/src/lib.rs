//! Logical volumes and their access lists, kept on the device itself.
//!
//! A [`Store`] owns a [`Disk`](driver::disk::Disk): it knows which blocks belong to which volume, who owns a volume and
//! who else may do what with it, and keeps all that on the device, crash safe. It runs on a thread and a device queue of
//! its own, and each call returns when what it says is durable.
//!
//! - A block belongs to a volume only after it was zeroed and flushed, so nobody reads what a former owner wrote.
//! - The device's content is as hostile as any input: checksums and bounds are checked before anything is believed, and
//!   damage costs this device's volumes and nothing else.
//! - On the device (module `superblock` has the picture): a superblock and its copy, the metadata file (module
//!   `shadow`), in which a redb database lives (module `catalog`), and the data, in allocation units.
#![forbid(unsafe_code)]

mod catalog;
mod container;
mod content;
mod error;
pub mod ext4;
pub mod files;
mod found;
pub mod fuzz;
mod ledger;
pub mod permission;
mod probe;
mod record;
mod shadow;
mod signature;
mod space;
mod store;
mod superblock;
mod volume;
mod window;

pub use content::Content;
pub use error::StoreError;
pub use found::Found;
pub use ledger::{Granted, Ledger, WISHES, WISHES_OF_USER, Wish};
pub use record::Finding;
pub use store::{FormatOptions, Store};
pub use volume::{Limits, Rate, Subject, Volume, VolumeId, VolumeKind};
pub use window::Window;

/// The most volumes of a store.
pub const MAX_VOLUMES: usize = 65_536;
/// The most extents of a volume.
pub const MAX_EXTENTS: usize = 4_096;
/// The most entries of a volume's access list.
pub const MAX_ENTRIES: usize = 1_024;
/// The most bytes of a volume's name.
pub const MAX_NAME: usize = 128;
