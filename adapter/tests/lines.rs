//! No cache line is written by two pollers for requests that read and write blocks.
//!
//! Two engines over the same tables and gates, each on a thread of its own, have turns one at a time, with requests in
//! flight from one to the next. Before and after each turn the whole memory of this process is read, whatever it is used for:
//! what differs was written in that turn. (A line in which the same was written again is not seen; so there are many
//! turns, of which no two are alike.) Of the lines that one engine wrote, the other must have written none.
//!
//! It has a process to itself, as a test beside it would write, too.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test that cannot go on has failed

use std::collections::{BTreeSet, VecDeque};
use std::fs::{File, read_to_string};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use adapter::engine::{Engine, Gates, MonotonicClock, Port, QueueId};
use adapter::mailbox::{Command, PollerShared};
use driver::block::{self, BlockQueue, Completed, DeviceStatus, Geometry, QueueState, Segment, SubmitError};
use tpt::{Access, Directory, Domain, GrantSpec, Iova, KeyInstance, LbaRange, Limits, RegionSpec, Tables};
use wire::layout::{Entries, SubmissionEntry, opcode};
use wire::ring::ApplicationEnd;
use wire::shm::SharedMemory;
use wire::view::QueueView;

/// Bytes of a line.
const LINE: usize = 64;
/// Queues of each engine.
const QUEUES: usize = 12;
const TURNS: u32 = 40;

/// A device that ends what it got in an earlier turn.
struct Slow {
    geometry: Geometry,
    running: VecDeque<u64>,
    /// How many it keeps.
    keeps: usize,
}

impl BlockQueue for Slow {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }
    fn submit(&mut self, command: &block::Command) -> Result<(), SubmitError> {
        self.running.push_back(command.tag);
        Ok(())
    }
    fn submit_scattered(&mut self, command: &block::Command, _: &[Segment]) -> Result<(), SubmitError> {
        self.submit(command)
    }
    fn commit(&mut self) {}
    fn poll(&mut self, budget: usize, ended: &mut dyn FnMut(Completed)) -> usize {
        self.keeps = (self.keeps * 5 + 3) % 8;
        let many = self.running.len().saturating_sub(self.keeps).min(budget);
        for tag in self.running.drain(..many) {
            ended(Completed { tag, status: DeviceStatus::OK });
        }
        many
    }
    fn outstanding(&self) -> usize {
        self.running.len()
    }
    fn state(&self) -> QueueState {
        QueueState::Running
    }
    fn arm_interrupt(&mut self, _: bool) {}
}

/// The turn that goes on: the engine's number, counted from 1; 0 is nobody's. On lines of its own.
#[repr(align(128))]
struct Turn(AtomicU32);
static TURN: Turn = Turn(AtomicU32::new(0));

/// Something on the stack of each of the engines' threads.
static STACKS: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

fn poller(mut engine: Box<Engine<Slow, MonotonicClock>>, number: u32) {
    let on_the_stack = 0u8;
    STACKS[number as usize - 1].store((&raw const on_the_stack).addr(), Ordering::Relaxed);
    loop {
        match TURN.0.load(Ordering::Acquire) {
            u32::MAX => return,
            turn if turn == number => {
                engine.turn();
                TURN.0.store(0, Ordering::Release);
            }
            _ => std::hint::spin_loop(),
        }
    }
}

fn turn(number: u32) {
    TURN.0.store(number, Ordering::Release);
    while TURN.0.load(Ordering::Acquire) != 0 {
        std::hint::spin_loop();
    }
}

/// Lets the threads end, also when the test fails.
struct Over;

impl Drop for Over {
    fn drop(&mut self) {
        TURN.0.store(u32::MAX, Ordering::Release);
    }
}

/// What this process can write to, and two copies of it. Without the stacks: nobody has a part of another's, and the kernel
/// writes there whenever it moves a thread.
struct Memory {
    file: File,
    areas: Vec<(usize, Vec<u8>, Vec<u8>)>,
}

impl Memory {
    fn new() -> Self {
        let on_the_stack = 0u8;
        let its_own = (&raw const on_the_stack).addr();
        let stacks = STACKS.iter().map(|stack| stack.load(Ordering::Relaxed)).chain([its_own]);
        let stacks: Vec<_> = stacks.collect();
        let parse = |line: &str| {
            let mut words = line.split_whitespace();
            let (start, end) = words.next()?.split_once('-')?;
            let may_write = words.next()?.starts_with("rw");
            let start = usize::from_str_radix(start, 16).ok()?;
            let bytes = usize::from_str_radix(end, 16).ok()? - start;
            let is_stack = stacks.iter().any(|stack| (start..start + bytes).contains(stack));
            (may_write && bytes < 32 << 20 && !is_stack).then_some((start, bytes))
        };
        let maps: Vec<_> = read_to_string("/proc/self/maps").unwrap().lines().filter_map(parse).collect();
        let areas = maps.into_iter().map(|(start, bytes)| (start, vec![1; bytes], vec![1; bytes])).collect();
        Self { file: File::open("/proc/self/mem").unwrap(), areas }
    }

    fn before(&mut self) {
        for (start, before, _) in &mut self.areas {
            // Some special mappings cannot be read; nothing is written there either.
            let _ = self.file.read_exact_at(before, *start as u64);
        }
    }

    /// The lines that are not what they were.
    fn changed(&mut self) -> Vec<usize> {
        // All is read before anything is noted, which writes, too.
        for (start, _, after) in &mut self.areas {
            let _ = self.file.read_exact_at(after, *start as u64);
        }
        let mut lines = Vec::new();
        for (start, before, after) in &mut self.areas {
            if before == after {
                continue;
            }
            for (at, (was, is)) in before.chunks(LINE).zip(after.chunks(LINE)).enumerate() {
                if was != is {
                    lines.push(*start + at * LINE);
                }
            }
        }
        lines
    }
}

struct App {
    end: ApplicationEnd<QueueView>,
    entry: SubmissionEntry,
}

/// A world of two engines with a few queues each, made by one thread as an adapter's are.
fn world() -> (Vec<Engine<Slow, MonotonicClock>>, Vec<Vec<App>>, Tables) {
    let mut tables =
        Tables::new(Limits { entries: 1024, lba_entries: 1024, extensions: 0, regions: 64 }, KeyInstance(1));
    let gates = Gates::new(2).unwrap();
    let geometry = Geometry {
        block_shift: 9,
        blocks: 1 << 20,
        max_transfer_blocks: 8,
        max_segments: 8,
        max_zeroes_blocks: 1 << 16,
        write_cache: true,
        write_zeroes: true,
        deallocate: true,
        deallocate_zeroes: false,
        compare: true,
    };
    let (mut engines, mut shareds) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let shared = Arc::new(PollerShared::default());
        let device = Slow { geometry, running: VecDeque::with_capacity(64), keeps: 0 };
        let directory = Directory::new(tables.published(), 16);
        let mut engine = Engine::new(device, MonotonicClock::default(), directory, shared.clone(), 256);
        engine.set_gates(gates.clone());
        engines.push(engine);
        shareds.push(shared);
    }
    let entries = Entries::new(8).unwrap();
    let queues = 0..2 * QUEUES as u32;
    let memory = |_| Arc::new(SharedMemory::create("lines", entries.bytes()).unwrap().0);
    let memories: Vec<_> = queues.clone().map(memory).collect();
    let view = |number: u32| QueueView::new(memories[number as usize].clone(), entries).unwrap();
    // What belongs to one engine lies beside what belongs to the other, wherever it may.
    let mut ports = Vec::with_capacity(queues.len());
    for number in queues {
        ports.push(Port::new(QueueId(number), 1, Domain(1 + number), view(number), entries));
    }
    let mut apps = vec![Vec::new(), Vec::new()];
    for (port, number) in ports.into_iter().zip(0..) {
        let (of, domain) = (number as usize % 2, Domain(1 + number));
        assert!(shareds[of].send(Command::Attach(Box::new(port))).is_ok());
        let ranges = [LbaRange::new(64 * u64::from(number), 64).unwrap()];
        let spec =
            GrantSpec { domain, access: Access::READ_WRITE, block_shift: 9, ranges: &ranges, shared: false };
        let key = tables.create(&spec).unwrap();
        let spec = RegionSpec { domain, access: Access::READ_WRITE, iova: Iova(1 << 20), bytes: 1 << 20 };
        let region = tables.create_region(&spec).unwrap();
        let entry =
            SubmissionEntry { key: key.0, length: 512, region: region.0, ..SubmissionEntry::default() };
        apps[of].push(App { end: ApplicationEnd::new(view(number), entries), entry });
    }
    (engines, apps, tables)
}

/// Rings for some more, and takes what came.
fn ask(apps: &mut [App], round: u32) {
    for (number, app) in apps.iter_mut().enumerate() {
        while app.end.pop().is_some() {}
        for more in 0..(round * 7 + number as u32 * 3) % 5 {
            let opcode = if more % 2 == 0 { opcode::READ } else { opcode::WRITE };
            let user_data = u64::from(round) << 8 | u64::from(more);
            let entry =
                SubmissionEntry { opcode, user_data, offset: 512 * u64::from(round % 64), ..app.entry };
            if app.end.push(&entry).is_err() {
                break;
            }
        }
        app.end.ring();
    }
}

#[test]
fn no_line_is_written_by_two_pollers() {
    let (engines, mut apps, _tables) = world();
    std::thread::scope(|scope| {
        let _over = Over;
        for (engine, number) in engines.into_iter().zip(1..) {
            scope.spawn(move || poller(Box::new(engine), number));
        }
        for round in 0..100 {
            for (apps, number) in apps.iter_mut().zip(1..) {
                ask(apps, round);
                turn(number); // Everything is in use, and no engine has anything to get used to.
            }
        }
        let mut memory = Memory::new();
        let mut written = [BTreeSet::new(), BTreeSet::new(), BTreeSet::new()];
        for round in 0..TURNS {
            for number in [0, 1, 2] {
                if let Some(apps) = apps.get_mut(number) {
                    ask(apps, round);
                }
                memory.before();
                if number < 2 {
                    turn(number as u32 + 1);
                }
                written[number].extend(memory.changed());
            }
        }
        let [one, other, by_this_test] = written;
        let shared: Vec<_> = one
            .intersection(&other)
            .filter(|line| !by_this_test.contains(line))
            .map(|l| format!("{l:#x}"))
            .collect();
        // An entry of each completion ring is half a line: so many at the least.
        let least = QUEUES * 4;
        assert!(
            one.len() > least && other.len() > least,
            "{} and {} lines were seen",
            one.len(),
            other.len()
        );
        assert!(shared.is_empty(), "both engines wrote {} lines: {shared:?}", shared.len());
        println!("one engine wrote {} lines, the other {}, and none is of both", one.len(), other.len());
    });
}
