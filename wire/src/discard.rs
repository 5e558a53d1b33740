//! Closing descriptors of a distrusted peer without waiting for the peer.
//!
//! `close` may wait: for the server behind a FUSE file (its flush), for a socket that lingers. So a descriptor that did
//! not turn out to be a memfd is closed on a thread that nobody waits for.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

/// Threads at most that may hang in a close at once.
const MAX_CLOSERS: usize = 64;

struct Closing {
    waiting: Vec<OwnedFd>,
    closers: usize,
}

static CLOSING: Mutex<Closing> = Mutex::new(Closing { waiting: Vec::new(), closers: 0 });

/// Closes the descriptor elsewhere, and returns at once.
///
/// If as many closes hang as there may, or no thread can be had, the descriptor waits for its turn; see [`pending`].
pub fn discard(fd: OwnedFd) {
    let mut closing = CLOSING.lock().unwrap_or_else(PoisonError::into_inner);
    closing.waiting.push(fd);
    if closing.closers < MAX_CLOSERS {
        let closer = std::thread::Builder::new().name("discard".into()).stack_size(64 * 1024);
        if closer.spawn(close_all).is_ok() {
            closing.closers += 1;
        }
    }
}

/// Descriptors whose close has not ended. Their number grows only while somebody sends descriptors that hang: whoever
/// lets peers send them should refuse to take more when it does.
pub fn pending() -> usize {
    let closing = CLOSING.lock().unwrap_or_else(PoisonError::into_inner);
    closing.waiting.len() + closing.closers
}

fn close_all() {
    loop {
        let fd = {
            let mut closing = CLOSING.lock().unwrap_or_else(PoisonError::into_inner);
            match closing.waiting.pop() {
                Some(fd) => fd,
                None => {
                    closing.closers -= 1;
                    return;
                }
            }
        };
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
        discard(writer.into());
        // End of file comes only when the last writer is closed.
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }
}
