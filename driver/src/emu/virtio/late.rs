//! A device that is late: it goes on with requests that its host has given up, while it is being reset, and even after it
//! has said that they are done.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::super::late::{Lateness, Look, Mind};
use super::interpose::{Fate, RequestInterposer};
use super::registers::{BAR, VirtioRegisters};
use super::{VirtioConfig, VirtioEmulator};
use crate::hal::{CONFIG_LEN, Device, Mapper, NarrowRegisters, PciFunction, Registers};
use crate::spec::virtio::block::{RequestHeader, request};
use crate::spec::virtio::pci::common_cfg;
use crate::spec::virtio::status;

impl RequestInterposer for Mind {
    fn before(&self, _: u16, header: &RequestHeader) -> Fate {
        if header.kind == request::GET_ID { Fate::Run } else { self.verdict() }
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
        let mind = Arc::new(Mind::new(lateness));
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
        self.mind.be_late(true);
    }

    /// It is late no more; what it holds it still holds.
    pub fn stop(&self) {
        self.mind.be_late(false);
    }

    /// Lets it run one of the requests that it holds, whichever, on this thread. Says whether there was one.
    pub fn stir(&self) -> bool {
        self.mind.stir(|pick| self.emulator.release_one(pick))
    }

    /// Late runs so far.
    pub fn runs(&self) -> u64 {
        self.mind.runs()
    }

    /// How often it was told to reset itself.
    pub fn stops(&self) -> u32 {
        self.mind.stops()
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
            match self.mind.look() {
                Look::Nothing => {}
                Look::Works => _ = self.mind.stir(|pick| self.emulator.release_one(pick)),
                Look::Stops => self.under.write8(at, status::RESET),
            }
        }
        self.under.read8(at)
    }

    fn read16(&self, at: usize) -> u16 {
        self.under.read16(at)
    }

    fn write8(&self, at: usize, value: u8) {
        let runs = || self.under.read8(at) & status::DRIVER_OK != 0;
        if self.is_status(at) && value == status::RESET && self.mind.lingers(runs) {
            return;
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
        self.mind.work_on(|pick| self.emulator.release_one(pick));
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
