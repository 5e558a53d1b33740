//! What a restart makes of requests: which may be asked again, by which id, and which keys they carry.

use std::borrow::Cow;

use rustix::rand::{GetRandomFlags, getrandom};
use wire::control::{Change, OnceId, Reply, Request};
use wire::files::{Create, FileTarget, OpenFile};

use super::Link;
use crate::access::Access;
use crate::error::Error;

impl Link {
    /// The request as it is asked: a change by a name of its own, if another adapter may have to be asked again.
    pub(crate) fn once<'a>(&self, request: &'a Request) -> Result<Cow<'a, Request>, Error> {
        if !self.resumes() {
            return Ok(Cow::Borrowed(request));
        }
        Ok(match Change::of(request) {
            Some(change) => Cow::Owned(Request::Once { id: new_id()?, change }),
            None => Cow::Borrowed(request),
        })
    }
}

/// A name that nothing ever had.
fn new_id() -> Result<OnceId, Error> {
    let mut id = OnceId::default();
    getrandom(&mut id, GetRandomFlags::empty()).map_err(|error| Error::os("random bytes", error))?;
    Ok(id)
}

/// The volume of the file that a request opens for writing, if it does.
pub(super) fn file_written_by(request: &Request) -> Option<&str> {
    match request {
        Request::OpenFile(open) if open.access & !Access::READ.bits() != 0 => Some(&open.volume),
        _ => None,
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
        // They only look, or make sure of something that stays so. What a sync was for and is gone, is told otherwise.
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
pub(super) fn reopened_by(request: &Request, reply: &Reply) -> Option<(Request, u128, u32)> {
    match (request, reply) {
        (Request::OpenVolume { .. } | Request::OpenExclusive { .. }, Reply::Grant(grant)) => {
            Some((request.clone(), grant.volume, grant.block_size))
        }
        (
            Request::OpenFile(open) | Request::Once { change: Change::OpenFile(open), .. },
            Reply::File(info),
        ) => {
            let open = OpenFile { create: Create::Never, truncate: false, allocate: 0, ..open.clone() };
            Some((Request::OpenFile(open), info.attributes.number.into(), info.block_size))
        }
        _ => None,
    }
}

pub(super) fn key_in_reply(reply: &mut Reply) -> Option<&mut u64> {
    match reply {
        Reply::Grant(grant) => Some(&mut grant.key),
        Reply::File(info) => Some(&mut info.key),
        _ => None,
    }
}

pub(super) fn key_of_request(request: &mut Request) -> Option<&mut u64> {
    match request {
        Request::Close { key }
        | Request::Query { key }
        | Request::QueryFile { key }
        | Request::ListExtensions { key, .. }
        | Request::GrowFile { key, .. }
        | Request::SetLength { key, .. }
        | Request::SetAttributes { of: FileTarget::Key(key), .. }
        | Request::SyncFile { key, .. }
        | Request::Once {
            change: Change::SetLength { key, .. } | Change::SetAttributes { of: FileTarget::Key(key), .. },
            ..
        } => Some(key),
        _ => None,
    }
}
