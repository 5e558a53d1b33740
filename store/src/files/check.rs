//! The check of everything: `portcullis fsck`.

use std::collections::BTreeMap;
use std::fmt;

use driver::disk::Disk;

use super::inode::InodeNumber;
use super::metadata::{Metadata, Piece, User};
use super::path::is_name;
use super::{CACHE, FileError, FileSystem, check_file};
use crate::StoreError;
use crate::catalog::caught;
use crate::container::{self, Container, Unsound};
use crate::shadow::SharedShadow;
use crate::space::Space;
use crate::superblock::{Kind, Layout, Superblock};

/// Something that [`FileSystem::check`] does not like.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Finding {
    /// A copy of the superblock, 0 at the start, 1 at the end.
    Superblock {
        /// Which copy.
        copy: usize,
        /// What is wrong.
        what: String,
    },
    /// A block of the metadata area, or the database in it.
    Metadata {
        /// What is wrong, and where.
        what: String,
    },
    /// A file or directory.
    Inode {
        /// Which.
        number: InodeNumber,
        /// What is wrong.
        what: String,
    },
    /// A name.
    Name {
        /// The directory that it is in.
        directory: InodeNumber,
        /// The name, made printable.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// A sum that is not what it should be.
    Accounting {
        /// What is wrong.
        what: String,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superblock { copy, what } => write!(f, "superblock copy {copy}: {what}"),
            Self::Metadata { what } | Self::Accounting { what } => f.write_str(what),
            Self::Inode { number, what } => write!(f, "inode {number}: {what}"),
            Self::Name { directory, name, what } => write!(f, "name {name:?} in inode {directory}: {what}"),
        }
    }
}

/// The most findings that one check reports.
const MOST_FINDINGS: usize = 1000;

/// What the check remembers of an inode: bounded by the metadata area, as each has a record there.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    directory: bool,
    /// The directory that its name is in; 0 if none.
    parent: u64,
    orphan: bool,
    /// The walk to the root that passed here last.
    walk: u64,
    /// A walk from here reached the root.
    connected: bool,
}

struct Check<'a> {
    superblock: &'a Superblock,
    layout: &'a Layout,
    inodes: BTreeMap<u64, Seen>,
    users: BTreeMap<u32, User>,
    space: Space,
    findings: Vec<Finding>,
}

impl<'a> Check<'a> {
    fn new(superblock: &'a Superblock) -> Self {
        Self {
            superblock,
            layout: &superblock.layout,
            inodes: BTreeMap::new(),
            users: BTreeMap::new(),
            space: Space::new(superblock.layout.units),
            findings: Vec::new(),
        }
    }

    /// Everything that is on the disk. Nothing may be unsynced.
    fn all(&mut self, metadata: &mut Metadata, shadow: &SharedShadow) -> Result<(), FileError> {
        for unsound in container::verify(shadow, self.superblock) {
            self.complain(match unsound {
                Unsound::Superblock { copy, what } => Finding::Superblock { copy, what },
                Unsound::Metadata { what } => Finding::Metadata { what },
            });
        }
        if !self.findings.is_empty() {
            return Ok(()); // the database would stumble over them
        }
        if !metadata.check_integrity()? {
            let what = "the metadata database had to be repaired".to_owned();
            self.complain(Finding::Metadata { what });
        }
        metadata.each_file(|number, record, pieces| self.see_file(number, record, pieces))?;
        metadata.each_name(|directory, name, number| self.see_name(directory, name, number))?;
        for number in metadata.orphans(usize::MAX)? {
            match self.inodes.get_mut(&number) {
                Some(seen) => seen.orphan = true,
                None => self.inode(number, "it is to be removed and does not exist".to_owned()),
            }
        }
        self.tree();
        self.sums(metadata)
    }

    fn sums(&mut self, metadata: &mut Metadata) -> Result<(), FileError> {
        for (uid, user) in metadata.users(None, usize::MAX)? {
            let real = self.users.remove(&uid).unwrap_or_default();
            self.accounting((real.units, real.inodes) != (user.units, user.inodes), || {
                format!(
                    "user {uid} is said to have {} allocation units and {} files and directories, it has {} and {}",
                    user.units, user.inodes, real.units, real.inodes
                )
            });
        }
        for (uid, user) in std::mem::take(&mut self.users) {
            self.accounting(true, || {
                format!("user {uid} has {} files and directories and no account", user.inodes)
            });
        }
        let counters = metadata.counters;
        let (inodes, last) = (self.inodes.len() as u64, self.inodes.keys().next_back().copied().unwrap_or(0));
        self.accounting(counters.inodes != inodes, || {
            format!("there are {inodes} inodes, not {}", counters.inodes)
        });
        self.accounting(counters.next_inode <= last, || {
            format!("inode {last} exists, and {} is to be given next", counters.next_inode)
        });
        let weight = metadata.weigh()?;
        self.accounting(counters.weight != weight, || {
            format!("the records are said to have {} bytes, they have {weight}", counters.weight)
        });
        Ok(())
    }

    fn complain(&mut self, finding: Finding) {
        if self.findings.len() < MOST_FINDINGS {
            self.findings.push(finding);
        }
    }

    fn inode(&mut self, number: u64, what: String) {
        self.complain(Finding::Inode { number: InodeNumber(number), what });
    }

    fn accounting(&mut self, wrong: bool, what: impl FnOnce() -> String) {
        if wrong {
            self.complain(Finding::Accounting { what: what() });
        }
    }

    fn see_file(&mut self, number: u64, record: Option<&[u8]>, pieces: &[Piece]) {
        let mut seen = Seen::default();
        match check_file(record, pieces, self.layout, &mut self.space) {
            Ok(inode) => {
                let user = self.users.entry(inode.permissions.uid).or_default();
                user.inodes += 1;
                user.units = user.units.saturating_add(inode.units);
                seen.directory = inode.is_directory();
            }
            Err(what) => self.inode(number, what),
        }
        if record.is_some() {
            self.inodes.insert(number, seen);
        }
    }

    fn see_name(&mut self, directory: u64, name: &[u8], number: u64) {
        let parent = self.inodes.get(&directory).is_some_and(|seen| seen.directory);
        let what = match self.inodes.get_mut(&number) {
            _ if !is_name(name) => "it cannot be one",
            _ if !parent => "it is in no directory",
            None => "it is for an inode that does not exist",
            Some(_) if number == InodeNumber::ROOT.0 => "it is for the root directory",
            Some(seen) if seen.parent != 0 => "it is for an inode that has another name too",
            Some(seen) => {
                seen.parent = directory;
                return;
            }
        };
        let name = String::from_utf8_lossy(name).into_owned();
        self.complain(Finding::Name { directory: InodeNumber(directory), name, what: what.to_owned() });
    }

    /// Each inode has a name or is an orphan, and each directory is below the root.
    fn tree(&mut self) {
        let numbers: Vec<u64> = self.inodes.keys().copied().collect();
        for number in numbers {
            let Some(seen) = self.inodes.get(&number).copied() else { continue };
            let root = number == InodeNumber::ROOT.0;
            if root && !seen.directory {
                self.inode(number, "the root is no directory".to_owned());
            }
            if !root && (seen.parent != 0) == seen.orphan {
                let what = if seen.orphan { "it has a name and is to be removed" } else { "it has no name" };
                self.inode(number, what.to_owned());
            } else if !seen.orphan && !self.connected(number) {
                self.inode(number, "it is not below the root".to_owned());
            }
        }
        if !self.inodes.contains_key(&InodeNumber::ROOT.0) {
            self.inode(InodeNumber::ROOT.0, "there is no root".to_owned());
        }
    }

    /// Whether the way up ends at the root. Each inode is passed once by all walks that get through, and twice at most
    /// by one that does not.
    fn connected(&mut self, from: u64) -> bool {
        let mut way = Vec::new();
        let mut at = from;
        let reached = loop {
            if at == InodeNumber::ROOT.0 {
                break true;
            }
            let Some(seen) = self.inodes.get_mut(&at) else { break false };
            if seen.connected {
                break true;
            }
            if seen.walk == from || seen.parent == 0 {
                break false;
            }
            seen.walk = from;
            way.push(at);
            at = seen.parent;
        };
        if reached {
            for number in way {
                if let Some(seen) = self.inodes.get_mut(&number) {
                    seen.connected = true;
                }
            }
        }
        reached
    }
}

impl FileSystem {
    /// Reads all metadata and says what is wrong with it: damaged blocks, extents that overlap or lie outside the data
    /// blocks, names and inodes that do not fit together, directories that cannot be reached, wrong sums, and
    /// differences to what this file system believes. Nothing, if all is well. Makes everything durable first.
    pub fn check(&mut self) -> Result<Vec<Finding>, FileError> {
        self.sync()?;
        let mut check = Check::new(&self.superblock);
        check.all(&mut self.metadata, &self.shadow)?;
        for number in self.metadata.orphans(usize::MAX)? {
            let open = self.open.get(&number).is_some_and(|open| open.orphan);
            check.accounting(!open, || format!("inode {number} is to be removed and nobody has it open"));
        }
        let same = check.space == self.pool.all();
        check.accounting(!same, || "the free space by the disk is not that in memory".to_owned());
        Ok(check.findings)
    }

    /// The same for a file system that is not open, and perhaps cannot be opened. An error if not even the metadata
    /// database can.
    pub fn inspect(disk: Box<dyn Disk>) -> Result<Vec<Finding>, FileError> {
        let inspected = caught(|| {
            let Container { shadow, superblock, .. } = Container::open(Kind::Files, disk)?;
            let mut metadata = Metadata::open(shadow.clone(), superblock.layout, CACHE)?;
            let mut check = Check::new(&superblock);
            check.all(&mut metadata, &shadow)?;
            Ok(check.findings)
        });
        inspected.unwrap_or_else(|what| Err(StoreError::Damaged { what }.into()))
    }
}
