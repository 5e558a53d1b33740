//! Queues that are not in use, and those that move.
//!
//! Engines park what is not in use, and hear of it when its eventfd is written, as a real poller does: between turns and
//! when it wakes up, a few queues at a time. Or nobody hears anything, and the engines look at parked queues themselves.
//! Queues move between engines, as `adapter::control` moves them: one at a time, asked for whatever it is doing.
//!
//! It has chances of its own, so that a world without any of this is what it always was.

use std::time::Duration;

use adapter::engine::QueueId;
use adapter::mailbox::{Command, Moving};

use super::outside::{Outside, finding};
use super::random::Random;
use super::trace::event;

/// See the module.
pub(super) struct Bells {
    rng: Random,
    /// Pollers hear the eventfds of queues.
    pub(super) heard: bool,
    /// How soon a queue is parked that is not in use.
    pub(super) park_after: Duration,
    /// Somebody writes an eventfd for nothing once in so many steps of applications; never with 0.
    noise: u64,
    /// A queue is to move once in so many steps of applications; never with 0. One is on its way.
    moves: u64,
    moving: bool,
}

impl Bells {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Random::new(!seed);
        let never = Duration::from_secs(1 << 30);
        let (heard, park_after) = match rng.below(4) {
            0 => (true, never),
            1 => (false, Duration::from_nanos(rng.pick(&[0, 0, 20_000]))),
            _ => (true, Duration::from_nanos(rng.pick(&[0, 0, 20_000, 200_000]))),
        };
        let noise = if rng.once_in(3) { rng.between(1, 10) } else { 0 };
        let moves = if rng.once_in(2) { rng.between(4, 60) } else { 0 };
        Self { rng, heard, park_after, noise, moves, moving: false }
    }
}

impl Outside {
    /// An application writes the eventfd of its queue.
    pub(super) fn ring_bell(&mut self, queue: usize) {
        event!(self, "bell", queue = queue);
        let bells = &mut self.pollers[self.queues[queue].engine].bells;
        let queue = queue as u32;
        // An eventfd that is written twice is one event, and stands where it stood.
        if !bells.contains(&queue) {
            bells.push(queue);
        }
    }

    /// Whoever has an eventfd may write it, whenever they like.
    pub(super) fn make_noise(&mut self) {
        if self.queues.is_empty() || self.calm || !self.bells.rng.once_in(self.bells.noise) {
            return;
        }
        let queue = self.bells.rng.index(self.queues.len());
        if !self.queues[queue].is_gone() {
            self.ring_bell(queue);
        }
    }

    /// The control plane moves queues.
    pub(super) fn move_queues(&mut self) {
        if self.bells.rng.once_in(2) {
            self.take_moved();
        }
        if self.pollers.len() < 2
            || self.calm
            || self.bells.moving
            || !self.bells.rng.once_in(self.bells.moves)
        {
            return;
        }
        let queue = self.bells.rng.index(self.queues.len().max(1));
        let Some(its) = self.queues.get(queue).filter(|its| its.is_attached()) else { return };
        let engine = its.engine;
        self.bells.moving = true;
        event!(self, "ask for", queue = queue, engine = engine);
        self.send(engine, Command::Give(Box::new(Moving { queue: QueueId(queue as u32), port: None })));
    }

    /// A queue that was handed back goes to another engine, unless it is to end.
    pub(super) fn take_moved(&mut self) {
        let moved =
            self.pollers.iter().enumerate().find_map(|(from, p)| Some((from, p.shared.take_moved()?)));
        let Some((from, moving)) = moved else { return };
        self.bells.moving = false;
        let (queue, Some(port)) = (moving.queue.0 as usize, moving.port) else { return };
        let runs = |&&number: &&u32| {
            let asked = &self.asked[number as usize];
            asked.bound.is_some() && !self.is_unseen(asked)
        };
        if let Some(&number) = self.queues[queue].open.iter().find(runs) {
            finding!("queue {queue} was handed back, and runs {:?}", self.asked[number as usize]);
        }
        if !self.queues[queue].is_attached() {
            return;
        }
        let others = self.pollers.len() - 1;
        let to = (from + 1 + self.bells.rng.index(others)) % (others + 1);
        event!(self, "move", queue = queue, from = from, to = to);
        self.special[3] += 1;
        self.pollers[from].queues.retain(|&other| other as usize != queue);
        self.pollers[to].queues.push(queue as u32);
        // Its deadlines count from when this one takes them, by a clock that it may have read earlier.
        let clock = self.pollers[to].clock();
        for &number in &self.queues[queue].open {
            let asked = &mut self.asked[number as usize];
            asked.clock = asked.clock.min(clock);
        }
        (self.queues[queue].engine, self.queues[queue].taken_in_turn) = (to, 0);
        self.send(to, Command::Attach(Box::new(port)));
    }

    /// Whether a busy poller looks now.
    pub(super) fn listens(&mut self) -> bool {
        self.bells.heard && self.bells.rng.once_in(4)
    }

    /// What the kernel gives a poller at once.
    pub(super) fn take_bells(&mut self, engine: usize) -> Vec<u32> {
        let many = 1 + self.bells.rng.index(4);
        let bells = &mut self.pollers[engine].bells;
        let many = many.min(bells.len());
        bells.drain(..many).collect()
    }
}
