//! A file whose operations are futures.

use std::cell::{Cell, OnceCell};
use std::collections::VecDeque;
use std::fmt;

use wire::Status;
use wire::control::{self, Reply};
use wire::files::{FileAttributes, FileInfo};
use wire::layout::MAX_WRITE_BYTES;

use super::{BUFFER_BYTES, Reactor, Submitted};
use crate::error::Error;
use crate::file::{GROW_TRIES, OpenOptions, checked, growth, no_room};
use crate::holes::{Extensions, Holes};
use crate::memory::unexpected;
use crate::place::ToPlace;
use crate::queue::{before_block, next_write};
use crate::request::Request;
use crate::target::{Of, Target};

/// Pieces of one operation that are under way at the same time.
const AT_ONCE: usize = 4;

/// An opened file, used by futures: what [`crate::File`] does, by a [`Reactor`]. Dropping it asks for its close and does not wait.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let adapter = adapter::Embedded::open("emu:32M")?;
/// # let session = adapter.session()?;
/// # session.create_volume("notes", 16 << 20)?;
/// # session.files()?.format("notes", false)?;
/// use portcullis::{AsyncFile, OpenOptions, Reactor};
/// let reactor = Reactor::new(&session, 32)?;
/// reactor.block_on(async {
///     let options = OpenOptions::new().read(true).write(true).create(true);
///     let file = AsyncFile::open(&reactor, &options, "notes:/table").await?;
///     file.write_all_at(b"value", 1000).await?;
///     let mut back = [0; 5];
///     assert_eq!(file.read_at(&mut back, 1000).await?, 5);
///     file.sync_data().await
/// })?;
/// # Ok(()) }
/// ```
pub struct AsyncFile {
    reactor: Reactor,
    of: Of,
    room: Cell<u64>,
    /// Known from the first E_HOLE on.
    holes: OnceCell<Holes>,
    open: bool,
}

impl AsyncFile {
    /// Opens it.
    ///
    /// # Errors
    /// As [`OpenOptions::open`].
    ///
    /// ```no_run
    /// # async fn example(reactor: portcullis::Reactor) -> Result<(), portcullis::Error> {
    /// use portcullis::{AsyncFile, OpenOptions};
    /// let file = AsyncFile::open(&reactor, &OpenOptions::new().read(true), "notes:/log").await?;
    /// # Ok(()) }
    /// ```
    pub async fn open(reactor: &Reactor, options: &OpenOptions, place: impl ToPlace) -> Result<Self, Error> {
        let request = control::Request::OpenFile(options.request(&place.to_place()?)?);
        let info = match reactor.call(&request).await? {
            Reply::File(info) => info,
            other => return Err(unexpected(&other)),
        };
        checked(&info)?;
        let room = Cell::new(info.room);
        let holes = OnceCell::new();
        Ok(Self { reactor: reactor.clone(), of: Of::opened(&info), room, holes, open: true })
    }

    /// Reads from `offset` until the slice is full or the file ends. Returns how many bytes.
    ///
    /// # Errors
    /// As [`crate::File::read_at`].
    ///
    /// ```no_run
    /// # async fn example(file: portcullis::AsyncFile) -> Result<(), portcullis::Error> {
    /// let mut start = [0; 100];
    /// let bytes = file.read_at(&mut start, 0).await?;
    /// # Ok(()) }
    /// ```
    pub async fn read_at(&self, target: &mut [u8], offset: u64) -> Result<usize, Error> {
        if self.holes.get().is_none() {
            match self.read_blocks(target, offset).await {
                Err(Error::Io(error)) if error.status == Status::E_HOLE => {}
                other => return other,
            }
        }
        let holes = match self.holes.get() {
            Some(holes) => holes,
            None => {
                let holes = self.find_holes().await?;
                self.holes.get_or_init(|| holes)
            }
        };
        let (bytes, blocks) = holes.fill(target, offset);
        for part in blocks {
            let (start, wanted) = (part.start, part.len());
            let here = self.read_blocks(&mut target[part], offset + start as u64).await?;
            if here < wanted {
                return Ok(start + here);
            }
        }
        Ok(bytes)
    }

    async fn find_holes(&self) -> Result<Holes, Error> {
        let info = self.info(&control::Request::QueryFile { key: self.of.key() }).await?;
        let length = info.attributes.length;
        let mut extensions = Extensions::new(info);
        while let Some(request) = extensions.next() {
            extensions.take(self.reactor.call(&request).await?)?;
        }
        Ok(Holes::new(length, extensions.into_all()))
    }

    async fn read_blocks(&self, target: &mut [u8], offset: u64) -> Result<usize, Error> {
        let block = self.of.block();
        let mut running: VecDeque<(usize, usize, usize, Submitted)> = VecDeque::new();
        let (mut begun, mut read) = (0, 0);
        loop {
            while begun < target.len() && running.len() < AT_ONCE {
                let at = offset.saturating_add(begun as u64);
                let skip = before_block(at, block);
                let bytes = (BUFFER_BYTES - skip).min(target.len() - begun);
                let whole = (skip + bytes).next_multiple_of(block) as u64;
                // Whoever holds buffers waits for none: several such would wait for one another.
                let Some(buffer) = self.reactor.buffer_if(running.is_empty()).await? else { break };
                let request = Request::read(&self.of, at - skip as u64, buffer).length(whole);
                running.push_back((begun, skip, bytes, self.reactor.submit(request)));
                begun += bytes;
            }
            let Some((at, skip, bytes, submitted)) = running.pop_front() else { return Ok(read) };
            let done = submitted.await?;
            let Some(buffer) = done.buffer else {
                return Err(Error::Protocol("a read lost its buffer".into()));
            };
            let arrived = match done.result {
                Ok(arrived) => usize::try_from(arrived).unwrap_or(0).saturating_sub(skip).min(bytes),
                Err(error) => {
                    self.reactor.give(buffer);
                    return Err(error);
                }
            };
            target[at..at + arrived].copy_from_slice(&buffer[skip..skip + arrived]);
            self.reactor.give(buffer);
            read = at + arrived;
            if arrived < bytes {
                return Ok(read); // The file ends there.
            }
        }
    }

    /// Writes all of a slice to `offset`, and makes the file grow where it must.
    ///
    /// # Errors
    /// As [`crate::File::write_all_at`].
    ///
    /// ```no_run
    /// # async fn example(file: portcullis::AsyncFile) -> Result<(), portcullis::Error> {
    /// file.write_all_at(b"here", 1 << 20).await?;
    /// # Ok(()) }
    /// ```
    pub async fn write_all_at(&self, source: &[u8], offset: u64) -> Result<(), Error> {
        let Some(end) = offset.checked_add(source.len() as u64) else {
            return Err(Error::Argument(format!("{} bytes at {offset}: no file is that long", source.len())));
        };
        if end > self.room.get() && !source.is_empty() {
            self.grow(end).await?;
        }
        for _ in 0..GROW_TRIES {
            match self.write_pieces(source, offset).await {
                Err(Error::Io(error)) if error.status == Status::E_NO_RESOURCES => self.grow(end).await?,
                other => return other,
            }
        }
        Err(no_room(end))
    }

    async fn write_pieces(&self, source: &[u8], offset: u64) -> Result<(), Error> {
        let block = self.of.block();
        let mut running: VecDeque<Submitted> = VecDeque::new();
        let mut begun = 0;
        loop {
            while begun < source.len() && running.len() < AT_ONCE {
                let at = offset.saturating_add(begun as u64);
                let (bytes, whole) = next_write(before_block(at, block), source.len() - begun, block);
                let Some(mut buffer) = self.reactor.buffer_if(running.is_empty()).await? else { break };
                buffer[..bytes].copy_from_slice(&source[begun..begun + bytes]);
                let write = if whole { Request::write } else { Request::write_bytes };
                running.push_back(self.reactor.submit(write(&self.of, at, buffer).length(bytes as u64)));
                begun += bytes;
            }
            let Some(submitted) = running.pop_front() else { return Ok(()) };
            let done = submitted.await?;
            done.buffer.into_iter().for_each(|buffer| self.reactor.give(buffer));
            done.result?;
        }
    }

    /// Writes at most 64 KiB behind the last byte of the file. Returns where they landed.
    ///
    /// # Errors
    /// [`Error::Argument`] for more; else as [`crate::File::append`].
    ///
    /// ```no_run
    /// # async fn example(file: portcullis::AsyncFile) -> Result<(), portcullis::Error> {
    /// let at = file.append(b"one line\n").await?;
    /// # Ok(()) }
    /// ```
    pub async fn append(&self, source: &[u8]) -> Result<u64, Error> {
        if source.len() > MAX_WRITE_BYTES as usize {
            let text = format!(
                "an append of {} bytes at once: at most {MAX_WRITE_BYTES} land together",
                source.len()
            );
            return Err(Error::Argument(text));
        }
        let mut end = 0;
        for _ in 0..GROW_TRIES {
            let known = self.room.get();
            let mut buffer = self.reactor.buffer().await?;
            buffer[..source.len()].copy_from_slice(source);
            let request = Request::append_to(&self.of, buffer).length(source.len() as u64);
            let done = self.reactor.submit(request).await?;
            done.buffer.into_iter().for_each(|buffer| self.reactor.give(buffer));
            match done.result {
                Err(Error::Io(error)) if error.status == Status::E_NO_RESOURCES => {
                    // As with `File::append`: the length does not tell.
                    let room = self.info(&control::Request::QueryFile { key: self.of.key() }).await?.room;
                    end = room.saturating_add(source.len() as u64);
                    if room <= known {
                        self.grow(end).await?;
                    }
                }
                other => return other.map(|_| done.value),
            }
        }
        Err(no_room(end))
    }

    async fn grow(&self, end: u64) -> Result<(), Error> {
        let key = self.of.key();
        let ask = |bytes| control::Request::GrowFile { key, bytes, keep: false };
        let grown = match self.info(&ask(growth(end, self.room.get()))).await {
            Err(error) if error.status() == Some(Status::E_NO_RESOURCES) => self.info(&ask(end)).await?,
            other => other?,
        };
        if grown.room < end {
            return Err(Error::Protocol(format!(
                "room for {end} bytes was made, and there is {}",
                grown.room
            )));
        }
        Ok(())
    }

    async fn info(&self, request: &control::Request) -> Result<FileInfo, Error> {
        match self.reactor.call(request).await? {
            Reply::File(info) => {
                self.room.set(info.room);
                Ok(info)
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn done(&self, request: &control::Request) -> Result<(), Error> {
        match self.reactor.call(request).await? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// As [`crate::File::sync_all`].
    ///
    /// # Errors
    /// [`Error::Refused`].
    ///
    /// ```no_run
    /// # async fn example(file: portcullis::AsyncFile) -> Result<(), portcullis::Error> {
    /// file.sync_all().await?;
    /// # Ok(()) }
    /// ```
    pub async fn sync_all(&self) -> Result<(), Error> {
        self.done(&control::Request::SyncFile { key: self.of.key(), data_only: false }).await
    }

    /// As [`crate::File::sync_data`].
    ///
    /// # Errors
    /// [`Error::Refused`].
    ///
    /// ```no_run
    /// # async fn example(file: portcullis::AsyncFile) -> Result<(), portcullis::Error> {
    /// file.sync_data().await?;
    /// # Ok(()) }
    /// ```
    pub async fn sync_data(&self) -> Result<(), Error> {
        self.done(&control::Request::SyncFile { key: self.of.key(), data_only: true }).await
    }

    /// As [`crate::File::set_len`].
    ///
    /// # Errors
    /// [`Error::Refused`].
    ///
    /// ```no_run
    /// # async fn example(file: portcullis::AsyncFile) -> Result<(), portcullis::Error> {
    /// file.set_len(0).await?;
    /// # Ok(()) }
    /// ```
    pub async fn set_len(&self, bytes: u64) -> Result<(), Error> {
        self.info(&control::Request::SetLength { key: self.of.key(), bytes }).await.map(drop)
    }

    /// As [`crate::File::metadata`].
    ///
    /// # Errors
    /// [`Error::Refused`].
    ///
    /// ```no_run
    /// # async fn example(file: portcullis::AsyncFile) -> Result<(), portcullis::Error> {
    /// println!("{} bytes", file.metadata().await?.length);
    /// # Ok(()) }
    /// ```
    pub async fn metadata(&self) -> Result<FileAttributes, Error> {
        Ok(self.info(&control::Request::QueryFile { key: self.of.key() }).await?.attributes)
    }

    /// Closes it, and waits for that.
    ///
    /// # Errors
    /// As [`crate::File::close`].
    ///
    /// ```no_run
    /// # async fn example(file: portcullis::AsyncFile) -> Result<(), portcullis::Error> {
    /// file.close().await?;
    /// # Ok(()) }
    /// ```
    pub async fn close(mut self) -> Result<(), Error> {
        self.open = false;
        self.done(&control::Request::Close { key: self.of.key() }).await
    }
}

impl Drop for AsyncFile {
    fn drop(&mut self) {
        if self.open {
            self.reactor.close_later(self.of.key());
        }
    }
}

impl fmt::Debug for AsyncFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncFile")
            .field("key", &format_args!("{:#x}", self.of.key()))
            .finish_non_exhaustive()
    }
}
