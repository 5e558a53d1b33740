//! `portcullis cp`: bytes into volumes and files in them, out of them, and from one to another.

mod end;
mod look;
mod pump;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use portcullis::{Access, Files, OpenOptions, Place, Session, Volume};
use rustix::fs::Mode;
use serde_json::json;

use crate::arguments::Where;
use crate::connect::connect;
use crate::files::CopyOptions;
use crate::output;
use crate::units::show_size;
pub(crate) use end::{End, Item};
use look::Look;
use pump::{Held, Moved, Pump, Source, Sparse, Target};

pub(crate) fn run(options: &CopyOptions, place: &Where) -> Result<ExitCode> {
    let Some((target, sources)) = options.ends.split_last() else { bail!("nothing to copy") };
    ensure!(
        !(place.json && *target == End::Standard),
        "--json and the bytes themselves cannot both go to standard output: name a file to copy to"
    );
    let in_volume = |end: &End| matches!(end, End::Volume { .. } | End::Item(Item::Inside(_)));
    for source in sources {
        ensure!(
            in_volume(source) || in_volume(target),
            "neither {source} nor {target} is in a volume: write VOLUME:/path for a file in one and VOLUME: for a whole one, \
             or use cp(1)"
        );
    }
    let session = connect(place)?;
    let mut copier = Copier::new(&session, options, place.json)?;
    match (sources, target) {
        ([End::Item(_)] | [_, _, ..], End::Item(target)) => copier.items(sources, target)?,
        ([source], _) => copier.one(source, target)?,
        _ => bail!("several sources go into a directory: {target} is none"),
    }
    copier.make_durable()?;
    copier.bar.finish_and_clear();
    copier.report(place, target)?;
    Ok(if copier.failures > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What writes files to standard output.
pub(crate) fn cat(places: &[Place], place: &Where) -> Result<ExitCode> {
    let session = connect(place)?;
    let ends = places.iter().map(|place| End::Item(Item::Inside(place.clone())));
    let options = CopyOptions::quiet(ends.collect());
    let mut copier = Copier::new(&session, &options, false)?;
    for end in &options.ends {
        match copier.one(end, &End::Standard) {
            Err(error) if nobody_reads(&error) => break,
            Err(error) => copier.failed(error)?,
            Ok(()) => {}
        }
    }
    Ok(if copier.failures > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn nobody_reads(error: &anyhow::Error) -> bool {
    let broken = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    // An error of the library may have this kind, too, and means something else.
    error.chain().any(|cause| cause.downcast_ref().is_some_and(broken))
        && !error.chain().any(|cause| cause.is::<portcullis::Error>())
}

/// Whether there is no sense in going on with the next one.
pub(crate) fn is_over(error: &anyhow::Error) -> bool {
    use portcullis::{Error, Status};
    error.chain().filter_map(|cause| cause.downcast_ref()).any(|error| {
        matches!(error, Error::Connect { .. } | Error::Transport(_) | Error::QueueDown | Error::Protocol(_))
            || error.status() == Some(Status::E_PATH)
    })
}

struct Copier<'a> {
    session: &'a Session,
    options: &'a CopyOptions,
    files: Option<Files>,
    pump: Pump,
    bar: ProgressBar,
    /// Permission bits that new files do not get.
    umask: u16,
    start: Instant,
    moved: Moved,
    regular: u64,
    directories: u64,
    /// What could not be copied.
    failures: u64,
    /// Volumes with files that were written.
    written: BTreeSet<String>,
    /// Whether files of a volume can be overwritten only.
    in_place: BTreeMap<String, bool>,
}

impl<'a> Copier<'a> {
    fn new(session: &'a Session, options: &'a CopyOptions, json: bool) -> Result<Self> {
        let umask = rustix::process::umask(Mode::empty());
        rustix::process::umask(umask);
        Ok(Self {
            session,
            options,
            files: None,
            pump: Pump::new(session, options.chunk, options.depth)?,
            bar: progress_bar(options.quiet || json),
            umask: u16::try_from(umask.bits() & 0o777).unwrap_or(0o777),
            start: Instant::now(),
            moved: Moved::default(),
            regular: 0,
            directories: 0,
            failures: 0,
            written: BTreeSet::new(),
            in_place: BTreeMap::new(),
        })
    }

    fn files(&mut self) -> Result<Files> {
        if self.files.is_none() {
            self.files = Some(self.session.files()?);
        }
        self.files.clone().context("the way to files was not made")
    }

    /// Says what could not be copied, and that it goes on; an error if there is no sense in that.
    fn failed(&mut self, error: anyhow::Error) -> Result<()> {
        if is_over(&error) {
            return Err(error);
        }
        self.failures += 1;
        self.bar.suspend(|| output::complain(&error));
        Ok(())
    }

    /// Copies from one end to another, of which one at least is no item.
    fn one(&mut self, source: &End, target: &End) -> Result<()> {
        let (mut from, known, look) = self.open_source(source)?;
        self.expect(known);
        let mut to = match target {
            End::Standard => Target::Stream(Box::new(io::stdout())),
            End::Volume { name, offset } => self.open_volume_target(name, *offset, known)?,
            End::Item(item) => {
                let item = self.within_directory(source, item)?;
                self.open_target(&item, look.as_ref(), known, true)?
            }
        };
        self.move_all(&mut from, &mut to).with_context(|| format!("cannot copy {source} to {target}"))
    }

    /// A directory as the target means a file in it, of the source's name.
    fn within_directory(&mut self, source: &End, target: &Item) -> Result<Item> {
        let is_directory = self.look(target, true)?.is_some_and(|look| look.is_directory());
        match source {
            _ if !is_directory => Ok(target.clone()),
            End::Item(source) => match source.name() {
                Some(name) => target.join(&name),
                None => Ok(target.clone()),
            },
            _ => bail!("{target} is a directory: name a file in it"),
        }
    }

    fn move_all(&mut self, from: &mut Source, to: &mut Target) -> Result<()> {
        let moved = self.pump.copy(from, to, &self.bar)?;
        self.moved.bytes += moved.bytes;
        self.moved.padding += moved.padding;
        self.regular += 1;
        Ok(())
    }

    /// So many bytes more are to be copied.
    fn expect(&self, bytes: Option<u64>) {
        match bytes {
            Some(bytes) => self.bar.inc_length(bytes),
            None => self.bar.unset_length(),
        }
    }

    /// The source, how many bytes will come if that can be known, and its attributes if it has some.
    fn open_source(&mut self, source: &End) -> Result<(Source, Option<u64>, Option<Look>)> {
        let most = self.options.bytes.unwrap_or(u64::MAX);
        match source {
            End::Standard => Ok((Source::Stream(Box::new(io::stdin().take(most))), self.options.bytes, None)),
            End::Volume { name, offset } => {
                let (volume, room) = open_volume(self.session, name, *offset, Access::READ)?;
                let bytes = self.options.bytes.unwrap_or(room);
                ensure!(
                    bytes <= room,
                    "volume {} has {room} bytes from offset {offset} on, not {bytes}",
                    output::name(name)
                );
                let held = Held::Volume(volume);
                Ok((Source::Held { held, offset: *offset, bytes }, Some(bytes), None))
            }
            End::Item(Item::Host(path)) => {
                let named = || format!("cannot open {source}");
                let file = fs::File::open(path).with_context(named)?;
                let look = Look::of_host(&file.metadata().with_context(named)?);
                ensure!(!look.is_directory(), "{source} is a directory: copy it with -r");
                if look.is_regular() {
                    let bytes = look.length.min(most);
                    return Ok((Source::Host(Sparse::new(file, bytes)), Some(bytes), Some(look)));
                }
                Ok((Source::Stream(Box::new(file.take(most))), self.options.bytes, Some(look)))
            }
            End::Item(Item::Inside(place)) => {
                let files = self.files()?;
                let file = files.open(place).with_context(|| format!("cannot open {source}"))?;
                let look = Look::of_inside(&file.metadata()?);
                ensure!(!look.is_directory(), "{source} is a directory: copy it with -r");
                let bytes = look.length.min(most);
                Ok((Source::Held { held: Held::File(file), offset: 0, bytes }, Some(bytes), Some(look)))
            }
        }
    }

    fn open_volume_target(&self, name: &str, offset: u64, known: Option<u64>) -> Result<Target> {
        let (volume, room) = open_volume(self.session, name, offset, Access::WRITE)?;
        if let Some(bytes) = known.filter(|bytes| *bytes > room) {
            return Err(too_small(name, offset, room, Some(bytes)));
        }
        Ok(Target::Volume { volume, name: name.to_owned(), offset, room })
    }

    /// Makes the file, or empties it. `follow`: a symbolic link there leads to the file that is meant.
    fn open_target(
        &mut self,
        target: &Item,
        look: Option<&Look>,
        known: Option<u64>,
        follow: bool,
    ) -> Result<Target> {
        let mode = look.map_or(0o666, |look| look.mode & 0o777);
        match target {
            Item::Host(path) => open_host_target(path, mode, follow),
            Item::Inside(place) => self.open_inside_target(place, mode, known),
        }
        .with_context(|| format!("cannot write {target}"))
    }

    fn open_inside_target(&mut self, place: &Place, mode: u16, known: Option<u64>) -> Result<Target> {
        let files = self.files()?;
        self.written.insert(place.volume().to_owned());
        if self.only_in_place(place.volume())? {
            let only = "files of this volume can only be overwritten in place";
            let file = OpenOptions::new().write(true).open(&files, place).context(only)?;
            let (has, known) = (file.len()?, known.context("of this source nobody knows how long it is")?);
            ensure!(has == known, "{only}: it has {has} bytes, and the source {known}");
            // Known before anything is written, so that what is refused is as it was.
            if let Some(hole) = file.extensions()?.into_iter().find(|its| its.access == Access::NONE.bits()) {
                bail!(
                    "{only}: from byte {} on it has no blocks that were written, and would need some",
                    hole.offset
                );
            }
            return Ok(Target::File { file, fresh: false });
        }
        let mode = mode & !self.umask;
        let options = OpenOptions::new().write(true).create(true).truncate(true).mode(mode);
        let file = options.allocate(known.unwrap_or(0)).open(&files, place)?;
        Ok(Target::File { file, fresh: true })
    }

    fn only_in_place(&mut self, volume: &str) -> Result<bool> {
        if let Some(known) = self.in_place.get(volume) {
            return Ok(*known);
        }
        let in_place = self.files()?.space(volume)?.in_place;
        self.in_place.insert(volume.to_owned(), in_place);
        Ok(in_place)
    }

    /// What was written to files in volumes is durable when this returns.
    fn make_durable(&mut self) -> Result<()> {
        for volume in std::mem::take(&mut self.written) {
            self.files()?
                .sync(&volume)
                .with_context(|| format!("cannot make volume {} durable", output::name(&volume)))?;
        }
        Ok(())
    }

    fn report(&self, place: &Where, target: &End) -> Result<()> {
        let Moved { bytes, padding } = self.moved;
        let took = self.start.elapsed();
        if place.json {
            return output::print_json(&json!({
                "bytes": bytes,
                "padding": padding,
                "files": self.regular,
                "directories": self.directories,
                "failures": self.failures,
                "seconds": took.as_secs_f64(),
            }));
        }
        if self.options.quiet || self.regular + self.directories == 0 {
            return Ok(());
        }
        let files = match self.regular {
            1 => String::new(),
            files => format!("{files} files, "),
        };
        let exactly = if bytes < 1024 { String::new() } else { format!(" ({bytes} bytes)") };
        eprintln!("copied {files}{}{exactly} in {:.2} s", show_size(bytes), took.as_secs_f64());
        if padding > 0 && matches!(target, End::Volume { .. }) {
            eprintln!(
                "A volume keeps whole blocks: the last one was filled up with {padding} zero bytes.\n\
                 To read back exactly what was written: portcullis cp --bytes {bytes} {target} FILE"
            );
        }
        Ok(())
    }
}

fn open_host_target(path: &Path, mode: u16, follow: bool) -> Result<Target> {
    let flags = if follow { 0 } else { libc::O_NOFOLLOW };
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode.into())
        .custom_flags(flags)
        .open(path)?;
    let regular = file.metadata()?.is_file();
    Ok(if regular { Target::Host(file) } else { Target::Stream(Box::new(file)) })
}

fn progress_bar(quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    if bar.is_hidden() {
        return bar;
    }
    // Drawn on standard error, and only if that is a terminal.
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    let bar = style.map_or(bar.clone(), |style| bar.with_style(style));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
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
