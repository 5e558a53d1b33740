//! What a successful check gives: a token that must be given back.

use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::directory::Counted;
use crate::published::NONE;
use crate::{Iova, Key, Lba, Operation, RegionIndex};

static LEAKED: AtomicU64 = AtomicU64::new(0);

/// How many grants and holds of this process were dropped instead of released. Each of them keeps its entry and its memory
/// region busy for ever, so that neither is re-used.
pub fn leaked_grants() -> u64 {
    LEAKED.load(Relaxed)
}

/// The right to do one request, counted as active I/O of its entry and its memory region until
/// [`Directory::release`](crate::Directory::release). Release it only when the device can no longer touch either.
///
/// Dropping it is an error: in a debug build a panic; in release the counts stay, so the entry is never idle and
/// never re-used, and [`leaked_grants`] tells.
#[must_use = "release it, or its entry is never idle again"]
#[derive(Debug)]
pub struct Grant {
    pub(crate) key: Key,
    /// Its first block: on the device, if it has no list; with one, counted from the start of its grant or file.
    pub(crate) first: u64,
    pub(crate) blocks: u64,
    /// Of the first byte of data; 0 if the device does not move it from or to there.
    pub(crate) iova: u64,
    /// Of the list, or the segment of extensions, that says where its blocks are; `NONE` if they are one after another.
    pub(crate) root: u32,
    /// In which region its memory is.
    pub(crate) counted: Counted,
    pub(crate) operation: Operation,
    /// The size of its blocks as a power of two, and above that the kind of its entry.
    pub(crate) shape: u16,
}

const _: () = assert!(size_of::<Grant>() <= 48);

impl Grant {
    /// How many device blocks; 0 for a flush. All that hold a byte of it.
    #[inline]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// How many bytes its blocks have; 0 for a flush. Of [`Operation::WriteBytes`] more than the request's, as a rule.
    #[inline]
    pub fn bytes(&self) -> u64 {
        self.blocks << self.block_shift()
    }

    /// What was granted.
    #[inline]
    pub fn operation(&self) -> Operation {
        self.operation
    }

    /// The size of its blocks as a power of two.
    #[inline]
    #[allow(clippy::cast_possible_truncation)] // the low half is meant
    pub fn block_shift(&self) -> u8 {
        self.shape as u8
    }

    /// Whether it is of an opened file, and not of a grant of blocks.
    #[inline]
    pub fn is_file(&self) -> bool {
        self.shape > u16::from(u8::MAX)
    }

    /// Under which key.
    #[inline]
    pub fn key(&self) -> Key {
        self.key
    }

    /// Whether the device moves its data from or to memory that it names.
    #[inline]
    pub(crate) fn names_memory(&self) -> bool {
        self.counted.region() != NONE && self.operation != Operation::WriteBytes
    }

    /// [`Directory::only_piece`](crate::Directory::only_piece), if that is of no more than `most` blocks.
    #[inline]
    pub fn as_one(&self, most: u64) -> Option<Piece> {
        let whole = Piece { lba: Lba(self.first), blocks: self.blocks, iova: Iova(self.iova) };
        // No blocks are more than any, then.
        (self.root == NONE && self.blocks.wrapping_sub(1) < most).then_some(whole)
    }

    /// The end of its life: what it said, and nothing that must be released.
    #[inline]
    pub(crate) fn forget(self) -> ManuallyDrop<Self> {
        ManuallyDrop::new(self)
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        LEAKED.fetch_add(1, Relaxed);
        #[cfg(debug_assertions)]
        if !std::thread::panicking() {
            panic!("a grant of {} was dropped, not released", self.key);
        }
    }
}

/// The right to use one piece of memory for one request, counted as active I/O of its region until
/// [`Directory::release_hold`](crate::Directory::release_hold). For requests whose memory is a list.
///
/// Dropping it is an error, as with a [`Grant`].
#[must_use = "release it, or its region is never idle again"]
#[derive(Debug)]
pub struct Hold {
    pub(crate) iova: u64,
    pub(crate) counted: Counted,
}

impl Hold {
    /// Where the device sees its first byte.
    #[inline]
    pub fn iova(&self) -> Iova {
        Iova(self.iova)
    }

    /// Of which region.
    #[inline]
    pub fn region(&self) -> RegionIndex {
        RegionIndex(self.counted.region())
    }

    /// The end of its life: what it said, and nothing that must be released.
    #[inline]
    pub(crate) fn forget(self) -> ManuallyDrop<Self> {
        ManuallyDrop::new(self)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        LEAKED.fetch_add(1, Relaxed);
        #[cfg(debug_assertions)]
        if !std::thread::panicking() {
            panic!("a hold of region {} was dropped, not released", self.counted.region());
        }
    }
}

/// One contiguous part of a grant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Its first device block.
    pub lba: Lba,
    /// How many blocks.
    pub blocks: u64,
    /// Where the device finds or puts the data of this piece; 0 if none moves, if the memory is a list, and for
    /// [`Operation::WriteBytes`], whose data is copied.
    pub iova: Iova,
}
