//! The watcher: what is seen on rings and at the device, against the model.

use driver::block::{Command, DeviceStatus, Geometry, Operation, Segment};
use tpt::Key;
use wire::Status;
use wire::layout::{CompletionEntry, SubmissionEntry, flag};

use super::bytes::is_own;
use super::device::Over;
use super::model::{BLOCK, Bound, Op, Verdict, What};
use super::outside::{Outside, finding};

use super::trace::event;

/// Where a request stands, as far as it can be seen from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stand {
    Written,
    Announced,
    Ended,
    /// It will never be executed: its slot was written again, or its queue is gone.
    Void,
}

/// No other request.
pub(super) const NOBODY: u32 = u32::MAX;

/// A request as an application wrote it, and what was seen of it since.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) queue: u32,
    /// Its place in the queue, a free-running count.
    pub(super) count: u32,
    pub(super) entry: SubmissionEntry,
    pub(super) what: What,
    pub(super) stand: Stand,
    pub(super) announced: u64,
    /// What its engine's clock had said last when it was announced, and when the engine first tried to start it.
    pub(super) clock: u64,
    pub(super) tried: Option<u64>,
    pub(super) bound: Option<Bound>,
    /// Blocks that the device took, that ended well, and commands that it has.
    pub(super) accepted: u64,
    pub(super) done: u64,
    pub(super) outstanding: u32,
    /// The first command that ended badly.
    pub(super) failure: Option<DeviceStatus>,
    /// Blocks of a region that are its own until it ended: region, first block, number.
    pub(super) memory: Option<(usize, u64, u64)>,
    /// Where the device must find the rest of its data; 0 if none moves.
    pub(super) iova: u64,
    tag: u64,
    /// Of a write of bytes: the parts that are on the device.
    pub(super) landed: u64,
    /// The other version of the same entry.
    pub(super) twin: u32,
    pub(super) cancelled: bool,
}

impl Asked {
    pub(super) fn new(queue: u32, count: u32, entry: SubmissionEntry, what: What) -> Self {
        Self {
            queue,
            count,
            entry,
            what,
            stand: Stand::Written,
            announced: 0,
            clock: 0,
            tried: None,
            bound: None,
            accepted: 0,
            done: 0,
            outstanding: 0,
            failure: None,
            memory: None,
            iova: 0,
            landed: 0,
            tag: u64::MAX,
            twin: NOBODY,
            cancelled: false,
        }
    }

    /// What has number 0, which is what memory and blocks hold before anybody wrote there.
    pub(super) fn nothing() -> Self {
        Self { stand: Stand::Void, ..Self::new(0, 0, SubmissionEntry::default(), What::Malformed) }
    }

    pub(super) fn is_scattered(&self) -> bool {
        self.entry.flags & flag::SCATTER != 0
    }

    pub(super) fn is_open(&self) -> bool {
        self.stand == Stand::Announced
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled
    }

    pub(super) fn is_of_bytes(&self) -> bool {
        matches!(self.what, What::Io(Op::WriteBytes { .. }))
    }

    pub(super) fn is_flush(&self) -> bool {
        self.what == What::Io(Op::Flush)
    }

    fn is_io(&self) -> bool {
        matches!(self.what, What::Io(_))
    }

    /// It makes commands that move no data.
    pub(super) fn is_bare(&self) -> bool {
        matches!(self.what, What::Io(Op::Zeroes { .. } | Op::Deallocate))
    }
}

/// What the device is asked for an operation; `None` if it cannot do it.
pub(super) fn for_device(op: Op, geometry: &Geometry) -> Option<Operation> {
    let zeroes = |deallocate| geometry.write_zeroes.then_some(Operation::WriteZeroes { deallocate });
    match op {
        Op::Read => Some(Operation::Read),
        Op::Write { fua } | Op::WriteBytes { fua } => Some(Operation::Write { fua }),
        Op::Flush => Some(Operation::Flush),
        Op::Compare => geometry.compare.then_some(Operation::Compare),
        Op::Zeroes { deallocate } => zeroes(deallocate),
        Op::Deallocate if geometry.deallocate && geometry.deallocate_zeroes => Some(Operation::Deallocate),
        Op::Deallocate => zeroes(true),
    }
}

/// The part of a tag that names the request, as far as this engine does it so: only to tell twins apart.
const TAG_OF_REQUEST: u64 = 0xffff_ffff;

impl Outside {
    /// The request that a command is for. A command that no open request explains is a finding.
    pub(super) fn explain(&mut self, engine: usize, command: &Command, segments: &[Segment]) -> Option<u32> {
        if command.operation == Operation::Flush {
            self.explain_flush(engine);
            return None;
        }
        if is_own(command) {
            return self.explain_own(engine, command);
        }
        if self.blind && !command.operation.moves_data() || self.blind_to_all {
            return None;
        }
        let (mut found, mut many) = (None, 0);
        'queues: for &queue in &self.pollers[engine].queues {
            for &number in &self.queues[queue as usize].open {
                if !self.could_be(number, command) {
                    continue;
                }
                many += 1;
                found = found.or(Some(number));
                if self.asked[number as usize].tag == command.tag & TAG_OF_REQUEST {
                    (found, many) = (Some(number), 1);
                    break 'queues;
                }
            }
        }
        let Some(number) = found else { self.unexplained(engine, command) };
        if many > 1 {
            // Requests that move no data may look the same to the device. From here on they are not looked at.
            // (Others can only when an application guessed the key of a region that came later.)
            self.blind = true;
            self.blind_to_all |= command.operation.moves_data();
            event!(self, "blind");
            return None;
        }
        self.check_command(engine, number, command, segments);
        Some(number)
    }

    /// Whether nothing is known of what the device does for a request.
    pub(super) fn is_unseen(&self, asked: &Asked) -> bool {
        self.blind && asked.is_bare() || self.blind_to_all && asked.is_io()
    }

    /// Whether the next command of a request may begin so.
    fn could_be(&self, number: u32, command: &Command) -> bool {
        let asked = &self.asked[number as usize];
        let What::Io(op) = asked.what else { return false };
        if asked.is_of_bytes()
            || for_device(op, &self.config.geometry) != Some(command.operation)
            || asked.iova != 0 && asked.iova != command.data.0
        {
            return false;
        }
        let bound = match asked.bound {
            _ if asked.tag != u64::MAX && asked.tag != command.tag & TAG_OF_REQUEST => return false,
            Some(bound) if asked.accepted < bound.count => {
                let data = self.model.data(&asked.entry, &bound, asked.accepted);
                if op.memory_rights().is_some() && data.is_none_or(|(_, iova)| iova != command.data.0) {
                    return false;
                }
                bound
            }
            Some(_) => return false,
            None => {
                let domain = self.queues[asked.queue as usize].domain;
                match self.admission(domain, op, asked) {
                    Verdict::Granted(bound) if bound.iova == command.data.0 => bound,
                    _ => return false,
                }
            }
        };
        self.model.place(&bound, asked.accepted).0 == command.lba
    }

    /// Whether a request may have waited at a gate, or for a buffer, admitted or not: where there was a write of bytes
    /// there are gates, and writes that meet one have one, too.
    pub(super) fn may_have_waited(&self, asked: &Asked) -> bool {
        let writes = matches!(asked.what, What::Io(op) if op.writes());
        writes && self.bytes_seen
    }

    /// Whether a request may have been taken in an earlier turn than the one in which anything is seen of it: one with a
    /// list waits for room for the list, too, and where grants have limits any may.
    pub(super) fn may_wait(&self, asked: &Asked) -> bool {
        self.may_have_waited(asked) || asked.is_scattered() || self.limits.of_grants
    }

    /// The decision about a request that starts now: made now, unless it may have waited since.
    pub(super) fn admission(&self, domain: u32, op: Op, asked: &Asked) -> Verdict {
        if self.may_have_waited(asked) {
            self.model.check_as_if_open(domain, op, &asked.entry)
        } else {
            self.model.check(domain, op, &asked.entry)
        }
    }

    fn unexplained(&self, engine: usize, command: &Command) -> ! {
        let mut near = String::new();
        for &queue in &self.pollers[engine].queues {
            for &number in &self.queues[queue as usize].open {
                let asked = &self.asked[number as usize];
                let What::Io(op) = asked.what else { continue };
                let same = for_device(op, &self.config.geometry) == Some(command.operation);
                if same && (!command.operation.moves_data() || asked.iova == command.data.0) {
                    let verdict = self.model.check(self.queues[queue as usize].domain, op, &asked.entry);
                    near += &format!("\n  near: {asked:?}\n  which is {verdict:?} now");
                }
            }
        }
        finding!("engine {engine} gives the device {command:?}, which no open request explains{near}")
    }

    /// A command of a request whose beginning is right.
    fn check_command(&mut self, engine: usize, number: u32, command: &Command, segments: &[Segment]) {
        let asked = self.asked[number as usize];
        let queue = &self.queues[asked.queue as usize];
        let What::Io(op) = asked.what else { return };
        if queue.is_gone() || queue.has_failed() {
            finding!("{command:?} for a queue in the error state or detached: {asked:?}");
        }
        let bound = match asked.bound {
            Some(bound) => bound,
            None => {
                let Verdict::Granted(bound) = self.admission(queue.domain, op, &asked) else {
                    return;
                };
                self.starts(engine, number, bound);
                bound
            }
        };
        let grant = &self.model.grants[bound.grant];
        if grant.finished {
            finding!("{command:?} under {}, after it or its memory was drained: {asked:?}", grant.key);
        }
        if let Some(failure) = asked.failure {
            finding!("{command:?} though an earlier command of the request failed ({failure}): {asked:?}");
        }
        let (_, room) = self.model.place(&bound, asked.accepted);
        let geometry = &self.config.geometry;
        let most = if op.memory_rights().is_some() {
            geometry.max_transfer_blocks
        } else {
            geometry.max_zeroes_blocks
        };
        let blocks = u64::from(command.blocks);
        if blocks == 0 || blocks > room || command.blocks > most {
            finding!("{command:?} is longer than the {room} blocks of the grant there: {asked:?}");
        }
        if op.memory_rights().is_some() {
            self.check_memory(&asked, &bound, segments);
        }
        let clock = self.pollers[engine].clock();
        if let (Some(tried), 1.., 0) = (asked.tried, asked.entry.deadline_us, asked.accepted)
            && clock > tried + u64::from(asked.entry.deadline_us) * 1000
        {
            finding!("started at {clock}, after its deadline: {asked:?}");
        }
        self.asked[number as usize].tag = command.tag & TAG_OF_REQUEST;
    }

    /// The memory of a command is the next of the request's, block by block, and all of it is there.
    fn check_memory(&self, asked: &Asked, bound: &Bound, segments: &[Segment]) {
        let mut block = asked.accepted;
        for segment in segments {
            for at in (0..u64::from(segment.bytes)).step_by(BLOCK as usize) {
                let data = self.model.data(&asked.entry, bound, block);
                let right = |(region, iova): (usize, u64)| {
                    iova == segment.data.0 + at && !self.model.regions[region].finished
                };
                if !data.is_some_and(right) {
                    finding!("{segments:?} is not the memory, or drained, at block {block}: {asked:?}");
                }
                block += 1;
            }
        }
    }

    /// The engine tries to start a request: it is admitted, in this very moment, for what the model says.
    pub(super) fn starts(&mut self, engine: usize, number: u32, bound: Bound) {
        let clock = self.pollers[engine].clock();
        let asked = &mut self.asked[number as usize];
        (asked.bound, asked.tried) = (Some(bound), Some(clock));
        asked.iova = if asked.is_scattered() { 0 } else { bound.iova };
        let (queue, announced, key) = (asked.queue as usize, asked.announced, Key(asked.entry.key));
        event!(self, "start", engine = engine, queue = queue, request = number, grant = bound.grant);
        self.forget_twin(number);
        let waited = self.may_wait(&self.asked[number as usize]);
        if !waited && !self.model.was_held_since(key, announced) {
            self.count_taken(queue);
        }
    }

    /// An entry was taken from a queue in this turn.
    pub(super) fn count_taken(&mut self, queue: usize) {
        self.queues[queue].taken_in_turn += 1;
        let (taken, burst) = (self.queues[queue].taken_in_turn, self.config.limits.burst);
        if taken > burst {
            finding!(
                "{taken} entries were taken from queue {queue} in one turn, where {burst} are its share"
            );
        }
    }

    pub(super) fn accepted(&mut self, engine: usize, command: &Command, request: Option<u32>) {
        event!(
            self,
            "submit",
            engine = engine,
            request = request.unwrap_or(NOBODY),
            lba = command.lba,
            blocks = command.blocks
        );
        let Some(number) = request else { return };
        let asked = &mut self.asked[number as usize];
        asked.accepted += u64::from(command.blocks);
        asked.outstanding += 1;
        if asked.iova != 0 {
            asked.iova += u64::from(command.blocks) * BLOCK;
        }
    }

    fn explain_flush(&mut self, engine: usize) {
        let mut open =
            self.pollers[engine].queues.iter().flat_map(|&queue| &self.queues[queue as usize].open);
        if !open.any(|&number| self.asked[number as usize].is_flush()) {
            finding!("engine {engine} flushes, and nobody asked for it");
        }
    }

    /// The driver hands an ended command to the engine.
    pub(super) fn delivered(&mut self, engine: usize, over: &Over) {
        if is_own(&over.running.command) && !over.status.is_ok() {
            self.pollers[engine].own_failed = self.moment();
        }
        let Some(number) = over.running.request else {
            if over.running.command.operation != Operation::Flush {
                return;
            }
            let poller = &mut self.pollers[engine];
            let of = if over.status.is_ok() { &mut poller.flushed_ok } else { &mut poller.flushed_badly };
            *of = (*of).max(over.running.submitted);
            return;
        };
        let asked = &mut self.asked[number as usize];
        asked.outstanding -= 1;
        if over.status.is_ok() {
            asked.done += u64::from(over.running.command.blocks);
        } else {
            asked.failure = asked.failure.or(Some(over.status));
        }
    }

    /// Looks for new completions in all queues of an engine.
    pub(super) fn scan(&mut self, engine: usize) {
        for at in 0..self.pollers[engine].queues.len() {
            let number = self.pollers[engine].queues[at] as usize;
            while let Some(completion) = self.queues[number].completion(self.queues[number].scanned) {
                self.queues[number].scanned = self.queues[number].scanned.wrapping_add(1);
                self.completed(engine, number, &completion);
            }
        }
    }

    /// A completion was posted since the outside world changed last.
    fn completed(&mut self, engine: usize, queue: usize, completion: &CompletionEntry) {
        let status = Status(completion.status);
        event!(
            self,
            "complete",
            queue = queue,
            request = completion.user_data,
            status = completion.status,
            bytes = completion.bytes
        );
        if let Some(seen) = self.statuses.get_mut(usize::from(completion.status)) {
            *seen += 1;
        }
        let its = &self.queues[queue];
        let ahead = its.scanned.wrapping_sub(its.consumed_word());
        if ahead > its.entries && !its.offended {
            finding!("queue {queue} has {ahead} completions that were not consumed");
        }
        let advanced = completion.sq_head.wrapping_sub(its.head);
        if advanced > its.rung.wrapping_sub(its.head) && !its.offended {
            finding!("queue {queue}: the submission head went from {} to {}", its.head, completion.sq_head);
        }
        self.queues[queue].head = completion.sq_head;
        let number = completion.user_data;
        let Some(asked) = usize::try_from(number).ok().and_then(|number| self.asked.get(number)) else {
            finding!("queue {queue}: a completion for nothing that was ever asked: {completion:?}");
        };
        if asked.queue as usize != queue || asked.stand != Stand::Announced {
            finding!("queue {queue}: a completion, {status}, for {asked:?}");
        }
        let number = number as u32;
        self.special[0] += u64::from(status.is_ok() && asked.is_scattered());
        self.special[1] += u64::from(status.is_ok() && asked.is_of_bytes());
        if let Err(why) = self.check_end(engine, number, status, completion) {
            finding!("{why}: {status}, {completion:?}, for {:?}", self.asked[number as usize]);
        }
        self.forget_twin(number);
        self.close(number, Stand::Ended);
    }

    pub(super) fn forget_twin(&mut self, number: u32) {
        let twin = std::mem::replace(&mut self.asked[number as usize].twin, NOBODY);
        if twin != NOBODY {
            self.asked[twin as usize].twin = NOBODY;
            self.close(twin, Stand::Void);
        }
    }

    /// A request is over: its memory may be used for others.
    pub(super) fn close(&mut self, number: u32, stand: Stand) {
        let asked = &mut self.asked[number as usize];
        asked.stand = stand;
        let (own, user_data) = (asked.memory.take(), asked.entry.user_data);
        let list = self.model.lists.binary_search_by_key(&user_data, |list| list.number);
        let of_list = list.map(|at| std::mem::take(&mut self.model.lists[at].memory)).unwrap_or_default();
        for (region, first, blocks) in own.into_iter().chain(of_list) {
            self.model.regions[region].used &= !super::client::bits(first, blocks);
        }
        let asked = &self.asked[number as usize];
        let open = &mut self.queues[asked.queue as usize].open;
        if let Some(at) = open.iter().position(|&other| other == number) {
            open.remove(at);
        }
    }
}
