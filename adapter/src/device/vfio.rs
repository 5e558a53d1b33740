//! `vfio:ADDRESS`: a real device.

use driver::nvme::Queue;
use driver::vfio::{Bar, DeviceClass, VfioDevice, VfioError};

use super::{DeviceUri, OpenError, Opened, nvme};

/// A PCI device, by the driver that it needs.
pub(super) enum Found {
    /// An NVMe controller.
    Nvme(VfioDevice),
    /// A virtio block device.
    Virtio(VfioDevice),
}

/// Opens the PCI device that `uri` names.
pub(super) fn find(uri: &DeviceUri) -> Result<Found, OpenError> {
    let DeviceUri::Vfio(address) = uri else { return Err(OpenError::new(uri, &"not a PCI device")) };
    let device = VfioDevice::open(address)
        .map_err(|e| OpenError::new(uri, &e).held_if(matches!(e, VfioError::GroupBusy { .. })))?;
    match device.class() {
        DeviceClass::Nvme => Ok(Found::Nvme(device)),
        DeviceClass::VirtioBlock => Ok(Found::Virtio(device)),
        DeviceClass::Other => {
            let id = device.id();
            let what = format!(
                "neither an NVMe controller nor a virtio block device: {:04x}:{:04x}, class {:06x}h",
                id.vendor, id.device, id.class
            );
            Err(OpenError::new(uri, &what))
        }
    }
}

/// Opens the NVMe controller that `uri` names: for those who measure one.
pub fn open(uri: &DeviceUri, pollers: u16) -> Result<Opened<Queue<Bar>>, OpenError> {
    match find(uri)? {
        Found::Nvme(device) => nvme::open(uri, device, pollers, true),
        Found::Virtio(_) => Err(OpenError::new(uri, &"a virtio block device, and no NVMe controller")),
    }
}
