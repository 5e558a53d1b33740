//! A user-space NVMe driver, over any [`crate::hal::Device`].
//!
//! - [`Controller`]: opens a device, looks after it, resets it. Owned by one thread that may wait.
//! - [`Queue`]: an I/O queue pair, a [`crate::block::BlockQueue`]. Owned by one thread that must not.
//!
//! A command ends only when its completion was seen, or the controller was seen disabled or the function reset. When
//! nothing proves that a device has stopped, nothing ends, and the memory that it knows of is never used again.
//!
//! What a device says is read once and not believed: values are checked before use, completions that answer nothing
//! are counted ([`Controller::anomalies`]) and otherwise ignored.
//!
//! Deliberately not here: metadata and protection information, asynchronous events, more than one namespace at a
//! time, weighted arbitration, controller memory buffers, shadow doorbells, Abort (it proves nothing).
#![forbid(unsafe_code)]

mod admin;
mod controller;
mod error;
mod identity;
mod link;
mod prp;
mod queue;
mod sgl;
mod shared;
mod slots;
#[cfg(test)]
mod tests;

pub use controller::{Controller, Options, ResetProgress, Watch};
pub use error::NvmeError;
pub use identity::{Health, Identity};
pub use queue::Queue;
