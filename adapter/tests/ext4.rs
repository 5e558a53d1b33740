//! An ext4 as it is found, served through the whole adapter: on a device without a store, and in a volume. What is read is what
//! went in, what is written is what debugfs finds afterwards, and e2fsck has nothing to say.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test that cannot go on has failed

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use adapter::{Embedded, Format, Options};
use driver::disk::Dice;
use portcullis::wire::files::{AttributeChange, FileKind, FileSystemKind};
use portcullis::wire::socket::Credentials;
use portcullis::{Access, AsyncFile, Error, Files, OpenOptions, Reactor, Session, Status};
use store::ext4::image::Image;

const IMAGE: u64 = 32 << 20;

/// An adapter over the image as it is found.
fn adapter(image: &Image, scheme: &str) -> Embedded {
    let uri = format!("{scheme}:{}", image.file().display());
    Embedded::start(&Options { format: Format::AsFound, ..Options::new(uri.parse().unwrap()) }).unwrap()
}

fn user(uid: u32, groups: &[u32]) -> Credentials {
    Credentials { uid, gid: uid, pid: 1, groups: groups.to_vec() }
}

/// Of user 0, who may do what files allow user 0.
fn session(adapter: &Embedded) -> Session {
    adapter.session_as(user(0, &[])).unwrap()
}

fn files(adapter: &Embedded, uid: u32) -> Files {
    adapter.session_as(user(uid, &[])).unwrap().files().unwrap()
}

fn content(bytes: usize, seed: u64) -> Vec<u8> {
    let mut dice = Dice(seed);
    (0..bytes).map(|_| dice.below(256) as u8).collect()
}

/// Of all of these lengths: none, parts of blocks, whole ones, and many.
const LENGTHS: [usize; 9] = [0, 1, 511, 512, 4095, 4096, 5000, 70_000, 300_001];

/// A folder with a file of each length in directories, one with holes, and links.
fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for (number, length) in LENGTHS.into_iter().enumerate() {
        let path = format!("d{}/e/f{number}", number % 3);
        fs::create_dir_all(folder.join(&path).parent().unwrap()).unwrap();
        fs::write(folder.join(&path), content(length, 7 + number as u64)).unwrap();
        all.insert(path, content(length, 7 + number as u64));
    }
    let sparse = fs::File::create(folder.join("sparse")).unwrap();
    let mut expected = vec![0; 400_003];
    sparse.set_len(expected.len() as u64).unwrap();
    for (at, bytes) in [(40_960, 5000), (102_400, 4096), (204_800, 100_000)] {
        let data = content(bytes, at as u64);
        sparse.write_all_at(&data, at as u64).unwrap();
        expected[at..at + bytes].copy_from_slice(&data);
    }
    all.insert("sparse".to_owned(), expected);
    let nothing = fs::File::create(folder.join("nothing")).unwrap();
    nothing.set_len(123_456).unwrap();
    all.insert("nothing".to_owned(), vec![0; 123_456]);
    std::os::unix::fs::symlink("d0/e/../../d1/e", folder.join("way")).unwrap();
    std::os::unix::fs::symlink("f1", folder.join("d1/e/link")).unwrap();
    std::os::unix::fs::symlink("/d1", folder.join("absolute")).unwrap();
    std::os::unix::fs::symlink("round", folder.join("round")).unwrap();
    all
}

/// An image of such a folder.
fn image(options: &[&str]) -> (Image, BTreeMap<String, Vec<u8>>) {
    let folder = tempfile::tempdir().unwrap();
    let all = tree(folder.path());
    let from = folder.path().display().to_string();
    let image = Image::make(IMAGE, &[options, &["-d", &from, "-E", "root_owner=0:0"]].concat()).unwrap();
    (image, all)
}

fn read_all(files: &Files, place: &str) -> Vec<u8> {
    let file = files.open(place).unwrap();
    let mut all = vec![0xee; file.len().unwrap() as usize + 1];
    let bytes = file.read_at(&mut all, 0).unwrap();
    all.truncate(bytes);
    all
}

/// What debugfs finds in a file.
fn dumped(image: &Image, path: &str) -> Vec<u8> {
    let to = image.folder().join("dumped");
    image.ask(&format!("dump {path} {}", to.display())).unwrap();
    fs::read(to).unwrap()
}

fn status(result: Result<impl Sized, Error>) -> (Status, String) {
    let error = result.err().expect("it is refused");
    (error.status().unwrap(), error.to_string())
}

#[test]
fn a_tree_is_read_from_a_device_without_a_store() {
    for (options, scheme) in
        [(&["-b", "4096"][..], "emu"), (&["-b", "1024"], "emu"), (&["-b", "4096"], "emu-virtio")]
    {
        let (image, all) = image(options);
        let before = fs::read(image.file()).unwrap();
        let adapter = adapter(&image, scheme);
        let files = session(&adapter).files().unwrap();
        for (path, expected) in &all {
            assert!(read_all(&files, &format!("disk:/{path}")) == *expected, "{path} of {options:?}");
        }
        drop((files, adapter));
        assert!(fs::read(image.file()).unwrap() == before, "nobody wrote");
    }
}

/// All names in a directory.
fn names(files: &Files, place: &str) -> Vec<String> {
    let mut names: Vec<String> =
        files.read_dir(place).unwrap().map(|entry| entry.unwrap().name.to_string()).collect();
    names.sort();
    names
}

#[test]
fn names_lead_where_they_do_in_the_kernel() {
    let folder = tempfile::tempdir().unwrap();
    tree(folder.path());
    fs::create_dir(folder.path().join("many")).unwrap();
    let mut many: Vec<String> =
        (0..205).map(|number| format!("name {number} {}", "x".repeat(number))).collect();
    many.sort();
    many.iter().for_each(|name| fs::write(folder.path().join("many").join(name), name).unwrap());
    let from = folder.path().display().to_string();
    let image = Image::make(IMAGE, &["-d", &from, "-N", "2048"]).unwrap();
    let adapter = adapter(&image, "emu");
    let files = session(&adapter).files().unwrap();
    let root = ["absolute", "d0", "d1", "d2", "lost+found", "many", "nothing", "round", "sparse", "way"];
    assert_eq!(names(&files, "disk:/"), root);
    assert_eq!(names(&files, "disk:/many"), many);
    let mut told = 0;
    for entry in files.read_dir_with_attributes("disk:/many").unwrap() {
        let entry = entry.unwrap();
        let (its, name) = (entry.attributes.unwrap(), entry.name.to_string());
        assert_eq!(
            (entry.kind, its.kind, its.length),
            (FileKind::Regular, FileKind::Regular, name.len() as u64)
        );
        assert_eq!(its, files.metadata(("disk", format!("/many/{name}"))).unwrap());
        told += 1;
    }
    assert_eq!(told, many.len());

    assert!(read_all(&files, "disk:/way/f1") == content(1, 8), "by two links and ..");
    assert!(read_all(&files, "disk:/way/link") == content(1, 8));
    assert_eq!(files.symlink_metadata("disk:/way").unwrap().kind, FileKind::Symlink);
    assert_eq!(files.metadata("disk:/way").unwrap().kind, FileKind::Directory);
    assert_eq!(files.read_link("disk:/d1/e/link").unwrap(), b"f1");
    assert_eq!(files.metadata("disk:/d1/e/f7").unwrap().length, 70_000);
    assert!((70_000..90_000).contains(&files.metadata("disk:/d1/e/f7").unwrap().allocated));
    for (place, code, why) in [
        ("disk:/round", Status::E_PARAM, "more than 40 symbolic links"),
        ("disk:/absolute/e/f1", Status::E_PARAM, "where the file system is mounted"),
        ("disk:/d1/e/f1/x", Status::E_PARAM, "/d1/e/f1 is not a directory"),
        ("disk:/d1/none/x", Status::E_NO_RESOURCE, "there is no /d1/none"),
        ("disk:/d1", Status::E_PARAM, "a directory, not a regular file"),
        ("other:/d1", Status::E_NO_RESOURCE, "no volume"),
    ] {
        let (found, text) = status(files.open(place));
        assert!(found == code && text.contains(why), "{place}: {text}");
    }
    let unfollowed = OpenOptions::new().read(true).follow(false);
    assert_eq!(status(unfollowed.open(&files, "disk:/d1/e/link")).0, Status::E_PARAM);
    assert!(unfollowed.open(&files, "disk:/d1/e/f1").is_ok());
    let space = files.space("disk").unwrap();
    assert_eq!((space.kind, space.bytes, space.in_place), (FileSystemKind::Ext4, IMAGE, true));
    assert!(space.available == 0 && space.free > 0 && space.free < space.bytes && space.files > 200);
}

/// Writes of blocks, of parts of them, over several, and to the last byte.
fn overwrite(file: &portcullis::File, expected: &mut [u8], dice: &mut Dice) {
    let length = expected.len() as u64;
    for write in 0..12 {
        let at = match write {
            0 => 0,
            1 => length.saturating_sub(1 + dice.below(700)),
            2 => dice.below(length) / 512 * 512,
            _ => dice.below(length),
        };
        let most = if write < 2 { length } else { [1, 100, 512, 4096, 100_000][dice.index(5)] };
        let bytes = most.min(length - at) as usize;
        let data = content(bytes, dice.below(1 << 40));
        file.write_all_at(&data, at).unwrap();
        expected[at as usize..at as usize + bytes].copy_from_slice(&data);
    }
    let mut found = vec![0; expected.len()];
    file.read_exact_at(&mut found, 0).unwrap();
    assert!(found == expected);
}

#[test]
fn files_are_overwritten_in_place_and_the_tools_find_nothing_else_changed() {
    for options in [&["-b", "4096"][..], &["-b", "1024"]] {
        let (image, mut all) = image(options);
        let adapter = adapter(&image, "emu");
        let files = session(&adapter).files().unwrap();
        let dice = &mut Dice(11);
        let read_write = OpenOptions::new().read(true).write(true);
        for (path, expected) in all.iter_mut().filter(|(path, bytes)| path.contains('/') && !bytes.is_empty())
        {
            let file = read_write.open(&files, ("disk", path)).unwrap();
            let before = file.metadata().unwrap();
            overwrite(&file, expected, dice);
            assert_eq!(file.metadata().unwrap(), before, "no attribute of {path} changed");
            let other = session(&adapter).files().unwrap();
            assert!(read_all(&other, &format!("disk:/{path}")) == *expected, "others see it");
            file.sync_data().unwrap();
        }
        // A file with holes, where it has blocks.
        let sparse = all.get_mut("sparse").unwrap();
        let file = read_write.open(&files, "disk:/sparse").unwrap();
        for (at, bytes) in [(40_960, 5000), (102_401, 4094), (204_800, 99_999)] {
            let data = content(bytes, 99 + at as u64);
            file.write_all_at(&data, at as u64).unwrap();
            sparse[at..at + bytes].copy_from_slice(&data);
        }
        file.close().unwrap();
        files.sync("disk").unwrap();
        drop((files, adapter));
        assert!(image.check(&["-fn"]).unwrap(), "e2fsck -f is clean");
        for (path, expected) in &all {
            assert!(dumped(&image, path) == *expected, "{path} of {options:?}");
        }
    }
}

#[test]
fn what_would_need_a_block_or_another_length_is_refused_and_says_why() {
    let (image, all) = image(&[]);
    let before = fs::read(image.file()).unwrap();
    let adapter = adapter(&image, "emu");
    let session = session(&adapter);
    let files = session.files().unwrap();
    let read_write = OpenOptions::new().read(true).write(true);
    let open = |place: &str| read_write.open(&files, place).unwrap();
    let five = open("disk:/d0/e/f6"); // of 5000 bytes
    let sparse = open("disk:/sparse");
    let data = vec![7; 4096];
    let needs_blocks: [(&str, Result<(), Error>); 9] = [
        ("a byte behind the end", five.write_all_at(&[1], 5000)),
        ("across the end", five.write_all_at(&data, 4000)),
        ("the last block, whole", five.write_all_at(&data[..512], 4608)),
        ("far behind", five.write_all_at(&[1], 1 << 40)),
        ("an append", five.append(&[1]).map(drop)),
        ("room", five.allocate(8192)),
        ("a greater length", five.set_len(5001)),
        ("a hole", sparse.write_all_at(&[1], 0)),
        ("across a hole", sparse.write_all_at(&data, 204_800 - 1)),
    ];
    for (what, result) in needs_blocks {
        let (code, text) = status(result);
        assert!(code == Status::E_NO_RESOURCES && text.contains("another program made"), "{what}: {text}");
    }
    let change = AttributeChange { mode: Some(0o777), ..AttributeChange::default() };
    let trim = OpenOptions::new().read(true).write(true).trim(true);
    let in_place: [(&str, Result<(), Error>); 11] = [
        ("a smaller length", five.set_len(10)),
        ("attributes", five.set_attributes(change.clone()).map(drop)),
        ("attributes by path", files.set_attributes("disk:/sparse", change).map(drop)),
        ("truncation", files.create("disk:/sparse").map(drop)),
        ("a new file", files.create("disk:/new").map(drop)),
        ("a name less", files.remove_file("disk:/sparse")),
        ("another name", files.rename("disk:/sparse", "disk:/other")),
        ("a directory", files.create_dir("disk:/new")),
        ("a directory less", files.remove_dir("disk:/d1")),
        ("a quota", files.set_quota("disk", 5, Some(1))),
        ("giving up ranges", trim.open(&files, "disk:/sparse").map(drop)),
    ];
    for (what, result) in in_place {
        let (code, text) = status(result);
        let by_volume = what == "giving up ranges" && code == Status::E_AUTH;
        assert!(
            code == Status::E_OPCODE && text.contains("ext4")
                || text.contains("another program made")
                || by_volume,
            "{what}: {text}"
        );
    }
    let new = OpenOptions::new().write(true).create_new(true);
    assert_eq!(status(new.open(&files, "disk:/sparse")).0, Status::E_EXISTS);
    let there = OpenOptions::new().write(true).create(true);
    there.open(&files, "disk:/sparse").unwrap();
    let allocated = OpenOptions::new().write(true).allocate(1 << 30).open(&files, "disk:/sparse");
    assert_eq!(status(allocated).0, Status::E_NO_RESOURCES);

    // The device is one volume, whose blocks nobody gets, and which stays what it is.
    for (what, result) in [
        ("blocks", session.open("disk", Access::READ).map(drop)),
        ("a volume", session.create_volume("v", 1 << 20).map(drop)),
        ("a rename", session.rename_volume("disk", "v").map(drop)),
        ("a format", files.format("disk", true).map(drop)),
        ("a deletion", session.delete_volume("disk").map(drop)),
    ] {
        let (_, text) = status(result);
        assert!(
            text.contains("no store") || text.contains("opened by their names") || text.contains("is open"),
            "{what}: {text}"
        );
    }
    drop((five, sparse));
    let (_, text) = status(files.format("disk", true));
    assert!(text.contains("no store"), "{text}");
    let (_, text) = status(files.check("disk", false));
    assert!(text.contains("e2fsck -f"), "{text}");
    for (path, expected) in &all {
        assert!(read_all(&files, &format!("disk:/{path}")) == *expected, "{path}");
    }
    drop((files, session, adapter));
    assert!(fs::read(image.file()).unwrap() == before, "nothing was written");
}

#[test]
fn what_was_allocated_and_never_written_reads_as_zeros_and_shows_nobody_what_was_there() {
    let (image, _) = image(&["-b", "4096"]);
    image.change(&["fallocate nothing 2 6".to_owned()]).unwrap();
    let disk = fs::OpenOptions::new().write(true).open(image.file()).unwrap();
    for block in 2..=6 {
        let told = image.ask(&format!("bmap nothing {block}")).unwrap();
        let at: u64 = told.split_whitespace().next().unwrap().parse().unwrap();
        disk.write_all_at(&[0xaa; 4096], at * 4096).unwrap(); // Somebody's old data.
    }
    let before = fs::read(image.file()).unwrap();
    let adapter = adapter(&image, "emu");
    let session = session(&adapter);
    let files = session.files().unwrap();
    assert!(read_all(&files, "disk:/nothing") == vec![0; 123_456]);
    let file = OpenOptions::new().read(true).write(true).open(&files, "disk:/nothing").unwrap();
    assert_eq!(status(file.write_all_at(&[1], 3 * 4096)).0, Status::E_NO_RESOURCES);
    assert!(file.extensions().unwrap().iter().all(|its| its.access == 0));

    // By futures, the same; and a request without this library's help is told.
    let reactor = Reactor::new(&session, 8).unwrap();
    reactor.block_on(async {
        for place in ["disk:/nothing", "disk:/sparse"] {
            let file = AsyncFile::open(&reactor, &OpenOptions::new().read(true), place).await.unwrap();
            let expected = read_all(&files, place);
            let mut found = vec![7; expected.len() + 1];
            assert_eq!(file.read_at(&mut found, 0).await.unwrap(), expected.len());
            assert!(found[..expected.len()] == expected);
            assert_eq!(file.read_at(&mut found[..100], 10).await.unwrap(), 100);
        }
    });
    let mut queue = session.queue(8).unwrap();
    let buffer = session.buffer(4096).unwrap();
    let done = queue.execute(portcullis::Request::read(&file, 2 * 4096, buffer)).unwrap();
    assert_eq!(done.result.unwrap_err().status(), Some(Status::E_HOLE));
    assert!(done.buffer.unwrap().iter().all(|byte| *byte == 0), "nothing came");
    drop((queue, file, reactor, files, session, adapter));
    assert!(fs::read(image.file()).unwrap() == before);
}

#[test]
fn users_may_do_what_the_files_say() {
    let (image, _) = image(&[]);
    let own = |path: &str, mode: &str, uid: u32| {
        [format!("sif {path} mode {mode}"), format!("sif {path} uid {uid}"), format!("sif {path} gid 50")]
    };
    let commands =
        [own("d0/e/f3", "0100640", 1000), own("d0/e/f6", "0104666", 1000), own("d1", "040700", 1000)];
    image.change(&commands.concat()).unwrap();
    let adapter = adapter(&image, "emu");
    let may = |who: Credentials, place: &str, write: bool| {
        let files = adapter.session_as(who).unwrap().files().unwrap();
        match OpenOptions::new().read(true).write(write).open(&files, place) {
            Ok(_) => Ok(()),
            Err(error) => Err(error.status().unwrap()),
        }
    };
    let denied = Err(Status::E_AUTH);
    for (who, place, write, expected) in [
        (user(1000, &[]), "disk:/d0/e/f3", true, Ok(())),
        (user(2, &[50]), "disk:/d0/e/f3", false, Ok(())),
        (user(2, &[50]), "disk:/d0/e/f3", true, denied),
        (user(2, &[]), "disk:/d0/e/f3", false, denied),
        (user(0, &[]), "disk:/d0/e/f3", true, Ok(())),
        (user(1000, &[]), "disk:/d1/e/f1", false, Ok(())),
        (user(2, &[50]), "disk:/d1/e/f1", false, denied),
        (user(2, &[]), "disk:/d0/e/f6", false, Ok(())),
        (user(0, &[]), "disk:/d0/e/f6", true, Err(Status::E_OPCODE)), // set-user-id
    ] {
        assert_eq!(may(who.clone(), place, write), expected, "{who:?} {place} {write}");
    }
    let files = files(&adapter, 2);
    assert_eq!(status(files.metadata("disk:/d1/e/f1")).0, Status::E_AUTH);
    assert_eq!(status(files.read_dir("disk:/d1")).0, Status::E_AUTH);
}

#[test]
fn an_ext4_in_a_volume_is_served_and_stays_in_it() {
    let (image, mut all) = image(&[]);
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(96 << 20).unwrap();
    let uri = format!("emu:{}", disk.path().display());
    let options = Options { format: Format::Blank, ..Options::new(uri.parse().unwrap()) };
    let start = || Embedded::start(&options).unwrap();
    let content_of = |session: &Session| {
        let mut content = vec![0; IMAGE as usize];
        let volume = session.open("v", Access::READ).unwrap();
        session.queue(8).unwrap().read_at(&volume, 0, &mut content).unwrap();
        content
    };
    {
        let adapter = start();
        let session = adapter.session().unwrap();
        session.create_volume("a", 1 << 20).unwrap();
        session.create_volume("v", IMAGE).unwrap();
        let volume = session.open("v", Access::READ_WRITE).unwrap();
        let content = fs::read(image.file()).unwrap();
        session.queue(8).unwrap().write_at(&volume, 0, &content).unwrap();
        let files = session.files().unwrap();
        let (code, text) = status(files.open("v:/sparse"));
        assert!(code == Status::E_BUSY_TIMEOUT && text.contains("open as blocks"), "{text}");
        drop(volume);
        for (path, expected) in &all {
            assert!(read_all(&files, &format!("v:/{path}")) == *expected, "{path}");
        }
        assert_eq!(status(session.open("v", Access::READ)).0, Status::E_PARAM);
        let file = OpenOptions::new().read(true).write(true).open(&files, "v:/d1/e/f7").unwrap();
        overwrite(&file, all.get_mut("d1/e/f7").unwrap(), &mut Dice(3));
        let (code, text) = status(files.open("a:/x"));
        assert!(code == Status::E_STORE && text.contains("holds no files"), "{text}");
    }
    let adapter = start();
    let content = content_of(&adapter.session().unwrap());
    fs::write(image.file(), content).unwrap();
    assert!(image.check(&["-fn"]).unwrap());
    for (path, expected) in &all {
        assert!(dumped(&image, path) == *expected, "{path}");
    }
}

#[test]
fn what_somebody_else_uses_is_not_served() {
    let (image, all) = image(&[]);
    let uri = format!("emu:{}", image.file().display());
    let options = Options { format: Format::AsFound, ..Options::new(uri.parse().unwrap()) };
    let refused = |options: &Options| match Embedded::start(options) {
        Ok(_) => panic!("it is served"),
        Err(error) => error.to_string(),
    };
    // Without being told so nobody takes an ext4 for anything but somebody's.
    let text = refused(&Options { format: Format::Never, ..options.clone() });
    assert!(text.contains("an ext2, ext3 or ext4 file system, not a portcullis store"), "{text}");
    {
        // What another test starts has the lock of ours, too, until it is a program of its own.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let adapter = loop {
            match Embedded::start(&options) {
                Ok(adapter) => break adapter,
                Err(error) => assert!(
                    error.to_string().contains("another process has it") && std::time::Instant::now() < end,
                    "{error}"
                ),
            }
        };
        let second = refused(&options);
        assert!(second.contains("another process has it"), "{second}");
        let files = session(&adapter).files().unwrap();
        assert!(read_all(&files, "disk:/sparse") == all["sparse"]);
        // Somebody goes past that lock and changes the superblock.
        image.change(&["ssv mnt_count 7".to_owned()]).unwrap();
        let (code, text) = status(files.open("disk:/sparse"));
        assert!(code == Status::E_STORE && text.contains("somebody else uses it"), "{text}");
        assert!(
            read_all(&files, "disk:/sparse") == all["sparse"],
            "opened again, as nobody had a file of it"
        );
    }
    image.change(&["ssv state 0".to_owned()]).unwrap();
    let text = refused(&options);
    assert!(text.contains("e2fsck -f"), "{text}");
}

#[test]
fn what_was_opened_in_vain_is_closed() {
    let (image, _) = image(&[]);
    let adapter = adapter(&image, "emu");
    let files = session(&adapter).files().unwrap();
    let writing = OpenOptions::new().write(true);
    for options in [writing.truncate(true), writing.allocate(1 << 30)] {
        status(options.open(&files, "disk:/sparse"));
    }
    drop(files.open("disk:/sparse").unwrap());
    // Only what nobody has a file of is opened again.
    image.change(&["ssv mnt_count 9".to_owned()]).unwrap();
    assert_eq!(status(files.open("disk:/sparse")).0, Status::E_STORE);
    let open = files.open("disk:/sparse").unwrap();
    image.change(&["ssv mnt_count 10".to_owned()]).unwrap();
    for _ in 0..2 {
        assert_eq!(status(files.metadata("disk:/sparse")).0, Status::E_STORE, "as long as a file is open");
    }
    open.close().unwrap();
    files.metadata("disk:/sparse").err();
    assert!(files.metadata("disk:/sparse").is_ok());
}
