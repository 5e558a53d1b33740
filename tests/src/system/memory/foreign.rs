//! Descriptors that are no memory, offered as memory.
#![allow(unsafe_code)] // descriptors of all kinds are made by raw system calls

use std::ffi::CStr;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use driver::dice::Dice;
use portcullis::wire::control::{Reply, Request};
use portcullis::{Session, Status};

/// Paths that can be opened where they are there.
const PATHS: [&CStr; 10] = [
    c"/dev/zero",
    c"/dev/null",
    c"/dev/full",
    c"/dev/urandom",
    c"/proc/self/maps",
    c"/proc/self/pagemap",
    c"/proc/self/mem",
    c"/sys/kernel/mm/transparent_hugepage/enabled",
    c"/dev/fuse",
    c"/dev/udmabuf",
];

/// Offers one as a region and one as a queue; neither is taken. How many were offered.
pub(super) fn offer(session: &Session, dice: &mut Dice) -> u64 {
    let mut offered = 0;
    for as_queue in [false, true] {
        let Some(fd) = descriptor(dice) else { continue };
        let request = if as_queue {
            Request::CreateQueue { entries: 16 }
        } else {
            Request::RegisterMemory { length: 4096, access: 3 }
        };
        let (reply, _) = session.call(&request, &[fd.as_fd()]).unwrap();
        let Reply::Error { status, .. } = reply else { panic!("{fd:?} was taken: {reply:?}") };
        let expected = [Status::E_LOCAL_MEM, Status::E_NO_RESOURCES, Status::E_PARAM];
        assert!(expected.contains(&status), "{fd:?}: {status}");
        offered += 1;
    }
    offered
}

/// Any descriptor that is no sealable memfd of the right size; `None` where this machine has none of the kind.
fn descriptor(dice: &mut Dice) -> Option<OwnedFd> {
    // SAFETY: each call makes a descriptor or fails; pointers are to what outlives the call.
    let number = unsafe {
        match dice.below(16) {
            0..4 => {
                let path = PATHS[dice.index(PATHS.len())];
                match libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) {
                    -1 => libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC),
                    number => number,
                }
            }
            4 => file(c"/dev/shm"),
            5 => file(c"/tmp"),
            6 => libc::open(c"/".as_ptr(), [libc::O_DIRECTORY, libc::O_PATH][dice.index(2)]),
            7 => libc::eventfd(0, 0),
            8 => libc::epoll_create1(0),
            9 => libc::timerfd_create(libc::CLOCK_MONOTONIC, 0),
            10 => libc::socket([libc::AF_UNIX, libc::AF_INET][dice.index(2)], libc::SOCK_STREAM, 0),
            11 => {
                let mut ends = [0; 2];
                libc::pipe(ends.as_mut_ptr());
                libc::close(ends[1 - dice.index(2)]);
                return ends
                    .into_iter()
                    .find(|&end| libc::fcntl(end, libc::F_GETFD) >= 0)
                    .map(|end| OwnedFd::from_raw_fd(end));
            }
            12 => memfd(0, 4096, 0),
            13 => {
                memfd(libc::MFD_ALLOW_SEALING, 4096, [libc::F_SEAL_WRITE, libc::F_SEAL_SEAL][dice.index(2)])
            }
            14 => memfd(libc::MFD_ALLOW_SEALING, [0, 100, 1 << 20][dice.index(3)], 0),
            _ => memfd(libc::MFD_ALLOW_SEALING | libc::MFD_HUGETLB, 2 << 20, 0),
        }
    };
    // SAFETY: just made, and nobody else's.
    (number >= 0).then(|| unsafe { OwnedFd::from_raw_fd(number) })
}

/// A file without a name in that folder.
fn file(folder: &CStr) -> i32 {
    // SAFETY: the string outlives the calls.
    unsafe {
        let number = libc::open(folder.as_ptr(), libc::O_TMPFILE | libc::O_RDWR, 0o600);
        libc::ftruncate(number, 4096);
        number
    }
}

fn memfd(flags: libc::c_uint, bytes: libc::off_t, seals: libc::c_int) -> i32 {
    // SAFETY: the name outlives the call.
    unsafe {
        let number = libc::memfd_create(c"foreign".as_ptr(), flags);
        libc::ftruncate(number, bytes);
        if seals != 0 {
            libc::fcntl(number, libc::F_ADD_SEALS, seals);
        }
        number
    }
}
