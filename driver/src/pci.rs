//! What a PCI function's configuration space says. It comes from the device: every value may be wrong.

use crate::spec::pci::{MsixControl, Status, capability, class, config, msix};
use crate::spec::virtio::pci as virtio;

pub(crate) use crate::hal::CONFIG_LEN as LENGTH;
const _: () = assert!(LENGTH as u64 == config::LEGACY_LEN);

/// Capabilities lie above the header, on multiples of four: there is no room for more.
const MOST_CAPABILITIES: usize = (LENGTH - FIRST_CAPABILITY as usize) / 4;
/// Where the header ends.
const FIRST_CAPABILITY: u8 = 0x40;

/// Which function this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PciId {
    /// Who made it.
    pub vendor: u16,
    /// What it is, by that vendor.
    pub device: u16,
    /// Who made the card.
    pub subsystem_vendor: u16,
    /// What the card is.
    pub subsystem: u16,
    /// Base class, sub-class and programming interface, 8 bits each: 01_08_02h is NVMe.
    pub class: u32,
    /// The vendor's revision.
    pub revision: u8,
}

/// What kind of storage device a function is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceClass {
    /// An NVMe I/O controller (class code 01_08_02h).
    Nvme,
    /// A virtio block device, modern or transitional (virtio 1.2, 4.1.2: vendor 1AF4h, devices 1042h and 1001h).
    VirtioBlock,
    /// Something else.
    Other,
}

impl PciId {
    /// What kind of storage device it is.
    pub const fn device_class(&self) -> DeviceClass {
        match (self.class, self.vendor, self.device) {
            (class::NVME, _, _) => DeviceClass::Nvme,
            (_, virtio::VENDOR, virtio::MODERN_BLOCK | virtio::TRANSITIONAL_BLOCK) => {
                DeviceClass::VirtioBlock
            }
            _ => DeviceClass::Other,
        }
    }
}

/// Where the table of a function's MSI-X vectors is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct MsixTable {
    pub(crate) bar: usize,
    pub(crate) offset: usize,
    /// From 1 to 2048.
    pub(crate) vectors: usize,
}

/// The first 256 bytes, read once.
#[derive(Clone)]
pub(crate) struct Config(pub(crate) [u8; LENGTH]);

impl Config {
    fn u8(&self, at: u64) -> u8 {
        usize::try_from(at).ok().and_then(|at| self.0.get(at)).copied().unwrap_or(u8::MAX)
    }

    fn u16(&self, at: u64) -> u16 {
        u16::from_le_bytes([self.u8(at), self.u8(at + 1)])
    }

    /// Who it says it is.
    pub(crate) fn id(&self) -> PciId {
        let class = [1, 2, 3].map(|byte| self.u8(config::REVISION_AND_CLASS + byte));
        PciId {
            vendor: self.u16(config::VENDOR_ID),
            device: self.u16(config::DEVICE_ID),
            subsystem_vendor: self.u16(config::SUBSYSTEM_VENDOR_ID),
            subsystem: self.u16(config::SUBSYSTEM_ID),
            class: u32::from_le_bytes([class[0], class[1], class[2], 0]),
            revision: self.u8(config::REVISION_AND_CLASS),
        }
    }

    /// Where its MSI-X vectors are, if it has any.
    pub(crate) fn msix_table(&self) -> Option<MsixTable> {
        let (_, at) = self.capabilities().find(|(id, _)| *id == capability::MSIX)?;
        let control = MsixControl(self.u16(u64::from(at) + msix::CONTROL));
        let table = u64::from(at) + msix::TABLE;
        let table = u32::from(self.u16(table + 2)) << 16 | u32::from(self.u16(table));
        let (bar, offset) = ((table & msix::BAR_MASK) as usize, (table & !msix::BAR_MASK) as usize);
        Some(MsixTable { bar, offset, vectors: usize::from(control.table_size_z()) + 1 })
    }

    /// Capability ids and where each begins, in the device's order; a list that loops or leaves its room ends there.
    pub(crate) fn capabilities(&self) -> impl Iterator<Item = (u8, u8)> {
        let listed = Status(self.u16(config::STATUS)).capabilities();
        let mut next = if listed { self.u8(config::CAPABILITIES) } else { 0 };
        std::iter::from_fn(move || {
            let at = next & !3;
            if at < FIRST_CAPABILITY {
                return None;
            }
            next = self.u8(u64::from(at) + 1);
            Some((self.u8(u64::from(at)), at))
        })
        .take(MOST_CAPABILITIES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn emulated_nvme_is_recognised() {
        let mut config = Config([0; LENGTH]);
        config.0[..12]
            .copy_from_slice(&[0x36, 0x1b, 0x10, 0x00, 0x07, 0x04, 0x10, 0x00, 0x02, 0x02, 0x08, 0x01]);
        config.0[0x34] = 0x40;
        config.0[0x40..0x42].copy_from_slice(&[0x11, 0x80]);
        config.0[0x80..0x82].copy_from_slice(&[0x10, 0x60]);
        config.0[0x60..0x62].copy_from_slice(&[0x01, 0x00]);
        let id = config.id();
        assert_eq!((id.vendor, id.device, id.class, id.revision), (0x1b36, 0x0010, 0x01_08_02, 2));
        assert_eq!(id.device_class(), DeviceClass::Nvme);
        assert_eq!(config.capabilities().collect::<Vec<_>>(), [(0x11, 0x40), (0x10, 0x80), (0x01, 0x60)]);
        config.0[6] = 0;
        assert_eq!((config.capabilities().count(), config.msix_table()), (0, None));
    }

    #[test]
    fn the_table_of_vectors_is_found() {
        let mut config = Config([0; LENGTH]);
        config.0[6] = 0x10;
        config.0[0x34] = 0x40;
        // 65 vectors, at 2000h of BAR 4; the enable bit is set.
        config.0[0x40..0x48].copy_from_slice(&[0x11, 0x00, 0x40, 0x80, 0x04, 0x20, 0x00, 0x00]);
        assert_eq!(config.msix_table(), Some(MsixTable { bar: 4, offset: 0x2000, vectors: 65 }));
        config.0[0x42..0x48].fill(0xff);
        let largest = MsixTable { bar: 7, offset: 0xffff_fff8, vectors: 2048 };
        assert_eq!(config.msix_table(), Some(largest));
    }

    #[test]
    fn virtio_block_is_told_by_its_ids() {
        let id = |vendor, device| {
            let id =
                PciId { vendor, device, subsystem_vendor: 0, subsystem: 0, class: 0x01_00_00, revision: 1 };
            id.device_class()
        };
        assert_eq!(id(0x1af4, 0x1042), DeviceClass::VirtioBlock);
        assert_eq!(id(0x1af4, 0x1001), DeviceClass::VirtioBlock);
        assert_eq!(id(0x1af4, 0x1041), DeviceClass::Other);
        assert_eq!(id(0x8086, 0x1042), DeviceClass::Other);
    }

    #[test]
    fn a_looping_capability_list_ends() {
        let mut config = Config([0; LENGTH]);
        config.0[6] = 0x10;
        config.0[0x34] = 0x40;
        config.0[0x40..0x42].copy_from_slice(&[0x05, 0x40]);
        assert_eq!(config.capabilities().count(), MOST_CAPABILITIES);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), LENGTH)) {
            let config = Config(bytes.try_into().unwrap());
            let _ = (config.id().device_class(), config.msix_table());
            prop_assert!(config.capabilities().all(|(_, at)| at >= 0x40 && at % 4 == 0));
        }
    }
}
