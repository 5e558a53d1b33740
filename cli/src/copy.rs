//! `portcullis cp`: bytes into volumes, out of them, and from one to another.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use portcullis::{Access, Buffer, Completion, MemoryAccess, Queue, Request, Session, Volume};
use serde_json::json;

use crate::arguments::{CopyOptions, Where};
use crate::connect::connect;
use crate::output;
use crate::units::{parse_size, show_size};

/// One end of a copy, as the command line names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    File(PathBuf),
    Standard,
    Volume { name: String, offset: u64 },
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "-" {
            return Ok(Self::Standard);
        }
        // No volume has a slash in its name.
        let Some((name, inside)) = text.split_once(':').filter(|(name, _)| !name.contains('/')) else {
            return Ok(Self::File(text.into()));
        };
        if name.is_empty() {
            return Err(format!("{text:?} names no volume before the colon; a file is written ./{text}"));
        }
        let offset = match inside.split_at_checked(1) {
            None => 0,
            Some(("@", offset)) => parse_size(offset)?,
            Some(_) => {
                return Err(format!(
                    "{inside:?} does not name a place in volume {name:?}: give {name}: for all of it, or {name}:@OFFSET; \
                     a file is written ./{text}"
                ));
            }
        };
        Ok(Self::Volume { name: name.to_owned(), offset })
    }
}

pub(crate) fn run(options: &CopyOptions, place: &Where) -> Result<()> {
    if !matches!((&options.source, &options.target), (Place::Volume { .. }, _) | (_, Place::Volume { .. })) {
        bail!("neither side is a volume: write VOLUME: with a colon for one, or use cp(1) for files");
    }
    ensure!(
        !(place.json && options.target == Place::Standard),
        "--json and the bytes themselves cannot both go to standard output: name a file to copy to"
    );
    let session = connect(place)?;
    let (source, known) = open_source(&session, options)?;
    let target = open_target(&session, options, known)?;
    let bar = progress_bar(known, options.quiet || place.json);
    let start = Instant::now();
    let mut copy = Copy::new(&session, source, target, options)?;
    copy.run(&bar)?;
    bar.finish_and_clear();
    report(&copy, start.elapsed(), options, place)
}

fn report(copy: &Copy, took: Duration, options: &CopyOptions, place: &Where) -> Result<()> {
    let (bytes, padding) = (copy.copied, copy.padding);
    if place.json {
        let seconds = took.as_secs_f64();
        return output::print_json(&json!({ "bytes": bytes, "padding": padding, "seconds": seconds }));
    }
    if options.quiet {
        return Ok(());
    }
    eprintln!("copied {} ({bytes} bytes) in {:.2} s", show_size(bytes), took.as_secs_f64());
    if padding > 0
        && let Place::Volume { name, offset } = &options.target
    {
        let name = output::name(name);
        let from = if *offset == 0 { String::new() } else { format!("@{offset}") };
        eprintln!(
            "A volume keeps whole blocks: the last one was filled up with {padding} zero bytes.\n\
             To read back exactly what was written: portcullis cp --bytes {bytes} {name}:{from} FILE"
        );
    }
    Ok(())
}

fn progress_bar(known: Option<u64>, quiet: bool) -> ProgressBar {
    let (bar, template) = match known {
        _ if quiet => return ProgressBar::hidden(),
        Some(bytes) => (ProgressBar::new(bytes), "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}"),
        None => (ProgressBar::new_spinner(), "{spinner} {bytes} {bytes_per_sec}"),
    };
    // Drawn on standard error, and only if that is a terminal.
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

enum Source {
    Stream(Box<dyn Read>),
    Volume { volume: Volume, offset: u64, bytes: u64 },
}

enum Target {
    Stream(Box<dyn Write>),
    Volume { volume: Volume, name: String, offset: u64, room: u64 },
}

/// Opens a volume at a place in it; gives the bytes that there are from there on.
fn open_volume(session: &Session, name: &str, offset: u64, access: Access) -> Result<(Volume, u64)> {
    let volume =
        session.open(name, access).with_context(|| format!("cannot open volume {}", output::name(name)))?;
    let block = u64::from(volume.block_size());
    ensure!(
        offset.is_multiple_of(block),
        "an offset of {offset} is not a multiple of the block size of volume {}: {} or {} would be",
        output::name(name),
        offset - offset % block,
        (offset - offset % block).saturating_add(block),
    );
    let room = volume.size().checked_sub(offset).with_context(|| {
        format!(
            "an offset of {offset} is beyond the {} bytes of volume {}",
            volume.size(),
            output::name(name)
        )
    })?;
    Ok((volume, room))
}

/// The source, and how many bytes will come if that can be known.
fn open_source(session: &Session, options: &CopyOptions) -> Result<(Source, Option<u64>)> {
    let most = options.bytes.unwrap_or(u64::MAX);
    match &options.source {
        Place::Standard => Ok((Source::Stream(Box::new(io::stdin().take(most))), options.bytes)),
        Place::File(path) => {
            let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
            let meta = file.metadata().with_context(|| format!("cannot look at {}", path.display()))?;
            ensure!(!meta.is_dir(), "{} is a directory: pack it, for example with tar", path.display());
            let known = if meta.is_file() { Some(meta.len().min(most)) } else { options.bytes };
            Ok((Source::Stream(Box::new(file.take(most))), known))
        }
        Place::Volume { name, offset } => {
            let (volume, room) = open_volume(session, name, *offset, Access::READ)?;
            let bytes = options.bytes.unwrap_or(room);
            ensure!(
                bytes <= room,
                "volume {} has {room} bytes from offset {offset} on, not {bytes}",
                output::name(name)
            );
            Ok((Source::Volume { volume, offset: *offset, bytes }, Some(bytes)))
        }
    }
}

fn open_target(session: &Session, options: &CopyOptions, known: Option<u64>) -> Result<Target> {
    match &options.target {
        Place::Standard => Ok(Target::Stream(Box::new(io::stdout()))),
        Place::File(path) => {
            let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
            Ok(Target::Stream(Box::new(file)))
        }
        Place::Volume { name, offset } => {
            let (volume, room) = open_volume(session, name, *offset, Access::WRITE)?;
            if let Some(bytes) = known.filter(|bytes| *bytes > room) {
                return Err(too_small(name, *offset, room, Some(bytes)));
            }
            Ok(Target::Volume { volume, name: name.clone(), offset: *offset, room })
        }
    }
}

fn too_small(name: &str, offset: u64, room: u64, wanted: Option<u64>) -> anyhow::Error {
    let name = output::name(name);
    match wanted {
        Some(bytes) => anyhow::anyhow!(
            "{bytes} bytes do not fit into volume {name}, which has {room} from offset {offset} on: make it larger with \
             `portcullis volume resize {name} {}`",
            offset.saturating_add(bytes)
        ),
        None => anyhow::anyhow!(
            "more bytes came than the {room} that volume {name} has from offset {offset} on, which are written now: make \
             it larger with `portcullis volume resize {name} SIZE` and copy again"
        ),
    }
}

/// A copy with several requests in flight. A buffer is free, in flight, or ready: filled and waiting for its turn.
struct Copy {
    queue: Queue,
    source: Source,
    target: Target,
    free: Vec<Buffer>,
    /// Filled pieces by their number, with their bytes.
    ready: BTreeMap<u64, (Buffer, usize)>,
    chunk: usize,
    /// Pieces begun.
    begun: u64,
    /// Pieces handed to the target.
    handed: u64,
    copied: u64,
    padding: u64,
}

/// The lowest bit of a tag says which way; the rest is the number of the piece.
const WRITES: u64 = 1;

impl Copy {
    fn new(session: &Session, source: Source, target: Target, options: &CopyOptions) -> Result<Self> {
        let chunk = usize::try_from(options.chunk.max(1))
            .ok()
            .and_then(|chunk| chunk.checked_next_multiple_of(4096))
            .with_context(|| format!("a chunk of {} bytes is too large", options.chunk))?;
        let depth = options.depth.next_power_of_two().max(2);
        let total = chunk.saturating_mul(options.depth as usize);
        let memory = session
            .register(total, MemoryAccess::Both)
            .with_context(|| format!("cannot register {total} bytes: try a smaller --depth or --chunk"))?;
        Ok(Self {
            queue: session.queue(depth)?,
            source,
            target,
            free: memory.buffers(chunk, 4096)?,
            ready: BTreeMap::new(),
            chunk,
            begun: 0,
            handed: 0,
            copied: 0,
            padding: 0,
        })
    }

    fn run(&mut self, bar: &ProgressBar) -> Result<()> {
        let mut more = true;
        loop {
            let ended = match self.free.pop().filter(|_| more) {
                Some(buffer) => {
                    more = self.begin(buffer)?;
                    self.hand_on(bar)?;
                    self.queue.poll()?
                }
                None if self.queue.in_flight() == 0 => break,
                None => self.queue.wait(Duration::MAX)?,
            };
            if let Some(completion) = ended {
                self.ended(completion, bar)?;
                self.hand_on(bar)?;
            }
        }
        match &mut self.target {
            Target::Volume { volume, .. } => {
                self.queue.flush(volume).context("cannot make the volume durable")?;
            }
            Target::Stream(target) => target.flush().context("cannot write the target")?,
        }
        Ok(())
    }

    /// Begins the next piece; false if the source has ended.
    fn begin(&mut self, mut buffer: Buffer) -> Result<bool> {
        let number = self.begun;
        let bytes = match &mut self.source {
            Source::Stream(source) => fill(source.as_mut(), &mut buffer).context("cannot read the source")?,
            Source::Volume { bytes, .. } => piece(*bytes, number, self.chunk),
        };
        if bytes == 0 {
            return Ok(false);
        }
        self.begun += 1;
        match &self.source {
            Source::Stream(_) => drop(self.ready.insert(number, (buffer, bytes))),
            Source::Volume { volume, offset, .. } => {
                let length = (bytes as u64).next_multiple_of(u64::from(volume.block_size()));
                let at = offset + number * self.chunk as u64;
                self.queue.prepare(Request::read(volume, at, buffer).length(length).tag(number << 1))?;
                self.queue.ring()?;
            }
        }
        Ok(true)
    }

    /// Hands pieces to the target, in their order.
    fn hand_on(&mut self, bar: &ProgressBar) -> Result<()> {
        while let Some((mut buffer, bytes)) = self.ready.remove(&self.handed) {
            let number = self.handed;
            self.handed += 1;
            match &mut self.target {
                Target::Stream(target) => {
                    target.write_all(&buffer[..bytes]).context("cannot write the target")?;
                    self.copied += bytes as u64;
                    bar.set_position(self.copied);
                    self.free.push(buffer);
                }
                Target::Volume { volume, name, offset, room } => {
                    let at = number * self.chunk as u64;
                    // Size and offset are whole blocks: what fits before padding fits after it.
                    if at + bytes as u64 > *room {
                        return Err(too_small(name, *offset, *room, None));
                    }
                    let length = bytes.next_multiple_of(volume.block_size() as usize);
                    buffer[bytes..length].fill(0);
                    self.padding += (length - bytes) as u64;
                    self.copied += bytes as u64;
                    let request = Request::write(volume, *offset + at, buffer);
                    self.queue.prepare(request.length(length as u64).tag(number << 1 | WRITES))?;
                    self.queue.ring()?;
                }
            }
        }
        Ok(())
    }

    fn ended(&mut self, done: Completion, bar: &ProgressBar) -> Result<()> {
        let number = done.tag >> 1;
        let wrote = done.tag & WRITES != 0;
        done.result.with_context(
            || {
                if wrote { "cannot write the volume" } else { "cannot read the volume" }
            },
        )?;
        let buffer = done.buffer.context("a completion came without its buffer")?;
        match &self.source {
            Source::Volume { bytes, .. } if !wrote => {
                self.ready.insert(number, (buffer, piece(*bytes, number, self.chunk)));
            }
            _ => {
                bar.inc(self.chunk as u64);
                self.free.push(buffer);
            }
        }
        Ok(())
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
    fn places_are_files_streams_and_volumes() {
        let volume = |name: &str, offset| Ok(Place::Volume { name: name.into(), offset });
        assert_eq!("-".parse(), Ok(Place::Standard));
        assert_eq!("a.bin".parse(), Ok(Place::File("a.bin".into())));
        assert_eq!("./a:b".parse(), Ok(Place::File("./a:b".into())));
        assert_eq!("/tmp/a:b".parse(), Ok(Place::File("/tmp/a:b".into())));
        assert_eq!("vol:".parse(), volume("vol", 0));
        assert_eq!("vol:@16M".parse(), volume("vol", 16 << 20));
        for text in [":", ":x", "vol:/path", "vol:x", "vol:@", "vol:@x"] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }

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
}
