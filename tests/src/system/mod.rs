//! What applications and adapter do together, through the whole path: a library, so that the same cases run on the
//! software device and on QEMU's in a guest.
//!
//! A [`Case`] gets a [`Rig`]: an adapter of its own over the device, freshly formatted, with its threads and its socket.

mod attack;
mod bytes;
mod channels;
mod churn;
pub mod confined;
pub(crate) mod doorbell;
mod files;
mod grants;
mod guess;
mod hostile;
mod limits;
mod manage;
pub mod memory;
mod quiet;
mod scatter;
mod silent;
mod tables;
mod volumes;
pub(crate) mod writers;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use adapter::{Adapter, DeviceUri, Embedded, Format, Options};
use portcullis::wire::layout::{CompletionEntry, SubmissionEntry};
use portcullis::wire::socket::Credentials;
use portcullis::{Access, Memory, MemoryAccess, Session, Status, Volume, raw::RawQueue};

/// A case. It panics where the system falls short.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its name, with the requirements it proves.
    pub name: &'static str,
    /// Runs it.
    pub run: fn(&Rig),
}

/// How long anything may take; generous, as guests are slow.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of the volumes that cases make.
pub const VOLUME: u64 = 2 << 20;

/// Where cases get their adapters from.
pub struct Rig {
    device: DeviceUri,
    dir: tempfile::TempDir,
}

impl Rig {
    /// For the device that `uri` names.
    pub fn new(uri: &str) -> anyhow::Result<Self> {
        Ok(Self { device: uri.parse()?, dir: tempfile::tempdir()? })
    }

    /// The options that cases begin with: the device is formatted.
    pub fn options(&self) -> Options {
        Options { format: Format::Force, ..Options::new(self.device.clone()) }
    }

    /// Whether it is a software device.
    pub fn is_software(&self) -> bool {
        !matches!(self.device, DeviceUri::Vfio(_))
    }

    /// What becomes of a compare of what is equal: virtio block devices have none.
    pub fn compared(&self) -> Status {
        if self.is_virtio() { Status::E_OPCODE } else { Status::OK }
    }

    /// Whether it is a virtio block device.
    pub fn is_virtio(&self) -> bool {
        crate::suite::kind_of(&self.device.to_string()).contains("virtio")
    }

    /// Where adapters listen.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// An adapter with threads and a socket.
    pub fn isolated(&self) -> Adapter {
        Adapter::start(&self.options(), &self.socket()).expect("the adapter starts")
    }

    /// An adapter that the case turns.
    pub fn embedded(&self) -> Embedded {
        Embedded::start(&self.options()).expect("the adapter starts")
    }
}

/// The cases for software devices only.
pub const SOFTWARE: &[Case] = tables::SOFTWARE;

/// The cases for any device.
pub fn all() -> Vec<Case> {
    [
        grants::CASES,
        attack::CASES,
        volumes::CASES,
        channels::CASES,
        hostile::CASES,
        confined::CASES,
        tables::CASES,
        guess::CASES,
        silent::CASES,
        memory::CASES,
        scatter::CASES,
        bytes::CASES,
        limits::CASES,
        manage::CASES,
        files::CASES,
        writers::CASES,
        churn::CASES,
        doorbell::CASES,
        quiet::CASES,
    ]
    .concat()
}

/// Somebody who is not the adapter's user.
pub fn somebody(uid: u32) -> Credentials {
    Credentials { uid, gid: uid, pid: 1, groups: Vec::new() }
}

/// A volume, memory and a raw queue of one session.
pub struct Client {
    /// The session.
    pub session: Session,
    /// The volume.
    pub volume: Volume,
    /// 256 KiB that the device may read and write.
    pub memory: Memory,
    /// The queue.
    pub raw: RawQueue,
}

impl Client {
    /// Opens `name` with `access`.
    pub fn open(session: Session, name: &str, access: Access) -> Self {
        let volume = session.open(name, access).expect("the volume opens");
        let memory = session.register(256 << 10, MemoryAccess::Both).expect("memory");
        let raw = RawQueue::create(&session, 16).expect("a queue");
        Self { session, volume, memory, raw }
    }

    /// Makes the volume first.
    pub fn create(session: Session, name: &str) -> Self {
        session.create_volume(name, VOLUME).expect("the volume is made");
        Self::open(session, name, Access::ALL)
    }

    /// A request for one block at the start, to be altered.
    pub fn request(&self, opcode: u8) -> SubmissionEntry {
        SubmissionEntry {
            opcode,
            user_data: 1,
            key: self.volume.key(),
            length: self.volume.block_size(),
            region: self.memory.key(),
            ..SubmissionEntry::default()
        }
    }

    /// Submits an entry as it is, and waits for how it ended.
    pub fn submit(&mut self, entry: &SubmissionEntry) -> CompletionEntry {
        self.raw.push(entry).expect("room");
        self.raw.ring().expect("the doorbell");
        self.raw.wait(PATIENCE).expect("the queue lives").expect("a completion in time")
    }

    /// Its status.
    pub fn status(&mut self, entry: &SubmissionEntry) -> Status {
        Status(self.submit(entry).status)
    }
}

/// Turns until `done` says so; fails the case if that takes too long.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        std::thread::yield_now();
    }
}

/// A pattern that says whose it is and where.
pub fn pattern(seed: u32, bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|i| {
            (seed.wrapping_mul(0x9e37_79b9) ^ (i as u32 / 4).wrapping_mul(0x85eb_ca6b)).to_le_bytes()[i % 4]
        })
        .collect()
}

/// An application that does I/O on volume `v` until it is killed: what [`crate::process::Role::Victim`] does.
pub fn victim(socket: &str) {
    let session = Session::connect(socket).unwrap();
    let mut client = Client::open(session, "v", Access::READ_WRITE);
    let mut entry = client.request(wire::layout::opcode::READ);
    entry.length = 64 << 10;
    println!("ready");
    loop {
        while client.raw.push(&entry).is_ok() {}
        client.raw.ring().unwrap();
        client.raw.wait(PATIENCE).unwrap();
        while client.raw.poll().is_some() {}
    }
}
