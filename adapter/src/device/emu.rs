//! `emu:SIZE` and `emu:FILE`: the software controller, driven through its registers like a real one.

use driver::emu::{EmuConfig, Emulator, FileMedia, RamMedia};
use driver::hal::Device;
use driver::nvme::Queue;
use std::sync::Arc;

use super::{DeviceUri, OpenError, Opened, nvme};

/// Bytes of a block.
const BLOCK: u64 = 512;

/// Opens the software device that `uri` names.
pub fn open(
    uri: &DeviceUri,
    pollers: u16,
) -> Result<Opened<Queue<<Emulator as Device>::Registers>>, OpenError> {
    let media: Arc<dyn driver::emu::Media> = match uri {
        DeviceUri::EmuRam(bytes) => {
            Arc::new(RamMedia::new(bytes - bytes % BLOCK).map_err(|e| OpenError::new(uri, &e))?)
        }
        DeviceUri::EmuFile(path) => Arc::new(FileMedia::open(path).map_err(|e| {
            let text = format!("{e}; `truncate -s 1G {}` makes a file of one GiB", path.display());
            OpenError::new(uri, &text)
        })?),
        DeviceUri::Null(_) | DeviceUri::Vfio(_) => return Err(OpenError::new(uri, &"not a software device")),
    };
    open_with(uri, EmuConfig::new(media), pollers)
}

/// Opens the software device that `config` describes, whatever `uri`, by which it is known, says of it: for those who
/// bring media or faults of their own.
pub fn open_with(
    uri: &DeviceUri,
    config: EmuConfig,
    pollers: u16,
) -> Result<Opened<Queue<<Emulator as Device>::Registers>>, OpenError> {
    let device = Emulator::new(config).map_err(|e| OpenError::new(uri, &e))?;
    nvme::open(uri, device, pollers, false)
}
