//! Faults: decorators of the media, of what the controller says, and of the device as a whole. Each is seeded or told
//! what to do, and a device without them has none of this in it.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::Emulator;
use super::interpose::{Interposer, Posting, Verdict};
use super::media::{Media, MediaError};
use super::memory::Segments;
use super::virtio::{Fate, RequestInterposer, Using, VIRTIO_CONFIG, VIRTIO_DOORBELLS};
use crate::dice::Dice;
use crate::hal::{CONFIG_LEN, Device, Mapper, NarrowRegisters, PciFunction, Registers};
use crate::spec::nvme::{Csts, Sqe, Status, offset};
use crate::spec::virtio::block::{RequestHeader, request, status as virtio_status};
use crate::spec::virtio::pci::common_cfg;
use crate::spec::virtio::status as device_status;

/// Media of which parts fail.
#[derive(Debug)]
pub struct FaultyMedia<M> {
    under: M,
    reads: RwLock<Vec<Range<u64>>>,
    writes: RwLock<Vec<Range<u64>>>,
    flushes: AtomicBool,
}

impl<M: Media> FaultyMedia<M> {
    /// Nothing fails yet.
    pub fn new(under: M) -> Self {
        Self { under, reads: RwLock::default(), writes: RwLock::default(), flushes: AtomicBool::new(false) }
    }

    /// Reads and compares that touch one of these bytes fail with Unrecovered Read Error.
    pub fn fail_reads(&self, bytes: Range<u64>) {
        self.reads.write().unwrap_or_else(PoisonError::into_inner).push(bytes);
    }

    /// Writes, write zeroes and deallocations that touch one of these bytes fail with Write Fault; nothing is written.
    pub fn fail_writes(&self, bytes: Range<u64>) {
        self.writes.write().unwrap_or_else(PoisonError::into_inner).push(bytes);
    }

    /// Flushes fail with Write Fault.
    pub fn fail_flushes(&self) {
        self.flushes.store(true, Ordering::SeqCst);
    }

    /// Nothing fails any more.
    pub fn heal(&self) {
        self.flushes.store(false, Ordering::SeqCst);
        self.reads.write().unwrap_or_else(PoisonError::into_inner).clear();
        self.writes.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn check(
        bad: &RwLock<Vec<Range<u64>>>,
        offset: u64,
        bytes: u64,
        error: MediaError,
    ) -> Result<(), MediaError> {
        let bad = bad.read().unwrap_or_else(PoisonError::into_inner);
        if bad.iter().any(|bad| offset < bad.end && bad.start < offset + bytes) { Err(error) } else { Ok(()) }
    }
}

impl<M: Media> Media for FaultyMedia<M> {
    fn bytes(&self) -> u64 {
        self.under.bytes()
    }

    fn may_block(&self) -> bool {
        self.under.may_block()
    }

    fn write_cache(&self) -> bool {
        self.under.write_cache()
    }

    fn read(&self, offset: u64, into: &Segments<'_>) -> Result<(), MediaError> {
        Self::check(&self.reads, offset, into.len() as u64, MediaError::Read)?;
        self.under.read(offset, into)
    }

    fn write(&self, offset: u64, from: &Segments<'_>, durable: bool) -> Result<(), MediaError> {
        Self::check(&self.writes, offset, from.len() as u64, MediaError::Write)?;
        self.under.write(offset, from, durable)
    }

    fn zero(&self, offset: u64, bytes: u64, deallocate: bool) -> Result<(), MediaError> {
        Self::check(&self.writes, offset, bytes, MediaError::Write)?;
        self.under.zero(offset, bytes, deallocate)
    }

    fn flush(&self) -> Result<(), MediaError> {
        if self.flushes.load(Ordering::SeqCst) {
            return Err(MediaError::Write);
        }
        self.under.flush()
    }

    fn power_cut(&self, seed: u64) {
        self.under.power_cut(seed);
    }
}

/// What can be wrong with a completion of an I/O command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lie {
    /// It is never posted.
    Lost,
    /// It is posted twice.
    Twice,
    /// It has another command identifier, from the seed.
    WrongCommand,
    /// It names another submission queue, from the seed.
    WrongQueue,
    /// Its phase is that of an old entry.
    WrongPhase,
    /// It says the command failed, with a status from the seed.
    WrongStatus,
}

impl Lie {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Lost, Self::Twice, Self::WrongCommand, Self::WrongQueue, Self::WrongPhase, Self::WrongStatus];
}

type Edit = Box<dyn Fn(&Sqe, &mut [u8]) + Send>;
type EventLie = Box<dyn Fn(u32) -> u32 + Send>;

struct Plan {
    dice: Dice,
    /// Lies for the next completions.
    next: VecDeque<Lie>,
    /// Chances of a lie, in thousandths.
    odds: Vec<(Lie, u16)>,
    fail: VecDeque<Status>,
    edit: Option<Edit>,
    event: Option<EventLie>,
}

/// An [`Interposer`] that does what it is told, or what its seed says.
pub struct Faults {
    plan: Mutex<Plan>,
    holding: AtomicBool,
    holding_admin: AtomicBool,
    abort_lies: AtomicBool,
    /// There is something in the plan.
    armed: AtomicBool,
}

impl Faults {
    /// Nothing goes wrong yet.
    pub fn new(seed: u64) -> Arc<Self> {
        let plan = Plan {
            dice: Dice(seed),
            next: VecDeque::new(),
            odds: Vec::new(),
            fail: VecDeque::new(),
            edit: None,
            event: None,
        };
        Arc::new(Self {
            plan: Mutex::new(plan),
            holding: AtomicBool::new(false),
            holding_admin: AtomicBool::new(false),
            abort_lies: AtomicBool::new(false),
            armed: AtomicBool::new(false),
        })
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.armed.store(true, Ordering::Relaxed);
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds I/O commands from now on.
    pub fn hold(&self) {
        self.holding.store(true, Ordering::SeqCst);
    }

    /// Holds admin commands from now on, but for aborts and deletions of queues.
    pub fn hold_admin(&self) {
        self.holding_admin.store(true, Ordering::SeqCst);
    }

    /// Holds no more; what is held stays so, until it is released or its controller stops.
    pub fn stop_holding(&self) {
        self.holding.store(false, Ordering::SeqCst);
        self.holding_admin.store(false, Ordering::SeqCst);
    }

    /// Holds no more, and lets `device` run what was held, on this thread. Returns how many that were.
    pub fn release(&self, device: &Emulator) -> usize {
        self.stop_holding();
        device.release_held()
    }

    /// Aborts of held commands claim success from now on and do nothing.
    pub fn lie_about_aborts(&self) {
        self.abort_lies.store(true, Ordering::SeqCst);
    }

    /// The next completion of an I/O command that has no lie yet gets this one.
    pub fn lie_next(&self, lie: Lie) {
        self.plan().next.push_back(lie);
    }

    /// From now on, each completion of an I/O command gets `lie` with a chance of `thousandths`.
    pub fn lie_often(&self, lie: Lie, thousandths: u16) {
        self.plan().odds.push((lie, thousandths));
    }

    /// The next I/O command that is not yet to fail does, with `status`.
    pub fn fail_next(&self, status: Status) {
        self.plan().fail.push_back(status);
    }

    /// Changes identify data and log pages before they are handed out.
    pub fn edit_data(&self, edit: impl Fn(&Sqe, &mut [u8]) + Send + 'static) {
        self.plan().edit = Some(Box::new(edit));
    }

    /// Event indexes are written as `lie` makes them of the true ones from now on.
    pub fn lie_about_events(&self, lie: impl Fn(u32) -> u32 + Send + 'static) {
        self.plan().event = Some(Box::new(lie));
    }

    /// Back to the truth, but for what is held.
    pub fn behave(&self) {
        let mut plan = self.plan();
        (plan.next, plan.odds, plan.fail, plan.edit, plan.event) = Default::default();
    }

    /// The plan, if there was ever anything in it.
    fn armed(&self) -> Option<MutexGuard<'_, Plan>> {
        self.armed.load(Ordering::Relaxed).then(|| self.plan())
    }

    /// What becomes of the next completion, and noise for it.
    fn next_lie(&self) -> Option<(Lie, u16)> {
        let mut plan = self.armed()?;
        let lie = plan.lie();
        let [noise, more, ..] = plan.dice.number().to_le_bytes();
        Some((lie?, u16::from_le_bytes([noise, more])))
    }

    fn next_failure(&self) -> Option<Status> {
        self.armed()?.fail.pop_front()
    }

    /// What an event index is written as.
    fn event_as_told(&self, event: u32) -> Option<u32> {
        self.armed()?.event.as_ref().map(|lie| lie(event))
    }
}

impl Plan {
    fn lie(&mut self) -> Option<Lie> {
        self.next.pop_front().or_else(|| {
            let odds = std::mem::take(&mut self.odds);
            let lie =
                odds.iter().find(|&&(_, odds)| self.dice.below(1000) < u64::from(odds)).map(|&(lie, _)| lie);
            self.odds = odds;
            lie
        })
    }
}

impl Interposer for Faults {
    fn before(&self, queue: u16, command: &Sqe) -> Verdict {
        use crate::spec::nvme::admin;
        let spared = matches!(command.cdw0.opc(), admin::ABORT | admin::DELETE_IO_SQ | admin::DELETE_IO_CQ);
        if queue == 0 {
            let hold = self.holding_admin.load(Ordering::SeqCst) && !spared;
            return if hold { Verdict::Hold } else { Verdict::Run };
        }
        if self.holding.load(Ordering::SeqCst) {
            return Verdict::Hold;
        }
        self.next_failure().map_or(Verdict::Run, Verdict::Fail)
    }

    fn completion(&self, posting: &mut Posting) {
        if posting.entry.sqid == 0 {
            return;
        }
        let Some((lie, noise)) = self.next_lie() else { return };
        match lie {
            Lie::Lost => posting.copies = 0,
            Lie::Twice => posting.copies = 2,
            // Not its own, be the noise what it will.
            Lie::WrongCommand => posting.entry.cid ^= noise.max(1),
            Lie::WrongQueue => posting.entry.sqid ^= noise.max(1),
            Lie::WrongPhase => posting.wrong_phase = true,
            Lie::WrongStatus => posting.entry.status.0 |= noise | 2,
        }
    }

    fn data(&self, command: &Sqe, data: &mut [u8]) {
        if let Some(edit) = &self.plan().edit {
            edit(command, data);
        }
    }

    fn event(&self, _: u16, event: &mut u32) {
        if let Some(told) = self.event_as_told(*event) {
            *event = told;
        }
    }

    fn abort_lies(&self) -> bool {
        self.abort_lies.load(Ordering::SeqCst)
    }
}

/// On a virtio block device, which has neither phases nor admin commands: a wrong queue is a chain that the queue does not
/// have, a wrong phase an index that went on by itself, and every status to fail with is an I/O error.
impl RequestInterposer for Faults {
    fn before(&self, _: u16, header: &RequestHeader) -> Fate {
        if header.kind == request::GET_ID {
            return Fate::Run; // what the driver asks on its own behalf, as admin commands are
        }
        if self.holding.load(Ordering::SeqCst) {
            return Fate::Hold;
        }
        self.next_failure().map_or(Fate::Run, |_| Fate::Fail(virtio_status::IOERR))
    }

    fn using(&self, using: &mut Using) {
        if using.kind == request::GET_ID {
            return;
        }
        let Some((lie, noise)) = self.next_lie() else { return };
        match lie {
            Lie::Lost => using.copies = 0,
            Lie::Twice => using.copies = 2,
            Lie::WrongCommand => using.id ^= u32::from(noise.max(1)),
            Lie::WrongQueue => using.id |= 1 << 16,
            Lie::WrongPhase => (using.copies, using.jump) = (0, 1),
            Lie::WrongStatus => using.status = Some(noise.to_le_bytes()[0] | virtio_status::UNSUPP),
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "as wide as it was")]
    fn event(&self, _: u16, event: &mut u16) {
        if let Some(told) = self.event_as_told(u32::from(*event)) {
            *event = told as u16;
        }
    }
}

/// A device whose registers can be made to misbehave: an NVMe controller's, or a virtio device's.
pub struct Faulty<D: Device> {
    under: D,
    registers: Arc<FaultyRegisters<D::Registers>>,
}

impl<D: Device> Faulty<D> {
    /// Nothing is wrong yet.
    pub fn new(under: D) -> Self {
        let places = Places {
            status: offset::CSTS,
            control: offset::CC,
            doorbells: offset::DOORBELLS,
            requests: offset::DOORBELLS + 8,
            shape: 0..0,
        };
        let registers = FaultyRegisters { under: under.registers(), places, bent: Arc::default() };
        Self { under, registers: Arc::new(registers) }
    }

    /// The device below.
    pub fn under(&self) -> &D {
        &self.under
    }

    /// What is wrong with it, for those who go on after a driver has got the device.
    pub fn bent(&self) -> Arc<Bent> {
        Arc::clone(&self.registers.bent)
    }

    /// See [`Bent::set_gone`].
    pub fn set_gone(&self, gone: bool) {
        self.registers.bent.set_gone(gone);
    }

    /// See [`Bent::set_mute`].
    pub fn set_mute(&self, mute: bool) {
        self.registers.bent.set_mute(mute);
    }

    /// CSTS reads with these bits set and those cleared: `Csts(2)` is a fatal controller, clearing `Csts(1)` one that
    /// is never ready.
    pub fn bend_status(&self, set: Csts, clear: Csts) {
        self.registers.bent.set.store(set.0, Ordering::SeqCst);
        self.registers.bent.clear.store(clear.0, Ordering::SeqCst);
    }
}

/// What is wrong with a [`Faulty`] device.
#[derive(Default, Debug)]
pub struct Bent {
    gone: AtomicBool,
    mute: AtomicBool,
    set: AtomicU32,
    clear: AtomicU32,
    /// So many doorbells are lost.
    losing: AtomicU32,
    /// At so many doorbells it fails.
    failing: AtomicU32,
    /// It failed, and was not reset since.
    failed: AtomicBool,
    absurd: AtomicBool,
    deaf: AtomicBool,
}

impl Bent {
    /// The device is pulled out, or put back: registers read as all ones, writes are lost.
    pub fn set_gone(&self, gone: bool) {
        self.gone.store(gone, Ordering::SeqCst);
    }

    /// Whether the device is pulled out.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }

    /// Doorbells are lost, or no longer.
    pub fn set_mute(&self, mute: bool) {
        self.mute.store(mute, Ordering::SeqCst);
    }

    /// The next `count` doorbells of I/O queues are lost; of a virtio device, of queues but the first.
    pub fn lose_doorbells(&self, count: u32) {
        self.losing.store(count, Ordering::SeqCst);
    }

    /// At each of the next `count` such doorbells, which are lost, the device reports that it failed (CSTS.CFS,
    /// DEVICE_NEEDS_RESET), until it is reset.
    pub fn fail_at_doorbells(&self, count: u32) {
        self.failing.store(count, Ordering::SeqCst);
    }

    /// Of a virtio device: its configuration reads as all ones. What an NVMe controller says of itself is
    /// bent by [`Faults::edit_data`].
    pub fn set_absurd(&self, absurd: bool) {
        self.absurd.store(absurd, Ordering::SeqCst);
    }

    /// Function resets fail, or no longer.
    pub fn set_deaf(&self, deaf: bool) {
        self.deaf.store(deaf, Ordering::SeqCst);
    }

    /// Nothing is wrong with it any more.
    pub fn behave(&self) {
        for bad in [&self.gone, &self.mute, &self.failed, &self.absurd, &self.deaf] {
            bad.store(false, Ordering::SeqCst);
        }
        for bad in [&self.set, &self.clear, &self.losing, &self.failing] {
            bad.store(0, Ordering::SeqCst);
        }
    }

    /// Whether a doorbell is lost.
    fn loses_doorbell(&self) -> bool {
        let one_less = |count: &AtomicU32| {
            count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| count.checked_sub(1)).is_ok()
        };
        if one_less(&self.failing) {
            self.failed.store(true, Ordering::SeqCst);
        }
        self.failed.load(Ordering::SeqCst) || one_less(&self.losing)
    }
}

/// Where a device has what.
#[derive(Clone, Debug)]
struct Places {
    status: usize,
    /// Writing 0 to its lowest bit, or all of it, resets the device.
    control: usize,
    doorbells: usize,
    /// Those behind the queue on which a driver asks on its own behalf: the admin queue, or virtio's first.
    requests: usize,
    /// What is absurd, if it is to be.
    shape: Range<usize>,
}

/// The registers of a [`Faulty`] device.
pub struct FaultyRegisters<R> {
    under: Arc<R>,
    places: Places,
    bent: Arc<Bent>,
}

impl<R: Registers> FaultyRegisters<R> {
    /// Whether a write of `value` at `at` is lost.
    fn lost(&self, at: usize, value: u64) -> bool {
        if self.bent.gone.load(Ordering::SeqCst) {
            return true;
        }
        if at == self.places.control && value & 1 == 0 {
            self.bent.failed.store(false, Ordering::SeqCst);
        }
        let mute = self.bent.mute.load(Ordering::SeqCst) && at >= self.places.doorbells;
        mute || at >= self.places.requests && self.bent.loses_doorbell()
    }

    /// What `value` is bent to, read at `at`; `failure` are the bits of a status that say that the device failed.
    fn bend(&self, at: usize, value: u32, failure: u32) -> u32 {
        let bent = &self.bent;
        if bent.gone.load(Ordering::SeqCst)
            || bent.absurd.load(Ordering::SeqCst) && self.places.shape.contains(&at)
        {
            return u32::MAX;
        }
        if at != self.places.status {
            return value;
        }
        let failed = if bent.failed.load(Ordering::SeqCst) { failure } else { 0 };
        (value | failed | bent.set.load(Ordering::SeqCst)) & !bent.clear.load(Ordering::SeqCst)
    }
}

impl<R: Registers> Registers for FaultyRegisters<R> {
    fn len(&self) -> usize {
        self.under.len()
    }

    fn read32(&self, at: usize) -> u32 {
        self.bend(at, self.under.read32(at), FATAL)
    }

    fn read64(&self, at: usize) -> u64 {
        u64::from(self.read32(at)) | u64::from(self.read32(at + 4)) << 32
    }

    fn write32(&self, at: usize, value: u32) {
        if !self.lost(at, value.into()) {
            self.under.write32(at, value);
        }
    }

    fn write64(&self, at: usize, value: u64) {
        if !self.lost(at, value) {
            self.under.write64(at, value);
        }
    }

    fn arm_interrupt(&self, vector: u32, armed: bool) {
        self.under.arm_interrupt(vector, armed);
    }
}

/// CSTS.CFS.
const FATAL: u32 = 2;

#[expect(clippy::cast_possible_truncation, reason = "as wide as was read")]
impl<R: NarrowRegisters> NarrowRegisters for FaultyRegisters<R> {
    fn read8(&self, at: usize) -> u8 {
        self.bend(at, self.under.read8(at).into(), device_status::DEVICE_NEEDS_RESET.into()) as u8
    }

    fn read16(&self, at: usize) -> u16 {
        self.bend(at, self.under.read16(at).into(), 0) as u16
    }

    fn write8(&self, at: usize, value: u8) {
        if !self.lost(at, value.into()) {
            self.under.write8(at, value);
        }
    }

    fn write16(&self, at: usize, value: u16) {
        if !self.lost(at, value.into()) {
            self.under.write16(at, value);
        }
    }
}

impl<D: Device> Device for Faulty<D> {
    type Registers = FaultyRegisters<D::Registers>;

    fn registers(&self) -> Arc<Self::Registers> {
        Arc::clone(&self.registers)
    }

    fn mapper(&self) -> Arc<dyn Mapper> {
        self.under.mapper()
    }

    fn set_bus_master(&self, on: bool) -> io::Result<()> {
        self.under.set_bus_master(on)
    }

    fn reset(&self) -> io::Result<()> {
        let bent = &self.registers.bent;
        if bent.gone.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if bent.deaf.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        bent.failed.store(false, Ordering::SeqCst);
        self.under.reset()
    }

    fn vectors(&self) -> u32 {
        self.under.vectors()
    }

    fn route_interrupts(&self, eventfds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.under.route_interrupts(eventfds)
    }
}

impl<D: PciFunction> PciFunction for Faulty<D> {
    fn config_space(&self) -> io::Result<[u8; CONFIG_LEN]> {
        if self.registers.bent.gone.load(Ordering::SeqCst) {
            return Ok([u8::MAX; CONFIG_LEN]);
        }
        self.under.config_space()
    }

    fn bar(&self, index: usize) -> io::Result<Arc<Self::Registers>> {
        let places = Places {
            status: common_cfg::DEVICE_STATUS,
            control: common_cfg::DEVICE_STATUS,
            doorbells: VIRTIO_DOORBELLS,
            requests: VIRTIO_DOORBELLS + 4,
            shape: VIRTIO_CONFIG..VIRTIO_DOORBELLS,
        };
        let bent = Arc::clone(&self.registers.bent);
        Ok(Arc::new(FaultyRegisters { under: self.under.bar(index)?, places, bent }))
    }
}
