//! Media that remember all that is done to them, and what a power cut at any moment may have left of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use driver::block::Geometry;
use driver::dice::Dice;
use driver::disk::{Disk, DiskError, DiskFault, MemoryDisk};
use driver::emu::{Media, MediaError, Segments};

use super::model::SECTOR;

const PAGE: usize = 4096;
type Page = Arc<[u8; PAGE]>;

/// What a device reads as where nobody wrote: what a former owner left.
const SOIL: u8 = 0xee;

/// The bytes of a device. A copy costs little: pages are shared until they are written.
#[derive(Clone)]
pub struct Image {
    pages: BTreeMap<u64, Page>,
    soil: Page,
    zero: Page,
}

impl Default for Image {
    fn default() -> Self {
        Self { pages: BTreeMap::new(), soil: Arc::new([SOIL; PAGE]), zero: Arc::new([0; PAGE]) }
    }
}

impl Image {
    /// Calls `each` with the page, where in it, and which part of the range, for each page of a range.
    fn pieces(offset: u64, bytes: usize, mut each: impl FnMut(u64, usize, std::ops::Range<usize>)) {
        let mut done = 0;
        while done < bytes {
            let at = offset + done as u64;
            let inside = (at % PAGE as u64) as usize;
            let take = (PAGE - inside).min(bytes - done);
            each(at / PAGE as u64, inside, done..done + take);
            done += take;
        }
    }

    /// Fills `into` from `offset`.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        Self::pieces(offset, into.len(), |page, at, part| {
            let from = self.pages.get(&page).unwrap_or(&self.soil);
            let bytes = part.len();
            into[part].copy_from_slice(&from[at..at + bytes]);
        });
    }

    /// Stores `from` at `offset`.
    pub fn write(&mut self, offset: u64, from: &[u8]) {
        Self::pieces(offset, from.len(), |page, at, part| {
            let to = Arc::make_mut(self.pages.entry(page).or_insert_with(|| self.soil.clone()));
            to[at..at + part.len()].copy_from_slice(&from[part]);
        });
    }

    /// Zeroes `bytes` from `offset`.
    pub fn zero(&mut self, offset: u64, bytes: u64) {
        Self::pieces(offset, bytes as usize, |page, at, part| {
            let to = self.pages.entry(page).or_insert_with(|| self.soil.clone());
            if part.len() == PAGE {
                *to = self.zero.clone();
            } else {
                Arc::make_mut(to)[at..at + part.len()].fill(0);
            }
        });
    }
}

/// What reached the device.
#[derive(Clone)]
pub enum Step {
    /// Bytes, durable at once if that was asked for.
    Write {
        /// Where.
        offset: u64,
        /// The bytes.
        data: Box<[u8]>,
        /// Whether it was.
        durable: bool,
    },
    /// Zeroes.
    Zero {
        /// Where.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// Everything before is durable.
    Flush,
    /// Nothing: who uses the device took note of when this was.
    Mark,
}

/// Media with a volatile cache that remember each step.
pub struct Recorder {
    bytes: u64,
    state: Mutex<(Image, Vec<Step>)>,
}

impl Recorder {
    /// So many bytes that are as `image` says.
    pub fn over(bytes: u64, image: Image) -> Self {
        Self { bytes, state: Mutex::new((image, Vec::new())) }
    }

    fn lock(&self) -> MutexGuard<'_, (Image, Vec<Step>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which step of the record is now: those of what was acknowledged before come before it, and those of what is asked for
    /// later behind it.
    pub fn mark(&self) -> usize {
        let steps = &mut self.lock().1;
        steps.push(Step::Mark);
        steps.len() - 1
    }

    /// The bytes now; the record begins here, with a mark.
    pub fn begin(&self) -> Image {
        let mut state = self.lock();
        state.1 = vec![Step::Mark];
        state.0.clone()
    }

    /// All steps.
    pub fn take(&self) -> Vec<Step> {
        std::mem::take(&mut self.lock().1)
    }
}

impl Media for Recorder {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn write_cache(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, into: &Segments<'_>) -> Result<(), MediaError> {
        let mut bytes = vec![0; into.len()];
        self.lock().0.read(offset, &mut bytes);
        into.write_at(0, &bytes);
        Ok(())
    }

    fn write(&self, offset: u64, from: &Segments<'_>, durable: bool) -> Result<(), MediaError> {
        let mut data = vec![0; from.len()].into_boxed_slice();
        from.read_at(0, &mut data);
        let mut state = self.lock();
        state.0.write(offset, &data);
        state.1.push(Step::Write { offset, data, durable });
        Ok(())
    }

    fn zero(&self, offset: u64, bytes: u64, _deallocate: bool) -> Result<(), MediaError> {
        let mut state = self.lock();
        state.0.zero(offset, bytes);
        state.1.push(Step::Zero { offset, bytes });
        Ok(())
    }

    fn flush(&self) -> Result<(), MediaError> {
        self.lock().1.push(Step::Flush);
        Ok(())
    }
}

/// What a cut left, as a disk for who looks at it. Copies share their bytes.
#[derive(Clone)]
pub struct Remains {
    geometry: Geometry,
    image: Arc<Mutex<Image>>,
}

impl Remains {
    /// A disk of so many bytes in blocks of 1 << `block_shift`, shaped as one in memory.
    pub fn new(bytes: u64, block_shift: u8, image: Image) -> Self {
        let geometry = *MemoryDisk::new(block_shift, bytes >> block_shift).geometry();
        Self { geometry, image: Arc::new(Mutex::new(image)) }
    }

    fn image(&self) -> MutexGuard<'_, Image> {
        self.image.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The offset of a range of blocks and its bytes.
    fn range(&self, what: &'static str, lba: u64, blocks: u64) -> Result<(u64, u64), DiskError> {
        match lba.checked_add(blocks) {
            Some(end) if end <= self.geometry.blocks => {
                Ok((lba << self.geometry.block_shift, blocks << self.geometry.block_shift))
            }
            _ => Err(DiskError { what, lba, cause: DiskFault::Bounds }),
        }
    }
}

impl Disk for Remains {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn read(&mut self, lba: u64, data: &mut [u8]) -> Result<(), DiskError> {
        let (offset, _) = self.range("read", lba, data.len() as u64 >> self.geometry.block_shift)?;
        self.image().read(offset, data);
        Ok(())
    }

    fn write(&mut self, lba: u64, data: &[u8]) -> Result<(), DiskError> {
        let (offset, _) = self.range("write", lba, data.len() as u64 >> self.geometry.block_shift)?;
        self.image().write(offset, data);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        Ok(())
    }

    fn write_zeroes(&mut self, lba: u64, blocks: u64) -> Result<(), DiskError> {
        let (offset, bytes) = self.range("write zeroes", lba, blocks)?;
        self.image().zero(offset, bytes);
        Ok(())
    }

    fn deallocate(&mut self, lba: u64, blocks: u64) -> Result<(), DiskError> {
        self.range("deallocate", lba, blocks).map(drop)
    }
}

/// What a block was made since the last flush; `None` is zero.
type Version = Option<Box<[u8]>>;

/// Of a block that is not flushed yet, what a cut keeps.
#[derive(Clone, Copy)]
enum Kept {
    /// What it was before.
    Old,
    /// What it was made last.
    Newest,
    /// Any of what it was.
    Any,
    /// Of each sector any of what it was.
    Torn,
}

/// Goes through the states that a power cut may leave.
pub struct Cuts {
    durable: Image,
    unflushed: BTreeMap<u64, Vec<Version>>,
    block: usize,
    dice: Dice,
    /// States that were looked at.
    pub states: u64,
    /// Flushes, and the end, before which they were.
    pub boundaries: u64,
    /// Boundaries of which all subsets were looked at.
    pub whole: u64,
}

impl Cuts {
    /// For a device with blocks of `block` bytes that is `durable` at first.
    pub fn new(durable: Image, block: usize, seed: u64) -> Self {
        let unflushed = BTreeMap::new();
        Self { durable, unflushed, block, dice: Dice(seed), states: 0, boundaries: 0, whole: 0 }
    }

    /// Calls `look` with how many steps were done and what was left of them, before each flush and at the end: all subsets
    /// of the blocks that were not flushed, up to six of them, and torn ones besides; else 32 of a seed.
    pub fn every(&mut self, log: &[Step], mut look: impl FnMut(usize, Image)) {
        for (position, step) in log.iter().enumerate() {
            if matches!(step, Step::Flush) {
                self.boundary(position, &mut look);
            }
            self.done(step);
        }
        self.boundary(log.len(), &mut look);
    }

    fn done(&mut self, step: &Step) {
        let block = self.block;
        match step {
            Step::Mark => {}
            Step::Flush => {
                for (number, mut versions) in std::mem::take(&mut self.unflushed) {
                    let newest = versions.pop().unwrap_or_default();
                    put(&mut self.durable, number, block, &newest);
                }
            }
            Step::Write { offset, data, durable: true } => {
                let first = offset / block as u64;
                let blocks = first..first + (data.len() / block) as u64;
                blocks.for_each(|number| drop(self.unflushed.remove(&number)));
                self.durable.write(*offset, data);
            }
            Step::Write { offset, data, durable: false } => {
                for (number, content) in (offset / block as u64..).zip(data.chunks(block)) {
                    self.unflushed.entry(number).or_default().push(Some(content.into()));
                }
            }
            Step::Zero { offset, bytes } => {
                let blocks = offset / block as u64..(offset + bytes) / block as u64;
                blocks.for_each(|number| self.unflushed.entry(number).or_default().push(None));
            }
        }
    }

    fn boundary(&mut self, position: usize, look: &mut impl FnMut(usize, Image)) {
        let count = self.unflushed.len();
        self.boundaries += 1;
        let mut cases: Vec<Vec<Kept>> = Vec::new();
        if count <= 6 {
            self.whole += 1;
            let kept =
                |subset: u32, bit: usize| if subset >> bit & 1 == 0 { Kept::Old } else { Kept::Newest };
            cases.extend((0..1u32 << count).map(|subset| (0..count).map(|bit| kept(subset, bit)).collect()));
            cases.extend((0..count.min(2)).map(|_| vec![Kept::Torn; count]));
        } else {
            cases.extend([vec![Kept::Newest; count], vec![Kept::Old; count]]);
            let all = [Kept::Old, Kept::Newest, Kept::Newest, Kept::Any, Kept::Torn];
            cases.extend((0..30).map(|_| (0..count).map(|_| self.dice.pick(&all)).collect()));
        }
        for case in cases {
            let image = self.left(&case);
            self.states += 1;
            look(position, image);
        }
    }

    fn left(&mut self, case: &[Kept]) -> Image {
        let mut image = self.durable.clone();
        for ((number, versions), kept) in self.unflushed.iter().zip(case) {
            match kept {
                Kept::Old => {}
                Kept::Newest => put(&mut image, *number, self.block, &versions[versions.len() - 1]),
                Kept::Any => put(&mut image, *number, self.block, &versions[self.dice.index(versions.len())]),
                Kept::Torn => {
                    for sector in 0..self.block / SECTOR {
                        let Some(version) = self.dice.index(versions.len() + 1).checked_sub(1) else {
                            continue;
                        };
                        let offset = *number * self.block as u64 + (sector * SECTOR) as u64;
                        match &versions[version] {
                            Some(data) => image.write(offset, &data[sector * SECTOR..][..SECTOR]),
                            None => image.zero(offset, SECTOR as u64),
                        }
                    }
                }
            }
        }
        image
    }
}

fn put(image: &mut Image, number: u64, block: usize, version: &Version) {
    let offset = number * block as u64;
    match version {
        Some(data) => image.write(offset, data),
        None => image.zero(offset, block as u64),
    }
}
