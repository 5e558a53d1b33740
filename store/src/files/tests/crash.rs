//! The power goes at every write and before every flush.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use driver::block::Geometry;
use driver::disk::{Dice, DiskError};

use super::*;

/// What reached the disk, in order.
#[derive(Clone)]
pub(super) enum Step {
    Write(u64, Vec<u8>),
    Flush,
}

/// A disk that remembers all that is done to it.
#[derive(Clone)]
pub(super) struct Recorder {
    pub(super) disk: MemoryDisk,
    pub(super) log: Arc<Mutex<Vec<Step>>>,
}

impl Recorder {
    fn log(&self, step: Step) {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push(step);
    }

    fn steps(&self) -> usize {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Disk for Recorder {
    fn geometry(&self) -> &Geometry {
        self.disk.geometry()
    }
    fn read(&mut self, lba: u64, data: &mut [u8]) -> Result<(), DiskError> {
        self.disk.read(lba, data)
    }
    fn write(&mut self, lba: u64, data: &[u8]) -> Result<(), DiskError> {
        self.log(Step::Write(lba, data.to_vec()));
        self.disk.write(lba, data)
    }
    fn flush(&mut self) -> Result<(), DiskError> {
        self.log(Step::Flush);
        self.disk.flush()
    }
    fn write_zeroes(&mut self, lba: u64, blocks: u64) -> Result<(), DiskError> {
        let bytes = usize::try_from(blocks << self.geometry().block_shift).unwrap();
        self.write(lba, &vec![0; bytes])
    }
    fn deallocate(&mut self, lba: u64, blocks: u64) -> Result<(), DiskError> {
        self.disk.deallocate(lba, blocks)
    }
}

pub(super) type Tree = BTreeMap<Vec<u8>, Attributes>;

/// Everything that has a name, with the blocks that it has when nobody has it open.
pub(super) fn tree(files: &mut FileSystem) -> Tree {
    let mut tree = Tree::new();
    let mut directories = vec![Vec::new()];
    while let Some(directory) = directories.pop() {
        tree.insert(directory.clone(), files.stat(&ROOT, &directory).unwrap());
        for entry in files.list(&ROOT, &directory, b"", 4096).unwrap() {
            let path = [&directory[..], b"/", &entry.name].concat();
            if entry.attributes.permissions.is_directory() {
                directories.push(path);
            } else {
                let its = entry.attributes;
                let allocated = its.length.next_multiple_of(UNIT).max(its.reserved);
                tree.insert(path, Attributes { allocated, ..its });
            }
        }
    }
    tree
}

/// What the owner of a file writes into it, always.
fn tag(inode: InodeNumber) -> u8 {
    u8::try_from(inode.0 % 200).unwrap() + 1
}

/// An operation that was done.
struct Done {
    /// Steps of the disk before and after it.
    steps: std::ops::Range<usize>,
    after: Tree,
    synced: bool,
    /// Files that may have lost bytes by it.
    truncated: Vec<InodeNumber>,
}

struct Workload {
    recorder: Recorder,
    files: FileSystem,
    dice: Dice,
    open: Vec<InodeNumber>,
    done: Vec<Done>,
    /// Operations that did not fail.
    effective: u32,
}

impl Workload {
    fn number(&mut self, below: u64) -> u64 {
        self.dice.number() % below
    }

    fn path(&mut self) -> Vec<u8> {
        // Few names, so that most are in use.
        let directory = ["", "/d"][usize::from(self.number(3) == 0)];
        format!("{directory}/{}", ["d", "e", "f", "g"][usize::try_from(self.number(4)).unwrap()]).into_bytes()
    }

    /// A path that is in use, mostly.
    fn existing(&mut self) -> Vec<u8> {
        let at = self.dice.number();
        let Some(done) = self.done.last().filter(|done| done.after.len() > 1) else { return self.path() };
        let paths: Vec<&Vec<u8>> = done.after.keys().filter(|path| !path.is_empty()).collect();
        paths[usize::try_from(at % paths.len() as u64).unwrap()].clone()
    }

    /// Makes a file longer and writes all of it, as the engine would.
    fn write(&mut self, inode: InodeNumber) -> Result<(), FileError> {
        let old = self.files.attributes(inode)?;
        let length = old.length + self.number(5 * UNIT);
        self.files.grow(inode, length)?;
        let (shift, mut at) = (self.recorder.geometry().block_shift, 0);
        for extent in self.files.extents(inode, 0, usize::MAX)? {
            let bytes = extent.blocks.count.0 << shift;
            let mut data = vec![tag(inode); usize::try_from(bytes).unwrap()];
            // Behind the end it stays zero.
            let end = usize::try_from(length.saturating_sub(at).min(bytes)).unwrap();
            data[end..].fill(0);
            self.recorder.write(extent.blocks.first.0, &data).unwrap();
            at += bytes;
        }
        let now = self.files.now();
        self.files.report(inode, length, Some(now))
    }

    fn create(&mut self) -> Result<Vec<InodeNumber>, FileError> {
        let path = self.path();
        let how = How { truncate: self.number(4) == 0, ..How::create(0o640) };
        let opened = self.files.open_file(&ROOT, &path, how)?;
        if let Some(plan) = &opened.truncation {
            self.files.drained(plan)?;
        }
        if self.number(4) == 0 {
            // Only room, which stays zero.
            let allocated = self.files.attributes(opened.inode)?.allocated;
            let room = allocated + 1 + self.number(6 * UNIT);
            if self.number(2) == 0 {
                self.files.grow(opened.inode, room)?;
            } else {
                self.files.reserve(opened.inode, room)?;
            }
        } else {
            self.write(opened.inode)?;
        }
        if self.open.len() < 4 && self.number(3) == 0 {
            self.open.push(opened.inode);
        } else {
            self.files.release(opened.inode)?;
        }
        Ok(if how.truncate { vec![opened.inode] } else { Vec::new() })
    }

    fn operation(&mut self) -> Result<Vec<InodeNumber>, FileError> {
        let path = self.existing();
        match self.number(24) {
            0..=7 => return self.create(),
            8..=11 => self.files.unlink(&ROOT, &path)?,
            12 | 13 => {
                let to = self.path();
                self.files.rename(&ROOT, &path, &to, true)?;
            }
            14 => {
                let path = self.path();
                self.files.make_directory(&ROOT, &path, 0o750)?;
            }
            15 => self.files.remove_directory(&ROOT, &path)?,
            16 | 17 => {
                let found = self.files.stat(&ROOT, &path)?;
                let length = self.number(found.length + 1);
                let plan = self.files.truncate(found.inode, length)?;
                self.files.drained(&plan)?;
                return Ok(vec![found.inode]);
            }
            18 => {
                let inode = self.files.resolve(&ROOT, &path)?;
                let uid = u32::try_from(self.number(3)).unwrap();
                let changes = Changes { mode: Some(0o750), uid: Some(uid), ..Changes::default() };
                self.files.set_attributes(&ROOT, inode, &changes)?;
            }
            19 | 20 => {
                if let Some(inode) = self.open.pop() {
                    self.files.release(inode)?;
                }
            }
            21 => drop(self.files.zero_some(2 * UNIT)?),
            _ => self.files.sync()?,
        }
        Ok(Vec::new())
    }

    /// Does an operation; most of those that make no sense fail, and that is part of it.
    fn step(&mut self) {
        let before = self.recorder.steps();
        let result = self.operation();
        if let Err(FileError::Store(error)) = &result {
            panic!("{error}");
        }
        self.effective += u32::from(result.is_ok());
        let steps = before..self.recorder.steps();
        let synced = self.files.metadata.is_clean();
        let done =
            Done { steps, after: tree(&mut self.files), synced, truncated: result.unwrap_or_default() };
        self.done.push(done);
    }
}

/// Looks at what a power cut after `steps` steps left.
fn survivor(disk: &MemoryDisk, steps: usize, done: &[Done]) {
    let over = done.iter().take_while(|done| done.steps.end <= steps).count();
    let synced = done[..over].iter().rposition(|done| done.synced).unwrap();
    let mut files = open(disk).unwrap_or_else(|error| panic!("after step {steps}: {error}"));
    assert_eq!(files.check().unwrap(), [], "after step {steps}");
    let found = tree(&mut files);
    let was = done[synced..over].iter().any(|done| done.after == found);
    assert!(was, "after step {steps}: {found:?} was never so");
    let under_way = done.get(over).map_or(&[][..], |done| &done.truncated);
    for (path, attributes) in &found {
        let (inode, tag) = (attributes.inode, tag(attributes.inode));
        if attributes.permissions.is_directory() {
            continue;
        }
        let content = content(&mut files, disk, inode);
        let name = String::from_utf8_lossy(path);
        assert_eq!(content.len() as u64, attributes.allocated, "step {steps}: the blocks of {name}");
        assert!(
            content.iter().all(|byte| [0, tag].contains(byte)),
            "step {steps}: {name} has another's bytes"
        );
        // What was written before the last sync is there, unless it was cut off since.
        let cut = done[synced + 1..over].iter().flat_map(|done| &done.truncated).chain(under_way);
        let before = done[synced].after.values().find(|before| before.inode == inode);
        if let Some(before) = before.filter(|_| !cut.copied().any(|cut| cut == inode)) {
            let length = usize::try_from(before.length.min(attributes.length)).unwrap();
            assert!(
                content[..length].iter().all(|byte| *byte == tag),
                "step {steps}: {name} lost synced bytes"
            );
        }
    }
}

/// Calls `look` with the disk as a power cut may leave it, and the number of steps that were over by then: after each
/// write with two of the states that it may be in, before each flush with all, if no more than six blocks were not
/// flushed, else with 32. Returns how many it were.
pub(super) fn cut_everywhere(
    start: &MemoryDisk,
    log: &[Step],
    seed: u64,
    mut look: impl FnMut(&MemoryDisk, usize),
) -> u64 {
    let durable = start.copy();
    let size = 1usize << start.geometry().block_shift;
    let mut unflushed: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut states = 0;
    let mut dice = Dice(seed);
    for (steps, step) in log.iter().enumerate() {
        let flush = matches!(step, Step::Flush);
        let every = flush && unflushed.len() <= 6;
        let cases = if every {
            1 << unflushed.len()
        } else if flush {
            32
        } else {
            2
        };
        for case in 0..cases {
            let disk = durable.copy();
            for (bit, (lba, content)) in unflushed.iter().enumerate() {
                // Of the seeded ones the first loses nothing.
                let toss = if every { if case >> bit & 1 == 0 { 0 } else { 1 } } else { dice.number() % 3 };
                let toss = if !every && case == 0 { 1 } else { toss };
                disk.alter(*lba, |bytes| {
                    for (now, new) in bytes.chunks_mut(512).zip(content.chunks(512)) {
                        if toss == 1 || toss == 2 && dice.number() & 1 == 0 {
                            now.copy_from_slice(new);
                        }
                    }
                });
            }
            states += 1;
            look(&disk, steps);
        }
        match step {
            Step::Write(first, data) => {
                let blocks = (*first..).zip(data.chunks(size));
                unflushed.extend(blocks.map(|(lba, block)| (lba, block.to_vec())));
            }
            Step::Flush => {
                for (lba, content) in std::mem::take(&mut unflushed) {
                    durable.alter(lba, |bytes| bytes.copy_from_slice(&content));
                }
            }
        }
    }
    states
}

fn run(block_shift: u8, operations: usize, seed: u64) -> u64 {
    // With so much metadata that it rarely syncs by itself.
    let disk = disk(block_shift, 40);
    let options = FormatOptions { metadata: Some(16 << 20), ..options() };
    let files = FileSystem::format(Box::new(disk.clone()), options).unwrap();
    // What lay there before, where the first files will be.
    let layout = files.superblock.layout;
    for lba in layout.data..layout.data + 300 * layout.unit_blocks() {
        disk.alter(lba, |bytes| bytes.fill(0xee));
    }
    drop(files);
    let start = disk.copy();
    let recorder = Recorder { disk, log: Arc::default() };
    let files = ticking(FileSystem::open(Box::new(recorder.clone())).unwrap());
    let (open, done, effective) = (Vec::new(), Vec::new(), 0);
    let mut workload = Workload { recorder, files, dice: Dice(seed), open, done, effective };
    let after = tree(&mut workload.files);
    workload.done.push(Done { steps: 0..0, after, synced: true, truncated: Vec::new() });
    for _ in 0..operations {
        workload.step();
    }
    let Workload { recorder, done, files, effective, .. } = workload;
    println!("{effective} of {operations} operations did something");
    assert!(u64::from(effective) * 2 >= operations as u64, "too many operations make no sense");
    let log = recorder.log.lock().unwrap().clone();
    drop(files);
    cut_everywhere(&start, &log, seed, |disk, steps| survivor(disk, steps, &done))
}

/// Whatever was synced is there, whatever was not is there whole or not at all, the check
/// finds nothing, and no file shows another's bytes or what lay on the disk before.
#[test]
fn a_power_cut_at_any_write_leaves_a_state_that_was() {
    let soak = std::env::var_os("PORTCULLIS_SOAK").is_some_and(|value| value == "1");
    let seed = std::env::var("PORTCULLIS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let (rounds, operations) = if soak { (20, 150) } else { (1, 150) };
    let mut states = 0;
    for round in 0..rounds {
        for block_shift in [9, 12] {
            println!("seed {} with blocks of {} bytes", seed + round, 1 << block_shift);
            states += run(block_shift, operations, seed + round);
        }
    }
    assert!(states > 500, "only {states} states");
    println!("counted: {states} states of a file system after a power cut");
}

/// The same while a file system is opened that has files to remove.
#[test]
fn a_power_cut_while_opening_leaves_it_as_it_was() {
    let disk = disk(12, 16);
    let mut files = format(&disk);
    for path in ["/a", "/b", "/c"] {
        make(&mut files, &ROOT, path, 3 * UNIT);
        files.open_file(&ROOT, path.as_bytes(), How::READ_WRITE).unwrap();
    }
    files.unlink(&ROOT, b"/a").unwrap();
    files.unlink(&ROOT, b"/b").unwrap();
    files.sync().unwrap();
    let expected = tree(&mut files);
    drop(files);
    disk.alter(0, |bytes| bytes[77] ^= 1); // a copy of the superblock to mend
    let start = disk.copy();
    let recorder = Recorder { disk, log: Arc::default() };
    let mut files = FileSystem::open(Box::new(recorder.clone())).unwrap();
    files.sync().unwrap();
    drop(files);
    let log = recorder.log.lock().unwrap().clone();
    let states = cut_everywhere(&start, &log, 1, |disk, _| {
        let mut files = open(disk).unwrap();
        assert_eq!(tree(&mut files), expected);
        assert_eq!(files.check().unwrap(), []);
        let usage = files.usage();
        assert_eq!(usage.bytes - usage.free, 3 * UNIT);
    });
    assert!(states > 20);
}

/// Somebody opens files that have room behind their ends, writes there and dies before the lengths are known: whoever makes
/// one longer finds zeroes. Whether the file system was closed before or was lost already.
#[test]
fn what_was_written_behind_the_end_does_not_come_back() {
    for (shift, closed) in [(9, true), (12, true), (9, false), (12, false)] {
        let disk = disk(shift, 16);
        let mut files = format(&disk);
        for path in ["/a", "/b"] {
            make(&mut files, &ROOT, path, 700);
        }
        let reserved = files.open_file(&ROOT, b"/b", How::READ_WRITE).unwrap().inode;
        files.reserve(reserved, 3 * UNIT).unwrap();
        files.release(reserved).unwrap();
        if closed {
            files.close().unwrap();
        } else {
            files.sync().unwrap();
            drop(files);
        }
        let start = disk.copy();
        let recorder = Recorder { disk: disk.clone(), log: Arc::default() };
        let mut files = FileSystem::open(Box::new(recorder.clone())).unwrap();
        let size = u64::from(disk.geometry().block_size());
        for path in [b"/a", b"/b"] {
            let opened = files.open_file(&ROOT, path, How::READ_WRITE).unwrap();
            let first = opened.extents[0].blocks.first.0;
            for block in [first + 700u64.div_ceil(size) - 1, opened.extents[0].blocks.end().0 - 1] {
                recorder.clone().write(block, &vec![7; usize::try_from(size).unwrap()]).unwrap();
            }
        }
        files.sync().unwrap();
        drop(files);
        let log = recorder.log.lock().unwrap().clone();
        let states = cut_everywhere(&start, &log, 1, |disk, steps| {
            let mut files = open(disk).unwrap();
            for path in [b"/a", b"/b"] {
                let opened = files.open_file(&ROOT, path, How::READ_WRITE).unwrap();
                let content = content(&mut files, disk, opened.inode);
                assert!(content[700..].iter().all(|byte| *byte == 0), "after step {steps}");
            }
        });
        assert!(states > 10, "{states}");
    }
}
