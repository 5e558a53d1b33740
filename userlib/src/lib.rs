//! Block I/O straight into a shared-memory queue, checked by the adapter, with no system call on the way.
//!
//! An adapter drives the disk; an application connects ([`Session`]), opens a volume ([`Volume`]), registers memory
//! ([`Buffer`]) and puts requests into a [`Queue`]. The adapter checks every one of them; the device moves the data
//! directly between the disk and the application's memory.
//!
//! ```
//! use portcullis::Access;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // An adapter inside this process, over 16 MiB of memory. Over the socket of one that runs by itself:
//! // let session = portcullis::Session::connect(portcullis::default_socket_path())?;
//! let adapter = adapter::Embedded::open("emu:16M")?;
//! let session = adapter.session()?;
//!
//! session.create_volume("notes", 1 << 20)?;
//! let volume = session.open("notes", Access::READ_WRITE)?;
//! let mut queue = session.queue(32)?;
//! queue.write_at(&volume, 0, &[42; 4096])?;
//! queue.flush(&volume)?;
//!
//! let mut back = [0; 4096];
//! queue.read_at(&volume, 0, &mut back)?;
//! assert_eq!(back, [42; 4096]);
//! # Ok(()) }
//! ```
//!
//! [`Queue`] shows how to keep many requests in flight.
//!
//! What is deliberately not here: no check of rights or bounds. The adapter makes them all; a library inside the
//! application could only pretend to.

mod access;
mod channel;
mod error;
mod file;
mod files;
mod holes;
mod limits;
mod link;
mod memory;
mod place;
mod queue;
pub mod raw;
mod reactor;
mod request;
mod session;
mod slots;
mod target;
mod transport;
mod unix;
mod volume;

pub use access::{Access, ParseAccessError};
pub use error::{Error, IoError, Refused};
pub use file::{File, OpenOptions};
pub use files::{Dir, Files};
pub use link::ConnectOptions;
pub use memory::{Buffer, Memory, MemoryAccess};
pub use place::{Place, ToPlace};
pub use queue::Queue;
pub use reactor::{AsyncFile, Reactor, Submitted};
pub use request::{Completion, Request, Ticket};
pub use session::{Revoked, Session, Volumes};
pub use target::Target;
pub use transport::{EmbeddedAdapter, Transport, TransportError};
pub use unix::default_socket_path;
pub use volume::Volume;
pub use wire;
pub use wire::Status;
pub use wire::control::{
    DeviceInfo, ErrorInfo, GrantInfo, HealthInfo, LimitChange, LimitInfo, Limited, Limits, MAX_NAME, Rate,
    Rates, SessionInfo, Statistics, Subject, VolumeInfo,
};
