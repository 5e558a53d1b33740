//! The bytes of NVMe as the controller's side needs them: NVM Express Base Specification 2.0c unless said otherwise.

/// A status as in completion dword 3 bits 31:17: code in 7:0, type in 10:8, do-not-retry in 14 (section 3.3.3.2.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status(pub u16);

const DNR: u16 = 1 << 14;

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $sct:literal, $sc:literal;)*) => {
        impl Status {
            $($(#[$doc])* pub const $name: Self = Self(DNR | $sct << 8 | $sc);)*
        }
    };
}

statuses! {
    /// Invalid Command Opcode.
    INVALID_OPCODE = 0, 0x01;
    /// Invalid Field in Command.
    INVALID_FIELD = 0, 0x02;
    /// Command ID Conflict.
    ID_CONFLICT = 0, 0x03;
    /// Data Transfer Error.
    DATA_TRANSFER = 0, 0x04;
    /// Command Abort Requested.
    ABORT_REQUESTED = 0, 0x07;
    /// Invalid Namespace or Format.
    INVALID_NAMESPACE = 0, 0x0b;
    /// Command Sequence Error.
    SEQUENCE = 0, 0x0c;
    /// PRP Offset Invalid.
    PRP_OFFSET = 0, 0x13;
    /// LBA Out of Range.
    LBA_RANGE = 0, 0x80;
    /// Completion Queue Invalid.
    COMPLETION_QUEUE = 1, 0x00;
    /// Invalid Queue Identifier.
    QUEUE_IDENTIFIER = 1, 0x01;
    /// Invalid Queue Size.
    QUEUE_SIZE = 1, 0x02;
    /// Asynchronous Event Request Limit Exceeded.
    EVENT_LIMIT = 1, 0x05;
    /// Invalid Interrupt Vector.
    INTERRUPT_VECTOR = 1, 0x08;
    /// Invalid Log Page.
    LOG_PAGE = 1, 0x09;
    /// Invalid Queue Deletion.
    QUEUE_DELETION = 1, 0x0c;
    /// Feature Identifier Not Saveable.
    NOT_SAVEABLE = 1, 0x0d;
    /// Feature Not Changeable.
    NOT_CHANGEABLE = 1, 0x0e;
    /// Write Fault.
    WRITE_FAULT = 2, 0x80;
    /// Unrecovered Read Error.
    READ_ERROR = 2, 0x81;
    /// Compare Failure.
    COMPARE = 2, 0x85;
}

/// Controller properties (section 3.1.3).
pub(super) mod register {
    pub(crate) const CAP: usize = 0x00;
    pub(crate) const VS: usize = 0x08;
    pub(crate) const INTMS: usize = 0x0c;
    pub(crate) const INTMC: usize = 0x10;
    pub(crate) const CC: usize = 0x14;
    pub(crate) const CSTS: usize = 0x1c;
    pub(crate) const AQA: usize = 0x24;
    pub(crate) const ASQ: usize = 0x28;
    pub(crate) const ACQ: usize = 0x30;
    /// Doorbells, 4 bytes each: submission tail and completion head of queue 0, of queue 1, ... (PCIe Transport 1.0).
    pub(crate) const DOORBELLS: usize = 0x1000;
}

/// Admin opcodes (section 5).
pub(super) mod admin {
    pub(crate) const DELETE_SQ: u8 = 0x00;
    pub(crate) const CREATE_SQ: u8 = 0x01;
    pub(crate) const GET_LOG_PAGE: u8 = 0x02;
    pub(crate) const DELETE_CQ: u8 = 0x04;
    pub(crate) const CREATE_CQ: u8 = 0x05;
    pub(crate) const IDENTIFY: u8 = 0x06;
    pub(crate) const ABORT: u8 = 0x08;
    pub(crate) const SET_FEATURES: u8 = 0x09;
    pub(crate) const GET_FEATURES: u8 = 0x0a;
    pub(crate) const ASYNC_EVENT: u8 = 0x0c;
}

/// I/O opcodes (NVM Command Set 1.0c, section 3).
pub(super) mod nvm {
    pub(crate) const FLUSH: u8 = 0x00;
    pub(crate) const WRITE: u8 = 0x01;
    pub(crate) const READ: u8 = 0x02;
    pub(crate) const COMPARE: u8 = 0x05;
    pub(crate) const WRITE_ZEROES: u8 = 0x08;
    pub(crate) const DATASET: u8 = 0x09;
}

/// A submission queue entry as it was fetched (section 3.3.3.1).
#[derive(Clone, Copy, Debug)]
pub struct Submitted(pub [u64; 8]);

impl Submitted {
    /// CDW `n`.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "half of the word is meant")]
    pub fn dword(&self, n: usize) -> u32 {
        (self.0[n / 2] >> (n % 2 * 32)) as u32
    }

    /// OPC.
    #[inline]
    pub fn opcode(&self) -> u8 {
        self.dword(0).to_le_bytes()[0]
    }

    /// CID.
    #[inline]
    pub fn id(&self) -> u16 {
        high(self.dword(0))
    }

    /// FUSE and PSDT together; both must be 0 here.
    #[inline]
    pub(super) fn format(&self) -> u8 {
        self.dword(0).to_le_bytes()[1]
    }

    /// NSID.
    #[inline]
    pub fn namespace(&self) -> u32 {
        self.dword(1)
    }

    /// PRP1 and PRP2.
    #[inline]
    pub fn prp(&self) -> [u64; 2] {
        [self.0[3], self.0[4]]
    }

    /// SLBA.
    #[inline]
    pub fn lba(&self) -> u64 {
        self.0[5]
    }

    /// NLB, as a count from 1.
    #[inline]
    pub fn blocks(&self) -> u32 {
        (self.dword(12) & 0xffff) + 1
    }
}

/// Bits 15:0.
#[inline]
pub(super) fn low(dword: u32) -> u16 {
    let [a, b, ..] = dword.to_le_bytes();
    u16::from_le_bytes([a, b])
}

/// Bits 31:16.
#[inline]
pub(super) fn high(dword: u32) -> u16 {
    low(dword >> 16)
}
