//! The file extension protection table (FEPT) as pollers see it.
//!
//! An opened file has an entry of kind *file* in the table of entries, which is its entry of the file name protection
//! table (FNPT), and one contiguous *segment* of the FEPT: a power of two of entries, aligned to their number. An
//! extension of the file is one contiguous range of device blocks, and has the entry of the segment whose position is its
//! number: so a number cannot name what is outside of the segment. Extensions stand in the order of the file, and each
//! entry points to the one entry of the LBA table that has its blocks. Beside that it has a copy of where they begin, as a
//! file's entry has of its first extension: so a request inside of one extension needs no LBA entry.
//!
//! A part of the file without blocks, a *hole*, is an extension like any other whose first block is one that no device has
//! ([`crate::LbaRange::hole`]). A request that touches it is refused, the last of all checks: each LBA entry of an extension
//! also says how many holes are before it, so that two of them tell whether there is one between.
//!
//! # Growing while pollers read
//!
//! The order of [`crate::published`] holds here, with one thing more: extensions may be appended to a file that is open
//! for requests, while its segment has room. The LBA entry and the FEPT entry are written first, then the file's number of
//! extensions (Release), then its number of bytes (Release). A poller reads the bytes first and then the number (both
//! Acquire), so what it looks for among that many extensions is there. All else, and all that takes away, needs the
//! quiescent point.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::id::is_hole;
use crate::published::{LbaEntry, Shape, State, StateWord};
use crate::trace::{Touch, Trace};
use crate::{Access, Domain, ExtensionKey, Key, Request};

/// One entry of the file extension protection table: one cache line.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Extension {
    /// Xored with the extension's number.
    pub(crate) state: State,
    /// Whose it is, and which entry of the LBA table has its blocks.
    place: AtomicU64,
    /// Bytes of the file before it.
    offset: AtomicU64,
    bytes: AtomicU64,
    /// Its first device block.
    first: AtomicU64,
    seal: AtomicU64,
}

const _: () = assert!(size_of::<Extension>() == 64);

/// Odd, below 2^31, and with about half of its bits set.
const SPREAD: u64 = 0x7f4a_7c15;

/// What an entry says of its extension beside the state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stretch {
    pub(crate) domain: Domain,
    /// Its entry of the LBA table.
    pub(crate) node: u32,
    /// Bytes of the file before it.
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    /// Its first device block, as its entry of the LBA table says.
    pub(crate) first: u64,
}

impl Extension {
    pub(crate) fn new() -> Self {
        Self {
            state: State::new(0),
            place: AtomicU64::new(0),
            offset: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            first: AtomicU64::new(0),
            seal: AtomicU64::new(0),
        }
    }

    #[inline]
    #[allow(clippy::cast_possible_truncation)] // two halves
    pub(crate) fn stretch(&self) -> Stretch {
        let place = self.place.load(Relaxed);
        Stretch {
            domain: Domain((place >> 32) as u32),
            node: place as u32,
            offset: self.offset.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            first: self.first.load(Relaxed),
        }
    }

    /// What the seal must be for the extension of that number of the file of that key: a change of any one word, or the
    /// entry of another file or number in this place, makes another. The number is multiplied, so that what it changes is not
    /// what another key changes.
    #[inline(always)]
    fn expected_seal(file: Key, number: u32, stretch: Stretch) -> u64 {
        let place = u64::from(stretch.domain.0) << 32 | u64::from(stretch.node);
        let range = (stretch.first.wrapping_mul(9) ^ stretch.bytes).rotate_left(23);
        range ^ stretch.offset ^ place ^ file.0 ^ u64::from(number).wrapping_mul(SPREAD)
    }

    /// Whether what it says, as read, is what was written for that extension of that file.
    #[inline(always)]
    pub(crate) fn is_sealed(&self, file: Key, number: u32, stretch: Stretch) -> bool {
        self.seal.load(Relaxed) == Self::expected_seal(file, number, stretch)
    }

    /// The first device block of what a request asks for, and of how many, if all of them are in this extension, which has
    /// that number in the file, and nothing is wrong. One line is read, and nothing of the LBA table.
    ///
    /// The caller has seen that the file is open to the request, and is of its domain. That of the extension is what was
    /// sealed with the key of the file, and so the same; it is compared where it is told what is wrong.
    #[inline(always)]
    pub(crate) fn place(&self, shape: Shape, number: u32, request: &Request) -> Option<(u64, u64)> {
        let needed = request.operation.enough();
        let is_named = request.extension != ExtensionKey::NONE;
        // The state first: if it says that it is open, the rest is of this life. It is not open if it is a hole.
        let admitted = if is_named {
            self.state.admits(request.extension.0, needed)
        } else {
            self.state.admits_any_life(number, needed)
        };
        if !admitted {
            return None;
        }
        let stretch = self.stretch();
        let before = if is_named { 0 } else { stretch.offset };
        // What is not aligned is behind any extension, and so are what begins before it and the last of no blocks.
        let (at, blocks) =
            (shape.in_blocks(request.offset.wrapping_sub(before)), shape.in_blocks(request.length));
        if at.checked_add(blocks.wrapping_sub(1))? >= shape.in_blocks(stretch.bytes) {
            return None;
        }
        self.is_sealed(request.key, number, stretch).then_some((stretch.first + at, blocks))
    }

    /// All of it, the state word last. No poller reads it.
    pub(crate) fn write(&self, file: Key, number: u32, stretch: Stretch, state: StateWord) {
        self.place.store(u64::from(stretch.domain.0) << 32 | u64::from(stretch.node), Relaxed);
        self.offset.store(stretch.offset, Relaxed);
        self.bytes.store(stretch.bytes, Relaxed);
        self.first.store(stretch.first, Relaxed);
        self.seal.store(Self::expected_seal(file, number, stretch), Relaxed);
        self.state.set(number, state);
    }

    /// Nobody's. No poller reads it.
    pub(crate) fn clear(&self) {
        let nothing = Stretch { domain: Domain(0), node: 0, offset: 0, bytes: 0, first: 0 };
        self.write(Key(0), 0, nothing, StateWord::FREE);
    }

    /// Its words: the state, whose and which LBA entry, the offset, the bytes, the first block, the seal.
    #[cfg(any(test, feature = "oracle"))]
    pub(crate) fn words(&self) -> [&AtomicU64; 6] {
        [self.state.word(), &self.place, &self.offset, &self.bytes, &self.first, &self.seal]
    }

    /// Changes one of [`Extension::words`] behind everybody's back, for tests.
    #[cfg(any(test, feature = "oracle"))]
    pub(crate) fn damage(&self, word: usize, bits: u64) {
        self.words()[word].fetch_xor(bits, Relaxed);
    }

    /// Becomes what another is, as by a write that went astray: for tests.
    #[cfg(any(test, feature = "oracle"))]
    pub(crate) fn overwrite_with(&self, other: &Self) {
        let both = self.words().into_iter().zip(other.words());
        both.for_each(|(mine, theirs)| mine.store(theirs.load(Relaxed), Relaxed));
    }
}

/// Part of one extension: device blocks one after another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    pub(crate) lba: u64,
    /// From there to the end of the extension.
    pub(crate) blocks: u64,
    /// Extensions of the file before this one that are holes: of two of them that say the same none is between.
    pub(crate) holes: u32,
}

impl Run {
    /// Whether no request reaches it.
    pub(crate) fn is_hole(&self) -> bool {
        is_hole(self.lba)
    }
}

/// The extensions of one file, as a check finds them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extensions<'a> {
    /// As many as the file has, of its one segment. Nothing else of the table is to be had through this.
    all: &'a [Extension],
    /// Where they stand in the table.
    base: u32,
    file: Key,
    shift: u8,
}

impl<'a> Extensions<'a> {
    pub(crate) fn new(all: &'a [Extension], base: u32, file: Key, shift: u8) -> Self {
        Self { all, base, file, shift }
    }

    /// The entry of a number; `None` if the file has no such extension.
    #[inline]
    pub(crate) fn get(&self, number: u32, trace: &Trace) -> Option<&'a Extension> {
        let extension = self.all.get(number as usize)?;
        trace.touch(Touch::Extension(self.base + number));
        Some(extension)
    }

    /// The device blocks from block `block` of the file to the end of its extension, if that gives the rights that are
    /// needed and all that leads there is sound.
    #[inline]
    pub(crate) fn find(&self, lba: &[LbaEntry], block: u64, needed: Access, trace: &Trace) -> Option<Run> {
        let at = block << self.shift;
        let number = self.search(at, trace)?;
        let extension = self.get(number, trace)?;
        if !extension.state.get(number).is_open_for(needed) {
            return None;
        }
        let stretch = extension.stretch();
        self.run(lba, number, stretch, at.checked_sub(stretch.offset)?)
    }

    /// Whether the extension of a number has byte `at` of the file.
    pub(crate) fn has(&self, number: u32, at: u64, trace: &Trace) -> bool {
        self.get(number, trace).is_some_and(|its| {
            let Stretch { offset, bytes, .. } = its.stretch();
            at.wrapping_sub(offset) < bytes
        })
    }

    /// The number of the last extension that does not begin behind byte `at` of the file: the one that has it, if the table
    /// is sound. A binary search; `None` if there is none.
    #[inline]
    pub(crate) fn search(&self, at: u64, trace: &Trace) -> Option<u32> {
        let behind = self.all.partition_point(|its| {
            trace.touch(Touch::Extension(self.base + self.number_of(its)));
            its.offset.load(Relaxed) <= at
        });
        u32::try_from(behind).ok()?.checked_sub(1)
    }

    /// Which one it is.
    #[inline]
    fn number_of(&self, its: &Extension) -> u32 {
        let bytes = core::ptr::from_ref(its).addr() - self.all.as_ptr().addr();
        u32::try_from(bytes / size_of::<Extension>()).unwrap_or(u32::MAX)
    }

    /// The device blocks from byte `within` of extension `number` on, whose entry was read as `stretch`, if it has that byte
    /// and both tables are sound.
    #[inline]
    pub(crate) fn run(&self, lba: &[LbaEntry], number: u32, stretch: Stretch, within: u64) -> Option<Run> {
        let extension = self.all.get(number as usize)?;
        if within >= stretch.bytes || !extension.is_sealed(self.file, number, stretch) {
            return None;
        }
        let node = lba.get(stretch.node as usize)?;
        let (start, blocks) = (stretch.offset >> self.shift, stretch.bytes >> self.shift);
        let (first, holes) = node.of_extension(self.file.index().0, start, blocks)?;
        if first != stretch.first {
            return None;
        }
        let skip = within >> self.shift;
        Some(Run { lba: first + skip, blocks: blocks - skip, holes })
    }
}
