//! Scatter gather lists (Base, section 4.1.2).

use bitfield::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Sqe;

/// An SGL descriptor: a part of the data, or where more descriptors are (Base, 4.1.2.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct SglDescriptor {
    /// Of the data, or of the descriptors.
    pub address: u64,
    /// Bytes of it.
    pub length: u32,
    /// Zero.
    pub reserved: [u8; 3],
    /// Type in bits 4..8, sub type in bits 0..4: see [`sgl_id`].
    pub id: u8,
}

/// Bytes of a [`SglDescriptor`].
pub const SGL_DESCRIPTOR_LEN: usize = 16;
const _: () = assert!(size_of::<SglDescriptor>() == SGL_DESCRIPTOR_LEN);

impl SglDescriptor {
    /// With this identifier.
    pub const fn new(id: u8, address: u64, length: u32) -> Self {
        Self { address, length, reserved: [0; 3], id }
    }
}

/// Identifiers of SGL descriptors, with sub type 0: an address (Base, 4.1.2.1).
pub mod sgl_id {
    /// Data.
    pub const DATA_BLOCK: u8 = 0x00;
    /// Bytes of a read that go nowhere.
    pub const BIT_BUCKET: u8 = 0x10;
    /// More descriptors, the last of which leads on.
    pub const SEGMENT: u8 = 0x20;
    /// The last descriptors.
    pub const LAST_SEGMENT: u8 = 0x30;
}

/// CDW0.PSDT: the data pointer is an SGL, a metadata pointer an address (Base, 3.3.3.1).
pub const PSDT_SGL: u8 = 1;

bitfield! {
    /// SGL Support of Identify Controller (Base, 5.17.2.1).
    #[derive(Clone, Copy, PartialEq, Eq, Default)]
    pub struct Sgls(pub u32);
    impl Debug;
    /// In the NVM command set: 0 no, 1 with any alignment, 2 with addresses and lengths in whole dwords.
    pub u8, support, set_support: 1, 0;
    /// Bit buckets.
    pub bit_bucket, set_bit_bucket: 16;
    /// The list may be longer than the data.
    pub longer, set_longer: 18;
}

impl Sqe {
    /// Sets the data pointer to an SGL's first descriptor.
    #[inline]
    pub fn set_sgl(&mut self, first: SglDescriptor) {
        self.cdw0.set_psdt(PSDT_SGL);
        [self.prp1, self.prp2] = zerocopy::transmute!(first);
    }

    /// The data pointer as an SGL's first descriptor.
    #[inline]
    pub fn sgl(&self) -> SglDescriptor {
        zerocopy::transmute!([self.prp1, self.prp2])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::nvme::nvm;

    #[test]
    fn a_data_pointer_in_literal_bytes() {
        let mut sqe = Sqe::new(nvm::READ);
        sqe.set_sgl(SglDescriptor::new(sgl_id::LAST_SEGMENT, 0x1122_3344_5566_7788, 0x0102_0304));
        let bytes = sqe.as_bytes();
        assert_eq!(bytes[1], 0x40);
        assert_eq!(bytes[24..32], [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        assert_eq!(bytes[32..40], [4, 3, 2, 1, 0, 0, 0, 0x30]);
        assert_eq!(sqe.sgl().length, 0x0102_0304);
    }
}
