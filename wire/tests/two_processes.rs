//! The wire between two processes.
#![cfg(not(loom))]
#![allow(unsafe_code)] // fork(2)
#![allow(clippy::unwrap_used)]

use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::epoll;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use wire::control::{MAX_MESSAGE, Reply, Request};
use wire::doorbell::{self, Bell};
use wire::frame::{decode_reply, decode_request, encode};
use wire::layout::{Entries, SubmissionEntry};
use wire::ring::{AdapterEnd, ApplicationEnd, Completion};
use wire::shm::{SealedMemory, SharedMemory};
use wire::socket::{Blocking, peer_credentials, receive, send};
use wire::view::{QueueMemory, QueueView, ViewError};

const REQUESTS: u64 = 60_000;
const ENTRIES: u32 = 16;
/// In the environment of the process that plays the application; the socket is its standard input.
const APPLICATION: &str = "WIRE_TEST_APPLICATION";

fn request(n: u64) -> SubmissionEntry {
    SubmissionEntry { user_data: n, key: n, offset: !n, extension: n.rotate_left(9), ..Default::default() }
}

fn answer(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// S5-R1, S5-R2 between two processes: the application makes the queue, the adapter adopts it, both sleep and wake.
#[test]
fn an_application_and_an_adapter() {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let mut application = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_application", "--nocapture"])
        .env(APPLICATION, "1")
        .stdin(Stdio::from(theirs))
        .spawn()
        .unwrap();
    // Of the process that made the socket pair, which is this one.
    assert_eq!(peer_credentials(&ours).unwrap().pid, std::process::id());

    let mut buffer = vec![0; MAX_MESSAGE];
    let (length, mut descriptors) = receive(&ours, &mut buffer, Blocking::Wait).unwrap();
    let (id, message) = decode_request(&buffer[..length]).unwrap();
    assert_eq!(message, Request::CreateQueue { entries: ENTRIES });
    let entries = Entries::new(ENTRIES).unwrap();
    let memory = SealedMemory::adopt(descriptors.pop().unwrap(), entries.bytes() as u64, 1 << 20).unwrap();
    let view = QueueView::open(memory.memory().clone(), entries).unwrap();
    let bell = Bell::new().unwrap();
    let reply = encode(id, &Reply::Queue { queue: 1 }).unwrap();
    send(&ours, &reply, &[bell.as_fd()], Blocking::Never).unwrap();

    let (served, sleeps) = poll(&ours, &bell, AdapterEnd::new(view, entries));
    println!("{served} requests served, slept {sleeps} times");
    assert!(application.wait().unwrap().success());
    assert_eq!(served, REQUESTS);
}

/// Serves until the connection ends.
fn poll(socket: &OwnedFd, bell: &Bell, mut adapter: AdapterEnd<QueueView>) -> (u64, u64) {
    let waiter = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(&waiter, bell, epoll::EventData::new_u64(0), edge).unwrap();
    epoll::add(&waiter, socket, epoll::EventData::new_u64(1), epoll::EventFlags::IN).unwrap();
    let (mut served, mut sleeps) = (0, 0);
    loop {
        adapter.poll_doorbell().unwrap();
        let before = served;
        while let Some(entry) = adapter.take().unwrap() {
            assert_eq!(entry, request(served));
            adapter.complete(&Completion { value: answer(served), ..Completion::ok(entry.user_data, 0) });
            served += 1;
        }
        if adapter.end_turn() {
            doorbell::wake(adapter.memory().cq_wait()).unwrap();
        }
        if served != before {
            continue;
        }
        adapter.set_need_wake(true);
        if !adapter.has_rung() {
            sleeps += 1;
            let mut events = Vec::with_capacity(2);
            epoll::wait(&waiter, rustix::buffer::spare_capacity(&mut events), None).unwrap();
            if events.iter().any(|event| event.data.u64() == 1) {
                return (served, sleeps);
            }
        }
        adapter.set_need_wake(false);
    }
}

/// The other process. Run as a test it does nothing.
#[test]
fn the_application() {
    if std::env::var_os(APPLICATION).is_none() {
        return;
    }
    let socket = std::io::stdin();
    let entries = Entries::new(ENTRIES).unwrap();
    let (memory, fd) = SharedMemory::create("wire-test-queue", entries.bytes()).unwrap();
    let view = QueueView::create(Arc::new(memory), entries).unwrap();
    let message = encode(77, &Request::CreateQueue { entries: ENTRIES }).unwrap();
    send(&socket, &message, &[fd.as_fd()], Blocking::Wait).unwrap();
    let mut buffer = vec![0; MAX_MESSAGE];
    let (length, mut descriptors) = receive(&socket, &mut buffer, Blocking::Wait).unwrap();
    assert_eq!(decode_reply(&buffer[..length]).unwrap(), (77, Reply::Queue { queue: 1 }));
    let bell = Bell::adopt(descriptors.pop().unwrap()).unwrap();

    let mut queue = ApplicationEnd::new(view, entries);
    let (mut pushed, mut popped) = (0, 0);
    while popped < REQUESTS {
        // Bursts of all sizes, so that both sides run ahead and both run dry.
        for _ in 0..=pushed % 19 {
            if pushed == REQUESTS || queue.push(&request(pushed)).is_err() {
                break;
            }
            pushed += 1;
        }
        if queue.ring() {
            bell.ring().unwrap();
        }
        if queue.begin_wait() {
            // A wake that is lost ends the test in red.
            let woken = doorbell::wait(queue.memory().cq_wait(), 1, Some(Duration::from_secs(20))).unwrap();
            assert_ne!(woken, doorbell::Woken::TimedOut);
            queue.end_wait();
        }
        while let Some(completion) = queue.pop() {
            assert_eq!((completion.user_data, completion.value), (popped, answer(popped)));
            popped += 1;
        }
    }
}

/// S5-R14: a process that was not given the queue faults when it stores to its doorbell, and nothing arrives.
#[test]
fn s5_r14_a_foreign_doorbell_faults() {
    let entries = Entries::new(ENTRIES).unwrap();
    let (memory, _fd) = SharedMemory::create("wire-test-queue", entries.bytes()).unwrap();
    // SAFETY: the range is this mapping. What changes is only what a child inherits: not it.
    unsafe { rustix::mm::madvise(memory.start().cast(), memory.len(), rustix::mm::Advice::LinuxDontFork) }
        .unwrap();
    let view = QueueView::create(Arc::new(memory), entries).unwrap();
    let tail = view.tail().as_ptr();
    // SAFETY: the child only makes calls that are safe after a fork of a program with threads, stores, and ends.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: as above; the store goes to an address where this process has nothing, and is meant to fault.
        unsafe {
            libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core);
            libc::signal(libc::SIGSEGV, libc::SIG_DFL);
            tail.write_volatile(1);
            libc::_exit(0);
        }
    }
    let mut status = 0;
    // SAFETY: the child is ours, and `status` writable.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(libc::WIFSIGNALED(status), "it must not have ended by itself: {status:#x}");
    assert_eq!(libc::WTERMSIG(status), libc::SIGSEGV);
    assert_eq!(view.tail().load(Ordering::SeqCst), 0);
}

#[test]
fn a_wrong_header_is_refused() {
    let entries = Entries::new(ENTRIES).unwrap();
    let memory = Arc::new(SharedMemory::create("wire-test-queue", entries.bytes()).unwrap().0);
    let open = |entries| QueueView::open(memory.clone(), entries).map(|_| ()).unwrap_err();
    assert_eq!(open(entries), ViewError::Magic(0));
    QueueView::create(memory.clone(), entries).unwrap();
    let fewer = Entries::new(ENTRIES / 2).unwrap();
    assert_eq!(open(fewer), ViewError::Entries { header: ENTRIES, request: ENTRIES / 2 });
    let more = Entries::new(ENTRIES * 64).unwrap();
    assert!(matches!(open(more), ViewError::TooSmall { entries: 1024, .. }));
    let word = memory.atomic_u64(8).unwrap();
    word.fetch_or(5 << 16, Ordering::Relaxed);
    assert_eq!(open(entries), ViewError::Reserved(5));
    word.store(u64::from(ENTRIES) << 32 | 9, Ordering::Relaxed);
    assert_eq!(open(entries), ViewError::Version(9));
}

/// Slots and words beyond the end come round again, and the words are where the layout says.
#[test]
fn the_view_stays_inside() {
    let entries = Entries::new(4).unwrap();
    let memory = Arc::new(SharedMemory::create("wire-test-queue", entries.bytes()).unwrap().0);
    let view = QueueView::new(memory.clone(), entries).unwrap();
    let offset = |at: *mut u64| at as usize - memory.start() as usize;
    assert_eq!(offset(view.tail().as_ptr().cast()), 64);
    assert_eq!(offset(view.cq_head().as_ptr().cast()), 128);
    assert_eq!(offset(view.need_wake().as_ptr().cast()), 192);
    assert_eq!(offset(view.state().as_ptr().cast()), 196);
    assert_eq!(offset(view.cq_wait().as_ptr().cast()), 256);
    assert_eq!(offset(view.sq_word(3, 7).as_ptr()), 4096 + 3 * 64 + 56);
    assert_eq!(offset(view.cq_word(3, 3).as_ptr()), 4096 + 4 * 64 + 3 * 32 + 24);
    for slot in [4, 7, 4096, usize::MAX] {
        assert!(offset(view.sq_word(slot, usize::MAX).as_ptr()) < 4096 + 4 * 64);
        assert!(offset(view.cq_word(slot, usize::MAX).as_ptr()) < 4096 + 4 * 96);
    }
}
