//! What real devices do to a driver, as one table: fault, device, operation. In each cell requests of one kind meet one
//! fault through the whole path, and
//!
//! - each of them ends exactly once, with the device's own status where the device has said one;
//! - the queue or the controller recovers where it can, and what is written then is read back; where it cannot, requests
//!   are refused and everything else is answered;
//! - a session on another device does not notice.
//!
//! [`software`] has the faults of our own software devices, [`machine`] those of QEMU.

pub mod machine;
pub mod software;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use adapter::Embedded;
use driver::block::DeviceStatus;
use portcullis::raw::RawQueue;
use portcullis::wire::layout::{CompletionEntry, SubmissionEntry, opcode};
use portcullis::{Access, Buffer, File, OpenOptions, Session, Status, Volume};

use crate::system::{PATIENCE, pattern};

/// Requests that meet a fault together.
pub const BURST: u64 = 4;
/// Bytes of the volumes: one to be read and written by blocks, one that has files.
const VOLUME: u64 = 2 << 20;
const FILES: u64 = 24 << 20;
/// Bytes of an append: no whole block.
const APPEND: u32 = 700;

/// What is asked of the device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Operation {
    /// Blocks of a volume.
    Read,
    /// The same.
    Write,
    /// Of a volume.
    Flush,
    /// Blocks of a volume.
    WriteZeroes,
    /// The same.
    Deallocate,
    /// To a file.
    Append,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Read, Self::Write, Self::Flush, Self::WriteZeroes, Self::Deallocate, Self::Append];

    /// As it is called in the table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::WriteZeroes => "write zeroes",
            Self::Deallocate => "deallocate",
            Self::Append => "append",
        }
    }

    const fn opcode(self) -> u8 {
        match self {
            Self::Read => opcode::READ,
            Self::Write => opcode::WRITE,
            Self::Flush => opcode::FLUSH,
            Self::WriteZeroes => opcode::WRITE_ZEROES,
            Self::Deallocate => opcode::DEALLOCATE,
            Self::Append => opcode::APPEND,
        }
    }
}

/// How a request may end under a fault.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum End {
    /// It was done all the same.
    Done,
    /// The device said so itself, with this status.
    Said(u16),
    /// The device said some other status than success, or had nothing of it when it was reset.
    SaidAny,
    /// The device was reset, or was gone, while it had the request.
    Aborted,
    /// There is no device any more.
    Refused,
}

impl End {
    fn allows(self, entry: &CompletionEntry) -> bool {
        let (status, device) = (Status(entry.status), entry.device_status);
        match self {
            Self::Done => status == Status::OK,
            Self::Said(said) => status == Status::E_DEVICE && device == u32::from(said),
            Self::SaidAny => status == Status::E_DEVICE && device != 0,
            Self::Aborted => status == Status::E_DEVICE && device == u32::from(DeviceStatus::ABORTED.0),
            Self::Refused => status == Status::E_PATH,
        }
    }
}

/// What becomes of the device when the fault is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum After {
    /// It works, if need be after a reset.
    Works,
    /// It is given up.
    Gone,
    /// It is given up, and works again when it is back.
    Returns,
}

/// A row of the table: what happened in one cell.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was wrong.
    pub fault: String,
    /// With which device.
    pub device: String,
    /// What was asked of it.
    pub operation: Operation,
    /// How it ended, or why the cell failed.
    pub outcome: Result<String, String>,
    /// How long it took.
    pub time: Duration,
}

/// All rows so far.
#[derive(Clone, Default)]
pub struct Table(Arc<Mutex<Vec<Row>>>);

impl Table {
    /// Adds a row, and hands its failure on.
    pub fn add(&self, row: Row) -> Result<(), String> {
        let failed = row
            .outcome
            .clone()
            .map(drop)
            .map_err(|why| format!("{} on {}, {}: {why}", row.fault, row.device, row.operation.name()));
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(row);
        failed
    }

    /// The table as text, and below it how many cells passed.
    pub fn print(&self) {
        let rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(first) = rows.first() else { return };
        let wide = |of: fn(&Row) -> usize| rows.iter().map(of).max().unwrap_or(0);
        let (fault, device) = (wide(|row| row.fault.len()), wide(|row| row.device.len()));
        println!("\nfault matrix: {}", first.device.split(' ').next().unwrap_or_default());
        for row in rows.iter() {
            let (verdict, outcome) = match &row.outcome {
                Ok(outcome) => ("ok  ", outcome),
                Err(why) => ("FAIL", why),
            };
            let operation = row.operation.name();
            let (what, on, ms) = (&row.fault, &row.device, row.time.as_millis());
            println!("| {verdict} | {what:fault$} | {on:device$} | {operation:12} | {ms:5} ms | {outcome}");
        }
        let passed = rows.iter().filter(|row| row.outcome.is_ok()).count();
        println!("fault matrix: {passed} of {} cells passed", rows.len());
        println!("counted: {passed} cells of the fault matrix");
    }
}

/// A session on another device, of an adapter of its own: it reads and writes all the time, and must not notice.
pub struct Bystander {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Bystander {
    /// Starts on a software device.
    pub fn start() -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (until, count) = (stop.clone(), rounds.clone());
        let thread = std::thread::spawn(move || {
            let adapter = Embedded::open("emu:16M").expect("another adapter");
            let session = adapter.session().expect("a session");
            session.create_volume("other", VOLUME).expect("a volume");
            let volume = session.open("other", Access::READ_WRITE).expect("it opens");
            let mut queue = session.queue(8).expect("a queue");
            let mut read = vec![0; 4096];
            while !until.load(Ordering::Relaxed) {
                let round = count.load(Ordering::Relaxed);
                let (data, at) = (pattern(round as u32, 4096), round * 4096 % VOLUME);
                queue.write_at(&volume, at, &data).expect("another device's write");
                queue.read_at(&volume, at, &mut read).expect("another device's read");
                assert!(read == data, "another device's data");
                count.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1)); // the processors are for those who have a fault
            }
        });
        Self { stop, rounds, thread: Some(thread) }
    }

    /// Waits until it has gone round twice more: what it began after the fault ended, too.
    fn went_on(&self) -> Result<(), String> {
        let before = self.rounds.load(Ordering::Relaxed);
        wait("the session on another device goes on", || self.rounds.load(Ordering::Relaxed) >= before + 2)
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(ended, Some(Ok(()))), "the session on another device noticed");
        }
    }
}

/// Waits until `done`, and says what did not come.
fn wait(what: &str, mut done: impl FnMut() -> bool) -> Result<(), String> {
    let end = Instant::now() + PATIENCE;
    while !done() {
        if Instant::now() > end {
            return Err(format!("not within {PATIENCE:?}: {what}"));
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// An application on the device that has the fault: a volume, a file, and a queue of entries as they are.
pub struct Application {
    session: Session,
    volume: Volume,
    file: File,
    raw: RawQueue,
    buffer: Buffer,
    /// The first block that its requests touch.
    base: u64,
    next: u64,
}

/// The first block of those that only make load.
const BESIDE: u64 = 256;

impl Application {
    /// Makes volumes and file on a fresh store.
    ///
    /// # Errors
    /// What the adapter says.
    pub fn new(session: Session) -> Result<Self, portcullis::Error> {
        session.create_volume("blocks", VOLUME)?;
        session.create_volume("files", FILES)?;
        session.files()?.format("files", false)?;
        Self::open(session, "/log")
    }

    /// Another one beside it, with a file and blocks of its own.
    ///
    /// # Errors
    /// What the adapter says.
    pub fn beside(session: Session) -> Result<Self, portcullis::Error> {
        let name = format!("/log{}", std::process::id());
        Ok(Self { base: BESIDE, ..Self::open(session, &name)? })
    }

    fn open(session: Session, name: &str) -> Result<Self, portcullis::Error> {
        let files = session.files()?;
        let volume = session.open("blocks", Access::ALL)?;
        let path = format!("files:{name}");
        let file = OpenOptions::new().read(true).append(true).create(true).open(&files, &path)?;
        file.allocate(4 << 20)?;
        let raw = RawQueue::create(&session, 64)?;
        let buffer = session.buffer(128 << 10)?;
        Ok(Self { session, volume, file, raw, buffer, base: 0, next: 1 })
    }

    /// Where the blocks lie on the device that requests of one operation touch: a range of bytes.
    ///
    /// # Errors
    /// What the adapter says.
    pub fn extents(&self) -> Result<Vec<std::ops::Range<u64>>, portcullis::Error> {
        let info = self.session.device_info()?;
        let size = u64::from(info.block_size);
        let of = |name: &String| name == "blocks" || name == "files";
        let extents = info.volumes.iter().filter(|(name, _)| of(name)).flat_map(|(_, extents)| extents);
        Ok(extents.map(|&(first, blocks)| first * size..(first + blocks) * size).collect())
    }

    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    fn entry(&mut self, operation: Operation, place: u64) -> SubmissionEntry {
        let block = self.volume.block_size();
        let plain = SubmissionEntry {
            opcode: operation.opcode(),
            user_data: self.next,
            key: self.volume.key(),
            offset: (self.base + place) * u64::from(block),
            length: block,
            ..SubmissionEntry::default()
        };
        self.next += 1;
        let memory = SubmissionEntry {
            region: self.buffer.region(),
            region_offset: self.buffer.region_offset() + place * 4096,
            ..plain
        };
        match operation {
            Operation::Read | Operation::Write => memory,
            Operation::Append => {
                SubmissionEntry { key: self.file.key(), offset: 0, length: APPEND, ..memory }
            }
            Operation::Flush => SubmissionEntry { offset: 0, length: 0, ..plain },
            Operation::WriteZeroes | Operation::Deallocate => plain,
        }
    }

    /// Hands over `count` requests, and returns how they ended: each once, or it says which did not.
    fn submit(&mut self, operation: Operation, count: u64) -> Result<Vec<CompletionEntry>, String> {
        let first = self.begin(operation, count)?;
        self.collect(first, count)
    }

    /// Hands over `count` requests; they are known by numbers from the one returned on.
    pub fn begin(&mut self, operation: Operation, count: u64) -> Result<u64, String> {
        let first = self.next;
        for place in 0..count {
            let entry = self.entry(operation, place);
            self.raw.push(&entry).map_err(|error| error.to_string())?;
        }
        self.raw.ring().map_err(|error| error.to_string())?;
        Ok(first)
    }

    /// Waits for the ends of requests that were begun.
    pub fn collect(&mut self, first: u64, count: u64) -> Result<Vec<CompletionEntry>, String> {
        let mut ended: Vec<CompletionEntry> = Vec::new();
        while (ended.len() as u64) < count {
            let done = self.raw.wait(PATIENCE).map_err(|error| error.to_string())?;
            let done = done
                .ok_or_else(|| format!("{} of {count} requests never ended", count - ended.len() as u64))?;
            let number = done.user_data;
            if !(first..first + count).contains(&number) || ended.iter().any(|e| e.user_data == number) {
                return Err(format!("request {number} ended twice, or was never made"));
            }
            ended.push(done);
        }
        self.silent()?;
        ended.sort_by_key(|entry| entry.user_data);
        Ok(ended)
    }

    /// Nothing more has ended than was asked for.
    fn silent(&mut self) -> Result<(), String> {
        match self.raw.poll() {
            None => Ok(()),
            Some(more) => Err(format!("request {} ended once more", more.user_data)),
        }
    }

    /// One request of the operation ends well, sooner or later, and what is written is read back.
    pub fn recovers(&mut self, operation: Operation) -> Result<(), String> {
        let end = Instant::now() + PATIENCE;
        let done = loop {
            let number = self.next as u32;
            self.buffer[..4096].copy_from_slice(&pattern(number, 4096));
            let done = self.submit(operation, 1)?[0];
            if Status(done.status) == Status::OK {
                break done;
            }
            let passes = matches!(Status(done.status), Status::E_DEVICE | Status::E_PATH);
            if !passes || Instant::now() > end {
                return Err(format!("it does not work again: {}", told(&done)));
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let written = self.buffer[..4096].to_vec();
        match operation {
            Operation::Append => {
                let mut back = vec![0; APPEND as usize];
                self.file.read_exact_at(&mut back, done.value).map_err(|error| error.to_string())?;
                equal(&back, &written[..APPEND as usize], "what was appended")
            }
            Operation::Write => {
                let length = self.volume.block_size() as usize;
                self.reads(&written[..length], "what was written")
            }
            Operation::WriteZeroes => self.reads(&[0; 512], "what was zeroed"),
            Operation::Read | Operation::Flush | Operation::Deallocate => Ok(()),
        }
    }

    /// Writes something far from all else, and has it made durable.
    pub fn keep(&mut self) -> Result<Vec<u8>, String> {
        let kept = pattern(self.next as u32, 4096);
        self.buffer[..4096].copy_from_slice(&kept);
        for operation in [Operation::Write, Operation::Flush] {
            let mut entry = self.entry(operation, 0);
            if operation == Operation::Write {
                (entry.offset, entry.length) = (VOLUME - 4096, 4096);
            }
            self.alone(&entry)?;
        }
        Ok(kept)
    }

    /// What was kept is still there.
    pub fn kept(&mut self, kept: &[u8]) -> Result<(), String> {
        self.buffer[..4096].fill(0xee);
        let entry = self.entry(Operation::Read, 0);
        self.alone(&SubmissionEntry { offset: VOLUME - 4096, length: 4096, ..entry })?;
        equal(&self.buffer[..4096], kept, "what was on the device")
    }

    /// One request, which ends well.
    fn alone(&mut self, entry: &SubmissionEntry) -> Result<(), String> {
        self.raw.push(entry).map_err(|error| error.to_string())?;
        self.raw.ring().map_err(|error| error.to_string())?;
        let done = self.collect(entry.user_data, 1)?[0];
        if Status(done.status) == Status::OK { Ok(()) } else { Err(told(&done)) }
    }

    /// The first block begins so.
    fn reads(&mut self, with: &[u8], what: &str) -> Result<(), String> {
        self.buffer[..4096].fill(0xee);
        let done = self.submit(Operation::Read, 1)?[0];
        if Status(done.status) != Status::OK {
            return Err(format!("reading back: {}", told(&done)));
        }
        equal(&self.buffer[..with.len()], with, what)
    }

    /// The device is given up: everything is refused, and the adapter goes on answering.
    pub fn refused(&mut self, operation: Operation) -> Result<(), String> {
        let end = Instant::now() + PATIENCE;
        loop {
            let done = self.submit(operation, 1)?[0];
            if End::Refused.allows(&done) {
                break;
            }
            if Instant::now() > end {
                return Err(format!("it is not given up: {}", told(&done)));
            }
            std::thread::sleep(Duration::from_millis(1)); // an append would soon find no room
        }
        self.session.statistics().map(drop).map_err(|error| format!("the adapter does not answer: {error}"))
    }
}

fn equal(found: &[u8], wanted: &[u8], what: &str) -> Result<(), String> {
    match found.iter().zip(wanted).position(|(found, wanted)| found != wanted) {
        None => Ok(()),
        Some(at) => Err(format!("{what} reads differently from byte {at} on")),
    }
}

/// How a request ended, in words.
fn told(entry: &CompletionEntry) -> String {
    match (Status(entry.status), entry.device_status) {
        (Status::E_DEVICE, device) if device == u32::from(DeviceStatus::ABORTED.0) => {
            "aborted by a reset".to_owned()
        }
        (Status::E_DEVICE, device) => format!("E_DEVICE, {}", DeviceStatus(device as u16)),
        (status, _) => status.to_string(),
    }
}

/// `4 x E_DEVICE, ...; then it works`.
pub fn summary(ended: &[CompletionEntry], after: After) -> String {
    let mut kinds = BTreeMap::<String, u32>::new();
    for entry in ended {
        *kinds.entry(told(entry)).or_default() += 1;
    }
    let mut text = String::new();
    for (kind, count) in kinds {
        let _ = write!(text, "{count} x {kind}; ");
    }
    text + match after {
        After::Works => "then it works",
        After::Gone => "then E_PATH",
        After::Returns => "then E_PATH; back, it works",
    }
}

/// Each request ended in one of the ways that are allowed, and at least one as `needed`, if something is.
pub fn judge(ended: &[CompletionEntry], allowed: &[End], needed: Option<End>) -> Result<(), String> {
    if let Some(other) = ended.iter().find(|entry| !allowed.iter().any(|end| end.allows(entry))) {
        return Err(format!("a request ended with {}, and not as one of {allowed:?}", told(other)));
    }
    match needed {
        Some(needed) if !ended.iter().any(|entry| needed.allows(entry)) => {
            Err(format!("no request ended as {needed:?}: {}", told(&ended[0])))
        }
        _ => Ok(()),
    }
}
