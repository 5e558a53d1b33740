#![allow(clippy::cast_possible_truncation)] // small numbers of the test's own
//! Late DMA: memory whose commands have ended is somebody else's, and no device that is only late writes to it.
//!
//! A timeout is no proof that a device has let go, and neither is the completion of an Abort, which is why the driver
//! sends none. `PORTCULLIS_SOAK=1` takes 200 seeds, `PORTCULLIS_SEED` chooses the first.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::block::{
    BlockController, BlockQueue, Command, Completed, DeviceStatus, Operation, ResetProgress, Segment,
    SubmitError, Watch,
};
use crate::dice::Dice;
use crate::emu::virtio::{VirtioConfig, VirtioLate};
use crate::emu::{EmuConfig, Late, Lateness, Media, Pages, RamMedia, Segments, Span};
use crate::hal::{Device, DmaAccess, Iova, Mapper, Mapping};
use crate::spec::virtio::feature;
use crate::{nvme, virtio};

const BLOCK: usize = 512;
const DISK: u64 = 64 << 10;
const AREA: usize = 16 << 10;
const AREAS: usize = 6;
const STEPS: usize = 400;
/// What lies in memory of an owner with no command under way, and nowhere else.
const CANARY: u8 = 0xc5;

/// What a late device of any kind does, each by its own method of that name.
trait IsLate {
    fn start(&self);
    fn stir(&self) -> bool;
    fn runs(&self) -> u64;
    fn faults(&self) -> u64;
}

macro_rules! late {
    ($($device:ty)*) => {
        $(impl IsLate for $device {
            fn start(&self) {
                Self::start(self);
            }
            fn stir(&self) -> bool {
                Self::stir(self)
            }
            fn runs(&self) -> u64 {
                Self::runs(self)
            }
            fn faults(&self) -> u64 {
                self.under().faults()
            }
        })*
    };
}

late! { Late VirtioLate }

/// A late device and its driver.
trait LateKind: IsLate + Device + Sized {
    type Controller: BlockController;

    fn new(media: Arc<RamMedia>, lateness: Lateness) -> Self;
    /// Opens it with one queue of 16 entries.
    fn open(&self) -> Self::Controller;
}

impl LateKind for Late {
    type Controller = nvme::Controller<Late>;

    fn new(media: Arc<RamMedia>, lateness: Lateness) -> Self {
        let shadow_doorbells = lateness.seed % 2 == 1;
        Self::new(EmuConfig { queues: 2, shadow_doorbells, ..EmuConfig::new(media) }, lateness).unwrap()
    }

    fn open(&self) -> Self::Controller {
        nvme::Controller::open_with(self.handle(), &nvme::tests::rig::options(1)).unwrap()
    }
}

impl LateKind for VirtioLate {
    type Controller = virtio::Controller<VirtioLate>;

    fn new(media: Arc<RamMedia>, lateness: Lateness) -> Self {
        let without = [0, feature::RING_INDIRECT_DESC, feature::RING_EVENT_IDX][lateness.seed as usize % 3];
        Self::new(VirtioConfig { queues: 2, without, ..VirtioConfig::new(media) }, lateness).unwrap()
    }

    fn open(&self) -> Self::Controller {
        virtio::Controller::open_with(self.handle(), &virtio::tests::rig::options(1)).unwrap()
    }
}

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
    /// Commands that the device ran late, and those of them that it ran while it was being reset.
    late: u64,
    in_resets: u64,
    handed_over: u64,
    /// Accesses that the IOMMU stopped.
    stopped: u64,
}

struct Run<K: LateKind> {
    lateness: Lateness,
    dice: Dice,
    device: K,
    media: Arc<RamMedia>,
    controller: K::Controller,
    queue: <K::Controller as BlockController>::Queue,
    areas: Vec<Area>,
    /// The area of each command under way, by tag.
    open: HashMap<u64, usize>,
    next: u64,
    counts: Counts,
}

impl<K: LateKind> Run<K> {
    fn new(seed: u64) -> Self {
        let lateness = Lateness::of(seed);
        let media = Arc::new(RamMedia::new(DISK).unwrap());
        let device = K::new(media.clone(), lateness);
        let mut controller = device.open();
        let queue = super::rig::take_queue(&mut controller);
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
        let geometry = self.queue.geometry();
        // Where a list may have one segment only, a piece of several is all that a chain of 16 entries has room for.
        let blocks = if geometry.max_segments > 1 { 1 + self.dice.below(8) as u32 } else { 1 };
        let operation = match self.dice.below(5) {
            0 => Operation::Write { fua: false },
            1 if geometry.compare => Operation::Compare,
            _ => Operation::Read,
        };
        let offset = self.dice.below(2048) as usize * 4;
        if let Operation::Write { .. } = operation {
            let content = vec![1 + self.dice.below(64) as u8; BLOCK * blocks as usize];
            area.pages.span().part(offset, content.len()).unwrap().write(&content);
        }
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
            let at = open.remove(&tag).expect("a command of ours, once");
            areas[at].under_way -= 1;
            counts.ended += 1;
            counts.aborted += u64::from(status == DeviceStatus::ABORTED);
        });
    }

    /// Memory that no command has goes to another owner, who fills it with canaries, or comes back into use.
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

    /// Gives memory that no command has to another owner.
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
        assert!(self.open.is_empty(), "seed {}: a command outlived its reset", self.lateness.seed);
    }

    fn all(mut self) -> Counts {
        for _ in 0..STEPS {
            match self.dice.below(100) {
                0..40 => self.submit(),
                40..60 => self.queue.commit(),
                60..75 => self.poll(),
                75..85 => _ = self.device.stir(),
                85..98 => self.hand_over(),
                // Each of those that never stop takes half a second.
                _ if self.lateness.lingers == u32::MAX && self.counts.resets > 0 => {}
                _ => self.reset(),
            }
            // A device that breaks the rules of its queue is not believed until it was reset.
            if self.controller.watch() == Watch::Failed {
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
        self.counts.stopped = self.device.faults();
        self.counts
    }
}

fn all_seeds<K: LateKind>(of: &str) {
    let soak = std::env::var_os("PORTCULLIS_SOAK").is_some_and(|value| value == "1");
    let first = std::env::var("PORTCULLIS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0u64);
    let seeds = if soak { 200 } else { 20 };
    let mut sum = Counts::default();
    for seed in first..first.wrapping_add(seeds) {
        let counts = Run::<K>::new(seed).all();
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
    println!("counted: {seeds} seeds of late DMA{of}");
}

#[test]
fn late_dma_touches_no_memory_of_another_owner() {
    all_seeds::<Late>("");
}

#[test]
fn late_dma_of_virtio_touches_no_memory_of_another_owner() {
    all_seeds::<VirtioLate>(" of virtio");
}
