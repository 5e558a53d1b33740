//! The messages of the control socket (`SOCK_SEQPACKET`, one message a packet, descriptors beside it).
//!
//! A packet is a [`FrameHeader`] and a body: a [`Request`] towards the adapter, a [`Reply`] towards the application,
//! encoded by `postcard`. Every packet from the other side is hostile: bounded by [`MAX_MESSAGE`], decoded once into
//! one of these types or refused with an error.

use alloc::{boxed::Box, string::String, vec::Vec};
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Status;
use crate::files::{
    AttributeChange, CheckReport, Create, Cursor, DirectoryEntry, ExtensionInfo, FileAttributes, FileInfo,
    FilePath, FileSystemInfo, FileTarget, OpenFile,
};
pub use crate::health::{ErrorInfo, HealthInfo};
extern crate alloc;

/// `PCTL` in ASCII.
pub const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"PCTL");
/// No packet is larger, nor what an entry of [`crate::layout::opcode::MANAGE`] carries.
pub const MAX_MESSAGE: usize = 16 * 1024;
/// Room that is enough for most replies: [`Request::reply_room`].
pub const SMALL_REPLY: usize = 4096;
/// Bytes of the longest text of an error.
pub const MAX_DETAIL: usize = 2048;
/// No packet carries more descriptors.
pub const MAX_DESCRIPTORS: usize = 4;
/// Bytes of the longest volume name.
pub const MAX_NAME: usize = 128;

/// Before each body.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct FrameHeader {
    /// [`FRAME_MAGIC`].
    pub magic: u32,
    /// [`crate::VERSION`] of the sender, so that a Hello of any version can be answered.
    pub version: u16,
    /// Zero.
    pub reserved: u16,
    /// Bytes of the body.
    pub length: u32,
    /// Chosen by the application; the reply carries it again.
    pub id: u32,
}

/// Who an access list entry speaks of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Subject {
    /// One user id.
    User(u32),
    /// One group id, primary or supplementary.
    Group(u32),
    /// Everybody who may connect.
    Everyone,
}

/// Access bits as they cross the wire: 1 read, 2 write, 4 trim.
pub type AccessBits = u8;

/// What an application asks of the control plane. Exactly one [`Reply`] answers each.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Request {
    /// First on every connection. The reply is [`Reply::Welcome`] with the version chosen, or E_VERSION.
    Hello {
        /// The lowest version that the application speaks.
        min_version: u16,
        /// The highest.
        max_version: u16,
    },
    /// Makes a processing queue in the memfd that comes along, laid out as [`crate::layout`] says.
    CreateQueue {
        /// Entries in each direction.
        entries: u32,
    },
    /// Drains the queue and gives its memory back.
    DestroyQueue {
        /// From [`Reply::Queue`].
        queue: u32,
    },
    /// Registers the memfd that comes along, whole, as a memory region.
    RegisterMemory {
        /// Its size in bytes, a multiple of 4096.
        length: u64,
        /// 1: the device may read it (a source of writes), 2: the device may write it (a target of reads), 3: both.
        access: AccessBits,
    },
    /// Ends a region; answered when no I/O can touch it any more.
    ReleaseMemory {
        /// From [`Reply::Region`].
        region: u64,
    },
    /// Opens a volume: a grant over its blocks with `access`, which the access list must allow whole.
    OpenVolume {
        /// Its name.
        name: String,
        /// The rights wanted.
        access: AccessBits,
    },
    /// Ends a grant; answered when no I/O runs under it any more.
    Close {
        /// From [`Reply::Grant`].
        key: u64,
    },
    /// The attributes of a grant.
    Query {
        /// From [`Reply::Grant`].
        key: u64,
    },
    /// Makes a volume, owned by the caller, zeroed.
    CreateVolume {
        /// Its name.
        name: String,
        /// Its size; rounded up to whole allocation units.
        bytes: u64,
    },
    /// Deletes a volume; grants over it are revoked first.
    DeleteVolume {
        /// Its name.
        name: String,
    },
    /// Grows or shrinks a volume. Grants over it follow; what is cut off is unreachable when the reply comes.
    ResizeVolume {
        /// Its name.
        name: String,
        /// The new size.
        bytes: u64,
    },
    /// Renames a volume. Grants over it stay.
    RenameVolume {
        /// The old name.
        from: String,
        /// The new name.
        to: String,
    },
    /// Volumes in the order of their names, as many as fit a message.
    ListVolumes {
        /// Only those after this name.
        after: Option<String>,
    },
    /// One volume with its access list.
    ShowVolume {
        /// Its name.
        name: String,
    },
    /// Sets what a subject may do with a volume; 0 removes the entry. Rights that running grants lose by it are
    /// revoked before the reply comes.
    SetAccess {
        /// The volume.
        name: String,
        /// Whose rights.
        subject: Subject,
        /// The rights.
        access: AccessBits,
    },
    /// The device behind the adapter.
    ShowDevice,
    /// Sessions and counters.
    Statistics,
    /// Changes what limits somebody or something, and what it weighs. For administrators.
    SetLimits {
        /// Whom.
        of: Limited,
        /// How.
        change: LimitChange,
    },
    /// What is limited or weighs something else than usual, in its order, as far as the caller may see it and as many as
    /// fit a message.
    ListLimits {
        /// Only those after this one.
        after: Option<Limited>,
    },
    /// Health and latest errors of the device behind the adapter. For administrators.
    ShowHealth,
    /// Opens a file by its name, once: from then on it is read and written by its key. [`Request::Close`] ends that.
    OpenFile(OpenFile),
    /// An opened file as it is now. Delays no I/O.
    QueryFile {
        /// From [`Reply::File`].
        key: u64,
    },
    /// Extensions of an opened file, as many as a reply carries.
    ListExtensions {
        /// From [`Reply::File`].
        key: u64,
        /// How many to leave out at the beginning.
        skip: u32,
    },
    /// Gives an opened file blocks for at least its first `bytes`; its length stays, and so do its keys. E_NO_RESOURCES
    /// changes nothing.
    GrowFile {
        /// From [`Reply::File`].
        key: u64,
        /// For so many from its start.
        bytes: u64,
        /// It keeps them, until it is made shorter. Else the blocks behind its end are given back when its last key ends.
        keep: bool,
    },
    /// Makes an opened file as long; what is new reads as zero. What is cut off is unreachable when the reply comes, and only
    /// keys of extensions that were cut become stale.
    SetLength {
        /// From [`Reply::File`].
        key: u64,
        /// The new length.
        bytes: u64,
    },
    /// Changes attributes.
    SetAttributes {
        /// Of what.
        of: FileTarget,
        /// Which.
        change: AttributeChange,
    },
    /// Gives a file or directory another name in its volume. What has that name is replaced in one step, or refused.
    RenameFile {
        /// The volume's name.
        volume: String,
        /// The old path.
        from: FilePath,
        /// The new one.
        to: FilePath,
        /// A file of the new name may be there, and is gone then.
        replace: bool,
    },
    /// Takes a file's name away. One that is open lives until its last key ends.
    UnlinkFile {
        /// The volume's name.
        volume: String,
        /// The path in it.
        path: FilePath,
    },
    /// Makes a directory.
    MakeDirectory {
        /// The volume's name.
        volume: String,
        /// The path in it.
        path: FilePath,
        /// Its permission bits.
        mode: u16,
    },
    /// Removes an empty directory.
    RemoveDirectory {
        /// The volume's name.
        volume: String,
        /// The path in it.
        path: FilePath,
    },
    /// What stands in a directory, as much as fits a message.
    ListDirectory {
        /// The volume's name.
        volume: String,
        /// The path in it.
        path: FilePath,
        /// Where the last reply said that it goes on; empty at first.
        from: Cursor,
        /// With the attributes of each.
        attributes: bool,
    },
    /// The attributes of what a path names.
    StatPath {
        /// The volume's name.
        volume: String,
        /// The path in it.
        path: FilePath,
        /// A symbolic link at the path's end is followed.
        follow: bool,
    },
    /// Where a symbolic link leads.
    ReadLink {
        /// The volume's name.
        volume: String,
        /// The path in it.
        path: FilePath,
    },
    /// How full the file system of a volume is.
    StatVolume {
        /// Its name.
        volume: String,
    },
    /// Answered when what was written to an opened file, and its length, are durable; all its attributes, too, unless
    /// `data_only`.
    SyncFile {
        /// From [`Reply::File`].
        key: u64,
        /// Without the attributes that reading it back does not need.
        data_only: bool,
    },
    /// Answered when everything that was done to the files of a volume before is durable.
    SyncFiles {
        /// Its name.
        volume: String,
    },
    /// Makes an empty file system in a volume, whose content is given up.
    FormatFiles {
        /// Its name.
        volume: String,
        /// Also if it holds files already.
        force: bool,
    },
    /// Checks the file system of a volume, in which no file is open.
    CheckFiles {
        /// Its name.
        volume: String,
        /// Puts right what can be.
        repair: bool,
    },
    /// Limits the bytes that a user's files may have in a volume. For the owner of the volume and administrators.
    SetFileQuota {
        /// The volume's name.
        volume: String,
        /// The user id.
        user: u32,
        /// So many; `None` is no limit.
        bytes: Option<u64>,
    },
    /// [`Request::OpenVolume`] for the only session that may write: E_RESERVATION while another may, and as long as this grant
    /// lasts no other gets a right to write or to trim.
    OpenExclusive {
        /// The volume's name.
        name: String,
        /// The rights wanted.
        access: AccessBits,
    },
    /// A change that is made once, however often it is asked for: its answer is kept with its effect, and who asks again by
    /// the same id, the same user in a later life of the adapter for example, gets that answer.
    Once {
        /// Random, of the application's making.
        id: OnceId,
        /// The change.
        change: Change,
    },
}

/// Names one wish for a change, among all that its user ever had.
pub type OnceId = [u8; 16];

/// Each change is the request of the same name, with the same fields.
macro_rules! changes {
    ($($name:ident { $($field:ident: $type:ty),* })*) => {
        /// A change of volumes or files that [`Request::Once`] carries: the request of the same name.
        #[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
        #[allow(missing_docs)] // as in `Request`
        pub enum Change {
            $($name { $($field: $type),* },)*
            OpenFile(OpenFile),
        }

        impl Change {
            /// The change that a request is, if it is one.
            pub fn of(request: &Request) -> Option<Self> {
                match request.clone() {
                    $(Request::$name { $($field),* } => Some(Self::$name { $($field),* }),)*
                    Request::OpenFile(open) if open.create != Create::Never || open.truncate => {
                        Some(Self::OpenFile(open))
                    }
                    _ => None,
                }
            }
        }

        impl From<Change> for Request {
            fn from(change: Change) -> Self {
                match change {
                    $(Change::$name { $($field),* } => Self::$name { $($field),* },)*
                    Change::OpenFile(open) => Self::OpenFile(open),
                }
            }
        }
    };
}

changes! {
    CreateVolume { name: String, bytes: u64 }
    DeleteVolume { name: String }
    ResizeVolume { name: String, bytes: u64 }
    RenameVolume { from: String, to: String }
    SetAccess { name: String, subject: Subject, access: AccessBits }
    SetLength { key: u64, bytes: u64 }
    SetAttributes { of: FileTarget, change: AttributeChange }
    RenameFile { volume: String, from: FilePath, to: FilePath, replace: bool }
    UnlinkFile { volume: String, path: FilePath }
    MakeDirectory { volume: String, path: FilePath, mode: u16 }
    RemoveDirectory { volume: String, path: FilePath }
    SetFileQuota { volume: String, user: u32, bytes: Option<u64> }
}

impl Request {
    /// Whether it may come as an entry of a processing queue ([`crate::layout::opcode::MANAGE`]): no descriptor goes with it or
    /// with its reply, and it is not what a connection begins with.
    pub const fn goes_by_queue(&self) -> bool {
        !matches!(self, Self::Hello { .. } | Self::CreateQueue { .. } | Self::RegisterMemory { .. })
    }

    /// Bytes that its reply never exceeds, without a frame: the room that an entry of a processing queue must have for it.
    pub const fn reply_room(&self) -> usize {
        match self {
            Self::DestroyQueue { .. }
            | Self::ReleaseMemory { .. }
            | Self::OpenVolume { .. }
            | Self::OpenExclusive { .. }
            | Self::Close { .. }
            | Self::Query { .. }
            | Self::DeleteVolume { .. }
            | Self::SetAccess { .. }
            | Self::SetLimits { .. }
            | Self::OpenFile(_)
            | Self::QueryFile { .. }
            | Self::ListExtensions { .. }
            | Self::GrowFile { .. }
            | Self::SetLength { .. }
            | Self::SetAttributes { .. }
            | Self::RenameFile { .. }
            | Self::UnlinkFile { .. }
            | Self::MakeDirectory { .. }
            | Self::RemoveDirectory { .. }
            | Self::StatPath { .. }
            | Self::StatVolume { .. }
            | Self::SyncFile { .. }
            | Self::SyncFiles { .. }
            | Self::FormatFiles { .. }
            | Self::SetFileQuota { .. } => SMALL_REPLY,
            _ => MAX_MESSAGE,
        }
    }
}

/// What answers a [`Request`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// It failed, and changed nothing unless the text says otherwise.
    Error {
        /// The code.
        status: Status,
        /// What was wrong, with what value, and what to do.
        detail: String,
    },
    /// It is done.
    Done,
    /// To Hello.
    Welcome(Welcome),
    /// To CreateQueue; an eventfd comes along, to be written when need_wake says so.
    Queue {
        /// Names the queue.
        queue: u32,
    },
    /// To RegisterMemory.
    Region {
        /// Names the region.
        region: u64,
    },
    /// To OpenVolume, OpenExclusive and Query.
    Grant(GrantInfo),
    /// To ListVolumes.
    Volumes {
        /// In the order of their names.
        volumes: Vec<VolumeInfo>,
        /// Whether there are more after the last one.
        more: bool,
    },
    /// To ShowVolume, CreateVolume, ResizeVolume and RenameVolume.
    Volume(VolumeInfo),
    /// To SetAccess and DeleteVolume, when rights were taken away from running grants.
    Revoked {
        /// Grants that lost a right.
        grants: u32,
        /// Of them, those whose I/O still drains: nothing of theirs is used again before it has.
        draining: u32,
    },
    /// To ShowDevice.
    Device(DeviceInfo),
    /// To Statistics.
    Statistics(Statistics),
    /// To ListLimits; to SetLimits, with what holds now.
    Limits {
        /// In the order of what they are of.
        limits: Vec<LimitInfo>,
        /// Whether there are more after the last one.
        more: bool,
    },
    /// To ShowHealth.
    Health(Box<HealthInfo>),
    /// To OpenFile, QueryFile, GrowFile and SetLength.
    File(FileInfo),
    /// To ListExtensions.
    Extensions {
        /// In the order of their offsets, at most [`crate::files::EXTENSIONS_PAGE`].
        extensions: Vec<ExtensionInfo>,
        /// Whether there are more after the last one.
        more: bool,
    },
    /// To StatPath and SetAttributes.
    Attributes(FileAttributes),
    /// To ListDirectory.
    Directory {
        /// Without `.` and `..`.
        entries: Vec<DirectoryEntry>,
        /// Where it goes on, if there are more.
        next: Option<Cursor>,
    },
    /// To ReadLink.
    Link {
        /// Where it leads: what was put there, which may be no good path.
        target: FilePath,
    },
    /// To StatVolume and FormatFiles.
    FileSystem(FileSystemInfo),
    /// To CheckFiles.
    Checked(CheckReport),
}

/// What limits are of.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Limited {
    /// A volume: for all who use it together. Kept with the volume.
    Volume(String),
    /// A user id: for all its sessions together, those that are and those to come, until the adapter ends. Its weight is
    /// that of each of its sessions.
    User(u32),
    /// A session by its number, for as long as it lives; beside what its user has.
    Session(u64),
}

/// So many in a second.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Rate {
    /// In a second.
    pub rate: u64,
    /// At once, after a pause; 0 for what 20 milliseconds of the rate are.
    pub burst: u64,
}

/// Limits of a volume, user or session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Rates {
    /// Of requests, if there is one.
    pub requests: Option<Rate>,
    /// Of bytes that requests move, if there is one.
    pub bytes: Option<Rate>,
}

/// What is to change; what is `None` stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LimitChange {
    /// Of requests; a rate of 0 is no limit.
    pub requests: Option<Rate>,
    /// Of bytes, likewise.
    pub bytes: Option<Rate>,
    /// What each session weighs; 0 as usual. Volumes have no weight.
    pub weight: Option<u32>,
}

/// What holds for something.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LimitInfo {
    /// For what.
    pub of: Limited,
    /// Its limits.
    pub rates: Rates,
    /// What each session of it weighs, if that was set.
    pub weight: Option<u32>,
}

/// What a session is told at its start.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that both sides speak from here on.
    pub version: u16,
    /// The number of the session, as logs and statistics show it.
    pub session: u64,
    /// Which run of which adapter this is: random, another after each start.
    pub adapter: u64,
    /// The how many-th over its device: one more after each start.
    pub life: u64,
    /// All that was done to files in the life before is there: it was ended in order, and not killed.
    pub settled: bool,
    /// What it may use.
    pub limits: Limits,
}

/// What one session may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of registered and queue memory.
    pub pinned_bytes: u64,
    /// Memory regions.
    pub regions: u32,
    /// Processing queues.
    pub queues: u32,
    /// Grants.
    pub grants: u32,
    /// Control messages without an answer yet.
    pub outstanding: u32,
}

/// A grant as its holder sees it. No absolute block address is ever told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GrantInfo {
    /// Names it.
    pub key: u64,
    /// What it allows.
    pub access: AccessBits,
    /// Its size.
    pub bytes: u64,
    /// The unit of offsets and lengths.
    pub block_size: u32,
    /// Which volume it is, whatever its name: no other ever has this number.
    pub volume: u128,
    /// Nobody but this session has had a right to write to the volume since the adapter started.
    pub sole_writer: bool,
}

/// A volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// The user id of its owner.
    pub owner: u32,
    /// Who may do what. In listings of many volumes it is left empty.
    pub access: Vec<(Subject, AccessBits)>,
    /// Contiguous ranges that it is made of.
    pub extents: u32,
    /// Grants open over it now.
    pub grants: u32,
    /// What all who use it together may do.
    pub limits: Rates,
}

/// The device behind the adapter.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// As given to the adapter, `vfio:0000:01:00.0` for example.
    pub uri: String,
    /// Model, as the device says.
    pub model: String,
    /// Serial number, as the device says.
    pub serial: String,
    /// Firmware revision, as the device says.
    pub firmware: String,
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks.
    pub blocks: u64,
    /// Blocks free for volumes.
    pub free_blocks: u64,
    /// Bytes of the largest single transfer.
    pub max_transfer: u64,
    /// Whether there is a volatile write cache.
    pub write_cache: bool,
    /// Where the adapter keeps its own metadata: first block and count of each range. Told to the administrator only;
    /// empty for others.
    pub metadata: Vec<(u64, u64)>,
    /// The ranges of each volume, likewise for the administrator only.
    pub volumes: Vec<(String, Vec<(u64, u64)>)>,
}

/// Counters of the adapter since its start; for who does not administer, of what its own user has now.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Statistics {
    /// Requests completed, whatever their status.
    pub completed: u64,
    /// Requests refused by a check.
    pub denied: u64,
    /// Queues that went to the error state.
    pub queue_errors: u64,
    /// Turns of all pollers.
    pub turns: u64,
    /// Table entries in use.
    pub entries: u64,
    /// Memory regions in use.
    pub regions: u64,
    /// Bytes pinned.
    pub pinned_bytes: u64,
    /// IOMMU mappings in use.
    pub mappings: u64,
    /// IOMMU mappings that may still be made, where somebody counts them: the kernel's `dma_avail` for VFIO.
    pub mappings_left: Option<u32>,
    /// Entries of the LBA table in use.
    pub lba_entries: u64,
    /// Table segments that pollers fetched; told to the administrator only.
    pub fetches: u64,
    /// Table segments that pollers let go of to make room; likewise.
    pub evictions: u64,
    /// The sessions, as many as fit a message.
    pub sessions: Vec<SessionInfo>,
}

/// One session.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SessionInfo {
    /// Its number.
    pub session: u64,
    /// Frozen at connect.
    pub uid: u32,
    /// Frozen at connect.
    pub gid: u32,
    /// For display only: a pid proves nothing.
    pub pid: u32,
    /// Queues.
    pub queues: u32,
    /// Grants.
    pub grants: u32,
    /// Regions.
    pub regions: u32,
    /// Bytes pinned.
    pub pinned_bytes: u64,
    /// Requests completed.
    pub completed: u64,
    /// Requests denied.
    pub denied: u64,
}
