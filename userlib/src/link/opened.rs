//! Volumes and files that are open: handles go by a *name*, the key that they got first, and here is what the name stands for in
//! the present life. And what that makes of requests.

use std::borrow::Cow;

use wire::Status;
use wire::control::{GrantInfo, Reply, Request};
use wire::files::{Create, FileInfo, FileTarget, OpenFile};

use super::Link;
use crate::error::Error;
use crate::memory::unexpected;
use crate::transport::Transport;

/// A volume or file that is open.
#[derive(Clone)]
pub(super) struct Opened {
    /// Opens it again.
    how: Request,
    /// What it must be then, whatever has its name.
    identity: u128,
    block_size: u32,
    /// The key; or why there is none any more.
    pub(super) now: Result<u64, (Status, String)>,
    /// Nobody else can have written since the life before: writes without an answer may be made again.
    pub(super) replays: bool,
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
    pub(crate) fn learn(&self, request: &Request, reply: &mut Reply) {
        let Some(mut held) = self.held() else { return };
        if let (Request::Close { key }, Reply::Done) = (request, &*reply) {
            held.opened.remove(key);
        }
        let Some((how, identity, block_size)) = reopened_by(request, reply) else { return };
        let Some(key) = key_in_reply(reply) else { return };
        let mut name = *key;
        while held.opened.contains_key(&name) {
            name = name.wrapping_add(1); // Of another store's keys in another life.
        }
        held.opened.insert(name, Opened { how, identity, block_size, now: Ok(*key), replays: false });
        *key = name;
    }

    /// Takes note of the reply to a request that went by a queue. True if the request is to be asked again: the adapter ended
    /// over it, and that does no harm.
    pub(crate) fn asks_again(&self, request: &Request, reply: &mut Result<Reply, Error>) -> bool {
        match reply {
            Ok(reply) => self.learn(request, reply),
            Err(Error::Io(error)) => {
                return error.status == Status::E_OUTCOME_UNKNOWN && is_repeatable(request);
            }
            Err(_) => {}
        }
        false
    }
}

/// Whether a request that may have been done already does the same when it is done again, by the next adapter.
pub(super) fn is_repeatable(request: &Request) -> bool {
    match request {
        // What they made ended with the adapter.
        Request::OpenVolume { .. }
        | Request::OpenExclusive { .. }
        | Request::Close { .. }
        | Request::DestroyQueue { .. }
        | Request::ReleaseMemory { .. } => true,
        Request::OpenFile(OpenFile { create, truncate, .. }) => !truncate && *create != Create::New,
        // They only look, or make sure of something that stays so.
        Request::Query { .. }
        | Request::ListVolumes { .. }
        | Request::ShowVolume { .. }
        | Request::ShowDevice
        | Request::Statistics
        | Request::ListLimits { .. }
        | Request::ShowHealth
        | Request::QueryFile { .. }
        | Request::ListExtensions { .. }
        | Request::GrowFile { .. }
        | Request::ListDirectory { .. }
        | Request::StatPath { .. }
        | Request::ReadLink { .. }
        | Request::StatVolume { .. }
        | Request::SyncFile { .. }
        | Request::SyncFiles { .. } => true,
        Request::Once { .. } => true,
        _ => false,
    }
}

/// What opens the same again, what it must be then, and the size of its blocks.
fn reopened_by(request: &Request, reply: &Reply) -> Option<(Request, u128, u32)> {
    match (request, reply) {
        (Request::OpenVolume { .. } | Request::OpenExclusive { .. }, Reply::Grant(grant)) => {
            Some((request.clone(), grant.volume, grant.block_size))
        }
        (Request::OpenFile(open), Reply::File(info)) => {
            let open = OpenFile { create: Create::Never, truncate: false, allocate: 0, ..open.clone() };
            Some((Request::OpenFile(open), info.attributes.number.into(), info.block_size))
        }
        _ => None,
    }
}

fn key_in_reply(reply: &mut Reply) -> Option<&mut u64> {
    match reply {
        Reply::Grant(grant) => Some(&mut grant.key),
        Reply::File(info) => Some(&mut info.key),
        _ => None,
    }
}

fn key_of_request(request: &mut Request) -> Option<&mut u64> {
    match request {
        Request::Close { key }
        | Request::Query { key }
        | Request::QueryFile { key }
        | Request::ListExtensions { key, .. }
        | Request::GrowFile { key, .. }
        | Request::SetLength { key, .. }
        | Request::SetAttributes { of: FileTarget::Key(key), .. }
        | Request::SyncFile { key, .. } => Some(key),
        _ => None,
    }
}
