//! An application without the library: it can stop in the middle of anything.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use portcullis::wire;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use wire::control::{GrantInfo, MAX_MESSAGE, Reply, Request};
use wire::doorbell::Bell;
use wire::frame::{decode_reply, encode};
use wire::layout::{CompletionEntry, Entries, SubmissionEntry};
use wire::ring::ApplicationEnd;
use wire::shm::SharedMemory;
use wire::socket::{Blocking, ReceiveError, receive, send};
use wire::view::QueueView;

use crate::system::until;

/// A connection to the control socket.
pub(super) struct Wire {
    pub(super) socket: OwnedFd,
    next: u32,
    /// Replies that came while another was waited for.
    early: Vec<(u32, Reply, Vec<OwnedFd>)>,
}

impl Wire {
    /// Connected; nothing said.
    pub(super) fn dial(path: &Path) -> std::io::Result<Self> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self { socket, next: 1, early: Vec::new() })
    }

    /// Connected and welcomed.
    pub(super) fn open(path: &Path) -> Self {
        let mut wire = Self::dial(path).expect("the adapter listens");
        let (reply, _) = wire.ask(&Self::hello(), &[]);
        assert!(matches!(reply, Reply::Welcome(_)), "{reply:?}");
        wire
    }

    pub(super) fn hello() -> Request {
        Request::Hello { min_version: wire::VERSION, max_version: wire::VERSION }
    }

    /// Sends a request and does not wait for what comes of it.
    pub(super) fn say(&mut self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> u32 {
        let id = self.next;
        self.next += 1;
        send(&self.socket, &encode(id, request).unwrap(), descriptors, Blocking::Wait).unwrap();
        id
    }

    /// The next reply; `None` at the end of the connection.
    pub(super) fn hear(&self) -> Option<(u32, Reply, Vec<OwnedFd>)> {
        let mut buffer = vec![0; MAX_MESSAGE];
        match receive(&self.socket, &mut buffer, Blocking::Wait) {
            Ok((length, descriptors)) => {
                let (id, reply) = decode_reply(&buffer[..length]).unwrap();
                Some((id, reply, descriptors))
            }
            Err(ReceiveError::Closed) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// The reply to what was said as `id`.
    pub(super) fn reply_to(&mut self, id: u32) -> (Reply, Vec<OwnedFd>) {
        loop {
            if let Some(at) = self.early.iter().position(|(to, ..)| *to == id) {
                let (_, reply, descriptors) = self.early.swap_remove(at);
                return (reply, descriptors);
            }
            let heard = self.hear().expect("the connection is open");
            self.early.push(heard);
        }
    }

    /// Sends a request and waits for its reply.
    pub(super) fn ask(&mut self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> (Reply, Vec<OwnedFd>) {
        let asked = self.say(request, descriptors);
        self.reply_to(asked)
    }

    /// Returns when the adapter has begun with all that was said before: it takes packets in their order, and answers this
    /// one at once.
    pub(super) fn fence(&mut self) {
        let (reply, _) = self.ask(&Request::Statistics, &[]);
        assert!(matches!(reply, Reply::Statistics(_)), "{reply:?}");
    }

    /// Bytes of replies that nobody has read yet.
    pub(super) fn unread(&self) -> u64 {
        rustix::io::ioctl_fionread(&self.socket).unwrap()
    }

    pub(super) fn create_volume(&mut self, name: &str, bytes: u64) {
        let (reply, _) = self.ask(&Request::CreateVolume { name: name.to_owned(), bytes }, &[]);
        assert!(matches!(reply, Reply::Volume(_)), "{reply:?}");
    }

    pub(super) fn open_volume(&mut self, name: &str, access: u8) -> GrantInfo {
        match self.ask(&Request::OpenVolume { name: name.to_owned(), access }, &[]).0 {
            Reply::Grant(grant) => grant,
            other => panic!("{other:?}"),
        }
    }
}

/// Memory that is, or may be, registered.
pub(super) struct Memory {
    pub(super) shared: SharedMemory,
    pub(super) file: OwnedFd,
}

impl Memory {
    pub(super) fn new(bytes: usize) -> Self {
        let (shared, file) = SharedMemory::create("victim", bytes).unwrap();
        Self { shared, file }
    }

    pub(super) fn request(&self) -> Request {
        Request::RegisterMemory { length: self.shared.len() as u64, access: 3 }
    }

    pub(super) fn register(&self, wire: &mut Wire) -> u64 {
        match wire.ask(&self.request(), &[self.file.as_fd()]).0 {
            Reply::Region { region } => region,
            other => panic!("{other:?}"),
        }
    }
}

/// A processing queue.
pub(super) struct Ring {
    pub(super) end: ApplicationEnd<QueueView>,
    pub(super) bell: Bell,
    pub(super) number: u32,
}

/// The memory of a queue that nobody has been told of.
pub(super) fn queue_memory(entries: u32) -> (ApplicationEnd<QueueView>, OwnedFd) {
    let entries = Entries::new(entries).unwrap();
    let (memory, file) = SharedMemory::create("victim-queue", entries.bytes()).unwrap();
    let view = QueueView::create(Arc::new(memory), entries).unwrap();
    (ApplicationEnd::new(view, entries), file)
}

impl Ring {
    pub(super) fn create(wire: &mut Wire, entries: u32) -> Self {
        let (end, file) = queue_memory(entries);
        match wire.ask(&Request::CreateQueue { entries }, &[file.as_fd()]) {
            (Reply::Queue { queue }, mut descriptors) => {
                let bell = Bell::adopt(descriptors.pop().unwrap()).unwrap();
                Self { end, bell, number: queue }
            }
            (other, _) => panic!("{other:?}"),
        }
    }

    /// Writes `count` copies of an entry, numbered.
    pub(super) fn push(&mut self, entry: &SubmissionEntry, count: u32) {
        for i in 0..count {
            self.end.push(&SubmissionEntry { user_data: u64::from(i), ..*entry }).unwrap();
        }
    }

    pub(super) fn ring(&mut self) {
        if self.end.ring() {
            self.bell.ring().unwrap();
        }
    }

    pub(super) fn wait(&mut self) -> CompletionEntry {
        let mut done = None;
        until("a completion", || {
            done = self.end.pop();
            done.is_some()
        });
        done.unwrap()
    }
}

/// A session with a volume, memory and a queue.
pub(super) struct Application {
    pub(super) wire: Wire,
    pub(super) grant: GrantInfo,
    /// Mapped as long as this lives.
    _memory: Memory,
    pub(super) region: u64,
    pub(super) ring: Ring,
}

impl Application {
    /// Bytes of its memory.
    pub(super) const MEMORY: usize = 1 << 20;

    pub(super) fn new(path: &Path, volume: &str, access: u8, entries: u32) -> Self {
        let mut wire = Wire::open(path);
        let grant = wire.open_volume(volume, access);
        let memory = Memory::new(Self::MEMORY);
        let region = memory.register(&mut wire);
        let ring = Ring::create(&mut wire, entries);
        Self { wire, grant, _memory: memory, region, ring }
    }

    /// A request for `bytes` at the start.
    pub(super) fn request(&self, opcode: u8, bytes: u32) -> SubmissionEntry {
        SubmissionEntry {
            opcode,
            key: self.grant.key,
            length: bytes,
            region: self.region,
            ..SubmissionEntry::default()
        }
    }
}
