//! Whose turn it is: which queues are looked at, and how much is taken from each.
//!
//! A turn looks at the queues that are *active*, and at no others. One that gave nothing for a while, has nothing in flight
//! and nothing to tell is *parked*. Where somebody hears the eventfds of queues ([`super::Engine::hear_bells`]) a parked
//! queue asks to be woken, by the same protocol as that of an engine that sleeps, and costs nothing until its application
//! rings and [`super::Engine::unpark`] is called. Where nobody does, each turn looks at one parked queue.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use driver::block::BlockQueue;
use wire::Status;

use super::admission::{BATCH, End};
use super::port::{Port, PortState};
use super::{QueueId, State, touched};
use crate::mailbox::{Moving, Ticket};

/// A queue that gave nothing for so long is parked, unless told otherwise. Long enough that an application with one request
/// at a time, which does something between two, is not.
const PARK_AFTER_NS: u64 = 500_000;

/// A queue that is asked for is handed back within this time, or stays.
const LEAVE_WITHIN_NS: u64 = 20_000_000;

/// Which ports are looked at. Each port is in one of the two lists.
pub(super) struct Schedule {
    active: Vec<usize>,
    parked: Vec<usize>,
    /// All ports, by the ids of their queues.
    by_id: Vec<(QueueId, usize)>,
    /// Of those whose application is to be woken.
    due: Vec<usize>,
    /// Where in `active` the next turn begins.
    next: usize,
    /// Where in `parked` the next look is, if nobody hears the bells.
    look: usize,
    hears_bells: bool,
    park_after_ns: u64,
}

impl Schedule {
    pub(super) fn new(ports: usize) -> Self {
        Self {
            active: touched(ports),
            parked: touched(ports),
            by_id: touched(ports),
            due: touched(ports),
            next: 0,
            look: 0,
            hears_bells: false,
            park_after_ns: PARK_AFTER_NS,
        }
    }

    pub(super) fn hear_bells(&mut self) {
        self.hears_bells = true;
    }

    pub(super) fn hears_bells(&self) -> bool {
        self.hears_bells
    }

    pub(super) fn set_park_after(&mut self, ns: u64) {
        self.park_after_ns = ns;
    }

    pub(super) fn parked(&self) -> usize {
        self.parked.len()
    }

    #[cfg(test)]
    pub(super) fn active(&self) -> usize {
        self.active.len()
    }

    /// The ports whose applications were not asked to write their eventfds: active ones, and parked ones if nobody hears
    /// bells.
    fn unasked(&self) -> impl Iterator<Item = &usize> {
        let parked = if self.hears_bells { &[] } else { self.parked.as_slice() };
        self.active.iter().chain(parked)
    }
}

/// What the schedule notes of a port.
#[derive(Debug, Default)]
pub(super) struct Attention {
    parked: bool,
    /// Where in its list it stands.
    at: usize,
    /// When it was last seen to be in use, and how many requests it had completed then.
    used_ns: u64,
    completed: u64,
}

impl State {
    /// Serves a new queue, which is active at first: what was rung before is seen in the next turn.
    pub(super) fn attach(&mut self, mut port: Port) {
        let index = self.ports.iter().position(Option::is_none).unwrap_or(self.ports.len());
        let Schedule { active, parked, by_id, due, .. } = &mut self.schedule;
        port.attention = Attention { parked: false, at: active.len(), used_ns: self.now_ns, completed: 0 };
        port.ring.set_need_wake(false);
        port.account = self.shares.join(port.session, &port.terms, index);
        active.push(index);
        // So that no turn has to make room.
        parked.reserve(active.len());
        active.reserve(parked.len());
        due.reserve(active.len() + parked.len());
        let at = by_id.partition_point(|(id, _)| *id < port.id);
        by_id.insert(at, (port.id, index));
        if index == self.ports.len() {
            self.ports.push(Some(port));
        } else {
            self.ports[index] = Some(port);
        }
    }

    /// The port of a queue.
    pub(super) fn find(&self, queue: QueueId) -> Option<usize> {
        let by_id = &self.schedule.by_id;
        by_id.binary_search_by_key(&queue, |(id, _)| *id).ok().map(|at| by_id[at].1)
    }

    fn port(&mut self, index: usize) -> &mut Port {
        self.ports[index].as_mut().expect("the lists have ports that are there")
    }

    /// Takes a port out of its list.
    fn unlist(&mut self, index: usize) {
        let Attention { parked, at, .. } = self.port(index).attention;
        let list = if parked { &mut self.schedule.parked } else { &mut self.schedule.active };
        list.swap_remove(at);
        if let Some(&moved) = list.get(at) {
            self.port(moved).attention.at = at;
        }
    }

    /// Lets go of a port.
    pub(super) fn remove(&mut self, index: usize) -> Option<Port> {
        self.unlist(index);
        let port = self.ports[index].take();
        port.iter().for_each(|port| self.shares.leave(port.account, index));
        self.schedule.by_id.retain(|(_, other)| *other != index);
        port
    }

    /// From now on each turn looks at a queue that was parked.
    pub(super) fn activate(&mut self, index: usize) {
        if !self.port(index).attention.parked {
            return;
        }
        self.unlist(index);
        let (at, used_ns) = (self.schedule.active.len(), self.now_ns);
        self.schedule.active.push(index);
        let port = self.port(index);
        (port.attention.parked, port.attention.at, port.attention.used_ns) = (false, at, used_ns);
        port.ring.set_need_wake(false);
    }

    /// The eventfd of a queue was written. A parked one becomes active if it has rung; if it has not it costs no more than
    /// the look. Returns whether it had.
    pub(super) fn unpark(&mut self, queue: QueueId) -> bool {
        let Some(index) = self.find(queue) else { return false };
        // What wrote the eventfd did so after it had rung, so that the look sees it.
        let had_rung = self.port(index).attention.parked && self.port(index).ring.has_rung();
        if had_rung {
            self.activate(index);
        }
        had_rung
    }

    /// Parks what is not in use. Called now and then.
    pub(super) fn park_idle(&mut self) {
        let mut at = 0;
        while let Some(&index) = self.schedule.active.get(at) {
            if self.is_idle(index) && self.park(index) {
                continue; // Another one stands in its place.
            }
            at += 1;
        }
    }

    /// Whether a queue gave nothing for long, and has nothing that a turn must look at.
    fn is_idle(&mut self, index: usize) -> bool {
        let (now_ns, after) = (self.now_ns, self.schedule.park_after_ns);
        let port = self.port(index);
        let waits = port.is_served() && port.in_flight() == 0 && !port.has_news();
        let completed = port.completed();
        let attention = &mut port.attention;
        if !waits || completed != attention.completed {
            (attention.used_ns, attention.completed) = (now_ns, completed);
            return false;
        }
        now_ns.saturating_sub(attention.used_ns) >= after
    }

    /// Parks a queue, unless it has rung meanwhile.
    fn park(&mut self, index: usize) -> bool {
        let (hears_bells, now_ns, at) = (self.schedule.hears_bells, self.now_ns, self.schedule.parked.len());
        let port = self.port(index);
        if hears_bells {
            port.ring.set_need_wake(true);
        }
        // Either this sees the doorbell, or the application sees that it is to write its eventfd.
        if port.ring.has_rung() {
            port.ring.set_need_wake(false);
            port.attention.used_ns = now_ns;
            return false;
        }
        self.unlist(index);
        self.schedule.parked.push(index);
        let attention = &mut self.port(index).attention;
        (attention.parked, attention.at) = (true, at);
        true
    }

    /// Looks at one of the parked queues, if nobody else does.
    #[inline]
    fn look_around(&mut self) {
        if !self.schedule.hears_bells && !self.schedule.parked.is_empty() {
            self.look_at_parked();
        }
    }

    fn look_at_parked(&mut self) {
        let Schedule { parked, look, .. } = &mut self.schedule;
        *look = if *look + 1 >= parked.len() { 0 } else { *look + 1 };
        let index = parked[*look];
        if self.port(index).ring.has_rung() {
            self.activate(index);
        }
    }

    /// Says to all applications that could not know yet whether the engine sleeps.
    pub(super) fn announce_sleep(&mut self, sleeps: bool) {
        for &index in self.schedule.unasked() {
            let port = self.ports[index].as_ref().expect("the lists have ports that are there");
            // Nobody is to wake the engine for what it may not take yet.
            if !sleeps || !self.is_throttled(index, port) {
                port.ring.set_need_wake(sleeps);
            }
        }
        if sleeps {
            // Pairs with the fence between an application's doorbell and its look at need_wake.
            fence(Ordering::SeqCst);
        }
    }

    /// Whether limits let nothing be taken from a queue now.
    fn is_throttled(&self, index: usize, port: &Port) -> bool {
        self.shares.is_throttled(port.account, self.now_ns) || self.throttle.is_full(index)
    }

    /// Whether a turn would find something in a queue. Parked ones have asked to be woken.
    pub(super) fn has_rung(&self) -> bool {
        let mut ports =
            self.schedule.unasked().filter_map(|&index| Some((index, self.ports[index].as_ref()?)));
        ports.any(|(index, port)| match port.state {
            PortState::Ready => !self.is_throttled(index, port) && port.ring.has_rung(),
            PortState::Error => port.ring.has_rung(),
            PortState::Detaching(_) | PortState::Leaving(..) => false,
        })
    }

    /// Stops taking from a queue. What has not started ends unanswered, what runs at the device is waited for.
    pub(super) fn detach(&mut self, queue: QueueId, ticket: Arc<Ticket>) {
        let Some(index) = self.find(queue) else { return ticket.acknowledge() };
        self.activate(index);
        let before = std::mem::replace(&mut self.port(index).state, PortState::Detaching(ticket));
        if let PortState::Leaving(moving, _) = before {
            self.shared.give_back(moving); // It goes nowhere any more.
        }
        self.end_unstarted(index, Status::E_FLUSHED);
    }

    /// Stops taking from a queue, to hand it back. What was taken ends as it will.
    pub(super) fn give(&mut self, moving: Box<Moving>) {
        let Some(index) = self.find(moving.queue) else { return self.shared.give_back(moving) };
        if self.port(index).state != PortState::Ready {
            return self.shared.give_back(moving);
        }
        self.activate(index);
        let until = self.now_ns.saturating_add(LEAVE_WITHIN_NS);
        self.port(index).state = PortState::Leaving(moving, until);
    }

    /// Notes who sleeps, and lets go of queues whose last request has ended. Returns how many are to be woken, which is
    /// work that the caller of the turn must not sleep on.
    pub(super) fn finish_turn(&mut self) -> usize {
        let mut at = 0;
        while let Some(&index) = self.schedule.active.get(at) {
            let port = self.ports[index].as_mut().expect("the lists have ports that are there");
            if port.end_turn() {
                self.schedule.due.push(index);
            }
            let goes = !port.is_served() && self.part_with(index);
            at += usize::from(!goes); // Otherwise another one stands in its place.
        }
        self.schedule.due.len()
    }

    /// Lets go of a queue that is not served any more, if its last request has ended and nobody is to be woken for it.
    #[cold]
    fn part_with(&mut self, index: usize) -> bool {
        let now_ns = self.now_ns;
        let port = self.port(index);
        let goes = port.in_flight() == 0 && !port.wake_due;
        let is_late = matches!(port.state, PortState::Leaving(_, until) if now_ns > until);
        if goes || is_late {
            match std::mem::replace(&mut port.state, PortState::Ready) {
                PortState::Detaching(ticket) => {
                    drop(self.remove(index));
                    ticket.acknowledge();
                }
                PortState::Leaving(mut moving, _) => {
                    moving.port = if goes { self.remove(index) } else { None };
                    self.shared.give_back(moving);
                }
                served @ (PortState::Ready | PortState::Error) => port.state = served,
            }
        }
        goes
    }

    /// Wakes whom the turns since the last call found asleep.
    pub(super) fn wake_sleepers(&mut self) {
        while let Some(index) = self.schedule.due.pop() {
            let port = self.port(index);
            port.wake_due = false;
            port.wake();
        }
    }

    /// Takes a bounded share from each active queue, beginning with another one each turn.
    pub(super) fn take_entries<Q: BlockQueue>(&mut self, queue: &mut Q, burst: u32) -> usize {
        self.look_around();
        self.shares.begin_turn();
        let count = self.schedule.active.len();
        if count == 0 {
            return 0;
        }
        let mut at = if self.schedule.next + 1 >= count { 0 } else { self.schedule.next + 1 };
        self.schedule.next = at;
        let mut work = 0;
        for _ in 0..count {
            work += self.take_from(queue, self.schedule.active[at], burst);
            at = if at + 1 >= count { 0 } else { at + 1 };
        }
        work
    }

    pub(super) fn take_from<Q: BlockQueue>(&mut self, queue: &mut Q, index: usize, burst: u32) -> usize {
        let Some(port) = self.ports[index].as_mut() else { return 0 };
        match port.state {
            PortState::Ready => {}
            PortState::Error => return port.flush(burst),
            PortState::Detaching(_) | PortState::Leaving(..) => return 0,
        }
        if port.ring.poll_doorbell().is_err() {
            self.fail_port(index);
            return 1;
        }
        let waiting = port.ring.waiting();
        if waiting == 0 || self.throttle.is_full(index) {
            return 0;
        }
        let account = port.account;
        let mut allowance = self.shares.allowance(account, self.now_ns);
        let mut work = 0;
        // All that was rung, also in earlier turns whose share was used up.
        let mut share = waiting.min(burst) as usize;
        let mut stopped = false;
        while share > 0 && allowance.is_left() && !stopped {
            let most = self.room_for(index, burst).min(share);
            let batch = self.take_batch(index, most, &mut allowance);
            share = share.saturating_sub(self.process_batch(queue, index, batch.number));
            work += batch.number;
            stopped = batch.number == 0 || batch.end != End::Full;
            if batch.end == End::Violation {
                self.fail_port(index);
            }
        }
        let more = !stopped && self.ports[index].as_ref().is_some_and(|port| port.ring.waiting() > 0);
        self.shares.charge(account, &allowance, more, self.now_ns);
        work
    }

    /// How many entries may be taken from a queue at once: one, or none, where it may have as much in flight as it may have
    /// while others wait.
    #[inline]
    fn room_for(&self, index: usize, burst: u32) -> usize {
        let full = !self.starved.is_empty();
        if full || self.slots.is_crowded() {
            return usize::from(self.slots.has_room() && !self.has_its_part(index, burst as usize, full));
        }
        self.slots.until_crowded().min(BATCH)
    }

    /// Where the device is full, or half of the slots are in use.
    #[cold]
    fn has_its_part(&self, index: usize, burst: usize, full: bool) -> bool {
        let Some(port) = self.ports[index].as_ref() else { return true };
        let (has, queues) = (port.in_flight(), self.shares.ports(port.account));
        // Each queue may have a burst of requests waiting for the device, so that its cancels are still seen; where others
        // have something in flight, too, all queues of a session together. The rest waits in the application's own queues and
        // delays nobody.
        if full {
            let of = |&port: &usize| self.ports[port].as_ref().map_or(0, Port::in_flight);
            let alone = queues.iter().map(of).sum::<usize>() == self.slots.used();
            let part = self.shares.weighted(port.account, burst) / queues.len();
            if has >= if alone { burst } else { part.max(1) } {
                return true;
            }
        }
        // Of the second half of the slots no session gets more than an equal part, whatever the first is held by.
        let part = self.slots.count() / 2 / self.shares.sessions() / queues.len();
        self.slots.is_crowded() && has >= part.max(1)
    }
}
