//! Requests about files in a volume: who holds which file open, and what each request does to the file system, to the
//! tables and to the lengths that engines keep, in an order that leaves nothing half done.
//!
//! One request after another for each volume. What only the file system does is one job of the store's thread, whose answer
//! is the reply. What changes blocks of a file that is open goes on here: more blocks come into the tables after the file
//! system has them durably zeroed; blocks go out of the tables, and no I/O runs on them any more, before it gives them up.

mod lane;
mod opened;
#[cfg(test)]
mod tests;

use store::{VolumeId, Wish};
use tpt::{Access, Key};
use wire::Status;
use wire::control::{Reply, Request};
use wire::files::{EXTENSIONS_PAGE, ExtensionInfo, FileAttributes, FileInfo, FilePath, FileTarget};

use super::drain::table_refusal;
use super::lane::no_volume;
use super::session::Session;
use super::{Caller, Control, Refusal};
pub(super) use lane::FileLanes;
pub(super) use opened::{FileHeld, OpenFiles};

/// Bytes of a path that a message to somebody shows.
const PATH_SHOWN: usize = 200;

impl Control {
    /// A request about files, whose names and paths are good ones, and the wish that it is, if it is to be done once.
    pub(super) fn file_request(&mut self, caller: Caller, request: Request, wish: Option<Wish>) {
        let answered = match &request {
            // These delay nobody, and nobody delays them.
            Request::QueryFile { key } => self.file_info(caller, Key(*key)).map(Reply::File),
            Request::ListExtensions { key, skip } => self.list_extensions(caller, Key(*key), *skip),
            _ => match self.volume_of(caller, &request) {
                Ok(volume) => return self.enter_file_lane(volume, caller, request, wish),
                Err(refusal) => Err(refusal),
            },
        };
        self.answer(caller, answered);
    }

    /// The volume that a request about files is for, if the caller may do that there: what the volume's own access list gives
    /// is the most that its file system can.
    fn volume_of(&self, caller: Caller, request: &Request) -> Result<VolumeId, Refusal> {
        let (name, wanted) = match request {
            Request::GrowFile { key, .. }
            | Request::SetLength { key, .. }
            | Request::SyncFile { key, .. }
            | Request::SetAttributes { of: FileTarget::Key(key), .. } => {
                return self.held_file(self.session(caller)?, Key(*key)).map(|(volume, _)| volume);
            }
            Request::OpenFile(open) => (&open.volume, self.access_bits(open.access)?),
            Request::ListDirectory { volume, .. }
            | Request::StatPath { volume, .. }
            | Request::ReadLink { volume, .. }
            | Request::StatVolume { volume } => (volume, Access::READ),
            Request::RenameFile { volume, .. }
            | Request::UnlinkFile { volume, .. }
            | Request::MakeDirectory { volume, .. }
            | Request::RemoveDirectory { volume, .. }
            | Request::SyncFiles { volume }
            | Request::SetAttributes { of: FileTarget::Path { volume, .. }, .. } => (volume, Access::WRITE),
            Request::FormatFiles { volume, .. }
            | Request::CheckFiles { volume, .. }
            | Request::SetFileQuota { volume, .. } => {
                return self.owned(caller, volume).map(|volume| volume.id);
            }
            _ => return Err(Refusal::new(Status::E_OPCODE, "not a request about files")),
        };
        let who = &self.session(caller)?.credentials;
        let volume = self.volumes.get(name).filter(|volume| self.sees(caller, volume));
        let volume = volume.ok_or_else(|| no_volume(name))?;
        let allowed = volume.access_for(who.uid, who.gid, &who.groups);
        if !allowed.allows(wanted) {
            let text = format!(
                "user {} may {allowed} on volume {name:?}, whose files this is about, and {wanted} is needed; its \
                 owner can grant that with `portcullis acl grant`",
                who.uid
            );
            return Err(Refusal::new(Status::E_AUTH, text));
        }
        Ok(volume.id)
    }

    pub(super) fn access_bits(&self, bits: u8) -> Result<Access, Refusal> {
        Access::from_bits(bits).filter(|a| *a != Access::NONE).ok_or_else(|| {
            Refusal::new(Status::E_PARAM, format!("access bits {bits:#x}: 1 is read, 2 write, 4 trim"))
        })
    }

    /// The file that a session holds under a key, and its volume.
    fn held_file(&self, session: &Session, key: Key) -> Result<(VolumeId, FileHeld), Refusal> {
        self.tables.query(session.domain, key).map_err(table_refusal)?;
        let held = session.grants.get(&key).filter(|held| !held.revoked);
        let held =
            held.ok_or_else(|| Refusal::new(Status::E_ENTRY_INVALID, format!("no file {key} is held")))?;
        let file = held.file.ok_or_else(|| {
            Refusal::new(Status::E_OPCODE, format!("{key} is a grant of blocks, and not an opened file"))
        })?;
        Ok((held.volume, file))
    }

    /// An opened file as its holder sees it.
    pub(super) fn file_info(&self, caller: Caller, key: Key) -> Result<FileInfo, Refusal> {
        let session = self.session(caller)?;
        let (volume, file) = self.held_file(session, key)?;
        let found = self.tables.query(session.domain, key).map_err(table_refusal)?;
        let (extensions, more) = page(&found, 0);
        let block_size = self.geometry.block_size();
        Ok(FileInfo {
            key: key.0,
            access: found.access.bits(),
            block_size,
            room: found.blocks.0 << self.geometry.block_shift,
            attributes: self.attributes_now(volume, file),
            extensions,
            more,
        })
    }

    fn list_extensions(&self, caller: Caller, key: Key, skip: u32) -> Result<Reply, Refusal> {
        let session = self.session(caller)?;
        self.held_file(session, key)?;
        let found = self.tables.query(session.domain, key).map_err(table_refusal)?;
        let (extensions, more) = page(&found, usize::try_from(skip).unwrap_or(usize::MAX));
        Ok(Reply::Extensions { extensions, more })
    }

    /// What is known of an opened file, with the length that it has now.
    fn attributes_now(&self, volume: VolumeId, held: FileHeld) -> FileAttributes {
        let mut attributes = self.files.get(volume, held.number).attributes.clone();
        attributes.length = self.lengths.get(held.context);
        attributes
    }
}

/// A page of a file's extensions, and whether there are more. Nobody may do anything with a hole.
fn page(found: &tpt::Attributes, skip: usize) -> (Vec<ExtensionInfo>, bool) {
    let all = found.file.as_ref().map(|its| &its.extensions[..]).unwrap_or_default();
    let info = |(its, range): (&tpt::ExtensionAttributes, &tpt::LbaRange)| ExtensionInfo {
        key: its.key.0,
        access: if range.is_hole() { Access::NONE } else { found.access }.bits(),
        offset: its.offset,
        bytes: its.bytes,
    };
    let shown = all.iter().zip(&found.ranges).skip(skip).take(EXTENSIONS_PAGE).map(info).collect();
    (shown, all.len().saturating_sub(skip) > EXTENSIONS_PAGE)
}

/// A path for messages and logs: escaped, and only its beginning if it is long.
pub(super) fn shown(path: &FilePath) -> String {
    match path.as_bytes() {
        all if all.len() <= PATH_SHOWN => format!("\"{}\"", wire::name::escape_bytes(all)),
        long => format!("\"{}\"...", wire::name::escape_bytes(&long[..PATH_SHOWN])),
    }
}
