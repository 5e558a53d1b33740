//! A queue goes on with another adapter: fresh rings, and what becomes of the requests that were in flight when the last adapter
//! ended.
//!
//! Each is completed once. What the dead adapter had answered is in its ring and counts. What it had not heard of is asked
//! again, and so are reads, compares and flushes. Writes are asked again only where nobody else can have written since:
//! to a volume that is open exclusively, in the adapter's very next life, before anything else of the session. All others
//! end with E_OUTCOME_UNKNOWN, and so does what adapters keep dying of.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wire::Status;
use wire::layout::{CompletionEntry, opcode};

use super::entry::{check_several, checked_length, entry, flight, request_of};
use super::{Lists, Queue};
use crate::channel::Channel;
use crate::error::{Error, Refused};
use crate::link::{Link, Standing};
use crate::request::{Completion, Data, Request, Ticket};

/// So many adapters in a row may end over a request.
const MOST_TRIES: u8 = 3;
/// So many polls without anything are a reason to look whether the adapter lives.
const SILENT_POLLS: u32 = 1 << 14;
/// Keys that a queue remembers.
const KEYS: usize = 16;

/// What a queue knows of the lives before.
#[derive(Default)]
pub(super) struct Again {
    /// Of names, in this life.
    keys: Vec<(u64, u64)>,
    /// Requests that a dead adapter heard of, and that nothing was done about yet.
    heard: HashSet<u64>,
    /// Requests that no adapter has heard of.
    unheard: HashSet<u64>,
    /// How often a request was asked again.
    tries: HashMap<u64, u8>,
}

impl Again {
    fn key(&mut self, link: &Link, name: u64) -> Result<u64, Error> {
        if let Some((_, key)) = self.keys.iter().find(|(known, _)| *known == name) {
            return Ok(*key);
        }
        let key = link.key_of(name)?;
        if self.keys.len() == KEYS {
            self.keys.remove(0);
        }
        self.keys.push((name, key));
        Ok(key)
    }
}

/// What becomes of a request.
enum Fate {
    /// It is asked again before anything else.
    First,
    Again,
    Ends(Status),
}

impl Queue {
    /// Goes on with the next adapter. False: there is none before `until`.
    #[cold]
    pub(super) fn resume(&mut self, until: Option<Instant>) -> Result<bool, Error> {
        let link = self.channel.link.clone();
        loop {
            if !link.resume(self.channel.life, until)? {
                return Ok(false);
            }
            match self.go_on(&link) {
                Err(error) if error.is_gone() => {} // This one, too.
                other => return other.map(|()| true),
            }
        }
    }

    /// Now and then a poll that found nothing looks whether the adapter lives.
    #[cold]
    pub(super) fn heard_nothing(&mut self) -> Result<Option<Completion>, Error> {
        self.silent += 1;
        if self.silent < SILENT_POLLS || self.slots.in_flight() == 0 {
            return Ok(None);
        }
        self.silent = 0;
        match self.channel.link.check_alive(self.channel.life) {
            Err(error)
                if error.is_gone() && self.resume(Some(Instant::now() + Duration::from_millis(1)))? =>
            {
                self.unstash()
            }
            Err(error) if !error.is_gone() => Err(error),
            _ => Ok(None),
        }
    }

    fn go_on(&mut self, link: &Arc<Link>) -> Result<(), Error> {
        let life = link.life();
        let standing = link.stand(self.watch);
        self.take_stock(standing);
        self.channel = Channel::create_in(link, life, self.channel.end.entries())?;
        link.move_watch(self.watch, self.channel.end.memory());
        // Its memory is of the life before.
        self.lists = Lists::default();
        let again = self.remember();
        again.keys.clear();
        let mut first = Vec::new();
        let mut then = Vec::new();
        let mut all: Vec<u64> = again.heard.iter().chain(&again.unheard).copied().collect();
        all.sort_unstable();
        for user_data in all {
            match self.fate(link, user_data, standing) {
                Fate::First => first.push(user_data),
                Fate::Again => then.push(user_data),
                Fate::Ends(status) => self.end_with(user_data, status),
            }
        }
        self.ask_again(&first)?;
        // Until the last of them has ended nothing else is asked: it could be overwritten by what came before it.
        let mut running: HashSet<u64> = first.into_iter().collect();
        let ended = self.stash.late();
        running.retain(|user_data| !ended.contains(user_data));
        while !running.is_empty() {
            match self.channel.wait(None)? {
                Some(entry) if self.holds_back(&entry) => {}
                Some(entry) => {
                    running.remove(&entry.user_data);
                    self.keep_late(entry);
                }
                None => return Err(Error::Protocol("a wait without an end has ended".to_owned())),
            }
        }
        link.arrive(self.watch);
        self.ask_again(&then)?;
        let again = self.remember();
        again.heard.clear();
        again.unheard.clear();
        Ok(())
    }

    /// Keeps a completion of the present ring for later.
    fn keep_late(&mut self, entry: CompletionEntry) {
        if let Some(flight) = self.slots.get_mut(entry.user_data).filter(|flight| flight.bounced) {
            flight.come_back(self.channel.life, entry.bytes);
        }
        self.stash.push_late(entry);
    }

    /// Whether a request was refused only because its session was ending: then it was not begun, and the next adapter does it.
    #[cold]
    pub(super) fn holds_back(&mut self, entry: &CompletionEntry) -> bool {
        let ends_with_session = matches!(
            Status(entry.status),
            Status::E_FLUSHED
                | Status::E_KEY_RANGE
                | Status::E_SEGMENT
                | Status::E_ENTRY_INVALID
                | Status::E_KEY_INSTANCE
                | Status::E_PD_MISMATCH
                | Status::E_LOCAL_MEM
        );
        let held = self.resumes
            && ends_with_session
            && !self.channel.is_down()
            && self.slots.get_mut(entry.user_data).is_some_and(|flight| flight.opcode != opcode::MANAGE)
            && self.channel.link.check_alive(self.channel.life).is_err_and(|error| error.is_gone());
        if held {
            self.remember().unheard.insert(entry.user_data);
        }
        held
    }

    /// From now on requests find their keys, and memory, by looking them up.
    fn remember(&mut self) -> &mut Again {
        self.again.get_or_insert_default()
    }

    /// What the dead adapter has answered, what it has heard of, and what not.
    fn take_stock(&mut self, standing: Standing) {
        while let Some(entry) = self.channel.end.pop() {
            if self.slots.get_mut(entry.user_data).is_some()
                && !(entry.status != 0 && self.holds_back(&entry))
            {
                self.keep_late(entry);
            }
        }
        let ended = self.stash.late();
        let unrung: HashSet<u64> = self.channel.end.unrung_user_data().collect();
        let life = self.channel.life;
        let again = self.again.get_or_insert_default();
        for (user_data, flight) in self.slots.all() {
            if ended.contains(&user_data) {
                again.heard.remove(&user_data);
                again.unheard.remove(&user_data);
                continue;
            }
            if flight.bounced {
                flight.come_back(life, 0);
            }
            if again.heard.contains(&user_data) || again.unheard.contains(&user_data) {
                continue; // As it was: nothing was done about it in the life that has ended.
            }
            if standing == Standing::Unheard || unrung.contains(&user_data) {
                again.unheard.insert(user_data);
            } else {
                again.heard.insert(user_data);
            }
        }
        let slots = &mut self.slots;
        again.heard.retain(|user_data| slots.get_mut(*user_data).is_some());
        again.unheard.retain(|user_data| slots.get_mut(*user_data).is_some());
        again.tries.retain(|user_data, _| slots.get_mut(*user_data).is_some());
    }

    fn fate(&mut self, link: &Link, user_data: u64, standing: Standing) -> Fate {
        let Some(again) = &mut self.again else { return Fate::Again };
        let Some(flight) = self.slots.get_mut(user_data) else { return Fate::Again };
        let changes =
            !matches!(flight.opcode, opcode::READ | opcode::COMPARE | opcode::FLUSH | opcode::CANCEL);
        if flight.opcode == opcode::MANAGE {
            // The keys in it are those of the life before, and its memory may hold half of a reply: who asked asks anew.
            return Fate::Ends(Status::E_OUTCOME_UNKNOWN);
        }
        if again.heard.contains(&user_data) {
            let tries = again.tries.entry(user_data).or_default();
            *tries += 1;
            if *tries > MOST_TRIES {
                return Fate::Ends(if changes { Status::E_OUTCOME_UNKNOWN } else { Status::E_PATH });
            }
            if changes {
                let repeats =
                    standing == Standing::Replays && !flight.in_extension && link.replays(flight.key);
                return if repeats { Fate::First } else { Fate::Ends(Status::E_OUTCOME_UNKNOWN) };
            }
        }
        if flight.in_extension { Fate::Ends(Status::E_KEY_INSTANCE) } else { Fate::Again }
    }

    fn end_with(&mut self, user_data: u64, status: Status) {
        if let Some(again) = &mut self.again {
            again.heard.remove(&user_data);
            again.unheard.remove(&user_data);
        }
        self.stash.push_late(CompletionEntry { user_data, status: status.0, ..CompletionEntry::default() });
    }

    /// Writes requests that have their slots into the present ring, and rings.
    fn ask_again(&mut self, requests: &[u64]) -> Result<(), Error> {
        for &user_data in requests {
            match self.put(user_data, 0) {
                Ok(()) => {}
                Err(error) if error.is_gone() => return Err(error),
                Err(error) => self.end_with(user_data, error.status().unwrap_or(Status::E_NO_RESOURCES)),
            }
        }
        self.ring()
    }

    /// As `submit` in the first life: what the request names goes by other keys now.
    #[cold]
    pub(super) fn submit_again(
        &mut self,
        request: Request,
        transfer: Option<NonZeroU64>,
    ) -> Result<Ticket, Refused> {
        let length = checked_length(&request).and_then(|length| {
            if let Data::Several(buffers) = &request.data {
                check_several(request.length, buffers)?;
            }
            Ok(length)
        });
        let length = match length {
            Ok(length) => length,
            Err(error) => return Err(Refused { error, request }),
        };
        let Some(vacant) = self.slots.vacant() else {
            return Err(Refused { error: Error::QueueFull, request });
        };
        if self.channel.is_down() {
            return Err(Refused { error: Error::QueueDown, request });
        }
        let extension = request.extension;
        let ticket = vacant.fill(flight(request, length, transfer));
        match self.put(ticket.user_data(), extension) {
            Ok(()) => Ok(ticket),
            Err(error) if error.is_gone() => {
                self.remember().unheard.insert(ticket.user_data());
                Ok(ticket)
            }
            Err(error) => match self.slots.end(ticket.user_data()) {
                Some((_, flight)) => Err(Refused { error, request: request_of(flight, extension) }),
                None => Ok(ticket),
            },
        }
    }

    /// Writes a request that has its slot into the present ring, under the keys of the present life.
    fn put(&mut self, user_data: u64, extension: u64) -> Result<(), Error> {
        let (Some(again), Some(flight)) = (&mut self.again, self.slots.get_mut(user_data)) else {
            return Ok(());
        };
        let (link, life) = (&self.channel.link, self.channel.life);
        let key = again.key(link, flight.key)?;
        flight.bounced = false;
        let (memory, segments) = match &mut flight.data {
            Data::None => ((0, 0), 0),
            Data::One(buffer) => {
                let (region, bounced) = buffer.hand_over(life)?;
                flight.bounced = bounced;
                ((region, buffer.region_offset()), 0)
            }
            Data::Several(buffers) => {
                let mut regions = Vec::with_capacity(buffers.len());
                for buffer in buffers.iter_mut() {
                    let (region, bounced) = buffer.hand_over(life)?;
                    flight.bounced |= bounced;
                    regions.push(region);
                }
                let slot = Ticket::from_user_data(user_data).slot();
                let segments = regions.iter().copied().zip(buffers.iter());
                let list = self.lists.write(&self.channel, slot, segments)?;
                (list, u8::try_from(buffers.len()).unwrap_or(u8::MAX))
            }
        };
        let entry = entry(flight, (user_data, key, extension), memory, segments);
        self.channel.end.push(&entry).map_err(|_| Error::QueueFull)
    }
}
