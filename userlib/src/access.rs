//! Rights as an application states them.

use std::fmt;
use std::ops::BitOr;
use std::str::FromStr;

use wire::control::AccessBits;

/// What a grant allows, or what one asks for: a set of READ, WRITE and TRIM.
///
/// ```
/// use portcullis::Access;
///
/// let access = Access::READ | Access::WRITE;
/// assert_eq!(access, Access::READ_WRITE);
/// assert_eq!(access.to_string(), "rw-");
/// assert_eq!("rw".parse(), Ok(access));
/// assert!(access.allows(Access::READ) && !access.allows(Access::TRIM));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Access(AccessBits);

impl Access {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Read and compare.
    pub const READ: Self = Self(1);
    /// Write, write zeroes, flush.
    pub const WRITE: Self = Self(2);
    /// Deallocate, and write zeroes that may deallocate.
    pub const TRIM: Self = Self(4);
    /// READ and WRITE.
    pub const READ_WRITE: Self = Self(3);
    /// Everything.
    pub const ALL: Self = Self(7);

    /// The set whose bits are `bits` (1 READ, 2 WRITE, 4 TRIM); `None` if a bit is set that means nothing.
    ///
    /// ```
    /// use portcullis::Access;
    /// assert_eq!(Access::from_bits(3), Some(Access::READ_WRITE));
    /// assert_eq!(Access::from_bits(8), None);
    /// ```
    pub const fn from_bits(bits: AccessBits) -> Option<Self> {
        if bits > Self::ALL.0 { None } else { Some(Self(bits)) }
    }

    /// The bits: 1 READ, 2 WRITE, 4 TRIM.
    ///
    /// ```
    /// assert_eq!(portcullis::Access::ALL.bits(), 7);
    /// ```
    pub const fn bits(self) -> AccessBits {
        self.0
    }

    /// Whether all of `needed` is in the set.
    ///
    /// ```
    /// use portcullis::Access;
    /// assert!(Access::ALL.allows(Access::TRIM));
    /// assert!(!Access::READ.allows(Access::READ_WRITE));
    /// ```
    pub const fn allows(self, needed: Self) -> bool {
        self.0 & needed.0 == needed.0
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
        let letter = |set: Self, letter: char| if self.allows(set) { letter } else { '-' };
        write!(f, "{}{}{}", letter(Self::READ, 'r'), letter(Self::WRITE, 'w'), letter(Self::TRIM, 't'))
    }
}

/// A text that does not name rights.
///
/// ```
/// use portcullis::Access;
/// let error = "rx".parse::<Access>().unwrap_err();
/// assert!(error.to_string().contains("'x'"));
/// ```
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text:?} does not name rights: {wrong:?} is not one of r (read), w (write), t (trim) or -")]
pub struct ParseAccessError {
    text: String,
    wrong: char,
}

impl FromStr for Access {
    type Err = ParseAccessError;

    /// The letters `r`, `w` and `t` in any order; dashes count for nothing, so that `r--` and `-` are accepted.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.chars().try_fold(Self::NONE, |set, letter| match letter {
            'r' => Ok(set | Self::READ),
            'w' => Ok(set | Self::WRITE),
            't' => Ok(set | Self::TRIM),
            '-' => Ok(set),
            wrong => Err(ParseAccessError { text: text.to_owned(), wrong }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_prints_and_parses_back() {
        for bits in 0..=Access::ALL.bits() {
            let set = Access::from_bits(bits).unwrap();
            assert_eq!(set.to_string().parse::<Access>().unwrap(), set);
        }
        assert_eq!("".parse::<Access>().unwrap(), Access::NONE);
        assert_eq!("tr".parse::<Access>().unwrap().to_string(), "r-t");
    }
}
