//! A disk in memory whose power can be cut.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Disk, DiskError, DiskFault, check_range, name_of, whole_blocks};
use crate::block::{DeviceStatus, Geometry, Operation};
use crate::dice::Dice;

/// A power cut tears writes at this many bytes.
const SECTOR: usize = 512;

/// A disk in memory, for tests, fuzzers and devices without data. Clones are handles on the same disk, so that a test can keep one while
/// another is in use, cut the power and look at what is left.
#[derive(Clone)]
pub struct MemoryDisk {
    geometry: Geometry,
    state: Arc<Mutex<State>>,
}

#[derive(Clone, Default)]
struct State {
    /// What a read sees; blocks that are not here read as zero.
    live: BTreeMap<u64, Box<[u8]>>,
    /// Content at the last flush of the blocks written since, in order of their first write.
    unflushed: BTreeMap<u64, Option<Box<[u8]>>>,
    /// Writes, zeroings, deallocations and flushes so far.
    steps: u64,
    /// The power goes at this step.
    off_at: Option<u64>,
    off: bool,
    /// Blocks that cannot be read.
    unreadable: Option<std::ops::Range<u64>>,
}

impl State {
    /// Counts a step that changes the disk.
    fn step(&mut self) -> Result<(), DiskFault> {
        if self.off_at == Some(self.steps) {
            self.off = true;
        }
        if self.off {
            return Err(DiskFault::Gone);
        }
        self.steps += 1;
        Ok(())
    }

    fn put(&mut self, lba: u64, content: Option<Box<[u8]>>) {
        let old = match content {
            Some(content) => self.live.insert(lba, content),
            None => self.live.remove(&lba),
        };
        self.unflushed.entry(lba).or_insert(old);
    }
}

impl MemoryDisk {
    /// `blocks` blocks of `1 << block_shift` bytes, all zero, with a write cache that a power cut loses.
    pub fn new(block_shift: u8, blocks: u64) -> Self {
        let geometry = Geometry {
            block_shift,
            blocks,
            max_transfer_blocks: 1 << (17 - block_shift),
            max_segments: 1,
            max_zeroes_blocks: 1 << 16,
            write_cache: true,
            write_zeroes: true,
            deallocate: true,
            deallocate_zeroes: false,
            compare: false,
        };
        Self { geometry, state: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A disk of its own with the same content.
    pub fn copy(&self) -> Self {
        Self { geometry: self.geometry, state: Arc::new(Mutex::new(self.lock().clone())) }
    }

    /// Writes, zeroings, deallocations and flushes so far.
    pub fn steps(&self) -> u64 {
        self.lock().steps
    }

    /// The power goes instead of step `step` (as [`MemoryDisk::steps`] counts): it and all later calls fail.
    pub fn power_off_at(&self, step: u64) {
        self.lock().off_at = Some(step);
    }

    /// Cuts the power and restores it: what was not flushed is kept or lost by the dice of `seed`, each 512 bytes by
    /// themselves.
    pub fn power_cut(&self, seed: u64) {
        let mut dice = Dice(seed);
        let mut state = self.lock();
        state.off = false;
        state.off_at = None;
        let empty = vec![0; self.geometry.block_size() as usize].into_boxed_slice();
        // A third of the cuts lose everything, a third nothing, a third toss for each sector.
        let mode = dice.number() % 3;
        for (lba, old) in std::mem::take(&mut state.unflushed) {
            let old = old.unwrap_or_else(|| empty.clone());
            let now = state.live.entry(lba).or_insert_with(|| empty.clone());
            for (now, old) in now.chunks_mut(SECTOR).zip(old.chunks(SECTOR)) {
                if mode == 0 || mode == 1 && dice.number() & 1 == 0 {
                    now.copy_from_slice(old);
                }
            }
        }
    }

    /// Reads of these blocks fail from now on.
    pub fn make_unreadable(&self, blocks: std::ops::Range<u64>) {
        self.lock().unreadable = Some(blocks);
    }

    /// Changes a block behind everybody's back; false if it lies beyond the end.
    pub fn alter(&self, lba: u64, change: impl FnOnce(&mut [u8])) -> bool {
        if lba >= self.geometry.blocks {
            return false;
        }
        let size = self.geometry.block_size() as usize;
        change(self.lock().live.entry(lba).or_insert_with(|| vec![0; size].into_boxed_slice()));
        true
    }

    /// The blocks that are not zero, with their content.
    pub fn content(&self) -> BTreeMap<u64, Box<[u8]>> {
        let mut content = self.lock().live.clone();
        content.retain(|_, block| block.iter().any(|byte| *byte != 0));
        content
    }

    /// The geometry that it reports, to be changed before the disk is used.
    pub fn geometry_mut(&mut self) -> &mut Geometry {
        &mut self.geometry
    }
}

impl Disk for MemoryDisk {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn read(&mut self, lba: u64, data: &mut [u8]) -> Result<(), DiskError> {
        let blocks = whole_blocks(&self.geometry, Operation::Read, lba, data.len())?;
        check_range(&self.geometry, Operation::Read, lba, blocks)?;
        let error = |lba, cause| DiskError { what: "read", lba, cause };
        let state = self.lock();
        if state.off {
            return Err(error(lba, DiskFault::Gone));
        }
        for (lba, block) in (lba..).zip(data.chunks_mut(self.geometry.block_size() as usize)) {
            if state.unreadable.as_ref().is_some_and(|range| range.contains(&lba)) {
                return Err(error(lba, DiskFault::Status(DeviceStatus::READ_ERROR)));
            }
            match state.live.get(&lba) {
                Some(content) => block.copy_from_slice(content),
                None => block.fill(0),
            }
        }
        Ok(())
    }

    fn write(&mut self, lba: u64, data: &[u8]) -> Result<(), DiskError> {
        let operation = Operation::Write { fua: false };
        check_range(
            &self.geometry,
            operation,
            lba,
            whole_blocks(&self.geometry, operation, lba, data.len())?,
        )?;
        let mut state = self.lock();
        let stepped = state.step();
        // The write at which the power goes may still have reached the disk, or a part of it.
        if stepped.is_ok() || state.off_at == Some(state.steps) {
            for (lba, block) in (lba..).zip(data.chunks(self.geometry.block_size() as usize)) {
                state.put(lba, Some(block.into()));
            }
        }
        stepped.map_err(|cause| {
            state.off_at = None;
            DiskError { what: name_of(operation), lba, cause }
        })
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        let mut state = self.lock();
        state.step().map_err(|cause| DiskError { what: "flush", lba: 0, cause })?;
        state.unflushed.clear();
        Ok(())
    }

    fn write_zeroes(&mut self, lba: u64, blocks: u64) -> Result<(), DiskError> {
        let operation = Operation::WriteZeroes { deallocate: false };
        check_range(&self.geometry, operation, lba, blocks)?;
        let mut state = self.lock();
        state.step().map_err(|cause| DiskError { what: name_of(operation), lba, cause })?;
        let written: Vec<u64> = state.live.range(lba..lba + blocks).map(|(lba, _)| *lba).collect();
        for lba in written {
            state.put(lba, None);
        }
        Ok(())
    }

    fn deallocate(&mut self, lba: u64, blocks: u64) -> Result<(), DiskError> {
        check_range(&self.geometry, Operation::Deallocate, lba, blocks)?;
        let mut state = self.lock();
        // A hint: this disk ignores it, as a device may.
        state.step().map_err(|cause| DiskError { what: name_of(Operation::Deallocate), lba, cause })
    }
}
