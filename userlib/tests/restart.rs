//! What a queue does with the requests that it had when its adapter ended, against adapters that do exactly what the test says.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use portcullis::{
    Access, Completion, ConnectOptions, Queue, Request, Session, Status, Transport, TransportError, Volume,
};
use wire::control::{self, Change, GrantInfo, LimitChange, Limited, Limits, Reply, Welcome};
use wire::doorbell::{self, Bell};
use wire::layout::{Entries, opcode};
use wire::ring::{AdapterEnd, Completion as Answer};
use wire::shm::SharedMemory;
use wire::view::{QueueMemory, QueueView};

const LONG: Duration = Duration::from_secs(20);
const BLOCK: u64 = 4096;

/// The adapters, one after another.
struct Fake {
    /// Which one runs; 0 is none yet.
    run: u64,
    life: u64,
    dead: bool,
    sole_writer: bool,
    /// Requests are answered.
    answers: bool,
    queues: Vec<AdapterEnd<QueueView>>,
    /// Operations and offsets that the present one heard of.
    heard: Vec<(u8, u64)>,
    /// Of the one before.
    heard_before: Vec<(u8, u64)>,
    asked: Vec<control::Request>,
    /// A change is made, and its answer never comes.
    dies_over: bool,
}

#[derive(Clone)]
struct Line(Arc<Mutex<Fake>>);

impl Line {
    fn new() -> Self {
        let line = Self(Arc::new(Mutex::new(Fake {
            run: 1,
            life: 1,
            dead: false,
            sole_writer: true,
            answers: true,
            queues: Vec::new(),
            heard: Vec::new(),
            heard_before: Vec::new(),
            asked: Vec::new(),
            dies_over: false,
        })));
        // Turns the rings for as long as the test runs.
        let turned = Arc::downgrade(&line.0);
        std::thread::spawn(move || {
            while let Some(fake) = turned.upgrade() {
                fake.lock().unwrap().turn();
                drop(fake);
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        line
    }

    fn session(&self) -> Session {
        let line = self.clone();
        let connect = move || {
            if line.with(|fake| fake.dead) {
                return Err(TransportError::Gone("none runs".to_owned()).into());
            }
            let run = line.with(|fake| fake.run);
            Ok(Box::new(Connection { line: line.clone(), run }) as Box<dyn Transport>)
        };
        ConnectOptions::new().patience(LONG).connect_by(connect).unwrap()
    }

    fn with<T>(&self, with: impl FnOnce(&mut Fake) -> T) -> T {
        with(&mut self.0.lock().unwrap())
    }

    fn until(&self, done: impl Fn(&Fake) -> bool) {
        let end = Instant::now() + LONG;
        while !self.with(|fake| done(fake)) {
            assert!(Instant::now() < end, "it does not come");
            std::thread::yield_now();
        }
    }

    fn kill(&self) {
        self.with(|fake| {
            fake.dead = true;
            fake.queues.clear();
            fake.heard_before = std::mem::take(&mut fake.heard);
        });
    }

    /// The next one, `lives` after that before.
    fn start(&self, lives: u64) {
        self.with(|fake| {
            fake.run += 1;
            fake.life += lives;
            (fake.dead, fake.answers) = (false, true);
        });
    }
}

impl Fake {
    fn turn(&mut self) {
        for end in &mut self.queues {
            end.poll_doorbell().unwrap();
            while let Some(entry) = end.take().unwrap() {
                self.heard.push((entry.opcode, entry.offset));
                if self.answers {
                    end.complete(&Answer::ok(entry.user_data, entry.length));
                }
            }
            if end.memory().cq_wait().swap(0, std::sync::atomic::Ordering::SeqCst) != 0 {
                let _ = doorbell::wake(end.memory().cq_wait());
            }
        }
    }
}

struct Connection {
    line: Line,
    run: u64,
}

impl Transport for Connection {
    fn call(
        &mut self,
        request: &control::Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), TransportError> {
        use control::Request as Asked;
        self.check_alive()?;
        let fake = &mut *self.line.0.lock().unwrap();
        fake.asked.push(request.clone());
        let limits = Limits { pinned_bytes: 1 << 30, regions: 64, queues: 9, grants: 9, outstanding: 9 };
        let reply = match request {
            Asked::Hello { .. } => Reply::Welcome(Welcome {
                version: wire::VERSION,
                session: 1,
                adapter: fake.run,
                life: fake.life,
                settled: false,
                limits,
            }),
            Asked::CreateQueue { entries } => {
                let entries = Entries::new(*entries).unwrap();
                let memory = SharedMemory::map(descriptors[0], entries.bytes()).unwrap();
                let view = QueueView::open(Arc::new(memory), entries).unwrap();
                fake.queues.push(AdapterEnd::new(view, entries));
                let bell = Bell::new().unwrap().duplicate().unwrap();
                return Ok((Reply::Queue { queue: 1 }, vec![bell]));
            }
            Asked::RegisterMemory { .. } => Reply::Region { region: fake.run },
            Asked::OpenVolume { access, .. } | Asked::OpenExclusive { access, .. } => {
                Reply::Grant(GrantInfo {
                    key: fake.run * 100,
                    access: *access,
                    bytes: 1 << 20,
                    block_size: BLOCK as u32,
                    volume: 7,
                    sole_writer: fake.sole_writer,
                })
            }
            Asked::Once { .. } | Asked::SetLimits { .. } if fake.dies_over => {
                (fake.dies_over, fake.run, fake.life) = (false, fake.run + 1, fake.life + 1);
                return Err(TransportError::Gone("it died".to_owned()));
            }
            Asked::Once { .. } => Reply::Revoked { grants: 0, draining: 0 },
            _ => Reply::Done,
        };
        Ok((reply, Vec::new()))
    }

    fn check_alive(&mut self) -> Result<(), TransportError> {
        match self.line.with(|fake| fake.dead || fake.run != self.run) {
            true => Err(TransportError::Gone("killed".to_owned())),
            false => Ok(()),
        }
    }
}

struct Application {
    line: Line,
    session: Session,
    volume: Volume,
    queue: Queue,
}

impl Application {
    fn new(exclusive: bool) -> Self {
        let line = Line::new();
        let session = line.session();
        let volume = if exclusive {
            session.open_exclusive("v", Access::ALL).unwrap()
        } else {
            session.open("v", Access::ALL).unwrap()
        };
        let queue = session.queue(8).unwrap();
        Self { line, session, volume, queue }
    }

    /// A read, a write, a flush and a deallocate that the adapter hears of and does not answer.
    fn ask(&mut self) {
        self.line.with(|fake| fake.answers = false);
        let buffer = || self.session.buffer(BLOCK as usize).unwrap();
        let requests = [
            Request::read(&self.volume, 0, buffer()),
            Request::write(&self.volume, BLOCK, buffer()),
            Request::flush(&self.volume),
            Request::deallocate(&self.volume, 2 * BLOCK, BLOCK),
        ];
        for (tag, request) in (0..).zip(requests) {
            self.queue.prepare(request.tag(tag)).unwrap();
        }
        self.queue.ring().unwrap();
        self.line.until(|fake| fake.heard.len() == 4);
    }

    /// How each ended, by tag.
    fn ends(&mut self, count: usize) -> Vec<Result<u32, Status>> {
        let mut ends = vec![None; count];
        for _ in 0..count {
            let Completion { tag, result, .. } = self.queue.wait(LONG).unwrap().expect("it ends");
            let result = result.map_err(|error| error.status().unwrap());
            assert!(ends[tag as usize].replace(result).is_none(), "twice");
        }
        assert_eq!(self.queue.in_flight(), 0);
        ends.into_iter().map(Option::unwrap).collect()
    }
}

const UNKNOWN: Result<u32, Status> = Err(Status::E_OUTCOME_UNKNOWN);

#[test]
fn what_only_reads_is_asked_again_and_what_others_may_overwrite_is_not() {
    let mut application = Application::new(false);
    application.ask();
    application.line.kill();
    application.line.start(1);
    assert_eq!(application.ends(4), [Ok(BLOCK as u32), UNKNOWN, Ok(0), UNKNOWN]);
    let mut heard = application.line.with(|fake| fake.heard.clone());
    heard.sort_unstable();
    let mut reads = [(opcode::READ, 0), (opcode::FLUSH, 0)];
    reads.sort_unstable();
    assert_eq!(heard, reads);
    assert_eq!(application.session.restarts(), 1);
    assert_eq!(application.volume.key(), 200, "the handle finds its key");
}

#[test]
fn writes_of_the_only_writer_are_asked_again_before_anything_else() {
    let mut application = Application::new(true);
    application.ask();
    application.line.kill();
    application.line.start(1);
    assert_eq!(application.ends(4), [Ok(BLOCK as u32), Ok(BLOCK as u32), Ok(0), Ok(BLOCK as u32)]);
    let heard = application.line.with(|fake| fake.heard.clone());
    assert_eq!(heard.len(), 4);
    let writes = |it: &(u8, u64)| matches!(it.0, opcode::WRITE | opcode::DEALLOCATE);
    assert!(heard[..2].iter().all(writes) && !heard[2..].iter().any(writes), "{heard:?}");
}

#[test]
fn writes_are_not_asked_again_where_somebody_else_may_have_written() {
    for (sole_writer, lives) in [(false, 1), (true, 2)] {
        let mut application = Application::new(true);
        application.ask();
        application.line.kill();
        application.line.with(|fake| fake.sole_writer = sole_writer);
        application.line.start(lives);
        let ends = application.ends(4);
        assert_eq!(ends, [Ok(BLOCK as u32), UNKNOWN, Ok(0), UNKNOWN], "{sole_writer} {lives}");
        let heard = application.line.with(|fake| fake.heard.len());
        assert_eq!(heard, 2);
    }
}

#[test]
fn what_was_answered_before_the_end_counts_and_what_nobody_heard_of_is_new() {
    let mut application = Application::new(false);
    let buffer = || application.session.buffer(BLOCK as usize).unwrap();
    let buffers = [buffer(), buffer()];
    let [first, second] = buffers;
    application.queue.prepare(Request::write(&application.volume, 0, first).tag(0)).unwrap();
    application.queue.ring().unwrap();
    application.line.until(|fake| fake.heard.len() == 1);
    // Its turn holds the lock from when it hears until it has answered.
    application.line.kill();
    // Prepared, and never announced to the one that is dead.
    application.queue.prepare(Request::write(&application.volume, BLOCK, second).tag(1)).unwrap();
    application.line.start(1);
    application.session.statistics().unwrap_err(); // An answer of no use; but it has found the next adapter.
    assert_eq!(application.session.restarts(), 1);
    assert_eq!(application.ends(2)[0], Ok(BLOCK as u32));
    assert_eq!(application.line.with(|fake| fake.heard_before.clone()), [(opcode::WRITE, 0)]);
    let heard = application.line.with(|fake| fake.heard.clone());
    assert!(!heard.contains(&(opcode::WRITE, 0)), "it was answered: {heard:?}");
}

#[test]
fn a_queue_that_polls_finds_the_next_adapter_too() {
    let mut application = Application::new(false);
    application.ask();
    application.line.kill();
    application.line.start(1);
    let end = Instant::now() + LONG;
    let mut ended = 0;
    while application.queue.in_flight() > 0 {
        ended += usize::from(application.queue.poll().unwrap().is_some());
        assert!(Instant::now() < end, "nobody looked whether the adapter lives");
    }
    assert_eq!(ended, 4);
}

#[test]
fn what_three_adapters_die_of_is_not_asked_of_a_fourth() {
    let mut application = Application::new(true);
    application.ask();
    application.line.kill();
    application.line.start(1);
    application.line.with(|fake| fake.answers = false);
    let line = application.line.clone();
    let killer = std::thread::spawn(move || {
        for _ in 0..3 {
            // The writes come first, and nothing else before they are answered.
            line.until(|fake| fake.heard.len() == 2);
            line.kill();
            line.start(1);
            line.with(|fake| fake.answers = false);
        }
    });
    let lost = Err(Status::E_PATH);
    assert_eq!(application.ends(4), [lost, UNKNOWN, lost, UNKNOWN]);
    killer.join().unwrap();
    assert_eq!(application.line.with(|fake| fake.heard.clone()), []);
    assert_eq!(application.session.restarts(), 4);
}

#[test]
fn a_change_is_asked_again_by_its_id_and_nothing_else_is() {
    let line = Line::new();
    let session = line.session();
    line.with(|fake| fake.dies_over = true);
    session.delete_volume("v").unwrap();
    let ids: Vec<_> = line.with(|fake| {
        let once = |request: &control::Request| match request {
            control::Request::Once { id, change: Change::DeleteVolume { .. } } => Some(*id),
            _ => None,
        };
        fake.asked.iter().filter_map(once).collect()
    });
    assert_eq!(ids.len(), 2);
    assert_eq!(ids[0], ids[1]);
    assert_ne!(ids[0], [0; 16]);
    line.with(|fake| fake.dies_over = true);
    let change = LimitChange::default();
    let error = session.set_limits(Limited::User(1), change).unwrap_err();
    assert_eq!(error.status(), Some(Status::E_OUTCOME_UNKNOWN), "{error}");
    let limits = |request: &&control::Request| matches!(request, control::Request::SetLimits { .. });
    assert_eq!(line.with(|fake| fake.asked.iter().filter(limits).count()), 1);
}

/// The keys in it are of a life that is over, also if no adapter has heard of it.
#[test]
fn a_management_request_in_a_queue_is_not_asked_again() {
    let mut application = Application::new(false);
    let close = control::Request::Close { key: application.volume.key() };
    let buffer = application.session.buffer(16 << 10).unwrap();
    application.line.kill();
    application.queue.prepare(Request::manage(&close, buffer).unwrap().tag(0)).unwrap();
    application.line.start(1);
    application.session.statistics().unwrap_err(); // An answer of no use; but it has found the next adapter.
    assert_eq!(application.ends(1), [UNKNOWN]);
    assert_eq!(application.line.with(|fake| fake.heard.clone()), []);
}
