//! What a guest does with an ext4 through its kernel, and then through the adapter, which have to agree. Run by
//! `qemu/tests/guest/ext4.rs`, one at a time, as root.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a step that cannot go on has failed

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use adapter::daemon::Adapter;
use adapter::{Format, Options};
use driver::disk::Dice;
use portcullis::wire::control::Subject;
use portcullis::wire::files::{AttributeChange, FileKind};
use portcullis::{Access, Error, Files, OpenOptions, Session, Status};
use rustix::fs::{FallocateFlags, XattrFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Gid, Uid};

/// The disk that goes from one to the other, as the kernel calls it, and where it is mounted.
const TARGET: (&str, &str) = ("/dev/nvme0n1", "/tmp/target");
/// The disk that the kernel keeps.
const SOURCE: (&str, &str) = ("/dev/vda", "/tmp/source");
/// What the kernel said, for a later step.
const ANSWERS: &str = "/tmp/answers";
const SOCKET: &str = "/tmp/portcullis.sock";

fn mount((device, place): (&str, &str), flags: MountFlags) {
    fs::create_dir_all(place).unwrap();
    rustix::mount::mount(device, place, "ext4", flags, None).unwrap();
}

fn unmount((_, place): (&str, &str)) {
    rustix::mount::unmount(place, UnmountFlags::empty()).unwrap();
}

/// An adapter over the disk as it is found.
fn as_found() -> Adapter {
    let device = std::env::var("PORTCULLIS_DEVICE").unwrap();
    let options = Options { format: Format::AsFound, ..Options::new(device.parse().unwrap()) };
    Adapter::start(&options, Path::new(SOCKET)).unwrap()
}

fn connect() -> Files {
    Session::connect(SOCKET).unwrap().files().unwrap()
}

/// Who asks.
#[derive(Clone, Debug)]
struct Who {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl Who {
    fn any(dice: &mut Dice) -> Self {
        let groups = (2001..2004).filter(|_| dice.chance(33)).collect();
        Self {
            uid: dice.pick(&[0, 1001, 1002, 1003, 1004]),
            gid: dice.pick(&[2001, 2002, 2003, 2004]),
            groups,
        }
    }

    /// Runs `work` on a thread of this user. A thread has an identity of its own, as the kernel sees it.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let as_this = || {
            let groups: Vec<Gid> = self.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
            rustix::thread::set_thread_groups(&groups).unwrap();
            rustix::thread::set_thread_gid(Gid::from_raw(self.gid)).unwrap();
            rustix::thread::set_thread_uid(Uid::from_raw(self.uid)).unwrap();
            work()
        };
        std::thread::scope(|scope| scope.spawn(as_this).join().unwrap())
    }
}

/// What is set on a file or directory.
#[derive(Debug)]
struct Made {
    path: String,
    is_directory: bool,
    uid: u32,
    gid: u32,
    /// With what the owning group may do.
    mode: u16,
    /// The mask, and whom the list names.
    list: Option<(u16, Vec<(Subject, u8)>)>,
}

const DIRECTORIES: usize = 24;
const FILES: usize = 6;
const USERS: usize = 6;

impl Made {
    fn any(dice: &mut Dice, path: String, is_directory: bool) -> Self {
        // Most bits are set, else nobody would get far.
        let mut bits = |of: u64| dice.below(of) as u16;
        let mut mode = (bits(0o1000) | bits(0o1000)) | if is_directory { bits(2) << 9 } else { 0 };
        if is_directory {
            mode |= bits(0o1000) & 0o111;
        }
        let list = (bits(2) == 0).then(|| {
            let mut named = Vec::new();
            for id in 1001..1004 {
                if bits(2) == 0 {
                    named.push((Subject::User(id), bits(8) as u8));
                }
            }
            for id in 2001..2004 {
                if bits(2) == 0 || named.is_empty() {
                    named.push((Subject::Group(id), bits(8) as u8));
                }
            }
            (bits(8) | bits(8), named)
        });
        let (uid, gid) = (1001 + u32::from(bits(3)), 2001 + u32::from(bits(3)));
        Self { path, is_directory, uid, gid, mode, list }
    }

    /// All of a tree, each directory before what is in it.
    fn all(dice: &mut Dice) -> Vec<Self> {
        let mut all = Vec::new();
        for directory in 0..DIRECTORIES {
            all.push(Self::any(dice, format!("r{directory}"), true));
            all.extend((0..FILES).map(|file| Self::any(dice, format!("r{directory}/f{file}"), false)));
        }
        all
    }

    /// The mode as it is when there is a list: the group's bits are the mask.
    fn masked(&self) -> u16 {
        self.list.as_ref().map_or(self.mode, |(mask, _)| self.mode & !0o070 | mask << 3)
    }

    /// Made by the kernel.
    fn make(&self, root: &Path) {
        let path = root.join(&self.path);
        if self.is_directory {
            fs::create_dir(&path).unwrap();
        } else {
            fs::write(&path, &self.path).unwrap();
        }
        chown(&path, Some(self.uid), Some(self.gid)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(self.masked().into())).unwrap();
        if self.list.is_some() {
            let attribute = "system.posix_acl_access";
            rustix::fs::setxattr(&path, attribute, &self.list_bytes(), XattrFlags::empty()).unwrap();
        }
    }

    /// The list as the kernel takes it: version 2, then tag, rights and number of each entry (posix_acl_xattr.h).
    fn list_bytes(&self) -> Vec<u8> {
        let (mask, named) = self.list.as_ref().unwrap();
        let of_mode = |shift: u16| self.mode >> shift & 7;
        let mut entries = vec![(0x01, of_mode(6), u32::MAX)];
        let mut of_groups = vec![(0x04, of_mode(3), u32::MAX)];
        for (subject, bits) in named {
            match *subject {
                Subject::User(uid) => entries.push((0x02, u16::from(*bits), uid)),
                Subject::Group(gid) => of_groups.push((0x08, u16::from(*bits), gid)),
                Subject::Everyone => {}
            }
        }
        entries.extend(of_groups);
        entries.extend([(0x10, *mask, u32::MAX), (0x20, of_mode(0), u32::MAX)]);
        let mut bytes = 2u32.to_le_bytes().to_vec();
        for (tag, rights, id) in entries {
            bytes.extend([&u16::to_le_bytes(tag)[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat());
        }
        bytes
    }

    /// Made in a file system of ours.
    fn make_own(&self, files: &Files) {
        let place = ("own", format!("/{}", self.path));
        if self.is_directory {
            files.create_dir(&place).unwrap();
        } else {
            files.create(&place).unwrap().write_all_at(self.path.as_bytes(), 0).unwrap();
        }
        let change = AttributeChange {
            mode: Some(self.mode),
            owner: Some(self.uid),
            group: Some(self.gid),
            access: self.list.as_ref().map(|(_, named)| named.clone()),
            ..AttributeChange::default()
        };
        files.set_attributes(&place, change).unwrap();
        if self.list.is_some() {
            // With a list the mode's bits for the group set its mask.
            let mask = AttributeChange { mode: Some(self.masked()), ..AttributeChange::default() };
            files.set_attributes(&place, mask).unwrap();
        }
    }
}

/// What somebody asks about a file or directory.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Read,
    Write,
    Both,
    Attributes,
    List,
}

impl Asked {
    fn about(made: &Made) -> &'static [Self] {
        if made.is_directory {
            &[Self::Attributes, Self::List]
        } else {
            &[Self::Read, Self::Write, Self::Both]
        }
    }

    /// Whether the kernel lets who runs this.
    fn of_kernel(self, path: &Path) -> bool {
        let result = match self {
            Self::Read => File::open(path).map(drop),
            Self::Write => fs::OpenOptions::new().write(true).open(path).map(drop),
            Self::Both => fs::OpenOptions::new().read(true).write(true).open(path).map(drop),
            Self::Attributes => fs::metadata(path).map(drop),
            Self::List => fs::read_dir(path).map(drop),
        };
        match result {
            Err(error) if error.kind() != ErrorKind::PermissionDenied => {
                panic!("{}: {error}", path.display())
            }
            result => result.is_ok(),
        }
    }

    /// Whether an adapter lets who connected.
    fn of_adapter(self, files: &Files, volume: &str, path: &str) -> bool {
        let place = (volume, format!("/{path}"));
        let options = OpenOptions::new();
        let result = match self {
            Self::Read => options.read(true).open(files, &place).map(drop),
            Self::Write => options.write(true).open(files, &place).map(drop),
            Self::Both => options.read(true).write(true).open(files, &place).map(drop),
            Self::Attributes => files.metadata(&place).map(drop),
            Self::List => files.read_dir(&place).map(drop),
        };
        match result {
            Err(error) if error.status() != Some(Status::E_AUTH) => panic!("{path}: {error}"),
            result => result.is_ok(),
        }
    }
}

/// The tree and the users of this seed.
fn rights() -> (Vec<Made>, Vec<Who>) {
    let seed = std::env::var("PORTCULLIS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("seed {seed}");
    let mut dice = Dice(seed);
    let all = Made::all(&mut dice);
    (all, (0..USERS).map(|_| Who::any(&mut dice)).collect())
}

#[test]
#[ignore = "runs in a guest"]
fn asks_the_kernel_for_rights() {
    let (all, users) = rights();
    mount(TARGET, MountFlags::empty());
    let root = Path::new(TARGET.1);
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    all.iter().for_each(|made| made.make(root));
    let mut answers = String::new();
    for who in &users {
        answers.push_str(&who.run(|| {
            let questions =
                all.iter().flat_map(|made| Asked::about(made).iter().map(move |asked| (made, asked)));
            let answer = |(made, asked): (&Made, &Asked)| asked.of_kernel(&root.join(&made.path));
            questions.map(|question| if answer(question) { '1' } else { '0' }).collect::<String>()
        }));
    }
    fs::write(ANSWERS, answers).unwrap();
    unmount(TARGET);
}

/// Compares what an adapter says with what the kernel said. Returns how many of each answer there were.
fn compare(volume: &str, all: &[Made], users: &[Who]) -> [usize; 2] {
    let expected = fs::read_to_string(ANSWERS).unwrap();
    let mut expected = expected.chars();
    let mut counts = [0, 0];
    for who in users {
        let mut theirs: Vec<bool> = Vec::new();
        for made in all {
            theirs.extend(expected.by_ref().take(Asked::about(made).len()).map(|answer| answer == '1'));
        }
        let mut theirs = theirs.into_iter();
        who.run(|| {
            let files = connect();
            for made in all {
                for asked in Asked::about(made) {
                    let (ours, kernel) =
                        (asked.of_adapter(&files, volume, &made.path), theirs.next().unwrap());
                    assert_eq!(ours, kernel, "{asked:?} in {volume} by {who:?} of {made:?}");
                    counts[usize::from(ours)] += 1;
                }
            }
        });
    }
    assert_eq!(expected.next(), None);
    counts
}

#[test]
#[ignore = "runs in a guest"]
fn rights_are_those_of_the_kernel() {
    let (all, users) = rights();
    let adapter = as_found();
    let [denied, allowed] = compare("disk", &all, &users);
    assert!(denied > 300 && allowed > 300, "{denied} {allowed}");
    adapter.stop().unwrap();

    // Files of ours on a disk of their own, of the same kind.
    let device = std::env::var("PORTCULLIS_OWN_DEVICE").unwrap();
    let options = Options { format: Format::Force, ..Options::new(device.parse().unwrap()) };
    let adapter = Adapter::start(&options, Path::new(SOCKET)).unwrap();
    let files = connect();
    files.session().create_volume("own", 64 << 20).unwrap();
    files.session().set_access("own", Subject::Everyone, Access::READ_WRITE).unwrap();
    files.format("own", false).unwrap();
    all.iter().for_each(|made| made.make_own(&files));
    assert_eq!(compare("own", &all, &users), [denied, allowed]);
    drop(files);
    adapter.stop().unwrap();
    println!(
        "counted: {} rights on an ext4 and as many on files of ours, on {device}",
        all.len() * users.len()
    );
}

/// All regular files below a directory, by their paths from there, and how many directories.
fn tree_of(root: &Path) -> (BTreeMap<String, PathBuf>, usize) {
    let (mut files, mut directories) = (BTreeMap::new(), vec![root.to_owned()]);
    let mut next = 0;
    while let Some(directory) = directories.get(next).cloned() {
        next += 1;
        for entry in fs::read_dir(directory).unwrap() {
            let (path, kind) = entry.map(|entry| (entry.path(), entry.file_type().unwrap())).unwrap();
            if kind.is_dir() && path.file_name().is_some_and(|name| name != "lost+found") {
                directories.push(path);
            } else if kind.is_file() {
                files.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned(), path);
            }
        }
    }
    (files, directories.len())
}

/// Files that no package has: with holes, with blocks that were never written, in many pieces.
fn special() -> BTreeMap<String, Vec<u8>> {
    let data = |bytes: usize, seed: u64| Dice(seed).bytes(bytes);
    let mut holes = vec![0; 1_000_003];
    holes[8192..20_000].copy_from_slice(&data(11_808, 1));
    holes[500_000..500_001].copy_from_slice(&data(1, 2));
    let mut half = vec![0; 262_144];
    half[..100_000].copy_from_slice(&data(100_000, 3));
    let all = [("holes", holes), ("half", half), ("pieces", data(400_000, 4)), ("others", data(400_000, 5))];
    all.map(|(name, data)| (format!("special/{name}"), data)).into()
}

/// Has the kernel make those.
fn make_special(root: &Path) {
    let all = special();
    fs::create_dir(root.join("special")).unwrap();
    let make = |name: &str| File::create(root.join("special").join(name)).unwrap();
    let holes = make("holes");
    let expected = &all["special/holes"];
    holes.set_len(expected.len() as u64).unwrap();
    for (from, to) in [(8192, 20_000), (500_000, 500_001)] {
        holes.write_all_at(&expected[from..to], from as u64).unwrap();
    }
    let half = make("half");
    rustix::fs::fallocate(&half, FallocateFlags::empty(), 0, 262_144).unwrap();
    half.write_all_at(&all["special/half"][..100_000], 0).unwrap();
    // Two that grow by turns, each piece on the disk before the next, lie between one another.
    let both = ["pieces", "others"].map(|name| (make(name), &all[&format!("special/{name}")]));
    for at in (0..400_000).step_by(20_000) {
        for (file, data) in &both {
            file.write_all_at(&data[at..at + 20_000], at as u64).unwrap();
            file.sync_all().unwrap();
        }
    }
}

#[test]
#[ignore = "runs in a guest"]
fn copies_a_tree() {
    mount(SOURCE, MountFlags::RDONLY);
    mount(TARGET, MountFlags::empty());
    let (files, directories) = tree_of(Path::new(SOURCE.1));
    for (path, source) in &files {
        let target = Path::new(TARGET.1).join(path);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(source, target).unwrap();
    }
    make_special(Path::new(TARGET.1));
    unmount(TARGET);
    assert!(files.len() >= 2000);
    println!("{} files in {directories} directories", files.len());
}

/// What is in the tree, with what was overwritten by then if `changed`.
fn expected(changed: bool) -> BTreeMap<String, Vec<u8>> {
    let (files, _) = tree_of(Path::new(SOURCE.1));
    let mut all: BTreeMap<_, _> =
        files.into_iter().map(|(path, source)| (path, fs::read(source).unwrap())).collect();
    all.append(&mut special());
    for (number, (path, data)) in all.iter_mut().enumerate() {
        for (at, bytes) in overwrites(number, path, data.len()).into_iter().filter(|_| changed) {
            data[at..at + bytes.len()].copy_from_slice(&bytes);
        }
    }
    all
}

/// What is written to a file: nothing to two of three; else blocks, less than blocks, and up to the last byte. Only where it has
/// blocks.
fn overwrites(number: usize, path: &str, length: usize) -> Vec<(usize, Vec<u8>)> {
    let dice = &mut Dice(number as u64);
    let length = match path {
        "special/holes" => return vec![(8192, dice.bytes(4096)), (10_001, dice.bytes(777))],
        "special/half" => return vec![(4096, dice.bytes(4096)), (99_990, dice.bytes(10))],
        path if path.starts_with("special/") => length,
        _ if number.is_multiple_of(3) => length,
        _ => 0,
    };
    if length == 0 {
        return Vec::new();
    }
    let (block, anywhere, tail) =
        (dice.index(length) / 512 * 512, dice.index(length), dice.index(length.min(700)));
    let writes = [
        (block, (length - block).min(1 << dice.below(15) & !511)),
        (anywhere, (length - anywhere).min(1 + dice.index(1000))),
        (length - 1 - tail, 1 + tail),
    ];
    writes.into_iter().filter(|(_, bytes)| *bytes > 0).map(|(at, bytes)| (at, dice.bytes(bytes))).collect()
}

fn same(path: &str, found: &[u8], expected: &[u8]) {
    let differs = found.iter().zip(expected).position(|(found, expected)| found != expected);
    assert!(found == expected, "{path}: {} bytes, not {}, first at {differs:?}", found.len(), expected.len());
}

#[test]
#[ignore = "runs in a guest"]
fn reads_the_tree_and_overwrites_files_in_place() {
    let all = expected(false);
    let adapter = as_found();
    let files = connect();
    let mut directories = vec!["/".to_owned()];
    let (mut next, mut found) = (0, 0);
    while let Some(directory) = directories.get(next).cloned() {
        next += 1;
        for entry in files.read_dir(("disk", &directory)).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{}/{}", directory.trim_end_matches('/'), entry.name);
            match entry.kind {
                FileKind::Directory if path != "/lost+found" => directories.push(path),
                FileKind::Directory => {}
                _ => {
                    let expected = &all[path.trim_start_matches('/')];
                    let file = files.open(("disk", &path)).unwrap();
                    let mut data = vec![0xee; expected.len() + 1];
                    let bytes = file.read_at(&mut data, 0).unwrap();
                    same(&path, &data[..bytes], expected);
                    found += 1;
                }
            }
        }
    }
    assert_eq!(found, all.len(), "each is listed once");
    let (mut overwritten, mut bytes) = (0, 0);
    for (number, (path, data)) in all.iter().enumerate() {
        let writes = overwrites(number, path, data.len());
        if writes.is_empty() {
            continue;
        }
        let file = OpenOptions::new().write(true).open(&files, ("disk", format!("/{path}"))).unwrap();
        for (at, data) in &writes {
            file.write_all_at(data, *at as u64).unwrap();
            bytes += data.len();
        }
        let error = file.write_all_at(&[1], data.len() as u64).unwrap_err();
        assert!(matches!(error, Error::Refused { status: Status::E_NO_RESOURCES, .. }), "{error}");
        overwritten += 1;
    }
    files.sync("disk").unwrap();
    for (path, expected) in expected(true) {
        let mut data = vec![0xee; expected.len() + 1];
        let bytes = files.open(("disk", format!("/{path}"))).unwrap().read_at(&mut data, 0).unwrap();
        same(&path, &data[..bytes], &expected);
    }
    drop(files);
    adapter.stop().unwrap();
    assert!(overwritten > 600);
    println!("counted: {found} files of an ext4 read, and {bytes} bytes of {overwritten} overwritten");
}

#[test]
#[ignore = "runs in a guest"]
fn finds_by_the_kernel_what_was_written() {
    mount(TARGET, MountFlags::empty());
    let all = expected(true);
    let (files, _) = tree_of(Path::new(TARGET.1));
    assert_eq!(files.len(), all.len());
    for (path, expected) in &all {
        same(path, &fs::read(&files[path]).unwrap(), expected);
    }
    unmount(TARGET);
    // While a disk is mounted, no adapter takes it for a software device's.
    mount(TARGET, MountFlags::RDONLY);
    let options =
        Options { format: Format::AsFound, ..Options::new(format!("emu:{}", TARGET.0).parse().unwrap()) };
    let error = Adapter::start(&options, Path::new(SOCKET)).err().unwrap().to_string();
    assert!(error.contains("it is mounted"), "{error}");
    unmount(TARGET);
    println!("{} files are as they were written", all.len());
}
