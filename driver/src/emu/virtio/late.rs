//! A device that is late: it goes on with requests that its host has given up, while it is being reset, and even after it
//! has said that they are done.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::late::Lateness;
use super::interpose::{Fate, RequestInterposer};
use super::registers::{BAR, VirtioRegisters};
use super::{VirtioConfig, VirtioEmulator};
use crate::dice::Dice;
use crate::hal::{CONFIG_LEN, Device, Mapper, NarrowRegisters, PciFunction, Registers};
use crate::spec::virtio::block::RequestHeader;
use crate::spec::virtio::block::request;
use crate::spec::virtio::pci::common_cfg;
use crate::spec::virtio::status;

/// What the parts share.
struct Mind {
    lateness: Lateness,
    dice: Mutex<Dice>,
    on: AtomicBool,
    /// Looks that it still lingers before it follows the reset that it was told.
    asked: Mutex<Option<u32>>,
    /// Late runs so far.
    runs: AtomicU64,
    resets: AtomicU32,
}

impl Mind {
    fn dice(&self) -> MutexGuard<'_, Dice> {
        self.dice.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asked(&self) -> MutexGuard<'_, Option<u32>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RequestInterposer for Mind {
    fn before(&self, _: u16, header: &RequestHeader) -> Fate {
        if header.kind == request::GET_ID || !self.on.load(Ordering::Relaxed) {
            return Fate::Run;
        }
        let dice = self.dice().below(1000);
        let late = u64::from(self.lateness.late);
        match dice {
            dice if dice < late => Fate::Hold,
            dice if dice < late + u64::from(self.lateness.again) => Fate::RunAndHold,
            _ => Fate::Run,
        }
    }
}

/// A [`VirtioEmulator`] that is late, once [`VirtioLate::start`] was called.
pub struct VirtioLate {
    emulator: Arc<VirtioEmulator>,
    mind: Arc<Mind>,
}

impl VirtioLate {
    /// Makes the device; an interposer in `config` is not called. Errors as [`VirtioEmulator::new`].
    pub fn new(config: VirtioConfig, lateness: Lateness) -> io::Result<Self> {
        let mind = Arc::new(Mind {
            lateness,
            dice: Mutex::new(Dice(lateness.seed)),
            on: AtomicBool::new(false),
            asked: Mutex::new(None),
            runs: AtomicU64::new(0),
            resets: AtomicU32::new(0),
        });
        let interposer: Arc<dyn RequestInterposer> = mind.clone();
        let emulator = VirtioEmulator::new(VirtioConfig { interposer: Some(interposer), ..config })?;
        Ok(Self { emulator: Arc::new(emulator), mind })
    }

    /// A handle on the same device.
    pub fn handle(&self) -> Self {
        Self { emulator: self.emulator.clone(), mind: self.mind.clone() }
    }

    /// It is late from now on.
    pub fn start(&self) {
        self.mind.on.store(true, Ordering::SeqCst);
    }

    /// It is late no more; what it holds it still holds.
    pub fn stop(&self) {
        self.mind.on.store(false, Ordering::SeqCst);
    }

    /// Lets it run one of the requests that it holds, whichever, on this thread. Says whether there was one.
    pub fn stir(&self) -> bool {
        stir(&self.emulator, &self.mind)
    }

    /// Late runs so far.
    pub fn runs(&self) -> u64 {
        self.mind.runs.load(Ordering::Relaxed)
    }

    /// How often it was told to reset itself.
    pub fn resets(&self) -> u32 {
        self.mind.resets.load(Ordering::Relaxed)
    }

    /// The device below.
    pub fn under(&self) -> &VirtioEmulator {
        &self.emulator
    }

    fn over(&self, under: Arc<VirtioRegisters>, is_bar: bool) -> Arc<VirtioLateRegisters> {
        let (emulator, mind) = (self.emulator.clone(), self.mind.clone());
        Arc::new(VirtioLateRegisters { under, emulator, mind, is_bar })
    }
}

fn stir(emulator: &VirtioEmulator, mind: &Mind) -> bool {
    let pick = mind.dice().number();
    let ran = emulator.release_one(pick);
    mind.runs.fetch_add(u64::from(ran), Ordering::Relaxed);
    ran
}

/// The registers of a [`VirtioLate`] device.
pub struct VirtioLateRegisters {
    under: Arc<VirtioRegisters>,
    emulator: Arc<VirtioEmulator>,
    mind: Arc<Mind>,
    /// They are those of the BAR with the structures.
    is_bar: bool,
}

impl VirtioLateRegisters {
    /// The common configuration comes first in the BAR.
    fn is_status(&self, at: usize) -> bool {
        self.is_bar && at == common_cfg::DEVICE_STATUS
    }

    /// The host looks whether the device is reset: it may still do something, or at last follow.
    fn look(&self) {
        let mut asked = self.mind.asked();
        let Some(looks) = *asked else { return };
        *asked = match looks {
            0 => None,
            u32::MAX => Some(u32::MAX),
            more => Some(more - 1),
        };
        drop(asked);
        if looks == 0 {
            self.under.write8(common_cfg::DEVICE_STATUS, status::RESET);
        } else if looks != u32::MAX && self.mind.dice().below(3) == 0 {
            stir(&self.emulator, &self.mind);
        }
    }
}

impl Registers for VirtioLateRegisters {
    fn len(&self) -> usize {
        self.under.len()
    }

    fn read32(&self, at: usize) -> u32 {
        self.under.read32(at)
    }

    fn read64(&self, at: usize) -> u64 {
        self.under.read64(at)
    }

    fn write32(&self, at: usize, value: u32) {
        self.under.write32(at, value);
    }

    fn write64(&self, at: usize, value: u64) {
        self.under.write64(at, value);
    }
}

impl NarrowRegisters for VirtioLateRegisters {
    fn read8(&self, at: usize) -> u8 {
        if self.is_status(at) {
            self.look();
        }
        self.under.read8(at)
    }

    fn read16(&self, at: usize) -> u16 {
        self.under.read16(at)
    }

    fn write8(&self, at: usize, value: u8) {
        let lingers = self.mind.lateness.lingers;
        if self.is_status(at) && value == status::RESET && self.mind.on.load(Ordering::SeqCst) {
            self.mind.resets.fetch_add(1, Ordering::Relaxed);
            if self.under.read8(at) & status::DRIVER_OK != 0 && lingers > 0 {
                let looks = match lingers {
                    u32::MAX => lingers,
                    most => u32::try_from(self.mind.dice().below(most.into())).unwrap_or_default(),
                };
                *self.mind.asked() = Some(looks);
                return;
            }
        }
        self.under.write8(at, value);
    }

    fn write16(&self, at: usize, value: u16) {
        self.under.write16(at, value);
    }
}

impl Device for VirtioLate {
    type Registers = VirtioLateRegisters;

    fn registers(&self) -> Arc<VirtioLateRegisters> {
        self.over(self.emulator.registers(), false)
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
            let more = self.mind.dice().below(4) != 0;
            if !more || !self.stir() {
                break;
            }
        }
        *self.mind.asked() = None;
        self.emulator.reset()
    }

    fn vectors(&self) -> u32 {
        self.emulator.vectors()
    }

    fn route_interrupts(&self, eventfds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.emulator.route_interrupts(eventfds)
    }
}

impl PciFunction for VirtioLate {
    fn config_space(&self) -> io::Result<[u8; CONFIG_LEN]> {
        self.emulator.config_space()
    }

    fn bar(&self, index: usize) -> io::Result<Arc<VirtioLateRegisters>> {
        Ok(self.over(self.emulator.bar(index)?, index == BAR))
    }
}
