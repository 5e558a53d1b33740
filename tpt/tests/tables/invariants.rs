//! What holds after every operation, looked at from outside, against a plain map of who has which blocks: not by the
//! tables' own `self_check`, which may be as wrong as they are.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::support::*;
use tpt::{
    Access, Denied, Directory, Domain, ExtensionKey, GrantSpec, Iova, Key, KeyInstance, LbaRange, Limits,
    Memory, Modification, Operation, Purpose, RegionKey, RegionSpec, Request, TableError, Tables,
};

/// A grant as the plain map knows it: every block of it, in order.
struct Plain {
    domain: Domain,
    shared: bool,
    ranges: usize,
    blocks: Vec<u64>,
}

/// Something to do with blocks 0 to 400, by domain A or B.
#[derive(Clone, Debug)]
enum Step {
    Create { domain: Domain, shared: bool, ranges: Vec<LbaRange> },
    Modify { back: usize, ranges: Vec<LbaRange> },
    Delete { back: usize },
    Evict { back: usize },
}

const SMALL: Limits = Limits { entries: 48, lba_entries: 120, extensions: 0, regions: 2 };

struct Both {
    tables: Tables<32>,
    directory: Directory,
    regions: [RegionKey; 2],
    plain: BTreeMap<Key, Plain>,
}

impl Both {
    fn new() -> Self {
        let mut tables = Tables::new(SMALL, KeyInstance(1));
        let regions = [A, B].map(|domain| {
            let spec = RegionSpec { domain, access: Access::READ_WRITE, iova: Iova(0), bytes: 1 << 40 };
            tables.create_region(&spec).unwrap()
        });
        let directory = Directory::new(tables.published(), 1);
        Self { tables, directory, regions, plain: BTreeMap::new() }
    }

    fn nth(&self, back: usize) -> Option<Key> {
        self.plain.keys().nth(back.checked_rem(self.plain.len())?).copied()
    }

    /// Whether the blocks may be held on these terms beside all grants that there are.
    fn clash(&self, domain: Domain, shared: bool, blocks: &[u64]) -> bool {
        self.plain.values().any(|other| {
            let agree = if shared { other.shared } else { !other.shared && other.domain == domain };
            !agree && other.blocks.iter().any(|block| blocks.contains(block))
        })
    }

    fn ranges_in_use(&self) -> usize {
        self.plain.values().map(|plain| plain.ranges).sum()
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Create { domain, shared, ranges } => {
                let blocks = blocks_of(ranges);
                let spec = GrantSpec { shared: *shared, ..spec(*domain, Access::ALL, ranges) };
                let answer = self.tables.create(&spec);
                let expected = self.clash(*domain, *shared, &blocks);
                assert_eq!(answer == Err(TableError::Overlap), expected, "{spec:?}");
                if let Ok(key) = answer {
                    let plain = Plain { domain: *domain, shared: *shared, ranges: ranges.len(), blocks };
                    assert!(self.plain.insert(key, plain).is_none());
                }
            }
            Step::Modify { back, ranges } => {
                let Some(key) = self.nth(*back) else { return };
                let Plain { domain, shared, .. } = self.plain[&key];
                let clash = self.clash(domain, shared, &blocks_of(ranges));
                let room = SMALL.lba_entries as usize >= self.ranges_in_use() + ranges.len();
                let quiesce = self.tables.begin(None, key, Purpose::Modify).unwrap();
                let change = Modification { access: None, ranges: Some(ranges) };
                match self.tables.finish_modify(quiesce, &change) {
                    Ok(()) => {
                        assert!(!clash && room);
                        let plain = self.plain.get_mut(&key).unwrap();
                        (plain.ranges, plain.blocks) = (ranges.len(), blocks_of(ranges));
                    }
                    Err((quiesce, error)) => {
                        assert_eq!(error, if clash { TableError::Overlap } else { TableError::NoResources });
                        assert!(clash || !room);
                        self.tables.cancel(quiesce);
                    }
                }
            }
            Step::Delete { back } => {
                let Some(key) = self.nth(*back) else { return };
                let quiesce = self.tables.begin(None, key, Purpose::Delete).unwrap();
                self.tables.finish_delete(quiesce);
                self.plain.remove(&key);
            }
            Step::Evict { back } => {
                let Some(key) = self.nth(*back) else { return };
                self.directory.evict(key.index());
            }
        }
    }

    /// The device blocks of a request, or why not.
    fn translate(&mut self, key: Key, block: u64, blocks: u64) -> Result<Vec<u64>, Denied> {
        let domain = self.plain[&key].domain;
        let memory = Memory { region: self.regions[usize::from(domain == B)], offset: 0 };
        let request = Request {
            operation: Operation::Read,
            key,
            extension: ExtensionKey::NONE,
            offset: block * BLOCK,
            length: blocks * BLOCK,
            memory,
        };
        let grant = self.directory.check(domain, &request)?;
        let pieces = self.directory.pieces(&grant, 0);
        let found = pieces.flat_map(|piece| piece.lba.0..piece.lba.0 + piece.blocks).collect();
        self.directory.release(grant);
        Ok(found)
    }

    fn look(&mut self) {
        assert_eq!(self.tables.self_check(), Ok(()));
        // S8-R1: as many LBA entries in use as there are ranges, all of them of the table.
        let usage = self.tables.usage();
        assert_eq!(usage.lba_entries as usize, self.ranges_in_use());
        assert!(usage.lba_entries <= SMALL.lba_entries);
        // S8-R2: no block of two grants, but of one domain, or as shared.
        let mut holders: BTreeMap<u64, Vec<Key>> = BTreeMap::new();
        for (key, plain) in &self.plain {
            plain.blocks.iter().for_each(|block| holders.entry(*block).or_default().push(*key));
        }
        for (block, keys) in &holders {
            let first = self.tables.query(self.plain[&keys[0]].domain, keys[0]).unwrap();
            for key in keys {
                let other = self.tables.query(self.plain[key].domain, *key).unwrap();
                let agree = other.shared == first.shared && (first.shared || other.domain == first.domain);
                assert!(agree, "{key} and {} share block {block}", keys[0]);
            }
        }
        for key in self.plain.keys().copied().collect::<Vec<_>>() {
            let plain = self.plain[&key].blocks.clone();
            let total = plain.len() as u64;
            // S8-R3: the sum of the ranges is what the entry says, to itself and to requests.
            let told = self.tables.query(self.plain[&key].domain, key).unwrap();
            assert_eq!(told.blocks.0, total);
            assert_eq!(told.ranges.iter().map(|range| range.count.0).sum::<u64>(), total);
            assert_eq!(self.translate(key, total, 1), Err(Denied::Bounds));
            assert_eq!(self.translate(key, 0, total + 1), Err(Denied::Bounds));
            // S8-R4: block by block, and as a whole.
            for (block, lba) in (0..).zip(&plain) {
                assert_eq!(self.translate(key, block, 1), Ok(vec![*lba]), "block {block} of {key}");
            }
            assert_eq!(self.translate(key, 0, total), Ok(plain));
        }
    }
}

fn blocks_of(ranges: &[LbaRange]) -> Vec<u64> {
    ranges.iter().flat_map(|range| range.first.0..range.end().0).collect()
}

/// Disjoint ranges in any order.
fn ranges() -> impl Strategy<Value = Vec<LbaRange>> {
    prop::collection::btree_map(0..40u64, 1..10u64, 1..8)
        .prop_map(|places| {
            places.into_iter().map(|(place, count)| range(place * 10, count)).collect::<Vec<_>>()
        })
        .prop_shuffle()
}

fn step() -> impl Strategy<Value = Step> {
    let domain = prop_oneof![Just(A), Just(B)];
    prop_oneof![
        4 => (domain, prop::bool::weighted(0.3), ranges())
            .prop_map(|(domain, shared, ranges)| Step::Create { domain, shared, ranges }),
        2 => (any::<usize>(), ranges()).prop_map(|(back, ranges)| Step::Modify { back, ranges }),
        2 => any::<usize>().prop_map(|back| Step::Delete { back }),
        1 => any::<usize>().prop_map(|back| Step::Evict { back }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if soak() { 20_000 } else { 300 },
        failure_persistence: None,
        max_shrink_time: 20_000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn s8_r1_r2_r3_r4_hold_after_each_operation(steps in prop::collection::vec(step(), 1..40)) {
        let mut both = Both::new();
        for step in &steps {
            both.apply(step);
            both.look();
        }
    }

    /// S8-R4, R8, S4-R12: up to a thousand ranges, any part of them.
    #[test]
    fn s4_r12_s8_r4_r8_any_part_of_a_fragmented_grant_is_what_a_plain_map_says(
        counts in prop::collection::vec(1..4u64, 1..1000),
        chance in any::<u64>(),
    ) {
        let mut world = World::<32>::with(Limits { entries: 16, lba_entries: 1000, extensions: 0, regions: 3 }, 1);
        let big = RegionSpec { domain: A, access: Access::READ_WRITE, iova: Iova(0x4000), bytes: 1 << 40 };
        world.region_a = world.tables.create_region(&big).unwrap();
        // Neighbours of the list are far from each other on the device.
        let place = |i: u64| i.wrapping_mul(0x9e37_79b9) % 4096 * 8;
        let mut ranges: Vec<_> = (0..).zip(&counts).map(|(i, count)| range(place(i), *count)).collect();
        ranges.sort_unstable_by_key(|range| (range.first, range.count));
        ranges.dedup_by_key(|range| range.first);
        ranges.sort_unstable_by_key(|range| range.first.0.wrapping_mul(0x85eb_ca6b) >> 7 & 0xffff);
        let plain = blocks_of(&ranges);
        let key = world.grant(&ranges);
        let mut chance = Chance(chance);
        for _ in 0..50 {
            let block = chance.below(plain.len() as u64);
            let blocks = 1 + chance.below(plain.len() as u64 - block);
            let expected = &plain[block as usize..(block + blocks) as usize];
            let request = world.request(Operation::Read, key, block, blocks);
            prop_assert_eq!(world.blocks(&request), Ok(expected.to_vec()));
            // Resumed in the middle, each piece with its address.
            let grant = world.directory.check(A, &request).unwrap();
            let done = chance.below(blocks + 1);
            let mut at = done;
            for piece in world.directory.pieces(&grant, done) {
                prop_assert_eq!(piece.iova, Iova(0x4000 + at * BLOCK));
                let lbas: Vec<_> = (piece.lba.0..piece.lba.0 + piece.blocks).collect();
                prop_assert_eq!(&lbas[..], &expected[at as usize..(at + piece.blocks) as usize]);
                at += piece.blocks;
            }
            prop_assert_eq!(at, blocks);
            world.directory.release(grant);
        }
    }
}
