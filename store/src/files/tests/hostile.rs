//! What comes from the disk is checked.

use proptest::prelude::*;

use super::*;
use crate::permission::{TYPE_DIRECTORY, TYPE_FILE};

/// `/d`, `/d/f` with three units, and `/g` with two.
fn image() -> MemoryDisk {
    let disk = disk(12, 16);
    let mut files = format(&disk);
    files.make_directory(&ROOT, b"/d", 0o755).unwrap();
    assert_eq!(make(&mut files, &ROOT, "/d/f", 3 * UNIT), InodeNumber(3));
    assert_eq!(make(&mut files, &ROOT, "/g", 2 * UNIT), InodeNumber(4));
    files.close().unwrap();
    disk
}

fn record(mode: u16, units: u64, pieces: u64) -> Vec<u8> {
    let permissions = Permissions { mode, uid: 0, gid: 0, acl: None };
    Inode { units, pieces, ..Inode::new(permissions, Timestamp(0)) }.encode()
}

/// Each is found by the check, by name; those that would let two files share blocks, or reach outside, are refused when
/// the file system is opened.
#[test]
fn planted_rows_are_found_and_the_dangerous_ones_refused() {
    let (file, directory) = (TYPE_FILE | 0o600, TYPE_DIRECTORY | 0o700);
    let units = {
        let disk = image();
        let files = open(&disk).unwrap();
        files.superblock.layout.units
    };
    let cases: &[(Row, &str, bool)] = &[
        (Row::Piece(3, 0, units, 3), "none of the disk's", true),
        (Row::Piece(3, 0, units - 1, 2), "none of the disk's", true),
        (Row::Piece(3, 0, u64::MAX, 3), "none of the disk's", true),
        (Row::Piece(3, 0, 5, u64::MAX), "none of the disk's", true),
        (Row::Piece(3, 0, 5, 0), "none of the disk's", true),
        (Row::Piece(4, 0, 0, 2), "are another's too", true),
        (Row::Piece(3, 5, 100, 1), "should be at unit 3", true),
        (Row::Piece(3, u64::MAX, 100, 1), "should be at unit 3", true),
        (Row::Piece(3, 3, 100, 1), "it should have 3 allocation units in 1", true),
        (Row::Piece(99, 0, 100, 1), "does not exist", true),
        (Row::Piece(2, 0, 100, 1), "it should have 0", true),
        (Row::Inode(3, record(file, 4, 1)), "it should have 4", true),
        (Row::Inode(3, record(file, 3, 2)), "in 2 pieces", true),
        (Row::Inode(3, record(file, units + 1, 1)), "allocation units", true),
        (Row::Inode(3, vec![1, 2, 3]), "inode 3", true),
        (Row::Inode(3, record(0o120_777, 3, 1)), "neither a file nor", true),
        (Row::Inode(1, record(file, 0, 0)), "the root is no directory", true),
        (Row::NoInode(1), "there is no root", true),
        (Row::NextInode(4), "is to be given next", true),
        (Row::NextInode(u64::MAX), "", true),
        (Row::NoInode(2), "does not exist", false),
        (Row::Name(2, b"x".to_vec(), 3), "another name too", false),
        (Row::Name(2, b"x".to_vec(), 99), "does not exist", false),
        (Row::Name(2, b"x".to_vec(), 1), "for the root", false),
        (Row::Name(3, b"x".to_vec(), 4), "in no directory", false),
        (Row::Name(2, b"a/b".to_vec(), 4), "cannot be one", false),
        (Row::Name(2, b"..".to_vec(), 4), "cannot be one", false),
        (Row::Name(2, Vec::new(), 4), "cannot be one", false),
        (Row::Name(2, vec![b'x'; 300], 4), "cannot be one", false),
        (Row::Inode(5, record(file, 0, 0)), "it has no name", false),
        (Row::Orphan(99), "does not exist", false),
        (Row::Orphan(4), "it has a name and is to be removed", false),
        (Row::User(0, [7, 4, 0, 0]), "user 0 is said to have 7", false),
        (Row::User(5, [1, 1, 0, 0]), "user 5 is said to have 1", false),
        (Row::Name(2, b"d".to_vec(), 2), "another name too", false),
        (Row::Inode(2, record(directory, 1, 1)), "inode 2", true),
    ];
    for (row, what, refused) in cases {
        let disk = image();
        let rows: &[Row] = match row {
            Row::Inode(5, _) => &[Row::NextInode(9), row.clone()],
            _ => std::slice::from_ref(row),
        };
        plant(Box::new(disk.clone()), rows).unwrap();
        let found = FileSystem::inspect(Box::new(disk.copy())).unwrap();
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(
            *row == Row::NextInode(u64::MAX) || found.iter().any(|found| found.contains(what)),
            "{row:?}: {found:?}"
        );
        match open(&disk) {
            Err(FileError::Store(StoreError::Damaged { .. })) => assert!(refused, "{row:?}"),
            Err(other) => panic!("{row:?}: {other}"),
            Ok(_) => assert!(!refused, "{row:?}"),
        }
    }
    assert_eq!(FileSystem::inspect(Box::new(image())).unwrap(), []);
}

/// Directories that are below each other, and not below the root.
#[test]
fn a_circle_of_directories_is_found() {
    let disk = image();
    let directory = record(TYPE_DIRECTORY | 0o700, 0, 0);
    let name = |directory, inode| Row::Name(directory, b"x".to_vec(), inode);
    let rows = [
        Row::NextInode(9),
        Row::Inode(5, directory.clone()),
        Row::Inode(6, directory),
        name(5, 6),
        name(6, 5),
    ];
    plant(Box::new(disk.clone()), &rows).unwrap();
    let found = FileSystem::inspect(Box::new(disk.clone())).unwrap();
    let lost = found.iter().filter(|found| found.to_string().contains("not below the root"));
    assert_eq!(lost.count(), 2, "{found:?}");
    // And one that goes through a directory that can be reached: paths end somewhere.
    let disk = image();
    plant(Box::new(disk.clone()), &[Row::Name(2, b"x".to_vec(), 2)]).unwrap();
    let mut files = open(&disk).unwrap();
    let path = |depth| [b"/d".to_vec(), b"/x".repeat(depth)].concat();
    assert_eq!(files.resolve(&ROOT, &path(200)).unwrap(), InodeNumber(2));
    assert!(matches!(files.resolve(&ROOT, &path(300)), Err(FileError::Path { .. })));
    assert!(files.remove_directory(&ROOT, &path(5)).is_err());
}

/// Damage below the database is an error, or is mended from a copy; never other files.
#[test]
fn every_damaged_block_gives_an_error_or_the_right_files() {
    let disk = image();
    let names = |disk: &MemoryDisk| -> Result<Vec<(Vec<u8>, Attributes)>, FileError> {
        let mut files = open(disk)?;
        let found = files.list(&ROOT, b"/", b"", 10)?.into_iter();
        Ok(found
            .chain(files.list(&ROOT, b"/d", b"", 10)?)
            .map(|entry| (entry.name, entry.attributes))
            .collect())
    };
    let right = names(&disk).unwrap();
    let layout = open(&disk).unwrap().superblock.layout;
    let (mut errors, mut good) = (0, 0);
    for lba in disk.content().into_keys().filter(|lba| *lba < layout.data || *lba >= layout.data_end()) {
        for at in [0, 9, 100, 4000] {
            let copy = disk.copy();
            copy.alter(lba, |bytes| bytes[at] ^= 4);
            match names(&copy) {
                Ok(found) => {
                    assert_eq!(found, right, "byte {at} of block {lba}");
                    good += 1;
                }
                Err(FileError::Store(StoreError::Damaged { .. })) => errors += 1,
                Err(other) => panic!("byte {at} of block {lba}: {other}"),
            }
        }
    }
    assert!(errors > 30 && good > 10, "{errors} errors, {good} right");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// No damage stops the program, and what opens is sound.
    #[test]
    fn damaged_images_are_refused_or_sound(data in proptest::collection::vec(any::<u8>(), 0..120)) {
        crate::fuzz::files(&data);
    }
}
