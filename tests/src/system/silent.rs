//! Applications that stop, or never listen: what is taken away from them is gone in time, and the others do not notice.

use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use adapter::{DeviceUri, Embedded, Options};
use portcullis::wire::control::Request;
use portcullis::wire::frame::encode;
use portcullis::wire::layout::{SubmissionEntry, opcode};
use portcullis::{Access, Session, Status, raw::RawQueue};
use rustix::process::Signal;

use super::hostile::dial;
use super::{Case, Client, PATIENCE, Rig, VOLUME, pattern, until};
use crate::process::{Actor, Role};
use crate::scale::{counted, often};

pub(super) const CASES: &[Case] = &[
    Case { name: "a_stopped_application_keeps_neither_its_grants_nor_anybody_waiting", run: stopped },
    Case { name: "silent_applications_cost_the_others_no_turn", run: no_turn },
    Case { name: "descriptors_that_linger_in_their_close_delay_nobody", run: lingering },
];

/// What a revocation waits for I/O at most, and then some: it must not come to that.
const IN_TIME: Duration = Duration::from_secs(2);

fn stopped(rig: &Rig) {
    let adapter = rig.isolated();
    let admin = Session::connect(adapter.socket()).unwrap();
    let mut bystander = Client::create(Session::connect(adapter.socket()).unwrap(), "bystander");
    let mut queue = bystander.session.queue(8).unwrap();
    let mine = pattern(5, VOLUME as usize);
    queue.write_at(&bystander.volume, 0, &mine).unwrap();
    let before = admin.statistics().unwrap();
    let rounds = often(5, 50);
    for _ in 0..rounds {
        admin.create_volume("v", VOLUME).unwrap();
        let mut victim = Actor::start(Role::Victim, adapter.socket(), "");
        assert_eq!(victim.line(), "ready");
        let completed = admin.statistics().unwrap().completed;
        until("it works", || admin.statistics().unwrap().completed > completed + 100);
        victim.signal(Signal::STOP);
        let start = Instant::now();
        let revoked = admin.delete_volume("v").unwrap();
        assert_eq!((revoked.grants, revoked.draining), (1, 0), "all of it had ended");
        assert!(start.elapsed() < IN_TIME, "the revocation took {:?}", start.elapsed());
        assert_eq!(bystander.status(&bystander.request(opcode::READ)), Status::OK);
        let mut read = vec![0; mine.len()];
        queue.read_at(&bystander.volume, 0, &mut read).unwrap();
        assert!(read == mine);
        assert_eq!(admin.statistics().unwrap().entries, before.entries, "its grant is gone while it sleeps");
        victim.kill();
        until("what it held is free", || {
            let now = admin.statistics().unwrap();
            (now.sessions.len(), now.regions, now.pinned_bytes)
                == (before.sessions.len(), before.regions, before.pinned_bytes)
        });
    }
    counted(rounds, "revocations from stopped applications");
}

/// Turns of the engine that one request takes from the doorbell to its completion.
fn turns_of_one(client: &mut Client) -> u32 {
    client.raw.push(&client.request(opcode::READ)).unwrap();
    client.raw.ring().unwrap();
    // With nothing there each poll gives the embedded adapter one turn.
    (1..10_000).find(|_| client.raw.poll().is_some()).expect("it ends")
}

/// On the null device, where the number of turns depends on nothing but the engine.
fn no_turn(_: &Rig) {
    let adapter = Embedded::start(&Options::new(DeviceUri::Null(64 << 20))).unwrap();
    let admin = adapter.session().unwrap();
    let mut bystander = Client::create(adapter.session().unwrap(), "bystander");
    let measure = |client: &mut Client| (0..1000).map(|_| turns_of_one(client)).collect::<Vec<_>>();
    let alone = measure(&mut bystander);

    admin.create_volume("v", VOLUME).unwrap();
    let silent: Vec<(Client, Vec<RawQueue>)> = (0..64)
        .map(|_| {
            let mut client = Client::open(adapter.session().unwrap(), "v", Access::READ_WRITE);
            let mut queues = vec![RawQueue::create(&client.session, 16).unwrap()];
            for raw in queues.iter_mut().chain([&mut client.raw]) {
                let entry = SubmissionOf(&client.volume, &client.memory).read();
                (0..16).for_each(|slot| raw.overwrite(slot, &entry));
                raw.store_tail(16).unwrap();
            }
            (client, queues)
        })
        .collect();
    // Their completions fill their rings; then as many requests again, for which there is no room.
    (0..200).for_each(|_| {
        adapter.turn();
    });
    let mut silent = silent;
    for (client, queues) in &mut silent {
        for raw in queues.iter_mut().chain([&mut client.raw]) {
            raw.store_tail(32).unwrap();
        }
    }
    let beside_silent_ones = measure(&mut bystander);
    assert_eq!(alone, beside_silent_ones, "a request takes as many turns as before");

    let revoked = admin.delete_volume("v").unwrap();
    assert_eq!((revoked.grants, revoked.draining), (64, 0));
    assert_eq!(measure(&mut bystander), alone);
    counted(64, "silent applications");
}

/// A request for one block, without borrowing the client whole.
struct SubmissionOf<'a>(&'a portcullis::Volume, &'a portcullis::Memory);

impl SubmissionOf<'_> {
    fn read(&self) -> SubmissionEntry {
        SubmissionEntry {
            opcode: opcode::READ,
            key: self.0.key(),
            length: self.0.block_size(),
            region: self.1.key(),
            ..SubmissionEntry::default()
        }
    }
}

/// A TCP socket whose close waits a minute for bytes that nobody reads.
fn lingering_socket() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::from_secs(60))).unwrap();
    stream.set_nonblocking(true).unwrap();
    while rustix::io::write(&stream, &[0; 1 << 16]).is_ok() {}
    (stream.into(), peer)
}

/// Sends a packet with these descriptors; the connection may have ended already.
fn send_with(socket: &OwnedFd, packet: &[u8], lent: &[BorrowedFd<'_>]) {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    control.push(rustix::net::SendAncillaryMessage::ScmRights(lent));
    let flags = rustix::net::SendFlags::NOSIGNAL;
    let _ = rustix::net::sendmsg(socket, &[std::io::IoSlice::new(packet)], &mut control, flags);
}

/// More descriptors than may be, and descriptors in packets that the adapter never receives: whoever closes them last
/// waits for them, and that must not be who serves everybody.
fn lingering(rig: &Rig) {
    let adapter = rig.isolated();
    let mut bystander = Client::create(Session::connect(adapter.socket()).unwrap(), "bystander");
    let hello =
        encode(1, &Request::Hello { min_version: wire::VERSION, max_version: wire::VERSION }).unwrap();
    let look = |bystander: &mut Client| {
        let start = Instant::now();
        bystander.session.device_info().unwrap();
        assert_eq!(bystander.status(&bystander.request(opcode::READ)), Status::OK);
        assert!(start.elapsed() < PATIENCE / 4, "a bystander waited {:?}", start.elapsed());
    };
    // With one packet more than belong to any; with an end of the session before they are received.
    for (extra, packets) in [(6, 1), (1, 4)].repeat(100) {
        let socket = dial(adapter.socket()).unwrap();
        let (pipe, _writer) = std::io::pipe().unwrap();
        let (hanging, peer) = lingering_socket();
        let (hanging, sent) = (Arc::new(hanging), Arc::new(AtomicBool::new(false)));
        let mut lent = vec![pipe.as_fd(); extra - 1];
        lent.push(hanging.as_fd());
        // Ours goes the moment it was sent, so that the adapter's is the last, whose close waits. Should ours be that after
        // all, then the wait is not here either.
        let (now, ours) = (sent.clone(), hanging.clone());
        let running = Arc::new(Barrier::new(2));
        let runs = running.clone();
        let closer = std::thread::spawn(move || {
            runs.wait();
            while !now.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
            drop(ours);
        });
        running.wait();
        if packets > 1 {
            send_with(&socket, b"no packet", &[]);
        }
        (0..packets).for_each(|_| send_with(&socket, &hello, &lent));
        drop(lent);
        drop(hanging);
        sent.store(true, Ordering::Release);
        drop(socket);
        (0..20).for_each(|_| look(&mut bystander));
        // Nothing is left to linger for. Too much of it, and the user would not be heard until it is closed.
        drop(peer);
        closer.join().unwrap();
    }
    until("their sessions are gone", || bystander.session.statistics().unwrap().sessions.len() == 1);
}
