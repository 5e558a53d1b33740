//! The superblock: what the file system is, and whether it may be used (kernel documentation, filesystems/ext4, "Super
//! Block"). What is checked of its numbers is what the kernel checks when it mounts, and a little more.

use driver::disk::Disk;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::checksum::crc32c;
use super::error::damaged;
use super::features::{self, Features};
use super::{Ext4Error, MAX_GROUPS, Place};

/// Where the superblock is, in bytes, and how long.
const AT: usize = 1024;
const BYTES: usize = 1024;
const MAGIC: u16 = 0xef53;

/// Of `state`: left clean; errors were seen; orphans were being removed.
const CLEAN: u16 = 1;
const ERRORS: u16 = 2;
const ORPHANS: u16 = 4;

/// Of `default_mount_options`: only the low 16 bits of owners count (EXT4_DEFM_UID16).
const UID16: u32 = 0x10;

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    inodes_count: U32,
    blocks_count_lo: U32,
    _reserved_blocks_lo: U32,
    free_blocks_lo: U32,
    free_inodes: U32,
    first_data_block: U32,
    log_block_size: U32,
    log_cluster_size: U32,
    blocks_per_group: U32,
    clusters_per_group: U32,
    inodes_per_group: U32,
    _times: [U32; 2],
    _mount_counts: [U16; 2],
    magic: U16,
    state: U16,
    _errors_and_minor: [U16; 2],
    _check: [U32; 2],
    creator_os: U32,
    rev_level: U32,
    _reserved_ids: [U16; 2],
    first_ino: U32,
    inode_size: U16,
    _block_group_nr: U16,
    feature_compat: U32,
    feature_incompat: U32,
    feature_ro_compat: U32,
    uuid: [u8; 16],
    _names: [u8; 80],
    _algorithm: U32,
    _prealloc: [u8; 2],
    reserved_gdt_blocks: U16,
    _journal_uuid: [u8; 16],
    journal_inum: U32,
    _journal_dev: U32,
    last_orphan: U32,
    _hash_seed: [U32; 4],
    _hash_version: u8,
    _journal_backup_type: u8,
    desc_size: U16,
    default_mount_opts: U32,
    first_meta_bg: U32,
    _mkfs_time: U32,
    _journal_blocks: [U32; 17],
    blocks_count_hi: U32,
    _reserved_blocks_hi: U32,
    free_blocks_hi: U32,
    _extra_isizes: [U16; 2],
    _flags: U32,
    _raid_and_mmp: [U16; 2],
    _mmp_block: U64,
    _raid_stripe: U32,
    _log_groups_per_flex: u8,
    checksum_type: u8,
    _pad: U16,
    _kbytes_and_snapshot: [u8; 28],
    _errors: [u8; 108],
    _mount_opts: [u8; 64],
    usr_quota_inum: U32,
    grp_quota_inum: U32,
    _overhead: U32,
    backup_bgs: [U32; 2],
    _encryption: [u8; 20],
    _lost_and_found: U32,
    prj_quota_inum: U32,
    checksum_seed: U32,
    _times_hi: [u8; 8],
    _encoding: [U16; 2],
    orphan_file_inum: U32,
    _reserved: [U32; 94],
    checksum: U32,
}

const _: () = assert!(size_of::<Raw>() == BYTES);

/// What metadata is checked by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Checksums {
    /// Nothing (an old file system, or one made so).
    None,
    /// CRC-16 of group descriptors alone (`uninit_bg`).
    Groups,
    /// CRC-32C of everything (`metadata_csum`).
    Everything,
}

/// What the superblock says, checked.
#[derive(Clone, Debug)]
pub(super) struct Superblock {
    /// As it was read.
    pub(super) image: [u8; BYTES],
    pub(super) features: Features,
    pub(super) checksums: Checksums,
    /// What checksums of metadata begin with.
    pub(super) seed: u32,
    pub(super) uuid: [u8; 16],
    /// A block has `1 << block_shift` bytes: 10 to 12.
    pub(super) block_shift: u8,
    /// Blocks of the file system; they lie on the device.
    pub(super) blocks: u64,
    /// Of them and of the inodes so many were free when it was unmounted, by its own account.
    pub(super) free_blocks: u64,
    pub(super) free_inodes: u32,
    /// The block of the superblock: the first one of group 0.
    pub(super) first_data_block: u64,
    pub(super) blocks_per_group: u64,
    pub(super) groups: u32,
    pub(super) inodes: u32,
    pub(super) inodes_per_group: u32,
    pub(super) inode_size: usize,
    /// The first inode that is not the file system's own.
    pub(super) first_inode: u32,
    pub(super) descriptor_size: usize,
    pub(super) reserved_gdt_blocks: u64,
    pub(super) first_meta_group: u64,
    pub(super) backup_groups: [u32; 2],
    pub(super) journal: Option<u32>,
    /// Files of the file system's own, beside the journal.
    pub(super) hidden: Vec<u32>,
    /// Whether owners have 32 bits.
    pub(super) wide_owners: bool,
    /// Why nothing may be written, if so.
    pub(super) no_writes: Option<String>,
}

impl Superblock {
    /// Reads its bytes.
    pub(super) fn image(disk: &mut dyn Disk) -> Result<[u8; BYTES], Ext4Error> {
        let block = disk.geometry().block_size() as usize;
        let mut head = vec![0; (AT + BYTES).next_multiple_of(block)];
        let none = Ext4Error::NotExt4 { magic: 0 };
        if (head.len() / block) as u64 > disk.geometry().blocks {
            return Err(none);
        }
        disk.read(0, &mut head)?;
        head.get(AT..).and_then(|rest| rest.first_chunk()).copied().ok_or(none)
    }

    /// Reads and checks it.
    pub(super) fn read(disk: &mut dyn Disk) -> Result<Self, Ext4Error> {
        let geometry = *disk.geometry();
        let image = Self::image(disk)?;
        let bytes = &image[..];
        let raw = Raw::ref_from_bytes(bytes).map_err(|_| Ext4Error::NotExt4 { magic: 0 })?;
        if raw.magic.get() != MAGIC {
            return Err(Ext4Error::NotExt4 { magic: raw.magic.get() });
        }
        raw.check_itself(bytes)?;
        let no_writes = raw.features().check()?;
        raw.check_state()?;
        let device = geometry.blocks.saturating_mul(u64::from(geometry.block_size()));
        raw.shape(geometry.block_shift, device, no_writes).map(|superblock| Self { image, ..superblock })
    }

    /// Bytes of a block.
    pub(super) fn block_size(&self) -> usize {
        1 << self.block_shift
    }

    /// Whether inodes count their blocks in 48 bits.
    pub(super) fn has_huge_files(&self) -> bool {
        self.features.read_only & features::HUGE_FILE != 0
    }

    /// Whether the feature, of the incompatible ones, is there.
    pub(super) fn has(&self, incompatible: u32) -> bool {
        self.features.incompatible & incompatible != 0
    }

    /// The first block of a group.
    pub(super) fn group_start(&self, group: u32) -> u64 {
        self.first_data_block + u64::from(group) * self.blocks_per_group
    }

    /// Group descriptors in a block.
    pub(super) fn descriptors_per_block(&self) -> u64 {
        (self.block_size() / self.descriptor_size) as u64
    }

    /// Blocks of an inode table.
    pub(super) fn table_blocks(&self) -> u64 {
        (u64::from(self.inodes_per_group) * self.inode_size as u64).div_ceil(self.block_size() as u64)
    }

    /// Whether a group begins with a superblock or a copy of it ("Super Block", and features `sparse_super` and
    /// `sparse_super2`).
    pub(super) fn has_superblock(&self, group: u32) -> bool {
        if group == 0 {
            return true;
        }
        if self.features.compatible & features::SPARSE_SUPER2 != 0 {
            return self.backup_groups.contains(&group);
        }
        if self.features.read_only & features::SPARSE_SUPER == 0 || group == 1 {
            return true;
        }
        let power_of = |base: u32| {
            let mut rest = group;
            while rest.is_multiple_of(base) {
                rest /= base;
            }
            rest == 1
        };
        [3, 5, 7].into_iter().any(power_of)
    }
}

impl Raw {
    fn features(&self) -> Features {
        Features {
            compatible: self.feature_compat.get(),
            incompatible: self.feature_incompat.get(),
            read_only: self.feature_ro_compat.get(),
        }
    }

    fn has_checksums(&self) -> bool {
        self.feature_ro_compat.get() & features::METADATA_CSUM != 0
    }

    /// The checksum, before anything else is believed.
    fn check_itself(&self, bytes: &[u8]) -> Result<(), Ext4Error> {
        if !self.has_checksums() {
            return Ok(());
        }
        if self.checksum_type != 1 {
            return Err(Ext4Error::Unsupported {
                place: Place::Superblock,
                field: "checksum type",
                value: self.checksum_type.into(),
                wanted: "which must be 1 (crc32c)",
            });
        }
        let computed = crc32c(!0, bytes.get(..BYTES - 4).unwrap_or_default());
        let stored = self.checksum.get();
        if stored != computed {
            return Err(Ext4Error::Checksum { place: Place::Superblock, stored, computed });
        }
        Ok(())
    }

    /// Refuses what is in use elsewhere or was not left clean.
    fn check_state(&self) -> Result<(), Ext4Error> {
        let features = self.features();
        let state = self.state.get();
        let what = if features.incompatible & features::RECOVER != 0 {
            "the journal has to be replayed (needs_recovery): the file system is mounted somewhere, or was not \
             unmounted"
                .to_owned()
        } else if state & ERRORS != 0 {
            format!("the kernel found errors in the file system (state {state:#x})")
        } else if state & ORPHANS != 0 || features.read_only & features::ORPHAN_PRESENT != 0 {
            format!("files without a name are still to be removed (state {state:#x})")
        } else if state & CLEAN == 0 {
            format!("the file system is mounted somewhere, or was not unmounted (state {state:#x})")
        } else if self.last_orphan.get() != 0 {
            format!("files without a name are still to be removed (from inode {})", self.last_orphan.get())
        } else {
            return Ok(());
        };
        Err(Ext4Error::NotClean { what })
    }

    /// What the numbers mean, if they fit together.
    fn shape(
        &self,
        device_shift: u8,
        device_bytes: u64,
        no_writes: Option<String>,
    ) -> Result<Superblock, Ext4Error> {
        let (block_shift, blocks) = self.blocks(device_shift, device_bytes)?;
        let block_size = 1u32 << block_shift;
        let wrong =
            |field: &'static str, value: u64| damaged(Place::Superblock, format!("{field} is {value}"));
        let sane = |good: bool, field, value: u64| if good { Ok(()) } else { Err(wrong(field, value)) };

        let first = self.first_data_block.get();
        sane(first == u32::from(block_shift == 10), "the first data block", first.into())?;
        let per_group = self.blocks_per_group.get();
        let good = (256..=8 * block_size).contains(&per_group) && per_group.is_multiple_of(8);
        sane(good, "the number of blocks of a group", per_group.into())?;
        let clusters = self.clusters_per_group.get();
        sane(clusters == per_group, "the number of clusters of a group", clusters.into())?;
        let groups = (blocks - u64::from(first)).div_ceil(per_group.into());
        if groups > u64::from(MAX_GROUPS) {
            return Err(Ext4Error::TooMuch {
                what: "the number of block groups",
                value: groups,
                most: MAX_GROUPS.into(),
                advice: "larger groups or blocks make fewer of them",
            });
        }
        let groups = u32::try_from(groups).unwrap_or(MAX_GROUPS);

        let inode_size = self.inode_size.get();
        let good = inode_size.is_power_of_two() && (128..=block_size).contains(&inode_size.into());
        sane(good, "the size of an inode", inode_size.into())?;
        let inodes_per_group = self.inodes_per_group.get();
        let least = block_size / u32::from(inode_size);
        let good = (least..=8 * block_size).contains(&inodes_per_group);
        sane(good, "the number of inodes of a group", inodes_per_group.into())?;
        let inodes = self.inodes_count.get();
        let good = u64::from(groups) * u64::from(inodes_per_group) == u64::from(inodes);
        sane(good, "the number of inodes", inodes.into())?;
        let first_inode = self.first_ino.get();
        sane((11..=inodes).contains(&first_inode), "the first inode", first_inode.into())?;

        let features = self.features();
        let descriptor_size = if features.incompatible & features::BITS64 == 0 {
            32
        } else {
            let size = self.desc_size.get();
            let good = size.is_power_of_two() && (64..=block_size).contains(&size.into());
            sane(good, "the size of a group descriptor", size.into())?;
            size
        };
        let reserved = self.reserved_gdt_blocks.get();
        sane(
            u32::from(reserved) <= block_size / 4,
            "the number of reserved descriptor blocks",
            reserved.into(),
        )?;
        let wide = features.incompatible & features::BITS64 != 0;
        let free_high = if wide { self.free_blocks_hi.get() } else { 0 };
        let free_blocks = u64::from(free_high) << 32 | u64::from(self.free_blocks_lo.get());
        Ok(Superblock {
            image: [0; BYTES],
            features,
            checksums: self.checksums()?,
            seed: self.seed(),
            uuid: self.uuid,
            block_shift,
            blocks,
            free_blocks,
            free_inodes: self.free_inodes.get(),
            first_data_block: first.into(),
            blocks_per_group: per_group.into(),
            groups,
            inodes,
            inodes_per_group,
            inode_size: inode_size.into(),
            first_inode,
            descriptor_size: descriptor_size.into(),
            reserved_gdt_blocks: reserved.into(),
            first_meta_group: self.first_meta_bg.get().into(),
            backup_groups: self.backup_bgs.map(U32::get),
            journal: self.journal()?,
            hidden: self.hidden(),
            wide_owners: self.default_mount_opts.get() & UID16 == 0,
            no_writes,
        })
    }

    /// The size of a block and how many there are.
    fn blocks(&self, device_shift: u8, device_bytes: u64) -> Result<(u8, u64), Ext4Error> {
        let unsupported = |field, value: u32, wanted| {
            Err(Ext4Error::Unsupported { place: Place::Superblock, field, value: value.into(), wanted })
        };
        if self.rev_level.get() != 1 {
            return unsupported(
                "revision",
                self.rev_level.get(),
                "1 is served: copy its files to a new file system",
            );
        }
        if self.creator_os.get() != 0 {
            return unsupported(
                "creator",
                self.creator_os.get(),
                "0 (Linux) is served: others use fields otherwise",
            );
        }
        let log = self.log_block_size.get();
        if log > 2 {
            return unsupported("log_block_size", log, "0 to 2 are served (blocks of 1, 2 and 4 KiB)");
        }
        let block_shift = 10 + u8::try_from(log).unwrap_or(0);
        if block_shift < device_shift {
            return unsupported(
                "log_block_size",
                log,
                "but a block of the device is larger than such a block",
            );
        }
        if self.log_cluster_size.get() != log {
            return unsupported(
                "log_cluster_size",
                self.log_cluster_size.get(),
                "which must be log_block_size",
            );
        }
        let high =
            if self.feature_incompat.get() & features::BITS64 == 0 { 0 } else { self.blocks_count_hi.get() };
        let blocks = u64::from(high) << 32 | u64::from(self.blocks_count_lo.get());
        if blocks <= u64::from(self.first_data_block.get()) {
            return Err(damaged(Place::Superblock, format!("it has {blocks} blocks")));
        }
        match blocks.checked_mul(1 << block_shift) {
            Some(bytes) if bytes <= device_bytes => Ok((block_shift, blocks)),
            _ => Err(damaged(
                Place::Superblock,
                format!(
                    "it has {blocks} blocks of {} bytes, the device only {device_bytes} bytes",
                    1 << block_shift
                ),
            )),
        }
    }

    fn checksums(&self) -> Result<Checksums, Ext4Error> {
        let word = self.feature_ro_compat.get();
        let both = features::METADATA_CSUM | features::GDT_CSUM;
        if word & both == both {
            return Err(damaged(Place::Superblock, "it has both metadata_csum and uninit_bg"));
        }
        Ok(match word & both {
            0 => Checksums::None,
            features::GDT_CSUM => Checksums::Groups,
            _ => Checksums::Everything,
        })
    }

    fn seed(&self) -> u32 {
        if self.feature_incompat.get() & features::CSUM_SEED != 0 {
            return self.checksum_seed.get();
        }
        crc32c(!0, &self.uuid)
    }

    /// The inode of the journal, if there is one on this device.
    fn journal(&self) -> Result<Option<u32>, Ext4Error> {
        if self.feature_compat.get() & features::HAS_JOURNAL == 0 {
            return Ok(None);
        }
        match self.journal_inum.get() {
            0 => Err(Ext4Error::Unsupported {
                place: Place::Superblock,
                field: "journal inode",
                value: 0,
                wanted: "so its journal is on another device, which is not looked at: bring it back with tune2fs -j",
            }),
            number => Ok(Some(number)),
        }
    }

    fn hidden(&self) -> Vec<u32> {
        let features = self.features();
        let mut hidden = Vec::new();
        if features.read_only & features::QUOTA != 0 {
            hidden.extend([self.usr_quota_inum.get(), self.grp_quota_inum.get()]);
        }
        if features.read_only & features::PROJECT != 0 {
            hidden.push(self.prj_quota_inum.get());
        }
        if features.compatible & features::ORPHAN_FILE != 0 {
            hidden.push(self.orphan_file_inum.get());
        }
        hidden.retain(|inode| *inode != 0);
        hidden
    }
}
