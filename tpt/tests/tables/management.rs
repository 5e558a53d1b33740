//! Create, query, modify, delete and revoke (S6, S8).

use crate::support::*;
use tpt::{
    Access, Blocks, Denied, Domain, EntryIndex, GrantSpec, Iova, Key, KeyInstance, LbaRange, Limits,
    Modification, Operation, Purpose, RegionIndex, RegionKey, RegionSpec, TableError, Tables, Usage,
};

fn modification(ranges: &[LbaRange]) -> Modification<'_> {
    Modification { access: None, ranges: Some(ranges) }
}

/// S6-R2.
#[test]
fn s6_r2_query_returns_what_was_created() {
    let mut world = World::new();
    let ranges = [range(9, 1), range(3, 2)];
    let spec = GrantSpec { domain: A, access: Access::READ, block_shift: 9, ranges: &ranges, shared: true };
    let key = world.tables.create(&spec).unwrap();
    let found = world.tables.query(A, key).unwrap();
    assert_eq!((found.key, found.domain, found.access), (key, A, Access::READ));
    assert_eq!((found.block_shift, found.blocks, found.shared), (9, Blocks(3), true));
    assert_eq!(found.ranges, ranges);
    assert_eq!(world.tables.keys_of(A), [key]);
    assert_eq!(world.tables.keys_of(B), []);
    assert_eq!(world.tables.usage(), Usage { entries: 1, lba_entries: 2, extensions: 0, regions: 2 });
}

/// S6-R3, S8-R2: whatever is missing or wrong, nothing stays allocated and the tables are as before.
#[test]
fn s6_r3_a_refused_create_leaves_nothing_behind() {
    let limits = Limits { entries: 16, lba_entries: 20, extensions: 0, regions: 2 };
    let mut world = World::<32>::with(limits, 1);
    for i in 0..15 {
        world.grant(&[range(i * 10, 1)]);
    }
    let elsewhere = [range(500, 4)];
    let shared = GrantSpec { shared: true, ..spec(A, Access::READ, &elsewhere) };
    let before = (world.tables.usage(), world.tables.published().snapshot());
    let many: Vec<_> = (0..6).map(|i| range(1000 + i * 2, 1)).collect();
    let bad = |first, count| [LbaRange { first: tpt::Lba(first), count: Blocks(count) }];
    let (empty, wraps, huge) = (bad(600, 0), bad(u64::MAX, 2), bad(600, 1 << 60));
    let (overlap, twice) = ([range(600, 5), range(604, 1)], [range(600, 1), range(600, 1)]);
    let (free, taken) = ([range(600, 1)], [range(600, 1), range(0, 1)]);
    let cases = [
        (spec(A, Access::READ, &many), TableError::NoResources),
        (spec(B, Access::READ, &free), TableError::NoResources), // no segment left for another domain
        (spec(A, Access::READ, &[]), TableError::Parameter),
        (spec(A, Access::READ, &empty), TableError::Parameter),
        (spec(A, Access::READ, &wraps), TableError::Parameter),
        (spec(A, Access::READ, &huge), TableError::Parameter),
        (spec(A, Access::READ, &overlap), TableError::Parameter),
        (spec(A, Access::READ, &twice), TableError::Parameter),
        (GrantSpec { block_shift: 8, ..shared }, TableError::Parameter),
        (GrantSpec { block_shift: 17, ..shared }, TableError::Parameter),
        (spec(B, Access::READ, &taken), TableError::Overlap),
        (GrantSpec { ranges: &taken, ..shared }, TableError::Overlap),
    ];
    for (spec, expected) in cases {
        assert_eq!(world.tables.create(&spec), Err(expected), "{spec:?}");
        assert_eq!((world.tables.usage(), world.tables.published().snapshot()), before, "{spec:?}");
        world.tables.self_check().unwrap();
    }
    world.tables.create(&spec(A, Access::READ, &many[..5])).unwrap();
    assert_eq!(world.tables.create(&shared), Err(TableError::NoResources), "all 16 entries are in use");
    assert_eq!(world.tables.usage(), Usage { entries: 16, lba_entries: 20, extensions: 0, regions: 2 });
    let region = RegionSpec { domain: A, access: Access::READ, iova: Iova(0), bytes: 4 };
    assert_eq!(world.tables.create_region(&region), Err(TableError::NoResources));
    world.tables.self_check().unwrap();
}

/// S8-R2.
#[test]
fn s8_r2_blocks_are_one_domains_own_or_shared() {
    let mut world = World::new();
    let both = [range(10, 10), range(30, 10)];
    let own = world.tables.create(&spec(A, Access::READ, &both)).unwrap();
    let again = world.tables.create(&spec(A, Access::WRITE, &[range(15, 20)])).unwrap();
    let last = [range(39, 1)];
    let theirs = spec(B, Access::READ, &last);
    assert_eq!(world.tables.create(&theirs), Err(TableError::Overlap));
    let shared = GrantSpec { shared: true, ..theirs };
    assert_eq!(world.tables.create(&shared), Err(TableError::Overlap), "one side that shares is not enough");
    world.delete(own);
    let key = world.tables.create(&theirs).unwrap();
    assert_eq!(
        world.tables.create(&spec(B, Access::READ, &[range(34, 1)])),
        Err(TableError::Overlap),
        "still under the other grant"
    );
    world.delete(again);
    let quiesce = world.tables.begin(None, key, Purpose::Revoke).unwrap();
    world.finish_delete(quiesce);
    world.tables.create(&shared).unwrap();
    world.tables.create(&GrantSpec { domain: A, ..shared }).unwrap();
    world.tables.self_check().unwrap();
}

/// S6-R4, R5, R6: nothing active; active and ends before the timer; outlasts it.
#[test]
fn s6_r4_r5_r6_delete_waits_for_the_quiescent_point() {
    let mut world = World::new();
    let idle = world.grant(&[range(0, 8)]);
    world.delete(idle);

    let key = world.grant(&[range(0, 8)]);
    let request = world.request(Operation::Read, key, 0, 4);
    let grant = world.directory.check(A, &request).unwrap();
    let quiesce = world.tables.begin(Some(A), key, Purpose::Delete).unwrap();
    assert!(!world.directory.entry_is_idle(quiesce.entry()));
    assert_eq!(world.blocks(&request), Err(Denied::EntryInvalid));
    assert_eq!(world.tables.query(A, key), Err(TableError::EntryInvalid));
    // S6-R6: the timer ends; the entry is as before.
    world.tables.cancel(quiesce);
    assert_eq!(world.blocks(&request), Ok(vec![0, 1, 2, 3]));
    // S6-R5: the I/O in flight still finds its blocks, then ends.
    let quiesce = world.tables.begin(Some(A), key, Purpose::Delete).unwrap();
    assert_eq!(world.directory.pieces(&grant, 0).map(|p| p.blocks).sum::<u64>(), 4);
    world.directory.release(grant);
    world.finish_delete(quiesce);
    assert_eq!(world.tables.usage().entries, 0);
    assert_eq!(world.blocks(&request), Err(Denied::EntryInvalid));
}

/// S6-R7: a modify, idle, waited for, and given up.
#[test]
fn s6_r7_modify_waits_for_the_quiescent_point() {
    let mut world = World::new();
    let key = world.grant(&[range(0, 8)]);
    let request = world.request(Operation::Read, key, 7, 1);
    let quiesce = world.tables.begin(Some(A), key, Purpose::Modify).unwrap();
    world.tables.finish_modify(quiesce, &modification(&[range(0, 8), range(100, 1)])).unwrap();
    assert_eq!(world.blocks(&world.request(Operation::Read, key, 7, 2)), Ok(vec![7, 100]));
    // Given up.
    let grant = world.directory.check(A, &request).unwrap();
    let quiesce = world.tables.begin(Some(A), key, Purpose::Modify).unwrap();
    assert_eq!(world.blocks(&request), Err(Denied::Held));
    assert!(world.tables.query(A, key).is_ok(), "S6-R9");
    world.tables.cancel(quiesce);
    assert_eq!(world.blocks(&request), Ok(vec![7]));
    // Waited for.
    let quiesce = world.tables.begin(Some(A), key, Purpose::Modify).unwrap();
    world.directory.release(grant);
    assert!(world.directory.entry_is_idle(quiesce.entry()));
    world.tables.finish_modify(quiesce, &modification(&[range(50, 1)])).unwrap();
    assert_eq!(world.blocks(&request), Err(Denied::Bounds));
    assert_eq!(world.blocks(&world.request(Operation::Read, key, 0, 1)), Ok(vec![50]));
    assert_eq!(world.tables.usage().lba_entries, 1);
    world.tables.self_check().unwrap();
}

/// S6-R8: what a modify lacks; the old ranges stay and the token can be used again.
#[test]
fn s6_r8_a_refused_modify_leaves_the_old_ranges() {
    let limits = Limits { entries: 32, lba_entries: 4, extensions: 0, regions: 2 };
    let mut world = World::<32>::with(limits, 1);
    let key = world.grant(&[range(0, 8), range(20, 1)]);
    world.tables.create(&spec(B, Access::READ, &[range(100, 8)])).unwrap();
    let mut quiesce = world.tables.begin(Some(A), key, Purpose::Modify).unwrap();
    let before = world.tables.published().snapshot();
    let cases: &[(&[LbaRange], TableError)] = &[
        (&[range(0, 8), range(30, 1)], TableError::NoResources), // the new list is written beside the old one
        (&[range(107, 2)], TableError::Overlap),
        (&[], TableError::Parameter),
    ];
    for (ranges, expected) in cases {
        let (token, error) = world.tables.finish_modify(quiesce, &modification(ranges)).unwrap_err();
        assert_eq!(error, *expected);
        assert_eq!(world.tables.published().snapshot(), before);
        world.tables.self_check().unwrap();
        quiesce = token;
    }
    world.tables.cancel(quiesce);
    let whole = world.request(Operation::Read, key, 0, 9);
    assert_eq!(world.blocks(&whole), Ok(vec![0, 1, 2, 3, 4, 5, 6, 7, 20]));
}

/// S6-R13, truncation: a modify that extends keeps the blocks there were; the key stays.
#[test]
fn s6_r13_extending_and_truncating_keep_the_key() {
    let mut world = World::new();
    let key = world.grant(&[range(40, 4)]);
    for ranges in [&[range(40, 4), range(10, 4)][..], &[range(40, 2)], &[range(40, 40)]] {
        let quiesce = world.tables.begin(Some(A), key, Purpose::Modify).unwrap();
        world.tables.finish_modify(quiesce, &modification(ranges)).unwrap();
        let blocks: Vec<_> = ranges.iter().flat_map(|r| r.first.0..r.end().0).collect();
        let whole = world.request(Operation::Read, key, 0, blocks.len() as u64);
        assert_eq!(world.blocks(&whole), Ok(blocks));
        world.tables.self_check().unwrap();
    }
}

/// S6-R14: another domain can do nothing to a key, and learns nothing from the answer.
#[test]
fn s6_r14_another_domain_cannot_manage() {
    let mut world = World::new();
    let key = world.grant(&[range(0, 8)]);
    let never = Key::new(EntryIndex(33), KeyInstance(1));
    let region = world.region_a;
    let before = world.tables.published().snapshot();
    for key in [key, never, Key::new(key.index(), KeyInstance(9))] {
        assert_eq!(world.tables.query(B, key), Err(TableError::Domain));
        for purpose in [Purpose::Modify, Purpose::Delete, Purpose::Revoke] {
            assert_eq!(world.tables.begin(Some(B), key, purpose), Err(TableError::Domain));
        }
    }
    assert_eq!(world.tables.begin_region_delete(Some(B), region), Err(TableError::Domain));
    assert_eq!(world.tables.published().snapshot(), before);
    let beyond = Key::new(EntryIndex(LIMITS.entries), KeyInstance(1));
    assert_eq!(world.tables.query(A, beyond), Err(TableError::KeyRange));
    assert_eq!(
        world.tables.begin(None, Key::new(key.index(), KeyInstance(9)), Purpose::Revoke),
        Err(TableError::KeyInstance)
    );
}

/// S6-R11: the old key fails as a name for management, too.
#[test]
fn s6_r11_an_old_key_manages_nothing() {
    let mut world = World::new();
    let old = world.grant(&[range(0, 8)]);
    world.delete(old);
    assert_eq!(world.tables.query(A, old), Err(TableError::EntryInvalid));
    let new = world.grant(&[range(0, 8)]);
    assert_eq!(old.index(), new.index());
    assert_eq!(world.tables.query(A, old), Err(TableError::KeyInstance));
    assert_eq!(world.tables.begin(Some(A), old, Purpose::Delete), Err(TableError::KeyInstance));
    assert!(world.tables.query(A, new).is_ok());
}

#[test]
fn one_management_operation_at_a_time() {
    let mut world = World::new();
    let key = world.grant(&[range(0, 8)]);
    for first in [Purpose::Modify, Purpose::Delete] {
        let quiesce = world.tables.begin(Some(A), key, first).unwrap();
        for second in [Purpose::Modify, Purpose::Delete] {
            assert_eq!(world.tables.begin(Some(A), key, second), Err(TableError::Busy));
        }
        world.tables.cancel(quiesce);
    }
    assert!(world.blocks(&world.request(Operation::Read, key, 0, 1)).is_ok());
}

/// A revocation admits nothing from its first instant, never re-opens, and is finished in the end.
#[test]
fn a_revocation_never_reopens() {
    let mut world = World::new();
    let key = world.grant(&[range(0, 8)]);
    let request = world.request(Operation::Read, key, 0, 1);
    let grant = world.directory.check(A, &request).unwrap();
    let quiesce = world.tables.begin(None, key, Purpose::Revoke).unwrap();
    assert_eq!(world.blocks(&request), Err(Denied::EntryInvalid));
    assert_eq!(world.tables.begin(None, key, Purpose::Revoke), Err(TableError::Busy));
    assert_eq!(world.tables.begin(Some(A), key, Purpose::Delete), Err(TableError::EntryInvalid));
    // The timer ends: still revoked, still draining, nothing re-used.
    world.tables.cancel(quiesce);
    assert_eq!(world.blocks(&request), Err(Denied::EntryInvalid));
    assert_eq!(world.tables.begin(Some(A), key, Purpose::Modify), Err(TableError::EntryInvalid));
    assert_eq!(world.tables.keys_of(A), [key]);
    let same = [range(0, 8)];
    let theirs = spec(B, Access::READ, &same);
    assert_eq!(world.tables.create(&theirs), Err(TableError::Overlap));
    let next = world.grant(&[range(100, 1)]);
    assert_ne!(next.index(), key.index());
    // Begun again, drained, finished.
    let quiesce = world.tables.begin(None, key, Purpose::Revoke).unwrap();
    assert_eq!(world.directory.pieces(&grant, 0).next().unwrap().lba.0, 0);
    world.directory.release(grant);
    world.finish_delete(quiesce);
    world.tables.create(&theirs).unwrap();
}

/// A revocation does not wait for what the owner has begun; the owner's token is worth nothing then.
#[test]
fn a_revocation_overtakes_modify_and_delete() {
    let mut world = World::new();
    for first in [Purpose::Modify, Purpose::Delete] {
        for end in 0..3 {
            let key = world.grant(&[range(0, 8)]);
            let request = world.request(Operation::Read, key, 0, 1);
            let overtaken = world.tables.begin(Some(A), key, first).unwrap();
            let quiesce = world.tables.begin(None, key, Purpose::Revoke).unwrap();
            assert_eq!(world.blocks(&request), Err(Denied::EntryInvalid));
            match (first, end) {
                (Purpose::Modify, 0) => {
                    let result = world.tables.finish_modify(overtaken, &modification(&[range(0, 1)]));
                    let (overtaken, error) = result.unwrap_err();
                    assert_eq!(error, TableError::EntryInvalid);
                    world.tables.cancel(overtaken);
                }
                (_, 1) | (Purpose::Delete, 0) => world.tables.finish_delete(overtaken),
                _ => world.tables.cancel(overtaken),
            }
            assert_eq!(world.tables.usage().entries, 1);
            assert_eq!(world.blocks(&request), Err(Denied::EntryInvalid));
            world.finish_delete(quiesce);
            assert_eq!(world.tables.usage().entries, 0);
        }
    }
}

#[test]
fn a_modify_may_end_as_a_delete() {
    let mut world = World::new();
    let key = world.grant(&[range(0, 8)]);
    let request = world.request(Operation::Read, key, 0, 1);
    let quiesce = world.tables.begin(Some(A), key, Purpose::Modify).unwrap();
    assert_eq!(world.blocks(&request), Err(Denied::Held));
    world.finish_delete(quiesce);
    assert_eq!(world.blocks(&request), Err(Denied::EntryInvalid));
    assert_eq!(world.tables.usage().entries, 0);
}

#[test]
fn a_region_drains_before_it_is_used_again() {
    let mut world = World::new();
    let key = world.grant(&[range(0, 8)]);
    let request = world.request(Operation::Read, key, 0, 1);
    let grant = world.directory.check(A, &request).unwrap();
    let old = world.region_a;
    let quiesce = world.tables.begin_region_delete(Some(A), old).unwrap();
    assert_eq!(world.tables.begin_region_delete(None, old), Err(TableError::Busy));
    assert!(!world.directory.region_is_idle(quiesce.region()));
    assert!(world.directory.region_is_idle(world.region_b.index()));
    assert_eq!(world.blocks(&request), Err(Denied::Memory));
    assert_eq!(world.directory.pieces(&grant, 0).next().unwrap().iova, Iova(IOVA));
    assert_eq!(world.tables.regions_of(A), [old]);
    world.directory.release(grant);
    assert!(world.directory.region_is_idle(quiesce.region()));
    world.tables.finish_region_delete(quiesce);
    assert_eq!(world.tables.regions_of(A), []);
    assert_eq!(world.tables.begin_region_delete(None, old), Err(TableError::EntryInvalid));
    assert_eq!(world.blocks(&request), Err(Denied::Memory));
    let spec = RegionSpec { domain: A, access: Access::READ_WRITE, iova: Iova(0), bytes: BLOCK };
    let new = world.tables.create_region(&spec).unwrap();
    assert_eq!((new.index(), new.instance().0), (old.index(), old.instance().0 + 1));
    assert_eq!(world.blocks(&request), Err(Denied::Memory));
    assert_eq!(world.tables.begin_region_delete(Some(A), old), Err(TableError::KeyInstance));
    let beyond = RegionKey::new(RegionIndex(LIMITS.regions), KeyInstance(1));
    assert_eq!(world.tables.begin_region_delete(None, beyond), Err(TableError::KeyRange));
    world.region_a = new;
    assert_eq!(world.blocks(&world.request(Operation::Read, key, 0, 1)), Ok(vec![0]));
    world.tables.self_check().unwrap();
}

#[test]
fn a_region_must_make_sense() {
    let mut world = World::new();
    let good = RegionSpec { domain: A, access: Access::READ, iova: Iova(4096), bytes: 4096 };
    let before = world.tables.published().snapshot();
    for spec in [
        RegionSpec { bytes: 0, ..good },
        RegionSpec { iova: Iova(4098), ..good },
        RegionSpec { iova: Iova(u64::MAX - 3), bytes: 4, ..good },
        RegionSpec { bytes: u64::MAX, ..good },
        RegionSpec { access: Access::NONE, ..good },
        RegionSpec { access: Access::TRIM, ..good },
    ] {
        assert_eq!(world.tables.create_region(&spec), Err(TableError::Parameter), "{spec:?}");
    }
    assert_eq!(world.tables.published().snapshot(), before);
    world.tables.create_region(&good).unwrap();
}

/// S8-R12: at a width of 8 bits an index is retired after its last instance, and no old key ever resolves.
#[test]
fn s8_r12_an_index_retires_before_its_instance_wraps() {
    let limits = Limits { entries: 2, lba_entries: 4, extensions: 0, regions: 3 };
    let mut world = World::<8>::with(limits, 0);
    let mut seen = std::collections::BTreeSet::new();
    let mut old = vec![];
    for life in 0..512 {
        let key = world.grant(&[range(0, 1)]);
        assert!(seen.insert(key), "life {life} has a key that was used before");
        for stale in &old {
            let denied = world.blocks(&world.request(Operation::Read, *stale, 0, 1)).unwrap_err();
            assert!(matches!(denied, Denied::KeyInstance | Denied::EntryInvalid), "{denied:?}");
        }
        world.delete(key);
        old.push(key);
    }
    assert_eq!(world.tables.create(&spec(A, Access::READ, &[range(0, 1)])), Err(TableError::NoResources));
    assert_eq!(world.tables.create(&spec(B, Access::READ, &[range(0, 1)])), Err(TableError::NoResources));
    assert_eq!(world.tables.usage().entries, 0);
    // Regions, too: the third one has 256 lives.
    let region = RegionSpec { domain: A, access: Access::READ, iova: Iova(0), bytes: 4 };
    for life in 0..256 {
        let key = world.tables.create_region(&region).unwrap();
        assert_eq!(key, RegionKey::new(RegionIndex(2), KeyInstance(life)));
        let quiesce = world.tables.begin_region_delete(None, key).unwrap();
        world.tables.finish_region_delete(quiesce);
        world.tables.self_check().unwrap();
    }
    assert_eq!(world.tables.create_region(&region), Err(TableError::NoResources));
}

/// The persistent epoch: instances start where told and stop below the ceiling.
#[test]
fn instances_stay_below_the_ceiling() {
    let mut tables = Tables::<32>::new(LIMITS, KeyInstance(100));
    assert_eq!(tables.highest_instance(), 100);
    tables.set_instance_ceiling(102);
    let one = [range(0, 1)];
    let grant = spec(A, Access::READ, &one);
    for instance in [100, 101] {
        let key = tables.create(&grant).unwrap();
        assert_eq!((key.instance().0, tables.highest_instance()), (instance, instance));
        let quiesce = tables.begin(None, key, Purpose::Delete).unwrap();
        tables.finish_delete(quiesce);
    }
    let before = tables.published().snapshot();
    assert_eq!(tables.create(&grant), Err(TableError::Ceiling));
    assert_eq!((tables.published().snapshot(), tables.usage()), (before, Usage::default()));
    tables.set_instance_ceiling(100);
    let region = RegionSpec { domain: A, access: Access::READ, iova: Iova(0), bytes: 4 };
    assert_eq!(tables.create_region(&region), Err(TableError::Ceiling));
    tables.set_instance_ceiling(200);
    assert_eq!(tables.create(&grant).unwrap().instance().0, 102);
    assert_eq!(tables.create_region(&region).unwrap().instance().0, 100);
    assert_eq!(tables.highest_instance(), 102);
    tables.self_check().unwrap();
    // A first instance that is none of this width.
    let mut tables = Tables::<8>::new(LIMITS, KeyInstance(256));
    assert_eq!(tables.create(&grant), Err(TableError::NoResources));
    assert_eq!(tables.create_region(&region), Err(TableError::NoResources));
}

/// S8-R10, S6-R3: 10,000 cycles of fragmented grants of changing sizes leak nothing and never fail.
#[test]
fn s8_r10_ten_thousand_cycles_leak_nothing() {
    let limits = Limits { entries: 48, lba_entries: 64, extensions: 0, regions: 2 };
    let mut world = World::<32>::with(limits, 1);
    let mut live = std::collections::VecDeque::new();
    let mut used = 0;
    for cycle in 0..10_000u64 {
        let count = 1 + (cycle * 7 + cycle / 13) % 23;
        while used + count > 64 || live.len() == 16 {
            let (key, count): (Key, u64) = live.pop_front().unwrap();
            let quiesce = world.tables.begin(Some(A), key, Purpose::Delete).unwrap();
            world.tables.finish_delete(quiesce);
            used -= count;
        }
        let ranges: Vec<_> = (0..count).map(|i| range(cycle * 100 + i * 2, 1)).collect();
        // Every free LBA entry can be had: the table does not fragment.
        live.push_back((world.grant(&ranges), count));
        used += count;
        assert_eq!(u64::from(world.tables.usage().lba_entries), used);
        if cycle % 500 == 0 {
            world.tables.self_check().unwrap();
        }
    }
    for (key, _) in live {
        world.delete(key);
    }
    assert_eq!(world.tables.usage(), Usage { entries: 0, lba_entries: 0, extensions: 0, regions: 2 });
    let all: Vec<_> = (0..64).map(|i| range(i * 2, 1)).collect();
    let key = world.grant(&all);
    assert_eq!(world.blocks(&world.request(Operation::Read, key, 63, 1)), Ok(vec![126]));
}

/// Segments that one domain no longer needs serve others, without end, as domains come and go.
#[test]
fn free_segments_go_to_other_domains() {
    let limits = Limits { entries: 32, lba_entries: 32, extensions: 0, regions: 2 };
    let mut world = World::<32>::with(limits, 1);
    let own = world.grant(&[range(0, 1)]);
    let mut seen = std::collections::BTreeSet::new();
    for number in 0..200 {
        let domain = Domain(1000 + number);
        let keys: Vec<_> = (0..16)
            .map(|i| world.tables.create(&spec(domain, Access::READ, &[range(10 + i, 1)])).unwrap())
            .collect();
        assert_eq!(world.tables.keys_of(domain), keys);
        assert_eq!(
            world.tables.create(&spec(domain, Access::READ, &[range(40, 1)])),
            Err(TableError::NoResources),
            "never an entry of another domain's segment"
        );
        for key in keys {
            assert!(seen.insert(key), "{key} was handed out before");
            let request = world.request(Operation::Read, key, 0, 1);
            assert_eq!(world.directory.check(A, &request).unwrap_err(), Denied::Domain);
            let quiesce = world.tables.begin(Some(domain), key, Purpose::Delete).unwrap();
            world.finish_delete(quiesce);
            assert_eq!(world.directory.check(domain, &request).unwrap_err(), Denied::EntryInvalid);
        }
    }
    assert_eq!(world.blocks(&world.request(Operation::Read, own, 0, 1)), Ok(vec![0]));
}
