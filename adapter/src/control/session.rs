//! What one connection holds.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use driver::hal::Mapping;
use tpt::{Access, Domain, Key, RegionKey, SEGMENT_ENTRIES};
use wire::socket::Credentials;

use super::SessionId;
use super::files::FileHeld;
use super::limits::{Held, What};
use super::memory::Moving;
use crate::device::Witness;
use crate::engine::PortCounters;
use crate::memory::Adopted;

/// See the module.
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) domain: Domain,
    pub(super) credentials: Credentials,
    pub(super) welcomed: bool,
    /// The connection has ended; what it held is being given back.
    pub(super) closing: bool,
    /// What it was told of losses.
    pub(super) witness: Witness,
    /// Requests without an answer yet.
    pub(super) outstanding: u32,
    pub(super) queues: BTreeMap<u32, QueueHeld>,
    pub(super) grants: BTreeMap<Key, GrantHeld>,
    pub(super) regions: BTreeMap<RegionKey, RegionHeld>,
    /// Of its queues and regions.
    pub(super) pinned_bytes: u64,
    /// Memory on its way in or out.
    pub(super) moving: BTreeMap<u64, Moving>,
    /// Descriptors that were sent to it and that it has not received yet, as far as is known.
    pub(super) lent: u64,
    /// Its grants in each segment of the tables, and their LBA table entries.
    segments: BTreeMap<u32, u32>,
    ranges: u64,
}

/// A processing queue of a session.
pub(super) struct QueueHeld {
    pub(super) poller: usize,
    /// Ours; the application has a duplicate.
    pub(super) eventfd: OwnedFd,
    pub(super) memory: Adopted,
    pub(super) counters: Arc<PortCounters>,
    pub(super) ending: bool,
    /// Requests completed at the last look at the load.
    pub(super) completed_before: u64,
}

/// A grant of a session.
pub(super) struct GrantHeld {
    pub(super) volume: store::VolumeId,
    pub(super) access: Access,
    /// No other session may write to the volume meanwhile.
    pub(super) exclusive: bool,
    pub(super) bytes: u64,
    /// Contiguous ranges: entries of the LBA table.
    pub(super) ranges: u64,
    /// What file it is; `None` of a grant of blocks.
    pub(super) file: Option<FileHeld>,
    /// A close, modify or revoke is under way.
    pub(super) quiescing: bool,
    /// It was revoked: whatever is under way ends with its end, never with its return.
    pub(super) revoked: bool,
}

/// A memory region of a session. The mapping goes first, then the memory.
pub(super) struct RegionHeld {
    pub(super) mapping: Box<dyn Mapping>,
    pub(super) bytes: u64,
    pub(super) quiescing: bool,
}

impl Session {
    pub(super) fn new(id: SessionId, domain: Domain, credentials: Credentials, witness: Witness) -> Self {
        Self {
            id,
            domain,
            credentials,
            welcomed: false,
            closing: false,
            witness,
            outstanding: 0,
            queues: BTreeMap::new(),
            grants: BTreeMap::new(),
            regions: BTreeMap::new(),
            pinned_bytes: 0,
            moving: BTreeMap::new(),
            lent: 0,
            segments: BTreeMap::new(),
            ranges: 0,
        }
    }

    /// How much of everything it holds.
    pub(super) fn held(&self) -> Held {
        let mut held = Held::default();
        let count = |n: usize| n as u64;
        held.add(What::Connections, 1);
        held.add(What::Descriptors, 1 + count(self.queues.len()) + self.lent);
        held.add(What::Pinned, self.pinned_bytes);
        held.add(What::Regions, count(self.regions.len()));
        held.add(What::Queues, count(self.queues.len()));
        held.add(What::Grants, count(self.grants.len()));
        held.add(What::Entries, count(self.segments.len()) * u64::from(SEGMENT_ENTRIES));
        held.add(What::Ranges, self.ranges);
        held.add(What::Requests, u64::from(self.outstanding));
        for moving in self.moving.values() {
            held.add(moving.what, 1);
            held.add(What::Pinned, moving.bytes);
            held.add(What::Descriptors, moving.descriptors());
        }
        held
    }

    /// Table entries that one more grant sets aside, at most.
    pub(super) fn entries_for_one_more(&self) -> u64 {
        let room = self.segments.len() as u64 * u64::from(SEGMENT_ENTRIES);
        if room > self.grants.len() as u64 { 0 } else { u64::from(SEGMENT_ENTRIES) }
    }

    pub(super) fn add_grant(&mut self, key: Key, held: GrantHeld) {
        *self.segments.entry(key.index().0 / SEGMENT_ENTRIES).or_default() += 1;
        self.ranges += held.ranges;
        self.grants.insert(key, held);
    }

    pub(super) fn remove_grant(&mut self, key: Key) -> Option<GrantHeld> {
        let held = self.grants.remove(&key)?;
        self.ranges -= held.ranges;
        let segment = key.index().0 / SEGMENT_ENTRIES;
        if let Some(grants) = self.segments.get_mut(&segment) {
            *grants -= 1;
            if *grants == 0 {
                self.segments.remove(&segment);
            }
        }
        Some(held)
    }

    /// A grant has as many ranges now, and is open again.
    pub(super) fn resize_grant(&mut self, key: Key, bytes: u64, ranges: u64) {
        if let Some(held) = self.grants.get_mut(&key) {
            self.ranges = self.ranges - held.ranges + ranges;
            (held.bytes, held.ranges) = (bytes, ranges);
        }
    }

    pub(super) fn completed(&self) -> u64 {
        self.queues.values().map(|q| q.counters.completed()).sum()
    }

    pub(super) fn failed(&self) -> u64 {
        self.queues.values().map(|q| q.counters.failed()).sum()
    }

    /// Whether nothing is left of it.
    pub(super) fn is_empty(&self) -> bool {
        self.queues.is_empty() && self.grants.is_empty() && self.regions.is_empty() && self.moving.is_empty()
    }
}
