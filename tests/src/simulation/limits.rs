//! Weights and limits that the control plane gives and takes, of sessions and of grants: what they hold back must still end
//! as everything else does, and nothing else may notice.

use std::collections::BTreeSet;
use std::sync::Arc;

use adapter::engine::{Limiter, Terms};
use adapter::mailbox::Command;
use tpt::EntryIndex;
use wire::control::Rate;

use super::outside::Outside;
use super::random::Random;
use super::trace::event;

/// Dice of its own: worlds without limits are what they were before there were any.
pub(super) struct Limits {
    rng: Random,
    on: bool,
    entries: BTreeSet<u32>,
    /// Some grant had a limit: requests may have waited for it.
    pub(super) of_grants: bool,
}

impl Limits {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Random::new(!seed);
        let on = rng.once_in(3);
        Self { rng, on, entries: BTreeSet::new(), of_grants: false }
    }

    fn limiter(&mut self, engines: usize) -> Option<Arc<Limiter>> {
        let rng = &mut self.rng;
        let mut rate = |low, high, burst: &[u64]| {
            (!rng.once_in(3)).then(|| Rate { rate: rng.between(low, high), burst: rng.pick(burst) })
        };
        let requests = rate(1_000, 2_000_000, &[0, 1, 8, 1000]);
        let bytes = rate(1 << 20, 4 << 30, &[0, 1, 4096, 1 << 20]);
        Limiter::new(requests, bytes, engines)
    }
}

impl Outside {
    /// Whether the control plane does something about limits now.
    pub(super) fn limits_step(&mut self) -> bool {
        if !self.limits.on || !self.limits.rng.once_in(6) {
            return false;
        }
        let limiter = self.limits.limiter(self.config.engines);
        if self.limits.rng.once_in(2) {
            let session = self.limits.rng.index(self.clients.len()) as u64;
            let weight = self.limits.rng.pick(&[1, 50, 100, 100, 300, 1000]);
            self.set_terms(session, &Terms { weight, limiters: limiter.into_iter().collect() });
            return true;
        }
        let live: Vec<u32> =
            self.model.grants.iter().filter(|life| !life.finished).map(|life| life.key.index().0).collect();
        if !live.is_empty() {
            let entry = self.limits.rng.pick(&live);
            self.limit_entry(entry, limiter.as_ref());
        }
        true
    }

    fn set_terms(&mut self, session: u64, terms: &Terms) {
        event!(self, "terms", session = session, weight = terms.weight, limiters = terms.limiters.len());
        for engine in 0..self.config.engines {
            self.send(engine, Command::Terms(session, Box::new(terms.clone())));
        }
    }

    fn limit_entry(&mut self, entry: u32, limiter: Option<&Arc<Limiter>>) {
        event!(self, "limit", entry = entry, limited = limiter.is_some());
        if limiter.is_some() {
            self.limits.entries.insert(entry);
            self.limits.of_grants = true;
        } else {
            self.limits.entries.remove(&entry);
        }
        for engine in 0..self.config.engines {
            self.send(engine, Command::Limit(EntryIndex(entry), limiter.cloned()));
        }
    }

    /// A grant ends: its entry may be anybody's next.
    pub(super) fn lift_limit(&mut self, entry: EntryIndex) {
        if self.limits.entries.contains(&entry.0) {
            self.limit_entry(entry.0, None);
        }
    }

    /// No limits any more: all that they held back has to come to its end.
    pub(super) fn lift_all_limits(&mut self) {
        if self.limits.on {
            while let Some(&entry) = self.limits.entries.first() {
                self.limit_entry(entry, None);
            }
            (0..self.clients.len()).for_each(|session| self.set_terms(session as u64, &Terms::default()));
        }
    }
}
