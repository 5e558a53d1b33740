//! The admin queue: one command at a time, and the caller waits.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use zerocopy::{FromBytes, transmute};

use crate::dma::{DmaBuffer, PAGE};
use crate::hal::{DmaAccess, Iova, Mapper, Registers};
use crate::spec::nvme::{
    Aqa, AsyncEvent, CQE_LEN, Cqe, CreateCqCdw11, CreateSqCdw11, Csts, ErrorLogEntry, EventNotices,
    FeatureCdw10, IDENTIFY_LEN, IdentifyCdw10, LogCdw10, NAMESPACE_LIST_LEN, NSID_ALL, NumberOfQueues,
    QueueCdw10, SQE_LEN, SmartLog, Sqe, admin, cns, cq_head_doorbell, css, feature, log_page, offset,
    sq_tail_doorbell,
};

use super::NvmeError;

/// The id of the Asynchronous Event Request; no other command has it.
const EVENT_CID: u16 = 0xfffe;

/// Entries of both admin queues.
const ENTRIES: u16 = 32;

/// The whole page: a Changed Namespace List is that long.
const EVENT_LOG_DWORDS: u16 = 1024;

/// The admin queue pair and a page for data.
pub(super) struct Admin {
    submissions: DmaBuffer,
    completions: DmaBuffer,
    data: DmaBuffer,
    tail: u16,
    head: u16,
    phase: bool,
    /// Different for each command, so that an answer to an earlier one is not taken for this one's.
    cid: u16,
    dstrd: u8,
    timeout: Duration,
    /// A command was given up: the controller may still write to `data`, so no other is sent until a reset.
    given_up: bool,
    /// Whether the controller holds an Asynchronous Event Request of ours.
    listening: bool,
    /// It answered that, and nobody looked yet.
    event: Option<AsyncEvent>,
    /// Completions that answered nothing.
    pub(super) anomalies: u64,
}

impl Admin {
    pub(super) fn new(mapper: &dyn Mapper, dstrd: u8, timeout: Duration) -> Result<Self, NvmeError> {
        Ok(Self {
            submissions: DmaBuffer::new(mapper, usize::from(ENTRIES) * SQE_LEN, DmaAccess::Read)?,
            completions: DmaBuffer::new(mapper, usize::from(ENTRIES) * CQE_LEN, DmaAccess::ReadWrite)?,
            data: DmaBuffer::new(mapper, PAGE, DmaAccess::ReadWrite)?,
            tail: 0,
            head: 0,
            phase: true,
            cid: 0,
            dstrd,
            timeout,
            given_up: false,
            listening: false,
            event: None,
            anomalies: 0,
        })
    }

    /// Makes the queues as new and tells the controller, which is disabled, where they are.
    pub(super) fn start_over(&mut self, registers: &impl Registers) {
        self.submissions.zero();
        self.completions.zero();
        (self.tail, self.head, self.phase, self.given_up) = (0, 0, true, false);
        (self.listening, self.event) = (false, None);
        let mut aqa = Aqa(0);
        aqa.set_asqs_z(ENTRIES - 1);
        aqa.set_acqs_z(ENTRIES - 1);
        registers.write32(offset::AQA, aqa.0);
        registers.write64(offset::ASQ, self.submissions.iova(0).0);
        registers.write64(offset::ACQ, self.completions.iova(0).0);
    }

    /// Sends a command, waits for its completion and returns dword 0 of it.
    fn run(
        &mut self,
        registers: &impl Registers,
        name: &'static str,
        mut sqe: Sqe,
    ) -> Result<u32, NvmeError> {
        if self.given_up {
            return Err(NvmeError::NotRunning);
        }
        self.cid = if self.cid + 1 >= EVENT_CID { 0 } else { self.cid + 1 };
        sqe.cdw0.set_cid(self.cid);
        self.send(registers, sqe);
        let outcome = self.wait(registers, name);
        // An answer, even a bad one, means that the command is over.
        self.given_up = !matches!(outcome, Ok(_) | Err(NvmeError::Admin { .. }));
        outcome
    }

    fn send(&mut self, registers: &impl Registers, sqe: Sqe) {
        self.submissions.write::<8>(usize::from(self.tail) * SQE_LEN, transmute!(sqe));
        self.tail = (self.tail + 1) % ENTRIES;
        registers.write32(sq_tail_doorbell(0, self.dstrd), u32::from(self.tail));
    }

    /// A completion that does not answer the command that is waited for.
    fn note(&mut self, cqe: Cqe) {
        if self.listening && cqe.cid == EVENT_CID && cqe.sqid == 0 {
            self.listening = false;
            // An error: it takes no such request, and nothing is heard of it.
            self.event = cqe.status.status().is_success().then_some(AsyncEvent(cqe.dw0));
        } else {
            self.anomalies += 1;
        }
    }

    /// Asks to be told when the namespaces change.
    pub(super) fn listen(&mut self, registers: &impl Registers) -> Result<(), NvmeError> {
        let mut cdw10 = FeatureCdw10(0);
        cdw10.set_fid(feature::ASYNC_EVENTS);
        let mut notices = EventNotices(0);
        notices.set_namespaces(true);
        let mut sqe = Sqe::new(admin::SET_FEATURES);
        (sqe.cdw10, sqe.cdw11) = (cdw10.0, notices.0);
        self.run(registers, "Set Features (asynchronous events)", sqe)?;
        self.request_event(registers);
        Ok(())
    }

    /// One at a time: the limit is at least that.
    fn request_event(&mut self, registers: &impl Registers) {
        if !self.listening && !self.given_up {
            self.listening = true;
            let mut sqe = Sqe::new(admin::ASYNC_EVENT_REQUEST);
            sqe.cdw0.set_cid(EVENT_CID);
            self.send(registers, sqe);
        }
    }

    /// The event that came since the last call, if one did. Does not wait; takes at most as many completions as there
    /// is room for.
    pub(super) fn event(&mut self, registers: &impl Registers) -> Option<AsyncEvent> {
        if self.listening && !self.given_up {
            for _ in 0..ENTRIES {
                let Some(cqe) = self.next_completion(registers) else { break };
                self.note(cqe);
            }
        }
        self.event.take()
    }

    /// Reads the log page of an event, which lets the next of its kind come, and asks for that.
    pub(super) fn end_event(
        &mut self,
        registers: &impl Registers,
        event: AsyncEvent,
    ) -> Result<(), NvmeError> {
        let mut cdw10 = LogCdw10(0);
        cdw10.set_lid(event.log_page());
        cdw10.set_numdl_z(EVENT_LOG_DWORDS - 1);
        let mut sqe = Sqe::new(admin::GET_LOG_PAGE);
        (sqe.nsid, sqe.cdw10, sqe.prp1) = (NSID_ALL, cdw10.0, self.data.iova(0).0);
        self.run(registers, "Get Log Page (of an event)", sqe)?;
        self.request_event(registers);
        Ok(())
    }

    fn wait(&mut self, registers: &impl Registers, name: &'static str) -> Result<u32, NvmeError> {
        let since = Instant::now();
        let mut rounds = 0u32;
        loop {
            if let Some(cqe) = self.next_completion(registers) {
                if cqe.cid == self.cid && cqe.sqid == 0 {
                    let status = cqe.status.status();
                    return if status.is_success() {
                        Ok(cqe.dw0)
                    } else {
                        Err(NvmeError::Admin { command: name, status })
                    };
                }
                self.note(cqe);
            }
            let late = since.elapsed() >= self.timeout;
            rounds = rounds.saturating_add(1);
            if late || rounds > 200 {
                let csts = Csts(registers.read32(offset::CSTS));
                if csts == Csts::ABSENT {
                    return Err(NvmeError::Gone);
                }
                if csts.cfs() {
                    return Err(NvmeError::Fatal);
                }
                if late {
                    return Err(NvmeError::Timeout { what: name, after: self.timeout });
                }
                std::thread::sleep(Duration::from_micros(50));
            } else {
                std::hint::spin_loop();
            }
        }
    }

    fn next_completion(&mut self, registers: &impl Registers) -> Option<Cqe> {
        let at = usize::from(self.head) * CQE_LEN;
        // Acquire: the other half, and the command's data, are read after the phase.
        let high = self.completions.load64(at + 8, Ordering::Acquire);
        let cqe: Cqe = transmute!([self.completions.load64(at, Ordering::Relaxed), high]);
        if cqe.status.phase() != self.phase {
            return None;
        }
        self.head = (self.head + 1) % ENTRIES;
        if self.head == 0 {
            self.phase = !self.phase;
        }
        registers.write32(cq_head_doorbell(0, self.dstrd), u32::from(self.head));
        Some(cqe)
    }

    /// Identify: one of the structures of 4096 bytes (Base 2.0, 5.17).
    pub(super) fn identify<T: FromBytes>(
        &mut self,
        registers: &impl Registers,
        what: u8,
        nsid: u32,
    ) -> Result<T, NvmeError> {
        let mut cdw10 = IdentifyCdw10(0);
        cdw10.set_cns(what);
        let mut sqe = Sqe::new(admin::IDENTIFY);
        (sqe.nsid, sqe.cdw10, sqe.prp1) = (nsid, cdw10.0, self.data.iova(0).0);
        self.data.zero();
        self.run(registers, "Identify", sqe)?;
        let mut bytes = [0; IDENTIFY_LEN];
        self.data.copy_out(0, &mut bytes);
        T::read_from_bytes(&bytes)
            .map_err(|_| NvmeError::Unsupported("Identify has another length".to_owned()))
    }

    /// The active namespaces, at most 1024 of them.
    pub(super) fn namespaces(&mut self, registers: &impl Registers) -> Result<Vec<u32>, NvmeError> {
        let list: [u32; NAMESPACE_LIST_LEN] = self.identify(registers, cns::ACTIVE_NAMESPACES, 0)?;
        Ok(list.into_iter().take_while(|&nsid| nsid != 0 && nsid != NSID_ALL).collect())
    }

    /// Asks for I/O queue pairs and returns how many there may be.
    pub(super) fn number_of_queues(
        &mut self,
        registers: &impl Registers,
        queues: u16,
    ) -> Result<u32, NvmeError> {
        let mut cdw10 = FeatureCdw10(0);
        cdw10.set_fid(feature::NUMBER_OF_QUEUES);
        let mut asked = NumberOfQueues(0);
        asked.set_nsq_z(queues - 1);
        asked.set_ncq_z(queues - 1);
        let mut sqe = Sqe::new(admin::SET_FEATURES);
        (sqe.cdw10, sqe.cdw11) = (cdw10.0, asked.0);
        let granted = NumberOfQueues(self.run(registers, "Set Features (number of queues)", sqe)?);
        Ok(u32::from(granted.nsq_z().min(granted.ncq_z())) + 1)
    }

    /// Tells where the shadow doorbells and the event indexes of the I/O queues made from now on are.
    pub(super) fn shadow_doorbells(
        &mut self,
        registers: &impl Registers,
        (shadows, events): (Iova, Iova),
    ) -> Result<(), NvmeError> {
        let mut sqe = Sqe::new(admin::DOORBELL_BUFFER_CONFIG);
        (sqe.prp1, sqe.prp2) = (shadows.0, events.0);
        self.run(registers, "Doorbell Buffer Config", sqe)?;
        Ok(())
    }

    /// Makes an I/O queue pair: both queues have the id `qid` and `entries` entries.
    pub(super) fn create_queues(
        &mut self,
        registers: &impl Registers,
        (qid, entries): (u16, u16),
        (submissions, completions): (Iova, Iova),
        vector: Option<u16>,
    ) -> Result<(), NvmeError> {
        let mut cdw10 = QueueCdw10(0);
        cdw10.set_qid(qid);
        cdw10.set_qsize_z(entries - 1);
        let mut cdw11 = CreateCqCdw11(0);
        cdw11.set_pc(true);
        cdw11.set_ien(vector.is_some());
        cdw11.set_iv(vector.unwrap_or(0));
        let mut sqe = Sqe::new(admin::CREATE_IO_CQ);
        (sqe.prp1, sqe.cdw10, sqe.cdw11) = (completions.0, cdw10.0, cdw11.0);
        self.run(registers, "Create I/O Completion Queue", sqe)?;
        let mut cdw11 = CreateSqCdw11(0);
        cdw11.set_pc(true);
        cdw11.set_cqid(qid);
        let mut sqe = Sqe::new(admin::CREATE_IO_SQ);
        (sqe.prp1, sqe.cdw10, sqe.cdw11) = (submissions.0, cdw10.0, cdw11.0);
        self.run(registers, "Create I/O Submission Queue", sqe)?;
        Ok(())
    }

    /// The SMART log of the controller.
    pub(super) fn smart(&mut self, registers: &impl Registers) -> Result<SmartLog, NvmeError> {
        let mut bytes = [0; size_of::<SmartLog>()];
        self.log_page(registers, ("Get Log Page (SMART)", log_page::SMART), &mut bytes)?;
        Ok(transmute!(bytes))
    }

    /// The error log, newest first: of `entries` entries as many as fit a page, with those that are not used.
    pub(super) fn error_log(
        &mut self,
        registers: &impl Registers,
        entries: usize,
    ) -> Result<Vec<ErrorLogEntry>, NvmeError> {
        let mut bytes = vec![0; entries.min(PAGE / size_of::<ErrorLogEntry>()) * size_of::<ErrorLogEntry>()];
        self.log_page(registers, ("Get Log Page (errors)", log_page::ERROR), &mut bytes)?;
        let entries = bytes.chunks_exact(size_of::<ErrorLogEntry>());
        Ok(entries.filter_map(|bytes| ErrorLogEntry::read_from_bytes(bytes).ok()).collect())
    }

    /// The first bytes of a log page of the controller, dwords and at most a page of them. Events about it stay as they are.
    fn log_page(
        &mut self,
        registers: &impl Registers,
        (name, id): (&'static str, u8),
        bytes: &mut [u8],
    ) -> Result<(), NvmeError> {
        let dwords = u16::try_from(bytes.len().min(PAGE) / 4).unwrap_or(1).max(1);
        let mut cdw10 = LogCdw10(0);
        cdw10.set_lid(id);
        cdw10.set_rae(true);
        cdw10.set_numdl_z(dwords - 1);
        let mut sqe = Sqe::new(admin::GET_LOG_PAGE);
        (sqe.nsid, sqe.cdw10, sqe.prp1) = (NSID_ALL, cdw10.0, self.data.iova(0).0);
        self.data.zero();
        self.run(registers, name, sqe)?;
        self.data.copy_out(0, bytes);
        Ok(())
    }
}

/// The command set to select in CC.CSS.
pub(super) const fn command_set(supported: u8) -> u8 {
    if supported & css::NVM != 0 { 0 } else { 6 }
}
