//! Memory shared by two processes that do not trust each other.
#![allow(unsafe_code)] // atomics inside a mapping

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use memmap2::{Advice, MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, OFlags, SealFlags};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::discard::{Owner, discard};
use crate::layout::ScatterSegment;

/// Bytes of a page; sizes are multiples of it.
pub const PAGE: usize = 4096;

/// A shared mapping, readable and writable. The other side may change every byte at any time, so it is only ever seen
/// as atomics or through the raw pointer.
#[derive(Debug)]
pub struct SharedMemory {
    map: MmapRaw,
}

impl SharedMemory {
    /// Makes a memfd of `bytes` zeroes that can be sealed, and maps it. `name` shows up in /proc only.
    ///
    /// # Errors
    /// The kernel's: too many descriptors, no memory; EINVAL for a size of 0.
    pub fn create(name: &str, bytes: usize) -> io::Result<(Self, OwnedFd)> {
        let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let size = u64::try_from(bytes).map_err(|_| Errno::FBIG)?;
        rustix::fs::ftruncate(&fd, size)?;
        let memory = Self::map(&fd, bytes)?;
        Ok((memory, fd))
    }

    /// Maps the first `bytes` of a file. Touching what lies beyond the file's end later is SIGBUS, so only map what a
    /// trusted side made, or use [`SealedMemory::adopt`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn map(fd: impl AsFd, bytes: usize) -> io::Result<Self> {
        if bytes == 0 {
            return Err(Errno::INVAL.into());
        }
        let map = MmapOptions::new().len(bytes).map_raw(fd.as_fd().as_raw_fd())?;
        Ok(Self { map })
    }

    /// Maps the pages from `offset` on at `onto` as well, in place of what is mapped there. It is a move of this mapping that
    /// leaves the old address where it is: no new mapping, which the adapter's seals would forbid, and nothing is missing at
    /// any moment.
    ///
    /// # Errors
    /// EINVAL if it is not whole pages inside, or the kernel is older than 5.13; ENOMEM at its limit of mappings.
    ///
    /// # Safety
    /// The `bytes` bytes at `onto` are a mapping of the caller's own, no reference into it exists and no other thread touches
    /// it until this returns, and it holds the same bytes as the pages here.
    pub unsafe fn map_also_at(&self, offset: usize, bytes: usize, onto: *mut u8) -> io::Result<()> {
        use rustix::mm::{MremapFlags, mremap_fixed};
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.len());
        if !inside || bytes == 0 || !(offset | bytes | onto.addr()).is_multiple_of(PAGE) {
            return Err(Errno::INVAL.into());
        }
        let from = self.start().wrapping_add(offset).cast();
        let flags = MremapFlags::MAYMOVE | MremapFlags::DONTUNMAP;
        // SAFETY: the source lies in this mapping and stays mapped; what happens to the target is what the caller allows.
        unsafe { mremap_fixed(from, bytes, bytes, flags, onto.cast())? };
        Ok(())
    }

    /// Bytes.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// The first byte; page-aligned.
    pub fn start(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    /// The 32-bit word at a byte offset; `None` if the offset is not a multiple of 4 or the word not inside.
    pub fn atomic_u32(&self, offset: usize) -> Option<&AtomicU32> {
        let at = self.word(offset, size_of::<AtomicU32>())?;
        // SAFETY: `word` saw that it is aligned and inside the mapping, which lives as long as `self`; all access to the
        // mapping from safe code is atomic.
        Some(unsafe { AtomicU32::from_ptr(at.cast()) })
    }

    /// The 64-bit word at a byte offset; `None` if the offset is not a multiple of 8 or the word not inside.
    pub fn atomic_u64(&self, offset: usize) -> Option<&AtomicU64> {
        let at = self.word(offset, size_of::<AtomicU64>())?;
        // SAFETY: as in `atomic_u32`.
        Some(unsafe { AtomicU64::from_ptr(at.cast()) })
    }

    /// Copies the bytes from `offset` on into private memory, each read exactly once, so that what the other side writes
    /// later changes nothing. `None`, and nothing copied, if they are not all inside.
    #[must_use]
    pub fn copy_out(&self, offset: usize, target: &mut [u8]) -> Option<()> {
        let end = offset.checked_add(target.len())?;
        if end > self.len() {
            return None;
        }
        let to_word = offset.next_multiple_of(8) - offset;
        let (head, rest) = target.split_at_mut(to_word.min(target.len()));
        self.copy_bytes(offset, head);
        let mut at = offset + head.len();
        let (words, tail) = rest.as_chunks_mut::<8>();
        for word in words {
            // Relaxed: whatever tells that the bytes are there was read with Acquire.
            *word = self.atomic_u64(at)?.load(Ordering::Relaxed).to_ne_bytes();
            at += 8;
        }
        self.copy_bytes(at, tail);
        Some(())
    }

    /// Copies bytes to `offset` and on, where the other side may see them in any order until it is told that they are there.
    /// `None`, and nothing copied, if they do not all fit inside.
    #[must_use]
    pub fn copy_in(&self, offset: usize, source: &[u8]) -> Option<()> {
        let end = offset.checked_add(source.len())?;
        if end > self.len() {
            return None;
        }
        let to_word = offset.next_multiple_of(8) - offset;
        let (head, rest) = source.split_at(to_word.min(source.len()));
        self.put_bytes(offset, head);
        let mut at = offset + head.len();
        let (words, tail) = rest.as_chunks::<8>();
        for word in words {
            // Relaxed: whoever tells that the bytes are there does so with Release.
            self.atomic_u64(at)?.store(u64::from_ne_bytes(*word), Ordering::Relaxed);
            at += 8;
        }
        self.put_bytes(at, tail);
        Some(())
    }

    /// A few bytes that the caller saw to fit inside.
    fn put_bytes(&self, offset: usize, source: &[u8]) {
        for (at, byte) in (offset..self.len()).zip(source) {
            // SAFETY: `at` is inside the mapping, which lives as long as `self`; all access to it is atomic.
            unsafe { AtomicU8::from_ptr(self.start().wrapping_add(at)) }.store(*byte, Ordering::Relaxed);
        }
    }

    /// Copies a scatter list from `offset` on, each word of it read exactly once; `None` as for [`Self::copy_out`].
    #[must_use]
    pub fn copy_list(&self, offset: usize, target: &mut [ScatterSegment]) -> Option<()> {
        self.copy_out(offset, target.as_mut_bytes())
    }

    /// A few bytes that the caller saw to be inside.
    fn copy_bytes(&self, offset: usize, target: &mut [u8]) {
        for (at, byte) in (offset..self.len()).zip(target) {
            // SAFETY: `at` is inside the mapping, which lives as long as `self`; all access to it is atomic.
            *byte = unsafe { AtomicU8::from_ptr(self.start().wrapping_add(at)) }.load(Ordering::Relaxed);
        }
    }

    fn word(&self, offset: usize, size: usize) -> Option<*mut u8> {
        let end = offset.checked_add(size)?;
        (offset.is_multiple_of(size) && end <= self.len()).then(|| self.start().wrapping_add(offset))
    }
}

/// Why memory of a distrusted peer was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// A size that no memory may have.
    #[error("a size of {0} bytes is not a positive multiple of {PAGE}: round the size up to whole pages")]
    Size(u64),
    /// Larger than allowed.
    #[error(
        "{bytes} bytes are more than the {max} bytes allowed here: use less memory, or have the limit raised"
    )]
    TooLarge {
        /// Bytes asked for.
        bytes: u64,
        /// Bytes allowed.
        max: u64,
    },
    /// Not a memfd: a pipe, a socket, a file of a disk or of FUSE.
    #[error(
        "the descriptor is not a memfd (reading its seals: {0}): \
         make it with memfd_create and the flags MFD_CLOEXEC | MFD_ALLOW_SEALING"
    )]
    NotMemfd(#[source] io::Error),
    /// Its status flags cannot be read.
    #[error("the flags of the descriptor cannot be read: {0}")]
    Flags(#[source] io::Error),
    /// Not open for reading and writing.
    #[error("the memfd is not open for both reading and writing: pass the descriptor that memfd_create gave")]
    ReadOnly,
    /// It takes no more seals.
    #[error(
        "the memfd takes no more seals and has {0:#x} of them: \
         make it with MFD_ALLOW_SEALING and leave F_SEAL_SEAL to the adapter; a file in tmpfs is not a memfd"
    )]
    NotSealable(u32),
    /// It is sealed against writing already.
    #[error("the memfd has the seals {0:#x}, which forbid to map it writable: leave sealing to the adapter")]
    WriteSealed(u32),
    /// It is made of huge pages.
    #[error("the memfd is made of huge pages, which are not supported: make it without MFD_HUGETLB")]
    HugePages,
    /// Its size differs from what was said.
    #[error(
        "the memfd is {actual} bytes long, {expected} bytes were announced: make one of the announced size"
    )]
    WrongSize {
        /// Bytes it has.
        actual: u64,
        /// Bytes announced.
        expected: u64,
    },
    /// The kernel did not tell about the file.
    #[error("the size and kind of the memfd cannot be read: {0}")]
    Stat(#[source] io::Error),
    /// It cannot be mapped.
    #[error("{bytes} bytes of the memfd cannot be mapped: {source}")]
    Map {
        /// Bytes asked for.
        bytes: u64,
        /// The kernel's word.
        source: io::Error,
    },
    /// The seals were refused.
    #[error("the memfd cannot be sealed: {0}: leave its seals alone until the adapter has answered")]
    Seal(#[source] io::Error),
    /// The seals do not read back as set.
    #[error("the memfd has the seals {actual:#x} after {wanted:#x} were set: leave its seals alone")]
    SealsMissing {
        /// The seals it has.
        actual: u32,
        /// The seals it should have.
        wanted: u32,
    },
    /// Its pages cannot be had.
    #[error("{bytes} bytes of the memfd cannot be filled with pages: {source}: is there enough free memory?")]
    Populate {
        /// Bytes asked for.
        bytes: u64,
        /// The kernel's word.
        source: io::Error,
    },
    /// Its pages cannot be locked.
    #[error(
        "{bytes} bytes cannot be locked into memory: {source}: RLIMIT_MEMLOCK of the adapter is {limit} for all memory \
         locked together: raise it (`ulimit -l`, LimitMEMLOCK= in a systemd unit, /etc/security/limits.conf) \
         or use less memory"
    )]
    Lock {
        /// Bytes asked for.
        bytes: u64,
        /// RLIMIT_MEMLOCK in bytes, or "unlimited".
        limit: String,
        /// The kernel's word.
        source: io::Error,
    },
}

/// Memory taken from a distrusted peer: sealed, of fixed size, every page there. Nothing that the peer does can make an
/// access to it fault.
///
/// Clones of the inner [`SharedMemory`] keep the mapping; the last one unlocks and unmaps it.
#[derive(Clone, Debug)]
pub struct SealedMemory {
    memory: Arc<SharedMemory>,
}

/// Whether the pages of adopted memory are locked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lock {
    /// By mlock.
    Mlock,
    /// Not here: whoever adopts it pins it right after, as VFIO does. Both together would count twice against
    /// RLIMIT_MEMLOCK.
    PinnedElsewhere,
}

/// The seals that adopted memory has: memfd_create(2), fcntl(2).
const SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE).union(SealFlags::SEAL);

/// HUGETLBFS_MAGIC of linux/magic.h.
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

impl SealedMemory {
    /// Takes the memfd `fd`, which must be `bytes` long, at most `max`; seals it, fills it with pages and locks them.
    ///
    /// The peer must have mapped it before: no writable mapping can be made afterwards. Never waits for the peer, whatever
    /// the descriptor is.
    ///
    /// # Errors
    /// One [`AdoptError`] for each way in which it can be unfit. The peer's memory may be sealed nonetheless: it should make another.
    pub fn adopt(fd: OwnedFd, bytes: u64, max: u64) -> Result<Self, AdoptError> {
        Self::adopt_with(fd, bytes, max, Lock::Mlock)
    }

    /// As [`Self::adopt`], with a choice who keeps the pages in memory.
    ///
    /// # Errors
    /// As [`Self::adopt`].
    pub fn adopt_with(fd: OwnedFd, bytes: u64, max: u64, lock: Lock) -> Result<Self, AdoptError> {
        let mut progress =
            Progress::More(Adoption::begin(Offer { fd, bytes, max, lock, owner: Owner::Nobody })?);
        loop {
            progress = match progress {
                Progress::More(adoption) => adoption.step(usize::MAX)?,
                Progress::Done(memory) => return Ok(memory),
            };
        }
    }

    /// The memory; whoever holds it keeps it mapped and locked.
    pub fn memory(&self) -> &Arc<SharedMemory> {
        &self.memory
    }

    /// The first byte; page-aligned.
    pub fn start(&self) -> *mut u8 {
        self.memory.start()
    }

    /// Bytes, a positive multiple of [`PAGE`].
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.memory.len()
    }
}

/// Memory that a distrusted peer offers.
#[derive(Debug)]
pub struct Offer {
    /// Said to be a memfd.
    pub fd: OwnedFd,
    /// Said to be its size.
    pub bytes: u64,
    /// More is not taken.
    pub max: u64,
    /// Who keeps its pages in memory.
    pub lock: Lock,
    /// Whose descriptor it is, should it have to be discarded.
    pub owner: Owner,
}

/// Memory on its way to be adopted: sealed, and filled with pages a slice at a time, so that whoever fills it can look
/// up between slices. Dropped before it is done, it is given back.
#[derive(Debug)]
pub struct Adoption {
    memory: SharedMemory,
    filled: usize,
    lock: Lock,
}

/// How far an [`Adoption`] is.
#[derive(Debug)]
pub enum Progress {
    /// There is more to fill.
    More(Adoption),
    /// All of it is there.
    Done(SealedMemory),
}

impl Adoption {
    /// Maps and seals what is offered.
    ///
    /// # Errors
    /// As [`SealedMemory::adopt`].
    pub fn begin(offer: Offer) -> Result<Self, AdoptError> {
        let Offer { fd, bytes, max, lock, owner } = offer;
        // The last close of a memfd gives its pages back, however many its owner made: not here either.
        match seal(&fd, bytes, max) {
            Ok(memory) => Ok(Self { memory, filled: 0, lock }),
            Err(error) => {
                discard(owner, fd);
                Err(error)
            }
        }
    }

    /// Fills, and locks, at most `most` bytes more (rounded up to a page).
    ///
    /// # Errors
    /// `Populate` and `Lock`.
    pub fn step(mut self, most: usize) -> Result<Progress, AdoptError> {
        let bytes = self.memory.len() as u64;
        let left = self.memory.len() - self.filled;
        let slice = most.clamp(PAGE, left).next_multiple_of(PAGE);
        let populated = self.memory.map.advise_range(Advice::PopulateWrite, self.filled, slice);
        populated.map_err(|source| AdoptError::Populate { bytes, source })?;
        if self.lock == Lock::Mlock {
            let start = self.memory.start().wrapping_add(self.filled);
            // SAFETY: the range is inside this mapping, and locking it changes nothing that anyone could see.
            let locked = unsafe { rustix::mm::mlock(start.cast(), slice) };
            locked.map_err(|e| AdoptError::Lock { bytes, limit: memlock_limit(), source: e.into() })?;
        }
        self.filled += slice;
        if self.filled < self.memory.len() {
            return Ok(Progress::More(self));
        }
        Ok(Progress::Done(SealedMemory { memory: Arc::new(self.memory) }))
    }
}

/// Maps the memfd and seals it: from here on it is `bytes` long and stays so.
fn seal(fd: &OwnedFd, bytes: u64, max: u64) -> Result<SharedMemory, AdoptError> {
    // Nothing but fcntl before it is known to be a memfd: fstat, mmap and close of a FUSE file ask its server.
    check_kind(fd)?;
    let size = check_request(fd, bytes, max)?;
    let memory = SharedMemory::map(fd, size).map_err(|source| AdoptError::Map { bytes, source })?;
    rustix::fs::fcntl_add_seals(fd, SEALS).map_err(|e| AdoptError::Seal(e.into()))?;
    let seals = rustix::fs::fcntl_get_seals(fd).map_err(|e| AdoptError::Seal(e.into()))?;
    if seals.intersection(SEALS | SealFlags::WRITE) != SEALS {
        return Err(AdoptError::SealsMissing { actual: seals.bits(), wanted: SEALS.bits() });
    }
    // Only now is the size what it stays.
    check_size(fd, bytes)?;
    Ok(memory)
}

/// Sees by fcntl alone whether it is a memfd, writable and open to seals.
fn check_kind(fd: &OwnedFd) -> Result<(), AdoptError> {
    let seals = rustix::fs::fcntl_get_seals(fd).map_err(|e| AdoptError::NotMemfd(e.into()))?;
    let flags = rustix::fs::fcntl_getfl(fd).map_err(|e| AdoptError::Flags(e.into()))?;
    if flags & OFlags::ACCMODE != OFlags::RDWR {
        return Err(AdoptError::ReadOnly);
    }
    if seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE) {
        return Err(AdoptError::WriteSealed(seals.bits()));
    }
    if seals.contains(SealFlags::SEAL) {
        return Err(AdoptError::NotSealable(seals.bits()));
    }
    Ok(())
}

/// Sees whether `bytes` is a size that may be, and the memfd made of ordinary pages.
fn check_request(fd: &OwnedFd, bytes: u64, max: u64) -> Result<usize, AdoptError> {
    if bytes == 0 || !bytes.is_multiple_of(PAGE as u64) {
        return Err(AdoptError::Size(bytes));
    }
    let max = max.min(isize::MAX as u64);
    let size = match usize::try_from(bytes) {
        Ok(size) if bytes <= max => size,
        _ => return Err(AdoptError::TooLarge { bytes, max }),
    };
    let kind = rustix::fs::fstatfs(fd).map_err(|e| AdoptError::Stat(e.into()))?;
    #[allow(clippy::cast_sign_loss)] // only compared
    if kind.f_type as u64 == HUGETLBFS_MAGIC {
        return Err(AdoptError::HugePages);
    }
    Ok(size)
}

/// Sees whether the memfd is exactly `bytes` long.
fn check_size(fd: &OwnedFd, bytes: u64) -> Result<(), AdoptError> {
    let stat = rustix::fs::fstat(fd).map_err(|e| AdoptError::Stat(e.into()))?;
    let actual = u64::try_from(stat.st_size).unwrap_or(0);
    if actual == bytes { Ok(()) } else { Err(AdoptError::WrongSize { actual, expected: bytes }) }
}

fn memlock_limit() -> String {
    match rustix::process::getrlimit(rustix::process::Resource::Memlock).current {
        Some(limit) => format!("{limit} bytes"),
        None => "unlimited".into(),
    }
}
