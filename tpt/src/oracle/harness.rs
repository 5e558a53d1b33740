//! Tables, two pollers and the model, kept in step.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::model::Model;
use super::{DOMAINS, Op, Pick, SmallRange, SmallRequest};
use crate::{
    Access, Attributes, Blocks, Denied, Directory, DirectoryCounters, Domain, EntryIndex, ExtensionKey,
    ExtensionNumber, FileModification, Grant, GrantSpec, Hold, Iova, Key, KeyInstance, Lba, LbaRange, Limits,
    Memory, Modification, Operation, Published, Purpose, Quiesce, RegionIndex, RegionKey, RegionQuiesce,
    RegionSpec, Request, Segment, SegmentSource, Tables, Usage,
};

/// The width of an instance: narrow, so that indexes retire within a short run.
const WIDTH: u32 = 2;
pub(super) const SHIFT: u8 = 9;
/// Two segments and a short one, and a number of extensions that is no power of two.
const LIMITS: Limits = Limits { entries: 36, lba_entries: 14, extensions: 13, regions: 3 };
/// A segment and a short one: the least that two domains can have.
const SMALLEST: Limits = Limits { entries: 18, lba_entries: 7, extensions: 6, regions: 2 };
pub(super) const POLLERS: usize = 2;
/// More grants in flight than this are not started.
const FLYING: usize = 64;

/// A source of segments that fails when told to.
#[derive(Debug)]
pub(super) struct Flaky {
    published: Arc<Published>,
    fails: AtomicBool,
}

impl SegmentSource for Flaky {
    fn fetch(&self, segment: u32) -> Option<Segment> {
        if self.fails.load(Relaxed) { None } else { self.published.fetch(segment) }
    }
}

/// What the model says of a request: the blocks, and where the memory is if it is held with them.
type Expected = Result<(Vec<u64>, Option<u64>), Denied>;

/// A grant in flight, and what the model says of it.
#[derive(Debug)]
struct Flying {
    poller: usize,
    grant: Grant,
    blocks: Vec<u64>,
    iova: Option<u64>,
}

/// The tables and the model side by side. Each [`Harness::apply`] compares.
#[derive(Debug)]
pub struct Harness {
    limits: Limits,
    pub(super) tables: Tables<WIDTH>,
    published: Arc<Published>,
    source: Arc<Flaky>,
    pub(super) pollers: Vec<Directory<Flaky>>,
    pub(super) model: Model,
    pub(super) keys: Vec<Key>,
    /// And of which index they are.
    pub(super) extension_keys: Vec<(EntryIndex, ExtensionKey)>,
    region_keys: Vec<RegionKey>,
    pub(super) tokens: Vec<(Quiesce, u64)>,
    region_tokens: Vec<RegionQuiesce>,
    flying: Vec<Flying>,
    holds: Vec<(usize, Hold)>,
    next_token: u64,
}

impl Default for Harness {
    fn default() -> Self {
        Self::new()
    }
}

/// The place of the `back`-th newest of `len`.
pub(super) fn newest(len: usize, back: u8) -> Option<usize> {
    (len > 0).then(|| len - 1 - usize::from(back) % len)
}

fn domain(number: u8) -> Domain {
    Domain(u32::from(number % DOMAINS))
}

fn access(bits: u8) -> Access {
    Access::from_bits(bits & 7).unwrap_or(Access::NONE)
}

fn ranges(small: &[SmallRange]) -> Vec<LbaRange> {
    let range = |&(first, count): &SmallRange| LbaRange {
        first: Lba(u64::from(first % 64)),
        count: Blocks(u64::from(count % 8)),
    };
    small.iter().take(16).map(range).collect()
}

/// The same of a file: what begins in the last part is a hole.
fn extents(small: &[SmallRange]) -> Vec<LbaRange> {
    let mut all = ranges(small);
    for (range, (first, _)) in all.iter_mut().zip(small) {
        range.first.0 |= u64::from(first % 128 >= 112) << 63;
    }
    all
}

/// An index and an instance, bent; `beyond` is the first index that is none.
fn bend(pick: Pick, index: u32, instance: u32, beyond: u32) -> (u32, u32) {
    match pick.bend % 16 {
        0 => (index, instance.wrapping_add(1)),
        1 => (index + 1, instance),
        2 => (beyond + index, instance),
        _ => (index, instance),
    }
}

impl Harness {
    /// Empty tables, two pollers with room for one segment each.
    pub fn new() -> Self {
        Self::with_limits(LIMITS)
    }

    /// The same with as little as two domains and two regions need, so that very many short runs take little time.
    pub fn smallest() -> Self {
        Self::with_limits(SMALLEST)
    }

    fn with_limits(limits: Limits) -> Self {
        let tables = Tables::new(limits, KeyInstance(0));
        let published = tables.published();
        let source = Arc::new(Flaky { published: Arc::clone(&published), fails: AtomicBool::new(false) });
        let poller = |_| Directory::with_source(Arc::clone(&published), Arc::clone(&source), 1);
        Self {
            pollers: (0..POLLERS).map(poller).collect(),
            tables,
            source,
            published,
            limits,
            model: Model::new(limits, (1 << WIDTH) - 1),
            keys: Vec::new(),
            extension_keys: Vec::new(),
            region_keys: Vec::new(),
            tokens: Vec::new(),
            region_tokens: Vec::new(),
            flying: Vec::new(),
            holds: Vec::new(),
            next_token: 0,
        }
    }

    /// Does one operation on both sides, compares the answers, and checks all invariants.
    ///
    /// # Panics
    /// Where something differs.
    pub fn apply(&mut self, op: &Op) {
        let before = self.published.snapshot();
        let may_write = self.step(op);
        // S4-R14: what was refused, and what only reads, changed nothing.
        assert!(may_write || self.published.snapshot() == before, "{op:?} changed the tables");
        self.compare();
    }

    /// Does one operation on both sides and compares the answers, no more. Returns whether it may have written to the
    /// tables.
    ///
    /// # Panics
    /// Where they differ.
    pub fn step(&mut self, op: &Op) -> bool {
        match op {
            Op::Create { domain: number, access: bits, shared, ranges: small } => {
                self.create(domain(*number), access(*bits), *shared, &ranges(small))
            }
            Op::CreateFile { domain: number, access: bits, shared, extents } => {
                self.create_file(domain(*number), access(*bits), *shared, &self::extents(extents))
            }
            Op::ExtendFile { caller, key, extents } => {
                self.extend_file(caller.map(domain), self.pick(*key), &self::extents(extents))
            }
            Op::FinishFile { back, access: bits, keep, append } => {
                let (access, keep, append) = (bits.map(access), Self::kept(*keep), extents(append));
                self.finish_file(*back, &FileModification { access, keep, append: &append })
            }
            Op::BeginModify { caller, key } => self.begin(*caller, *key, Purpose::Modify),
            Op::BeginDelete { caller, key } => self.begin(*caller, *key, Purpose::Delete),
            Op::BeginRevoke { caller, key } => self.begin(*caller, *key, Purpose::Revoke),
            Op::Finish { back, access: bits, ranges: small } => {
                self.finish(*back, bits.map(access), small.as_deref().map(ranges).as_deref())
            }
            Op::Cancel { back } => self.cancel(*back),
            Op::CreateRegion { domain: number, access: bits, bytes } => {
                self.create_region(domain(*number), access(*bits), *bytes)
            }
            Op::BeginRegionDelete { caller, region } => self.begin_region_delete(*caller, *region),
            Op::FinishRegionDelete { back } => self.finish_region_delete(*back),
            Op::Evict { .. } | Op::FailFetches { .. } | Op::Prefetch { .. } => self.disturb(op),
            _ => self.read(op),
        }
    }

    /// Ends everything in flight, revokes all that is left, and looks for leaks.
    ///
    /// # Panics
    /// Where something is left.
    pub fn tear_down(mut self) {
        while !self.flying.is_empty() {
            self.apply(&Op::Release { back: 0 });
        }
        while !self.holds.is_empty() {
            self.apply(&Op::ReleaseHold { back: 0 });
        }
        while !self.tokens.is_empty() {
            self.apply(&Op::Cancel { back: 0 });
        }
        while !self.region_tokens.is_empty() {
            self.apply(&Op::FinishRegionDelete { back: 0 });
        }
        for its in (0..DOMAINS).map(domain) {
            for key in self.tables.keys_of(its) {
                match self.tables.begin(None, key, Purpose::Revoke) {
                    Ok(token) => self.tables.finish_delete(token),
                    Err(error) => panic!("{key} cannot be revoked: {error}"),
                }
            }
            for key in self.tables.regions_of(its) {
                match self.tables.begin_region_delete(None, key) {
                    Ok(token) => self.tables.finish_region_delete(token),
                    Err(error) => panic!("{key} cannot be deleted: {error}"),
                }
            }
        }
        assert_eq!(self.tables.usage(), Usage::default(), "something leaked");
        assert_eq!(self.tables.self_check(), Ok(()));
    }

    fn compare(&self) {
        assert_eq!(self.tables.self_check(), Ok(()));
        let usage = self.tables.usage();
        assert_eq!(usage.entries as usize, self.model.entries.len());
        assert_eq!(usage.lba_entries as usize, self.model.lba_entries());
        assert_eq!(usage.extensions as usize, self.model.extensions());
        assert_eq!(usage.regions as usize, self.model.regions.len());
        for number in 0..DOMAINS {
            let its = domain(number);
            let keys = self.model.entries.values().filter(|entry| entry.domain == its).map(|entry| entry.key);
            assert!(keys.eq(self.tables.keys_of(its)));
            let regions = self.model.regions.values().filter(|region| region.spec.domain == its);
            assert!(regions.map(|region| region.key).eq(self.tables.regions_of(its)));
        }
        for (number, poller) in self.pollers.iter().enumerate() {
            for index in 0..self.limits.entries {
                assert_eq!(poller.entry_is_idle(EntryIndex(index)), self.entry_is_idle(number, index));
            }
            for index in 0..self.limits.regions {
                assert_eq!(poller.region_is_idle(RegionIndex(index)), self.region_is_idle(number, index));
            }
        }
    }

    pub(super) fn fetches_fail(&self) -> bool {
        self.source.fails.load(Relaxed)
    }

    pub(super) fn entry_is_idle(&self, poller: usize, index: u32) -> bool {
        !self.flying.iter().any(|f| f.poller == poller && f.grant.key().index().0 == index)
    }

    fn region_is_idle(&self, poller: usize, index: u32) -> bool {
        let in_flight =
            |f: &Flying| f.poller == poller && f.iova.is_some() && f.grant.counted.region() == index;
        let held = |(its, hold): &(usize, Hold)| *its == poller && hold.region().0 == index;
        !self.flying.iter().any(in_flight) && !self.holds.iter().any(held)
    }

    fn pick(&self, pick: Pick) -> Key {
        let Some(place) = newest(self.keys.len(), pick.back) else {
            return Key::default();
        };
        let key = self.keys[place];
        let (index, instance) = bend(pick, key.index().0, key.instance().0, self.limits.entries);
        Key::new(EntryIndex(index), KeyInstance(instance))
    }

    fn pick_extension(&self, pick: Pick) -> ExtensionKey {
        let Some(place) = newest(self.extension_keys.len(), pick.back) else {
            return ExtensionKey::default();
        };
        let (_, key) = self.extension_keys[place];
        let (index, instance) = bend(pick, key.index().0, key.instance().0, self.limits.extensions);
        ExtensionKey::new(ExtensionNumber(index), KeyInstance(instance))
    }

    fn pick_region(&self, pick: Pick) -> RegionKey {
        let Some(place) = newest(self.region_keys.len(), pick.back) else {
            return RegionKey::default();
        };
        let key = self.region_keys[place];
        let (index, instance) = bend(pick, key.index().0, key.instance().0, self.limits.regions);
        RegionKey::new(RegionIndex(index), KeyInstance(instance))
    }

    fn create(&mut self, domain: Domain, access: Access, shared: bool, ranges: &[LbaRange]) -> bool {
        let spec = GrantSpec { domain, access, block_shift: SHIFT, ranges, shared };
        let expected = self.model.create(&spec);
        let answer = self.tables.create(&spec);
        assert_eq!(answer.map(|_| ()), expected, "{spec:?}");
        if let Ok(key) = answer {
            assert!(!self.keys.contains(&key), "{key} was handed out before");
            self.model.created(&spec, key);
            self.keys.push(key);
        }
        answer.is_ok()
    }

    fn begin(&mut self, caller: Option<u8>, key: Pick, purpose: Purpose) -> bool {
        let (caller, key) = (caller.map(domain), self.pick(key));
        self.next_token += 1;
        let expected = self.model.begin(caller, key, purpose, self.next_token);
        match self.tables.begin(caller, key, purpose) {
            Ok(token) => {
                assert_eq!(expected, Ok(()), "{purpose:?} {key}");
                assert_eq!((token.key(), token.entry(), token.purpose()), (key, key.index(), purpose));
                self.tokens.push((token, self.next_token));
                true
            }
            Err(error) => {
                assert_eq!(expected, Err(error), "{purpose:?} {key}");
                false
            }
        }
    }

    fn finish(&mut self, back: u8, access: Option<Access>, ranges: Option<&[LbaRange]>) -> bool {
        let Some(place) = newest(self.tokens.len(), back) else {
            return false;
        };
        let index = self.tokens[place].0.entry().0;
        if !(0..POLLERS).all(|poller| self.entry_is_idle(poller, index)) {
            return false; // no quiescent point: the control plane may not finish
        }
        let (token, number) = self.tokens.remove(place);
        let key = token.key();
        // A modify may also end as a delete: here, if it would change nothing.
        if token.purpose() != Purpose::Modify || (access.is_none() && ranges.is_none()) {
            self.model.finish_delete(key, number);
            self.tables.finish_delete(token);
            return true;
        }
        let change = Modification { access, ranges };
        let expected = self.model.finish_modify(key, number, &change);
        match self.tables.finish_modify(token, &change) {
            Ok(()) => {
                assert_eq!(expected, Ok(()), "{key} {change:?}");
                true
            }
            Err((token, error)) => {
                assert_eq!(expected, Err(error), "{key} {change:?}");
                self.tokens.push((token, number));
                false
            }
        }
    }

    fn cancel(&mut self, back: u8) -> bool {
        let Some(place) = newest(self.tokens.len(), back) else {
            return false;
        };
        let (token, number) = self.tokens.remove(place);
        self.model.cancel(token.key(), number);
        self.tables.cancel(token);
        true
    }

    fn create_region(&mut self, domain: Domain, access: Access, bytes: u8) -> bool {
        let bytes = u64::from(bytes) * 32;
        let iova = Iova(0x1000 * (1 + self.next_token) + u64::from(bytes == 32));
        let spec = RegionSpec { domain, access, iova, bytes };
        let expected = self.model.create_region(&spec);
        let answer = self.tables.create_region(&spec);
        assert_eq!(answer.map(|_| ()), expected, "{spec:?}");
        if let Ok(key) = answer {
            assert!(!self.region_keys.contains(&key), "{key} was handed out before");
            self.model.region_created(&spec, key);
            self.region_keys.push(key);
        }
        answer.is_ok()
    }

    fn begin_region_delete(&mut self, caller: Option<u8>, region: Pick) -> bool {
        let (caller, key) = (caller.map(domain), self.pick_region(region));
        let expected = self.model.begin_region_delete(caller, key);
        match self.tables.begin_region_delete(caller, key) {
            Ok(token) => {
                assert_eq!((expected, token.key()), (Ok(()), key));
                self.region_tokens.push(token);
                true
            }
            Err(error) => {
                assert_eq!(expected, Err(error), "{key}");
                false
            }
        }
    }

    fn finish_region_delete(&mut self, back: u8) -> bool {
        let Some(place) = newest(self.region_tokens.len(), back) else {
            return false;
        };
        let index = self.region_tokens[place].region().0;
        if !(0..POLLERS).all(|poller| self.region_is_idle(poller, index)) {
            return false;
        }
        self.model.regions.remove(&index);
        self.tables.finish_region_delete(self.region_tokens.remove(place));
        true
    }

    /// What must not write to the tables.
    fn read(&mut self, op: &Op) -> bool {
        match *op {
            Op::Query { domain: number, key } => self.query(domain(number), self.pick(key)),
            Op::Check { poller, domain: number, request } => {
                let request = self.request(&request);
                self.check(usize::from(poller) % POLLERS, domain(number), &request);
            }
            Op::LookAtFile { poller, domain: number, request } => {
                let Request { key, operation, .. } = self.request(&request);
                self.look_at_file(usize::from(poller) % POLLERS, domain(number), key, operation);
            }
            Op::CheckScattered { poller, domain: number, request } => {
                let request = self.request(&request);
                self.check_scattered(usize::from(poller) % POLLERS, domain(number), &request);
            }
            Op::Hold { poller, domain: number, request } => {
                let request = self.request(&request);
                self.hold(usize::from(poller) % POLLERS, domain(number), &request);
            }
            Op::ReleaseHold { back } => {
                if let Some(place) = newest(self.holds.len(), back) {
                    self.release_hold(place);
                }
            }
            Op::Resume { back, done } => {
                if let Some(place) = newest(self.flying.len(), back) {
                    self.compare_pieces(&self.flying[place], usize::from(done));
                }
            }
            Op::Release { back } => {
                if let Some(place) = newest(self.flying.len(), back) {
                    // Until its end a grant leads where it led at first, whatever began meanwhile.
                    self.compare_pieces(&self.flying[place], 0);
                    let Flying { poller, grant, .. } = self.flying.remove(place);
                    self.pollers[poller].release(grant);
                }
            }
            _ => {}
        }
        false
    }

    fn disturb(&mut self, op: &Op) -> bool {
        match *op {
            Op::Evict { poller, entry } => {
                self.pollers[usize::from(poller) % POLLERS].evict(EntryIndex(u32::from(entry)));
            }
            Op::FailFetches { fail } => self.source.fails.store(fail, Relaxed),
            Op::Prefetch { poller, key } => {
                self.pollers[usize::from(poller) % POLLERS].prefetch(self.pick(key));
            }
            _ => {}
        }
        false
    }

    fn query(&self, domain: Domain, key: Key) {
        let expected = self.model.query(domain, key).map(|entry| Attributes {
            key,
            domain: entry.domain,
            access: entry.access,
            block_shift: entry.shift,
            blocks: Blocks(entry.ranges.iter().map(|range| range.count.0).sum()),
            ranges: entry.ranges.clone(),
            shared: entry.shared,
            file: entry.file_attributes(),
        });
        assert_eq!(self.tables.query(domain, key), expected);
    }

    fn request(&self, small: &SmallRequest) -> Request {
        let operation = match small.operation % 9 {
            0 => Operation::Read,
            1 => Operation::Write { fua: false },
            2 => Operation::Write { fua: true },
            3 => Operation::Flush,
            4 => Operation::WriteZeroes { deallocate: false },
            5 => Operation::WriteZeroes { deallocate: true },
            6 => Operation::Deallocate,
            7 => Operation::Compare,
            _ => Operation::WriteBytes,
        };
        let (mut offset, mut length) =
            (u64::from(small.block % 16) << SHIFT, u64::from(small.blocks % 8) << SHIFT);
        match small.skew % 16 {
            0 => offset += 128,
            1 => length += 128,
            2 => offset = offset.wrapping_neg(),
            3 => length = length.wrapping_neg(),
            4 => offset += 1,
            5 => length += 3,
            6 => (offset, length) = (offset.wrapping_sub(1), length + 1),
            _ => {}
        }
        let memory = Memory { region: self.pick_region(small.region), offset: u64::from(small.memory) };
        let extension = small.extension.map_or(ExtensionKey::NONE, |pick| self.pick_extension(pick));
        Request { operation, key: self.pick(small.key), extension, offset, length, memory }
    }

    fn check(&mut self, poller: usize, domain: Domain, request: &Request) {
        let expected = self.model.check(domain, request);
        let before = self.pollers[poller].counters();
        self.pollers[poller].take_trace();
        let answer = self.pollers[poller].check(domain, request);
        self.compare_answer(poller, domain, request, (before, answer, expected));
    }

    fn check_scattered(&mut self, poller: usize, domain: Domain, request: &Request) {
        let expected = self.model.check_scattered(domain, request).map(|blocks| (blocks, None));
        let before = self.pollers[poller].counters();
        self.pollers[poller].take_trace();
        let answer = self.pollers[poller].check_scattered(domain, request);
        self.compare_answer(poller, domain, request, (before, answer, expected));
    }

    fn compare_answer(
        &mut self,
        poller: usize,
        domain: Domain,
        request: &Request,
        (before, answer, expected): (DirectoryCounters, Result<Grant, Denied>, Expected),
    ) {
        let after = self.pollers[poller].counters();
        // Of the number of an extension of an own file only the file's entry tells.
        let cheap = matches!(answer, Err(Denied::Domain | Denied::Segment))
            || request.key.index().0 >= self.limits.entries;
        if cheap {
            assert_eq!(before, after, "{request:?} cost a fetch or an eviction");
        }
        match answer {
            Ok(grant) => {
                let (blocks, iova) = match expected {
                    Ok(expected) => expected,
                    Err(denied) => panic!("{request:?} of {domain} granted, not {denied:?}"),
                };
                assert_eq!((grant.key(), grant.operation()), (request.key, request.operation));
                let count = blocks.len() as u64;
                assert_eq!(
                    (grant.blocks(), grant.bytes(), grant.block_shift()),
                    (count, count << SHIFT, SHIFT)
                );
                let file =
                    self.model.entries.get(&request.key.index().0).and_then(|entry| entry.file.as_ref());
                assert_eq!(self.pollers[poller].context(&grant), file.map(|file| file.context));
                assert_eq!(grant.is_file(), file.is_some());
                let flying = Flying { poller, grant, blocks, iova };
                self.compare_pieces(&flying, 0);
                self.flying.push(flying);
                if self.flying.len() > FLYING {
                    let Flying { poller, grant, .. } = self.flying.remove(0);
                    self.pollers[poller].release(grant);
                }
            }
            Err(Denied::Segment) => {
                assert!(self.source.fails.load(Relaxed), "{request:?}");
                let beyond = request.key.index().0 >= self.limits.entries;
                assert!(!beyond && !matches!(expected, Err(Denied::Domain)), "{request:?}");
            }
            Err(denied) => assert_eq!(expected, Err(denied), "{request:?} of {domain}"),
        }
        self.compare_trace(poller, request.key);
    }

    fn hold(&mut self, poller: usize, domain: Domain, request: &Request) {
        let Request { operation, memory, length, .. } = *request;
        let expected = self.model.memory(domain, operation, memory, length).filter(|_| length > 0);
        match self.pollers[poller].hold(domain, operation, memory, length) {
            Ok(hold) => {
                assert_eq!(Some(hold.iova().0), expected, "{request:?} of {domain}");
                assert_eq!(hold.region(), memory.region.index());
                self.holds.push((poller, hold));
                if self.holds.len() > FLYING {
                    self.release_hold(0);
                }
            }
            Err(denied) => assert_eq!((denied, expected), (Denied::Memory, None), "{request:?} of {domain}"),
        }
    }

    fn release_hold(&mut self, place: usize) {
        let (poller, hold) = self.holds.remove(place);
        self.pollers[poller].release_hold(hold);
    }

    /// That the pieces from `done` on are, block by block, what the model says.
    fn compare_pieces(&self, flying: &Flying, done: usize) {
        let copied = flying.grant.operation() == Operation::WriteBytes;
        let first = flying.iova.filter(|_| !copied);
        let address = |block: usize| first.map_or(0, |iova| iova + ((block as u64) << SHIFT));
        let mut at = done.min(flying.blocks.len());
        for piece in self.pollers[flying.poller].pieces(&flying.grant, done as u64) {
            assert!(piece.blocks > 0);
            assert_eq!(piece.iova.0, address(at), "address of block {at} of {:?}", flying.grant);
            for lba in piece.lba.0..piece.lba.0 + piece.blocks {
                assert_eq!(flying.blocks.get(at), Some(&lba), "block {at} of {:?}", flying.grant);
                at += 1;
            }
        }
        assert_eq!(at, flying.blocks.len(), "{:?} has too few pieces", flying.grant);
        if let Some(only) = self.pollers[flying.poller].only_piece(&flying.grant) {
            let all = self.pollers[flying.poller].pieces(&flying.grant, 0);
            assert!(all.eq([only]), "{only:?} is not all of {:?}", flying.grant);
        }
    }
}
