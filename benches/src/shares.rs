//! What one session notices of another: a session with one request at a time beside one that floods its queue, and how well
//! a limit is kept. The adapter is in this process, and one thread drives it and both sessions.

use std::time::{Duration, Instant};

use adapter::Embedded;
use anyhow::{Context, Result, ensure};
use portcullis::raw::RawQueue;
use portcullis::wire::layout::{SubmissionEntry, opcode};
use portcullis::{Access, LimitChange, Limited, Memory, MemoryAccess, Rate, Session, Status, Volume};

use crate::figure::Figure;
use crate::requests::BLOCK;
use crate::rounds::{Cores, Plan, interleave};

const DEVICE: &str = "null:1G";
const VOLUME: u64 = 16 << 20;
/// Requests that the flood keeps in flight.
const FLOOD: u32 = 128;
/// Answers that the thread takes from the other session before it asks for the quiet one again: as many as an adapter that
/// shares nothing would have for it.
const AT_ONCE: u32 = 32;
/// The limit that is measured: of requests in a second.
pub const LIMIT: u64 = 200_000;

/// A session with a queue and a volume.
struct Party {
    // Dropped in this order.
    queue: RawQueue,
    memory: Memory,
    volume: Volume,
    session: Session,
    name: String,
}

impl Party {
    fn new(adapter: &Embedded) -> Result<Self> {
        let session = adapter.session()?;
        let name = format!("shares-{}", session.number());
        session.create_volume(&name, VOLUME)?;
        let volume = session.open(&name, Access::READ)?;
        let memory = session.register(BLOCK as usize, MemoryAccess::Both)?;
        let queue = RawQueue::create(&session, 2 * FLOOD)?;
        Ok(Self { queue, memory, volume, session, name })
    }

    #[inline]
    fn ask(&mut self) -> Result<()> {
        let entry = SubmissionEntry {
            opcode: opcode::READ,
            key: self.volume.key(),
            length: BLOCK,
            region: self.memory.key(),
            ..SubmissionEntry::default()
        };
        self.queue.push(&entry).context("fewer are in flight than the queue has entries")
    }

    /// Whether an answer is there.
    #[inline]
    fn answered(&mut self) -> Result<bool> {
        let Some(done) = self.queue.poll() else { return Ok(false) };
        ensure!(done.status == Status::OK.0, "a request failed: {}", Status(done.status));
        Ok(true)
    }

    /// Takes at most so many answers, and asks again for each. Returns how many they were.
    #[inline]
    fn go_on(&mut self, most: u32) -> Result<u32> {
        let mut found = 0;
        while found < most && self.answered()? {
            self.ask()?;
            found += 1;
        }
        if found > 0 {
            self.queue.ring()?;
        }
        Ok(found)
    }

    fn begin(&mut self, depth: u32) -> Result<()> {
        for _ in 0..depth {
            self.ask()?;
        }
        Ok(self.queue.ring()?)
    }

    fn rest(&mut self, mut left: u32) -> Result<()> {
        while left > 0 {
            left -= u32::from(self.answered()?);
        }
        Ok(())
    }

    fn end(self) -> Result<()> {
        drop(self.queue);
        self.volume.close()?;
        drop(self.memory);
        Ok(self.session.delete_volume(&self.name).map(drop)?)
    }
}

/// One request at a time of `quiet`, while `other` keeps `depth` in flight: nanoseconds that 99 of 100 take at most. What the
/// thread does for the other session between two of them is not in it: only what the adapter does first.
fn quiet_beside(quiet: &mut Party, other: &mut Party, depth: u32, time: Duration) -> Result<f64> {
    let mut times = Vec::with_capacity(1 << 20);
    other.begin(depth)?;
    let began = Instant::now();
    while times.is_empty() || (began.elapsed() < time && times.len() < times.capacity()) {
        other.go_on(AT_ONCE.min(depth))?;
        let asked = Instant::now();
        quiet.begin(1)?;
        while !quiet.answered()? {}
        times.push(u32::try_from(asked.elapsed().as_nanos()).unwrap_or(u32::MAX));
    }
    other.rest(depth)?;
    times.sort_unstable();
    Ok(f64::from(times[(times.len() * 99 / 100).min(times.len() - 1)]))
}

/// The 99th percentile of a session with one request at a time, beside one that keeps 128 in flight and beside one that has
/// one at a time, too.
///
/// # Errors
/// The adapter's; a request that fails.
pub fn quiet(name: &str, plan: Plan) -> Result<Figure> {
    let cores = Cores::two()?;
    let adapter = Embedded::open(DEVICE)?;
    let (mut quiet, mut other) = (Party::new(&adapter)?, Party::new(&adapter)?);
    let mut figure = Figure::new(name, "ns");
    let both = std::cell::RefCell::new((&mut quiet, &mut other));
    let turn = |depth: u32| {
        let both = &both;
        Box::new(move |time: Duration| {
            let (quiet, other) = &mut *both.borrow_mut();
            quiet_beside(quiet, other, depth, time)
        })
    };
    let mut sides: [(&str, crate::rounds::Turn<'_>); 2] =
        [("p99 beside a flood", turn(FLOOD)), ("p99 beside one at a time", turn(1))];
    interleave(&mut figure, plan, cores, &mut sides)?;
    drop(sides);
    quiet.end()?;
    other.end()?;
    Ok(figure)
}

/// Requests a second of a session that wants all it can get and has a limit of [`LIMIT`].
fn rate(party: &mut Party, time: Duration) -> Result<f64> {
    const DEPTH: u32 = 32;
    party.begin(DEPTH)?;
    // What the pause before left in the bucket is not the rate.
    let settled = Instant::now() + Duration::from_millis(40);
    while Instant::now() < settled {
        party.go_on(DEPTH)?;
    }
    let began = Instant::now();
    let mut ended = 0;
    while began.elapsed() < time {
        ended += party.go_on(DEPTH)?;
    }
    let rate = f64::from(ended) / began.elapsed().as_secs_f64();
    party.rest(DEPTH)?;
    Ok(rate)
}

/// Requests a second of a session with a limit, beside the limit: `session` by the limit of its user, `volume` by that of its
/// volume.
///
/// # Errors
/// The adapter's; a request that fails.
pub fn limited(name: &str, plan: Plan) -> Result<Figure> {
    let cores = Cores::two()?;
    let adapter = Embedded::open(DEVICE)?;
    let (mut one, mut two) = (Party::new(&adapter)?, Party::new(&adapter)?);
    let limit = LimitChange { requests: Some(Rate { rate: LIMIT, burst: 0 }), ..LimitChange::default() };
    one.session.set_limits(Limited::Session(one.session.number()), limit)?;
    two.session.set_limits(Limited::Volume(two.name.clone()), limit)?;
    let mut figure = Figure::new(name, "requests/s");
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let wanted = LIMIT as f64;
    interleave(
        &mut figure,
        plan,
        cores,
        &mut [
            ("session", Box::new(|time| rate(&mut one, time))),
            ("volume", Box::new(|time| rate(&mut two, time))),
            ("limit", Box::new(|_| Ok(wanted))),
        ],
    )?;
    one.end()?;
    two.end()?;
    Ok(figure)
}
