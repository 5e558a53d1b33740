//! `emu:SIZE` and `emu:FILE`: the software NVMe controller; `emu-virtio:SIZE` and `emu-virtio:FILE`: the software virtio
//! block device. Both are driven through their registers like real ones.

use driver::block::BlockQueue;
use driver::emu::virtio::{VirtioConfig, VirtioEmulator, VirtioRegisters};
use driver::emu::{EmuConfig, Emulator, FileMedia, Media, RamMedia};
use driver::hal::{Device, PciFunction};
use driver::nvme::Queue;
use std::io::ErrorKind;
use std::sync::Arc;

use super::away::Source;
use super::{DeviceUri, OpenError, Opened, nvme, virtio};

/// Bytes of a block.
const BLOCK: u64 = 512;

/// Opens the software NVMe controller that `uri` names.
pub fn open(
    uri: &DeviceUri,
    pollers: u16,
) -> Result<Opened<Queue<<Emulator as Device>::Registers>>, OpenError> {
    open_with(uri, EmuConfig::new(media(uri)?), pollers)
}

/// Opens the software virtio block device that `uri` names.
pub fn open_virtio(
    uri: &DeviceUri,
    pollers: u16,
) -> Result<Opened<driver::virtio::Queue<VirtioRegisters>>, OpenError> {
    let device = VirtioEmulator::new(VirtioConfig::new(media(uri)?)).map_err(|e| OpenError::new(uri, &e))?;
    virtio::open(uri, device, pollers, false)
}

/// Opens an NVMe controller that somebody brings, whatever `uri`, by which it is known, says of it.
pub fn open_nvme_on<D: Device>(
    uri: &DeviceUri,
    device: D,
    pollers: u16,
) -> Result<Opened<Queue<D::Registers>>, OpenError> {
    nvme::open(uri, device, pollers, false)
}

/// The same of one that may go and come back: `source` finds it, if it is there.
pub fn open_nvme_returning<D: Device>(
    uri: &DeviceUri,
    source: Source<D>,
    pollers: u16,
) -> Result<Opened<impl BlockQueue + use<D>>, OpenError> {
    nvme::open_returning(uri, source, pollers, false)
}

/// The same for a virtio block device.
pub fn open_virtio_returning<D: PciFunction>(
    uri: &DeviceUri,
    source: Source<D>,
    pollers: u16,
) -> Result<Opened<impl BlockQueue + use<D>>, OpenError> {
    virtio::open_returning(uri, source, pollers, false)
}

/// As [`open_nvme_on`], for a virtio block device.
pub fn open_virtio_on<D: PciFunction>(
    uri: &DeviceUri,
    device: D,
    pollers: u16,
) -> Result<Opened<driver::virtio::Queue<D::Registers>>, OpenError> {
    virtio::open(uri, device, pollers, false)
}

/// What the blocks of the software device that `uri` names lie on.
fn media(uri: &DeviceUri) -> Result<Arc<dyn Media>, OpenError> {
    match uri {
        DeviceUri::EmuRam(bytes) | DeviceUri::EmuVirtioRam(bytes) => {
            let media = RamMedia::new(bytes - bytes % BLOCK).map_err(|e| OpenError::new(uri, &e))?;
            Ok(Arc::new(media))
        }
        DeviceUri::EmuFile(path) | DeviceUri::EmuVirtioFile(path) => {
            Ok(Arc::new(FileMedia::open(path).map_err(|e| {
                let advice = match e.kind() {
                    ErrorKind::WouldBlock => {
                        "another process has it, perhaps an adapter: end that".to_owned()
                    }
                    ErrorKind::ResourceBusy => "it is mounted, or in use otherwise: unmount it".to_owned(),
                    _ => format!("`truncate -s 1G {}` makes a file of one GiB", path.display()),
                };
                OpenError::new(uri, &format!("{e}; {advice}")).held_if(e.kind() == ErrorKind::WouldBlock)
            })?))
        }
        DeviceUri::Null(_) | DeviceUri::Vfio(_) => Err(OpenError::new(uri, &"not a software device")),
    }
}

/// Opens the software NVMe controller that `config` describes, whatever `uri`, by which it is known, says of it: for those who
/// bring media or faults of their own.
pub fn open_with(
    uri: &DeviceUri,
    config: EmuConfig,
    pollers: u16,
) -> Result<Opened<Queue<<Emulator as Device>::Registers>>, OpenError> {
    let device = Emulator::new(config).map_err(|e| OpenError::new(uri, &e))?;
    open_nvme_on(uri, device, pollers)
}
