//! The power goes at every step.

use super::*;

/// One call of a script, with what the owner of the volume does next.
type Call = fn(&mut Store, &MemoryDisk) -> Result<(), StoreError>;

/// What the store says it holds.
#[derive(Clone, PartialEq, Eq, Debug)]
struct State {
    volumes: Vec<Volume>,
    next_instance: u32,
}

fn state(store: &Store) -> Result<State, StoreError> {
    Ok(State { volumes: store.volumes()?, next_instance: store.next_instance })
}

/// What an owner writes into all of a volume, by the first letter of its name.
fn value(volume: &Volume) -> u8 {
    match volume.name.as_bytes().first() {
        Some(b'a') => 0xa1,
        Some(b'b') => 0xb2,
        _ => 0,
    }
}

fn write(disk: &MemoryDisk, volume: &Volume) -> Result<(), StoreError> {
    for extent in &volume.extents {
        let bytes = usize::try_from(extent.count.0 << disk.geometry().block_shift).unwrap();
        disk.clone().write(extent.first.0, &vec![value(volume); bytes])?;
    }
    Ok(())
}

const SCRIPT: &[Call] = &[
    |store, disk| write(disk, &store.create("a", 3 * UNIT, 1)?),
    |store, disk| write(disk, &store.create("b", UNIT, 2)?),
    |store, _| store.set_access("b", Subject::Group(4), Access::READ).map(drop),
    |store, _| store.reserve_instances(1000).map(drop),
    |store, disk| write(disk, &store.grow("a", 5 * UNIT)?),
    |store, _| store.rename("a", "a2").map(drop),
    |store, _| store.shrink("a2", 2 * UNIT).map(drop),
    |store, _| store.delete("b"),
    |store, _| store.create("c", 4 * UNIT, 3).map(drop),
    |store, _| store.reserve_instances(1).map(drop),
    |store, _| store.set_kind("c", VolumeKind::Files).map(drop),
    |store, _| store.set_kind("a2", VolumeKind::AsFound).map(drop),
];

/// Runs the script until the power goes; what was acknowledged by then, and whether a call of the store was under way.
fn run(store: &mut Store, disk: &MemoryDisk) -> (State, bool) {
    let mut acknowledged = state(store).unwrap();
    for call in SCRIPT {
        match call(store, disk) {
            Ok(()) => acknowledged = state(store).unwrap(),
            Err(StoreError::Disk(_) | StoreError::Poisoned { .. }) => {
                // If the store is well it was the owner's write that failed, or nothing was committed yet.
                return state(store).map_or((acknowledged, true), |state| (state, false));
            }
            Err(other) => panic!("{other}"),
        }
    }
    (acknowledged, false)
}

/// After a cut at any step of any call all that was acknowledged is there, the call under way was done or not, nothing
/// is wrong, no volume shows what another owner wrote, and the store goes on.
#[test]
fn a_power_cut_at_any_step_loses_nothing() {
    for shift in [9, 12] {
        let empty = disk(shift, 12);
        let layout = format(&empty).superblock.layout;
        soil_range(&empty, layout.data..layout.data + 20 * layout.unit_blocks());
        let whole = empty.copy();
        let mut store = open(&whole).unwrap();
        let start = whole.steps();
        run(&mut store, &whole);
        let end = whole.steps();
        assert!(end - start > 100, "the script does something");
        let (mut done, mut undone) = (0, 0);
        for step in start..end {
            for seed in 0..4 {
                let disk = empty.copy();
                let mut store = open(&disk).unwrap();
                assert_eq!(disk.steps(), start);
                disk.power_off_at(step);
                let (acknowledged, under_way) = run(&mut store, &disk);
                drop(store);
                disk.power_cut(seed * 1000 + step);
                let found = survivor(&disk);
                if found == acknowledged {
                    undone += u32::from(under_way);
                } else {
                    assert!(
                        under_way && is_after(&found, &acknowledged),
                        "step {step}: {found:?} after {acknowledged:?}"
                    );
                    done += 1;
                }
                if seed == 0 {
                    go_on(&disk, &found);
                }
            }
        }
        assert!(done > 10 && undone > 100, "calls were cut before and after their commit: {done}, {undone}");
    }
}

fn survivor(disk: &MemoryDisk) -> State {
    let mut store = open(disk).unwrap();
    assert_eq!(store.check().unwrap(), []);
    let found = state(&store).unwrap();
    for volume in &found.volumes {
        let value = value(volume);
        assert!(content(disk, volume).iter().all(|byte| *byte == 0 || *byte == value), "{}", volume.name);
    }
    found
}

/// Whether one call leads from `old` to `new`: one volume differs, or the instances do.
fn is_after(new: &State, old: &State) -> bool {
    let changed =
        |a: &State, b: &State| a.volumes.iter().filter(|volume| !b.volumes.contains(volume)).count();
    let (came, went) = (changed(new, old), changed(old, new));
    let instances = usize::from(new.next_instance > old.next_instance);
    new.next_instance >= old.next_instance && came.max(went) + instances == 1
}

fn go_on(disk: &MemoryDisk, found: &State) {
    let mut store = open(disk).unwrap();
    assert_eq!(store.reserve_instances(1).unwrap().start, found.next_instance);
    let free = store.free_blocks() << disk.geometry().block_shift;
    let rest = store.create("rest", free, 0).unwrap();
    assert!(is_all(&content(disk, &rest), 0));
    for volume in store.volumes().unwrap() {
        store.delete(&volume.name).unwrap();
    }
    assert_eq!(store.free_blocks(), store.data_blocks());
}

#[test]
fn a_power_cut_while_formatting_leaves_a_store_or_something_to_format() {
    let foreign = disk(12, 12);
    foreign.alter(0, |bytes| bytes[1080..1082].copy_from_slice(&[0x53, 0xef]));
    let force = FormatOptions { force: true, ..FormatOptions::default() };
    let whole = foreign.copy();
    drop(try_format(&whole, force).unwrap());
    for step in 0..whole.steps() {
        for seed in 0..3 {
            let disk = foreign.copy();
            disk.power_off_at(step);
            let formatted = try_format(&disk, force).is_ok();
            disk.power_cut(seed * 1000 + step);
            match open(&disk) {
                Ok(mut store) => assert_eq!(store.check().unwrap(), []),
                Err(StoreError::Foreign { .. } | StoreError::Blank | StoreError::Damaged { .. }) => {
                    assert!(!formatted, "step {step}");
                }
                Err(other) => panic!("step {step}: {other}"),
            }
            reopen(try_format(&disk, force).unwrap(), &disk);
        }
    }
}

#[test]
fn a_power_cut_while_opening_loses_nothing() {
    let disk = disk(12, 12);
    let mut store = format(&disk);
    run(&mut store, &disk);
    let before = state(&store).unwrap();
    // As a crash of the program leaves it, never closed, and with a copy of the superblock to mend.
    disk.alter(0, |bytes| bytes[77] ^= 1);
    let crashed = disk.copy();
    drop(store);
    let whole = crashed.copy();
    drop(open(&whole).unwrap());
    assert!(whole.steps() > crashed.steps() + 5);
    for step in crashed.steps()..whole.steps() {
        for seed in 0..8 {
            let disk = crashed.copy();
            disk.power_off_at(step);
            drop(open(&disk));
            disk.power_cut(seed * 1000 + step);
            let mut store = open(&disk).unwrap();
            assert_eq!(store.check().unwrap(), []);
            assert_eq!(state(&store).unwrap(), before);
        }
    }
}
