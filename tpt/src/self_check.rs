//! What must hold after every operation (S8-R1, R2, R3 and the rest).

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;

use crate::fept::Run;
use crate::published::{ListPointer, NONE, SEGMENT_ENTRIES, Shape, Stage, StateWord, extent};
use crate::tables::Holding;
use crate::trace::Trace;
use crate::{Access, LbaRange, Tables};

impl<const B: u32> Tables<B> {
    /// Compares the host copy, what is published, and the free lists. Slow: for tests, and for an adapter in doubt.
    ///
    /// # Errors
    /// What does not hold.
    pub fn self_check(&self) -> Result<(), String> {
        self.slots.self_check()?;
        self.regions.self_check()?;
        self.check_lba_table()?;
        self.check_extensions()?;
        for (&index, holding) in &self.holdings {
            self.check_entry(index, holding).map_err(|what| format!("entry {}: {what}", holding.key))?;
        }
        self.check_free_entries()?;
        self.check_claims()?;
        self.check_regions()
    }

    /// Each LBA entry is free or of exactly one grant.
    fn check_lba_table(&self) -> Result<(), String> {
        let limit = self.published.limits.lba_entries;
        let mut seen = BTreeSet::new();
        let held = self.holdings.values().flat_map(|holding| holding.nodes.iter().copied());
        for node in held.chain(self.pool.free_nodes()) {
            if node >= limit || !seen.insert(node) {
                return Err(format!("LBA entry {node} is outside the table or used twice"));
            }
        }
        let freed = |node: u32| self.published.lba_entry(node).is_some_and(|n| n.owner.load(Relaxed) == NONE);
        if seen.len() != limit as usize {
            return Err(format!("{} of {limit} LBA entries are lost", limit as usize - seen.len()));
        }
        if !self.pool.free_nodes().all(freed) {
            return Err("a free LBA entry has an owner".into());
        }
        Ok(())
    }

    /// Each entry of the FEPT is in a free segment, in reserve, or an extension; and all but extensions are nobody's.
    fn check_extensions(&self) -> Result<(), String> {
        let files = || self.holdings.values().filter_map(|holding| Some((holding, holding.file.as_ref()?)));
        self.segments.self_check(files().filter_map(|(_, file)| file.segment))?;
        let mut in_use = BTreeSet::new();
        for (holding, file) in files() {
            let base = file.segment.map_or(0, |its| its.base);
            in_use.extend((base..).zip(&holding.ranges).map(|(position, _)| position));
        }
        for (position, extension) in (0..).zip(self.published.extensions.iter()) {
            if !in_use.contains(&position) && extension.state.get(0) != StateWord::FREE {
                return Err(format!("FEPT entry {position} is of no file and not free"));
            }
        }
        Ok(())
    }

    fn check_entry(&self, index: u32, holding: &Holding) -> Result<(), String> {
        let entry = self.published.entry(index);
        let shape = entry.shape();
        let expected = match &holding.file {
            None => Shape::new(holding.domain, holding.block_shift),
            Some(file) => Shape::of_file(holding.domain, holding.block_shift, file.segment),
        };
        if self.published.owner(index / SEGMENT_ENTRIES) != Some(holding.domain)
            || shape.without_grain() != expected
        {
            return Err("published for another domain, or with other blocks".into());
        }
        let first = entry.first_range();
        if first != holding.first_range() || !entry.is_sealed(holding.key, shape, first) {
            return Err("its copy of its first range is another, or not sealed".into());
        }
        if entry.state.get(index) != holding.state_word()
            || self.slots.is_free(index)
            || holding.key.index().0 != index
        {
            return Err("published in another state".into());
        }
        if Self::is_beyond(holding.key.instance()) || holding.key.instance().0 > self.instances.highest() {
            return Err("its instance was never to be handed out".into());
        }
        let damaged = |node: &u32| self.published.lba_entry(*node).is_none_or(|entry| !entry.is_sealed());
        if holding.nodes.iter().any(damaged) {
            return Err("an LBA entry of it is damaged".into());
        }
        if holding.file.is_some() { self.check_file(index, holding) } else { self.check_list(index, holding) }
    }

    /// That a file's segment has its extensions as they are known, one after another and nothing left out.
    fn check_file(&self, index: u32, holding: &Holding) -> Result<(), String> {
        let (entry, Some(file)) = (self.published.entry(index), &holding.file) else { return Ok(()) };
        let pointer = ListPointer { root: file.segment.map_or(0, |its| its.base), length: file.context };
        if entry.list() != pointer || entry.bytes.load(Relaxed) != holding.bytes() {
            return Err("published with another segment, context or size".into());
        }
        let Some(extensions) = entry.extensions(&self.published.extensions, holding.key) else {
            return Err("its segment is not in the table".into());
        };
        let trace = Trace::default();
        let (mut start, mut holes) = (0, 0);
        for (number, range) in (0..).zip(&holding.ranges) {
            let Some(extension) = extensions.get(number, &trace) else {
                return Err(format!("extension {number} is not in its segment"));
            };
            let instance = file.lives[number as usize];
            if Self::is_beyond(instance) || instance.0 == 0 || instance.0 > self.instances.highest() {
                return Err(format!("the instance of extension {number} was never to be handed out"));
            }
            let state = StateWord::new(instance, holding.access, Stage::Valid).with_hole(range.is_hole());
            if extension.state.get(number) != state || extension.stretch().domain != holding.domain {
                return Err(format!(
                    "extension {number} is published in another state, or for another domain"
                ));
            }
            let expected = Run { lba: range.first.0, blocks: range.count.0, holes };
            if extensions.find(&self.published.lba, start, Access::NONE, &trace) != Some(expected) {
                return Err(format!("extension {number} does not lead to block {start}"));
            }
            start += range.count.0;
            holes += u32::from(range.is_hole());
        }
        let count = u32::try_from(holding.ranges.len()).unwrap_or(u32::MAX);
        if extensions.get(count, &trace).is_some() || start != file.blocks {
            return Err("it has more extensions than it should".into());
        }
        Ok(())
    }

    /// That a grant's pointer leads to all its ranges, and to nothing else.
    fn check_list(&self, index: u32, holding: &Holding) -> Result<(), String> {
        let entry = self.published.entry(index);
        let list = entry.list();
        if list.length as usize != holding.nodes.len() || holding.nodes.len() != holding.ranges.len() {
            return Err("its LBA list has another length".into());
        }
        // S8-R3, and S8-R1 together with check_lba_table: every range is reached from the pointer.
        let blocks = entry.bytes.load(Relaxed) >> holding.block_shift;
        let mut start = 0;
        for range in &holding.ranges {
            let found = extent(&self.published.lba, index, list.root, start);
            if found.is_none_or(|e| (e.start, e.first, e.count) != (start, range.first.0, range.count.0)) {
                return Err(format!("its LBA pointer does not lead to block {start}"));
            }
            start += range.count.0;
        }
        if start != blocks || extent(&self.published.lba, index, list.root, start).is_some() {
            return Err(format!("{blocks} blocks published, {start} in its ranges"));
        }
        Ok(())
    }

    fn check_free_entries(&self) -> Result<(), String> {
        for index in (0..self.published.limits.entries).filter(|index| !self.holdings.contains_key(index)) {
            let entry = self.published.entry(index);
            let owner = self.published.owner(index / SEGMENT_ENTRIES);
            if owner.is_some_and(|owner| entry.shape().domain() != owner) {
                return Err(format!("entry {index} is free and not its segment's domain's"));
            }
            let free = entry.state.get(index) == StateWord::FREE;
            if !free || !(self.slots.is_free(index) || self.slots.is_retired(index)) {
                return Err(format!("entry {index} is held by nobody and not free"));
            }
        }
        if self.slots.used() as usize != self.holdings.len() {
            return Err("entries in use are miscounted".into());
        }
        Ok(())
    }

    /// S8-R2: ranges of two domains that share a block are both shared. By a sweep over all ranges, and against the
    /// claims, whose counts must be the number of ranges over each block.
    fn check_claims(&self) -> Result<(), String> {
        let all = self.holdings.values().flat_map(|h| h.ranges.iter().map(move |r| (*r, h)));
        let mut ranges: Vec<(LbaRange, &Holding)> = all.collect();
        ranges.sort_unstable_by_key(|(range, _)| range.first);
        let mut open: Vec<(LbaRange, &Holding)> = Vec::new();
        for (range, holding) in ranges {
            open.retain(|(earlier, _)| earlier.end() > range.first);
            for (_, other) in &open {
                let both_shared = other.shared && holding.shared;
                let one_owner = other.domain == holding.domain && !other.shared && !holding.shared;
                let one_kind = other.file.is_some() == holding.file.is_some();
                if !one_kind || !both_shared && !one_owner {
                    return Err(format!("{} and {} share block {}", other.key, holding.key, range.first));
                }
            }
            open.push((range, holding));
            let claim = holding.claim();
            let claimed = self.claims.of(range.first.0);
            let at_least = u32::try_from(open.len()).unwrap_or(u32::MAX);
            if claimed.is_none_or(|(of, grants)| of != claim || grants < at_least) {
                return Err(format!("block {} of {} is not claimed", range.first, holding.key));
            }
        }
        if self.holdings.is_empty() && self.claims.len() != 0 {
            return Err("blocks are claimed by nobody".into());
        }
        Ok(())
    }

    fn check_regions(&self) -> Result<(), String> {
        for index in 0..self.published.limits.regions {
            let Some(entry) = self.published.region(index) else {
                return Err("a region is missing".into());
            };
            let held = self.regions.held.get(&index);
            if entry.state.get(index) != held.map_or(StateWord::FREE, |region| region.state_word()) {
                return Err(format!("region {index} is published in another state"));
            }
            let Some(region) = held else { continue };
            let published = (entry.domain.load(Relaxed), entry.iova.load(Relaxed), entry.bytes.load(Relaxed));
            if published != (region.spec.domain.0, region.spec.iova.0, region.spec.bytes) {
                return Err(format!("region {} is published otherwise than made", region.key));
            }
        }
        Ok(())
    }
}
