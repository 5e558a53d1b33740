//! Completions that are kept for later.

use std::collections::{HashSet, VecDeque};

use wire::layout::CompletionEntry;

use crate::request::Completion;

/// See the module.
#[derive(Default)]
pub(super) struct Stash {
    /// Those that came while a blocking call waited for its own.
    done: VecDeque<Completion>,
    /// Those that the queue has not looked at since it went on with another adapter.
    late: VecDeque<CompletionEntry>,
    /// Whether there are any: asked whenever the queue is polled.
    any: bool,
}

/// What was kept.
pub(super) enum Stashed {
    Done(Completion),
    Late(CompletionEntry),
}

impl Stash {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        !self.any
    }

    /// Those whose requests are not in flight any more.
    pub(super) fn done(&self) -> usize {
        self.done.len()
    }

    pub(super) fn push(&mut self, completion: Completion) {
        self.done.push_back(completion);
        self.any = true;
    }

    pub(super) fn push_late(&mut self, entry: CompletionEntry) {
        self.late.push_back(entry);
        self.any = true;
    }

    pub(super) fn pop(&mut self) -> Option<Stashed> {
        let done = self.done.pop_front().map(Stashed::Done);
        let stashed = done.or_else(|| self.late.pop_front().map(Stashed::Late));
        self.any = !(self.done.is_empty() && self.late.is_empty());
        stashed
    }

    pub(super) fn pop_late(&mut self) -> Option<CompletionEntry> {
        let entry = self.late.pop_front();
        self.any = !(self.done.is_empty() && self.late.is_empty());
        entry
    }

    /// The user data of all that the queue has not looked at.
    pub(super) fn late(&self) -> HashSet<u64> {
        self.late.iter().map(|entry| entry.user_data).collect()
    }
}
