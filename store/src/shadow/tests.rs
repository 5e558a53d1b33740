//! The metadata file against a model, with the power cut and the device damaged.

use driver::block::Geometry;
use driver::disk::MemoryDisk;
use proptest::prelude::*;

use super::*;

impl Shadow {
    /// The device blocks at which the roots, the tables and the pages that count begin.
    pub(crate) fn live(&self) -> (Vec<u64>, Vec<u64>, Vec<u64>) {
        let places = |level: usize| {
            (0..)
                .zip(&self.levels[level])
                .filter(|(_, entry)| entry.slot != 0)
                .map(|(index, entry)| self.place(What { level, index }, entry.slot))
                .collect()
        };
        let roots = vec![self.layout.root(0), self.layout.root(1)];
        (roots, places(1), places(0))
    }
}

const UUID: [u8; 16] = [9; 16];

fn layout(block_shift: u8) -> Layout {
    Layout::new((16 << 20) >> block_shift, block_shift, 16, 1040).unwrap()
}

fn disk(block_shift: u8) -> MemoryDisk {
    MemoryDisk::new(block_shift, (16 << 20) >> block_shift)
}

/// A disk for a file with tables of tables.
fn large_disk(block_shift: u8) -> MemoryDisk {
    MemoryDisk::new(block_shift, (240 << 20) >> block_shift)
}

fn layout_on(disk: &MemoryDisk) -> Layout {
    let Geometry { blocks, block_shift, .. } = *disk.geometry();
    let large = blocks << block_shift > 200 << 20;
    let layout =
        if large { Layout::new(blocks, block_shift, 16, 29_000).unwrap() } else { layout(block_shift) };
    assert_eq!(layout.levels().count(), if large { 3 } else { 2 });
    layout
}

fn create(disk: &MemoryDisk) -> Shadow {
    Shadow::create(Box::new(disk.clone()), layout_on(disk), UUID).unwrap()
}

fn open(disk: &MemoryDisk) -> Result<Shadow, Fault> {
    Shadow::open(Box::new(disk.clone()), layout_on(disk), UUID)
}

fn content(shadow: &mut Shadow) -> Result<Vec<u8>, Fault> {
    let mut content = vec![0; usize::try_from(shadow.len()).unwrap()];
    shadow.read(0, &mut content)?;
    Ok(content)
}

#[derive(Clone, Debug)]
enum Op {
    Write {
        at: u32,
        length: u16,
        value: u8,
    },
    SetLen(u32),
    Sync,
    Reload,
    Reopen,
    PowerCut(u64),
    /// The power goes at one of the next steps of the device.
    PowerOff {
        steps: u8,
        seed: u64,
    },
}

/// Around the joint of two tables, at page 512, and at the start.
fn position() -> impl Strategy<Value = u32> {
    prop_oneof![0u32..40_000, (510u32 << 12)..(514 << 12)]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (position(), 0u16..9000, 1u8..).prop_map(|(at, length, value)| Op::Write { at, length, value }),
        3 => position().prop_map(Op::SetLen),
        3 => Just(Op::Sync),
        1 => Just(Op::Reload),
        1 => Just(Op::Reopen),
        1 => any::<u64>().prop_map(Op::PowerCut),
        3 => (0u8..16, any::<u64>()).prop_map(|(steps, seed)| Op::PowerOff { steps, seed }),
    ]
}

struct Model {
    now: Vec<u8>,
    synced: Vec<u8>,
}

impl Model {
    fn apply(&mut self, shadow: &mut Shadow, op: &Op) -> Result<(), Fault> {
        match *op {
            Op::Write { at, length, value } => {
                let at = at as usize % (self.now.len() + 1);
                let length = usize::from(length).min(self.now.len() - at);
                shadow.write(at as u64, &vec![value; length])?;
                self.now[at..at + length].fill(value);
            }
            Op::SetLen(length) => {
                shadow.set_len(length.into())?;
                self.now.resize(length as usize, 0);
            }
            Op::Sync => {
                shadow.sync()?;
                self.synced.clone_from(&self.now);
            }
            Op::Reload => {
                shadow.reload()?;
                self.now.clone_from(&self.synced);
            }
            Op::Reopen | Op::PowerCut(_) | Op::PowerOff { .. } => {}
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// After a crash at any point the file is what it was at the last sync, or at one under way.
    #[test]
    fn agrees_with_a_model_through_power_cuts(
        shift in prop_oneof![Just(9u8), Just(12)],
        large in prop_oneof![3 => Just(false), 1 => Just(true)],
        ops in proptest::collection::vec(op(), 1..50),
    ) {
        let disk = if large { large_disk(shift) } else { disk(shift) };
        let mut shadow = create(&disk);
        let mut model = Model { now: Vec::new(), synced: Vec::new() };
        let mut off: Option<u64> = None;
        for op in &ops {
            if let Err(fault) = model.apply(&mut shadow, op) {
                prop_assert!(matches!(fault, Fault::Disk(_)), "{fault:?}");
                disk.power_cut(off.take().expect("the power is off"));
                shadow = open(&disk).unwrap();
                let found = content(&mut shadow).unwrap();
                let acceptable = found == model.synced || matches!(op, Op::Sync) && found == model.now;
                prop_assert!(acceptable, "after {op:?}");
                model = Model { now: found.clone(), synced: found };
                continue;
            }
            match *op {
                Op::Reopen if off.is_none() => {
                    shadow = open(&disk).unwrap();
                    model.now.clone_from(&model.synced);
                }
                Op::PowerCut(seed) if off.is_none() => {
                    disk.power_cut(seed);
                    shadow = open(&disk).unwrap();
                    model.now.clone_from(&model.synced);
                }
                Op::PowerOff { steps, seed } if off.is_none() => {
                    disk.power_off_at(disk.steps() + u64::from(steps));
                    off = Some(seed);
                }
                _ => {}
            }
            if off.is_none() {
                prop_assert!(content(&mut shadow).unwrap() == model.now, "after {op:?}");
                prop_assert_eq!(shadow.verify(), []);
            }
        }
    }
}

/// A file of a few pages that were written several times.
fn written(disk: &MemoryDisk) -> (Shadow, Vec<u8>) {
    let mut shadow = create(disk);
    shadow.set_len(6 << 12).unwrap();
    for round in 1..6u8 {
        for page in 0..6u8 {
            if page % round == 0 {
                shadow.write(u64::from(page) << 12, &[round * 16 + page; 4096]).unwrap();
            }
        }
        shadow.sync().unwrap();
    }
    let content = content(&mut shadow).unwrap();
    (shadow, content)
}

#[test]
fn every_flipped_bit_gives_an_error_or_the_right_content() {
    for disk in [disk(9), disk(12), large_disk(9), large_disk(12)] {
        let (shadow, right) = written(&disk);
        drop(shadow);
        let mut errors = 0;
        let blocks = disk.content().into_keys().collect::<Vec<u64>>();
        for lba in &blocks {
            for at in [0, 1, 17, 30, 59, 63, 64, 100, 511] {
                let copy = disk.copy();
                copy.alter(*lba, |bytes| bytes[at] ^= 0x40);
                match open(&copy).and_then(|mut shadow| content(&mut shadow)) {
                    Ok(found) => assert!(found == right, "byte {at} of block {lba}"),
                    Err(Fault::Damaged(_)) => errors += 1,
                    Err(fault) => panic!("byte {at} of block {lba}: {fault:?}"),
                }
            }
        }
        assert!(errors > 6 * 9, "the pages that count are checked");
    }
}

#[test]
fn an_older_content_of_a_page_is_an_error() {
    let disk = disk(12);
    let mut shadow = create(&disk);
    shadow.set_len(4096).unwrap();
    for value in [1, 2, 3] {
        shadow.write(0, &[value; 4096]).unwrap();
        shadow.sync().unwrap();
    }
    let slots = [1, 2].map(|slot| layout(12).place(0, slot, 0));
    let old = disk.content()[&slots[1]].clone();
    assert_eq!(old[0], 2);
    disk.alter(slots[0], |bytes| bytes.copy_from_slice(&old));
    let error = content(&mut shadow).unwrap_err();
    assert!(matches!(&error, Fault::Damaged(what) if what.contains("metadata page 0")), "{error:?}");
    assert_eq!(content(&mut open(&disk).unwrap()), Err(error));
}

#[test]
fn one_copy_of_the_root_is_enough_and_the_other_is_mended() {
    let disk = disk(9);
    let (shadow, right) = written(&disk);
    drop(shadow);
    for (copy, unreadable) in [(0, false), (1, false), (0, true), (1, true)] {
        let disk = disk.copy();
        let lba = layout(9).root(copy);
        disk.alter(lba, |bytes| bytes[100] ^= 1);
        if unreadable {
            disk.make_unreadable(lba..lba + 1);
        }
        let mut shadow = open(&disk).unwrap();
        assert!(content(&mut shadow).unwrap() == right);
        disk.make_unreadable(0..0);
        assert_eq!(shadow.verify(), []);
        // And then the other one may go.
        disk.alter(layout(9).root(1 - copy), |bytes| bytes.fill(0));
        assert!(content(&mut open(&disk).unwrap()).unwrap() == right);
        disk.alter(layout(9).root(0), |bytes| bytes.fill(0));
        disk.alter(layout(9).root(1), |bytes| bytes.fill(0));
        assert!(matches!(open(&disk), Err(Fault::Damaged(_))));
    }
}

#[test]
fn a_device_error_is_no_reason_to_use_an_older_content() {
    let disk = disk(12);
    let (mut shadow, _) = written(&disk);
    let slot = shadow.levels[0][0].slot;
    let lba = layout(12).place(0, slot, 0);
    disk.make_unreadable(lba..lba + 1);
    assert!(matches!(content(&mut shadow), Err(Fault::Disk(error)) if error.lba == lba));
    // After a fault nothing is written any more.
    let steps = disk.steps();
    assert!(shadow.write(0, &[0; 4096]).is_err());
    assert!(shadow.sync().is_err());
    assert_eq!(disk.steps(), steps);
}

#[test]
fn the_file_ends_where_its_pages_end() {
    let disk = disk(12);
    let mut shadow = create(&disk);
    let most = 1040 << 12;
    shadow.set_len(most).unwrap();
    shadow.write(most - 1, &[7]).unwrap();
    shadow.sync().unwrap();
    assert_eq!(shadow.write(most, &[7]), Err(Fault::Misuse), "beyond the length");
    shadow.reload().unwrap();
    assert_eq!(shadow.set_len(most + 1), Err(Fault::Full));
    assert_eq!(shadow.sync(), Err(Fault::Full));
    shadow.reload().unwrap();
    let mut last = [0];
    shadow.read(most - 1, &mut last).unwrap();
    assert_eq!(last, [7]);
    assert_eq!(shadow.read(u64::MAX, &mut last), Err(Fault::Misuse));
}

#[test]
fn another_stores_metadata_is_not_taken_for_ours() {
    let disk = disk(12);
    drop(written(&disk));
    assert!(matches!(Shadow::open(Box::new(disk), layout(12), [1; 16]), Err(Fault::Damaged(_))));
}

/// In a file with tables of tables everything is as in a small one, up to its last page.
#[test]
fn a_large_file_goes_through_tables_of_tables() {
    let disk = large_disk(12);
    let mut shadow = create(&disk);
    let last = 29_000 * 4096 - 8;
    shadow.set_len(29_000 * 4096).unwrap();
    assert_eq!(shadow.set_len(29_000 * 4096 + 1), Err(Fault::Full));
    let mut shadow = create(&disk);
    shadow.set_len(29_000 * 4096).unwrap();
    for round in 1..4u8 {
        for offset in [0, 512 * 4096, last] {
            shadow.write(offset, &[round; 8]).unwrap();
        }
        shadow.sync().unwrap();
        shadow.write(last, &[0xee; 8]).unwrap(); // never synced
        disk.power_cut(u64::from(round));
        shadow = open(&disk).unwrap();
        for offset in [0, 512 * 4096, last] {
            let mut found = [0; 8];
            shadow.read(offset, &mut found).unwrap();
            assert_eq!(found, [round; 8]);
        }
        assert_eq!(shadow.verify(), []);
    }
    // The table of tables that counts, damaged.
    let slot = shadow.levels[2][0].slot;
    let lba = layout_on(&disk).place(2, slot, 0);
    disk.alter(lba, |bytes| bytes[9] ^= 1);
    let fault = open(&disk).err();
    assert!(matches!(&fault, Some(Fault::Damaged(what)) if what.contains("table of tables 0")), "{fault:?}");
}
