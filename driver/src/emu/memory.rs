//! Memory that others read and write at any time, and how to copy it.
//!
//! What a controller moves lies in memory shared with other threads and processes, so no Rust reference to it may
//! exist. A [`Span`] names such bytes; they are only ever touched by inline assembly, which is opaque to the compiler,
//! or by atomics.
// Unsafe: raw pointers to shared memory are the subject of this module; everything it exports but one constructor is safe.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};

use crate::hal::PinnedMemory;

/// Bytes that are mapped for `'a` and that anyone may change meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    start: *mut u8,
    len: usize,
    life: PhantomData<&'a ()>,
}

// SAFETY: a span is an address of memory that is valid for `'a` on every thread, and is only touched as racing memory.
unsafe impl Send for Span<'_> {}
// SAFETY: as above.
unsafe impl Sync for Span<'_> {}

impl<'a> Span<'a> {
    /// Names `len` bytes at `start`.
    ///
    /// # Safety
    /// They are mapped readable and writable during `'a`, and no reference to them is used meanwhile.
    pub(super) unsafe fn from_raw(start: *mut u8, len: usize) -> Self {
        Self { start, len, life: PhantomData }
    }

    /// Names a private buffer.
    pub fn of(bytes: &'a mut [u8]) -> Self {
        Self { start: bytes.as_mut_ptr(), len: bytes.len(), life: PhantomData }
    }

    /// Bytes.
    #[inline]
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// `len` of its bytes from `offset`, if it has them.
    #[inline]
    pub fn part(self, offset: usize, len: usize) -> Option<Self> {
        (offset.checked_add(len)? <= self.len).then(|| Self {
            start: self.start.wrapping_add(offset),
            len,
            life: PhantomData,
        })
    }

    /// This and `next` as one, if `next` begins where this ends.
    #[inline]
    pub fn join(self, next: Self) -> Option<Self> {
        (self.start.wrapping_add(self.len) == next.start).then(|| Self { len: self.len + next.len, ..self })
    }

    /// Copies all of `source` here. Panics if the lengths differ.
    #[inline]
    pub fn copy_from(self, source: Span<'_>) {
        assert_eq!(self.len, source.len);
        // SAFETY: both are mapped for at least this call and of this length.
        unsafe { copy(self.start, source.start, self.len) }
    }

    /// Copies `source` here. Panics if the lengths differ.
    #[inline]
    pub fn write(self, source: &[u8]) {
        assert_eq!(self.len, source.len());
        // SAFETY: this is mapped for at least the call; `source` is only read.
        unsafe { copy(self.start, source.as_ptr(), self.len) }
    }

    /// Copies all of it to `into`. Panics if the lengths differ.
    #[inline]
    pub fn read(self, into: &mut [u8]) {
        assert_eq!(self.len, into.len());
        // SAFETY: this is mapped for at least the call; `into` is exclusively borrowed.
        unsafe { copy(into.as_mut_ptr(), self.start, self.len) }
    }

    /// Asks the processor to have it at hand soon.
    #[inline]
    pub fn prefetch(self) {
        const LINE: usize = 64;
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        for at in (0..self.len).step_by(LINE) {
            // SAFETY: a hint, which does nothing but to the cache, whatever the address is.
            unsafe {
                std::arch::asm!(
                    "prefetcht0 [{}]", in(reg) self.start.wrapping_add(at),
                    options(nostack, preserves_flags, readonly)
                );
            }
        }
    }

    /// Makes all of it zero.
    #[inline]
    pub fn zero(self) {
        // SAFETY: this is mapped for at least the call.
        unsafe { zero(self.start, self.len) }
    }

    /// Its first `N` 64-bit words, each read once; `None` if it is shorter or not aligned for them.
    #[inline]
    pub fn load<const N: usize>(self) -> Option<[u64; N]> {
        let words = self.words::<N>()?;
        // SAFETY: `words` checked length and alignment; the memory is mapped and only touched atomically.
        Some(std::array::from_fn(|i| unsafe { (*words.add(i)).load(Ordering::Relaxed) }))
    }

    /// Stores two 64-bit words, the second after the first is visible; `false` if it is shorter or not aligned for them.
    #[inline]
    pub fn publish(self, words: [u64; 2]) -> bool {
        let Some(at) = self.words::<2>() else { return false };
        // SAFETY: as in `load`.
        unsafe {
            (*at).store(words[0], Ordering::Relaxed);
            (*at.add(1)).store(words[1], Ordering::Release);
        }
        true
    }

    /// Its first 32-bit word, read once; `None` if it is shorter or not aligned for it.
    #[inline]
    pub fn load32(self) -> Option<u32> {
        // SAFETY: `word32` checked length and alignment; the memory is mapped and only touched atomically.
        self.word32().map(|word| unsafe { (*word).load(Ordering::Relaxed) })
    }

    /// Stores a 32-bit word; `false` if it is shorter or not aligned for it.
    #[inline]
    pub fn store32(self, value: u32) -> bool {
        // SAFETY: as in `load32`.
        self.word32().map(|word| unsafe { (*word).store(value, Ordering::Relaxed) }).is_some()
    }

    #[inline]
    fn word32(self) -> Option<*const AtomicU32> {
        let at = self.start.cast::<AtomicU32>();
        (self.len >= 4 && at.is_aligned()).then_some(at.cast_const())
    }

    #[inline]
    fn words<const N: usize>(self) -> Option<*const AtomicU64> {
        let at = self.start.cast::<AtomicU64>();
        (self.len >= N * 8 && at.is_aligned()).then_some(at.cast_const())
    }
}

/// Copies as memory that others may change during the copy; the ranges do not overlap, or the bytes mean nothing.
///
/// # Safety
/// Both ranges are mapped during the call, with the rights used.
#[inline]
unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
    // Words, which are faster than bytes from memory that is in no cache, and the bytes that are left.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: the caller's promise; the direction flag is clear by the ABI.
    unsafe {
        let (mut to, mut from) = (to, from);
        std::arch::asm!(
            "rep movsq",
            inout("rcx") len / 8 => _, inout("rdi") to, inout("rsi") from,
            options(nostack, preserves_flags)
        );
        if !len.is_multiple_of(8) {
            std::arch::asm!(
                "rep movsb",
                inout("rcx") len % 8 => _, inout("rdi") to, inout("rsi") from,
                options(nostack, preserves_flags)
            );
        }
        _ = (to, from);
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    // SAFETY: the caller's promise; words are used only where both ends are aligned for them.
    unsafe {
        use std::sync::atomic::AtomicU8;
        let mut done = 0;
        if to.addr() % 8 == 0 && from.addr() % 8 == 0 {
            while len - done >= 8 {
                let word = (*from.add(done).cast::<AtomicU64>()).load(Ordering::Relaxed);
                (*to.add(done).cast::<AtomicU64>()).store(word, Ordering::Relaxed);
                done += 8;
            }
        }
        while done < len {
            let byte = (*from.add(done).cast::<AtomicU8>()).load(Ordering::Relaxed);
            (*to.add(done).cast::<AtomicU8>()).store(byte, Ordering::Relaxed);
            done += 1;
        }
    }
}

/// Zeroes memory that others may use during the call.
///
/// # Safety
/// The range is mapped writable during the call.
#[inline]
unsafe fn zero(to: *mut u8, len: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: the caller's promise; the direction flag is clear by the ABI.
    unsafe {
        std::arch::asm!(
            "rep stosb",
            inout("rcx") len => _, inout("rdi") to => _, in("al") 0u8,
            options(nostack, preserves_flags)
        );
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    for at in 0..len {
        // SAFETY: the caller's promise.
        unsafe { (*to.add(at).cast::<std::sync::atomic::AtomicU8>()).store(0, Ordering::Relaxed) }
    }
}

/// The bytes of one transfer, in order. The usual one is a single span and costs no allocation.
#[derive(Debug, Default)]
pub struct Segments<'a> {
    last: Option<Span<'a>>,
    before: Vec<Span<'a>>,
    len: usize,
}

impl<'a> Segments<'a> {
    /// Appends `span`, joined to the last where they touch.
    #[inline]
    pub fn push(&mut self, span: Span<'a>) {
        self.len += span.len();
        self.last = match self.last {
            None => Some(span),
            Some(last) => Some(last.join(span).unwrap_or_else(|| {
                self.before.push(last);
                span
            })),
        };
    }

    /// Bytes of all.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The spans, in order.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = Span<'a>> {
        self.before.iter().copied().chain(self.last)
    }

    /// Copies bytes from `at` on to `into`; `false`, with nothing certain copied, if there are not enough.
    pub fn read_at(&self, at: usize, into: &mut [u8]) -> bool {
        let mut done = 0;
        self.pieces(at, into.len(), |piece| {
            piece.read(&mut into[done..done + piece.len()]);
            done += piece.len();
        })
    }

    /// Copies `from` over the bytes from `at` on; `false`, with nothing certain copied, if there are not enough.
    pub fn write_at(&self, at: usize, from: &[u8]) -> bool {
        let mut done = 0;
        self.pieces(at, from.len(), |piece| {
            piece.write(&from[done..done + piece.len()]);
            done += piece.len();
        })
    }

    fn pieces(&self, mut at: usize, mut len: usize, mut each: impl FnMut(Span<'a>)) -> bool {
        for span in self.iter() {
            if at >= span.len() {
                at -= span.len();
                continue;
            }
            let take = len.min(span.len() - at);
            if let Some(piece) = span.part(at, take) {
                each(piece);
            }
            len -= take;
            at = 0;
            if len == 0 {
                break;
            }
        }
        len == 0
    }
}

/// Private memory of the process, zero and not there until it is touched.
#[derive(Debug)]
pub struct Pages {
    map: MmapRaw,
}

impl Pages {
    /// `len` bytes, page-aligned, that cost nothing before they are used. Errors are the kernel's.
    pub(super) fn sparse(len: usize) -> std::io::Result<Self> {
        let map = MmapOptions::new().len(len).no_reserve_swap().map_anon()?;
        Ok(Self { map: map.into() })
    }

    /// `len` bytes, a multiple of 4096, that are there: fit to be mapped for a device. Errors are the kernel's.
    pub fn populated(len: usize) -> std::io::Result<Arc<Self>> {
        if len == 0 || !len.is_multiple_of(4096) {
            return Err(std::io::Error::from(std::io::ErrorKind::InvalidInput));
        }
        let map = MmapRaw::from(MmapOptions::new().len(len).populate().map_anon()?);
        // A child must not share them: copy-on-write would part this process from its device.
        map.advise(memmap2::Advice::DontFork)?;
        Ok(Arc::new(Self { map }))
    }

    /// Asks for huge pages; without them it is only slower.
    pub(super) fn prefer_huge(&self) {
        if let Err(error) = self.map.advise(memmap2::Advice::HugePage) {
            tracing::debug!(%error, "no huge pages");
        }
    }

    /// All of it.
    #[inline]
    pub fn span(&self) -> Span<'_> {
        // SAFETY: the mapping lives as long as `self`, and no reference to it is ever made.
        unsafe { Span::from_raw(self.map.as_mut_ptr(), self.map.len()) }
    }
}

// SAFETY: the mapping is anonymous and stays in place until it is dropped. Of what this module makes only
// `Pages::populated` hands out an `Arc`, which is what mapping takes.
unsafe impl PinnedMemory for Pages {
    fn start(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    fn len(&self) -> usize {
        self.map.len()
    }
}

/// A long array of atomic words, zero and not there until touched.
#[derive(Debug)]
pub(super) struct Words<T> {
    pages: Pages,
    of: PhantomData<T>,
}

/// An atomic that [`Words`] may hold: valid when all bytes are zero.
///
/// # Safety
/// It is an atomic integer.
pub(super) unsafe trait Word {}
// SAFETY: it is.
unsafe impl Word for AtomicU32 {}
// SAFETY: it is.
unsafe impl Word for AtomicU64 {}

impl<T: Word> Words<T> {
    /// `count` words. Errors are the kernel's.
    pub(super) fn new(count: usize) -> std::io::Result<Self> {
        Ok(Self { pages: Pages::sparse(count * size_of::<T>())?, of: PhantomData })
    }

    /// The word at `index`. Panics past the end.
    #[inline]
    pub(super) fn at(&self, index: usize) -> &T {
        assert!(index < self.pages.map.len() / size_of::<T>());
        // SAFETY: in bounds, page-aligned memory, and an atomic integer may be any bytes.
        unsafe { &*self.pages.map.as_mut_ptr().cast::<T>().add(index) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_every_length_and_offset() {
        let source: Vec<u8> = (0..200u8).collect();
        for offset in 0..17 {
            for len in 0..100 {
                let mut target = vec![0xeeu8; 200];
                let mut from = source.clone();
                let span = Span::of(&mut target).part(offset, len).unwrap();
                span.copy_from(Span::of(&mut from).part(offset + 3, len).unwrap());
                assert_eq!(target[offset..offset + len], source[offset + 3..offset + 3 + len]);
                assert!(target[..offset].iter().chain(&target[offset + len..]).all(|&b| b == 0xee));
                Span::of(&mut target).part(offset, len).unwrap().zero();
                assert!(target[offset..offset + len].iter().all(|&b| b == 0));
                assert!(target[..offset].iter().chain(&target[offset + len..]).all(|&b| b == 0xee));
            }
        }
    }

    #[test]
    fn parts_stay_inside() {
        let mut bytes = [0u8; 16];
        let span = Span::of(&mut bytes);
        assert!(span.part(16, 0).is_some());
        assert!(span.part(16, 1).is_none());
        assert!(span.part(usize::MAX, 2).is_none());
        assert!(span.part(8, 8).unwrap().load::<1>().is_some());
        assert!(span.part(8, 7).unwrap().load::<1>().is_none());
    }

    #[test]
    fn segments_join_and_address_across_pieces() {
        let mut one = [1u8, 2, 3, 4];
        let mut two = [5u8, 6, 7];
        let first = Span::of(&mut one);
        let mut segments = Segments::default();
        segments.push(first.part(0, 2).unwrap());
        segments.push(first.part(2, 2).unwrap());
        segments.push(Span::of(&mut two));
        assert_eq!((segments.iter().count(), segments.len()), (2, 7));
        let mut out = [0; 4];
        assert!(segments.read_at(2, &mut out));
        assert_eq!(out, [3, 4, 5, 6]);
        assert!(segments.write_at(3, &[9, 9]));
        assert!(!segments.read_at(5, &mut out));
        assert_eq!((one, two), ([1, 2, 3, 9], [9, 6, 7]));
    }

    #[test]
    fn pages_begin_zero() {
        let pages = Pages::sparse(1 << 40).unwrap();
        let mut byte = [7];
        pages.span().part((1 << 40) - 1, 1).unwrap().read(&mut byte);
        assert_eq!(byte, [0]);
        assert!(Pages::populated(4095).is_err());
        assert_eq!(Pages::populated(8192).unwrap().span().len(), 8192);
    }
}
