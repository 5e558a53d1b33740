//! A user-space NVMe driver, over any [`crate::hal::Device`].
//!
//! - [`Controller`]: opens a device, looks after it, resets it. Owned by one thread that may wait.
//! - [`Queue`]: an I/O queue pair, a [`crate::block::BlockQueue`]. Owned by one thread that must not.
//!
//! A command ends only when its completion was seen, or the controller was seen disabled or the function reset. When
//! nothing proves that a device has stopped, nothing ends, and the memory that it knows of is never used again.
//!
//! There is no Abort: it may do nothing, its own completion proves nothing about the command that it names (Base 2.0,
//! 5.1: best effort), and a command that the device keeps for ever needs the reset all the same, which is the only step
//! that ends it for certain. What a reset costs the others is an error that says so, and they may try again.
//!
//! What a device says is read once and not believed: values are checked before use, completions that answer nothing
//! are counted ([`Controller::anomalies`]) and otherwise ignored.
//!
//! A namespace may change under its host. A command that no longer fits ends with the device's error; what the device
//! reports of it (Namespace Attribute Notices) is looked at by [`Controller::watch`], the rest at the next reset. One
//! that has grown is used as before, with the blocks that it had; any other is used no more ([`NvmeError::Changed`]):
//! all queues are gone, and who needs the device opens it again. Blocks that became larger are noticed no sooner, and
//! until then such a device moves more than a PRP list names; a scatter list ends it with Data SGL Length Invalid. Only
//! the IOMMU bounds the rest, so let nobody format a namespace that is in use.
//!
//! Deliberately not here: metadata and protection information, more than one namespace at a
//! time, weighted arbitration, controller memory buffers, Abort (it proves nothing).
#![forbid(unsafe_code)]

mod admin;
mod controller;
mod doorbell;
mod error;
mod identity;
mod link;
pub mod prp;
mod queue;
mod sgl;
mod slots;
#[cfg(test)]
pub(crate) mod tests;

pub use crate::block::{ResetProgress, Watch};
pub use controller::{Controller, Options};
pub use error::NvmeError;
pub use identity::Identity;
pub use queue::Queue;
