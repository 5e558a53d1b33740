//! Packets and descriptors over the control socket.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::io::FdFlags;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg,
    socketpair,
};
use wire::control::{MAX_DESCRIPTORS, MAX_MESSAGE};
use wire::doorbell::{self, Bell, Woken};
use wire::socket::{Blocking, ReceiveError, peer_credentials, receive, send, unreceived};

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

fn get(socket: &OwnedFd) -> Result<(Vec<u8>, Vec<OwnedFd>), ReceiveError> {
    let mut buffer = vec![0; MAX_MESSAGE];
    let (length, descriptors) = receive(socket, &mut buffer, Blocking::Never)?;
    buffer.truncate(length);
    Ok((buffer, descriptors))
}

#[test]
fn packets_stay_whole_and_carry_descriptors() {
    let (a, b) = pair();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let largest = vec![7; MAX_MESSAGE];
    send(&a, b"one", &[], Blocking::Never).unwrap();
    send(&a, &largest, &[writer.as_fd(); MAX_DESCRIPTORS], Blocking::Never).unwrap();
    drop(writer);
    assert_eq!(get(&b).unwrap().0, b"one");
    let (packet, descriptors) = get(&b).unwrap();
    assert_eq!((packet, descriptors.len()), (largest, MAX_DESCRIPTORS));
    for fd in &descriptors {
        assert!(rustix::io::fcntl_getfd(fd).unwrap().contains(FdFlags::CLOEXEC));
    }
    rustix::io::write(&descriptors[3], b"x").unwrap();
    drop(descriptors);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "x");
}

/// Sends what [`send`] would refuse to send.
fn send_raw(socket: &OwnedFd, packet: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(descriptors)));
    sendmsg(socket, &[IoSlice::new(packet)], &mut control, SendFlags::empty()).unwrap();
}

#[test]
fn too_many_descriptors_are_refused_and_closed() {
    for count in [MAX_DESCRIPTORS + 1, 64] {
        let (a, b) = pair();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send_raw(&a, b"x", &vec![writer.as_fd(); count]);
        drop(writer);
        assert!(matches!(get(&b), Err(ReceiveError::TooManyDescriptors)));
        // The end comes only when every copy is closed.
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        // The connection goes on.
        send(&a, b"y", &[], Blocking::Never).unwrap();
        assert_eq!(get(&b).unwrap().0, b"y");
    }
}

#[test]
fn a_packet_too_long_is_refused_with_its_descriptors() {
    let (a, b) = pair();
    let (mut reader, writer) = std::io::pipe().unwrap();
    send_raw(&a, &vec![0; MAX_MESSAGE + 1], &[writer.as_fd()]);
    drop(writer);
    assert!(matches!(get(&b), Err(ReceiveError::TooLong(MAX_MESSAGE))));
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
}

#[test]
fn ends_are_told_apart() {
    let (a, b) = pair();
    assert!(matches!(get(&b), Err(ReceiveError::WouldBlock)));
    send_raw(&a, b"", &[]);
    assert!(matches!(get(&b), Err(ReceiveError::Closed)), "an empty packet is no packet");
    drop(a);
    assert!(matches!(get(&b), Err(ReceiveError::Closed)));
    assert_eq!(
        send(&b, b"x", &[], Blocking::Wait).unwrap_err().kind(),
        ErrorKind::BrokenPipe,
        "and no SIGPIPE"
    );
    assert_eq!(send(&b, b"", &[], Blocking::Wait).unwrap_err().kind(), ErrorKind::InvalidInput);
    let many = [b.as_fd(); MAX_DESCRIPTORS + 1];
    assert_eq!(send(&b, b"x", &many, Blocking::Wait).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn what_the_peer_has_not_received_is_known() {
    let (a, b) = pair();
    assert_eq!(unreceived(&a).unwrap(), 0);
    let (pipe, _writer) = std::io::pipe().unwrap();
    send(&a, b"x", &[pipe.as_fd()], Blocking::Never).unwrap();
    assert!(unreceived(&a).unwrap() > 0);
    get(&b).unwrap();
    assert_eq!(unreceived(&a).unwrap(), 0);
}

/// A client that never reads cannot stop who writes to it, whatever it does to the flags of the description.
#[test]
fn a_full_socket_does_not_block() {
    let (a, _b) = pair();
    let packet = vec![0; MAX_MESSAGE];
    let error =
        (0..100_000).find_map(|_| send(&a, &packet, &[], Blocking::Never).err()).expect("it gets full");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}

#[test]
fn the_peer_is_who_it_is() {
    let (a, _b) = pair();
    let peer = peer_credentials(&a).unwrap();
    let groups: Vec<u32> = rustix::process::getgroups().unwrap().iter().map(|g| g.as_raw()).collect();
    assert_eq!(
        (peer.uid, peer.gid, peer.pid, peer.groups),
        (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
            std::process::id(),
            groups
        )
    );
    let (reader, _writer) = std::io::pipe().unwrap();
    assert!(peer_credentials(&reader).is_err());
}

#[test]
fn futex_waits_end() {
    let word = AtomicU32::new(1);
    assert_eq!(doorbell::wait(&word, 0, None).unwrap(), Woken::Changed);
    assert_eq!(doorbell::wait(&word, 1, Some(Duration::from_millis(1))).unwrap(), Woken::TimedOut);
    assert_eq!(doorbell::wake(&word).unwrap(), 0);
    std::thread::scope(|s| {
        let sleeper = s.spawn(|| {
            while word.load(Ordering::Acquire) == 1 {
                doorbell::wait(&word, 1, None).unwrap();
            }
        });
        word.store(0, Ordering::Release);
        doorbell::wake(&word).unwrap();
        sleeper.join().unwrap();
    });
}

#[test]
fn a_bell_never_blocks_who_rings_it() {
    let adapter = Bell::new().unwrap();
    let fd = adapter.duplicate().unwrap();
    rustix::fs::fcntl_setfl(&fd, rustix::fs::OFlags::empty()).unwrap();
    let application = Bell::adopt(fd).unwrap();
    application.ring().unwrap();
    let mut count = [0; 8];
    rustix::io::read(&adapter, &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 1);
    rustix::io::write(&adapter, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    assert_eq!(application.ring().unwrap_err().kind(), ErrorKind::WouldBlock);
}
