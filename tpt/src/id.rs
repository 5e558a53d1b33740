//! Identifiers and quantities, as types of their own so that one is never passed for another.

use core::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $int:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A protection domain: what ties the queues, grants and memory regions of one session together.
    /// Numbers are never used twice in the life of an adapter.
    Domain, u32
);
number!(
    /// The position of an entry in the adapter protection table.
    EntryIndex, u32
);
number!(
    /// The position of an entry in the memory-region table.
    RegionIndex, u32
);
number!(
    /// Which extension of a file: its position in the file's own segment of the file extension protection table.
    ExtensionNumber, u32
);
number!(
    /// The part of a key that changes each time its index is used again, so that a stale key never resolves.
    KeyInstance, u32
);
number!(
    /// An absolute logical block address of the device, in device blocks.
    Lba, u64
);
number!(
    /// A count of device blocks.
    Blocks, u64
);
number!(
    /// An address as the device sees it, behind the IOMMU.
    Iova, u64
);

macro_rules! key {
    ($(#[$doc:meta])* $name:ident, $index:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl $name {
            /// The key of `index` in its life `instance`.
            #[inline]
            pub const fn new(index: $index, instance: KeyInstance) -> Self {
                Self((instance.0 as u64) << 32 | index.0 as u64)
            }

            /// The low 32 bits: which entry.
            #[inline]
            #[allow(clippy::cast_possible_truncation)] // the low half is meant
            pub const fn index(self) -> $index {
                $index(self.0 as u32)
            }

            /// The high 32 bits: which life of that entry.
            #[inline]
            pub const fn instance(self) -> KeyInstance {
                KeyInstance((self.0 >> 32) as u32)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({}#{})"), self.index(), self.instance())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}#{}", self.index(), self.instance())
            }
        }
    };
}

key!(
    /// What an application names a grant of blocks or an opened file by (FN_Key). A name, not a secret: security rests on
    /// the domain.
    Key, EntryIndex
);
key!(
    /// What an application names one extension of an opened file by (FE_Key), beside the file's [`Key`]. It means nothing
    /// without that: its number counts within the file's own segment.
    ExtensionKey, ExtensionNumber
);

impl ExtensionKey {
    /// No extension: bytes are counted from the start of the file, or of the grant. No extension has this key.
    pub const NONE: Self = Self(0);
}

key!(
    /// What an application names a registered memory region by.
    RegionKey, RegionIndex
);

/// Behind the last block that a device can have, so that whoever took the start of a hole for a block would ask for one
/// that there is not.
const HOLES: u64 = 1 << 63;

/// Whether a range that begins there is a hole.
#[inline]
pub(crate) const fn is_hole(first: u64) -> bool {
    first >= HOLES
}

/// A contiguous range of device blocks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LbaRange {
    /// The first block.
    pub first: Lba,
    /// How many blocks, at least one.
    pub count: Blocks,
}

impl LbaRange {
    /// The range of `count` blocks from `first`; `None` if it is empty or wraps.
    pub const fn new(first: u64, count: u64) -> Option<Self> {
        if count == 0 || first.checked_add(count).is_none() {
            return None;
        }
        Some(Self { first: Lba(first), count: Blocks(count) })
    }

    /// `count` blocks that a file does not have, behind the first `at` of its blocks: a part of it that no request reaches.
    /// No two holes of a file overlap. `None` if it is empty or beyond what a file can have.
    pub const fn hole(at: u64, count: u64) -> Option<Self> {
        if at >= HOLES {
            return None;
        }
        Self::new(HOLES + at, count)
    }

    /// Whether it is one.
    pub const fn is_hole(self) -> bool {
        is_hole(self.first.0)
    }

    /// Whether it begins with blocks and ends in a hole: no device is that large.
    pub(crate) const fn reaches_holes(self) -> bool {
        !self.is_hole() && self.end().0 > HOLES
    }

    /// The block after the last one.
    pub const fn end(self) -> Lba {
        Lba(self.first.0 + self.count.0)
    }

    /// Whether the two share a block.
    pub const fn overlaps(self, other: Self) -> bool {
        self.first.0 < other.end().0 && other.first.0 < self.end().0
    }
}
