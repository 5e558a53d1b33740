//! Copies files and directories from and to volumes by their names, one after the other.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown, symlink};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use portcullis::Status;
use portcullis::wire::files::{AttributeChange, FileKind, SetTime};
use portcullis::wire::name::escape_bytes;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use super::{Copier, End, Item, Look, Target};

/// What the owner has of a directory while it is filled.
const OWNER: u16 = 0o700;

/// An entry of a directory: its name there, and what is known of it.
type Named = (Vec<u8>, Look);

impl Copier<'_> {
    /// Copies files and directories to a name, or into a directory.
    pub(super) fn items(&mut self, sources: &[End], target: &Item) -> Result<()> {
        let there = self.look(target, true)?;
        let into = there.is_some_and(|look| look.is_directory());
        ensure!(
            into || sources.len() == 1,
            "several sources go into a directory: {target} is {}",
            if there.is_some() { "none" } else { "not there; make it first" }
        );
        for source in sources {
            let End::Item(source) = source else {
                bail!("{source} has no name that a file in {target} could have: copy it alone, to a file")
            };
            if let Err(error) = self.item(source, target, into) {
                self.failed(error)?;
            }
        }
        Ok(())
    }

    /// One of those that the command line names.
    fn item(&mut self, source: &Item, target: &Item, into: bool) -> Result<()> {
        // The kernel's cp copies what a link leads to, unless it copies all that is below.
        let follow = self.options.follow || !self.options.recursive;
        let look = self.look(source, follow)?;
        let look = look.with_context(|| format!("cannot copy {source}: there is no such file"))?;
        let target = match source.name() {
            Some(name) if into => target.join(&name)?,
            _ => target.clone(),
        };
        self.check_not_within(source, &target, &look)?;
        if look.is_regular() {
            self.expect(Some(look.length));
        }
        self.entry(source, &target, &look, true)
    }

    fn entry(&mut self, source: &Item, target: &Item, look: &Look, named: bool) -> Result<()> {
        match look.kind {
            FileKind::Directory => self.directory(source, target, look, named),
            FileKind::Symlink => self.link(source, target),
            FileKind::Regular => self.file(source, target, named),
            // Reading a pipe or a device to its end is meant only if it is named.
            FileKind::Other if named && !self.options.recursive && source.host().is_some() => {
                self.file(source, target, named)
            }
            FileKind::Other => bail!("{source} is neither file nor directory; it is left out"),
        }
    }

    fn file(&mut self, source: &Item, target: &Item, named: bool) -> Result<()> {
        let (mut from, known, look) = self.open_source(&End::Item(source.clone()))?;
        let mut to = self.open_target(target, look.as_ref(), known, named)?;
        let copied = self.move_all(&mut from, &mut to);
        copied.with_context(|| format!("cannot copy {source} to {target}"))?;
        if let Target::File { file, .. } = to {
            // From here on the file system knows of all that was written, and a time that is set stays.
            file.close().with_context(|| format!("cannot close {target}"))?;
        }
        match look {
            Some(look) if self.options.preserve => self.preserve(target, &look),
            _ => Ok(()),
        }
    }

    fn directory(&mut self, source: &Item, target: &Item, look: &Look, named: bool) -> Result<()> {
        ensure!(self.options.recursive, "{source} is a directory: copy it with -r");
        // A link that was there is not followed, unless it was named: it would lead out of what is copied.
        let there = self.look(target, named)?;
        match there {
            Some(there) => ensure!(
                there.is_directory(),
                "{target} is there and is no directory: the directory {source} cannot take its place"
            ),
            None => self.make_directory(target, look.mode)?,
        }
        let entries = self.list(source)?;
        let bytes =
            entries.iter().flatten().filter(|(_, look)| look.is_regular()).map(|(_, look)| look.length);
        self.expect(Some(bytes.sum()));
        for entry in entries {
            let copied = entry.and_then(|(name, look)| {
                self.entry(&source.join(&name)?, &target.join(&name)?, &look, false)
            });
            if let Err(error) = copied {
                self.failed(error)?;
            }
        }
        self.directories += 1;
        if self.options.preserve {
            return self.preserve(target, look);
        }
        let mode = look.mode & 0o777 & !self.umask;
        if there.is_none() && mode & OWNER != OWNER {
            self.change(target, &AttributeChange { mode: Some(mode), ..AttributeChange::default() })?;
        }
        Ok(())
    }

    fn make_directory(&mut self, target: &Item, mode: u16) -> Result<()> {
        let mode = mode & 0o777 & !self.umask | OWNER;
        let made = match target {
            Item::Host(path) => {
                fs::DirBuilder::new().mode(mode.into()).create(path).map_err(anyhow::Error::from)
            }
            Item::Inside(place) => {
                self.written.insert(place.volume().to_owned());
                self.files()?.create_dir_with_mode(place, mode).map_err(anyhow::Error::from)
            }
        };
        made.with_context(|| format!("cannot make the directory {target}"))
    }

    fn link(&mut self, source: &Item, target: &Item) -> Result<()> {
        let (Item::Inside(place), Item::Host(path)) = (source, target) else {
            bail!("{source} is a symbolic link, which volumes cannot hold: -L copies what it leads to");
        };
        let to = self.files()?.read_link(place).with_context(|| format!("cannot read the link {source}"))?;
        symlink(OsStr::from_bytes(&to), path)
            .with_context(|| format!("cannot make {target} a link to {}", escape_bytes(&to)))
    }

    /// What is known of it; `None` if it is not there.
    pub(super) fn look(&mut self, item: &Item, follow: bool) -> Result<Option<Look>> {
        let looked = match item {
            Item::Host(path) => {
                let meta = if follow { fs::metadata(path) } else { fs::symlink_metadata(path) };
                match meta {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    meta => meta.map(|meta| Some(Look::of_host(&meta))).map_err(anyhow::Error::from),
                }
            }
            Item::Inside(place) => {
                let files = self.files()?;
                let meta = if follow { files.metadata(place) } else { files.symlink_metadata(place) };
                match meta {
                    // So is a volume that is not there.
                    Err(error)
                        if error.status() == Some(Status::E_NO_RESOURCE) && place.parent().is_some() =>
                    {
                        Ok(None)
                    }
                    meta => meta.map(|its| Some(Look::of_inside(&its))).map_err(anyhow::Error::from),
                }
            }
        };
        looked.with_context(|| format!("cannot look at {item}"))
    }

    /// What stands in a directory; an entry that cannot be looked at does not hide the others.
    fn list(&mut self, directory: &Item) -> Result<Vec<Result<Named>>> {
        let listing = || format!("cannot list {directory}");
        let follow = self.options.follow;
        let mut all = Vec::new();
        match directory {
            Item::Host(path) => {
                for entry in fs::read_dir(path).with_context(listing)? {
                    let name = entry.with_context(listing)?.file_name().into_vec();
                    let look = self.look_within(directory, &name);
                    all.push(look.map(|look| (name, look)));
                }
            }
            Item::Inside(place) => {
                for entry in self.files()?.read_dir_with_attributes(place).with_context(listing)? {
                    let entry = entry.with_context(listing)?;
                    let name = entry.name.into_bytes();
                    let known = entry.attributes.filter(|its| !follow || its.kind != FileKind::Symlink);
                    let look = match known {
                        Some(its) => Ok(Look::of_inside(&its)),
                        None => self.look_within(directory, &name),
                    };
                    all.push(look.map(|look| (name, look)));
                }
            }
        }
        Ok(all)
    }

    fn look_within(&mut self, directory: &Item, name: &[u8]) -> Result<Look> {
        let item = directory.join(name)?;
        let look = self.look(&item, self.options.follow)?;
        look.with_context(|| format!("cannot copy {item}: it is not there, or leads nowhere"))
    }

    /// A directory must not become a part of itself, nor a file be emptied before it is read.
    fn check_not_within(&mut self, source: &Item, target: &Item, look: &Look) -> Result<()> {
        let (Item::Inside(from), Item::Inside(to)) = (source, target) else { return Ok(()) };
        if from.volume() != to.volume() {
            return Ok(());
        }
        if self.look(target, true)?.is_some_and(|there| there.number == look.number) {
            bail!("{source} and {target} are the same file");
        }
        let root = from.path() == b"/";
        let below = to.path().strip_prefix(from.path()).is_some_and(|rest| root || rest.starts_with(b"/"));
        ensure!(!(look.is_directory() && below), "cannot copy the directory {source} into itself, {target}");
        Ok(())
    }

    /// Gives the target the mode, the times and, where this user may, the owner of the source.
    fn preserve(&mut self, target: &Item, look: &Look) -> Result<()> {
        let owned = AttributeChange {
            mode: Some(look.mode),
            owner: Some(look.owner),
            group: Some(look.group),
            accessed: Some(SetTime::At(look.accessed)),
            modified: Some(SetTime::At(look.modified)),
            access: None,
        };
        match self.change(target, &owned) {
            Err(error) if !is_denied(&error) => Err(error),
            Ok(()) => Ok(()),
            // Of another owner the rights that come with set-user-id are not meant.
            Err(_) => {
                let mode = Some(look.mode & 0o1777);
                self.change(target, &AttributeChange { mode, owner: None, group: None, ..owned })
            }
        }
    }

    fn change(&mut self, target: &Item, change: &AttributeChange) -> Result<()> {
        let changed = match target {
            Item::Host(path) => change_host(path, change).map_err(anyhow::Error::from),
            Item::Inside(place) if self.only_in_place(place.volume())? => Ok(()),
            Item::Inside(place) => {
                let changed = self.files()?.set_attributes(place, change.clone());
                changed.map(drop).map_err(anyhow::Error::from)
            }
        };
        changed.with_context(|| format!("cannot set mode, owner and times of {target}"))
    }
}

fn is_denied(error: &anyhow::Error) -> bool {
    let io = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    let ours = |error: &portcullis::Error| error.status() == Some(Status::E_AUTH);
    error.chain().any(|cause| cause.downcast_ref().is_some_and(io) || cause.downcast_ref().is_some_and(ours))
}

fn change_host(path: &Path, change: &AttributeChange) -> io::Result<()> {
    if change.owner.is_some() || change.group.is_some() {
        chown(path, change.owner, change.group)?;
    }
    if let Some(mode) = change.mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode.into()))?;
    }
    let time = |set: Option<SetTime>| match set {
        Some(SetTime::At(time)) => Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
    };
    let times = Timestamps { last_access: time(change.accessed), last_modification: time(change.modified) };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::empty())?)
}
