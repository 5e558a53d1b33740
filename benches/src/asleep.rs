//! An adapter that has nothing to do: what it costs while nobody asks, and how soon it answers the first who does.

use std::fs;
use std::hint::spin_loop;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use adapter::poller::eventfd;
use anyhow::{Context, Result};
use portcullis::raw::RawQueue;
use rustix::event::epoll;

use crate::cpu::Pinned;
use crate::figure::{Figure, median};
use crate::path::Client;
use crate::ping::ping_pong;
use crate::process::Served;
use crate::rounds::{Cores, Plan, interleave};
use crate::wake::{self, Wakes};

const DEVICE: &str = "null:1G";
const VOLUME: u64 = 16 << 20;
/// Between two wake-ups: the one who is to be woken has gone to sleep by then.
const PAUSE: Duration = Duration::from_millis(3);

/// A request that finds the adapter asleep, until its completion is seen by polling, beside a bare eventfd that wakes a thread
/// from the same kind of sleep, until its answer is seen likewise.
///
/// # Errors
/// The adapter's, the kernel's.
pub fn wake(name: &str, plan: Plan) -> Result<Figure> {
    let cores = Cores::two()?;
    let served = Served::start(DEVICE, cores.other)?;
    let mut client = Client::unwritten(served.session()?, VOLUME)?;
    let sleeper = Sleeper::new()?;
    let mut figure = Figure::new(name, "ns/wake-up");
    figure.note("each value is the median of the wake-ups of its turn");
    let there = Barrier::new(2);
    thread::scope(|scope| -> Result<()> {
        let answers = scope.spawn(|| {
            let pinned = Pinned::to(cores.other);
            there.wait();
            sleeper.answer();
            pinned.map(drop)
        });
        there.wait();
        let measured = interleave(
            &mut figure,
            // Wake-ups are few in a turn.
            Plan { slice: plan.slice * 2, ..plan },
            cores,
            &mut [
                ("isolated", Box::new(|time: Duration| woken(time, || client.once()))),
                ("bare", Box::new(|time| woken(time, || sleeper.ask()))),
            ],
        );
        sleeper.stop()?;
        answers.join().expect("it only sleeps")?;
        measured
    })?;
    client.end()?;
    Ok(figure)
}

/// The same where the application sleeps, too, on its futex; see [`crate::wake`].
///
/// # Errors
/// The kernel's.
pub fn wake_both(name: &str, plan: Plan) -> Result<Figure> {
    let cores = Cores::two()?;
    let mut figure = Figure::new(name, "ns/wake-up");
    figure.note(
        "each value is the median of the wake-ups of its turn, of which both sides have theirs in turns",
    );
    let wakes = usize::try_from(plan.slice.as_millis() / 4)?.max(3);
    for _ in 0..plan.rounds {
        let before = ping_pong_from(cores)?;
        let Wakes { ours, bare } = wake::wakes(wakes, cores.here, cores.other)?;
        #[expect(clippy::cast_precision_loss, reason = "seconds at most")]
        let nanoseconds = |time: Duration| time.as_nanos() as f64;
        figure.add("both asleep", nanoseconds(ours));
        figure.add("bare", nanoseconds(bare));
        figure.pings.push([before, ping_pong_from(cores)?]);
    }
    Ok(figure)
}

fn ping_pong_from(cores: Cores) -> Result<f64> {
    let _pinned = Pinned::to(cores.here)?;
    ping_pong(cores.other)
}

/// The median of what `once` takes, each time after a pause.
fn woken(time: Duration, mut once: impl FnMut() -> Result<()>) -> Result<f64> {
    let until = Instant::now() + time;
    let mut took = Vec::new();
    while Instant::now() < until || took.is_empty() {
        thread::sleep(PAUSE);
        let began = Instant::now();
        once()?;
        #[expect(clippy::cast_precision_loss, reason = "milliseconds at most")]
        took.push(began.elapsed().as_nanos() as f64);
    }
    Ok(median(&took))
}

/// Somebody who sleeps as a poller does: in epoll(7), on an edge-triggered eventfd that is never read.
struct Sleeper {
    epoll: OwnedFd,
    bell: OwnedFd,
    asked: AtomicU64,
    answered: AtomicU64,
}

impl Sleeper {
    const STOP: u64 = u64::MAX;

    fn new() -> Result<Self> {
        let (epoll, bell) = (epoll::create(epoll::CreateFlags::CLOEXEC)?, eventfd()?);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, bell.as_fd(), epoll::EventData::new_u64(0), flags)?;
        Ok(Self { epoll, bell, asked: AtomicU64::new(0), answered: AtomicU64::new(0) })
    }

    fn answer(&self) {
        loop {
            let mut events = [const { MaybeUninit::<epoll::Event>::uninit() }; 16];
            // An interrupted wait is only a look too early.
            let _ = epoll::wait(&self.epoll, &mut events, None);
            match self.asked.load(Ordering::Acquire) {
                Self::STOP => return,
                asked => self.answered.store(asked, Ordering::Release),
            }
        }
    }

    fn ring(&self, asked: u64) -> Result<()> {
        self.asked.store(asked, Ordering::Release);
        rustix::io::write(&self.bell, &1_u64.to_ne_bytes())?;
        Ok(())
    }

    fn ask(&self) -> Result<()> {
        let asked = self.answered.load(Ordering::Relaxed) + 1;
        self.ring(asked)?;
        while self.answered.load(Ordering::Acquire) != asked {
            spin_loop();
        }
        Ok(())
    }

    fn stop(&self) -> Result<()> {
        self.ring(Self::STOP)
    }
}

/// Processor time of an adapter with a hundred sessions that ask for nothing, in hundredths of one core.
///
/// # Errors
/// The adapter's, or if the kernel does not tell processor times.
pub fn cores(name: &str, plan: Plan) -> Result<Figure> {
    let cores = Cores::two()?;
    let served = Served::start(DEVICE, cores.other)?;
    let session = || -> Result<_> {
        let session = served.session()?;
        let queue = RawQueue::create(&session, 16)?;
        Ok((queue, session))
    };
    let sessions = (0..100).map(|_| session()).collect::<Result<Vec<_>>>()?;
    let mut figure = Figure::new(name, "% of a core");
    // What was begun for them has ended.
    thread::sleep(Duration::from_millis(200));
    for _ in 0..plan.rounds {
        let (began, before) = (Instant::now(), processor_time(served.pid())?);
        thread::sleep(plan.slice * 10);
        let spent = processor_time(served.pid())?.saturating_sub(before);
        figure.add("100 idle sessions", 100.0 * spent.as_secs_f64() / began.elapsed().as_secs_f64());
    }
    drop(sessions);
    Ok(figure)
}

/// Of all threads of a process: the first number of `schedstat` (proc_pid_schedstat(5)).
fn processor_time(pid: u32) -> Result<Duration> {
    let mut nanoseconds = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let first = text.split(' ').next().and_then(|word| word.parse::<u64>().ok());
        nanoseconds += first.with_context(|| format!("schedstat says {text}"))?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}
