//! What several sessions do to the files of one volume. Requests for data of different sessions are under way at the same time;
//! what changes names or lengths is done by one after the other, while they are.

use std::collections::BTreeMap;

use adapter::Embedded;
use driver::dice::Dice;
use portcullis::wire::files::AttributeChange;
use portcullis::{Buffer, File, Files, MemoryAccess, OpenOptions, Queue, Request, Session};

use super::VOLUME;
use super::history::{Content, Entry, History, Moment, Names, Put, Span, UNIT};
use crate::power::PATIENCE;
use crate::power::record::Recorder;

/// Sessions, each with a queue of its own for data.
const SESSIONS: usize = 3;
/// Requests that a session has under way at most.
const DEPTH: usize = 3;
/// Bytes that a request writes at most.
const MOST: u64 = 10_000;
/// The length of a file at most, nearly.
const LENGTH: u64 = 40_000;
/// Names in each of two directories.
const NAMES: u64 = 5;

struct Client {
    files: Files,
    queue: Queue,
    buffers: Vec<Buffer>,
    open: BTreeMap<u64, File>,
    /// By their tags.
    under_way: BTreeMap<u64, Asked>,
    _session: Session,
}

/// A request that was not acknowledged.
#[derive(Clone)]
struct Asked {
    file: u64,
    begin: usize,
    /// Where; an append learns that at its end.
    offset: Option<u64>,
    length: u64,
    /// Which write of a file this is, as the history counts.
    put: usize,
}

/// A file as it is.
#[derive(Default)]
struct Live {
    length: u64,
    room: u64,
}

/// See the module.
pub(super) struct Workload<'a> {
    recorder: &'a Recorder,
    clients: Vec<Client>,
    live: BTreeMap<u64, Live>,
    names: Names,
    /// Sizes of what is done.
    block: u64,
    dice: Dice,
    serial: u32,
    /// What was done.
    pub(super) history: History,
}

impl<'a> Workload<'a> {
    /// Sessions at an adapter over what `recorder` records, in whose volume there is an empty file system.
    pub(super) fn new(adapter: &Embedded, recorder: &'a Recorder, block: u64, seed: u64) -> Self {
        let connect = || {
            let session = adapter.session().unwrap();
            let memory = session.register(DEPTH * 3 * UNIT as usize, MemoryAccess::Both).unwrap();
            Client {
                files: session.files().unwrap(),
                queue: session.queue(8).unwrap(),
                buffers: memory.buffers(3 * UNIT as usize, UNIT as usize).unwrap(),
                open: BTreeMap::new(),
                under_way: BTreeMap::new(),
                _session: session,
            }
        };
        let clients = (0..SESSIONS).map(|_| connect()).collect();
        let first = Moment { span: 0..0, by: "nothing".to_owned(), names: Names::new() };
        let history = History { moments: vec![first], ..History::default() };
        let (live, names, dice) = (BTreeMap::new(), Names::new(), Dice(seed));
        Self { recorder, clients, live, names, block, dice, serial: 0, history }
    }

    /// Does so many operations, and looks at the end that everything is as it should be.
    pub(super) fn run(&mut self, operations: u64) {
        while self.history.operations < operations {
            self.step();
        }
        self.drain(|_| true);
        self.look();
    }

    fn step(&mut self) {
        let client = self.dice.index(SESSIONS);
        match self.dice.below(100) {
            0..26 => self.write(client, true),
            26..58 => self.write(client, false),
            58..66 => self.reap(client),
            66..73 => self.create(client),
            73..78 => self.open(client),
            78..83 => self.close(client),
            83..86 => self.unlink(client),
            86..90 => self.rename(client),
            90..93 => self.set_length(client),
            93 => self.directory(client),
            94 => self.mode(client),
            95 => self.grow(client),
            _ => self.sync(client),
        }
    }

    fn place(&mut self) -> String {
        let directory = if self.dice.chance(30) && self.names.contains_key("/d") { "/d" } else { "" };
        format!("{directory}/{}", self.dice.below(NAMES))
    }

    /// A name that is in use, of a file.
    fn existing(&mut self) -> Option<(String, Entry)> {
        let mut all = self.names.iter().filter(|(_, entry)| !entry.directory);
        let count = all.clone().count();
        all.nth(self.dice.index(count)).map(|(name, entry)| (name.clone(), *entry))
    }

    /// A file that this client has open.
    fn held(&mut self, client: usize) -> Option<u64> {
        let open = &self.clients[client].open;
        open.keys().nth(self.dice.index(open.len())).copied()
    }

    /// Does what changes names, and takes note.
    fn rename_all(&mut self, by: String, work: impl FnOnce(&mut Self)) -> Span {
        let begin = self.recorder.mark();
        work(self);
        let span = begin..self.recorder.mark();
        self.history.operations += 1;
        self.history.moments.push(Moment { span: span.clone(), by, names: self.names.clone() });
        span
    }

    fn create(&mut self, client: usize) {
        let place = self.place();
        let before = self.names.get(&place).copied();
        if before.is_some_and(|entry| entry.directory) || self.clients[client].open.len() > 5 {
            return;
        }
        if let Some(entry) = before {
            self.drain(|asked| asked.file == entry.number);
        }
        let mut number = 0;
        let span = self.rename_all(format!("create {place}"), |its| {
            let file = its.clients[client].files.create(format!("{VOLUME}:{place}")).unwrap();
            let info = file.refresh().unwrap();
            number = info.attributes.number;
            its.live.insert(number, Live { length: 0, room: info.room });
            its.clients[client].open.insert(number, file);
            let epoch = before.map_or(0, |entry| entry.epoch + 1);
            let mode = info.attributes.mode;
            its.names.insert(place, Entry { number, mode, directory: false, epoch });
        });
        if before.is_some() {
            assert_eq!(before.map(|entry| entry.number), Some(number), "it was there already");
            self.was_cut(number, span, 0);
        }
    }

    fn was_cut(&mut self, number: u64, span: Span, length: u64) {
        let file = self.history.files.entry(number).or_default();
        file.cuts.push((span.clone(), length));
        let epoch = file.cuts.len();
        file.puts.push(Put { span, bytes: length..u64::MAX, content: Content::Zero, epoch, fua: false });
    }

    fn open(&mut self, client: usize) {
        let Some((place, Entry { number, .. })) = self.existing() else { return };
        if self.clients[client].open.contains_key(&number) {
            return;
        }
        let how = OpenOptions::new().read(true).write(true);
        let file = how.open(&self.clients[client].files, format!("{VOLUME}:{place}")).unwrap();
        let info = file.refresh().unwrap();
        assert_eq!(info.attributes.number, number);
        self.live.entry(number).or_default().room = info.room;
        self.clients[client].open.insert(number, file);
        self.history.operations += 1;
    }

    fn close(&mut self, client: usize) {
        let Some(number) = self.held(client) else { return };
        self.drain(|asked| asked.file == number);
        let begin = self.recorder.mark();
        self.clients[client].open.remove(&number).expect("it is held").close().unwrap();
        let span = begin..self.recorder.mark();
        if self.clients.iter().all(|client| !client.open.contains_key(&number)) {
            self.history.files.entry(number).or_default().closes.push(span);
        }
        self.history.operations += 1;
    }

    fn unlink(&mut self, client: usize) {
        let Some((place, _)) = self.existing() else { return };
        self.rename_all(format!("unlink {place}"), |its| {
            its.clients[client].files.remove_file(format!("{VOLUME}:{place}")).unwrap();
            its.names.remove(&place);
        });
    }

    fn rename(&mut self, client: usize) {
        let Some((from, entry)) = self.existing() else { return };
        let to = self.place();
        if self.names.get(&to).is_some_and(|entry| entry.directory) {
            return;
        }
        self.rename_all(format!("rename {from} to {to}"), |its| {
            let [old, new] = [&from, &to].map(|place| format!("{VOLUME}:{place}"));
            its.clients[client].files.rename(old, new).unwrap();
            its.names.remove(&from);
            its.names.insert(to, entry);
        });
    }

    fn directory(&mut self, client: usize) {
        let (place, files) = (format!("{VOLUME}:/d"), self.clients[client].files.clone());
        if !self.names.contains_key("/d") {
            self.rename_all("make /d".to_owned(), |its| {
                files.create_dir(&place).unwrap();
                let number = files.metadata(&place).unwrap().number;
                its.names.insert("/d".to_owned(), Entry { number, mode: 0o755, directory: true, epoch: 0 });
            });
        } else if !self.names.keys().any(|name| name.starts_with("/d/")) {
            self.rename_all("remove /d".to_owned(), |its| {
                files.remove_dir(&place).unwrap();
                its.names.remove("/d");
            });
        }
    }

    fn mode(&mut self, client: usize) {
        let Some((place, _)) = self.existing() else { return };
        let mode = 0o600 + self.dice.below(0o100) as u16;
        self.rename_all(format!("mode of {place}"), |its| {
            let change = AttributeChange { mode: Some(mode), ..AttributeChange::default() };
            its.clients[client].files.set_attributes(format!("{VOLUME}:{place}"), change).unwrap();
            its.names.get_mut(&place).expect("it exists").mode = mode;
        });
    }

    fn set_length(&mut self, client: usize) {
        let Some(number) = self.held(client) else { return };
        self.drain(|asked| asked.file == number);
        let old = self.live[&number].length;
        let new = if self.dice.chance(60) { self.dice.below(old + 1) } else { self.dice.below(LENGTH) };
        let by = format!("length {new} of {number}");
        let mut room = 0;
        let span = self.rename_all(by, |its| {
            let file = &its.clients[client].open[&number];
            file.set_len(new).unwrap();
            room = file.refresh().unwrap().room;
            if new < old {
                its.names
                    .values_mut()
                    .filter(|entry| entry.number == number)
                    .for_each(|entry| entry.epoch += 1);
            }
        });
        self.live.insert(number, Live { length: new, room });
        if new < old {
            self.was_cut(number, span, new);
        } else {
            self.ends_at(number, span, new);
        }
    }

    fn ends_at(&mut self, number: u64, span: Span, end: u64) {
        let file = self.history.files.entry(number).or_default();
        file.ends.push((span, file.cuts.len(), end));
    }

    fn grow(&mut self, client: usize) {
        let Some(number) = self.held(client) else { return };
        let bytes = self.live[&number].room + self.dice.below(3 * UNIT);
        let keep = self.dice.chance(30);
        self.make_room(client, number, bytes, keep);
        self.history.operations += 1;
    }

    fn make_room(&mut self, client: usize, number: u64, bytes: u64, keep: bool) {
        let file = &self.clients[client].open[&number];
        if keep { file.allocate(bytes) } else { file.make_room(bytes) }.unwrap();
        let room = file.refresh().unwrap().room;
        self.live.get_mut(&number).expect("it is open").room = room;
    }

    fn sync(&mut self, client: usize) {
        let (held, kind) = (self.held(client), self.dice.below(3));
        let begin = self.recorder.mark();
        let there = &self.clients[client];
        match (held, kind) {
            (Some(number), 1) => there.open[&number].sync_all(),
            (Some(number), 2) => there.open[&number].sync_data(),
            _ => there.files.sync(VOLUME),
        }
        .unwrap();
        self.history.syncs.push(begin..self.recorder.mark());
        self.history.operations += 1;
    }

    /// Requests under way for a file, and where the last byte of them will be at the most.
    fn reach(&self, number: u64) -> (bool, u64) {
        let all = self.clients.iter().flat_map(|client| client.under_way.values());
        let (mut appends, mut end, mut more) = (false, self.live[&number].length, 0);
        for asked in all.filter(|asked| asked.file == number) {
            match asked.offset {
                Some(offset) => end = end.max(offset + asked.length),
                None => (appends, more) = (true, more + asked.length),
            }
        }
        (appends, end + more)
    }

    fn write(&mut self, client: usize, append: bool) {
        let Some(number) = self.held(client) else { return self.open(client) };
        let there = &self.clients[client];
        if there.under_way.len() == DEPTH || there.buffers.is_empty() {
            return self.reap(client);
        }
        let (length, place, whole) = self.extent(number, append);
        let (appends, end) = self.reach(number);
        let known = self.live[&number].length;
        // Nobody writes a byte that somebody else is writing: which of them stays is nobody's to say.
        let conflict = match place {
            None => end > known && !appends,
            Some(offset) => {
                let ours = offset..offset + length;
                let mut all = self.clients.iter().flat_map(|client| client.under_way.values());
                appends && ours.end > known
                    || all.any(|asked| {
                        let its = asked.offset.unwrap_or(u64::MAX - asked.length);
                        asked.file == number && its < ours.end && ours.start < its + asked.length
                    })
            }
        };
        if conflict {
            self.drain(|asked| asked.file == number);
        }
        let end = place.map_or(self.reach(number).1, |offset| offset) + length;
        if end > self.live[&number].room {
            self.make_room(client, number, end + UNIT, false);
        }
        self.submit(client, number, (place, length, whole));
    }

    /// How many bytes, where, and whether these are whole blocks.
    fn extent(&mut self, number: u64, append: bool) -> (u64, Option<u64>, bool) {
        let known = self.live[&number].length;
        let length = if self.dice.chance(70) { 8 + self.dice.below(300) } else { 1 + self.dice.below(MOST) };
        if append && known < LENGTH {
            return (length, None, false);
        }
        if self.dice.chance(35) {
            let blocks = 1 + self.dice.below(3 * UNIT / self.block);
            let first = self.dice.below(known / self.block + 1);
            return (blocks * self.block, Some(first * self.block), true);
        }
        let beyond = if self.dice.chance(10) { 3000 } else { 1 };
        let offset = self.dice.below(known.min(LENGTH) + beyond);
        (length, Some(offset), false)
    }

    fn submit(&mut self, client: usize, number: u64, (place, length, whole): (Option<u64>, u64, bool)) {
        self.serial += 1;
        let serial = self.serial;
        let there = &mut self.clients[client];
        let mut buffer = there.buffers.pop().expect("there is one");
        let file = &there.open[&number];
        let content = Content::Stamp(serial);
        let fua = whole && self.dice.chance(40);
        // What an append writes is known only by where it lands: such a stamp has no offset.
        let offset = place.unwrap_or(0);
        for (at, byte) in (offset..).zip(&mut buffer[..length as usize]) {
            *byte = content.byte(at);
        }
        let mut request = match place {
            None => Request::append(file, buffer),
            Some(offset) if whole => Request::write(file, offset, buffer),
            Some(offset) => Request::write_bytes(file, offset, buffer),
        };
        if fua {
            request = request.fua();
        }
        let begin = self.recorder.mark();
        there
            .queue
            .prepare(request.length(length).tag(serial.into()))
            .map_err(|refused| refused.error)
            .unwrap();
        there.queue.ring().unwrap();
        let history = self.history.files.entry(number).or_default();
        let (epoch, put) = (history.cuts.len(), history.puts.len());
        let bytes = offset..offset + length;
        history.puts.push(Put { span: begin..usize::MAX, bytes, content, epoch, fua });
        there.under_way.insert(serial.into(), Asked { file: number, begin, offset: place, length, put });
        self.history.operations += 1;
    }

    /// Waits for one request.
    fn reap(&mut self, client: usize) {
        let there = &mut self.clients[client];
        if there.under_way.is_empty() {
            return;
        }
        let done = there.queue.wait(PATIENCE).unwrap().expect("an end in time");
        let end = self.recorder.mark();
        let asked = there.under_way.remove(&done.tag).expect("it was asked for");
        there.buffers.extend(done.buffer);
        done.result.unwrap();
        let file = self.history.files.get_mut(&asked.file).expect("it was written");
        let put = &mut file.puts[asked.put];
        put.span.end = end;
        if asked.offset.is_none() {
            (put.bytes, put.content) =
                (done.value..done.value + asked.length, appended(put.content, done.value));
        }
        let until = put.bytes.end;
        let live = self.live.get_mut(&asked.file).expect("it is open");
        if until > live.length || asked.offset.is_none() {
            live.length = live.length.max(until);
            self.ends_at(asked.file, asked.begin..end, until);
        }
    }

    /// Waits for all requests that are as `which` says, and perhaps for others.
    fn drain(&mut self, which: impl Fn(&Asked) -> bool) {
        for client in 0..SESSIONS {
            while self.clients[client].under_way.values().any(&which) {
                self.reap(client);
            }
        }
    }

    /// Everything is as it should be, nothing lost and nothing torn.
    fn look(&mut self) {
        let files = &self.clients[0].files;
        for (name, entry) in self.names.iter().filter(|(_, entry)| !entry.directory) {
            let file = files.open(format!("{VOLUME}:{name}")).unwrap();
            let mut expected = vec![0; self.live[&entry.number].length as usize];
            for put in self.history.files.get(&entry.number).map_or(&[][..], |file| &file.puts) {
                for (at, byte) in (0..).zip(&mut expected) {
                    if put.bytes.contains(&at) {
                        *byte = put.content.byte(at);
                    }
                }
            }
            let mut found = vec![0xee; expected.len() + 1];
            assert_eq!(file.read_at(&mut found, 0).unwrap(), expected.len(), "the length of {name}");
            found.truncate(expected.len());
            let wrong = found.iter().zip(&expected).position(|(found, expected)| found != expected);
            assert_eq!(wrong, None, "{name}");
        }
    }
}

/// What an append wrote, now that it is known where it is.
fn appended(content: Content, at: u64) -> Content {
    match content {
        Content::Stamp(serial) => Content::Appended(serial, at),
        other => other,
    }
}
