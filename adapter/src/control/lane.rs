//! Operations on volumes, one after another: what each does to the store and to the grants over the volume, in an order
//! that leaves nothing half done.
//!
//! Create, grow, rename, access: the store first, durably, then the grants follow. Shrink, delete: the grants first, and
//! the store only when no I/O can reach what is given up.

use std::collections::VecDeque;

use store::{Granted, Ledger, StoreError, Subject, Volume, Wish};
use tpt::{Access, Key, Purpose};
use wire::Status;
use wire::control::{self, Limited, Reply, Request};

use super::drain::{Batch, Then, Unchanged};
use super::{Caller, Control, QUIESCE_TIMEOUT, Refusal, SessionId};
use crate::storage::Job;

/// Operations on volumes that wait, and the one that runs.
#[derive(Default)]
pub(super) struct Lane {
    waiting: VecDeque<(Caller, Request, Option<Wish>)>,
    running: Option<Running>,
    /// The volume that the running operation takes blocks from.
    taking_from: Option<store::VolumeId>,
    /// The wish that the running operation grants, if it is to be done once.
    wish: Option<Wish>,
}

struct Running {
    caller: Caller,
    operation: Operation,
}

enum Operation {
    /// The store makes it, changes it or renames it; the reply is what came of it.
    Store { job: Job },
    /// The store has it larger; the grants follow.
    Grow { volume: Volume },
    /// The grants let go of the blocks, then the store does.
    Shrink { job: Job, kept: Vec<tpt::LbaRange>, bytes: u64 },
    /// The grants end, then the store deletes.
    Delete { name: String, grants: u32 },
    /// No grant is left; the store deletes.
    Deleted { name: String, grants: u32 },
    /// The store has the new list; grants that lost a right end.
    Revoke { grants: u32 },
}

impl Lane {
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some() || !self.waiting.is_empty()
    }

    /// Whether blocks are being taken from this volume: a grant made now would still reach them afterwards.
    pub(super) fn takes_from(&self, volume: store::VolumeId) -> bool {
        self.running.is_some() && self.taking_from == Some(volume)
    }
}

impl Control {
    /// Queues an operation on volumes, and the wish that it is, if it is to be done once.
    pub(super) fn enter_lane(&mut self, caller: Caller, request: Request, wish: Option<Wish>) {
        self.lane.waiting.push_back((caller, request, wish));
        self.advance_lane();
    }

    /// Takes what the store has done, then starts what waits.
    pub(super) fn advance_lane(&mut self) {
        while let Some((volume, outcome)) = self.storage.take_file_outcome() {
            self.file_done(volume, outcome);
        }
        loop {
            if let Some(outcome) = self.storage.take_outcome() {
                let Some(running) = self.lane.running.take() else { continue };
                self.store_done(running, outcome);
                continue;
            }
            if self.lane.running.is_some() {
                return;
            }
            let Some((caller, request, wish)) = self.lane.waiting.pop_front() else { return };
            if let Err(refusal) = self.start_operation(caller, request, wish) {
                self.lane.running = None;
                self.answer(caller, Err(refusal));
            }
        }
    }

    fn start_operation(
        &mut self,
        caller: Caller,
        request: Request,
        wish: Option<Wish>,
    ) -> Result<(), Refusal> {
        let Some(session) = self.sessions.get(&caller.session) else { return Ok(()) };
        let uid = session.credentials.uid;
        self.lane.taking_from = None;
        self.lane.wish = wish;
        if let Some(granted) = wish.and_then(|wish| self.ledger.find(uid, &wish.id)) {
            let answer = self.answer_again(&request, granted);
            self.answer(caller, answer);
            return Ok(());
        }
        match request {
            Request::CreateVolume { name, bytes } => {
                if !self.policy.anyone_creates && !self.policy.is_admin(&session.credentials) {
                    let text = format!(
                        "user {uid} may not create volumes; an administrator may, or start the adapter with --anyone-creates"
                    );
                    return Err(Refusal::new(Status::E_AUTH, text));
                }
                if self.volumes.contains_key(&name) {
                    return Err(Refusal::new(Status::E_EXISTS, format!("volume {name:?} exists already")));
                }
                self.run_store(caller, Job::Create { name, bytes, owner: uid });
            }
            Request::RenameVolume { from, to } => {
                self.owned(caller, &from)?;
                if self.volumes.contains_key(&to) {
                    return Err(Refusal::new(Status::E_EXISTS, format!("volume {to:?} exists already")));
                }
                self.run_store(caller, Job::Rename { from, to });
            }
            Request::DeleteVolume { name } => {
                let volume = self.owned(caller, &name)?;
                self.lane.taking_from = Some(volume.id);
                let batch = self.quiesce_volume(volume.id, Purpose::Revoke, |_| true);
                let grants = count(&batch);
                self.run(caller, Operation::Delete { name, grants });
                self.wait_for(batch, Some(QUIESCE_TIMEOUT), Then::Lane);
            }
            Request::ResizeVolume { name, bytes } => {
                let volume = self.owned(caller, &name)?;
                let blocks = bytes.div_ceil(u64::from(self.geometry.block_size()));
                if blocks >= volume.blocks {
                    self.run_store(caller, Job::Grow { name, bytes });
                } else if volume.kind != store::VolumeKind::Blocks || self.storage.serves_files_of(volume.id)
                {
                    let text =
                        format!("volume {name:?} holds files, and a file system does not become smaller");
                    return Err(Refusal::new(Status::E_PARAM, text));
                } else {
                    let Some(kept) = volume.extents_for(blocks) else {
                        return Err(Refusal::new(Status::E_PARAM, "a volume has at least one block"));
                    };
                    self.lane.taking_from = Some(volume.id);
                    let batch =
                        self.quiesce_volume(volume.id, Purpose::Modify, |(_, grant)| grant.file.is_none());
                    self.run(caller, Operation::Shrink { job: Job::Shrink { name, bytes }, kept, bytes });
                    self.wait_for(batch, Some(QUIESCE_TIMEOUT), Then::Lane);
                }
            }
            Request::SetAccess { name, subject, access } => {
                self.owned(caller, &name)?;
                let Some(access) = Access::from_bits(access) else {
                    let text = format!(
                        "access bits {access:#x}: 1 is read, 2 write, 4 trim, and there are no others"
                    );
                    return Err(Refusal::new(Status::E_PARAM, text));
                };
                self.run_store(caller, Job::SetAccess { name, subject: subject_of(subject), access });
            }
            Request::SetLimits { of: Limited::Volume(name), change } => {
                let job = self.limits_job(name, &change)?;
                self.run_store(caller, job);
            }
            _ => return Err(Refusal::new(Status::E_OPCODE, "not an operation on volumes")),
        }
        Ok(())
    }

    fn run(&mut self, caller: Caller, operation: Operation) {
        self.lane.running = Some(Running { caller, operation });
    }

    /// What a change was answered that was made already.
    fn answer_again(&self, request: &Request, granted: &Granted) -> Result<Reply, Refusal> {
        if matches!(request, Request::DeleteVolume { .. } | Request::SetAccess { .. }) {
            return Ok(Reply::Revoked { grants: granted.wish.note, draining: 0 });
        }
        let volume = self.volumes.values().find(|volume| volume.id == granted.volume());
        let volume = volume.ok_or_else(|| {
            Refusal::new(Status::E_NO_RESOURCE, "it was done, and the volume was deleted since")
        })?;
        Ok(Reply::Volume(self.volume_info(volume, true)))
    }

    fn run_store(&mut self, caller: Caller, job: Job) {
        self.storage.submit(job.clone(), self.lane.wish);
        self.run(caller, Operation::Store { job });
    }

    /// The volume, if the caller owns it or administers.
    pub(super) fn owned(&self, caller: Caller, name: &str) -> Result<Volume, Refusal> {
        let Some(session) = self.sessions.get(&caller.session) else {
            return Err(Refusal::new(Status::E_PATH, "the session is gone"));
        };
        let who = &session.credentials;
        let visible = self.volumes.get(name).filter(|v| {
            self.policy.is_admin(who)
                || v.owner == who.uid
                || v.access_for(who.uid, who.gid, &who.groups) != Access::NONE
        });
        let Some(volume) = visible else { return Err(no_volume(name)) };
        if volume.owner == who.uid || self.policy.is_admin(who) {
            return Ok(volume.clone());
        }
        let text =
            format!("volume {name:?} belongs to user {}; user {} may not change it", volume.owner, who.uid);
        Err(Refusal::new(Status::E_AUTH, text))
    }

    /// Begins to quiesce the grants over a volume that `concerned` says.
    fn quiesce_volume(
        &mut self,
        volume: store::VolumeId,
        purpose: Purpose,
        concerned: impl Fn((&super::session::Session, &super::session::GrantHeld)) -> bool,
    ) -> Batch {
        let keys: Vec<(SessionId, Key)> = self
            .sessions
            .values()
            .flat_map(|s| s.grants.iter().map(move |(key, grant)| (s, *key, grant)))
            .filter(|(s, _, grant)| grant.volume == volume && concerned((s, grant)))
            .map(|(s, key, _)| (s.id, key))
            .collect();
        let mut batch = Batch::default();
        for (session, key) in keys {
            let begun = self.quiesce_grant(&mut batch, session, key, purpose);
            // One that is quiescing for another reason ends with that, or keeps its old size, unless blocks are taken.
            if begun.is_err() && self.lane.taking_from.is_some() {
                self.wait_for_ending(&mut batch, session, key);
            }
        }
        batch
    }

    fn store_done(&mut self, running: Running, outcome: crate::storage::Outcome) {
        let Running { caller, operation } = running;
        let volume = match outcome {
            Ok(volume) => volume,
            Err(error) => return self.answer(caller, Err(store_refusal(&error))),
        };
        let wish = self.lane.wish.take();
        let grant = |ledger: &mut Ledger, volume| {
            wish.into_iter().for_each(|wish| ledger.add(Granted::new(wish, volume)));
        };
        let job = match operation {
            Operation::Store { job } => job,
            Operation::Deleted { name, grants } => {
                if let Some(volume) = self.volumes.remove(&name) {
                    grant(&mut self.ledger, volume.id);
                    self.quotas.forget_volume(volume.id);
                    self.writers.forget(volume.id);
                }
                return self.reply(caller, Reply::Revoked { grants, draining: 0 });
            }
            // These wait for grants, not for the store.
            Operation::Grow { .. }
            | Operation::Shrink { .. }
            | Operation::Delete { .. }
            | Operation::Revoke { .. } => return,
        };
        if let Job::Rename { from, .. } = &job {
            self.volumes.remove(from);
        }
        let Some(volume) = volume else { return self.reply(caller, Reply::Done) };
        self.storage.assert_outside_metadata(&volume);
        grant(&mut self.ledger, volume.id);
        self.volumes.insert(volume.name.clone(), volume.clone());
        match job {
            Job::Grow { .. } => {
                let batch =
                    self.quiesce_volume(volume.id, Purpose::Modify, |(_, grant)| grant.file.is_none());
                self.run(caller, Operation::Grow { volume });
                self.wait_for(batch, Some(QUIESCE_TIMEOUT), Then::Lane);
            }
            Job::SetLimits { .. } => {
                let reply = self.limit_volume(&volume);
                self.reply(caller, reply);
            }
            Job::SetAccess { .. } => {
                let lost = |(session, grant): (&super::session::Session, &super::session::GrantHeld)| {
                    let who = &session.credentials;
                    !volume.access_for(who.uid, who.gid, &who.groups).allows(grant.access)
                };
                let batch = self.quiesce_volume(volume.id, Purpose::Revoke, lost);
                let grants = count(&batch);
                self.run(caller, Operation::Revoke { grants });
                self.wait_for(batch, Some(QUIESCE_TIMEOUT), Then::Lane);
            }
            _ => {
                let info = self.volume_info(&volume, true);
                self.reply(caller, Reply::Volume(info));
            }
        }
    }

    /// The grants that the running operation waited for are quiet.
    pub(super) fn lane_quiet(&mut self, batch: Batch) {
        let Some(Running { caller, operation }) = self.lane.running.take() else {
            return self.end_batch(batch);
        };
        match operation {
            Operation::Grow { volume } => {
                let bytes = volume.blocks << self.geometry.block_shift;
                self.modify_batch(batch, &volume.extents, bytes, Unchanged::Stays);
                let info = self.volume_info(&volume, true);
                self.reply(caller, Reply::Volume(info));
            }
            Operation::Shrink { job, kept, bytes } => {
                self.modify_batch(batch, &kept, bytes, Unchanged::Ends);
                self.run_store(caller, job);
            }
            Operation::Delete { name, grants } => {
                self.end_batch(batch);
                let wish = self.lane.wish.as_mut();
                wish.into_iter().for_each(|wish| wish.note = grants);
                self.storage.submit(Job::Delete { name: name.clone() }, self.lane.wish);
                self.run(caller, Operation::Deleted { name, grants });
            }
            Operation::Revoke { grants } => {
                self.end_batch(batch);
                self.reply(caller, Reply::Revoked { grants, draining: 0 });
            }
            Operation::Store { .. } | Operation::Deleted { .. } => self.end_batch(batch),
        }
    }

    /// The timer ended before the grants were quiet.
    pub(super) fn lane_timed_out(&mut self, batch: Batch) {
        let Some(Running { caller, operation }) = self.lane.running.take() else {
            return self.cancel_batch(batch);
        };
        let draining = count(&batch);
        self.cancel_batch(batch); // Revoked ones go on draining; the others open again as they were.
        match operation {
            Operation::Grow { volume } => {
                let info = self.volume_info(&volume, true);
                self.reply(caller, Reply::Volume(info));
            }
            Operation::Revoke { grants } => self.reply(caller, Reply::Revoked { grants, draining }),
            Operation::Shrink { .. }
            | Operation::Delete { .. }
            | Operation::Deleted { .. }
            | Operation::Store { .. } => {
                let text = format!(
                    "I/O was still running on {draining} grants after {QUIESCE_TIMEOUT:?}; the volume was not changed"
                );
                self.answer(caller, Err(Refusal::new(Status::E_BUSY_TIMEOUT, text)));
            }
        }
    }
}

fn count(batch: &Batch) -> u32 {
    u32::try_from(batch.grants.len()).unwrap_or(u32::MAX)
}

pub(super) fn no_volume(name: &str) -> Refusal {
    Refusal::new(
        Status::E_NO_RESOURCE,
        format!("no volume {name:?} that you may see; `portcullis volume list` shows them"),
    )
}

fn subject_of(subject: control::Subject) -> Subject {
    match subject {
        control::Subject::User(uid) => Subject::User(uid),
        control::Subject::Group(gid) => Subject::Group(gid),
        control::Subject::Everyone => Subject::Everyone,
    }
}

fn store_refusal(error: &StoreError) -> Refusal {
    let status = match error {
        StoreError::NoSuchVolume { .. } => Status::E_NO_RESOURCE,
        StoreError::Exists { .. } => Status::E_EXISTS,
        StoreError::NoSpace { .. }
        | StoreError::TooFragmented
        | StoreError::TooManyVolumes
        | StoreError::TooManyEntries
        | StoreError::MetadataFull => Status::E_NO_RESOURCES,
        StoreError::Name { .. } | StoreError::Size { .. } => Status::E_PARAM,
        _ => Status::E_STORE,
    };
    Refusal::new(status, error.to_string())
}

#[cfg(test)]
mod tests;
