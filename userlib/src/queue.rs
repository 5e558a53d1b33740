//! The queue: requests in, completions out.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wire::layout::CompletionEntry;

use crate::channel::Channel;
use crate::error::{Error, Refused};
use crate::link::Link;
use crate::memory::Buffer;
use crate::request::{Completion, Data, Request, Ticket};
use crate::slots::Slots;

mod again;
mod calls;
mod entry;
mod lists;
mod stash;
mod transfer;

use again::Again;
use entry::{check_several, checked_length, entry, flight, outcome, request_of, stray};
use lists::Lists;
use stash::{Stash, Stashed};
pub(crate) use transfer::{Pieces, before_block, next_write};

/// What the blocking calls copy through: so many buffers of so many bytes.
const BOUNCE_BUFFERS: usize = 8;
pub(crate) const BOUNCE_BYTES: usize = 128 << 10;

/// A pair of rings in shared memory. [`Queue::prepare`] and [`Queue::poll`] make no system call and allocate nothing;
/// [`Queue::ring`] makes one only where the adapter sleeps.
///
/// A queue belongs to one thread at a time; it can be sent to another. Requests may complete in any order. When it is
/// dropped with requests in flight the adapter ends them first; their buffers are freed after that, or never if the
/// adapter does not answer.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let adapter = adapter::Embedded::open("emu:16M")?;
/// # let session = adapter.session()?;
/// # session.create_volume("v", 1 << 20)?;
/// use portcullis::{Access, MemoryAccess, Request};
/// use std::time::Duration;
///
/// let volume = session.open("v", Access::READ)?;
/// let mut queue = session.queue(16)?;
/// let memory = session.register(16 * 4096, MemoryAccess::DeviceWrites)?;
/// for (i, buffer) in (0..).zip(memory.buffers(4096, 4096)?) {
///     queue.prepare(Request::read(&volume, i * 4096, buffer).tag(i))?;
/// }
/// queue.ring()?; // one doorbell for all sixteen
/// while queue.in_flight() > 0 {
///     let done = queue.wait(Duration::from_secs(10))?.expect("the device answers within ten seconds");
///     println!("block {} came, {} bytes", done.tag, done.result?);
/// }
/// # Ok(()) }
/// ```
///
/// It is not shared between threads:
///
/// ```compile_fail,E0277
/// fn shared<T: Sync>() {}
/// shared::<portcullis::Queue>();
/// ```
pub struct Queue {
    channel: Channel,
    slots: Slots,
    stash: Stash,
    bounce: Vec<Buffer>,
    /// Where scatter lists are written.
    lists: Lists,
    /// Blocking transfers begun; the number of one marks its requests.
    transfers: u64,
    /// Its session goes on when the adapter ends.
    resumes: bool,
    /// What it knows of the lives before, in all but the session's first.
    again: Option<Box<Again>>,
    /// What its session knows it by, if that resumes.
    watch: u64,
    /// Polls without anything since somebody looked whether the adapter lives.
    silent: u32,
    /// Send, not Sync.
    _one_thread: PhantomData<Cell<()>>,
}

impl Queue {
    pub(crate) fn create(link: &Arc<Link>, entries: u32) -> Result<Self, Error> {
        let channel = Channel::create(link, entries)?;
        let (link, life) = (channel.link.clone(), channel.life);
        let watch = link.watch(channel.end.memory());
        if life > 0 {
            link.arrive(watch);
        }
        Ok(Self {
            channel,
            slots: Slots::new(entries),
            stash: Stash::default(),
            bounce: Vec::new(),
            lists: Lists::default(),
            transfers: 0,
            resumes: link.resumes(),
            again: (life > 0).then(Box::default),
            watch,
            silent: 0,
            _one_thread: PhantomData,
        })
    }

    /// How many requests can be in flight.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::READ_WRITE)?;
    /// # let mut queue = session.queue(8)?;
    /// assert_eq!(queue.entries(), 8);
    /// # Ok(()) }
    /// ```
    pub fn entries(&self) -> u32 {
        self.channel.end.entries().get()
    }

    /// Which queue of its session it is, as control messages name it.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::READ_WRITE)?;
    /// # let mut queue = session.queue(8)?;
    /// let other = session.queue(8)?;
    /// assert_ne!(queue.number(), other.number());
    /// # Ok(()) }
    /// ```
    pub fn number(&self) -> u32 {
        self.channel.number()
    }

    /// Requests prepared whose completion was not handed out yet.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::WRITE)?;
    /// let mut queue = session.queue(4)?;
    /// queue.prepare(portcullis::Request::flush(&volume))?;
    /// assert_eq!(queue.in_flight(), 1);
    /// # Ok(()) }
    /// ```
    pub fn in_flight(&self) -> usize {
        self.slots.in_flight() + self.stash.done()
    }

    /// Writes a request into the queue. The adapter sees it after [`Queue::ring`].
    ///
    /// # Errors
    /// [`Refused`] gives the request back, with [`Error::QueueFull`], [`Error::QueueDown`], or [`Error::Argument`] for
    /// a length that no request can have (4 GiB and more, or more than the buffer).
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::READ)?;
    /// use portcullis::Request;
    /// let mut queue = session.queue(4)?;
    /// let ticket = queue.prepare(Request::read(&volume, 0, session.buffer(4096)?))?;
    /// assert!(queue.poll()?.is_none(), "the bell was not rung yet");
    /// queue.ring()?;
    /// let done = loop {
    ///     if let Some(done) = queue.poll()? {
    ///         break done;
    ///     }
    /// };
    /// assert_eq!(done.ticket, ticket);
    /// # Ok(()) }
    /// ```
    #[inline]
    pub fn prepare(&mut self, request: Request) -> Result<Ticket, Refused> {
        self.submit(request, None)
    }

    #[inline]
    fn submit(&mut self, request: Request, transfer: Option<NonZeroU64>) -> Result<Ticket, Refused> {
        if self.again.is_some() {
            return self.submit_again(request, transfer);
        }
        let memory = match &request.data {
            Data::None => (0, 0),
            Data::One(buffer) => (buffer.region(), buffer.region_offset()),
            Data::Several(_) => return self.submit_several(request, transfer),
        };
        self.submit_with(request, memory, 0, transfer)
    }

    #[cold]
    fn submit_several(&mut self, request: Request, transfer: Option<NonZeroU64>) -> Result<Ticket, Refused> {
        let Data::Several(buffers) = &request.data else { unreachable!("asked for several buffers only") };
        let several = u8::try_from(buffers.len()).unwrap_or(u8::MAX);
        let written = check_several(request.length, buffers).and_then(|()| match self.slots.vacant() {
            Some(vacant) => {
                let segments = buffers.iter().map(|buffer| (buffer.region(), buffer));
                self.lists.write(&self.channel, vacant.ticket().slot(), segments)
            }
            None => Err(Error::QueueFull),
        });
        match written {
            Ok(memory) => self.submit_with(request, memory, several, transfer),
            Err(error) => Err(Refused { error, request }),
        }
    }

    /// With its memory, or the list of its `segments` buffers, at that region and offset.
    #[inline(always)] // there are two callers, and one of them is where requests come through
    fn submit_with(
        &mut self,
        request: Request,
        (region, region_offset): (u64, u64),
        segments: u8,
        transfer: Option<NonZeroU64>,
    ) -> Result<Ticket, Refused> {
        let length = match checked_length(&request) {
            Ok(length) => length,
            Err(error) => return Err(Refused { error, request }),
        };
        let Some(vacant) = self.slots.vacant() else {
            return Err(Refused { error: Error::QueueFull, request });
        };
        if self.channel.is_down() {
            return Err(Refused { error: Error::QueueDown, request });
        }
        let (user_data, extension) = (vacant.ticket().user_data(), request.extension);
        let mut flight = flight(request, length, transfer);
        let entry = entry(&flight, (user_data, flight.key, extension), (region, region_offset), segments);
        if self.channel.end.push(&entry).is_err() {
            return Err(Refused { error: Error::QueueFull, request: request_of(&mut flight, extension) });
        }
        Ok(vacant.fill(flight))
    }

    /// Rings the doorbell: announces all requests prepared since the last time. Writes the adapter's eventfd if it
    /// sleeps, and makes no system call otherwise.
    ///
    /// # Errors
    /// [`Error::Os`] if a sleeping adapter could not be woken.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// let mut queue = session.queue(4)?;
    /// queue.ring()?; // nothing prepared: nothing happens
    /// # Ok(()) }
    /// ```
    #[inline]
    pub fn ring(&mut self) -> Result<(), Error> {
        self.channel.ring()
    }

    /// The next completion, if there is one. Does not wait; an embedded adapter gets a turn.
    ///
    /// An adapter that was killed says nothing here. Who polls and hears nothing for long asks by [`Queue::wait`], for a
    /// millisecond say, or by any call of the session: they fail with [`crate::Status::E_PATH`] then.
    ///
    /// # Errors
    /// [`Error::Protocol`] if the adapter completed what was never asked for. A request that failed is not an error
    /// here: see [`Completion::result`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::READ_WRITE)?;
    /// # let mut queue = session.queue(8)?;
    /// queue.prepare(portcullis::Request::flush(&volume))?;
    /// queue.ring()?;
    /// while queue.in_flight() > 0 {
    ///     if let Some(done) = queue.poll()? {
    ///         done.result?;
    ///     }
    ///     // ... other work ...
    /// }
    /// # Ok(()) }
    /// ```
    #[inline]
    pub fn poll(&mut self) -> Result<Option<Completion>, Error> {
        if !self.stash.is_empty()
            && let Some(completion) = self.unstash()?
        {
            return Ok(Some(completion));
        }
        while let Some(entry) = self.channel.poll() {
            if entry.status != 0 && self.holds_back(&entry) {
                continue;
            }
            if let Some(completion) = self.end_request(&entry)? {
                return Ok(Some(completion));
            }
        }
        if self.resumes { self.heard_nothing() } else { Ok(None) }
    }

    /// What was kept, if there is anything to hand out.
    #[cold]
    fn unstash(&mut self) -> Result<Option<Completion>, Error> {
        while let Some(stashed) = self.stash.pop() {
            match stashed {
                Stashed::Done(completion) => return Ok(Some(completion)),
                Stashed::Late(entry) => {
                    if let Some(completion) = self.end_request(&entry)? {
                        return Ok(Some(completion));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Waits for the next completion, at most for `timeout`; rings first if there is something to announce. Spins for
    /// 100 µs at most, less if the waits before took far longer, then sleeps. An embedded adapter is turned meanwhile, with
    /// naps between after a millisecond. `None`: the time is over, or nothing is in flight.
    ///
    /// # Errors
    /// As [`Queue::ring`] and [`Queue::poll`]; [`Error::Transport`] if the adapter is gone.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::WRITE)?;
    /// use std::time::Duration;
    /// let mut queue = session.queue(4)?;
    /// assert!(queue.wait(Duration::from_secs(10))?.is_none(), "nothing is in flight");
    /// queue.prepare(portcullis::Request::flush(&volume))?;
    /// assert!(queue.wait(Duration::from_secs(10))?.is_some());
    /// # Ok(()) }
    /// ```
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<Completion>, Error> {
        self.ring()?;
        if let Some(completion) = self.unstash()? {
            return Ok(Some(completion));
        }
        // A time too long to be written is as good as for ever.
        let deadline = Instant::now().checked_add(timeout);
        while self.slots.in_flight() > 0 {
            let entry = match self.channel.wait(deadline) {
                Err(error) if self.resumes && error.is_gone() => {
                    if !self.resume(deadline)? {
                        return Ok(None);
                    }
                    if let Some(completion) = self.unstash()? {
                        return Ok(Some(completion));
                    }
                    continue;
                }
                other => other?,
            };
            let Some(entry) = entry else {
                return Ok(None);
            };
            if entry.status != 0 && self.holds_back(&entry) {
                continue;
            }
            if let Some(completion) = self.end_request(&entry)? {
                return Ok(Some(completion));
            }
        }
        Ok(None)
    }

    /// The state word: whether the adapter moved the queue to the error state, after which it takes no more requests.
    /// A queue used through this type never gets there by itself.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::READ_WRITE)?;
    /// # let mut queue = session.queue(8)?;
    /// assert!(!queue.is_down());
    /// # Ok(()) }
    /// ```
    pub fn is_down(&self) -> bool {
        self.channel.is_down()
    }

    /// Finds what a completion entry ends. `None`: something that nobody waits for any more.
    #[inline]
    fn end_request(&mut self, entry: &CompletionEntry) -> Result<Option<Completion>, Error> {
        let Some((ticket, flight)) = self.slots.end(entry.user_data) else { return Err(stray(entry)) };
        if flight.bounced {
            flight.come_back(self.channel.life, entry.bytes);
        }
        let data = flight.take_data();
        if flight.transfer.is_some() {
            // A transfer gave up on it; its buffer is of use again.
            self.bounce.extend(data.into_one());
            return Ok(None);
        }
        let result = outcome(flight, entry);
        let (buffer, buffers) = data.into_parts();
        Ok(Some(Completion { ticket, tag: flight.tag, result, value: entry.value, buffer, buffers }))
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.channel.link.unwatch(self.watch);
        if self.channel.destroy().is_err() {
            self.slots.leak();
        }
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("number", &self.number())
            .field("entries", &self.entries())
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}
