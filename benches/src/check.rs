//! The decision of the protection tables beside a bare direct index: what `benches/check.rs` prints and `cargo xtask
//! bench` judges.
//!
//! How to use it: [`measure`] builds tables and bare index of a size, runs all [`Subject`]s in all [`Scene`]s in turns, and
//! answers with [`Figures`]: medians of nine with their spread, and the ratios to the bare index, each of two runs side
//! by side. [`needed_bytes`] says beforehand how much memory that takes, [`free_bytes`] how much there is. To count instructions run [`Rig::run`] of one
//! subject and one scene under callgrind with `--toggle-collect='*benches::check::counted*'`, for [`Subject::Nothing`],
//! too, whose count is the loop that makes up requests; `cargo bench -p benches --bench check -- --count table 1000 100000`
//! is such a program (`nothing`, `bare`, `table`, `whole`; entries; requests).
//!
//! Subjects:
//! - `Nothing`: the request is made up, and that is all. What it costs is in each of the other times.
//! - `Bare`: an array of records of the same 64 bytes. Index, instance, domain, access and bounds are compared, and the
//!   device block computed. No segments, no state, no alignment, no seal against damage, no counts, no memory region,
//!   nothing to give back.
//! - `Table`: [`Directory::look_up`], which is what `check` does first with the entry: index, state, instance, domain, access,
//!   bounds, alignment and the seal are compared, and the device block computed. Not whether the segment is at hand.
//! - `Whole`: [`Directory::check_plain`] and, where that leaves it, `check`, as an engine asks; with the memory region, the
//!   counts, the device block and [`Directory::release`].

use std::hint::black_box;
use std::ops::Range;
use std::time::Instant;
use std::{fs, io};

use adapter::resident::in_large_pages;
use tpt::{
    Access, Denied, Directory, Domain, EntryIndex, ExtensionKey, GrantSpec, Iova, Key, KeyInstance, LbaRange,
    Limits, Memory, Operation, RegionKey, RegionSpec, Request, SEGMENT_ENTRIES, Tables,
};

const BLOCK_SHIFT: u8 = 12;
/// Of each grant: 64 KiB.
const BLOCKS: u64 = 16;
/// Of each request: one block.
const BYTES: u64 = 1 << BLOCK_SHIFT;
const DOMAIN: Domain = Domain(7);
const STRANGER: Domain = Domain(8);
const INSTANCE: KeyInstance = KeyInstance(1);
const STALE: KeyInstance = KeyInstance(2);
/// Of the memory region.
const IOVA: u64 = 0x10_0000;
const REGION_BYTES: u64 = 1 << 20;
/// What an engine takes from a queue in a turn.
const BURST: usize = 32;
/// Of each figure.
const RUNS: usize = 9;

/// What is done with each request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subject {
    /// Nothing.
    Nothing,
    /// The bare index.
    Bare,
    /// Index, instance, domain, access, bounds and the device block by the tables.
    Table,
    /// All of the decision, and giving back.
    Whole,
}

impl Subject {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Nothing, Self::Bare, Self::Table, Self::Whole];

    /// One word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Bare => "bare",
            Self::Table => "table",
            Self::Whole => "whole",
        }
    }
}

/// Which requests, and how one follows another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scene {
    /// Granted, at random places, none waiting for another: the machine overlaps their cache misses as far as it sees.
    Single,
    /// Granted, each place known only when the former request has been answered.
    Dependent,
    /// Granted, in bursts of 32, whose keys are all hinted at before the first is decided, on both sides alike.
    Burst,
    /// An index beyond the table.
    Miss,
    /// A stale instance.
    Stale,
    /// Another domain's entry.
    Stranger,
}

impl Scene {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Single, Self::Dependent, Self::Burst, Self::Miss, Self::Stale, Self::Stranger];

    /// One word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Dependent => "dependent",
            Self::Burst => "burst",
            Self::Miss => "miss",
            Self::Stale => "stale",
            Self::Stranger => "stranger",
        }
    }

    fn is_granted(self) -> bool {
        matches!(self, Self::Single | Self::Dependent | Self::Burst)
    }
}

/// Median, lowest and highest of nine.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Spread {
    /// The fifth of nine.
    pub median: f64,
    /// The least.
    pub low: f64,
    /// The most.
    pub high: f64,
}

impl Spread {
    fn of(mut values: [f64; RUNS]) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        Self { median: values[RUNS / 2], low: values[0], high: values[RUNS - 1] }
    }
}

/// One scene's figures.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// Which.
    pub scene: Scene,
    /// Nanoseconds for a request, by subject in the order of [`Subject::ALL`], the loop that makes it up included.
    pub ns: [Spread; 4],
    /// Times of the table part in those of the bare index.
    pub table_to_bare: Spread,
    /// Times of the whole decision in those of the bare index.
    pub whole_to_bare: Spread,
}

impl Figure {
    /// Nanoseconds for a request.
    pub fn of(&self, subject: Subject) -> Spread {
        self.ns[subject as usize]
    }
}

/// All figures of one size.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Of the tables and of the bare index.
    pub entries: u32,
    /// One for each scene, in the order of [`Scene::ALL`].
    pub scenes: Vec<Figure>,
}

impl Figures {
    /// A scene's.
    pub fn of(&self, scene: Scene) -> &Figure {
        &self.scenes[scene as usize]
    }
}

/// How much memory [`measure`] takes at most: with the control plane's copy about 600 bytes an entry.
pub fn needed_bytes(entries: u32) -> u64 {
    u64::from(entries) * 600
}

/// How much memory there is without taking it from anybody (MemAvailable of proc_meminfo(5)).
///
/// # Errors
/// If the kernel does not say.
pub fn free_bytes() -> io::Result<u64> {
    let told = fs::read_to_string("/proc/meminfo")?;
    let line = told.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).and_then(|word| word.parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Measures tables and bare index of that many entries, with so many requests in each of the nine runs of each subject in
/// each scene.
///
/// # Panics
/// If one of them answers what it must not.
pub fn measure(entries: u32, requests: u32) -> Figures {
    let mut rig = Rig::new(entries);
    rig.assert_agreement();
    let scenes = Scene::ALL.iter().map(|&scene| {
        for subject in Subject::ALL {
            rig.run(subject, scene, requests / 4); // warm
        }
        // One row a run, in which all subjects have their turn.
        let rows: [[f64; 4]; RUNS] = std::array::from_fn(|_| {
            Subject::ALL.map(|subject| {
                let start = Instant::now();
                rig.run(subject, scene, requests);
                start.elapsed().as_nanos() as f64 / f64::from(requests)
            })
        });
        let column = |subject: Subject| Spread::of(rows.map(|row| row[subject as usize]));
        let to_bare = |subject: Subject| {
            Spread::of(rows.map(|row| row[subject as usize] / row[Subject::Bare as usize]))
        };
        Figure {
            scene,
            table_to_bare: to_bare(Subject::Table),
            whole_to_bare: to_bare(Subject::Whole),
            ns: Subject::ALL.map(column),
        }
    });
    Figures { entries, scenes: scenes.collect() }
}

/// The peer: the fields of an entry and of its one range, in a cache line.
#[derive(Clone)]
#[repr(align(64))]
struct Record {
    instance: u32,
    domain: Domain,
    access: Access,
    shift: u8,
    bytes: u64,
    first: u64,
}

/// Something that decides: the device block, or a refusal.
trait Decide {
    fn decide(&mut self, domain: Domain, request: &Request) -> Option<u64>;
    fn prefetch(&mut self, _key: Key) {}
}

struct Nothing;
/// The same, where everything is to be refused.
struct Nobody;
struct Bare(Box<[Record]>);
struct Table(Directory);
struct Whole(Directory);

impl Decide for Nothing {
    #[inline(always)]
    fn decide(&mut self, _domain: Domain, request: &Request) -> Option<u64> {
        Some(request.offset)
    }
}

impl Decide for Nobody {
    #[inline(always)]
    fn decide(&mut self, _domain: Domain, _request: &Request) -> Option<u64> {
        None
    }
}

impl Decide for Bare {
    #[inline(always)]
    fn decide(&mut self, domain: Domain, request: &Request) -> Option<u64> {
        let record = self.0.get(request.key.index().0 as usize)?;
        let granted = record.instance == request.key.instance().0
            && record.domain == domain
            && record.access.allows(Access::READ)
            && request.offset.checked_add(request.length)? <= record.bytes;
        granted.then(|| record.first + (request.offset >> record.shift))
    }

    #[inline(always)]
    fn prefetch(&mut self, key: Key) {
        if let Some(record) = self.0.get(key.index().0 as usize) {
            black_box(record.bytes);
        }
    }
}

impl Decide for Table {
    #[inline(always)]
    fn decide(&mut self, domain: Domain, request: &Request) -> Option<u64> {
        let Some(request) = as_read(request) else { wrong() };
        self.0.look_up(domain, &request).map(|place| place.lba.0)
    }

    #[inline(always)]
    fn prefetch(&mut self, key: Key) {
        self.0.prefetch(key);
    }
}

impl Decide for Whole {
    #[inline(always)]
    fn decide(&mut self, domain: Domain, request: &Request) -> Option<u64> {
        let Some(request) = as_read(request) else { wrong() };
        // First for what is as nearly all are.
        let Some(grant) = self.0.check_plain(domain, &request) else {
            return self.decide_rest(domain, &request);
        };
        let piece = self.0.only_piece(&grant);
        self.0.release(grant);
        piece.map(|piece| piece.lba.0 ^ piece.iova.0)
    }

    #[inline(always)]
    fn prefetch(&mut self, key: Key) {
        self.0.prefetch(key);
    }
}

/// As an engine asks, which looks at the operation once and then decides where it is known. The bare index knows nothing but
/// reads.
#[inline(always)]
fn as_read(request: &Request) -> Option<Request> {
    (request.operation == Operation::Read).then_some(Request { operation: Operation::Read, ..*request })
}

impl Whole {
    #[cold]
    #[inline(never)]
    fn decide_rest(&mut self, domain: Domain, request: &Request) -> Option<u64> {
        let grant = self.0.check(domain, request).ok()?;
        let block = self.0.pieces(&grant, 0).next().map(|piece| piece.lba.0 ^ piece.iova.0);
        self.0.release(grant);
        block
    }
}

/// Tables and bare index of one size, full: entry `i` grants 16 blocks from `16 i`.
pub struct Rig {
    entries: u32,
    bare: Bare,
    table: Table,
    whole: Whole,
    region: RegionKey,
    tables: Tables<32>,
}

impl Rig {
    /// Of that many entries.
    ///
    /// # Panics
    /// If the tables refuse to be filled.
    pub fn new(entries: u32) -> Self {
        let mut tables =
            Tables::new(Limits { entries, lba_entries: entries, extensions: 0, regions: 1 }, INSTANCE);
        for i in 0..entries {
            let ranges = [LbaRange::new(u64::from(i) * BLOCKS, BLOCKS).expect("a range of some blocks")];
            let spec = GrantSpec {
                domain: DOMAIN,
                access: Access::READ,
                block_shift: BLOCK_SHIFT,
                ranges: &ranges,
                shared: false,
            };
            let key = tables.create(&spec).expect("there is room for that many");
            assert_eq!(key, Key::new(EntryIndex(i), INSTANCE), "keys are counted up");
        }
        let region =
            RegionSpec { domain: DOMAIN, access: Access::WRITE, iova: Iova(IOVA), bytes: REGION_BYTES };
        let region = tables.create_region(&region).expect("there is room for one");
        let record = |i: u32| Record {
            instance: INSTANCE.0,
            domain: DOMAIN,
            access: Access::READ,
            shift: BLOCK_SHIFT,
            bytes: BLOCKS << BLOCK_SHIFT,
            first: u64::from(i) * BLOCKS,
        };
        // Every segment is fetched once before anything is measured.
        let directory = || {
            let segments = entries.div_ceil(SEGMENT_ENTRIES);
            let mut whole = Whole(Directory::new(tables.published(), segments as usize));
            for segment in 0..segments {
                let mut asker = Asker::new(entries, region, Scene::Single);
                asker.ask(segment * SEGMENT_ENTRIES, &mut whole).expect("it is granted");
            }
            whole.0
        };
        let (table, whole) = (Table(directory()), Whole(directory()));
        let bare: Box<[Record]> = (0..entries).map(record).collect();
        // As an adapter has them, and the peer alike.
        in_large_pages(tables.published().addresses());
        in_large_pages([&table.0, &whole.0].into_iter().flat_map(Directory::addresses));
        let Range { start, end } = bare.as_ptr_range();
        in_large_pages(std::iter::once(start.addr()..end.addr()));
        Self { entries, bare: Bare(bare), table, whole, region, tables }
    }

    /// So many requests of a scene, each decided by the subject.
    ///
    /// # Panics
    /// If one is granted that must not be, or the reverse.
    pub fn run(&mut self, subject: Subject, scene: Scene, requests: u32) {
        let asker = black_box(Asker::new(self.entries, self.region, scene));
        match subject {
            Subject::Nothing if scene.is_granted() => asker.run(&mut Nothing, requests),
            Subject::Nothing => asker.run(&mut Nobody, requests),
            Subject::Bare => asker.run(&mut self.bare, requests),
            Subject::Table => asker.run(&mut self.table, requests),
            Subject::Whole => asker.run(&mut self.whole, requests),
        }
        for directory in [&self.table.0, &self.whole.0] {
            let counters = directory.counters();
            assert_eq!(
                (counters.fetches, counters.evictions),
                (u64::from(self.entries.div_ceil(SEGMENT_ENTRIES)), 0)
            );
        }
    }

    /// That both sides say the same of what is asked here.
    fn assert_agreement(&mut self) {
        for scene in [Scene::Single, Scene::Miss, Scene::Stale, Scene::Stranger] {
            let mut asker = Asker::new(self.entries, self.region, scene);
            for _ in 0..100 {
                let place = asker.step();
                let bare = asker.ask(place, &mut self.bare);
                let request = asker.request;
                let table = self.table.decide(asker.domain, &request);
                assert_eq!((bare, bare.is_some()), (table, scene.is_granted()), "{request:?}");
                match (bare, self.whole.0.check(asker.domain, &request)) {
                    (Some(block), Ok(grant)) => {
                        let all: Vec<_> = self.whole.0.pieces(&grant, 0).collect();
                        assert_eq!((all.len(), all[0].lba.0, all[0].blocks), (1, block, 1));
                        assert_eq!(all[0].iova.0, IOVA + request.memory.offset);
                        self.whole.0.release(grant);
                    }
                    (None, Err(Denied::KeyRange)) => assert_eq!(scene, Scene::Miss),
                    (None, Err(Denied::KeyInstance)) => assert_eq!(scene, Scene::Stale),
                    (None, Err(Denied::Domain)) => assert_eq!(scene, Scene::Stranger),
                    (bare, answer) => panic!("{request:?}: {bare:?} and {answer:?}"),
                }
            }
        }
        assert_eq!(self.tables.usage().entries, self.entries);
    }
}

/// Makes up the requests of a scene: a read of one block of a grant at a random place.
#[derive(Clone, Copy)]
struct Asker {
    scene: Scene,
    domain: Domain,
    entries: u32,
    /// Added to each index.
    beyond: u32,
    instance: KeyInstance,
    state: u32,
    request: Request,
}

impl Asker {
    fn new(entries: u32, region: RegionKey, scene: Scene) -> Self {
        let instance = if scene == Scene::Stale { STALE } else { INSTANCE };
        Self {
            scene,
            domain: if scene == Scene::Stranger { STRANGER } else { DOMAIN },
            entries,
            beyond: if scene == Scene::Miss { entries.next_multiple_of(SEGMENT_ENTRIES) } else { 0 },
            instance,
            state: 0,
            request: Request {
                operation: Operation::Read,
                key: Key::default(),
                extension: ExtensionKey::NONE,
                offset: 0,
                length: BYTES,
                memory: Memory { region, offset: 0 },
            },
        }
    }

    /// The next place. A linear congruential generator (Numerical Recipes), scaled and not divided: few instructions, and
    /// no table of places that would push what is measured out of the caches.
    #[inline(always)]
    fn step(&mut self) -> u32 {
        self.state = self.state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let scaled = u64::from(self.state) * u64::from(self.entries);
        (scaled >> 32) as u32
    }

    /// Asks at that place. The compiler does not know what is asked, nor what it knew of the tables at the last question:
    /// between two requests an engine does other things.
    #[inline(always)]
    fn ask(&mut self, place: u32, subject: &mut impl Decide) -> Option<u64> {
        let offset = u64::from(place) % BLOCKS * BYTES;
        self.request.key = Key::new(EntryIndex(place + self.beyond), self.instance);
        self.request.offset = offset;
        self.request.memory.offset = offset;
        black_box(&mut self.request);
        black_box(subject).decide(self.domain, &self.request)
    }

    /// So many requests, all of which are answered as the scene says.
    fn run(self, subject: &mut impl Decide, requests: u32) {
        match self.scene {
            Scene::Single => counted(self, subject, requests),
            Scene::Dependent => counted_dependent(self, subject, requests),
            Scene::Burst => counted_bursts(self, subject, requests),
            Scene::Miss | Scene::Stale | Scene::Stranger => counted_refused(self, subject, requests),
        }
    }
}

#[cold]
#[inline(never)]
fn wrong() -> ! {
    panic!("a request was answered otherwise than its scene says");
}

// All of these own the asker, so that making up a request costs the same whatever decides it.

#[inline(never)]
fn counted(mut asker: Asker, subject: &mut impl Decide, requests: u32) {
    let mut sum = 0u64;
    for _ in 0..requests {
        let place = asker.step();
        let Some(block) = asker.ask(place, subject) else { wrong() };
        sum = sum.wrapping_add(block);
    }
    black_box(sum);
}

#[inline(never)]
fn counted_dependent(mut asker: Asker, subject: &mut impl Decide, requests: u32) {
    // The machine does not know that nothing of the answer goes into the next place.
    let (mut last, none) = (0, black_box(0u64));
    for _ in 0..requests {
        #[expect(clippy::cast_possible_truncation, reason = "it is zero")]
        let place = asker.step() + (last & none) as u32;
        let Some(block) = asker.ask(place, subject) else { wrong() };
        last = block;
    }
}

#[inline(never)]
fn counted_bursts(mut asker: Asker, subject: &mut impl Decide, requests: u32) {
    let mut sum = 0u64;
    #[expect(clippy::cast_possible_truncation, reason = "a small number")]
    for _ in 0..requests / BURST as u32 {
        let places = [(); BURST].map(|()| asker.step());
        for place in places {
            subject.prefetch(Key::new(EntryIndex(place), INSTANCE));
        }
        for place in places {
            let Some(block) = asker.ask(place, subject) else { wrong() };
            sum = sum.wrapping_add(block);
        }
    }
    black_box(sum);
}

#[inline(never)]
fn counted_refused(mut asker: Asker, subject: &mut impl Decide, requests: u32) {
    for _ in 0..requests {
        let place = asker.step();
        if asker.ask(place, subject).is_some() {
            wrong();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small, and only that all sides answer as they must; the times are the benchmark's matter.
    #[test]
    fn all_sides_answer_in_all_scenes() {
        let figures = measure(40, 320);
        assert_eq!(figures.scenes.len(), Scene::ALL.len());
        for scene in Scene::ALL {
            let figure = figures.of(scene);
            assert_eq!(figure.scene, scene);
            for subject in Subject::ALL {
                let Spread { median, low, high } = figure.of(subject);
                assert!(0.0 < low && low <= median && median <= high, "{scene:?} {subject:?}");
            }
        }
    }

    #[test]
    fn a_spread_is_in_order() {
        let spread = Spread::of([9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0]);
        assert_eq!(spread, Spread { median: 5.0, low: 1.0, high: 9.0 });
    }

    #[test]
    fn there_is_some_memory() {
        assert!(free_bytes().unwrap() > needed_bytes(1000));
    }
}
