//! Configuration space, capabilities and registers (virtio 1.2, section 4.1).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::device::Function;
use crate::hal::{CONFIG_LEN, NarrowRegisters, Registers};
use crate::spec::pci::{capability, class, config};
use crate::spec::virtio::pci::{MODERN_BLOCK, VENDOR, cap, common_cfg, structure};

/// The BAR in which all structures are, as in QEMU.
pub(super) const BAR: usize = 4;
/// Its bytes.
pub(super) const LEN: usize = 0x4000;

const COMMON: usize = 0;
const ISR: usize = 0x1000;
pub(in crate::emu) const BLOCK: usize = 0x2000;
pub(in crate::emu) const NOTIFY: usize = 0x3000;
/// Bytes between the notifications of two queues.
const MULTIPLIER: u32 = 4;

/// What QEMU's has for a subsystem.
const SUBSYSTEM: u16 = 0x1100;

/// The configuration space.
pub(super) fn config_space() -> [u8; CONFIG_LEN] {
    let mut space = [0; CONFIG_LEN];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    let at = |offset: u64| usize::try_from(offset).unwrap_or_default();
    put(at(config::VENDOR_ID), &VENDOR.to_le_bytes());
    put(at(config::DEVICE_ID), &MODERN_BLOCK.to_le_bytes());
    put(at(config::STATUS), &[0x10, 0]); // there are capabilities
    put(at(config::REVISION_AND_CLASS), &[1]);
    put(at(config::REVISION_AND_CLASS) + 1, &class::SCSI.to_le_bytes()[..3]);
    put(at(config::SUBSYSTEM_VENDOR_ID), &VENDOR.to_le_bytes());
    put(at(config::SUBSYSTEM_ID), &SUBSYSTEM.to_le_bytes());
    let structures = [
        (structure::COMMON, COMMON, common_cfg::BYTES),
        (structure::NOTIFY, NOTIFY, LEN - NOTIFY),
        (structure::ISR, ISR, 1),
        (structure::DEVICE, BLOCK, crate::spec::virtio::block::config::BYTES),
    ];
    let mut next = 0x40;
    put(at(config::CAPABILITIES), &[0x40]);
    for (index, (kind, offset, length)) in structures.into_iter().enumerate() {
        let here = next;
        let bytes = if kind == structure::NOTIFY { cap::NOTIFY_BYTES } else { cap::BYTES };
        next += bytes;
        let after = if index + 1 < structures.len() { next } else { 0 };
        put(
            here,
            &[capability::VENDOR, after.to_le_bytes()[0], bytes.to_le_bytes()[0], kind, BAR.to_le_bytes()[0]],
        );
        put(here + cap::OFFSET, &offset.to_le_bytes()[..4]);
        put(here + cap::LENGTH, &length.to_le_bytes()[..4]);
        if kind == structure::NOTIFY {
            put(here + cap::NOTIFY_MULTIPLIER, &MULTIPLIER.to_le_bytes());
        }
    }
    space
}

/// A BAR of a [`VirtioEmulator`](super::VirtioEmulator).
pub struct VirtioRegisters {
    function: Arc<Function>,
    len: usize,
}

impl VirtioRegisters {
    pub(super) fn new(function: &Arc<Function>, len: usize) -> Self {
        Self { function: Arc::clone(function), len }
    }

    /// `bytes` bytes at `at`, in the low bits.
    fn read(&self, at: usize, bytes: usize) -> u64 {
        self.check(at, bytes);
        let ones = u64::MAX >> (64 - 8 * bytes);
        if !self.function.is_powered() {
            return ones;
        }
        match at {
            COMMON..ISR => self.function.read_common(at - COMMON) & ones,
            BLOCK..NOTIFY => {
                let config = self.function.block_config();
                let from = at - BLOCK;
                let mut word = [0; 8];
                for (byte, place) in word.iter_mut().zip(from..from + bytes) {
                    *byte = config.get(place).copied().unwrap_or_default();
                }
                u64::from_le_bytes(word)
            }
            _ => 0,
        }
    }

    fn write(&self, at: usize, bytes: usize, value: u64) {
        self.check(at, bytes);
        if !self.function.is_powered() {
            return;
        }
        match at {
            COMMON..ISR => self.function.write_common(at - COMMON, value),
            BLOCK..NOTIFY => self.function.write_block_config(at - BLOCK, value),
            NOTIFY.. => {
                let queue = (at - NOTIFY) / MULTIPLIER as usize;
                if let Ok(queue) = u16::try_from(queue) {
                    self.function.notified(queue);
                }
            }
            _ => {}
        }
    }

    fn check(&self, at: usize, bytes: usize) {
        let inside = at.checked_add(bytes).is_some_and(|end| end <= self.len);
        assert!(inside && at.is_multiple_of(bytes.min(4)), "a register of {bytes} bytes at {at:#x}");
    }
}

#[expect(clippy::cast_possible_truncation, reason = "as wide as was read")]
impl Registers for VirtioRegisters {
    fn len(&self) -> usize {
        self.len
    }

    fn read32(&self, at: usize) -> u32 {
        self.read(at, 4) as u32
    }

    fn read64(&self, at: usize) -> u64 {
        u64::from(self.read32(at)) | u64::from(self.read32(at + 4)) << 32
    }

    fn write32(&self, at: usize, value: u32) {
        self.write(at, 4, value.into());
    }

    fn write64(&self, at: usize, value: u64) {
        self.write32(at, value as u32);
        self.write32(at + 4, (value >> 32) as u32);
    }
}

#[expect(clippy::cast_possible_truncation, reason = "as wide as was read")]
impl NarrowRegisters for VirtioRegisters {
    fn read8(&self, at: usize) -> u8 {
        self.read(at, 1) as u8
    }

    fn read16(&self, at: usize) -> u16 {
        self.read(at, 2) as u16
    }

    fn write8(&self, at: usize, value: u8) {
        self.write(at, 1, value.into());
    }

    fn write16(&self, at: usize, value: u16) {
        self.write(at, 2, value.into());
    }
}

impl Function {
    /// A register of the common configuration.
    fn read_common(&self, at: usize) -> u64 {
        let queue = self.selected();
        match at {
            common_cfg::DEVICE_FEATURE_SELECT => self.device_select.load(Ordering::SeqCst).into(),
            common_cfg::DEVICE_FEATURE => match self.device_select.load(Ordering::SeqCst) {
                select @ 0..2 => self.shape.offered >> (32 * select) & 0xffff_ffff,
                _ => 0,
            },
            common_cfg::DRIVER_FEATURE_SELECT => self.driver_select.load(Ordering::SeqCst).into(),
            common_cfg::DRIVER_FEATURE => match self.driver_select.load(Ordering::SeqCst) {
                select @ 0..2 => self.accepted.load(Ordering::SeqCst) >> (32 * select) & 0xffff_ffff,
                _ => 0,
            },
            common_cfg::CONFIG_MSIX_VECTOR => self.config_vector.load(Ordering::SeqCst).into(),
            common_cfg::NUM_QUEUES => self.shape.queues.into(),
            common_cfg::DEVICE_STATUS => self.status.load(Ordering::SeqCst).into(),
            common_cfg::CONFIG_GENERATION => self.generation.load(Ordering::SeqCst).into(),
            common_cfg::QUEUE_SELECT => self.queue_select.load(Ordering::SeqCst).into(),
            common_cfg::QUEUE_SIZE => queue.map_or(0, |queue| queue.size.load(Ordering::SeqCst).into()),
            common_cfg::QUEUE_MSIX_VECTOR => {
                queue.map_or(0, |queue| queue.vector.load(Ordering::SeqCst).into())
            }
            common_cfg::QUEUE_ENABLE => queue.map_or(0, |queue| queue.exists().into()),
            common_cfg::QUEUE_NOTIFY_OFF => {
                queue.map_or(0, |_| self.queue_select.load(Ordering::SeqCst).into())
            }
            common_cfg::QUEUE_DESC..common_cfg::BYTES => {
                let Some(queue) = queue else { return 0 };
                let place = queue.places[(at - common_cfg::QUEUE_DESC) / 8].load(Ordering::SeqCst);
                if at & 4 == 0 { place } else { place >> 32 }
            }
            _ => 0,
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "as wide as was written")]
    fn write_common(&self, at: usize, value: u64) {
        match at {
            common_cfg::DEVICE_FEATURE_SELECT => self.device_select.store(value as u32, Ordering::SeqCst),
            common_cfg::DRIVER_FEATURE_SELECT => self.driver_select.store(value as u32, Ordering::SeqCst),
            common_cfg::DRIVER_FEATURE => self.accept(value as u32),
            common_cfg::CONFIG_MSIX_VECTOR => self.config_vector.store(value as u16, Ordering::SeqCst),
            common_cfg::DEVICE_STATUS => self.configure(value as u8),
            common_cfg::QUEUE_SELECT => self.queue_select.store(value as u16, Ordering::SeqCst),
            _ => {
                // What an enabled queue is made of does not change.
                let Some(queue) = self.selected().filter(|queue| !queue.exists()) else { return };
                match at {
                    common_cfg::QUEUE_SIZE => queue.size.store(value as u16, Ordering::SeqCst),
                    common_cfg::QUEUE_MSIX_VECTOR => {
                        let vector = value as u16;
                        let there = u32::from(vector) < u32::from(self.shape.queues);
                        let none = crate::spec::virtio::pci::NO_VECTOR;
                        queue.vector.store(if there { vector } else { none }, Ordering::SeqCst);
                    }
                    common_cfg::QUEUE_ENABLE if value == 1 => {
                        self.enable(self.queue_select.load(Ordering::SeqCst));
                    }
                    common_cfg::QUEUE_DESC..common_cfg::BYTES => {
                        let place = &queue.places[(at - common_cfg::QUEUE_DESC) / 8];
                        let old = place.load(Ordering::SeqCst);
                        let new = if at & 4 == 0 {
                            old & !0xffff_ffff | value & 0xffff_ffff
                        } else {
                            old & 0xffff_ffff | value << 32
                        };
                        place.store(new, Ordering::SeqCst);
                    }
                    _ => {}
                }
            }
        }
    }
}
