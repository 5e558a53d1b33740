//! Requests without the safety of types: for those who write their own client, for tests, and to show what the adapter
//! refuses.
//!
//! Nothing here can hurt this process or another: the adapter checks everything, and an entry can only name memory that
//! this session registered. But nothing here keeps a [`crate::Buffer`] out of reach while the device writes it either, so
//! look at such memory after the completion has come.

use std::fmt;
use std::time::{Duration, Instant};

use wire::layout::{CompletionEntry, SubmissionEntry};
use wire::view::QueueView;

use crate::channel::Channel;
use crate::error::Error;
use crate::session::Session;

/// A queue into which any bytes can be written.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let adapter = adapter::Embedded::open("emu:16M")?;
/// # let session = adapter.session()?;
/// use portcullis::{Status, raw::RawQueue, wire::layout::SubmissionEntry};
/// use std::time::Duration;
/// let mut queue = RawQueue::create(&session, 4)?;
/// queue.push(&SubmissionEntry { opcode: 99, user_data: 1, ..Default::default() })?;
/// queue.ring()?;
/// let done = queue.wait(Duration::from_secs(10))?.expect("the adapter answers");
/// assert_eq!((done.user_data, Status(done.status)), (1, Status::E_OPCODE));
/// # Ok(()) }
/// ```
pub struct RawQueue {
    channel: Channel,
}

impl RawQueue {
    /// Makes a queue of `entries` requests, a power of two from 2 to 4096.
    ///
    /// # Errors
    /// As [`Session::queue`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// use portcullis::raw::RawQueue;
    /// assert!(RawQueue::create(&session, 4).is_ok());
    /// assert!(RawQueue::create(&session, 3).is_err());
    /// # Ok(()) }
    /// ```
    pub fn create(session: &Session, entries: u32) -> Result<Self, Error> {
        Ok(Self { channel: Channel::create(session.link(), entries)? })
    }

    /// Which queue of its session it is, as control messages name it.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # use portcullis::{raw::RawQueue, wire::layout::SubmissionEntry};
    /// # let mut queue = RawQueue::create(&session, 4)?;
    /// assert_ne!(queue.number(), RawQueue::create(&session, 4)?.number());
    /// # Ok(()) }
    /// ```
    pub fn number(&self) -> u32 {
        self.channel.number()
    }

    /// Writes an entry into the next slot.
    ///
    /// # Errors
    /// [`Error::QueueFull`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # use portcullis::{raw::RawQueue, wire::layout::SubmissionEntry};
    /// # let mut queue = RawQueue::create(&session, 4)?;
    /// for user_data in 0..4 {
    ///     queue.push(&SubmissionEntry { user_data, ..Default::default() })?;
    /// }
    /// assert!(queue.push(&SubmissionEntry::default()).is_err());
    /// # Ok(()) }
    /// ```
    #[inline]
    pub fn push(&mut self, entry: &SubmissionEntry) -> Result<(), Error> {
        self.channel.end.push(entry).map_err(|_| Error::QueueFull)
    }

    /// Announces what was pushed.
    ///
    /// # Errors
    /// [`Error::Os`] if a sleeping adapter could not be woken.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # use portcullis::{raw::RawQueue, wire::layout::SubmissionEntry};
    /// # let mut queue = RawQueue::create(&session, 4)?;
    /// queue.push(&SubmissionEntry::default())?;
    /// queue.ring()?;
    /// # Ok(()) }
    /// ```
    #[inline]
    pub fn ring(&mut self) -> Result<(), Error> {
        self.channel.ring()
    }

    /// Stores any value as the doorbell.
    ///
    /// # Errors
    /// As [`RawQueue::ring`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// use portcullis::raw::RawQueue;
    /// let mut queue = RawQueue::create(&session, 4)?;
    /// queue.store_tail(5)?; // one more than the queue has room for
    /// while !queue.is_down() {
    ///     queue.poll();
    /// }
    /// # Ok(()) }
    /// ```
    pub fn store_tail(&mut self, tail: u32) -> Result<(), Error> {
        if self.channel.end.raw_tail_store(tail) { self.channel.wake() } else { Ok(()) }
    }

    /// Overwrites any slot at any time, also one that the adapter is just reading. `slot` counts from 0; beyond the end it
    /// comes round again.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # use portcullis::{raw::RawQueue, wire::layout::SubmissionEntry};
    /// # let mut queue = RawQueue::create(&session, 4)?;
    /// queue.push(&SubmissionEntry { user_data: 1, ..Default::default() })?;
    /// queue.overwrite(0, &SubmissionEntry { user_data: 2, ..Default::default() });
    /// queue.ring()?;
    /// let done = queue.wait(std::time::Duration::from_secs(10))?.expect("the adapter answers");
    /// assert_eq!(done.user_data, 2);
    /// # Ok(()) }
    /// ```
    #[inline]
    pub fn overwrite(&self, slot: usize, entry: &SubmissionEntry) {
        self.channel.end.raw_overwrite(slot, entry);
    }

    /// A handle for another thread that overwrites slots while this one goes on.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// use portcullis::{raw::RawQueue, wire::layout::SubmissionEntry};
    /// let queue = RawQueue::create(&session, 4)?;
    /// let scribbler = queue.scribbler();
    /// std::thread::scope(|s| {
    ///     s.spawn(|| scribbler.overwrite(3, &SubmissionEntry::default()));
    /// });
    /// # Ok(()) }
    /// ```
    pub fn scribbler(&self) -> Scribbler {
        Scribbler { memory: self.channel.end.memory().clone() }
    }

    /// The next completion, if there is one; an embedded adapter gets a turn.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # use portcullis::{raw::RawQueue, wire::layout::SubmissionEntry};
    /// # let mut queue = RawQueue::create(&session, 4)?;
    /// queue.push(&SubmissionEntry { user_data: 7, ..Default::default() })?;
    /// queue.ring()?;
    /// let done = loop {
    ///     if let Some(done) = queue.poll() {
    ///         break done;
    ///     }
    /// };
    /// assert_eq!(done.user_data, 7);
    /// # Ok(()) }
    /// ```
    #[inline]
    pub fn poll(&mut self) -> Option<CompletionEntry> {
        self.channel.poll()
    }

    /// Waits for the next completion, at most for `timeout`.
    ///
    /// # Errors
    /// [`Error::Transport`] if the adapter is gone; [`Error::QueueDown`] if the queue is in the error state and nothing
    /// comes any more.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # use portcullis::{raw::RawQueue, wire::layout::SubmissionEntry};
    /// # let mut queue = RawQueue::create(&session, 4)?;
    /// use std::time::Duration;
    /// queue.push(&SubmissionEntry::default())?;
    /// queue.ring()?;
    /// assert!(queue.wait(Duration::from_secs(10))?.is_some());
    /// assert!(queue.wait(Duration::from_millis(1))?.is_none());
    /// # Ok(()) }
    /// ```
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<CompletionEntry>, Error> {
        self.channel.wait(Instant::now().checked_add(timeout))
    }

    /// Whether the adapter moved the queue to the error state.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # use portcullis::{raw::RawQueue, wire::layout::SubmissionEntry};
    /// # let mut queue = RawQueue::create(&session, 4)?;
    /// assert!(!queue.is_down());
    /// # Ok(()) }
    /// ```
    pub fn is_down(&self) -> bool {
        self.channel.is_down()
    }
}

/// Overwrites slots of a [`RawQueue`] from any thread. See [`RawQueue::scribbler`] for an example.
pub struct Scribbler {
    memory: QueueView,
}

impl Scribbler {
    /// As [`RawQueue::overwrite`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # use portcullis::{raw::RawQueue, wire::layout::SubmissionEntry};
    /// # let mut queue = RawQueue::create(&session, 4)?;
    /// queue.push(&SubmissionEntry { user_data: 1, ..Default::default() })?;
    /// queue.scribbler().overwrite(0, &SubmissionEntry { user_data: 2, ..Default::default() });
    /// queue.ring()?;
    /// let done = queue.wait(std::time::Duration::from_secs(10))?.expect("the adapter answers");
    /// assert_eq!(done.user_data, 2);
    /// # Ok(()) }
    /// ```
    #[inline]
    pub fn overwrite(&self, slot: usize, entry: &SubmissionEntry) {
        wire::ring::raw_overwrite(&self.memory, slot, entry);
    }
}

impl Drop for RawQueue {
    /// Best effort: the adapter ends it with the session at the latest.
    fn drop(&mut self) {
        let _ = self.channel.destroy();
    }
}

impl fmt::Debug for RawQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawQueue").field("number", &self.number()).finish_non_exhaustive()
    }
}
