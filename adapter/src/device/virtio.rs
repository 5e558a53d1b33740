//! Virtio block devices, software and real.

use driver::hal::PciFunction;
use driver::virtio::{Controller, Options, Queue};
use wire::control::HealthInfo;

use super::away::{self, Source};
use super::returning::Returning;
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
    tended::open(uri, controller, pollers, mapper_pins, no_health)
}

/// The same of one that may go and come back; `source` finds it.
pub(super) fn open_returning<D: PciFunction>(
    uri: &DeviceUri,
    source: Source<D>,
    pollers: u16,
    mapper_pins: bool,
) -> Result<Opened<Returning<Queue<D::Registers>>>, OpenError> {
    let options = Options::new(pollers.saturating_add(1));
    let connect = away::connect(uri, source, move |device| Controller::open_with(device, &options));
    away::open(uri, connect, (pollers, mapper_pins), no_health)
}

/// There is no health log to be read.
fn no_health<C>(_: &mut C) -> Option<Result<HealthInfo, String>> {
    None
}
