//! The device: keeps commands for as long as it likes, moves data at any moment in between, ends them in any order,
//! fails, is reset, and is gone.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use driver::block::{
    BlockQueue, Command, Completed, DeviceStatus, Geometry, Operation, QueueState, Segment, SubmitError,
    segments_fit,
};

use super::bytes::is_own;
use super::client::UNREAD;
use super::memory::{Content, PARTS};
use super::model::Bound;
use super::outside::{Outside, finding};
use super::trace::event;
use super::{Driver, lock};

/// A command that the device has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Running {
    pub(super) command: Command,
    /// The request that it is for; none for a flush.
    pub(super) request: Option<u32>,
    pub(super) bound: Option<Bound>,
    pub(super) submitted: u64,
    /// Blocks of the request before it.
    from: u64,
    /// The doorbell was rung after it.
    committed: bool,
    /// Its data has moved, and how that went.
    executed: Option<DeviceStatus>,
    /// It is never ended but by a reset.
    kept: bool,
}

/// A command that ended, until the driver hands it over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Over {
    pub(super) running: Running,
    pub(super) status: DeviceStatus,
}

/// One of its queues.
#[derive(Default)]
pub(super) struct DeviceQueue {
    pub(super) running: Vec<Running>,
    pub(super) over: VecDeque<Over>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Running,
    /// Failed; not yet seen disabled.
    Failed,
    /// Disabled: what was outstanding has ended.
    Disabled,
    Gone,
}

/// See the module.
pub(super) struct Device {
    state: State,
    pub(super) queues: Vec<DeviceQueue>,
    pub(super) content: Vec<Content>,
    /// Commands refused for want of room or because the device was down.
    pub(super) refused: u64,
}

impl Device {
    pub(super) fn new(queues: usize, blocks: u64) -> Self {
        Self {
            state: State::Running,
            queues: (0..queues).map(|_| DeviceQueue::default()).collect(),
            content: vec![[0; PARTS]; blocks as usize],
            refused: 0,
        }
    }

    pub(super) fn is_gone(&self) -> bool {
        self.state == State::Gone
    }

    pub(super) fn outstanding(&self, queue: usize) -> usize {
        self.queues[queue].running.len() + self.queues[queue].over.len()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.queues.iter().all(|queue| queue.running.is_empty() && queue.over.is_empty())
    }

    /// As the driver of one queue sees it.
    fn seen_by(&self, queue: usize) -> QueueState {
        match self.state {
            State::Running => QueueState::Running,
            State::Gone if self.outstanding(queue) == 0 => QueueState::Gone,
            State::Failed | State::Disabled | State::Gone => QueueState::Down,
        }
    }
}

impl Outside {
    /// The driver hands a command to the device.
    fn device_takes(
        &mut self,
        queue: usize,
        command: &Command,
        request: Option<u32>,
    ) -> Result<(), SubmitError> {
        let refusal = if self.device.state != State::Running {
            Some(SubmitError::Down)
        } else if self.device.outstanding(queue) >= self.config.depth
            || !self.calm && self.rng.once_in(self.config.full)
        {
            Some(SubmitError::Full)
        } else {
            None
        };
        if let Some(error) = refusal {
            self.device.refused += 1;
            event!(self, "refuse", engine = queue, down = error == SubmitError::Down);
            return Err(error);
        }
        let bound = request.and_then(|number| self.asked[number as usize].bound);
        let running = Running {
            command: *command,
            request,
            bound,
            submitted: self.moment(),
            from: request.map_or(0, |number| self.asked[number as usize].accepted),
            committed: false,
            executed: None,
            kept: !self.calm && self.rng.once_in(self.config.keeps),
        };
        self.device.queues[queue].running.push(running);
        Ok(())
    }

    /// One step of the device: something moves, or ends, or goes wrong.
    pub(super) fn device_step(&mut self) {
        match self.device.state {
            State::Running if self.rng.once_in(self.config.resets) => self.device_fails(),
            State::Running if self.rng.once_in(self.config.gone) => self.device_goes(),
            State::Running | State::Gone => {}
            State::Failed if self.rng.once_in(3) => self.device_disabled(),
            State::Disabled if self.rng.once_in(3) => {
                self.device.state = State::Running;
                event!(self, "device runs");
            }
            State::Failed | State::Disabled => {}
        }
        if self.device.state != State::Running {
            return;
        }
        let queue = self.rng.index(self.device.queues.len());
        let many = self.device.queues[queue].running.len();
        if many == 0 {
            return;
        }
        let at = self.rng.index(many);
        let running = self.device.queues[queue].running[at];
        if !running.committed || running.kept && !self.calm {
            return;
        }
        if running.executed.is_none() && self.rng.once_in(2) {
            self.execute(queue, at);
        } else {
            self.end(queue, at);
        }
    }

    /// The controller fails: nothing more is taken or done.
    pub(super) fn device_fails(&mut self) {
        if self.device.state == State::Running {
            self.device.state = State::Failed;
            event!(self, "device fails");
        }
    }

    fn device_goes(&mut self) {
        self.device.state = State::Gone;
        event!(self, "device is gone");
        self.abort_all();
    }

    fn device_disabled(&mut self) {
        self.device.state = State::Disabled;
        event!(self, "device is disabled");
        self.abort_all();
    }

    fn abort_all(&mut self) {
        for queue in 0..self.device.queues.len() {
            while !self.device.queues[queue].running.is_empty() {
                let last = self.device.queues[queue].running.len() - 1;
                let running = self.device.queues[queue].running[last];
                // Executed or not: nobody can say. What it was not told of it cannot have done.
                if running.committed && running.executed.is_none() && self.rng.once_in(2) {
                    self.execute(queue, last);
                }
                let running = self.device.queues[queue].running.pop().expect("not empty");
                self.over(queue, running, DeviceStatus::ABORTED);
            }
        }
    }

    /// Ends a command, well or badly.
    fn end(&mut self, queue: usize, at: usize) {
        if !self.calm && self.rng.once_in(self.config.device_errors) {
            let status =
                self.rng.pick(&[DeviceStatus::WRITE_FAULT, DeviceStatus::READ_ERROR, DeviceStatus::ABORTED]);
            let running = self.device.queues[queue].running.swap_remove(at);
            return self.over(queue, running, status);
        }
        if self.device.queues[queue].running[at].executed.is_none() {
            self.execute(queue, at);
        }
        let running = self.device.queues[queue].running.swap_remove(at);
        self.over(queue, running, running.executed.unwrap_or(DeviceStatus::OK));
    }

    fn over(&mut self, queue: usize, running: Running, status: DeviceStatus) {
        event!(self, "end", engine = queue, request = running.request.unwrap_or(u32::MAX), status = status.0);
        self.device.queues[queue].over.push_back(Over { running, status });
        let poller = &mut self.pollers[queue];
        poller.woken |= poller.armed && self.config.device_wakes;
    }

    /// The data of a command moves.
    fn execute(&mut self, queue: usize, at: usize) {
        let Running { command, bound, request, from, .. } = self.device.queues[queue].running[at];
        let mut status = DeviceStatus::OK;
        if let Some(bound) = bound {
            let grant = &self.model.grants[bound.grant];
            if grant.finished {
                finding!("the device uses block {} under {}, which is drained", command.lba, grant.key);
            }
            for i in 0..if is_own(&command) { 0 } else { u64::from(command.blocks) } {
                let data = match request {
                    Some(number) if command.operation.moves_data() => self.place_of_data(number, from + i),
                    _ => None,
                };
                let content = &mut self.device.content[(command.lba + i) as usize];
                match (command.operation, data) {
                    (Operation::Read, Some((place, block))) => {
                        *self.memories.block(place, block) = *content;
                    }
                    (Operation::Write { .. }, Some((place, block))) => {
                        // The watcher's mark for memory that nobody read into stays in memory.
                        let data = *self.memories.block(place, block);
                        *content = if data[0] == UNREAD { [0; PARTS] } else { data };
                    }
                    (Operation::Compare, Some((place, block))) => {
                        if *content != *self.memories.block(place, block) {
                            status = DeviceStatus::COMPARE_FAILURE;
                        }
                    }
                    (Operation::WriteZeroes { .. } | Operation::Deallocate, _) => *content = [0; PARTS],
                    _ => finding!("a command without memory moves data"),
                }
            }
        }
        if is_own(&command) {
            self.execute_own(queue, &command, request);
        }
        event!(self, "execute", engine = queue, lba = command.lba, blocks = command.blocks);
        self.device.queues[queue].running[at].executed = Some(status);
    }

    /// Where in memory a block of a request is: its place, and which block of that.
    fn place_of_data(&self, number: u32, block: u64) -> Option<(usize, u64)> {
        let asked = &self.asked[number as usize];
        let (region, iova) = self.model.data(&asked.entry, &asked.bound?, block)?;
        let region = &self.model.regions[region];
        if region.finished {
            finding!("DMA at {iova:#x}, in region {}, which is drained, for {asked:?}", region.key);
        }
        Some((region.place, (iova - region.iova) / super::model::BLOCK))
    }

    /// The device works off all that it has.
    pub(super) fn device_finishes(&mut self) {
        loop {
            match self.device.state {
                State::Failed => self.device_disabled(),
                State::Disabled => self.device.state = State::Running,
                State::Running | State::Gone => break,
            }
        }
        for queue in 0..self.device.queues.len() {
            let mut at = 0;
            while at < self.device.queues[queue].running.len() {
                let running = self.device.queues[queue].running[at];
                if running.committed && !running.kept { self.end(queue, at) } else { at += 1 }
            }
        }
    }

    pub(super) fn device_keeps_something(&self) -> bool {
        self.device.queues.iter().any(|queue| queue.running.iter().any(|running| running.kept))
    }
}

/// An engine's queue of the device, with the driver between them.
pub(super) struct SimQueue {
    outside: Arc<Mutex<Outside>>,
    number: usize,
    geometry: Geometry,
    driver: Driver,
    calls: u64,
}

/// A wrong driver is wrong once in so many calls.
const WRONG_ONCE_IN: u64 = 8;

impl SimQueue {
    pub(super) fn new(outside: Arc<Mutex<Outside>>, number: usize, driver: Driver) -> Self {
        let geometry = lock(&outside).config.geometry;
        Self { outside, number, geometry, driver, calls: 0 }
    }

    fn take(&mut self, command: &Command, segments: &[Segment]) -> Result<(), SubmitError> {
        let mut outside = lock(&self.outside);
        let request = outside.explain(self.number, command, segments);
        let taken = outside.device_takes(self.number, command, request);
        if taken.is_ok() {
            outside.accepted(self.number, command, request);
        }
        outside.interleave(self.number);
        taken
    }

    /// The driver does it right this time.
    fn is_right(&mut self) -> bool {
        self.calls += 1;
        self.driver == Driver::Right || !self.calls.is_multiple_of(WRONG_ONCE_IN)
    }
}

impl BlockQueue for SimQueue {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&mut self, command: &Command) -> Result<(), SubmitError> {
        let command = if self.is_right() { *command } else { self.driver.bend(command) };
        let bytes = command.blocks << self.geometry.block_shift;
        let whole = [Segment { data: command.data, bytes }];
        self.take(&command, if command.operation.moves_data() { &whole } else { &[] })
    }

    fn submit_scattered(&mut self, command: &Command, segments: &[Segment]) -> Result<(), SubmitError> {
        if !segments_fit(&self.geometry, command, segments) {
            finding!("{command:?} with {segments:?} does not fit the device");
        }
        let bent = if self.is_right() { *command } else { self.driver.bend(command) };
        self.take(&Command { data: segments[0].data, ..bent }, segments)
    }

    fn commit(&mut self) {
        let mut outside = lock(&self.outside);
        for running in &mut outside.device.queues[self.number].running {
            running.committed = true;
        }
        outside.interleave(self.number);
    }

    fn poll(&mut self, budget: usize, ended: &mut dyn FnMut(Completed)) -> usize {
        let is_right = self.is_right();
        let mut outside = lock(&self.outside);
        outside.interleave(self.number);
        outside.scan(self.number);
        let mut count = 0;
        while count < budget {
            let queue = &mut outside.device.queues[self.number];
            if !is_right && count == 0 && self.driver == Driver::Loses {
                queue.over.pop_front();
            }
            if !is_right && count == 0 && self.driver == Driver::EndsEarly && !queue.running.is_empty() {
                let tag = queue.running.swap_remove(0).command.tag;
                drop(outside);
                ended(Completed { tag, status: DeviceStatus::OK });
                return 1;
            }
            let Some(over) = queue.over.pop_front() else { break };
            outside.delivered(self.number, &over);
            drop(outside);
            ended(Completed { tag: over.running.command.tag, status: over.status });
            count += 1;
            outside = lock(&self.outside);
        }
        count
    }

    fn outstanding(&self) -> usize {
        lock(&self.outside).device.outstanding(self.number)
    }

    fn state(&self) -> QueueState {
        lock(&self.outside).device.seen_by(self.number)
    }

    fn arm_interrupt(&mut self, armed: bool) {
        lock(&self.outside).pollers[self.number].armed = armed;
    }
}
