//! Block I/O straight into a shared-memory queue, checked by the adapter, with no system call on the way.

mod transport;

pub use transport::{Transport, TransportError};
pub use wire;
