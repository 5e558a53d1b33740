//! The device behind the registers: its way from reset to running and back (virtio 1.2, sections 2.1, 2.4, 3.1), its
//! configuration, its interrupts.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::super::controller::Worker;
use super::super::iommu::Iommu;
use super::super::media::Media;
use super::super::queue::spin;
use super::interpose::RequestInterposer;
use super::queue::QueueSlot;
use crate::spec::virtio::block::{config, feature as blk};
use crate::spec::virtio::pci::NO_VECTOR;
use crate::spec::virtio::{feature, status};

/// Requests that a queue runs before the device's thread turns to the next one.
const TURN: usize = 32;

/// What does not change while the device exists.
pub(super) struct Shape {
    pub(super) media: Arc<dyn Media>,
    pub(super) interposer: Option<Arc<dyn RequestInterposer>>,
    pub(super) serial: String,
    pub(super) block_size: u32,
    pub(super) queues: u16,
    pub(super) entries: u16,
    pub(super) size_max: u32,
    pub(super) seg_max: u32,
    pub(super) offered: u64,
}

/// The device.
pub(super) struct Function {
    pub(super) shape: Shape,
    pub(super) iommu: Arc<Iommu>,
    pub(super) queues: Box<[QueueSlot]>,
    pub(super) worker: Worker,
    pub(super) device_select: AtomicU32,
    pub(super) driver_select: AtomicU32,
    pub(super) queue_select: AtomicU16,
    pub(super) config_vector: AtomicU16,
    pub(super) accepted: AtomicU64,
    pub(super) status: AtomicU8,
    pub(super) generation: AtomicU8,
    /// Capacity, in sectors.
    pub(super) sectors: AtomicU64,
    writeback: AtomicBool,
    powered: AtomicBool,
    running: AtomicBool,
    /// Held while the device starts or stops.
    lifecycle: Mutex<()>,
    vectors: RwLock<Vec<OwnedFd>>,
}

impl Function {
    pub(super) fn new(shape: Shape, sectors: u64) -> std::io::Result<Self> {
        let queues = usize::from(shape.queues);
        let write_cache = shape.media.write_cache();
        Ok(Self {
            iommu: Arc::new(Iommu::new(queues)?),
            queues: (0..queues).map(|_| QueueSlot::new(shape.entries)).collect(),
            worker: Worker::default(),
            device_select: AtomicU32::new(0),
            driver_select: AtomicU32::new(0),
            queue_select: AtomicU16::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            accepted: AtomicU64::new(0),
            status: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            sectors: AtomicU64::new(sectors),
            writeback: AtomicBool::new(write_cache),
            powered: AtomicBool::new(true),
            running: AtomicBool::new(false),
            lifecycle: Mutex::new(()),
            vectors: RwLock::default(),
            shape,
        })
    }

    pub(super) fn is_powered(&self) -> bool {
        self.powered.load(Ordering::SeqCst)
    }

    #[inline]
    pub(super) fn is_running(&self) -> bool {
        self.running.load(Ordering::Relaxed)
    }

    /// Whether the driver accepted a feature.
    #[inline]
    pub(super) fn has(&self, bit: u64) -> bool {
        self.accepted.load(Ordering::Relaxed) & bit != 0
    }

    /// The queue that is selected, if there is such a queue.
    pub(super) fn selected(&self) -> Option<&QueueSlot> {
        self.queues.get(usize::from(self.queue_select.load(Ordering::SeqCst)))
    }

    /// Whether writes are to be durable when they complete: there is no flush, or the write cache is off (5.2.6.2).
    pub(super) fn write_through(&self) -> bool {
        !self.has(blk::FLUSH) || self.has(blk::CONFIG_WCE) && !self.writeback.load(Ordering::Relaxed)
    }

    /// DEVICE_NEEDS_RESET: nothing works until then.
    pub(super) fn fail(&self, why: &str) {
        tracing::warn!(why, "the emulated device failed");
        self.running.store(false, Ordering::SeqCst);
        self.status.fetch_or(status::DEVICE_NEEDS_RESET, Ordering::SeqCst);
    }

    /// Half of the features that the driver accepts.
    pub(super) fn accept(&self, value: u32) {
        // Once negotiated they stay (2.2).
        if self.status.load(Ordering::SeqCst) & status::FEATURES_OK != 0 {
            return;
        }
        let (shift, keep) = match self.driver_select.load(Ordering::SeqCst) {
            0 => (0, !0xffff_ffff),
            1 => (32, 0xffff_ffff),
            _ => return,
        };
        let old = self.accepted.load(Ordering::SeqCst);
        self.accepted.store(old & keep | u64::from(value) << shift, Ordering::SeqCst);
    }

    /// A queue becomes one, with the places that were written.
    pub(super) fn enable(&self, queue: u16) {
        if let Some(slot) = self.queues.get(usize::from(queue)) {
            let event_index = self.has(feature::RING_EVENT_IDX);
            if !slot.create(queue, self.shape.entries, event_index) {
                self.fail("a queue was enabled with what makes none");
            }
        }
    }

    /// The device status is written.
    pub(super) fn configure(&self, value: u8) {
        if value == status::RESET {
            return self.reset();
        }
        let _turn = spin(&self.lifecycle);
        let mut value = value | self.status.load(Ordering::SeqCst) & status::DEVICE_NEEDS_RESET;
        if value & status::FEATURES_OK != 0 {
            let accepted = self.accepted.load(Ordering::SeqCst);
            let needed = feature::VERSION_1 | feature::ACCESS_PLATFORM & self.shape.offered;
            if accepted & !self.shape.offered != 0 || accepted & needed != needed {
                value &= !status::FEATURES_OK;
            }
        }
        let starts = value & status::DRIVER_OK != 0 && value & status::FEATURES_OK != 0;
        self.status.store(value, Ordering::SeqCst);
        if starts && value & status::DEVICE_NEEDS_RESET == 0 {
            self.running.store(true, Ordering::SeqCst);
        }
    }

    /// As after power on. When this returns no request runs and none will; held ones are gone.
    pub(super) fn reset(&self) {
        let _turn = spin(&self.lifecycle);
        self.running.store(false, Ordering::SeqCst);
        self.queues.iter().for_each(|queue| queue.delete(self.shape.entries));
        for select in [&self.device_select, &self.driver_select] {
            select.store(0, Ordering::SeqCst);
        }
        self.queue_select.store(0, Ordering::SeqCst);
        self.config_vector.store(NO_VECTOR, Ordering::SeqCst);
        self.accepted.store(0, Ordering::SeqCst);
        self.writeback.store(self.shape.media.write_cache(), Ordering::SeqCst);
        self.status.store(0, Ordering::SeqCst);
    }

    /// Power fails, or returns.
    pub(super) fn power(&self, on: bool) {
        self.powered.store(on, Ordering::SeqCst);
        self.iommu.set_bus_master(false);
        self.reset();
    }

    pub(super) fn resize(&self, sectors: u64) {
        let requests: Vec<_> = self.queues.iter().map(|slot| spin(&slot.state)).collect();
        self.sectors.store(sectors, Ordering::SeqCst);
        self.generation.fetch_add(1, Ordering::SeqCst);
        drop(requests);
    }

    /// The configuration of a block device, as it reads now.
    pub(super) fn block_config(&self) -> [u8; config::BYTES] {
        let mut bytes = [0; config::BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        // Ranges have 32 bits for their sectors; whole blocks of any size.
        let most = (u32::MAX >> 3 << 3).to_le_bytes();
        put(config::CAPACITY, &self.sectors.load(Ordering::SeqCst).to_le_bytes());
        put(config::SIZE_MAX, &self.shape.size_max.to_le_bytes());
        put(config::SEG_MAX, &self.shape.seg_max.to_le_bytes());
        put(config::BLK_SIZE, &self.shape.block_size.to_le_bytes());
        put(config::MIN_IO_SIZE, &1u16.to_le_bytes());
        put(config::OPT_IO_SIZE, &(65_536 / self.shape.block_size).to_le_bytes());
        put(config::WRITEBACK, &[self.writeback.load(Ordering::SeqCst).into()]);
        put(config::NUM_QUEUES, &self.shape.queues.to_le_bytes());
        put(config::MAX_DISCARD_SECTORS, &most);
        put(config::MAX_DISCARD_SEG, &1u32.to_le_bytes());
        put(config::DISCARD_SECTOR_ALIGNMENT, &(self.shape.block_size >> 9).to_le_bytes());
        put(config::MAX_WRITE_ZEROES_SECTORS, &most);
        put(config::MAX_WRITE_ZEROES_SEG, &1u32.to_le_bytes());
        put(config::WRITE_ZEROES_MAY_UNMAP, &[1]);
        bytes
    }

    pub(super) fn write_block_config(&self, at: usize, value: u64) {
        // Only the write cache can be written, with its feature (5.2.4).
        if at == config::WRITEBACK && self.has(blk::CONFIG_WCE) {
            self.writeback.store(value & 1 == 1 && self.shape.media.write_cache(), Ordering::SeqCst);
        }
    }

    pub(super) fn route(&self, fds: Vec<OwnedFd>) {
        *self.vectors.write().unwrap_or_else(PoisonError::into_inner) = fds;
    }

    /// Raises the interrupt of a queue.
    pub(super) fn signal(&self, slot: &QueueSlot) {
        let vector = slot.vector.load(Ordering::SeqCst);
        let vectors = self.vectors.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(fd) = vectors.get(usize::from(vector)) {
            // It can only fail when the counter is full, and then the reader has enough to see.
            let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
        }
    }

    /// A queue was announced, or may go on.
    #[inline]
    pub(super) fn notified(&self, queue: u16) {
        if self.worker.thread.get().is_some() {
            // After the host's store and fence, so that one of the two sees the other.
            if self.worker.asleep.load(Ordering::SeqCst) {
                self.worker.wake();
            }
        } else {
            self.serve(queue, usize::MAX, false);
        }
    }

    /// The life of the device's thread, for media that block.
    pub(super) fn work(&self) {
        const SPINS: u32 = 2_000;
        let mut idle = 0;
        while !self.worker.stop.load(Ordering::SeqCst) {
            if self.turn(true) {
                idle = 0;
            } else if idle < SPINS {
                idle += 1;
                std::hint::spin_loop();
            } else {
                self.worker.asleep.store(true, Ordering::SeqCst);
                // Whoever notified before seeing that is seen now, and others notify from now on.
                if !self.turn(false) && !self.worker.stop.load(Ordering::SeqCst) {
                    std::thread::park();
                }
                self.worker.asleep.store(false, Ordering::SeqCst);
            }
        }
    }

    /// One round of all there is to do; `awake` if another follows at once. Says whether there was anything.
    fn turn(&self, awake: bool) -> bool {
        let mut busy = false;
        for (queue, slot) in (0u16..).zip(&self.queues) {
            if slot.exists() {
                busy |= self.serve(queue, TURN, awake);
            }
        }
        busy
    }
}
