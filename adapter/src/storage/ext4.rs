//! What is asked of an ext4 as it is found: its files are opened, read and overwritten in place. Whatever would change its
//! metadata is refused.

use store::Volume;
use store::ext4::{Attributes, Ext4, Ext4Error, Kind, Mounted, OpenedFile, Timestamp};
use store::permission::{Credentials, Rights};
use tpt::{Access, LbaRange};
use wire::Status;
use wire::control::{Reply, Request};
use wire::files::{
    Create, Cursor, DirectoryEntry, FileAttributes, FileKind, FileName, FilePath, FileSystemInfo,
    FileSystemKind, OpenFile, Time,
};

use super::files::{
    ENTRIES_PAGE, FileDone, FileFailure, FileJob, FileOutcome, NAMES_PAGE, Told, Who, named_in,
};

/// One job of one file system.
///
/// # Errors
/// What the file system says. What this program does not do in one is the outcome.
pub(super) fn perform(
    system: &mut Mounted,
    volume: &Volume,
    who: &Who,
    job: FileJob,
) -> Result<FileOutcome, Ext4Error> {
    let as_who = Credentials { uid: who.uid, gid: who.gid, groups: &who.groups };
    let done = match job {
        FileJob::Alone(request) => return alone(system, &as_who, &request),
        FileJob::Open(open) => return open_file(system, volume, &as_who, &open),
        FileJob::Grow { number, bytes, .. } => {
            return Ok(Err(FileFailure {
                status: Status::E_NO_RESOURCES,
                detail: format!(
                    "inode {number}: room for {bytes} bytes would need blocks or a greater length, and in a file system that \
                     another program made files are only overwritten where they have written blocks, up to their length"
                ),
            }));
        }
        FileJob::Plan { .. } | FileJob::CarryOut(_) => return Ok(Err(in_place("cut off"))),
        FileJob::SetAttributes { .. } => return Ok(Err(in_place("given other attributes"))),
        FileJob::Release { told: Told { number, .. }, opens } => system.guarded(|ext4, _| {
            (0..opens).for_each(|_| ext4.close(inode_of(number)));
            Ok(FileDone::Done)
        })?,
        FileJob::Sync(_) => system.sync().map(|()| FileDone::Done)?,
    };
    Ok(Ok(done))
}

/// The refusal of what would change metadata.
fn in_place(what: &str) -> FileFailure {
    let detail = format!(
        "nothing in it can be {what}: it is a file system that another program made, whose files are overwritten in place and \
         not otherwise changed; mount it with the kernel for that"
    );
    FileFailure { status: Status::E_OPCODE, detail }
}

/// No file has the number 0.
fn inode_of(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(0)
}

fn open_file(
    system: &mut Mounted,
    volume: &Volume,
    who: &Credentials<'_>,
    open: &OpenFile,
) -> Result<FileOutcome, Ext4Error> {
    let access = Access::from_bits(open.access).unwrap_or(Access::NONE);
    if access.allows(Access::TRIM) {
        return Ok(Err(in_place("given up, as the right to trim allows")));
    }
    let path = open.path.as_bytes();
    let wanted = [(Access::READ, Rights::READ), (Access::WRITE, Rights::WRITE)]
        .into_iter()
        .filter(|(asked, _)| access.allows(*asked))
        .fold(Rights::NONE, |all, (_, right)| all | right);
    system.guarded(|ext4, disk| {
        if open.create != Create::Never || !open.follow {
            match ext4.stat(disk, path, who, open.follow) {
                Ok(_) if open.create == Create::New => return Ok(Err(exists(&open.path))),
                Ok(its) if !open.follow && its.kind == Kind::Link => {
                    let detail = format!("{} is a symbolic link, which is not to be followed", open.path);
                    return Ok(Err(FileFailure { status: Status::E_PARAM, detail }));
                }
                Err(Ext4Error::NotFound { .. }) if open.create != Create::Never => {
                    return Ok(Err(in_place("made")));
                }
                found => drop(found?),
            }
        }
        let opened = ext4.open_file(disk, path, who, wanted)?;
        let inode = opened.inode;
        let done = installed(volume, open, &opened);
        if !matches!(done, Ok(Ok(_))) {
            ext4.close(inode);
        }
        done
    })
}

fn exists(path: &FilePath) -> FileFailure {
    FileFailure { status: Status::E_EXISTS, detail: format!("{path} exists already") }
}

/// An opened file as the control plane knows it, if nothing more than that was asked for.
fn installed(volume: &Volume, open: &OpenFile, opened: &OpenedFile) -> Result<FileOutcome, Ext4Error> {
    if open.truncate && opened.length > 0 {
        return Ok(Err(in_place("cut off")));
    }
    opened.check_writable(0, open.allocate)?;
    let extents = laid_out(volume, opened).ok_or_else(|| Ext4Error::Damaged {
        place: store::ext4::Place::Inode(opened.inode),
        what: "its extents and holes do not make up its length".to_owned(),
    })?;
    let attributes = told(&opened.attributes);
    Ok(Ok(FileDone::Opened { attributes, extents, truncation: None, fixed: true }))
}

/// All of a file by its device blocks, without a gap: its extents, where they are on the device, and its holes. `None` if they
/// do not follow one another.
fn laid_out(volume: &Volume, opened: &OpenedFile) -> Option<Vec<LbaRange>> {
    let shift = opened.device_shift;
    let mut parts: Vec<(u64, Option<LbaRange>, u64)> = Vec::new();
    for extent in &opened.extents {
        parts.push((extent.offset >> shift, Some(extent.range), extent.range.count.0));
    }
    for hole in &opened.holes {
        parts.push((hole.offset >> shift, None, hole.bytes.div_ceil(1 << shift)));
    }
    parts.sort_unstable_by_key(|(at, ..)| *at);
    let (mut next, mut all) = (0, Vec::new());
    for (at, blocks, count) in parts {
        if at != next {
            return None;
        }
        match blocks {
            Some(range) => all.extend(volume.device_blocks(range)?),
            None => all.push(LbaRange::hole(at, count)?),
        }
        next = at.checked_add(count)?;
    }
    (next == opened.length.div_ceil(1 << shift)).then_some(all)
}

/// What a file system does alone.
fn alone(system: &mut Mounted, who: &Credentials<'_>, request: &Request) -> Result<FileOutcome, Ext4Error> {
    let reply = system.guarded(|ext4, disk| {
        Ok(Ok(match request {
            Request::StatPath { path, follow, .. } => {
                Reply::Attributes(told(&ext4.stat(disk, path.as_bytes(), who, *follow)?))
            }
            Request::ReadLink { path, .. } => {
                let target = ext4.read_link(disk, path.as_bytes(), who)?;
                match FilePath::new(target) {
                    Ok(target) => Reply::Link { target },
                    Err(error) => {
                        let detail = format!("the target of {path}: {error}");
                        return Ok(Err(FileFailure { status: Status::E_STORE, detail }));
                    }
                }
            }
            Request::ListDirectory { path, from, attributes, .. } => {
                let Some(cursor) = cursor_of(from) else {
                    let detail = "a listing does not go on there: no page ended so".to_owned();
                    return Ok(Err(FileFailure { status: Status::E_PARAM, detail }));
                };
                list(ext4, disk, who, (path.as_bytes(), cursor), *attributes)?
            }
            Request::StatVolume { .. } => Reply::FileSystem(info(ext4)),
            other => return Ok(Err(refused(other))),
        }))
    })?;
    Ok(reply.map(FileDone::Reply))
}

/// Why a request is not done here.
fn refused(request: &Request) -> FileFailure {
    match request {
        Request::RenameFile { .. } => in_place("renamed"),
        Request::UnlinkFile { .. } | Request::RemoveDirectory { .. } => in_place("removed"),
        Request::MakeDirectory { .. } => in_place("made"),
        Request::SetAttributes { .. } => in_place("given other attributes"),
        Request::SetFileQuota { .. } => in_place("limited"),
        Request::CheckFiles { .. } => FileFailure {
            status: Status::E_OPCODE,
            detail: "an ext4 is checked by e2fsck -f, while no adapter serves it".to_owned(),
        },
        _ => FileFailure { status: Status::E_OPCODE, detail: "not a request about files".to_owned() },
    }
}

fn cursor_of(from: &Cursor) -> Option<u64> {
    match from.as_bytes() {
        [] => Some(0),
        bytes => Some(u64::from_le_bytes(bytes.try_into().ok()?)),
    }
}

fn list(
    ext4: &mut Ext4,
    disk: &mut dyn driver::disk::Disk,
    who: &Credentials<'_>,
    (path, cursor): (&[u8], u64),
    attributes: bool,
) -> Result<Reply, Ext4Error> {
    let page = if attributes { ENTRIES_PAGE } else { NAMES_PAGE };
    let mut all = ext4.list(disk, path, who, cursor, page + 1)?;
    let more = all.len() > page;
    all.truncate(page);
    let next = all.last().filter(|_| more).and_then(|last| Cursor::new(last.next.to_le_bytes()).ok());
    // Some directories do not say what their entries are.
    let known = if attributes || all.iter().any(|entry| entry.kind.is_none()) {
        ext4.attributes_of(disk, path, who, &all)?
    } else {
        vec![None; all.len()]
    };
    let entry = |(entry, its): (store::ext4::DirectoryEntry, Option<Attributes>)| {
        let kind = entry.kind.or(its.as_ref().map(|its| its.kind)).map_or(FileKind::Other, kind_of);
        let its = its.filter(|_| attributes).map(|its| FileAttributes { access: Vec::new(), ..told(&its) });
        // A name that does not fit is none of this format.
        Some(DirectoryEntry {
            name: FileName::new(entry.name).ok()?,
            kind,
            number: entry.inode.into(),
            attributes: its,
        })
    };
    Ok(Reply::Directory { entries: all.into_iter().zip(known).filter_map(entry).collect(), next })
}

fn info(ext4: &Ext4) -> FileSystemInfo {
    let usage = ext4.usage();
    FileSystemInfo {
        kind: FileSystemKind::Ext4,
        block_size: usage.block_size,
        bytes: usage.bytes,
        free: usage.free,
        available: 0,
        files: usage.inodes.into(),
        free_files: 0,
        in_place: true,
        own: 0,
        quota: None,
    }
}

/// What is told of a file or directory.
fn told(its: &Attributes) -> FileAttributes {
    FileAttributes {
        kind: kind_of(its.kind),
        number: its.inode.into(),
        mode: its.permissions.mode & 0o7777,
        owner: its.permissions.uid,
        group: its.permissions.gid,
        links: its.links.into(),
        length: its.length,
        allocated: its.allocated,
        accessed: time_of(its.accessed),
        modified: time_of(its.modified),
        changed: time_of(its.changed),
        access: named_in(&its.permissions),
    }
}

fn kind_of(kind: Kind) -> FileKind {
    match kind {
        Kind::File => FileKind::Regular,
        Kind::Directory => FileKind::Directory,
        Kind::Link => FileKind::Symlink,
        Kind::CharacterDevice | Kind::BlockDevice | Kind::Pipe | Kind::Socket => FileKind::Other,
    }
}

fn time_of(Timestamp { seconds, nanoseconds }: Timestamp) -> Time {
    Time { seconds, nanoseconds }
}

impl From<Ext4Error> for FileFailure {
    fn from(error: Ext4Error) -> Self {
        let status = match &error {
            Ext4Error::NotFound { .. } => Status::E_NO_RESOURCE,
            Ext4Error::Denied { .. } => Status::E_AUTH,
            Ext4Error::Refused { .. } | Ext4Error::ReadOnly { .. } => Status::E_OPCODE,
            Ext4Error::NeedsAllocation { .. } | Ext4Error::TooMuch { .. } => Status::E_NO_RESOURCES,
            Ext4Error::NotADirectory { .. }
            | Ext4Error::WrongKind { .. }
            | Ext4Error::TooLong { .. }
            | Ext4Error::TooManyLinks { .. }
            | Ext4Error::AbsoluteLink { .. } => Status::E_PARAM,
            _ => Status::E_STORE,
        };
        Self { status, detail: error.to_string() }
    }
}
