//! S8-R14: the tables survive the poller that used them, whatever it had in flight.

use crate::support::*;
use tpt::{
    Access, Denied, Directory, Domain, EntryIndex, ExtensionKey, Grant, Hold, Key, Limits, Memory,
    Modification, Operation, Purpose, RegionIndex, Request,
};

/// Grants of A and B of all shapes; some were changed, some deleted and used again.
fn furnished() -> (World, Vec<(Domain, Key)>) {
    let limits = Limits { entries: 100, lba_entries: 400, extensions: 0, regions: 4 };
    let mut world = World::with(limits, 1);
    let mut keys = vec![];
    for i in 0..60u64 {
        let ranges: Vec<_> =
            (0..1 + i % 7).rev().map(|j| range(i * 1000 + j * 10, 1 + (i + j) % 9)).collect();
        let domain = if i % 3 == 0 { B } else { A };
        let access = Access::from_bits(1 + (i % 7) as u8).unwrap();
        keys.push((domain, world.tables.create(&spec(domain, access, &ranges)).unwrap()));
    }
    for i in (0..60).step_by(5) {
        let (domain, key) = keys[i];
        let quiesce = world.tables.begin(Some(domain), key, Purpose::Modify).unwrap();
        let moved = [range(500_000 + i as u64 * 100, 7), range(800_000 + i as u64 * 100, 3)];
        let change = Modification { access: Some(Access::ALL), ranges: Some(&moved) };
        world.tables.finish_modify(quiesce, &change).unwrap();
    }
    for i in (1..60).step_by(6) {
        let (domain, key) = keys[i];
        let quiesce = world.tables.begin(Some(domain), key, Purpose::Delete).unwrap();
        world.tables.finish_delete(quiesce);
        let ranges = [range(900_000 + i as u64 * 100, 5)];
        keys[i].1 = world.tables.create(&spec(domain, Access::READ, &ranges)).unwrap();
    }
    (world, keys)
}

impl World {
    fn region_of(&self, domain: Domain) -> Memory {
        Memory { region: if domain == A { self.region_a } else { self.region_b }, offset: 0 }
    }

    /// That a poller finds of every entry what the control plane's own copy says of it, block by block.
    fn compare_to_the_host_copy(&self, directory: &mut Directory, keys: &[(Domain, Key)]) {
        for &(domain, key) in keys {
            let told = self.tables.query(domain, key).unwrap();
            let plain: Vec<u64> = told.ranges.iter().flat_map(|range| range.first.0..range.end().0).collect();
            let memory = self.region_of(domain);
            let request = |operation, offset, length| Request {
                operation,
                key,
                extension: ExtensionKey::NONE,
                offset,
                length,
                memory,
            };
            let whole = told.blocks.0 * BLOCK;
            for (operation, needed) in [
                (Operation::Read, Access::READ),
                (Operation::Write { fua: false }, Access::WRITE),
                (Operation::Deallocate, Access::TRIM),
            ] {
                let answer = directory.check(domain, &request(operation, 0, whole));
                assert_eq!(answer.is_ok(), told.access.allows(needed), "{operation:?} of {key}");
                let Ok(grant) = answer else { continue };
                let pieces = directory.pieces(&grant, 0);
                assert!(pieces.flat_map(|piece| piece.lba.0..piece.lba.0 + piece.blocks).eq(plain.clone()));
                directory.release(grant);
                let beyond = directory.check(domain, &request(operation, 0, whole + BLOCK));
                assert_eq!(beyond.unwrap_err(), Denied::Bounds);
            }
            let stranger = if domain == A { B } else { A };
            let foreign = directory.check(stranger, &request(Operation::Read, 0, whole));
            assert_eq!(foreign.unwrap_err(), Denied::Domain);
        }
    }

    fn all_idle(&self, directory: &Directory) -> bool {
        let limits = self.tables.published().limits();
        (0..limits.entries).all(|index| directory.entry_is_idle(EntryIndex(index)))
            && (0..limits.regions).all(|index| directory.region_is_idle(RegionIndex(index)))
    }
}

/// What a poller has at the device.
fn load(world: &World, directory: &mut Directory, keys: &[(Domain, Key)]) -> (Vec<Grant>, Vec<Hold>) {
    let mut grants = vec![];
    let mut holds = vec![];
    for &(domain, key) in keys {
        let memory = world.region_of(domain);
        let request = Request {
            operation: Operation::Read,
            key,
            extension: ExtensionKey::NONE,
            offset: 0,
            length: BLOCK,
            memory,
        };
        grants.extend(directory.check(domain, &request));
        holds.extend(directory.hold(domain, Operation::Read, memory, 512));
    }
    assert!(grants.len() > 20 && holds.len() == keys.len());
    (grants, holds)
}

/// The poller goes, with its counts, in order or not; a new one loads all segments again and finds them as the host
/// has them. Again and again, with one place for segments or with many.
#[test]
fn s8_r14_a_new_poller_loads_what_the_host_copy_says() {
    let (world, keys) = furnished();
    let published = world.tables.published();
    let before = published.snapshot();
    for round in 0..6 {
        let mut old = Directory::new(world.tables.published(), 1 + round);
        world.compare_to_the_host_copy(&mut old, &keys);
        let (grants, holds) = load(&world, &mut old, &keys);
        assert!(!world.all_idle(&old));
        if round % 2 == 0 {
            // In order: the device has been stopped, and each request ended.
            grants.into_iter().for_each(|grant| old.release(grant));
            holds.into_iter().for_each(|hold| old.release_hold(hold));
            assert!(world.all_idle(&old));
        } else {
            // Not in order: they are gone with the poller that counted them.
            std::mem::forget((grants, holds));
        }
        drop(old);
        let mut new = Directory::new(world.tables.published(), 1 + round);
        assert!(world.all_idle(&new), "nothing of the former poller's counts");
        assert_eq!(new.counters().fetches, 0, "nor of its segments");
        world.compare_to_the_host_copy(&mut new, &keys);
        assert!(new.counters().fetches >= 4, "all were loaded again");
        assert!(world.all_idle(&new));
    }
    assert!(published.snapshot() == before, "no poller wrote to the tables");
    world.tables.self_check().unwrap();
}

/// What changed while there was no poller is seen by the next: nothing old is found again.
#[test]
fn s8_r14_a_new_poller_sees_what_changed_meanwhile() {
    let (mut world, mut keys) = furnished();
    let mut old = Directory::new(world.tables.published(), 8);
    let (grants, holds) = load(&world, &mut old, &keys);
    std::mem::forget((grants, holds));
    drop(old);
    // With that poller gone nobody is asked any more: its I/O ended with the device.
    let (gone_domain, gone) = keys.remove(3);
    let quiesce = world.tables.begin(None, gone, Purpose::Revoke).unwrap();
    world.tables.finish_delete(quiesce);
    let (domain, moved) = keys[7];
    let quiesce = world.tables.begin(Some(domain), moved, Purpose::Modify).unwrap();
    let ranges = [range(700_000, 2), range(600_000, 5)];
    let change = Modification { access: Some(Access::READ), ranges: Some(&ranges) };
    world.tables.finish_modify(quiesce, &change).unwrap();
    let mut new = Directory::new(world.tables.published(), 2);
    world.compare_to_the_host_copy(&mut new, &keys);
    let memory = world.region_of(gone_domain);
    let stale = Request {
        operation: Operation::Read,
        key: gone,
        extension: ExtensionKey::NONE,
        offset: 0,
        length: BLOCK,
        memory,
    };
    assert_eq!(new.check(gone_domain, &stale).unwrap_err(), Denied::EntryInvalid);
    world.tables.self_check().unwrap();
}
