//! Requests whose memory is a scatter list: the list copied once, each segment held, pieces cut by blocks and segments.

use driver::block::{self, BlockQueue, Command, DeviceStatus, Segment, SubmitError};
use driver::hal::Iova;
use tpt::{Denied, Directory, Domain, Hold, Memory, Operation, RegionKey, Request};
use wire::Status;
use wire::layout::{MAX_SEGMENTS, ScatterSegment};

use super::State;
use super::slots::{Aside, Asked};

/// Lists of requests that run at the same time. More wait.
const LISTS: u16 = 64;

/// A request cannot be admitted.
#[derive(Clone, Copy)]
pub(super) enum Refused {
    /// Not now: what it needs is in use, or not here yet.
    Later,
    /// Never.
    Denied(Denied),
}

/// A segment of a list, which counts as active I/O of its region.
struct Held {
    /// None only before the first use of its place.
    hold: Option<Hold>,
    iova: u64,
    bytes: u32,
}

/// A list that a request uses.
struct List {
    /// The port of the request.
    owner: usize,
    held: Vec<Held>,
}

/// A fixed number of lists, each with room for the longest.
pub(super) struct Lists {
    lists: Box<[List]>,
    free: Vec<u16>,
    /// Where a list is copied to; nobody else can change it there.
    copy: [ScatterSegment; MAX_SEGMENTS],
}

impl Lists {
    pub(super) fn new() -> Self {
        // Written to once, so that the kernel gives its pages now and not in a turn.
        let list = |_| {
            let mut held = Vec::with_capacity(MAX_SEGMENTS);
            held.resize_with(MAX_SEGMENTS, || Held { hold: None, iova: 0, bytes: 0 });
            std::hint::black_box(&mut held).clear();
            List { owner: 0, held }
        };
        Self {
            lists: (0..LISTS).map(list).collect(),
            free: (0..LISTS).rev().collect(),
            copy: [ScatterSegment::default(); MAX_SEGMENTS],
        }
    }

    /// A free list. Of the second half nobody gets more than an equal part.
    fn take(&mut self, owner: usize, owners: usize) -> Option<u16> {
        if self.free.len() <= self.lists.len() / 2 {
            let fair = (self.lists.len() / 2 / owners.max(1)).max(1);
            let in_use = self.lists.iter().filter(|list| !list.held.is_empty());
            if in_use.filter(|list| list.owner == owner).count() >= fair {
                return None;
            }
        }
        let list = self.free.pop()?;
        self.lists[usize::from(list)].owner = owner;
        Some(list)
    }

    /// Gives a list back, and what it holds.
    fn give(&mut self, list: u16, directory: &mut Directory) {
        for hold in self.lists[usize::from(list)].held.drain(..).filter_map(|held| held.hold) {
            directory.release_hold(hold);
        }
        self.free.push(list);
    }

    /// Gives all that is held back.
    pub(super) fn release_all(&mut self, directory: &mut Directory) {
        for list in &mut self.lists {
            list.held.drain(..).filter_map(|held| held.hold).for_each(|hold| directory.release_hold(hold));
        }
    }
}

impl State {
    /// Copies the list that the request names, and holds each of its segments. `shift`: the size of its grant's blocks.
    #[cold]
    pub(super) fn take_list(&mut self, slot: u32, asked: &Asked, shift: u8) -> Result<(), Refused> {
        let Asked { port, request, segments, .. } = *asked;
        let Some(domain) = self.ports[port].as_ref().map(|port| port.domain) else {
            return Err(Refused::Later);
        };
        let list = self.lists.take(port, self.ports.len()).ok_or(Refused::Later)?;
        let result = self
            .copy_list(domain, &request, usize::from(segments))
            .and_then(|()| self.hold_list(list, domain, &request, usize::from(segments), shift));
        match result {
            Ok(()) => self.slots.beside_mut(slot).aside = Aside::List(list),
            Err(_) => self.lists.give(list, &mut self.directory),
        }
        result
    }

    /// The one look at the list: what its owner writes there afterwards changes nothing.
    fn copy_list(&mut self, domain: Domain, request: &Request, segments: usize) -> Result<(), Refused> {
        let denied = Refused::Denied(Denied::Memory);
        let copy = &mut self.lists.copy[..segments];
        // The adapter reads it as the device reads a source.
        let source = Operation::Write { fua: false };
        let memory = request.memory;
        if !memory.offset.is_multiple_of(8) {
            return Err(denied);
        }
        let bytes = size_of_val(copy) as u64;
        let hold = self.directory.hold(domain, source, memory, bytes).map_err(Refused::Denied)?;
        let result = match &self.regions[hold.region().0 as usize] {
            Some(region) => usize::try_from(memory.offset)
                .ok()
                .and_then(|offset| region.copy_list(offset, copy))
                .ok_or(denied),
            None => Err(Refused::Later), // It is in the mailbox.
        };
        self.directory.release_hold(hold);
        result
    }

    /// Checks the copied segments one after the other; the first that fails decides.
    fn hold_list(
        &mut self,
        list: u16,
        domain: Domain,
        request: &Request,
        segments: usize,
        shift: u8,
    ) -> Result<(), Refused> {
        let held = &mut self.lists.lists[usize::from(list)].held;
        let mut left = request.length;
        for segment in &self.lists.copy[..segments] {
            let bytes = u64::from(segment.length);
            left = left.checked_sub(bytes).ok_or(Refused::Denied(Denied::Memory))?;
            if segment.reserved != 0 || bytes & ((1 << shift) - 1) != 0 {
                return Err(Refused::Denied(Denied::Memory));
            }
            let memory = Memory { region: RegionKey(segment.region), offset: segment.offset };
            let hold =
                self.directory.hold(domain, request.operation, memory, bytes).map_err(Refused::Denied)?;
            held.push(Held { iova: hold.iova().0, hold: Some(hold), bytes: segment.length });
        }
        if left == 0 { Ok(()) } else { Err(Refused::Denied(Denied::Memory)) }
    }

    /// Hands the device commands of the request from where it left off, at most a turn's share. True if some are left.
    pub(super) fn submit_scattered<Q: BlockQueue>(
        &mut self,
        queue: &mut Q,
        slot: u32,
        list: u16,
        operation: block::Operation,
    ) -> bool {
        let block::Geometry { block_shift, max_transfer_blocks, max_segments, .. } = *queue.geometry();
        let s = self.slots.get_mut(slot);
        let tag = s.tag();
        let grant = s.grant.as_ref().expect("an admitted request has its grant");
        let mut cursor =
            Cursor::at(&self.lists.lists[usize::from(list)].held, u64::from(s.submitted) << block_shift);
        let most_segments = (max_segments as usize).min(MAX_SEGMENTS);
        let mut segments = [Segment { data: Iova(0), bytes: 0 }; MAX_SEGMENTS];
        let mut share = self.pieces;
        for piece in self.directory.pieces(grant, u64::from(s.submitted)) {
            let mut done = 0;
            while done < piece.blocks {
                if s.status != Status::OK {
                    return false;
                }
                if share == 0 {
                    return true;
                }
                share -= 1;
                let most = (piece.blocks - done).min(u64::from(max_transfer_blocks)) << block_shift;
                let (number, bytes, next) = cursor.gather(most, &mut segments[..most_segments]);
                let blocks = u32::try_from(bytes >> block_shift).expect("no more than a transfer");
                let command = Command {
                    operation,
                    lba: piece.lba.0 + done,
                    blocks,
                    data: segments[0].data,
                    tag: tag | u64::from(blocks) << 32,
                };
                let result = match number {
                    1 => queue.submit(&command),
                    _ => queue.submit_scattered(&command, &segments[..number]),
                };
                match result {
                    Ok(()) => {
                        s.record_submitted(blocks, self.now_ns);
                        done += u64::from(blocks);
                        cursor = next;
                    }
                    Err(SubmitError::Full | SubmitError::Down) => return true,
                    Err(SubmitError::Invalid) => s.fail(Status::E_DEVICE, DeviceStatus::LBA_OUT_OF_RANGE.0),
                }
            }
        }
        false
    }

    /// The request has ended.
    pub(super) fn give_list(&mut self, list: u16) {
        self.lists.give(list, &mut self.directory);
    }
}

/// A place in a list.
#[derive(Clone, Copy)]
struct Cursor<'a> {
    /// The segment that it is in, and those behind.
    held: &'a [Held],
    /// Bytes of the first that lie behind the place.
    used: u32,
}

impl<'a> Cursor<'a> {
    /// The place `bytes` after the start.
    fn at(mut held: &'a [Held], mut bytes: u64) -> Self {
        while let [first, rest @ ..] = held
            && bytes >= u64::from(first.bytes)
        {
            bytes -= u64::from(first.bytes);
            held = rest;
        }
        Self { held, used: u32::try_from(bytes).expect("less than the segment's bytes, or none are left") }
    }

    /// Fills `segments` with what follows, at most `most` bytes: how many segments, how many bytes, and the place behind.
    fn gather(mut self, most: u64, segments: &mut [Segment]) -> (usize, u64, Self) {
        let (mut number, mut bytes) = (0, 0);
        while let [first, rest @ ..] = self.held
            && bytes < most
            && number < segments.len()
        {
            let here = first.bytes - self.used;
            let take = u32::try_from(most - bytes).unwrap_or(u32::MAX).min(here);
            segments[number] = Segment { data: Iova(first.iova + u64::from(self.used)), bytes: take };
            number += 1;
            bytes += u64::from(take);
            self = if take == here {
                Self { held: rest, used: 0 }
            } else {
                Self { used: self.used + take, ..self }
            };
        }
        (number, bytes, self)
    }
}
