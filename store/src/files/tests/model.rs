//! Random operations against a plain model.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const PATHS: [&str; 9] = ["/a", "/b", "/a/x", "/a/y", "/b/x", "/a/x/z", "/b/x/z", "/c", "/a/x/z/w"];

#[derive(Clone, Debug)]
enum Op {
    Create { path: usize, exclusive: bool, truncate: bool },
    Open(usize),
    Release(usize),
    MakeDirectory(usize),
    Unlink(usize),
    RemoveDirectory(usize),
    Rename { from: usize, to: usize, replace: bool },
    Grow { path: usize, units: u64, keep: bool },
    Truncate { path: usize, length: u64 },
    Mode { path: usize, mode: u16 },
    Give { path: usize, uid: u32 },
    ZeroSome(u64),
    Sync,
    Reopen,
    Crash,
}

fn op() -> impl Strategy<Value = Op> {
    let path = || 0..PATHS.len();
    prop_oneof![
        5 => (path(), any::<bool>(), any::<bool>())
            .prop_map(|(path, exclusive, truncate)| Op::Create { path, exclusive, truncate }),
        1 => path().prop_map(Op::Open),
        2 => (0usize..8).prop_map(Op::Release),
        5 => path().prop_map(Op::MakeDirectory),
        3 => path().prop_map(Op::Unlink),
        2 => path().prop_map(Op::RemoveDirectory),
        5 => (path(), path(), any::<bool>()).prop_map(|(from, to, replace)| Op::Rename { from, to, replace }),
        4 => (path(), 0u64..40, any::<bool>()).prop_map(|(path, units, keep)| Op::Grow { path, units, keep }),
        3 => (path(), 0u64..40 * UNIT).prop_map(|(path, length)| Op::Truncate { path, length }),
        1 => (path(), 0u16..0o1000).prop_map(|(path, mode)| Op::Mode { path, mode }),
        1 => (path(), 0u32..3).prop_map(|(path, uid)| Op::Give { path, uid }),
        1 => (0u64..100 * UNIT).prop_map(Op::ZeroSome),
        2 => Just(Op::Sync),
        1 => Just(Op::Reopen),
        2 => Just(Op::Crash),
    ]
}

/// What is, and has a name or is open.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Node {
    number: InodeNumber,
    directory: bool,
    length: u64,
    units: u64,
    /// Of them so many are kept when it is closed.
    reserved: u64,
    mode: u16,
    uid: u32,
}

impl Node {
    /// Nobody has it open any more.
    fn give_back_room(&mut self) {
        self.units = self.units.min(self.length.div_ceil(UNIT).max(self.reserved));
    }
}

/// How an operation should end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Done,
    NotFound,
    Exists,
    NotDirectory,
    IsDirectory,
    NotEmpty,
    Cycle,
    Size,
    NotOpen,
}

fn end_of<T>(result: &Result<T, FileError>) -> End {
    match result {
        Ok(_) => End::Done,
        Err(FileError::NotFound { .. }) => End::NotFound,
        Err(FileError::Exists { .. }) => End::Exists,
        Err(FileError::NotDirectory { .. }) => End::NotDirectory,
        Err(FileError::IsDirectory { .. }) => End::IsDirectory,
        Err(FileError::NotEmpty { .. }) => End::NotEmpty,
        Err(FileError::Cycle { .. }) => End::Cycle,
        Err(FileError::Size { .. }) => End::Size,
        Err(FileError::NotOpen(_)) => End::NotOpen,
        Err(other) => panic!("{other}"),
    }
}

type Nodes = BTreeMap<String, Node>;

struct World {
    disk: MemoryDisk,
    files: Option<FileSystem>,
    nodes: Nodes,
    synced: Nodes,
    open: Vec<Node>,
    last: InodeNumber,
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

impl World {
    fn new(shift: u8) -> Self {
        let disk = MemoryDisk::new(shift, (80 << 20) >> shift);
        // So large that no sync comes by itself.
        let options = FormatOptions { metadata: Some(32 << 20), ..options() };
        let files = FileSystem::format(Box::new(disk.clone()), options).unwrap();
        let nodes = Nodes::new();
        let (synced, open, last) = (nodes.clone(), Vec::new(), InodeNumber::ROOT);
        Self { disk, files: Some(files), nodes, synced, open, last }
    }

    /// What stands against reaching `path`'s directory.
    fn reach(&self, path: &str) -> End {
        let directory = parent(path);
        if directory.is_empty() {
            return End::Done;
        }
        match (self.reach(directory), self.nodes.get(directory)) {
            (End::Done, None) => End::NotFound,
            (End::Done, Some(node)) if !node.directory => End::NotDirectory,
            (end, _) => end,
        }
    }

    fn has_children(&self, path: &str) -> bool {
        self.nodes.keys().any(|other| parent(other) == path)
    }

    /// How a call ends that needs a file at `path`.
    fn file_at(&self, path: &str) -> End {
        match (self.reach(path), self.nodes.get(path)) {
            (End::Done, None) => End::NotFound,
            (End::Done, Some(node)) if node.directory => End::IsDirectory,
            (end, _) => end,
        }
    }

    fn fresh(&mut self, number: InodeNumber, directory: bool, mode: u16) -> Node {
        assert!(number > self.last, "numbers are not used twice");
        self.last = number;
        Node { number, directory, length: 0, units: 0, reserved: 0, mode, uid: 0 }
    }

    fn create(&mut self, files: &mut FileSystem, path: &str, exclusive: bool, truncate: bool) {
        let expected = match self.file_at(path) {
            End::NotFound if self.reach(path) == End::Done => End::Done,
            End::Done | End::IsDirectory if exclusive => End::Exists,
            end => end,
        };
        let how = How { exclusive, truncate, ..How::create(0o640) };
        let result = files.open_file(&ROOT, path.as_bytes(), how);
        assert_eq!(end_of(&result), expected, "{path}");
        let Ok(opened) = result else { return };
        if let Some(plan) = &opened.truncation {
            assert!(self.open.iter().any(|open| open.number == opened.inode));
            files.drained(plan).unwrap();
        }
        if opened.created {
            let node = self.fresh(opened.inode, false, 0o640);
            self.nodes.insert(path.to_owned(), node);
        }
        let node = self.nodes.get_mut(path).unwrap();
        if truncate {
            (node.length, node.units, node.reserved) = (0, 0, 0);
        }
        let node = node.clone();
        self.open.iter_mut().filter(|open| open.number == node.number).for_each(|open| *open = node.clone());
        self.open.push(node);
    }

    fn rename(&mut self, files: &mut FileSystem, from: &str, to: &str, replace: bool) {
        let node = self.nodes.get(from).cloned();
        let there = self.nodes.get(to).cloned();
        let expected = match (self.reach(from), &node, self.reach(to), &there) {
            (End::Done, None, ..) => End::NotFound,
            (End::Done, Some(_), End::Done, _) if from == to => End::Done,
            (End::Done, Some(node), End::Done, _)
                if node.directory && to.starts_with(&format!("{from}/")) =>
            {
                End::Cycle
            }
            (End::Done, Some(_), End::Done, Some(_)) if !replace => End::Exists,
            (End::Done, Some(node), End::Done, Some(there)) => match (node.directory, there.directory) {
                (true, false) => End::NotDirectory,
                (false, true) => End::IsDirectory,
                (true, true) if self.has_children(to) => End::NotEmpty,
                _ => End::Done,
            },
            (End::Done, _, end, _) | (end, ..) => end,
        };
        assert_eq!(
            end_of(&files.rename(&ROOT, from.as_bytes(), to.as_bytes(), replace)),
            expected,
            "{from} {to}"
        );
        if expected != End::Done || from == to {
            return;
        }
        let moved: Vec<String> = self
            .nodes
            .keys()
            .filter(|path| *path == from || path.starts_with(&format!("{from}/")))
            .cloned()
            .collect();
        for path in moved {
            let node = self.nodes.remove(&path).unwrap();
            self.nodes.insert(format!("{to}{}", &path[from.len()..]), node);
        }
    }

    /// A new length, or more blocks, of the file at `path`.
    fn resize(
        &mut self,
        files: &mut FileSystem,
        path: &str,
        change: impl Fn(&mut FileSystem, &mut Node) -> bool,
    ) {
        let Ok(number) = files.resolve(&ROOT, path.as_bytes()) else {
            assert!(!self.nodes.contains_key(path));
            return;
        };
        let node = self.nodes.get_mut(path).unwrap();
        assert_eq!(node.number, number);
        assert_eq!(change(files, node), !node.directory, "{path}");
        let node = node.clone();
        self.open.iter_mut().filter(|open| open.number == number).for_each(|open| *open = node.clone());
    }

    fn release(&mut self, files: &mut FileSystem, index: usize) {
        if self.open.is_empty() {
            return;
        }
        let node = self.open.swap_remove(index % self.open.len());
        let found = files.attributes(node.number).unwrap();
        assert_eq!((found.length, found.allocated), (node.length, node.units * UNIT));
        files.release(node.number).unwrap();
        let open = self.open.iter().any(|other| other.number == node.number);
        let named = self.nodes.values_mut().find(|other| other.number == node.number);
        assert_eq!(files.attributes(node.number).is_ok(), named.is_some() || open);
        named.filter(|_| !open).into_iter().for_each(Node::give_back_room);
    }

    /// The file system was opened again.
    fn nobody_has_anything_open(&mut self) {
        self.open.clear();
        self.nodes.values_mut().for_each(Node::give_back_room);
    }

    fn apply(&mut self, op: &Op) {
        let mut files = self.files.take().unwrap();
        match *op {
            Op::Create { path, exclusive, truncate } => {
                self.create(&mut files, PATHS[path], exclusive, truncate);
            }
            Op::Open(path) => {
                let result = files.open_file(&ROOT, PATHS[path].as_bytes(), How::READ);
                assert_eq!(end_of(&result), self.file_at(PATHS[path]));
                self.open.extend(result.ok().map(|_| self.nodes[PATHS[path]].clone()));
            }
            Op::Release(index) => self.release(&mut files, index),
            Op::MakeDirectory(path) => {
                let path = PATHS[path];
                let expected = match self.reach(path) {
                    End::Done if self.nodes.contains_key(path) => End::Exists,
                    end => end,
                };
                let result = files.make_directory(&ROOT, path.as_bytes(), 0o755);
                assert_eq!(end_of(&result), expected);
                if let Ok(made) = result {
                    let node = self.fresh(made.inode, true, 0o755);
                    self.nodes.insert(path.to_owned(), node);
                }
            }
            Op::Unlink(path) => {
                let path = PATHS[path];
                let expected = self.file_at(path);
                assert_eq!(end_of(&files.unlink(&ROOT, path.as_bytes())), expected);
                if expected == End::Done {
                    self.nodes.remove(path);
                }
            }
            Op::RemoveDirectory(path) => {
                let path = PATHS[path];
                let expected = match self.file_at(path) {
                    End::IsDirectory if self.has_children(path) => End::NotEmpty,
                    End::IsDirectory => End::Done,
                    End::Done => End::NotDirectory,
                    end => end,
                };
                assert_eq!(end_of(&files.remove_directory(&ROOT, path.as_bytes())), expected);
                if expected == End::Done {
                    self.nodes.remove(path);
                }
            }
            Op::Rename { from, to, replace } => self.rename(&mut files, PATHS[from], PATHS[to], replace),
            Op::Grow { path, units, keep } => self.resize(&mut files, PATHS[path], |files, node| {
                let grow = if keep { FileSystem::reserve } else { FileSystem::grow };
                let Ok(new) = grow(files, node.number, units * UNIT) else { return false };
                let more: u64 = new.iter().map(|extent| extent.blocks.count.0).sum();
                assert_eq!(
                    more << files.superblock.layout.block_shift,
                    units.saturating_sub(node.units) * UNIT
                );
                node.units = node.units.max(units);
                node.reserved = node.reserved.max(if keep { units } else { 0 });
                true
            }),
            Op::Truncate { path, length } => self.resize(&mut files, PATHS[path], |files, node| match files
                .truncate(node.number, length)
            {
                Ok(plan) => {
                    files.drained(&plan).unwrap();
                    if length <= node.length {
                        node.units = length.div_ceil(UNIT);
                        node.reserved = node.reserved.min(node.units);
                    }
                    node.length = length;
                    true
                }
                Err(FileError::Size { .. }) => {
                    assert!(length > node.units * UNIT);
                    true
                }
                Err(_) => false,
            }),
            Op::Mode { path, mode } => self.resize(&mut files, PATHS[path], |files, node| {
                let changes = Changes { mode: Some(mode), ..Changes::default() };
                files.set_attributes(&ROOT, node.number, &changes).unwrap();
                node.mode = mode;
                !node.directory
            }),
            Op::Give { path, uid } => self.resize(&mut files, PATHS[path], |files, node| {
                let changes = Changes { uid: Some(uid), ..Changes::default() };
                files.set_attributes(&ROOT, node.number, &changes).unwrap();
                node.uid = uid;
                !node.directory
            }),
            Op::ZeroSome(bytes) => drop(files.zero_some(bytes).unwrap()),
            Op::Sync => {
                files.sync().unwrap();
                self.synced = self.nodes.clone();
            }
            Op::Reopen => {
                files.close().unwrap();
                self.synced = self.nodes.clone();
                self.nobody_has_anything_open();
                files = open(&self.disk).unwrap();
            }
            Op::Crash => {
                drop(files);
                self.nodes = self.synced.clone();
                self.nobody_has_anything_open();
                self.last = self.nodes.values().map(|node| node.number).max().unwrap_or(InodeNumber::ROOT);
                files = open(&self.disk).unwrap();
            }
        }
        if files.metadata.is_clean() {
            // Opening a file to write it may need a sync.
            self.synced = self.nodes.clone();
        }
        self.compare(&mut files, matches!(op, Op::Sync | Op::Reopen | Op::Crash));
        self.files = Some(files);
    }

    fn compare(&self, files: &mut FileSystem, check: bool) {
        let mut found = Nodes::new();
        let mut directories = vec![String::new()];
        while let Some(directory) = directories.pop() {
            for entry in files.list(&ROOT, directory.as_bytes(), b"", 4096).unwrap() {
                let path = format!("{directory}/{}", String::from_utf8(entry.name).unwrap());
                let Attributes { inode, permissions, length, allocated, reserved, .. } = entry.attributes;
                let (mode, uid) = (permissions.mode & 0o7777, permissions.uid);
                let (units, reserved, directory) =
                    (allocated / UNIT, reserved / UNIT, permissions.is_directory());
                let node = Node { number: inode, directory, length, units, reserved, mode, uid };
                if node.directory {
                    directories.push(path.clone());
                }
                found.insert(path, node);
            }
        }
        assert_eq!(found, self.nodes);
        self.compare_usage(files);
        if check {
            assert_eq!(files.check().unwrap(), []);
        }
    }

    /// What is used, and by whom.
    fn compare_usage(&self, files: &mut FileSystem) {
        let all: BTreeMap<InodeNumber, &Node> =
            self.nodes.values().chain(&self.open).map(|node| (node.number, node)).collect();
        let usage = files.usage();
        let used: u64 = all.values().map(|node| node.units).sum();
        assert_eq!(usage.bytes - usage.free, used * UNIT, "nothing leaks");
        assert_eq!(usage.inodes, 1 + all.len() as u64);
        for uid in 0..3 {
            let its = || all.values().filter(|node| node.uid == uid);
            let quota = files.quota(&ROOT, uid).unwrap();
            let root = u64::from(uid == 0);
            assert_eq!(quota.bytes, its().map(|node| node.units).sum::<u64>() * UNIT, "user {uid}");
            assert_eq!(quota.inodes, its().count() as u64 + root, "user {uid}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_model(
        shift in prop_oneof![1 => Just(9u8), 3 => Just(12)],
        ops in proptest::collection::vec(op(), 1..60),
    ) {
        let mut world = World::new(shift);
        for op in &ops {
            world.apply(op);
        }
        world.apply(&Op::Crash);
    }
}
