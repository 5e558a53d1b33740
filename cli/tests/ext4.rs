//! The commands over an ext4 that another program made: copied out, overwritten in place, mounted, and refused whatever would
//! need a block or another name.
#![allow(clippy::unwrap_used)] // helpers of tests

mod served;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use rustix::process::Signal;
use served::{Adapter, Mounted, errno, text, write};
use store::ext4::image::Image;

const IMAGE: u64 = 24 << 20;
/// None, parts of blocks, whole ones, and many.
const LENGTHS: [usize; 8] = [0, 1, 511, 4095, 4096, 5000, 70_000, 3_000_001];
/// Of the file with holes.
const SPARSE: usize = 5_000_003;

/// Bytes of which no block is zero: mkfs.ext4 makes a hole of one that is.
fn data(length: usize) -> Vec<u8> {
    served::data(length).iter().map(|byte| byte ^ 0x33).collect()
}

/// What stands in a directory.
#[derive(PartialEq, Eq, Debug)]
enum Entry {
    Directory(u32),
    File(u32, Vec<u8>),
    Link(PathBuf),
}

fn tree(root: &Path) -> BTreeMap<PathBuf, Entry> {
    fn walk(root: &Path, below: &Path, all: &mut BTreeMap<PathBuf, Entry>) {
        for entry in fs::read_dir(root.join(below)).unwrap() {
            let path = below.join(entry.unwrap().file_name());
            let there = root.join(&path);
            let meta = fs::symlink_metadata(&there).unwrap();
            let entry = if meta.is_dir() {
                walk(root, &path, all);
                Entry::Directory(meta.mode() & 0o7777)
            } else if meta.is_symlink() {
                Entry::Link(fs::read_link(&there).unwrap())
            } else {
                Entry::File(meta.mode() & 0o7777, fs::read(&there).unwrap())
            };
            all.insert(path, entry);
        }
    }
    let mut all = BTreeMap::new();
    walk(root, Path::new(""), &mut all);
    all
}

/// A folder with files of all lengths, one with holes, and links; an image of it, and what is in it.
fn image() -> (Image, BTreeMap<PathBuf, Entry>) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for (number, length) in LENGTHS.into_iter().enumerate() {
        let path = root.join(format!("d{}/e/f{number}", number % 3));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, data(length)).unwrap();
        let mode = [0o644, 0o600, 0o755][number % 3];
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let time = UNIX_EPOCH + Duration::new(1_000_000_000 + number as u64, 0);
        let file = fs::File::options().append(true).open(&path).unwrap();
        file.set_times(fs::FileTimes::new().set_modified(time)).unwrap();
    }
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(SPARSE as u64).unwrap();
    for at in [0, 1 << 20, SPARSE as u64 - 10_000] {
        sparse.write_all_at(&data(9000), at).unwrap();
    }
    fs::File::create(root.join("nothing")).unwrap().set_len(123_456).unwrap();
    symlink("d1/e/f1", root.join("near")).unwrap();
    symlink("/etc/none", root.join("far")).unwrap();
    symlink("x".repeat(300), root.join("d2/long")).unwrap();
    let all = tree(root);
    let image = Image::make(IMAGE, &["-d", &root.display().to_string(), "-E", "root_owner=0:0"]).unwrap();
    image.change(&["rmdir lost+found".to_owned()]).unwrap();
    (image, all)
}

/// What debugfs finds in a file.
fn dumped(image: &Image, path: &str) -> Vec<u8> {
    let to = image.folder().join("dumped");
    image.ask(&format!("dump {path} {}", to.display())).unwrap();
    fs::read(to).unwrap()
}

/// The image is sound, and all files but these are as they were.
fn is_as_before(image: &Image, all: &BTreeMap<PathBuf, Entry>, but: &[&str]) {
    assert!(image.check(&["-f", "-n"]).unwrap(), "e2fsck");
    for (path, entry) in all {
        let path = path.to_str().unwrap();
        if let Entry::File(_, bytes) = entry
            && !but.contains(&path)
        {
            assert!(dumped(image, &format!("/{path}")) == *bytes, "{path}");
        }
    }
}

#[test]
fn what_is_copied_out_is_what_went_in() {
    let (image, all) = image();
    let before = fs::read(image.file()).unwrap();
    let found = Adapter::as_found(image.file());
    let inside = Adapter::start("emu:128M");
    inside.run(&["volume", "create", "v", "24M"]);
    inside.run(&["cp", "-q", image.file().to_str().unwrap(), "v:"]);
    for (adapter, volume) in [(&found, "disk"), (&inside, "v")] {
        let copied = adapter.json(&["cp", "-r", "-p", &format!("{volume}:/"), "out"]);
        assert_eq!(copied["failures"], 0, "{copied}");
        assert_eq!(tree(&adapter.path("out")), all, "names, modes, links and bytes");
        let meta = |name: &str| fs::metadata(adapter.path("out").join(name)).unwrap();
        assert_eq!(meta("d2/e/f5").modified().unwrap(), UNIX_EPOCH + Duration::new(1_000_000_005, 0));
        // A file system here that knows no holes made none of the source either.
        if meta("nothing").blocks() == 0 {
            assert!(meta("sparse").blocks() * 512 < 100_000, "{} blocks", meta("sparse").blocks());
        } else {
            println!("skipped: {} knows no holes", adapter.path("out").display());
        }
        // By a link what it leads to, and a part of it.
        let near = format!("{volume}:/near");
        adapter.run(&["cp", &near, "near"]);
        assert_eq!(fs::read(adapter.path("near")).unwrap(), data(1));
        let part = adapter.run_with(&["cp", "--bytes", "20000", &format!("{volume}:/sparse"), "-"], b"");
        assert!(part.status.success() && part.stdout == [data(9000), vec![0; 11_000]].concat());
        let error = adapter.fail(&["cp", &format!("{volume}:/far"), "far"]);
        assert!(error.contains("/far") && error.lines().count() == 1, "{error}");
    }
    // From one to the other: an ext4 as the source of files of ours, links left out and told of.
    inside.run(&["volume", "create", "ours", "32M"]);
    inside.run(&["volume", "format", "ours"]);
    let error = inside.fail(&["cp", "-q", "-r", "v:/", "ours:/all"]);
    assert_eq!(error.matches("is a symbolic link").count(), 3, "{error}");
    inside.run(&["cp", "-q", "-r", "ours:/all", "back"]);
    let files = |all: BTreeMap<PathBuf, Entry>| -> BTreeMap<_, _> {
        all.into_iter().filter(|(_, entry)| !matches!(entry, Entry::Link(_))).collect()
    };
    assert_eq!(files(tree(&inside.path("back"))), files(all));
    drop(found);
    assert!(fs::read(image.file()).unwrap() == before, "nobody wrote");
}

#[test]
fn what_is_copied_in_lands_in_place_or_is_refused_as_a_whole() {
    let (image, all) = image();
    let adapter = Adapter::as_found(image.file());
    let changed = |length: usize| data(length).iter().map(|byte| byte ^ 0x5a).collect::<Vec<u8>>();
    let new = write(&adapter.path("new"), &changed(70_000));
    let large = write(&adapter.path("large"), &changed(3_000_001));
    let sparse = write(&adapter.path("sparse"), &changed(SPARSE));
    let nothing = write(&adapter.path("nothing"), &vec![0; 123_456]);
    fs::create_dir_all(adapter.path("d0/e")).unwrap();
    fs::copy(&new, adapter.path("d0/e/f6")).unwrap();
    fs::create_dir(adapter.path("other")).unwrap();
    for (arguments, why) in [
        (vec!["cp", &new, "disk:/d1/e/f1"], "it has 1 bytes, and the source 70000"),
        (vec!["cp", &new, "disk:/d1/e/f7"], "overwritten in place"),
        (vec!["cp", &new, "disk:/"], "overwritten in place"),
        (vec!["cp", &new, "disk:/new"], "E_NO_RESOURCE"),
        (vec!["cp", &sparse, "disk:/sparse"], "from byte "),
        (vec!["cp", &nothing, "disk:/nothing"], "from byte 0 on it has no blocks"),
        (vec!["cp", "-", "disk:/d0/e/f6"], "nobody knows how long"),
        (vec!["cp", "-r", "other", "disk:/"], "E_OPCODE"),
        (vec!["mkdir", "disk:/x"], "E_OPCODE"),
        (vec!["mv", "disk:/near", "disk:/x"], "E_OPCODE"),
        (vec!["rm", "disk:/near"], "E_OPCODE"),
        (vec!["rm", "-r", "disk:/d0"], "E_OPCODE"),
    ] {
        let error = adapter.fail(&arguments);
        assert!(error.contains(why), "{arguments:?}: {error}");
    }
    // What has the length and the blocks is overwritten, alone and in a tree, by its name and by a link to it.
    adapter.run(&["cp", &large, "disk:/d1/e/f7"]);
    adapter.run(&["cp", "-r", "-p", "d0", "disk:/"]);
    let one = write(&adapter.path("one"), &changed(1));
    adapter.run(&["cp", &one, "disk:/near"]);
    let back = adapter.run_with(&["cat", "disk:/d0/e/f6", "disk:/d1/e/f1"], b"").stdout;
    assert!(back == [changed(70_000), changed(1)].concat());
    let df = adapter.json(&["df", "disk"]);
    assert_eq!(df[0]["available"], 0, "{df}");
    drop(adapter);
    assert!(dumped(&image, "/d1/e/f7") == changed(3_000_001));
    assert!(dumped(&image, "/d0/e/f6") == changed(70_000));
    assert!(dumped(&image, "/d1/e/f1") == changed(1));
    is_as_before(&image, &all, &["d1/e/f7", "d0/e/f6", "d1/e/f1"]);
}

#[test]
fn a_mounted_ext4_is_read_and_overwritten_and_not_otherwise_changed() {
    let (image, all) = image();
    let adapter = Adapter::as_found(image.file());
    let Some(mounted) = Mounted::start(&adapter, "disk", &[]) else { return };
    let root = &mounted.root;
    assert_eq!(tree(root), all);
    assert_eq!(fs::read(root.join("near")).unwrap(), data(1), "the kernel follows the link");
    assert_eq!(errno(fs::read(root.join("none"))), Some(libc::ENOENT));
    // In place: a part, the end, and by a program that has the whole file mapped in memory's stead.
    let file = fs::File::options().read(true).write(true).open(root.join("d0/e/f6")).unwrap();
    file.write_all_at(b"patched", 4093).unwrap();
    file.write_all_at(b"end", 69_997).unwrap();
    file.sync_all().unwrap();
    let mut expected = data(70_000);
    expected[4093..4100].copy_from_slice(b"patched");
    expected[69_997..].copy_from_slice(b"end");
    assert!(fs::read(root.join("d0/e/f6")).unwrap() == expected);
    // Whatever needs a block: behind the end, over it, where there is a hole.
    assert_eq!(errno(file.write_all_at(b"x", 70_000)), Some(libc::ENOSPC));
    assert_eq!(errno(file.write_all_at(b"over the end", 69_990)), Some(libc::ENOSPC));
    let sparse = fs::File::options().write(true).open(root.join("sparse")).unwrap();
    assert_eq!(errno(sparse.write_all_at(&[1; 4096], 40_960)), Some(libc::ENOSPC));
    let mut log = fs::File::options().append(true).open(root.join("d1/e/f1")).unwrap();
    assert_eq!(errno(std::io::Write::write_all(&mut log, b"line")), Some(libc::ENOSPC));
    // Whatever needs another name, length or attribute.
    let read_only = Some(libc::EROFS);
    assert_eq!(errno(fs::write(root.join("new"), b"")), read_only);
    assert_eq!(errno(fs::write(root.join("d1/e/f1"), b"cut off first")), read_only);
    assert_eq!(errno(file.set_len(10)), read_only);
    assert_eq!(errno(file.set_len(80_000)), read_only);
    assert_eq!(errno(fs::create_dir(root.join("dir"))), read_only);
    assert_eq!(errno(fs::rename(root.join("near"), root.join("x"))), read_only);
    assert_eq!(errno(fs::rename(root.join("d0/e/f0"), root.join("d0/e/f6"))), read_only);
    assert_eq!(errno(fs::remove_file(root.join("sparse"))), read_only);
    assert_eq!(errno(fs::remove_file(root.join("far"))), read_only);
    assert_eq!(errno(fs::remove_dir(root.join("d0/e"))), read_only);
    assert_eq!(errno(fs::set_permissions(root.join("sparse"), fs::Permissions::from_mode(0o600))), read_only);
    let times = fs::FileTimes::new().set_modified(UNIX_EPOCH);
    assert_eq!(errno(file.set_times(times)), read_only);
    assert_eq!(errno(symlink("a", root.join("link"))), Some(libc::EPERM));
    assert_eq!(errno(fs::hard_link(root.join("sparse"), root.join("hard"))), Some(libc::EPERM));
    let space = rustix::fs::statvfs(root).unwrap();
    assert_eq!(space.f_bavail, 0, "there is nothing to be had");
    drop((file, sparse, log));
    mounted.end(Signal::TERM);
    drop(adapter);
    assert!(dumped(&image, "/d0/e/f6") == expected);
    is_as_before(&image, &all, &["d0/e/f6"]);
}

#[test]
fn what_no_kernel_would_let_be_written_is_read_and_not_overwritten() {
    let (image, _) = image();
    image.change(&["set_inode_field /d0/e/f6 mode 0104755".to_owned()]).unwrap();
    image.change(&["set_inode_field /d1/e/f4 flags 0x80010".to_owned()]).unwrap();
    assert!(image.check(&["-f", "-n"]).unwrap());
    let before = fs::read(image.file()).unwrap();
    let adapter = Adapter::as_found(image.file());
    for (path, length, why) in [("d0/e/f6", 70_000, "chmod ug-s"), ("d1/e/f4", 4096, "immutable")] {
        let new = write(&adapter.path("new"), &vec![1; length]);
        let error = adapter.fail(&["cp", &new, &format!("disk:/{path}")]);
        assert!(error.contains(why), "{path}: {error}");
        let output = adapter.run_with(&["cat", &format!("disk:/{path}")], b"");
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(output.stdout == data(length));
    }
    if let Some(mounted) = Mounted::start(&adapter, "disk", &[]) {
        for path in ["d0/e/f6", "d1/e/f4"] {
            let opened = fs::File::options().write(true).open(mounted.root.join(path));
            let refused = errno(opened).unwrap();
            assert!([libc::EPERM, libc::EOPNOTSUPP].contains(&refused), "{path}: {refused}");
        }
        mounted.end(Signal::TERM);
    }
    drop(adapter);
    assert!(fs::read(image.file()).unwrap() == before);
}
