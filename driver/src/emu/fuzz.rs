//! The NVMe driver against a device that says whatever the bytes say.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use zerocopy::FromBytes;

use super::{Controller, EmuConfig, Emulator, Interposer, Pages, Posting, RamMedia, Verdict};
use crate::block::{BlockQueue, Command, Operation, SubmitError};
use crate::hal::{Device, DmaAccess, Iova, Mapper, Mapping, Registers};
use crate::nvme::{Controller as Driver, Options, Queue, ResetProgress};
use crate::spec::nvme::{Cqe, Sqe, Status};

/// Bytes that are looked at; a longer input is cut.
pub(super) const MOST: usize = 4096;
/// What the driver is told to do, at most.
pub(super) const STEPS: usize = 200;
/// How long it may wait for an answer: some are lost.
pub(super) const ANSWER: Duration = Duration::from_millis(4);
pub(super) const DISK: u64 = 1 << 20;
pub(super) const FILLER: u8 = 0x77;

/// The bytes, taken from the front by whoever is next. When they are used up the device is honest.
pub(super) struct Tape(Mutex<std::vec::IntoIter<u8>>);

impl Tape {
    /// Of the first of `data`.
    pub(super) fn new(data: &[u8]) -> Arc<Self> {
        let taken = Vec::from(&data[..data.len().min(MOST)]);
        Arc::new(Self(Mutex::new(taken.into_iter())))
    }

    pub(super) fn byte(&self) -> u8 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).next().unwrap_or(0)
    }

    pub(super) fn bytes<const N: usize>(&self) -> [u8; N] {
        std::array::from_fn(|_| self.byte())
    }
}

struct Liar(Arc<Tape>);

impl Interposer for Liar {
    fn before(&self, _: u16, _: &Sqe) -> Verdict {
        match self.0.byte() {
            0..=223 => Verdict::Run,
            224..=239 => Verdict::Hold,
            _ => Verdict::Fail(Status(u16::from_le_bytes(self.0.bytes()))),
        }
    }

    fn completion(&self, posting: &mut Posting) {
        match self.0.byte() {
            0..=191 => {}
            192..=207 => posting.copies = self.0.byte() % 8,
            208..=215 => posting.wrong_phase = true,
            216..=223 => posting.entry.cid = u16::from_le_bytes(self.0.bytes()),
            224..=231 => posting.entry.sqhd = u16::from_le_bytes(self.0.bytes()),
            232..=239 => posting.entry.dw0 = u32::from_le_bytes(self.0.bytes()),
            _ => {
                let bytes: [u8; 16] = self.0.bytes();
                posting.entry = Cqe::read_from_bytes(&bytes).unwrap_or_default();
            }
        }
    }

    fn data(&self, _: &Sqe, data: &mut [u8]) {
        match self.0.byte() {
            0..=127 => {}
            128..=247 => {
                for _ in 0..=self.0.byte() % 4 {
                    let at = usize::from(u16::from_le_bytes(self.0.bytes())) % data.len().max(1);
                    if let Some(byte) = data.get_mut(at) {
                        *byte = self.0.byte();
                    }
                }
            }
            _ => data.fill_with(|| self.0.byte()),
        }
    }

    fn event(&self, _: u16, event: &mut u32) {
        if self.0.byte() & 1 == 1 {
            *event = u32::from_le_bytes(self.0.bytes());
        }
    }

    fn abort_lies(&self) -> bool {
        self.0.byte() & 1 == 1
    }
}

/// Registers that sometimes read as something else.
struct LyingRegisters {
    under: Arc<Controller>,
    tape: Arc<Tape>,
}

impl Registers for LyingRegisters {
    fn len(&self) -> usize {
        self.under.len()
    }

    fn read32(&self, at: usize) -> u32 {
        let value = self.under.read32(at);
        match self.tape.byte() {
            0..=239 => value,
            240..=247 => value ^ 1 << (self.tape.byte() % 32),
            248..=251 => u32::MAX,
            _ => u32::from_le_bytes(self.tape.bytes()),
        }
    }

    fn read64(&self, at: usize) -> u64 {
        u64::from(self.read32(at)) | u64::from(self.read32(at + 4)) << 32
    }

    fn write32(&self, at: usize, value: u32) {
        if self.tape.byte() < 250 {
            self.under.write32(at, value);
        }
    }

    fn write64(&self, at: usize, value: u64) {
        self.under.write64(at, value);
    }
}

struct LyingDevice {
    under: Arc<Emulator>,
    registers: Arc<LyingRegisters>,
}

impl Device for LyingDevice {
    type Registers = LyingRegisters;

    fn registers(&self) -> Arc<LyingRegisters> {
        Arc::clone(&self.registers)
    }

    fn mapper(&self) -> Arc<dyn Mapper> {
        self.under.mapper()
    }

    fn set_bus_master(&self, on: bool) -> io::Result<()> {
        self.under.set_bus_master(on)
    }

    fn reset(&self) -> io::Result<()> {
        // The kernel is to be believed: a reset happens, or is said not to have.
        if self.registers.tape.byte() < 250 { self.under.reset() } else { Err(io::ErrorKind::Other.into()) }
    }

    fn vectors(&self) -> u32 {
        self.under.vectors()
    }

    fn route_interrupts(&self, eventfds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.under.route_interrupts(eventfds)
    }
}

/// The commands that were submitted, each of which may end once.
#[derive(Default)]
pub(super) struct Ledger(Vec<bool>);

impl Ledger {
    pub(super) fn poll(&mut self, queue: &mut impl BlockQueue) {
        let budget = queue.outstanding() + 1;
        let outstanding = queue.outstanding();
        let mut ended = 0;
        queue.poll(budget, &mut |completed| {
            ended += 1;
            let tag = usize::try_from(completed.tag).expect("a tag of ours");
            assert!(std::mem::replace(&mut self.0[tag], false), "command {tag} ended twice");
        });
        assert_eq!(queue.outstanding() + ended, outstanding);
    }

    pub(super) fn submit(&mut self, queue: &mut impl BlockQueue, tape: &Tape, data: Iova) {
        let [what, lba, blocks, offset] = tape.bytes();
        let operation = match what % 6 {
            0 | 1 => Operation::Read,
            2 => Operation::Write { fua: what & 64 != 0 },
            3 => Operation::Compare,
            4 => Operation::Flush,
            _ => Operation::Deallocate,
        };
        let command = Command {
            operation,
            lba: u64::from(lba),
            blocks: u32::from(blocks % 9),
            data: Iova(data.0 + u64::from(offset & !3)),
            tag: self.0.len() as u64,
        };
        match queue.submit(&command) {
            Ok(()) => self.0.push(true),
            Err(SubmitError::Full | SubmitError::Invalid | SubmitError::Down) => {}
        }
    }

    /// Whether each that was taken has ended.
    pub(super) fn is_settled(&self) -> bool {
        self.0.iter().all(|outstanding| !outstanding)
    }
}

/// The memory that commands are given, and memory of which no command knows.
pub(super) struct Arena {
    memory: Arc<Pages>,
    canary: Arc<Pages>,
    mappings: [Box<dyn Mapping>; 2],
}

impl Arena {
    pub(super) fn new(mapper: &dyn Mapper) -> Self {
        let memory = Pages::populated(65_536).expect("memory");
        memory.span().write(&[FILLER; 65_536]);
        let canary = Pages::populated(4096).expect("memory");
        canary.span().write(&[FILLER; 4096]);
        let map = |pages: &Arc<Pages>| mapper.map(pages.clone(), DmaAccess::ReadWrite).expect("a mapping");
        Self { mappings: [map(&memory), map(&canary)], memory, canary }
    }

    /// Where commands' data may begin.
    pub(super) fn data(&self) -> Iova {
        self.mappings[0].iova()
    }

    /// Panics if what no command was given has changed.
    pub(super) fn check(&self) {
        let mut bytes = [0; 4096];
        self.canary.span().read(&mut bytes);
        assert!(bytes.iter().all(|&byte| byte == FILLER), "memory of no command changed");
        // Nothing is given further than the largest command from the furthest offset.
        let mut bytes = [0; 32_768];
        self.memory.span().part(32_768, 32_768).expect("inside").read(&mut bytes);
        assert!(bytes.iter().all(|&byte| byte == FILLER), "memory past the commands changed");
    }
}

/// Drives a device whose registers, identify data and completions lie as `data` says, with commands that `data` names.
///
/// Panics if the driver does, if a command ends that was not submitted or ended before, or if memory that it gave to no
/// command changes. Takes no longer than a few seconds on any input, mostly milliseconds.
pub fn hostile_device(data: &[u8]) {
    let tape = Tape::new(data);
    let media = Arc::new(RamMedia::new(DISK).expect("memory"));
    let config = EmuConfig {
        queues: 2,
        entries: 16,
        // Whatever the bytes, both ways to ring are met.
        shadow_doorbells: data.len() % 2 == 1,
        interposer: Some(Arc::new(Liar(tape.clone()))),
        ..EmuConfig::new(media)
    };
    let under = Arc::new(Emulator::new(config).expect("a device"));
    let arena = Arena::new(&*under.mapper());
    let registers = Arc::new(LyingRegisters { under: under.registers(), tape: tape.clone() });
    let device = LyingDevice { under: under.clone(), registers };
    // It may claim to need two minutes.
    let options =
        Options { entries: 8, admin_timeout: ANSWER, ready_timeout: 50 * ANSWER, ..Options::new(1) };
    if let Ok(mut driver) = Driver::open_with(device, &options) {
        let mut queue = driver.take_queue().expect("one queue");
        assert!(driver.take_queue().is_none());
        drive(&mut driver, &mut queue, &under, &tape, arena.data());
    }
    arena.check();
}

fn drive(
    driver: &mut Driver<LyingDevice>,
    queue: &mut Queue<LyingRegisters>,
    under: &Emulator,
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
            13 => _ = driver.health(),
            14 => _ = under.release_held(),
            15 => {
                driver.begin_reset();
                settle(driver, queue, &mut ledger);
            }
            _ => ledger.poll(queue),
        }
        if driver.watch() != crate::nvme::Watch::Running {
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
fn settle(driver: &mut Driver<LyingDevice>, queue: &mut Queue<LyingRegisters>, ledger: &mut Ledger) {
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
        hostile_device(&[]);
        hostile_device(&[0; 64]);
        // It says that it may take two minutes to become ready, and does not.
        hostile_device(&[0x83, 0xfb, 0xac, 0, 0, 0, 0x2e, 0xfb, 0xdb, 0x3f]);
    }

    #[test]
    fn the_driver_survives_random_tapes() {
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
            hostile_device(&tape);
        }
    }
}
