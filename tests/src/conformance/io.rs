//! What the cases work with: mapped memory, one command at a time, an image of what the device must hold.

use std::sync::Arc;
use std::time::{Duration, Instant};

use driver::block::{
    BlockQueue, Command, Completed, DeviceStatus, Geometry, Operation, QueueState, SubmitError,
};
use driver::dice::Dice;
use driver::emu::Pages;
use driver::hal::{DmaAccess, Iova, Mapper, Mapping};

/// Nothing takes this long, not even in a guest that shares two cores with the world.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What untouched memory is filled with.
pub const FILLER: u8 = 0xa5;

/// Memory mapped for the device.
pub struct Memory {
    // First, so that it goes before what it maps.
    mapping: Box<dyn Mapping>,
    pages: Arc<Pages>,
}

impl Memory {
    /// `bytes`, rounded up to pages, filled with [`FILLER`].
    pub fn new(mapper: &dyn Mapper, bytes: usize, access: DmaAccess) -> Self {
        let pages = Pages::populated(bytes.next_multiple_of(4096)).expect("memory");
        let mapping = mapper.map(pages.clone(), access).expect("a mapping");
        let memory = Self { mapping, pages };
        memory.fill(FILLER);
        memory
    }

    /// Takes it from the device, and returns it.
    pub fn unmap(self) -> Arc<Pages> {
        self.pages
    }

    /// The device's address of byte `offset`.
    pub fn at(&self, offset: usize) -> Iova {
        Iova(self.mapping.iova().0 + offset as u64)
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Whether there are none: never.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A copy of `len` bytes from `offset`.
    pub fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.pages.span().part(offset, len).expect("inside").read(&mut bytes);
        bytes
    }

    /// Stores `bytes` at `offset`.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        self.pages.span().part(offset, bytes.len()).expect("inside").write(bytes);
    }

    /// Makes every byte `byte`.
    pub fn fill(&self, byte: u8) {
        self.write(0, &vec![byte; self.len()]);
    }
}

/// A command of `blocks` blocks from `lba`.
pub fn command(operation: Operation, lba: u64, blocks: u32, data: Iova) -> Command {
    Command { operation, lba, blocks, data, tag: 0 }
}

/// Polls until something ended; hands over all that did. Panics when nothing does for too long.
pub fn await_some(queue: &mut dyn BlockQueue) -> Vec<Completed> {
    let start = Instant::now();
    let mut ended = Vec::new();
    while queue.poll(usize::MAX, &mut |completed| ended.push(completed)) == 0 {
        assert!(
            start.elapsed() < PATIENCE,
            "nothing completed for {PATIENCE:?}, {} outstanding",
            queue.outstanding()
        );
        std::thread::yield_now();
    }
    ended
}

/// Runs one command to its end, on a queue with nothing else to do.
pub fn run(queue: &mut dyn BlockQueue, command: Command) -> DeviceStatus {
    assert_eq!(queue.outstanding(), 0);
    queue.submit(&command).expect("room and a command that fits");
    queue.commit();
    let ended = await_some(queue);
    assert_eq!(ended.len(), 1, "one command, one completion");
    assert_eq!((ended[0].tag, queue.outstanding()), (command.tag, 0));
    ended[0].status
}

/// Waits until the queue runs.
pub fn await_running(queue: &mut dyn BlockQueue) {
    let start = Instant::now();
    while queue.state() != QueueState::Running {
        queue.poll(usize::MAX, &mut |completed| panic!("{completed:?} of nothing"));
        assert!(start.elapsed() < PATIENCE, "the queue is {:?}", queue.state());
        std::thread::yield_now();
    }
}

/// What the first bytes of the device must hold, as far as a case has written them.
pub struct Image {
    geometry: Geometry,
    /// Where the image starts on the device, in blocks.
    pub base: u64,
    bytes: Vec<u8>,
}

impl Image {
    /// `blocks` blocks from `base`, written with noise from `seed` through `queue` and read back.
    pub fn new(queue: &mut dyn BlockQueue, memory: &Memory, base: u64, blocks: u64, seed: u64) -> Self {
        let geometry = *queue.geometry();
        let len = usize::try_from(blocks << geometry.block_shift).expect("a small image");
        let image = Self { geometry, base, bytes: Dice(seed).bytes(len) };
        for (index, part) in image.bytes.chunks(image.chunk(memory)).enumerate() {
            memory.write(0, part);
            let (lba, blocks) = image.place(index * image.chunk(memory), part.len());
            assert!(run(queue, command(Operation::Write { fua: false }, lba, blocks, memory.at(0))).is_ok());
        }
        image.verify(queue, memory);
        image
    }

    fn chunk(&self, memory: &Memory) -> usize {
        let most = (self.geometry.max_transfer_blocks as usize) << self.geometry.block_shift;
        let chunk = memory.len().min(most).min(1 << 20);
        chunk >> self.geometry.block_shift << self.geometry.block_shift
    }

    /// The block at byte `offset` and how many blocks `len` bytes are.
    fn place(&self, offset: usize, len: usize) -> (u64, u32) {
        let shift = self.geometry.block_shift;
        (self.base + (offset as u64 >> shift), u32::try_from(len >> shift).expect("a transfer"))
    }

    fn range(&self, lba: u64, blocks: u32) -> std::ops::Range<usize> {
        let shift = self.geometry.block_shift;
        let start = usize::try_from((lba - self.base) << shift).expect("in the image");
        start..start + ((blocks as usize) << shift)
    }

    /// Blocks.
    pub fn blocks(&self) -> u64 {
        self.bytes.len() as u64 >> self.geometry.block_shift
    }

    /// What `blocks` blocks from `lba` must hold.
    pub fn get(&self, lba: u64, blocks: u32) -> &[u8] {
        &self.bytes[self.range(lba, blocks)]
    }

    /// Notes that `lba` and what follows now holds `bytes`.
    pub fn set(&mut self, lba: u64, bytes: &[u8]) {
        let blocks = u32::try_from(bytes.len() >> self.geometry.block_shift).expect("a transfer");
        let range = self.range(lba, blocks);
        self.bytes[range].copy_from_slice(bytes);
    }

    /// Notes that blocks are zero.
    pub fn zero(&mut self, lba: u64, blocks: u32) {
        let range = self.range(lba, blocks);
        self.bytes[range].fill(0);
    }

    /// Reads all of it back. Panics at the first difference.
    pub fn verify(&self, queue: &mut dyn BlockQueue, memory: &Memory) {
        for (index, part) in self.bytes.chunks(self.chunk(memory)).enumerate() {
            let offset = index * self.chunk(memory);
            let (lba, blocks) = self.place(offset, part.len());
            memory.fill(FILLER);
            assert!(run(queue, command(Operation::Read, lba, blocks, memory.at(0))).is_ok());
            let read = memory.read(0, part.len());
            if let Some(at) = (0..part.len()).find(|&at| read[at] != part[at]) {
                panic!(
                    "block {} byte {} is {:#04x}, not {:#04x}",
                    self.base + ((offset + at) as u64 >> self.geometry.block_shift),
                    (offset + at) % self.geometry.block_size() as usize,
                    read[at],
                    part[at]
                );
            }
        }
    }
}

/// Submits until the queue is full or `most` are in; says how many got in.
pub fn fill_queue(queue: &mut dyn BlockQueue, most: u64, mut next: impl FnMut(u64) -> Command) -> u64 {
    for tag in 0..most {
        match queue.submit(&Command { tag, ..next(tag) }) {
            Ok(()) => {}
            Err(SubmitError::Full) => return tag,
            Err(error) => panic!("{error}"),
        }
    }
    most
}
