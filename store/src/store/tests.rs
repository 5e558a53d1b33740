//! The store on a disk in memory.

use driver::disk::MemoryDisk;

use super::*;

pub(super) fn disk(block_shift: u8, megabytes: u64) -> MemoryDisk {
    MemoryDisk::new(block_shift, (megabytes << 20) >> block_shift)
}

fn format(disk: &MemoryDisk) -> Store {
    Store::format(Box::new(disk.clone()), FormatOptions::default()).unwrap()
}

fn reopen(store: Store, disk: &MemoryDisk) -> Store {
    drop(store);
    let mut store = Store::open(Box::new(disk.clone())).unwrap();
    assert_eq!(store.check().unwrap(), []);
    store
}

#[test]
fn volumes_are_made_changed_and_found_again() {
    for shift in [9, 12] {
        let disk = disk(shift, 16);
        let mut store = format(&disk);
        let uuid = store.uuid();
        let unit = (64 << 10) >> shift;
        let one = store.create("one", 100_000, 1000).unwrap();
        assert_eq!((one.blocks, one.owner, one.access.len()), (2 * unit, 1000, 0));
        store.create("two", 1, 7).unwrap();
        store.set_access("two", Subject::Group(3), Access::READ).unwrap();
        store.set_access("two", Subject::User(3), Access::READ_WRITE).unwrap();
        store.set_access("two", Subject::Group(3), Access::NONE).unwrap();
        store.rename("one", "eins").unwrap();
        store.grow("eins", 1 << 20).unwrap();
        let shrunk = store.shrink("eins", 64 << 10).unwrap();
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
