//! The bytes between an application and the adapter.
//!
//! - [`layout`]: what lies in the shared memory of a processing queue: header, doorbell, entries.
//! - [`control`]: the messages of the control socket.
//! - [`Status`]: the one enumeration of completion codes.
//!
//! What is deliberately not here: no decision about protection, no device, no thread.
#![deny(unsafe_code)]

pub mod control;
pub mod layout;
mod status;

pub use status::Status;

/// The version of everything in this crate: shared-memory layout and control messages. Two sides with different
/// versions do not talk; [`control::Request::Hello`] carries the range that a side can speak.
pub const VERSION: u16 = 1;
