//! What is known of a file or directory, and its record.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::MAX_ACL;
use crate::permission::{Acl, Party, Permissions, Rights, TYPE_DIRECTORY, TYPE_FILE, TYPE_MASK};
use crate::superblock::Layout;

/// Names a file or directory for ever: numbers are not used twice in the life of a file system.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct InodeNumber(pub u64);

impl InodeNumber {
    /// The root directory.
    pub const ROOT: Self = Self(1);
}

impl fmt::Display for InodeNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Nanoseconds since 1970-01-01 00:00 UTC, without leap seconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Timestamp(pub i64);

/// What is known of a file or directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// Its number.
    pub inode: InodeNumber,
    /// Whose it is and who may do what; the mode says whether it is a directory.
    pub permissions: Permissions,
    /// Bytes of the file; 0 of a directory.
    pub length: u64,
    /// Bytes of the blocks that it has, also those behind its end.
    pub allocated: u64,
    /// Bytes of those that it keeps when it is closed, wherever it ends: see [`super::FileSystem::reserve`].
    pub reserved: u64,
    /// When it was made.
    pub created: Timestamp,
    /// When its content changed.
    pub modified: Timestamp,
    /// When anything of it changed.
    pub changed: Timestamp,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Inode {
    pub(super) permissions: Permissions,
    pub(super) length: u64,
    /// Allocation units that it has.
    pub(super) units: u64,
    /// Pieces that they lie in.
    pub(super) pieces: u64,
    pub(super) created: Timestamp,
    pub(super) modified: Timestamp,
    pub(super) changed: Timestamp,
    /// Of its first allocation units so many are kept when it is closed, wherever it ends.
    pub(super) reserved: u64,
    /// How often the file system had been lost when what is behind its end was last known to be zero, see
    /// [`super::metadata::Counters::lost`].
    pub(super) clean_since: u64,
}

/// In postcard's wire format (postcard 1.0 specification).
#[derive(Serialize, Deserialize)]
struct Record {
    mode: u16,
    uid: u32,
    gid: u32,
    length: u64,
    units: u64,
    pieces: u64,
    created: i64,
    /// After `created`; mostly 0, which takes a byte.
    modified: i64,
    /// After `modified`.
    changed: i64,
    reserved: u64,
    clean_since: u64,
    /// 0 owner, 1 user, 2 owning group, 3 group, 4 mask, 5 others; the number; the rights.
    acl: Vec<(u8, u32, u8)>,
}

impl Inode {
    pub(super) fn new(permissions: Permissions, now: Timestamp) -> Self {
        Self {
            permissions,
            length: 0,
            units: 0,
            pieces: 0,
            created: now,
            modified: now,
            changed: now,
            reserved: 0,
            clean_since: 0,
        }
    }

    /// Allocation units that it keeps when nobody has it open: those of its content, and those that somebody asked for.
    pub(super) fn kept(&self, layout: &Layout) -> u64 {
        self.length.div_ceil(1 << layout.unit_shift).max(self.reserved)
    }

    pub(super) const fn is_directory(&self) -> bool {
        self.permissions.is_directory()
    }

    pub(super) fn attributes(&self, number: InodeNumber, layout: &Layout) -> Attributes {
        Attributes {
            inode: number,
            permissions: self.permissions.clone(),
            length: self.length,
            allocated: self.units << layout.unit_shift,
            reserved: self.reserved << layout.unit_shift,
            created: self.created,
            modified: self.modified,
            changed: self.changed,
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let Permissions { mode, uid, gid, acl } = &self.permissions;
        let record = Record {
            mode: *mode,
            uid: *uid,
            gid: *gid,
            length: self.length,
            units: self.units,
            pieces: self.pieces,
            created: self.created.0,
            modified: self.modified.0.wrapping_sub(self.created.0),
            changed: self.changed.0.wrapping_sub(self.modified.0),
            reserved: self.reserved,
            clean_since: self.clean_since,
            acl: acl.as_ref().map_or_else(Vec::new, |acl| acl.entries().iter().map(entry).collect()),
        };
        postcard::to_allocvec(&record).expect("a record of plain values always serializes")
    }

    /// The inode of a record, or what is wrong with it.
    pub(super) fn decode(bytes: &[u8], layout: &Layout) -> Result<Self, String> {
        let (record, rest) = postcard::take_from_bytes::<Record>(bytes).map_err(|error| error.to_string())?;
        if !rest.is_empty() {
            return Err("its record is too long".to_owned());
        }
        let directory = record.mode & TYPE_MASK == TYPE_DIRECTORY;
        if !directory && record.mode & TYPE_MASK != TYPE_FILE {
            return Err(format!("its mode {:#o} is of neither a file nor a directory", record.mode));
        }
        if record.units > layout.units || directory && record.units > 0 {
            return Err(format!("it has {} allocation units", record.units));
        }
        if record.pieces > record.units || (record.pieces == 0) != (record.units == 0) {
            return Err(format!("{} allocation units do not lie in {} pieces", record.units, record.pieces));
        }
        if record.length > record.units << layout.unit_shift {
            return Err(format!("{} bytes do not fit into what it has", record.length));
        }
        if record.reserved > record.units {
            return Err(format!("it has {} allocation units and keeps {}", record.units, record.reserved));
        }
        let modified = record.created.wrapping_add(record.modified);
        Ok(Self {
            permissions: Permissions {
                mode: record.mode,
                uid: record.uid,
                gid: record.gid,
                acl: acl(&record.acl, record.mode)?,
            },
            length: record.length,
            units: record.units,
            pieces: record.pieces,
            created: Timestamp(record.created),
            modified: Timestamp(modified),
            changed: Timestamp(modified.wrapping_add(record.changed)),
            reserved: record.reserved,
            clean_since: record.clean_since,
        })
    }
}

fn entry((party, rights): &(Party, Rights)) -> (u8, u32, u8) {
    let (kind, number) = match *party {
        Party::Owner => (0, 0),
        Party::User(uid) => (1, uid),
        Party::OwningGroup => (2, 0),
        Party::Group(gid) => (3, gid),
        Party::Mask => (4, 0),
        Party::Other => (5, 0),
    };
    (kind, number, rights.bits())
}

fn acl(entries: &[(u8, u32, u8)], mode: u16) -> Result<Option<Acl>, String> {
    if entries.is_empty() {
        return Ok(None);
    }
    if entries.len() > MAX_ACL {
        return Err(format!("its access list has {} entries", entries.len()));
    }
    let decode = |&(kind, number, rights): &(u8, u32, u8)| {
        let party = match (kind, number) {
            (0, 0) => Party::Owner,
            (1, uid) => Party::User(uid),
            (2, 0) => Party::OwningGroup,
            (3, gid) => Party::Group(gid),
            (4, 0) => Party::Mask,
            (5, 0) => Party::Other,
            _ => return Err(format!("its access list has an entry for nobody ({kind}, {number})")),
        };
        let rights =
            Rights::from_bits(rights).ok_or_else(|| format!("its access list has rights {rights:#x}"))?;
        Ok((party, rights))
    };
    let acl =
        Acl::new(entries.iter().map(decode).collect::<Result<_, _>>()?).map_err(|error| error.to_string())?;
    if acl.mode() != mode & 0o777 || acl.is_trivial() {
        return Err("its access list and its mode do not go together".to_owned());
    }
    Ok(Some(acl))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        Layout::new(1 << 15, 12, 12, 1040).unwrap()
    }

    fn inode() -> Inode {
        let entries = [
            (Party::Owner, Rights::ALL),
            (Party::User(70_000), Rights::READ),
            (Party::OwningGroup, Rights::NONE),
            (Party::Mask, Rights::READ),
            (Party::Other, Rights::NONE),
        ];
        let acl = Acl::new(entries.to_vec()).unwrap();
        let permissions = Permissions { mode: TYPE_FILE | acl.mode(), uid: 1000, gid: 100, acl: Some(acl) };
        let times = [i64::MIN, i64::MAX, -1].map(Timestamp);
        let [created, modified, changed] = times;
        let (reserved, clean_since) = (1, 300);
        Inode {
            permissions,
            length: 5000,
            units: 2,
            pieces: 1,
            created,
            modified,
            changed,
            reserved,
            clean_since,
        }
    }

    #[test]
    fn records_come_back() {
        let inode = inode();
        assert_eq!(Inode::decode(&inode.encode(), &layout()), Ok(inode));
        let plain = Permissions { mode: TYPE_DIRECTORY | 0o755, uid: 0, gid: 0, acl: None };
        let plain = Inode::new(plain, Timestamp(1_800_000_000_000_000_000));
        assert!(plain.encode().len() <= 23, "a million of them have to fit");
        assert_eq!(Inode::decode(&plain.encode(), &layout()), Ok(plain));
    }

    #[test]
    fn hostile_records_are_found() {
        type Case<'a> = (&'a dyn Fn(&mut Inode), &'a str);
        let cases: &[Case<'_>] = &[
            (&|i| i.permissions.mode = 0o120_777, "neither a file nor"),
            (&|i| i.permissions.mode = TYPE_DIRECTORY | 0o740, "2 allocation units"),
            (&|i| i.units = layout().units + 1, "allocation units"),
            (&|i| i.units = u64::MAX, "allocation units"),
            (&|i| i.length = 8193, "do not fit"),
            (&|i| i.pieces = 3, "do not lie in 3"),
            (&|i| i.pieces = 0, "do not lie in 0"),
            (&|i| i.reserved = 3, "2 allocation units and keeps 3"),
            (&|i| i.reserved = u64::MAX, "and keeps"),
            (&|i| i.permissions.mode = TYPE_FILE | 0o777, "do not go together"),
        ];
        for (change, what) in cases {
            let mut bad = inode();
            change(&mut bad);
            let found = Inode::decode(&bad.encode(), &layout()).unwrap_err();
            assert!(found.contains(what), "{what}: {found}");
        }
        let good = inode().encode();
        for length in 0..good.len() {
            assert!(Inode::decode(&good[..length], &layout()).is_err());
        }
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                let _ = Inode::decode(&bad, &layout());
            }
        }
        assert!(Inode::decode(&[good, vec![0]].concat(), &layout()).unwrap_err().contains("too long"));
    }
}
