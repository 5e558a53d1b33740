//! What can go wrong with files, in words that say what to do.

use crate::StoreError;
use crate::permission::AclError;

use super::{InodeNumber, MAX_DEPTH, MAX_FILE_EXTENTS, MAX_LINKS_LISTED, MAX_NAME, MAX_PATH};

/// Why a file system could not be used, or refused what was asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The disk, or the metadata on it.
    #[error("the file system: {0}")]
    Store(#[from] StoreError),
    /// Nothing has this name.
    #[error("there is no {path:?}")]
    NotFound {
        /// The path asked for, as far as it does not exist.
        path: String,
    },
    /// What was asked for again was done, and has been undone since.
    #[error("it was done, and {path:?} was removed or replaced since")]
    GoneSince {
        /// The path that it was asked for by.
        path: String,
    },
    /// The name is taken.
    #[error("there is a {path:?} already")]
    Exists {
        /// The path asked for.
        path: String,
    },
    /// A file stands where a directory must be.
    #[error("{path:?} is not a directory")]
    NotDirectory {
        /// Which.
        path: String,
    },
    /// A directory stands where a file must be.
    #[error("{path:?} is a directory")]
    IsDirectory {
        /// Which.
        path: String,
    },
    /// Only an empty directory can be removed or replaced.
    #[error("the directory {path:?} is not empty: remove what is in it first")]
    NotEmpty {
        /// Which.
        path: String,
    },
    /// A name or path that cannot be one.
    #[error(
        "{path:?} is no path: {why}; names have 1 to {MAX_NAME} bytes, paths at most {MAX_PATH} and {MAX_DEPTH} names"
    )]
    Path {
        /// What was given, cut.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The mode, the access list or a directory on the way does not allow it.
    #[error("user {uid} may not {what} {path:?}: ask its owner for the right")]
    Denied {
        /// Who asked.
        uid: u32,
        /// To do what.
        what: &'static str,
        /// With what.
        path: String,
    },
    /// Only the owner, or only the superuser, may do it.
    #[error("user {uid} may not {what}: only {whom} may")]
    NotPermitted {
        /// Who asked.
        uid: u32,
        /// To do what.
        what: &'static str,
        /// Who may.
        whom: &'static str,
    },
    /// A directory cannot be moved below itself.
    #[error("{from:?} cannot be moved to {to:?}, which is below it")]
    Cycle {
        /// The directory.
        from: String,
        /// Where it should go.
        to: String,
    },
    /// Nobody can remove, rename or replace the root directory.
    #[error("the root directory cannot be {what}")]
    Root {
        /// What was to be done with it.
        what: &'static str,
    },
    /// There is no such file, or none that is open.
    #[error("no open file has the number {0}")]
    NotOpen(InodeNumber),
    /// A length or size that makes no sense.
    #[error("{bytes} bytes: {why}")]
    Size {
        /// Asked for.
        bytes: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// The file was changed since the plan for this was made.
    #[error("the file {0} was changed in between: ask again")]
    Changed(InodeNumber),
    /// Not enough free blocks.
    #[error(
        "{needed} bytes are needed and {free} are free: remove files, or use a larger volume (what was freed counts after a sync)"
    )]
    NoSpace {
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// The metadata area has no room for more.
    #[error("the metadata area of {bytes} bytes is full: remove files, or format with a larger one")]
    MetadataFull {
        /// Its size.
        bytes: u64,
    },
    /// The free space lies in too many pieces for this file.
    #[error("the file would lie in more than {MAX_FILE_EXTENTS} pieces: copy it, or remove other files")]
    TooFragmented,
    /// The owner has used up what it may have.
    #[error(
        "user {uid} may have {limit} {what} here and would have {needed}: remove files or raise the quota"
    )]
    Quota {
        /// Whose quota.
        uid: u32,
        /// Of what: "bytes" or "files and directories".
        what: &'static str,
        /// The most.
        limit: u64,
        /// With what was asked for.
        needed: u64,
    },
    /// An access list that is none, or more than is stored.
    #[error(transparent)]
    Acl(#[from] AclError),
    /// An access list with more entries than a file can have.
    #[error("an access list of {0} entries: a file has at most {max}", max = super::MAX_ACL)]
    AclSize(usize),
    /// More was asked for in one call than it gives.
    #[error("{0} entries were asked for, at most {MAX_LINKS_LISTED} come at once")]
    TooMany(usize),
    /// Opened neither to read nor to write, or created without writing, or the like.
    #[error("opening a file: {0}")]
    How(&'static str),
    /// One more opener than can be counted.
    #[error("the file {0} is open too often")]
    OpenTooOften(InodeNumber),
}

/// Bytes as they can be shown: at most 256 of them.
pub(super) fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path.get(..256).unwrap_or(path));
    text.into_owned()
}
