//! What a turn of the engine costs in instructions, beside what driving the same device queue without it costs.
//!
//! ```sh
//! cargo build --release -p benches --example turns
//! for side in turned bare; do
//!     valgrind --tool=callgrind --callgrind-out-file=turns.$side --toggle-collect="turns::$side*" \
//!         target/release/examples/turns 32 1000
//! done
//! ```
//!
//! `turns DEPTH ROUNDS [QUEUES [WHERE [EXTENSIONS]]]` makes `ROUNDS` rounds. In each an application announces `DEPTH` reads of 4 KiB at random
//! places of its grant, which is not counted; then `turned` gives the engine one turn over the null device, which takes,
//! parses, checks, submits, reaps and completes all of them (`DEPTH` may be no more than the burst of a turn, 32), and
//! the application, not counted, consumes the completions. Beside it `bare` submits `DEPTH` commands for the same blocks
//! to a null device of its own, commits them, and reaps them.
//!
//! Callgrind counts what is done inside of the function that `--toggle-collect` names, and says `Collected : N` at the
//! end. (turned - bare) / (DEPTH * ROUNDS) are the instructions of a request above a bare submit and reap. With a `DEPTH`
//! of 0 nothing is asked for: then turned / ROUNDS is what a turn costs that finds nothing to do. `QUEUES - 1` more
//! queues are served, and idle. `WHERE` is `blocks`, or the reads are by the key of a file of so many extensions: of the
//! `first` at random places, of the `later` ones from their beginning to their end, or of `all` at random.
//!
//! Nobody else is on the queue's lines and everything is in the caches, so this says nothing of time.

use std::hint::black_box;
use std::sync::Arc;

use adapter::engine::{Engine, Gates, Lengths, MonotonicClock, Port, QueueId, TurnLimits};
use adapter::mailbox::{Command, PollerShared};
use benches::pattern::{Order, Walk};
use driver::block::{self, BlockQueue};
use driver::hal;
use driver::null::NullQueue;
use tpt::{
    Access, Directory, Domain, FileSpec, GrantSpec, Iova, KeyInstance, LbaRange, Limits, RegionSpec, Tables,
};
use wire::Status;
use wire::layout::{Entries, SubmissionEntry, opcode};
use wire::ring::ApplicationEnd;
use wire::shm::SharedMemory;
use wire::view::QueueView;

/// Where reads are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Where {
    /// Of a grant of blocks, anywhere.
    Blocks,
    /// In the first extension of a file, anywhere.
    First,
    /// In the others, one after another.
    Later,
    /// In all of them, anywhere.
    All,
}

impl Where {
    fn of(text: &str) -> Self {
        match text {
            "blocks" => Self::Blocks,
            "first" => Self::First,
            "later" => Self::Later,
            "all" => Self::All,
            _ => panic!("neither blocks nor first, later or all: {text}"),
        }
    }

    /// Reads at which it begins, how many there are, and their order, if each of the extensions has so many.
    fn reads(self, extensions: u32, each: u32) -> (u32, Walk) {
        let all = extensions * each;
        match self {
            Self::Blocks | Self::All => (0, Walk::new(Order::Random, all)),
            Self::First => (0, Walk::new(Order::Random, each)),
            Self::Later => (each, Walk::new(Order::Sequential, all - each)),
        }
    }
}

/// Bytes and blocks of a read.
const READ: u32 = 4096;
const BLOCKS: u32 = READ / 512;
/// Reads that do not overlap: 32 MiB.
const PLACES: u32 = 32 << 8;
/// Of the device.
const DEVICE_BLOCKS: u64 = 1 << 21;
/// Where the grant begins.
const FIRST: u64 = 4096;
const DOMAIN: Domain = Domain(7);
/// Of the memory region.
const IOVA: u64 = 0x10_0000;
/// As an adapter has it.
const REQUESTS: u16 = 4096;
const ENTRIES: Option<Entries> = Entries::new(64);

type Rig = Engine<NullQueue, MonotonicClock>;

/// The engine's side of a round.
#[inline(never)]
fn turned(engine: &mut Rig) -> usize {
    engine.turn()
}

/// The same commands, and nothing else.
#[inline(never)]
fn bare(
    queue: &mut NullQueue,
    commands: &[block::Command],
    mut ended: impl FnMut(block::Completed),
) -> usize {
    for command in commands {
        let taken = queue.submit(command);
        assert!(taken.is_ok());
    }
    queue.commit();
    queue.poll(TurnLimits::default().reap, &mut ended)
}

/// The two ends of a new queue.
fn queue(id: u32) -> (ApplicationEnd<QueueView>, Port) {
    let entries = ENTRIES.expect("a power of two");
    let (memory, _) = SharedMemory::create("turns", entries.bytes()).expect("memory for a queue");
    let memory = Arc::new(memory);
    let view = || QueueView::new(memory.clone(), entries).expect("it is large enough");
    (ApplicationEnd::new(view(), entries), Port::new(QueueId(id), 1, DOMAIN, view(), entries))
}

/// From the command line: numbers, and after the third of them where the reads are.
fn arguments() -> ([u32; 4], Where) {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, or| given.get(at).map_or(or, |text| text.parse::<u32>().expect("a number"));
    (
        [number(0, 32), number(1, 1000), number(2, 1), number(4, 1)],
        given.get(3).map_or(Where::Blocks, |text| Where::of(text)),
    )
}

/// The device blocks of the extensions, each as far behind the one before as it is long.
fn extents(extensions: u32, each: u32) -> Vec<LbaRange> {
    let blocks = u64::from(each * BLOCKS);
    let range = |number: u32| LbaRange::new(FIRST + 2 * u64::from(number) * blocks, blocks);
    (0..extensions).map(|number| range(number).expect("a range of some blocks")).collect()
}

fn main() {
    let ([depth, rounds, queues, extensions], place) = arguments();
    let each = PLACES / extensions;
    let mut tables = Tables::<32>::new(
        Limits { entries: 1024, lba_entries: 4096, extensions: 4096, regions: 64 },
        KeyInstance(1),
    );
    let shared = Arc::new(PollerShared::default());
    let directory = Directory::new(tables.published(), 1024);
    let mut engine = Engine::new(
        NullQueue::new(DEVICE_BLOCKS),
        MonotonicClock::default(),
        directory,
        shared.clone(),
        REQUESTS,
    );
    // As a poller has it: queues that are not in use cost no look.
    engine.hear_bells();
    engine.set_gates(Gates::new(1).expect("one engine is not too many"));
    let lengths = Arc::new(Lengths::new(1));
    lengths.set(0, u64::from(PLACES) * u64::from(READ));
    engine.set_lengths(lengths);
    let (mut application, port) = queue(0);
    let others: Vec<_> = (1..queues).map(queue).collect();
    let idle = others.len();
    for port in std::iter::once(port).chain(others.into_iter().map(|(_, port)| port)) {
        assert!(shared.send(Command::Attach(Box::new(port))).is_ok(), "the mailbox is full");
        while engine.turn() > 0 {}
    }
    while engine.parked() < idle {
        engine.turn();
    }
    let ranges = extents(extensions, each);
    let (domain, access) = (DOMAIN, Access::READ);
    let key = if place == Where::Blocks {
        let spec = GrantSpec { domain, access, block_shift: 9, ranges: &ranges, shared: false };
        tables.create(&spec).expect("the table is empty")
    } else {
        let spec = FileSpec { domain, access, block_shift: 9, extents: &ranges, shared: false, context: 0 };
        tables.create_file(&spec).expect("the table is empty").file
    };
    let bytes = u64::from(depth.max(1) * READ);
    let region = RegionSpec { domain: DOMAIN, access: Access::READ_WRITE, iova: Iova(IOVA), bytes };
    let region = tables.create_region(&region).expect("the table is empty");

    let mut device = NullQueue::new(DEVICE_BLOCKS);
    let (start, mut walk) = place.reads(extensions, each);
    let mut commands = Vec::new();
    let mut tags = 0;
    for _ in 0..rounds {
        commands.clear();
        for number in 0..depth {
            let place = start + walk.step();
            let memory = u64::from(number * READ);
            let entry = SubmissionEntry {
                opcode: opcode::READ,
                user_data: u64::from(number),
                key: key.0,
                offset: u64::from(place) * u64::from(READ),
                length: READ,
                region: region.0,
                region_offset: memory,
                ..SubmissionEntry::default()
            };
            application.push(&entry).expect("nothing is in flight");
            commands.push(block::Command {
                operation: block::Operation::Read,
                lba: ranges[(place / each) as usize].first.0 + u64::from(place % each * BLOCKS),
                blocks: BLOCKS,
                data: hal::Iova(IOVA + memory),
                tag: u64::from(number),
            });
        }
        if depth > 0 {
            application.ring();
            // It was parked with the others before the first round.
            engine.unpark(QueueId(0));
        }
        black_box(turned(&mut engine));
        for number in 0..depth {
            let done = application.pop().expect("all are done after one turn");
            assert_eq!(
                (done.user_data, Status(done.status), done.bytes),
                (u64::from(number), Status::OK, READ)
            );
        }
        assert!(application.pop().is_none());
        let ended = bare(&mut device, black_box(&commands), |done| tags += done.tag);
        assert_eq!(ended, commands.len());
    }
    println!("{} requests, {} idle queues, tags {tags}", depth * rounds, queues - 1);
}
