//! Opened files: create, extend, modify, delete, query (S6).

use crate::files::{file, world};
use crate::support::*;
use tpt::{
    Access, Blocks, Denied, ExtensionAttributes, ExtensionKey, FileAttributes, FileModification, FileSpec,
    GrantSpec, Key, KeyInstance, LbaRange, Limits, Modification, Operation, Purpose, Request, TableError,
    Usage,
};

const NOTHING: FileModification<'_> = FileModification { access: None, keep: None, append: &[] };

fn append<'a>(extents: &'a [LbaRange]) -> FileModification<'a> {
    FileModification { append: extents, ..NOTHING }
}

fn keep(blocks: u64) -> FileModification<'static> {
    FileModification { keep: Some(Blocks(blocks)), ..NOTHING }
}

/// S6-R2.
#[test]
fn s6_r2_query_returns_what_a_file_was_created_with() {
    let mut world = world();
    let extents = [range(9, 1), range(3, 2)];
    let spec = FileSpec { access: Access::READ, block_shift: 9, shared: true, ..file(&extents) };
    let keys = world.tables.create_file(&spec).unwrap();
    let found = world.tables.query(A, keys.file).unwrap();
    assert_eq!((found.key, found.domain, found.access), (keys.file, A, Access::READ));
    assert_eq!((found.block_shift, found.blocks, found.shared), (9, Blocks(3), true));
    assert_eq!(found.ranges, extents);
    let extension =
        |number: usize, offset, bytes| ExtensionAttributes { key: keys.extensions[number], offset, bytes };
    let extensions = vec![extension(0, 0, 512), extension(1, 512, 1024)];
    assert_eq!(found.file, Some(FileAttributes { context: 77, extensions }));
    assert_eq!(world.tables.usage(), Usage { entries: 1, lba_entries: 2, extensions: 2, regions: 2 });
    assert_eq!(world.tables.keys_of(A), [keys.file]);
    // S6-R9: also with I/O active, and during a modify; not during a delete.
    let request = Request { length: 512, ..world.request(Operation::Read, keys.file, 0, 1) };
    let grant = world.directory.check(A, &request).unwrap();
    let quiesce = world.tables.begin(Some(A), keys.file, Purpose::Modify).unwrap();
    assert_eq!(world.tables.query(A, keys.file).unwrap().file.unwrap().extensions.len(), 2);
    world.tables.cancel(quiesce);
    let quiesce = world.tables.begin(Some(A), keys.file, Purpose::Delete).unwrap();
    assert_eq!(world.tables.query(A, keys.file), Err(TableError::EntryInvalid));
    world.directory.release(grant);
    world.finish_delete(quiesce);
    assert_eq!(world.tables.usage(), Usage { entries: 0, lba_entries: 0, extensions: 0, regions: 2 });
    let empty = world.open(&[]);
    assert_eq!(world.tables.usage().extensions, 0, "none has no segment");
    assert_eq!(world.tables.query(A, empty.file).unwrap().blocks, Blocks(0));
}

/// S6-R3: whatever is missing or wrong, nothing stays allocated and the tables are as before.
#[test]
fn s6_r3_a_refused_file_leaves_nothing_behind() {
    let limits = Limits { entries: 16, lba_entries: 20, extensions: 16, regions: 2 };
    let mut world = World::<32>::with(limits, 1);
    for i in 0..12 {
        world.grant(&[range(i * 10, 1)]);
    }
    let held = world.open(&[range(400, 2), range(410, 2), range(420, 2)]);
    let spread = |first: u64, count: u64| (0..count).map(|i| range(first + i * 2, 1)).collect::<Vec<_>>();
    let (six, five, four) = (spread(1000, 6), spread(1000, 5), spread(1000, 4));
    let bad = |first, count| [LbaRange { first: tpt::Lba(first), count: Blocks(count) }];
    let (empty, wraps, huge) = (bad(600, 0), bad(u64::MAX, 2), bad(600, 1 << 60));
    let (overlap, of_grant, of_file) = ([range(600, 5), range(604, 1)], [range(0, 1)], [range(421, 9)]);
    let cases = [
        (file(&six), TableError::NoResources), // of the LBA table
        (FileSpec { domain: B, ..file(&four) }, TableError::NoResources), // no segment of names for another domain
        (file(&empty), TableError::Parameter),
        (file(&wraps), TableError::Parameter),
        (file(&huge), TableError::Parameter),
        (file(&overlap), TableError::Parameter),
        (FileSpec { block_shift: 8, ..file(&four) }, TableError::Parameter),
        (FileSpec { block_shift: 17, ..file(&[]) }, TableError::Parameter),
        (file(&of_grant), TableError::Overlap),
        (FileSpec { shared: true, ..file(&of_grant) }, TableError::Overlap),
        (FileSpec { domain: B, ..file(&of_file) }, TableError::Overlap),
        (FileSpec { shared: true, ..file(&of_file) }, TableError::Overlap),
    ];
    let before = (world.tables.usage(), world.tables.published().snapshot());
    let refused = |world: &mut World, spec: &FileSpec<'_>, expected| {
        let before = (world.tables.usage(), world.tables.published().snapshot());
        assert_eq!(world.tables.create_file(spec), Err(expected), "{spec:?}");
        assert_eq!((world.tables.usage(), world.tables.published().snapshot()), before, "{spec:?}");
        world.tables.self_check().unwrap();
    };
    for (spec, expected) in cases {
        refused(&mut world, &spec, expected);
    }
    // Segments: 4 of 16 entries are in use; 8 more, and then there is no run of 8, but one of 4.
    let eight = world.open(&five);
    assert_eq!(world.tables.usage(), Usage { entries: 14, lba_entries: 20, extensions: 12, regions: 2 });
    world.change(eight.file, &keep(1)).unwrap();
    refused(&mut world, &file(&spread(2000, 5)), TableError::NoResources); // 4 LBA entries left
    world.delete(held.file);
    assert_eq!(world.tables.usage(), Usage { entries: 13, lba_entries: 13, extensions: 8, regions: 2 });
    world.open(&spread(2000, 5));
    refused(&mut world, &file(&[range(3000, 1)]), TableError::NoResources); // no entry of the FEPT
    assert_eq!(world.tables.usage(), Usage { entries: 14, lba_entries: 18, extensions: 16, regions: 2 });
    world.delete(eight.file);
    world.open(&[range(3000, 1)]);
    assert!(before.0 != world.tables.usage());
}

/// S6-R4, R5, R6: nothing active; active and ends before the timer; outlasts it.
#[test]
fn s6_r4_r5_r6_deleting_a_file_waits_for_the_quiescent_point() {
    let mut world = world();
    let idle = world.open(&[range(0, 8), range(10, 8)]);
    world.delete(idle.file);
    let keys = world.open(&[range(0, 2), range(10, 2)]);
    let whole = world.request(Operation::Read, keys.file, 1, 2);
    let named = world.in_extension(keys.file, keys.extensions[1], 0, 2);
    let grants = [whole, named].map(|request| world.directory.check(A, &request).unwrap());
    let quiesce = world.tables.begin(Some(A), keys.file, Purpose::Delete).unwrap();
    assert!(!world.directory.entry_is_idle(quiesce.entry()));
    for request in [whole, named] {
        assert_eq!(world.blocks(&request), Err(Denied::EntryInvalid));
    }
    assert_eq!(world.tables.extend_file(Some(A), keys.file, &[range(20, 1)]), Err(TableError::Busy));
    // S6-R6: the timer ends; the file is as before.
    world.tables.cancel(quiesce);
    assert_eq!(world.blocks(&whole), Ok(vec![1, 10]));
    assert_eq!(world.blocks(&named), Ok(vec![10, 11]));
    // S6-R5: the I/O in flight still finds its blocks, then ends.
    let quiesce = world.tables.begin(Some(A), keys.file, Purpose::Delete).unwrap();
    for grant in grants {
        assert!(!world.directory.entry_is_idle(quiesce.entry()));
        assert_eq!(world.directory.pieces(&grant, 0).map(|piece| piece.blocks).sum::<u64>(), 2);
        world.directory.release(grant);
    }
    world.finish_delete(quiesce);
    assert_eq!(world.tables.usage(), Usage { entries: 0, lba_entries: 0, extensions: 0, regions: 2 });
    assert_eq!(world.blocks(&named), Err(Denied::EntryInvalid));
}

/// S6-R7: a modify, idle, waited for, and given up.
#[test]
fn s6_r7_modifying_a_file_waits_for_the_quiescent_point() {
    let mut world = world();
    let keys = world.open(&[range(0, 2)]);
    world.change(keys.file, &append(&[range(10, 2)])).unwrap();
    let request = world.request(Operation::Read, keys.file, 1, 2);
    assert_eq!(world.blocks(&request), Ok(vec![1, 10]));
    let grant = world.directory.check(A, &request).unwrap();
    let quiesce = world.tables.begin(Some(A), keys.file, Purpose::Modify).unwrap();
    assert_eq!(world.blocks(&request), Err(Denied::Held));
    assert_eq!(world.directory.file(A, keys.file, Operation::Read), Err(Denied::Held));
    world.tables.cancel(quiesce);
    assert_eq!(world.blocks(&request), Ok(vec![1, 10]));
    let quiesce = world.tables.begin(Some(A), keys.file, Purpose::Modify).unwrap();
    let pieces: Vec<_> = world.directory.pieces(&grant, 0).map(|piece| piece.lba.0).collect();
    assert_eq!(pieces, [1, 10], "what was granted leads where it led");
    world.directory.release(grant);
    assert!(world.directory.entry_is_idle(quiesce.entry()));
    let change = FileModification { access: Some(Access::WRITE), ..keep(1) };
    assert_eq!(world.tables.finish_modify_file(quiesce, &change), Ok(vec![]));
    assert_eq!(world.blocks(&request), Err(Denied::Access));
    let write = |block| Request {
        operation: Operation::Write { fua: false },
        offset: block * BLOCK,
        length: BLOCK,
        ..request
    };
    assert_eq!(world.blocks(&write(0)), Ok(vec![0]));
    assert_eq!(world.blocks(&write(1)), Err(Denied::Bounds));
    assert_eq!(world.tables.usage().lba_entries, 1);
    world.tables.self_check().unwrap();
}

/// S6-R8: what a modify or an extension lacks; the file stays as it was, and the token can be used again.
#[test]
fn s6_r8_a_refused_modify_leaves_the_file_as_it_was() {
    let limits = Limits { entries: 32, lba_entries: 6, extensions: 8, regions: 2 };
    let mut world = World::<32>::with(limits, 1);
    let keys = world.open(&[range(0, 2), range(10, 2), range(20, 2)]);
    let other = world.open(&[range(100, 2)]);
    let mut quiesce = world.tables.begin(Some(A), keys.file, Purpose::Modify).unwrap();
    let before = (world.tables.usage(), world.tables.published().snapshot());
    let (own, twice) = ([range(21, 1)], [range(30, 2), range(31, 1)]);
    let three = [range(30, 1), range(40, 1), range(50, 1)];
    let bad = [LbaRange { first: tpt::Lba(u64::MAX), count: Blocks(2) }];
    let cases = [
        (append(&three), TableError::NoResources),      // of the LBA table
        (append(&three[..2]), TableError::NoResources), // no segment of 8 beside the one of 4
        (append(&own), TableError::Parameter),
        (append(&twice), TableError::Parameter),
        (append(&bad), TableError::Parameter),
        (keep(7), TableError::Parameter),
        (keep(u64::MAX), TableError::Parameter),
    ];
    for (change, expected) in cases {
        let (token, error) = world.tables.finish_modify_file(quiesce, &change).unwrap_err();
        assert_eq!(error, expected, "{change:?}");
        assert_eq!((world.tables.usage(), world.tables.published().snapshot()), before, "{change:?}");
        world.tables.self_check().unwrap();
        quiesce = token;
    }
    let (token, error) = world
        .tables
        .finish_modify(quiesce, &Modification { access: Some(Access::ALL), ranges: None })
        .unwrap_err();
    assert_eq!(error, TableError::Kind);
    world.tables.cancel(token);
    let whole = world.request(Operation::Read, keys.file, 0, 6);
    assert_eq!(world.blocks(&whole), Ok(vec![0, 1, 10, 11, 20, 21]));
    // Without a quiescent point.
    let open = (world.tables.usage(), world.tables.published().snapshot());
    for (extents, expected) in [
        (&three[..2], TableError::SegmentFull),
        (&three, TableError::SegmentFull),
        (&[], TableError::Parameter),
        (&[range(21, 1)], TableError::Parameter),
        (&[range(20, 2)], TableError::Parameter),
        (&[range(19, 2)], TableError::Parameter),
        (&[range(15, 9)], TableError::Parameter),
        (&bad, TableError::Parameter),
    ] as [(&[LbaRange], TableError); 8]
    {
        assert_eq!(world.tables.extend_file(Some(A), keys.file, extents), Err(expected), "{extents:?}");
        assert_eq!((world.tables.usage(), world.tables.published().snapshot()), open, "{extents:?}");
    }
    world.tables.extend_file(Some(A), keys.file, &three[..1]).unwrap();
    assert_eq!(world.tables.extend_file(Some(A), other.file, &three[1..2]), Err(TableError::SegmentFull));
    let grant = world.grant(&[range(500, 1)]);
    assert_eq!(world.tables.extend_file(Some(A), grant, &three[1..2]), Err(TableError::Kind));
    let quiesce = world.tables.begin(Some(A), grant, Purpose::Modify).unwrap();
    let (token, error) = world.tables.finish_modify_file(quiesce, &NOTHING).unwrap_err();
    assert_eq!(error, TableError::Kind);
    world.tables.cancel(token);
    world.tables.self_check().unwrap();
}

/// S6-R11: the keys of a file that was closed open nothing any more, whatever is there now.
#[test]
fn s6_r11_a_closed_files_keys_stay_closed() {
    let mut world = world();
    let mut former: Vec<(Key, ExtensionKey)> = Vec::new();
    for life in 0..6 {
        let key = if life % 3 == 2 {
            world.grant(&[range(0, 8)])
        } else {
            let keys = world.open(&[range(0, 4), range(10, 4)]);
            let extent = [range(10, 4)];
            let again = FileModification { keep: Some(Blocks(4)), ..append(&extent) };
            let fresh = former.iter().all(|(_, extension)| !keys.extensions.contains(extension));
            assert!(fresh, "{:?} were handed out before", keys.extensions);
            former.extend(keys.extensions.iter().map(|extension| (keys.file, *extension)));
            let new = world.change(keys.file, &again).unwrap();
            assert_eq!(world.blocks(&world.in_extension(keys.file, new[0], 0, 1)), Ok(vec![10]));
            former.push((keys.file, new[0]));
            keys.file
        };
        assert_eq!(key.index().0, 0);
        for &(file, extension) in former.iter().filter(|(file, _)| *file != key) {
            for extension in [extension, ExtensionKey::NONE] {
                let request = world.in_extension(file, extension, 0, 1);
                assert_eq!(world.blocks(&request), Err(Denied::KeyInstance), "{file} {extension}");
            }
            // And with the key of what is there now.
            let answer = world.blocks(&world.in_extension(key, extension, 0, 1));
            assert!(
                matches!(answer, Err(Denied::KeyInstance | Denied::KeyRange)),
                "{key} {extension}: {answer:?}"
            );
            assert_eq!(world.tables.query(A, file), Err(TableError::KeyInstance));
            assert_eq!(
                world.tables.extend_file(Some(A), file, &[range(90, 1)]),
                Err(TableError::KeyInstance)
            );
        }
        world.delete(key);
    }
}

/// S6-R13: appended without a quiescent point while there is room, with I/O in flight; in place and by a move when there is
/// none. Every key of before stays good and leads where it led.
#[test]
fn s6_r13_growing_keeps_every_key_and_block() {
    let mut world = world();
    let keys = world.open(&[range(0, 2)]);
    let (mut extensions, mut plain) = (keys.extensions.clone(), vec![0, 1]);
    let mut bases = Vec::new();
    let flying = world.directory.check(A, &world.request(Operation::Read, keys.file, 0, 2)).unwrap();
    let mut flying = Some(flying);
    for number in 1..20 {
        let extent = [range(number * 10, 2)];
        let before = world.tables.usage();
        let new = match world.tables.extend_file(Some(A), keys.file, &extent) {
            Ok(new) => {
                assert_eq!(world.tables.usage().extensions, before.extensions, "it had the room");
                new
            }
            Err(error) => {
                assert_eq!(error, TableError::SegmentFull);
                assert!((number as usize).is_power_of_two());
                // Now and then somebody sits behind the segment, so that it moves.
                if number > 3 {
                    world.open(&[range(1000 + number, 1)]);
                }
                if let Some(grant) = flying.take() {
                    world.directory.release(grant);
                }
                world.change(keys.file, &append(&extent)).unwrap()
            }
        };
        assert_eq!(new.len(), 1);
        assert_eq!(u64::from(new[0].index().0), number);
        extensions.extend(new);
        plain.extend([number * 10, number * 10 + 1]);
        world.directory.take_trace();
        for (number, extension) in (0..).zip(&extensions) {
            let request = world.in_extension(keys.file, *extension, 0, 2);
            assert_eq!(world.blocks(&request), Ok(vec![number * 10, number * 10 + 1]), "{extension}");
        }
        bases.push(world.directory.take_trace().into_iter().find_map(|touch| match touch {
            tpt::Touch::Extension(position) => Some(position),
            tpt::Touch::Entry(_) => None,
        }));
        let whole = world.request(Operation::Read, keys.file, 0, plain.len() as u64);
        assert_eq!(world.blocks(&whole), Ok(plain.clone()));
        world.tables.self_check().unwrap();
    }
    bases.dedup();
    assert!(bases.len() > 2, "it has moved more than once: {bases:?}");
}

/// Truncation: only what is cut off is stale; the last extension that is left is shorter and keeps its key. What goes on
/// behind the end makes it longer.
#[test]
fn s6_r13_truncating_and_lengthening_keep_the_keys_of_what_stays() {
    let mut world = world();
    let keys = world.open(&[range(0, 4), range(10, 4), range(20, 4)]);
    assert_eq!(world.change(keys.file, &keep(6)), Ok(vec![]));
    let read = |world: &mut World, number: usize, blocks| {
        let request = world.in_extension(keys.file, keys.extensions[number], 0, blocks);
        world.blocks(&request)
    };
    assert_eq!(read(&mut world, 0, 4), Ok(vec![0, 1, 2, 3]));
    assert_eq!(read(&mut world, 1, 2), Ok(vec![10, 11]));
    assert_eq!(read(&mut world, 1, 3), Err(Denied::Bounds));
    assert_eq!(read(&mut world, 2, 1), Err(Denied::KeyRange));
    // The blocks that were cut off are anybody's.
    let theirs = world.tables.create(&spec(B, Access::READ, &[range(12, 2), range(20, 4)])).unwrap();
    assert_eq!(world.tables.usage(), Usage { entries: 2, lba_entries: 4, extensions: 4, regions: 2 });
    assert_eq!(
        world.change(keys.file, &append(&[range(12, 1)])),
        Err(TableError::Overlap),
        "of which they have become"
    );
    let quiesce = world.tables.begin(None, theirs, Purpose::Revoke).unwrap();
    world.finish_delete(quiesce);
    // Two ranges, the first of which makes the last extension longer.
    let new = world.change(keys.file, &append(&[range(12, 2), range(14, 1), range(30, 2)])).unwrap();
    assert_eq!(read(&mut world, 1, 5), Ok(vec![10, 11, 12, 13, 14]));
    assert_eq!(new.len(), 1);
    assert_eq!((new[0].index(), new[0].instance().0), (keys.extensions[2].index(), 2));
    assert_eq!(read(&mut world, 2, 1), Err(Denied::KeyInstance));
    assert_eq!(world.blocks(&world.in_extension(keys.file, new[0], 0, 2)), Ok(vec![30, 31]));
    let whole = world.request(Operation::Read, keys.file, 0, 11);
    assert_eq!(world.blocks(&whole), Ok(vec![0, 1, 2, 3, 10, 11, 12, 13, 14, 30, 31]));
    // All of it is cut off, and what was its first extension, too.
    assert_eq!(world.change(keys.file, &keep(0)), Ok(vec![]));
    assert_eq!(world.blocks(&world.request(Operation::Read, keys.file, 0, 1)), Err(Denied::Bounds));
    assert_eq!(read(&mut world, 0, 1), Err(Denied::KeyRange));
    // The first one is told by the file's entry, too, which is not written while it is open.
    let first = [range(70, 2)];
    assert_eq!(world.tables.extend_file(Some(A), keys.file, &first), Err(TableError::SegmentFull));
    let again = world.change(keys.file, &append(&first)).unwrap();
    assert_eq!(again[0].instance().0, 2);
    assert_eq!(read(&mut world, 0, 1), Err(Denied::KeyInstance));
    assert_eq!(world.blocks(&world.request(Operation::Read, keys.file, 0, 2)), Ok(vec![70, 71]));
    assert_eq!(world.blocks(&world.in_extension(keys.file, again[0], 1, 1)), Ok(vec![71]));
    world.tables.self_check().unwrap();
}

/// An opened file of no extensions is one, and grows from nothing.
#[test]
fn a_file_of_no_extensions_grows() {
    let mut world = world();
    let keys = world.open(&[]);
    let request = world.request(Operation::Read, keys.file, 0, 1);
    assert_eq!(world.blocks(&request), Err(Denied::Bounds));
    assert_eq!(world.directory.file(A, keys.file, Operation::Read).unwrap().bytes, 0);
    let flush = world.request(Operation::Flush, keys.file, 0, 0);
    assert_eq!(world.blocks(&flush), Ok(vec![]));
    assert_eq!(world.tables.extend_file(Some(A), keys.file, &[range(0, 1)]), Err(TableError::SegmentFull));
    let new = world.change(keys.file, &append(&[range(5, 2)])).unwrap();
    assert_eq!(new.len(), 1);
    assert_eq!(world.blocks(&request), Ok(vec![5]));
    world.delete(keys.file);
    assert_eq!(world.tables.usage().extensions, 0);
}

/// S6-R14: another domain can do nothing to a file.
#[test]
fn s6_r14_another_domain_cannot_manage_a_file() {
    let mut world = world();
    let keys = world.open(&[range(0, 4), range(10, 4), range(20, 4)]);
    let before = world.tables.published().snapshot();
    for purpose in [Purpose::Modify, Purpose::Delete, Purpose::Revoke] {
        assert_eq!(world.tables.begin(Some(B), keys.file, purpose), Err(TableError::Domain));
    }
    assert_eq!(world.tables.query(B, keys.file), Err(TableError::Domain));
    assert_eq!(world.tables.extend_file(Some(B), keys.file, &[range(30, 1)]), Err(TableError::Domain));
    assert_eq!(world.directory.file(B, keys.file, Operation::Read), Err(Denied::Domain));
    assert_eq!(world.tables.published().snapshot(), before);
    // A revocation overtakes a modify, and leaves nothing to extend.
    let modify = world.tables.begin(Some(A), keys.file, Purpose::Modify).unwrap();
    let revoke = world.tables.begin(None, keys.file, Purpose::Revoke).unwrap();
    let (token, error) = world.tables.finish_modify_file(modify, &keep(1)).unwrap_err();
    assert_eq!(error, TableError::EntryInvalid);
    world.tables.cancel(token);
    assert_eq!(world.tables.extend_file(None, keys.file, &[range(30, 1)]), Err(TableError::EntryInvalid));
    world.finish_delete(revoke);
    assert_eq!(world.tables.usage().extensions, 0);
}

/// S8-R2: files of several domains may share blocks, or one domain has them in its files alone; a grant of blocks never has
/// a block of a file.
#[test]
fn s8_r2_blocks_of_files_are_shared_by_files_only() {
    let mut world = world();
    let (whole, part) = ([range(0, 8)], [range(7, 2)]);
    let shared = |domain, extents| FileSpec { domain, shared: true, ..file(extents) };
    let a = world.tables.create_file(&shared(A, &whole)).unwrap();
    let b = world.tables.create_file(&shared(B, &part)).unwrap();
    assert_eq!(
        world.tables.create_file(&file(&part)),
        Err(TableError::Overlap),
        "one that shares is not enough"
    );
    for domain in [A, B] {
        for shared in [false, true] {
            let raw = GrantSpec { domain, shared, ..spec(domain, Access::READ, &part) };
            assert_eq!(world.tables.create(&raw), Err(TableError::Overlap));
        }
    }
    let read = |world: &mut World, region, domain, key| {
        let mut request = world.request(Operation::Read, key, 0, 1);
        request.memory.region = region;
        world.directory.check(domain, &request).map(|grant| {
            let lba = world.directory.pieces(&grant, 0).next().map(|piece| piece.lba.0);
            world.directory.release(grant);
            lba
        })
    };
    let (region_a, region_b) = (world.region_a, world.region_b);
    assert_eq!(read(&mut world, region_a, A, a.file), Ok(Some(0)));
    assert_eq!(read(&mut world, region_b, B, b.file), Ok(Some(7)));
    world.delete(a.file);
    let grant = world.grant(&[range(0, 7)]);
    assert_eq!(world.tables.create(&spec(B, Access::READ, &[range(8, 1)])), Err(TableError::Overlap));
    let over = [range(6, 1)];
    assert_eq!(world.tables.create_file(&shared(A, &over)), Err(TableError::Overlap));
    assert_eq!(
        world.tables.create_file(&file(&over)),
        Err(TableError::Overlap),
        "not even of its own domain"
    );
    // A domain's own files share with each other.
    world.delete(grant);
    let own = [world.open(&[range(100, 8)]), world.open(&[range(104, 8)])];
    assert_eq!(world.tables.create(&spec(A, Access::READ, &[range(111, 1)])), Err(TableError::Overlap));
    own.into_iter().for_each(|keys| world.delete(keys.file));
    world.tables.create(&spec(B, Access::READ, &[range(100, 12)])).unwrap();
    world.tables.self_check().unwrap();
}

/// S8-R12: a number whose instance would wrap is retired: no extension has it again in that life of the file, and its index
/// is retired when the file is closed.
#[test]
fn s8_r12_an_extension_number_is_retired_before_its_instance_wraps() {
    let limits = Limits { entries: 1, lba_entries: 8, extensions: 8, regions: 2 };
    let mut world = World::<8>::with(limits, 1);
    let keys = world.open(&[range(0, 1), range(10, 1)]);
    let extent = [range(10, 1)];
    let again = FileModification { keep: Some(Blocks(1)), ..append(&extent) };
    let mut former = vec![keys.extensions[1]];
    for instance in 2..=255 {
        let new = world.change(keys.file, &again).unwrap();
        assert_eq!(new[0].instance(), KeyInstance(instance));
        former.push(new[0]);
    }
    assert_eq!(world.change(keys.file, &again), Err(TableError::NoResources), "no instance is left");
    world.change(keys.file, &keep(1)).unwrap();
    assert_eq!(world.tables.extend_file(Some(A), keys.file, &[range(10, 1)]), Err(TableError::NoResources));
    assert_eq!(world.change(keys.file, &append(&[range(10, 1)])), Err(TableError::NoResources));
    // The first extension is not retired, and may be as long as it likes.
    let behind = [range(1, 3)];
    let longer = FileModification { keep: Some(Blocks(1)), ..append(&behind) };
    assert_eq!(world.change(keys.file, &longer), Ok(vec![]));
    assert_eq!(world.blocks(&world.in_extension(keys.file, keys.extensions[0], 0, 4)), Ok(vec![0, 1, 2, 3]));
    for extension in former {
        assert_eq!(world.blocks(&world.in_extension(keys.file, extension, 0, 1)), Err(Denied::KeyRange));
    }
    world.delete(keys.file);
    assert_eq!(
        world.tables.create_file(&file(&[])),
        Err(TableError::NoResources),
        "the index is retired with it"
    );
    assert_eq!(world.tables.usage(), Usage { entries: 0, lba_entries: 0, extensions: 0, regions: 2 });
    world.tables.self_check().unwrap();
}

/// No instance at or above the ceiling, of extensions either; then nothing has changed.
#[test]
fn instances_of_extensions_stay_below_the_ceiling() {
    let mut world = world();
    let keys = world.open(&[range(0, 1), range(10, 1)]);
    world.tables.set_instance_ceiling(3);
    let extent = [range(10, 1)];
    let again = FileModification { keep: Some(Blocks(1)), ..append(&extent) };
    world.change(keys.file, &again).unwrap();
    assert_eq!(world.tables.highest_instance(), 2);
    let before = (world.tables.usage(), world.tables.published().snapshot());
    assert_eq!(world.change(keys.file, &again), Err(TableError::Ceiling));
    assert_eq!((world.tables.usage(), world.tables.published().snapshot()), before);
    world.change(keys.file, &keep(1)).unwrap();
    assert_eq!(world.tables.extend_file(Some(A), keys.file, &[range(10, 1)]), Err(TableError::Ceiling));
    world.tables.set_instance_ceiling(4);
    world.tables.extend_file(Some(A), keys.file, &[range(10, 1)]).unwrap();
    assert_eq!(world.tables.highest_instance(), 3);
    world.delete(keys.file);
    assert_eq!(world.tables.create_file(&file(&[])), Err(TableError::Ceiling), "nor of the next life");
}

/// S6-R15, S8-R10 as far as tables go: files made, grown, cut and closed by chance leave nothing behind, and no entry of the
/// FEPT is refused while a run of that many is free.
#[test]
fn s6_r15_s8_r10_ten_thousand_files_leave_nothing() {
    let limits = Limits { entries: 64, lba_entries: 400, extensions: 256, regions: 2 };
    let mut world = World::<32>::with(limits, 1);
    let mut chance = Chance(seed());
    let mut open: Vec<(Key, u64)> = Vec::new();
    let mut block = 0;
    let cycles = if soak() { 200_000 } else { 10_000 };
    let mut spread = |count: u64| -> Vec<LbaRange> {
        let first = block;
        block += 2 * count;
        (0..count).map(|i| range(first + 2 * i, 1)).collect()
    };
    let (mut made, mut refused) = (0, 0);
    for _ in 0..cycles {
        let draw = chance.next();
        let extents = spread(draw >> 8 & 15);
        match draw % 4 {
            0 | 1 => match world.tables.create_file(&file(&extents)) {
                Ok(keys) => {
                    made += 1;
                    open.push((keys.file, extents.len() as u64));
                }
                Err(error) => {
                    assert_eq!(error, TableError::NoResources);
                    refused += 1;
                }
            },
            2 if !open.is_empty() => {
                let at = chance.below(open.len() as u64) as usize;
                let (key, blocks) = open[at];
                let kept = chance.below(blocks + 1);
                let quiesce = world.tables.begin(Some(A), key, Purpose::Modify).unwrap();
                let change = FileModification { keep: Some(Blocks(kept)), ..append(&extents) };
                match world.tables.finish_modify_file(quiesce, &change) {
                    Ok(_) => open[at].1 = kept + extents.len() as u64,
                    Err((quiesce, error)) => {
                        assert_eq!(error, TableError::NoResources);
                        world.tables.cancel(quiesce);
                    }
                }
            }
            _ if !open.is_empty() => {
                let (key, _) = open.swap_remove(chance.below(open.len() as u64) as usize);
                let quiesce = world.tables.begin(None, key, Purpose::Revoke).unwrap();
                world.tables.finish_delete(quiesce);
            }
            _ => {}
        }
        if draw.is_multiple_of(64) {
            world.tables.self_check().unwrap();
        }
    }
    assert!(made > cycles / 8 && refused > 0, "{made} made, {refused} refused");
    for (key, _) in open {
        world.delete(key);
    }
    assert_eq!(world.tables.usage(), Usage { entries: 0, lba_entries: 0, extensions: 0, regions: 2 });
    counted(made, "files opened and closed");
}
