//! Limits of the process. A program of its own with one test, because they hold for all its threads.
#![cfg(not(loom))]
#![allow(unsafe_code)] // capset(2)
#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use wire::shm::{AdoptError, Lock, SealedMemory, SharedMemory};
use wire::socket::{Blocking, ReceiveError, receive, send};

/// Gives up CAP_IPC_LOCK on this thread: it lifts the limit. capset(2) with _LINUX_CAPABILITY_VERSION_3.
fn obey_limits() {
    let header = [0x2008_0522u32, 0];
    let mut sets = [0u32; 6]; // effective, permitted, inheritable; low words first
    // SAFETY: both are as large as the kernel reads and writes for this version.
    let (got, set) = unsafe {
        let got = libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr());
        sets[0] &= !(1 << 14); // CAP_IPC_LOCK
        (got, libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()))
    };
    assert_eq!((got, set), (0, 0), "{}", std::io::Error::last_os_error());
}

#[test]
fn limits_are_met_with_an_explanation() {
    memlock();
    descriptors();
}

/// The limit of open files: of a packet's descriptors some have no room here.
fn descriptors() {
    let kind = (AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    let (a, b) = socketpair(kind.0, kind.1, kind.2, None).unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    send(&a, b"x", &[writer.as_fd(); 3], Blocking::Never).unwrap();
    drop(writer);
    let next = rustix::io::fcntl_dupfd_cloexec(&a, 0).unwrap();
    let before = getrlimit(Resource::Nofile);
    let room = u64::try_from(next.as_raw_fd()).unwrap() + 1;
    drop(next);
    setrlimit(Resource::Nofile, Rlimit { current: Some(room), ..before }).unwrap();
    let result = receive(&b, &mut [0; 16], Blocking::Never);
    setrlimit(Resource::Nofile, before).unwrap();
    assert!(matches!(result, Err(ReceiveError::TooManyDescriptors)), "{result:?}");
    // The end comes only when every copy is closed.
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
}

/// The limit of locked memory.
fn memlock() {
    setrlimit(Resource::Memlock, Rlimit { current: Some(64 << 10), maximum: Some(64 << 10) }).unwrap();
    obey_limits();
    let memory = |bytes| SharedMemory::create("wire-test", bytes).unwrap().1;
    let error = SealedMemory::adopt(memory(128 << 10), 128 << 10, 1 << 20).unwrap_err();
    assert!(matches!(error, AdoptError::Lock { bytes: 131_072, .. }), "{error:?}");
    let text = error.to_string();
    println!("{text}");
    for part in ["131072 bytes", "RLIMIT_MEMLOCK", "65536 bytes", "ulimit -l"] {
        assert!(text.contains(part), "{text}: {part}");
    }

    // What is pinned elsewhere does not count here, and what was refused or given back does not count any more.
    SealedMemory::adopt_with(memory(128 << 10), 128 << 10, 1 << 20, Lock::PinnedElsewhere).unwrap();
    for _ in 0..3 {
        let first = SealedMemory::adopt(memory(40 << 10), 40 << 10, 1 << 20).unwrap();
        assert!(SealedMemory::adopt(memory(40 << 10), 40 << 10, 1 << 20).is_err());
        let kept = first.memory().clone();
        drop(first);
        assert!(SealedMemory::adopt(memory(40 << 10), 40 << 10, 1 << 20).is_err(), "it is still mapped");
        drop(kept);
    }
}
