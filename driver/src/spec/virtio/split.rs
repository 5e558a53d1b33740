//! Split virtqueues (2.7): descriptor table, available ring, used ring.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Entries of a virtqueue at most (2.7); a power of two.
pub const MOST_ENTRIES: u16 = 32_768;

/// Flags of a descriptor (2.7.5).
pub mod descriptor {
    /// `next` is the next one of the chain.
    pub const NEXT: u16 = 1;
    /// The device writes the buffer; otherwise it reads it.
    pub const WRITE: u16 = 2;
    /// The buffer is a table of descriptors (2.7.5.3).
    pub const INDIRECT: u16 = 4;
}

/// A descriptor (2.7.5).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Descriptor {
    /// Where the buffer is.
    pub addr: u64,
    /// Its bytes.
    pub len: u32,
    /// See [`descriptor`].
    pub flags: u16,
    /// The next of the chain, if the flags say so.
    pub next: u16,
}

/// Bytes of a descriptor; tables are aligned to it.
pub const DESCRIPTOR_LEN: usize = 16;
const _: () = assert!(size_of::<Descriptor>() == DESCRIPTOR_LEN);

/// The available ring (2.7.6): flags and index, 16 bits each, entries of 16 bits, and `used_event`, 16 bits.
pub mod available {
    /// In the flags: the driver wants no interrupts (2.7.7; not with event indexes).
    pub const NO_INTERRUPT: u16 = 1;
    /// Bytes before the entries.
    pub const HEAD: usize = 4;
    /// Bytes of an entry.
    pub const ENTRY: usize = 2;

    /// Offset of `used_event` in a ring of so many entries.
    pub const fn used_event(entries: u16) -> usize {
        HEAD + entries as usize * ENTRY
    }
}

/// The used ring (2.7.8): flags and index, 16 bits each, entries of 8 bytes, and `avail_event`, 16 bits.
pub mod used {
    /// In the flags: the device wants no notifications (2.7.10; not with event indexes).
    pub const NO_NOTIFY: u16 = 1;
    /// Bytes before the entries.
    pub const HEAD: usize = 4;
    /// Bytes of an entry: the head of the chain, and how many bytes the device has written, 32 bits each.
    pub const ENTRY: usize = 8;

    /// Offset of `avail_event` in a ring of so many entries.
    pub const fn avail_event(entries: u16) -> usize {
        HEAD + entries as usize * ENTRY
    }
}

/// Whether an index on its way from `old` to `new` passes `event` (2.7.10: `vring_need_event`).
#[inline]
pub const fn passes(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literal_bytes() {
        let descriptor = Descriptor {
            addr: 0x0807_0605_0403_0201,
            len: 0x0c0b_0a09,
            flags: descriptor::NEXT | descriptor::WRITE,
            next: 0x100f,
        };
        assert_eq!(descriptor.as_bytes(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 3, 0, 15, 16]);
        assert_eq!((available::used_event(8), used::avail_event(8)), (20, 68));
    }

    /// Step by step: an event is passed when the index leaves it, over the wrap as well.
    #[test]
    fn an_event_is_passed_when_the_index_leaves_it() {
        for old in [0u16, 5, 0xfffa, 0xffff] {
            for steps in 0..12u16 {
                let new = old.wrapping_add(steps);
                for event in [old.wrapping_sub(1), old, old.wrapping_add(3), new.wrapping_sub(1), new, 77] {
                    let passed = (0..steps).any(|step| old.wrapping_add(step) == event);
                    assert_eq!(passes(event, old, new), passed, "{old} {new} {event}");
                }
            }
        }
    }
}
