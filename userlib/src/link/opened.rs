//! Volumes and files that are open: handles go by a *name*, the key that they got first, and here is what the name stands for in
//! the present life.

use std::borrow::Cow;

use wire::Status;
use wire::control::{Change, GrantInfo, Reply, Request};
use wire::files::{FileInfo, FileTarget, OpenFile};

use super::Link;
use super::lives::Held;
use super::requests::{file_written_by, is_repeatable, key_in_reply, key_of_request, reopened_by};
use crate::error::Error;
use crate::memory::unexpected;
use crate::transport::Transport;

/// A volume or file that is open.
#[derive(Clone)]
pub(super) struct Opened {
    /// Opens it again.
    pub(super) how: Request,
    /// What it must be then, whatever has its name.
    identity: u128,
    block_size: u32,
    /// The key; or why there is none any more.
    pub(super) now: Result<u64, (Status, String)>,
    /// Nobody else can have written since the life before: writes without an answer may be made again.
    pub(super) replays: bool,
    /// A file that was open for writing when an adapter was killed: what was not synced may be gone.
    pub(super) lost: bool,
}

impl Opened {
    /// An error is the connection's; a refusal is kept.
    pub(super) fn open_again(
        &mut self,
        transport: &mut dyn Transport,
        successive: bool,
    ) -> Result<(), Error> {
        if self.now.is_err() {
            return Ok(());
        }
        let (reply, _) = transport.call(&self.how, &[])?;
        let another = || (Status::E_NO_RESOURCE, "what has its name now is something else".to_owned());
        self.replays = false;
        self.now = match reply {
            Reply::Error { status, detail } => Err((
                status,
                format!("it could not be opened again after a restart of the adapter: {detail}"),
            )),
            Reply::Grant(GrantInfo { key, volume, block_size, sole_writer, .. }) => {
                let same = volume == self.identity && block_size == self.block_size;
                self.replays =
                    same && successive && sole_writer && matches!(self.how, Request::OpenExclusive { .. });
                if same { Ok(key) } else { Err(another()) }
            }
            Reply::File(FileInfo { key, block_size, attributes, .. }) => {
                let same = u128::from(attributes.number) == self.identity && block_size == self.block_size;
                if same { Ok(key) } else { Err(another()) }
            }
            other => return Err(unexpected(&other)),
        };
        Ok(())
    }
}

impl Link {
    /// The key that a handle of this name has now; of one that was lost, that of long ago.
    pub(crate) fn present_key(&self, name: u64) -> u64 {
        self.key_of(name).unwrap_or(name)
    }

    /// The same, or the refusal by which it was lost.
    pub(crate) fn key_of(&self, name: u64) -> Result<u64, Error> {
        match self.held().as_ref().and_then(|held| held.opened.get(&name)) {
            Some(Opened { now: Err((status, detail)), .. }) => {
                Err(Error::Refused { status: *status, detail: detail.clone() })
            }
            Some(Opened { now: Ok(key), .. }) => Ok(*key),
            None => Ok(name),
        }
    }

    /// Whether writes to what has this name may be made again.
    pub(crate) fn replays(&self, name: u64) -> bool {
        self.held().as_ref().and_then(|held| held.opened.get(&name)).is_some_and(|opened| opened.replays)
    }

    /// The request with the keys of the present life.
    pub(crate) fn translate<'a>(&self, request: &'a Request) -> Result<Cow<'a, Request>, Error> {
        if !self.resumes() {
            return Ok(Cow::Borrowed(request));
        }
        if let Some(mut held) = self.held() {
            held.will_change(request);
        }
        let mut translated = request.clone();
        if let Some(key) = key_of_request(&mut translated) {
            let present = self.key_of(*key);
            if present.is_err() && matches!(request, Request::Close { .. }) {
                self.held().into_iter().for_each(|mut held| drop(held.opened.remove(key)));
            }
            *key = present?;
        }
        Ok(Cow::Owned(translated))
    }

    /// Remembers what was opened and closed. What was opened gets a name, which stands in the reply then.
    ///
    /// # Errors
    /// A sync that was answered, but not for what an adapter before took with it.
    pub(super) fn learn(&self, request: &Request, reply: &mut Reply) -> Result<(), Error> {
        let Some(mut held) = self.held() else { return Ok(()) };
        if matches!(reply, Reply::Done) {
            held.check_synced(request)?;
        }
        if let (Request::Close { key }, Reply::Done) = (request, &*reply) {
            held.opened.remove(key);
        }
        let Some((how, identity, block_size)) = reopened_by(request, reply) else { return Ok(()) };
        let Some(key) = key_in_reply(reply) else { return Ok(()) };
        let mut name = *key;
        while held.opened.contains_key(&name) {
            name = name.wrapping_add(1); // Of another store's keys in another life.
        }
        let now = Ok(*key);
        held.opened.insert(name, Opened { how, identity, block_size, now, replays: false, lost: false });
        *key = name;
        Ok(())
    }

    /// A key was closed whose reply nobody waits for.
    pub(crate) fn forget(&self, name: u64) {
        self.held().into_iter().for_each(|mut held| drop(held.opened.remove(&name)));
    }

    /// Takes note of the reply to a request that went by a queue. True if the request is to be asked again: the adapter ended
    /// over it, and that does no harm.
    pub(crate) fn asks_again(&self, request: &Request, reply: &mut Result<Reply, Error>) -> bool {
        match reply {
            Ok(answer) => {
                if let Err(error) = self.learn(request, answer) {
                    *reply = Err(error);
                }
                false
            }
            Err(Error::Io(error)) => error.status == Status::E_OUTCOME_UNKNOWN && is_repeatable(request),
            Err(_) => false,
        }
    }
}

impl Held {
    /// What a request is about to change of files is in danger until it is synced, also if nobody hears the answer.
    fn will_change(&mut self, request: &Request) {
        if let Some(volume) = self.changed_by(request)
            && !self.changed.contains(volume)
        {
            let volume = volume.to_owned();
            self.changed.insert(volume);
        }
    }

    /// The volume whose files a request changes, if it does.
    fn changed_by<'a>(&'a self, request: &'a Request) -> Option<&'a str> {
        match request {
            Request::Once { change, .. } => match change {
                Change::OpenFile(OpenFile { volume, .. })
                | Change::SetAttributes { of: FileTarget::Path { volume, .. }, .. }
                | Change::RenameFile { volume, .. }
                | Change::UnlinkFile { volume, .. }
                | Change::MakeDirectory { volume, .. }
                | Change::RemoveDirectory { volume, .. }
                | Change::SetFileQuota { volume, .. } => Some(volume),
                Change::SetLength { key, .. } | Change::SetAttributes { of: FileTarget::Key(key), .. } => {
                    file_written_by(&self.opened.get(key)?.how)
                }
                _ => None,
            },
            // What was written before may be known to nobody else.
            Request::Close { key } => file_written_by(&self.opened.get(key)?.how),
            opening => file_written_by(opening),
        }
    }

    /// An adapter was killed: what was not synced may be gone.
    pub(super) fn lose_unsynced(&mut self) {
        self.lost.extend(self.changed.drain());
        for opened in self.opened.values_mut() {
            if let Some(volume) = file_written_by(&opened.how) {
                opened.lost = true;
                if !self.lost.contains(volume) {
                    let volume = volume.to_owned();
                    self.lost.insert(volume);
                }
            }
        }
    }

    /// A sync cannot be for what is gone: the first one of a file, or of a volume, says so, as fsync(2) says of a failed write.
    fn check_synced(&mut self, request: &Request) -> Result<(), Error> {
        let lost = match request {
            Request::SyncFile { key, .. } => {
                self.opened.get_mut(key).is_some_and(|opened| std::mem::take(&mut opened.lost))
            }
            Request::SyncFiles { volume } => self.lost.remove(volume),
            _ => false,
        };
        if !lost {
            return Ok(());
        }
        let detail = "the adapter was killed and replaced since: what was done before may be gone, as far as it was not                       synced; look, and do again what is missing; the next sync is for what is there now";
        Err(Error::Refused { status: Status::E_OUTCOME_UNKNOWN, detail: detail.to_owned() })
    }
}
