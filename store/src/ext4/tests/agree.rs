//! Images of many kinds, made by mkfs.ext4 and debugfs: each name, each attribute, each block and each byte is what
//! debugfs says.

use std::collections::BTreeMap;
use std::fs;

use driver::disk::{Dice, Disk, MemoryDisk};

use super::super::image::Image;
use super::super::{Attributes, Ext4, FileExtent, HoleKind, Kind, MAX_LISTED, OpenedFile};
use crate::permission::{Credentials, Rights};

const ROOT: Credentials<'static> = Credentials::ROOT;

/// What debugfs says of one name: inode, mode, owner, group, length.
type Listed = BTreeMap<Vec<u8>, (u32, u16, u32, u32, Option<u64>)>;

/// `ls -p`: a line for each entry, its fields between slashes.
fn listed(image: &Image, path: &str) -> Listed {
    let said = image.ask(&format!("ls -p \"{path}\"")).unwrap();
    let mut listed = Listed::new();
    for line in said.lines().filter(|line| !line.is_empty()) {
        let fields: Vec<&str> = line.split('/').collect();
        let [_, inode, mode, uid, gid, name, length, ..] = fields[..] else { panic!("{line:?}") };
        // Deleted and index entries are shown as inode 0.
        if inode != "0" && name != "." && name != ".." {
            let entry = (
                inode.parse().unwrap(),
                u16::from_str_radix(mode, 8).unwrap(),
                uid.parse().unwrap(),
                gid.parse().unwrap(),
                length.parse().ok(),
            );
            assert!(listed.insert(name.as_bytes().to_vec(), entry).is_none(), "{name} twice");
        }
    }
    listed
}

/// The blocks of the file system that hold a file's data, as `dump_extents -l` tells: (logical, physical, written).
fn blocks_told(image: &Image, inode: u32) -> Vec<(u64, u64, bool)> {
    let said = image.ask(&format!("dump_extents -l <{inode}>")).unwrap();
    let mut blocks = Vec::new();
    for line in said.lines().skip(1) {
        // " 0/ 0   1/  2     0 -     3   1024 -   1027      4 Uninit"
        let words: Vec<&str> = line.split(|c: char| c == '/' || c == '-' || c.is_whitespace()).collect();
        let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap_or_else(|_| panic!("{line:?}"));
        let (first, last, physical) = (number(4), number(5), number(6));
        let written = !line.contains("Uninit");
        blocks.extend((first..=last).map(|block| (block, physical + block - first, written)));
    }
    blocks
}

/// The blocks that an opened file has, and its holes, the same way.
fn blocks_opened(file: &OpenedFile, block: u64, device: u64) -> Vec<(u64, u64, bool)> {
    let of = |extent: &FileExtent| {
        assert_eq!(extent.offset % block, 0);
        assert_eq!(extent.range.first.0 * device % block, 0);
        let (logical, physical) = (extent.offset / block, extent.range.first.0 * device / block);
        (0..(extent.range.count.0 * device).div_ceil(block))
            .map(move |at| (logical + at, physical + at, true))
    };
    file.extents.iter().flat_map(of).collect()
}

/// The bytes of a file, from its extents.
pub(super) fn content(disk: &mut MemoryDisk, file: &OpenedFile) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.length).unwrap()];
    let block = disk.geometry().block_size() as usize;
    for extent in &file.extents {
        let mut data = vec![0; usize::try_from(extent.range.count.0).unwrap() * block];
        disk.read(extent.range.first.0, &mut data).unwrap();
        let start = usize::try_from(extent.offset).unwrap();
        let end = (start + data.len()).min(bytes.len());
        assert!(start + data.len() < bytes.len() + block, "no block of the device lies beyond the end");
        bytes[start..end].copy_from_slice(&data[..end - start]);
    }
    bytes
}

/// Extents and holes together make up the file, in order.
fn assert_complete(file: &OpenedFile, block: u64) {
    let ranges = file.extents.iter().map(|extent| (extent.offset, extent.range.count.0 * block));
    let mut parts: Vec<(u64, u64)> =
        ranges.chain(file.holes.iter().map(|hole| (hole.offset, hole.bytes))).collect();
    parts.sort_unstable();
    let end = parts.iter().fold(0, |next, (offset, bytes)| {
        assert_eq!(*offset, next);
        offset + bytes
    });
    assert!(end >= file.length && end < file.length + block, "{end} of {}", file.length);
}

/// Compares everything beneath `path` with what debugfs says; how many files there were.
pub(super) fn compare(image: &Image, disk: &mut MemoryDisk, ext4: &mut Ext4, path: &str) -> usize {
    let listed = listed(image, path);
    let mut found = BTreeMap::new();
    let mut cursor = 0;
    loop {
        let part = ext4.list(disk, path.as_bytes(), &ROOT, cursor, 7).unwrap();
        let Some(last) = part.last() else { break };
        cursor = last.next;
        for entry in part {
            assert!(found.insert(entry.name.clone(), entry).is_none(), "an entry is shown once");
        }
    }
    assert!(found.keys().eq(listed.keys()), "{path}: {:?} {:?}", found.keys(), listed.keys());
    let mut files = 0;
    for (name, entry) in found {
        let name = String::from_utf8(name).unwrap();
        let (inode, mode, uid, gid, length) = listed[name.as_bytes()];
        let path = format!("{}/{name}", path.trim_end_matches('/'));
        let stat = ext4.stat(disk, path.as_bytes(), &ROOT, false).unwrap();
        assert_eq!((entry.inode, stat.inode), (inode, inode), "{path}");
        assert_eq!(
            (stat.permissions.mode, stat.permissions.uid, stat.permissions.gid),
            (mode, uid, gid),
            "{path}"
        );
        assert!(entry.kind.is_none_or(|kind| kind == stat.kind));
        match stat.kind {
            Kind::Directory => files += compare(image, disk, ext4, &path),
            Kind::File => {
                assert_eq!(Some(stat.length), length, "{path}");
                compare_file(image, disk, ext4, &path, &stat);
                files += 1;
            }
            Kind::Link => {
                let target = ext4.read_link(disk, path.as_bytes(), &ROOT).unwrap();
                let said = image.ask(&format!("stat \"{path}\"")).unwrap();
                if let Some((_, rest)) = said.split_once("Fast link dest: \"") {
                    assert_eq!(rest.split('"').next().unwrap().as_bytes(), target);
                } else {
                    assert_eq!(image.ask(&format!("cat \"{path}\"")).unwrap().as_bytes(), target);
                }
            }
            _ => {}
        }
    }
    files
}

fn compare_file(image: &Image, disk: &mut MemoryDisk, ext4: &mut Ext4, path: &str, stat: &Attributes) {
    let file = ext4.open_file(disk, path.as_bytes(), &ROOT, Rights::READ).unwrap();
    let device = u64::from(disk.geometry().block_size());
    let block = 1 << ext4.superblock.block_shift;
    assert_complete(&file, device);
    let within = |logical: u64| logical * block < file.length;
    let told: Vec<_> = blocks_told(image, file.inode).into_iter().filter(|block| within(block.0)).collect();
    let written: Vec<_> = told.iter().copied().filter(|block| block.2).collect();
    assert_eq!(blocks_opened(&file, block, device), written, "{path}");
    for (logical, _, _) in told.iter().filter(|block| !block.2) {
        let at = logical * block;
        let hole = file.holes.iter().find(|hole| hole.offset <= at && at < hole.offset + hole.bytes).unwrap();
        assert_eq!(hole.kind, HoleKind::Unwritten, "{path}");
    }
    let copy = image.folder().join("dumped");
    image.ask(&format!("dump \"{path}\" {}", copy.display())).unwrap();
    assert!(fs::read(copy).unwrap() == content(disk, &file), "{path}: other bytes");
    assert_eq!(file.attributes, *stat);
    let said = image.ask(&format!("stat \"{path}\"")).unwrap();
    assert!(said.contains(&format!("Links: {} ", stat.links)), "{said}");
    let time = |name: &str| {
        let line = said.lines().find(|line| line.trim_start().starts_with(name)).unwrap();
        let words = line.split_once("0x").unwrap().1.split(' ').next().unwrap();
        let (seconds, extra) = words.split_once(':').unwrap_or((words, "0"));
        (i64::from_str_radix(seconds, 16).unwrap(), u32::from_str_radix(extra, 16).unwrap() >> 2)
    };
    assert_eq!((stat.modified.seconds, stat.modified.nanoseconds), time("mtime:"));
    assert_eq!((stat.changed.seconds, stat.changed.nanoseconds), time("ctime:"));
    ext4.close(file.inode);
}

/// The commands that make a tree with something of everything.
fn tree(image: &Image, block: usize) -> Vec<String> {
    let mut dice = Dice(7);
    let mut bytes = |count: usize| (0..count).map(|_| dice.number().to_le_bytes()[0]).collect::<Vec<u8>>();
    let mut commands = Vec::new();
    for (name, length) in
        [("empty", 0), ("byte", 1), ("short", 700), ("exact", 3 * block), ("long", 40 * block + 17)]
    {
        let host = image.host_file(name, &bytes(length)).unwrap();
        commands.push(format!("write {host} {name}"));
    }
    let host = image.host_file("many", &bytes(1000 * block)).unwrap();
    commands.push(format!("write {host} many"));
    commands.extend((0..500).map(|block| format!("punch many {} {}", 2 * block + 1, 2 * block + 1)));
    // Where only an end is, and where nothing is but a length.
    commands.push(format!("write {host} end"));
    commands.push("punch end 0 990".to_owned());
    commands.push(format!("write {host} hole"));
    commands.push("punch hole 0 999".to_owned());
    commands.push(format!("write {host} allocated"));
    commands.push("punch allocated 10 400".to_owned());
    commands.push("fallocate allocated 20 399".to_owned());
    commands.push("fallocate allocated 1000 1100".to_owned()); // behind the end
    commands.extend(["mkdir a", "mkdir a/b", "mkdir a/b/c", "cd a/b/c"].map(str::to_owned));
    commands.push(format!("write {host} deep"));
    commands.extend(["cd /", "ln a/b/c/deep second", "sif a/b/c/deep links_count 2"].map(str::to_owned));
    commands.push("symlink fast a/b/c/deep".to_owned());
    commands.push(format!("symlink slow {}a/b", "a/b/c/../../../".repeat(10)));
    commands.extend(["mknod pipe p", "mknod tty c 4 1", "mknod sda b 8 0"].map(str::to_owned));
    commands
        .extend(["sif short uid 70000", "sif short gid 100001", "sif short mode 0100640"].map(str::to_owned));
    commands.push("ea_set short user.note something".to_owned());
    commands.push(format!("ea_set long user.big {}", "x".repeat(600)));
    commands.push("rm byte".to_owned());
    commands
}

/// An image with that tree.
pub(super) fn with_tree(block: usize, options: &[&str]) -> Image {
    let size = block.to_string();
    let image = Image::make(32 << 20, &[&["-b", &size], options].concat()).unwrap();
    let said = image.change(&tree(&image, block)).unwrap();
    assert!(!said.contains("rror"), "{said}");
    image
}

fn agrees(block: usize, options: &[&str]) {
    let image = with_tree(block, options);
    if options.iter().any(|option| option.contains("quota")) {
        image.check(&["-fy"]).unwrap(); // debugfs charges nobody
    }
    // The tools agree with themselves; or else there is nothing to agree with.
    assert!(image.check(&["-fn"]).unwrap(), "e2fsck finds something in what it made: {options:?}");
    for shift in if block == 4096 { vec![9, 12] } else { vec![9] } {
        let mut disk = image.disk(shift).unwrap();
        let mut ext4 = Ext4::open(&mut disk).unwrap_or_else(|error| panic!("{block} {options:?}: {error}"));
        assert_eq!(compare(&image, &mut disk, &mut ext4, "/"), 10, "{block} {options:?}");
        assert_eq!((ext4.open_files(), ext4.held), (0, 0));
    }
}

#[test]
fn default_images_agree_with_debugfs() {
    for block in [1024, 2048, 4096] {
        agrees(block, &[]);
    }
}

#[test]
fn images_without_some_features_agree_with_debugfs() {
    for without in
        ["^metadata_csum", "^64bit", "^flex_bg", "^has_journal", "^filetype", "^resize_inode", "^extra_isize"]
    {
        agrees(1024, &["-O", without]);
    }
    agrees(4096, &["-O", "^metadata_csum,uninit_bg,^64bit"]);
    agrees(4096, &["-I", "128"]);
    agrees(1024, &["-I", "128", "-O", "^metadata_csum,^sparse_super,^resize_inode"]);
    agrees(2048, &["-I", "1024"]);
}

#[test]
fn images_with_more_features_agree_with_debugfs() {
    for more in
        ["meta_bg,^resize_inode", "metadata_csum_seed", "quota", "project,quota", "ea_inode", "large_dir"]
    {
        agrees(1024, &["-O", more]);
    }
    for more in ["encrypt", "casefold", "verity", "orphan_file", "fast_commit", "stable_inodes"] {
        agrees(4096, &["-O", more]);
    }
    agrees(1024, &["-O", "sparse_super2,^resize_inode"]);
}

#[test]
fn directories_with_an_index_agree_with_debugfs() {
    for (block, options) in [(1024, &[][..]), (4096, &[]), (1024, &["-O", "^metadata_csum"])] {
        let size = block.to_string();
        let image = Image::make(32 << 20, &[&["-b", &size, "-N", "8192"], options].concat()).unwrap();
        let host = image.host_file("small", b"small").unwrap();
        let mut commands = vec!["mkdir big".to_owned(), "cd big".to_owned()];
        // More than are told at once, where blocks are large.
        let count = if block == 4096 { 4900 } else { 2800 };
        commands.extend((0..count).map(|at| format!("write {host} {at:04}-{}", "n".repeat(at % 120))));
        commands.extend((0..count).step_by(7).map(|at| format!("rm {at:04}-{}", "n".repeat(at % 120))));
        image.change(&commands).unwrap();
        image.check(&["-fyD"]).unwrap();
        assert!(image.check(&["-fn"]).unwrap());
        let tree = image.ask("htree_dump /big").unwrap();
        let levels = if block == 1024 { "Indirect levels: 1" } else { "Indirect levels: 0" };
        assert!(tree.contains(levels), "{tree}");
        let mut disk = image.disk(9).unwrap();
        let mut ext4 = Ext4::open(&mut disk).unwrap();
        let listed = listed(&image, "/big");
        let mut entries = ext4.list(&mut disk, b"/big", &ROOT, 0, usize::MAX).unwrap();
        assert_eq!(entries.len(), MAX_LISTED.min(count / 7 * 6));
        let next = entries.last().unwrap().next;
        entries.extend(ext4.list(&mut disk, b"/big", &ROOT, next, usize::MAX).unwrap());
        assert_eq!(entries.len(), count / 7 * 6);
        for entry in &entries {
            assert_eq!(entry.inode, listed[&entry.name].0);
        }
        for entry in entries.iter().step_by(100) {
            let path = [b"big/", &entry.name[..]].concat();
            assert_eq!(ext4.lookup(&mut disk, &path, &ROOT, true), Ok(entry.inode));
        }
        // Any cursor will do, also one that nobody was given.
        for cursor in [1, 11, 12, 13, 1025, 40_000, u64::MAX] {
            let part = ext4.list(&mut disk, b"/big", &ROOT, cursor, 3).unwrap();
            assert!(part.iter().all(|entry| entries.contains(entry)));
        }
    }
}

#[test]
fn trees_that_mkfs_copied_agree_with_debugfs() {
    let folder = std::env::temp_dir().join(format!("portcullis-ext4-copied-{}", std::process::id()));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
    let copied = std::process::Command::new("cp").args(["-r", source]).arg(&folder).status().unwrap();
    assert!(copied.success());
    let image = Image::make(32 << 20, &["-d", folder.to_str().unwrap()]).unwrap();
    fs::remove_dir_all(&folder).unwrap();
    let mut disk = image.disk(9).unwrap();
    let mut ext4 = Ext4::open(&mut disk).unwrap();
    assert!(compare(&image, &mut disk, &mut ext4, "/") > 10);
}

#[test]
fn what_is_overwritten_in_place_is_what_e2fsprogs_reads_and_nothing_else_changes() {
    for block in [1024, 4096] {
        let image = with_tree(block, &[]);
        let before = fs::read(image.file()).unwrap();
        let mut disk = image.disk(9).unwrap();
        let mut ext4 = Ext4::open(&mut disk).unwrap();
        let mut expected = before.clone();
        let mut dice = Dice(11);
        let mut contents = Vec::new();
        for path in ["short", "exact", "long", "many", "end", "allocated", "a/b/c/deep"] {
            let wanted = Rights::READ | Rights::WRITE;
            let file = ext4.open_file(&mut disk, path.as_bytes(), &ROOT, wanted).unwrap();
            for extent in &file.extents {
                let bytes = (extent.range.count.0 * 512).min(file.length - extent.offset);
                file.check_writable(extent.offset, bytes).unwrap();
                let start = usize::try_from(extent.range.first.0).unwrap() * 512;
                let data = dice.bytes(usize::try_from(bytes).unwrap());
                expected[start..start + data.len()].copy_from_slice(&data);
                let whole = data.len().next_multiple_of(512);
                disk.write(extent.range.first.0, &expected[start..start + whole]).unwrap();
            }
            contents.push((path, content(&mut disk, &file)));
        }
        let mut after = before.clone();
        for (lba, bytes) in disk.content() {
            let start = usize::try_from(lba).unwrap() * 512;
            after[start..start + 512].copy_from_slice(&bytes);
        }
        assert!(after == expected && after != before);
        fs::write(image.file(), &after).unwrap();
        assert!(image.check(&["-fn"]).unwrap(), "e2fsck has something to say");
        for (path, content) in contents {
            let copy = image.folder().join("dumped");
            image.ask(&format!("dump \"{path}\" {}", copy.display())).unwrap();
            assert!(fs::read(copy).unwrap() == content, "{path}");
        }
    }
}
