//! The decision of the protection tables (S4), by the size of the table.
//!
//! One iteration makes up a request (a read of 4 KiB, the whole of a grant of one range) for some entry, has
//! [`tpt::Directory::check`] decide it, and gives the grant back. Unit: time for one request. Setup asserts that each
//! kind of request is answered as its name says.
//!
//! - `hit`: granted, with the grant in memory. Reads the segment's line of the poller's directory, the entry and the
//!   memory region, and counts active I/O up and down.
//! - `hit + pieces`: granted, and translated to device blocks: what `bare index` answers.
//! - `table + pieces`: the same with [`tpt::Directory::check_scattered`], which does not look at memory: index, instance,
//!   domain, access, bounds and the blocks: what `bare table` answers.
//! - `hit + pieces, bursts of 32`: as an engine may do it that takes 32 requests at a time: first
//!   [`tpt::Directory::prefetch`] for each of them, then the checks.
//! - `hit, 1024 segments held`: the poller may keep pointers to 1024 segments (16,384 entries) only, as the adapter's
//!   default is, so in a larger table a check fetches one and drops another: sequentially one check in 16, randomly
//!   nearly all. All others hold every segment.
//! - `stale instance`: refused after the entry's state word was read.
//! - `other domain`: refused before any entry is looked at.
//! - `bare index`: the floor. An array of records of one cache line with the same fields, the same comparisons and the
//!   same memory region, answered with the device block; no segments, no LBA table, no seal against damage, no counts,
//!   nothing to give back. `bare table`: the same without the memory region.
//!
//! What it does not show: a check by itself. Iterations do not depend on one another, so the machine overlaps their
//! cache misses as far ahead as it looks: over many of the floor's or of the refused, which are short, but over few of
//! the granted, which are longer and whose second miss (the entry) waits for the first (the line of the directory that
//! points to its segment). One alone takes longer in all of them. A grant of more than one range needs LBA entries for
//! what lies beyond the first; that is not measured. The tables are in one process's memory with whatever page size the kernel gives, nobody
//! modifies them meanwhile, and the release follows the check at once, on warm lines, where the engine waits for the
//! device.

use std::hint::black_box;
use std::time::Instant;

use benches::cpu;
use benches::pattern::{Order, Walk};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion};
use tpt::{
    Access, Denied, Directory, Domain, EntryIndex, GrantSpec, Iova, Key, KeyInstance, LbaRange, Limits,
    Memory, Operation, RegionKey, RegionSpec, Request, SEGMENT_ENTRIES, Tables,
};

const SIZES: [u32; 2] = [1_000, 1_000_000];
const BLOCK_SHIFT: u8 = 9;
/// Of each grant: 4 KiB.
const BLOCKS: u64 = 8;
const BYTES: u64 = BLOCKS << BLOCK_SHIFT;
const DOMAIN: Domain = Domain(7);
const STRANGER: Domain = Domain(8);
const INSTANCE: KeyInstance = KeyInstance(1);
const STALE: KeyInstance = KeyInstance(2);
/// Of the memory region.
const IOVA: u64 = 0x10_0000;
const REGION_BYTES: u64 = 1 << 20;
/// The default of the adapter.
const FEW_SEGMENTS: usize = 1 << 10;
/// What an engine takes from a queue in a turn.
const BURST: usize = 32;

/// Full tables: entry `i` grants blocks `8 i .. 8 i + 8`.
fn tables(entries: u32) -> (Tables<32>, RegionKey) {
    let mut tables = Tables::new(Limits { entries, lba_entries: entries, regions: 1 }, INSTANCE);
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
    let region = RegionSpec { domain: DOMAIN, access: Access::WRITE, iova: Iova(IOVA), bytes: REGION_BYTES };
    let region = tables.create_region(&region).expect("there is room for one");
    (tables, region)
}

fn request(index: u32, instance: KeyInstance, region: RegionKey) -> Request {
    Request {
        operation: Operation::Read,
        key: Key::new(EntryIndex(index), instance),
        offset: 0,
        length: BYTES,
        memory: Memory { region, offset: 0 },
    }
}

/// The floor: the fields of an entry and of its one range, in a cache line.
#[derive(Clone)]
#[repr(align(64))]
struct Record {
    instance: u32,
    valid: bool,
    access: Access,
    shift: u8,
    domain: Domain,
    blocks: u64,
    first: u64,
}

/// The floor's memory region.
struct BareRegion {
    instance: u32,
    domain: Domain,
    access: Access,
    iova: u64,
    bytes: u64,
}

struct Bare {
    records: Box<[Record]>,
    region: BareRegion,
}

impl Bare {
    fn new(entries: u32) -> Self {
        let record = |i: u32| Record {
            instance: INSTANCE.0,
            valid: true,
            access: Access::READ,
            shift: BLOCK_SHIFT,
            domain: DOMAIN,
            blocks: BLOCKS,
            first: u64::from(i) * BLOCKS,
        };
        let region = BareRegion {
            instance: INSTANCE.0,
            domain: DOMAIN,
            access: Access::WRITE,
            iova: IOVA,
            bytes: REGION_BYTES,
        };
        Self { records: (0..entries).map(record).collect(), region }
    }

    /// First device block, and how many.
    #[inline]
    fn look_up(&self, domain: Domain, request: &Request) -> Option<(u64, u64)> {
        let record = self.records.get(request.key.index().0 as usize)?;
        let end = request.offset.checked_add(request.length)?;
        let granted = record.valid
            && record.instance == request.key.instance().0
            && record.domain == domain
            && record.access.allows(Access::READ)
            && request.length != 0
            && end <= record.blocks << record.shift
            && (request.offset | request.length) & ((1 << record.shift) - 1) == 0;
        let first = record.first + (request.offset >> record.shift);
        granted.then_some((first, request.length >> record.shift))
    }

    /// The same, and where the data is.
    #[inline]
    fn look_up_all(&self, domain: Domain, request: &Request) -> Option<(u64, u64, u64)> {
        let (first, blocks) = self.look_up(domain, request)?;
        let region = &self.region;
        let memory_end = request.memory.offset.checked_add(request.length)?;
        let memory = request.memory.region.index().0 == 0
            && region.instance == request.memory.region.instance().0
            && region.domain == domain
            && region.access.allows(Access::WRITE)
            && memory_end <= region.bytes
            && request.memory.offset.is_multiple_of(4);
        memory.then_some((first, blocks, region.iova + request.memory.offset))
    }
}

/// What one table size is measured with.
struct Rig {
    entries: u32,
    tables: Tables<32>,
    region: RegionKey,
}

impl Rig {
    fn directory(&self, segments: usize) -> Directory {
        Directory::new(self.tables.published(), segments)
    }

    fn all_segments(&self) -> usize {
        self.entries.div_ceil(SEGMENT_ENTRIES) as usize
    }

    fn hit(&self, group: &mut BenchmarkGroup<'_, WallTime>, name: &str, order: Order, segments: usize) {
        let mut directory = self.directory(segments);
        let mut walk = Walk::new(order, self.entries);
        group.bench_function(BenchmarkId::new(name, order), |b| {
            b.iter(|| {
                let request = black_box(request(walk.step(), INSTANCE, self.region));
                match directory.check(DOMAIN, &request) {
                    Ok(grant) => {
                        black_box(&grant);
                        directory.release(grant);
                    }
                    Err(denied) => panic!("{denied}"),
                }
            });
        });
        let evictions = directory.counters().evictions;
        assert!(evictions == 0 || segments < self.all_segments(), "{evictions} evictions with room for all");
    }

    fn hit_and_pieces(&self, group: &mut BenchmarkGroup<'_, WallTime>, order: Order) {
        let mut directory = self.directory(self.all_segments());
        let mut walk = Walk::new(order, self.entries);
        group.bench_function(BenchmarkId::new("hit + pieces", order), |b| {
            b.iter(|| {
                let request = black_box(request(walk.step(), INSTANCE, self.region));
                whole(&mut directory, &request);
            });
        });
    }

    fn table_and_pieces(&self, group: &mut BenchmarkGroup<'_, WallTime>, order: Order) {
        let mut directory = self.directory(self.all_segments());
        let mut walk = Walk::new(order, self.entries);
        group.bench_function(BenchmarkId::new("table + pieces", order), |b| {
            b.iter(|| {
                let request = black_box(request(walk.step(), INSTANCE, self.region));
                match directory.check_scattered(DOMAIN, &request) {
                    Ok(grant) => {
                        for piece in directory.pieces(&grant, 0) {
                            black_box((piece.lba, piece.blocks));
                        }
                        directory.release(grant);
                    }
                    Err(denied) => panic!("{denied}"),
                }
            });
        });
    }

    /// One iteration is one request, as everywhere: criterion is told the time of whole bursts divided by their size.
    fn bursts(&self, group: &mut BenchmarkGroup<'_, WallTime>, order: Order) {
        let mut directory = self.directory(self.all_segments());
        let mut walk = Walk::new(order, self.entries);
        let name = format!("hit + pieces, bursts of {BURST}");
        group.bench_function(BenchmarkId::new(name, order), |b| {
            b.iter_custom(|requests| {
                let bursts = requests.div_ceil(BURST as u64);
                let start = Instant::now();
                for _ in 0..bursts {
                    let places = [(); BURST].map(|()| walk.step());
                    for place in places {
                        directory.prefetch(Key::new(EntryIndex(place), INSTANCE));
                    }
                    for place in places {
                        let request = black_box(request(place, INSTANCE, self.region));
                        whole(&mut directory, &request);
                    }
                }
                start.elapsed().mul_f64(requests as f64 / (bursts * BURST as u64) as f64)
            });
        });
    }

    fn denied(
        &self,
        group: &mut BenchmarkGroup<'_, WallTime>,
        order: Order,
        (name, domain, instance, expected): (&str, Domain, KeyInstance, Denied),
    ) {
        let mut directory = self.directory(self.all_segments());
        let mut walk = Walk::new(order, self.entries);
        group.bench_function(BenchmarkId::new(name, order), |b| {
            b.iter(|| {
                let request = black_box(request(walk.step(), instance, self.region));
                match directory.check(domain, &request) {
                    Err(denied) if denied == expected => {}
                    other => panic!("{other:?}"),
                }
            });
        });
    }
}

/// The whole decision, and the device blocks.
#[inline]
fn whole(directory: &mut Directory, request: &Request) {
    match directory.check(DOMAIN, request) {
        Ok(grant) => {
            for piece in directory.pieces(&grant, 0) {
                black_box(piece);
            }
            directory.release(grant);
        }
        Err(denied) => panic!("{denied}"),
    }
}

fn bare(group: &mut BenchmarkGroup<'_, WallTime>, order: Order, entries: u32, region: RegionKey) {
    let bare = Bare::new(entries);
    let mut walk = Walk::new(order, entries);
    group.bench_function(BenchmarkId::new("bare table", order), |b| {
        b.iter(|| {
            let request = black_box(request(walk.step(), INSTANCE, region));
            match bare.look_up(DOMAIN, &request) {
                Some(found) => black_box(found),
                None => panic!("{request:?}"),
            }
        });
    });
    group.bench_function(BenchmarkId::new("bare index", order), |b| {
        b.iter(|| {
            let request = black_box(request(walk.step(), INSTANCE, region));
            match bare.look_up_all(DOMAIN, &request) {
                Some(found) => black_box(found),
                None => panic!("{request:?}"),
            }
        });
    });
}

/// That the floor decides as the tables do, on the requests that are measured.
fn assert_agreement(rig: &Rig) {
    let bare = Bare::new(rig.entries);
    let mut directory = rig.directory(1);
    let mut walk = Walk::new(Order::Random, rig.entries);
    for _ in 0..100 {
        let index = walk.step();
        let wanted = request(index, INSTANCE, rig.region);
        let grant = directory.check(DOMAIN, &wanted).expect("it is granted");
        let piece = directory.pieces(&grant, 0).next().expect("it has blocks");
        let expected = (piece.lba.0, piece.blocks, piece.iova.0);
        assert_eq!(bare.look_up_all(DOMAIN, &wanted), Some(expected));
        directory.release(grant);
        assert!(bare.look_up(STRANGER, &wanted).is_none());
        assert!(bare.look_up(DOMAIN, &request(index, STALE, rig.region)).is_none());
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    cpu::note_load("before");
    for entries in SIZES {
        let (tables, region) = tables(entries);
        let rig = Rig { entries, tables, region };
        assert_agreement(&rig);
        let mut group = criterion.benchmark_group(format!("check, {entries} entries"));
        for order in Order::ALL {
            bare(&mut group, order, entries, region);
            rig.hit(&mut group, "hit", order, rig.all_segments());
            rig.hit_and_pieces(&mut group, order);
            rig.table_and_pieces(&mut group, order);
            rig.bursts(&mut group, order);
            if rig.all_segments() > FEW_SEGMENTS {
                rig.hit(&mut group, "hit, 1024 segments held", order, FEW_SEGMENTS);
            }
            rig.denied(&mut group, order, ("stale instance", DOMAIN, STALE, Denied::KeyInstance));
            rig.denied(&mut group, order, ("other domain", STRANGER, INSTANCE, Denied::Domain));
        }
        group.finish();
    }
    cpu::note_load("after");
    criterion.final_summary();
}
