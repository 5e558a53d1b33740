//! `vfio:ADDRESS`: a real device.

use driver::hal::Device;
use driver::nvme::Queue;
use driver::vfio::VfioDevice;

use super::{DeviceUri, OpenError, Opened, nvme};

/// Opens the PCI device that `uri` names.
pub fn open(
    uri: &DeviceUri,
    pollers: u16,
) -> Result<Opened<Queue<<VfioDevice as Device>::Registers>>, OpenError> {
    let DeviceUri::Vfio(address) = uri else { return Err(OpenError::new(uri, &"not a PCI device")) };
    let device = VfioDevice::open(address).map_err(|e| OpenError::new(uri, &e))?;
    nvme::open(uri, device, pollers, true)
}
