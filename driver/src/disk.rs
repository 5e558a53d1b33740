//! A device for callers that wait: the store's thread, tools and tests. Never used by a poller.
//!
//! [`BlockingQueue`] makes a [`Disk`] of a [`BlockQueue`]; [`MemoryDisk`] is one in memory that tests can cut the
//! power of.
#![allow(unsafe_code)] // copies between the caller's slices and the DMA memory that the device sees too

mod memory;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::block::{BlockQueue, Command, DeviceStatus, Geometry, Operation, QueueState, SubmitError, pieces};
use crate::dma::keep;
use crate::hal::{DmaAccess, DmaError, Mapper, Mapping, PinnedMemory};

pub use crate::dice::Dice; // what the power of a disk in memory is cut by
pub use memory::MemoryDisk;

/// A block device whose calls return when the work is done. Data is always whole blocks.
pub trait Disk: Send {
    /// The device's shape.
    fn geometry(&self) -> &Geometry;
    /// Reads `data.len()` bytes from block `lba`. After an error `data` holds nothing of meaning.
    fn read(&mut self, lba: u64, data: &mut [u8]) -> Result<(), DiskError>;
    /// Writes `data` from block `lba`; durable after the next [`Disk::flush`]. After an error, and after a power cut
    /// before the flush, each of these blocks holds old or new content.
    fn write(&mut self, lba: u64, data: &[u8]) -> Result<(), DiskError>;
    /// Makes durable what was written, zeroed or deallocated before.
    fn flush(&mut self) -> Result<(), DiskError>;
    /// Flushes, if anything was changed since the last flush: for whoever has nothing else to do. A disk that does not keep count of
    /// that does nothing.
    fn flush_changes(&mut self) -> Result<(), DiskError> {
        Ok(())
    }
    /// Makes `blocks` blocks from `lba` read as zero, on any device: one that cannot do it by itself gets zeros
    /// written.
    fn write_zeroes(&mut self, lba: u64, blocks: u64) -> Result<(), DiskError>;
    /// Gives up the content of `blocks` blocks: what they read as afterwards is unknown. A hint (NVMe Base 2.0,
    /// Dataset Management); nothing happens on a device that has no such command.
    fn deallocate(&mut self, lba: u64, blocks: u64) -> Result<(), DiskError>;
}

impl<D: Disk + ?Sized> Disk for Box<D> {
    fn geometry(&self) -> &Geometry {
        (**self).geometry()
    }
    fn read(&mut self, lba: u64, data: &mut [u8]) -> Result<(), DiskError> {
        (**self).read(lba, data)
    }
    fn write(&mut self, lba: u64, data: &[u8]) -> Result<(), DiskError> {
        (**self).write(lba, data)
    }
    fn flush(&mut self) -> Result<(), DiskError> {
        (**self).flush()
    }
    fn flush_changes(&mut self) -> Result<(), DiskError> {
        (**self).flush_changes()
    }
    fn write_zeroes(&mut self, lba: u64, blocks: u64) -> Result<(), DiskError> {
        (**self).write_zeroes(lba, blocks)
    }
    fn deallocate(&mut self, lba: u64, blocks: u64) -> Result<(), DiskError> {
        (**self).deallocate(lba, blocks)
    }
}

/// A call of a [`Disk`] that failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what} at device block {lba}: {cause}")]
pub struct DiskError {
    /// The call: "read", "write", "flush", "write zeroes" or "deallocate".
    pub what: &'static str,
    /// The first block of the command that failed; 0 for a flush.
    pub lba: u64,
    /// Why.
    pub cause: DiskFault,
}

/// Why a call of a [`Disk`] failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskFault {
    /// The device's own word.
    Status(DeviceStatus),
    /// The device did not answer, and nobody saw it stop. If a command was with it the disk is of no more use, and its
    /// DMA memory is never used again.
    Timeout,
    /// The device is gone, or the disk was given up after a timeout.
    Gone,
    /// The caller's mistake: not whole blocks, or beyond the device's end. The device saw nothing of it.
    Bounds,
}

impl fmt::Display for DiskFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "the device reports {status}"),
            Self::Timeout => f.write_str("the device does not answer"),
            Self::Gone => f.write_str("the device is gone"),
            Self::Bounds => f.write_str("not whole blocks, or beyond the end of the device"),
        }
    }
}

/// The name of an operation in a [`DiskError`].
const fn name_of(operation: Operation) -> &'static str {
    match operation {
        Operation::Read => "read",
        Operation::Write { .. } => "write",
        Operation::Flush => "flush",
        Operation::WriteZeroes { .. } => "write zeroes",
        Operation::Deallocate => "deallocate",
        Operation::Compare => "compare",
    }
}

/// Refuses ranges that do not lie on the device.
fn check_range(geometry: &Geometry, operation: Operation, lba: u64, blocks: u64) -> Result<(), DiskError> {
    match lba.checked_add(blocks) {
        Some(end) if end <= geometry.blocks => Ok(()),
        _ => Err(DiskError { what: name_of(operation), lba, cause: DiskFault::Bounds }),
    }
}

/// The blocks that `bytes` bytes make; refuses a part of a block.
fn whole_blocks(geometry: &Geometry, operation: Operation, lba: u64, bytes: usize) -> Result<u64, DiskError> {
    let bytes = bytes as u64;
    if !bytes.is_multiple_of(u64::from(geometry.block_size())) {
        return Err(DiskError { what: name_of(operation), lba, cause: DiskFault::Bounds });
    }
    Ok(bytes >> geometry.block_shift)
}

/// How long [`BlockingQueue`] waits for any sign of the device by default. A driver that notices a dead command resets
/// the controller, and then the queue says that the command ended; this is the last resort behind that.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Commands that a controller reset ended are issued again this many times: all calls of [`Disk`] are idempotent.
const RETRIES: u32 = 3;

/// Completions taken in one poll.
const BUDGET: usize = 64;

/// A [`Disk`] over a [`BlockQueue`] of its own, with a bounce buffer in DMA memory of its own.
///
/// Large transfers have as many commands in flight as the bounce buffer and the queue hold.
pub struct BlockingQueue<Q: BlockQueue> {
    queue: Q,
    /// `None` once the disk was given up.
    bounce: Option<Bounce>,
    patience: Duration,
    /// Something was changed since the last flush.
    changed: bool,
}

struct Bounce {
    // Before `memory`, so that it is unmapped first.
    mapping: Box<dyn Mapping>,
    memory: Arc<dyn PinnedMemory>,
}

impl Bounce {
    /// The first `bytes` bytes go to the device.
    fn fill(&self, data: &[u8]) {
        assert!(data.len() <= self.memory.len());
        // SAFETY: `PinnedMemory` promises `len()` writable bytes at `start()`, and the slice fits (asserted). They are
        // private to this bounce buffer, so they do not overlap `data`.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.memory.start(), data.len()) };
    }

    /// The first `data.len()` bytes came from the device, which no longer touches them.
    fn take(&self, data: &mut [u8]) {
        assert!(data.len() <= self.memory.len());
        // SAFETY: as in `fill`; each command that named these bytes has ended, so nobody writes them now.
        unsafe { std::ptr::copy_nonoverlapping(self.memory.start(), data.as_mut_ptr(), data.len()) };
    }

    fn fill_zero(&self) {
        // SAFETY: `PinnedMemory` promises `len()` writable bytes at `start()`.
        unsafe { std::ptr::write_bytes(self.memory.start(), 0, self.memory.len()) };
    }
}

impl<Q: BlockQueue> BlockingQueue<Q> {
    /// Uses `queue`, with nothing outstanding, and all of `memory`, which nobody else may touch: at least one block;
    /// 1 MiB serves well.
    pub fn new(queue: Q, mapper: &dyn Mapper, memory: Arc<dyn PinnedMemory>) -> Result<Self, DmaError> {
        assert_eq!(queue.outstanding(), 0, "the queue is in use");
        assert!(
            memory.len() >= queue.geometry().block_size() as usize,
            "the bounce buffer is less than a block"
        );
        let mapping = mapper.map(memory.clone(), DmaAccess::ReadWrite)?;
        Ok(Self { queue, bounce: Some(Bounce { mapping, memory }), patience: PATIENCE, changed: false })
    }

    /// Waits at most `patience` for a sign of the device instead of [`PATIENCE`].
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Bytes moved in one go: whole blocks.
    fn window(&self) -> Option<usize> {
        let block = self.queue.geometry().block_size() as usize;
        self.bounce.as_ref().map(|bounce| bounce.memory.len() / block * block)
    }

    /// Does `operation` on `blocks` blocks from `lba`, again if a reset ended it.
    fn run(&mut self, operation: Operation, lba: u64, blocks: u64) -> Result<(), DiskError> {
        let mut retries = RETRIES;
        self.changed |= !matches!(operation, Operation::Read | Operation::Compare | Operation::Flush);
        loop {
            match self.attempt(operation, lba, blocks) {
                Err(DiskError { cause: DiskFault::Status(DeviceStatus::ABORTED), .. }) if retries > 0 => {
                    retries -= 1;
                }
                result => return result,
            }
        }
    }

    /// Does it once. On return nothing is outstanding, or the disk was given up.
    fn attempt(&mut self, operation: Operation, lba: u64, blocks: u64) -> Result<(), DiskError> {
        let what = name_of(operation);
        let Some(bounce) = &self.bounce else {
            return Err(DiskError { what, lba, cause: DiskFault::Gone });
        };
        let whole = Command { operation, lba, blocks: 0, data: bounce.mapping.iova(), tag: 0 };
        let geometry = *self.queue.geometry();
        let flush = (operation == Operation::Flush).then_some(whole);
        let mut todo =
            pieces(whole, if flush.is_some() { 0 } else { blocks }, &geometry).chain(flush).peekable();
        let mut failure: Option<(u64, DiskFault)> = None;
        let mut wait = Wait::new(self.patience);
        loop {
            while failure.is_none()
                && let Some(piece) = todo.peek()
            {
                match self.queue.submit(&Command { tag: piece.lba, ..*piece }) {
                    Ok(()) => drop(todo.next()),
                    Err(SubmitError::Full) => break,
                    Err(SubmitError::Invalid) => failure = Some((piece.lba, DiskFault::Bounds)),
                    Err(SubmitError::Down) if self.queue.state() == QueueState::Gone => {
                        failure = Some((piece.lba, DiskFault::Gone));
                    }
                    Err(SubmitError::Down) => break, // it runs again when the reset is over
                }
            }
            self.queue.commit();
            if self.queue.outstanding() == 0 && (failure.is_some() || todo.peek().is_none()) {
                return failure.map_or(Ok(()), |(lba, cause)| Err(DiskError { what, lba, cause }));
            }
            let ended = self.queue.poll(BUDGET, &mut |ended| {
                if !ended.status.is_ok() {
                    failure.get_or_insert((ended.tag, DiskFault::Status(ended.status)));
                }
            });
            if ended > 0 {
                wait = Wait::new(self.patience);
            } else if !wait.pause() {
                self.give_up();
                return Err(DiskError { what, lba, cause: DiskFault::Timeout });
            }
        }
    }

    /// The device was silent for too long. What it may still touch is never used again.
    fn give_up(&mut self) {
        if self.queue.outstanding() > 0 {
            tracing::error!(
                outstanding = self.queue.outstanding(),
                "the device does not answer; its disk is given up"
            );
            keep(self.bounce.take());
        }
    }
}

impl<Q: BlockQueue> Drop for BlockingQueue<Q> {
    fn drop(&mut self) {
        // Only after a panic of the queue; otherwise every call ends with nothing outstanding.
        if self.queue.outstanding() > 0 {
            keep(self.bounce.take());
        }
    }
}

impl<Q: BlockQueue> Disk for BlockingQueue<Q> {
    fn geometry(&self) -> &Geometry {
        self.queue.geometry()
    }

    fn read(&mut self, mut lba: u64, data: &mut [u8]) -> Result<(), DiskError> {
        let geometry = *self.queue.geometry();
        check_range(
            &geometry,
            Operation::Read,
            lba,
            whole_blocks(&geometry, Operation::Read, lba, data.len())?,
        )?;
        let gone = DiskError { what: "read", lba, cause: DiskFault::Gone };
        for part in data.chunks_mut(self.window().ok_or(gone)?) {
            let blocks = part.len() as u64 >> geometry.block_shift;
            self.run(Operation::Read, lba, blocks)?;
            self.bounce.as_ref().ok_or(gone)?.take(part);
            lba += blocks;
        }
        Ok(())
    }

    fn write(&mut self, mut lba: u64, data: &[u8]) -> Result<(), DiskError> {
        let geometry = *self.queue.geometry();
        let operation = Operation::Write { fua: false };
        check_range(&geometry, operation, lba, whole_blocks(&geometry, operation, lba, data.len())?)?;
        let gone = DiskError { what: "write", lba, cause: DiskFault::Gone };
        for part in data.chunks(self.window().ok_or(gone)?) {
            let blocks = part.len() as u64 >> geometry.block_shift;
            self.bounce.as_ref().ok_or(gone)?.fill(part);
            self.run(operation, lba, blocks)?;
            lba += blocks;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        self.run(Operation::Flush, 0, 0)?;
        self.changed = false;
        Ok(())
    }

    fn flush_changes(&mut self) -> Result<(), DiskError> {
        if self.changed && self.queue.geometry().write_cache { self.flush() } else { Ok(()) }
    }

    fn write_zeroes(&mut self, mut lba: u64, mut blocks: u64) -> Result<(), DiskError> {
        let geometry = *self.queue.geometry();
        // Write Zeroes with the deallocate bit reads as zero where the device says so; the Deallocate command is
        // only a hint that the device may ignore, so it never serves for zeroing.
        let operation = Operation::WriteZeroes { deallocate: geometry.deallocate_zeroes };
        check_range(&geometry, operation, lba, blocks)?;
        if geometry.write_zeroes {
            return self.run(operation, lba, blocks);
        }
        let gone = DiskError { what: "write zeroes", lba, cause: DiskFault::Gone };
        let window = self.window().ok_or(gone)? as u64 >> geometry.block_shift;
        self.bounce.as_ref().ok_or(gone)?.fill_zero();
        while blocks > 0 {
            let part = blocks.min(window);
            self.run(Operation::Write { fua: false }, lba, part)?;
            lba += part;
            blocks -= part;
        }
        Ok(())
    }

    fn deallocate(&mut self, lba: u64, blocks: u64) -> Result<(), DiskError> {
        check_range(self.queue.geometry(), Operation::Deallocate, lba, blocks)?;
        if !self.queue.geometry().deallocate {
            return Ok(());
        }
        self.run(Operation::Deallocate, lba, blocks)
    }
}

/// Spins, then yields, then sleeps a little, until the patience is at its end.
struct Wait {
    since: Instant,
    patience: Duration,
    turns: u32,
}

impl Wait {
    fn new(patience: Duration) -> Self {
        Self { since: Instant::now(), patience, turns: 0 }
    }

    /// False when it has lasted too long.
    fn pause(&mut self) -> bool {
        self.turns = self.turns.saturating_add(1);
        match self.turns {
            0..=100 => std::hint::spin_loop(),
            101..=2_000 => std::thread::yield_now(),
            _ => std::thread::sleep(Duration::from_micros(50)),
        }
        self.since.elapsed() < self.patience
    }
}

#[cfg(test)]
mod tests;
