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

/// All that an operation needs, in one word, so that a check looks it up once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rule(u32);

impl Rule {
    const MEMORY_SHIFT: u32 = 8;
    const NO_RANGE: u32 = 1 << 16;
    const ANY_ALIGNMENT: u32 = 1 << 17;

    const fn new(entry: Access, memory: Access, flags: u32) -> Self {
        Self(entry.0 as u32 | (memory.0 as u32) << Self::MEMORY_SHIFT | flags)
    }

    /// What the entry must allow.
    #[inline]
    #[allow(clippy::cast_possible_truncation)] // the low byte
    pub(crate) const fn access(self) -> Access {
        Access(self.0 as u8)
    }

    /// What the memory region must allow; nothing where no data moves.
    #[inline]
    #[allow(clippy::cast_possible_truncation)] // one of its bytes
    pub(crate) const fn memory(self) -> Access {
        Access((self.0 >> Self::MEMORY_SHIFT) as u8)
    }

    /// It names no range: offset and length are zero. All others name one that is not empty.
    #[inline]
    pub(crate) const fn has_no_range(self) -> bool {
        self.0 & Self::NO_RANGE != 0
    }

    /// Neither its range nor its memory need be aligned.
    #[inline]
    pub(crate) const fn is_of_bytes(self) -> bool {
        self.0 & Self::ANY_ALIGNMENT != 0
    }

    /// Write zeroes, which few do.
    #[cold]
    #[inline(never)]
    const fn of_zeroes(deallocate: bool) -> Self {
        let trim = if deallocate { Access::TRIM } else { Access::NONE };
        Self::new(Access(Access::WRITE.0 | trim.0), Access::NONE, 0)
    }
}

/// In the order of the variants, but for write zeroes.
const RULES: [Rule; 7] = [
    Rule::new(Access::READ, Access::WRITE, 0),
    Rule::new(Access::WRITE, Access::READ, 0),
    Rule::new(Access::WRITE, Access::NONE, Rule::NO_RANGE),
    Rule::of_zeroes(true),
    Rule::new(Access::TRIM, Access::NONE, 0),
    Rule::new(Access::READ, Access::READ, 0),
    Rule::new(Access::WRITE, Access::READ, Rule::ANY_ALIGNMENT),
];

impl Operation {
    #[inline]
    pub(crate) const fn rule(self) -> Rule {
        // The order is that of the variants, so that this is no decision for the machine.
        let number = match self {
            Self::Read => 0,
            Self::Write { .. } => 1,
            Self::Flush => 2,
            Self::WriteZeroes { .. } => 3,
            Self::Deallocate => 4,
            Self::Compare => 5,
            Self::WriteBytes => 6,
        };
        match self {
            Self::WriteZeroes { deallocate } => Rule::of_zeroes(deallocate),
            _ => RULES[number],
        }
    }

    /// What the entry must allow.
    #[inline]
    pub const fn required_access(self) -> Access {
        self.rule().access()
    }

    /// What the memory region must allow: WRITE where the device writes memory, READ where it reads it, `None`
    /// where the operation moves no data.
    #[inline]
    pub const fn required_memory_access(self) -> Option<Access> {
        match self.rule().memory() {
            Access::NONE => None,
            needed => Some(needed),
        }
    }
}
