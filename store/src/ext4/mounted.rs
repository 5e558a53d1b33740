//! An ext4 and the disk that it is on, in one piece.

use std::fmt;

use driver::disk::Disk;

use super::{Ext4, Ext4Error};
use crate::catalog::caught;

/// See the module.
pub struct Mounted {
    disk: Box<dyn Disk>,
    /// Or why it is used no longer.
    ext4: Result<Ext4, String>,
}

impl Mounted {
    /// Opens what is on `disk`.
    ///
    /// # Errors
    /// As [`Ext4::open`]; a panic on the way is one, too.
    pub fn open(mut disk: Box<dyn Disk>) -> Result<Self, Ext4Error> {
        let ext4 = caught(|| Ext4::open(&mut *disk)).map_err(|why| Ext4Error::Failed { why })??;
        Ok(Self { disk, ext4: Ok(ext4) })
    }

    /// Runs `work`. If it panics, which is a bug of ours or of the disk beneath, this and every later call is an error, and
    /// nobody else notices.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn guarded<T>(
        &mut self,
        work: impl FnOnce(&mut Ext4, &mut dyn Disk) -> Result<T, Ext4Error>,
    ) -> Result<T, Ext4Error> {
        let Self { disk, ext4 } = self;
        let failed = |why: &String| Ext4Error::Failed { why: why.clone() };
        let done = match ext4 {
            Ok(ext4) => caught(|| work(ext4, &mut **disk)),
            Err(why) => return Err(failed(why)),
        };
        done.unwrap_or_else(|why| {
            let error = failed(&why);
            self.ext4 = Err(why);
            Err(error)
        })
    }

    /// Makes what was written to its files durable.
    ///
    /// # Errors
    /// The disk's.
    pub fn sync(&mut self) -> Result<(), Ext4Error> {
        self.guarded(|_, disk| Ok(disk.flush()?))
    }

    /// Whether nobody has a file of it open.
    pub fn is_idle(&self) -> bool {
        self.ext4.as_ref().is_ok_and(|ext4| ext4.open_files() == 0)
    }
}

impl fmt::Debug for Mounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mounted").field("ext4", &self.ext4).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::image::Image;
    use super::*;
    use crate::permission::Credentials;

    #[test]
    fn a_panic_ends_it_and_nothing_else() {
        let image = Image::make(16 << 20, &["-b", "1024"]).unwrap();
        let mut mounted = Mounted::open(Box::new(image.disk(9).unwrap())).unwrap();
        let root = |ext4: &mut Ext4, disk: &mut dyn Disk| ext4.lookup(disk, b"/", &Credentials::ROOT, true);
        assert_eq!(mounted.guarded(root), Ok(2));
        mounted.sync().unwrap();
        assert!(mounted.is_idle());
        let error = mounted.guarded(|_, _| -> Result<(), Ext4Error> { panic!("a bug") }).unwrap_err();
        assert!(error.to_string().contains("a bug"), "{error}");
        assert_eq!(mounted.guarded(root), Err(error));
        assert!(mounted.sync().is_err() && !mounted.is_idle());
    }
}
