//! Submission queue entries: opcodes and their command dwords (Base, sections 3.3.3.1 and 5; NVM, section 3.2).

use bitfield::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A submission queue entry, 64 bytes (Base, 3.3.3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Sqe {
    /// Opcode, data pointer kind, command id.
    pub cdw0: Cdw0,
    /// Namespace.
    pub nsid: u32,
    /// Command specific.
    pub cdw2: u32,
    /// Command specific.
    pub cdw3: u32,
    /// Metadata pointer.
    pub mptr: u64,
    /// The first PRP entry.
    pub prp1: u64,
    /// The second PRP entry, or the PRP list.
    pub prp2: u64,
    /// Command specific.
    pub cdw10: u32,
    /// Command specific.
    pub cdw11: u32,
    /// Command specific.
    pub cdw12: u32,
    /// Command specific.
    pub cdw13: u32,
    /// Command specific.
    pub cdw14: u32,
    /// Command specific.
    pub cdw15: u32,
}

/// Bytes of a [`Sqe`].
pub const SQE_LEN: usize = 64;
const _: () = assert!(size_of::<Sqe>() == SQE_LEN);

impl Sqe {
    /// With this opcode, all else zero.
    pub fn new(opcode: u8) -> Self {
        Self { cdw0: Cdw0(u32::from(opcode)), ..Self::default() }
    }

    /// Starting LBA of the I/O commands: CDW10 low, CDW11 high (NVM, 3.2).
    #[inline]
    pub const fn slba(&self) -> u64 {
        self.cdw10 as u64 | (self.cdw11 as u64) << 32
    }

    /// Sets the starting LBA.
    #[inline]
    #[allow(clippy::cast_possible_truncation)] // the two halves
    pub const fn set_slba(&mut self, slba: u64) {
        self.cdw10 = slba as u32;
        self.cdw11 = (slba >> 32) as u32;
    }
}

bitfield! {
    /// Command dword 0 (Base, 3.3.3.1).
    #[derive(Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
    #[repr(transparent)]
    pub struct Cdw0(pub u32);
    impl Debug;
    /// Opcode.
    pub u8, opc, set_opc: 7, 0;
    /// Fused operation: 0 none.
    pub u8, fuse, set_fuse: 9, 8;
    /// Data pointer: 0 PRPs, 1 and 2 SGLs.
    pub u8, psdt, set_psdt: 15, 14;
    /// Command id, unique among the submission queue's outstanding commands.
    pub u16, cid, set_cid: 31, 16;
}

/// Admin opcodes (Base, section 5).
pub mod admin {
    /// Delete I/O Submission Queue.
    pub const DELETE_IO_SQ: u8 = 0x00;
    /// Create I/O Submission Queue.
    pub const CREATE_IO_SQ: u8 = 0x01;
    /// Get Log Page.
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Delete I/O Completion Queue.
    pub const DELETE_IO_CQ: u8 = 0x04;
    /// Create I/O Completion Queue.
    pub const CREATE_IO_CQ: u8 = 0x05;
    /// Identify.
    pub const IDENTIFY: u8 = 0x06;
    /// Abort.
    pub const ABORT: u8 = 0x08;
    /// Set Features.
    pub const SET_FEATURES: u8 = 0x09;
    /// Get Features.
    pub const GET_FEATURES: u8 = 0x0a;
    /// Asynchronous Event Request.
    pub const ASYNC_EVENT_REQUEST: u8 = 0x0c;
    /// Doorbell Buffer Config.
    pub const DOORBELL_BUFFER_CONFIG: u8 = 0x7c;
}

/// Opcodes of the NVM command set (NVM, section 3.2; flush: Base, section 7).
pub mod nvm {
    /// Flush.
    pub const FLUSH: u8 = 0x00;
    /// Write.
    pub const WRITE: u8 = 0x01;
    /// Read.
    pub const READ: u8 = 0x02;
    /// Compare.
    pub const COMPARE: u8 = 0x05;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u8 = 0x09;
}

/// Feature ids (Base, 5.27).
pub mod feature {
    /// Volatile Write Cache; dword 11 bit 0: enabled.
    pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
    /// Number of Queues: [`super::NumberOfQueues`].
    pub const NUMBER_OF_QUEUES: u8 = 0x07;
    /// Asynchronous Event Configuration; dword 11: [`super::EventNotices`].
    pub const ASYNC_EVENTS: u8 = 0x0b;
}

/// Log page ids (Base, 5.16).
pub mod log_page {
    /// Error Information.
    pub const ERROR: u8 = 0x01;
    /// SMART / Health Information: [`super::super::SmartLog`].
    pub const SMART: u8 = 0x02;
    /// Changed Namespace List: 1024 ids of 4 bytes.
    pub const CHANGED_NAMESPACES: u8 = 0x04;
}

/// Controller or namespace structure: what Identify asks for (Base, 5.17).
pub mod cns {
    /// Identify Namespace.
    pub const NAMESPACE: u8 = 0x00;
    /// Identify Controller.
    pub const CONTROLLER: u8 = 0x01;
    /// Active namespace ids greater than the command's, in order, at most 1024.
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    /// I/O command set specific Identify Controller.
    pub const CONTROLLER_COMMAND_SET: u8 = 0x06;
}

bitfield! {
    /// Dword 10 of Identify (Base, 5.17).
    #[derive(Clone, Copy, PartialEq, Eq, Default)]
    pub struct IdentifyCdw10(pub u32);
    impl Debug;
    /// What: see [`cns`].
    pub u8, cns, set_cns: 7, 0;
    /// Controller id.
    pub u16, cntid, set_cntid: 31, 16;
}

bitfield! {
    /// Dword 10 of Create I/O Submission Queue, Create I/O Completion Queue and the two deletions (`qid` only); Base,
    /// 5.4 and 5.5.
    #[derive(Clone, Copy, PartialEq, Eq, Default)]
    pub struct QueueCdw10(pub u32);
    impl Debug;
    /// Queue id.
    pub u16, qid, set_qid: 15, 0;
    /// Entries, less one.
    pub u16, qsize_z, set_qsize_z: 31, 16;
}

bitfield! {
    /// Dword 11 of Create I/O Completion Queue (Base, 5.4).
    #[derive(Clone, Copy, PartialEq, Eq, Default)]
    pub struct CreateCqCdw11(pub u32);
    impl Debug;
    /// Physically contiguous.
    pub pc, set_pc: 0;
    /// Interrupts enabled.
    pub ien, set_ien: 1;
    /// Interrupt vector.
    pub u16, iv, set_iv: 31, 16;
}

bitfield! {
    /// Dword 11 of Create I/O Submission Queue (Base, 5.5).
    #[derive(Clone, Copy, PartialEq, Eq, Default)]
    pub struct CreateSqCdw11(pub u32);
    impl Debug;
    /// Physically contiguous.
    pub pc, set_pc: 0;
    /// Priority, for weighted round robin.
    pub u8, qprio, set_qprio: 2, 1;
    /// The completion queue that it uses.
    pub u16, cqid, set_cqid: 31, 16;
}

bitfield! {
    /// Dword 10 of Abort (Base, 5.1).
    #[derive(Clone, Copy, PartialEq, Eq, Default)]
    pub struct AbortCdw10(pub u32);
    impl Debug;
    /// Submission queue of the command.
    pub u16, sqid, set_sqid: 15, 0;
    /// The command.
    pub u16, cid, set_cid: 31, 16;
}

bitfield! {
    /// Dword 10 of Set Features and Get Features (Base, 5.15 and 5.27).
    #[derive(Clone, Copy, PartialEq, Eq, Default)]
    pub struct FeatureCdw10(pub u32);
    impl Debug;
    /// Which: see [`feature`].
    pub u8, fid, set_fid: 7, 0;
    /// Get Features: 0 the current value, 1 default, 2 saved, 3 capabilities.
    pub u8, sel, set_sel: 10, 8;
    /// Set Features: saved over resets.
    pub sv, set_sv: 31;
}

bitfield! {
    /// Number of Queues: dword 11 of the command (asked for) and dword 0 of its completion (granted); Base, 5.27.1.
    #[derive(Clone, Copy, PartialEq, Eq, Default)]
    pub struct NumberOfQueues(pub u32);
    impl Debug;
    /// I/O submission queues, less one.
    pub u16, nsq_z, set_nsq_z: 15, 0;
    /// I/O completion queues, less one.
    pub u16, ncq_z, set_ncq_z: 31, 16;
}

bitfield! {
    /// Notices that a controller has (OAES of Identify Controller; Base, 5.17.2.1) or is to send (Asynchronous Event
    /// Configuration; Base, 5.27.1).
    #[derive(Clone, Copy, PartialEq, Eq, Default)]
    pub struct EventNotices(pub u32);
    impl Debug;
    /// Identify data of a namespace changed, or the list of namespaces.
    pub namespaces, set_namespaces: 8;
}

bitfield! {
    /// Dword 0 of the completion of Asynchronous Event Request (Base, 5.2).
    #[derive(Clone, Copy, PartialEq, Eq, Default)]
    pub struct AsyncEvent(pub u32);
    impl Debug;
    /// Kind: 0 error, 1 health, 2 notice.
    pub u8, kind, set_kind: 2, 0;
    /// Which of its kind. Notices: 0 a namespace changed.
    pub u8, information, set_information: 15, 8;
    /// The log page to read: the event is not sent again before.
    pub u8, log_page, set_log_page: 23, 16;
}

impl AsyncEvent {
    /// A namespace changed.
    pub const NAMESPACE_CHANGED: Self = Self(2 | (log_page::CHANGED_NAMESPACES as u32) << 16);
}

bitfield! {
    /// Dword 10 of Get Log Page (Base, 5.16).
    #[derive(Clone, Copy, PartialEq, Eq, Default)]
    pub struct LogCdw10(pub u32);
    impl Debug;
    /// Which: see [`log_page`].
    pub u8, lid, set_lid: 7, 0;
    /// Retain asynchronous event.
    pub rae, set_rae: 15;
    /// Dwords, less one: the low half. The high half is in dword 11, bits 0..16.
    pub u16, numdl_z, set_numdl_z: 31, 16;
}

bitfield! {
    /// Dword 12 of Read, Write, Compare and Write Zeroes (NVM, 3.2).
    #[derive(Clone, Copy, PartialEq, Eq, Default)]
    pub struct IoCdw12(pub u32);
    impl Debug;
    /// Blocks, less one.
    pub u16, nlb_z, set_nlb_z: 15, 0;
    /// Write Zeroes: the controller should deallocate.
    pub deac, set_deac: 25;
    /// Protection information.
    pub u8, prinfo, set_prinfo: 29, 26;
    /// Force unit access.
    pub fua, set_fua: 30;
    /// Limited retry.
    pub lr, set_lr: 31;
}

bitfield! {
    /// Dword 10 of Dataset Management (NVM, 3.2.3).
    #[derive(Clone, Copy, PartialEq, Eq, Default)]
    pub struct DsmCdw10(pub u32);
    impl Debug;
    /// Ranges, less one.
    pub u8, nr_z, set_nr_z: 7, 0;
}

bitfield! {
    /// Dword 11 of Dataset Management (NVM, 3.2.3).
    #[derive(Clone, Copy, PartialEq, Eq, Default)]
    pub struct DsmCdw11(pub u32);
    impl Debug;
    /// Integral dataset for read.
    pub idr, set_idr: 0;
    /// Integral dataset for write.
    pub idw, set_idw: 1;
    /// Deallocate.
    pub ad, set_ad: 2;
}

/// A range of Dataset Management, 16 bytes (NVM, 3.2.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct DsmRange {
    /// Context attributes: hints.
    pub attributes: u32,
    /// Blocks.
    pub blocks: u32,
    /// The first block.
    pub slba: u64,
}

/// Most ranges of one Dataset Management command (NVM, 3.2.3).
pub const DSM_RANGES: usize = 256;
const _: () = assert!(size_of::<DsmRange>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_in_literal_bytes() {
        let mut sqe = Sqe::new(nvm::READ);
        sqe.cdw0.set_cid(0x0102);
        sqe.nsid = 1;
        sqe.prp1 = 0x1122_3344_5566_7788;
        sqe.prp2 = 0x9000;
        sqe.set_slba(0x0000_0005_0000_0006);
        let mut cdw12 = IoCdw12(0);
        cdw12.set_nlb_z(7);
        cdw12.set_fua(true);
        sqe.cdw12 = cdw12.0;
        let mut bytes = [0u8; 64];
        bytes[0..8].copy_from_slice(&[0x02, 0, 0x02, 0x01, 1, 0, 0, 0]);
        bytes[24..32].copy_from_slice(&[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        bytes[32..40].copy_from_slice(&[0x00, 0x90, 0, 0, 0, 0, 0, 0]);
        bytes[40..48].copy_from_slice(&[6, 0, 0, 0, 5, 0, 0, 0]);
        bytes[48..52].copy_from_slice(&[7, 0, 0, 0x40]);
        assert_eq!(sqe.as_bytes(), bytes);
        assert_eq!(sqe.slba(), 0x0000_0005_0000_0006);
    }

    #[test]
    fn dwords_in_literal_bits() {
        let mut queue = QueueCdw10(0);
        queue.set_qid(3);
        queue.set_qsize_z(127);
        assert_eq!(queue.0, 0x007f_0003);
        let mut cq = CreateCqCdw11(0);
        cq.set_pc(true);
        cq.set_ien(true);
        cq.set_iv(3);
        assert_eq!(cq.0, 0x0003_0003);
        let mut sq = CreateSqCdw11(0);
        sq.set_pc(true);
        sq.set_cqid(3);
        assert_eq!(sq.0, 0x0003_0001);
        let mut zeroes = IoCdw12(0);
        zeroes.set_deac(true);
        assert_eq!(zeroes.0, 0x0200_0000);
        let mut log = LogCdw10(0);
        log.set_lid(log_page::SMART);
        log.set_numdl_z(127);
        assert_eq!(log.0, 0x007f_0002);
        let mut dsm = DsmCdw11(0);
        dsm.set_ad(true);
        assert_eq!(dsm.0, 4);
        assert_eq!(NumberOfQueues(0x0003_0007).nsq_z(), 7);
    }
}
