//! What can go wrong, in one enumeration.

use std::fmt;
use std::io;
use std::path::PathBuf;

use wire::Status;
use wire::layout::opcode;

use crate::{Request, TransportError};

/// Why something did not work. The text says what was wrong, with which value, and what to do.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let adapter = adapter::Embedded::open("emu:16M")?;
/// let error = adapter.session()?.open("nothing", portcullis::Access::READ).unwrap_err();
/// assert_eq!(error.status(), Some(portcullis::Status::E_NO_RESOURCE));
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No session came about.
    #[error("cannot reach an adapter at {}: {source}; {}", path.display(), connect_advice(source))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// The connection failed or ended.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The adapter refused a control message, and changed nothing unless the text says otherwise.
    #[error("{status}: {detail}")]
    Refused {
        /// The code.
        status: Status,
        /// What was wrong, with what value, and what to do.
        detail: String,
    },
    /// A request failed.
    #[error(transparent)]
    Io(#[from] IoError),
    /// As many requests as the queue has entries are in flight.
    #[error("the queue is full: poll or wait for a completion first, or make a queue with more entries")]
    QueueFull,
    /// The adapter moved the queue to the error state: what was pending was flushed, and it takes no more requests.
    #[error("the queue is in the error state and takes no more requests: drop it and make a new one")]
    QueueDown,
    /// An argument that cannot be carried out, found before it reached the adapter.
    #[error("{0}")]
    Argument(String),
    /// A system call of this process failed.
    #[error("{what}: {source}")]
    Os {
        /// The call, and what usually mends it.
        what: &'static str,
        /// The kernel's word.
        source: io::Error,
    },
    /// The adapter broke the protocol. What was in flight stays out of use.
    #[error("the adapter broke the protocol: {0}")]
    Protocol(String),
}

impl Error {
    /// The completion code, where the adapter gave one or where there is one for the mistake.
    ///
    /// ```
    /// use portcullis::{Error, Status};
    /// assert_eq!(Error::QueueFull.status(), Some(Status::E_NO_RESOURCES));
    /// ```
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Io(error) => Some(error.status),
            Self::QueueFull => Some(Status::E_NO_RESOURCES),
            Self::QueueDown => Some(Status::E_QUEUE_STATE),
            Self::Argument(_) => Some(Status::E_PARAM),
            Self::Transport(TransportError::Gone(_)) => Some(Status::E_PATH),
            Self::Connect { .. } | Self::Transport(_) | Self::Os { .. } | Self::Protocol(_) => None,
        }
    }

    /// The device's own status where the device failed a request (NVMe: status code type in bits 8..11, status code in
    /// bits 0..8).
    ///
    /// ```
    /// assert_eq!(portcullis::Error::QueueFull.device_status(), None);
    /// ```
    pub fn device_status(&self) -> Option<u32> {
        match self {
            Self::Io(error) if error.status == Status::E_DEVICE => Some(error.device_status),
            _ => None,
        }
    }

    /// Whether the adapter is gone.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, Self::Transport(TransportError::Gone(_)))
    }

    pub(crate) fn os(what: &'static str, source: impl Into<io::Error>) -> Self {
        Self::Os { what, source: source.into() }
    }
}

/// What [`std::io`] calls it, with the error inside.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error.status() {
            Some(Status::E_NO_RESOURCE) => io::ErrorKind::NotFound,
            Some(Status::E_EXISTS) => io::ErrorKind::AlreadyExists,
            Some(Status::E_AUTH | Status::E_ACCESS) => io::ErrorKind::PermissionDenied,
            Some(Status::E_NO_RESOURCES) => io::ErrorKind::StorageFull,
            Some(Status::E_BUSY_TIMEOUT | Status::E_RESERVATION) => io::ErrorKind::ResourceBusy,
            Some(Status::E_DEADLINE) => io::ErrorKind::TimedOut,
            Some(Status::E_PARAM | Status::E_ALIGN) => io::ErrorKind::InvalidInput,
            Some(Status::E_BOUNDS) => io::ErrorKind::UnexpectedEof,
            Some(Status::E_PATH) => io::ErrorKind::BrokenPipe,
            Some(Status::E_OPCODE) => io::ErrorKind::Unsupported,
            _ => match &error {
                Error::Connect { source, .. } | Error::Os { source, .. } => source.kind(),
                _ => io::ErrorKind::Other,
            },
        };
        Self::new(kind, error)
    }
}

impl From<Refused> for Error {
    /// Gives up the request and its buffer.
    fn from(refused: Refused) -> Self {
        refused.error
    }
}

fn connect_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "no socket is there: start an adapter (`portcullis serve --device URI --socket PATH`) or name its socket in \
             PORTCULLIS_SOCKET"
        }
        io::ErrorKind::PermissionDenied => {
            "this user may not connect: ask the administrator for the socket's group (`ls -l` on the path shows it)"
        }
        io::ErrorKind::ConnectionRefused => {
            "a socket is there and nobody listens: the adapter has ended; start it again"
        }
        _ => "see that the path names the control socket of a running adapter",
    }
}

/// A request that the adapter or the device failed. It failed alone: no other request is affected.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let adapter = adapter::Embedded::open("emu:16M")?;
/// # let session = adapter.session()?;
/// # session.create_volume("v", 1 << 20)?;
/// # let volume = session.open("v", portcullis::Access::READ)?;
/// let mut queue = session.queue(8)?;
/// let end = volume.size();
/// let error = queue.read_at(&volume, end, &mut [0; 4096]).unwrap_err();
/// let portcullis::Error::Io(error) = error else { panic!("{error}") };
/// assert_eq!(error.status, portcullis::Status::E_BOUNDS);
/// assert_eq!(error.offset, end);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoError {
    /// The first check that failed, or E_DEVICE.
    pub status: Status,
    /// The device's own status where `status` is E_DEVICE.
    pub device_status: u32,
    /// One of [`wire::layout::opcode`].
    pub opcode: u8,
    /// Bytes from the volume's start.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

impl std::error::Error for IoError {}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, device_status, opcode, offset, length } = *self;
        let name = operation_name(opcode);
        match opcode {
            opcode::FLUSH | opcode::CANCEL => write!(f, "{status}: {name}")?,
            _ => write!(f, "{status}: {name} of {length} bytes at offset {offset}")?,
        }
        write!(f, ": {}", explain(status))?;
        if status == Status::E_DEVICE {
            write!(f, " (its status: sct {:x}h sc {:02x}h)", device_status >> 8 & 7, device_status & 0xff)?;
        }
        Ok(())
    }
}

fn operation_name(opcode: u8) -> &'static str {
    match opcode {
        opcode::READ => "read",
        opcode::WRITE => "write",
        opcode::FLUSH => "flush",
        opcode::WRITE_ZEROES => "write zeroes",
        opcode::DEALLOCATE => "deallocate",
        opcode::COMPARE => "compare",
        opcode::CANCEL => "cancel",
        opcode::WRITE_BYTES => "write of bytes",
        opcode::APPEND => "append",
        opcode::MANAGE => "management request",
        _ => "unknown operation",
    }
}

/// What a code means for the one who gets it, and what to do.
fn explain(status: Status) -> &'static str {
    match status {
        Status::OK => "done",
        Status::E_QUEUE_STATE => "the queue is in the error state; make a new one",
        Status::E_OPCODE => "the adapter does not know the operation or one of its flags",
        Status::E_KEY_RANGE | Status::E_SEGMENT | Status::E_ENTRY_INVALID | Status::E_KEY_INSTANCE => {
            "the grant is not valid any more (closed, revoked, or its volume deleted); open the volume again"
        }
        Status::E_PD_MISMATCH => "the grant belongs to another session; open the volume in this one",
        Status::E_ACCESS => {
            "the grant does not allow the operation; open the volume with the rights it needs"
        }
        Status::E_BOUNDS => "the range is empty or goes beyond the volume; compare it with Volume::size()",
        Status::E_ALIGN => "offset and length must be multiples of Volume::block_size()",
        Status::E_LOCAL_MEM => {
            "the buffer's memory does not cover the request, its rights do not, or it is not registered in this session"
        }
        Status::E_DEVICE => "the device failed it",
        Status::E_FLUSHED => {
            "the queue went to the error state before it was done; make a new queue and try again"
        }
        Status::E_NO_RESOURCES => "a limited resource ran out; try again with less in flight",
        Status::E_PATH => "the device or the adapter is lost",
        Status::E_CANCELLED => "it was cancelled before the device had it",
        Status::E_DEADLINE => "its deadline passed before the device had it",
        Status::E_NOT_FOUND => "no request with that ticket is waiting or running; it has ended already",
        Status::E_OUTCOME_UNKNOWN => {
            "the adapter ended before it answered; it was done whole, in part or not at all: read what is there"
        }
        Status::E_MISCOMPARE => "the blocks differ from the buffer",
        Status::E_HOLE => {
            "part of the file has no blocks and reads as zeros; File::read_at fills them in, File::extensions tells where"
        }
        _ => "the adapter gave no further word",
    }
}

/// A request that [`crate::Queue::prepare`] did not take, with its buffer inside so that nothing is lost.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let adapter = adapter::Embedded::open("emu:16M")?;
/// # let session = adapter.session()?;
/// # session.create_volume("v", 1 << 20)?;
/// # let volume = session.open("v", portcullis::Access::WRITE)?;
/// use portcullis::Request;
/// let mut queue = session.queue(2)?;
/// queue.prepare(Request::flush(&volume))?;
/// queue.prepare(Request::flush(&volume))?;
/// let buffer = session.buffer(4096)?;
/// let refused = queue.prepare(Request::write(&volume, 0, buffer)).unwrap_err();
/// assert!(matches!(refused.error, portcullis::Error::QueueFull));
/// let buffer = refused.request.into_buffer().expect("it had one");
/// assert_eq!(buffer.len(), 4096);
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Refused {
    /// Why.
    pub error: Error,
    /// The request as it was given.
    pub request: Request,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_say_what_which_value_and_what_to_do() {
        let error = IoError {
            status: Status::E_BOUNDS,
            device_status: 0,
            opcode: opcode::READ,
            offset: 8192,
            length: 4096,
        };
        let text = Error::from(error).to_string();
        for part in ["E_BOUNDS", "read", "4096 bytes", "offset 8192", "Volume::size()"] {
            assert!(text.contains(part), "{text}");
        }
        let error = IoError { status: Status::E_DEVICE, device_status: 0x281, ..error };
        assert!(error.to_string().ends_with("sct 2h sc 81h)"), "{error}");
        assert_eq!(Error::from(error).device_status(), Some(0x281));
    }

    #[test]
    fn a_missing_socket_names_the_command_that_mends_it() {
        let source = io::Error::from(io::ErrorKind::NotFound);
        let text = Error::Connect { path: "/run/x.sock".into(), source }.to_string();
        assert!(text.contains("/run/x.sock") && text.contains("portcullis serve"), "{text}");
    }

    #[test]
    fn a_refusal_stays_small_enough_for_the_hot_path() {
        assert!(size_of::<Refused>() <= 128);
    }
}
