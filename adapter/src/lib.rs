//! The only place where the parts meet: queues, tables, store and device.
//!
//! - [`engine`]: one bounded turn after another, without a system call.
//! - [`poller`]: a thread that turns an engine, and sleeps when there is nothing to do.
//! - [`control`]: sessions, grants, regions, queues, volumes; owner of the tables.
//! - [`server`]: the control socket. [`embedded`]: the same without one, in the caller's process.
//! - [`device`]: from a URI to a device with queues. [`storage`]: the store's thread.
//! - [`daemon`]: all of it in a process of its own, which confines itself ([`confine`]). [`resident`]: where its memory lies.
#![deny(unsafe_code)]

pub mod assembly;
pub mod confine;
pub mod control;
pub mod daemon;
pub mod device;
pub mod embedded;
pub mod engine;
pub mod mailbox;
mod memory;
pub mod poller;
pub mod resident;
pub mod server;
pub mod signals;
pub mod storage;

pub use assembly::{Format, Options, StartError};
pub use daemon::Adapter;
pub use device::DeviceUri;
pub use driver::vfio::PciAddress;
pub use embedded::Embedded;
pub use store::Content;
