//! What the tables promise, seen from an application: what is refused reaches no device and changes nothing, what is
//! granted is right to the last byte, and a reset changes neither.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use adapter::{DeviceUri, Embedded, Options};
use driver::dice::Dice;
use driver::emu::{EmuConfig, Faults, FaultyMedia, Interposer, RamMedia, Verdict};
use driver::spec::nvme::Sqe;
use portcullis::wire::layout::{SubmissionEntry, flag, opcode};
use portcullis::{Access, MemoryAccess, Request, Session, Status, Subject, raw::RawQueue};

use super::{Case, Client, PATIENCE, Rig, VOLUME, pattern, somebody};
use crate::scale::{counted, often, seed};

pub(super) const CASES: &[Case] = &[
    Case { name: "s4_r2_an_invalid_entry_is_told_and_costs_the_device_nothing", run: invalid },
    Case { name: "s4_r3_r4_a_refused_direction_changes_neither_blocks_nor_memory", run: directions },
    Case { name: "s4_r12_s8_r8_reads_across_the_joints_of_a_volume", run: joints },
    Case { name: "s4_r14_refused_requests_change_no_count", run: counts },
    Case { name: "s4_r15_two_sessions_at_random_see_only_their_own", run: two_at_random },
    Case { name: "s8_r9_a_request_of_many_ranges_ends_once", run: many_ranges },
];

/// A device of flesh is reset in the guest's own suite.
pub(super) const SOFTWARE: &[Case] =
    &[Case { name: "s8_r14_keys_and_data_survive_a_reset_of_the_device", run: reset }];

/// Bytes that the store hands out at a time.
const UNIT: u64 = 64 << 10;
const DEVICE: u64 = 64 << 20;

/// An adapter that the case turns, over a software device with this in its way.
fn over(interposer: Arc<dyn Interposer>, options: &Options) -> Embedded {
    let media = Arc::new(RamMedia::new(DEVICE).unwrap());
    start(EmuConfig { interposer: Some(interposer), ..EmuConfig::new(media) }, options)
}

fn start(config: EmuConfig, options: &Options) -> Embedded {
    let uri = DeviceUri::EmuRam(DEVICE);
    let opened = adapter::device::emu::open_with(&uri, config, 1).unwrap();
    Embedded::start_on(opened, options).unwrap()
}

fn software() -> Options {
    Options::new(DeviceUri::EmuRam(DEVICE))
}

/// Counts the I/O commands that a device gets.
#[derive(Default)]
struct Counting(AtomicU64);

impl Interposer for Counting {
    fn before(&self, queue: u16, _: &Sqe) -> Verdict {
        self.0.fetch_add(u64::from(queue > 0), Ordering::SeqCst);
        Verdict::Run
    }
}

/// Every operation there is, on one block.
fn operations(client: &Client) -> Vec<SubmissionEntry> {
    let with = |code, flags| SubmissionEntry { flags, ..client.request(code) };
    vec![
        with(opcode::READ, 0),
        with(opcode::WRITE, 0),
        with(opcode::WRITE, flag::FUA),
        SubmissionEntry { length: 0, ..with(opcode::FLUSH, 0) },
        with(opcode::WRITE_ZEROES, 0),
        with(opcode::WRITE_ZEROES, flag::DEALLOCATE),
        with(opcode::DEALLOCATE, 0),
        with(opcode::COMPARE, 0),
    ]
}

/// An entry that was never made, one that was closed, and one that was revoked.
fn invalid(rig: &Rig) {
    let seen = Arc::new(Counting::default());
    let adapter = if rig.is_software() { over(seen.clone(), &software()) } else { rig.embedded() };
    let owner = adapter.session().unwrap();
    owner.create_volume("v", VOLUME).unwrap();
    owner.set_access("v", Subject::User(2001), Access::ALL).unwrap();
    let session = adapter.session_as(somebody(2001)).unwrap();
    let mut client = Client::open(session.clone(), "v", Access::ALL);
    let closed = session.open("v", Access::ALL).unwrap();
    let closed_key = closed.key();
    closed.close().unwrap();
    assert_eq!(client.status(&client.request(opcode::READ)), Status::OK);
    let never = client.volume.key() + 7;
    let before = seen.0.load(Ordering::SeqCst);
    assert!(before > 0 || !rig.is_software(), "what is granted is counted");
    for key in [never, closed_key] {
        for entry in operations(&client) {
            assert_eq!(client.status(&SubmissionEntry { key, ..entry }), Status::E_ENTRY_INVALID);
        }
    }
    assert_eq!(seen.0.load(Ordering::SeqCst), before, "the device saw a command");
    let revoked = owner.set_access("v", Subject::User(2001), Access::NONE).unwrap();
    assert_eq!((revoked.grants, revoked.draining), (1, 0));
    let before = seen.0.load(Ordering::SeqCst);
    for entry in operations(&client) {
        assert_eq!(client.status(&entry), Status::E_ENTRY_INVALID);
    }
    assert_eq!(seen.0.load(Ordering::SeqCst), before, "the device saw a command");
}

/// A write through a READ grant leaves the blocks, a read through a WRITE grant the memory, as they were.
fn directions(rig: &Rig) {
    let adapter = rig.embedded();
    let owner = Client::create(adapter.session().unwrap(), "v");
    let mut queue = owner.session.queue(8).unwrap();
    let blocks = pattern(41, 64 << 10);
    queue.write_at(&owner.volume, 0, &blocks).unwrap();
    let block = owner.volume.block_size() as usize;
    for access in [Access::READ, Access::READ | Access::TRIM, Access::WRITE, Access::WRITE | Access::TRIM] {
        let session = owner.session.clone();
        let volume = session.open("v", access).unwrap();
        let mut queue = RawQueue::create(&session, 16).unwrap();
        let mut buffer = session.register(64 << 10, MemoryAccess::Both).unwrap().into_buffer();
        let memory = pattern(42, buffer.len());
        buffer.copy_from_slice(&memory);
        let codes: &[u8] = if access.allows(Access::READ) {
            &[opcode::WRITE, opcode::WRITE_ZEROES]
        } else {
            &[opcode::READ, opcode::COMPARE]
        };
        for &code in codes {
            for blocks in [1, 3, 16] {
                let entry = SubmissionEntry {
                    opcode: code,
                    key: volume.key(),
                    length: (blocks * block) as u32,
                    region: buffer.region(),
                    ..SubmissionEntry::default()
                };
                queue.push(&entry).unwrap();
                queue.ring().unwrap();
                let done = queue.wait(PATIENCE).unwrap().unwrap();
                assert_eq!(
                    (Status(done.status), done.bytes),
                    (Status::E_ACCESS, 0),
                    "opcode {code} under {access:?}"
                );
            }
        }
        assert!(buffer[..] == memory[..], "the memory changed under {access:?}");
    }
    let mut read = vec![0; blocks.len()];
    queue.read_at(&owner.volume, 0, &mut read).unwrap();
    assert!(read == blocks, "the blocks changed");
}

/// A volume of `units` ranges of one unit each, no two of them neighbours.
fn scattered(session: &Session, units: u64) {
    for i in 0..2 * units {
        session.create_volume(&format!("filler-{i}"), UNIT).unwrap();
    }
    let free = session.device_info().unwrap();
    let rest = (free.free_blocks * u64::from(free.block_size)) / UNIT * UNIT;
    session.create_volume("rest", rest).unwrap();
    for i in (0..2 * units).step_by(2) {
        session.delete_volume(&format!("filler-{i}")).unwrap();
    }
    let info = session.create_volume("v", units * UNIT).unwrap();
    assert_eq!(u64::from(info.extents), units, "ranges");
}

/// Requests of all sizes around each joint, each byte from the right side of it.
fn joints(rig: &Rig) {
    let adapter = rig.embedded();
    let session = adapter.session().unwrap();
    scattered(&session, 8);
    let volume = session.open("v", Access::READ_WRITE).unwrap();
    let mut queue = session.queue(8).unwrap();
    let mut plain = pattern(12, volume.size() as usize);
    queue.write_at(&volume, 0, &plain).unwrap();
    let block = u64::from(volume.block_size());
    for joint in 1..8 {
        for (before, after) in [(1, 1), (1, 7), (7, 1), (UNIT / block, 1), (3, UNIT / block)] {
            let offset = joint * UNIT - before * block;
            let bytes = ((before + after) * block) as usize;
            let place = offset as usize..offset as usize + bytes;
            let mut read = vec![0; bytes];
            queue.read_at(&volume, offset, &mut read).unwrap();
            assert!(read == plain[place.clone()], "{before} blocks before joint {joint}, {after} after");
            // And written across it, seen by the next.
            plain[place.clone()].copy_from_slice(&pattern((joint * 64 + before + after) as u32, bytes));
            queue.write_at(&volume, offset, &plain[place]).unwrap();
        }
    }
    let mut read = vec![0; plain.len()];
    queue.read_at(&volume, 0, &mut read).unwrap();
    assert!(read == plain);
    for i in (1..16).step_by(2) {
        let filler = session.open(&format!("filler-{i}"), Access::READ).unwrap();
        let mut read = vec![1; UNIT as usize];
        queue.read_at(&filler, 0, &mut read).unwrap();
        assert!(read.iter().all(|&byte| byte == 0), "filler {i} was written");
    }
}

/// Refused in every way there is: entries, ranges, regions and pinned bytes stay what they were, and so do the blocks.
fn counts(rig: &Rig) {
    let adapter = rig.embedded();
    let mut client = Client::create(adapter.session().unwrap(), "v");
    let other = Client::create(adapter.session().unwrap(), "other");
    let data = pattern(14, VOLUME as usize);
    let mut queue = client.session.queue(8).unwrap();
    queue.write_at(&client.volume, 0, &data).unwrap();
    let in_use = |client: &Client| {
        let now = client.session.statistics().unwrap();
        (now.entries, now.lba_entries, now.regions, now.pinned_bytes, now.mappings)
    };
    let before = in_use(&client);
    let denied = client.session.statistics().unwrap().denied;
    let good = client.request(opcode::WRITE_ZEROES);
    let write = client.request(opcode::WRITE);
    let refused = [
        SubmissionEntry { key: other.volume.key(), ..good },
        SubmissionEntry { key: good.key + (1 << 32), ..good },
        SubmissionEntry { key: good.key + 3, ..good },
        SubmissionEntry { key: u64::MAX, ..good },
        SubmissionEntry { offset: VOLUME, ..good },
        SubmissionEntry { offset: u64::MAX - 511, ..good },
        SubmissionEntry { offset: 1, ..good },
        SubmissionEntry { length: 0, ..good },
        SubmissionEntry { region: other.memory.key(), ..write },
        SubmissionEntry { region_offset: 256 << 10, ..write },
        SubmissionEntry { region_offset: 2, ..write },
    ];
    for entry in &refused {
        let done = client.submit(entry);
        assert!(done.status != 0 && done.bytes == 0, "{entry:?}");
        assert_eq!(in_use(&client), before, "{entry:?}");
    }
    assert_eq!(client.session.statistics().unwrap().denied, denied + refused.len() as u64);
    let mut read = vec![0; data.len()];
    queue.read_at(&client.volume, 0, &mut read).unwrap();
    assert!(read == data, "the blocks changed");
}

/// What one of two applications does, with its own picture of its volume.
struct Worker {
    who: u32,
    picture: Vec<u8>,
    dice: Dice,
}

impl Worker {
    /// Some requests at once, on disjoint parts of the volume.
    fn round(
        &mut self,
        session: &Session,
        queue: &mut portcullis::Queue,
        volume: &portcullis::Volume,
    ) -> usize {
        const LANES: u64 = 8;
        let block = u64::from(volume.block_size());
        let lane = volume.size() / LANES;
        let mut expected = Vec::new();
        for number in 0..LANES {
            let first = self.dice.below(lane / block);
            let count = 1 + self.dice.below((lane / block - first).min(32));
            let offset = number * lane + first * block;
            let place = offset as usize..(offset + count * block) as usize;
            let mut buffer = session.buffer(place.len()).unwrap();
            match self.dice.below(8) {
                0 => {
                    self.picture[place.clone()].fill(0);
                    queue.prepare(Request::write_zeroes(volume, offset, count * block).tag(number)).unwrap();
                }
                1..4 => {
                    let data = pattern(self.who << 24 ^ self.dice.below(1 << 24) as u32, place.len());
                    self.picture[place.clone()].copy_from_slice(&data);
                    buffer.copy_from_slice(&data);
                    queue.prepare(Request::write(volume, offset, buffer).tag(number)).ok().unwrap();
                }
                _ => {
                    buffer.fill(0xdb);
                    queue.prepare(Request::read(volume, offset, buffer).tag(number)).ok().unwrap();
                    expected.push((number, place));
                }
            }
        }
        queue.ring().unwrap();
        for _ in 0..LANES {
            let done = queue.wait(PATIENCE).unwrap().expect("a completion in time");
            done.result.expect("it is granted");
            if let Some((_, place)) = expected.iter().find(|(number, _)| *number == done.tag) {
                let buffer = done.buffer.expect("what was read");
                assert!(
                    buffer[..] == self.picture[place.clone()],
                    "session {} reads what it did not write",
                    self.who
                );
            }
        }
        LANES as usize
    }
}

/// Two applications read, write and zero at random, many requests at a time, and compare with what they did.
fn two_at_random(rig: &Rig) {
    let adapter = rig.isolated();
    let rounds = if rig.is_software() { often(300, 20_000) } else { 30 };
    let seed = seed(1);
    let requests = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for who in 0..2u32 {
            let (requests, socket) = (&requests, adapter.socket());
            scope.spawn(move || {
                let session = Session::connect(socket).unwrap();
                let name = format!("volume-{who}");
                session.create_volume(&name, VOLUME).unwrap();
                let volume = session.open(&name, Access::ALL).unwrap();
                let mut queue = session.queue(16).unwrap();
                let dice = Dice(seed.wrapping_mul(2).wrapping_add(u64::from(who)));
                let mut worker = Worker { who, picture: vec![0; VOLUME as usize], dice };
                for _ in 0..rounds {
                    let done = worker.round(&session, &mut queue, &volume);
                    requests.fetch_add(done as u64, Ordering::Relaxed);
                }
                let mut read = vec![0; VOLUME as usize];
                queue.read_at(&volume, 0, &mut read).unwrap();
                assert!(read == worker.picture, "session {who} finds another volume than it left");
            });
        }
    });
    counted(requests.into_inner(), "requests of two applications at random");
}

/// One request over sixteen ranges has one completion, after all of them; if one range fails, so does the request, and
/// says how much was done.
fn many_ranges(rig: &Rig) {
    const RANGES: u64 = 16;
    let media = Arc::new(FaultyMedia::new(RamMedia::new(DEVICE).unwrap()));
    let adapter =
        if rig.is_software() { start(EmuConfig::new(media.clone()), &software()) } else { rig.embedded() };
    let session = adapter.session().unwrap();
    scattered(&session, RANGES);
    let volume = session.open("v", Access::READ_WRITE).unwrap();
    let mut queue = session.queue(8).unwrap();
    let bytes = RANGES * UNIT;
    let plain = pattern(9, bytes as usize);
    queue.write_at(&volume, 0, &plain).unwrap();

    let mut buffer = session.register(bytes as usize, MemoryAccess::Both).unwrap().into_buffer();
    buffer.fill(0);
    let mut raw = RawQueue::create(&session, 8).unwrap();
    let whole = SubmissionEntry {
        opcode: opcode::READ,
        user_data: 5,
        key: volume.key(),
        length: bytes as u32,
        region: buffer.region(),
        ..SubmissionEntry::default()
    };
    let once = |raw: &mut RawQueue| {
        raw.push(&whole).unwrap();
        raw.ring().unwrap();
        let done = raw.wait(PATIENCE).unwrap().unwrap();
        // No second one comes, however long it is turned.
        for _ in 0..1000 {
            adapter.turn();
        }
        assert!(raw.poll().is_none(), "one request, one completion");
        done
    };
    let done = once(&mut raw);
    assert_eq!((Status(done.status), u64::from(done.bytes), done.user_data), (Status::OK, bytes, 5));
    assert!(buffer[..] == plain[..], "all of it was there when it was completed");

    if !rig.is_software() {
        return;
    }
    // Where the tenth range is, only an administrator may know.
    let info = session.device_info().unwrap();
    let (_, extents) = info.volumes.iter().find(|(name, _)| name == "v").expect("an administrator is told");
    let (first, blocks) = extents[9];
    let size = u64::from(info.block_size);
    media.fail_reads(first * size..(first + blocks) * size);
    buffer.fill(0xcc);
    let done = once(&mut raw);
    assert_eq!(Status(done.status), Status::E_DEVICE);
    assert!(u64::from(done.bytes) < bytes && done.bytes > 0, "{} bytes done", done.bytes);
    assert_eq!(u64::from(done.bytes) % UNIT, 0, "whole ranges");
    let bad = (9 * UNIT) as usize..(10 * UNIT) as usize;
    assert!(buffer[bad].iter().all(|&byte| byte == 0xcc), "nothing came of the range that failed");
    media.heal();
    assert_eq!(Status(once(&mut raw).status), Status::OK);
    assert!(buffer[..] == plain[..]);
}

/// The controller keeps a request and is reset: grants, keys, regions and data are as before, for everybody.
fn reset(_: &Rig) {
    let faults = Faults::new(1);
    let timeout = Duration::from_millis(200);
    let adapter = over(faults.clone(), &Options { device_timeout: timeout, ..software() });
    let admin = adapter.session().unwrap();
    admin.create_volume("w", UNIT).unwrap();
    scattered(&admin, 8);
    let mut clients = [
        Client::open(adapter.session().unwrap(), "v", Access::READ_WRITE),
        Client::open(adapter.session().unwrap(), "w", Access::READ),
    ];
    let plain = pattern(3, 8 * UNIT as usize);
    let mut queue = clients[0].session.queue(8).unwrap();
    queue.write_at(&clients[0].volume, 0, &plain).unwrap();
    let in_use = || {
        let now = admin.statistics().unwrap();
        (now.entries, now.lba_entries, now.regions, now.pinned_bytes, now.mappings)
    };
    let before = in_use();
    let keys = [clients[0].volume.key(), clients[1].volume.key()];
    for round in 0..3 {
        let kept = clients[0].request(opcode::READ);
        faults.hold();
        clients[0].raw.push(&kept).unwrap();
        clients[0].raw.ring().unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(20) {
            assert!(clients[0].raw.poll().is_none(), "the device still has it");
        }
        faults.stop_holding();
        let ended = clients[0].raw.wait(PATIENCE).unwrap().expect("the reset ends it");
        assert_eq!(Status(ended.status), Status::E_DEVICE, "round {round}");
        assert_eq!(in_use(), before);
        for (client, key) in clients.iter_mut().zip(keys) {
            assert_eq!(client.volume.key(), key);
            let read = client.request(opcode::READ);
            assert_eq!(client.status(&read), Status::OK, "the key is what it was");
            let stale = SubmissionEntry { key: key + (1 << 32), ..read };
            assert_eq!(client.status(&stale), Status::E_KEY_INSTANCE);
            let foreign = SubmissionEntry { key: keys[0] ^ keys[1] ^ key, ..read };
            assert_eq!(client.status(&foreign), Status::E_PD_MISMATCH);
            let beyond = SubmissionEntry { offset: client.volume.size(), ..read };
            assert_eq!(client.status(&beyond), Status::E_BOUNDS);
        }
        assert_eq!(clients[1].status(&clients[1].request(opcode::WRITE)), Status::E_ACCESS);
        let mut read = vec![0; plain.len()];
        queue.read_at(&clients[0].volume, 0, &mut read).unwrap();
        assert!(read == plain, "round {round}");
    }
    // Nothing was left counted: what is closed is free at once.
    let [first, second] = clients;
    first.volume.close().unwrap();
    second.volume.close().unwrap();
    assert_eq!(admin.statistics().unwrap().entries, before.0 - 2);
}
