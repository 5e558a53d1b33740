//! One poller's private side of the tables, and the decision.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
#[cfg(any(test, feature = "oracle"))]
use alloc::vec::Vec;
use core::hint;
use core::ops::Range;

use crate::fept::Extension;
use crate::published::{self, Entry, LbaEntry, NONE, Segment};
use crate::trace::{Touch, Trace};
use crate::{
    Denied, Domain, EntryIndex, ExtensionKey, Grant, Hold, Key, Lba, Memory, Operation, Published,
    RegionIndex, Request, SegmentSource,
};

pub(crate) use counts::Counted;
pub use counts::MOST_ACTIVE;
use counts::{Memories, Own};
pub use decision::OpenFile;
pub use pieces::Pieces;

mod counts;
mod decision;
mod pieces;

/// What a directory did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct DirectoryCounters {
    /// Segments fetched, failed fetches not counted.
    pub fetches: u64,
    /// Pointers dropped to make room.
    pub evictions: u64,
}

/// Parts of files of which it is known where they were read or written last: a power of two.
const HINTS: usize = 2048;

/// So many segments stay in a processor's own cache: 256 KiB.
const NEAR: u64 = 256;

impl Entry {
    /// The table's part of the decision: whether the entry admits the request, and where its blocks are if they are in
    /// the first range. One line is read. `None` means no more than that this does not decide it.
    #[inline(always)]
    fn find(&self, domain: Domain, request: &Request) -> Option<Place> {
        // The state first: if it says that the entry is open, the other fields are of this life.
        // Beside that no extension may be named.
        if self.state.objections(request.key.0, request.operation.enough()) | request.extension.0 != 0 {
            return None;
        }
        let shape = self.shape();
        if shape.domain() != domain {
            return None;
        }
        // What is not aligned is beyond any range, and so is the last of no blocks.
        let range = self.first_range();
        let (offset, blocks) = (shape.in_blocks(request.offset), shape.in_blocks(request.length));
        if offset.checked_add(blocks.wrapping_sub(1))? >= range.blocks {
            return None;
        }
        if !self.is_sealed(request.key, shape, range) {
            return None;
        }
        Some(Place {
            lba: Lba(range.first + offset),
            blocks,
            block_shift: shape.shift(),
            upper: shape.upper(),
        })
    }

    /// As [`Entry::find`], of a file: if one extension has all blocks. Beside the entry's line that of the extension is read
    /// which had this part of the file last. If that is not the one, it is looked for, and found the next time. With the
    /// file's context.
    #[inline(always)]
    fn find_in_file(
        &self,
        table: &[Extension],
        domain: Domain,
        request: &Request,
        hints: &mut [Hint; HINTS],
        trace: &Trace,
    ) -> Option<(Place, u32)> {
        trace.touch(Touch::Entry(request.key.index()));
        if !self.state.admits(request.key.0, request.operation.enough()) {
            return None;
        }
        let shape = self.shape();
        if shape.domain() != domain {
            return None;
        }
        let list = self.sealed_list(request.key, shape, self.first_range())?;
        let (lba, blocks) = if request.extension == ExtensionKey::NONE {
            let hint = &mut hints[hint(request.key, shape.part(request.offset))];
            // It never had a number that the file's segment has no room for, and that has become no smaller: so no other
            // file's entry is read. One that is no extension any more, or is none yet, is not open.
            let extension = if hint.file == request.key {
                table.get(list.root as usize + hint.number as usize)
            } else {
                None
            };
            if extension.is_some() {
                trace.touch(Touch::Extension(list.root + hint.number));
            }
            match extension.and_then(|its| its.place(shape, hint.number, request)) {
                Some(found) => found,
                None => return self.look_for(table, hint, request.key, request.offset, trace),
            }
        } else {
            let number = request.extension.index().0;
            self.extensions_as(shape, table, request.key)?
                .get(number, trace)?
                .place(shape, number, request)?
        };
        let place = Place { lba: Lba(lba), blocks, block_shift: shape.shift(), upper: shape.upper() };
        Some((place, list.length))
    }

    /// Looks for the extension that has a byte of the file, so that the next one who asks finds it.
    #[cold]
    #[inline(never)]
    fn look_for<T>(
        &self,
        table: &[Extension],
        hint: &mut Hint,
        file: Key,
        at: u64,
        trace: &Trace,
    ) -> Option<T> {
        let extensions = self.extensions(table, file)?;
        // Else it does not admit what is asked for, or has not all of it.
        if hint.file != file || !extensions.has(hint.number, at, trace) {
            *hint = Hint { file, number: extensions.search(at, trace)? };
        }
        None
    }
}

/// Which extension of a file had a part of it last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Hint {
    /// As long as it has this key its segment does not become smaller.
    file: Key,
    number: u32,
}

impl Hint {
    /// Of no file: no instance is that.
    const NONE: Self = Self { file: Key(u64::MAX), number: 0 };
}

/// Where it is kept which extension has a part of a file.
#[inline(always)]
fn hint(file: Key, part: u64) -> usize {
    // Few parts, as most files have, are side by side, and those of the next file behind them.
    #[allow(clippy::cast_possible_truncation)] // the low bits are meant
    let place = (file.0 << 4).wrapping_add(part) as usize;
    place % HINTS
}

/// Where all blocks of a request are: one after another, as most are. See [`Directory::look_up`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The first device block.
    pub lba: Lba,
    /// How many.
    pub blocks: u64,
    /// The size of one as a power of two.
    pub block_shift: u8,
    /// What a grant takes along of its entry's shape.
    upper: u16,
}

/// One poller's directory: pointers to at most as many segments as it may hold, and how many I/O are active on each
/// entry and region. Private; nothing shared is written by a check.
///
/// The counts are not in what the pointers lead to, and there is one for each entry of the table: so a pointer may
/// always be dropped, also with I/O active, and nobody can fill the directory with busy segments and shut others out.
///
/// A check that finds its segment at hand, and its request in the first range of its grant, reads the entry's line and the
/// region's of what is shared, and writes nothing there. Of its own it reads the pointer and writes counts, which are small
/// and close together: two bytes for an entry.
#[derive(Debug)]
pub struct Directory<S: SegmentSource = Published> {
    entries: Arc<[Entry]>,
    /// One for each entry of the table.
    own: Box<[Own]>,
    memories: Memories,
    extensions: Arc<[Extension]>,
    /// Of parts of files which extension was used there last. Different parts may share one: whatever it says, the extension
    /// is asked, and if it is not the one, that is looked for.
    hints: Box<[Hint; HINTS]>,
    lba: Arc<[LbaEntry]>,
    /// Which segments are at hand, or `NONE`.
    residents: Box<[u32]>,
    /// Where in `residents` the search for a pointer to drop goes on (the clock algorithm).
    hand: usize,
    counters: DirectoryCounters,
    published: Arc<Published>,
    source: Arc<S>,
    trace: Trace,
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
            entries: Arc::clone(&published.entries),
            own: Own::of(published.segment_count()),
            memories: Memories::new(
                Arc::clone(&published.regions),
                limits.regions as usize,
                published.enrol(),
            ),
            extensions: Arc::clone(&published.extensions),
            hints: Box::new([Hint::NONE; HINTS]),
            lba: Arc::clone(&published.lba),
            residents: vec![NONE; residents].into(),
            hand: 0,
            counters: DirectoryCounters::default(),
            published,
            source,
            trace: Trace::default(),
        }
    }

    /// The decision: whether `domain` may do `request`. Every field of the request is hostile.
    ///
    /// # Errors
    /// The first check that fails, in the order of [`Denied`] but with the domain of the entry's segment before
    /// anything is fetched. Nothing has changed then.
    #[inline]
    pub fn check(&mut self, domain: Domain, request: &Request) -> Result<Grant, Denied> {
        self.check_quickly::<true>(domain, request)
    }

    /// As [`Directory::check`], but `request.memory` is not looked at: the memory is a list, of which each piece is
    /// held by itself with [`Directory::hold`].
    ///
    /// # Errors
    /// As `check`, but never `Memory`.
    #[inline]
    pub fn check_scattered(&mut self, domain: Domain, request: &Request) -> Result<Grant, Denied> {
        self.check_quickly::<false>(domain, request)
    }

    /// The grant of a request that is as nearly all are: its segment is at hand, all its blocks are in the first range of its
    /// entry, and nothing is wrong. `None` says no more than that [`Directory::check`] is to decide; nothing has changed
    /// then.
    #[inline]
    pub fn check_plain(&mut self, domain: Domain, request: &Request) -> Option<Grant> {
        self.grant_at_once::<true>(domain, request)
    }

    /// As [`Directory::check_plain`], if all its blocks are in the extension of a file where that part of it was found last;
    /// with that file's [`context`](Directory::context). Where that was elsewhere it is looked for, and asking once more may
    /// do.
    #[inline(always)]
    pub fn check_in_file(&mut self, domain: Domain, request: &Request) -> Option<(Grant, u32)> {
        self.grant_in_file::<true>(domain, request)
    }

    /// The part of the decision that the table of entries has: whether its entry admits a request of `domain` by index,
    /// instance, domain, rights, bounds and alignment, and where its blocks are. `None`: refused, or not to be decided
    /// without the LBA table.
    ///
    /// It tells where time goes, and no more: it does not ask whether the segment is at hand, counts nothing, and so nobody
    /// may act on it.
    #[inline]
    pub fn look_up(&self, domain: Domain, request: &Request) -> Option<Place> {
        self.entries.get(request.key.index().0 as usize)?.find(domain, request)
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
        let aligned = memory.offset & 3 == 0 || operation == Operation::WriteBytes;
        if length == 0 || !aligned {
            return Err(Denied::Memory);
        }
        let found = self.memories.find_piece(domain, operation, memory, length);
        let (region, iova) = found.ok_or(Denied::Memory)?;
        Ok(Hold { iova, counted: self.memories.begin(region) })
    }

    /// Whether so many segments are at hand that it pays to ask for entries before they are needed.
    #[inline]
    pub fn is_far(&self) -> bool {
        self.counters.fetches - self.counters.evictions > NEAR
    }

    /// A hint: brings nearer what a check of the key will read. Changes nothing and answers nothing.
    ///
    /// It pays before several checks: their entries then come from memory all at once and not one after another. Of few
    /// entries nothing is far.
    #[inline]
    pub fn prefetch(&self, key: Key) {
        let index = key.index().0 as usize;
        if self.is_far() && self.own.get(index).is_some_and(|own| own.is_at_hand()) {
            // Nobody waits for what is loaded here.
            hint::black_box(self.entries[index].shape());
        }
    }

    /// With `MEMORY` the request's memory is checked and counted, too.
    #[inline(always)]
    fn check_quickly<const MEMORY: bool>(
        &mut self,
        domain: Domain,
        request: &Request,
    ) -> Result<Grant, Denied> {
        if let Some(grant) = self.grant_at_once::<MEMORY>(domain, request) {
            return Ok(grant);
        }
        self.check_slowly::<MEMORY>(domain, request)
    }

    /// Whatever is not granted at once.
    #[inline(never)]
    fn check_slowly<const MEMORY: bool>(
        &mut self,
        domain: Domain,
        request: &Request,
    ) -> Result<Grant, Denied> {
        match self.grant_in_file::<MEMORY>(domain, request) {
            Some((grant, _)) => Ok(grant),
            None => self.check_in_order::<MEMORY>(domain, request),
        }
    }

    /// The decision for nearly all requests: the segment is at hand, all blocks are in the first range, and nothing is wrong.
    /// Whatever else it is, the check in order tells.
    #[inline(always)]
    fn grant_at_once<const MEMORY: bool>(&mut self, domain: Domain, request: &Request) -> Option<Grant> {
        let Self { entries, own, memories, .. } = self;
        let index = request.key.index();
        let (entry, own) = (entries.get(index.0 as usize)?, own.get_mut(index.0 as usize)?);
        if !own.is_at_hand() {
            return None;
        }
        let place = entry.find(domain, request)?;
        grant_place::<MEMORY>(own, memories, domain, request, place)
    }

    /// As [`Self::grant_at_once`], if all blocks are in one extension of a file, whichever; and that file's context.
    #[inline(always)]
    fn grant_in_file<const MEMORY: bool>(
        &mut self,
        domain: Domain,
        request: &Request,
    ) -> Option<(Grant, u32)> {
        let Self { entries, own, memories, extensions, hints, trace, .. } = self;
        let index = request.key.index();
        let (entry, own) = (entries.get(index.0 as usize)?, own.get_mut(index.0 as usize)?);
        if !own.is_at_hand() {
            return None;
        }
        let (place, context) = entry.find_in_file(extensions, domain, request, hints, trace)?;
        Some((grant_place::<MEMORY>(own, memories, domain, request, place)?, context))
    }

    fn fetch(&mut self, segment: u32) -> Result<(), Denied> {
        let Segment(segment) = self.source.fetch(segment).ok_or(Denied::Segment)?;
        let place = self.make_room();
        self.residents[place] = segment;
        counts::bring(counts::of_segment(&mut self.own, segment));
        self.counters.fetches += 1;
        Ok(())
    }

    /// An empty place, after dropping the first pointer not used again since the hand last passed it.
    fn make_room(&mut self) -> usize {
        loop {
            let place = self.hand;
            self.hand = if place + 1 == self.residents.len() { 0 } else { place + 1 };
            let resident = self.residents[place];
            if resident == NONE {
                return place; // nothing is there
            }
            if !counts::pass(counts::of_segment(&mut self.own, resident)) {
                self.drop_pointer(resident);
                return place;
            }
        }
    }

    fn drop_pointer(&mut self, segment: u32) {
        counts::drop_segment(counts::of_segment(&mut self.own, segment));
        self.counters.evictions += 1;
    }

    #[inline]
    fn is_at_hand(&self, entry: EntryIndex) -> bool {
        self.own.get(entry.0 as usize).is_some_and(|own| own.is_at_hand())
    }

    /// Gives a grant back: the device is done with it. The only way to end one.
    ///
    /// # Panics
    /// If the grant is not of this directory, which is a fault in the caller.
    #[inline]
    pub fn release(&mut self, grant: Grant) {
        let Grant { key, counted, .. } = *grant.forget();
        self.memories.end(counted);
        self.own[key.index().0 as usize].end();
    }

    /// Gives a hold back: the device is done with that memory. The only way to end one.
    ///
    /// # Panics
    /// If the hold is not of this directory, which is a fault in the caller.
    #[inline]
    pub fn release_hold(&mut self, hold: Hold) {
        self.memories.end(hold.forget().counted);
    }

    /// Whether this poller has no I/O active on the entry.
    #[inline]
    pub fn entry_is_idle(&self, entry: EntryIndex) -> bool {
        self.own.get(entry.0 as usize).is_none_or(|own| own.active() == 0)
    }

    /// Whether this poller has no I/O active on the memory region.
    #[inline]
    pub fn region_is_idle(&self, region: RegionIndex) -> bool {
        self.memories.is_idle(region)
    }

    /// How large the tables are.
    pub fn limits(&self) -> crate::Limits {
        self.published.limits
    }

    /// Between which addresses its counts and pointers lie: for who would have them in larger pages.
    pub fn addresses(&self) -> [Range<usize>; 1] {
        [published::addresses(&self.own)]
    }

    /// What it did so far.
    pub fn counters(&self) -> DirectoryCounters {
        self.counters
    }

    /// What checks and pieces have looked at since the last call, in that order; from the first call on it is kept.
    #[cfg(any(test, feature = "oracle"))]
    pub fn take_trace(&self) -> Vec<Touch> {
        self.trace.take()
    }

    /// Drops the pointer to the entry's segment, if there is one: a fault for tests.
    #[cfg(any(test, feature = "oracle"))]
    pub fn evict(&mut self, entry: EntryIndex) {
        let segment = entry.0 / crate::SEGMENT_ENTRIES;
        if let Some(place) = self.residents.iter_mut().find(|place| **place == segment) {
            *place = NONE;
            self.drop_pointer(segment);
        }
    }
}

/// The rest of the decision about a request whose blocks were found.
#[inline(always)]
fn grant_place<const MEMORY: bool>(
    own: &mut Own,
    memories: &mut Memories,
    domain: Domain,
    request: &Request,
    place: Place,
) -> Option<Grant> {
    let memory = if MEMORY {
        if request.memory.offset & 3 != 0 {
            return None;
        }
        memories.find(domain, request)?
    } else {
        (NONE, 0)
    };
    own.mark_used();
    let Place { lba, blocks, upper, .. } = place;
    Some(count(own, memories, request, Located { first: lba.0, blocks, root: NONE, upper }, memory))
}

/// Counts a request as active and makes the token of it.
#[inline(always)]
fn count(
    own: &mut Own,
    memories: &mut Memories,
    request: &Request,
    Located { first, blocks, root, upper }: Located,
    (region, iova): (u32, u64),
) -> Grant {
    own.begin();
    let counted = memories.begin(region);
    let (key, operation) = (request.key, request.operation);
    Grant { key, first, blocks, iova, counted, root, operation, shape: upper }
}

/// Where the blocks of a request are.
#[derive(Clone, Copy)]
struct Located {
    /// The first one: on the device, or in its entry's list.
    first: u64,
    blocks: u64,
    /// Of the list, or the segment of extensions; `NONE` if all are one after another.
    root: u32,
    /// Of the entry's shape.
    upper: u16,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Access, ExtensionKey, GrantSpec, KeyInstance, LbaRange, Limits, Purpose, Tables};

    /// A poller that looked the segment up before it changed hands meets the entry of the new domain, perhaps with the
    /// instance that it guessed: the entry's own domain stops it. The new one is served at once.
    #[test]
    fn s4_r6_the_entry_has_the_last_word_on_its_domain() {
        let limits = Limits { entries: 16, lba_entries: 4, extensions: 0, regions: 1 };
        let mut tables = Tables::<32>::new(limits, KeyInstance(1));
        let (former, new) = (Domain(1), Domain(2));
        let mut directory = Directory::new(tables.published(), 1);
        let ranges = [LbaRange { first: Lba(0), count: crate::Blocks(8) }];
        let memory = Memory { region: crate::RegionKey::default(), offset: 0 };
        let grant_to = |tables: &mut Tables, domain| {
            let spec =
                GrantSpec { domain, access: Access::ALL, block_shift: 9, ranges: &ranges, shared: false };
            let key = tables.create(&spec).unwrap();
            (
                key,
                Request {
                    operation: Operation::Deallocate,
                    key,
                    extension: ExtensionKey::NONE,
                    offset: 0,
                    length: 512,
                    memory,
                },
            )
        };
        let (key, request) = grant_to(&mut tables, former);
        let grant = directory.check(former, &request).unwrap();
        directory.release(grant);
        let quiesce = tables.begin(None, key, Purpose::Delete).unwrap();
        tables.finish_delete(quiesce);
        let (key, request) = grant_to(&mut tables, new);
        assert_eq!(key.index().0, 0);
        assert!(directory.is_at_hand(key.index()), "it is at hand still");
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
