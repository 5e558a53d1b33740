//! What is on a device, for whoever is about to take it away from somebody else.

use std::io;

use crate::StoreError;
use crate::probe::find_superblock;
use crate::signature::{Ends, WINDOW};
use crate::superblock::Kind;

/// What is on a device, as far as its first and last 128 KiB tell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// Nothing: they are all zero.
    Blank,
    /// A store of ours, also one that is damaged or of another version.
    Store,
    /// Something else: `an XFS file system`, or `data of an unknown kind`.
    Foreign(String),
}

impl Content {
    /// Looks at a device of `bytes` bytes. `read` fills a buffer from an offset, both multiples of 512.
    ///
    /// # Errors
    /// What `read` says.
    pub fn of(bytes: u64, read: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>) -> io::Result<Self> {
        let mut window = |from: u64, length: u64| {
            let mut data = vec![0; usize::try_from(length).unwrap_or(0)];
            read(from, &mut data).map(|()| data)
        };
        let length = bytes.min(WINDOW);
        let ends = Ends { head: window(0, length)?, tail: window(bytes - length, length)?, bytes };
        Ok(match find_superblock(Kind::Store, &ends) {
            Ok(_) => Self::Store,
            Err(StoreError::Damaged { .. } | StoreError::Version { .. } | StoreError::Features { .. }) => {
                Self::Store
            }
            Err(StoreError::Blank) => Self::Blank,
            Err(StoreError::Foreign { what }) => Self::Foreign(what),
            Err(_) if ends.blank() => Self::Blank,
            Err(_) => Self::Foreign(ends.foreign().unwrap_or("data of an unknown kind").to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FormatOptions, Store};
    use driver::disk::MemoryDisk;

    fn of(image: &[u8]) -> Content {
        let mut read = |offset: u64, data: &mut [u8]| {
            let from = usize::try_from(offset).unwrap();
            data.copy_from_slice(image.get(from..from + data.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        };
        Content::of(image.len() as u64, &mut read).unwrap()
    }

    #[test]
    fn what_is_on_a_device_is_told() {
        for size in [0, 512, 4096, 100 << 10, 1 << 20] {
            let mut image = vec![0; size];
            assert_eq!(of(&image), Content::Blank, "{size} bytes");
            if size >= 4096 {
                image[1080..1082].copy_from_slice(&[0x53, 0xef]);
                assert!(
                    matches!(of(&image), Content::Foreign(what) if what.contains("ext4")),
                    "{size} bytes"
                );
                image[1080] = 0;
                assert!(
                    matches!(of(&image), Content::Foreign(what) if what.contains("unknown")),
                    "{size} bytes"
                );
            }
        }
        let mut image = vec![0; 1 << 20];
        image[(1 << 20) - 512..(1 << 20) - 504].copy_from_slice(b"EFI PART");
        assert!(matches!(of(&image), Content::Foreign(what) if what.contains("GPT")));
    }

    #[test]
    fn a_store_is_told_from_what_it_would_destroy() {
        let disk = MemoryDisk::new(9, 64 << 11);
        drop(Store::format(Box::new(disk.clone()), FormatOptions::default()).unwrap());
        let mut disk = disk;
        let mut read = |offset: u64, data: &mut [u8]| {
            driver::disk::Disk::read(&mut disk, offset >> 9, data).map_err(io::Error::other)
        };
        assert_eq!(Content::of(64 << 20, &mut read).unwrap(), Content::Store);
        let mut refuse = |_: u64, _: &mut [u8]| Err(io::ErrorKind::Other.into());
        assert!(Content::of(64 << 20, &mut refuse).is_err());
    }
}
