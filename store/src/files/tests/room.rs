//! Room behind the ends of files: who keeps it, and what opening a file costs that has some.

use super::*;

/// Bytes that all files have, and that of one.
fn used(files: &mut FileSystem, inode: InodeNumber) -> (u64, u64) {
    let usage = files.usage();
    (usage.bytes - usage.free, files.attributes(inode).unwrap().allocated)
}

#[test]
fn the_last_release_gives_back_what_is_behind_the_end() {
    for shift in [9, 12] {
        let disk = disk(shift, 16);
        let mut files = format(&disk);
        let anna = user(1);
        let inode = files.open_file(&anna, b"/f", How::create(0o644)).unwrap().inode;
        files.open_file(&anna, b"/f", How::READ).unwrap();
        files.grow(inode, 16 * UNIT).unwrap();
        files.report(inode, UNIT + 1, None).unwrap();
        files.release(inode).unwrap();
        assert_eq!(used(&mut files, inode), (16 * UNIT, 16 * UNIT), "somebody has it open");
        let steps = disk.steps();
        files.release(inode).unwrap();
        assert_eq!(disk.steps(), steps, "that is durable when the next sync is");
        assert_eq!(used(&mut files, inode), (2 * UNIT, 2 * UNIT));
        assert_eq!(files.quota(&anna, 1).unwrap().bytes, 2 * UNIT);
        let mut files = reopen(files, &disk);
        assert_eq!(used(&mut files, inode), (2 * UNIT, 2 * UNIT));
    }
}

#[test]
fn what_was_reserved_stays_until_the_file_is_cut() {
    let disk = disk(12, 16);
    let mut files = format(&disk);
    let inode = files.open_file(&ROOT, b"/f", How::create(0o644)).unwrap().inode;
    assert_eq!(files.reserve(inode, 3 * UNIT).unwrap().len(), 1);
    files.grow(inode, 16 * UNIT).unwrap();
    files.report(inode, 10, None).unwrap();
    files.release(inode).unwrap();
    assert_eq!(used(&mut files, inode), (3 * UNIT, 3 * UNIT));
    let mut files = reopen(files, &disk);
    assert_eq!(used(&mut files, inode), (3 * UNIT, 3 * UNIT));
    assert_eq!(files.attributes(inode).unwrap().reserved, 3 * UNIT);
    // What the file has already can be reserved too, and less than that changes nothing.
    files.open_file(&ROOT, b"/f", How::READ_WRITE).unwrap();
    files.grow(inode, 9 * UNIT).unwrap();
    assert_eq!(files.reserve(inode, 5 * UNIT).unwrap(), []);
    assert_eq!(files.reserve(inode, UNIT).unwrap(), []);
    files.release(inode).unwrap();
    assert_eq!(used(&mut files, inode), (5 * UNIT, 5 * UNIT));
    // Who cuts it off behind the byte 1 asks for no more than that.
    let plan = files.truncate(inode, 1).unwrap();
    files.drained(&plan).unwrap();
    assert_eq!(files.attributes(inode).unwrap().reserved, UNIT);
    files.open_file(&ROOT, b"/f", How::READ_WRITE).unwrap();
    files.grow(inode, 9 * UNIT).unwrap();
    files.release(inode).unwrap();
    assert_eq!(used(&mut files, inode), (UNIT, UNIT));
    reopen(files, &disk);
}

/// What it gave up it takes again: nobody needs a sync for that, and files that are written one after another lie so.
#[test]
fn room_that_no_sync_has_seen_is_for_the_next_file() {
    let disk = disk(12, 80);
    // So that no sync comes by itself.
    let options = FormatOptions { metadata: Some(32 << 20), ..options() };
    let mut files = ticking(FileSystem::format(Box::new(disk.clone()), options).unwrap());
    let free = files.usage().free;
    let mut last = None;
    for number in 0..20 {
        let path = format!("/{number}");
        let inode = files.open_file(&ROOT, path.as_bytes(), How::create(0o644)).unwrap().inode;
        files.grow(inode, free / 2).unwrap();
        files.report(inode, 2 * UNIT, None).unwrap();
        files.release(inode).unwrap();
        let extents = files.extents(inode, 0, 9).unwrap();
        assert_eq!(extents.len(), 1);
        assert!(last.is_none_or(|last| last == extents[0].blocks.first), "they lie side by side");
        last = Some(extents[0].blocks.end());
        assert_eq!(files.pool.waiting(), 0);
    }
    reopen(files, &disk);
}

/// Blocks that a file has durably go to another only when it durably has them no more: room as well.
#[test]
fn room_that_is_durable_is_used_again_only_after_a_sync() {
    let disk = disk(12, 16);
    let mut files = format(&disk);
    let inode = files.open_file(&ROOT, b"/f", How::create(0o644)).unwrap().inode;
    files.grow(inode, 9 * UNIT).unwrap();
    scribble(&mut files, &disk, inode, 5);
    files.report(inode, UNIT, None).unwrap();
    files.sync().unwrap();
    files.release(inode).unwrap();
    assert_eq!(files.pool.waiting(), 8);
    let other = files.open_file(&ROOT, b"/g", How::create(0o644)).unwrap().inode;
    files.grow(other, 9 * UNIT).unwrap();
    let (first, second) = (files.extents(inode, 0, 9).unwrap(), files.extents(other, 0, 9).unwrap());
    assert!(second[0].blocks.first.0 >= first[0].blocks.end().0 + 8, "{first:?} {second:?}");
    assert_eq!(files.check().unwrap(), []);
    assert_eq!(files.pool.waiting(), 0);
}

/// Nobody lived to close it: what it had behind its end is given back when the file system is opened, and what it keeps is zero
/// for whoever writes to it next.
#[test]
fn what_a_lost_writer_left_behind_the_end_goes_or_is_zeroed() {
    for (shift, reserved) in [(9, 1), (9, 4), (12, 1), (12, 3)] {
        let disk = disk(shift, 16);
        let mut files = format(&disk);
        let inode = make(&mut files, &ROOT, "/f", 1000);
        files.open_file(&ROOT, b"/f", How::READ_WRITE).unwrap();
        files.reserve(inode, reserved * UNIT).unwrap();
        files.grow(inode, 4 * UNIT).unwrap();
        scribble(&mut files, &disk, inode, 7);
        files.sync().unwrap();
        drop(files);
        let mut files = open(&disk).unwrap();
        assert_eq!(used(&mut files, inode), (reserved * UNIT, reserved * UNIT));
        let opened = files.open_file(&ROOT, b"/f", How::READ).unwrap();
        assert_eq!(opened.attributes.length, 1000);
        files.open_file(&ROOT, b"/f", How::READ_WRITE).unwrap();
        let found = content(&mut files, &disk, inode);
        assert_eq!(found.len() as u64, reserved * UNIT);
        assert!(found[..1000].iter().all(|byte| *byte == 7) && found[1000..].iter().all(|byte| *byte == 0));
        // Once is enough, for as long as the file system is not lost again.
        scribble(&mut files, &disk, inode, 8);
        files.open_file(&ROOT, b"/f", How::READ_WRITE).unwrap();
        assert!(content(&mut files, &disk, inode).iter().all(|byte| *byte == 8));
        reopen(files, &disk);
    }
}

/// That somebody may write behind ends is made durable once, not for each file; and not at all for who only reads.
#[test]
fn opening_a_closed_file_with_room_behind_its_end_costs_no_sync() {
    let disk = disk(12, 16);
    let mut files = format(&disk);
    let paths: Vec<String> = (0..20).map(|number| format!("/{number}")).collect();
    for path in &paths {
        make(&mut files, &ROOT, path, 10);
    }
    let mut files = reopen(files, &disk);
    let opened = |files: &mut FileSystem, path: &str, how| {
        let steps = disk.steps();
        let inode = files.open_file(&ROOT, path.as_bytes(), how).unwrap().inode;
        files.report(inode, 11, None).unwrap();
        files.release(inode).unwrap();
        disk.steps() - steps
    };
    assert_eq!(opened(&mut files, &paths[0], How::READ), 0);
    assert!(opened(&mut files, &paths[0], How::READ_WRITE) > 0, "the first, after it was closed");
    for path in paths.iter().chain(&paths) {
        assert_eq!(opened(&mut files, path, How::READ_WRITE), 0, "{path}");
    }
    let made = files.open_file(&ROOT, b"/new", How::create(0o600)).unwrap().inode;
    files.settle().unwrap();
    assert_eq!(opened(&mut files, &paths[3], How::READ_WRITE), 0, "a file was open, so it is noted still");
    files.release(made).unwrap();
    files.settle().unwrap();
    assert!(opened(&mut files, &paths[3], How::READ_WRITE) > 0);
    // After it was lost, each file is seen to once: a block is read and written, and nothing is waited for.
    files.sync().unwrap();
    drop(files);
    let mut files = open(&disk).unwrap();
    assert!(opened(&mut files, &paths[0], How::READ_WRITE) > 1);
    for path in &paths[1..] {
        assert_eq!(opened(&mut files, path, How::READ_WRITE), 1, "{path}");
        assert_eq!(opened(&mut files, path, How::READ_WRITE), 0, "{path}");
    }
}
