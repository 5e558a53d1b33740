//! What a file system says it needs of whoever reads or writes it (kernel documentation, filesystems/ext4, "Super
//! Block", the three tables of features; the names are those of mke2fs, ext4(5)).

use super::Ext4Error;

/// A journal is on the device.
pub(super) const HAS_JOURNAL: u32 = 0x4;
/// Inode 7 holds the room for descriptors to grow.
pub(super) const RESIZE_INODE: u32 = 0x10;
/// Copies of the superblock are in two groups that it names.
pub(super) const SPARSE_SUPER2: u32 = 0x200;
/// A file lists orphans.
pub(super) const ORPHAN_FILE: u32 = 0x1000;

/// The journal has to be replayed.
pub(super) const RECOVER: u32 = 0x4;
/// Descriptors lie in the groups that they describe.
pub(super) const META_BG: u32 = 0x10;
/// Files have extents.
pub(super) const EXTENTS: u32 = 0x40;
/// Block numbers have 64 bits.
pub(super) const BITS64: u32 = 0x80;
/// The seed of checksums is in the superblock.
pub(super) const CSUM_SEED: u32 = 0x2000;
/// Directories may be larger than 4 GiB.
pub(super) const LARGE_DIR: u32 = 0x4000;

/// Copies of the superblock are in few groups.
pub(super) const SPARSE_SUPER: u32 = 0x1;
/// Inodes count their blocks in 48 bits.
pub(super) const HUGE_FILE: u32 = 0x8;
/// Descriptors have a checksum of 16 bits.
pub(super) const GDT_CSUM: u32 = 0x10;
/// Quotas are kept in files of the file system's own.
pub(super) const QUOTA: u32 = 0x100;
/// All metadata has checksums.
pub(super) const METADATA_CSUM: u32 = 0x400;
/// Quotas of projects too.
pub(super) const PROJECT: u32 = 0x2000;
/// The file of orphans has entries.
pub(super) const ORPHAN_PRESENT: u32 = 0x1_0000;

/// What is made of a feature.
enum Stance {
    /// Served.
    Known,
    /// The file system is served for reading.
    NoWrites,
    /// The file system is not served, with what to do.
    Refused(&'static str),
}

use Stance::{Known, NoWrites, Refused};

const NEVER: &str = "no kernel of Linux ever had it";

/// The kernel may ignore what it does not know of these, e2fsck must not, and neither do we: it may keep metadata where
/// we would see data.
const COMPATIBLE: [(u32, &str, Stance); 13] = [
    (0x1, "dir_prealloc", Known),
    (0x2, "imagic_inodes", Refused(NEVER)),
    (HAS_JOURNAL, "has_journal", Known),
    (0x8, "ext_attr", Known),
    (RESIZE_INODE, "resize_inode", Known),
    (0x20, "dir_index", Known),
    (0x40, "lazy_bg", Refused(NEVER)),
    (0x80, "exclude_inode", Refused(NEVER)),
    (0x100, "exclude_bitmap", Refused(NEVER)),
    (SPARSE_SUPER2, "sparse_super2", Known),
    (0x400, "fast_commit", Known),
    (0x800, "stable_inodes", Known),
    (ORPHAN_FILE, "orphan_file", Known),
];

const INCOMPATIBLE: [(u32, &str, Stance); 16] = [
    (0x1, "compression", Refused(NEVER)),
    (0x2, "filetype", Known),
    (RECOVER, "needs_recovery", Known), // looked at by itself, for its own advice
    (0x8, "journal_dev", Refused("this is the journal of another file system")),
    (META_BG, "meta_bg", Known),
    (EXTENTS, "extent", Known),
    (BITS64, "64bit", Known),
    (
        0x100,
        "mmp",
        Refused("whoever uses it has to write its mark, and this program writes none: tune2fs -O ^mmp"),
    ),
    (0x200, "flex_bg", Known),
    (0x400, "ea_inode", Known),
    (0x1000, "dirdata", Refused(NEVER)),
    (CSUM_SEED, "metadata_csum_seed", Known),
    (LARGE_DIR, "large_dir", Known),
    (0x8000, "inline_data", Known), // files that have it are refused
    (0x1_0000, "encrypt", Known),   // likewise
    (0x2_0000, "casefold", Known),  // likewise directories
];

const READ_ONLY: [(u32, &str, Stance); 17] = [
    (SPARSE_SUPER, "sparse_super", Known),
    (0x2, "large_file", Known),
    (0x4, "btree_dir", Refused(NEVER)),
    (HUGE_FILE, "huge_file", Known),
    (GDT_CSUM, "uninit_bg", Known),
    (0x20, "dir_nlink", Known),
    (0x40, "extra_isize", Known),
    (0x80, "snapshot", Refused(NEVER)),
    (QUOTA, "quota", Known),
    (0x200, "bigalloc", Refused("blocks are allocated in clusters: copy its files to one without")),
    (METADATA_CSUM, "metadata_csum", Known),
    (0x800, "replica", Refused(NEVER)),
    (0x1000, "read-only", NoWrites),
    (PROJECT, "project", Known),
    (0x4000, "shared_blocks", NoWrites),
    (0x8000, "verity", Known),                 // files that have it are refused
    (ORPHAN_PRESENT, "orphan_present", Known), // looked at by itself
];

/// The three words of features.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Features {
    pub(super) compatible: u32,
    pub(super) incompatible: u32,
    pub(super) read_only: u32,
}

impl Features {
    /// Refuses what is not served; else the names of what allows no writing, if there is any.
    pub(super) fn check(&self) -> Result<Option<String>, Ext4Error> {
        let mut refused = Vec::new();
        let mut no_writes = Vec::new();
        for (word, class, table) in [
            (self.compatible, 'C', &COMPATIBLE[..]),
            (self.incompatible, 'I', &INCOMPATIBLE[..]),
            (self.read_only, 'R', &READ_ONLY[..]),
        ] {
            for bit in (0..32).filter(|bit| word >> bit & 1 != 0) {
                match table.iter().find(|(mask, ..)| *mask == 1 << bit) {
                    Some((_, _, Known)) => {}
                    Some((_, name, NoWrites)) => no_writes.push((*name).to_owned()),
                    Some((_, name, Refused(why))) => refused.push(format!("{name} ({why})")),
                    // As mke2fs and dumpe2fs name them.
                    None if class == 'R' => no_writes.push(format!("FEATURE_R{bit}")),
                    None => refused.push(format!("FEATURE_{class}{bit} (unknown to this program)")),
                }
            }
        }
        if self.incompatible & EXTENTS == 0 {
            refused.push("no extents (an ext2 or ext3: tune2fs -O extent, and copy its files)".to_owned());
        }
        if !refused.is_empty() {
            return Err(Ext4Error::Features { names: refused.join(", ") });
        }
        Ok((!no_writes.is_empty()).then(|| format!("it has the features {}", no_writes.join(", "))))
    }
}
