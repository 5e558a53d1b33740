//! Real devices, through Linux VFIO with the IOMMU on (type 1 v2 containers).
//!
//! `vfio-ioctls` brings a device up; what it lacks, or does without reporting errors, is done here: configuration
//! space, reset, BAR mappings, read-only DMA mappings, the IOMMU's ranges and limits. Each device has a container and
//! so an address space of its own.
//!
//! The modules below this one make every system call of the device side; drivers need none.

mod bar;
mod error;
mod function;
mod info;
mod iommu;
mod iova;
mod msix;
mod sys;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vfio_bindings::bindings::vfio::{
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX,
    VFIO_REGION_INFO_FLAG_MMAP,
};
use vfio_ioctls::{VfioContainer, VfioRegionInfoCap};

use self::bar::{Region, Span};
use self::function::{Function, Roots};
use crate::hal::{self, Device, Mapper, PciFunction};
use crate::pci::{self as config, Config};
use crate::spec::pci;

pub use self::bar::Bar;
pub use self::error::VfioError;
pub use self::function::PciAddress;
pub use self::info::IommuInfo;
pub use self::iommu::DmaMapper;
pub use self::iova::IovaRange;
use self::msix::Masks;
pub use crate::pci::{DeviceClass, PciId};

/// BARs of a PCI function.
const BARS: u32 = 6;
/// A reset is tried again this often while the kernel is busy with the device, a millisecond apart.
const RESET_TRIES: u32 = 200;

/// A PCI function, in this process's hands until dropped.
pub struct VfioDevice {
    address: PciAddress,
    id: PciId,
    file: Arc<File>,
    /// Where the configuration space begins in `file`.
    config: u64,
    regions: Vec<Region>,
    registers: Arc<Bar>,
    mapper: Arc<DmaMapper>,
    interrupts: Interrupts,
    removal: bool,
    /// Held while the command register is changed.
    command: Mutex<()>,
}

/// The message-signalled interrupts of a function.
#[derive(Clone, Copy, Debug)]
struct Interrupts {
    index: u32,
    vectors: u32,
}

impl VfioDevice {
    /// Opens the function at `address`, `0000:01:00.0`: reset, quiet, bus mastering off.
    ///
    /// # Errors
    /// Says what is in the way and how to mend it.
    pub fn open(address: &str) -> Result<Self, VfioError> {
        Self::open_into(address, None)
    }

    /// Opens the function as [`VfioDevice::open`] does, when it has come back. What was mapped for it by `mapper`, which it had
    /// before, is mapped again at the same addresses, and `mapper` is its mapper again. What was opened before is dropped.
    ///
    /// # Errors
    /// As [`VfioDevice::open`].
    pub fn open_again(address: &str, mapper: &Arc<DmaMapper>) -> Result<Self, VfioError> {
        Self::open_into(address, Some(mapper))
    }

    fn open_into(address: &str, mapper: Option<&Arc<DmaMapper>>) -> Result<Self, VfioError> {
        let function = Function::inspect(address.parse()?, &Roots::default())?;
        let container = VfioContainer::new(None).map_err(|error| explain(&function, error))?;
        let container = Arc::new(container);
        let device = vfio_ioctls::VfioDevice::new(&function.sysfs, container.clone(), false)
            .map_err(|error| explain(&function, error))?;
        let regions = (0..BARS).map(|index| region(&device, index)).collect::<Vec<_>>();
        let config = device.get_region_offset(VFIO_PCI_CONFIG_REGION_INDEX);
        let vectors = |index| device.get_irq_info(index).map_or(0, |irq| irq.count);
        let interrupts = [VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX]
            .map(|index| Interrupts { index, vectors: vectors(index) })
            .into_iter()
            .find(|interrupts| interrupts.vectors > 0)
            .unwrap_or(Interrupts { index: VFIO_PCI_MSIX_IRQ_INDEX, vectors: 0 });
        let removal = vectors(VFIO_PCI_REQ_IRQ_INDEX) > 0;
        let file = Arc::new(File::from(sys::take_descriptor(device, &container)));

        let os = |what| move |source| VfioError::Os { what, source };
        let mut bytes = [0; config::LENGTH];
        file.read_exact_at(&mut bytes, config).map_err(os("reading the configuration space"))?;
        let id = Config(bytes).id();
        quiet(&file, config).map_err(os("resetting the device"))?;
        let mapper = match mapper {
            None => Arc::new(DmaMapper::new(container).map_err(os("asking for the IOMMU's ranges"))?),
            Some(mapper) => {
                mapper.attach(container).map_err(os("mapping memory for a device that came back"))?;
                Arc::clone(mapper)
            }
        };
        let first = regions.first().cloned().unwrap_or_default();
        let registers = Bar::open(Arc::clone(&file), &first).map_err(os("mapping the device's registers"))?;
        let masks = match interrupts.index {
            VFIO_PCI_MSIX_IRQ_INDEX => {
                Masks::find(&Config(bytes), |index| Bar::open(Arc::clone(&file), regions.get(index)?).ok())
            }
            _ => None,
        };
        let registers = registers.with_masks(masks);
        Ok(Self {
            address: function.address,
            id,
            file,
            config,
            regions,
            registers: Arc::new(registers),
            mapper,
            interrupts,
            removal,
            command: Mutex::new(()),
        })
    }

    /// Where it is.
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// Its vendor, device and class.
    pub fn id(&self) -> PciId {
        self.id
    }

    /// Which driver it needs.
    pub fn class(&self) -> DeviceClass {
        self.id.device_class()
    }

    /// The mapper, with what only VFIO can tell.
    pub fn dma(&self) -> &Arc<DmaMapper> {
        &self.mapper
    }

    /// Maps BAR `index`; one that the function does not have is empty.
    ///
    /// # Errors
    /// The kernel's.
    pub fn bar(&self, index: usize) -> io::Result<Bar> {
        let region = self.regions.get(index).ok_or(io::ErrorKind::InvalidInput)?;
        Bar::open(Arc::clone(&self.file), region)
    }

    /// Reads from the configuration space, all of `bytes`.
    ///
    /// # Errors
    /// The kernel's; outside the space, [`io::ErrorKind::UnexpectedEof`].
    pub fn read_config(&self, offset: u16, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, self.config + u64::from(offset))
    }

    /// Writes to the configuration space. The kernel keeps some of it to itself.
    ///
    /// # Errors
    /// The kernel's.
    pub fn write_config(&self, offset: u16, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.config + u64::from(offset))
    }

    /// The capabilities in the configuration space: id and offset of each.
    ///
    /// # Errors
    /// The kernel's.
    pub fn capabilities(&self) -> io::Result<Vec<(u8, u8)>> {
        let mut bytes = [0; config::LENGTH];
        self.read_config(0, &mut bytes)?;
        Ok(Config(bytes).capabilities().collect())
    }

    /// Asks that `eventfd` be signalled when the machine wants the device back: it is about to be unplugged or given
    /// to another driver, which waits until this value and its registers are dropped.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] if the kernel cannot tell.
    pub fn route_removal(&self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        if !self.removal {
            return Err(io::ErrorKind::Unsupported.into());
        }
        sys::signal(self.file.as_raw_fd(), VFIO_PCI_REQ_IRQ_INDEX, &[eventfd])
    }
}

impl Device for VfioDevice {
    type Registers = Bar;

    fn registers(&self) -> Arc<Bar> {
        Arc::clone(&self.registers)
    }

    fn mapper(&self) -> Arc<dyn Mapper> {
        Arc::clone(&self.mapper) as Arc<dyn Mapper>
    }

    fn set_bus_master(&self, on: bool) -> io::Result<()> {
        let _turn = self.command.lock().unwrap_or_else(PoisonError::into_inner);
        set_command(&self.file, self.config, on)
    }

    /// [`io::ErrorKind::Unsupported`] for a function that has no reset of its own. Bus mastering is off afterwards.
    fn reset(&self) -> io::Result<()> {
        let _turn = self.command.lock().unwrap_or_else(PoisonError::into_inner);
        set_command(&self.file, self.config, false)?;
        reset(&self.file)?;
        // The kernel has restored the command register as it was.
        set_command(&self.file, self.config, false)
    }

    fn vectors(&self) -> u32 {
        self.interrupts.vectors
    }

    fn masks_vectors(&self) -> bool {
        self.registers.has_masks()
    }

    fn route_interrupts(&self, eventfds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let Interrupts { index, vectors } = self.interrupts;
        if eventfds.is_empty() || u32::try_from(eventfds.len()).is_ok_and(|count| count > vectors) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        sys::signal(self.file.as_raw_fd(), index, eventfds)
    }
}

impl PciFunction for VfioDevice {
    fn config_space(&self) -> io::Result<[u8; hal::CONFIG_LEN]> {
        let mut bytes = [0; hal::CONFIG_LEN];
        self.read_config(0, &mut bytes)?;
        Ok(bytes)
    }

    fn bar(&self, index: usize) -> io::Result<Arc<Bar>> {
        Self::bar(self, index).map(Arc::new)
    }
}

impl Drop for VfioDevice {
    /// Leaves the device as it was found. It may be gone, and then there is nothing to do.
    fn drop(&mut self) {
        let stopped = self.set_bus_master(false);
        let reset = match reset(&self.file) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            other => other,
        };
        let silenced = sys::silence(self.file.as_raw_fd(), self.interrupts.index);
        for (what, result) in [("stop", stopped), ("reset", reset), ("silence", silenced)] {
            if let Err(error) = result {
                tracing::debug!(device = %self.address, %error, "cannot {what} the device on closing it");
            }
        }
        self.mapper.detach();
    }
}

/// A function that answers memory accesses and does nothing else.
fn quiet(file: &File, config: u64) -> io::Result<()> {
    set_command(file, config, false)?;
    match reset(file) {
        // The driver resets such a device by its own registers.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
        other => other?,
    }
    set_command(file, config, false)
}

fn set_command(file: &File, config: u64, bus_master: bool) -> io::Result<()> {
    let at = config + pci::config::COMMAND;
    let mut bytes = [0; 2];
    file.read_exact_at(&mut bytes, at)?;
    let mut command = pci::Command(u16::from_le_bytes(bytes));
    command.set_memory_space(true);
    command.set_interrupt_disable(true);
    command.set_bus_master(bus_master);
    file.write_all_at(&command.0.to_le_bytes(), at)
}

fn reset(file: &File) -> io::Result<()> {
    let mut tries = 0;
    loop {
        match sys::reset(file.as_raw_fd()) {
            // Somebody else holds the device's lock in the kernel for a moment.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && tries < RESET_TRIES => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            // The kernel's word for a function without a reset is EINVAL or ENOTTY.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOTTY)) => {
                return Err(io::ErrorKind::Unsupported.into());
            }
            other => return other,
        }
    }
}

fn region(device: &vfio_ioctls::VfioDevice, index: u32) -> Region {
    let (offset, len) = (device.get_region_offset(index), device.get_region_size(index));
    let sparse = device.get_region_caps(index).into_iter().find_map(|capability| match capability {
        VfioRegionInfoCap::SparseMmap(sparse) => Some(sparse.areas),
        _ => None,
    });
    let mappable = match sparse {
        Some(areas) => areas.iter().map(|area| Span { offset: area.offset, len: area.size }).collect(),
        None if device.get_region_flags(index) & VFIO_REGION_INFO_FLAG_MMAP != 0 => {
            vec![Span { offset: 0, len }]
        }
        None => vec![],
    };
    Region { offset, len, mappable }
}

/// Says what `vfio-ioctls` met, in words that help.
fn explain(function: &Function, error: vfio_ioctls::VfioError) -> VfioError {
    use vfio_ioctls::VfioError as From;
    match error {
        From::OpenContainer(source) => function.not_opened(std::path::Path::new("/dev/vfio/vfio"), source),
        From::OpenGroup(source, _) => function.not_opened(&function.node(), source),
        From::GroupViable => function.not_viable(),
        From::VfioExtension => VfioError::NoType1,
        From::ContainerSetIOMMU(errno) if errno.errno() == libc::EPERM => VfioError::UnsafeInterrupts,
        From::ContainerSetIOMMU(errno) => VfioError::Os {
            what: "switching the IOMMU on",
            source: io::Error::from_raw_os_error(errno.errno()),
        },
        From::GroupSetContainer => VfioError::GroupBusy { address: function.address, group: function.group },
        From::VfioDeviceGetInfoPCI | From::VfioDeviceGetInfoOther => {
            VfioError::Device { address: function.address, what: "not a PCI device as VFIO sees it" }
        }
        other => VfioError::Other(other),
    }
}
