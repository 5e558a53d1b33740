//! Memory and queues that an application offers: whatever is wrong with them costs only the one who sent them.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use portcullis::wire::control::{Reply, Request};
use portcullis::wire::layout::{Entries, opcode};
use portcullis::wire::shm::SharedMemory;
use portcullis::{Access, Session, Status};
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};

use super::{Case, Client, Rig, VOLUME};

pub(super) const CASES: &[Case] = &[
    Case { name: "memory_that_is_not_a_sealable_memfd_is_refused", run: not_a_memfd },
    Case { name: "memory_of_another_size_or_sealed_for_writing_is_refused", run: wrong_memory },
    Case { name: "adopted_memory_cannot_be_pulled_away", run: pulled_away },
    Case { name: "queues_that_are_not_what_they_say_are_refused", run: wrong_queue },
    Case { name: "limits_are_said_and_held", run: limits },
    Case { name: "a_source_region_is_never_written", run: source_only },
];

fn refusal(session: &Session, request: &Request, descriptors: &[&OwnedFd]) -> (Status, String) {
    let lent: Vec<_> = descriptors.iter().map(|fd| fd.as_fd()).collect();
    match session.call(request, &lent).unwrap() {
        (Reply::Error { status, detail }, _) => (status, detail),
        (other, _) => panic!("{request:?} was answered with {other:?}"),
    }
}

fn register(length: u64) -> Request {
    Request::RegisterMemory { length, access: 3 }
}

fn memfd(bytes: u64) -> OwnedFd {
    let fd = memfd_create("case", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, bytes).unwrap();
    fd
}

/// The session works, and nothing of what was refused is left.
fn unharmed(session: &Session, before: &portcullis::Statistics) {
    let now = session.statistics().unwrap();
    assert_eq!(
        (now.regions, now.pinned_bytes, now.mappings),
        (before.regions, before.pinned_bytes, before.mappings)
    );
}

fn not_a_memfd(rig: &Rig) {
    let adapter = rig.isolated();
    let session = Session::connect(adapter.socket()).unwrap();
    let before = session.statistics().unwrap();
    let (pipe, _other_end) = rustix::pipe::pipe().unwrap();
    let file: OwnedFd = tempfile::tempfile().unwrap().into();
    ftruncate(&file, 4096).unwrap();
    let directory: OwnedFd = std::fs::File::open("/").unwrap().into();
    let null: OwnedFd = std::fs::File::options().read(true).write(true).open("/dev/null").unwrap().into();
    let unsealable = memfd_create("case", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&unsealable, 4096).unwrap();
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    for (what, fd) in [
        ("a pipe", pipe),
        ("a file", file),
        ("a directory", directory),
        ("/dev/null", null),
        ("an unsealable memfd", unsealable),
        ("a socket", socket.into()),
    ] {
        let (status, detail) = refusal(&session, &register(4096), &[&fd]);
        assert_eq!(status, Status::E_LOCAL_MEM, "{what}: {detail}");
        assert!(detail.len() > 20, "{what}: {detail:?} explains nothing");
    }
    let (status, _) = refusal(&session, &register(4096), &[]);
    assert_eq!(status, Status::E_PARAM, "no descriptor");
    let (a, b) = (memfd(4096), memfd(4096));
    assert_eq!(refusal(&session, &register(4096), &[&a, &b]).0, Status::E_PARAM, "two descriptors");
    assert_eq!(
        refusal(&session, &Request::ShowDevice, &[&a]).0,
        Status::E_PARAM,
        "a descriptor that nobody asked for"
    );
    unharmed(&session, &before);
}

fn wrong_memory(rig: &Rig) {
    let adapter = rig.isolated();
    let session = Session::connect(adapter.socket()).unwrap();
    let before = session.statistics().unwrap();
    for (file, said) in
        [(4096, 8192), (8192, 4096), (4096, 0), (100, 100), (0, 4096), (4096, u64::MAX), (4096, 1 << 40)]
    {
        let (status, detail) = refusal(&session, &register(said), &[&memfd(file)]);
        let expected = [Status::E_LOCAL_MEM, Status::E_NO_RESOURCES];
        assert!(expected.contains(&status), "{file} bytes said to be {said}: {status} {detail}");
    }
    let sealed = memfd(4096);
    fcntl_add_seals(&sealed, SealFlags::WRITE).unwrap();
    let closed = memfd(4096);
    fcntl_add_seals(&closed, SealFlags::SEAL).unwrap();
    let read_only = memfd(4096);
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&read_only));
    let read_only: OwnedFd = std::fs::File::open(path).unwrap().into();
    for (what, fd) in [("sealed for writing", sealed), ("closed to seals", closed), ("read-only", read_only)]
    {
        let (status, detail) = refusal(&session, &register(4096), &[&fd]);
        assert_eq!(status, Status::E_LOCAL_MEM, "{what}: {detail}");
    }
    let twice = memfd(4096);
    let (reply, _) = session.call(&register(4096), &[twice.as_fd()]).unwrap();
    let Reply::Region { region } = reply else { panic!("{reply:?}") };
    let (status, detail) = refusal(&session, &register(4096), &[&twice]);
    assert_eq!(status, Status::E_LOCAL_MEM, "memory that is registered already: {detail}");
    assert!(matches!(session.call(&Request::ReleaseMemory { region }, &[]).unwrap().0, Reply::Done));
    for access in [0, 4, 255] {
        let request = Request::RegisterMemory { length: 4096, access };
        assert_eq!(refusal(&session, &request, &[&memfd(4096)]).0, Status::E_PARAM);
    }
    unharmed(&session, &before);
}

/// The peer punches, truncates and unmaps while I/O runs: the adapter does not notice, and is not killed by SIGBUS.
fn pulled_away(rig: &Rig) {
    let adapter = rig.isolated();
    let session = Session::connect(adapter.socket()).unwrap();
    let mut client = Client::create(session.clone(), "v");
    let bytes = 1 << 20;
    let (memory, fd) = SharedMemory::create("case", bytes).unwrap();
    let (reply, _) = session.call(&register(bytes as u64), &[fd.as_fd()]).unwrap();
    let Reply::Region { region } = reply else { panic!("{reply:?}") };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                assert!(fallocate(&fd, punch, 0, bytes as u64).is_err(), "the seal forbids holes");
                assert!(ftruncate(&fd, 0).is_err(), "the seal forbids shrinking");
                assert!(ftruncate(&fd, 2 * bytes as u64).is_err(), "and growing");
                assert!(SharedMemory::map(&fd, bytes).is_err(), "and new writable mappings");
            }
        });
        let mut entry = client.request(opcode::READ);
        (entry.region, entry.length) = (region, 64 << 10);
        let rounds = if rig.is_software() { 2000 } else { 200 };
        for round in 0..rounds {
            entry.region_offset = (round % 16) * (64 << 10);
            assert_eq!(client.status(&entry), Status::OK);
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(memory);
    let mut entry = client.request(opcode::READ);
    entry.region = region;
    assert_eq!(client.status(&entry), Status::OK, "the application's own mapping does not matter");
}

fn wrong_queue(rig: &Rig) {
    let adapter = rig.isolated();
    let session = Session::connect(adapter.socket()).unwrap();
    let before = session.statistics().unwrap();
    for entries in [0, 1, 3, 8192, u32::MAX] {
        let (status, detail) = refusal(&session, &Request::CreateQueue { entries }, &[&memfd(1 << 20)]);
        assert_eq!(status, Status::E_PARAM, "{entries} entries: {detail}");
    }
    let right = Entries::new(16).unwrap().bytes() as u64;
    let (status, detail) = refusal(&session, &Request::CreateQueue { entries: 16 }, &[&memfd(right)]);
    assert_eq!(status, Status::E_PARAM, "without a header: {detail}");
    let (status, _) = refusal(&session, &Request::CreateQueue { entries: 16 }, &[&memfd(right + 4096)]);
    assert_eq!(status, Status::E_LOCAL_MEM);
    for request in [
        Request::DestroyQueue { queue: 99 },
        Request::ReleaseMemory { region: 99 },
        Request::Close { key: u64::MAX },
        Request::Query { key: 5 },
    ] {
        assert!(!refusal(&session, &request, &[]).0.is_ok());
    }
    unharmed(&session, &before);
}

fn limits(rig: &Rig) {
    let mut options = rig.options();
    options.policy.limits.regions = 3;
    options.policy.limits.queues = 2;
    options.policy.limits.grants = 2;
    options.policy.limits.pinned_bytes = 1 << 20;
    options.policy.sessions_per_user = 3;
    let adapter = adapter::Embedded::start(&options).unwrap();
    let session = adapter.session().unwrap();
    session.create_volume("v", VOLUME).unwrap();
    let status = |e: portcullis::Error| e.status();
    let full = Some(Status::E_NO_RESOURCES);
    let memory: Vec<_> =
        (0..3).map(|_| session.register(4096, portcullis::MemoryAccess::Both).unwrap()).collect();
    assert_eq!(session.register(4096, portcullis::MemoryAccess::Both).err().and_then(status), full);
    drop(memory);
    assert_eq!(session.register(2 << 20, portcullis::MemoryAccess::Both).err().and_then(status), full);
    let volumes: Vec<_> = (0..2).map(|_| session.open("v", Access::READ).unwrap()).collect();
    assert_eq!(session.open("v", Access::READ).err().and_then(status), full);
    drop(volumes);
    session.open("v", Access::READ).unwrap();
    let _others: Vec<_> = (0..2).map(|_| adapter.session().unwrap()).collect();
    assert!(adapter.session().is_err(), "a fourth session of the same user");
    let elsewhere = adapter.session_as(super::somebody(4000)).unwrap();
    assert_eq!(
        elsewhere.statistics().unwrap().sessions.len(),
        1,
        "others are not limited by it, and not seen"
    );
}

/// A region that is registered as a source is denied as a target, on software devices as well.
fn source_only(rig: &Rig) {
    let adapter = rig.embedded();
    let mut client = Client::create(adapter.session().unwrap(), "v");
    let source = client.session.register(4096, portcullis::MemoryAccess::DeviceReads).unwrap();
    let target = client.session.register(4096, portcullis::MemoryAccess::DeviceWrites).unwrap();
    for (code, region, expected) in [
        (opcode::WRITE, source.key(), Status::OK),
        (opcode::COMPARE, source.key(), rig.compared()),
        (opcode::READ, source.key(), Status::E_LOCAL_MEM),
        (opcode::READ, target.key(), Status::OK),
        (opcode::WRITE, target.key(), Status::E_LOCAL_MEM),
        (opcode::COMPARE, target.key(), Status::E_LOCAL_MEM),
    ] {
        let mut entry = client.request(code);
        (entry.region, entry.length) = (region, client.volume.block_size());
        assert_eq!(client.status(&entry), expected, "opcode {code}");
    }
}
