//! The library against an adapter behind a socket.

use std::thread;
use std::time::Duration;

use adapter::{Adapter, Options};
use portcullis::wire::control::{Reply, Request as Control};
use portcullis::{Access, Error, MemoryAccess, Request, Session, Status};

const LONG: Duration = Duration::from_secs(60);

fn start() -> (tempfile::TempDir, Adapter) {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let options = Options::new("emu:32M".parse().expect("a device"));
    let adapter = Adapter::start(&options, &directory.path().join("p.sock")).expect("the adapter starts");
    (directory, adapter)
}

#[test]
fn what_is_written_over_one_session_is_read_over_another() {
    let (_directory, adapter) = start();
    let writer = Session::connect(adapter.socket()).unwrap();
    assert!(!writer.is_embedded());
    writer.create_volume("v", 1 << 20).unwrap();
    let data: Vec<u8> = (0..1 << 20).map(|i: u32| (i % 251).to_le_bytes()[0]).collect();
    let volume = writer.open("v", Access::WRITE).unwrap();
    let mut queue = writer.queue(8).unwrap();
    queue.write_at(&volume, 0, &data).unwrap();
    queue.flush(&volume).unwrap();
    drop((queue, volume, writer));

    let reader = Session::connect(adapter.socket()).unwrap();
    let volume = reader.open("v", Access::READ).unwrap();
    let mut back = vec![0; data.len()];
    reader.queue(2).unwrap().read_at(&volume, 0, &mut back).unwrap();
    assert!(back == data);
    let mut queue = reader.queue(2).unwrap();
    let error = queue.write_at(&volume, 0, &[0; 4096]).unwrap_err();
    assert_eq!(error.status(), Some(Status::E_ACCESS));
}

/// S5-R3: requests written but not rung are not processed. S5-R1: rung, exactly so many are. S5-R5: ringing for nothing
/// changes nothing.
#[test]
fn exactly_what_is_rung_is_processed() {
    let (_directory, adapter) = start();
    let session = Session::connect(adapter.socket()).unwrap();
    session.create_volume("v", 1 << 20).unwrap();
    let volume = session.open("v", Access::WRITE).unwrap();
    let (mut silent, mut busy) = (session.queue(8).unwrap(), session.queue(8).unwrap());
    let completed = || session.statistics().unwrap().completed;
    let before = completed();
    for tag in 0..3 {
        silent.prepare(Request::write_zeroes(&volume, 0, 4096).tag(tag)).unwrap();
    }
    // The adapter has turned over both queues many times when these are done.
    for _ in 0..100 {
        busy.execute(Request::write_zeroes(&volume, 0, 4096)).unwrap().result.unwrap();
        busy.ring().unwrap();
    }
    assert!(silent.poll().unwrap().is_none());
    assert_eq!(completed() - before, 100);

    silent.ring().unwrap();
    silent.ring().unwrap();
    let mut tags: Vec<u64> = (0..3).map(|_| silent.wait(LONG).unwrap().unwrap().tag).collect();
    tags.sort_unstable();
    assert_eq!(tags, [0, 1, 2]);
    assert!(silent.wait(LONG).unwrap().is_none(), "nothing is in flight");
    assert_eq!(completed() - before, 103);
}

#[test]
fn threads_share_a_session_and_have_queues_of_their_own() {
    let (_directory, adapter) = start();
    let session = Session::connect(adapter.socket()).unwrap();
    session.create_volume("v", 1 << 20).unwrap();
    let volume = session.open("v", Access::READ_WRITE).unwrap();
    thread::scope(|scope| {
        for n in 0..4u8 {
            let (session, volume) = (session.clone(), &volume);
            // Made here, used there.
            let mut queue = session.queue(4).unwrap();
            scope.spawn(move || {
                let at = u64::from(n) * 65536;
                for round in 0..50u8 {
                    queue.write_at(volume, at, &[n ^ round; 65536]).unwrap();
                    let mut back = [0; 65536];
                    queue.read_at(volume, at, &mut back).unwrap();
                    assert!(back.iter().all(|byte| *byte == n ^ round));
                }
            });
        }
    });
}

#[test]
fn a_dropped_queue_gives_back_what_was_in_flight() {
    let (_directory, adapter) = start();
    let session = Session::connect(adapter.socket()).unwrap();
    session.create_volume("v", 1 << 20).unwrap();
    let volume = session.open("v", Access::READ).unwrap();
    let limits = session.limits();
    let pinned = || session.statistics().unwrap().pinned_bytes;
    let before = pinned();
    // Twice as often as the session may have queues and regions.
    for _ in 0..2 * limits.regions.max(limits.queues) {
        let mut queue = session.queue(16).unwrap();
        let memory = session.register(16 * 4096, MemoryAccess::DeviceWrites).unwrap();
        for buffer in memory.buffers(4096, 4096).unwrap() {
            queue.prepare(Request::read(&volume, 0, buffer)).unwrap();
        }
        queue.ring().unwrap();
    }
    assert_eq!(pinned(), before);
}

#[test]
fn a_wait_ends_when_the_adapter_does() {
    let (_directory, adapter) = start();
    let session = Session::connect(adapter.socket()).unwrap();
    session.create_volume("v", 1 << 20).unwrap();
    let volume = session.open("v", Access::READ).unwrap();
    let mut queue = session.queue(2).unwrap();
    queue.flush(&volume).unwrap_err(); // it is open without WRITE
    let buffer = session.buffer(4096).unwrap();
    adapter.stop().unwrap();
    let error = match queue.prepare(Request::read(&volume, 0, buffer)) {
        Ok(_) => queue.wait(LONG).unwrap_err(),
        Err(refused) => refused.error,
    };
    assert!(matches!(error, Error::Transport(_) | Error::QueueDown), "{error}");
    assert_eq!(session.device_info().unwrap_err().status(), Some(Status::E_PATH));
}

#[test]
fn another_version_is_refused_with_the_versions() {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};
    use wire::frame::{decode_reply, encode};
    use wire::socket::{Blocking, receive, send};

    let (_directory, adapter) = start();
    let socket = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    connect(&socket, &SocketAddrUnix::new(adapter.socket()).unwrap()).unwrap();
    let hello = encode(7, &Control::Hello { min_version: 900, max_version: 901 }).unwrap();
    send(&socket, &hello, &[], Blocking::Wait).unwrap();
    let mut packet = vec![0; wire::control::MAX_MESSAGE];
    let (length, _) = receive(&socket, &mut packet, Blocking::Wait).unwrap();
    let (id, reply) = decode_reply(&packet[..length]).unwrap();
    let Reply::Error { status, detail } = reply else { panic!("{reply:?}") };
    assert_eq!((id, status), (7, Status::E_VERSION), "{detail}");
    assert!(detail.contains("900") && detail.contains("901"), "{detail}");
}

#[test]
fn a_connection_that_is_refused_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = Options::new("emu:16M".parse().expect("a device"));
    options.policy.sessions = 1;
    let adapter = Adapter::start(&options, &dir.path().join("socket")).unwrap();
    let _first = Session::connect(adapter.socket()).unwrap();
    for _ in 0..20 {
        let error = Session::connect(adapter.socket()).unwrap_err();
        assert_eq!(error.status(), Some(Status::E_NO_RESOURCES), "{error}");
    }
}
