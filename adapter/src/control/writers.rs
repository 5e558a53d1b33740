//! Who may write to volumes: what an exclusive open asks, and what a session wants to know that had writes without an answer
//! when the adapter before ended.

use std::collections::BTreeMap;

use store::{Volume, VolumeId};
use tpt::Access;
use wire::Status;

use super::{Control, Refusal, SessionId};

/// The sessions that had a right to change volumes since the adapter started, also those that are gone.
#[derive(Default)]
pub(super) struct Writers(BTreeMap<VolumeId, Since>);

enum Since {
    Only(SessionId),
    Several,
}

impl Writers {
    /// A session gets a grant with `access`.
    pub(super) fn note(&mut self, volume: VolumeId, session: SessionId, access: Access) {
        if !writes(access) {
            return;
        }
        let since = self.0.entry(volume).or_insert(Since::Only(session));
        if !matches!(since, Since::Only(first) if *first == session) {
            *since = Since::Several;
        }
    }

    /// Whether no other session had a right to write.
    pub(super) fn is_sole(&self, volume: VolumeId, session: SessionId) -> bool {
        match self.0.get(&volume) {
            None => true,
            Some(Since::Only(first)) => *first == session,
            Some(Since::Several) => false,
        }
    }

    /// The volume is gone; its number never comes again.
    pub(super) fn forget(&mut self, volume: VolumeId) {
        self.0.remove(&volume);
    }
}

fn writes(access: Access) -> bool {
    access.allows(Access::WRITE) || access.allows(Access::TRIM)
}

impl Control {
    /// Whether a grant with `access` goes with what other sessions have. One that is ending counts: its I/O may still run.
    pub(super) fn check_writers(
        &self,
        session: SessionId,
        volume: &Volume,
        access: Access,
        exclusive: bool,
    ) -> Result<(), Refusal> {
        if !writes(access) {
            if exclusive {
                let text =
                    format!("{access} on volume {:?} cannot be exclusive: ask for w or t", volume.name);
                return Err(Refusal::new(Status::E_PARAM, text));
            }
            return Ok(());
        }
        let others = self.sessions.values().filter(|other| other.id != session);
        let mut held = others.flat_map(|other| other.grants.values().map(move |held| (other, held)));
        let in_the_way = held.find(|(_, held)| {
            held.volume == volume.id && writes(held.access) && (exclusive || held.exclusive)
        });
        let Some((other, held)) = in_the_way else { return Ok(()) };
        let how = if held.exclusive { "exclusively" } else { "for writing" };
        let text = format!(
            "session {} has volume {:?} open {how}; close it there, or open it here for reading",
            other.id.0, volume.name
        );
        Err(Refusal::new(Status::E_RESERVATION, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wrote_counts_also_when_it_is_gone() {
        let mut writers = Writers::default();
        let (volume, first, second) = (VolumeId(1), SessionId(1), SessionId(2));
        assert!(writers.is_sole(volume, first));
        writers.note(volume, second, Access::READ);
        writers.note(volume, first, Access::WRITE);
        writers.note(volume, first, Access::ALL);
        assert!(writers.is_sole(volume, first) && !writers.is_sole(volume, second));
        writers.note(volume, second, Access::TRIM);
        assert!(!writers.is_sole(volume, first) && !writers.is_sole(volume, second));
        assert!(writers.is_sole(VolumeId(2), first));
        writers.forget(volume);
        assert!(writers.is_sole(volume, first));
    }
}
