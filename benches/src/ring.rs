//! A ring between two processes, each kept on a core of its own: what stands beside the isolated path.
//!
//! | row         | what goes to and fro                                                                            |
//! |-------------|-------------------------------------------------------------------------------------------------|
//! | `ping_pong` | one cache line, written by one side and answered by the other: the state that the machine is in |
//! | `bare`      | 64-byte requests and 32-byte completions, each with its sequence number in its last word; nothing is counted, checked or woken |
//! | `queue`     | the same through the two ends of a processing queue, the adapter's end answering at once        |
//!
//! Figures are nanoseconds of the clock on the wall for one request of a burst, with so many in flight all the time. A
//! burst should be short, and rows taken in turns, so that what the machine does meanwhile is shared by all.
//!
//! The other process is this executable once more: [`play_if_asked`] has to stand first in `main`.

use std::io::{self, Read as _};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::{Duration, Instant};
use std::{env, fs, hint, process, thread};

use wire::doorbell;
use wire::layout::{Entries, SubmissionEntry, opcode};
use wire::ring::{AdapterEnd, ApplicationEnd, Completion};
use wire::shm::SharedMemory;
use wire::view::{QueueMemory, QueueView};

use crate::cpu::Pinned;

/// Entries of every ring here.
const ENTRIES: u32 = 256;
/// In the environment of the other process: what it plays, and on which processor.
const ROLE: &str = "PORTCULLIS_BENCH_ROLE";
/// Ends a burst for the side that answers.
const STOP: u64 = u64::MAX;
/// Bytes of a read.
const READ: u32 = 4096;

/// What goes to and fro in a burst.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
enum Play {
    Rest = 0,
    PingPong,
    Bare,
    Queue,
}

impl Play {
    const ALL: [Self; 4] = [Self::Rest, Self::PingPong, Self::Bare, Self::Queue];
}

/// This process's side, and the other process.
pub struct Pair {
    lines: QueueView,
    queue: ApplicationEnd<QueueView>,
    answering: Child,
    _pinned: Pinned,
}

impl Pair {
    /// Starts the other process on processor `other` and moves this thread to `here`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn start(here: usize, other: usize) -> io::Result<Self> {
        let entries = Entries::new(ENTRIES).expect("a power of two");
        let (lines, lines_fd) = SharedMemory::create("portcullis-bench-lines", entries.bytes())?;
        let (queue, queue_fd) = SharedMemory::create("portcullis-bench-queue", entries.bytes())?;
        let lines = QueueView::new(Arc::new(lines), entries).map_err(io::Error::other)?;
        let queue = QueueView::create(Arc::new(queue), entries).map_err(io::Error::other)?;
        let of = |fd: i32| format!("/proc/{}/fd/{fd}", process::id());
        let paths = [of(lines_fd.as_raw_fd()), of(queue_fd.as_raw_fd())];
        let mut answering = again(&format!("answer {other} {} {}", paths[0], paths[1]))?;
        // It has mapped both when it says so; the descriptors may go then.
        heard(&mut answering)?;
        let pinned = Pinned::to(here)?;
        let queue = ApplicationEnd::new(queue, entries);
        Ok(Self { lines, queue, answering, _pinned: pinned })
    }

    fn play(&self, play: Play) {
        let word = self.lines.cq_wait();
        word.store(play as u32, Release);
        doorbell::wake(word).expect("a mapped word");
    }

    /// One line there and back, so many times.
    ///
    /// # Panics
    /// As all of these, if the other process does not play.
    pub fn ping_pong(&self, times: u64) -> f64 {
        let line = self.lines.sq_word(0, 0);
        line.store(0, Release);
        self.play(Play::PingPong);
        let there_and_back = |ping: u64| {
            line.store(ping, Release);
            while line.load(Acquire) != ping + 1 {
                hint::spin_loop();
            }
        };
        (0..WARM).for_each(|n| there_and_back(2 * n + 1));
        let start = Instant::now();
        (WARM..WARM + times).for_each(|n| there_and_back(2 * n + 1));
        let each = nanoseconds_each(start, times);
        line.store(STOP, Release);
        self.rest();
        each
    }

    /// Waits until the other side has gone to sleep.
    fn rest(&self) {
        let word = self.lines.cq_wait();
        while word.load(Acquire) != Play::Rest as u32 {
            hint::spin_loop();
        }
    }

    /// The bare ring.
    pub fn bare(&mut self, depth: u32, requests: u64) -> f64 {
        clear(&self.lines);
        self.play(Play::Bare);
        let mut end = BareEnd { lines: &self.lines, pushed: 0, popped: 0 };
        end.window(depth, WARM);
        let start = Instant::now();
        end.window(depth, requests);
        let each = nanoseconds_each(start, requests);
        end.push(STOP);
        self.rest();
        each
    }

    /// A processing queue alone.
    pub fn queue(&mut self, depth: u32, requests: u64) -> f64 {
        self.play(Play::Queue);
        let end = &mut self.queue;
        queue_window(end, depth, WARM);
        let start = Instant::now();
        queue_window(end, depth, requests);
        let each = nanoseconds_each(start, requests);
        end.push(&read(STOP)).expect("nothing is in flight");
        end.ring();
        while end.pop().is_none() {
            hint::spin_loop();
        }
        self.rest();
        each
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // It sleeps on a futex until it is told to play something.
        let _ = self.answering.kill();
        let _ = self.answering.wait();
    }
}

/// Requests before the clock is read.
const WARM: u64 = 2000;

#[expect(clippy::cast_precision_loss, reason = "far from 2^53")]
fn nanoseconds_each(start: Instant, count: u64) -> f64 {
    start.elapsed().as_nanos() as f64 / count as f64
}

fn read(user_data: u64) -> SubmissionEntry {
    SubmissionEntry { opcode: opcode::READ, user_data, length: READ, ..SubmissionEntry::default() }
}

fn clear(lines: &QueueView) {
    for slot in 0..ENTRIES as usize {
        (0..8).for_each(|i| lines.sq_word(slot, i).store(0, Relaxed));
        (0..4).for_each(|i| lines.cq_word(slot, i).store(0, Relaxed));
    }
}

/// The asking side of the bare ring.
struct BareEnd<'a> {
    lines: &'a QueueView,
    pushed: u64,
    popped: u64,
}

#[expect(clippy::cast_possible_truncation, reason = "slots come round again")]
impl BareEnd<'_> {
    #[inline]
    fn push(&mut self, first: u64) {
        let slot = self.pushed as usize;
        self.pushed += 1;
        self.lines.sq_word(slot, 0).store(first, Relaxed);
        (1..7).for_each(|i| self.lines.sq_word(slot, i).store(self.pushed, Relaxed));
        self.lines.sq_word(slot, 7).store(self.pushed, Release);
    }

    #[inline]
    fn pop(&mut self) -> bool {
        let slot = self.popped as usize;
        if self.lines.cq_word(slot, 3).load(Acquire) != self.popped + 1 {
            return false;
        }
        self.popped += 1;
        let words: [u64; 3] = std::array::from_fn(|i| self.lines.cq_word(slot, i).load(Relaxed));
        assert_eq!(words[1], self.popped, "another answer");
        true
    }

    fn window(&mut self, depth: u32, requests: u64) {
        let end = self.popped + requests;
        while self.popped < end {
            while self.pushed < end && self.pushed - self.popped < u64::from(depth) {
                self.push(0);
            }
            if !self.pop() {
                hint::spin_loop();
                continue;
            }
            while self.pop() {}
        }
    }
}

fn queue_window(end: &mut ApplicationEnd<QueueView>, depth: u32, requests: u64) {
    let (mut pushed, mut popped) = (0, 0);
    while popped < requests {
        while pushed < requests && pushed - popped < u64::from(depth) {
            end.push(&hint::black_box(read(pushed))).expect("the depth is within the ring");
            pushed += 1;
        }
        end.ring();
        let before = popped;
        while let Some(done) = end.pop() {
            assert_eq!(done.bytes, READ);
            popped += 1;
        }
        if popped == before {
            hint::spin_loop();
        }
    }
}

/// Starts this executable once more, to play `role`.
fn again(role: &str) -> io::Result<Child> {
    Command::new(env::current_exe()?)
        .env(ROLE, role)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
}

/// Waits until it says that it is ready.
fn heard(child: &mut Child) -> io::Result<()> {
    let output = child.stdout.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
    output.read_exact(&mut [0])
}

/// Plays the other process and does not come back, if this is one. To be called first in `main`.
///
/// # Panics
/// There, if it cannot play.
pub fn play_if_asked() {
    let Ok(role) = env::var(ROLE) else { return };
    let words: Vec<&str> = role.split(' ').collect();
    match words[..] {
        ["answer", cpu, lines, queue] => {
            let _pinned = Pinned::to(cpu.parse().expect("a processor")).expect("the processor is allowed");
            answer(Path::new(lines), Path::new(queue));
        }
        _ => panic!("{ROLE}={role} is no role"),
    }
    process::exit(0);
}

fn ready() {
    print!(".");
    io::Write::flush(&mut io::stdout()).expect("somebody listens");
}

fn map(path: &Path) -> Arc<SharedMemory> {
    let file = fs::File::options().read(true).write(true).open(path).expect("the other process has it open");
    let bytes = Entries::new(ENTRIES).expect("a power of two").bytes();
    Arc::new(SharedMemory::map(&file, bytes).expect("it can be mapped"))
}

/// Answers what is asked, one burst after the other, until it is killed.
fn answer(lines: &Path, queue: &Path) {
    let entries = Entries::new(ENTRIES).expect("a power of two");
    let lines = QueueView::new(map(lines), entries).expect("large enough");
    let queue = QueueView::new(map(queue), entries).expect("large enough");
    let mut queue = AdapterEnd::new(queue, entries);
    ready();
    loop {
        let word = lines.cq_wait();
        let wanted = word.load(Acquire);
        let play = Play::ALL.into_iter().find(|play| *play as u32 == wanted).expect("one of them");
        match play {
            Play::Rest => {
                doorbell::wait(word, wanted, Some(Duration::from_secs(1))).expect("a mapped word");
                continue;
            }
            Play::PingPong => answer_ping_pong(&lines),
            Play::Bare => answer_bare(&lines),
            Play::Queue => answer_queue(&mut queue),
        }
        word.store(Play::Rest as u32, Release);
        thread::yield_now();
    }
}

fn answer_ping_pong(lines: &QueueView) {
    let line = lines.sq_word(0, 0);
    loop {
        match line.load(Acquire) {
            STOP => break,
            ping if ping % 2 == 1 => line.store(ping + 1, Release),
            _ => hint::spin_loop(),
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "slots come round again")]
fn answer_bare(lines: &QueueView) {
    let mut count = 0;
    loop {
        let slot = count as usize;
        if lines.sq_word(slot, 7).load(Acquire) != count + 1 {
            hint::spin_loop();
            continue;
        }
        let words: [u64; 7] = std::array::from_fn(|i| lines.sq_word(slot, i).load(Relaxed));
        if words[0] == STOP {
            break;
        }
        (0..3).for_each(|i| lines.cq_word(slot, i).store(words[i], Relaxed));
        count += 1;
        lines.cq_word(slot, 3).store(count, Release);
    }
}

fn answer_queue(end: &mut AdapterEnd<QueueView>) {
    let mut stop = false;
    while !stop {
        if end.poll_doorbell().expect("the doorbell is honest") == 0 {
            hint::spin_loop();
            continue;
        }
        while let Some(entry) = end.take().expect("the head is honest") {
            stop |= entry.user_data == STOP;
            end.complete(&Completion::ok(entry.user_data, entry.length));
        }
        end.end_turn();
    }
}
