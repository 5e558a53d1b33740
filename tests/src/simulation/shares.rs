//! Exact shares: sessions with weights, several queues and requests of several sizes over a device that takes all, one turn
//! after another. What each session got in a turn is counted at the device, and must be what its weight says.
//!
//! The time of a session is what it got, in units of cost, by its weight. What must hold:
//!
//! - Over any turns in which two sessions both had enough waiting their times part by no more than a quantum and a request of
//!   each: nobody is passed over for longer, whatever the sizes and the number of queues.
//! - In one turn nobody gets more than its quantum, to the next whole request.
//! - Who has small requests and at least a quarter of the usual weight gets some in each turn.
//! - Who is alone gets all that its queues may give.

use std::sync::Arc;

use adapter::engine::{Clock, Cost, DEFAULT_WEIGHT, Engine, Port, QUANTUM, QueueId, Terms, TurnLimits, step};
use adapter::mailbox::{Command, PollerShared};
use driver::block::{self, BlockQueue, Completed, DeviceStatus, Geometry, QueueState, Segment, SubmitError};
use tpt::{Access, Domain, GrantSpec, Iova, Key, KeyInstance, LbaRange, RegionKey, RegionSpec, Tables};
use wire::layout::{Entries, SubmissionEntry, opcode};
use wire::ring::ApplicationEnd;
use wire::shm::SharedMemory;
use wire::view::QueueView;

use super::random::Random;

/// Blocks of a session's grant.
const BLOCKS: u64 = 128;
const ENTRIES: u32 = 128;
/// For how many turns a session that asks for nothing more is still counted with: see `share.rs` of the engine.
const LATELY: u64 = 33;

/// Takes everything, and ends it in the same turn.
struct Taking {
    geometry: Geometry,
    commands: Vec<block::Command>,
    ended: usize,
}

impl BlockQueue for Taking {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&mut self, command: &block::Command) -> Result<(), SubmitError> {
        self.commands.push(*command);
        Ok(())
    }

    fn submit_scattered(&mut self, command: &block::Command, _: &[Segment]) -> Result<(), SubmitError> {
        self.submit(command)
    }

    fn commit(&mut self) {}

    fn poll(&mut self, budget: usize, ended: &mut dyn FnMut(Completed)) -> usize {
        let from = self.ended;
        self.ended = self.commands.len().min(from + budget);
        let some = &self.commands[from..self.ended];
        some.iter().for_each(|command| ended(Completed { tag: command.tag, status: DeviceStatus::OK }));
        some.len()
    }

    fn outstanding(&self) -> usize {
        self.commands.len() - self.ended
    }

    fn state(&self) -> QueueState {
        QueueState::Running
    }

    fn arm_interrupt(&mut self, _: bool) {}
}

struct Still;

impl Clock for Still {
    fn now_ns(&self) -> u64 {
        0
    }
}

/// A session with its queues.
struct Session {
    weight: u32,
    /// Bytes of each of its requests.
    length: u32,
    key: Key,
    region: RegionKey,
    ends: Vec<ApplicationEnd<QueueView>>,
    /// Whether it wants all that it can get, or nothing.
    wants: bool,
    /// Since when, and when it got something last, in turns.
    since: u64,
    got: u64,
}

impl Session {
    fn entry(&self) -> SubmissionEntry {
        SubmissionEntry {
            opcode: opcode::READ,
            key: self.key.0,
            length: self.length,
            region: self.region.0,
            ..SubmissionEntry::default()
        }
    }

    fn cost(&self) -> u64 {
        Cost::of(&self.entry()).units
    }

    /// Takes what was answered, and fills the queues if it wants something.
    fn act(&mut self) {
        let entry = self.entry();
        for end in &mut self.ends {
            while end.pop().is_some() {}
            while self.wants && end.free() > 0 && end.push(&entry).is_ok() {}
            end.ring();
        }
    }
}

/// How far apart the times of two sessions came, since both have had enough.
#[derive(Clone, Copy, Default)]
struct Apart {
    is: i128,
    least: i128,
    most: i128,
}

/// One world.
struct Shares {
    engine: Engine<Taking, Still>,
    sessions: Vec<Session>,
    burst: u64,
    turn: u64,
    apart: Vec<Apart>,
    _tables: Tables,
}

impl Shares {
    fn new(rng: &mut Random) -> Self {
        let limits = tpt::Limits { entries: 256, lba_entries: 256, extensions: 0, regions: 16 };
        let mut tables = Tables::new(limits, KeyInstance(1));
        let shared = Arc::new(PollerShared::default());
        let geometry = Geometry {
            block_shift: 9,
            blocks: 1 << 16,
            max_transfer_blocks: 1 << 10,
            max_segments: 1,
            max_zeroes_blocks: 1,
            write_cache: false,
            write_zeroes: false,
            deallocate: false,
            deallocate_zeroes: false,
            compare: false,
        };
        let device = Taking { geometry, commands: Vec::new(), ended: 0 };
        let directory = tpt::Directory::new(tables.published(), 16);
        let mut engine = Engine::new(device, Still, directory, shared.clone(), 4096);
        let burst = 32;
        engine.set_limits(TurnLimits { burst, reap: 4096, ..TurnLimits::default() });
        let mut queue = 0;
        let mut session = |number: u32, rng: &mut Random| {
            let domain = Domain(number + 1);
            let first = u64::from(number) * BLOCKS;
            let ranges = [LbaRange::new(first, BLOCKS).expect("inside")];
            let spec =
                GrantSpec { domain, access: Access::READ, block_shift: 9, ranges: &ranges, shared: true };
            let region =
                RegionSpec { domain, access: Access::READ_WRITE, iova: Iova(1 << 20), bytes: 1 << 20 };
            let key = tables.create(&spec).expect("there is room");
            let region = tables.create_region(&region).expect("there is room");
            let weight = rng.pick(&[25, 50, DEFAULT_WEIGHT, DEFAULT_WEIGHT, 150, 300, 700]);
            let mut end = || {
                let entries = Entries::new(ENTRIES).expect("a power of two");
                let memory = SharedMemory::create("shares", entries.bytes()).expect("memory").0;
                let memory = Arc::new(memory);
                let view = || QueueView::new(memory.clone(), entries).expect("it fits");
                queue += 1;
                let port = Port::new(QueueId(queue), u64::from(number), domain, view(), entries);
                let port = port.with_terms(Terms { weight, ..Terms::default() });
                assert!(shared.send(Command::Attach(Box::new(port))).is_ok(), "the mailbox has room");
                ApplicationEnd::new(view(), entries)
            };
            let ends = (0..rng.between(1, 4)).map(|_| end()).collect();
            let length = 512 * rng.pick(&[1, 1, 8, 32, 33, 64, 128]);
            Session { weight, length, key, region, ends, wants: rng.once_in(2), since: 0, got: 0 }
        };
        let sessions: Vec<Session> = (0..rng.index32(4) + 2).map(|number| session(number, rng)).collect();
        let apart = vec![Apart::default(); sessions.len() * sessions.len()];
        let mut world = Self { engine, sessions, burst: burst.into(), turn: 0, apart, _tables: tables };
        world.engine.turn();
        world
    }

    /// A turn, and what each session got in it.
    fn turn(&mut self) -> Vec<u64> {
        self.turn += 1;
        self.sessions.iter_mut().for_each(Session::act);
        let before = self.engine.queue_mut().commands.len();
        self.engine.turn();
        let mut requests = vec![0; self.sessions.len()];
        for command in &self.engine.queue_mut().commands[before..] {
            requests[usize::try_from(command.lba / BLOCKS).unwrap_or(usize::MAX)] += 1;
        }
        requests
    }

    fn step(&mut self, rng: &mut Random) -> Result<(), String> {
        for session in &mut self.sessions {
            if rng.once_in(60) {
                (session.wants, session.since) = (!session.wants, self.turn);
            }
        }
        let requests = self.turn();
        for (session, &requests) in self.sessions.iter_mut().zip(&requests) {
            session.got = if requests > 0 { self.turn } else { session.got };
        }
        let wanting = self.sessions.iter().filter(|session| session.wants).count();
        for (session, &requests) in self.sessions.iter().zip(&requests) {
            self.check_turn(session, requests, wanting)?;
        }
        for a in 0..requests.len() {
            for b in 0..a {
                self.check_pair((a, requests[a]), (b, requests[b]))?;
            }
        }
        Ok(())
    }

    /// Turns since anybody changed its mind.
    fn calm(&self) -> u64 {
        self.turn - self.sessions.iter().map(|session| session.since).max().unwrap_or(0)
    }

    fn check_turn(&self, session: &Session, requests: u64, wanting: usize) -> Result<(), String> {
        let Session { weight, wants, .. } = *session;
        let (cost, turn) = (session.cost(), self.turn);
        let most = QUANTUM.div_ceil(step(weight)).div_ceil(cost);
        if wanting > 1 && self.calm() > 2 && requests > most {
            return Err(format!("turn {turn}: {requests} requests of {cost}, at most {most} for {weight}"));
        }
        if wanting > 1 && wants && self.calm() > LATELY && cost == 1 && weight >= 25 && requests == 0 {
            let small = self.sessions.iter().all(|session| !session.wants || session.cost() == 1);
            if small {
                return Err(format!("turn {turn}: a session of weight {weight} was passed over"));
            }
        }
        let all = self.burst * session.ends.len() as u64;
        // What was left in others' queues when they stopped wanting comes out first.
        let taking = self.sessions.iter().filter(|session| session.got + LATELY >= turn).count();
        if taking == 1 && wants && self.calm() > LATELY && requests != all {
            return Err(format!("turn {turn}: alone, and {requests} requests instead of {all}"));
        }
        Ok(())
    }

    fn check_pair(&mut self, (a, of_a): (usize, u64), (b, of_b): (usize, u64)) -> Result<(), String> {
        let both = self.sessions[a].wants && self.sessions[b].wants;
        let settled = self.turn > 2 + self.sessions[a].since.max(self.sessions[b].since);
        let apart = &mut self.apart[a * self.sessions.len() + b];
        if !both || !settled {
            *apart = Apart::default();
            return Ok(());
        }
        let time = |at: usize, requests: u64| {
            let session = &self.sessions[at];
            i128::from(requests * session.cost() * step(session.weight))
        };
        apart.is += time(a, of_a) - time(b, of_b);
        apart.least = apart.least.min(apart.is);
        apart.most = apart.most.max(apart.is);
        let most = i128::from(QUANTUM) + time(a, 1) + time(b, 1);
        if apart.most - apart.least > most {
            let of = |at: usize| {
                (self.sessions[at].weight, self.sessions[at].cost(), self.sessions[at].ends.len())
            };
            let text = format!("{:?} and {:?} (weight, cost, queues)", of(a), of(b));
            return Err(format!(
                "turn {}: {text} came {} apart, at most {most}",
                self.turn,
                apart.most - apart.least
            ));
        }
        Ok(())
    }
}

/// One world from a seed: what was wrong in it.
///
/// # Errors
/// What was wrong, and when.
pub fn shares(seed: u64) -> Result<(), String> {
    let mut rng = Random::new(seed);
    let mut world = Shares::new(&mut rng);
    for _ in 0..400 {
        world.step(&mut rng).map_err(|error| format!("seed {seed}: {error}"))?;
    }
    Ok(())
}
