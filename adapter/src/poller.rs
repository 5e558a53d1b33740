//! A thread that turns an engine: busy while there is work, asleep when there is none.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use driver::block::BlockQueue;
use rustix::event::{EventfdFlags, epoll};

use crate::engine::{Clock, Engine};
use crate::mailbox::{Command, PollerShared};

/// What a poller does when it finds nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Idle {
    /// Spins for a while, then sleeps until a doorbell, an interrupt or a command wakes it. A wake across cores costs
    /// tens of microseconds, so it spins at least that long.
    Adaptive {
        /// How long it spins.
        spin: Duration,
    },
    /// Spins for ever and makes no system call at all.
    Spin,
}

impl Default for Idle {
    fn default() -> Self {
        Self::Adaptive { spin: Duration::from_micros(100) }
    }
}

/// With requests at the device, a sleeper looks at the clock this often, to find commands that are stuck.
const SLEEP_WITH_WORK: Duration = Duration::from_millis(100);

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
        waker.watch(waker.own.as_fd())?;
        Ok(waker)
    }

    /// Lets writes to `eventfd` wake the poller, until it is closed or [`Waker::forget`] is called.
    pub fn watch(&self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, eventfd, epoll::EventData::new_u64(0), flags)?)
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

    fn sleep(&self, may_sleep: impl FnOnce() -> bool, timeout: Option<Duration>) {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if may_sleep() {
            let timeout =
                timeout.map(|t| rustix::time::Timespec { tv_sec: 0, tv_nsec: i64::from(t.subsec_nanos()) });
            let mut events = [const { std::mem::MaybeUninit::<epoll::Event>::uninit() }; 16];
            // An interrupted or failed wait is only a spurious wake.
            let _ = epoll::wait(&self.epoll, &mut events, timeout.as_ref());
        }
        self.sleeping.store(false, Ordering::Relaxed);
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
            waker.watch(interrupt.as_fd())?;
        }
        let (its_waker, its_stop) = (waker.clone(), stop.clone());
        crate::memory::map_code();
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            crate::memory::touch_stack();
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

fn run<Q: BlockQueue, C: Clock>(
    mut engine: Engine<Q, C>,
    waker: &Waker,
    stop: &AtomicBool,
    idle: Idle,
    device_wakes: bool,
) {
    let mut idle_since: Option<Instant> = None;
    while !stop.load(Ordering::Relaxed) {
        if engine.turn() > 0 {
            engine.wake_sleepers();
            idle_since = None;
            continue;
        }
        std::hint::spin_loop();
        let Idle::Adaptive { spin } = idle else { continue };
        let since = *idle_since.get_or_insert_with(Instant::now);
        if since.elapsed() < spin {
            continue;
        }
        let timeout = (engine.in_flight() > 0).then_some(SLEEP_WITH_WORK);
        engine.queue_mut().arm_interrupt(true);
        waker.sleep(
            || !stop.load(Ordering::Relaxed) && engine.turn() == 0 && engine.prepare_sleep(device_wakes),
            timeout,
        );
        engine.end_sleep();
        engine.wake_sleepers();
        engine.queue_mut().arm_interrupt(false);
        idle_since = None;
    }
}
