//! A software virtio block device on PCI, behind the same capabilities, registers, queues and DMA as a real one.
//!
//! - [`VirtioEmulator`]: the device, a [`hal::PciFunction`](crate::hal::PciFunction).
//! - [`RequestInterposer`], [`VirtioLate`]: what can go wrong, put on from the outside.
//!
//! Media and threads are as with [`super::Emulator`]: on media that do not block requests run inside the notification,
//! others have a thread of the device's own.
//!
//! Not implemented, and not offered: packed virtqueues, secure erase, lifetime, reset of one queue.

mod device;
pub mod fuzz;
mod interpose;
mod late;
mod queue;
mod registers;
mod request;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

pub use interpose::{Fate, RequestInterposer, Using};
pub use late::{VirtioLate, VirtioLateRegisters};
pub use registers::VirtioRegisters;
pub(super) use registers::{BLOCK as VIRTIO_CONFIG, NOTIFY as VIRTIO_DOORBELLS};

use super::iommu::IommuMapper;
use super::media::{FileMedia, Media, RamMedia};
use crate::hal::{CONFIG_LEN, Device, Mapper, PciFunction};
use crate::spec::virtio::block::feature as blk;
use crate::spec::virtio::feature;
use device::{Function, Shape};
use registers::BAR;

/// What a [`VirtioEmulator`] is to be.
#[derive(Clone)]
pub struct VirtioConfig {
    /// Where the blocks are.
    pub media: Arc<dyn Media>,
    /// Bytes of a block: 512 or 4096.
    pub block_size: u32,
    /// Request queues, 1 to 64. Each has an interrupt vector.
    pub queues: u16,
    /// Entries of a queue at most: a power of two, 4 to 32768.
    pub entries: u16,
    /// Bytes of a buffer at most; any if `None`.
    pub size_max: Option<u32>,
    /// Buffers of a request at most, besides header and status.
    pub seg_max: u32,
    /// Features that are not offered although the device has them.
    pub without: u64,
    /// Its id: at most 20 printable ASCII characters count.
    pub serial: String,
    /// Faults, for tests.
    pub interposer: Option<Arc<dyn RequestInterposer>>,
}

impl VirtioConfig {
    /// Blocks of 512 bytes, 16 queues of 1024 entries, requests of up to 126 buffers, all features.
    pub fn new(media: Arc<dyn Media>) -> Self {
        Self {
            media,
            block_size: 512,
            queues: 16,
            entries: 1024,
            size_max: None,
            seg_max: 126,
            without: 0,
            serial: "EMU-VIRTIO-0".to_owned(),
            interposer: None,
        }
    }

    /// What it offers.
    fn features(&self) -> u64 {
        let always = feature::RING_INDIRECT_DESC
            | feature::RING_EVENT_IDX
            | feature::VERSION_1
            | feature::ACCESS_PLATFORM
            | feature::ORDER_PLATFORM
            | blk::SEG_MAX
            | blk::BLK_SIZE
            | blk::TOPOLOGY
            | blk::FLUSH
            | blk::CONFIG_WCE
            | blk::MQ
            | blk::DISCARD
            | blk::WRITE_ZEROES;
        let size_max = if self.size_max.is_some() { blk::SIZE_MAX } else { 0 };
        (always | size_max) & !self.without
    }
}

/// A software virtio block device. Dropping it takes its power; mappings made for it stay valid and lead nowhere.
pub struct VirtioEmulator {
    function: Arc<Function>,
    thread: Option<JoinHandle<()>>,
}

impl VirtioEmulator {
    /// Makes the device, quiet and reset. Errors: `InvalidInput` for a configuration out of range or media that are not
    /// whole blocks; the kernel's.
    pub fn new(config: VirtioConfig) -> io::Result<Self> {
        let invalid = |what: String| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        let bytes = config.media.bytes();
        if !matches!(config.block_size, 512 | 4096) {
            return invalid(format!("blocks of {} bytes; 512 and 4096 are possible", config.block_size));
        }
        if bytes == 0 || !bytes.is_multiple_of(u64::from(config.block_size)) {
            return invalid(format!("{bytes} bytes are not one or more blocks of {}", config.block_size));
        }
        let entries = config.entries;
        if !(1..=64).contains(&config.queues)
            || !entries.is_power_of_two()
            || !(4..=32_768).contains(&entries)
            || config.seg_max == 0
        {
            return invalid(format!(
                "{} queues of {entries} entries, requests of {} buffers",
                config.queues, config.seg_max
            ));
        }
        let may_block = config.media.may_block();
        let offered = config.features();
        let VirtioConfig { media, block_size, queues, size_max, seg_max, serial, interposer, .. } = config;
        let shape = Shape {
            media,
            interposer,
            serial,
            block_size,
            queues,
            entries,
            size_max: size_max.unwrap_or(u32::MAX),
            seg_max,
            offered,
        };
        let function = Arc::new(Function::new(shape, bytes >> 9)?);
        let thread = may_block.then(|| Self::start(&function)).transpose()?;
        Ok(Self { function, thread })
    }

    /// A device of `bytes` bytes in memory, with blocks of `block_size` bytes.
    pub fn ram(bytes: u64, block_size: u32) -> io::Result<Self> {
        Self::new(VirtioConfig { block_size, ..VirtioConfig::new(Arc::new(RamMedia::new(bytes)?)) })
    }

    /// A device in an existing file, with blocks of `block_size` bytes.
    pub fn file(path: &Path, block_size: u32) -> io::Result<Self> {
        Self::new(VirtioConfig { block_size, ..VirtioConfig::new(Arc::new(FileMedia::open(path)?)) })
    }

    fn start(function: &Arc<Function>) -> io::Result<JoinHandle<()>> {
        let (ready, known) = std::sync::mpsc::channel();
        let inner = Arc::clone(function);
        let thread = std::thread::Builder::new().name("emulated-virtio".to_owned()).spawn(move || {
            // The handle is known before the first request can be.
            if known.recv().is_ok() {
                inner.work();
            }
        })?;
        _ = function.worker.thread.set(thread.thread().clone());
        ready.send(()).map_err(io::Error::other)?;
        Ok(thread)
    }

    /// DMA accesses that the IOMMU stopped.
    pub fn faults(&self) -> u64 {
        self.function.iommu.faults()
    }

    /// Requests that were fetched.
    pub fn requests(&self) -> u64 {
        self.function.queues.iter().map(|queue| queue.requests.load(Ordering::Relaxed)).sum()
    }

    /// Requests that are held.
    pub fn held(&self) -> usize {
        self.function.held()
    }

    /// Lets held requests run, on this thread, and returns how many did. None does whose device was reset.
    pub fn release_held(&self) -> usize {
        (0..self.function.shape.queues).map(|queue| self.function.release(queue)).sum()
    }

    /// Lets one held request run, chosen by `pick`, on this thread. Says whether there was one.
    pub fn release_one(&self, pick: u64) -> bool {
        let pick = usize::try_from(pick >> 1).unwrap_or_default();
        let queues = usize::from(self.function.shape.queues);
        let order = (0..self.function.shape.queues).cycle().skip(pick % queues).take(queues);
        order.into_iter().any(|queue| self.function.release_one(queue, pick / queues))
    }

    /// The device becomes one of so many sectors of 512 bytes, as when somebody else resizes it; its generation says so.
    ///
    /// # Errors
    /// `InvalidInput` if the medium has no room for it.
    pub fn resize(&self, sectors: u64) -> io::Result<()> {
        if sectors > self.function.shape.media.bytes() >> 9 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.function.resize(sectors);
        Ok(())
    }

    /// The device reports an error that only a reset ends (DEVICE_NEEDS_RESET).
    pub fn break_down(&self) {
        self.function.fail("it was told to");
    }

    /// Cuts the power: registers read as all ones, no memory is touched, and the medium keeps what `seed` leaves it.
    pub fn power_cut(&self, seed: u64) {
        self.function.power(false);
        self.function.shape.media.power_cut(seed);
    }

    /// Gives the power back: the device is as new.
    pub fn power_on(&self) {
        self.function.power(true);
    }
}

impl Drop for VirtioEmulator {
    fn drop(&mut self) {
        self.function.power(false);
        self.function.worker.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("the emulated device's thread panicked");
            }
        }
    }
}

impl Device for VirtioEmulator {
    type Registers = VirtioRegisters;

    /// BAR 0, which it does not have.
    fn registers(&self) -> Arc<VirtioRegisters> {
        Arc::new(VirtioRegisters::new(&self.function, 0))
    }

    fn mapper(&self) -> Arc<dyn Mapper> {
        Arc::new(IommuMapper(Arc::clone(&self.function.iommu)))
    }

    fn set_bus_master(&self, on: bool) -> io::Result<()> {
        self.function.iommu.set_bus_master(on);
        Ok(())
    }

    fn reset(&self) -> io::Result<()> {
        self.function.iommu.set_bus_master(false);
        self.function.reset();
        Ok(())
    }

    fn vectors(&self) -> u32 {
        u32::from(self.function.shape.queues)
    }

    fn route_interrupts(&self, eventfds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let fds: Vec<OwnedFd> =
            eventfds.iter().map(BorrowedFd::try_clone_to_owned).collect::<io::Result<_>>()?;
        self.function.route(fds);
        Ok(())
    }
}

impl PciFunction for VirtioEmulator {
    fn config_space(&self) -> io::Result<[u8; CONFIG_LEN]> {
        Ok(registers::config_space())
    }

    fn bar(&self, index: usize) -> io::Result<Arc<VirtioRegisters>> {
        Ok(Arc::new(VirtioRegisters::new(&self.function, if index == BAR { registers::LEN } else { 0 })))
    }
}
