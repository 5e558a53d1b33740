//! Identify data structures, 4096 bytes each (Base, section 5.17; namespace: NVM, section 4.1.5).

use bitfield::bitfield;
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of an Identify data structure.
pub const IDENTIFY_LEN: usize = 4096;
/// Entries of a namespace id list.
pub const NAMESPACE_LIST_LEN: usize = 1024;

/// Identify Controller (Base, 5.17.2.1). Text is ASCII, padded with blanks.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct IdentifyController {
    /// PCI vendor id.
    pub vid: U16,
    /// PCI subsystem vendor id.
    pub ssvid: U16,
    /// Serial number.
    pub sn: [u8; 20],
    /// Model number.
    pub mn: [u8; 40],
    /// Firmware revision.
    pub fr: [u8; 8],
    /// Recommended arbitration burst.
    pub rab: u8,
    /// IEEE OUI.
    pub ieee: [u8; 3],
    /// Multi-path I/O and namespace sharing capabilities.
    pub cmic: u8,
    /// Maximum data transfer size: `1 << mdts` pages of CAP.MPSMIN; 0: no limit.
    pub mdts: u8,
    /// Controller id.
    pub cntlid: U16,
    /// Version.
    pub ver: U32,
    /// RTD3 latencies.
    pub rtd3: [U32; 2],
    /// Optional asynchronous events: [`EventNotices`](super::EventNotices).
    pub oaes: U32,
    /// Not used here: bytes 96 to 255.
    pub reserved96: [u8; 160],
    /// Optional admin commands.
    pub oacs: U16,
    /// Abort command limit, less one.
    pub acl_z: u8,
    /// Asynchronous event request limit, less one.
    pub aerl_z: u8,
    /// Firmware updates.
    pub frmw: u8,
    /// Log page attributes.
    pub lpa: u8,
    /// Error log entries, less one.
    pub elpe_z: u8,
    /// Power states, less one.
    pub npss_z: u8,
    /// Not used here: bytes 264 to 279.
    pub reserved264: [u8; 16],
    /// Total NVM capacity, in bytes.
    pub tnvmcap: U128,
    /// Unallocated NVM capacity, in bytes.
    pub unvmcap: U128,
    /// Not used here: bytes 312 to 511.
    pub reserved312: [u8; 200],
    /// Submission entry size, powers of two: required in bits 0..4, largest in bits 4..8.
    pub sqes: u8,
    /// Completion entry size, powers of two: required in bits 0..4, largest in bits 4..8.
    pub cqes: u8,
    /// Most outstanding commands; 0: not said.
    pub maxcmd: U16,
    /// Number of namespaces: the largest namespace id.
    pub nn: U32,
    /// Optional NVM commands: [`Oncs`].
    pub oncs: U16,
    /// Fused operations.
    pub fuses: U16,
    /// Format NVM attributes.
    pub fna: u8,
    /// Volatile write cache: [`Vwc`].
    pub vwc: Vwc,
    /// Atomic write unit normal, in blocks less one.
    pub awun_z: U16,
    /// Atomic write unit power fail, in blocks less one.
    pub awupf_z: U16,
    /// Not used here: bytes 530 to 535.
    pub reserved530: [u8; 6],
    /// SGL support: [`Sgls`](super::Sgls).
    pub sgls: U32,
    /// Not used here: bytes 540 to 767.
    pub reserved540: [u8; 228],
    /// NVM subsystem NQN, UTF-8, ended by zero.
    pub subnqn: [u8; 256],
    /// Not used here: fabrics, power states, vendor specific.
    pub reserved1024: [u8; 3072],
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<IdentifyController>() == IDENTIFY_LEN);
    assert!(offset_of!(IdentifyController, mdts) == 77);
    assert!(offset_of!(IdentifyController, cntlid) == 78);
    assert!(offset_of!(IdentifyController, oaes) == 92);
    assert!(offset_of!(IdentifyController, oacs) == 256);
    assert!(offset_of!(IdentifyController, tnvmcap) == 280);
    assert!(offset_of!(IdentifyController, sqes) == 512);
    assert!(offset_of!(IdentifyController, nn) == 516);
    assert!(offset_of!(IdentifyController, oncs) == 520);
    assert!(offset_of!(IdentifyController, vwc) == 525);
    assert!(offset_of!(IdentifyController, sgls) == 536);
    assert!(offset_of!(IdentifyController, subnqn) == 768);
};

impl IdentifyController {
    /// ONCS as bits.
    pub fn oncs(&self) -> Oncs {
        Oncs(self.oncs.get())
    }

    /// SGLS as bits.
    pub fn sgls(&self) -> super::Sgls {
        super::Sgls(self.sgls.get())
    }

    /// OACS as bits.
    pub fn oacs(&self) -> Oacs {
        Oacs(self.oacs.get())
    }
}

bitfield! {
    /// Optional NVM Command Support (Base, 5.17.2.1).
    #[derive(Clone, Copy, PartialEq, Eq, Default)]
    pub struct Oncs(pub u16);
    impl Debug;
    /// Compare.
    pub compare, set_compare: 0;
    /// Write Uncorrectable.
    pub write_uncorrectable, set_write_uncorrectable: 1;
    /// Dataset Management.
    pub dataset_management, set_dataset_management: 2;
    /// Write Zeroes.
    pub write_zeroes, set_write_zeroes: 3;
    /// Save and Select of features.
    pub features_save, set_features_save: 4;
    /// Reservations.
    pub reservations, set_reservations: 5;
    /// Timestamp.
    pub timestamp, set_timestamp: 6;
    /// Verify.
    pub verify, set_verify: 7;
    /// Copy.
    pub copy, set_copy: 8;
}

bitfield! {
    /// Optional Admin Command Support (Base, 5.17.2.1).
    #[derive(Clone, Copy, PartialEq, Eq, Default)]
    pub struct Oacs(pub u16);
    impl Debug;
    /// Security Send and Receive.
    pub security, set_security: 0;
    /// Format NVM.
    pub format, set_format: 1;
    /// Firmware download.
    pub firmware, set_firmware: 2;
    /// Namespace management.
    pub namespace_management, set_namespace_management: 3;
    /// Doorbell Buffer Config.
    pub doorbell_buffer, set_doorbell_buffer: 8;
}

bitfield! {
    /// Volatile Write Cache (Base, 5.17.2.1).
    #[derive(Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
    #[repr(transparent)]
    pub struct Vwc(pub u8);
    impl Debug;
    /// There is one.
    pub present, set_present: 0;
    /// Flush of all namespaces: 2 not supported, 3 supported.
    pub u8, flush_all, set_flush_all: 2, 1;
}

/// I/O command set specific Identify Controller of the NVM command set (NVM, 4.1.5).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct IdentifyControllerNvm {
    /// Verify size limit: `1 << vsl` pages; 0: not said.
    pub vsl: u8,
    /// Write zeroes size limit: `1 << wzsl` pages of CAP.MPSMIN; 0: not said.
    pub wzsl: u8,
    /// Write uncorrectable size limit.
    pub wusl: u8,
    /// Dataset management ranges limit; 0: not said.
    pub dmrl: u8,
    /// Dataset management range size limit, in blocks; 0: not said.
    pub dmrsl: U32,
    /// Dataset management size limit, in blocks; 0: not said.
    pub dmsl: U64,
    /// Reserved.
    pub reserved16: [u8; 4080],
}

const _: () = assert!(size_of::<IdentifyControllerNvm>() == IDENTIFY_LEN);

/// Identify Namespace of the NVM command set (NVM, 4.1.5).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// Size, in blocks.
    pub nsze: U64,
    /// Capacity, in blocks.
    pub ncap: U64,
    /// Utilization, in blocks.
    pub nuse: U64,
    /// Features: [`Nsfeat`].
    pub nsfeat: Nsfeat,
    /// LBA formats, less one.
    pub nlbaf_z: u8,
    /// The LBA format in use: [`Flbas`].
    pub flbas: Flbas,
    /// Metadata capabilities.
    pub mc: u8,
    /// Protection capabilities.
    pub dpc: u8,
    /// Protection in use: bits 0..3 its type, 0 none.
    pub dps: u8,
    /// Multi-path and sharing: bit 0 the namespace may be shared.
    pub nmic: u8,
    /// Reservation capabilities.
    pub rescap: u8,
    /// Format progress.
    pub fpi: u8,
    /// Deallocate features: [`Dlfeat`].
    pub dlfeat: Dlfeat,
    /// Atomic write units and boundaries: bytes 34 to 45.
    pub reserved34: [u8; 12],
    /// Optimal I/O boundary, in blocks.
    pub noiob: U16,
    /// NVM capacity, in bytes.
    pub nvmcap: U128,
    /// Not used here: bytes 64 to 98.
    pub reserved64: [u8; 35],
    /// Attributes: bit 0 write protected.
    pub nsattr: u8,
    /// NVM set.
    pub nvmsetid: U16,
    /// Endurance group.
    pub endgid: U16,
    /// Globally unique id; zero: none.
    pub nguid: [u8; 16],
    /// IEEE extended unique id; zero: none.
    pub eui64: [u8; 8],
    /// LBA formats.
    pub lbaf: [Lbaf; 64],
    /// Vendor specific.
    pub vendor: [u8; 3712],
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<IdentifyNamespace>() == IDENTIFY_LEN);
    assert!(offset_of!(IdentifyNamespace, nsfeat) == 24);
    assert!(offset_of!(IdentifyNamespace, dps) == 29);
    assert!(offset_of!(IdentifyNamespace, dlfeat) == 33);
    assert!(offset_of!(IdentifyNamespace, noiob) == 46);
    assert!(offset_of!(IdentifyNamespace, nsattr) == 99);
    assert!(offset_of!(IdentifyNamespace, nguid) == 104);
    assert!(offset_of!(IdentifyNamespace, eui64) == 120);
    assert!(offset_of!(IdentifyNamespace, lbaf) == 128);
};

impl IdentifyNamespace {
    /// The LBA format in use, if its index is one that exists.
    pub fn format(&self) -> Option<Lbaf> {
        let index = usize::from(self.flbas.index(self.nlbaf_z));
        (index <= usize::from(self.nlbaf_z)).then(|| self.lbaf.get(index).copied()).flatten()
    }
}

bitfield! {
    /// Namespace Features (NVM, 4.1.5).
    #[derive(Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
    #[repr(transparent)]
    pub struct Nsfeat(pub u8);
    impl Debug;
    /// Thin provisioning.
    pub thin, set_thin: 0;
    /// Deallocated or unwritten blocks may be reported as an error.
    pub dae, set_dae: 2;
    /// NGUID and EUI64 are never re-used.
    pub uid_reuse, set_uid_reuse: 3;
}

bitfield! {
    /// Formatted LBA Size (NVM, 4.1.5).
    #[derive(Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
    #[repr(transparent)]
    pub struct Flbas(pub u8);
    impl Debug;
    /// The format's index, low four bits.
    pub u8, index_low, set_index_low: 3, 0;
    /// Metadata is at the end of the data block.
    pub extended, set_extended: 4;
    /// The format's index, high two bits; means something only with more than 16 formats.
    pub u8, index_high, set_index_high: 6, 5;
}

impl Flbas {
    /// The format's index, when the namespace has `nlbaf_z + 1` formats.
    pub fn index(&self, nlbaf_z: u8) -> u8 {
        if nlbaf_z < 16 { self.index_low() } else { self.index_low() | self.index_high() << 4 }
    }
}

bitfield! {
    /// Deallocate Logical Block Features (NVM, 4.1.5).
    #[derive(Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
    #[repr(transparent)]
    pub struct Dlfeat(pub u8);
    impl Debug;
    /// What deallocated blocks read as: 0 not said, 1 zeros, 2 ones.
    pub u8, read, set_read: 2, 0;
    /// Write Zeroes has the deallocate bit.
    pub deac, set_deac: 3;
}

bitfield! {
    /// LBA Format (NVM, 4.1.5).
    #[derive(Clone, Copy, PartialEq, Eq, Default)]
    pub struct LbaFormat(pub u32);
    impl Debug;
    /// Metadata bytes of a block.
    pub u16, ms, set_ms: 15, 0;
    /// A block has `1 << lbads` bytes.
    pub u8, lbads, set_lbads: 23, 16;
    /// Relative performance: 0 best.
    pub u8, rp, set_rp: 25, 24;
}

/// An [`LbaFormat`] as it lies in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(transparent)]
pub struct Lbaf(pub U32);

impl Lbaf {
    /// As bits.
    pub fn bits(self) -> LbaFormat {
        LbaFormat(self.0.get())
    }
}

impl From<LbaFormat> for Lbaf {
    fn from(format: LbaFormat) -> Self {
        Self(U32::new(format.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controller_in_literal_bytes() {
        let mut bytes = [0u8; 4096];
        bytes[0..2].copy_from_slice(&[0x36, 0x1b]);
        bytes[4..9].copy_from_slice(b"SER-1");
        bytes[24..28].copy_from_slice(b"Disk");
        bytes[64..67].copy_from_slice(b"1.0");
        bytes[77] = 7;
        bytes[78..80].copy_from_slice(&[2, 0]);
        bytes[256..258].copy_from_slice(&[0x0a, 0x01]);
        bytes[512..514].copy_from_slice(&[0x66, 0x44]);
        bytes[516] = 4;
        bytes[520..522].copy_from_slice(&[0x5d, 0x01]);
        bytes[525] = 7;
        bytes[768..771].copy_from_slice(b"nqn");
        let id = IdentifyController::read_from_bytes(&bytes).unwrap();
        assert_eq!(
            (id.vid.get(), &id.sn[..5], &id.mn[..4], &id.fr[..3]),
            (0x1b36, &b"SER-1"[..], &b"Disk"[..], &b"1.0"[..])
        );
        assert_eq!((id.mdts, id.cntlid.get(), id.sqes, id.cqes, id.nn.get()), (7, 2, 0x66, 0x44, 4));
        assert!(id.oncs().compare() && id.oncs().dataset_management() && id.oncs().write_zeroes());
        assert!(!id.oncs().write_uncorrectable() && !id.oncs().reservations() && !id.oncs().verify());
        assert!(id.oacs().doorbell_buffer() && id.oacs().format() && !id.oacs().firmware());
        assert!(id.vwc.present() && id.vwc.flush_all() == 3);
        assert_eq!(&id.subnqn[..3], b"nqn");
    }

    #[test]
    fn namespace_in_literal_bytes() {
        let mut bytes = [0u8; 4096];
        bytes[1] = 0x10;
        bytes[25] = 1;
        bytes[26] = 1;
        bytes[33] = 0b1001;
        bytes[120..128].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        bytes[128..132].copy_from_slice(&[0, 0, 9, 2]);
        bytes[132..136].copy_from_slice(&[8, 0, 12, 0]);
        let id = IdentifyNamespace::read_from_bytes(&bytes).unwrap();
        assert_eq!(id.nsze.get(), 4096);
        assert!(id.dlfeat.deac() && id.dlfeat.read() == 1);
        let format = id.format().unwrap().bits();
        assert_eq!((format.lbads(), format.ms(), format.rp()), (12, 8, 0));
        assert_eq!(id.eui64, [1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn a_format_index_that_does_not_exist_is_none() {
        let mut bytes = [0u8; 4096];
        bytes[26] = 3;
        assert_eq!(IdentifyNamespace::read_from_bytes(&bytes).unwrap().format(), None);
        bytes[25] = 255;
        bytes[26] = 0x6f;
        assert!(IdentifyNamespace::read_from_bytes(&bytes).unwrap().format().is_some());
        assert_eq!(Flbas(0x21).index(15), 1);
        assert_eq!(Flbas(0x21).index(17), 17);
    }
}
