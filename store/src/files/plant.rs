//! Rows written past all that this module checks: what tests and fuzzing do to a file system.

use driver::disk::Disk;

use super::CACHE;
use super::metadata::{Metadata, Piece, User};
use crate::StoreError;
use crate::container::Container;
use crate::space::Run;
use crate::superblock::Kind;

/// A row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Row {
    /// A number and its record.
    Inode(u64, Vec<u8>),
    /// A number that has none any more.
    NoInode(u64),
    /// A directory, a name, and the inode that has it.
    Name(u64, Vec<u8>, u64),
    /// An inode, where in it, the first unit and how many.
    Piece(u64, u64, u64, u64),
    /// An inode without a name.
    Orphan(u64),
    /// A user and what it has and may have.
    User(u32, [u64; 4]),
    /// The next inode's number.
    NextInode(u64),
}

/// Writes the rows, durably, into the file system on `disk`.
pub(crate) fn plant(disk: Box<dyn Disk>, rows: &[Row]) -> Result<(), StoreError> {
    let Container { shadow, superblock, .. } = Container::open(Kind::Files, disk)?;
    let mut metadata = Metadata::open(shadow, superblock.layout, CACHE)?;
    for row in rows {
        match row {
            Row::Inode(number, record) => metadata.put_record(*number, record)?,
            Row::NoInode(number) => metadata.remove_inode(*number)?,
            Row::Name(directory, name, number) => metadata.put_name(*directory, name, *number)?,
            Row::Piece(number, at, first, count) => {
                metadata.put_piece(*number, Piece { at: *at, run: Run { first: *first, count: *count } })?;
            }
            Row::Orphan(number) => metadata.put_orphan(*number)?,
            Row::User(uid, [units, inodes, unit_limit, inode_limit]) => {
                let (units, inodes, unit_limit, inode_limit) = (*units, *inodes, *unit_limit, *inode_limit);
                metadata.put_user(*uid, User { units, inodes, unit_limit, inode_limit })?;
            }
            Row::NextInode(number) => metadata.counters.next_inode = *number,
        }
    }
    metadata.sync()
}
