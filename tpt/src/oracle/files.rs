//! Opened files in the model, and what is done to them in step.

use alloc::vec;
use alloc::vec::Vec;

use super::harness::{Harness, POLLERS, SHIFT, newest};
use super::model::{Model, ModelEntry, ModelFile, each_block};
use crate::{
    Access, Blocks, Denied, Domain, ExtensionAttributes, ExtensionKey, ExtensionNumber, FileAttributes,
    FileModification, FileSpec, Key, KeyInstance, LbaRange, OpenFile, Operation, Purpose, TableError, Touch,
};

impl ModelEntry {
    /// The blocks of the extension that a key names. A grant has none.
    pub(super) fn extension(&self, key: ExtensionKey) -> Result<LbaRange, Denied> {
        let number = key.index().0 as usize;
        let lives = self.file.as_ref().map_or(&[][..], |file| &file.lives);
        let range = self.ranges.get(number).filter(|_| self.file.is_some()).ok_or(Denied::KeyRange)?;
        if lives[number] == key.instance().0 { Ok(*range) } else { Err(Denied::KeyInstance) }
    }

    fn extension_keys(&self) -> Vec<ExtensionKey> {
        let lives = self.file.as_ref().map_or(&[][..], |file| &file.lives);
        let key =
            |(number, life): (u32, &u32)| ExtensionKey::new(ExtensionNumber(number), KeyInstance(*life));
        (0..).zip(lives).map(key).take(self.ranges.len()).collect()
    }

    /// What a query of a file must say beside what it says of a grant.
    pub(super) fn file_attributes(&self) -> Option<FileAttributes> {
        let file = self.file.as_ref()?;
        let mut extensions = Vec::new();
        let mut offset = 0;
        for (key, range) in self.extension_keys().into_iter().zip(&self.ranges) {
            let bytes = range.count.0 << self.shift;
            extensions.push(ExtensionAttributes { key, offset, bytes });
            offset += bytes;
        }
        Some(FileAttributes { context: file.context, extensions })
    }
}

impl Model {
    /// Which entries of the FEPT are in somebody's segment.
    fn taken(&self) -> Vec<bool> {
        let mut taken = vec![false; self.limits.extensions as usize];
        let segments = self.entries.values().filter_map(|entry| entry.file.as_ref()?.segment);
        for (first, size) in segments {
            taken[first..first + size].fill(true);
        }
        taken
    }

    pub(super) fn extensions(&self) -> usize {
        self.taken().into_iter().filter(|taken| *taken).count()
    }

    /// The segment of a file with so many extensions: the one that it has, or that and what is behind it, or the lowest one
    /// that is free.
    fn segment(
        &self,
        old: Option<(usize, usize)>,
        extensions: usize,
    ) -> Result<Option<(usize, usize)>, TableError> {
        let size = extensions.next_power_of_two();
        let taken = self.taken();
        match old {
            Some((_, had)) if extensions <= had => return Ok(old),
            None if extensions == 0 => return Ok(None),
            Some((first, had)) if first % size == 0 => {
                let behind = taken.get(first + had..first + size);
                if behind.is_some_and(|behind| !behind.contains(&true)) {
                    return Ok(Some((first, size)));
                }
            }
            _ => {}
        }
        let free = taken.chunks_exact(size).position(|run| !run.contains(&true));
        free.map(|run| Some((run * size, size))).ok_or(TableError::NoResources)
    }

    /// The instances of the next lives of some numbers of a file, if they have one.
    fn next_lives(&self, entry: &ModelEntry, from: usize, to: usize) -> Result<Vec<u32>, TableError> {
        let lives = entry.file.as_ref().map_or(&[][..], |file| &file.lives);
        let next = |number: usize| lives.get(number).map_or(entry.key.instance().0.max(1), |life| life + 1);
        let next: Vec<u32> = (from..to).map(next).collect();
        if next.iter().any(|life| *life > self.last_instance) {
            Err(TableError::NoResources)
        } else {
            Ok(next)
        }
    }

    pub(super) fn create_file(&mut self, spec: &FileSpec<'_>) -> Result<(), TableError> {
        if !Self::sane(spec.extents) {
            return Err(TableError::Parameter);
        }
        if self.overlaps(spec.domain, spec.shared, true, spec.extents) {
            return Err(TableError::Overlap);
        }
        if !self.has_room(spec.domain, spec.extents.len()) {
            return Err(TableError::NoResources);
        }
        self.segment(None, spec.extents.len()).map(|_| ())
    }

    pub(super) fn file_created(&mut self, spec: &FileSpec<'_>, key: Key) {
        self.begun(spec.domain, key);
        let lives = vec![key.instance().0.max(1); spec.extents.len()];
        let segment = self.segment(None, spec.extents.len()).unwrap_or(None);
        let entry = ModelEntry {
            key,
            domain: spec.domain,
            access: spec.access,
            shift: spec.block_shift,
            shared: spec.shared,
            ranges: spec.extents.to_vec(),
            file: Some(ModelFile { context: spec.context, lives, segment }),
            quiescing: None,
        };
        self.entries.insert(key.index().0, entry);
    }

    fn extend_file(
        &mut self,
        caller: Option<Domain>,
        key: Key,
        extents: &[LbaRange],
    ) -> Result<Vec<ExtensionKey>, TableError> {
        let entry = self.find(caller, key)?.clone();
        match entry.quiescing {
            None => {}
            Some((Purpose::Revoke, _)) => return Err(TableError::EntryInvalid),
            Some(_) => return Err(TableError::Busy),
        }
        let file = entry.file.as_ref().ok_or(TableError::Kind)?;
        let all = [&entry.ranges, extents].concat();
        if extents.is_empty() || !Self::sane(&all) {
            return Err(TableError::Parameter);
        }
        if self.overlaps(entry.domain, entry.shared, true, extents) {
            return Err(TableError::Overlap);
        }
        if entry.ranges.is_empty() || all.len() > file.segment.map_or(0, |(_, size)| size) {
            return Err(TableError::SegmentFull);
        }
        self.become_file(&entry, entry.access, entry.ranges.len(), all)
    }

    fn finish_modify_file(
        &mut self,
        key: Key,
        token: u64,
        change: &FileModification<'_>,
    ) -> Result<Vec<ExtensionKey>, TableError> {
        let entry = self.ends(key, token).ok_or(TableError::EntryInvalid)?.clone();
        if entry.file.is_none() {
            return Err(TableError::Kind);
        }
        let blocks = each_block(&entry.ranges).len() as u64;
        let keep = change.keep.map_or(blocks, |keep| keep.0);
        if keep > blocks || change.append.iter().any(|range| range.count.0 == 0) {
            return Err(TableError::Parameter);
        }
        // One block after the other from the end.
        let mut ranges = entry.ranges.clone();
        for _ in keep..blocks {
            let left = ranges.last_mut().map_or(0, |last| {
                last.count.0 -= 1;
                last.count.0
            });
            if left == 0 {
                ranges.pop();
            }
        }
        let kept = ranges.len();
        for range in change.append {
            match ranges.last_mut() {
                Some(last) if last.first.0 + last.count.0 == range.first.0 => last.count.0 += range.count.0,
                _ => ranges.push(*range),
            }
        }
        if !Self::sane(&ranges) {
            return Err(TableError::Parameter);
        }
        if self.overlaps(entry.domain, entry.shared, true, change.append) {
            return Err(TableError::Overlap);
        }
        self.become_file(&entry, change.access.unwrap_or(entry.access), kept, ranges)
    }

    /// The file with these extensions, of which those from `kept` on are new, if there is room for them. Their keys.
    fn become_file(
        &mut self,
        entry: &ModelEntry,
        access: Access,
        kept: usize,
        ranges: Vec<LbaRange>,
    ) -> Result<Vec<ExtensionKey>, TableError> {
        let Some(mut file) = entry.file.clone() else { return Err(TableError::Kind) };
        let others = self.lba_entries() - entry.ranges.len();
        if others + ranges.len() > self.limits.lba_entries as usize {
            return Err(TableError::NoResources);
        }
        let lives = self.next_lives(entry, kept, ranges.len())?;
        file.segment = self.segment(file.segment, ranges.len())?;
        let longest = file.lives.len().max(ranges.len());
        file.lives.resize(longest, 0);
        file.lives[kept..kept + lives.len()].copy_from_slice(&lives);
        let changed = ModelEntry { access, ranges, file: Some(file), quiescing: None, ..entry.clone() };
        let keys = changed.extension_keys().split_off(kept);
        self.entries.insert(entry.key.index().0, changed);
        Ok(keys)
    }

    fn look_at_file(&self, domain: Domain, key: Key, operation: Operation) -> Result<OpenFile, Denied> {
        let entry = self.admit(domain, key)?;
        let file = entry.file.as_ref().ok_or(Denied::EntryInvalid)?;
        if !Self::allows(entry.access, operation) {
            return Err(Denied::Access);
        }
        let bytes = (each_block(&entry.ranges).len() as u64) << entry.shift;
        Ok(OpenFile { context: file.context, bytes, block_shift: entry.shift })
    }
}

impl Harness {
    pub(super) fn create_file(
        &mut self,
        domain: Domain,
        access: Access,
        shared: bool,
        extents: &[LbaRange],
    ) -> bool {
        let context = u32::try_from(self.keys.len()).unwrap_or(0).wrapping_mul(0x9e37_79b9);
        let spec = FileSpec { domain, access, block_shift: SHIFT, extents, shared, context };
        let expected = self.model.create_file(&spec);
        let answer = self.tables.create_file(&spec);
        assert_eq!(answer.as_ref().map(|_| ()).map_err(|error| *error), expected, "{spec:?}");
        let Ok(keys) = answer else { return false };
        assert!(!self.keys.contains(&keys.file), "{} was handed out before", keys.file);
        self.model.file_created(&spec, keys.file);
        let entry = &self.model.entries[&keys.file.index().0];
        assert_eq!(keys.extensions, entry.extension_keys());
        self.note_extensions(keys.file, &keys.extensions);
        self.keys.push(keys.file);
        true
    }

    /// S5-R9, S6-R11: no key of an extension is handed out twice for the same index.
    fn note_extensions(&mut self, file: Key, keys: &[ExtensionKey]) {
        for key in keys {
            assert_ne!(*key, ExtensionKey::NONE, "no key means none");
            let both = (file.index(), *key);
            assert!(!self.extension_keys.contains(&both), "{key} of {file} was handed out before");
            self.extension_keys.push(both);
        }
    }

    pub(super) fn extend_file(&mut self, caller: Option<Domain>, key: Key, extents: &[LbaRange]) -> bool {
        let expected = self.model.extend_file(caller, key, extents);
        let answer = self.tables.extend_file(caller, key, extents);
        assert_eq!(answer, expected, "{key} {extents:?}");
        if let Ok(keys) = &answer {
            self.note_extensions(key, keys);
        }
        answer.is_ok()
    }

    pub(super) fn finish_file(&mut self, back: u8, change: &FileModification<'_>) -> bool {
        let Some(place) = newest(self.tokens.len(), back) else { return false };
        let (token, number) = &self.tokens[place];
        let (key, number, purpose) = (token.key(), *number, token.purpose());
        if purpose != Purpose::Modify || !(0..POLLERS).all(|poller| self.entry_is_idle(poller, key.index().0))
        {
            return false; // for [`Harness::finish`], or no quiescent point
        }
        let (token, _) = self.tokens.remove(place);
        let expected = self.model.finish_modify_file(key, number, change);
        match self.tables.finish_modify_file(token, change) {
            Ok(keys) => {
                assert_eq!(Ok(&keys), expected.as_ref(), "{key} {change:?}");
                self.note_extensions(key, &keys);
                true
            }
            Err((token, error)) => {
                assert_eq!(Err(error), expected, "{key} {change:?}");
                self.tokens.push((token, number));
                false
            }
        }
    }

    pub(super) fn look_at_file(&mut self, poller: usize, domain: Domain, key: Key, operation: Operation) {
        let expected = self.model.look_at_file(domain, key, operation);
        let answer = self.pollers[poller].file(domain, key, operation);
        if answer == Err(Denied::Segment) {
            assert!(self.fetches_fail() && !matches!(expected, Err(Denied::KeyRange | Denied::Domain)));
        } else {
            assert_eq!(answer, expected, "{operation:?} of {key} by {domain}");
        }
    }

    /// S5-R16: of extensions only those of the file were looked at, and its own entry before them.
    pub(super) fn compare_trace(&self, poller: usize, key: Key) {
        let trace = self.pollers[poller].take_trace();
        let entry = self.model.entries.get(&key.index().0);
        let segment = entry.and_then(|entry| entry.file.as_ref()?.segment);
        let mut named = false;
        for touch in trace {
            match touch {
                Touch::Entry(index) => {
                    assert_eq!(index, key.index());
                    named = true;
                }
                Touch::Extension(position) => {
                    let its = segment.map_or(0..0, |(first, size)| first..first + size);
                    assert!(named && its.contains(&(position as usize)), "{key} led to {position}");
                }
            }
        }
    }

    /// How many blocks of a file are to stay.
    pub(super) fn kept(keep: Option<u8>) -> Option<Blocks> {
        keep.map(|blocks| Blocks(u64::from(blocks % 32)))
    }
}
