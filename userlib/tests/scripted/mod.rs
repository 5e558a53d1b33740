//! An adapter with files in memory, in this process, that a test can tell to lie.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use portcullis::{EmbeddedAdapter, Files, Session, Status, Transport, TransportError};
use wire::control::{Limits, Reply, Request, VolumeInfo, Welcome};
use wire::doorbell::Bell;
use wire::files::{
    Create, Cursor, DirectoryEntry, ExtensionInfo, FileAttributes, FileInfo, FileKind, FileName, FileTarget,
    OpenFile, Time,
};
use wire::frame::{decode_body, encode_body};
use wire::layout::{Entries, SubmissionEntry, opcode};
use wire::ring::{AdapterEnd, Completion};
use wire::shm::SharedMemory;
use wire::view::QueueView;

/// Bytes of a block.
pub(crate) const BLOCK: u64 = 512;
/// Entries of a directory that one reply carries.
const PAGE: usize = 3;

#[derive(Clone)]
struct Node {
    kind: FileKind,
    mode: u16,
    /// As long as its room.
    bytes: Vec<u8>,
    length: u64,
}

/// See the module.
pub(crate) struct Disk {
    nodes: BTreeMap<Vec<u8>, Node>,
    open: HashMap<u64, Vec<u8>>,
    next: u64,
    regions: HashMap<u64, Arc<SharedMemory>>,
    queues: HashMap<u32, AdapterEnd<QueueView>>,
    /// No file gets more room.
    pub(crate) most: u64,
    /// What came by the socket, and what by queues.
    pub(crate) by_socket: Vec<String>,
    pub(crate) by_queue: Vec<String>,
    /// Entries of each operation.
    pub(crate) entries: HashMap<u8, usize>,
    /// Changes completions before they are posted.
    pub(crate) lie: Option<fn(&SubmissionEntry, &mut Completion)>,
    /// Changes replies to management requests.
    pub(crate) twist: Option<fn(&Request, Reply) -> Reply>,
    /// Nothing is answered any more.
    pub(crate) dead: bool,
}

/// A connection to a [`Disk`].
#[derive(Clone)]
pub(crate) struct Line(pub(crate) Arc<Mutex<Disk>>);

impl Line {
    pub(crate) fn new() -> Self {
        let root = Node { kind: FileKind::Directory, mode: 0o755, bytes: Vec::new(), length: 0 };
        Self(Arc::new(Mutex::new(Disk {
            nodes: BTreeMap::from([(b"/".to_vec(), root)]),
            open: HashMap::new(),
            next: 1,
            regions: HashMap::new(),
            queues: HashMap::new(),
            most: 64 << 20,
            by_socket: Vec::new(),
            by_queue: Vec::new(),
            entries: HashMap::new(),
            lie: None,
            twist: None,
            dead: false,
        })))
    }

    pub(crate) fn session(&self) -> Session {
        Session::with_transport(Box::new(self.clone())).unwrap()
    }

    pub(crate) fn files(&self) -> Files {
        self.session().files().unwrap()
    }

    pub(crate) fn with<T>(&self, with: impl FnOnce(&mut Disk) -> T) -> T {
        with(&mut self.0.lock().unwrap())
    }

    /// How often requests of this name came by queues.
    pub(crate) fn asked(&self, name: &str) -> usize {
        self.with(|disk| disk.by_queue.iter().filter(|it| it.as_str() == name).count())
    }

    /// The bytes of a file, as they lie there.
    pub(crate) fn content(&self, path: &str) -> Vec<u8> {
        self.with(|disk| {
            let node = &disk.nodes[path.as_bytes()];
            node.bytes[..node.length as usize].to_vec()
        })
    }
}

fn name_of(request: &Request) -> String {
    let text = format!("{request:?}");
    text.split([' ', '(']).next().unwrap().to_owned()
}

fn refused(status: Status) -> Reply {
    Reply::Error { status, detail: "so it is".to_owned() }
}

impl Transport for Line {
    fn call(
        &mut self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), TransportError> {
        let mut disk = self.0.lock().unwrap();
        if disk.dead {
            return Err(TransportError::Gone("it has ended".to_owned()));
        }
        disk.by_socket.push(name_of(request));
        disk.next += 1;
        let number = disk.next;
        let reply = match request {
            Request::Hello { .. } => {
                let limits =
                    Limits { pinned_bytes: 1 << 30, regions: 64, queues: 9, grants: 64, outstanding: 9 };
                Reply::Welcome(Welcome {
                    version: wire::VERSION,
                    session: 1,
                    adapter: 1,
                    life: 1,
                    settled: true,
                    limits,
                })
            }
            Request::CreateQueue { entries } => {
                let entries = Entries::new(*entries).unwrap();
                let memory = SharedMemory::map(descriptors[0], entries.bytes()).unwrap();
                let view = QueueView::open(Arc::new(memory), entries).unwrap();
                disk.queues.insert(number as u32, AdapterEnd::new(view, entries));
                let bell = Bell::new().unwrap().duplicate().unwrap();
                return Ok((Reply::Queue { queue: number as u32 }, vec![bell]));
            }
            Request::RegisterMemory { length, .. } => {
                let memory = SharedMemory::map(descriptors[0], *length as usize).unwrap();
                disk.regions.insert(number, Arc::new(memory));
                Reply::Region { region: number }
            }
            Request::DestroyQueue { .. } | Request::ReleaseMemory { .. } => Reply::Done,
            other => disk.answer(other),
        };
        Ok((reply, Vec::new()))
    }

    fn embedded(&self) -> Option<Arc<dyn EmbeddedAdapter>> {
        Some(Arc::new(self.clone()))
    }

    fn check_alive(&mut self) -> Result<(), TransportError> {
        if self.with(|disk| disk.dead) {
            Err(TransportError::Gone("it has ended".to_owned()))
        } else {
            Ok(())
        }
    }
}

impl EmbeddedAdapter for Line {
    fn turn_for(&self, queue: u32) -> bool {
        let disk = &mut *self.0.lock().unwrap();
        let Some(mut end) = disk.queues.remove(&queue) else { return false };
        end.poll_doorbell().unwrap();
        let mut done = Vec::new();
        while let Some(entry) = end.take().unwrap() {
            if disk.dead {
                continue;
            }
            *disk.entries.entry(entry.opcode).or_default() += 1;
            let mut completion = disk.execute(&entry);
            disk.lie.into_iter().for_each(|lie| lie(&entry, &mut completion));
            done.push(completion);
        }
        if disk.dead {
            end.fail();
        }
        // Last come first: nothing may count on an order.
        done.iter().rev().for_each(|completion| end.complete(completion));
        disk.queues.insert(queue, end);
        !done.is_empty()
    }
}

impl Disk {
    fn execute(&mut self, entry: &SubmissionEntry) -> Completion {
        let &SubmissionEntry { user_data, offset, .. } = entry;
        let (length, at) = (entry.length as usize, entry.region_offset as usize);
        let memory = self.regions[&entry.region].clone();
        if entry.opcode == opcode::MANAGE {
            let mut body = vec![0; length];
            memory.copy_out(at, &mut body).unwrap();
            let request: Request = decode_body(&body).unwrap();
            self.by_queue.push(name_of(&request));
            let mut reply = self.answer(&request);
            if let Some(twist) = self.twist {
                reply = twist(&request, reply);
            }
            let mut room = vec![0; offset as usize];
            let bytes = encode_body(&reply, &mut room).unwrap();
            assert!(bytes <= request.reply_room(), "{request:?}");
            memory.copy_in(at, &room[..bytes]).unwrap();
            let status = if let Reply::Error { status, .. } = reply { status } else { Status::OK };
            return Completion { status, ..Completion::ok(user_data, bytes as u32) };
        }
        let Some(node) = self.open.get(&entry.key).and_then(|path| self.nodes.get_mut(path)) else {
            return Completion::failed(user_data, Status::E_KEY_INSTANCE);
        };
        let blocks = matches!(entry.opcode, opcode::READ | opcode::WRITE);
        assert!(
            !blocks || offset.is_multiple_of(BLOCK) && (length as u64).is_multiple_of(BLOCK),
            "{entry:?}"
        );
        assert!(blocks || length <= 64 << 10, "{entry:?}");
        if entry.opcode == opcode::READ {
            let bytes = node.length.saturating_sub(offset).min(length as u64);
            if bytes > 0 {
                memory.copy_in(at, &node.bytes[offset as usize..][..bytes as usize]).unwrap();
            }
            return Completion::ok(user_data, bytes as u32);
        }
        let append = entry.opcode == opcode::APPEND;
        let offset = if append { node.length } else { offset };
        let end = offset + length as u64;
        if end > node.bytes.len() as u64 {
            return Completion::failed(user_data, Status::E_NO_RESOURCES);
        }
        memory.copy_out(at, &mut node.bytes[offset as usize..end as usize]).unwrap();
        node.length = node.length.max(end);
        let value = if append { offset } else { 0 };
        Completion { value, ..Completion::ok(user_data, length as u32) }
    }

    fn answer(&mut self, request: &Request) -> Reply {
        match request {
            Request::CreateVolume { name, .. } | Request::ShowVolume { name } => Reply::Volume(VolumeInfo {
                name: name.clone(),
                bytes: 1,
                owner: 0,
                access: Vec::new(),
                extents: 1,
                grants: 0,
                limits: wire::control::Rates::default(),
            }),
            Request::OpenFile(open) => self.open(open),
            Request::Close { key } => {
                self.open.remove(key).map_or(refused(Status::E_KEY_INSTANCE), |_| Reply::Done)
            }
            Request::QueryFile { key } => self.info(*key, |_, _| true),
            Request::SyncFile { .. } | Request::SyncFiles { .. } => Reply::Done,
            Request::GrowFile { key, bytes, .. } => self.info(*key, |node, most| {
                let room = bytes.next_multiple_of(BLOCK);
                let room = usize::try_from(room).unwrap_or(usize::MAX).max(node.bytes.len());
                let fits = room as u64 <= most;
                if fits {
                    node.bytes.resize(room, 0);
                }
                fits
            }),
            Request::SetLength { key, bytes } => self.info(*key, |node, most| {
                if *bytes > most {
                    return false;
                }
                node.bytes.truncate(*bytes as usize);
                node.bytes.resize(bytes.next_multiple_of(BLOCK) as usize, 0);
                node.length = *bytes;
                true
            }),
            Request::ListExtensions { key, skip } => match self.info(*key, |_, _| true) {
                Reply::File(info) => {
                    let first = info.extensions[0];
                    let extensions: Vec<_> = (*skip..5.min(*skip + 2))
                        .map(|number| ExtensionInfo { key: u64::from(number), ..first })
                        .collect();
                    Reply::Extensions { more: *skip + 2 < 5, extensions }
                }
                other => other,
            },
            _ => self.by_name(request),
        }
    }

    fn by_name(&mut self, request: &Request) -> Reply {
        match request {
            Request::StatPath { path, .. }
            | Request::SetAttributes { of: FileTarget::Path { path, .. }, .. } => self
                .nodes
                .get(path.as_bytes())
                .map_or(refused(Status::E_NO_RESOURCE), |node| Reply::Attributes(attributes(node))),
            Request::MakeDirectory { path, mode, .. } => {
                let path = path.as_bytes();
                let slash = path.iter().rposition(|&byte| byte == b'/').unwrap().max(1);
                if !self.nodes.contains_key(&path[..slash]) {
                    return refused(Status::E_NO_RESOURCE);
                }
                if self.nodes.contains_key(path) {
                    return refused(Status::E_EXISTS);
                }
                let node = Node { kind: FileKind::Directory, mode: *mode, bytes: Vec::new(), length: 0 };
                self.nodes.insert(path.to_vec(), node);
                Reply::Done
            }
            Request::RenameFile { from, to, .. } => match self.nodes.remove(from.as_bytes()) {
                Some(node) => {
                    self.nodes.insert(to.as_bytes().to_vec(), node);
                    Reply::Done
                }
                None => refused(Status::E_NO_RESOURCE),
            },
            Request::UnlinkFile { path, .. } | Request::RemoveDirectory { path, .. } => {
                self.nodes.remove(path.as_bytes()).map_or(refused(Status::E_NO_RESOURCE), |_| Reply::Done)
            }
            Request::ListDirectory { path, from, .. } => self.list(path.as_bytes(), from.as_bytes()),
            _ => refused(Status::E_OPCODE),
        }
    }

    fn open(&mut self, open: &OpenFile) -> Reply {
        let path = open.path.as_bytes().to_vec();
        match (self.nodes.contains_key(&path), open.create) {
            (true, Create::New) => return refused(Status::E_EXISTS),
            (false, Create::Never) => return refused(Status::E_NO_RESOURCE),
            _ => {}
        }
        let mode = open.mode;
        let node = self.nodes.entry(path.clone()).or_insert(Node {
            kind: FileKind::Regular,
            mode,
            bytes: Vec::new(),
            length: 0,
        });
        if open.truncate {
            (node.bytes, node.length) = (Vec::new(), 0);
        }
        self.next += 1;
        self.open.insert(self.next, path);
        self.info(self.next, |_, _| true)
    }

    fn info(&mut self, key: u64, change: impl FnOnce(&mut Node, u64) -> bool) -> Reply {
        let most = self.most;
        let Some(node) = self.open.get(&key).and_then(|path| self.nodes.get_mut(path)) else {
            return refused(Status::E_KEY_INSTANCE);
        };
        if !change(node, most) {
            return refused(Status::E_NO_RESOURCES);
        }
        let room = node.bytes.len() as u64;
        Reply::File(FileInfo {
            key,
            access: 7,
            block_size: BLOCK as u32,
            room,
            attributes: attributes(node),
            extensions: vec![ExtensionInfo { key: 0, access: 7, offset: 0, bytes: room }],
            more: true,
        })
    }

    fn list(&self, path: &[u8], from: &[u8]) -> Reply {
        let inside = if path == b"/" { path.to_vec() } else { [path, b"/"].concat() };
        let entries: Vec<_> = self
            .nodes
            .iter()
            .filter_map(|(path, node)| Some((path.strip_prefix(inside.as_slice())?, node)))
            .filter(|(name, _)| !name.is_empty() && !name.contains(&b'/') && *name > from)
            .take(PAGE + 1)
            .map(|(name, node)| DirectoryEntry {
                name: FileName::new(name).unwrap(),
                kind: node.kind,
                number: 1,
                attributes: None,
            })
            .collect();
        let next = entries.get(PAGE).map(|_| Cursor::new(entries[PAGE - 1].name.as_bytes()).unwrap());
        Reply::Directory { entries: entries.into_iter().take(PAGE).collect(), next }
    }
}

fn attributes(node: &Node) -> FileAttributes {
    FileAttributes {
        kind: node.kind,
        number: 1,
        mode: node.mode,
        owner: 0,
        group: 0,
        links: 1,
        length: node.length,
        allocated: node.bytes.len() as u64,
        accessed: Time::default(),
        modified: Time::default(),
        changed: Time::default(),
        access: Vec::new(),
    }
}
