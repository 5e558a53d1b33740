//! Registered memory: what the device may read and write.
//!
//! When a session goes on with another adapter, a region gets a *twin*: a fresh memfd of its size, registered there when it is
//! first needed. The application may hold buffers of the region at that time, in any thread, and no barrier but ownership would tell
//! when it does not touch them: a buffer that is given to a request is the library's until the completion gives it back, and only
//! then may its bytes be put elsewhere. So with its first request after a restart a buffer of whole pages is *moved*: its bytes
//! are copied to the twin, whose pages are mapped over the old ones, at the same addresses, and from then on it is as any other. What
//! shares a page with another buffer, or cannot be mapped, is *bounced* with each request: copied to the twin before, and back
//! after a read.
#![allow(unsafe_code)] // buffers are slices of a mapping that the device writes while they are in flight

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wire::control::{AccessBits, Reply, Request};
use wire::shm::SharedMemory;

use crate::error::Error;
use crate::link::Link;

/// Regions are made of whole pages.
const PAGE: usize = 4096;
/// Where a device may find data: any multiple of 4.
const MIN_ALIGNMENT: usize = 4;

/// What the device may do with a memory region.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let adapter = adapter::Embedded::open("emu:16M")?;
/// # let session = adapter.session()?;
/// use portcullis::MemoryAccess;
/// let source = session.register(1 << 20, MemoryAccess::DeviceReads)?; // enough for writes to a volume
/// # drop(source); Ok(()) }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum MemoryAccess {
    /// A source: for writes and compares.
    DeviceReads,
    /// A target: for reads.
    DeviceWrites,
    /// Both.
    #[default]
    Both,
}

impl MemoryAccess {
    fn bits(self) -> AccessBits {
        match self {
            Self::DeviceReads => 1,
            Self::DeviceWrites => 2,
            Self::Both => 3,
        }
    }
}

/// A mapping that the adapter knows.
pub(crate) struct Region {
    /// What it goes by in this library: the first key that it had.
    key: u64,
    access: MemoryAccess,
    memory: SharedMemory,
    link: Arc<Link>,
    now: Mutex<Present>,
}

/// What a region is to the present adapter.
struct Present {
    life: u32,
    key: u64,
    /// In another life than its first.
    twin: Option<Twin>,
    /// Of lives before, with bytes that have not come back yet.
    former: Vec<Twin>,
}

struct Twin {
    life: u32,
    memory: SharedMemory,
    /// Of each page, whether the region's addresses lead to it.
    moved: Box<[bool]>,
    /// Buffers whose bytes lie here and have not come back.
    out: usize,
}

impl Twin {
    /// Whether the region's addresses lead here with all of a buffer.
    fn has_moved(&self, (offset, length): (usize, usize)) -> bool {
        let pages = self.moved.get(offset / PAGE..(offset + length).div_ceil(PAGE));
        (offset | length).is_multiple_of(PAGE) && pages.is_some_and(|pages| pages.iter().all(|moved| *moved))
    }
}

impl Region {
    fn register(link: &Arc<Link>, bytes: usize, access: MemoryAccess) -> Result<Self, Error> {
        let bytes = bytes.max(1).checked_next_multiple_of(PAGE).ok_or_else(|| {
            Error::Argument(format!("{bytes} bytes of memory cannot be registered: too many"))
        })?;
        let ((memory, key), life) =
            link.in_some_life(|life| Ok((Self::register_in(link, life, bytes, access)?, life)))?;
        let now = Mutex::new(Present { life, key, twin: None, former: Vec::new() });
        Ok(Self { key, access, memory, link: link.clone(), now })
    }

    fn register_in(
        link: &Link,
        life: u32,
        bytes: usize,
        access: MemoryAccess,
    ) -> Result<(SharedMemory, u64), Error> {
        let (memory, descriptor) = SharedMemory::create("portcullis-memory", bytes)
            .map_err(|source| Error::os("making a memfd for registered memory", source))?;
        let request = Request::RegisterMemory { length: bytes as u64, access: access.bits() };
        use std::os::fd::AsFd;
        match link.call_in(life, &request, &[descriptor.as_fd()])?.0 {
            Reply::Region { region } => Ok((memory, region)),
            other => Err(unexpected(&other)),
        }
    }

    fn start(&self) -> NonNull<u8> {
        NonNull::new(self.memory.start()).expect("a mapping does not start at 0")
    }

    fn now(&self) -> MutexGuard<'_, Present> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the device of `life` to use the bytes of a buffer that nobody else has: the key to name them by, and whether they lie
    /// elsewhere until [`Region::come_back`].
    fn hand_over(&self, life: u32, (offset, length): (usize, usize)) -> Result<(u64, bool), Error> {
        let mut now = self.now();
        if now.life != life {
            let (memory, key) = Self::register_in(&self.link, life, self.memory.len(), self.access)?;
            let moved = vec![false; memory.len() / PAGE].into();
            let before = now.twin.replace(Twin { life, memory, moved, out: 0 });
            now.former.extend(before.filter(|twin| twin.out > 0));
            (now.life, now.key) = (life, key);
        }
        let key = now.key;
        let Some(twin) = &mut now.twin else { return Ok((key, false)) };
        if (offset | length).is_multiple_of(PAGE) && self.move_pages(twin, offset / PAGE, length / PAGE) {
            return Ok((key, false));
        }
        twin.out += 1;
        // SAFETY: both are mapped with the same size, and offset and length were cut from its bounds; the bytes are the caller's
        // alone, and the twin's pages belong to the same bytes. They do not overlap: the twin lies at other addresses.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.memory.start().add(offset),
                twin.memory.start().add(offset),
                length,
            );
        }
        Ok((key, true))
    }

    /// The request of `life` that the bytes were handed over for has ended: brings back the first `bytes` of them, if they lay
    /// elsewhere.
    fn come_back(&self, life: u32, (offset, length): (usize, usize), bytes: usize) {
        let now = &mut *self.now();
        let mut twins = now.twin.iter_mut().chain(&mut now.former);
        let Some(twin) = twins.find(|twin| twin.life == life) else { return };
        if twin.has_moved((offset, length)) {
            return;
        }
        twin.out = twin.out.saturating_sub(1);
        // SAFETY: as in `hand_over`, the other way.
        unsafe {
            std::ptr::copy_nonoverlapping(
                twin.memory.start().add(offset),
                self.memory.start().add(offset),
                bytes.min(length),
            );
        }
        now.former.retain(|twin| twin.out > 0);
    }

    /// Whether all of the pages lead to the twin now.
    fn move_pages(&self, twin: &mut Twin, first: usize, pages: usize) -> bool {
        let Twin { memory, moved, .. } = twin;
        let Some(moved) = moved.get_mut(first..first + pages) else { return false };
        let mut at = 0;
        while let Some(from) = moved[at..].iter().position(|moved| !moved).map(|skip| at + skip) {
            let run = moved[from..].iter().take_while(|moved| !**moved).count();
            let (offset, bytes) = ((first + from) * PAGE, run * PAGE);
            let (here, there) = (self.memory.start(), memory.start());
            // SAFETY: as in `hand_over`; the pages are whole, so no other buffer has any part of them.
            let mapped = unsafe {
                std::ptr::copy_nonoverlapping(here.add(offset), there.add(offset), bytes);
                memory.map_also_at(offset, bytes, here.add(offset))
            };
            if mapped.is_err() {
                return false; // The limit of mappings, mostly: it works all the same.
            }
            moved[from..from + run].fill(true);
            at = from + run;
        }
        true
    }
}

impl Drop for Region {
    /// Best effort: if the adapter is gone it has forgotten the region, and the pages live on for whoever still maps
    /// them.
    fn drop(&mut self) {
        let (life, region) = {
            let now = self.now();
            (now.life, now.key)
        };
        let _ = self.link.call_in(life, &Request::ReleaseMemory { region }, &[]);
    }
}

pub(crate) fn unexpected(reply: &Reply) -> Error {
    Error::Protocol(format!("an answer to another question came: {reply:?}"))
}

/// A region of memory registered with the adapter, to be cut into [`Buffer`]s.
///
/// The region is given back when the last buffer cut from it is dropped.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let adapter = adapter::Embedded::open("emu:16M")?;
/// # let session = adapter.session()?;
/// let memory = session.register(1 << 20, portcullis::MemoryAccess::Both)?;
/// assert_eq!(memory.len(), 1 << 20);
/// let buffers = memory.buffers(65536, 4096)?;
/// assert_eq!(buffers.len(), 16);
/// # Ok(()) }
/// ```
pub struct Memory {
    region: Arc<Region>,
}

impl Memory {
    pub(crate) fn register(link: &Arc<Link>, bytes: usize, access: MemoryAccess) -> Result<Self, Error> {
        Ok(Self { region: Arc::new(Region::register(link, bytes, access)?) })
    }

    /// Bytes: what was asked for, rounded up to whole pages of 4096.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// let memory = session.register(5000, portcullis::MemoryAccess::Both)?;
    /// assert_eq!(memory.len(), 8192);
    /// # Ok(()) }
    /// ```
    #[allow(clippy::len_without_is_empty)] // it never is
    pub fn len(&self) -> usize {
        self.region.memory.len()
    }

    /// What the region is named by on the wire; for [`crate::raw`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// let memory = session.register(4096, portcullis::MemoryAccess::Both)?;
    /// let key = memory.key();
    /// assert_eq!(memory.into_buffer().region(), key);
    /// # Ok(()) }
    /// ```
    pub fn key(&self) -> u64 {
        self.region.key
    }

    /// What the device may do with it.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// use portcullis::MemoryAccess;
    /// let memory = session.register(4096, MemoryAccess::DeviceReads)?;
    /// assert_eq!(memory.access(), MemoryAccess::DeviceReads);
    /// # Ok(()) }
    /// ```
    pub fn access(&self) -> MemoryAccess {
        self.region.access
    }

    /// The whole region as one buffer.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// let buffer = session.register(8192, portcullis::MemoryAccess::Both)?.into_buffer();
    /// assert_eq!(buffer.len(), 8192);
    /// # Ok(()) }
    /// ```
    pub fn into_buffer(self) -> Buffer {
        let length = self.len();
        Buffer { region: self.region, offset: 0, length }
    }

    /// Cuts the region into as many buffers of `size` bytes as fit, each beginning at a multiple of `alignment`, a
    /// power of two from 4 on; 4096 suits every device best.
    ///
    /// # Errors
    /// [`Error::Argument`] if `size` is 0, `alignment` is not as said, or not one buffer fits.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # let memory = session.register(65536, portcullis::MemoryAccess::Both)?;
    /// for buffer in memory.buffers(4096, 4096)? {
    ///     assert_eq!(buffer.len(), 4096);
    /// }
    /// # Ok(()) }
    /// ```
    pub fn buffers(self, size: usize, alignment: usize) -> Result<Vec<Buffer>, Error> {
        Ok(cuts(self.len(), size, alignment)?
            .map(|offset| Buffer { region: self.region.clone(), offset, length: size })
            .collect())
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("key", &self.key())
            .field("len", &self.len())
            .field("access", &self.access())
            .finish()
    }
}

/// Where buffers of `size` begin in `total` bytes: aligned, and none touches another.
fn cuts(total: usize, size: usize, alignment: usize) -> Result<impl Iterator<Item = usize>, Error> {
    if !alignment.is_power_of_two() || alignment < MIN_ALIGNMENT {
        return Err(Error::Argument(format!(
            "an alignment of {alignment} is not possible: give a power of two from {MIN_ALIGNMENT} on, 4096 for example"
        )));
    }
    let stride = size
        .checked_next_multiple_of(alignment)
        .filter(|stride| *stride != 0 && size <= total)
        .ok_or_else(|| {
            Error::Argument(format!(
                "no buffer of {size} bytes can be cut from {total} bytes of registered memory"
            ))
        })?;
    Ok((0..=total - size).step_by(stride))
}

/// An owned piece of registered memory, of the bytes of which the device may read or write while a request has it.
///
/// It is a slice while it is here. Given to a [`crate::Request`] it is out of reach until the [`crate::Completion`]
/// brings it back, so that nobody can look at memory that the device is just writing.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let adapter = adapter::Embedded::open("emu:16M")?;
/// # let session = adapter.session()?;
/// let mut buffer = session.buffer(4096)?;
/// buffer[..4].copy_from_slice(b"data");
/// assert_eq!(&buffer[..5], b"data\0");
/// # Ok(()) }
/// ```
///
/// What is in flight cannot be touched:
///
/// ```compile_fail,E0382
/// # fn f(volume: &portcullis::Volume, mut buffer: portcullis::Buffer) {
/// let request = portcullis::Request::write(volume, 0, buffer);
/// buffer[0] = 1; // error: borrow of moved value
/// # }
/// ```
pub struct Buffer {
    region: Arc<Region>,
    offset: usize,
    length: usize,
}

// SAFETY: a buffer owns its bytes of the mapping alone, like a Box<[u8]>; the mapping lives as long as `region`.
unsafe impl Send for Region {}
// SAFETY: through a shared reference only addresses and constants are read; bytes are reached through the one Buffer
// that owns them.
unsafe impl Sync for Region {}

impl Buffer {
    /// Cuts the buffer in two; the second begins at byte `at`, which must be a multiple of 4 for requests to take it.
    ///
    /// # Panics
    /// If `at` is beyond the end, as [`slice::split_at`] does.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// let (first, second) = session.buffer(8192)?.split_at(4096);
    /// assert_eq!((first.len(), second.len()), (4096, 4096));
    /// # Ok(()) }
    /// ```
    pub fn split_at(self, at: usize) -> (Self, Self) {
        assert!(at <= self.length, "cannot split a buffer of {} bytes at {at}", self.length);
        let second = Self { region: self.region.clone(), offset: self.offset + at, length: self.length - at };
        (Self { length: at, ..self }, second)
    }

    /// What its region is named by on the wire; for [`crate::raw`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// let buffer = session.buffer(4096)?;
    /// println!("region {:#x} from byte {}", buffer.region(), buffer.region_offset());
    /// # Ok(()) }
    /// ```
    pub fn region(&self) -> u64 {
        self.region.key
    }

    /// Where it begins in its region, in bytes; for [`crate::raw`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// let (_, second) = session.buffer(8192)?.split_at(4096);
    /// assert_eq!(second.region_offset(), 4096);
    /// # Ok(()) }
    /// ```
    pub fn region_offset(&self) -> u64 {
        self.offset as u64
    }

    /// See [`Region::hand_over`].
    pub(crate) fn hand_over(&mut self, life: u32) -> Result<(u64, bool), Error> {
        self.region.hand_over(life, (self.offset, self.length))
    }

    /// See [`Region::come_back`].
    pub(crate) fn come_back(&mut self, life: u32, bytes: usize) {
        self.region.come_back(life, (self.offset, self.length), bytes);
    }

    #[inline]
    fn start(&self) -> NonNull<u8> {
        // SAFETY: offset and length were cut from the region's bounds, and the mapping lives as long as `region`.
        unsafe { self.region.start().add(self.offset) }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the bytes are mapped and initialised (a memfd starts zeroed), belong to this Buffer alone, and no
        // request has them: a request owns its Buffer, and what was in flight when an adapter vanished is leaked. That
        // the adapter writes them at no other time is what the library trusts it for, as a program trusts its kernel.
        unsafe { std::slice::from_raw_parts(self.start().as_ptr(), self.length) }
    }
}

impl DerefMut for Buffer {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes the reference the only one.
        unsafe { std::slice::from_raw_parts_mut(self.start().as_ptr(), self.length) }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("region", &self.region.key)
            .field("offset", &self.offset)
            .field("len", &self.length)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An adapter that takes memory, and can be replaced by the next.
    #[derive(Default)]
    struct Taker {
        run: u64,
        dead: bool,
        taken: Vec<SharedMemory>,
    }

    #[derive(Clone, Default)]
    struct Line(Arc<Mutex<Taker>>);

    impl crate::Transport for Line {
        fn call(
            &mut self,
            request: &Request,
            descriptors: &[std::os::fd::BorrowedFd<'_>],
        ) -> Result<(Reply, Vec<std::os::fd::OwnedFd>), crate::TransportError> {
            let mut taker = self.0.lock().unwrap();
            if taker.dead {
                return Err(crate::TransportError::Gone("killed".to_owned()));
            }
            let reply = match request {
                Request::Hello { .. } => Reply::Welcome(wire::control::Welcome {
                    version: wire::VERSION,
                    session: 1,
                    adapter: taker.run,
                    life: taker.run,
                    settled: false,
                    limits: wire::control::Limits {
                        pinned_bytes: 1 << 30,
                        regions: 9,
                        queues: 9,
                        grants: 9,
                        outstanding: 9,
                    },
                }),
                Request::RegisterMemory { length, .. } => {
                    let bytes = usize::try_from(*length).unwrap();
                    taker.taken.push(SharedMemory::map(descriptors[0], bytes).unwrap());
                    Reply::Region { region: taker.taken.len() as u64 }
                }
                _ => Reply::Done,
            };
            Ok((reply, Vec::new()))
        }

        fn check_alive(&mut self) -> Result<(), crate::TransportError> {
            let dead = self.0.lock().unwrap().dead;
            if dead { Err(crate::TransportError::Gone("killed".to_owned())) } else { Ok(()) }
        }
    }

    /// A session over adapters that `line` stands for, each of which lives until [`next_life`].
    fn session(line: &Line) -> (crate::Session, Line) {
        let present = line.clone();
        let connect = move || {
            present.0.lock().unwrap().dead = false;
            Ok(Box::new(present.clone()) as Box<dyn crate::Transport>)
        };
        let options = crate::ConnectOptions::new().patience(std::time::Duration::from_secs(20));
        (options.connect_by(connect).unwrap(), line.clone())
    }

    fn next_life(line: &Line, session: &crate::Session) {
        {
            let mut taker = line.0.lock().unwrap();
            (taker.run, taker.dead) = (taker.run + 1, true);
        }
        session.done(&Request::SyncFiles { volume: "v".into() }).unwrap();
    }

    fn bytes_there(line: &Line, region: u64, offset: usize, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let taker = line.0.lock().unwrap();
        let memory = &taker.taken[usize::try_from(region).unwrap() - 1];
        memory.copy_out(offset, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn whole_pages_are_moved_once_and_parts_are_bounced_each_time() {
        let line = Line::default();
        let (session, line) = session(&line);
        let mut whole =
            session.register(4 * PAGE, MemoryAccess::Both).unwrap().buffers(2 * PAGE, PAGE).unwrap();
        let mut parts = session.register(PAGE, MemoryAccess::Both).unwrap().buffers(1024, 1024).unwrap();
        for life in 1..4u8 {
            next_life(&line, &session);
            let (buffer, other) = (&mut whole[0], 7);
            let address = buffer.as_ptr();
            buffer.fill(life);
            let (key, bounced) = buffer.hand_over(life.into()).unwrap();
            assert!(!bounced);
            assert_eq!(bytes_there(&line, key, 0, 2 * PAGE), vec![life; 2 * PAGE]);
            assert_eq!(buffer.hand_over(life.into()).unwrap(), (key, false), "it is moved once");
            assert_eq!(buffer.as_ptr(), address);
            buffer[PAGE] = other;
            assert_eq!(bytes_there(&line, key, PAGE, 1), [other], "what is written here is there");
            assert_eq!(bytes_there(&line, key, 2 * PAGE, 1), [0], "its neighbour was not touched");

            let part = &mut parts[1];
            part.fill(life);
            let (key, bounced) = part.hand_over(life.into()).unwrap();
            assert!(bounced);
            assert_eq!(bytes_there(&line, key, 1024, 1024), vec![life; 1024]);
            assert_eq!(bytes_there(&line, key, 0, 1024), vec![0; 1024], "its neighbour was not touched");
            let device = |value: u8| {
                let taker = line.0.lock().unwrap();
                let memory = &taker.taken[usize::try_from(key).unwrap() - 1];
                memory.copy_in(1024, &[value; 1024]).unwrap();
            };
            device(90 + life);
            // The next adapter is there already when that one's answer is looked at.
            if life == 2 {
                parts[0].hand_over(life.into()).unwrap();
                next_life(&line, &session);
                parts[2].hand_over(3).unwrap();
                parts[1].come_back(2, 512);
                assert_eq!(parts[1][..], [vec![92; 512], vec![2; 512]].concat());
                return;
            }
            part.come_back(life.into(), 512);
            assert_eq!(part[..], [vec![90 + life; 512], vec![life; 512]].concat());
        }
    }

    fn starts(total: usize, size: usize, alignment: usize) -> Vec<usize> {
        cuts(total, size, alignment).unwrap().collect()
    }

    #[test]
    fn buffers_are_aligned_disjoint_and_inside() {
        assert_eq!(starts(16384, 4096, 4096), [0, 4096, 8192, 12288]);
        assert_eq!(starts(8192, 100, 4096), [0, 4096]);
        assert_eq!(starts(4096, 4096, 65536), [0]);
        assert_eq!(starts(16, 6, 4), [0, 8]);
        for (total, size, alignment) in [(4096, 1, 4), (4096, 4095, 4), (12288, 5000, 512)] {
            let starts = starts(total, size, alignment);
            assert!(starts.iter().all(|start| start % alignment == 0 && start + size <= total));
            assert!(starts.windows(2).all(|pair| pair[0] + size <= pair[1]));
        }
    }

    #[test]
    fn impossible_cuts_are_refused_with_the_value() {
        for (total, size, alignment, value) in [
            (4096, 0, 4096, "0 bytes"),
            (4096, 4097, 4, "4097"),
            (4096, 1, 3, "3"),
            (4096, 1, 2, "2"),
            (8, usize::MAX, 8, ""),
        ] {
            let error = cuts(total, size, alignment).err().expect("it cannot be cut");
            assert!(matches!(error, Error::Argument(_)) && error.to_string().contains(value), "{error}");
        }
    }
}
