//! Files by name on the whole path: opened once, then read and written by key, by several sessions at once; and what is
//! refused of keys that name no file, no extension, or somebody else's.

use std::io::{Read, Seek, SeekFrom, Write};

use portcullis::wire::control::{Reply, Request};
use portcullis::wire::files::{AttributeChange, Create, FilePath, FileTarget, OpenFile};
use portcullis::wire::layout::{SubmissionEntry, opcode};
use portcullis::{Access, Buffer, Error, File, Files, OpenOptions, Session, Status, Subject, raw::RawQueue};

use super::{Case, PATIENCE, Rig, pattern, somebody, until};

pub(super) const CASES: &[Case] = &[
    Case { name: "s5_r16_the_name_is_looked_up_before_one_segment_of_extensions", run: name_first },
    Case { name: "s6_r2_files_are_made_written_and_found_again", run: made },
    Case { name: "files_are_read_and_written_as_std_does", run: sequential },
    Case { name: "renaming_replaces_in_one_step_and_keeps_what_is_open", run: renamed },
    Case { name: "s6_r5_a_file_without_a_name_lives_until_it_is_closed", run: unlinked },
    Case { name: "room_behind_the_end_goes_with_the_last_key_of_a_file", run: room },
    Case { name: "s6_r7_what_was_cut_off_comes_back_as_zeroes", run: lengths },
    Case { name: "s5_r6_s5_r11_an_extension_is_that_part_of_its_file", run: extensions },
    Case { name: "s5_r7_no_number_of_an_extension_leaves_the_file", run: out_of_the_segment },
    Case { name: "s5_r8_files_of_another_session_are_out_of_reach", run: another_session },
    Case { name: "s5_r9_stale_keys_of_extensions_stay_stale", run: stale_extension },
    Case { name: "s5_r10_what_is_open_to_be_read_is_not_written", run: read_only },
    Case { name: "s6_r11_keys_of_closed_files_stay_stale", run: stale_file },
    Case { name: "s6_r13_growing_keeps_keys_of_extensions_and_data", run: growing },
    Case { name: "s6_r14_others_may_not_manage_files", run: others },
    Case { name: "s6_r15_sessions_that_end_with_files_open_leave_nothing", run: ended },
];

/// Bytes of the volume that has the files.
const ROOM: u64 = 24 << 20;
/// Makes the volume `v` with an empty file system. The session must be its owner's.
pub(super) fn format(session: &Session) -> Files {
    session.create_volume("v", ROOM).unwrap();
    let files = session.files().unwrap();
    let info = files.format("v", false).unwrap();
    assert!(info.available > 0 && !info.in_place, "{info:?}");
    files
}

pub(super) fn writable() -> OpenOptions {
    OpenOptions::new().read(true).write(true)
}

/// All of a file, and that it ends there.
pub(super) fn content(file: &File) -> Vec<u8> {
    let length = file.len().unwrap() as usize;
    let mut data = vec![0xee; length + 5000];
    assert_eq!(file.read_at(&mut data, 0).unwrap(), length);
    data.truncate(length);
    data
}

pub(super) fn status<T: std::fmt::Debug>(result: Result<T, Error>) -> Status {
    result.unwrap_err().status().expect("a refusal with a status")
}

/// What submits entries as they are.
struct Hand {
    raw: RawQueue,
    buffer: Buffer,
}

impl Hand {
    fn new(session: &Session) -> Self {
        Self { raw: RawQueue::create(session, 16).unwrap(), buffer: session.buffer(64 << 10).unwrap() }
    }

    /// A request for the first block of a file, or of its extension, to be altered.
    fn entry(&self, opcode: u8, file: &File, extension: u64) -> SubmissionEntry {
        let entry = SubmissionEntry {
            opcode,
            key: file.key(),
            extension,
            length: file.block_size(),
            region: self.buffer.region(),
            region_offset: self.buffer.region_offset(),
            ..SubmissionEntry::default()
        };
        match opcode {
            opcode::FLUSH => SubmissionEntry { length: 0, region: 0, region_offset: 0, ..entry },
            opcode::WRITE_ZEROES | opcode::DEALLOCATE => {
                SubmissionEntry { region: 0, region_offset: 0, ..entry }
            }
            _ => entry,
        }
    }

    fn status(&mut self, entry: &SubmissionEntry) -> Status {
        self.raw.push(entry).unwrap();
        self.raw.ring().unwrap();
        Status(self.raw.wait(PATIENCE).unwrap().expect("a completion in time").status)
    }

    /// Reads or writes so many bytes at an offset in an extension.
    fn transfer(&mut self, opcode: u8, file: &File, extension: u64, (at, length): (u64, u64)) -> Status {
        let length = u32::try_from(length).unwrap();
        let entry = SubmissionEntry { offset: at, length, ..self.entry(opcode, file, extension) };
        self.status(&entry)
    }
}

/// Bytes in which files get blocks; those of the device may be smaller.
fn unit(files: &Files) -> u64 {
    u64::from(files.space("v").unwrap().block_size)
}

/// Two files that take turns in growing, so that each is in many extensions, and what is in them.
fn in_pieces(files: &Files, pieces: u64) -> [(File, Vec<u8>); 2] {
    let both = ["v:/a", "v:/b"].map(|name| files.create(name).unwrap());
    let block = unit(files);
    for blocks in 1..=pieces {
        both.iter().for_each(|file| file.allocate(blocks * block).unwrap());
    }
    let mut seed = 40;
    both.map(|file| {
        seed += 1;
        let data = pattern(seed, (pieces * block) as usize);
        file.write_all_at(&data, 0).unwrap();
        assert_eq!(file.refresh().unwrap().room, pieces * block, "it was not made to grow by that");
        (file, data)
    })
}

fn made(rig: &Rig) {
    let adapter = rig.isolated();
    let session = Session::connect(adapter.socket()).unwrap();
    let files = format(&session);
    assert_eq!(status(files.open("v:/a")), Status::E_NO_RESOURCE);
    files.create_dir_all("v:/one/two").unwrap();
    let file = writable().create_new(true).mode(0o640).open(&files, "v:/one/two/a").unwrap();
    assert_eq!(status(writable().create_new(true).open(&files, "v:/one/two/a")), Status::E_EXISTS);
    let made = file.metadata().unwrap();
    assert_eq!((made.length, made.mode, made.links), (0, 0o640, 1));
    let mut data = pattern(1, 200_001);
    file.write_all_at(&data, 0).unwrap();
    for round in 0..20u32 {
        let more = pattern(round, 1 + 777 * round as usize);
        assert_eq!(file.append(&more).unwrap(), data.len() as u64, "where it landed");
        data.extend_from_slice(&more);
    }
    file.write_all_at(b"in the middle", 70_003).unwrap();
    data[70_003..70_016].copy_from_slice(b"in the middle");
    assert!(content(&file) == data);
    file.sync_all().unwrap();
    file.close().unwrap();
    // Another session finds it as it was left.
    let other = Session::connect(adapter.socket()).unwrap().files().unwrap();
    let again = other.open("v:/one/two/a").unwrap();
    assert!(content(&again) == data);
    let found = other.metadata("v:/one/two/a").unwrap();
    assert_eq!((found.number, found.length, found.mode), (made.number, data.len() as u64, 0o640));
    let names: Vec<_> = other.read_dir("v:/one/two").unwrap().map(|entry| entry.unwrap().name).collect();
    assert_eq!(names.len(), 1);
    assert_eq!(names[0].as_bytes(), b"a");
    drop(again);
    until("nobody has it open", || match files.check("v", false) {
        Ok(report) => {
            assert_eq!((report.found, report.findings), (0, vec![]));
            true
        }
        Err(error) => {
            assert_eq!(error.status(), Some(Status::E_BUSY_TIMEOUT), "{error}");
            false
        }
    });
}

fn sequential(rig: &Rig) {
    let adapter = rig.embedded();
    let files = format(&adapter.session().unwrap());
    let mut file = files.create("v:/text").unwrap();
    for line in 0..300 {
        writeln!(file, "line {line} of a text").unwrap();
    }
    assert_eq!(file.seek(SeekFrom::Start(0)).unwrap(), 0);
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!((lines.len(), lines[0], lines[299]), (300, "line 0 of a text", "line 299 of a text"));
    assert_eq!(file.seek(SeekFrom::End(-5)).unwrap(), text.len() as u64 - 5);
    file.write_all(b"poem\n").unwrap();
    assert_eq!(file.read(&mut [0; 10]).unwrap(), 0, "it is at the end");
    let mut log = OpenOptions::new().append(true).open(&files, "v:/text").unwrap();
    log.write_all(b"the end").unwrap();
    let all = String::from_utf8(content(&file)).unwrap();
    assert!(all.ends_with("line 299 of a poem\nthe end"), "{:?}", &all[all.len() - 40..]);
    // What was never written reads as zeroes, up to what was.
    file.write_all_at(b"x", 1_000_000).unwrap();
    let gap = content(&file);
    assert_eq!((gap.len(), gap[1_000_000]), (1_000_001, b'x'));
    assert!(gap[all.len()..1_000_000].iter().all(|byte| *byte == 0));
}

fn renamed(rig: &Rig) {
    let adapter = rig.isolated();
    let files = format(&Session::connect(adapter.socket()).unwrap());
    let old = files.create("v:/table").unwrap();
    old.write_all_at(b"old", 0).unwrap();
    let new = files.create("v:/table.new").unwrap();
    new.write_all_at(b"new!", 0).unwrap();
    assert_eq!(status(files.rename_new("v:/table.new", "v:/table")), Status::E_EXISTS);
    assert_eq!(status(files.rename("v:/table.new", "w:/table")), Status::E_PARAM);
    assert_eq!(status(files.rename("v:/nothing", "v:/table")), Status::E_NO_RESOURCE);
    files.rename("v:/table.new", "v:/table").unwrap();
    assert_eq!(content(&files.open("v:/table").unwrap()), b"new!");
    assert_eq!(status(files.metadata("v:/table.new")), Status::E_NO_RESOURCE);
    // Both go on under their keys, whatever they are called.
    assert_eq!((content(&old), content(&new)), (b"old".to_vec(), b"new!".to_vec()));
    old.append(b" and gone").unwrap();
    new.append(b" and here").unwrap();
    assert_eq!(content(&old), b"old and gone");
    assert_eq!(content(&files.open("v:/table").unwrap()), b"new! and here");
    files.create_dir("v:/dir").unwrap();
    files.rename("v:/table", "v:/dir/table").unwrap();
    assert_eq!(files.metadata("v:/dir/table").unwrap().number, new.metadata().unwrap().number);
}

fn unlinked(rig: &Rig) {
    let adapter = rig.isolated();
    let files = format(&Session::connect(adapter.socket()).unwrap());
    let free = files.space("v").unwrap().free;
    let data = pattern(3, 300_000);
    let file = files.create("v:/a").unwrap();
    file.write_all_at(&data, 0).unwrap();
    let reader = files.open("v:/a").unwrap();
    files.remove_file("v:/a").unwrap();
    assert_eq!(status(files.open("v:/a")), Status::E_NO_RESOURCE);
    assert_eq!(status(files.remove_file("v:/a")), Status::E_NO_RESOURCE);
    // Another of the same name is another.
    let other = files.create("v:/a").unwrap();
    other.write_all_at(b"another", 0).unwrap();
    assert!(content(&reader) == data);
    file.append(b"more").unwrap();
    assert_eq!((reader.len().unwrap(), reader.metadata().unwrap().links), (300_004, 0));
    assert_eq!(content(&other), b"another");
    files.remove_file("v:/a").unwrap();
    drop((file, other));
    assert!(content(&reader)[..300_000] == data, "it lives until its last key goes");
    assert!(files.space("v").unwrap().free < free);
    reader.close().unwrap();
    until("its blocks are free", || files.space("v").unwrap().free == free);
}

fn room(rig: &Rig) {
    let adapter = rig.isolated();
    let session = Session::connect(adapter.socket()).unwrap();
    let files = format(&session);
    let other = Session::connect(adapter.socket()).unwrap().files().unwrap();
    let owner = files.metadata("v:/").unwrap().owner;
    files.set_quota("v", owner, Some(8 << 20)).unwrap();
    let empty = files.space("v").unwrap();
    // What is free, what its owner has, and what he may have more, all say the same.
    let used = || {
        let now = files.space("v").unwrap();
        let used = empty.free - now.free;
        assert_eq!(now.own - empty.own, used, "{now:?}");
        assert_eq!(now.available, now.free.min((8 << 20) - now.own), "{now:?}");
        used
    };
    let unit = unit(&files);
    let log = OpenOptions::new().append(true).create(true).open(&files, "v:/log").unwrap();
    for number in 0..3 {
        assert_eq!(log.append(&[7; 5000]).unwrap(), number * 5000);
    }
    let reader = other.open("v:/log").unwrap();
    let room = log.room();
    assert!(room > 65_536, "it asked for more than it needed: {room}");
    log.close().unwrap();
    assert_eq!((used(), reader.len().unwrap()), (room, 15_000));
    reader.close().unwrap();
    let needed = 15_000u64.next_multiple_of(unit);
    until("the room is free again", || used() == needed);
    assert_eq!(files.metadata("v:/log").unwrap().allocated, needed);
    // What is asked for by name stays.
    let table = files.create("v:/table").unwrap();
    table.allocate(1 << 20).unwrap();
    table.make_room(2 << 20).unwrap();
    table.write_all_at(b"first", 0).unwrap();
    assert_eq!(status(table.allocate(8 << 20)), Status::E_NO_RESOURCES, "that is more than he may have");
    table.close().unwrap();
    until("what was not asked for is free", || used() == needed + (1 << 20));
    let table = writable().open(&files, "v:/table").unwrap();
    assert_eq!((table.room(), content(&table)), (1 << 20, b"first".to_vec()));
    table.write_all_at(b"last", (1 << 20) - 4).unwrap();
    assert_eq!(used(), needed + (1 << 20), "for that there was room");
    table.set_len(unit + 1).unwrap();
    table.close().unwrap();
    until("it was cut", || used() == needed + 2 * unit);
    assert_eq!(content(&files.open("v:/log").unwrap()), [7; 15_000]);
}

fn lengths(rig: &Rig) {
    let adapter = rig.isolated();
    let session = Session::connect(adapter.socket()).unwrap();
    let files = format(&session);
    let file = files.create("v:/a").unwrap();
    let other = Session::connect(adapter.socket()).unwrap().files().unwrap().open("v:/a").unwrap();
    let mut model = pattern(1, 100_000);
    file.write_all_at(&model, 0).unwrap();
    for length in [100_000, 50_001, 60_000, 4096, 8192, 8191, 8193, 1, 70_000, 0, 4097, 4096, 4095, 30_000] {
        file.set_len(length).unwrap();
        model.resize(length as usize, 0);
        assert!(content(&file) == model, "{length}");
        assert!(content(&other) == model, "{length}, to another session");
        // Written again, so that there is something to come back.
        file.write_all_at(&pattern(7, model.len()), 0).unwrap();
        model = pattern(7, model.len());
        assert_eq!(file.len().unwrap(), length);
    }
    assert_eq!(status(file.set_len(1 << 40)), Status::E_NO_RESOURCES);
    assert_eq!(status(other.set_len(0)), Status::E_ACCESS);
    assert!(content(&other) == model, "what was refused changed nothing");
    drop(files.create("v:/a").unwrap());
    assert_eq!(content(&other), b"", "opened to be cut to nothing");
}

fn extensions(rig: &Rig) {
    let adapter = rig.isolated();
    let session = Session::connect(adapter.socket()).unwrap();
    let files = format(&session);
    let [(file, mut data), (_other, _)] = in_pieces(&files, 24);
    let extensions = file.extensions().unwrap();
    assert!(extensions.len() > 8, "{} extensions", extensions.len());
    let block = unit(&files);
    let mut hand = Hand::new(&session);
    let mut expected = 0;
    for (number, its) in extensions.iter().enumerate() {
        assert_eq!((its.key as u32, its.offset), (number as u32, expected), "one after another");
        expected += its.bytes;
        let bytes = its.bytes.min(64 << 10);
        let here = &mut data[its.offset as usize..][..bytes as usize];
        assert_eq!(hand.transfer(opcode::READ, &file, its.key, (0, bytes)), Status::OK);
        assert!(hand.buffer[..here.len()] == *here, "extension {number} is its part of the file");
        // Written by its key, read by the file's.
        here.copy_from_slice(&pattern(number as u32, here.len()));
        hand.buffer[..here.len()].copy_from_slice(here);
        assert_eq!(hand.transfer(opcode::WRITE, &file, its.key, (0, bytes)), Status::OK);
        // Its end is a bound, though the file goes on; without its key a request goes over as many as there are.
        let over = [(its.bytes, block), (its.bytes - block, 2 * block), (u64::MAX - block + 1, block)];
        for (at, length) in over {
            for opcode in [opcode::READ, opcode::WRITE] {
                let status = hand.transfer(opcode, &file, its.key, (at, length));
                assert_eq!(status, Status::E_BOUNDS, "{length} bytes at {at} of {}", its.bytes);
            }
        }
    }
    assert_eq!(expected, data.len() as u64);
    assert!(content(&file) == data);
}

fn out_of_the_segment(rig: &Rig) {
    let adapter = rig.isolated();
    let session = Session::connect(adapter.socket()).unwrap();
    let files = format(&session);
    let all = in_pieces(&files, 12);
    let mut hand = Hand::new(&session);
    for (file, _) in &all {
        let extensions = file.extensions().unwrap();
        let (count, last) = (extensions.len() as u64, extensions.last().unwrap().key);
        let instance = last >> 32 << 32;
        let beyond = (count..count + 200).chain([1 << 16, 1 << 31, u64::from(u32::MAX)]);
        for number in beyond {
            for instance in [instance, 0, 1 << 32, u64::from(u32::MAX) << 32] {
                for opcode in [opcode::READ, opcode::WRITE] {
                    let entry = hand.entry(opcode, file, instance | number);
                    assert_eq!(hand.status(&entry), Status::E_KEY_RANGE, "extension {number} of {count}");
                }
            }
        }
        assert_eq!(hand.status(&hand.entry(opcode::READ, file, last)), Status::OK);
    }
    for (file, data) in &all {
        assert!(content(file) == *data, "what was refused wrote nothing");
    }
}

/// What is wrong with the name decides, whatever is named behind it, and a request fetches no more of the tables than the
/// name's segment and that of its extensions.
fn name_first(rig: &Rig) {
    let adapter = rig.embedded();
    let session = adapter.session().unwrap();
    let files = format(&session);
    let all = in_pieces(&files, 24);
    let mut hand = Hand::new(&session);
    let fetches = || {
        // Until the poller has written its counters down.
        (0..100).for_each(|_| {
            adapter.turn();
        });
        session.statistics().unwrap().fetches
    };
    for (file, _) in &all {
        let extension = file.extensions().unwrap().last().unwrap().key;
        let read = hand.entry(opcode::READ, file, extension);
        let before = fetches();
        for (key, expected) in [
            (file.key().wrapping_add(1 << 32), Status::E_KEY_INSTANCE),
            (file.key() | 0xffff_ffff, Status::E_KEY_RANGE),
        ] {
            // Beyond the file, of another life, and as it should be.
            for extension in [extension | 0xffff, extension.wrapping_add(1 << 32), extension] {
                let entry = SubmissionEntry { key, extension, ..read };
                assert_eq!(hand.status(&entry), expected, "key {key:#x}, extension {extension:#x}");
            }
        }
        let named = fetches();
        assert!(named <= before + 1, "{} fetches for a name", named - before);
        assert_eq!(hand.status(&read), Status::OK);
        let read_once = fetches();
        assert!(read_once <= named + 1, "{} fetches for an extension", read_once - named);
        for extension in file.extensions().unwrap() {
            assert_eq!(hand.status(&SubmissionEntry { extension: extension.key, ..read }), Status::OK);
        }
    }
}

fn another_session(rig: &Rig) {
    let adapter = rig.isolated();
    let mine = format(&Session::connect(adapter.socket()).unwrap());
    let session = Session::connect(adapter.socket()).unwrap();
    let its = session.files().unwrap();
    let file = mine.create("v:/a").unwrap();
    let data = pattern(1, 40_960);
    file.write_all_at(&data, 0).unwrap();
    // Open in the other session, too: but that has a key of its own.
    let other = writable().open(&its, "v:/a").unwrap();
    assert_ne!(other.key(), file.key());
    let mut hand = Hand::new(&session);
    let extension = file.extensions().unwrap()[0].key;
    let opcodes = [
        opcode::READ,
        opcode::WRITE,
        opcode::FLUSH,
        opcode::WRITE_ZEROES,
        opcode::DEALLOCATE,
        opcode::WRITE_BYTES,
        opcode::APPEND,
    ];
    for opcode in opcodes {
        let entry = hand.entry(opcode, &file, 0);
        assert_eq!(hand.status(&entry), Status::E_PD_MISMATCH, "operation {opcode}");
        if opcode != opcode::APPEND && opcode != opcode::FLUSH {
            let entry = SubmissionEntry { extension, ..entry };
            assert_eq!(hand.status(&entry), Status::E_PD_MISMATCH, "operation {opcode}, by extension");
        }
    }
    assert!(content(&file) == data && content(&other) == data);
}

fn stale_extension(rig: &Rig) {
    let adapter = rig.isolated();
    let session = Session::connect(adapter.socket()).unwrap();
    let files = format(&session);
    let [(file, _), (between, _)] = in_pieces(&files, 6);
    let block = unit(&files);
    let old = file.extensions().unwrap();
    assert!(old.len() > 2);
    let mut hand = Hand::new(&session);
    // The first stays; the others go, and numbers like theirs come back.
    file.set_len(old[0].bytes).unwrap();
    for its in &old[1..] {
        assert_eq!(hand.status(&hand.entry(opcode::READ, &file, its.key)), Status::E_KEY_RANGE);
    }
    for blocks in 7..=14 {
        file.allocate((blocks - 5) * block).unwrap();
        between.allocate(blocks * block).unwrap();
    }
    let new = file.extensions().unwrap();
    assert!(new.len() > 2, "{} extensions", new.len());
    assert_eq!(new[0].key, old[0].key, "what was not cut keeps its key");
    assert_eq!(hand.status(&hand.entry(opcode::READ, &file, old[0].key)), Status::OK);
    for (old, new) in old.iter().zip(&new).skip(1) {
        assert_eq!(old.key as u32, new.key as u32, "the same number");
        for opcode in [opcode::READ, opcode::WRITE] {
            let entry = hand.entry(opcode, &file, old.key);
            assert_eq!(hand.status(&entry), Status::E_KEY_INSTANCE, "operation {opcode}");
        }
        assert_eq!(hand.status(&hand.entry(opcode::WRITE, &file, new.key)), Status::OK);
    }
}

fn read_only(rig: &Rig) {
    let adapter = rig.isolated();
    let session = Session::connect(adapter.socket()).unwrap();
    let files = format(&session);
    let writer = files.create("v:/a").unwrap();
    let data = pattern(1, 20_000);
    writer.write_all_at(&data, 0).unwrap();
    let file = files.open("v:/a").unwrap();
    assert_eq!(file.access(), Access::READ);
    let extension = file.extensions().unwrap()[0];
    assert_eq!(extension.access, Access::READ.bits());
    let mut hand = Hand::new(&session);
    for opcode in
        [opcode::WRITE, opcode::WRITE_ZEROES, opcode::DEALLOCATE, opcode::WRITE_BYTES, opcode::APPEND]
    {
        let entry = hand.entry(opcode, &file, 0);
        assert_eq!(hand.status(&entry), Status::E_ACCESS, "operation {opcode}");
        if opcode != opcode::APPEND {
            let entry = SubmissionEntry { extension: extension.key, ..entry };
            assert_eq!(hand.status(&entry), Status::E_ACCESS, "operation {opcode}, by extension");
        }
    }
    for key in [0, extension.key] {
        assert_eq!(hand.status(&hand.entry(opcode::READ, &file, key)), Status::OK);
    }
    assert_eq!(status(file.write_all_at(b"x", 0)), Status::E_ACCESS);
    assert_eq!(status(file.append(b"x")), Status::E_ACCESS);
    assert_eq!(status(file.set_len(0)), Status::E_ACCESS);
    assert_eq!(status(file.allocate(1 << 20)), Status::E_ACCESS);
    assert!(content(&writer) == data);
    // Who may write only does not read.
    let blind = OpenOptions::new().write(true).open(&files, "v:/a").unwrap();
    assert_eq!(status(blind.read_at(&mut [0; 10], 0)), Status::E_ACCESS);
    blind.write_all_at(b"x", 0).unwrap();
    assert_eq!(content(&writer)[0], b'x');
}

fn stale_file(rig: &Rig) {
    let adapter = rig.isolated();
    let session = Session::connect(adapter.socket()).unwrap();
    let files = format(&session);
    let first = files.create("v:/a").unwrap();
    first.write_all_at(&pattern(1, 8192), 0).unwrap();
    let mut hand = Hand::new(&session);
    let extension = first.extensions().unwrap()[0].key;
    let old = hand.entry(opcode::READ, &first, 0);
    assert_eq!(hand.status(&old), Status::OK);
    first.close().unwrap();
    let ended = [Status::E_ENTRY_INVALID, Status::E_KEY_INSTANCE];
    assert!(ended.contains(&hand.status(&old)), "it is closed");
    let mut again = 0;
    for _ in 0..20 {
        let file = files.open("v:/a").unwrap();
        let by_extension = SubmissionEntry { extension, ..old };
        if file.key() as u32 == old.key as u32 {
            again += 1;
            assert_eq!(hand.status(&old), Status::E_KEY_INSTANCE);
            assert_eq!(hand.status(&by_extension), Status::E_KEY_INSTANCE);
            // The key of its extension is of another life as well.
            let mixed = hand.entry(opcode::READ, &file, extension);
            assert_eq!(hand.status(&mixed), Status::E_KEY_INSTANCE);
        }
        assert_eq!(
            status(files.call(&Request::QueryFile { key: old.key }).and_then(|reply| refused(&reply))),
            Status::E_KEY_INSTANCE
        );
        assert_eq!(hand.status(&hand.entry(opcode::READ, &file, 0)), Status::OK, "and the new one works");
        assert!(content(&file) == pattern(1, 8192));
    }
    assert!(again > 0, "its index was used again");
}

/// A reply where there should have been a refusal.
fn refused(reply: &Reply) -> Result<(), Error> {
    panic!("not refused: {reply:?}")
}

fn growing(rig: &Rig) {
    let adapter = rig.isolated();
    let session = Session::connect(adapter.socket()).unwrap();
    let files = format(&session);
    let other = Session::connect(adapter.socket()).unwrap();
    let [(file, data), (between, _)] = in_pieces(&files, 3);
    let theirs = writable().open(&other.files().unwrap(), "v:/a").unwrap();
    let (mut hand, mut its_hand) = (Hand::new(&session), Hand::new(&other));
    let block = unit(&files);
    let (mine, its) = (file.extensions().unwrap(), theirs.extensions().unwrap());
    // Through several sizes of its segment.
    for blocks in 4..=70 {
        file.allocate(blocks * block).unwrap();
        between.allocate(blocks * block).unwrap();
        let now = file.extensions().unwrap();
        assert!(now[..mine.len()].iter().map(|its| its.key).eq(mine.iter().map(|its| its.key)));
        for (hand, file, extensions) in [(&mut hand, &file, &mine), (&mut its_hand, &theirs, &its)] {
            for its in extensions {
                assert_eq!(hand.transfer(opcode::READ, file, its.key, (0, block)), Status::OK);
                let was = &data[its.offset as usize..][..block as usize];
                assert!(hand.buffer[..was.len()] == *was, "{blocks} blocks");
            }
        }
    }
    assert!(file.extensions().unwrap().len() > 32, "more than one reply tells");
    assert!(content(&file) == data, "it has more room, and is not longer");
    theirs.write_all_at(&pattern(9, 4096), 69 * block).unwrap();
    let all = content(&file);
    assert!(all[69 * block as usize..] == pattern(9, 4096), "the other session reaches what is new");
    assert!(all[..data.len()] == data && all[data.len()..69 * block as usize].iter().all(|byte| *byte == 0));
}

fn others(rig: &Rig) {
    let adapter = rig.embedded();
    let owner = adapter.session().unwrap();
    let files = format(&owner);
    let file = writable().create(true).mode(0o600).open(&files, "v:/a").unwrap();
    file.write_all_at(b"mine", 0).unwrap();
    let bob = adapter.session_as(somebody(1234)).unwrap().files().unwrap();
    // A volume that is not for him has no files that he can see.
    assert_eq!(status(bob.metadata("v:/a")), Status::E_NO_RESOURCE);
    owner.set_access("v", Subject::User(1234), Access::ALL).unwrap();
    let key = file.key();
    let change = AttributeChange { mode: Some(0o777), ..AttributeChange::default() };
    for request in [
        Request::QueryFile { key },
        Request::ListExtensions { key, skip: 0 },
        Request::GrowFile { key, bytes: 1 << 20, keep: false },
        Request::SetLength { key, bytes: 0 },
        Request::SetAttributes { of: FileTarget::Key(key), change: change.clone() },
        Request::SyncFile { key, data_only: true },
        Request::Close { key },
    ] {
        let result = bob.call(&request).and_then(|reply| refused(&reply));
        assert_eq!(status(result), Status::E_PD_MISMATCH, "{request:?}");
    }
    assert_eq!(status(bob.open("v:/a")), Status::E_AUTH);
    assert_eq!(status(bob.set_attributes("v:/a", change)), Status::E_AUTH);
    assert_eq!(status(bob.remove_file("v:/a")), Status::E_AUTH);
    assert_eq!(status(bob.rename("v:/a", "v:/b")), Status::E_AUTH);
    assert_eq!(status(bob.create("v:/his")), Status::E_AUTH);
    assert_eq!(status(bob.create_dir("v:/his")), Status::E_AUTH);
    for result in [bob.format("v", true).map(drop), bob.set_quota("v", 1234, None)] {
        assert!([Status::E_AUTH, Status::E_NO_RESOURCE].contains(&status(result)));
    }
    assert_eq!(content(&file), b"mine");
    assert_eq!(file.metadata().unwrap().mode, 0o600);
    // What he is given he has.
    files
        .set_attributes("v:/a", AttributeChange { mode: Some(0o604), ..AttributeChange::default() })
        .unwrap();
    assert_eq!(content(&bob.open("v:/a").unwrap()), b"mine");
    assert_eq!(status(writable().open(&bob, "v:/a")), Status::E_AUTH);
}

fn ended(rig: &Rig) {
    let adapter = rig.isolated();
    let session = Session::connect(adapter.socket()).unwrap();
    let files = format(&session);
    let free = files.space("v").unwrap().free;
    let holds = || {
        let its = session.statistics().unwrap();
        (its.entries, its.regions, its.pinned_bytes, its.lba_entries, its.sessions.len())
    };
    let before = holds();
    for round in 0..20 {
        let its = Session::connect(adapter.socket()).unwrap();
        let of_it = its.files().unwrap();
        let mut hand = Hand::new(&its);
        for n in 0..5 {
            // Opened without a `File`, which would close it at its end.
            let place = format!("/{n}");
            let open = OpenFile {
                access: 3,
                create: Create::IfAbsent,
                allocate: 8192,
                ..OpenFile::reading("v", FilePath::new(place.as_bytes()).unwrap())
            };
            let Reply::File(info) = of_it.call(&Request::OpenFile(open)).unwrap() else { panic!("no file") };
            let entry = SubmissionEntry {
                opcode: opcode::WRITE,
                key: info.key,
                length: info.block_size,
                region: hand.buffer.region(),
                region_offset: hand.buffer.region_offset(),
                ..SubmissionEntry::default()
            };
            if round == 0 {
                assert_eq!(hand.status(&entry), Status::OK);
            }
            (0..3).for_each(|_| hand.raw.push(&entry).unwrap());
            of_it.remove_file(format!("v:{place}")).unwrap();
        }
        hand.raw.ring().unwrap(); // And all is under way when the session ends.
    }
    until("all that those sessions held is given back", || holds() == before);
    until("their files are gone, as nothing names them", || files.space("v").unwrap().free == free);
    assert_eq!(files.check("v", false).unwrap().found, 0);
}
