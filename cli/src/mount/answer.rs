//! How the kernel is answered: attributes, times and errors in its terms.

use std::time::{Duration, SystemTime};

use fuser::{Errno, FileAttr, FileType, INodeNo, TimeOrNow};
use portcullis::wire::files::{FileAttributes, FileKind, SetTime, Time};
use portcullis::{Error, Status};

/// Why something cannot be done, as the kernel says it to its applications.
pub(super) fn errno(error: &Error) -> Errno {
    match error.status() {
        Some(Status::E_NO_RESOURCE) => Errno::ENOENT,
        Some(Status::E_EXISTS) => Errno::EEXIST,
        Some(Status::E_AUTH | Status::E_ACCESS) => Errno::EACCES,
        Some(Status::E_NO_RESOURCES) => Errno::ENOSPC,
        Some(Status::E_BUSY_TIMEOUT) => Errno::EBUSY,
        Some(Status::E_PARAM | Status::E_BOUNDS | Status::E_ALIGN) => Errno::EINVAL,
        Some(Status::E_OPCODE) => Errno::EOPNOTSUPP,
        // The file was taken away from under the one who has it open.
        Some(Status::E_ENTRY_INVALID | Status::E_KEY_INSTANCE | Status::E_KEY_RANGE | Status::E_SEGMENT) => {
            Errno::ESTALE
        }
        _ => Errno::EIO,
    }
}

pub(super) fn kind(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        // Of a device, a pipe or a socket nobody is told which, and nothing can be done with it.
        FileKind::Other => FileType::Socket,
    }
}

pub(super) fn attributes(number: u64, its: &FileAttributes) -> FileAttr {
    let modified = system_time(its.modified);
    FileAttr {
        ino: INodeNo(number),
        size: its.length,
        blocks: its.allocated.div_ceil(512),
        atime: system_time(its.accessed),
        mtime: modified,
        ctime: system_time(its.changed),
        crtime: modified,
        kind: kind(its.kind),
        perm: its.mode & 0o7777,
        nlink: its.links,
        uid: its.owner,
        gid: its.group,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// 1970 for what no clock shows.
fn system_time(time: Time) -> SystemTime {
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = match time.seconds {
        0.. => SystemTime::UNIX_EPOCH.checked_add(seconds),
        _ => SystemTime::UNIX_EPOCH.checked_sub(seconds),
    };
    let time = whole.and_then(|whole| whole.checked_add(Duration::from_nanos(time.nanoseconds.into())));
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    let TimeOrNow::SpecificTime(time) = time else { return SetTime::Now };
    let (before, distance) = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => (false, since),
        Err(error) => (true, error.duration()),
    };
    let seconds = i64::try_from(distance.as_secs()).unwrap_or(i64::MAX);
    SetTime::At(match (before, distance.subsec_nanos()) {
        (false, nanoseconds) => Time { seconds, nanoseconds },
        (true, 0) => Time { seconds: -seconds, nanoseconds: 0 },
        (true, nanoseconds) => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_go_both_ways() {
        for (seconds, nanoseconds) in [(0, 0), (5, 999_999_999), (-1, 0), (-5, 1), (4_000_000_000, 7)] {
            let time = Time { seconds, nanoseconds };
            assert_eq!(set_time(TimeOrNow::SpecificTime(system_time(time))), SetTime::At(time));
        }
        assert_eq!(set_time(TimeOrNow::Now), SetTime::Now);
        let never = Time { seconds: i64::MAX, nanoseconds: u32::MAX };
        assert_eq!(system_time(never), SystemTime::UNIX_EPOCH);
    }

    #[test]
    fn errors_are_those_that_tools_know() {
        let errno = |status| i32::from(errno(&Error::Refused { status, detail: String::new() }));
        assert_eq!(errno(Status::E_NO_RESOURCE), libc::ENOENT);
        assert_eq!(errno(Status::E_AUTH), libc::EACCES);
        assert_eq!(errno(Status::E_NO_RESOURCES), libc::ENOSPC);
        assert_eq!(errno(Status::E_KEY_INSTANCE), libc::ESTALE);
        assert_eq!(errno(Status::E_DEVICE), libc::EIO);
    }
}
