//! How a file is opened.

use wire::control::{Reply, Request};
use wire::files::{Create, OpenFile};

use super::File;
use crate::access::Access;
use crate::error::Error;
use crate::files::Files;
use crate::memory::unexpected;
use crate::place::{Place, ToPlace};

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
        /// To be written at its end: [`std::io::Write`] appends, whatever others append meanwhile.
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
