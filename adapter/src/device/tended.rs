//! A controller of any kind under an adapter: who gets its queues, and who looks after it.

use std::sync::Arc;

use driver::block::{BlockController, Model, ResetProgress, Watch};
use driver::disk::BlockingQueue;
use driver::dma::Pages;
use wire::control::HealthInfo;

use super::{DeviceUri, Health, Identity, Losses, OpenError, Opened, Supervisor};

/// Bytes of the store's bounce buffer.
pub(super) const BOUNCE: usize = 256 << 10;

/// What a controller says of its health: see [`Supervisor::read_health`].
pub(super) type ReadHealth<C> = fn(&mut C) -> Option<Result<HealthInfo, String>>;

/// Takes a queue for each poller and one for the store.
pub(super) fn open<C: BlockController + 'static>(
    uri: &DeviceUri,
    mut controller: C,
    pollers: u16,
    mapper_pins: bool,
    read_health: ReadHealth<C>,
) -> Result<Opened<C::Queue>, OpenError> {
    let failed = |e: &dyn std::fmt::Display| OpenError::new(uri, e);
    let mapper = controller.mapper();
    let mut take = || controller.take_queue().ok_or_else(|| failed(&"the controller has too few queues"));
    let (for_store, _) = take()?;
    let queues = (0..pollers).map(|_| take()).collect::<Result<Vec<_>, OpenError>>()?;
    let bounce = Pages::new(BOUNCE).map_err(|e| failed(&e))?;
    let disk = BlockingQueue::new(for_store, &*mapper, Arc::new(bounce)).map_err(|e| failed(&e))?;
    let Model { model, serial, firmware } = controller.model();
    Ok(Opened {
        identity: Identity { model, serial, firmware },
        geometry: *controller.geometry(),
        mapper,
        mapper_pins,
        queues,
        disk: Box::new(disk),
        supervisor: Box::new(Nurse::new(controller, read_health)),
        losses: Losses::default(),
    })
}

/// Resets the controller when it fails or keeps a command for too long.
pub(super) struct Nurse<C> {
    controller: C,
    health: Health,
    read_health: ReadHealth<C>,
}

impl<C: BlockController> Nurse<C> {
    pub(super) fn new(controller: C, read_health: ReadHealth<C>) -> Self {
        Self { controller, health: Health::Running, read_health }
    }

    /// The machine wants the device back: it is stopped for good, unless it does not stop, and then it is reset by force.
    /// Whether it has stopped.
    pub(super) fn let_go(&mut self) -> bool {
        match self.controller.shut_down() {
            Ok(()) => self.health = Health::Gone,
            Err(error) => {
                tracing::error!(%error, "a device that is to be removed does not stop");
                self.controller.begin_reset();
                self.health = Health::Resetting;
            }
        }
        self.health == Health::Gone
    }
}

impl<C: BlockController> Supervisor for Nurse<C> {
    fn tend(&mut self, stuck: bool) -> Health {
        if self.health == Health::Running {
            match self.controller.watch() {
                Watch::Running if !stuck => return Health::Running,
                Watch::Gone => self.health = Health::Gone,
                why => {
                    tracing::warn!(?why, stuck, "resetting the controller");
                    self.controller.begin_reset();
                    self.health = Health::Resetting;
                }
            }
        }
        if self.health == Health::Resetting {
            match self.controller.finish_reset() {
                ResetProgress::Pending => {}
                ResetProgress::Done => self.health = Health::Running,
                ResetProgress::Gone => self.health = Health::Gone,
                ResetProgress::Stuck => self.controller.begin_reset(),
            }
        }
        self.health
    }

    fn read_health(&mut self) -> Option<Result<HealthInfo, String>> {
        (self.read_health)(&mut self.controller)
    }

    fn shut_down(mut self: Box<Self>) {
        if let Err(error) = self.controller.shut_down() {
            tracing::error!(%error, "shutting the controller down");
        }
    }
}
