//! A controller: opening, looking after, resetting, shutting down.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use crate::block::{BlockController, BlockQueue, Geometry, Model, ResetProgress, Watch};
use crate::hal::{Device, Mapper};
use crate::spec::nvme::{
    AsyncEvent, Csts, ErrorLogEntry, EventNotices, IdentifyController, IdentifyNamespace, SmartLog, Vs, cns,
};

use super::identity::{Traits, check_entry_sizes};
use super::link::{Link, Wait};
use super::queue::{Queue, QueueMemory, QueueParts};
use super::{Identity, NvmeError};
use crate::lifecycle::{Life, Phase};

/// How a controller is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// I/O queue pairs, at least 1.
    pub queues: u16,
    /// Entries of an I/O queue at most, 2 to 4096; one command less can be outstanding. The controller may allow fewer.
    pub entries: u16,
    /// The namespace; the first active one if `None`.
    pub namespace: Option<u32>,
    /// Whether completions raise interrupts, if the device has a vector for each queue and one more.
    pub interrupts: bool,
    /// Whether doorbells are in memory, if the device has that (Doorbell Buffer Config), and its registers are only
    /// written when it asks for it.
    pub shadow_doorbells: bool,
    /// How long an admin command may take.
    pub admin_timeout: Duration,
    /// The longest that is waited for the controller to become ready or disabled, if it says that it may take longer.
    pub ready_timeout: Duration,
}

impl Options {
    /// `queues` pairs of 256 entries, the first namespace, with interrupts and shadow doorbells, ten seconds.
    pub fn new(queues: u16) -> Self {
        Self {
            queues,
            entries: 256,
            namespace: None,
            interrupts: true,
            shadow_doorbells: true,
            admin_timeout: Duration::from_secs(10),
            ready_timeout: Duration::MAX,
        }
    }
}

/// Where a reset is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Idle,
    Disabling {
        until: Instant,
    },
    /// Disabled; queues end what is outstanding.
    Draining,
    Enabling {
        until: Instant,
        again: bool,
    },
}

/// What is known of a device, and must still be so after a reset.
struct Profile {
    identity: Identity,
    traits: Traits,
    namespaces: Vec<u32>,
    notices: EventNotices,
    /// It has Doorbell Buffer Config.
    shadow_doorbells: bool,
    /// Entries of its error log.
    error_entries: usize,
}

impl Profile {
    /// Whether who knows this one is not wrong about `now`.
    fn holds_for(&self, now: &Self) -> bool {
        self.identity == now.identity && self.traits.hold_for(&now.traits)
    }
}

/// An NVMe controller with its I/O queues. Owned by a thread that may wait: its calls sleep.
///
/// Dropped, it is shut down as by [`Controller::shutdown`].
pub struct Controller<D: Device> {
    link: Link<D>,
    life: Life,
    profile: Profile,
    entries: u16,
    /// Whether queue `i` interrupts with vector `i`.
    vectors: bool,
    /// Those that nobody took yet.
    queues: Vec<Option<Queue<D::Registers>>>,
    stage: Stage,
    /// What vector 0, the admin queue's, is routed to. Nobody listens: admin commands are polled for.
    _admin_interrupt: Option<OwnedFd>,
}

impl<D: Device> Controller<D> {
    /// Opens `device` with `queues` I/O queue pairs on its first active namespace; see [`Options::new`].
    ///
    /// # Errors
    /// As [`Controller::open_with`].
    pub fn open(device: D, queues: u16) -> Result<Self, NvmeError> {
        Self::open_with(device, &Options::new(queues))
    }

    /// Resets `device`, enables it, identifies it and makes its I/O queues.
    ///
    /// # Errors
    /// Any [`NvmeError`]; the device is stopped then.
    pub fn open_with(device: D, options: &Options) -> Result<Self, NvmeError> {
        if options.queues == 0 || !(2..=4096).contains(&options.entries) {
            let (queues, entries) = (options.queues, options.entries);
            return Err(NvmeError::Options(format!(
                "{queues} queues of {entries} entries; 1 or more of 2 to 4096"
            )));
        }
        let mut link = Link::open(device, options)?;
        link.enable()?;
        link.wait_for("enabling", Link::enabled)?;
        let profile = identify(&mut link, options.namespace)?;
        let (admin, registers) = link.admin()?;
        negotiate(admin.number_of_queues(registers, options.queues)?, options.queues)?;
        let mut interrupts = route(link.device(), options)?;
        let geometry = profile.traits.geometry;
        let entries = options.entries.min(link.cap.mqes_z().saturating_add(1));
        for _ in 0..options.queues {
            let memory = QueueMemory::new(link.mapper.as_ref(), entries, &geometry)?;
            link.hold(Arc::new(memory));
        }
        if options.shadow_doorbells && profile.shadow_doorbells {
            link.offer_shadows(options.queues)?;
        }
        let mut controller = Self {
            vectors: !interrupts.is_empty(),
            _admin_interrupt: (!interrupts.is_empty()).then(|| interrupts.remove(0)),
            link,
            life: Life::new(options.queues),
            profile,
            entries,
            queues: Vec::new(),
            stage: Stage::Idle,
        };
        controller.create_queues()?;
        controller.listen()?;
        let mut interrupts = interrupts.into_iter();
        controller.queues =
            (1..=options.queues).map(|qid| Some(controller.queue(qid, interrupts.next()))).collect();
        controller.life.enter(Phase::Running);
        Ok(controller)
    }

    fn queue(&self, qid: u16, interrupt: Option<OwnedFd>) -> Queue<D::Registers> {
        Queue::new(QueueParts {
            registers: Arc::clone(&self.link.registers),
            shared: Arc::clone(self.life.shared()),
            memory: Arc::clone(&self.link.held()[usize::from(qid - 1)]),
            traits: self.profile.traits,
            nsid: self.profile.identity.namespace,
            qid,
            entries: self.entries,
            dstrd: self.link.cap.dstrd(),
            shadows: self.link.shadows(),
            interrupt,
        })
    }

    /// Creates the queues on the controller; those that were dropped no more.
    fn create_queues(&mut self) -> Result<(), NvmeError> {
        let memories: Vec<_> = self.link.held().to_vec();
        for (qid, memory) in (1u16..).zip(memories) {
            if self.life.shared().is_let_go(usize::from(qid - 1)) {
                continue;
            }
            let places = (memory.submissions.iova(0), memory.completions.iova(0));
            let vector = self.vectors.then_some(qid);
            let (admin, registers) = self.link.admin()?;
            admin.create_queues(registers, (qid, self.entries), places, vector)?;
        }
        Ok(())
    }

    /// Hands out one of the queues, until there is none left.
    pub fn take_queue(&mut self) -> Option<Queue<D::Registers>> {
        self.queues.iter_mut().find_map(Option::take)
    }

    /// Which device this is.
    pub fn identity(&self) -> &Identity {
        &self.profile.identity
    }

    /// The shape of its namespace.
    pub fn geometry(&self) -> &Geometry {
        &self.profile.traits.geometry
    }

    /// The ids of its active namespaces, at most 1024.
    pub fn namespaces(&self) -> &[u32] {
        &self.profile.namespaces
    }

    /// Maps memory for it.
    pub fn mapper(&self) -> Arc<dyn Mapper> {
        Arc::clone(&self.link.mapper)
    }

    /// The device under it.
    pub fn device(&self) -> &D {
        self.link.device()
    }

    /// Completions so far that answered no command: late, doubled or forged.
    pub fn anomalies(&self) -> u64 {
        self.link.anomalies() + self.life.shared().anomalies()
    }

    /// Its SMART log.
    ///
    /// # Errors
    /// [`NvmeError::NotRunning`] during a reset and after one failed; what the command says. After anything but
    /// [`NvmeError::Admin`] the controller needs a reset.
    pub fn health(&mut self) -> Result<SmartLog, NvmeError> {
        if self.life.phase() != Phase::Running {
            return Err(NvmeError::NotRunning);
        }
        let (admin, registers) = self.link.admin()?;
        admin.smart(registers)
    }

    /// The latest errors that it remembers, newest first; at most 64.
    ///
    /// # Errors
    /// As [`Controller::health`].
    pub fn error_log(&mut self) -> Result<Vec<ErrorLogEntry>, NvmeError> {
        if self.life.phase() != Phase::Running {
            return Err(NvmeError::NotRunning);
        }
        let entries = self.profile.error_entries;
        let (admin, registers) = self.link.admin()?;
        let mut errors = admin.error_log(registers, entries)?;
        errors.retain(ErrorLogEntry::is_used);
        Ok(errors)
    }

    /// Looks at the controller's status register, and at events that it reported. To be called a few times a second.
    pub fn watch(&mut self) -> Watch {
        match (self.life.phase(), self.link.status()) {
            (Phase::Gone, _) => Watch::Gone,
            (Phase::Stopping | Phase::Stopped, _) => Watch::Resetting,
            (Phase::Running, Csts::ABSENT) => Watch::Absent,
            (Phase::Running, csts) if csts.cfs() || !csts.rdy() => Watch::Failed,
            (Phase::Running, _) => match self.look_at_events() {
                Ok(true) => Watch::Running,
                Ok(false) => Watch::Changed,
                Err(error) => {
                    tracing::warn!(%error, "looking at an event that the controller reported");
                    Watch::Changed
                }
            },
        }
    }

    /// Whether the namespace is as it was, as far as the controller says anything of it.
    fn look_at_events(&mut self) -> Result<bool, NvmeError> {
        let (admin, registers) = self.link.admin()?;
        let Some(event) = admin.event(registers) else { return Ok(true) };
        tracing::info!(?event, "the controller reported an event");
        admin.end_event(registers, event)?;
        if event != AsyncEvent::NAMESPACE_CHANGED {
            return Ok(true);
        }
        let now = identify(&mut self.link, Some(self.profile.identity.namespace))?;
        Ok(self.profile.holds_for(&now))
    }

    /// Asks for events, if the controller has any that matter. One that refuses has none.
    fn listen(&mut self) -> Result<(), NvmeError> {
        if !self.profile.notices.namespaces() {
            return Ok(());
        }
        let (admin, registers) = self.link.admin()?;
        match admin.listen(registers) {
            Err(NvmeError::Admin { .. }) => Ok(()),
            other => other,
        }
    }

    /// Starts a reset: queues take nothing from now on. Go on with [`Controller::finish_reset`].
    pub fn begin_reset(&mut self) {
        if self.stage != Stage::Idle || !self.life.begin() {
            return;
        }
        self.link.disable();
        self.stage = Stage::Disabling { until: Instant::now() + self.link.patience() };
    }

    /// Takes a reset as far as it goes without waiting for queues. Queues have to be polled in the meantime: they end
    /// what is outstanding once the controller has stopped. With no reset begun, says how the last one ended.
    pub fn finish_reset(&mut self) -> ResetProgress {
        if let Stage::Disabling { until } = self.stage {
            let outcome = match self.link.disabled() {
                Wait::Done => Ok(()),
                Wait::Pending if Instant::now() < until => return ResetProgress::Pending,
                _ => self.link.reset_function(),
            };
            if outcome.is_err() {
                self.stage = Stage::Idle;
                return ResetProgress::Stuck;
            }
            if self.link.absent() {
                return self.give_up();
            }
            self.life.enter(Phase::Stopped);
            self.stage = Stage::Draining;
        }
        if self.stage == Stage::Draining {
            for queue in self.queues.iter_mut().flatten() {
                queue.poll(usize::MAX, &mut |_| ());
            }
            if !self.life.queues_are_clean() {
                return ResetProgress::Pending;
            }
            self.start_enabling(false);
        }
        if let Stage::Enabling { until, again } = self.stage {
            let outcome = match self.link.enabled() {
                Wait::Done => self.bring_up(),
                Wait::Pending if Instant::now() < until => return ResetProgress::Pending,
                Wait::Pending => Err(NvmeError::Timeout { what: "enabling", after: self.link.patience() }),
                Wait::Fatal => Err(NvmeError::Fatal),
                Wait::Absent => Err(NvmeError::Gone),
            };
            match outcome {
                Ok(()) => self.stage = Stage::Idle,
                Err(error) => return self.retry(&error, again),
            }
        }
        self.life.outcome()
    }

    fn start_enabling(&mut self, again: bool) {
        self.stage = Stage::Enabling { until: Instant::now() + self.link.patience(), again };
        if let Err(error) = self.link.enable() {
            tracing::warn!(%error, "enabling the controller"); // it will not become ready, and is given up then
        }
    }

    /// The controller is enabled: checks that it is the same and makes its queues.
    fn bring_up(&mut self) -> Result<(), NvmeError> {
        let profile = identify(&mut self.link, Some(self.profile.identity.namespace))?;
        if !self.profile.holds_for(&profile) {
            return Err(NvmeError::Changed);
        }
        let queues = u16::try_from(self.link.held().len()).unwrap_or(u16::MAX);
        let (admin, registers) = self.link.admin()?;
        negotiate(admin.number_of_queues(registers, queues)?, queues)?;
        // One that refuses now what it took before is not what the queues work with.
        self.link.renew_shadows()?;
        self.create_queues()?;
        self.listen()?;
        self.life.enter(Phase::Running);
        for queue in self.queues.iter_mut().flatten() {
            queue.poll(usize::MAX, &mut |_| ());
        }
        Ok(())
    }

    /// The controller did not come back: once more after a function reset, then no more.
    fn retry(&mut self, error: &NvmeError, again: bool) -> ResetProgress {
        tracing::warn!(%error, again, "the controller did not come back from its reset");
        if again
            || matches!(error, NvmeError::Changed)
            || self.link.reset_function().is_err()
            || self.link.absent()
        {
            return self.give_up();
        }
        self.start_enabling(true);
        ResetProgress::Pending
    }

    /// Stops the controller for good.
    fn give_up(&mut self) -> ResetProgress {
        self.stage = Stage::Idle;
        match self.link.stop() {
            Ok(()) => {
                self.life.enter(Phase::Gone);
                ResetProgress::Gone
            }
            Err(_) => ResetProgress::Stuck,
        }
    }

    /// Tells the controller of the shutdown, disables it and takes the bus from it. What is outstanding ends at the
    /// queues' next polls, and they are [`crate::block::QueueState::Gone`].
    ///
    /// # Errors
    /// [`NvmeError::Stuck`] if it cannot be stopped: then nothing outstanding ends.
    pub fn shutdown(&mut self) -> Result<(), NvmeError> {
        if !self.life.begin() {
            return Ok(());
        }
        match self.give_up() {
            ResetProgress::Gone => Ok(()),
            _ => Err(NvmeError::Stuck),
        }
    }
}

impl<D: Device> BlockController for Controller<D> {
    type Queue = Queue<D::Registers>;

    fn take_queue(&mut self) -> Option<(Self::Queue, Option<OwnedFd>)> {
        let queue = Self::take_queue(self)?;
        let interrupt = queue.interrupt_fd().and_then(|fd| fd.try_clone_to_owned().ok());
        Some((queue, interrupt))
    }

    fn model(&self) -> Model {
        let Identity { model, serial, firmware, .. } = self.identity().clone();
        Model { model, serial, firmware }
    }

    fn geometry(&self) -> &Geometry {
        Self::geometry(self)
    }

    fn mapper(&self) -> Arc<dyn Mapper> {
        Self::mapper(self)
    }

    fn watch(&mut self) -> Watch {
        Self::watch(self)
    }

    fn begin_reset(&mut self) {
        Self::begin_reset(self);
    }

    fn finish_reset(&mut self) -> ResetProgress {
        Self::finish_reset(self)
    }

    fn shut_down(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        Ok(self.shutdown()?)
    }

    fn anomalies(&self) -> u64 {
        Self::anomalies(self)
    }
}

impl<D: Device> Drop for Controller<D> {
    fn drop(&mut self) {
        if let Err(error) = self.shutdown() {
            tracing::error!(%error, "shutting down");
        }
    }
}

/// Reads what the controller says of itself and of the namespace asked for, or else the first.
fn identify<D: Device>(link: &mut Link<D>, asked: Option<u32>) -> Result<Profile, NvmeError> {
    // Limits besides MDTS came with 1.4; older controllers may not survive being asked.
    let more = link.version() >= Vs(0x0001_0400);
    let (admin, registers) = link.admin()?;
    let id: IdentifyController = admin.identify(registers, cns::CONTROLLER, 0)?;
    check_entry_sizes(&id)?;
    let namespaces = admin.namespaces(registers)?;
    let nsid = match asked {
        Some(nsid) => namespaces.iter().copied().find(|&active| active == nsid),
        None => namespaces.first().copied(),
    };
    let Some(nsid) = nsid else {
        return Err(NvmeError::NoNamespace { asked: asked.unwrap_or(0), active: namespaces });
    };
    let namespace: IdentifyNamespace = admin.identify(registers, cns::NAMESPACE, nsid)?;
    let limits = match more.then(|| admin.identify(registers, cns::CONTROLLER_COMMAND_SET, 0)).transpose() {
        Err(NvmeError::Admin { .. }) => None,
        other => other?,
    };
    let traits = Traits::new(&id, limits.as_ref(), nsid, &namespace)?;
    let notices = EventNotices(id.oaes.get());
    let shadow_doorbells = id.oacs().doorbell_buffer();
    Ok(Profile {
        identity: Identity::new(&id, nsid, &namespace),
        traits,
        namespaces,
        notices,
        shadow_doorbells,
        error_entries: usize::from(id.elpe_z) + 1,
    })
}

fn negotiate(granted: u32, asked: u16) -> Result<(), NvmeError> {
    if granted < u32::from(asked) { Err(NvmeError::Queues { asked, granted }) } else { Ok(()) }
}

/// Makes an eventfd for each vector, the admin queue's first, and routes them; none if there are too few vectors.
fn route<D: Device>(device: &D, options: &Options) -> Result<Vec<OwnedFd>, NvmeError> {
    let needed = u32::from(options.queues) + 1;
    if !options.interrupts || device.vectors() < needed {
        return Ok(Vec::new());
    }
    let make = |_| eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    let fds: Result<Vec<OwnedFd>, _> = (0..needed).map(make).collect();
    let fds = fds.map_err(|error| NvmeError::Os { what: "making an eventfd", source: error.into() })?;
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let routed = device.route_interrupts(&borrowed);
    routed.map_err(|source| NvmeError::Os { what: "routing the device's interrupts", source })?;
    Ok(fds)
}
