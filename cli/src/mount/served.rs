//! The requests of the kernel, carried out by the adapter.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use portcullis::wire::files::{AttributeChange, FileAttributes, FileKind, MAX_COMPONENT};
use portcullis::{Access, Error, File, Files, OpenOptions, Place, Status};

use super::answer::{attributes, errno, kind, set_time};
use super::nodes::Nodes;
use crate::output;

/// How long the kernel believes a name and attributes without asking again. Others may change them meanwhile.
const BELIEVED: Duration = Duration::from_secs(1);
/// Of numbers that are never used again one generation is enough.
const GENERATION: Generation = Generation(0);

/// An entry of a directory as it was listed.
struct Listed {
    number: u64,
    kind: FileKind,
    name: Vec<u8>,
}

enum Open {
    File { number: u64, file: Arc<File> },
    Directory { number: u64, entries: Arc<Vec<Listed>>, read: bool },
}

#[derive(Default)]
struct Handles {
    open: HashMap<u64, Open>,
    last: u64,
}

impl Handles {
    fn insert(&mut self, open: Open) -> FileHandle {
        self.last += 1;
        self.open.insert(self.last, open);
        FileHandle(self.last)
    }

    fn file(&self, handle: FileHandle) -> Result<Arc<File>, Errno> {
        match self.open.get(&handle.0) {
            Some(Open::File { file, .. }) => Ok(file.clone()),
            _ => Err(Errno::EBADF),
        }
    }

    /// Any that a number is open by, to be written if that is needed.
    fn any(&self, wanted: u64, write: bool) -> Option<Arc<File>> {
        self.open.values().find_map(|open| match open {
            Open::File { number, file }
                if *number == wanted && (!write || file.access().allows(Access::WRITE)) =>
            {
                Some(file.clone())
            }
            _ => None,
        })
    }
}

pub(super) struct Served {
    files: Files,
    volume: String,
    /// Nothing can be made or taken away there.
    in_place: bool,
    nodes: Mutex<Nodes>,
    handles: Mutex<Handles>,
    /// What went wrong for reasons that no tool can say.
    failures: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn mode(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).unwrap_or(0)
}

impl Served {
    pub(super) fn new(files: Files, volume: &str) -> Result<Self, Error> {
        let root = files.metadata(Place::new(volume, "/")?)?;
        let in_place = files.space(volume)?.in_place;
        Ok(Self {
            files,
            volume: volume.to_owned(),
            in_place,
            nodes: Mutex::new(Nodes::new(root.number)),
            handles: Mutex::new(Handles::default()),
            failures: AtomicU64::new(0),
        })
    }

    /// The error for the kernel; what that does not tell is said here, but not for ever.
    fn refused(&self, error: &Error) -> Errno {
        let errno = errno(error);
        if i32::from(errno) == libc::EIO && self.failures.fetch_add(1, Ordering::Relaxed) < 100 {
            eprintln!("portcullis: {}", output::plain(&error.to_string()));
        }
        errno
    }

    fn place(&self, number: INodeNo) -> Result<Place, Errno> {
        let path = lock(&self.nodes).path(number.0).ok_or(Errno::ESTALE)?;
        Place::new(&self.volume, path).map_err(|error| self.refused(&error))
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> Result<Place, Errno> {
        if name.len() > MAX_COMPONENT {
            return Err(Errno::ENAMETOOLONG);
        }
        self.place(parent)?.join(name.as_bytes()).map_err(|_| Errno::ENAMETOOLONG)
    }

    /// Where something is to be made or taken away.
    fn changeable(&self, parent: INodeNo, name: &OsStr) -> Result<Place, Errno> {
        if self.in_place { Err(Errno::EROFS) } else { self.child(parent, name) }
    }

    fn done<T>(&self, result: Result<T, Error>) -> Result<T, Errno> {
        result.map_err(|error| self.refused(&error))
    }

    /// What has a name, which the kernel knows by its number from here on.
    fn entry(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        let its = self.done(self.files.symlink_metadata(self.child(parent, name)?))?;
        Ok(self.known(parent, name, &its))
    }

    fn known(&self, parent: INodeNo, name: &OsStr, its: &FileAttributes) -> FileAttr {
        let mut nodes = lock(&self.nodes);
        let number = nodes.number(its.number);
        nodes.found(parent.0, name.as_bytes(), number);
        attributes(number, its)
    }

    /// Attributes that belong to this number, and not to another file that has its name now.
    fn same(&self, number: INodeNo, its: &FileAttributes) -> Result<FileAttr, Errno> {
        let found = lock(&self.nodes).number(its.number);
        if found == number.0 { Ok(attributes(found, its)) } else { Err(Errno::ESTALE) }
    }

    fn get(&self, number: INodeNo, handle: Option<FileHandle>) -> Result<FileAttr, Errno> {
        if let Some(file) = self.opened(number, handle, false) {
            return self.same(number, &self.done(file.metadata())?);
        }
        self.same(number, &self.done(self.files.symlink_metadata(self.place(number)?))?)
    }

    fn opened(&self, number: INodeNo, handle: Option<FileHandle>, write: bool) -> Option<Arc<File>> {
        let handles = lock(&self.handles);
        let named = handle.and_then(|handle| handles.file(handle).ok());
        named.or_else(|| handles.any(number.0, write))
    }

    fn set_length(&self, number: INodeNo, handle: Option<FileHandle>, length: u64) -> Result<(), Errno> {
        if self.in_place {
            return Err(Errno::EROFS);
        }
        if let Some(file) = self.opened(number, handle, true) {
            return self.done(file.set_len(length));
        }
        let file = self.done(OpenOptions::new().write(true).open(&self.files, self.place(number)?))?;
        self.same(number, &self.done(file.metadata())?)?;
        self.done(file.set_len(length).and_then(|()| file.close()))
    }

    fn change(
        &self,
        number: INodeNo,
        handle: Option<FileHandle>,
        change: AttributeChange,
    ) -> Result<(), Errno> {
        if change == AttributeChange::default() {
            return Ok(());
        }
        if self.in_place {
            return Err(Errno::EROFS);
        }
        match self.opened(number, handle, false) {
            Some(file) => self.done(file.set_attributes(change)).map(drop),
            None => self.done(self.files.set_attributes(self.place(number)?, change)).map(drop),
        }
    }

    fn open_file(&self, number: INodeNo, flags: OpenFlags) -> Result<FileHandle, Errno> {
        let file = self.done(how(flags).open(&self.files, self.place(number)?))?;
        self.same(number, &self.done(file.metadata())?)?;
        Ok(lock(&self.handles).insert(Open::File { number: number.0, file: Arc::new(file) }))
    }

    fn make_file(
        &self,
        (parent, name): (INodeNo, &OsStr),
        bits: u32,
        flags: OpenFlags,
    ) -> Result<(FileAttr, FileHandle), Errno> {
        let place = self.changeable(parent, name)?;
        let exclusive = flags.0 & libc::O_EXCL != 0;
        // Making a file needs the right to write it; who makes it has that.
        let options = how(flags).write(true).mode(mode(bits)).create(!exclusive).create_new(exclusive);
        let file = self.done(options.truncate(flags.0 & libc::O_TRUNC != 0).open(&self.files, &place))?;
        let its = self.known(parent, name, &self.done(file.metadata())?);
        let open = Open::File { number: its.ino.0, file: Arc::new(file) };
        Ok((its, lock(&self.handles).insert(open)))
    }

    fn list(&self, number: INodeNo) -> Result<Arc<Vec<Listed>>, Errno> {
        let parent = lock(&self.nodes).parent(number.0);
        let listed = |number, kind, name: &[u8]| Listed { number, kind, name: name.to_vec() };
        let mut all =
            vec![listed(number.0, FileKind::Directory, b"."), listed(parent, FileKind::Directory, b"..")];
        for entry in self.done(self.files.read_dir(self.place(number)?))? {
            let entry = self.done(entry)?;
            let name = entry.name.as_bytes();
            // The kernel fails the whole directory for one entry that is no name.
            if !name.is_empty() && !name.contains(&b'/') && !name.contains(&0) {
                all.push(listed(lock(&self.nodes).number(entry.number), entry.kind, name));
            }
        }
        Ok(Arc::new(all))
    }

    /// The entries of an opened directory; listed anew if it is read from its start again.
    fn entries(&self, handle: FileHandle, offset: u64) -> Result<Arc<Vec<Listed>>, Errno> {
        let again = match lock(&self.handles).open.get_mut(&handle.0) {
            Some(Open::Directory { number, read: true, .. }) if offset == 0 => *number,
            Some(Open::Directory { entries, read, .. }) => {
                *read = true;
                return Ok(entries.clone());
            }
            _ => return Err(Errno::EBADF),
        };
        let listed = self.list(INodeNo(again))?;
        if let Some(Open::Directory { entries, .. }) = lock(&self.handles).open.get_mut(&handle.0) {
            *entries = listed.clone();
        }
        Ok(listed)
    }

    fn rename_entry(
        &self,
        (parent, name): (INodeNo, &OsStr),
        (to_parent, to_name): (INodeNo, &OsStr),
        flags: RenameFlags,
    ) -> Result<(), Errno> {
        let (from, to) = (self.changeable(parent, name)?, self.changeable(to_parent, to_name)?);
        let renamed = match flags {
            flags if flags.is_empty() => self.files.rename(&from, &to),
            flags if flags == RenameFlags::RENAME_NOREPLACE => self.files.rename_new(&from, &to),
            _ => return Err(Errno::EINVAL),
        };
        renamed.map_err(|error| self.refused_or_full(&error))?;
        lock(&self.nodes).renamed((parent.0, name.as_bytes()), (to_parent.0, to_name.as_bytes()));
        Ok(())
    }

    /// The kernel has seen that both are directories and that neither is in the other: what is left is that one is not empty.
    fn refused_or_full(&self, error: &Error) -> Errno {
        match error.status() {
            Some(Status::E_PARAM) => Errno::ENOTEMPTY,
            _ => self.refused(error),
        }
    }

    fn removed(&self, parent: INodeNo, name: &OsStr, result: Result<(), Error>) -> Result<(), Errno> {
        result.map_err(|error| self.refused_or_full(&error))?;
        lock(&self.nodes).removed(parent.0, name.as_bytes());
        Ok(())
    }
}

/// How the kernel opens a file. It cuts one off by itself.
fn how(flags: OpenFlags) -> OpenOptions {
    let (read, write) = match flags.acc_mode() {
        OpenAccMode::O_RDONLY => (true, false),
        OpenAccMode::O_WRONLY => (false, true),
        OpenAccMode::O_RDWR => (true, true),
    };
    OpenOptions::new().read(read).write(write)
}

/// Answers with a value or an error.
macro_rules! answer {
    ($reply:ident, $result:expr, $($value:pat => $answer:expr),+) => {
        match $result {
            $(Ok($value) => $answer,)+
            Err(error) => $reply.error(error),
        }
    };
}

impl Filesystem for Served {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        answer!(reply, self.entry(parent, name), its => reply.entry(&BELIEVED, &its, GENERATION));
    }

    fn forget(&self, _: &Request, number: INodeNo, lookups: u64) {
        lock(&self.nodes).forget(number.0, lookups);
    }

    fn getattr(&self, _: &Request, number: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        answer!(reply, self.get(number, handle), its => reply.attr(&BELIEVED, &its));
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        bits: Option<u32>,
        owner: Option<u32>,
        group: Option<u32>,
        length: Option<u64>,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        handle: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = AttributeChange {
            mode: bits.map(mode),
            owner,
            group,
            accessed: accessed.map(set_time),
            modified: modified.map(set_time),
            access: None,
        };
        let cut = length.map_or(Ok(()), |length| self.set_length(number, handle, length));
        let done =
            cut.and_then(|()| self.change(number, handle, change)).and_then(|()| self.get(number, handle));
        answer!(reply, done, its => reply.attr(&BELIEVED, &its));
    }

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        let target = self.place(number).and_then(|place| self.done(self.files.read_link(place)));
        answer!(reply, target, target => reply.data(&target));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, bits: u32, _: u32, reply: ReplyEntry) {
        let made = self
            .changeable(parent, name)
            .and_then(|place| self.done(self.files.create_dir_with_mode(place, mode(bits))))
            .and_then(|()| self.entry(parent, name));
        answer!(reply, made, its => reply.entry(&BELIEVED, &its, GENERATION));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = self
            .changeable(parent, name)
            .and_then(|place| self.removed(parent, name, self.files.remove_file(place)));
        answer!(reply, done, () => reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = self
            .changeable(parent, name)
            .and_then(|place| self.removed(parent, name, self.files.remove_dir(place)));
        answer!(reply, done, () => reply.ok());
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &std::path::Path, reply: ReplyEntry) {
        reply.error(Errno::EPERM); // As of file systems that have no links.
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to_parent: INodeNo,
        to_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        answer!(reply, self.rename_entry((parent, name), (to_parent, to_name), flags), () => reply.ok());
    }

    fn open(&self, _: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        answer!(reply, self.open_file(number, flags), handle => reply.opened(handle, FopenFlags::empty()));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        bits: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let made = self.make_file((parent, name), bits, OpenFlags(flags));
        answer!(reply, made, (its, handle) => {
            reply.created(&BELIEVED, &its, GENERATION, handle, FopenFlags::empty());
        });
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let file = lock(&self.handles).file(handle);
        let read = file.and_then(|file| {
            let mut bytes = vec![0; size as usize];
            let length = self.done(file.read_at(&mut bytes, offset))?;
            bytes.truncate(length);
            Ok(bytes)
        });
        answer!(reply, read, bytes => reply.data(&bytes));
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let file = lock(&self.handles).file(handle);
        let written = file.and_then(|file| {
            // The kernel's end of the file is not the one of others, who may append to it too.
            let written = match flags.0 & libc::O_APPEND {
                0 => file.write_all_at(data, offset),
                _ => file.append(data).map(drop),
            };
            self.done(written)?;
            u32::try_from(data.len()).map_err(|_| Errno::EINVAL)
        });
        answer!(reply, written, bytes => reply.written(bytes));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok(); // Nothing is held back.
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let open = lock(&self.handles).open.remove(&handle.0);
        drop(open); // Closes it, with no lock held.
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let file = lock(&self.handles).file(handle);
        let synced =
            file.and_then(|file| self.done(if data_only { file.sync_data() } else { file.sync_all() }));
        answer!(reply, synced, () => reply.ok());
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let listed = self.list(number).map(|entries| {
            let open = Open::Directory { number: number.0, entries, read: false };
            lock(&self.handles).insert(open)
        });
        answer!(reply, listed, handle => reply.opened(handle, FopenFlags::empty()));
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let entries = match self.entries(handle, offset) {
            Ok(entries) => entries,
            Err(error) => return reply.error(error),
        };
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (next, entry) in (1..).zip(entries.iter()).skip(skip) {
            let name = OsStr::from_bytes(&entry.name);
            if reply.add(INodeNo(entry.number), next, kind(entry.kind), name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        lock(&self.handles).open.remove(&handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.done(self.files.sync(&self.volume)), () => reply.ok());
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let its = match self.done(self.files.space(&self.volume)) {
            Ok(its) => its,
            Err(error) => return reply.error(error),
        };
        let block = its.block_size.max(512);
        let blocks = |bytes: u64| bytes / u64::from(block);
        let files = its.files.saturating_add(its.free_files);
        let longest = u32::try_from(MAX_COMPONENT).unwrap_or(255);
        let (free, available) = (blocks(its.free), blocks(its.available));
        reply.statfs(blocks(its.bytes), free, available, files, its.free_files, block, longest, block);
    }
}
