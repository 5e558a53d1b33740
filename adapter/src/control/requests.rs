//! Each request of the control socket, and what it checks before it does anything.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use store::Wish;
use tpt::{Access, GrantSpec, Key, Purpose, RegionKey};
use wire::Status;
use wire::control::{
    DeviceInfo, GrantInfo, Limited, OnceId, Reply, Request, SessionInfo, Statistics, Subject, VolumeInfo,
    Welcome,
};
use wire::discard::{Owner, discard};
use wire::files::{FilePath, FileTarget, OpenFile, check_path};

use super::drain::{Batch, Then, table_refusal};
use super::files::shown;
use super::lane::no_volume;
use super::limits::{Held, What};
use super::quotas::rates_of;
use super::session::{GrantHeld, Session};
use super::{Caller, Control, QUIESCE_TIMEOUT, Refusal, SessionId};

/// Volumes in one reply, sessions likewise: what surely fits a message.
const LIST_PAGE: usize = 32;
/// Extents of volumes that a reply of ShowDevice carries.
const EXTENTS_SHOWN: usize = 400;

impl Control {
    pub(super) fn dispatch(&mut self, caller: Caller, request: Request, descriptors: Vec<OwnedFd>) {
        let (request, wish) = match request {
            Request::Once { id, change } => (change.into(), self.wish(caller, id)),
            other => (other, None),
        };
        if let Err(refusal) = self.check_form(caller, &request, &descriptors) {
            // Closing what a client sent may take as long as the client likes.
            let uid = self.sessions.get(&caller.session).map_or(u32::MAX, |s| s.credentials.uid);
            descriptors.into_iter().for_each(|fd| discard(Owner::User(uid), fd));
            return self.answer(caller, Err(refusal));
        }
        let mut descriptors = descriptors.into_iter();
        let result = match request {
            Request::Hello { min_version, max_version } => self.hello(caller, min_version, max_version),
            Request::CreateQueue { entries } => {
                return self.create_queue(caller, entries, descriptors.next());
            }
            Request::DestroyQueue { queue } => return self.destroy_queue(caller, queue),
            Request::RegisterMemory { length, access } => {
                return self.register(caller, length, access, descriptors.next());
            }
            Request::ReleaseMemory { region } => return self.release(caller, RegionKey(region)),
            Request::OpenVolume { name, access } => self.open(caller, &name, access, false),
            Request::OpenExclusive { name, access } => self.open(caller, &name, access, true),
            Request::Close { key } => return self.close(caller, Key(key)),
            Request::Query { key } => self.query(caller, Key(key)),
            Request::ListVolumes { after } => Ok(self.list_volumes(caller, after.as_deref())),
            Request::ShowVolume { name } => self.show_volume(caller, &name),
            Request::ShowDevice => Ok(self.show_device(caller)),
            Request::Statistics => Ok(self.statistics(caller)),
            Request::SetLimits { of, change } => return self.set_limits(caller, of, change),
            Request::ListLimits { after } => Ok(self.list_limits(caller, after.as_ref())),
            Request::ShowHealth => return self.ask_health(caller),
            Request::CreateVolume { .. }
            | Request::DeleteVolume { .. }
            | Request::ResizeVolume { .. }
            | Request::RenameVolume { .. }
            | Request::SetAccess { .. } => return self.enter_lane(caller, request, wish),
            Request::Once { .. } => {
                Err(Refusal::new(Status::E_PARAM, "a change is wanted once, not once more"))
            }
            Request::OpenFile(_)
            | Request::QueryFile { .. }
            | Request::ListExtensions { .. }
            | Request::GrowFile { .. }
            | Request::SetLength { .. }
            | Request::SetAttributes { .. }
            | Request::RenameFile { .. }
            | Request::UnlinkFile { .. }
            | Request::MakeDirectory { .. }
            | Request::RemoveDirectory { .. }
            | Request::ListDirectory { .. }
            | Request::StatPath { .. }
            | Request::ReadLink { .. }
            | Request::StatVolume { .. }
            | Request::SyncFile { .. }
            | Request::SyncFiles { .. }
            | Request::FormatFiles { .. }
            | Request::CheckFiles { .. }
            | Request::SetFileQuota { .. } => return self.file_request(caller, request, wish),
        };
        self.answer(caller, result);
    }

    /// A change that is to be made once, as it is kept with its effect.
    fn wish(&self, caller: Caller, id: OnceId) -> Option<Wish> {
        let user = self.sessions.get(&caller.session)?.credentials.uid;
        let at = std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs());
        Some(Wish { user, id, at, note: 0 })
    }

    /// What is wrong with a request whatever it asks for.
    fn check_form(&self, caller: Caller, request: &Request, descriptors: &[OwnedFd]) -> Result<(), Refusal> {
        let welcomed = self.session(caller)?.welcomed;
        if welcomed == matches!(request, Request::Hello { .. }) {
            return Err(Refusal::new(Status::E_PARAM, "a session begins with one hello"));
        }
        let wanted =
            usize::from(matches!(request, Request::CreateQueue { .. } | Request::RegisterMemory { .. }));
        if descriptors.len() != wanted {
            let text =
                format!("{} descriptors came with the message, {wanted} belong to it", descriptors.len());
            return Err(Refusal::new(Status::E_PARAM, text));
        }
        let (volumes, paths) = names_in(request);
        for name in volumes.into_iter().flatten() {
            wire::name::check_name(name).map_err(|e| Refusal::new(Status::E_PARAM, e.to_string()))?;
        }
        for path in paths.into_iter().flatten() {
            check_path(path.as_bytes())
                .map_err(|e| Refusal::new(Status::E_PARAM, format!("path {}: {e}", shown(path))))?;
        }
        Ok(())
    }

    pub(super) fn session(&self, caller: Caller) -> Result<&Session, Refusal> {
        self.sessions.get(&caller.session).ok_or_else(|| Refusal::new(Status::E_PATH, "the session is gone"))
    }

    fn hello(&mut self, caller: Caller, min: u16, max: u16) -> Result<Reply, Refusal> {
        if !(min..=max).contains(&wire::VERSION) {
            let text =
                format!("this adapter speaks version {}, the application {min} to {max}", wire::VERSION);
            return Err(Refusal::new(Status::E_VERSION, text));
        }
        if let Some(session) = self.sessions.get_mut(&caller.session) {
            session.welcomed = true;
        }
        Ok(Reply::Welcome(Welcome {
            version: wire::VERSION,
            session: caller.session.0,
            adapter: self.run,
            life: self.storage.life(),
            settled: self.storage.was_settled(),
            limits: self.ceilings.told(self.policy.limits),
        }))
    }

    /// Whether the session, and its user in all its sessions, may have `more` of something.
    pub(super) fn check(&self, caller: Caller, what: What, more: u64) -> Result<(), Refusal> {
        let session = self.session(caller)?;
        let uid = session.credentials.uid;
        self.ceilings.check(what, more, &session.held(), (uid, &self.held_by(uid)))
    }

    fn open(&mut self, caller: Caller, name: &str, access: u8, exclusive: bool) -> Result<Reply, Refusal> {
        self.check(caller, What::Grants, 1)?;
        let session = self.session(caller)?;
        let who = &session.credentials;
        let volume = self.volumes.get(name).ok_or_else(|| no_volume(name))?;
        let allowed = volume.access_for(who.uid, who.gid, &who.groups);
        if allowed == Access::NONE && !self.policy.is_admin(who) {
            return Err(no_volume(name)); // Whether it exists is not told.
        }
        let wanted = Access::from_bits(access).filter(|a| *a != Access::NONE).ok_or_else(|| {
            Refusal::new(Status::E_PARAM, format!("access bits {access:#x}: 1 is read, 2 write, 4 trim"))
        })?;
        if !allowed.allows(wanted) {
            let text = format!("user {} may {allowed} on volume {name:?} and asked for {wanted}", who.uid);
            return Err(Refusal::new(Status::E_AUTH, text));
        }
        if volume.kind != store::VolumeKind::Blocks || self.storage.serves_files_of(volume.id) {
            let text = format!(
                "volume {name:?} holds files, which are opened by their names; its blocks are the file system's"
            );
            return Err(Refusal::new(Status::E_PARAM, text));
        }
        if self.lane.takes_from(volume.id) {
            let text =
                format!("volume {name:?} is being deleted or made smaller; try again when that is over");
            return Err(Refusal::new(Status::E_BUSY_TIMEOUT, text));
        }
        self.check_writers(caller.session, volume, wanted, exclusive)?;
        let ranges = volume.extents.len() as u64;
        self.check(caller, What::Entries, session.entries_for_one_more())?;
        self.check(caller, What::Ranges, ranges)?;
        let spec = GrantSpec {
            domain: session.domain,
            access: wanted,
            block_shift: self.geometry.block_shift,
            ranges: &volume.extents,
            shared: true,
        };
        let bytes = volume.blocks << self.geometry.block_shift;
        let key = self.tables.create(&spec).map_err(table_refusal)?;
        let volume = volume.id;
        let access = wanted;
        let (file, quiescing, revoked) = (None, false, false);
        let held = GrantHeld { volume, access, exclusive, bytes, ranges, file, quiescing, revoked };
        self.writers.note(volume, caller.session, access);
        let info = self.grant_info(caller.session, key, &held);
        self.limit_grant(key, volume);
        if let Some(session) = self.sessions.get_mut(&caller.session) {
            session.add_grant(key, held);
        }
        Ok(Reply::Grant(info))
    }

    fn grant_info(&self, session: SessionId, key: Key, held: &GrantHeld) -> GrantInfo {
        GrantInfo {
            key: key.0,
            access: held.access.bits(),
            bytes: held.bytes,
            block_size: self.geometry.block_size(),
            volume: self.storage.identity_of(held.volume),
            sole_writer: self.writers.is_sole(held.volume, session),
        }
    }

    fn close(&mut self, caller: Caller, key: Key) {
        let mut batch = Batch::default();
        let result = match self.sessions.get(&caller.session).and_then(|s| s.grants.get(&key)) {
            Some(held) if !held.revoked => {
                self.quiesce_grant(&mut batch, caller.session, key, Purpose::Delete)
            }
            _ => self.tables_refuse(caller, key),
        };
        match result {
            Ok(()) => self.wait_for(batch, Some(QUIESCE_TIMEOUT), Then::End(caller)),
            Err(refusal) => self.answer(caller, Err(refusal)),
        }
    }

    /// Why the tables would refuse this key of this caller.
    fn tables_refuse(&self, caller: Caller, key: Key) -> Result<(), Refusal> {
        match self.tables.query(self.session(caller)?.domain, key) {
            Ok(_) => Err(Refusal::new(Status::E_ENTRY_INVALID, format!("grant {key} was revoked"))),
            Err(error) => Err(table_refusal(error)),
        }
    }

    fn query(&mut self, caller: Caller, key: Key) -> Result<Reply, Refusal> {
        let session = self.session(caller)?;
        self.tables.query(session.domain, key).map_err(table_refusal)?;
        let held = session
            .grants
            .get(&key)
            .ok_or_else(|| Refusal::new(Status::E_ENTRY_INVALID, format!("no grant {key} is held")))?;
        Ok(Reply::Grant(self.grant_info(caller.session, key, held)))
    }

    /// Whether the caller may see a volume: it administers, or may do anything with it.
    pub(super) fn sees(&self, caller: Caller, volume: &store::Volume) -> bool {
        self.session(caller).is_ok_and(|s| {
            let who = &s.credentials;
            self.policy.is_admin(who) || volume.access_for(who.uid, who.gid, &who.groups) != Access::NONE
        })
    }

    fn list_volumes(&self, caller: Caller, after: Option<&str>) -> Reply {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut visible = self
            .volumes
            .range::<str, _>((from, Bound::Unbounded))
            .map(|(_, volume)| volume)
            .filter(|volume| self.sees(caller, volume));
        let shown: Vec<_> = visible.by_ref().take(LIST_PAGE).collect();
        let more = visible.next().is_some();
        // All grants are looked at once, not once for each volume.
        let mut grants: BTreeMap<_, usize> = shown.iter().map(|v| (v.id, 0)).collect();
        for grant in self.sessions.values().flat_map(|s| s.grants.values()) {
            grants.entry(grant.volume).and_modify(|count| *count += 1);
        }
        let count = |v: &store::Volume| grants.get(&v.id).copied().unwrap_or(0);
        let volumes = shown.into_iter().map(|v| self.describe(v, false, count(v))).collect();
        Reply::Volumes { volumes, more }
    }

    fn show_volume(&self, caller: Caller, name: &str) -> Result<Reply, Refusal> {
        let volume =
            self.volumes.get(name).filter(|v| self.sees(caller, v)).ok_or_else(|| no_volume(name))?;
        Ok(Reply::Volume(self.volume_info(volume, true)))
    }

    pub(super) fn volume_info(&self, volume: &store::Volume, with_access: bool) -> VolumeInfo {
        let grants =
            self.sessions.values().flat_map(|s| s.grants.values()).filter(|g| g.volume == volume.id).count();
        self.describe(volume, with_access, grants)
    }

    fn describe(&self, volume: &store::Volume, with_access: bool, grants: usize) -> VolumeInfo {
        let access = if with_access { volume.access.as_slice() } else { &[] };
        VolumeInfo {
            name: volume.name.clone(),
            bytes: volume.blocks << self.geometry.block_shift,
            owner: volume.owner,
            access: access.iter().map(|(subject, access)| (wire_subject(*subject), access.bits())).collect(),
            extents: u32::try_from(volume.extents.len()).unwrap_or(u32::MAX),
            grants: u32::try_from(grants).unwrap_or(u32::MAX),
            limits: rates_of(volume.limits),
        }
    }

    fn show_device(&self, caller: Caller) -> Reply {
        let admin = self.session(caller).is_ok_and(|s| self.policy.is_admin(&s.credentials));
        let ranges =
            |extents: &[tpt::LbaRange]| extents.iter().map(|e| (e.first.0, e.count.0)).collect::<Vec<_>>();
        let mut shown = EXTENTS_SHOWN;
        let volumes = self.volumes.values().filter(|_| admin).take_while(|v| {
            let fits = v.extents.len() <= shown;
            shown = shown.saturating_sub(v.extents.len() + 8);
            fits
        });
        Reply::Device(DeviceInfo {
            uri: self.uri.clone(),
            model: self.identity.model.clone(),
            serial: self.identity.serial.clone(),
            firmware: self.identity.firmware.clone(),
            block_size: self.geometry.block_size(),
            blocks: self.geometry.blocks,
            free_blocks: self.storage.free_blocks(),
            max_transfer: u64::from(self.geometry.max_transfer_blocks) << self.geometry.block_shift,
            write_cache: self.geometry.write_cache,
            metadata: if admin { ranges(self.storage.metadata()) } else { Vec::new() },
            volumes: volumes.map(|v| (v.name.clone(), ranges(&v.extents))).collect(),
        })
    }

    /// Of everybody for who administers; for others, of their own: what others do is none of their business.
    fn statistics(&self, caller: Caller) -> Reply {
        let (admin, own) = match self.session(caller) {
            Ok(s) => (self.policy.is_admin(&s.credentials), s.credentials.uid),
            Err(_) => (false, u32::MAX),
        };
        let shown = || self.sessions.values().filter(|s| admin || s.credentials.uid == own);
        let held = shown().map(Session::held).fold(Held::default(), |sum, held| sum.plus(&held));
        let completed: u64 = shown().map(Session::completed).sum();
        let sessions = shown().take(LIST_PAGE * 2).map(session_info).collect();
        let own = Statistics {
            completed,
            denied: shown().map(Session::failed).sum(),
            entries: held.of(What::Grants),
            regions: held.of(What::Regions),
            pinned_bytes: held.of(What::Pinned),
            mappings: held.of(What::Regions),
            lba_entries: held.of(What::Ranges),
            sessions,
            ..Statistics::default()
        };
        if !admin {
            return Reply::Statistics(own);
        }
        let usage = self.tables.usage();
        let shared = || self.pollers.iter().map(|p| p.shared());
        Reply::Statistics(Statistics {
            completed: self.completed_before + completed,
            denied: shared().map(|s| s.denied()).sum(),
            queue_errors: shared().map(|s| s.queue_errors()).sum(),
            turns: shared().map(|s| s.turns()).sum(),
            entries: u64::from(usage.entries),
            regions: u64::from(usage.regions),
            mappings: self.mapper.mappings(),
            mappings_left: self.mapper.mappings_left(),
            lba_entries: u64::from(usage.lba_entries),
            fetches: shared().map(|s| s.directory().fetches).sum(),
            evictions: shared().map(|s| s.directory().evictions).sum(),
            ..own
        })
    }
}

/// The names of volumes and the paths that a request carries.
fn names_in(request: &Request) -> ([Option<&String>; 2], [Option<&FilePath>; 2]) {
    match request {
        Request::OpenVolume { name, .. }
        | Request::OpenExclusive { name, .. }
        | Request::CreateVolume { name, .. }
        | Request::DeleteVolume { name }
        | Request::ResizeVolume { name, .. }
        | Request::ShowVolume { name }
        | Request::SetLimits { of: Limited::Volume(name), .. }
        | Request::SetAccess { name, .. }
        | Request::StatVolume { volume: name }
        | Request::SyncFiles { volume: name }
        | Request::FormatFiles { volume: name, .. }
        | Request::CheckFiles { volume: name, .. }
        | Request::SetFileQuota { volume: name, .. } => ([Some(name), None], [None, None]),
        Request::RenameVolume { from, to } => ([Some(from), Some(to)], [None, None]),
        Request::OpenFile(OpenFile { volume, path, .. })
        | Request::SetAttributes { of: FileTarget::Path { volume, path, .. }, .. }
        | Request::UnlinkFile { volume, path }
        | Request::MakeDirectory { volume, path, .. }
        | Request::RemoveDirectory { volume, path }
        | Request::ListDirectory { volume, path, .. }
        | Request::StatPath { volume, path, .. }
        | Request::ReadLink { volume, path } => ([Some(volume), None], [Some(path), None]),
        Request::RenameFile { volume, from, to, .. } => ([Some(volume), None], [Some(from), Some(to)]),
        _ => ([None, None], [None, None]),
    }
}

fn session_info(session: &Session) -> SessionInfo {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    SessionInfo {
        session: session.id.0,
        uid: session.credentials.uid,
        gid: session.credentials.gid,
        pid: session.credentials.pid,
        queues: count(session.queues.len()),
        grants: count(session.grants.len()),
        regions: count(session.regions.len()),
        pinned_bytes: session.held().of(What::Pinned),
        completed: session.completed(),
        denied: session.failed(),
    }
}

fn wire_subject(subject: store::Subject) -> Subject {
    match subject {
        store::Subject::User(uid) => Subject::User(uid),
        store::Subject::Group(gid) => Subject::Group(gid),
        store::Subject::Everyone => Subject::Everyone,
    }
}
