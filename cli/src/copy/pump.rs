//! Moves bytes from one end to the other with several requests in flight: one queue and its buffers, for any number of copies
//! one after the other.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use indicatif::ProgressBar;
use portcullis::{Buffer, Completion, File, MemoryAccess, Queue, Request, Session, Status, Volume};

use super::too_small;

/// What the data of a target's file systems comes in: a run of zeroes that fills so many bytes is left out.
const HOLE: usize = 4096;

/// What requests can be about.
pub(crate) enum Held {
    Volume(Volume),
    File(File),
}

impl Held {
    fn block(&self) -> usize {
        let block = match self {
            Self::Volume(volume) => volume.block_size(),
            Self::File(file) => file.block_size(),
        };
        block as usize
    }

    fn read(&self, at: u64, buffer: Buffer) -> Request {
        match self {
            Self::Volume(volume) => Request::read(volume, at, buffer),
            Self::File(file) => Request::read(file, at, buffer),
        }
    }
}

pub(crate) enum Source {
    Stream(Box<dyn Read>),
    Host(Sparse),
    Held { held: Held, offset: u64, bytes: u64 },
}

pub(crate) enum Target {
    Stream(Box<dyn Write>),
    /// A file here, of which nothing is left.
    Host(fs::File),
    Volume {
        volume: Volume,
        name: String,
        offset: u64,
        room: u64,
    },
    File {
        file: File,
        /// It reads as zero wherever nothing was written.
        fresh: bool,
    },
}

impl Target {
    /// Whether what is left out reads as zero.
    fn has_holes(&self) -> bool {
        matches!(self, Self::Host(_) | Self::File { fresh: true, .. })
    }
}

/// A file here, that may have holes.
pub(crate) struct Sparse {
    file: fs::File,
    /// Bytes that are copied.
    bytes: u64,
    /// From where on was asked, and where there is data from there on.
    data: Option<(u64, u64)>,
}

impl Sparse {
    pub(crate) fn new(file: fs::File, bytes: u64) -> Self {
        Self { file, bytes, data: None }
    }

    /// Whether there is nothing but a hole from `at` on, for so many bytes.
    fn is_hole(&mut self, at: u64, bytes: usize) -> bool {
        let known = self.data.filter(|(from, data)| (*from..=*data).contains(&at));
        let (_, data) = known.unwrap_or_else(|| {
            let data = match rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Data(at)) {
                Ok(data) => data,
                Err(rustix::io::Errno::NXIO) => u64::MAX, // nothing but a hole until the end
                Err(_) => at,                             // a file system that does not tell
            };
            *self.data.insert((at, data))
        });
        data >= at.saturating_add(bytes as u64)
    }

    /// Reads until the buffer is full or the file ends, which may have become shorter.
    fn read(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        struct At<'a>(&'a fs::File, u64);
        impl Read for At<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let bytes = self.0.read_at(buffer, self.1)?;
                self.1 += bytes as u64;
                Ok(bytes)
            }
        }
        fill(&mut At(&self.file, at), buffer)
    }
}

/// What a copy did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Moved {
    pub(crate) bytes: u64,
    /// Zeroes that were added to fill the last block of a volume.
    pub(crate) padding: u64,
}

pub(crate) struct Pump {
    queue: Queue,
    free: Vec<Buffer>,
    chunk: usize,
    depth: u64,
}

impl Pump {
    pub(crate) fn new(session: &Session, chunk: u64, depth: u32) -> Result<Self> {
        let asked = chunk;
        let chunk = usize::try_from(chunk.max(1))
            .ok()
            .and_then(|chunk| chunk.checked_next_multiple_of(HOLE))
            .with_context(|| format!("a chunk of {asked} bytes is too large"))?;
        let total = chunk.saturating_mul(depth as usize);
        let memory = session
            .register(total, MemoryAccess::Both)
            .with_context(|| format!("cannot register {total} bytes: try a smaller --depth or --chunk"))?;
        let queue = session.queue(depth.next_power_of_two().max(2))?;
        Ok(Self { queue, free: memory.buffers(chunk, HOLE)?, chunk, depth: depth.into() })
    }

    /// Copies all of the source. The target's file is as long then, and nothing more.
    pub(crate) fn copy(
        &mut self,
        source: &mut Source,
        target: &mut Target,
        bar: &ProgressBar,
    ) -> Result<Moved> {
        for block in [source.block(), target.block()].into_iter().flatten() {
            ensure!(
                self.chunk.is_multiple_of(block),
                "a chunk of {} bytes is not a whole number of blocks, which have {block} here: give a --chunk that is",
                self.chunk
            );
        }
        let mut copy = Copy {
            pump: self,
            source,
            target,
            bar,
            ready: BTreeMap::new(),
            begun: 0,
            handed: 0,
            ended: false,
            closed: false,
            written: 0,
            moved: Moved::default(),
        };
        let done = copy.run();
        if done.is_err() {
            copy.drain(); // The next copy needs the buffers, and must not see these completions.
        }
        done
    }
}

impl Source {
    fn block(&self) -> Option<usize> {
        if let Self::Held { held, .. } = self { Some(held.block()) } else { None }
    }
}

impl Target {
    fn block(&self) -> Option<usize> {
        match self {
            Self::Volume { volume, .. } => Some(volume.block_size() as usize),
            Self::File { file, .. } => Some(file.block_size() as usize),
            Self::Stream(_) | Self::Host(_) => None,
        }
    }
}

/// One copy. A buffer is free, in flight, or ready: filled and waiting for its turn.
struct Copy<'a> {
    pump: &'a mut Pump,
    source: &'a mut Source,
    target: &'a mut Target,
    bar: &'a ProgressBar,
    /// Pieces by their number, with their bytes. Without a buffer they are zeroes.
    ready: BTreeMap<u64, (Option<Buffer>, usize)>,
    /// Pieces begun.
    begun: u64,
    /// Pieces handed to the target.
    handed: u64,
    /// The source has no more pieces than were begun.
    ended: bool,
    /// The last piece was handed to the target. What was read behind it is not there any more: the file became shorter.
    closed: bool,
    /// Where the last byte that was really written ends.
    written: u64,
    moved: Moved,
}

/// What a request does, in the lowest bits of its tag; the rest is the number of the piece.
const KIND: u32 = 2;
const READ: u64 = 0;
const WRITE: u64 = 1;
/// Of a write of whole blocks, behind which a write of the rest comes.
const HEAD: u64 = 2;

fn tag(number: u64, kind: u64) -> u64 {
    number << KIND | kind
}

impl Copy<'_> {
    fn run(&mut self) -> Result<Moved> {
        loop {
            let buffer = if self.ended { None } else { self.pump.free.pop() };
            let done = match buffer {
                Some(buffer) => {
                    self.begin(buffer)?;
                    self.hand_on()?;
                    self.pump.queue.poll()?
                }
                None if self.pump.queue.in_flight() > 0 => self.pump.queue.wait(Duration::MAX)?,
                None if self.ended => break,
                None => bail!("no buffer is left: a copy before this one lost them"),
            };
            if let Some(done) = done {
                self.done(done)?;
                self.hand_on()?;
            }
        }
        self.finish()?;
        Ok(self.moved)
    }

    /// Lets everything end, whatever comes of it.
    fn drain(&mut self) {
        let ready = std::mem::take(&mut self.ready).into_values();
        self.pump.free.extend(ready.filter_map(|(buffer, _)| buffer));
        while self.pump.queue.in_flight() > 0 {
            match self.pump.queue.wait(Duration::MAX) {
                Ok(Some(done)) => self.pump.free.extend(done.buffer),
                Ok(None) => {}
                Err(_) => break, // The adapter is gone, and with it the memory.
            }
        }
    }

    /// How much piece `number` should have; 0 behind the end.
    fn wanted(&self, number: u64) -> usize {
        let chunk = self.pump.chunk;
        match &*self.source {
            Source::Stream(_) => chunk,
            Source::Host(Sparse { bytes, .. }) | Source::Held { bytes, .. } => piece(*bytes, number, chunk),
        }
    }

    fn offset(&self, number: u64) -> u64 {
        number * self.pump.chunk as u64
    }

    /// Begins the next piece, if there is one.
    fn begin(&mut self, mut buffer: Buffer) -> Result<()> {
        let number = self.begun;
        let (at, wanted) = (self.offset(number), self.wanted(number));
        let holes = self.target.has_holes();
        let hole = match &mut *self.source {
            Source::Host(sparse) => holes && sparse.is_hole(at, wanted),
            _ => false,
        };
        let filled = match self.source {
            _ if wanted == 0 => {
                self.ended = true;
                self.pump.free.push(buffer);
                return Ok(());
            }
            Source::Held { held, offset, .. } => {
                let length = wanted.next_multiple_of(held.block()) as u64;
                let read = held.read(*offset + at, buffer).length(length).tag(tag(number, READ));
                self.pump.queue.prepare(read)?;
                self.pump.queue.ring()?;
                self.begun += 1;
                return Ok(());
            }
            Source::Host(_) if hole => {
                self.pump.free.push(buffer);
                self.ready.insert(number, (None, wanted));
                self.begun += 1;
                return Ok(());
            }
            Source::Host(sparse) => sparse.read(at, &mut buffer[..wanted]),
            Source::Stream(stream) => fill(stream.as_mut(), &mut buffer),
        };
        self.begun += 1;
        self.ended = !matches!(filled, Ok(bytes) if bytes == wanted);
        let (filled, failed) = filled.map_or_else(|error| (0, Some(error)), |bytes| (bytes, None));
        self.ready.insert(number, (Some(buffer), filled));
        match failed {
            Some(error) => Err(error).context("cannot read the source"),
            None => Ok(()),
        }
    }

    /// Hands pieces to the target, in their order.
    fn hand_on(&mut self) -> Result<()> {
        while let Some((buffer, bytes)) = self.ready.remove(&self.handed) {
            let number = self.handed;
            self.handed += 1;
            let bytes = if self.closed { 0 } else { bytes };
            self.closed |= bytes < self.wanted(number);
            self.ended |= self.closed;
            match buffer {
                Some(buffer) if bytes > 0 && !(self.target.has_holes() && is_zero(&buffer[..bytes])) => {
                    self.moved.bytes += bytes as u64;
                    self.written = self.moved.bytes;
                    self.write(number, buffer, bytes)?;
                }
                buffer => {
                    self.moved.bytes += bytes as u64;
                    self.pump.free.extend(buffer);
                }
            }
            self.bar.inc(bytes as u64);
        }
        Ok(())
    }

    /// Writes a piece.
    fn write(&mut self, number: u64, buffer: Buffer, bytes: usize) -> Result<()> {
        if let Some(buffer) = self.write_here(number, buffer, bytes)? {
            let request = self.request(number, buffer, bytes);
            self.pump.queue.prepare(request)?;
            self.pump.queue.ring()?;
        }
        Ok(())
    }

    /// Writes it where no request is needed, else sees that there is room for one. Gives back the buffer if it is still needed.
    fn write_here(&mut self, number: u64, buffer: Buffer, bytes: usize) -> Result<Option<Buffer>> {
        let at = self.offset(number);
        let (done, needed) = match self.target {
            Target::Stream(target) => (target.write_all(&buffer[..bytes]).map_err(Into::into), false),
            Target::Host(file) => {
                (write_without_holes(file, &buffer[..bytes], at).map_err(Into::into), false)
            }
            // Size and offset are whole blocks: what fits before padding fits after it.
            Target::Volume { name, offset, room, .. } if at + bytes as u64 > *room => {
                (Err(too_small(name, *offset, *room, None)), false)
            }
            Target::Volume { .. } => (Ok(()), true),
            Target::File { file, .. } => {
                let step = if bytes < self.pump.chunk { 0 } else { self.pump.depth * self.pump.chunk as u64 };
                let made = make_room(file, at + bytes as u64, step);
                let needed = made.is_ok();
                (made, needed)
            }
        };
        let left = if needed {
            Some(buffer)
        } else {
            self.pump.free.push(buffer);
            None
        };
        done.context("cannot write the target")?;
        Ok(left)
    }

    /// The request that writes a piece, for which there is room.
    fn request(&mut self, number: u64, mut buffer: Buffer, bytes: usize) -> Request {
        let at = self.offset(number);
        match self.target {
            Target::Volume { volume, offset, .. } => {
                let length = bytes.next_multiple_of(volume.block_size() as usize);
                buffer[bytes..length].fill(0);
                self.moved.padding += (length - bytes) as u64;
                Request::write(volume, *offset + at, buffer).length(length as u64).tag(tag(number, WRITE))
            }
            Target::File { file, .. } => {
                let block = file.block_size() as usize;
                match bytes - bytes % block {
                    0 => Request::write_bytes(file, at, buffer).length(bytes as u64).tag(tag(number, WRITE)),
                    whole if whole == bytes => {
                        Request::write(file, at, buffer).length(bytes as u64).tag(tag(number, WRITE))
                    }
                    // Only the last piece of a file has a rest, which is written when this has ended.
                    whole => Request::write(file, at, buffer).length(whole as u64).tag(tag(number, HEAD)),
                }
            }
            Target::Stream(_) | Target::Host(_) => unreachable!("they need no request"),
        }
    }

    fn done(&mut self, done: Completion) -> Result<()> {
        let number = done.tag >> KIND;
        let kind = done.tag & ((1 << KIND) - 1);
        let Some(mut buffer) = done.buffer else { bail!("a completion came without its buffer") };
        let moved = match done.result {
            Err(error) if kind == READ && error.status() == Some(Status::E_HOLE) => {
                self.read_with_holes(number, &mut buffer)
            }
            result => result.map(|bytes| bytes as usize).context(match kind {
                READ => "cannot read the source",
                _ => "cannot write the target",
            }),
        };
        let transferred = match moved {
            Ok(bytes) => bytes,
            Err(error) => {
                self.pump.free.push(buffer);
                return Err(error);
            }
        };
        match (kind, &*self.target) {
            (READ, _) => {
                let bytes = transferred.min(self.wanted(number));
                self.ready.insert(number, (Some(buffer), bytes));
            }
            (HEAD, Target::File { file, .. }) => {
                let all = usize::try_from(self.moved.bytes - self.offset(number)).unwrap_or(0);
                let whole = all - all % file.block_size() as usize;
                buffer.copy_within(whole..all, 0);
                let at = self.offset(number) + whole as u64;
                let rest = Request::write_bytes(file, at, buffer).length((all - whole) as u64);
                self.pump.queue.prepare(rest.tag(tag(number, WRITE)))?;
                self.pump.queue.ring()?;
            }
            _ => self.pump.free.push(buffer),
        }
        Ok(())
    }

    /// Reads a piece of a file that has no blocks for all of it.
    fn read_with_holes(&self, number: u64, buffer: &mut Buffer) -> Result<usize> {
        let Source::Held { held: Held::File(file), offset, .. } = &*self.source else {
            bail!("a volume was said to have a hole, which only a file can")
        };
        let piece = &mut buffer[..self.wanted(number)];
        file.read_at(piece, *offset + self.offset(number)).context("cannot read the source")
    }

    /// Gives the target its length, and makes a volume durable.
    fn finish(&mut self) -> Result<()> {
        match self.target {
            Target::Stream(target) => target.flush().context("cannot write the target"),
            Target::Host(file) => file.set_len(self.moved.bytes).context("cannot give the target its length"),
            Target::Volume { volume, .. } => {
                self.pump.queue.flush(volume).context("cannot make the volume durable")
            }
            Target::File { file, .. } if self.written < self.moved.bytes => {
                file.set_len(self.moved.bytes).context("cannot give the target its length")
            }
            Target::File { .. } => Ok(()),
        }
    }
}

/// Sees that a file has blocks until `end`, and some more if there is space.
fn make_room(file: &File, end: u64, step: u64) -> Result<()> {
    if end <= file.room() {
        return Ok(());
    }
    match file.make_room(end.saturating_add(step)) {
        Err(error) if step > 0 && error.status() == Some(Status::E_NO_RESOURCES) => file.make_room(end)?,
        other => other?,
    }
    Ok(())
}

/// Writes what is not zero. The file is as long as it will be afterwards, or is made so.
fn write_without_holes(file: &fs::File, bytes: &[u8], at: u64) -> io::Result<()> {
    let mut start = 0;
    while start < bytes.len() {
        let block = |from: usize| &bytes[from..bytes.len().min(from + HOLE)];
        if is_zero(block(start)) {
            start += HOLE;
            continue;
        }
        let mut end = start;
        while end < bytes.len() && !is_zero(block(end)) {
            end += HOLE;
        }
        let end = end.min(bytes.len());
        file.write_all_at(&bytes[start..end], at + start as u64)?;
        start = end;
    }
    Ok(())
}

/// Compares it with itself, one byte further on.
fn is_zero(bytes: &[u8]) -> bool {
    match bytes {
        [] => true,
        [first, rest @ ..] => *first == 0 && *rest == bytes[..rest.len()],
    }
}

/// Bytes of piece `number` of `total` bytes cut into pieces of `chunk`; 0 behind the end.
fn piece(total: u64, number: u64, chunk: usize) -> usize {
    let left = total.saturating_sub(number.saturating_mul(chunk as u64));
    usize::try_from(left).unwrap_or(chunk).min(chunk)
}

/// Reads until the buffer is full or the source has ended.
fn fill(source: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_everything_once() {
        let pieces =
            |total| (0..).map(|n| piece(total, n, 4096)).take_while(|bytes| *bytes > 0).collect::<Vec<_>>();
        assert!(pieces(0).is_empty());
        assert_eq!(pieces(4096), [4096]);
        assert_eq!(pieces(10_000), [4096, 4096, 1808]);
        assert_eq!(piece(u64::MAX, u64::MAX, 4096), 0);
    }

    #[test]
    fn a_slow_source_fills_whole_pieces() {
        struct Drip(u8);
        impl Read for Drip {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                if self.0 == 0 {
                    return Ok(0);
                }
                self.0 -= 1;
                if self.0 == 5 {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                buffer[0] = self.0;
                Ok(1)
            }
        }
        let mut buffer = [0; 4];
        let mut source = Drip(8);
        assert_eq!(fill(&mut source, &mut buffer).unwrap(), 4);
        assert_eq!(buffer, [7, 6, 4, 3]);
        assert_eq!(fill(&mut source, &mut buffer).unwrap(), 3);
        assert_eq!(fill(&mut source, &mut buffer).unwrap(), 0);
    }

    #[test]
    fn zeroes_are_left_out_and_nothing_else() {
        let mut bytes = vec![0; 5 * HOLE + 100];
        for at in [HOLE - 1, 3 * HOLE, 5 * HOLE + 99] {
            bytes[at] = 1;
        }
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![7; bytes.len() + 10], 0).unwrap();
        write_without_holes(&file, &bytes, 10).unwrap();
        let mut back = vec![0; bytes.len()];
        file.read_exact_at(&mut back, 10).unwrap();
        for (number, block) in back.chunks(HOLE).enumerate() {
            let left_out = block.iter().all(|byte| *byte == 7);
            assert_eq!(left_out, is_zero(&bytes[number * HOLE..][..block.len()]), "block {number}");
            assert!(left_out || *block == bytes[number * HOLE..][..block.len()], "block {number}");
        }
        assert!(is_zero(&[]) && is_zero(&[0]) && !is_zero(&[1]) && !is_zero(&[0, 1]) && !is_zero(&[1, 0]));
    }

    #[test]
    fn holes_of_a_file_are_known() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[1; HOLE], 256 << 10).unwrap();
        let mut sparse = Sparse::new(file, 1 << 20);
        let holes: Vec<bool> = (0..8).map(|n| sparse.is_hole(n * (128 << 10), 128 << 10)).collect();
        // A file system without holes would say that all of it is data.
        assert!(!holes[2], "there is data");
        assert!(holes.iter().all(|hole| !hole) || holes == [true, true, false, true, true, true, true, true]);
    }
}
