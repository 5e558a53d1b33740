//! The IOMMU in front of an emulated device: what it allots, and the only way from the device to memory.
//!
//! Device addresses are cut into granules of 2 MiB, each of which belongs to at most one mapping, so a look-up is two
//! loads. Addresses are handed out in ever rising order up to 2^39 and only then from the bottom again, each mapping
//! starts a few pages into a granule, and the page before it is never mapped: a stale or overrunning address faults.
//!
//! A controller looks addresses up inside a [`Window`]. Unmapping withdraws the granules, waits until every window that
//! may have seen them is closed, and lets go of the memory only then: when it returns the device cannot touch it.
// Unsafe: one block that turns a live mapping's address into a span.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::memory::{Span, Words};
use crate::hal::{DmaAccess, DmaError, Iova, Mapper, Mapping, PinnedMemory};

/// Mappings at most, as the kernel's VFIO allows by default (`dma_entry_limit`).
pub const MAPPING_LIMIT: u32 = 65_535;
/// Device addresses end here, as behind an IOMMU of 39 bits.
const ADDRESS_BITS: u32 = 39;
const GRANULE_SHIFT: u32 = 21;
const GRANULES: usize = 1 << (ADDRESS_BITS - GRANULE_SHIFT);
const PAGE: u64 = 4096;
/// The granule of `0xfee0_0000 .. 0xfef0_0000`, where x86 has its interrupt messages.
const INTERRUPT_GRANULE: usize = 0xfee0_0000 >> GRANULE_SHIFT;

const READ: u64 = 1;
const WRITE: u64 = 2;

/// What the controller wanted to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    /// Read memory.
    FromHost,
    /// Write memory.
    ToHost,
}

/// The access was stopped: no mapping, not the right, or no bus mastering.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Fault;

/// A mapping as the look-up sees it; all zero when free.
#[derive(Debug, Default)]
struct Slot {
    first: AtomicU64,
    len: AtomicU64,
    rights: AtomicU64,
    host: AtomicPtr<u8>,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Gate {
    /// Odd while a window is open.
    turns: AtomicU64,
}

struct Held {
    granules: std::ops::Range<usize>,
    _memory: Arc<dyn PinnedMemory>,
}

/// What map and unmap share.
#[derive(Default)]
struct Ledger {
    /// The granule after the last one handed out.
    cursor: usize,
    made: u64,
    slots: u32,
    free: Vec<u32>,
    held: HashMap<u32, Held>,
}

/// See the module.
pub(super) struct Iommu {
    /// The slot of each granule, plus one; 0 for none.
    granules: Words<AtomicU32>,
    slots: Box<[OnceLock<Box<[Slot]>>]>,
    gates: Box<[Gate]>,
    ledger: Mutex<Ledger>,
    bus_master: AtomicBool,
    faults: AtomicU64,
}

const SLOTS_AT_ONCE: u32 = 256;

impl Iommu {
    /// With `gates` gates, which is how many windows can be open at once.
    pub(super) fn new(gates: usize) -> std::io::Result<Self> {
        Ok(Self {
            granules: Words::new(GRANULES)?,
            slots: (0..=MAPPING_LIMIT / SLOTS_AT_ONCE).map(|_| OnceLock::new()).collect(),
            gates: (0..gates).map(|_| Gate::default()).collect(),
            ledger: Mutex::new(Ledger { cursor: 1, ..Ledger::default() }),
            bus_master: AtomicBool::new(false),
            faults: AtomicU64::new(0),
        })
    }

    /// Accesses that were stopped.
    pub(super) fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// Allows memory accesses, or stops them; none runs on when this returns.
    pub(super) fn set_bus_master(&self, on: bool) {
        self.bus_master.store(on, Ordering::SeqCst);
        if !on {
            self.drain();
        }
    }

    /// Opens the way to memory. One gate serves one window at a time; a second one waits.
    #[inline]
    pub(super) fn window(&self, gate: usize) -> Window<'_> {
        let gate = &self.gates[gate];
        loop {
            let turn = gate.turns.load(Ordering::Relaxed);
            // Sequentially consistent, with the look-ups that follow, against `withdraw` and `drain`.
            if turn & 1 == 0
                && gate
                    .turns
                    .compare_exchange_weak(turn, turn + 1, Ordering::SeqCst, Ordering::Relaxed)
                    .is_ok()
            {
                return Window { iommu: self, gate, on: self.bus_master.load(Ordering::SeqCst) };
            }
            std::hint::spin_loop();
        }
    }

    /// Waits until every window that is open now has been closed.
    fn drain(&self) {
        for gate in &self.gates {
            let seen = gate.turns.load(Ordering::SeqCst);
            let mut spins = 0u32;
            while seen & 1 == 1 && gate.turns.load(Ordering::SeqCst) == seen {
                spins += 1;
                if spins.is_multiple_of(64) {
                    std::thread::yield_now();
                } else {
                    std::hint::spin_loop();
                }
            }
        }
    }

    fn slot(&self, number: u32) -> &Slot {
        let chunk = self.slots[(number / SLOTS_AT_ONCE) as usize]
            .get_or_init(|| (0..SLOTS_AT_ONCE).map(|_| Slot::default()).collect());
        &chunk[(number % SLOTS_AT_ONCE) as usize]
    }

    fn map(&self, memory: Arc<dyn PinnedMemory>, access: DmaAccess) -> Result<(u32, Iova), DmaError> {
        let bytes = memory.len() as u64;
        assert!(bytes > 0 && bytes.is_multiple_of(PAGE), "pinned memory is whole pages");
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        if ledger.held.len() >= MAPPING_LIMIT as usize {
            return Err(DmaError::TooMany { limit: MAPPING_LIMIT });
        }
        // Anything from the second page of the granule to its middle.
        let skew = (1 + ledger.made * 7 % 255) * PAGE;
        let count = usize::try_from((skew + bytes).div_ceil(1 << GRANULE_SHIFT)).unwrap_or(usize::MAX);
        let start = self.free_granules(ledger.cursor, count).ok_or(DmaError::NoAddress { bytes })?;
        let number = ledger.free.pop().unwrap_or_else(|| {
            ledger.slots += 1;
            ledger.slots - 1
        });
        let first = ((start as u64) << GRANULE_SHIFT) + skew;
        let slot = self.slot(number);
        slot.first.store(first, Ordering::Relaxed);
        slot.len.store(bytes, Ordering::Relaxed);
        slot.host.store(memory.start(), Ordering::Relaxed);
        let rights = match access {
            DmaAccess::Read => READ,
            DmaAccess::Write => WRITE,
            DmaAccess::ReadWrite => READ | WRITE,
        };
        slot.rights.store(rights, Ordering::Relaxed);
        for granule in start..start + count {
            self.granules.at(granule).store(number + 1, Ordering::SeqCst);
        }
        ledger.made += 1;
        ledger.cursor = start + count;
        ledger.held.insert(number, Held { granules: start..start + count, _memory: memory });
        Ok((number, Iova(first)))
    }

    fn unmap(&self, number: u32) {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let held = ledger.held.remove(&number).expect("a mapping is unmapped once");
        for granule in held.granules.clone() {
            self.granules.at(granule).store(0, Ordering::SeqCst);
        }
        self.drain();
        ledger.free.push(number);
        drop(ledger);
        drop(held); // the memory, no earlier than here
    }

    /// The first of `count` free granules, from `cursor` on and then from the bottom.
    fn free_granules(&self, cursor: usize, count: usize) -> Option<usize> {
        let usable = |granule: usize| {
            granule != 0
                && granule != INTERRUPT_GRANULE
                && self.granules.at(granule).load(Ordering::Relaxed) == 0
        };
        [cursor..GRANULES, 1..GRANULES].into_iter().find_map(|range| {
            let mut run = 0;
            for granule in range {
                run = if usable(granule) { run + 1 } else { 0 };
                if run == count {
                    return Some(granule + 1 - count);
                }
            }
            None
        })
    }

    fn mappings(&self) -> u64 {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner).held.len() as u64
    }
}

/// The open way to memory. What it finds stays mapped until it is closed.
pub(super) struct Window<'a> {
    iommu: &'a Iommu,
    gate: &'a Gate,
    on: bool,
}

impl Window<'_> {
    /// The memory behind `len` bytes at `iova`, all of one mapping.
    #[inline]
    pub(super) fn find(&self, iova: u64, len: usize, direction: Direction) -> Result<Span<'_>, Fault> {
        self.look_up(iova, len, direction).ok_or_else(|| {
            self.iommu.faults.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(iova, len, ?direction, "DMA fault");
            Fault
        })
    }

    #[inline]
    fn look_up(&self, iova: u64, len: usize, direction: Direction) -> Option<Span<'_>> {
        let granule = usize::try_from(iova >> GRANULE_SHIFT).ok().filter(|&granule| granule < GRANULES)?;
        let number = self.iommu.granules.at(granule).load(Ordering::SeqCst).checked_sub(1)?;
        let slot =
            &self.iommu.slots[(number / SLOTS_AT_ONCE) as usize].get()?[(number % SLOTS_AT_ONCE) as usize];
        let offset = iova.checked_sub(slot.first.load(Ordering::Relaxed))?;
        let inside = offset.checked_add(len as u64)? <= slot.len.load(Ordering::Relaxed);
        let right = if direction == Direction::ToHost { WRITE } else { READ };
        if !self.on || !inside || slot.rights.load(Ordering::Relaxed) & right == 0 {
            return None;
        }
        let start = slot.host.load(Ordering::Relaxed).wrapping_add(usize::try_from(offset).ok()?);
        // SAFETY: the granule was live when looked up inside this window. `unmap` clears it, then waits for this
        // window to close before it re-uses the slot or lets go of the memory, which until then stays as
        // `PinnedMemory` promises; the bytes are inside of it.
        Some(unsafe { Span::from_raw(start, len) })
    }
}

impl Drop for Window<'_> {
    #[inline]
    fn drop(&mut self) {
        // This thread alone can change an odd count.
        let turn = self.gate.turns.load(Ordering::Relaxed);
        self.gate.turns.store(turn + 1, Ordering::Release);
    }
}

/// The host's side of an [`Iommu`].
pub(super) struct IommuMapper(pub(super) Arc<Iommu>);

struct IommuMapping {
    iommu: Arc<Iommu>,
    number: u32,
    iova: Iova,
    len: usize,
}

impl Mapper for IommuMapper {
    fn map(&self, memory: Arc<dyn PinnedMemory>, access: DmaAccess) -> Result<Box<dyn Mapping>, DmaError> {
        let len = memory.len();
        let (number, iova) = self.0.map(memory, access)?;
        Ok(Box::new(IommuMapping { iommu: Arc::clone(&self.0), number, iova, len }))
    }

    fn mappings(&self) -> u64 {
        self.0.mappings()
    }

    fn mappings_left(&self) -> Option<u32> {
        MAPPING_LIMIT.checked_sub(u32::try_from(self.0.mappings()).ok()?)
    }
}

impl Mapping for IommuMapping {
    fn iova(&self) -> Iova {
        self.iova
    }

    fn len(&self) -> usize {
        self.len
    }
}

impl Drop for IommuMapping {
    fn drop(&mut self) {
        self.iommu.unmap(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::Pages;
    use super::*;

    fn iommu() -> (Arc<Iommu>, IommuMapper) {
        let iommu = Arc::new(Iommu::new(2).unwrap());
        iommu.set_bus_master(true);
        (Arc::clone(&iommu), IommuMapper(iommu))
    }

    fn reach(iommu: &Iommu, iova: u64, len: usize, direction: Direction) -> bool {
        iommu.window(0).find(iova, len, direction).is_ok()
    }

    #[test]
    fn only_live_mappings_with_the_right_are_reached() {
        use Direction::{FromHost, ToHost};
        let (iommu, mapper) = iommu();
        let memory = Pages::populated(8192).unwrap();
        for (access, read, write) in [
            (DmaAccess::Read, true, false),
            (DmaAccess::Write, false, true),
            (DmaAccess::ReadWrite, true, true),
        ] {
            let mapping = mapper.map(memory.clone(), access).unwrap();
            let Iova(at) = mapping.iova();
            assert_eq!(at % PAGE, 0);
            assert_eq!(reach(&iommu, at, 8192, FromHost), read);
            assert_eq!(reach(&iommu, at + 8191, 1, ToHost), write);
            for (from, len) in
                [(at - 1, 1), (at, 8193), (at + 8192, 1), (0, 1), (u64::MAX, 1), (at, usize::MAX)]
            {
                assert!(!reach(&iommu, from, len, FromHost) && !reach(&iommu, from, len, ToHost));
            }
            drop(mapping);
            assert!(!reach(&iommu, at, 1, FromHost) && !reach(&iommu, at, 1, ToHost));
        }
        assert_eq!(iommu.faults(), 3 * 12 + 2 + 6);
        assert_eq!(Arc::strong_count(&memory), 1, "the memory is let go");
    }

    #[test]
    fn without_bus_mastering_nothing_is_reached() {
        let (iommu, mapper) = iommu();
        let mapping = mapper.map(Pages::populated(4096).unwrap(), DmaAccess::ReadWrite).unwrap();
        iommu.set_bus_master(false);
        assert!(!reach(&iommu, mapping.iova().0, 1, Direction::FromHost));
        iommu.set_bus_master(true);
        assert!(reach(&iommu, mapping.iova().0, 1, Direction::FromHost));
    }

    #[test]
    fn addresses_come_back_late_and_avoid_the_hole() {
        let (_, mapper) = iommu();
        let memory = Pages::populated(4096).unwrap();
        let mut last = 0;
        for _ in 0..200_000 {
            let Iova(at) = mapper.map(memory.clone(), DmaAccess::Read).unwrap().iova();
            assert!(at > last && at + 4096 <= 1 << 39);
            assert!(at + 4096 <= 0xfee0_0000 || at >= 0xfef0_0000);
            last = at;
        }
    }

    #[test]
    fn the_limit_is_exact_and_recovers() {
        let (_, mapper) = iommu();
        let memory = Pages::populated(4096).unwrap();
        let mut all: Vec<_> =
            (0..MAPPING_LIMIT).map(|_| mapper.map(memory.clone(), DmaAccess::Read).unwrap()).collect();
        assert_eq!(mapper.mappings(), u64::from(MAPPING_LIMIT));
        assert!(matches!(
            mapper.map(memory.clone(), DmaAccess::Read),
            Err(DmaError::TooMany { limit: MAPPING_LIMIT })
        ));
        all.pop();
        all.push(mapper.map(memory.clone(), DmaAccess::Read).unwrap());
        let mut starts: Vec<u64> = all.iter().map(|mapping| mapping.iova().0).collect();
        starts.sort_unstable();
        assert!(starts.windows(2).all(|pair| pair[1] - pair[0] > 4096));
        drop(all);
        assert_eq!((mapper.mappings(), Arc::strong_count(&memory)), (0, 1));
    }

    #[test]
    fn unmapping_waits_for_an_open_window() {
        let (iommu, mapper) = iommu();
        let memory = Pages::populated(4096).unwrap();
        let mapping = mapper.map(memory.clone(), DmaAccess::ReadWrite).unwrap();
        let granule = (mapping.iova().0 >> GRANULE_SHIFT) as usize;
        std::thread::scope(|scope| {
            let window = iommu.window(1);
            let span = window.find(mapping.iova().0, 8, Direction::ToHost).unwrap();
            let unmapping = scope.spawn(|| drop(mapping));
            // Withdrawn at once for others ...
            while iommu.granules.at(granule).load(Ordering::SeqCst) != 0 {
                std::hint::spin_loop();
            }
            // ... but what this window found stays until it is closed.
            assert!(!unmapping.is_finished());
            assert_eq!(Arc::strong_count(&memory), 2);
            span.write(&[1; 8]);
            drop(window);
            unmapping.join().unwrap();
        });
        assert_eq!(Arc::strong_count(&memory), 1);
    }
}
