//! The seam where tests stand between the controller and what it says: never used outside of tests.

use crate::spec::nvme::{Cqe, Sqe, Status};

/// What becomes of a command, or a request, that was fetched. `F` is the status that one of its kind fails with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict<F = Status> {
    /// It runs.
    Run,
    /// It waits, its data untouched, until its device is told to release what it holds.
    Hold,
    /// It runs and completes, and waits as with [`Verdict::Hold`], to run once more: what no device may do.
    RunAndHold,
    /// It fails with this status and does nothing.
    Fail(F),
}

/// A completion about to be posted, open to change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Posting {
    /// The entry, but for its phase, which is set when it is posted.
    pub entry: Cqe,
    /// Posts it with the phase of an old entry.
    pub wrong_phase: bool,
    /// How often it is posted: 0 loses it.
    pub copies: u8,
}

/// Stands between a controller and its host. Called on the threads that run commands; by default changes nothing.
pub trait Interposer: Send + Sync + 'static {
    /// Before a command of submission queue `queue` (0: admin) runs.
    fn before(&self, queue: u16, command: &Sqe) -> Verdict {
        let _ = (queue, command);
        Verdict::Run
    }

    /// Before a completion is posted.
    fn completion(&self, posting: &mut Posting) {
        let _ = posting;
    }

    /// Before identify data or a log page, which `command` asked for, is handed out.
    fn data(&self, command: &Sqe, data: &mut [u8]) {
        let _ = (command, data);
    }

    /// Before the event index of the tail of submission queue `queue` is written to the host's memory: it decides when the
    /// host writes the doorbell register.
    fn event(&self, queue: u16, event: &mut u32) {
        let _ = (queue, event);
    }

    /// Whether an Abort of a held command claims success and then lets the command run all the same.
    fn abort_lies(&self) -> bool {
        false
    }
}
