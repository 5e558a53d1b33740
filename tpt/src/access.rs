//! Access control values and the operations that they allow (S4-R5 is the whole table).

use core::fmt;
use core::ops::BitOr;

/// What an entry or a region allows: a set of READ, WRITE and TRIM.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Access(u8);

impl Access {
    /// Valid, and nothing is allowed.
    pub const NONE: Self = Self(0);
    /// Read and compare.
    pub const READ: Self = Self(1);
    /// Write, write zeroes, force unit access, flush.
    pub const WRITE: Self = Self(2);
    /// Deallocate, and write zeroes that deallocate.
    pub const TRIM: Self = Self(4);
    /// READ and WRITE.
    pub const READ_WRITE: Self = Self(3);
    /// Everything.
    pub const ALL: Self = Self(7);

    /// The set whose bits are `bits`; `None` if a bit is set that means nothing.
    #[inline]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        if bits > Self::ALL.0 { None } else { Some(Self(bits)) }
    }

    /// The bits: 1 READ, 2 WRITE, 4 TRIM.
    #[inline]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether all of `needed` is in the set.
    #[inline]
    pub const fn allows(self, needed: Self) -> bool {
        self.0 & needed.0 == needed.0
    }

    /// What is in both sets.
    #[inline]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl BitOr for Access {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Access {
    /// `rwt`, with a dash for what is not allowed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |set: Access, c: char| if self.allows(set) { c } else { '-' };
        write!(f, "{}{}{}", letter(Self::READ, 'r'), letter(Self::WRITE, 'w'), letter(Self::TRIM, 't'))
    }
}

/// What a request asks for. No other operation reaches a device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Operation {
    /// Blocks to memory.
    Read,
    /// Memory to blocks; with `fua` it completes only when the blocks are durable.
    Write {
        /// Force unit access.
        fua: bool,
    },
    /// All completed writes under this grant become durable.
    Flush,
    /// Blocks read as zero afterwards; with `deallocate` the device may also release them.
    WriteZeroes {
        /// The device may deallocate.
        deallocate: bool,
    },
    /// The blocks' content is given up and reads as zero afterwards.
    Deallocate,
    /// Memory against blocks; fails if they differ.
    Compare,
    /// Memory to bytes, at any offset and of any length; what else is in the blocks that it touches stays. Whoever
    /// does it reads, changes and writes those blocks, with the application's memory as a source of any alignment.
    WriteBytes,
}

impl Operation {
    /// What the entry must allow.
    #[inline]
    pub const fn required_access(self) -> Access {
        match self {
            Self::Read | Self::Compare => Access::READ,
            Self::Write { .. } | Self::WriteBytes | Self::Flush | Self::WriteZeroes { deallocate: false } => {
                Access::WRITE
            }
            Self::Deallocate => Access::TRIM,
            Self::WriteZeroes { deallocate: true } => Access(Access::WRITE.0 | Access::TRIM.0),
        }
    }

    /// What the memory region must allow: WRITE where the device writes memory, READ where it reads it, `None`
    /// where the operation moves no data.
    #[inline]
    pub const fn required_memory_access(self) -> Option<Access> {
        match self {
            Self::Read => Some(Access::WRITE),
            Self::Write { .. } | Self::WriteBytes | Self::Compare => Some(Access::READ),
            Self::Flush | Self::WriteZeroes { .. } | Self::Deallocate => None,
        }
    }

    /// Which bits of the memory's offset must be zero: the device wants its addresses so, a copy does not.
    #[inline]
    pub(crate) const fn memory_alignment_mask(self) -> u64 {
        match self {
            Self::WriteBytes => 0,
            _ => 3,
        }
    }
}
