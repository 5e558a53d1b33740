//! A device: opening, looking after, resetting, shutting down.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use crate::block::{BlockController, BlockQueue, Geometry, Model, ResetProgress, Watch};
use crate::hal::{Device, Mapper, PciFunction};
use crate::lifecycle::{Life, Phase};
use crate::spec::virtio::{feature, pci, status};

use super::VirtioError;
use super::identity::{Identity, Traits};
use super::link::{Link, Wait};
use super::queue::{Queue, QueueParts};
use super::ring::{LEAST_ENTRIES, QueueMemory, fitting_size, room};
use super::transport::Notifier;

/// How a device is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Request queues, at least 1.
    pub queues: u16,
    /// Entries of a queue at most, 4 to 32768; a power of two of them is used. The device may allow fewer.
    pub entries: u16,
    /// Whether completions may raise interrupts, if the device has a vector for each queue.
    pub interrupts: bool,
    /// How long the device may take to follow a reset, and to say what it is.
    pub patience: Duration,
}

impl Options {
    /// `queues` queues of 256 entries, with interrupts, five seconds.
    pub fn new(queues: u16) -> Self {
        Self { queues, entries: 256, interrupts: true, patience: Duration::from_secs(5) }
    }
}

/// Where a reset is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Idle,
    Resetting {
        until: Instant,
    },
    /// Reset; queues end what is outstanding.
    Draining {
        again: bool,
    },
}

/// What is known of a device, and must still be so after a reset.
#[derive(Clone)]
struct Profile {
    identity: Identity,
    traits: Traits,
    /// Entries of each queue.
    size: u16,
    /// The generation of the configuration that all this is from.
    generation: u8,
}

impl Profile {
    /// Whether who knows this one is not wrong about `now`.
    fn holds_for(&self, now: &Self) -> bool {
        self.identity == now.identity && self.size == now.size && self.traits.hold_for(&now.traits)
    }
}

/// A virtio block device with its request queues. Owned by a thread that may wait: its calls sleep.
///
/// Dropped, it is shut down as by [`Controller::shutdown`].
pub struct Controller<D: PciFunction> {
    link: Link<D>,
    life: Life,
    profile: Profile,
    /// Whether queue `i` interrupts with vector `i`.
    vectors: bool,
    /// Those that nobody took yet.
    queues: Vec<Option<Queue<D::Registers>>>,
    stage: Stage,
}

impl<D: PciFunction> Controller<D> {
    /// Opens `device` with `queues` queues; see [`Options::new`].
    ///
    /// # Errors
    /// As [`Controller::open_with`].
    pub fn open(device: D, queues: u16) -> Result<Self, VirtioError> {
        Self::open_with(device, &Options::new(queues))
    }

    /// Resets `device`, agrees with it on what it is to do, and makes its queues.
    ///
    /// # Errors
    /// Any [`VirtioError`]; the device is stopped then.
    pub fn open_with(device: D, options: &Options) -> Result<Self, VirtioError> {
        let &Options { queues, entries, .. } = options;
        if queues == 0 || entries < LEAST_ENTRIES {
            return Err(VirtioError::Options(format!(
                "{queues} queues of {entries} entries; 1 or more of {LEAST_ENTRIES} or more"
            )));
        }
        let mut link = Link::open(device, options)?;
        let profile = identify(&mut link, queues, entries)?;
        let interrupts = route(link.device(), options)?;
        for _ in 0..queues {
            let memory = QueueMemory::new(link.mapper.as_ref(), profile.size, &profile.traits)?;
            link.hold(Arc::new(memory));
        }
        let mut controller = Self {
            vectors: !interrupts.is_empty(),
            link,
            life: Life::new(queues),
            profile,
            queues: Vec::new(),
            stage: Stage::Idle,
        };
        let notifiers = controller.set_up_queues()?;
        let mut interrupts = interrupts.into_iter();
        controller.queues = (0..queues)
            .zip(notifiers)
            .map(|(index, notifier)| {
                Some(Queue::new(QueueParts {
                    notifier,
                    shared: Arc::clone(controller.life.shared()),
                    memory: Arc::clone(&controller.link.held()[usize::from(index)]),
                    traits: controller.profile.traits,
                    index,
                    interrupt: interrupts.next(),
                }))
            })
            .collect();
        controller.link.start()?;
        controller.life.enter(Phase::Running);
        Ok(controller)
    }

    /// Tells a device that has negotiated of the queues, but for those that were dropped; where each is announced.
    fn set_up_queues(&self) -> Result<Vec<Notifier<D::Registers>>, VirtioError> {
        let mut notifiers = Vec::new();
        for (index, memory) in (0u16..).zip(self.link.held()) {
            if !self.life.shared().is_let_go(usize::from(index)) {
                let vector = if self.vectors { index } else { pci::NO_VECTOR };
                self.link.transport.enable(index, memory.size(), vector, memory.places())?;
            }
            notifiers.push(self.link.transport.notifier(index)?);
        }
        Ok(notifiers)
    }

    /// Hands out one of the queues, until there is none left.
    pub fn take_queue(&mut self) -> Option<Queue<D::Registers>> {
        self.queues.iter_mut().find_map(Option::take)
    }

    /// Which device this is.
    pub fn identity(&self) -> &Identity {
        &self.profile.identity
    }

    /// Its shape.
    pub fn geometry(&self) -> &Geometry {
        &self.profile.traits.geometry
    }

    /// Maps memory for it.
    pub fn mapper(&self) -> Arc<dyn Mapper> {
        Arc::clone(&self.link.mapper)
    }

    /// The device under it.
    pub fn device(&self) -> &D {
        self.link.device()
    }

    /// How often a queue was found to be used against the rules.
    pub fn anomalies(&self) -> u64 {
        self.life.shared().anomalies()
    }

    /// Looks at the device's status, at its queues, and whether its configuration changed. To be called a few times a
    /// second.
    pub fn watch(&mut self) -> Watch {
        match self.life.phase() {
            Phase::Gone => return Watch::Gone,
            Phase::Stopping | Phase::Stopped => return Watch::Resetting,
            Phase::Running => {}
        }
        let now = self.link.transport.status();
        if now == u8::MAX && self.link.transport.absent() {
            return Watch::Absent;
        }
        let fails = now & (status::DEVICE_NEEDS_RESET | status::FAILED) != 0 || now & status::DRIVER_OK == 0;
        if fails || self.life.is_broken() {
            tracing::warn!(status = now, "the device failed");
            return Watch::Failed;
        }
        if self.link.transport.generation() == self.profile.generation {
            return Watch::Running;
        }
        match self.look_at_configuration() {
            Ok(true) => Watch::Running,
            Ok(false) => Watch::Changed,
            Err(error) => {
                tracing::warn!(%error, "looking at a configuration that changed");
                Watch::Changed
            }
        }
    }

    /// Whether the configuration, of another generation, leaves the device as it was.
    fn look_at_configuration(&mut self) -> Result<bool, VirtioError> {
        let features = self.profile.identity.features;
        let (config, generation) = self.link.transport.configuration(features)?;
        tracing::info!(generation, "the configuration of the device changed");
        let traits = Traits::new(features, &config, room(self.profile.size, self.profile.traits.indirect))?;
        let holds = self.profile.traits.hold_for(&traits);
        if holds {
            self.profile.generation = generation;
        }
        Ok(holds)
    }

    /// Starts a reset: queues take nothing from now on. Go on with [`Controller::finish_reset`].
    pub fn begin_reset(&mut self) {
        if self.stage != Stage::Idle || !self.life.begin() {
            return;
        }
        self.link.start_reset();
        self.stage = Stage::Resetting { until: Instant::now() + self.link.patience() };
    }

    /// Takes a reset as far as it goes without waiting for queues. Queues have to be polled in the meantime: they end
    /// what is outstanding once the device was seen reset. With no reset begun, says how the last one ended.
    pub fn finish_reset(&mut self) -> ResetProgress {
        if let Stage::Resetting { until } = self.stage {
            let outcome = match self.link.is_reset() {
                Wait::Done => Ok(()),
                Wait::Pending if Instant::now() < until => return ResetProgress::Pending,
                _ => self.link.reset_function(),
            };
            if outcome.is_err() {
                self.stage = Stage::Idle;
                return ResetProgress::Stuck;
            }
            if self.link.transport.absent() {
                return self.give_up();
            }
            self.life.enter(Phase::Stopped);
            self.stage = Stage::Draining { again: false };
        }
        if let Stage::Draining { again } = self.stage {
            for queue in self.queues.iter_mut().flatten() {
                queue.poll(usize::MAX, &mut |_| ());
            }
            if !self.life.queues_are_clean() {
                return ResetProgress::Pending;
            }
            match self.bring_up() {
                Ok(()) => self.stage = Stage::Idle,
                Err(error) => return self.retry(&error, again),
            }
        }
        self.life.outcome()
    }

    /// The device is reset: checks that it is the same and makes its queues.
    fn bring_up(&mut self) -> Result<(), VirtioError> {
        let queues = u16::try_from(self.link.held().len()).unwrap_or(u16::MAX);
        let profile = identify(&mut self.link, queues, self.profile.size)?;
        if !self.profile.holds_for(&profile) {
            return Err(VirtioError::Changed);
        }
        self.profile.generation = profile.generation;
        self.set_up_queues()?;
        self.link.start()?;
        self.life.enter(Phase::Running);
        for queue in self.queues.iter_mut().flatten() {
            queue.poll(usize::MAX, &mut |_| ());
        }
        Ok(())
    }

    /// The device did not come back: once more after a reset, then no more.
    fn retry(&mut self, error: &VirtioError, again: bool) -> ResetProgress {
        tracing::warn!(%error, again, "the device did not come back from its reset");
        let changed = matches!(error, VirtioError::Changed);
        // It may have begun to work with queues that start anew.
        let stopped = || self.link.reset_and_wait().or_else(|_| self.link.reset_function());
        if again || changed || { stopped }().is_err() || self.link.transport.absent() {
            return self.give_up();
        }
        self.stage = Stage::Draining { again: true };
        ResetProgress::Pending
    }

    /// Stops the device for good.
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

    /// Resets the device and takes the bus from it. What is outstanding ends at the queues' next polls, and they are
    /// [`crate::block::QueueState::Gone`].
    ///
    /// # Errors
    /// [`VirtioError::Stuck`] if it cannot be stopped: then nothing outstanding ends.
    pub fn shutdown(&mut self) -> Result<(), VirtioError> {
        if !self.life.begin() {
            return Ok(());
        }
        match self.give_up() {
            ResetProgress::Gone => Ok(()),
            _ => Err(VirtioError::Stuck),
        }
    }
}

impl<D: PciFunction> BlockController for Controller<D> {
    type Queue = Queue<D::Registers>;

    fn take_queue(&mut self) -> Option<(Self::Queue, Option<OwnedFd>)> {
        let queue = Self::take_queue(self)?;
        let interrupt = queue.interrupt_fd().and_then(|fd| fd.try_clone_to_owned().ok());
        Some((queue, interrupt))
    }

    fn model(&self) -> Model {
        let Identity { pci, serial, .. } = self.identity();
        Model {
            model: format!("virtio-blk {:04x}:{:04x}", pci.subsystem_vendor, pci.subsystem),
            serial: serial.clone(),
            firmware: pci.revision.to_string(),
        }
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

impl<D: PciFunction> Drop for Controller<D> {
    fn drop(&mut self) {
        if let Err(error) = self.shutdown() {
            tracing::error!(%error, "shutting down");
        }
    }
}

/// Agrees with a reset device on features and asks what it is. It has negotiated then, and has no queues yet.
fn identify<D: PciFunction>(link: &mut Link<D>, queues: u16, entries: u16) -> Result<Profile, VirtioError> {
    link.negotiate()?;
    let serial = link.ask_id()?;
    let (features, config, generation) = link.negotiate()?;
    let granted = config.num_queues.min(link.transport.num_queues());
    if granted < queues {
        return Err(VirtioError::Queues { asked: queues, granted });
    }
    let sizes = (0..queues).map(|queue| link.transport.queue_size(queue));
    let size = fitting_size(sizes.min().unwrap_or(0), entries);
    if size < LEAST_ENTRIES {
        return Err(VirtioError::Unsupported(format!(
            "its queues have {size} entries; {LEAST_ENTRIES} are needed"
        )));
    }
    let indirect = features & feature::RING_INDIRECT_DESC != 0;
    let traits = Traits::new(features, &config, room(size, indirect))?;
    let identity = Identity { pci: link.pci, serial, features, topology: config.topology() };
    Ok(Profile { identity, traits, size, generation })
}

/// Makes an eventfd for each queue's vector, and routes them; none if there are too few vectors.
fn route<D: Device>(device: &D, options: &Options) -> Result<Vec<OwnedFd>, VirtioError> {
    let needed = u32::from(options.queues);
    if !options.interrupts || device.vectors() < needed {
        return Ok(Vec::new());
    }
    let make = |_| eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    let fds: Result<Vec<OwnedFd>, _> = (0..needed).map(make).collect();
    let fds = fds.map_err(|error| VirtioError::Os { what: "making an eventfd", source: error.into() })?;
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let routed = device.route_interrupts(&borrowed);
    routed.map_err(|source| VirtioError::Os { what: "routing the device's interrupts", source })?;
    Ok(fds)
}
