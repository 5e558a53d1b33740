//! The requests in flight of one queue, by slot and generation.

use std::num::NonZeroU64;

use wire::layout::opcode;

use crate::request::{Data, Ticket};

/// What is kept of a request while it is in flight.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) data: Data,
    pub(crate) tag: u64,
    pub(crate) offset: u64,
    pub(crate) length: u32,
    pub(crate) opcode: u8,
    /// Of the entry; what a queue needs that goes on with another adapter.
    pub(crate) flags: u8,
    /// It names an extension of a file, by a key that ends with the adapter.
    pub(crate) in_extension: bool,
    /// Its data lie elsewhere while it is in flight.
    pub(crate) bounced: bool,
    pub(crate) deadline_us: u32,
    pub(crate) key: u64,
    /// Made by that blocking transfer for itself; never handed out.
    pub(crate) transfer: Option<NonZeroU64>,
}

impl Flight {
    /// What no request is.
    const NONE: Self = Self {
        data: Data::None,
        tag: 0,
        offset: 0,
        length: 0,
        opcode: 0,
        flags: 0,
        in_extension: false,
        bounced: false,
        deadline_us: 0,
        key: 0,
        transfer: None,
    };

    /// Its data, which is out of the device's reach now.
    #[inline]
    pub(crate) fn take_data(&mut self) -> Data {
        std::mem::replace(&mut self.data, Data::None)
    }

    /// Its data lay elsewhere in this life of its session, and do no more. What the device wrote comes back: `bytes` of it.
    #[cold]
    pub(crate) fn come_back(&mut self, life: u32, bytes: u32) {
        self.bounced = false;
        let written = matches!(self.opcode, opcode::READ | opcode::MANAGE);
        let mut left = if written { usize::try_from(bytes).unwrap_or(usize::MAX) } else { 0 };
        match &mut self.data {
            Data::None => {}
            Data::One(buffer) => buffer.come_back(life, left),
            Data::Several(buffers) => {
                for buffer in buffers {
                    buffer.come_back(life, left);
                    left = left.saturating_sub(buffer.len());
                }
            }
        }
    }
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    in_flight: bool,
    flight: Flight,
}

/// As many slots as the queue has entries. Nothing is allocated after [`Slots::new`].
#[derive(Debug)]
pub(crate) struct Slots {
    slots: Box<[Slot]>,
    free: Vec<u32>,
}

impl Slots {
    pub(crate) fn new(entries: u32) -> Self {
        Self {
            slots: (0..entries)
                .map(|_| Slot { generation: 0, in_flight: false, flight: Flight::NONE })
                .collect(),
            free: (0..entries).rev().collect(),
        }
    }

    #[inline]
    pub(crate) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// A slot that is free; `None` if all are taken.
    #[inline]
    pub(crate) fn vacant(&mut self) -> Option<Vacant<'_>> {
        let number = *self.free.last()?;
        let slot = self.slots.get_mut(number as usize)?;
        let ticket = Ticket { generation: slot.generation, slot: number };
        Some(Vacant { ticket, slot, free: &mut self.free })
    }

    /// Ends the request that `user_data` names, and shows what was kept of it until its slot is filled again; `None` if
    /// there is none. `user_data` comes from outside.
    #[inline]
    pub(crate) fn end(&mut self, user_data: u64) -> Option<(Ticket, &mut Flight)> {
        let ticket = Ticket::from_user_data(user_data);
        let slot = self.slots.get_mut(ticket.slot as usize)?;
        if slot.generation != ticket.generation || !slot.in_flight {
            return None;
        }
        slot.in_flight = false;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(ticket.slot);
        Some((ticket, &mut slot.flight))
    }

    /// The requests in flight, by their user data.
    pub(crate) fn all(&mut self) -> impl Iterator<Item = (u64, &mut Flight)> {
        (0u32..).zip(&mut self.slots).filter(|(_, slot)| slot.in_flight).map(|(number, slot)| {
            let ticket = Ticket { generation: slot.generation, slot: number };
            (ticket.user_data(), &mut slot.flight)
        })
    }

    /// The request in flight of this user data.
    pub(crate) fn get_mut(&mut self, user_data: u64) -> Option<&mut Flight> {
        let ticket = Ticket::from_user_data(user_data);
        let slot = self.slots.get_mut(ticket.slot as usize)?;
        (slot.in_flight && slot.generation == ticket.generation).then_some(&mut slot.flight)
    }

    /// Gives up whatever is in flight without running a destructor: its memory may still be written by the device.
    pub(crate) fn leak(&mut self) {
        for slot in &mut self.slots {
            std::mem::forget(slot.flight.take_data());
        }
    }
}

/// A free slot, which stays so until it is filled.
pub(crate) struct Vacant<'a> {
    ticket: Ticket,
    slot: &'a mut Slot,
    free: &'a mut Vec<u32>,
}

impl Vacant<'_> {
    /// Of the request that will fill it.
    #[inline]
    pub(crate) fn ticket(&self) -> Ticket {
        self.ticket
    }

    /// Takes the slot.
    #[inline]
    pub(crate) fn fill(self, flight: Flight) -> Ticket {
        self.free.pop();
        self.slot.in_flight = true;
        self.slot.flight = flight;
        self.ticket
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(slots: &mut Slots, tag: u64) -> Ticket {
        slots.vacant().unwrap().fill(flight(tag))
    }

    fn flight(tag: u64) -> Flight {
        Flight { tag, ..Flight::NONE }
    }

    #[test]
    fn a_completion_ends_exactly_one_request() {
        let mut slots = Slots::new(2);
        let named = slots.vacant().unwrap().ticket();
        let first = insert(&mut slots, 1);
        assert_eq!(first, named);
        let second = insert(&mut slots, 2);
        assert_ne!(first, second);
        assert!(slots.is_full() && slots.vacant().is_none());

        assert_eq!(slots.end(first.user_data()).unwrap().1.tag, 1);
        assert!(slots.end(first.user_data()).is_none(), "the same completion twice");
        assert_eq!(slots.in_flight(), 1);

        let third = insert(&mut slots, 3);
        assert_eq!(third.slot, first.slot);
        assert!(slots.end(first.user_data()).is_none(), "a stale generation");
        assert_eq!(slots.end(third.user_data()).unwrap().1.tag, 3);
    }

    #[test]
    fn user_data_that_was_never_given_ends_nothing() {
        let mut slots = Slots::new(4);
        insert(&mut slots, 1);
        for user_data in [4, u64::from(u32::MAX), u64::MAX, 1, 1 << 32, 3] {
            assert!(slots.end(user_data).is_none(), "{user_data:#x}");
        }
        assert_eq!(slots.in_flight(), 1);
    }
}
