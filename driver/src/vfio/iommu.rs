//! The device's address space: memory in, memory out.
#![allow(unsafe_code)] // gives memory to the device

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

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
    /// Holds the group too: the domain lives as long as a mapping of it does, longer than the device if need be.
    container: Arc<VfioContainer>,
    page: u64,
    /// Mappings that the kernel allows in all.
    limit: u32,
    space: Mutex<IovaSpace>,
    mappings: AtomicU64,
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
        Ok(Self { domain: Arc::new(Domain { container, page, limit, space, mappings: AtomicU64::new(0) }) })
    }

    /// What the kernel says now: device addresses, page sizes, mappings left.
    ///
    /// # Errors
    /// The kernel's.
    pub fn info(&self) -> io::Result<IommuInfo> {
        Ok(IommuInfo::parse(&sys::iommu_info(self.domain.container.as_raw_fd())?))
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
        // SAFETY: PinnedMemory is mapped for as long as it lives, which the mapping sees to, and others may write it.
        if let Err(error) = unsafe { sys::map(domain.container.as_raw_fd(), start, iova, bytes, flags) } {
            domain.space().give_back(iova, bytes);
            return Err(domain.not_mapped(error));
        }
        domain.mappings.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(VfioMapping { domain: Arc::clone(domain), iova, bytes, memory: Some(memory) }))
    }

    fn mappings(&self) -> u64 {
        self.domain.mappings.load(Ordering::Relaxed)
    }

    fn mappings_left(&self) -> Option<u32> {
        self.info().ok()?.dma_avail
    }
}

impl Domain {
    fn space(&self) -> std::sync::MutexGuard<'_, IovaSpace> {
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn not_mapped(&self, source: io::Error) -> DmaError {
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

/// Memory that the device can reach.
struct VfioMapping {
    domain: Arc<Domain>,
    iova: u64,
    bytes: u64,
    memory: Option<Arc<dyn PinnedMemory>>,
}

impl Mapping for VfioMapping {
    fn iova(&self) -> Iova {
        Iova(self.iova)
    }

    fn len(&self) -> usize {
        self.memory.as_ref().map_or(0, |memory| memory.len())
    }
}

impl Drop for VfioMapping {
    fn drop(&mut self) {
        self.domain.mappings.fetch_sub(1, Ordering::Relaxed);
        match sys::unmap(self.domain.container.as_raw_fd(), self.iova, self.bytes) {
            Ok(()) => self.domain.space().give_back(self.iova, self.bytes),
            Err(error) => {
                // The device may still reach it: neither the memory nor the addresses are ever used again.
                tracing::error!(iova = self.iova, bytes = self.bytes, %error, "memory could not be unmapped");
                keep(self.memory.take());
            }
        }
    }
}
