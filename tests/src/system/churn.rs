//! Files that come and go under everybody's requests: whoever asks meets all of a file or nothing of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use adapter::{Adapter, Options};
use driver::dice::Dice;
use portcullis::wire::layout::{SubmissionEntry, opcode};
use portcullis::{Buffer, Session, Status, raw::RawQueue};

use super::files::{content, format};
use super::{Case, PATIENCE, Rig, pattern};
use crate::scale::{counted, often};

pub(super) const CASES: &[Case] =
    &[Case { name: "s6_r10_no_request_sees_a_half_made_file_while_files_come_and_go", run: half_made }];

/// Bytes of each file, written by one append.
const BYTES: usize = 4096;
/// What requests for a file that is there, is not, or is just being made may be answered with.
const DEFINED: [Status; 3] = [Status::E_ENTRY_INVALID, Status::E_KEY_INSTANCE, Status::E_KEY_RANGE];

/// The file that was made last: what its maker tells the others.
#[derive(Default)]
struct Latest {
    key: AtomicU64,
    over: AtomicBool,
}

/// What one who hammers met, by status.
type Met = BTreeMap<u16, u64>;

/// Submits requests as they are, many at a time.
struct Hammer {
    raw: RawQueue,
    buffer: Buffer,
    dice: Dice,
    met: Met,
}

impl Hammer {
    /// Requests under way at once.
    const BATCH: usize = 8;

    fn new(session: &Session, seed: u64) -> Self {
        let raw = RawQueue::create(session, 2 * Self::BATCH as u32).unwrap();
        let buffer = session.buffer(Self::BATCH * BYTES).unwrap();
        Self { raw, buffer, dice: Dice(seed), met: Met::new() }
    }

    /// Near the key that was given out last: that one, those that come next, and those that were.
    fn near(&mut self, key: u64) -> u64 {
        match self.dice.below(5) {
            0 | 1 => key,
            2 => key.wrapping_add((1 + self.dice.below(3)) << 32),
            3 => key.wrapping_sub((1 + self.dice.below(3)) << 32),
            _ => (key & !0xf).wrapping_add(self.dice.below(16)).wrapping_add(self.dice.below(3) << 32),
        }
    }

    /// A batch of requests, each answered; `look` sees what each of them was answered with and what was read.
    fn strike(&mut self, latest: &Latest, codes: &[u8], look: impl Fn(Status, &[u8])) {
        let key = latest.key.load(Ordering::Acquire);
        if key == 0 {
            return std::thread::yield_now();
        }
        self.buffer.fill(0xee);
        for slot in 0..Self::BATCH {
            let key = self.near(key);
            let extension = if self.dice.chance(30) { self.near(key & !0xffff_ffff) } else { 0 };
            let entry = SubmissionEntry {
                opcode: self.dice.pick(codes),
                user_data: slot as u64,
                key,
                extension,
                length: BYTES as u32,
                region: self.buffer.region(),
                region_offset: self.buffer.region_offset() + (slot * BYTES) as u64,
                ..SubmissionEntry::default()
            };
            self.raw.push(&entry).unwrap();
        }
        self.raw.ring().unwrap();
        for _ in 0..Self::BATCH {
            let done = self.raw.wait(PATIENCE).unwrap().expect("a completion in time");
            *self.met.entry(done.status).or_default() += 1;
            let place = &self.buffer[done.user_data as usize * BYTES..][..BYTES];
            look(Status(done.status), &place[..(done.bytes as usize).min(BYTES)]);
        }
    }
}

/// Tells the others, also if it fails.
struct Maker<'a>(&'a Latest);

impl Drop for Maker<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Release);
    }
}

/// Makes files and removes them, one after the other.
fn cycle(session: &Session, latest: &Latest, cycles: u32) {
    let _over = Maker(latest);
    let files = session.files().unwrap();
    for number in 0..cycles {
        let place = format!("v:/{}", number % 3);
        let file = files.create(&place).unwrap();
        latest.key.store(file.key(), Ordering::Release);
        assert_eq!(file.append(&pattern(number + 1, BYTES)).unwrap(), 0);
        match number % 3 {
            // Cut to nothing and closed, closed first, removed first.
            0 => {
                file.set_len(0).unwrap();
                file.close().unwrap();
                files.remove_file(&place).unwrap();
            }
            1 => {
                file.close().unwrap();
                files.remove_file(&place).unwrap();
            }
            _ => {
                files.remove_file(&place).unwrap();
                file.close().unwrap();
            }
        }
    }
}

/// Reads what the files' own session may: each time nothing, or all of one file.
fn insider(session: &Session, latest: &Latest, seed: u64) -> Met {
    let mut hammer = Hammer::new(session, seed);
    while !latest.over.load(Ordering::Acquire) {
        hammer.strike(latest, &[opcode::READ], |status, read| match status {
            Status::OK if read.is_empty() => {}
            Status::OK => assert!(is_whole(read), "a read saw {:?}...", &read[..16]),
            // Of an extension that is not there, or ends before.
            other => assert!(DEFINED.contains(&other) || other == Status::E_BOUNDS, "{other}"),
        });
    }
    hammer.met
}

/// Whether it is all that somebody appended.
fn is_whole(read: &[u8]) -> bool {
    // The first word of a pattern is its seed's.
    let inverse =
        (1..5).fold(0x9e37_79b9u32, |x, _| x.wrapping_mul(2u32.wrapping_sub(0x9e37_79b9u32.wrapping_mul(x))));
    let seed = u32::from_le_bytes([read[0], read[1], read[2], read[3]]).wrapping_mul(inverse);
    seed != 0 && read.len() == BYTES && read == pattern(seed, BYTES)
}

/// Tries all of it from another session, which has no file.
fn outsider(session: &Session, latest: &Latest, seed: u64) -> Met {
    let codes = [opcode::READ, opcode::WRITE, opcode::WRITE_BYTES, opcode::APPEND, opcode::WRITE_ZEROES];
    let mut hammer = Hammer::new(session, seed);
    while !latest.over.load(Ordering::Acquire) {
        hammer.strike(latest, &codes, |status, _| {
            let refused = DEFINED.contains(&status) || status == Status::E_PD_MISMATCH;
            // What carries no data may not name memory.
            assert!(refused || status == Status::E_OPCODE || status == Status::E_LOCAL_MEM, "{status}");
        });
    }
    hammer.met
}

fn half_made(rig: &Rig) {
    let cycles = if rig.is_software() { often(500, 10_000) } else { often(150, 1_000) };
    let adapter = Adapter::start(&Options { pollers: 2, ..rig.options() }, &rig.socket()).unwrap();
    let session = Session::connect(adapter.socket()).unwrap();
    let files = format(&session);
    let bystander = files.create("v:/bystander").unwrap();
    let data = pattern(0xffff_ffff, 100_000);
    bystander.write_all_at(&data, 0).unwrap();
    let free = files.space("v").unwrap().free;
    let other = Session::connect(adapter.socket()).unwrap();
    let latest = &Latest::default();
    let met = std::thread::scope(|scope| {
        let (mine, its) = (&session, &other);
        let maker = Session::connect(adapter.socket()).unwrap();
        let inside = maker.clone();
        let readers = [1, 2].map(|seed| (seed, inside.clone()));
        let readers = readers.map(|(seed, session)| scope.spawn(move || insider(&session, latest, seed)));
        let stranger = scope.spawn(move || outsider(its, latest, 3));
        scope.spawn(move || cycle(&maker, latest, cycles));
        while !latest.over.load(Ordering::Acquire) {
            assert!(content(&bystander) == data, "somebody else's file changed");
        }
        assert!(mine.statistics().unwrap().queue_errors == 0);
        let inside = readers.map(|reader| reader.join().unwrap());
        (inside, stranger.join().unwrap())
    });
    println!("by status, who may read met {:?}, a stranger {:?}", met.0, met.1);
    let ok = |met: &Met| met.get(&Status::OK.0).copied().unwrap_or(0);
    let refused = |met: &Met| met.values().sum::<u64>() - ok(met);
    assert!(met.0.iter().any(|met| ok(met) > 0) && met.0.iter().all(|met| refused(met) > 0), "both were met");
    assert_eq!(ok(&met.1), 0, "a stranger got something");
    assert!(content(&bystander) == data);
    super::until("what the files had is free", || files.space("v").unwrap().free == free);
    counted(cycles, "files made and removed under requests");
}
