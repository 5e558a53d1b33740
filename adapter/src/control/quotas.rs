//! What sessions weigh, and how much sessions, users and volumes may do in a second.
//!
//! A volume's limits are kept with it in the store. Those of users and sessions hold until the adapter ends. All engines are
//! told at once of what changes; a limit that is set anew begins with a full burst.

use std::collections::BTreeMap;
use std::sync::Arc;

use tpt::{EntryIndex, Key};
use wire::Status;
use wire::control::{LimitChange, LimitInfo, Limited, Rate, Rates, Reply, Request};

use super::lane::no_volume;
use super::{Caller, Control, Refusal, SessionId};
use crate::engine::{DEFAULT_WEIGHT, Limiter, MAX_WEIGHT, Terms};
use crate::mailbox::Command;
use crate::storage::Job;

/// Users that limits may be set of.
const USERS: usize = 4096;
/// Limits in one reply: what surely fits a message.
const LIST_PAGE: usize = 32;

/// Of a user or a session.
#[derive(Default)]
struct Quota {
    rates: Rates,
    weight: Option<u32>,
    limiter: Option<Arc<Limiter>>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Quotas {
    of_user: BTreeMap<u32, Quota>,
    of_session: BTreeMap<SessionId, Quota>,
    of_volume: BTreeMap<store::VolumeId, Arc<Limiter>>,
}

impl Quotas {
    /// With those of volumes that were there before.
    pub(super) fn new<'a>(volumes: impl Iterator<Item = &'a store::Volume>, engines: usize) -> Self {
        let limited = volumes.filter_map(|v| Some((v.id, limiter(rates_of(v.limits), engines)?)));
        Self { of_volume: limited.collect(), ..Self::default() }
    }

    pub(super) fn forget_session(&mut self, session: SessionId) {
        self.of_session.remove(&session);
    }

    pub(super) fn forget_volume(&mut self, volume: store::VolumeId) {
        self.of_volume.remove(&volume);
    }
}

fn limiter(rates: Rates, engines: usize) -> Option<Arc<Limiter>> {
    Limiter::new(rates.requests, rates.bytes, engines)
}

/// As the store has it, for the wire.
pub(super) fn rates_of(limits: store::Limits) -> Rates {
    let rate = |rate: store::Rate| Rate { rate: rate.rate, burst: rate.burst };
    Rates { requests: limits.requests.map(rate), bytes: limits.bytes.map(rate) }
}

fn limits_of(rates: Rates) -> store::Limits {
    let rate = |rate: Rate| store::Rate { rate: rate.rate, burst: rate.burst };
    store::Limits { requests: rates.requests.map(rate), bytes: rates.bytes.map(rate) }
}

/// What is to hold after a change.
fn changed(rates: Rates, change: &LimitChange) -> Rates {
    let changed =
        |old: Option<Rate>, new: Option<Rate>| new.map_or(old, |new| Some(new).filter(|r| r.rate > 0));
    Rates { requests: changed(rates.requests, change.requests), bytes: changed(rates.bytes, change.bytes) }
}

/// What is wrong with a change, whatever it is of.
fn check_change(change: &LimitChange) -> Result<(), Refusal> {
    let refuse = |text: String| Err(Refusal::new(Status::E_PARAM, text));
    for rate in [change.requests, change.bytes].into_iter().flatten() {
        if rate.rate == 0 && rate.burst != 0 {
            return refuse(format!("a burst of {} belongs to a rate: give one, or no burst", rate.burst));
        }
    }
    match change.weight {
        Some(weight) if weight > MAX_WEIGHT => refuse(format!(
            "a weight of {weight}: give 1 to {MAX_WEIGHT}, or 0 for the usual {DEFAULT_WEIGHT}"
        )),
        _ => Ok(()),
    }
}

impl Control {
    /// For who administers: changes what holds for somebody or something.
    pub(super) fn set_limits(&mut self, caller: Caller, of: Limited, change: LimitChange) {
        match self.begin_limits(caller, &of, &change) {
            Ok(Some(reply)) => self.reply(caller, reply),
            Ok(None) => self.enter_lane(caller, Request::SetLimits { of, change }, None),
            Err(refusal) => self.answer(caller, Err(refusal)),
        }
    }

    /// `None` if the store is to be changed.
    fn begin_limits(
        &mut self,
        caller: Caller,
        of: &Limited,
        change: &LimitChange,
    ) -> Result<Option<Reply>, Refusal> {
        let who = &self.session(caller)?.credentials;
        if !self.policy.is_admin(who) {
            let text = format!("user {} may not set limits: an administrator of the adapter may", who.uid);
            return Err(Refusal::new(Status::E_AUTH, text));
        }
        check_change(change)?;
        let sessions: Vec<SessionId> = match *of {
            Limited::Volume(_) if change.weight.is_some() => {
                let text =
                    "volumes have no weight: sessions have, and a user's is that of each of its sessions";
                return Err(Refusal::new(Status::E_PARAM, text));
            }
            Limited::Volume(_) => return Ok(None),
            Limited::User(uid) => {
                self.users.get(uid).into_iter().flat_map(|user| user.sessions.iter().copied()).collect()
            }
            Limited::Session(number) if self.sessions.contains_key(&SessionId(number)) => {
                vec![SessionId(number)]
            }
            Limited::Session(number) => {
                let text = format!("no session {number}: statistics show which there are");
                return Err(Refusal::new(Status::E_NO_RESOURCE, text));
            }
        };
        let info = self.change_quota(of, change)?;
        tracing::info!(by = caller.session.0, ?info, "limits changed");
        for session in sessions {
            let terms = self.terms_of(session);
            for poller in 0..self.pollers.len() {
                self.send(poller, Command::Terms(session.0, Box::new(terms.clone())));
            }
        }
        Ok(Some(Reply::Limits { limits: vec![info], more: false }))
    }

    /// Notes what holds for a user or a session.
    fn change_quota(&mut self, of: &Limited, change: &LimitChange) -> Result<LimitInfo, Refusal> {
        let Quotas { of_user, of_session, .. } = &mut self.quotas;
        let quota = match *of {
            Limited::User(uid) => {
                if of_user.len() >= USERS && !of_user.contains_key(&uid) {
                    let text = format!("{USERS} users have limits: clear some of them");
                    return Err(Refusal::new(Status::E_NO_RESOURCES, text));
                }
                of_user.entry(uid).or_default()
            }
            Limited::Session(number) => of_session.entry(SessionId(number)).or_default(),
            Limited::Volume(_) => return Err(Refusal::new(Status::E_OPCODE, "volumes are the store's")),
        };
        quota.rates = changed(quota.rates, change);
        quota.weight = change.weight.map_or(quota.weight, |weight| Some(weight).filter(|w| *w > 0));
        quota.limiter = limiter(quota.rates, self.pollers.len());
        let info = LimitInfo { of: of.clone(), rates: quota.rates, weight: quota.weight };
        let stays = |quota: &Quota| quota.limiter.is_some() || quota.weight.is_some();
        of_user.retain(|_, quota| stays(quota));
        of_session.retain(|_, quota| stays(quota));
        Ok(info)
    }

    /// What engines are told of a session.
    pub(super) fn terms_of(&self, session: SessionId) -> Terms {
        let own = self.quotas.of_session.get(&session);
        let users = self.user_of(session).and_then(|uid| self.quotas.of_user.get(&uid));
        let both = || [own, users].into_iter().flatten();
        Terms {
            weight: both().find_map(|quota| quota.weight).unwrap_or(DEFAULT_WEIGHT),
            limiters: both().filter_map(|quota| quota.limiter.clone()).collect(),
        }
    }

    /// What the store is to do about a volume's limits.
    pub(super) fn limits_job(&self, name: String, change: &LimitChange) -> Result<Job, Refusal> {
        let volume = self.volumes.get(&name).ok_or_else(|| no_volume(&name))?;
        Ok(Job::SetLimits { limits: limits_of(changed(rates_of(volume.limits), change)), name })
    }

    /// The store has the limits of a volume: they hold from now on.
    pub(super) fn limit_volume(&mut self, volume: &store::Volume) -> Reply {
        let rates = rates_of(volume.limits);
        tracing::info!(volume = volume.name, ?rates, "limits changed");
        let limiter = limiter(rates, self.pollers.len());
        match limiter.clone() {
            Some(limiter) => self.quotas.of_volume.insert(volume.id, limiter),
            None => self.quotas.of_volume.remove(&volume.id),
        };
        let grants = self.sessions.values().flat_map(|session| &session.grants);
        let its = grants.filter(|(_, grant)| grant.volume == volume.id);
        let entries: Vec<EntryIndex> = its.map(|(key, _)| key.index()).collect();
        for entry in entries {
            self.limit_entry(entry, limiter.as_ref());
        }
        Reply::Limits { limits: vec![volume_limits(volume)], more: false }
    }

    /// A new grant is over this volume. Engines hear of it before the application has the key.
    pub(super) fn limit_grant(&mut self, key: Key, volume: store::VolumeId) {
        if let Some(limiter) = self.quotas.of_volume.get(&volume).cloned() {
            self.limit_entry(key.index(), Some(&limiter));
        }
    }

    /// A grant ends: its entry may be over another volume next.
    pub(super) fn lift_limit(&mut self, session: SessionId, key: Key) {
        let held = self.sessions.get(&session).and_then(|session| session.grants.get(&key));
        if held.is_some_and(|held| self.quotas.of_volume.contains_key(&held.volume)) {
            self.limit_entry(key.index(), None);
        }
    }

    fn limit_entry(&mut self, entry: EntryIndex, limiter: Option<&Arc<Limiter>>) {
        for poller in 0..self.pollers.len() {
            self.send(poller, Command::Limit(entry, limiter.cloned()));
        }
    }

    /// What the caller may see of all that is limited.
    pub(super) fn list_limits(&self, caller: Caller, after: Option<&Limited>) -> Reply {
        let Ok(session) = self.session(caller) else {
            return Reply::Limits { limits: Vec::new(), more: false };
        };
        let (admin, own) = (self.policy.is_admin(&session.credentials), session.credentials.uid);
        let volumes = self.volumes.values().filter(|v| v.limits != store::Limits::default());
        let volumes = volumes.filter(|v| self.sees(caller, v)).map(volume_limits);
        let info = |of, quota: &Quota| LimitInfo { of, rates: quota.rates, weight: quota.weight };
        let users = self.quotas.of_user.iter().filter(|(uid, _)| admin || **uid == own);
        let users = users.map(|(uid, quota)| info(Limited::User(*uid), quota));
        let sessions = self.quotas.of_session.iter();
        let sessions = sessions.filter(|(id, _)| admin || self.user_of(**id) == Some(own));
        let sessions = sessions.map(|(id, quota)| info(Limited::Session(id.0), quota));
        // Each kind is in its order, and the kinds are in theirs.
        let all = volumes.chain(users).chain(sessions);
        let mut shown = all.skip_while(|info| after.is_some_and(|after| info.of <= *after));
        let limits: Vec<_> = shown.by_ref().take(LIST_PAGE).collect();
        Reply::Limits { limits, more: shown.next().is_some() }
    }
}

fn volume_limits(volume: &store::Volume) -> LimitInfo {
    LimitInfo { of: Limited::Volume(volume.name.clone()), rates: rates_of(volume.limits), weight: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_leaves_what_it_does_not_name() {
        let rate = |rate| Some(Rate { rate, burst: 0 });
        let old = Rates { requests: rate(5), bytes: rate(7) };
        assert_eq!(changed(old, &LimitChange::default()), old);
        let change = LimitChange { requests: rate(0), ..LimitChange::default() };
        assert_eq!(changed(old, &change), Rates { requests: None, bytes: rate(7) });
        assert_eq!(rates_of(limits_of(old)), old);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let rate = Some(Rate { rate: 0, burst: 1 });
        let bad = [
            LimitChange { bytes: rate, ..LimitChange::default() },
            LimitChange { requests: rate, ..LimitChange::default() },
            LimitChange { weight: Some(MAX_WEIGHT + 1), ..LimitChange::default() },
        ];
        for change in bad {
            assert_eq!(check_change(&change).unwrap_err().status, Status::E_PARAM, "{change:?}");
        }
        assert!(check_change(&LimitChange { weight: Some(MAX_WEIGHT), ..LimitChange::default() }).is_ok());
    }
}
