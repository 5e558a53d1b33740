//! Media with a volatile cache, and a supply of power that ends at any operation.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use driver::dice::Dice;
use driver::emu::{Media, MediaError, Segments};

use super::model::SECTOR;

/// What a sector reads as that was never written: what a former owner of the device left.
const SOIL: u8 = 0xee;

type Sector = Box<[u8]>;

/// Media that lose what was not flushed when the power goes: each sector of 512 bytes by itself, as the seed will have it.
/// Without power every operation fails.
pub struct Supply {
    sectors: u64,
    threaded: bool,
    state: Mutex<State>,
}

struct State {
    durable: BTreeMap<u64, Sector>,
    /// What was written since the last flush, oldest first.
    cache: BTreeMap<u64, Vec<Sector>>,
    steps: u64,
    off_at: Option<u64>,
    off: bool,
    /// Sectors that a cut took back.
    lost: u64,
    dice: Dice,
}

impl State {
    fn newest(&self, sector: u64) -> Option<&Sector> {
        self.cache.get(&sector).and_then(|versions| versions.last()).or_else(|| self.durable.get(&sector))
    }

    /// Counts an operation that changes the media; an error if it is the one at which the power goes.
    fn step(&mut self) -> Result<(), ()> {
        if self.off {
            return Err(());
        }
        self.steps += 1;
        if self.off_at.is_some_and(|at| self.steps > at) {
            self.off = true;
            return Err(());
        }
        Ok(())
    }

    fn put(&mut self, sector: u64, content: Sector, durable: bool) {
        if durable {
            self.cache.remove(&sector);
            self.durable.insert(sector, content);
        } else {
            self.cache.entry(sector).or_default().push(content);
        }
    }
}

impl Supply {
    /// `bytes` bytes of what a former owner left. With `threaded` the device works on a thread of its own.
    pub fn new(bytes: u64, threaded: bool) -> Self {
        let state = State {
            durable: BTreeMap::new(),
            cache: BTreeMap::new(),
            steps: 0,
            off_at: None,
            off: false,
            lost: 0,
            dice: Dice(0),
        };
        Self { sectors: bytes / SECTOR as u64, threaded, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The power goes after so many more operations that change something; of the one at which it goes `seed` decides how
    /// much is done.
    pub fn go_off_after(&self, operations: u64, seed: u64) {
        let mut state = self.lock();
        state.off_at = Some(state.steps + operations);
        state.dice = Dice(seed);
    }

    /// The power goes now.
    pub fn go_off(&self) {
        self.lock().off = true;
    }

    /// Whether the power is gone.
    pub fn is_off(&self) -> bool {
        self.lock().off
    }

    /// Sectors whose newest content cuts have taken back so far.
    pub fn lost(&self) -> u64 {
        self.lock().lost
    }

    /// The power comes back. What was not flushed was lost, kept, or replaced by something written between, as `seed` will
    /// have it.
    pub fn restore(&self, seed: u64) {
        let mut dice = Dice(seed);
        let mut state = self.lock();
        let mode = dice.below(4);
        for (sector, mut versions) in std::mem::take(&mut state.cache) {
            let kept = match mode {
                0 => 0,
                1 => versions.len(),
                _ => dice.index(versions.len() + 1),
            };
            state.lost += u64::from(kept < versions.len());
            if kept > 0 {
                state.durable.insert(sector, versions.swap_remove(kept - 1));
            }
        }
        state.off = false;
        state.off_at = None;
    }
}

impl Media for Supply {
    fn bytes(&self) -> u64 {
        self.sectors * SECTOR as u64
    }

    fn may_block(&self) -> bool {
        self.threaded
    }

    fn write_cache(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, into: &Segments<'_>) -> Result<(), MediaError> {
        let state = self.lock();
        if state.off {
            return Err(MediaError::Read);
        }
        let soil = [SOIL; SECTOR];
        for (index, sector) in (offset / SECTOR as u64..).take(into.len() / SECTOR).enumerate() {
            into.write_at(index * SECTOR, state.newest(sector).map_or(&soil, |content| &**content));
        }
        Ok(())
    }

    fn write(&self, offset: u64, from: &Segments<'_>, durable: bool) -> Result<(), MediaError> {
        let mut state = self.lock();
        let whole = !state.off;
        let stepped = state.step();
        let count = from.len() / SECTOR;
        // Of the write at which the power goes a part is done, sector by sector.
        let part = if whole { state.dice.index(count + 1) } else { 0 };
        let done = if stepped.is_ok() { count } else { part };
        for (index, sector) in (offset / SECTOR as u64..).take(done).enumerate() {
            let mut content = vec![0; SECTOR].into_boxed_slice();
            from.read_at(index * SECTOR, &mut content);
            state.put(sector, content, durable);
        }
        stepped.map_err(|()| MediaError::Write)
    }

    fn zero(&self, offset: u64, bytes: u64, _deallocate: bool) -> Result<(), MediaError> {
        let mut state = self.lock();
        let stepped = state.step();
        let count = bytes / SECTOR as u64;
        let done = if stepped.is_ok() { count } else { 0 };
        for sector in (offset / SECTOR as u64..).take(done as usize) {
            state.put(sector, vec![0; SECTOR].into_boxed_slice(), false);
        }
        stepped.map_err(|()| MediaError::Write)
    }

    fn flush(&self) -> Result<(), MediaError> {
        let mut state = self.lock();
        state.step().map_err(|()| MediaError::Write)?;
        for (sector, mut versions) in std::mem::take(&mut state.cache) {
            if let Some(newest) = versions.pop() {
                state.durable.insert(sector, newest);
            }
        }
        Ok(())
    }
}
