//! Whose blocks are whose: what may never be given out as the data of a file.

use std::collections::BTreeMap;
use std::fmt;

use super::{Ext4, Ext4Error, MAX_RANGES};

/// What a block belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Owner {
    /// A superblock, the group descriptors behind it and the room to grow that these have.
    GroupHead(u32),
    /// A group's block bitmap.
    BlockBitmap(u32),
    /// A group's inode bitmap.
    InodeBitmap(u32),
    /// A group's inode table.
    InodeTable(u32),
    /// A file of the file system's own: the journal, quotas, the room to grow, orphans.
    Hidden(u32),
    /// The extent tree of some file.
    ExtentTree,
    /// Some directory.
    Directory,
    /// The target of some symbolic link.
    Link,
    /// Extended attributes of some inode.
    Attributes,
    /// The data of a file, by its inode.
    Data(u32),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GroupHead(group) => write!(f, "the superblock or the descriptors in group {group}"),
            Self::BlockBitmap(group) => write!(f, "the block bitmap of group {group}"),
            Self::InodeBitmap(group) => write!(f, "the inode bitmap of group {group}"),
            Self::InodeTable(group) => write!(f, "the inode table of group {group}"),
            Self::Hidden(inode) => {
                let what = match inode {
                    3 | 4 => "a quota file",
                    7 => "the room to grow",
                    8 => "the journal",
                    _ => "a file of the file system's own",
                };
                write!(f, "{what} (inode {inode})")
            }
            Self::ExtentTree => f.write_str("an extent tree"),
            Self::Directory => f.write_str("a directory"),
            Self::Link => f.write_str("a symbolic link"),
            Self::Attributes => f.write_str("extended attributes"),
            Self::Data(inode) => write!(f, "the data of inode {inode}"),
        }
    }
}

/// Ranges of blocks, none of which overlap, each with its owner.
#[derive(Default, Debug)]
pub(super) struct Ranges(BTreeMap<u64, (u64, Owner)>);

impl Ranges {
    /// Who owns one of the `count` blocks from `first`, which do not wrap.
    pub(super) fn owner(&self, first: u64, count: u64) -> Option<Owner> {
        let (_, &(end, owner)) = self.0.range(..first.saturating_add(count)).next_back()?;
        (end > first).then_some(owner)
    }

    /// Adds a range, joined with what touches it and has the same owner; refused if it overlaps a range of another.
    pub(super) fn add(&mut self, owner: Owner, first: u64, count: u64) -> Result<(), Ext4Error> {
        if self.0.len() >= MAX_RANGES {
            return Err(Ext4Error::TooMuch {
                what: "the number of pieces in which the blocks in use lie",
                value: self.0.len() as u64 + 1,
                most: MAX_RANGES as u64,
                advice: "close files, or open the volume again",
            });
        }
        let (mut start, mut end) = (first, first.saturating_add(count));
        let mut overlapped = Vec::new();
        for (&other, &(other_end, whose)) in self.0.range(..end).rev() {
            if other_end <= first {
                break;
            }
            if whose != owner {
                return Err(Ext4Error::Overlap { claimant: owner, first, count, owner: whose });
            }
            overlapped.push(other);
        }
        let left =
            self.0.range(..start).next_back().filter(|(_, (stop, whose))| *stop == start && *whose == owner);
        overlapped.extend(left.map(|(first, _)| *first));
        overlapped.extend(self.0.get(&end).filter(|(_, whose)| *whose == owner).map(|_| end));
        for other in overlapped {
            let (other_end, _) = self.0.remove(&other).unwrap_or((end, owner));
            (start, end) = (start.min(other), end.max(other_end));
        }
        self.0.insert(start, (end, owner));
        Ok(())
    }

    /// Takes away a range that was added, and nothing that touches it.
    pub(super) fn remove(&mut self, first: u64, count: u64) {
        let end = first.saturating_add(count);
        let Some((&start, &(stop, owner))) = self.0.range(..end).next_back() else { return };
        if stop <= first {
            return;
        }
        self.0.remove(&start);
        if start < first {
            self.0.insert(start, (first, owner));
        }
        if end < stop {
            self.0.insert(end, (stop, owner));
        }
    }
}

impl Ext4 {
    /// Refuses blocks that do not lie in the file system, or where its own are; of data, also blocks that are known to be
    /// metadata of files, and of such metadata, blocks that are the data of an opened file.
    pub(super) fn reserve(&self, claimant: Owner, first: u64, count: u64) -> Result<(), Ext4Error> {
        let superblock = &self.superblock;
        let end = first.checked_add(count).filter(|end| *end <= superblock.blocks);
        if first < superblock.first_data_block || end.is_none() {
            return Err(Ext4Error::Outside { claimant, first, count, blocks: superblock.blocks });
        }
        let other = if matches!(claimant, Owner::Data(_)) { &self.touched } else { &self.data };
        match self.groups.zone.owner(first, count).or_else(|| other.owner(first, count)) {
            Some(owner) => Err(Ext4Error::Overlap { claimant, first, count, owner }),
            None => Ok(()),
        }
    }

    /// Takes note of metadata of a file before it is read.
    pub(super) fn touch(&mut self, owner: Owner, first: u64, count: u64) -> Result<(), Ext4Error> {
        self.reserve(owner, first, count)?;
        self.touched.add(owner, first, count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWNERS: [Owner; 3] = [Owner::Directory, Owner::ExtentTree, Owner::Data(12)];

    proptest! {
        /// Against a table with one entry for each block.
        #[test]
        fn ranges_agree_with_a_table_of_blocks(
            steps in proptest::collection::vec((0usize..4, 0u64..64, 1u64..12), 1..60)
        ) {
            let mut ranges = Ranges::default();
            let mut table: Vec<Option<Owner>> = vec![None; 80];
            for (what, first, count) in steps {
                let span = usize::try_from(first).unwrap()..usize::try_from(first + count).unwrap();
                if let Some(&owner) = OWNERS.get(what) {
                    let free = table[span.clone()].iter().all(|whose| whose.is_none_or(|whose| whose == owner));
                    prop_assert_eq!(ranges.add(owner, first, count).is_ok(), free);
                    if free {
                        table[span].fill(Some(owner));
                    }
                } else if table[span.clone()].iter().all(|whose| *whose == table[span.start]) {
                    ranges.remove(first, count);
                    table[span].fill(None);
                }
                for (block, whose) in table.iter().enumerate() {
                    prop_assert_eq!(ranges.owner(block as u64, 1), *whose);
                }
                let joined = table.chunk_by(|one, other| one == other).filter(|run| run[0].is_some()).count();
                prop_assert_eq!(ranges.0.len(), joined, "what touches and is of one owner is joined");
            }
        }
    }
}
