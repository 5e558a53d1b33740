//! `vfio:ADDRESS`: a real device.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use driver::nvme::Queue;
use driver::vfio::{Bar, DeviceClass, VfioDevice, VfioError};

use rustix::event::EventfdFlags;

use super::away::Source;
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

/// Which driver a device needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    Nvme,
    Virtio,
}

/// What finds the PCI device that `uri` names, now and when it has come back; and which driver it needs. It has its mapper
/// for all its life, so that what was mapped for it is mapped again.
pub(super) fn source(uri: &DeviceUri) -> Result<(Class, Source<VfioDevice>), OpenError> {
    let (class, first) = match find(uri)? {
        Found::Nvme(device) => (Class::Nvme, device),
        Found::Virtio(device) => (Class::Virtio, device),
    };
    let (mapper, first) = (Arc::clone(first.dma()), Mutex::new(Some(first)));
    let uri = uri.clone();
    let source = move || {
        let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let failed = |error: &dyn std::fmt::Display| OpenError::new(&uri, error);
        let device = match (first, &uri) {
            (Some(first), _) => first,
            (None, DeviceUri::Vfio(address)) => {
                VfioDevice::open_again(address, &mapper).map_err(|error| failed(&error))?
            }
            (None, _) => return Err(failed(&"not a PCI device")),
        };
        let wanted = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let wanted = wanted.map_err(|error| failed(&error))?;
        // A kernel that cannot tell takes the device when it is closed.
        let told = device.route_removal(wanted.as_fd()).is_ok();
        Ok((device, told.then_some(wanted)))
    };
    Ok((class, Box::new(source)))
}

/// Opens the NVMe controller that `uri` names: for those who measure one.
pub fn open(uri: &DeviceUri, pollers: u16) -> Result<Opened<Queue<Bar>>, OpenError> {
    match find(uri)? {
        Found::Nvme(device) => nvme::open(uri, device, pollers, true),
        Found::Virtio(_) => Err(OpenError::new(uri, &"a virtio block device, and no NVMe controller")),
    }
}
