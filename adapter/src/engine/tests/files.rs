//! Requests on opened files: where they end, what they do to lengths, and appends of several engines.

use super::bytes::{Many, Writer};
use super::*;

const BLOCK: u64 = 512;
/// The file of these tests lies here: three extents of 4, 2 and 10 blocks.
const EXTENTS: [(u64, u64); 3] = [(1000, 4), (2000, 2), (3000, 10)];
const ROOM: u64 = 16 * BLOCK;
const FILE: u32 = 1;

fn open(engines: usize, length: u64) -> (Many, Vec<Writer>) {
    let mut many = Many::new(engines);
    many.lengths.set(FILE, length);
    let writers =
        (0..engines).map(|engine| many.opener(engine, Access::READ_WRITE, FILE, &EXTENTS)).collect();
    many.engines.iter_mut().for_each(|engine| engine.queue.reads_reach_applications = true);
    (many, writers)
}

impl Writer {
    fn read(&self, user_data: u64, offset: u64, length: u32) -> SubmissionEntry {
        self.app.request(user_data, opcode::READ, offset, length)
    }

    fn append(&self, user_data: u64, length: u32) -> SubmissionEntry {
        self.app.request(user_data, opcode::APPEND, 0, length)
    }

    /// Status, bytes and value of each completion.
    fn answers(&mut self) -> Vec<(Status, u32, u64)> {
        self.app.completions().iter().map(|c| (Status(c.status), c.bytes, c.value)).collect()
    }
}

/// Device block and number of blocks of each command.
fn commands(many: &mut Many, engine: usize) -> Vec<(u64, u32)> {
    let seen = std::mem::take(&mut many.engines[engine].queue.seen);
    seen.iter().map(|command| (command.lba, command.blocks)).collect()
}

#[test]
fn s5_r6_a_byte_offset_finds_its_extensions_and_a_request_is_split_over_them() {
    let (mut many, mut writers) = open(1, ROOM);
    for (offset, length, expected) in [
        (0, 512, vec![(1000, 1)]),
        (3 * BLOCK, 512, vec![(1003, 1)]),
        (4 * BLOCK, 1024, vec![(2000, 2)]),
        (6 * BLOCK, 512, vec![(3000, 1)]),
        (3 * BLOCK, 2048, vec![(1003, 1), (2000, 2), (3000, 1)]),
        (0, 16 * 512, vec![(1000, 4), (2000, 2), (3000, 10)]),
    ] {
        let entry = writers[0].read(1, offset, length);
        writers[0].submit(&entry);
        many.turns(3);
        assert_eq!(writers[0].answers(), [(Status::OK, length, 0)], "{length} at {offset}");
        assert_eq!(commands(&mut many, 0), expected, "{length} at {offset}");
    }
    many.assert_clean(&writers[0]);
}

#[test]
fn s5_r11_with_the_key_of_an_extension_a_request_stays_in_it() {
    let (mut many, mut writers) = open(1, ROOM);
    let key = writers[0].app.key;
    let extensions = many.tables.query(Domain(1), key).unwrap().file.unwrap().extensions;
    let second = extensions[1].key.0;
    for (offset, length, expected) in [
        (0, 1024, (Status::OK, 1024, 0)),
        (512, 512, (Status::OK, 512, 0)),
        (512, 1024, (Status::E_BOUNDS, 0, 0)),
        (1024, 512, (Status::E_BOUNDS, 0, 0)),
    ] {
        let entry = SubmissionEntry { extension: second, ..writers[0].read(1, offset, length) };
        writers[0].submit(&entry);
        many.turns(3);
        assert_eq!(writers[0].answers(), [expected], "{length} at {offset}");
    }
    assert_eq!(commands(&mut many, 0), [(2000, 2), (2001, 1)]);
    let beyond = SubmissionEntry { extension: second + 2, ..writers[0].read(1, 0, 512) };
    let stale = SubmissionEntry { extension: second + (1 << 32), ..writers[0].read(2, 0, 512) };
    writers[0].submit(&beyond);
    writers[0].submit(&stale);
    many.turns(3);
    assert_eq!(writers[0].app.statuses(), [(1, Status::E_KEY_RANGE), (2, Status::E_KEY_INSTANCE)]);
}

#[test]
fn a_read_ends_where_its_file_does() {
    let (mut many, mut writers) = open(1, 4 * BLOCK + 100);
    for (offset, length, bytes) in [
        (0, 2048, 2048),
        (4 * BLOCK, 512, 100),
        (0, 5 * 512, 4 * 512 + 100),
        (0, 16 * 512, 4 * 512 + 100),
        (2 * BLOCK, 100 * 512, 2 * 512 + 100), // also beyond the blocks that it has
        (5 * BLOCK, 512, 0),
        (ROOM, 512, 0),
        (1 << 40, 512, 0),
    ] {
        let entry = writers[0].read(1, offset, length);
        writers[0].submit(&entry);
        many.turns(3);
        assert_eq!(writers[0].answers(), [(Status::OK, bytes, 0)], "{length} at {offset}");
        let touched: u64 = commands(&mut many, 0).iter().map(|(_, blocks)| u64::from(*blocks)).sum();
        assert!(touched * BLOCK >= u64::from(bytes) && (bytes > 0 || touched == 0), "{length} at {offset}");
    }
    // The end of an extension that was named is counted from its beginning.
    let key = writers[0].app.key;
    let second = many.tables.query(Domain(1), key).unwrap().file.unwrap().extensions[1].key.0;
    let entry = SubmissionEntry { extension: second, ..writers[0].read(1, 0, 1024) };
    writers[0].submit(&entry);
    many.turns(3);
    assert_eq!(writers[0].answers(), [(Status::OK, 100, 0)]);
    many.assert_clean(&writers[0]);
}

#[test]
fn a_write_moves_the_end_when_it_has_ended_well_and_not_before() {
    let (mut many, mut writers) = open(1, 100);
    many.engines[0].queue.automatic = false;
    let entry = writers[0].app.request(1, opcode::WRITE, 2 * BLOCK, 1024);
    writers[0].submit(&entry);
    many.turns(2);
    assert_eq!(many.lengths.get(FILE), 100);
    many.engines[0].queue.complete(0);
    many.turns(2);
    assert_eq!(writers[0].answers(), [(Status::OK, 1024, 0)]);
    assert_eq!(many.lengths.get(FILE), 4 * BLOCK);
    // One that fails moves nothing.
    many.engines[0].queue.status = DeviceStatus::LBA_OUT_OF_RANGE;
    let entry = writers[0].app.request(2, opcode::WRITE, 6 * BLOCK, 512);
    writers[0].submit(&entry);
    many.turns(2);
    many.engines[0].queue.complete(0);
    many.turns(2);
    assert_eq!(writers[0].app.statuses(), [(2, Status::E_DEVICE)]);
    assert_eq!(many.lengths.get(FILE), 4 * BLOCK);
    // Nor does one inside.
    (many.engines[0].queue.status, many.engines[0].queue.automatic) = (DeviceStatus::OK, true);
    let entry = writers[0].bytes(3, 5, 10);
    writers[0].submit(&entry);
    many.turns(4);
    assert_eq!((writers[0].answers(), many.lengths.get(FILE)), (vec![(Status::OK, 10, 0)], 4 * BLOCK));
    let entry = writers[0].bytes(4, 4 * BLOCK + 3, 10);
    writers[0].submit(&entry);
    many.turns(4);
    assert_eq!((writers[0].answers(), many.lengths.get(FILE)), (vec![(Status::OK, 10, 0)], 4 * BLOCK + 13));
    many.assert_clean(&writers[0]);
}

#[test]
fn what_a_file_has_no_blocks_for_asks_for_resources_and_reaches_no_device() {
    let (mut many, mut writers) = open(1, ROOM - 5);
    for (op, offset, length) in [
        (opcode::WRITE, ROOM, 512),
        (opcode::WRITE, ROOM - BLOCK, 1024),
        (opcode::WRITE_BYTES, ROOM - 3, 4),
        (opcode::WRITE_ZEROES, ROOM, 512),
        (opcode::APPEND, 0, 6),
    ] {
        let entry = writers[0].app.request(1, op, offset, length);
        writers[0].submit(&entry);
        many.turns(3);
        assert_eq!(writers[0].app.statuses(), [(1, Status::E_NO_RESOURCES)], "opcode {op}");
    }
    assert_eq!(commands(&mut many, 0), []);
    for (op, offset, length) in [(opcode::WRITE, u64::MAX - 511, 512), (opcode::WRITE, 0, 0)] {
        let entry = writers[0].app.request(1, op, offset, length);
        writers[0].submit(&entry);
        many.turns(3);
        assert_eq!(writers[0].app.statuses(), [(1, Status::E_BOUNDS)]);
    }
    assert_eq!(many.lengths.get(FILE), ROOM - 5);
    many.assert_clean(&writers[0]);
}

#[test]
fn s5_r10_who_may_only_read_neither_writes_nor_appends_nor_learns_what_room_there_is() {
    let mut many = Many::new(1);
    many.lengths.set(FILE, 100);
    let mut reader = many.opener(0, Access::READ, FILE, &EXTENTS);
    for (op, offset) in
        [(opcode::WRITE, 0), (opcode::WRITE, 1 << 30), (opcode::WRITE_BYTES, 3), (opcode::APPEND, 0)]
    {
        let entry = reader.app.request(1, op, offset, 512);
        reader.submit(&entry);
        many.turns(3);
        assert_eq!(reader.app.statuses(), [(1, Status::E_ACCESS)], "opcode {op}");
    }
    let mut writer = many.opener(0, Access::WRITE, FILE, &EXTENTS);
    for offset in [0, 1 << 30] {
        let entry = writer.read(1, offset, 512);
        writer.submit(&entry);
        many.turns(3);
        assert_eq!(writer.app.statuses(), [(1, Status::E_ACCESS)]);
    }
}

#[test]
fn appends_get_places_one_after_the_other_and_a_place_is_told() {
    let (mut many, mut writers) = open(2, 5);
    for writer in &writers {
        writer.fill(0x77);
    }
    let (mut end, mut all) = (5, Vec::new());
    for round in 0..40u32 {
        let length = 1 + round * 5 % 97;
        let engine = (round % 2) as usize;
        let entry = writers[engine].append(u64::from(round), length);
        writers[engine].submit(&entry);
        many.turns(6);
        assert_eq!(writers[engine].answers(), [(Status::OK, length, end)]);
        end += u64::from(length);
        all.push(length);
        assert_eq!(many.lengths.get(FILE), end);
    }
    let data: Vec<u8> = [(1000, 4), (2000, 2), (3000, 10)]
        .iter()
        .flat_map(|&(first, blocks)| many.read(first, 0, (blocks * BLOCK) as usize))
        .collect();
    for (at, byte) in data.iter().enumerate() {
        let written = (5..end as usize).contains(&at);
        assert_eq!(*byte, if written { 0x77 } else { 0 }, "byte {at}");
    }
    many.assert_clean(&writers[0]);
}

#[test]
fn an_append_is_answered_only_when_all_before_it_have_landed() {
    let (mut many, mut writers) = open(2, 0);
    many.engines.iter_mut().for_each(|engine| engine.queue.automatic = false);
    // Whole blocks: nothing is read and nothing gated, so that both are at the device at once.
    for engine in [0, 1] {
        let entry = writers[engine].append(7, 1024);
        writers[engine].submit(&entry);
        many.turn(engine);
    }
    many.engines[1].queue.complete(0);
    many.turns(3);
    assert_eq!(writers[1].answers(), [], "what is before it is still on its way");
    assert_eq!((many.lengths.get(FILE), many.engines[1].in_flight()), (0, 1));
    assert!(!many.engines[1].prepare_sleep(true), "somebody else's end does not wake it");
    // It can be neither cancelled nor flushed any more.
    writers[1].cancel(8, 7);
    many.turns(3);
    assert_eq!(writers[1].app.statuses(), [(8, Status::OK)]);
    many.engines[0].queue.complete(0);
    many.turns(3);
    assert_eq!(writers[0].answers(), [(Status::OK, 1024, 0)]);
    assert_eq!(writers[1].answers(), [(Status::OK, 1024, 1024)]);
    assert_eq!(many.lengths.get(FILE), 2048);
    many.assert_clean(&writers[1]);
}

#[test]
fn an_append_that_fails_leaves_its_place_and_keeps_nobody_waiting() {
    let (mut many, mut writers) = open(2, 0);
    many.engines.iter_mut().for_each(|engine| engine.queue.automatic = false);
    for engine in [0, 1] {
        let entry = writers[engine].append(7, 512);
        writers[engine].submit(&entry);
        many.turn(engine);
    }
    many.engines[1].queue.complete(0);
    many.engines[0].queue.status = DeviceStatus::LBA_OUT_OF_RANGE;
    many.engines[0].queue.complete(0);
    many.turns(3);
    assert_eq!(writers[0].app.statuses(), [(7, Status::E_DEVICE)]);
    assert_eq!(writers[1].answers(), [(Status::OK, 512, 512)]);
    assert_eq!(many.lengths.get(FILE), 1024);
}

#[test]
fn an_append_that_never_began_gives_its_place_back() {
    let (mut many, mut writers) = open(1, 0);
    many.engines[0].queue.automatic = false;
    // The first block is read before it is written: nothing of it is written yet.
    many.lengths.set(FILE, 5);
    let entry = writers[0].append(1, 10);
    writers[0].submit(&entry);
    many.turns(6);
    writers[0].cancel(2, 1);
    many.turns(1);
    while !many.engines[0].queue.running.is_empty() {
        many.engines[0].queue.complete(0);
        many.turns(1);
    }
    many.turns(2);
    let mut statuses = writers[0].app.statuses();
    statuses.sort_unstable_by_key(|(user_data, _)| *user_data);
    assert_eq!(statuses, [(1, Status::E_CANCELLED), (2, Status::OK)]);
    assert_eq!(many.lengths.get(FILE), 5);
    many.engines[0].queue.automatic = true;
    let entry = writers[0].append(3, 10);
    writers[0].submit(&entry);
    many.turns(6);
    assert_eq!(writers[0].answers(), [(Status::OK, 10, 5)], "its place was free again");
    many.assert_clean(&writers[0]);
}

#[test]
fn a_grant_of_blocks_takes_no_append() {
    let mut many = Many::new(1);
    let mut writer = many.opener(0, Access::READ_WRITE, FILE, &EXTENTS);
    let ranges = [LbaRange::new(9000, 4).unwrap()];
    let spec = GrantSpec {
        domain: Domain(1),
        access: Access::READ_WRITE,
        block_shift: 9,
        ranges: &ranges,
        shared: true,
    };
    writer.app.key = many.tables.create(&spec).unwrap();
    let entry = writer.append(1, 10);
    writer.submit(&entry);
    many.turns(3);
    assert_eq!(writer.app.statuses(), [(1, Status::E_ENTRY_INVALID)]);
}

#[test]
fn to_read_a_hole_is_told_to_write_it_asks_for_room_and_neither_is_a_denial() {
    let mut many = Many::new(1);
    many.lengths.open(FILE, ROOM, true);
    let hole = (LbaRange::hole(4, 2).unwrap().first.0, 2);
    let mut writer = many.opener(0, Access::READ_WRITE, FILE, &[EXTENTS[0], hole, EXTENTS[2]]);
    many.engines[0].queue.reads_reach_applications = true;
    for (op, offset, length, expected) in [
        (opcode::READ, 4 * BLOCK, 1024, Status::E_HOLE),
        (opcode::READ, 3 * BLOCK, 1024, Status::E_HOLE),
        (opcode::READ, 0, 8192, Status::E_HOLE),
        (opcode::COMPARE, 5 * BLOCK, 512, Status::E_HOLE),
        (opcode::WRITE, 5 * BLOCK, 1024, Status::E_NO_RESOURCES),
        (opcode::WRITE, 0, 8192, Status::E_NO_RESOURCES),
        (opcode::WRITE_BYTES, 4 * BLOCK - 1, 2, Status::E_NO_RESOURCES),
        (opcode::WRITE_ZEROES, 4 * BLOCK, 512, Status::E_NO_RESOURCES),
    ] {
        let entry = writer.app.request(1, op, offset, length);
        writer.submit(&entry);
        many.turns(3);
        assert_eq!(writer.app.statuses(), [(1, expected)], "opcode {op} at {offset}");
    }
    assert_eq!(commands(&mut many, 0), []);
    assert_eq!(many.shareds[0].denied(), 0);
    for (offset, length) in [(0, 2048), (6 * BLOCK, 5120)] {
        let entry = writer.read(1, offset, length);
        writer.submit(&entry);
        many.turns(3);
        assert_eq!(writer.answers(), [(Status::OK, length, 0)]);
    }
    assert_eq!(commands(&mut many, 0), [(1000, 4), (3000, 10)]);
    many.assert_clean(&writer);
}

#[test]
fn a_length_that_is_fixed_is_not_moved_and_nothing_is_written_behind_it() {
    let (mut many, mut writers) = open(1, 0);
    let length = 14 * BLOCK + 100;
    many.lengths.open(FILE, length, true);
    for (op, offset, bytes) in [
        (opcode::WRITE, 14 * BLOCK, 512),
        (opcode::WRITE, 13 * BLOCK, 1024),
        (opcode::WRITE, 15 * BLOCK, 512),
        (opcode::WRITE_BYTES, length, 1),
        (opcode::WRITE_BYTES, length - 1, 2),
        (opcode::WRITE_ZEROES, 14 * BLOCK, 512),
        (opcode::APPEND, 0, 1),
        (opcode::APPEND, 0, 600),
    ] {
        let entry = writers[0].app.request(1, op, offset, bytes);
        writers[0].submit(&entry);
        many.turns(4);
        assert_eq!(writers[0].app.statuses(), [(1, Status::E_NO_RESOURCES)], "opcode {op} at {offset}");
        assert_eq!((commands(&mut many, 0), many.lengths.get(FILE)), (vec![], length));
    }
    for (op, offset, bytes) in [(opcode::WRITE, 13 * BLOCK, 512), (opcode::WRITE_BYTES, 14 * BLOCK + 1, 99)] {
        let entry = writers[0].app.request(1, op, offset, bytes);
        writers[0].submit(&entry);
        many.turns(4);
        assert_eq!(writers[0].answers(), [(Status::OK, bytes, 0)], "opcode {op} at {offset}");
    }
    assert_eq!(many.lengths.get(FILE), length);
    assert!(many.lengths.take_written(FILE));
    // The next file of that number is one of ours.
    many.lengths.open(FILE, length, false);
    let entry = writers[0].bytes(1, length, 5);
    writers[0].submit(&entry);
    many.turns(4);
    assert_eq!((writers[0].answers(), many.lengths.get(FILE)), (vec![(Status::OK, 5, 0)], length + 5));
    many.assert_clean(&writers[0]);
}
