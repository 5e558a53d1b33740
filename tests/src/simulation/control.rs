//! The control plane: grants and regions come, change and go, as `adapter::control` does it.

use std::sync::Arc;

use adapter::mailbox::{Command, Drained, Ticket};
use tpt::{
    Access, Domain, GrantSpec, Iova, LbaRange, Modification, Purpose, Quiesce, RegionQuiesce, RegionSpec,
    TableError,
};

use super::memory::{Memories, REGION_BLOCKS};
use super::model::{BLOCK, GrantLife, READ, RegionLife, Stage, WRITE};
use super::outside::{Outside, REGIONS, finding};
use super::queue::Life;
use super::trace::event;
use super::watch::Stand;

enum Job {
    Grant { life: usize, quiesce: Quiesce, token: u64 },
    Region { life: usize, quiesce: RegionQuiesce },
}

/// What waits for its quiescent point.
struct Pending {
    job: Job,
    /// A ticket for each poller, until it was seen to be acknowledged.
    tickets: Vec<Option<Arc<Ticket>>>,
    until: Option<u64>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Control {
    pending: Vec<Pending>,
    tokens: u64,
    /// Revocations that were put aside unfinished.
    aside: Vec<usize>,
    /// When the device was last reset.
    reset_at: u64,
}

/// A reset is given so long: a poller that sleeps looks up ten times a second, and at the clock only now and then.
const RESET_AGAIN: u64 = 4_000_000_000;

fn ranges_of(ranges: &[(u64, u64)]) -> Vec<LbaRange> {
    ranges.iter().filter_map(|&(first, count)| LbaRange::new(first, count)).collect()
}

fn access(bits: u8) -> Access {
    Access::from_bits(bits).expect("three bits")
}

impl Outside {
    /// Something for everybody to begin with, mostly.
    pub(super) fn prepare(&mut self) {
        for _ in 0..self.rng.index(2 * self.config.clients + 2) {
            self.create_region();
            self.create_grant();
            self.create_grant();
        }
    }

    /// One step of the control plane.
    pub(super) fn control_step(&mut self) {
        if self.resets_what_is_stuck() {
            return;
        }
        if self.limits_step() {
            return;
        }
        if !self.control.pending.is_empty() && self.rng.once_in(2) {
            let at = self.rng.index(self.control.pending.len());
            return self.advance(at);
        }
        if self.rng.once_in(self.config.modify) {
            let purpose = if self.rng.once_in(4) { Purpose::Delete } else { Purpose::Modify };
            return self.begin_some(purpose);
        }
        if self.rng.once_in(self.config.revoke) {
            return self.begin_some(Purpose::Revoke);
        }
        match self.rng.below(8) {
            0..=2 => self.create_grant(),
            3 | 4 => self.create_region(),
            5 if self.rng.once_in(3) => self.begin_region_delete(),
            6 => self.query(),
            7 if !self.control.aside.is_empty() => {
                let life = self.control.aside.swap_remove(0);
                self.begin(life, Purpose::Revoke);
            }
            _ => {}
        }
    }

    /// A device that a poller calls stuck is reset, and again when that was no help.
    fn resets_what_is_stuck(&mut self) -> bool {
        let stuck = self.pollers.iter().any(|poller| poller.shared.is_stuck());
        let resets = stuck && self.now() > self.control.reset_at + RESET_AGAIN;
        if resets {
            self.control.reset_at = self.now();
            event!(self, "reset");
            self.device_fails();
        }
        resets
    }

    fn some_ranges(&mut self) -> Vec<(u64, u64)> {
        let fragments = self.rng.pick(&[1, 1, 2, 3, 5, 8]);
        let device = self.config.geometry.blocks;
        let mut ranges: Vec<(u64, u64)> = Vec::with_capacity(fragments);
        for _ in 0..fragments {
            let count = self.rng.between(1, 12);
            let first = self.rng.below(device - count + 1);
            if ranges.iter().all(|(f, c)| first >= f + c || *f >= first + count) {
                ranges.push((first, count));
            }
        }
        ranges
    }

    fn create_grant(&mut self) {
        let ranges = self.some_ranges();
        let client = self.rng.index(self.clients.len());
        let domain = self.clients[client].domain;
        let rights = if self.rng.once_in(3) { self.rng.below(8) as u8 } else { 7 };
        let shared = self.rng.once_in(2);
        let spec = GrantSpec {
            domain: Domain(domain),
            access: access(rights),
            block_shift: 9,
            ranges: &ranges_of(&ranges),
            shared,
        };
        let overlaps = self.model.overlaps(domain, shared, &ranges);
        match self.tables.create(&spec) {
            Ok(key) => {
                if overlaps {
                    finding!("{key} was created over blocks of another domain: {ranges:?}");
                }
                let life = GrantLife {
                    key,
                    domain,
                    access: rights,
                    shared,
                    versions: vec![ranges],
                    stage: Stage::Live,
                    closed_at: 0,
                    opened_at: 0,
                    finished: false,
                    token: 0,
                    revoked: false,
                };
                event!(self, "grant", key = key.0, domain = domain, access = rights, shared = shared);
                self.model.created(life).unwrap_or_else(|error| finding!("{error}"));
            }
            Err(TableError::Overlap) if overlaps => {}
            Err(TableError::NoResources) if !overlaps => {}
            Err(error) => finding!("a grant of {ranges:?} was refused: {error}; they overlap: {overlaps}"),
        }
    }

    fn create_region(&mut self) {
        let taken = |place| self.model.regions.iter().any(|life| life.place == place && !life.finished);
        let start = self.rng.index(REGIONS as usize);
        let mut places = (start..REGIONS as usize).chain(0..start);
        let Some(place) = places.find(|&place| !taken(place)) else { return };
        if !self.memories.is_untouched(place) {
            finding!("memory {place} was written to while it was nobody's");
        }
        let client = self.rng.index(self.clients.len());
        let domain = self.clients[client].domain;
        let rights = self.rng.pick(&[READ | WRITE, READ | WRITE, READ | WRITE, READ | WRITE, READ, WRITE]);
        let bytes = self.rng.pick(&[8, 16, REGION_BLOCKS, REGION_BLOCKS]) * BLOCK;
        let iova = Memories::iova(place) + 4 * self.rng.below(1024);
        let spec = RegionSpec { domain: Domain(domain), access: access(rights), iova: Iova(iova), bytes };
        match self.tables.create_region(&spec) {
            Ok(key) => {
                let life = RegionLife {
                    key,
                    domain,
                    access: rights,
                    place,
                    iova,
                    bytes,
                    closed: false,
                    finished: false,
                    used: 0,
                };
                event!(self, "region", key = key.0, domain = domain, access = rights, iova = iova);
                self.model.region_created(life).unwrap_or_else(|error| finding!("{error}"));
                self.memories.give(place);
                if self.config.bytes || self.config.lists {
                    for engine in 0..self.config.engines {
                        let memory = self.pool.region(place);
                        self.send(engine, Command::Region(key.index(), memory));
                    }
                }
            }
            Err(error) => finding!("a region was refused: {error}"),
        }
    }

    fn query(&mut self) {
        let Some(life) = self.some_grant(|life, _| !life.finished) else { return };
        let grant = &self.model.grants[life];
        let answer = self.tables.query(Domain(grant.domain), grant.key);
        let right = match &answer {
            Ok(its) => {
                let ranges: Vec<_> = its.ranges.iter().map(|range| (range.first.0, range.count.0)).collect();
                grant.stage != Stage::Closed
                    && its.access.bits() == grant.access
                    && ranges == grant.ranges()
                    && its.shared == grant.shared
            }
            Err(error) => grant.stage == Stage::Closed && *error == TableError::EntryInvalid,
        };
        if !right {
            finding!("a query of {} says {answer:?} where the model has {grant:?}", grant.key);
        }
    }

    fn begin_some(&mut self, purpose: Purpose) {
        if let Some(life) = self.some_grant(|life, _| !life.finished) {
            self.begin(life, purpose);
        }
    }

    /// Begins to modify, delete or revoke a grant, and asks every poller to say when it is drained.
    pub(super) fn begin(&mut self, life: usize, purpose: Purpose) {
        let grant = &self.model.grants[life];
        if grant.finished {
            return;
        }
        let key = grant.key;
        let busy = grant.token != 0;
        let aside = grant.revoked && grant.token == 0;
        let overtakes = purpose == Purpose::Revoke && !grant.revoked;
        let possible = if grant.revoked { aside && purpose == Purpose::Revoke } else { !busy || overtakes };
        let quiesce = match self.tables.begin(None, key, purpose) {
            Ok(quiesce) if possible => quiesce,
            Err(TableError::Busy | TableError::EntryInvalid) if !possible => return,
            answer => finding!("to begin a {purpose:?} of {key} gave {answer:?}"),
        };
        self.control.tokens += 1;
        let (token, moment) = (self.control.tokens, self.moment());
        self.model.held_until(life, moment);
        let grant = &mut self.model.grants[life];
        grant.token = token;
        if purpose == Purpose::Modify {
            grant.stage = Stage::Held;
        } else {
            if grant.stage != Stage::Closed {
                grant.closed_at = moment;
            }
            grant.stage = Stage::Closed;
        }
        grant.revoked |= purpose == Purpose::Revoke;
        self.control.aside.retain(|&other| other != life);
        event!(self, "begin", key = key.0, purpose = purpose as u8);
        let tickets = self.drain(Drained::Entry(key.index()));
        let until = match purpose {
            Purpose::Revoke if !self.rng.once_in(4) => None,
            _ => Some(self.now() + self.rng.pick(&[1_000, 50_000, 100_000_000])),
        };
        self.control.pending.push(Pending { job: Job::Grant { life, quiesce, token }, tickets, until });
    }

    pub(super) fn begin_region_delete(&mut self) {
        let open = |life: &RegionLife| !life.closed;
        let lives: Vec<usize> =
            (0..self.model.regions.len()).filter(|&at| open(&self.model.regions[at])).collect();
        if !lives.is_empty() {
            let life = self.rng.pick(&lives);
            self.end_region(life);
        }
    }

    fn end_region(&mut self, life: usize) {
        let key = self.model.regions[life].key;
        let quiesce = match self.tables.begin_region_delete(None, key) {
            Ok(quiesce) => quiesce,
            Err(error) => finding!("region {key} cannot be deleted: {error}"),
        };
        self.model.regions[life].closed = true;
        event!(self, "end region", key = key.0);
        let tickets = self.drain(Drained::Region(key.index()));
        self.control.pending.push(Pending { job: Job::Region { life, quiesce }, tickets, until: None });
    }

    /// A ticket of its own for each poller, so that each acknowledgement is seen in the turn that gives it.
    fn drain(&mut self, what: Drained) -> Vec<Option<Arc<Ticket>>> {
        let engines = self.config.engines;
        let ask = |engine: usize| {
            let ticket = Ticket::new(1);
            self.send(engine, Command::Drain(what, ticket.clone()));
            Some(ticket)
        };
        (0..engines).map(ask).collect()
    }

    /// After a turn of an engine: what it acknowledged has to be true.
    pub(super) fn look_at_tickets(&mut self, engine: usize) {
        for at in 0..self.control.pending.len() {
            let pending = &mut self.control.pending[at];
            if !pending.tickets[engine].as_ref().is_some_and(|ticket| ticket.is_done()) {
                continue;
            }
            pending.tickets[engine] = None;
            let (grant, region) = match pending.job {
                Job::Grant { life, .. } => (Some(life), None),
                Job::Region { life, .. } => (None, Some(life)),
            };
            event!(
                self,
                "drained",
                engine = engine,
                grant = grant.map_or(-1, |g| g as i64),
                region = region.map_or(-1, |r| r as i64)
            );
            for &queue in &self.pollers[engine].queues {
                for &number in &self.queues[queue as usize].open {
                    let asked = &self.asked[number as usize];
                    let uses = !self.is_unseen(asked)
                        && asked.bound.is_some_and(|bound| {
                            let of_region = |life| self.model.uses_region(&asked.entry, &bound, life);
                            grant == Some(bound.grant) || region.is_some_and(of_region)
                        });
                    if uses {
                        finding!("engine {engine} says that it is drained, and runs {asked:?}");
                    }
                }
            }
        }
        let is_done =
            |&queue: &u32| matches!(&self.queues[queue as usize].life, Life::Detaching(t) if t.is_done());
        if self.pollers[engine].queues.iter().any(is_done) {
            self.take_moved(); // It may have been on its way, and nobody else has its memory then.
        }
        let mut at = 0;
        while at < self.pollers[engine].queues.len() {
            let queue = self.pollers[engine].queues[at] as usize;
            if matches!(&self.queues[queue].life, Life::Detaching(ticket) if ticket.is_done()) {
                self.pollers[engine].queues.remove(at);
                self.let_go(queue);
            } else {
                at += 1;
            }
        }
    }

    /// The poller let go of a queue: its memory is somebody else's next.
    fn let_go(&mut self, queue: usize) {
        event!(self, "detached", queue = queue);
        let its = &self.queues[queue];
        if its.sleeping && !its.woken && its.scanned != its.popped {
            finding!("queue {queue} was let go of, its application sleeps and has answers");
        }
        let running = |&&number: &&u32| {
            let asked = &self.asked[number as usize];
            asked.bound.is_some() && !self.is_unseen(asked)
        };
        if let Some(&number) = its.open.iter().find(running) {
            let asked = &self.asked[number as usize];
            finding!("queue {queue} was let go of without an answer to {asked:?}");
        }
        while let Some(&number) = self.queues[queue].open.last() {
            self.close(number, Stand::Void);
        }
        while let Some(number) = self.queues[queue].written.pop() {
            self.close(number, Stand::Void);
        }
        let its = &mut self.queues[queue];
        its.life = Life::Gone;
        its.sleeping = false;
        let (client, entries, view) = (its.client, its.entries, its.view.take());
        self.clients[client].queues.retain(|&other| other as usize != queue);
        if let Some(view) = view {
            self.pool.give_back(entries, view);
        }
    }

    /// Goes on with what is pending: it ended, or its time is over, or it waits on.
    fn advance(&mut self, at: usize) {
        let pending = &self.control.pending[at];
        let quiet = pending.tickets.iter().all(Option::is_none);
        let late = pending.until.is_some_and(|until| self.now() >= until);
        if !quiet && !late {
            return;
        }
        let Pending { job, .. } = self.control.pending.swap_remove(at);
        match job {
            Job::Region { life, quiesce } => {
                event!(self, "region ends", region = life);
                self.tables.finish_region_delete(quiesce);
                self.model.finish_region(life);
                let place = self.model.regions[life].place;
                self.memories.take_back(place);
                if !self.pool.has_alone(place) {
                    finding!("region {life} is drained, and an engine has its memory");
                }
            }
            Job::Grant { life, quiesce, token } if quiet => self.finish(life, quiesce, token),
            Job::Grant { life, quiesce, token } => self.give_up(life, quiesce, token),
        }
    }

    fn finish(&mut self, life: usize, quiesce: Quiesce, token: u64) {
        let overtaken = self.model.grants[life].token != token;
        event!(self, "finish", grant = life, purpose = quiesce.purpose() as u8, overtaken = overtaken);
        if quiesce.purpose() == Purpose::Modify && !(self.calm || self.rng.once_in(8)) {
            return self.change(life, quiesce, overtaken);
        }
        self.lift_limit(self.model.grants[life].key.index());
        self.tables.finish_delete(quiesce);
        if !overtaken {
            self.model.held_until(life, self.moment());
            self.model.finish_grant(life);
        }
    }

    fn change(&mut self, life: usize, quiesce: Quiesce, overtaken: bool) {
        let ranges = if self.rng.once_in(3) { None } else { Some(self.some_ranges()) };
        let rights = if self.rng.once_in(2) { None } else { Some(self.rng.below(8) as u8) };
        let list = ranges.as_deref().map(ranges_of);
        let change = Modification { access: rights.map(access), ranges: list.as_deref() };
        let grant = &self.model.grants[life];
        let overlaps =
            ranges.as_ref().is_some_and(|ranges| self.model.overlaps(grant.domain, grant.shared, ranges));
        match self.tables.finish_modify(quiesce, &change) {
            Ok(()) => {
                if overtaken || overlaps {
                    finding!("{} was modified; overtaken {overtaken}, overlaps {overlaps}", grant.key);
                }
                let moment = self.moment();
                self.model.held_until(life, moment);
                let grant = &mut self.model.grants[life];
                grant.versions.extend(ranges);
                grant.access = rights.unwrap_or(grant.access);
                (grant.stage, grant.token) = (Stage::Live, 0);
            }
            Err((quiesce, error)) => {
                let right = match error {
                    TableError::EntryInvalid => overtaken,
                    TableError::Overlap => overlaps,
                    TableError::NoResources => ranges.is_some(),
                    _ => false,
                };
                if !right {
                    finding!("{} was not modified: {error}", grant.key);
                }
                self.undo(life, quiesce, overtaken);
            }
        }
    }

    /// The time is over: a modify or delete is undone, a revocation is put aside and begun again later.
    fn give_up(&mut self, life: usize, quiesce: Quiesce, token: u64) {
        let overtaken = self.model.grants[life].token != token;
        event!(self, "give up", grant = life, purpose = quiesce.purpose() as u8);
        self.undo(life, quiesce, overtaken);
    }

    fn undo(&mut self, life: usize, quiesce: Quiesce, overtaken: bool) {
        let purpose = quiesce.purpose();
        self.tables.cancel(quiesce);
        if overtaken {
            return;
        }
        let moment = self.moment();
        self.model.held_until(life, moment);
        let grant = &mut self.model.grants[life];
        grant.token = 0;
        if purpose == Purpose::Revoke {
            return self.control.aside.push(life);
        }
        (grant.stage, grant.opened_at) = (Stage::Live, moment);
    }

    /// Ends what can be ended; whether nothing is pending.
    pub(super) fn control_settles(&mut self) -> bool {
        self.resets_what_is_stuck();
        self.take_moved();
        for pending in &mut self.control.pending {
            pending.until = None; // Nothing is given up any more.
        }
        for at in (0..self.control.pending.len()).rev() {
            self.advance(at);
        }
        self.control.pending.is_empty()
    }

    /// Ends everything there is.
    pub(super) fn end_everything(&mut self) {
        for queue in 0..self.queues.len() {
            if self.queues[queue].is_attached() {
                self.detach(queue);
            }
        }
        for life in 0..self.model.grants.len() {
            if !self.model.grants[life].revoked || self.model.grants[life].token == 0 {
                self.begin(life, Purpose::Revoke);
            }
        }
        for life in 0..self.model.regions.len() {
            if !self.model.regions[life].closed {
                self.end_region(life);
            }
        }
    }

    /// What is left although everything has ended.
    pub(super) fn check_empty(&self) {
        let usage = self.tables.usage();
        if (usage.entries, usage.lba_entries, usage.regions) != (0, 0, 0) {
            finding!("everything has ended, and the tables hold {usage:?}");
        }
        if let Some(grant) = self.model.grants.iter().find(|grant| !grant.finished) {
            finding!("everything has ended but {grant:?}");
        }
        if let Some(place) = (0..REGIONS as usize).find(|&place| !self.memories.is_untouched(place)) {
            finding!("memory {place} was written to after it had been given back");
        }
    }
}
