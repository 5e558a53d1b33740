//! The VFIO system calls that `vfio-ioctls` does not have, or whose errors it drops.
#![allow(unsafe_code)] // ioctl, and a descriptor that changes its owner

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_TYPE,
    vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap,
};
use vfio_ioctls::VfioContainer;

/// As in `linux/vfio.h`: all requests are `_IO`, without a size.
const fn request(number: u32) -> libc::Ioctl {
    ((VFIO_TYPE as u32) << 8 | (VFIO_BASE + number)) as libc::Ioctl
}

const DEVICE_SET_IRQS: libc::Ioctl = request(10);
const DEVICE_RESET: libc::Ioctl = request(11);
const IOMMU_GET_INFO: libc::Ioctl = request(12);
const IOMMU_MAP_DMA: libc::Ioctl = request(13);
const IOMMU_UNMAP_DMA: libc::Ioctl = request(14);

/// The most that VFIO_IOMMU_GET_INFO is believed to have to say.
const LARGEST_INFO: usize = 1 << 20;

/// `argsz` of the structures below, all of a size known here.
fn argsz(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// VFIO_IOMMU_GET_INFO: the structure and the capabilities behind it, as the kernel wrote them.
pub(crate) fn iommu_info(container: RawFd) -> io::Result<Vec<u8>> {
    // u64s, for the structure's alignment. The first call asks how long it is; a second may be needed.
    let mut info = vec![0u64; 64];
    loop {
        let room = size_of_val(info.as_slice());
        info.fill(0);
        if let Some(first) = info.first_mut() {
            let [a, b, c, d] = argsz(room).to_ne_bytes();
            *first = u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0]); // argsz, then flags
        }
        // SAFETY: the kernel writes at most `argsz` bytes, the length of `info`.
        checked(unsafe { libc::ioctl(container, IOMMU_GET_INFO, info.as_mut_ptr()) })?;
        let bytes: Vec<u8> = info.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let argsz = bytes.first_chunk().map_or(0, |chunk| u32::from_ne_bytes(*chunk));
        let wanted = usize::try_from(argsz).unwrap_or(usize::MAX);
        if wanted <= room {
            return Ok(bytes);
        }
        if wanted > LARGEST_INFO {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "VFIO_IOMMU_GET_INFO wants too much room",
            ));
        }
        info = vec![0; wanted.div_ceil(size_of::<u64>())];
    }
}

/// VFIO_IOMMU_MAP_DMA: lets devices of the container reach `bytes` bytes from `start` at `iova`.
///
/// # Safety
/// The memory is mapped in this process, and nothing that Rust holds to be its own: devices read or write it, as
/// `flags` says, until it is unmapped.
pub(crate) unsafe fn map(
    container: RawFd,
    start: *mut u8,
    iova: u64,
    bytes: u64,
    flags: u32,
) -> io::Result<()> {
    let map = vfio_iommu_type1_dma_map {
        argsz: argsz(size_of::<vfio_iommu_type1_dma_map>()),
        flags,
        vaddr: start as u64,
        iova,
        size: bytes,
    };
    // SAFETY: the kernel reads the structure; the memory it names is the caller's promise.
    checked(unsafe { libc::ioctl(container, IOMMU_MAP_DMA, &raw const map) })
}

/// VFIO_IOMMU_UNMAP_DMA. On success devices can no longer reach the range.
pub(crate) fn unmap(container: RawFd, iova: u64, bytes: u64) -> io::Result<()> {
    let mut unmap = vfio_iommu_type1_dma_unmap {
        argsz: argsz(size_of::<vfio_iommu_type1_dma_unmap>()),
        iova,
        size: bytes,
        ..Default::default()
    };
    // SAFETY: the kernel reads and writes the structure, whose length it is told.
    checked(unsafe { libc::ioctl(container, IOMMU_UNMAP_DMA, &raw mut unmap) })?;
    if unmap.size != bytes {
        return Err(io::Error::other(format!("unmapped {} bytes of {bytes}", unmap.size)));
    }
    Ok(())
}

/// VFIO_DEVICE_RESET.
pub(crate) fn reset(device: RawFd) -> io::Result<()> {
    // SAFETY: the request has no argument.
    checked(unsafe { libc::ioctl(device, DEVICE_RESET) })
}

/// VFIO_DEVICE_SET_IRQS: vector n of `index` signals `eventfds[n]`.
pub(crate) fn signal(device: RawFd, index: u32, eventfds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let count = u32::try_from(eventfds.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    let mut set = irq_set(flags, index, count, eventfds.len());
    set.extend(eventfds.iter().map(|fd| fd.as_raw_fd().cast_unsigned()));
    set_irqs(device, &set)
}

/// VFIO_DEVICE_SET_IRQS: switches the interrupts of `index` off.
pub(crate) fn silence(device: RawFd, index: u32) -> io::Result<()> {
    set_irqs(device, &irq_set(VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER, index, 0, 0))
}

/// `struct vfio_irq_set` without its data, for which `words` more will be pushed.
fn irq_set(flags: u32, index: u32, count: u32, words: usize) -> Vec<u32> {
    let bytes = argsz((5 + words) * size_of::<u32>());
    vec![bytes, flags, index, 0, count]
}

fn set_irqs(device: RawFd, set: &[u32]) -> io::Result<()> {
    // SAFETY: the kernel reads `argsz` bytes, the length of `set`.
    checked(unsafe { libc::ioctl(device, DEVICE_SET_IRQS, set.as_ptr()) })
}

/// Takes a device's descriptor out of the value that holds it.
///
/// Its drop looks the device's group up in sysfs and panics when the device has been unplugged or unbound meanwhile,
/// which is just when it is dropped. The container, with the group, is closed by its own drop.
pub(crate) fn take_descriptor(device: vfio_ioctls::VfioDevice, container: &Arc<VfioContainer>) -> OwnedFd {
    let device = ManuallyDrop::new(device);
    // SAFETY: the descriptor is open, and its former owner is never dropped.
    let descriptor = unsafe { OwnedFd::from_raw_fd(device.as_raw_fd()) };
    // SAFETY: the device held one reference to the container, which nobody else gives back.
    unsafe { Arc::decrement_strong_count(Arc::as_ptr(container)) };
    descriptor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_those_of_the_kernel_header() {
        assert_eq!(IOMMU_MAP_DMA, 0x3b71);
        assert_eq!(DEVICE_RESET, 0x3b6f);
    }

    #[test]
    fn a_descriptor_that_is_no_vfio_device_is_an_error() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let fd = file.as_raw_fd();
        assert!(iommu_info(fd).is_err());
        assert!(reset(fd).is_err());
        assert!(unmap(fd, 0, 4096).is_err());
        assert!(silence(fd, 2).is_err());
        assert!(signal(fd, 2, &[std::os::fd::AsFd::as_fd(&file)]).is_err());
    }

    #[test]
    fn irq_set_counts_its_bytes() {
        assert_eq!(irq_set(36, 2, 3, 3), [32, 36, 2, 0, 3]);
        assert_eq!(irq_set(33, 2, 0, 0), [20, 33, 2, 0, 0]);
    }
}
