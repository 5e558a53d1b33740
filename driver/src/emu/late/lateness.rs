//! When a late device does what it does: the same for a device of any kind.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::interpose::Verdict;
use crate::dice::Dice;

/// How late a device is. Chances are in thousandths.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lateness {
    /// What all dice are thrown with.
    pub seed: u64,
    /// Chance that a command does not run when it is told, but some time later, or never.
    pub late: u16,
    /// Chance that one runs and completes, and runs again some time later: what no device may do.
    pub again: u16,
    /// Looks at its status before it has stopped after it was told to, at most; meanwhile it works on.
    /// With `u32::MAX` it never stops, and only a function reset stops it.
    pub lingers: u32,
}

impl Lateness {
    /// One of all kinds, by the dice of `seed`.
    #[expect(clippy::cast_possible_truncation, reason = "small numbers")]
    pub fn of(seed: u64) -> Self {
        let mut dice = Dice(seed ^ 0x1a7e);
        let never_stops = seed % 8 == 7;
        Self {
            seed,
            late: if never_stops { 700 } else { 100 + dice.below(600) as u16 },
            again: if !never_stops && dice.below(3) == 0 { 1 + dice.below(300) as u16 } else { 0 },
            // Waiting for one that never stops takes half a second.
            lingers: if never_stops { u32::MAX } else { dice.below(60) as u32 },
        }
    }

    /// Whether the device keeps to the specification, for all that it is late.
    pub fn is_honest(&self) -> bool {
        self.again == 0
    }
}

/// What happens when the host looks whether a device has stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::emu) enum Look {
    /// Nothing.
    Nothing,
    /// The device does something yet.
    Works,
    /// It stops at last.
    Stops,
}

/// What decides for a late device.
pub(in crate::emu) struct Mind {
    lateness: Lateness,
    dice: Mutex<Dice>,
    on: AtomicBool,
    /// How many looks it still works on, while it lingers.
    lingering: Mutex<Option<u32>>,
    runs: AtomicU64,
    stops: AtomicU32,
}

impl Mind {
    pub(in crate::emu) fn new(lateness: Lateness) -> Self {
        Self {
            lateness,
            dice: Mutex::new(Dice(lateness.seed)),
            on: AtomicBool::new(false),
            lingering: Mutex::new(None),
            runs: AtomicU64::new(0),
            stops: AtomicU32::new(0),
        }
    }

    fn dice(&self) -> MutexGuard<'_, Dice> {
        self.dice.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lingering(&self) -> MutexGuard<'_, Option<u32>> {
        self.lingering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is late from now on, or no more; what it holds it still holds.
    pub(in crate::emu) fn be_late(&self, on: bool) {
        self.on.store(on, Ordering::SeqCst);
    }

    /// Late runs so far.
    pub(in crate::emu) fn runs(&self) -> u64 {
        self.runs.load(Ordering::Relaxed)
    }

    /// How often it was told to stop.
    pub(in crate::emu) fn stops(&self) -> u32 {
        self.stops.load(Ordering::Relaxed)
    }

    /// What becomes of a command.
    pub(in crate::emu) fn verdict<F>(&self) -> Verdict<F> {
        if !self.on.load(Ordering::Relaxed) {
            return Verdict::Run;
        }
        let dice = self.dice().below(1000);
        let late = u64::from(self.lateness.late);
        match dice {
            dice if dice < late => Verdict::Hold,
            dice if dice < late + u64::from(self.lateness.again) => Verdict::RunAndHold,
            _ => Verdict::Run,
        }
    }

    /// It is told to stop. Whether it works on for a while: one that does not run has nothing to do.
    pub(in crate::emu) fn lingers(&self, runs: impl FnOnce() -> bool) -> bool {
        if !self.on.load(Ordering::SeqCst) {
            return false;
        }
        self.stops.fetch_add(1, Ordering::Relaxed);
        let most = self.lateness.lingers;
        if most == 0 || !runs() {
            return false;
        }
        let looks = match most {
            u32::MAX => most,
            most => u32::try_from(self.dice().below(most.into())).unwrap_or_default(),
        };
        *self.lingering() = Some(looks);
        true
    }

    /// The host looks whether it has stopped.
    pub(in crate::emu) fn look(&self) -> Look {
        let mut lingering = self.lingering();
        match *lingering {
            None => Look::Nothing,
            Some(0) => {
                *lingering = None;
                Look::Stops
            }
            // With all the time in the world it would be done with everything, and not late any more.
            Some(u32::MAX) => Look::Nothing,
            Some(looks) => {
                *lingering = Some(looks - 1);
                if self.dice().below(3) == 0 { Look::Works } else { Look::Nothing }
            }
        }
    }

    /// One of the commands that it holds runs, if there is one: `release` runs the one that it is given.
    pub(in crate::emu) fn stir(&self, release: impl FnOnce(u64) -> bool) -> bool {
        let pick = self.dice().number();
        let ran = release(pick);
        self.runs.fetch_add(u64::from(ran), Ordering::Relaxed);
        ran
    }

    /// Its function is reset: it works until the very moment.
    pub(in crate::emu) fn work_on(&self, release: impl Fn(u64) -> bool) {
        loop {
            let more = self.dice().below(4) != 0;
            if !more || !self.stir(&release) {
                break;
            }
        }
        *self.lingering() = None;
    }
}
