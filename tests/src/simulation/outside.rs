//! Everything but the engines: the device, applications, control plane, and the watcher with its model.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use adapter::engine::{Bounce, TurnLimits};
use adapter::mailbox::{Command, PollerShared};
use driver::block::Geometry;
use tpt::{KeyInstance, Limits, Published, Tables};

use super::bells::Bells;
use super::client::Client;
use super::control::Control;
use super::device::Device;
use super::limits::Limits as SimLimits;
use super::memory::{Memories, Pool};
use super::model::Model;
use super::queue::AppQueue;
use super::random::Random;
use super::trace::{Trace, event};
use super::watch::Asked;

/// What a seed decides once: the size of the world and how wild it is. Each world leaves out some things altogether, so
/// that the others meet undisturbed.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) engines: usize,
    pub(super) clients: usize,
    pub(super) domains: u32,
    pub(super) steps: u64,
    pub(super) entries: u32,
    pub(super) lba_entries: u32,
    pub(super) resident: usize,
    pub(super) slots: u16,
    pub(super) limits: TurnLimits,
    pub(super) depth: usize,
    pub(super) geometry: Geometry,
    pub(super) device_wakes: bool,
    /// Once in so many calls of the device something else happens in the middle of a turn; never with 0. So below.
    pub(super) interleave: u64,
    pub(super) device_errors: u64,
    pub(super) full: u64,
    pub(super) keeps: u64,
    pub(super) resets: u64,
    pub(super) gone: u64,
    pub(super) invalid: u64,
    pub(super) violations: u64,
    pub(super) rewrites: u64,
    pub(super) detaches: u64,
    pub(super) flood: bool,
    pub(super) mute: u64,
    pub(super) deadlines: u64,
    pub(super) bytes: bool,
    pub(super) lists: bool,
    pub(super) modify: u64,
    pub(super) revoke: u64,
    /// How often each kind of actor is chosen: engines, applications, device, control plane.
    pub(super) weights: [u64; 4],
}

/// Regions that there can be at once.
pub(super) const REGIONS: u32 = 10;

impl Config {
    pub(super) fn new(rng: &mut Random) -> Self {
        let often = |rng: &mut Random, low, high| if rng.once_in(2) { 0 } else { rng.between(low, high) };
        let sometimes = |rng: &mut Random, low, high| if rng.once_in(4) { rng.between(low, high) } else { 0 };
        let transfer = rng.pick(&[1, 2, 3, 8, 64]);
        Self {
            engines: rng.pick(&[1, 1, 2, 2, 3]),
            clients: rng.between(1, 6) as usize,
            domains: rng.between(1, 4) as u32,
            steps: rng.pick(&[250, 500, 500, 900, 1600]),
            entries: rng.pick(&[48, 64, 80, 128]),
            lba_entries: rng.pick(&[24, 64, 256]),
            resident: rng.pick(&[1, 1, 2, 4]),
            slots: rng.pick(&[1, 3, 6, 12, 24, 48, 64]),
            limits: TurnLimits {
                burst: rng.pick(&[1, 2, 3, 8, 32]),
                reap: rng.pick(&[1, 2, 8, 256]),
                commands: rng.pick(&[1, 2, 16]),
                retries: rng.pick(&[1, 2, 4, 64]),
                pieces: rng.pick(&[1, 2, 4, 16]),
            },
            depth: rng.pick(&[1, 2, 4, 8, 16, 32, 64]),
            geometry: Geometry {
                block_shift: 9,
                blocks: rng.pick(&[256, 512, 2048]),
                max_transfer_blocks: transfer,
                max_segments: rng.pick(&[1, 2, 3, 8, 32]),
                max_zeroes_blocks: rng.pick(&[1, 4, 1 << 16]),
                write_cache: true,
                write_zeroes: !rng.once_in(6),
                deallocate: !rng.once_in(3),
                deallocate_zeroes: rng.once_in(2),
                compare: !rng.once_in(6),
            },
            device_wakes: rng.once_in(2),
            interleave: often(rng, 2, 12),
            device_errors: often(rng, 3, 40),
            full: often(rng, 3, 30),
            keeps: sometimes(rng, 20, 200),
            resets: sometimes(rng, 20, 150),
            gone: if rng.once_in(16) { rng.between(60, 300) } else { 0 },
            invalid: often(rng, 2, 20),
            violations: sometimes(rng, 20, 100),
            rewrites: sometimes(rng, 5, 40),
            detaches: often(rng, 20, 150),
            flood: rng.once_in(3),
            mute: sometimes(rng, 2, 6),
            deadlines: often(rng, 2, 12),
            bytes: rng.once_in(3),
            lists: rng.once_in(3),
            modify: often(rng, 2, 12),
            revoke: often(rng, 2, 16),
            weights: [rng.between(4, 12), rng.between(3, 10), rng.between(2, 10), rng.between(1, 4)],
        }
    }
}

/// What the watcher and the control plane know of one poller.
pub(super) struct Poller {
    pub(super) shared: Arc<PollerShared>,
    /// What its engine's clock said last.
    pub(super) clock: Arc<AtomicU64>,
    /// Its queues that are attached, by number.
    pub(super) queues: Vec<u32>,
    /// About to sleep, and asleep until an event or this moment.
    pub(super) sleeping: bool,
    pub(super) asleep: bool,
    pub(super) until: Option<u64>,
    /// A command came, or the device raised the interrupt while it was armed.
    pub(super) woken: bool,
    /// Queues whose eventfds were written since it heard of them.
    pub(super) bells: Vec<u32>,
    pub(super) armed: bool,
    pub(super) turns: u64,
    /// The event at which the last flush that the device executed was submitted, by how it ended: well or not.
    pub(super) flushed_ok: u64,
    pub(super) flushed_badly: u64,
    /// The event at which the last read or write for a write of bytes ended badly.
    pub(super) own_failed: u64,
}

impl Poller {
    pub(super) fn clock(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }
}

/// Who acts next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Actor {
    Engine(usize),
    Client,
    Device,
    Control,
}

/// See the module.
pub(super) struct Outside {
    pub(super) config: Config,
    pub(super) rng: Random,
    pub(super) trace: Trace,
    pub(super) steps: u64,
    /// Completions seen, by status.
    pub(super) statuses: [u64; super::STATUSES],
    pub(super) special: [u64; 4],
    /// Nanoseconds, for every clock there is.
    pub(super) now: Arc<AtomicU64>,
    pub(super) tables: Tables,
    pub(super) model: Model,
    pub(super) device: Device,
    pub(super) memories: Memories,
    pub(super) control: Control,
    pub(super) limits: SimLimits,
    pub(super) pollers: Vec<Poller>,
    pub(super) clients: Vec<Client>,
    pub(super) queues: Vec<AppQueue>,
    pub(super) asked: Vec<Asked>,
    pub(super) pool: Pool,
    /// Faults have stopped, nothing new is asked for, everything has to come to its end.
    pub(super) calm: bool,
    /// Requests that move no data cannot be told apart any more.
    pub(super) blind: bool,
    pub(super) blind_to_all: bool,
    /// Memory of the engines for writes of bytes, and whether there was such a write.
    pub(super) bounces: Vec<Bounce>,
    pub(super) bytes_seen: bool,
    pub(super) bells: Bells,
}

/// A finding: ends the simulation of this seed.
macro_rules! finding {
    ($($text:tt)*) => { std::panic::panic_any(super::Found(format!($($text)*))) };
}
pub(super) use finding;

impl Outside {
    pub(super) fn new(seed: u64, pool: Pool, kept: usize) -> Self {
        let mut rng = Random::new(seed);
        let config = Config::new(&mut rng);
        let limits = Limits {
            entries: config.entries,
            lba_entries: config.lba_entries,
            extensions: 0,
            regions: REGIONS,
        };
        let pollers = (0..config.engines).map(|_| Poller {
            shared: Arc::default(),
            clock: Arc::default(),
            queues: Vec::new(),
            sleeping: false,
            asleep: false,
            until: None,
            woken: false,
            bells: Vec::new(),
            armed: false,
            turns: 0,
            flushed_ok: 0,
            flushed_badly: 0,
            own_failed: 0,
        });
        let clients = (0..config.clients).map(|_| Client::new(1 + rng.index32(config.domains))).collect();
        Self {
            tables: Tables::new(limits, KeyInstance(1)),
            model: Model::new(config.entries, REGIONS),
            device: Device::new(config.engines, config.geometry.blocks),
            memories: Memories::new(REGIONS as usize),
            control: Control::default(),
            limits: SimLimits::new(seed),
            pollers: pollers.collect(),
            clients,
            queues: Vec::new(),
            asked: vec![Asked::nothing()],
            trace: Trace::new(kept),
            steps: 0,
            statuses: [0; super::STATUSES],
            special: [0; 4],
            now: Arc::new(AtomicU64::new(1_000_000)),
            calm: false,
            blind: false,
            blind_to_all: false,
            bounces: Vec::new(),
            bytes_seen: false,
            bells: Bells::new(seed),
            pool,
            config,
            rng,
        }
    }

    pub(super) fn published(&self) -> Arc<Published> {
        self.tables.published()
    }

    /// The number of the last event: a moment, to compare others with.
    #[inline]
    pub(super) fn moment(&self) -> u64 {
        self.trace.count
    }

    #[inline]
    pub(super) fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// Lets time pass.
    pub(super) fn tick(&mut self) {
        self.steps += 1;
        let by =
            if self.rng.once_in(400) { self.rng.between(1, 400) * 1_000_000 } else { self.rng.below(3000) };
        self.now.fetch_add(by, Ordering::Relaxed);
    }

    pub(super) fn choose(&mut self) -> Actor {
        let [engine, client, device, control] = self.config.weights;
        let at = self.rng.below(engine + client + device + control);
        if at < engine {
            Actor::Engine(self.rng.index(self.pollers.len()))
        } else if at < engine + client {
            Actor::Client
        } else if at < engine + client + device {
            Actor::Device
        } else {
            Actor::Control
        }
    }

    /// One step of anybody but an engine.
    pub(super) fn act(&mut self, actor: Actor) {
        match actor {
            Actor::Client => {
                self.make_noise();
                self.move_queues();
                self.client_step();
            }
            Actor::Device => self.device_step(),
            Actor::Control => self.control_step(),
            Actor::Engine(_) => {}
        }
    }

    /// In the middle of a turn of engine `engine`, when it called the device: others may act now.
    pub(super) fn interleave(&mut self, engine: usize) {
        if self.calm || !self.rng.once_in(self.config.interleave) {
            return;
        }
        // What the engine answered so far it answered in the world as it still is.
        self.scan(engine);
        self.tick();
        let actor = loop {
            match self.choose() {
                Actor::Engine(_) => {}
                other => break other,
            }
        };
        self.act(actor);
    }

    /// The control plane's word to a poller, which wakes it.
    pub(super) fn send(&mut self, poller: usize, command: Command) {
        let poller = &mut self.pollers[poller];
        assert!(poller.shared.send(command).is_ok(), "the mailbox is large enough for a simulation");
        poller.woken |= poller.sleeping;
    }

    /// After a turn.
    pub(super) fn turned(&mut self, engine: usize) {
        self.pollers[engine].turns += 1;
        self.scan(engine);
        self.look_at_tickets(engine);
        for at in 0..self.pollers[engine].queues.len() {
            let number = self.pollers[engine].queues[at] as usize;
            self.queues[number].taken_in_turn = 0;
        }
        event!(self, "turn", engine = engine);
    }

    /// The poller made the wake calls that were due: applications whose word is cleared are awake.
    pub(super) fn sleepers_woken(&mut self, engine: usize) {
        for &number in &self.pollers[engine].queues {
            let queue = &mut self.queues[number as usize];
            queue.woken |= queue.sleeping && !queue.wait_word();
        }
    }
}
