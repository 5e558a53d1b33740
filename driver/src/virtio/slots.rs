//! Requests in flight. A used id is only the place of a request, without a generation: so a place that became free is the
//! last to be taken again, and what a device says of one that is free is noticed.

use std::collections::VecDeque;

/// What is with the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Request {
    pub(super) tag: u64,
    /// The index of the available ring at which it stands.
    pub(super) at: u16,
    /// Bytes that the device may write, the status among them.
    pub(super) writable: u32,
    /// A flush follows before it ends.
    pub(super) flush_after: bool,
}

/// The places of one queue.
pub(super) struct Slots {
    slots: Box<[Option<Request>]>,
    free: VecDeque<u16>,
}

impl Slots {
    /// `count` places.
    pub(super) fn new(count: u16) -> Self {
        Self { slots: vec![None; count.into()].into(), free: (0..count).collect() }
    }

    /// Takes a place; `None` if all are taken.
    #[inline]
    pub(super) fn take(&mut self, request: Request) -> Option<u16> {
        let slot = self.free.pop_front()?;
        self.slots[usize::from(slot)] = Some(request);
        Some(slot)
    }

    /// Who has a place, if there is such a place and anybody has it.
    #[inline]
    pub(super) fn get_mut(&mut self, slot: u16) -> Option<&mut Request> {
        self.slots.get_mut(usize::from(slot))?.as_mut()
    }

    /// Gives a place back, and returns the tag of whom it was; `None` if it was nobody's.
    #[inline]
    pub(super) fn give_back(&mut self, slot: u16) -> Option<u64> {
        let request = self.slots.get_mut(usize::from(slot))?.take()?;
        self.free.push_back(slot);
        Some(request.tag)
    }

    /// Gives back any place that is taken.
    pub(super) fn abandon(&mut self) -> Option<u64> {
        if self.outstanding() == 0 {
            return None;
        }
        let slot = self.slots.iter().position(Option::is_some)?;
        self.give_back(u16::try_from(slot).ok()?)
    }

    #[inline]
    pub(super) fn outstanding(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(tag: u64) -> Request {
        Request { tag, at: 0, writable: 1, flush_after: false }
    }

    #[test]
    fn all_places_then_none_and_each_once() {
        let mut slots = Slots::new(3);
        let places: Vec<u16> = (0..3).map(|tag| slots.take(request(tag)).unwrap()).collect();
        assert_eq!((slots.take(request(9)), slots.outstanding()), (None, 3));
        assert_eq!(slots.give_back(places[1]), Some(1));
        assert_eq!(slots.give_back(places[1]), None, "twice");
        assert_eq!(slots.give_back(3), None, "there is no such place");
        assert_eq!(slots.give_back(u16::MAX), None);
        assert!(slots.get_mut(places[1]).is_none() && slots.get_mut(places[0]).is_some());
        assert_eq!((slots.abandon(), slots.abandon(), slots.abandon()), (Some(0), Some(2), None));
        assert_eq!(slots.outstanding(), 0);
    }

    /// With free places left, the one that was just given back is not the next: a device that says twice that it is done
    /// with it is found out.
    #[test]
    fn a_place_that_became_free_is_the_last_to_be_taken() {
        let mut slots = Slots::new(4);
        let first = slots.take(request(0)).unwrap();
        slots.give_back(first);
        for _ in 0..3 {
            assert_ne!(slots.take(request(1)), Some(first));
        }
        assert_eq!(slots.take(request(1)), Some(first));
    }
}
