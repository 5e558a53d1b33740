//! S8-R11: what the tables say of themselves when a word of them was changed behind their back. Whatever is damaged, a
//! request is refused, or reaches exactly the blocks that the host copy gives it.

use crate::files::world;
use crate::support::*;
use tpt::{Denied, ExtensionKey, FileKeys, Key, LbaRange, Operation};

/// A grant of three ranges beside others, and its blocks.
fn furnished() -> (World, Key, Vec<u64>) {
    let mut world = World::new();
    let freed = world.grant(&[range(900, 8)]);
    let ranges = [range(10, 8), range(40, 2), range(20, 6)];
    let key = world.grant(&ranges);
    world.grant(&[range(300, 8), range(400, 2)]);
    world.delete(freed);
    let blocks = |range: &LbaRange| range.first.0..range.end().0;
    (world, key, ranges.iter().flat_map(blocks).collect())
}

/// Every part of the grant, and the answer if it is one that harms nobody.
fn parts(world: &mut World, key: Key, plain: &[u64]) -> Vec<Result<(), Denied>> {
    let mut answers = vec![];
    for first in 0..plain.len() {
        for blocks in 1..=plain.len() - first {
            let request = world.request(Operation::Read, key, first as u64, blocks as u64);
            let answer = world.blocks(&request);
            let expected = &plain[first..first + blocks];
            answers.push(answer.and_then(|found| {
                assert!(expected.starts_with(&found), "blocks {first} and {blocks} from there: {found:?}");
                // What is damaged between the first and the last extension ends the pieces early.
                if found.len() == blocks { Ok(()) } else { Err(Denied::TableCorrupt) }
            }));
        }
    }
    let beyond = world.request(Operation::Read, key, plain.len() as u64, 1);
    assert!(world.blocks(&beyond).is_err(), "beyond the end");
    assert!(world.directory.entry_is_idle(key.index()), "what is refused is not counted");
    answers
}

/// Each bit of each word that says where the blocks are: the seal tells, whatever part of the grant is asked for, and
/// the self-check does.
#[test]
fn s8_r11_every_bit_of_an_entry_is_watched() {
    let (mut world, key, plain) = furnished();
    assert!(parts(&mut world, key, &plain).iter().all(Result::is_ok));
    let mut seen = 0;
    // The first range, the pointer, what the seal says.
    for word in [1, 2, 3, 5] {
        for bit in 0..u64::BITS {
            world.tables.damage_entry_for_test(key.index(), word, 1 << bit);
            let answers = parts(&mut world, key, &plain);
            assert!(
                answers.iter().all(|answer| *answer == Err(Denied::TableCorrupt)),
                "word {word} bit {bit}"
            );
            let flush = world.request(Operation::Flush, key, 0, 0);
            assert_eq!(world.blocks(&flush), Err(Denied::TableCorrupt), "a flush, too");
            assert!(world.tables.self_check().is_err());
            world.tables.damage_entry_for_test(key.index(), word, 1 << bit);
            seen += 1;
        }
    }
    // Its domain and the size of its blocks: refused by that, or by the seal.
    for bit in 0..u64::BITS {
        world.tables.damage_entry_for_test(key.index(), 4, 1 << bit);
        assert!(parts(&mut world, key, &plain).iter().all(Result::is_err), "shape bit {bit}");
        assert!(world.tables.self_check().is_err());
        world.tables.damage_entry_for_test(key.index(), 4, 1 << bit);
        seen += 1;
    }
    // Its size is not sealed: what a larger one lets pass the list does not know.
    for bit in 0..u64::BITS {
        world.tables.damage_entry_for_test(key.index(), 0, 1 << bit);
        parts(&mut world, key, &plain);
        let beyond = world.request(Operation::Read, key, 0, plain.len() as u64 + 1);
        let denied = world.blocks(&beyond).unwrap_err();
        assert!(matches!(denied, Denied::Bounds | Denied::TableCorrupt), "{denied:?}");
        // The lower bits do not make a block more or less; nothing is lost by them.
        assert!(bit < 12 || world.tables.self_check().is_err(), "size bit {bit}");
        world.tables.damage_entry_for_test(key.index(), 0, 1 << bit);
        seen += 1;
    }
    world.tables.self_check().unwrap();
    assert!(parts(&mut world, key, &plain).iter().all(Result::is_ok));
    counted(seen, "bits of a table entry flipped");
}

/// A good entry in the place of another, as by a write that went astray: the seal is of its index, too.
#[test]
fn s8_r11_an_entry_in_the_place_of_another_is_not_believed() {
    let mut world = World::new();
    let keys = [10, 30].map(|first| world.grant(&[range(first, 8)]));
    let read = |world: &World, key| world.request(Operation::Read, key, 0, 1);
    world.tables.overwrite_entry_for_test(keys[0].index(), keys[1].index());
    assert_eq!(world.blocks(&read(&world, keys[0])), Err(Denied::TableCorrupt));
    assert_eq!(world.blocks(&read(&world, keys[1])), Ok(vec![30]));
    assert!(world.tables.self_check().is_err());
}

/// Each bit of each word of the LBA entries of a list: a part of the grant that needs them is refused, or is right.
#[test]
fn s8_r11_every_bit_of_a_list_is_watched() {
    let (mut world, key, plain) = furnished();
    let in_first = |(first, blocks): (usize, usize)| first + blocks <= 8;
    let shapes: Vec<_> = (0..plain.len()).flat_map(|f| (1..=plain.len() - f).map(move |b| (f, b))).collect();
    let mut seen = 0;
    for node in 1..=3 {
        for word in 0..6 {
            for bit in 0..if word < 3 { u32::BITS } else { u64::BITS } {
                world.tables.damage_lba_entry_for_test(node, word, 1 << bit);
                let answers = parts(&mut world, key, &plain);
                for (shape, answer) in shapes.iter().zip(&answers) {
                    // The entry has the first range itself.
                    assert!(answer.is_ok() || *answer == Err(Denied::TableCorrupt));
                    assert!(
                        answer.is_ok() || !in_first(*shape),
                        "node {node} word {word} bit {bit}: {shape:?}"
                    );
                }
                assert!(
                    answers.iter().any(Result::is_err),
                    "node {node} word {word} bit {bit} is not missed"
                );
                assert!(world.tables.self_check().is_err());
                world.tables.damage_lba_entry_for_test(node, word, 1 << bit);
                seen += 1;
            }
        }
    }
    world.tables.self_check().unwrap();
    counted(seen, "bits of LBA entries flipped");
}

/// A pointer outside the table, to another grant's entries, to freed ones, or a length outside it, with a seal that
/// says that all is well: what needs the list finds out.
#[test]
fn s8_r11_a_pointer_that_leads_astray_is_seen() {
    let (mut world, key, plain) = furnished();
    let read = world.request(Operation::Read, key, 9, 1);
    assert_eq!(world.blocks(&read), Ok(vec![plain[9]]));
    let rows = LIMITS.lba_entries;
    // The list is 1, 2 and 3, the root 2; that of another grant is 4 and 5; 0 and 6 are free.
    for (root, length) in
        [(rows, 3), (u32::MAX, 3), (4, 3), (5, 3), (0, 3), (6, 3), (1, 3), (3, 3), (2, rows + 1)]
    {
        world.tables.corrupt_pointer_for_test(key.index(), root, length);
        let answers = parts(&mut world, key, &plain);
        assert!(answers.contains(&Err(Denied::TableCorrupt)), "root {root} length {length}");
        let whole = world.request(Operation::Read, key, 0, plain.len() as u64);
        assert_eq!(world.blocks(&whole), Err(Denied::TableCorrupt), "root {root} length {length}");
        assert!(world.tables.self_check().is_err());
    }
    world.tables.corrupt_pointer_for_test(key.index(), 2, 3);
    world.tables.self_check().unwrap();
    assert!(parts(&mut world, key, &plain).iter().all(Result::is_ok));
}

/// A file of three extensions beside others, and its blocks. Its segment begins at 4 of the FEPT, its LBA entries at 4.
fn opened() -> (World, FileKeys, Vec<u64>) {
    let mut world = world();
    world.open(&[range(900, 1), range(910, 1), range(920, 1), range(930, 1)]);
    let extents = [range(10, 4), range(40, 2), range(20, 3)];
    let keys = world.open(&extents);
    world.open(&[range(300, 4), range(400, 2), range(500, 1)]);
    let blocks = |range: &LbaRange| range.first.0..range.end().0;
    (world, keys, extents.iter().flat_map(blocks).collect())
}

/// Every part of the file by bytes and by extension: refused, or what it was.
fn parts_of_file(world: &mut World, keys: &FileKeys, plain: &[u64]) -> Vec<Result<(), Denied>> {
    let mut answers = parts(world, keys.file, plain);
    for (extension, (first, blocks)) in keys.extensions.iter().zip([(0, 4), (4, 2), (6, 3)]) {
        for number in 0..blocks {
            let request = world.in_extension(keys.file, *extension, number as u64, 1);
            let answer = world.blocks(&request);
            assert!(answer.is_err() || answer == Ok(vec![plain[first + number]]), "{extension}: {answer:?}");
            answers.push(answer.map(|_| ()));
        }
        let beyond = world.in_extension(keys.file, *extension, blocks as u64, 1);
        assert!(world.blocks(&beyond).is_err(), "beyond {extension}");
    }
    let behind = ExtensionKey(keys.extensions[2].0 + 1);
    assert!(world.blocks(&world.in_extension(keys.file, behind, 0, 1)).is_err(), "in reserve");
    answers
}

/// Each bit of each word of a file's entry: what it says of its blocks is sealed with its segment and its context; more or
/// fewer extensions than there are lead to nothing.
#[test]
fn s8_r11_s5_r7_every_bit_of_a_files_entry_is_watched() {
    let (mut world, keys, plain) = opened();
    assert!(parts_of_file(&mut world, &keys, &plain).iter().all(Result::is_ok));
    let mut seen = 0;
    for word in 0..7 {
        for bit in 0..u64::BITS {
            world.tables.damage_entry_for_test(keys.file.index(), word, 1 << bit);
            let answers = parts_of_file(&mut world, &keys, &plain);
            // All but the size and the number of extensions.
            if word != 0 && word != 6 {
                assert!(answers.iter().all(Result::is_err), "word {word} bit {bit}");
                assert!(world.directory.file(A, keys.file, Operation::Read).is_err());
            }
            assert!(word == 0 && bit < 12 || world.tables.self_check().is_err(), "word {word} bit {bit}");
            world.tables.damage_entry_for_test(keys.file.index(), word, 1 << bit);
            seen += 1;
        }
    }
    world.tables.self_check().unwrap();
    assert!(parts_of_file(&mut world, &keys, &plain).iter().all(Result::is_ok));
    counted(seen, "bits of a file's table entry flipped");
}

/// S5-R16: whatever the number of extensions has become, no entry of another file is looked at.
#[test]
fn s8_r11_s5_r16_a_damaged_number_of_extensions_leads_to_no_other_file() {
    let (mut world, keys, plain) = opened();
    world.directory.take_trace();
    let named = |number| ExtensionKey::new(tpt::ExtensionNumber(number), keys.extensions[0].instance());
    let mut looked = 0;
    for damage in (0..u64::BITS).map(|bit| 1 << bit).chain([0]) {
        world.tables.damage_entry_for_test(keys.file.index(), 6, damage);
        let by_key = [0, 2, 3, 4, 5, 8, u32::MAX - 4, u32::MAX];
        let by_key = by_key.map(|number| world.in_extension(keys.file, named(number), 0, 1));
        let by_byte = (0..plain.len() as u64 + 3).map(|at| world.request(Operation::Read, keys.file, at, 1));
        for request in by_key.into_iter().chain(by_byte.collect::<Vec<_>>()) {
            let _ = world.directory.check(A, &request).map(|grant| world.directory.release(grant));
            for touch in world.directory.take_trace() {
                if let tpt::Touch::Extension(position) = touch {
                    // Its segment is of four, from 4 on.
                    assert!((4..8).contains(&position), "{request:?} led to {position}: {damage:#x}");
                    looked += 1;
                }
            }
        }
        world.tables.damage_entry_for_test(keys.file.index(), 6, damage);
    }
    assert!(looked > 64, "{looked}");
}

/// Each bit of each word of the FEPT entries, and of the LBA entries behind them: what needs them is refused, or right.
#[test]
fn s8_r11_every_bit_of_an_extension_is_watched() {
    let (mut world, keys, plain) = opened();
    let mut seen = 0;
    for position in 4..7 {
        for word in 0..6 {
            for bit in 0..u64::BITS {
                world.tables.damage_extension_for_test(position, word, 1 << bit);
                let answers = parts_of_file(&mut world, &keys, &plain);
                // In the state some bits mean nothing.
                let means_nothing = word == 0 && bit < u32::BITS;
                assert!(
                    means_nothing || answers.iter().any(Result::is_err),
                    "{position} word {word} bit {bit}"
                );
                assert!(world.tables.self_check().is_err(), "{position} word {word} bit {bit}");
                world.tables.damage_extension_for_test(position, word, 1 << bit);
                seen += 1;
            }
        }
    }
    for node in 4..7 {
        for word in 0..6 {
            for bit in 0..if word < 3 { u32::BITS } else { u64::BITS } {
                world.tables.damage_lba_entry_for_test(node, word, 1 << bit);
                parts_of_file(&mut world, &keys, &plain);
                assert!(world.tables.self_check().is_err());
                world.tables.damage_lba_entry_for_test(node, word, 1 << bit);
                seen += 1;
            }
        }
    }
    world.tables.self_check().unwrap();
    assert!(parts_of_file(&mut world, &keys, &plain).iter().all(Result::is_ok));
    counted(seen, "bits of extension entries flipped");
}

/// S5-R7: a good entry of the FEPT in the place of another, of the same file or of another's, is not believed.
#[test]
fn s8_r11_s5_r7_an_extension_in_the_place_of_another_is_not_believed() {
    // Of another number, and of the same one of another file.
    for (position, with) in [(5, 6), (6, 5), (5, 8), (4, 9), (6, 0), (4, 8), (5, 9), (6, 2)] {
        let (mut world, keys, plain) = opened();
        world.tables.overwrite_extension_for_test(position, with);
        let answers = parts_of_file(&mut world, &keys, &plain);
        assert!(answers.iter().any(Result::is_err), "{with} in the place of {position}");
        let number = position as usize - 4;
        let named = world.in_extension(keys.file, keys.extensions[number], 0, 1);
        assert!(world.blocks(&named).is_err());
        assert!(world.tables.self_check().is_err());
    }
}

/// S5.2: an extension has the last word on its rights, its stage and its domain, whatever its file says.
#[test]
fn s5_r8_r10_an_extension_that_gives_less_than_its_file_is_refused() {
    // A right, the stage, the instance, and the domain.
    for (word, bits, named, plain) in [
        (0, 1 << 8, Denied::Access, Denied::TableCorrupt),
        (0, 2, Denied::EntryInvalid, Denied::TableCorrupt),
        (1, 1 << 32, Denied::Domain, Denied::TableCorrupt),
    ] {
        let (mut world, keys, _) = opened();
        world.tables.damage_extension_for_test(5, word, bits);
        let request = world.in_extension(keys.file, keys.extensions[1], 0, 1);
        assert_eq!(world.blocks(&request), Err(named));
        assert_eq!(world.blocks(&world.request(Operation::Read, keys.file, 4, 1)), Err(plain));
        assert_eq!(world.blocks(&world.request(Operation::Read, keys.file, 0, 4)), Ok(vec![10, 11, 12, 13]));
        assert_eq!(world.blocks(&world.request(Operation::Read, keys.file, 6, 3)), Ok(vec![20, 21, 22]));
    }
}
