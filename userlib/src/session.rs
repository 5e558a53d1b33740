//! A session with an adapter: control messages, and the making of everything else.

use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wire::control::{DeviceInfo, HealthInfo, Limits, Reply, Request, Statistics, Subject, VolumeInfo};

use crate::access::Access;
use crate::error::Error;
use crate::files::Files;
use crate::link::{ConnectOptions, Link};
use crate::memory::{Buffer, Memory, MemoryAccess, unexpected};
use crate::queue::Queue;
use crate::transport::Transport;
use crate::volume::Volume;

/// What taking rights away did to grants that were open.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let adapter = adapter::Embedded::open("emu:16M")?;
/// # let session = adapter.session()?;
/// session.create_volume("v", 1 << 20)?;
/// let revoked: portcullis::Revoked = session.delete_volume("v")?;
/// assert_eq!(revoked.grants, 0, "nobody had it open");
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Revoked {
    /// Grants that lost a right.
    pub grants: u32,
    /// Of them, those whose I/O still drains: none of it can start, and nothing of theirs is used again before it ended.
    pub draining: u32,
}

/// A connection to an adapter. Cheap to clone; the connection ends when the last clone and everything made from it
/// (volumes, memory, queues) is dropped.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let adapter = adapter::Embedded::open("emu:16M")?;
/// # let session = adapter.session()?;
/// use portcullis::Access;
/// session.create_volume("notes", 1 << 20)?;
/// let volume = session.open("notes", Access::READ_WRITE)?;
/// let mut queue = session.queue(32)?;
/// queue.write_at(&volume, 0, &[42; 4096])?;
/// let mut back = [0; 4096];
/// queue.read_at(&volume, 0, &mut back)?;
/// assert_eq!(back, [42; 4096]);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Session {
    link: Arc<Link>,
    /// By which management requests go; without, they go by the transport.
    desk: Option<Arc<Desk>>,
}

/// A queue that several threads use.
pub(crate) struct Desk(Mutex<Queue>);

impl Desk {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Queue> {
        // A panic in a call leaves the queue with requests in flight that nobody waits for: it knows what to do with them.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// Connects to the adapter that listens on the Unix socket `path`; [`crate::default_socket_path`] says where that
    /// usually is.
    ///
    /// # Errors
    /// [`Error::Connect`] says whether there is no socket, nobody behind it, or no permission; [`Error::Refused`] with
    /// E_VERSION or E_AUTH comes from the adapter.
    ///
    /// ```
    /// let error = portcullis::Session::connect("/nowhere/portcullis.sock").unwrap_err();
    /// assert!(error.to_string().contains("portcullis serve"));
    /// ```
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, Error> {
        ConnectOptions::new().connect(path)
    }

    /// The same as `options` say: with patience, the session goes on when the adapter is replaced.
    ///
    /// # Errors
    /// As [`Session::connect`].
    ///
    /// ```
    /// use portcullis::{ConnectOptions, Session};
    /// let options = ConnectOptions::new().patience(std::time::Duration::from_secs(30));
    /// let error = Session::connect_with("/nowhere/portcullis.sock", &options).unwrap_err();
    /// assert!(error.to_string().contains("portcullis serve"));
    /// ```
    pub fn connect_with(path: impl AsRef<Path>, options: &ConnectOptions) -> Result<Self, Error> {
        options.connect(path)
    }

    /// A session over any transport, an adapter embedded in this process for example.
    ///
    /// # Errors
    /// As [`Session::connect`], without the socket's.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use portcullis::{Session, Transport, TransportError, wire::control};
    /// struct Closed;
    /// impl Transport for Closed {
    ///     fn call(
    ///         &mut self,
    ///         _: &control::Request,
    ///         _: &[std::os::fd::BorrowedFd<'_>],
    ///     ) -> Result<(control::Reply, Vec<std::os::fd::OwnedFd>), TransportError> {
    ///         Err(TransportError::Gone("closed".to_owned()))
    ///     }
    /// }
    /// let error = Session::with_transport(Box::new(Closed)).unwrap_err();
    /// assert_eq!(error.status(), Some(portcullis::Status::E_PATH));
    /// # Ok(()) }
    /// ```
    pub fn with_transport(transport: Box<dyn Transport>) -> Result<Self, Error> {
        Ok(Self::over(Arc::new(Link::open(transport)?)))
    }

    pub(crate) fn over(link: Arc<Link>) -> Self {
        Self { link, desk: None }
    }

    /// Sends a request by the session's queue, if it has one and the queue carries it, else by its transport.
    pub(crate) fn ask(&self, request: &Request) -> Result<Reply, Error> {
        match &self.desk {
            Some(desk) if request.goes_by_queue() => desk.lock().call(request),
            _ => self.link.call(request),
        }
    }

    /// For requests that are answered by Done.
    pub(crate) fn done(&self, request: &Request) -> Result<(), Error> {
        match self.ask(request)? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// The queue by which its calls go.
    pub(crate) fn desk(&self) -> Option<&Desk> {
        self.desk.as_deref()
    }

    /// The same session, whose calls go by a processing queue of `entries` requests: while the adapter is awake they make no
    /// system call. Threads that call at the same time wait for one another, as they do on the socket. What needs
    /// descriptors (queues, memory) goes by the socket all the same.
    ///
    /// # Errors
    /// As [`Session::queue`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// let managed = session.managed(4)?;
    /// managed.create_volume("v", 1 << 20)?;
    /// assert_eq!(managed.volume_info("v")?, session.volume_info("v")?);
    /// # Ok(()) }
    /// ```
    pub fn managed(&self, entries: u32) -> Result<Self, Error> {
        let queue = self.queue(entries)?;
        Ok(Self { link: self.link.clone(), desk: Some(Arc::new(Desk(Mutex::new(queue)))) })
    }

    /// The way to files in volumes, with a queue of its own. See [`Files`].
    ///
    /// # Errors
    /// As [`Session::queue`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:32M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("notes", 16 << 20)?;
    /// # session.files()?.format("notes", false)?;
    /// let files = session.files()?;
    /// files.create("notes:/log")?;
    /// assert_eq!(files.metadata("notes:/log")?.length, 0);
    /// # Ok(()) }
    /// ```
    pub fn files(&self) -> Result<Files, Error> {
        Files::new(self)
    }

    /// The session's number, as the adapter's log and statistics show it.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// println!("session {} in the adapter's log", session.number());
    /// # Ok(()) }
    /// ```
    pub fn number(&self) -> u64 {
        self.link.welcome().session
    }

    /// What this session may use.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// let session = adapter.session()?;
    /// assert!(session.number() > 0 && session.limits().queues > 0);
    /// # Ok(()) }
    /// ```
    pub fn limits(&self) -> Limits {
        self.link.welcome().limits
    }

    /// Whether the adapter runs on this session's own threads.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// assert!(session.is_embedded());
    /// # Ok(()) }
    /// ```
    pub fn is_embedded(&self) -> bool {
        self.link.embedded().is_some()
    }

    /// Opens a volume for `access`, all of which the volume's access list must allow.
    ///
    /// # Errors
    /// [`Error::Refused`]: E_NO_RESOURCE for an unknown name, E_AUTH for rights that the list does not give.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// session.create_volume("v", 1 << 20)?;
    /// let volume = session.open("v", portcullis::Access::READ)?;
    /// assert_eq!(volume.size(), 1 << 20);
    /// # Ok(()) }
    /// ```
    pub fn open(&self, name: &str, access: Access) -> Result<Volume, Error> {
        self.open_by(&Request::OpenVolume { name: name.to_owned(), access: access.bits() })
    }

    /// The same for the only session that may write to the volume meanwhile; `access` has a right to write or to trim. When
    /// the adapter is replaced, writes without an answer can be made again on such a volume, and on no other.
    ///
    /// # Errors
    /// As [`Session::open`]; E_RESERVATION while another session may write to it.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let (session, another) = (adapter.session()?, adapter.session()?);
    /// use portcullis::{Access, Status};
    /// session.create_volume("v", 1 << 20)?;
    /// let volume = session.open_exclusive("v", Access::READ_WRITE)?;
    /// let refused = another.open("v", Access::WRITE).unwrap_err();
    /// assert_eq!(refused.status(), Some(Status::E_RESERVATION));
    /// assert!(another.open("v", Access::READ).is_ok());
    /// # Ok(()) }
    /// ```
    pub fn open_exclusive(&self, name: &str, access: Access) -> Result<Volume, Error> {
        self.open_by(&Request::OpenExclusive { name: name.to_owned(), access: access.bits() })
    }

    fn open_by(&self, request: &Request) -> Result<Volume, Error> {
        match self.ask(request)? {
            Reply::Grant(grant) => Volume::new(self.clone(), &grant),
            other => Err(unexpected(&other)),
        }
    }

    /// Makes a queue of `entries` requests, a power of two from 2 to 4096.
    ///
    /// # Errors
    /// [`Error::Argument`] for another number; [`Error::Refused`] with E_NO_RESOURCES at the session's limit.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// let queue = session.queue(64)?;
    /// assert_eq!((queue.entries(), queue.in_flight()), (64, 0));
    /// assert!(session.queue(65).is_err());
    /// # Ok(()) }
    /// ```
    pub fn queue(&self, entries: u32) -> Result<Queue, Error> {
        Queue::create(&self.link, entries)
    }

    /// Registers `bytes` of new, zeroed memory, rounded up to whole pages, as one region.
    ///
    /// Sessions have few regions and a limit of pinned bytes ([`Session::limits`]): register once and cut.
    ///
    /// # Errors
    /// [`Error::Refused`] with E_NO_RESOURCES at a limit.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// let memory = session.register(1 << 20, portcullis::MemoryAccess::Both)?;
    /// let buffers = memory.buffers(4096, 4096)?;
    /// assert_eq!(buffers.len(), 256);
    /// # Ok(()) }
    /// ```
    pub fn register(&self, bytes: usize, access: MemoryAccess) -> Result<Memory, Error> {
        Memory::register(&self.link, bytes, access)
    }

    /// One buffer of `bytes` in a region of its own, for both directions. For more than a few, see
    /// [`Session::register`].
    ///
    /// # Errors
    /// As [`Session::register`]; [`Error::Argument`] for 0 bytes.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// assert_eq!(session.buffer(512)?.len(), 512);
    /// # Ok(()) }
    /// ```
    pub fn buffer(&self, bytes: usize) -> Result<Buffer, Error> {
        if bytes == 0 {
            return Err(Error::Argument(
                "a buffer of 0 bytes is of no use: ask for one block at least".to_owned(),
            ));
        }
        Ok(self.register(bytes, MemoryAccess::Both)?.into_buffer().split_at(bytes).0)
    }

    /// Makes a volume of `bytes`, rounded up to whole allocation units, zeroed and owned by this user.
    ///
    /// # Errors
    /// [`Error::Refused`]: E_EXISTS, E_NO_RESOURCES without room, E_PARAM for a name or size that cannot be, E_AUTH.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// let info = session.create_volume("logs", 1 << 20)?;
    /// assert!(info.name == "logs" && info.bytes >= 1 << 20);
    /// # Ok(()) }
    /// ```
    pub fn create_volume(&self, name: &str, bytes: u64) -> Result<VolumeInfo, Error> {
        self.volume_reply(&Request::CreateVolume { name: name.to_owned(), bytes })
    }

    /// Deletes a volume. Open grants over it are revoked first.
    ///
    /// # Errors
    /// [`Error::Refused`]: E_NO_RESOURCE, E_AUTH.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// session.create_volume("old", 1 << 20)?;
    /// session.delete_volume("old")?;
    /// assert!(session.open("old", portcullis::Access::READ).is_err());
    /// # Ok(()) }
    /// ```
    pub fn delete_volume(&self, name: &str) -> Result<Revoked, Error> {
        self.revoked_reply(&Request::DeleteVolume { name: name.to_owned() })
    }

    /// Grows or shrinks a volume. Open grants follow; what is cut off is unreachable when this returns.
    ///
    /// # Errors
    /// [`Error::Refused`]: E_NO_RESOURCE, E_NO_RESOURCES, E_BUSY_TIMEOUT, E_AUTH.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// session.create_volume("v", 1 << 20)?;
    /// assert_eq!(session.resize_volume("v", 3 << 20)?.bytes, 3 << 20);
    /// # Ok(()) }
    /// ```
    pub fn resize_volume(&self, name: &str, bytes: u64) -> Result<VolumeInfo, Error> {
        self.volume_reply(&Request::ResizeVolume { name: name.to_owned(), bytes })
    }

    /// Renames a volume. Open grants stay.
    ///
    /// # Errors
    /// [`Error::Refused`]: E_NO_RESOURCE, E_EXISTS, E_AUTH.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// session.create_volume("a", 1 << 20)?;
    /// session.rename_volume("a", "b")?;
    /// assert_eq!(session.volume_info("b")?.name, "b");
    /// # Ok(()) }
    /// ```
    pub fn rename_volume(&self, from: &str, to: &str) -> Result<(), Error> {
        match self.ask(&Request::RenameVolume { from: from.to_owned(), to: to.to_owned() })? {
            Reply::Done | Reply::Volume(_) => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// The volumes in the order of their names, fetched as they are iterated. Their access lists are left out:
    /// [`Session::volume_info`] has them.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// session.create_volume("b", 1 << 20)?;
    /// session.create_volume("a", 1 << 20)?;
    /// let names = session.volumes().map(|volume| Ok(volume?.name)).collect::<Result<Vec<_>, portcullis::Error>>()?;
    /// assert_eq!(names, ["a", "b"]);
    /// # Ok(()) }
    /// ```
    pub fn volumes(&self) -> Volumes<'_> {
        Volumes { session: self, page: VecDeque::new(), after: None, more: true }
    }

    /// One volume with its access list.
    ///
    /// # Errors
    /// [`Error::Refused`] with E_NO_RESOURCE.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// session.create_volume("v", 1 << 20)?;
    /// assert_eq!(session.volume_info("v")?.grants, 0);
    /// # Ok(()) }
    /// ```
    pub fn volume_info(&self, name: &str) -> Result<VolumeInfo, Error> {
        self.volume_reply(&Request::ShowVolume { name: name.to_owned() })
    }

    /// Sets what `subject` may do with a volume; [`Access::NONE`] removes the entry. Open grants that lose rights by it
    /// are revoked before this returns.
    ///
    /// # Errors
    /// [`Error::Refused`]: E_NO_RESOURCE, E_AUTH.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// use portcullis::{Access, Subject};
    /// session.create_volume("v", 1 << 20)?;
    /// session.set_access("v", Subject::Everyone, Access::READ)?;
    /// assert!(session.volume_info("v")?.access.contains(&(Subject::Everyone, Access::READ.bits())));
    /// # Ok(()) }
    /// ```
    pub fn set_access(&self, name: &str, subject: Subject, access: Access) -> Result<Revoked, Error> {
        self.revoked_reply(&Request::SetAccess { name: name.to_owned(), subject, access: access.bits() })
    }

    /// The device behind the adapter.
    ///
    /// # Errors
    /// [`Error::Transport`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// let device = session.device_info()?;
    /// assert_eq!(device.blocks * u64::from(device.block_size), 16 << 20);
    /// # Ok(()) }
    /// ```
    pub fn device_info(&self) -> Result<DeviceInfo, Error> {
        match self.ask(&Request::ShowDevice)? {
            Reply::Device(device) => Ok(device),
            other => Err(unexpected(&other)),
        }
    }

    /// What the device behind the adapter says of its health, with its latest errors.
    ///
    /// # Errors
    /// [`Error::Refused`]: E_AUTH for who does not administer, E_OPCODE where the device keeps no health log, E_DEVICE while
    /// it cannot be read.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// let health = session.device_health()?;
    /// assert_eq!((health.critical_warning, health.media_errors), (0, 0));
    /// # Ok(()) }
    /// ```
    pub fn device_health(&self) -> Result<HealthInfo, Error> {
        match self.ask(&Request::ShowHealth)? {
            Reply::Health(health) => Ok(*health),
            other => Err(unexpected(&other)),
        }
    }

    /// Counters and sessions of the adapter.
    ///
    /// # Errors
    /// [`Error::Transport`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// assert!(session.statistics()?.sessions.iter().any(|other| other.session == session.number()));
    /// # Ok(()) }
    /// ```
    pub fn statistics(&self) -> Result<Statistics, Error> {
        match self.ask(&Request::Statistics)? {
            Reply::Statistics(statistics) => Ok(statistics),
            other => Err(unexpected(&other)),
        }
    }

    /// Sends any control message as it is and gives the reply as it is, also where that is an error: for those who write
    /// tools and tests.
    ///
    /// # Errors
    /// [`Error::Transport`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// use portcullis::wire::control::{Reply, Request};
    /// let (reply, _) = session.call(&Request::Close { key: 99 }, &[])?;
    /// assert!(matches!(reply, Reply::Error { .. }));
    /// # Ok(()) }
    /// ```
    pub fn call(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), Error> {
        self.link.exchange(request, descriptors)
    }

    /// How often it went on with another adapter; always 0 without patience.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// assert_eq!(adapter.session()?.restarts(), 0);
    /// # Ok(()) }
    /// ```
    pub fn restarts(&self) -> u32 {
        self.link.life()
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    fn volume_reply(&self, request: &Request) -> Result<VolumeInfo, Error> {
        match self.ask(request)? {
            Reply::Volume(volume) => Ok(volume),
            other => Err(unexpected(&other)),
        }
    }

    fn revoked_reply(&self, request: &Request) -> Result<Revoked, Error> {
        match self.ask(request)? {
            Reply::Done => Ok(Revoked::default()),
            Reply::Revoked { grants, draining } => Ok(Revoked { grants, draining }),
            other => Err(unexpected(&other)),
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("number", &self.number())
            .field("embedded", &self.is_embedded())
            .finish_non_exhaustive()
    }
}

/// From [`Session::volumes`]. After an error it ends.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let adapter = adapter::Embedded::open("emu:16M")?;
/// # let session = adapter.session()?;
/// let mut volumes = session.volumes();
/// assert!(volumes.next().is_none());
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Volumes<'a> {
    session: &'a Session,
    page: VecDeque<VolumeInfo>,
    after: Option<String>,
    more: bool,
}

impl Volumes<'_> {
    fn fetch(&mut self) -> Result<(), Error> {
        let request = Request::ListVolumes { after: self.after.clone() };
        let (volumes, more) = match self.session.ask(&request)? {
            Reply::Volumes { volumes, more } => (volumes, more),
            other => return Err(unexpected(&other)),
        };
        // Each page must lead on, or a broken adapter would keep us here for ever.
        let last = volumes.last().map(|volume| volume.name.clone());
        if more && last <= self.after {
            return Err(Error::Protocol("a page of volumes does not go on after the last one".to_owned()));
        }
        self.after = last.or(self.after.take());
        self.more = more;
        self.page.extend(volumes);
        Ok(())
    }
}

impl Iterator for Volumes<'_> {
    type Item = Result<VolumeInfo, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.page.is_empty() && self.more {
            if let Err(error) = self.fetch() {
                self.more = false;
                return Some(Err(error));
            }
        }
        self.page.pop_front().map(Ok)
    }
}
