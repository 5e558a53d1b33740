//! Volumes as the rest of the house sees them.

use std::fmt;

use tpt::{Access, LbaRange};

use crate::{MAX_NAME, StoreError};

/// Names a volume for ever: numbers are not used twice in the life of a store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VolumeId(pub u64);

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whom an access entry is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Subject {
    /// A user id.
    User(u32),
    /// A group id.
    Group(u32),
    /// All users.
    Everyone,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(uid) => write!(f, "user:{uid}"),
            Self::Group(gid) => write!(f, "group:{gid}"),
            Self::Everyone => f.write_str("everyone"),
        }
    }
}

/// What a volume is used as.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum VolumeKind {
    /// Blocks, for whoever has rights on the volume.
    #[default]
    Blocks,
    /// A file system of ours ([`files`](crate::files)).
    Files,
    /// A file system that another program made: what it is, is seen when it is opened.
    AsFound,
}

impl fmt::Display for VolumeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Blocks => "blocks",
            Self::Files => "files",
            Self::AsFound => "as found",
        })
    }
}

/// A logical volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Volume {
    /// Its number.
    pub id: VolumeId,
    /// Its name, unique in the store.
    pub name: String,
    /// The user id that has all rights on it.
    pub owner: u32,
    /// Device blocks: the sum of `extents`.
    pub blocks: u64,
    /// Where it lies on the device, in the order of its content; disjoint from every other volume and from the
    /// metadata.
    pub extents: Vec<LbaRange>,
    /// What others may do; at most one entry for a subject, none of them empty.
    pub access: Vec<(Subject, Access)>,
    /// How much all who use it may do together.
    pub limits: Limits,
    /// What it is used as.
    pub kind: VolumeKind,
}

/// So many in a second, and so many at once after a pause; none of the rates is 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// In a second.
    pub rate: u64,
    /// At once; 0 for what is usual.
    pub burst: u64,
}

/// Limits of a volume. The store keeps them and does no more with them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// Of requests.
    pub requests: Option<Rate>,
    /// Of bytes.
    pub bytes: Option<Rate>,
}

impl Volume {
    /// What a user may do: everything as the owner, otherwise all that any matching entry allows. `groups` are sorted:
    /// there may be thousands, and as many entries.
    pub fn access_for(&self, uid: u32, gid: u32, groups: &[u32]) -> Access {
        if uid == self.owner {
            return Access::ALL;
        }
        let matches = |subject: &Subject| match *subject {
            Subject::User(user) => user == uid,
            Subject::Group(group) => group == gid || groups.binary_search(&group).is_ok(),
            Subject::Everyone => true,
        };
        self.access
            .iter()
            .filter(|(subject, _)| matches(subject))
            .fold(Access::NONE, |union, (_, access)| union | *access)
    }

    /// Where blocks of the volume are on the device, in order; `None` if they do not all lie in it.
    pub fn device_blocks(&self, blocks: LbaRange) -> Option<Vec<LbaRange>> {
        map(&self.extents, blocks)
    }

    /// The extents of the first `blocks` blocks; `None` if there are fewer, or none was asked for.
    pub fn extents_for(&self, blocks: u64) -> Option<Vec<LbaRange>> {
        let mut left = blocks;
        let mut extents = Vec::new();
        for extent in &self.extents {
            let Some(part) = LbaRange::new(extent.first.0, extent.count.0.min(left)) else {
                break;
            };
            left -= part.count.0;
            extents.push(part);
        }
        (left == 0 && !extents.is_empty()).then_some(extents)
    }
}

/// Where blocks of what `extents` make up are; `None` if they do not all lie in it.
pub(crate) fn map(extents: &[LbaRange], blocks: LbaRange) -> Option<Vec<LbaRange>> {
    let mut found = Vec::new();
    let (mut skip, mut left) = (blocks.first.0, blocks.count.0);
    for extent in extents {
        let part = extent.count.0.saturating_sub(skip).min(left);
        found.extend(LbaRange::new(extent.first.0 + skip.min(extent.count.0), part));
        skip = skip.saturating_sub(extent.count.0);
        left -= part;
        if left == 0 {
            return Some(found);
        }
    }
    None
}

/// Whether `name` can name a volume.
pub(crate) fn check_name(name: &str) -> Result<(), StoreError> {
    let why = if name.is_empty() {
        "it is empty"
    } else if name.len() > MAX_NAME {
        "it has more than 128 bytes"
    } else if name == "." || name == ".." {
        "it would be mistaken for a directory"
    } else if name.contains(['/', ':']) {
        "it contains a slash or a colon"
    } else if name.contains(char::is_control) {
        "it contains a control character"
    } else {
        return Ok(());
    };
    // Not all of it: it may be megabytes.
    Err(StoreError::Name { name: name.chars().take(MAX_NAME).collect(), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume() -> Volume {
        Volume {
            id: VolumeId(1),
            name: "v".into(),
            owner: 1000,
            blocks: 30,
            extents: vec![LbaRange::new(100, 10).unwrap(), LbaRange::new(50, 20).unwrap()],
            access: vec![
                (Subject::User(1), Access::READ),
                (Subject::Group(7), Access::WRITE),
                (Subject::Everyone, Access::TRIM),
            ],
            limits: Limits::default(),
            kind: VolumeKind::Blocks,
        }
    }

    #[test]
    fn access_is_the_union_of_matching_entries() {
        let volume = volume();
        assert_eq!(volume.access_for(1000, 0, &[]), Access::ALL);
        assert_eq!(volume.access_for(0, 0, &[]), Access::TRIM, "root is nobody special");
        assert_eq!(volume.access_for(1, 0, &[]), Access::READ | Access::TRIM);
        assert_eq!(volume.access_for(2, 7, &[]), Access::WRITE | Access::TRIM);
        assert_eq!(volume.access_for(2, 0, &[3, 7]), Access::WRITE | Access::TRIM);
        assert_eq!(volume.access_for(1, 7, &[7]), Access::ALL);
        assert_eq!(
            volume.access_for(7, 1, &[1]),
            Access::TRIM,
            "user and group numbers are different things"
        );
    }

    #[test]
    fn extents_are_cut_to_the_first_blocks() {
        let volume = volume();
        let range = |first, count| LbaRange::new(first, count).unwrap();
        assert_eq!(volume.extents_for(1), Some(vec![range(100, 1)]));
        assert_eq!(volume.extents_for(10), Some(vec![range(100, 10)]));
        assert_eq!(volume.extents_for(11), Some(vec![range(100, 10), range(50, 1)]));
        assert_eq!(volume.extents_for(30), Some(volume.extents.clone()));
        assert_eq!(volume.extents_for(31), None);
        assert_eq!(volume.extents_for(u64::MAX), None);
        assert_eq!(volume.extents_for(0), None);
    }

    #[test]
    fn blocks_of_a_volume_are_found_on_the_device() {
        let volume = volume();
        let range = |first, count| LbaRange::new(first, count).unwrap();
        assert_eq!(volume.device_blocks(range(0, 1)), Some(vec![range(100, 1)]));
        assert_eq!(volume.device_blocks(range(9, 1)), Some(vec![range(109, 1)]));
        assert_eq!(volume.device_blocks(range(10, 20)), Some(vec![range(50, 20)]));
        assert_eq!(volume.device_blocks(range(5, 10)), Some(vec![range(105, 5), range(50, 5)]));
        assert_eq!(volume.device_blocks(range(0, 30)), Some(volume.extents.clone()));
        assert_eq!(volume.device_blocks(range(29, 2)), None);
        assert_eq!(volume.device_blocks(range(30, 1)), None);
        assert_eq!(volume.device_blocks(range(5, u64::MAX - 5)), None);
    }

    #[test]
    fn names_are_checked() {
        for good in ["a", "db-1.wal", "ü", "...", "with space", &"x".repeat(128)] {
            check_name(good).unwrap();
        }
        for bad in ["", ".", "..", "a/b", "a:b", "a\n", "\u{7f}", "\u{85}", &"x".repeat(129), &"ü".repeat(65)]
        {
            assert!(matches!(check_name(bad), Err(StoreError::Name { .. })), "{bad:?}");
        }
    }
}
