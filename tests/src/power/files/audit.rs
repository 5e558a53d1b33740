//! What a power cut left of a volume's files, against what was done.

use std::collections::BTreeMap;

use store::Store;
use store::files::{FileSystem, How, InodeNumber};
use store::permission::Credentials;
use tpt::LbaRange;

use super::VOLUME;
use super::history::{Entry, FileHistory, History, Moment, Settled, View};
use crate::power::model::SECTOR;
use crate::power::record::{Image, Remains};
use driver::disk::Disk;

const ROOT: Credentials<'static> = Credentials { uid: 0, gid: 0, groups: &[] };

/// A file as it was found.
pub(super) struct Found {
    number: u64,
    mode: u16,
    /// None of a directory.
    pub(super) content: Option<Vec<u8>>,
}

/// All that was found, by path.
pub(super) type Tree = BTreeMap<String, Found>;

/// Compares what cuts leave with a history; of these positions only ever later ones.
pub(super) struct Auditor<'a> {
    history: &'a History,
    settled: BTreeMap<u64, Settled>,
    horizon: usize,
    shift: u8,
    bytes: u64,
}

impl<'a> Auditor<'a> {
    /// For a device of so many bytes in blocks of 1 << `shift`.
    pub(super) fn new(history: &'a History, bytes: u64, shift: u8) -> Self {
        let settled = history.files.iter().map(|(number, file)| (*number, Settled::new(file))).collect();
        Self { history, settled, horizon: 0, shift, bytes }
    }

    /// Looks at what a cut at `position` left; an error says what is wrong.
    pub(super) fn audit(&mut self, position: usize, image: Image) -> Result<Tree, String> {
        let horizon = self.history.horizon(position);
        if horizon > self.horizon {
            self.horizon = horizon;
            for (number, settled) in &mut self.settled {
                settled.settle(&self.history.files[number], horizon);
            }
        }
        let (tree, clean) = self.open(image)?;
        let moments = self.history.moments.iter();
        let last = moments.clone().rposition(|moment| moment.span.end <= horizon).unwrap_or(0);
        let possible =
            moments.skip(last).take_while(|its| its.span.start < position || its.span.end <= horizon);
        let same: Vec<&Moment> = possible.filter(|moment| is_named(moment, &tree)).collect();
        let mut wrong = Err(self.no_moment(last, position, &tree));
        for moment in same.iter().rev() {
            wrong =
                self.files(moment, position, &tree).map_err(|why| format!("after {:?}: {why}", moment.by));
            if wrong.is_ok() {
                break;
            }
        }
        wrong.and(clean).map(|()| tree)
    }

    fn no_moment(&self, last: usize, position: usize, tree: &Tree) -> String {
        let name = |(path, found): (&String, &Found)| format!("{path}={}", found.number);
        let names: Vec<String> = tree.iter().map(name).collect();
        let was = self.history.moments.iter().skip(last).take_while(|its| its.span.start < position);
        let was: Vec<&str> = was.map(|moment| moment.by.as_str()).collect();
        format!("the names {names:?} never were; what may have been done last is {was:?}")
    }

    /// Opens the store and its files, has both checked, and reads all. Then, whether what lies behind their ends is zero.
    fn open(&self, image: Image) -> Result<(Tree, Result<(), String>), String> {
        let disk = Remains::new(self.bytes, self.shift, image);
        let mut store = Store::open(Box::new(disk.clone())).map_err(|error| format!("the store: {error}"))?;
        let found = store.check().map_err(|error| format!("checking the store: {error}"))?;
        if !found.is_empty() {
            return Err(format!("the store's check finds {found:?}"));
        }
        let volume = store.volume(VOLUME).map_err(|error| error.to_string())?;
        let window = store.window(VOLUME).map_err(|error| error.to_string())?;
        let mut files = FileSystem::open(Box::new(window)).map_err(|error| format!("the files: {error}"))?;
        let found = files.check().map_err(|error| format!("checking the files: {error}"))?;
        if !found.is_empty() {
            return Err(format!("the files' check finds {found:?}"));
        }
        let read = |disk: &Remains, extents: &[store::files::Extent]| {
            let mut all = Vec::new();
            let blocks = extents.iter().map(|extent| volume.device_blocks(extent.blocks));
            for LbaRange { first, count } in blocks.flat_map(|ranges| ranges.expect("they lie in the volume"))
            {
                let begin = all.len();
                all.resize(begin + (count.0 << self.shift) as usize, 0);
                disk.clone().read(first.0, &mut all[begin..]).expect("they lie on the device");
            }
            all
        };
        let mut tree = walk(&mut files)?;
        let mut used = 0;
        let mut clean = Ok(());
        for (path, found) in &mut tree {
            let Some(content) = &mut found.content else { continue };
            let number = InodeNumber(found.number);
            let its = files.attributes(number).map_err(|error| error.to_string())?;
            used += its.allocated;
            let extents = files.extents(number, 0, usize::MAX).map_err(|error| error.to_string())?;
            *content = read(&disk, &extents);
            content.truncate(its.length as usize);
            // Whoever opens it to write finds zeroes behind its end.
            let opened = files.open_file(&ROOT, path.as_bytes(), How::READ_WRITE);
            let opened = opened.map_err(|error| format!("opening {path}: {error}"))?;
            let behind = &read(&disk, &opened.extents)[its.length as usize..];
            if let Some(at) = behind.iter().position(|byte| *byte != 0) {
                clean = Err(format!(
                    "{path} is {} bytes long, and {at} bytes behind that is no zero",
                    its.length
                ));
            }
        }
        let usage = files.usage();
        if (usage.bytes - usage.free, usage.inodes) != (used, 1 + tree.len() as u64) {
            return Err(format!("{usage:?}, and {} names have {used} bytes", tree.len()));
        }
        Ok((tree, clean))
    }

    fn files(&self, moment: &Moment, position: usize, tree: &Tree) -> Result<(), String> {
        for (path, found) in tree {
            let Some(content) = &found.content else { continue };
            let (Entry { number, epoch, .. }, none) = (moment.names[path], FileHistory::default());
            let file = self.history.files.get(&number).unwrap_or(&none);
            let at = moment.span.start;
            let length = content.len() as u64;
            let least = file.least(epoch, self.horizon.max(file.closed(at)));
            if length < least || !file.may_be(epoch, position, length) {
                return Err(format!(
                    "{path} has {length} bytes in epoch {epoch}; it had {least} at the least"
                ));
            }
            // Of the epoch, and so of its blocks, at the last sync.
            let reached = if file.cuts.get(epoch).is_some() { 0 } else { file.least(epoch, self.horizon) };
            let horizon = self.horizon.max(at);
            let view = View { file, epoch, position, horizon, reached };
            let Some(settled) = self.settled.get(&number) else {
                if content.iter().any(|byte| *byte != 0) {
                    return Err(format!("{path} was never written and is not zero"));
                }
                continue;
            };
            for (sector, found) in (0..).zip(content.chunks(SECTOR)) {
                settled
                    .check(&view, sector, found)
                    .map_err(|why| format!("{path}, {length} bytes: {why}"))?;
            }
        }
        Ok(())
    }
}

fn is_named(moment: &Moment, tree: &Tree) -> bool {
    let as_was = |(path, its): (&String, &Entry)| {
        let found = tree.get(path);
        found.is_some_and(|found| {
            (found.number, found.mode, found.content.is_none()) == (its.number, its.mode, its.directory)
        })
    };
    moment.names.len() == tree.len() && moment.names.iter().all(as_was)
}

fn walk(files: &mut FileSystem) -> Result<Tree, String> {
    let mut tree = Tree::new();
    let mut directories = vec![String::new()];
    while let Some(directory) = directories.pop() {
        let listed = files.list(&ROOT, directory.as_bytes(), b"", 4096).map_err(|error| error.to_string())?;
        for entry in listed {
            let name = String::from_utf8(entry.name).map_err(|error| error.to_string())?;
            let path = format!("{directory}/{name}");
            let permissions = entry.attributes.permissions;
            let is_directory = permissions.is_directory();
            let content = (!is_directory).then(Vec::new);
            let found = Found { number: entry.attributes.inode.0, mode: permissions.mode & 0o7777, content };
            if is_directory {
                directories.push(path.clone());
            }
            tree.insert(path, found);
        }
    }
    Ok(tree)
}
