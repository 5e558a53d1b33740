//! The words of a processing queue as atomics, whatever memory they lie in.
#![allow(unsafe_code)] // atomics inside a mapping; bounds are checked once, when the view is made

#[cfg(not(loom))]
use core::ptr::NonNull;
use std::sync::Arc;

#[cfg(not(loom))]
use crate::layout::{
    CQ_HEAD_OFFSET, CQ_WAIT_OFFSET, NEED_WAKE_OFFSET, QUEUE_MAGIC, QueueHeader, SQ_OFFSET, STATE_OFFSET,
    TAIL_OFFSET,
};
use crate::layout::{CompletionWords, Entries, SubmissionWords};
#[cfg(not(loom))]
use crate::shm::SharedMemory;
use crate::sync::{AtomicU32, AtomicU64};

/// 64-bit words of a submission entry.
const SQ_WORDS: usize = size_of::<SubmissionWords>() / 8;
/// 64-bit words of a completion entry.
const CQ_WORDS: usize = size_of::<CompletionWords>() / 8;

/// Gives the words of a processing queue. Both ends of the ring run over it: in a mapping, on the heap, under loom.
///
/// The other side may change every word at any time. Slots and word numbers beyond the end come round again; they
/// never lead outside.
pub trait QueueMemory {
    /// The doorbell: free-running count of submission entries written. The application writes it.
    fn tail(&self) -> &AtomicU32;
    /// Free-running count of completion entries consumed. The application writes it.
    fn cq_head(&self) -> &AtomicU32;
    /// 1 while the adapter sleeps. The adapter writes it.
    fn need_wake(&self) -> &AtomicU32;
    /// One of the `STATE_` constants of [`crate::layout`]. The adapter writes it.
    fn state(&self) -> &AtomicU32;
    /// 1 while the application sleeps; a futex. Both write it.
    fn cq_wait(&self) -> &AtomicU32;
    /// Word `i`, 0 to 7, of the submission entry in `slot`. The application writes it.
    fn sq_word(&self, slot: usize, i: usize) -> &AtomicU64;
    /// Word `i`, 0 to 3, of the completion entry in `slot`. The adapter writes it.
    fn cq_word(&self, slot: usize, i: usize) -> &AtomicU64;
    /// Brings the submission entry in `slot` nearer, where the machine can.
    fn prefetch(&self, _slot: usize) {}
}

macro_rules! forward {
    ($($to:ty),+) => {$(
        impl<M: QueueMemory> QueueMemory for $to {
            #[inline]
            fn tail(&self) -> &AtomicU32 { (**self).tail() }
            #[inline]
            fn cq_head(&self) -> &AtomicU32 { (**self).cq_head() }
            #[inline]
            fn need_wake(&self) -> &AtomicU32 { (**self).need_wake() }
            #[inline]
            fn state(&self) -> &AtomicU32 { (**self).state() }
            #[inline]
            fn cq_wait(&self) -> &AtomicU32 { (**self).cq_wait() }
            #[inline]
            fn sq_word(&self, slot: usize, i: usize) -> &AtomicU64 { (**self).sq_word(slot, i) }
            #[inline]
            fn cq_word(&self, slot: usize, i: usize) -> &AtomicU64 { (**self).cq_word(slot, i) }
            #[inline]
            fn prefetch(&self, slot: usize) { (**self).prefetch(slot); }
        }
    )+};
}

forward!(&M, Arc<M>);

/// A processing queue on the heap of one process: for models, simulations and fuzzing.
#[derive(Debug)]
pub struct LocalQueue {
    tail: AtomicU32,
    cq_head: AtomicU32,
    need_wake: AtomicU32,
    state: AtomicU32,
    cq_wait: AtomicU32,
    sq: Vec<[AtomicU64; SQ_WORDS]>,
    cq: Vec<[AtomicU64; CQ_WORDS]>,
}

impl LocalQueue {
    /// An empty queue, all zero as a fresh mapping is.
    pub fn new(entries: Entries) -> Self {
        fn zeroed<const N: usize>(entries: Entries) -> Vec<[AtomicU64; N]> {
            (0..entries.get()).map(|_| core::array::from_fn(|_| AtomicU64::new(0))).collect()
        }
        Self {
            tail: AtomicU32::new(0),
            cq_head: AtomicU32::new(0),
            need_wake: AtomicU32::new(0),
            state: AtomicU32::new(0),
            cq_wait: AtomicU32::new(0),
            sq: zeroed(entries),
            cq: zeroed(entries),
        }
    }
}

impl QueueMemory for LocalQueue {
    fn tail(&self) -> &AtomicU32 {
        &self.tail
    }
    fn cq_head(&self) -> &AtomicU32 {
        &self.cq_head
    }
    fn need_wake(&self) -> &AtomicU32 {
        &self.need_wake
    }
    fn state(&self) -> &AtomicU32 {
        &self.state
    }
    fn cq_wait(&self) -> &AtomicU32 {
        &self.cq_wait
    }
    fn sq_word(&self, slot: usize, i: usize) -> &AtomicU64 {
        &self.sq[slot & (self.sq.len() - 1)][i % SQ_WORDS]
    }
    fn cq_word(&self, slot: usize, i: usize) -> &AtomicU64 {
        &self.cq[slot & (self.cq.len() - 1)][i % CQ_WORDS]
    }
}

/// Why memory is not a processing queue.
#[cfg(not(loom))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ViewError {
    /// Too small for that many entries.
    #[error("{have} bytes of memory are too few for a queue of {entries} entries, which takes {want}")]
    TooSmall {
        /// Bytes there are.
        have: usize,
        /// Bytes there should be.
        want: usize,
        /// Entries in each direction.
        entries: u32,
    },
    /// The header does not begin with [`QUEUE_MAGIC`].
    #[error(
        "the memory begins with {0:#018x}, a queue with {QUEUE_MAGIC:#018x}: write the queue header first"
    )]
    Magic(u64),
    /// The header is of another version.
    #[error("the queue is laid out by version {0}, this side speaks {version}", version = crate::VERSION)]
    Version(u16),
    /// A reserved field is not zero.
    #[error("the reserved field of the queue header is {0:#x} and must be 0")]
    Reserved(u16),
    /// The header and the control message name different sizes.
    #[error("the queue header says {header} entries, the request to make the queue says {request}")]
    Entries {
        /// As the header says.
        header: u32,
        /// As was asked for.
        request: u32,
    },
}

/// A processing queue in shared memory.
#[cfg(not(loom))]
#[derive(Clone, Debug)]
pub struct QueueView {
    start: NonNull<u8>,
    entries: Entries,
    memory: Arc<SharedMemory>,
}

// SAFETY: the pointer leads into `memory`, which the view keeps alive, and is only ever used to make references to
// atomics.
#[cfg(not(loom))]
unsafe impl Send for QueueView {}
// SAFETY: as above.
#[cfg(not(loom))]
unsafe impl Sync for QueueView {}

#[cfg(not(loom))]
impl QueueView {
    /// A view of memory whose header is not looked at.
    ///
    /// # Errors
    /// [`ViewError::TooSmall`].
    pub fn new(memory: Arc<SharedMemory>, entries: Entries) -> Result<Self, ViewError> {
        let (have, want) = (memory.len(), entries.bytes());
        match NonNull::new(memory.start()) {
            Some(start) if have >= want => Ok(Self { start, entries, memory }),
            _ => Err(ViewError::TooSmall { have, want, entries: entries.get() }),
        }
    }

    /// The application's way: writes the header into fresh, zeroed memory.
    ///
    /// # Errors
    /// [`ViewError::TooSmall`].
    pub fn create(memory: Arc<SharedMemory>, entries: Entries) -> Result<Self, ViewError> {
        use core::sync::atomic::Ordering::Relaxed;
        let view = Self::new(memory, entries)?;
        let header =
            QueueHeader { magic: QUEUE_MAGIC, version: crate::VERSION, reserved: 0, entries: entries.get() };
        let words: [u64; 2] = zerocopy::transmute!(header);
        // Relaxed: the control message that offers the memory comes after these stores.
        view.word64(0).store(words[0], Relaxed);
        view.word64(8).store(words[1], Relaxed);
        Ok(view)
    }

    /// The adapter's way: reads the header once and checks all of it.
    ///
    /// # Errors
    /// Any [`ViewError`].
    pub fn open(memory: Arc<SharedMemory>, entries: Entries) -> Result<Self, ViewError> {
        use core::sync::atomic::Ordering::Relaxed;
        let view = Self::new(memory, entries)?;
        let words = [view.word64(0).load(Relaxed), view.word64(8).load(Relaxed)];
        let header: QueueHeader = zerocopy::transmute!(words);
        if header.magic != QUEUE_MAGIC {
            return Err(ViewError::Magic(header.magic));
        }
        if header.version != crate::VERSION {
            return Err(ViewError::Version(header.version));
        }
        if header.reserved != 0 {
            return Err(ViewError::Reserved(header.reserved));
        }
        if header.entries != entries.get() {
            return Err(ViewError::Entries { header: header.entries, request: entries.get() });
        }
        Ok(view)
    }

    /// Entries in each direction.
    pub fn entries(&self) -> Entries {
        self.entries
    }

    /// The memory beneath.
    pub fn memory(&self) -> &Arc<SharedMemory> {
        &self.memory
    }

    #[inline]
    fn word32(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: callers pass constants of the layout, multiples of 4 below SQ_OFFSET; `new` saw that the mapping is
        // larger, it starts on a page, and `memory` keeps it alive as long as `self`. All access to it is atomic.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().add(offset).cast()) }
    }

    #[inline]
    fn word64(&self, offset: usize) -> &AtomicU64 {
        debug_assert!(offset.is_multiple_of(8) && offset + 8 <= self.entries.bytes());
        // SAFETY: callers pass multiples of 8 below `entries.bytes()`, having reduced slot and word number to what
        // there is; the rest as above.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().add(offset).cast()) }
    }

    /// The slot, brought back into the queue.
    #[inline]
    fn reduce(&self, slot: usize) -> usize {
        slot & (self.entries.get() as usize - 1)
    }
}

#[cfg(not(loom))]
impl QueueMemory for QueueView {
    #[inline]
    fn tail(&self) -> &AtomicU32 {
        self.word32(TAIL_OFFSET)
    }
    #[inline]
    fn cq_head(&self) -> &AtomicU32 {
        self.word32(CQ_HEAD_OFFSET)
    }
    #[inline]
    fn need_wake(&self) -> &AtomicU32 {
        self.word32(NEED_WAKE_OFFSET)
    }
    #[inline]
    fn state(&self) -> &AtomicU32 {
        self.word32(STATE_OFFSET)
    }
    #[inline]
    fn cq_wait(&self) -> &AtomicU32 {
        self.word32(CQ_WAIT_OFFSET)
    }
    #[inline]
    fn sq_word(&self, slot: usize, i: usize) -> &AtomicU64 {
        self.word64(SQ_OFFSET + (self.reduce(slot) * SQ_WORDS + i % SQ_WORDS) * 8)
    }
    #[inline]
    fn cq_word(&self, slot: usize, i: usize) -> &AtomicU64 {
        self.word64(self.entries.cq_offset() + (self.reduce(slot) * CQ_WORDS + i % CQ_WORDS) * 8)
    }
    #[inline]
    fn prefetch(&self, slot: usize) {
        #[cfg(target_arch = "x86_64")]
        {
            use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let word = self.sq_word(slot, 0).as_ptr().cast::<i8>();
            // SAFETY: a prefetch is a hint without any effect on memory, and the address is inside the mapping.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(word) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = slot;
    }
}
