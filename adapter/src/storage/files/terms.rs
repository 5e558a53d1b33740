//! The same in the terms of the wire and in those of the file system.

use store::files::{Attributes, Changes, Extent, FileError, FileSystem, How, InodeNumber, Timestamp};
use store::permission::{Acl, Party, Permissions, Rights};
use store::{StoreError, Volume};
use tpt::{Access, LbaRange};
use wire::Status;
use wire::control::Subject;
use wire::files::{
    AttributeChange, Create, FileAttributes, FileKind, MAX_FILE_ACCESS, OpenFile, SetTime, Time,
};

use super::FileFailure;

/// The system's clock.
pub(super) fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

pub(in crate::storage) fn how(open: &OpenFile) -> How {
    let access = Access::from_bits(open.access).unwrap_or(Access::NONE);
    How {
        read: access.allows(Access::READ),
        write: access.allows(Access::WRITE) || access.allows(Access::TRIM),
        create: (open.create != Create::Never).then_some(open.mode),
        exclusive: open.create == Create::New,
        truncate: open.truncate,
    }
}

/// Where extents of a volume's disk are on the device.
pub(super) fn on_device(volume: &Volume, extents: &[Extent]) -> Vec<LbaRange> {
    extents.iter().filter_map(|extent| volume.device_blocks(extent.blocks)).flatten().collect()
}

/// What is known of something with a name; in this format it has one.
pub(in crate::storage) fn told(its: &Attributes) -> FileAttributes {
    let Permissions { mode, uid, gid, .. } = &its.permissions;
    FileAttributes {
        kind: if its.permissions.is_directory() { FileKind::Directory } else { FileKind::Regular },
        number: its.inode.0,
        mode: mode & 0o7777,
        owner: *uid,
        group: *gid,
        links: 1,
        length: its.length,
        allocated: its.allocated,
        accessed: time_of(its.modified),
        modified: time_of(its.modified),
        changed: time_of(its.changed),
        access: named_in(&its.permissions),
    }
}

/// Who is named in an access list, and what it gives them.
pub(in crate::storage) fn named_in(its: &Permissions) -> Vec<(Subject, u8)> {
    let entries = its.acl.iter().flat_map(|acl| acl.entries());
    let named = entries.filter_map(|(party, rights)| match *party {
        Party::User(uid) => Some((Subject::User(uid), rights.bits())),
        Party::Group(gid) => Some((Subject::Group(gid), rights.bits())),
        _ => None,
    });
    named.take(MAX_FILE_ACCESS).collect()
}

fn time_of(at: Timestamp) -> Time {
    let nanoseconds = at.0.rem_euclid(1_000_000_000);
    Time { seconds: at.0.div_euclid(1_000_000_000), nanoseconds: u32::try_from(nanoseconds).unwrap_or(0) }
}

/// What a file system is to change, of what was asked.
pub(super) fn changes(
    system: &mut FileSystem,
    number: InodeNumber,
    asked: AttributeChange,
) -> Result<Result<Changes, FileFailure>, FileError> {
    let AttributeChange { mode, owner, group, accessed: _, modified, access } = asked;
    let modified = match modified {
        None => None,
        Some(SetTime::Now) => Some(now()),
        Some(SetTime::At(Time { seconds, nanoseconds })) => {
            let whole = seconds.checked_mul(1_000_000_000).filter(|_| nanoseconds < 1_000_000_000);
            let Some(at) = whole.and_then(|whole| whole.checked_add(nanoseconds.into())) else {
                let detail =
                    format!("{seconds} s and {nanoseconds} ns since 1970 are no time that a file can have");
                return Ok(Err(FileFailure { status: Status::E_PARAM, detail }));
            };
            Some(Timestamp(at))
        }
    };
    let acl = match access {
        None => None,
        Some(named) if named.is_empty() => Some(None),
        Some(named) => {
            let mode = mode.unwrap_or(system.attributes(number)?.permissions.mode);
            match acl_of(mode, &named) {
                Ok(acl) => Some(Some(acl)),
                Err(failure) => return Ok(Err(failure)),
            }
        }
    };
    Ok(Ok(Changes { mode, uid: owner, gid: group, acl, modified }))
}

/// The access list with these named entries beside what the mode says, and with all that anybody named has for its mask.
fn acl_of(mode: u16, named: &[(Subject, u8)]) -> Result<Acl, FileFailure> {
    let refuse = |detail: String| FileFailure { status: Status::E_PARAM, detail };
    let of_mode = |shift: u32| Rights::from_bits((mode >> shift & 7) as u8).unwrap_or(Rights::NONE);
    let mut entries =
        vec![(Party::Owner, of_mode(6)), (Party::OwningGroup, of_mode(3)), (Party::Other, of_mode(0))];
    let mut mask = of_mode(3);
    for (subject, bits) in named {
        let rights = Rights::from_bits(*bits)
            .ok_or_else(|| refuse(format!("rights {bits:#o}: 4 is read, 2 write, 1 execute or search")))?;
        let party = match *subject {
            Subject::User(uid) => Party::User(uid),
            Subject::Group(gid) => Party::Group(gid),
            Subject::Everyone => return Err(refuse("what others may do is said by the mode".to_owned())),
        };
        mask = mask | rights;
        entries.push((party, rights));
    }
    entries.push((Party::Mask, mask));
    Acl::new(entries).map_err(|error| refuse(error.to_string()))
}

impl From<StoreError> for FileFailure {
    fn from(error: StoreError) -> Self {
        FileError::from(error).into()
    }
}

impl From<FileError> for FileFailure {
    fn from(error: FileError) -> Self {
        let status = match &error {
            FileError::NotFound { .. } | FileError::GoneSince { .. } => Status::E_NO_RESOURCE,
            FileError::Exists { .. } => Status::E_EXISTS,
            FileError::Denied { .. } | FileError::NotPermitted { .. } => Status::E_AUTH,
            FileError::NotOpen(_) => Status::E_NOT_OPEN,
            FileError::Changed(_) | FileError::Store(StoreError::InUse { .. }) => Status::E_BUSY_TIMEOUT,
            FileError::NoSpace { .. }
            | FileError::MetadataFull { .. }
            | FileError::TooFragmented
            | FileError::Quota { .. }
            | FileError::OpenTooOften(_) => Status::E_NO_RESOURCES,
            FileError::Store(StoreError::Occupied { .. }) => Status::E_EXISTS,
            FileError::Store(_) => Status::E_STORE,
            _ => Status::E_PARAM,
        };
        Self { status, detail: error.to_string() }
    }
}
