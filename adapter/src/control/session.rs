//! What one connection holds.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use driver::hal::Mapping;
use tpt::{Access, Domain, Key, RegionKey};
use wire::socket::Credentials;

use super::SessionId;
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
    /// Requests without an answer yet.
    pub(super) outstanding: u32,
    pub(super) queues: BTreeMap<u32, QueueHeld>,
    pub(super) grants: BTreeMap<Key, GrantHeld>,
    pub(super) regions: BTreeMap<RegionKey, RegionHeld>,
    pub(super) pinned_bytes: u64,
}

/// A processing queue of a session.
pub(super) struct QueueHeld {
    pub(super) poller: usize,
    /// Ours; the application has a duplicate.
    pub(super) eventfd: OwnedFd,
    pub(super) memory: Adopted,
    pub(super) counters: Arc<PortCounters>,
    pub(super) ending: bool,
}

/// A grant of a session.
pub(super) struct GrantHeld {
    pub(super) volume: store::VolumeId,
    pub(super) access: Access,
    pub(super) bytes: u64,
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
    pub(super) fn new(id: SessionId, domain: Domain, credentials: Credentials) -> Self {
        Self {
            id,
            domain,
            credentials,
            welcomed: false,
            closing: false,
            outstanding: 0,
            queues: BTreeMap::new(),
            grants: BTreeMap::new(),
            regions: BTreeMap::new(),
            pinned_bytes: 0,
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
        self.queues.is_empty() && self.grants.is_empty() && self.regions.is_empty()
    }
}
