//! What pollers see of the tables.
//!
//! # The protocol
//!
//! One control plane writes, any number of pollers read, without a lock and without unsafe code: each field is an
//! atomic. An entry has one *state word* (instance, access, stage). A poller loads it once (Acquire) and looks at the
//! other fields (Relaxed) only if it says `Valid`. The control plane keeps to this order:
//!
//! 1. A new entry: fields (Relaxed), then the state word `Valid` (Release).
//! 2. Before a field changes, the state word leaves `Valid`, and **every poller acknowledges a quiescent point**: it
//!    has seen the new state word, is between two checks, and its own count of active I/O of that entry is 0. The
//!    acknowledgement (Release in the poller, Acquire in the control plane) is the caller's: [`crate::Tables::begin`],
//!    then a word that each poller reads, then each poller's [`crate::Directory::entry_is_idle`].
//! 3. Only then are fields, LBA entries or a whole segment written for their next use.
//!
//! So no poller reads a field while it changes. An LBA entry is read only by the holder of a grant or by a check of
//! a `Valid` entry, so the same rule covers it.
//!
//! A segment of entries belongs to one domain at a time, said by a compact array that is looked at before the segment
//! is. It changes hands only when all its entries are free, and then each of them, used or not, has the new domain. So
//! a poller that still saw the former owner is stopped by the entry's own domain field.
//!
//! # Grants and files
//!
//! An entry is of one of two kinds. A grant of blocks points into the LBA table. An opened file points at its segment of
//! the file extension protection table ([`crate::fept`]), and each extension there points into the LBA table.
//!
//! # Two copies of the first range
//!
//! An entry has a copy of the first range of its list, or of its first extension, so that a request inside it, which most
//! are, needs no other. The LBA table stays the truth. A *seal* over the entry's key, the copy and the pointer to the list tells when one
//! of them was damaged; each LBA entry has a seal, too, and names its owner.

use alloc::boxed::Box;
use alloc::sync::Arc;
#[cfg(any(test, feature = "oracle"))]
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use crate::fept::{Extension, Extensions};
use crate::segments::FileSegment;
use crate::{Access, Domain, Key, KeyInstance, Limits, Memory, Operation};

/// Entries of the adapter protection table in one segment; a segment is 1 KiB.
pub const SEGMENT_ENTRIES: u32 = 16;

/// No such index.
pub(crate) const NONE: u32 = u32::MAX;

/// Where an entry is in its life, as pollers see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    /// Open for requests.
    Valid = 0,
    /// Being modified: requests wait.
    Held = 1,
    /// Being deleted, or revoked.
    Closed = 2,
    /// Nothing there.
    Free = 3,
}

/// Instance, access and stage in one word, so that one load or store is all or nothing. From the top: 32 bits of the
/// instance; 14 of zero; a bit of a hole in a file, which no request reaches; a bit that is always set; 8 bits with the
/// rights that it does *not* give; 8 of the stage, all zero if it is open. So what admits a request is bits that are zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct StateWord(u64);

const INSTANCE_SHIFT: u32 = 32;
const HOLE: u64 = 1 << 17;
const ALWAYS: u64 = 1 << 16;
const DENIED_SHIFT: u32 = 8;
const STAGE: u64 = 0xff;

impl StateWord {
    pub(crate) const FREE: Self = Self(ALWAYS | Stage::Free as u64);

    #[inline]
    pub(crate) fn new(instance: KeyInstance, access: Access, stage: Stage) -> Self {
        let denied = Access::ALL.bits() & !access.bits();
        let rights = u64::from(denied) << DENIED_SHIFT;
        Self(u64::from(instance.0) << INSTANCE_SHIFT | ALWAYS | rights | stage as u64)
    }

    /// The same of an extension that is a hole, or is none.
    pub(crate) fn with_hole(self, is_hole: bool) -> Self {
        Self(self.0 | if is_hole { HOLE } else { 0 })
    }

    #[inline]
    pub(crate) fn stage(self) -> Stage {
        match self.0 & STAGE {
            0 => Stage::Valid,
            1 => Stage::Held,
            2 => Stage::Closed,
            _ => Stage::Free,
        }
    }

    #[inline]
    #[allow(clippy::cast_possible_truncation)] // 32 bits are left
    pub(crate) fn instance(self) -> KeyInstance {
        KeyInstance((self.0 >> INSTANCE_SHIFT) as u32)
    }

    /// Whether it is open and gives all those rights, whatever its instance.
    #[inline]
    pub(crate) fn is_open_for(self, access: Access) -> bool {
        self.0 & STAGE == 0 && self.gives(access)
    }

    /// Whether it gives all those rights, whatever its stage and instance.
    #[inline]
    pub(crate) fn gives(self, access: Access) -> bool {
        self.0 & u64::from(access.bits()) << DENIED_SHIFT == 0
    }
}

/// A state word in its place of a table, xored with the index of that place: so it differs from the key that opens it in
/// nothing but its low bits, of which those that are needed must be zero.
#[derive(Debug)]
pub(crate) struct State(AtomicU64);

impl State {
    pub(crate) fn new(index: u32) -> Self {
        Self(AtomicU64::new(StateWord::FREE.0 ^ u64::from(index)))
    }

    #[inline]
    pub(crate) fn get(&self, index: u32) -> StateWord {
        StateWord(self.0.load(Acquire) ^ u64::from(index))
    }

    pub(crate) fn set(&self, index: u32, word: StateWord) {
        self.0.store(word.0 ^ u64::from(index), Release);
    }

    /// Whether what is there now, in whatever life, is open for what is needed.
    #[inline(always)]
    pub(crate) fn admits_any_life(&self, index: u32, needed: Needed) -> bool {
        self.get(index).0 & needed.0 & u64::from(u32::MAX) == 0
    }

    #[cfg(any(test, feature = "oracle"))]
    pub(crate) fn word(&self) -> &AtomicU64 {
        &self.0
    }

    /// Whether it is open to a key of this index for what is needed.
    #[inline]
    pub(crate) fn admits(&self, key: u64, needed: Needed) -> bool {
        self.objections(key, needed) == 0
    }

    /// What speaks against it; 0 if it is open to a key of this index for what is needed.
    #[inline]
    pub(crate) fn objections(&self, key: u64, needed: Needed) -> u64 {
        (self.0.load(Acquire) ^ key) & needed.0
    }
}

/// In which bits a state may not differ from a key: those of the instance, of a hole and of the stage, and of the rights
/// those that an operation needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Needed(u64);

impl Needed {
    /// Nothing has that.
    pub(crate) const TOO_MUCH: Self = Self(ALWAYS);

    pub(crate) const fn of(access: Access) -> Self {
        Self((u32::MAX as u64) << INSTANCE_SHIFT | HOLE | (access.bits() as u64) << DENIED_SHIFT | STAGE)
    }
}

/// One entry of the adapter protection table: one cache line.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Entry {
    pub(crate) state: State,
    shape: AtomicU64,
    /// Of the whole grant.
    pub(crate) bytes: AtomicU64,
    /// The first device block of the first range.
    pub(crate) first: AtomicU64,
    /// Of the first range.
    pub(crate) first_blocks: AtomicU64,
    /// Of a grant the root of its ranges and how many they are, of a file the first entry of its segment of the FEPT and
    /// its context.
    list: AtomicU64,
    seal: AtomicU64,
    /// Of a file: how many extensions it has. They may become more while it is open.
    extensions: AtomicU64,
}

const _: () = assert!(size_of::<Entry>() == 64);

/// Of which kind an entry is, whose, and how large its blocks are. From the top: 8 bits of a file's grain; 8 of zero; 8 of
/// the kind, 8 of the block size as a power of two, 32 of the domain. The kind is 0 of a grant of blocks, 1 of a file that
/// has no segment, and 2 and more of one that has: so much more than 2 as its segment is a power of two. The grain is about
/// how long its extensions are, as a power of two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Shape(u64);

const KIND_SHIFT: u32 = 40;
const GRAIN_SHIFT: u32 = 56;

impl Shape {
    /// Of a grant of blocks, and of what is free.
    pub(crate) fn new(domain: Domain, shift: u8) -> Self {
        Self(u64::from(shift) << 32 | u64::from(domain.0))
    }

    /// Of a file.
    pub(crate) fn of_file(domain: Domain, shift: u8, segment: Option<FileSegment>) -> Self {
        let kind = segment.map_or(1, |its| 2 + u64::from(its.order));
        Self(kind << KIND_SHIFT | Self::new(domain, shift).0)
    }

    /// The same, with a grain as if all of `bytes` were in extensions of equal length that fill the segment.
    pub(crate) fn with_grain(self, bytes: u64) -> Self {
        let order = self.segment_order().unwrap_or(0);
        let grain = bytes.checked_next_power_of_two().map_or(63, u64::ilog2).saturating_sub(order);
        Self(self.without_grain().0 | u64::from(grain) << GRAIN_SHIFT)
    }

    /// What does not change with the bytes of the file.
    pub(crate) fn without_grain(self) -> Self {
        Self(self.0 & ((1 << GRAIN_SHIFT) - 1))
    }

    /// Of which of its parts, each as long as its grain, byte `at` of a file is.
    #[inline(always)]
    pub(crate) fn part(self, at: u64) -> u64 {
        at >> ((self.0 >> GRAIN_SHIFT) & 63)
    }

    #[inline]
    pub(crate) fn is_file(self) -> bool {
        self.0 >> KIND_SHIFT != 0
    }

    /// How many entries the file's segment has, as a power of two; `None` if there is none.
    #[inline]
    fn segment_order(self) -> Option<u32> {
        u32::try_from(self.without_grain().0 >> KIND_SHIFT).ok()?.checked_sub(2)
    }

    /// The size of a block as a power of two, and the kind above it: what a grant takes along.
    #[inline]
    #[allow(clippy::cast_possible_truncation)] // two bytes are meant
    pub(crate) fn upper(self) -> u16 {
        (self.0 >> 32) as u16
    }

    #[inline]
    #[allow(clippy::cast_possible_truncation)] // the low half is meant
    pub(crate) fn domain(self) -> Domain {
        Domain(self.0 as u32)
    }

    /// The size of a block as a power of two.
    #[inline]
    #[allow(clippy::cast_possible_truncation)] // it is small
    pub(crate) fn shift(self) -> u8 {
        (self.0 >> 32) as u8
    }

    /// So many bytes in blocks. What is no whole number of them becomes more blocks than any range has: the bits that are
    /// left over go to the top.
    #[inline]
    pub(crate) fn in_blocks(self, bytes: u64) -> u64 {
        bytes.rotate_right(u32::from(self.shift()))
    }
}

/// The first range of a grant, as its entry has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FirstRange {
    pub(crate) first: u64,
    pub(crate) blocks: u64,
}

/// The LBA table pointer of an entry: the LBA entry at the root of its ranges, and how many they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ListPointer {
    pub(crate) root: u32,
    pub(crate) length: u32,
}

impl ListPointer {
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation)] // two halves
    fn of(word: u64) -> Self {
        Self { root: (word >> 32) as u32, length: word as u32 }
    }
}

/// The FEPT pointer of a file's entry, and what goes with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FilePointer {
    /// The first entry of its segment.
    pub(crate) base: u32,
    pub(crate) context: u32,
    pub(crate) extensions: u32,
    pub(crate) bytes: u64,
}

impl Entry {
    fn new(index: u32) -> Self {
        Self {
            state: State::new(index),
            shape: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            first: AtomicU64::new(0),
            first_blocks: AtomicU64::new(0),
            list: AtomicU64::new(u64::from(NONE) << 32),
            seal: AtomicU64::new(0),
            extensions: AtomicU64::new(0),
        }
    }

    #[inline]
    pub(crate) fn shape(&self) -> Shape {
        Shape(self.shape.load(Relaxed))
    }

    pub(crate) fn set_shape(&self, shape: Shape) {
        self.shape.store(shape.0, Relaxed);
    }

    #[inline]
    pub(crate) fn first_range(&self) -> FirstRange {
        FirstRange { first: self.first.load(Relaxed), blocks: self.first_blocks.load(Relaxed) }
    }

    /// What the seal must be. A change of any one word changes it, whichever bits are changed.
    #[inline(always)]
    fn expected_seal(key: Key, shape: Shape, range: FirstRange, list: u64) -> u64 {
        let range = (range.first.wrapping_mul(9) ^ range.blocks).rotate_left(23);
        range ^ shape.0 ^ list ^ key.0
    }

    /// Whether what says where the blocks are is as it was written. `shape` and `range` are the entry's as read.
    #[inline(always)]
    pub(crate) fn is_sealed(&self, key: Key, shape: Shape, range: FirstRange) -> bool {
        self.sealed_list(key, shape, range).is_some()
    }

    /// The same, with what is then known to be the pointer to its list or segment.
    #[inline(always)]
    pub(crate) fn sealed_list(&self, key: Key, shape: Shape, range: FirstRange) -> Option<ListPointer> {
        let list = self.list.load(Relaxed);
        let is_sealed = self.seal.load(Relaxed) == Self::expected_seal(key, shape, range, list);
        is_sealed.then(|| ListPointer::of(list))
    }

    /// Where the blocks are, on both accounts, and how many bytes they have. The entry is not `Valid`: no poller reads
    /// it.
    pub(crate) fn set_blocks(&self, key: Key, range: FirstRange, list: ListPointer, bytes: u64) {
        self.extensions.store(0, Relaxed);
        self.bytes.store(bytes, Relaxed);
        self.first.store(range.first, Relaxed);
        self.first_blocks.store(range.blocks, Relaxed);
        self.set_list(list);
        let list = self.list.load(Relaxed);
        self.seal.store(Self::expected_seal(key, self.shape(), range, list), Relaxed);
    }

    /// Where the extensions of a file are, how many, and how many bytes they have. The entry is not `Valid`: no poller reads
    /// it.
    pub(crate) fn set_file(&self, key: Key, shape: Shape, range: FirstRange, file: FilePointer) {
        let FilePointer { base, context, extensions, bytes } = file;
        self.set_shape(shape);
        self.set_blocks(key, range, ListPointer { root: base, length: context }, bytes);
        self.extensions.store(u64::from(extensions), Relaxed);
    }

    /// More extensions of a file that is open: what is behind the former ones was written before.
    pub(crate) fn append_extensions(&self, extensions: u32, bytes: u64) {
        self.extensions.store(u64::from(extensions), Release);
        self.bytes.store(bytes, Release);
    }

    /// The extensions of a file; none of a grant of blocks. `None` if the pointer leads outside of the table, or there are
    /// more than the segment has room for. Whoever looks for a byte has read the number of bytes before.
    #[inline]
    pub(crate) fn extensions<'a>(&self, table: &'a [Extension], key: Key) -> Option<Extensions<'a>> {
        self.extensions_as(self.shape(), table, key)
    }

    /// The same, if its shape was read as that.
    #[inline(always)]
    pub(crate) fn extensions_as<'a>(
        &self,
        shape: Shape,
        table: &'a [Extension],
        key: Key,
    ) -> Option<Extensions<'a>> {
        let number = usize::try_from(self.extensions.load(Acquire)).ok()?;
        let base = self.list().root;
        let all = match shape.segment_order() {
            Some(order) if number <= 1_usize.wrapping_shl(order) => {
                table.get(base as usize..(base as usize).checked_add(number)?)?
            }
            None if number == 0 => &[],
            _ => return None,
        };
        Some(Extensions::new(all, base, key, shape.shift()))
    }

    /// Becomes what another is, but for the state, as by a write that went astray: for tests.
    #[cfg(any(test, feature = "oracle"))]
    pub(crate) fn overwrite_with(&self, other: &Self) {
        let both = self.words().into_iter().zip(other.words());
        both.for_each(|(mine, theirs)| mine.store(theirs.load(Relaxed), Relaxed));
    }

    #[cfg(any(test, feature = "oracle"))]
    fn words(&self) -> [&AtomicU64; 7] {
        let range = [&self.first, &self.first_blocks];
        [&self.bytes, range[0], range[1], &self.list, &self.shape, &self.seal, &self.extensions]
    }

    /// Changes one word behind everybody's back, for tests: 0 the size, 1 and 2 the first range, 3 the pointer, 4 the
    /// shape, 5 the seal, 6 the number of extensions.
    #[cfg(any(test, feature = "oracle"))]
    pub(crate) fn damage(&self, word: usize, bits: u64) {
        self.words()[word].fetch_xor(bits, Relaxed);
    }

    #[inline]
    pub(crate) fn list(&self) -> ListPointer {
        ListPointer::of(self.list.load(Relaxed))
    }

    fn set_list(&self, pointer: ListPointer) {
        self.list.store(u64::from(pointer.root) << 32 | u64::from(pointer.length), Relaxed);
    }
}

/// [`SEGMENT_ENTRIES`] neighbouring entries: what a poller's directory points to. All lie one after another in memory, so
/// that the number of one is a pointer to it; only a [`SegmentSource`] gives it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment(pub(crate) u32);

/// One contiguous range of one grant, and a node of the balanced search tree of all ranges of that grant (ordered by
/// `start`). A tree, not an array: then any free LBA entry is as good as any other and the table cannot fragment.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct LbaEntry {
    /// The index of the entry that it belongs to; `NONE` while free.
    pub(crate) owner: AtomicU32,
    /// Of an extension of a file, which is in no tree: how many holes are before it.
    pub(crate) left: AtomicU32,
    pub(crate) right: AtomicU32,
    /// Blocks of the grant before this range.
    pub(crate) start: AtomicU64,
    pub(crate) first: AtomicU64,
    pub(crate) count: AtomicU64,
    seal: AtomicU64,
}

impl LbaEntry {
    fn new() -> Self {
        Self {
            owner: AtomicU32::new(NONE),
            left: AtomicU32::new(NONE),
            right: AtomicU32::new(NONE),
            start: AtomicU64::new(0),
            first: AtomicU64::new(0),
            count: AtomicU64::new(0),
            seal: AtomicU64::new(0),
        }
    }

    /// As of an [`Entry`]: a change of any one word changes it.
    fn expected_seal(&self) -> u64 {
        let children = u64::from(self.left.load(Relaxed)) << 32 | u64::from(self.right.load(Relaxed));
        let words = [&self.start, &self.first, &self.count].map(|word| word.load(Relaxed));
        let begin = u64::from(self.owner.load(Relaxed)).rotate_left(23) ^ children;
        words.iter().fold(begin, |seal, word| seal.rotate_left(23) ^ word)
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.seal.load(Relaxed) == self.expected_seal()
    }

    /// The first block of an extension of the file of entry `owner`: of that many blocks, after that many of the file; and
    /// how many holes are before it. `None` if it is of something else, or damaged.
    #[inline]
    pub(crate) fn of_extension(&self, owner: u32, start: u64, count: u64) -> Option<(u64, u32)> {
        let is_it = self.owner.load(Relaxed) == owner
            && self.start.load(Relaxed) == start
            && self.count.load(Relaxed) == count;
        (is_it && self.is_sealed()).then(|| (self.first.load(Relaxed), self.left.load(Relaxed)))
    }

    /// All of it is written.
    pub(crate) fn set_seal(&self) {
        self.seal.store(self.expected_seal(), Relaxed);
    }
}

#[cfg(any(test, feature = "oracle"))]
impl LbaEntry {
    #[allow(clippy::cast_possible_truncation)] // the low half is meant
    pub(crate) fn damage(&self, word: usize, bits: u64) {
        let (halves, words) =
            ([&self.owner, &self.left, &self.right], [&self.start, &self.first, &self.count]);
        if word < 3 {
            halves[word].fetch_xor(bits as u32, Relaxed);
        } else {
            words[word - 3].fetch_xor(bits, Relaxed);
        }
    }
}

/// An LBA entry as found: the range that holds a block of a grant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Extent {
    pub(crate) start: u64,
    pub(crate) first: u64,
    pub(crate) count: u64,
}

/// One entry of the memory-region table.
#[derive(Debug)]
#[repr(align(32))]
pub(crate) struct Region {
    pub(crate) state: State,
    pub(crate) iova: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) domain: AtomicU32,
}

/// The readable side of the tables, shared by the control plane and all pollers.
pub struct Published {
    pub(crate) limits: Limits,
    owners: Box<[AtomicU64]>,
    /// Of whole segments: the last ones may be beyond the limit.
    pub(crate) entries: Arc<[Entry]>,
    pub(crate) extensions: Arc<[Extension]>,
    pub(crate) lba: Arc<[LbaEntry]>,
    pub(crate) regions: Arc<[Region]>,
    directories: AtomicU32,
}

impl fmt::Debug for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Published").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// Where a poller's directory gets segments from: [`Published`], or in a test something that fails.
pub trait SegmentSource {
    /// The segment of that number; `None` if it cannot be had.
    fn fetch(&self, segment: u32) -> Option<Segment>;
}

impl SegmentSource for Published {
    fn fetch(&self, segment: u32) -> Option<Segment> {
        ((segment as usize) < self.segment_count()).then_some(Segment(segment))
    }
}

/// Between which addresses `memory` lies.
pub(crate) fn addresses<T>(memory: &[T]) -> Range<usize> {
    let Range { start, end } = memory.as_ptr_range();
    start.addr()..end.addr()
}

impl Published {
    pub(crate) fn new(limits: Limits) -> Self {
        let segments = limits.entries.div_ceil(SEGMENT_ENTRIES);
        let region = |index| Region {
            state: State::new(index),
            iova: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            domain: AtomicU32::new(0),
        };
        Self {
            limits,
            owners: (0..segments).map(|_| AtomicU64::new(0)).collect(),
            entries: (0..segments * SEGMENT_ENTRIES).map(Entry::new).collect(),
            extensions: (0..limits.extensions).map(|_| Extension::new()).collect(),
            lba: (0..limits.lba_entries).map(|_| LbaEntry::new()).collect(),
            regions: (0..limits.regions).map(region).collect(),
            directories: AtomicU32::new(0),
        }
    }

    /// How large the tables are.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Between which addresses the tables lie that checks read at random: for who would have them in larger pages.
    pub fn addresses(&self) -> [Range<usize>; 4] {
        let Self { entries, extensions, lba, regions, .. } = self;
        [addresses(entries), addresses(extensions), addresses(lba), addresses(regions)]
    }

    pub(crate) fn segment_count(&self) -> usize {
        self.owners.len()
    }

    /// A number for one more directory.
    pub(crate) fn enrol(&self) -> u32 {
        self.directories.fetch_add(1, Relaxed)
    }

    /// Whose segment it is.
    #[inline]
    pub(crate) fn owner(&self, segment: u32) -> Option<Domain> {
        let word = self.owners.get(segment as usize)?.load(Acquire);
        #[allow(clippy::cast_possible_truncation)] // the low half is meant
        (word != 0).then_some(Domain(word as u32))
    }

    /// Gives a segment, all of whose entries are free, to a domain.
    pub(crate) fn set_owner(&self, segment: u32, domain: Domain) {
        if self.owner(segment) == Some(domain) {
            return;
        }
        let first = (segment * SEGMENT_ENTRIES) as usize;
        for entry in &self.entries[first..first + SEGMENT_ENTRIES as usize] {
            entry.set_shape(Shape::new(domain, 0));
        }
        self.owners[segment as usize].store(1 << 32 | u64::from(domain.0), Release);
    }

    /// The entry of an index that the control plane handed out.
    pub(crate) fn entry(&self, index: u32) -> &Entry {
        &self.entries[index as usize]
    }

    pub(crate) fn region(&self, index: u32) -> Option<&Region> {
        self.regions.get(index as usize)
    }

    pub(crate) fn lba_entry(&self, index: u32) -> Option<&LbaEntry> {
        self.lba.get(index as usize)
    }

    /// Every word of the tables, to compare before and after (S4-R14).
    #[cfg(any(test, feature = "oracle"))]
    pub fn snapshot(&self) -> Vec<u64> {
        let mut words = Vec::new();
        words.extend(self.owners.iter().map(|w| w.load(Acquire)));
        for entry in self.entries.iter() {
            words.push(entry.state.0.load(Acquire));
            words.extend(entry.words().map(|w| w.load(Relaxed)));
        }
        for extension in self.extensions.iter() {
            words.extend(extension.words().map(|w| w.load(Acquire)));
        }
        for node in self.lba.iter() {
            words.extend([&node.start, &node.first, &node.count, &node.seal].map(|w| w.load(Relaxed)));
            words.extend([&node.owner, &node.left, &node.right].map(|w| u64::from(w.load(Relaxed))));
        }
        for region in self.regions.iter() {
            words.extend([
                region.state.0.load(Acquire),
                region.iova.load(Relaxed),
                region.bytes.load(Relaxed),
            ]);
            words.push(u64::from(region.domain.load(Relaxed)));
        }
        words
    }
}

/// The range that holds block `block` of the grant of entry `owner`, whose LBA pointer is `root`. `None` if the
/// table is corrupt: a pointer outside it, or to an LBA entry of another grant or a damaged one, or no such block.
#[inline]
pub(crate) fn extent(table: &[LbaEntry], owner: u32, root: u32, block: u64) -> Option<Extent> {
    let mut at = root;
    // A balanced tree of at most 2^32 nodes is no deeper than this; a corrupt one must not hold us.
    for _ in 0..=u32::BITS {
        let node = table.get(at as usize)?;
        if node.owner.load(Relaxed) != owner || !node.is_sealed() {
            return None;
        }
        let (start, count) = (node.start.load(Relaxed), node.count.load(Relaxed));
        if block < start {
            at = node.left.load(Relaxed);
        } else if block - start >= count {
            at = node.right.load(Relaxed);
        } else {
            return Some(Extent { start, first: node.first.load(Relaxed), count });
        }
    }
    None
}

/// In which region `length` bytes of memory are and where in the device's address space they start, if all of it may be
/// used for an operation that moves data. Where it begins is not looked at.
#[inline(always)]
pub(crate) fn memory(
    table: &[Region],
    domain: Domain,
    operation: Operation,
    memory: Memory,
    length: u64,
) -> Option<(u32, u64)> {
    let Memory { region: key, offset } = memory;
    let region = table.get(key.index().0 as usize)?;
    if !region.state.admits(key.0, operation.needed_of_memory()) || region.domain.load(Relaxed) != domain.0 {
        return None;
    }
    let left = region.bytes.load(Relaxed).checked_sub(offset)?;
    if length > left {
        return None;
    }
    // Does not wrap: the region does not, and the range is inside it.
    Some((key.index().0, region.iova.load(Relaxed) + offset))
}
