//! Which files are open, and under which keys.

use std::collections::{BTreeMap, BTreeSet};

use store::VolumeId;
use tpt::{Key, LbaRange};
use wire::files::FileAttributes;

use crate::control::SessionId;

/// What a session's key of a file stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::control) struct FileHeld {
    /// The file's number in its file system.
    pub(in crate::control) number: u64,
    /// What tables and engines know it by.
    pub(in crate::control) context: u32,
}

/// A file that is open.
pub(in crate::control) struct OpenFile {
    pub(in crate::control) context: u32,
    /// On the device, in the order of the file.
    pub(in crate::control) extents: Vec<LbaRange>,
    /// As the file system said last; the length is the engines' matter.
    pub(in crate::control) attributes: FileAttributes,
    pub(in crate::control) keys: BTreeSet<(SessionId, Key)>,
    /// How often the file system counts it as open.
    pub(in crate::control) opens: u32,
}

/// All files that are open, of whatever volume. One stays here until the file system has heard that it is closed.
pub(in crate::control) struct OpenFiles {
    files: BTreeMap<(VolumeId, u64), OpenFile>,
    /// Contexts that are not in use.
    free: Vec<u32>,
}

impl OpenFiles {
    /// At most `most` at a time.
    pub(in crate::control) fn new(most: u32) -> Self {
        Self { files: BTreeMap::new(), free: (0..most).rev().collect() }
    }

    pub(in crate::control) fn find(&self, volume: VolumeId, number: u64) -> Option<&OpenFile> {
        self.files.get(&(volume, number))
    }

    pub(in crate::control) fn find_mut(&mut self, volume: VolumeId, number: u64) -> Option<&mut OpenFile> {
        self.files.get_mut(&(volume, number))
    }

    /// A file that somebody's key stands for.
    pub(in crate::control) fn get(&self, volume: VolumeId, number: u64) -> &OpenFile {
        self.find(volume, number).expect("a file is open as long as there is a key of it")
    }

    /// The file system has said this of a file, which may be open.
    pub(in crate::control) fn learn(&mut self, volume: VolumeId, attributes: FileAttributes) {
        if let Some(file) = self.find_mut(volume, attributes.number) {
            file.attributes = attributes;
        }
    }

    /// How many are open.
    #[cfg(test)]
    pub(in crate::control) fn len(&self) -> usize {
        self.files.len()
    }

    /// The context of the one file of that number.
    #[cfg(test)]
    pub(in crate::control) fn of_number(&self, number: u64) -> u32 {
        let mut of_it = self.files.iter().filter(|((_, its), _)| *its == number);
        of_it.next().expect("it is open").1.context
    }

    /// The file is open from now on; it was not. `None` if too many are.
    pub(in crate::control) fn add(
        &mut self,
        volume: VolumeId,
        number: u64,
        attributes: FileAttributes,
        extents: Vec<LbaRange>,
    ) -> Option<&mut OpenFile> {
        let context = self.free.pop()?;
        let file = OpenFile { context, extents, attributes, keys: BTreeSet::new(), opens: 0 };
        let entry = self.files.entry((volume, number));
        assert!(matches!(entry, std::collections::btree_map::Entry::Vacant(_)), "it is open once");
        Some(entry.or_insert(file))
    }

    /// The file system has closed it, and nobody has a key.
    pub(in crate::control) fn remove(&mut self, volume: VolumeId, number: u64) {
        if let Some(file) = self.files.remove(&(volume, number)) {
            assert!(file.keys.is_empty(), "a file with keys is open");
            self.free.push(file.context);
        }
    }

    /// The files of a volume that are open, by their numbers.
    pub(in crate::control) fn of_volume(&self, volume: VolumeId) -> impl Iterator<Item = (u64, &OpenFile)> {
        self.files.range((volume, 0)..=(volume, u64::MAX)).map(|((_, number), file)| (*number, file))
    }

    /// Nobody holds the key any more. Whether it was the file's last.
    pub(in crate::control) fn forget_key(
        &mut self,
        volume: VolumeId,
        number: u64,
        session: SessionId,
        key: Key,
    ) -> bool {
        self.find_mut(volume, number).is_some_and(|file| {
            file.keys.remove(&(session, key));
            file.keys.is_empty()
        })
    }
}
