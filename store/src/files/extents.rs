//! Files that are open: their blocks and their length.

use tpt::LbaRange;

use super::error::FileError;
use super::inode::{Attributes, Inode, InodeNumber, Timestamp};
use super::metadata::Piece;
use super::names::Node;
use super::{Extent, FileSystem, MAX_FILE_EXTENTS, Open};
use crate::StoreError;
use crate::permission::Credentials;
use crate::space::Run;

/// A file that was opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opened {
    /// Its number, for all further calls.
    pub inode: InodeNumber,
    /// Whether it was made by this.
    pub created: bool,
    /// As of the last [`FileSystem::report`].
    pub attributes: Attributes,
    /// Where it lies, in the order of its content, without gaps.
    pub extents: Vec<Extent>,
    /// It is to be emptied, and others have it open: to be carried out as [`FileSystem::truncate`] says.
    pub truncation: Option<Truncation>,
}

/// What is to be given up of a file; a plan, of which nothing was done yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Truncation {
    /// Of which file.
    pub inode: InodeNumber,
    /// Its length afterwards.
    pub length: u64,
    /// The allocation units that it had when the plan was made.
    units: u64,
    /// Of its opens and truncations.
    epoch: u64,
    /// What it has no longer, afterwards.
    pub given_up: Vec<Extent>,
    /// The last block that it keeps, if a part of it is behind the end: that part is zeroed, so nobody may write there
    /// meanwhile.
    pub tail: Option<Extent>,
}

impl FileSystem {
    /// Counts one more open of a file; empties it, or plans to.
    pub(super) fn opened(
        &mut self,
        node: Node,
        write: bool,
        truncate: bool,
        who: &Credentials<'_>,
    ) -> Result<Opened, FileError> {
        let Node { number, mut inode } = node;
        let before = inode.clone();
        let alone = self.open.get(&number).is_none_or(|open| open.count == 0);
        if self.open.get(&number).is_some_and(|open| open.count == u32::MAX) {
            return Err(FileError::OpenTooOften(InodeNumber(number)));
        }
        self.open.entry(number).or_default().count += 1;
        self.next_epoch(number);
        let mut truncation = None;
        if truncate && inode.units > 0 {
            let plan = self.plan(number, &inode, 0)?;
            if alone {
                self.carry_out(&plan, &mut inode)?;
            } else {
                truncation = Some(plan);
            }
        }
        if write {
            self.clean_tail(number, &mut inode)?;
            if !who.is_root() && who.uid != inode.permissions.uid {
                inode.permissions.mode = inode.permissions.disarmed();
            }
        }
        if inode != before {
            self.metadata.put_inode(number, &inode)?;
        }
        if write {
            self.metadata.set_in_use(true);
            let room = inode.length < inode.units << self.superblock.layout.unit_shift;
            if room && !self.metadata.use_is_durable() {
                // What is written behind its end from now on may stay there when its length does not come to be known; that
                // it may is to be found then. Once that is durable it holds for all files, until the file system is closed.
                self.sync()?;
            }
        }
        let extents = self.extents_from(number, 0, usize::MAX)?;
        Ok(Opened {
            inode: InodeNumber(number),
            created: false,
            attributes: inode.attributes(InodeNumber(number), &self.superblock.layout),
            extents,
            truncation,
        })
    }

    /// At most `limit` extents of a file that begin at byte `offset` or later.
    pub fn extents(
        &mut self,
        inode: InodeNumber,
        offset: u64,
        limit: usize,
    ) -> Result<Vec<Extent>, FileError> {
        self.existing(inode)?;
        self.extents_from(inode.0, offset.div_ceil(self.allocation_unit()), limit)
    }

    fn extents_from(&mut self, number: u64, from: u64, limit: usize) -> Result<Vec<Extent>, FileError> {
        let pieces = self.metadata.pieces(number, from, limit)?;
        pieces.into_iter().map(|piece| Ok(self.extent(number, piece)?)).collect()
    }

    /// A piece as the world sees it. That it lies on the disk was seen when the file system was opened.
    fn extent(&self, number: u64, piece: Piece) -> Result<Extent, StoreError> {
        let layout = &self.superblock.layout;
        let unit = layout.unit_blocks();
        let blocks = piece.run.first.checked_add(piece.run.count).filter(|end| *end <= layout.units);
        let blocks =
            blocks.and_then(|_| LbaRange::new(layout.data + piece.run.first * unit, piece.run.count * unit));
        let damaged = || StoreError::Damaged { what: format!("an extent of inode {number} lies nowhere") };
        let offset = piece.at.checked_mul(1 << layout.unit_shift).ok_or_else(damaged)?;
        Ok(Extent { offset, blocks: blocks.ok_or_else(damaged)? })
    }

    /// Gives a file at least `bytes` bytes of blocks and returns those that are new, in order; none if it has as many.
    /// Its length stays. What is new reads as zero. It counts for the file's owner. What is behind the file's end when it is
    /// released for the last time is given back.
    pub fn grow(&mut self, inode: InodeNumber, bytes: u64) -> Result<Vec<Extent>, FileError> {
        self.extend(inode, bytes, false)
    }

    /// As [`FileSystem::grow`], and the file keeps so much when it is released, until it is made shorter.
    pub fn reserve(&mut self, inode: InodeNumber, bytes: u64) -> Result<Vec<Extent>, FileError> {
        self.extend(inode, bytes, true)
    }

    fn extend(&mut self, inode: InodeNumber, bytes: u64, keep: bool) -> Result<Vec<Extent>, FileError> {
        self.begin_adding()?;
        let mut node = self.existing(inode)?;
        let layout = self.superblock.layout;
        let wanted = bytes.div_ceil(1 << layout.unit_shift);
        if wanted > layout.units {
            return Err(self.no_space(wanted - node.units));
        }
        let reserved = if keep { wanted.max(node.reserved) } else { node.reserved };
        let Some(more) = wanted.checked_sub(node.units).filter(|more| *more > 0) else {
            if reserved > node.reserved {
                let changed = self.now();
                self.metadata.put_inode(inode.0, &Inode { reserved, changed, ..node })?;
            }
            return Ok(Vec::new());
        };
        let uid = node.permissions.uid;
        let user = self.metadata.user(uid)?;
        self.check_quota(uid, &user, more, 0)?;
        let last = self.metadata.last_piece(inode.0, u64::MAX)?;
        let after = last.map(|last| last.run.first + last.run.count);
        if more > self.pool.free() && self.pool.waiting() > 0 {
            self.sync()?; // what was given up can be used after that
        }
        let taken = self.pool.allocate(more, after).ok_or_else(|| self.no_space(more))?;
        if let Err(error) = self.check_pieces(&node, taken.len() as u64) {
            self.pool.undo(&taken);
            return Err(error);
        }
        for piece in taken.iter().filter(|piece| piece.dirty) {
            if let Err(error) = self.zero(piece.run) {
                self.pool.undo(&taken);
                return Err(error.into());
            }
        }
        let new = pieces_at(node.units, taken.iter().map(|piece| piece.run));
        node.pieces += self.append(inode.0, last, &new)?;
        (node.units, node.reserved) = (wanted, reserved);
        node.changed = self.now();
        self.metadata.put_inode(inode.0, &node)?;
        self.account(uid, i128::from(more), 0)?;
        new.into_iter().map(|piece| Ok(self.extent(inode.0, piece)?)).collect()
    }

    /// Whether a file may have so many more extents.
    fn check_pieces(&self, node: &Inode, more: u64) -> Result<(), FileError> {
        if node.pieces.saturating_add(more) > MAX_FILE_EXTENTS {
            return Err(FileError::TooFragmented);
        }
        if !self.metadata.has_room(more * 64) {
            return Err(self.metadata_full());
        }
        Ok(())
    }

    /// Adds pieces at the end of a file, whose last one is `last`, and returns how many more it has then.
    fn append(&mut self, number: u64, last: Option<Piece>, new: &[Piece]) -> Result<u64, FileError> {
        let mut more = 0;
        for (index, piece) in new.iter().enumerate() {
            let follows = |last: &Piece| index == 0 && last.run.first + last.run.count == piece.run.first;
            let stored = match last.filter(follows) {
                Some(last) => {
                    Piece { at: last.at, run: Run { count: last.run.count + piece.run.count, ..last.run } }
                }
                None => {
                    more += 1;
                    *piece
                }
            };
            self.metadata.put_piece(number, stored)?;
        }
        Ok(more)
    }

    /// Plans to give a file this length; blocks behind it are given up, unless the file gets longer by it. If it is more
    /// than the file's blocks hold, grow it first. Counts from the length that was reported last. Nothing changes until
    /// [`FileSystem::drained`].
    pub fn truncate(&mut self, inode: InodeNumber, length: u64) -> Result<Truncation, FileError> {
        let node = self.existing(inode)?;
        if length > node.units << self.superblock.layout.unit_shift {
            return Err(FileError::Size { bytes: length, why: "the file has fewer blocks: grow it first" });
        }
        self.plan(inode.0, &node, length)
    }

    fn plan(&mut self, number: u64, node: &Inode, length: u64) -> Result<Truncation, FileError> {
        let layout = self.superblock.layout;
        let unit = 1u64 << layout.unit_shift;
        // A file that gets longer within what it has keeps all of that; one that does not, gives up what is behind.
        let shorter = length <= node.length;
        let kept = if shorter { length.div_ceil(unit) } else { node.units };
        let mut given_up = Vec::new();
        let split = self.metadata.last_piece(number, kept)?.and_then(|piece| cut(piece, kept).1);
        let mut rest = self.metadata.pieces(number, kept, usize::MAX)?;
        rest.splice(0..0, split);
        for piece in rest {
            given_up.push(self.extent(number, piece)?);
        }
        let mut tail = None;
        if shorter && !length.is_multiple_of(unit) {
            tail = self.unit_at(number, kept - 1)?;
        }
        let epoch = self.open.get(&number).map_or(0, |open| open.epoch);
        Ok(Truncation { inode: InodeNumber(number), length, units: node.units, epoch, given_up, tail })
    }

    /// Plans for a file that were made before are stale.
    fn next_epoch(&mut self, number: u64) {
        self.epoch += 1;
        if let Some(open) = self.open.get_mut(&number) {
            open.epoch = self.epoch;
        }
    }

    /// The extent of one allocation unit of a file.
    fn unit_at(&mut self, number: u64, at: u64) -> Result<Option<Extent>, FileError> {
        let Some(piece) = self.metadata.last_piece(number, at + 1)? else { return Ok(None) };
        let inside = at - piece.at;
        if inside >= piece.run.count {
            return Ok(None);
        }
        let run = Run { first: piece.run.first.saturating_add(inside), count: 1 };
        Ok(Some(self.extent(number, Piece { at, run })?))
    }

    /// Carries a plan out: nobody can reach what is given up any more, and nobody writes to [`Truncation::tail`].
    pub fn drained(&mut self, plan: &Truncation) -> Result<Attributes, FileError> {
        self.begin()?;
        let mut node = self.existing(plan.inode)?;
        // Who opened it since has entries that nobody drained.
        if self.plan(plan.inode.0, &node, plan.length)? != *plan {
            return Err(FileError::Changed(plan.inode));
        }
        self.carry_out(plan, &mut node)?;
        self.metadata.put_inode(plan.inode.0, &node)?;
        Ok(node.attributes(plan.inode, &self.superblock.layout))
    }

    /// All of it but the inode's own record.
    fn carry_out(&mut self, plan: &Truncation, node: &mut Inode) -> Result<(), FileError> {
        let layout = self.superblock.layout;
        if let Some(tail) = plan.tail {
            self.zero_tail(tail, plan.length - tail.offset)?;
        }
        let gone: u64 = plan.given_up.iter().map(|extent| extent.blocks.count.0 / layout.unit_blocks()).sum();
        self.next_epoch(plan.inode.0);
        self.keep(plan.inode.0, node, node.units - gone)?;
        node.length = plan.length;
        node.modified = self.now();
        node.changed = node.modified;
        Ok(())
    }

    /// Takes from a file all units but the first `kept`. Its record is the caller's to put.
    fn keep(&mut self, number: u64, node: &mut Inode, kept: u64) -> Result<(), FileError> {
        let gone = node.units.saturating_sub(kept);
        if gone == 0 {
            return Ok(());
        }
        node.pieces -= self.cut_pieces(number, kept)?;
        node.units = kept;
        node.reserved = node.reserved.min(kept);
        self.account(node.permissions.uid, -i128::from(gone), 0)
    }

    /// Takes from a file that nobody has open what is behind its end and was not asked for. Durable with the next sync.
    pub(super) fn give_back_room(&mut self, number: u64, mut node: Inode) -> Result<(), FileError> {
        let kept = node.kept(&self.superblock.layout);
        if kept < node.units {
            self.keep(number, &mut node, kept)?;
            self.metadata.put_inode(number, &node)?;
        }
        Ok(())
    }

    /// Frees all pieces of a file from unit `kept` on, and returns how many it has less then.
    fn cut_pieces(&mut self, number: u64, kept: u64) -> Result<u64, FileError> {
        let mut less = 0;
        while let Some(piece) = self.metadata.last_piece(number, u64::MAX)? {
            let (stays, goes) = cut(piece, kept);
            let Some(goes) = goes else { break };
            match stays {
                Some(stays) => self.metadata.put_piece(number, stays)?,
                None => {
                    self.metadata.remove_piece(number, piece.at)?;
                    less += 1;
                }
            }
            self.pool.give_up(goes.run);
        }
        Ok(less)
    }

    /// Zeroes the bytes of a unit from `from` on. Durable with the next sync, as is the length.
    fn zero_tail(&mut self, tail: Extent, from: u64) -> Result<(), StoreError> {
        let mut shadow = self.shadow.lock();
        let disk = shadow.disk();
        let block = u64::from(disk.geometry().block_size());
        let (whole, rest) = (from / block, usize::try_from(from % block).unwrap_or(0));
        let mut lba = tail.blocks.first.0 + whole;
        if rest > 0 {
            let mut data = vec![0; usize::try_from(block).unwrap_or(0)];
            disk.read(lba, &mut data)?;
            data[rest..].fill(0);
            disk.write(lba, &data)?;
            lba += 1;
        }
        if lba < tail.blocks.end().0 {
            disk.write_zeroes(lba, tail.blocks.end().0 - lba)?;
        }
        Ok(())
    }

    /// Zeroes what a file has behind its end, if the file system was lost since that was last known to be zero.
    fn clean_tail(&mut self, number: u64, inode: &mut Inode) -> Result<(), FileError> {
        if inode.clean_since >= self.metadata.counters.lost {
            return Ok(());
        }
        inode.clean_since = self.metadata.counters.lost;
        let unit = self.allocation_unit();
        let from = inode.length.div_ceil(unit);
        if !inode.length.is_multiple_of(unit)
            && let Some(tail) = self.unit_at(number, from - 1)?
        {
            self.zero_tail(tail, inode.length - tail.offset)?;
        }
        let mut pieces = self.metadata.pieces(number, from, usize::MAX)?;
        pieces.extend(self.metadata.last_piece(number, from)?.and_then(|piece| cut(piece, from).1));
        for piece in pieces {
            self.extent(number, piece)?;
            self.zero(piece.run)?;
        }
        Ok(())
    }

    /// Tells the length of an open file and, if it was written to, when.
    pub fn report(
        &mut self,
        inode: InodeNumber,
        length: u64,
        modified: Option<Timestamp>,
    ) -> Result<(), FileError> {
        self.begin()?;
        let mut node = self.existing(inode)?;
        if length > node.units << self.superblock.layout.unit_shift {
            return Err(FileError::Size { bytes: length, why: "the file has fewer blocks: grow it first" });
        }
        if length == node.length && modified.is_none_or(|modified| modified == node.modified) {
            return Ok(());
        }
        node.length = length;
        if let Some(modified) = modified {
            node.modified = modified;
            node.changed = modified;
        }
        Ok(self.metadata.put_inode(inode.0, &node)?)
    }

    /// Ends one open. The caller has reported the length and seen the last I/O of this opener end. With the last the file gives
    /// back the room behind its end, but for what was asked for by [`FileSystem::reserve`].
    pub fn release(&mut self, inode: InodeNumber) -> Result<(), FileError> {
        self.begin()?;
        let open = self.open.get_mut(&inode.0).ok_or(FileError::NotOpen(inode))?;
        if open.count > 1 {
            open.count -= 1;
            return Ok(());
        }
        let Open { orphan, .. } = *open;
        let node = self.existing(inode)?;
        self.open.remove(&inode.0);
        if orphan {
            self.metadata.remove_orphan(inode.0)?;
            return self.destroy(inode.0, &node);
        }
        self.give_back_room(inode.0, node)
    }

    /// Files that are open, with how often and whether they have no name any more.
    pub fn open_files(&self) -> impl Iterator<Item = (InodeNumber, u32, bool)> + '_ {
        self.open.iter().map(|(number, open)| (InodeNumber(*number), open.count, open.orphan))
    }

    /// Whether a file has a name; one that is open may have lost it.
    pub fn has_name(&self, inode: InodeNumber) -> bool {
        !self.open.get(&inode.0).is_some_and(|open| open.orphan)
    }

    /// Removes an inode that has no name and that nobody has open, and all that it has.
    pub(super) fn destroy(&mut self, number: u64, inode: &Inode) -> Result<(), FileError> {
        self.cut_pieces(number, 0)?;
        self.metadata.remove_inode(number)?;
        self.account(inode.permissions.uid, -i128::from(inode.units), -1)
    }

    /// The inode of an open file, or of one that has a name.
    pub(super) fn existing(&mut self, inode: InodeNumber) -> Result<Inode, FileError> {
        let found = self.metadata.inode(inode.0)?;
        found.filter(|found| !found.is_directory()).ok_or(FileError::NotOpen(inode))
    }

    fn no_space(&self, units: u64) -> FileError {
        let shift = self.superblock.layout.unit_shift;
        FileError::NoSpace { needed: units.saturating_mul(1 << shift), free: self.pool.free() << shift }
    }
}

/// Runs as pieces of a file from unit `at` on, those that follow each other merged.
fn pieces_at(mut at: u64, runs: impl Iterator<Item = Run>) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for run in runs {
        match pieces.last_mut() {
            Some(before) if before.run.first + before.run.count == run.first => before.run.count += run.count,
            _ => pieces.push(Piece { at, run }),
        }
        at += run.count;
    }
    pieces
}

/// What of a piece lies before unit `at` of its file, and what does not.
fn cut(piece: Piece, at: u64) -> (Option<Piece>, Option<Piece>) {
    let before = at.saturating_sub(piece.at).min(piece.run.count);
    let part = |skip: u64, count: u64| {
        (count > 0)
            .then_some(Piece { at: piece.at + skip, run: Run { first: piece.run.first + skip, count } })
    };
    (part(0, before), part(before, piece.run.count - before))
}
