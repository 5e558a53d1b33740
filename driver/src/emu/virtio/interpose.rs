//! The seam where tests stand between the device and what it says: never used outside of tests.

use super::super::interpose::Verdict;
use crate::spec::virtio::block::RequestHeader;

/// What becomes of a request that was fetched; the status byte if it fails.
pub type Fate = Verdict<u8>;

/// A used entry about to be written, open to change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Using {
    /// The queue, from 0.
    pub queue: u16,
    /// The type of the request.
    pub kind: u32,
    /// The head of the chain.
    pub id: u32,
    /// Bytes written.
    pub len: u32,
    /// The status byte; not written if `None`.
    pub status: Option<u8>,
    /// How often the entry is written: 0 loses it.
    pub copies: u8,
    /// By how much more than that the index goes on.
    pub jump: u16,
}

/// Stands between a device and its host. Called on the threads that run requests; by default changes nothing.
pub trait RequestInterposer: Send + Sync + 'static {
    /// Before a request of a queue runs.
    fn before(&self, queue: u16, header: &RequestHeader) -> Fate {
        let _ = (queue, header);
        Fate::Run
    }

    /// Before a request is used.
    fn using(&self, using: &mut Using) {
        let _ = using;
    }

    /// Before `avail_event` is written to the host's memory: it decides when the host notifies.
    fn event(&self, queue: u16, event: &mut u16) {
        let _ = (queue, event);
    }
}
