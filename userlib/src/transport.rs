//! The seam between an application and an adapter: over a Unix socket, or in the same process.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use wire::control::{Reply, Request};

/// Why a call did not reach the adapter, or its answer not the application.
///
/// ```
/// let error = portcullis::TransportError::Gone("it has ended".to_owned());
/// assert_eq!(portcullis::Error::from(error).status(), Some(portcullis::Status::E_PATH));
/// ```
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The connection or the adapter is gone.
    #[error("the adapter is gone: {0}")]
    Gone(String),
    /// The socket failed.
    #[error("{what}: {source}")]
    Os {
        /// The call, and what usually mends it.
        what: String,
        /// The kernel's word.
        source: std::io::Error,
    },
    /// The other side does not speak this protocol.
    #[error("what answers there is not an adapter that speaks this protocol: {0}")]
    Protocol(String),
}

/// An adapter in this process, which makes progress in the turns that it is given, by whatever thread.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use portcullis::Transport;
/// let adapter = adapter::Embedded::open("emu:16M")?;
/// let transport = adapter.transport_as(adapter::embedded::own_credentials())?;
/// let queue = 1;
/// transport.embedded().expect("it is one").turn_for(queue);
/// # Ok(()) }
/// ```
pub trait EmbeddedAdapter: Send + Sync {
    /// One turn, in which it looks at this queue whatever else it looks at; says whether there was something to do. Does not
    /// wait: if another thread is turning it, that one does the work.
    fn turn_for(&self, queue: u32) -> bool;
}

/// Carries control messages to an adapter.
///
/// One that writes down what it carries:
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use portcullis::wire::control::{Reply, Request};
/// use portcullis::{EmbeddedAdapter, Session, Transport, TransportError};
/// use std::os::fd::{BorrowedFd, OwnedFd};
/// use std::sync::Arc;
///
/// struct Traced<T>(T);
///
/// impl<T: Transport> Transport for Traced<T> {
///     fn call(
///         &mut self,
///         request: &Request,
///         descriptors: &[BorrowedFd<'_>],
///     ) -> Result<(Reply, Vec<OwnedFd>), TransportError> {
///         let reply = self.0.call(request, descriptors)?;
///         println!("{request:?} -> {:?}", reply.0);
///         Ok(reply)
///     }
///     fn embedded(&self) -> Option<Arc<dyn EmbeddedAdapter>> {
///         self.0.embedded()
///     }
///     fn check_alive(&mut self) -> Result<(), TransportError> {
///         self.0.check_alive()
///     }
/// }
///
/// let adapter = adapter::Embedded::open("emu:16M")?;
/// let transport = adapter.transport_as(adapter::embedded::own_credentials())?;
/// let session = Session::with_transport(Box::new(Traced(transport)))?;
/// session.create_volume("v", 1 << 20)?;
/// # Ok(()) }
/// ```
pub trait Transport: Send {
    /// Sends a request with its descriptors and waits for the reply and the descriptors that come with it.
    fn call(
        &mut self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), TransportError>;

    /// Embedded mode: the adapter behind this transport, which is given a turn in every poll and wait, so that waiting must
    /// turn and not sleep. `None`: it is in another process, or turns itself.
    fn embedded(&self) -> Option<Arc<dyn EmbeddedAdapter>> {
        None
    }

    /// Fails if the adapter is known to be gone; asked now and then during a long wait.
    fn check_alive(&mut self) -> Result<(), TransportError> {
        Ok(())
    }
}
