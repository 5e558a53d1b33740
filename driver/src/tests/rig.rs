//! A device whose registers and function reset can be made to lie, and what tests of any driver do with it.

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::block::{BlockController, BlockQueue, Command, Completed, DeviceStatus, Operation, ResetProgress};
use crate::dma::{DmaBuffer, PAGE};
use crate::emu::Emulator;
use crate::emu::virtio::VirtioEmulator;
use crate::hal::{CONFIG_LEN, Device, DmaAccess, Iova, Mapper, NarrowRegisters, PciFunction, Registers};

pub(crate) type Edit = Box<dyn Fn(&mut [u8; CONFIG_LEN]) + Send>;

/// What is rigged, and `lies` of one kind of device. Everything may change while the device runs.
#[derive(Default)]
pub(crate) struct Rigging<L> {
    /// What registers read as.
    pub(crate) reads: Mutex<HashMap<usize, u64>>,
    /// All writes, offset and value.
    pub(crate) writes: Mutex<Vec<(usize, u64)>>,
    /// Writes that get lost.
    pub(crate) deaf: Mutex<Vec<usize>>,
    /// It has no function reset.
    pub(crate) no_reset: AtomicBool,
    pub(crate) resets: Mutex<u32>,
    pub(crate) bus_master: AtomicBool,
    /// What becomes of its configuration space.
    pub(crate) config: Mutex<Option<Edit>>,
    pub(crate) lies: L,
}

impl<L> Rigging<L> {
    pub(crate) fn read_as(&self, offset: usize, value: u64) {
        self.reads.lock().unwrap().insert(offset, value);
    }

    pub(crate) fn read_true(&self) {
        self.reads.lock().unwrap().clear();
    }

    /// The values written to `offset` since the last call that was asked for any.
    pub(crate) fn written(&self, offset: usize) -> Vec<u64> {
        let writes = std::mem::take(&mut *self.writes.lock().unwrap());
        writes.into_iter().filter(|(at, _)| *at == offset).map(|(_, value)| value).collect()
    }

    fn rigged(&self, offset: usize) -> Option<u64> {
        self.reads.lock().unwrap().get(&offset).copied()
    }

    /// Notes a write. Whether it arrives.
    fn hears(&self, offset: usize, value: u64) -> bool {
        self.writes.lock().unwrap().push((offset, value));
        !self.deaf.lock().unwrap().contains(&offset)
    }
}

pub(crate) struct Rigged<E, L> {
    pub(crate) emulator: E,
    pub(crate) rigging: Arc<Rigging<L>>,
}

pub(crate) struct RiggedRegisters<R, L> {
    inner: Arc<R>,
    rigging: Arc<Rigging<L>>,
}

#[allow(clippy::cast_possible_truncation)]
impl<R: Registers, L: Send + Sync + 'static> Registers for RiggedRegisters<R, L> {
    fn len(&self) -> usize {
        self.inner.len()
    }
    fn read32(&self, offset: usize) -> u32 {
        self.rigging.rigged(offset).map_or_else(|| self.inner.read32(offset), |value| value as u32)
    }
    fn read64(&self, offset: usize) -> u64 {
        self.rigging.rigged(offset).unwrap_or_else(|| self.inner.read64(offset))
    }
    fn write32(&self, offset: usize, value: u32) {
        if self.rigging.hears(offset, value.into()) {
            self.inner.write32(offset, value);
        }
    }
    fn write64(&self, offset: usize, value: u64) {
        if self.rigging.hears(offset, value) {
            self.inner.write64(offset, value);
        }
    }
    fn arm_interrupt(&self, vector: u32, armed: bool) {
        self.inner.arm_interrupt(vector, armed);
    }
}

#[allow(clippy::cast_possible_truncation)]
impl<R: NarrowRegisters, L: Send + Sync + 'static> NarrowRegisters for RiggedRegisters<R, L> {
    fn read8(&self, offset: usize) -> u8 {
        self.rigging.rigged(offset).map_or_else(|| self.inner.read8(offset), |value| value as u8)
    }
    fn read16(&self, offset: usize) -> u16 {
        self.rigging.rigged(offset).map_or_else(|| self.inner.read16(offset), |value| value as u16)
    }
    fn write8(&self, offset: usize, value: u8) {
        if self.rigging.hears(offset, value.into()) {
            self.inner.write8(offset, value);
        }
    }
    fn write16(&self, offset: usize, value: u16) {
        if self.rigging.hears(offset, value.into()) {
            self.inner.write16(offset, value);
        }
    }
}

impl<E, L> Rigged<E, L> {
    fn over<R>(&self, inner: Arc<R>) -> Arc<RiggedRegisters<R, L>> {
        Arc::new(RiggedRegisters { inner, rigging: Arc::clone(&self.rigging) })
    }
}

impl<E: Device, L: Send + Sync + 'static> Device for Rigged<E, L> {
    type Registers = RiggedRegisters<E::Registers, L>;

    fn registers(&self) -> Arc<Self::Registers> {
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

impl<E: PciFunction<Registers: NarrowRegisters>, L: Send + Sync + 'static> PciFunction for Rigged<E, L> {
    fn config_space(&self) -> io::Result<[u8; CONFIG_LEN]> {
        let mut space = self.emulator.config_space()?;
        if let Some(edit) = &*self.rigging.config.lock().unwrap() {
            edit(&mut space);
        }
        Ok(space)
    }
    fn bar(&self, index: usize) -> io::Result<Arc<Self::Registers>> {
        Ok(self.over(self.emulator.bar(index)?))
    }
}

/// What tests of any driver ask of its software device, each by the device's own method of that name.
pub(crate) trait Emulated {
    fn held(&self) -> usize;
    fn release_held(&self) -> usize;
    fn faults(&self) -> u64;
    fn power_cut(&self, seed: u64);
}

macro_rules! emulated {
    ($($emulator:ty)*) => {
        $(impl Emulated for $emulator {
            fn held(&self) -> usize {
                Self::held(self)
            }
            fn release_held(&self) -> usize {
                Self::release_held(self)
            }
            fn faults(&self) -> u64 {
                Self::faults(self)
            }
            fn power_cut(&self, seed: u64) {
                Self::power_cut(self, seed);
            }
        })*
    };
}

emulated! { Emulator VirtioEmulator }

/// A driver with its emulated device, of 8 MiB in blocks of 512 bytes, rigged.
pub(crate) trait Kind: Sized {
    type Lies: Send + Sync + 'static;
    type Emulator: Emulated;
    type Device: Device;
    type Controller: BlockController<Queue = Self::Queue>;
    type Queue: BlockQueue;

    /// The register by which it is told to stop.
    const STOP: usize;
    /// The register that says how it is.
    const STATUS: usize;

    fn device() -> (Self::Device, Arc<Rigging<Self::Lies>>);
    /// Opens one that has so many queues of 16 entries, and little patience.
    fn open(device: Self::Device, queues: u16) -> Self::Controller;

    /// From now on requests that move data wait in the device.
    fn hold(rigging: &Rigging<Self::Lies>);
    /// And from now on no more; those that wait go on waiting.
    fn behave(rigging: &Rigging<Self::Lies>);
    /// Nothing answers on the bus.
    fn vanish(rigging: &Rigging<Self::Lies>);

    /// The device below.
    fn emulator(controller: &Self::Controller) -> &Self::Emulator;
    /// It says that it has stopped.
    fn has_stopped(controller: &Self::Controller) -> bool;
}

/// A controller with one queue, and what can be rigged.
pub(crate) type Opened<K> = (<K as Kind>::Controller, <K as Kind>::Queue, Arc<Rigging<<K as Kind>::Lies>>);

/// Opens a rigged device with one queue and takes that.
pub(crate) fn opened<K: Kind>() -> Opened<K> {
    let (device, rigging) = K::device();
    let mut controller = K::open(device, 1);
    let queue = take_queue(&mut controller);
    (controller, queue, rigging)
}

pub(crate) fn take_queue<C: BlockController>(controller: &mut C) -> C::Queue {
    controller.take_queue().expect("there is one left").0
}

pub(crate) fn memory(controller: &impl BlockController, bytes: usize) -> DmaBuffer {
    DmaBuffer::new(controller.mapper().as_ref(), bytes + PAGE, DmaAccess::ReadWrite).unwrap()
}

/// A command with a tag that tells place and length.
pub(crate) fn command(operation: Operation, lba: u64, blocks: u32, data: Iova) -> Command {
    Command { operation, lba, blocks, data, tag: lba << 20 | u64::from(blocks) }
}

/// Polls once and returns what ended.
pub(crate) fn ended(queue: &mut impl BlockQueue) -> Vec<(u64, DeviceStatus)> {
    let mut all = Vec::new();
    let count = queue.poll(usize::MAX, &mut |Completed { tag, status }| {
        all.push((tag, status));
    });
    assert_eq!(count, all.len());
    all
}

/// Runs one command on a device that is done before the doorbell write returns.
pub(crate) fn run(queue: &mut impl BlockQueue, command: Command) -> DeviceStatus {
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

/// Goes on with a reset, without polling any queue that was taken, until it no longer is as `while_`.
pub(crate) fn finish(controller: &mut impl BlockController, while_: ResetProgress) -> ResetProgress {
    let since = Instant::now();
    loop {
        let progress = controller.finish_reset();
        if progress != while_ || since.elapsed() > Duration::from_secs(20) {
            return progress;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Resets, and returns what ended meanwhile.
pub(crate) fn reset(
    controller: &mut impl BlockController,
    queue: &mut impl BlockQueue,
) -> Vec<(u64, DeviceStatus)> {
    controller.begin_reset();
    let mut all = Vec::new();
    while controller.finish_reset() == ResetProgress::Pending {
        all.extend(ended(queue));
    }
    all.extend(ended(queue));
    all
}
