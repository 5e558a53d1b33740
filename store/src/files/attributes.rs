//! Attributes of files and directories, users' quotas, and how full the file system is.

use super::error::FileError;
use super::inode::{Attributes, Inode, InodeNumber, Timestamp};
use super::metadata::User;
use super::{FileSystem, MAX_ACL, PAGE_BYTES, only_root};
use crate::permission::{Acl, Credentials};

/// What is to be changed of a file or directory; what is `None` stays.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// The twelve bits of the mode. With an access list the bits of the group set its mask.
    pub mode: Option<u16>,
    /// The owner.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
    /// The access list; `Some(None)` removes it. It sets the mode's nine bits too.
    pub acl: Option<Option<Acl>>,
    /// When the content changed.
    pub modified: Option<Timestamp>,
}

/// What a user has and may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Quota {
    /// Bytes of the blocks of all its files.
    pub bytes: u64,
    /// Its files and directories.
    pub inodes: u64,
    /// The most bytes.
    pub byte_limit: Option<u64>,
    /// The most files and directories.
    pub inode_limit: Option<u64>,
}

/// How full a file system is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Bytes that files can have together.
    pub bytes: u64,
    /// Of these, bytes that no file has. Those that wait for a sync are among them.
    pub free: u64,
    /// Of these, bytes that are zeroed already.
    pub zeroed: u64,
    /// Files and directories.
    pub inodes: u64,
    /// Bytes of metadata that there can be.
    pub metadata: u64,
    /// Bytes of metadata that there are: of what is known of files and their names, without what keeps it in order.
    pub metadata_used: u64,
}

impl FileSystem {
    /// What is known of a file or directory.
    pub fn attributes(&mut self, inode: InodeNumber) -> Result<Attributes, FileError> {
        Ok(self.any(inode)?.attributes(inode, &self.superblock.layout))
    }

    /// Changes attributes, all of them or none. The owner may do that, and the superuser; only the superuser gives a
    /// file to another owner.
    pub fn set_attributes(
        &mut self,
        who: &Credentials<'_>,
        inode: InodeNumber,
        changes: &Changes,
    ) -> Result<Attributes, FileError> {
        self.begin_adding()?;
        let old = self.any(inode)?;
        let mut new = old.clone();
        if !who.owns(old.permissions.uid) && *changes != Changes::default() {
            let what = "change the attributes of the file";
            return Err(FileError::NotPermitted { uid: who.uid, what, whom: "its owner or the superuser" });
        }
        self.give(who, &mut new, changes)?;
        if let Some(mode) = changes.mode {
            new.permissions.mode = new.permissions.changed_mode(who, mode);
            new.permissions.acl = new.permissions.acl.map(|acl| acl.with_mode(mode));
        }
        if let Some(acl) = &changes.acl {
            set_acl(who, &mut new, acl.as_ref())?;
        }
        new.modified = changes.modified.unwrap_or(new.modified);
        if new != old {
            new.changed = self.now();
            self.metadata.put_inode(inode.0, &new)?;
            self.move_usage(&old, &new)?;
        }
        Ok(new.attributes(inode, &self.superblock.layout))
    }

    /// Another owner or group.
    fn give(&mut self, who: &Credentials<'_>, inode: &mut Inode, changes: &Changes) -> Result<(), FileError> {
        let (uid, gid) = (inode.permissions.uid, inode.permissions.gid);
        let (new_uid, new_gid) = (changes.uid.unwrap_or(uid), changes.gid.unwrap_or(gid));
        if (new_uid, new_gid) == (uid, gid) {
            return Ok(());
        }
        if !inode.permissions.may_give(who, new_uid, new_gid) {
            let (what, whom) = if new_uid == uid {
                ("give the file to that group", "the superuser, or its owner if in that group,")
            } else {
                ("give the file to another owner", "the superuser")
            };
            return Err(FileError::NotPermitted { uid: who.uid, what, whom });
        }
        if new_uid != uid {
            let user = self.metadata.user(new_uid)?;
            self.check_quota(new_uid, &user, inode.units, 1)?;
        }
        inode.permissions.mode = inode.permissions.disarmed();
        (inode.permissions.uid, inode.permissions.gid) = (new_uid, new_gid);
        Ok(())
    }

    fn move_usage(&mut self, old: &Inode, new: &Inode) -> Result<(), FileError> {
        if old.permissions.uid != new.permissions.uid {
            let units = i128::from(old.units);
            self.account(old.permissions.uid, -units, -1)?;
            self.account(new.permissions.uid, units, 1)?;
        }
        Ok(())
    }

    /// Says how much a user may have, in bytes of blocks and in files and directories. What it has already, it keeps.
    pub fn set_quota(
        &mut self,
        who: &Credentials<'_>,
        uid: u32,
        bytes: Option<u64>,
        inodes: Option<u64>,
    ) -> Result<Quota, FileError> {
        only_root(who, "set a quota")?;
        self.begin_adding()?;
        let unit = self.allocation_unit();
        if bytes == Some(0) || inodes == Some(0) {
            return Err(FileError::Size { bytes: 0, why: "a quota of nothing; close the directory instead" });
        }
        let mut user = self.metadata.user(uid)?;
        user.unit_limit = bytes.map_or(0, |bytes| bytes.div_ceil(unit));
        user.inode_limit = inodes.unwrap_or(0);
        self.metadata.put_user(uid, user)?;
        Ok(self.shown_quota(user))
    }

    /// What a user has and may have; each asks for itself, the superuser for everybody.
    pub fn quota(&mut self, who: &Credentials<'_>, uid: u32) -> Result<Quota, FileError> {
        if who.uid != uid {
            only_root(who, "look at another's quota")?;
        }
        let user = self.metadata.user(uid)?;
        Ok(self.shown_quota(user))
    }

    /// At most `limit` users after `after` who have something or a limit.
    pub fn quotas(
        &mut self,
        who: &Credentials<'_>,
        after: Option<u32>,
        limit: usize,
    ) -> Result<Vec<(u32, Quota)>, FileError> {
        only_root(who, "look at others' quotas")?;
        let users = self.metadata.users(after, limit.min(super::MAX_LINKS_LISTED))?;
        Ok(users.into_iter().map(|(uid, user)| (uid, self.shown_quota(user))).collect())
    }

    fn shown_quota(&self, user: User) -> Quota {
        let bytes = |units: u64| units.saturating_mul(self.allocation_unit());
        let limit = |limit: u64| (limit > 0).then_some(limit);
        Quota {
            bytes: bytes(user.units),
            inodes: user.inodes,
            byte_limit: limit(user.unit_limit).map(bytes),
            inode_limit: limit(user.inode_limit),
        }
    }

    /// How full it is.
    pub fn usage(&self) -> Usage {
        let layout = &self.superblock.layout;
        let bytes = |units: u64| units << layout.unit_shift;
        Usage {
            bytes: bytes(layout.units),
            free: bytes(self.pool.free() + self.pool.waiting()),
            zeroed: bytes(self.pool.clean()),
            inodes: self.metadata.counters.inodes,
            metadata: self.metadata.most_weight(),
            metadata_used: self.metadata.counters.weight,
        }
    }

    /// Whether a user may have so much more.
    pub(super) fn check_quota(
        &self,
        uid: u32,
        user: &User,
        units: u64,
        inodes: u64,
    ) -> Result<(), FileError> {
        let unit = self.allocation_unit();
        let over =
            |have: u64, more: u64, limit: u64| limit > 0 && more > 0 && have.saturating_add(more) > limit;
        if over(user.units, units, user.unit_limit) {
            let bytes = |units: u64| units.saturating_mul(unit);
            let (limit, needed) = (bytes(user.unit_limit), bytes(user.units.saturating_add(units)));
            return Err(FileError::Quota { uid, what: "bytes", limit, needed });
        }
        if over(user.inodes, inodes, user.inode_limit) {
            let needed = user.inodes.saturating_add(inodes);
            let what = "files and directories";
            return Err(FileError::Quota { uid, what, limit: user.inode_limit, needed });
        }
        Ok(())
    }

    /// A user has so much more, or less, than before.
    pub(super) fn account(&mut self, uid: u32, units: i128, inodes: i128) -> Result<(), FileError> {
        if units == 0 && inodes == 0 {
            return Ok(());
        }
        let mut user = self.metadata.user(uid)?;
        // On a damaged disk the sum may be wrong; the check says so.
        let sum = |have: u64, more: i128| u64::try_from((i128::from(have) + more).max(0)).unwrap_or(u64::MAX);
        user.units = sum(user.units, units);
        user.inodes = sum(user.inodes, inodes);
        Ok(self.metadata.put_user(uid, user)?)
    }

    pub(super) fn metadata_full(&self) -> FileError {
        FileError::MetadataFull { bytes: u64::from(self.superblock.layout.pages) * PAGE_BYTES }
    }

    fn any(&mut self, inode: InodeNumber) -> Result<Inode, FileError> {
        self.metadata.inode(inode.0)?.ok_or(FileError::NotOpen(inode))
    }
}

fn set_acl(who: &Credentials<'_>, inode: &mut Inode, acl: Option<&Acl>) -> Result<(), FileError> {
    let permissions = &mut inode.permissions;
    let Some(acl) = acl else {
        // What the mode says stays: the bits of the group are those of the list's entry then.
        if let Some(old) = permissions.acl.take() {
            let group = old.get(crate::permission::Party::OwningGroup).unwrap_or_default().bits();
            permissions.mode = permissions.mode & !0o070 | u16::from(group) << 3;
        }
        return Ok(());
    };
    if acl.entries().len() > MAX_ACL {
        return Err(FileError::AclSize(acl.entries().len()));
    }
    let mode = permissions.mode & 0o7000 | acl.mode();
    permissions.mode = permissions.changed_mode(who, mode);
    permissions.acl = Some(acl.clone()).filter(|acl| !acl.is_trivial());
    Ok(())
}
