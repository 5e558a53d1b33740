//! Opened files: FNPT, FEPT, and requests by name (S5, S6).

use crate::support::*;
use tpt::{
    Access, Denied, ExtensionKey, FileKeys, FileModification, FileSpec, LbaRange, Limits, Operation, Purpose,
    Request,
};

const FILES: Limits = Limits { entries: 64, lba_entries: 256, extensions: 64, regions: 8 };

fn file(extents: &[LbaRange]) -> FileSpec<'_> {
    FileSpec { domain: A, access: Access::ALL, block_shift: 12, extents, shared: false, context: 77 }
}

fn world() -> World {
    World::with(FILES, 1)
}

/// S5-R6: every block by both ways of addressing, alone and with those behind it.
#[test]
fn s5_r6_both_ways_lead_to_what_the_file_has_there() {
    let mut world = world();
    world.tables.create_file(&file(&[range(900, 3)])).unwrap();
    let extents = [range(100, 3), range(20, 1), range(500, 4)];
    let keys = world.tables.create_file(&file(&extents)).unwrap();
    world.tables.self_check().unwrap();
    let plain: Vec<u64> = extents.iter().flat_map(|range| range.first.0..range.end().0).collect();
    for first in 0..8 {
        for count in 1..=8 - first {
            let request = world.request(Operation::Read, keys.file, first, count);
            let expected = plain[first as usize..(first + count) as usize].to_vec();
            assert_eq!(world.blocks(&request), Ok(expected), "{first}+{count}");
        }
    }
    let request = world.request(Operation::Read, keys.file, 7, 2);
    assert_eq!(world.blocks(&request), Err(Denied::Bounds));
    for (extension, range) in keys.extensions.iter().zip(&extents) {
        for first in 0..=range.count.0 {
            for count in 1..=4 {
                let request = Request {
                    extension: *extension,
                    ..world.request(Operation::Read, keys.file, first, count)
                };
                let expected = if first + count <= range.count.0 {
                    Ok((range.first.0 + first..range.first.0 + first + count).collect())
                } else {
                    Err(Denied::Bounds)
                };
                assert_eq!(world.blocks(&request), expected, "S5-R11: {extension} {first}+{count}");
            }
        }
    }
    world.delete(keys.file);
    assert_eq!(world.tables.usage().extensions, 1);
}

/// S6-R13: appended in place, and by a move.
#[test]
fn s6_r13_growing_keeps_old_keys_and_blocks() {
    let mut world = world();
    let FileKeys { file, extensions } =
        world.tables.create_file(&file(&[range(0, 2), range(10, 2), range(20, 2)])).unwrap();
    let more = world.tables.extend_file(Some(A), file, &[range(30, 2)]).unwrap();
    let read = |extension: ExtensionKey, world: &mut World| {
        let request = Request { extension, ..world.request(Operation::Read, file, 0, 2) };
        world.blocks(&request)
    };
    for (number, key) in extensions.iter().chain(&more).enumerate() {
        let first = number as u64 * 10;
        assert_eq!(read(*key, &mut world), Ok(vec![first, first + 1]));
    }
    assert_eq!(world.tables.extend_file(Some(A), file, &[range(40, 2)]), Err(tpt::TableError::SegmentFull));
    let quiesce = world.tables.begin(Some(A), file, Purpose::Modify).unwrap();
    let change = FileModification { append: &[range(40, 2)], ..FileModification::default() };
    let last = world.tables.finish_modify_file(quiesce, &change).unwrap();
    world.tables.self_check().unwrap();
    for (number, key) in extensions.iter().chain(&more).chain(&last).enumerate() {
        let first = number as u64 * 10;
        assert_eq!(read(*key, &mut world), Ok(vec![first, first + 1]));
    }
}
