//! An open volume.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use wire::control::{GrantInfo, Reply, Request};

use crate::access::Access;
use crate::error::Error;
use crate::memory::unexpected;
use crate::session::Session;

/// A grant over the blocks of a volume, valid in the session that opened it. Closed when it is dropped.
///
/// Requests still in flight keep nothing alive: closing waits until the adapter has ended them.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let adapter = adapter::Embedded::open("emu:16M")?;
/// # let session = adapter.session()?;
/// # session.create_volume("v", 1 << 20)?;
/// use portcullis::Access;
/// let volume = session.open("v", Access::READ_WRITE)?;
/// assert_eq!(volume.size(), 1 << 20);
/// assert!(volume.block_size() == 512 || volume.block_size() == 4096);
/// assert_eq!(volume.access(), Access::READ_WRITE);
/// volume.close()?;
/// # Ok(()) }
/// ```
pub struct Volume {
    session: Session,
    /// What it goes by in this library: the first key that it had.
    name: u64,
    bytes: AtomicU64,
    block_size: u32,
    access: Access,
    open: bool,
}

impl Volume {
    pub(crate) fn new(session: Session, grant: &GrantInfo) -> Result<Self, Error> {
        let access = Access::from_bits(grant.access).ok_or_else(|| {
            Error::Protocol(format!("a grant came with unknown rights {:#x}", grant.access))
        })?;
        if !grant.block_size.is_power_of_two() {
            return Err(Error::Protocol(format!("a grant came with a block size of {}", grant.block_size)));
        }
        let bytes = AtomicU64::new(grant.bytes);
        Ok(Self { session, name: grant.key, bytes, block_size: grant.block_size, access, open: true })
    }

    /// What the grant is named by on the wire: an index and a key instance. A name, not a secret. It is another one after the
    /// session went on with another adapter; requests of this library find it by themselves.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::READ_WRITE)?;
    /// let again = session.open("v", portcullis::Access::READ)?;
    /// assert_ne!(volume.key(), again.key());
    /// # Ok(()) }
    /// ```
    pub fn key(&self) -> u64 {
        self.session.link().present_key(self.name)
    }

    #[inline]
    pub(crate) fn name(&self) -> u64 {
        self.name
    }

    /// Bytes, as of the opening or the last [`Volume::refresh`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::READ_WRITE)?;
    /// assert_eq!(volume.size(), 1 << 20);
    /// # Ok(()) }
    /// ```
    pub fn size(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The unit of offsets and lengths, in bytes.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::READ_WRITE)?;
    /// let blocks = volume.size() / u64::from(volume.block_size());
    /// assert!(blocks > 0);
    /// # Ok(()) }
    /// ```
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// What it was opened for.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::READ_WRITE)?;
    /// assert!(volume.access().allows(portcullis::Access::WRITE));
    /// # Ok(()) }
    /// ```
    pub fn access(&self) -> Access {
        self.access
    }

    /// Asks the adapter for the present size and rights: the volume may have been resized, or rights revoked.
    ///
    /// # Errors
    /// [`Error::Refused`] where the grant has been revoked whole or its volume deleted.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// let volume = session.open("v", portcullis::Access::READ)?;
    /// session.resize_volume("v", 2 << 20)?;
    /// assert_eq!(volume.refresh()?.bytes, 2 << 20);
    /// assert_eq!(volume.size(), 2 << 20);
    /// # Ok(()) }
    /// ```
    pub fn refresh(&self) -> Result<GrantInfo, Error> {
        match self.session.ask(&Request::Query { key: self.name })? {
            Reply::Grant(grant) => {
                self.bytes.store(grant.bytes, Ordering::Relaxed);
                Ok(grant)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Ends the grant. When it returns no I/O runs under it any more.
    ///
    /// # Errors
    /// [`Error::Refused`] where the adapter could not end it in time or it was gone already.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// session.open("v", portcullis::Access::READ)?.close()?;
    /// # Ok(()) }
    /// ```
    pub fn close(mut self) -> Result<(), Error> {
        self.open = false;
        self.session.done(&Request::Close { key: self.name })
    }
}

impl Drop for Volume {
    /// Best effort: who wants to know calls [`Volume::close`].
    fn drop(&mut self) {
        if self.open {
            let _ = self.session.ask(&Request::Close { key: self.name });
        }
    }
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volume")
            .field("key", &format_args!("{:#x}", self.name))
            .field("size", &self.size())
            .field("block_size", &self.block_size)
            .field("access", &self.access)
            .finish()
    }
}
