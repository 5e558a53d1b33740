//! What everything of a session shares: its connection, and what it takes to go on with the next adapter where one ends.
//!
//! A session that has patience has *lives*: one for each run of the adapter that it was connected to. Handles of volumes and
//! files go by a *name*, the key that they got first; what the name stands for in the present life is looked up here.
//! Whoever finds the adapter gone calls [`Link::resume`]. The first does it for all, the others wait for it.
//!
//! Memory is made anew, by memfds that were not sealed before, and not handed on: an upgrade runs a new program, which cannot
//! inherit mappings; a process that kept them would be one more that every application's memory is mapped into; and
//! what the adapter sealed can never be mapped writable again. [`crate::memory`] has the rest of that.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use wire::Status;
use wire::control::{GrantInfo, Reply, Request, Welcome};
use wire::files::{Create, FileInfo, FileTarget, OpenFile};
use wire::view::{QueueMemory, QueueView};

use crate::error::Error;
use crate::memory::unexpected;
use crate::session::Session;
use crate::transport::{EmbeddedAdapter, Transport, TransportError};
use crate::unix::UnixTransport;

/// Between two attempts to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// Queues whose writes are to be made again have so long to do it, before others of their session submit anything.
const GRACE: Duration = Duration::from_secs(2);
/// A wait for a completion looks so often whether the adapter lives.
const HEARTBEAT: Duration = Duration::from_millis(500);
const ATTENTIVE: Duration = Duration::from_millis(50);

/// How a session is connected.
///
/// ```
/// use portcullis::ConnectOptions;
/// use std::time::Duration;
/// let options = ConnectOptions::new().patience(Duration::from_secs(30));
/// let error = options.connect("/nowhere/portcullis.sock").unwrap_err();
/// assert!(error.to_string().contains("portcullis serve"), "the first connection is not waited for");
/// ```
#[derive(Clone, Debug, Default)]
pub struct ConnectOptions {
    patience: Duration,
}

/// Makes a connection, each time it is called.
type Connect = Box<dyn Fn() -> Result<Box<dyn Transport>, Error> + Send + Sync>;

impl ConnectOptions {
    /// As [`Session::connect`] connects: when the adapter ends, so does the session.
    ///
    /// ```
    /// let options = portcullis::ConnectOptions::new();
    /// assert!(options.connect("/nowhere/portcullis.sock").is_err());
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// When the adapter ends, another one is waited for so long, and the session goes on with it; docs/restart.md says what
    /// becomes of requests without an answer.
    ///
    /// ```
    /// use portcullis::ConnectOptions;
    /// let options = ConnectOptions::new().patience(std::time::Duration::from_secs(30));
    /// assert!(format!("{options:?}").contains("30s"));
    /// ```
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Connects to the adapter that listens on `path`.
    ///
    /// # Errors
    /// As [`Session::connect`].
    ///
    /// ```
    /// let error = portcullis::ConnectOptions::new().connect("/nowhere/portcullis.sock").unwrap_err();
    /// assert!(matches!(error, portcullis::Error::Connect { .. }));
    /// ```
    pub fn connect(&self, path: impl AsRef<Path>) -> Result<Session, Error> {
        let path: PathBuf = path.as_ref().to_owned();
        self.connect_by(move || Ok(Box::new(UnixTransport::connect(&path)?)))
    }

    /// Connects by `connect`, which is called again for each adapter after the first. It says by [`Error::Connect`] or
    /// [`TransportError::Gone`] that there is none now.
    ///
    /// # Errors
    /// Those of `connect`, and as [`Session::with_transport`].
    ///
    /// ```
    /// use portcullis::{ConnectOptions, TransportError};
    /// let options = ConnectOptions::new();
    /// let error = options.connect_by(|| Err(TransportError::Gone("closed".to_owned()).into())).unwrap_err();
    /// assert_eq!(error.status(), Some(portcullis::Status::E_PATH));
    /// ```
    pub fn connect_by(
        &self,
        connect: impl Fn() -> Result<Box<dyn Transport>, Error> + Send + Sync + 'static,
    ) -> Result<Session, Error> {
        let transport = connect()?;
        if self.patience.is_zero() || transport.embedded().is_some() {
            return Session::with_transport(transport);
        }
        let lives = Lives {
            connect: Box::new(connect),
            patience: self.patience,
            stage: Mutex::default(),
            moved_on: Condvar::new(),
            held: Mutex::default(),
            settled: Condvar::new(),
        };
        Ok(Session::over(Arc::new(Link::greet(transport, Some(lives))?)))
    }
}

struct Connection {
    transport: Box<dyn Transport>,
    welcome: Welcome,
    /// The how many-th of the session.
    life: u32,
}

/// See the module.
struct Lives {
    connect: Connect,
    patience: Duration,
    stage: Mutex<Stage>,
    moved_on: Condvar,
    held: Mutex<Held>,
    settled: Condvar,
}

/// How far the way to the next adapter is.
#[derive(Default)]
struct Stage {
    life: u32,
    /// Somebody is on the way.
    taken: bool,
    /// Since then the adapter is known to be gone.
    since: Option<Instant>,
    /// There will be none.
    over: Option<String>,
}

/// What is made anew in each life.
#[derive(Default)]
struct Held {
    opened: HashMap<u64, Opened>,
    queues: HashMap<u64, Watched>,
    next_queue: u64,
}

/// A volume or file that is open.
#[derive(Clone)]
struct Opened {
    /// Opens it again.
    how: Request,
    /// What it must be then, whatever has its name.
    identity: u128,
    block_size: u32,
    /// The key; or why there is none any more.
    now: Result<u64, (Status, String)>,
    /// Nobody else can have written since the life before: writes without an answer may be made again.
    replays: bool,
}

/// A queue, as others than its thread see it.
struct Watched {
    memory: QueueView,
    standing: Standing,
}

/// What may become of the requests that were in a queue when its adapter ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// Its adapter lives.
    Runs,
    /// The dead adapter had answered all that it had heard of: the rest may be done as if it were new.
    Unheard,
    /// Writes may be made again where their volume allows it: the others wait for that, for a while.
    MayReplay,
    /// They are being made again: the others wait for the end of that.
    Replays,
    /// Others may have written meanwhile: no write may be made again.
    Late,
}

impl Link {
    /// Says hello.
    pub(crate) fn open(transport: Box<dyn Transport>) -> Result<Self, Error> {
        Self::greet(transport, None)
    }

    fn greet(mut transport: Box<dyn Transport>, lives: Option<Lives>) -> Result<Self, Error> {
        let welcome = hello(&mut *transport)?;
        let embedded = transport.embedded();
        let connection = Mutex::new(Connection { transport, welcome, life: 0 });
        Ok(Self { connection, embedded, lives })
    }
}

/// What volumes, memory and queues keep of their session.
pub(crate) struct Link {
    connection: Mutex<Connection>,
    embedded: Option<Arc<dyn EmbeddedAdapter>>,
    /// `None`: when the adapter ends, so does the session.
    lives: Option<Lives>,
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic in a call leaves the transport to answer for itself; the guard protects nothing else.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The adapter, if it is in this process and needs turns.
    #[inline]
    pub(crate) fn embedded(&self) -> Option<&dyn EmbeddedAdapter> {
        self.embedded.as_deref()
    }

    /// What the present adapter said first.
    pub(crate) fn welcome(&self) -> Welcome {
        self.lock().welcome.clone()
    }

    /// Which life of the session this is; always 0 without patience.
    pub(crate) fn life(&self) -> u32 {
        if self.lives.is_some() { self.lock().life } else { 0 }
    }

    /// Whether it goes on with the next adapter.
    pub(crate) fn resumes(&self) -> bool {
        self.lives.is_some()
    }

    /// How often a sleep is interrupted to see whether the adapter lives.
    pub(crate) fn heartbeat(&self) -> Duration {
        if self.resumes() { ATTENTIVE } else { HEARTBEAT }
    }

    /// Sends a request in `life` and gives the reply, unless that is a refusal. Does not go on with another adapter.
    pub(crate) fn call_in(
        &self,
        life: u32,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), Error> {
        let mut connection = self.lock();
        if connection.life != life {
            return Err(succeeded());
        }
        let translated = self.translate(request)?;
        match connection.transport.call(&translated, descriptors)? {
            (Reply::Error { status, detail }, _) => Err(Error::Refused { status, detail }),
            (mut reply, descriptors) => {
                self.learn(request, &mut reply); // While the connection is held: nobody resumes between.
                Ok((reply, descriptors))
            }
        }
    }

    /// Sends a request as it is to the present adapter: without other names for keys, without a second attempt.
    pub(crate) fn exchange(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), Error> {
        Ok(self.lock().transport.call(request, descriptors)?)
    }

    /// Sends a request; if the adapter ends meanwhile, to the next one, where that is right.
    pub(crate) fn call(&self, request: &Request) -> Result<Reply, Error> {
        let mut sent = false;
        self.in_some_life(|life| {
            if sent && !is_repeatable(request) {
                return Err(unknown_outcome());
            }
            if self.resumes() {
                self.check_alive(life)?; // Who is gone before was not asked.
            }
            sent = true;
            Ok(self.call_in(life, request, &[])?.0)
        })
    }

    /// Does something in the present life, and again in the next one if that ends meanwhile.
    pub(crate) fn in_some_life<T>(&self, mut work: impl FnMut(u32) -> Result<T, Error>) -> Result<T, Error> {
        loop {
            let life = self.life();
            match work(life) {
                Err(error) if self.resumes() && error.is_gone() => drop(self.resume(life, None)?),
                other => return other,
            }
        }
    }

    /// Fails if the adapter of `life` is known to be gone.
    pub(crate) fn check_alive(&self, life: u32) -> Result<(), Error> {
        let mut connection = self.lock();
        if connection.life != life {
            return Err(succeeded());
        }
        Ok(connection.transport.check_alive()?)
    }

    /// The key that a handle of this name has now; of one that was lost, that of long ago.
    pub(crate) fn present_key(&self, name: u64) -> u64 {
        self.key_of(name).unwrap_or(name)
    }

    /// The same, or the refusal by which it was lost.
    pub(crate) fn key_of(&self, name: u64) -> Result<u64, Error> {
        match self.held().as_ref().and_then(|held| held.opened.get(&name)) {
            Some(Opened { now: Err((status, detail)), .. }) => {
                Err(Error::Refused { status: *status, detail: detail.clone() })
            }
            Some(Opened { now: Ok(key), .. }) => Ok(*key),
            None => Ok(name),
        }
    }

    /// Whether writes to what has this name may be made again.
    pub(crate) fn replays(&self, name: u64) -> bool {
        self.held().as_ref().and_then(|held| held.opened.get(&name)).is_some_and(|opened| opened.replays)
    }

    fn held(&self) -> Option<MutexGuard<'_, Held>> {
        Some(self.lives.as_ref()?.held())
    }

    /// The request with the keys of the present life.
    pub(crate) fn translate<'a>(&self, request: &'a Request) -> Result<Cow<'a, Request>, Error> {
        if !self.resumes() {
            return Ok(Cow::Borrowed(request));
        }
        let mut translated = request.clone();
        if let Some(key) = key_of_request(&mut translated) {
            let present = self.key_of(*key);
            if present.is_err() && matches!(request, Request::Close { .. }) {
                self.held().into_iter().for_each(|mut held| drop(held.opened.remove(key)));
            }
            *key = present?;
        }
        Ok(Cow::Owned(translated))
    }

    /// Remembers what was opened and closed. What was opened gets a name, which stands in the reply then.
    pub(crate) fn learn(&self, request: &Request, reply: &mut Reply) {
        let Some(mut held) = self.held() else { return };
        if let (Request::Close { key }, Reply::Done) = (request, &*reply) {
            held.opened.remove(key);
        }
        let Some((how, identity, block_size)) = reopened_by(request, reply) else { return };
        let Some(key) = key_in_reply(reply) else { return };
        let mut name = *key;
        while held.opened.contains_key(&name) {
            name = name.wrapping_add(1); // Of another store's keys in another life.
        }
        held.opened.insert(name, Opened { how, identity, block_size, now: Ok(*key), replays: false });
        *key = name;
    }

    /// Takes note of the reply to a request that went by a queue. True if the request is to be asked again: the adapter ended
    /// over it, and that does no harm.
    pub(crate) fn asks_again(&self, request: &Request, reply: &mut Result<Reply, Error>) -> bool {
        match reply {
            Ok(reply) => self.learn(request, reply),
            Err(Error::Io(error)) => {
                return error.status == Status::E_OUTCOME_UNKNOWN && is_repeatable(request);
            }
            Err(_) => {}
        }
        false
    }

    /// From now on the queue counts among those that a restart concerns.
    pub(crate) fn watch(&self, memory: &QueueView) -> u64 {
        let Some(mut held) = self.held() else { return 0 };
        held.next_queue += 1;
        let number = held.next_queue;
        held.queues.insert(number, Watched { memory: memory.clone(), standing: Standing::Runs });
        number
    }

    /// The queue has ended.
    pub(crate) fn unwatch(&self, number: u64) {
        if let Some(lives) = &self.lives {
            lives.held().queues.remove(&number);
            lives.settled.notify_all();
        }
    }

    /// How a queue stands to the requests that it had. If it may make writes again, the others wait for it from here on, until
    /// [`Link::arrive`].
    pub(crate) fn stand(&self, number: u64) -> Standing {
        let mut held = self.held();
        let Some(watched) = held.as_mut().and_then(|held| held.queues.get_mut(&number)) else {
            return Standing::Runs;
        };
        if watched.standing == Standing::MayReplay {
            watched.standing = Standing::Replays;
        }
        watched.standing
    }

    /// The queue has other memory now, in the same standing.
    pub(crate) fn move_watch(&self, number: u64, memory: &QueueView) {
        if let Some(watched) = self.held().as_mut().and_then(|held| held.queues.get_mut(&number)) {
            watched.memory = memory.clone();
        }
    }

    /// The queue has done what had to be done before anything else. Waits until all have, or their time is over.
    pub(crate) fn arrive(&self, number: u64) {
        let Some(lives) = &self.lives else { return };
        let mut held = lives.held();
        if let Some(watched) = held.queues.get_mut(&number) {
            watched.standing = Standing::Runs;
        }
        lives.settled.notify_all();
        let end = Instant::now() + GRACE;
        loop {
            let stands = |held: &Held, as_it: Standing| held.queues.values().any(|it| it.standing == as_it);
            let late = Instant::now() >= end;
            if late {
                let missing = held.queues.values_mut().filter(|it| it.standing == Standing::MayReplay);
                missing.for_each(|it| it.standing = Standing::Late);
            }
            if !stands(&held, Standing::MayReplay) && !stands(&held, Standing::Replays) {
                return;
            }
            let waited = lives.settled.wait_timeout(held, LONGEST_PAUSE);
            held = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Goes on with the next adapter after that of `life`, if nobody did. False: not before `until`.
    ///
    /// # Errors
    /// [`TransportError::Gone`] if there was none within the session's patience, or not one that takes the session.
    pub(crate) fn resume(&self, life: u32, until: Option<Instant>) -> Result<bool, Error> {
        let Some(lives) = &self.lives else {
            return Err(TransportError::Gone("the session ended with it: connect again".to_owned()).into());
        };
        let mut stage = lives.stage();
        loop {
            if stage.life != life {
                return Ok(true);
            }
            if let Some(why) = &stage.over {
                return Err(TransportError::Gone(why.clone()).into());
            }
            if !stage.taken {
                break;
            }
            let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Ok(false);
            }
            let waited = lives.moved_on.wait_timeout(stage, left.min(LONGEST_PAUSE));
            stage = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        stage.taken = true;
        let since = *stage.since.get_or_insert_with(Instant::now);
        drop(stage);
        let found = self.find_next(lives, since, until);
        let mut stage = lives.stage();
        stage.taken = false;
        let resumed = match found {
            Ok(Some(())) => {
                (stage.life, stage.since) = (life.wrapping_add(1), None);
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(why) => {
                stage.over = Some(why.clone());
                Err(TransportError::Gone(why).into())
            }
        };
        lives.moved_on.notify_all();
        resumed
    }

    /// The error is why there will be none.
    fn find_next(&self, lives: &Lives, since: Instant, until: Option<Instant>) -> Result<Option<()>, String> {
        let end = since + lives.patience;
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match self.attempt(lives) {
                Ok(()) => return Ok(Some(())),
                Err(error) => error,
            };
            let now = Instant::now();
            let passes = matches!(error, Error::Connect { .. })
                || error.is_gone()
                || error.status() == Some(Status::E_NO_RESOURCES);
            if !passes {
                return Err(format!("it ended, and the session cannot go on with the next one: {error}"));
            }
            if now >= end {
                return Err(format!(
                    "it ended {:.1?} ago, and none took the session since; the last attempt: {error}",
                    now.duration_since(since)
                ));
            }
            let left = until.unwrap_or(end).min(end).saturating_duration_since(now);
            if left.is_zero() {
                return Ok(None);
            }
            std::thread::sleep(pause.min(left));
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Connects, opens everything again, and lets all threads of the session know of it.
    fn attempt(&self, lives: &Lives) -> Result<(), Error> {
        let mut transport = (lives.connect)()?;
        let welcome = hello(&mut *transport)?;
        let before = self.welcome();
        if welcome.adapter == before.adapter {
            let text = "it still runs and has ended this session; its log says why";
            return Err(Error::Protocol(text.to_owned()));
        }
        let successive = welcome.life == before.life.wrapping_add(1);
        let opened: Vec<(u64, Opened)> =
            lives.held().opened.iter().map(|(name, opened)| (*name, opened.clone())).collect();
        let mut again = Vec::with_capacity(opened.len());
        for (name, mut opened) in opened {
            opened.open_again(&mut *transport, successive)?;
            again.push((name, opened));
        }
        let mut connection = self.lock();
        let mut held = lives.held();
        let mut unwanted = Vec::new();
        for (name, opened) in again {
            match held.opened.get_mut(&name) {
                Some(it) => *it = opened,
                None => unwanted.extend(opened.now.ok()), // Closed meanwhile.
            }
        }
        let replays = successive && held.opened.values().any(|opened| opened.replays);
        held.queues.values_mut().for_each(|watched| watched.adapter_ended(replays));
        drop(held);
        *connection = Connection { transport, welcome, life: connection.life.wrapping_add(1) };
        for key in unwanted {
            // Best effort: the session's end closes it at the latest.
            let _ = connection.transport.call(&Request::Close { key }, &[]);
        }
        Ok(())
    }
}

impl Lives {
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watched {
    /// Its adapter is dead, and another there; `replays` says whether there is anything open whose writes may be made again.
    fn adapter_ended(&mut self, replays: bool) {
        use std::sync::atomic::Ordering::Acquire;
        // What was announced and never taken out was heard of, for all that anybody knows. What is announced from now on is heard
        // by nobody.
        let heard = self.memory.tail().load(Acquire) != self.memory.cq_head().load(Acquire);
        self.standing = match self.standing {
            Standing::Runs if !heard => Standing::Unheard,
            Standing::Runs | Standing::MayReplay | Standing::Replays if replays => Standing::MayReplay,
            Standing::Runs | Standing::MayReplay | Standing::Replays => Standing::Late,
            other => other,
        };
    }
}

impl Opened {
    /// An error is the connection's; a refusal is kept.
    fn open_again(&mut self, transport: &mut dyn Transport, successive: bool) -> Result<(), Error> {
        if self.now.is_err() {
            return Ok(());
        }
        let (reply, _) = transport.call(&self.how, &[])?;
        let another = || (Status::E_NO_RESOURCE, "what has its name now is something else".to_owned());
        self.replays = false;
        self.now = match reply {
            Reply::Error { status, detail } => Err((
                status,
                format!("it could not be opened again after a restart of the adapter: {detail}"),
            )),
            Reply::Grant(GrantInfo { key, volume, block_size, sole_writer, .. }) => {
                let same = volume == self.identity && block_size == self.block_size;
                self.replays =
                    same && successive && sole_writer && matches!(self.how, Request::OpenExclusive { .. });
                if same { Ok(key) } else { Err(another()) }
            }
            Reply::File(FileInfo { key, block_size, attributes, .. }) => {
                let same = u128::from(attributes.number) == self.identity && block_size == self.block_size;
                if same { Ok(key) } else { Err(another()) }
            }
            other => return Err(unexpected(&other)),
        };
        Ok(())
    }
}

/// Says hello, and sees that both sides speak the same version.
fn hello(transport: &mut dyn Transport) -> Result<Welcome, Error> {
    let hello = Request::Hello { min_version: wire::VERSION, max_version: wire::VERSION };
    match transport.call(&hello, &[])?.0 {
        Reply::Welcome(welcome) if welcome.version == wire::VERSION => Ok(welcome),
        Reply::Welcome(welcome) => Err(Error::Protocol(format!(
            "it chose version {}, this library speaks {} only",
            welcome.version,
            wire::VERSION
        ))),
        Reply::Error { status: Status::E_VERSION, detail } => Err(Error::Refused {
            status: Status::E_VERSION,
            detail: format!(
                "{detail} (this library speaks version {}: use the adapter and the library of one release)",
                wire::VERSION
            ),
        }),
        Reply::Error { status, detail } => Err(Error::Refused { status, detail }),
        other => Err(unexpected(&other)),
    }
}

fn succeeded() -> Error {
    TransportError::Gone("another one serves the session since: what was made before is gone".to_owned())
        .into()
}

/// What became of a request that must not be sent again.
pub(crate) fn unknown_outcome() -> Error {
    let detail = "the adapter ended before it answered; whether it was done has to be looked up".to_owned();
    Error::Refused { status: Status::E_OUTCOME_UNKNOWN, detail }
}

/// Whether a request that may have been done already does the same when it is done again, by the next adapter.
fn is_repeatable(request: &Request) -> bool {
    match request {
        // What they made ended with the adapter.
        Request::OpenVolume { .. }
        | Request::OpenExclusive { .. }
        | Request::Close { .. }
        | Request::DestroyQueue { .. }
        | Request::ReleaseMemory { .. } => true,
        Request::OpenFile(OpenFile { create, truncate, .. }) => !truncate && *create != Create::New,
        // They only look, or make sure of something that stays so.
        Request::Query { .. }
        | Request::ListVolumes { .. }
        | Request::ShowVolume { .. }
        | Request::ShowDevice
        | Request::Statistics
        | Request::ListLimits { .. }
        | Request::ShowHealth
        | Request::QueryFile { .. }
        | Request::ListExtensions { .. }
        | Request::GrowFile { .. }
        | Request::ListDirectory { .. }
        | Request::StatPath { .. }
        | Request::ReadLink { .. }
        | Request::StatVolume { .. }
        | Request::SyncFile { .. }
        | Request::SyncFiles { .. } => true,
        Request::Once { .. } => true,
        _ => false,
    }
}

/// What opens the same again, what it must be then, and the size of its blocks.
fn reopened_by(request: &Request, reply: &Reply) -> Option<(Request, u128, u32)> {
    match (request, reply) {
        (Request::OpenVolume { .. } | Request::OpenExclusive { .. }, Reply::Grant(grant)) => {
            Some((request.clone(), grant.volume, grant.block_size))
        }
        (Request::OpenFile(open), Reply::File(info)) => {
            let open = OpenFile { create: Create::Never, truncate: false, allocate: 0, ..open.clone() };
            Some((Request::OpenFile(open), info.attributes.number.into(), info.block_size))
        }
        _ => None,
    }
}

fn key_in_reply(reply: &mut Reply) -> Option<&mut u64> {
    match reply {
        Reply::Grant(grant) => Some(&mut grant.key),
        Reply::File(info) => Some(&mut info.key),
        _ => None,
    }
}

fn key_of_request(request: &mut Request) -> Option<&mut u64> {
    match request {
        Request::Close { key }
        | Request::Query { key }
        | Request::QueryFile { key }
        | Request::ListExtensions { key, .. }
        | Request::GrowFile { key, .. }
        | Request::SetLength { key, .. }
        | Request::SetAttributes { of: FileTarget::Key(key), .. }
        | Request::SyncFile { key, .. } => Some(key),
        _ => None,
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("life", &self.life()).finish_non_exhaustive()
    }
}
