//! What was done to the files of a volume, and when: each thing between two positions in the record of the device.
//!
//! What was acknowledged at a position had reached the device, or its cache, before it. From that follows what may be found
//! after a power cut, by the contract in docs/files.md.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::power::model::SECTOR;

/// From before it was asked for until after it was acknowledged.
pub(super) type Span = Range<usize>;

/// Bytes that files have blocks in.
pub(super) const UNIT: u64 = 4096;

/// What bytes were made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Content {
    /// What the write of this number puts at each offset.
    Stamp(u32),
    /// The same of an append, which put it at this offset: it did not know where it would be.
    Appended(u32, u64),
    /// Zero: the file was cut there.
    Zero,
}

impl Content {
    /// The byte at this offset of the file: never zero of a write.
    pub(super) fn byte(self, offset: u64) -> u8 {
        match self {
            Self::Zero => 0,
            Self::Appended(serial, at) => Self::Stamp(serial).byte(offset.wrapping_sub(at)),
            Self::Stamp(serial) => {
                let mixed = (u64::from(serial) << 32 ^ offset).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                1 + ((mixed >> 40) % 255) as u8
            }
        }
    }
}

/// Bytes of a file were written, or zeroed as the file was cut.
#[derive(Clone, Debug)]
pub(super) struct Put {
    /// When.
    pub(super) span: Span,
    /// Which bytes.
    pub(super) bytes: Range<u64>,
    /// What they were made.
    pub(super) content: Content,
    /// How often the file had been cut by then, this time included.
    pub(super) epoch: usize,
    /// With forced unit access.
    pub(super) fua: bool,
}

/// What was done to a file.
#[derive(Clone, Default, Debug)]
pub(super) struct FileHistory {
    /// In the order of their beginning.
    pub(super) puts: Vec<Put>,
    /// When it was made at least so long, and how often it had been cut by then.
    pub(super) ends: Vec<(Span, usize, u64)>,
    /// When it was cut, and to what length.
    pub(super) cuts: Vec<(Span, u64)>,
    /// When nobody had it open any more.
    pub(super) closes: Vec<Span>,
}

impl FileHistory {
    /// Its length at the beginning of an epoch.
    pub(super) fn base(&self, epoch: usize) -> u64 {
        epoch.checked_sub(1).map_or(0, |cut| self.cuts[cut].1)
    }

    /// The least length that it can have in an epoch, if what was acknowledged before `horizon` counts.
    pub(super) fn least(&self, epoch: usize, horizon: usize) -> u64 {
        let told = self.ends.iter().filter(|(span, its, _)| *its == epoch && span.end <= horizon);
        told.map(|(_, _, end)| *end).max().unwrap_or(0).max(self.base(epoch))
    }

    /// Whether a cut at `position` may leave this length.
    pub(super) fn may_be(&self, epoch: usize, position: usize, length: u64) -> bool {
        length == self.base(epoch)
            || self
                .ends
                .iter()
                .any(|(span, its, end)| (*its, *end) == (epoch, length) && span.start < position)
    }

    /// When it was closed last before `horizon`: from then on its length was known.
    pub(super) fn closed(&self, horizon: usize) -> usize {
        let closed = self.closes.iter().filter(|span| span.end <= horizon);
        closed.map(|span| span.start).max().unwrap_or(0)
    }

    /// Where, for who sees the file as of `epoch`, what was put in a later one is no more: those are other blocks.
    pub(super) fn limit(&self, epoch: usize, later: usize) -> u64 {
        let cuts = self.cuts.iter().take(later).skip(epoch);
        cuts.map(|(_, length)| length.next_multiple_of(UNIT)).min().unwrap_or(u64::MAX)
    }
}

/// What a name names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    /// The number of the file or directory.
    pub(super) number: u64,
    /// Nine bits.
    pub(super) mode: u16,
    /// Of a directory.
    pub(super) directory: bool,
    /// How often it was cut.
    pub(super) epoch: usize,
}

/// All names.
pub(super) type Names = BTreeMap<String, Entry>;

/// Names, and when they became so.
#[derive(Clone, Debug)]
pub(super) struct Moment {
    /// When.
    pub(super) span: Span,
    /// By what.
    pub(super) by: String,
    /// And how they are.
    pub(super) names: Names,
}

/// All that was done.
#[derive(Default, Debug)]
pub(super) struct History {
    /// In order.
    pub(super) moments: Vec<Moment>,
    /// In order.
    pub(super) syncs: Vec<Span>,
    /// By their numbers.
    pub(super) files: BTreeMap<u64, FileHistory>,
    /// How many operations.
    pub(super) operations: u64,
}

impl History {
    /// What was acknowledged before this position is durable after a cut at `position`.
    pub(super) fn horizon(&self, position: usize) -> usize {
        let synced = self.syncs.iter().filter(|span| span.end <= position);
        synced.map(|span| span.start).max().unwrap_or(0)
    }
}

/// What of a file is settled, and what may be or not, by sectors.
#[derive(Default)]
pub(super) struct Settled {
    bytes: Vec<u8>,
    /// Indices of what was put, in the order of their beginning.
    pending: BTreeMap<u64, Vec<usize>>,
}

/// For whom a sector is looked at.
pub(super) struct View<'a> {
    /// The file's history.
    pub(super) file: &'a FileHistory,
    /// How often it was cut, as its names say.
    pub(super) epoch: usize,
    /// Where the power went.
    pub(super) position: usize,
    /// What was acknowledged before this is there.
    pub(super) horizon: usize,
    /// Up to here a write with forced unit access is there once it was acknowledged.
    pub(super) reached: u64,
}

impl Settled {
    /// Of all that was put.
    pub(super) fn new(file: &FileHistory) -> Self {
        let mut pending = BTreeMap::<u64, Vec<usize>>::new();
        let longest =
            file.puts.iter().filter(|put| put.content != Content::Zero).map(|put| put.bytes.end).max();
        for (index, put) in file.puts.iter().enumerate() {
            let end = put.bytes.end.min(longest.unwrap_or(0));
            let sectors = put.bytes.start / SECTOR as u64..end.div_ceil(SECTOR as u64);
            sectors.for_each(|sector| pending.entry(sector).or_default().push(index));
        }
        Self { bytes: Vec::new(), pending }
    }

    /// What was acknowledged before `horizon` is there from now on.
    pub(super) fn settle(&mut self, file: &FileHistory, horizon: usize) {
        for (sector, pending) in &mut self.pending {
            let first = sector * SECTOR as u64;
            let place = first as usize..first as usize + SECTOR;
            pending.retain(|index| {
                let put = &file.puts[*index];
                let open = put.span.end > horizon;
                if !open {
                    if self.bytes.len() < place.end {
                        self.bytes.resize(place.end, 0);
                    }
                    apply(put, first, &mut self.bytes[place.clone()]);
                }
                open
            });
        }
    }

    /// An error unless `found` is what the sector may be.
    pub(super) fn check(&self, view: &View<'_>, sector: u64, found: &[u8]) -> Result<(), String> {
        let first = sector * SECTOR as u64;
        let mut base = [0; SECTOR];
        if let Some(known) = self.bytes.get(first as usize..) {
            let known = &known[..known.len().min(SECTOR)];
            base[..known.len()].copy_from_slice(known);
        }
        let all = self.pending.get(&sector).map_or(&[][..], Vec::as_slice);
        let mut puts: Vec<(&Put, bool)> = Vec::new();
        for put in all.iter().map(|index| &view.file.puts[*index]) {
            let limit =
                if put.epoch > view.epoch { view.file.limit(view.epoch, put.epoch) } else { u64::MAX };
            if put.span.start < view.position && first < limit {
                puts.push((put, view.is_certain(put)));
            }
        }
        let matches = |chosen: u128| {
            let mut bytes = base;
            let chosen = puts.iter().enumerate().filter(|(index, _)| chosen >> index & 1 == 1);
            chosen.for_each(|(_, (put, _))| apply(put, first, &mut bytes));
            bytes[..found.len()] == *found
        };
        if search(&puts, matches) {
            return Ok(());
        }
        let line = |(put, certain): &(&Put, bool)| {
            let Put { span, bytes, content, epoch, fua } = put;
            let sure = if *certain { "certainly" } else { "perhaps" };
            format!("{sure} {content:?} at {bytes:?} in {span:?}, epoch {epoch}, fua {fua}")
        };
        let puts: Vec<String> = puts.iter().map(line).collect();
        let wrong = (0..found.len()).find(|at| found[*at] != base[*at]);
        Err(format!(
            "sector {sector} is no mixture in order of what it was, which is told from byte {wrong:?} on, and of {}; \
             found {:?}...",
            puts.join("; "),
            &found[..found.len().min(24)]
        ))
    }
}

impl View<'_> {
    fn is_certain(&self, put: &Put) -> bool {
        put.span.end <= self.horizon
            || put.content == Content::Zero && put.epoch <= self.epoch
            || put.fua
                && put.epoch == self.epoch
                && put.span.end <= self.position
                && put.bytes.end <= self.reached
    }
}

fn apply(put: &Put, first: u64, sector: &mut [u8]) {
    for (offset, byte) in (first..).zip(sector) {
        if put.bytes.contains(&offset) {
            *byte = put.content.byte(offset);
        }
    }
}

/// Whether some choice of what was put `matches`: with each its forerunners, which were over when it began, and all that is
/// certain. Who was under way at the same time as another may be in or not.
fn search(puts: &[(&Put, bool)], matches: impl Fn(u128) -> bool) -> bool {
    assert!(puts.len() <= 128, "{} writes of one sector between two syncs", puts.len());
    let before = |index: usize| {
        let begin = puts[index].0.span.start;
        let earlier = puts.iter().enumerate().filter(|(_, (put, _))| put.span.end <= begin);
        earlier.fold(0u128, |all, (other, _)| if other == index { all } else { all | 1 << other })
    };
    let forerunners: Vec<u128> = (0..puts.len()).map(before).collect();
    let certain = puts.iter().enumerate().filter(|(_, (_, certain))| *certain);
    let start = certain.fold(0, |all, (index, _)| all | 1 << index | forerunners[index]);
    let (mut seen, mut waiting) = (std::collections::BTreeSet::from([start]), vec![start]);
    while let Some(chosen) = waiting.pop() {
        if matches(chosen) {
            return true;
        }
        for (index, needed) in forerunners.iter().enumerate() {
            let next = chosen | 1 << index;
            if next != chosen && needed & !chosen == 0 && seen.insert(next) {
                waiting.push(next);
            }
        }
        assert!(seen.len() < 100_000, "too many writes of one sector at the same time");
    }
    false
}
