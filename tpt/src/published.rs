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
//! A segment of entries belongs to one domain at a time, said by a compact array that is looked at before anything
//! else. A segment changes hands only when all its entries are free. A poller that still saw the former owner is
//! stopped by the entry's own domain field.

use alloc::boxed::Box;
use alloc::sync::Arc;
#[cfg(any(test, feature = "oracle"))]
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use crate::{Access, Denied, Domain, KeyInstance, Limits, Memory, Operation};

/// Entries of the adapter protection table in one segment; a segment is 1 KiB.
pub const SEGMENT_ENTRIES: u32 = 16;

/// No such index.
pub(crate) const NONE: u32 = u32::MAX;

/// Where an entry is in its life, as pollers see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    /// Nothing there.
    Free = 0,
    /// Open for requests.
    Valid = 1,
    /// Being modified: requests wait.
    Held = 2,
    /// Being deleted, or revoked.
    Closed = 3,
}

/// Instance, access and stage in one word, so that one load or store is all or nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct StateWord(u64);

impl StateWord {
    pub(crate) const FREE: Self = Self(0);

    pub(crate) fn new(instance: KeyInstance, access: Access, stage: Stage) -> Self {
        Self(u64::from(instance.0) << 32 | u64::from(access.bits()) << 8 | stage as u64)
    }

    #[inline]
    pub(crate) fn stage(self) -> Stage {
        match self.0 & 3 {
            1 => Stage::Valid,
            2 => Stage::Held,
            3 => Stage::Closed,
            _ => Stage::Free,
        }
    }

    #[inline]
    #[allow(clippy::cast_possible_truncation)] // 32 bits are left
    pub(crate) fn instance(self) -> KeyInstance {
        KeyInstance((self.0 >> 32) as u32)
    }

    #[inline]
    pub(crate) fn access(self) -> Access {
        Access::from_bits((self.0 >> 8 & 0xff) as u8).unwrap_or(Access::NONE)
    }
}

/// One entry of the adapter protection table: one cache line.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Entry {
    state: AtomicU64,
    pub(crate) blocks: AtomicU64,
    list: AtomicU64,
    pub(crate) domain: AtomicU32,
    pub(crate) shift: AtomicU32,
}

const _: () = assert!(size_of::<Entry>() == 64);

/// The LBA table pointer of an entry: the LBA entry at the root of its ranges, and how many they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ListPointer {
    pub(crate) root: u32,
    pub(crate) length: u32,
}

impl Entry {
    fn new() -> Self {
        Self {
            state: AtomicU64::new(StateWord::FREE.0),
            blocks: AtomicU64::new(0),
            list: AtomicU64::new(u64::from(NONE) << 32),
            domain: AtomicU32::new(0),
            shift: AtomicU32::new(0),
        }
    }

    #[inline]
    pub(crate) fn state(&self) -> StateWord {
        StateWord(self.state.load(Acquire))
    }

    pub(crate) fn set_state(&self, word: StateWord) {
        self.state.store(word.0, Release);
    }

    #[inline]
    #[allow(clippy::cast_possible_truncation)] // two halves
    pub(crate) fn list(&self) -> ListPointer {
        let word = self.list.load(Relaxed);
        ListPointer { root: (word >> 32) as u32, length: word as u32 }
    }

    pub(crate) fn set_list(&self, pointer: ListPointer) {
        self.list.store(u64::from(pointer.root) << 32 | u64::from(pointer.length), Relaxed);
    }
}

/// [`SEGMENT_ENTRIES`] neighbouring entries: what a poller's directory points to.
#[derive(Debug)]
pub struct Segment {
    entries: [Entry; SEGMENT_ENTRIES as usize],
}

impl Segment {
    /// The entry of table index `index` in its segment.
    #[inline]
    pub(crate) fn entry(&self, index: u32) -> &Entry {
        &self.entries[(index % SEGMENT_ENTRIES) as usize]
    }
}

/// One contiguous range of one grant, and a node of the balanced search tree of all ranges of that grant (ordered by
/// `start`). A tree, not an array: then any free LBA entry is as good as any other and the table cannot fragment.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct LbaEntry {
    /// The index of the entry that it belongs to; `NONE` while free.
    pub(crate) owner: AtomicU32,
    pub(crate) left: AtomicU32,
    pub(crate) right: AtomicU32,
    /// Blocks of the grant before this range.
    pub(crate) start: AtomicU64,
    pub(crate) first: AtomicU64,
    pub(crate) count: AtomicU64,
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
    state: AtomicU64,
    pub(crate) iova: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) domain: AtomicU32,
}

impl Region {
    #[inline]
    pub(crate) fn state(&self) -> StateWord {
        StateWord(self.state.load(Acquire))
    }

    pub(crate) fn set_state(&self, word: StateWord) {
        self.state.store(word.0, Release);
    }
}

/// The readable side of the tables, shared by the control plane and all pollers.
pub struct Published {
    pub(crate) limits: Limits,
    owners: Box<[AtomicU64]>,
    segments: Box<[Arc<Segment>]>,
    lba: Box<[LbaEntry]>,
    regions: Box<[Region]>,
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
    fn fetch(&self, segment: u32) -> Option<Arc<Segment>>;
}

impl SegmentSource for Published {
    fn fetch(&self, segment: u32) -> Option<Arc<Segment>> {
        self.segments.get(segment as usize).map(Arc::clone)
    }
}

impl Published {
    pub(crate) fn new(limits: Limits) -> Self {
        let segments = limits.entries.div_ceil(SEGMENT_ENTRIES);
        let segment = || Arc::new(Segment { entries: core::array::from_fn(|_| Entry::new()) });
        let lba = || LbaEntry {
            owner: AtomicU32::new(NONE),
            left: AtomicU32::new(NONE),
            right: AtomicU32::new(NONE),
            start: AtomicU64::new(0),
            first: AtomicU64::new(0),
            count: AtomicU64::new(0),
        };
        let region = || Region {
            state: AtomicU64::new(StateWord::FREE.0),
            iova: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            domain: AtomicU32::new(0),
        };
        Self {
            limits,
            owners: (0..segments).map(|_| AtomicU64::new(0)).collect(),
            segments: (0..segments).map(|_| segment()).collect(),
            lba: (0..limits.lba_entries).map(|_| lba()).collect(),
            regions: (0..limits.regions).map(|_| region()).collect(),
            directories: AtomicU32::new(0),
        }
    }

    /// How large the tables are.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    pub(crate) fn segment_count(&self) -> usize {
        self.segments.len()
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

    pub(crate) fn set_owner(&self, segment: u32, domain: Domain) {
        self.owners[segment as usize].store(1 << 32 | u64::from(domain.0), Release);
    }

    /// The entry of an index that the control plane handed out.
    pub(crate) fn entry(&self, index: u32) -> &Entry {
        self.segments[(index / SEGMENT_ENTRIES) as usize].entry(index)
    }

    pub(crate) fn region(&self, index: u32) -> Option<&Region> {
        self.regions.get(index as usize)
    }

    pub(crate) fn lba_entry(&self, index: u32) -> Option<&LbaEntry> {
        self.lba.get(index as usize)
    }

    /// The range that holds block `block` of the grant of entry `owner`, whose LBA pointer is `root`. `None` if the
    /// table is corrupt: a pointer outside it, or to an LBA entry of another grant, or no such block.
    #[inline]
    pub(crate) fn extent(&self, owner: u32, root: u32, block: u64) -> Option<Extent> {
        let mut at = root;
        // A balanced tree of at most 2^32 nodes is no deeper than this; a corrupt one must not hold us.
        for _ in 0..=u32::BITS {
            let node = self.lba.get(at as usize)?;
            if node.owner.load(Relaxed) != owner {
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

    /// Where in the device's address space `length` bytes of memory start, and in which region, if all of it may be
    /// used for the operation. `NONE` where the operation moves no data.
    #[inline]
    pub(crate) fn memory(
        &self,
        domain: Domain,
        operation: Operation,
        memory: Memory,
        length: u64,
    ) -> Result<(u32, u64), Denied> {
        let Some(needed) = operation.required_memory_access() else { return Ok((NONE, 0)) };
        let key = memory.region;
        let region = self.region(key.index().0).ok_or(Denied::Memory)?;
        let state = region.state();
        let end = memory.offset.checked_add(length).ok_or(Denied::Memory)?;
        let allowed = state.stage() == Stage::Valid
            && state.instance() == key.instance()
            && region.domain.load(Relaxed) == domain.0
            && state.access().allows(needed)
            && end <= region.bytes.load(Relaxed)
            && memory.offset & operation.memory_alignment_mask() == 0;
        if !allowed {
            return Err(Denied::Memory);
        }
        // Does not wrap: the region does not, and the range is inside it.
        Ok((key.index().0, region.iova.load(Relaxed) + memory.offset))
    }

    /// Every word of the tables, to compare before and after (S4-R14).
    #[cfg(any(test, feature = "oracle"))]
    pub fn snapshot(&self) -> Vec<u64> {
        let mut words = Vec::new();
        words.extend(self.owners.iter().map(|w| w.load(Acquire)));
        for entry in self.segments.iter().flat_map(|s| &s.entries) {
            words.extend([entry.state.load(Acquire), entry.blocks.load(Relaxed), entry.list.load(Relaxed)]);
            words.extend([&entry.domain, &entry.shift].map(|w| u64::from(w.load(Relaxed))));
        }
        for node in &self.lba {
            words.extend([&node.start, &node.first, &node.count].map(|w| w.load(Relaxed)));
            words.extend([&node.owner, &node.left, &node.right].map(|w| u64::from(w.load(Relaxed))));
        }
        for region in &self.regions {
            words.extend([region.state.load(Acquire), region.iova.load(Relaxed), region.bytes.load(Relaxed)]);
            words.push(u64::from(region.domain.load(Relaxed)));
        }
        words
    }
}
