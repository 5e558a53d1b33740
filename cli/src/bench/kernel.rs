//! The kernel's path: pread(2) and pwrite(2) with O_DIRECT on a file, in one thread for each request in flight.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use hdrhistogram::Histogram;

use super::{Places, Tally, Work, histogram, nanoseconds, pattern};

/// What O_DIRECT may ask of addresses: a page satisfies every file system.
const ALIGNMENT: usize = 4096;

/// A file of the size of the work, full of data, deleted when this is dropped.
pub(super) struct KernelFile {
    file: File,
    path: PathBuf,
    work: Work,
}

impl KernelFile {
    pub(super) fn create(path: &Path, work: Work) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)
            .with_context(|| {
                format!("cannot make {} with O_DIRECT; name another place by --kernel-file", path.display())
            })?;
        let made = Self { file, path: path.to_owned(), work };
        made.fill().with_context(|| {
            format!("cannot fill {} with O_DIRECT; name another place by --kernel-file", path.display())
        })?;
        // A file system may want larger pieces than the work has.
        let mut one = Aligned::new(work.block);
        made.file.read_exact_at(one.bytes(), 0).with_context(|| {
            format!(
                "{} cannot be read {} bytes at a time with O_DIRECT; try a larger --block-size",
                path.display(),
                work.block
            )
        })?;
        Ok(made)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn fill(&self) -> std::io::Result<()> {
        let mut data = Aligned::new(1 << 20);
        pattern(data.bytes());
        let total = self.work.bytes();
        let mut at = 0;
        while at < total {
            // Whole pieces: a little more than needed harms nobody.
            self.file.write_all_at(data.bytes(), at)?;
            at += 1 << 20;
        }
        self.file.sync_all()
    }

    /// Measures for `time` with as many threads as the tally has depth.
    pub(super) fn run(&self, time: Duration, round: u32, tally: &mut Tally) -> Result<()> {
        let start = Instant::now();
        let threads = 0..tally.depth;
        let results: Vec<Result<Histogram<u64>>> = thread::scope(|scope| {
            let seed = |thread: u32| u64::from(round * tally.depth + thread + 1);
            let handles: Vec<_> =
                threads.map(|n| scope.spawn(move || self.one_thread(time, seed(n)))).collect();
            let join = |handle: thread::ScopedJoinHandle<'_, _>| {
                handle.join().unwrap_or_else(|_| bail!("a thread panicked"))
            };
            handles.into_iter().map(join).collect()
        });
        tally.took += start.elapsed();
        for result in results {
            tally.latencies.add(result?).map_err(|error| anyhow!("adding latencies: {error}"))?;
        }
        Ok(())
    }

    fn one_thread(&self, time: Duration, seed: u64) -> Result<Histogram<u64>> {
        let mut buffer = Aligned::new(self.work.block);
        pattern(buffer.bytes());
        let mut places = Places::new(self.work, seed);
        let mut latencies = histogram()?;
        let start = Instant::now();
        let mut began = start;
        while began.duration_since(start) < time {
            let at = places.next();
            let result = match self.work.workload.is_write() {
                true => self.file.write_all_at(buffer.bytes(), at),
                false => self.file.read_exact_at(buffer.bytes(), at),
            };
            result.with_context(|| {
                format!("{} at {at} of {}", self.work.workload.name(), self.path.display())
            })?;
            let now = Instant::now();
            latencies.record(nanoseconds(now.duration_since(began)))?;
            began = now;
        }
        Ok(latencies)
    }
}

impl Drop for KernelFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Bytes that begin on a page.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    fn new(length: usize) -> Self {
        let memory = vec![0; length + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, start, length }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direct_io_gets_aligned_memory() {
        for length in [512, 4096, 10_000] {
            let mut aligned = Aligned::new(length);
            assert_eq!(aligned.bytes().len(), length);
            assert!(aligned.bytes().as_ptr().addr().is_multiple_of(ALIGNMENT));
        }
    }
}
