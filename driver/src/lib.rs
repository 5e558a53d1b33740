//! User-space block drivers over VFIO, and the software devices that stand in for hardware.
//!
//! - [`block`]: what every device looks like from above: a queue that takes commands and returns completions.
//! - [`dice`]: chance from a seed, for software devices and tests.
//! - [`disk`]: a device for callers that wait.
//! - [`emu`]: a software NVMe controller behind the same registers.
//! - [`hal`]: what a driver needs from a machine: registers, DMA memory, interrupts.
//! - [`nvme`]: a driver for NVMe controllers, on memory from [`dma`].
//! - [`null`]: a device that completes everything and moves nothing.
//! - [`spec`]: the bytes of PCI, NVMe and virtio.
//! - [`vfio`]: real devices, through Linux VFIO.
//! - [`virtio`]: a driver for virtio block devices on PCI, likewise.
//!
//! Drivers know neither protection tables nor shared rings: what reaches them was granted already.
#![deny(unsafe_code)]
#![allow(clippy::len_without_is_empty)] // BARs, mappings and DMA memory are never empty

pub mod block;
pub mod dice;
pub mod disk;
pub mod dma;
pub mod emu;
pub mod hal;
mod lifecycle;
pub mod null;
pub mod nvme;
mod pci;
pub mod spec;
#[cfg(test)]
mod tests;
pub mod vfio;
pub mod virtio;
