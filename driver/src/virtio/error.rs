//! Why a device could not be driven.

use std::time::Duration;

use crate::hal::DmaError;

/// A virtio block device that does not do what is asked.
#[derive(Debug, thiserror::Error)]
pub enum VirtioError {
    /// The kernel refused.
    #[error("{what}: {source}")]
    Os {
        /// The call.
        what: &'static str,
        /// The kernel's word.
        source: std::io::Error,
    },
    /// Memory for queues could not be mapped.
    #[error("memory for the device: {0}")]
    Dma(#[from] DmaError),
    /// All registers read as all ones.
    #[error("the device is gone: its registers read as all ones")]
    Gone,
    /// It is something else.
    #[error("PCI device {vendor:04x}:{device:04x} is no virtio block device (1af4:1042)")]
    NotBlock {
        /// As the configuration space says.
        vendor: u16,
        /// Likewise.
        device: u16,
    },
    /// It has the legacy interface, too (device 1001h).
    #[error(
        "the device is a transitional one (1af4:1001), whose legacy interface knows no IOMMU: switch that off, in QEMU \
         with `disable-legacy=on,iommu_platform=on`"
    )]
    Transitional,
    /// Its capabilities lead nowhere.
    #[error("the device's {structure} is not to be found: {what}")]
    Capability {
        /// What was looked for.
        structure: &'static str,
        /// What there is instead.
        what: String,
    },
    /// It does not offer what this driver cannot do without.
    #[error("the device does not offer {name} (feature bit {bit}): {remedy}", bit = bit.trailing_zeros())]
    Feature {
        /// Its name.
        name: &'static str,
        /// Its mask.
        bit: u64,
        /// What to do.
        remedy: &'static str,
    },
    /// FEATURES_OK did not stay.
    #[error("the device refuses the features {accepted:#x} of the {offered:#x} that it offers itself")]
    Refused {
        /// What the driver accepted.
        accepted: u64,
        /// What the device offered.
        offered: u64,
    },
    /// The device did not answer in time.
    #[error("the device did not finish {what} within {} ms", after.as_millis())]
    Timeout {
        /// Waiting for what.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// DEVICE_NEEDS_RESET.
    #[error("the device reports an error that only a reset ends (status {status:02x}h)")]
    NeedsReset {
        /// All of the device status.
        status: u8,
    },
    /// Nothing proves that the device has stopped: its memory stays mapped for ever.
    #[error("the device cannot be stopped: it does not follow a reset, and its function cannot be reset")]
    Stuck,
    /// The options make no sense.
    #[error("{0}")]
    Options(String),
    /// The device is one that this driver cannot drive.
    #[error("the device is not supported: {0}")]
    Unsupported(String),
    /// VIRTIO_BLK_F_RO.
    #[error("the device is read-only: give it to the machine with `readonly=off`, or take another")]
    ReadOnly,
    /// It has fewer queues.
    #[error(
        "{asked} queues are needed, the device has {granted}; use fewer pollers, or in QEMU `num-queues={asked}`"
    )]
    Queues {
        /// Asked for.
        asked: u16,
        /// What it has.
        granted: u16,
    },
    /// After a reset the device is another, or has another shape and has not only grown.
    #[error("after the reset the device is not the one it was, or has another shape: open it again")]
    Changed,
}
