//! The file system on a disk in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use driver::disk::{Disk, MemoryDisk};

use super::*;
use crate::permission::{Acl, Party, Rights};

const ROOT: Credentials<'static> = Credentials::ROOT;
const UNIT: u64 = 4096;

fn user(uid: u32) -> Credentials<'static> {
    Credentials { uid, gid: uid, groups: &[] }
}

fn disk(block_shift: u8, megabytes: u64) -> MemoryDisk {
    MemoryDisk::new(block_shift, (megabytes << 20) >> block_shift)
}

fn options() -> FormatOptions {
    FormatOptions { uuid: Some([7; 16]), mode: 0o777, ..FormatOptions::default() }
}

/// A clock that ticks at every look.
fn ticking(mut files: FileSystem) -> FileSystem {
    let now = Arc::new(AtomicI64::new(1000));
    files.set_clock(move || Timestamp(now.fetch_add(1, Ordering::Relaxed)));
    files
}

fn format(disk: &MemoryDisk) -> FileSystem {
    ticking(FileSystem::format(Box::new(disk.clone()), options()).unwrap())
}

fn open(disk: &MemoryDisk) -> Result<FileSystem, FileError> {
    FileSystem::open(Box::new(disk.clone())).map(ticking)
}

fn reopen(files: FileSystem, disk: &MemoryDisk) -> FileSystem {
    files.close().unwrap();
    let mut files = open(disk).unwrap();
    assert_eq!(files.check().unwrap(), []);
    files
}

fn error<T>(result: Result<T, FileError>) -> FileError {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(error) => error,
    }
}

/// Makes a file of so many bytes, with its blocks, closed again.
fn make(files: &mut FileSystem, who: &Credentials<'_>, path: &str, bytes: u64) -> InodeNumber {
    let opened = files.open_file(who, path.as_bytes(), How::create(0o644)).unwrap();
    files.grow(opened.inode, bytes).unwrap();
    files.report(opened.inode, bytes, None).unwrap();
    files.release(opened.inode).unwrap();
    opened.inode
}

fn list(files: &mut FileSystem, path: &str) -> Vec<String> {
    let listed = files.list(&ROOT, path.as_bytes(), b"", 4096).unwrap();
    listed.into_iter().map(|entry| String::from_utf8(entry.name).unwrap()).collect()
}

/// All bytes of the blocks of a file.
fn content(files: &mut FileSystem, disk: &MemoryDisk, inode: InodeNumber) -> Vec<u8> {
    let mut content = Vec::new();
    for extent in files.extents(inode, 0, usize::MAX).unwrap() {
        assert_eq!(extent.offset, content.len() as u64, "no gaps");
        let start = content.len();
        content.resize(
            start + usize::try_from(extent.blocks.count.0 << disk.geometry().block_shift).unwrap(),
            0,
        );
        disk.clone().read(extent.blocks.first.0, &mut content[start..]).unwrap();
    }
    content
}

/// Writes all blocks of a file, as somebody may who has it open.
fn scribble(files: &mut FileSystem, disk: &MemoryDisk, inode: InodeNumber, value: u8) {
    for extent in files.extents(inode, 0, usize::MAX).unwrap() {
        let bytes = usize::try_from(extent.blocks.count.0 << disk.geometry().block_shift).unwrap();
        disk.clone().write(extent.blocks.first.0, &vec![value; bytes]).unwrap();
    }
}

fn soil(disk: &MemoryDisk) {
    for lba in 0..disk.geometry().blocks {
        disk.alter(lba, |bytes| bytes.fill(0xee));
    }
}

#[test]
fn files_are_made_found_listed_and_removed() {
    for shift in [9, 12] {
        let disk = disk(shift, 32);
        let mut files = format(&disk);
        files.make_directory(&ROOT, b"/d", 0o755).unwrap();
        let one = make(&mut files, &ROOT, "/d/one", 10_000);
        let two = make(&mut files, &ROOT, "/d/two", 0);
        assert_eq!(list(&mut files, "/d"), ["one", "two"]);
        let mut files = reopen(files, &disk);
        assert_eq!(files.resolve(&ROOT, b"/d/one").unwrap(), one);
        let found = files.stat(&ROOT, b"/d/one").unwrap();
        assert_eq!((found.length, found.allocated), (10_000, 12_288));
        files.rename(&ROOT, b"/d/one", b"/two", true).unwrap();
        files.rename(&ROOT, b"/two", b"/d/two", true).unwrap();
        assert_eq!(list(&mut files, "/d"), ["two"]);
        assert_eq!(files.resolve(&ROOT, b"/d/two").unwrap(), one);
        assert_eq!(error(files.attributes(two)), FileError::NotOpen(two));
        files.unlink(&ROOT, b"/d/two").unwrap();
        files.remove_directory(&ROOT, b"/d").unwrap();
        let mut files = reopen(files, &disk);
        assert_eq!(list(&mut files, "/"), [""; 0]);
        let usage = files.usage();
        assert_eq!((usage.free, usage.inodes), (usage.bytes, 1));
        let three = make(&mut files, &ROOT, "/three", 1);
        assert!(three > two, "numbers are not used twice");
    }
}

#[test]
fn rights_are_asked_on_the_way_and_at_the_end() {
    let disk = disk(12, 32);
    let mut files = format(&disk);
    let (anna, bert) = (user(1), user(2));
    files.make_directory(&anna, b"/home", 0o750).unwrap();
    let inode = make(&mut files, &anna, "/home/file", UNIT);
    let denied = |result| assert!(matches!(result, Err(FileError::Denied { uid: 2, .. })), "{result:?}");
    denied(files.resolve(&bert, b"/home/file").map(drop));
    denied(files.list(&bert, b"/home", b"", 1).map(drop));
    let mode = |mode| Changes { mode: Some(mode), ..Changes::default() };
    let home = files.resolve(&anna, b"/home").unwrap();
    files.set_attributes(&anna, home, &mode(0o711)).unwrap();
    assert_eq!(files.resolve(&bert, b"/home/file").unwrap(), inode);
    denied(files.list(&bert, b"/home", b"", 1).map(drop));
    denied(files.open_file(&bert, b"/home/file", How::READ_WRITE).map(drop));
    denied(files.open_file(&bert, b"/home/new", How::create(0o600)).map(drop));
    denied(files.unlink(&bert, b"/home/file"));
    denied(files.rename(&bert, b"/home/file", b"/mine", true));
    denied(files.make_directory(&bert, b"/home/x", 0o777).map(drop));
    files.open_file(&bert, b"/home/file", How::READ).unwrap();
    let error = error(files.set_attributes(&bert, inode, &mode(0o777)));
    assert!(matches!(error, FileError::NotPermitted { uid: 2, .. }));
    let acl = [
        (Party::Owner, Rights::READ),
        (Party::User(2), Rights::READ | Rights::WRITE),
        (Party::OwningGroup, Rights::NONE),
        (Party::Mask, Rights::ALL),
        (Party::Other, Rights::NONE),
    ];
    let list = Changes { acl: Some(Some(Acl::new(acl.to_vec()).unwrap())), ..Changes::default() };
    files.set_attributes(&anna, inode, &list).unwrap();
    files.release(inode).unwrap();
    let mut files = reopen(files, &disk);
    files.open_file(&bert, b"/home/file", How::READ_WRITE).unwrap();
    assert!(files.open_file(&user(3), b"/home/file", How::READ).is_err());
    assert_eq!(files.check().unwrap(), []);
}

/// An unlinked open file lives until its last release; what it had is free only after a sync.
#[test]
fn an_unlinked_file_lives_until_it_is_released() {
    let disk = disk(12, 32);
    let mut files = format(&disk);
    let inode = make(&mut files, &ROOT, "/f", 10 * UNIT);
    files.sync().unwrap();
    let free = files.usage().free;
    files.open_file(&ROOT, b"/f", How::READ).unwrap();
    files.open_file(&ROOT, b"/f", How::READ).unwrap();
    files.unlink(&ROOT, b"/f").unwrap();
    assert!(matches!(files.resolve(&ROOT, b"/f"), Err(FileError::NotFound { .. })));
    assert_eq!(files.check().unwrap(), []);
    files.release(inode).unwrap();
    assert_eq!(content(&mut files, &disk, inode).len(), 40_960);
    assert_eq!(files.usage().free, free);
    files.release(inode).unwrap();
    assert_eq!(error(files.attributes(inode)), FileError::NotOpen(inode));
    assert_eq!(error(files.release(inode)), FileError::NotOpen(inode));
    assert_eq!((files.pool.free(), files.pool.waiting()), (free / UNIT, 10));
    files.sync().unwrap();
    assert_eq!((files.pool.free(), files.pool.waiting()), (free / UNIT + 10, 0));
    // The same, but nobody lives to release it.
    let inode = make(&mut files, &ROOT, "/f", 10 * UNIT);
    files.open_file(&ROOT, b"/f", How::READ).unwrap();
    files.unlink(&ROOT, b"/f").unwrap();
    let mut files = reopen(files, &disk);
    assert_eq!(error(files.attributes(inode)), FileError::NotOpen(inode));
    assert_eq!(files.usage().free, free + 10 * UNIT);
}
