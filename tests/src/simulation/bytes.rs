//! Writes of bytes: what the engine reads, merges and writes back in memory of its own, seen from the device.
//!
//! A block has eight parts. Each holds the number of the request that wrote it last, in real bytes where the engine copies
//! them. So the device can tell, of each block that comes from an engine's own memory, whose payload is in it, and whether
//! anything else in it changed: then somebody's write was lost.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use adapter::engine::Bounce;
use driver::block::{Command, Operation};
use driver::dma::DmaBuffer;
use driver::hal::{DmaAccess, DmaError, Iova, Mapper, Mapping, PinnedMemory};
use tpt::Key;
use wire::layout::ScatterSegment;
use wire::shm::SharedMemory;

use super::memory::{Content, PART, PARTS};
use super::model::{BLOCK, Op, Verdict, What};
use super::outside::{Outside, finding};
use super::watch::Asked;

/// Device addresses of the engines' own memory begin here.
const OWN: u64 = 1 << 40;
const OWN_SHIFT: u32 = 24;

struct SimMapper(usize);

struct SimMapping(Arc<dyn PinnedMemory>, Iova);

impl Mapping for SimMapping {
    fn iova(&self) -> Iova {
        self.1
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

impl Mapper for SimMapper {
    fn map(&self, memory: Arc<dyn PinnedMemory>, _: DmaAccess) -> Result<Box<dyn Mapping>, DmaError> {
        Ok(Box::new(SimMapping(memory, Iova(OWN + ((self.0 as u64) << OWN_SHIFT)))))
    }

    fn mappings(&self) -> u64 {
        0
    }
}

/// The memory of engine `number` for writes of bytes.
pub(super) fn bounce(number: usize) -> Bounce {
    Bounce::new(&SimMapper(number), 9).expect("memory for an engine")
}

/// Whether a command's data lies in an engine's own memory.
pub(super) fn is_own(command: &Command) -> bool {
    command.operation.moves_data() && command.data.0 >= OWN
}

fn offset_of(command: &Command) -> usize {
    (command.data.0 & ((1 << OWN_SHIFT) - 1)) as usize
}

/// Numbers are small: as bytes each of their four differs from that of other numbers.
fn mark(number: u32) -> u32 {
    number.wrapping_mul(0x9e37_79b1)
}

fn unmark(mark: u32) -> u32 {
    mark.wrapping_mul(0x0e8b_2f51)
}

/// What a block in an engine's own memory holds.
fn load(memory: &DmaBuffer, at: usize) -> Content {
    let mut content = [0; PARTS];
    for (part, its) in content.iter_mut().enumerate() {
        let start = at + part * PART;
        *its = unmark(memory.load32(start, Ordering::Relaxed));
        let end = unmark(memory.load32(start + PART - 4, Ordering::Relaxed));
        if *its != end {
            finding!("part {part} of a merged block is of {its} at its start and of {end} at its end");
        }
    }
    content
}

fn store(memory: &DmaBuffer, at: usize, content: &Content) {
    for (part, its) in content.iter().enumerate() {
        for byte in (0..PART).step_by(4) {
            memory.store32(at + part * PART + byte, mark(*its));
        }
    }
}

/// Fills `bytes` bytes of a region from `from` with a request's number.
pub(super) fn write_payload(memory: &SharedMemory, from: u64, bytes: u64, number: u32) {
    // It has a period of four bytes: where it begins only turns the word.
    let word = u64::from(mark(number).rotate_left(8 * (from % 4) as u32));
    let word = word << 32 | word;
    for at in (from / 8 * 8..(from + bytes).next_multiple_of(8)).step_by(8) {
        if let Some(place) = memory.atomic_u64(at as usize) {
            place.store(word, Ordering::Relaxed);
        }
    }
}

/// Writes a scatter list into a region, from a multiple of 8 on.
pub(super) fn write_list(memory: &SharedMemory, from: u64, segments: &[ScatterSegment]) {
    let words = |its: &ScatterSegment| {
        [its.region, its.offset, u64::from(its.reserved) << 32 | u64::from(its.length)]
    };
    for (at, word) in segments.iter().flat_map(words).enumerate() {
        if let Some(place) = memory.atomic_u64(from as usize + at * 8) {
            place.store(word, Ordering::Relaxed);
        }
    }
}

impl Outside {
    fn own(&self, engine: usize) -> Arc<DmaBuffer> {
        self.bounces[engine].memory()
    }

    /// The write of bytes that a command from an engine's own memory is for; a read may be for several.
    pub(super) fn explain_own(&mut self, engine: usize, command: &Command) -> Option<u32> {
        match command.operation {
            Operation::Read => {
                let open = self.pollers[engine].queues.iter().flat_map(|&q| &self.queues[q as usize].open);
                let mut its = open.copied().filter(|&number| self.may_touch(number, command.lba));
                if its.next().is_none() || command.blocks != 1 {
                    finding!("engine {engine} reads for itself what no write of bytes needs: {command:?}");
                }
                None
            }
            Operation::Write { fua } => Some(self.explain_merged(engine, command, fua)),
            _ => finding!("engine {engine} does {command:?} with memory of its own"),
        }
    }

    /// Whether a write of bytes touches a block, under a grant that is not drained.
    fn may_touch(&self, number: u32, lba: u64) -> bool {
        let asked = &self.asked[number as usize];
        let What::Io(op @ Op::WriteBytes { .. }) = asked.what else { return false };
        let domain = self.queues[asked.queue as usize].domain;
        match self.model.check_as_if_open(domain, op, &asked.entry) {
            Verdict::Granted(bound) => (0..bound.count).any(|block| self.model.place(&bound, block).0 == lba),
            Verdict::Held | Verdict::Refused(_) => false,
        }
    }

    /// The request whose payload is in all the blocks of a write.
    fn explain_merged(&mut self, engine: usize, command: &Command, fua: bool) -> u32 {
        let memory = self.own(engine);
        let first = load(&memory, offset_of(command));
        let is_its = |&&number: &&u32| {
            let asked = self.asked.get(number as usize);
            asked.is_some_and(|asked| {
                asked.what == What::Io(Op::WriteBytes { fua })
                    && asked.is_open()
                    && self.queues[asked.queue as usize].engine == engine
                    && self.may_touch(number, command.lba)
            })
        };
        // Others' payloads are in it, too, where they were written before: those of requests that ended.
        let mut its = first.iter().filter(is_its);
        let Some(&number) = its.next() else {
            finding!("engine {engine} writes {command:?}, {first:?}, which is no open request's")
        };
        let asked = self.asked[number as usize];
        let What::Io(op) = asked.what else { return number };
        let domain = self.queues[asked.queue as usize].domain;
        let Verdict::Granted(bound) = self.model.check_as_if_open(domain, op, &asked.entry) else {
            return number;
        };
        if asked.bound.is_none() {
            self.starts(engine, number, bound);
        }
        let at = self.model.place(&bound, asked.accepted);
        if at.0 != command.lba || u64::from(command.blocks) > at.1 {
            finding!("{command:?} is not what comes next of {asked:?}, which is {at:?}");
        }
        if asked.is_cancelled() {
            finding!("{command:?} for a request that was cancelled while it read: {asked:?}");
        }
        number
    }

    /// The device moves data from or to an engine's own memory.
    pub(super) fn execute_own(&mut self, engine: usize, command: &Command, request: Option<u32>) {
        let memory = self.own(engine);
        for i in 0..u64::from(command.blocks) {
            let at = offset_of(command) + (i * BLOCK) as usize;
            let lba = command.lba + i;
            if command.operation == Operation::Read {
                store(&memory, at, &self.device.content[lba as usize]);
                continue;
            }
            let new = load(&memory, at);
            let old = self.device.content[lba as usize];
            for part in 0..PARTS {
                let own = request == Some(new[part]);
                if !own && new[part] != old[part] {
                    finding!(
                        "block {lba} part {part} was written by {} and is put back to {} by the write of bytes {request:?}",
                        old[part],
                        new[part]
                    );
                }
                if own {
                    self.landed(new[part], lba, part);
                }
            }
            self.device.content[lba as usize] = new;
        }
    }

    /// A part of a write of bytes is on the device; one that was not asked for is a finding.
    fn landed(&mut self, number: u32, lba: u64, part: usize) {
        let asked = &self.asked[number as usize];
        let Some(bound) = asked.bound else { return };
        let block = (0..bound.count).find(|&block| self.model.place(&bound, block).0 == lba);
        let Some(block) = block else { return };
        let head = asked.entry.offset % BLOCK / PART as u64;
        let at = (block * PARTS as u64 + part as u64).wrapping_sub(head);
        if at >= u64::from(asked.entry.length) / PART as u64 {
            finding!("part {part} of block {lba} was not asked for by {asked:?}");
        }
        self.asked[number as usize].landed |= 1 << at;
    }

    /// A write of bytes that ended well: all of it is on the device.
    pub(super) fn check_bytes(&self, asked: &Asked) -> Result<(), String> {
        let parts = asked.entry.length / PART as u32;
        if asked.landed != super::client::bits(0, u64::from(parts)) {
            return Err(format!("of the {parts} parts {:#x} were written", asked.landed));
        }
        let grant = self.model.grant_of(Key(asked.entry.key)).map(|life| &self.model.grants[life]);
        if grant.is_none_or(|grant| grant.finished) { Err("its grant is drained".to_owned()) } else { Ok(()) }
    }
}
