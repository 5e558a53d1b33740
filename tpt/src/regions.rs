//! The memory-region table.

use alloc::collections::BTreeMap;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;

use crate::published::{Stage, StateWord};
use crate::{Access, Domain, KeyInstance, RegionIndex, RegionKey, RegionSpec, TableError, Tables};

/// The control plane's side of the memory-region table.
#[derive(Debug)]
pub(crate) struct RegionTable {
    limit: u32,
    first_instance: KeyInstance,
    /// Indexes from here on were never used.
    fresh: u32,
    /// Free indexes below `fresh`, and the instance of each one's next life.
    returned: BTreeMap<u32, KeyInstance>,
    pub(crate) held: BTreeMap<u32, HeldRegion>,
    by_domain: BTreeMap<Domain, BTreeSet<u32>>,
    pub(crate) retired: u32,
}

/// One region as the control plane knows it.
#[derive(Debug)]
pub(crate) struct HeldRegion {
    pub(crate) key: RegionKey,
    pub(crate) spec: RegionSpec,
    pub(crate) closing: bool,
}

/// The deletion of a region between its begin and its end. It cannot be cancelled.
#[must_use = "until it is finished the region's memory is in use"]
#[derive(PartialEq, Eq, Debug)]
pub struct RegionQuiesce {
    key: RegionKey,
}

impl RegionQuiesce {
    /// Of which region.
    pub fn key(&self) -> RegionKey {
        self.key
    }

    /// Of which table entry: what pollers are asked about.
    pub fn region(&self) -> RegionIndex {
        self.key.index()
    }
}

impl RegionTable {
    pub(crate) fn new(limit: u32, first_instance: KeyInstance) -> Self {
        Self {
            limit,
            first_instance,
            fresh: 0,
            returned: BTreeMap::new(),
            held: BTreeMap::new(),
            by_domain: BTreeMap::new(),
            retired: 0,
        }
    }

    pub(crate) fn used(&self) -> u32 {
        u32::try_from(self.held.len()).unwrap_or(u32::MAX)
    }

    fn candidate(&self) -> Option<(u32, KeyInstance)> {
        match self.returned.first_key_value() {
            Some((&index, &instance)) => Some((index, instance)),
            None => (self.fresh < self.limit).then_some((self.fresh, self.first_instance)),
        }
    }

    /// That no index is lost and each domain knows its regions.
    pub(crate) fn self_check(&self) -> Result<(), &'static str> {
        let known = self.held.len() + self.returned.len() + self.retired as usize;
        if known != self.fresh as usize || self.returned.keys().any(|index| self.held.contains_key(index)) {
            return Err("a region index is lost or both free and held");
        }
        let listed: usize = self.by_domain.values().map(BTreeSet::len).sum();
        let knows = |index: &u32, region: &HeldRegion| {
            self.by_domain.get(&region.spec.domain).is_some_and(|its| its.contains(index))
        };
        if listed != self.held.len() || !self.held.iter().all(|(index, region)| knows(index, region)) {
            return Err("a region is not in its domain's list");
        }
        Ok(())
    }
}

impl HeldRegion {
    pub(crate) fn state_word(&self) -> StateWord {
        let stage = if self.closing { Stage::Closed } else { Stage::Valid };
        StateWord::new(self.key.instance(), self.spec.access, stage)
    }
}

impl<const B: u32> Tables<B> {
    /// A new memory region, open for requests.
    ///
    /// # Errors
    /// `Parameter`, `NoResources` or `Ceiling`; nothing is left allocated then.
    pub fn create_region(&mut self, spec: &RegionSpec) -> Result<RegionKey, TableError> {
        let RegionSpec { domain, access, iova, bytes } = *spec;
        let nothing = access.intersection(Access::READ_WRITE) == Access::NONE;
        if nothing || bytes == 0 || !iova.0.is_multiple_of(4) || iova.0.checked_add(bytes).is_none() {
            return Err(TableError::Parameter);
        }
        let (index, instance) = self.regions.candidate().ok_or(TableError::NoResources)?;
        if Self::is_beyond(instance) {
            return Err(TableError::NoResources);
        }
        let entry = self.published.region(index).ok_or(TableError::NoResources)?;
        self.instances.allow(instance)?;

        self.instances.handed_out(instance);
        if self.regions.returned.remove(&index).is_none() {
            self.regions.fresh += 1;
        }
        let held =
            HeldRegion { key: RegionKey::new(RegionIndex(index), instance), spec: *spec, closing: false };
        entry.domain.store(domain.0, Relaxed);
        entry.iova.store(iova.0, Relaxed);
        entry.bytes.store(bytes, Relaxed);
        entry.state.set(index, held.state_word());
        let key = held.key;
        self.regions.held.insert(index, held);
        self.regions.by_domain.entry(domain).or_default().insert(index);
        Ok(key)
    }

    /// Begins to delete a region: from here on requests that name it fail. Those in flight go on until released.
    ///
    /// # Errors
    /// `KeyRange`, `EntryInvalid`, `Domain`, `KeyInstance`, or `Busy` if its deletion has begun already.
    pub fn begin_region_delete(
        &mut self,
        domain: Option<Domain>,
        key: RegionKey,
    ) -> Result<RegionQuiesce, TableError> {
        let index = key.index().0;
        let entry = self.published.region(index).ok_or(TableError::KeyRange)?;
        let held = self.regions.held.get_mut(&index).ok_or(TableError::EntryInvalid)?;
        if domain.is_some_and(|domain| domain != held.spec.domain) {
            return Err(TableError::Domain);
        }
        if held.key != key {
            return Err(TableError::KeyInstance);
        }
        if held.closing {
            return Err(TableError::Busy);
        }
        held.closing = true;
        entry.state.set(index, held.state_word());
        Ok(RegionQuiesce { key })
    }

    /// Ends the deletion once every poller has acknowledged that no I/O uses the region: its index, and its memory,
    /// may be used again.
    #[allow(clippy::needless_pass_by_value)] // the token ends here
    pub fn finish_region_delete(&mut self, quiesce: RegionQuiesce) {
        let index = quiesce.key.index().0;
        let Some(held) = self.regions.held.remove(&index) else {
            return;
        };
        if let Some(entry) = self.published.region(index) {
            entry.state.set(index, StateWord::FREE);
        }
        if let Some(its) = self.regions.by_domain.get_mut(&held.spec.domain) {
            its.remove(&index);
            if its.is_empty() {
                self.regions.by_domain.remove(&held.spec.domain);
            }
        }
        match Self::next_instance(held.key.instance()) {
            Some(next) => drop(self.regions.returned.insert(index, next)),
            None => self.regions.retired += 1,
        }
    }

    /// The keys of all regions of a domain, also of those being deleted, in the order of their indexes.
    pub fn regions_of(&self, domain: Domain) -> Vec<RegionKey> {
        let of_domain = self.regions.by_domain.get(&domain).into_iter().flatten();
        of_domain.filter_map(|index| self.regions.held.get(index)).map(|region| region.key).collect()
    }
}
