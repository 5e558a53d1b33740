//! What a driver needs from a machine. `vfio` implements it for real devices, `emu` for software ones.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// An address as the device sees it, behind the IOMMU.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Iova(pub u64);

/// Registers of a device: one BAR, little-endian, accessed whole words at a time.
///
/// Offsets are the driver's own constants; an offset outside the BAR is a bug in the driver and panics.
pub trait Registers: Send + Sync + 'static {
    /// Bytes of the BAR.
    fn len(&self) -> usize;
    /// Reads 32 bits. A device that is gone reads as all ones.
    fn read32(&self, offset: usize) -> u32;
    /// Reads 64 bits, as two 32-bit reads where the bus wants it, low half first.
    fn read64(&self, offset: usize) -> u64;
    /// Writes 32 bits, after all earlier stores to memory are visible to the device.
    fn write32(&self, offset: usize, value: u32);
    /// Writes 64 bits, likewise.
    fn write64(&self, offset: usize, value: u64);
    /// Whether interrupts of `vector` are wanted from now on; they are at first. A device that cannot tell them apart
    /// ([`Device::masks_vectors`]) raises them all. After arming, look for completions once more before going to sleep.
    fn arm_interrupt(&self, vector: u32, armed: bool) {
        let _ = (vector, armed);
    }
}

/// Registers that are also accessed in bytes and halves: virtio wants each with its own width (virtio 1.2, 4.1.3.1).
pub trait NarrowRegisters: Registers {
    /// Reads 8 bits.
    fn read8(&self, offset: usize) -> u8;
    /// Reads 16 bits.
    fn read16(&self, offset: usize) -> u16;
    /// Writes 8 bits, after all earlier stores to memory are visible to the device.
    fn write8(&self, offset: usize, value: u8);
    /// Writes 16 bits, likewise.
    fn write16(&self, offset: usize, value: u16);
}

/// What the device may do with mapped memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DmaAccess {
    /// The device reads it.
    Read,
    /// The device writes it (the IOMMU may allow reading too).
    Write,
    /// Both.
    ReadWrite,
}

/// Memory that stays where it is.
///
/// # Safety
/// `start .. start + len` is mapped readable and writable, page-aligned, populated, and stays so, at that address,
/// until the value is dropped. Others may read and write it at any time.
#[allow(unsafe_code)] // the promise is what every DMA mapping rests on
pub unsafe trait PinnedMemory: Send + Sync + 'static {
    /// The first byte.
    fn start(&self) -> *mut u8;
    /// Bytes, a multiple of 4096.
    fn len(&self) -> usize;
}

/// Why memory could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum DmaError {
    /// The IOMMU takes no more mappings.
    #[error("the IOMMU has no room for another mapping ({limit} allowed)")]
    TooMany {
        /// As the kernel says.
        limit: u32,
    },
    /// No free range of device addresses is large enough.
    #[error("no free range of device addresses for {bytes} bytes")]
    NoAddress {
        /// Bytes asked for.
        bytes: u64,
    },
    /// The kernel refused.
    #[error("{what}: {source}")]
    Os {
        /// The call, and what usually mends it.
        what: &'static str,
        /// The kernel's word.
        source: std::io::Error,
    },
}

/// A mapping of memory for the device; dropping it unmaps, then lets go of the memory.
///
/// Drop it only when the device can no longer use it.
pub trait Mapping: Send + Sync {
    /// Its first address, a multiple of 4096; the range is contiguous.
    fn iova(&self) -> Iova;
    /// Bytes.
    fn len(&self) -> usize;
}

/// Maps memory for one device.
pub trait Mapper: Send + Sync + 'static {
    /// Maps all of `memory`. The mapping keeps it alive.
    fn map(&self, memory: Arc<dyn PinnedMemory>, access: DmaAccess) -> Result<Box<dyn Mapping>, DmaError>;
    /// Mappings in use.
    fn mappings(&self) -> u64;
    /// Mappings that may still be made, as the IOMMU's keeper counts them; `None` where nobody counts.
    fn mappings_left(&self) -> Option<u32> {
        None
    }
}

/// A device as a driver gets it: quiet, reset, bus mastering off.
pub trait Device: Send + Sync + 'static {
    /// Its registers.
    type Registers: Registers;

    /// A handle on BAR 0, valid as long as it lives.
    fn registers(&self) -> Arc<Self::Registers>;
    /// The mapper of its DMA.
    fn mapper(&self) -> Arc<dyn Mapper>;
    /// Lets the device start memory accesses, or stops it from doing so.
    fn set_bus_master(&self, on: bool) -> std::io::Result<()>;
    /// Resets the function. On return it makes no more memory accesses for what it was told before.
    fn reset(&self) -> std::io::Result<()>;
    /// Interrupt vectors it has.
    fn vectors(&self) -> u32;
    /// Whether a vector raises nothing while it is not wanted ([`Registers::arm_interrupt`]). Where not, who polls for
    /// completions pays for an interrupt of each.
    fn masks_vectors(&self) -> bool {
        true
    }
    /// Routes all vectors, 0 first, to these eventfds. Once, before queues are made.
    fn route_interrupts(&self, eventfds: &[BorrowedFd<'_>]) -> std::io::Result<()>;
}

impl<D: Device> Device for Arc<D> {
    type Registers = D::Registers;

    fn registers(&self) -> Arc<Self::Registers> {
        D::registers(self)
    }
    fn mapper(&self) -> Arc<dyn Mapper> {
        D::mapper(self)
    }
    fn set_bus_master(&self, on: bool) -> std::io::Result<()> {
        D::set_bus_master(self, on)
    }
    fn reset(&self) -> std::io::Result<()> {
        D::reset(self)
    }
    fn vectors(&self) -> u32 {
        D::vectors(self)
    }
    fn route_interrupts(&self, eventfds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        D::route_interrupts(self, eventfds)
    }
}

impl<D: PciFunction> PciFunction for Arc<D> {
    fn config_space(&self) -> std::io::Result<[u8; CONFIG_LEN]> {
        D::config_space(self)
    }
    fn bar(&self, index: usize) -> std::io::Result<Arc<Self::Registers>> {
        D::bar(self, index)
    }
}

/// Bytes of a configuration space that hold the header and the capabilities.
pub const CONFIG_LEN: usize = 0x100;

/// A PCI function, for drivers that find their registers by its capabilities.
pub trait PciFunction: Device<Registers: NarrowRegisters> {
    /// The first bytes of its configuration space.
    fn config_space(&self) -> std::io::Result<[u8; CONFIG_LEN]>;
    /// A handle on BAR `index`, valid as long as it lives; one that the function does not have is empty.
    fn bar(&self, index: usize) -> std::io::Result<Arc<Self::Registers>>;
}
