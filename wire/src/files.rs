//! What is said of files in a volume: paths, attributes, extensions. The messages themselves are in [`crate::control`].
//!
//! A path is bytes, not text, as on Linux: whoever shows one shows it escaped ([`crate::name::escape_bytes`]).

use alloc::{string::String, vec::Vec};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::control::{AccessBits, Subject};
extern crate alloc;

/// Bytes of the longest path.
pub const MAX_PATH: usize = 4096;
/// Bytes of the longest component of a path.
pub const MAX_COMPONENT: usize = 255;
/// Bytes of the longest cursor of a listing.
pub const MAX_CURSOR: usize = 264;
/// Entries of the longest access list of a file.
pub const MAX_FILE_ACCESS: usize = 64;
/// Extensions that one reply carries.
pub const EXTENSIONS_PAGE: usize = 32;

/// At most `MAX` bytes. More are refused where they are decoded, before any are copied.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bounded<const MAX: usize>(Vec<u8>);

/// A path in a volume, as it crosses the wire; whether it is a good one [`check_path`] says.
pub type FilePath = Bounded<MAX_PATH>;
/// The name of a file in its directory.
pub type FileName = Bounded<MAX_COMPONENT>;
/// Where a listing goes on. Only who made it knows what it says.
pub type Cursor = Bounded<MAX_CURSOR>;

/// More bytes than there may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{bytes} bytes are more than the {max} allowed here")]
pub struct TooLong {
    /// How many there are.
    pub bytes: usize,
    /// How many there may be.
    pub max: usize,
}

impl<const MAX: usize> Bounded<MAX> {
    /// These bytes.
    ///
    /// # Errors
    /// If there are too many.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, TooLong> {
        let bytes = bytes.into();
        if bytes.len() <= MAX { Ok(Self(bytes)) } else { Err(TooLong { bytes: bytes.len(), max: MAX }) }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// As it may be shown, escaped.
impl<const MAX: usize> core::fmt::Display for Bounded<MAX> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&crate::name::escape_bytes(&self.0))
    }
}

impl<const MAX: usize> core::fmt::Debug for Bounded<MAX> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl<const MAX: usize> Serialize for Bounded<MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Bounded<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<const MAX: usize>;

        impl<const MAX: usize> de::Visitor<'_> for Visitor<MAX> {
            type Value = Bounded<MAX>;

            fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "at most {MAX} bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
                if bytes.len() > MAX {
                    return Err(E::invalid_length(bytes.len(), &self));
                }
                Ok(Bounded(bytes.to_vec()))
            }
        }

        deserializer.deserialize_bytes(Visitor)
    }
}

/// Why a path is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// It does not begin with a slash.
    #[error("a path begins with '/', the root directory of its volume")]
    Relative,
    /// Too many bytes.
    #[error("a path of {0} bytes is longer than the {MAX_PATH} allowed")]
    TooLong(usize),
    /// A component of too many bytes.
    #[error("a name of {0} bytes is longer than the {MAX_COMPONENT} allowed")]
    Component(usize),
    /// A component without a byte: two slashes in a row, or one at the end.
    #[error("a path has exactly one '/' between two names and none at its end")]
    Empty,
    /// `.` or `..`.
    #[error("\".\" and \"..\" are no names here: write the path without them")]
    Dots,
    /// A zero byte.
    #[error("a path must not contain a zero byte")]
    Zero,
}

/// Whether `path` may name a file: `/` alone, or components of 1 to [`MAX_COMPONENT`] bytes, each behind a `/`, none of
/// them `.` or `..`, no byte zero, at most [`MAX_PATH`] bytes in all.
///
/// # Errors
/// The first rule broken.
pub fn check_path(path: &[u8]) -> Result<(), PathError> {
    if path.len() > MAX_PATH {
        return Err(PathError::TooLong(path.len()));
    }
    let Some(inside) = path.strip_prefix(b"/") else { return Err(PathError::Relative) };
    if inside.is_empty() {
        return Ok(());
    }
    for component in inside.split(|&byte| byte == b'/') {
        match component {
            b"" => return Err(PathError::Empty),
            b"." | b".." => return Err(PathError::Dots),
            _ if component.len() > MAX_COMPONENT => return Err(PathError::Component(component.len())),
            _ if component.contains(&0) => return Err(PathError::Zero),
            _ => {}
        }
    }
    Ok(())
}

/// A moment, as the file system keeps it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Time {
    /// Seconds since 1970 began (UTC).
    pub seconds: i64,
    /// Of the second, less than 1,000,000,000.
    pub nanoseconds: u32,
}

/// What something is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum FileKind {
    /// A file with bytes in it.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, pipe or socket: shown, and nothing can be done with it.
    Other,
}

/// What is known of a file beside its bytes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FileAttributes {
    /// What it is.
    pub kind: FileKind,
    /// Its number in its file system, which a later file may have again.
    pub number: u64,
    /// Permission bits, set-id and sticky bits: 0o7777.
    pub mode: u16,
    /// Its owner's user id.
    pub owner: u32,
    /// Its group id.
    pub group: u32,
    /// Names that it has.
    pub links: u32,
    /// Bytes that can be read.
    pub length: u64,
    /// Bytes of blocks that are set aside for it.
    pub allocated: u64,
    /// Last read, as far as that is kept.
    pub accessed: Time,
    /// Content last changed.
    pub modified: Time,
    /// Attributes last changed.
    pub changed: Time,
    /// Who may do what beyond owner, group and others; at most [`MAX_FILE_ACCESS`], and left empty in listings.
    pub access: Vec<(Subject, AccessBits)>,
}

/// One extension of a file: a run of bytes in blocks that follow one another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExtensionInfo {
    /// Names it together with the file's key; goes into [`crate::layout::SubmissionEntry::extension`].
    pub key: u64,
    /// What it allows. Nothing: it has no blocks, reads as zeros and is E_HOLE to a read, E_NO_RESOURCES to a write.
    pub access: AccessBits,
    /// Where in the file it begins, in bytes.
    pub offset: u64,
    /// Its bytes.
    pub bytes: u64,
}

/// An opened file, as its holder sees it. No block address is ever told.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FileInfo {
    /// Names it.
    pub key: u64,
    /// What it allows.
    pub access: AccessBits,
    /// The unit of a read's or write's offset and length; writes of bytes and appends have none.
    pub block_size: u32,
    /// Bytes from the file's start that have blocks: a write behind them needs
    /// [`crate::control::Request::GrowFile`] first.
    pub room: u64,
    /// Its attributes now.
    pub attributes: FileAttributes,
    /// Its extensions from the first on, at most [`EXTENSIONS_PAGE`].
    pub extensions: Vec<ExtensionInfo>,
    /// Whether there are more ([`crate::control::Request::ListExtensions`]).
    pub more: bool,
}

/// Whether opening makes the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Create {
    /// It must be there.
    #[default]
    Never,
    /// If it is not there.
    IfAbsent,
    /// It must not be there: E_EXISTS.
    New,
}

/// Which file is opened, and how.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OpenFile {
    /// The volume's name.
    pub volume: String,
    /// The path in it.
    pub path: FilePath,
    /// The rights wanted; all of them must be allowed.
    pub access: AccessBits,
    /// Whether it is made.
    pub create: Create,
    /// It is cut to no bytes. Needs the right to write.
    pub truncate: bool,
    /// A symbolic link at the path's end is followed; if not, it is E_PARAM.
    pub follow: bool,
    /// Permission bits of a file that is made.
    pub mode: u16,
    /// Bytes that get blocks at once, if it has fewer, and that it keeps, until it is made shorter.
    pub allocate: u64,
}

impl OpenFile {
    /// A file that is there, to be read.
    pub fn reading(volume: impl Into<String>, path: FilePath) -> Self {
        Self {
            volume: volume.into(),
            path,
            access: 1,
            create: Create::Never,
            truncate: false,
            follow: true,
            mode: 0,
            allocate: 0,
        }
    }
}

/// Which file a request is about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FileTarget {
    /// One that is open.
    Key(u64),
    /// One by its name.
    Path {
        /// The volume's name.
        volume: String,
        /// The path in it.
        path: FilePath,
        /// A symbolic link at the path's end is followed.
        follow: bool,
    },
}

/// A time to be set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SetTime {
    /// The adapter's clock.
    Now,
    /// This moment.
    At(Time),
}

/// Attributes to be changed; what is `None` stays. All of it or nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct AttributeChange {
    /// As [`FileAttributes::mode`].
    pub mode: Option<u16>,
    /// The new owner.
    pub owner: Option<u32>,
    /// The new group.
    pub group: Option<u32>,
    /// Last read.
    pub accessed: Option<SetTime>,
    /// Content last changed.
    pub modified: Option<SetTime>,
    /// The whole new access list, at most [`MAX_FILE_ACCESS`].
    pub access: Option<Vec<(Subject, AccessBits)>>,
}

/// What stands in a directory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DirectoryEntry {
    /// Its name there.
    pub name: FileName,
    /// What it is.
    pub kind: FileKind,
    /// As [`FileAttributes::number`].
    pub number: u64,
    /// If they were asked for.
    pub attributes: Option<FileAttributes>,
}

/// Which format the files of a volume have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FileSystemKind {
    /// Our own.
    Portcullis,
    /// ext4, as it was found.
    Ext4,
}

/// How full the file system of a volume is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FileSystemInfo {
    /// Its format.
    pub kind: FileSystemKind,
    /// Bytes of its blocks.
    pub block_size: u32,
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes that are free.
    pub free: u64,
    /// Bytes that the caller may still use: what is free, and what its quota leaves.
    pub available: u64,
    /// Files and directories.
    pub files: u64,
    /// How many more there may be.
    pub free_files: u64,
    /// Nothing can be made, grown or removed, only overwritten in place.
    pub in_place: bool,
    /// Bytes that files of the caller have.
    pub own: u64,
    /// Bytes that they may have, if there is a limit.
    pub quota: Option<u64>,
}

/// What a check of a file system found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CheckReport {
    /// Files and directories looked at.
    pub files: u64,
    /// Extents looked at.
    pub extents: u64,
    /// Things found wrong.
    pub found: u64,
    /// Of them, those put right.
    pub repaired: u64,
    /// What was found wrong, one line each, escaped; the first ones, as many as fit.
    pub findings: Vec<String>,
}
