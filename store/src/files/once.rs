//! Changes that are made once, also if they are asked for again: in the same life of the adapter, or in the next one. What was
//! granted is kept in the transaction of the change, so a power cut leaves both or neither.

use super::error::{FileError, shown};
use super::names::how_named;
use super::{FileSystem, How, Opened};
use crate::ledger::{Granted, Wish};
use crate::permission::Credentials;

/// [`Wish::note`] of who made the file that it opened.
const MADE: u32 = 1;

impl FileSystem {
    /// What this user was granted by that name.
    pub fn granted(&self, user: u32, id: &[u8; 16]) -> Option<Granted> {
        self.ledger.find(user, id).copied()
    }

    /// Keeps that the last change was wanted so, and which file it was about. Nothing may have come between.
    pub fn grant(&mut self, wish: Wish, subject: u64) -> Result<(), FileError> {
        self.metadata.healthy()?;
        let granted = Granted { wish, subject };
        let (number, row, gone) = self.ledger.plan(&granted);
        self.metadata.put_granted(number, &row, &gone)?;
        self.ledger.add(granted);
        Ok(())
    }

    /// [`FileSystem::open_file`], which makes and empties the file once.
    pub fn open_once(
        &mut self,
        who: &Credentials<'_>,
        path: &[u8],
        how: How,
        wish: Wish,
    ) -> Result<Opened, FileError> {
        if let Some(granted) = self.granted(wish.user, &wish.id) {
            return self.open_again(who, path, how, &granted);
        }
        let opened = self.open_file(who, path, how)?;
        // What is still to be emptied is granted by whoever carries that out.
        if opened.created || how.truncate && opened.truncation.is_none() {
            let note = if opened.created { MADE } else { 0 };
            self.grant(Wish { note, ..wish }, opened.inode.0)?;
        }
        Ok(opened)
    }

    /// Opens what was opened before by the same wish, and is as it was left.
    fn open_again(
        &mut self,
        who: &Credentials<'_>,
        path: &[u8],
        how: How,
        granted: &Granted,
    ) -> Result<Opened, FileError> {
        let wanted = how.rights()?;
        self.begin()?;
        let node = match self.node(who, path) {
            Ok(node) if node.number == granted.subject && !node.inode.is_directory() => node,
            Ok(_) | Err(FileError::NotFound { .. }) => {
                return Err(FileError::GoneSince { path: shown(path) });
            }
            Err(other) => return Err(other),
        };
        // Whoever made it may use it as asked, whatever its mode says.
        if granted.wish.note != MADE && !node.inode.permissions.allows(who, wanted) {
            return Err(FileError::Denied { uid: who.uid, what: how_named(wanted), path: shown(path) });
        }
        self.opened(node, how.write, false, who)
    }
}
