//! Our path: requests through a [`RawQueue`], with the adapter in this process or in another.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portcullis::raw::RawQueue;
use portcullis::wire::layout::{CompletionEntry, SubmissionEntry, opcode};
use portcullis::{Access, Memory, MemoryAccess, Session, Status, Volume};

use crate::pattern::{Order, Walk};
use crate::requests::{BLOCK, is_time_to_look, per_request};

/// Deepest that is measured.
pub const DEEPEST: u32 = 128;

/// What a client does where nothing has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Idle {
    /// Looks again, and says to its processor that another one is waited for.
    Pauses,
    /// Looks again at once: each look turns the adapter, and the device is waited for.
    Turns,
    /// Waits by [`RawQueue::wait`], which sleeps after a while: for one who has no processor to itself.
    Waits,
}

/// A queue, a volume, and memory for as many requests as may be in flight.
pub struct Client {
    // Dropped in this order.
    queue: RawQueue,
    memory: Memory,
    volume: Volume,
    session: Session,
    name: String,
    walk: Walk,
    opcode: u8,
    idle: Idle,
    /// Sent, and come back.
    requests: u64,
    taken: u64,
}

impl Client {
    /// A client of `session` with a volume of its own of `bytes` bytes, all written.
    ///
    /// # Errors
    /// The adapter's.
    pub fn new(session: Session, bytes: u64) -> Result<Self> {
        let client = Self::unwritten(session, bytes)?;
        let mut queue = client.session.queue(16)?;
        let data = vec![0x5a; 1 << 20];
        for at in (0..bytes).step_by(data.len()) {
            let length = data.len().min(usize::try_from(bytes - at)?);
            queue.write_at(&client.volume, at, &data[..length])?;
        }
        drop(queue);
        Ok(client)
    }

    /// The same, with a volume that nobody has written yet.
    ///
    /// # Errors
    /// The adapter's.
    pub fn unwritten(session: Session, bytes: u64) -> Result<Self> {
        let name = format!("bench-{}-{}", std::process::id(), session.number());
        session.create_volume(&name, bytes)?;
        let volume = session.open(&name, Access::READ_WRITE)?;
        let memory = session.register(DEEPEST as usize * BLOCK as usize, MemoryAccess::Both)?;
        let queue = RawQueue::create(&session, 2 * DEEPEST)?;
        let places = u32::try_from(bytes / u64::from(BLOCK))?;
        let walk = Walk::new(Order::Random, places);
        Ok(Self {
            queue,
            memory,
            volume,
            session,
            name,
            walk,
            opcode: opcode::READ,
            idle: Idle::Pauses,
            requests: 0,
            taken: 0,
        })
    }

    /// How many requests it has sent.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// With another way to wait, where it keeps requests in flight.
    #[must_use]
    pub fn idle(self, idle: Idle) -> Self {
        Self { idle, ..self }
    }

    /// What it asks for from now on: writes, or reads as at first.
    pub fn writes(&mut self, writes: bool) {
        self.opcode = if writes { opcode::WRITE } else { opcode::READ };
    }

    /// Gives the volume back.
    ///
    /// # Errors
    /// The adapter's.
    pub fn end(self) -> Result<()> {
        drop(self.queue);
        self.volume.close()?;
        drop(self.memory);
        self.session.delete_volume(&self.name)?;
        Ok(())
    }

    #[inline]
    fn push(&mut self, slot: u32) -> Result<()> {
        self.requests += 1;
        let entry = SubmissionEntry {
            opcode: self.opcode,
            user_data: u64::from(slot),
            key: self.volume.key(),
            offset: u64::from(self.walk.step()) * u64::from(BLOCK),
            length: BLOCK,
            region: self.memory.key(),
            region_offset: u64::from(slot * BLOCK),
            ..SubmissionEntry::default()
        };
        self.queue.push(&entry).context("fewer are in flight than the queue has entries")
    }

    /// All of a batch there, one doorbell, all of it back.
    #[inline]
    fn batch(&mut self, depth: u32) -> Result<()> {
        self.start(depth)?;
        let mut left = depth;
        while left > 0 {
            match self.queue.poll() {
                Some(done) => {
                    self.taken += 1;
                    check(done)?;
                    left -= 1;
                }
                None => std::hint::spin_loop(),
            }
        }
        Ok(())
    }

    /// Sends `count` requests, in slots from 0 on, with one doorbell.
    ///
    /// # Errors
    /// The adapter's.
    fn start(&mut self, count: u32) -> Result<()> {
        for slot in 0..count {
            self.push(slot)?;
        }
        Ok(self.queue.ring()?)
    }

    /// Waits until nothing comes any more that was sent.
    ///
    /// # Errors
    /// The adapter's; a request that failed.
    fn drain(&mut self) -> Result<()> {
        while self.taken < self.requests {
            match self.queue.wait(Duration::from_secs(10))? {
                Some(done) => {
                    self.taken += 1;
                    check(done)?;
                }
                None => anyhow::bail!("the adapter does not answer"),
            }
        }
        Ok(())
    }

    /// One request there and back.
    ///
    /// # Errors
    /// The adapter's; a request that fails.
    pub fn once(&mut self) -> Result<()> {
        self.batch(1)
    }

    /// Batches of `depth` for about that time: nanoseconds for each request. For an adapter in this process, where nothing
    /// happens while the caller does something else.
    ///
    /// # Errors
    /// The adapter's; a request that fails.
    pub fn batches(&mut self, depth: u32, time: Duration) -> Result<f64> {
        per_request(depth, time, || self.batch(depth))
    }

    /// Nothing has come.
    #[inline]
    fn rest(&mut self) -> Result<Option<CompletionEntry>> {
        match self.idle {
            Idle::Pauses => std::hint::spin_loop(),
            Idle::Turns => {}
            Idle::Waits => return Ok(self.queue.wait(Duration::from_millis(10))?),
        }
        Ok(None)
    }

    /// Keeps `depth` requests in flight for about that time: whatever has come back is sent again at once, with one doorbell
    /// for all that was found. Nanoseconds for each request.
    ///
    /// # Errors
    /// The adapter's; a request that fails.
    pub fn keep(&mut self, depth: u32, time: Duration) -> Result<f64> {
        ensure!(depth <= DEEPEST, "at most {DEEPEST} are in flight");
        let began = Instant::now();
        let mut ended = 0_u64;
        let mut idle = 0_u32;
        self.start(depth)?;
        loop {
            let mut found = 0_u32;
            let mut next = match self.queue.poll() {
                None => self.rest()?,
                some => some,
            };
            while let Some(done) = next {
                self.taken += 1;
                let slot = check(done)?;
                self.push(slot)?;
                found += 1;
                next = self.queue.poll();
            }
            if found > 0 {
                self.queue.ring()?;
                idle = 0;
            } else {
                idle += 1;
            }
            ended += u64::from(found);
            if is_time_to_look(ended, found.into(), idle) {
                idle = 0;
                if began.elapsed() >= time {
                    break;
                }
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let each = began.elapsed().as_nanos() as f64 / ended.max(1) as f64;
        self.drain()?;
        Ok(each)
    }
}

#[inline]
fn check(done: CompletionEntry) -> Result<u32> {
    ensure!(done.status == Status::OK.0, "a request failed: {}", Status(done.status));
    #[expect(clippy::cast_possible_truncation, reason = "a slot, as it was sent")]
    let slot = done.user_data as u32;
    Ok(slot)
}
