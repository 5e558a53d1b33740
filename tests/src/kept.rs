//! What test doubles of a device's queue have in common: they stand before the real one, and keep commands from it for a while.

use adapter::device::Opened;
use driver::block::{BlockQueue, Command, Segment, SubmitError};

/// A command that the device has not been given yet.
pub(crate) struct Kept {
    pub(crate) command: Command,
    segments: Option<Vec<Segment>>,
}

impl Kept {
    /// With the list of its memory, if it has one.
    pub(crate) fn new(command: &Command, segments: Option<&[Segment]>) -> Self {
        Self { command: *command, segments: segments.map(<[Segment]>::to_vec) }
    }

    /// The device is given it.
    pub(crate) fn submit(&self, queue: &mut impl BlockQueue) -> Result<(), SubmitError> {
        submit(queue, &self.command, self.segments.as_deref())
    }
}

/// Submits a command, with the list of its memory if it has one.
pub(crate) fn submit(
    queue: &mut impl BlockQueue,
    command: &Command,
    segments: Option<&[Segment]>,
) -> Result<(), SubmitError> {
    match segments {
        Some(segments) => queue.submit_scattered(command, segments),
        None => queue.submit(command),
    }
}

/// A device with something before each of its queues.
pub(crate) fn with_queues<Q: BlockQueue, D: BlockQueue>(
    opened: Opened<Q>,
    mut double: impl FnMut(Q) -> D,
) -> Opened<D> {
    let Opened { identity, geometry, mapper, mapper_pins, queues, disk, supervisor, losses } = opened;
    let queues = queues.into_iter().map(|(queue, interrupt)| (double(queue), interrupt)).collect();
    Opened { identity, geometry, mapper, mapper_pins, queues, disk, supervisor, losses }
}
