//! The path through the queue.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use portcullis::{Access, Buffer, Completion, MemoryAccess, Queue, Request, Session, Volume};

use super::sample::{Clocks, Sample, histogram, nanoseconds};
use super::{Path, Place, Places, Work, pattern};
use crate::arguments::BenchOptions;
use crate::output;

/// The volume to measure in, deleted afterwards if it was made for that.
pub(super) struct Scratch {
    name: String,
    made: Option<Session>,
}

impl Scratch {
    pub(super) fn new(session: &Session, options: &BenchOptions, work: Work) -> Result<Self> {
        if let Some(name) = &options.volume {
            let scratch = Self { name: name.clone(), made: None };
            let volume = scratch.open(session, work)?;
            anyhow::ensure!(
                volume.size() >= work.bytes(),
                "volume {} has {} bytes, the bench works on {}: give a smaller --size",
                output::name(name),
                volume.size(),
                work.bytes()
            );
            return Ok(scratch);
        }
        let name = format!("bench-{}", std::process::id());
        session.create_volume(&name, work.bytes()).with_context(|| {
            format!(
                "cannot make a volume of {} bytes to measure in; --size asks for less, --volume uses one",
                work.bytes()
            )
        })?;
        // From here on it is deleted whatever happens.
        let scratch = Self { name: name.clone(), made: Some(session.clone()) };
        let volume = session.open(&name, Access::READ_WRITE)?;
        // Real data everywhere, so that reads have something to read.
        let mut queue = session.queue(16)?;
        let mut data = vec![0; 1 << 20];
        pattern(&mut data);
        let mut at = 0;
        while at < work.bytes() {
            let bytes = data.len().min(usize::try_from(work.bytes() - at).unwrap_or(usize::MAX));
            queue.write_at(&volume, at, &data[..bytes])?;
            at += bytes as u64;
        }
        queue.flush(&volume)?;
        Ok(scratch)
    }

    /// The volume, for a session.
    pub(super) fn open(&self, session: &Session, work: Work) -> Result<Volume> {
        let access = if work.workload.is_write() { Access::READ_WRITE } else { Access::READ };
        session
            .open(&self.name, access)
            .with_context(|| format!("cannot open volume {}", output::name(&self.name)))
    }

    /// To be called when nobody has it open any more.
    pub(super) fn remove(mut self) -> Result<()> {
        let Some(session) = self.made.take() else { return Ok(()) };
        session
            .delete_volume(&self.name)
            .with_context(|| format!("cannot delete volume {}; delete it by hand", self.name))?;
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(session) = self.made.take() {
            let _ = session.delete_volume(&self.name);
        }
    }
}

/// A queue with as many buffers as are to be in flight at most.
pub(super) struct Runner {
    queue: Queue,
    volume: Arc<Volume>,
    work: Work,
    places: Places,
    free: Vec<Buffer>,
    /// When the request in each slot was prepared.
    began: Vec<Instant>,
}

impl Runner {
    pub(super) fn new(
        session: &Session,
        volume: Arc<Volume>,
        work: Work,
        depth: u32,
        seed: u64,
    ) -> Result<Self> {
        let total = work.block.next_multiple_of(4096).saturating_mul(depth as usize);
        let memory = session.register(total, MemoryAccess::Both).with_context(|| {
            format!("cannot register {total} bytes: try a smaller --depth or --block-size")
        })?;
        let mut free = memory.buffers(work.block, 4096)?;
        free.truncate(depth as usize);
        free.iter_mut().for_each(|buffer| pattern(buffer));
        let queue = session.queue(depth.next_power_of_two().max(2))?;
        let began = vec![Instant::now(); queue.entries() as usize];
        Ok(Self { queue, volume, work, places: Places::new(work, seed + 1), free, began })
    }

    fn submit(&mut self, buffer: Buffer) -> Result<()> {
        let Place { at, write } = self.places.next();
        let request = match write {
            true => Request::write(&self.volume, at, buffer),
            false => Request::read(&self.volume, at, buffer),
        };
        let ticket = self.queue.prepare(request)?;
        if let Some(began) = self.began.get_mut(ticket.slot() as usize) {
            *began = Instant::now();
        }
        Ok(())
    }

    fn record(&mut self, done: Completion, latencies: &mut Histogram<u64>) -> Result<Buffer> {
        if let Some(began) = self.began.get(done.ticket.slot() as usize) {
            latencies.record(nanoseconds(began.elapsed()))?;
        }
        done.result.with_context(|| format!("{} failed while measuring", self.work.workload.name()))?;
        done.buffer.context("a completion came without its buffer")
    }
}

impl Path for Runner {
    fn name(&self) -> &'static str {
        "portcullis"
    }

    fn run(&mut self, depth: u32, time: Duration, _round: u32) -> Result<Sample> {
        let mut latencies = histogram()?;
        let clocks = Clocks::start();
        let start = Instant::now();
        for _ in 0..depth {
            let buffer = self.free.pop().context("more requests are wanted than there are buffers")?;
            self.submit(buffer)?;
        }
        self.queue.ring()?;
        let mut now = start;
        while now.duration_since(start) < time {
            let mut done = match self.queue.poll()? {
                Some(done) => Some(done),
                None => self.queue.wait(Duration::from_secs(1))?,
            };
            now = Instant::now();
            // All that is there, then one doorbell.
            while let Some(completion) = done {
                let buffer = self.record(completion, &mut latencies)?;
                self.submit(buffer)?;
                done = self.queue.poll()?;
            }
            self.queue.ring()?;
        }
        while let Some(completion) = self.queue.wait(Duration::MAX)? {
            let buffer = self.record(completion, &mut latencies)?;
            self.free.push(buffer);
        }
        Ok(clocks.sample(latencies))
    }
}
