//! The memory of queues, which is real, and that of regions, which is a few numbers for each block.

use std::sync::Arc;

use adapter::engine::Bounce;
use wire::layout::Entries;
use wire::shm::SharedMemory;
use wire::sync::Ordering;
use wire::view::{QueueMemory, QueueView};

use super::bytes::bounce;
use super::model::BLOCK;

/// Blocks of the largest region.
pub(super) const REGION_BLOCKS: u64 = 64;
/// What is in memory that is nobody's.
pub(super) const CANARY: u32 = 0xdead_0000;

/// A block has so many parts, of so many bytes.
pub(super) const PARTS: usize = 8;
pub(super) const PART: usize = 64;

/// Content of a block: for each part the request that wrote it last.
pub(super) type Content = [u32; PARTS];

/// Places for regions. Each has a range of device addresses of its own, used again and again.
pub(super) struct Memories {
    places: Vec<[Content; REGION_BLOCKS as usize]>,
}

/// Device addresses of one place.
const PLACE_SHIFT: u32 = 20;

impl Memories {
    pub(super) fn new(places: usize) -> Self {
        Self { places: vec![[[CANARY; PARTS]; REGION_BLOCKS as usize]; places] }
    }

    pub(super) fn iova(place: usize) -> u64 {
        (place as u64 + 1) << PLACE_SHIFT
    }

    pub(super) fn block(&mut self, place: usize, block: u64) -> &mut Content {
        &mut self.places[place][block as usize]
    }

    pub(super) fn give(&mut self, place: usize) {
        self.places[place].fill([0; PARTS]);
    }

    pub(super) fn take_back(&mut self, place: usize) {
        self.places[place].fill([CANARY; PARTS]);
    }

    pub(super) fn is_untouched(&self, place: usize) -> bool {
        self.places[place].iter().all(|content| *content == [CANARY; PARTS])
    }
}

/// Queue memory that is used by one simulation after another: making it costs more than simulating with it.
#[derive(Default)]
pub(super) struct Pool {
    free: Vec<(u32, QueueView)>,
    regions: Vec<Arc<SharedMemory>>,
    bounces: Vec<Bounce>,
}

impl Pool {
    /// Memory of a queue, all zero but for the submission entries: those are as the last user left them.
    pub(super) fn take(&mut self, entries: u32, mut garbage: impl FnMut() -> u64) -> QueueView {
        let size = Entries::new(entries).expect("a power of two");
        let view = match self.free.iter().position(|(its, _)| *its == entries) {
            Some(at) => self.free.swap_remove(at).1,
            None => {
                let (memory, _fd) =
                    SharedMemory::create("simulation", size.bytes()).expect("memory for a queue");
                QueueView::new(Arc::new(memory), size).expect("it has the size")
            }
        };
        for word in [view.tail(), view.cq_head(), view.need_wake(), view.state(), view.cq_wait()] {
            word.store(0, Ordering::Relaxed);
        }
        for slot in 0..entries as usize {
            for i in 0..8 {
                view.sq_word(slot, i).store(garbage(), Ordering::Relaxed);
            }
            for i in 0..4 {
                view.cq_word(slot, i).store(0, Ordering::Relaxed);
            }
        }
        view
    }

    /// The real memory of a place for regions, for what the engine itself reads there.
    pub(super) fn region(&mut self, place: usize) -> Arc<SharedMemory> {
        while self.regions.len() <= place {
            let (memory, _fd) =
                SharedMemory::create("simulation", (REGION_BLOCKS * BLOCK) as usize).expect("memory");
            self.regions.push(Arc::new(memory));
        }
        self.regions[place].clone()
    }

    /// Whether nobody else has the real memory of a place.
    pub(super) fn has_alone(&self, place: usize) -> bool {
        self.regions.get(place).is_none_or(|memory| Arc::strong_count(memory) == 1)
    }

    /// The memory of an engine for writes of bytes.
    pub(super) fn bounce(&mut self, engine: usize) -> Bounce {
        while self.bounces.len() <= engine {
            self.bounces.push(bounce(self.bounces.len()));
        }
        self.bounces[engine].clone()
    }

    pub(super) fn give_back(&mut self, entries: u32, view: QueueView) {
        self.free.push((entries, view));
    }
}
