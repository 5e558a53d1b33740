//! Applications: honest, careless and hostile.

use adapter::engine::{Port, QueueId};
use adapter::mailbox::{Command, Ticket};
use tpt::Domain;
use wire::layout::{ScatterSegment, SubmissionEntry, flag, opcode};
use wire::sync::{Ordering, fence};
use wire::view::QueueMemory;

use super::bytes::{write_list, write_payload};
use super::memory::{PART, PARTS, REGION_BLOCKS};
use super::model::{BLOCK, List, Op, Verdict, What, meaning};
use super::outside::Outside;
use super::queue::{AppQueue, Life};
use super::trace::event;
use super::watch::{Asked, NOBODY, Stand};

/// What a buffer is filled with before it is read into.
pub(super) const UNREAD: u32 = 0xffff_fff0;

/// One application.
pub(super) struct Client {
    pub(super) domain: u32,
    pub(super) queues: Vec<u32>,
}

impl Client {
    pub(super) fn new(domain: u32) -> Self {
        Self { domain, queues: Vec::new() }
    }
}

/// `blocks` bits from `first`.
pub(super) fn bits(first: u64, blocks: u64) -> u64 {
    let ones = if blocks >= 64 { u64::MAX } else { (1 << blocks) - 1 };
    ones << first
}

impl Outside {
    /// One step of some application.
    pub(super) fn client_step(&mut self) {
        let client = self.rng.index(self.clients.len());
        let queues = self.clients[client].queues.len();
        if queues == 0 || queues < 3 && self.rng.once_in(24) {
            return self.attach(client);
        }
        let queue = self.clients[client].queues[self.rng.index(queues)] as usize;
        if self.queues[queue].sleeping {
            self.wake_up(queue);
            return;
        }
        if !self.queues[queue].is_attached() {
            return self.consume(queue);
        }
        if self.queues[queue].jumped && self.rng.once_in(4) {
            return self.put_tail_back(queue);
        }
        if self.rng.once_in(self.config.violations) {
            return self.violate(queue);
        }
        if self.rng.once_in(self.config.rewrites) {
            return self.rewrite(queue);
        }
        if self.rng.once_in(self.config.detaches) {
            return self.detach(queue);
        }
        match self.rng.below(16) {
            0..=8 => self.ask(queue),
            9..=13 => self.consume(queue),
            14 => self.fall_asleep(queue),
            _ => self.half_write(queue),
        }
    }

    fn attach(&mut self, client: usize) {
        let engine = self.rng.index(self.pollers.len());
        let entries = self.rng.pick(&[4, 4, 8, 16, 32, 64]);
        let rng = &mut self.rng;
        let view = self.pool.take(entries, || rng.next());
        let number = self.queues.len() as u32;
        let domain = self.clients[client].domain;
        let queue = AppQueue {
            client,
            domain,
            engine,
            entries,
            view: Some(view.clone()),
            life: Life::Attached,
            pushed: 0,
            rung: 0,
            popped: 0,
            scanned: 0,
            head: 0,
            written: Vec::with_capacity(8),
            open: Vec::with_capacity(entries as usize),
            offended: false,
            jumped: false,
            mute: self.rng.once_in(self.config.mute),
            sleeping: false,
            woken: false,
            taken_in_turn: 0,
        };
        let port = Port::new(QueueId(number), client as u64, Domain(domain), view, queue.size());
        self.queues.push(queue);
        self.clients[client].queues.push(number);
        self.pollers[engine].queues.push(number);
        self.send(engine, Command::Attach(Box::new(port)));
        event!(self, "attach", queue = number, client = client, engine = engine, entries = entries);
    }

    pub(super) fn detach(&mut self, queue: usize) {
        let ticket = Ticket::new(1);
        self.queues[queue].life = Life::Detaching(ticket.clone());
        self.send(self.queues[queue].engine, Command::Detach(QueueId(queue as u32), ticket));
        event!(self, "detach", queue = queue);
    }

    /// Writes a few requests, and mostly rings.
    fn ask(&mut self, queue: usize) {
        let most = if self.config.flood { 64 } else { self.rng.between(1, 4) };
        for _ in 0..most {
            let its = &self.queues[queue];
            // One that never consumes overfills its queue as far as the adapter lets it.
            let known = if its.mute { its.head } else { its.popped };
            if its.pushed.wrapping_sub(known) >= its.entries {
                break;
            }
            let count = its.pushed;
            let number = self.compose(queue, count);
            self.queues[queue].overwrite(count, &self.asked[number as usize].entry);
            self.queues[queue].pushed = count.wrapping_add(1);
            self.queues[queue].written.push(number);
        }
        if !self.rng.once_in(8) && !self.queues[queue].jumped {
            self.ring(queue);
        }
    }

    /// Announces what was written.
    pub(super) fn ring(&mut self, queue: usize) {
        let (moment, its) = (self.moment(), &mut self.queues[queue]);
        if its.written.is_empty() {
            return;
        }
        let clock = self.pollers[its.engine].clock();
        for &number in &its.written {
            let asked = &mut self.asked[number as usize];
            (asked.stand, asked.announced, asked.clock) = (Stand::Announced, moment, clock);
            self.bytes_seen |= asked.is_of_bytes();
        }
        its.open.append(&mut its.written);
        its.rung = its.pushed;
        event!(self, "ring", queue = queue, tail = its.rung);
        self.store_tail(queue, self.queues[queue].rung);
    }

    fn store_tail(&mut self, queue: usize, tail: u32) {
        if self.queues[queue].store_tail(tail) {
            self.ring_bell(queue);
        }
    }

    /// Consumes some of the completions.
    fn consume(&mut self, queue: usize) {
        if self.queues[queue].mute && !self.calm || self.queues[queue].is_gone() {
            return;
        }
        let its = &mut self.queues[queue];
        let there = its.scanned.wrapping_sub(its.popped);
        if there > 0 {
            let many = if self.rng.once_in(2) { there } else { 1 + self.rng.index32(there) };
            its.popped = its.popped.wrapping_add(many);
            its.store_head(its.popped);
        }
    }

    fn fall_asleep(&mut self, queue: usize) {
        let its = &mut self.queues[queue];
        let view = its.view.as_ref().expect("an attached queue");
        view.cq_wait().store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if its.completion(its.popped).is_some() || its.has_failed() {
            view.cq_wait().store(0, Ordering::Relaxed);
            return;
        }
        (its.sleeping, its.woken) = (true, false);
        event!(self, "sleep", queue = queue);
    }

    fn wake_up(&mut self, queue: usize) {
        let its = &mut self.queues[queue];
        if !its.woken || its.is_gone() {
            return;
        }
        its.sleeping = false;
        its.view().cq_wait().store(0, Ordering::Relaxed);
        event!(self, "awake", queue = queue);
    }

    /// Leaves an entry in the next slot that is not announced: it must not be seen.
    fn half_write(&mut self, queue: usize) {
        let its = &self.queues[queue];
        if its.pushed.wrapping_sub(its.popped) >= its.entries || its.mute {
            return;
        }
        let (count, domain) = (its.pushed, its.domain);
        let (mut entry, _) = self.request(domain);
        entry.user_data = u64::MAX;
        self.queues[queue].overwrite(count, &entry);
    }

    /// Writes an announced entry again, before the adapter took it or after.
    fn rewrite(&mut self, queue: usize) {
        let open = &self.queues[queue].open;
        if open.is_empty() {
            return;
        }
        let old = self.rng.pick(open);
        let asked = self.asked[old as usize];
        let its = &self.queues[queue];
        if asked.is_scattered() && asked.tried.is_some() {
            return self.scribble(&asked);
        }
        let taken = asked.tried.is_some() || (its.head.wrapping_sub(asked.count) as i32) > 0;
        // The slot may be another entry's by now.
        let is_last = its.pushed.wrapping_sub(asked.count) <= its.entries;
        if asked.twin != NOBODY || !is_last {
            return;
        }
        let new = self.compose(queue, asked.count);
        let moment = self.moment();
        let entry = self.asked[new as usize].entry;
        self.queues[queue].overwrite(asked.count, &entry);
        event!(self, "rewrite", queue = queue, old = old, new = new, taken = taken);
        if taken {
            return self.close(new, Stand::Void);
        }
        let clock = self.pollers[self.queues[queue].engine].clock();
        let twin = &mut self.asked[new as usize];
        (twin.stand, twin.announced, twin.clock, twin.twin) = (Stand::Announced, moment, clock, old);
        self.bytes_seen |= twin.is_of_bytes();
        self.asked[old as usize].twin = new;
        self.queues[queue].open.push(new);
    }

    /// Breaks the protocol.
    fn violate(&mut self, queue: usize) {
        let by = self.rng.pick(&[1, 2, 64, 1 << 16, 1 << 31]);
        let its = &mut self.queues[queue];
        its.offended = true;
        if self.rng.once_in(3) {
            event!(self, "false head", queue = queue, by = by);
            its.store_head(its.popped.wrapping_add(its.entries).wrapping_add(by));
        } else {
            let tail = its.pushed.wrapping_add(its.entries).wrapping_add(by);
            its.jumped = true;
            event!(self, "jump", queue = queue, tail = tail);
            self.store_tail(queue, tail);
        }
    }

    pub(super) fn put_tail_back(&mut self, queue: usize) {
        self.queues[queue].jumped = false;
        event!(self, "tail is back", queue = queue);
        self.store_tail(queue, self.queues[queue].rung);
        let its = &self.queues[queue];
        its.store_head(its.popped);
    }

    /// In the end everybody behaves: consumes, wakes up when woken, takes back what was wrong.
    pub(super) fn behave(&mut self, queue: usize) {
        if self.queues[queue].sleeping {
            self.wake_up(queue);
        }
        if self.queues[queue].sleeping || self.queues[queue].is_gone() {
            return;
        }
        if self.queues[queue].mute && self.queues[queue].is_attached() {
            // It asked for more than it left room for: it has to ring again when it makes room.
            self.store_tail(queue, self.queues[queue].rung);
        }
        if self.queues[queue].offended && self.queues[queue].is_attached() {
            self.put_tail_back(queue);
        }
        self.consume(queue);
    }

    /// A new request at a place of a queue.
    fn compose(&mut self, queue: usize, count: u32) -> u32 {
        let number = self.asked.len() as u32;
        let domain = self.queues[queue].domain;
        let (mut entry, memory) =
            if self.rng.once_in(12) { (self.cancel(queue), None) } else { self.request(domain) };
        if self.is_like_another(queue, &entry) {
            entry = SubmissionEntry { opcode: opcode::FLUSH, key: entry.key, ..SubmissionEntry::default() };
        }
        entry.user_data = u64::from(number);
        let mut memory = memory;
        if memory.is_some()
            && self.config.lists
            && self.rng.once_in(2)
            && self.scatter(&mut entry, number, domain)
        {
            memory = None;
        }
        let what = meaning(&entry);
        let mut asked = Asked::new(queue as u32, count, entry, what);
        if let (What::Io(op), Some(region)) = (what, self.model.region_of(tpt::RegionKey(entry.region)))
            && op.memory_rights().is_some()
            && !asked.is_scattered()
        {
            asked.iova = self.model.regions[region].iova.wrapping_add(entry.region_offset);
        }
        if let Some((region, first, blocks)) = memory {
            self.model.regions[region].used |= bits(first, blocks);
            let place = self.model.regions[region].place;
            let content = if what == What::Io(Op::Read) { UNREAD } else { number };
            for block in first..first + blocks {
                *self.memories.block(place, block) = [content; PARTS];
            }
            if asked.is_of_bytes() {
                let memory = self.pool.region(place);
                write_payload(&memory, entry.region_offset, u64::from(entry.length), number);
            }
        }
        asked.memory = memory;
        let op = u64::from(entry.opcode) << 8 | u64::from(entry.flags);
        event!(self, "write", request = number, queue = queue, op = op, key = entry.key);
        self.asked.push(asked);
        number
    }

    /// Turns the memory of a read, write or compare into a list, with segments here and there. False if there is no room.
    fn scatter(&mut self, entry: &mut SubmissionEntry, number: u32, domain: u32) -> bool {
        let scatters = matches!(meaning(entry), What::Io(Op::Read | Op::Write { .. } | Op::Compare));
        let blocks = u64::from(entry.length) / BLOCK;
        if !scatters || !u64::from(entry.length).is_multiple_of(BLOCK) || !(1..=12).contains(&blocks) {
            return false;
        }
        let mut list = List { number: u64::from(number), segments: Vec::new(), memory: Vec::new() };
        let mut left = blocks;
        let content = if entry.opcode == opcode::READ { UNREAD } else { number };
        let place = self.reserve(domain, 1);
        list.memory.extend(place);
        while left > 0 && !list.memory.is_empty() {
            let many = self.rng.between(1, left.min(4));
            let Some((region, first, _)) = self.reserve(domain, many) else { break };
            list.memory.push((region, first, many));
            let its = &self.model.regions[region];
            let (key, place) = (its.key.0, its.place);
            let length = (many * BLOCK) as u32;
            list.segments.push(ScatterSegment { region: key, offset: first * BLOCK, length, reserved: 0 });
            for block in first..first + many {
                *self.memories.block(place, block) = [content; PARTS];
            }
            left -= many;
        }
        let (Some((region, first, _)), 0) = (place, left) else {
            for (region, first, blocks) in list.memory {
                self.model.regions[region].used &= !bits(first, blocks);
            }
            return false;
        };
        if self.rng.once_in(self.config.invalid) {
            self.spoil_list(&mut list.segments);
        }
        entry.flags |= flag::SCATTER;
        entry.scatter_count = list.segments.len() as u8;
        entry.region = self.model.regions[region].key.0;
        entry.region_offset = first * BLOCK + 8 * self.rng.below(4);
        if self.rng.once_in(self.config.invalid) {
            entry.region_offset += 4;
        }
        let memory = self.pool.region(self.model.regions[region].place);
        write_list(&memory, entry.region_offset / 8 * 8, &list.segments);
        self.model.lists.push(list);
        true
    }

    /// Blocks of some region of a domain that nobody uses.
    fn reserve(&mut self, domain: u32, blocks: u64) -> Option<(usize, u64, u64)> {
        let region = self.some_region(domain)?;
        let start = self.rng.below(REGION_BLOCKS);
        let its = &mut self.model.regions[region];
        let size = its.bytes / BLOCK;
        let fits = |first: &u64| first + blocks <= size && its.used & bits(*first, blocks) == 0;
        let first = (start..REGION_BLOCKS).chain(0..start).find(fits)?;
        its.used |= bits(first, blocks);
        Some((region, first, blocks))
    }

    fn spoil_list(&mut self, segments: &mut Vec<ScatterSegment>) {
        let at = self.rng.index(segments.len());
        match self.rng.below(6) {
            0 => segments[at].reserved = 1,
            1 => segments[at].length += self.rng.pick(&[1, 512, 256]),
            2 => segments[at].offset = self.rng.pick(&[1, 2, 1 << 40, u64::MAX - 3]),
            3 => segments[at].region ^= 1 << (40 + self.rng.below(8)),
            4 => segments[at].length = 0,
            _ => segments.truncate(segments.len().max(2) - 1),
        }
    }

    /// Writes over a list that the adapter has read: that changes nothing any more.
    fn scribble(&mut self, asked: &Asked) {
        let Some(region) = self.model.region_of(tpt::RegionKey(asked.entry.region)) else { return };
        let memory = self.pool.region(self.model.regions[region].place);
        let wrong = ScatterSegment { region: asked.entry.region, offset: 0, length: 512, reserved: 0 };
        write_list(
            &memory,
            asked.entry.region_offset / 8 * 8,
            &vec![wrong; asked.entry.scatter_count.into()],
        );
    }

    /// Whether another request that moves no data may make the same commands, so that the watcher could not tell which of
    /// them a command is for.
    fn is_like_another(&self, queue: usize, entry: &SubmissionEntry) -> bool {
        let What::Io(op @ (Op::Zeroes { .. } | Op::Deallocate)) = meaning(entry) else { return false };
        let first = |queue: &AppQueue, op, entry| match self.model.check(queue.domain, op, entry) {
            Verdict::Granted(bound) => Some(self.model.place(&bound, 0).0),
            Verdict::Held | Verdict::Refused(_) => None,
        };
        let its = &self.queues[queue];
        let Some(at) = first(its, op, entry) else { return self.was_asked(queue, entry) };
        self.pollers[its.engine].queues.iter().any(|&other| {
            let other = &self.queues[other as usize];
            other.open.iter().chain(&other.written).any(|&number| {
                let asked = &self.asked[number as usize];
                let What::Io(op @ (Op::Zeroes { .. } | Op::Deallocate)) = asked.what else { return false };
                match asked.bound {
                    Some(bound) => self.model.place(&bound, asked.accepted.min(bound.count - 1)).0 == at,
                    None => first(other, op, &asked.entry) == Some(at),
                }
            })
        })
    }

    /// Whether the same is asked for already, under a grant that may open again.
    fn was_asked(&self, queue: usize, entry: &SubmissionEntry) -> bool {
        self.pollers[self.queues[queue].engine].queues.iter().any(|&other| {
            let other = &self.queues[other as usize];
            other.open.iter().chain(&other.written).any(|&number| {
                let its = &self.asked[number as usize].entry;
                (its.opcode, its.key, its.offset) == (entry.opcode, entry.key, entry.offset)
            })
        })
    }

    fn cancel(&mut self, queue: usize) -> SubmissionEntry {
        let its = &self.queues[queue];
        let of_open = if its.open.is_empty() { None } else { Some(u64::from(self.rng.pick(&its.open))) };
        let target = match (of_open, its.written.last()) {
            (Some(target), _) if !self.rng.once_in(4) => target,
            (_, Some(&last)) if self.rng.once_in(2) => u64::from(last),
            _ => self.rng.below(self.asked.len() as u64 + 2),
        };
        SubmissionEntry { opcode: opcode::CANCEL, offset: target, ..SubmissionEntry::default() }
    }

    /// A request for I/O, and the memory that it has for itself.
    fn request(&mut self, domain: u32) -> (SubmissionEntry, Option<(usize, u64, u64)>) {
        let (op, flags) = self.rng.pick(&[
            (opcode::READ, 0),
            (opcode::READ, 0),
            (opcode::READ, 0),
            (opcode::WRITE, 0),
            (opcode::WRITE, 0),
            (opcode::WRITE, flag::FUA),
            (opcode::FLUSH, 0),
            (opcode::WRITE_ZEROES, 0),
            (opcode::WRITE_ZEROES, flag::DEALLOCATE),
            (opcode::DEALLOCATE, 0),
            (opcode::COMPARE, 0),
        ]);
        let mut entry = SubmissionEntry { opcode: op, flags, ..SubmissionEntry::default() };
        let mut blocks = 0;
        if let Some(life) = self.some_grant(|life, _| life.domain == domain && !life.finished) {
            let grant = &self.model.grants[life];
            entry.key = grant.key.0;
            if op != opcode::FLUSH {
                let size = grant.blocks();
                blocks = self.rng.between(1, size.min(12));
                let start =
                    if self.rng.once_in(4) { size - blocks } else { self.rng.below(size - blocks + 1) };
                entry.offset = start * BLOCK;
                entry.length = (blocks * BLOCK) as u32;
            }
        }
        let mut memory = None;
        let mut skew = 0;
        if blocks > 0 && self.config.bytes && op == opcode::WRITE && self.rng.once_in(2) {
            skew = self.rng.below(64);
            blocks = self.ask_for_bytes(&mut entry, blocks, skew);
        }
        if let What::Io(op) = meaning(&entry)
            && let Some(rights) = op.memory_rights()
            && blocks > 0
            && let Some(region) = self.some_region(domain)
        {
            let its = &self.model.regions[region];
            let size = its.bytes / BLOCK;
            let start = self.rng.below(REGION_BLOCKS);
            let fits = |first: &u64| first + blocks <= size && its.used & bits(*first, blocks) == 0;
            if let Some(first) = (start..REGION_BLOCKS).chain(0..start).find(fits) {
                memory = Some((region, first, blocks));
                entry.region = its.key.0;
                entry.region_offset = first * BLOCK + skew;
            }
            let _ = rights; // Whether the region has them is for the adapter to find out.
        }
        if self.rng.once_in(self.config.deadlines) {
            entry.deadline_us = self.rng.pick(&[1, 3, 10, 50, 1_000_000]);
        }
        if self.rng.once_in(self.config.invalid) {
            self.spoil(&mut entry, domain);
        }
        (entry, memory)
    }

    /// Makes a write one of bytes. Blocks of memory that its payload takes.
    fn ask_for_bytes(&mut self, entry: &mut SubmissionEntry, blocks: u64, skew: u64) -> u64 {
        entry.opcode = opcode::WRITE_BYTES;
        let parts = blocks * PARTS as u64;
        let first = self.rng.below(parts);
        let many =
            if self.rng.once_in(4) { parts - first } else { self.rng.between(1, parts - first) }.min(40);
        entry.offset += first * PART as u64;
        entry.length = (many * PART as u64) as u32;
        (u64::from(entry.length) + skew).div_ceil(BLOCK)
    }

    /// Makes a request one that must be refused, or of which only the adapter can tell.
    fn spoil(&mut self, entry: &mut SubmissionEntry, domain: u32) {
        match self.rng.below(14) {
            // What is wrong for others would be right for a write of bytes, and not what the watcher can read.
            10..=12 if entry.opcode == opcode::WRITE_BYTES => {
                entry.length = self.rng.pick(&[65537, u32::MAX]);
            }
            0 => entry.opcode = self.rng.pick(&[0, 11, 12, 77, 255]),
            1 => entry.flags ^= self.rng.pick(&[1, 2, 8, 128]),
            2 => match self.rng.below(4) {
                0 => entry.reserved = 1,
                1 => entry.reserved2 = 1 << 31,
                2 => entry.extension = 1,
                _ => entry.scatter_count = 1,
            },
            3 => {
                entry.key =
                    u64::from(self.config.entries) + self.rng.below(1 << 32) + (entry.key >> 32 << 32);
            }
            4 => entry.key ^= 1 << (32 + self.rng.below(4)),
            5 => entry.key = self.rng.below(u64::from(self.config.entries)) | 1 << 32,
            6 => self.use_key(entry, |life, _| life.domain != domain),
            7 => self.use_key(entry, |life, _| life.domain == domain && life.finished),
            8 => entry.offset = self.rng.pick(&[u64::MAX - 511, 1 << 63, 1 << 40, u64::MAX << 9]),
            9 => entry.length = self.rng.pick(&[0, u32::MAX, u32::MAX << 9, 1 << 30]),
            10 => entry.offset += self.rng.pick(&[1, 256, 511]),
            11 => entry.length += self.rng.pick(&[1, 256, 511]),
            12 => match self.rng.below(4) {
                0 => entry.region ^= 1 << (32 + self.rng.below(4)),
                1 => entry.region += 1 << 20,
                2 => entry.region_offset += self.rng.pick(&[1, 2, 3]),
                _ => entry.region_offset = self.rng.pick(&[u64::MAX - 3, 1 << 40, 1 << 63]),
            },
            _ => {
                let some = self.rng.index(self.model.regions.len().max(1));
                if let Some(region) = self.model.regions.get(some)
                    && (region.domain != domain || region.finished)
                {
                    entry.region = region.key.0;
                }
            }
        }
    }

    fn use_key(
        &mut self,
        entry: &mut SubmissionEntry,
        wanted: impl Fn(&super::model::GrantLife, usize) -> bool,
    ) {
        if let Some(life) = self.some_grant(wanted) {
            entry.key = self.model.grants[life].key.0;
        }
    }

    /// One of the grants there ever were, if one of a few tries is wanted.
    pub(super) fn some_grant(
        &mut self,
        wanted: impl Fn(&super::model::GrantLife, usize) -> bool,
    ) -> Option<usize> {
        let many = self.model.grants.len();
        for _ in 0..if many == 0 { 0 } else { 10 } {
            let at = self.rng.index(many);
            if wanted(&self.model.grants[at], at) {
                return Some(at);
            }
        }
        None
    }

    fn some_region(&mut self, domain: u32) -> Option<usize> {
        let many = self.model.regions.len();
        for _ in 0..if many == 0 { 0 } else { 10 } {
            let at = self.rng.index(many);
            if self.model.regions[at].domain == domain && !self.model.regions[at].finished {
                return Some(at);
            }
        }
        None
    }
}
