//! The check of everything: `portcullis fsck`.

use std::collections::BTreeMap;
use std::fmt;

use super::inode::{Inode, InodeNumber};
use super::metadata::{Piece, User};
use super::path::is_name;
use super::{FileError, FileSystem};
use crate::container::{self, Unsound};
use crate::space::Space;
use crate::superblock::Layout;

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
    units: u64,
    /// What its pieces say.
    pieces: u64,
    /// The directory that its name is in; 0 if none.
    parent: u64,
    orphan: bool,
    /// The walk to the root that passed here last.
    walk: u64,
    /// A walk from here reached the root.
    connected: bool,
}

struct Check<'a> {
    layout: &'a Layout,
    inodes: BTreeMap<u64, Seen>,
    users: BTreeMap<u32, User>,
    space: Space,
    findings: Vec<Finding>,
}

impl Check<'_> {
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

    fn see_inode(&mut self, number: u64, record: &[u8]) {
        match Inode::decode(record, self.layout) {
            Ok(inode) => {
                let (uid, units) = (inode.permissions.uid, inode.units);
                let user = self.users.entry(uid).or_default();
                user.inodes += 1;
                user.units = user.units.saturating_add(units);
                let seen = Seen { directory: inode.is_directory(), units, ..Seen::default() };
                self.inodes.insert(number, seen);
            }
            Err(what) => {
                self.inodes.insert(number, Seen::default());
                self.inode(number, what);
            }
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

    fn see_piece(&mut self, number: u64, piece: Piece) {
        let Piece { at, run } = piece;
        if !self.space.take(run) {
            self.inode(
                number,
                format!(
                    "its {} allocation units from {} are another's too, or none of the disk's",
                    run.count, run.first
                ),
            );
        }
        let Some(seen) = self.inodes.get_mut(&number) else {
            return self.inode(number, "it has an extent and does not exist".to_owned());
        };
        let expected = seen.pieces;
        seen.pieces = at.saturating_add(run.count);
        if at != expected {
            self.inode(number, format!("its extent at unit {at} should be at unit {expected}"));
        }
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
            if seen.pieces != seen.units {
                self.inode(
                    number,
                    format!("it should have {} allocation units, it has {}", seen.units, seen.pieces),
                );
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
        let layout = self.superblock.layout;
        let mut check = Check {
            layout: &layout,
            inodes: BTreeMap::new(),
            users: BTreeMap::new(),
            space: Space::new(layout.units),
            findings: Vec::new(),
        };
        for unsound in container::verify(&self.shadow, &self.superblock) {
            check.complain(match unsound {
                Unsound::Superblock { copy, what } => Finding::Superblock { copy, what },
                Unsound::Metadata { what } => Finding::Metadata { what },
            });
        }
        if !check.findings.is_empty() {
            return Ok(check.findings); // the database would stumble over them
        }
        if !self.metadata.check_integrity()? {
            let what = "the metadata database had to be repaired".to_owned();
            check.complain(Finding::Metadata { what });
        }
        self.metadata.each_inode(|number, record| check.see_inode(number, record))?;
        self.metadata.each_name(|directory, name, number| check.see_name(directory, name, number))?;
        self.metadata.each_piece(|number, piece| check.see_piece(number, piece))?;
        for number in self.metadata.orphans(usize::MAX)? {
            match check.inodes.get_mut(&number) {
                Some(seen) => seen.orphan = true,
                None => check.inode(number, "it is to be removed and does not exist".to_owned()),
            }
            let open = self.open.get(&number).is_some_and(|open| open.orphan);
            check.accounting(!open, || format!("inode {number} is to be removed and nobody has it open"));
        }
        check.tree();
        self.check_sums(&mut check)?;
        Ok(check.findings)
    }

    fn check_sums(&mut self, check: &mut Check<'_>) -> Result<(), FileError> {
        for (uid, user) in self.metadata.users(None, usize::MAX)? {
            let real = check.users.remove(&uid).unwrap_or_default();
            check.accounting((real.units, real.inodes) != (user.units, user.inodes), || {
                format!(
                    "user {uid} is said to have {} allocation units and {} files and directories, it has {} and {}",
                    user.units, user.inodes, real.units, real.inodes
                )
            });
        }
        for (uid, user) in std::mem::take(&mut check.users) {
            check.accounting(true, || {
                format!("user {uid} has {} files and directories and no account", user.inodes)
            });
        }
        let counters = self.metadata.counters;
        let (inodes, last) =
            (check.inodes.len() as u64, check.inodes.keys().next_back().copied().unwrap_or(0));
        check.accounting(counters.inodes != inodes, || {
            format!("there are {inodes} inodes, not {}", counters.inodes)
        });
        check.accounting(counters.next_inode <= last, || {
            format!("inode {last} exists, and {} is to be given next", counters.next_inode)
        });
        let weight = self.metadata.weigh()?;
        check.accounting(counters.weight != weight, || {
            format!("the records are said to have {} bytes, they have {weight}", counters.weight)
        });
        let same = check.space == self.pool.all();
        check.accounting(!same, || "the free space by the disk is not that in memory".to_owned());
        Ok(())
    }
}
