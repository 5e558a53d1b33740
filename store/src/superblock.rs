//! What is where on the device, and the superblock that says so.
//!
//! All numbers are little-endian. A page is 4096 bytes, whatever the device's block size. From the start of the
//! device:
//!
//! | pages                | what                                                              |
//! |----------------------|-------------------------------------------------------------------|
//! | 1                    | superblock                                                        |
//! | 2                    | root of the metadata, two copies (see `shadow`)                   |
//! | 2 × tables/512       | tables of the tables, if these are more than 56, slot 1, then 2   |
//! | 2 × pages/512        | tables of the metadata, slot 1 of all of them, then slot 2        |
//! | 2 × pages            | pages of the metadata, slot 1 of all of them, then slot 2         |
//! | to the next unit     | unused                                                            |
//! | units                | data, in allocation units                                         |
//! | less than a unit + 1 | unused, but for the last whole page: the superblock's second copy |
//!
//! The superblock is written when the device is formatted; after that only its version can change, when something is
//! first used that older programs would misunderstand.

use tpt::LbaRange;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::StoreError;

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;
const PAGE_SHIFT: u8 = 12;

/// What is laid out in this way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Volumes, on a device.
    Store,
    /// Files, in a volume.
    Files,
}

impl Kind {
    /// The first bytes of a superblock.
    const fn magic(self) -> [u8; 8] {
        match self {
            Self::Store => *b"PORTCULL",
            Self::Files => *b"PORTFILE",
        }
    }

    /// The newest format that this program knows. A store has version 2 from the first volume on that is not of blocks.
    const fn newest(self) -> u32 {
        match self {
            Self::Store => 2,
            Self::Files => 1,
        }
    }

    /// What to call it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Files => "file system",
        }
    }
}

/// The format of what is new.
pub(crate) const FIRST_VERSION: u32 = 1;
/// Of a store that has volumes of other kinds than blocks.
pub(crate) const VERSION_KINDS: u32 = 2;
/// Features that this program knows. A bit in `incompatible` that is not here: the store is not touched; in
/// `read_only`: it could be read, but is not opened for writing; in `compatible`: ignored.
const INCOMPATIBLE: u32 = 0;
const READ_ONLY: u32 = 0;

/// Where the checksum of a superblock is; it covers all before it.
const SUM_AT: usize = PAGE - 4;

/// Entries of a table page.
pub(crate) const TABLE_ENTRIES: u32 = 512;
/// Entries of the root.
pub(crate) const ROOT_ENTRIES: u32 = 56;
/// The largest and smallest metadata file, in pages.
const MOST_PAGES: u32 = (4 << 20) + 16; // 16 GiB
const LEAST_PAGES: u32 = 1024;
/// The largest of a store.
pub(crate) const STORE_PAGES: u32 = ROOT_ENTRIES * TABLE_ENTRIES;
const UNIT_SHIFTS: std::ops::RangeInclusive<u8> = 12..=30;

/// What is where. The numbers are consistent with each other and lie on the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    /// Of the device, when it was formatted.
    pub(crate) blocks: u64,
    /// A device block has `1 << block_shift` bytes: 9 or 12.
    pub(crate) block_shift: u8,
    /// An allocation unit has `1 << unit_shift` bytes.
    pub(crate) unit_shift: u8,
    /// Pages of the metadata file.
    pub(crate) pages: u32,
    /// The first device block of the data.
    pub(crate) data: u64,
    /// Allocation units of data, at least one.
    pub(crate) units: u64,
}

/// Pages of the tables of a metadata file.
struct Levels {
    tables: u32,
    uppers: u32,
}

impl Levels {
    fn new(pages: u32) -> Self {
        let tables = pages.div_ceil(TABLE_ENTRIES);
        let uppers = if tables <= ROOT_ENTRIES { 0 } else { tables.div_ceil(TABLE_ENTRIES) };
        Self { tables, uppers }
    }
}

const _: () = assert!(MOST_PAGES.div_ceil(TABLE_ENTRIES).div_ceil(TABLE_ENTRIES) <= ROOT_ENTRIES);

impl Layout {
    /// The layout for a device; the error is how many bytes it would have to have, 0 if no size would do.
    pub(crate) fn new(blocks: u64, block_shift: u8, unit_shift: u8, pages: u32) -> Result<Self, u64> {
        let bytes = blocks.checked_mul(1 << block_shift).filter(|bytes| *bytes < 1 << 63).ok_or(0u64)?;
        if !(LEAST_PAGES..=MOST_PAGES).contains(&pages) || !UNIT_SHIFTS.contains(&unit_shift) {
            return Err(0);
        }
        let levels = Levels::new(pages);
        let head =
            (3 + 2 * (u64::from(levels.uppers) + u64::from(levels.tables) + u64::from(pages))) << PAGE_SHIFT;
        let data = head.next_multiple_of(1 << unit_shift);
        let end = (bytes >> PAGE_SHIFT << PAGE_SHIFT).saturating_sub(PAGE as u64);
        let units = end.saturating_sub(data) >> unit_shift;
        if units == 0 {
            return Err(data + (1 << unit_shift) + PAGE as u64);
        }
        Ok(Self { blocks, block_shift, unit_shift, pages, data: data >> block_shift, units })
    }

    /// Pages of metadata that suit a device: 1/64 of it, from 4 MiB to 32 MiB, a power of two, for that is how the
    /// database grows, and a little.
    pub(crate) fn suitable_pages(bytes: u64) -> u32 {
        let megabytes = (bytes >> 26).clamp(4, 32);
        u32::try_from(1u64 << megabytes.ilog2()).unwrap_or(4) * 256 + 16
    }

    /// The same for a file system: 1/32 of the disk, from 4 MiB to 16 GiB.
    pub(crate) fn suitable_for_files(bytes: u64) -> u32 {
        let megabytes = (bytes >> 25).clamp(4, 16 << 10);
        u32::try_from(1u64 << megabytes.ilog2()).unwrap_or(4) * 256 + 16
    }

    /// Bytes of the smallest device that can be formatted without special options.
    pub(crate) fn smallest() -> u64 {
        Self::new(0, PAGE_SHIFT, 16, Self::suitable_pages(0)).err().unwrap_or(0)
    }

    /// As asked for in bytes of the metadata file.
    pub(crate) fn pages_for(bytes: u64) -> u32 {
        u32::try_from(bytes >> PAGE_SHIFT).unwrap_or(u32::MAX)
    }

    /// How many pages each level of the metadata file has: its own, tables of these, and tables of the tables if the
    /// root has no room for them all.
    pub(crate) fn levels(&self) -> impl Iterator<Item = u32> + use<> {
        let Levels { tables, uppers } = Levels::new(self.pages);
        [self.pages, tables, uppers].into_iter().filter(|pages| *pages > 0)
    }

    /// Device blocks of a page.
    pub(crate) fn page_blocks(&self) -> u64 {
        1 << (PAGE_SHIFT - self.block_shift)
    }

    /// Device blocks of an allocation unit.
    pub(crate) fn unit_blocks(&self) -> u64 {
        1 << (self.unit_shift - self.block_shift)
    }

    /// The first device block of the root's copy `copy` (0 or 1).
    pub(crate) fn root(&self, copy: u64) -> u64 {
        (1 + copy) * self.page_blocks()
    }

    /// The first device block of slot `slot` (1 or 2) of page `index` of a level, as [`Layout::levels`] counts.
    pub(crate) fn place(&self, level: usize, slot: u8, index: u32) -> u64 {
        let above: u64 = self.levels().skip(level + 1).map(|pages| 2 * u64::from(pages)).sum();
        let slots = u64::from(slot - 1) * u64::from(self.levels().nth(level).unwrap_or(0));
        (3 + above + slots + u64::from(index)) * self.page_blocks()
    }

    /// The first device blocks of the two superblocks.
    pub(crate) fn superblocks(&self) -> [u64; 2] {
        let last = (self.blocks / self.page_blocks()).saturating_sub(1) * self.page_blocks();
        [0, last]
    }

    /// The device block after the last data block.
    pub(crate) fn data_end(&self) -> u64 {
        self.data + self.units * self.unit_blocks()
    }

    /// Everything that is not data.
    pub(crate) fn metadata(&self) -> Vec<LbaRange> {
        let end = self.data_end();
        [LbaRange::new(0, self.data), LbaRange::new(end, self.blocks - end)].into_iter().flatten().collect()
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: U32,
    compatible: U32,
    incompatible: U32,
    read_only: U32,
    uuid: [u8; 16],
    block_shift: U32,
    unit_shift: U32,
    blocks: U64,
    metadata_pages: U32,
    reserved: U32,
    /// The metadata area, roots, tables and pages: first device block and how many.
    metadata_first: U64,
    metadata_blocks: U64,
    data_first: U64,
    data_units: U64,
}

const _: () = assert!(size_of::<Raw>() == 96);

/// A superblock that is as it was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Superblock {
    pub(crate) kind: Kind,
    pub(crate) version: u32,
    pub(crate) uuid: [u8; 16],
    pub(crate) layout: Layout,
}

/// What was found where a superblock should be.
#[derive(Debug)]
pub(crate) enum Found {
    Superblock(Superblock),
    /// Ours, and to be refused for this reason.
    Refused(StoreError),
    /// No trace of ours.
    Nothing,
}

impl Superblock {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let layout = &self.layout;
        let raw = Raw {
            magic: self.kind.magic(),
            version: self.version.into(),
            compatible: 0.into(),
            incompatible: 0.into(),
            read_only: 0.into(),
            uuid: self.uuid,
            block_shift: u32::from(layout.block_shift).into(),
            unit_shift: u32::from(layout.unit_shift).into(),
            blocks: layout.blocks.into(),
            metadata_pages: layout.pages.into(),
            reserved: 0.into(),
            metadata_first: layout.root(0).into(),
            metadata_blocks: (layout.data - layout.root(0)).into(),
            data_first: layout.data.into(),
            data_units: layout.units.into(),
        };
        let mut page = raw.as_bytes().to_vec();
        page.resize(SUM_AT, 0);
        page.extend_from_slice(&crc32c::crc32c(&page).to_le_bytes());
        page
    }

    /// Reads a superblock of `kind` from the start of `page`. Nothing in it is believed before the checksum fits, and
    /// nothing after that unless it is consistent.
    pub(crate) fn decode(kind: Kind, page: &[u8]) -> Found {
        let Some((page, _)) = page.split_at_checked(PAGE) else {
            return Found::Nothing;
        };
        let Ok((raw, _)) = Raw::ref_from_prefix(page) else {
            return Found::Nothing;
        };
        if raw.magic != kind.magic() {
            return Found::Nothing;
        }
        let (body, sum) = page.split_at(SUM_AT);
        if crc32c::crc32c(body).to_le_bytes() != sum {
            return Found::Refused(damaged("the superblock's checksum does not fit"));
        }
        Self::check(kind, raw).map_or_else(Found::Refused, Found::Superblock)
    }

    fn check(kind: Kind, raw: &Raw) -> Result<Self, StoreError> {
        let version = raw.version.get();
        if !(FIRST_VERSION..=kind.newest()).contains(&version) {
            return Err(StoreError::Version { found: version, known: kind.newest() });
        }
        for (kind, bits, known) in [
            ("incompatible", raw.incompatible, INCOMPATIBLE),
            ("read-only compatible", raw.read_only, READ_ONLY),
        ] {
            if bits.get() & !known != 0 {
                return Err(StoreError::Features { kind, bits: bits.get() & !known });
            }
        }
        let nonsense = || damaged("the superblock contradicts itself");
        let block_shift = u8::try_from(raw.block_shift.get()).ok().filter(|shift| [9, 12].contains(shift));
        let unit_shift = u8::try_from(raw.unit_shift.get()).map_err(|_| nonsense())?;
        let layout = Layout::new(
            raw.blocks.get(),
            block_shift.ok_or_else(nonsense)?,
            unit_shift,
            raw.metadata_pages.get(),
        )
        .map_err(|_| nonsense())?;
        if kind == Kind::Store && layout.pages > STORE_PAGES {
            return Err(nonsense());
        }
        let stored = [raw.metadata_first, raw.metadata_blocks, raw.data_first, raw.data_units].map(U64::get);
        if stored != [layout.root(0), layout.data - layout.root(0), layout.data, layout.units] {
            return Err(nonsense());
        }
        Ok(Self { kind, version, uuid: raw.uuid, layout })
    }
}

fn damaged(what: &str) -> StoreError {
    StoreError::Damaged { what: what.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_do_not_overlap() {
        for shift in [9, 12] {
            for (bytes, unit, files) in [
                (16u64 << 20, 16, false),
                (64 << 20, 20, false),
                (1 << 40, 16, false),
                ((100 << 20) + 512 * 13, 12, true),
                (8 << 30, 12, true),
                (1 << 40, 12, true),
                (1 << 50, 12, true),
            ] {
                let blocks = bytes >> shift;
                let pages = if files { Layout::suitable_for_files } else { Layout::suitable_pages };
                let layout = Layout::new(blocks, shift, unit, pages(bytes)).unwrap();
                let page = layout.page_blocks();
                assert_eq!(layout.superblocks()[0] + page, layout.root(0));
                let levels: Vec<u32> = layout.levels().collect();
                assert_eq!(levels.len(), if layout.pages > 56 * 512 { 3 } else { 2 });
                let mut end = layout.root(1) + page;
                for (level, pages) in levels.iter().enumerate().rev() {
                    for slot in [1, 2] {
                        assert_eq!(layout.place(level, slot, 0), end, "level {level}");
                        end = layout.place(level, slot, pages - 1) + page;
                    }
                }
                assert!(end <= layout.data);
                assert!(layout.data_end() <= layout.superblocks()[1]);
                assert!(layout.superblocks()[1] + page <= blocks);
                let metadata: u64 = layout.metadata().iter().map(|extent| extent.count.0).sum();
                assert_eq!(metadata + layout.units * layout.unit_blocks(), blocks);
            }
        }
    }

    #[test]
    fn the_needed_size_is_enough_and_not_too_much() {
        for shift in [9, 12] {
            let needed = Layout::new(0, shift, 16, 1040).unwrap_err();
            assert!(Layout::new(needed >> shift, shift, 16, 1040).is_ok());
            assert_eq!(Layout::new((needed >> shift) - 1, shift, 16, 1040), Err(needed));
        }
    }

    #[test]
    fn a_superblock_survives_the_way_to_the_disk_and_back() {
        let layout = Layout::new(1 << 20, 12, 16, 1040).unwrap();
        let superblock = Superblock { kind: Kind::Store, version: 1, uuid: [7; 16], layout };
        let page = superblock.encode();
        assert_eq!(page.len(), PAGE);
        assert!(
            matches!(Superblock::decode(Kind::Store, &page), Found::Superblock(found) if found == superblock)
        );
        for at in 0..PAGE {
            let mut flipped = page.clone();
            flipped[at] ^= 0x10;
            match Superblock::decode(Kind::Store, &flipped) {
                Found::Nothing => assert!(at < 8),
                Found::Refused(StoreError::Damaged { .. }) => {}
                other => panic!("byte {at}: {other:?}"),
            }
        }
    }

    #[test]
    fn unknown_versions_features_and_nonsense_are_refused() {
        let layout = Layout::new(1 << 20, 12, 16, 1040).unwrap();
        let page = Superblock { kind: Kind::Store, version: 1, uuid: [7; 16], layout }.encode();
        let with = |at: usize, value: u32| {
            let mut page = page.clone();
            page[at..at + 4].copy_from_slice(&value.to_le_bytes());
            let sum = crc32c::crc32c(&page[..SUM_AT]).to_le_bytes();
            page[SUM_AT..].copy_from_slice(&sum);
            Superblock::decode(Kind::Store, &page)
        };
        assert!(matches!(with(8, 3), Found::Refused(StoreError::Version { found: 3, known: 2 })));
        assert!(matches!(with(8, 0), Found::Refused(StoreError::Version { found: 0, known: 2 })));
        assert!(matches!(with(8, 2), Found::Superblock(Superblock { version: 2, .. })));
        assert!(matches!(Superblock::decode(Kind::Files, &page), Found::Nothing));
        assert!(matches!(with(12, 5), Found::Superblock(_)), "compatible features are ignored");
        assert!(matches!(with(16, 4), Found::Refused(StoreError::Features { bits: 4, .. })));
        assert!(matches!(with(20, 1), Found::Refused(StoreError::Features { bits: 1, .. })));
        for at in (40..96).step_by(4).filter(|at| *at != 60) {
            for value in [0x1234, u32::MAX] {
                let found = with(at, value);
                assert!(matches!(found, Found::Refused(StoreError::Damaged { .. })), "{at}: {found:?}");
            }
        }
    }
}
