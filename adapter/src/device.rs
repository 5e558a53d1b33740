//! From a URI to a device: its queues, its IOMMU, and somebody who looks after it.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use driver::block::{BlockQueue, Geometry};
use driver::disk::Disk;
use driver::hal::Mapper;
use wire::control::HealthInfo;

pub use self::losses::{Losses, Witness};

pub mod away;
pub mod emu;
mod losses;
pub mod null;
pub(crate) mod nvme;
mod returning;
mod tended;
pub mod vfio;
pub(crate) mod virtio;

/// Where I/O goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DeviceUri {
    /// `emu:SIZE`: a software NVMe controller over memory; gone with the process.
    EmuRam(u64),
    /// `emu:FILE`: the same over a file.
    EmuFile(PathBuf),
    /// `emu-virtio:SIZE`: a software virtio block device over memory; gone with the process.
    EmuVirtioRam(u64),
    /// `emu-virtio:FILE`: the same over a file.
    EmuVirtioFile(PathBuf),
    /// `null:SIZE`: completes everything and moves nothing; for measuring.
    Null(u64),
    /// `vfio:0000:01:00.0`: a PCI device bound to vfio-pci, NVMe or virtio-blk.
    Vfio(String),
}

impl DeviceUri {
    /// Whether what is on it is gone with the process.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::EmuRam(_) | Self::EmuVirtioRam(_) | Self::Null(_))
    }
}

/// Why a text is not a device.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{0:?} names no device: emu:SIZE, emu:FILE, emu-virtio:SIZE, emu-virtio:FILE, null:SIZE and vfio:DOMAIN:BUS:SLOT.FUNCTION do, with sizes such as 64M or 1G"
)]
pub struct UriError(String);

impl FromStr for DeviceUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let wrong = || UriError(text.to_owned());
        let (scheme, rest) = text.split_once(':').ok_or_else(wrong)?;
        match scheme {
            "emu" | "emu-virtio" if rest.is_empty() => Err(wrong()),
            "emu" => Ok(parse_size(rest).map_or_else(|| Self::EmuFile(rest.into()), Self::EmuRam)),
            "emu-virtio" => {
                Ok(parse_size(rest).map_or_else(|| Self::EmuVirtioFile(rest.into()), Self::EmuVirtioRam))
            }
            "null" => parse_size(rest).map(Self::Null).ok_or_else(wrong),
            "vfio" if is_pci_address(rest) => Ok(Self::Vfio(rest.to_owned())),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for DeviceUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmuRam(bytes) => write!(f, "emu:{bytes}"),
            Self::EmuFile(path) => write!(f, "emu:{}", path.display()),
            Self::EmuVirtioRam(bytes) => write!(f, "emu-virtio:{bytes}"),
            Self::EmuVirtioFile(path) => write!(f, "emu-virtio:{}", path.display()),
            Self::Null(bytes) => write!(f, "null:{bytes}"),
            Self::Vfio(address) => write!(f, "vfio:{address}"),
        }
    }
}

/// `64M`, `1G`, `4096`: bytes, with the usual powers of 1024.
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "m" | "MiB" => 20,
        "G" | "g" | "GiB" => 30,
        "T" | "t" | "TiB" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// `0000:01:00.0`, in hexadecimal.
fn is_pci_address(text: &str) -> bool {
    let parts: Vec<&str> = text.split([':', '.']).collect();
    let hex = |s: &str, n: usize| s.len() == n && s.bytes().all(|b| b.is_ascii_hexdigit());
    matches!(parts[..], [domain, bus, slot, function]
        if hex(domain, 4) && hex(bus, 2) && hex(slot, 2) && hex(function, 1) && text.rfind('.') == Some(10))
}

/// What a device says of itself; hostile text, escaped before it is shown.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Identity {
    /// Model.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// Firmware revision.
    pub firmware: String,
}

/// How a device is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    /// It works.
    Running,
    /// It is being reset.
    Resetting,
    /// It is gone. If it may come back, whoever looks after it sees that.
    Gone,
}

/// Looks after a device while its queues belong to pollers.
pub trait Supervisor: Send {
    /// Called a few times a second, and every millisecond during a reset. With `stuck` some command does not come back.
    fn tend(&mut self, stuck: bool) -> Health;
    /// Reads what the device says of its health; `None` if it is of a kind that keeps no such log. The error says why it
    /// could not be read now.
    fn read_health(&mut self) -> Option<Result<HealthInfo, String>> {
        None
    }
    /// The store on the device is known by this: a device that goes and comes back must have the same.
    fn recognise(&mut self, store: [u8; 16]) {
        let _ = store;
    }
    /// Quiets the device. Its queues are gone by now.
    fn shut_down(self: Box<Self>);
}

/// A device that is open.
pub struct Opened<Q: BlockQueue> {
    /// What it says of itself.
    pub identity: Identity,
    /// Its shape.
    pub geometry: Geometry,
    /// Its IOMMU.
    pub mapper: Arc<dyn Mapper>,
    /// Whether mapping memory pins it, so that nobody else must.
    pub mapper_pins: bool,
    /// A queue for each poller, with the eventfd of its interrupt.
    pub queues: Vec<(Q, Option<OwnedFd>)>,
    /// What the store writes to, over a queue of its own.
    pub disk: Box<dyn Disk>,
    /// Who looks after it.
    pub supervisor: Box<dyn Supervisor>,
    /// What it may have lost since.
    pub losses: Losses,
}

impl<Q: BlockQueue> Opened<Q> {
    /// Quiets a device on which nothing else was built: its queues go first.
    pub fn shut_down(self) {
        let Self { queues, disk, supervisor, .. } = self;
        drop(queues);
        drop(disk);
        supervisor.shut_down();
    }
}

/// What is done with a device, of whatever kind it is.
pub trait Use {
    /// What comes of it.
    type Output;
    /// Does it.
    fn with<Q: BlockQueue + 'static>(self, opened: Opened<Q>) -> Self::Output;
}

/// Opens the device that `uri` names, with a queue for each poller and one for the store, for `then`.
///
/// # Errors
/// Says what is in the way and what to do.
pub fn open<U: Use>(uri: &DeviceUri, pollers: u16, then: U) -> Result<U::Output, OpenError> {
    Ok(match uri {
        DeviceUri::Null(bytes) => then.with(null::open(*bytes, pollers)),
        DeviceUri::EmuRam(_) | DeviceUri::EmuFile(_) => then.with(emu::open(uri, pollers)?),
        DeviceUri::EmuVirtioRam(_) | DeviceUri::EmuVirtioFile(_) => {
            then.with(emu::open_virtio(uri, pollers)?)
        }
        DeviceUri::Vfio(_) => {
            let (class, source) = vfio::source(uri)?;
            match class {
                vfio::Class::Nvme => then.with(nvme::open_returning(uri, source, pollers, true)?),
                vfio::Class::Virtio => then.with(virtio::open_returning(uri, source, pollers, true)?),
            }
        }
    })
}

/// Why a device could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("{uri}: {reason}")]
pub struct OpenError {
    /// What was asked for.
    pub uri: String,
    /// What went wrong and what to do.
    pub reason: String,
    /// Another process holds the device.
    pub held: bool,
}

impl OpenError {
    fn new(uri: &DeviceUri, reason: &dyn fmt::Display) -> Self {
        Self { uri: uri.to_string(), reason: reason.to_string(), held: false }
    }

    fn held_if(self, held: bool) -> Self {
        Self { held, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_name_devices() {
        assert_eq!("emu:64M".parse(), Ok(DeviceUri::EmuRam(64 << 20)));
        assert_eq!("emu:./disk.img".parse(), Ok(DeviceUri::EmuFile("./disk.img".into())));
        assert_eq!("emu-virtio:64M".parse(), Ok(DeviceUri::EmuVirtioRam(64 << 20)));
        assert_eq!("emu-virtio:./disk.img".parse(), Ok(DeviceUri::EmuVirtioFile("./disk.img".into())));
        assert_eq!("null:1G".parse(), Ok(DeviceUri::Null(1 << 30)));
        assert_eq!("vfio:0000:01:00.0".parse(), Ok(DeviceUri::Vfio("0000:01:00.0".into())));
    }

    #[test]
    fn other_texts_name_none() {
        let wrong = [
            "",
            "emu",
            "emu:",
            "emu-virtio:",
            "null:x",
            "null:",
            "vfio:01:00.0",
            "vfio:0000:01:00:0",
            "vfio:/dev/x",
            "nvme:0",
        ];
        for text in wrong {
            assert!(text.parse::<DeviceUri>().is_err(), "{text:?}");
        }
        assert_eq!(parse_size("99999999999999999999"), None);
        assert_eq!(parse_size("18446744073709551615T"), None);
    }
}
