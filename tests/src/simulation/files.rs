//! Files under a device that ends commands in any order and fails some, from a seed: appends, reads at the end, files that grow and are
//! cut, all asked for by queues and under way at the same time.
//!
//! Unlike the other worlds this one has a whole embedded adapter with its control plane and its file system: who turns the adapter,
//! who asks for what, and what the device does with it comes from the seed; when the store's thread answers does not, so that a
//! seed that found something may take a few runs to find it again.
//!
//! What happened is written down, with when it was asked for and when it was answered, and judged in the end:
//!
//! - Each request ends once. No two appends have a byte in common, unless the file was cut between them.
//! - A read that was asked for after an append was answered shows all of it, unless the file was cut; what it shows of an append that
//!   was under way is whole up to the end of the file that it saw: never torn. Nothing else is shown, but zeroes where an append
//!   failed.
//! - The length is never less than what was appended and not cut off.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use adapter::device::emu;
use adapter::{DeviceUri, Embedded, Format, Options};
use driver::block::{
    BlockQueue, Command, Completed, DeviceStatus, Geometry, Operation, QueueState, Segment, SubmitError,
};
use driver::dice::Dice;
use portcullis::wire::control::{MAX_MESSAGE, Reply, Request as Control};
use portcullis::{
    Access, Buffer, Completion, File, Files, MemoryAccess, OpenOptions, Queue, Request, Session, Status,
};

use crate::kept::{Kept, with_queues};
use crate::system::PATIENCE;

/// Bytes of a read and of an append at most; files have blocks of so many.
const MOST: u64 = 16 << 10;
const FILES: usize = 2;
const SESSIONS: usize = 3;
/// Requests that a session has under way at most.
const DEPTH: usize = 6;
/// Requests of a world.
const REQUESTS: usize = 150;
/// Commands that a device keeps at most.
const KEPT: usize = 32;

/// A device's queue that takes commands up in any order, one now and then, and fails some.
struct Shuffled<Q> {
    under: Q,
    kept: Vec<Kept>,
    dice: Dice,
    fails: Arc<AtomicBool>,
}

impl<Q: BlockQueue> Shuffled<Q> {
    fn keep(&mut self, command: &Command, segments: Option<&[Segment]>) -> Result<(), SubmitError> {
        if self.kept.len() == KEPT {
            return Err(SubmitError::Full);
        }
        self.kept.push(Kept::new(command, segments));
        Ok(())
    }

    /// Takes one up, or fails it; its tag then.
    fn take_up(&mut self) -> Option<u64> {
        let index = self.dice.index(self.kept.len());
        let kept = self.kept.get(index)?;
        let moves = matches!(kept.command.operation, Operation::Read | Operation::Write { .. });
        if moves && self.fails.load(Ordering::Relaxed) && self.dice.below(100) < 2 {
            return Some(self.kept.swap_remove(index).command.tag);
        }
        if kept.submit(&mut self.under).is_ok() {
            self.kept.swap_remove(index);
        }
        self.under.commit();
        None
    }
}

impl<Q: BlockQueue> BlockQueue for Shuffled<Q> {
    fn geometry(&self) -> &Geometry {
        self.under.geometry()
    }

    fn submit(&mut self, command: &Command) -> Result<(), SubmitError> {
        self.keep(command, None)
    }

    fn submit_scattered(&mut self, command: &Command, segments: &[Segment]) -> Result<(), SubmitError> {
        self.keep(command, Some(segments))
    }

    fn commit(&mut self) {}

    fn poll(&mut self, budget: usize, ended: &mut dyn FnMut(Completed)) -> usize {
        if budget > 0
            && self.dice.chance(60)
            && let Some(tag) = self.take_up()
        {
            ended(Completed { tag, status: DeviceStatus::WRITE_FAULT });
            return 1;
        }
        self.under.poll(budget, ended)
    }

    fn outstanding(&self) -> usize {
        self.under.outstanding() + self.kept.len()
    }

    fn state(&self) -> QueueState {
        self.under.state()
    }

    fn arm_interrupt(&mut self, armed: bool) {
        self.under.arm_interrupt(armed);
    }
}

/// What was asked for.
enum What {
    /// So many bytes, from the append of this number.
    Append(u64),
    /// From this offset, so many bytes at most.
    Read(u64, u64),
    /// This length, which is no more than there is.
    Cut(u64),
    /// More blocks, or anything else that changes nothing that is seen.
    Other,
}

/// A request that ended, from when it was asked for to when it was answered.
struct Event {
    span: Range<u64>,
    file: usize,
    what: Outcome,
}

enum Outcome {
    /// The append of this number has these bytes of the file.
    Appended(u64, Range<u64>),
    /// It failed; it may have a place.
    Failed,
    /// What was read from an offset, and how much was asked for.
    Read(u64, u64, Vec<u8>),
    Cut(u64),
    Nothing,
}

/// The byte of an append: never zero.
fn stamp(number: u64, index: u64) -> u8 {
    1 + (((number << 20 ^ index).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) % 255) as u8
}

struct Client {
    queue: Queue,
    buffers: Vec<Buffer>,
    open: Vec<File>,
    _session: Session,
}

struct World {
    clients: Vec<Client>,
    asked: Vec<(u64, usize, What)>,
    events: Vec<Event>,
    /// Counts all that happens.
    now: u64,
    /// A file is being cut.
    cutting: [bool; FILES],
    /// Lengths are multiples of this: of a block, where appends do not share blocks and so wait for each other only to land.
    grain: u64,
    dice: Dice,
}

/// What a run of many seeds came to.
#[derive(Default, Debug)]
pub struct Seen {
    /// Appends that have their place, and that failed.
    pub appends: [u64; 2],
    /// Reads that showed something.
    pub reads: u64,
    /// Files that were cut.
    pub cuts: u64,
}

/// One world. An error says what was wrong.
pub fn files(seed: u64, seen: &mut Seen) -> Result<(), String> {
    let uri = DeviceUri::EmuRam(32 << 20);
    let options = Options { format: Format::Force, ..Options::new(uri.clone()) };
    let fails = Arc::new(AtomicBool::new(false));
    let opened = emu::open(&uri, 1).expect("a device");
    let shuffled = |under| Shuffled { under, kept: Vec::new(), dice: Dice(seed), fails: fails.clone() };
    let adapter = Embedded::start_on(with_queues(opened, shuffled), &options).expect("an adapter");
    let session = adapter.session().unwrap();
    session.create_volume("v", 20 << 20).unwrap();
    let files = session.files().unwrap();
    files.format("v", false).unwrap();
    (0..FILES).for_each(|file| drop(files.create(format!("v:/{file}")).unwrap()));
    let clients = (0..SESSIONS).map(|_| client(&adapter)).collect();
    let (asked, events, cutting) = (Vec::new(), Vec::new(), [false; FILES]);
    let grain = if seed.is_multiple_of(2) { 512 } else { 1 };
    let mut world = World { clients, asked, events, now: 0, cutting, grain, dice: Dice(seed) };
    fails.store(seed.is_multiple_of(3), Ordering::Relaxed);
    for _ in 0..REQUESTS {
        world.ask();
        for _ in 0..world.dice.below(6) {
            adapter.turn();
        }
        if world.dice.chance(60) {
            world.take();
        }
    }
    while world.asked.iter().any(|(.., what)| !matches!(what, What::Other)) || world.under_way() {
        if !world.take() {
            return Err("a request does not end".to_owned());
        }
    }
    fails.store(false, Ordering::Relaxed);
    world.read_all(&files);
    drop(std::mem::take(&mut world.clients));
    let report = files.check("v", false).map_err(|error| error.to_string())?;
    if report.found > 0 {
        return Err(format!("the check finds {:?}", report.findings));
    }
    (0..FILES)
        .try_for_each(|file| judge(&world.events, file, seen).map_err(|why| format!("file {file}: {why}")))
}

fn client(adapter: &Embedded) -> Client {
    let session = adapter.session().unwrap();
    let files = session.files().unwrap();
    let memory = session.register(DEPTH * MOST as usize, MemoryAccess::Both).unwrap();
    let how = OpenOptions::new().read(true).write(true);
    let open = (0..FILES).map(|file| how.open(&files, format!("v:/{file}")).unwrap()).collect();
    let buffers = memory.buffers(MOST as usize, 4096).unwrap();
    Client { queue: session.queue(16).unwrap(), buffers, open, _session: session }
}

impl World {
    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    fn under_way(&self) -> bool {
        self.clients.iter().any(|client| client.queue.in_flight() > 0)
    }

    /// What the file is at the least as long as, by what was answered. Only who cuts it may know more.
    fn least(&self, file: usize) -> u64 {
        let (mut length, mut cut) = (0, 0);
        for event in self.events.iter().filter(|event| event.file == file) {
            match &event.what {
                // Of what was under way with a cut nobody knows whether it came before.
                Outcome::Appended(_, place) if event.span.start > cut => length = length.max(place.end),
                Outcome::Cut(to) => (length, cut) = (*to, event.span.end),
                _ => {}
            }
        }
        length
    }

    /// Some client asks for something.
    fn ask(&mut self) {
        let (client, file) = (self.dice.index(SESSIONS), self.dice.index(FILES));
        if self.clients[client].buffers.is_empty() {
            return;
        }
        let (kind, least) = (self.dice.below(20), self.least(file));
        let key = self.clients[client].open[file].key();
        let number = self.asked.len() as u64;
        let mut buffer = self.clients[client].buffers.pop().expect("there is one");
        let open = &self.clients[client].open[file];
        let (request, what) = match kind {
            0..9 => {
                let length =
                    1 + if self.dice.chance(80) { self.dice.below(200) } else { self.dice.below(6000) };
                let length = length.next_multiple_of(self.grain);
                for (index, byte) in (0..length).zip(&mut *buffer) {
                    *byte = stamp(number, index);
                }
                (Request::append(open, buffer).length(length), What::Append(length))
            }
            9..15 => {
                let offset = least.saturating_sub(self.dice.below(5000)) / 4096 * 4096;
                let length = (1 + self.dice.below(4)) * 4096;
                (Request::read(open, offset, buffer).length(length), What::Read(offset, length))
            }
            15 if !self.cutting[file] => {
                self.cutting[file] = true;
                let bytes = self.dice.below(least + 1) / self.grain * self.grain;
                (Request::manage(&Control::SetLength { key, bytes }, buffer).unwrap(), What::Cut(bytes))
            }
            16..18 => {
                let bytes = least + self.dice.below(30_000);
                let request = Control::GrowFile { key, bytes, keep: self.dice.chance(20) };
                (Request::manage(&request, buffer).unwrap(), What::Other)
            }
            18 => {
                (Request::manage(&Control::SyncFile { key, data_only: false }, buffer).unwrap(), What::Other)
            }
            _ => (Request::manage(&Control::QueryFile { key }, buffer).unwrap(), What::Other),
        };
        assert!(MOST as usize >= MAX_MESSAGE);
        let begin = self.tick();
        self.asked.push((begin, file, what));
        let queue = &mut self.clients[client].queue;
        queue.prepare(request.tag(number)).map_err(|refused| refused.error).unwrap();
        queue.ring().unwrap();
    }

    /// Waits for a request of some client. False if none ends.
    fn take(&mut self) -> bool {
        let first = self.dice.index(SESSIONS);
        for client in (first..SESSIONS).chain(0..first) {
            if self.clients[client].queue.in_flight() == 0 {
                continue;
            }
            let Some(done) = self.clients[client].queue.wait(PATIENCE).unwrap() else { return false };
            self.ended(client, done);
            return true;
        }
        true
    }

    fn ended(&mut self, client: usize, done: Completion) {
        let end = self.tick();
        let (begin, file, what) = {
            let asked = &mut self.asked[done.tag as usize];
            (asked.0, asked.1, std::mem::replace(&mut asked.2, What::Other))
        };
        let status = done.result.as_ref().err().and_then(portcullis::Error::status);
        let outcome = match what {
            What::Append(length) => match &done.result {
                Ok(bytes) => {
                    assert_eq!(u64::from(*bytes), length);
                    Outcome::Appended(done.tag, done.value..done.value + length)
                }
                Err(_) if status == Some(Status::E_NO_RESOURCES) => Outcome::Nothing,
                Err(_) => Outcome::Failed,
            },
            What::Read(offset, length) => match (&done.result, &done.buffer) {
                (Ok(bytes), Some(buffer)) => {
                    Outcome::Read(offset, length, buffer[..*bytes as usize].to_vec())
                }
                _ => Outcome::Nothing,
            },
            What::Cut(length) => {
                self.cutting[file] = false;
                match reply_of(&done) {
                    Some(Reply::File(_)) => Outcome::Cut(length),
                    other => panic!("cutting a file: {other:?}"),
                }
            }
            What::Other => Outcome::Nothing,
        };
        self.clients[client].buffers.extend(done.buffer);
        self.events.push(Event { span: begin..end, file, what: outcome });
    }

    /// All of each file, as somebody else reads it now.
    fn read_all(&mut self, files: &Files) {
        for number in 0..FILES {
            let file = files.open(format!("v:/{number}")).unwrap();
            assert_eq!(file.access(), Access::READ);
            let begin = self.tick();
            let mut data = vec![0; file.len().unwrap() as usize];
            file.read_exact_at(&mut data, 0).unwrap();
            let end = self.tick();
            let what = Outcome::Read(0, u64::MAX, data);
            self.events.push(Event { span: begin..end, file: number, what });
        }
    }
}

/// The reply of a management request that ended well.
fn reply_of(done: &Completion) -> Option<Reply> {
    let bytes = *done.result.as_ref().ok()? as usize;
    wire::frame::decode_body(done.buffer.as_ref()?.get(..bytes)?).ok()
}

/// Whether all that happened to a file can have happened.
fn judge(events: &[Event], file: usize, seen: &mut Seen) -> Result<(), String> {
    let of_it: Vec<&Event> = events.iter().filter(|event| event.file == file).collect();
    let appends: Vec<(&Range<u64>, u64, &Range<u64>)> = of_it
        .iter()
        .filter_map(|event| match &event.what {
            Outcome::Appended(number, place) => Some((&event.span, *number, place)),
            _ => None,
        })
        .collect();
    let cuts: Vec<(&Range<u64>, u64)> = of_it
        .iter()
        .filter_map(|event| if let Outcome::Cut(to) = event.what { Some((&event.span, to)) } else { None })
        .collect();
    let failed: Vec<&Range<u64>> =
        of_it.iter().filter(|event| matches!(event.what, Outcome::Failed)).map(|event| &event.span).collect();
    seen.appends[0] += appends.len() as u64;
    seen.appends[1] += failed.len() as u64;
    seen.cuts += cuts.len() as u64;
    for (index, (span, number, place)) in appends.iter().enumerate() {
        for (other_span, other, taken) in &appends[..index] {
            let shared = place.start.max(taken.start)..place.end.min(taken.end);
            let (first, last) = (span.start.min(other_span.start), span.end.max(other_span.end));
            let cut = cuts.iter().any(|(cut, to)| *to < shared.end && cut.end > first && cut.start < last);
            if !shared.is_empty() && !cut {
                return Err(format!("appends {number} and {other} both have bytes {shared:?}"));
            }
        }
    }
    for event in &of_it {
        let Outcome::Read(offset, wanted, data) = &event.what else { continue };
        seen.reads += u64::from(!data.is_empty());
        let read = Shown { span: &event.span, offset: *offset, wanted: *wanted, data };
        read.judge(&appends, &cuts, &failed)?;
    }
    Ok(())
}

/// What a read showed.
struct Shown<'a> {
    span: &'a Range<u64>,
    offset: u64,
    wanted: u64,
    data: &'a [u8],
}

impl Shown<'_> {
    fn judge(
        &self,
        appends: &[(&Range<u64>, u64, &Range<u64>)],
        cuts: &[(&Range<u64>, u64)],
        failed: &[&Range<u64>],
    ) -> Result<(), String> {
        let end = self.offset + self.data.len() as u64;
        let mut explained = vec![false; self.data.len()];
        let mut perhaps = Vec::new();
        for (span, number, place) in appends {
            if span.start >= self.span.end {
                continue;
            }
            // Whether it may, or must, have been cut off before or while this was read.
            let may = |(cut, to): &&(&Range<u64>, u64)| {
                *to < place.end && cut.end > span.start && cut.start < self.span.end
            };
            let must = |(cut, to): &&(&Range<u64>, u64)| {
                *to <= place.start && cut.start >= span.end && cut.end <= self.span.start
            };
            if cuts.iter().any(|cut| must(&cut)) {
                continue;
            }
            let here = place.start.max(self.offset)..place.end.min(end);
            if span.end > self.span.start || cuts.iter().any(|cut| may(&cut)) {
                perhaps.push((*number, *place));
                continue;
            }
            if place.end > end
                && place.start < self.offset.saturating_add(self.wanted)
                && end < self.offset + self.wanted.min(1 << 40)
            {
                return Err(format!(
                    "append {number} at {place:?} was answered; a read from {} ended at {end}",
                    self.offset
                ));
            }
            for at in here {
                let index = (at - self.offset) as usize;
                if self.data[index] != stamp(*number, at - place.start) {
                    return Err(format!(
                        "append {number} at {place:?} was answered, and is not there at {at}"
                    ));
                }
                explained[index] = true;
            }
        }
        let holes = failed.iter().any(|span| span.start < self.span.end);
        for (index, byte) in self.data.iter().enumerate().filter(|(index, _)| !explained[*index]) {
            let at = self.offset + index as u64;
            let shown = perhaps
                .iter()
                .any(|(number, place)| place.contains(&at) && *byte == stamp(*number, at - place.start));
            if !shown && !holes {
                return Err(format!("a read shows {byte:#x} at {at}, which nobody appended"));
            }
        }
        Ok(())
    }
}
