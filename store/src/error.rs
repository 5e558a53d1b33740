//! What can go wrong, in words that say what to do.

use driver::disk::DiskError;

use crate::{MAX_ENTRIES, MAX_EXTENTS, MAX_VOLUMES};

/// Why a store could not be used, or refused what was asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The device's first and last 128 KiB are all zero.
    #[error("the device is blank: format it first")]
    Blank,
    /// The device holds something else.
    #[error("the device holds {what}, not a portcullis store; to give it up, format with force")]
    Foreign {
        /// What was recognised.
        what: String,
    },
    /// Formatting would destroy something.
    #[error("the device holds {what}; to give it up, format with force")]
    Occupied {
        /// What was recognised.
        what: String,
    },
    /// It is a store, but its metadata is not what was written.
    #[error(
        "the store is damaged: {what}; restore the device from a copy, or give its volumes up and format with force"
    )]
    Damaged {
        /// What is wrong, and where.
        what: String,
    },
    /// The device is smaller than a store, or than this store was when it was formatted.
    #[error("the device has {bytes} bytes, at least {needed} are needed: use a larger one")]
    TooSmall {
        /// Bytes of the device.
        bytes: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// Formatted by a version that this one does not know.
    #[error(
        "the store has format version {found}, this program knows {known}: use the program that formatted it"
    )]
    Version {
        /// In the superblock.
        found: u32,
        /// By this program.
        known: u32,
    },
    /// A newer program uses the store in a way that this one does not know.
    #[error("the store uses {kind} features {bits:#x} that this program does not know: use a newer one")]
    Features {
        /// "incompatible" or "read-only compatible"; the latter can be read safely, but a store is always opened
        /// for writing.
        kind: &'static str,
        /// The unknown bits.
        bits: u32,
    },
    /// The device's blocks do not fit.
    #[error(
        "the device has blocks of {found} bytes, {wanted}: format the device's namespace so, or use another"
    )]
    BlockSize {
        /// Of the device.
        found: u64,
        /// What they should have.
        wanted: String,
    },
    /// The device was to hold a file system that another program made, and this one cannot serve it.
    #[error("what is on the device cannot be served as it is found: {what}")]
    NotServed {
        /// Why, and what to do.
        what: String,
    },
    /// There is no store on the device: it is served as it was found.
    #[error(
        "the device holds a file system as another program made it, and no store: volumes on it cannot be made, changed or \
         removed"
    )]
    NoStore,
    /// The format options make no sense.
    #[error("format: {what}")]
    Options {
        /// Which and why.
        what: String,
    },
    /// The device failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// An earlier failure left the metadata in an unknown state; the device's content is as safe as it was.
    #[error("the store failed and takes no more requests until it is opened again: {why}")]
    Poisoned {
        /// The failure.
        why: String,
    },
    /// No volume has this name.
    #[error("there is no volume {name:?}")]
    NoSuchVolume {
        /// The name asked for.
        name: String,
    },
    /// A file system in the volume is open.
    #[error("the volume {name:?} is in use as a disk: close the file system in it first")]
    InUse {
        /// Its name.
        name: String,
    },
    /// A volume has this name already.
    #[error("there is a volume {name:?} already")]
    Exists {
        /// The name asked for.
        name: String,
    },
    /// The name is not allowed.
    #[error("{name:?} cannot name a volume: {why}")]
    Name {
        /// The name asked for.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The size makes no sense.
    #[error("{bytes} bytes: {why}")]
    Size {
        /// The size asked for.
        bytes: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Not enough free blocks.
    #[error(
        "{needed} blocks are needed and {free} are free: delete or shrink a volume, or use a larger device"
    )]
    NoSpace {
        /// Blocks needed.
        needed: u64,
        /// Blocks free.
        free: u64,
    },
    /// The free space lies in too many pieces.
    #[error(
        "the volume would lie in more than {MAX_EXTENTS} pieces: make it smaller, or delete other volumes"
    )]
    TooFragmented,
    /// The limit on volumes.
    #[error("the store has {MAX_VOLUMES} volumes, the most it can have")]
    TooManyVolumes,
    /// The limit on a volume's access list.
    #[error("the volume's access list has {MAX_ENTRIES} entries, the most it can have")]
    TooManyEntries,
    /// The metadata area has no room for the change. Nothing was changed.
    #[error(
        "the metadata area is full: delete volumes or access entries, or format with a larger metadata area"
    )]
    MetadataFull,
    /// Key instances are used up.
    #[error("{asked} key instances were asked for and {left} are left of all that this store can ever give")]
    InstancesExhausted {
        /// How many.
        asked: u32,
        /// How many could be had.
        left: u32,
    },
}
