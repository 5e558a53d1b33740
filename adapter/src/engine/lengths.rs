//! How long opened files are: words that all engines of a device share, by the number that the tables know a file by
//! (its *context*). Whoever opened a file, and however often, it has one length.
//!
//! The tables say which blocks a file has; how many of its bytes count is said here, so that a write may move the end of a
//! file without anybody's management. Who only reads a file, or writes inside of it, writes nothing here.
//!
//! Appends reserve their place first ([`Lengths::reserve`]) and *land* when the device is done ([`Lengths::land`]), in the order
//! of their places: so the length never goes past bytes that are still on their way, and of two appends that were
//! answered none is lost in the other.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

/// See the module.
#[derive(Debug)]
pub struct Lengths(Box<[Length]>);

/// On lines of its own: it is written while the next file is read.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Length {
    /// Bytes that can be read.
    length: AtomicU64,
    /// Where the next append goes: never before the length.
    tail: AtomicU64,
    /// Something was written since the file system last heard of it.
    written: AtomicBool,
    /// No write may move it.
    fixed: AtomicBool,
}

impl Lengths {
    /// For files with numbers below `files`.
    pub fn new(files: u32) -> Self {
        Self((0..files).map(|_| Length::default()).collect())
    }

    /// How many files there may be.
    pub fn capacity(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }

    fn of(&self, file: u32) -> &Length {
        &self.0[file as usize]
    }

    /// Bytes of the file that can be read. Acquire: whoever saw a length reads what was written before it was there.
    #[inline]
    pub fn get(&self, file: u32) -> u64 {
        self.of(file).length.load(Acquire)
    }

    /// A file that nobody had open is open. If its length is `fixed`, no write goes beyond it.
    pub fn open(&self, file: u32, length: u64, fixed: bool) {
        self.of(file).fixed.store(fixed, Relaxed);
        self.set(file, length);
    }

    /// Whether no write goes beyond the length.
    pub(super) fn is_fixed(&self, file: u32) -> bool {
        self.of(file).fixed.load(Relaxed)
    }

    /// Sets the length, whatever it was. No I/O of the file runs.
    pub fn set(&self, file: u32, length: u64) {
        self.of(file).tail.store(length, Relaxed);
        self.of(file).length.store(length, Release);
    }

    /// Whether all from the start to `end` can be read, or, by a write that is known of, written.
    #[inline]
    pub(super) fn covers(&self, file: u32, end: u64, writes: bool) -> bool {
        let Length { length, written, .. } = self.of(file);
        end <= length.load(Acquire) && (!writes || written.load(Relaxed))
    }

    /// It is about to be written. Only the first one after somebody asked writes this down.
    pub(crate) fn note_write(&self, file: u32) {
        if !self.of(file).written.load(Relaxed) {
            self.of(file).written.store(true, Relaxed);
        }
    }

    /// Whether it was written since the last call.
    pub fn take_written(&self, file: u32) -> bool {
        self.of(file).written.swap(false, Relaxed)
    }

    /// A write up to `end` has ended well: the file is at least as long.
    pub fn extend(&self, file: u32, end: u64) {
        // The tail first: an append that comes now goes behind.
        self.of(file).tail.fetch_max(end, Relaxed);
        self.of(file).length.fetch_max(end, Release);
    }

    /// Where an append would go now.
    pub(super) fn tail(&self, file: u32) -> u64 {
        self.of(file).tail.load(Relaxed)
    }

    /// Sets what is from `at` to `end` aside for an append, if the tail is still there. Whoever gets it must land it.
    pub(super) fn reserve(&self, file: u32, at: u64, end: u64) -> bool {
        self.of(file).tail.compare_exchange(at, end, Relaxed, Relaxed).is_ok()
    }

    /// Gives a place back of which nothing was used, if nobody has one behind it.
    pub(super) fn take_back(&self, file: u32, at: u64, end: u64) -> bool {
        self.of(file).tail.compare_exchange(end, at, Relaxed, Relaxed).is_ok()
    }

    /// An append has ended, well or not: the file ends behind it, if everything before it has landed. False: not yet; to be
    /// asked again. What of a failed append was not written reads as zero.
    pub(super) fn land(&self, file: u32, at: u64, end: u64) -> bool {
        let length = &self.of(file).length;
        let landed = length.load(Acquire) >= at;
        if landed {
            length.fetch_max(end, Release);
        }
        landed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appends_land_in_the_order_of_their_places() {
        let lengths = Lengths::new(2);
        lengths.set(1, 10);
        assert_eq!((lengths.get(1), lengths.tail(1), lengths.get(0)), (10, 10, 0));
        assert!(lengths.reserve(1, 10, 15));
        assert!(!lengths.reserve(1, 10, 12), "that place is taken");
        assert!(lengths.reserve(1, 15, 18));
        assert!(!lengths.land(1, 15, 18), "what is before it is still on its way");
        assert_eq!(lengths.get(1), 10);
        assert!(lengths.land(1, 10, 15));
        assert_eq!(lengths.get(1), 15);
        assert!(lengths.land(1, 15, 18));
        assert_eq!((lengths.get(1), lengths.tail(1)), (18, 18));
    }

    #[test]
    fn a_write_behind_the_end_moves_it_and_appends_go_behind_that() {
        let lengths = Lengths::new(1);
        lengths.extend(0, 4096);
        assert_eq!((lengths.get(0), lengths.tail(0)), (4096, 4096));
        lengths.extend(0, 100);
        assert_eq!(lengths.get(0), 4096, "a length only grows by writes");
        assert!(lengths.reserve(0, 4096, 4100));
        lengths.extend(0, 8192);
        assert_eq!(lengths.tail(0), 8192);
        assert!(lengths.land(0, 4096, 4100), "the end is behind it already");
        assert_eq!(lengths.get(0), 8192);
        lengths.set(0, 5);
        assert_eq!((lengths.get(0), lengths.tail(0)), (5, 5));
    }

    #[test]
    fn appends_of_many_threads_have_places_of_their_own_without_a_gap() {
        const EACH: u64 = 5_000;
        let lengths = &Lengths::new(1);
        let append = move |bytes: u64| {
            let mut places = Vec::new();
            for _ in 0..EACH {
                let at = loop {
                    let at = lengths.tail(0);
                    if lengths.reserve(0, at, at + bytes) {
                        break at;
                    }
                };
                while !lengths.land(0, at, at + bytes) {
                    std::thread::yield_now();
                }
                assert!(lengths.get(0) >= at + bytes);
                places.push((at, bytes));
            }
            places
        };
        let mut places = std::thread::scope(|scope| {
            let threads = [1, 7, 100].map(|bytes| scope.spawn(move || append(bytes)));
            threads.map(|thread| thread.join().unwrap()).concat()
        });
        places.sort_unstable();
        let end = places.iter().fold(0, |end, &(at, bytes)| {
            assert_eq!(at, end);
            at + bytes
        });
        assert_eq!((end, lengths.get(0)), (EACH * 108, EACH * 108));
    }
}
