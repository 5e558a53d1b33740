//! Doorbells of an I/O queue pair, and the shadow doorbells that spare the device's registers.
//!
//! A register write is an exit to the hypervisor on an emulated device, and a store that leaves the processor on a real
//! one. With Doorbell Buffer Config (Base 2.0, 5.8) a doorbell is a word of memory that the device looks at while it is
//! awake; beside it the device keeps an event index: the value from which on it wants the register written too.
//!
//! The device writes the event index when and as it likes. It is read once and decides about nothing but a register
//! write: what a wrong one delays is the device's own work, and not for ever (see [`Bell::insist`]). The shadows are
//! never read.

use std::sync::atomic::{Ordering, fence};

use crate::dma::{DmaBuffer, PAGE};
use crate::hal::{DmaAccess, DmaError, Iova, Mapper, Registers};
use crate::spec::nvme::{cq_head_doorbell, offset};
use crate::spec::virtio::split::passes;

/// A page of shadow doorbells and, after it, a page of event indexes, laid out as the registers are.
pub(super) struct ShadowDoorbells(DmaBuffer);

impl ShadowDoorbells {
    /// For `queues` I/O queue pairs; `None` if their doorbells do not fit a page, which is all that the command has.
    pub(super) fn new(mapper: &dyn Mapper, queues: u16, dstrd: u8) -> Result<Option<Self>, DmaError> {
        if cq_head_doorbell(queues, dstrd) + 4 > offset::DOORBELLS + PAGE {
            return Ok(None);
        }
        DmaBuffer::new(mapper, 2 * PAGE, DmaAccess::ReadWrite).map(|memory| Some(Self(memory)))
    }

    /// Where the device finds the shadows and the event indexes.
    pub(super) fn places(&self) -> (Iova, Iova) {
        (self.0.iova(0), self.0.iova(PAGE))
    }

    /// As for queues that were never used.
    pub(super) fn start_over(&self) {
        self.0.zero();
    }

    /// Tells the device by way of memory. Says whether it wants the register written too.
    #[inline]
    fn tell(&self, at: usize, old: u16, new: u16) -> bool {
        let store = || self.0.store32(at, new.into());
        let event = store_and_look(store, || self.0.load32(PAGE + at, Ordering::Relaxed));
        #[expect(clippy::cast_possible_truncation, reason = "indexes have 16 bits")]
        let event = event as u16;
        // Indexes of a queue wrap earlier than 2^16; those that do not exist are passed with the wrap and are nobody's event.
        passes(event, old, new)
    }

    #[cfg(test)]
    pub(super) fn memory(&self) -> &DmaBuffer {
        &self.0
    }
}

/// Stores the shadow and then looks at the event index. A device that is about to sleep writes its event index and then
/// looks at the shadow: one of the two sees the other.
#[inline]
fn store_and_look(store: impl FnOnce(), look: impl FnOnce() -> u32) -> u32 {
    // The entries are there before the shadow says so.
    fence(Ordering::Release);
    store();
    fence(Ordering::SeqCst);
    look()
}

/// One doorbell.
pub(super) struct Bell {
    register: usize,
    /// What the device was told last, one way or the other.
    told: u16,
    /// It was told by way of memory alone.
    unrung: bool,
}

impl Bell {
    /// The doorbell at this offset in BAR 0.
    pub(super) fn new(register: usize) -> Self {
        Self { register, told: 0, unrung: false }
    }

    /// The device was told nothing yet.
    pub(super) fn start_over(&mut self) {
        (self.told, self.unrung) = (0, false);
    }

    /// What the device was told last.
    #[inline]
    pub(super) fn told(&self) -> u16 {
        self.told
    }

    /// Tells the device the new index. Says whether that took a register write.
    #[inline]
    pub(super) fn tell(
        &mut self,
        registers: &impl Registers,
        shadows: Option<&ShadowDoorbells>,
        new: u16,
    ) -> bool {
        let old = std::mem::replace(&mut self.told, new);
        let rings = shadows.is_none_or(|shadows| shadows.tell(self.register - offset::DOORBELLS, old, new));
        if rings {
            registers.write32(self.register, new.into());
        }
        self.unrung = !rings;
        rings
    }

    /// Writes the register after all, if the device said that it need not be. Says whether it did.
    #[inline]
    pub(super) fn insist(&mut self, registers: &impl Registers) -> bool {
        let rings = std::mem::take(&mut self.unrung);
        if rings {
            registers.write32(self.register, self.told.into());
        }
        rings
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Step by step round a queue: the event is passed when the index leaves it.
        #[test]
        fn an_event_is_passed_when_the_index_leaves_it(
            entries in 2u16..5000,
            old in any::<u16>(),
            steps in any::<u16>(),
            event in any::<u16>(),
        ) {
            let (old, steps, event) = (old % entries, steps % entries, event % entries);
            let next = |index: u16| if index + 1 == entries { 0 } else { index + 1 };
            let (mut index, mut passed) = (old, false);
            for _ in 0..steps {
                passed |= index == event;
                index = next(index);
            }
            prop_assert_eq!(passes(event, old, index), passed);
        }
    }

    /// The device falls asleep right after its event index was looked at, as early as it can to be missed: it has seen
    /// the shadow then.
    #[test]
    fn a_device_that_falls_asleep_after_the_look_has_seen_the_shadow() {
        let (shadow, seen) = (std::cell::Cell::new(3), std::cell::Cell::new(0));
        store_and_look(
            || shadow.set(4),
            || {
                seen.set(shadow.get());
                2
            },
        );
        assert_eq!(seen.get(), 4);
    }

    #[test]
    fn no_more_queues_than_a_page_has_room_for() {
        let mapper = crate::null::NullMapper::default();
        let fits = |queues, dstrd| ShadowDoorbells::new(&mapper, queues, dstrd).unwrap().is_some();
        assert!(fits(511, 0) && !fits(512, 0));
        assert!(fits(1, 7) && fits(3, 7) && !fits(4, 7));
        assert!(!fits(1, 10));
    }
}
