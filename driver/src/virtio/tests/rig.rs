//! A device whose registers, capabilities, function reset and used entries can be made to lie.

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::block::{BlockQueue, Command, Completed, DeviceStatus, Operation, ResetProgress};
use crate::dma::{DmaBuffer, PAGE};
use crate::emu::RamMedia;
use crate::emu::virtio::{Fate, RequestInterposer, Using, VirtioConfig, VirtioEmulator, VirtioRegisters};
use crate::hal::{CONFIG_LEN, Device, DmaAccess, Iova, Mapper, NarrowRegisters, PciFunction, Registers};
use crate::spec::virtio::block::{RequestHeader, request};
use crate::spec::virtio::pci::common_cfg;
use crate::virtio::{Controller, Options, Queue, VirtioError};

pub(super) type Judge = fn(u16, &RequestHeader) -> Fate;
/// What becomes of an event index.
pub(super) type Bend = fn(u16) -> u16;
pub(super) type Forge = Box<dyn Fn(&mut Using) + Send>;
pub(super) type Edit = Box<dyn Fn(&mut [u8; CONFIG_LEN]) + Send>;

/// What is rigged. Everything may change while the device runs.
#[derive(Default)]
pub(super) struct Rigging {
    /// What registers read as.
    pub(super) reads: Mutex<HashMap<usize, u64>>,
    /// Writes that get lost.
    pub(super) deaf: Mutex<Vec<usize>>,
    /// Function resets fail.
    pub(super) no_reset: AtomicBool,
    pub(super) resets: Mutex<u32>,
    pub(super) bus_master: AtomicBool,
    pub(super) fate: Mutex<Option<Judge>>,
    pub(super) using: Mutex<Option<Forge>>,
    pub(super) event: Mutex<Option<Bend>>,
    pub(super) config: Mutex<Option<Edit>>,
}

impl Rigging {
    pub(super) fn read_as(&self, offset: usize, value: u64) {
        self.reads.lock().unwrap().insert(offset, value);
    }

    pub(super) fn read_true(&self) {
        self.reads.lock().unwrap().clear();
    }

    /// Nothing answers on the bus.
    pub(super) fn vanish(&self) {
        for offset in [
            common_cfg::DEVICE_STATUS,
            common_cfg::NUM_QUEUES,
            common_cfg::DEVICE_FEATURE,
            common_cfg::CONFIG_GENERATION,
        ] {
            self.read_as(offset, u64::MAX);
        }
    }

    /// The next used entries of data are as `forge` makes them.
    pub(super) fn forge(&self, forge: impl Fn(&mut Using) + Send + 'static) {
        *self.using.lock().unwrap() = Some(Box::new(forge));
    }

    pub(super) fn behave(&self) {
        *self.using.lock().unwrap() = None;
        *self.fate.lock().unwrap() = None;
        *self.event.lock().unwrap() = None;
    }

    pub(super) fn hold(&self) {
        *self.fate.lock().unwrap() = Some(|_, header| match header.kind {
            request::GET_ID => Fate::Run,
            _ => Fate::Hold,
        });
    }
}

impl RequestInterposer for Rigging {
    fn before(&self, queue: u16, header: &RequestHeader) -> Fate {
        self.fate.lock().unwrap().map_or(Fate::Run, |fate| fate(queue, header))
    }

    fn using(&self, using: &mut Using) {
        if let Some(forge) = &*self.using.lock().unwrap() {
            forge(using);
        }
    }

    fn event(&self, _: u16, event: &mut u16) {
        if let Some(lie) = *self.event.lock().unwrap() {
            *event = lie(*event);
        }
    }
}

pub(super) struct Rigged {
    pub(super) emulator: VirtioEmulator,
    pub(super) rigging: Arc<Rigging>,
}

pub(super) struct RiggedRegisters {
    inner: Arc<VirtioRegisters>,
    rigging: Arc<Rigging>,
}

impl RiggedRegisters {
    fn rigged(&self, offset: usize) -> Option<u64> {
        self.rigging.reads.lock().unwrap().get(&offset).copied()
    }

    fn hears(&self, offset: usize) -> bool {
        !self.rigging.deaf.lock().unwrap().contains(&offset)
    }
}

#[allow(clippy::cast_possible_truncation)]
impl Registers for RiggedRegisters {
    fn len(&self) -> usize {
        self.inner.len()
    }
    fn read32(&self, offset: usize) -> u32 {
        self.rigged(offset).map_or_else(|| self.inner.read32(offset), |value| value as u32)
    }
    fn read64(&self, offset: usize) -> u64 {
        self.rigged(offset).unwrap_or_else(|| self.inner.read64(offset))
    }
    fn write32(&self, offset: usize, value: u32) {
        self.inner.write32(offset, value);
    }
    fn write64(&self, offset: usize, value: u64) {
        self.inner.write64(offset, value);
    }
}

#[allow(clippy::cast_possible_truncation)]
impl NarrowRegisters for RiggedRegisters {
    fn read8(&self, offset: usize) -> u8 {
        self.rigged(offset).map_or_else(|| self.inner.read8(offset), |value| value as u8)
    }
    fn read16(&self, offset: usize) -> u16 {
        self.rigged(offset).map_or_else(|| self.inner.read16(offset), |value| value as u16)
    }
    fn write8(&self, offset: usize, value: u8) {
        if self.hears(offset) {
            self.inner.write8(offset, value);
        }
    }
    fn write16(&self, offset: usize, value: u16) {
        if self.hears(offset) {
            self.inner.write16(offset, value);
        }
    }
}

impl Rigged {
    fn over(&self, inner: Arc<VirtioRegisters>) -> Arc<RiggedRegisters> {
        Arc::new(RiggedRegisters { inner, rigging: Arc::clone(&self.rigging) })
    }
}

impl Device for Rigged {
    type Registers = RiggedRegisters;

    fn registers(&self) -> Arc<RiggedRegisters> {
        self.over(self.emulator.registers())
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
            return Err(io::ErrorKind::Unsupported.into());
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

impl PciFunction for Rigged {
    fn config_space(&self) -> io::Result<[u8; CONFIG_LEN]> {
        let mut space = self.emulator.config_space()?;
        if let Some(edit) = &*self.rigging.config.lock().unwrap() {
            edit(&mut space);
        }
        Ok(space)
    }
    fn bar(&self, index: usize) -> io::Result<Arc<RiggedRegisters>> {
        Ok(self.over(self.emulator.bar(index)?))
    }
}

pub(super) const BYTES: u64 = 8 << 20;

pub(super) fn config(block: u32) -> VirtioConfig {
    let media = Arc::new(RamMedia::new(BYTES).unwrap());
    VirtioConfig { block_size: block, queues: 4, ..VirtioConfig::new(media) }
}

/// A device of 8 MiB in memory with blocks of `block` bytes, and 4 queues.
pub(super) fn rigged(block: u32) -> (Rigged, Arc<Rigging>) {
    rigged_as(config(block))
}

/// One as `config` says, but for what is rigged.
pub(super) fn rigged_as(config: VirtioConfig) -> (Rigged, Arc<Rigging>) {
    let rigging = Arc::new(Rigging::default());
    let interposer: Arc<dyn RequestInterposer> = rigging.clone();
    let emulator = VirtioEmulator::new(VirtioConfig { interposer: Some(interposer), ..config }).unwrap();
    (Rigged { emulator, rigging: Arc::clone(&rigging) }, rigging)
}

pub(super) fn options(queues: u16) -> Options {
    Options { entries: 16, patience: Duration::from_millis(300), ..Options::new(queues) }
}

pub(super) type Opened = (Controller<Rigged>, Queue<RiggedRegisters>, Arc<Rigging>);

/// Opens a rigged device with one queue and takes that.
pub(super) fn opened(block: u32) -> Opened {
    opened_as(config(block))
}

pub(super) fn opened_as(config: VirtioConfig) -> Opened {
    let (device, rigging) = rigged_as(config);
    let mut controller = Controller::open_with(device, &options(1)).unwrap();
    let queue = controller.take_queue().unwrap();
    (controller, queue, rigging)
}

pub(super) fn refusal(device: Rigged) -> VirtioError {
    match Controller::open_with(device, &options(1)) {
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
pub(super) fn ended<R: NarrowRegisters>(queue: &mut Queue<R>) -> Vec<(u64, DeviceStatus)> {
    let mut all = Vec::new();
    let count = queue.poll(usize::MAX, &mut |Completed { tag, status }| {
        all.push((tag, status));
    });
    assert_eq!(count, all.len());
    all
}

/// Runs one command on a device that is done before the notification returns.
pub(super) fn run<R: NarrowRegisters>(queue: &mut Queue<R>, command: Command) -> DeviceStatus {
    queue.submit(&command).unwrap();
    queue.commit();
    let mut all = ended(queue);
    if all.is_empty() {
        all = ended(queue); // a flush came after it
    }
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].0, command.tag);
    all[0].1
}

/// Goes on with a reset, without polling any queue, until it no longer is as `while_`.
pub(super) fn finish(controller: &mut Controller<Rigged>, while_: ResetProgress) -> ResetProgress {
    let since = std::time::Instant::now();
    loop {
        let progress = controller.finish_reset();
        if progress != while_ || since.elapsed() > Duration::from_secs(20) {
            return progress;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Resets, and returns what ended meanwhile.
pub(super) fn reset(
    controller: &mut Controller<Rigged>,
    queue: &mut Queue<RiggedRegisters>,
) -> Vec<(u64, DeviceStatus)> {
    controller.begin_reset();
    let mut all = Vec::new();
    while controller.finish_reset() == ResetProgress::Pending {
        all.extend(ended(queue));
    }
    all.extend(ended(queue));
    all
}
