//! Bytes of a file read, written and appended, wherever they are.

use std::io::{IoSlice, IoSliceMut};
use std::sync::atomic::Ordering;

use wire::Status;
use wire::layout::MAX_WRITE_BYTES;

use super::{File, GROW_TRIES, no_room};
use crate::error::Error;
use crate::holes::Holes;
use crate::queue::Pieces;
use crate::target::Of;

/// Slices of no more bytes together are copied and go as one.
const GATHER: usize = MAX_WRITE_BYTES as usize;

impl File {
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
}

fn gather(sources: &[IoSlice<'_>]) -> Vec<u8> {
    let total = sources.iter().map(|source| source.len()).sum();
    let mut all = Vec::with_capacity(total);
    sources.iter().for_each(|source| all.extend_from_slice(source));
    all
}
