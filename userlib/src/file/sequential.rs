//! A file as [`std::io`] has it: read and written from a position on, which all who have the file share.

use std::io::{self, IoSlice, IoSliceMut, Read, Seek, SeekFrom, Write};
use std::sync::{MutexGuard, PoisonError};

use super::File;

impl File {
    fn position(&self) -> MutexGuard<'_, u64> {
        self.position.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Read for &File {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let mut position = self.position();
        let bytes = self.read_at(target, *position)?;
        *position += bytes as u64;
        Ok(bytes)
    }

    fn read_vectored(&mut self, targets: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut position = self.position();
        let bytes = self.read_vectored_at(targets, *position)?;
        *position += bytes as u64;
        Ok(bytes)
    }
}

impl Write for &File {
    fn write(&mut self, source: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(source)])
    }

    fn write_vectored(&mut self, sources: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut position = self.position();
        let bytes: usize = sources.iter().map(|source| source.len()).sum();
        if bytes == 0 {
            return Ok(0);
        }
        if self.append {
            *position = self.append_vectored(sources)?;
        } else {
            self.write_vectored_at(sources, *position)?;
        }
        *position += bytes as u64;
        Ok(bytes)
    }

    /// Nothing is held back, so that nothing is to be done. Durable is what [`File::sync_data`] makes durable.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for &File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let mut position = self.position();
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => position.checked_add_signed(by),
            SeekFrom::End(by) => self.len()?.checked_add_signed(by),
        };
        let target = target.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "a seek to before the file's start, or beyond any")
        })?;
        *position = target;
        Ok(target)
    }
}

impl Read for File {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        (&*self).read(target)
    }

    fn read_vectored(&mut self, targets: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        (&*self).read_vectored(targets)
    }
}

impl Write for File {
    fn write(&mut self, source: &[u8]) -> io::Result<usize> {
        (&*self).write(source)
    }

    fn write_vectored(&mut self, sources: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*self).write_vectored(sources)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self).flush()
    }
}

impl Seek for File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        (&*self).seek(to)
    }
}
