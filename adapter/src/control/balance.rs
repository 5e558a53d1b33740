//! Which poller a queue is on: a new one goes where there are fewest, and one that is busy moves when its poller has much
//! to do and another nothing.
//!
//! A poller that is asked for a queue takes nothing from it any more, and hands it back when nothing of it runs. So a move
//! takes as long as what the device has of the queue, and at no moment two pollers know it.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::{Control, SessionId};
use crate::engine::QueueId;
use crate::mailbox::{Command, Moving};

/// The load is looked at this often, or a little less: nothing wakes the control plane for it.
const LOOK: Duration = Duration::from_millis(100);
/// So many looks one after the other must find the same poller busy.
const STEADY: u32 = 2;
/// After a move nothing is moved for so long.
const REST: Duration = Duration::from_secs(2);
/// Shares of a poller's time that are much and nothing.
const MUCH: f64 = 0.25;
const NOTHING: f64 = 0.05;
/// A queue is worth a move if it has at least this part of its poller's requests.
const WORTH: u64 = 8;

/// Queues that were moved, in all adapters of this process.
#[cfg(test)]
pub(crate) static MOVED: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// What a poller did lately.
#[derive(Clone, Copy, Default, Debug)]
struct Load {
    /// Queues that it has.
    queues: usize,
    /// Requests that it completed between the last two looks, and the share of that time in which it found work.
    requests: u64,
    share: f64,
    /// Its busy time at the last look.
    busy_ns: u64,
}

/// A queue, as a move sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Candidate {
    session: SessionId,
    queue: u32,
    from: usize,
    /// Requests completed between the last two looks.
    requests: u64,
}

/// See the module.
pub(super) struct Balance {
    loads: Vec<Load>,
    looked: Instant,
    rest_until: Instant,
    /// The poller that was found busy, and how often without a break.
    busy: (usize, u32),
    /// The queue on its way, and where to.
    moving: Option<(Candidate, usize)>,
}

impl Balance {
    pub(super) fn new(pollers: usize) -> Self {
        let now = Instant::now();
        Self {
            loads: vec![Load::default(); pollers],
            looked: now,
            rest_until: now,
            busy: (0, 0),
            moving: None,
        }
    }

    /// Whether a queue is on its way.
    pub(super) fn is_moving(&self) -> bool {
        self.moving.is_some()
    }

    /// The poller for a new queue.
    pub(super) fn place(&self) -> usize {
        let least = self.loads.iter().enumerate().min_by_key(|(_, load)| (load.queues, load.requests));
        least.map_or(0, |(poller, _)| poller)
    }

    pub(super) fn came(&mut self, poller: usize) {
        self.loads[poller].queues += 1;
    }

    pub(super) fn went(&mut self, poller: usize) {
        self.loads[poller].queues -= 1;
    }
}

/// The queue that moves, and where to: the busiest of those after whose move the other poller has no more to do than this
/// one. So no queue goes to and fro.
fn choose(loads: &[Load], queues: &[Candidate]) -> Option<(Candidate, usize)> {
    let (from, most) = loads.iter().enumerate().max_by(|a, b| a.1.share.total_cmp(&b.1.share))?;
    let (to, least) = loads.iter().enumerate().min_by(|a, b| a.1.share.total_cmp(&b.1.share))?;
    if most.share < MUCH || least.share > NOTHING {
        return None;
    }
    let gap = most.requests.saturating_sub(least.requests);
    let fits = |queue: &&Candidate| {
        queue.from == from && 2 * queue.requests <= gap && queue.requests >= most.requests / WORTH
    };
    let best = queues.iter().filter(fits).max_by_key(|queue| queue.requests)?;
    (best.requests > 0).then_some((*best, to))
}

impl Control {
    /// Looks at the load now and then, and has a queue moved if that is worth it.
    pub(super) fn advance_balance(&mut self, now: Instant) {
        self.take_moved();
        let since = now.saturating_duration_since(self.balance.looked);
        if self.pollers.len() < 2 || since < LOOK {
            return;
        }
        self.balance.looked = now;
        let queues = self.measure(since);
        let chosen = choose(&self.balance.loads, &queues);
        let busy = &mut self.balance.busy;
        *busy = match chosen {
            Some((queue, _)) if queue.from == busy.0 => (queue.from, busy.1 + 1),
            Some((queue, _)) => (queue.from, 1),
            None => (0, 0),
        };
        let Some((queue, to)) = chosen else { return };
        if busy.1 >= STEADY && now >= self.balance.rest_until && !self.balance.is_moving() {
            self.balance.rest_until = now + REST;
            self.balance.moving = Some((queue, to));
            let moving = Moving { queue: QueueId(queue.queue), port: None };
            self.send(queue.from, Command::Give(Box::new(moving)));
        }
    }

    /// What pollers and queues did since the last look.
    fn measure(&mut self, since: Duration) -> Vec<Candidate> {
        for (load, poller) in self.balance.loads.iter_mut().zip(&self.pollers) {
            let busy_ns = poller.shared().busy_ns();
            let busy = Duration::from_nanos(busy_ns - load.busy_ns);
            (load.share, load.busy_ns, load.requests) =
                (busy.as_secs_f64() / since.as_secs_f64(), busy_ns, 0);
        }
        let mut queues = Vec::new();
        for session in self.sessions.values_mut() {
            for (&queue, held) in &mut session.queues {
                let completed = held.counters.completed();
                let requests = completed - std::mem::replace(&mut held.completed_before, completed);
                self.balance.loads[held.poller].requests += requests;
                if requests > 0 && !held.ending {
                    queues.push(Candidate { session: session.id, queue, from: held.poller, requests });
                }
            }
        }
        queues
    }

    /// Takes a queue that its poller has handed back, and gives it to the other, unless it is about to end.
    pub(super) fn take_moved(&mut self) {
        let Some((Candidate { session, queue, from, .. }, to)) = self.balance.moving else { return };
        let Some(moving) = self.pollers[from].shared().take_moved() else { return };
        self.balance.moving = None;
        let Some(port) = moving.port else { return }; // It stays, or its poller lets go of it.
        let held = self.sessions.get_mut(&session).and_then(|s| s.queues.get_mut(&queue));
        // Of one that is ending nobody knows any more but this.
        let Some(held) = held.filter(|held| !held.ending) else { return };
        let mut goes_to = from;
        if self.pollers[to].waker().watch(held.eventfd.as_fd(), QueueId(queue)).is_ok() {
            self.pollers[from].waker().forget(held.eventfd.as_fd());
            held.poller = to;
            self.balance.went(from);
            self.balance.came(to);
            goes_to = to;
            #[cfg(test)]
            MOVED.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        tracing::debug!(session = session.0, queue, from, to = goes_to, "queue moved");
        let port = port.with_terms(self.terms_of(session)); // They may have changed meanwhile.
        self.send(goes_to, Command::Attach(Box::new(port)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(share: f64, requests: u64) -> Load {
        Load { queues: 1, requests, share, busy_ns: 0 }
    }

    fn queues(from: usize, requests: &[u64]) -> Vec<Candidate> {
        let queue = |(queue, &requests)| Candidate { session: SessionId(1), queue, from, requests };
        (1..).zip(requests).map(queue).collect()
    }

    fn chosen(loads: &[Load], queues: &[Candidate]) -> Option<(u32, usize)> {
        choose(loads, queues).map(|(queue, to)| (queue.queue, to))
    }

    #[test]
    fn the_queue_moves_that_makes_the_load_most_even_and_not_more_uneven() {
        let loads = [load(0.0, 0), load(0.9, 1000)];
        assert_eq!(chosen(&loads, &queues(1, &[501, 499])), Some((2, 0)));
        assert_eq!(chosen(&loads, &queues(1, &[300, 400, 300])), Some((2, 0)));
        assert_eq!(chosen(&loads, &queues(1, &[1000])), None, "it would only be busy elsewhere");
        assert_eq!(chosen(&loads, &queues(1, &[900, 100])), None, "that is not worth it");
        assert_eq!(chosen(&loads, &queues(0, &[500, 500])), None, "they are where they are to be");
    }

    #[test]
    fn nothing_moves_while_no_poller_is_busy_or_none_is_idle() {
        let both = queues(0, &[500, 500]);
        assert_eq!(chosen(&[load(0.1, 1000), load(0.0, 0)], &both), None);
        assert_eq!(chosen(&[load(0.9, 1000), load(0.2, 100)], &both), None);
        assert_eq!(chosen(&[load(0.9, 1000), load(0.2, 100), load(0.0, 0)], &both), Some((2, 2)));
    }

    #[test]
    fn a_new_queue_goes_where_there_are_fewest_and_then_where_least_is_done() {
        let mut balance = Balance::new(3);
        let mut places = || {
            let place = balance.place();
            balance.came(place);
            place
        };
        assert_eq!([places(), places(), places()], [0, 1, 2]);
        (balance.loads[0].requests, balance.loads[1].requests) = (10, 5);
        balance.went(1);
        balance.went(0);
        assert_eq!(balance.place(), 1);
    }
}
