//! The way to an adapter in another process.

use std::env;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use wire::control::{MAX_MESSAGE, Reply, Request};
use wire::frame::{decode_reply, encode};
use wire::socket::{Blocking, ReceiveError, receive, send};

use crate::error::Error;
use crate::transport::{Transport, TransportError};

/// Where the adapter's socket is unless somebody says otherwise: `$PORTCULLIS_SOCKET`, else
/// `$XDG_RUNTIME_DIR/portcullis.sock`, else `/run/portcullis.sock`.
///
/// ```
/// let path = portcullis::default_socket_path();
/// println!("the adapter is expected at {}", path.display());
/// # assert!(!path.as_os_str().is_empty());
/// ```
pub fn default_socket_path() -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    choose(set("PORTCULLIS_SOCKET"), set("XDG_RUNTIME_DIR"))
}

fn choose(socket: Option<PathBuf>, runtime: Option<PathBuf>) -> PathBuf {
    let own = || runtime.map(|directory| directory.join("portcullis.sock"));
    socket.or_else(own).unwrap_or_else(|| PathBuf::from("/run/portcullis.sock"))
}

/// Control messages over a `SOCK_SEQPACKET` Unix socket, one at a time.
pub(crate) struct UnixTransport {
    socket: OwnedFd,
    next_id: u32,
    packet: Box<[u8]>,
    /// An exchange was broken off in the middle: what comes next answers something else.
    broken: bool,
}

impl UnixTransport {
    pub(crate) fn connect(path: &Path) -> Result<Self, Error> {
        let failed = |source: io::Error| Error::Connect { path: path.to_owned(), source };
        let address = SocketAddrUnix::new(path).map_err(|error| failed(error.into()))?;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|error| Error::os("making a Unix socket", error))?;
        rustix::io::retry_on_intr(|| connect(&socket, &address)).map_err(|error| failed(error.into()))?;
        Ok(Self::over(socket))
    }

    fn over(socket: OwnedFd) -> Self {
        Self { socket, next_id: 1, packet: vec![0; MAX_MESSAGE].into_boxed_slice(), broken: false }
    }

    fn exchange(
        &mut self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), TransportError> {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let packet = encode(id, request)
            .map_err(|error| TransportError::Protocol(format!("the request cannot be sent: {error}")))?;
        self.broken = true;
        if let Err(source) = send(&self.socket, &packet, descriptors, Blocking::Wait) {
            return match source.kind() {
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => self.last_words(),
                _ => Err(TransportError::Os { what: "sending to the adapter".to_owned(), source }),
            };
        }
        let (length, received) = match receive(&self.socket, &mut self.packet, Blocking::Wait) {
            Ok(received) => received,
            Err(ReceiveError::Closed) => return self.last_words(),
            Err(ReceiveError::Os(source)) => {
                return Err(TransportError::Os { what: "receiving from the adapter".to_owned(), source });
            }
            Err(other) => return Err(TransportError::Protocol(other.to_string())),
        };
        let packet = self.packet.get(..length).unwrap_or(&[]);
        let (answered, reply) =
            decode_reply(packet).map_err(|error| TransportError::Protocol(error.to_string()))?;
        if answered == 0 && matches!(reply, Reply::Error { .. }) {
            return Ok((reply, Vec::new())); // Said to the connection, not to this request; it is closed by now.
        }
        if answered != id {
            return Err(TransportError::Protocol(format!("message {id} was answered as {answered}")));
        }
        self.broken = false;
        Ok((reply, received))
    }

    /// The connection is closed. If the adapter said why before it closed it, that is the answer.
    fn last_words(&mut self) -> Result<(Reply, Vec<OwnedFd>), TransportError> {
        let Ok((length, _)) = receive(&self.socket, &mut self.packet, Blocking::Never) else {
            return Err(gone());
        };
        match decode_reply(self.packet.get(..length).unwrap_or(&[])) {
            Ok((0, reply @ Reply::Error { .. })) => Ok((reply, Vec::new())),
            _ => Err(gone()),
        }
    }
}

fn gone() -> TransportError {
    TransportError::Gone(
        "it closed the connection; its log says why, or it has ended: connect again".to_owned(),
    )
}

impl Transport for UnixTransport {
    fn call(
        &mut self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), TransportError> {
        if self.broken {
            return Err(TransportError::Gone("an earlier exchange with it failed: connect again".to_owned()));
        }
        self.exchange(request, descriptors)
    }

    fn check_alive(&mut self) -> Result<(), TransportError> {
        let mut descriptors = [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::RDHUP)];
        let events = poll(&mut descriptors, Some(&Timespec::default()));
        let closed = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
        let [descriptor] = descriptors;
        if self.broken || events.is_ok() && descriptor.revents().intersects(closed) {
            return Err(gone());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::socketpair;
    use std::thread;
    use wire::frame::decode_request;

    fn pair() -> (UnixTransport, OwnedFd) {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        (UnixTransport::over(ours), theirs)
    }

    /// Answers one request on another thread with the packet that `answer` makes of its id.
    fn answer(
        theirs: OwnedFd,
        answer: impl Fn(u32) -> Vec<u8> + Send + 'static,
    ) -> thread::JoinHandle<OwnedFd> {
        thread::spawn(move || {
            let mut buffer = [0; MAX_MESSAGE];
            let (length, _) = receive(&theirs, &mut buffer, Blocking::Wait).unwrap();
            let (id, _) = decode_request(&buffer[..length]).unwrap();
            send(&theirs, &answer(id), &[], Blocking::Wait).unwrap();
            theirs
        })
    }

    #[test]
    fn a_request_gets_its_reply() {
        let (mut transport, theirs) = pair();
        let peer = answer(theirs, |id| encode(id, &Reply::Done).unwrap());
        assert_eq!(transport.call(&Request::Statistics, &[]).unwrap().0, Reply::Done);
        assert!(transport.check_alive().is_ok());
        drop(peer.join().unwrap());
        assert!(matches!(transport.check_alive(), Err(TransportError::Gone(_))));
        assert!(matches!(transport.call(&Request::Statistics, &[]), Err(TransportError::Gone(_))));
    }

    #[test]
    fn an_answer_to_something_else_ends_the_session() {
        for bad in [
            (|id| encode(id + 1, &Reply::Done).unwrap()) as fn(u32) -> Vec<u8>,
            |_| b"HTTP/1.1 400 Bad Request\r\n".to_vec(),
            |_| vec![0],
        ] {
            let (mut transport, theirs) = pair();
            let peer = answer(theirs, bad);
            assert!(matches!(transport.call(&Request::Statistics, &[]), Err(TransportError::Protocol(_))));
            let _open = peer.join().unwrap();
            assert!(matches!(transport.call(&Request::Statistics, &[]), Err(TransportError::Gone(_))));
        }
    }

    #[test]
    fn a_path_without_adapter_says_what_is_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let kind = |path: &Path| match UnixTransport::connect(path).err() {
            Some(Error::Connect { source, .. }) => source.kind(),
            other => panic!("{other:?}"),
        };
        assert_eq!(kind(&directory.path().join("none")), io::ErrorKind::NotFound);
        let path = directory.path().join("dead");
        let listener = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        drop(listener);
        assert_eq!(kind(&path), io::ErrorKind::ConnectionRefused);
        assert!(matches!(UnixTransport::connect(Path::new(&"x".repeat(200))), Err(Error::Connect { .. })));
    }

    #[test]
    fn the_socket_is_where_it_was_said() {
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(choose(path("/a.sock"), path("/run/user/1")), Path::new("/a.sock"));
        assert_eq!(choose(None, path("/run/user/1")), Path::new("/run/user/1/portcullis.sock"));
        assert_eq!(choose(None, None), Path::new("/run/portcullis.sock"));
    }
}
