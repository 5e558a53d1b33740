//! From a path to an inode, as the kernel goes (path_resolution(7)).

use std::ops::ControlFlow;

use driver::disk::Disk;

use super::error::{damaged, escaped};
use super::inode::{Inode, flags};
use super::{Ext4, Ext4Error, Kind, MAX_LINKS, MAX_NAME, MAX_PATH, MAX_STEPS, ROOT};
use crate::permission::{Credentials, Permissions, Rights};

/// What was found at the end of a path.
pub(super) struct Found {
    pub(super) inode: Inode,
    /// The way to it, for a person.
    pub(super) path: String,
}

/// What is still to be walked, and what was.
struct Walk {
    /// Names to go, the next one last. An empty one stands for a slash at the end: what is before it is a directory.
    names: Vec<Vec<u8>>,
    /// From the root to where we are; the last may be no directory.
    trail: Vec<(Vec<u8>, Inode)>,
    links: usize,
    steps: usize,
}

impl Walk {
    /// Puts a path before what is still to be walked.
    fn prepend(&mut self, path: &[u8]) {
        if path.ends_with(b"/") {
            self.names.push(Vec::new());
        }
        self.names.extend(
            path.split(|byte| *byte == b'/').rev().filter(|name| !name.is_empty()).map(<[u8]>::to_vec),
        );
    }

    /// Where we are, and `name` in it.
    fn path(&self, name: &[u8]) -> String {
        let mut path: Vec<u8> = Vec::new();
        for part in self.trail.iter().skip(1).map(|(name, _)| &name[..]).chain(Some(name)) {
            path.push(b'/');
            path.extend_from_slice(part);
        }
        let start = if path.len() > 1 && path.ends_with(b"/") { path.len() - 1 } else { path.len() };
        path.truncate(start);
        escaped(&path)
    }
}

impl Ext4 {
    /// Follows `path` from the root; a symbolic link at its end is followed if `follow`. `who` needs search permission on
    /// every directory on the way.
    pub(super) fn walk(
        &mut self,
        disk: &mut dyn Disk,
        path: &[u8],
        who: &Credentials<'_>,
        follow: bool,
    ) -> Result<Found, Ext4Error> {
        if path.len() >= MAX_PATH {
            return Err(Ext4Error::TooLong {
                what: format!("it has {} bytes, at most {} will do", path.len(), MAX_PATH - 1),
            });
        }
        let root = self.inode(disk, ROOT)?;
        if root.kind != Kind::Directory {
            return Err(damaged(root.place(), format!("the root is {}", root.kind.name())));
        }
        let mut walk = Walk { names: Vec::new(), trail: vec![(Vec::new(), root)], links: 0, steps: 0 };
        if path.is_empty() {
            return Err(Ext4Error::NotFound { path: String::new() });
        }
        walk.prepend(path);
        while let Some(name) = walk.names.pop() {
            self.step(disk, &mut walk, name, who, follow)?;
        }
        let here = walk.path(b"");
        match walk.trail.pop() {
            Some((_, inode)) => Ok(Found { inode, path: here }),
            None => Err(Ext4Error::NotFound { path: here }),
        }
    }

    /// One name further.
    fn step(
        &mut self,
        disk: &mut dyn Disk,
        walk: &mut Walk,
        name: Vec<u8>,
        who: &Credentials<'_>,
        follow: bool,
    ) -> Result<(), Ext4Error> {
        walk.steps += 1;
        if walk.steps > MAX_STEPS {
            return Err(Ext4Error::TooLong {
                what: format!("with its symbolic links it has over {MAX_STEPS} names"),
            });
        }
        let Some((_, directory)) = walk.trail.last() else {
            return Err(Ext4Error::NotFound { path: walk.path(&name) });
        };
        if directory.kind != Kind::Directory {
            return Err(Ext4Error::NotADirectory { path: walk.path(b"") });
        }
        if name.is_empty() {
            return Ok(());
        }
        let directory = directory.clone();
        let permissions = self.permissions(disk, &directory)?;
        if !permissions.allows(who, Rights::SEARCH) {
            return Err(denied(who, "search", walk.path(b""), &permissions));
        }
        match &name[..] {
            b"." => return Ok(()),
            b".." => {
                if walk.trail.len() > 1 {
                    walk.trail.pop();
                }
                return Ok(());
            }
            _ => {}
        }
        if name.len() > MAX_NAME {
            return Err(Ext4Error::TooLong {
                what: format!("a name has {} bytes, at most {MAX_NAME} will do", name.len()),
            });
        }
        let Some(number) = self.find(disk, &directory, &name)? else {
            return Err(Ext4Error::NotFound { path: walk.path(&name) });
        };
        let inode = self.inode(disk, number)?;
        if inode.kind != Kind::Link || walk.names.is_empty() && !follow {
            walk.trail.push((name, inode));
            return Ok(());
        }
        walk.links += 1;
        if walk.links > MAX_LINKS {
            return Err(Ext4Error::TooManyLinks { path: walk.path(&name) });
        }
        let target = self.target(disk, &inode)?;
        if target.starts_with(b"/") {
            return Err(Ext4Error::AbsoluteLink { path: walk.path(&name), target: escaped(&target) });
        }
        walk.prepend(&target);
        Ok(())
    }

    /// The inode that `name` is in a directory.
    fn find(
        &mut self,
        disk: &mut dyn Disk,
        directory: &Inode,
        name: &[u8],
    ) -> Result<Option<u32>, Ext4Error> {
        check_served(directory)?;
        let mut found = None;
        self.scan(disk, directory, 0, &mut |entry| {
            if entry.name != name {
                return ControlFlow::Continue(());
            }
            found = Some(entry.inode);
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    /// Where a symbolic link leads ("The Contents of inode.i_block", "Symbolic Links").
    pub(super) fn target(&mut self, disk: &mut dyn Disk, link: &Inode) -> Result<Vec<u8>, Ext4Error> {
        check_served(link)?;
        let place = link.place();
        let wrong =
            || damaged(place, format!("it is a symbolic link with a target of {} bytes", link.length));
        let length = usize::try_from(link.length).map_err(|_| wrong())?;
        let target = if link.has(flags::EXTENTS) {
            let mapping = self.mapping(disk, link)?;
            let first = mapping.extents.first().filter(|extent| extent.logical == 0 && extent.written);
            let block = first.ok_or_else(wrong)?.physical;
            self.touch(super::extents::owner_of(link), block, 1)?;
            self.block(disk, block)?.get(..length).map(<[u8]>::to_vec)
        } else {
            link.body.get(..length).map(<[u8]>::to_vec)
        };
        target.filter(|target| !target.is_empty() && !target.contains(&0)).ok_or_else(wrong)
    }
}

/// Refuses an inode whose content is not where we look for it, or not to be had in clear.
pub(super) fn check_served(inode: &Inode) -> Result<(), Ext4Error> {
    let what = if inode.has(flags::ENCRYPT) {
        "is encrypted, and this program has no keys: read it through the kernel".to_owned()
    } else if inode.has(flags::INLINE_DATA) {
        "has its content in the inode (inline_data), not in blocks: copy its file system to one without"
            .to_owned()
    } else if inode.has(flags::VERITY) {
        "is protected by fs-verity, whose hashes are not looked at here: read it through the kernel"
            .to_owned()
    } else if inode.has(flags::EA_INODE) {
        "is the value of an extended attribute, not a file".to_owned()
    } else {
        let known = flags::HARMLESS
            | flags::IMMUTABLE
            | flags::APPEND
            | flags::INDEX
            | flags::EXTENTS
            | flags::CASEFOLD;
        let unknown = inode.flags & !known;
        if unknown == 0 {
            return Ok(());
        }
        format!("has flags {unknown:#x}, which this program does not know")
    };
    Err(Ext4Error::Refused { inode: inode.number, what })
}

pub(super) fn denied(
    who: &Credentials<'_>,
    wanted: &'static str,
    path: String,
    permissions: &Permissions,
) -> Ext4Error {
    Ext4Error::Denied {
        uid: who.uid,
        wanted,
        path,
        mode: permissions.mode & 0o7777,
        owner: permissions.uid,
        group: permissions.gid,
        list: if permissions.acl.is_some() { ", and an access list" } else { "" },
    }
}
