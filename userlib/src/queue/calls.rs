//! The calls of a queue that wait for what they ask for.

use wire::control::{self, Reply};
use wire::layout::CompletionEntry;

use super::entry::{outcome, stray};
use super::{Pieces, Queue};
use crate::error::Error;
use crate::file::File;
use crate::request::{Completion, Request, Ticket, encode_managed, reply_in};
use crate::slots::Flight;
use crate::target::{Of, Target};
use crate::volume::Volume;

impl Queue {
    /// Prepares a request, rings, and waits for its completion. Other completions that come meanwhile are kept for
    /// [`Queue::poll`] and [`Queue::wait`].
    ///
    /// # Errors
    /// Those of [`Queue::prepare`] and [`Queue::wait`]. A request that failed is not an error here: see
    /// [`Completion::result`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::ALL)?;
    /// let mut queue = session.queue(4)?;
    /// queue.execute(portcullis::Request::deallocate(&volume, 0, 1 << 20))?.result?;
    /// # Ok(()) }
    /// ```
    pub fn execute(&mut self, request: Request) -> Result<Completion, Error> {
        self.make_room()?;
        let ticket = self.submit(request, None)?;
        self.ring()?;
        loop {
            let ended = self.next_ended()?;
            if ended.ticket == ticket {
                return Ok(ended.into());
            }
            self.keep(ended);
        }
    }

    /// Sends a management request by the queue and waits for its reply: as any call of the session, without a system call
    /// while the adapter is awake.
    ///
    /// # Errors
    /// As [`Request::manage`], [`Queue::execute`] and [`Completion::reply`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// use portcullis::wire::control::{Reply, Request};
    /// let mut queue = session.queue(4)?;
    /// let made = queue.call(&Request::CreateVolume { name: "v".into(), bytes: 1 << 20 })?;
    /// assert!(matches!(made, Reply::Volume(volume) if volume.name == "v"));
    /// # Ok(()) }
    /// ```
    pub fn call(&mut self, request: &control::Request) -> Result<Reply, Error> {
        let link = self.channel.link.clone();
        let request = &*link.once(request)?;
        loop {
            let mut reply = self.call_once(&*link.translate(request)?);
            if !link.asks_again(request, &mut reply) {
                return reply;
            }
        }
    }

    fn call_once(&mut self, request: &control::Request) -> Result<Reply, Error> {
        self.provide_bounce()?;
        let Some(mut buffer) = self.bounce.pop() else { return Err(Error::QueueFull) };
        let manage = match encode_managed(request, &mut buffer) {
            Ok((length, room)) => Request::managed(length, room, buffer),
            Err(error) => {
                self.bounce.push(buffer);
                return Err(error);
            }
        };
        let done = self.execute(manage)?;
        let reply = reply_in(done.result, done.buffer.as_deref());
        self.bounce.extend(done.buffer);
        reply
    }

    /// Reads `target.len()` bytes from `offset` through buffers of the queue's own. Offset, length and memory may be any.
    ///
    /// # Errors
    /// [`Error::Io`] for the first piece that failed; what was read by then is undefined.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 4 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::READ)?;
    /// let mut queue = session.queue(8)?;
    /// let mut bytes = vec![1; 3 << 20];
    /// queue.read_at(&volume, 0, &mut bytes)?;
    /// assert!(bytes.iter().all(|byte| *byte == 0));
    /// # Ok(()) }
    /// ```
    pub fn read_at(&mut self, volume: &Volume, offset: u64, target: &mut [u8]) -> Result<(), Error> {
        self.transfer(Of::volume(volume), offset, Pieces::Read(target)).map(drop)
    }

    /// Writes `source` to `offset` through buffers of the queue's own. Offset, length and memory may be any. Blocks that
    /// are written only in part keep their other bytes, as with [`Request::write_bytes`]. Durable after
    /// [`Queue::flush`]. Not one write but several, unless it is of at most 64 KiB: others may see one and not the next.
    ///
    /// # Errors
    /// [`Error::Io`] for the first piece that failed; other pieces may have been written.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::READ_WRITE)?;
    /// let mut queue = session.queue(8)?;
    /// queue.write_at(&volume, 8192, &[7; 8192])?;
    /// queue.flush(&volume)?;
    /// # let mut back = [0; 8192];
    /// # queue.read_at(&volume, 8192, &mut back)?;
    /// # assert_eq!(back, [7; 8192]);
    /// # Ok(()) }
    /// ```
    pub fn write_at(&mut self, volume: &Volume, offset: u64, source: &[u8]) -> Result<(), Error> {
        self.transfer(Of::volume(volume), offset, Pieces::Write(source)).map(drop)
    }

    /// Appends at most [`Request::MAX_WRITE_BYTES`] bytes to a file, through a buffer of the queue's own. Where they landed.
    pub(crate) fn append(&mut self, file: &File, source: &[u8]) -> Result<u64, Error> {
        self.provide_bounce()?;
        let Some(mut buffer) = self.bounce.pop() else { return Err(Error::QueueFull) };
        buffer[..source.len()].copy_from_slice(source);
        let done = self.execute(Request::append(file, buffer).length(source.len() as u64))?;
        self.bounce.extend(done.buffer);
        match usize::try_from(done.result?) {
            Ok(bytes) if bytes == source.len() => Ok(done.value),
            other => Err(Error::Protocol(format!("{other:?} bytes of {} were appended", source.len()))),
        }
    }

    /// Makes all completed writes to the volume durable, and waits for it.
    ///
    /// # Errors
    /// As [`Queue::execute`], and [`Error::Io`] if the flush failed.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::READ_WRITE)?;
    /// # let mut queue = session.queue(8)?;
    /// queue.write_at(&volume, 0, &[1; 4096])?;
    /// queue.flush(&volume)?; // now it survives a power cut
    /// # Ok(()) }
    /// ```
    pub fn flush(&mut self, volume: &impl Target) -> Result<(), Error> {
        self.execute(Request::flush(volume))?.result.map(drop)
    }

    fn resolve(&mut self, entry: &CompletionEntry) -> Result<Ended, Error> {
        let Some((ticket, flight)) = self.slots.end(entry.user_data) else { return Err(stray(entry)) };
        if flight.bounced {
            flight.come_back(self.channel.life, entry.bytes);
        }
        let result = outcome(flight, entry);
        let flight = Flight { data: flight.take_data(), ..*flight };
        Ok(Ended { ticket, flight, result, value: entry.value })
    }

    /// Waits for whichever request ends next.
    pub(super) fn next_ended(&mut self) -> Result<Ended, Error> {
        loop {
            if let Some(entry) = self.stash.pop_late() {
                return self.resolve(&entry);
            }
            match self.channel.wait(None) {
                Ok(Some(entry)) if entry.status != 0 && self.holds_back(&entry) => {}
                Ok(Some(entry)) => return self.resolve(&entry),
                Ok(None) => return Err(Error::Protocol("a wait without an end has ended".to_owned())),
                Err(error) if self.resumes && error.is_gone() => drop(self.resume(None)?),
                Err(error) => return Err(error),
            }
        }
    }

    /// Keeps the completion of a request that the running blocking call did not make.
    pub(super) fn keep(&mut self, ended: Ended) {
        if ended.flight.transfer.is_some() {
            self.bounce.extend(ended.flight.data.into_one());
        } else {
            self.stash.push(ended.into());
        }
    }

    /// Sees to it that one more request can be submitted.
    pub(super) fn make_room(&mut self) -> Result<(), Error> {
        while self.slots.is_full() {
            self.ring()?;
            let ended = self.next_ended()?;
            self.keep(ended);
        }
        Ok(())
    }
}

/// A request that ended, with what was kept of it.
pub(super) struct Ended {
    pub(super) ticket: Ticket,
    pub(super) flight: Flight,
    pub(super) result: Result<u32, Error>,
    pub(super) value: u64,
}

impl From<Ended> for Completion {
    #[inline]
    fn from(Ended { ticket, flight, result, value }: Ended) -> Self {
        let (buffer, buffers) = flight.data.into_parts();
        Self { ticket, tag: flight.tag, result, value, buffer, buffers }
    }
}
