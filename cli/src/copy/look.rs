//! What is known of something with a name, here or in a volume.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use portcullis::wire::files::{FileAttributes, FileKind, Time};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Look {
    pub(crate) kind: FileKind,
    /// Permission bits, set-id and sticky bits.
    pub(crate) mode: u16,
    pub(crate) owner: u32,
    pub(crate) group: u32,
    pub(crate) length: u64,
    /// Its number where it is.
    pub(crate) number: u64,
    pub(crate) accessed: Time,
    pub(crate) modified: Time,
}

impl Look {
    pub(crate) fn of_host(meta: &Metadata) -> Self {
        let kind = match meta.file_type() {
            kind if kind.is_file() => FileKind::Regular,
            kind if kind.is_dir() => FileKind::Directory,
            kind if kind.is_symlink() => FileKind::Symlink,
            _ => FileKind::Other,
        };
        let time = |seconds, nanoseconds: i64| Time {
            seconds,
            nanoseconds: u32::try_from(nanoseconds).unwrap_or(0),
        };
        Self {
            kind,
            mode: u16::try_from(meta.mode() & 0o7777).unwrap_or(0),
            owner: meta.uid(),
            group: meta.gid(),
            length: meta.len(),
            number: meta.ino(),
            accessed: time(meta.atime(), meta.atime_nsec()),
            modified: time(meta.mtime(), meta.mtime_nsec()),
        }
    }

    pub(crate) fn of_inside(its: &FileAttributes) -> Self {
        Self {
            kind: its.kind,
            mode: its.mode & 0o7777,
            owner: its.owner,
            group: its.group,
            length: its.length,
            number: its.number,
            accessed: its.accessed,
            modified: its.modified,
        }
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.kind == FileKind::Directory
    }

    pub(crate) fn is_regular(&self) -> bool {
        self.kind == FileKind::Regular
    }
}
