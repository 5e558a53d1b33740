//! Late DMA through the whole adapter: what a request was given back, and what a session gave up, is not written to by
//! a device that is late. Each request ends exactly once, by its completion or by the reset that stops the device.
//!
//! `PORTCULLIS_SOAK=1` takes 200 seeds, `PORTCULLIS_SEED` chooses the first.
#![allow(clippy::cast_possible_truncation)] // small numbers of the test's own

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use driver::dice::Dice;
use driver::emu::{EmuConfig, Late, Lateness, RamMedia};
use driver::hal::{Device, Mapper};
use portcullis::{Access, Buffer, Completion, MemoryAccess, Queue, Request, Session, Volume};

use super::{Options, Turned, build};
use crate::device::{self, DeviceUri};
use crate::embedded::Embedded;

const VOLUME: u64 = 256 << 10;
const PIECE: usize = 4096;
const PIECES: usize = 16;
const ROUNDS: u64 = 3;
/// What lies in memory of sessions that ask for nothing, and nowhere else.
const CANARY: u8 = 0xc5;
/// What an application fills a buffer with that it was given back, for the rest of its life.
const GIVEN_BACK: u8 = 0xa6;

fn check(buffers: &[Buffer], filler: u8, seed: u64) {
    let whose = if filler == CANARY { "another session's" } else { "given back" };
    for buffer in buffers {
        assert!(buffer.iter().all(|&byte| byte == filler), "seed {seed}: {whose} memory was written to");
    }
}

/// An application that reads, writes and compares, and what it got back.
struct Application<'a> {
    seed: u64,
    volume: &'a Volume,
    queue: Queue,
    free: Vec<Buffer>,
    /// Given back, filled with [`GIVEN_BACK`] and given to no request again.
    quiet: Vec<Buffer>,
    open: HashSet<u64>,
    next: u64,
    failed: u64,
}

impl Application<'_> {
    fn submit(&mut self, dice: &mut Dice) {
        let Some(mut buffer) = self.free.pop() else { return };
        let offset = dice.below(VOLUME / PIECE as u64) * PIECE as u64;
        let request = match dice.below(5) {
            0 => {
                buffer.fill(1 + dice.below(64) as u8);
                Request::write(self.volume, offset, buffer)
            }
            1 => Request::compare(self.volume, offset, buffer),
            _ => Request::read(self.volume, offset, buffer),
        };
        match self.queue.prepare(request.tag(self.next)) {
            Ok(_) => {
                self.open.insert(self.next);
                self.next += 1;
            }
            Err(refused) => self.free.extend(refused.request.into_buffer()),
        }
    }

    fn take(&mut self, done: Completion, dice: &mut Dice) {
        assert!(self.open.remove(&done.tag), "seed {}: request {} ended twice", self.seed, done.tag);
        self.failed += u64::from(done.result.is_err());
        let mut buffer = done.buffer.expect("the buffer comes back");
        if dice.below(3) == 0 {
            buffer.fill(GIVEN_BACK);
            self.quiet.push(buffer);
        } else {
            self.free.push(buffer);
        }
    }

    fn steps(&mut self, device: &Late, dice: &mut Dice) {
        for _ in 0..60 {
            match dice.below(10) {
                0..5 => self.submit(dice),
                5..7 => self.queue.ring().unwrap(),
                7 => _ = device.stir(),
                _ => {
                    if let Some(done) = self.queue.poll().unwrap() {
                        self.take(done, dice);
                    }
                }
            }
        }
        self.queue.ring().unwrap();
    }

    /// Waits until all requests have ended.
    fn end(&mut self, dice: &mut Dice) {
        while !self.open.is_empty() {
            let done = self.queue.wait(Duration::from_secs(60)).unwrap();
            self.take(done.expect("a reset ends it"), dice);
        }
        assert!(self.queue.poll().unwrap().is_none());
    }
}

/// What came of it.
#[derive(Default)]
struct Counts {
    ended: AtomicU64,
    failed: AtomicU64,
    late: AtomicU64,
    resets: AtomicU64,
}

struct Run {
    seed: u64,
    dice: Dice,
    device: Late,
    mapper: Arc<dyn Mapper>,
    adapter: Embedded,
    counts: Arc<Counts>,
    /// Sessions with nothing but canaries in their memory.
    others: Vec<(Session, Vec<Buffer>)>,
}

impl Run {
    fn new(seed: u64, counts: Arc<Counts>) -> Self {
        let bytes = 16 << 20;
        let config = EmuConfig::new(Arc::new(RamMedia::new(bytes).unwrap()));
        let device = Late::new(config, Lateness::of(seed)).unwrap();
        let uri = DeviceUri::EmuRam(bytes);
        let options = Options { device_timeout: Duration::from_millis(50), ..Options::new(uri.clone()) };
        let opened = device::nvme::open(&uri, device.handle(), 1, false).unwrap();
        let mapper = device.mapper();
        let adapter = Embedded::over(build(opened, &options, Turned::ByCaller).unwrap());
        Self { seed, dice: Dice(seed), device, mapper, adapter, counts, others: Vec::new() }
    }

    fn all(mut self) {
        let owner = self.adapter.session().unwrap();
        owner.create_volume("v", VOLUME).unwrap();
        for round in 0..ROUNDS {
            let before = self.mapper.mappings();
            self.application(round);
            // What it had is unmapped, and goes to somebody else.
            assert_eq!(self.mapper.mappings(), before, "seed {}: memory stayed mapped", self.seed);
            let other = self.adapter.session().unwrap();
            let memory = other.register(PIECES * PIECE, MemoryAccess::Both).unwrap();
            let mut buffers = memory.buffers(PIECE, PIECE).unwrap();
            buffers.iter_mut().for_each(|buffer| buffer.fill(CANARY));
            self.others.push((other, buffers));
            while self.dice.below(4) != 0 && self.device.stir() {}
            self.others.iter().for_each(|(_, buffers)| check(buffers, CANARY, self.seed));
        }
        while self.device.stir() {}
        self.others.iter().for_each(|(_, buffers)| check(buffers, CANARY, self.seed));
        let volume = owner.open("v", Access::READ).unwrap();
        let mut queue = owner.queue(4).unwrap();
        let mut content = vec![0; VOLUME as usize];
        queue.read_at(&volume, 0, &mut content).unwrap();
        assert!(!content.contains(&CANARY), "seed {}: what others' memory held is on the disk", self.seed);
        // Of its own memory a device that is not honest may write anything to the application's own blocks.
        let honest = Lateness::of(self.seed).is_honest();
        assert!(
            !honest || !content.contains(&GIVEN_BACK),
            "seed {}: read after it was given back",
            self.seed
        );
        self.counts.late.fetch_add(self.device.runs(), Ordering::Relaxed);
        self.counts.resets.fetch_add(u64::from(self.device.stops()), Ordering::Relaxed);
    }

    /// One application, from its session to the last of its memory.
    fn application(&mut self, round: u64) {
        let session = self.adapter.session().unwrap();
        let volume = session.open("v", Access::READ_WRITE).unwrap();
        let memory = session.register(PIECES * PIECE, MemoryAccess::Both).unwrap();
        let mut application = Application {
            seed: self.seed,
            volume: &volume,
            queue: session.queue(PIECES as u32).unwrap(),
            free: memory.buffers(PIECE, PIECE).unwrap(),
            quiet: Vec::new(),
            open: HashSet::new(),
            next: 0,
            failed: 0,
        };
        self.device.start();
        application.steps(&self.device, &mut self.dice);
        // It waits, or goes with requests under way: then its queue drains, and so does what it had.
        if round == 0 || self.dice.below(2) == 0 {
            application.end(&mut self.dice);
            while self.dice.below(4) != 0 && self.device.stir() {}
        }
        self.device.stop();
        // A device that writes again after it has completed may write to the application's own memory, while it has it.
        if Lateness::of(self.seed).is_honest() {
            check(&application.quiet, GIVEN_BACK, self.seed);
        }
        self.counts.ended.fetch_add(application.next, Ordering::Relaxed);
        self.counts.failed.fetch_add(application.failed, Ordering::Relaxed);
    }
}

#[test]
fn late_dma_through_the_whole_adapter_touches_nothing_of_anybody_else() {
    let soak = std::env::var_os("PORTCULLIS_SOAK").is_some_and(|value| value == "1");
    let first = std::env::var("PORTCULLIS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0u64);
    let seeds = if soak { 200 } else { 20 };
    let counts = Arc::new(Counts::default());
    let next = Mutex::new(first..first.wrapping_add(seeds));
    // Most of the time they wait for a device that does nothing.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(seed) = { next.lock().unwrap().next() } {
                    Run::new(seed, counts.clone()).all();
                }
            });
        }
    });
    let [ended, failed, late, resets] =
        [&counts.ended, &counts.failed, &counts.late, &counts.resets].map(|n| n.load(Ordering::Relaxed));
    println!("{ended} requests, {failed} failed; {late} ran late; {resets} resets");
    assert!(failed > seeds && late > seeds && resets > seeds && ended > 2 * failed);
    println!("counted: {seeds} seeds of late DMA through an adapter");
}
