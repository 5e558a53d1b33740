//! The authoritative side of the tables: create, query, modify, delete, revoke.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::claims::{Claim, Claims};
use crate::files::{self, HeldFile};
use crate::lba_table::{LbaPool, write_list};
use crate::published::{FirstRange, ListPointer, NONE, Published, SEGMENT_ENTRIES, Shape, Stage, StateWord};
use crate::regions::RegionTable;
use crate::segments::Segments;
use crate::slots::{Candidate, Slots};
use crate::{
    Access, Attributes, Blocks, Domain, EntryIndex, GrantSpec, Key, KeyInstance, LbaRange, Limits,
    Modification, Purpose, TableError, Usage,
};

/// The tables of one adapter, with one owner: the control plane. What pollers see of them is [`Tables::published`].
///
/// `INSTANCE_BITS` is the width of a key instance: 32, or less to test that an index is retired before its instance
/// wraps.
#[derive(Debug)]
pub struct Tables<const INSTANCE_BITS: u32 = 32> {
    pub(crate) published: Arc<Published>,
    pub(crate) slots: Slots,
    /// The host copy of the entries in use, by index.
    pub(crate) holdings: BTreeMap<u32, Holding>,
    pub(crate) pool: LbaPool,
    pub(crate) segments: Segments,
    pub(crate) claims: Claims,
    pub(crate) regions: RegionTable,
    pub(crate) instances: Instances,
    tickets: u64,
}

/// How far key instances may go and have gone.
#[derive(Debug)]
pub(crate) struct Instances {
    ceiling: Option<u32>,
    highest: u32,
}

impl Instances {
    pub(crate) fn allow(&self, instance: KeyInstance) -> Result<(), TableError> {
        if self.ceiling.is_some_and(|ceiling| instance.0 >= ceiling) {
            Err(TableError::Ceiling)
        } else {
            Ok(())
        }
    }

    pub(crate) fn highest(&self) -> u32 {
        self.highest
    }

    pub(crate) fn handed_out(&mut self, instance: KeyInstance) {
        self.highest = self.highest.max(instance.0);
    }
}

/// One grant, or one opened file, as the control plane knows it.
#[derive(Debug)]
pub(crate) struct Holding {
    pub(crate) key: Key,
    pub(crate) domain: Domain,
    pub(crate) access: Access,
    pub(crate) block_shift: u8,
    pub(crate) shared: bool,
    pub(crate) ranges: Vec<LbaRange>,
    /// The LBA entries, one for each range.
    pub(crate) nodes: Vec<u32>,
    pub(crate) quiescing: Option<Quiescing>,
    /// Of a file, whose ranges are its extensions.
    pub(crate) file: Option<HeldFile>,
}

/// A management operation that has begun on an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Quiescing {
    pub(crate) purpose: Purpose,
    /// The token that may end it; `None` after a revocation was put aside unfinished.
    ticket: Option<u64>,
}

impl Holding {
    pub(crate) fn claim(&self) -> Claim {
        match (&self.file, self.shared) {
            (None, true) => Claim::Shared,
            (None, false) => Claim::Exclusive(self.domain),
            (Some(_), true) => Claim::Files,
            (Some(_), false) => Claim::FilesOf(self.domain),
        }
    }

    pub(crate) fn blocks(&self) -> u64 {
        self.file
            .as_ref()
            .map_or_else(|| self.ranges.iter().map(|range| range.count.0).sum(), |its| its.blocks)
    }

    /// All of it; it is a number, as was checked.
    pub(crate) fn bytes(&self) -> u64 {
        self.blocks() << self.block_shift
    }

    /// The first range, as the entry has it beside the list; nothing, if that is a hole.
    pub(crate) fn first_range(&self) -> FirstRange {
        let range = self.ranges.first().filter(|range| !range.is_hole());
        let (first, blocks) = range.map_or((0, 0), |range| (range.first.0, range.count.0));
        FirstRange { first, blocks }
    }

    pub(crate) fn state_word(&self) -> StateWord {
        let stage = match self.quiescing.map(|its| its.purpose) {
            None => Stage::Valid,
            Some(Purpose::Modify) => Stage::Held,
            Some(Purpose::Delete | Purpose::Revoke) => Stage::Closed,
        };
        StateWord::new(self.key.instance(), self.access, stage)
    }

    fn is_quiesced_by(&self, quiesce: &Quiesce) -> bool {
        self.key == quiesce.key
            && self.quiescing == Some(Quiescing { purpose: quiesce.purpose, ticket: Some(quiesce.ticket) })
    }
}

/// A management operation between [`Tables::begin`] and its end. End it with `finish_modify` or `finish_delete` once
/// every poller has acknowledged the quiescent point, or with `cancel`.
///
/// A token that a revocation has overtaken ends nothing any more: the revocation's own token does.
#[must_use = "until it is finished or cancelled the entry admits nothing"]
#[derive(PartialEq, Eq, Debug)]
pub struct Quiesce {
    key: Key,
    purpose: Purpose,
    ticket: u64,
}

impl Quiesce {
    /// Of which grant.
    pub fn key(&self) -> Key {
        self.key
    }

    /// Of which entry: what pollers are asked about.
    pub fn entry(&self) -> EntryIndex {
        self.key.index()
    }

    /// To what end.
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }
}

impl<const B: u32> Tables<B> {
    /// Empty tables. The first life of every index has instance `first_instance`: the persistent epoch, so that a key
    /// from before a restart never resolves.
    pub fn new(limits: Limits, first_instance: KeyInstance) -> Self {
        const { assert!(B >= 1 && B <= 32) };
        Self {
            published: Arc::new(Published::new(limits)),
            slots: Slots::new(limits.entries, first_instance),
            holdings: BTreeMap::new(),
            pool: LbaPool::new(limits.lba_entries),
            segments: Segments::new(limits.extensions),
            claims: Claims::default(),
            regions: RegionTable::new(limits.regions, first_instance),
            instances: Instances { ceiling: None, highest: first_instance.0 },
            tickets: 0,
        }
    }

    /// From now on no instance at or above `ceiling` is handed out: [`TableError::Ceiling`] instead.
    pub fn set_instance_ceiling(&mut self, ceiling: u32) {
        self.instances.ceiling = Some(ceiling);
    }

    /// The highest instance handed out so far, of grants and regions; before the first, the first instance.
    pub fn highest_instance(&self) -> u32 {
        self.instances.highest()
    }

    /// What pollers share.
    pub fn published(&self) -> Arc<Published> {
        Arc::clone(&self.published)
    }

    /// The instance of an index's next life, `None` if it would wrap.
    pub(crate) fn next_instance(instance: KeyInstance) -> Option<KeyInstance> {
        let last = u32::MAX >> (32 - B);
        (instance.0 < last).then(|| KeyInstance(instance.0 + 1))
    }

    /// A new grant, open for requests.
    ///
    /// # Errors
    /// `Parameter`, `Overlap`, `NoResources` or `Ceiling`; nothing is left allocated then.
    pub fn create(&mut self, spec: &GrantSpec<'_>) -> Result<Key, TableError> {
        if spec.ranges.is_empty() {
            return Err(TableError::Parameter);
        }
        check_blocks(spec.ranges, spec.block_shift)?;
        let claim = if spec.shared { Claim::Shared } else { Claim::Exclusive(spec.domain) };
        let candidate = self.candidate(spec.domain, spec.ranges, claim)?;
        self.instances.allow(candidate.instance)?;
        let nodes = self.pool.take(spec.ranges.len()).ok_or(TableError::NoResources)?;
        // Nothing fails from here on.
        let holding = Holding {
            key: candidate.key(),
            domain: spec.domain,
            access: spec.access,
            block_shift: spec.block_shift,
            shared: spec.shared,
            ranges: spec.ranges.into(),
            nodes: nodes.into(),
            quiescing: None,
            file: None,
        };
        let key = holding.key;
        self.install(candidate, holding);
        Ok(key)
    }

    /// The index for a new entry of a domain with these ranges, which nobody may hold on other terms.
    pub(crate) fn candidate(
        &self,
        domain: Domain,
        ranges: &[LbaRange],
        claim: Claim,
    ) -> Result<Candidate, TableError> {
        if ranges.iter().any(|range| self.claims.conflicts(*range, claim)) {
            return Err(TableError::Overlap);
        }
        let candidate = self.slots.candidate(domain).ok_or(TableError::NoResources)?;
        if Self::is_beyond(candidate.instance) || ranges.len() > self.pool.free() {
            return Err(TableError::NoResources);
        }
        Ok(candidate)
    }

    /// Takes the index and publishes the entry: LBA entries first, then the entry's fields, its state word last.
    pub(crate) fn install(&mut self, candidate: Candidate, holding: Holding) {
        let (index, domain, claim) = (candidate.index, holding.domain, holding.claim());
        self.slots.take(domain, candidate);
        self.instances.handed_out(candidate.instance);
        holding.ranges.iter().for_each(|range| self.claims.add(*range, claim));
        self.published.set_owner(index / SEGMENT_ENTRIES, domain);
        self.holdings.insert(index, holding);
        let holding = &self.holdings[&index];
        if holding.file.is_some() {
            self.publish_file(index);
        } else {
            self.published.entry(index).set_shape(Shape::new(domain, holding.block_shift));
            self.publish_blocks(holding);
        }
        self.published.entry(index).state.set(index, holding.state_word());
    }

    /// Whether a first instance is not one of this width.
    pub(crate) fn is_beyond(instance: KeyInstance) -> bool {
        instance.0 > u32::MAX >> (32 - B)
    }

    /// Writes a grant's LBA list and switches the pointer to it.
    fn publish_blocks(&self, holding: &Holding) {
        let index = holding.key.index().0;
        let pointer = write_list(&self.published, index, &holding.ranges, &holding.nodes);
        let entry = self.published.entry(index);
        entry.set_blocks(holding.key, holding.first_range(), pointer, holding.bytes());
    }

    /// The grant that `key` names, if `domain` (`None`: the authority) may manage it.
    pub(crate) fn holding(&self, domain: Option<Domain>, key: Key) -> Result<&Holding, TableError> {
        let index = key.index().0;
        if index >= self.published.limits.entries {
            return Err(TableError::KeyRange);
        }
        if domain.is_some() && self.published.owner(index / SEGMENT_ENTRIES) != domain {
            return Err(TableError::Domain);
        }
        let holding = self.holdings.get(&index).ok_or(TableError::EntryInvalid)?;
        if holding.key != key { Err(TableError::KeyInstance) } else { Ok(holding) }
    }

    /// What the entry says about itself. Allowed while I/O is active, delays nothing.
    ///
    /// # Errors
    /// `KeyRange`, `Domain`, `EntryInvalid` (also while it is being deleted or revoked), `KeyInstance`.
    pub fn query(&self, domain: Domain, key: Key) -> Result<Attributes, TableError> {
        let holding = self.holding(Some(domain), key)?;
        if holding.state_word().stage() == Stage::Closed {
            return Err(TableError::EntryInvalid);
        }
        Ok(Attributes {
            key,
            domain: holding.domain,
            access: holding.access,
            block_shift: holding.block_shift,
            blocks: Blocks(holding.blocks()),
            ranges: holding.ranges.to_vec(),
            shared: holding.shared,
            file: files::attributes(holding),
        })
    }

    /// Begins to modify, delete or revoke. From here on new requests are held (modify) or fail.
    ///
    /// `domain` is who asks; `None` is the authority. One operation at a time, but a revocation overtakes a modify or
    /// delete that has not ended, and a revocation that was cancelled can be begun again.
    ///
    /// # Errors
    /// `KeyRange`, `Domain`, `EntryInvalid`, `KeyInstance`, `Busy`; nothing has changed then.
    pub fn begin(
        &mut self,
        domain: Option<Domain>,
        key: Key,
        purpose: Purpose,
    ) -> Result<Quiesce, TableError> {
        match (self.holding(domain, key)?.quiescing, purpose) {
            (None, _) => {}
            (Some(Quiescing { purpose: Purpose::Revoke, ticket: None }), Purpose::Revoke) => {}
            (Some(Quiescing { purpose: Purpose::Revoke, .. }), Purpose::Modify | Purpose::Delete) => {
                return Err(TableError::EntryInvalid);
            }
            (Some(Quiescing { purpose: Purpose::Modify | Purpose::Delete, .. }), Purpose::Revoke) => {}
            (Some(_), _) => return Err(TableError::Busy),
        }
        self.tickets += 1;
        let ticket = self.tickets;
        self.set_quiescing(key, Some(Quiescing { purpose, ticket: Some(ticket) }));
        Ok(Quiesce { key, purpose, ticket })
    }

    pub(crate) fn set_quiescing(&mut self, key: Key, quiescing: Option<Quiescing>) {
        let index = key.index().0;
        if let Some(holding) = self.holdings.get_mut(&index) {
            holding.quiescing = quiescing;
            self.published.entry(index).state.set(index, holding.state_word());
        }
    }

    /// Changes a grant at its quiescent point and opens it again. New blocks are written elsewhere, the pointer is
    /// switched, the old LBA entries are freed.
    ///
    /// # Errors
    /// `Parameter`, `Overlap`, `NoResources`, or `EntryInvalid` if a revocation has overtaken it. Nothing has changed
    /// then, the entry is still quiescing, and the token comes back, to be tried again or cancelled.
    pub fn finish_modify(
        &mut self,
        quiesce: Quiesce,
        change: &Modification<'_>,
    ) -> Result<(), (Quiesce, TableError)> {
        match self.modify(&quiesce, change) {
            Ok(()) => Ok(()),
            Err(error) => Err((quiesce, error)),
        }
    }

    fn modify(&mut self, quiesce: &Quiesce, change: &Modification<'_>) -> Result<(), TableError> {
        let index = quiesce.key.index().0;
        let holding = self.quiesced(quiesce, Purpose::Modify)?;
        if holding.file.is_some() {
            return Err(TableError::Kind);
        }
        if let Some(ranges) = change.ranges {
            if ranges.is_empty() {
                return Err(TableError::Parameter);
            }
            check_blocks(ranges, holding.block_shift)?;
            let claim = holding.claim();
            if ranges.iter().any(|range| self.claims.conflicts(*range, claim)) {
                return Err(TableError::Overlap);
            }
            let nodes = self.pool.take(ranges.len()).ok_or(TableError::NoResources)?;
            // The new claims before the old ones end, so that what is in both is never unclaimed.
            ranges.iter().for_each(|range| self.claims.add(*range, claim));
            let holding = self.holdings.get_mut(&index).expect("it was found");
            holding.ranges.iter().for_each(|range| self.claims.remove(*range));
            holding.ranges = ranges.into();
            let old = core::mem::replace(&mut holding.nodes, nodes.into());
            self.publish_blocks(&self.holdings[&index]);
            self.pool.give_back(&self.published, &old);
        }
        if let Some(holding) = self.holdings.get_mut(&index) {
            holding.access = change.access.unwrap_or(holding.access);
        }
        self.set_quiescing(quiesce.key, None);
        Ok(())
    }

    /// The entry that a token may still end, if it was begun for that.
    pub(crate) fn quiesced(&self, quiesce: &Quiesce, purpose: Purpose) -> Result<&Holding, TableError> {
        if quiesce.purpose != purpose {
            return Err(TableError::Parameter);
        }
        let holding = self.holdings.get(&quiesce.key.index().0).ok_or(TableError::EntryInvalid)?;
        if holding.is_quiesced_by(quiesce) { Ok(holding) } else { Err(TableError::EntryInvalid) }
    }

    /// Ends a delete or a revocation at the quiescent point, or a modify whose grant is no longer wanted: the entry
    /// and its LBA entries are free, the index's next life has the next instance. Does nothing if a revocation has
    /// overtaken the operation; that one's own token ends it.
    #[allow(clippy::needless_pass_by_value)] // the token ends here
    pub fn finish_delete(&mut self, quiesce: Quiesce) {
        let index = quiesce.key.index().0;
        if !self.holdings.get(&index).is_some_and(|holding| holding.is_quiesced_by(&quiesce)) {
            return;
        }
        let Some(holding) = self.holdings.remove(&index) else {
            return;
        };
        let entry = self.published.entry(index);
        entry.state.set(index, StateWord::FREE);
        entry.set_shape(Shape::new(holding.domain, holding.block_shift));
        entry.set_blocks(
            holding.key,
            FirstRange { first: 0, blocks: 0 },
            ListPointer { root: NONE, length: 0 },
            0,
        );
        self.free_extensions(&holding);
        self.pool.give_back(&self.published, &holding.nodes);
        holding.ranges.iter().for_each(|range| self.claims.remove(*range));
        let latest = holding.file.as_ref().map_or(holding.key.instance(), |file| file.highest(holding.key));
        self.slots.give_back(index, Self::next_instance(latest));
    }

    /// The timer ended before the quiescent point. A modify or delete is undone: the entry is open as before. A
    /// revocation is not: the entry stays closed and in use, until the revocation is begun again and finished.
    #[allow(clippy::needless_pass_by_value)] // the token ends here
    pub fn cancel(&mut self, quiesce: Quiesce) {
        let holding = self.holdings.get(&quiesce.key.index().0);
        if !holding.is_some_and(|holding| holding.is_quiesced_by(&quiesce)) {
            return; // a revocation has overtaken it
        }
        let stays = Quiescing { purpose: Purpose::Revoke, ticket: None };
        self.set_quiescing(quiesce.key, (quiesce.purpose == Purpose::Revoke).then_some(stays));
    }

    /// The keys of all grants of a domain, also of those being deleted or revoked, in the order of their indexes.
    pub fn keys_of(&self, domain: Domain) -> Vec<Key> {
        let in_segment = |segment: u32| {
            let first = segment * SEGMENT_ENTRIES;
            self.holdings.range(first..=first + (SEGMENT_ENTRIES - 1)).map(|(_, holding)| holding.key)
        };
        self.slots.segments_of(domain).flat_map(in_segment).collect()
    }

    /// What is in use.
    pub fn usage(&self) -> Usage {
        Usage {
            entries: self.slots.used(),
            lba_entries: self.pool.used(),
            extensions: self.segments.used(),
            regions: self.regions.used(),
        }
    }

    /// Points an entry's LBA pointer somewhere else behind the tables' back, and has the entry's seal say that all is
    /// well (S8-R11).
    #[cfg(any(test, feature = "oracle"))]
    pub fn corrupt_pointer_for_test(&self, entry: EntryIndex, root: u32, length: u32) {
        let its = self.published.entry(entry.0);
        let bytes = its.bytes.load(core::sync::atomic::Ordering::Relaxed);
        let key = Key::new(entry, its.state.get(entry.0).instance());
        its.set_blocks(key, its.first_range(), ListPointer { root, length }, bytes);
    }

    /// Changes bits of a word of an entry behind the tables' back: 0 its size, 1 and 2 its first range, 3 its LBA
    /// pointer, 4 its domain and block size, 5 its seal (S8-R11).
    #[cfg(any(test, feature = "oracle"))]
    pub fn damage_entry_for_test(&self, entry: EntryIndex, word: usize, bits: u64) {
        self.published.entry(entry.0).damage(word, bits);
    }

    /// Writes over one entry what another says of its blocks, behind the tables' back (S8-R11).
    #[cfg(any(test, feature = "oracle"))]
    pub fn overwrite_entry_for_test(&self, entry: EntryIndex, with: EntryIndex) {
        self.published.entry(entry.0).overwrite_with(self.published.entry(with.0));
    }

    /// Changes bits of a word of an entry of the FEPT behind the tables' back: 0 its state, 1 whose it is and which LBA entry
    /// it has, 2 its offset, 3 its bytes, 4 its first block, 5 its seal (S8-R11).
    #[cfg(any(test, feature = "oracle"))]
    pub fn damage_extension_for_test(&self, position: u32, word: usize, bits: u64) {
        self.published.extensions[position as usize].damage(word, bits);
    }

    /// Writes over one entry of the FEPT what another is, behind the tables' back (S8-R11).
    #[cfg(any(test, feature = "oracle"))]
    pub fn overwrite_extension_for_test(&self, position: u32, with: u32) {
        let all = &self.published.extensions;
        all[position as usize].overwrite_with(&all[with as usize]);
    }

    /// Changes bits of a word of an LBA entry behind the tables' back: 0 whose it is, 1 and 2 what is left and right of
    /// it in its tree, 3 blocks before it, 4 its first block, 5 its blocks (S8-R11).
    #[cfg(any(test, feature = "oracle"))]
    pub fn damage_lba_entry_for_test(&self, entry: u32, word: usize, bits: u64) {
        if let Some(entry) = self.published.lba_entry(entry) {
            entry.damage(word, bits);
        }
    }
}

/// That a grant of these ranges makes sense; of none, too.
fn check_blocks(ranges: &[LbaRange], block_shift: u8) -> Result<(), TableError> {
    if ranges.iter().any(|range| range.is_hole()) {
        return Err(TableError::Parameter);
    }
    check_ranges(ranges, block_shift)
}

/// The same of a file, some of which may be holes.
pub(crate) fn check_ranges(ranges: &[LbaRange], block_shift: u8) -> Result<(), TableError> {
    if !(9..=16).contains(&block_shift) || u32::try_from(ranges.len()).is_err() {
        return Err(TableError::Parameter);
    }
    let mut total = 0u64;
    for range in ranges {
        LbaRange::new(range.first.0, range.count.0).ok_or(TableError::Parameter)?;
        if range.reaches_holes() {
            return Err(TableError::Parameter);
        }
        total = total.checked_add(range.count.0).ok_or(TableError::Parameter)?;
    }
    // Its size in bytes must be a number, too.
    if total > u64::MAX >> block_shift {
        return Err(TableError::Parameter);
    }
    if ranges.len() > 1 {
        let mut sorted: Vec<_> = ranges.iter().map(|range| (range.first, range.end())).collect();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[0].1 > pair[1].0) {
            return Err(TableError::Parameter);
        }
    }
    Ok(())
}
