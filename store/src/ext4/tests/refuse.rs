//! What is not served is refused with the reason, and what is damaged is not believed.

use driver::disk::{Dice, Disk, MemoryDisk};

use super::super::image::Image;
use super::super::{Ext4, Ext4Error, Hole, HoleKind, Kind, Place};
use super::{Healthy, ROOT, agree, read, write};
use crate::permission::Rights;

fn said(result: Result<impl Sized, Ext4Error>) -> String {
    result.err().map_or_else(|| "nothing is wrong".to_owned(), |error| error.to_string())
}

#[test]
fn every_feature_bit_is_known_or_refused_by_name() {
    let healthy = Healthy::of(&agree::with_tree(1024, &[]));
    let words: [(usize, &[u32]); 3] = [
        (0x5c, &[0, 2, 3, 4, 5, 9, 10, 11, 12]),
        (0x60, &[1, 2, 4, 6, 7, 9, 10, 13, 14, 15, 16, 17]),
        (0x64, &[0, 1, 3, 4, 5, 6, 8, 10, 12, 13, 14, 15, 16]),
    ];
    let mut named = Vec::new();
    for (at, known) in words {
        let word = {
            let mut disk = healthy.disk.clone();
            let mut head = [0; 2048];
            disk.read(0, &mut head).unwrap();
            u32::from_le_bytes(head[1024 + at..1028 + at].try_into().unwrap())
        };
        for bit in 0..32 {
            let result = healthy.with_superblock(at, &(word | 1 << bit).to_le_bytes());
            let names = match &result {
                Err(Ext4Error::Features { names }) => names.clone(),
                Ok(ext4) => ext4.read_only().unwrap_or_default().to_owned(),
                _ => String::new(),
            };
            if known.contains(&bit) && !(at == 0x64 && [12, 14].contains(&bit)) {
                assert_eq!(names, "", "{at:#x} bit {bit}");
            } else {
                assert_ne!(names, "", "{at:#x} bit {bit}: {result:?}");
            }
            named.push(names);
        }
    }
    let named = named.join("\n");
    for name in
        ["imagic_inodes", "FEATURE_C13", "compression", "journal_dev", "mmp", "FEATURE_I18", "FEATURE_I31"]
    {
        assert!(named.contains(name), "{name}");
    }
    for name in ["bigalloc", "shared_blocks", "read-only", "FEATURE_R17", "FEATURE_R31", "snapshot"] {
        assert!(named.contains(name), "{name}");
    }
}

#[test]
fn images_with_features_that_are_not_served_are_refused() {
    for (options, words) in [
        (&["-O", "bigalloc"][..], "bigalloc"),
        (&["-O", "mmp"], "tune2fs -O ^mmp"),
        (&["-O", "^extent,^64bit,^metadata_csum"], "no extents"),
        (&["-O", "journal_dev"], "journal_dev"),
        (&["-b", "8192"], "log_block_size 3, 0 to 2 are served"),
    ] {
        let image = Image::make(32 << 20, options).unwrap();
        let what = said(Ext4::open(&mut image.disk(9).unwrap()));
        assert!(what.contains(words), "{options:?}: {what}");
    }
    let small = Image::make(4 << 20, &["-b", "1024"]).unwrap();
    let what = said(Ext4::open(&mut small.disk(12).unwrap()));
    assert!(what.contains("a block of the device is larger"), "{what}");
}

#[test]
fn what_may_only_be_read_is_not_opened_for_writing() {
    let healthy = Healthy::of(&agree::with_tree(1024, &[]));
    let mut disk = healthy.forged(|place| place == Place::Superblock, 0x64, &0x1_146b_u32.to_le_bytes());
    assert!(said(Ext4::open(&mut disk)).contains("still to be removed"), "orphans come first");
    let mut disk = healthy.forged(|place| place == Place::Superblock, 0x64, &0x8000_146b_u32.to_le_bytes());
    let mut ext4 = Ext4::open(&mut disk).unwrap();
    assert_eq!(ext4.read_only(), Some("it has the features read-only, FEATURE_R31"));
    assert!(read(&mut ext4, &mut disk, "short").is_ok());
    assert!(matches!(write(&mut ext4, &mut disk, "short"), Err(Ext4Error::ReadOnly { .. })));
}

#[test]
fn a_file_system_that_was_not_left_clean_is_refused() {
    let image = agree::with_tree(1024, &[]);
    let healthy = Healthy::of(&image);
    for (at, bytes, words) in [
        (0x60, &[0xc6u8, 2][..], "needs_recovery"),
        (0x3a, &[0, 0], "is mounted somewhere, or was not unmounted (state 0x0)"),
        (0x3a, &[3, 0], "errors in the file system (state 0x3)"),
        (0x3a, &[5, 0], "still to be removed (state 0x5)"),
        (0xe8, &[99, 0, 0, 0], "still to be removed (from inode 99)"),
    ] {
        let what = said(healthy.with_superblock(at, bytes));
        assert!(what.contains(words) && what.contains("e2fsck -f"), "{what}");
    }
    for (at, bytes, words) in [
        (0x1c, 1u32.to_be_bytes(), "the journal has transactions from its block 1"),
        (0x20, (-5i32).to_be_bytes(), "the journal was given up with error -5"),
        (0x00, [1; 4], "the journal's superblock is damaged"),
        (0x0c, 512u32.to_be_bytes(), "blocks of 512 bytes"),
    ] {
        let what = said(Ext4::open(&mut healthy.forged(|place| place == Place::Journal, at, &bytes)));
        assert!(what.contains(words), "{what}");
    }
    // As the tools see it, who would have to mend it.
    image.run("debugfs", &["-w", "-R", "ssv state 0"]).unwrap();
    assert!(matches!(Ext4::open(&mut image.disk(9).unwrap()), Err(Ext4Error::NotClean { .. })));
    assert!(image.check(&["-fy"]).unwrap());
    assert!(Ext4::open(&mut image.disk(9).unwrap()).is_ok());
}

#[test]
fn numbers_of_the_superblock_that_cannot_be_are_refused() {
    let healthy = Healthy::of(&agree::with_tree(1024, &[]));
    let cases: [(usize, &[u8], &str); 20] = [
        (0x00, &[1, 0, 0, 0], "the number of inodes is 1"),
        (0x04, &[0, 0, 0, 0], "it has 0 blocks"),
        (0x04, &[1, 0x80, 0, 0], "the device only 33554432 bytes"),
        (0x150, &[1, 0, 0, 0], "the device only"),
        (0x14, &[0, 0, 0, 0], "the first data block is 0"),
        (0x14, &[0xff, 0xff, 0xff, 0xff], "it has 32768 blocks"),
        (0x18, &[0xff, 0xff, 0xff, 0xff], "log_block_size 4294967295"),
        (0x1c, &[1, 0, 0, 0], "log_cluster_size 1"),
        (0x20, &[0, 0, 0, 0], "the number of blocks of a group is 0"),
        (0x20, &[8, 0, 0, 0], "the number of blocks of a group is 8"),
        (0x24, &[8, 0, 0, 0], "the number of clusters of a group is 8"),
        (0x28, &[0, 0, 0, 0], "the number of inodes of a group is 0"),
        (0x28, &[0, 0, 1, 0], "the number of inodes of a group is 65536"),
        (0x48, &[3, 0, 0, 0], "creator 3"),
        (0x4c, &[2, 0, 0, 0], "revision 2"),
        (0x54, &[2, 0, 0, 0], "the first inode is 2"),
        (0x58, &[0, 0], "the size of an inode is 0"),
        (0x58, &[0, 16], "the size of an inode is 4096"),
        (0xfe, &[32, 0], "the size of a group descriptor is 32"),
        (0xce, &[0xff, 0xff], "the number of reserved descriptor blocks is 65535"),
    ];
    for (at, bytes, words) in cases {
        let what = said(healthy.with_superblock(at, bytes));
        assert!(what.contains(words), "{at:#x}: {what}");
    }
    let what = said(healthy.with_superblock(0x175, &[2]));
    assert!(what.contains("checksum type 2"), "{what}");
    let what = said(healthy.with_superblock(0x38, &[0, 0]));
    assert!(what.contains("0x0000, not 0xef53"), "{what}");
    let what = said(healthy.with_superblock(0xe0, &[0]));
    assert!(what.contains("on another device"), "{what}");
    assert_eq!(said(Ext4::open(&mut MemoryDisk::new(9, 2))), said(Ext4::open(&mut MemoryDisk::new(9, 100))));
}

/// Looks at everything; the first error.
fn sweep(disk: &mut MemoryDisk) -> Result<(), Ext4Error> {
    let mut ext4 = Ext4::open(disk)?;
    let mut todo = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        for entry in ext4.list(disk, &[&path[..], b"/"].concat(), &ROOT, 0, usize::MAX)? {
            let path = [&path[..], b"/", &entry.name].concat();
            match ext4.stat(disk, &path, &ROOT, false)?.kind {
                Kind::Directory => todo.push(path),
                Kind::File => drop(ext4.open_file(disk, &path, &ROOT, Rights::READ)?),
                Kind::Link => drop(ext4.read_link(disk, &path, &ROOT)?),
                _ => {}
            }
        }
    }
    Ok(())
}

#[test]
fn one_flipped_bit_in_metadata_is_noticed_by_its_checksum() {
    let image = agree::with_tree(1024, &["-N", "512"]);
    let host = image.host_file("small", b"small").unwrap();
    let mut commands = vec!["cd a".to_owned()];
    commands.extend((0..100).map(|at| format!("write {host} name-{at}")));
    image.change(&commands).unwrap();
    image.check(&["-fyD"]).unwrap();
    let healthy = Healthy::of(&image);
    sweep(&mut healthy.disk.copy()).unwrap();
    let mut dice = Dice(3);
    let mut counts = [0; 3];
    for part in healthy.parts.iter().filter(|part| part.place != Place::Journal) {
        for _ in 0..8 {
            let mut disk = healthy.disk.copy();
            // What lies behind the entries in use of an extent tree or an index is not covered; the first bytes are. The
            // magic numbers and lengths that are looked at before the checksum is found are left alone.
            let (at, bit) = match part.place {
                Place::Superblock => (0x68 + dice.index(0x100), dice.below(8)),
                Place::Inode(_) => (130 + dice.index(part.length - 130), dice.below(8)),
                Place::ExtentNode { .. } => (12 + dice.index(24), dice.below(8)),
                Place::DirectoryBlock { .. } => (dice.index(4), dice.below(8)),
                Place::AttributeBlock { .. } => (12 + dice.index(900), dice.below(8)),
                _ => (dice.index(part.length), dice.below(8)),
            };
            part.alter(&healthy.superblock, &disk, |bytes| bytes[at] ^= 1 << bit);
            match sweep(&mut disk) {
                Err(Ext4Error::Checksum { place, .. }) => assert_eq!(place, part.place),
                other => panic!("bit {bit} of byte {at} of {part:?}: {other:?}"),
            }
            let kind = match part.place {
                Place::ExtentNode { .. } => 0,
                Place::DirectoryBlock { .. } => 1,
                Place::AttributeBlock { .. } => 2,
                _ => continue,
            };
            counts[kind] += 1;
        }
    }
    assert!(counts.iter().all(|count| *count > 0), "of everything there was something: {counts:?}");
}

#[test]
fn files_that_are_not_served_are_refused_with_the_reason() {
    let image = agree::with_tree(1024, &["-O", "encrypt,verity,casefold"]);
    let host = image.host_file("x", &[7; 5000]).unwrap();
    // What chattr and the kernel set: flags of i_flags, with those of extents.
    let cases: [(&str, u32, &str, bool); 10] = [
        ("encrypted", 0x8_0800, "is encrypted", false),
        ("inline", 0x1008_0000, "has its content in the inode", false),
        ("verity", 0x18_0000, "is protected by fs-verity", false),
        ("value", 0x28_0000, "is the value of an extended attribute", false),
        ("mapped", 0, "has no extents but a block map", false),
        ("compressed", 0x8_0200, "has flags 0x200,", false),
        ("snapshot", 0x108_0000, "has flags 0x1000000,", false),
        ("immutable", 0x8_0010, "is immutable", true),
        ("append", 0x8_0020, "can only be appended to", true),
        ("journaled", 0xa24f_c5cf, "nothing is wrong", true),
    ];
    let mut commands = Vec::new();
    for (name, flags, ..) in cases {
        commands.push(format!("write {host} {name}"));
        commands.push(format!("sif {name} flags {flags:#x}"));
    }
    for (name, mode) in [("setuid", "0104755"), ("setgid", "0102755"), ("mandatory", "0102644")] {
        commands.extend([format!("write {host} {name}"), format!("sif {name} mode {mode}")]);
    }
    commands.extend([format!("write {host} capable"), "ea_set capable security.capability abc".to_owned()]);
    commands.extend(
        ["mkdir folded", "sif folded flags 0x40080000", "mkdir secret", "sif secret flags 0x80800"]
            .map(str::to_owned),
    );
    image.change(&commands).unwrap();
    let mut disk = image.disk(9).unwrap();
    let mut ext4 = Ext4::open(&mut disk).unwrap();
    for (name, _, words, readable) in cases {
        let what = said(write(&mut ext4, &mut disk, name));
        assert!(what.contains(words), "{name}: {what}");
        assert_eq!(read(&mut ext4, &mut disk, name).is_ok(), readable, "{name}");
        assert!(ext4.stat(&mut disk, name.as_bytes(), &ROOT, true).is_ok(), "its attributes may be known");
    }
    for (name, words) in [
        ("setuid", "runs as its owner or group (mode 4755)"),
        ("setgid", "runs as its owner or group (mode 2755)"),
        ("mandatory", "runs as its owner or group (mode 2644)"),
        ("capable", "gives capabilities"),
    ] {
        let what = said(write(&mut ext4, &mut disk, name));
        assert!(what.contains(words), "{name}: {what}");
        assert!(read(&mut ext4, &mut disk, name).is_ok(), "{name}");
    }
    for (name, words) in [("folded", "without regard to case"), ("secret", "is encrypted")] {
        assert!(said(ext4.list(&mut disk, name.as_bytes(), &ROOT, 0, 9)).contains(words));
        assert!(said(read(&mut ext4, &mut disk, &format!("{name}/x"))).contains(words));
    }
    for (name, found) in [("a", "a directory"), ("pipe", "a named pipe"), ("tty", "a character device")] {
        assert!(said(read(&mut ext4, &mut disk, name)).contains(&format!("{found}, not a regular file")));
    }
    let what = said(ext4.list(&mut disk, b"short", &ROOT, 0, 9));
    assert_eq!(what, "/short is not a directory");
    assert!(said(ext4.read_link(&mut disk, b"short", &ROOT)).contains("not a symbolic link"));
}

#[test]
fn inline_content_is_refused_wherever_mkfs_puts_it() {
    let image = agree::with_tree(4096, &["-O", "inline_data"]);
    let mut disk = image.disk(9).unwrap();
    let mut ext4 = Ext4::open(&mut disk).unwrap();
    assert!(said(read(&mut ext4, &mut disk, "a/b/c/deep")).contains("inline_data"));
    assert!(read(&mut ext4, &mut disk, "long").is_ok());
}

#[test]
fn a_write_that_needs_blocks_is_told_which() {
    let image = agree::with_tree(1024, &[]);
    let mut disk = image.disk(9).unwrap();
    let mut ext4 = Ext4::open(&mut disk).unwrap();
    let file = write(&mut ext4, &mut disk, "allocated").unwrap();
    let holes = [
        Hole { offset: 10 << 10, bytes: 10 << 10, kind: HoleKind::Missing },
        Hole { offset: 20 << 10, bytes: 380 << 10, kind: HoleKind::Unwritten },
        Hole { offset: 400 << 10, bytes: 1 << 10, kind: HoleKind::Missing },
    ];
    assert_eq!(file.holes, holes);
    assert_eq!(file.length, 1000 << 10);
    let needs = |offset, bytes| Err(Ext4Error::NeedsAllocation { inode: file.inode, offset, bytes });
    assert_eq!(file.check_writable(0, 10 << 10), Ok(()));
    assert_eq!(file.check_writable(0, (10 << 10) + 1), needs(10 << 10, 1));
    assert_eq!(file.check_writable(12 << 10, 5), needs(12 << 10, 5));
    assert_eq!(file.check_writable(15 << 10, 1 << 20), needs(15 << 10, 5 << 10));
    assert_eq!(file.check_writable(401 << 10, 599 << 10), Ok(()));
    assert_eq!(file.check_writable(999 << 10, 1025), needs(1000 << 10, 1));
    assert_eq!(file.check_writable(u64::MAX, 1), needs(u64::MAX, 1));
    assert_eq!(file.check_writable(u64::MAX, 0), Ok(()));
    ext4.close(file.inode);
    let file = write(&mut ext4, &mut disk, "hole").unwrap();
    assert_eq!((file.extents.len(), file.holes.len()), (0, 1));
    assert_eq!(
        file.check_writable(0, 1),
        Err(Ext4Error::NeedsAllocation { inode: file.inode, offset: 0, bytes: 1 })
    );
    let file = ext4.open_file(&mut disk, b"empty", &ROOT, Rights::WRITE).unwrap();
    assert_eq!((file.length, file.extents.len(), file.holes.len()), (0, 0, 0));
}

#[test]
fn another_device_is_not_taken_for_the_one_that_was_opened() {
    let image = agree::with_tree(1024, &[]);
    let mut disk = image.disk(9).unwrap();
    let mut ext4 = Ext4::open(&mut disk).unwrap();
    disk.geometry_mut().blocks -= 1;
    assert_eq!(read(&mut ext4, &mut disk, "short"), Err(Ext4Error::Changed));
    disk.geometry_mut().blocks += 1;
    disk.make_unreadable(0..40000);
    assert!(matches!(read(&mut ext4, &mut disk, "long"), Err(Ext4Error::Disk(_))));
}
