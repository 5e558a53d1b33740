//! What lies in the shared memory of a processing queue.
//!
//! ```text
//! offset        written by   what
//! 0             application  QueueHeader, read once by the adapter when the queue is made
//! 64            application  tail: free-running count of submission entries written (the doorbell)
//! 128           application  cq_head: free-running count of completion entries consumed
//! 192           adapter      need_wake: 1 while the adapter sleeps and wants its eventfd written; state
//! 256           both         cq_wait: 1 while the application sleeps (a futex)
//! 4096          application  entries x 64 bytes: SubmissionEntry
//! then          adapter      entries x 32 bytes: CompletionEntry
//! ```
//!
//! All integers are little-endian. Entries of either kind are written and read as whole 64-bit words, and what one
//! side writes the other reads exactly once into private memory before it looks at it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

#[cfg(not(target_endian = "little"))]
compile_error!("the shared-memory layout is written for little-endian machines");

/// `PORTCULL` in ASCII, the first eight bytes of a processing queue.
pub const QUEUE_MAGIC: u64 = u64::from_le_bytes(*b"PORTCULL");

/// Byte offset of the doorbell word.
pub const TAIL_OFFSET: usize = 64;
/// Byte offset of the application's completion head.
pub const CQ_HEAD_OFFSET: usize = 128;
/// Byte offset of the adapter's need-wake word.
pub const NEED_WAKE_OFFSET: usize = 192;
/// Byte offset of the queue state word.
pub const STATE_OFFSET: usize = 196;
/// Byte offset of the application's futex word.
pub const CQ_WAIT_OFFSET: usize = 256;
/// Byte offset of the first submission entry.
pub const SQ_OFFSET: usize = 4096;

/// The smallest number of entries in a queue.
pub const MIN_ENTRIES: u32 = 2;
/// The largest number of entries in a queue.
pub const MAX_ENTRIES: u32 = 4096;

/// State word: the queue takes requests.
pub const STATE_READY: u32 = 0;
/// State word: a protocol violation; the queue takes no more requests, what was pending got E_FLUSHED.
pub const STATE_ERROR: u32 = 1;

/// The number of entries of a queue, in each direction: a power of two within the limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entries(u32);

impl Entries {
    /// `n` entries; `None` if `n` is not a power of two from [`MIN_ENTRIES`] to [`MAX_ENTRIES`].
    pub const fn new(n: u32) -> Option<Self> {
        if n.is_power_of_two() && n >= MIN_ENTRIES && n <= MAX_ENTRIES { Some(Self(n)) } else { None }
    }

    /// How many.
    #[inline]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The slot of the entry with free-running number `count`.
    #[inline]
    pub const fn slot(self, count: u32) -> usize {
        (count & (self.0 - 1)) as usize
    }

    /// Byte offset of the first completion entry.
    pub const fn cq_offset(self) -> usize {
        SQ_OFFSET + self.0 as usize * size_of::<SubmissionEntry>()
    }

    /// Bytes of shared memory that the queue takes, a multiple of 4096.
    pub const fn bytes(self) -> usize {
        (self.cq_offset() + self.0 as usize * size_of::<CompletionEntry>()).next_multiple_of(4096)
    }
}

/// The first bytes of a processing queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct QueueHeader {
    /// [`QUEUE_MAGIC`].
    pub magic: u64,
    /// [`crate::VERSION`].
    pub version: u16,
    /// Zero.
    pub reserved: u16,
    /// Entries in each direction.
    pub entries: u32,
}

/// Operation codes of a submission entry.
pub mod opcode {
    /// Blocks to memory.
    pub const READ: u8 = 1;
    /// Memory to blocks.
    pub const WRITE: u8 = 2;
    /// Completed writes become durable.
    pub const FLUSH: u8 = 3;
    /// Blocks become zero.
    pub const WRITE_ZEROES: u8 = 4;
    /// Blocks' content is given up; they read as zero.
    pub const DEALLOCATE: u8 = 5;
    /// Memory against blocks.
    pub const COMPARE: u8 = 6;
    /// Cancels the request whose user data stands in `offset`; completes itself with OK, or E_NOT_FOUND. The
    /// cancelled request completes as well, with E_CANCELLED or as it would have.
    pub const CANCEL: u8 = 7;
    /// Memory to bytes: any offset and any length up to [`super::MAX_WRITE_BYTES`]. What else the blocks hold stays, and
    /// no write that completed is lost by it.
    pub const WRITE_BYTES: u8 = 8;
    /// A control request ([`crate::control::Request`], those that [`crate::control::Request::goes_by_queue`]) for the
    /// control plane. Its `length` bytes, encoded without a frame ([`crate::frame::decode_body`]), lie at `region_offset` of
    /// `region`, which the device must be allowed to read and to write; `offset` is the room there for the reply, at
    /// least the request's [`crate::control::Request::reply_room`] and at most [`crate::control::MAX_MESSAGE`]. The completion says how
    /// many bytes of reply were written, and the status in it; with 0 bytes there is none. `key` and `extension` are zero.
    pub const MANAGE: u8 = 9;
    /// Memory to the end of an opened file: any length up to [`super::MAX_WRITE_BYTES`], `offset` and `extension` zero. The
    /// completion's `value` is the byte offset where it landed; nothing else lands there.
    pub const APPEND: u8 = 10;

    /// Whether an operation manages what requests are checked by, and goes to the control plane, where all others are done by the
    /// queue itself.
    pub const fn manages(opcode: u8) -> bool {
        opcode == MANAGE
    }
}

/// Flags of a submission entry.
pub mod flag {
    /// Write: complete only when durable (force unit access).
    pub const FUA: u8 = 1;
    /// Write zeroes: the device may deallocate.
    pub const DEALLOCATE: u8 = 2;
    /// Read, write, compare: memory is a scatter list. `region` + `region_offset`, a multiple of 8, say where its
    /// `scatter_count` entries lie; the region must be readable for the device.
    pub const SCATTER: u8 = 4;
}

/// One request: 64 bytes, one cache line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(64))]
pub struct SubmissionEntry {
    /// One of [`opcode`].
    pub opcode: u8,
    /// A set of [`flag`].
    pub flags: u8,
    /// Entries of the scatter list; zero without [`flag::SCATTER`].
    pub scatter_count: u8,
    /// Zero.
    pub reserved: u8,
    /// Microseconds from admission after which the request is not started any more; zero for none.
    pub deadline_us: u32,
    /// Comes back in the completion.
    pub user_data: u64,
    /// The grant, or the opened file.
    pub key: u64,
    /// Bytes from the start of the grant, of the file, or of its `extension`; for a cancel the user data of its target.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
    /// Zero.
    pub reserved2: u32,
    /// The memory region.
    pub region: u64,
    /// Bytes from the region's start.
    pub region_offset: u64,
    /// An extension of the file, which the request must not leave; zero for a grant of blocks and for the file as a whole.
    pub extension: u64,
}

/// The most entries of a scatter list.
pub const MAX_SEGMENTS: usize = 32;
/// The most bytes of one [`opcode::WRITE_BYTES`].
pub const MAX_WRITE_BYTES: u32 = 64 << 10;

/// One entry of a scatter list, which lies in registered memory and is read once when its request is admitted. Lengths
/// are multiples of the block size, not zero, and add up to the request's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ScatterSegment {
    /// The memory region.
    pub region: u64,
    /// Bytes from the region's start, a multiple of 4.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
    /// Zero.
    pub reserved: u32,
}

/// The submission entry as it crosses the shared memory.
pub type SubmissionWords = [u64; 8];
/// The completion entry as it crosses the shared memory.
pub type CompletionWords = [u64; 4];

/// One completion: 32 bytes. The adapter writes the last word last, with Release; its phase says that all is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(32))]
pub struct CompletionEntry {
    /// From the request.
    pub user_data: u64,
    /// Bytes moved; of a read of a file as many as lie before its end.
    pub bytes: u32,
    /// The device's own status where `status` is E_DEVICE (NVMe: status code type in bits 8..11, status code in bits
    /// 0..8).
    pub device_status: u32,
    /// Of an [`opcode::APPEND`] the byte offset where it landed, else zero.
    pub value: u64,
    /// A [`crate::Status`].
    pub status: u16,
    /// Bit 0: the phase, 1 on the first lap, 0 on the second, and so on.
    pub phase: u16,
    /// Free-running count of submission entries that the adapter has taken: their slots may be written again.
    pub sq_head: u32,
}

const _: () = {
    assert!(size_of::<SubmissionEntry>() == 64 && align_of::<SubmissionEntry>() == 64);
    assert!(size_of::<CompletionEntry>() == 32);
    assert!(size_of::<ScatterSegment>() == 24 && align_of::<ScatterSegment>() == 8);
    assert!(size_of::<QueueHeader>() == 16);
    assert!(CQ_WAIT_OFFSET + 64 <= SQ_OFFSET);
};
