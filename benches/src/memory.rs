//! Page-aligned memory for those who hand it to the kernel.
#![allow(unsafe_code)] // it maps memory

use anyhow::{Context, Result};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Pages of zeros, all there from the start.
pub struct Pages {
    start: *mut u8,
    length: usize,
}

// SAFETY: plain memory that nothing else points to; this type only hands out addresses.
unsafe impl Send for Pages {}

impl Pages {
    /// At least `length` bytes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(length: usize) -> Result<Self> {
        let length = length.next_multiple_of(4096).max(4096);
        let flags = MapFlags::PRIVATE | MapFlags::POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            mmap_anonymous(std::ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, flags)
        };
        Ok(Self { start: start.context("mapping memory")?.cast(), length })
    }

    /// The byte at `offset`.
    ///
    /// # Panics
    /// Beyond the end.
    #[inline]
    pub fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.length, "beyond the end");
        self.start.wrapping_add(offset)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length, and given out only as addresses whose users end first.
        let _ = unsafe { munmap(self.start.cast(), self.length) };
    }
}
