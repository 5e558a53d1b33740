//! What every device looks like from above.
//!
//! A [`BlockQueue`] belongs to one thread. It takes [`Command`]s, announces them to the device once a turn
//! ([`BlockQueue::commit`]) and returns each exactly once from [`BlockQueue::poll`], in any order.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::hal::{Iova, Mapper};

/// The shape of a device, fixed while it is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// A block has `1 << block_shift` bytes: 9 or 12.
    pub block_shift: u8,
    /// Blocks of the device.
    pub blocks: u64,
    /// Blocks of the largest read, write or compare; at least 1. [`BlockQueue::submit`] refuses more, [`pieces`]
    /// cuts.
    pub max_transfer_blocks: u32,
    /// Segments of the longest scatter list that [`BlockQueue::submit_scattered`] takes; at least 1. With 1, memory
    /// must be contiguous.
    pub max_segments: u32,
    /// Blocks of the largest write zeroes or deallocate; at least 1.
    pub max_zeroes_blocks: u32,
    /// Whether completed writes may be lost by a power cut until a flush.
    pub write_cache: bool,
    /// Whether the device has write zeroes.
    pub write_zeroes: bool,
    /// Whether the device has deallocate.
    pub deallocate: bool,
    /// Whether blocks read as zero after a deallocate (NVMe: DLFEAT says so).
    pub deallocate_zeroes: bool,
    /// Whether the device has compare.
    pub compare: bool,
}

impl Geometry {
    /// Bytes of a block.
    #[inline]
    pub const fn block_size(&self) -> u32 {
        1 << self.block_shift
    }

    /// Blocks of the largest command of that operation.
    #[inline]
    pub const fn most_blocks(&self, operation: Operation) -> u32 {
        match operation {
            Operation::WriteZeroes { .. } | Operation::Deallocate => self.max_zeroes_blocks,
            Operation::Read | Operation::Write { .. } | Operation::Flush | Operation::Compare => {
                self.max_transfer_blocks
            }
        }
    }
}

/// What a device can be asked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Operation {
    /// Blocks to memory.
    Read,
    /// Memory to blocks.
    Write {
        /// Complete only when durable.
        fua: bool,
    },
    /// All completed writes become durable. `lba`, `blocks` and `data` mean nothing.
    Flush,
    /// Blocks read as zero afterwards. `data` means nothing.
    WriteZeroes {
        /// The device may deallocate.
        deallocate: bool,
    },
    /// The content is given up. `data` means nothing.
    Deallocate,
    /// Memory against blocks; a difference is [`DeviceStatus::COMPARE_FAILURE`].
    Compare,
}

impl Operation {
    /// Whether `data` is used.
    #[inline]
    pub const fn moves_data(self) -> bool {
        matches!(self, Self::Read | Self::Write { .. } | Self::Compare)
    }
}

/// One command, already granted: addresses are absolute.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Command {
    /// What to do.
    pub operation: Operation,
    /// The first block.
    pub lba: u64,
    /// How many; at least 1 but for a flush.
    pub blocks: u32,
    /// Where the data is: `blocks` blocks, contiguous in the device's address space, a multiple of 4.
    pub data: Iova,
    /// Comes back in the completion. Not interpreted; need not be unique.
    pub tag: u64,
}

/// A piece of a command's memory, contiguous in the device's address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Where it begins, a multiple of 4.
    pub data: Iova,
    /// How long it is, a multiple of the block size; not 0.
    pub bytes: u32,
}

/// Whether `command`'s data may lie in `segments` on a device of this geometry: what every queue's
/// [`BlockQueue::submit_scattered`] refuses is what this refuses, and a command that does not fit by itself.
pub fn segments_fit(geometry: &Geometry, command: &Command, segments: &[Segment]) -> bool {
    let whole = u64::from(geometry.block_size());
    let fits = |segment: &Segment| {
        let bytes = u64::from(segment.bytes);
        let placed = segment.data.0.is_multiple_of(4) && segment.data.0.checked_add(bytes).is_some();
        placed && bytes > 0 && bytes.is_multiple_of(whole)
    };
    let number = u32::try_from(segments.len()).unwrap_or(u32::MAX);
    // At most 2^32 segments of at most 2^32 bytes: the sum does not wrap.
    let bytes = || segments.iter().map(|segment| u64::from(segment.bytes)).sum::<u64>();
    command.operation.moves_data()
        && command.blocks <= geometry.max_transfer_blocks
        && (1..=geometry.max_segments).contains(&number)
        && segments.iter().all(fits)
        && bytes() == u64::from(command.blocks) << geometry.block_shift
}

/// Why a command was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SubmitError {
    /// No room: poll, then try again. Not an error of the command.
    #[error("the device queue is full")]
    Full,
    /// The command does not fit the geometry: the caller's mistake, the device never saw it.
    #[error("the command does not fit the device's geometry")]
    Invalid,
    /// The queue is down until its controller has been reset; see [`BlockQueue::poll`].
    #[error("the device queue is down")]
    Down,
}

/// A device's own status. Zero is success; NVMe: status code type in bits 8..11, status code in bits 0..8; virtio-blk:
/// bit 15, and the status byte in bits 0..8.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceStatus(pub u16);

impl DeviceStatus {
    /// Success.
    pub const OK: Self = Self(0);
    /// NVMe generic command status, LBA Out of Range (80h).
    pub const LBA_OUT_OF_RANGE: Self = Self(0x0080);
    /// NVMe media error, Compare Failure (85h).
    pub const COMPARE_FAILURE: Self = Self(0x0285);
    /// NVMe media error, Write Fault (80h).
    pub const WRITE_FAULT: Self = Self(0x0280);
    /// NVMe media error, Unrecovered Read Error (81h).
    pub const READ_ERROR: Self = Self(0x0281);
    /// NVMe generic, Command Aborted due to SQ Deletion (08h): also what every outstanding command gets when its
    /// controller was disabled or reset under it. Whether the device executed it is unknown.
    pub const ABORTED: Self = Self(0x0008);

    /// What a status byte of virtio-blk other than OK is here: virtio's codes are not NVMe's, and are kept.
    #[inline]
    pub const fn virtio(status: u8) -> Self {
        Self(Self::VIRTIO | status as u16)
    }

    /// Marks those.
    const VIRTIO: u16 = 0x8000;

    /// Whether this is [`DeviceStatus::OK`].
    #[inline]
    pub const fn is_ok(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Debug for DeviceStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for DeviceStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 & Self::VIRTIO != 0 {
            return write!(f, "virtio-blk status {:02x}h", self.0 & 0xff);
        }
        write!(f, "sct {:x}h sc {:02x}h", self.0 >> 8 & 7, self.0 & 0xff)
    }
}

/// A command that ended: the device can no longer touch its memory or its blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completed {
    /// From the command.
    pub tag: u64,
    /// How it ended.
    pub status: DeviceStatus,
}

/// What a queue is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QueueState {
    /// It takes commands.
    Running,
    /// Its controller failed or is being reset: nothing is taken. Commands outstanding end, with
    /// [`DeviceStatus::ABORTED`], once the controller is seen disabled, and not before. The queue runs again by itself
    /// when the reset is over.
    Down,
    /// The controller is gone and will not come back; all outstanding commands have ended.
    Gone,
}

/// A queue of a block device, used by one thread. No call blocks, allocates or makes a system call.
pub trait BlockQueue: Send {
    /// The device's shape.
    fn geometry(&self) -> &Geometry;

    /// Takes a command; the device learns of it at the next [`BlockQueue::commit`].
    fn submit(&mut self, command: &Command) -> Result<(), SubmitError>;

    /// Takes a read, write or compare whose data lies in `segments`, in this order; `command.data` means nothing.
    /// What [`segments_fit`] refuses is [`SubmitError::Invalid`].
    fn submit_scattered(&mut self, command: &Command, segments: &[Segment]) -> Result<(), SubmitError>;

    /// Announces what was submitted since the last call: at most one doorbell write.
    fn commit(&mut self);

    /// Hands at most `budget` ended commands to `ended` and returns how many.
    fn poll(&mut self, budget: usize, ended: &mut dyn FnMut(Completed)) -> usize;

    /// Commands taken and not yet ended.
    fn outstanding(&self) -> usize;

    /// What the queue is doing, as of the last poll.
    fn state(&self) -> QueueState;

    /// Asks that `interrupt` be raised for completions from now on (before sleeping), or not (while polling). After
    /// arming, poll once more before going to sleep.
    fn arm_interrupt(&mut self, armed: bool);

    /// Doorbell registers of the device written so far; 0 for a device that has none.
    fn doorbells(&self) -> u64 {
        0
    }
}

impl<Q: BlockQueue + ?Sized> BlockQueue for &mut Q {
    fn geometry(&self) -> &Geometry {
        Q::geometry(self)
    }
    fn submit(&mut self, command: &Command) -> Result<(), SubmitError> {
        Q::submit(self, command)
    }
    fn submit_scattered(&mut self, command: &Command, segments: &[Segment]) -> Result<(), SubmitError> {
        Q::submit_scattered(self, command, segments)
    }
    fn commit(&mut self) {
        Q::commit(self);
    }
    fn poll(&mut self, budget: usize, ended: &mut dyn FnMut(Completed)) -> usize {
        Q::poll(self, budget, ended)
    }
    fn outstanding(&self) -> usize {
        Q::outstanding(self)
    }
    fn state(&self) -> QueueState {
        Q::state(self)
    }
    fn arm_interrupt(&mut self, armed: bool) {
        Q::arm_interrupt(self, armed);
    }
    fn doorbells(&self) -> u64 {
        Q::doorbells(self)
    }
}

/// How a reset is getting on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResetProgress {
    /// Not over: call again soon, after the queues were polled.
    Pending,
    /// The controller runs; its queues do after their next poll.
    Done,
    /// The controller is stopped for good.
    Gone,
    /// The controller can neither be disabled nor reset. It may still touch memory, so nothing outstanding ends.
    /// [`BlockController::begin_reset`] tries again.
    Stuck,
}

/// What a look at the controller shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Watch {
    /// It runs.
    Running,
    /// It reports a fatal error, stopped on its own, or breaks the rules: it needs a reset.
    Failed,
    /// It said that its medium changed, and that is not as it was or cannot be asked for: a reset settles what becomes
    /// of it.
    Changed,
    /// It is not there. A reset settles what becomes of it.
    Absent,
    /// A reset is going on.
    Resetting,
    /// It is stopped for good.
    Gone,
}

/// What a device says of itself: printable ASCII.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Model {
    /// What it is.
    pub model: String,
    /// Which of them it is.
    pub serial: String,
    /// Which firmware it runs.
    pub firmware: String,
}

/// What every controller looks like to who looks after it: one thread, which may wait. Its queues belong to others.
pub trait BlockController: Send {
    /// What it has queues of.
    type Queue: BlockQueue + 'static;

    /// Hands out one of its queues, until there is none left, and what becomes readable when that interrupts.
    fn take_queue(&mut self) -> Option<(Self::Queue, Option<OwnedFd>)>;

    /// Which device this is.
    fn model(&self) -> Model;

    /// Its shape.
    fn geometry(&self) -> &Geometry;

    /// Maps memory for it.
    fn mapper(&self) -> Arc<dyn Mapper>;

    /// Looks whether it is well. To be called a few times a second.
    fn watch(&mut self) -> Watch;

    /// Starts a reset: queues take nothing from now on. Go on with [`BlockController::finish_reset`].
    fn begin_reset(&mut self);

    /// Takes a reset as far as it goes without waiting for queues. Queues have to be polled in the meantime: they end
    /// what is outstanding once the controller has stopped. With no reset begun, says how the last one ended.
    fn finish_reset(&mut self) -> ResetProgress;

    /// Stops it for good. What is outstanding ends at the queues' next polls, and they are [`QueueState::Gone`].
    ///
    /// # Errors
    /// If it cannot be stopped: then nothing outstanding ends.
    fn shut_down(&mut self) -> Result<(), Box<dyn std::error::Error>>;

    /// Completions so far that answered no command: late, doubled or forged.
    fn anomalies(&self) -> u64;
}

/// Cuts `blocks` blocks from `lba` with data at `data` into commands that fit `geometry`.
pub fn pieces(command: Command, blocks: u64, geometry: &Geometry) -> impl Iterator<Item = Command> {
    let most = geometry.most_blocks(command.operation);
    let shift = geometry.block_shift;
    let mut done = 0u64;
    std::iter::from_fn(move || {
        let left = blocks - done;
        if left == 0 {
            return None;
        }
        let count = u32::try_from(left).unwrap_or(u32::MAX).min(most);
        let data = if command.operation.moves_data() {
            Iova(command.data.0 + (done << shift))
        } else {
            command.data
        };
        let piece = Command { lba: command.lba + done, blocks: count, data, ..command };
        done += u64::from(count);
        Some(piece)
    })
}
