//! The decision: every check, its answer and its place in the order (S4, S8).

use crate::support::*;
use tpt::{
    Access, Denied, Directory, Domain, EntryIndex, ExtensionKey, Iova, Key, KeyInstance, Lba, Limits, Memory,
    Modification, Operation, Piece, Purpose, RegionIndex, RegionKey, RegionSpec, Request, Tables,
};

/// S4-R5: what each operation needs of an entry, written out once by hand.
#[test]
fn s4_r5_every_access_value_against_every_operation() {
    let mut world = World::new();
    for bits in 0..=7 {
        let access = Access::from_bits(bits).unwrap();
        let (r, w, t) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
        let key = world.tables.create(&spec(A, access, &[range(100, 8)])).unwrap();
        for operation in OPERATIONS {
            let allowed = match operation {
                Operation::Read | Operation::Compare => r,
                Operation::Write { .. } | Operation::WriteBytes | Operation::Flush => w,
                Operation::WriteZeroes { deallocate } => w && (t || !deallocate),
                Operation::Deallocate => t,
            };
            let blocks = if operation == Operation::Flush { 0 } else { 2 };
            let request = world.request(operation, key, 0, blocks);
            let expected = if allowed { Ok((100..100 + blocks).collect()) } else { Err(Denied::Access) };
            assert_eq!(world.blocks(&request), expected, "{operation:?} with {access}");
        }
        // And the value that is no value: not valid.
        world.delete(key);
        for operation in OPERATIONS {
            let request = world.request(operation, key, 0, u64::from(operation != Operation::Flush));
            assert_eq!(world.blocks(&request), Err(Denied::EntryInvalid), "S4-R2 {operation:?}");
        }
    }
    assert!(Access::from_bits(8).is_none());
}

/// S4-R3, R4 and the memory's direction: a read writes memory, a write and a compare read it, the rest touch none.
#[test]
fn s4_r5_memory_rights_against_every_operation() {
    let mut world = World::new();
    let key = world.grant(&[range(0, 8)]);
    for bits in 1..=3 {
        let access = Access::from_bits(bits).unwrap();
        let region = RegionSpec { domain: A, access, iova: Iova(IOVA), bytes: BLOCK };
        let region = world.tables.create_region(&region).unwrap();
        for operation in OPERATIONS {
            let allowed = match operation {
                Operation::Read => access.allows(Access::WRITE),
                Operation::Write { .. } | Operation::WriteBytes | Operation::Compare => {
                    access.allows(Access::READ)
                }
                Operation::Flush | Operation::WriteZeroes { .. } | Operation::Deallocate => true,
            };
            let mut request = world.request(operation, key, 0, u64::from(operation != Operation::Flush));
            request.memory.region = region;
            let answer = world.blocks(&request).map(|_| ());
            assert_eq!(
                answer,
                if allowed { Ok(()) } else { Err(Denied::Memory) },
                "{operation:?} with {access}"
            );
        }
    }
}

/// S4-R6: another domain's key is refused, live or not, also if the guesser has rights of its own.
#[test]
fn s4_r6_a_foreign_key_is_refused() {
    let mut world = World::new();
    let key = world.grant(&[range(0, 8)]);
    let own = world.tables.create(&spec(B, Access::ALL, &[range(100, 8)])).unwrap();
    let mut request = world.request(Operation::Read, key, 0, 1);
    request.memory.region = world.region_b;
    assert_eq!(world.directory.check(B, &request).unwrap_err(), Denied::Domain);
    request.key = own;
    let grant = world.directory.check(B, &request).unwrap();
    world.directory.release(grant);
    assert_eq!(world.directory.check(Domain(9), &request).unwrap_err(), Denied::Domain);
}

/// S4-R7: bounds, without wrapping.
#[test]
fn s4_r7_bounds_do_not_wrap() {
    let mut world = World::new();
    let key = world.grant(&[range(1000, 4), range(2000, 4)]);
    let end = 8 * BLOCK;
    let cases: &[(u64, u64, Result<(), Denied>)] = &[
        (0, end, Ok(())),
        (end - BLOCK, BLOCK, Ok(())),
        (end, BLOCK, Err(Denied::Bounds)),
        (end - BLOCK, 2 * BLOCK, Err(Denied::Bounds)),
        (0, end + BLOCK, Err(Denied::Bounds)),
        (0, 0, Err(Denied::Bounds)),
        (end, 0, Err(Denied::Bounds)),
        (u64::MAX - BLOCK + 1, BLOCK, Err(Denied::Bounds)),
        (BLOCK, u64::MAX - BLOCK + 1, Err(Denied::Bounds)),
        (u64::MAX, u64::MAX, Err(Denied::Bounds)),
        (u64::MAX, BLOCK, Err(Denied::Bounds)),
        (u64::MAX, 2 * BLOCK, Err(Denied::Bounds)),
        (BLOCK, u64::MAX, Err(Denied::Bounds)),
        (!(BLOCK - 1), 2 * BLOCK, Err(Denied::Bounds)),
        (0, u64::from(u32::MAX), Err(Denied::Bounds)),
        (1, BLOCK, Err(Denied::Alignment)),
        (512, BLOCK, Err(Denied::Alignment)),
        (0, BLOCK - 1, Err(Denied::Alignment)),
        (0, 1, Err(Denied::Alignment)),
    ];
    for &(offset, length, expected) in cases {
        let mut request = world.request(Operation::Read, key, 0, 1);
        (request.offset, request.length) = (offset, length);
        assert_eq!(world.blocks(&request).map(|_| ()), expected, "{offset:#x}+{length:#x}");
    }
    for (offset, length) in [(0, BLOCK), (BLOCK, 0), (0, 1)] {
        let mut request = world.request(Operation::Flush, key, 0, 0);
        (request.offset, request.length) = (offset, length);
        assert_eq!(world.blocks(&request), Err(Denied::Bounds), "a flush names no range");
    }
}

#[test]
fn memory_must_cover_the_request() {
    let mut world = World::new();
    let key = world.grant(&[range(0, 8)]);
    let at = |region, offset| Memory { region, offset };
    let own = world.region_a;
    let size = 1 << 20;
    let cases = [
        (at(own, 0), Ok(())),
        (at(own, size - BLOCK), Ok(())),
        (at(own, 4), Ok(())),
        (at(own, size - BLOCK + 4), Err(Denied::Memory)),
        (at(own, size), Err(Denied::Memory)),
        (at(own, 1), Err(Denied::Memory)),
        (at(own, 2), Err(Denied::Memory)),
        (at(own, u64::MAX - BLOCK + 1), Err(Denied::Memory)),
        (at(own, u64::MAX - 3), Err(Denied::Memory)),
        (at(world.region_b, 0), Err(Denied::Memory)),
        (at(RegionKey::new(own.index(), KeyInstance(own.instance().0 + 1)), 0), Err(Denied::Memory)),
        (at(RegionKey::new(RegionIndex(LIMITS.regions), own.instance()), 0), Err(Denied::Memory)),
        (at(RegionKey::new(RegionIndex(u32::MAX), own.instance()), 0), Err(Denied::Memory)),
        (at(RegionKey::new(RegionIndex(5), own.instance()), 0), Err(Denied::Memory)),
    ];
    for (memory, expected) in cases {
        let request = Request { memory, ..world.request(Operation::Read, key, 0, 1) };
        assert_eq!(world.blocks(&request).map(|_| ()), expected, "{memory:?}");
        // Where no data moves the memory is not looked at.
        let request = Request { memory, ..world.request(Operation::Deallocate, key, 0, 1) };
        assert_eq!(world.blocks(&request), Ok(vec![0]), "{memory:?}");
    }
}

/// S4-R13: each request fails one check and all later ones; the answer names the first.
#[test]
fn s4_r13_the_earliest_failing_check_decides() {
    let mut world = World::new();
    let corrupt = world.tables.create(&spec(A, Access::READ, &[range(0, 8)])).unwrap();
    world.tables.damage_entry_for_test(corrupt.index(), 3, 1 << 40);
    let foreign = RegionKey::new(RegionIndex(1), KeyInstance(99));
    // From the last check to the first, each request also fails all that the ones before it fail.
    let mut request = world.request(Operation::Read, corrupt, 0, 1);
    assert_eq!(world.blocks(&request), Err(Denied::TableCorrupt));
    request.memory = Memory { region: foreign, offset: 1 };
    assert_eq!(world.blocks(&request), Err(Denied::Memory));
    request.length = BLOCK - 1;
    assert_eq!(world.blocks(&request), Err(Denied::Alignment));
    request.offset = u64::MAX;
    assert_eq!(world.blocks(&request), Err(Denied::Bounds));
    request.operation = Operation::Write { fua: true };
    assert_eq!(world.blocks(&request), Err(Denied::Access));
    request.key = Key::new(corrupt.index(), KeyInstance(0));
    assert_eq!(world.blocks(&request), Err(Denied::KeyInstance));
    let quiesce = world.tables.begin(Some(A), corrupt, Purpose::Modify).unwrap();
    assert_eq!(world.blocks(&request), Err(Denied::Held));
    world.tables.cancel(quiesce);
    let quiesce = world.tables.begin(Some(A), corrupt, Purpose::Delete).unwrap();
    assert_eq!(world.blocks(&request), Err(Denied::EntryInvalid));
    assert_eq!(world.directory.check(B, &request).unwrap_err(), Denied::Domain);
    request.key = Key::new(EntryIndex(LIMITS.entries), KeyInstance(0));
    assert_eq!(world.directory.check(B, &request).unwrap_err(), Denied::KeyRange);
    assert_eq!(world.blocks(&request), Err(Denied::KeyRange));
    world.tables.finish_delete(quiesce);
}

/// S4-R14: no refused request changes a table, a count or a directory.
#[test]
fn s4_r14_a_failed_request_changes_nothing() {
    let mut world = World::new();
    let key = world.tables.create(&spec(A, Access::READ, &[range(5, 8)])).unwrap();
    let held = world.tables.create(&spec(A, Access::READ, &[range(50, 8)])).unwrap();
    let closed = world.tables.create(&spec(A, Access::READ, &[range(90, 8)])).unwrap();
    let _modify = world.tables.begin(Some(A), held, Purpose::Modify).unwrap();
    let _revoke = world.tables.begin(None, closed, Purpose::Revoke).unwrap();
    let good = world.request(Operation::Read, key, 0, 1);
    world.blocks(&good).unwrap();
    world.blocks(&good).unwrap();
    let before = (world.tables.published().snapshot(), format!("{:?}", world.directory));
    let stale = Key::new(key.index(), KeyInstance(77));
    let bad = [
        Request { key: held, ..good },
        Request { key: closed, ..good },
        Request { key: stale, ..good },
        Request { key: Key(u64::MAX), ..good },
        Request { key: Key::new(EntryIndex(40), KeyInstance(1)), ..good },
        Request { operation: Operation::Write { fua: false }, ..good },
        Request { operation: Operation::Deallocate, ..good },
        Request { offset: 8 * BLOCK, ..good },
        Request { offset: 1, ..good },
        Request { length: 0, ..good },
        Request { memory: Memory { region: world.region_b, offset: 0 }, ..good },
        Request { memory: Memory { region: world.region_a, offset: 1 << 40 }, ..good },
    ];
    for request in bad {
        assert!(world.blocks(&request).is_err(), "{request:?}");
        assert!(world.directory.check(B, &request).is_err(), "{request:?}");
    }
    assert_eq!(format!("{:?}", world.directory), before.1);
    assert!(world.tables.published().snapshot() == before.0);
    assert!(world.directory.entry_is_idle(key.index()));
}

/// S4-R12: across the joint of two ranges, and resumed at every block.
#[test]
fn s4_r12_pieces_follow_the_ranges() {
    let mut world = World::new();
    let key = world.grant(&[range(1000, 3), range(20, 2), range(500, 4)]);
    let request = Request {
        memory: Memory { region: world.region_a, offset: 8 },
        ..world.request(Operation::Write { fua: false }, key, 2, 6)
    };
    let grant = world.directory.check(A, &request).unwrap();
    assert_eq!((grant.blocks(), grant.bytes(), grant.key()), (6, 6 * BLOCK, key));
    assert_eq!(grant.operation(), Operation::Write { fua: false });
    let piece = |lba, blocks, block| Piece { lba: Lba(lba), blocks, iova: Iova(IOVA + 8 + block * BLOCK) };
    let pieces: Vec<_> = world.directory.pieces(&grant, 0).collect();
    assert_eq!(pieces, [piece(1002, 1, 0), piece(20, 2, 1), piece(500, 3, 3)]);
    assert_eq!(world.directory.pieces(&grant, 2).collect::<Vec<_>>(), [piece(21, 1, 2), piece(500, 3, 3)]);
    assert_eq!(world.directory.pieces(&grant, 5).collect::<Vec<_>>(), [piece(502, 1, 5)]);
    assert_eq!(world.directory.pieces(&grant, 6).count(), 0);
    assert_eq!(world.directory.pieces(&grant, u64::MAX).count(), 0);
    world.directory.release(grant);
    let zeroes = world.request(Operation::WriteZeroes { deallocate: true }, key, 2, 2);
    let grant = world.directory.check(A, &zeroes).unwrap();
    let pieces: Vec<_> = world.directory.pieces(&grant, 0).collect();
    assert_eq!(pieces.iter().map(|p| (p.lba.0, p.iova.0)).collect::<Vec<_>>(), [(1002, 0), (20, 0)]);
    world.directory.release(grant);
    let flush = world.directory.check(A, &world.request(Operation::Flush, key, 0, 0)).unwrap();
    assert_eq!((flush.blocks(), flush.bytes(), world.directory.pieces(&flush, 0).count()), (0, 0, 0));
    assert_eq!(world.directory.only_piece(&flush), None);
    assert!(!world.directory.entry_is_idle(key.index()), "a flush is active I/O");
    world.directory.release(flush);
}

/// Within the first range one piece is all; what reaches beyond it is left to the LBA table.
#[test]
fn s4_r12_the_first_range_is_one_piece() {
    let mut world = World::new();
    let key = world.grant(&[range(1000, 3), range(20, 2)]);
    for (first, blocks, expected) in [
        (0, 3, Some((1000, 3, IOVA))),
        (2, 1, Some((1002, 1, IOVA))),
        (2, 2, None),
        (3, 1, None),
        (0, 5, None),
    ] {
        let grant = world.directory.check(A, &world.request(Operation::Read, key, first, blocks)).unwrap();
        let only = world.directory.only_piece(&grant).map(|piece| (piece.lba.0, piece.blocks, piece.iova.0));
        assert_eq!(only, expected, "{first}+{blocks}");
        world.directory.release(grant);
    }
    let bytes =
        Request { offset: BLOCK + 1, length: BLOCK, ..world.request(Operation::WriteBytes, key, 0, 1) };
    let grant = world.directory.check(A, &bytes).unwrap();
    assert_eq!(world.directory.only_piece(&grant), Some(Piece { lba: Lba(1001), blocks: 2, iova: Iova(0) }));
    world.directory.release(grant);
}

/// A count of one poller is never moved by another's token, whether memory goes with it or not.
#[test]
fn a_grant_is_released_only_where_it_was_granted() {
    let mut world = World::new();
    let key = world.grant(&[range(1000, 3)]);
    let mut other = Directory::new(world.tables.published(), 4);
    let read = world.request(Operation::Read, key, 0, 1);
    let flush = Request { offset: 0, length: 0, ..world.request(Operation::Flush, key, 0, 1) };
    for request in [read, flush] {
        let grant = world.directory.check(A, &request).unwrap();
        let elsewhere = std::panic::AssertUnwindSafe(|| other.release(grant));
        std::panic::catch_unwind(elsewhere).expect_err("it was not granted there");
        assert!(!world.directory.entry_is_idle(key.index()) && other.entry_is_idle(key.index()));
    }
    let hold = world.directory.hold(A, Operation::Read, read.memory, BLOCK).unwrap();
    let elsewhere = std::panic::AssertUnwindSafe(|| other.release_hold(hold));
    std::panic::catch_unwind(elsewhere).expect_err("it was not given there");
    assert!(
        other.region_is_idle(world.region_a.index())
            && !world.directory.region_is_idle(world.region_a.index())
    );
}

/// S8-R8: a thousand ranges in order, as one request and block by block.
#[test]
fn s8_r8_a_grant_of_a_thousand_ranges_is_read_in_order() {
    let limits = Limits { entries: 16, lba_entries: 1100, extensions: 0, regions: 2 };
    let mut world = World::<32>::with(limits, 0);
    let big = RegionSpec { domain: A, access: Access::READ_WRITE, iova: Iova(0), bytes: 1 << 40 };
    // Lengths 1 to 5, scattered backwards over the device.
    let ranges: Vec<_> = (0..1000u64).map(|i| range((1000 - i) * 10, 1 + i % 5)).collect();
    let plain: Vec<u64> = ranges.iter().flat_map(|r| r.first.0..r.end().0).collect();
    world.region_a = {
        let quiesce = world.tables.begin_region_delete(None, world.region_a).unwrap();
        world.tables.finish_region_delete(quiesce);
        world.tables.create_region(&big).unwrap()
    };
    let key = world.grant(&ranges);
    world.tables.self_check().unwrap();
    let blocks = plain.len() as u64;
    assert_eq!(world.blocks(&world.request(Operation::Read, key, 0, blocks)), Ok(plain.clone()));
    for block in 0..blocks {
        let found = world.blocks(&world.request(Operation::Read, key, block, 1));
        assert_eq!(found, Ok(vec![plain[block as usize]]));
    }
    let past = world.request(Operation::Read, key, blocks, 1);
    assert_eq!(world.blocks(&past), Err(Denied::Bounds));
}

/// S4-R11, S8-R5, R6: a key of a former life fails, first as invalid, then by its instance.
#[test]
fn s4_r11_s8_r5_r6_a_re_used_index_refuses_its_old_key() {
    let mut world = World::new();
    let old = world.grant(&[range(0, 8)]);
    let old_request = world.request(Operation::Read, old, 0, 1);
    world.delete(old);
    assert_eq!(world.blocks(&old_request), Err(Denied::EntryInvalid));
    let new = world.grant(&[range(0, 8)]);
    assert_eq!((new.index(), new.instance().0), (old.index(), old.instance().0 + 1));
    assert_eq!(world.blocks(&old_request), Err(Denied::KeyInstance));
    assert_eq!(world.blocks(&world.request(Operation::Read, new, 0, 1)), Ok(vec![0]));
}

/// S4-R10: rights reduced while idle.
#[test]
fn s4_r10_reduced_rights_hold_at_once() {
    let mut world = World::new();
    let key = world.grant(&[range(0, 8)]);
    let write = world.request(Operation::Write { fua: false }, key, 0, 1);
    let read = world.request(Operation::Read, key, 0, 1);
    assert!(world.blocks(&write).is_ok());
    let quiesce = world.tables.begin(Some(A), key, Purpose::Modify).unwrap();
    assert_eq!(world.blocks(&read), Err(Denied::Held));
    let change = Modification { access: Some(Access::READ), ranges: None };
    world.tables.finish_modify(quiesce, &change).unwrap();
    assert_eq!(world.blocks(&write), Err(Denied::Access));
    assert_eq!(world.blocks(&read), Ok(vec![0]));
    world.tables.self_check().unwrap();
}

/// S8-R13: all instances of one index at a width of 8 bits: one opens, none does for another domain.
#[test]
fn s8_r5_r13_guessing_the_instance_helps_nobody_else() {
    let mut tables = Tables::<8>::new(LIMITS, KeyInstance(42));
    let region = |domain| RegionSpec { domain, access: Access::ALL, iova: Iova(0), bytes: BLOCK };
    let regions = [A, B].map(|domain| tables.create_region(&region(domain)).unwrap());
    let key = tables.create(&spec(A, Access::ALL, &[range(0, 8)])).unwrap();
    let mut directory = Directory::new(tables.published(), 1);
    let mut opened = vec![];
    for instance in (0..=255).chain([256, u32::MAX]) {
        let key = Key::new(key.index(), KeyInstance(instance));
        let guess = |region| {
            let memory = Memory { region, offset: 0 };
            Request {
                operation: Operation::Read,
                key,
                extension: ExtensionKey::NONE,
                offset: 0,
                length: BLOCK,
                memory,
            }
        };
        match directory.check(A, &guess(regions[0])) {
            Ok(grant) => {
                opened.push(instance);
                directory.release(grant);
            }
            Err(denied) => assert_eq!(denied, Denied::KeyInstance, "S8-R5"),
        }
        assert_eq!(directory.check(B, &guess(regions[1])).unwrap_err(), Denied::Domain);
    }
    assert_eq!(opened, [42]);
}
