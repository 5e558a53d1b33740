//! An application's end of a processing queue, word by word, so that it can do what no library would.

use std::sync::Arc;

use adapter::mailbox::Ticket;
use wire::layout::{CompletionEntry, Entries, STATE_ERROR, SubmissionEntry};
use wire::ring::raw_overwrite;
use wire::sync::{Ordering, fence};
use wire::view::{QueueMemory, QueueView};

/// What became of a queue.
pub(super) enum Life {
    Attached,
    /// Its poller was asked to let go of it.
    Detaching(Arc<Ticket>),
    Gone,
}

/// See the module.
pub(super) struct AppQueue {
    pub(super) client: usize,
    pub(super) domain: u32,
    pub(super) engine: usize,
    pub(super) entries: u32,
    pub(super) view: Option<QueueView>,
    pub(super) life: Life,
    /// Free-running counts: entries written, announced, completions consumed.
    pub(super) pushed: u32,
    pub(super) rung: u32,
    pub(super) popped: u32,
    /// Completions that the watcher has seen, and the highest submission head in them.
    pub(super) scanned: u32,
    pub(super) head: u32,
    /// The requests that were written and not rung, oldest first.
    pub(super) written: Vec<u32>,
    /// The requests that were announced and have no answer.
    pub(super) open: Vec<u32>,
    /// It broke the protocol, or may have: it may be put into the error state for it.
    pub(super) offended: bool,
    /// The tail is beyond what was written; the application means to put it back.
    pub(super) jumped: bool,
    /// It never consumes anything, until the end.
    pub(super) mute: bool,
    /// It sleeps on its futex, and was woken.
    pub(super) sleeping: bool,
    pub(super) woken: bool,
    /// Entries that were seen to be taken in the running turn.
    pub(super) taken_in_turn: u32,
}

impl AppQueue {
    pub(super) fn view(&self) -> &QueueView {
        self.view.as_ref().expect("the queue is not gone")
    }

    pub(super) fn size(&self) -> Entries {
        Entries::new(self.entries).expect("a power of two")
    }

    pub(super) fn is_attached(&self) -> bool {
        matches!(self.life, Life::Attached)
    }

    pub(super) fn is_gone(&self) -> bool {
        matches!(self.life, Life::Gone)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.view().state().load(Ordering::Acquire) == STATE_ERROR
    }

    pub(super) fn wait_word(&self) -> bool {
        self.view().cq_wait().load(Ordering::Relaxed) != 0
    }

    /// What the application says that it consumed.
    pub(super) fn consumed_word(&self) -> u32 {
        self.view().cq_head().load(Ordering::Relaxed)
    }

    pub(super) fn overwrite(&self, count: u32, entry: &SubmissionEntry) {
        raw_overwrite(self.view(), self.size().slot(count), entry);
    }

    /// Stores a tail. Whether the adapter wants to be woken.
    pub(super) fn store_tail(&self, tail: u32) -> bool {
        self.view().tail().store(tail, Ordering::Release);
        fence(Ordering::SeqCst);
        self.view().need_wake().load(Ordering::Relaxed) != 0
    }

    pub(super) fn store_head(&self, head: u32) {
        self.view().cq_head().store(head, Ordering::Release);
    }

    /// The completion with this free-running number, if it is there.
    #[inline]
    pub(super) fn completion(&self, count: u32) -> Option<CompletionEntry> {
        let slot = (count & (self.entries - 1)) as usize;
        let view = self.view();
        let last = view.cq_word(slot, 3).load(Ordering::Acquire);
        let phase = u64::from(count & self.entries == 0);
        if last >> 16 & 1 != phase {
            return None;
        }
        let word = |i| view.cq_word(slot, i).load(Ordering::Relaxed);
        let middle = word(1);
        Some(CompletionEntry {
            user_data: word(0),
            bytes: middle as u32,
            device_status: (middle >> 32) as u32,
            value: word(2),
            status: last as u16,
            phase: (last >> 16) as u16,
            sq_head: (last >> 32) as u32,
        })
    }
}
