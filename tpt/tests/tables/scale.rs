//! A million entries, against a plain array of what each is.

use std::collections::VecDeque;

use crate::support::*;
use tpt::{
    Access, Denied, Directory, Domain, EntryIndex, ExtensionKey, Grant, Key, KeyInstance, LbaRange, Limits,
    Memory, Modification, Operation, Purpose, RegionKey, Request, SEGMENT_ENTRIES, Tables, Usage,
};

const MILLION: u32 = 1_000_000;
/// Each entry has this many device blocks to itself, of which its grant has some.
const WINDOW: u64 = 32;

/// One life of an entry.
#[derive(Clone, Copy)]
struct Life {
    key: Key,
    access: Access,
    ranges: [LbaRange; 2],
    /// How many of them.
    count: usize,
}

impl Life {
    fn ranges(&self) -> &[LbaRange] {
        &self.ranges[..self.count]
    }

    fn block(&self, number: u64) -> Option<u64> {
        self.ranges().iter().flat_map(|range| range.first.0..range.end().0).nth(number as usize)
    }

    fn blocks(&self) -> u64 {
        self.ranges().iter().map(|range| range.count.0).sum()
    }
}

/// The tables, three pollers of different sizes, and the array.
struct Big {
    tables: Tables<32>,
    directories: Vec<Directory>,
    regions: [RegionKey; 2],
    plain: Vec<Option<Life>>,
    /// Grants in flight, and of which directory.
    flying: VecDeque<(usize, Grant)>,
    chance: Chance,
}

/// Whose an index is: the first half of the segments are A's.
fn owner(index: u32) -> Domain {
    if index < MILLION / 2 { A } else { B }
}

impl Big {
    fn new(seed: u64) -> Self {
        let limits = Limits { entries: MILLION, lba_entries: 2 * MILLION, extensions: 0, regions: 2 };
        let World { tables, region_a, region_b, .. } = World::<32>::with(limits, 1);
        let segments = MILLION.div_ceil(SEGMENT_ENTRIES) as usize;
        let directories = [segments, 1024, 1].map(|size| Directory::new(tables.published(), size)).into();
        let mut big = Self {
            tables,
            directories,
            regions: [region_a, region_b],
            plain: vec![None; MILLION as usize],
            flying: VecDeque::new(),
            chance: Chance(seed),
        };
        (0..MILLION).for_each(|index| big.create(index));
        big
    }

    /// One or two ranges in the window of an index, at least one block each.
    fn draw(&mut self, index: u32) -> ([LbaRange; 2], usize) {
        let window = u64::from(index) * WINDOW;
        let drawn = self.chance.next();
        let (low, high) = (1 + drawn % 15, 1 + (drawn >> 8) % 15);
        // The upper half of the window first, so that the order of the list is not that of the device.
        let ranges = [range(window + 16, high), range(window + 15 - low, low)];
        (ranges, 1 + (drawn >> 16) as usize % 2)
    }

    /// Creates the grant that must get this index: the only free one of its domain, or the next one.
    fn create(&mut self, index: u32) {
        let (ranges, count) = self.draw(index);
        let access = Access::from_bits(1 + (self.chance.next() % 3) as u8).unwrap();
        let key = self.tables.create(&spec(owner(index), access, &ranges[..count])).unwrap();
        assert_eq!(key.index().0, index);
        self.plain[index as usize] = Some(Life { key, access, ranges, count });
    }

    fn drain(&mut self, index: u32) {
        let of_entry = |(_, grant): &(usize, Grant)| grant.key().index().0 == index;
        while let Some(place) = self.flying.iter().position(of_entry) {
            assert!(!self.directories[self.flying[place].0].entry_is_idle(EntryIndex(index)));
            let (poller, grant) = self.flying.remove(place).unwrap();
            self.directories[poller].release(grant);
        }
        assert!(self.directories.iter().all(|directory| directory.entry_is_idle(EntryIndex(index))));
    }

    /// Ends a life and begins the next, and sees the old key refused in between and after.
    fn replace(&mut self, index: u32) {
        self.drain(index);
        let old = self.plain[index as usize].take().unwrap();
        let quiesce = self.tables.begin(Some(owner(index)), old.key, Purpose::Delete).unwrap();
        self.tables.finish_delete(quiesce);
        self.compare(index, old.key.instance());
        self.create(index);
        self.compare(index, old.key.instance());
    }

    fn modify(&mut self, index: u32) {
        self.drain(index);
        let (ranges, count) = self.draw(index);
        let life = self.plain[index as usize].as_mut().unwrap();
        let quiesce = self.tables.begin(Some(owner(index)), life.key, Purpose::Modify).unwrap();
        let change = Modification { access: None, ranges: Some(&ranges[..count]) };
        self.tables.finish_modify(quiesce, &change).unwrap();
        (life.ranges, life.count) = (ranges, count);
    }

    /// What the plain array says of a read or a write of A or B.
    fn expected(&self, domain: Domain, request: &Request) -> Result<&Life, Denied> {
        let index = request.key.index().0;
        if owner(index) != domain {
            return Err(Denied::Domain);
        }
        let life = self.plain[index as usize].as_ref().ok_or(Denied::EntryInvalid)?;
        if life.key != request.key {
            return Err(Denied::KeyInstance);
        }
        if !life.access.allows(request.operation.required_access()) {
            return Err(Denied::Access);
        }
        if request.offset + request.length > life.blocks() * BLOCK {
            return Err(Denied::Bounds);
        }
        Ok(life)
    }

    /// A request of some instance by some domain on some poller, and the answer.
    fn compare(&mut self, index: u32, instance: KeyInstance) {
        let drawn = self.chance.next();
        // Mostly by who owns it.
        let stranger = drawn.is_multiple_of(16);
        let domain = if (owner(index) == A) == stranger { B } else { A };
        let memory = Memory { region: self.regions[usize::from(domain == B)], offset: (drawn >> 8) % 64 * 4 };
        let operation = if drawn & 1 << 20 == 0 { Operation::Read } else { Operation::Write { fua: false } };
        let request = Request {
            operation,
            key: Key::new(EntryIndex(index), instance),
            extension: ExtensionKey::NONE,
            offset: (drawn >> 24) % 24 * BLOCK,
            length: (1 + (drawn >> 32) % 8) * BLOCK,
            memory,
        };
        let poller = (drawn >> 40) as usize % self.directories.len();
        let answer = self.directories[poller].check(domain, &request);
        match (answer, self.expected(domain, &request)) {
            (Err(denied), Err(expected)) => assert_eq!(denied, expected, "{request:?} of {domain}"),
            (Ok(grant), Ok(life)) => {
                let first = request.offset / BLOCK;
                let pieces = self.directories[poller].pieces(&grant, 0);
                let mut block = first;
                for lba in pieces.flat_map(|piece| piece.lba.0..piece.lba.0 + piece.blocks) {
                    assert_eq!(Some(lba), life.block(block), "block {block} of {}", life.key);
                    block += 1;
                }
                assert_eq!(block - first, request.length / BLOCK);
                self.flying.push_back((poller, grant));
            }
            (answer, expected) => panic!("{request:?} of {domain}: {answer:?}, not {:?}", expected.err()),
        }
        if self.flying.len() > 64 {
            let (poller, grant) = self.flying.pop_front().unwrap();
            self.directories[poller].release(grant);
        }
    }
}

/// Made, used at random, changed and replaced while used, and deleted: every answer as the plain array says, and
/// nothing is left.
#[test]
fn s4_r8_r9_s8_r4_r5_r6_a_million_entries() {
    let steps = if soak() { 20_000_000 } else { 200_000 };
    let mut big = Big::new(seed());
    assert_eq!(big.tables.usage().entries, MILLION);
    let more = [range(1 << 40, 1)];
    assert_eq!(big.tables.create(&spec(A, Access::READ, &more)), Err(tpt::TableError::NoResources));
    for step in 0..steps {
        let index = big.chance.below(u64::from(MILLION)) as u32;
        let life = big.plain[index as usize].unwrap();
        match step % 32 {
            0 => big.replace(index),
            1 => big.modify(index),
            2 => big.compare(index, KeyInstance(life.key.instance().0 + 1)),
            _ => big.compare(index, life.key.instance()),
        }
    }
    let counters: Vec<_> = big.directories.iter().map(|directory| directory.counters()).collect();
    let segments = u64::from(MILLION.div_ceil(SEGMENT_ENTRIES));
    assert!(counters[0].fetches <= segments && counters[0].evictions == 0, "S4-R8: {counters:?}");
    assert!(
        counters[1].evictions > 0 && counters[2].evictions > counters[1].evictions,
        "S4-R9: {counters:?}"
    );
    if soak() {
        big.tables.self_check().unwrap();
    }
    for index in 0..MILLION {
        if index % 4096 == 0 {
            while let Some((poller, grant)) = big.flying.pop_front() {
                big.directories[poller].release(grant);
            }
        }
        let life = big.plain[index as usize].take().unwrap();
        let quiesce = big.tables.begin(Some(owner(index)), life.key, Purpose::Delete).unwrap();
        big.tables.finish_delete(quiesce);
        if index % 64 == 0 {
            big.compare(index, life.key.instance());
        }
    }
    assert_eq!(big.tables.usage(), Usage { entries: 0, lba_entries: 0, extensions: 0, regions: 2 });
    counted(steps, "requests over a million entries");
}
