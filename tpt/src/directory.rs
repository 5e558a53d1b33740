//! One poller's private side of the tables, and the decision.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use core::sync::atomic::Ordering::Relaxed;
use core::{hint, mem};

use crate::access::Rule;
use crate::published::{
    self, Extent, LbaEntry, ListPointer, NONE, Region, Segment, Shape, Stage, StateWord, extent,
};
use crate::{
    Denied, Domain, EntryIndex, Grant, Hold, Iova, Key, Lba, Memory, Operation, Piece, Published,
    RegionIndex, Request, SEGMENT_ENTRIES, SegmentSource,
};

/// What a directory did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct DirectoryCounters {
    /// Segments fetched, failed fetches not counted.
    pub fetches: u64,
    /// Pointers dropped to make room.
    pub evictions: u64,
}

/// What a poller knows of one segment of the table: one cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Slot {
    /// The pointer to it, if it is at hand.
    entries: Option<Arc<Segment>>,
    /// Whose it was when it was last looked up. Another's request is sent away without a look at the entries.
    domain: Domain,
    /// It was used since the hand last passed it.
    used: bool,
    /// How many I/O are active on each of its entries, also while the pointer to it is dropped.
    active: [u16; SEGMENT_ENTRIES as usize],
}

const _: () = assert!(size_of::<Slot>() == 64);

impl Slot {
    /// Drops the pointer, and keeps the counts.
    fn empty(&mut self) {
        self.entries = None;
        self.used = false;
    }
}

/// The place of an entry in its segment.
#[inline]
fn place(index: u32) -> usize {
    (index % SEGMENT_ENTRIES) as usize
}

/// One poller's directory: pointers to at most as many segments as it may hold, and how many I/O are active on each
/// entry and region. Private; nothing shared is written by a check.
///
/// The counts are beside the pointers and not in what they point to, one for each entry of the table: so a pointer may
/// always be dropped, also with I/O active, and nobody can fill the directory with busy segments and shut others out.
///
/// A check that finds its segment at hand reads the segment's line of the directory, the entry's line and the region's,
/// and writes counts: nothing else, if the request is in the first range of its grant.
#[derive(Debug)]
pub struct Directory<S: SegmentSource = Published> {
    /// One for each segment of the table.
    slots: Box<[Slot]>,
    regions: Arc<[Region]>,
    regions_active: Box<[u32]>,
    lba: Arc<[LbaEntry]>,
    number: u32,
    /// Which segments are at hand, or `NONE`.
    residents: Box<[u32]>,
    /// Where in `residents` the search for a pointer to drop goes on (the clock algorithm).
    hand: usize,
    counters: DirectoryCounters,
    published: Arc<Published>,
    source: Arc<S>,
}

/// So many zeroes, each page of which was written to: no check waits for the kernel to give one.
fn touched(count: usize) -> Box<[u32]> {
    let mut words = vec![1; count];
    hint::black_box(&mut words).fill(0);
    words.into()
}

impl Directory {
    /// A directory that holds at most `resident_segments` pointers, and at least one.
    pub fn new(published: Arc<Published>, resident_segments: usize) -> Self {
        let source = Arc::clone(&published);
        Self::with_source(published, source, resident_segments)
    }
}

impl<S: SegmentSource> Directory<S> {
    /// As [`Directory::new`], with segments from somewhere else: for tests of E_SEGMENT.
    pub fn with_source(published: Arc<Published>, source: Arc<S>, resident_segments: usize) -> Self {
        let limits = published.limits();
        let residents = resident_segments.clamp(1, published.segment_count().max(1));
        Self {
            slots: (0..published.segment_count()).map(|_| Slot::default()).collect(),
            regions: Arc::clone(&published.regions),
            regions_active: touched(limits.regions as usize),
            lba: Arc::clone(&published.lba),
            number: published.enrol(),
            residents: vec![NONE; residents].into(),
            hand: 0,
            counters: DirectoryCounters::default(),
            published,
            source,
        }
    }

    /// The decision: whether `domain` may do `request`. Every field of the request is hostile.
    ///
    /// # Errors
    /// The first check that fails, in the order of [`Denied`] but with the domain of the entry's segment before
    /// anything is fetched. Nothing has changed then.
    #[inline]
    pub fn check(&mut self, domain: Domain, request: &Request) -> Result<Grant, Denied> {
        if self.has_at_hand(domain, request.key) {
            self.decide::<true>(domain, request)
        } else {
            self.decide_elsewhere::<true>(domain, request)
        }
    }

    /// As [`Directory::check`], but `request.memory` is not looked at: the memory is a list, of which each piece is
    /// held by itself with [`Directory::hold`].
    ///
    /// # Errors
    /// As `check`, but never `Memory`.
    #[inline]
    pub fn check_scattered(&mut self, domain: Domain, request: &Request) -> Result<Grant, Denied> {
        if self.has_at_hand(domain, request.key) {
            self.decide::<false>(domain, request)
        } else {
            self.decide_elsewhere::<false>(domain, request)
        }
    }

    /// Whether `domain` may use `length` bytes of memory for `operation`: one piece of a list, checked as the memory of
    /// a request is. Counted as active I/O of the region until [`Directory::release_hold`].
    ///
    /// # Errors
    /// `Memory`: also for no bytes, and for an operation that moves no data. Nothing has changed then.
    #[inline]
    pub fn hold(
        &mut self,
        domain: Domain,
        operation: Operation,
        memory: Memory,
        length: u64,
    ) -> Result<Hold, Denied> {
        let (region, iova) = published::memory(&self.regions, domain, operation.rule(), memory, length)?;
        if length == 0 || region == NONE {
            return Err(Denied::Memory);
        }
        self.regions_active[region as usize] += 1;
        Ok(Hold { iova, region, directory: self.number })
    }

    /// A hint: brings nearer what a check of the key will read. Changes nothing and answers nothing.
    ///
    /// It pays before several checks: their entries then come from memory all at once and not one after another.
    #[inline]
    pub fn prefetch(&self, key: Key) {
        let index = key.index().0;
        let slot = self.slots.get((index / SEGMENT_ENTRIES) as usize);
        if let Some(Slot { entries: Some(entries), .. }) = slot {
            // Nobody waits for what is loaded here.
            hint::black_box(entries.entry(index).shape());
        }
    }

    /// Whether the key's segment is here, and the domain's.
    #[inline]
    fn has_at_hand(&self, domain: Domain, key: Key) -> bool {
        let slot = self.slots.get((key.index().0 / SEGMENT_ENTRIES) as usize);
        slot.is_some_and(|slot| slot.domain == domain && slot.entries.is_some())
    }

    /// The decision with the segment at hand. With `MEMORY` the request's memory is checked and counted, too.
    #[inline(always)]
    fn decide<const MEMORY: bool>(&mut self, domain: Domain, request: &Request) -> Result<Grant, Denied> {
        let index = request.key.index().0;
        let slot = self.slots.get_mut((index / SEGMENT_ENTRIES) as usize).ok_or(Denied::KeyRange)?;
        let entry = slot.entries.as_deref().ok_or(Denied::Segment)?.entry(index);

        // The state first: if it says that the entry is open, the other fields are of this life.
        let (state, shape) = (entry.state(), entry.shape());
        let rule = request.operation.rule();
        if shape.domain() != domain || !state.admits(request.key.instance(), rule.access()) {
            return Err(self.refusal(domain, request, state, shape));
        }
        let end = check_range(request, rule, entry.bytes.load(Relaxed), shape.mask())?;
        let (region, iova) = if MEMORY {
            published::memory(&self.regions, domain, rule, request.memory, request.length)?
        } else {
            (NONE, 0)
        };
        let range = entry.first_range();
        if !entry.is_sealed(index, shape, range) {
            return Err(Denied::TableCorrupt);
        }
        let root = if end <= range.bytes {
            NONE
        } else {
            locate(
                &self.lba,
                index,
                entry.list(),
                request.offset >> shape.shift(),
                (end - 1) >> shape.shift(),
            )
            .ok_or(Denied::TableCorrupt)?
        };

        let active = &mut slot.active[place(index)];
        *active = active.checked_add(1).expect("an entry has at most 65,535 I/O active on one poller");
        slot.used = true;
        if region != NONE {
            self.regions_active[region as usize] += 1;
        }
        Ok(Grant {
            key: request.key,
            offset: request.offset,
            length: request.length,
            iova,
            first: range.first,
            root,
            region,
            directory: self.number,
            operation: request.operation,
            shift: shape.shift(),
        })
    }

    /// Why a request is refused by its entry's index, domain, state or rights. It is, by one of them.
    #[cold]
    #[inline(never)]
    fn refusal(&self, domain: Domain, request: &Request, state: StateWord, shape: Shape) -> Denied {
        if request.key.index().0 >= self.published.limits.entries {
            return Denied::KeyRange; // in the last segment, which may be short
        }
        if shape.domain() != domain {
            return Denied::Domain;
        }
        match state.stage() {
            Stage::Held => Denied::Held,
            Stage::Free | Stage::Closed => Denied::EntryInvalid,
            Stage::Valid if state.instance() != request.key.instance() => Denied::KeyInstance,
            Stage::Valid => Denied::Access,
        }
    }

    /// The decision for a key whose segment is not at hand, or was another domain's when it was looked up.
    #[cold]
    #[inline(never)]
    fn decide_elsewhere<const MEMORY: bool>(
        &mut self,
        domain: Domain,
        request: &Request,
    ) -> Result<Grant, Denied> {
        let index = request.key.index().0;
        if index >= self.published.limits.entries {
            return Err(Denied::KeyRange);
        }
        let segment = index / SEGMENT_ENTRIES;
        if self.published.owner(segment) != Some(domain) {
            return Err(Denied::Domain);
        }
        let fetched = self.slots[segment as usize].entries.is_none();
        if fetched {
            self.fetch(segment)?;
        }
        self.slots[segment as usize].domain = domain;
        let answer = self.decide::<MEMORY>(domain, request);
        // The first use does not count: what is used only once goes before what is used again and again.
        self.slots[segment as usize].used &= !fetched;
        answer
    }

    fn fetch(&mut self, segment: u32) -> Result<(), Denied> {
        let entries = self.source.fetch(segment).ok_or(Denied::Segment)?;
        let place = self.make_room();
        self.residents[place] = segment;
        self.slots[segment as usize].entries = Some(entries);
        self.counters.fetches += 1;
        Ok(())
    }

    /// An empty place, after dropping the first pointer not used again since the hand last passed it.
    fn make_room(&mut self) -> usize {
        loop {
            let place = self.hand;
            self.hand = if place + 1 == self.residents.len() { 0 } else { place + 1 };
            let resident = self.residents[place];
            let Some(slot) = self.slots.get_mut(resident as usize) else {
                return place; // nothing is there
            };
            if mem::take(&mut slot.used) {
                continue;
            }
            slot.empty();
            self.counters.evictions += 1;
            return place;
        }
    }

    /// The contiguous parts of a grant, from the block after the first `blocks_done`.
    ///
    /// They cover the rest of the grant exactly, unless the LBA table was corrupted after the check: then they end
    /// early, and whoever counts the blocks sees it.
    #[inline]
    pub fn pieces(&self, grant: &Grant, blocks_done: u64) -> Pieces<'_> {
        let blocks = grant.blocks();
        let done = blocks_done.min(blocks);
        Pieces {
            lba: &self.lba,
            owner: grant.key.index().0,
            first: grant.first,
            root: grant.root,
            at: grant.start() + done,
            left: blocks - done,
            iova: if grant.region == NONE || grant.operation == Operation::WriteBytes {
                None
            } else {
                Some(grant.iova + (done << grant.shift))
            },
            shift: grant.shift,
        }
    }

    /// All of a grant as one piece, if its blocks are in the first range of its entry, so that no LBA entry need be
    /// read. `None` otherwise, and for a flush, which has no blocks: [`Directory::pieces`] tells then.
    #[inline]
    pub fn only_piece(&self, grant: &Grant) -> Option<Piece> {
        let blocks = grant.blocks();
        let iova = if grant.operation == Operation::WriteBytes { 0 } else { grant.iova };
        (grant.root == NONE && blocks != 0).then(|| Piece {
            lba: Lba(grant.first + grant.start()),
            blocks,
            iova: Iova(iova),
        })
    }

    /// Gives a grant back: the device is done with it. The only way to end one.
    ///
    /// # Panics
    /// If the grant is not of this directory, which is a fault in the caller.
    #[inline]
    pub fn release(&mut self, grant: Grant) {
        let Grant { key, region, directory, .. } = *grant.forget();
        assert_eq!(directory, self.number, "a grant is released where it was granted");
        let index = key.index().0;
        self.slots[(index / SEGMENT_ENTRIES) as usize].active[place(index)] -= 1;
        if region != NONE {
            self.regions_active[region as usize] -= 1;
        }
    }

    /// Gives a hold back: the device is done with that memory. The only way to end one.
    ///
    /// # Panics
    /// If the hold is not of this directory, which is a fault in the caller.
    #[inline]
    pub fn release_hold(&mut self, hold: Hold) {
        let Hold { region, directory, .. } = *hold.forget();
        assert_eq!(directory, self.number, "a hold is released where it was given");
        self.regions_active[region as usize] -= 1;
    }

    /// Whether this poller has no I/O active on the entry.
    #[inline]
    pub fn entry_is_idle(&self, entry: EntryIndex) -> bool {
        let slot = self.slots.get((entry.0 / SEGMENT_ENTRIES) as usize);
        slot.is_none_or(|slot| slot.active[place(entry.0)] == 0)
    }

    /// Whether this poller has no I/O active on the memory region.
    #[inline]
    pub fn region_is_idle(&self, region: RegionIndex) -> bool {
        self.regions_active.get(region.0 as usize).is_none_or(|count| *count == 0)
    }

    /// How large the tables are.
    pub fn limits(&self) -> crate::Limits {
        self.published.limits
    }

    /// What it did so far.
    pub fn counters(&self) -> DirectoryCounters {
        self.counters
    }

    /// Drops the pointer to the entry's segment, if there is one: a fault for tests.
    #[cfg(any(test, feature = "oracle"))]
    pub fn evict(&mut self, entry: EntryIndex) {
        let segment = entry.0 / SEGMENT_ENTRIES;
        if let Some(place) = self.residents.iter_mut().find(|place| **place == segment) {
            *place = NONE;
            self.slots[segment as usize].empty();
            self.counters.evictions += 1;
        }
    }
}

/// Bounds, then alignment; where the range ends. A flush names no range, a write of bytes need not be aligned.
#[inline]
fn check_range(request: &Request, rule: Rule, bytes: u64, mask: u64) -> Result<u64, Denied> {
    let (offset, length) = (request.offset, request.length);
    if rule.has_no_range() {
        return if offset == 0 && length == 0 { Ok(0) } else { Err(Denied::Bounds) };
    }
    let end = offset.checked_add(length).ok_or(Denied::Bounds)?;
    if length == 0 || end > bytes {
        return Err(Denied::Bounds);
    }
    if (offset | length) & mask != 0 {
        return if rule.is_of_bytes() { Ok(end) } else { Err(Denied::Alignment) };
    }
    Ok(end)
}

/// The root of the list, if it knows the first and the last block.
#[cold]
#[inline(never)]
fn locate(table: &[LbaEntry], index: u32, list: ListPointer, first: u64, last: u64) -> Option<u32> {
    if list.length as usize > table.len() {
        return None;
    }
    let found = extent(table, index, list.root, first)?;
    if last - found.start >= found.count {
        extent(table, index, list.root, last)?;
    }
    Some(list.root)
}

/// The contiguous parts of a grant that are left; see [`Directory::pieces`].
#[derive(Clone, Debug)]
pub struct Pieces<'a> {
    lba: &'a [LbaEntry],
    owner: u32,
    first: u64,
    root: u32,
    /// Blocks of the entry before what is left.
    at: u64,
    left: u64,
    iova: Option<u64>,
    shift: u8,
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    #[inline]
    fn next(&mut self) -> Option<Piece> {
        if self.left == 0 {
            return None;
        }
        let (lba, blocks) = if self.root == NONE {
            (self.first + self.at, self.left)
        } else {
            let Extent { start, first, count } = extent(self.lba, self.owner, self.root, self.at)?;
            let skip = self.at - start;
            (first + skip, self.left.min(count - skip))
        };
        let piece = Piece { lba: Lba(lba), blocks, iova: Iova(self.iova.unwrap_or(0)) };
        self.at += blocks;
        self.left -= blocks;
        self.iova = self.iova.map(|iova| iova + (blocks << self.shift));
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Access, GrantSpec, KeyInstance, LbaRange, Limits, Purpose, Tables};

    /// A poller that looked the segment up before it changed hands meets the entry of the new domain, perhaps with the
    /// instance that it guessed: the entry's own domain stops it. The new one is served at once.
    #[test]
    fn s4_r6_the_entry_has_the_last_word_on_its_domain() {
        let limits = Limits { entries: 16, lba_entries: 4, regions: 1 };
        let mut tables = Tables::<32>::new(limits, KeyInstance(1));
        let (former, new) = (Domain(1), Domain(2));
        let mut directory = Directory::new(tables.published(), 1);
        let ranges = [LbaRange { first: Lba(0), count: crate::Blocks(8) }];
        let memory = Memory { region: crate::RegionKey::default(), offset: 0 };
        let grant_to = |tables: &mut Tables, domain| {
            let spec =
                GrantSpec { domain, access: Access::ALL, block_shift: 9, ranges: &ranges, shared: false };
            let key = tables.create(&spec).unwrap();
            (key, Request { operation: Operation::Deallocate, key, offset: 0, length: 512, memory })
        };
        let (key, request) = grant_to(&mut tables, former);
        let grant = directory.check(former, &request).unwrap();
        directory.release(grant);
        let quiesce = tables.begin(None, key, Purpose::Delete).unwrap();
        tables.finish_delete(quiesce);
        let (key, request) = grant_to(&mut tables, new);
        assert_eq!(key.index().0, 0);
        assert!(directory.has_at_hand(former, key), "as it was looked up");
        assert_eq!(directory.check(former, &request).unwrap_err(), Denied::Domain);
        let never = Request { key: Key::new(EntryIndex(9), KeyInstance(1)), ..request };
        assert_eq!(
            directory.check(former, &never).unwrap_err(),
            Denied::Domain,
            "of entries that are free, too"
        );
        let grant = directory.check(new, &request).unwrap();
        directory.release(grant);
        assert_eq!(directory.check(former, &request).unwrap_err(), Denied::Domain);
        assert_eq!(directory.counters(), DirectoryCounters { fetches: 1, evictions: 0 });
        assert_eq!(tables.self_check(), Ok(()));
    }
}
