//! Requests on opened files. The tables grant them their blocks as they do everybody; here it is seen to that a read ends where
//! its file does, that a write moves that end, and that each append has a place of its own ([`super::lengths`]).
//!
//! Nearly all requests are inside of their file and pass here with one look at its length. No request waits here for blocks:
//! what the file has no room for is refused with E_NO_RESOURCES, and the application asks the control plane for room.

use tpt::{Denied, Domain, Grant, Operation, Request};
use wire::Status;

use super::State;
use super::bytes::writes;
use super::lengths::Lengths;
use super::lists::Refused;
use super::slots::{Asked, SlotState};

/// What the end of a request has to do with the length of its file.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) enum Reach {
    /// Nothing.
    #[default]
    Inside,
    /// A read that goes beyond it: so many bytes count.
    Cut(u32),
    /// A write that goes beyond it: when it has ended well, the file ends there at the earliest.
    Beyond { file: u32, end: u64 },
    /// An append, which has its place.
    Append { file: u32, at: u64, end: u64 },
}

/// What is to be done with a request that reaches to where the tables grant nothing.
pub(super) enum Outside {
    /// Refuse it.
    Refuse(Status),
    /// It is a read behind the end: it has read nothing.
    Empty,
    /// It is a read across the end: ask for this part of it.
    Less(Request),
}

/// Whether a request, as granted, is inside of its file.
#[inline(always)]
pub(super) fn is_inside(lengths: &Lengths, file: u32, request: &Request) -> bool {
    // The short way takes no request that names an extension: its offset is that in the file.
    lengths.covers(file, request.offset + request.length, request.operation != Operation::Read)
}

impl State {
    /// Where an append goes: it is asked for as a write of bytes at the end of its file.
    pub(super) fn place(&mut self, domain: Domain, asked: &Asked) -> Result<Asked, Denied> {
        let file = self.directory.file(domain, asked.request.key, asked.request.operation)?;
        let request = Request { offset: self.lengths.tail(file.context), ..asked.request };
        Ok(Asked { request, ..*asked })
    }

    /// What the end of a granted request has to do with the length of its file.
    ///
    /// # Errors
    /// OK of a read that is behind it, which has read nothing; E_NO_RESOURCES of a write that would move a length that is fixed.
    pub(super) fn reach(&self, asked: &Asked, grant: &Grant) -> Result<Reach, Status> {
        let Some(file) = self.directory.context(grant) else { return Ok(Reach::Inside) };
        let Request { operation, length, .. } = asked.request;
        let start = self.directory.offset_in_file(grant, &asked.request);
        let (end, now) = (start.saturating_add(length), self.lengths.get(file));
        if writes(operation) {
            if end > now && self.lengths.is_fixed(file) {
                return Err(Status::E_NO_RESOURCES);
            }
            self.lengths.note_write(file);
        }
        if asked.append {
            return Ok(Reach::Append { file, at: start, end });
        }
        Ok(match operation {
            _ if end <= now => Reach::Inside,
            Operation::Read if start >= now => return Err(Status::OK),
            Operation::Read => Reach::Cut(u32::try_from(now - start).unwrap_or(u32::MAX)),
            Operation::Deallocate => Reach::Inside,
            _ if writes(operation) => Reach::Beyond { file, end },
            _ => Reach::Inside,
        })
    }

    /// The tables said of a request that it is out of bounds: what that means if it is on a file as a whole.
    #[cold]
    pub(super) fn outside(&mut self, domain: Domain, asked: &Asked) -> Outside {
        let Request { operation, key, extension, offset, length, .. } = asked.request;
        let refuse = Outside::Refuse(Status::E_BOUNDS);
        if length == 0 || extension != tpt::ExtensionKey::NONE || offset.checked_add(length).is_none() {
            return refuse;
        }
        let Ok(file) = self.directory.file(domain, key, operation) else { return refuse };
        if writes(operation) {
            return Outside::Refuse(Status::E_NO_RESOURCES);
        }
        let now = self.lengths.get(file.context).min(file.bytes);
        let size = 1 << file.block_shift;
        match operation {
            Operation::Read if (offset | length) & (size - 1) != 0 => Outside::Refuse(Status::E_ALIGN),
            Operation::Read if offset >= now => Outside::Empty,
            // The pieces of a list are for all of it.
            Operation::Read if asked.segments == 0 => {
                Outside::Less(Request { length: (now - offset).next_multiple_of(size), ..asked.request })
            }
            _ => refuse,
        }
    }

    /// An append has all that it needs: it gets its place, if nobody else did meanwhile. Others need none.
    pub(super) fn reserve(&mut self, asked: &Asked, grant: &Grant) -> Result<(), Refused> {
        if !asked.append {
            return Ok(());
        }
        let file = self.directory.context(grant).ok_or(Refused::Denied(Denied::EntryInvalid))?;
        let Request { offset, length, .. } = asked.request;
        if self.lengths.reserve(file, offset, offset + length) { Ok(()) } else { Err(Refused::Later) }
    }

    /// The device has nothing more of a request: its file is as long as that makes it. False if that is not yet to be said, as
    /// an append before it is still on its way; then it waits.
    pub(super) fn lands(&mut self, slot: u32) -> bool {
        let s = self.slots.get(slot);
        let (well, untouched) = (s.status == Status::OK, s.submitted == 0);
        match self.slots.reach(slot) {
            Reach::Beyond { file, end } if well => self.lengths.extend(file, end),
            // The next one may have it, if nobody is behind it yet.
            Reach::Append { file, at, end }
                if !well && untouched && self.lengths.take_back(file, at, end) => {}
            Reach::Append { file, at, end } if !self.lengths.land(file, at, end) => {
                self.slots.get_mut(slot).state = SlotState::Landing;
                self.landing.push(slot);
                return false;
            }
            Reach::Inside | Reach::Cut(_) | Reach::Beyond { .. } | Reach::Append { .. } => {}
        }
        true
    }

    /// Looks again at appends that wait for those before them. Returns how many have ended.
    pub(super) fn retry_landing(&mut self) -> usize {
        let waiting = self.landing.len();
        for _ in 0..waiting {
            let slot = self.landing.remove(0);
            self.finish(slot);
        }
        waiting - self.landing.len()
    }

    /// How many bytes a request on a file has read or written, and where an append went, if the blocks do not tell.
    pub(super) fn told_of(&self, slot: u32, reach: Reach) -> (Option<u64>, u64) {
        match reach {
            Reach::Inside | Reach::Beyond { .. } => (None, 0),
            Reach::Cut(bytes) => {
                let s = self.slots.get(slot);
                let shift = s.grant.as_ref().map_or(0, Grant::block_shift);
                (Some(u64::from(bytes).min(u64::from(s.done) << shift)), 0)
            }
            Reach::Append { at, .. } => (None, at),
        }
    }
}
