//! Access control values and the operations that they allow (S4-R5 is the whole table).

use core::fmt;
use core::ops::BitOr;

use crate::published::Needed;

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

/// What each operation needs of its entry, in the order of the variants, so that looking it up is no decision for the
/// machine. It may say too much, for what is then decided with more care: a flush, which names no range; write zeroes,
/// which is here as if it deallocated; a write of bytes, whose range and memory need not be aligned.
static OF_ENTRY: [Needed; 7] = [
    Needed::of(Access::READ),
    Needed::of(Access::WRITE),
    Needed::TOO_MUCH,
    Needed::of(Access(Access::WRITE.0 | Access::TRIM.0)),
    Needed::of(Access::TRIM),
    Needed::of(Access::READ),
    Needed::TOO_MUCH,
];

/// What each needs of its memory region; too much of those that move no data.
static OF_MEMORY: [Needed; 7] = [
    Needed::of(Access::WRITE),
    Needed::of(Access::READ),
    Needed::TOO_MUCH,
    Needed::TOO_MUCH,
    Needed::TOO_MUCH,
    Needed::of(Access::READ),
    Needed::of(Access::READ),
];

impl Operation {
    /// Its place in the tables of what is needed.
    #[inline]
    const fn number(self) -> usize {
        match self {
            Self::Read => 0,
            Self::Write { .. } => 1,
            Self::Flush => 2,
            Self::WriteZeroes { .. } => 3,
            Self::Deallocate => 4,
            Self::Compare => 5,
            Self::WriteBytes => 6,
        }
    }

    /// What of an entry is enough; where that is refused, [`Operation::required_access`] has the last word.
    #[inline]
    pub(crate) fn enough(self) -> Needed {
        OF_ENTRY[self.number()]
    }

    /// What the memory region must be.
    #[inline]
    pub(crate) fn needed_of_memory(self) -> Needed {
        OF_MEMORY[self.number()]
    }

    /// What the entry must allow.
    #[inline]
    pub const fn required_access(self) -> Access {
        match self {
            Self::Read | Self::Compare => Access::READ,
            Self::Write { .. } | Self::Flush | Self::WriteBytes => Access::WRITE,
            Self::WriteZeroes { deallocate: false } => Access::WRITE,
            Self::WriteZeroes { deallocate: true } => Access(Access::WRITE.0 | Access::TRIM.0),
            Self::Deallocate => Access::TRIM,
        }
    }

    /// What the memory region must allow: WRITE where the device writes memory, READ where it reads it, `None`
    /// where the operation moves no data.
    #[inline]
    pub const fn required_memory_access(self) -> Option<Access> {
        match self {
            Self::Read => Some(Access::WRITE),
            Self::Write { .. } | Self::Compare | Self::WriteBytes => Some(Access::READ),
            Self::Flush | Self::WriteZeroes { .. } | Self::Deallocate => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KeyInstance;
    use crate::published::{Stage, State, StateWord};

    const STAGES: [Stage; 4] = [Stage::Valid, Stage::Held, Stage::Closed, Stage::Free];

    /// The words that are compared with say what the operations say, or too much where that is looked at again.
    #[test]
    fn what_is_enough_is_what_is_required() {
        let zeroes = |deallocate| Operation::WriteZeroes { deallocate };
        let operations = [
            Operation::Read,
            Operation::Write { fua: false },
            Operation::Write { fua: true },
            Operation::Flush,
            zeroes(false),
            zeroes(true),
            Operation::Deallocate,
            Operation::Compare,
            Operation::WriteBytes,
        ];
        let (key, stale) = (7 << 32 | 5, 6 << 32 | 5);
        for operation in operations {
            let (entry, memory) = (operation.enough(), operation.needed_of_memory());
            let again = operation == Operation::Flush
                || operation == Operation::WriteBytes
                || operation == zeroes(false);
            for (bits, stage) in (0..=7).flat_map(|bits| STAGES.map(|stage| (bits, stage))) {
                let access = Access::from_bits(bits).unwrap();
                let word = StateWord::new(KeyInstance(7), access, stage);
                let state = State::new(5);
                assert_eq!((state.get(5), state.admits(key, entry)), (StateWord::FREE, false));
                state.set(5, word);
                assert_eq!((state.get(5), word.stage(), word.instance().0), (word, stage, 7));
                let open = stage == Stage::Valid;
                let (allowed, admitted) =
                    (access.allows(operation.required_access()), state.admits(key, entry));
                assert_eq!(word.gives(operation.required_access()), allowed);
                assert!(
                    admitted == (open && allowed) || again && !admitted,
                    "{operation:?} {access} {stage:?}"
                );
                let needed = operation.required_memory_access();
                let allowed = needed.is_some_and(|needed| open && access.allows(needed));
                assert_eq!(state.admits(key, memory), allowed, "{operation:?} {access} {stage:?}");
                assert!(!state.admits(stale, entry) && !state.admits(stale, memory));
            }
        }
        let open = State::new(5);
        open.set(5, StateWord::new(KeyInstance(7), Access::ALL, Stage::Valid));
        for operation in [Operation::Flush, Operation::WriteBytes] {
            assert!(!open.admits(key, operation.enough()));
        }
    }
}
