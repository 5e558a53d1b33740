//! The control plane: sessions, grants, memory regions, queues, volumes. One owner of the tables, one thread, no waiting:
//! what takes time is pending, and [`Control::advance`] looks at it again.
//!
//! It knows no socket. Requests come in by [`Control::request`], replies go out by [`Control::next_reply`].

mod balance;
mod drain;
mod files;
mod health;
mod lane;
mod limits;
mod manage;
mod memory;
mod process;
mod quotas;
mod registrar;
mod requests;
#[cfg(test)]
mod rig;
mod session;
mod users;
mod writers;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use driver::block::Geometry;
use driver::hal::Mapper;
use store::{Ledger, Volume};
use tpt::{Domain, KeyInstance, Tables};
use wire::Status;
use wire::control::{MAX_DETAIL, Reply, Request};
use wire::discard::{Owner, pending_of};
use wire::shm::Lock;
use wire::socket::Credentials;

use crate::confine::Confinement;
use crate::daemon::Serving;
use crate::device::{Identity, Losses, Witness};
use crate::engine::Lengths;
use crate::mailbox::Command;
use crate::poller::Poller;
use crate::storage::Storage;
use balance::Balance;
#[cfg(test)]
pub(crate) use balance::MOVED;
use drain::Pending;
use files::{FileLanes, OpenFiles};
use lane::Lane;
use limits::{Ceilings, Held, What};
pub use limits::{Limits, Policy};
use manage::Management;
use process::Process;
use quotas::Quotas;
use registrar::Registrar;
use session::Session;
use users::Users;
use writers::Writers;

/// Names a session for the life of the adapter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionId(pub u64);

/// Which request a reply answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// Of whom.
    pub session: SessionId,
    /// Chosen by the application; for what came by a queue, by the control plane.
    pub id: u32,
    by_queue: bool,
}

impl Caller {
    /// Of a request that came by the socket.
    pub const fn new(session: SessionId, id: u32) -> Self {
        Self { session, id, by_queue: false }
    }
}

/// A reply to be sent, with the descriptors that go with it.
#[derive(Debug)]
pub struct Outgoing {
    /// To whom, and to what.
    pub caller: Caller,
    /// The reply.
    pub reply: Reply,
    /// At most one for now: the eventfd of a queue.
    pub descriptors: Vec<OwnedFd>,
}

/// A refusal: what the application is told.
#[derive(Debug)]
pub struct Refusal {
    pub(crate) status: Status,
    pub(crate) detail: String,
}

impl Refusal {
    pub(crate) fn new(status: Status, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }

    /// The kernel refused something that the application needs.
    pub(crate) fn os(what: &str, error: &std::io::Error) -> Self {
        Self::new(Status::E_NO_RESOURCES, format!("{what}: {error}"))
    }

    pub(crate) fn into_text(self) -> String {
        format!("{}: {}", self.status, self.detail)
    }

    pub(crate) fn into_reply(self) -> Reply {
        let Self { status, mut detail } = self;
        let most = wire::name::beginning(&detail, MAX_DETAIL).len();
        detail.truncate(most);
        Reply::Error { status, detail }
    }
}

/// What the control plane is built from.
pub struct Parts {
    /// As the user gave it.
    pub uri: String,
    /// What the device says of itself.
    pub identity: Identity,
    /// Its shape.
    pub geometry: Geometry,
    /// Its IOMMU.
    pub mapper: Arc<dyn Mapper>,
    /// Whether mapping memory pins it.
    pub mapper_pins: bool,
    /// What runs engines.
    pub pollers: Vec<Poller>,
    /// The published tables' owner.
    pub tables: Tables,
    /// The store's thread.
    pub storage: Storage,
    /// How long files are: the engines'.
    pub lengths: Arc<Lengths>,
    /// What the device may have lost.
    pub losses: Losses,
    /// Who may do what, and how much.
    pub policy: Policy,
}

/// See the module.
pub struct Control {
    uri: String,
    identity: Identity,
    geometry: Geometry,
    mapper: Arc<dyn Mapper>,
    lock: Lock,
    pollers: Vec<Poller>,
    tables: Tables,
    storage: Storage,
    registrar: Registrar,
    policy: Policy,
    ceilings: Ceilings,
    users: Users,
    quotas: Quotas,
    /// Of each volume, as the store has it.
    volumes: BTreeMap<String, Volume>,
    writers: Writers,
    /// Changes that were made once.
    ledger: Ledger,
    /// Random: what tells this run from all others.
    run: u64,
    sessions: BTreeMap<SessionId, Session>,
    pending: Vec<Pending>,
    lane: Lane,
    files: OpenFiles,
    file_lanes: FileLanes,
    /// How long files are, as engines have it.
    lengths: Arc<Lengths>,
    losses: Losses,
    management: Management,
    outbox: VecDeque<Outgoing>,
    /// Commands that found a poller's mailbox full.
    unsent: VecDeque<(usize, Command)>,
    next_session: u64,
    next_queue: u32,
    balance: Balance,
    next_move: u64,
    /// Who waits for the device's health.
    health_asked: Vec<Caller>,
    /// Of queues that are gone.
    completed_before: u64,
    urgent: bool,
}

impl Control {
    /// The control plane of one device. What the process has left now is what sessions share.
    ///
    /// # Errors
    /// The kernel's: no eventfd.
    pub fn new(parts: Parts) -> std::io::Result<Self> {
        let Parts { uri, identity, geometry, mapper, mapper_pins, .. } = parts;
        let Parts { pollers, tables, storage, lengths, losses, policy, .. } = parts;
        let volumes: BTreeMap<_, _> =
            storage.initial_volumes().into_iter().map(|v| (v.name.clone(), v)).collect();
        let ledger = storage.initial_ledger();
        let quotas = Quotas::new(volumes.values(), pollers.len());
        let process = Process::measure(mapper.mappings_left());
        let ceilings = Ceilings::new(&policy, &process, tables.published().limits());
        let management = Management::new()?;
        pollers.iter().for_each(|poller| poller.shared().set_bell(management.bell.clone()));
        Ok(Self {
            uri,
            identity,
            geometry,
            registrar: Registrar::new(mapper.clone())?,
            mapper,
            lock: if mapper_pins { Lock::PinnedElsewhere } else { Lock::Mlock },
            balance: Balance::new(pollers.len()),
            pollers,
            tables,
            storage,
            policy,
            ceilings,
            users: Users::default(),
            quotas,
            volumes,
            writers: Writers::default(),
            ledger,
            run: random()?,
            sessions: BTreeMap::new(),
            pending: Vec::new(),
            lane: Lane::default(),
            files: OpenFiles::new(lengths.capacity()),
            file_lanes: FileLanes::default(),
            lengths,
            losses,
            management,
            outbox: VecDeque::new(),
            unsent: VecDeque::new(),
            next_session: 1,
            next_queue: 1,
            next_move: 0,
            health_asked: Vec::new(),
            completed_before: 0,
            urgent: false,
        })
    }

    /// A new connection. Its identity is frozen here; the session ends when the connection does.
    pub fn connect(&mut self, mut credentials: Credentials) -> Result<SessionId, Refusal> {
        let (uid, pid) = (credentials.uid, credentials.pid);
        credentials.groups.sort_unstable(); // Searched whenever an access list is asked.
        credentials.groups.dedup();
        let admitted = self.admit(credentials);
        if self.users.may_log(uid) {
            match &admitted {
                Ok(id) => tracing::info!(session = id.0, uid, pid, "session connected"),
                Err(Refusal { status, detail }) => {
                    tracing::info!(uid, pid, %status, detail, "connection refused");
                }
            }
        }
        admitted
    }

    fn admit(&mut self, credentials: Credentials) -> Result<SessionId, Refusal> {
        self.policy.admit(&credentials)?;
        let uid = credentials.uid;
        self.ceilings.check_sessions(self.sessions.len())?;
        let of_user = self.held_by(uid);
        for what in [What::Connections, What::Descriptors] {
            self.ceilings.check(what, 1, &Held::default(), (uid, &of_user))?;
        }
        let id = SessionId(self.next_session);
        let Ok(domain) = u32::try_from(self.next_session) else {
            return Err(Refusal::new(
                Status::E_NO_RESOURCES,
                "the adapter has used up its domains; restart it",
            ));
        };
        self.next_session += 1;
        self.users.entry(uid).sessions.insert(id);
        self.sessions.insert(id, Session::new(id, Domain(domain), credentials, Witness::new(&self.losses)));
        Ok(id)
    }

    /// How much of everything a user holds in all its sessions, with the descriptors of its own that are hard to close.
    fn held_by(&self, uid: u32) -> Held {
        let ids = self.users.get(uid).into_iter().flat_map(|user| &user.sessions);
        let sessions = ids.filter_map(|id| self.sessions.get(id));
        let mut held = sessions.fold(Held::default(), |sum, session| sum.plus(&session.held()));
        let hanging = pending_of(Owner::User(uid)) + pending_of(Owner::Connections(uid));
        held.add(What::Descriptors, hanging as u64);
        held
    }

    /// Who is at the other end of a session.
    pub fn user_of(&self, session: SessionId) -> Option<u32> {
        self.sessions.get(&session).map(|s| s.credentials.uid)
    }

    /// Whether the session takes another request now: not while it, or its user, has too many without an answer, and not
    /// while too many descriptors that its user sent cannot be closed.
    pub fn takes_requests(&self, session: SessionId) -> bool {
        self.sessions.get(&session).is_some_and(|s| {
            let uid = s.credentials.uid;
            let of_user = self.users.get(uid).map_or(0, |user| user.outstanding);
            !s.closing
                && s.outstanding < self.policy.limits.outstanding
                && of_user < self.ceilings.of_user(What::Requests)
                && pending_of(Owner::User(uid)) < DESCRIPTORS_HANGING
        })
    }

    /// Descriptors that were handed to the session, and that it may not have received yet.
    pub fn lent(&self, session: SessionId) -> u64 {
        self.sessions.get(&session).map_or(0, |s| s.lent)
    }

    /// The session has received all that was sent to it.
    pub fn received_all(&mut self, session: SessionId) {
        self.sessions.get_mut(&session).into_iter().for_each(|s| s.lent = 0);
    }

    /// Whether another line about this session's connection is worth its place in the log.
    pub fn may_log(&mut self, session: SessionId) -> bool {
        self.user_of(session).is_some_and(|uid| self.users.may_log(uid))
    }

    /// A request with the descriptors that came with it. Exactly one reply will go out for it, now or later.
    pub fn request(&mut self, caller: Caller, request: Request, descriptors: Vec<OwnedFd>) {
        if let Some(session) = self.sessions.get_mut(&caller.session) {
            session.outstanding += 1;
            self.users.entry(session.credentials.uid).outstanding += 1;
            self.dispatch(caller, request, descriptors);
        }
    }

    /// The next reply to send.
    pub fn next_reply(&mut self) -> Option<Outgoing> {
        self.outbox.pop_front()
    }

    /// Whether anything is under way that `advance` must look after soon.
    pub fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
            || self.lane.is_running()
            || self.file_lanes.is_running()
            || !self.unsent.is_empty()
            || self.urgent
            || self.registrar.is_busy()
            || self.balance.is_moving()
            || self.has_managed()
            || self.wants_health()
    }

    /// Whether every session and everything that was theirs is gone.
    pub fn is_drained(&self) -> bool {
        self.sessions.is_empty()
            && self.pending.is_empty()
            && !self.lane.is_running()
            && !self.file_lanes.is_running()
    }

    /// Becomes readable (edge-triggered) when `advance` has something from the store.
    pub fn storage_done(&self) -> BorrowedFd<'_> {
        self.storage.done()
    }

    /// Likewise when `advance` has memory that came in or went out.
    pub fn memory_done(&self) -> BorrowedFd<'_> {
        self.registrar.done()
    }

    /// Becomes readable (edge-triggered) when a poller has something for `advance`, after [`Control::fall_asleep`].
    pub fn managed(&self) -> BorrowedFd<'_> {
        self.management.bell.as_fd()
    }

    /// Whether a device command is stuck, as some poller sees it.
    pub fn is_stuck(&self) -> bool {
        self.pollers.iter().any(|p| p.shared().is_stuck())
    }

    /// A device reset goes on: it needs looking after often, and ends only when every queue has been polled.
    pub fn reset_goes_on(&mut self, urgent: bool) {
        self.urgent = urgent;
        if urgent {
            self.pollers.iter().for_each(|poller| poller.waker().wake());
            self.storage.touch();
        }
    }

    /// What it drives.
    pub fn serving(&self) -> Serving {
        Serving {
            uri: self.uri.clone(),
            model: self.identity.model.clone(),
            serial: self.identity.serial.clone(),
            bytes: self.geometry.blocks << self.geometry.block_shift,
            block_size: self.geometry.block_size(),
            volumes: self.volumes.len(),
            pollers: self.pollers.len(),
            confinement: Confinement::default(),
        }
    }

    /// Ends the threads that turn engines: nothing is submitted any more. The memory of sessions stays mapped until this
    /// value is dropped.
    pub fn stop_pollers(mut self) -> Self {
        self.pollers.clear();
        self
    }

    /// Syncs and closes all file systems; to be called while the device still runs. Waits for that, for so long at the most.
    pub fn close_files(&mut self, patience: Duration) {
        let all = self.is_drained();
        self.storage.close_files(patience, all);
    }

    /// Sessions connected, or still giving back what they held.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Looks after everything that takes time. Call often while [`Control::is_waiting`].
    pub fn advance(&mut self, now: Instant) {
        self.send_commands();
        self.advance_balance(now);
        self.advance_management();
        self.advance_pending(now);
        self.advance_memory();
        self.advance_lane();
        self.advance_file_lanes();
        self.keep_instances();
        self.log_denials(now);
    }

    fn reply(&mut self, caller: Caller, reply: Reply) {
        self.reply_with(caller, reply, Vec::new());
    }

    fn reply_with(&mut self, caller: Caller, reply: Reply, descriptors: Vec<OwnedFd>) {
        if let Some(session) = self.sessions.get_mut(&caller.session) {
            session.outstanding -= 1;
            self.users.entry(session.credentials.uid).outstanding -= 1;
            if caller.by_queue {
                self.answer_managed(caller.id, &reply);
            } else if !session.closing {
                session.lent += descriptors.len() as u64;
                self.outbox.push_back(Outgoing { caller, reply, descriptors });
            }
        }
    }

    fn answer(&mut self, caller: Caller, result: Result<Reply, Refusal>) {
        let reply = result.unwrap_or_else(|refusal| {
            tracing::debug!(session = caller.session.0, status = %refusal.status, detail = refusal.detail, "refused");
            refusal.into_reply()
        });
        self.reply(caller, reply);
    }

    /// Keeps a stock of key instances that are reserved on the device, so that no key of today is ever given out again.
    fn keep_instances(&mut self) {
        if self.tables.highest_instance().saturating_add(INSTANCES_LOW) >= self.storage.instance_ceiling() {
            self.storage.reserve_instances(INSTANCES_STOCK);
        }
        self.tables.set_instance_ceiling(self.storage.instance_ceiling());
    }

    /// The first instance for tables over this storage.
    pub fn first_instance(storage: &Storage) -> KeyInstance {
        KeyInstance(storage.first_instance())
    }
}

fn random() -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(bytes))
}

/// While as many descriptors that a user sent cannot be closed, no more are taken from it.
const DESCRIPTORS_HANGING: usize = 16;
/// Instances reserved at a time.
pub const INSTANCES_STOCK: u32 = 1 << 16;
/// More are reserved when no more than this are left.
const INSTANCES_LOW: u32 = 1 << 12;
/// How long a modify, delete or revoke waits for the quiescent point.
pub const QUIESCE_TIMEOUT: Duration = Duration::from_secs(2);
