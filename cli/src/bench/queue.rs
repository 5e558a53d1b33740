//! The path through the queue.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use portcullis::{Access, Buffer, Completion, MemoryAccess, Queue, Request, Session, Volume};

use super::{Places, Tally, Work, nanoseconds, pattern};
use crate::arguments::BenchOptions;
use crate::output;

/// The volume to measure in, deleted afterwards if it was made for that.
pub(super) struct Scratch {
    volume: Option<Volume>,
    made: Option<(Session, String)>,
}

impl Scratch {
    pub(super) fn new(session: &Session, options: &BenchOptions, work: Work) -> Result<Self> {
        let access = if work.workload.is_write() { Access::READ_WRITE } else { Access::READ };
        if let Some(name) = &options.volume {
            let volume = session
                .open(name, access)
                .with_context(|| format!("cannot open volume {}", output::name(name)))?;
            anyhow::ensure!(
                volume.size() >= work.bytes(),
                "volume {} has {} bytes, the bench works on {}: give a smaller --size",
                output::name(name),
                volume.size(),
                work.bytes()
            );
            return Ok(Self { volume: Some(volume), made: None });
        }
        let name = format!("bench-{}", std::process::id());
        session.create_volume(&name, work.bytes()).with_context(|| {
            format!(
                "cannot make a volume of {} bytes to measure in; --size asks for less, --volume uses one",
                work.bytes()
            )
        })?;
        // From here on it is deleted whatever happens.
        let mut scratch = Self { volume: None, made: Some((session.clone(), name.clone())) };
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
        scratch.volume = Some(volume);
        Ok(scratch)
    }

    fn volume(&self) -> &Volume {
        self.volume.as_ref().expect("it was opened when it was made, and is closed when it is removed")
    }

    pub(super) fn remove(mut self) -> Result<()> {
        self.volume = None;
        if let Some((session, name)) = self.made.take() {
            session
                .delete_volume(&name)
                .with_context(|| format!("cannot delete volume {name}; delete it by hand"))?;
        }
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.volume = None;
        if let Some((session, name)) = self.made.take() {
            let _ = session.delete_volume(&name);
        }
    }
}

/// A queue with as many buffers as are to be in flight.
pub(super) struct Runner {
    queue: Queue,
    work: Work,
    places: Places,
    free: Vec<Buffer>,
    /// When the request in each slot was prepared.
    began: Vec<Instant>,
}

impl Runner {
    pub(super) fn new(session: &Session, _: &Scratch, work: Work, depth: u32) -> Result<Self> {
        let total = work.block.saturating_mul(depth as usize);
        let memory = session
            .register(total.max(work.block.next_multiple_of(4096) * depth as usize), MemoryAccess::Both)
            .with_context(|| {
                format!("cannot register {total} bytes: try a smaller --depth or --block-size")
            })?;
        let mut free = memory.buffers(work.block, 4096)?;
        free.truncate(depth as usize);
        free.iter_mut().for_each(|buffer| pattern(buffer));
        let queue = session.queue(depth.next_power_of_two().max(2))?;
        let began = vec![Instant::now(); queue.entries() as usize];
        Ok(Self { queue, work, places: Places::new(work, u64::from(depth)), free, began })
    }

    pub(super) fn run(&mut self, scratch: &Scratch, time: Duration, tally: &mut Tally) -> Result<()> {
        let volume = scratch.volume();
        let start = Instant::now();
        while let Some(buffer) = self.free.pop() {
            self.submit(volume, buffer)?;
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
                let buffer = self.record(completion, tally)?;
                self.submit(volume, buffer)?;
                done = self.queue.poll()?;
            }
            self.queue.ring()?;
        }
        while let Some(completion) = self.queue.wait(Duration::MAX)? {
            let buffer = self.record(completion, tally)?;
            self.free.push(buffer);
        }
        tally.took += start.elapsed();
        Ok(())
    }

    fn submit(&mut self, volume: &Volume, buffer: Buffer) -> Result<()> {
        let at = self.places.next();
        let request = match self.work.workload.is_write() {
            true => Request::write(volume, at, buffer),
            false => Request::read(volume, at, buffer),
        };
        let ticket = self.queue.prepare(request)?;
        if let Some(began) = self.began.get_mut(ticket.slot() as usize) {
            *began = Instant::now();
        }
        Ok(())
    }

    fn record(&mut self, done: Completion, tally: &mut Tally) -> Result<Buffer> {
        if let Some(began) = self.began.get(done.ticket.slot() as usize) {
            tally.latencies.record(nanoseconds(began.elapsed()))?;
        }
        done.result.context("a request failed while measuring")?;
        done.buffer.context("a completion came without its buffer")
    }
}
