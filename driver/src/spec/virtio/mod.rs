//! Virtual I/O Device (VIRTIO) Version 1.2, OASIS Committee Specification 01 (1 July 2022): what a driver of a block
//! device on PCI with split virtqueues needs. Sections are of that document.

pub mod block;
pub mod pci;
pub mod split;

/// Device status field (2.1), 8 bits.
pub mod status {
    /// Writing it resets the device; read back when the reset is over (2.4).
    pub const RESET: u8 = 0;
    /// The driver has found the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The driver knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// The driver is set up, and the device works.
    pub const DRIVER_OK: u8 = 4;
    /// Features are negotiated. The device clears it if it does not agree.
    pub const FEATURES_OK: u8 = 8;
    /// The device met an error from which only a reset leads back.
    pub const DEVICE_NEEDS_RESET: u8 = 64;
    /// The driver has given up.
    pub const FAILED: u8 = 128;
}

/// Feature bits that are not of a device type (6).
pub mod feature {
    /// Descriptors may lead to tables of descriptors.
    pub const RING_INDIRECT_DESC: u64 = 1 << 28;
    /// Notifications are suppressed by indexes: `used_event` and `avail_event`.
    pub const RING_EVENT_IDX: u64 = 1 << 29;
    /// The device follows this specification, and is not a legacy one.
    pub const VERSION_1: u64 = 1 << 32;
    /// The device reaches memory as the platform says: by addresses of the IOMMU.
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
    /// Packed virtqueues.
    pub const RING_PACKED: u64 = 1 << 34;
    /// The device uses buffers in the order in which they were made available.
    pub const IN_ORDER: u64 = 1 << 35;
    /// Memory accesses are ordered as for other devices of the platform.
    pub const ORDER_PLATFORM: u64 = 1 << 36;
    /// Virtqueues can be reset one by one.
    pub const RING_RESET: u64 = 1 << 40;
}
