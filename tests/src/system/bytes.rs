//! Writes of any bytes: what they leave alone, what they do not lose, and what their writer does not learn.

use std::ops::Range;
use std::time::Instant;

use adapter::{Adapter, Options};
use driver::dice::Dice;
use portcullis::wire::layout::{SubmissionEntry, flag, opcode};
use portcullis::{Access, Buffer, MemoryAccess, Queue, Request, Session, Status, Volume, raw::RawQueue};

use super::{Case, Client, PATIENCE, Rig, VOLUME, pattern, until};

pub(super) const CASES: &[Case] = &[
    Case { name: "bytes_anywhere_leave_all_others_alone", run: anywhere },
    Case { name: "every_fault_of_a_write_of_bytes_is_refused", run: refusals },
    Case { name: "who_may_only_write_learns_nothing_of_what_was_there", run: write_only },
    Case { name: "nothing_acknowledged_is_lost_between_writers_of_the_same_blocks", run: shared_blocks },
    Case { name: "sessions_that_end_in_the_middle_leave_no_gate", run: ended_in_the_middle },
];

fn anywhere(rig: &Rig) {
    let adapter = rig.isolated();
    let session = Session::connect(adapter.socket()).unwrap();
    session.create_volume("v", VOLUME).unwrap();
    let volume = session.open("v", Access::READ_WRITE).unwrap();
    let mut queue = session.queue(16).unwrap();
    let mut model = pattern(1, VOLUME as usize);
    queue.write_at(&volume, 0, &model).unwrap();
    let mut dice = Dice(7);
    let rounds = if rig.is_software() { 400 } else { 60 };
    for round in 0..rounds {
        let most = [100, 5000, 65536, 300_000][dice.index(4)];
        let length = 1 + dice.index(most);
        let at = dice.index(VOLUME as usize - length);
        let data = pattern(round, length);
        queue.write_at(&volume, at as u64, &data).unwrap();
        model[at..at + length].copy_from_slice(&data);
        // What is read need not begin and end with blocks either.
        let before = dice.index(3000).min(at);
        let behind = dice.index(3000).min(VOLUME as usize - at - length);
        let mut read = vec![0; before + length + behind];
        queue.read_at(&volume, (at - before) as u64, &mut read).unwrap();
        assert!(read == model[at - before..at + length + behind], "round {round}: {length} bytes at {at}");
    }
    // With one request each, from buffers that begin anywhere.
    for round in 0..50u32 {
        let length = 1 + dice.index(1000);
        let (_, buffer) = session.buffer(4096).unwrap().split_at(dice.index(1000));
        let (mut buffer, _) = buffer.split_at(length);
        buffer.copy_from_slice(&pattern(round, length));
        let at = dice.index(VOLUME as usize - length);
        model[at..at + length].copy_from_slice(&buffer);
        let done = queue.execute(Request::write_bytes(&volume, at as u64, buffer).fua()).unwrap();
        assert_eq!(done.result.unwrap() as usize, length);
    }
    let mut read = vec![0; VOLUME as usize];
    queue.read_at(&volume, 0, &mut read).unwrap();
    assert!(read == model);
}

fn refusals(rig: &Rig) {
    let adapter = rig.embedded();
    let mut client = Client::create(adapter.session().unwrap(), "v");
    let data = pattern(3, VOLUME as usize);
    client.session.queue(16).unwrap().write_at(&client.volume, 0, &data).unwrap();
    let mut reader = Client::open(adapter.session().unwrap(), "v", Access::READ | Access::TRIM);
    let other = Client::create(adapter.session().unwrap(), "other");
    let target = client.session.register(4096, MemoryAccess::DeviceWrites).unwrap();
    let entry = SubmissionEntry { offset: 7, length: 9, ..client.request(opcode::WRITE_BYTES) };
    let cases = [
        (SubmissionEntry { length: 0, ..entry }, Status::E_BOUNDS),
        (SubmissionEntry { offset: VOLUME - 8, ..entry }, Status::E_BOUNDS),
        (SubmissionEntry { offset: u64::MAX - 3, ..entry }, Status::E_BOUNDS),
        (SubmissionEntry { length: (64 << 10) + 1, ..entry }, Status::E_PARAM),
        (SubmissionEntry { region: other.memory.key(), ..entry }, Status::E_LOCAL_MEM),
        (SubmissionEntry { region: target.key(), ..entry }, Status::E_LOCAL_MEM),
        (SubmissionEntry { region_offset: (256 << 10) - 8, ..entry }, Status::E_LOCAL_MEM),
        (SubmissionEntry { region_offset: u64::MAX, ..entry }, Status::E_LOCAL_MEM),
        (SubmissionEntry { key: other.volume.key(), ..entry }, Status::E_PD_MISMATCH),
        (SubmissionEntry { key: entry.key + (1 << 32), ..entry }, Status::E_KEY_INSTANCE),
        (SubmissionEntry { flags: flag::DEALLOCATE, ..entry }, Status::E_OPCODE),
        (SubmissionEntry { flags: flag::SCATTER, scatter_count: 1, ..entry }, Status::E_OPCODE),
        (SubmissionEntry { extension: 1, ..entry }, Status::E_KEY_RANGE),
    ];
    for (entry, expected) in cases {
        assert_eq!(client.status(&entry), expected, "{entry:?}");
    }
    let its = SubmissionEntry { key: reader.volume.key(), region: reader.memory.key(), ..entry };
    assert_eq!(reader.status(&its), Status::E_ACCESS);
    let mut read = vec![0; VOLUME as usize];
    client.session.queue(16).unwrap().read_at(&client.volume, 0, &mut read).unwrap();
    assert!(read == data, "no refused request wrote a byte");
    assert_eq!(client.status(&entry), Status::OK);
}

fn write_only(rig: &Rig) {
    let adapter = rig.isolated();
    let owner = Session::connect(adapter.socket()).unwrap();
    owner.create_volume("v", VOLUME).unwrap();
    let volume = owner.open("v", Access::READ_WRITE).unwrap();
    let mut queue = owner.queue(16).unwrap();
    let secret = vec![0x5e; VOLUME as usize];
    queue.write_at(&volume, 0, &secret).unwrap();

    let mut writer = Client::open(Session::connect(adapter.socket()).unwrap(), "v", Access::WRITE);
    let mut memory = writer.session.register(64 << 10, MemoryAccess::Both).unwrap().into_buffer();
    memory.fill(0x11);
    let mut dice = Dice(3);
    let mut written = vec![false; VOLUME as usize];
    for _ in 0..200 {
        let length = 1 + dice.index(3000);
        let at = dice.index(VOLUME as usize - length);
        written[at..at + length].fill(true);
        let entry = SubmissionEntry {
            key: writer.volume.key(),
            region: memory.region(),
            region_offset: dice.index(4096) as u64,
            offset: at as u64,
            length: length as u32,
            ..writer.request(opcode::WRITE_BYTES)
        };
        let done = writer.submit(&entry);
        assert_eq!((done.status, done.bytes as usize), (0, length));
        assert_eq!(
            (done.value, done.device_status),
            (0, 0),
            "nothing in the completion but how much was written"
        );
        let read = writer.status(&SubmissionEntry { opcode: opcode::READ, offset: 0, length: 4096, ..entry });
        assert_eq!(read, Status::E_ACCESS);
        assert_eq!(
            writer.status(&SubmissionEntry { opcode: opcode::COMPARE, offset: 0, length: 4096, ..entry }),
            Status::E_ACCESS
        );
    }
    assert!(memory.iter().all(|byte| *byte == 0x11), "its memory has nothing of what was there");
    let mut read = vec![0; VOLUME as usize];
    queue.read_at(&volume, 0, &mut read).unwrap();
    for (at, (byte, written)) in read.iter().zip(written).enumerate() {
        assert_eq!(*byte, if written { 0x11 } else { 0x5e }, "byte {at}");
    }
}

/// Records that sessions write beside one another, so that each block has several.
const RECORD: usize = 100;
const SESSIONS: usize = 8;
/// Bytes of the blocks that all write.
const ARENA: usize = 16384;

/// A write that was acknowledged. Each word of it has its number.
struct Written {
    number: u32,
    begun: Instant,
    ended: Instant,
    bytes: Range<usize>,
}

/// One of those who write.
struct Writer {
    volume: Volume,
    queue: Queue,
    buffer: Option<Buffer>,
}

impl Writer {
    fn connect(adapter: &Adapter) -> Self {
        let session = Session::connect(adapter.socket()).unwrap();
        let volume = session.open("v", Access::READ_WRITE).unwrap();
        let queue = session.queue(8).unwrap();
        let buffer = Some(session.buffer(4096).unwrap());
        Self { volume, queue, buffer }
    }

    /// Writes a number all over some bytes.
    fn write(&mut self, number: u32, bytes: Range<usize>, whole: bool) -> Written {
        let mut buffer = self.buffer.take().unwrap();
        for word in buffer[..bytes.len()].chunks_exact_mut(4) {
            word.copy_from_slice(&number.to_le_bytes());
        }
        let make = if whole { Request::write } else { Request::write_bytes };
        let request = make(&self.volume, bytes.start as u64, buffer).length(bytes.len() as u64);
        let begun = Instant::now();
        let done = self.queue.execute(request).unwrap();
        let ended = Instant::now();
        assert_eq!(done.result.unwrap() as usize, bytes.len());
        self.buffer = done.buffer;
        Written { number, begun, ended, bytes }
    }

    fn words(&mut self, bytes: &Range<usize>) -> Vec<u32> {
        let mut read = vec![0; bytes.len()];
        self.queue.read_at(&self.volume, bytes.start as u64, &mut read).unwrap();
        read.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
    }
}

/// Eight sessions on three pollers write records that share blocks, in every other round beside one that writes whole
/// blocks. Each record is there when its write was acknowledged, unless a later write of a whole block has replaced it.
fn shared_blocks(rig: &Rig) {
    let options = Options { pollers: 3, ..rig.options() };
    let adapter = Adapter::start(&options, &rig.socket()).unwrap();
    let admin = Session::connect(adapter.socket()).unwrap();
    admin.create_volume("v", VOLUME).unwrap();
    let mut writers: Vec<_> = (0..=SESSIONS).map(|_| Writer::connect(&adapter)).collect();
    let block = writers[0].volume.block_size() as usize;
    let rounds = if rig.is_software() { 24 } else { 6 };
    let mut all = 0;
    for round in 0..rounds {
        let with_blocks = round % 2 == 1;
        let written: Vec<Written> = std::thread::scope(|scope| {
            let threads: Vec<_> = writers
                .iter_mut()
                .enumerate()
                .filter(|(who, _)| *who < SESSIONS || with_blocks)
                .map(|(who, writer)| scope.spawn(move || one_writer(writer, who, round, block, with_blocks)))
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        all += written.len();
        let words = writers[0].words(&(0..ARENA));
        for (at, number) in (0..ARENA).step_by(4).zip(words) {
            let here = || written.iter().filter(|write| write.bytes.contains(&at));
            let Some(last) = here().map(|write| write.begun).max() else { continue };
            let its = here().find(|write| write.number == number);
            let its =
                its.unwrap_or_else(|| panic!("round {round}: byte {at} has {number}, of no write here"));
            assert!(
                its.ended >= last,
                "round {round}: byte {at} has {number}, which ended before another began"
            );
        }
    }
    println!("{all} writes, none lost");
}

/// What session `who` does in a round. The one behind the last writes whole blocks.
fn one_writer(
    writer: &mut Writer,
    who: usize,
    round: usize,
    block: usize,
    with_blocks: bool,
) -> Vec<Written> {
    let mut dice = Dice((who * 1000 + round) as u64);
    let mut written = Vec::new();
    for count in 0..12 {
        let number = (round << 16 | who << 8 | (count + 1)) as u32;
        if who == SESSIONS {
            let start = dice.index(ARENA / block) * block;
            written.push(writer.write(number, start..start + block, true));
            continue;
        }
        // Few places, so that all meet in the same blocks.
        let start = dice.index(4) * SESSIONS * RECORD + who * RECORD;
        let bytes = start..start + RECORD;
        written.push(writer.write(number, bytes.clone(), false));
        if !with_blocks {
            let there = writer.words(&bytes);
            assert!(
                there.iter().all(|word| *word == number),
                "session {who}: {number} was acknowledged and is lost"
            );
        }
    }
    written
}

/// Sessions end while their writes are in every state; those that follow find no gate closed, and nothing mapped or
/// counted that was theirs.
fn ended_in_the_middle(rig: &Rig) {
    let options = Options { pollers: 2, ..rig.options() };
    let adapter = Adapter::start(&options, &rig.socket()).unwrap();
    let connect = || Session::connect(adapter.socket()).unwrap();
    let admin = connect();
    admin.create_volume("v", VOLUME).unwrap();
    let before = admin.statistics().unwrap();
    let rounds = if rig.is_software() { 60 } else { 10 };
    for round in 0..rounds {
        {
            let clients = [(); 3].map(|()| Client::open(connect(), "v", Access::WRITE));
            let mut raws = clients.each_ref().map(|client| RawQueue::create(&client.session, 16).unwrap());
            for (client, raw) in clients.iter().zip(&mut raws) {
                for count in 0..16 {
                    let (offset, length) = (count * 100, 100 + round);
                    let op = if count == 15 { opcode::WRITE } else { opcode::WRITE_BYTES };
                    let mut entry = SubmissionEntry { offset, length, ..client.request(op) };
                    if op == opcode::WRITE {
                        (entry.offset, entry.length) = (0, client.volume.block_size());
                    }
                    raw.push(&entry).unwrap();
                }
                raw.ring().unwrap();
            }
            for _ in 0..round % 7 * 10 {
                for raw in &mut raws {
                    raw.poll();
                }
            }
        }
        let mut client = Client::open(connect(), "v", Access::WRITE);
        let entry = SubmissionEntry { offset: 50, length: 2000, ..client.request(opcode::WRITE_BYTES) };
        let start = Instant::now();
        assert_eq!(client.status(&entry), Status::OK);
        assert!(start.elapsed() < PATIENCE / 2);
        drop(client);
    }
    until("what the sessions held is free", || {
        let now = admin.statistics().unwrap();
        now.sessions.len() == 1
            && (now.entries, now.regions, now.pinned_bytes, now.mappings)
                == (before.entries, before.regions, before.pinned_bytes, before.mappings)
    });
}
