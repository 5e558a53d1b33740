//! Writes of bytes and gates: engines over one device that has memory.

use std::collections::BTreeMap;
use std::sync::Mutex;

use driver::dma::DmaBuffer;
use driver::null::NullMapper;

use super::*;

const BLOCK: usize = 512;
const REGIONS: u64 = 0x7000_0000_0000;

type Media = Arc<Mutex<BTreeMap<u64, [u8; BLOCK]>>>;

/// A command that the device has.
pub(super) struct Running {
    command: Block,
    executed: bool,
}

/// A queue of a device that all queues share. It executes and completes what it is told, in any order.
pub(super) struct Disk {
    geometry: Geometry,
    room: usize,
    media: Media,
    bounce: Option<Arc<DmaBuffer>>,
    regions: Vec<(u64, Arc<SharedMemory>)>,
    pub(super) running: Vec<Running>,
    ended: Vec<Completed>,
    /// Applications read, too; what they get is not looked at.
    pub(super) reads_reach_applications: bool,
    /// Everything at once, at each poll.
    pub(super) automatic: bool,
    pub(super) seen: Vec<Block>,
    state: QueueState,
    pub(super) status: DeviceStatus,
}

impl Disk {
    fn load(&self, iova: u64, block: &mut [u8]) {
        if let Some((memory, at)) = self.bounce_at(iova) {
            return memory.copy_out(at, block);
        }
        let (base, memory) = self.regions.iter().rev().find(|(base, _)| *base <= iova).unwrap();
        memory.copy_out((iova - base) as usize, block).unwrap();
    }

    fn bounce_at(&self, iova: u64) -> Option<(&DmaBuffer, usize)> {
        let memory = self.bounce.as_ref()?;
        let at = iova.checked_sub(memory.iova(0).0)? as usize;
        (at < memory.len()).then_some((memory, at))
    }

    fn execute(&mut self, index: usize) {
        if std::mem::replace(&mut self.running[index].executed, true) || !self.status.is_ok() {
            return;
        }
        let command = self.running[index].command;
        for i in 0..u64::from(command.blocks) {
            let (lba, iova) = (command.lba + i, command.data.0 + i * BLOCK as u64);
            let mut block = [0; BLOCK];
            match command.operation {
                block::Operation::Read => {
                    block = self.media.lock().unwrap().get(&lba).copied().unwrap_or([0; BLOCK]);
                    match self.bounce_at(iova) {
                        Some((memory, at)) => memory.copy_in(at, &block),
                        None if self.reads_reach_applications => {}
                        None => panic!("a read into memory of an application"),
                    }
                }
                block::Operation::Write { .. } => {
                    self.load(iova, &mut block);
                    self.media.lock().unwrap().insert(lba, block);
                }
                block::Operation::WriteZeroes { .. } => {
                    self.media.lock().unwrap().insert(lba, block);
                }
                _ => {}
            }
        }
    }

    pub(super) fn complete(&mut self, index: usize) {
        self.execute(index);
        let Running { command, .. } = self.running.remove(index);
        self.ended.push(Completed { tag: command.tag, status: self.status });
    }
}

impl BlockQueue for Disk {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&mut self, command: &Block) -> Result<(), SubmitError> {
        match self.state {
            QueueState::Running if self.running.len() < self.room => {}
            QueueState::Running => return Err(SubmitError::Full),
            _ => return Err(SubmitError::Down),
        }
        self.running.push(Running { command: *command, executed: false });
        self.seen.push(*command);
        Ok(())
    }

    fn submit_scattered(&mut self, _: &Block, _: &[Segment]) -> Result<(), SubmitError> {
        Err(SubmitError::Invalid)
    }

    fn commit(&mut self) {}

    fn poll(&mut self, budget: usize, ended: &mut dyn FnMut(Completed)) -> usize {
        while self.automatic && !self.running.is_empty() {
            self.complete(0);
        }
        let count = budget.min(self.ended.len());
        self.ended.drain(..count).for_each(ended);
        count
    }

    fn outstanding(&self) -> usize {
        self.running.len() + self.ended.len()
    }

    fn state(&self) -> QueueState {
        self.state
    }

    fn arm_interrupt(&mut self, _: bool) {}
}

/// Engines of one device, and an application.
pub(super) struct Many {
    pub(super) engines: Vec<Engine<Disk, Hand>>,
    pub(super) shareds: Vec<Arc<PollerShared>>,
    pub(super) tables: Tables,
    media: Media,
    clock: Hand,
    next_queue: u32,
    pub(super) lengths: Arc<Lengths>,
}

/// An application with a queue on one of the engines.
pub(super) struct Writer {
    pub(super) app: App,
    memory: Arc<SharedMemory>,
}

impl Many {
    pub(super) fn new(count: usize) -> Self {
        let limits = tpt::Limits { entries: 1024, lba_entries: 1024, extensions: 64, regions: 64 };
        let tables = Tables::new(limits, KeyInstance(1));
        let (media, clock) = (Media::default(), Hand::default());
        let gates = Gates::new(count).unwrap();
        let lengths = Arc::new(Lengths::new(4));
        let (mut engines, mut shareds) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let shared = Arc::new(PollerShared::default());
            let bounce = Bounce::new(&NullMapper::default(), 9).unwrap();
            let disk = Disk {
                geometry: Geometry { max_transfer_blocks: 64, ..Scripted::new().geometry },
                room: 64,
                media: media.clone(),
                bounce: Some(bounce.memory()),
                regions: Vec::new(),
                running: Vec::new(),
                ended: Vec::new(),
                reads_reach_applications: false,
                automatic: true,
                seen: Vec::new(),
                state: QueueState::Running,
                status: DeviceStatus::OK,
            };
            let directory = Directory::new(tables.published(), 16);
            let mut engine = Engine::new(disk, clock.clone(), directory, shared.clone(), 256);
            engine.set_bounce(bounce);
            engine.set_gates(gates.clone());
            engine.set_lengths(lengths.clone());
            engines.push(engine);
            shareds.push(shared);
        }
        Self { engines, shareds, tables, media, clock, next_queue: 1, lengths }
    }

    /// With a grant of these ranges, and memory.
    fn writer(&mut self, engine: usize, access: Access, ranges: &[(u64, u64)]) -> Writer {
        self.holder(engine, access, ranges, None)
    }

    /// With a file that lies there, and memory.
    pub(super) fn opener(
        &mut self,
        engine: usize,
        access: Access,
        file: u32,
        extents: &[(u64, u64)],
    ) -> Writer {
        self.holder(engine, access, extents, Some(file))
    }

    fn holder(&mut self, engine: usize, access: Access, ranges: &[(u64, u64)], file: Option<u32>) -> Writer {
        let domain = Domain(self.next_queue);
        let id = QueueId(self.next_queue);
        self.next_queue += 1;
        let entries = Entries::new(64).unwrap();
        let queue = Arc::new(SharedMemory::create("engine-test", entries.bytes()).unwrap().0);
        let view = || QueueView::new(queue.clone(), entries).unwrap();
        let port = Port::new(id, u64::from(domain.0), domain, view(), entries);
        assert!(self.shareds[engine].send(Command::Attach(Box::new(port))).is_ok());
        let ranges: Vec<_> = ranges.iter().map(|r| LbaRange::new(r.0, r.1).unwrap()).collect();
        let (block_shift, shared) = (9, true);
        let key = match file {
            None => self.tables.create(&GrantSpec { domain, access, block_shift, ranges: &ranges, shared }),
            Some(context) => {
                let spec = tpt::FileSpec { domain, access, block_shift, extents: &ranges, shared, context };
                self.tables.create_file(&spec).map(|keys| keys.file)
            }
        };
        let key = key.unwrap();
        let iova = Iova(REGIONS + u64::from(domain.0) * REGION_BYTES);
        let spec = RegionSpec { domain, access: Access::READ_WRITE, iova, bytes: REGION_BYTES };
        let region = self.tables.create_region(&spec).unwrap();
        let memory = Arc::new(SharedMemory::create("engine-test", REGION_BYTES as usize).unwrap().0);
        for (engine, shared) in self.engines.iter_mut().zip(&self.shareds) {
            engine.queue.regions.push((iova.0, memory.clone()));
            assert!(shared.send(Command::Region(region.index(), memory.clone())).is_ok());
        }
        self.turns(1);
        Writer { app: App { end: ApplicationEnd::new(view(), entries), id, key, region }, memory }
    }

    pub(super) fn turns(&mut self, count: usize) {
        for _ in 0..count {
            for engine in &mut self.engines {
                engine.turn();
            }
        }
    }

    pub(super) fn turn(&mut self, engine: usize) {
        self.engines[engine].turn();
    }

    pub(super) fn read(&self, first: u64, at: usize, bytes: usize) -> Vec<u8> {
        let media = self.media.lock().unwrap();
        let block = |lba| media.get(&lba).copied().unwrap_or([0; BLOCK]);
        (at..at + bytes).map(|at| block(first + (at / BLOCK) as u64)[at % BLOCK]).collect()
    }

    pub(super) fn fill(&self, first: u64, blocks: u64, byte: u8) {
        let mut media = self.media.lock().unwrap();
        media.extend((first..first + blocks).map(|lba| (lba, [byte; BLOCK])));
    }

    /// Nothing is left of requests that have ended.
    pub(super) fn assert_clean(&mut self, writer: &Writer) {
        self.turns(4);
        for engine in &mut self.engines {
            let state = &engine.state;
            assert_eq!(engine.in_flight(), 0);
            assert!(!state.gates.any(), "no gate is left");
            assert!(state.gated.is_empty());
            assert_eq!(state.buffers.in_use(), 0);
            assert!(state.directory.entry_is_idle(writer.app.key.index()));
            assert!(state.directory.region_is_idle(writer.app.region.index()));
        }
    }
}

impl Writer {
    /// Makes all of its memory this byte.
    pub(super) fn fill(&self, byte: u8) {
        let word = u64::from_ne_bytes([byte; 8]);
        for at in (0..REGION_BYTES as usize).step_by(8) {
            self.memory.atomic_u64(at).unwrap().store(word, Ordering::Relaxed);
        }
    }

    pub(super) fn bytes(&self, user_data: u64, offset: u64, length: u32) -> SubmissionEntry {
        self.app.request(user_data, opcode::WRITE_BYTES, offset, length)
    }

    pub(super) fn submit(&mut self, entry: &SubmissionEntry) {
        self.app.submit(entry);
    }

    pub(super) fn cancel(&mut self, user_data: u64, target: u64) {
        let entry = SubmissionEntry {
            opcode: opcode::CANCEL,
            user_data,
            offset: target,
            ..SubmissionEntry::default()
        };
        self.submit(&entry);
    }
}

#[test]
fn bytes_are_written_and_what_else_the_blocks_hold_stays() {
    let mut many = Many::new(1);
    let mut writer = many.writer(0, Access::WRITE, &[(1000, 200), (5000, 3)]);
    writer.fill(0xaa);
    for (i, (offset, length, reads)) in (0..).zip([
        (100u64, 100u32, 1),
        (0, 1, 1),
        (511, 1, 1),
        (511, 2, 2),
        (0, 512, 0),
        (512, 1024, 0),
        (10, 502, 1),
        (0, 700, 1),
        (300, 1236, 1),
        (300, 2000, 2),
        (1, 65536, 2),
        (511, 65536, 2),
        (0, 65536, 0),
        (199 * 512 + 100, 512, 2),
        (199 * 512 + 1, 4 * 512 - 2, 2),
    ]) {
        many.fill(1000, 200, 0x11);
        many.fill(5000, 3, 0x22);
        many.engines[0].queue.seen.clear();
        let entry = SubmissionEntry { region_offset: 3, ..writer.bytes(i, offset, length) };
        writer.submit(&entry);
        many.turns(6);
        let done = writer.app.completions();
        assert_eq!((done.len(), done[0].status, done[0].bytes), (1, 0, length), "{length} at {offset}");
        let (at, end) = (offset as usize, offset as usize + length as usize);
        let mut all = many.read(1000, 0, 200 * BLOCK);
        all.extend(many.read(5000, 0, 3 * BLOCK));
        for (place, byte) in all.iter().enumerate() {
            let before = if place < 200 * BLOCK { 0x11 } else { 0x22 };
            let expected = if (at..end).contains(&place) { 0xaa } else { before };
            assert_eq!(*byte, expected, "byte {place} after {length} at {offset}");
        }
        let seen = &many.engines[0].queue.seen;
        let read = seen.iter().filter(|c| c.operation == block::Operation::Read);
        assert_eq!(read.map(|c| c.blocks).sum::<u32>(), reads, "blocks read for {length} at {offset}");
        let written = seen.iter().filter(|c| c.operation == (block::Operation::Write { fua: false }));
        assert_eq!(
            u64::from(written.map(|c| c.blocks).sum::<u32>()),
            (end as u64).div_ceil(512) - offset / 512
        );
    }
    many.assert_clean(&writer);
}

#[test]
fn a_write_of_bytes_can_be_durable() {
    let mut many = Many::new(1);
    let mut writer = many.writer(0, Access::WRITE, &[(1000, 64)]);
    writer.submit(&SubmissionEntry { flags: flag::FUA, ..writer.bytes(1, 5, 600) });
    many.turns(5);
    assert_eq!(writer.app.statuses(), [(1, Status::OK)]);
    let last = many.engines[0].queue.seen.last().unwrap();
    assert_eq!(last.operation, block::Operation::Write { fua: true });
}

#[test]
fn what_may_not_write_bytes_is_refused_and_reaches_no_device() {
    let mut many = Many::new(1);
    let mut reader = many.writer(0, Access::from_bits(5).unwrap(), &[(1000, 64)]);
    let mut writer = many.writer(0, Access::WRITE, &[(1000, 64)]);
    let mut wrong = |spoil: &dyn Fn(&mut SubmissionEntry), writer: &mut Writer| {
        let mut entry = writer.bytes(1, 5, 10);
        spoil(&mut entry);
        writer.submit(&entry);
        many.turns(4);
        writer.app.statuses()[0].1
    };
    assert_eq!(wrong(&|_| {}, &mut reader), Status::E_ACCESS);
    assert_eq!(wrong(&|e| e.length = 0, &mut writer), Status::E_BOUNDS);
    assert_eq!(wrong(&|e| e.offset = 64 * 512 - 9, &mut writer), Status::E_BOUNDS);
    assert_eq!(wrong(&|e| e.offset = u64::MAX, &mut writer), Status::E_BOUNDS);
    assert_eq!(wrong(&|e| e.length = 65537, &mut writer), Status::E_PARAM);
    assert_eq!(wrong(&|e| e.region_offset = REGION_BYTES - 9, &mut writer), Status::E_LOCAL_MEM);
    assert_eq!(wrong(&|e| e.region += 1 << 32, &mut writer), Status::E_LOCAL_MEM);
    assert_eq!(wrong(&|e| e.flags = flag::DEALLOCATE, &mut writer), Status::E_OPCODE);
    assert!(many.engines[0].queue.seen.is_empty());
    many.assert_clean(&writer);
    many.assert_clean(&reader);
}

#[test]
fn without_memory_for_it_a_write_of_bytes_is_no_operation() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 16, 0, Access::ALL);
    let entry = app.request(1, opcode::WRITE_BYTES, 0, 10);
    app.submit(&entry);
    rig.turns(2);
    assert_eq!(app.statuses(), [(1, Status::E_OPCODE)]);
}

#[test]
fn the_payload_is_copied_once_when_the_request_is_admitted() {
    let mut many = Many::new(1);
    let mut writer = many.writer(0, Access::WRITE, &[(1000, 64)]);
    many.engines[0].queue.automatic = false;
    writer.fill(1);
    writer.submit(&writer.bytes(1, 5, 10));
    many.turns(2);
    writer.fill(2);
    many.engines[0].queue.automatic = true;
    many.turns(4);
    assert_eq!(writer.app.statuses(), [(1, Status::OK)]);
    assert_eq!(many.read(1000, 5, 10), [1; 10]);
}

#[test]
fn no_memory_of_the_application_learns_what_was_there() {
    let mut many = Many::new(1);
    let mut writer = many.writer(0, Access::WRITE, &[(1000, 64)]);
    many.fill(1000, 64, 0x5e);
    writer.fill(0);
    for user_data in 0..20 {
        writer.submit(&writer.bytes(user_data, user_data * 517, 300));
        many.turns(4); // The device of these tests panics if told to read into that memory.
    }
    for done in writer.app.completions() {
        let none = [done.value, u64::from(done.device_status), u64::from(done.status)];
        assert_eq!((none, done.bytes), ([0; 3], 300));
    }
    let mut all = vec![1; REGION_BYTES as usize];
    writer.memory.copy_out(0, &mut all).unwrap();
    assert!(all.iter().all(|byte| *byte == 0));
    many.assert_clean(&writer);
}

/// One engine has a write of the block at the device: the other must not read it before that has ended.
#[test]
fn a_gate_waits_for_writes_that_other_engines_have_at_the_device() {
    for operation in [opcode::WRITE, opcode::WRITE_ZEROES, opcode::DEALLOCATE, opcode::WRITE_BYTES] {
        let mut many = Many::new(2);
        let mut plain = many.writer(0, Access::ALL, &[(1000, 64)]);
        let mut bytes = many.writer(1, Access::WRITE, &[(1000, 64)]);
        many.engines[0].queue.automatic = false;
        plain.fill(7);
        let length = if operation == opcode::WRITE_BYTES { 1024 } else { 512 };
        plain.submit(&plain.app.request(1, operation, 512, length));
        many.engines[0].turn();
        bytes.submit(&bytes.bytes(2, 600, 10));
        many.turns(10);
        assert_eq!(many.engines[1].queue.seen.len(), 0, "it neither reads nor writes");
        assert_eq!(many.engines[1].in_flight(), 1);
        many.engines[0].queue.automatic = true;
        many.turns(6);
        assert_eq!(plain.app.statuses(), [(1, Status::OK)]);
        assert_eq!(bytes.app.statuses(), [(2, Status::OK)]);
        let kept = if matches!(operation, opcode::WRITE | opcode::WRITE_BYTES) { 7 } else { 0 };
        let mut expected = vec![kept; 512];
        expected[88..98].fill(0);
        assert_eq!(many.read(1000, 512, 512), expected, "operation {operation}");
        many.assert_clean(&plain);
    }
}

/// A write that comes to another engine while the blocks are read and written waits, in its turn.
#[test]
fn a_plain_write_waits_while_its_blocks_are_gated_and_others_go_on() {
    let mut many = Many::new(2);
    let mut bytes = many.writer(0, Access::WRITE, &[(1000, 64)]);
    let mut plain = many.writer(1, Access::ALL, &[(1000, 64)]);
    bytes.fill(3);
    plain.fill(9);
    many.engines[0].queue.automatic = false;
    bytes.submit(&bytes.bytes(1, 600, 10));
    many.turns(4);
    assert_eq!(many.engines[0].queue.seen.len(), 1, "the read");
    for (user_data, op) in [(2, opcode::WRITE), (3, opcode::WRITE_ZEROES), (4, opcode::DEALLOCATE)] {
        plain.submit(&plain.app.request(user_data, op, 0, 1024));
    }
    plain.submit(&plain.app.request(5, opcode::WRITE, 1024, 512));
    many.turns(6);
    assert_eq!(plain.app.statuses(), [(5, Status::OK)], "only what is not gated");
    many.engines[0].queue.complete(0);
    many.turns(6);
    assert_eq!(many.engines[0].queue.seen.len(), 2, "the write");
    assert_eq!(plain.app.statuses(), []);
    many.engines[0].queue.automatic = true;
    many.turns(12);
    assert_eq!(bytes.app.statuses(), [(1, Status::OK)]);
    let mut statuses = plain.app.statuses();
    statuses.sort_unstable_by_key(|status| status.0);
    assert_eq!(statuses, [(2, Status::OK), (3, Status::OK), (4, Status::OK)]);
    many.assert_clean(&plain);
}

#[test]
fn a_sleeping_engine_is_not_waited_for_and_learns_of_gates_before_it_writes() {
    let mut many = Many::new(2);
    let mut bytes = many.writer(0, Access::WRITE, &[(1000, 64)]);
    let mut plain = many.writer(1, Access::WRITE, &[(1000, 64)]);
    assert!(many.engines[1].prepare_sleep(false));
    many.engines[0].queue.automatic = false;
    bytes.submit(&bytes.bytes(1, 600, 10));
    (0..4).for_each(|_| many.turn(0));
    assert_eq!(many.engines[0].queue.seen.len(), 1, "it reads though the other sleeps");
    plain.submit(&plain.app.request(2, opcode::WRITE, 512, 512));
    many.engines[1].end_sleep();
    (0..4).for_each(|_| many.turn(1));
    assert_eq!(many.engines[1].queue.seen.len(), 0, "it saw the gate first");
    many.engines[0].queue.automatic = true;
    many.turns(8);
    assert_eq!((bytes.app.statuses().len(), plain.app.statuses().len()), (1, 1));
    many.assert_clean(&plain);
}

#[test]
fn an_engine_with_a_write_at_the_device_is_waited_for_also_while_it_sleeps() {
    let mut many = Many::new(2);
    let mut plain = many.writer(0, Access::WRITE, &[(1000, 64)]);
    let mut bytes = many.writer(1, Access::WRITE, &[(1000, 64)]);
    many.engines[0].queue.automatic = false;
    plain.submit(&plain.app.request(1, opcode::WRITE, 0, 512));
    many.engines[0].turn();
    assert!(many.engines[0].prepare_sleep(true), "the interrupt wakes it");
    bytes.submit(&bytes.bytes(2, 100, 10));
    (0..9).for_each(|_| many.turn(1));
    assert_eq!(many.engines[1].queue.seen.len(), 0);
    many.engines[0].end_sleep();
    many.engines[0].queue.automatic = true;
    many.turns(6);
    assert_eq!(bytes.app.statuses(), [(2, Status::OK)]);
}

#[test]
fn an_engine_with_a_request_at_a_gate_does_not_sleep() {
    let mut many = Many::new(2);
    let mut bytes = many.writer(0, Access::WRITE, &[(1000, 64)]);
    bytes.submit(&bytes.bytes(1, 600, 10));
    many.engines[0].turn();
    assert_eq!(many.engines[0].queue.outstanding(), 0, "the other engine has not answered");
    assert!(!many.engines[0].prepare_sleep(true));
    many.turns(6);
    assert_eq!(bytes.app.statuses(), [(1, Status::OK)]);
    assert!(many.engines.iter_mut().all(|engine| engine.prepare_sleep(false)));
}

#[test]
fn writes_of_bytes_to_the_same_block_take_turns() {
    let mut many = Many::new(2);
    let mut writers: Vec<_> = (0..4).map(|i| many.writer(i % 2, Access::WRITE, &[(1000, 64)])).collect();
    for (i, writer) in writers.iter_mut().enumerate() {
        writer.fill(i as u8 + 1);
        for user_data in 0..5 {
            let offset = i as u64 * 100;
            writer.submit(&writer.bytes(user_data, offset, 100));
        }
    }
    many.turns(200);
    for writer in &mut writers {
        assert_eq!(writer.app.statuses().len(), 5);
    }
    let expected: Vec<u8> = (0..400).map(|at| (at / 100 + 1) as u8).collect();
    assert_eq!(many.read(1000, 0, 400), expected);
    writers.iter().for_each(|writer| many.assert_clean(writer));
}

/// Whoever writes bytes to a block without end does not shut out others that want to write the block.
#[test]
fn s5_r13_an_endless_stream_of_writes_of_bytes_lets_others_pass() {
    let mut many = Many::new(2);
    let mut flood = many.writer(0, Access::WRITE, &[(1000, 64)]);
    let mut plain = many.writer(1, Access::WRITE, &[(1000, 64)]);
    let mut other = many.writer(1, Access::WRITE, &[(1000, 64)]);
    let (mut user_data, mut answered) = (0, 0);
    for round in 0..100 {
        while flood.app.end.free() > 0 {
            let entry = flood.bytes(user_data, 10, 100);
            flood.app.end.push(&entry).unwrap();
            user_data += 1;
        }
        flood.app.end.ring();
        if round % 10 == 5 {
            plain.submit(&plain.app.request(round, opcode::WRITE, 0, 512));
            other.submit(&other.bytes(round, 200, 10));
        }
        many.turns(3);
        flood.app.completions();
        answered += plain.app.statuses().len() + other.app.statuses().len();
    }
    assert_eq!(answered, 20, "each within a few rounds");
}

#[test]
fn a_full_table_and_no_buffer_make_requests_wait_and_lose_none() {
    let mut many = Many::new(1);
    let mut bytes = many.writer(0, Access::WRITE, &[(1000, 64)]);
    many.engines[0].queue.automatic = false;
    for user_data in 0..60 {
        if user_data == 4 {
            many.turns(4);
        }
        let op = if user_data < 4 { opcode::WRITE_BYTES } else { opcode::WRITE };
        let entry = bytes.app.request(user_data, op, 0, if user_data < 4 { 10 } else { 512 });
        bytes.submit(&entry);
    }
    many.turns(10);
    assert_eq!(many.engines[0].queue.seen.len(), 1);
    many.engines[0].queue.automatic = true;
    many.turns(400);
    assert_eq!(bytes.app.statuses().len(), 60);
    many.assert_clean(&bytes);
}

#[test]
fn s8_r9_a_device_error_ends_a_write_of_bytes_once_and_a_failed_read_writes_nothing() {
    let mut many = Many::new(1);
    let mut bytes = many.writer(0, Access::WRITE, &[(1000, 64)]);
    many.engines[0].queue.status = DeviceStatus::READ_ERROR;
    bytes.submit(&bytes.bytes(1, 600, 1000));
    many.turns(5);
    let done = bytes.app.completions();
    assert_eq!(done.len(), 1);
    assert_eq!((Status(done[0].status), done[0].device_status, done[0].bytes), (Status::E_DEVICE, 0x281, 0));
    assert!(many.engines[0].queue.seen.iter().all(|c| c.operation == block::Operation::Read));
    many.assert_clean(&bytes);
    many.engines[0].queue.status = DeviceStatus::OK;
    bytes.submit(&bytes.bytes(2, 600, 1000));
    many.turns(5);
    assert_eq!(bytes.app.statuses(), [(2, Status::OK)]);
}

/// The states that a write of bytes goes through, in order.
#[derive(Clone, Copy, PartialEq, Debug)]
enum At {
    Held,
    Gate,
    NoRoomToRead,
    Reading,
    NoRoomToWrite,
    Writing,
}

const STATES: [At; 6] = [At::Held, At::Gate, At::NoRoomToRead, At::Reading, At::NoRoomToWrite, At::Writing];

/// Brings the write of bytes with user data 1, and a deadline, to a state.
fn brought_to(at: At) -> (Many, Writer) {
    let mut many = Many::new(2);
    let mut writer = many.writer(0, Access::WRITE, &[(1000, 64)]);
    writer.fill(0xdd);
    many.fill(1000, 64, 0x11);
    many.engines[0].queue.automatic = false;
    let mut entry = writer.bytes(1, 600, 1000);
    entry.deadline_us = 1000;
    if at == At::Held {
        // Its region is new, and the engine was not told.
        many.engines[0].state.regions[writer.app.region.index().0 as usize] = None;
        writer.submit(&entry);
        many.engines[0].turn();
        assert_eq!(many.engines[0].state.held.len(), 1);
        return (many, writer);
    }
    if at == At::NoRoomToRead {
        many.engines[0].queue.room = 0;
    }
    writer.submit(&entry);
    many.engines[0].turn(); // The other engine has not answered.
    if at == At::Gate {
        assert_eq!(many.engines[0].state.gated.len(), 1);
        return (many, writer);
    }
    many.turns(3);
    match at {
        At::NoRoomToRead => assert_eq!(many.engines[0].state.starved.len(), 1),
        At::Reading => assert_eq!(many.engines[0].queue.running.len(), 2),
        _ => {
            if at == At::NoRoomToWrite {
                many.engines[0].queue.room = 0;
            }
            many.engines[0].queue.complete(0);
            many.engines[0].queue.complete(0);
            many.engines[0].turn();
            many.engines[0].turn();
            let running = many.engines[0].queue.running.len();
            assert_eq!(running, usize::from(at == At::Writing));
        }
    }
    (many, writer)
}

fn let_memory_come(many: &mut Many, writer: &Writer) {
    let region = writer.app.region.index().0 as usize;
    many.engines[0].state.regions[region].get_or_insert(writer.memory.clone());
}

fn let_go(many: &mut Many, writer: &Writer) {
    let_memory_come(many, writer);
    many.engines[0].queue.room = 64;
    many.engines[0].queue.automatic = true;
    many.turns(10);
}

fn untouched(many: &Many) -> bool {
    many.read(1000, 0, 64 * BLOCK).iter().all(|byte| *byte == 0x11)
}

#[test]
fn a_cancel_in_any_state_ends_a_write_of_bytes_as_soon_as_the_device_lets_go() {
    for at in STATES {
        let (mut many, mut writer) = brought_to(at);
        writer.cancel(2, 1);
        many.engines[0].turn();
        let waits_for_device = matches!(at, At::Reading | At::Writing);
        let now = writer.app.statuses();
        let expected: &[_] = match waits_for_device {
            true => &[(2, Status::OK)],
            false => &[(1, Status::E_CANCELLED), (2, Status::OK)],
        };
        assert_eq!(now, expected, "{at:?}");
        let_go(&mut many, &writer);
        if waits_for_device {
            let status = if at == At::Reading { Status::E_CANCELLED } else { Status::OK };
            assert_eq!(writer.app.statuses(), [(1, status)], "{at:?}");
        }
        assert_eq!(untouched(&many), at != At::Writing, "{at:?}");
        many.assert_clean(&writer);
    }
}

#[test]
fn a_deadline_ends_a_write_of_bytes_in_any_state_before_it_writes() {
    for at in STATES {
        let (mut many, mut writer) = brought_to(at);
        many.clock.0.store(10_000_000, Ordering::Relaxed);
        // The other engine is not turned and answers no gate.
        (0..CLOCK_INTERVAL).for_each(|_| many.turn(0));
        if matches!(at, At::Reading | At::Writing) {
            assert_eq!(writer.app.statuses(), [], "{at:?}: the device has something of it");
            let_go(&mut many, &writer);
            let status = if at == At::Reading { Status::E_DEADLINE } else { Status::OK };
            assert_eq!(writer.app.statuses(), [(1, status)], "{at:?}");
        } else {
            assert_eq!(writer.app.statuses(), [(1, Status::E_DEADLINE)], "{at:?}");
        }
        assert_eq!(untouched(&many), at != At::Writing, "{at:?}");
        let_go(&mut many, &writer);
        many.assert_clean(&writer);
    }
}

#[test]
fn a_queue_that_goes_leaves_no_gate_no_buffer_and_no_grant_in_any_state() {
    for at in STATES {
        let (mut many, writer) = brought_to(at);
        let ticket = Ticket::new(1);
        assert!(many.shareds[0].send(Command::Detach(writer.app.id, ticket.clone())).is_ok());
        many.turns(4);
        assert_eq!(ticket.is_done(), !matches!(at, At::Reading | At::Writing), "{at:?}");
        let_go(&mut many, &writer);
        assert!(ticket.is_done());
        assert_eq!(untouched(&many), at != At::Writing, "{at:?}");
        many.assert_clean(&writer);
    }
}

#[test]
fn a_device_that_is_reset_or_gone_ends_a_write_of_bytes_in_any_state() {
    for at in STATES {
        for end in [QueueState::Down, QueueState::Gone] {
            let (mut many, mut writer) = brought_to(at);
            many.engines[0].queue.state = end;
            many.turns(4);
            let_memory_come(&mut many, &writer);
            let queue = &mut many.engines[0].queue;
            queue.status = DeviceStatus::ABORTED;
            while !queue.running.is_empty() {
                queue.running[0].executed = true;
                queue.complete(0);
            }
            many.turns(4);
            if end == QueueState::Down {
                let queue = &mut many.engines[0].queue;
                (queue.state, queue.status) = (QueueState::Running, DeviceStatus::OK);
                let_go(&mut many, &writer);
            }
            let status = match (at, end) {
                (At::Reading | At::Writing, _) => Status::E_DEVICE,
                (_, QueueState::Gone) => Status::E_PATH,
                _ => Status::OK,
            };
            assert_eq!(writer.app.statuses(), [(1, status)], "{at:?} {end:?}");
            many.assert_clean(&writer);
        }
    }
}

#[test]
fn an_engine_may_be_dropped_in_any_state_of_a_write_of_bytes() {
    for at in STATES {
        let (many, _writer) = brought_to(at);
        drop(many);
    }
}

/// A write as its application saw it: from when to when, what it wrote where.
struct Seen {
    begun: u64,
    ended: Option<u64>,
    bytes: std::ops::Range<usize>,
    value: u8,
    cancelled: bool,
}

/// Applications on three engines write bytes and blocks over one another, the device executes and completes in any
/// order, engines sleep and wake, requests are cancelled. Afterwards each byte must be of a write after which no other
/// that was acknowledged began: nothing acknowledged is lost.
#[test]
fn nothing_that_was_acknowledged_is_lost_whatever_the_order() {
    const BLOCKS: u64 = 4;
    let rounds =
        if std::env::var("PORTCULLIS_SOAK").is_ok_and(|value| value == "1") { 100_000 } else { 2_000 };
    let first: u64 = std::env::var("PORTCULLIS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    for seed in first..first + rounds {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        let mut many = Many::new(3);
        let mut writers: Vec<_> =
            (0..4).map(|i| many.writer(i % 3, Access::ALL, &[(1000, 2), (7000, 2)])).collect();
        many.engines.iter_mut().for_each(|engine| engine.queue.automatic = false);
        let mut asleep = [false; 3];
        let mut seen: Vec<Seen> = Vec::new();
        let most = 1 + random(8);
        // Short ones mostly: what is lost is found only until it is written over.
        let steps = 20 << random(5);
        for time in 1..steps {
            let running = seen.iter().filter(|write| write.ended.is_none()).count();
            match random(12) {
                0..=1 if seen.len() < 200 && running < most => {
                    let writer = &mut writers[random(4)];
                    let whole = random(3) == 0;
                    let (offset, length) = if whole {
                        let block = random(BLOCKS as usize);
                        (block * 512, (1 + random(BLOCKS as usize - block)) * 512)
                    } else {
                        let offset = random(BLOCKS as usize * 512 - 1);
                        (offset, 1 + random((BLOCKS as usize * 512 - offset).min(700)))
                    };
                    let value = seen.len() as u8 + 1;
                    let memory = seen.len() * 4096; // Of its own for each write.
                    let word = u64::from_ne_bytes([value; 8]);
                    for at in (memory..memory + 4096).step_by(8) {
                        writer.memory.atomic_u64(at).unwrap().store(word, Ordering::Relaxed);
                    }
                    let op = if whole { opcode::WRITE } else { opcode::WRITE_BYTES };
                    let mut entry = writer.app.request(seen.len() as u64, op, offset as u64, length as u32);
                    entry.region_offset = memory as u64;
                    writer.submit(&entry);
                    let bytes = offset..offset + length;
                    seen.push(Seen { begun: time, ended: None, bytes, value, cancelled: false });
                }
                2 if !seen.is_empty() => {
                    let target = random(seen.len()) as u64;
                    writers[random(4)].cancel(u64::MAX, target);
                }
                3 => {
                    let engine = random(3);
                    if !asleep[engine] {
                        asleep[engine] = many.engines[engine].prepare_sleep(false);
                    }
                }
                4..=7 => {
                    let engine = random(3);
                    if std::mem::take(&mut asleep[engine]) {
                        many.engines[engine].end_sleep();
                    }
                    many.engines[engine].turn();
                }
                what => {
                    let queue = &mut many.engines[random(3)].queue;
                    if !queue.running.is_empty() {
                        let index = random(queue.running.len());
                        if what == 8 { queue.execute(index) } else { queue.complete(index) }
                    }
                }
            }
            note_ended(&mut writers, &mut seen, time);
        }
        many.engines.iter_mut().for_each(|engine| engine.queue.automatic = true);
        many.engines.iter_mut().for_each(Engine::end_sleep);
        many.turns(100);
        note_ended(&mut writers, &mut seen, 1000);
        many.assert_clean(&writers[0]);
        let mut content = many.read(1000, 0, 1024);
        content.extend(many.read(7000, 0, 1024));
        for (at, byte) in content.iter().enumerate() {
            let writes = || seen.iter().filter(|write| write.bytes.contains(&at));
            // The write whose value is there must not have ended before one began that was acknowledged.
            let ended = match writes().find(|write| write.value == *byte) {
                Some(write) => {
                    assert!(!write.cancelled, "seed {seed}: byte {at} is of a write that was cancelled");
                    write.ended.unwrap_or(u64::MAX)
                }
                None => {
                    assert_eq!(*byte, 0, "seed {seed}: byte {at} is nobody's");
                    0
                }
            };
            let acknowledged = |write: &&Seen| write.ended.is_some() && !write.cancelled;
            if let Some(lost) = writes().filter(acknowledged).find(|write| write.begun > ended) {
                panic!(
                    "seed {seed}: byte {at} has {byte}, and {} began after that and was acknowledged",
                    lost.value
                );
            }
        }
    }
    println!("counted: {rounds} rounds of writes of bytes on three engines");
}

fn note_ended(writers: &mut [Writer], seen: &mut [Seen], time: u64) {
    for done in writers.iter_mut().flat_map(|writer| writer.app.completions()) {
        if done.user_data != u64::MAX {
            let write = &mut seen[done.user_data as usize];
            write.ended = Some(time);
            write.cancelled = match Status(done.status) {
                Status::OK => false,
                Status::E_CANCELLED => true,
                other => panic!("a write ended with {other}"),
            };
        }
    }
}
