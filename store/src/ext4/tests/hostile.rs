//! Images forged with checksums that fit: no file reaches into what is not its own, and everything has an end.

use std::collections::BTreeSet;

use driver::disk::{Disk, MemoryDisk};

use super::super::fuzz::Watched;
use super::super::image::Image;
use super::super::zone::Owner;
use super::super::{Ext4, Ext4Error, MAX_WORK, Place};
use super::{Healthy, ROOT, agree, read, write};

/// All blocks that dumpe2fs says are the file system's own, and those of the inodes that are.
fn zone_told(image: &Image, own: &[u32]) -> BTreeSet<u64> {
    let mut blocks = BTreeSet::new();
    let told = image.run("dumpe2fs", &[]).unwrap();
    for part in told.split_once("Group 0:").unwrap().1.split(" at ").skip(1) {
        let numbers: String = part.chars().take_while(|c| c.is_ascii_digit() || *c == '-').collect();
        let mut ends = numbers.split('-').filter_map(|number| number.parse::<u64>().ok());
        let first = ends.next().unwrap();
        blocks.extend(first..=ends.next().unwrap_or(first));
    }
    for inode in own {
        let told = image.ask(&format!("blocks <{inode}>")).unwrap();
        blocks.extend(told.split_whitespace().map(|block| block.parse::<u64>().unwrap()));
    }
    blocks
}

#[test]
fn the_zone_is_what_dumpe2fs_says() {
    for (options, own) in [
        (&["-b", "1024"][..], &[7, 8][..]),
        (&["-b", "4096"], &[7, 8]),
        (&["-b", "1024", "-g", "1024", "-O", "^flex_bg"], &[7, 8]),
        (&["-b", "1024", "-g", "512", "-O", "meta_bg,^resize_inode"], &[8]),
        (&["-b", "1024", "-g", "512", "-O", "^has_journal,^64bit"], &[7]),
        (&["-b", "1024", "-g", "1024", "-O", "sparse_super2,^resize_inode"], &[8]),
        (&["-b", "1024", "-g", "1024", "-O", "^sparse_super,^resize_inode"], &[8]),
        (&["-b", "1024", "-O", "quota,project"], &[7, 8, 3, 4]),
        (&["-b", "1024", "-O", "orphan_file"], &[7, 8, 12]),
    ] {
        let image = Image::make(32 << 20, options).unwrap();
        let mut told = zone_told(&image, own);
        let mut disk = image.disk(9).unwrap();
        let ext4 = Ext4::open(&mut disk).unwrap();
        told.extend(ext4.superblock.hidden.iter().flat_map(|inode| zone_told(&image, &[*inode])));
        let found: BTreeSet<u64> =
            (0..ext4.superblock.blocks).filter(|block| ext4.groups.zone.owner(*block, 1).is_some()).collect();
        let differ: Vec<_> = found.symmetric_difference(&told).collect();
        assert!(differ.is_empty() && found.len() > 100, "{options:?}: {differ:?}");
    }
}

/// An image with one file of one extent (`plain`), one with a tree (`many`), one with a block of attributes (`long`),
/// and two directories.
fn healthy() -> Healthy {
    let image = agree::with_tree(1024, &[]);
    let host = image.host_file("plain", &[9; 9000]).unwrap();
    let filler = image.host_file("filler", b"takes the block that a removed file left").unwrap();
    image.change(&[format!("write {filler} filler"), format!("write {host} plain")]).unwrap();
    Healthy::of(&image)
}

/// Where the first entry of the extent tree in an inode is, and in it: the file's block, the length, the device's block.
const ENTRY: usize = 0x28 + 12;
const LENGTH: usize = ENTRY + 4;
const START: usize = ENTRY + 8;

/// An image in which `plain` has this many blocks from one of the file system; nine are the whole file.
fn plain_of(healthy: &Healthy, block: u64, count: u8) -> MemoryDisk {
    let plain = healthy.inode("plain");
    let [a, b, c, d] = u32::try_from(block).unwrap().to_le_bytes();
    healthy.forged(|place| place == Place::Inode(plain), LENGTH, &[count, 0, 0, 0, a, b, c, d])
}

fn plain_at(healthy: &Healthy, block: u64) -> MemoryDisk {
    plain_of(healthy, block, 9)
}

#[test]
fn no_file_is_opened_that_reaches_into_the_file_systems_own_blocks() {
    let healthy = healthy();
    let mut disk = healthy.disk.clone();
    let ext4 = Ext4::open(&mut disk).unwrap();
    let zone =
        |owner| (0..ext4.superblock.blocks).find(|block| ext4.groups.zone.owner(*block, 1) == Some(owner));
    for owner in [
        Owner::GroupHead(0),
        Owner::GroupHead(1),
        Owner::GroupHead(3),
        Owner::BlockBitmap(1),
        Owner::InodeBitmap(2),
        Owner::InodeTable(0),
        Owner::InodeTable(3),
        Owner::Hidden(7),
        Owner::Hidden(8),
    ] {
        let block = zone(owner).unwrap_or_else(|| panic!("{owner}"));
        // It lies there, begins there, or ends there.
        for (first, count) in [(block, 1), (block, 9), (block.saturating_sub(8).max(1), 9)] {
            let mut disk = plain_of(&healthy, first, count);
            let mut ext4 = Ext4::open(&mut disk).unwrap();
            let error = read(&mut ext4, &mut disk, "plain").unwrap_err();
            let Ext4Error::Overlap { owner: told, .. } = error else { panic!("{owner}: {error}") };
            assert!(count > 1 || told == owner, "{owner}: {error}");
        }
    }
    for block in [0, 32768 - 8, 32768, u64::from(u32::MAX)] {
        let mut disk = plain_at(&healthy, block);
        let mut ext4 = Ext4::open(&mut disk).unwrap();
        let error = read(&mut ext4, &mut disk, "plain").unwrap_err();
        assert!(matches!(error, Ext4Error::Outside { .. }), "{block}: {error}");
    }
    let mut disk = plain_at(&healthy, 32768 - 9);
    let mut ext4 = Ext4::open(&mut disk).unwrap();
    let file = read(&mut ext4, &mut disk, "plain").unwrap();
    assert_eq!(
        file.extents[0].range.first.0,
        (32768 - 9) * 2,
        "free blocks are nobody's: only that is looked at"
    );
}

#[test]
fn no_file_is_opened_that_reaches_into_metadata_that_was_read() {
    let healthy = healthy();
    let (a, many) = (healthy.inode("a"), healthy.inode("many"));
    let of = |is: &dyn Fn(Place) -> bool| healthy.part(is).block;
    let cases = [
        ("", of(&|place| matches!(place, Place::DirectoryBlock { inode: 2, .. })), Owner::Directory),
        (
            "a",
            of(&|place| matches!(place, Place::DirectoryBlock { inode, .. } if inode == a)),
            Owner::Directory,
        ),
        (
            "many",
            of(&|place| matches!(place, Place::ExtentNode { inode, .. } if inode == many)),
            Owner::ExtentTree,
        ),
        ("long", of(&|place| matches!(place, Place::AttributeBlock { .. })), Owner::Attributes),
    ];
    for (path, block, owner) in cases {
        let mut disk = plain_at(&healthy, block);
        let mut ext4 = Ext4::open(&mut disk).unwrap();
        if path == "a" {
            ext4.list(&mut disk, b"a", &ROOT, 0, 9).unwrap();
        } else if !path.is_empty() {
            let file = read(&mut ext4, &mut disk, path).unwrap();
            ext4.close(file.inode);
        }
        let error = read(&mut ext4, &mut disk, "plain").unwrap_err();
        assert!(
            matches!(error, Ext4Error::Overlap { owner: whose, .. } if whose == owner),
            "{path}: {error}"
        );
        // The other way round: what is opened first keeps its blocks.
        if !path.is_empty() {
            let mut ext4 = Ext4::open(&mut disk).unwrap();
            let plain = read(&mut ext4, &mut disk, "plain").unwrap();
            let error = match path {
                "a" => ext4.list(&mut disk, b"a", &ROOT, 0, 9).unwrap_err(),
                _ => read(&mut ext4, &mut disk, path).unwrap_err(),
            };
            let expected = Owner::Data(plain.inode);
            assert!(matches!(error, Ext4Error::Overlap { owner: whose, .. } if whose == expected), "{error}");
            ext4.close(plain.inode);
        }
    }
}

#[test]
fn no_two_files_are_open_that_share_a_block() {
    let healthy = healthy();
    let mut disk = healthy.disk.clone();
    let mut ext4 = Ext4::open(&mut disk).unwrap();
    let long = read(&mut ext4, &mut disk, "long").unwrap();
    let block = long.extents[0].range.first.0 / 2;
    let mut disk = plain_at(&healthy, block + 3);
    let mut ext4 = Ext4::open(&mut disk).unwrap();
    let long = write(&mut ext4, &mut disk, "long").unwrap();
    assert_eq!(ext4.open_files(), 1);
    let error = read(&mut ext4, &mut disk, "plain").unwrap_err();
    assert!(matches!(error, Ext4Error::Overlap { owner, .. } if owner == Owner::Data(long.inode)), "{error}");
    // Open twice, closed twice.
    assert_eq!(read(&mut ext4, &mut disk, "long").unwrap(), long);
    ext4.close(long.inode);
    assert!(read(&mut ext4, &mut disk, "plain").is_err());
    ext4.close(long.inode);
    ext4.close(long.inode);
    let plain = read(&mut ext4, &mut disk, "plain").unwrap();
    assert!(read(&mut ext4, &mut disk, "long").is_err());
    assert_eq!(ext4.open_files(), 1);
    ext4.close(plain.inode);
    assert!(read(&mut ext4, &mut disk, "long").is_ok());
}

#[test]
fn a_file_that_changed_while_it_was_open_is_not_opened_again() {
    let healthy = healthy();
    let mut disk = healthy.disk.copy();
    let mut ext4 = Ext4::open(&mut disk).unwrap();
    read(&mut ext4, &mut disk, "plain").unwrap();
    let mut other = plain_at(&healthy, 32768 - 9);
    ext4.cache = super::super::blocks::Cache::default();
    assert_eq!(read(&mut ext4, &mut other, "plain"), Err(Ext4Error::Changed));
}

#[test]
fn a_file_system_that_somebody_mounts_or_mends_meanwhile_is_no_longer_used() {
    let image = agree::with_tree(1024, &[]);
    let mut disk = image.disk(9).unwrap();
    let mut ext4 = Ext4::open(&mut disk).unwrap();
    assert!(read(&mut ext4, &mut disk, "short").is_ok());
    // The kernel writes when it mounted: its time, its count, and that the journal is in use.
    image.run("debugfs", &["-w", "-R", "ssv mnt_count 7"]).unwrap();
    let mut disk = image.disk(9).unwrap();
    assert_eq!(read(&mut ext4, &mut disk, "short"), Err(Ext4Error::Changed));
    assert_eq!(ext4.stat(&mut disk, b"short", &ROOT, true), Err(Ext4Error::Changed));
    assert_eq!(ext4.list(&mut disk, b"/", &ROOT, 0, 9), Err(Ext4Error::Changed));
    assert!(read(&mut Ext4::open(&mut disk).unwrap(), &mut disk, "short").is_ok());
}

#[test]
fn extent_trees_that_cannot_be_are_refused() {
    let healthy = healthy();
    let cases: [(&str, usize, &[u8], &str); 11] = [
        ("plain", 0x28, &[0], "magic 0xf300"),
        ("plain", 0x28 + 2, &[5], "5 entries of 4"),
        ("plain", 0x28 + 4, &[5], "1 entries of 5, room for 4"),
        ("plain", 0x28 + 6, &[6], "depth 6"),
        ("plain", 0x28 + 6, &[1], "lie outside"), // its data block taken for a node: of the number 0
        ("plain", LENGTH, &[0, 0], "the extent of 0 blocks from 0 is out of order"),
        ("plain", ENTRY, &[0xff; 4], "the extent of 9 blocks from 4294967295 is out of order"),
        ("many", 0x28 + 6, &[3], "has magic 0xf30a, depth 1"),
        ("many", ENTRY, &[0xff; 4], "an entry for block 0 is out of order"),
        ("many", ENTRY + 4, &[0; 4], "lie outside"),
        ("many", ENTRY + 4, &[0xff; 4], "lie outside"),
    ];
    for (path, at, bytes, words) in cases {
        let inode = healthy.inode(path);
        let mut disk = healthy.forged(|place| place == Place::Inode(inode), at, bytes);
        let mut ext4 = Ext4::open(&mut disk).unwrap();
        let error = read(&mut ext4, &mut disk, path).unwrap_err().to_string();
        assert!(error.contains(words), "{path} {at:#x}: {error}");
    }
    let many = healthy.inode("many");
    let nodes: Vec<_> = healthy
        .parts
        .iter()
        .filter(|part| matches!(part.place, Place::ExtentNode { inode, .. } if inode == many))
        .collect();
    let (inner, leaf) = (nodes[0], nodes[1]);
    for (part, at, bytes, words) in [
        (inner, 2, &[0, 0][..], "a node without entries"),
        (inner, 6, &[2], "depth 2"),
        (inner, 12, &[1], "the extent of 1 blocks from 0 is out of order"),
        (inner, 12 + 12, &[0; 4], "an entry for block 0 is out of order"),
        (inner, 12 + 12 + 4, &[0; 4], "lie outside"),
        (leaf, 2, &[0, 0], "a node without entries"),
        (leaf, 6, &[1], "depth 1"),
        (leaf, 4, &[0xff, 0xff], "of 65535"),
        (leaf, 12, &[3], "the extent of 1 blocks from 2 is out of order"),
        (leaf, 12 + 12, &[0; 4], "the extent of 1 blocks from 0 is out of order"),
        (leaf, 12 + 12 + 4, &[0, 0], "the extent of 0 blocks"),
    ] {
        let mut disk = healthy.forged(|place| place == part.place, at, bytes);
        let mut ext4 = Ext4::open(&mut disk).unwrap();
        let error = read(&mut ext4, &mut disk, "many").unwrap_err().to_string();
        assert!(error.contains(words), "{at:#x}: {error}");
    }
    // The same block twice in one file.
    let mut disk = healthy.disk.copy();
    leaf.forge(&healthy.superblock, &disk, |bytes| bytes.copy_within(12 + 8..12 + 12, 24 + 8));
    let mut ext4 = Ext4::open(&mut disk).unwrap();
    assert!(matches!(read(&mut ext4, &mut disk, "many"), Err(Ext4Error::Overlap { .. })));
}

/// A tree whose nodes name themselves: each level is checked for its depth, and no tree is deeper than five.
#[test]
fn a_tree_that_leads_to_itself_ends() {
    let healthy = healthy();
    let many = healthy.inode("many");
    let part = healthy.part(|place| matches!(place, Place::ExtentNode { inode, .. } if inode == many));
    let block = u32::try_from(part.block).unwrap().to_le_bytes();
    let mut disk = healthy.forged(|place| place == Place::Inode(many), 0x28 + 6, &[5]);
    part.forge(&healthy.superblock, &disk, |bytes| {
        bytes[2..4].copy_from_slice(&[1, 0]);
        bytes[6] = 4;
        bytes[16..20].copy_from_slice(&block);
        bytes[20..22].fill(0);
    });
    let mut ext4 = Ext4::open(&mut disk).unwrap();
    let error = read(&mut ext4, &mut disk, "many").unwrap_err().to_string();
    assert!(error.contains("depth 4"), "{error}");
}

#[test]
fn directories_that_cannot_be_are_refused() {
    let healthy = healthy();
    let a = healthy.inode("a");
    let of_a = |place| matches!(place, Place::DirectoryBlock { inode, .. } if inode == a);
    let first_name = 24; // behind "." and ".."
    let cases: [(usize, &[u8], &str); 10] = [
        (0, &[2], "its entry at byte 0 is \".\", of inode 2"),
        (8, b"x", "its entry at byte 0 is \"x\""),
        (20, b"xx", "its entry at byte 12 is \"xx\""),
        (first_name + 4, &[0, 0], "the entry at byte 24 has 0 bytes"),
        (first_name + 4, &[13, 0], "has 13 bytes"),
        (first_name + 4, &[0xfc, 0xff], "has 65532 bytes"),
        (first_name + 4, &[12, 0, 250], "has 12 bytes and a name of 250"),
        (first_name + 6, &[0], "an entry \"\" names inode"),
        (first_name + 8, b"/", "an entry \"/\" names inode"),
        (first_name, &[0xff; 4], "names inode 4294967295"),
    ];
    for (at, bytes, words) in cases {
        let mut disk = healthy.forged(of_a, at, bytes);
        let mut ext4 = Ext4::open(&mut disk).unwrap();
        let error = match ext4.list(&mut disk, b"a", &ROOT, 0, 9) {
            Err(error) => error.to_string(),
            Ok(entries) => panic!("{at}: {entries:?}"),
        };
        assert!(error.contains(words), "{at}: {error}");
    }
    for own in [1u32, 3, 7, 8, 10] {
        let mut disk = healthy.forged(of_a, first_name, &own.to_le_bytes());
        let mut ext4 = Ext4::open(&mut disk).unwrap();
        let error = ext4.stat(&mut disk, b"a/b", &ROOT, false).unwrap_err().to_string();
        assert!(error.contains("the file system's own"), "{error}");
    }
    let deleted = (healthy.inode("second") + 100).to_le_bytes();
    let mut disk = healthy.forged(of_a, first_name, &deleted);
    assert!(Ext4::open(&mut disk).unwrap().stat(&mut disk, b"a/b", &ROOT, false).is_err());
    for (at, bytes, words) in [
        (4, &[1u8, 0, 0, 0][..], "a directory of 1 bytes"),
        (4, &[0; 4], "a directory of 0 bytes"),
        (4, &[0, 8, 0, 0], "it is a directory of 2 blocks and has 1"),
        (4, &[0, 0, 0, 0x40], "the length of the directory 1073741824 is more than 67108864"),
        (LENGTH, &[1, 0x80], "its block 0 was never written"),
        (ENTRY, &[1], "its block 0 was never written"),
    ] {
        let mut disk = healthy.forged(|place| place == Place::Inode(a), at, bytes);
        let mut ext4 = Ext4::open(&mut disk).unwrap();
        let error = ext4.list(&mut disk, b"a", &ROOT, 0, 9).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn group_descriptors_that_cannot_be_are_refused() {
    let healthy = healthy();
    for (at, bytes, words) in [
        (0, [0; 4], "lie"),
        (0, [0xff; 4], "of 32768"),
        (4, [1, 0, 0, 0], "superblock or the descriptors in group 0"),
        (8, [0xf0, 0x7f, 0, 0], "the inode table of group 1 is said to be"),
        (0x20, [1, 0, 0, 0], "of 32768"),
    ] {
        let error =
            Ext4::open(&mut healthy.forged(|place| place == Place::Group(1), at, &bytes)).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(words) || words == "lie", "{at}: {error}");
    }
}

/// However large a directory is, and however often a path goes through it, one answer reads no more than it may.
#[test]
fn the_work_for_one_answer_is_bounded() {
    // The directory `a` gets 7000 more blocks, all unused but the last one, in which `z` is `a` itself.
    let image = Healthy::of(&agree::with_tree(1024, &["-O", "^metadata_csum"]));
    let (a, count) = (image.inode("a"), 7000u16);
    let ext4 = Ext4::open(&mut image.disk.clone()).unwrap();
    let free = |first: &u32| ext4.groups.zone.owner((*first).into(), count.into()).is_none();
    let first = (10_000u32..).find(free).unwrap();
    let mut disk = Watched { disk: image.disk.copy(), reads: 0 };
    for block in 0..u64::from(count) {
        let entry = if block + 1 < count.into() {
            [0, 0, 0, 0, 0, 4, 0, 0, 0]
        } else {
            [0, 0, 0, 0, 0, 4, 1, 2, b'z']
        };
        disk.disk.alter((u64::from(first) + block) * 2, |bytes| {
            bytes[..9].copy_from_slice(&entry);
            if entry[8] != 0 {
                bytes[..4].copy_from_slice(&a.to_le_bytes());
            }
        });
    }
    image.part(|place| place == Place::Inode(a)).alter(&image.superblock, &disk.disk, |bytes| {
        bytes[0x28 + 2] = 2;
        assert_eq!(bytes[LENGTH..START - 2], [1, 0], "it has one block");
        bytes[ENTRY + 12..ENTRY + 16].copy_from_slice(&1u32.to_le_bytes());
        bytes[LENGTH + 12..LENGTH + 14].copy_from_slice(&count.to_le_bytes());
        bytes[START + 12..START + 16].copy_from_slice(&first.to_le_bytes());
        bytes[4..8].copy_from_slice(&((u32::from(count) + 1) << 10).to_le_bytes());
    });
    let mut ext4 = Ext4::open(&mut disk).unwrap();
    disk.reads = 0;
    let error = ext4.lookup(&mut disk, b"a/missing", &ROOT, true).unwrap_err();
    assert_eq!(error, Ext4Error::NotFound { path: "/a/missing".to_owned() });
    assert!(disk.reads > u64::from(count), "it is as large as that");
    let through = |times: usize| format!("a{}", "/z".repeat(times));
    assert_eq!(ext4.lookup(&mut disk, through(20).as_bytes(), &ROOT, true), Ok(a));
    disk.reads = 0;
    let error = ext4.lookup(&mut disk, through(2000).as_bytes(), &ROOT, true).unwrap_err();
    assert!(matches!(error, Ext4Error::TooMuch { most: MAX_WORK, .. }), "{error}");
    assert!(disk.reads <= MAX_WORK + 1, "and the superblock");
}

#[test]
fn numbers_of_groups_are_bounded_before_they_are_believed() {
    let healthy = healthy();
    let superblock = &healthy.superblock;
    assert!(superblock.groups >= 4);
    // A device that says it has 2^50 bytes, and a superblock to match, in groups of 256 blocks.
    let mut disk = healthy.disk.copy();
    let mut huge = MemoryDisk::new(9, 1 << 41);
    let mut head = vec![0; 1 << 20];
    disk.read(0, &mut head).unwrap();
    huge.write(0, &head).unwrap();
    let part = healthy.part(|place| place == Place::Superblock);
    part.forge(superblock, &huge, |bytes| {
        bytes[0x04..0x08].fill(0xff);
        bytes[0x150..0x154].copy_from_slice(&[0xff, 0, 0, 0]);
        bytes[0x20..0x24].copy_from_slice(&256u32.to_le_bytes());
        bytes[0x24..0x28].copy_from_slice(&256u32.to_le_bytes());
    });
    let error = Ext4::open(&mut huge).unwrap_err().to_string();
    assert!(error.contains("the number of block groups 4294967296 is more than 262144"), "{error}");
}
