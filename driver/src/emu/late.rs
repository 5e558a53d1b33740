//! A device that is late: it goes on with commands that its host has given up, while it is being reset, and even after
//! it has said that they are done.

mod lateness;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

pub use lateness::Lateness;
pub(super) use lateness::{Look, Mind};

use super::interpose::{Interposer, Verdict};
use super::{Controller, EmuConfig, Emulator};
use crate::hal::{Device, Mapper, Registers};
use crate::spec::nvme::{Cc, Sqe, offset};

impl Interposer for Mind {
    fn before(&self, queue: u16, _: &Sqe) -> Verdict {
        if queue == 0 { Verdict::Run } else { self.verdict() }
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
        let mind = Arc::new(Mind::new(lateness));
        let interposer: Arc<dyn Interposer> = mind.clone();
        let emulator = Arc::new(Emulator::new(EmuConfig { interposer: Some(interposer), ..config })?);
        let registers = LateRegisters {
            under: emulator.registers(),
            emulator: emulator.clone(),
            mind,
            asked: AtomicU32::new(0),
        };
        Ok(Self { emulator, registers: Arc::new(registers) })
    }

    /// A handle on the same device.
    pub fn handle(&self) -> Self {
        Self { emulator: self.emulator.clone(), registers: self.registers.clone() }
    }

    /// It is late from now on.
    pub fn start(&self) {
        self.registers.mind.be_late(true);
    }

    /// It is late no more; what it holds it still holds.
    pub fn stop(&self) {
        self.registers.mind.be_late(false);
    }

    /// Lets it run one of the commands that it holds, whichever, on this thread. Says whether there was one.
    pub fn stir(&self) -> bool {
        self.registers.stir()
    }

    /// Late runs so far.
    pub fn runs(&self) -> u64 {
        self.registers.mind.runs()
    }

    /// How often it was told to be disabled.
    pub fn stops(&self) -> u32 {
        self.registers.mind.stops()
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
    /// CC as written when it began to linger.
    asked: AtomicU32,
}

impl LateRegisters {
    fn stir(&self) -> bool {
        self.mind.stir(|pick| self.emulator.release_one(pick))
    }
}

impl Registers for LateRegisters {
    fn len(&self) -> usize {
        self.under.len()
    }

    fn read32(&self, at: usize) -> u32 {
        if at == offset::CSTS {
            match self.mind.look() {
                Look::Nothing => {}
                Look::Works => _ = self.stir(),
                Look::Stops => self.under.write32(offset::CC, self.asked.load(Ordering::SeqCst)),
            }
        }
        let value = self.under.read32(at);
        if at == offset::CAP { value & !(0xff << 24) } else { value }
    }

    fn read64(&self, at: usize) -> u64 {
        u64::from(self.read32(at)) | u64::from(self.read32(at + 4)) << 32
    }

    fn write32(&self, at: usize, value: u32) {
        let enabled = |cc: u32| Cc(cc).en();
        if at == offset::CC && !enabled(value) {
            self.asked.store(value, Ordering::SeqCst);
            if self.mind.lingers(|| enabled(self.under.read32(at))) {
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
        self.registers.mind.work_on(|pick| self.emulator.release_one(pick));
        self.emulator.reset()
    }

    fn vectors(&self) -> u32 {
        self.emulator.vectors()
    }

    fn route_interrupts(&self, eventfds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.emulator.route_interrupts(eventfds)
    }
}
