//! The engine over a device that does exactly what a test says.
#![allow(clippy::cast_possible_truncation)] // small numbers of the tests' own

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use driver::block::{
    self, Command as Block, Completed, DeviceStatus, Geometry, QueueState, Segment, SubmitError,
};
use tpt::{
    Access, Domain, GrantSpec, Iova, Key, KeyInstance, LbaRange, Modification, Purpose, RegionKey,
    RegionSpec, Tables,
};
use wire::Status;
use wire::layout::{CompletionEntry, Entries, STATE_ERROR, SubmissionEntry, flag, opcode};
use wire::ring::ApplicationEnd;
use wire::shm::SharedMemory;
use wire::view::QueueView;

use super::*;

mod bytes;
mod ends;
mod files;
mod limits;
mod lists;
mod manage;
mod parked;

/// Takes `room` commands, and ends them when told.
struct Scripted {
    geometry: Geometry,
    room: usize,
    automatic: bool,
    running: VecDeque<Block>,
    seen: Vec<Block>,
    /// Where the data of each of them is.
    segments: Vec<Vec<Segment>>,
    commits: usize,
    status: DeviceStatus,
    state: QueueState,
}

impl Scripted {
    fn new() -> Self {
        let geometry = Geometry {
            block_shift: 9,
            blocks: 1 << 20,
            max_transfer_blocks: 8,
            max_segments: 8,
            max_zeroes_blocks: 1 << 16,
            write_cache: true,
            write_zeroes: true,
            deallocate: true,
            deallocate_zeroes: false,
            compare: true,
        };
        Self {
            geometry,
            room: 64,
            automatic: true,
            running: VecDeque::new(),
            seen: Vec::new(),
            segments: Vec::new(),
            commits: 0,
            status: DeviceStatus::OK,
            state: QueueState::Running,
        }
    }
}

impl BlockQueue for Scripted {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&mut self, command: &Block) -> Result<(), SubmitError> {
        if self.running.len() >= self.room {
            return Err(SubmitError::Full);
        }
        self.running.push_back(*command);
        self.seen.push(*command);
        let bytes = command.blocks << self.geometry.block_shift;
        self.segments.push(vec![Segment { data: command.data, bytes }]);
        Ok(())
    }

    fn submit_scattered(&mut self, command: &Block, segments: &[Segment]) -> Result<(), SubmitError> {
        if !block::segments_fit(&self.geometry, command, segments) {
            return Err(SubmitError::Invalid);
        }
        self.submit(command)?;
        *self.segments.last_mut().unwrap() = segments.to_vec();
        Ok(())
    }

    fn commit(&mut self) {
        self.commits += 1;
    }

    fn poll(&mut self, budget: usize, ended: &mut dyn FnMut(Completed)) -> usize {
        let mut count = 0;
        while self.automatic && count < budget {
            let Some(command) = self.running.pop_front() else { break };
            ended(Completed { tag: command.tag, status: self.status });
            count += 1;
        }
        count
    }

    fn outstanding(&self) -> usize {
        self.running.len()
    }

    fn state(&self) -> QueueState {
        self.state
    }

    fn arm_interrupt(&mut self, _: bool) {}
}

#[derive(Clone, Default)]
struct Hand(Arc<AtomicU64>);

impl Clock for Hand {
    fn now_ns(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

struct Rig {
    engine: Engine<Scripted, Hand>,
    tables: Tables,
    shared: Arc<PollerShared>,
    clock: Hand,
    next_queue: u32,
}

struct App {
    end: ApplicationEnd<QueueView>,
    id: QueueId,
    key: Key,
    region: RegionKey,
}

const REGION_IOVA: u64 = 0x10_0000;
const REGION_BYTES: u64 = 1 << 20;

impl Rig {
    fn new() -> Self {
        Self::with_requests(256)
    }

    fn with_requests(requests: u16) -> Self {
        let tables = Tables::new(
            tpt::Limits { entries: 1024, lba_entries: 1024, extensions: 0, regions: 64 },
            KeyInstance(1),
        );
        let shared = Arc::new(PollerShared::default());
        let clock = Hand::default();
        let directory = Directory::new(tables.published(), 16);
        let engine = Engine::new(Scripted::new(), clock.clone(), directory, shared.clone(), requests);
        Self { engine, tables, shared, clock, next_queue: 1 }
    }

    /// An application with a grant of 64 blocks from `first` and a region.
    fn app(&mut self, domain: u32, entries: u32, first: u64, access: Access) -> App {
        let entries = Entries::new(entries).unwrap();
        let (memory, _fd) = SharedMemory::create("engine-test", entries.bytes()).unwrap();
        let memory = Arc::new(memory);
        let view = || QueueView::new(memory.clone(), entries).unwrap();
        let id = QueueId(self.next_queue);
        self.next_queue += 1;
        let port = Port::new(id, u64::from(domain), Domain(domain), view(), entries);
        assert!(self.shared.send(Command::Attach(Box::new(port))).is_ok());
        let ranges = [LbaRange::new(first, 64).unwrap()];
        let spec =
            GrantSpec { domain: Domain(domain), access, block_shift: 9, ranges: &ranges, shared: true };
        let key = self.tables.create(&spec).unwrap();
        let region = self
            .tables
            .create_region(&RegionSpec {
                domain: Domain(domain),
                access: Access::READ_WRITE,
                iova: Iova(REGION_IOVA),
                bytes: REGION_BYTES,
            })
            .unwrap();
        self.engine.turn();
        App { end: ApplicationEnd::new(view(), entries), id, key, region }
    }

    /// A region of a domain, with memory of which the engine knows.
    fn region(&mut self, domain: u32, access: Access, iova: u64) -> (RegionKey, Arc<SharedMemory>) {
        let bytes = REGION_BYTES;
        let spec = RegionSpec { domain: Domain(domain), access, iova: Iova(iova), bytes };
        let key = self.tables.create_region(&spec).unwrap();
        let memory = Arc::new(SharedMemory::create("engine-test", bytes as usize).unwrap().0);
        assert!(self.shared.send(Command::Region(key.index(), memory.clone())).is_ok());
        (key, memory)
    }

    fn turns(&mut self, count: usize) {
        for _ in 0..count {
            self.engine.turn();
        }
    }
}

impl App {
    fn request(&self, user_data: u64, op: u8, offset: u64, length: u32) -> SubmissionEntry {
        SubmissionEntry {
            opcode: op,
            user_data,
            key: self.key.0,
            offset,
            length,
            region: self.region.0,
            ..SubmissionEntry::default()
        }
    }

    fn submit(&mut self, entry: &SubmissionEntry) {
        self.end.push(entry).unwrap();
        self.end.ring();
    }

    fn read(&mut self, user_data: u64) {
        let entry = self.request(user_data, opcode::READ, 0, 512);
        self.submit(&entry);
    }

    fn completions(&mut self) -> Vec<CompletionEntry> {
        std::iter::from_fn(|| self.end.pop()).collect()
    }

    fn statuses(&mut self) -> Vec<(u64, Status)> {
        self.completions().iter().map(|c| (c.user_data, Status(c.status))).collect()
    }
}

#[test]
fn s4_r1_a_permitted_read_reaches_the_device_translated() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 8, 1000, Access::READ);
    let entry = SubmissionEntry { region_offset: 4096, ..app.request(7, opcode::READ, 1024, 1536) };
    app.submit(&entry);
    rig.turns(1);
    let seen = &rig.engine.queue.seen;
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].lba, seen[0].blocks, seen[0].data.0), (1002, 3, REGION_IOVA + 4096));
    let done = app.completions();
    assert_eq!((done[0].user_data, done[0].status, done[0].bytes), (7, 0, 1536));
}

#[test]
fn s5_r1_r2_r3_exactly_what_was_rung_is_processed_each_once() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 16, 0, Access::READ);
    for user_data in 0..3 {
        app.read(user_data);
    }
    for user_data in 3..8 {
        app.read(user_data);
    }
    let unrung = app.request(99, opcode::READ, 0, 512);
    app.end.push(&unrung).unwrap();
    rig.turns(5);
    let mut seen: Vec<u64> = app.statuses().into_iter().map(|(u, s)| (u, assert!(s.is_ok())).0).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..8).collect::<Vec<_>>());
    app.end.ring();
    rig.turns(1);
    assert_eq!(app.statuses(), [(99, Status::OK)]);
}

#[test]
fn s5_r4_r15_an_overrun_flushes_each_pending_request_once_and_runs_no_stale_slot() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 8, 0, Access::READ);
    let mut other = rig.app(2, 8, 64, Access::READ);
    rig.engine.queue.automatic = false;
    app.read(1);
    app.read(2);
    rig.turns(1);
    let entry = app.request(3, opcode::READ, 0, 512);
    app.end.push(&entry).unwrap();
    app.end.raw_tail_store(2 + 9);
    other.read(50);
    rig.turns(2);
    assert_eq!(rig.engine.queue.seen.len(), 3, "the two before the violation, and the other queue's");
    assert_eq!(app.statuses(), [], "what the device has is not answered before it ends");
    rig.engine.queue.automatic = true;
    rig.turns(3);
    assert_eq!(app.statuses(), [(1, Status::E_FLUSHED), (2, Status::E_FLUSHED)]);
    assert_eq!(other.statuses(), [(50, Status::OK)]);
    assert_eq!(app.end.state(), STATE_ERROR);
    assert_eq!(rig.shared.queue_errors(), 1);
}

#[test]
fn s5_r13_a_queue_that_rings_endlessly_gets_its_share_and_no_more() {
    let mut rig = Rig::with_requests(512);
    let mut flood = rig.app(1, 256, 0, Access::READ);
    let mut quiet = rig.app(2, 8, 64, Access::READ);
    let burst = rig.engine.limits.burst as usize;
    for round in 0..50u64 {
        while flood.end.free() > 0 {
            let entry = flood.request(round, opcode::READ, 0, 512);
            flood.end.push(&entry).unwrap();
        }
        flood.end.ring();
        quiet.read(round);
        let before = rig.engine.queue.seen.len();
        rig.turns(1);
        assert!(rig.engine.queue.seen.len() - before <= burst + 1);
        assert_eq!(quiet.statuses(), [(round, Status::OK)], "answered in the very turn it was seen");
        flood.completions();
    }
}

#[test]
fn what_exceeds_the_share_of_one_turn_is_taken_in_the_next() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 128, 0, Access::READ);
    for user_data in 0..100 {
        let entry = app.request(user_data, opcode::READ, 0, 512);
        app.end.push(&entry).unwrap();
    }
    app.end.ring();
    rig.turns(8);
    let seen: Vec<u64> = app.statuses().into_iter().map(|(u, s)| (u, assert!(s.is_ok())).0).collect();
    assert_eq!(seen, (0..100).collect::<Vec<_>>());
}

#[test]
fn completions_that_are_not_consumed_stop_only_their_own_queue() {
    let mut rig = Rig::new();
    let mut silent = rig.app(1, 4, 0, Access::READ);
    let mut other = rig.app(2, 4, 64, Access::READ);
    // The silent one rings more than its completion queue has room for, and never consumes.
    let entry = silent.request(1, opcode::READ, 0, 512);
    for slot in 0..4 {
        silent.end.raw_overwrite(slot, &entry);
    }
    silent.end.raw_tail_store(4);
    rig.turns(4);
    silent.end.raw_tail_store(8);
    rig.turns(20);
    assert_eq!(rig.engine.queue.seen.len(), 4, "one for each completion slot");
    other.read(2);
    rig.turns(1);
    assert_eq!(other.statuses(), [(2, Status::OK)]);
    assert_eq!(silent.end.state(), wire::layout::STATE_READY);
}

#[test]
fn s4_r3_r6_r7_refusals_reach_no_device() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 16, 0, Access::READ);
    let other = rig.app(2, 16, 64, Access::READ_WRITE);
    let mut foreign = app.request(1, opcode::READ, 0, 512);
    foreign.key = other.key.0;
    let write = app.request(2, opcode::WRITE, 0, 512);
    let beyond = app.request(3, opcode::READ, 64 * 512, 512);
    let wrapping = app.request(4, opcode::READ, u64::MAX - 511, 1024);
    let unaligned = app.request(5, opcode::READ, 1, 512);
    let mut memory = app.request(6, opcode::READ, 0, 512);
    memory.region = other.region.0;
    let empty = app.request(7, opcode::READ, 0, 0);
    let huge = app.request(8, opcode::READ, 0, u32::MAX);
    let mut stale = app.request(9, opcode::READ, 0, 512);
    stale.key += 1 << 32;
    let unknown = app.request(10, 0x77, 0, 512);
    for entry in [foreign, write, beyond, wrapping, unaligned, memory, empty, huge, stale, unknown] {
        app.submit(&entry);
    }
    rig.turns(2);
    let expected = [
        Status::E_PD_MISMATCH,
        Status::E_ACCESS,
        Status::E_BOUNDS,
        Status::E_BOUNDS,
        Status::E_ALIGN,
        Status::E_LOCAL_MEM,
        Status::E_BOUNDS,
        Status::E_BOUNDS,
        Status::E_KEY_INSTANCE,
        Status::E_OPCODE,
    ];
    assert_eq!(app.statuses(), (1..).zip(expected).collect::<Vec<_>>());
    assert!(rig.engine.queue.seen.is_empty());
    assert_eq!(rig.shared.denied(), 9, "all but the unknown operation reached the tables");
}

#[test]
fn a_large_request_is_cut_and_ends_once_when_all_pieces_have() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 8, 100, Access::READ);
    rig.engine.queue.room = 3;
    rig.engine.queue.automatic = false;
    let entry = app.request(1, opcode::READ, 0, 64 * 512);
    app.submit(&entry);
    rig.turns(2);
    assert_eq!(rig.engine.queue.seen.len(), 3, "the device has no more room");
    assert!(app.completions().is_empty());
    rig.engine.queue.automatic = true;
    rig.turns(10);
    let lbas: Vec<(u64, u32, u64)> =
        rig.engine.queue.seen.iter().map(|c| (c.lba, c.blocks, c.data.0 - REGION_IOVA)).collect();
    assert_eq!(lbas, (0..8).map(|i| (100 + i * 8, 8, i * 4096)).collect::<Vec<_>>());
    let done = app.completions();
    assert_eq!((done.len(), done[0].bytes), (1, 64 * 512));
}

#[test]
fn a_large_request_is_cut_also_when_its_grant_was_used_before() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 8, 100, Access::READ);
    for user_data in 0..3 {
        app.read(user_data);
        rig.turns(1);
    }
    rig.engine.queue.seen.clear();
    let entry = app.request(3, opcode::READ, 0, 64 * 512);
    app.submit(&entry);
    rig.turns(1);
    assert_eq!(rig.engine.queue.seen.iter().map(|c| c.blocks).collect::<Vec<_>>(), [8; 8]);
    assert_eq!(app.completions().last().map(|done| (done.user_data, done.bytes)), Some((3, 64 * 512)));
}

#[test]
fn s8_r9_one_failing_piece_fails_the_request_with_the_device_status_kept() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 8, 0, Access::READ);
    rig.engine.queue.status = DeviceStatus::READ_ERROR;
    let entry = app.request(1, opcode::READ, 0, 16 * 512);
    app.submit(&entry);
    rig.turns(3);
    let done = app.completions();
    assert_eq!(done.len(), 1);
    assert_eq!(Status(done[0].status), Status::E_DEVICE);
    assert_eq!((done[0].device_status, done[0].bytes), (0x281, 0));
}

#[test]
fn flushes_are_merged_and_each_is_answered() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 16, 0, Access::READ_WRITE);
    rig.engine.queue.automatic = false;
    for user_data in 0..10 {
        let entry = SubmissionEntry { region: 0, ..app.request(user_data, opcode::FLUSH, 0, 0) };
        app.submit(&entry);
    }
    rig.turns(3);
    assert_eq!(rig.engine.queue.seen.len(), 1, "one flush at a time");
    rig.engine.queue.automatic = true;
    rig.turns(4);
    assert_eq!(rig.engine.queue.seen.len(), 2, "the nine that came later share the second");
    let mut answered: Vec<u64> = app.statuses().into_iter().map(|(u, s)| (u, assert!(s.is_ok())).0).collect();
    answered.sort_unstable();
    assert_eq!(answered, (0..10).collect::<Vec<_>>());
}

#[test]
fn requests_under_a_modify_are_held_and_others_go_on_behind_them() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 16, 0, Access::READ);
    let ranges = [LbaRange::new(500, 8).unwrap()];
    let spec =
        GrantSpec { domain: Domain(1), access: Access::READ, block_shift: 9, ranges: &ranges, shared: true };
    let second = rig.tables.create(&spec).unwrap();
    let quiesce = rig.tables.begin(None, app.key, Purpose::Modify).unwrap();
    app.read(1);
    let mut behind = app.request(2, opcode::READ, 0, 512);
    behind.key = second.0;
    app.submit(&behind);
    rig.turns(5);
    assert_eq!(app.statuses(), [(2, Status::OK)], "the queue goes on behind a held request");
    let moved = [LbaRange::new(700, 64).unwrap()];
    let change = Modification { access: None, ranges: Some(&moved) };
    assert!(rig.tables.finish_modify(quiesce, &change).is_ok());
    rig.turns(2);
    assert_eq!(app.statuses(), [(1, Status::OK)]);
    assert_eq!(rig.engine.queue.seen.last().unwrap().lba, 700, "it runs on the new blocks");
}

#[test]
fn revoke_is_acknowledged_only_when_the_device_is_done_and_admits_nothing_meanwhile() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 16, 0, Access::READ);
    rig.engine.queue.automatic = false;
    app.read(1);
    rig.turns(1);
    let quiesce = rig.tables.begin(None, app.key, Purpose::Revoke).unwrap();
    let ticket = Ticket::new(1);
    assert!(rig.shared.send(Command::Drain(Drained::Entry(app.key.index()), ticket.clone())).is_ok());
    app.read(2);
    rig.turns(10);
    assert!(!ticket.is_done(), "a request still runs");
    assert_eq!(app.statuses(), [(2, Status::E_ENTRY_INVALID)]);
    rig.engine.queue.automatic = true;
    rig.turns(1);
    assert!(ticket.is_done());
    rig.tables.finish_delete(quiesce);
    assert_eq!(app.statuses(), [(1, Status::OK)]);
    app.read(3);
    rig.turns(1);
    assert_eq!(app.statuses(), [(3, Status::E_ENTRY_INVALID)]);
}

#[test]
fn a_region_ends_only_when_the_device_is_done_with_it() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 16, 0, Access::READ);
    rig.engine.queue.automatic = false;
    app.read(1);
    rig.turns(1);
    let quiesce = rig.tables.begin_region_delete(None, app.region).unwrap();
    let ticket = Ticket::new(1);
    assert!(rig.shared.send(Command::Drain(Drained::Region(app.region.index()), ticket.clone())).is_ok());
    app.read(2);
    rig.turns(10);
    assert!(!ticket.is_done(), "the device may still write there");
    assert_eq!(app.statuses(), [(2, Status::E_LOCAL_MEM)]);
    rig.engine.queue.automatic = true;
    rig.turns(1);
    assert!(ticket.is_done());
    rig.tables.finish_region_delete(quiesce);
    assert_eq!(app.statuses(), [(1, Status::OK)]);
}

#[test]
fn the_memory_of_a_region_is_let_go_before_its_end_is_acknowledged() {
    let mut rig = Rig::new();
    let app = rig.app(1, 16, 0, Access::READ);
    let memory = Arc::new(SharedMemory::create("engine-test", 4096).unwrap().0);
    assert!(rig.shared.send(Command::Region(app.region.index(), memory.clone())).is_ok());
    rig.turns(1);
    assert_eq!(Arc::strong_count(&memory), 2);
    let quiesce = rig.tables.begin_region_delete(None, app.region).unwrap();
    let ticket = Ticket::new(1);
    assert!(rig.shared.send(Command::Drain(Drained::Region(app.region.index()), ticket.clone())).is_ok());
    rig.turns(1);
    assert!(ticket.is_done());
    assert_eq!(Arc::strong_count(&memory), 1, "a poller never unmaps: it is not the last owner");
    rig.tables.finish_region_delete(quiesce);
}

#[test]
fn detach_waits_for_what_the_device_has() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 16, 0, Access::READ);
    rig.engine.queue.automatic = false;
    rig.engine.queue.room = 1;
    app.read(1);
    app.read(2);
    rig.turns(1);
    let ticket = Ticket::new(1);
    assert!(rig.shared.send(Command::Detach(app.id, ticket.clone())).is_ok());
    rig.turns(5);
    assert!(!ticket.is_done());
    rig.engine.queue.automatic = true;
    rig.turns(1);
    assert!(ticket.is_done());
    assert_eq!(rig.engine.in_flight(), 0);
    assert_eq!(rig.engine.queue.seen.len(), 1, "the second never started");
}

#[test]
fn cancel_ends_what_waits_and_leaves_what_runs() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 16, 0, Access::READ);
    rig.engine.queue.automatic = false;
    rig.engine.queue.room = 1;
    app.read(1);
    app.read(2);
    rig.turns(1);
    for (user_data, target) in [(10, 2), (11, 1), (12, 77)] {
        let entry = SubmissionEntry {
            opcode: opcode::CANCEL,
            user_data,
            offset: target,
            ..SubmissionEntry::default()
        };
        app.submit(&entry);
    }
    rig.turns(1);
    let expected = [(2, Status::E_CANCELLED), (10, Status::OK), (11, Status::OK), (12, Status::E_NOT_FOUND)];
    assert_eq!(app.statuses(), expected, "what the device has is not answered before it ends");
    rig.engine.queue.automatic = true;
    rig.turns(1);
    assert_eq!(app.statuses(), [(1, Status::OK)]);
}

#[test]
fn a_held_request_can_be_cancelled_and_a_deadline_ends_it() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 16, 0, Access::READ);
    let _quiesce = rig.tables.begin(None, app.key, Purpose::Modify).unwrap();
    app.read(1);
    let entry = SubmissionEntry { deadline_us: 50, ..app.request(2, opcode::READ, 0, 512) };
    app.submit(&entry);
    rig.turns(2);
    let cancel =
        SubmissionEntry { opcode: opcode::CANCEL, user_data: 3, offset: 1, ..SubmissionEntry::default() };
    app.submit(&cancel);
    rig.turns(1);
    assert_eq!(app.statuses(), [(1, Status::E_CANCELLED), (3, Status::OK)]);
    rig.clock.0.store(1_000_000, Ordering::Relaxed);
    rig.turns(2 * CLOCK_INTERVAL as usize);
    assert_eq!(app.statuses(), [(2, Status::E_DEADLINE)]);
    assert!(rig.engine.queue.seen.is_empty());
}

#[test]
fn a_device_that_keeps_a_command_is_reported_and_the_request_is_not_ended() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 16, 0, Access::READ);
    rig.engine.queue.automatic = false;
    app.read(1);
    rig.turns(1);
    rig.clock.0.store(nanoseconds(DEVICE_TIMEOUT) * 3, Ordering::Relaxed);
    rig.turns(3 * CLOCK_INTERVAL as usize);
    assert!(rig.shared.is_stuck());
    assert_eq!(app.statuses(), [], "a timeout is no proof that the device is done");
    assert_eq!(rig.engine.in_flight(), 1);
    rig.engine.queue.automatic = true;
    rig.turns(1);
    assert_eq!(app.statuses(), [(1, Status::OK)]);
}

#[test]
fn deallocate_that_does_not_promise_zeroes_becomes_write_zeroes() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 16, 0, Access::ALL);
    let entry = app.request(1, opcode::DEALLOCATE, 0, 4096);
    app.submit(&entry);
    let entry = SubmissionEntry { flags: flag::DEALLOCATE, ..app.request(2, opcode::WRITE_ZEROES, 0, 4096) };
    app.submit(&entry);
    rig.turns(2);
    assert_eq!(app.statuses(), [(1, Status::OK), (2, Status::OK)]);
    let zeroes = block::Operation::WriteZeroes { deallocate: true };
    assert!(rig.engine.queue.seen.iter().all(|c| c.operation == zeroes && c.blocks == 8));
}

#[test]
fn an_idle_engine_may_sleep_and_says_so_to_applications() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 16, 0, Access::READ);
    assert!(rig.engine.prepare_sleep(false));
    let entry = app.request(1, opcode::READ, 0, 512);
    app.end.push(&entry).unwrap();
    assert!(app.end.ring(), "the application is told to wake the adapter");
    assert!(!rig.engine.prepare_sleep(false), "there is work");
    rig.engine.end_sleep();
    rig.turns(1);
    app.read(2);
    rig.turns(1);
    assert_eq!(app.statuses().len(), 2);
}

#[test]
fn a_sleeper_is_woken_before_its_queue_goes() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 16, 0, Access::READ);
    rig.engine.queue.room = 0;
    app.read(1);
    rig.turns(1);
    assert!(app.end.begin_wait());
    let ticket = Ticket::new(1);
    assert!(rig.shared.send(Command::Detach(app.id, ticket.clone())).is_ok());
    rig.turns(1);
    assert!(
        rig.engine.state.ports.iter().flatten().any(|port| port.wake_due),
        "there is an answer to wake for"
    );
    assert!(!ticket.is_done());
    rig.engine.wake_sleepers();
    rig.turns(1);
    assert!(ticket.is_done());
    assert_eq!(app.statuses(), [(1, Status::E_FLUSHED)]);
}

#[test]
fn a_sleeper_is_woken_when_its_queue_fails() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 16, 0, Access::READ);
    app.end.raw_tail_store(100);
    assert!(app.end.begin_wait());
    assert!(rig.engine.turn() > 0);
    assert_eq!(app.end.state(), STATE_ERROR);
    assert!(
        rig.engine.state.ports.iter().flatten().all(|port| port.wake_due),
        "it has no answer to wake for"
    );
}

#[test]
fn a_turn_that_only_answers_for_a_device_that_is_gone_is_not_idle() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 16, 0, Access::READ_WRITE);
    rig.engine.queue.room = 0;
    app.read(1);
    let entry = SubmissionEntry { region: 0, ..app.request(2, opcode::FLUSH, 0, 0) };
    app.submit(&entry);
    rig.turns(2);
    assert!(app.end.begin_wait());
    rig.engine.queue.state = QueueState::Gone;
    assert!(rig.engine.turn() > 0, "an idle poller sleeps without waking anybody");
    rig.engine.wake_sleepers();
    assert_eq!(app.statuses(), [(1, Status::E_PATH), (2, Status::E_PATH)]);
    assert_eq!(rig.engine.turn(), 0);
}

#[test]
fn a_request_that_the_device_has_in_part_ends_with_that_part_when_the_device_is_gone() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 16, 0, Access::READ);
    (rig.engine.queue.room, rig.engine.queue.automatic) = (1, false);
    let entry = app.request(1, opcode::READ, 0, 16 * 512);
    app.submit(&entry);
    rig.turns(1);
    rig.engine.queue.state = QueueState::Gone;
    rig.turns(1);
    assert_eq!(app.statuses(), [], "the device has a piece of it");
    rig.engine.queue.automatic = true;
    rig.turns(2);
    assert_eq!(app.statuses(), [(1, Status::E_PATH)]);
    assert_eq!(rig.engine.in_flight(), 0);
}

#[test]
fn an_engine_does_not_sleep_on_a_flush_that_the_device_did_not_take() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 16, 0, Access::READ_WRITE);
    rig.engine.queue.room = 0;
    let entry = SubmissionEntry { region: 0, ..app.request(1, opcode::FLUSH, 0, 0) };
    app.submit(&entry);
    rig.turns(2);
    assert!(!rig.engine.prepare_sleep(true), "the device has nothing that would wake anybody");
    rig.engine.queue.room = 64;
    rig.turns(2);
    assert_eq!(app.statuses(), [(1, Status::OK)]);
    assert!(rig.engine.prepare_sleep(true));
}

#[test]
fn a_turn_that_starts_a_flush_at_its_end_is_followed_by_one_that_announces_it() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 16, 0, Access::READ_WRITE);
    (rig.engine.queue.automatic, rig.engine.queue.room) = (false, 0);
    let entry = SubmissionEntry { region: 0, ..app.request(1, opcode::FLUSH, 0, 0) };
    app.submit(&entry);
    rig.turns(2);
    rig.engine.queue.room = 64;
    assert!(
        rig.engine.turn() > 0,
        "whoever sleeps after an idle turn would sleep on a flush that nobody told the device of"
    );
    assert_eq!(rig.engine.queue.seen.len(), 1);
    assert_eq!(rig.engine.turn(), 0);
}

#[test]
fn an_engine_does_not_sleep_on_what_a_failed_queue_rang() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 8, 0, Access::READ);
    app.end.raw_tail_store(100);
    rig.turns(2);
    assert_eq!(app.end.state(), STATE_ERROR);
    app.end.raw_tail_store(0);
    app.read(1);
    assert!(!rig.engine.prepare_sleep(true), "what was rung is to be flushed");
    rig.turns(1);
    assert_eq!(app.statuses(), [(1, Status::E_FLUSHED)]);
}

#[test]
fn a_failed_queue_is_flushed_in_shares_too() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 256, 0, Access::READ);
    app.end.raw_tail_store(1000);
    rig.turns(1);
    app.end.raw_tail_store(0);
    for user_data in 0..200 {
        let entry = app.request(user_data, opcode::READ, 0, 512);
        app.end.push(&entry).unwrap();
    }
    app.end.ring();
    let burst = rig.engine.limits.burst as usize;
    rig.turns(1);
    assert_eq!(app.statuses().len(), burst);
    rig.turns(200usize.div_ceil(burst));
    assert_eq!(app.statuses().len(), 200 - burst, "each once");
}

#[test]
fn many_cancels_over_many_requests_are_taken_over_many_turns() {
    let mut rig = Rig::with_requests(512);
    let mut app = rig.app(1, 256, 0, Access::READ);
    rig.engine.queue.automatic = false;
    rig.engine.queue.room = 128;
    for user_data in 0..128 {
        app.read(user_data);
    }
    rig.turns(8);
    assert_eq!(rig.engine.in_flight(), 128);
    let cancel = SubmissionEntry { opcode: opcode::CANCEL, offset: 999, ..SubmissionEntry::default() };
    for _ in 0..20 {
        app.submit(&cancel);
    }
    rig.turns(1);
    let first = app.statuses().len();
    assert!((1..=2).contains(&first), "{first} looks through 128 requests in one turn");
    rig.turns(20);
    assert_eq!(app.statuses().len(), 20 - first);
    rig.engine.queue.automatic = true;
    rig.turns(2);
    assert_eq!(rig.engine.in_flight(), 0);
}

#[test]
fn held_requests_are_looked_at_in_turn() {
    let mut rig = Rig::new();
    let mut flood = rig.app(1, 128, 0, Access::READ);
    let mut other = rig.app(2, 8, 64, Access::READ);
    let _held = rig.tables.begin(None, flood.key, Purpose::Modify).unwrap();
    let quiesce = rig.tables.begin(None, other.key, Purpose::Modify).unwrap();
    for user_data in 0..100 {
        flood.read(user_data);
    }
    rig.turns(8);
    other.read(1);
    rig.turns(2);
    assert_eq!(rig.engine.in_flight(), 101);
    rig.tables.cancel(quiesce);
    rig.turns(4);
    assert_eq!(other.statuses(), [(1, Status::OK)], "not behind those that go on being held");
    assert_eq!(flood.statuses(), []);
}

#[test]
fn an_engine_may_be_dropped_while_requests_run() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 16, 0, Access::READ);
    rig.engine.queue.automatic = false;
    app.read(1);
    rig.turns(1);
    let ticket = Ticket::new(1);
    assert!(rig.shared.send(Command::Drain(Drained::Entry(app.key.index()), ticket.clone())).is_ok());
    rig.turns(1);
    drop(rig.engine);
    assert!(!ticket.is_done(), "nobody may believe that the device is done");
    assert_eq!(app.statuses(), []);
}

#[test]
fn a_long_request_that_makes_progress_resets_no_device() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 16, 0, Access::READ);
    rig.engine.queue.automatic = false;
    let entry = app.request(1, opcode::READ, 0, 64 * 512);
    app.submit(&entry);
    rig.turns(1);
    rig.engine.limits.reap = 1;
    for piece in 1..8 {
        rig.clock.0.store(nanoseconds(DEVICE_TIMEOUT) / 2 * piece, Ordering::Relaxed);
        rig.engine.queue.automatic = false;
        rig.turns(CLOCK_INTERVAL as usize);
        assert!(!rig.shared.is_stuck(), "after {piece} pieces");
        rig.engine.queue.automatic = true;
        rig.turns(1);
    }
    rig.turns(2);
    assert_eq!(app.statuses(), [(1, Status::OK)]);
}

#[test]
fn s5_r13_a_large_request_does_not_keep_small_ones_waiting() {
    let mut rig = Rig::new();
    let mut large = rig.app(1, 8, 0, Access::READ);
    let mut small = rig.app(2, 8, 64, Access::READ);
    rig.engine.queue.room = 1;
    let entry = large.request(1, opcode::READ, 0, 64 * 512);
    large.submit(&entry);
    rig.turns(1);
    small.read(2);
    rig.turns(3);
    assert_eq!(small.statuses(), [(2, Status::OK)]);
    assert_eq!(large.statuses(), []);
    rig.turns(8);
    assert_eq!(large.statuses(), [(1, Status::OK)]);
}

#[test]
fn one_request_gives_the_device_only_a_share_at_a_time() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 8, 0, Access::READ);
    rig.engine.set_limits(TurnLimits { pieces: 3, retries: 1, ..TurnLimits::default() });
    let entry = app.request(1, opcode::READ, 0, 64 * 512);
    app.submit(&entry);
    for pieces in [3, 6, 8] {
        assert_eq!(app.statuses(), []);
        rig.turns(1);
        assert_eq!(rig.engine.queue.seen.len(), pieces);
    }
    assert_eq!(app.statuses(), [(1, Status::OK)]);
}

#[test]
fn s5_r13_one_queue_does_not_get_all_slots() {
    let mut rig = Rig::with_requests(64);
    let mut flood = rig.app(1, 128, 0, Access::READ);
    let mut other = rig.app(2, 8, 64, Access::READ);
    let _held = rig.tables.begin(None, flood.key, Purpose::Modify).unwrap();
    for user_data in 0..100 {
        flood.read(user_data);
    }
    rig.turns(8);
    assert_eq!(rig.engine.in_flight(), 32, "half of them");
    other.read(1);
    rig.turns(1);
    assert_eq!(other.statuses(), [(1, Status::OK)]);
}
