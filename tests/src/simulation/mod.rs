//! The engine in simulation: clock, device, applications, control plane and faults, all from one seed.
//!
//! A world has one to three engines over one device, applications with queues that park and move, and a control plane that gives and takes
//! grants and regions. Everything but the engines and the tables is simulated (`outside`); each step some actor does
//! something, also in the middle of an engine's turn, when it calls the device. No thread runs beside it, no clock but the
//! simulated one is read: a seed replays exactly.
//!
//! A watcher (`watch`) looks at what can be seen from outside (completions, commands at the device, acknowledgements)
//! and compares it with a model (`model`) that knows what the control plane did. It asks the engine nothing. What must
//! hold:
//!
//! - Each request that was announced ends exactly once, with a status that is right in the very moment in which it is
//!   posted; one that was not announced, or whose slot was written again, never.
//! - Each command at the device continues some open request: its blocks are those of a grant of that domain, with the
//!   right, live when the request started; its memory is the request's, in a region of that domain. Nothing starts under
//!   a grant that is held, closed or drained, nor for a queue that failed or is gone.
//! - A request ends when the device has nothing of it any more; OK means that all of it was done, and the bytes done are
//!   right. A flush that ends well began after it was asked for.
//! - A drain is acknowledged only when nothing uses the grant, region or queue. What ended is not touched any more, and
//!   what was given out is nobody else's.
//! - E_FLUSHED and the error state come only to queues that broke the protocol or go; a cancel ends only what the device
//!   has not got; a deadline only what is late.
//! - In one turn no queue gets more than its share; what each session gets of it is looked at in worlds of their own
//!   (`shares`). When faults have stopped everything ends within a bounded number of
//!   turns, pollers and applications sleep only when nothing waits for them, and in the end nothing is left over.
//!
//! What it does not see: two accesses to shared memory inside one call of the engine, as no one else acts between them (an
//! entry read twice in `AdapterEnd::take`); the order of memory accesses of real threads; a device whose completions lie. For
//! these there are the racing rewriter of [`crate::system`], the loom models of `wire`, and `driver::emu`'s lies.
//!
//! Bugs planted in the engine and the tables, and the seed that found each, counted from 1:
//!
//! | planted bug | seed | found as |
//! |---|---|---|
//! | a request ends with its first piece (released before the device is done) | 1 | ended while the device has commands of it |
//! | active I/O of an entry or region not counted | 1 | the tables panic; an early acknowledgement |
//! | drain acknowledged at once | 1 | drained, and runs a request |
//! | instance, rights, or memory's domain not checked | 1, 1, 23 | a command that no open request explains |
//! | held requests admitted during a modify | 6 | a command that no open request explains |
//! | tail jump not bounded, stale slots executed | 6 | a completion for a request that ended |
//! | a failed queue still executes | 4 | nothing ends within the bound |
//! | a completion posted twice; never | 1; 1 | the ring panics; still running when drained |
//! | a queue gets more than its share of a turn | 1 | more entries were taken than its share |
//! | a wake of the application is lost | 3 | let go of while its application sleeps |
//! | an engine sleeps on held requests; on a flush not taken | 54; 12581 | nothing ends within the bound |
//! | a refused request leaves a count behind | 3 | nothing ends within the bound |
//! | a cancel of what runs | 6 | the device had it |
//! | a deadline after the start | 23 | the device had it |
//! | a tag of a request that has ended resolves | 273 | a command of a request that failed |
//! | a flush ends requests that came after it | 3 | no flush began after it was asked for |
//! | a request goes on after a piece of it failed | 3 | a command though an earlier one failed |
//! | the bytes done are those of the whole request | 1 | the bytes done are wrong |
//! | a gate is not looked at; acknowledged early; out of order; not waited for | 9; 105; 105; 73 | a part is put back to what it was |
//! | a queue is parked though it rang; without asking to be woken; and never let go of | 5; 3; 3 | nothing ends within the bound |
//! | a queue is handed to another engine while it runs | 5 | handed back, and runs a request |
//! | a merge that is a byte too short | 1 | a merged part of two writers |
#![allow(clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::similar_names)] // numbers of its own

mod bells;
mod bytes;
mod client;
mod control;
mod device;
mod ends;
mod files;
mod limits;
mod memory;
mod model;
mod outside;
mod queue;
mod random;
mod shares;
mod trace;
mod watch;
mod world;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use driver::block::Command;

pub use files::{Seen, files};
use memory::Pool;
pub use shares::shares;
use world::World;

/// What the watcher found.
struct Found(String);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device driver that is wrong now and then: the watcher has to notice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Driver {
    /// It is right.
    Right,
    /// It takes the block after the one that was granted.
    OtherBlock,
    /// It takes the memory after the one that was granted.
    OtherMemory,
    /// It takes a block more.
    Longer,
    /// It reads where a write was asked for, and the reverse.
    OtherWay,
    /// It says that a command has ended that the device still has.
    EndsEarly,
    /// It loses a completion.
    Loses,
}

impl Driver {
    /// Those that are wrong.
    pub const WRONG: [Self; 6] =
        [Self::OtherBlock, Self::OtherMemory, Self::Longer, Self::OtherWay, Self::EndsEarly, Self::Loses];

    fn bend(self, command: &Command) -> Command {
        use driver::block::Operation;
        let mut bent = *command;
        if command.operation == Operation::Flush {
            return bent;
        }
        match self {
            Self::OtherBlock => bent.lba += 1,
            Self::OtherMemory if command.operation.moves_data() => bent.data.0 += model::BLOCK,
            Self::Longer => bent.blocks += 1,
            Self::OtherWay => match command.operation {
                Operation::Read => bent.operation = Operation::Write { fua: false },
                Operation::Write { .. } => bent.operation = Operation::Read,
                _ => {}
            },
            _ => {}
        }
        bent
    }
}

/// What came of one seed.
pub struct Outcome {
    /// Steps that were made.
    pub steps: u64,
    /// A hash over all that happened.
    pub hash: u64,
    /// Completions, by status.
    pub statuses: [u64; STATUSES],
    /// Requests with a scatter list, and writes of bytes, that ended well, parked queues that rang and were
    /// heard, and queues that moved.
    pub special: [u64; 4],
    /// What was wrong.
    pub finding: Option<Finding>,
}

/// More than there are statuses.
pub const STATUSES: usize = 32;

/// Something that must not happen.
pub struct Finding {
    /// The seed that shows it.
    pub seed: u64,
    /// What it is.
    pub text: String,
    /// What happened before.
    pub events: Vec<String>,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for event in &self.events {
            writeln!(f, "{event}")?;
        }
        writeln!(f, "found: {}", self.text)?;
        write!(f, "PORTCULLIS_SEED={} replays it", self.seed)
    }
}

thread_local! {
    /// While a thread simulates: where its last panic was.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// From now on a panic in a simulation prints nothing: it is a finding, and is reported as one.
pub fn hush() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let simulates = PLACE.with_borrow_mut(|place| match place {
            Some(place) => {
                *place = info.location().map(ToString::to_string).unwrap_or_default();
                true
            }
            None => false,
        });
        if !simulates {
            usual(info);
        }
    }));
}

/// Simulates, one seed after another.
pub struct Simulator {
    pool: Option<Pool>,
    /// So many events are kept to be printed with a finding.
    pub events: usize,
}

impl Default for Simulator {
    fn default() -> Self {
        Self { pool: None, events: 200 }
    }
}

impl Simulator {
    /// One world from its beginning to its end.
    pub fn run(&mut self, seed: u64, driver: Driver) -> Outcome {
        let pool = self.pool.take().unwrap_or_default();
        PLACE.set(Some(String::new()));
        let mut world = World::new(seed, pool, driver, self.events);
        let result = catch_unwind(AssertUnwindSafe(|| world.run()));
        let place = PLACE.take().unwrap_or_default();
        let outside = world.outside.clone();
        let mut outside = lock(&outside);
        let (steps, hash) = (outside.steps, outside.trace.hash());
        let (statuses, special) = (outside.statuses, outside.special);
        let finding = result.err().map(|payload| {
            let text = match payload.downcast::<Found>() {
                Ok(found) => found.0,
                Err(payload) => {
                    let of_str = payload.downcast_ref::<&str>().map(ToString::to_string);
                    let text = of_str.or_else(|| payload.downcast_ref::<String>().cloned());
                    format!("a panic at {place}: {}", text.unwrap_or_default())
                }
            };
            Finding { seed, text, events: outside.trace.last() }
        });
        if finding.is_some() {
            std::mem::forget(world); // Its engines may be in no state to be dropped.
        } else {
            self.pool = Some(std::mem::take(&mut outside.pool));
        }
        Outcome { steps, hash, statuses, special, finding }
    }
}
