//! The seam where tests stand between the controller and what it says: never used outside of tests.

use super::abi::{Status, Submitted};

/// What becomes of a command that was fetched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It runs.
    Run,
    /// It waits, its data untouched, until [`super::Emulator::release_held`].
    Hold,
    /// It fails with this status and does nothing.
    Fail(Status),
}

/// A completion about to be posted (NVM Express Base 2.0c, section 3.3.3.2), open to change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Posting {
    /// Dword 0.
    pub result: u32,
    /// SQHD.
    pub head: u16,
    /// SQID.
    pub queue: u16,
    /// CID.
    pub command: u16,
    /// Status, as in dword 3 bits 31:17.
    pub status: u16,
    /// Posts it with the phase of an old entry.
    pub wrong_phase: bool,
    /// How often it is posted: 0 loses it.
    pub copies: u8,
}

impl Posting {
    /// The entry, with the phase bit saying whether to invert it.
    pub(super) fn words(&self) -> [u64; 2] {
        let high = u64::from(self.head)
            | u64::from(self.queue) << 16
            | u64::from(self.command) << 32
            | u64::from(self.wrong_phase) << 48
            | u64::from(self.status) << 49;
        [u64::from(self.result), high]
    }
}

/// Stands between a controller and its host. Called on the threads that run commands; by default changes nothing.
pub trait Interposer: Send + Sync + 'static {
    /// Before a command of submission queue `queue` (0: admin) runs.
    fn before(&self, queue: u16, command: &Submitted) -> Verdict {
        let _ = (queue, command);
        Verdict::Run
    }

    /// Before a completion is posted.
    fn completion(&self, posting: &mut Posting) {
        let _ = posting;
    }

    /// Before identify data or a log page, which `command` asked for, is handed out.
    fn data(&self, command: &Submitted, data: &mut [u8]) {
        let _ = (command, data);
    }

    /// Whether an Abort of a held command claims success and then lets the command run all the same.
    fn abort_lies(&self) -> bool {
        false
    }
}
