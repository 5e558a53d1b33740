//! The way to files in volumes: what is done by their names.

use std::collections::VecDeque;
use std::fmt;

use wire::Status;
use wire::control::{Reply, Request};
use wire::files::{
    AttributeChange, CheckReport, Cursor, DirectoryEntry, FileAttributes, FileSystemInfo, FileTarget,
};

use crate::error::Error;
use crate::file::{File, OpenOptions};
use crate::memory::unexpected;
use crate::place::{Place, ToPlace};
use crate::session::{Desk, Session};

/// Requests in flight of the queue that [`Session::files`] makes.
const ENTRIES: u32 = 32;

/// Files in volumes, by their names. All of it goes by one processing queue, management requests and data alike, so that
/// nothing here makes a system call while the adapter is awake, but for what registers memory, once.
///
/// Cheap to clone. Threads may share it, and wait for one another then; threads that are to do I/O at the same time have one
/// each.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::io::{Read, Write};
/// # let adapter = adapter::Embedded::open("emu:32M")?;
/// # let session = adapter.session()?;
/// # session.create_volume("notes", 16 << 20)?;
/// let files = session.files()?;
/// files.format("notes", false)?; // once: an empty file system in a volume
/// files.create_dir("notes:/2024")?;
/// files.create("notes:/2024/today")?.write_all(b"a fine day")?;
/// let mut text = String::new();
/// files.open("notes:/2024/today")?.read_to_string(&mut text)?;
/// assert_eq!(text, "a fine day");
/// for entry in files.read_dir("notes:/2024")? {
///     println!("{}", entry?.name);
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Files {
    session: Session,
}

impl Files {
    pub(crate) fn new(session: &Session) -> Result<Self, Error> {
        Ok(Self { session: session.managed(ENTRIES)? })
    }

    /// The session, whose calls go by the same queue.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let session = portcullis::Session::connect(portcullis::default_socket_path())?;
    /// let files = session.files()?;
    /// files.session().create_volume("notes", 1 << 30)?;
    /// files.format("notes", false)?;
    /// # Ok(()) }
    /// ```
    pub fn session(&self) -> &Session {
        &self.session
    }

    pub(crate) fn desk(&self) -> Result<&Desk, Error> {
        self.session.desk().ok_or_else(|| Error::Argument("files need a session with a queue".to_owned()))
    }

    /// Sends any request by the queue.
    ///
    /// # Errors
    /// As [`crate::Queue::call`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let session = portcullis::Session::connect(portcullis::default_socket_path())?;
    /// # let files = session.files()?;
    /// println!("{:?}", files.call(&portcullis::wire::control::Request::ShowDevice)?);
    /// # Ok(()) }
    /// ```
    pub fn call(&self, request: &Request) -> Result<Reply, Error> {
        self.session.ask(request)
    }

    /// Opens a file that is there, to be read.
    ///
    /// # Errors
    /// [`Error::Refused`]: E_NO_RESOURCE if it is not there, E_AUTH if this user may not read it.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let session = portcullis::Session::connect(portcullis::default_socket_path())?;
    /// # let files = session.files()?;
    /// let mut start = [0; 100];
    /// let bytes = files.open("notes:/log")?.read_at(&mut start, 0)?;
    /// # Ok(()) }
    /// ```
    pub fn open(&self, place: impl ToPlace) -> Result<File, Error> {
        OpenOptions::new().read(true).open(self, place)
    }

    /// Makes a file, or cuts the one that is there to nothing, and opens it to be read and written.
    ///
    /// # Errors
    /// As [`OpenOptions::open`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let session = portcullis::Session::connect(portcullis::default_socket_path())?;
    /// # let files = session.files()?;
    /// files.create("notes:/new")?.write_all_at(b"hello", 0)?;
    /// # Ok(()) }
    /// ```
    pub fn create(&self, place: impl ToPlace) -> Result<File, Error> {
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(self, place)
    }

    /// The attributes of what a path names; links are followed.
    ///
    /// # Errors
    /// [`Error::Refused`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let session = portcullis::Session::connect(portcullis::default_socket_path())?;
    /// # let files = session.files()?;
    /// println!("{:o}", files.metadata("notes:/log")?.mode);
    /// # Ok(()) }
    /// ```
    pub fn metadata(&self, place: impl ToPlace) -> Result<FileAttributes, Error> {
        self.stat(&place.to_place()?, true)
    }

    /// The same of a symbolic link itself.
    ///
    /// # Errors
    /// [`Error::Refused`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let session = portcullis::Session::connect(portcullis::default_socket_path())?;
    /// # let files = session.files()?;
    /// println!("{:?}", files.symlink_metadata("notes:/log")?.kind);
    /// # Ok(()) }
    /// ```
    pub fn symlink_metadata(&self, place: impl ToPlace) -> Result<FileAttributes, Error> {
        self.stat(&place.to_place()?, false)
    }

    fn stat(&self, place: &Place, follow: bool) -> Result<FileAttributes, Error> {
        let (volume, path) = place.wire();
        match self.call(&Request::StatPath { volume, path, follow })? {
            Reply::Attributes(attributes) => Ok(attributes),
            other => Err(unexpected(&other)),
        }
    }

    /// Changes attributes of what a path names: all of the change or nothing of it.
    ///
    /// # Errors
    /// [`Error::Refused`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let session = portcullis::Session::connect(portcullis::default_socket_path())?;
    /// # let files = session.files()?;
    /// use portcullis::wire::files::AttributeChange;
    /// files.set_attributes("notes:/log", AttributeChange { mode: Some(0o600), ..Default::default() })?;
    /// # Ok(()) }
    /// ```
    pub fn set_attributes(
        &self,
        place: impl ToPlace,
        change: AttributeChange,
    ) -> Result<FileAttributes, Error> {
        let (volume, path) = place.to_place()?.wire();
        let of = FileTarget::Path { volume, path, follow: true };
        match self.call(&Request::SetAttributes { of, change })? {
            Reply::Attributes(attributes) => Ok(attributes),
            other => Err(unexpected(&other)),
        }
    }

    /// What stands in a directory, page by page. See [`Dir`].
    ///
    /// # Errors
    /// [`Error::Refused`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let session = portcullis::Session::connect(portcullis::default_socket_path())?;
    /// # let files = session.files()?;
    /// let names = files.read_dir("notes:/")?.count();
    /// # Ok(()) }
    /// ```
    pub fn read_dir(&self, place: impl ToPlace) -> Result<Dir, Error> {
        Dir::open(self, &place.to_place()?, false)
    }

    /// The same, each entry with its attributes.
    ///
    /// # Errors
    /// [`Error::Refused`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let session = portcullis::Session::connect(portcullis::default_socket_path())?;
    /// # let files = session.files()?;
    /// for entry in files.read_dir_with_attributes("notes:/")? {
    ///     let entry = entry?;
    ///     println!("{} {:?}", entry.name, entry.attributes.map(|it| it.length));
    /// }
    /// # Ok(()) }
    /// ```
    pub fn read_dir_with_attributes(&self, place: impl ToPlace) -> Result<Dir, Error> {
        Dir::open(self, &place.to_place()?, true)
    }

    /// Makes a directory that all may look into and its owner may change (0o755).
    ///
    /// # Errors
    /// [`Error::Refused`]: E_EXISTS, E_AUTH, E_NO_RESOURCE if the directory around it is not there.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let session = portcullis::Session::connect(portcullis::default_socket_path())?;
    /// # let files = session.files()?;
    /// files.create_dir("notes:/2024")?;
    /// # Ok(()) }
    /// ```
    pub fn create_dir(&self, place: impl ToPlace) -> Result<(), Error> {
        self.create_dir_with_mode(place, 0o755)
    }

    /// Makes a directory with these permission bits.
    ///
    /// # Errors
    /// As [`Files::create_dir`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let session = portcullis::Session::connect(portcullis::default_socket_path())?;
    /// # let files = session.files()?;
    /// files.create_dir_with_mode("notes:/private", 0o700)?;
    /// # Ok(()) }
    /// ```
    pub fn create_dir_with_mode(&self, place: impl ToPlace, mode: u16) -> Result<(), Error> {
        let (volume, path) = place.to_place()?.wire();
        self.session.done(&Request::MakeDirectory { volume, path, mode })
    }

    /// Makes a directory, and those around it that are not there.
    ///
    /// # Errors
    /// As [`Files::create_dir`], but not for what is there already, if it is a directory.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let session = portcullis::Session::connect(portcullis::default_socket_path())?;
    /// # let files = session.files()?;
    /// files.create_dir_all("notes:/2024/11/22")?;
    /// # Ok(()) }
    /// ```
    pub fn create_dir_all(&self, place: impl ToPlace) -> Result<(), Error> {
        let mut missing = vec![place.to_place()?];
        // From the inside out until one can be made, then back.
        while let Some(place) = missing.last() {
            match self.create_dir(place) {
                Ok(()) => drop(missing.pop()),
                Err(error) => match (error.status(), place.parent()) {
                    // The root is there, or there is no such volume.
                    (_, None) => {
                        self.stat(place, true)?;
                        missing.pop();
                    }
                    (Some(Status::E_NO_RESOURCE), Some(parent)) if !missing.contains(&parent) => {
                        missing.push(parent);
                    }
                    (Some(Status::E_EXISTS), _)
                        if self.stat(place, true)?.kind == wire::files::FileKind::Directory =>
                    {
                        missing.pop();
                    }
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// [`Error::Refused`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let session = portcullis::Session::connect(portcullis::default_socket_path())?;
    /// # let files = session.files()?;
    /// files.remove_dir("notes:/2024")?;
    /// # Ok(()) }
    /// ```
    pub fn remove_dir(&self, place: impl ToPlace) -> Result<(), Error> {
        let (volume, path) = place.to_place()?.wire();
        self.session.done(&Request::RemoveDirectory { volume, path })
    }

    /// Takes a file's name away. Who has it open goes on with it.
    ///
    /// # Errors
    /// [`Error::Refused`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let session = portcullis::Session::connect(portcullis::default_socket_path())?;
    /// # let files = session.files()?;
    /// files.remove_file("notes:/log")?;
    /// # Ok(()) }
    /// ```
    pub fn remove_file(&self, place: impl ToPlace) -> Result<(), Error> {
        let (volume, path) = place.to_place()?.wire();
        self.session.done(&Request::UnlinkFile { volume, path })
    }

    /// Gives a file or directory another name in its volume. A file of that name is replaced, in one step.
    ///
    /// # Errors
    /// [`Error::Argument`] for two volumes; [`Error::Refused`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let session = portcullis::Session::connect(portcullis::default_socket_path())?;
    /// # let files = session.files()?;
    /// files.rename("notes:/log.new", "notes:/log")?;
    /// # Ok(()) }
    /// ```
    pub fn rename(&self, from: impl ToPlace, to: impl ToPlace) -> Result<(), Error> {
        self.rename_with(&from.to_place()?, &to.to_place()?, true)
    }

    /// The same, but E_EXISTS if there is something of that name.
    ///
    /// # Errors
    /// As [`Files::rename`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let session = portcullis::Session::connect(portcullis::default_socket_path())?;
    /// # let files = session.files()?;
    /// files.rename_new("notes:/draft", "notes:/log")?;
    /// # Ok(()) }
    /// ```
    pub fn rename_new(&self, from: impl ToPlace, to: impl ToPlace) -> Result<(), Error> {
        self.rename_with(&from.to_place()?, &to.to_place()?, false)
    }

    fn rename_with(&self, from: &Place, to: &Place, replace: bool) -> Result<(), Error> {
        if from.volume() != to.volume() {
            let text = format!("{from} and {to} are in different volumes: copy the file and remove it");
            return Err(Error::Argument(text));
        }
        let ((volume, from), (_, to)) = (from.wire(), to.wire());
        self.session.done(&Request::RenameFile { volume, from, to, replace })
    }

    /// Where a symbolic link leads.
    ///
    /// # Errors
    /// [`Error::Refused`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let session = portcullis::Session::connect(portcullis::default_socket_path())?;
    /// # let files = session.files()?;
    /// let target: Vec<u8> = files.read_link("image:/vmlinuz")?;
    /// # Ok(()) }
    /// ```
    pub fn read_link(&self, place: impl ToPlace) -> Result<Vec<u8>, Error> {
        let (volume, path) = place.to_place()?.wire();
        match self.call(&Request::ReadLink { volume, path })? {
            Reply::Link { target } => Ok(target.into_bytes()),
            other => Err(unexpected(&other)),
        }
    }

    /// How full the file system of a volume is.
    ///
    /// # Errors
    /// [`Error::Refused`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let session = portcullis::Session::connect(portcullis::default_socket_path())?;
    /// # let files = session.files()?;
    /// println!("{} bytes free", files.space("notes")?.available);
    /// # Ok(()) }
    /// ```
    pub fn space(&self, volume: &str) -> Result<FileSystemInfo, Error> {
        self.system(&Request::StatVolume { volume: volume.to_owned() })
    }

    /// Makes an empty file system in a volume. With `force` also where there is one already; what is in the volume is lost.
    ///
    /// # Errors
    /// [`Error::Refused`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let session = portcullis::Session::connect(portcullis::default_socket_path())?;
    /// # let files = session.files()?;
    /// files.format("notes", false)?;
    /// # Ok(()) }
    /// ```
    pub fn format(&self, volume: &str, force: bool) -> Result<FileSystemInfo, Error> {
        self.system(&Request::FormatFiles { volume: volume.to_owned(), force })
    }

    fn system(&self, request: &Request) -> Result<FileSystemInfo, Error> {
        match self.call(request)? {
            Reply::FileSystem(info) => Ok(info),
            other => Err(unexpected(&other)),
        }
    }

    /// Checks the file system of a volume, and puts right what it can if told to.
    ///
    /// # Errors
    /// [`Error::Refused`]. What is wrong with the files is no error here.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let session = portcullis::Session::connect(portcullis::default_socket_path())?;
    /// # let files = session.files()?;
    /// assert_eq!(files.check("notes", false)?.found, 0);
    /// # Ok(()) }
    /// ```
    pub fn check(&self, volume: &str, repair: bool) -> Result<CheckReport, Error> {
        match self.call(&Request::CheckFiles { volume: volume.to_owned(), repair })? {
            Reply::Checked(report) => Ok(report),
            other => Err(unexpected(&other)),
        }
    }

    /// Makes everything durable that was done to the files of a volume.
    ///
    /// # Errors
    /// [`Error::Refused`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let session = portcullis::Session::connect(portcullis::default_socket_path())?;
    /// # let files = session.files()?;
    /// files.sync("notes")?;
    /// # Ok(()) }
    /// ```
    pub fn sync(&self, volume: &str) -> Result<(), Error> {
        self.session.done(&Request::SyncFiles { volume: volume.to_owned() })
    }

    /// Limits the bytes that a user's files may have in a volume; `None` takes the limit away.
    ///
    /// # Errors
    /// [`Error::Refused`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let session = portcullis::Session::connect(portcullis::default_socket_path())?;
    /// # let files = session.files()?;
    /// files.set_quota("notes", 1000, Some(1 << 30))?;
    /// # Ok(()) }
    /// ```
    pub fn set_quota(&self, volume: &str, user: u32, bytes: Option<u64>) -> Result<(), Error> {
        self.session.done(&Request::SetFileQuota { volume: volume.to_owned(), user, bytes })
    }
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files").field("session", &self.session.number()).finish_non_exhaustive()
    }
}

/// What stands in a directory: an iterator that asks for a page at a time. What is made or removed meanwhile may be in it or not;
/// everything else is in it once.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let adapter = adapter::Embedded::open("emu:32M")?;
/// # let session = adapter.session()?;
/// # session.create_volume("notes", 16 << 20)?;
/// # let files = session.files()?;
/// # files.format("notes", false)?;
/// # files.create_dir("notes:/2024")?;
/// let dir: portcullis::Dir = files.read_dir("notes:/")?;
/// let mut names: Vec<_> = dir.map(|entry| Ok(entry?.name)).collect::<Result<_, portcullis::Error>>()?;
/// names.sort();
/// assert_eq!(names[0].as_bytes(), b"2024");
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Dir {
    files: Files,
    place: Place,
    attributes: bool,
    page: VecDeque<DirectoryEntry>,
    /// Where it goes on; `None` at the end.
    next: Option<Cursor>,
}

impl Dir {
    fn open(files: &Files, place: &Place, attributes: bool) -> Result<Self, Error> {
        let mut dir = Self {
            files: files.clone(),
            place: place.clone(),
            attributes,
            page: VecDeque::new(),
            next: Some(Cursor::default()),
        };
        dir.fetch(&Cursor::default())?; // So that it is known whether there is such a directory.
        Ok(dir)
    }

    fn fetch(&mut self, from: &Cursor) -> Result<(), Error> {
        let (volume, path) = self.place.wire();
        let request =
            Request::ListDirectory { volume, path, from: from.clone(), attributes: self.attributes };
        let (entries, next) = match self.files.call(&request)? {
            Reply::Directory { entries, next } => (entries, next),
            other => return Err(unexpected(&other)),
        };
        // Each page must lead on, or a broken adapter would keep us here for ever.
        if next.is_some() && (entries.is_empty() || next.as_ref() == Some(from)) {
            let text = format!("a page of the directory {} does not lead on", self.place);
            return Err(Error::Protocol(text));
        }
        self.page.extend(entries);
        self.next = next;
        Ok(())
    }
}

impl Iterator for Dir {
    type Item = Result<DirectoryEntry, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.page.is_empty() {
            let from = self.next.take()?;
            if let Err(error) = self.fetch(&from) {
                return Some(Err(error)); // And that is the end.
            }
        }
        self.page.pop_front().map(Ok)
    }
}
