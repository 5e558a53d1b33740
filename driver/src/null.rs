//! A device that completes everything and moves nothing: what is left of a measurement when the device is taken away.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::block::{
    BlockQueue, Command, Completed, DeviceStatus, Geometry, Operation, QueueState, Segment, SubmitError,
    segments_fit,
};
use crate::hal::{DmaAccess, DmaError, Iova, Mapper, Mapping, PinnedMemory};

/// Commands that a queue takes before they are polled: a power of two.
const DEPTH: usize = 1024;

/// A queue of the null device. Commands end, successfully, at the next poll after they were committed.
pub struct NullQueue {
    geometry: Geometry,
    tags: Box<[u64; DEPTH]>,
    /// Commands so far: taken, committed, and ended.
    taken: usize,
    committed: usize,
    ended: usize,
}

impl NullQueue {
    /// A queue of a device with `blocks` blocks of 512 bytes.
    pub fn new(blocks: u64) -> Self {
        let geometry = Geometry {
            block_shift: 9,
            blocks,
            max_transfer_blocks: 1024,
            max_segments: 32,
            max_zeroes_blocks: 1 << 16,
            write_cache: false,
            write_zeroes: true,
            deallocate: true,
            deallocate_zeroes: true,
            compare: true,
        };
        Self { geometry, tags: Box::new([0; DEPTH]), taken: 0, committed: 0, ended: 0 }
    }
}

impl BlockQueue for NullQueue {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    #[inline]
    fn submit(&mut self, command: &Command) -> Result<(), SubmitError> {
        if self.outstanding() == DEPTH {
            return Err(SubmitError::Full);
        }
        let end = command.lba.checked_add(u64::from(command.blocks));
        let fits = end.is_some_and(|end| end <= self.geometry.blocks) && command.blocks > 0;
        if command.operation != Operation::Flush && !fits {
            return Err(SubmitError::Invalid);
        }
        self.tags[self.taken % DEPTH] = command.tag;
        self.taken += 1;
        Ok(())
    }

    #[inline]
    fn submit_scattered(&mut self, command: &Command, segments: &[Segment]) -> Result<(), SubmitError> {
        if !segments_fit(&self.geometry, command, segments) {
            return Err(SubmitError::Invalid);
        }
        self.submit(command)
    }

    #[inline]
    fn commit(&mut self) {
        self.committed = self.taken;
    }

    #[inline]
    fn poll(&mut self, budget: usize, ended: &mut dyn FnMut(Completed)) -> usize {
        let count = budget.min(self.committed - self.ended);
        for at in self.ended..self.ended + count {
            ended(Completed { tag: self.tags[at % DEPTH], status: DeviceStatus::OK });
        }
        self.ended += count;
        count
    }

    fn outstanding(&self) -> usize {
        self.taken - self.ended
    }

    fn state(&self) -> QueueState {
        QueueState::Running
    }

    fn arm_interrupt(&mut self, _armed: bool) {}
}

/// Hands out addresses that nothing ever uses.
#[derive(Default)]
pub struct NullMapper {
    next: AtomicU64,
    live: Arc<AtomicU64>,
}

struct NullMapping {
    iova: Iova,
    memory: Arc<dyn PinnedMemory>,
    live: Arc<AtomicU64>,
}

impl Mapper for NullMapper {
    fn map(&self, memory: Arc<dyn PinnedMemory>, _access: DmaAccess) -> Result<Box<dyn Mapping>, DmaError> {
        let iova = Iova(self.next.fetch_add(memory.len() as u64, Ordering::Relaxed));
        self.live.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(NullMapping { iova, memory, live: self.live.clone() }))
    }

    fn mappings(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }
}

impl Mapping for NullMapping {
    fn iova(&self) -> Iova {
        self.iova
    }

    fn len(&self) -> usize {
        self.memory.len()
    }
}

impl Drop for NullMapping {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_ends_once_after_it_was_committed() {
        let mut queue = NullQueue::new(100);
        let command = |lba, tag| Command { operation: Operation::Read, lba, blocks: 2, data: Iova(0), tag };
        assert_eq!(queue.submit(&command(99, 0)), Err(SubmitError::Invalid));
        assert_eq!(queue.submit(&command(u64::MAX, 0)), Err(SubmitError::Invalid));
        for tag in 0..3 {
            queue.submit(&command(98, tag)).unwrap();
        }
        let segment = |bytes| Segment { data: Iova(0x1004), bytes };
        queue.submit_scattered(&command(98, 3), &[segment(512), segment(512)]).unwrap();
        for refused in [
            &[segment(512), segment(1024)][..],
            &[segment(1020), segment(4)],
            &[segment(1024), segment(0)],
            &[],
        ] {
            assert_eq!(queue.submit_scattered(&command(98, 4), refused), Err(SubmitError::Invalid));
        }
        let mut seen = Vec::new();
        assert_eq!(queue.poll(10, &mut |done| seen.push(done.tag)), 0);
        queue.commit();
        assert_eq!(queue.poll(2, &mut |done| seen.push(done.tag)), 2);
        assert_eq!(queue.poll(9, &mut |done| seen.push(done.tag)), 2);
        assert_eq!(seen, [0, 1, 2, 3]);
        assert_eq!(queue.outstanding(), 0);
    }
}
