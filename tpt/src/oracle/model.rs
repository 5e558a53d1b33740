//! The model: every rule in its plainest form, one block at a time, with no thought of speed.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::{
    Access, Denied, Domain, ExtensionKey, GrantSpec, Key, LbaRange, Limits, Memory, Modification, Operation,
    Purpose, RegionKey, RegionSpec, Request, SEGMENT_ENTRIES, TableError,
};

/// An entry in use.
#[derive(Clone, Debug)]
pub(crate) struct ModelEntry {
    pub(crate) key: Key,
    pub(crate) domain: Domain,
    pub(crate) access: Access,
    pub(crate) shift: u8,
    pub(crate) shared: bool,
    pub(crate) ranges: Vec<LbaRange>,
    /// Of a file, whose ranges are its extensions.
    pub(crate) file: Option<ModelFile>,
    /// What is going on, and the number of the token that may end it.
    pub(crate) quiescing: Option<(Purpose, Option<u64>)>,
}

/// What only a file has.
#[derive(Clone, Debug)]
pub(crate) struct ModelFile {
    pub(crate) context: u32,
    /// The latest instance of each number that it ever had an extension of.
    pub(crate) lives: Vec<u32>,
    /// The first entry and the number of entries of its segment.
    pub(crate) segment: Option<(usize, usize)>,
}

/// A region in use.
#[derive(Clone, Debug)]
pub(crate) struct ModelRegion {
    pub(crate) key: RegionKey,
    pub(crate) spec: RegionSpec,
    pub(crate) closing: bool,
}

/// Each block of a range, in order.
pub(crate) fn each_block(ranges: &[LbaRange]) -> Vec<u64> {
    ranges.iter().flat_map(|range| range.first.0..range.first.0 + range.count.0).collect()
}

#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) limits: Limits,
    pub(super) last_instance: u32,
    pub(crate) entries: BTreeMap<u32, ModelEntry>,
    /// The instance of each index's next life.
    pub(super) lives: BTreeMap<u32, u32>,
    segments: BTreeMap<u32, Domain>,
    pub(crate) regions: BTreeMap<u32, ModelRegion>,
    region_lives: BTreeMap<u32, u32>,
}

impl Model {
    pub(crate) fn new(limits: Limits, last_instance: u32) -> Self {
        Self {
            limits,
            last_instance,
            entries: BTreeMap::new(),
            lives: BTreeMap::new(),
            segments: BTreeMap::new(),
            regions: BTreeMap::new(),
            region_lives: BTreeMap::new(),
        }
    }

    pub(crate) fn lba_entries(&self) -> usize {
        self.entries.values().map(|entry| entry.ranges.len()).sum()
    }

    /// That no block is there twice, and no range has none.
    pub(super) fn sane(ranges: &[LbaRange]) -> bool {
        let blocks = each_block(ranges);
        let twice = |block: &u64| blocks.iter().filter(|other| *other == block).count() > 1;
        ranges.iter().all(|range| range.count.0 > 0) && !blocks.iter().any(twice)
    }

    /// Whether anybody has any of the blocks but as a grant, or a file, on the same terms.
    pub(super) fn overlaps(&self, domain: Domain, shared: bool, file: bool, ranges: &[LbaRange]) -> bool {
        let wanted = each_block(ranges);
        let forbids = |entry: &ModelEntry| {
            let terms = if shared { entry.shared } else { !entry.shared && entry.domain == domain };
            let agree = terms && entry.file.is_some() == file;
            !agree && each_block(&entry.ranges).iter().any(|block| wanted.contains(block))
        };
        self.entries.values().any(forbids)
    }

    /// Whether an index may be given to a domain.
    pub(super) fn may_take(&self, index: u32, domain: Domain) -> bool {
        let lives = self.lives.get(&index).copied().unwrap_or(0);
        let segment = index / SEGMENT_ENTRIES;
        let empty = !self.entries.keys().any(|used| used / SEGMENT_ENTRIES == segment);
        index < self.limits.entries
            && !self.entries.contains_key(&index)
            && lives <= self.last_instance
            && (empty || self.segments.get(&segment) == Some(&domain))
    }

    /// What a create must answer, but for which index it takes.
    pub(crate) fn create(&self, spec: &GrantSpec<'_>) -> Result<(), TableError> {
        if spec.ranges.is_empty() || !Self::sane(spec.ranges) {
            return Err(TableError::Parameter);
        }
        if self.overlaps(spec.domain, spec.shared, false, spec.ranges) {
            return Err(TableError::Overlap);
        }
        if self.has_room(spec.domain, spec.ranges.len()) { Ok(()) } else { Err(TableError::NoResources) }
    }

    /// Whether there is an index for a domain, and so many LBA entries.
    pub(super) fn has_room(&self, domain: Domain, ranges: usize) -> bool {
        let some_index = (0..self.limits.entries).any(|index| self.may_take(index, domain));
        some_index && self.lba_entries() + ranges <= self.limits.lba_entries as usize
    }

    /// The beginning of a life of an index that the tables chose, which must be one they may choose.
    pub(super) fn begun(&mut self, domain: Domain, key: Key) {
        let index = key.index().0;
        assert!(self.may_take(index, domain), "{key} is not to be had");
        let lives = self.lives.entry(index).or_insert(0);
        assert_eq!(key.instance().0, *lives, "each life has the next instance");
        *lives += 1;
        self.segments.insert(index / SEGMENT_ENTRIES, domain);
    }

    /// Takes over the key that the tables chose.
    pub(crate) fn created(&mut self, spec: &GrantSpec<'_>, key: Key) {
        self.begun(spec.domain, key);
        let entry = ModelEntry {
            key,
            domain: spec.domain,
            access: spec.access,
            shift: spec.block_shift,
            shared: spec.shared,
            ranges: spec.ranges.to_vec(),
            file: None,
            quiescing: None,
        };
        self.entries.insert(key.index().0, entry);
    }

    pub(crate) fn find(&self, caller: Option<Domain>, key: Key) -> Result<&ModelEntry, TableError> {
        let index = key.index().0;
        if index >= self.limits.entries {
            return Err(TableError::KeyRange);
        }
        if let Some(caller) = caller
            && self.segments.get(&(index / SEGMENT_ENTRIES)) != Some(&caller)
        {
            return Err(TableError::Domain);
        }
        let entry = self.entries.get(&index).ok_or(TableError::EntryInvalid)?;
        if entry.key == key { Ok(entry) } else { Err(TableError::KeyInstance) }
    }

    pub(crate) fn query(&self, domain: Domain, key: Key) -> Result<&ModelEntry, TableError> {
        let entry = self.find(Some(domain), key)?;
        match entry.quiescing {
            None | Some((Purpose::Modify, _)) => Ok(entry),
            Some((Purpose::Delete | Purpose::Revoke, _)) => Err(TableError::EntryInvalid),
        }
    }

    pub(crate) fn begin(
        &mut self,
        caller: Option<Domain>,
        key: Key,
        purpose: Purpose,
        token: u64,
    ) -> Result<(), TableError> {
        let answer = match (self.find(caller, key)?.quiescing, purpose) {
            (None, _)
            | (Some((Purpose::Modify | Purpose::Delete, _)), Purpose::Revoke)
            | (Some((Purpose::Revoke, None)), Purpose::Revoke) => Ok(()),
            (Some((Purpose::Revoke, _)), Purpose::Modify | Purpose::Delete) => Err(TableError::EntryInvalid),
            (Some(_), _) => Err(TableError::Busy),
        };
        if answer.is_ok()
            && let Some(entry) = self.entries.get_mut(&key.index().0)
        {
            entry.quiescing = Some((purpose, Some(token)));
        }
        answer
    }

    /// The entry that the token may still end.
    pub(super) fn ends(&mut self, key: Key, token: u64) -> Option<&mut ModelEntry> {
        let holds = |entry: &&mut ModelEntry| {
            entry.key == key && entry.quiescing.is_some_and(|(_, its)| its == Some(token))
        };
        self.entries.get_mut(&key.index().0).filter(holds)
    }

    pub(crate) fn finish_modify(
        &mut self,
        key: Key,
        token: u64,
        change: &Modification<'_>,
    ) -> Result<(), TableError> {
        let entry = self.ends(key, token).ok_or(TableError::EntryInvalid)?.clone();
        if entry.file.is_some() {
            return Err(TableError::Kind);
        }
        if let Some(ranges) = change.ranges {
            if ranges.is_empty() || !Self::sane(ranges) {
                return Err(TableError::Parameter);
            }
            if self.overlaps(entry.domain, entry.shared, false, ranges) {
                return Err(TableError::Overlap);
            }
            // The new list is written before the old one is freed.
            if self.lba_entries() + ranges.len() > self.limits.lba_entries as usize {
                return Err(TableError::NoResources);
            }
        }
        let changed = ModelEntry {
            access: change.access.unwrap_or(entry.access),
            ranges: change.ranges.map_or(entry.ranges, <[LbaRange]>::to_vec),
            quiescing: None,
            ..entry
        };
        self.entries.insert(key.index().0, changed);
        Ok(())
    }

    pub(crate) fn finish_delete(&mut self, key: Key, token: u64) {
        if self.ends(key, token).is_some()
            && let Some(entry) = self.entries.remove(&key.index().0)
            && let Some(highest) = entry.file.and_then(|file| file.lives.into_iter().max())
        {
            // An index has one sequence of instances for its keys and those of its extensions.
            let next = self.lives.entry(key.index().0).or_insert(0);
            *next = (*next).max(highest + 1);
        }
    }

    pub(crate) fn cancel(&mut self, key: Key, token: u64) {
        if let Some(entry) = self.ends(key, token) {
            entry.quiescing = match entry.quiescing {
                Some((Purpose::Revoke, _)) => Some((Purpose::Revoke, None)),
                _ => None,
            };
        }
    }

    pub(crate) fn create_region(&self, spec: &RegionSpec) -> Result<(), TableError> {
        let useless = !spec.access.allows(Access::READ) && !spec.access.allows(Access::WRITE);
        if spec.bytes == 0 || !spec.iova.0.is_multiple_of(4) || useless {
            return Err(TableError::Parameter);
        }
        let free = |index| {
            let lives = self.region_lives.get(&index).copied().unwrap_or(0);
            !self.regions.contains_key(&index) && lives <= self.last_instance
        };
        if (0..self.limits.regions).any(free) { Ok(()) } else { Err(TableError::NoResources) }
    }

    pub(crate) fn region_created(&mut self, spec: &RegionSpec, key: RegionKey) {
        let index = key.index().0;
        assert!(index < self.limits.regions && !self.regions.contains_key(&index), "{key} is not to be had");
        let lives = self.region_lives.entry(index).or_insert(0);
        assert_eq!(key.instance().0, *lives, "each life has the next instance");
        *lives += 1;
        self.regions.insert(index, ModelRegion { key, spec: *spec, closing: false });
    }

    pub(crate) fn begin_region_delete(
        &mut self,
        caller: Option<Domain>,
        key: RegionKey,
    ) -> Result<(), TableError> {
        if key.index().0 >= self.limits.regions {
            return Err(TableError::KeyRange);
        }
        let region = self.regions.get_mut(&key.index().0).ok_or(TableError::EntryInvalid)?;
        if caller.is_some_and(|caller| caller != region.spec.domain) {
            return Err(TableError::Domain);
        }
        if region.key != key {
            return Err(TableError::KeyInstance);
        }
        if region.closing {
            return Err(TableError::Busy);
        }
        region.closing = true;
        Ok(())
    }

    /// The decision: the device blocks of the request in order, and the address of the first byte of data.
    pub(crate) fn check(&self, domain: Domain, request: &Request) -> Result<(Vec<u64>, Option<u64>), Denied> {
        let blocks = self.named_blocks(domain, request)?;
        let memory = Self::memory_rights(request.operation);
        let hold = || self.memory(domain, request.operation, request.memory, request.length);
        let iova = memory.map(|_| hold().ok_or(Denied::Memory)).transpose()?;
        Self::no_hole(blocks).map(|blocks| (blocks, iova))
    }

    /// Blocks of which none is in a hole: the last of all checks.
    fn no_hole(blocks: Vec<u64>) -> Result<Vec<u64>, Denied> {
        if blocks.iter().any(|block| *block >= 1 << 63) { Err(Denied::Hole) } else { Ok(blocks) }
    }

    /// What the memory must allow.
    fn memory_rights(operation: Operation) -> Option<Access> {
        match operation {
            Operation::Read => Some(Access::WRITE),
            Operation::Compare | Operation::Write { .. } | Operation::WriteBytes => Some(Access::READ),
            Operation::Flush | Operation::WriteZeroes { .. } | Operation::Deallocate => None,
        }
    }

    /// The entry that a request may use by its key and its domain.
    pub(super) fn admit(&self, domain: Domain, key: Key) -> Result<&ModelEntry, Denied> {
        let entry = match self.find(Some(domain), key) {
            Err(TableError::KeyRange) => return Err(Denied::KeyRange),
            Err(TableError::Domain) => return Err(Denied::Domain),
            Err(TableError::KeyInstance) => self.entries.get(&key.index().0),
            Ok(entry) => Some(entry),
            Err(_) => None,
        };
        let entry = entry.ok_or(Denied::EntryInvalid)?;
        match entry.quiescing {
            None => {}
            Some((Purpose::Modify, _)) => return Err(Denied::Held),
            Some((Purpose::Delete | Purpose::Revoke, _)) => return Err(Denied::EntryInvalid),
        }
        if entry.key == key { Ok(entry) } else { Err(Denied::KeyInstance) }
    }

    /// Whether that access is enough for an operation.
    pub(super) fn allows(access: Access, operation: Operation) -> bool {
        let (read, write, trim) =
            (access.allows(Access::READ), access.allows(Access::WRITE), access.allows(Access::TRIM));
        match operation {
            Operation::Read | Operation::Compare => read,
            Operation::Write { .. } | Operation::WriteBytes | Operation::Flush => write,
            Operation::WriteZeroes { deallocate: false } => write,
            Operation::WriteZeroes { deallocate: true } => write && trim,
            Operation::Deallocate => trim,
        }
    }

    /// The decision but for memory.
    pub(crate) fn check_scattered(&self, domain: Domain, request: &Request) -> Result<Vec<u64>, Denied> {
        self.named_blocks(domain, request).and_then(Self::no_hole)
    }

    /// The blocks that a request is about, and may be if none of them is in a hole.
    fn named_blocks(&self, domain: Domain, request: &Request) -> Result<Vec<u64>, Denied> {
        let entry = self.admit(domain, request.key)?;
        // All blocks that the request can name.
        let blocks = match request.extension {
            ExtensionKey::NONE => each_block(&entry.ranges),
            key => each_block(&[entry.extension(key)?]),
        };
        if !Self::allows(entry.access, request.operation) {
            return Err(Denied::Access);
        }
        let block = 1u128 << entry.shift;
        let (offset, length) = (u128::from(request.offset), u128::from(request.length));
        let flush = request.operation == Operation::Flush;
        if (length == 0) != flush || (flush && offset != 0) || offset + length > blocks.len() as u128 * block
        {
            return Err(Denied::Bounds);
        }
        let bytes = request.operation == Operation::WriteBytes;
        if (offset % block != 0 || length % block != 0) && !bytes {
            return Err(Denied::Alignment);
        }
        let touched =
            |&(number, _): &(u128, u64)| (number + 1) * block > offset && number * block < offset + length;
        Ok((0..).zip(blocks).filter(touched).map(|(_, lba)| lba).collect())
    }

    /// Where the device sees memory that may be used; `None` if it may not, or if no data moves.
    pub(crate) fn memory(
        &self,
        domain: Domain,
        operation: Operation,
        memory: Memory,
        length: u64,
    ) -> Option<u64> {
        let region = self.regions.get(&memory.region.index().0)?;
        let end = u128::from(memory.offset) + u128::from(length);
        let good = region.key == memory.region
            && !region.closing
            && region.spec.domain == domain
            && Self::memory_rights(operation).is_some_and(|needed| region.spec.access.allows(needed))
            && end <= u128::from(region.spec.bytes)
            && (memory.offset.is_multiple_of(4) || operation == Operation::WriteBytes);
        good.then(|| region.spec.iova.0 + memory.offset)
    }
}
