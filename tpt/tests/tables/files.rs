//! Opened files: the decision on requests by name (S5). What is done to files is in `file_management`.

use crate::support::*;
use tpt::{
    Access, Denied, EntryIndex, ExtensionKey, ExtensionNumber, FileKeys, FileModification, FileSpec, Key,
    KeyInstance, LbaRange, Limits, Memory, OpenFile, Operation, Purpose, RegionIndex, RegionKey, Request,
    TableError, Touch,
};

const FILES: Limits = Limits { entries: 64, lba_entries: 256, extensions: 64, regions: 8 };

/// All rights on these extents, for A.
pub(crate) fn file(extents: &[LbaRange]) -> FileSpec<'_> {
    FileSpec { domain: A, access: Access::ALL, block_shift: 12, extents, shared: false, context: 77 }
}

/// With room for files.
pub(crate) fn world() -> World {
    World::with(FILES, 1)
}

impl<const W: u32> World<W> {
    /// A file of A with these extents and all rights.
    pub(crate) fn open(&mut self, extents: &[LbaRange]) -> FileKeys {
        self.tables.create_file(&file(extents)).unwrap()
    }

    /// A read of A in an extension.
    pub(crate) fn in_extension(&self, key: Key, extension: ExtensionKey, block: u64, blocks: u64) -> Request {
        Request { extension, ..self.request(Operation::Read, key, block, blocks) }
    }

    /// Modifies a file of A that is idle.
    pub(crate) fn change(
        &mut self,
        key: Key,
        change: &FileModification<'_>,
    ) -> Result<Vec<ExtensionKey>, TableError> {
        let quiesce = self.tables.begin(Some(A), key, Purpose::Modify).unwrap();
        assert!(self.directory.entry_is_idle(quiesce.entry()));
        let answer = self.tables.finish_modify_file(quiesce, change).map_err(|(quiesce, error)| {
            self.tables.cancel(quiesce);
            error
        });
        self.tables.self_check().unwrap();
        answer
    }
}

fn blocks_of(extents: &[LbaRange]) -> Vec<u64> {
    extents.iter().flat_map(|range| range.first.0..range.end().0).collect()
}

/// S5-R6: every block by both ways of addressing, alone and with those behind it.
#[test]
fn s5_r6_r11_both_ways_lead_to_what_the_file_has_there() {
    let mut world = world();
    world.open(&[range(900, 3)]);
    let extents = [range(100, 3), range(20, 1), range(500, 4), range(40, 2), range(600, 1)];
    let keys = world.open(&extents);
    world.tables.self_check().unwrap();
    let plain = blocks_of(&extents);
    let all = plain.len() as u64;
    for first in 0..all {
        for count in 1..=all - first {
            let request = world.request(Operation::Read, keys.file, first, count);
            let expected = plain[first as usize..(first + count) as usize].to_vec();
            assert_eq!(world.blocks(&request), Ok(expected), "{first}+{count}");
        }
        let request = world.request(Operation::Read, keys.file, first, all - first + 1);
        assert_eq!(world.blocks(&request), Err(Denied::Bounds));
    }
    for (extension, range) in keys.extensions.iter().zip(&extents) {
        for first in 0..=range.count.0 {
            for count in 0..=5 {
                let request = world.in_extension(keys.file, *extension, first, count);
                let expected = if count > 0 && first + count <= range.count.0 {
                    Ok((range.first.0 + first..range.first.0 + first + count).collect())
                } else {
                    Err(Denied::Bounds)
                };
                assert_eq!(world.blocks(&request), expected, "{extension} {first}+{count}");
            }
        }
        for (offset, length) in [(u64::MAX, 1), (u64::MAX - BLOCK + 1, BLOCK), (BLOCK, u64::MAX - BLOCK + 1)]
        {
            let request = Request { offset, length, ..world.in_extension(keys.file, *extension, 0, 1) };
            assert_eq!(world.blocks(&request), Err(Denied::Bounds), "{offset:#x}+{length:#x}");
        }
    }
}

/// What has no blocks is granted to nobody, whichever way it is asked for; what is before, between and behind is.
#[test]
fn s5_r6_a_hole_is_reached_by_no_request() {
    let hole = |at, count| LbaRange::hole(at, count).unwrap();
    let shapes: [&[LbaRange]; 5] = [
        &[range(100, 2), hole(2, 3), range(20, 1), range(500, 2), hole(8, 1)],
        &[hole(0, 2), range(100, 1), range(300, 1), hole(4, 1), hole(5, 1), range(40, 3)],
        &[hole(0, 4)],
        &[range(10, 1), range(20, 1), range(30, 2)],
        &[range(10, 1), hole(1, 1), range(11, 1), hole(3, 1), range(12, 1)],
    ];
    for extents in shapes {
        let mut world = world();
        let keys = world.open(extents);
        world.tables.self_check().unwrap();
        let plain = blocks_of(extents);
        let all = plain.len() as u64;
        let is_hole = |lba: &u64| *lba >= 1 << 63;
        for first in 0..all {
            for count in 1..=all - first {
                let blocks = &plain[first as usize..(first + count) as usize];
                let expected =
                    if blocks.iter().any(is_hole) { Err(Denied::Hole) } else { Ok(blocks.to_vec()) };
                for operation in [Operation::Read, Operation::Write { fua: true }, Operation::Deallocate] {
                    let request = world.request(operation, keys.file, first, count);
                    assert_eq!(world.blocks(&request), expected, "{first}+{count} of {extents:?}");
                    let scattered = world.directory.check_scattered(A, &request);
                    assert_eq!(scattered.as_ref().map(|_| ()), expected.as_ref().map(|_| ()));
                    scattered.into_iter().for_each(|grant| world.directory.release(grant));
                }
                let bytes = Request {
                    offset: (first + 1) * BLOCK - 1,
                    length: (count - 1) * BLOCK + 1,
                    ..world.request(Operation::WriteBytes, keys.file, 0, 1)
                };
                assert_eq!(world.blocks(&bytes), expected, "bytes from {first}+{count} of {extents:?}");
            }
        }
        for (key, range) in keys.extensions.iter().zip(extents) {
            let request = world.in_extension(keys.file, *key, 0, range.count.0);
            let expected = if range.is_hole() {
                Err(Denied::Hole)
            } else {
                Ok((range.first.0..range.end().0).collect())
            };
            assert_eq!(world.blocks(&request), expected, "{key} of {extents:?}");
        }
        let flush = Request { length: 0, ..world.request(Operation::Flush, keys.file, 0, 1) };
        assert_eq!(world.blocks(&flush), Ok(vec![]));
    }
}

#[test]
fn a_hole_is_only_in_a_file_and_none_begins_as_blocks() {
    let mut world = world();
    let hole = LbaRange::hole(0, 8).unwrap();
    let spec = tpt::GrantSpec {
        domain: A,
        access: Access::ALL,
        block_shift: 12,
        ranges: &[range(0, 8), hole],
        shared: false,
    };
    assert_eq!(world.tables.create(&spec), Err(TableError::Parameter));
    let key = world.grant(&[range(0, 8)]);
    let quiesce = world.tables.begin(Some(A), key, Purpose::Modify).unwrap();
    let change = tpt::Modification { access: None, ranges: Some(&[hole]) };
    let (quiesce, error) = world.tables.finish_modify(quiesce, &change).unwrap_err();
    assert_eq!(error, TableError::Parameter);
    world.tables.cancel(quiesce);
    let across = [range((1 << 63) - 1, 2)];
    assert_eq!(world.tables.create_file(&file(&across)), Err(TableError::Parameter));
    assert_eq!((LbaRange::hole(1 << 63, 1), LbaRange::hole(0, 0)), (None, None));
    assert_eq!(LbaRange::hole((1 << 63) - 1, 2), None);
}

/// S5-R6: bytes, not blocks: any range of any file is what a plain array has there, with the address of each piece.
#[test]
fn s5_r6_a_write_of_bytes_covers_every_block_it_touches_in_a_file() {
    let mut world = world();
    let extents = [range(100, 1), range(20, 2), range(500, 1)];
    let keys = world.open(&extents);
    let plain = blocks_of(&extents);
    let edges = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK - 1, 3 * BLOCK, 3 * BLOCK + 7, 4 * BLOCK - 1];
    for offset in edges {
        for end in edges.into_iter().chain([4 * BLOCK]).filter(|end| *end > offset) {
            let length = end - offset;
            let request = Request { offset, length, ..world.request(Operation::WriteBytes, keys.file, 0, 1) };
            let expected = plain[(offset / BLOCK) as usize..end.div_ceil(BLOCK) as usize].to_vec();
            assert_eq!(world.blocks(&request), Ok(expected), "{offset}+{length}");
        }
    }
    let request =
        Request { offset: 1, length: 4 * BLOCK, ..world.request(Operation::WriteBytes, keys.file, 0, 1) };
    assert_eq!(world.blocks(&request), Err(Denied::Bounds));
    let inside = Request { offset: BLOCK - 1, length: 2, extension: keys.extensions[1], ..request };
    assert_eq!(world.blocks(&inside), Ok(vec![20, 21]));
    assert_eq!(world.blocks(&Request { offset: 2 * BLOCK - 1, ..inside }), Err(Denied::Bounds));
}

/// S5-R7: no number leads out of the file's own segment, not where another file's extension is, not where nothing is, and
/// not in a grant of blocks.
#[test]
fn s5_r7_no_extension_number_leaves_the_file() {
    let mut world = world();
    let (first, second) =
        (world.open(&[range(0, 1), range(10, 1), range(20, 1)]), world.open(&[range(30, 1)]));
    let grant = world.grant(&[range(300, 8)]);
    let instances = [KeyInstance(1), first.extensions[0].instance(), second.extensions[0].instance()];
    for (key, has) in [(first.file, 3), (second.file, 1), (grant, 0)] {
        let numbers = (has..FILES.extensions + 2).chain([1 << 16, u32::MAX - 1, u32::MAX]);
        for number in numbers {
            for instance in instances {
                let extension = ExtensionKey::new(ExtensionNumber(number), instance);
                let request = world.in_extension(key, extension, 0, 1);
                assert_eq!(world.blocks(&request), Err(Denied::KeyRange), "{extension} of {key}");
            }
        }
    }
    // Nor does it when the extension there is cut off: it is the file's, and is no more.
    world
        .change(first.file, &FileModification { keep: Some(tpt::Blocks(2)), ..FileModification::default() })
        .unwrap();
    let request = world.in_extension(first.file, first.extensions[2], 0, 1);
    assert_eq!(world.blocks(&request), Err(Denied::KeyRange));
}

/// S5-R8: another domain's file, live, closed, guessed, with its own extension keys or without.
#[test]
fn s5_r8_another_domains_file_is_refused_whatever_is_named_in_it() {
    let mut world = world();
    let theirs = world.open(&[range(0, 4), range(10, 4)]);
    let extent = [range(100, 4)];
    let own = FileSpec { domain: B, ..file(&extent) };
    let own = world.tables.create_file(&own).unwrap();
    let memory = Memory { region: world.region_b, offset: 0 };
    let extensions = [ExtensionKey::NONE, theirs.extensions[0], theirs.extensions[1], own.extensions[0]];
    for extension in extensions.into_iter().chain([ExtensionKey(u64::MAX)]) {
        for operation in OPERATIONS {
            let request = Request { extension, memory, ..world.request(operation, theirs.file, 0, 1) };
            assert_eq!(world.directory.check(B, &request).unwrap_err(), Denied::Domain);
            assert_eq!(world.directory.check_scattered(B, &request).unwrap_err(), Denied::Domain);
        }
    }
    assert_eq!(world.directory.file(B, theirs.file, Operation::Read), Err(Denied::Domain));
    assert_eq!(world.directory.counters().fetches, 0, "it costs its owner nothing");
    let request = Request { memory, ..world.in_extension(own.file, own.extensions[0], 0, 1) };
    let grant = world.directory.check(B, &request).unwrap();
    world.directory.release(grant);
}

/// S5-R9: a stale key of an extension: of one that was cut off and made anew, and of a file that was closed and opened in
/// the same place.
#[test]
fn s5_r9_the_key_of_a_former_extension_is_stale() {
    let mut world = world();
    let keys = world.open(&[range(0, 1), range(10, 1)]);
    let change = FileModification {
        keep: Some(tpt::Blocks(1)),
        append: &[range(10, 1)],
        ..FileModification::default()
    };
    let mut stale = keys.extensions[1];
    for _ in 0..5 {
        let new = world.change(keys.file, &change).unwrap();
        assert_eq!(new.len(), 1);
        assert_eq!((new[0].index(), new[0].instance().0), (stale.index(), stale.instance().0 + 1));
        let request = world.in_extension(keys.file, stale, 0, 1);
        assert_eq!(world.blocks(&request), Err(Denied::KeyInstance));
        assert_eq!(world.blocks(&Request { extension: new[0], ..request }), Ok(vec![10]));
        stale = new[0];
    }
    let former = [keys.extensions[0], stale];
    world.delete(keys.file);
    let again = world.open(&[range(0, 1), range(10, 1)]);
    assert_eq!(again.file.index(), keys.file.index(), "in the same place");
    for extension in former {
        let request = world.in_extension(again.file, extension, 0, 1);
        assert_eq!(world.blocks(&request), Err(Denied::KeyInstance), "with the new key of the file");
        let request = Request { key: keys.file, ..request };
        assert_eq!(world.blocks(&request), Err(Denied::KeyInstance), "with the former one");
    }
}

/// S5-R10, S4-R5: what each operation needs of a file, by either way of addressing.
#[test]
fn s5_r10_a_file_opened_for_reading_is_not_written() {
    let mut world = world();
    for bits in 0..=7 {
        let access = Access::from_bits(bits).unwrap();
        let extents = [range(100, 2), range(200, 2)];
        let keys = world.tables.create_file(&FileSpec { access, ..file(&extents) }).unwrap();
        for operation in OPERATIONS {
            let allowed = access.allows(operation.required_access());
            let blocks = u64::from(operation != Operation::Flush) * 2;
            for (extension, offset, first) in [
                (ExtensionKey::NONE, 0, 100),
                (ExtensionKey::NONE, blocks * BLOCK, 200),
                (keys.extensions[0], 0, 100),
                (keys.extensions[1], 0, 200),
            ] {
                let request = Request { extension, offset, ..world.request(operation, keys.file, 0, blocks) };
                let expected =
                    if allowed { Ok((first..first + blocks).collect()) } else { Err(Denied::Access) };
                assert_eq!(world.blocks(&request), expected, "{operation:?} with {access}");
            }
            let expected = OpenFile { context: 77, bytes: 4 * BLOCK, block_shift: 12 };
            let expected = if allowed { Ok(expected) } else { Err(Denied::Access) };
            assert_eq!(world.directory.file(A, keys.file, operation), expected);
        }
        world.delete(keys.file);
    }
}

/// The order of S5.2: each request fails one check and all later ones; the answer names the first.
#[test]
fn s4_r13_s5_r7_the_earliest_failing_check_decides_in_files() {
    let mut world = world();
    let extents = [range(0, 8), range(10, 8)];
    let keys = world.tables.create_file(&FileSpec { access: Access::READ, ..file(&extents) }).unwrap();
    let cut = world.tables.extend_file(None, keys.file, &[]).unwrap_err();
    assert_eq!(cut, TableError::Parameter);
    let extension = keys.extensions[1];
    world.tables.damage_lba_entry_for_test(1, 4, 1 << 40);
    // From the last check to the first, each request also fails all that the ones before it fail.
    let mut request = world.in_extension(keys.file, extension, 0, 9);
    assert_eq!(world.blocks(&request), Err(Denied::Bounds));
    request.length = 8 * BLOCK;
    request.operation = Operation::Compare;
    world.tables.damage_extension_for_test(1, 4, 1 << 40);
    assert_eq!(world.blocks(&request), Err(Denied::TableCorrupt));
    request.memory = Memory { region: RegionKey::new(RegionIndex(1), KeyInstance(99)), offset: 1 };
    assert_eq!(world.blocks(&request), Err(Denied::Memory));
    request.length = BLOCK - 1;
    assert_eq!(world.blocks(&request), Err(Denied::Alignment));
    request.offset = u64::MAX;
    assert_eq!(world.blocks(&request), Err(Denied::Bounds));
    request.operation = Operation::Write { fua: true };
    assert_eq!(world.blocks(&request), Err(Denied::Access));
    request.extension = ExtensionKey::new(extension.index(), KeyInstance(9));
    assert_eq!(world.blocks(&request), Err(Denied::KeyInstance));
    request.extension = ExtensionKey::new(ExtensionNumber(2), KeyInstance(9));
    assert_eq!(world.blocks(&request), Err(Denied::KeyRange));
    request.key = Key::new(keys.file.index(), KeyInstance(0));
    assert_eq!(world.blocks(&request), Err(Denied::KeyInstance));
    let quiesce = world.tables.begin(Some(A), keys.file, Purpose::Modify).unwrap();
    assert_eq!(world.blocks(&request), Err(Denied::Held));
    world.tables.cancel(quiesce);
    let quiesce = world.tables.begin(Some(A), keys.file, Purpose::Delete).unwrap();
    assert_eq!(world.blocks(&request), Err(Denied::EntryInvalid));
    assert_eq!(world.directory.check(B, &request).unwrap_err(), Denied::Domain);
    request.key = Key::new(EntryIndex(FILES.entries), KeyInstance(0));
    assert_eq!(world.blocks(&request), Err(Denied::KeyRange));
    world.tables.cancel(quiesce);
}

/// S5-R16: the entry of the file's name is looked at first, and of the extension table nothing outside of its segment; a
/// named extension is one look, a byte offset no more than a binary search has.
#[test]
fn s5_r16_the_name_comes_first_and_one_segment_is_touched() {
    let mut world = world();
    // Segments of 8, of 32 behind a gap, and of 1.
    let before = world.open(&(0..5).map(|i| range(i * 10, 1)).collect::<Vec<_>>());
    let extents: Vec<_> = (0..20).map(|i| range(1000 + i * 10, 2)).collect();
    let keys = world.open(&extents);
    let after = world.open(&[range(5000, 1)]);
    world.blocks(&world.request(Operation::Read, keys.file, 0, 1)).unwrap();
    world.directory.take_trace();
    for block in 0..40 {
        for request in [
            world.request(Operation::Read, keys.file, block, 1),
            world.request(Operation::Read, keys.file, block, 40 - block),
            world.in_extension(keys.file, keys.extensions[block as usize / 2], block % 2, 1),
            world.in_extension(keys.file, ExtensionKey::new(ExtensionNumber(31), KeyInstance(1)), 0, 1),
        ] {
            let _ = world.directory.check(A, &request).map(|grant| world.directory.release(grant));
            let trace = world.directory.take_trace();
            let (names, extensions): (Vec<Touch>, Vec<Touch>) =
                trace.iter().partition(|touch| matches!(touch, Touch::Entry(_)));
            if request.offset + request.length <= 2 * BLOCK && request.extension == ExtensionKey::NONE {
                assert!(trace.is_empty(), "in the first extension the one line decides");
                continue;
            }
            assert!(names.iter().all(|touch| *touch == Touch::Entry(keys.file.index())));
            assert_eq!(trace[0], names[0], "before any extension");
            let inside = |touch: &Touch| matches!(touch, Touch::Extension(32..64));
            assert!(extensions.iter().all(inside), "{trace:?}");
            // Once at once, beginning and ending with the one that is remembered, and perhaps twice in order: for the first
            // and the last block.
            let looks = if request.extension == ExtensionKey::NONE { 4 + 3 * 7 } else { 2 };
            assert!(extensions.len() <= looks, "{trace:?}");
        }
    }
    // The pieces of what reaches over all of them, too.
    let grant = world.directory.check(A, &world.request(Operation::Read, keys.file, 0, 40)).unwrap();
    world.directory.take_trace();
    assert_eq!(world.directory.pieces(&grant, 0).count(), 20);
    let trace = world.directory.take_trace();
    assert!(trace.len() >= 20 && trace.iter().all(|touch| matches!(touch, Touch::Extension(32..52))));
    world.directory.release(grant);
    drop((before, after));
}

/// A poller remembers which extension had a part of a file, and parts of several files share what it remembers: what is in
/// one extension is granted at once wherever that was last, what is not never is, and no other file's entry is looked at.
#[test]
fn whatever_a_hint_says_a_request_reaches_what_the_file_has_there() {
    let mut world = world();
    let mut chance = Chance(seed());
    world.open(&[range(9000, 1), range(9010, 1)]);
    // Of very different lengths, of lengths that are alike, and few. What is remembered of the last is where the end of the
    // first is remembered, and the number of that would lead from the last into the second.
    let uneven: Vec<_> = (0..20).map(|i| range(i * 100, [1, 2, 60, 1, 7][i as usize % 5])).collect();
    let even: Vec<_> = (0..16).map(|i| range(5000 + i * 10, 4)).collect();
    let few = [range(6000, 4), range(6010, 4)];
    let mut files = [(&uneven[..], 32..64), (&even, 16..32), (&few, 2..4)]
        .map(|(extents, segment)| (world.open(extents).file, blocks_of(extents), segment));
    // All are of one segment of the table of entries, which is at hand from here on.
    world.blocks(&world.request(Operation::Read, files[0].0, 0, 1)).unwrap();
    world.directory.take_trace();
    for round in 0..10 {
        for _ in 0..500 {
            let (key, plain, segment) = &files[chance.below(3) as usize];
            let block = chance.below(plain.len() as u64) as usize;
            let blocks = 1 + chance.below(3) as usize;
            let request = world.request(Operation::Read, *key, block as u64, blocks as u64);
            let rest = &plain[block..];
            let together = rest.windows(2).take_while(|pair| pair[0] + 1 == pair[1]).count() + 1;
            let once = world.directory.check_in_file(A, &request);
            match once.or_else(|| world.directory.check_in_file(A, &request)) {
                Some((grant, context)) => {
                    let piece = world.directory.only_piece(&grant).unwrap();
                    assert_eq!((piece.lba.0, piece.blocks), (rest[0], blocks as u64));
                    assert!(context == 77 && blocks <= together);
                    world.directory.release(grant);
                }
                None => assert!(blocks > together, "{blocks} blocks from {block} are in one extension"),
            }
            for (offset, length) in [(1, BLOCK), (0, BLOCK - 1), (BLOCK - 1, 1), (0, 0), (0, u64::MAX)] {
                let bent = Request { offset: request.offset + offset, length, ..request };
                assert!(world.directory.check_in_file(A, &bent).is_none());
            }
            assert!(world.directory.check_in_file(B, &request).is_none());
            for touch in world.directory.take_trace() {
                assert!(
                    !matches!(touch, Touch::Extension(its) if !segment.contains(&its)),
                    "{key}: {touch:?}"
                );
            }
        }
        // Other blocks in the same places, and more or fewer of them.
        let (key, plain, _) = &mut files[0];
        let fresh = range(10_000 + round * 100, 1 + chance.below(40));
        let keep = plain.len() as u64 - 1 - chance.below(9);
        let change = FileModification {
            keep: Some(tpt::Blocks(keep)),
            append: &[fresh],
            ..FileModification::default()
        };
        world.change(*key, &change).unwrap();
        plain.truncate(keep as usize);
        plain.extend(fresh.first.0..fresh.end().0);
    }
}

/// What a request is granted of a file says so, and which one.
#[test]
fn a_grant_of_a_file_tells_its_context() {
    let mut world = world();
    let extents = [range(0, 2), range(10, 2)];
    let contexts = [0, 1, 0x8000_0001, u32::MAX];
    let grant = world.grant(&[range(500, 4)]);
    let request = world.request(Operation::Read, grant, 0, 4);
    let token = world.directory.check(A, &request).unwrap();
    assert_eq!((token.is_file(), world.directory.context(&token)), (false, None));
    world.directory.release(token);
    assert_eq!(world.directory.file(A, grant, Operation::Read), Err(Denied::EntryInvalid));
    for context in contexts {
        let keys = world.tables.create_file(&FileSpec { context, ..file(&extents) }).unwrap();
        for request in [
            world.request(Operation::Read, keys.file, 0, 1),
            world.request(Operation::Read, keys.file, 3, 1),
            world.request(Operation::Read, keys.file, 1, 2),
            world.request(Operation::Flush, keys.file, 0, 0),
            world.in_extension(keys.file, keys.extensions[1], 0, 2),
        ] {
            let token = world.directory.check(A, &request).unwrap();
            assert_eq!((token.is_file(), world.directory.context(&token)), (true, Some(context)));
            assert_eq!((token.block_shift(), token.key()), (12, keys.file));
            world.directory.release(token);
        }
        let told = world.directory.file(A, keys.file, Operation::WriteBytes).unwrap();
        assert_eq!(told, OpenFile { context, bytes: 4 * BLOCK, block_shift: 12 });
        world.delete(keys.file);
    }
}

/// A file with as many extensions as a real one has, at random, through a directory with room for one segment of names.
#[test]
fn s5_r6_a_file_of_a_thousand_extensions_is_read_in_order() {
    let limits = Limits { entries: 32, lba_entries: 1100, extensions: 1100, regions: 2 };
    let mut world = World::<32>::with(limits, 1);
    let extents: Vec<_> = (0..1000).map(|i| range((i * 617 % 1000) * 10, 1 + i % 7)).collect();
    let keys = world.open(&extents);
    let plain = blocks_of(&extents);
    let mut chance = Chance(seed());
    for _ in 0..2_000 {
        let first = chance.below(plain.len() as u64);
        let count = 1 + chance.below((plain.len() as u64 - first).min(60));
        let request = world.request(Operation::Write { fua: false }, keys.file, first, count);
        let expected = plain[first as usize..(first + count) as usize].to_vec();
        assert_eq!(world.blocks(&request), Ok(expected));
        let number = chance.below(1000) as usize;
        let request = world.in_extension(keys.file, keys.extensions[number], 0, extents[number].count.0);
        assert_eq!(world.blocks(&request), Ok(blocks_of(&extents[number..=number])));
    }
}
