//! A user-space driver for virtio block devices on PCI, over any [`crate::hal::PciFunction`] (virtio 1.2).
//!
//! - [`Controller`]: opens a device, looks after it, resets it. Owned by one thread that may wait.
//! - [`Queue`]: a request queue, a [`crate::block::BlockQueue`]. Owned by one thread that must not.
//!
//! A request ends only when the device has used its buffers, or was seen reset: by its status register, which reads zero
//! when the reset is over, or by a function reset. When nothing proves that a device has stopped, nothing ends, and the
//! memory that it knows of is never used again.
//!
//! What a device says is read once and not believed. Structures lie where capabilities say only after that was checked.
//! Used entries carry the place of a request and no generation, so that a device that breaks the rules of its queue (an
//! index that jumps, an id that it does not have, a length that cannot be, a status that it did not write) is not
//! believed any more at all: its queue stands still, [`Controller::watch`] says so, and a reset ends what is outstanding.
//! A doubled completion of a request whose place was taken again in the meantime cannot be told from a true one; places
//! are taken in turn, so that this takes a full round.
//!
//! The device must offer ACCESS_PLATFORM, or its addresses would pass by the IOMMU. Interrupts and notifications are
//! suppressed by event indexes where the device has them: none while the owner of a queue polls, one when it sleeps.
//!
//! A deallocate is a write zeroes with the unmap flag where the device may unmap, since a discard is only a hint. A write
//! with forced unit access is a write and then a flush, before it ends; there is no such flag on a request.
//!
//! The configuration may change under its host, and is looked at again when its generation did. A device that has grown is
//! used as before, with the blocks that it had; any other change ends in [`VirtioError::Changed`]: all queues are gone, and
//! who needs the device opens it again.
//!
//! Deliberately not here: the legacy interface, packed virtqueues, secure erase and lifetime, reset of one queue alone.
#![forbid(unsafe_code)]

mod controller;
mod error;
mod identity;
mod inquiry;
mod link;
mod queue;
mod ring;
mod slots;
#[cfg(test)]
pub(crate) mod tests;
mod transport;

pub use controller::{Controller, Options};
pub use error::VirtioError;
pub use identity::{Identity, Topology};
pub use queue::Queue;
