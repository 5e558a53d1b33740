//! Closing descriptors of a distrusted peer without waiting for the peer.
//!
//! `close` may wait: for the server behind a FUSE file (its flush), for a socket that lingers. So a descriptor that did
//! not turn out to be a memfd is closed on a thread that nobody waits for. Each owner has threads of its own, so that
//! whoever sends descriptors that hang keeps nobody else's open.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

/// Threads of one owner that may hang in a close at once.
const CLOSERS_OF_ONE: usize = 4;
/// Threads in all.
const CLOSERS: usize = 256;

/// Whose descriptors they are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Owner {
    /// Nobody's in particular.
    Nobody,
    /// Sent by a user, with this id.
    User(u32),
    /// Connections of that user, with the descriptors that are unread in them.
    Connections(u32),
}

#[derive(Default)]
struct Closing {
    waiting: Vec<OwnedFd>,
    closers: usize,
}

static CLOSING: Mutex<BTreeMap<Owner, Closing>> = Mutex::new(BTreeMap::new());

/// Closes the descriptor elsewhere, and returns at once.
///
/// If as many closes hang as there may, or no thread can be had, the descriptor waits for its turn; see [`pending_of`].
pub fn discard(owner: Owner, fd: OwnedFd) {
    let mut all = CLOSING.lock().unwrap_or_else(PoisonError::into_inner);
    let closers: usize = all.values().map(|of| of.closers).sum();
    let own = all.entry(owner).or_default();
    own.waiting.push(fd);
    if own.closers < CLOSERS_OF_ONE && closers < CLOSERS {
        let closer = std::thread::Builder::new().name("discard".into()).stack_size(64 * 1024);
        if closer.spawn(move || close_all(owner)).is_ok() {
            own.closers += 1;
        }
    }
}

/// Descriptors of one owner whose close has not ended. Their number grows only while it sends descriptors that hang:
/// whoever lets peers send them should take no more of one that does.
pub fn pending_of(owner: Owner) -> usize {
    let all = CLOSING.lock().unwrap_or_else(PoisonError::into_inner);
    all.get(&owner).map_or(0, |of| of.waiting.len() + of.closers)
}

/// The same of all owners.
pub fn pending() -> usize {
    let all = CLOSING.lock().unwrap_or_else(PoisonError::into_inner);
    all.values().map(|of| of.waiting.len() + of.closers).sum()
}

/// The next descriptor of the owner, or of one that found no thread of its own when it came.
fn next(owner: Owner) -> Option<(OwnedFd, Owner)> {
    let mut all = CLOSING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(fd) = all.get_mut(&owner).and_then(|of| of.waiting.pop()) {
        return Some((fd, owner));
    }
    if let Some(of) = all.get_mut(&owner) {
        of.closers -= 1;
        if of.closers == 0 {
            all.remove(&owner);
        }
    }
    let (&starved, of) = all.iter_mut().find(|(_, of)| of.closers == 0)?;
    of.closers += 1;
    of.waiting.pop().map(|fd| (fd, starved))
}

fn close_all(mut owner: Owner) {
    while let Some((fd, of)) = next(owner) {
        owner = of;
        drop(fd);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_discarded_descriptor_is_closed() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        discard(Owner::User(7), writer.into());
        // End of file comes only when the last writer is closed.
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }

    /// A TCP socket that lingers with bytes that nobody reads: its close takes as long as it says.
    fn lingering() -> (OwnedFd, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (peer, _) = listener.accept().unwrap();
        rustix::net::sockopt::set_socket_linger(&stream, Some(std::time::Duration::from_secs(60))).unwrap();
        stream.set_nonblocking(true).unwrap();
        while rustix::io::write(&stream, &[0; 1 << 16]).is_ok() {}
        (stream.into(), peer)
    }

    #[test]
    fn one_owners_descriptors_that_hang_keep_nobody_elses_open() {
        let hanging: Vec<_> = (0..CLOSERS_OF_ONE + 4).map(|_| lingering()).collect();
        let mut peers = Vec::new();
        for (socket, peer) in hanging {
            peers.push(peer);
            discard(Owner::User(1), socket);
        }
        let (mut reader, writer) = std::io::pipe().unwrap();
        discard(Owner::User(2), writer.into());
        assert_eq!(reader.read(&mut [0]).unwrap(), 0, "closed at once");
        assert!(pending_of(Owner::User(1)) >= CLOSERS_OF_ONE + 4, "these hang");
        drop(peers); // Resets the connections: nothing is left to linger for.
        while pending_of(Owner::User(1)) > 0 {
            std::thread::yield_now();
        }
        assert_eq!(pending_of(Owner::User(2)), 0);
    }
}
