//! A thread that turns an engine: busy while there is work, asleep when there is none.
//!
//! While it is busy it also hears of queues that its engine has parked: it looks at its epoll set now and then, between
//! turns and without waiting. With none parked a busy poller makes no system call.

mod patience;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use driver::block::BlockQueue;
use rustix::event::{EventfdFlags, epoll};

use crate::engine::{Clock, Engine, QueueId};
use crate::mailbox::{Command, PollerShared};
use patience::{Patience, Slow};

/// What a poller does when it finds nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Idle {
    /// Spins for a while, then sleeps until a doorbell, an interrupt or a command wakes it. A wake across cores costs
    /// tens of microseconds, so it spins at least that long where that is of use: it learns how long is.
    Adaptive {
        /// How long it spins before it has learnt anything.
        spin: Duration,
    },
    /// Spins for ever and makes no system call at all. It hears no eventfd: at queues that are not in use it looks in turn.
    Spin,
}

impl Default for Idle {
    fn default() -> Self {
        Self::Adaptive { spin: Duration::from_micros(100) }
    }
}

/// With requests at the device, a sleeper looks at the clock this often, to find commands that are stuck.
const SLEEP_WITH_WORK: Duration = Duration::from_millis(100);

/// Events taken from the kernel at a time.
const EVENTS: usize = 64;
/// A busy poller with parked queues looks for events when it has done so much, turns and what they did together, ...
const LISTEN_AFTER: usize = 256;
/// ... and no more often than this.
const LISTEN_INTERVAL: Duration = Duration::from_micros(30);
/// The datum of events that are no queue's.
const NO_QUEUE: u64 = u64::MAX;

/// What wakes a poller: an epoll set of edge-triggered eventfds that are never read.
pub struct Waker {
    epoll: OwnedFd,
    own: OwnedFd,
    sleeping: AtomicBool,
}

impl Waker {
    /// A waker of its own for each poller.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let own = eventfd()?;
        let waker = Self { epoll, own, sleeping: AtomicBool::new(false) };
        waker.add(waker.own.as_fd(), NO_QUEUE)?;
        Ok(waker)
    }

    /// Lets writes to the eventfd of `queue` wake the poller, until it is closed or [`Waker::forget`] is called.
    pub fn watch(&self, eventfd: BorrowedFd<'_>, queue: QueueId) -> io::Result<()> {
        self.add(eventfd, u64::from(queue.0))
    }

    fn add(&self, eventfd: BorrowedFd<'_>, datum: u64) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, eventfd, epoll::EventData::new_u64(datum), flags)?)
    }

    /// Undoes [`Waker::watch`]. Needed while the application still holds the descriptor's description.
    pub fn forget(&self, eventfd: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.epoll, eventfd);
    }

    /// Wakes the poller if it sleeps. Call after a command was queued.
    pub fn wake(&self) {
        // Pairs with the fence in `sleep`: either the poller sees the command, or this sees it sleeping.
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) {
            // Only the adapter holds this description and never reads it; should the count ever be full the poller is awake.
            let _ = rustix::io::write(&self.own, &1u64.to_ne_bytes());
        }
    }

    /// Sleeps until something happens, if it may. Returns for how long, if it did.
    fn sleep(&self, bells: &mut Bells, may_sleep: impl FnOnce() -> Option<Nap>) -> Option<Duration> {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let slept = may_sleep().map(|Nap(timeout)| {
            let since = Instant::now();
            bells.hear(self, timeout);
            since.elapsed()
        });
        self.sleeping.store(false, Ordering::Relaxed);
        slept
    }
}

/// For how long a poller may sleep; `None` is for ever.
struct Nap(Option<Duration>);

/// The queues whose eventfds were written. Each event is only a hint to look: anybody who has an eventfd may write it.
struct Bells {
    events: Vec<epoll::Event>,
    /// What was done since the last look, and when that was.
    done: usize,
    heard: Instant,
}

impl Bells {
    fn new() -> Self {
        Self { events: Vec::with_capacity(EVENTS), done: 0, heard: Instant::now() }
    }

    /// Whether it is time to look, after a turn that did so much.
    #[inline]
    fn are_due(&mut self, work: usize) -> bool {
        self.done += 1 + work;
        if self.done < LISTEN_AFTER {
            return false;
        }
        self.done = 0;
        let now = Instant::now();
        let due = now.saturating_duration_since(self.heard) >= LISTEN_INTERVAL;
        if due {
            self.heard = now;
        }
        due
    }

    /// Waits for events; `None` is for ever.
    fn hear(&mut self, waker: &Waker, timeout: Option<Duration>) {
        let timeout =
            timeout.map(|t| rustix::time::Timespec { tv_sec: 0, tv_nsec: i64::from(t.subsec_nanos()) });
        self.events.clear();
        // An interrupted or failed wait is only a spurious wake.
        let _ = epoll::wait(&waker.epoll, rustix::buffer::spare_capacity(&mut self.events), timeout.as_ref());
    }

    /// Tells the engine of those that were heard.
    fn tell<Q: BlockQueue, C: Clock>(&mut self, engine: &mut Engine<Q, C>) {
        for event in self.events.drain(..) {
            if let Ok(queue) = u32::try_from(event.data.u64()) {
                engine.unpark(QueueId(queue));
            }
        }
    }
}

/// A non-blocking eventfd.
pub fn eventfd() -> io::Result<OwnedFd> {
    Ok(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// The control plane's handle on a poller.
pub struct Poller {
    shared: Arc<PollerShared>,
    waker: Arc<Waker>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Poller {
    /// Starts a thread that turns `engine`. `started` runs on it first; `interrupt` wakes it, if the device has one.
    pub fn spawn<Q: BlockQueue + 'static, C: Clock + 'static>(
        name: String,
        engine: Engine<Q, C>,
        shared: Arc<PollerShared>,
        idle: Idle,
        interrupt: Option<OwnedFd>,
        started: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let waker = Arc::new(Waker::new()?);
        let stop = Arc::new(AtomicBool::new(false));
        if let Some(interrupt) = &interrupt {
            waker.add(interrupt.as_fd(), NO_QUEUE)?;
        }
        let (its_waker, its_stop) = (waker.clone(), stop.clone());
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            crate::resident::touch_stack();
            started();
            run(engine, &its_waker, &its_stop, idle, interrupt.is_some());
        })?;
        Ok(Self { shared, waker, stop, thread: Some(thread) })
    }

    /// A handle on an engine that the caller turns.
    pub fn embedded(shared: Arc<PollerShared>) -> io::Result<Self> {
        Ok(Self { shared, waker: Arc::new(Waker::new()?), stop: Arc::default(), thread: None })
    }

    /// Sends a command and wakes the poller; gives the command back if too many wait.
    pub fn send(&self, command: Command) -> Result<(), Command> {
        self.shared.send(command)?;
        self.waker.wake();
        Ok(())
    }

    /// What it shares with the control plane.
    pub fn shared(&self) -> &PollerShared {
        &self.shared
    }

    /// What wakes it.
    pub fn waker(&self) -> &Waker {
        &self.waker
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Between two turns that find nothing. PAUSE says that another processor is waited for: the other thread of this core gets on
/// with it, and a hypervisor takes the core away for it. A device is not helped by that, and what it has ended is found the
/// later.
#[inline]
fn rest<Q: BlockQueue, C: Clock>(engine: &Engine<Q, C>) {
    if !engine.device_is_busy() {
        std::hint::spin_loop();
    }
}

fn run<Q: BlockQueue, C: Clock>(
    mut engine: Engine<Q, C>,
    waker: &Waker,
    stop: &AtomicBool,
    idle: Idle,
    device_wakes: bool,
) {
    let Idle::Adaptive { spin } = idle else {
        while !stop.load(Ordering::Relaxed) {
            if engine.turn() > 0 {
                engine.wake_sleepers();
            } else {
                rest(&engine);
            }
        }
        return;
    };
    engine.hear_bells();
    let mut bells = Bells::new();
    let mut patience = Patience::new(spin);
    let mut slow = Slow::default();
    let mut woken = false;
    while !stop.load(Ordering::Relaxed) {
        let work = engine.turn();
        if work > 0 {
            engine.wake_sleepers();
            patience.found();
            slow.found();
        }
        if std::mem::take(&mut woken) {
            // What it was woken for came first.
            engine.queue_mut().arm_interrupt(false);
            if work == 0 {
                // For nothing: whoever did that does not keep it awake.
                if engine.device_is_busy() { slow.stay() } else { patience.lose() }
            }
        }
        if engine.parked() > 0 && bells.are_due(work) {
            bells.hear(waker, Some(Duration::ZERO));
            bells.tell(&mut engine);
        }
        if work > 0 {
            continue;
        }
        rest(&engine);
        // Of a device nothing is learnt. One that would not wake it is polled until it has ended all, and one that would until
        // it takes long.
        let on_device = engine.device_is_busy();
        let gives_up = if on_device { device_wakes && slow.is_so() } else { patience.is_lost() };
        if !gives_up {
            continue;
        }
        engine.queue_mut().arm_interrupt(true);
        let may_sleep = || {
            let may =
                !stop.load(Ordering::Relaxed) && engine.turn() == 0 && engine.prepare_sleep(device_wakes);
            // Only now is it known what that turn left to its limits.
            let with_work = (engine.in_flight() > 0).then_some(SLEEP_WITH_WORK);
            let until_due = engine.next_due().map(|due| due.min(SLEEP_WITH_WORK));
            may.then(|| Nap(with_work.into_iter().chain(until_due).min()))
        };
        let slept = waker.sleep(&mut bells, may_sleep);
        engine.end_sleep();
        bells.tell(&mut engine);
        match slept {
            Some(slept) => {
                if !on_device {
                    patience.slept(slept);
                }
                woken = true;
            }
            None => {
                patience.begin_again();
                engine.wake_sleepers();
                engine.queue_mut().arm_interrupt(false);
            }
        }
    }
}
