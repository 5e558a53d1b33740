//! Which indexes of the adapter protection table are free, in which life each is, and which domain has which segment.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::published::SEGMENT_ENTRIES;
use crate::{Domain, EntryIndex, Key, KeyInstance};

/// One bit for each entry of a segment.
type Mask = u16;
const _: () = assert!(Mask::BITS == SEGMENT_ENTRIES);

#[derive(Debug)]
struct SegmentUse {
    domain: Domain,
    /// Entries that may be handed out.
    free: Mask,
    /// Entries that are not retired.
    usable: Mask,
    /// When it became wholly free, on a count of such events.
    idle_since: u64,
    /// The instance of each entry's next life, or of its present one.
    instances: [KeyInstance; SEGMENT_ENTRIES as usize],
}

#[derive(Debug, Default)]
struct DomainUse {
    segments: BTreeSet<u32>,
    /// Those with a free entry.
    open: BTreeSet<u32>,
}

/// The indexes of the table, in segments of one domain each.
///
/// A segment whose entries are all free stays with its domain, so that its old keys are still answered as invalid,
/// until another domain needs it and no unused one is left.
#[derive(Debug)]
pub(crate) struct Slots {
    limit: u32,
    first_instance: KeyInstance,
    /// Those ever used; the rest of the table is untouched.
    segments: Vec<SegmentUse>,
    domains: BTreeMap<Domain, DomainUse>,
    /// Wholly free segments, the longest free one first.
    idle: BTreeSet<(u64, u32)>,
    idle_events: u64,
    used: u32,
}

/// A free index that a domain may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Candidate {
    pub(crate) index: u32,
    pub(crate) instance: KeyInstance,
}

impl Candidate {
    pub(crate) fn key(self) -> Key {
        Key::new(EntryIndex(self.index), self.instance)
    }
}

impl Slots {
    pub(crate) fn new(limit: u32, first_instance: KeyInstance) -> Self {
        Self {
            limit,
            first_instance,
            segments: Vec::new(),
            domains: BTreeMap::new(),
            idle: BTreeSet::new(),
            idle_events: 0,
            used: 0,
        }
    }

    pub(crate) fn used(&self) -> u32 {
        self.used
    }

    /// How many entries segment `segment` has: the last one may be short.
    fn mask_of(&self, segment: u32) -> Mask {
        let entries = self.limit.saturating_sub(segment.saturating_mul(SEGMENT_ENTRIES)).min(SEGMENT_ENTRIES);
        if entries == SEGMENT_ENTRIES { Mask::MAX } else { (1 << entries) - 1 }
    }

    fn next_segment(&self) -> u32 {
        u32::try_from(self.segments.len()).unwrap_or(u32::MAX)
    }

    /// The index that [`Slots::take`] would take for `domain`. Changes nothing.
    pub(crate) fn candidate(&self, domain: Domain) -> Option<Candidate> {
        let open = self.domains.get(&domain).and_then(|its| its.open.first());
        let fresh = self.next_segment();
        let segment = match open {
            Some(&segment) => segment,
            None if self.mask_of(fresh) != 0 => {
                return Some(Candidate { index: fresh * SEGMENT_ENTRIES, instance: self.first_instance });
            }
            None => self.idle.first()?.1,
        };
        let its = &self.segments[segment as usize];
        let bit = its.free.trailing_zeros();
        Some(Candidate { index: segment * SEGMENT_ENTRIES + bit, instance: its.instances[bit as usize] })
    }

    /// Takes a candidate of `domain`.
    pub(crate) fn take(&mut self, domain: Domain, candidate: Candidate) {
        let segment = candidate.index / SEGMENT_ENTRIES;
        if segment == self.next_segment() {
            let mask = self.mask_of(segment);
            self.segments.push(SegmentUse {
                domain,
                free: mask,
                usable: mask,
                idle_since: 0,
                instances: [self.first_instance; SEGMENT_ENTRIES as usize],
            });
        }
        let its = &mut self.segments[segment as usize];
        self.idle.remove(&(its.idle_since, segment));
        if its.domain != domain
            && let Some(former) = self.domains.get_mut(&its.domain)
        {
            former.segments.remove(&segment);
            former.open.remove(&segment);
            if former.segments.is_empty() {
                self.domains.remove(&its.domain);
            }
        }
        its.domain = domain;
        its.free &= !(1 << (candidate.index % SEGMENT_ENTRIES));
        let ours = self.domains.entry(domain).or_default();
        ours.segments.insert(segment);
        if its.free == 0 {
            ours.open.remove(&segment);
        } else {
            ours.open.insert(segment);
        }
        self.used += 1;
    }

    /// Frees an index. Its next life has instance `next`; with `None` it has none.
    pub(crate) fn give_back(&mut self, index: u32, next: Option<KeyInstance>) {
        let (segment, place) = (index / SEGMENT_ENTRIES, index % SEGMENT_ENTRIES);
        let its = &mut self.segments[segment as usize];
        match next {
            Some(instance) => {
                its.instances[place as usize] = instance;
                its.free |= 1 << place;
                self.domains.entry(its.domain).or_default().open.insert(segment);
            }
            None => its.usable &= !(1 << place),
        }
        if its.free == its.usable && its.usable != 0 {
            self.idle_events += 1;
            its.idle_since = self.idle_events;
            self.idle.insert((its.idle_since, segment));
        }
        self.used -= 1;
    }

    /// The segments of a domain.
    pub(crate) fn segments_of(&self, domain: Domain) -> impl Iterator<Item = u32> + '_ {
        self.domains.get(&domain).into_iter().flat_map(|its| its.segments.iter().copied())
    }

    /// Whether the index is free and may be handed out again.
    pub(crate) fn is_free(&self, index: u32) -> bool {
        let its = self.segments.get((index / SEGMENT_ENTRIES) as usize);
        its.is_none_or(|its| its.free & 1 << (index % SEGMENT_ENTRIES) != 0)
    }

    /// Whether the index has had its last life.
    pub(crate) fn is_retired(&self, index: u32) -> bool {
        let its = self.segments.get((index / SEGMENT_ENTRIES) as usize);
        its.is_some_and(|its| its.usable & 1 << (index % SEGMENT_ENTRIES) == 0)
    }

    /// What must hold whatever happened.
    pub(crate) fn self_check(&self) -> Result<(), &'static str> {
        let mut used = 0;
        for (number, its) in (0..).zip(&self.segments) {
            if its.free & !its.usable != 0 {
                return Err("a retired index is free");
            }
            used += (its.usable & !its.free).count_ones();
            let domain = self.domains.get(&its.domain).ok_or("a segment's domain has no segments")?;
            if !domain.segments.contains(&number) || domain.open.contains(&number) != (its.free != 0) {
                return Err("a domain does not know its segment");
            }
            let idle = its.usable != 0 && its.free == its.usable;
            if self.idle.contains(&(its.idle_since, number)) != idle {
                return Err("a wholly free segment is not idle, or the reverse");
            }
        }
        let listed: usize = self.domains.values().map(|its| its.segments.len()).sum();
        let open_is_owned = self.domains.values().all(|its| its.open.is_subset(&its.segments));
        if listed != self.segments.len() || !open_is_owned {
            return Err("a segment is in no domain or in two");
        }
        if used != self.used { Err("entries in use are miscounted") } else { Ok(()) }
    }
}
