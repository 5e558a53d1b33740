//! The driver alone: a device queue that is polled, without tables, rings or sessions above it. What those cost is the
//! difference.

use std::time::{Duration, Instant};

use adapter::DeviceUri;
use adapter::device::{self, Opened};
use anyhow::{Context, Result, bail, ensure};
use driver::block::{BlockQueue, Command, Operation, QueueState};
use driver::dma::DmaBuffer;
use driver::hal::DmaAccess;

use super::sample::{Clocks, Sample, histogram, nanoseconds};
use super::{Path, Place, Places, Work, pattern};

/// A device with one queue in use, and memory for as many requests as are to be in flight.
struct Raw<Q: BlockQueue> {
    memory: Vec<DmaBuffer>,
    device: Option<Opened<Q>>,
    began: Vec<Instant>,
    places: Places,
    /// Of one request.
    blocks: u32,
    shift: u8,
}

/// Opens the device that `uri` names. With `fill` what is worked on is written first, so that reads find something.
pub(super) fn open(uri: &DeviceUri, work: Work, depth: u32, fill: bool) -> Result<Box<dyn Path>> {
    struct Measured(Work, u32, bool);
    impl device::Use for Measured {
        type Output = Result<Box<dyn Path>>;

        fn with<Q: BlockQueue + 'static>(self, opened: Opened<Q>) -> Self::Output {
            let Self(work, depth, fill) = self;
            Ok(Box::new(Raw::new(opened, work, depth, fill)?))
        }
    }
    // A null device keeps nothing.
    let fill = fill && !matches!(uri, DeviceUri::Null(_));
    device::open(uri, 1, Measured(work, depth, fill))?
}

impl<Q: BlockQueue> Raw<Q> {
    fn new(device: Opened<Q>, work: Work, depth: u32, fill: bool) -> Result<Self> {
        let geometry = device.geometry;
        let blocks = u32::try_from(work.block >> geometry.block_shift).unwrap_or(u32::MAX);
        ensure!(
            u64::from(blocks) << geometry.block_shift == work.block as u64,
            "{} bytes are no whole blocks of the device",
            work.block
        );
        ensure!(
            blocks <= geometry.max_transfer_blocks,
            "one command of the device takes at most {} bytes",
            u64::from(geometry.max_transfer_blocks) << geometry.block_shift
        );
        ensure!(work.bytes() >> geometry.block_shift <= geometry.blocks, "the device has fewer bytes");
        let one = || DmaBuffer::new(device.mapper.as_ref(), work.block, DmaAccess::ReadWrite);
        let memory = (0..depth).map(|_| one()).collect::<Result<Vec<_>, _>>()?;
        let mut data = vec![0; work.block];
        pattern(&mut data);
        memory.iter().for_each(|buffer| buffer.copy_in(0, &data));
        let mut raw = Self {
            began: vec![Instant::now(); memory.len()],
            memory,
            device: Some(device),
            places: Places::new(work, 1),
            blocks,
            shift: geometry.block_shift,
        };
        for at in (0..work.blocks).filter(|_| fill).map(|block| block * work.block as u64) {
            raw.submit(0, Place { at, write: true })?;
            raw.finish(&mut |_| Ok(()))?;
        }
        Ok(raw)
    }

    fn queue(&mut self) -> Result<&mut Q> {
        let queue = self.device.as_mut().and_then(|device| device.queues.first_mut());
        Ok(&mut queue.context("the device gave no queue")?.0)
    }

    fn submit(&mut self, slot: usize, place: Place) -> Result<()> {
        let command = Command {
            operation: if place.write { Operation::Write { fua: false } } else { Operation::Read },
            lba: place.at >> self.shift,
            blocks: self.blocks,
            data: self.memory[slot].iova(0),
            tag: slot as u64,
        };
        self.began[slot] = Instant::now();
        self.queue()?.submit(&command).context("submitting to the device")
    }

    /// Announces what was submitted and polls once; `each` gets the slot of what has ended.
    fn turn(&mut self, each: &mut dyn FnMut(usize)) -> Result<()> {
        let mut failed = None;
        let queue = self.queue()?;
        queue.commit();
        queue.poll(usize::MAX, &mut |done| {
            if !done.status.is_ok() {
                failed = Some(done.status);
            }
            each(usize::try_from(done.tag).unwrap_or(usize::MAX));
        });
        match failed {
            Some(status) => bail!("a command failed: {status}"),
            None if queue.state() != QueueState::Running => bail!("the device failed"),
            None => Ok(()),
        }
    }

    /// Until nothing is in flight.
    fn finish(&mut self, each: &mut dyn FnMut(usize) -> Result<()>) -> Result<()> {
        while self.queue()?.outstanding() > 0 {
            let mut result = Ok(());
            self.turn(&mut |slot| {
                if result.is_ok() {
                    result = each(slot);
                }
            })?;
            result?;
        }
        Ok(())
    }
}

impl<Q: BlockQueue> Path for Raw<Q> {
    fn name(&self) -> &'static str {
        "driver alone"
    }

    fn run(&mut self, depth: u32, time: Duration, _round: u32) -> Result<Sample> {
        let mut latencies = histogram()?;
        let mut ended: Vec<usize> = (0..depth as usize).collect();
        let clocks = Clocks::start();
        let mut now = Instant::now();
        let start = now;
        while now.duration_since(start) < time {
            for slot in ended.drain(..) {
                let place = self.places.next();
                self.submit(slot, place)?;
            }
            self.turn(&mut |slot| ended.push(slot))?;
            now = Instant::now();
            for &slot in &ended {
                latencies.record(nanoseconds(now.duration_since(self.began[slot])))?;
            }
        }
        let began = self.began.clone();
        self.finish(&mut |slot| Ok(latencies.record(nanoseconds(began[slot].elapsed()))?))?;
        Ok(clocks.sample(latencies))
    }
}

impl<Q: BlockQueue> Drop for Raw<Q> {
    fn drop(&mut self) {
        // What a failed run left in flight may still write to the memory: it goes after the device.
        self.device.take().into_iter().for_each(Opened::shut_down);
        self.memory.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Workload;

    #[test]
    fn the_driver_is_measured_alone_and_at_every_depth() {
        for workload in [Workload::Randread, Workload::Mixed] {
            for uri in ["emu:2M", "null:2M"] {
                let mut raw = open(&uri.parse().unwrap(), Work::test(workload), 4, true).unwrap();
                for depth in [1, 4, 2] {
                    let sample = raw.run(depth, Duration::from_millis(5), 0).unwrap();
                    assert!(sample.latencies.len() >= u64::from(depth), "{uri} at {depth}");
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_the_device_is_refused() {
        let work = Work::test(Workload::Read);
        let uri: DeviceUri = "emu:2M".parse().unwrap();
        assert!(open(&uri, Work { block: 1000, ..work }, 1, false).is_err());
        assert!(open(&uri, Work { blocks: 1 << 20, ..work }, 1, false).is_err());
    }
}
