//! The virtio driver against a device that says whatever the bytes say.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::super::RamMedia;
use super::super::fuzz::{ANSWER, Arena, DISK, Ledger, STEPS, Tape};
use super::{Fate, RequestInterposer, Using, VirtioConfig, VirtioEmulator, VirtioRegisters};
use crate::block::{BlockQueue, ResetProgress, Watch};
use crate::hal::{CONFIG_LEN, Device, Iova, Mapper, NarrowRegisters, PciFunction, Registers};
use crate::spec::virtio::block::RequestHeader;
use crate::spec::virtio::feature;
use crate::virtio::{Controller, Options, Queue};

struct Liar(Arc<Tape>);

impl RequestInterposer for Liar {
    fn before(&self, _: u16, _: &RequestHeader) -> Fate {
        match self.0.byte() {
            0..=223 => Fate::Run,
            224..=239 => Fate::Hold,
            _ => Fate::Fail(self.0.byte()),
        }
    }

    fn using(&self, using: &mut Using) {
        match self.0.byte() {
            0..=191 => {}
            192..=207 => using.copies = self.0.byte() % 4,
            208..=223 => using.id = u32::from_le_bytes(self.0.bytes()) >> (self.0.byte() % 32),
            224..=231 => using.len = u32::from_le_bytes(self.0.bytes()) >> (self.0.byte() % 32),
            232..=239 => using.status = (self.0.byte() & 1 == 1).then(|| self.0.byte()),
            _ => using.jump = u16::from_le_bytes(self.0.bytes()),
        }
    }

    fn event(&self, _: u16, event: &mut u16) {
        if self.0.byte() & 1 == 1 {
            *event = u16::from_le_bytes(self.0.bytes());
        }
    }
}

/// Registers that sometimes read as something else.
struct LyingRegisters {
    under: Arc<VirtioRegisters>,
    tape: Arc<Tape>,
}

impl LyingRegisters {
    /// What is read instead of `value`, of which the lowest bits count.
    fn lie(&self, value: u64) -> u64 {
        match self.tape.byte() {
            0..=243 => value,
            244..=248 => value ^ 1 << (self.tape.byte() % 32),
            249..=250 => u64::MAX,
            _ => u64::from_le_bytes(self.tape.bytes()),
        }
    }

    fn hears(&self) -> bool {
        self.tape.byte() < 252
    }
}

#[expect(clippy::cast_possible_truncation, reason = "as wide as was read")]
impl Registers for LyingRegisters {
    fn len(&self) -> usize {
        self.under.len()
    }

    fn read32(&self, at: usize) -> u32 {
        self.lie(self.under.read32(at).into()) as u32
    }

    fn read64(&self, at: usize) -> u64 {
        u64::from(self.read32(at)) | u64::from(self.read32(at + 4)) << 32
    }

    fn write32(&self, at: usize, value: u32) {
        if self.hears() {
            self.under.write32(at, value);
        }
    }

    fn write64(&self, at: usize, value: u64) {
        if self.hears() {
            self.under.write64(at, value);
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "as wide as was read")]
impl NarrowRegisters for LyingRegisters {
    fn read8(&self, at: usize) -> u8 {
        self.lie(self.under.read8(at).into()) as u8
    }

    fn read16(&self, at: usize) -> u16 {
        self.lie(self.under.read16(at).into()) as u16
    }

    fn write8(&self, at: usize, value: u8) {
        if self.hears() {
            self.under.write8(at, value);
        }
    }

    fn write16(&self, at: usize, value: u16) {
        if self.hears() {
            self.under.write16(at, value);
        }
    }
}

struct LyingDevice {
    under: Arc<VirtioEmulator>,
    tape: Arc<Tape>,
}

impl LyingDevice {
    fn over(&self, under: Arc<VirtioRegisters>) -> Arc<LyingRegisters> {
        Arc::new(LyingRegisters { under, tape: Arc::clone(&self.tape) })
    }
}

impl Device for LyingDevice {
    type Registers = LyingRegisters;

    fn registers(&self) -> Arc<LyingRegisters> {
        self.over(self.under.registers())
    }

    fn mapper(&self) -> Arc<dyn Mapper> {
        self.under.mapper()
    }

    fn set_bus_master(&self, on: bool) -> io::Result<()> {
        self.under.set_bus_master(on)
    }

    fn reset(&self) -> io::Result<()> {
        // The kernel is to be believed: a reset happens, or is said not to have.
        if self.tape.byte() < 250 { self.under.reset() } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    fn vectors(&self) -> u32 {
        self.under.vectors()
    }

    fn route_interrupts(&self, eventfds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.under.route_interrupts(eventfds)
    }
}

impl PciFunction for LyingDevice {
    fn config_space(&self) -> io::Result<[u8; CONFIG_LEN]> {
        let mut space = self.under.config_space()?;
        if self.tape.byte() >= 192 {
            for _ in 0..=self.tape.byte() % 4 {
                let [at, byte] = self.tape.bytes();
                space[usize::from(at)] = byte;
            }
        }
        Ok(space)
    }

    fn bar(&self, index: usize) -> io::Result<Arc<LyingRegisters>> {
        Ok(self.over(self.under.bar(index)?))
    }
}

/// Drives a device whose capabilities, registers, configuration and used entries lie as `data` says, with commands that
/// `data` names.
///
/// Panics if the driver does, if a command ends that was not submitted or ended before, or if memory that it gave to no
/// command changes. Takes no longer than a few seconds on any input, mostly milliseconds.
pub fn hostile_virtio(data: &[u8]) {
    let tape = Tape::new(data);
    let media = Arc::new(RamMedia::new(DISK).expect("memory"));
    // Whatever the bytes, all ways to lay out and to tell of requests are met.
    let without = [0, feature::RING_INDIRECT_DESC, feature::RING_EVENT_IDX][data.len() % 3];
    let config = VirtioConfig {
        queues: 2,
        entries: 16,
        size_max: (data.len() % 5 == 4).then_some(1000),
        without,
        interposer: Some(Arc::new(Liar(tape.clone()))),
        ..VirtioConfig::new(media)
    };
    let under = Arc::new(VirtioEmulator::new(config).expect("a device"));
    let arena = Arena::new(&*under.mapper());
    let device = LyingDevice { under: under.clone(), tape: tape.clone() };
    let options = Options { entries: 8, patience: ANSWER, ..Options::new(1) };
    if let Ok(mut driver) = Controller::open_with(device, &options) {
        let mut queue = driver.take_queue().expect("one queue");
        assert!(driver.take_queue().is_none());
        drive(&mut driver, &mut queue, &under, &tape, arena.data());
    }
    arena.check();
}

fn drive(
    driver: &mut Controller<LyingDevice>,
    queue: &mut Queue<LyingRegisters>,
    under: &VirtioEmulator,
    tape: &Tape,
    data: Iova,
) {
    let block = driver.geometry().block_size();
    let mut ledger = Ledger::default();
    for _ in 0..STEPS {
        match tape.byte() % 16 {
            // With larger blocks commands would not fit the memory.
            0..=6 if block <= 4096 => ledger.submit(queue, tape, data),
            7..=9 => queue.commit(),
            12 => queue.arm_interrupt(tape.byte() & 1 == 1),
            13 => _ = under.resize(u64::from(tape.byte()) * 8),
            14 => _ = under.release_held(),
            15 => {
                driver.begin_reset();
                settle(driver, queue, &mut ledger);
            }
            _ => ledger.poll(queue),
        }
        if driver.watch() != Watch::Running {
            driver.begin_reset();
            settle(driver, queue, &mut ledger);
        }
    }
    queue.commit();
    ledger.poll(queue);
    if driver.shutdown().is_ok() {
        // All that was outstanding ends now.
        for _ in 0..3 {
            ledger.poll(queue);
        }
        assert_eq!(queue.outstanding(), 0);
        assert!(ledger.is_settled(), "a command never ended");
    }
}

/// Takes a reset to its end, whatever that is.
fn settle(driver: &mut Controller<LyingDevice>, queue: &mut Queue<LyingRegisters>, ledger: &mut Ledger) {
    while driver.finish_reset() == ResetProgress::Pending {
        ledger.poll(queue);
        std::thread::yield_now();
    }
    ledger.poll(queue);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;

    #[test]
    fn an_honest_tape_works() {
        hostile_virtio(&[]);
        hostile_virtio(&[0; 64]);
        hostile_virtio(&[0; 65]);
        // It does not stop, and its memory is kept.
        hostile_virtio(b"\0\x0a\xf4\xf4\xf4\xf4\xf4\xf4\xf4\xf4\xff\x0a\xf9\xf9\xf9\xef\xfa\xfa\xfa&\xfa\xfa\xfa\xfa\xfa\xfa\xfa\xff\xff\xff\xff\xfa\xf9\xf9\xf9\xff\xff");
    }

    #[test]
    fn the_virtio_driver_survives_random_tapes() {
        for seed in 0..150 {
            let mut dice = Dice(seed);
            let len = dice.below(1500);
            // Mostly honest, so that some get far.
            let honesty = dice.below(100);
            let tape: Vec<u8> = (0..len)
                .map(|_| {
                    if dice.below(100) < honesty { dice.below(128) } else { dice.below(256) }.to_le_bytes()[0]
                })
                .collect();
            hostile_virtio(&tape);
        }
    }
}
