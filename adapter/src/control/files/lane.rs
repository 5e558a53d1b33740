//! One request about files after another, for each volume: to the store's thread, to the quiescent point where blocks go, and
//! back to who asked.

use std::collections::{BTreeMap, VecDeque};

use store::files::Truncation;
use store::{VolumeId, Wish};
use tpt::{Access, Blocks, FileModification, FileSpec, Key, LbaRange, Purpose, TableError};
use wire::Status;
use wire::control::{Reply, Request};
use wire::files::{FileAttributes, FileTarget};

use super::opened::FileHeld;
use crate::control::drain::{Batch, Then, table_refusal};
use crate::control::limits::What;
use crate::control::session::GrantHeld;
use crate::control::{Caller, Control, QUIESCE_TIMEOUT, Refusal, SessionId};
use crate::storage::files::{FileDone, FileFailure, FileJob, Told, Who};

/// Of each volume whose files somebody asks about.
#[derive(Default)]
pub(in crate::control) struct FileLanes(BTreeMap<VolumeId, FileLane>);

#[derive(Default)]
struct FileLane {
    waiting: VecDeque<Work>,
    running: Option<Running>,
    /// The wish that the running request grants, if it is to be done once.
    wish: Option<Wish>,
}

enum Work {
    /// A request of somebody, and the wish that it is, if it is to be done once.
    Asked(Caller, Request, Option<Wish>),
    /// The last key of a file ended.
    Close(u64),
    /// The file system has opened a file that nobody gets.
    Undo(Told),
}

struct Running {
    caller: Option<Caller>,
    step: Step,
}

/// What the lane waits for, and what follows.
enum Step {
    /// The store's answer is the caller's.
    Alone,
    /// The file system opens it.
    Open { access: Access },
    /// The file system gives it more blocks. If `length` is `Some` it becomes as long.
    Grow { of: Of, length: Option<u64> },
    /// The file system plans what a new length gives up.
    Plan { of: Of },
    /// Its keys become quiet, for that plan.
    Quiet { of: Of, plan: Truncation },
    /// The file system gives the blocks up; the keys are held.
    CarryOut { of: Of, length: u64, batch: Batch },
    /// Keys whose segments are full become quiet, and get the new blocks.
    Append { of: Of, length: Option<u64> },
    /// The file system closes it, of which everybody here knew but for `None`.
    Close { number: Option<u64> },
}

/// Which file, and the key that the caller is told about.
#[derive(Clone, Copy)]
struct Of {
    key: Key,
    number: u64,
}

impl FileLanes {
    pub(in crate::control) fn is_running(&self) -> bool {
        !self.0.is_empty()
    }
}

impl Control {
    pub(super) fn enter_file_lane(
        &mut self,
        volume: VolumeId,
        caller: Caller,
        request: Request,
        wish: Option<Wish>,
    ) {
        self.file_lanes.0.entry(volume).or_default().waiting.push_back(Work::Asked(caller, request, wish));
        self.advance_file_lane(volume);
    }

    /// A key of a file ended. With its last the file system is to close it.
    pub(in crate::control) fn file_key_ended(&mut self, session: SessionId, key: Key, held: &GrantHeld) {
        let Some(FileHeld { number, .. }) = held.file else { return };
        if self.files.forget_key(held.volume, number, session, key) {
            self.file_lanes.0.entry(held.volume).or_default().waiting.push_back(Work::Close(number));
            self.urgent = true;
        }
    }

    /// Starts what waits in all lanes that do nothing.
    pub(in crate::control) fn advance_file_lanes(&mut self) {
        let idle = self.file_lanes.0.iter().filter(|(_, lane)| lane.running.is_none());
        let idle: Vec<_> = idle.map(|(volume, _)| *volume).collect();
        idle.into_iter().for_each(|volume| self.advance_file_lane(volume));
    }

    fn advance_file_lane(&mut self, volume: VolumeId) {
        loop {
            let Some(lane) = self.file_lanes.0.get_mut(&volume) else { return };
            if lane.running.is_some() {
                return;
            }
            let Some(work) = lane.waiting.pop_front() else {
                self.file_lanes.0.remove(&volume);
                return;
            };
            lane.wish = if let Work::Asked(_, _, wish) = &work { *wish } else { None };
            match work {
                Work::Close(number) => self.start_close(volume, number),
                Work::Undo(told) => {
                    let job = FileJob::Release { told, opens: 1 };
                    self.run_file(volume, None, job, Step::Close { number: None });
                }
                Work::Asked(caller, request, _) => {
                    if let Err(refusal) = self.start_file_request(volume, caller, request) {
                        self.answer(caller, Err(refusal));
                    }
                }
            }
        }
    }

    /// Hands a job to the store's thread; `step` says what follows.
    fn run_file(&mut self, volume: VolumeId, caller: Option<Caller>, job: FileJob, step: Step) {
        let who = caller.and_then(|caller| self.sessions.get(&caller.session)).map(|session| {
            let its = &session.credentials;
            Who { uid: its.uid, gid: its.gid, groups: its.groups.clone() }
        });
        let wish = self.file_lanes.0.get(&volume).and_then(|lane| lane.wish);
        self.storage.submit_file(volume, who.unwrap_or_default(), job, wish);
        self.file_step(volume, caller, step);
    }

    fn file_step(&mut self, volume: VolumeId, caller: Option<Caller>, step: Step) {
        let lane = self.file_lanes.0.entry(volume).or_default();
        lane.running = Some(Running { caller, step });
    }

    /// How long an open file is now, for the file system to know.
    fn told(&self, volume: VolumeId, number: u64) -> Option<Told> {
        let context = self.files.find(volume, number)?.context;
        let written = self.lengths.take_written(context);
        Some(Told { number, length: self.lengths.get(context), written })
    }

    /// The file of a key that the caller may write.
    fn writable(&self, caller: Caller, key: Key) -> Result<Of, Refusal> {
        let session = self.session(caller)?;
        let (_, FileHeld { number, .. }) = self.held_file(session, key)?;
        let access = self.tables.query(session.domain, key).map_err(table_refusal)?.access;
        if !access.allows(Access::WRITE) {
            let text = format!("file {key} was opened to {access}; its length is a matter of writing");
            return Err(Refusal::new(Status::E_ACCESS, text));
        }
        Ok(Of { key, number })
    }

    fn start_file_request(
        &mut self,
        volume: VolumeId,
        caller: Caller,
        request: Request,
    ) -> Result<(), Refusal> {
        let session = self.session(caller)?;
        let asked = Some(caller);
        match request {
            Request::OpenFile(open) => {
                let access = self.access_bits(open.access)?;
                self.check(caller, What::Grants, 1)?;
                self.check(caller, What::Entries, session.entries_for_one_more())?;
                self.check_no_blocks(volume)?;
                self.run_file(volume, asked, FileJob::Open(open), Step::Open { access });
            }
            Request::GrowFile { key, bytes, keep } => {
                let of = self.writable(caller, Key(key))?;
                let job = FileJob::Grow { number: of.number, bytes, keep, lengthens: false };
                self.run_file(volume, asked, job, Step::Grow { of, length: None });
            }
            Request::SetLength { key, bytes } => {
                let of = self.writable(caller, Key(key))?;
                let Some(told) = self.told(volume, of.number) else { return Ok(()) };
                if bytes >= told.length {
                    let job = FileJob::Grow { number: of.number, bytes, keep: false, lengthens: true };
                    self.run_file(volume, asked, job, Step::Grow { of, length: Some(bytes) });
                } else {
                    self.run_file(volume, asked, FileJob::Plan { told, length: bytes }, Step::Plan { of });
                }
            }
            Request::SetAttributes { of: FileTarget::Key(key), change } => {
                let (_, FileHeld { number, .. }) = self.held_file(session, Key(key))?;
                // What was written until now is older than a time that is set: closing the file must not change that again.
                let told = change.modified.and_then(|_| self.told(volume, number));
                let job = FileJob::SetAttributes { told, number, change };
                self.run_file(volume, asked, job, Step::Alone);
            }
            Request::SyncFile { key, .. } => {
                self.held_file(session, Key(key))?;
                self.sync_files(volume, caller)?;
            }
            Request::SyncFiles { .. } => self.sync_files(volume, caller)?,
            Request::FormatFiles { .. } | Request::CheckFiles { .. } => {
                if self.sessions.values().any(|s| s.grants.values().any(|held| held.volume == volume)) {
                    let text = "the volume, or a file in it, is open; close that first";
                    return Err(Refusal::new(Status::E_BUSY_TIMEOUT, text));
                }
                self.run_file(volume, asked, FileJob::Alone(request), Step::Alone);
            }
            _ => {
                self.check_no_blocks(volume)?;
                self.run_file(volume, asked, FileJob::Alone(request), Step::Alone);
            }
        }
        Ok(())
    }

    /// Makes all files of a volume durable at once, with the lengths that they have now: whoever asks for one of them.
    fn sync_files(&mut self, volume: VolumeId, caller: Caller) -> Result<(), Refusal> {
        let session = self.sessions.get_mut(&caller.session);
        if session.is_some_and(|session| session.witness.is_news()) {
            let text = "the device was away: what was written before and not made durable may be lost; write it again";
            return Err(Refusal::new(Status::E_DEVICE, text));
        }
        let open: Vec<u64> = self.files.of_volume(volume).map(|(number, _)| number).collect();
        let told = open.into_iter().filter_map(|number| self.told(volume, number)).collect();
        self.run_file(volume, Some(caller), FileJob::Sync(told), Step::Alone);
        Ok(())
    }

    /// Nobody has the volume's blocks open while its files are served.
    fn check_no_blocks(&self, volume: VolumeId) -> Result<(), Refusal> {
        let mut held = self.sessions.values().flat_map(|s| s.grants.values());
        if held.any(|held| held.volume == volume && held.file.is_none()) {
            let text =
                "the volume is open as blocks, under which a file system cannot be served; close it first";
            return Err(Refusal::new(Status::E_BUSY_TIMEOUT, text));
        }
        if self.lane.takes_from(volume) {
            let text = "the volume is being deleted or made smaller; try again when that is over";
            return Err(Refusal::new(Status::E_BUSY_TIMEOUT, text));
        }
        Ok(())
    }

    fn start_close(&mut self, volume: VolumeId, number: u64) {
        let Some(file) = self.files.find_mut(volume, number).filter(|file| file.keys.is_empty()) else {
            return; // It was opened again.
        };
        let opens = std::mem::take(&mut file.opens);
        let Some(told) = self.told(volume, number) else { return };
        let job = FileJob::Release { told, opens };
        self.run_file(volume, None, job, Step::Close { number: Some(number) });
    }

    /// What the store's thread says of a lane's job.
    pub(in crate::control) fn file_done(&mut self, volume: VolumeId, outcome: Result<FileDone, FileFailure>) {
        let Some(Running { caller, step }) =
            self.file_lanes.0.get_mut(&volume).and_then(|lane| lane.running.take())
        else {
            return;
        };
        match outcome {
            Ok(done) => {
                if let Err(refusal) = self.file_step_done(volume, caller, step, done) {
                    self.answer_file(caller, Err(refusal));
                }
            }
            Err(FileFailure { status, detail }) => {
                match step {
                    Step::CarryOut { batch, .. } => self.cancel_batch(batch),
                    // What the file system does not know any more is not open.
                    Step::Close { number: Some(number) } => self.files.remove(volume, number),
                    _ => {}
                }
                self.answer_file(caller, Err(Refusal::new(status, detail)));
            }
        }
        self.advance_file_lane(volume);
    }

    fn answer_file(&mut self, caller: Option<Caller>, result: Result<Reply, Refusal>) {
        match (caller, result) {
            (Some(caller), result) => self.answer(caller, result),
            (None, Err(Refusal { status, detail })) => tracing::warn!(%status, detail, "closing a file"),
            (None, Ok(_)) => {}
        }
    }

    fn file_step_done(
        &mut self,
        volume: VolumeId,
        caller: Option<Caller>,
        step: Step,
        done: FileDone,
    ) -> Result<(), Refusal> {
        let reply = match (step, done) {
            (Step::Open { access }, FileDone::Opened { attributes, extents, truncation, fixed }) => {
                let Some(caller) = caller else { return Ok(()) };
                let key = self.install_file(volume, (caller, access), &attributes, extents, fixed)?;
                let of = Of { key, number: attributes.number };
                if let Some(plan) = truncation {
                    self.quiesce_file(volume, caller, of, plan);
                    return Ok(());
                }
                Reply::File(self.file_info(caller, key)?)
            }
            (Step::Grow { of, length }, FileDone::Changed { attributes, extents }) => {
                return self.file_grew(volume, caller, (of, length), attributes, extents);
            }
            (Step::Plan { of }, FileDone::Planned(plan)) => {
                if let Some(caller) = caller {
                    self.quiesce_file(volume, caller, of, plan);
                }
                return Ok(());
            }
            (Step::CarryOut { of, length, batch }, FileDone::Changed { attributes, extents }) => {
                self.file_was_cut(volume, of.number, length, attributes, extents);
                self.modify_file_keys(batch, volume, of.number);
                return self.tell_file(caller, of.key);
            }
            // It was done before.
            (Step::Grow { of, .. } | Step::Plan { of }, FileDone::Done) => {
                return self.tell_file(caller, of.key);
            }
            (Step::Close { number: Some(number) }, _) => {
                self.files.remove(volume, number);
                return Ok(());
            }
            (_, FileDone::Renamed(all)) => {
                all.into_iter().for_each(|its| self.files.learn(volume, its));
                Reply::Done
            }
            (_, FileDone::Reply(mut reply)) => {
                self.bring_up_to_date(volume, &mut reply);
                reply
            }
            _ => Reply::Done,
        };
        self.answer_file(caller, Ok(reply));
        Ok(())
    }

    fn tell_file(&mut self, caller: Option<Caller>, key: Key) -> Result<(), Refusal> {
        if let Some(caller) = caller {
            let info = self.file_info(caller, key)?;
            self.answer(caller, Ok(Reply::File(info)));
        }
        Ok(())
    }

    /// What the file system said is as of the last time that it heard how long open files are.
    fn bring_up_to_date(&mut self, volume: VolumeId, reply: &mut Reply) {
        let lengths = &self.lengths;
        let length = |files: &super::OpenFiles, its: &mut FileAttributes| {
            if let Some(file) = files.find(volume, its.number) {
                its.length = lengths.get(file.context);
            }
        };
        match reply {
            Reply::Attributes(its) => {
                length(&self.files, its);
                self.files.learn(volume, its.clone());
            }
            Reply::Directory { entries, .. } => {
                let all = entries.iter_mut().filter_map(|entry| entry.attributes.as_mut());
                all.for_each(|its| length(&self.files, its));
            }
            _ => {}
        }
    }

    /// A file that the file system has opened gets a key of the caller's.
    fn install_file(
        &mut self,
        volume: VolumeId,
        (caller, access): (Caller, Access),
        attributes: &FileAttributes,
        extents: Vec<LbaRange>,
        fixed: bool,
    ) -> Result<Key, Refusal> {
        let number = attributes.number;
        if self.files.find(volume, number).is_none() {
            let Some(file) = self.files.add(volume, number, attributes.clone(), extents) else {
                let told = Told { number, length: attributes.length, written: false };
                self.file_lanes.0.entry(volume).or_default().waiting.push_front(Work::Undo(told));
                let text = "too many files are open in this adapter; try again when some were closed";
                return Err(Refusal::new(Status::E_NO_RESOURCES, text));
            };
            self.lengths.open(file.context, attributes.length, fixed);
        }
        let file = self.files.find_mut(volume, number).expect("it was added");
        file.opens += 1;
        let made = self.make_file_key(volume, caller, access, number);
        if made.is_err() && self.files.get(volume, number).keys.is_empty() {
            self.file_lanes.0.entry(volume).or_default().waiting.push_front(Work::Close(number));
        }
        made
    }

    fn make_file_key(
        &mut self,
        volume: VolumeId,
        caller: Caller,
        access: Access,
        number: u64,
    ) -> Result<Key, Refusal> {
        self.check_no_blocks(volume)?;
        let session = self.session(caller)?;
        if session.closing {
            return Err(Refusal::new(Status::E_PATH, "the session has ended"));
        }
        let file = self.files.get(volume, number);
        let ranges = file.extents.len() as u64;
        self.check(caller, What::Grants, 1)?;
        self.check(caller, What::Entries, session.entries_for_one_more())?;
        self.check(caller, What::Ranges, ranges)?;
        let context = file.context;
        let spec = FileSpec {
            domain: session.domain,
            access,
            block_shift: self.geometry.block_shift,
            extents: &file.extents,
            shared: true,
            context,
        };
        let key = self.tables.create_file(&spec).map_err(table_refusal)?.file;
        let bytes = blocks_of(&file.extents) << self.geometry.block_shift;
        let file = Some(FileHeld { number, context });
        let (exclusive, quiescing, revoked) = (false, false, false);
        let held = GrantHeld { volume, access, exclusive, bytes, ranges, file, quiescing, revoked };
        self.limit_grant(key, volume);
        if let Some(session) = self.sessions.get_mut(&caller.session) {
            session.add_grant(key, held);
        }
        self.files.find_mut(volume, number).into_iter().for_each(|file| {
            file.keys.insert((caller.session, key));
        });
        Ok(key)
    }

    /// The file system has given a file more blocks: its keys reach them now.
    fn file_grew(
        &mut self,
        volume: VolumeId,
        caller: Option<Caller>,
        (of, length): (Of, Option<u64>),
        attributes: FileAttributes,
        extents: Vec<LbaRange>,
    ) -> Result<(), Refusal> {
        let Some(file) = self.files.find_mut(volume, of.number) else { return Ok(()) };
        file.extents = extents;
        file.attributes = attributes;
        let keys: Vec<(SessionId, Key)> = file.keys.iter().copied().collect();
        let mut batch = Batch::default();
        for (session, key) in keys {
            if self.extend_file_key(volume, of.number, session, key) == Err(TableError::SegmentFull) {
                // It is being closed if that is refused.
                let _ = self.quiesce_grant(&mut batch, session, key, Purpose::Modify);
            }
        }
        if batch.is_empty() {
            return self.file_is_larger(volume, caller, of, length);
        }
        self.file_step(volume, caller, Step::Append { of, length });
        self.wait_for(batch, Some(QUIESCE_TIMEOUT), Then::Files(volume));
        Ok(())
    }

    /// Gives a key of a file the blocks that the file has behind those that the key reaches.
    fn extend_file_key(
        &mut self,
        volume: VolumeId,
        number: u64,
        session: SessionId,
        key: Key,
    ) -> Result<(), TableError> {
        let Some(held) = self.sessions.get(&session).and_then(|s| s.grants.get(&key)) else { return Ok(()) };
        let file = self.files.get(volume, number);
        let more = behind(&file.extents, held.bytes >> self.geometry.block_shift);
        if more.is_empty() {
            return Ok(());
        }
        let ranges = held.ranges + more.len() as u64;
        if let Err(refusal) =
            self.check(Caller { session, id: 0, by_queue: false }, What::Ranges, more.len() as u64)
        {
            tracing::warn!(session = session.0, %key, why = refusal.detail, "a file's key keeps its old size");
            return Err(TableError::NoResources);
        }
        self.tables.extend_file(None, key, &more).inspect_err(|error| {
            if *error != TableError::SegmentFull {
                tracing::warn!(session = session.0, %key, %error, "a file's key keeps its old size");
            }
        })?;
        let bytes = blocks_of(&self.files.get(volume, number).extents) << self.geometry.block_shift;
        self.sessions.get_mut(&session).into_iter().for_each(|s| s.resize_grant(key, bytes, ranges));
        Ok(())
    }

    /// All keys that can have the new blocks do.
    fn file_is_larger(
        &mut self,
        volume: VolumeId,
        caller: Option<Caller>,
        of: Of,
        length: Option<u64>,
    ) -> Result<(), Refusal> {
        let Some(file) = self.files.find(volume, of.number) else { return Ok(()) };
        let room = blocks_of(&file.extents) << self.geometry.block_shift;
        if let Some(length) = length {
            self.lengths.extend(file.context, length);
        }
        if let Some(held) = caller.and_then(|c| self.sessions.get(&c.session)?.grants.get(&of.key))
            && held.bytes < room
        {
            let text =
                "the file has the room, and your tables have none for its extensions; close other files";
            return Err(Refusal::new(Status::E_NO_RESOURCES, text));
        }
        self.tell_file(caller, of.key)
    }

    /// Has all keys of a file quiet, and then what is planned done.
    fn quiesce_file(&mut self, volume: VolumeId, caller: Caller, of: Of, plan: Truncation) {
        let keys: Vec<(SessionId, Key)> = self.files.get(volume, of.number).keys.iter().copied().collect();
        let mut batch = Batch::default();
        for (session, key) in keys {
            if self.quiesce_grant(&mut batch, session, key, Purpose::Modify).is_err() {
                self.wait_for_ending(&mut batch, session, key);
            }
        }
        self.file_step(volume, Some(caller), Step::Quiet { of, plan });
        self.wait_for(batch, Some(QUIESCE_TIMEOUT), Then::Files(volume));
    }

    /// The keys that a lane waited for are quiet.
    pub(in crate::control) fn files_quiet(&mut self, volume: VolumeId, batch: Batch) {
        let running = self.file_lanes.0.get_mut(&volume).and_then(|lane| lane.running.take());
        match running {
            Some(Running { caller, step: Step::Quiet { of, plan } }) => {
                let length = plan.length;
                self.run_file(volume, caller, FileJob::CarryOut(plan), Step::CarryOut { of, length, batch });
            }
            Some(Running { caller, step: Step::Append { of, length } }) => {
                self.modify_file_keys(batch, volume, of.number);
                if let Err(refusal) = self.file_is_larger(volume, caller, of, length) {
                    self.answer_file(caller, Err(refusal));
                }
                self.advance_file_lane(volume);
            }
            other => {
                self.file_lanes.0.entry(volume).or_default().running = other;
                self.end_batch(batch);
            }
        }
    }

    /// The timer ended before they were.
    pub(in crate::control) fn files_timed_out(&mut self, volume: VolumeId, batch: Batch) {
        self.cancel_batch(batch);
        let running = self.file_lanes.0.get_mut(&volume).and_then(|lane| lane.running.take());
        let text = format!("I/O on the file was still running after {QUIESCE_TIMEOUT:?}; it is as it was");
        let caller = running.and_then(|running| running.caller);
        self.answer_file(caller, Err(Refusal::new(Status::E_BUSY_TIMEOUT, text)));
        self.advance_file_lane(volume);
    }

    fn file_was_cut(
        &mut self,
        volume: VolumeId,
        number: u64,
        length: u64,
        attributes: FileAttributes,
        extents: Vec<LbaRange>,
    ) {
        let Some(file) = self.files.find_mut(volume, number) else { return };
        (file.extents, file.attributes) = (extents, attributes);
        self.lengths.set(file.context, length);
    }

    /// Quiet keys of a file get the blocks that it has now, and are open again.
    fn modify_file_keys(&mut self, batch: Batch, volume: VolumeId, number: u64) {
        let shift = self.geometry.block_shift;
        let all = self.files.find(volume, number).map(|file| file.extents.clone()).unwrap_or_default();
        for (session, key, quiesce) in batch.grants {
            let held = self.sessions.get_mut(&session).and_then(|s| s.grants.get_mut(&key));
            let quiesce = match held {
                Some(held) if !held.revoked => {
                    held.quiescing = false;
                    let (had, has) = (held.bytes >> shift, blocks_of(&all));
                    let append = behind(&all, had);
                    let keep = Some(Blocks(had.min(has)));
                    let change = FileModification { keep, append: &append, ..FileModification::default() };
                    match self.tables.finish_modify_file(quiesce, &change) {
                        Ok(_) => {
                            let ranges = all.len() as u64;
                            let session = self.sessions.get_mut(&session);
                            session.into_iter().for_each(|s| s.resize_grant(key, has << shift, ranges));
                            continue;
                        }
                        Err((quiesce, error)) if had <= has => {
                            tracing::warn!(session = session.0, %key, %error, "a file's key keeps its old size");
                            self.tables.cancel(quiesce);
                            continue;
                        }
                        Err((quiesce, error)) => {
                            tracing::warn!(session = session.0, %key, %error, "a file's key that cannot shrink ends");
                            quiesce
                        }
                    }
                }
                _ => quiesce, // Revoked, or closed meanwhile.
            };
            self.end_grant(session, key, quiesce);
        }
    }
}

fn blocks_of(extents: &[LbaRange]) -> u64 {
    extents.iter().map(|extent| extent.count.0).sum()
}

/// What of these extents is behind the first `blocks` blocks.
fn behind(extents: &[LbaRange], blocks: u64) -> Vec<LbaRange> {
    let mut skip = blocks;
    let mut rest = Vec::new();
    for extent in extents {
        let left_out = skip.min(extent.count.0);
        skip -= left_out;
        rest.extend(LbaRange::new(extent.first.0 + left_out, extent.count.0 - left_out));
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_behind_some_blocks() {
        let range = |first, count| LbaRange::new(first, count).unwrap();
        let all = [range(100, 10), range(50, 20)];
        assert_eq!(blocks_of(&all), 30);
        assert_eq!(behind(&all, 0), all);
        assert_eq!(behind(&all, 4), [range(104, 6), range(50, 20)]);
        assert_eq!(behind(&all, 10), [range(50, 20)]);
        assert_eq!(behind(&all, 29), [range(69, 1)]);
        assert_eq!(behind(&all, 30), []);
        assert_eq!(behind(&all, 99), []);
    }
}
