//! What may be on the device, by what was asked for and what was acknowledged.

use std::collections::BTreeMap;

use driver::dice::Dice;
use serde::{Deserialize, Serialize};

/// Bytes that a cut keeps or loses by themselves.
pub const SECTOR: usize = 512;
/// Sectors of the store's allocation unit.
pub const UNIT: u64 = (64 << 10) / SECTOR as u64;

/// A change of volumes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Change {
    /// A new volume, called `number` in what is written to it.
    Create {
        /// Its name.
        name: String,
        /// Its size.
        sectors: u64,
        /// Never used twice.
        number: u64,
    },
    /// Another size.
    Resize {
        /// Its name.
        name: String,
        /// The new size.
        sectors: u64,
    },
    /// Another name.
    Rename {
        /// The old one.
        from: String,
        /// The new one.
        to: String,
    },
    /// The end of a volume.
    Delete {
        /// Its name.
        name: String,
    },
    /// What a user may do with a volume.
    Access {
        /// Its name.
        name: String,
        /// Who.
        user: u32,
        /// The rights; 0 takes the entry away.
        bits: u8,
    },
}

/// A write of sectors, or of zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Write {
    /// Never used twice.
    pub serial: u64,
    /// The volume's number.
    pub volume: u64,
    /// The first sector.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// Whether it writes zeros.
    pub zero: bool,
    /// Whether it is durable when it is acknowledged.
    pub fua: bool,
}

/// What happens, in the order in which the application sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Event {
    /// The change will be asked for.
    Begin(Change),
    /// It was acknowledged.
    End,
    /// The write will be submitted.
    Submit(Write),
    /// The write of this serial number was acknowledged.
    Complete(u64),
    /// A flush of this number, for this volume, will be submitted.
    Flush(u64, u64),
    /// It was acknowledged.
    Flushed(u64),
    /// A key was given out, with this instance.
    Key(u32),
}

/// A content that a sector may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Record {
    /// 0: it was always zero.
    serial: u64,
    zero: bool,
    submitted: u64,
    completed: Option<u64>,
}

impl Record {
    const NEW: Self = Self { serial: 0, zero: true, submitted: 0, completed: Some(0) };

    /// Whether `later` certainly came after this.
    fn is_before(&self, later: &Self) -> bool {
        self.completed.is_some_and(|completed| completed < later.submitted)
    }
}

/// A sector of a volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Sector {
    /// One of these is durable, if none of the others is on the device.
    settled: Vec<Record>,
    /// May be there or not.
    open: Vec<Record>,
}

impl Sector {
    const fn new() -> Self {
        Self { settled: Vec::new(), open: Vec::new() }
    }

    /// The open records that `durable` chooses are durable now.
    fn settle(&mut self, durable: impl Fn(&Record) -> bool) {
        if self.settled.is_empty() {
            self.settled.push(Record::NEW);
        }
        let (now, open): (Vec<Record>, Vec<Record>) = self.open.iter().partition(|record| durable(record));
        self.settled.extend(now);
        let all = self.settled.clone();
        self.settled.retain(|record| !all.iter().any(|later| record.is_before(later)));
        self.open = open;
        self.open.retain(|record| !all.iter().any(|later| record.is_before(later)));
    }

    fn allows(&self, seen: Option<u64>) -> bool {
        let fits = |record: &Record| match seen {
            None => record.zero,
            Some(serial) => !record.zero && record.serial == serial,
        };
        self.settled.is_empty() && fits(&Record::NEW) || self.settled.iter().chain(&self.open).any(fits)
    }
}

/// A volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Held {
    /// What it is called in its content.
    pub number: u64,
    /// Its size.
    pub sectors: u64,
    /// Rights by user.
    pub access: BTreeMap<u32, u8>,
    /// What is not here was never written.
    content: BTreeMap<u64, Sector>,
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Model {
    clock: u64,
    /// The greatest serial number used, of writes and flushes.
    pub serial: u64,
    /// The greatest volume number used.
    pub number: u64,
    /// By name.
    pub volumes: BTreeMap<String, Held>,
    /// A change that was begun and not acknowledged.
    pub pending: Option<Change>,
    writes: BTreeMap<u64, Write>,
    flushes: BTreeMap<u64, (u64, u64)>,
    /// The greatest key instance that was given out.
    pub instance: u32,
    /// Writes that were acknowledged as durable.
    pub durable_writes: u64,
}

impl Model {
    /// Takes note.
    pub fn note(&mut self, event: &Event) {
        self.clock += 1;
        let now = self.clock;
        match *event {
            Event::Begin(ref change) => {
                assert_eq!(self.pending, None, "one change at a time");
                if let Change::Create { number, .. } = change {
                    self.number = self.number.max(*number);
                }
                self.pending = Some(change.clone());
            }
            Event::End => {
                let change = self.pending.take().expect("a change was begun");
                self.apply(&change);
            }
            Event::Submit(write) => {
                self.serial = self.serial.max(write.serial);
                let record =
                    Record { serial: write.serial, zero: write.zero, submitted: now, completed: None };
                self.sectors(&write, |sector| sector.open.push(record));
                self.writes.insert(write.serial, write);
            }
            Event::Complete(serial) => self.complete(serial, now),
            Event::Flush(id, volume) => {
                self.serial = self.serial.max(id);
                self.flushes.insert(id, (volume, now));
            }
            Event::Flushed(id) => {
                let (volume, submitted) = self.flushes.remove(&id).expect("a flush was submitted");
                let Some(held) = self.volumes.values_mut().find(|held| held.number == volume) else { return };
                for sector in held.content.values_mut().filter(|sector| !sector.open.is_empty()) {
                    let before = sector.open.len();
                    sector.settle(|record| record.completed.is_some_and(|completed| completed < submitted));
                    self.durable_writes += (before - sector.open.len()) as u64;
                }
            }
            Event::Key(instance) => self.instance = self.instance.max(instance),
        }
    }

    fn complete(&mut self, serial: u64, now: u64) {
        let write = self.writes.remove(&serial).expect("the write was submitted");
        self.sectors(&write, |sector| {
            for record in sector.open.iter_mut().filter(|record| record.serial == serial) {
                record.completed = Some(now);
            }
            if write.fua {
                sector.settle(|record| record.serial == serial);
            }
        });
        self.durable_writes += if write.fua { write.count } else { 0 };
    }

    fn sectors(&mut self, write: &Write, mut each: impl FnMut(&mut Sector)) {
        // Of a volume that is gone nobody will ask.
        if let Some(held) = self.volumes.values_mut().find(|held| held.number == write.volume) {
            for index in write.first..write.first + write.count {
                each(held.content.entry(index).or_insert(Sector::new()));
            }
        }
    }

    /// Does a change.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Create { name, sectors, number } => {
                let held = Held {
                    number: *number,
                    sectors: *sectors,
                    access: BTreeMap::new(),
                    content: BTreeMap::new(),
                };
                assert!(self.volumes.insert(name.clone(), held).is_none());
            }
            Change::Resize { name, sectors } => {
                let held = self.volumes.get_mut(name).expect("the volume is there");
                held.sectors = *sectors;
                held.content.retain(|index, _| index < sectors);
            }
            Change::Rename { from, to } => {
                let held = self.volumes.remove(from).expect("the volume is there");
                self.volumes.insert(to.clone(), held);
            }
            Change::Delete { name } => drop(self.volumes.remove(name).expect("the volume is there")),
            Change::Access { name, user, bits } => {
                let held = self.volumes.get_mut(name).expect("the volume is there");
                held.access.remove(user);
                if *bits != 0 {
                    held.access.insert(*user, *bits);
                }
            }
        }
    }

    /// The machine has started again: nothing is under way.
    pub fn settle(&mut self) {
        self.pending = None;
        self.writes.clear();
        self.flushes.clear();
    }
}

impl Held {
    /// Compares what `index` holds with what it may hold, and takes it for durable from here on.
    pub fn found(&mut self, index: u64, content: &[u8]) -> Result<(), String> {
        let seen = read_stamp(content, self.number, index)?;
        let sector = self.content.remove(&index).unwrap_or(Sector::new());
        if !sector.allows(seen) {
            let (number, seen) =
                (self.number, seen.map_or("zeros".to_owned(), |serial| format!("write {serial}")));
            return Err(format!("sector {index} of volume {number} holds {seen}, and may hold {sector:?}"));
        }
        if let Some(serial) = seen {
            let record = Record { serial, zero: false, submitted: 0, completed: Some(0) };
            self.content.insert(index, Sector { settled: vec![record], open: Vec::new() });
        }
        Ok(())
    }
}

/// What write `serial` puts into sector `index` of a volume: it tells all of that, and nothing else looks like it.
pub fn stamp(volume: u64, index: u64, serial: u64) -> [u8; SECTOR] {
    let mut content = [0; SECTOR];
    let mut dice = Dice(volume.rotate_left(40) ^ index.rotate_left(20) ^ serial);
    for (number, word) in content.chunks_exact_mut(8).enumerate() {
        let value = match number {
            0 => volume,
            1 => index,
            2 => serial,
            _ => dice.number() | 1,
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
    content
}

/// The serial number of the write that left this; none for zeros.
fn read_stamp(content: &[u8], volume: u64, index: u64) -> Result<Option<u64>, String> {
    if content.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let word = |number: usize| u64::from_le_bytes(content[number * 8..][..8].try_into().unwrap());
    let serial = word(2);
    if *content == stamp(volume, index, serial) {
        return Ok(Some(serial));
    }
    Err(format!(
        "sector {index} of volume {volume} holds what nobody wrote to it: volume {}, sector {}, write {serial}, and then {:02x?}",
        word(0),
        word(1),
        &content[24..40]
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Model {
        let mut model = Model::default();
        model.note(&Event::Begin(Change::Create { name: "v".into(), sectors: UNIT, number: 7 }));
        model.note(&Event::End);
        model
    }

    fn submit(model: &mut Model, serial: u64, fua: bool) {
        model.note(&Event::Submit(Write { serial, volume: 7, first: 0, count: 1, zero: false, fua }));
    }

    fn allowed(model: &Model) -> Vec<u64> {
        let held = model.volumes.get("v").unwrap();
        let may = |serial: u64| {
            let content = if serial == 0 { [0; SECTOR] } else { stamp(7, 0, serial) };
            held.clone().found(0, &content).is_ok()
        };
        (0..10).filter(|serial| may(*serial)).collect()
    }

    #[test]
    fn only_a_flush_after_the_completion_makes_durable() {
        let mut model = model();
        submit(&mut model, 1, false);
        model.note(&Event::Flush(5, 7));
        model.note(&Event::Complete(1));
        model.note(&Event::Flushed(5));
        assert_eq!(allowed(&model), [0, 1]);
        model.note(&Event::Flush(6, 7));
        submit(&mut model, 2, false);
        model.note(&Event::Flushed(6));
        assert_eq!(allowed(&model), [1, 2]);
    }

    #[test]
    fn of_writes_at_the_same_time_either_may_last() {
        let mut model = model();
        submit(&mut model, 1, false);
        submit(&mut model, 2, true);
        model.note(&Event::Complete(1));
        model.note(&Event::Complete(2));
        assert_eq!(allowed(&model), [1, 2]);
        submit(&mut model, 3, true);
        model.note(&Event::Complete(3));
        assert_eq!(allowed(&model), [3]);
    }

    #[test]
    fn what_somebody_else_wrote_is_never_allowed() {
        let mut held = model().volumes.remove("v").unwrap();
        assert!(held.found(0, &stamp(6, 0, 1)).is_err());
        assert!(held.found(0, &stamp(7, 1, 1)).is_err());
        assert!(held.found(0, &[0xee; SECTOR]).is_err());
        assert!(held.found(0, &stamp(7, 0, 1)).is_err(), "never written");
        held.found(0, &[0; SECTOR]).unwrap();
    }
}
