//! The admin commands (NVM Express Base 2.0c, section 5).

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use super::controller::Controller;
use super::identify;
use super::iommu::{Direction, Window};
use super::nvm::NAMESPACE;
use super::prp;
use super::queue::{CompletionSlot, Submission, SubmissionSlot, spin};
use crate::spec::nvme::{
    AbortCdw10, AsyncEvent, CreateCqCdw11, CreateSqCdw11, EventNotices, FeatureCdw10, IdentifyCdw10,
    LogCdw10, NSID_ALL, NumberOfQueues, QueueCdw10, Sqe, Status, StatusField, admin, cns, feature, log_page,
};

/// Asynchronous events of type 0, error: information in bits 15:8, log page in 23:16 (Figure 146 and following).
pub(super) const EVENT_BAD_DOORBELL: u32 = (log_page::ERROR as u32) << 16;
pub(super) const EVENT_BAD_DOORBELL_VALUE: u32 = 1 << 8 | EVENT_BAD_DOORBELL;
/// Events that the host may have outstanding.
pub(super) const EVENT_LIMIT: usize = 4;
/// Entries of the error log.
pub(super) const ERROR_LOG: usize = 16;

/// Firmware Slot Information (section 5.16.1.4).
const FIRMWARE_LOG: u8 = 0x03;
/// Asynchronous Event Request Limit Exceeded (command specific).
const EVENT_LIMIT_EXCEEDED: Status = Status(0x105);
/// Feature Identifier Not Saveable (command specific).
const NOT_SAVEABLE: Status = Status(0x10d);

/// Features that are kept and do nothing: arbitration, power management, temperature threshold, error recovery,
/// interrupt coalescing, interrupt vector configuration, write atomicity, asynchronous event configuration.
const KEPT: [u8; 8] = [0x01, 0x02, 0x04, 0x05, 0x08, 0x09, 0x0a, 0x0b];

/// What the admin commands remember.
pub(super) struct Admin {
    /// I/O queues that may be made.
    granted: u16,
    features: [u32; KEPT.len()],
    /// Asynchronous event requests that wait.
    requests: VecDeque<u16>,
    /// Events that wait for a request.
    events: VecDeque<u32>,
    /// Kinds of event that were reported and whose log was not read since, as bits.
    masked: u8,
    /// The namespace changed since its log was read.
    changed: bool,
    errors: VecDeque<ErrorEntry>,
    error_count: u64,
}

struct ErrorEntry {
    count: u64,
    queue: u16,
    command: u16,
    status: StatusField,
}

impl Admin {
    pub(super) fn new(queues: u16) -> Self {
        Self {
            granted: queues,
            features: [0; KEPT.len()],
            requests: VecDeque::new(),
            events: VecDeque::new(),
            masked: 0,
            changed: false,
            errors: VecDeque::new(),
            error_count: 0,
        }
    }

    pub(super) fn note_event(&mut self, event: u32) {
        if !self.events.contains(&event) {
            self.events.push_back(event);
        }
    }

    /// Says whether the host asked to be told.
    pub(super) fn note_changed_namespace(&mut self) -> bool {
        self.changed = true;
        let at = KEPT.iter().position(|&kept| kept == feature::ASYNC_EVENTS);
        let wanted = at.is_some_and(|at| EventNotices(self.features[at]).namespaces());
        if wanted {
            self.note_event(AsyncEvent::NAMESPACE_CHANGED.0);
        }
        wanted
    }

    pub(super) fn note_error(&mut self, queue: u16, command: u16, status: StatusField) {
        self.error_count += 1;
        self.errors.truncate(ERROR_LOG - 1);
        self.errors.push_front(ErrorEntry { count: self.error_count, queue, command, status });
    }

    /// The error log (section 5.16.1.2), newest first.
    fn error_log(&self) -> Vec<u8> {
        let mut page = vec![0; ERROR_LOG * 64];
        for (entry, error) in page.chunks_exact_mut(64).zip(&self.errors) {
            entry[..8].copy_from_slice(&error.count.to_le_bytes());
            entry[8..10].copy_from_slice(&error.queue.to_le_bytes());
            entry[10..12].copy_from_slice(&error.command.to_le_bytes());
            entry[12..14].copy_from_slice(&error.status.0.to_le_bytes());
            entry[14..16].copy_from_slice(&u16::MAX.to_le_bytes());
        }
        page
    }
}

impl Controller {
    /// Runs one admin command; `None` if it completes later.
    pub(super) fn administer(
        &self,
        window: &Window<'_>,
        own: &mut Submission,
        command: &Sqe,
    ) -> Result<Option<u32>, Status> {
        if command.cdw0.fuse() != 0 || command.cdw0.psdt() != 0 {
            return Err(Status::INVALID_FIELD);
        }
        match command.cdw0.opc() {
            admin::IDENTIFY => self.identify(window, command)?,
            admin::CREATE_IO_CQ => self.create_completion(command)?,
            admin::CREATE_IO_SQ => self.create_submission(command)?,
            admin::DELETE_IO_SQ => self.delete_submission(QueueCdw10(command.cdw10).qid())?,
            admin::DELETE_IO_CQ => self.delete_completion(QueueCdw10(command.cdw10).qid())?,
            admin::GET_LOG_PAGE => self.log_page(window, command)?,
            admin::DOORBELL_BUFFER_CONFIG => self.configure_doorbells(command)?,
            admin::ABORT => return Ok(Some(u32::from(!self.abort(window, own, command)))),
            admin::SET_FEATURES => return self.set_feature(command).map(Some),
            admin::GET_FEATURES => return self.get_feature(command).map(Some),
            admin::ASYNC_EVENT_REQUEST => {
                let mut state = spin(&self.admin);
                if state.requests.len() == EVENT_LIMIT {
                    return Err(EVENT_LIMIT_EXCEEDED);
                }
                state.requests.push_back(command.cdw0.cid());
                return Ok(None);
            }
            _ => return Err(Status::INVALID_OPCODE),
        }
        Ok(Some(0))
    }

    /// Hands `data` out, as far as the command asks.
    fn hand_out(&self, window: &Window<'_>, command: &Sqe, mut data: Vec<u8>) -> Result<(), Status> {
        if let Some(interposer) = &self.shape.interposer {
            interposer.data(command, &mut data);
        }
        let into = prp::segments(window, [command.prp1, command.prp2], data.len(), Direction::ToHost)?;
        into.write_at(0, &data);
        Ok(())
    }

    fn identify(&self, window: &Window<'_>, command: &Sqe) -> Result<(), Status> {
        let namespace = command.nsid;
        let data = match IdentifyCdw10(command.cdw10).cns() {
            cns::NAMESPACE if namespace == NAMESPACE => identify::namespace(self),
            cns::NAMESPACE | identify::DESCRIPTORS if namespace != NAMESPACE => {
                return Err(Status::INVALID_NAMESPACE);
            }
            cns::CONTROLLER => identify::controller(&self.shape),
            cns::CONTROLLER_COMMAND_SET => identify::command_set(),
            cns::ACTIVE_NAMESPACES if namespace >= NSID_ALL - 1 => return Err(Status::INVALID_NAMESPACE),
            cns::ACTIVE_NAMESPACES => identify::active_namespaces(self, namespace),
            identify::DESCRIPTORS => identify::descriptors(&self.shape),
            _ => return Err(Status::INVALID_FIELD),
        };
        self.hand_out(window, command, data)
    }

    /// QID, size and base of a queue that is to be made.
    fn new_queue(&self, command: &Sqe, exists: impl Fn(usize) -> bool) -> Result<(u16, u32, u64), Status> {
        let cdw10 = QueueCdw10(command.cdw10);
        let (id, size, base) = (cdw10.qid(), u32::from(cdw10.qsize_z()) + 1, command.prp1);
        let contiguous = CreateSqCdw11(command.cdw11).pc(); // in both commands
        if id == 0 || id > spin(&self.admin).granted || exists(usize::from(id)) {
            return Err(Status::INVALID_QUEUE_ID);
        }
        if size < 2 || size > self.shape.entries || !self.entry_sizes_fit() {
            return Err(Status::INVALID_QUEUE_SIZE);
        }
        if !contiguous {
            return Err(Status::INVALID_FIELD);
        }
        if base & (prp::PAGE as u64 - 1) != 0 {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        Ok((id, size, base))
    }

    fn create_completion(&self, command: &Sqe) -> Result<(), Status> {
        let (id, size, base) = self.new_queue(command, |id| self.completions[id].exists())?;
        let cdw11 = CreateCqCdw11(command.cdw11);
        let vector = cdw11.iv();
        if vector > self.shape.queues {
            return Err(Status::INVALID_INTERRUPT_VECTOR);
        }
        self.completions[usize::from(id)].create(base, size, cdw11.ien().then_some(vector));
        Ok(())
    }

    fn create_submission(&self, command: &Sqe) -> Result<(), Status> {
        let (id, size, base) = self.new_queue(command, |id| self.submissions[id].exists())?;
        let completion = CreateSqCdw11(command.cdw11).cqid();
        if completion == 0 || completion > self.shape.queues {
            return Err(Status::INVALID_QUEUE_ID);
        }
        if !self.completions[usize::from(completion)].exists() {
            return Err(Status::COMPLETION_QUEUE_INVALID);
        }
        self.submissions[usize::from(id)].create(id, base, size, completion);
        Ok(())
    }

    fn delete_submission(&self, id: u16) -> Result<(), Status> {
        match self.submissions.get(usize::from(id)) {
            Some(slot) if id != 0 && slot.exists() => {
                slot.delete();
                Ok(())
            }
            _ => Err(Status::INVALID_QUEUE_ID),
        }
    }

    fn delete_completion(&self, id: u16) -> Result<(), Status> {
        match self.completions.get(usize::from(id)) {
            Some(slot) if id != 0 && slot.exists() => {
                let used =
                    |slot: &SubmissionSlot| slot.exists() && slot.completion.load(Ordering::Relaxed) == id;
                if self.submissions.iter().any(used) {
                    return Err(Status::INVALID_QUEUE_DELETION);
                }
                slot.delete();
                Ok(())
            }
            _ => Err(Status::INVALID_QUEUE_ID),
        }
    }

    /// Aborts a command that waits. Says whether it was: those that run are never caught.
    fn abort(&self, window: &Window<'_>, own: &mut Submission, command: &Sqe) -> bool {
        let (queue, id) = (AbortCdw10(command.cdw10).sqid(), AbortCdw10(command.cdw10).cid());
        if queue == 0 {
            let requests = &mut spin(&self.admin).requests;
            if let Some(at) = requests.iter().position(|&request| request == id) {
                requests.remove(at);
            } else {
                return self.abort_held(window, own, id);
            }
        } else {
            let Some(slot) = self.submissions.get(usize::from(queue)) else {
                return false;
            };
            return spin(&slot.state)
                .as_mut()
                .is_some_and(|submission| self.abort_held(window, submission, id));
        }
        self.complete(window, own.sender(), id, Err(Status::ABORT_REQUESTED));
        true
    }

    fn abort_held(&self, window: &Window<'_>, submission: &mut Submission, id: u16) -> bool {
        let Some(at) = submission.held.iter().position(|held| held.cdw0.cid() == id) else {
            return false;
        };
        if !self.shape.interposer.as_ref().is_some_and(|interposer| interposer.abort_lies()) {
            submission.held.remove(at);
            self.complete(window, submission.sender(), id, Err(Status::ABORT_REQUESTED));
            self.interrupt(submission.completion);
        }
        true
    }

    fn set_feature(&self, command: &Sqe) -> Result<u32, Status> {
        let value = command.cdw11;
        let cdw10 = FeatureCdw10(command.cdw10);
        if cdw10.sv() {
            return Err(NOT_SAVEABLE);
        }
        match cdw10.fid() {
            feature::NUMBER_OF_QUEUES => {
                if self.submissions.iter().skip(1).any(SubmissionSlot::exists)
                    || self.completions.iter().skip(1).any(CompletionSlot::exists)
                {
                    return Err(Status::COMMAND_SEQUENCE_ERROR);
                }
                let asked = NumberOfQueues(value);
                if asked.nsq_z() == u16::MAX || asked.ncq_z() == u16::MAX {
                    return Err(Status::INVALID_FIELD);
                }
                // The same of both kinds: what more is asked of one is of no use.
                let granted = asked.nsq_z().max(asked.ncq_z()).saturating_add(1).min(self.shape.queues);
                spin(&self.admin).granted = granted;
                Ok(self.granted())
            }
            feature::VOLATILE_WRITE_CACHE if self.shape.media.write_cache() => {
                let on = value & 1 == 1;
                if !on {
                    self.shape.media.flush()?;
                }
                self.enable_cache(on);
                Ok(0)
            }
            _ => {
                let at = KEPT.iter().position(|&kept| kept == cdw10.fid()).ok_or(Status::INVALID_FIELD)?;
                spin(&self.admin).features[at] = value;
                Ok(0)
            }
        }
    }

    fn get_feature(&self, command: &Sqe) -> Result<u32, Status> {
        let cdw10 = FeatureCdw10(command.cdw10);
        // ONCS has no Save and Select.
        if cdw10.sel() != 0 {
            return Err(Status::INVALID_FIELD);
        }
        match cdw10.fid() {
            feature::NUMBER_OF_QUEUES => Ok(self.granted()),
            feature::VOLATILE_WRITE_CACHE if self.shape.media.write_cache() => {
                Ok(u32::from(self.cache_enabled()))
            }
            _ => {
                let at = KEPT.iter().position(|&kept| kept == cdw10.fid()).ok_or(Status::INVALID_FIELD)?;
                Ok(spin(&self.admin).features[at])
            }
        }
    }

    /// NCQA and NSQA, counted from 0.
    fn granted(&self) -> u32 {
        let last = u32::from(spin(&self.admin).granted) - 1;
        last << 16 | last
    }

    fn log_page(&self, window: &Window<'_>, command: &Sqe) -> Result<(), Status> {
        let cdw10 = LogCdw10(command.cdw10);
        let dwords = u64::from(cdw10.numdl_z()) | u64::from(command.cdw11 & 0xffff) << 16;
        let len = usize::try_from((dwords + 1) * 4).map_err(|_| Status::INVALID_FIELD)?;
        let offset = u64::from(command.cdw12) | u64::from(command.cdw13) << 32;
        let page = match cdw10.lid() {
            log_page::ERROR => spin(&self.admin).error_log(),
            log_page::SMART => identify::health(self),
            FIRMWARE_LOG => identify::firmware(),
            log_page::CHANGED_NAMESPACES => identify::changed_namespaces(spin(&self.admin).changed),
            _ => return Err(Status::INVALID_LOG_PAGE),
        };
        let offset = usize::try_from(offset).ok().filter(|&offset| offset <= page.len() && offset % 4 == 0);
        let offset = offset.ok_or(Status::INVALID_FIELD)?;
        if len > self.shape.max_transfer {
            return Err(Status::INVALID_FIELD);
        }
        let mut data = page[offset..].to_vec();
        data.resize(len, 0);
        self.hand_out(window, command, data)?;
        if !cdw10.rae() {
            let mut state = spin(&self.admin);
            match cdw10.lid() {
                log_page::ERROR => state.masked &= !1,
                log_page::CHANGED_NAMESPACES => {
                    (state.masked, state.changed) = (state.masked & !(1 << 2), false);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Completes event requests with the events that wait (section 5.2): one of a kind until its log is read.
    pub(super) fn deliver_events(&self, window: &Window<'_>, own: &Submission) {
        loop {
            let (id, event) = {
                let mut state = spin(&self.admin);
                let kind = |event: u32| 1u8 << AsyncEvent(event).kind();
                let open = |&event: &u32| state.masked & kind(event) == 0;
                let Some(at) = state.events.iter().position(open) else {
                    return;
                };
                let Some(id) = state.requests.pop_front() else {
                    return;
                };
                let Some(event) = state.events.remove(at) else {
                    return;
                };
                state.masked |= kind(event);
                (id, event)
            };
            self.complete(window, own.sender(), id, Ok(event));
            self.interrupt(own.completion);
        }
    }

    pub(super) fn error_count(&self) -> u64 {
        spin(&self.admin).error_count
    }
}
