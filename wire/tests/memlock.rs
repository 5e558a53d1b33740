//! The limit of locked memory. A program of its own, because the limit belongs to the process.
#![cfg(not(loom))]
#![allow(unsafe_code)] // capset(2)
#![allow(clippy::unwrap_used)]

use rustix::process::{Resource, Rlimit, setrlimit};
use wire::shm::{AdoptError, Lock, SealedMemory, SharedMemory};

/// Gives up CAP_IPC_LOCK on this thread: it lifts the limit. capset(2) with _LINUX_CAPABILITY_VERSION_3.
fn obey_limits() {
    let header = [0x2008_0522u32, 0];
    let mut sets = [0u32; 6]; // effective, permitted, inheritable; low words first
    // SAFETY: both are as large as the kernel reads and writes for this version.
    let (got, set) = unsafe {
        let got = libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr());
        sets[0] &= !(1 << 14); // CAP_IPC_LOCK
        (
            got,
            libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()),
        )
    };
    assert_eq!((got, set), (0, 0), "{}", std::io::Error::last_os_error());
}

#[test]
fn the_memlock_limit_is_explained() {
    setrlimit(
        Resource::Memlock,
        Rlimit {
            current: Some(64 << 10),
            maximum: Some(64 << 10),
        },
    )
    .unwrap();
    obey_limits();
    let memory = |bytes| SharedMemory::create("wire-test", bytes).unwrap().1;
    let error = SealedMemory::adopt(memory(128 << 10), 128 << 10, 1 << 20).unwrap_err();
    assert!(
        matches!(error, AdoptError::Lock { bytes: 131_072, .. }),
        "{error:?}"
    );
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
        assert!(
            SealedMemory::adopt(memory(40 << 10), 40 << 10, 1 << 20).is_err(),
            "it is still mapped"
        );
        drop(kept);
    }
}
