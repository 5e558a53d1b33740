//! The scheduler: engines as their pollers turn them, and everybody else, one step after another.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use adapter::engine::{Clock, Engine, Gates, QueueId};
use driver::block::BlockQueue;
use tpt::Directory;

use super::device::SimQueue;
use super::memory::Pool;
use super::outside::{Actor, Outside, finding};
use super::trace::event;
use super::{Driver, lock};

/// The one clock, as an engine reads it.
pub(super) struct SimClock {
    now: Arc<AtomicU64>,
    read: Arc<AtomicU64>,
}

impl Clock for SimClock {
    fn now_ns(&self) -> u64 {
        let now = self.now.load(Ordering::Relaxed);
        self.read.store(now, Ordering::Relaxed);
        now
    }
}

/// A poller with requests at the device looks up from its sleep this often.
const SLEEP_WITH_WORK: u64 = 100_000_000;
/// The device is stuck when it does nothing for so long.
const DEVICE_TIMEOUT: Duration = Duration::from_millis(300);

/// See the module.
pub(super) struct World {
    pub(super) outside: Arc<Mutex<Outside>>,
    engines: Vec<Engine<SimQueue, SimClock>>,
}

impl World {
    pub(super) fn new(seed: u64, pool: Pool, driver: Driver, kept: usize) -> Self {
        let outside = Arc::new(Mutex::new(Outside::new(seed, pool, kept)));
        let (config, published, now) = {
            let outside = lock(&outside);
            (outside.config.clone(), outside.published(), outside.now.clone())
        };
        let gates = Gates::new(config.engines).expect("a few engines");
        let engine = |number: usize| {
            let (shared, read) = {
                let poller = &lock(&outside).pollers[number];
                (poller.shared.clone(), poller.clock.clone())
            };
            let queue = SimQueue::new(outside.clone(), number, driver);
            let directory = Directory::new(published.clone(), config.resident);
            let clock = SimClock { now: now.clone(), read };
            let mut engine = Engine::new(queue, clock, directory, shared, config.slots);
            engine.set_limits(config.limits);
            engine.set_device_timeout(DEVICE_TIMEOUT);
            let (heard, park_after) = {
                let bells = &lock(&outside).bells;
                (bells.heard, bells.park_after)
            };
            engine.set_park_after(park_after);
            if heard {
                engine.hear_bells();
            }
            if config.bytes {
                let outside = &mut *lock(&outside);
                let bounce = outside.pool.bounce(number);
                outside.bounces.push(bounce.clone());
                engine.set_bounce(bounce);
                engine.set_gates(gates.clone());
            }
            engine
        };
        Self { engines: (0..config.engines).map(engine).collect(), outside }
    }

    /// The whole life of a world.
    pub(super) fn run(&mut self) {
        let steps = lock(&self.outside).config.steps;
        lock(&self.outside).prepare();
        while self.step() < steps {}
        self.calm_down();
        self.end();
    }

    fn step(&mut self) -> u64 {
        let mut outside = lock(&self.outside);
        outside.tick();
        let steps = outside.steps;
        match outside.choose() {
            Actor::Engine(engine) => {
                drop(outside);
                self.poll(engine);
            }
            actor => outside.act(actor),
        }
        steps
    }

    /// What the thread of a poller does: a turn, and when there is nothing to do, sleep.
    fn poll(&mut self, number: usize) {
        let mut outside = lock(&self.outside);
        let now = outside.now();
        let poller = &mut outside.pollers[number];
        if poller.asleep {
            if !poller.woken && poller.bells.is_empty() && poller.until.is_none_or(|until| now < until) {
                return;
            }
            (poller.asleep, poller.sleeping, poller.woken) = (false, false, false);
            event!(outside, "poller wakes", engine = number);
            drop(outside);
            self.up(number);
            return self.hear(number);
        }
        drop(outside);
        let work = self.turn(number);
        if self.engines[number].parked() > 0 && lock(&self.outside).listens() {
            self.hear(number);
        }
        if work > 0 {
            self.engines[number].wake_sleepers();
            return lock(&self.outside).sleepers_woken(number);
        }
        let sleeps = {
            let mut outside = lock(&self.outside);
            outside.calm || outside.rng.once_in(3)
        };
        if sleeps {
            self.sleep(number);
        }
    }

    fn turn(&mut self, number: usize) -> usize {
        let work = self.engines[number].turn();
        lock(&self.outside).turned(number);
        work
    }

    fn sleep(&mut self, number: usize) {
        self.engines[number].queue_mut().arm_interrupt(true);
        let device_wakes = {
            let mut outside = lock(&self.outside);
            outside.pollers[number].sleeping = true;
            outside.config.device_wakes
        };
        if self.turn(number) == 0 && self.engines[number].prepare_sleep(device_wakes) {
            let engine = &self.engines[number];
            let with_work = (engine.in_flight() > 0).then_some(SLEEP_WITH_WORK);
            let due = engine.next_due().and_then(|due| u64::try_from(due.as_nanos()).ok());
            let mut outside = lock(&self.outside);
            let until = with_work.into_iter().chain(due).min().map(|by| outside.now() + by);
            let poller = &mut outside.pollers[number];
            (poller.asleep, poller.until) = (true, until);
            event!(outside, "poller sleeps", engine = number);
        } else {
            lock(&self.outside).pollers[number].sleeping = false;
            self.up(number);
        }
    }

    /// Hears of queues that rang.
    fn hear(&mut self, number: usize) {
        let heard = lock(&self.outside).take_bells(number);
        for queue in heard {
            if self.engines[number].unpark(QueueId(queue)) {
                lock(&self.outside).special[2] += 1;
            }
        }
    }

    /// Awake again.
    fn up(&mut self, number: usize) {
        self.engines[number].end_sleep();
        self.engines[number].wake_sleepers();
        self.engines[number].queue_mut().arm_interrupt(false);
        lock(&self.outside).sleepers_woken(number);
    }

    /// Everybody behaves, the device does its work: all that was asked for must end, and all that was begun.
    fn calm_down(&mut self) {
        lock(&self.outside).calm = true;
        lock(&self.outside).lift_all_limits();
        self.settle("after the faults had stopped", |outside| {
            outside.queues.iter().all(|queue| queue.is_gone() || queue.open.is_empty())
        });
    }

    /// All queues go, all grants and regions end.
    fn end(&mut self) {
        lock(&self.outside).end_everything();
        self.settle("after all was ended", |outside| {
            outside.queues.iter().all(super::queue::AppQueue::is_gone)
        });
        lock(&self.outside).check_empty();
        for (number, engine) in self.engines.iter().enumerate() {
            if engine.in_flight() != 0 {
                finding!("engine {number} has {} requests when nothing is left", engine.in_flight());
            }
        }
    }

    /// Rounds, until nothing is left to do: a bounded number of them.
    fn settle(&mut self, when: &str, done: impl Fn(&Outside) -> bool) {
        let open: usize = lock(&self.outside).queues.iter().map(|queue| queue.open.len()).sum();
        let most = 2000 + 30 * open;
        for _ in 0..most {
            let mut outside = lock(&self.outside);
            for queue in 0..outside.queues.len() {
                if !outside.queues[queue].is_gone() {
                    outside.behave(queue);
                }
            }
            outside.device_finishes();
            let settled = outside.control_settles();
            if settled && outside.device.is_idle() && done(&outside) {
                return;
            }
            let by = if outside.device_keeps_something() { 100_000_000 } else { 1000 };
            outside.steps += 1;
            outside.now.fetch_add(by, Ordering::Relaxed);
            drop(outside);
            for engine in 0..self.engines.len() {
                self.poll(engine);
            }
        }
        let outside = lock(&self.outside);
        let open = outside.queues.iter().flat_map(|queue| &queue.open);
        let left: Vec<_> = open.map(|&number| format!("\n  {:?}", outside.asked[number as usize])).collect();
        let asleep: Vec<_> = outside.pollers.iter().map(|poller| poller.asleep).collect();
        finding!("{when} {most} rounds were not enough; asleep {asleep:?}; left:{}", left.concat());
    }
}
