//! The kernel's path: pread(2) and pwrite(2), in one thread for each request in flight. On a file with O_DIRECT, or on one
//! in memory where the device is in memory, too.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{self, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use hdrhistogram::Histogram;
use rustix::fs::MemfdFlags;

use super::sample::{Clocks, Sample, histogram, nanoseconds};
use super::{Path, Place, Places, Work, pattern};

/// What O_DIRECT may ask of addresses: a page satisfies every file system.
const ALIGNMENT: usize = 4096;

/// A file of the size of the work, full of data, deleted when this is dropped.
pub(super) struct KernelFile {
    file: File,
    /// To be deleted.
    path: Option<PathBuf>,
    /// For people.
    place: String,
    work: Work,
}

impl KernelFile {
    pub(super) fn create(path: &path::Path, work: Work) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)
            .with_context(|| {
                format!("cannot make {} with O_DIRECT; name another place by --kernel-file", path.display())
            })?;
        let place = format!("{} with O_DIRECT", path.display());
        let made = Self { file, path: Some(path.to_owned()), place, work };
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

    /// In memory, without any disk.
    pub(super) fn in_memory(work: Work) -> Result<Self> {
        let file = rustix::fs::memfd_create("portcullis-bench", MemfdFlags::CLOEXEC)
            .context("cannot make a file in memory")?;
        let place = "a file in memory (memfd), as the device is".to_owned();
        let made = Self { file: file.into(), path: None, place, work };
        made.fill().context("cannot fill a file in memory")?;
        Ok(made)
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    pub(super) fn file(&self) -> &File {
        &self.file
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

    fn one_thread(&self, time: Duration, seed: u64) -> Result<Histogram<u64>> {
        let mut buffer = Aligned::new(self.work.block);
        pattern(buffer.bytes());
        let mut places = Places::new(self.work, seed);
        let mut latencies = histogram()?;
        let start = Instant::now();
        let mut began = start;
        while began.duration_since(start) < time {
            let Place { at, write } = places.next();
            let result = match write {
                true => self.file.write_all_at(buffer.bytes(), at),
                false => self.file.read_exact_at(buffer.bytes(), at),
            };
            result.with_context(|| format!("{} at {at} of {}", self.work.workload.name(), self.place))?;
            let now = Instant::now();
            latencies.record(nanoseconds(now.duration_since(began)))?;
            began = now;
        }
        Ok(latencies)
    }
}

/// As many threads as there are to be requests in flight.
pub(super) struct Threads {
    file: Arc<KernelFile>,
    /// For each unit of depth: our path has so many queues.
    lanes: u32,
}

impl Threads {
    pub(super) fn new(file: Arc<KernelFile>, lanes: u32) -> Self {
        Self { file, lanes }
    }
}

impl Path for Threads {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn run(&mut self, depth: u32, time: Duration, round: u32) -> Result<Sample> {
        let file = &self.file;
        let threads = depth * self.lanes;
        let clocks = Clocks::start();
        let results: Vec<Result<Histogram<u64>>> = thread::scope(|scope| {
            let seed = |thread: u32| u64::from(round * threads + thread + 1);
            let handles: Vec<_> =
                (0..threads).map(|n| scope.spawn(move || file.one_thread(time, seed(n)))).collect();
            let join = |handle: thread::ScopedJoinHandle<'_, _>| {
                handle.join().unwrap_or_else(|_| bail!("a thread panicked"))
            };
            handles.into_iter().map(join).collect()
        });
        let mut latencies = histogram()?;
        for result in results {
            latencies.add(result?).map_err(|error| anyhow!("adding latencies: {error}"))?;
        }
        Ok(clocks.sample(latencies))
    }
}

impl Drop for KernelFile {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Bytes that begin on a page.
pub(super) struct Aligned {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    pub(super) fn new(length: usize) -> Self {
        let memory = vec![0; length + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, start, length }
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
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
