//! PCI configuration space, as far as a driver needs it.
//!
//! PCI Express Base Specification 5.0, section 7.5 (common header, power management, PCI Express capability) and
//! section 7.7 (MSI-X).

use bitfield::bitfield;

/// Offsets in configuration space, in bytes.
pub mod config {
    /// Vendor id, 16 bits.
    pub const VENDOR_ID: u64 = 0x00;
    /// Device id, 16 bits.
    pub const DEVICE_ID: u64 = 0x02;
    /// Command register, 16 bits: [`super::Command`].
    pub const COMMAND: u64 = 0x04;
    /// Status register, 16 bits: [`super::Status`].
    pub const STATUS: u64 = 0x06;
    /// Revision id, 8 bits, then programming interface, subclass and base class, 8 bits each.
    pub const REVISION_AND_CLASS: u64 = 0x08;
    /// Base address register 0, 32 bits.
    pub const BAR0: u64 = 0x10;
    /// Subsystem vendor id, 16 bits.
    pub const SUBSYSTEM_VENDOR_ID: u64 = 0x2c;
    /// Subsystem id, 16 bits.
    pub const SUBSYSTEM_ID: u64 = 0x2e;
    /// Offset of the first capability, 8 bits.
    pub const CAPABILITIES: u64 = 0x34;
    /// Bytes of the space that every PCI function has.
    pub const LEGACY_LEN: u64 = 0x100;
}

/// Capability ids (the first byte of a capability; the second is the offset of the next).
pub mod capability {
    /// Power management.
    pub const POWER_MANAGEMENT: u8 = 0x01;
    /// Message signalled interrupts.
    pub const MSI: u8 = 0x05;
    /// Vendor specific: virtio describes its structures with it.
    pub const VENDOR: u8 = 0x09;
    /// PCI Express.
    pub const EXPRESS: u8 = 0x10;
    /// MSI-X.
    pub const MSIX: u8 = 0x11;
}

/// Class codes: base class, subclass, programming interface in bits 16..24, 8..16, 0..8.
pub mod class {
    /// Mass storage, non-volatile memory, NVM Express I/O controller.
    pub const NVME: u32 = 0x01_08_02;
    /// Mass storage, SCSI: what virtio-blk says.
    pub const SCSI: u32 = 0x01_00_00;
}

bitfield! {
    /// Command register.
    #[derive(Clone, Copy, PartialEq, Eq, Default)]
    pub struct Command(pub u16);
    impl Debug;
    /// I/O space accesses are answered.
    pub io_space, set_io_space: 0;
    /// Memory space accesses are answered.
    pub memory_space, set_memory_space: 1;
    /// The function may start memory accesses.
    pub bus_master, set_bus_master: 2;
    /// INTx is not raised.
    pub interrupt_disable, set_interrupt_disable: 10;
}

bitfield! {
    /// Status register.
    #[derive(Clone, Copy, PartialEq, Eq, Default)]
    pub struct Status(pub u16);
    impl Debug;
    /// There is a capability list.
    pub capabilities, _: 4;
}

bitfield! {
    /// Device Capabilities register, at 04h in the PCI Express capability.
    #[derive(Clone, Copy, PartialEq, Eq, Default)]
    pub struct DeviceCapabilities(pub u32);
    impl Debug;
    /// The function can be reset on its own (FLR).
    pub function_level_reset, _: 28;
}

/// Offsets in the MSI-X capability, in bytes (7.7.2).
pub mod msix {
    /// Message Control, 16 bits: [`super::MsixControl`].
    pub const CONTROL: u64 = 0x02;
    /// Where the table is, 32 bits: the number of its BAR, and above that its offset there, a multiple of 8.
    pub const TABLE: u64 = 0x04;
    /// The bits that number the BAR.
    pub const BAR_MASK: u32 = 0x7;
}

bitfield! {
    /// Message Control of MSI-X, at 02h in its capability.
    #[derive(Clone, Copy, PartialEq, Eq, Default)]
    pub struct MsixControl(pub u16);
    impl Debug;
    u16;
    /// Vectors, less one.
    pub table_size_z, _: 10, 0;
    /// All vectors are masked.
    pub function_mask, set_function_mask: 14;
    /// MSI-X is on.
    pub enable, set_enable: 15;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literal_bits() {
        let mut command = Command(0);
        command.set_memory_space(true);
        command.set_bus_master(true);
        command.set_interrupt_disable(true);
        assert_eq!(command.0, 0x0406);
        assert!(Status(0x0010).capabilities());
        assert!(DeviceCapabilities(0x1000_0000).function_level_reset());
        let control = MsixControl(0x8040);
        assert_eq!((control.table_size_z(), control.enable(), control.function_mask()), (64, true, false));
    }
}
