//! Paths, and what can be done with names.

use super::error::{FileError, shown};
use super::extents::Opened;
use super::inode::{Attributes, Inode, InodeNumber};
use super::path;
use super::{FileSystem, MAX_LINKS_LISTED};
use crate::StoreError;
use crate::permission::{Credentials, Permissions, Rights, SET_GID, STICKY, TYPE_DIRECTORY, TYPE_FILE};

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct How {
    /// To be read.
    pub read: bool,
    /// To be written.
    pub write: bool,
    /// Make it, with these nine bits of mode, if there is none.
    pub create: Option<u16>,
    /// With `create`: fail if there is one.
    pub exclusive: bool,
    /// Empty it. Needs `write`.
    pub truncate: bool,
}

impl How {
    /// To be read.
    pub const READ: Self = Self { read: true, write: false, create: None, exclusive: false, truncate: false };
    /// To be read and written.
    pub const READ_WRITE: Self = Self { write: true, ..Self::READ };

    /// To be read and written, and made with these nine bits of mode if there is none.
    pub const fn create(mode: u16) -> Self {
        Self { create: Some(mode), ..Self::READ_WRITE }
    }

    pub(super) fn rights(self) -> Result<Rights, FileError> {
        match (self.read, self.write) {
            (_, false) if self.truncate => Err(FileError::How("emptying it needs writing")),
            _ if self.exclusive && self.create.is_none() => {
                Err(FileError::How("exclusive means something only if it is to be made"))
            }
            (true, true) => Ok(Rights::READ | Rights::WRITE),
            (true, false) => Ok(Rights::READ),
            (false, true) => Ok(Rights::WRITE),
            (false, false) => Err(FileError::How("say whether to read, to write, or both")),
        }
    }
}

/// A name in a directory, and what it names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// In the directory.
    pub name: Vec<u8>,
    /// Of what it names.
    pub attributes: Attributes,
}

/// An inode with its number.
pub(super) struct Node {
    pub(super) number: u64,
    pub(super) inode: Inode,
}

/// Where a name is, or would be.
struct Place<'a> {
    /// The directories on the way, from the root to the one that the name is in.
    chain: Vec<u64>,
    directory: Node,
    name: &'a [u8],
    /// What has the name.
    found: Option<Node>,
}

impl FileSystem {
    /// What the path names. Asks for the right to search the directories on the way.
    pub fn resolve(&mut self, who: &Credentials<'_>, path: &[u8]) -> Result<InodeNumber, FileError> {
        Ok(InodeNumber(self.node(who, path)?.number))
    }

    /// What is known of what the path names.
    pub fn stat(&mut self, who: &Credentials<'_>, path: &[u8]) -> Result<Attributes, FileError> {
        let node = self.node(who, path)?;
        Ok(node.inode.attributes(InodeNumber(node.number), &self.superblock.layout))
    }

    /// Opens a file, and makes it if it is asked for. See the module's description for what follows.
    pub fn open_file(&mut self, who: &Credentials<'_>, path: &[u8], how: How) -> Result<Opened, FileError> {
        let wanted = how.rights()?;
        self.begin()?;
        let place = self.place(who, path, "opened")?;
        match place.found {
            Some(_) if how.exclusive => Err(FileError::Exists { path: shown(path) }),
            Some(node) if node.inode.is_directory() => Err(FileError::IsDirectory { path: shown(path) }),
            Some(node) => {
                if !node.inode.permissions.allows(who, wanted) {
                    return Err(denied(who, how_named(wanted), path));
                }
                self.opened(node, how.write, how.truncate, who)
            }
            None => {
                let mode = how.create.ok_or_else(|| FileError::NotFound { path: shown(path) })?;
                let node = self.make(who, &place, TYPE_FILE | mode & 0o777, path)?;
                // Whoever makes a file may use it as asked, whatever its mode says.
                let opened = self.opened(node, how.write, false, who)?;
                Ok(Opened { created: true, ..opened })
            }
        }
    }

    /// Makes a directory with these bits of mode: nine, and the sticky bit.
    pub fn make_directory(
        &mut self,
        who: &Credentials<'_>,
        path: &[u8],
        mode: u16,
    ) -> Result<Attributes, FileError> {
        self.begin()?;
        let place = self.place(who, path, "made")?;
        if place.found.is_some() {
            return Err(FileError::Exists { path: shown(path) });
        }
        let node = self.make(who, &place, TYPE_DIRECTORY | mode & (0o777 | STICKY), path)?;
        Ok(node.inode.attributes(InodeNumber(node.number), &self.superblock.layout))
    }

    /// Makes something new in the place, which is empty.
    fn make(
        &mut self,
        who: &Credentials<'_>,
        place: &Place<'_>,
        mode: u16,
        path: &[u8],
    ) -> Result<Node, FileError> {
        let parent = &place.directory.inode.permissions;
        if !parent.allows(who, Rights::WRITE | Rights::SEARCH) {
            return Err(denied(who, "make", path));
        }
        self.begin_adding()?;
        let user = self.metadata.user(who.uid)?;
        self.check_quota(who.uid, &user, 0, 1)?;
        // What is made in a directory with this bit belongs to the directory's group (inode(7)).
        let inherits = parent.mode & SET_GID != 0;
        let gid = if inherits { parent.gid } else { who.gid };
        let inherited = if inherits && mode & TYPE_DIRECTORY != 0 { SET_GID } else { 0 };
        let permissions = Permissions { mode: mode | inherited, uid: who.uid, gid, acl: None };
        let now = self.now();
        let number = self.metadata.counters.next_inode;
        let clean_since = self.metadata.counters.lost;
        let node = Node { number, inode: Inode { clean_since, ..Inode::new(permissions, now) } };
        self.metadata.counters.next_inode += 1;
        self.metadata.put_inode(number, &node.inode)?;
        self.metadata.put_name(place.directory.number, place.name, number)?;
        self.account(who.uid, 0, 1)?;
        self.touch(&place.directory)?;
        Ok(node)
    }

    /// Removes a file's name. The file goes with it, or with the last release of those that have it open.
    pub fn unlink(&mut self, who: &Credentials<'_>, path: &[u8]) -> Result<(), FileError> {
        self.begin()?;
        let place = self.place(who, path, "removed")?;
        let Place { directory, name, found: Some(node), .. } = place else {
            return Err(FileError::NotFound { path: shown(path) });
        };
        if node.inode.is_directory() {
            return Err(FileError::IsDirectory { path: shown(path) });
        }
        self.check_removal(who, &directory, &node, path)?;
        self.metadata.remove_name(directory.number, name)?;
        self.touch(&directory)?;
        self.abandon(&node)
    }

    /// Removes an empty directory.
    pub fn remove_directory(&mut self, who: &Credentials<'_>, path: &[u8]) -> Result<(), FileError> {
        self.begin()?;
        let place = self.place(who, path, "removed")?;
        let Place { directory, name, found: Some(node), .. } = place else {
            return Err(FileError::NotFound { path: shown(path) });
        };
        if !node.inode.is_directory() {
            return Err(FileError::NotDirectory { path: shown(path) });
        }
        self.check_removal(who, &directory, &node, path)?;
        self.check_empty(&node, path)?;
        self.metadata.remove_name(directory.number, name)?;
        self.touch(&directory)?;
        self.destroy(node.number, &node.inode)
    }

    /// Gives what `from` names the name `to`, which it has instead of whatever had it before (a file instead of a file,
    /// a directory instead of an empty one), unless that must not be replaced. At no moment is there neither.
    pub fn rename(
        &mut self,
        who: &Credentials<'_>,
        from: &[u8],
        to: &[u8],
        replace: bool,
    ) -> Result<(), FileError> {
        self.begin_adding()?;
        let old = self.place(who, from, "moved")?;
        let Some(node) = &old.found else {
            return Err(FileError::NotFound { path: shown(from) });
        };
        let new = self.place(who, to, "replaced")?;
        if new.found.as_ref().is_some_and(|there| there.number == node.number) {
            return Ok(());
        }
        self.check_removal(who, &old.directory, node, from)?;
        if !new.directory.inode.permissions.allows(who, Rights::WRITE | Rights::SEARCH) {
            return Err(denied(who, "make", to));
        }
        let moves = new.directory.number != old.directory.number;
        if node.inode.is_directory() {
            if new.chain.contains(&node.number) {
                return Err(FileError::Cycle { from: shown(from), to: shown(to) });
            }
            // It changes what it lies in.
            if moves && !node.inode.permissions.allows(who, Rights::WRITE) {
                return Err(denied(who, "write to", from));
            }
        }
        if let Some(there) = &new.found {
            self.check_replaced(who, node, &new, there, replace, to)?;
        }
        self.metadata.remove_name(old.directory.number, old.name)?;
        self.metadata.put_name(new.directory.number, new.name, node.number)?;
        if let Some(there) = &new.found {
            self.abandon(there)?;
        }
        self.touch(&old.directory)?;
        if moves {
            self.touch(&new.directory)?;
        }
        let changed = Inode { changed: self.now(), ..node.inode.clone() };
        Ok(self.metadata.put_inode(node.number, &changed)?)
    }

    fn check_replaced(
        &mut self,
        who: &Credentials<'_>,
        node: &Node,
        place: &Place<'_>,
        there: &Node,
        replace: bool,
        to: &[u8],
    ) -> Result<(), FileError> {
        if !replace {
            return Err(FileError::Exists { path: shown(to) });
        }
        self.check_removal(who, &place.directory, there, to)?;
        match (node.inode.is_directory(), there.inode.is_directory()) {
            (true, false) => Err(FileError::NotDirectory { path: shown(to) }),
            (false, true) => Err(FileError::IsDirectory { path: shown(to) }),
            (true, true) => self.check_empty(there, to),
            (false, false) => Ok(()),
        }
    }

    /// At most `limit` names of a directory after the name `after` (empty: from the start), in the order of their bytes.
    /// Fewer than `limit` only at the end.
    pub fn list(
        &mut self,
        who: &Credentials<'_>,
        path: &[u8],
        after: &[u8],
        limit: usize,
    ) -> Result<Vec<Listed>, FileError> {
        if limit > MAX_LINKS_LISTED {
            return Err(FileError::TooMany(limit));
        }
        let node = self.node(who, path)?;
        if !node.inode.is_directory() {
            return Err(FileError::NotDirectory { path: shown(path) });
        }
        if !node.inode.permissions.allows(who, Rights::READ) {
            return Err(denied(who, "list", path));
        }
        let mut listed = Vec::new();
        for (name, number) in self.metadata.names(node.number, after, limit)? {
            let inode = self.named(number)?.inode;
            let attributes = inode.attributes(InodeNumber(number), &self.superblock.layout);
            listed.push(Listed { name, attributes });
        }
        Ok(listed)
    }

    /// What the path names.
    pub(super) fn node(&mut self, who: &Credentials<'_>, path: &[u8]) -> Result<Node, FileError> {
        let names = path::names(path)?;
        let (_, node) = self.walk(who, &names, path)?;
        Ok(node)
    }

    /// Where the path's last name is, or would be. The root is not in any directory.
    fn place<'a>(
        &mut self,
        who: &Credentials<'_>,
        path: &'a [u8],
        what: &'static str,
    ) -> Result<Place<'a>, FileError> {
        let mut names = path::names(path)?;
        let name = names.pop().ok_or(FileError::Root { what })?;
        let (chain, directory) = self.walk(who, &names, path)?;
        self.check_search(who, &directory, path)?;
        let found = match self.metadata.name(directory.number, name)? {
            Some(number) => Some(self.named(number)?),
            None => None,
        };
        Ok(Place { chain, directory, name, found })
    }

    /// Goes from the root along `names`, which are those of `path` or the first of them.
    fn walk(
        &mut self,
        who: &Credentials<'_>,
        names: &[&[u8]],
        path: &[u8],
    ) -> Result<(Vec<u64>, Node), FileError> {
        let mut node = self.named(InodeNumber::ROOT.0)?;
        let mut chain = vec![node.number];
        for (depth, name) in names.iter().enumerate() {
            self.check_search(who, &node, path)?;
            let so_far = || shown(&names.get(..=depth).unwrap_or(names).join(&b'/'));
            let number = self.metadata.name(node.number, name)?;
            node = self.named(number.ok_or_else(|| FileError::NotFound { path: so_far() })?)?;
            chain.push(node.number);
        }
        Ok((chain, node))
    }

    /// Names can be looked up only in a directory that may be searched.
    fn check_search(&self, who: &Credentials<'_>, node: &Node, path: &[u8]) -> Result<(), FileError> {
        if !node.inode.is_directory() {
            return Err(FileError::NotDirectory { path: shown(path) });
        }
        if !node.inode.permissions.allows(who, Rights::SEARCH) {
            return Err(denied(who, "search a directory on the way to", path));
        }
        Ok(())
    }

    /// An inode that a name says exists.
    fn named(&mut self, number: u64) -> Result<Node, FileError> {
        let inode = self.metadata.inode(number)?.ok_or_else(|| StoreError::Damaged {
            what: format!("a name is for inode {number}, which does not exist"),
        })?;
        Ok(Node { number, inode })
    }

    fn check_removal(
        &self,
        who: &Credentials<'_>,
        directory: &Node,
        node: &Node,
        path: &[u8],
    ) -> Result<(), FileError> {
        if directory.inode.permissions.may_remove(who, node.inode.permissions.uid) {
            return Ok(());
        }
        Err(denied(who, "remove", path))
    }

    fn check_empty(&mut self, node: &Node, path: &[u8]) -> Result<(), FileError> {
        if self.metadata.names(node.number, b"", 1)?.is_empty() {
            return Ok(());
        }
        Err(FileError::NotEmpty { path: shown(path) })
    }

    /// A name in the directory changed.
    fn touch(&mut self, directory: &Node) -> Result<(), FileError> {
        let now = self.now();
        // As it is now: a removal may have changed it since it was looked at.
        let Some(inode) = self.metadata.inode(directory.number)? else { return Ok(()) };
        Ok(self.metadata.put_inode(directory.number, &Inode { modified: now, changed: now, ..inode })?)
    }

    /// What has lost its name goes, unless somebody has it open.
    fn abandon(&mut self, node: &Node) -> Result<(), FileError> {
        match self.open.get_mut(&node.number) {
            Some(open) => {
                open.orphan = true;
                self.metadata.put_orphan(node.number)?;
                let changed = Inode { changed: self.now(), ..node.inode.clone() };
                Ok(self.metadata.put_inode(node.number, &changed)?)
            }
            None => self.destroy(node.number, &node.inode),
        }
    }
}

fn denied(who: &Credentials<'_>, what: &'static str, path: &[u8]) -> FileError {
    FileError::Denied { uid: who.uid, what, path: shown(path) }
}

pub(super) const fn how_named(wanted: Rights) -> &'static str {
    match (wanted.contains(Rights::READ), wanted.contains(Rights::WRITE)) {
        (true, true) => "read and write",
        (false, true) => "write",
        _ => "read",
    }
}
