//! Whether a request may end as it does.

use driver::block::DeviceStatus;
use tpt::Key;
use wire::Status;
use wire::layout::CompletionEntry;

use super::model::{BLOCK, Bound, Op, Stage, Verdict, WRITE, What};
use super::outside::Outside;
use super::queue::Life;
use super::watch::{Asked, NOBODY, Stand, for_device};

fn ensure(holds: bool, otherwise: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise.to_owned()) }
}

impl Outside {
    /// Whether a request may end so.
    pub(super) fn check_end(
        &mut self,
        engine: usize,
        number: u32,
        status: Status,
        completion: &CompletionEntry,
    ) -> Result<(), String> {
        let asked = self.asked[number as usize];
        if self.is_unseen(&asked) {
            self.asked[number as usize].cancelled |= status == Status::E_CANCELLED;
            return Ok(());
        }
        ensure(asked.outstanding == 0, "a request ended while the device has commands of it")?;
        let bytes = match asked.what {
            What::Io(Op::WriteBytes { .. }) if status == Status::OK => u64::from(asked.entry.length),
            What::Io(Op::WriteBytes { .. }) => 0,
            _ => asked.done * BLOCK,
        };
        ensure(u64::from(completion.bytes) == bytes, "the bytes done are wrong")?;
        let sure = !asked.is_flush() && !asked.is_of_bytes();
        let must_be_cancelled = asked.cancelled && asked.accepted == 0 && sure;
        ensure(
            !must_be_cancelled || status == Status::E_CANCELLED,
            "a request was cancelled before the device had any of it, and did not end so",
        )?;
        let device = match status {
            Status::E_DEVICE | Status::E_MISCOMPARE => asked.failure.map_or(0, |failure| failure.0),
            _ => 0,
        };
        let told = completion.device_status == u32::from(device) || !sure;
        ensure(told, "the device's status is wrong")?;
        match status {
            Status::OK => self.check_success(engine, &asked),
            Status::E_DEVICE | Status::E_MISCOMPARE if asked.is_flush() => ensure(
                self.pollers[engine].flushed_badly >= asked.announced,
                "no flush failed since it was asked for",
            ),
            Status::E_DEVICE if asked.is_of_bytes() => {
                ensure(self.pollers[engine].own_failed >= asked.announced, "no read or write for it failed")
            }
            Status::E_DEVICE | Status::E_MISCOMPARE => {
                let compared = asked.failure == Some(DeviceStatus::COMPARE_FAILURE);
                let right = asked.failure.is_some() && compared == (status == Status::E_MISCOMPARE);
                ensure(right, "the device reported otherwise")
            }
            Status::E_FLUSHED => {
                let queue = &self.queues[asked.queue as usize];
                let detaching = matches!(queue.life, Life::Detaching(_));
                let failed = queue.offended && queue.has_failed();
                ensure(detaching || failed, "the queue has done nothing wrong and stays")
            }
            Status::E_PATH => ensure(self.device.is_gone(), "the device is there"),
            Status::E_DEADLINE => {
                let deadline = asked.clock + u64::from(asked.entry.deadline_us) * 1000;
                let passed = asked.entry.deadline_us > 0 && self.pollers[engine].clock() > deadline;
                ensure(passed && asked.accepted == 0, "its deadline has not passed, or the device had it")
            }
            Status::E_CANCELLED => {
                let asked_for = self.is_being_cancelled(number);
                ensure(asked.accepted == 0 && asked_for, "nobody cancelled it, or the device had it")
            }
            Status::E_NOT_FOUND => self.check_not_found(&asked),
            status => self.check_refusal(&asked, status),
        }
    }

    fn check_success(&mut self, engine: usize, asked: &Asked) -> Result<(), String> {
        match asked.what {
            What::Malformed | What::TooLong => Err("nonsense was done".to_owned()),
            What::Cancel(target) => self.check_cancel(asked, target),
            What::Io(Op::Flush) => self.check_flush(engine, asked),
            What::Io(_) => {
                let bound = asked.bound.ok_or("nothing was asked of the device")?;
                let all = asked.failure.is_none() && asked.done == bound.count;
                ensure(all, "the device did not do all of it")?;
                if asked.is_of_bytes() {
                    return self.check_bytes(asked);
                }
                self.look_at_data(asked, &bound)
            }
        }
    }

    fn check_flush(&self, engine: usize, asked: &Asked) -> Result<(), String> {
        ensure(
            self.pollers[engine].flushed_ok >= asked.announced,
            "no flush of the device began after it was asked for and ended well",
        )?;
        let grant = self.model.grant_of(Key(asked.entry.key)).ok_or("a flush under no grant")?;
        let grant = &self.model.grants[grant];
        let rights = grant.access & WRITE != 0 || self.model.was_held_since(grant.key, asked.announced);
        let its = grant.domain == self.queues[asked.queue as usize].domain && !grant.finished;
        ensure(its && rights, "a flush under a grant that does not allow it")?;
        let open = grant.stage != Stage::Closed || grant.closed_at.max(grant.opened_at) >= asked.announced;
        ensure(open, "a flush under a grant that was closed before")
    }

    /// A cancel that says it found its target: the target was taken before it, and had not ended, or ended by it.
    fn check_cancel(&mut self, cancel: &Asked, target: u64) -> Result<(), String> {
        let found = usize::try_from(target).ok().and_then(|target| self.asked.get(target));
        let found = *found.ok_or("a cancel found what was never asked")?;
        let before = (cancel.count.wrapping_sub(found.count) as i32) > 0;
        // One of bytes whose read failed ends with that, also when it is cancelled.
        let by_it = found.cancelled || found.is_of_bytes();
        let stands = found.stand == Stand::Announced || found.stand == Stand::Ended && by_it;
        let could = found.queue == cancel.queue && before && stands;
        ensure(could, "a cancel found what could not be found")?;
        if found.stand == Stand::Announced {
            let started = found.accepted > 0
                || found.is_flush()
                || found.is_of_bytes()
                || self.blind && (found.is_bare() || self.blind_to_all);
            ensure(started, "a cancel let go on what the device has not got")?;
            let target = u32::try_from(target).expect("an index");
            self.asked[target as usize].cancelled = found.accepted == 0;
            self.forget_twin(target); // It is this version that was taken.
        }
        Ok(())
    }

    /// Whether a request may end as cancelled: its cancel comes behind it in the same queue.
    fn is_being_cancelled(&mut self, number: u32) -> bool {
        let before = std::mem::replace(&mut self.asked[number as usize].cancelled, true);
        let asked = &self.asked[number as usize];
        let is_its = |&other: &u32| self.asked[other as usize].what == What::Cancel(u64::from(number));
        // A write of bytes that reads goes on until it has read.
        before && asked.is_of_bytes() || self.queues[asked.queue as usize].open.iter().any(is_its)
    }

    fn check_not_found(&self, cancel: &Asked) -> Result<(), String> {
        let What::Cancel(target) = cancel.what else { return Err("it is no cancel".to_owned()) };
        let target = usize::try_from(target).ok().and_then(|target| self.asked.get(target));
        let there = |target: &Asked| {
            let before = (cancel.count.wrapping_sub(target.count) as i32) > 0;
            let waits = target.stand == Stand::Announced && !matches!(target.what, What::Cancel(_));
            target.queue == cancel.queue && before && waits && target.twin == NOBODY
        };
        ensure(!target.is_some_and(there), "its target is there")
    }

    /// A refusal: exactly the one that the model gives in this moment.
    fn check_refusal(&mut self, asked: &Asked, status: Status) -> Result<(), String> {
        let fresh = asked.tried.is_none() && asked.accepted == 0;
        ensure(fresh, "it was refused after it had been admitted")?;
        let queue = asked.queue as usize;
        let right = match asked.what {
            What::Malformed => Status::E_OPCODE,
            What::TooLong => Status::E_PARAM,
            What::Io(Op::WriteBytes { .. }) if !self.config.bytes => Status::E_OPCODE,
            What::Cancel(_) => return Err("a cancel is not refused".to_owned()),
            // It waited at a gate, and then the device turned out not to have that operation.
            What::Io(op) if status == Status::E_OPCODE && self.may_have_waited(asked) => {
                let verdict = self.admission(self.queues[queue].domain, op, asked);
                let granted = matches!(verdict, Verdict::Granted(_));
                return ensure(
                    granted && for_device(op, &self.config.geometry).is_none(),
                    "the device can do it",
                );
            }
            What::Io(op) => match self.model.check(self.queues[queue].domain, op, &asked.entry) {
                Verdict::Refused(status) => status,
                Verdict::Granted(_) if for_device(op, &self.config.geometry).is_none() => Status::E_OPCODE,
                verdict => return Err(format!("refused where the model says {verdict:?}")),
            },
        };
        if status != right {
            return Err(format!("refused where the model says {right}"));
        }
        if !self.may_wait(asked) && !self.model.was_held_since(Key(asked.entry.key), asked.announced) {
            self.count_taken(queue);
        }
        Ok(())
    }

    /// A read is what the device held, in the memory that was named: the last that was executed put it there.
    fn look_at_data(&mut self, asked: &Asked, bound: &Bound) -> Result<(), String> {
        // Memory that it has not for itself may be somebody else's buffer as well.
        let own =
            asked.is_scattered() || asked.memory.is_some_and(|(region, ..)| bound.region == Some(region));
        for block in 0..if asked.what == What::Io(Op::Read) && own { bound.count } else { 0 } {
            let Some((region, iova)) = self.model.data(&asked.entry, bound, block) else { continue };
            let region = &self.model.regions[region];
            let content = *self.memories.block(region.place, (iova - region.iova) / BLOCK);
            ensure(content[0] != super::client::UNREAD, "a block of the memory was not read into")?;
        }
        Ok(())
    }
}
