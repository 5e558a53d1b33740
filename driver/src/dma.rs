//! Memory that a driver owns and its device sees: queues, lists, data structures. Only ever seen as atomics.
#![allow(unsafe_code)] // atomics at addresses inside a mapping; every access is bounds-checked here

use std::any::Any;
use std::io;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::{Advice, MmapOptions, MmapRaw};

use crate::hal::{DmaAccess, DmaError, Iova, Mapper, Mapping, PinnedMemory};

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// What devices that do not stop may still write to.
static KEPT: Mutex<Vec<Box<dyn Any + Send>>> = Mutex::new(Vec::new());

/// Keeps memory that a device may still use for as long as the process lives, as nothing proves that it stopped. It stays
/// within reach, so that it is not taken for memory that was lost.
pub(crate) fn keep(memory: impl Any + Send) {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(memory));
}

/// Anonymous pages, zero and populated. A mapper that needs them pinned pins them; locking them as well would count
/// them twice against the memlock limit.
pub struct Pages(MmapRaw);

impl Pages {
    /// At least `bytes` bytes.
    ///
    /// # Errors
    /// The kernel's, when there is no memory.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let len = bytes.max(1).checked_next_multiple_of(PAGE).ok_or(io::ErrorKind::InvalidInput)?;
        let map = MmapRaw::from(MmapOptions::new().len(len).populate().map_anon()?);
        // A child must not share them: copy-on-write would part this process from its device.
        map.advise(Advice::DontFork)?;
        Ok(Self(map))
    }
}

// SAFETY: an anonymous private mapping, page-aligned, populated and writable, that stays where it is until dropped.
// Everything that this module does with it is an atomic access.
unsafe impl PinnedMemory for Pages {
    fn start(&self) -> *mut u8 {
        self.0.as_mut_ptr()
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// Zeroed memory that the device sees too. Drop it only when the device can no longer use it.
///
/// Offsets are the driver's own; one outside, or not a multiple of the access, panics.
pub struct DmaBuffer {
    // Before the pages: unmapped first.
    _mapping: Box<dyn Mapping>,
    pages: Arc<Pages>,
    /// Of the mapping, at hand.
    iova: u64,
}

impl DmaBuffer {
    /// At least `bytes` bytes, in whole pages, mapped for the device.
    ///
    /// # Errors
    /// What the mapper says; the kernel's when there is no memory.
    pub fn new(mapper: &dyn Mapper, bytes: usize, access: DmaAccess) -> Result<Self, DmaError> {
        let pages = Pages::new(bytes);
        let pages =
            Arc::new(pages.map_err(|source| DmaError::Os { what: "allocating memory for DMA", source })?);
        let mapping = mapper.map(pages.clone(), access)?;
        Ok(Self { iova: mapping.iova().0, _mapping: mapping, pages })
    }

    /// Where the device sees the byte at `offset`.
    #[inline]
    pub fn iova(&self, offset: usize) -> Iova {
        assert!(offset < self.len(), "offset {offset} of {}", self.len());
        Iova(self.iova + offset as u64)
    }

    /// Bytes, a multiple of [`PAGE`].
    #[inline]
    pub fn len(&self) -> usize {
        self.pages.0.len()
    }

    /// The address of `bytes` bytes at `offset`.
    #[inline]
    fn at(&self, offset: usize, bytes: usize, align: usize) -> *mut u8 {
        let len = self.len();
        assert!(
            offset <= len && bytes <= len - offset && offset & (align - 1) == 0,
            "{bytes} bytes at {offset} of {len}"
        );
        self.pages.0.as_mut_ptr().wrapping_add(offset)
    }

    #[inline]
    fn word32(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: in bounds and aligned (pages are), mapped as long as `self` lives, and only ever seen as atomics.
        unsafe { AtomicU32::from_ptr(self.at(offset, 4, 4).cast()) }
    }

    #[inline]
    fn word64(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as in `word32`.
        unsafe { AtomicU64::from_ptr(self.at(offset, 8, 8).cast()) }
    }

    #[inline]
    fn byte(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: as in `word32`.
        unsafe { AtomicU8::from_ptr(self.at(offset, 1, 1)) }
    }

    /// Reads 32 bits. With `Acquire`, what the device wrote before them is seen by later reads.
    #[inline]
    pub fn load32(&self, offset: usize, order: Ordering) -> u32 {
        self.word32(offset).load(order)
    }

    /// Reads 64 bits, in one access.
    #[inline]
    pub fn load64(&self, offset: usize, order: Ordering) -> u64 {
        self.word64(offset).load(order)
    }

    /// Writes 16 bits. A register write afterwards makes them visible to the device.
    #[inline]
    pub fn store16(&self, offset: usize, value: u16) {
        // SAFETY: as in `word32`.
        unsafe { AtomicU16::from_ptr(self.at(offset, 2, 2).cast()) }.store(value, Ordering::Relaxed);
    }

    /// Reads a byte. With `Acquire`, what the device wrote before it is seen by later reads.
    #[inline]
    pub fn load8(&self, offset: usize, order: Ordering) -> u8 {
        self.byte(offset).load(order)
    }

    /// Writes a byte.
    #[inline]
    pub fn store8(&self, offset: usize, value: u8) {
        self.byte(offset).store(value, Ordering::Relaxed);
    }

    /// Writes 32 bits. A register write afterwards makes them visible to the device.
    #[inline]
    pub fn store32(&self, offset: usize, value: u32) {
        self.word32(offset).store(value, Ordering::Relaxed);
    }

    /// Writes 64 bits, in one access.
    #[inline]
    pub fn store64(&self, offset: usize, value: u64) {
        self.word64(offset).store(value, Ordering::Relaxed);
    }

    /// Reads `N` words from a multiple of 8, each once.
    #[inline]
    pub fn read<const N: usize>(&self, offset: usize) -> [u64; N] {
        std::array::from_fn(|i| self.load64(offset + 8 * i, Ordering::Relaxed))
    }

    /// Writes `N` words to a multiple of 8.
    #[inline]
    pub fn write<const N: usize>(&self, offset: usize, words: [u64; N]) {
        let first = self.at(offset, 8 * N, 8).cast::<u64>();
        for (i, word) in words.into_iter().enumerate() {
            // SAFETY: all `N` words are in bounds and aligned; else as in `word32`.
            unsafe { AtomicU64::from_ptr(first.add(i)) }.store(word, Ordering::Relaxed);
        }
    }

    /// Copies `bytes` to `offset`.
    pub fn copy_in(&self, offset: usize, bytes: &[u8]) {
        self.at(offset, bytes.len(), 1);
        let (head, rest) = bytes.split_at(to_word(offset, bytes.len()));
        let (words, tail) = rest.as_chunks::<8>();
        let middle = offset + head.len();
        let end = middle + 8 * words.len();
        for (at, word) in (middle..).step_by(8).zip(words) {
            self.store64(at, u64::from_ne_bytes(*word));
        }
        for (at, byte) in (offset..).zip(head).chain((end..).zip(tail)) {
            self.byte(at).store(*byte, Ordering::Relaxed);
        }
    }

    /// Copies from `offset` to `bytes`, each byte once.
    pub fn copy_out(&self, offset: usize, bytes: &mut [u8]) {
        self.at(offset, bytes.len(), 1);
        let (head, rest) = bytes.split_at_mut(to_word(offset, bytes.len()));
        let (words, tail) = rest.as_chunks_mut::<8>();
        let middle = offset + head.len();
        let end = middle + 8 * words.len();
        for (at, word) in (middle..).step_by(8).zip(words) {
            *word = self.load64(at, Ordering::Relaxed).to_ne_bytes();
        }
        for (at, byte) in (offset..).zip(head).chain((end..).zip(tail)) {
            *byte = self.byte(at).load(Ordering::Relaxed);
        }
    }

    /// Makes all of it zero.
    pub fn zero(&self) {
        for offset in (0..self.len()).step_by(8) {
            self.store64(offset, 0);
        }
    }
}

/// How many of `len` bytes from `offset` lie before the first whole word.
fn to_word(offset: usize, len: usize) -> usize {
    (offset.wrapping_neg() % 8).min(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::null::NullMapper;

    fn buffer(bytes: usize) -> DmaBuffer {
        DmaBuffer::new(&NullMapper::default(), bytes, DmaAccess::ReadWrite).unwrap()
    }

    #[test]
    fn whole_zeroed_pages_mapped_until_dropped() {
        let mapper = NullMapper::default();
        let buffer = DmaBuffer::new(&mapper, PAGE + 1, DmaAccess::Read).unwrap();
        assert_eq!((buffer.len(), mapper.mappings()), (2 * PAGE, 1));
        assert!((0..buffer.len()).step_by(8).all(|at| buffer.load64(at, Ordering::Relaxed) == 0));
        assert_eq!(buffer.iova(PAGE).0 - buffer.iova(0).0, PAGE as u64);
        drop(buffer);
        assert_eq!(mapper.mappings(), 0);
    }

    #[test]
    fn words_and_bytes_are_little_endian_and_meet() {
        let buffer = buffer(64);
        buffer.write(8, [0x0807_0605_0403_0201, 0x1817_1615_1413_1211]);
        assert_eq!(buffer.load32(12, Ordering::Acquire), 0x0807_0605);
        let mut bytes = [0; 5];
        buffer.copy_out(11, &mut bytes);
        assert_eq!(bytes, [4, 5, 6, 7, 8]);
        buffer.copy_in(15, &[0xff, 0xfe]);
        assert_eq!(buffer.read::<2>(8), [0xff07_0605_0403_0201, 0x1817_1615_1413_12fe]);
        buffer.store32(8, 9);
        assert_eq!(buffer.load64(8, Ordering::Relaxed), 0xff07_0605_0000_0009);
        buffer.zero();
        assert_eq!(buffer.read::<4>(0), [0; 4]);
        let source: Vec<u8> = (1..=64).collect();
        for (offset, len) in (0..16).flat_map(|offset| (0..40).map(move |len| (offset, len))) {
            buffer.copy_in(offset, &source[..len]);
            let mut back = [0; 64];
            buffer.copy_out(offset, &mut back[..len]);
            assert_eq!(back[..len], source[..len], "{len} bytes at {offset}");
            let mut around = [1; 64];
            buffer.copy_out(0, &mut around);
            let outside = around[..offset].iter().chain(&around[offset + len..]);
            assert!(outside.into_iter().all(|byte| *byte == 0), "{len} bytes at {offset}");
            buffer.zero();
        }
    }

    #[test]
    fn accesses_outside_or_unaligned_panic() {
        let cases: [fn(&DmaBuffer); 9] = [
            |b| _ = b.load64(PAGE, Ordering::Relaxed),
            |b| _ = b.load64(PAGE - 4, Ordering::Relaxed),
            |b| _ = b.load32(2, Ordering::Relaxed),
            |b| b.store32(usize::MAX - 3, 0),
            |b| b.write(PAGE - 8, [0; 2]),
            |b| _ = b.read::<2>(PAGE - 8),
            |b| b.copy_in(PAGE - 1, &[0; 2]),
            |b| b.copy_out(usize::MAX, &mut [0; 2]),
            |b| _ = b.iova(PAGE),
        ];
        let buffer = buffer(PAGE);
        for (i, case) in cases.iter().enumerate() {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(&buffer)));
            assert!(outcome.is_err(), "case {i}");
        }
    }
}
