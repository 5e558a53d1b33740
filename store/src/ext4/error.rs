//! What can be wrong with an ext4, or refused, in words that say where and what to do.

use std::fmt;

use driver::disk::DiskError;

use super::zone::Owner;

/// Where in the file system something is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Place {
    /// The superblock at byte 1024.
    Superblock,
    /// The descriptor of a block group.
    Group(u32),
    /// An inode.
    Inode(u32),
    /// A block of an inode's extent tree.
    ExtentNode {
        /// Of this inode.
        inode: u32,
        /// The file system's block.
        block: u64,
    },
    /// A block of a directory.
    DirectoryBlock {
        /// Of this inode.
        inode: u32,
        /// The file system's block.
        block: u64,
    },
    /// The block of an inode's extended attributes.
    AttributeBlock {
        /// Of this inode.
        inode: u32,
        /// The file system's block.
        block: u64,
    },
    /// The superblock of the journal.
    Journal,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superblock => f.write_str("the superblock"),
            Self::Group(group) => write!(f, "the descriptor of group {group}"),
            Self::Inode(inode) => write!(f, "inode {inode}"),
            Self::ExtentNode { inode, block } => {
                write!(f, "block {block} of the extent tree of inode {inode}")
            }
            Self::DirectoryBlock { inode, block } => write!(f, "block {block} of directory inode {inode}"),
            Self::AttributeBlock { inode, block } => {
                write!(f, "block {block} with extended attributes of inode {inode}")
            }
            Self::Journal => f.write_str("the journal's superblock"),
        }
    }
}

/// Why an ext4 was not opened, or what was asked of it refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Ext4Error {
    /// The device failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The device is another than the one that was opened, or somebody else mounted or changed the file system.
    #[error(
        "the device or the file system's superblock changed since it was opened, so that somebody else uses it: end \
         that, and open it again"
    )]
    Changed,
    /// A bug of this program, which costs this file system only.
    #[error("the file system is not served any more, as this program failed: {why}; open it again")]
    Failed {
        /// What a panic said.
        why: String,
    },
    /// There is no ext4 on the device.
    #[error("this is no ext4 file system: the magic number at byte 1080 is {magic:#06x}, not 0xef53")]
    NotExt4 {
        /// What is there.
        magic: u16,
    },
    /// The file system has features that cannot be served.
    #[error("the file system has features that this program does not serve: {names}")]
    Features {
        /// Each with why, or what to do about it.
        names: String,
    },
    /// A number that this program does not serve, though it may be a good one.
    #[error("{place} has {field} {value}, {wanted}")]
    Unsupported {
        /// Where it stands.
        place: Place,
        /// What the number is.
        field: &'static str,
        /// The number.
        value: u64,
        /// What would be served.
        wanted: &'static str,
    },
    /// The file system was not left clean.
    #[error("{what}; mount it once with the kernel and unmount it, or run e2fsck -f on it, then try again")]
    NotClean {
        /// What says so.
        what: String,
    },
    /// A checksum is not that of what it covers.
    #[error(
        "{place} is damaged: its checksum is {stored:#x} and should be {computed:#x}; run e2fsck -f on it"
    )]
    Checksum {
        /// Where.
        place: Place,
        /// As on the device.
        stored: u32,
        /// As it should be.
        computed: u32,
    },
    /// Something contradicts itself.
    #[error("{place} is damaged: {what}; run e2fsck -f on it")]
    Damaged {
        /// Where.
        place: Place,
        /// What is wrong, with the value.
        what: String,
    },
    /// Blocks that belong to two.
    #[error("{count} blocks from {first} of {claimant} lie in {owner}; run e2fsck -f on it")]
    Overlap {
        /// Who names them now.
        claimant: Owner,
        /// The file system's block that they begin with.
        first: u64,
        /// How many were asked for.
        count: u64,
        /// Whose they are.
        owner: Owner,
    },
    /// Blocks that there are not.
    #[error(
        "{count} blocks from {first} of {claimant} lie outside of the file system, which has {blocks}; run e2fsck -f \
         on it"
    )]
    Outside {
        /// Who names them.
        claimant: Owner,
        /// The first.
        first: u64,
        /// How many were asked for.
        count: u64,
        /// Blocks of the file system.
        blocks: u64,
    },
    /// No such name.
    #[error("there is no {path}")]
    NotFound {
        /// Up to the name that is missing, escaped.
        path: String,
    },
    /// Something on the way is no directory.
    #[error("{path} is not a directory")]
    NotADirectory {
        /// Which, escaped.
        path: String,
    },
    /// Only regular files are opened, only directories are listed, only symbolic links have a target.
    #[error("inode {inode} is {found}, not {wanted}")]
    WrongKind {
        /// The inode.
        inode: u32,
        /// What it is.
        found: &'static str,
        /// What was asked for.
        wanted: &'static str,
    },
    /// The path, or a name in it, is longer than the kernel takes.
    #[error("the path is too long: {what}")]
    TooLong {
        /// Which part, and how long it may be.
        what: String,
    },
    /// Symbolic links lead to symbolic links.
    #[error("{path} leads through more than {most} symbolic links", most = super::MAX_LINKS)]
    TooManyLinks {
        /// Where it was given up, escaped.
        path: String,
    },
    /// A symbolic link with an absolute target.
    #[error(
        "{path} is a symbolic link to {target}: where that is depends on where the file system is mounted; name the \
         file itself"
    )]
    AbsoluteLink {
        /// The link, escaped.
        path: String,
        /// Its target, escaped.
        target: String,
    },
    /// The rights do not suffice.
    #[error("user {uid} may not {wanted} {path}: it has mode {mode:04o}, owner {owner}, group {group}{list}")]
    Denied {
        /// Who asked.
        uid: u32,
        /// For what.
        wanted: &'static str,
        /// Of what, escaped.
        path: String,
        /// Its mode.
        mode: u16,
        /// Its owner.
        owner: u32,
        /// Its group.
        group: u32,
        /// Says that it has an access list, if it has one.
        list: &'static str,
    },
    /// The file is of a kind that is not served, or not for writing.
    #[error("inode {inode} {what}")]
    Refused {
        /// The inode.
        inode: u32,
        /// What it has, and what to do about it.
        what: String,
    },
    /// Nothing in this file system may be written.
    #[error("the file system is served for reading only: {why}")]
    ReadOnly {
        /// The features that say so.
        why: String,
    },
    /// A write to bytes that have no blocks, or blocks never written.
    #[error(
        "{bytes} bytes from {offset} of inode {inode} have no written blocks, and this program allocates none in an \
         ext4: write them once through the kernel"
    )]
    NeedsAllocation {
        /// The file.
        inode: u32,
        /// The first byte without.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// A limit of this program.
    #[error("{what} {value} is more than {most}: {advice}")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// How much there is.
        value: u64,
        /// How much there may be.
        most: u64,
        /// What to do.
        advice: &'static str,
    },
}

/// `what` is wrong at `place`.
pub(super) fn damaged(place: Place, what: impl Into<String>) -> Ext4Error {
    Ext4Error::Damaged { place, what: what.into() }
}

/// Bytes of a name for a person: what is not printable ASCII is escaped.
pub(super) fn escaped(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
