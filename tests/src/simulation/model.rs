//! The rules in their plainest form: which grants and regions there are, and what a request must be answered.
//!
//! Nothing of it is asked of the tables or the engine; it follows from what the control plane did.

use tpt::{Key, RegionKey};
use wire::Status;
use wire::layout::{MAX_SEGMENTS, MAX_WRITE_BYTES, ScatterSegment, SubmissionEntry, flag, opcode};

/// Bytes of a block.
pub(super) const BLOCK: u64 = 512;

/// Rights, bit by bit as the wire has them.
pub(super) const READ: u8 = 1;
pub(super) const WRITE: u8 = 2;
pub(super) const TRIM: u8 = 4;

/// What an entry asks the device for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Op {
    Read,
    Write { fua: bool },
    Flush,
    Zeroes { deallocate: bool },
    Deallocate,
    Compare,
    WriteBytes { fua: bool },
}

impl Op {
    fn rights(self) -> u8 {
        match self {
            Self::Read | Self::Compare => READ,
            Self::Write { .. }
            | Self::WriteBytes { .. }
            | Self::Flush
            | Self::Zeroes { deallocate: false } => WRITE,
            Self::Zeroes { deallocate: true } => WRITE | TRIM,
            Self::Deallocate => TRIM,
        }
    }

    /// What the memory's region must allow.
    pub(super) fn memory_rights(self) -> Option<u8> {
        match self {
            Self::Read => Some(WRITE),
            Self::Write { .. } | Self::WriteBytes { .. } | Self::Compare => Some(READ),
            Self::Flush | Self::Zeroes { .. } | Self::Deallocate => None,
        }
    }

    /// Whether it changes blocks.
    pub(super) fn writes(self) -> bool {
        !matches!(self, Self::Read | Self::Compare | Self::Flush)
    }

    fn is_of_bytes(self) -> bool {
        matches!(self, Self::WriteBytes { .. })
    }
}

/// What an entry asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum What {
    Io(Op),
    Cancel(u64),
    Malformed,
    /// A write of more bytes than there may be.
    TooLong,
}

/// What these 64 bytes mean.
pub(super) fn meaning(entry: &SubmissionEntry) -> What {
    let scattered = entry.flags & flag::SCATTER != 0;
    let segments = usize::from(entry.scatter_count);
    if entry.reserved != 0
        || entry.reserved2 != 0
        || (entry.extension != 0 && entry.opcode == opcode::CANCEL)
        || scattered == (segments == 0)
        || segments > MAX_SEGMENTS
    {
        return What::Malformed;
    }
    let op = match entry.opcode {
        opcode::READ => Op::Read,
        opcode::WRITE => Op::Write { fua: entry.flags & flag::FUA != 0 },
        opcode::FLUSH => Op::Flush,
        opcode::WRITE_ZEROES => Op::Zeroes { deallocate: entry.flags == flag::DEALLOCATE },
        opcode::DEALLOCATE => Op::Deallocate,
        opcode::COMPARE => Op::Compare,
        opcode::WRITE_BYTES => Op::WriteBytes { fua: entry.flags == flag::FUA },
        opcode::CANCEL if entry.flags == 0 => return What::Cancel(entry.offset),
        _ => return What::Malformed,
    };
    let flags = match op {
        Op::Write { fua: true } | Op::WriteBytes { fua: true } => flag::FUA,
        Op::Zeroes { deallocate: true } => flag::DEALLOCATE,
        _ => 0,
    };
    let scatters = matches!(op, Op::Read | Op::Write { .. } | Op::Compare);
    if entry.flags & !flag::SCATTER != flags || scattered && !scatters {
        What::Malformed
    } else if op.is_of_bytes() && entry.length > MAX_WRITE_BYTES {
        What::TooLong
    } else {
        What::Io(op)
    }
}

/// What a grant or a region admits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    Live,
    Held,
    Closed,
}

/// One grant from its creation to its end; never used for another.
#[derive(Debug)]
pub(super) struct GrantLife {
    pub(super) key: Key,
    pub(super) domain: u32,
    pub(super) access: u8,
    pub(super) shared: bool,
    /// The ranges that it had, one after another; the last is valid.
    pub(super) versions: Vec<Vec<(u64, u64)>>,
    pub(super) stage: Stage,
    /// The event at which it last admitted nothing more.
    pub(super) closed_at: u64,
    /// The event at which it was last opened again.
    pub(super) opened_at: u64,
    /// It is drained, its blocks may be somebody else's.
    pub(super) finished: bool,
    /// Which operation of the control plane may end what goes on.
    pub(super) token: u64,
    pub(super) revoked: bool,
}

impl GrantLife {
    pub(super) fn ranges(&self) -> &[(u64, u64)] {
        self.versions.last().expect("a grant has ranges")
    }

    pub(super) fn blocks(&self) -> u64 {
        self.ranges().iter().map(|(_, count)| count).sum()
    }
}

/// One region from its registration to its end.
#[derive(Debug)]
pub(super) struct RegionLife {
    pub(super) key: RegionKey,
    pub(super) domain: u32,
    pub(super) access: u8,
    pub(super) place: usize,
    pub(super) iova: u64,
    pub(super) bytes: u64,
    pub(super) closed: bool,
    pub(super) finished: bool,
    /// Blocks of it that open requests use, by bit.
    pub(super) used: u64,
}

/// A request that is admitted: from then on it is about these blocks and this memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Bound {
    pub(super) grant: usize,
    pub(super) version: usize,
    pub(super) start: u64,
    pub(super) count: u64,
    pub(super) region: Option<usize>,
    pub(super) iova: u64,
}

/// The scatter list of a request, as it was written, and the blocks of regions that it keeps from others.
#[derive(Debug)]
pub(super) struct List {
    pub(super) number: u64,
    pub(super) segments: Vec<ScatterSegment>,
    pub(super) memory: Vec<(usize, u64, u64)>,
}

/// What must become of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Granted(Bound),
    Held,
    Refused(Status),
}

/// See the module.
pub(super) struct Model {
    pub(super) entries: u32,
    /// By segment of 16 entries: the domain that got an entry of it last.
    owners: Vec<Option<u32>>,
    /// By index.
    present: Vec<Option<usize>>,
    /// By index: the event at which requests under it were last held.
    held_at: Vec<u64>,
    pub(super) grants: Vec<GrantLife>,
    regions_present: Vec<Option<usize>>,
    pub(super) regions: Vec<RegionLife>,
    /// In the order of their requests.
    pub(super) lists: Vec<List>,
}

impl Model {
    pub(super) fn new(entries: u32, regions: u32) -> Self {
        Self {
            entries,
            owners: vec![None; entries.div_ceil(16) as usize],
            present: vec![None; entries as usize],
            held_at: vec![0; entries as usize],
            grants: Vec::with_capacity(64),
            regions_present: vec![None; regions as usize],
            regions: Vec::with_capacity(32),
            lists: Vec::new(),
        }
    }

    /// Takes over a grant that the tables made, or says what is wrong with it.
    pub(super) fn created(&mut self, life: GrantLife) -> Result<usize, String> {
        let (index, domain) = (life.key.index().0, life.domain);
        let slot = self.present.get_mut(index as usize).ok_or("the new key is beyond the table")?;
        if let Some(old) = *slot {
            return Err(format!("{} was given out while {} is not drained", life.key, self.grants[old].key));
        }
        if self.grants.iter().any(|old| old.key == life.key) {
            return Err(format!("{} was given out before", life.key));
        }
        let segment = (index / 16) as usize;
        let neighbours = &self.present[segment * 16..(segment * 16 + 16).min(self.present.len())];
        if neighbours.iter().flatten().any(|&life| self.grants[life].domain != domain) {
            return Err(format!("{} lies in a segment with entries of another domain", life.key));
        }
        self.owners[segment] = Some(domain);
        self.present[index as usize] = Some(self.grants.len());
        self.grants.push(life);
        Ok(self.grants.len() - 1)
    }

    /// Whether blocks are somebody else's, for a grant of `domain`.
    pub(super) fn overlaps(&self, domain: u32, shared: bool, ranges: &[(u64, u64)]) -> bool {
        let taken = |life: &&GrantLife| {
            let agree = if shared { life.shared } else { !life.shared && life.domain == domain };
            !agree
        };
        let present = self.present.iter().flatten().map(|&life| &self.grants[life]);
        let mut others = present.filter(taken);
        others.any(|life| {
            let meets = |a: &(u64, u64), b: &(u64, u64)| a.0 < b.0 + b.1 && b.0 < a.0 + a.1;
            life.ranges().iter().any(|a| ranges.iter().any(|b| meets(a, b)))
        })
    }

    /// Requests under a grant were held until now, whatever comes next.
    pub(super) fn held_until(&mut self, life: usize, moment: u64) {
        if self.grants[life].stage == Stage::Held {
            self.held_at[self.grants[life].key.index().0 as usize] = moment;
        }
    }

    /// Whether requests under a key's index were held at any time since an event. The instance is looked at later.
    pub(super) fn was_held_since(&self, key: Key, moment: u64) -> bool {
        let index = key.index().0 as usize;
        let held = |life: usize| self.grants[life].stage == Stage::Held;
        self.held_at.get(index).is_some_and(|at| *at >= moment)
            || self.present.get(index).copied().flatten().is_some_and(held)
    }

    pub(super) fn finish_grant(&mut self, life: usize) {
        self.grants[life].finished = true;
        self.grants[life].stage = Stage::Closed;
        self.present[self.grants[life].key.index().0 as usize] = None;
    }

    pub(super) fn region_created(&mut self, life: RegionLife) -> Result<usize, String> {
        let slot = self.regions_present.get_mut(life.key.index().0 as usize);
        let slot = slot.ok_or("the new region is beyond the table")?;
        if let Some(old) = *slot {
            return Err(format!("region {} was given out while {old} is not drained", life.key));
        }
        if self.regions.iter().any(|old| old.key == life.key) {
            return Err(format!("region {} was given out before", life.key));
        }
        *slot = Some(self.regions.len());
        self.regions.push(life);
        Ok(self.regions.len() - 1)
    }

    pub(super) fn finish_region(&mut self, life: usize) {
        self.regions[life].finished = true;
        self.regions_present[self.regions[life].key.index().0 as usize] = None;
    }

    /// The grant that a key names now or named once.
    pub(super) fn grant_of(&self, key: Key) -> Option<usize> {
        let now = self.present.get(key.index().0 as usize).copied().flatten();
        now.filter(|&life| self.grants[life].key == key)
            .or_else(|| self.grants.iter().rposition(|life| life.key == key))
    }

    pub(super) fn region_of(&self, key: RegionKey) -> Option<usize> {
        let now = self.regions_present.get(key.index().0 as usize).copied().flatten();
        now.filter(|&life| self.regions[life].key == key)
    }

    /// The decision about a request of `domain`, first failing check first.
    pub(super) fn check(&self, domain: u32, op: Op, entry: &SubmissionEntry) -> Verdict {
        self.decide(domain, op, entry, false)
    }

    /// The same for a request that may have been admitted earlier: what it uses is there, whether or not it admits more.
    pub(super) fn check_as_if_open(&self, domain: u32, op: Op, entry: &SubmissionEntry) -> Verdict {
        self.decide(domain, op, entry, true)
    }

    fn decide(&self, domain: u32, op: Op, entry: &SubmissionEntry, as_if_open: bool) -> Verdict {
        use Verdict::Refused;
        let key = Key(entry.key);
        let index = key.index().0;
        if index >= self.entries {
            return Refused(Status::E_KEY_RANGE);
        }
        if self.owners[(index / 16) as usize] != Some(domain) {
            return Refused(Status::E_PD_MISMATCH);
        }
        let Some(life) = self.present[index as usize] else { return Refused(Status::E_ENTRY_INVALID) };
        let grant = &self.grants[life];
        match grant.stage {
            Stage::Live => {}
            _ if as_if_open => {}
            Stage::Held => return Verdict::Held,
            Stage::Closed => return Refused(Status::E_ENTRY_INVALID),
        }
        if grant.key != key {
            return Refused(Status::E_KEY_INSTANCE);
        }
        if entry.extension != 0 {
            return Refused(Status::E_KEY_RANGE); // A grant of blocks has no extensions.
        }
        if op.rights() & !grant.access != 0 {
            return Refused(Status::E_ACCESS);
        }
        let (offset, length) = (u128::from(entry.offset), u128::from(entry.length));
        let size = u128::from(grant.blocks() * BLOCK);
        let flush = op == Op::Flush;
        if (length == 0) != flush || flush && offset != 0 || offset + length > size {
            return Refused(Status::E_BOUNDS);
        }
        if (offset % u128::from(BLOCK) != 0 || length % u128::from(BLOCK) != 0) && !op.is_of_bytes() {
            return Refused(Status::E_ALIGN);
        }
        let (region, iova) = match op.memory_rights() {
            None => (None, 0),
            Some(rights) if entry.flags & flag::SCATTER != 0 => {
                match self.scattered(domain, rights, entry, as_if_open) {
                    Some(iova) => (None, iova),
                    None => return Refused(Status::E_LOCAL_MEM),
                }
            }
            Some(rights) => match self.memory(domain, rights, op, entry, as_if_open) {
                Some((region, iova)) => (Some(region), iova),
                None => return Refused(Status::E_LOCAL_MEM),
            },
        };
        let start = entry.offset / BLOCK;
        let count = (entry.offset + u64::from(entry.length)).div_ceil(BLOCK) - start;
        Verdict::Granted(Bound { grant: life, version: grant.versions.len() - 1, start, count, region, iova })
    }

    fn memory(
        &self,
        domain: u32,
        rights: u8,
        op: Op,
        entry: &SubmissionEntry,
        as_if_open: bool,
    ) -> Option<(usize, u64)> {
        let (offset, length) = (entry.region_offset, u64::from(entry.length));
        let life = self.region_with(domain, rights, RegionKey(entry.region), as_if_open)?;
        let region = &self.regions[life];
        let fits = u128::from(offset) + u128::from(length) <= u128::from(region.bytes);
        let aligned = offset.is_multiple_of(4) || op.is_of_bytes();
        (fits && aligned).then(|| (life, region.iova + offset))
    }

    /// The region of a key, if a domain may use it so.
    fn region_with(&self, domain: u32, rights: u8, key: RegionKey, as_if_open: bool) -> Option<usize> {
        let life = self.region_of(key)?;
        let region = &self.regions[life];
        let good = (!region.closed || as_if_open) && region.domain == domain && rights & !region.access == 0;
        good.then_some(life)
    }

    /// Whether the list of a request and all its segments may be used; where the first begins.
    fn scattered(&self, domain: u32, rights: u8, entry: &SubmissionEntry, as_if_open: bool) -> Option<u64> {
        let count = usize::from(entry.scatter_count);
        let inside = |life: usize, offset: u64, length: u64| {
            u128::from(offset) + u128::from(length) <= u128::from(self.regions[life].bytes)
        };
        let key = RegionKey(entry.region);
        // The list is read once; what was admitted does not need its region any more.
        let former = self.regions.iter().rposition(|region| region.key == key).filter(|_| as_if_open);
        let its = former.or_else(|| self.region_with(domain, READ, key, false))?;
        let length = (count * size_of::<ScatterSegment>()) as u64;
        if !entry.region_offset.is_multiple_of(8) || !inside(its, entry.region_offset, length) {
            return None;
        }
        let mut sum = 0;
        let mut first = None;
        for segment in self.list_of(entry)?.segments.get(..count)? {
            let (offset, length) = (segment.offset, u64::from(segment.length));
            let life = self.region_with(domain, rights, RegionKey(segment.region), as_if_open)?;
            let whole = length > 0 && length.is_multiple_of(BLOCK) && segment.reserved == 0;
            if !whole || !offset.is_multiple_of(4) || !inside(life, offset, length) {
                return None;
            }
            sum += length;
            first = first.or(Some(self.regions[life].iova + offset));
        }
        if sum == u64::from(entry.length) { first } else { None }
    }

    /// The list of a request that has one.
    pub(super) fn list_of(&self, entry: &SubmissionEntry) -> Option<&List> {
        if entry.flags & flag::SCATTER == 0 {
            return None;
        }
        let at = self.lists.binary_search_by_key(&entry.user_data, |list| list.number).ok()?;
        Some(&self.lists[at])
    }

    /// Where the data of block `number` of a bound request is: in which region, and where the device sees it.
    pub(super) fn data(&self, entry: &SubmissionEntry, bound: &Bound, number: u64) -> Option<(usize, u64)> {
        let Some(list) = self.list_of(entry) else {
            return bound.region.map(|region| (region, bound.iova + number * BLOCK));
        };
        let mut at = number * BLOCK;
        for segment in &list.segments {
            if at < u64::from(segment.length) {
                let key = RegionKey(segment.region);
                let life = self.regions.iter().rposition(|region| region.key == key)?;
                return Some((life, self.regions[life].iova + segment.offset + at));
            }
            at -= u64::from(segment.length);
        }
        None
    }

    /// Whether a bound request uses a region.
    pub(super) fn uses_region(&self, entry: &SubmissionEntry, bound: &Bound, life: usize) -> bool {
        let key = self.regions[life].key;
        bound.region == Some(life)
            || self.list_of(entry).is_some_and(|list| list.segments.iter().any(|its| its.region == key.0))
    }

    /// Where block `number` of a bound request is on the device, and how many follow it there.
    pub(super) fn place(&self, bound: &Bound, number: u64) -> (u64, u64) {
        let mut at = bound.start + number;
        for &(first, count) in &self.grants[bound.grant].versions[bound.version] {
            if at < count {
                return (first + at, (count - at).min(bound.count - number));
            }
            at -= count;
        }
        (u64::MAX, 0)
    }
}
