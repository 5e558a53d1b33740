//! The seam where tests stand between the device and what it says: never used outside of tests.

use crate::spec::virtio::block::RequestHeader;

/// What becomes of a request that was fetched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It runs.
    Run,
    /// It waits, its data untouched, until [`super::VirtioEmulator::release_held`].
    Hold,
    /// It runs and is used, and waits as with [`Fate::Hold`], to run once more: what no device may do.
    RunAndHold,
    /// It does nothing, and has this status.
    Fail(u8),
}

/// A used entry about to be written, open to change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Using {
    /// The queue, from 0.
    pub queue: u16,
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
