//! Files in volumes as a person and a script use them: on a device in memory, or on the one that PORTCULLIS_DEVICE names.
#![allow(clippy::unwrap_used)] // helpers of tests

mod served;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use served::{Adapter, Mounted, data, errno, text, write};

/// An adapter with a volume `v` that holds files.
fn with_files(bytes: &str) -> Adapter {
    let adapter = Adapter::on_any_device("emu:256M");
    adapter.run(&["volume", "create", "v", bytes]);
    adapter.run(&["volume", "format", "v"]);
    adapter
}

/// Runs a command whose output is no text.
fn bytes(adapter: &Adapter, arguments: &[&str]) -> Vec<u8> {
    let output = adapter.run_with(arguments, b"");
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    output.stdout
}

fn lines(adapter: &Adapter, arguments: &[&str]) -> Vec<String> {
    adapter.run(arguments).lines().map(str::to_owned).collect()
}

#[test]
fn s6_r1_s6_r3_s6_r5_files_are_made_shown_renamed_and_removed() {
    let adapter = with_files("16M");
    let small = write(&adapter.path("small"), b"hello\n");
    adapter.run(&["cp", &small, "v:/"]);
    adapter.run(&["mkdir", "v:/a"]);
    adapter.run(&["mkdir", "-p", "-m", "700", "v:/a/b/c", "v:/a"]);
    adapter.run(&["cp", &small, "v:/a/b/one"]);
    assert_eq!(bytes(&adapter, &["cat", "v:/small", "v:/a/b/one"]), b"hello\nhello\n");
    assert_eq!(lines(&adapter, &["ls", "v:/"]), ["a", "small"]);
    assert_eq!(
        lines(&adapter, &["ls", "-R", "v:/", "v:/small"]),
        ["v:/small", "", "v:/:", "a", "small", "", "v:/a:", "b", "", "v:/a/b:", "c", "one", "", "v:/a/b/c:"]
    );
    assert_eq!(lines(&adapter, &["ls", "-d", "v:/a"]), ["v:/a"]);
    assert_eq!(bytes(&adapter, &["ls", "-R", "--zero", "v:/a"]), b"/a/b\0/a/b/c\0/a/b/one\0");
    let long = adapter.run(&["ls", "-l", "v:/a/b"]);
    assert!(long.starts_with("drwx------") && long.contains("-rw-r--r--"), "{long}");

    let stat = adapter.json(&["stat", "v:/small", "v:/a/b/c"]);
    assert_eq!((&stat[0]["length"], &stat[0]["kind"]), (&6.into(), &"file".into()));
    assert_eq!((&stat[1]["mode"], &stat[1]["kind"]), (&"0700".into(), &"directory".into()));
    assert!(adapter.run(&["stat", "v:/small"]).contains("6 bytes"));
    let listed = adapter.json(&["ls", "-R", "v:/"]);
    let paths: Vec<&str> = listed.as_array().unwrap().iter().map(|it| it["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["/a", "/small", "/a/b", "/a/b/c", "/a/b/one"]);

    adapter.run(&["mv", "v:/small", "v:/a/b/one", "v:/a/b/c"]);
    adapter.run(&["mv", "v:/a/b/c/small", "v:/a/b/c/one"]);
    assert_eq!(lines(&adapter, &["ls", "v:/a/b/c"]), ["one"]);

    assert!(adapter.fail(&["rm", "v:/a"]).contains("-r"));
    adapter.run(&["rm", "-f", "v:/nothing"]);
    assert_eq!(adapter.json(&["rm", "-r", "v:/a"])["removed"], serde_json::json!(["v:/a"]));
    assert!(lines(&adapter, &["ls", "v:/"]).is_empty());
    assert!(adapter.run(&["fsck", "v"]).contains("nothing is wrong"));
}

#[test]
fn what_cannot_be_done_is_said_with_path_and_reason_and_the_rest_is_done() {
    let adapter = with_files("16M");
    let small = write(&adapter.path("small"), b"hello\n");
    fs::create_dir_all(adapter.path("d/sub")).unwrap();
    write(&adapter.path("d/sub/f"), b"f");
    symlink("nowhere", adapter.path("d/link")).unwrap();
    let d = adapter.path("d").to_str().unwrap().to_owned();

    for (arguments, why) in [
        (vec!["cat", "v:/none"], "v:/none"),
        (vec!["cat", "v:/"], "v:/"),
        (vec!["mkdir", "v:/x/y"], "E_NO_RESOURCE"),
        (vec!["rm", "v:/none"], "E_NO_RESOURCE"),
        (vec!["stat", "v:/none"], "v:/none"),
        (vec!["mv", "v:/none", "v:/other"], "v:/none"),
        (vec!["mv", "v:/a", "v:/b", "v:/c"], "directory"),
        (vec!["mv", "v:/a", "w:/b"], "different volumes"),
        (vec!["cp", &small, &small, "v:/none"], "make it first"),
        (vec!["cp", &d, "v:/d"], "-r"),
        (vec!["cp", "missing", "v:/"], "missing"),
        (vec!["cp", "none:/x", "y"], "none"),
        (vec!["cp", "a", "b"], "VOLUME:/path"),
        (vec!["cp", "-", &small, "v:/"], "no name"),
        (vec!["df", "none"], "none"),
        (vec!["volume", "format", "v"], "E_EXISTS"),
    ] {
        let error = adapter.fail(&arguments);
        assert!(error.contains(why), "{arguments:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{arguments:?}: {error}");
    }
    assert!(adapter.fail_with(2, &["ls", "v:/none"]).contains("v:/none"));
    assert!(adapter.fail_with(2, &["ls", "none:/"]).contains("E_NO_RESOURCE"));
    assert!(adapter.fail_with(2, &["ls", "v"]).contains("VOLUME:/path"));
    assert!(adapter.fail_with(8, &["fsck", "none"]).contains("E_NO_RESOURCE"));

    // What can be copied is, and the exit code says that something could not.
    let error = adapter.fail(&["cp", "-q", "-r", &d, "missing", &small, "v:/"]);
    assert!(error.contains("missing") && error.contains("d/link is a symbolic link"), "{error}");
    assert_eq!(error.lines().count(), 2, "{error}");
    assert_eq!(bytes(&adapter, &["cat", "v:/d/sub/f", "v:/small"]), b"fhello\n");
    let output = adapter.run_with(&["cat", "v:/none", "v:/small"], b"");
    assert_eq!((output.status.code(), output.stdout), (Some(1), b"hello\n".to_vec()));

    // A directory goes neither into itself nor over a file, nor a file over itself.
    for target in ["v:/d/sub", "v:/d/new", "v:/d"] {
        let error = adapter.fail(&["cp", "-r", "v:/d", target]);
        assert!(error.contains("into itself"), "{target}: {error}");
    }
    assert!(adapter.fail(&["cp", "-r", "v:/", "v:/d/all"]).contains("into itself"));
    assert!(adapter.fail(&["cp", "v:/small", "v:/small"]).contains("same file"));
    assert_eq!(bytes(&adapter, &["cat", "v:/small"]), b"hello\n");
    assert!(adapter.fail(&["cp", "-r", "v:/d", "v:/small"]).contains("no directory"));
    adapter.run(&["cp", "-r", "v:/d", "v:/dd"]);
    assert_eq!(bytes(&adapter, &["cat", "v:/dd/sub/f"]), b"f");

    // More than there is room for fails whole, and leaves room for others.
    let large = write(&adapter.path("large"), &data(20 << 20));
    assert!(adapter.fail(&["cp", &large, "v:/large"]).contains("E_NO_RESOURCES"));
    adapter.run(&["cp", &small, "v:/large"]);
    assert!(adapter.run(&["fsck", "v"]).contains("nothing is wrong"));
}

#[test]
fn large_files_go_through_whole_whatever_their_length() {
    let adapter = with_files("64M");
    for (number, length) in
        [0, 1, 4095, 4096, 4097, 262_143, 262_144, 262_145, 3_000_001].into_iter().enumerate()
    {
        let content = data(length);
        let file = write(&adapter.path("in"), &content);
        let place = format!("v:/{number}");
        adapter.run(&["cp", &file, &place]);
        assert!(bytes(&adapter, &["cat", &place]) == content, "{length} bytes, read");
        adapter.run(&["cp", &place, "v:/copy"]);
        adapter.run(&["cp", "--depth", "3", "--chunk", "12k", "v:/copy", "out"]);
        assert!(fs::read(adapter.path("out")).unwrap() == content, "{length} bytes, copied twice");
        let output = adapter.run_with(&["cp", "-q", "-", "v:/stream"], &content);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(bytes(&adapter, &["cp", "v:/stream", "-"]) == content, "{length} bytes, through a pipe");
        if length > 0 {
            let half = (length / 2).to_string();
            assert!(bytes(&adapter, &["cp", "--bytes", &half, &place, "-"]) == content[..length / 2]);
        }
    }
    // Over what was longer, and from and to a volume of blocks.
    adapter.run(&["volume", "create", "w", "4M"]);
    adapter.run(&["cp", "-q", "v:/8", "w:@4k"]);
    adapter.run(&["cp", "-q", "w:@4k", "v:/0", "--bytes", "3000001"]);
    assert!(bytes(&adapter, &["cat", "v:/0"]) == data(3_000_001));
    let small = write(&adapter.path("in"), b"short");
    adapter.run(&["cp", &small, "v:/0"]);
    assert_eq!(bytes(&adapter, &["cat", "v:/0"]), b"short");
    assert!(adapter.run(&["fsck", "v"]).contains("nothing is wrong"));
}

#[test]
fn zeroes_are_holes_here_and_zeroes_there() {
    let adapter = with_files("64M");
    let path = adapter.path("sparse");
    let file = fs::File::create(&path).unwrap();
    let length = (20 << 20) + 12;
    file.set_len(length).unwrap();
    let ends = data(5000);
    for at in [0, 7 << 20, length - 5000 - (1 << 20)] {
        file.write_all_at(&ends, at).unwrap();
    }
    let whole = fs::read(&path).unwrap();
    adapter.run(&["cp", "sparse", "v:/sparse"]);
    assert!(bytes(&adapter, &["cat", "v:/sparse"]) == whole);
    adapter.run(&["cp", "v:/sparse", "back"]);
    assert!(fs::read(adapter.path("back")).unwrap() == whole);
    let taken = |name: &str| fs::metadata(adapter.path(name)).unwrap().blocks() * 512;
    // Where the file system here knows no holes, there are none.
    if taken("sparse") < 1 << 20 {
        assert!(taken("back") < 1 << 20, "{} bytes are taken", taken("back"));
    } else {
        println!("skipped: {} knows no holes", path.display());
    }
    // Over a file that held something else, and all zero.
    write(&adapter.path("full"), &[7; 100_000]);
    adapter.run(&["cp", "full", "v:/sparse"]);
    fs::File::create(adapter.path("zero")).unwrap().set_len(300_000).unwrap();
    adapter.run(&["cp", "zero", "v:/sparse"]);
    assert!(bytes(&adapter, &["cat", "v:/sparse"]) == vec![0; 300_000]);
    adapter.run(&["cp", "v:/sparse", "full"]);
    assert!(fs::read(adapter.path("full")).unwrap() == vec![0; 300_000]);
}

#[test]
fn names_are_bytes_and_are_shown_escaped() {
    let adapter = with_files("16M");
    let odd = OsStr::from_bytes(b"a\x1b[2J\n\xff");
    fs::create_dir(adapter.path("d")).unwrap();
    fs::write(adapter.path("d").join(odd), b"odd").unwrap();
    adapter.run(&["cp", "-r", "d", "v:/"]);
    let shown = r"a\u{1b}[2J\n\xff";
    assert_eq!(lines(&adapter, &["ls", "v:/d"]), [shown]);
    assert_eq!(bytes(&adapter, &["ls", "--zero", "v:/d"]), [odd.as_bytes(), b"\0"].concat());
    let listed = adapter.json(&["ls", "v:/d"]);
    assert_eq!(listed[0]["name_hex"], "611b5b324a0aff", "{listed}");
    let place = [OsStr::from_bytes(b"v:/d/").as_bytes(), odd.as_bytes()].concat();
    let output = adapter.run_with(&[OsStr::new("cat"), OsStr::from_bytes(&place)], b"");
    assert_eq!((output.status.code(), output.stdout), (Some(0), b"odd".to_vec()));
    let missing = [place.as_slice(), b"\x1b"].concat();
    let error = adapter.run_with(&[OsStr::new("stat"), OsStr::from_bytes(&missing)], b"").stderr;
    assert!(!error.contains(&0x1b) && text(&error).contains(shown), "{}", text(&error));
    adapter.run(&["cp", "-r", "v:/d", "back"]);
    assert_eq!(fs::read(adapter.path("back").join(odd)).unwrap(), b"odd");
}

#[test]
fn modes_times_and_owners_are_kept_if_asked_for() {
    let adapter = with_files("16M");
    fs::create_dir(adapter.path("d")).unwrap();
    write(&adapter.path("d/f"), b"f");
    let set = |name: &str, mode: u32| {
        fs::set_permissions(adapter.path(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    set("d/f", 0o640);
    let modified = UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    let file = fs::File::options().write(true).open(adapter.path("d/f")).unwrap();
    file.set_times(fs::FileTimes::new().set_modified(modified)).unwrap();
    set("d", 0o500);
    adapter.run(&["cp", "-r", "-p", "d", "v:/kept"]);
    adapter.run(&["cp", "-r", "d", "v:/new"]);
    let stat = adapter.json(&["stat", "v:/kept/f", "v:/kept", "v:/new/f", "v:/new"]);
    assert_eq!(stat[0]["modified"], "2001-09-09T01:46:40.123456789Z");
    let modes: Vec<&Value> = (0..4).map(|n| &stat[n]["mode"]).collect();
    assert_eq!(modes, ["0640", "0500", "0640", "0500"]);
    assert_ne!(stat[2]["modified"], stat[0]["modified"]);
    adapter.run(&["cp", "-rp", "v:/kept", "back"]);
    let meta = fs::metadata(adapter.path("back/f")).unwrap();
    assert_eq!((meta.modified().unwrap(), meta.mode() & 0o7777), (modified, 0o640));
    assert_eq!(fs::metadata(adapter.path("back")).unwrap().mode() & 0o7777, 0o500);
    set("d", 0o700);
    set("back", 0o700);
}

#[test]
fn what_is_copied_out_stays_in_its_directory() {
    let adapter = with_files("16M");
    fs::create_dir(adapter.path("d")).unwrap();
    write(&adapter.path("d/x"), b"new");
    fs::create_dir(adapter.path("d/y")).unwrap();
    write(&adapter.path("d/y/z"), b"new");
    adapter.run(&["cp", "-r", "d", "v:/"]);
    // Links that stand where files and directories are to go lead elsewhere.
    fs::create_dir(adapter.path("elsewhere")).unwrap();
    write(&adapter.path("elsewhere/kept"), b"old");
    fs::create_dir_all(adapter.path("out/d")).unwrap();
    symlink("../../elsewhere/kept", adapter.path("out/d/x")).unwrap();
    symlink("../../elsewhere", adapter.path("out/d/y")).unwrap();
    let error = adapter.fail(&["cp", "-q", "-r", "v:/d", "out"]);
    assert!(error.contains("out/d/x") && error.contains("out/d/y"), "{error}");
    assert_eq!(fs::read(adapter.path("elsewhere/kept")).unwrap(), b"old");
    assert!(!adapter.path("elsewhere/z").exists());
    // One that is named is meant.
    symlink("elsewhere", adapter.path("named")).unwrap();
    adapter.run(&["cp", "-r", "v:/d", "named"]);
    assert_eq!(fs::read(adapter.path("elsewhere/d/y/z")).unwrap(), b"new");
}

#[test]
fn a_mounted_volume_is_a_directory_of_files() {
    let adapter = with_files("64M");
    let Some(mounted) = Mounted::start(&adapter, "v", &[]) else { return };
    let root = &mounted.root;
    // Made here, seen there, and the other way round.
    fs::write(root.join("hello"), b"from here").unwrap();
    assert_eq!(bytes(&adapter, &["cat", "v:/hello"]), b"from here");
    let there = write(&adapter.path("there"), b"from there");
    adapter.run(&["cp", &there, "v:/there"]);
    assert_eq!(fs::read(root.join("there")).unwrap(), b"from there");

    // Of any length, anywhere, and cut off.
    let large = data(3_000_001);
    fs::write(root.join("large"), &large).unwrap();
    assert!(fs::read(root.join("large")).unwrap() == large);
    let file = fs::File::options().read(true).write(true).open(root.join("large")).unwrap();
    file.write_all_at(b"patch", 1_000_003).unwrap();
    file.sync_all().unwrap();
    let mut back = [0; 7];
    file.read_exact_at(&mut back, 1_000_002).unwrap();
    assert_eq!(&back[1..6], b"patch");
    file.set_len(1_000_008).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 1_000_008);
    drop(file);
    assert_eq!(adapter.json(&["stat", "v:/large"])[0]["length"], 1_000_008);
    let mut log = fs::File::options().append(true).create(true).open(root.join("log")).unwrap();
    log.write_all(b"one\n").unwrap();
    log.write_all(b"two\n").unwrap();
    assert_eq!(fs::read_to_string(root.join("log")).unwrap(), "one\ntwo\n");

    // Directories, names, attributes.
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    fs::rename(root.join("a/b"), root.join("a/z")).unwrap();
    fs::rename(root.join("hello"), root.join("a/z/c/hello")).unwrap();
    assert_eq!(fs::read(root.join("a/z/c/hello")).unwrap(), b"from here");
    assert_eq!(lines(&adapter, &["ls", "v:/a/z/c"]), ["hello"]);
    fs::rename(root.join("there"), root.join("log")).unwrap();
    assert_eq!(fs::read(root.join("log")).unwrap(), b"from there", "it was replaced");
    log.write_all(b"three\n").unwrap();
    assert_eq!(log.metadata().unwrap().len(), 14, "who has it open goes on with it");
    let entry = root.join("large");
    fs::set_permissions(&entry, fs::Permissions::from_mode(0o600)).unwrap();
    let modified = UNIX_EPOCH + Duration::new(1_000_000_000, 5);
    fs::File::open(&entry).unwrap().set_times(fs::FileTimes::new().set_modified(modified)).unwrap();
    let meta = fs::metadata(&entry).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.modified().unwrap()), (0o600, modified));
    let mut names: Vec<_> = fs::read_dir(root).unwrap().map(|it| it.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a", "large", "log"]);

    // As tar(1) and cp(1) do it: while the file is open that was just written.
    let mut kept = fs::File::create(root.join("kept")).unwrap();
    kept.write_all(b"kept").unwrap();
    kept.set_times(fs::FileTimes::new().set_modified(modified)).unwrap();
    drop(kept);
    adapter.run(&["cat", "v:/kept"]); // after it was closed
    assert_eq!(adapter.json(&["stat", "v:/kept"])[0]["modified"], "2001-09-09T01:46:40.000000005Z");
    fs::remove_file(root.join("kept")).unwrap();

    // Errors are those that tools know.
    assert_eq!(errno(fs::read(root.join("none"))), Some(libc::ENOENT));
    assert_eq!(errno(fs::create_dir(root.join("a"))), Some(libc::EEXIST));
    assert_eq!(errno(fs::remove_dir(root.join("a"))), Some(libc::ENOTEMPTY));
    assert_eq!(errno(fs::remove_file(root.join("a"))), Some(libc::EISDIR));
    assert_eq!(errno(fs::rename(root.join("large"), root.join("a"))), Some(libc::EISDIR));
    assert_eq!(errno(symlink("a", root.join("link"))), Some(libc::EPERM));
    assert_eq!(errno(fs::write(root.join("n".repeat(256)), b"")), Some(libc::ENAMETOOLONG));
    assert_eq!(errno(fs::write(root.join("full"), vec![1; 100 << 20])), Some(libc::ENOSPC));
    fs::remove_dir_all(root.join("a")).unwrap();
    fs::remove_file(root.join("full")).unwrap();
    drop(log);
    let free = rustix::fs::statvfs(root).unwrap();
    assert_eq!(free.f_bfree * free.f_frsize, adapter.json(&["df", "v"])[0]["free"].as_u64().unwrap());
    mounted.end(Signal::TERM);
    assert!(adapter.run(&["fsck", "v"]).contains("nothing is wrong"));
    assert_eq!(lines(&adapter, &["ls", "v:/"]), ["large", "log"]);
}

#[test]
fn a_directory_of_thousands_is_listed_whole_through_a_mount() {
    let adapter = with_files("64M");
    let Some(mounted) = Mounted::start(&adapter, "v", &[]) else { return };
    let wanted: BTreeSet<String> =
        (0..3000).map(|number| format!("file with a longer name {number}")).collect();
    for name in &wanted {
        fs::write(mounted.root.join(name), name).unwrap();
    }
    let names =
        || fs::read_dir(&mounted.root).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap());
    assert_eq!(names().collect::<BTreeSet<_>>(), wanted);
    assert_eq!(names().count(), wanted.len(), "each once");
    // Read, removed, and gone; while the directory is read.
    for name in names() {
        assert_eq!(fs::read_to_string(mounted.root.join(&name)).unwrap(), name);
        fs::remove_file(mounted.root.join(&name)).unwrap();
    }
    assert_eq!(names().count(), 0);
    mounted.end(Signal::INT);
}

#[test]
fn a_file_that_somebody_else_replaced_is_not_the_new_one() {
    let adapter = with_files("16M");
    let Some(mounted) = Mounted::start(&adapter, "v", &[]) else { return };
    fs::write(mounted.root.join("a"), b"old").unwrap();
    // Known by its number and not opened, so that only its name leads to it.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let known = rustix::fs::open(mounted.root.join("a"), flags, Mode::empty()).unwrap();
    let longer = write(&adapter.path("longer"), b"longer");
    adapter.run(&["cp", &longer, "v:/b"]);
    adapter.run(&["mv", "v:/b", "v:/a"]);
    let end = Instant::now() + Duration::from_secs(30);
    // The kernel believes what it knows for a second.
    loop {
        match rustix::fs::fstat(&known) {
            Err(Errno::STALE) => break,
            its => assert_eq!(its.unwrap().st_size, 3, "the old one or none"),
        }
        assert!(Instant::now() < end, "the kernel still knows it");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(fs::read(mounted.root.join("a")).unwrap(), b"longer");
    drop(known); // It keeps the mount in use.
    mounted.end(Signal::TERM);
}

#[test]
fn a_mount_to_be_read_is_not_written_and_one_in_use_ends_with_the_last() {
    let adapter = with_files("16M");
    let small = write(&adapter.path("small"), b"hello");
    adapter.run(&["cp", &small, "v:/f"]);
    let Some(mut mounted) = Mounted::start(&adapter, "v", &["--read-only"]) else { return };
    assert_eq!(errno(fs::write(mounted.root.join("g"), b"")), Some(libc::EROFS));
    let file = fs::File::open(mounted.root.join("f")).unwrap();
    kill_process(Pid::from_child(&mounted.child), Signal::TERM).unwrap();
    let mut said = String::new();
    BufReader::new(mounted.child.stderr.take().unwrap()).read_line(&mut said).unwrap();
    assert!(said.contains("in use"), "{said}");
    assert!(!mounted.root.join("f").exists(), "it is gone from its place");
    let mut back = [0; 5];
    file.read_exact_at(&mut back, 0).unwrap();
    assert_eq!(&back, b"hello");
    drop(file);
    assert!(mounted.child.wait().unwrap().success());
    let error = adapter.fail(&["mount", "v", "none"]);
    assert!(error.contains("no directory"), "{error}");
    assert!(adapter.fail(&["mount", "none", "mounted"]).contains("none"));
}

/// Real files: those of the guest's kernel, or what else the machine has.
fn real_files() -> Vec<(PathBuf, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/qemu");
    let named = std::env::var_os("PORTCULLIS_TREE").map(PathBuf::from);
    for root in named.into_iter().chain([root, "/usr/share".into()]) {
        let mut found = Vec::new();
        collect(&root, Path::new(""), &mut found);
        found.sort();
        if found.len() >= FILES {
            return found.into_iter().map(|path| (root.join(&path), path)).collect();
        }
    }
    panic!("fewer than {FILES} files to copy; PORTCULLIS_TREE names a directory with more");
}

const FILES: usize = 2000;
/// Larger ones are left out, so that the tree fits into a small disk.
const LARGEST: u64 = 32 << 10;

fn collect(root: &Path, below: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(root.join(below)) else { return };
    let mut entries: Vec<_> = entries.map(Result::unwrap).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (kind, path) = (entry.file_type().unwrap(), below.join(entry.file_name()));
        if kind.is_dir() && found.len() < FILES {
            collect(root, &path, found);
        } else if kind.is_file() && entry.metadata().unwrap().len() <= LARGEST {
            found.push(path);
        }
    }
}

/// Everything in a directory: of files the mode and the bytes.
fn tree(root: &Path) -> BTreeMap<PathBuf, Option<(u32, Vec<u8>)>> {
    fn walk(root: &Path, below: &Path, all: &mut BTreeMap<PathBuf, Option<(u32, Vec<u8>)>>) {
        for entry in fs::read_dir(root.join(below)).unwrap() {
            let path = below.join(entry.unwrap().file_name());
            let meta = fs::symlink_metadata(root.join(&path)).unwrap();
            if meta.is_dir() {
                walk(root, &path, all);
                all.insert(path, None);
            } else {
                all.insert(path.clone(), Some((meta.mode(), fs::read(root.join(&path)).unwrap())));
            }
        }
    }
    let mut all = BTreeMap::new();
    walk(root, Path::new(""), &mut all);
    all
}

#[test]
fn s6_r3_a_tree_of_two_thousand_real_files_comes_back_as_it_was() {
    let adapter = with_files("128M");
    for (from, path) in real_files() {
        let to = adapter.path("tree").join(path);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    }
    let before = tree(&adapter.path("tree"));
    let files = before.values().flatten().count();
    assert!(files >= FILES, "{files} files");

    let copied = adapter.json(&["cp", "-r", "-p", "tree", "v:/"]);
    let total: u64 = before.values().flatten().map(|(_, bytes)| bytes.len() as u64).sum();
    assert_eq!((&copied["files"], &copied["bytes"]), (&files.into(), &total.into()));

    let listed = adapter.json(&["ls", "-R", "v:/tree"]);
    let listed: BTreeMap<PathBuf, Option<u64>> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|it| {
            let path = Path::new(it["path"].as_str().unwrap()).strip_prefix("/tree").unwrap().to_owned();
            (path, (it["kind"] == "file").then(|| it["length"].as_u64().unwrap()))
        })
        .collect();
    let lengths: BTreeMap<PathBuf, Option<u64>> = before
        .iter()
        .map(|(path, it)| (path.clone(), it.as_ref().map(|(_, bytes)| bytes.len() as u64)))
        .collect();
    assert!(listed == lengths, "all are listed, with their lengths");

    adapter.run(&["cp", "-r", "-p", "v:/tree/.", "back"]);
    let after = tree(&adapter.path("back"));
    assert!(after == before, "all came back with name, mode and bytes");
    let df = adapter.json(&["df", "v"]);
    assert!(df[0]["files"].as_u64() > u64::try_from(files).ok(), "{df}");
    assert!(adapter.run(&["fsck", "v"]).contains("nothing is wrong"));
    println!("{files} files, {total} bytes");
    adapter.run(&["rm", "-r", "v:/tree"]);
    assert!(adapter.run(&["ls", "v:/"]).is_empty());
    assert!(adapter.run(&["fsck", "v"]).contains("nothing is wrong"));
}
