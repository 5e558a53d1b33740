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
