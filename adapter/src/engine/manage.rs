//! Management requests: what a queue carries for the control plane. Each is copied once into private memory, handed over,
//! and its answer put back into the memory where it lay.
//!
//! No turn waits for the control plane. A request that has no place yet, or whose answer is not there, has a slot and
//! nothing at the device; its memory counts as in use from when it was read until it ends. It may end before its answer
//! comes, with its queue: the answer is nobody's then.

use std::collections::VecDeque;
use std::sync::Arc;

use tpt::{Denied, Directory, Hold, Operation};
use wire::Status;

use super::lists::Refused;
use super::slots::{Aside, Asked, SlotState, Slots};
use super::{State, touched};
use crate::mailbox::{MANAGED, Managed, Stage};

/// What a management request costs of its queue's share: it is copied, and somebody is to be woken for it.
const COST: usize = 8;

/// Where an engine knows of a request that it has handed over.
struct Place {
    stage: Arc<Stage>,
    /// Its memory, while nothing is asked in it.
    home: Option<Box<Managed>>,
    session: u64,
    /// Of the request that waits for the answer, if one still does.
    slot: Option<u32>,
    /// The application's memory.
    hold: Option<Hold>,
    /// Bytes of the reply that were put there.
    answered: u32,
}

/// See the module.
pub(super) struct Management {
    places: Box<[Place]>,
    free: Vec<u16>,
    /// Slots of requests that have no place yet, oldest first.
    waiting: VecDeque<u32>,
    /// Slots of requests that wait for a place or for their answer.
    slots: usize,
    /// Something was handed over, and the control plane is not told yet.
    bell_due: bool,
}

impl Management {
    pub(super) fn new(requests: usize) -> Self {
        let place = |at: usize| {
            #[allow(clippy::cast_possible_truncation)] // of a few
            let home = Box::new(Managed::new(at as u16));
            let stage = home.stage();
            Place { stage, home: Some(home), session: 0, slot: None, hold: None, answered: 0 }
        };
        let places: Box<[Place]> = (0..MANAGED).map(place).collect();
        let free = places.iter().rev().filter_map(|place| Some(place.home.as_ref()?.place)).collect();
        Self { places, free, waiting: touched(requests).into(), slots: 0, bell_due: false }
    }

    /// A free place. Of the second half no session gets more than an equal part.
    fn take(&mut self, session: u64, sessions: usize) -> Option<u16> {
        let half = self.places.len() / 2;
        if self.free.len() <= half {
            let fair = (half / sessions.max(1)).max(1);
            let own = self.places.iter().filter(|place| place.home.is_none() && place.session == session);
            if own.count() >= fair {
                return None;
            }
        }
        self.free.pop()
    }

    /// Slots of requests that wait for nothing but the control plane.
    pub(super) fn waiting(&self) -> usize {
        self.slots
    }

    /// Gives back the memory of all requests that wait.
    pub(super) fn release_all(&mut self, directory: &mut Directory) {
        self.places
            .iter_mut()
            .filter_map(|place| place.hold.take())
            .for_each(|hold| directory.release_hold(hold));
    }

    /// Looks at the requests without a place, of which it keeps some.
    pub(super) fn retain(&mut self, keep: impl FnMut(&u32) -> bool) {
        self.waiting.retain(keep);
    }

    /// Withdraws what the control plane has not begun and `is_late` says. Gives the slots of that to `late`.
    pub(super) fn withdraw_late(&self, mut is_late: impl FnMut(u32) -> bool, late: &mut Vec<u32>) {
        for place in &self.places {
            if let Some(slot) = place.slot
                && is_late(slot)
                && place.stage.withdraw()
            {
                late.push(slot);
            }
        }
    }

    /// Withdraws one. True if nothing of it was done, and nothing will be.
    pub(super) fn withdraw(&self, slots: &Slots, slot: u32) -> bool {
        match slots.aside(slot) {
            Aside::Managed(Some(place)) => self.places[usize::from(place)].stage.withdraw(),
            _ => true,
        }
    }

    /// Places that are not free.
    #[cfg(test)]
    pub(super) fn in_use(&self) -> usize {
        self.places.len() - self.free.len()
    }
}

impl State {
    /// Takes a management request. Returns what it costs of the queue's share.
    #[cold]
    pub(super) fn manage(&mut self, asked: &Asked) -> usize {
        let Some(port) = self.ports[asked.port].as_mut() else { return 1 };
        if port.managed >= port.may_manage {
            self.refuse(asked, None, Status::E_NO_RESOURCES);
            return 1;
        }
        match self.hand_over(asked) {
            Ok(place) => self.wait_for_answer(asked, Some(place)),
            Err(Refused::Later) => self.wait_for_answer(asked, None),
            Err(Refused::Denied(denied)) => self.turn_away(asked, None, denied),
        }
        COST
    }

    /// Gives a request a slot, to wait in.
    fn wait_for_answer(&mut self, asked: &Asked, place: Option<u16>) {
        let slot = self.slot_for(asked, None);
        self.slots.get_mut(slot).state = SlotState::Managed;
        self.slots.beside_mut(slot).aside = Aside::Managed(place);
        self.note_deadline(asked.deadline_ns);
        self.management.slots += 1;
        self.ports[asked.port].iter_mut().for_each(|port| port.managed += 1);
        match place {
            Some(place) => self.management.places[usize::from(place)].slot = Some(slot),
            None => self.management.waiting.push_back(slot),
        }
    }

    /// Copies a request and hands it over, to a place.
    fn hand_over(&mut self, asked: &Asked) -> Result<u16, Refused> {
        let Asked { port, request, .. } = *asked;
        let Some(port) = self.ports[port].as_ref() else { return Err(Refused::Later) };
        let (domain, session, queue) = (port.domain, port.session, port.id);
        let (length, room) = (request.length, request.offset);
        // The adapter reads it as the device reads a source, and writes there as the device writes a target.
        let source = Operation::Write { fua: false };
        let hold = self.directory.hold(domain, source, request.memory, length).map_err(Refused::Denied)?;
        let result = self.directory.hold(domain, Operation::Read, request.memory, room);
        self.directory.release_hold(hold);
        let hold = result.map_err(Refused::Denied)?;
        let sessions = self.shares.sessions();
        let place = match &self.regions[hold.region().0 as usize] {
            Some(region) => self.management.take(session, sessions).map(|place| (place, region)),
            None => None, // It is in the mailbox.
        };
        let Some((number, region)) = place else {
            self.directory.release_hold(hold);
            return Err(Refused::Later);
        };
        let place = &mut self.management.places[usize::from(number)];
        let mut managed = place.home.take().expect("a free place has its memory");
        (managed.session, managed.queue, managed.region) = (session, queue, request.memory.region);
        managed.room = usize::try_from(room).expect("parsed to be a message's");
        let copied = usize::try_from(length).ok().zip(usize::try_from(request.memory.offset).ok());
        // The one look at it: what its owner writes there afterwards changes nothing.
        let copied = copied.and_then(|(length, offset)| region.copy_out(offset, managed.renew(length)));
        if copied.is_none() {
            place.home = Some(managed);
            self.management.free.push(number);
            self.directory.release_hold(hold);
            return Err(Refused::Denied(Denied::Memory));
        }
        (place.session, place.hold, place.answered) = (session, Some(hold), 0);
        self.shared.hand_over(managed);
        self.management.bell_due = true;
        Ok(number)
    }

    /// The control plane gives a request back, answered if it was begun.
    #[cold]
    pub(super) fn take_answer(&mut self, managed: Box<Managed>) {
        let number = managed.place;
        let place = &mut self.management.places[usize::from(number)];
        let slot = place.slot;
        if let (Some(slot), Some(hold)) = (slot, &place.hold) {
            let (status, reply) = managed.outcome();
            let region = self.regions[hold.region().0 as usize].as_ref();
            let offset = usize::try_from(self.slots.asked(slot).request.memory.offset).ok();
            let written = region.zip(offset).and_then(|(region, offset)| region.copy_in(offset, reply));
            let (status, bytes) = match written {
                Some(()) => (status, u32::try_from(reply.len()).unwrap_or(u32::MAX)),
                None => (Status::E_LOCAL_MEM, 0),
            };
            place.answered = bytes;
            self.slots.get_mut(slot).fail(status, 0);
        }
        slot.into_iter().for_each(|slot| self.finish(slot));
        self.management.places[usize::from(number)].home = Some(managed);
        self.management.free.push(number);
    }

    /// Looks again at what has no place, after something has changed.
    #[cold]
    pub(super) fn retry_management(&mut self) {
        for _ in 0..self.management.waiting.len() {
            let Some(slot) = self.management.waiting.pop_front() else { break };
            let asked = *self.slots.asked(slot);
            if self.now_ns > asked.deadline_ns {
                self.slots.get_mut(slot).fail(Status::E_DEADLINE, 0);
                self.finish(slot);
                continue;
            }
            match self.hand_over(&asked) {
                Ok(place) => {
                    self.slots.beside_mut(slot).aside = Aside::Managed(Some(place));
                    self.management.places[usize::from(place)].slot = Some(slot);
                }
                Err(Refused::Later) => self.management.waiting.push_back(slot),
                Err(Refused::Denied(denied)) => self.turn_away(&asked, Some(slot), denied),
            }
        }
    }

    /// The request ends, with its answer or without: whatever comes of it later is nobody's. Returns the bytes of the answer.
    pub(super) fn give_place(&mut self, port: usize, place: Option<u16>) -> u64 {
        self.management.slots -= 1;
        self.ports[port].iter_mut().for_each(|port| port.managed -= 1);
        let Some(place) = place else { return 0 };
        let place = &mut self.management.places[usize::from(place)];
        place.stage.withdraw();
        place.slot = None;
        place.hold.take().into_iter().for_each(|hold| self.directory.release_hold(hold));
        place.answered.into()
    }

    /// Tells the control plane of what was handed over: a system call, made outside of turns, if it sleeps.
    pub(super) fn ring_for_management(&mut self) {
        if std::mem::take(&mut self.management.bell_due) && self.schedule.hears_bells() {
            self.shared.ring();
        }
    }
}
