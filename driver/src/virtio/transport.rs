//! Registers, by way of the capabilities (virtio 1.2, 4.1.4). What a capability says is checked before it is used: a
//! structure lies inside its BAR, is aligned, and is as long as what is read of it.

use std::io;
use std::sync::Arc;

use crate::hal::{CONFIG_LEN, NarrowRegisters};
use crate::pci::Config;
use crate::spec::pci::capability;
use crate::spec::virtio::pci::{cap, common_cfg, structure};

use super::VirtioError;
use super::identity::BlockConfig;

/// A structure in a BAR.
pub(super) struct Window<R> {
    registers: Arc<R>,
    at: usize,
    len: usize,
}

impl<R: NarrowRegisters> Window<R> {
    /// Where `bytes` bytes at `offset` are in the BAR. One outside is a bug of the driver, which has looked before.
    fn place(&self, offset: usize, bytes: usize) -> usize {
        assert!(offset + bytes <= self.len, "{bytes} bytes at {offset:#x} of {:#x}", self.len);
        self.at + offset
    }

    /// Whether it has `bytes` bytes at `offset`.
    pub(super) fn has(&self, offset: usize, bytes: usize) -> bool {
        offset.checked_add(bytes).is_some_and(|end| end <= self.len)
    }

    pub(super) fn read8(&self, offset: usize) -> u8 {
        self.registers.read8(self.place(offset, 1))
    }

    pub(super) fn read16(&self, offset: usize) -> u16 {
        self.registers.read16(self.place(offset, 2))
    }

    pub(super) fn read32(&self, offset: usize) -> u32 {
        self.registers.read32(self.place(offset, 4))
    }

    pub(super) fn read64(&self, offset: usize) -> u64 {
        self.registers.read64(self.place(offset, 8))
    }

    fn write8(&self, offset: usize, value: u8) {
        self.registers.write8(self.place(offset, 1), value);
    }

    fn write16(&self, offset: usize, value: u16) {
        self.registers.write16(self.place(offset, 2), value);
    }

    fn write32(&self, offset: usize, value: u32) {
        self.registers.write32(self.place(offset, 4), value);
    }

    /// As two 32-bit writes (4.1.3.1), low half first.
    fn write64(&self, offset: usize, value: u64) {
        self.registers.write64(self.place(offset, 8), value);
    }
}

/// Where buffers of one queue are announced.
pub(super) struct Notifier<R> {
    registers: Arc<R>,
    at: usize,
    queue: u16,
}

impl<R: NarrowRegisters> Notifier<R> {
    /// Announces (4.1.5.2), after all earlier stores to memory.
    #[inline]
    pub(super) fn notify(&self) {
        self.registers.write16(self.at, self.queue);
    }
}

/// Reads of a configuration that changes all the time before it is given up.
const TRIES: u32 = 64;

/// The registers of a device.
pub(super) struct Transport<R> {
    common: Window<R>,
    notify: Window<R>,
    multiplier: usize,
    block: Window<R>,
}

impl<R: NarrowRegisters> Transport<R> {
    /// Finds the structures that `config`, the device's configuration space, points at.
    pub(super) fn find(
        config: &[u8; CONFIG_LEN],
        bar: impl Fn(usize) -> io::Result<Arc<R>>,
    ) -> Result<Self, VirtioError> {
        let places = Places { config, bar };
        let (common, _) = places.first("common configuration", structure::COMMON, common_cfg::BYTES, 4)?;
        let (notify, at) = places.first("notification structure", structure::NOTIFY, 2, 2)?;
        let (block, _) = places.first("device configuration", structure::DEVICE, 8, 4)?;
        let multiplier = le32(config, at + cap::NOTIFY_MULTIPLIER) as usize;
        Ok(Self { common, notify, multiplier, block })
    }

    pub(super) fn status(&self) -> u8 {
        self.common.read8(common_cfg::DEVICE_STATUS)
    }

    pub(super) fn set_status(&self, status: u8) {
        self.common.write8(common_cfg::DEVICE_STATUS, status);
    }

    /// Whether every register reads as all ones: nothing answers on the bus.
    pub(super) fn absent(&self) -> bool {
        self.status() == u8::MAX
            && self.common.read16(common_cfg::NUM_QUEUES) == u16::MAX
            && self.common.read32(common_cfg::DEVICE_FEATURE) == u32::MAX
    }

    /// What the device offers.
    pub(super) fn offered(&self) -> u64 {
        let half = |select| {
            self.common.write32(common_cfg::DEVICE_FEATURE_SELECT, select);
            u64::from(self.common.read32(common_cfg::DEVICE_FEATURE))
        };
        half(0) | half(1) << 32
    }

    /// What the driver accepts.
    pub(super) fn accept(&self, features: u64) {
        for (select, half) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.common.write32(common_cfg::DRIVER_FEATURE_SELECT, select);
            self.common.write32(common_cfg::DRIVER_FEATURE, u32::try_from(half).unwrap_or_default());
        }
    }

    pub(super) fn generation(&self) -> u8 {
        self.common.read8(common_cfg::CONFIG_GENERATION)
    }

    /// The block device's configuration, all of one generation (2.5.1), and which one that is.
    pub(super) fn configuration(&self, features: u64) -> Result<(BlockConfig, u8), VirtioError> {
        for _ in 0..TRIES {
            let before = self.generation();
            let config = BlockConfig::read(&self.block, features)?;
            if self.generation() == before {
                return Ok((config, before));
            }
        }
        let what = format!("its configuration changed during each of {TRIES} reads of it");
        Err(VirtioError::Unsupported(what))
    }

    /// The virtqueues that there may be.
    pub(super) fn num_queues(&self) -> u16 {
        self.common.read16(common_cfg::NUM_QUEUES)
    }

    /// Entries of a queue that is not enabled, at most; 0 if it is not there.
    pub(super) fn queue_size(&self, queue: u16) -> u16 {
        self.common.write16(common_cfg::QUEUE_SELECT, queue);
        self.common.read16(common_cfg::QUEUE_SIZE)
    }

    /// Enables a queue of `size` entries at these addresses: descriptor table, available ring, used ring (4.1.5.1.3).
    pub(super) fn enable(
        &self,
        queue: u16,
        size: u16,
        vector: u16,
        places: [u64; 3],
    ) -> Result<(), VirtioError> {
        let absurd = |what: String| Err(VirtioError::Unsupported(what));
        self.common.write16(common_cfg::QUEUE_SELECT, queue);
        self.common.write16(common_cfg::QUEUE_SIZE, size);
        self.common.write16(common_cfg::QUEUE_MSIX_VECTOR, vector);
        // A device without the means for a vector says so (4.1.5.1.2.2).
        let taken = self.common.read16(common_cfg::QUEUE_MSIX_VECTOR);
        if taken != vector {
            return absurd(format!("queue {queue} takes interrupt vector {taken:#x} instead of {vector:#x}"));
        }
        for (at, place) in
            [common_cfg::QUEUE_DESC, common_cfg::QUEUE_DRIVER, common_cfg::QUEUE_DEVICE].iter().zip(places)
        {
            self.common.write64(*at, place);
        }
        self.common.write16(common_cfg::QUEUE_ENABLE, 1);
        let (now, on) =
            (self.common.read16(common_cfg::QUEUE_SIZE), self.common.read16(common_cfg::QUEUE_ENABLE));
        if (now, on) != (size, 1) {
            return absurd(format!("queue {queue} has {now} entries instead of {size}, enabled {on}"));
        }
        Ok(())
    }

    /// Where a queue's buffers are announced (4.1.4.4).
    pub(super) fn notifier(&self, queue: u16) -> Result<Notifier<R>, VirtioError> {
        self.common.write16(common_cfg::QUEUE_SELECT, queue);
        let off = usize::from(self.common.read16(common_cfg::QUEUE_NOTIFY_OFF));
        let at = off.checked_mul(self.multiplier).filter(|at| at % 2 == 0 && self.notify.has(*at, 2));
        let Some(at) = at else {
            let what = format!(
                "queue {queue} is told of at {off} times {:#x}, the structure has {:#x} bytes",
                self.multiplier, self.notify.len
            );
            return Err(VirtioError::Capability { structure: "notification structure", what });
        };
        Ok(Notifier { registers: Arc::clone(&self.notify.registers), at: self.notify.place(at, 2), queue })
    }
}

/// Where the configuration space says that structures are.
struct Places<'a, B> {
    config: &'a [u8; CONFIG_LEN],
    bar: B,
}

impl<R: NarrowRegisters, B: Fn(usize) -> io::Result<Arc<R>>> Places<'_, B> {
    /// The first structure of `kind` that can be used (4.1.4.1: the device lists those that it prefers first), and where
    /// its capability is. It has `bytes` bytes at least, at a multiple of `align`.
    fn first(
        &self,
        structure: &'static str,
        kind: u8,
        bytes: usize,
        align: usize,
    ) -> Result<(Window<R>, usize), VirtioError> {
        let mut what = "no capability names it".to_owned();
        for (id, at) in Config(*self.config).capabilities() {
            let at = usize::from(at);
            if id != capability::VENDOR || self.config.get(at + cap::TYPE) != Some(&kind) {
                continue;
            }
            match self.window(at, kind, bytes, align)? {
                Ok(window) => return Ok((window, at)),
                Err(why) => what = format!("the capability at {at:#x} {why}"),
            }
        }
        Err(VirtioError::Capability { structure, what })
    }

    /// The structure that the capability at `at` names, or why it cannot be used.
    fn window(
        &self,
        at: usize,
        kind: u8,
        bytes: usize,
        align: usize,
    ) -> Result<Result<Window<R>, String>, VirtioError> {
        let size = if kind == structure::NOTIFY { cap::NOTIFY_BYTES } else { cap::BYTES };
        let stated = self.config.get(at + cap::LEN).copied().unwrap_or_default();
        if usize::from(stated) < size || at + size > CONFIG_LEN {
            return Ok(Err(format!("has {stated} bytes, not {size}")));
        }
        let index = usize::from(self.config[at + cap::BAR]);
        let (offset, length) = (le32(self.config, at + cap::OFFSET), le32(self.config, at + cap::LENGTH));
        let (offset, length) = (offset as usize, length as usize);
        // Bit 0 of a base address register: I/O space (PCI 3.0, 6.2.5.1), which no register here is in.
        if index > 5 || self.config[BAR0 + 4 * index] & 1 == 1 {
            return Ok(Err(format!("names BAR {index}, which is none in memory")));
        }
        if length < bytes || !offset.is_multiple_of(align) {
            return Ok(Err(format!(
                "names {length:#x} bytes at {offset:#x}; {bytes:#x} at a multiple of {align}"
            )));
        }
        let registers =
            (self.bar)(index).map_err(|source| VirtioError::Os { what: "mapping a BAR", source })?;
        if offset.checked_add(length).is_none_or(|end| end > registers.len()) {
            let room = registers.len();
            return Ok(Err(format!(
                "names {length:#x} bytes at {offset:#x} of BAR {index}, which has {room:#x}"
            )));
        }
        Ok(Ok(Window { registers, at: offset, len: length }))
    }
}

/// Where the base address registers are.
#[expect(clippy::cast_possible_truncation, reason = "it is 10h")]
const BAR0: usize = crate::spec::pci::config::BAR0 as usize;

/// 32 bits at `at`, which is inside.
fn le32(config: &[u8; CONFIG_LEN], at: usize) -> u32 {
    let bytes = config.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    u32::from_le_bytes(bytes.unwrap_or_default())
}
