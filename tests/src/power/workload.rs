//! What applications do until the power goes.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write as _;

use adapter::Embedded;
use driver::dice::Dice;
use portcullis::{Access, Buffer, MemoryAccess, Queue, Request, Session, Subject, Volume};

use super::PATIENCE;
use super::model::{Change, Event, Model, SECTOR, UNIT, Write, stamp};

/// Sessions, each with a queue of its own.
const SESSIONS: usize = 3;
/// Requests that a session has under way at most.
const DEPTH: usize = 8;
/// Sectors that a request writes at most.
const MOST: u64 = 16;
/// Volumes at most, and the sectors that all of them have at most.
const VOLUMES: usize = 6;
const ROOM: u64 = 40 * UNIT;

/// The power is gone: nothing more is to be had.
#[derive(Debug)]
pub struct Off;

/// Whom the workload tells what it does before it does it.
pub trait Journal {
    /// Takes note; when it returns, the note outlives the machine.
    fn note(&mut self, event: &Event);
    /// Whether the power is gone, so that errors are no surprise.
    fn is_off(&self) -> bool;
}

/// A session with its queue and what it has open.
struct Client {
    session: Session,
    queue: Queue,
    buffers: Vec<Buffer>,
    open: BTreeMap<u64, Volume>,
    in_flight: usize,
}

/// See the module.
pub struct Workload<'a> {
    clients: Vec<Client>,
    model: &'a mut Model,
    journal: &'a mut dyn Journal,
    dice: Dice,
    /// Sectors of the device's block.
    block: u64,
    /// Writes that were acknowledged and not yet looked at: the tag says which event it is.
    flushes: VecDeque<u64>,
}

impl<'a> Workload<'a> {
    /// Sessions at `adapter`.
    pub fn new(
        adapter: &Embedded,
        model: &'a mut Model,
        journal: &'a mut dyn Journal,
        seed: u64,
    ) -> Result<Self, Off> {
        let mut clients = Vec::new();
        let mut instances = Vec::new();
        let mut block = 1;
        let connect = || -> Result<Client, portcullis::Error> {
            let session = adapter.session()?;
            let memory = session.register(DEPTH * MOST as usize * SECTOR, MemoryAccess::Both)?;
            let buffers = memory.buffers(MOST as usize * SECTOR, 4096)?;
            let queue = session.queue(2 * DEPTH as u32)?;
            Ok(Client { session, queue, buffers, open: BTreeMap::new(), in_flight: 0 })
        };
        for _ in 0..SESSIONS {
            match connect().and_then(|client| Ok((client.session.device_info()?.block_size, client))) {
                Ok((block_size, client)) => {
                    block = u64::from(block_size) / SECTOR as u64;
                    instances.extend(client.buffers.first().map(|buffer| (buffer.region() >> 32) as u32));
                    clients.push(client);
                }
                Err(_) if journal.is_off() => return Err(Off),
                Err(error) => panic!("a session at the start: {error}"),
            }
        }
        let mut new = Self { clients, model, journal, dice: Dice(seed), block, flushes: VecDeque::new() };
        instances.into_iter().for_each(|instance| new.note(&Event::Key(instance)));
        Ok(new)
    }

    fn note(&mut self, event: &Event) {
        self.journal.note(event);
        self.model.note(event);
    }

    /// An error is a surprise unless the power is gone.
    fn expect<T>(&self, what: &str, result: Result<T, portcullis::Error>) -> Result<T, Off> {
        match result {
            Ok(value) => Ok(value),
            Err(_) if self.journal.is_off() => Err(Off),
            Err(error) => panic!("{what}: {error}"),
        }
    }

    /// Does `steps` things; then, or when the power goes, takes note of all that was still acknowledged.
    pub fn run(&mut self, steps: u64) -> Result<(), Off> {
        for _ in 0..steps {
            if self.step().is_err() {
                for client in 0..SESSIONS {
                    self.drain(client)?;
                }
                return Err(Off);
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), Off> {
        let client = self.dice.index(SESSIONS);
        match self.dice.below(100) {
            _ if self.model.volumes.is_empty() => self.change(client),
            0..62 => self.write(client),
            62..76 => self.flush(client),
            76..90 => self.reap(client),
            _ => self.change(client),
        }
    }

    fn pick(&mut self) -> (String, u64, u64) {
        let index = self.dice.index(self.model.volumes.len());
        let (name, held) = self.model.volumes.iter().nth(index).expect("there is a volume");
        (name.clone(), held.number, held.sectors)
    }

    /// Opens a volume unless it is open.
    fn open(&mut self, client: usize, name: &str, number: u64) -> Result<(), Off> {
        if !self.clients[client].open.contains_key(&number) {
            let opened = self.clients[client].session.open(name, Access::ALL);
            let volume = self.expect("opening a volume", opened)?;
            self.note(&Event::Key((volume.key() >> 32) as u32));
            self.clients[client].open.insert(number, volume);
        }
        Ok(())
    }

    fn write(&mut self, client: usize) -> Result<(), Off> {
        let (name, volume, sectors) = self.pick();
        self.open(client, &name, volume)?;
        let blocks = 1 + self.dice.below(MOST / self.block);
        let count = blocks * self.block;
        // Mostly where somebody else writes, too.
        let area = if self.dice.chance(70) { 4 * MOST } else { sectors };
        let first = self.dice.below((area - count) / self.block + 1) * self.block;
        let zero = self.dice.chance(8);
        let fua = !zero && self.dice.chance(20); // there are no zeros with FUA
        let Some(mut buffer) = self.buffer(client)? else { return Ok(()) };
        let serial = self.model.serial + 1;
        let write = Write { serial, volume, first, count, zero, fua };
        let (offset, length) = (first * SECTOR as u64, count * SECTOR as u64);
        let there = &mut self.clients[client];
        let open = &there.open[&volume];
        let mut request = if zero {
            there.buffers.push(buffer);
            Request::write_zeroes(open, offset, length)
        } else {
            for (index, sector) in (first..).zip(buffer[..length as usize].chunks_exact_mut(SECTOR)) {
                sector.copy_from_slice(&stamp(volume, index, serial));
            }
            Request::write(open, offset, buffer).length(length)
        };
        if fua {
            request = request.fua();
        }
        self.note(&Event::Submit(write));
        self.submit(client, request.tag(serial))
    }

    fn flush(&mut self, client: usize) -> Result<(), Off> {
        let (name, volume, _) = self.pick();
        self.open(client, &name, volume)?;
        let Some(buffer) = self.buffer(client)? else { return Ok(()) };
        self.clients[client].buffers.push(buffer);
        let id = self.model.serial + 1;
        let request = Request::flush(&self.clients[client].open[&volume]).tag(id);
        self.note(&Event::Flush(id, volume));
        self.flushes.push_back(id);
        self.submit(client, request)
    }

    /// A buffer, and with it room for a request.
    fn buffer(&mut self, client: usize) -> Result<Option<Buffer>, Off> {
        if self.clients[client].in_flight >= DEPTH || self.clients[client].buffers.is_empty() {
            self.reap(client)?;
        }
        let there = &mut self.clients[client];
        Ok(if there.in_flight < DEPTH { there.buffers.pop() } else { None })
    }

    fn submit(&mut self, client: usize, request: Request) -> Result<(), Off> {
        let there = &mut self.clients[client];
        let submitted = there.queue.prepare(request).map_err(|refused| refused.error).map(drop);
        there.in_flight += 1;
        let submitted = submitted.and_then(|()| self.clients[client].queue.ring());
        self.expect("submitting", submitted)
    }

    /// Waits for one request.
    fn reap(&mut self, client: usize) -> Result<(), Off> {
        if self.clients[client].in_flight == 0 {
            return Ok(());
        }
        let waited = self.clients[client].queue.wait(PATIENCE);
        let done = self.expect("waiting", waited)?.expect("an end in time");
        self.clients[client].in_flight -= 1;
        self.clients[client].buffers.extend(done.buffer);
        self.expect("a request", done.result)?;
        let flush = self.flushes.iter().position(|id| *id == done.tag);
        let event = flush.map_or(Event::Complete(done.tag), |at| {
            self.flushes.remove(at);
            Event::Flushed(done.tag)
        });
        self.note(&event);
        Ok(())
    }

    /// Waits for all requests of a session. Those that fail because the power is gone are over, too.
    fn drain(&mut self, client: usize) -> Result<(), Off> {
        while self.clients[client].in_flight > 0 {
            let before = self.clients[client].in_flight;
            if self.reap(client).is_err() && self.clients[client].in_flight == before {
                return Err(Off);
            }
        }
        Ok(())
    }

    /// Waits until nobody writes to the volume of this number.
    fn quiet(&mut self, number: u64) -> Result<(), Off> {
        for client in 0..SESSIONS {
            while self.clients[client].open.contains_key(&number) && self.clients[client].in_flight > 0 {
                self.reap(client)?;
            }
        }
        Ok(())
    }

    fn change(&mut self, client: usize) -> Result<(), Off> {
        let used: u64 = self.model.volumes.values().map(|held| held.sectors).sum();
        let number = self.model.number + 1;
        let kind = self.dice.below(10);
        if self.model.volumes.is_empty() || kind < 3 && self.model.volumes.len() < VOLUMES {
            let sectors = (1 + self.dice.below(6)) * UNIT;
            if used + sectors > ROOM {
                return Ok(());
            }
            let name = format!("volume {number}");
            self.make(client, &Change::Create { name: name.clone(), sectors, number })?;
            return self.look_at_new(client, &name, number, sectors);
        }
        let (name, volume, sectors) = self.pick();
        let change = match kind {
            0..5 => {
                let larger = sectors + (1 + self.dice.below(4)) * UNIT;
                let smaller = (sectors / UNIT).saturating_sub(self.dice.below(3)).max(1) * UNIT;
                let new =
                    if self.dice.chance(60) && used + larger - sectors <= ROOM { larger } else { smaller };
                if new < sectors {
                    self.quiet(volume)?;
                }
                Change::Resize { name, sectors: new }
            }
            5 => Change::Rename { from: name, to: format!("renamed {}", self.dice.number()) },
            6..8 => {
                let (user, bits) = (3000 + self.dice.below(4) as u32, self.dice.below(8) as u8);
                Change::Access { name, user, bits }
            }
            _ => {
                self.quiet(volume)?;
                for client in &mut self.clients {
                    client.open.remove(&volume);
                }
                Change::Delete { name }
            }
        };
        self.make(client, &change)
    }

    fn make(&mut self, client: usize, change: &Change) -> Result<(), Off> {
        self.note(&Event::Begin(change.clone()));
        let session = &self.clients[client].session;
        let bytes = |sectors: u64| sectors * SECTOR as u64;
        let made = match change {
            Change::Create { name, sectors, .. } => session.create_volume(name, bytes(*sectors)).map(drop),
            Change::Resize { name, sectors } => session.resize_volume(name, bytes(*sectors)).map(drop),
            Change::Rename { from, to } => session.rename_volume(from, to),
            Change::Delete { name } => session.delete_volume(name).map(drop),
            Change::Access { name, user, bits } => session
                .set_access(name, Subject::User(*user), Access::from_bits(*bits).expect("three bits"))
                .map(drop),
        };
        self.expect(&format!("{change:?}"), made)?;
        self.note(&Event::End);
        Ok(())
    }

    /// A new volume reads as zero before anybody wrote to it, whoever had its blocks before.
    fn look_at_new(&mut self, client: usize, name: &str, number: u64, sectors: u64) -> Result<(), Off> {
        self.open(client, name, number)?;
        self.drain(client)?;
        let mut content = vec![0xee; sectors as usize * SECTOR];
        let there = &mut self.clients[client];
        let read = there.queue.read_at(&there.open[&number], 0, &mut content);
        self.expect("reading a new volume", read)?;
        let dirty = content.iter().position(|byte| *byte != 0);
        assert_eq!(dirty, None, "a new volume shows what a former owner wrote");
        Ok(())
    }
}

/// A journal of lines in a file, one JSON object each.
pub struct Lines(pub std::fs::File);

impl Journal for Lines {
    fn note(&mut self, event: &Event) {
        let mut line = serde_json::to_string(event).expect("an event is text");
        line.push('\n');
        self.0.write_all(line.as_bytes()).expect("the journal takes a line");
    }

    fn is_off(&self) -> bool {
        false
    }
}
