//! What requests are about.

use std::sync::Arc;

use crate::{File, Volume};

/// A volume or a file that is open: what [`crate::Request`]s are about, by its key.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let adapter = adapter::Embedded::open("emu:16M")?;
/// # let session = adapter.session()?;
/// # session.create_volume("v", 1 << 20)?;
/// # let volume = session.open("v", portcullis::Access::READ)?;
/// fn blocks(bytes: u64, of: &impl portcullis::Target) -> u64 {
///     bytes.div_ceil(of.block_size().into())
/// }
/// assert_eq!(blocks(volume.size(), &volume), (1 << 20) / u64::from(volume.block_size()));
/// # Ok(()) }
/// ```
pub trait Target: sealed::Sealed {
    /// What it is called on the wire.
    fn key(&self) -> u64;

    /// The unit of offsets and lengths of reads and writes, in bytes.
    fn block_size(&self) -> u32;
}

impl Target for Volume {
    fn key(&self) -> u64 {
        self.name()
    }

    fn block_size(&self) -> u32 {
        Volume::block_size(self)
    }
}

impl Target for File {
    fn key(&self) -> u64 {
        self.name()
    }

    fn block_size(&self) -> u32 {
        File::block_size(self)
    }
}

impl<T: Target + ?Sized> Target for &T {
    fn key(&self) -> u64 {
        (**self).key()
    }

    fn block_size(&self) -> u32 {
        (**self).block_size()
    }
}

impl<T: Target + ?Sized> Target for Arc<T> {
    fn key(&self) -> u64 {
        (**self).key()
    }

    fn block_size(&self) -> u32 {
        (**self).block_size()
    }
}

/// A target by what is needed of it, for who has no reference to it.
#[derive(Clone, Copy)]
pub(crate) struct Of {
    key: u64,
    block_size: u32,
    ends: bool,
}

impl Of {
    /// A volume: all of it can be read.
    pub(crate) fn volume(volume: &Volume) -> Self {
        Self { key: volume.name(), block_size: volume.block_size(), ends: false }
    }

    /// A file: reads end where it does.
    pub(crate) fn file(file: &File) -> Self {
        Self { key: file.name(), block_size: file.block_size(), ends: true }
    }

    /// A file, as it was opened.
    pub(crate) fn opened(info: &wire::files::FileInfo) -> Self {
        Self { key: info.key, block_size: info.block_size, ends: true }
    }

    /// Bytes of a block.
    pub(crate) fn block(&self) -> usize {
        self.block_size as usize
    }

    /// Whether a read may be of fewer bytes than were asked for.
    pub(crate) fn ends(&self) -> bool {
        self.ends
    }
}

impl Target for Of {
    fn key(&self) -> u64 {
        self.key
    }

    fn block_size(&self) -> u32 {
        self.block_size
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for crate::Volume {}
    impl Sealed for crate::File {}
    impl Sealed for super::Of {}
    impl<T: Sealed + ?Sized> Sealed for &T {}
    impl<T: Sealed + ?Sized> Sealed for std::sync::Arc<T> {}
}
