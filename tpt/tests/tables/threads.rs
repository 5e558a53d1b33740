//! A poller and the control plane on threads of their own, with the acknowledgement protocol of the tables.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::thread;

use crate::support::*;
use tpt::{
    Blocks, Denied, Directory, EntryIndex, FileModification, Grant, Key, LbaRange, Limits, Modification,
    Operation, Purpose, Request,
};

use crate::files::file;

/// How many grants are managed at a time, at indexes 0 and up.
const KEYS: u64 = 16;

/// What the two threads share besides the tables.
#[derive(Default)]
struct Board {
    /// Counts up with each quiescent point that is asked for.
    question: AtomicU64,
    answer: AtomicU64,
    keys: [AtomicU64; KEYS as usize],
    stop: AtomicBool,
    granted: AtomicU64,
    /// The poller has ended, perhaps by a failed assertion.
    gone: AtomicBool,
}

struct Leave<'a>(&'a Board);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.gone.store(true, Release);
    }
}

/// What a poller saw.
#[derive(Default, Debug)]
struct Seen {
    granted: u64,
    held: u64,
    invalid: u64,
    stale: u64,
}

impl Board {
    /// Waits until the poller is at a quiescent point of all entries.
    fn quiesce(&self) {
        let question = self.question.fetch_add(1, Release) + 1;
        while self.answer.load(Acquire) != question {
            assert!(!self.gone.load(Acquire), "the poller has ended");
            thread::yield_now();
        }
    }

    /// Waits until the poller was granted something: an idle moment of the machine does not make the test vacuous.
    fn see_a_grant(&self) {
        let before = self.granted.load(Acquire);
        while self.granted.load(Acquire) == before {
            assert!(!self.gone.load(Acquire), "the poller has ended");
            thread::yield_now();
        }
    }

    fn acknowledge(&self, directory: &Directory) {
        let question = self.question.load(Acquire);
        if (0..KEYS as u32).all(|index| directory.entry_is_idle(EntryIndex(index))) {
            self.answer.store(question, Release);
        }
    }

    /// Reads of whole grants, each held for some turns, until told to stop. Every grant must lead to a list that
    /// `is_whole`, when it is given and again when it is released.
    fn poll(&self, mut directory: Directory, template: Request, is_whole: impl Fn(&[u64]) -> bool) -> Seen {
        let _leave = Leave(self);
        let mut seen = Seen::default();
        let mut flying: VecDeque<Grant> = VecDeque::new();
        let look = |directory: &Directory, grant: &Grant| {
            let pieces = directory.pieces(grant, 0).flat_map(|p| p.lba.0..p.lba.0 + p.blocks);
            let blocks: Vec<_> = pieces.collect();
            assert!(is_whole(&blocks), "{blocks:?}");
        };
        for turn in 0.. {
            if self.stop.load(Acquire) {
                break;
            }
            let request = Request { key: Key(self.keys[turn % KEYS as usize].load(Acquire)), ..template };
            match directory.check(A, &request) {
                Ok(grant) => {
                    look(&directory, &grant);
                    seen.granted += 1;
                    self.granted.store(seen.granted, Release);
                    flying.push_back(grant);
                }
                Err(Denied::Held) => seen.held += 1,
                Err(Denied::EntryInvalid) => seen.invalid += 1,
                Err(Denied::KeyInstance) => seen.stale += 1,
                Err(denied) => panic!("{denied:?}"),
            }
            let asked = self.question.load(Relaxed) != self.answer.load(Relaxed);
            if (asked || flying.len() > 3)
                && let Some(grant) = flying.pop_front()
            {
                look(&directory, &grant);
                directory.release(grant);
            }
            self.acknowledge(&directory);
        }
        flying.into_iter().for_each(|grant| directory.release(grant));
        seen
    }
}

impl Board {
    /// Reads of files that become longer, until told to stop: each is beyond the end, or leads to what `is_whole`.
    fn poll_growing(
        &self,
        mut directory: Directory,
        template: Request,
        is_whole: impl Fn(Key, &[u64]) -> bool,
    ) {
        let _leave = Leave(self);
        let mut granted = 0;
        for turn in 0.. {
            if self.stop.load(Acquire) {
                break;
            }
            let key = Key(self.keys[turn % KEYS as usize].load(Acquire));
            match directory.check(A, &Request { key, ..template }) {
                Ok(grant) => {
                    let pieces = directory.pieces(&grant, 0).flat_map(|p| p.lba.0..p.lba.0 + p.blocks);
                    let blocks: Vec<_> = pieces.collect();
                    assert!(is_whole(key, &blocks), "{key} {blocks:?}");
                    directory.release(grant);
                    granted += 1;
                    self.granted.store(granted, Release);
                }
                Err(Denied::Bounds) => {}
                Err(denied) => panic!("{denied:?}"),
            }
        }
    }
}

/// S8-R7: every read sees the old list or the new one, never a mixture, while the lists move.
#[test]
fn s8_r7_a_moving_list_is_never_mixed() {
    let mut world = World::new();
    let lists = |i: u64| {
        let at = i * 1000;
        let old = [range(at + 100, 3), range(at + 50, 3), range(at, 2)];
        [old, [range(at + 200, 1), range(at + 300, 6), range(at + 400, 1)]]
    };
    let keys: Vec<_> = (0..KEYS).map(|i| world.grant(&lists(i)[0])).collect();
    let plain: Vec<Vec<u64>> = (0..KEYS)
        .flat_map(|i| lists(i).map(|list| list.iter().flat_map(|r| r.first.0..r.end().0).collect()))
        .collect();
    let template = world.request(Operation::Read, Key(0), 0, 8);
    let board = Arc::new(Board::default());
    board.keys.iter().zip(&keys).for_each(|(slot, key)| slot.store(key.0, Release));
    let poller = {
        let (board, directory) = (Arc::clone(&board), Directory::new(world.tables.published(), 1));
        thread::spawn(move || board.poll(directory, template, |blocks| plain.iter().any(|p| p == blocks)))
    };
    let rounds: usize = if soak() { 5_000 } else { 250 };
    for round in 1..=rounds {
        let begin = |key: &Key| world.tables.begin(Some(A), *key, Purpose::Modify).unwrap();
        let tokens: Vec<_> = keys.iter().map(begin).collect();
        board.quiesce();
        for (i, token) in (0..).zip(tokens) {
            let change = Modification { access: None, ranges: Some(&lists(i)[round % 2]) };
            world.tables.finish_modify(token, &change).unwrap();
        }
        if round % 25 == 0 {
            board.see_a_grant();
        }
    }
    board.stop.store(true, Release);
    let seen = poller.join().unwrap();
    world.tables.self_check().unwrap();
    assert!(seen.granted > 0 && seen.invalid == 0 && seen.stale == 0, "{seen:?}");
    assert_eq!(u64::from(world.tables.usage().lba_entries), 3 * KEYS);
    counted(rounds * KEYS as usize, "lists moved under reads");
}

/// S6-R10, R12, S8-R10: reads all the time during 10,000 create / delete cycles. Each life has other blocks; a read
/// finds those of one life or a defined error.
#[test]
fn s6_r10_no_request_sees_a_half_made_entry() {
    let mut world = World::new();
    let board = Arc::new(Board::default());
    let template = world.request(Operation::Read, Key(0), 0, 4);
    let mut lives = 0;
    let mut create = |world: &mut World| {
        lives += 4;
        world.grant(&[range(lives, 1), range(lives + 1, 3)])
    };
    let mut keys: Vec<_> = (0..KEYS).map(|_| create(&mut world)).collect();
    board.keys.iter().zip(&keys).for_each(|(slot, key)| slot.store(key.0, Release));
    let poller = {
        let (board, directory) = (Arc::clone(&board), Directory::new(world.tables.published(), 1));
        let of_one_life = |blocks: &[u64]| {
            blocks.len() == 4
                && blocks[0].is_multiple_of(4)
                && (blocks[0]..).zip(blocks).all(|(a, b)| a == *b)
        };
        thread::spawn(move || board.poll(directory, template, of_one_life))
    };
    let cycles = if soak() { 100_000 } else { 10_000 };
    for round in 0..cycles / KEYS {
        let begin = |key: &Key| world.tables.begin(Some(A), *key, Purpose::Delete).unwrap();
        let tokens: Vec<_> = keys.iter().map(begin).collect();
        board.quiesce();
        for token in tokens {
            world.tables.finish_delete(token);
        }
        for (i, key) in keys.iter_mut().enumerate() {
            *key = create(&mut world);
            assert_eq!(key.index().0 as usize, i);
            if !(round as usize + i).is_multiple_of(3) {
                board.keys[i].store(key.0, Release); // else the poller goes on with a stale key
            }
        }
        if round % 25 == 0 {
            board.see_a_grant();
        }
    }
    board.stop.store(true, Release);
    let seen = poller.join().unwrap();
    world.tables.self_check().unwrap();
    assert!(seen.granted > 0 && seen.held == 0, "{seen:?}");
    counted(cycles as usize, "entries created and deleted under reads");
    assert_eq!(u64::from(world.tables.usage().lba_entries), 2 * KEYS);
}

/// With room for files.
const FILES: Limits = Limits { entries: 64, lba_entries: 1024, extensions: 1024, regions: 8 };

/// S6-R13: extensions appended to open files under reads, without a quiescent point: a read sees none of a new extension, or
/// all that it needs of it.
#[test]
fn s6_r13_appending_under_reads_is_never_half_seen() {
    let mut world = World::<32>::with(FILES, 1);
    let extent = |file: u64, number: u64| range(file * 4096 + number * 3, 2);
    let mut keys: Vec<Key> = Vec::new();
    for i in 0..KEYS {
        // So many that the segment has room for as many again.
        let extents: Vec<LbaRange> = (0..17).map(|number| extent(i, number)).collect();
        keys.push(world.tables.create_file(&file(&extents)).unwrap().file);
    }
    let rounds = if soak() { 4_000 } else { 100 };
    let mut appended = 0;
    for _ in 0..rounds {
        let board = Arc::new(Board::default());
        board.keys.iter().zip(&keys).for_each(|(slot, key)| slot.store(key.0, Release));
        // Over the joint of what there was and what will be appended: 33..37 of extensions of two blocks.
        let template = world.request(Operation::Read, Key(0), 33, 4);
        let poller = {
            let (board, directory) = (Arc::clone(&board), Directory::new(world.tables.published(), 1));
            thread::spawn(move || {
                board.poll_growing(directory, template, |key, blocks| {
                    let first = u64::from(key.index().0) * 4096;
                    blocks == [first + 49, first + 51, first + 52, first + 54]
                });
            })
        };
        for (i, key) in (0..).zip(&keys) {
            for number in 17..20 {
                world.tables.extend_file(Some(A), *key, &[extent(i, number)]).unwrap();
                appended += 1;
            }
        }
        board.see_a_grant();
        board.stop.store(true, Release);
        poller.join().unwrap();
        // Cut off again, with nobody there to see it.
        for key in &keys {
            let quiesce = world.tables.begin(Some(A), *key, Purpose::Modify).unwrap();
            let change = FileModification { keep: Some(Blocks(34)), ..FileModification::default() };
            world.tables.finish_modify_file(quiesce, &change).unwrap();
        }
    }
    world.tables.self_check().unwrap();
    assert_eq!(u64::from(world.tables.usage().extensions), 32 * KEYS);
    counted(appended, "extensions appended under reads");
}

/// S6-R10, R12, R13, S8-R7: files grown, moved, cut and replaced under reads, at quiescent points.
#[test]
fn s6_r10_r12_s8_r7_files_that_move_are_never_mixed() {
    let mut world = World::<32>::with(FILES, 1);
    // The extensions of one version of a file, and of another, which is longer than the segment of the first.
    let version = |file: u64, odd: bool| -> Vec<LbaRange> {
        let at = file * 8192 + u64::from(odd) * 4096;
        (0..if odd { 9 } else { 3 }).map(|number| range(at + number * 10, 8)).collect()
    };
    let mut keys: Vec<Key> =
        (0..KEYS).map(|i| world.tables.create_file(&file(&version(i, false))).unwrap().file).collect();
    let board = Arc::new(Board::default());
    board.keys.iter().zip(&keys).for_each(|(slot, key)| slot.store(key.0, Release));
    let template = world.request(Operation::Read, Key(0), 6, 12);
    let poller = {
        let (board, directory) = (Arc::clone(&board), Directory::new(world.tables.published(), 1));
        thread::spawn(move || {
            board.poll(directory, template, |blocks| {
                let first = blocks[0] - 6;
                let expected = [6, 7, 10, 11, 12, 13, 14, 15, 16, 17, 20, 21].map(|block| first + block);
                first.is_multiple_of(4096) && blocks == expected
            })
        })
    };
    let rounds: u64 = if soak() { 2_000 } else { 60 };
    for round in 0..rounds {
        let odd = round % 2 == 0;
        let purpose = if round % 3 == 2 { Purpose::Delete } else { Purpose::Modify };
        let tokens: Vec<_> =
            keys.iter().map(|key| world.tables.begin(Some(A), *key, purpose).unwrap()).collect();
        board.quiesce();
        for (i, token) in (0..).zip(tokens) {
            let extents = version(i, odd);
            if purpose == Purpose::Delete {
                world.tables.finish_delete(token);
                keys[i as usize] = world.tables.create_file(&file(&extents)).unwrap().file;
                board.keys[i as usize].store(keys[i as usize].0, Release);
            } else {
                let change = FileModification { keep: Some(Blocks(0)), access: None, append: &extents };
                world.tables.finish_modify_file(token, &change).unwrap();
            }
        }
        board.see_a_grant();
    }
    board.stop.store(true, Release);
    let seen = poller.join().unwrap();
    world.tables.self_check().unwrap();
    assert!(seen.granted >= rounds, "{seen:?}");
    counted((rounds * KEYS) as usize, "files moved and replaced under reads");
}
