//! A device whose registers, function reset, completions and data can be made to lie.

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::block::{BlockQueue, Command, Completed, DeviceStatus, Operation};
use crate::dma::{DmaBuffer, PAGE};
use crate::emu::{self, EmuConfig, Emulator, Interposer, Posting, RamMedia, Verdict};
use crate::hal::{Device, DmaAccess, Iova, Mapper, Registers};
use crate::nvme::{Controller, NvmeError, Options, Queue};
use crate::spec::nvme::{Cap, Csts, Sqe, offset};

pub(super) type Judge = fn(u16, &Sqe) -> Verdict;
pub(super) type Forge = fn(&Sqe, &mut [u8]);

/// What is rigged. Everything may change while the device runs.
#[derive(Default)]
pub(super) struct Rigging {
    /// What registers read as.
    pub(super) reads: Mutex<HashMap<usize, u64>>,
    /// All writes, offset and value.
    pub(super) writes: Mutex<Vec<(usize, u64)>>,
    /// Writes that get lost.
    pub(super) deaf: Mutex<Vec<usize>>,
    /// Function resets fail.
    pub(super) no_reset: AtomicBool,
    pub(super) resets: Mutex<u32>,
    pub(super) bus_master: AtomicBool,
    pub(super) verdict: Mutex<Option<Judge>>,
    pub(super) posting: Mutex<Option<fn(&mut Posting)>>,
    pub(super) data: Mutex<Option<Forge>>,
}

impl Rigging {
    pub(super) fn read_as(&self, offset: usize, value: u64) {
        self.reads.lock().unwrap().insert(offset, value);
    }

    /// Nothing answers on the bus.
    pub(super) fn vanish(&self) {
        for offset in [offset::CAP, offset::VS, offset::CSTS, offset::CC] {
            self.read_as(offset, u64::MAX);
        }
    }

    pub(super) fn read_true(&self) {
        self.reads.lock().unwrap().clear();
    }

    /// The values written to `offset` since the last call that was asked for any.
    pub(super) fn written(&self, offset: usize) -> Vec<u64> {
        let writes = std::mem::take(&mut *self.writes.lock().unwrap());
        writes.into_iter().filter(|(at, _)| *at == offset).map(|(_, value)| value).collect()
    }
}

impl Interposer for Rigging {
    fn before(&self, queue: u16, command: &Sqe) -> Verdict {
        self.verdict.lock().unwrap().map_or(Verdict::Run, |verdict| verdict(queue, command))
    }

    fn completion(&self, posting: &mut Posting) {
        if let Some(change) = *self.posting.lock().unwrap() {
            change(posting);
        }
    }

    fn data(&self, command: &Sqe, data: &mut [u8]) {
        if let Some(change) = *self.data.lock().unwrap() {
            change(command, data);
        }
    }
}

pub(super) struct Rigged {
    pub(super) emulator: Emulator,
    pub(super) rigging: Arc<Rigging>,
}

pub(super) struct RiggedRegisters {
    inner: Arc<emu::Controller>,
    rigging: Arc<Rigging>,
}

#[allow(clippy::cast_possible_truncation)]
impl Registers for RiggedRegisters {
    fn len(&self) -> usize {
        self.inner.len()
    }
    fn read32(&self, offset: usize) -> u32 {
        let rigged = self.rigging.reads.lock().unwrap().get(&offset).copied();
        rigged.map_or_else(|| self.inner.read32(offset), |value| value as u32)
    }
    fn read64(&self, offset: usize) -> u64 {
        let rigged = self.rigging.reads.lock().unwrap().get(&offset).copied();
        rigged.unwrap_or_else(|| self.inner.read64(offset))
    }
    fn write32(&self, offset: usize, value: u32) {
        self.rigging.writes.lock().unwrap().push((offset, u64::from(value)));
        if !self.rigging.deaf.lock().unwrap().contains(&offset) {
            self.inner.write32(offset, value);
        }
    }
    fn write64(&self, offset: usize, value: u64) {
        self.rigging.writes.lock().unwrap().push((offset, value));
        self.inner.write64(offset, value);
    }
    fn arm_interrupt(&self, vector: u32, armed: bool) {
        self.inner.arm_interrupt(vector, armed);
    }
}

impl Device for Rigged {
    type Registers = RiggedRegisters;

    fn registers(&self) -> Arc<RiggedRegisters> {
        let (inner, rigging) = (self.emulator.registers(), Arc::clone(&self.rigging));
        Arc::new(RiggedRegisters { inner, rigging })
    }
    fn mapper(&self) -> Arc<dyn Mapper> {
        self.emulator.mapper()
    }
    fn set_bus_master(&self, on: bool) -> io::Result<()> {
        self.rigging.bus_master.store(on, Ordering::Relaxed);
        self.emulator.set_bus_master(on)
    }
    fn reset(&self) -> io::Result<()> {
        *self.rigging.resets.lock().unwrap() += 1;
        if self.rigging.no_reset.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        self.emulator.reset()
    }
    fn vectors(&self) -> u32 {
        self.emulator.vectors()
    }
    fn route_interrupts(&self, eventfds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.emulator.route_interrupts(eventfds)
    }
}

pub(super) const BYTES: u64 = 8 << 20;

/// A device of 8 MiB in memory with blocks of `block` bytes, and 4 queues. CAP.TO is its least, 500 ms.
pub(super) fn rigged(block: u32) -> (Rigged, Arc<Rigging>) {
    rigged_with(block, 1024)
}

/// The same, with queues of at most `entries` entries.
pub(super) fn rigged_with(block: u32, entries: u32) -> (Rigged, Arc<Rigging>) {
    let media = Arc::new(RamMedia::new(BYTES).unwrap());
    rigged_as(EmuConfig { block_size: block, entries, ..EmuConfig::new(media) })
}

/// The same, as `config` says but for what is rigged.
pub(super) fn rigged_as(config: EmuConfig) -> (Rigged, Arc<Rigging>) {
    let rigging = Arc::new(Rigging::default());
    let interposer: Arc<dyn Interposer> = rigging.clone();
    let emulator = Emulator::new(EmuConfig { queues: 4, interposer: Some(interposer), ..config }).unwrap();
    let mut cap = Cap(emulator.registers().read64(offset::CAP));
    cap.set_to(0);
    rigging.read_as(offset::CAP, cap.0);
    (Rigged { emulator, rigging: Arc::clone(&rigging) }, rigging)
}

pub(super) fn options(queues: u16) -> Options {
    Options { entries: 16, admin_timeout: Duration::from_millis(300), ..Options::new(queues) }
}

/// Opens a rigged device with one queue and takes that.
pub(super) fn opened(block: u32) -> (Controller<Rigged>, Queue<RiggedRegisters>, Arc<Rigging>) {
    let (device, rigging) = rigged(block);
    let mut controller = Controller::open_with(device, &options(1)).unwrap();
    let queue = controller.take_queue().unwrap();
    (controller, queue, rigging)
}

pub(super) fn refusal(device: Rigged, options: &Options) -> NvmeError {
    match Controller::open_with(device, options) {
        Ok(_) => panic!("it opened"),
        Err(error) => error,
    }
}

pub(super) fn memory(controller: &Controller<Rigged>, bytes: usize) -> DmaBuffer {
    DmaBuffer::new(controller.mapper().as_ref(), bytes + PAGE, DmaAccess::ReadWrite).unwrap()
}

pub(super) fn command(operation: Operation, lba: u64, blocks: u32, data: Iova) -> Command {
    Command { operation, lba, blocks, data, tag: lba << 20 | u64::from(blocks) }
}

/// Polls once and returns what ended.
pub(super) fn ended<R: Registers>(queue: &mut Queue<R>) -> Vec<(u64, DeviceStatus)> {
    let mut all = Vec::new();
    let count = queue.poll(usize::MAX, &mut |Completed { tag, status }| {
        all.push((tag, status));
    });
    assert_eq!(count, all.len());
    all
}

/// Runs one command on a device that is done before the doorbell write returns.
pub(super) fn run<R: Registers>(queue: &mut Queue<R>, command: Command) -> DeviceStatus {
    queue.submit(&command).unwrap();
    queue.commit();
    let all = ended(queue);
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].0, command.tag);
    all[0].1
}

/// Waits until CSTS says so, for tests that look under the driver.
pub(super) fn status(controller: &Controller<Rigged>) -> Csts {
    Csts(controller.device().emulator.registers().read32(offset::CSTS))
}
