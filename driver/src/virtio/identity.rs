//! Which device it is, what it can do, and what of that is made use of.

use crate::block::Geometry;
use crate::hal::NarrowRegisters;
use crate::pci::PciId;
use crate::spec::virtio::block::{SECTOR_SHIFT, config, feature as blk};
use crate::spec::virtio::feature;

use super::VirtioError;
use super::transport::Window;

/// Bytes of the largest transfer, whatever the device takes.
const MAX_TRANSFER: u64 = 1 << 20;
/// Pieces of memory of a command at most: what an engine's lists have.
const MAX_SEGMENTS: u32 = 32;
/// Buffers of a request at most, besides its header and its status.
const MAX_BUFFERS: u32 = 128;
/// Blocks of the largest write zeroes, as on NVMe.
const MAX_ZEROES: u32 = 1 << 16;

/// What is accepted of what a device offers, each for its own sake.
const WANTED: u64 = feature::RING_INDIRECT_DESC
    | feature::RING_EVENT_IDX
    | feature::ORDER_PLATFORM
    | blk::SIZE_MAX
    | blk::SEG_MAX
    | blk::RO
    | blk::BLK_SIZE
    | blk::FLUSH
    | blk::TOPOLOGY
    | blk::CONFIG_WCE
    | blk::MQ
    | blk::DISCARD
    | blk::WRITE_ZEROES;

/// What is accepted of `offered`.
///
/// ACCESS_PLATFORM is not to be done without: a device that does not offer it uses addresses that the IOMMU does not
/// translate, and is bounded by nothing (6.1).
pub(super) fn negotiate(offered: u64) -> Result<u64, VirtioError> {
    let needed = [
        (
            "VIRTIO_F_VERSION_1",
            feature::VERSION_1,
            "it is a legacy device, and there is no driver for those here",
        ),
        (
            "VIRTIO_F_ACCESS_PLATFORM",
            feature::ACCESS_PLATFORM,
            "it would pass by the IOMMU; in QEMU give it `iommu_platform=on`",
        ),
    ];
    for (name, bit, remedy) in needed {
        if offered & bit == 0 {
            return Err(VirtioError::Feature { name, bit, remedy });
        }
    }
    let accepted = offered & (WANTED | feature::VERSION_1 | feature::ACCESS_PLATFORM);
    // Of no meaning without a flush (5.2.5.1).
    Ok(if accepted & blk::FLUSH == 0 { accepted & !blk::CONFIG_WCE } else { accepted })
}

/// Which device this is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Its PCI ids; the subsystem says whose it is.
    pub pci: PciId,
    /// What it calls itself, printable ASCII; empty if it has no name.
    pub serial: String,
    /// The features in use.
    pub features: u64,
    /// What it says about good sizes.
    pub topology: Option<Topology>,
}

/// Sizes and alignments that a device is best used with; hints (5.2.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Topology {
    /// Blocks of a physical block, as a power of two.
    pub physical_block_exp: u8,
    /// The first block that begins a physical block.
    pub alignment_offset: u8,
    /// The smallest good transfer, in blocks.
    pub min_io_blocks: u16,
    /// The best transfer, in blocks; 0 if it does not say.
    pub opt_io_blocks: u32,
}

/// The configuration, as far as features in use make it valid; the rest is 0.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct BlockConfig {
    pub(super) capacity: u64,
    size_max: u32,
    seg_max: u32,
    blk_size: u32,
    topology: Option<Topology>,
    writeback: u8,
    pub(super) num_queues: u16,
    max_discard_sectors: u32,
    max_discard_seg: u32,
    max_zeroes_sectors: u32,
    max_zeroes_seg: u32,
    zeroes_may_unmap: u8,
}

impl BlockConfig {
    /// Reads what `features` make valid, each field with its own width; refuses a structure that has not all of them.
    pub(super) fn read<R: NarrowRegisters>(from: &Window<R>, features: u64) -> Result<Self, VirtioError> {
        let ends = [
            (blk::SIZE_MAX, config::SIZE_MAX + 4),
            (blk::SEG_MAX, config::SEG_MAX + 4),
            (blk::BLK_SIZE, config::BLK_SIZE + 4),
            (blk::TOPOLOGY, config::OPT_IO_SIZE + 4),
            (blk::CONFIG_WCE, config::WRITEBACK + 1),
            (blk::MQ, config::NUM_QUEUES + 2),
            (blk::DISCARD, config::DISCARD_SECTOR_ALIGNMENT + 4),
            (blk::WRITE_ZEROES, config::WRITE_ZEROES_MAY_UNMAP + 1),
        ];
        for (_, end) in ends.iter().filter(|(bit, _)| features & bit != 0) {
            if !from.has(0, *end) {
                let what = format!("it has not the {end:#x} bytes that the features {features:#x} need");
                return Err(VirtioError::Capability { structure: "device configuration", what });
            }
        }
        let word = |bit, at| if features & bit != 0 { from.read32(at) } else { 0 };
        let byte = |bit, at| if features & bit != 0 { from.read8(at) } else { 0 };
        Ok(Self {
            capacity: from.read64(config::CAPACITY),
            size_max: word(blk::SIZE_MAX, config::SIZE_MAX),
            seg_max: word(blk::SEG_MAX, config::SEG_MAX),
            blk_size: word(blk::BLK_SIZE, config::BLK_SIZE),
            topology: (features & blk::TOPOLOGY != 0).then(|| Topology {
                physical_block_exp: from.read8(config::PHYSICAL_BLOCK_EXP),
                alignment_offset: from.read8(config::ALIGNMENT_OFFSET),
                min_io_blocks: from.read16(config::MIN_IO_SIZE),
                opt_io_blocks: from.read32(config::OPT_IO_SIZE),
            }),
            writeback: byte(blk::CONFIG_WCE, config::WRITEBACK),
            num_queues: if features & blk::MQ != 0 { from.read16(config::NUM_QUEUES) } else { 1 },
            max_discard_sectors: word(blk::DISCARD, config::MAX_DISCARD_SECTORS),
            max_discard_seg: word(blk::DISCARD, config::MAX_DISCARD_SEG),
            max_zeroes_sectors: word(blk::WRITE_ZEROES, config::MAX_WRITE_ZEROES_SECTORS),
            max_zeroes_seg: word(blk::WRITE_ZEROES, config::MAX_WRITE_ZEROES_SEG),
            zeroes_may_unmap: byte(blk::WRITE_ZEROES, config::WRITE_ZEROES_MAY_UNMAP),
        })
    }

    pub(super) fn topology(&self) -> Option<Topology> {
        self.topology
    }
}

/// What a device can do, and how its requests are cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Traits {
    pub(super) geometry: Geometry,
    /// It has a flush. One that has none has nothing to be flushed (5.2.6.2).
    pub(super) flush: bool,
    /// Bytes of a buffer at most.
    pub(super) buffer_bytes: u32,
    /// Buffers of a request at most.
    pub(super) buffers: u16,
    /// Write zeroes takes the unmap flag, and a deallocate is done that way: a discard is only a hint (5.2.6.2).
    pub(super) zeroes_unmap: bool,
    pub(super) event_index: bool,
    pub(super) indirect: bool,
}

impl Traits {
    /// Of a device of which `features` are in use, with rings that have room for `room` buffers of a request. Refuses what
    /// is not plain blocks of 512 or 4096 bytes, and what makes no sense.
    pub(super) fn new(features: u64, config: &BlockConfig, room: u16) -> Result<Self, VirtioError> {
        let refuse = |what: String| Err(VirtioError::Unsupported(what));
        let has = |bit| features & bit != 0;
        if has(blk::RO) {
            return Err(VirtioError::ReadOnly);
        }
        let shift = match config.blk_size {
            512 => SECTOR_SHIFT,
            4096 => 12,
            0 if !has(blk::BLK_SIZE) => SECTOR_SHIFT,
            other => return refuse(format!("its blocks have {other} bytes; 512 and 4096 are supported")),
        };
        let per_block = shift - SECTOR_SHIFT;
        let blocks = config.capacity >> per_block;
        if blocks == 0 || blocks > (i64::MAX as u64) >> shift {
            return refuse(format!("it claims {} sectors", config.capacity));
        }
        // Without a word of it one segment is safe.
        let segments = if has(blk::SEG_MAX) { config.seg_max } else { 1 };
        let buffers = segments.min(MAX_BUFFERS).min(room.into());
        let (buffer_bytes, most) = if has(blk::SIZE_MAX) {
            (config.size_max, u64::from(config.size_max))
        } else {
            (u32::MAX, MAX_TRANSFER)
        };
        // A piece of memory that is cut into buffers of `buffer_bytes` may leave a short one at its end: with more than one
        // piece, as many buffers less are full.
        let max_segments = if has(blk::SIZE_MAX) { (buffers / 2).max(1) } else { buffers }.min(MAX_SEGMENTS);
        let full = if max_segments > 1 && has(blk::SIZE_MAX) { buffers - max_segments } else { buffers };
        let transfer = most.saturating_mul(full.into()).min(MAX_TRANSFER) >> shift;
        let max_transfer_blocks = u32::try_from(transfer).unwrap_or_default();
        if max_transfer_blocks == 0 || buffers == 0 {
            return refuse(format!(
                "{segments} segments of {buffer_bytes} bytes at most, {room} in its queues, hold no block"
            ));
        }
        let (zeroes, discard) = (
            has(blk::WRITE_ZEROES) && config.max_zeroes_seg > 0 && config.max_zeroes_sectors >> per_block > 0,
            has(blk::DISCARD) && config.max_discard_seg > 0 && config.max_discard_sectors >> per_block > 0,
        );
        let zeroes_unmap = zeroes && config.zeroes_may_unmap == 1;
        let most_zeroes = |on: bool, sectors: u32| if on { sectors >> per_block } else { u32::MAX };
        let max_zeroes_blocks = most_zeroes(zeroes, config.max_zeroes_sectors)
            .min(most_zeroes(discard && !zeroes_unmap, config.max_discard_sectors))
            .min(MAX_ZEROES);
        let geometry = Geometry {
            block_shift: shift,
            blocks,
            max_transfer_blocks,
            max_segments: max_segments.min(max_transfer_blocks),
            max_zeroes_blocks,
            write_cache: has(blk::FLUSH) && !(has(blk::CONFIG_WCE) && config.writeback == 0),
            write_zeroes: zeroes,
            deallocate: discard || zeroes_unmap,
            deallocate_zeroes: zeroes_unmap,
            compare: false,
        };
        Ok(Self {
            geometry,
            flush: has(blk::FLUSH),
            buffer_bytes,
            buffers: u16::try_from(if has(blk::SIZE_MAX) { buffers } else { max_segments }).unwrap_or(1),
            zeroes_unmap,
            event_index: has(feature::RING_EVENT_IDX),
            indirect: has(feature::RING_INDIRECT_DESC),
        })
    }

    /// Whether commands that were checked against these fit a device of `now`: all is the same, but that it may have grown.
    pub(super) fn hold_for(&self, now: &Self) -> bool {
        let blocks = self.geometry.blocks;
        let cut = Self { geometry: Geometry { blocks, ..now.geometry }, ..*now };
        blocks <= now.geometry.blocks && *self == cut
    }
}
