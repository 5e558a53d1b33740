//! Virtio over PCI (4.1).

/// Who makes virtio devices (4.1.2).
pub const VENDOR: u16 = 0x1af4;
/// The device id of a block device without legacy interface: 1040h and the device type, 2 (4.1.2.1, 5).
pub const MODERN_BLOCK: u16 = 0x1042;
/// The device id of a transitional block device (4.1.2.1).
pub const TRANSITIONAL_BLOCK: u16 = 0x1001;

/// Types of structures that a vendor capability points at (4.1.4: `cfg_type`).
pub mod structure {
    /// Common configuration: [`super::common_cfg`].
    pub const COMMON: u8 = 1;
    /// Where buffers are announced.
    pub const NOTIFY: u8 = 2;
    /// Interrupt status.
    pub const ISR: u8 = 3;
    /// Configuration of the device type.
    pub const DEVICE: u8 = 4;
    /// A window into the others by way of the configuration space.
    pub const PCI: u8 = 5;
}

/// Offsets in `struct virtio_pci_cap` (4.1.4), in bytes.
pub mod cap {
    /// Its length, 8 bits.
    pub const LEN: usize = 2;
    /// What it points at, 8 bits: [`super::structure`].
    pub const TYPE: usize = 3;
    /// Which BAR, 8 bits: 0 to 5; other values are reserved.
    pub const BAR: usize = 4;
    /// Where in the BAR, 32 bits.
    pub const OFFSET: usize = 8;
    /// How long, 32 bits.
    pub const LENGTH: usize = 12;
    /// Bytes of one.
    pub const BYTES: usize = 16;
    /// Of [`super::structure::NOTIFY`] (4.1.4.4): what `queue_notify_off` is multiplied with, 32 bits.
    pub const NOTIFY_MULTIPLIER: usize = 16;
    /// Bytes of that one.
    pub const NOTIFY_BYTES: usize = 20;
}

/// Offsets in `struct virtio_pci_common_cfg` (4.1.4.3), in bytes. Each is accessed with its own width (4.1.3.1).
pub mod common_cfg {
    /// Which 32 feature bits `DEVICE_FEATURE` shows, 32 bits.
    pub const DEVICE_FEATURE_SELECT: usize = 0x00;
    /// What the device offers, 32 bits.
    pub const DEVICE_FEATURE: usize = 0x04;
    /// Which 32 feature bits `DRIVER_FEATURE` holds, 32 bits.
    pub const DRIVER_FEATURE_SELECT: usize = 0x08;
    /// What the driver accepts, 32 bits.
    pub const DRIVER_FEATURE: usize = 0x0c;
    /// Vector of changes of the configuration, 16 bits.
    pub const CONFIG_MSIX_VECTOR: usize = 0x10;
    /// Virtqueues that there may be, 16 bits.
    pub const NUM_QUEUES: usize = 0x12;
    /// Device status, 8 bits: [`crate::spec::virtio::status`].
    pub const DEVICE_STATUS: usize = 0x14;
    /// Changes whenever the configuration of the device type does, 8 bits.
    pub const CONFIG_GENERATION: usize = 0x15;
    /// Which virtqueue the following are of, 16 bits.
    pub const QUEUE_SELECT: usize = 0x16;
    /// Its size: at most, then as the driver wants it, 16 bits. 0: it is not there.
    pub const QUEUE_SIZE: usize = 0x18;
    /// Its vector, 16 bits.
    pub const QUEUE_MSIX_VECTOR: usize = 0x1a;
    /// 1 enables it, 16 bits.
    pub const QUEUE_ENABLE: usize = 0x1c;
    /// Where its notifications go, in units of the multiplier, 16 bits.
    pub const QUEUE_NOTIFY_OFF: usize = 0x1e;
    /// Address of its descriptor table, 64 bits.
    pub const QUEUE_DESC: usize = 0x20;
    /// Address of its available ring, 64 bits.
    pub const QUEUE_DRIVER: usize = 0x28;
    /// Address of its used ring, 64 bits.
    pub const QUEUE_DEVICE: usize = 0x30;
    /// Bytes up to here: what every device has.
    pub const BYTES: usize = 0x38;
}

/// No vector: interrupts are not raised, or the device could not take the one it was given (4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;
