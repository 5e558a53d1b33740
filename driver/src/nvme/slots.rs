//! Commands in flight: which command id belongs to which tag.
//!
//! A command id is a slot and the slot's generation, so that a completion that comes late, twice, or out of nowhere is
//! recognised. It is compared before anything is indexed with it.

#[derive(Clone, Copy)]
struct Slot {
    tag: u64,
    /// The id of the command here, or of the next one.
    cid: u16,
    busy: bool,
}

/// The slots of one queue.
pub(super) struct Slots {
    slots: Box<[Slot]>,
    free: Vec<u16>,
    /// One generation, in a command id.
    step: u16,
    /// Where [`Slots::abandon`] goes on.
    cursor: usize,
}

impl Slots {
    /// `count` slots, at least 1. The id FFFFh never comes up for fewer than 65535.
    pub(super) fn new(count: u16) -> Self {
        // One more than the slots, so that all ones is no slot.
        let step = u16::try_from((u32::from(count) + 1).next_power_of_two()).unwrap_or(0);
        let slots = (0..count).map(|index| Slot { tag: 0, cid: index, busy: false }).collect();
        Self { slots, free: (0..count).rev().collect(), step, cursor: 0 }
    }

    /// Takes a slot; `None` if all are busy. Returns it and the command's id.
    #[inline]
    pub(super) fn take(&mut self, tag: u64) -> Option<(u16, u16)> {
        let index = self.free.pop()?;
        let slot = &mut self.slots[usize::from(index)];
        (slot.tag, slot.busy) = (tag, true);
        Some((index, slot.cid))
    }

    /// Gives back the slot of the command with this id and returns its tag; `None` if there is no such command.
    #[inline]
    pub(super) fn give_back(&mut self, cid: u16) -> Option<u64> {
        let index = cid & self.step.wrapping_sub(1);
        let slot = self.slots.get_mut(usize::from(index))?;
        if !slot.busy || slot.cid != cid {
            return None;
        }
        slot.busy = false;
        slot.cid = cid.wrapping_add(self.step);
        self.free.push(index);
        Some(slot.tag)
    }

    /// Gives back any busy slot.
    pub(super) fn abandon(&mut self) -> Option<u64> {
        for _ in 0..self.slots.len() {
            self.cursor = if self.cursor + 1 >= self.slots.len() { 0 } else { self.cursor + 1 };
            let slot = self.slots[self.cursor];
            if slot.busy {
                return self.give_back(slot.cid);
            }
        }
        None
    }

    #[inline]
    pub(super) fn outstanding(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_slots_then_none_and_each_id_once() {
        let mut slots = Slots::new(3);
        let ids: Vec<u16> = (0..3).map(|tag| slots.take(tag).unwrap().1).collect();
        assert_eq!(slots.take(9), None);
        assert_eq!(slots.give_back(ids[1]), Some(1));
        assert_eq!(slots.give_back(ids[1]), None, "twice");
        let again = slots.take(7).unwrap().1;
        assert_ne!(again, ids[1], "a new generation");
        assert_eq!(slots.give_back(ids[1]), None, "late");
        assert_eq!(slots.give_back(again), Some(7));
        assert_eq!(slots.give_back(u16::MAX), None);
        assert_eq!(slots.outstanding(), 2);
    }

    #[test]
    fn generations_wrap() {
        for count in [1, 255, 1023, 40000] {
            let mut slots = Slots::new(count);
            for round in 0..100_000 {
                let (_, cid) = slots.take(round).unwrap();
                assert_ne!(cid, u16::MAX);
                assert_eq!(slots.give_back(cid), Some(round));
            }
        }
    }

    proptest! {
        /// Against a map: any id, ours or not, gives back exactly the command that has it.
        #[test]
        fn any_completion(count in 1u16..9, ops in proptest::collection::vec(any::<Option<u16>>(), 1..200)) {
            let mut slots = Slots::new(count);
            let mut busy: HashMap<u16, u64> = HashMap::new();
            for (tag, op) in ops.into_iter().enumerate() {
                match op {
                    None => match slots.take(tag as u64) {
                        Some((slot, cid)) => {
                            prop_assert!(slot < count);
                            prop_assert_eq!(busy.insert(cid, tag as u64), None);
                        }
                        None => prop_assert_eq!(busy.len(), usize::from(count)),
                    },
                    Some(cid) => {
                        let cid = if cid % 2 == 0 { cid } else { busy.keys().next().copied().unwrap_or(cid) };
                        prop_assert_eq!(slots.give_back(cid), busy.remove(&cid));
                    }
                }
                prop_assert_eq!(slots.outstanding(), busy.len());
            }
            while let Some(tag) = slots.abandon() {
                busy.retain(|_, held| *held != tag);
                prop_assert_eq!(slots.outstanding(), busy.len());
            }
            prop_assert!(busy.is_empty());
        }
    }
}
