//! Random commands at depth, each checked against an image.

use std::time::Instant;

use driver::block::{
    BlockQueue, Command, Completed, DeviceStatus, Geometry, Operation, QueueState, SubmitError,
};
use driver::dice::Dice;

use super::io::{FILLER, Image, Memory, PATIENCE};

/// Most blocks of one command.
const MOST: u64 = 24;

/// A command under way, and what it is to do to the image.
struct Flight {
    command: Command,
    /// What is written, or compared with.
    content: Vec<u8>,
}

/// Random commands, at most one per place in memory and never two on the same block.
pub struct Load<'a> {
    queue: &'a mut dyn BlockQueue,
    memory: &'a Memory,
    image: Image,
    geometry: Geometry,
    dice: Dice,
    flights: Vec<Option<Flight>>,
    /// Blocks of which an ended command left it open whether they changed, and what else they may hold.
    open: Vec<(u64, Vec<u8>)>,
    /// Commands that ended.
    pub ended: u64,
    /// Of these, aborted by a reset.
    pub aborted: u64,
}

impl<'a> Load<'a> {
    /// On `blocks` blocks from `base`, as many commands at once as `memory` has places.
    pub fn new(queue: &'a mut dyn BlockQueue, memory: &'a Memory, base: u64, blocks: u64, seed: u64) -> Self {
        let geometry = *queue.geometry();
        let image = Image::new(queue, memory, base, blocks, seed);
        let places = memory.len() / Self::place(&geometry);
        Self {
            queue,
            memory,
            image,
            geometry,
            dice: Dice(seed ^ 0x5eed),
            flights: (0..places).map(|_| None).collect(),
            open: Vec::new(),
            ended: 0,
            aborted: 0,
        }
    }

    /// Bytes of a place: the largest command and room to move it by less than a page.
    pub fn place(geometry: &Geometry) -> usize {
        usize::try_from(Self::most(geometry) << geometry.block_shift).expect("small") + 4096
    }

    fn most(geometry: &Geometry) -> u64 {
        MOST.min(u64::from(geometry.max_transfer_blocks)).min(u64::from(geometry.max_zeroes_blocks))
    }

    fn is_free(&self, lba: u64, blocks: u32) -> bool {
        let end = lba + u64::from(blocks);
        let clash = |flight: &Flight| {
            lba < flight.command.lba + u64::from(flight.command.blocks) && flight.command.lba < end
        };
        !self.flights.iter().flatten().any(clash)
            && !self.open.iter().any(|&(open, _)| (lba..end).contains(&open))
    }

    /// A random command for place `at`; `None` if the blocks it hit upon are in use.
    fn draw(&mut self, at: usize) -> Option<Flight> {
        let blocks = u32::try_from(1 + self.dice.below(Self::most(&self.geometry))).expect("small");
        let lba = self.image.base + self.dice.below(self.image.blocks() - u64::from(blocks) + 1);
        if !self.is_free(lba, blocks) {
            return None;
        }
        let operation = match self.dice.below(16) {
            0..=5 => Operation::Read,
            6..=10 => Operation::Write { fua: false },
            11 => Operation::Write { fua: true },
            12 if self.geometry.write_zeroes => {
                Operation::WriteZeroes { deallocate: self.dice.below(2) == 0 }
            }
            13 if self.geometry.deallocate && self.geometry.deallocate_zeroes => Operation::Deallocate,
            14 if self.geometry.compare => Operation::Compare,
            15 => Operation::Flush,
            _ => Operation::Read,
        };
        let offset = usize::try_from(self.dice.below(1024)).expect("small") * 4;
        let start = at * Self::place(&self.geometry) + offset;
        let len = (blocks as usize) << self.geometry.block_shift;
        let content = match operation {
            Operation::Write { .. } => self.dice.bytes(len),
            Operation::WriteZeroes { .. } | Operation::Deallocate => vec![0; len],
            Operation::Compare => {
                let mut content = self.image.get(lba, blocks).to_vec();
                if self.dice.below(2) == 0 {
                    let at = usize::try_from(self.dice.below(len as u64)).expect("small");
                    content[at] ^= 0x10;
                }
                content
            }
            _ => Vec::new(),
        };
        match operation {
            Operation::Read => self.memory.write(start, &vec![FILLER; len]),
            Operation::Write { .. } | Operation::Compare => self.memory.write(start, &content),
            _ => {}
        }
        let data = self.memory.at(start);
        Some(Flight { command: Command { operation, lba, blocks, data, tag: at as u64 }, content })
    }

    /// Submits what it can and takes what ended. Says whether the queue takes commands.
    pub fn turn(&mut self) -> bool {
        let mut running = true;
        for at in 0..self.flights.len() {
            if self.flights[at].is_none()
                && let Some(flight) = self.draw(at)
            {
                match self.queue.submit(&flight.command) {
                    Ok(()) => self.flights[at] = Some(flight),
                    Err(SubmitError::Full) => break,
                    Err(SubmitError::Down) => {
                        running = false;
                        break;
                    }
                    Err(SubmitError::Invalid) => panic!("{:?} was refused", flight.command),
                }
            }
        }
        self.queue.commit();
        self.take();
        running
    }

    fn take(&mut self) {
        let mut ended = Vec::new();
        self.queue.poll(usize::MAX, &mut |completed| ended.push(completed));
        for completed in ended {
            self.end(completed);
        }
    }

    fn end(&mut self, Completed { tag, status }: Completed) {
        let at = usize::try_from(tag).expect("a tag of ours");
        let flight = self.flights.get_mut(at).and_then(Option::take);
        let Some(Flight { command, content }) = flight else { panic!("tag {tag} ended twice") };
        self.ended += 1;
        let Command { operation, lba, blocks, .. } = command;
        let changes = matches!(
            operation,
            Operation::Write { .. } | Operation::WriteZeroes { .. } | Operation::Deallocate
        );
        if status == DeviceStatus::ABORTED {
            self.aborted += 1;
            if changes {
                let parts = content.chunks(self.geometry.block_size() as usize);
                self.open.extend((lba..).zip(parts.map(<[u8]>::to_vec)));
            }
            return;
        }
        if operation == Operation::Compare && content != self.image.get(lba, blocks) {
            assert_eq!(status, DeviceStatus::COMPARE_FAILURE, "{command:?}");
            return;
        }
        assert!(status.is_ok(), "{command:?}: {status}");
        if changes {
            self.image.set(lba, &content);
        }
        if operation == Operation::Read {
            let start = usize::try_from(command.data.0 - self.memory.at(0).0).expect("in the memory");
            let read = self.memory.read(start, (blocks as usize) << self.geometry.block_shift);
            assert!(read == self.image.get(lba, blocks), "wrong data: {command:?}");
        }
    }

    /// Runs until `count` commands ended.
    pub fn until(&mut self, count: u64) {
        let start = Instant::now();
        let mut last = (self.ended, start);
        while self.ended < count {
            self.turn();
            if self.ended > last.0 {
                last = (self.ended, Instant::now());
            }
            assert!(last.1.elapsed() < PATIENCE, "stuck with {} outstanding", self.queue.outstanding());
        }
    }

    /// Waits for what is outstanding, then compares the whole image. Says how many blocks had been left open.
    pub fn finish(mut self) -> usize {
        let start = Instant::now();
        while self.flights.iter().any(Option::is_some) || self.queue.state() != QueueState::Running {
            self.take();
            assert!(start.elapsed() < PATIENCE, "stuck: {:?}", self.queue.state());
            std::thread::yield_now();
        }
        assert_eq!(self.queue.outstanding(), 0);
        // What a reset left open is the one or the other, whole block by whole block where the device is that kind.
        let block = self.geometry.block_size() as usize;
        let open = std::mem::take(&mut self.open);
        let count = open.len();
        for (lba, other) in open {
            let read = super::io::command(Operation::Read, lba, 1, self.memory.at(0));
            assert!(super::io::run(self.queue, read).is_ok());
            let content = self.memory.read(0, block);
            assert!(
                content == self.image.get(lba, 1) || content == other,
                "block {lba} is neither old nor new"
            );
            self.image.set(lba, &content);
        }
        self.image.verify(self.queue, self.memory);
        count
    }
}
