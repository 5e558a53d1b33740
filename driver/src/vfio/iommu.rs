//! The device's address space: memory in, memory out.
#![allow(unsafe_code)] // gives memory to the device

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vfio_bindings::bindings::vfio::{VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE};
use vfio_ioctls::VfioContainer;

use super::info::IommuInfo;
use super::iova::IovaSpace;
use super::sys;
use crate::dma::keep;
use crate::hal::{DmaAccess, DmaError, Iova, Mapper, Mapping, PinnedMemory};

/// From this size on, memory is placed so that the IOMMU can use 2 MiB pages.
const LARGE: u64 = 2 << 20;

const OVER_MEMLOCK: &str = "mapping memory for the device, most likely over the limit of locked memory (raise it: \
                            LimitMEMLOCK= of the service, or `ulimit -l`)";

/// One device's IOMMU domain.
struct Domain {
    /// Holds the group too. `None` while there is no device: then nothing reaches what is mapped.
    container: Mutex<Option<Arc<VfioContainer>>>,
    page: u64,
    /// Mappings that the kernel allows in all.
    limit: u32,
    space: Mutex<IovaSpace>,
    /// What is mapped, by its first address: for a device that comes back.
    live: Mutex<BTreeMap<u64, Live>>,
}

/// A mapping as the kernel was told of it.
struct Live {
    memory: Arc<dyn PinnedMemory>,
    flags: u32,
}

/// Maps memory for one device.
pub struct DmaMapper {
    domain: Arc<Domain>,
}

impl DmaMapper {
    pub(crate) fn new(container: Arc<VfioContainer>) -> io::Result<Self> {
        let info = IommuInfo::parse(&sys::iommu_info(container.as_raw_fd())?);
        let page = info.page_size();
        let space = Mutex::new(IovaSpace::new(&info.ranges, page));
        let limit = info.dma_avail.unwrap_or(u32::MAX);
        let (container, live) = (Mutex::new(Some(container)), Mutex::default());
        Ok(Self { domain: Arc::new(Domain { container, page, limit, space, live }) })
    }

    /// The device is gone, or closed. Its domain goes with the last descriptor of it.
    pub(crate) fn detach(&self) {
        *locked(&self.domain.container) = None;
    }

    /// Maps all that is mapped, where it was, for a device in another container: the same one, come back. Nothing may have
    /// been mapped there yet.
    ///
    /// # Errors
    /// The kernel's; the container is of no more use then.
    pub(crate) fn attach(&self, container: Arc<VfioContainer>) -> io::Result<()> {
        let mut now = locked(&self.domain.container);
        for (&iova, Live { memory, flags }) in &*locked(&self.domain.live) {
            let (start, bytes) = (memory.start(), memory.len() as u64);
            // SAFETY: as when it was mapped first: it is still mapped, and `live` holds the memory.
            unsafe { sys::map(container.as_raw_fd(), start, iova, bytes, *flags) }?;
        }
        *now = Some(container);
        Ok(())
    }

    /// What the kernel says now: device addresses, page sizes, mappings left.
    ///
    /// # Errors
    /// The kernel's.
    pub fn info(&self) -> io::Result<IommuInfo> {
        let container = locked(&self.domain.container).clone().ok_or(io::ErrorKind::NotConnected)?;
        Ok(IommuInfo::parse(&sys::iommu_info(container.as_raw_fd())?))
    }
}

impl Mapper for DmaMapper {
    fn map(&self, memory: Arc<dyn PinnedMemory>, access: DmaAccess) -> Result<Box<dyn Mapping>, DmaError> {
        let domain = &self.domain;
        let (start, bytes) = (memory.start(), memory.len() as u64);
        if bytes == 0 || !bytes.is_multiple_of(domain.page) || !(start as u64).is_multiple_of(domain.page) {
            let source = io::ErrorKind::InvalidInput.into();
            return Err(DmaError::Os {
                what: "mapping memory that is not in whole pages of the IOMMU",
                source,
            });
        }
        let (align, phase) = if bytes >= LARGE { (LARGE, start as u64 % LARGE) } else { (domain.page, 0) };
        let taken = domain.space().take(bytes, align.max(domain.page), phase);
        let iova = taken.ok_or(DmaError::NoAddress { bytes })?;
        let flags = match access {
            DmaAccess::Read => VFIO_DMA_MAP_FLAG_READ,
            DmaAccess::Write => VFIO_DMA_MAP_FLAG_WRITE,
            DmaAccess::ReadWrite => VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        };
        // Held until it is noted: a device that comes back meanwhile would miss it.
        let container = locked(&domain.container);
        let mapped = match &*container {
            // SAFETY: PinnedMemory is mapped for as long as it lives, which `live` sees to, and others may write it.
            Some(container) => unsafe { sys::map(container.as_raw_fd(), start, iova, bytes, flags) },
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        if let Err(error) = mapped {
            domain.space().give_back(iova, bytes);
            return Err(domain.not_mapped(error));
        }
        locked(&domain.live).insert(iova, Live { memory, flags });
        drop(container);
        Ok(Box::new(VfioMapping { domain: Arc::clone(domain), iova, bytes }))
    }

    fn mappings(&self) -> u64 {
        locked(&self.domain.live).len() as u64
    }

    fn mappings_left(&self) -> Option<u32> {
        self.info().ok()?.dma_avail
    }
}

impl Domain {
    fn space(&self) -> MutexGuard<'_, IovaSpace> {
        locked(&self.space)
    }

    fn not_mapped(&self, source: io::Error) -> DmaError {
        if source.kind() == io::ErrorKind::NotConnected {
            return DmaError::Os { what: "mapping memory for a device that is away", source };
        }
        match source.raw_os_error() {
            Some(libc::ENOSPC) => DmaError::TooMany { limit: self.limit },
            Some(libc::ENOMEM) => DmaError::Os { what: OVER_MEMLOCK, source },
            Some(libc::EFAULT) => DmaError::Os {
                what: "mapping memory for the device that this process cannot write itself",
                source,
            },
            _ => DmaError::Os { what: "mapping memory for the device", source },
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory that the device can reach.
struct VfioMapping {
    domain: Arc<Domain>,
    iova: u64,
    bytes: u64,
}

impl Mapping for VfioMapping {
    fn iova(&self) -> Iova {
        Iova(self.iova)
    }

    fn len(&self) -> usize {
        usize::try_from(self.bytes).unwrap_or(usize::MAX) // it was one
    }
}

impl Drop for VfioMapping {
    fn drop(&mut self) {
        let container = locked(&self.domain.container);
        let memory = locked(&self.domain.live).remove(&self.iova);
        let unmapped = match &*container {
            Some(container) => sys::unmap(container.as_raw_fd(), self.iova, self.bytes),
            // The kernel holds on to the pages for as long as the domain of a device lives that was left open.
            None => Ok(()),
        };
        match unmapped {
            Ok(()) => self.domain.space().give_back(self.iova, self.bytes),
            Err(error) => {
                // The device may still reach it: neither the memory nor the addresses are ever used again.
                tracing::error!(iova = self.iova, bytes = self.bytes, %error, "memory could not be unmapped");
                keep(memory);
            }
        }
    }
}
