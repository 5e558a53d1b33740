//! A device that is late: it goes on with commands that its host has given up, while it is being reset, and even after
//! it has said that they are done.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::interpose::{Interposer, Verdict};
use super::{Controller, EmuConfig, Emulator};
use crate::dice::Dice;
use crate::hal::{Device, Mapper, Registers};
use crate::spec::nvme::{Cc, Sqe, offset};

/// How late a [`Late`] device is. Chances are in thousandths.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lateness {
    /// What all dice are thrown with.
    pub seed: u64,
    /// Chance that an I/O command does not run when it is told, but some time later, or never.
    pub late: u16,
    /// Chance that one runs and completes, and runs again some time later: what no device may do.
    pub again: u16,
    /// Looks at CSTS before the controller is disabled after CC.EN was cleared, at most; meanwhile it works on.
    /// With `u32::MAX` it is never disabled, and only a function reset stops it.
    pub lingers: u32,
}

impl Lateness {
    /// One of all kinds, by the dice of `seed`.
    #[expect(clippy::cast_possible_truncation, reason = "small numbers")]
    pub fn of(seed: u64) -> Self {
        let mut dice = Dice(seed ^ 0x1a7e);
        let never_disabled = seed % 8 == 7;
        Self {
            seed,
            late: if never_disabled { 700 } else { 100 + dice.below(600) as u16 },
            again: if !never_disabled && dice.below(3) == 0 { 1 + dice.below(300) as u16 } else { 0 },
            // Waiting for one that is never disabled takes half a second.
            lingers: if never_disabled { u32::MAX } else { dice.below(60) as u32 },
        }
    }

    /// Whether the device keeps to the specification, for all that it is late.
    pub fn is_honest(&self) -> bool {
        self.again == 0
    }
}

/// What the parts share.
struct Mind {
    lateness: Lateness,
    dice: Mutex<Dice>,
    on: AtomicBool,
    /// CC as written while the controller lingers, and how many looks it still does.
    asked: Mutex<Option<(u32, u32)>>,
    /// Late runs so far.
    runs: AtomicU64,
    disables: AtomicU32,
}

impl Mind {
    fn dice(&self) -> MutexGuard<'_, Dice> {
        self.dice.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asked(&self) -> MutexGuard<'_, Option<(u32, u32)>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Interposer for Mind {
    fn before(&self, queue: u16, _: &Sqe) -> Verdict {
        if queue == 0 || !self.on.load(Ordering::Relaxed) {
            return Verdict::Run;
        }
        let dice = self.dice().below(1000);
        let late = u64::from(self.lateness.late);
        match dice {
            dice if dice < late => Verdict::Hold,
            dice if dice < late + u64::from(self.lateness.again) => Verdict::RunAndHold,
            _ => Verdict::Run,
        }
    }

    fn abort_lies(&self) -> bool {
        true
    }
}

/// An [`Emulator`] that is late, once [`Late::start`] was called.
///
/// CAP.TO is the least there is, so that nobody waits long for what never happens.
pub struct Late {
    emulator: Arc<Emulator>,
    registers: Arc<LateRegisters>,
}

impl Late {
    /// Makes the device; an interposer in `config` is not called. Errors as [`Emulator::new`].
    pub fn new(config: EmuConfig, lateness: Lateness) -> io::Result<Self> {
        let mind = Arc::new(Mind {
            lateness,
            dice: Mutex::new(Dice(lateness.seed)),
            on: AtomicBool::new(false),
            asked: Mutex::new(None),
            runs: AtomicU64::new(0),
            disables: AtomicU32::new(0),
        });
        let interposer: Arc<dyn Interposer> = mind.clone();
        let emulator = Arc::new(Emulator::new(EmuConfig { interposer: Some(interposer), ..config })?);
        let registers = LateRegisters { under: emulator.registers(), emulator: emulator.clone(), mind };
        Ok(Self { emulator, registers: Arc::new(registers) })
    }

    /// A handle on the same device.
    pub fn handle(&self) -> Self {
        Self { emulator: self.emulator.clone(), registers: self.registers.clone() }
    }

    /// It is late from now on.
    pub fn start(&self) {
        self.registers.mind.on.store(true, Ordering::SeqCst);
    }

    /// It is late no more; what it holds it still holds.
    pub fn stop(&self) {
        self.registers.mind.on.store(false, Ordering::SeqCst);
    }

    /// Lets it run one of the commands that it holds, whichever, on this thread. Says whether there was one.
    pub fn stir(&self) -> bool {
        self.registers.stir()
    }

    /// Late runs so far.
    pub fn runs(&self) -> u64 {
        self.registers.mind.runs.load(Ordering::Relaxed)
    }

    /// How often it was told to be disabled.
    pub fn disables(&self) -> u32 {
        self.registers.mind.disables.load(Ordering::Relaxed)
    }

    /// The device below.
    pub fn under(&self) -> &Emulator {
        &self.emulator
    }
}

/// The registers of a [`Late`] device.
pub struct LateRegisters {
    under: Arc<Controller>,
    emulator: Arc<Emulator>,
    mind: Arc<Mind>,
}

impl LateRegisters {
    fn stir(&self) -> bool {
        let pick = self.mind.dice().number();
        let ran = self.emulator.release_one(pick);
        self.mind.runs.fetch_add(u64::from(ran), Ordering::Relaxed);
        ran
    }

    /// The host looks whether the controller is disabled: it may still do something, or at last follow.
    fn look(&self) {
        let mut asked = self.mind.asked();
        let Some((cc, looks)) = *asked else { return };
        let follow = looks == 0;
        *asked = if follow { None } else { Some((cc, if looks == u32::MAX { looks } else { looks - 1 })) };
        drop(asked);
        if follow {
            self.under.write32(offset::CC, cc);
            return;
        }
        // With all the time in the world it would be done with everything, and not late any more.
        let works = looks != u32::MAX && self.mind.dice().below(3) == 0;
        if works {
            self.stir();
        }
    }
}

impl Registers for LateRegisters {
    fn len(&self) -> usize {
        self.under.len()
    }

    fn read32(&self, at: usize) -> u32 {
        if at == offset::CSTS {
            self.look();
        }
        let value = self.under.read32(at);
        if at == offset::CAP { value & !(0xff << 24) } else { value }
    }

    fn read64(&self, at: usize) -> u64 {
        u64::from(self.read32(at)) | u64::from(self.read32(at + 4)) << 32
    }

    fn write32(&self, at: usize, value: u32) {
        let enabled = |cc: u32| Cc(cc).en();
        let lingers = self.mind.lateness.lingers;
        if at == offset::CC && self.mind.on.load(Ordering::SeqCst) && !enabled(value) {
            self.mind.disables.fetch_add(1, Ordering::Relaxed);
            if enabled(self.under.read32(at)) && lingers > 0 {
                let looks = match lingers {
                    u32::MAX => lingers,
                    most => u32::try_from(self.mind.dice().below(most.into())).unwrap_or_default(),
                };
                *self.mind.asked() = Some((value, looks));
                return;
            }
        }
        self.under.write32(at, value);
    }

    fn write64(&self, at: usize, value: u64) {
        self.under.write64(at, value);
    }

    fn arm_interrupt(&self, vector: u32, armed: bool) {
        self.under.arm_interrupt(vector, armed);
    }
}

impl Device for Late {
    type Registers = LateRegisters;

    fn registers(&self) -> Arc<LateRegisters> {
        self.registers.clone()
    }

    fn mapper(&self) -> Arc<dyn Mapper> {
        self.emulator.mapper()
    }

    fn set_bus_master(&self, on: bool) -> io::Result<()> {
        self.emulator.set_bus_master(on)
    }

    /// It works on until the very moment.
    fn reset(&self) -> io::Result<()> {
        loop {
            let more = self.registers.mind.dice().below(4) != 0;
            if !more || !self.stir() {
                break;
            }
        }
        *self.registers.mind.asked() = None;
        self.emulator.reset()
    }

    fn vectors(&self) -> u32 {
        self.emulator.vectors()
    }

    fn route_interrupts(&self, eventfds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.emulator.route_interrupts(eventfds)
    }
}
