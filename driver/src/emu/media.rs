//! What the blocks of an emulated device lie on.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FallocateFlags, FlockOperation, OFlags};

use super::memory::{Pages, Segments, Words};
use crate::dice::Dice;

/// The medium failed. The controller answers with the media error of NVM Command Set that fits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MediaError {
    /// Unrecovered Read Error.
    Read,
    /// Write Fault.
    Write,
}

/// Bytes that stay. Offsets and lengths are whole blocks and inside: the controller has checked them.
///
/// Several threads call at once; what two transfers at once do to the same block is each one's bytes, in no order.
pub trait Media: Send + Sync + 'static {
    /// Bytes.
    fn bytes(&self) -> u64;
    /// Whether calls may block, so that they need a thread of their own.
    fn may_block(&self) -> bool {
        false
    }
    /// Whether completed writes may be lost by a power cut until a flush.
    fn write_cache(&self) -> bool {
        false
    }
    /// Fills `into` from `offset`.
    fn read(&self, offset: u64, into: &Segments<'_>) -> Result<(), MediaError>;
    /// A transfer of the `bytes` bytes at `offset` is next: what makes it faster may be begun.
    fn expect(&self, offset: u64, bytes: u64) {
        let _ = (offset, bytes);
    }
    /// Stores `from` at `offset`; `durable` asks for it to be so on return.
    fn write(&self, offset: u64, from: &Segments<'_>, durable: bool) -> Result<(), MediaError>;
    /// Makes `bytes` from `offset` read as zero, giving up what they took where that is easy and `deallocate` asks.
    fn zero(&self, offset: u64, bytes: u64, deallocate: bool) -> Result<(), MediaError>;
    /// Makes all completed writes durable.
    fn flush(&self) -> Result<(), MediaError>;
    /// The power fails: what was not durable may be lost, as `seed` will have it.
    fn power_cut(&self, seed: u64) {
        let _ = seed;
    }

    /// Whether `with` is what lies at `offset`.
    fn compare(&self, offset: u64, with: &Segments<'_>) -> Result<bool, MediaError> {
        let (mut stored, mut given) = ([0; 4096], [0; 4096]);
        let mut at = 0;
        while at < with.len() {
            let take = (with.len() - at).min(4096);
            let mut stored_segments = Segments::default();
            stored_segments.push(super::memory::Span::of(&mut stored[..take]));
            self.read(offset + at as u64, &stored_segments)?;
            if !with.read_at(at, &mut given[..take]) || stored[..take] != given[..take] {
                return Ok(false);
            }
            at += take;
        }
        Ok(true)
    }
}

/// Memory, zero and not there until written. It has no write cache to report: as long as it lives, nothing completed
/// is ever lost. For one that loses writes, see [`Cached`].
#[derive(Debug)]
pub struct RamMedia {
    pages: Pages,
    /// Whether a chunk was ever written: the others need neither be read nor zeroed.
    touched: Words<AtomicU32>,
}

const CHUNK_SHIFT: u32 = 21;
/// Bytes of a transfer that are fetched ahead. For the rest the processor sees by itself where it goes.
const AHEAD: usize = 4096;

impl RamMedia {
    /// `bytes` zero bytes. Errors are the kernel's.
    pub fn new(bytes: u64) -> io::Result<Self> {
        let len = usize::try_from(bytes).ok().filter(|&len| len > 0).ok_or(io::ErrorKind::InvalidInput)?;
        let pages = Pages::sparse(len)?;
        pages.prefer_huge();
        Ok(Self { pages, touched: Words::new((len >> CHUNK_SHIFT) + 1)? })
    }

    /// Calls `each` with the chunk number, the offset and the length of every piece of a range.
    #[inline]
    fn chunks(offset: u64, bytes: u64, mut each: impl FnMut(usize, usize, usize)) {
        let mut at = offset;
        let end = offset + bytes;
        while at < end {
            let next = (((at >> CHUNK_SHIFT) + 1) << CHUNK_SHIFT).min(end);
            #[expect(clippy::cast_possible_truncation, reason = "inside of memory that is mapped")]
            each((at >> CHUNK_SHIFT) as usize, at as usize, (next - at) as usize);
            at = next;
        }
    }
}

impl Media for RamMedia {
    fn bytes(&self) -> u64 {
        self.pages.span().len() as u64
    }

    #[inline]
    fn read(&self, offset: u64, into: &Segments<'_>) -> Result<(), MediaError> {
        let mut at = offset;
        for span in into.iter() {
            let mut done = 0;
            Self::chunks(at, span.len() as u64, |chunk, offset, len| {
                let target = span.part(done, len).expect("pieces lie inside");
                if self.touched.at(chunk).load(Ordering::Acquire) == 0 {
                    target.zero();
                } else {
                    target.copy_from(self.pages.span().part(offset, len).expect("checked by the controller"));
                }
                done += len;
            });
            at += span.len() as u64;
        }
        Ok(())
    }

    #[inline]
    fn expect(&self, offset: u64, bytes: u64) {
        #[expect(clippy::cast_possible_truncation, reason = "inside of memory that is mapped")]
        let (offset, len) = (offset as usize, (bytes as usize).min(AHEAD));
        if self.touched.at(offset >> CHUNK_SHIFT).load(Ordering::Relaxed) != 0
            && let Some(soon) = self.pages.span().part(offset, len)
        {
            soon.prefetch();
        }
    }

    #[inline]
    fn write(&self, offset: u64, from: &Segments<'_>, _durable: bool) -> Result<(), MediaError> {
        let mut at = offset;
        for span in from.iter() {
            let mut done = 0;
            Self::chunks(at, span.len() as u64, |chunk, offset, len| {
                if self.touched.at(chunk).load(Ordering::Relaxed) == 0 {
                    self.touched.at(chunk).store(1, Ordering::Release);
                }
                let source = span.part(done, len).expect("pieces lie inside");
                self.pages.span().part(offset, len).expect("checked by the controller").copy_from(source);
                done += len;
            });
            at += span.len() as u64;
        }
        Ok(())
    }

    fn zero(&self, offset: u64, bytes: u64, _deallocate: bool) -> Result<(), MediaError> {
        // Nothing is given back to the kernel: that would be a system call on a poller's thread.
        Self::chunks(offset, bytes, |chunk, offset, len| {
            if self.touched.at(chunk).load(Ordering::Acquire) != 0 {
                self.pages.span().part(offset, len).expect("checked by the controller").zero();
            }
        });
        Ok(())
    }

    fn flush(&self) -> Result<(), MediaError> {
        Ok(())
    }
}

/// A file. The kernel's page cache is its write cache: completed writes are durable after a flush.
#[derive(Debug)]
pub struct FileMedia {
    file: File,
    bytes: u64,
}

impl FileMedia {
    /// Opens an existing file or block device, for this process alone. Errors are the kernel's; `WouldBlock` means
    /// another has it, `ResourceBusy` that a block device is mounted.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        // open(2): without O_CREAT, of a block device.
        if std::fs::metadata(path)?.file_type().is_block_device() {
            options.custom_flags(OFlags::EXCL.bits().cast_signed());
        }
        Self::take(options.open(path)?)
    }

    /// Makes a sparse file of `bytes` bytes; fails where one exists.
    pub fn create(path: &Path, bytes: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        file.set_len(bytes)?;
        Self::take(file)
    }

    fn take(file: File) -> io::Result<Self> {
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let bytes = io::Seek::seek(&mut &file, io::SeekFrom::End(0))?;
        if bytes == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the file is empty"));
        }
        Ok(Self { file, bytes })
    }

    /// Runs `each` over pieces of at most 64 KiB of a transfer through a private buffer: its offset from the start of
    /// the transfer, and the buffer.
    fn pieces(len: usize, mut each: impl FnMut(usize, &mut [u8]) -> io::Result<()>) -> io::Result<()> {
        let mut buffer = [0; 65_536];
        let mut at = 0;
        while at < len {
            let take = (len - at).min(buffer.len());
            each(at, &mut buffer[..take])?;
            at += take;
        }
        Ok(())
    }

    fn punch(&self, offset: u64, bytes: u64, deallocate: bool) -> io::Result<()> {
        let flags = if deallocate {
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
        } else {
            FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE
        };
        match rustix::fs::fallocate(&self.file, flags, offset, bytes) {
            Ok(()) => Ok(()),
            // Not every file system can.
            Err(rustix::io::Errno::OPNOTSUPP) => {
                let len = usize::try_from(bytes).map_err(io::Error::other)?;
                Self::pieces(len, |at, buffer| {
                    buffer.fill(0);
                    self.file.write_all_at(buffer, offset + at as u64)
                })
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn failed(what: &'static str, error: MediaError) -> impl FnOnce(io::Error) -> MediaError {
    move |source| {
        tracing::warn!(%source, "{what} of the device's file failed");
        error
    }
}

impl Media for FileMedia {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn may_block(&self) -> bool {
        true
    }

    fn write_cache(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, into: &Segments<'_>) -> Result<(), MediaError> {
        Self::pieces(into.len(), |at, buffer| {
            self.file.read_exact_at(buffer, offset + at as u64)?;
            into.write_at(at, buffer);
            Ok(())
        })
        .map_err(failed("a read", MediaError::Read))
    }

    fn write(&self, offset: u64, from: &Segments<'_>, durable: bool) -> Result<(), MediaError> {
        Self::pieces(from.len(), |at, buffer| {
            from.read_at(at, buffer);
            self.file.write_all_at(buffer, offset + at as u64)
        })
        .and_then(|()| if durable { self.file.sync_data() } else { Ok(()) })
        .map_err(failed("a write", MediaError::Write))
    }

    fn zero(&self, offset: u64, bytes: u64, deallocate: bool) -> Result<(), MediaError> {
        self.punch(offset, bytes, deallocate).map_err(failed("zeroing", MediaError::Write))
    }

    fn flush(&self) -> Result<(), MediaError> {
        self.file.sync_data().map_err(failed("a flush", MediaError::Write))
    }
}

/// A volatile write cache in front of `M`: a power cut loses what was not flushed, in part, as real caches do.
///
/// Of each block that was written since the last flush a cut keeps the durable content or any of the last few written
/// ones; of the block written last it may keep only some 512-byte sectors. It allocates and takes a lock: for tests.
pub struct Cached<M> {
    under: M,
    block: usize,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    /// Contents per block, oldest first.
    blocks: BTreeMap<u64, Vec<Box<[u8]>>>,
    last: Option<u64>,
}

/// Contents kept of one block.
const VERSIONS: usize = 4;
/// Blocks kept; a cache that is full writes back.
const CAPACITY: usize = 16_384;

impl<M: Media> Cached<M> {
    /// A cache of blocks of `block` bytes.
    pub fn new(under: M, block: usize) -> Self {
        Self { under, block, cache: Mutex::default() }
    }

    /// What it covers: the durable image.
    pub fn under(&self) -> &M {
        &self.under
    }

    /// Blocks that a power cut could change.
    pub fn unflushed(&self) -> usize {
        self.lock().blocks.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self, block: u64, content: &[u8]) -> Result<(), MediaError> {
        let mut content = content.to_vec();
        let mut segments = Segments::default();
        segments.push(super::memory::Span::of(&mut content));
        self.under.write(block * self.block as u64, &segments, true)
    }

    fn write_back(&self, cache: &mut Cache) -> Result<(), MediaError> {
        while let Some((block, contents)) = cache.blocks.pop_first() {
            if let Some(newest) = contents.last()
                && let Err(error) = self.store(block, newest)
            {
                cache.blocks.insert(block, contents);
                return Err(error);
            }
        }
        cache.last = None;
        self.under.flush()
    }

    fn keep(&self, cache: &mut Cache, block: u64, content: Box<[u8]>) -> Result<(), MediaError> {
        if cache.blocks.len() >= CAPACITY && !cache.blocks.contains_key(&block) {
            self.write_back(cache)?;
        }
        let contents = cache.blocks.entry(block).or_default();
        if contents.len() == VERSIONS {
            contents.remove(0);
        }
        contents.push(content);
        cache.last = Some(block);
        Ok(())
    }
}

impl<M: Media> Media for Cached<M> {
    fn bytes(&self) -> u64 {
        self.under.bytes()
    }

    fn may_block(&self) -> bool {
        self.under.may_block()
    }

    fn write_cache(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, into: &Segments<'_>) -> Result<(), MediaError> {
        let cache = self.lock();
        self.under.read(offset, into)?;
        let first = offset / self.block as u64;
        let count = (into.len() / self.block) as u64;
        for (&block, contents) in cache.blocks.range(first..first + count) {
            if let Some(newest) = contents.last() {
                #[expect(clippy::cast_possible_truncation, reason = "inside of the transfer")]
                into.write_at((block - first) as usize * self.block, newest);
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, from: &Segments<'_>, durable: bool) -> Result<(), MediaError> {
        let mut cache = self.lock();
        let first = offset / self.block as u64;
        for index in 0..from.len() / self.block {
            let mut content = vec![0; self.block].into_boxed_slice();
            from.read_at(index * self.block, &mut content);
            let block = first + index as u64;
            if durable {
                self.store(block, &content)?;
                cache.blocks.remove(&block);
            } else {
                self.keep(&mut cache, block, content)?;
            }
        }
        Ok(())
    }

    fn zero(&self, offset: u64, bytes: u64, _deallocate: bool) -> Result<(), MediaError> {
        let mut cache = self.lock();
        let first = offset / self.block as u64;
        for block in first..first + bytes / self.block as u64 {
            self.keep(&mut cache, block, vec![0; self.block].into_boxed_slice())?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), MediaError> {
        self.write_back(&mut self.lock())
    }

    fn power_cut(&self, seed: u64) {
        let mut dice = Dice(seed);
        let mut cache = self.lock();
        let last = cache.last.take();
        for (block, mut contents) in std::mem::take(&mut cache.blocks) {
            let torn = last == Some(block) && dice.below(2) == 0;
            if torn && contents.len() > 1 {
                // What tears is the newest content, over the one before.
                contents.drain(..contents.len() - 1);
            }
            let choice = dice.below(contents.len() as u64 + 1);
            let mut survivor = vec![0; self.block];
            let mut segments = Segments::default();
            segments.push(super::memory::Span::of(&mut survivor));
            let read = self.under.read(block * self.block as u64, &segments);
            drop(segments);
            if torn {
                let newest = contents.last().map(|newest| newest.chunks(512)).into_iter().flatten();
                for (to, from) in survivor.chunks_mut(512).zip(newest) {
                    if dice.below(2) == 0 {
                        to.copy_from_slice(from);
                    }
                }
            } else if let Some(kept) =
                usize::try_from(choice).ok().and_then(|i| contents.get(i.checked_sub(1)?))
            {
                survivor.copy_from_slice(kept);
            }
            if read.and_then(|()| self.store(block, &survivor)).is_err() {
                tracing::warn!(block, "the medium failed during the power cut");
            }
        }
        self.under.power_cut(seed);
    }
}

impl<M: Media + ?Sized> Media for std::sync::Arc<M> {
    fn bytes(&self) -> u64 {
        (**self).bytes()
    }

    fn may_block(&self) -> bool {
        (**self).may_block()
    }

    fn write_cache(&self) -> bool {
        (**self).write_cache()
    }

    fn read(&self, offset: u64, into: &Segments<'_>) -> Result<(), MediaError> {
        (**self).read(offset, into)
    }

    fn write(&self, offset: u64, from: &Segments<'_>, durable: bool) -> Result<(), MediaError> {
        (**self).write(offset, from, durable)
    }

    fn zero(&self, offset: u64, bytes: u64, deallocate: bool) -> Result<(), MediaError> {
        (**self).zero(offset, bytes, deallocate)
    }

    fn flush(&self) -> Result<(), MediaError> {
        (**self).flush()
    }

    fn power_cut(&self, seed: u64) {
        (**self).power_cut(seed);
    }
}
