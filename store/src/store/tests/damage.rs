//! Damaged images: each gives an error that says what to do, or the right volumes. Never a panic that leaves the store,
//! never an older state.
//!
//! `PORTCULLIS_SOAK=1` does ten thousand, `PORTCULLIS_SEED` chooses which.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use driver::disk::Dice;

use super::*;
use crate::fuzz::assert_sound;
use crate::shadow::Shadow;

/// An image may take so long to be opened, used and opened again.
const PATIENCE: Duration = Duration::from_secs(20);
/// The process may use so much more memory, in KiB, than before the first image.
const MEMORY: u64 = 512 << 10;

/// An image as it was before the damage.
struct Original {
    what: &'static str,
    disk: MemoryDisk,
    /// The same device earlier, oldest first.
    moments: Vec<MemoryDisk>,
    superblock: Superblock,
    /// Pages of the metadata that count now, by their device block.
    roots: Vec<u64>,
    tables: Vec<u64>,
    pages: Vec<u64>,
    /// What a call was cut off from, if one was: it may be that it was never begun.
    before: Option<(Vec<Volume>, u32)>,
    volumes: Vec<Volume>,
    next_instance: u32,
    content: BTreeMap<u64, Box<[u8]>>,
    /// The part of it that is volumes'.
    data: BTreeMap<u64, Box<[u8]>>,
}

impl Original {
    fn new(
        what: &'static str,
        disk: MemoryDisk,
        moments: Vec<MemoryDisk>,
        before: Option<(Vec<Volume>, u32)>,
    ) -> Self {
        // What is right is what an undamaged copy says; the tests of power cuts say that this is so.
        let mut store = open(&disk.copy()).unwrap();
        assert_eq!(store.check().unwrap(), []);
        let (superblock, volumes) = (store.superblock, store.volumes().unwrap());
        let next_instance = store.next_instance;
        drop(store);
        let shadow = Shadow::open(Box::new(disk.copy()), superblock.layout, superblock.uuid).unwrap();
        let (roots, tables, pages) = shadow.live();
        let (content, data) = (disk.content(), data(&disk, &superblock.layout));
        Self {
            content,
            what,
            disk,
            moments,
            superblock,
            roots,
            tables,
            pages,
            before,
            volumes,
            next_instance,
            data,
        }
    }

    /// The first block of a page, mostly of one that counts.
    fn target(&self, dice: &mut Dice) -> u64 {
        let layout = &self.superblock.layout;
        match dice.below(8) {
            0 => dice.pick(&layout.superblocks()),
            1 => dice.pick(&self.roots),
            2 => dice.pick(&self.tables),
            // The header of the database.
            3 => self.pages[0],
            4..=6 => dice.pick(&self.pages),
            _ => dice.number() % (layout.data / layout.page_blocks()) * layout.page_blocks(),
        }
    }
}

fn data(disk: &MemoryDisk, layout: &Layout) -> BTreeMap<u64, Box<[u8]>> {
    let mut content = disk.content();
    content.retain(|lba, _| (layout.data..layout.data_end()).contains(lba));
    content
}

fn get(disk: &MemoryDisk, lba: u64) -> Vec<u8> {
    let mut page = vec![0; PAGE];
    disk.clone().read(lba, &mut page).unwrap();
    page
}

fn put(disk: &MemoryDisk, lba: u64, page: &[u8]) {
    disk.clone().write(lba, page).unwrap();
}

/// Marks the first and last block of each extent.
fn mark(disk: &MemoryDisk, volume: &Volume) {
    for extent in &volume.extents {
        for lba in [extent.first.0, extent.end().0 - 1] {
            disk.alter(lba, |bytes| bytes.fill(volume.id.0.to_le_bytes()[0] | 1));
        }
    }
}

/// Takes a copy of the disk after each call.
struct History {
    disk: MemoryDisk,
    moments: Vec<MemoryDisk>,
}

impl History {
    fn note(&mut self) {
        self.moments.push(self.disk.copy());
    }
}

/// A store with `volumes` volumes after some life, still open.
fn lived(block_shift: u8, uuid: u8, volumes: usize) -> (History, Store) {
    let disk = disk(block_shift, 16);
    let options =
        FormatOptions { uuid: Some([uuid; 16]), allocation_unit: 8 << 10, ..FormatOptions::default() };
    let mut store = try_format(&disk, options).unwrap();
    let mut history = History { disk, moments: Vec::new() };
    history.note();
    for number in 0..volumes {
        let name = format!("volume {number} {}", "x".repeat(number % 60));
        let volume = store.create(&name, 8192 * (1 + number as u64 % 3), 1000).unwrap();
        mark(&history.disk, &volume);
        if number % 3 == 0 {
            store.set_access(&name, Subject::Group(7), Access::READ).unwrap();
        }
        if number % (volumes / 8 + 1) == 0 {
            history.note();
        }
    }
    // Holes, and volumes in several pieces that fill them.
    for number in (0..volumes).step_by(4) {
        store.delete(&format!("volume {number} {}", "x".repeat(number % 60))).unwrap();
    }
    history.note();
    let pieces = store.create("pieces", store.free_blocks() << block_shift, 0).unwrap();
    mark(&history.disk, &pieces);
    store.shrink("pieces", pieces.blocks << block_shift >> 1).unwrap();
    history.note();
    store.reserve_instances(1000).unwrap();
    history.note();
    store.set_access("pieces", Subject::Everyone, Access::READ_WRITE).unwrap();
    (history, store)
}

fn originals(seed: u64) -> Vec<Original> {
    let mut all = Vec::new();
    for (block_shift, uuid) in [(9, 0x51), (12, 0x61)] {
        let closed = |what, uuid, volumes| {
            let (history, store) = lived(block_shift, uuid, volumes);
            drop(store);
            Original::new(what, history.disk, history.moments, None)
        };
        all.push(closed("small", uuid, 5));
        all.push(closed("another device", uuid + 1, 9));
        all.push(closed("many volumes", uuid + 2, 250));
        let (history, store) = lived(block_shift, uuid + 3, 30);
        let crashed = history.disk.copy();
        all.push(Original::new("never closed", crashed, history.moments.clone(), None));
        // In the middle of an operation, and what a power cut leaves of it.
        drop(store);
        let mut dice = Dice(seed ^ 0x5eed);
        for what in ["cut while creating", "cut while deleting", "cut while reserving"] {
            let disk = history.disk.copy();
            let mut store = open(&disk).unwrap();
            let before = Some((store.volumes().unwrap(), store.next_instance));
            disk.power_off_at(disk.steps() + dice.number() % 9);
            let _ = match what {
                "cut while creating" => store.create("late", 50_000, 4).map(drop),
                "cut while deleting" => store.delete("pieces"),
                _ => store.reserve_instances(77).map(drop),
            };
            drop(store);
            disk.power_cut(dice.number());
            all.push(Original::new(what, disk, history.moments.clone(), before));
        }
    }
    all
}

/// What was done to an image, in a word.
type Damage = &'static str;

/// Flips bits, writes noise or zeros, moves pages about.
fn scramble(disk: &MemoryDisk, original: &Original, dice: &mut Dice) -> Damage {
    let (one, other) = (original.target(dice), original.target(dice));
    let mut page = get(disk, one);
    // Mostly where there is something.
    let used = page.iter().rposition(|byte| *byte != 0).map_or(PAGE, |last| last + 1);
    let damage = match dice.below(6) {
        0 => {
            page[dice.index(used)] ^= 1 << dice.below(8);
            "a flipped bit"
        }
        1 => {
            for _ in 0..2 + dice.below(30) {
                page[dice.index(used)] ^= 1 << dice.below(8);
            }
            "flipped bits"
        }
        2 => {
            let (from, length) = (dice.index(used), 1 + dice.index(600));
            page.iter_mut().skip(from).take(length).for_each(|byte| *byte = dice.byte());
            "random bytes"
        }
        3 => {
            page.fill(0);
            "a page of zeros"
        }
        4 => {
            let swapped = std::mem::replace(&mut page, get(disk, other));
            put(disk, other, &swapped);
            "swapped pages"
        }
        _ => {
            page = get(disk, other);
            "a page in place of another"
        }
    };
    put(disk, one, &page);
    damage
}

/// Puts back what lay there earlier, but never all of it: that would be the device as it was, and nothing on it could
/// tell.
fn rewind(disk: &MemoryDisk, original: &Original, dice: &mut Dice) -> Damage {
    let layout = &original.superblock.layout;
    let moment = dice.pick(&original.moments);
    let page_blocks = layout.page_blocks();
    let changed: Vec<u64> = (0..layout.data / page_blocks)
        .map(|page| page * page_blocks)
        .filter(|lba| get(disk, *lba) != get(&moment, *lba))
        .collect();
    let is_root = |lba: &u64| [layout.root(0), layout.root(1)].contains(lba);
    let is_table = |lba: &u64| (layout.place(1, 1, 0)..layout.place(0, 1, 0)).contains(lba);
    // After a power cut it may be that what the last sync replaced is not erased yet.
    let kind = dice.below(if original.before.is_none() { 5 } else { 3 });
    let (damage, chosen): (Damage, Vec<u64>) = match kind {
        0 => ("an old page", vec![dice.pick(&changed)]),
        1 => {
            let some = changed.into_iter().filter(|lba| !is_root(lba) && dice.below(2) == 0);
            ("some old pages", some.collect())
        }
        2 => ("all old pages but the roots", changed.into_iter().filter(|lba| !is_root(lba)).collect()),
        3 => ("old roots", changed.into_iter().filter(is_root).collect()),
        _ => ("all old pages but the tables", changed.into_iter().filter(|lba| !is_table(lba)).collect()),
    };
    for lba in chosen {
        put(disk, lba, &get(&moment, lba));
    }
    damage
}

/// Parts of another store, but not all of it.
fn transplant(disk: &MemoryDisk, original: &Original, all: &[Original], dice: &mut Dice) -> Damage {
    let shift = original.disk.geometry().block_shift;
    let strange = |other: &&Original| {
        other.disk.geometry().block_shift == shift && other.superblock.uuid != original.superblock.uuid
    };
    let others: Vec<&Original> = all.iter().filter(strange).collect();
    let other = dice.pick(&others);
    let superblocks = other.superblock.layout.superblocks();
    let (damage, chosen): (Damage, Vec<u64>) = match dice.below(6) {
        0 => ("the superblocks of another device", superblocks.to_vec()),
        1 => ("a superblock of another device", vec![dice.pick(&superblocks)]),
        2 => ("the roots of another device", other.roots.clone()),
        3 => ("the pages of another device", [&*other.tables, &*other.pages].concat()),
        4 => ("all metadata of another device", [&*other.roots, &*other.tables, &*other.pages].concat()),
        _ => ("a page of another device", vec![other.target(dice)]),
    };
    for lba in chosen {
        put(disk, lba, &get(&other.disk, lba));
    }
    damage
}

/// A superblock with the right checksum that says something else.
fn forge_superblock(disk: &MemoryDisk, original: &Original, dice: &mut Dice) -> Damage {
    let layout = original.superblock.layout;
    let (damage, page): (Damage, Vec<u8>) = if dice.below(3) == 0 {
        let blocks =
            dice.pick(&[layout.blocks, layout.blocks - 1, layout.blocks / 2, layout.blocks * 2, 1 << 40]);
        let unit = dice.pick(&[12, layout.unit_shift, 14, 20, 30]);
        let pages = dice.pick(&[layout.pages, layout.pages + 1, 1024, 28_672]);
        let Ok(layout) = Layout::new(blocks, layout.block_shift, unit, pages) else { return "nothing" };
        ("a superblock with another layout", Superblock { layout, ..original.superblock }.encode())
    } else {
        let mut page = original.superblock.encode();
        let at = dice.pick(&[8, 12, 16, 20, 24, 40, 44, 48, 52, 56, 64, 68, 72, 80, 84, 88, 92]);
        let old = u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
        let new = dice.pick(&[0, 1, old.wrapping_add(1), old.wrapping_sub(1), u32::MAX, 1 << 31, 1 << 16]);
        page[at..at + 4].copy_from_slice(&new.to_le_bytes());
        let sum = crc32c::crc32c(&page[..PAGE - 4]).to_le_bytes();
        page[PAGE - 4..].copy_from_slice(&sum);
        ("a superblock at its extremes", page)
    };
    let copies = layout.superblocks();
    let which = dice.index(3);
    for (copy, lba) in copies.into_iter().enumerate() {
        if which == 2 || which == copy {
            put(disk, lba, &page);
        }
    }
    damage
}

/// The database in disorder beneath checksums of ours that fit.
fn shuffle(disk: &MemoryDisk, original: &Original, dice: &mut Dice) -> Damage {
    let Superblock { uuid, layout, .. } = original.superblock;
    let mut shadow = Shadow::open(Box::new(disk.clone()), layout, uuid).unwrap();
    let pages = usize::try_from(shadow.len()).unwrap() / PAGE;
    let mut all = vec![0; pages * PAGE];
    shadow.read(0, &mut all).unwrap();
    let used: Vec<usize> = (0..pages).filter(|page| all[page * PAGE..][..PAGE] != [0; PAGE]).collect();
    let mut write = |page: usize, bytes: &[u8]| shadow.write((page * PAGE) as u64, bytes).unwrap();
    let (one, other) = (dice.pick(&used), dice.pick(&used));
    let damage = match dice.below(3) {
        0 => {
            write(one, &all[other * PAGE..][..PAGE]);
            write(other, &all[one * PAGE..][..PAGE]);
            "shuffled pages of the database"
        }
        1 => {
            let mut page = all[one * PAGE..][..PAGE].to_vec();
            for _ in 0..1 + dice.below(40) {
                // Behind the header's first bytes, which say which of its two states counts: see below.
                page[16 + dice.index(PAGE - 16)] = dice.byte();
            }
            write(one, &page);
            "random bytes in the database"
        }
        _ => {
            shadow.set_len((dice.index(pages) * PAGE + dice.index(2) * 100) as u64).unwrap();
            "a database cut short"
        }
    };
    shadow.sync().unwrap();
    damage
}

fn damage(disk: &mut MemoryDisk, original: &Original, all: &[Original], dice: &mut Dice) -> Damage {
    match dice.below(16) {
        0..=7 => scramble(disk, original, dice),
        8 | 9 => rewind(disk, original, dice),
        10 | 11 => transplant(disk, original, all, dice),
        12 | 13 => forge_superblock(disk, original, dice),
        14 => shuffle(disk, original, dice),
        _ => {
            let blocks = disk.geometry().blocks;
            disk.geometry_mut().blocks = dice.pick(&[1, blocks / 2, blocks - 1, blocks - 9, blocks / 64]);
            "a device cut short"
        }
    }
}

/// Opens a damaged image; what it says, if it says anything.
fn judge(disk: &MemoryDisk, original: &Original) -> Option<StoreError> {
    let mut store = match open(disk) {
        Ok(store) => store,
        Err(error) => return Some(error),
    };
    let (volumes, next_instance) = (store.volumes().unwrap(), store.next_instance);
    if original.before.as_ref().is_none_or(|before| *before != (volumes.clone(), next_instance)) {
        assert_eq!(volumes, original.volumes, "wrong volumes");
        assert_eq!(next_instance, original.next_instance, "key instances of another time");
    }
    assert_sound(&store);
    let layout = &original.superblock.layout;
    assert!(data(disk, layout) == original.data, "the data of volumes was changed");
    let findings = store.check().unwrap();
    let spare = |f: &Finding| matches!(f, Finding::Metadata { .. } | Finding::Superblock { .. });
    assert!(findings.iter().all(spare), "{findings:?}");
    let reserved = store.reserve_instances(3).unwrap();
    assert_eq!(reserved.start, next_instance);
    drop(store);
    let store = open(disk).unwrap();
    assert_eq!(store.volumes().unwrap(), volumes, "wrong volumes after it was opened");
    assert_eq!(store.next_instance, reserved.end);
    None
}

/// An error says what is wrong, and what to do.
fn assert_clear(error: &StoreError) {
    let text = error.to_string();
    let advice =
        ["format with force", "format it first", "use a larger one", "use the program", "use a newer one"];
    let known = matches!(
        error,
        StoreError::Damaged { .. }
            | StoreError::Foreign { .. }
            | StoreError::Blank
            | StoreError::TooSmall { .. }
            | StoreError::Version { .. }
            | StoreError::Features { .. }
            | StoreError::BlockSize { .. }
    );
    assert!(known && (advice.iter().any(|what| text.contains(what)) || text.contains("namespace")), "{text}");
}

/// The most memory that this process ever used, in KiB.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_damaged_image_is_an_error_or_has_the_right_volumes() {
    let soak = std::env::var_os("PORTCULLIS_SOAK").is_some_and(|value| value == "1");
    let seed = std::env::var("PORTCULLIS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1u64);
    let count = if soak { 10_000 } else { 400 };
    let all = originals(seed);
    let memory = peak_memory();
    let mut tally: BTreeMap<Damage, (u64, u64)> = BTreeMap::new();
    let mut panics = 0;
    for number in 0..count {
        let mut dice = Dice(seed << 32 | number);
        let original = &all[dice.index(all.len())];
        let (what, disk) = loop {
            let mut disk = original.disk.copy();
            let what = damage(&mut disk, original, &all, &mut dice);
            if disk.geometry() != original.disk.geometry() || disk.content() != original.content {
                break (what, disk);
            }
        };
        let start = Instant::now();
        let judged = catch_unwind(AssertUnwindSafe(|| {
            let error = judge(&disk, original);
            error.iter().for_each(assert_clear);
            error
        }));
        let Ok(error) = judged else {
            panic!("seed {seed}, image {number}: {what} on {:?}", original.what);
        };
        assert!(start.elapsed() < PATIENCE, "seed {seed}, image {number}: {what} took too long");
        panics += u64::from(error.as_ref().is_some_and(|error| error.to_string().contains("panic: ")));
        let (errors, opened) = tally.entry(what).or_default();
        *(if error.is_some() { errors } else { opened }) += 1;
    }
    let used = peak_memory() - memory;
    assert!(used < MEMORY, "{used} KiB for damaged images");
    let errors: u64 = tally.values().map(|(errors, _)| errors).sum();
    assert!(errors > count / 4 && errors < count, "most damage counts, some does not: {errors} of {count}");
    // Not by `println`: a test that passes would keep it to itself.
    let mut out = std::io::stdout().lock();
    for (what, (errors, opened)) in &tally {
        writeln!(out, "{what}: {errors} errors, {opened} opened with the right volumes").unwrap();
    }
    writeln!(out, "{errors} were refused, {panics} of them after a panic of the database").unwrap();
    writeln!(out, "counted: {count} damaged store images").unwrap();
}
