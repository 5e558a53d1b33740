//! The way to an adapter: over its socket, or in this process.

use adapter::Embedded;
use anyhow::{Result, bail};
use portcullis::{Session, default_socket_path};

use crate::arguments::Where;
use crate::serve::explain;

/// A session with the adapter that the command line names. With --device there is one in this process, for as long as the
/// session or anything made from it lives.
pub(crate) fn connect(place: &Where) -> Result<Session> {
    match (&place.device, &place.socket) {
        (Some(_), Some(_)) => {
            bail!(
                "--device drives a disk from this process, --socket asks a running adapter: give one of them"
            )
        }
        (Some(uri), None) => Ok(Embedded::open(uri).map_err(explain)?.session()?),
        (None, socket) => Ok(Session::connect(socket.clone().unwrap_or_else(default_socket_path))?),
    }
}

/// As many sessions, all with the same adapter.
pub(crate) fn connect_all(place: &Where, sessions: u32) -> Result<Vec<Session>> {
    match (&place.device, &place.socket) {
        (Some(uri), None) => {
            let adapter = Embedded::open(uri).map_err(explain)?;
            Ok((0..sessions).map(|_| adapter.session()).collect::<Result<_, _>>()?)
        }
        _ => (0..sessions).map(|_| connect(place)).collect(),
    }
}
