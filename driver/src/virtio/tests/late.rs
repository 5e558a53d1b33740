#![allow(clippy::cast_possible_truncation)] // small numbers of the test's own
//! Late DMA: memory whose requests have ended is somebody else's, and no device that is only late writes to it.
//!
//! `PORTCULLIS_SOAK=1` takes 200 seeds, `PORTCULLIS_SEED` chooses the first.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::rig::options;
use crate::block::{
    BlockQueue, Command, Completed, DeviceStatus, Operation, ResetProgress, Segment, SubmitError,
};
use crate::dice::Dice;
use crate::emu::virtio::{VirtioConfig, VirtioLate, VirtioLateRegisters};
use crate::emu::{Lateness, Media, Pages, RamMedia, Segments, Span};
use crate::hal::{Device, DmaAccess, Iova, Mapper, Mapping};
use crate::spec::virtio::feature;
use crate::virtio::{Controller, Queue};

const BLOCK: usize = 512;
const DISK: u64 = 64 << 10;
const AREA: usize = 16 << 10;
const AREAS: usize = 6;
const STEPS: usize = 400;
/// What lies in memory of an owner with no request under way, and nowhere else.
const CANARY: u8 = 0xc5;

/// Memory that goes from owner to owner.
struct Area {
    /// First, so that it goes before what it maps.
    mapping: Box<dyn Mapping>,
    pages: Arc<Pages>,
    under_way: usize,
    /// Its owner has canaries in it and asks for nothing.
    quiet: bool,
}

impl Area {
    fn new(mapper: &dyn Mapper, pages: Arc<Pages>) -> Self {
        let mapping = mapper.map(pages.clone(), DmaAccess::ReadWrite).unwrap();
        Self { mapping, pages, under_way: 0, quiet: false }
    }

    fn at(&self, offset: usize) -> Iova {
        Iova(self.mapping.iova().0 + offset as u64)
    }

    fn check(&self, seed: u64) {
        let mut bytes = vec![0; AREA];
        self.pages.span().read(&mut bytes);
        let changed = bytes.iter().position(|&byte| byte != CANARY);
        assert_eq!(changed, None, "seed {seed}: the memory of another owner was written to");
    }
}

#[derive(Default, Debug)]
struct Counts {
    ended: u64,
    aborted: u64,
    resets: u64,
    /// Requests that the device ran late, and those of them that it ran while it was being reset.
    late: u64,
    in_resets: u64,
    handed_over: u64,
    /// Accesses that the IOMMU stopped.
    stopped: u64,
}

struct Run {
    lateness: Lateness,
    dice: Dice,
    device: VirtioLate,
    media: Arc<RamMedia>,
    controller: Controller<VirtioLate>,
    queue: Queue<VirtioLateRegisters>,
    areas: Vec<Area>,
    /// The area of each request under way, by tag.
    open: HashMap<u64, usize>,
    next: u64,
    counts: Counts,
}

impl Run {
    fn new(seed: u64) -> Self {
        let lateness = Lateness::of(seed);
        let media = Arc::new(RamMedia::new(DISK).unwrap());
        let without = [0, feature::RING_INDIRECT_DESC, feature::RING_EVENT_IDX][seed as usize % 3];
        let config = VirtioConfig { queues: 2, without, ..VirtioConfig::new(media.clone()) };
        let device = VirtioLate::new(config, lateness).unwrap();
        let mut controller = Controller::open_with(device.handle(), &options(1)).unwrap();
        let queue = controller.take_queue().unwrap();
        let mapper = device.mapper();
        let areas =
            (0..AREAS).map(|_| Area::new(&*mapper, Pages::populated(AREA).unwrap())).collect::<Vec<_>>();
        device.start();
        let (open, counts) = (HashMap::new(), Counts::default());
        Self { lateness, dice: Dice(seed), device, media, controller, queue, areas, open, next: 0, counts }
    }

    fn submit(&mut self) {
        let at = self.dice.below(AREAS as u64) as usize;
        let area = &mut self.areas[at];
        if area.quiet {
            return;
        }
        let write = self.dice.below(4) == 0;
        // Without indirect descriptors a piece each is all that a chain of 16 entries has room for.
        let blocks = if self.queue.geometry().max_segments > 1 { 1 + self.dice.below(8) as u32 } else { 1 };
        let offset = self.dice.below(2048) as usize * 4;
        if write {
            let content = vec![1 + self.dice.below(64) as u8; BLOCK * blocks as usize];
            area.pages.span().part(offset, content.len()).unwrap().write(&content);
        }
        let operation = if write { Operation::Write { fua: false } } else { Operation::Read };
        let lba = self.dice.below(DISK / BLOCK as u64 - 8);
        let command = Command { operation, lba, blocks, data: area.at(offset), tag: self.next };
        let taken = if self.dice.below(2) == 0 {
            self.queue.submit(&command)
        } else {
            let piece = |n: u32| Segment { data: area.at(offset + n as usize * BLOCK), bytes: BLOCK as u32 };
            let segments: Vec<Segment> = (0..blocks).map(piece).collect();
            self.queue.submit_scattered(&command, &segments)
        };
        match taken {
            Ok(()) => {
                area.under_way += 1;
                self.open.insert(self.next, at);
                self.next += 1;
            }
            Err(SubmitError::Full | SubmitError::Down) => {}
            Err(SubmitError::Invalid) => panic!("{command:?} was refused"),
        }
    }

    fn poll(&mut self) {
        let (open, areas, counts) = (&mut self.open, &mut self.areas, &mut self.counts);
        self.queue.poll(usize::MAX, &mut |Completed { tag, status }| {
            let at = open.remove(&tag).expect("a request of ours, once");
            areas[at].under_way -= 1;
            counts.ended += 1;
            counts.aborted += u64::from(status == DeviceStatus::ABORTED);
        });
    }

    /// Memory that no request has goes to another owner, who fills it with canaries, or comes back into use.
    fn hand_over(&mut self) {
        let at = self.dice.below(AREAS as u64) as usize;
        if self.areas[at].quiet {
            self.areas[at].check(self.lateness.seed);
            self.areas[at].quiet = false;
            self.areas[at].pages.span().zero();
        } else {
            self.take_away(at);
        }
    }

    /// Gives memory that no request has to another owner.
    fn take_away(&mut self, at: usize) {
        if self.areas[at].under_way > 0 || self.areas[at].quiet {
            return;
        }
        self.areas[at].pages.span().write(&[CANARY; AREA]);
        // A device that writes again after it has completed is stopped by the IOMMU alone.
        if !self.lateness.is_honest() || self.dice.below(4) == 0 {
            let area = self.areas.swap_remove(at);
            let pages = area.pages.clone();
            drop(area);
            pages.span().write(&[CANARY; AREA]);
            self.areas.push(Area::new(&*self.device.mapper(), pages));
            self.areas.swap(at, AREAS - 1);
        }
        self.areas[at].quiet = true;
        self.counts.handed_over += 1;
    }

    fn reset(&mut self) {
        (0..12).for_each(|_| self.submit());
        self.queue.commit();
        self.counts.resets += 1;
        let before = self.device.runs();
        self.controller.begin_reset();
        loop {
            match self.controller.finish_reset() {
                ResetProgress::Pending if self.lateness.lingers == u32::MAX => {
                    std::thread::sleep(Duration::from_micros(200));
                    if self.dice.below(2000) == 0 {
                        self.device.stir();
                    }
                }
                ResetProgress::Pending => {}
                ResetProgress::Done => break,
                other => panic!("seed {}: the reset ended {other:?}", self.lateness.seed),
            }
            if self.dice.below(3) == 0 {
                self.poll();
                (0..AREAS).for_each(|at| self.take_away(at));
            }
        }
        self.counts.in_resets += self.device.runs() - before;
        self.poll();
        assert!(self.open.is_empty(), "seed {}: a request outlived its reset", self.lateness.seed);
    }

    fn all(mut self) -> Counts {
        for _ in 0..STEPS {
            match self.dice.below(100) {
                0..40 => self.submit(),
                40..60 => self.queue.commit(),
                60..75 => self.poll(),
                75..85 => _ = self.device.stir(),
                85..98 => self.hand_over(),
                // Each of those that never follow takes a third of a second.
                _ if self.lateness.lingers == u32::MAX && self.counts.resets > 0 => {}
                _ => self.reset(),
            }
            // A device that breaks the rules of its queue is not believed until it was reset.
            if self.controller.watch() == crate::block::Watch::Failed {
                assert!(!self.lateness.is_honest(), "seed {}", self.lateness.seed);
                self.reset();
            }
        }
        self.reset();
        while self.device.stir() {}
        let seed = self.lateness.seed;
        self.areas.iter().filter(|area| area.quiet).for_each(|area| area.check(seed));
        let mut disk = vec![0; DISK as usize];
        let mut into = Segments::default();
        into.push(Span::of(&mut disk));
        self.media.read(0, &into).unwrap();
        assert!(!disk.contains(&CANARY), "seed {seed}: the memory of another owner was written to the disk");
        if self.lateness.is_honest() {
            assert_eq!(self.controller.anomalies(), 0, "seed {seed}");
        }
        assert_eq!(self.counts.ended, self.next, "seed {seed}");
        self.counts.late = self.device.runs();
        self.counts.stopped = self.device.under().faults();
        self.counts
    }
}

#[test]
fn late_dma_of_virtio_touches_no_memory_of_another_owner() {
    let soak = std::env::var_os("PORTCULLIS_SOAK").is_some_and(|value| value == "1");
    let first = std::env::var("PORTCULLIS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0u64);
    let seeds = if soak { 200 } else { 20 };
    let mut sum = Counts::default();
    for seed in first..first.wrapping_add(seeds) {
        let counts = Run::new(seed).all();
        sum.ended += counts.ended;
        sum.aborted += counts.aborted;
        sum.resets += counts.resets;
        sum.late += counts.late;
        sum.in_resets += counts.in_resets;
        sum.handed_over += counts.handed_over;
        sum.stopped += counts.stopped;
    }
    // It all happened.
    assert!(sum.aborted > seeds && sum.late > seeds && sum.in_resets > seeds, "{sum:?}");
    assert!(sum.handed_over > seeds && sum.stopped > 0 && sum.ended > sum.aborted, "{sum:?}");
    println!("{sum:?}");
    println!("counted: {seeds} seeds of late DMA of virtio");
}
