//! Software devices behind the same registers, doorbells and DMA as real ones: the embedded device of the product, and
//! the fakes of every test.
//!
//! - [`Emulator`]: an NVMe controller, a [`hal::Device`](crate::hal::Device).
//! - [`virtio`]: a virtio block device on PCI. Both have media, memory and IOMMU in common.
//! - [`Media`]: what its blocks lie on: [`RamMedia`], [`FileMedia`], or either behind a volatile [`Cached`].
//! - [`Faults`], [`FaultyMedia`], [`Faulty`], [`Late`]: what can go wrong, put on from the outside; [`Interposer`] is the seam that
//!   the first uses.
//!
//! On media that do not block, commands run inside the doorbell write on the caller's thread: no thread, no system
//! call, no lock that anyone sleeps on. Media that block have a thread of the device's own, which spins a little and
//! then sleeps until a doorbell is written.
//!
//! Not implemented, and reported so: bit buckets, metadata and protection information, more than one namespace, namespace
//! management, firmware update, power states, reservations, controller memory buffer. A read and a write of the same
//! block at the same time, from two queues, are each done, but a read may see part of the write.

mod admin;
mod controller;
mod doorbell;
mod faulty;
pub mod fuzz;
mod identify;
mod interpose;
mod iommu;
mod late;
#[cfg(test)]
mod lies;
mod media;
mod memory;
mod nvm;
mod prp;
mod queue;
mod sgl;
#[cfg(test)]
mod tests;
pub mod virtio;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

pub use controller::Controller;
pub use faulty::{Bent, Faults, Faulty, FaultyMedia, FaultyRegisters, Lie};
pub use interpose::{Interposer, Posting, Verdict};
pub use iommu::MAPPING_LIMIT;
pub use late::{Late, LateRegisters, Lateness};
pub use media::{Cached, FileMedia, Media, MediaError, RamMedia};
pub use memory::{Pages, Segments, Span};

use crate::hal::{Device, Mapper};
use controller::{Namespace, Shape};
use iommu::IommuMapper;

/// What an [`Emulator`] is to be.
#[derive(Clone)]
pub struct EmuConfig {
    /// Where the blocks are.
    pub media: Arc<dyn Media>,
    /// Bytes of a block: 512 or 4096.
    pub block_size: u32,
    /// I/O queue pairs, 1 to 64. There is one interrupt vector more.
    pub queues: u16,
    /// Entries of a queue at most, 2 to 65536 (CAP.MQES + 1).
    pub entries: u32,
    /// The largest transfer is 4096 bytes times two to this, 1 to 8 (MDTS).
    pub transfer_shift: u8,
    /// Whether there are shadow doorbells (Doorbell Buffer Config). They spare a device with a thread of its own being
    /// woken; one that runs inside the doorbell write asks for each doorbell all the same.
    pub shadow_doorbells: bool,
    /// The serial number: at most 20 printable ASCII characters count.
    pub serial: String,
    /// Faults, for tests.
    pub interposer: Option<Arc<dyn Interposer>>,
}

impl EmuConfig {
    /// Blocks of 512 bytes, 16 queues of 1024 entries, transfers of up to 512 KiB; shadow doorbells if it has a thread.
    pub fn new(media: Arc<dyn Media>) -> Self {
        Self {
            shadow_doorbells: media.may_block(),
            media,
            block_size: 512,
            queues: 16,
            entries: 1024,
            transfer_shift: 7,
            serial: "EMU0".to_owned(),
            interposer: None,
        }
    }
}

/// A software NVMe device. Dropping it takes its power; mappings made for it stay valid and lead nowhere.
pub struct Emulator {
    controller: Arc<Controller>,
    thread: Option<JoinHandle<()>>,
}

impl Emulator {
    /// Makes the device, quiet and reset. Errors: `InvalidInput` for a configuration out of range or media that are
    /// not whole blocks; the kernel's.
    pub fn new(config: EmuConfig) -> io::Result<Self> {
        let EmuConfig {
            media,
            block_size,
            queues,
            entries,
            transfer_shift,
            shadow_doorbells,
            serial,
            interposer,
        } = config;
        let invalid = |what: String| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        let block_shift = match block_size {
            512 => 9,
            4096 => 12,
            other => return invalid(format!("blocks of {other} bytes; 512 and 4096 are possible")),
        };
        let bytes = media.bytes();
        if bytes == 0 || bytes % u64::from(block_size) != 0 {
            return invalid(format!("{bytes} bytes are not one or more blocks of {block_size}"));
        }
        if !(1..=64).contains(&queues)
            || !(2..=65_536).contains(&entries)
            || !(1..=8).contains(&transfer_shift)
        {
            return invalid(format!(
                "{queues} queues of {entries} entries, transfers of 4096 << {transfer_shift} bytes"
            ));
        }
        let may_block = media.may_block();
        let shape = Shape {
            max_transfer: 4096 << transfer_shift,
            media,
            interposer,
            serial,
            transfer_shift,
            shadow_doorbells,
            queues,
            entries,
        };
        let namespace = Namespace::new(bytes >> block_shift, block_shift);
        let controller = Arc::new(Controller::new(shape, namespace)?);
        let thread = may_block.then(|| Self::start(&controller)).transpose()?;
        Ok(Self { controller, thread })
    }

    /// A device of `bytes` bytes in memory, with blocks of `block_size` bytes.
    pub fn ram(bytes: u64, block_size: u32) -> io::Result<Self> {
        Self::new(EmuConfig { block_size, ..EmuConfig::new(Arc::new(RamMedia::new(bytes)?)) })
    }

    /// A device in an existing file, with blocks of `block_size` bytes.
    pub fn file(path: &Path, block_size: u32) -> io::Result<Self> {
        Self::new(EmuConfig { block_size, ..EmuConfig::new(Arc::new(FileMedia::open(path)?)) })
    }

    fn start(controller: &Arc<Controller>) -> io::Result<JoinHandle<()>> {
        let (ready, known) = std::sync::mpsc::channel();
        let inner = Arc::clone(controller);
        let thread = std::thread::Builder::new().name("emulated-nvme".to_owned()).spawn(move || {
            // The handle is known before the first command can be.
            if known.recv().is_ok() {
                inner.work();
            }
        })?;
        _ = controller.worker.thread.set(thread.thread().clone());
        ready.send(()).map_err(io::Error::other)?;
        Ok(thread)
    }

    /// DMA accesses that the IOMMU stopped.
    pub fn faults(&self) -> u64 {
        self.controller.iommu.faults()
    }

    /// I/O commands that were fetched from submission queues.
    pub fn commands(&self) -> u64 {
        self.controller
            .submissions
            .iter()
            .skip(1)
            .map(|slot| slot.traffic.commands.load(Ordering::Relaxed))
            .sum()
    }

    /// Commands that are held.
    pub fn held(&self) -> usize {
        let held = |slot: &queue::SubmissionSlot| {
            queue::spin(&slot.state).as_ref().map_or(0, |queue| queue.held.len())
        };
        self.controller.submissions.iter().map(held).sum()
    }

    /// Lets held commands run, on this thread, and returns how many did. None does whose controller was disabled or
    /// reset, or whose queue was deleted.
    pub fn release_held(&self) -> usize {
        (0..=self.controller.shape.queues).map(|queue| self.controller.release(queue)).sum()
    }

    /// Lets one held command run, chosen by `pick`, on this thread; otherwise as [`Emulator::release_held`].
    pub fn release_one(&self, pick: u64) -> bool {
        let pick = usize::try_from(pick >> 1).unwrap_or_default();
        let queues = usize::from(self.controller.shape.queues) + 1;
        // Any queue first, so that none waits for the others to be empty.
        let order = (0u16..=self.controller.shape.queues).cycle().skip(pick % queues).take(queues);
        order.into_iter().any(|queue| self.controller.release_one(queue, pick / queues))
    }

    /// The namespace becomes one of so many blocks of so many bytes (512 or 4096), or goes (`None`), as when somebody else
    /// manages it. With `announce` the host is told by an asynchronous event, if it asked for such.
    ///
    /// # Errors
    /// `InvalidInput` if the medium has no room for it.
    pub fn change_namespace(&self, to: Option<(u64, u32)>, announce: bool) -> io::Result<()> {
        let to = match to {
            None => None,
            Some((blocks, size @ (512 | 4096)))
                if blocks > 0
                    && blocks
                        .checked_mul(size.into())
                        .is_some_and(|end| end <= self.controller.shape.media.bytes()) =>
            {
                Some((blocks, if size == 512 { 9 } else { 12 }))
            }
            Some(_) => return Err(io::ErrorKind::InvalidInput.into()),
        };
        self.controller.change_namespace(to, announce);
        Ok(())
    }

    /// Cuts the power: registers read as all ones, no memory is touched, and the medium keeps what `seed` leaves it.
    pub fn power_cut(&self, seed: u64) {
        self.controller.power(false);
        self.controller.shape.media.power_cut(seed);
    }

    /// Gives the power back: the device is as new.
    pub fn power_on(&self) {
        self.controller.power(true);
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.controller.power(false);
        self.controller.worker.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("the emulated device's thread panicked");
            }
        }
    }
}

impl Device for Emulator {
    type Registers = Controller;

    fn registers(&self) -> Arc<Controller> {
        Arc::clone(&self.controller)
    }

    fn mapper(&self) -> Arc<dyn Mapper> {
        Arc::new(IommuMapper(Arc::clone(&self.controller.iommu)))
    }

    fn set_bus_master(&self, on: bool) -> io::Result<()> {
        self.controller.iommu.set_bus_master(on);
        Ok(())
    }

    fn reset(&self) -> io::Result<()> {
        self.controller.reset();
        Ok(())
    }

    fn vectors(&self) -> u32 {
        u32::from(self.controller.shape.queues) + 1
    }

    fn route_interrupts(&self, eventfds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let fds: Vec<OwnedFd> =
            eventfds.iter().map(BorrowedFd::try_clone_to_owned).collect::<io::Result<_>>()?;
        self.controller.route(fds);
        Ok(())
    }
}
