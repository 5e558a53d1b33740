//! The control socket under people who do not speak it, or do not listen.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;

use portcullis::wire::control::{FrameHeader, MAX_MESSAGE, Reply, Request};
use portcullis::wire::frame::{decode_reply, encode};
use portcullis::wire::socket::{Blocking, ReceiveError, receive, send};
use portcullis::{Session, Status};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::{Case, Client, Rig, until};

pub(super) const CASES: &[Case] = &[
    Case { name: "packets_that_are_no_requests_end_their_session_only", run: garbage },
    Case { name: "versions_that_do_not_meet_are_told", run: versions },
    Case { name: "ten_thousand_connects", run: many_connects },
    Case { name: "a_client_that_never_reads_its_socket", run: deaf },
];

pub(super) fn dial(path: &Path) -> std::io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// The next reply, or `None` at the end of the connection.
fn reply(socket: &OwnedFd) -> Option<(u32, Reply)> {
    let mut buffer = vec![0; MAX_MESSAGE];
    match receive(socket, &mut buffer, Blocking::Wait) {
        Ok((length, _)) => Some(decode_reply(&buffer[..length]).unwrap()),
        Err(ReceiveError::Closed) => None,
        Err(error) => panic!("{error}"),
    }
}

fn hello() -> Request {
    Request::Hello { min_version: wire::VERSION, max_version: wire::VERSION }
}

fn garbage(rig: &Rig) {
    let adapter = rig.isolated();
    let mut witness = Client::create(Session::connect(adapter.socket()).unwrap(), "v");
    let whole = encode(7, &Request::CreateVolume { name: "x".repeat(40), bytes: 1 }).unwrap();
    let mut wrong_magic = whole.clone();
    wrong_magic[0] ^= 1;
    let mut wrong_length = whole.clone();
    wrong_length[8] ^= 1;
    let mut trailing = whole.clone();
    trailing.push(0);
    let mut huge_name = whole.clone();
    huge_name[size_of::<FrameHeader>() + 1..][..4].fill(0xff);
    let packets: [&[u8]; 8] = [
        &whole[..1],
        &whole[..size_of::<FrameHeader>()],
        &whole[..whole.len() - 1],
        &wrong_magic,
        &wrong_length,
        &trailing,
        &huge_name,
        &[0xff; 4096],
    ];
    for (i, packet) in packets.into_iter().enumerate() {
        let socket = dial(adapter.socket()).unwrap();
        send(&socket, &encode(1, &hello()).unwrap(), &[], Blocking::Wait).unwrap();
        assert!(matches!(reply(&socket), Some((1, Reply::Welcome(_)))));
        send(&socket, packet, &[], Blocking::Wait).unwrap();
        let Some((_, Reply::Error { status, detail })) = reply(&socket) else {
            panic!("packet {i} got no error")
        };
        assert_eq!(status, Status::E_PARAM, "packet {i}: {detail}");
        assert!(reply(&socket).is_none(), "packet {i}: the session ends");
        assert_eq!(witness.status(&witness.request(wire::layout::opcode::READ)), Status::OK);
    }
    // Too long to be a message at all.
    let socket = dial(adapter.socket()).unwrap();
    send(&socket, &vec![0; MAX_MESSAGE + 1], &[], Blocking::Wait).unwrap();
    assert!(matches!(reply(&socket), Some((_, Reply::Error { .. }))));
    // Anything before the hello is refused, and the session may still say it.
    let socket = dial(adapter.socket()).unwrap();
    send(&socket, &encode(3, &Request::Statistics).unwrap(), &[], Blocking::Wait).unwrap();
    assert!(matches!(reply(&socket), Some((3, Reply::Error { status: Status::E_PARAM, .. }))));
    send(&socket, &encode(4, &hello()).unwrap(), &[], Blocking::Wait).unwrap();
    assert!(matches!(reply(&socket), Some((4, Reply::Welcome(_)))));
}

fn versions(rig: &Rig) {
    let adapter = rig.isolated();
    for (min, max, meets) in [(2, 2, true), (0, 9, true), (3, 9, false), (1, 1, false), (9, 3, false)] {
        let socket = dial(adapter.socket()).unwrap();
        let request = Request::Hello { min_version: min, max_version: max };
        send(&socket, &encode(1, &request).unwrap(), &[], Blocking::Wait).unwrap();
        match reply(&socket) {
            Some((1, Reply::Welcome(welcome))) => assert!(meets && welcome.version == 2, "{min} to {max}"),
            Some((1, Reply::Error { status: Status::E_VERSION, .. })) => assert!(!meets, "{min} to {max}"),
            other => panic!("{min} to {max}: {other:?}"),
        }
    }
}

fn many_connects(rig: &Rig) {
    let adapter = rig.isolated();
    let mut witness = Client::create(Session::connect(adapter.socket()).unwrap(), "v");
    let connects = if rig.is_software() { 10_000 } else { 1_000 };
    let mut held = std::collections::VecDeque::new();
    for i in 0..connects {
        match dial(adapter.socket()) {
            Ok(socket) => held.push_back(socket),
            // The listen queue is full for a moment, or this process has no more descriptors.
            Err(_) => drop(held.pop_front()),
        }
        if held.len() > 300 {
            held.pop_front();
        }
        if i % 500 == 0 {
            assert_eq!(witness.status(&witness.request(wire::layout::opcode::READ)), Status::OK);
        }
    }
    // 300 at once are more than one user may have (256): those beyond are told, in time.
    until("300 connections at once", || {
        held.extend(dial(adapter.socket()));
        held.len() >= 300
    });
    let mut refused = 0;
    until("those beyond the limit are told", || {
        held.retain(|socket| {
            let mut buffer = vec![0; MAX_MESSAGE];
            let Ok((length, _)) = receive(socket, &mut buffer, Blocking::Never) else { return true };
            let (_, answer) = decode_reply(&buffer[..length]).unwrap();
            assert!(matches!(answer, Reply::Error { status: Status::E_NO_RESOURCES, .. }), "{answer:?}");
            refused += 1;
            false
        });
        refused >= 300 - 256
    });
    drop(held);
    until("the sessions are gone", || witness.session.statistics().unwrap().sessions.len() == 1);
}

fn deaf(rig: &Rig) {
    let adapter = rig.isolated();
    let mut witness = Client::create(Session::connect(adapter.socket()).unwrap(), "v");
    let socket = dial(adapter.socket()).unwrap();
    send(&socket, &encode(1, &hello()).unwrap(), &[], Blocking::Wait).unwrap();
    let question = encode(2, &Request::Statistics).unwrap();
    // Asks without listening until the adapter has had enough, or takes no more questions.
    let mut asked = 0;
    until("the adapter stops listening to who does not listen", || {
        match send(&socket, &question, &[], Blocking::Never) {
            Ok(()) => asked += 1,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                assert_eq!(witness.status(&witness.request(wire::layout::opcode::READ)), Status::OK);
            }
            Err(_) => return true,
        }
        false
    });
    let _ = writeln!(std::io::stdout(), "{asked} questions were asked");
    until("its session is gone", || witness.session.statistics().unwrap().sessions.len() == 1);
}
