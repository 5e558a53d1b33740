//! Opened files on the authoritative side: create, extend, modify. Query, begin, cancel and delete are those of any entry.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::claims::Claim;
use crate::fept::Stretch;
use crate::lba_table::{Before, write_extension};
use crate::published::{FilePointer, Shape, Stage, StateWord};
use crate::segments::{FileSegment, Segments};
use crate::tables::{Holding, Quiesce, Quiescing, check_ranges};
use crate::{
    Domain, ExtensionAttributes, ExtensionKey, ExtensionNumber, FileAttributes, FileKeys, FileModification,
    FileSpec, Key, KeyInstance, LbaRange, Purpose, TableError, Tables,
};

/// What the control plane knows of an opened file beside what it knows of any entry.
#[derive(Debug)]
pub(crate) struct HeldFile {
    pub(crate) context: u32,
    /// `None` as long as it never had an extension. It does not become smaller before the file is closed: so the numbers
    /// whose lives are remembered are no more than the table has entries.
    pub(crate) segment: Option<FileSegment>,
    /// Of each number that was used, the instance of its latest life: the present one, if it is in use.
    pub(crate) lives: Vec<KeyInstance>,
    /// The end of each extension's blocks by the first of them.
    places: BTreeMap<u64, u64>,
    /// In device blocks.
    pub(crate) blocks: u64,
}

impl HeldFile {
    fn capacity(&self) -> usize {
        self.segment.map_or(0, |its| its.capacity() as usize)
    }

    /// The key of an extension that is in use.
    pub(crate) fn extension_key(&self, number: usize) -> ExtensionKey {
        let index = ExtensionNumber(u32::try_from(number).expect("a segment has no more entries than that"));
        ExtensionKey::new(index, self.lives[number])
    }

    /// The highest instance that this life of its index has handed out.
    pub(crate) fn highest(&self, key: Key) -> KeyInstance {
        self.lives.iter().copied().max().map_or(key.instance(), |its| its.max(key.instance()))
    }

    fn has_any_of(&self, range: LbaRange) -> bool {
        let before = self.places.range(..range.end().0).next_back();
        before.is_some_and(|(_, &end)| end > range.first.0)
    }
}

/// The instance of an extension number's first life in a life of its file. An index has one sequence of instances, for
/// its own key and for those of its extensions, so that no key of an extension outlives its file either. Never 0, so
/// that no extension has the key that means none.
fn first_of(key: KeyInstance) -> KeyInstance {
    key.max(KeyInstance(1))
}

fn claim_of(domain: Domain, shared: bool) -> Claim {
    if shared { Claim::Files } else { Claim::FilesOf(domain) }
}

impl<const B: u32> Tables<B> {
    /// A newly opened file of a domain, open for requests.
    ///
    /// # Errors
    /// `Parameter`, `Overlap`, `NoResources` or `Ceiling`; nothing is left allocated then.
    pub fn create_file(&mut self, spec: &FileSpec<'_>) -> Result<FileKeys, TableError> {
        let FileSpec { domain, access, block_shift, extents, shared, context } = *spec;
        check_ranges(extents, block_shift)?;
        let candidate = self.candidate(domain, extents, claim_of(domain, shared))?;
        let first = first_of(candidate.instance);
        self.instances.allow(first)?;
        let segment = match extents.len() {
            0 => None,
            some => {
                let order = Segments::order_of(some).ok_or(TableError::NoResources)?;
                Some(self.segments.take(order).ok_or(TableError::NoResources)?)
            }
        };
        // Nothing fails from here on.
        let nodes = self.pool.take(extents.len()).expect("they were counted");
        self.instances.handed_out(first);
        let file = HeldFile {
            context,
            segment,
            lives: extents.iter().map(|_| first).collect(),
            places: extents.iter().map(|range| (range.first.0, range.end().0)).collect(),
            blocks: extents.iter().map(|range| range.count.0).sum(),
        };
        let holding = Holding {
            key: candidate.key(),
            domain,
            access,
            block_shift,
            shared,
            ranges: extents.into(),
            nodes: nodes.into(),
            quiescing: None,
            file: Some(file),
        };
        let keys = FileKeys { file: holding.key, extensions: keys_from(&holding, 0) };
        self.install(candidate, holding);
        Ok(keys)
    }

    /// Appends extensions to a file that is open for requests, and stays so: the keys of the others stay good, and nothing
    /// waits for a quiescent point. Returns the keys of the new ones, in the order of `extents`.
    ///
    /// `caller` is who asks; `None` is the authority.
    ///
    /// # Errors
    /// `KeyRange`, `Domain`, `EntryInvalid`, `KeyInstance`, `Kind`, `Busy` while another operation is active, `Parameter`
    /// (also for no extents), `Overlap`, `SegmentFull` if that needs a modification, `NoResources`, `Ceiling`.
    /// Nothing has changed then.
    pub fn extend_file(
        &mut self,
        caller: Option<Domain>,
        key: Key,
        extents: &[LbaRange],
    ) -> Result<Vec<ExtensionKey>, TableError> {
        let holding = self.holding(caller, key)?;
        match holding.quiescing {
            None => {}
            Some(Quiescing { purpose: Purpose::Revoke, .. }) => return Err(TableError::EntryInvalid),
            Some(_) => return Err(TableError::Busy),
        }
        let file = holding.file.as_ref().ok_or(TableError::Kind)?;
        check_ranges(extents, holding.block_shift)?;
        let more: u64 = extents.iter().map(|range| range.count.0).sum();
        let blocks = file.blocks.checked_add(more).filter(|all| *all <= u64::MAX >> holding.block_shift);
        if extents.is_empty() || blocks.is_none() || extents.iter().any(|range| file.has_any_of(*range)) {
            return Err(TableError::Parameter);
        }
        let claim = holding.claim();
        if extents.iter().any(|range| self.claims.conflicts(*range, claim)) {
            return Err(TableError::Overlap);
        }
        let (had, has) = (holding.ranges.len(), holding.ranges.len() + extents.len());
        // The first extension is told by the file's own entry, too, which does not change while it is open.
        if had == 0 || has > file.capacity() {
            return Err(TableError::SegmentFull);
        }
        if extents.len() > self.pool.free() {
            return Err(TableError::NoResources);
        }
        let lives = self.next_lives(holding, had, has)?;

        // Nothing fails from here on.
        let nodes = self.pool.take(extents.len()).expect("they were counted");
        extents.iter().for_each(|range| self.claims.add(*range, claim));
        let holding = self.holdings.get_mut(&key.index().0).expect("it was found");
        let file = holding.file.as_mut().expect("it is one");
        let mut before = all_before(&holding.ranges);
        live(file, &mut self.instances, had, &lives);
        file.blocks += more;
        file.places.extend(extents.iter().map(|range| (range.first.0, range.end().0)));
        holding.ranges.extend_from_slice(extents);
        holding.nodes.extend_from_slice(&nodes);
        let holding = &self.holdings[&key.index().0];
        for number in had..has {
            self.write_extension(holding, number, before);
            before = before.and(holding.ranges[number]);
        }
        let entry = self.published.entry(key.index().0);
        entry.append_extensions(number_of(has), holding.bytes());
        Ok(keys_from(holding, had))
    }

    /// Changes a file at its quiescent point and opens it again. What is cut off is cut off first, then what is appended is
    /// appended. If its segment has no room it gets a larger one, in which each extension has the number that it had.
    /// Returns the keys of the extensions that are new.
    ///
    /// # Errors
    /// `Kind`, `Parameter` (also to keep more than there is), `Overlap`, `NoResources`, `Ceiling`, or `EntryInvalid` if a
    /// revocation has overtaken it. Nothing has changed then, the entry is still quiescing, and the token comes back, to be
    /// tried again or cancelled.
    pub fn finish_modify_file(
        &mut self,
        quiesce: Quiesce,
        change: &FileModification<'_>,
    ) -> Result<Vec<ExtensionKey>, (Quiesce, TableError)> {
        match self.modify_file(&quiesce, change) {
            Ok(keys) => Ok(keys),
            Err(error) => Err((quiesce, error)),
        }
    }

    fn modify_file(
        &mut self,
        quiesce: &Quiesce,
        change: &FileModification<'_>,
    ) -> Result<Vec<ExtensionKey>, TableError> {
        let index = quiesce.entry().0;
        let holding = self.quiesced(quiesce, Purpose::Modify)?;
        let file = holding.file.as_ref().ok_or(TableError::Kind)?;
        let (kept, ranges) = changed(&holding.ranges, file.blocks, change)?;
        check_ranges(&ranges, holding.block_shift)?;
        let claim = holding.claim();
        if change.append.iter().any(|range| self.claims.conflicts(*range, claim)) {
            return Err(TableError::Overlap);
        }
        let (had, has) = (holding.ranges.len(), ranges.len());
        if has > had + self.pool.free() {
            return Err(TableError::NoResources);
        }
        let lives = self.next_lives(holding, kept, has)?;
        let old = file.segment;
        let segment = self.room(old, has)?;

        // Nothing fails from here on. The new claims before the old ones end, so that what is in both is never unclaimed.
        ranges.iter().for_each(|range| self.claims.add(*range, claim));
        let more = self.pool.take(has.saturating_sub(had)).expect("they were counted");
        let holding = self.holdings.get_mut(&index).expect("it was found");
        holding.ranges.iter().for_each(|range| self.claims.remove(*range));
        let spare = holding.nodes.split_off(has.min(had));
        self.pool.give_back(&self.published, &spare);
        holding.nodes.extend_from_slice(&more);
        holding.access = change.access.unwrap_or(holding.access);
        let file = holding.file.as_mut().expect("it is one");
        live(file, &mut self.instances, kept, &lives);
        file.segment = segment;
        file.places = ranges.iter().map(|range| (range.first.0, range.end().0)).collect();
        file.blocks = ranges.iter().map(|range| range.count.0).sum();
        holding.ranges = ranges;
        if let Some(old) = old {
            self.clear_segment(old, had);
            if segment.is_some_and(|its| its.base != old.base) {
                self.segments.give_back(old);
            }
        }
        self.publish_file(index);
        self.set_quiescing(quiesce.key(), None);
        Ok(keys_from(&self.holdings[&index], kept))
    }

    /// A segment with room for so many extensions: the one that there is, as it is or larger, or another, and then both are
    /// taken.
    fn room(
        &mut self,
        old: Option<FileSegment>,
        extensions: usize,
    ) -> Result<Option<FileSegment>, TableError> {
        if extensions <= old.map_or(0, |its| its.capacity() as usize) {
            return Ok(old);
        }
        let order = Segments::order_of(extensions).ok_or(TableError::NoResources)?;
        if let Some(mut its) = old
            && self.segments.grow(&mut its, order)
        {
            return Ok(Some(its));
        }
        self.segments.take(order).map(Some).ok_or(TableError::NoResources)
    }

    /// The instances of the next lives of the numbers from `from` to `to` of a file. One whose instance would wrap is
    /// retired: no extension gets that number as long as the file is open, and so none behind it.
    fn next_lives(&self, holding: &Holding, from: usize, to: usize) -> Result<Vec<KeyInstance>, TableError> {
        let lives = holding.file.as_ref().map_or(&[][..], |file| &file.lives);
        let next = |number| match lives.get(number) {
            None => Some(first_of(holding.key.instance())),
            Some(&latest) => Self::next_instance(latest),
        };
        let next: Vec<_> = (from..to).map(next).collect::<Option<_>>().ok_or(TableError::NoResources)?;
        next.iter().try_for_each(|instance| self.instances.allow(*instance))?;
        Ok(next)
    }

    /// Writes the LBA entry of an extension, which has `start` blocks of the file before it, and then its entry of the FEPT.
    /// No poller reads them.
    fn write_extension(&self, holding: &Holding, number: usize, before: Before) {
        let Some(file) = &holding.file else { return };
        let (range, node) = (holding.ranges[number], holding.nodes[number]);
        write_extension(&self.published, holding.key.index().0, before, range, node);
        let shift = holding.block_shift;
        let stretch = Stretch {
            domain: holding.domain,
            node,
            offset: before.blocks << shift,
            bytes: range.count.0 << shift,
            first: range.first.0,
        };
        let state =
            StateWord::new(file.lives[number], holding.access, Stage::Valid).with_hole(range.is_hole());
        let base = file.segment.map_or(0, |its| its.base as usize);
        let entry = &self.published.extensions[base + number];
        entry.write(holding.key, number_of(number), stretch, state);
    }

    /// Writes all extensions of a file, and its entry but for the state. No poller reads them.
    pub(crate) fn publish_file(&self, index: u32) {
        let holding = &self.holdings[&index];
        let Some(file) = &holding.file else { return };
        let mut before = Before::default();
        for (number, range) in holding.ranges.iter().enumerate() {
            self.write_extension(holding, number, before);
            before = before.and(*range);
        }
        let shape =
            Shape::of_file(holding.domain, holding.block_shift, file.segment).with_grain(holding.bytes());
        let pointer = FilePointer {
            base: file.segment.map_or(0, |its| its.base),
            context: file.context,
            extensions: number_of(holding.ranges.len()),
            bytes: holding.bytes(),
        };
        self.published.entry(index).set_file(holding.key, shape, holding.first_range(), pointer);
    }

    /// Leaves nothing in the first `used` entries of a segment. No poller reads them.
    fn clear_segment(&self, segment: FileSegment, used: usize) {
        let all = &self.published.extensions[segment.base as usize..];
        all.iter().take(used).for_each(|extension| extension.clear());
    }

    /// The end of a file's extensions. No poller reads them.
    pub(crate) fn free_extensions(&mut self, holding: &Holding) {
        if let Some(segment) = holding.file.as_ref().and_then(|file| file.segment) {
            self.clear_segment(segment, holding.ranges.len());
            self.segments.give_back(segment);
        }
    }
}

/// New lives of the numbers of a file from `from` on.
fn live(file: &mut HeldFile, instances: &mut crate::tables::Instances, from: usize, lives: &[KeyInstance]) {
    lives.iter().for_each(|instance| instances.handed_out(*instance));
    let again = lives.len().min(file.lives.len().saturating_sub(from));
    file.lives[from..from + again].copy_from_slice(&lives[..again]);
    file.lives.extend_from_slice(&lives[again..]);
}

/// What all of these extensions leave before the next one.
fn all_before(ranges: &[LbaRange]) -> Before {
    ranges.iter().fold(Before::default(), |before, range| before.and(*range))
}

/// The extents of a file after a change, and of how many extensions something was kept.
fn changed(
    old: &[LbaRange],
    blocks: u64,
    change: &FileModification<'_>,
) -> Result<(usize, Vec<LbaRange>), TableError> {
    let mut left = change.keep.map_or(blocks, |keep| keep.0);
    if left > blocks {
        return Err(TableError::Parameter);
    }
    let mut ranges = Vec::new();
    for range in old {
        if left == 0 {
            break;
        }
        let count = crate::Blocks(range.count.0.min(left));
        ranges.push(LbaRange { count, ..*range });
        left -= count.0;
    }
    let kept = ranges.len();
    for range in change.append {
        let range = LbaRange::new(range.first.0, range.count.0).ok_or(TableError::Parameter)?;
        match ranges.last_mut() {
            Some(last) if last.end() == range.first => last.count.0 += range.count.0,
            _ => ranges.push(range),
        }
    }
    Ok((kept, ranges))
}

/// The keys of the extensions of a file from number `from` on.
fn keys_from(holding: &Holding, from: usize) -> Vec<ExtensionKey> {
    let file = holding.file.as_ref();
    file.map_or_else(Vec::new, |file| {
        (from..holding.ranges.len()).map(|number| file.extension_key(number)).collect()
    })
}

/// A number of extensions, or of one: no segment has more than a table can have.
fn number_of(number: usize) -> u32 {
    u32::try_from(number).expect("a segment has no more entries than that")
}

/// What a file says of itself.
pub(crate) fn attributes(holding: &Holding) -> Option<FileAttributes> {
    let file = holding.file.as_ref()?;
    let mut offset = 0;
    let extension = |(number, range): (usize, &LbaRange)| {
        let bytes = range.count.0 << holding.block_shift;
        let its = ExtensionAttributes { key: file.extension_key(number), offset, bytes };
        offset += bytes;
        its
    };
    let extensions = holding.ranges.iter().enumerate().map(extension).collect();
    Some(FileAttributes { context: file.context, extensions })
}
