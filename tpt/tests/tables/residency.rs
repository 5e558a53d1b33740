//! A poller's directory: what it fetches, drops and counts (S4).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::support::*;
use tpt::{
    Access, Denied, Directory, DirectoryCounters, EntryIndex, Key, KeyInstance, Limits, Operation, Published,
    Request, SEGMENT_ENTRIES, Segment, SegmentSource, leaked_grants,
};

/// Tables whose domain A fills `segments` segments, and one key in each.
fn filled(segments: u32) -> (World, Vec<Key>) {
    let entries = segments * SEGMENT_ENTRIES;
    let mut world = World::with(Limits { entries, lba_entries: entries, extensions: 0, regions: 2 }, 1);
    let keys: Vec<_> = (0..u64::from(entries)).map(|i| world.grant(&[range(i * 8, 8)])).collect();
    let firsts = keys.into_iter().step_by(SEGMENT_ENTRIES as usize).collect();
    (world, firsts)
}

fn counters(fetches: u64, evictions: u64) -> DirectoryCounters {
    DirectoryCounters { fetches, evictions }
}

/// S4-R8: fetched once, for all entries of the segment.
#[test]
fn s4_r8_a_segment_is_fetched_once() {
    let (mut world, keys) = filled(3);
    for _ in 0..5 {
        for key in &keys {
            world.blocks(&world.request(Operation::Read, *key, 0, 1)).unwrap();
        }
    }
    let neighbour = Key::new(EntryIndex(keys[0].index().0 + 1), keys[0].instance());
    world.blocks(&world.request(Operation::Read, neighbour, 0, 1)).unwrap();
    assert_eq!(world.directory.counters(), counters(3, 0));
}

/// S4-R9: dropped and fetched again, with the same content, also what changed meanwhile.
#[test]
fn s4_r9_an_evicted_segment_comes_back() {
    let (mut world, keys) = filled(3);
    world.directory = Directory::new(world.tables.published(), 2);
    for round in 0..10u64 {
        for (i, key) in (0..).zip(&keys) {
            let first = i * u64::from(SEGMENT_ENTRIES) * 8;
            assert_eq!(
                world.blocks(&world.request(Operation::Read, *key, 3, 1)),
                Ok(vec![first + 3]),
                "{round}"
            );
        }
    }
    let DirectoryCounters { fetches, evictions } = world.directory.counters();
    assert!(fetches > 10 && evictions == fetches - 2, "{fetches} {evictions}");
    world.directory.evict(keys[0].index());
    world.delete(keys[0]);
    assert_eq!(world.blocks(&world.request(Operation::Read, keys[0], 0, 1)), Err(Denied::EntryInvalid));
}

/// A segment in steady use stays; those used once come and go.
#[test]
fn a_busy_tenant_is_not_swept_out() {
    let (mut world, keys) = filled(8);
    world.directory = Directory::new(world.tables.published(), 2);
    let requests: Vec<_> = keys.iter().map(|key| world.request(Operation::Read, *key, 0, 1)).collect();
    world.blocks(&requests[0]).unwrap();
    for round in 0..70 {
        world.blocks(&requests[0]).unwrap();
        world.blocks(&requests[1 + round % 7]).unwrap();
    }
    assert_eq!(world.directory.counters(), counters(1 + 70, 69), "the first was fetched once");
}

/// More busy segments than there is room for: every request is still served, every count kept.
#[test]
fn busy_segments_shut_nobody_out() {
    let (mut world, keys) = filled(8);
    world.directory = Directory::new(world.tables.published(), 1);
    let requests: Vec<_> = keys.iter().map(|key| world.request(Operation::Read, *key, 0, 8)).collect();
    let grants: Vec<_> = requests.iter().map(|r| world.directory.check(A, r).unwrap()).collect();
    assert_eq!(world.directory.counters(), counters(8, 7));
    for (key, grant) in keys.iter().zip(grants) {
        assert!(!world.directory.entry_is_idle(key.index()));
        assert_eq!(world.directory.pieces(&grant, 0).map(|p| p.blocks).sum::<u64>(), 8);
        world.directory.release(grant);
        assert!(world.directory.entry_is_idle(key.index()));
    }
    assert!(world.directory.entry_is_idle(EntryIndex(u32::MAX)));
}

/// A guesser costs nobody a fetch or an eviction, and sees no difference between used and unused.
#[test]
fn a_guesser_costs_nothing_and_learns_nothing() {
    let (mut world, keys) = filled(3);
    let used = world.request(Operation::Read, keys[0], 0, 1);
    world.directory = Directory::new(world.tables.published(), 1);
    world.blocks(&used).unwrap();
    let before = format!("{:?}", world.directory);
    for index in 0..world.tables.published().limits().entries {
        for instance in 0..3 {
            let guess = Request { key: Key::new(EntryIndex(index), KeyInstance(instance)), ..used };
            assert_eq!(world.directory.check(B, &guess).unwrap_err(), Denied::Domain);
        }
    }
    assert_eq!(format!("{:?}", world.directory), before);
}

struct Failing {
    published: Arc<Published>,
    fails: AtomicBool,
}

impl SegmentSource for Failing {
    fn fetch(&self, segment: u32) -> Option<Segment> {
        if self.fails.load(Relaxed) { None } else { self.published.fetch(segment) }
    }
}

/// E_SEGMENT: a fetch that fails; what is resident is not touched, and the next try is as good as the first.
#[test]
fn s4_r9_a_fetch_that_fails_is_e_segment() {
    let (world, keys) = filled(2);
    let published = world.tables.published();
    let source = Arc::new(Failing { published: Arc::clone(&published), fails: AtomicBool::new(false) });
    let mut directory = Directory::with_source(published, Arc::clone(&source), 1);
    let requests = [0, 1].map(|i| world.request(Operation::Read, keys[i], 0, 1));
    let grant = directory.check(A, &requests[0]).unwrap();
    directory.release(grant);
    source.fails.store(true, Relaxed);
    assert_eq!(directory.check(A, &requests[1]).unwrap_err(), Denied::Segment);
    let grant = directory.check(A, &requests[0]).unwrap();
    directory.release(grant);
    assert_eq!(directory.counters(), counters(1, 0));
    source.fails.store(false, Relaxed);
    let grant = directory.check(A, &requests[1]).unwrap();
    directory.release(grant);
    assert_eq!(directory.counters(), counters(2, 1));
}

/// A grant that is dropped: loud in a debug build, and never idle again in any.
#[test]
fn a_dropped_grant_keeps_its_entry_busy() {
    let (mut world, keys) = filled(1);
    let request = world.request(Operation::Read, keys[0], 0, 1);
    let grant = world.directory.check(A, &request).unwrap();
    let before = leaked_grants();
    let dropped = catch_unwind(AssertUnwindSafe(move || drop(grant)));
    assert_eq!(dropped.is_err(), cfg!(debug_assertions));
    assert!(leaked_grants() > before, "the count is of the whole process");
    assert!(!world.directory.entry_is_idle(keys[0].index()));
    assert!(!world.directory.region_is_idle(world.region_a.index()));
}

#[test]
fn a_grant_is_released_where_it_was_granted() {
    let (mut world, keys) = filled(1);
    let mut other = Directory::new(world.tables.published(), 1);
    let grant = world.directory.check(A, &world.request(Operation::Read, keys[0], 0, 1)).unwrap();
    let refused = catch_unwind(AssertUnwindSafe(move || other.release(grant)));
    assert!(refused.is_err());
    assert!(!world.directory.entry_is_idle(keys[0].index()));
}

/// Two pollers count for themselves.
#[test]
fn each_poller_counts_its_own() {
    let (world, keys) = filled(1);
    let mut other = Directory::new(world.tables.published(), 1);
    let access = world.tables.query(A, keys[0]).unwrap().access;
    assert_eq!(access, Access::ALL);
    let grant = other.check(A, &world.request(Operation::Read, keys[0], 0, 1)).unwrap();
    assert!(world.directory.entry_is_idle(keys[0].index()));
    assert!(!other.entry_is_idle(keys[0].index()));
    other.release(grant);
    assert!(other.entry_is_idle(keys[0].index()));
}

/// S4-R8, R9: a file's segment of names comes and goes as any other; the extensions need no fetch.
#[test]
fn s4_r9_s5_r16_a_file_is_found_again_after_its_segment_was_dropped() {
    let mut world = crate::files::world();
    let keys = world.open(&[range(0, 2), range(10, 2)]);
    let request = world.request(Operation::Read, keys.file, 1, 2);
    let grant = world.directory.check(A, &request).unwrap();
    for round in 1..5 {
        world.directory.evict(keys.file.index());
        assert_eq!(world.directory.pieces(&grant, 0).map(|piece| piece.lba.0).collect::<Vec<_>>(), [1, 10]);
        assert_eq!(world.directory.context(&grant), Some(77));
        assert!(!world.directory.entry_is_idle(keys.file.index()));
        let named = world.in_extension(keys.file, keys.extensions[1], 1, 1);
        assert!(
            world.directory.check_plain(A, &named).is_none(),
            "what is not at hand is not decided at once"
        );
        assert_eq!(world.blocks(&named), Ok(vec![11]));
        assert_eq!(world.directory.counters().fetches, round + 1);
    }
    world.directory.release(grant);
    world.directory.evict(keys.file.index());
    assert_eq!(world.directory.file(A, keys.file, Operation::Read).unwrap().bytes, 4 * BLOCK);
}
