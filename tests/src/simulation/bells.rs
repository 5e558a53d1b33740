//! Queues that are not in use: their engines park them, and hear of them when their eventfds are written, as a real
//! poller does: between turns, a few at a time, or all that the kernel has when they wake up. Or nobody hears anything, and
//! the engines look at parked queues themselves.
//!
//! It has chances of its own, so that a world without any of this is what it always was.

use std::time::Duration;

use super::outside::Outside;
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
        Self { rng, heard, park_after, noise }
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
