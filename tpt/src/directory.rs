//! One poller's private side of the tables, and the decision.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use core::sync::atomic::Ordering::Relaxed;

use crate::published::{Extent, NONE, Segment, Stage};
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

#[derive(Debug)]
struct Resident {
    segment: u32,
    used: bool,
    entries: Option<Arc<Segment>>,
}

/// One poller's directory: pointers to at most as many segments as it may hold, and how many I/O are active on each
/// entry and region. Private; nothing shared is written by a check.
///
/// The counts are beside the pointers and not in them, one for each entry of the table: so a pointer may always be
/// dropped, also with I/O active, and nobody can fill the directory with busy segments and shut others out.
#[derive(Debug)]
pub struct Directory<S: SegmentSource = Published> {
    published: Arc<Published>,
    source: Arc<S>,
    number: u32,
    /// For each segment of the table the place of its pointer in `residents`, or `NONE`.
    places: Box<[u32]>,
    residents: Box<[Resident]>,
    /// Where the search for a pointer to drop goes on (the clock algorithm).
    hand: usize,
    entries_active: Box<[u32]>,
    regions_active: Box<[u32]>,
    counters: DirectoryCounters,
}

/// What the entry grants, once all checks that concern it have passed.
struct Admitted {
    start: u64,
    blocks: u64,
    root: u32,
    shift: u8,
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
        let empty = |_| Resident { segment: NONE, used: false, entries: None };
        let residents = resident_segments.clamp(1, published.segment_count().max(1));
        Self {
            number: published.enrol(),
            places: vec![NONE; published.segment_count()].into(),
            residents: (0..residents).map(empty).collect(),
            hand: 0,
            entries_active: vec![0; limits.entries as usize].into(),
            regions_active: vec![0; limits.regions as usize].into(),
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
        let admitted = self.find_and_admit(domain, request)?;
        let memory = self.published.memory(domain, request.operation, request.memory, request.length)?;
        self.grant(request, &admitted, memory)
    }

    /// As [`Directory::check`], but `request.memory` is not looked at: the memory is a list, of which each piece is
    /// held by itself with [`Directory::hold`].
    ///
    /// # Errors
    /// As `check`, but never `Memory`.
    #[inline]
    pub fn check_scattered(&mut self, domain: Domain, request: &Request) -> Result<Grant, Denied> {
        let admitted = self.find_and_admit(domain, request)?;
        self.grant(request, &admitted, (NONE, 0))
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
        let (region, iova) = self.published.memory(domain, operation, memory, length)?;
        if length == 0 || region == NONE {
            return Err(Denied::Memory);
        }
        self.regions_active[region as usize] += 1;
        Ok(Hold { iova, region, directory: self.number })
    }

    /// A hint: brings nearer what a check of the key will read. Changes nothing and answers nothing.
    #[inline]
    pub fn prefetch(&self, key: Key) {
        let index = key.index().0;
        let place = self.places.get((index / SEGMENT_ENTRIES) as usize).copied().unwrap_or(NONE);
        let resident = self.residents.get(place as usize).and_then(|its| its.entries.as_deref());
        if let Some(segment) = resident {
            core::hint::black_box(segment.entry(index).state());
        }
    }

    /// Index and segment, then the entry.
    #[inline]
    fn find_and_admit(&mut self, domain: Domain, request: &Request) -> Result<Admitted, Denied> {
        let index = request.key.index().0;
        if index >= self.published.limits.entries {
            return Err(Denied::KeyRange);
        }
        let segment = index / SEGMENT_ENTRIES;
        if self.published.owner(segment) != Some(domain) {
            return Err(Denied::Domain);
        }
        self.admit(segment, domain, request)
    }

    /// The last check, and the token.
    #[inline]
    fn grant(
        &mut self,
        request: &Request,
        admitted: &Admitted,
        (region, iova): (u32, u64),
    ) -> Result<Grant, Denied> {
        let index = request.key.index().0;
        self.locate(index, admitted).ok_or(Denied::TableCorrupt)?;
        self.entries_active[index as usize] += 1;
        if region != NONE {
            self.regions_active[region as usize] += 1;
        }
        Ok(Grant {
            key: request.key,
            start: admitted.start,
            blocks: admitted.blocks,
            iova,
            root: admitted.root,
            region,
            directory: self.number,
            operation: request.operation,
            shift: admitted.shift,
        })
    }

    /// All checks against the entry itself.
    #[inline]
    fn admit(&mut self, segment: u32, domain: Domain, request: &Request) -> Result<Admitted, Denied> {
        let entry = self.resident(segment)?.entry(request.key.index().0);
        let state = entry.state();
        match state.stage() {
            Stage::Valid => {}
            Stage::Held => return Err(Denied::Held),
            Stage::Free | Stage::Closed => return Err(Denied::EntryInvalid),
        }
        if state.instance() != request.key.instance() {
            return Err(Denied::KeyInstance);
        }
        if entry.domain.load(Relaxed) != domain.0 {
            return Err(Denied::Domain);
        }
        if !state.access().allows(request.operation.required_access()) {
            return Err(Denied::Access);
        }
        let blocks = entry.blocks.load(Relaxed);
        #[allow(clippy::cast_possible_truncation)] // written from a u8
        let shift = entry.shift.load(Relaxed) as u8;
        check_range(request, blocks << shift, shift)?;
        let list = entry.list();
        if list.length > self.published.limits.lba_entries {
            return Err(Denied::TableCorrupt);
        }
        let start = request.offset >> shift;
        let blocks = match request.operation {
            // All that hold a byte of it; its length is not zero and its end does not wrap.
            Operation::WriteBytes => ((request.offset + (request.length - 1)) >> shift) - start + 1,
            _ => request.length >> shift,
        };
        Ok(Admitted { start, blocks, root: list.root, shift })
    }

    /// That the LBA table knows the first and the last block (of a flush: the grant's first).
    #[inline]
    fn locate(&self, index: u32, admitted: &Admitted) -> Option<()> {
        let extent = self.published.extent(index, admitted.root, admitted.start)?;
        let last = admitted.start + admitted.blocks.saturating_sub(1);
        if last - extent.start >= extent.count {
            self.published.extent(index, admitted.root, last)?;
        }
        Some(())
    }

    /// The segment, fetched if there is no pointer to it.
    #[inline]
    fn resident(&mut self, segment: u32) -> Result<&Segment, Denied> {
        let mut place = self.places[segment as usize];
        let present = place != NONE;
        if !present {
            place = self.fetch(segment)?;
        }
        let resident = &mut self.residents[place as usize];
        // The first use does not count: what is used only once goes before what is used again and again.
        resident.used = present;
        resident.entries.as_deref().ok_or(Denied::Segment)
    }

    #[cold]
    fn fetch(&mut self, segment: u32) -> Result<u32, Denied> {
        let entries = self.source.fetch(segment).ok_or(Denied::Segment)?;
        let place = self.make_room();
        self.residents[place] = Resident { segment, used: false, entries: Some(entries) };
        self.counters.fetches += 1;
        let place = u32::try_from(place).map_err(|_| Denied::Segment)?;
        self.places[segment as usize] = place;
        Ok(place)
    }

    /// An empty place, after dropping the first pointer not used again since the hand last passed it.
    fn make_room(&mut self) -> usize {
        loop {
            let place = self.hand;
            self.hand = if place + 1 == self.residents.len() { 0 } else { place + 1 };
            let resident = &mut self.residents[place];
            if core::mem::take(&mut resident.used) {
                continue;
            }
            if resident.entries.is_some() {
                self.places[resident.segment as usize] = NONE;
                self.counters.evictions += 1;
            }
            return place;
        }
    }

    /// The contiguous parts of a grant, from the block after the first `blocks_done`.
    ///
    /// They cover the rest of the grant exactly, unless the LBA table was corrupted after the check: then they end
    /// early, and whoever counts the blocks sees it.
    #[inline]
    pub fn pieces(&self, grant: &Grant, blocks_done: u64) -> Pieces<'_> {
        let done = blocks_done.min(grant.blocks);
        Pieces {
            published: &self.published,
            owner: grant.key.index().0,
            root: grant.root,
            at: grant.start + done,
            left: grant.blocks - done,
            iova: if grant.region == NONE || grant.operation == Operation::WriteBytes {
                None
            } else {
                Some(grant.iova + (done << grant.shift))
            },
            shift: grant.shift,
        }
    }

    /// Gives a grant back: the device is done with it. The only way to end one.
    ///
    /// # Panics
    /// If the grant is not of this directory, which is a fault in the caller.
    #[inline]
    pub fn release(&mut self, grant: Grant) {
        assert_eq!(grant.directory, self.number, "a grant is released where it was granted");
        self.entries_active[grant.key.index().0 as usize] -= 1;
        if grant.region != NONE {
            self.regions_active[grant.region as usize] -= 1;
        }
        grant.forget();
    }

    /// Gives a hold back: the device is done with that memory. The only way to end one.
    ///
    /// # Panics
    /// If the hold is not of this directory, which is a fault in the caller.
    #[inline]
    pub fn release_hold(&mut self, hold: Hold) {
        assert_eq!(hold.directory, self.number, "a hold is released where it was given");
        self.regions_active[hold.region as usize] -= 1;
        hold.forget();
    }

    /// Whether this poller has no I/O active on the entry.
    #[inline]
    pub fn entry_is_idle(&self, entry: EntryIndex) -> bool {
        self.entries_active.get(entry.0 as usize).is_none_or(|count| *count == 0)
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
        let Some(place) = self.places.get_mut((entry.0 / SEGMENT_ENTRIES) as usize) else {
            return;
        };
        if *place != NONE {
            self.residents[*place as usize] = Resident { segment: NONE, used: false, entries: None };
            *place = NONE;
            self.counters.evictions += 1;
        }
    }
}

/// Bounds, then alignment. A flush names no range, a write of bytes need not be aligned.
#[inline]
fn check_range(request: &Request, bytes: u64, shift: u8) -> Result<(), Denied> {
    let (offset, length) = (request.offset, request.length);
    if request.operation == Operation::Flush {
        return if offset == 0 && length == 0 { Ok(()) } else { Err(Denied::Bounds) };
    }
    if length == 0 || offset.checked_add(length).is_none_or(|end| end > bytes) {
        return Err(Denied::Bounds);
    }
    if (offset | length) & ((1 << shift) - 1) != 0 && request.operation != Operation::WriteBytes {
        return Err(Denied::Alignment);
    }
    Ok(())
}

/// The contiguous parts of a grant that are left; see [`Directory::pieces`].
#[derive(Clone, Debug)]
pub struct Pieces<'a> {
    published: &'a Published,
    owner: u32,
    root: u32,
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
        let Extent { start, first, count } = self.published.extent(self.owner, self.root, self.at)?;
        let skip = self.at - start;
        let blocks = self.left.min(count - skip);
        let piece = Piece { lba: Lba(first + skip), blocks, iova: Iova(self.iova.unwrap_or(0)) };
        self.at += blocks;
        self.left -= blocks;
        self.iova = self.iova.map(|iova| iova + (blocks << self.shift));
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Access, GrantSpec, KeyInstance, LbaRange, Limits, Memory, Tables};

    /// A poller that looked at the segment's domain just before it changed meets the entry of the new one, perhaps
    /// with the instance that it guessed: the entry's own domain stops it.
    #[test]
    fn s4_r6_the_entry_has_the_last_word_on_its_domain() {
        let limits = Limits { entries: 16, lba_entries: 4, regions: 1 };
        let mut tables = Tables::<32>::new(limits, KeyInstance(1));
        let (former, new) = (Domain(1), Domain(2));
        let ranges = [LbaRange { first: Lba(0), count: crate::Blocks(8) }];
        let spec =
            GrantSpec { domain: new, access: Access::ALL, block_shift: 9, ranges: &ranges, shared: false };
        let key = tables.create(&spec).unwrap();
        let mut directory = Directory::new(tables.published(), 1);
        let memory = Memory { region: crate::RegionKey::default(), offset: 0 };
        let request = Request { operation: Operation::Deallocate, key, offset: 0, length: 512, memory };
        tables.published().set_owner(0, former);
        assert_eq!(directory.check(former, &request).unwrap_err(), Denied::Domain);
        tables.published().set_owner(0, new);
        let grant = directory.check(new, &request).unwrap();
        directory.release(grant);
    }
}
