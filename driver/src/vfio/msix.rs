//! Which vectors of a function are masked. VFIO routes MSI-X vectors to eventfds, and has no call to mask one; the table of
//! vectors in the device's memory has a bit for each (PCI Express Base 5.0, 7.7.2.8). Where the kernel lets that memory be
//! mapped (VFIO_REGION_INFO_CAP_MSIX_MAPPABLE) the bit is written here, by one store.
//!
//! The kernel writes it, too: it unmasks a vector as it routes it, and restores it after a reset of the function. So what is
//! written here is about interrupts that nobody needs, and nobody relies on it. What a device has to say while a vector is
//! masked it keeps pending, and says when it is unmasked; so no wake is lost between the two.

use std::sync::Arc;

use super::bar::Bar;
use crate::hal::Registers;
use crate::pci::{Config, MsixTable};

/// Bytes of an entry of the table, and where its Vector Control is (PCI Express Base 5.0, 7.7.2).
const ENTRY: usize = 16;
const VECTOR_CONTROL: usize = 12;

/// The masks of a function's vectors.
pub(crate) struct Masks {
    bar: Arc<Bar>,
    offset: usize,
    vectors: usize,
}

impl Masks {
    /// The masks that the configuration space tells of, in the BAR that `open` gives; `None` if there are none, or they cannot
    /// be reached.
    pub(crate) fn find(config: &Config, open: impl FnOnce(usize) -> Option<Bar>) -> Option<Self> {
        let MsixTable { bar, offset, vectors } = config.msix_table()?;
        let bar = open(bar)?;
        let masks = Self { bar: Arc::new(bar), offset, vectors };
        let last = offset.checked_add(vectors.checked_sub(1)? * ENTRY + VECTOR_CONTROL)?;
        (masks.bar.is_mapped(offset) && masks.bar.is_mapped(last)).then_some(masks)
    }

    /// The Vector Control of a vector.
    #[cfg(test)]
    pub(crate) fn word(&self, vector: usize) -> u32 {
        self.bar.read32(self.offset + vector * ENTRY + VECTOR_CONTROL)
    }

    /// Masks a vector, or unmasks it. One that the function does not have is neither.
    pub(crate) fn set(&self, vector: u32, masked: bool) {
        let vector = vector as usize;
        if vector < self.vectors {
            self.bar.write32(self.offset + vector * ENTRY + VECTOR_CONTROL, u32::from(masked));
        }
    }
}
