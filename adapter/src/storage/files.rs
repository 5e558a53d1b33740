//! File systems in volumes, on the store's thread: each is opened when first asked for, and does one job after another.

mod terms;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use store::ext4::{Ext4Error, Mounted};
use store::files::{FileError, FileSystem, FormatOptions, InodeNumber, Opened, Truncation};
use store::permission::Credentials;
use store::{StoreError, Volume, VolumeId, VolumeKind, Wish};
use tpt::LbaRange;
use wire::Status;
use wire::control::{Reply, Request};
use wire::files::{
    AttributeChange, CheckReport, Cursor, DirectoryEntry, FileAttributes, FileName, FileSystemInfo,
    FileSystemKind, OpenFile,
};

use super::contents::Contents;
use super::{Job, ext4, once};
use terms::{changes, now, on_device};
pub(super) use terms::{how, named_in, told};

/// Entries in one reply to a listing: what surely fits a message.
pub(super) const ENTRIES_PAGE: usize = 48;
/// The same without attributes.
pub(super) const NAMES_PAGE: usize = 50;
/// Bytes zeroed in advance between two looks for a job.
const ZEROED: u64 = 4 << 20;
/// Findings that a report of a check tells, and bytes of each.
const FINDINGS: usize = 16;
const FINDING_BYTES: usize = 400;

/// Who asks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Who {
    /// Its user id.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
    /// Sorted.
    pub groups: Vec<u32>,
}

/// How long an open file is now, and whether it was written to since the file system last heard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Told {
    /// Of which.
    pub number: u64,
    /// In bytes.
    pub length: u64,
    /// Whether it was.
    pub written: bool,
}

/// What a file system is asked to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FileJob {
    /// What it does alone, as the request says.
    Alone(Request),
    /// To open a file.
    Open(OpenFile),
    /// More blocks for an open file.
    Grow {
        /// The file.
        number: u64,
        /// For so many bytes from its start.
        bytes: u64,
        /// Also when it is closed.
        keep: bool,
        /// It becomes as long.
        lengthens: bool,
    },
    /// What would go if an open file had this length.
    Plan {
        /// The file, as it is.
        told: Told,
        /// In bytes.
        length: u64,
    },
    /// Nobody reaches it any more.
    CarryOut(Truncation),
    /// To change attributes of an open file.
    SetAttributes {
        /// What was written before, if the file's times are to be set.
        told: Option<Told>,
        /// The file.
        number: u64,
        /// What changes.
        change: AttributeChange,
    },
    /// So often it is open no longer.
    Release {
        /// The file, as it is.
        told: Told,
        /// How often.
        opens: u32,
    },
    /// To make all durable, and these lengths first.
    Sync(Vec<Told>),
}

/// What came of it.
#[derive(Debug)]
pub enum FileDone {
    /// The answer.
    Reply(Reply),
    /// A file is open.
    Opened {
        /// What is known of it.
        attributes: FileAttributes,
        /// Where it lies on the device, and its holes.
        extents: Vec<LbaRange>,
        /// What is to be cut off first.
        truncation: Option<Truncation>,
        /// Whether its length stays what it is, whatever is written.
        fixed: bool,
    },
    /// A file has other blocks.
    Changed {
        /// What is known of it.
        attributes: FileAttributes,
        /// Where it lies on the device.
        extents: Vec<LbaRange>,
    },
    /// What would go.
    Planned(Truncation),
    /// Names changed, and with them what is known of these files.
    Renamed(Vec<FileAttributes>),
    /// Nothing to be told.
    Done,
}

/// Why it did not.
#[derive(Debug)]
pub struct FileFailure {
    /// The code.
    pub status: Status,
    /// What was wrong, with what value, and what to do.
    pub detail: String,
}

/// Why nothing is done any more.
pub(super) fn ended() -> FileFailure {
    FileFailure { status: Status::E_PATH, detail: "the adapter ends".to_owned() }
}

/// What came of a job, or why it was not done.
pub type FileOutcome = Result<FileDone, FileFailure>;

/// The file systems that were opened.
#[derive(Default)]
pub(super) struct FileSystems {
    open: BTreeMap<VolumeId, System>,
}

enum System {
    Own(Box<FileSystem>),
    Ext4(Box<Mounted>),
}

impl FileSystems {
    /// Does a job, if the volume is still there.
    pub(super) fn execute(
        &mut self,
        contents: &mut Contents,
        volume: VolumeId,
        who: &Who,
        (job, wish): (FileJob, Option<Wish>),
    ) -> Result<FileDone, FileFailure> {
        let found = contents.volumes()?.into_iter().find(|its| its.id == volume);
        let Some(found) = found else {
            self.open.remove(&volume);
            let detail = "the volume was deleted".to_owned();
            return Err(FileFailure { status: Status::E_NO_RESOURCE, detail });
        };
        if let FileJob::Alone(Request::FormatFiles { force, .. }) = job {
            return self.format(contents, &found, who, force);
        }
        match self.mounted(contents, &found)? {
            System::Own(system) => system.guarded(|system| match wish {
                Some(wish) => once::perform(system, &found, who, job, wish),
                None => perform(system, &found, who, job),
            })?,
            // Whatever would change something there is refused, however often.
            System::Ext4(system) => {
                let done = ext4::perform(system, &found, who, job);
                // Somebody else used it: what it is now is seen when it is opened again.
                if matches!(done, Err(Ext4Error::Changed)) && system.is_idle() {
                    self.open.remove(&volume);
                }
                done?
            }
        }
    }

    /// Closes the file system in a volume that the job is going to take away.
    pub(super) fn let_go(&mut self, contents: &Contents, job: &Job) {
        if let Job::Delete { name } | Job::Shrink { name, .. } = job
            && let Ok(volume) = contents.volume(name)
        {
            self.open.remove(&volume.id);
        }
    }

    /// Zeroes a few blocks in advance. Whether there may be more to do.
    pub(super) fn zero_some(&mut self) -> bool {
        // One that fails tells who asks it for something next.
        self.open.values_mut().any(|system| match system {
            System::Own(system) => system.guarded(|system| system.zero_some(ZEROED)).is_ok_and(|n| n > 0),
            System::Ext4(_) => false,
        })
    }

    /// Makes everything durable and lets go. False if that failed.
    pub(super) fn close(&mut self) -> bool {
        let mut all = true;
        for (volume, system) in std::mem::take(&mut self.open) {
            let synced = match system {
                System::Own(mut system) => system.guarded(FileSystem::settle).map_err(FileFailure::from),
                System::Ext4(mut system) => system.sync().map_err(FileFailure::from),
            };
            if let Err(FileFailure { detail: error, .. }) = synced {
                tracing::error!(%volume, %error, "the files of a volume are as they were at their last sync");
                all = false;
            }
        }
        all
    }

    /// Whose files are served.
    pub(super) fn volumes(&self) -> BTreeSet<VolumeId> {
        self.open.keys().copied().collect()
    }

    fn mounted(&mut self, contents: &mut Contents, volume: &Volume) -> Result<&mut System, FileFailure> {
        let place = match self.open.entry(volume.id) {
            Entry::Occupied(place) => return Ok(place.into_mut()),
            Entry::Vacant(place) => place,
        };
        let no_files = || FileFailure {
            status: Status::E_STORE,
            detail: format!(
                "volume {:?} holds no files; `portcullis volume format {}` makes an empty file system in it",
                volume.name, volume.name
            ),
        };
        if volume.kind != VolumeKind::AsFound {
            match FileSystem::open(contents.window(&volume.name)?) {
                Ok(system) => return Ok(place.insert(System::Own(Box::new(system)))),
                Err(FileError::Store(StoreError::Blank | StoreError::Foreign { .. }))
                    if volume.kind == VolumeKind::Blocks => {}
                Err(FileError::Store(StoreError::Blank | StoreError::Foreign { .. })) => {
                    return Err(no_files());
                }
                Err(error) => return Err(error.into()),
            }
        }
        match Mounted::open(contents.window(&volume.name)?) {
            Ok(system) => Ok(place.insert(System::Ext4(Box::new(system)))),
            Err(Ext4Error::NotExt4 { .. }) => Err(no_files()),
            Err(error) => Err(error.into()),
        }
    }
}

impl FileSystems {
    fn format(
        &mut self,
        contents: &mut Contents,
        volume: &Volume,
        who: &Who,
        force: bool,
    ) -> Result<FileDone, FileFailure> {
        self.open.remove(&volume.id);
        if volume.kind == VolumeKind::AsFound {
            return Err(StoreError::NoStore.into());
        }
        let disk = contents.window(&volume.name)?;
        let options = FormatOptions { force, uid: who.uid, gid: who.gid, ..FormatOptions::default() };
        let mut system = FileSystem::format(disk, options)?;
        let info = volume_info(&mut system, who)?;
        contents.set_kind(&volume.name, VolumeKind::Files)?;
        self.open.insert(volume.id, System::Own(Box::new(system)));
        Ok(FileDone::Reply(Reply::FileSystem(info)))
    }
}

/// One job of one file system.
pub(super) fn perform(
    system: &mut FileSystem,
    volume: &Volume,
    who: &Who,
    job: FileJob,
) -> Result<Result<FileDone, FileFailure>, FileError> {
    let as_who = Credentials { uid: who.uid, gid: who.gid, groups: &who.groups };
    Ok(Ok(match job {
        FileJob::Alone(request) => return alone(system, who, request),
        FileJob::Open(open) => {
            let opened = system.open_file(&as_who, open.path.as_bytes(), how(&open))?;
            self::opened(system, volume, &as_who, &open, opened)?
        }
        FileJob::Grow { number, bytes, keep, lengthens } => {
            let grow = if keep { FileSystem::reserve } else { FileSystem::grow };
            grow(system, InodeNumber(number), bytes)?;
            if lengthens {
                system.report(InodeNumber(number), bytes, Some(now()))?;
            }
            changed(system, volume, number)?
        }
        FileJob::Plan { told, length } => {
            report(system, told)?;
            FileDone::Planned(system.truncate(InodeNumber(told.number), length)?)
        }
        FileJob::CarryOut(plan) => {
            system.drained(&plan)?;
            changed(system, volume, plan.inode.0)?
        }
        FileJob::SetAttributes { told, number, change } => {
            told.into_iter().try_for_each(|told| report(system, told))?;
            let number = InodeNumber(number);
            let changes = match changes(system, number, change)? {
                Ok(changes) => changes,
                Err(failure) => return Ok(Err(failure)),
            };
            system.set_attributes(&as_who, number, &changes)?;
            FileDone::Reply(Reply::Attributes(known(system, number)?))
        }
        FileJob::Release { told, opens } => {
            report(system, told)?;
            for _ in 0..opens {
                system.release(InodeNumber(told.number))?;
            }
            FileDone::Done
        }
        FileJob::Sync(all) => {
            all.into_iter().try_for_each(|told| report(system, told))?;
            system.sync()?;
            FileDone::Done
        }
    }))
}

/// What a file system does alone.
fn alone(
    system: &mut FileSystem,
    who: &Who,
    request: Request,
) -> Result<Result<FileDone, FileFailure>, FileError> {
    let as_who = Credentials { uid: who.uid, gid: who.gid, groups: &who.groups };
    let reply = match request {
        Request::RenameFile { from, to, replace, .. } => {
            let both = [&from, &to].map(|path| system.resolve(&as_who, path.as_bytes()).ok());
            system.rename(&as_who, from.as_bytes(), to.as_bytes(), replace)?;
            return Ok(Ok(renamed(system, &both)));
        }
        Request::UnlinkFile { path, .. } => {
            let file = system.resolve(&as_who, path.as_bytes()).ok();
            system.unlink(&as_who, path.as_bytes())?;
            return Ok(Ok(renamed(system, &[file])));
        }
        Request::MakeDirectory { path, mode, .. } => {
            system.make_directory(&as_who, path.as_bytes(), mode)?;
            Reply::Done
        }
        Request::RemoveDirectory { path, .. } => {
            system.remove_directory(&as_who, path.as_bytes())?;
            Reply::Done
        }
        Request::StatPath { path, .. } => Reply::Attributes(told(&system.stat(&as_who, path.as_bytes())?)),
        Request::ListDirectory { path, from, attributes, .. } => {
            list(system, &as_who, path.as_bytes(), &from, attributes)?
        }
        Request::SetAttributes { of: wire::files::FileTarget::Path { path, .. }, change } => {
            let number = system.resolve(&as_who, path.as_bytes())?;
            let changes = match changes(system, number, change)? {
                Ok(changes) => changes,
                Err(failure) => return Ok(Err(failure)),
            };
            Reply::Attributes(told(&system.set_attributes(&as_who, number, &changes)?))
        }
        Request::StatVolume { .. } => Reply::FileSystem(volume_info(system, who)?),
        Request::SetFileQuota { user, bytes, .. } => {
            // The control plane has seen that the caller owns the volume or administers.
            system.set_quota(&Credentials { uid: 0, gid: 0, groups: &[] }, user, bytes, None)?;
            Reply::Done
        }
        Request::CheckFiles { repair, .. } => {
            if repair {
                let detail = "these file systems are checked and not repaired; copy out what can be read, and \
                              format the volume";
                return Ok(Err(FileFailure { status: Status::E_OPCODE, detail: detail.to_owned() }));
            }
            Reply::Checked(check(system)?)
        }
        Request::ReadLink { .. } => {
            let detail = "there are no symbolic links in a file system of this format".to_owned();
            return Ok(Err(FileFailure { status: Status::E_PARAM, detail }));
        }
        _ => {
            let detail = "not a request about files".to_owned();
            return Ok(Err(FileFailure { status: Status::E_OPCODE, detail }));
        }
    };
    Ok(Ok(FileDone::Reply(reply)))
}

/// What the control plane needs to know of a file that was opened, with the room that was asked for. Without that room it is closed,
/// and gone if it was made for this.
pub(super) fn opened(
    system: &mut FileSystem,
    volume: &Volume,
    who: &Credentials<'_>,
    open: &OpenFile,
    opened: Opened,
) -> Result<FileDone, FileError> {
    let (number, truncation) = (opened.inode, opened.truncation);
    if open.allocate > 0
        && truncation.is_none()
        && let Err(error) = system.reserve(number, open.allocate)
    {
        system.release(number)?;
        if opened.created {
            system.unlink(who, open.path.as_bytes())?;
        }
        return Err(error);
    }
    let extents = on_device(volume, &system.extents(number, 0, usize::MAX)?);
    Ok(FileDone::Opened { attributes: known(system, number)?, extents, truncation, fixed: false })
}

fn changed(system: &mut FileSystem, volume: &Volume, number: u64) -> Result<FileDone, FileError> {
    let number = InodeNumber(number);
    let extents = on_device(volume, &system.extents(number, 0, usize::MAX)?);
    Ok(FileDone::Changed { attributes: known(system, number)?, extents })
}

/// What had these names, as far as it is still there.
fn renamed(system: &mut FileSystem, files: &[Option<InodeNumber>]) -> FileDone {
    FileDone::Renamed(files.iter().flatten().filter_map(|number| known(system, *number).ok()).collect())
}

/// What is known of a file that may have lost its name.
pub(super) fn known(system: &mut FileSystem, number: InodeNumber) -> Result<FileAttributes, FileError> {
    let links = u32::from(system.has_name(number));
    Ok(FileAttributes { links, ..told(&system.attributes(number)?) })
}

fn report(system: &mut FileSystem, told: Told) -> Result<(), FileError> {
    let modified = told.written.then(now);
    system.report(InodeNumber(told.number), told.length, modified)
}

fn list(
    system: &mut FileSystem,
    who: &Credentials<'_>,
    path: &[u8],
    from: &Cursor,
    attributes: bool,
) -> Result<Reply, FileError> {
    let page = if attributes { ENTRIES_PAGE } else { NAMES_PAGE };
    let mut all = system.list(who, path, from.as_bytes(), page + 1)?;
    let more = all.len() > page;
    all.truncate(page);
    let next = all.last().filter(|_| more).and_then(|last| Cursor::new(last.name.clone()).ok());
    let entry = |listed: store::files::Listed| {
        let its = told(&listed.attributes);
        let (kind, number) = (its.kind, its.number);
        let attributes = attributes.then_some(FileAttributes { access: Vec::new(), ..its });
        // A name that does not fit is none of this format.
        Some(DirectoryEntry { name: FileName::new(listed.name).ok()?, kind, number, attributes })
    };
    Ok(Reply::Directory { entries: all.into_iter().filter_map(entry).collect(), next })
}

fn check(system: &mut FileSystem) -> Result<CheckReport, FileError> {
    let found = system.check()?;
    let findings = found.iter().take(FINDINGS).map(|finding| {
        let mut line = wire::name::escape(&finding.to_string());
        let mut end = FINDING_BYTES.min(line.len());
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        line.truncate(end);
        line
    });
    Ok(CheckReport {
        files: system.usage().inodes,
        extents: 0,
        found: found.len() as u64,
        repaired: 0,
        findings: findings.collect(),
    })
}

fn volume_info(system: &mut FileSystem, who: &Who) -> Result<FileSystemInfo, FileError> {
    let as_who = Credentials { uid: who.uid, gid: who.gid, groups: &who.groups };
    let (usage, quota) = (system.usage(), system.quota(&as_who, who.uid)?);
    let left = quota.byte_limit.map_or(u64::MAX, |limit| limit.saturating_sub(quota.bytes));
    let record = usage.metadata_used / usage.inodes.max(1);
    Ok(FileSystemInfo {
        kind: FileSystemKind::Portcullis,
        block_size: u32::try_from(system.allocation_unit()).unwrap_or(u32::MAX),
        bytes: usage.bytes,
        free: usage.free,
        available: usage.free.min(left),
        files: usage.inodes,
        free_files: usage.metadata.saturating_sub(usage.metadata_used) / record.max(64),
        in_place: false,
        own: quota.bytes,
        quota: quota.byte_limit,
    })
}
