//! Controller properties, in BAR 0 (Base, section 3.1.3) and the doorbells behind them (PCIe, section 3.1.2).

use bitfield::bitfield;

/// Offsets of the controller's properties, in bytes.
pub mod offset {
    /// Controller Capabilities, 64 bits.
    pub const CAP: usize = 0x00;
    /// Version, 32 bits.
    pub const VS: usize = 0x08;
    /// Interrupt Mask Set, 32 bits. Not to be touched with MSI-X.
    pub const INTMS: usize = 0x0c;
    /// Interrupt Mask Clear, 32 bits. Not to be touched with MSI-X.
    pub const INTMC: usize = 0x10;
    /// Controller Configuration, 32 bits.
    pub const CC: usize = 0x14;
    /// Controller Status, 32 bits.
    pub const CSTS: usize = 0x1c;
    /// NVM Subsystem Reset, 32 bits.
    pub const NSSR: usize = 0x20;
    /// Admin Queue Attributes, 32 bits.
    pub const AQA: usize = 0x24;
    /// Admin Submission Queue Base Address, 64 bits.
    pub const ASQ: usize = 0x28;
    /// Admin Completion Queue Base Address, 64 bits.
    pub const ACQ: usize = 0x30;
    /// The first doorbell.
    pub const DOORBELLS: usize = 0x1000;
}

/// Offset of the tail doorbell of submission queue `qid`: SQyTDBL (PCIe, 3.1.2).
pub const fn sq_tail_doorbell(qid: u16, dstrd: u8) -> usize {
    offset::DOORBELLS + (2 * qid as usize) * (4 << dstrd)
}

/// Offset of the head doorbell of completion queue `qid`: CQyHDBL (PCIe, 3.1.2).
pub const fn cq_head_doorbell(qid: u16, dstrd: u8) -> usize {
    offset::DOORBELLS + (2 * qid as usize + 1) * (4 << dstrd)
}

bitfield! {
    /// Controller Capabilities (Base, 3.1.3.1).
    #[derive(Clone, Copy, PartialEq, Eq, Default)]
    pub struct Cap(pub u64);
    impl Debug;
    /// Entries of the largest I/O queue, less one.
    pub u16, mqes_z, set_mqes_z: 15, 0;
    /// Queues must be contiguous.
    pub cqr, set_cqr: 16;
    /// Arbitration mechanisms.
    pub u8, ams, set_ams: 18, 17;
    /// Longest wait for CSTS.RDY after CC.EN changed, in units of 500 ms.
    pub u8, to, set_to: 31, 24;
    /// Doorbells are `4 << dstrd` bytes apart.
    pub u8, dstrd, set_dstrd: 35, 32;
    /// The subsystem reset is there.
    pub nssrs, set_nssrs: 36;
    /// Command sets: see [`css`].
    pub u8, css, set_css: 44, 37;
    /// Smallest memory page: `1 << (12 + mpsmin)` bytes.
    pub u8, mpsmin, set_mpsmin: 51, 48;
    /// Largest memory page: `1 << (12 + mpsmax)` bytes.
    pub u8, mpsmax, set_mpsmax: 55, 52;
    /// Persistent memory region.
    pub pmrs, set_pmrs: 56;
    /// Controller memory buffer.
    pub cmbs, set_cmbs: 57;
}

/// Bits of CAP.CSS (Base, 3.1.3.1).
pub mod css {
    /// The NVM command set.
    pub const NVM: u8 = 1 << 0;
    /// One or more I/O command sets.
    pub const IO_COMMAND_SETS: u8 = 1 << 6;
    /// No I/O command set: an administrative controller.
    pub const NO_IO: u8 = 1 << 7;
}

bitfield! {
    /// Version (Base, 3.1.3.2).
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
    pub struct Vs(pub u32);
    impl Debug;
    /// Tertiary number.
    pub u8, ter, set_ter: 7, 0;
    /// Minor number.
    pub u8, mnr, set_mnr: 15, 8;
    /// Major number.
    pub u16, mjr, set_mjr: 31, 16;
}

bitfield! {
    /// Controller Configuration (Base, 3.1.3.5).
    #[derive(Clone, Copy, PartialEq, Eq, Default)]
    pub struct Cc(pub u32);
    impl Debug;
    /// Enable.
    pub en, set_en: 0;
    /// Command set selected: 0 NVM, 6 all supported, 7 admin only.
    pub u8, css, set_css: 6, 4;
    /// Memory page size: `1 << (12 + mps)` bytes.
    pub u8, mps, set_mps: 10, 7;
    /// Arbitration mechanism: 0 round robin.
    pub u8, ams, set_ams: 13, 11;
    /// Shutdown notification: see [`shn`].
    pub u8, shn, set_shn: 15, 14;
    /// I/O submission entry size, as a power of two: 6.
    pub u8, iosqes, set_iosqes: 19, 16;
    /// I/O completion entry size, as a power of two: 4.
    pub u8, iocqes, set_iocqes: 23, 20;
}

/// Values of CC.SHN (Base, 3.1.3.5).
pub mod shn {
    /// No notification.
    pub const NONE: u8 = 0;
    /// Normal shutdown.
    pub const NORMAL: u8 = 1;
    /// Abrupt shutdown.
    pub const ABRUPT: u8 = 2;
}

bitfield! {
    /// Controller Status (Base, 3.1.3.6).
    #[derive(Clone, Copy, PartialEq, Eq, Default)]
    pub struct Csts(pub u32);
    impl Debug;
    /// Ready: follows CC.EN.
    pub rdy, set_rdy: 0;
    /// Controller fatal status.
    pub cfs, set_cfs: 1;
    /// Shutdown status: see [`shst`].
    pub u8, shst, set_shst: 3, 2;
    /// A subsystem reset occurred.
    pub nssro, set_nssro: 4;
    /// Processing paused.
    pub pp, set_pp: 5;
}

impl Csts {
    /// What every register of an absent device reads as.
    pub const ABSENT: Self = Self(u32::MAX);
}

/// Values of CSTS.SHST (Base, 3.1.3.6).
pub mod shst {
    /// No shutdown.
    pub const NORMAL: u8 = 0;
    /// In progress.
    pub const OCCURRING: u8 = 1;
    /// Complete.
    pub const COMPLETE: u8 = 2;
}

bitfield! {
    /// Admin Queue Attributes (Base, 3.1.3.8).
    #[derive(Clone, Copy, PartialEq, Eq, Default)]
    pub struct Aqa(pub u32);
    impl Debug;
    /// Entries of the admin submission queue, less one.
    pub u16, asqs_z, set_asqs_z: 11, 0;
    /// Entries of the admin completion queue, less one.
    pub u16, acqs_z, set_acqs_z: 27, 16;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CAP of QEMU 7.2's controller: MQES 2047, TO 15, NVM and no-I/O command sets, pages 4 KiB to 64 KiB.
    #[test]
    fn cap_of_a_known_controller() {
        let cap = Cap(0x0040_1820_0f01_07ff | 1 << 43);
        assert_eq!((cap.mqes_z(), cap.cqr(), cap.to(), cap.dstrd()), (2047, true, 15, 0));
        assert_eq!((cap.css(), cap.mpsmin(), cap.mpsmax()), (0xc1, 0, 4));
    }

    #[test]
    fn cc_as_written() {
        let mut cc = Cc(0);
        cc.set_iosqes(6);
        cc.set_iocqes(4);
        cc.set_en(true);
        assert_eq!(cc.0, 0x0046_0001);
        cc.set_shn(shn::NORMAL);
        assert_eq!(cc.0, 0x0046_4001);
    }

    #[test]
    fn status_and_attributes() {
        let csts = Csts(0b1011);
        assert_eq!((csts.rdy(), csts.cfs(), csts.shst()), (true, true, shst::COMPLETE));
        let mut aqa = Aqa(0);
        aqa.set_asqs_z(63);
        aqa.set_acqs_z(31);
        assert_eq!(aqa.0, 0x001f_003f);
        assert_eq!((Vs(0x0001_0400).mjr(), Vs(0x0001_0400).mnr()), (1, 4));
    }

    #[test]
    fn doorbells() {
        assert_eq!([sq_tail_doorbell(0, 0), cq_head_doorbell(0, 0)], [0x1000, 0x1004]);
        assert_eq!([sq_tail_doorbell(3, 0), cq_head_doorbell(3, 0)], [0x1018, 0x101c]);
        assert_eq!([sq_tail_doorbell(1, 2), cq_head_doorbell(1, 2)], [0x1020, 0x1030]);
    }
}
