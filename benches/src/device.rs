//! The driver alone: a device queue that is polled, without tables, rings or sessions above it.

use std::time::Duration;

use adapter::device::Opened;
use anyhow::{Context, Result, bail, ensure};
use driver::block::{BlockQueue, Command, Operation};
use driver::dma::DmaBuffer;
use driver::hal::DmaAccess;

use crate::pattern::{Order, Walk};
use crate::requests::{BLOCK, is_time_to_look, per_request};

/// A device with one queue in use, and memory for as many requests as are to be in flight.
pub struct Driver<Q: BlockQueue> {
    memory: Vec<DmaBuffer>,
    device: Option<Opened<Q>>,
    walk: Walk,
    /// Of one request.
    blocks: u32,
}

impl<Q: BlockQueue> Driver<Q> {
    /// Over the first `places` of 4 KiB of `device`.
    ///
    /// # Errors
    /// If the device has fewer, or memory cannot be mapped.
    pub fn new(device: Opened<Q>, depth: u32, places: u32) -> Result<Self> {
        let blocks = BLOCK >> device.geometry.block_shift;
        ensure!(u64::from(places) * u64::from(blocks) <= device.geometry.blocks, "the device is smaller");
        let one = || DmaBuffer::new(device.mapper.as_ref(), BLOCK as usize, DmaAccess::ReadWrite);
        let memory = (0..depth).map(|_| one()).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { memory, device: Some(device), walk: Walk::new(Order::Random, places), blocks })
    }

    /// Keeps `depth` requests in flight for about that time: whatever has ended is submitted again at once, with one doorbell
    /// for all that was found. Nanoseconds for each request.
    ///
    /// # Errors
    /// A command that fails.
    pub fn keep(&mut self, writes: bool, depth: u32, time: Duration) -> Result<f64> {
        let operation = if writes { Operation::Write { fua: false } } else { Operation::Read };
        let mut free: Vec<usize> = (0..depth as usize).collect();
        let (memory, walk, blocks) = (&self.memory, &mut self.walk, self.blocks);
        let device = self.device.as_mut().context("there is one until the end")?;
        let queue = &mut device.queues.first_mut().context("the device gave no queue")?.0;
        let turn = |queue: &mut Q, free: &mut Vec<usize>| {
            queue.commit();
            let mut failed = None;
            queue.poll(usize::MAX, &mut |done| {
                if !done.status.is_ok() {
                    failed = Some(done.status);
                }
                free.push(usize::try_from(done.tag).unwrap_or(usize::MAX));
            });
            match failed {
                Some(status) => bail!("a command failed: {status}"),
                None => Ok(()),
            }
        };
        let began = std::time::Instant::now();
        let (mut ended, mut idle) = (0_u64, 0_u32);
        let each = loop {
            for slot in free.drain(..) {
                let lba = u64::from(walk.step()) * u64::from(blocks);
                let data = memory.get(slot).context("a slot that nobody has")?.iova(0);
                queue
                    .submit(&Command { operation, lba, blocks, data, tag: slot as u64 })
                    .context("submitting to the device")?;
            }
            turn(queue, &mut free)?;
            let found = free.len() as u64;
            ended += found;
            idle = if found > 0 { 0 } else { idle + 1 };
            if !is_time_to_look(ended, found, idle) {
                continue;
            }
            idle = 0;
            let took = began.elapsed();
            if took >= time {
                #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
                let each = took.as_nanos() as f64 / ended.max(1) as f64;
                break each;
            }
        };
        while queue.outstanding() > 0 {
            turn(queue, &mut free)?;
        }
        Ok(each)
    }

    /// Batches of `depth`, all there and all back, for about that time; nanoseconds for each request. For a device that does
    /// its work when it is told of it.
    ///
    /// # Errors
    /// A command that fails.
    pub fn batches(&mut self, depth: u32, time: Duration) -> Result<f64> {
        per_request(depth, time, || self.batch(depth))
    }

    /// One batch of reads.
    ///
    /// # Errors
    /// A command that fails.
    #[inline]
    pub fn batch(&mut self, depth: u32) -> Result<()> {
        let device = self.device.as_mut().context("there is one until the end")?;
        let queue = &mut device.queues.first_mut().context("the device gave no queue")?.0;
        for slot in 0..depth as usize {
            let lba = u64::from(self.walk.step()) * u64::from(self.blocks);
            let data = self.memory.get(slot).context("a slot that nobody has")?.iova(0);
            let command =
                Command { operation: Operation::Read, lba, blocks: self.blocks, data, tag: slot as u64 };
            queue.submit(&command).context("submitting to the device")?;
        }
        queue.commit();
        let mut left = depth as usize;
        while left > 0 {
            left -= queue.poll(usize::MAX, &mut |done| assert!(done.status.is_ok()));
        }
        Ok(())
    }
}

impl<Q: BlockQueue> Drop for Driver<Q> {
    fn drop(&mut self) {
        // What a failed run left in flight may still write to the memory: it goes after the device.
        self.device.take().into_iter().for_each(Opened::shut_down);
        self.memory.clear();
    }
}
