//! What the NVMe devices, software and real, have in common.

use std::sync::Arc;

use driver::disk::BlockingQueue;
use driver::dma::Pages;
use driver::hal::Device;
use driver::nvme::{Controller, Options, Queue, ResetProgress, Watch};

use super::{Health, Identity, OpenError, Opened, Supervisor};
use crate::device::DeviceUri;

/// Bytes of the store's bounce buffer.
const BOUNCE: usize = 256 << 10;

/// Opens a controller with a queue for each poller and one for the store.
pub(crate) fn open<D: Device>(
    uri: &DeviceUri,
    device: D,
    pollers: u16,
    mapper_pins: bool,
) -> Result<Opened<Queue<D::Registers>>, OpenError> {
    let failed = |e: &dyn std::fmt::Display| OpenError::new(uri, e);
    // Pollers poll while anything is at the device, so nothing needs an interrupt, and completions cost none.
    let options = Options { interrupts: false, ..Options::new(pollers.saturating_add(1)) };
    let mut controller = Controller::open_with(device, &options).map_err(|e| failed(&e))?;
    let mapper = controller.mapper();
    let mut take = || controller.take_queue().ok_or_else(|| failed(&"the controller has too few queues"));
    let for_store = take()?;
    let queues = (0..pollers).map(|_| Ok((take()?, None))).collect::<Result<Vec<_>, OpenError>>()?;
    let bounce = Pages::new(BOUNCE).map_err(|e| failed(&e))?;
    let disk = BlockingQueue::new(for_store, &*mapper, Arc::new(bounce)).map_err(|e| failed(&e))?;
    let identity = controller.identity();
    Ok(Opened {
        identity: Identity {
            model: identity.model.clone(),
            serial: identity.serial.clone(),
            firmware: identity.firmware.clone(),
        },
        geometry: *controller.geometry(),
        mapper,
        mapper_pins,
        queues,
        disk: Box::new(disk),
        supervisor: Box::new(Nurse { controller, health: Health::Running }),
    })
}

/// Resets the controller when it fails or keeps a command for too long.
struct Nurse<D: Device> {
    controller: Controller<D>,
    health: Health,
}

impl<D: Device> Supervisor for Nurse<D> {
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

    fn shut_down(mut self: Box<Self>) {
        if let Err(error) = self.controller.shutdown() {
            tracing::error!(%error, "shutting the controller down");
        }
    }
}
