//! Memory taken from applications, as the device side sees it.
#![allow(unsafe_code)] // the promise of pinned memory rests on what `SealedMemory` has done and verified

use std::sync::Arc;

use driver::hal::PinnedMemory;
use wire::shm::{SealedMemory, SharedMemory};

/// Sealed, populated and pinned memory of an application.
#[derive(Clone)]
pub(crate) struct Adopted(SealedMemory);

impl Adopted {
    /// Holds on to `memory` until the last clone is gone.
    pub(crate) fn new(memory: SealedMemory) -> Self {
        Self(memory)
    }

    /// The mapping.
    pub(crate) fn shared(&self) -> Arc<SharedMemory> {
        self.0.memory().clone()
    }
}

/// Has the kernel map all code of this process now, and not when a thread that must not wait first runs it.
pub(crate) fn map_code() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for line in maps.lines().filter(|line| line.contains(" r-xp ") && line.contains('/')) {
        let range = line.split_whitespace().next().and_then(|range| range.split_once('-'));
        let address = |text| usize::from_str_radix(text, 16).ok();
        let Some((start, end)) = range.and_then(|(start, end)| Some((address(start)?, address(end)?))) else {
            continue;
        };
        let advice = rustix::mm::Advice::LinuxPopulateRead;
        // SAFETY: maps pages that are there to be read, and changes nothing; a range that is gone by now is an error.
        let _ = unsafe { rustix::mm::madvise(std::ptr::without_provenance_mut(start), end - start, advice) };
    }
}

/// Touches as much of this thread's stack as it will ever need.
#[inline(never)]
pub(crate) fn touch_stack() {
    std::hint::black_box([1u8; STACK]);
}

/// No turn comes near it.
const STACK: usize = 128 << 10;

// SAFETY: a `SealedMemory` is mapped shared, readable and writable, at a fixed page-aligned address until its last
// clone is dropped; its file is sealed against shrinking and hole punching and each page was populated and is kept
// in memory, so that no access to it can fault.
unsafe impl PinnedMemory for Adopted {
    fn start(&self) -> *mut u8 {
        self.0.start()
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}
