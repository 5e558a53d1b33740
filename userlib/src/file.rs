//! An opened file.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use wire::Status;
use wire::control::{Reply, Request};
use wire::files::{AttributeChange, Create, ExtensionInfo, FileAttributes, FileInfo, FileTarget, OpenFile};
use wire::layout::MAX_WRITE_BYTES;

use crate::access::Access;
use crate::error::Error;
use crate::files::Files;
use crate::holes::{Extensions, Holes};
use crate::memory::unexpected;
use crate::place::{Place, ToPlace};
use crate::queue::Pieces;
use crate::target::Of;

/// A file that grows again gets at least this much more, and at most that, beyond what is written: as much as it has.
const LEAST_GROWTH: u64 = 64 << 10;
const MOST_GROWTH: u64 = 64 << 20;
/// So often in a row somebody else may take the room that was made for a write.
pub(crate) const GROW_TRIES: usize = 16;

/// How a file is opened, as [`std::fs::OpenOptions`] has it.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let adapter = adapter::Embedded::open("emu:32M")?;
/// # let session = adapter.session()?;
/// # session.create_volume("notes", 16 << 20)?;
/// # let files = session.files()?;
/// # files.format("notes", false)?;
/// use portcullis::OpenOptions;
/// let table = OpenOptions::new()
///     .read(true)
///     .write(true)
///     .create(true)
///     .mode(0o600)
///     .allocate(1 << 20)
///     .open(&files, "notes:/table")?;
/// assert_eq!(table.len()?, 0);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    read: bool,
    write: bool,
    append: bool,
    trim: bool,
    truncate: bool,
    create: bool,
    create_new: bool,
    follow: bool,
    mode: u16,
    allocate: u64,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self::new()
    }
}

macro_rules! option {
    ($($(#[doc = $doc:literal])+ $name:ident: $type:ty;)+) => {
        $($(#[doc = $doc])+
        ///
        /// ```
        #[doc = concat!("let options = portcullis::OpenOptions::new().", stringify!($name), "(Default::default());")]
        /// ```
        #[must_use]
        pub const fn $name(mut self, $name: $type) -> Self {
            self.$name = $name;
            self
        })+
    };
}

impl OpenOptions {
    /// None of them; files that are made have mode 0o644, and links are followed.
    ///
    /// ```
    /// let options = portcullis::OpenOptions::new().read(true);
    /// ```
    pub const fn new() -> Self {
        Self {
            read: false,
            write: false,
            append: false,
            trim: false,
            truncate: false,
            create: false,
            create_new: false,
            follow: true,
            mode: 0o644,
            allocate: 0,
        }
    }

    option! {
        /// To be read.
        read: bool;
        /// To be written anywhere.
        write: bool;
        /// To be written at its end: [`Write`] appends, whatever others append meanwhile.
        append: bool;
        /// Ranges of it may be given up.
        trim: bool;
        /// It is cut to nothing first.
        truncate: bool;
        /// It is made if it is not there.
        create: bool;
        /// It is made, and must not be there.
        create_new: bool;
        /// A symbolic link at the end of the path is followed.
        follow: bool;
        /// Permission bits of a file that is made.
        mode: u16;
        /// Bytes that get blocks at once, as by [`File::allocate`].
        allocate: u64;
    }

    pub(crate) fn request(&self, place: &Place) -> Result<OpenFile, Error> {
        let writes = self.write || self.append;
        let makes = self.create || self.create_new;
        let wrong = match self {
            _ if !self.read && !writes => "to be read, written or appended to: none of them was asked for",
            _ if self.truncate && (!self.write || self.append) => "cut to nothing, but not written anywhere",
            _ if makes && !writes => "made, but not written",
            _ => "",
        };
        if !wrong.is_empty() {
            return Err(Error::Argument(format!("{place} cannot be opened so: {wrong}")));
        }
        let mut access = Access::NONE;
        for (wanted, right) in [(self.read, Access::READ), (writes, Access::WRITE), (self.trim, Access::TRIM)]
        {
            if wanted {
                access = access | right;
            }
        }
        let (volume, path) = place.wire();
        let create = match (self.create, self.create_new) {
            (_, true) => Create::New,
            (true, false) => Create::IfAbsent,
            (false, false) => Create::Never,
        };
        let Self { truncate, follow, mode, allocate, .. } = *self;
        let access = access.bits();
        Ok(OpenFile { volume, path, access, create, truncate, follow, mode, allocate })
    }

    /// Opens it. This is the one request that looks at its name.
    ///
    /// # Errors
    /// [`Error::Argument`] for options that do not go together; [`Error::Refused`]: E_NO_RESOURCE if it is not there,
    /// E_EXISTS, E_AUTH, E_NO_RESOURCES without room.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let session = portcullis::Session::connect(portcullis::default_socket_path())?;
    /// # let files = session.files()?;
    /// let log = portcullis::OpenOptions::new().append(true).create(true).open(&files, "notes:/log")?;
    /// # Ok(()) }
    /// ```
    pub fn open(&self, files: &Files, place: impl ToPlace) -> Result<File, Error> {
        let request = Request::OpenFile(self.request(&place.to_place()?)?);
        match files.call(&request)? {
            Reply::File(info) => File::new(files, &info, self.append),
            other => Err(unexpected(&other)),
        }
    }
}

/// An opened file: named by its key from here on, so that reading and writing it looks at no name and makes no system call
/// while the adapter is awake. Positioned calls may come from several threads; [`Read`], [`Write`] and [`Seek`] share one position,
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

    /// Reads from `offset` until the slice is full or the file ends. Returns how many bytes.
    ///
    /// # Errors
    /// [`Error::Io`] for the first piece that failed; what is in the slice is undefined then.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = portcullis::Session::connect("socket")?.files()?.open("notes:/log")?;
    /// let mut tail = [0; 100];
    /// let bytes = file.read_at(&mut tail, file.len()?.saturating_sub(100))?;
    /// # Ok(()) }
    /// ```
    pub fn read_at(&self, target: &mut [u8], offset: u64) -> Result<usize, Error> {
        if target.is_empty() {
            return Ok(0);
        }
        if let Some(holes) = self.holes.get() {
            return self.read_between(holes, target, offset);
        }
        match self.read_blocks(target, offset) {
            Err(Error::Io(error)) if error.status == Status::E_HOLE => {
                let info = self.refresh()?;
                let length = info.attributes.length;
                let holes = Holes::new(length, self.extensions_after(info)?);
                self.read_between(self.holes.get_or_init(|| holes), target, offset)
            }
            other => other,
        }
    }

    fn read_blocks(&self, target: &mut [u8], offset: u64) -> Result<usize, Error> {
        self.files.desk()?.lock().transfer(Of::file(self), offset, Pieces::Read(target))
    }

    /// Reads what has blocks, and fills what has none with zeros.
    fn read_between(&self, holes: &Holes, target: &mut [u8], offset: u64) -> Result<usize, Error> {
        let (bytes, blocks) = holes.fill(target, offset);
        for part in blocks {
            let (start, wanted) = (part.start, part.len());
            let here = self.read_blocks(&mut target[part], offset + start as u64)?;
            if here < wanted {
                return Ok(start + here);
            }
        }
        Ok(bytes)
    }

    /// Reads a whole slice from `offset`.
    ///
    /// # Errors
    /// As [`File::read_at`]; [`Error::Io`] with E_BOUNDS if the file ends before.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = portcullis::Session::connect("socket")?.files()?.open("notes:/log")?;
    /// let mut header = [0; 16];
    /// file.read_exact_at(&mut header, 0)?;
    /// # Ok(()) }
    /// ```
    pub fn read_exact_at(&self, target: &mut [u8], offset: u64) -> Result<(), Error> {
        let bytes = self.read_at(target, offset)?;
        if bytes == target.len() { Ok(()) } else { Err(self.ended(offset, target.len())) }
    }

    fn ended(&self, offset: u64, length: usize) -> Error {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let opcode = wire::layout::opcode::READ;
        crate::IoError { status: Status::E_BOUNDS, device_status: 0, opcode, offset, length }.into()
    }

    /// Reads into several slices, one after the other, until all are full or the file ends. Returns how many bytes.
    ///
    /// # Errors
    /// As [`File::read_at`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = portcullis::Session::connect("socket")?.files()?.open("notes:/log")?;
    /// use std::io::IoSliceMut;
    /// let (mut head, mut body) = ([0; 16], [0; 100]);
    /// file.read_vectored_at(&mut [IoSliceMut::new(&mut head), IoSliceMut::new(&mut body)], 0)?;
    /// # Ok(()) }
    /// ```
    pub fn read_vectored_at(&self, targets: &mut [IoSliceMut<'_>], offset: u64) -> Result<usize, Error> {
        let total = targets.iter().map(|target| target.len()).sum();
        if total <= GATHER {
            let mut all = vec![0; total];
            let bytes = self.read_at(&mut all, offset)?;
            let mut left = &all[..bytes];
            for target in targets {
                let here = left.len().min(target.len());
                target[..here].copy_from_slice(&left[..here]);
                left = &left[here..];
            }
            return Ok(bytes);
        }
        let mut bytes = 0;
        for target in targets {
            let here = self.read_at(target, offset.saturating_add(bytes as u64))?;
            bytes += here;
            if here < target.len() {
                break;
            }
        }
        Ok(bytes)
    }

    /// Writes all of a slice to `offset`. Where the file has no blocks it is made to grow, by as much as it has.
    ///
    /// # Errors
    /// [`Error::Io`] for the first piece that failed, others may have been written; [`Error::Refused`] with E_NO_RESOURCES
    /// if there is no more room.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = portcullis::Session::connect("socket")?.files()?.create("notes:/log")?;
    /// file.write_all_at(b"here", 1 << 20)?;
    /// # Ok(()) }
    /// ```
    pub fn write_all_at(&self, source: &[u8], offset: u64) -> Result<(), Error> {
        let Some(end) = offset.checked_add(source.len() as u64) else {
            return Err(Error::Argument(format!(
                "a write of {} bytes at {offset}: no file is that long",
                source.len()
            )));
        };
        if source.is_empty() {
            return Ok(());
        }
        if end > self.room.load(Ordering::Relaxed) {
            self.grow(end)?;
        }
        for _ in 0..GROW_TRIES {
            let written = self.files.desk()?.lock().transfer(Of::file(self), offset, Pieces::Write(source));
            match written {
                // Somebody cut the file meanwhile. What of this was written is written again.
                Err(Error::Io(error)) if error.status == Status::E_NO_RESOURCES => self.grow(end)?,
                other => return other.map(drop),
            }
        }
        Err(no_room(end))
    }

    /// As [`File::write_all_at`], and returns the length of the slice: what [`std::os::unix::fs::FileExt`] calls so.
    ///
    /// # Errors
    /// As [`File::write_all_at`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = portcullis::Session::connect("socket")?.files()?.create("notes:/log")?;
    /// assert_eq!(file.write_at(b"here", 0)?, 4);
    /// # Ok(()) }
    /// ```
    pub fn write_at(&self, source: &[u8], offset: u64) -> Result<usize, Error> {
        self.write_all_at(source, offset).map(|()| source.len())
    }

    /// Writes several slices, one behind the other, from `offset` on: as one, if they are at most 64 KiB together.
    ///
    /// # Errors
    /// As [`File::write_all_at`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = portcullis::Session::connect("socket")?.files()?.create("notes:/log")?;
    /// use std::io::IoSlice;
    /// file.write_vectored_at(&[IoSlice::new(b"head"), IoSlice::new(b"body")], 0)?;
    /// # Ok(()) }
    /// ```
    pub fn write_vectored_at(&self, sources: &[IoSlice<'_>], offset: u64) -> Result<usize, Error> {
        let total = sources.iter().map(|source| source.len()).sum();
        if total <= GATHER {
            self.write_all_at(&gather(sources), offset)?;
            return Ok(total);
        }
        let mut at = offset;
        for source in sources {
            self.write_all_at(source, at)?;
            at = at.saturating_add(source.len() as u64);
        }
        Ok(total)
    }

    /// Writes a slice behind the last byte of the file, wherever that is when the adapter does it. Returns where its first byte
    /// landed. At most 64 KiB land together; of more, others may have landed between.
    ///
    /// # Errors
    /// As [`File::write_all_at`]; what was appended by then stays.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = portcullis::Session::connect("socket")?.files()?.create("notes:/log")?;
    /// let at = file.append(b"one line\n")?;
    /// # Ok(()) }
    /// ```
    pub fn append(&self, source: &[u8]) -> Result<u64, Error> {
        if source.is_empty() {
            return self.len();
        }
        let mut first = None;
        for piece in source.chunks(MAX_WRITE_BYTES as usize) {
            let at = self.append_piece(piece)?;
            first.get_or_insert(at);
        }
        first.ok_or_else(|| Error::Argument("nothing to append".to_owned()))
    }

    fn append_piece(&self, piece: &[u8]) -> Result<u64, Error> {
        let mut end = 0;
        for _ in 0..GROW_TRIES {
            let known = self.room.load(Ordering::Relaxed);
            let appended = self.files.desk()?.lock().append(self, piece);
            match appended {
                Err(Error::Io(error)) if error.status == Status::E_NO_RESOURCES => {
                    // The length does not tell: other appends have places behind it. Room that others made meanwhile is good
                    // for this one, too.
                    let room = self.refresh()?.room;
                    end = room.saturating_add(piece.len() as u64);
                    if room <= known {
                        self.grow(end)?;
                    }
                }
                other => return other,
            }
        }
        Err(no_room(end))
    }

    /// Several slices as one append, if they are at most 64 KiB together.
    ///
    /// # Errors
    /// As [`File::append`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = portcullis::Session::connect("socket")?.files()?.create("notes:/log")?;
    /// use std::io::IoSlice;
    /// file.append_vectored(&[IoSlice::new(b"one "), IoSlice::new(b"line\n")])?;
    /// # Ok(()) }
    /// ```
    pub fn append_vectored(&self, sources: &[IoSlice<'_>]) -> Result<u64, Error> {
        self.append(&gather(sources))
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

    fn position(&self) -> MutexGuard<'_, u64> {
        self.position.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Slices of no more bytes together are copied and go as one.
const GATHER: usize = MAX_WRITE_BYTES as usize;

fn gather(sources: &[IoSlice<'_>]) -> Vec<u8> {
    let total = sources.iter().map(|source| source.len()).sum();
    let mut all = Vec::with_capacity(total);
    sources.iter().for_each(|source| all.extend_from_slice(source));
    all
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

impl Read for &File {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let mut position = self.position();
        let bytes = self.read_at(target, *position)?;
        *position += bytes as u64;
        Ok(bytes)
    }

    fn read_vectored(&mut self, targets: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut position = self.position();
        let bytes = self.read_vectored_at(targets, *position)?;
        *position += bytes as u64;
        Ok(bytes)
    }
}

impl Write for &File {
    fn write(&mut self, source: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(source)])
    }

    fn write_vectored(&mut self, sources: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut position = self.position();
        let bytes: usize = sources.iter().map(|source| source.len()).sum();
        if bytes == 0 {
            return Ok(0);
        }
        if self.append {
            *position = self.append_vectored(sources)?;
        } else {
            self.write_vectored_at(sources, *position)?;
        }
        *position += bytes as u64;
        Ok(bytes)
    }

    /// Nothing is held back, so that nothing is to be done. Durable is what [`File::sync_data`] makes durable.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for &File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let mut position = self.position();
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => position.checked_add_signed(by),
            SeekFrom::End(by) => self.len()?.checked_add_signed(by),
        };
        let target = target.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "a seek to before the file's start, or beyond any")
        })?;
        *position = target;
        Ok(target)
    }
}

impl Read for File {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        (&*self).read(target)
    }

    fn read_vectored(&mut self, targets: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        (&*self).read_vectored(targets)
    }
}

impl Write for File {
    fn write(&mut self, source: &[u8]) -> io::Result<usize> {
        (&*self).write(source)
    }

    fn write_vectored(&mut self, sources: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*self).write_vectored(sources)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self).flush()
    }
}

impl Seek for File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        (&*self).seek(to)
    }
}
