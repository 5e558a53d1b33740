//! Clients that send more than anybody wants.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use portcullis::Access;
use portcullis::wire::control::Request;
use portcullis::wire::frame::encode;
use portcullis::wire::layout::opcode::READ;
use rustix::cmsg_space;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg,
    socketpair,
};

use super::Ground;
use super::raw::{Application, Memory, Wire};
use crate::scale::often;
use crate::system::{Case, Rig, VOLUME, until};

/// SCM_MAX_FD of the kernel: the most that one packet carries.
const MOST: usize = 253;

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

/// Sends a packet with descriptors, as many as the kernel takes.
fn send_with(socket: &OwnedFd, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    sendmsg(socket, &[IoSlice::new(packet)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

/// Sends a request with 253 descriptors: sockets with sockets on their way in them, and those with sockets in them.
pub(super) fn flood(socket: &OwnedFd) {
    let mut carried = pair();
    for _ in 0..2 {
        let next = pair();
        let inside = vec![carried.0.as_fd(); MOST / 4];
        // A user without privileges may have only so many on their way.
        let _ = send_with(&next.1, b"inside", &inside);
        carried = next;
    }
    let packet = encode(7, &Request::RegisterMemory { length: 4096, access: 3 }).unwrap();
    let all = vec![carried.0.as_fd(); MOST];
    // A socket with a full queue, or one that the adapter has closed, takes no more.
    let _ = send_with(socket, &packet, &all);
}

pub(super) const CASES: &[Case] =
    &[Case { name: "clients_that_send_too_much_and_read_nothing_cost_bounded_memory", run: too_much }];

/// Memory that the adapter may hold for such clients: for each of them its replies, and a few pages.
const MEMORY_KIB: u64 = 32 << 10;

/// Each round some flood the adapter with descriptors, some fill their wake channel so that a write to it would wait, some
/// never read their replies; all of them live on while others work, then they go.
fn too_much(rig: &Rig) {
    let rounds = if rig.is_software() { often(3, 30) } else { 1 };
    let mut ground = Ground::new(rig);
    ground.admin.create_volume("v", VOLUME).unwrap();
    let before = ground.count();
    let mut most = 0;
    let resident = resident_kib();
    for round in 0..rounds {
        let mut clients: Vec<Box<dyn std::any::Any>> = Vec::new();
        for _ in 0..4 {
            clients.push(Box::new(full_bell(&ground)));
            clients.push(Box::new(deaf(&mut ground)));
            ground.bystander.works();
        }
        // Last: while what they send is being closed, no more descriptors are taken from their user.
        for _ in 0..4 {
            clients.push(Box::new(flooder(&ground)));
            ground.bystander.works();
        }
        most = most.max(resident_kib().saturating_sub(resident));
        drop(clients);
        before.come_back(&ground.admin, &format!("round {round} of too much"));
    }
    ground.bystander.report();
    println!("{most} KiB more were in use at most");
    assert!(most < MEMORY_KIB, "{most} KiB for a dozen clients");
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Sends packets full of descriptors, in new connections as each ends.
fn flooder(ground: &Ground) -> impl Sized + use<> {
    let socket = ground.adapter.socket();
    let mut last = None;
    for _ in 0..8 {
        let wire = Wire::open(socket);
        (0..4).for_each(|_| flood(&wire.socket));
        // Not in its order either: before any hello.
        let early = Wire::dial(socket).unwrap();
        flood(&early.socket);
        last = Some((wire, early));
    }
    last
}

/// Fills the counter of its eventfd, and makes writes to it wait.
fn full_bell(ground: &Ground) -> impl Sized + use<> {
    let mut app = Application::new(ground.adapter.socket(), "v", Access::ALL.bits(), 8);
    let flags = fcntl_getfl(&app.ring.bell).unwrap();
    fcntl_setfl(&app.ring.bell, flags.difference(OFlags::NONBLOCK)).unwrap();
    rustix::io::write(&app.ring.bell, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    let read = app.request(READ, app.grant.block_size);
    app.ring.push(&read, 8);
    let _needs_waking = app.ring.end.ring();
    app
}

/// Asks until the socket takes no more replies, and then for memory, grants and queues as often as it may.
fn deaf(ground: &mut Ground) -> impl Sized + use<> {
    let mut wire = Wire::open(ground.adapter.socket());
    until("the socket takes no more replies", || {
        let before = wire.unread();
        wire.say(&Request::Statistics, &[]);
        ground.settle();
        wire.unread() == before
    });
    let memory: Vec<Memory> = (0..4).map(|_| Memory::new(1 << 20)).collect();
    for memory in &memory {
        wire.say(&memory.request(), &[memory.file.as_fd()]);
        wire.say(&Request::OpenVolume { name: "v".to_owned(), access: Access::ALL.bits() }, &[]);
    }
    ground.settle();
    (wire, memory)
}
