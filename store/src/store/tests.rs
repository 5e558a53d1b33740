//! The store on a disk in memory.

use driver::disk::{DiskFault, MemoryDisk};

use super::*;

mod crash;
mod damage;
mod model;

const UNIT: u64 = 64 << 10;

fn disk(block_shift: u8, megabytes: u64) -> MemoryDisk {
    MemoryDisk::new(block_shift, (megabytes << 20) >> block_shift)
}

fn open(disk: &MemoryDisk) -> Result<Store, StoreError> {
    Store::open(Box::new(disk.clone()))
}

fn try_format(disk: &MemoryDisk, options: FormatOptions) -> Result<Store, StoreError> {
    Store::format(Box::new(disk.clone()), options)
}

fn format(disk: &MemoryDisk) -> Store {
    try_format(disk, FormatOptions::default()).unwrap()
}

fn reopen(store: Store, disk: &MemoryDisk) -> Store {
    drop(store);
    let mut store = open(disk).unwrap();
    assert_eq!(store.check().unwrap(), []);
    store
}

/// Reads all of a volume.
fn content(disk: &MemoryDisk, volume: &Volume) -> Vec<u8> {
    let mut content = Vec::new();
    for extent in &volume.extents {
        let bytes = usize::try_from(extent.count.0 << disk.geometry().block_shift).unwrap();
        let start = content.len();
        content.resize(start + bytes, 0);
        disk.clone().read(extent.first.0, &mut content[start..]).unwrap();
    }
    content
}

/// Whether all of `content` is `value`.
fn is_all(content: &[u8], value: u8) -> bool {
    content.chunks(4096).all(|chunk| *chunk == [value; 4096][..chunk.len()])
}

/// Writes all of a volume, as its owner may.
fn scribble(disk: &MemoryDisk, volume: &Volume, value: u8) {
    for extent in &volume.extents {
        let bytes = usize::try_from(extent.count.0 << disk.geometry().block_shift).unwrap();
        disk.clone().write(extent.first.0, &vec![value; bytes]).unwrap();
    }
}

/// Fills the disk with what a former owner left.
fn soil(disk: &MemoryDisk) {
    soil_range(disk, 0..disk.geometry().blocks);
}

fn soil_range(disk: &MemoryDisk, blocks: Range<u64>) {
    for lba in blocks {
        disk.alter(lba, |bytes| bytes.fill(0xee));
    }
}

fn error<T>(result: Result<T, StoreError>) -> StoreError {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(error) => error,
    }
}

#[test]
fn volumes_are_made_changed_and_found_again() {
    for shift in [9, 12] {
        let disk = disk(shift, 16);
        let mut store = format(&disk);
        let uuid = store.uuid();
        let unit = UNIT >> shift;
        let one = store.create("one", 100_000, 1000).unwrap();
        assert_eq!((one.blocks, one.owner, one.access.len()), (2 * unit, 1000, 0));
        store.create("two", 1, 7).unwrap();
        store.set_access("two", Subject::Group(3), Access::READ).unwrap();
        store.set_access("two", Subject::User(3), Access::READ_WRITE).unwrap();
        store.set_access("two", Subject::Group(3), Access::NONE).unwrap();
        store.rename("one", "eins").unwrap();
        store.grow("eins", 1 << 20).unwrap();
        let shrunk = store.shrink("eins", UNIT).unwrap();
        assert_eq!(shrunk.blocks, unit);
        assert_eq!(store.reserve_instances(10).unwrap(), 1..11);

        let before = store.volumes().unwrap();
        let mut store = reopen(store, &disk);
        assert_eq!(store.volumes().unwrap(), before);
        assert_eq!(store.uuid(), uuid);
        assert_eq!(before.iter().map(|volume| &*volume.name).collect::<Vec<_>>(), ["eins", "two"]);
        assert_eq!(before[1].access, [(Subject::User(3), Access::READ_WRITE)]);
        assert_eq!(store.volumes_after(Some("eins"), 5).unwrap(), before[1..]);
        assert_eq!(store.volumes_after(None, 1).unwrap(), before[..1]);
        assert_eq!(store.reserve_instances(1).unwrap(), 11..12);
        assert_eq!(store.free_blocks(), store.data_blocks() - 2 * unit);
        store.delete("two").unwrap();
        assert_eq!(store.volume("two"), Err(StoreError::NoSuchVolume { name: "two".into() }));
        let three = store.create("three", 1, 7).unwrap();
        assert!(three.id > before[1].id, "numbers are not used twice");
        reopen(store, &disk);
    }
}

/// Nobody reads what a former owner of a block wrote: whatever the device can do, the new volume is zero, durably,
/// before it exists.
#[test]
fn new_blocks_read_as_zero_whatever_was_there() {
    for (shift, deallocate_zeroes) in [(9, false), (12, false), (12, true)] {
        let mut disk = disk(shift, 16);
        disk.geometry_mut().deallocate_zeroes = deallocate_zeroes;
        soil(&disk);
        let mut store = format(&disk);
        let mut reports = Vec::new();
        let all = store.free_blocks() << shift;
        let volume =
            store.create_with("all", all, 0, &mut |done, total| reports.push((done, total))).unwrap();
        assert_eq!(reports.last(), Some(&(volume.blocks, volume.blocks)));
        disk.power_cut(0);
        assert!(is_all(&content(&disk, &volume), 0));
        scribble(&disk, &volume, 0xaa);
        store.shrink("all", UNIT).unwrap();
        let other = store.create("other", 3 * UNIT, 1).unwrap();
        assert!(is_all(&content(&disk, &other), 0));
        let grown = store.grow("all", 2 * UNIT).unwrap();
        let grown = content(&disk, &grown);
        let (kept, new) = grown.split_at(64 << 10);
        assert!(is_all(kept, 0xaa), "what was there stays");
        assert!(is_all(new, 0));
    }
}

#[test]
fn a_volume_grows_in_place_if_it_can() {
    let disk = disk(12, 16);
    let mut store = format(&disk);
    store.create("a", UNIT, 0).unwrap();
    let grown = store.grow("a", 4 * UNIT).unwrap();
    assert_eq!(grown.extents.len(), 1);
    store.create("b", UNIT, 0).unwrap();
    let grown = store.grow("a", 5 * UNIT).unwrap();
    assert_eq!(grown.extents.len(), 2);
    assert_eq!(grown.extents_for(5 * 16), Some(grown.extents.clone()));
}

#[test]
fn mistakes_are_refused_by_name_and_change_nothing() {
    let disk = disk(12, 16);
    let mut store = format(&disk);
    store.create("a", 4 * UNIT, 0).unwrap();
    store.create("b", UNIT, 0).unwrap();
    let before = store.volumes().unwrap();
    let steps = disk.steps();
    let free = store.free_blocks();
    let exists = StoreError::Exists { name: "a".into() };
    assert_eq!(error(store.create("a", UNIT, 0)), exists);
    assert_eq!(error(store.rename("b", "a")), exists);
    let missing = StoreError::NoSuchVolume { name: "c".into() };
    assert_eq!(error(store.rename("c", "d")), missing);
    assert_eq!(error(store.delete("c")), missing);
    assert_eq!(error(store.grow("c", 1)), missing);
    assert_eq!(error(store.shrink("c", 1)), missing);
    assert_eq!(error(store.set_access("c", Subject::Everyone, Access::ALL)), missing);
    assert!(matches!(error(store.create("a/b", 1, 0)), StoreError::Name { .. }));
    assert!(matches!(error(store.rename("a", "")), StoreError::Name { .. }));
    assert!(matches!(error(store.create("c", 0, 0)), StoreError::Size { .. }));
    assert!(matches!(error(store.shrink("a", 0)), StoreError::Size { .. }));
    assert!(matches!(error(store.shrink("a", u64::MAX)), StoreError::Size { .. }));
    assert!(matches!(error(store.grow("a", 1)), StoreError::Size { .. }));
    for bytes in [(free << 12) + 1, u64::MAX] {
        assert!(matches!(error(store.create("c", bytes, 0)), StoreError::NoSpace { .. }));
        assert!(matches!(
            error(store.grow("a", (4 * UNIT).saturating_add(bytes))),
            StoreError::NoSpace { .. }
        ));
    }
    // And what changes nothing does nothing.
    store.grow("a", 4 * UNIT - 1).unwrap();
    store.shrink("a", 4 * UNIT - 1).unwrap();
    store.rename("a", "a").unwrap();
    assert_eq!(store.reserve_instances(0).unwrap(), 1..1);
    assert_eq!(store.volumes().unwrap(), before);
    assert_eq!(store.free_blocks(), free);
    assert_eq!(disk.steps(), steps, "the device was not touched");
}

/// A stale key never resolves, not even after a restart.
#[test]
fn key_instances_are_given_once_until_there_are_no_more() {
    let disk = disk(12, 16);
    let mut store = format(&disk);
    assert_eq!(store.reserve_instances(5).unwrap(), 1..6);
    let mut store = reopen(store, &disk);
    assert_eq!(store.reserve_instances(u32::MAX - 10).unwrap(), 6..u32::MAX - 4);
    assert_eq!(error(store.reserve_instances(5)), StoreError::InstancesExhausted { asked: 5, left: 4 });
    assert_eq!(store.reserve_instances(4).unwrap(), u32::MAX - 4..u32::MAX);
    let mut store = reopen(store, &disk);
    assert_eq!(error(store.reserve_instances(1)), StoreError::InstancesExhausted { asked: 1, left: 0 });
}

/// Makes volumes at once, behind the store's back.
fn plant(store: Store, disk: &MemoryDisk, volumes: impl Iterator<Item = Volume>) -> Store {
    let mut changes: Vec<Change> =
        volumes.map(|volume| Change::Put(volume.id.0, record::encode(&volume))).collect();
    let next = store.next_volume + changes.len() as u64;
    changes.push(Change::Set(Counter::Volume, next));
    let mut store = store;
    store.catalog.commit(&changes).unwrap();
    reopen(store, disk)
}

fn planted(id: u64, extents: Vec<LbaRange>) -> Volume {
    let blocks = extents.iter().map(|extent| extent.count.0).sum();
    Volume {
        id: VolumeId(id),
        name: format!("planted {id}"),
        owner: 0,
        blocks,
        extents,
        access: Vec::new(),
        limits: Limits::default(),
        kind: VolumeKind::Blocks,
    }
}

#[test]
fn limits_are_errors() {
    // 4 KiB units: a block each.
    let disk = disk(12, 600);
    let options =
        FormatOptions { allocation_unit: 4096, metadata: Some(32 << 20), ..FormatOptions::default() };
    let store = try_format(&disk, options).unwrap();
    let data = store.superblock.layout.data;
    let all = store.data_blocks();
    let at = |id: u64| LbaRange::new(data + id - 1, 1).unwrap();
    let mut store = plant(store, &disk, (1..=65_536).map(|id| planted(id, vec![at(id)])));
    assert_eq!(error(store.create("one more", 1, 0)), StoreError::TooManyVolumes);

    // The rest of the device belongs to one volume, and every other of 8,200 blocks is free.
    store.delete("planted 65536").unwrap();
    store.create("rest", (all - 65_535) * 4096, 0).unwrap();
    let removals: Vec<Change> = (1..8_200).step_by(2).map(Change::Remove).collect();
    store.catalog.commit(&removals).unwrap();
    let mut store = reopen(store, &disk);
    assert_eq!(error(store.create("pieces", 4097 * 4096, 0)), StoreError::TooFragmented);
    let pieces = store.create("pieces", 4096 * 4096, 0).unwrap();
    assert_eq!(pieces.extents.len(), MAX_EXTENTS);
    assert_eq!(error(store.grow("pieces", 4098 * 4096)), StoreError::TooFragmented);
    assert_eq!(store.free_blocks(), 4);
    reopen(store, &disk);
}

#[test]
fn an_access_list_has_a_limit() {
    let disk = disk(12, 16);
    let mut store = format(&disk);
    store.create("a", 1, 0).unwrap();
    for uid in 0..1024 {
        store.set_access("a", Subject::User(uid), Access::READ).unwrap();
    }
    assert_eq!(error(store.set_access("a", Subject::Everyone, Access::READ)), StoreError::TooManyEntries);
    store.set_access("a", Subject::User(5), Access::ALL).unwrap();
    store.set_access("a", Subject::User(5), Access::NONE).unwrap();
    store.set_access("a", Subject::Everyone, Access::READ).unwrap();
    reopen(store, &disk);
}

#[test]
fn full_metadata_refuses_more_and_still_lets_volumes_go() {
    let disk = disk(12, 64);
    let store = format(&disk);
    let data = store.superblock.layout.data;
    let access: Vec<(Subject, Access)> = (0..1000).map(|n| (Subject::User(n << 20), Access::READ)).collect();
    let heavy = |id: u64| Volume {
        access: access.clone(),
        ..planted(id, vec![LbaRange::new(data + 16 * id, 16).unwrap()])
    };
    let weight = record::weight(&heavy(1));
    let most = u64::from(store.superblock.layout.pages) * 4096 / 4 / weight;
    let mut store = plant(store, &disk, (1..=most).map(heavy));
    let steps = disk.steps();
    let free = store.free_blocks();
    let mut made = 0;
    let refused = loop {
        match store.create(&format!("{made:0100}"), 1, 0) {
            Ok(_) => made += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, StoreError::MetadataFull);
    assert_eq!(store.free_blocks(), free - made * 16);
    assert!(made < 60 && disk.steps() - steps < 60 * 30);
    assert_eq!(error(store.rename("planted 1", &"x".repeat(128))), StoreError::MetadataFull);
    store.reserve_instances(1).unwrap();
    for id in 1..=most {
        store.delete(&format!("planted {id}")).unwrap();
        store.create(&format!("light {id}"), 1, 0).unwrap();
    }
    reopen(store, &disk);
}

#[test]
fn a_device_error_poisons_the_store_and_loses_nothing() {
    let disk = disk(12, 16);
    let mut store = format(&disk);
    store.create("a", 1, 0).unwrap();
    let before = store.volumes().unwrap();
    // While zeroing: the store is as good as before, but the device is not.
    disk.power_off_at(disk.steps());
    assert!(
        matches!(error(store.create("b", 1, 0)), StoreError::Disk(gone) if gone.cause == DiskFault::Gone)
    );
    assert_eq!(store.volumes().unwrap(), before);
    // In the metadata.
    let poisoned = error(store.reserve_instances(1));
    assert!(matches!(&poisoned, StoreError::Poisoned { why } if why.contains("gone")), "{poisoned}");
    assert_eq!(error(store.volumes()), poisoned);
    assert_eq!(error(store.volume("a")), poisoned);
    assert_eq!(error(store.create("c", 1, 0)), poisoned);
    assert_eq!(error(store.check()), poisoned);
    disk.power_cut(1);
    // Also when the device is back.
    let steps = disk.steps();
    assert_eq!(error(store.delete("a")), poisoned);
    drop(store);
    assert_eq!(disk.steps(), steps, "a poisoned store writes nothing");
    assert_eq!(open(&disk).unwrap().volumes().unwrap(), before);
}

#[test]
fn blank_foreign_small_and_odd_devices_have_their_own_errors() {
    let blank = disk(12, 16);
    assert_eq!(error(open(&blank)), StoreError::Blank);
    assert_eq!(error(open(&MemoryDisk::new(12, 4))), StoreError::Blank);
    let empty = MemoryDisk::new(9, 0);
    assert!(matches!(error(open(&empty)), StoreError::TooSmall { bytes: 0, .. }));
    for small in [empty, disk(9, 8), disk(12, 1), MemoryDisk::new(9, 1)] {
        assert!(matches!(error(try_format(&small, FormatOptions::default())), StoreError::TooSmall { .. }));
        assert_eq!(small.steps(), 0);
    }
    let mut odd = disk(12, 16);
    odd.geometry_mut().block_shift = 10;
    assert!(matches!(error(open(&odd)), StoreError::BlockSize { found: 1024, .. }));

    let marks: [(usize, &[u8], &str); 5] = [
        (1080, &[0x53, 0xef], "ext4"),
        (512, b"EFI PART", "GPT"),
        (510, &[0x55, 0xaa], "MBR"),
        (512, b"LABELONE", "LVM"),
        (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "md array"),
    ];
    for (at, mark, name) in marks {
        let disk = disk(12, 16);
        disk.alter(at as u64 / 4096, |bytes| {
            bytes[at % 4096..][..mark.len()].copy_from_slice(mark);
        });
        assert!(matches!(error(open(&disk)), StoreError::Foreign { what } if what.contains(name)));
        let refused = error(try_format(&disk, FormatOptions::default()));
        assert!(matches!(&refused, StoreError::Occupied { what } if what.contains(name)), "{refused}");
        assert_eq!(disk.steps(), 0, "nothing was written");
        let store = try_format(&disk, FormatOptions { force: true, ..FormatOptions::default() }).unwrap();
        reopen(store, &disk);
    }
    let noise = disk(9, 16);
    soil(&noise);
    assert!(matches!(error(open(&noise)), StoreError::Foreign { what } if what.contains("unknown")));
    reopen(format(&noise), &noise);
}

#[test]
fn another_store_is_not_formatted_over_without_force() {
    let disk = disk(12, 16);
    let mut store = format(&disk);
    store.create("a", 1, 0).unwrap();
    drop(store);
    let refused = error(try_format(&disk, FormatOptions::default()));
    assert!(
        matches!(&refused, StoreError::Occupied { what } if what.contains("portcullis store")),
        "{refused}"
    );
    // A damaged one neither.
    for copy in disk_superblocks(&disk) {
        disk.alter(copy, |bytes| bytes[100] ^= 1);
        assert!(matches!(error(try_format(&disk, FormatOptions::default())), StoreError::Occupied { .. }));
    }
    assert!(matches!(error(open(&disk)), StoreError::Damaged { .. }));
    let store = try_format(&disk, FormatOptions { force: true, ..FormatOptions::default() }).unwrap();
    assert_eq!(reopen(store, &disk).volumes().unwrap(), []);
}

fn disk_superblocks(disk: &MemoryDisk) -> [u64; 2] {
    [0, disk.geometry().blocks - (4096 >> disk.geometry().block_shift)]
}

#[test]
fn only_a_blank_device_is_formatted_unasked() {
    let disk = disk(12, 16);
    let open_or_format = || Store::open_or_format(Box::new(disk.clone()), FormatOptions::default());
    open_or_format().unwrap().create("a", 1, 0).unwrap();
    assert_eq!(open_or_format().unwrap().volumes().unwrap().len(), 1, "the second time it is opened");
    for lba in disk_superblocks(&disk) {
        disk.alter(lba, |bytes| bytes[50] ^= 1);
    }
    let steps = disk.steps();
    assert!(matches!(error(open_or_format()), StoreError::Damaged { .. }));
    soil(&disk);
    assert!(matches!(error(open_or_format()), StoreError::Foreign { .. }));
    assert_eq!(disk.steps(), steps, "nothing was written");
}

#[test]
fn options_are_checked() {
    let disk = disk(12, 64);
    let with = |allocation_unit, metadata| {
        error(try_format(&disk, FormatOptions { allocation_unit, metadata, ..FormatOptions::default() }))
    };
    for unit in [0, 512, 2048, 65_537, 1 << 31] {
        assert!(matches!(with(unit, None), StoreError::Options { .. }), "{unit}");
    }
    for metadata in [0, 1 << 20, 113 << 20, u64::MAX] {
        assert!(matches!(with(1 << 16, Some(metadata)), StoreError::Options { .. }), "{metadata}");
    }
    assert!(matches!(with(1 << 16, Some(32 << 20)), StoreError::TooSmall { .. }));
    let options =
        FormatOptions { allocation_unit: 1 << 20, metadata: Some(16 << 20), ..FormatOptions::default() };
    let mut store = try_format(&disk, options).unwrap();
    assert_eq!(store.create("a", 1, 0).unwrap().blocks, 256);
    reopen(store, &disk);
}

#[test]
fn a_superblock_copy_is_enough_and_the_other_is_mended() {
    for shift in [9, 12] {
        let disk = disk(shift, 16);
        let mut store = format(&disk);
        store.create("a", 1, 0).unwrap();
        let before = store.volumes().unwrap();
        drop(store);
        for copy in disk_superblocks(&disk) {
            for damage in [|bytes: &mut [u8]| bytes.fill(0), |bytes: &mut [u8]| bytes[30] ^= 4] {
                disk.alter(copy, damage);
                let store = open(&disk).unwrap();
                assert_eq!(store.volumes().unwrap(), before);
                reopen(store, &disk);
            }
        }
        for copy in disk_superblocks(&disk) {
            disk.alter(copy, |bytes| bytes.fill(0));
        }
        assert!(matches!(error(open(&disk)), StoreError::Damaged { .. }), "the metadata is still there");
        // Somebody made a file system on it: the second copy is no reason to write to it.
        let steps = disk.steps();
        let disk = disk.copy();
        drop(try_format(&disk, FormatOptions { force: true, ..FormatOptions::default() }).unwrap());
        disk.alter(0, |bytes| bytes.fill(0));
        disk.alter(1080 >> shift, |bytes| {
            bytes[1080 % (1 << shift)..][..2].copy_from_slice(&[0x53, 0xef]);
        });
        let formatted = disk.steps();
        assert!(matches!(error(open(&disk)), StoreError::Foreign { .. }));
        assert!(formatted > steps && disk.steps() == formatted, "nothing was written");
    }
}

/// Not only refused: said to be what it is, and nothing is written, so that what was destroyed can be put back.
#[test]
fn superblocks_that_contradict_each_other_are_left_alone() {
    let (one, other) = (disk(12, 16), disk(12, 16));
    drop((format(&one), format(&other)));
    let [first, _] = disk_superblocks(&one);
    let strange = other.content()[&first].clone();
    one.alter(first, |bytes| bytes.copy_from_slice(&strange));
    let steps = one.steps();
    let refused = error(open(&one));
    assert!(matches!(&refused, StoreError::Damaged { what } if what.contains("contradict")), "{refused}");
    assert_eq!(one.steps(), steps, "nothing was written");
}

#[test]
fn a_device_of_another_size_or_block_size_is_refused_or_fits() {
    let disk = disk(12, 16);
    let mut store = format(&disk);
    store.create("a", 1, 0).unwrap();
    drop(store);
    let mut other = disk.clone();
    other.geometry_mut().blocks -= 1;
    assert!(matches!(error(open(&other)), StoreError::TooSmall { .. }));
    let mut other = disk.clone();
    other.geometry_mut().blocks += 10;
    let store = open(&other).unwrap();
    assert_eq!(store.volumes().unwrap().len(), 1);
    let metadata: u64 = store.metadata_extents().iter().map(|extent| extent.count.0).sum();
    assert_eq!(metadata + store.data_blocks(), store.geometry().blocks);
    drop(store);
    // The same bytes behind smaller blocks.
    let mut small = MemoryDisk::new(9, 16 << 11);
    for (lba, block) in disk.content() {
        small.write(lba * 8, &block).unwrap();
    }
    let refused = error(open(&small));
    assert!(matches!(&refused, StoreError::BlockSize { found: 512, .. }), "{refused}");
}

#[test]
fn check_says_what_is_wrong() {
    let disk = disk(12, 16);
    let mut store = format(&disk);
    let volume = store.create("a", 1, 0).unwrap();
    assert_eq!(store.check().unwrap(), []);
    disk.alter(disk_superblocks(&disk)[1], |bytes| bytes[200] = 1);
    assert!(matches!(store.check().unwrap()[..], [Finding::Superblock { copy: 1, .. }]));
    disk.alter(disk_superblocks(&disk)[1], |bytes| bytes[200] = 0);
    // A second volume with the same blocks, and a lost one.
    let twin = Volume { id: VolumeId(0), name: "b".into(), ..volume };
    store.catalog.commit(&[Change::Put(0, record::encode(&twin))]).unwrap();
    let findings: Vec<String> = store.check().unwrap().iter().map(ToString::to_string).collect();
    assert!(findings.iter().any(|finding| finding.contains("belong to another extent")), "{findings:?}");
    drop(store);
    let refused = error(open(&disk));
    assert!(matches!(&refused, StoreError::Damaged { what } if what.contains("another extent")), "{refused}");
}

#[test]
fn every_damaged_block_gives_an_error_or_the_right_volumes() {
    for shift in [9, 12] {
        let disk = disk(shift, 16);
        let mut store = format(&disk);
        for name in ["a", "b", "c"] {
            store.create(name, UNIT, 7).unwrap();
        }
        store.delete("b").unwrap();
        store.reserve_instances(9).unwrap();
        let right = store.volumes().unwrap();
        drop(store);
        let mut damaged = 0;
        for lba in disk.content().into_keys() {
            for at in [0usize, 40, 63, 300, 511] {
                let disk = disk.copy();
                disk.alter(lba, |bytes| bytes[at] ^= 0x21);
                match open(&disk) {
                    Ok(mut store) => {
                        assert_eq!(store.volumes().unwrap(), right);
                        // Of a page that the database does not use at present.
                        let findings = store.check().unwrap();
                        assert!(findings.iter().all(|finding| matches!(finding, Finding::Metadata { .. })));
                        assert_eq!(store.reserve_instances(1).unwrap(), 10..11);
                    }
                    Err(StoreError::Damaged { .. }) => damaged += 1,
                    Err(other) => panic!("block {lba}, byte {at}: {other}"),
                }
            }
        }
        assert!(damaged > 20);
    }
}

#[test]
fn a_block_that_cannot_be_read_is_the_devices_error() {
    let disk = disk(12, 16);
    drop(format(&disk));
    let lba = Layout::new(4096, 12, 16, 1040).unwrap().place(0, 1, 0);
    disk.make_unreadable(lba..lba + 2 * 1040);
    assert!(matches!(error(open(&disk)), StoreError::Disk(_)));
}

mod fuzzed {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        /// No damage stops the program, and what opens is sound.
        #[test]
        fn damaged_images_are_refused_or_sound(data in proptest::collection::vec(any::<u8>(), 0..80)) {
            crate::fuzz::image(&data);
        }
    }
}
