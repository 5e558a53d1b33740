//! Virtio block devices, software and real.

use driver::hal::PciFunction;
use driver::virtio::{Controller, Options, Queue};

use super::{DeviceUri, OpenError, Opened, tended};

/// Opens a device with a queue for each poller and one for the store.
pub(crate) fn open<D: PciFunction>(
    uri: &DeviceUri,
    device: D,
    pollers: u16,
    mapper_pins: bool,
) -> Result<Opened<Queue<D::Registers>>, OpenError> {
    // Interrupts are raised only for a poller that sleeps: the device looks at what it asked for.
    let options = Options::new(pollers.saturating_add(1));
    let controller = Controller::open_with(device, &options).map_err(|e| OpenError::new(uri, &e))?;
    // There is no health log to be read.
    tended::open(uri, controller, pollers, mapper_pins, |_| None)
}
