//! The kernel's path through `io_uring`: a file and buffers registered before, and as many requests in flight as asked.
#![allow(unsafe_code)] // the kernel is told of memory, and must not have it after its end

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use io_uring::{IoUring, opcode, squeue, types};

use super::kernel::Aligned;
use super::sample::{Clocks, Sample, histogram, nanoseconds};
use super::{Path, Place, Places, Work, pattern};

/// What the ring is asked to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Reads and writes.
    Data,
    /// The same, with completions found by polling the device (IOPOLL): needs O_DIRECT and a device with queues for it.
    Polled,
    /// Requests that do nothing: what the ring itself costs.
    Nop,
}

/// A ring for one thread.
pub(super) struct Uring {
    // Before the buffers: the kernel lets go of them first.
    ring: IoUring,
    buffers: Vec<Aligned>,
    began: Vec<Instant>,
    places: Places,
    work: Work,
    kind: Kind,
    in_flight: u32,
}

/// Errors of a ring that the kernel does not allow or does not have.
const NO_RING: &str = "io_uring is not to be had here";

impl Uring {
    /// With `moves` it may be used by another thread than the one that makes it.
    pub(super) fn new(
        file: &File,
        work: Work,
        kind: Kind,
        depth: u32,
        seed: u64,
        moves: bool,
    ) -> Result<Self> {
        let entries = depth.next_power_of_two();
        let mut builder = IoUring::builder();
        if kind == Kind::Polled {
            builder.setup_iopoll();
        } else if !moves {
            // What a careful application asks for, where the kernel is new enough (6.1).
            builder.setup_single_issuer().setup_defer_taskrun();
        }
        let ring = match builder.build(entries) {
            Err(_) if kind != Kind::Polled => IoUring::new(entries),
            ring => ring,
        };
        let ring = ring.context(NO_RING)?;
        let mut made = Self {
            ring,
            buffers: (0..depth).map(|_| Aligned::new(work.block)).collect(),
            began: vec![Instant::now(); depth as usize],
            places: Places::new(work, seed + 1),
            work,
            kind,
            in_flight: 0,
        };
        made.buffers.iter_mut().for_each(|buffer| pattern(buffer.bytes()));
        let memory: Vec<libc::iovec> = made
            .buffers
            .iter_mut()
            .map(|buffer| {
                let bytes = buffer.bytes();
                libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
            })
            .collect();
        let submitter = made.ring.submitter();
        submitter.register_files(&[file.as_raw_fd()]).context("registering the file with io_uring")?;
        // SAFETY: the buffers stay where they are and live longer than the ring, which is dropped first; nobody looks at
        // their bytes.
        unsafe { submitter.register_buffers(&memory) }
            .context("registering memory with io_uring (its limit is that of locked memory)")?;
        if kind == Kind::Polled {
            // Only a request tells whether file and device can be polled.
            made.run(1, Duration::ZERO, 0)?;
        }
        Ok(made)
    }

    /// One request, for a slot that has none.
    fn entry(&mut self, slot: u16) -> squeue::Entry {
        let Place { at, write } = self.places.next();
        let file = types::Fixed(0);
        let bytes = self.buffers[usize::from(slot)].bytes();
        let length = u32::try_from(self.work.block).unwrap_or(u32::MAX);
        let entry = match self.kind {
            Kind::Nop => opcode::Nop::new().build(),
            Kind::Data | Kind::Polled if write => {
                opcode::WriteFixed::new(file, bytes.as_ptr(), length, slot).offset(at).build()
            }
            Kind::Data | Kind::Polled => {
                opcode::ReadFixed::new(file, bytes.as_mut_ptr(), length, slot).offset(at).build()
            }
        };
        entry.user_data(u64::from(slot))
    }

    fn push(&mut self, slot: u16) -> Result<()> {
        let entry = self.entry(slot);
        // SAFETY: the entry names a registered buffer of this slot, which has no other request and lives longer than the
        // ring; its length is that of the buffer.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        ensure!(pushed.is_ok(), "the submission queue of io_uring is full");
        self.in_flight += 1;
        self.began[usize::from(slot)] = Instant::now();
        Ok(())
    }

    /// Records what has ended; the slots.
    fn reap(&mut self, latencies: &mut Histogram<u64>, ended: &mut Vec<u16>) -> Result<()> {
        let wanted = match self.kind {
            Kind::Nop => 0,
            Kind::Data | Kind::Polled => i32::try_from(self.work.block).unwrap_or(i32::MAX),
        };
        for done in self.ring.completion() {
            let slot = u16::try_from(done.user_data()).context("io_uring answered what was not asked")?;
            let began = self.began.get(usize::from(slot)).context("io_uring answered what was not asked")?;
            latencies.record(nanoseconds(began.elapsed()))?;
            self.in_flight -= 1;
            let result = done.result();
            ensure!(
                result == wanted,
                "a request of io_uring failed: {}",
                if result < 0 {
                    std::io::Error::from_raw_os_error(-result).to_string()
                } else {
                    format!("{result} bytes of {wanted}")
                }
            );
            ended.push(slot);
        }
        Ok(())
    }
}

impl Path for Uring {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Data => "io_uring",
            Kind::Polled => "io_uring polled",
            Kind::Nop => "io_uring nop",
        }
    }

    fn run(&mut self, depth: u32, time: Duration, _round: u32) -> Result<Sample> {
        let mut latencies = histogram()?;
        let mut ended = Vec::with_capacity(depth as usize);
        let clocks = Clocks::start();
        let start = Instant::now();
        for slot in 0..depth {
            self.push(u16::try_from(slot).context("too many requests in flight")?)?;
        }
        while start.elapsed() < time {
            self.ring.submit_and_wait(1).context("submitting to io_uring")?;
            self.reap(&mut latencies, &mut ended)?;
            for slot in ended.drain(..) {
                self.push(slot)?;
            }
        }
        while self.in_flight > 0 {
            self.ring.submit_and_wait(1).context("submitting to io_uring")?;
            self.reap(&mut latencies, &mut ended)?;
            ended.clear();
        }
        Ok(clocks.sample(latencies))
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernel::KernelFile;
    use super::*;
    use crate::arguments::Workload;

    #[test]
    fn rings_are_measured_at_every_depth() {
        for (kind, workload) in [(Kind::Data, Workload::Mixed), (Kind::Nop, Workload::Read)] {
            let work = Work::test(workload);
            let file = KernelFile::in_memory(work).unwrap();
            let mut ring = match Uring::new(file.file(), work, kind, 4, 0, false) {
                Err(error) if error.to_string() == NO_RING => return,
                ring => ring.unwrap(),
            };
            for depth in [1, 4, 2] {
                let sample = ring.run(depth, Duration::from_millis(5), 0).unwrap();
                assert!(sample.latencies.len() >= u64::from(depth), "{kind:?} at {depth}");
            }
        }
    }

    #[test]
    fn a_file_that_cannot_be_polled_is_refused_before_anything_is_measured() {
        let work = Work::test(Workload::Read);
        let file = KernelFile::in_memory(work).unwrap();
        assert!(Uring::new(file.file(), work, Kind::Polled, 4, 0, false).is_err());
    }
}
