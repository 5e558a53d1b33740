//! Why a device could not be opened, and what mends it.

use std::io;
use std::path::PathBuf;

use super::function::PciAddress;

/// Why a device could not be opened through VFIO.
#[derive(Debug, thiserror::Error)]
pub enum VfioError {
    /// Not a PCI address.
    #[error("{0:?} is no PCI address such as 0000:01:00.0")]
    BadAddress(String),
    /// There is no such function.
    #[error("there is no PCI function {address}: see `lspci -D`")]
    NoDevice {
        /// Which.
        address: PciAddress,
    },
    /// Its transfers would not be bounded.
    #[error(
        "{address} is behind no IOMMU: switch VT-d or AMD-Vi on in the firmware, and boot with intel_iommu=on on Intel"
    )]
    NoIommu {
        /// Which.
        address: PciAddress,
    },
    /// Another driver has it.
    #[error("{address} is bound to {driver}, not to vfio-pci: `portcullis bind {address}`")]
    NotBound {
        /// Which.
        address: PciAddress,
        /// To what.
        driver: String,
    },
    /// The kernel part is missing.
    #[error("/dev/vfio/vfio is absent: `modprobe vfio-pci`")]
    NoVfio,
    /// The IOMMU part of VFIO is missing.
    #[error("VFIO has no type 1 v2 IOMMU driver: `modprobe vfio_iommu_type1`")]
    NoType1,
    /// A device node is not for us.
    #[error(
        "no permission for {} (owner {uid}:{gid}, mode {mode:03o}): give it to the adapter's user, `chown USER {}`",
        node.display(), node.display()
    )]
    Permission {
        /// Which.
        node: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
        /// Its permissions.
        mode: u32,
    },
    /// Another process has it.
    #[error("{address} (IOMMU group {group}) is in use by another process")]
    GroupBusy {
        /// Which.
        address: PciAddress,
        /// Its group.
        group: u32,
    },
    /// The group's other devices belong to the kernel.
    #[error(
        "IOMMU group {group} cannot be used while the kernel drives other devices in it: unbind {others}"
    )]
    GroupNotViable {
        /// Which.
        group: u32,
        /// Their addresses and drivers.
        others: String,
    },
    /// The kernel holds the machine's interrupts to be forgeable by the device.
    #[error(
        "the kernel refuses the IOMMU: no interrupt remapping, so that the device could forge interrupts; switch it \
         on in the firmware, or accept that: `modprobe vfio_iommu_type1 allow_unsafe_interrupts=1`"
    )]
    UnsafeInterrupts,
    /// The device is not what it should be.
    #[error("{address}: {what}")]
    Device {
        /// Which.
        address: PciAddress,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The kernel refused.
    #[error("{what}: {source}")]
    Os {
        /// What was tried.
        what: &'static str,
        /// The kernel's word.
        source: io::Error,
    },
    /// VFIO refused in a way that is not explained here.
    #[error("VFIO: {0}")]
    Other(#[from] vfio_ioctls::VfioError),
}
