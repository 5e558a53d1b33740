//! Writes of bytes, and requests whose memory is a list.

use crate::support::*;
use tpt::{
    Access, Denied, Directory, Iova, KeyInstance, Memory, Operation, RegionIndex, RegionKey, RegionSpec,
    Request,
};

/// S4-R7, S4-R12: bounds in bytes, no alignment, and every block that is touched, over the joint of two ranges.
#[test]
fn s4_r7_r12_a_write_of_bytes_covers_every_block_it_touches() {
    let mut world = World::new();
    let key = world.grant(&[range(1000, 2), range(50, 1)]);
    let end = 3 * BLOCK;
    for (offset, length, expected) in [
        (0, 1, Ok(&[1000])),
        (1, BLOCK - 1, Ok(&[1000])),
        (BLOCK - 1, 1, Ok(&[1000])),
        (BLOCK - 1, 2, Ok(&[1000, 1001])),
        (BLOCK, BLOCK, Ok(&[1001])),
        (2 * BLOCK - 1, 2, Ok(&[1001, 50])),
        (0, end, Ok(&[1000, 1001, 50])),
        (1, end - 1, Ok(&[1000, 1001, 50])),
        (end - 1, 1, Ok(&[50])),
        (1, end, Err(Denied::Bounds)),
        (end, 1, Err(Denied::Bounds)),
        (end - 1, 2, Err(Denied::Bounds)),
        (0, 0, Err(Denied::Bounds)),
        (5, 0, Err(Denied::Bounds)),
        (u64::MAX, 1, Err(Denied::Bounds)),
        (u64::MAX, 2, Err(Denied::Bounds)),
        (7, u64::MAX - 6, Err(Denied::Bounds)),
        (u64::MAX, u64::MAX, Err(Denied::Bounds)),
    ] as [(u64, u64, Result<&[u64], Denied>); 18]
    {
        let request = Request { offset, length, ..world.request(Operation::WriteBytes, key, 0, 1) };
        assert_eq!(world.blocks(&request), expected.map(<[u64]>::to_vec), "{offset:#x}+{length:#x}");
    }
    // As a write of blocks the same ranges are not aligned.
    let request = Request { offset: 1, ..world.request(Operation::Write { fua: false }, key, 0, 1) };
    assert_eq!(world.blocks(&request), Err(Denied::Alignment));
    // It says what its blocks hold, and names no address: its data is copied.
    let request = Request { offset: BLOCK - 1, length: 2, ..world.request(Operation::WriteBytes, key, 0, 1) };
    let grant = world.directory.check(A, &request).unwrap();
    assert_eq!((grant.blocks(), grant.bytes(), grant.block_shift()), (2, 2 * BLOCK, 12));
    assert!(world.directory.pieces(&grant, 0).all(|piece| piece.iova == Iova(0)));
    assert!(!world.directory.region_is_idle(world.region_a.index()), "the copy reads it");
    world.directory.release(grant);
    assert!(world.directory.region_is_idle(world.region_a.index()));
}

#[test]
fn the_memory_of_a_write_of_bytes_need_not_be_aligned() {
    let mut world = World::new();
    let key = world.grant(&[range(0, 8)]);
    let size = 1 << 20;
    for (offset, length, expected) in [
        (1, 3, Ok(())),
        (3, 1, Ok(())),
        (size - 1, 1, Ok(())),
        (size - 1, 2, Err(Denied::Memory)),
        (size, 1, Err(Denied::Memory)),
        (u64::MAX, 1, Err(Denied::Memory)),
        (u64::MAX, 2, Err(Denied::Memory)),
    ] {
        let memory = Memory { region: world.region_a, offset };
        let request = Request { memory, length, ..world.request(Operation::WriteBytes, key, 0, 1) };
        assert_eq!(world.blocks(&request).map(|_| ()), expected, "{offset:#x}+{length}");
    }
    let memory = Memory { region: world.region_b, offset: 0 };
    let request = Request { memory, ..world.request(Operation::WriteBytes, key, 0, 1) };
    assert_eq!(world.blocks(&request), Err(Denied::Memory));
}

/// All of the check but the memory, in the same order.
#[test]
fn a_scattered_check_does_not_look_at_memory() {
    let mut world = World::new();
    let key = world.tables.create(&spec(A, Access::READ, &[range(7, 8)])).unwrap();
    let nowhere = Memory { region: RegionKey(u64::MAX), offset: u64::MAX };
    for operation in OPERATIONS {
        let blocks = if operation == Operation::Flush { 0 } else { 2 };
        let good = Request { memory: nowhere, ..world.request(operation, key, 1, blocks) };
        let good = if blocks == 0 { Request { offset: 0, ..good } } else { good };
        match world.directory.check_scattered(A, &good) {
            Ok(grant) => {
                assert!(operation.required_access() == Access::READ);
                assert_eq!((grant.blocks(), grant.bytes()), (2, 2 * BLOCK));
                let pieces: Vec<_> = world.directory.pieces(&grant, 0).collect();
                assert_eq!(
                    pieces.iter().map(|p| (p.lba.0, p.blocks, p.iova.0)).collect::<Vec<_>>(),
                    [(8, 2, 0)]
                );
                assert!(!world.directory.entry_is_idle(key.index()));
                world.directory.release(grant);
            }
            Err(denied) => assert!(denied == Denied::Access && operation.required_access() != Access::READ),
        }
        for spoilt in [
            Request { length: 1 << 40, ..good },
            Request { offset: 1, ..good },
            Request { key: tpt::Key::new(key.index(), KeyInstance(99)), ..good },
            Request { key: tpt::Key(u64::MAX), ..good },
        ] {
            for domain in [A, B] {
                let with_memory = Request { memory: Memory { region: world.region_a, offset: 0 }, ..spoilt };
                let whole = world.directory.check(domain, &with_memory).unwrap_err();
                assert_eq!(world.directory.check_scattered(domain, &spoilt).unwrap_err(), whole);
            }
        }
        assert!(world.directory.entry_is_idle(key.index()));
    }
}

/// One piece of a list: checked as memory is, counted until it is given back.
#[test]
fn a_hold_is_checked_and_counted() {
    let mut world = World::new();
    let size = 1 << 20;
    let own = world.region_a;
    let at = |region, offset| Memory { region, offset };
    let write = Operation::Write { fua: true };
    for (operation, memory, length, expected) in [
        (write, at(own, 8), 4096, Some(IOVA + 8)),
        (Operation::Read, at(own, 0), size, Some(IOVA)),
        (Operation::Compare, at(own, size - 4), 4, Some(IOVA + size - 4)),
        (write, at(own, size - 4), 8, None),
        (write, at(own, 2), 4096, None),
        (Operation::WriteBytes, at(own, 3), 4095, Some(IOVA + 3)),
        (write, at(own, u64::MAX - 3), 8, None),
        (write, at(own, 0), 0, None),
        (write, at(own, size), 0, None),
        (write, at(world.region_b, 0), 4096, None),
        (write, at(RegionKey::new(own.index(), KeyInstance(own.instance().0 + 1)), 0), 4096, None),
        (write, at(RegionKey::new(RegionIndex(u32::MAX), own.instance()), 0), 4096, None),
        (Operation::Flush, at(own, 0), 4096, None),
        (Operation::Deallocate, at(own, 0), 4096, None),
        (Operation::WriteZeroes { deallocate: false }, at(own, 0), 4096, None),
    ] {
        match world.directory.hold(A, operation, memory, length) {
            Ok(hold) => {
                assert_eq!((Some(hold.iova().0), hold.region()), (expected, own.index()));
                assert!(!world.directory.region_is_idle(own.index()));
                world.directory.release_hold(hold);
            }
            Err(denied) => {
                assert_eq!((denied, expected), (Denied::Memory, None), "{operation:?} {memory:?} {length}");
            }
        }
        assert!(world.directory.region_is_idle(own.index()), "{operation:?} {memory:?} {length}");
    }
}

/// The direction counts, and a region that is being deleted is waited for but not held again.
#[test]
fn a_hold_keeps_its_region_until_it_is_given_back() {
    let mut world = World::new();
    let spec = RegionSpec { domain: A, access: Access::READ, iova: Iova(0x5000), bytes: 4096 };
    let source = world.tables.create_region(&spec).unwrap();
    let memory = Memory { region: source, offset: 0 };
    assert_eq!(world.directory.hold(A, Operation::Read, memory, 512).unwrap_err(), Denied::Memory);
    let write = Operation::Write { fua: false };
    let first = world.directory.hold(A, write, memory, 512).unwrap();
    let second = world.directory.hold(A, write, memory, 4096).unwrap();
    let quiesce = world.tables.begin_region_delete(Some(A), source).unwrap();
    assert_eq!(world.directory.hold(A, write, memory, 512).unwrap_err(), Denied::Memory);
    world.directory.release_hold(first);
    assert!(!world.directory.region_is_idle(quiesce.region()));
    world.directory.release_hold(second);
    assert!(world.directory.region_is_idle(quiesce.region()));
    world.tables.finish_region_delete(quiesce);
    let mut other = Directory::new(world.tables.published(), 1);
    let hold = world.directory.hold(A, write, Memory { region: world.region_a, offset: 0 }, 4).unwrap();
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| other.release_hold(hold)));
    assert!(refused.is_err(), "it is another poller's");
}
