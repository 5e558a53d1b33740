//! What was granted by a name of the application's own, so that who asks again, in another life of the adapter, gets the answer
//! and not the change a second time.
//!
//! An answer is kept in the same transaction as what it answers. How many are kept is bounded: a user's last ones, all users'
//! last ones, and none for longer than who asks again would wait. The store has one for changes of volumes, and each file system
//! of ours one for changes of its files.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::VolumeId;

/// Kept of one user, and of all.
pub const WISHES_OF_USER: usize = 32;
/// See [`WISHES_OF_USER`].
pub const WISHES: usize = 512;
/// Seconds.
const KEPT: u64 = 3600;

/// A change that somebody wants to be made once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Wish {
    /// Who.
    pub user: u32,
    /// The name that the user gave it.
    pub id: [u8; 16],
    /// When, in seconds since 1970.
    pub at: u64,
    /// What else the answer needs.
    pub note: u32,
}

/// One that was granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Granted {
    /// What was wanted.
    pub wish: Wish,
    /// The number of the volume or file that it was about.
    pub subject: u64,
}

/// See the module. In the order in which they were granted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ledger(BTreeMap<u64, Granted>);

impl Ledger {
    /// Of rows as they lie in the database; what is none is left out.
    pub(crate) fn load(rows: &[(u64, Vec<u8>)]) -> Self {
        let granted = |bytes: &[u8]| postcard::from_bytes::<Granted>(bytes).ok();
        let rows = rows.iter().rev().take(WISHES);
        Self(rows.filter_map(|(number, bytes)| Some((*number, granted(bytes)?))).collect())
    }

    /// What was granted to this user by that name.
    pub fn find(&self, user: u32, id: &[u8; 16]) -> Option<&Granted> {
        self.0.values().find(|granted| granted.wish.user == user && granted.wish.id == *id)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What granting changes: the number of the new one, its row, and the numbers of those that are not kept any longer.
    pub(crate) fn plan(&self, granted: &Granted) -> (u64, Vec<u8>, Vec<u64>) {
        let number = self.0.last_key_value().map_or(0, |(last, _)| last.saturating_add(1));
        let row = postcard::to_allocvec(granted).expect("plain values always serialize");
        let since = granted.wish.at.saturating_sub(KEPT);
        let is_old = |other: &Granted| other.wish.at < since;
        let of_user = self.0.iter().filter(|(_, other)| other.wish.user == granted.wish.user);
        let kept_of_user = of_user.clone().filter(|(_, other)| !is_old(other)).count();
        let mut gone: Vec<u64> =
            self.0.iter().filter(|(_, other)| is_old(other)).map(|(number, _)| *number).collect();
        let many = (kept_of_user + 1).saturating_sub(WISHES_OF_USER);
        gone.extend(of_user.filter(|(_, other)| !is_old(other)).take(many).map(|(number, _)| *number));
        let left = self.0.len() - gone.len();
        let rest: Vec<u64> = self.0.keys().copied().filter(|number| !gone.contains(number)).collect();
        gone.extend(rest.into_iter().take((left + 1).saturating_sub(WISHES)));
        (number, row, gone)
    }

    /// One more was granted.
    pub fn add(&mut self, granted: Granted) {
        let (number, _, gone) = self.plan(&granted);
        self.0.retain(|number, _| !gone.contains(number));
        self.0.insert(number, granted);
    }
}

impl Granted {
    /// A wish about a volume.
    pub fn new(wish: Wish, volume: VolumeId) -> Self {
        Self { wish, subject: volume.0 }
    }

    /// The volume that it was about.
    pub fn volume(&self) -> VolumeId {
        VolumeId(self.subject)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(user: u32, id: u8, at: u64) -> Granted {
        Granted::new(Wish { user, id: [id; 16], at, note: 0 }, VolumeId(1))
    }

    #[test]
    fn a_user_finds_the_last_of_its_own_and_nobody_elses() {
        let mut ledger = Ledger::default();
        for id in 0..40 {
            ledger.add(granted(1, id, 100));
        }
        ledger.add(granted(2, 200, 100));
        assert_eq!(ledger.len(), WISHES_OF_USER + 1);
        assert!(ledger.find(1, &[7; 16]).is_none() && ledger.find(1, &[8; 16]).is_some());
        assert!(ledger.find(1, &[200; 16]).is_none() && ledger.find(2, &[200; 16]).is_some());
    }

    #[test]
    fn all_together_and_their_age_are_bounded() {
        let mut ledger = Ledger::default();
        for user in 0..1000 {
            ledger.add(granted(user, 1, 100));
        }
        assert_eq!(ledger.len(), WISHES);
        assert!(ledger.find(999, &[1; 16]).is_some() && ledger.find(0, &[1; 16]).is_none());
        ledger.add(granted(1, 2, 100 + KEPT));
        assert_eq!(ledger.len(), WISHES, "none is too old");
        ledger.add(granted(1, 3, 101 + KEPT));
        assert_eq!(ledger.len(), 2, "what is kept is of the last hour");
    }

    #[test]
    fn rows_come_back_and_damaged_ones_are_left_out() {
        let ledger = Ledger::default();
        let (number, row, gone) = ledger.plan(&granted(5, 6, 7));
        assert!(gone.is_empty());
        let loaded = Ledger::load(&[(number, row.clone()), (number + 1, row[..3].to_vec())]);
        assert_eq!(loaded.len(), 1);
        assert_eq!(loaded.find(5, &[6; 16]), Some(&granted(5, 6, 7)));
    }
}
