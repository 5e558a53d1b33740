//! An opened file.

mod options;
mod sequential;
mod transfer;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use wire::Status;
use wire::control::{Reply, Request};
use wire::files::{AttributeChange, ExtensionInfo, FileAttributes, FileInfo, FileTarget};
use wire::layout::MAX_WRITE_BYTES;

use crate::access::Access;
use crate::error::Error;
use crate::files::Files;
use crate::holes::{Extensions, Holes};
use crate::memory::unexpected;
pub use options::OpenOptions;

/// A file that grows again gets at least this much more, and at most that, beyond what is written: as much as it has.
const LEAST_GROWTH: u64 = 64 << 10;
const MOST_GROWTH: u64 = 64 << 20;
/// So often in a row somebody else may take the room that was made for a write.
pub(crate) const GROW_TRIES: usize = 16;

/// An opened file: named by its key from here on, so that reading and writing it looks at no name and makes no system call
/// while the adapter is awake. Positioned calls may come from several threads; [`std::io::Read`], `Write` and `Seek` share one position,
/// as a file of the kernel does.
///
/// Offsets and lengths may be any. Writes of at most 64 KiB happen whole or not at all as others see them; larger ones are
/// several. What is written is durable after [`File::sync_data`] or [`File::sync_all`]; dropping the file closes it, and makes
/// nothing durable.
///
/// A file is also a [`crate::Target`]: for many requests in flight, or memory without copies, give it to [`crate::Request`]s of a queue
/// of your own.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let adapter = adapter::Embedded::open("emu:32M")?;
/// # let session = adapter.session()?;
/// # session.create_volume("notes", 16 << 20)?;
/// # let files = session.files()?;
/// # files.format("notes", false)?;
/// let file = files.create("notes:/table")?;
/// file.write_all_at(b"value", 1000)?;
/// let mut back = [0; 5];
/// assert_eq!(file.read_at(&mut back, 1000)?, 5);
/// assert_eq!(&back, b"value");
/// file.sync_data()?;
/// # Ok(()) }
/// ```
pub struct File {
    files: Files,
    key: u64,
    access: Access,
    block_size: u32,
    append: bool,
    /// Bytes from its start that have blocks, as far as is known.
    room: AtomicU64,
    /// Known from the first E_HOLE on.
    holes: OnceLock<Holes>,
    position: Mutex<u64>,
    open: bool,
}

impl File {
    fn new(files: &Files, info: &FileInfo, append: bool) -> Result<Self, Error> {
        let access = checked(info)?;
        let FileInfo { key, block_size, room, .. } = *info;
        let (room, holes, position) = (AtomicU64::new(room), OnceLock::new(), Mutex::new(0));
        let files = files.clone();
        Ok(Self { files, key, access, block_size, append, room, holes, position, open: true })
    }

    /// What it is called on the wire.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = portcullis::Session::connect("socket")?.files()?.open("notes:/log")?;
    /// println!("{:#x}", file.key());
    /// # Ok(()) }
    /// ```
    pub fn key(&self) -> u64 {
        self.files.session().link().present_key(self.key)
    }

    /// What it goes by in this library: the first key that it had.
    pub(crate) fn name(&self) -> u64 {
        self.key
    }

    /// The unit of offsets and lengths of [`crate::Request::read`] and [`crate::Request::write`], in bytes. The methods here take any.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = portcullis::Session::connect("socket")?.files()?.open("notes:/log")?;
    /// assert!(file.block_size().is_power_of_two());
    /// # Ok(()) }
    /// ```
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Bytes from its start that have blocks, as far as is known here: others may have cut it or made it grow. A request of a
    /// queue of your own that writes behind them is refused; [`File::make_room`] makes room for it.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = portcullis::Session::connect("socket")?.files()?.create("notes:/log")?;
    /// file.make_room(1 << 20)?;
    /// assert!(file.room() >= 1 << 20);
    /// # Ok(()) }
    /// ```
    pub fn room(&self) -> u64 {
        self.room.load(Ordering::Relaxed)
    }

    /// What it was opened for.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = portcullis::Session::connect("socket")?.files()?.open("notes:/log")?;
    /// assert_eq!(file.access(), portcullis::Access::READ);
    /// # Ok(()) }
    /// ```
    pub fn access(&self) -> Access {
        self.access
    }

    /// The way by which it was opened.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = portcullis::Session::connect("socket")?.files()?.open("notes:/log")?;
    /// file.files().sync("notes")?;
    /// # Ok(()) }
    /// ```
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Asks for blocks until `end` and as many again as the file has, within bounds; if that is too much, until `end` alone.
    fn grow(&self, end: u64) -> Result<(), Error> {
        let room = match self.grow_to(growth(end, self.room.load(Ordering::Relaxed)), false) {
            Err(error) if error.status() == Some(Status::E_NO_RESOURCES) => self.grow_to(end, false)?,
            other => other?,
        };
        if room < end {
            return Err(Error::Protocol(format!(
                "room for {end} bytes was made, and there is room for {room}"
            )));
        }
        Ok(())
    }

    fn grow_to(&self, bytes: u64, keep: bool) -> Result<u64, Error> {
        Ok(self.info(&Request::GrowFile { key: self.key, bytes, keep })?.room)
    }

    fn info(&self, request: &Request) -> Result<FileInfo, Error> {
        match self.files.call(request)? {
            Reply::File(info) => {
                self.room.store(info.room, Ordering::Relaxed);
                Ok(info)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Gives blocks to at least the first `bytes` of the file, so that writing there fails for want of room no more, now or when it is
    /// opened again: the file keeps them until it is made shorter. Its length stays.
    ///
    /// # Errors
    /// [`Error::Refused`] with E_NO_RESOURCES; nothing has changed then.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = portcullis::Session::connect("socket")?.files()?.create("notes:/log")?;
    /// file.allocate(1 << 30)?;
    /// # Ok(()) }
    /// ```
    pub fn allocate(&self, bytes: u64) -> Result<(), Error> {
        self.grow_to(bytes, true).map(drop)
    }

    /// As [`File::allocate`], for as long as the file is open: what is behind its end when it was closed the last time is given back.
    /// Writes that need room ask for it by themselves; who makes requests of a queue of their own does it here.
    ///
    /// # Errors
    /// As [`File::allocate`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = portcullis::Session::connect("socket")?.files()?.create("notes:/log")?;
    /// file.make_room(1 << 20)?;
    /// # Ok(()) }
    /// ```
    pub fn make_room(&self, bytes: u64) -> Result<(), Error> {
        self.grow_to(bytes, false).map(drop)
    }

    /// Waits until what was written to the file is durable, with its length and all its attributes.
    ///
    /// # Errors
    /// [`Error::Refused`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = portcullis::Session::connect("socket")?.files()?.create("notes:/log")?;
    /// file.sync_all()?;
    /// # Ok(()) }
    /// ```
    pub fn sync_all(&self) -> Result<(), Error> {
        self.files.session().done(&Request::SyncFile { key: self.key, data_only: false })
    }

    /// Waits until what was written to the file is durable, and what is needed to read it back.
    ///
    /// # Errors
    /// [`Error::Refused`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = portcullis::Session::connect("socket")?.files()?.create("notes:/log")?;
    /// file.sync_data()?;
    /// # Ok(()) }
    /// ```
    pub fn sync_data(&self) -> Result<(), Error> {
        self.files.session().done(&Request::SyncFile { key: self.key, data_only: true })
    }

    /// Makes the file as long: what is cut off is gone, what is new reads as zero.
    ///
    /// # Errors
    /// [`Error::Refused`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = portcullis::Session::connect("socket")?.files()?.create("notes:/log")?;
    /// file.set_len(0)?;
    /// # Ok(()) }
    /// ```
    pub fn set_len(&self, bytes: u64) -> Result<(), Error> {
        self.info(&Request::SetLength { key: self.key, bytes }).map(drop)
    }

    /// The file as it is now.
    ///
    /// # Errors
    /// [`Error::Refused`], if the key has ended: revoked, or its volume deleted.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = portcullis::Session::connect("socket")?.files()?.open("notes:/log")?;
    /// println!("room for {} bytes", file.refresh()?.room);
    /// # Ok(()) }
    /// ```
    pub fn refresh(&self) -> Result<FileInfo, Error> {
        self.info(&Request::QueryFile { key: self.key })
    }

    /// Its attributes now.
    ///
    /// # Errors
    /// As [`File::refresh`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = portcullis::Session::connect("socket")?.files()?.open("notes:/log")?;
    /// println!("owned by {}", file.metadata()?.owner);
    /// # Ok(()) }
    /// ```
    pub fn metadata(&self) -> Result<FileAttributes, Error> {
        Ok(self.refresh()?.attributes)
    }

    /// Its length now.
    ///
    /// # Errors
    /// As [`File::refresh`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = portcullis::Session::connect("socket")?.files()?.open("notes:/log")?;
    /// println!("{} bytes", file.len()?);
    /// # Ok(()) }
    /// ```
    #[allow(clippy::len_without_is_empty)] // it may be another the next moment
    pub fn len(&self) -> Result<u64, Error> {
        Ok(self.metadata()?.length)
    }

    /// Changes attributes.
    ///
    /// # Errors
    /// [`Error::Refused`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = portcullis::Session::connect("socket")?.files()?.create("notes:/log")?;
    /// use portcullis::wire::files::{AttributeChange, SetTime};
    /// file.set_attributes(AttributeChange { modified: Some(SetTime::Now), ..Default::default() })?;
    /// # Ok(()) }
    /// ```
    pub fn set_attributes(&self, change: AttributeChange) -> Result<FileAttributes, Error> {
        let of = FileTarget::Key(self.key);
        match self.files.call(&Request::SetAttributes { of, change })? {
            Reply::Attributes(attributes) => Ok(attributes),
            other => Err(unexpected(&other)),
        }
    }

    /// All its extensions, in their order. They may be others when the file has grown or was cut. One that allows nothing
    /// is a hole.
    ///
    /// # Errors
    /// As [`File::refresh`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = portcullis::Session::connect("socket")?.files()?.open("notes:/log")?;
    /// println!("in {} pieces", file.extensions()?.len());
    /// # Ok(()) }
    /// ```
    pub fn extensions(&self) -> Result<Vec<ExtensionInfo>, Error> {
        self.extensions_after(self.refresh()?)
    }

    fn extensions_after(&self, info: FileInfo) -> Result<Vec<ExtensionInfo>, Error> {
        let mut extensions = Extensions::new(info);
        while let Some(request) = extensions.next() {
            extensions.take(self.files.call(&request)?)?;
        }
        Ok(extensions.into_all())
    }

    /// Closes it, and waits for that. Dropping does the same, and tells of no error.
    ///
    /// # Errors
    /// [`Error::Refused`]: E_BUSY_TIMEOUT if requests of other queues still ran under it; it is open then, until the session ends.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = portcullis::Session::connect("socket")?.files()?.open("notes:/log")?;
    /// file.close()?;
    /// # Ok(()) }
    /// ```
    pub fn close(mut self) -> Result<(), Error> {
        self.open = false;
        self.files.session().done(&Request::Close { key: self.key })
    }
}

/// What a file was opened for; an error if what came cannot be.
pub(crate) fn checked(info: &FileInfo) -> Result<Access, Error> {
    let FileInfo { access, block_size, .. } = *info;
    if !block_size.is_power_of_two() || block_size > MAX_WRITE_BYTES {
        return Err(Error::Protocol(format!("a file came with a block size of {block_size}")));
    }
    Access::from_bits(access)
        .ok_or_else(|| Error::Protocol(format!("a file came with unknown rights {access:#x}")))
}

/// How much room to ask for when there must be some until `end`: as much again as there is, within bounds. The first write of a
/// new file gets what it needs: most files are written once, and are small.
pub(crate) fn growth(end: u64, room: u64) -> u64 {
    if room == 0 { end } else { end.saturating_add(room.clamp(LEAST_GROWTH, MOST_GROWTH)) }
}

pub(crate) fn no_room(end: u64) -> Error {
    let detail =
        format!("room until byte {end} was made {GROW_TRIES} times and was gone each time; try again");
    Error::Refused { status: Status::E_NO_RESOURCES, detail }
}

impl Drop for File {
    fn drop(&mut self) {
        if self.open {
            // Best effort: the session's end closes it at the latest.
            let _ = self.files.session().done(&Request::Close { key: self.key });
        }
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File")
            .field("key", &format_args!("{:#x}", self.key))
            .field("access", &self.access)
            .field("block_size", &self.block_size)
            .finish_non_exhaustive()
    }
}
