//! Requests about files in a volume.

use wire::Status;
use wire::control::{Reply, Request};
use wire::files::FilePath;

use super::{Caller, Control, Refusal};

/// Bytes of a path that a message to somebody shows.
const PATH_SHOWN: usize = 200;

impl Control {
    /// A request about files, whose names and paths are good ones. The adapter has no file system yet: each is refused, and
    /// nothing is changed.
    pub(super) fn file_request(&mut self, caller: Caller, request: Request) -> Result<Reply, Refusal> {
        self.session(caller)?;
        drop(request);
        Err(Refusal::new(
            Status::E_OPCODE,
            "this adapter has no files in volumes yet; volumes hold blocks only",
        ))
    }
}

/// A path for messages and logs: escaped, and only its beginning if it is long.
pub(super) fn shown(path: &FilePath) -> String {
    match path.as_bytes() {
        all if all.len() <= PATH_SHOWN => format!("\"{}\"", wire::name::escape_bytes(all)),
        long => format!("\"{}\"...", wire::name::escape_bytes(&long[..PATH_SHOWN])),
    }
}
