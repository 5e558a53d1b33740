//! Completion queue entries and status codes (Base, section 3.3.3.2).

use bitfield::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A completion queue entry, 16 bytes (Base, 3.3.3.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Cqe {
    /// Command specific.
    pub dw0: u32,
    /// Command specific.
    pub dw1: u32,
    /// How far the controller has read the submission queue.
    pub sqhd: u16,
    /// The submission queue of the command.
    pub sqid: u16,
    /// The command's id.
    pub cid: u16,
    /// Phase and status.
    pub status: StatusField,
}

/// Bytes of a [`Cqe`].
pub const CQE_LEN: usize = 16;
const _: () = assert!(size_of::<Cqe>() == CQE_LEN);

bitfield! {
    /// The last 16 bits of a completion entry: phase tag and status field (Base, 3.3.3.2.1).
    #[derive(Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
    #[repr(transparent)]
    pub struct StatusField(pub u16);
    impl Debug;
    /// Phase tag.
    pub phase, set_phase: 0;
    /// Status code.
    pub u8, sc, set_sc: 8, 1;
    /// Status code type.
    pub u8, sct, set_sct: 11, 9;
    /// Command retry delay, an index.
    pub u8, crd, set_crd: 13, 12;
    /// The error log has more.
    pub more, set_more: 14;
    /// Do not retry.
    pub dnr, set_dnr: 15;
}

impl StatusField {
    /// With this status and phase.
    pub fn new(status: Status, phase: bool) -> Self {
        Self((status.0 & 0x7ff) << 1 | u16::from(phase))
    }

    /// The status alone.
    #[inline]
    pub const fn status(self) -> Status {
        Status(self.0 >> 1 & 0x7ff)
    }
}

/// A status: status code type in bits 8..11, status code in bits 0..8 (Base, 3.3.3.2.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Status(pub u16);

impl Status {
    /// Successful Completion.
    pub const SUCCESS: Self = Self(0x000);
    /// Invalid Command Opcode.
    pub const INVALID_OPCODE: Self = Self(0x001);
    /// Invalid Field in Command.
    pub const INVALID_FIELD: Self = Self(0x002);
    /// Command ID Conflict.
    pub const COMMAND_ID_CONFLICT: Self = Self(0x003);
    /// Data Transfer Error.
    pub const DATA_TRANSFER_ERROR: Self = Self(0x004);
    /// Internal Error.
    pub const INTERNAL_ERROR: Self = Self(0x006);
    /// Command Abort Requested.
    pub const ABORT_REQUESTED: Self = Self(0x007);
    /// Command Aborted due to SQ Deletion.
    pub const ABORTED_SQ_DELETION: Self = Self(0x008);
    /// Invalid Namespace or Format.
    pub const INVALID_NAMESPACE: Self = Self(0x00b);
    /// Command Sequence Error.
    pub const COMMAND_SEQUENCE_ERROR: Self = Self(0x00c);
    /// Invalid SGL Segment Descriptor.
    pub const SGL_SEGMENT_INVALID: Self = Self(0x00d);
    /// Invalid Number of SGL Descriptors.
    pub const SGL_NUMBER_INVALID: Self = Self(0x00e);
    /// Data SGL Length Invalid.
    pub const SGL_LENGTH_INVALID: Self = Self(0x00f);
    /// SGL Descriptor Type Invalid.
    pub const SGL_TYPE_INVALID: Self = Self(0x011);
    /// PRP Offset Invalid.
    pub const PRP_OFFSET_INVALID: Self = Self(0x013);
    /// LBA Out of Range.
    pub const LBA_OUT_OF_RANGE: Self = Self(0x080);
    /// Capacity Exceeded.
    pub const CAPACITY_EXCEEDED: Self = Self(0x081);
    /// Namespace Not Ready.
    pub const NAMESPACE_NOT_READY: Self = Self(0x082);
    /// Completion Queue Invalid (command specific).
    pub const COMPLETION_QUEUE_INVALID: Self = Self(0x100);
    /// Invalid Queue Identifier (command specific).
    pub const INVALID_QUEUE_ID: Self = Self(0x101);
    /// Invalid Queue Size (command specific).
    pub const INVALID_QUEUE_SIZE: Self = Self(0x102);
    /// Abort Command Limit Exceeded (command specific).
    pub const ABORT_LIMIT_EXCEEDED: Self = Self(0x103);
    /// Invalid Interrupt Vector (command specific).
    pub const INVALID_INTERRUPT_VECTOR: Self = Self(0x108);
    /// Invalid Log Page (command specific).
    pub const INVALID_LOG_PAGE: Self = Self(0x109);
    /// Invalid Queue Deletion (command specific).
    pub const INVALID_QUEUE_DELETION: Self = Self(0x10c);
    /// Write Fault (media and data integrity).
    pub const WRITE_FAULT: Self = Self(0x280);
    /// Unrecovered Read Error (media and data integrity).
    pub const UNRECOVERED_READ_ERROR: Self = Self(0x281);
    /// Compare Failure (media and data integrity).
    pub const COMPARE_FAILURE: Self = Self(0x285);

    /// Whether this is [`Status::SUCCESS`].
    pub const fn is_success(self) -> bool {
        self.0 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_in_literal_bytes() {
        let bytes = [0x44, 0x33, 0x22, 0x11, 0, 0, 0, 0, 0x07, 0, 0x01, 0, 0x34, 0x12, 0x0b, 0x85];
        let cqe = Cqe::read_from_bytes(&bytes).unwrap();
        assert_eq!((cqe.dw0, cqe.sqhd, cqe.sqid, cqe.cid), (0x1122_3344, 7, 1, 0x1234));
        assert!(cqe.status.phase() && cqe.status.dnr());
        assert_eq!((cqe.status.sct(), cqe.status.sc()), (2, 0x85));
        assert_eq!(cqe.status.status(), Status::COMPARE_FAILURE);
        assert_eq!(cqe.as_bytes(), bytes);
    }

    #[test]
    fn status_round_trip() {
        for status in [Status::SUCCESS, Status::INVALID_QUEUE_SIZE, Status::WRITE_FAULT, Status(0x7ff)] {
            for phase in [false, true] {
                let field = StatusField::new(status, phase);
                assert_eq!((field.status(), field.phase()), (status, phase));
            }
        }
    }
}
