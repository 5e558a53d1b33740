//! How the adapter takes memory from a distrusted peer.
#![cfg(not(loom))]
#![allow(unsafe_code)] // madvise and mincore of a mapping
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, MemfdFlags, OFlags, SealFlags};
use rustix::io::Errno;
use wire::shm::{AdoptError, Lock, SealedMemory, SharedMemory};

const MAX: u64 = 1 << 20;
const ALL: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE).union(SealFlags::SEAL);

fn refuse(fd: impl Into<OwnedFd>, bytes: u64) -> AdoptError {
    let error = SealedMemory::adopt(fd.into(), bytes, MAX).expect_err("it must be refused");
    println!("{error}");
    error
}

fn memfd(bytes: u64, flags: MemfdFlags) -> OwnedFd {
    let fd = rustix::fs::memfd_create("wire-test", flags).unwrap();
    rustix::fs::ftruncate(&fd, bytes).unwrap();
    fd
}

#[test]
fn bytes_are_copied_from_where_they_lie_whatever_the_alignment() {
    let (memory, _fd) = SharedMemory::create("wire-test", 4096).unwrap();
    let at = |i: usize| (i * 7 + i / 256).to_le_bytes()[0];
    for word in 0..512 {
        let bytes: [u8; 8] = std::array::from_fn(|i| at(word * 8 + i));
        memory.atomic_u64(word * 8).unwrap().store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
    }
    for offset in (0..20).chain(4076..=4096) {
        for length in (0..40).filter(|length| offset + length <= 4096) {
            let mut target = vec![0xee; length];
            memory.copy_out(offset, &mut target).unwrap();
            assert!(
                target.iter().enumerate().all(|(i, byte)| *byte == at(offset + i)),
                "{length} at {offset}"
            );
        }
    }
    let mut target = [0xee; 8];
    for offset in [4089, 4096, 4097, usize::MAX - 7, usize::MAX] {
        assert_eq!(memory.copy_out(offset, &mut target), None);
        assert_eq!(target, [0xee; 8], "nothing was copied");
    }
}

#[test]
fn bytes_are_put_where_they_belong_and_nowhere_else() {
    let (memory, _fd) = SharedMemory::create("wire-test", 4096).unwrap();
    let source: Vec<u8> = (1..=40).collect();
    for offset in 0..24 {
        for length in 0..source.len() {
            memory.copy_in(0, &[0; 128]).unwrap();
            memory.copy_in(offset, &source[..length]).unwrap();
            let mut all = [9; 128];
            memory.copy_out(0, &mut all).unwrap();
            assert_eq!(all[offset..offset + length], source[..length]);
            assert!(all[..offset].iter().chain(&all[offset + length..]).all(|byte| *byte == 0));
        }
    }
    for offset in [4096 - 39, 4096, 5000, usize::MAX, usize::MAX - 39] {
        assert!(memory.copy_in(offset, &source).is_none(), "{offset}");
    }
    memory.copy_in(4096 - 40, &source).unwrap();
}

#[test]
fn both_sides_see_each_others_stores() {
    let (ours, fd) = SharedMemory::create("wire-test", 8192).unwrap();
    let theirs = SealedMemory::adopt(fd.try_clone().unwrap(), 8192, MAX).unwrap();
    assert_eq!(rustix::fs::fcntl_get_seals(&fd).unwrap(), ALL);
    ours.atomic_u64(8184).unwrap().store(7, Ordering::Relaxed);
    assert_eq!(theirs.memory().atomic_u64(8184).unwrap().load(Ordering::Relaxed), 7);
    theirs.memory().atomic_u32(4).unwrap().store(9, Ordering::Relaxed);
    assert_eq!(ours.atomic_u32(4).unwrap().load(Ordering::Relaxed), 9);
    assert_eq!(theirs.start() as usize % 4096, 0);
    for (offset, fits) in [(0, true), (8180, true), (8184, true), (8188, true), (8190, false), (8192, false)]
    {
        assert_eq!(ours.atomic_u32(offset).is_some(), fits, "{offset}");
    }
    for offset in [4, 8185, 8188, 8192, usize::MAX - 7, usize::MAX] {
        assert!(ours.atomic_u64(offset).is_none(), "{offset}");
    }
}

#[test]
fn what_is_not_a_memfd_is_refused() {
    let (reader, writer) = std::io::pipe().unwrap();
    let (socket, _other) = UnixStream::pair().unwrap();
    let bell: OwnedFd = wire::doorbell::Bell::new().unwrap().into();
    let file = File::open("/proc/self/exe").unwrap();
    for fd in [reader.into(), writer.into(), socket.into(), bell, OwnedFd::from(file)] {
        assert!(matches!(refuse(fd, 4096), AdoptError::NotMemfd(_)));
    }
    let path = rustix::fs::open("/proc/self/exe", OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    assert!(matches!(refuse(path, 4096), AdoptError::NotMemfd(_)));
}

#[test]
fn a_memfd_that_takes_no_seals_is_refused() {
    assert!(matches!(refuse(memfd(4096, MemfdFlags::CLOEXEC), 4096), AdoptError::NotSealable(1)));
    let sealed = memfd(4096, MemfdFlags::ALLOW_SEALING);
    rustix::fs::fcntl_add_seals(&sealed, SealFlags::SEAL | SealFlags::SHRINK).unwrap();
    assert!(matches!(refuse(sealed, 4096), AdoptError::NotSealable(3)));
}

/// A file in tmpfs knows seals, but takes none.
#[test]
fn a_tmpfs_file_is_refused() {
    let mode = rustix::fs::Mode::RUSR;
    match rustix::fs::open("/dev/shm", OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC, mode) {
        Ok(file) => assert!(matches!(refuse(file, 4096), AdoptError::NotSealable(1))),
        Err(error) => println!("skipped: no temporary file in /dev/shm: {error}"),
    }
}

#[test]
fn a_memfd_that_cannot_be_written_is_refused() {
    let fd = memfd(4096, MemfdFlags::ALLOW_SEALING);
    let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
    assert!(matches!(refuse(File::open(again).unwrap(), 4096), AdoptError::ReadOnly));
    for seal in [SealFlags::WRITE, SealFlags::FUTURE_WRITE, ALL] {
        let fd = memfd(4096, MemfdFlags::ALLOW_SEALING);
        rustix::fs::fcntl_add_seals(&fd, seal).unwrap();
        assert!(matches!(refuse(fd, 4096), AdoptError::WriteSealed(s) if s == seal.bits()));
    }
}

#[test]
fn a_wrong_size_is_refused() {
    let make = |bytes| memfd(bytes, MemfdFlags::ALLOW_SEALING);
    assert!(matches!(refuse(make(0), 0), AdoptError::Size(0)));
    assert!(matches!(refuse(make(4095), 4095), AdoptError::Size(4095)));
    assert!(matches!(refuse(make(4097), 4096), AdoptError::WrongSize { actual: 4097, expected: 4096 }));
    assert!(matches!(refuse(make(4096), 8192), AdoptError::WrongSize { actual: 4096, expected: 8192 }));
    assert!(matches!(refuse(make(8192), 4096), AdoptError::WrongSize { actual: 8192, expected: 4096 }));
    assert!(matches!(refuse(make(MAX + 4096), MAX + 4096), AdoptError::TooLarge { .. }));
    assert!(matches!(refuse(make(4096), u64::MAX - 4095), AdoptError::TooLarge { .. }));
    let huge = SealedMemory::adopt(make(4096), u64::MAX - 4095, u64::MAX);
    assert!(matches!(huge, Err(AdoptError::TooLarge { .. })));
}

#[test]
fn huge_pages_are_refused() {
    let size = 2 << 20;
    let fd = match rustix::fs::memfd_create("wire-test", MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB) {
        Ok(fd) => fd,
        Err(error) => return println!("skipped: this kernel has no huge pages: {error}"),
    };
    rustix::fs::ftruncate(&fd, size).unwrap();
    let refused = SealedMemory::adopt(fd, size, size);
    assert!(matches!(refused, Err(AdoptError::HugePages)), "{refused:?}");
}

/// Everything by which a peer could take a page away, or hinder the adapter.
fn attack(fd: impl AsFd, mapping: &SharedMemory, bytes: u64) -> [Result<(), Errno>; 5] {
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    [
        rustix::fs::fallocate(&fd, punch, 0, bytes),
        remove(mapping),
        rustix::fs::ftruncate(&fd, 0),
        rustix::fs::ftruncate(&fd, bytes * 2),
        rustix::fs::fcntl_add_seals(&fd, SealFlags::WRITE),
    ]
}

/// MADV_REMOVE of the whole mapping.
fn remove(mapping: &SharedMemory) -> Result<(), Errno> {
    // SAFETY: the range is this mapping, which only this test looks at, through atomics.
    unsafe { rustix::mm::madvise(mapping.start().cast(), mapping.len(), rustix::mm::Advice::LinuxRemove) }
}

#[test]
fn nothing_takes_pages_away_afterwards() {
    let (ours, fd) = SharedMemory::create("wire-test", 16384).unwrap();
    let theirs = SealedMemory::adopt(fd.try_clone().unwrap(), 16384, MAX).unwrap();
    for page in 0..4 {
        ours.atomic_u64(page * 4096).unwrap().store(5, Ordering::Relaxed);
    }
    assert_eq!(attack(&fd, &ours, 16384), [Err(Errno::PERM); 5]);
    assert!(SharedMemory::map(&fd, 16384).is_err(), "no new writable mapping");
    assert_eq!(File::from(fd).write(b"x").unwrap_err().kind(), ErrorKind::PermissionDenied);
    drop(ours);
    for page in 0..4 {
        assert_eq!(theirs.memory().atomic_u64(page * 4096).unwrap().load(Ordering::Relaxed), 5);
    }
}

#[test]
fn a_hole_before_is_filled() {
    let (ours, fd) = SharedMemory::create("wire-test", 8192).unwrap();
    remove(&ours).unwrap();
    let theirs = SealedMemory::adopt_with(fd, 8192, MAX, Lock::PinnedElsewhere).unwrap();
    assert_eq!(resident(theirs.memory()), [true, true]);
}

/// Which pages of the mapping are in memory: mincore(2).
fn resident(memory: &SharedMemory) -> Vec<bool> {
    let mut pages = vec![0u8; memory.len() / 4096];
    // SAFETY: the range is a mapping, and the vector has a byte for each of its pages.
    let result = unsafe { libc::mincore(memory.start().cast(), memory.len(), pages.as_mut_ptr()) };
    assert_eq!(result, 0);
    pages.iter().map(|p| p & 1 == 1).collect()
}

/// The peer attacks all the while the adapter adopts. Either it is refused, or whole and safe for ever: the touch of
/// every page would be a SIGBUS otherwise.
#[test]
fn an_attack_that_races_with_adopt_never_faults_the_adapter() {
    let (mut taken, mut refused) = (0, 0);
    for round in 0..400u32 {
        let (ours, fd) = SharedMemory::create("wire-test", 32768).unwrap();
        let theirs = fd.try_clone().unwrap();
        let (started, stop) = (AtomicBool::new(false), AtomicBool::new(false));
        let adopted = std::thread::scope(|s| {
            s.spawn(|| {
                while !stop.load(Ordering::Acquire) {
                    let _ = attack(&fd, &ours, 32768);
                    let _ = rustix::fs::ftruncate(&fd, 32768);
                    // Now and then the size is right for a while.
                    (0..round % 64 * 32).for_each(|_| std::hint::spin_loop());
                    started.store(true, Ordering::Release);
                }
            });
            while !started.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            let adopted = SealedMemory::adopt(theirs, 32768, MAX);
            if let Ok(memory) = &adopted {
                for _ in 0..3 {
                    for page in 0..8 {
                        memory.memory().atomic_u64(page * 4096).unwrap().fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            stop.store(true, Ordering::Release);
            adopted
        });
        match adopted {
            Ok(memory) => {
                taken += 1;
                assert_eq!(rustix::fs::fcntl_get_seals(&fd).unwrap(), ALL);
                assert_eq!(attack(&fd, &ours, 32768), [Err(Errno::PERM); 5]);
                for page in 0..8 {
                    assert_eq!(memory.memory().atomic_u64(page * 4096).unwrap().load(Ordering::Relaxed), 3);
                }
            }
            Err(AdoptError::WrongSize { .. } | AdoptError::Seal(_) | AdoptError::Map { .. }) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    println!("{taken} taken, {refused} refused");
    assert!(taken > 0);
}
