//! What is on the device: a store of ours, or what another program made.

use std::ops::Range;

use driver::block::Geometry;
use driver::disk::Disk;
use store::{Found, Ledger, Store, StoreError, Volume, VolumeKind, Wish};
use tpt::LbaRange;

use super::{Job, Outcome};

/// See the module.
#[allow(clippy::large_enum_variant)] // there is one
pub enum Contents {
    /// A store, with its volumes.
    Store(Store),
    /// A file system as it was found: one volume, which stays what it is.
    Found(Found),
}

impl Contents {
    /// What a store is known by. A file system as it was found has nothing of the kind that is of use here.
    pub fn uuid(&self) -> Option<[u8; 16]> {
        match self {
            Self::Store(store) => Some(store.uuid()),
            Self::Found(_) => None,
        }
    }

    /// All volumes.
    pub(super) fn volumes(&self) -> Result<Vec<Volume>, StoreError> {
        match self {
            Self::Store(store) => store.volumes(),
            Self::Found(found) => Ok(vec![found.volume().clone()]),
        }
    }

    /// The volume of this name.
    pub(super) fn volume(&self, name: &str) -> Result<Volume, StoreError> {
        match self {
            Self::Store(store) => store.volume(name),
            Self::Found(found) if found.volume().name == name => Ok(found.volume().clone()),
            Self::Found(_) => Err(StoreError::NoSuchVolume { name: name.to_owned() }),
        }
    }

    /// A volume as a disk of its own.
    pub(super) fn window(&mut self, name: &str) -> Result<Box<dyn Disk>, StoreError> {
        self.volume(name)?;
        match self {
            Self::Store(store) => Ok(Box::new(store.window(name)?)),
            Self::Found(found) => Ok(found.disk()),
        }
    }

    /// Says what a volume is used as.
    pub(super) fn set_kind(&mut self, name: &str, kind: VolumeKind) -> Result<Volume, StoreError> {
        self.store()?.set_kind(name, kind)
    }

    fn store(&mut self) -> Result<&mut Store, StoreError> {
        match self {
            Self::Store(store) => Ok(store),
            Self::Found(_) => Err(StoreError::NoStore),
        }
    }

    /// What was granted lately; nothing is, over what was found.
    pub(super) fn ledger(&self) -> Ledger {
        match self {
            Self::Store(store) => store.ledger().clone(),
            Self::Found(_) => Ledger::default(),
        }
    }

    pub(super) fn execute(&mut self, job: Job, wish: Option<Wish>) -> Outcome {
        let work = |store: &mut Store| match job {
            Job::Create { name, bytes, owner } => store.create(&name, bytes, owner).map(Some),
            Job::Grow { name, bytes } => store.grow(&name, bytes).map(Some),
            Job::Shrink { name, bytes } => store.shrink(&name, bytes).map(Some),
            Job::Rename { from, to } => store.rename(&from, &to).map(Some),
            Job::Delete { name } => store.delete(&name).map(|()| None),
            Job::SetAccess { name, subject, access } => store.set_access(&name, subject, access).map(Some),
            Job::SetLimits { name, limits } => store.set_limits(&name, limits).map(Some),
        };
        self.store()?.guarded(|store| store.granting(wish, work))
    }

    pub(super) fn reserve_instances(&mut self, count: u32) -> Result<Range<u32>, StoreError> {
        match self {
            Self::Store(store) => store.guarded(|store| store.reserve_instances(count)),
            Self::Found(found) => found.reserve_instances(count),
        }
    }

    /// Which store it is, how often an adapter has started over it, now included, and whether the last time was settled. What was
    /// found keeps no such count: no life of it follows another.
    pub(super) fn begin_life(&mut self) -> Result<(u128, u64, bool), StoreError> {
        match self {
            Self::Store(store) => {
                let uuid = u128::from_le_bytes(store.uuid());
                let settled = store.is_settled();
                Ok((uuid, store.guarded(Store::begin_life)?, settled))
            }
            Self::Found(_) => Ok((0, 0, false)),
        }
    }

    /// All that was done is durable, and nothing more will be.
    pub(super) fn settle(&mut self) -> Result<(), StoreError> {
        match self {
            Self::Store(store) => store.guarded(Store::settle),
            Self::Found(_) => Ok(()),
        }
    }

    pub(super) fn touch(&mut self) -> Result<(), StoreError> {
        match self {
            Self::Store(store) => store.guarded(Store::touch),
            Self::Found(found) => found.touch(),
        }
    }

    /// What is found is changed by its users alone, who sync it.
    pub(super) fn flush_changes(&mut self) -> Result<(), StoreError> {
        match self {
            Self::Store(store) => store.guarded(Store::flush_changes),
            Self::Found(_) => Ok(()),
        }
    }

    pub(super) fn metadata_extents(&self) -> Vec<LbaRange> {
        match self {
            Self::Store(store) => store.metadata_extents(),
            Self::Found(_) => Vec::new(),
        }
    }

    pub(super) fn free_blocks(&self) -> u64 {
        match self {
            Self::Store(store) => store.free_blocks(),
            Self::Found(_) => 0,
        }
    }

    pub(super) fn geometry(&self) -> &Geometry {
        match self {
            Self::Store(store) => store.geometry(),
            Self::Found(found) => found.geometry(),
        }
    }
}
