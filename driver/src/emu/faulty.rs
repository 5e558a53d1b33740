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
use crate::dice::Dice;
use crate::hal::{Device, Mapper, Registers};
use crate::spec::nvme::{Csts, Sqe, Status, offset};

/// Media of which parts fail.
#[derive(Debug)]
pub struct FaultyMedia<M> {
    under: M,
    reads: RwLock<Vec<Range<u64>>>,
    writes: RwLock<Vec<Range<u64>>>,
}

impl<M: Media> FaultyMedia<M> {
    /// Nothing fails yet.
    pub fn new(under: M) -> Self {
        Self { under, reads: RwLock::default(), writes: RwLock::default() }
    }

    /// Reads and compares that touch one of these bytes fail with Unrecovered Read Error.
    pub fn fail_reads(&self, bytes: Range<u64>) {
        self.reads.write().unwrap_or_else(PoisonError::into_inner).push(bytes);
    }

    /// Writes, write zeroes and deallocations that touch one of these bytes fail with Write Fault; nothing is written.
    pub fn fail_writes(&self, bytes: Range<u64>) {
        self.writes.write().unwrap_or_else(PoisonError::into_inner).push(bytes);
    }

    /// Nothing fails any more.
    pub fn heal(&self) {
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
        let hold = if queue == 0 {
            self.holding_admin.load(Ordering::SeqCst) && !spared
        } else {
            self.holding.load(Ordering::SeqCst)
        };
        if hold {
            return Verdict::Hold;
        }
        if queue > 0
            && self.armed.load(Ordering::Relaxed)
            && let Some(status) = self.plan().fail.pop_front()
        {
            return Verdict::Fail(status);
        }
        Verdict::Run
    }

    #[expect(clippy::cast_possible_truncation, reason = "noise")]
    fn completion(&self, posting: &mut Posting) {
        if posting.entry.sqid == 0 || !self.armed.load(Ordering::Relaxed) {
            return;
        }
        let mut plan = self.plan();
        let lie = plan.lie();
        let noise = plan.dice.number() as u16;
        match lie {
            None => {}
            Some(Lie::Lost) => posting.copies = 0,
            Some(Lie::Twice) => posting.copies = 2,
            // Not its own, be the noise what it will.
            Some(Lie::WrongCommand) => posting.entry.cid ^= noise.max(1),
            Some(Lie::WrongQueue) => posting.entry.sqid ^= noise.max(1),
            Some(Lie::WrongPhase) => posting.wrong_phase = true,
            Some(Lie::WrongStatus) => posting.entry.status.0 |= noise | 2,
        }
    }

    fn data(&self, command: &Sqe, data: &mut [u8]) {
        if let Some(edit) = &self.plan().edit {
            edit(command, data);
        }
    }

    fn event(&self, _: u16, event: &mut u32) {
        if self.armed.load(Ordering::Relaxed)
            && let Some(lie) = &self.plan().event
        {
            *event = lie(*event);
        }
    }

    fn abort_lies(&self) -> bool {
        self.abort_lies.load(Ordering::SeqCst)
    }
}

/// A device whose registers can be made to misbehave.
pub struct Faulty<D: Device> {
    under: D,
    registers: Arc<FaultyRegisters<D::Registers>>,
}

impl<D: Device> Faulty<D> {
    /// Nothing is wrong yet.
    pub fn new(under: D) -> Self {
        let registers = Arc::new(FaultyRegisters {
            under: under.registers(),
            gone: AtomicBool::new(false),
            mute: AtomicBool::new(false),
            set: AtomicU32::new(0),
            clear: AtomicU32::new(0),
        });
        Self { under, registers }
    }

    /// The device below.
    pub fn under(&self) -> &D {
        &self.under
    }

    /// The device is pulled out, or put back: registers read as all ones, writes are lost.
    pub fn set_gone(&self, gone: bool) {
        self.registers.gone.store(gone, Ordering::SeqCst);
    }

    /// Doorbells are lost, or no longer.
    pub fn set_mute(&self, mute: bool) {
        self.registers.mute.store(mute, Ordering::SeqCst);
    }

    /// CSTS reads with these bits set and those cleared: `Csts(2)` is a fatal controller, clearing `Csts(1)` one that
    /// is never ready.
    pub fn bend_status(&self, set: Csts, clear: Csts) {
        self.registers.set.store(set.0, Ordering::SeqCst);
        self.registers.clear.store(clear.0, Ordering::SeqCst);
    }
}

/// The registers of a [`Faulty`] device.
pub struct FaultyRegisters<R> {
    under: Arc<R>,
    gone: AtomicBool,
    mute: AtomicBool,
    set: AtomicU32,
    clear: AtomicU32,
}

impl<R: Registers> FaultyRegisters<R> {
    fn lost(&self, at: usize) -> bool {
        self.gone.load(Ordering::SeqCst) || at >= offset::DOORBELLS && self.mute.load(Ordering::SeqCst)
    }
}

impl<R: Registers> Registers for FaultyRegisters<R> {
    fn len(&self) -> usize {
        self.under.len()
    }

    fn read32(&self, at: usize) -> u32 {
        if self.gone.load(Ordering::SeqCst) {
            return u32::MAX;
        }
        let value = self.under.read32(at);
        if at == offset::CSTS {
            (value | self.set.load(Ordering::SeqCst)) & !self.clear.load(Ordering::SeqCst)
        } else {
            value
        }
    }

    fn read64(&self, at: usize) -> u64 {
        u64::from(self.read32(at)) | u64::from(self.read32(at + 4)) << 32
    }

    fn write32(&self, at: usize, value: u32) {
        if !self.lost(at) {
            self.under.write32(at, value);
        }
    }

    fn write64(&self, at: usize, value: u64) {
        if !self.lost(at) {
            self.under.write64(at, value);
        }
    }

    fn arm_interrupt(&self, vector: u32, armed: bool) {
        self.under.arm_interrupt(vector, armed);
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
        if self.registers.gone.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        self.under.reset()
    }

    fn vectors(&self) -> u32 {
        self.under.vectors()
    }

    fn route_interrupts(&self, eventfds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.under.route_interrupts(eventfds)
    }
}
