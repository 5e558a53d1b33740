//! kill -9 of the adapter under load: the applications go on, and what they see is what blocks do.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use driver::dice::Dice;
use portcullis::{Access, Buffer, Completion, MemoryAccess, Queue, Request, Session, Status, Volume};

use super::Adapters;
use super::history::{FIRST, Operation, Value, check};
use crate::death::seed;
use crate::scale::{counted, number, often};
use crate::system::{Case, PATIENCE, Rig, until};

pub(super) const CASES: &[Case] =
    &[Case { name: "applications_go_on_when_the_adapter_is_killed_under_load", run: under_load }];

const BLOCK: usize = 512;
/// Blocks that two sessions share, and those that one has for itself.
const SHARED: u64 = 24;
const OWN: u64 = 64;
/// Requests that each has in flight.
const DEPTH: usize = 8;

fn under_load(rig: &Rig) {
    let kills = number("PORTCULLIS_KILLS").map_or(often(6, 50), |kills| u32::try_from(kills).unwrap());
    let seed = seed();
    let mut dice = Dice(seed);
    let mut adapters = Adapters::start(rig);
    if let Some(refusal) = adapters.try_another() {
        assert!(refusal.contains("in use by another process"), "{refusal}");
        println!("beside the adapter that serves, another is refused: {}", refusal.trim_end());
    }
    let maker = adapters.session();
    maker.create_volume("shared", SHARED * BLOCK as u64).unwrap();
    maker.create_volume("own", OWN * BLOCK as u64).unwrap();
    drop(maker);
    let sessions: [Session; 3] = std::array::from_fn(|_| adapters.session());
    let (over, epoch) = (AtomicBool::new(false), Instant::now());
    let progress: [AtomicU64; 3] = Default::default();
    let [first, second, own] = &sessions;
    let (histories, unknown, lives) = std::thread::scope(|scope| {
        let shared = [(first, 1), (second, 2)].map(|(session, number)| {
            let (over, progress) = (&over, &progress[number as usize - 1]);
            scope.spawn(move || {
                let mut sharer = Sharer::new(session, number, Dice(seed ^ number << 32), epoch);
                sharer.work(over, progress);
                (sharer.seen, sharer.unknown)
            })
        });
        let alone = scope.spawn(|| Owner::new(own, Dice(seed ^ 7 << 32)).work(&over, &progress[2]));
        for _ in 0..kills {
            let before = [0, 1, 2].map(|at| progress[at].load(Ordering::Relaxed));
            until("everybody goes on", || {
                progress.iter().zip(before).all(|(now, before)| now.load(Ordering::Relaxed) > before + 40)
            });
            // The time is what is random here; nothing waits for it to be enough.
            std::thread::sleep(Duration::from_micros(dice.below(30_000)));
            adapters.kill();
            adapters.again();
        }
        let before = [0, 1, 2].map(|at| progress[at].load(Ordering::Relaxed));
        until("everybody goes on at the end", || {
            progress.iter().zip(before).all(|(now, before)| now.load(Ordering::Relaxed) > before + 40)
        });
        over.store(true, Ordering::Relaxed);
        let mut histories: Vec<Operation2> = Vec::new();
        let mut unknown = 0;
        for sharer in shared {
            let (seen, its) = sharer.join().unwrap();
            histories.extend(seen);
            unknown += its;
        }
        alone.join().unwrap();
        (histories, unknown, sessions.each_ref().map(Session::restarts))
    });
    assert_eq!(lives, [kills, kills, kills], "each session went on each time");
    for block in 0..SHARED {
        let of_it: Vec<Operation> =
            histories.iter().filter(|(at, _)| *at == block).map(|(_, operation)| *operation).collect();
        if let Err(what) = check(&of_it) {
            panic!("block {block}: {what}; {} operations were seen", of_it.len());
        }
    }
    let reads = histories.iter().filter(|(_, operation)| !operation.writes).count();
    println!(
        "{reads} reads and {} writes of shared blocks, {unknown} of them with an outcome unknown; {} writes to own blocks",
        histories.len() - reads,
        progress[2].load(Ordering::Relaxed)
    );
    counted(kills, "restarts under load");
}

/// With the block that it was about.
type Operation2 = (u64, Operation);

fn content(value: Value) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block.as_chunks_mut::<8>().0.iter_mut().for_each(|word| *word = value.to_le_bytes());
    block
}

fn value_in(block: &[u8]) -> Value {
    Value::from_le_bytes(block[..8].try_into().unwrap())
}

/// Buffers of whole pages and of parts of pages: after a restart these are moved, and those bounced.
fn buffers(session: &Session) -> Vec<Buffer> {
    let memory = |bytes| session.register(bytes, MemoryAccess::Both).unwrap();
    let mut buffers = memory(DEPTH / 2 * 4096).buffers(4096, 4096).unwrap();
    buffers.extend(memory(4096).buffers(BLOCK, BLOCK).unwrap().into_iter().take(DEPTH / 2));
    buffers
}

/// Reads and writes blocks that another does the same to.
struct Sharer {
    volume: Volume,
    queue: Queue,
    buffers: Vec<Buffer>,
    dice: Dice,
    epoch: Instant,
    next: Value,
    /// By tag: what is in flight.
    running: Vec<Option<Operation2>>,
    seen: Vec<Operation2>,
    unknown: usize,
}

impl Sharer {
    fn new(session: &Session, number: u64, dice: Dice, epoch: Instant) -> Self {
        Self {
            volume: session.open("shared", Access::READ_WRITE).unwrap(),
            queue: session.queue(16).unwrap(),
            buffers: buffers(session),
            dice,
            epoch,
            next: number << 48,
            running: Vec::new(),
            seen: Vec::new(),
            unknown: 0,
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap()
    }

    fn work(&mut self, over: &AtomicBool, progress: &AtomicU64) {
        loop {
            let ends = over.load(Ordering::Relaxed);
            while let Some(buffer) = self.buffers.pop_if(|_| !ends) {
                self.begin(buffer);
            }
            if self.queue.in_flight() == 0 && ends {
                break;
            }
            self.queue.ring().unwrap();
            let done = self.queue.wait(PATIENCE).unwrap().expect("a completion in time");
            self.end(done);
            progress.fetch_add(1, Ordering::Relaxed);
        }
        assert!(self.running.iter().all(Option::is_none), "a request was never answered");
    }

    fn begin(&mut self, mut buffer: Buffer) {
        let block = self.dice.below(SHARED);
        let writes = self.dice.below(3) == 0;
        let tag = self.running.len() as u64;
        let begin = self.now();
        let mut operation = Operation { value: FIRST, writes, begin, end: None };
        let offset = block * BLOCK as u64;
        let request = if writes {
            self.next += 1;
            operation.value = self.next;
            buffer[..BLOCK].copy_from_slice(&content(self.next));
            Request::write(&self.volume, offset, buffer)
        } else {
            buffer[..BLOCK].fill(0xff);
            Request::read(&self.volume, offset, buffer)
        };
        self.running.push(Some((block, operation)));
        self.queue.prepare(request.length(BLOCK as u64).tag(tag)).unwrap();
    }

    fn end(&mut self, done: Completion) {
        let end = self.now();
        let (block, mut operation) =
            self.running[done.tag as usize].take().expect("each request is answered once");
        let buffer = done.buffer.expect("it had one");
        match done.result {
            Ok(bytes) => {
                assert_eq!(bytes as usize, BLOCK);
                operation.end = Some(end);
                if !operation.writes {
                    operation.value = value_in(&buffer);
                }
                self.seen.push((block, operation));
            }
            Err(error) => {
                assert_eq!(error.status(), Some(Status::E_OUTCOME_UNKNOWN), "{error}");
                assert!(operation.writes, "reads are asked again");
                self.unknown += 1;
                self.seen.push((block, operation));
            }
        }
        self.buffers.insert(0, buffer);
    }
}

/// Writes blocks that nobody else may write, and reads them back.
struct Owner {
    volume: Volume,
    queue: Queue,
    buffers: Vec<Buffer>,
    dice: Dice,
    /// What each block holds; none while it is being written.
    holds: Vec<Option<Value>>,
    free: VecDeque<u64>,
}

impl Owner {
    fn new(session: &Session, dice: Dice) -> Self {
        Self {
            volume: session.open_exclusive("own", Access::READ_WRITE).unwrap(),
            queue: session.queue(16).unwrap(),
            buffers: buffers(session),
            dice,
            holds: vec![Some(FIRST); OWN as usize],
            free: (0..OWN).collect(),
        }
    }

    fn work(mut self, over: &AtomicBool, progress: &AtomicU64) {
        let mut next: Value = 0;
        let mut running: Vec<Option<(u64, Option<Value>)>> = Vec::new();
        loop {
            let ends = over.load(Ordering::Relaxed);
            while let Some(mut buffer) = self.buffers.pop_if(|_| !ends) {
                let block = self.free.pop_front().expect("more blocks than requests");
                let tag = running.len() as u64;
                let offset = block * BLOCK as u64;
                let writes = self.dice.below(2) == 0;
                let request = if writes {
                    next += 1;
                    buffer[..BLOCK].copy_from_slice(&content(next));
                    Request::write(&self.volume, offset, buffer)
                } else {
                    buffer[..BLOCK].fill(0xff);
                    Request::read(&self.volume, offset, buffer)
                };
                running.push(Some((block, writes.then_some(next))));
                self.queue.prepare(request.length(BLOCK as u64).tag(tag)).unwrap();
            }
            if self.queue.in_flight() == 0 && ends {
                return;
            }
            let done = self.queue.wait(PATIENCE).unwrap().expect("a completion in time");
            let (block, wrote) = running[done.tag as usize].take().expect("each request is answered once");
            let bytes = done.result.expect("nothing fails, and no outcome is unknown, where one writes");
            assert_eq!(bytes as usize, BLOCK);
            let buffer = done.buffer.expect("it had one");
            let holds = &mut self.holds[block as usize];
            match wrote {
                Some(value) => *holds = Some(value),
                None => assert!(buffer[..BLOCK] == content(holds.unwrap()), "block {block} lost {holds:?}"),
            }
            self.free.push_back(block);
            self.buffers.insert(0, buffer);
            progress.fetch_add(1, Ordering::Relaxed);
        }
    }
}
