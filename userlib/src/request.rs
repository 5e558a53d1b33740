//! What can be asked of a volume, a file or the adapter itself, and what comes back.

use std::time::Duration;

use wire::control::{self, MAX_MESSAGE, Reply};
use wire::frame::{decode_body, encode_body};
use wire::layout::{MAX_SEGMENTS, MAX_WRITE_BYTES, flag, opcode};

use crate::error::Error;
use crate::file::File;
use crate::memory::Buffer;
use crate::target::Target;

/// One request, to be given to [`crate::Queue::prepare`] or [`crate::Queue::execute`].
///
/// Offsets and lengths are in bytes and must be multiples of the block size of the volume or file, but for
/// [`Request::write_bytes`] and [`Request::append`]. The length is that of the buffer or of all buffers, which move into the request and come
/// back with the [`Completion`].
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let adapter = adapter::Embedded::open("emu:16M")?;
/// # let session = adapter.session()?;
/// # session.create_volume("v", 1 << 20)?;
/// # let volume = session.open("v", portcullis::Access::READ_WRITE)?;
/// use portcullis::Request;
/// use std::time::Duration;
/// let mut queue = session.queue(8)?;
/// let mut buffer = session.buffer(4096)?;
/// buffer.fill(7);
/// let write = Request::write(&volume, 8192, buffer).fua().deadline(Duration::from_secs(1)).tag(42);
/// let completion = queue.execute(write)?;
/// assert_eq!(completion.tag, 42);
/// assert_eq!(completion.result?, 4096);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Request {
    pub(crate) opcode: u8,
    pub(crate) flags: u8,
    pub(crate) deadline_us: u32,
    pub(crate) key: u64,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) extension: u64,
    pub(crate) tag: u64,
    pub(crate) data: Data,
}

/// The memory of a request.
#[derive(Debug)]
pub(crate) enum Data {
    None,
    One(Buffer),
    Several(Box<[Buffer]>),
}

impl Data {
    pub(crate) fn into_one(self) -> Option<Buffer> {
        if let Self::One(buffer) = self { Some(buffer) } else { None }
    }

    pub(crate) fn one(&self) -> Option<&Buffer> {
        if let Self::One(buffer) = self { Some(buffer) } else { None }
    }

    pub(crate) fn into_parts(self) -> (Option<Buffer>, Vec<Buffer>) {
        match self {
            Self::None => (None, Vec::new()),
            Self::One(buffer) => (Some(buffer), Vec::new()),
            Self::Several(buffers) => (None, buffers.into_vec()),
        }
    }
}

impl Request {
    /// The most buffers that one request takes.
    pub const MAX_BUFFERS: usize = MAX_SEGMENTS;
    /// The most bytes of one [`Request::write_bytes`].
    pub const MAX_WRITE_BYTES: usize = MAX_WRITE_BYTES as usize;

    fn new(opcode: u8, target: &impl Target, offset: u64, length: u64, data: Data) -> Self {
        Self {
            opcode,
            flags: 0,
            deadline_us: 0,
            key: target.key(),
            offset,
            length,
            extension: 0,
            tag: 0,
            data,
        }
    }

    fn with_buffer(opcode: u8, target: &impl Target, offset: u64, buffer: Buffer) -> Self {
        Self::new(opcode, target, offset, buffer.len() as u64, Data::One(buffer))
    }

    fn with_buffers(opcode: u8, target: &impl Target, offset: u64, buffers: Vec<Buffer>) -> Self {
        let length = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        Self::new(opcode, target, offset, length, Data::Several(buffers.into()))
    }

    /// Reads as many bytes as `buffer` has from `offset` of the volume. Needs [`crate::Access::READ`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::READ)?;
    /// # let mut queue = session.queue(8)?;
    /// use portcullis::Request;
    /// let done = queue.execute(Request::read(&volume, 0, session.buffer(4096)?))?;
    /// let buffer = done.buffer.expect("a read gives its buffer back");
    /// assert!(buffer.iter().all(|byte| *byte == 0), "a new volume is zeroed");
    /// # Ok(()) }
    /// ```
    pub fn read(target: &impl Target, offset: u64, buffer: Buffer) -> Self {
        Self::with_buffer(opcode::READ, target, offset, buffer)
    }

    /// Writes all of `buffer` to `offset` of the volume. Durable after a flush, or with [`Request::fua`]. Needs
    /// [`crate::Access::WRITE`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::READ_WRITE)?;
    /// # let mut queue = session.queue(8)?;
    /// let mut buffer = session.buffer(4096)?;
    /// buffer[..5].copy_from_slice(b"hello");
    /// queue.execute(portcullis::Request::write(&volume, 0, buffer))?.result?;
    /// # let mut back = [0; 4096];
    /// # queue.read_at(&volume, 0, &mut back)?;
    /// # assert_eq!(&back[..5], b"hello");
    /// # Ok(()) }
    /// ```
    pub fn write(target: &impl Target, offset: u64, buffer: Buffer) -> Self {
        Self::with_buffer(opcode::WRITE, target, offset, buffer)
    }

    /// Writes all of `buffer` to `offset`, which may be any, as may be the buffer's length up to
    /// [`Request::MAX_WRITE_BYTES`]. What else the blocks hold stays, also if others write it at the same time. Costs the
    /// reading of the blocks that are not written whole; whoever has whole blocks to write uses [`Request::write`]. Needs
    /// [`crate::Access::WRITE`] only.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let mut queue = session.queue(8)?;
    /// use portcullis::{Access, Request};
    /// let log = session.open("v", Access::WRITE)?;
    /// let mut line = session.buffer(14)?;
    /// line.copy_from_slice(b"it was so cold");
    /// assert_eq!(queue.execute(Request::write_bytes(&log, 1000, line))?.result?, 14);
    /// # let volume = session.open("v", Access::READ)?;
    /// # let mut back = [1; 16];
    /// # queue.read_at(&volume, 999, &mut back)?;
    /// # assert_eq!(&back, b"\0it was so cold\0");
    /// # Ok(()) }
    /// ```
    pub fn write_bytes(target: &impl Target, offset: u64, buffer: Buffer) -> Self {
        Self::with_buffer(opcode::WRITE_BYTES, target, offset, buffer)
    }

    /// Reads into `buffers`, one after the other, as one request. They may be of different memory regions; the length of
    /// each is a multiple of the block size. The first such request of a queue registers memory for its lists.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::READ)?;
    /// # let mut queue = session.queue(8)?;
    /// use portcullis::Request;
    /// let buffers = vec![session.buffer(4096)?, session.buffer(8192)?];
    /// let done = queue.execute(Request::read_vectored(&volume, 0, buffers))?;
    /// assert_eq!(done.result?, 12288);
    /// assert_eq!(done.buffers[1].len(), 8192);
    /// # Ok(()) }
    /// ```
    pub fn read_vectored(target: &impl Target, offset: u64, buffers: Vec<Buffer>) -> Self {
        Self::with_buffers(opcode::READ, target, offset, buffers)
    }

    /// Writes `buffers`, one after the other, as one request. See [`Request::read_vectored`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::READ_WRITE)?;
    /// # let mut queue = session.queue(8)?;
    /// use portcullis::Request;
    /// let (mut header, mut body) = (session.buffer(4096)?, session.buffer(4096)?);
    /// header.fill(1);
    /// body.fill(2);
    /// queue.execute(Request::write_vectored(&volume, 0, vec![header, body]))?.result?;
    /// # let mut back = [0; 8192];
    /// # queue.read_at(&volume, 0, &mut back)?;
    /// # assert!(back[..4096] == [1; 4096] && back[4096..] == [2; 4096]);
    /// # Ok(()) }
    /// ```
    pub fn write_vectored(target: &impl Target, offset: u64, buffers: Vec<Buffer>) -> Self {
        Self::with_buffers(opcode::WRITE, target, offset, buffers)
    }

    /// Compares all of `buffer` with the blocks at `offset`; ends with E_MISCOMPARE if they differ. Needs
    /// [`crate::Access::READ`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::READ)?;
    /// # let mut queue = session.queue(8)?;
    /// let mut buffer = session.buffer(4096)?;
    /// buffer[0] = 1;
    /// let error = queue.execute(portcullis::Request::compare(&volume, 0, buffer))?.result.unwrap_err();
    /// assert_eq!(error.status(), Some(portcullis::Status::E_MISCOMPARE));
    /// # Ok(()) }
    /// ```
    pub fn compare(target: &impl Target, offset: u64, buffer: Buffer) -> Self {
        Self::with_buffer(opcode::COMPARE, target, offset, buffer)
    }

    /// Makes every write to the volume that has completed durable. Needs [`crate::Access::WRITE`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::READ_WRITE)?;
    /// # let mut queue = session.queue(8)?;
    /// queue.execute(portcullis::Request::flush(&volume))?.result?;
    /// # Ok(()) }
    /// ```
    pub fn flush(target: &impl Target) -> Self {
        Self::new(opcode::FLUSH, target, 0, 0, Data::None)
    }

    /// Makes `length` bytes from `offset` read as zero. Needs [`crate::Access::WRITE`], and [`crate::Access::TRIM`] as
    /// well after [`Request::may_deallocate`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::ALL)?;
    /// # let mut queue = session.queue(8)?;
    /// use portcullis::Request;
    /// queue.execute(Request::write_zeroes(&volume, 0, 65536).may_deallocate())?.result?;
    /// # Ok(()) }
    /// ```
    pub fn write_zeroes(target: &impl Target, offset: u64, length: u64) -> Self {
        Self::new(opcode::WRITE_ZEROES, target, offset, length, Data::None)
    }

    /// Gives up the content of `length` bytes from `offset`, which read as zero afterwards. Needs
    /// [`crate::Access::TRIM`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::ALL)?;
    /// # let mut queue = session.queue(8)?;
    /// queue.execute(portcullis::Request::deallocate(&volume, 0, 65536))?.result?;
    /// # Ok(()) }
    /// ```
    pub fn deallocate(target: &impl Target, offset: u64, length: u64) -> Self {
        Self::new(opcode::DEALLOCATE, target, offset, length, Data::None)
    }

    /// Writes a buffer of any length up to [`Request::MAX_WRITE_BYTES`] behind the last byte of a file, wherever that is when
    /// the adapter does it: [`Completion::value`] is the offset where it landed. Appends of several processes at once
    /// each have a place of their own.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:32M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("notes", 16 << 20)?;
    /// # session.files()?.format("notes", false)?;
    /// use portcullis::{OpenOptions, Request};
    /// let files = session.files()?;
    /// let log = OpenOptions::new().append(true).create(true).allocate(4096).open(&files, "notes:/log")?;
    /// let mut queue = session.queue(8)?;
    /// let mut line = session.buffer(6)?;
    /// line.copy_from_slice(b"hello\n");
    /// let done = queue.execute(Request::append(&log, line))?;
    /// assert_eq!((done.result?, done.value), (6, 0)); // its bytes, and where they landed
    /// # Ok(()) }
    /// ```
    pub fn append(file: &File, buffer: Buffer) -> Self {
        Self::append_to(file, buffer)
    }

    pub(crate) fn append_to(file: &impl Target, buffer: Buffer) -> Self {
        Self::with_buffer(opcode::APPEND, file, 0, buffer)
    }

    /// A management request: anything that the control socket takes, but for what needs descriptors. The buffer carries it and
    /// takes the reply, so it has at least [`control::Request::reply_room`] bytes, and the device may read and write its
    /// memory; [`Completion::reply`] gives the reply.
    ///
    /// # Errors
    /// [`Error::Argument`] for a buffer that is too small, and for requests that go by the socket only.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// use portcullis::{Request, wire::control};
    /// let mut queue = session.queue(8)?;
    /// let ask = Request::manage(&control::Request::ShowDevice, session.buffer(16 << 10)?)?;
    /// println!("{:?}", queue.execute(ask)?.reply()?);
    /// # Ok(()) }
    /// ```
    pub fn manage(request: &control::Request, mut buffer: Buffer) -> Result<Self, Error> {
        let (length, room) = encode_managed(request, &mut buffer)?;
        Ok(Self::managed(length, room, buffer))
    }

    /// With the request in the first `length` bytes of the buffer, and room for `room` bytes of reply.
    pub(crate) fn managed(length: usize, room: usize, buffer: Buffer) -> Self {
        Self {
            opcode: opcode::MANAGE,
            flags: 0,
            deadline_us: 0,
            key: 0,
            offset: room as u64,
            length: length as u64,
            extension: 0,
            tag: 0,
            data: Data::One(buffer),
        }
    }

    /// Cancels the request with `ticket`. It completes itself, with OK or with E_NOT_FOUND where that request has
    /// ended; the cancelled request completes as well, with E_CANCELLED or as it would have.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::WRITE)?;
    /// # let mut queue = session.queue(8)?;
    /// use portcullis::{Request, Status};
    /// let done = queue.execute(Request::flush(&volume))?;
    /// let late = queue.execute(Request::cancel(done.ticket))?.result.unwrap_err();
    /// assert_eq!(late.status(), Some(Status::E_NOT_FOUND));
    /// # Ok(()) }
    /// ```
    pub fn cancel(ticket: Ticket) -> Self {
        Self {
            opcode: opcode::CANCEL,
            flags: 0,
            deadline_us: 0,
            key: 0,
            offset: ticket.user_data(),
            length: 0,
            extension: 0,
            tag: 0,
            data: Data::None,
        }
    }

    /// A write completes only when it is durable (force unit access). Other requests fail with E_OPCODE.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::WRITE)?;
    /// # let mut queue = session.queue(8)?;
    /// let buffer = session.buffer(4096)?;
    /// queue.execute(portcullis::Request::write(&volume, 0, buffer).fua())?.result?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn fua(mut self) -> Self {
        self.flags |= flag::FUA;
        self
    }

    /// A write zeroes may deallocate the blocks. Other requests fail with E_OPCODE. See [`Request::write_zeroes`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::READ_WRITE)?;
    /// # let mut queue = session.queue(8)?;
    /// use portcullis::{Request, Status};
    /// let zeroes = Request::write_zeroes(&volume, 0, 4096).may_deallocate();
    /// let error = queue.execute(zeroes)?.result.unwrap_err();
    /// assert_eq!(error.status(), Some(Status::E_ACCESS), "the volume is open without TRIM");
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn may_deallocate(mut self) -> Self {
        self.flags |= flag::DEALLOCATE;
        self
    }

    /// The request is not started any more once `after` has passed since the adapter took it, and ends with E_DEADLINE.
    /// Counted in microseconds, rounded up; at most about 71 minutes, longer counts as that.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::READ)?;
    /// # let mut queue = session.queue(8)?;
    /// use std::time::Duration;
    /// let read = portcullis::Request::read(&volume, 0, session.buffer(4096)?);
    /// queue.execute(read.deadline(Duration::from_secs(10)))?.result?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn deadline(mut self, after: Duration) -> Self {
        // Zero means none on the wire: the shortest deadline is 1 µs.
        let microseconds = after.as_nanos().div_ceil(1000).max(1);
        self.deadline_us = u32::try_from(microseconds).unwrap_or(u32::MAX);
        self
    }

    /// Keeps the request inside one extension of its file, [`wire::files::ExtensionInfo::key`]; the offset counts from where
    /// that begins.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:32M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("notes", 16 << 20)?;
    /// # session.files()?.format("notes", false)?;
    /// # let files = session.files()?;
    /// # let file = files.create("notes:/log")?;
    /// # file.write_all_at(&[7; 4096], 0)?;
    /// let first = file.extensions()?[0];
    /// let read = portcullis::Request::read(&file, 0, session.buffer(4096)?).within(first.key);
    /// assert_eq!(session.queue(4)?.execute(read)?.result?, 4096);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn within(mut self, extension: u64) -> Self {
        self.extension = extension;
        self
    }

    /// A number of the caller's choice that comes back as [`Completion::tag`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::WRITE)?;
    /// # let mut queue = session.queue(8)?;
    /// let done = queue.execute(portcullis::Request::flush(&volume).tag(7))?;
    /// assert_eq!(done.tag, 7);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn tag(mut self, tag: u64) -> Self {
        self.tag = tag;
        self
    }

    /// Only the first `length` bytes of the buffer take part.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::READ)?;
    /// # let mut queue = session.queue(8)?;
    /// let buffer = session.buffer(65536)?;
    /// let done = queue.execute(portcullis::Request::read(&volume, 0, buffer).length(4096))?;
    /// assert_eq!(done.result?, 4096);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn length(mut self, length: u64) -> Self {
        self.length = length;
        self
    }

    /// The buffers of a request with several; the request is given up.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::READ)?;
    /// use portcullis::Request;
    /// let buffers = vec![session.buffer(4096)?, session.buffer(4096)?];
    /// assert_eq!(Request::read_vectored(&volume, 0, buffers).into_buffers().len(), 2);
    /// # Ok(()) }
    /// ```
    pub fn into_buffers(self) -> Vec<Buffer> {
        self.data.into_parts().1
    }

    /// The buffer, if there is one; the request is given up.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::READ)?;
    /// use portcullis::Request;
    /// assert!(Request::read(&volume, 0, session.buffer(4096)?).into_buffer().is_some());
    /// assert!(Request::flush(&volume).into_buffer().is_none());
    /// # Ok(()) }
    /// ```
    pub fn into_buffer(self) -> Option<Buffer> {
        self.data.into_one()
    }
}

/// Names a request in flight. Never used twice by one queue within 2^32 requests on the same slot.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let adapter = adapter::Embedded::open("emu:16M")?;
/// # let session = adapter.session()?;
/// # session.create_volume("v", 1 << 20)?;
/// # let volume = session.open("v", portcullis::Access::WRITE)?;
/// let mut queue = session.queue(8)?;
/// let ticket = queue.prepare(portcullis::Request::flush(&volume))?;
/// assert!(ticket.slot() < 8);
/// let done = queue.wait(std::time::Duration::from_secs(10))?.expect("one is in flight");
/// assert_eq!(done.ticket, ticket);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ticket {
    pub(crate) generation: u32,
    pub(crate) slot: u32,
}

impl Ticket {
    /// Below the number of the queue's entries, and different among requests in flight: an index for tables of the
    /// caller's own.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::READ_WRITE)?;
    /// # let mut queue = session.queue(8)?;
    /// let mut context = vec![""; queue.entries() as usize];
    /// let ticket = queue.prepare(portcullis::Request::flush(&volume))?;
    /// context[ticket.slot() as usize] = "the flush";
    /// # Ok(()) }
    /// ```
    pub const fn slot(self) -> u32 {
        self.slot
    }

    pub(crate) const fn user_data(self) -> u64 {
        (self.generation as u64) << 32 | self.slot as u64
    }

    #[allow(clippy::cast_possible_truncation)] // the two halves are meant
    pub(crate) const fn from_user_data(user_data: u64) -> Self {
        Self { generation: (user_data >> 32) as u32, slot: user_data as u32 }
    }
}

/// A request that ended: the device can no longer touch its memory or its blocks. See [`Request`].
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let adapter = adapter::Embedded::open("emu:16M")?;
/// # let session = adapter.session()?;
/// # session.create_volume("v", 1 << 20)?;
/// # let volume = session.open("v", portcullis::Access::READ)?;
/// # let mut queue = session.queue(8)?;
/// let done: portcullis::Completion =
///     queue.execute(portcullis::Request::read(&volume, 0, session.buffer(4096)?))?;
/// let (bytes, buffer) = (done.result?, done.buffer.expect("a read has one"));
/// assert_eq!(buffer.len(), bytes as usize);
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "it owns the buffer and says whether the request failed"]
pub struct Completion {
    /// Which request.
    pub ticket: Ticket,
    /// From [`Request::tag`].
    pub tag: u64,
    /// Bytes moved, or why it failed. Of a read of a file, the bytes before its end. Of a management request, those of the
    /// reply, which may tell of a failure.
    pub result: Result<u32, Error>,
    /// Of an append, the offset where it landed; else 0.
    pub value: u64,
    /// The buffer that the request was given.
    pub buffer: Option<Buffer>,
    /// The buffers, if it was given several.
    pub buffers: Vec<Buffer>,
}

impl Completion {
    /// The reply to a [`Request::manage`].
    ///
    /// # Errors
    /// [`Error::Refused`] if the adapter refused it; that of [`Completion::result`] if there is no reply;
    /// [`Error::Protocol`] if it is none.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// use portcullis::{Request, Status, wire::control};
    /// let mut queue = session.queue(8)?;
    /// let ask = control::Request::ShowVolume { name: "none".into() };
    /// let done = queue.execute(Request::manage(&ask, session.buffer(16 << 10)?)?)?;
    /// assert_eq!(done.reply().unwrap_err().status(), Some(Status::E_NO_RESOURCE));
    /// # Ok(()) }
    /// ```
    pub fn reply(self) -> Result<Reply, Error> {
        reply_in(self.result, self.buffer.as_deref())
    }
}

/// Writes a management request to the beginning of a buffer. Returns its bytes, and the room that there is for the reply.
pub(crate) fn encode_managed(request: &control::Request, buffer: &mut [u8]) -> Result<(usize, usize), Error> {
    let (room, needed) = (buffer.len().min(MAX_MESSAGE), request.reply_room());
    if !request.goes_by_queue() {
        let text = "this request goes by the control socket only: a queue carries no descriptors";
        return Err(Error::Argument(text.to_owned()));
    }
    if room < needed {
        let text = format!("a buffer of {room} bytes for a request whose reply may take {needed}");
        return Err(Error::Argument(text));
    }
    match encode_body(request, &mut buffer[..room]) {
        Ok(length) => Ok((length, room)),
        Err(error) => Err(Error::Argument(error.to_string())),
    }
}

/// The reply of a management request that ended with `result` and this buffer.
pub(crate) fn reply_in(result: Result<u32, Error>, buffer: Option<&[u8]>) -> Result<Reply, Error> {
    let bytes = usize::try_from(result?).unwrap_or(usize::MAX);
    let Some(body) = buffer.and_then(|buffer| buffer.get(..bytes)) else {
        return Err(Error::Argument("a request that manages nothing has no reply".to_owned()));
    };
    match decode_body(body) {
        Ok(Reply::Error { status, detail }) => Err(Error::Refused { status, detail }),
        Ok(reply) => Ok(reply),
        Err(error) => Err(Error::Protocol(format!("what came is no reply: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_survives_the_wire() {
        let ticket = Ticket { generation: u32::MAX, slot: 4095 };
        assert_eq!(Ticket::from_user_data(ticket.user_data()), ticket);
    }

    #[test]
    fn a_deadline_is_never_rounded_to_none() {
        let request = || Request::cancel(Ticket { generation: 0, slot: 0 });
        assert_eq!(request().deadline(Duration::ZERO).deadline_us, 1);
        assert_eq!(request().deadline(Duration::from_nanos(1001)).deadline_us, 2);
        assert_eq!(request().deadline(Duration::MAX).deadline_us, u32::MAX);
    }
}
