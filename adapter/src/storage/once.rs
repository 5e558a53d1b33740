//! Jobs for a file system of ours that are done once: what was done before by the same id is answered, and nothing is changed.

use store::files::{FileError, FileSystem, InodeNumber};
use store::permission::Credentials;
use store::{Granted, Volume, Wish};
use wire::control::{Reply, Request};
use wire::files::FileTarget;

use super::files::{self, FileDone, FileJob, FileOutcome, Who};

/// A job that grants a wish, unless that was granted.
///
/// # Errors
/// As [`files::perform`].
pub(super) fn perform(
    system: &mut FileSystem,
    volume: &Volume,
    who: &Who,
    job: FileJob,
    wish: Wish,
) -> Result<FileOutcome, FileError> {
    match (system.granted(wish.user, &wish.id), job) {
        (_, FileJob::Open(open)) => {
            let as_who = Credentials { uid: who.uid, gid: who.gid, groups: &who.groups };
            let opened = system.open_once(&as_who, open.path.as_bytes(), files::how(&open), wish)?;
            Ok(Ok(files::opened(system, volume, &as_who, &open, opened)?))
        }
        (Some(granted), job) => Ok(Ok(again(system, who, &job, &granted)?)),
        // What is planned is granted when it is carried out.
        (None, job @ FileJob::Plan { .. }) => files::perform(system, volume, who, job),
        (None, job) => {
            let done = files::perform(system, volume, who, job)?;
            if let Ok(done) = &done {
                system.grant(wish, subject_of(done))?;
            }
            Ok(done)
        }
    }
}

/// The file that was changed, where the answer will need it.
fn subject_of(done: &FileDone) -> u64 {
    match done {
        FileDone::Reply(Reply::Attributes(its)) => its.number,
        FileDone::Changed { attributes, .. } => attributes.number,
        _ => 0,
    }
}

/// The answer to what was done before.
fn again(
    system: &mut FileSystem,
    who: &Who,
    job: &FileJob,
    granted: &Granted,
) -> Result<FileDone, FileError> {
    let as_who = Credentials { uid: who.uid, gid: who.gid, groups: &who.groups };
    Ok(match job {
        FileJob::SetAttributes { number, .. } => {
            FileDone::Reply(Reply::Attributes(files::known(system, InodeNumber(*number))?))
        }
        FileJob::Alone(Request::SetAttributes { of: FileTarget::Path { path, .. }, .. }) => {
            let found = system.stat(&as_who, path.as_bytes());
            match found {
                Ok(found) if found.inode.0 == granted.subject => {
                    FileDone::Reply(Reply::Attributes(files::told(&found)))
                }
                Ok(_) | Err(FileError::NotFound { .. }) => {
                    return Err(FileError::GoneSince { path: path.to_string() });
                }
                Err(error) => return Err(error),
            }
        }
        _ => FileDone::Done,
    })
}
