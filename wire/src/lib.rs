//! The bytes between an application and the adapter.
//!
//! - [`layout`]: what lies in the shared memory of a processing queue: header, doorbell, entries.
//! - [`index`]: arithmetic of free-running counts.
//! - [`view`]: that memory as atomics; [`sync`]: which atomics.
//! - [`ring`]: the two ends of a queue.
//! - [`doorbell`]: waking the other side.
//! - [`shm`]: shared memory, and how the adapter takes it from somebody it does not trust.
//! - [`control`]: the messages of the control socket and of management entries; [`files`]: what they say of files;
//!   [`frame`]: to packets and back; [`name`]: names in them.
//! - [`socket`]: packets and descriptors over a Unix socket; [`discard`]: getting rid of the latter.
//! - [`Status`]: the one enumeration of completion codes.
//!
//! What is deliberately not here: no decision about protection, no device.
#![deny(unsafe_code)]

pub mod control;
pub mod files;
pub mod frame;
mod health;
pub mod index;
pub mod layout;
pub mod name;
pub mod ring;
mod status;
pub mod sync;
pub mod view;

// Under loom only the models run, over memory of loom's own.
#[cfg(not(loom))]
pub mod discard;
#[cfg(not(loom))]
pub mod doorbell;
#[cfg(not(loom))]
#[doc(hidden)]
pub mod fuzz;
#[cfg(not(loom))]
pub mod shm;
#[cfg(not(loom))]
pub mod socket;

pub use status::Status;

/// The version of everything in this crate: shared-memory layout and control messages. Two sides with different
/// versions do not talk; [`control::Request::Hello`] carries the range that a side can speak.
pub const VERSION: u16 = 2;
