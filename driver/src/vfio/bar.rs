//! A device's registers.
#![allow(unsafe_code)] // maps and accesses device memory

use std::io;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::msix::Masks;
use crate::hal::{NarrowRegisters, Registers};

/// A part of a BAR that may be mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// A region as VFIO describes it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Region {
    /// Where it begins in the device's file.
    pub(crate) offset: u64,
    pub(crate) len: u64,
    /// The parts that may be mapped: all, none, or what the kernel leaves when it keeps the MSI-X table.
    pub(crate) mappable: Vec<Span>,
}

impl Region {
    /// The mappable parts that lie inside the region and on pages, in order, without overlaps.
    fn spans(&self, page: u64) -> Vec<Span> {
        let mut spans: Vec<Span> = self.mappable.clone();
        spans.sort_by_key(|span| span.offset);
        let mut end = 0;
        spans.retain(|span| {
            let aligned = span.offset.is_multiple_of(page) && span.len != 0;
            match span.offset.checked_add(span.len) {
                Some(last) if aligned && span.offset >= end && last <= self.len => {
                    end = last;
                    true
                }
                _ => false,
            }
        });
        spans
    }
}

/// A BAR. What may be mapped is accessed directly, the rest through system calls.
pub struct Bar {
    device: Arc<std::fs::File>,
    offset: u64,
    len: usize,
    windows: Vec<Window>,
    masks: Option<Masks>,
}

/// A mapped part.
struct Window {
    at: usize,
    len: usize,
    start: NonNull<u8>,
}

// SAFETY: the window is memory of the device, accessed by volatile loads and stores only, from any thread.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    fn map(device: &impl std::os::fd::AsFd, region: u64, span: Span) -> io::Result<Self> {
        let (at, len) = match (usize::try_from(span.offset), usize::try_from(span.len)) {
            (Ok(at), Ok(len)) => (at, len),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let from = region.checked_add(span.offset).ok_or(io::ErrorKind::InvalidData)?;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let start = unsafe { mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, device, from) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { at, len, start })
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: this is what `map` mapped, and nothing points into it beyond a single access.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

impl Bar {
    pub(crate) fn open(device: Arc<std::fs::File>, region: &Region) -> io::Result<Self> {
        let len = usize::try_from(region.len).map_err(|_| io::ErrorKind::InvalidData)?;
        let page = rustix::param::page_size() as u64;
        let windows: io::Result<_> =
            region.spans(page).into_iter().map(|span| Window::map(&device, region.offset, span)).collect();
        Ok(Self { offset: region.offset, len, windows: windows?, masks: None, device })
    }

    /// With the masks of the function's vectors, wherever they are.
    pub(crate) fn with_masks(self, masks: Option<Masks>) -> Self {
        Self { masks, ..self }
    }

    /// Whether it says which vectors are masked.
    pub(crate) fn has_masks(&self) -> bool {
        self.masks.is_some()
    }

    /// Whether the 32-bit register at `offset` is there, and mapped.
    pub(crate) fn is_mapped(&self, offset: usize) -> bool {
        let last = self.len.checked_sub(size_of::<u32>());
        offset.is_multiple_of(size_of::<u32>())
            && last.is_some_and(|last| offset <= last)
            && self.word::<u32>(offset).is_some()
    }

    /// Where a word of `size` bytes at `offset` is mapped, if it is.
    ///
    /// # Panics
    /// If the BAR has no such word: a bug in the driver.
    #[inline]
    fn word<T>(&self, offset: usize) -> Option<*mut T> {
        let size = size_of::<T>();
        let fits =
            offset.is_multiple_of(size) && self.len.checked_sub(size).is_some_and(|last| offset <= last);
        assert!(fits, "no {size}-byte register at {offset:#x} in a BAR of {:#x} bytes", self.len);
        self.windows.iter().find_map(|window| {
            let within = offset.checked_sub(window.at)?;
            // SAFETY: `within` is inside the window.
            (within + size <= window.len).then(|| unsafe { window.start.as_ptr().add(within) }.cast())
        })
    }

    #[inline]
    fn load<T: Copy, const N: usize>(&self, offset: usize, from: impl Fn([u8; N]) -> T) -> T {
        let value = match self.word::<T>(offset) {
            // SAFETY: mapped, aligned, and for as long as self lives.
            Some(word) => unsafe { word.read_volatile() },
            None => {
                let mut bytes = [0xff; N];
                match self.device.read_exact_at(&mut bytes, self.position(offset)) {
                    Ok(()) => from(bytes),
                    Err(_) => from([0xff; N]), // as a device that is gone reads
                }
            }
        };
        order::after_read();
        value
    }

    #[inline]
    fn store<T, const N: usize>(&self, offset: usize, value: T, bytes: impl Fn(T) -> [u8; N]) {
        let word = self.word::<T>(offset);
        order::before_write();
        match word {
            // SAFETY: mapped, aligned, and for as long as self lives.
            Some(word) => unsafe { word.write_volatile(value) },
            // A device that is gone takes no writes, as on the bus.
            None => drop(self.device.write_all_at(&bytes(value), self.position(offset))),
        }
    }

    fn position(&self, offset: usize) -> u64 {
        self.offset.wrapping_add(offset as u64)
    }
}

impl NarrowRegisters for Bar {
    fn read8(&self, offset: usize) -> u8 {
        self.load(offset, u8::from_ne_bytes)
    }

    fn read16(&self, offset: usize) -> u16 {
        u16::from_le(self.load(offset, u16::from_ne_bytes))
    }

    fn write8(&self, offset: usize, value: u8) {
        self.store(offset, value, u8::to_ne_bytes);
    }

    #[inline]
    fn write16(&self, offset: usize, value: u16) {
        self.store(offset, value.to_le(), u16::to_ne_bytes);
    }
}

impl Registers for Bar {
    fn len(&self) -> usize {
        self.len
    }

    fn arm_interrupt(&self, vector: u32, armed: bool) {
        if let Some(masks) = &self.masks {
            masks.set(vector, !armed);
        }
    }

    #[inline]
    fn read32(&self, offset: usize) -> u32 {
        u32::from_le(self.load(offset, u32::from_ne_bytes))
    }

    /// As two 32-bit reads, low half first: not every bus and bridge carries 64 bits at once.
    #[inline]
    fn read64(&self, offset: usize) -> u64 {
        let low = self.read32(offset);
        u64::from(self.read32(offset + 4)) << 32 | u64::from(low)
    }

    #[inline]
    fn write32(&self, offset: usize, value: u32) {
        self.store(offset, value.to_le(), u32::to_ne_bytes);
    }

    /// As two 32-bit writes, low half first.
    #[inline]
    fn write64(&self, offset: usize, value: u64) {
        let half = |value: u64| u32::try_from(value & u64::from(u32::MAX)).unwrap_or_default();
        self.write32(offset, half(value));
        self.write32(offset + 4, half(value >> 32));
    }
}

/// The order between registers and memory: stores come before the register write that announces them, loads come
/// after the register read that they follow.
mod order {
    use std::sync::atomic::{Ordering, fence};

    /// x86 keeps stores in order, also from write-back memory to uncached registers: only the compiler is held back.
    #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
    #[inline]
    pub(super) fn before_write() {
        fence(Ordering::Release);
    }

    /// x86 does not let loads pass an uncached one.
    #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
    #[inline]
    pub(super) fn after_read() {
        fence(Ordering::Acquire);
    }

    /// Rust's fences order only what CPUs do among themselves; a device is in the outer shareable domain.
    #[cfg(target_arch = "aarch64")]
    #[inline]
    pub(super) fn before_write() {
        fence(Ordering::Release);
        // SAFETY: a barrier.
        unsafe { core::arch::asm!("dmb oshst", options(nostack, preserves_flags)) };
    }

    /// As above.
    #[cfg(target_arch = "aarch64")]
    #[inline]
    pub(super) fn after_read() {
        // SAFETY: a barrier.
        unsafe { core::arch::asm!("dmb oshld", options(nostack, preserves_flags)) };
        fence(Ordering::Acquire);
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "x86", target_arch = "aarch64")))]
    compile_error!("which barriers stand between memory and device registers on this architecture?");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    /// A BAR made of a file: the first and the third page are mapped.
    fn bar() -> (tempfile::NamedTempFile, Bar) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[0; 0x5000]).unwrap();
        let device = Arc::new(file.reopen().unwrap());
        let mappable = vec![Span { offset: 0x2000, len: 0x1000 }, Span { offset: 0, len: 0x1000 }];
        let bar = Bar::open(device, &Region { offset: 0x1000, len: 0x4000, mappable }).unwrap();
        (file, bar)
    }

    #[test]
    fn mapped_and_unmapped_registers_look_alike() {
        let (file, bar) = bar();
        assert_eq!((bar.windows.len(), bar.len()), (2, 0x4000));
        for offset in [0, 0xffc, 0x1000, 0x1ffc, 0x2000, 0x2ff8, 0x3ff8] {
            bar.write32(offset, 0x1234_5678);
            assert_eq!(bar.read32(offset), 0x1234_5678, "{offset:#x}");
            let mut bytes = [0; 4];
            file.as_file().read_exact_at(&mut bytes, 0x1000 + offset as u64).unwrap();
            assert_eq!(u32::from_le_bytes(bytes), 0x1234_5678);
        }
        for offset in [8, 0xffc, 0x3008] {
            bar.write64(offset, 0x0123_4567_89ab_cdef);
            assert_eq!(bar.read64(offset), 0x0123_4567_89ab_cdef);
            assert_eq!(bar.read32(offset), 0x89ab_cdef);
        }
        for offset in [0x20, 0x1020] {
            bar.write32(offset, 0);
            bar.write8(offset + 1, 0xab);
            bar.write16(offset + 2, 0x1234);
            assert_eq!(bar.read32(offset), 0x1234_ab00);
            assert_eq!((bar.read8(offset + 1), bar.read16(offset + 2)), (0xab, 0x1234));
        }
    }

    /// The table of three vectors lies in the first page, or in one that is not mapped.
    fn masks(table: u8) -> Option<Masks> {
        let mut config = [0; crate::hal::CONFIG_LEN];
        (config[6], config[0x34]) = (0x10, 0x40);
        config[0x40..0x48].copy_from_slice(&[0x11, 0, 2, 0, 0, table, 0, 0]);
        Masks::find(&crate::pci::Config(config), |index| (index == 0).then(|| bar().1))
    }

    #[test]
    fn a_vector_is_masked_unless_it_is_armed() {
        let (_file, bar) = bar();
        let bar = bar.with_masks(masks(0x08));
        let table = &bar.masks.as_ref().unwrap();
        let words = |bar: &Masks| [0, 1, 2, 3].map(|vector| bar.word(vector));
        assert_eq!(words(table), [0; 4]);
        bar.arm_interrupt(1, false);
        bar.arm_interrupt(2, false);
        bar.arm_interrupt(3, false);
        assert_eq!(words(table), [0, 1, 1, 0], "there are three");
        bar.arm_interrupt(2, true);
        assert_eq!(words(table), [0, 1, 0, 0]);
    }

    #[test]
    fn a_table_that_is_not_mapped_masks_nothing() {
        assert!(masks(0x20).is_some() && masks(0x10).is_none() && masks(0xff).is_none());
        let (_file, bar) = bar();
        assert!(!bar.has_masks());
        bar.arm_interrupt(0, false);
    }

    #[test]
    fn a_device_that_is_gone_reads_as_all_ones() {
        let (file, bar) = bar();
        file.as_file().set_len(0x2000).unwrap();
        assert_eq!(bar.read32(0x1000), u32::MAX);
        assert_eq!(bar.read64(0x1000), u64::MAX);
    }

    #[test]
    #[should_panic(expected = "no 4-byte register at 0x4000")]
    fn a_register_outside_is_a_bug() {
        bar().1.read32(0x4000);
    }

    #[test]
    #[should_panic(expected = "no 4-byte register at 0x2")]
    fn a_crooked_register_is_a_bug() {
        bar().1.write32(2, 0);
    }

    #[test]
    fn an_absent_bar_has_no_registers() {
        let device = Arc::new(tempfile::tempfile().unwrap());
        let bar = Bar::open(device, &Region::default()).unwrap();
        assert_eq!((bar.len(), bar.windows.len()), (0, 0));
    }

    proptest! {
        #[test]
        fn spans_are_inside_on_pages_and_apart(
            len in 0u64..0x8000,
            mappable in prop::collection::vec((0u64..0x9000, 0u64..0x9000, any::<bool>()), 0..6),
        ) {
            let mappable = mappable
                .into_iter()
                .map(|(offset, len, whole)| Span { offset: if whole { offset & !0xfff } else { offset }, len })
                .chain([Span { offset: !0xfff, len: u64::MAX }])
                .collect();
            let spans = Region { offset: 0, len, mappable }.spans(0x1000);
            let mut end = 0;
            for span in spans {
                prop_assert!(span.offset % 0x1000 == 0 && span.offset >= end && span.len > 0);
                end = span.offset + span.len;
                prop_assert!(end <= len);
            }
        }
    }
}
