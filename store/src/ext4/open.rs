//! Files that were opened: where they are, and that nobody else is there.

use driver::disk::Disk;
use tpt::LbaRange;

use super::error::damaged;
use super::extents::Extent;
use super::inode::{Inode, flags};
use super::walk::{Found, check_served, denied};
use super::zone::Owner;
use super::{Attributes, Ext4, Ext4Error, Kind, MAX_OPEN, MAX_RANGES};
use crate::permission::{Credentials, Rights, SET_GID, SET_UID};

/// A part of a file that lies together on the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileExtent {
    /// The first byte of the file that is in it.
    pub offset: u64,
    /// Where it is, in blocks of the device.
    pub range: LbaRange,
}

/// Why a part of a file has no blocks that may be used. It reads as zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HoleKind {
    /// There are none.
    Missing,
    /// They were allocated and never written: what they hold is somebody's old data.
    Unwritten,
}

/// A part of a file that has no blocks that may be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hole {
    /// The first byte.
    pub offset: u64,
    /// How many bytes, at least one.
    pub bytes: u64,
    /// Why.
    pub kind: HoleKind,
}

/// A file of an ext4 as it is used by extents. Its length and its extents stay what they are: this program changes no
/// metadata of an ext4, neither its length nor its time of change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenedFile {
    /// Its inode.
    pub inode: u32,
    /// Its length in bytes. The last extent may reach beyond it, by less than a block of the device.
    pub length: u64,
    /// A block of the device has `1 << device_shift` bytes.
    pub device_shift: u8,
    /// Where it is, by rising offset. These may be read and, if it was opened for that, written, up to the length.
    pub extents: Vec<FileExtent>,
    /// What reads as zeros and may not be written, by rising offset. With the extents it makes up the file.
    pub holes: Vec<Hole>,
    /// What else is known of it.
    pub attributes: Attributes,
}

impl OpenedFile {
    /// Refuses a write that would need blocks, or a greater length.
    ///
    /// # Errors
    /// [`Ext4Error::NeedsAllocation`], with the first bytes that have no blocks.
    pub fn check_writable(&self, offset: u64, bytes: u64) -> Result<(), Ext4Error> {
        let needs = |offset, bytes| Err(Ext4Error::NeedsAllocation { inode: self.inode, offset, bytes });
        let end = offset.saturating_add(bytes);
        if bytes == 0 {
            return Ok(());
        }
        let within = |hole: &&Hole| hole.offset < end && hole.offset + hole.bytes > offset;
        if let Some(hole) = self.holes.iter().find(within) {
            let first = hole.offset.max(offset);
            return needs(first, (hole.offset + hole.bytes).min(end) - first);
        }
        if end > self.length {
            let first = self.length.max(offset);
            return needs(first, bytes - (first - offset));
        }
        Ok(())
    }
}

/// What is kept of a file while it is open.
#[derive(Debug)]
pub(super) struct Open {
    times: u64,
    extents: Vec<Extent>,
}

impl Ext4 {
    /// Opens what a path led to.
    pub(super) fn open_found(
        &mut self,
        disk: &mut dyn Disk,
        found: Found,
        who: &Credentials<'_>,
        wanted: Rights,
    ) -> Result<OpenedFile, Ext4Error> {
        let Found { inode, path } = found;
        let asks = wanted.contains(Rights::READ) || wanted.contains(Rights::WRITE);
        let wanted = if asks { wanted } else { wanted | Rights::READ };
        let permissions = self.permissions(disk, &inode)?;
        if !permissions.allows(who, wanted) {
            let what = match (wanted.contains(Rights::READ), wanted.contains(Rights::WRITE)) {
                (true, true) => "read and write",
                (_, true) => "write",
                _ => "read",
            };
            return Err(denied(who, what, path, &permissions));
        }
        if inode.kind != Kind::File {
            let wanted = Kind::File.name();
            return Err(Ext4Error::WrongKind { inode: inode.number, found: inode.kind.name(), wanted });
        }
        check_served(&inode)?;
        if wanted.contains(Rights::WRITE) {
            self.check_write(disk, &inode)?;
        }
        let mapping = self.mapping(disk, &inode)?;
        let (extents, holes) = self.within_length(&inode, &mapping.extents)?;
        self.claim(inode.number, mapping.extents)?;
        let attributes = Attributes::new(&inode, permissions);
        let (inode, length, device_shift) = (inode.number, inode.length, self.device_shift);
        Ok(OpenedFile { inode, length, device_shift, extents, holes, attributes })
    }

    /// Refuses what cannot be written without changing metadata, or must not be.
    fn check_write(&mut self, disk: &mut dyn Disk, inode: &Inode) -> Result<(), Ext4Error> {
        if let Some(why) = &self.superblock.no_writes {
            return Err(Ext4Error::ReadOnly { why: why.clone() });
        }
        let what = if inode.has(flags::IMMUTABLE) {
            "is immutable: chattr -i allows to write it".to_owned()
        } else if inode.has(flags::APPEND) {
            "can only be appended to, which needs blocks: chattr -a allows to write it".to_owned()
        } else if inode.mode & (SET_UID | SET_GID) != 0 {
            let mode = inode.mode & 0o7777;
            format!(
                "runs as its owner or group (mode {mode:04o}), and a write has to end that: chmod ug-s it first"
            )
        } else if self.has_capability(disk, inode)? {
            "gives capabilities to whoever runs it, and a write has to end that: setcap -r it first"
                .to_owned()
        } else {
            return Ok(());
        };
        Err(Ext4Error::Refused { inode: inode.number, what })
    }

    /// The extents up to the file's length, in blocks of the device, and what has none.
    fn within_length(
        &self,
        inode: &Inode,
        extents: &[Extent],
    ) -> Result<(Vec<FileExtent>, Vec<Hole>), Ext4Error> {
        let block_shift = self.superblock.block_shift;
        let shift = block_shift - self.device_shift;
        let mut ranges = Vec::new();
        let mut holes: Vec<Hole> = Vec::new();
        let mut add_hole = |offset: u64, end: u64, kind| {
            let touching = |last: &&mut Hole| last.offset + last.bytes == offset && last.kind == kind;
            match holes.last_mut().filter(touching) {
                _ if offset >= end => {}
                Some(last) => last.bytes += end - offset,
                None => holes.push(Hole { offset, bytes: end - offset, kind }),
            }
        };
        let mut next = 0;
        for extent in extents {
            let offset = extent.logical << block_shift;
            if offset >= inode.length {
                break;
            }
            add_hole(next, offset, HoleKind::Missing);
            next = ((extent.logical + extent.count) << block_shift).min(inode.length);
            if !extent.written {
                add_hole(offset, next, HoleKind::Unwritten);
                continue;
            }
            let count = (next - offset).div_ceil(1 << self.device_shift);
            let range = LbaRange::new(extent.physical << shift, count);
            let range = range.ok_or_else(|| damaged(inode.place(), "an extent is empty"))?;
            ranges.push(FileExtent { offset, range });
        }
        add_hole(next, inode.length, HoleKind::Missing);
        Ok((ranges, holes))
    }

    /// Takes the blocks of a file that is opened: nobody else's, and the same as before if it is open already.
    fn claim(&mut self, inode: u32, extents: Vec<Extent>) -> Result<(), Ext4Error> {
        if let Some(open) = self.open.get_mut(&inode) {
            if open.extents != extents {
                return Err(Ext4Error::Changed);
            }
            open.times += 1;
            return Ok(());
        }
        let too_much = |what, value: usize, most: usize| {
            Err(Ext4Error::TooMuch { what, value: value as u64, most: most as u64, advice: "close some" })
        };
        if self.open.len() >= MAX_OPEN {
            return too_much("the number of open files", self.open.len() + 1, MAX_OPEN);
        }
        let held = self.held + extents.len();
        if held > MAX_RANGES {
            return too_much("the number of extents of open files", held, MAX_RANGES);
        }
        let owner = Owner::Data(inode);
        for (index, extent) in extents.iter().enumerate() {
            if let Err(error) = self.data.add(owner, extent.physical, extent.count) {
                for extent in extents.iter().take(index) {
                    self.data.remove(extent.physical, extent.count);
                }
                return Err(error);
            }
        }
        self.held = held;
        self.open.insert(inode, Open { times: 1, extents });
        Ok(())
    }

    /// Gives back what one [`Ext4::open_file`] of this inode took. What is not open is no error.
    pub fn close(&mut self, inode: u32) {
        let Some(open) = self.open.get_mut(&inode) else { return };
        open.times -= 1;
        if open.times > 0 {
            return;
        }
        let Some(open) = self.open.remove(&inode) else { return };
        self.held -= open.extents.len();
        for extent in open.extents {
            self.data.remove(extent.physical, extent.count);
        }
    }

    /// How many files are open.
    pub fn open_files(&self) -> usize {
        self.open.len()
    }
}
