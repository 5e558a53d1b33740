//! Queues, as others than their threads see them: what may become of the requests that were in one when its adapter ended.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use wire::view::{QueueMemory, QueueView};

use super::Link;
use super::lives::{Held, LONGEST_PAUSE};

/// Queues whose writes are to be made again have so long to do it, before others of their session submit anything.
const GRACE: Duration = Duration::from_secs(2);

/// A queue, as others than its thread see it.
pub(super) struct Watched {
    memory: QueueView,
    standing: Standing,
}

/// What may become of the requests that were in a queue when its adapter ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// Its adapter lives.
    Runs,
    /// The dead adapter had answered all that it had heard of: the rest may be done as if it were new.
    Unheard,
    /// Writes may be made again where their volume allows it: the others wait for that, for a while.
    MayReplay,
    /// They are being made again: the others wait for the end of that.
    Replays,
    /// Others may have written meanwhile: no write may be made again.
    Late,
}

impl Watched {
    /// Its adapter is dead, and another there; `replays` says whether there is anything open whose writes may be made again.
    pub(super) fn adapter_ended(&mut self, replays: bool) {
        use std::sync::atomic::Ordering::Acquire;
        // What was announced and never taken out was heard of, for all that anybody knows. What is announced from now on is heard
        // by nobody.
        let heard = self.memory.tail().load(Acquire) != self.memory.cq_head().load(Acquire);
        self.standing = match self.standing {
            Standing::Runs if !heard => Standing::Unheard,
            Standing::Runs | Standing::MayReplay | Standing::Replays if replays => Standing::MayReplay,
            Standing::Runs | Standing::MayReplay | Standing::Replays => Standing::Late,
            other => other,
        };
    }
}

impl Link {
    /// From now on the queue counts among those that a restart concerns.
    pub(crate) fn watch(&self, memory: &QueueView) -> u64 {
        let Some(mut held) = self.held() else { return 0 };
        held.next_queue += 1;
        let number = held.next_queue;
        held.queues.insert(number, Watched { memory: memory.clone(), standing: Standing::Runs });
        number
    }

    /// The queue has ended.
    pub(crate) fn unwatch(&self, number: u64) {
        if let Some(lives) = &self.lives {
            lives.held().queues.remove(&number);
            lives.settled.notify_all();
        }
    }

    /// How a queue stands to the requests that it had. If it may make writes again, the others wait for it from here on, until
    /// [`Link::arrive`].
    pub(crate) fn stand(&self, number: u64) -> Standing {
        let mut held = self.held();
        let Some(watched) = held.as_mut().and_then(|held| held.queues.get_mut(&number)) else {
            return Standing::Runs;
        };
        if watched.standing == Standing::MayReplay {
            watched.standing = Standing::Replays;
        }
        watched.standing
    }

    /// The queue has other memory now, in the same standing.
    pub(crate) fn move_watch(&self, number: u64, memory: &QueueView) {
        if let Some(watched) = self.held().as_mut().and_then(|held| held.queues.get_mut(&number)) {
            watched.memory = memory.clone();
        }
    }

    /// The queue has done what had to be done before anything else. Waits until all have, or their time is over.
    pub(crate) fn arrive(&self, number: u64) {
        let Some(lives) = &self.lives else { return };
        let mut held = lives.held();
        if let Some(watched) = held.queues.get_mut(&number) {
            watched.standing = Standing::Runs;
        }
        lives.settled.notify_all();
        let end = Instant::now() + GRACE;
        loop {
            let stands = |held: &Held, as_it: Standing| held.queues.values().any(|it| it.standing == as_it);
            let late = Instant::now() >= end;
            if late {
                let missing = held.queues.values_mut().filter(|it| it.standing == Standing::MayReplay);
                missing.for_each(|it| it.standing = Standing::Late);
            }
            if !stands(&held, Standing::MayReplay) && !stands(&held, Standing::Replays) {
                return;
            }
            let waited = lives.settled.wait_timeout(held, LONGEST_PAUSE);
            held = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
