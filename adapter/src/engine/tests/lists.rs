//! Requests whose memory is a scatter list.

use wire::layout::{MAX_SEGMENTS, ScatterSegment};

use super::*;

const BLOCK: u32 = 512;
/// Where the regions of these tests begin for the device.
const IOVAS: [u64; 2] = [0x4000_0000, 0x8000_0000];

/// An application with a grant, two regions for data, and one for lists.
struct Scattered {
    rig: Rig,
    app: App,
    data: [RegionKey; 2],
    lists: RegionKey,
    memory: Arc<SharedMemory>,
}

impl Scattered {
    fn new() -> Self {
        let mut rig = Rig::new();
        let app = rig.app(1, 256, 1000, Access::READ_WRITE);
        let data = IOVAS.map(|iova| rig.region(1, Access::READ_WRITE, iova).0);
        let (lists, memory) = rig.region(1, Access::READ, 0xc000_0000);
        rig.turns(1);
        Self { rig, app, data, lists, memory }
    }

    fn write(&self, offset: usize, list: &[ScatterSegment]) {
        for (i, segment) in list.iter().enumerate() {
            let words = [
                segment.region,
                segment.offset,
                u64::from(segment.length) | u64::from(segment.reserved) << 32,
            ];
            for (j, word) in words.into_iter().enumerate() {
                let at = self.memory.atomic_u64(offset + i * 24 + j * 8).unwrap();
                at.store(word, Ordering::Relaxed);
            }
        }
    }

    /// Writes the list and a request for all of it.
    fn request(&self, user_data: u64, op: u8, list: &[ScatterSegment]) -> SubmissionEntry {
        let at = user_data as usize % 1024 * 1024;
        self.write(at, list);
        SubmissionEntry {
            flags: flag::SCATTER,
            scatter_count: list.len() as u8,
            region: self.lists.0,
            region_offset: at as u64,
            ..self.app.request(user_data, op, 0, list.iter().map(|s| s.length).sum())
        }
    }

    fn segment(&self, region: usize, offset: u64, blocks: u32) -> ScatterSegment {
        let region = self.data[region].0;
        ScatterSegment { region, offset, length: blocks * BLOCK, reserved: 0 }
    }

    fn status(&mut self, entry: &SubmissionEntry) -> Status {
        self.app.submit(entry);
        self.rig.turns(3);
        let statuses = self.app.statuses();
        assert_eq!(statuses.len(), 1);
        statuses[0].1
    }

    /// Which block the device read or wrote where, in the order in which it was told.
    fn moved(&self) -> Vec<(u64, u64)> {
        let queue = &self.rig.engine.queue;
        let mut moved = Vec::new();
        for (command, segments) in queue.seen.iter().zip(&queue.segments) {
            let blocks = segments.iter().flat_map(|segment| {
                let from = segment.data.0;
                (from..from + u64::from(segment.bytes)).step_by(BLOCK as usize)
            });
            moved.extend((command.lba..).zip(blocks));
        }
        moved
    }
}

#[test]
fn s8_r9_a_list_becomes_commands_and_one_completion() {
    let mut case = Scattered::new();
    let list = [case.segment(0, 4096, 1), case.segment(1, 4, 2), case.segment(0, 0, 1)];
    let entry = case.request(7, opcode::READ, &list);
    case.app.submit(&entry);
    case.rig.turns(2);
    let queue = &case.rig.engine.queue;
    assert_eq!(queue.seen.len(), 1, "the device takes eight segments with one command");
    assert_eq!((queue.seen[0].lba, queue.seen[0].blocks), (1000, 4));
    let bytes = |segment: &Segment| (segment.data.0, segment.bytes);
    let expected = [(IOVAS[0] + 4096, 512), (IOVAS[1] + 4, 1024), (IOVAS[0], 512)];
    assert_eq!(queue.segments[0].iter().map(bytes).collect::<Vec<_>>(), expected);
    let done = case.app.completions();
    assert_eq!(done.len(), 1);
    assert_eq!((done[0].user_data, done[0].status, done[0].bytes), (7, 0, 2048));
    for region in [case.data[0], case.data[1], case.lists] {
        assert!(case.rig.engine.state.directory.region_is_idle(region.index()));
    }
}

#[test]
fn a_device_that_takes_one_segment_gets_one_at_a_time() {
    let mut case = Scattered::new();
    case.rig.engine.queue.geometry.max_segments = 1;
    let list = [case.segment(0, 0, 3), case.segment(1, 0, 1), case.segment(0, 8192, 12)];
    let entry = case.request(1, opcode::WRITE, &list);
    assert_eq!(case.status(&entry), Status::OK);
    let commands: Vec<_> = case.rig.engine.queue.seen.iter().map(|c| (c.lba, c.blocks, c.data.0)).collect();
    let expected = [
        (1000, 3, IOVAS[0]),
        (1003, 1, IOVAS[1]),
        (1004, 8, IOVAS[0] + 8192),
        (1012, 4, IOVAS[0] + 8192 + 4096),
    ];
    assert_eq!(commands, expected);
}

/// Whatever the grant's ranges, the list, the device's limits and its room: each block meets its own memory, once.
#[test]
fn s8_r4_every_block_meets_its_own_memory_however_grant_list_and_device_are_cut() {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for round in 0..300u64 {
        let mut case = Scattered::new();
        let ranges: Vec<LbaRange> = (0..1 + random(12))
            .map(|i| LbaRange::new(10_000 + 1000 * ((i * 7) % 13), 1 + random(6)).unwrap())
            .collect();
        let spec = GrantSpec {
            domain: Domain(1),
            access: Access::READ_WRITE,
            block_shift: 9,
            ranges: &ranges,
            shared: true,
        };
        case.app.key = case.rig.tables.create(&spec).unwrap();
        let lbas: Vec<u64> = ranges.iter().flat_map(|r| r.first.0..r.first.0 + r.count.0).collect();
        let skip = random(lbas.len() as u64);
        let mut left = lbas.len() as u64 - skip;
        let mut list = Vec::new();
        while left > 0 && list.len() < MAX_SEGMENTS {
            let blocks = 1 + random(left.min(5));
            list.push(case.segment(random(2) as usize, random(1000) * 4, blocks as u32));
            left -= blocks;
        }
        let queue = &mut case.rig.engine.queue;
        queue.geometry.max_segments = [1, 2, 3, 32][random(4) as usize];
        queue.geometry.max_transfer_blocks = 1 + random(9) as u32;
        queue.room = 1 + random(3) as usize;
        let pieces = 1 + random(4) as u32;
        case.rig.engine.set_limits(TurnLimits { pieces, ..TurnLimits::default() });
        let op = [opcode::READ, opcode::WRITE, opcode::COMPARE][random(3) as usize];
        let mut entry = case.request(round, op, &list);
        entry.offset = skip * u64::from(BLOCK);
        case.app.submit(&entry);
        case.rig.turns(120);
        let done = case.app.completions();
        assert_eq!(done.len(), 1, "round {round}");
        assert_eq!((done[0].status, done[0].bytes), (0, entry.length), "round {round}");
        let memory = list.iter().flat_map(|segment| {
            let iova = IOVAS[usize::from(segment.region == case.data[1].0)] + segment.offset;
            (iova..iova + u64::from(segment.length)).step_by(BLOCK as usize)
        });
        let expected: Vec<(u64, u64)> = lbas[skip as usize..].iter().copied().zip(memory).collect();
        let mut moved = case.moved();
        // Pieces are told in order, and each once.
        moved.truncate(expected.len() + 1);
        assert_eq!(moved, expected, "round {round}");
    }
}

#[test]
fn every_fault_of_a_list_is_refused_and_reaches_no_device() {
    let mut case = Scattered::new();
    let stranger = case.rig.region(2, Access::READ_WRITE, 0xd000_0000).0;
    let source = case.rig.region(1, Access::READ, 0xe000_0000).0;
    let target = case.rig.region(1, Access::WRITE, 0xf000_0000).0;
    case.rig.turns(1);
    let good = [case.segment(0, 0, 1), case.segment(1, 0, 1)];
    let with = |spoil: &dyn Fn(&mut ScatterSegment)| {
        let mut list = good;
        spoil(&mut list[1]);
        list
    };
    let lengths = |first: u32, second: u32| {
        let mut list = good;
        (list[0].length, list[1].length) = (first, second);
        list
    };
    let faulty = [
        with(&|s| s.reserved = 1),
        lengths(2 * BLOCK, 0),
        lengths(0, 2 * BLOCK),
        lengths(BLOCK + 4, BLOCK - 4),
        lengths(BLOCK - 1, BLOCK + 1),
        lengths(u32::MAX, 2 * BLOCK + 1),
        with(&|s| s.offset = 2),
        with(&|s| s.offset = REGION_BYTES),
        with(&|s| s.offset = REGION_BYTES - 508),
        with(&|s| s.offset = u64::MAX - 3),
        with(&|s| s.region += 1 << 32),
        with(&|s| s.region = 63),
        with(&|s| s.region = u64::MAX),
        with(&|s| s.region = stranger.0),
        with(&|s| s.region = source.0),
    ];
    for (i, list) in faulty.iter().enumerate() {
        let mut entry = case.request(i as u64, opcode::READ, &good);
        case.write(entry.region_offset as usize, list);
        entry.length = 2 * BLOCK;
        assert_eq!(case.status(&entry), Status::E_LOCAL_MEM, "{i}");
    }
    let to_target = case.request(20, opcode::WRITE, &with(&|s| s.region = target.0));
    assert_eq!(case.status(&to_target), Status::E_LOCAL_MEM);

    // The list itself.
    let entry = case.request(21, opcode::READ, &good);
    type Spoil<'a> = &'a dyn Fn(&mut SubmissionEntry);
    let faulty: [(&str, Spoil<'_>); 8] = [
        ("a sum that is too small", &|e| e.length += BLOCK),
        ("a sum that is too large", &|e| e.length -= BLOCK),
        ("not a multiple of 8", &|e| e.region_offset += 4),
        ("beyond the region", &|e| e.region_offset = REGION_BYTES - 24),
        ("a wrapping place", &|e| e.region_offset = u64::MAX - 7),
        ("another's region", &|e| e.region = stranger.0),
        ("memory that the device only writes", &|e| e.region = target.0),
        ("a stale region", &|e| e.region += 1 << 32),
    ];
    for (what, spoil) in faulty {
        let mut entry = entry;
        spoil(&mut entry);
        assert_eq!(case.status(&entry), Status::E_LOCAL_MEM, "{what}");
    }
    // What comes earlier in the list of checks decides.
    let mut earlier = case.request(22, opcode::READ, &with(&|s| s.reserved = 1));
    assert_eq!(case.status(&earlier), Status::E_LOCAL_MEM);
    earlier.offset = 64 * 512;
    assert_eq!(case.status(&earlier), Status::E_BOUNDS);
    earlier.key += 1 << 32;
    assert_eq!(case.status(&earlier), Status::E_KEY_INSTANCE);
    earlier.scatter_count = 33;
    assert_eq!(case.status(&earlier), Status::E_OPCODE);

    assert!(case.rig.engine.queue.seen.is_empty());
    for region in [case.data[0], case.data[1], case.lists, stranger, source, target] {
        assert!(case.rig.engine.state.directory.region_is_idle(region.index()), "nothing stays held");
    }
    assert!(case.rig.engine.state.directory.entry_is_idle(case.app.key.index()));
    assert_eq!(case.status(&entry), Status::OK);
}

#[test]
fn a_list_is_read_once_and_what_is_written_there_later_changes_nothing() {
    let mut case = Scattered::new();
    case.rig.engine.queue.room = 0;
    let list = [case.segment(0, 0, 1), case.segment(1, 512, 1)];
    let entry = case.request(1, opcode::WRITE, &list);
    case.app.submit(&entry);
    case.rig.turns(2);
    let other = ScatterSegment { region: u64::MAX, offset: 1, length: 77, reserved: 5 };
    case.write(1024, &[other, other]);
    case.rig.engine.queue.room = 64;
    case.rig.turns(2);
    assert_eq!(case.app.statuses(), [(1, Status::OK)]);
    assert_eq!(case.moved(), [(1000, IOVAS[0]), (1001, IOVAS[1] + 512)]);
}

#[test]
fn a_list_in_a_region_whose_memory_has_not_come_is_held() {
    let mut case = Scattered::new();
    let list = [case.segment(0, 0, 1)];
    let mut entry = case.request(1, opcode::READ, &list);
    let spec =
        RegionSpec { domain: Domain(1), access: Access::READ, iova: Iova(0xd000_0000), bytes: REGION_BYTES };
    let late = case.rig.tables.create_region(&spec).unwrap();
    entry.region = late.0;
    case.app.submit(&entry);
    case.rig.turns(5);
    assert_eq!(case.app.statuses(), []);
    let directory = &case.rig.engine.state.directory;
    assert!(directory.region_is_idle(late.index()) && directory.entry_is_idle(case.app.key.index()));
    let memory = case.memory.clone();
    assert!(case.rig.shared.send(Command::Region(late.index(), memory)).is_ok());
    case.rig.turns(2);
    assert_eq!(case.app.statuses(), [(1, Status::OK)]);
}

#[test]
fn each_region_of_a_list_ends_only_when_the_device_is_done_with_it() {
    let mut case = Scattered::new();
    case.rig.engine.queue.automatic = false;
    let list = [case.segment(0, 0, 1), case.segment(1, 0, 1)];
    let entry = case.request(1, opcode::READ, &list);
    case.app.submit(&entry);
    case.rig.turns(1);
    let regions = [case.data[0], case.data[1], case.lists];
    let tickets = regions.map(|region| {
        let _ = case.rig.tables.begin_region_delete(None, region).unwrap();
        let ticket = Ticket::new(1);
        assert!(
            case.rig.shared.send(Command::Drain(Drained::Region(region.index()), ticket.clone())).is_ok()
        );
        ticket
    });
    case.rig.turns(5);
    assert_eq!(tickets.each_ref().map(|t| t.is_done()), [false, false, true], "the list was copied");
    case.rig.engine.queue.automatic = true;
    case.rig.turns(1);
    assert!(tickets.iter().all(|ticket| ticket.is_done()));
    assert_eq!(case.app.statuses(), [(1, Status::OK)]);
}

#[test]
fn s5_r13_requests_wait_for_a_free_list_and_one_queue_does_not_get_all() {
    let mut case = Scattered::new();
    let mut other = case.rig.app(1, 8, 64, Access::READ);
    case.rig.engine.queue.automatic = false;
    case.rig.engine.queue.room = 1000;
    let list = [case.segment(0, 0, 1)];
    for user_data in 0..200 {
        let entry = case.request(user_data, opcode::READ, &list);
        case.app.submit(&entry);
    }
    case.rig.turns(20);
    let running = case.rig.engine.queue.seen.len();
    assert!((32..64).contains(&running), "{running} have a list");
    let mut entry = case.request(500, opcode::READ, &list);
    entry.key = other.key.0;
    other.submit(&entry);
    case.rig.turns(4);
    assert_eq!(case.rig.engine.queue.seen.len(), running + 1, "the other queue gets one at once");
    case.rig.engine.queue.automatic = true;
    case.rig.turns(40);
    assert_eq!(other.statuses(), [(500, Status::OK)]);
    let mut answered = case.app.statuses();
    answered.sort_unstable_by_key(|a| a.0);
    assert_eq!(answered, (0..200).map(|u| (u, Status::OK)).collect::<Vec<_>>());
}

#[test]
fn s8_r9_one_failing_command_of_a_list_fails_the_request_with_the_bytes_that_were_done() {
    let mut case = Scattered::new();
    case.rig.engine.queue.geometry.max_segments = 1;
    case.rig.engine.limits.reap = 1;
    let list = [case.segment(0, 0, 2), case.segment(1, 0, 1)];
    let entry = case.request(1, opcode::READ, &list);
    case.app.submit(&entry);
    case.rig.turns(1);
    case.rig.engine.queue.status = DeviceStatus::READ_ERROR;
    case.rig.turns(2);
    let done = case.app.completions();
    assert_eq!(done.len(), 1);
    assert_eq!(
        (Status(done[0].status), done[0].device_status, done[0].bytes),
        (Status::E_DEVICE, 0x281, 1024)
    );
}

#[test]
fn a_list_is_given_back_with_its_queue_and_with_its_engine() {
    let mut case = Scattered::new();
    case.rig.engine.queue.automatic = false;
    case.rig.engine.queue.room = 1;
    let list = [case.segment(0, 0, 1), case.segment(1, 0, 1)];
    for user_data in 0..3 {
        let entry = case.request(user_data, opcode::READ, &list);
        case.app.submit(&entry);
    }
    case.rig.turns(2);
    let ticket = Ticket::new(1);
    assert!(case.rig.shared.send(Command::Detach(case.app.id, ticket.clone())).is_ok());
    case.rig.turns(2);
    assert!(!ticket.is_done());
    assert_eq!(case.rig.engine.in_flight(), 1, "what the device has");
    drop(case.rig.engine); // A hold that is dropped and not released panics.
}
