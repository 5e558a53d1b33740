//! Registered memory: what the device may read and write.
#![allow(unsafe_code)] // buffers are slices of a mapping that the device writes while they are in flight

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use wire::control::{AccessBits, Reply};

use crate::error::Error;
use crate::link::Link;

mod region;

use region::Region;

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
    use std::sync::Mutex;

    use wire::control::Request;
    use wire::shm::SharedMemory;

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
