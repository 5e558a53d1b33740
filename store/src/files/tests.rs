//! The file system on a disk in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use driver::disk::{Disk, MemoryDisk};

use super::plant::{Row, plant};
use super::*;
use crate::permission::{Acl, Party, Rights, SET_GID, SET_UID, STICKY};

mod crash;
mod hostile;
mod many;
mod model;
mod once;
mod room;

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

#[test]
fn new_blocks_read_as_zero_and_what_is_cut_off_does_not_come_back() {
    for (shift, deallocate_zeroes) in [(9, false), (12, true)] {
        let mut disk = disk(shift, 32);
        disk.geometry_mut().deallocate_zeroes = deallocate_zeroes;
        soil(&disk);
        let mut files = format(&disk);
        assert_eq!(files.zero_some(100 * UNIT).unwrap(), 100 * UNIT);
        let inode = make(&mut files, &ROOT, "/f", 300 * UNIT);
        assert!(content(&mut files, &disk, inode).iter().all(|byte| *byte == 0));
        scribble(&mut files, &disk, inode, 0xaa);
        // In the middle of a block, and of a device block.
        let length = 10 * UNIT + 700;
        let plan = files.truncate(inode, length).unwrap();
        assert_eq!(
            plan.given_up.iter().map(|extent| extent.blocks.count.0 << shift).sum::<u64>(),
            289 * UNIT
        );
        assert_eq!(plan.given_up[0].offset, 11 * UNIT);
        assert_eq!(plan.tail.map(|tail| tail.offset), Some(10 * UNIT));
        assert_eq!(files.attributes(inode).unwrap().length, 300 * UNIT, "nothing has happened yet");
        let attributes = files.drained(&plan).unwrap();
        assert_eq!((attributes.length, attributes.allocated), (length, 11 * UNIT));
        let found = content(&mut files, &disk, inode);
        let (kept, cut) = found.split_at(usize::try_from(length).unwrap());
        assert!(kept.iter().all(|byte| *byte == 0xaa) && cut.iter().all(|byte| *byte == 0));
        assert_eq!(error(files.drained(&plan)), FileError::Changed(inode), "a plan is carried out once");
        // Longer again, over the block's end: all that is new is zero.
        files.grow(inode, 40 * UNIT).unwrap();
        let plan = files.truncate(inode, 40 * UNIT).unwrap();
        assert_eq!((plan.given_up.len(), plan.tail), (0, None));
        files.drained(&plan).unwrap();
        let found = content(&mut files, &disk, inode);
        assert!(found[usize::try_from(length).unwrap()..].iter().all(|byte| *byte == 0));
        assert!(matches!(error(files.truncate(inode, 40 * UNIT + 1)), FileError::Size { .. }));
        reopen(files, &disk);
    }
}

/// Blocks that a file gave up go to nobody before that is durable: else a power cut would give them back to it.
#[test]
fn given_up_blocks_are_used_again_only_after_a_sync() {
    let disk = disk(12, 16);
    let mut files = format(&disk);
    let all = files.usage().bytes;
    let old = make(&mut files, &ROOT, "/old", all);
    scribble(&mut files, &disk, old, 1);
    files.sync().unwrap();
    files.unlink(&ROOT, b"/old").unwrap();
    assert_eq!(files.usage().free, all);
    let new = files.open_file(&ROOT, b"/new", How::create(0o600)).unwrap().inode;
    let steps = disk.steps();
    files.grow(new, UNIT).unwrap();
    assert!(disk.steps() > steps + 5, "it synced by itself, there was nothing else to give");
    scribble(&mut files, &disk, new, 2);
    drop(files);
    disk.power_cut(0);
    let mut files = open(&disk).unwrap();
    assert!(files.stat(&ROOT, b"/old").is_err());
    // With room elsewhere it does not sync, and what was given up stays untouched.
    let disk = self::disk(12, 16);
    let mut files = format(&disk);
    let old = make(&mut files, &ROOT, "/old", 5 * UNIT);
    scribble(&mut files, &disk, old, 1);
    files.sync().unwrap();
    files.unlink(&ROOT, b"/old").unwrap();
    let new = make(&mut files, &ROOT, "/new", 500 * UNIT);
    scribble(&mut files, &disk, new, 2);
    drop(files);
    let mut files = open(&disk).unwrap();
    assert!(content(&mut files, &disk, old).iter().all(|byte| *byte == 1), "as if it had never been removed");
}

#[test]
fn a_plan_is_stale_when_somebody_opened_the_file_since() {
    let disk = disk(12, 16);
    let mut files = format(&disk);
    let inode = make(&mut files, &ROOT, "/f", 10 * UNIT);
    let stale = FileError::Changed(inode);
    let plan = files.truncate(inode, 0).unwrap();
    files.open_file(&ROOT, b"/f", How::READ).unwrap();
    assert_eq!(error(files.drained(&plan)), stale);
    let plan = files.truncate(inode, 0).unwrap();
    files.grow(inode, 11 * UNIT).unwrap();
    assert_eq!(error(files.drained(&plan)), stale);
    // Cut off and grown again, to the same size: other blocks, or the same with other I/O to them.
    let plan = files.truncate(inode, UNIT).unwrap();
    let other = files.truncate(inode, 2 * UNIT).unwrap();
    files.drained(&other).unwrap();
    files.grow(inode, 11 * UNIT).unwrap();
    assert_eq!(error(files.drained(&plan)), stale);
    // Emptied on opening, while it is open elsewhere: a plan too.
    let how = How { truncate: true, ..How::READ_WRITE };
    let plan = files.open_file(&ROOT, b"/f", how).unwrap().truncation.unwrap();
    assert_eq!(files.attributes(inode).unwrap().allocated, 11 * UNIT);
    files.drained(&plan).unwrap();
    assert_eq!(files.attributes(inode).unwrap().allocated, 0);
}

/// A file in more than a thousand pieces is like any other.
#[test]
fn a_fragmented_file_works() {
    let disk = disk(12, 32);
    let mut files = format(&disk);
    let [a, b] = [b"/a", b"/b"].map(|path| files.open_file(&ROOT, path, How::create(0o600)).unwrap().inode);
    for units in 1..=1200 {
        assert_eq!(files.grow(a, units * UNIT).unwrap().len(), 1);
        files.grow(b, units * UNIT).unwrap();
    }
    let extents = files.extents(a, 0, usize::MAX).unwrap();
    assert_eq!(extents.len(), 1200);
    assert_eq!(files.extents(a, 500 * UNIT, 2).unwrap(), extents[500..502]);
    scribble(&mut files, &disk, a, 1);
    scribble(&mut files, &disk, b, 2);
    files.unlink(&ROOT, b"/b").unwrap();
    files.release(b).unwrap();
    files.report(a, 1200 * UNIT, None).unwrap();
    files.release(a).unwrap();
    let mut files = reopen(files, &disk);
    assert!(content(&mut files, &disk, a).iter().all(|byte| *byte == 1));
    // Into the gaps: as few pieces as there can be.
    let free = files.usage().free;
    let c = make(&mut files, &ROOT, "/c", free);
    assert_eq!(files.extents(c, 0, usize::MAX).unwrap().len(), 1200);
    let plan = files.truncate(a, 600 * UNIT).unwrap();
    assert_eq!(plan.given_up.len(), 600);
    files.drained(&plan).unwrap();
    let mut files = reopen(files, &disk);
    assert_eq!(files.extents(a, 0, usize::MAX).unwrap(), extents[..600]);
    assert_eq!(files.usage().free, 600 * UNIT);
    assert!(
        matches!(error(files.grow(a, 1201 * UNIT)), FileError::NoSpace { needed, free } if needed > free)
    );
    assert!(matches!(error(files.grow(a, u64::MAX)), FileError::NoSpace { .. }));
    assert_eq!(files.extents(a, 0, usize::MAX).unwrap(), extents[..600], "as it was");
}

#[test]
fn s6_r8_growing_beyond_what_is_free_changes_nothing() {
    let disk = disk(12, 16);
    let mut files = format(&disk);
    let inode = make(&mut files, &ROOT, "/f", 5 * UNIT);
    files.sync().unwrap();
    let before = (files.attributes(inode).unwrap(), files.extents(inode, 0, 9).unwrap(), files.usage());
    let steps = disk.steps();
    for bytes in [before.2.free + 6 * UNIT, u64::MAX / 2, u64::MAX] {
        let refused = error(files.grow(inode, bytes));
        assert!(matches!(refused, FileError::NoSpace { needed, free } if needed > free), "{refused}");
    }
    let after = (files.attributes(inode).unwrap(), files.extents(inode, 0, 9).unwrap(), files.usage());
    assert_eq!(after, before);
    assert_eq!(disk.steps(), steps);
    let free = before.2.free;
    assert_eq!(files.grow(inode, free + 5 * UNIT).unwrap().len(), 1, "and all of it can be had");
    reopen(files, &disk);
}

/// S6-R13: what a file had lies where it lay, and is what it was.
#[test]
fn s6_r13_growing_moves_nothing() {
    let disk = disk(12, 16);
    let mut files = format(&disk);
    let inode = make(&mut files, &ROOT, "/f", 3 * UNIT);
    make(&mut files, &ROOT, "/between", UNIT);
    scribble(&mut files, &disk, inode, 0x77);
    let before = files.extents(inode, 0, 9).unwrap();
    let new = files.grow(inode, 5 * UNIT).unwrap();
    let after = files.extents(inode, 0, 9).unwrap();
    assert_eq!(after, [before, new].concat());
    let found = content(&mut files, &disk, inode);
    let (kept, new) = found.split_at(usize::try_from(3 * UNIT).unwrap());
    assert!(kept.iter().all(|byte| *byte == 0x77) && new.iter().all(|byte| *byte == 0));
}

/// It goes to the store's thread.
#[test]
fn a_file_system_can_be_sent() {
    fn sent<T: Send>(_: &T) {}
    sent(&format(&disk(12, 16)));
}

#[test]
fn quotas_are_kept() {
    let disk = disk(12, 16);
    let mut files = format(&disk);
    let (anna, bert) = (user(1), user(2));
    assert!(matches!(error(files.set_quota(&anna, 1, None, None)), FileError::NotPermitted { .. }));
    files.set_quota(&ROOT, 1, Some(10 * UNIT), Some(3)).unwrap();
    let inode = make(&mut files, &anna, "/a", 6 * UNIT);
    make(&mut files, &anna, "/b", 4 * UNIT);
    let over = |result: Result<(), FileError>, limit| {
        assert!(
            matches!(result, Err(FileError::Quota { uid: 1, limit: found, .. }) if found == limit),
            "{result:?}"
        );
    };
    over(files.grow(inode, 6 * UNIT + 1).map(drop), 10 * UNIT);
    files.make_directory(&anna, b"/c", 0o700).unwrap();
    over(files.make_directory(&anna, b"/d", 0o700).map(drop), 3);
    over(files.open_file(&anna, b"/d", How::create(0o600)).map(drop), 3);
    let quota = files.quota(&anna, 1).unwrap();
    assert_eq!((quota.bytes, quota.inodes), (10 * UNIT, 3));
    assert_eq!((quota.byte_limit, quota.inode_limit), (Some(10 * UNIT), Some(3)));
    assert!(matches!(error(files.quota(&bert, 1)), FileError::NotPermitted { .. }));
    // A gift counts for whoever gets it.
    let other = make(&mut files, &bert, "/e", 0);
    let to = |uid| Changes { uid: Some(uid), ..Changes::default() };
    over(files.set_attributes(&ROOT, other, &to(1)).map(drop), 3);
    files.set_attributes(&ROOT, inode, &to(2)).unwrap();
    let mut files = reopen(files, &disk);
    assert_eq!(files.quota(&ROOT, 1).unwrap().bytes, 4 * UNIT);
    assert_eq!(files.quota(&ROOT, 2).unwrap().bytes, 6 * UNIT);
    assert_eq!(files.quotas(&ROOT, Some(0), 10).unwrap().len(), 2);
    files.unlink(&anna, b"/b").unwrap();
    assert_eq!(files.quota(&ROOT, 1).unwrap().bytes, 0);
    files.set_quota(&ROOT, 1, None, None).unwrap();
    for name in ["/x", "/y", "/z"] {
        make(&mut files, &anna, name, 9 * UNIT);
    }
    reopen(files, &disk);
}

#[test]
fn directories_and_files_take_each_others_place_only_as_posix_says() {
    let disk = disk(12, 16);
    let mut files = format(&disk);
    for path in ["/d", "/d/e", "/full", "/full/x", "/empty"] {
        files.make_directory(&ROOT, path.as_bytes(), 0o777).unwrap();
    }
    make(&mut files, &ROOT, "/f", 0);
    let mut rename = |from: &str, to: &str| files.rename(&ROOT, from.as_bytes(), to.as_bytes(), true);
    assert!(matches!(rename("/d", "/d/e/x"), Err(FileError::Cycle { .. })));
    assert!(matches!(rename("/d", "/d/e"), Err(FileError::Cycle { .. })));
    assert!(matches!(rename("/d", "/f"), Err(FileError::NotDirectory { .. })));
    assert!(matches!(rename("/f", "/d"), Err(FileError::IsDirectory { .. })));
    assert!(matches!(rename("/d", "/full"), Err(FileError::NotEmpty { .. })));
    assert!(matches!(rename("/d/e", "/d"), Err(FileError::NotEmpty { .. })));
    assert!(matches!(rename("/", "/x"), Err(FileError::Root { .. })));
    assert!(matches!(rename("/d", "/"), Err(FileError::Root { .. })));
    assert!(matches!(rename("/none", "/x"), Err(FileError::NotFound { .. })));
    assert!(matches!(rename("/f/x", "/x"), Err(FileError::NotDirectory { .. })));
    rename("/d", "/d").unwrap();
    rename("/d", "/empty").unwrap();
    rename("/empty/e", "/full/e").unwrap();
    assert_eq!(list(&mut files, "/"), ["empty", "f", "full"]);
    assert!(matches!(files.remove_directory(&ROOT, b"/full"), Err(FileError::NotEmpty { .. })));
    assert!(matches!(files.remove_directory(&ROOT, b"/f"), Err(FileError::NotDirectory { .. })));
    assert!(matches!(files.unlink(&ROOT, b"/full"), Err(FileError::IsDirectory { .. })));
    reopen(files, &disk);
}

#[test]
fn sticky_and_inheriting_directories_are_as_in_the_kernel() {
    let disk = disk(12, 16);
    let mut files = format(&disk);
    let (anna, bert) = (user(1), user(2));
    files.make_directory(&ROOT, b"/tmp", 0o777 | STICKY).unwrap();
    make(&mut files, &anna, "/tmp/a", 0);
    make(&mut files, &bert, "/tmp/b", 0);
    let denied = |result: Result<(), FileError>| {
        assert!(matches!(result, Err(FileError::Denied { .. })), "{result:?}");
    };
    denied(files.unlink(&bert, b"/tmp/a"));
    denied(files.rename(&bert, b"/tmp/a", b"/tmp/x", true));
    denied(files.rename(&bert, b"/tmp/b", b"/tmp/a", true));
    files.rename(&bert, b"/tmp/b", b"/tmp/c", true).unwrap();
    files.unlink(&anna, b"/tmp/a").unwrap();
    let shared = files.make_directory(&ROOT, b"/shared", 0o777).unwrap().inode;
    let changes = Changes { mode: Some(0o777 | SET_GID), gid: Some(50), ..Changes::default() };
    files.set_attributes(&ROOT, shared, &changes).unwrap();
    let below = files.make_directory(&anna, b"/shared/d", 0o755).unwrap().permissions;
    assert_eq!((below.gid, below.mode & 0o7777), (50, 0o755 | SET_GID));
    let file = make(&mut files, &anna, "/shared/d/f", 0);
    let permissions = files.attributes(file).unwrap().permissions;
    assert_eq!((permissions.uid, permissions.gid, permissions.mode & 0o7777), (1, 50, 0o644));
    // Whoever is not the owner and writes takes away that it runs as its owner.
    let armed = Changes { mode: Some(0o777 | SET_UID), ..Changes::default() };
    files.set_attributes(&anna, file, &armed).unwrap();
    files.open_file(&bert, b"/shared/d/f", How::READ).unwrap();
    assert_eq!(files.attributes(file).unwrap().permissions.mode & 0o7777, 0o777 | SET_UID);
    files.open_file(&bert, b"/shared/d/f", How::READ_WRITE).unwrap();
    assert_eq!(files.attributes(file).unwrap().permissions.mode & 0o7777, 0o777);
    let bert_gives = files.set_attributes(&bert, file, &Changes { uid: Some(2), ..Changes::default() });
    assert!(matches!(bert_gives, Err(FileError::NotPermitted { uid: 2, .. })));
    reopen(files, &disk);
}

#[test]
fn limits_are_errors_and_change_nothing() {
    let disk = disk(12, 16);
    let mut files = format(&disk);
    make(&mut files, &ROOT, "/f", 0);
    files.sync().unwrap();
    let steps = disk.steps();
    let long = [b"/".to_vec(), vec![b'x'; 256]].concat();
    assert!(matches!(files.make_directory(&ROOT, &long, 0o755), Err(FileError::Path { .. })));
    assert!(matches!(files.make_directory(&ROOT, b"/f", 0o755), Err(FileError::Exists { .. })));
    assert!(matches!(files.make_directory(&ROOT, b"/", 0o755), Err(FileError::Root { .. })));
    assert!(matches!(files.open_file(&ROOT, b"/", How::READ), Err(FileError::Root { .. })));
    let nothing = How { read: false, ..How::READ };
    let blind = How { truncate: true, ..How::READ };
    let alone = How { exclusive: true, ..How::READ_WRITE };
    for how in [nothing, blind, alone] {
        assert!(matches!(files.open_file(&ROOT, b"/f", how), Err(FileError::How(_))));
    }
    let exclusive = How { exclusive: true, ..How::create(0o600) };
    assert!(matches!(files.open_file(&ROOT, b"/f", exclusive), Err(FileError::Exists { .. })));
    assert!(matches!(files.list(&ROOT, b"/", b"", 4097), Err(FileError::TooMany(4097))));
    assert!(matches!(files.list(&ROOT, b"/f", b"", 1), Err(FileError::NotDirectory { .. })));
    let nobody = InodeNumber(99);
    assert_eq!(error(files.grow(nobody, 1)), FileError::NotOpen(nobody));
    assert_eq!(error(files.truncate(nobody, 1)), FileError::NotOpen(nobody));
    assert_eq!(error(files.report(nobody, 1, None)), FileError::NotOpen(nobody));
    assert_eq!(error(files.release(nobody)), FileError::NotOpen(nobody));
    assert_eq!(error(files.grow(InodeNumber::ROOT, 1)), FileError::NotOpen(InodeNumber::ROOT));
    let inode = files.resolve(&ROOT, b"/f").unwrap();
    assert!(matches!(files.report(inode, 1, None), Err(FileError::Size { bytes: 1, .. })));
    let users = (0..200).map(|uid| (Party::User(uid), Rights::READ));
    let fixed =
        [Party::Owner, Party::OwningGroup, Party::Mask, Party::Other].map(|party| (party, Rights::READ));
    let acl = Acl::new(users.chain(fixed).collect()).unwrap();
    let changes = Changes { acl: Some(Some(acl)), ..Changes::default() };
    assert_eq!(error(files.set_attributes(&ROOT, inode, &changes)), FileError::AclSize(204));
    assert_eq!(disk.steps(), steps, "the disk was not touched");
    assert!(files.metadata.is_clean());
    for options in [
        FormatOptions { allocation_unit: 5000, ..options() },
        FormatOptions { allocation_unit: 2048, ..options() },
        FormatOptions { metadata: Some(1 << 20), ..options() },
        FormatOptions { metadata: Some(17 << 30), ..options() },
    ] {
        let refused = FileSystem::format(Box::new(self::disk(12, 64)), options);
        assert!(matches!(error(refused), FileError::Store(StoreError::Options { .. })), "{options:?}");
    }
    let small = FileSystem::format(Box::new(self::disk(12, 4)), options());
    assert!(matches!(error(small), FileError::Store(StoreError::TooSmall { .. })));
    let twice = FileSystem::format(Box::new(disk.clone()), options());
    assert!(matches!(error(twice), FileError::Store(StoreError::Occupied { .. })));
}

/// A full metadata area refuses what would add to it, and nothing else.
#[test]
fn a_full_metadata_area_still_lets_files_go() {
    let disk = disk(12, 24);
    let mut files = format(&disk);
    let name = |number: u32| format!("/{number:0>200}");
    let mut made = 0;
    let full = loop {
        match files.open_file(&ROOT, name(made).as_bytes(), How::create(0o600)) {
            Ok(opened) => files.release(opened.inode).unwrap(),
            Err(error) => break error,
        }
        made += 1;
    };
    assert!(matches!(full, FileError::MetadataFull { .. }), "{full}");
    assert!(made > 3000, "{made}");
    let usage = files.usage();
    assert!(usage.metadata_used > usage.metadata * 9 / 10);
    let mut files = reopen(files, &disk);
    assert!(matches!(files.make_directory(&ROOT, b"/d", 0o755), Err(FileError::MetadataFull { .. })));
    for number in 0..made {
        files.unlink(&ROOT, name(number).as_bytes()).unwrap();
    }
    assert_eq!(files.usage().inodes, 1);
    make(&mut files, &ROOT, "/f", UNIT);
    reopen(files, &disk);
}

/// After an error of the disk nothing more is done, and what was synced is there again afterwards.
#[test]
fn an_error_of_the_disk_stops_the_file_system_and_loses_nothing_synced() {
    let disk = disk(12, 16);
    let mut files = format(&disk);
    make(&mut files, &ROOT, "/f", 5 * UNIT);
    files.sync().unwrap();
    make(&mut files, &ROOT, "/g", 0);
    disk.power_off_at(disk.steps() + 1);
    let failed = error(files.sync());
    assert!(matches!(failed, FileError::Store(StoreError::Poisoned { .. })), "{failed}");
    assert!(files.resolve(&ROOT, b"/f").is_err());
    assert!(files.make_directory(&ROOT, b"/d", 0o755).is_err());
    disk.power_cut(1);
    let steps = disk.steps();
    assert!(files.sync().is_err());
    drop(files);
    assert_eq!(disk.steps(), steps, "nothing is written any more");
    let mut files = open(&disk).unwrap();
    assert_eq!(list(&mut files, "/"), ["f"]);
    let panicked = files.guarded(|_| -> Result<(), FileError> { panic!("as if there was a bug") });
    assert!(
        matches!(&panicked, Err(FileError::Store(StoreError::Poisoned { why })) if why.contains("as if"))
    );
    assert_eq!(error(files.sync()), panicked.unwrap_err());
}

/// In a volume of a store: nothing outside it is touched, and the store sees to it that it stays.
#[test]
fn a_file_system_lives_in_a_volume() {
    let disk = disk(12, 64);
    let mut store = crate::Store::format(Box::new(disk.clone()), crate::FormatOptions::default()).unwrap();
    for (name, bytes) in [("before", 1 << 20), ("v", 8 << 20), ("after", 1 << 20)] {
        store.create(name, bytes, 0).unwrap();
    }
    store.grow("v", 20 << 20).unwrap();
    let volume = store.volume("v").unwrap();
    assert_eq!(volume.extents.len(), 2);
    let version_of = |disk: &MemoryDisk| {
        let mut page = vec![0; 4096];
        disk.clone().read(0, &mut page).unwrap();
        page[8]
    };
    assert_eq!(version_of(&disk), 1);
    let window = store.window("v").unwrap();
    let mut files = ticking(FileSystem::format(Box::new(window), options()).unwrap());
    store.set_kind("v", crate::VolumeKind::Files).unwrap();
    assert_eq!(version_of(&disk), 2, "older programs are told");
    let all = files.usage().free;
    let inode = make(&mut files, &ROOT, "/all", all);
    for extent in files.extents(inode, 0, usize::MAX).unwrap() {
        for part in volume.device_blocks(extent.blocks).unwrap() {
            assert!(volume.extents.iter().any(|of| of.first <= part.first && part.end() <= of.end()));
        }
    }
    let in_use = StoreError::InUse { name: "v".to_owned() };
    assert_eq!(store.delete("v"), Err(in_use));
    files.close().unwrap();
    assert!(matches!(store.shrink("v", 1 << 20), Err(StoreError::Size { .. })));
    assert_eq!(store.check().unwrap(), []);
    drop(store);
    let mut store = crate::Store::open(Box::new(disk.clone())).unwrap();
    assert_eq!(store.volume("v").unwrap().kind, crate::VolumeKind::Files);
    let mut window = store.window("v").unwrap();
    assert!(FileSystem::is_on(&mut window).unwrap());
    let mut files = FileSystem::open(Box::new(window)).unwrap();
    assert_eq!(files.resolve(&ROOT, b"/all").unwrap(), inode);
    assert_eq!(files.check().unwrap(), []);
    drop(files);
    let mut other = store.window("before").unwrap();
    assert!(!FileSystem::is_on(&mut other).unwrap());
    assert!(matches!(FileSystem::open(Box::new(other)), Err(FileError::Store(StoreError::Blank))));
    store.delete("v").unwrap();
}

#[test]
fn attributes_and_times_follow_what_is_done() {
    let disk = disk(12, 16);
    let mut files = format(&disk);
    make(&mut files, &ROOT, "/e", 0);
    let root = files.attributes(InodeNumber::ROOT).unwrap();
    let inode = make(&mut files, &user(1), "/f", UNIT);
    let made = files.attributes(inode).unwrap();
    assert!(made.created > root.changed && made.modified == made.created && made.changed > made.created);
    assert!(files.attributes(InodeNumber::ROOT).unwrap().modified > root.modified);
    let changes = Changes { mode: Some(0o4600), modified: Some(Timestamp(-5)), ..Changes::default() };
    let changed = files.set_attributes(&user(1), inode, &changes).unwrap();
    assert_eq!((changed.modified, changed.created), (Timestamp(-5), made.created));
    assert!(changed.changed > made.changed);
    files.report(inode, 17, Some(Timestamp(9_000))).unwrap();
    let mut files = reopen(files, &disk);
    let found = files.stat(&ROOT, b"/f").unwrap();
    assert_eq!(
        (found.length, found.modified, found.permissions.mode & 0o7777),
        (17, Timestamp(9_000), 0o4600)
    );
    // An access list and the mode go together.
    let list = [
        (Party::Owner, Rights::ALL),
        (Party::User(9), Rights::ALL),
        (Party::OwningGroup, Rights::READ),
        (Party::Mask, Rights::READ),
        (Party::Other, Rights::NONE),
    ];
    let acl = Acl::new(list.to_vec()).unwrap();
    let set = |acl| Changes { acl: Some(acl), ..Changes::default() };
    let with = files.set_attributes(&user(1), inode, &set(Some(acl.clone()))).unwrap().permissions;
    assert_eq!((with.mode & 0o777, with.acl), (0o740, Some(acl)));
    let masked = Changes { mode: Some(0o770), ..Changes::default() };
    let with = files.set_attributes(&user(1), inode, &masked).unwrap().permissions;
    assert_eq!(with.acl.unwrap().get(Party::Mask), Some(Rights::ALL));
    let without = files.set_attributes(&user(1), inode, &set(None)).unwrap().permissions;
    assert_eq!((without.mode & 0o777, without.acl), (0o740, None));
    reopen(files, &disk);
}
