//! How long a poller spins before it sleeps: as long as that is of use.
//!
//! A spin that is ended by work saves a wake across cores; one that is not costs whoever else wants the core, and that may be
//! the very application, or the device, that is waited for. So each time it is noted what a spin was good for. After
//! many that were in vain the poller sleeps soon, and tries a whole spin only now and then. If work comes shortly after it
//! gave up, it has more patience the next time.

use std::time::{Duration, Instant};

/// It gives up hope after so many whole spins in vain ...
const HOPE: u32 = 16;
/// ... and one that was not is worth so many that were.
const REWARD: u32 = 4;
/// Without hope every so manieth spin is a whole one.
const TRY_EVERY: u32 = 8;
/// Without hope it spins for this part of what it was told.
const SHORT: u32 = 8;
/// It never spins longer than this many times what it was told.
const LONG: u32 = 4;

/// See the module.
pub(super) struct Patience {
    told: Duration,
    /// A whole spin.
    whole: Duration,
    hope: u32,
    tries: u32,
    /// The spin that goes on: since when, how long at most, how long at the last look.
    since: Option<Instant>,
    limit: Duration,
    spun: Duration,
    /// The last spin was a whole one.
    was_whole: bool,
}

impl Patience {
    pub(super) fn new(told: Duration) -> Self {
        let zero = Duration::ZERO;
        Self {
            told,
            whole: told,
            hope: HOPE,
            tries: 0,
            since: None,
            limit: told,
            spun: zero,
            was_whole: false,
        }
    }

    /// Nothing was found in a turn: whether it is time to sleep.
    pub(super) fn is_lost(&mut self) -> bool {
        match self.since {
            Some(since) => self.has_spun(since.elapsed()),
            None => {
                self.begin();
                self.since = Some(Instant::now());
                self.limit.is_zero()
            }
        }
    }

    fn begin(&mut self) {
        self.was_whole = self.hope > 0 || self.tries == 0;
        self.tries = (self.tries + 1) % TRY_EVERY;
        self.limit = if self.was_whole { self.whole } else { self.told / SHORT };
        self.spun = Duration::ZERO;
    }

    fn has_spun(&mut self, spun: Duration) -> bool {
        self.spun = spun;
        spun >= self.limit
    }

    /// It does not spin before it sleeps again.
    pub(super) fn lose(&mut self) {
        (self.since, self.limit, self.was_whole) = (Some(Instant::now()), Duration::ZERO, false);
    }

    /// Work was found.
    #[inline]
    pub(super) fn found(&mut self) {
        if self.since.take().is_some() && self.spun > self.told / SHORT {
            self.hope = (self.hope + REWARD).min(HOPE);
        }
    }

    /// It could not sleep.
    pub(super) fn begin_again(&mut self) {
        self.since = None;
    }

    /// It slept for so long.
    pub(super) fn slept(&mut self, slept: Duration) {
        self.since = None;
        if !self.was_whole {
            return;
        }
        self.hope = self.hope.saturating_sub(1);
        let soon = self.whole + slept < LONG * self.told && self.hope > 0;
        self.whole = if soon { (2 * self.whole).min(LONG * self.told) } else { self.told };
    }
}

/// A device is polled for so long, and only then waited for asleep: having it raise an interrupt, and no more after it, costs
/// more than a device takes that is not slow.
pub(super) const DEVICE_SPIN: Duration = Duration::from_millis(1);

/// Whether the device is slow with what it has.
#[derive(Default)]
pub(super) struct Slow {
    /// When nothing was found first.
    since: Option<Instant>,
    /// It was.
    known: bool,
}

impl Slow {
    /// Nothing was found in a turn: whether it has taken long by now.
    pub(super) fn is_so(&mut self) -> bool {
        let since = *self.since.get_or_insert_with(Instant::now);
        self.known || since.elapsed() >= DEVICE_SPIN
    }

    /// Work was found.
    #[inline]
    pub(super) fn found(&mut self) {
        (self.since, self.known) = (None, false);
    }

    /// It slept and found nothing: it is not polled again before it has ended something.
    pub(super) fn stay(&mut self) {
        self.known = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_slow_until_it_has_ended_something() {
        let mut slow = Slow::default();
        assert!(!slow.is_so());
        slow.since = Some(Instant::now().checked_sub(DEVICE_SPIN).unwrap());
        assert!(slow.is_so());
        slow.found();
        assert!(!slow.is_so(), "the next one is polled for");
        slow.stay();
        assert!(slow.is_so());
        slow.found();
        assert!(!slow.is_so());
    }

    const TOLD: Duration = Duration::from_micros(100);

    /// A wait in which work comes after so long. Returns how long it was spun for.
    fn wait(patience: &mut Patience, work: Duration) -> Duration {
        patience.begin();
        patience.since = Some(Instant::now());
        let spun = work.min(patience.limit);
        if patience.has_spun(spun) {
            patience.slept(work - spun);
        }
        patience.found();
        spun
    }

    fn waits(patience: &mut Patience, work: Duration, count: usize) -> Duration {
        (0..count).map(|_| wait(patience, work)).sum()
    }

    #[test]
    fn who_spins_in_vain_stops_and_begins_again_when_it_is_of_use() {
        let mut patience = Patience::new(TOLD);
        let rare = Duration::from_millis(10);
        waits(&mut patience, rare, HOPE as usize);
        let (tries, spun) = (80, waits(&mut patience, rare, 80));
        assert!(spun <= tries / TRY_EVERY * TOLD + tries * TOLD / SHORT, "{spun:?}");
        let often = Duration::from_micros(60);
        waits(&mut patience, often, TRY_EVERY as usize);
        assert_eq!(waits(&mut patience, often, 10), 10 * often, "from then on it does not sleep");
    }

    #[test]
    fn who_sleeps_for_a_moment_only_spins_longer_up_to_a_bound() {
        let mut patience = Patience::new(TOLD);
        let soon = Duration::from_micros(250);
        waits(&mut patience, soon, 3);
        assert_eq!(waits(&mut patience, soon, 10), 10 * soon);
        for _ in 0..1000 {
            assert!(wait(&mut patience, 5 * TOLD) <= LONG * TOLD);
        }
        assert_eq!(patience.hope, 0);
        assert!(wait(&mut patience, 5 * TOLD) <= TOLD, "without hope it does not even try for longer");
    }

    #[test]
    fn short_waits_say_nothing_of_long_ones() {
        let mut patience = Patience::new(TOLD);
        let (short, rare) = (TOLD / 20, Duration::from_millis(10));
        for _ in 0..100 {
            waits(&mut patience, short, 3);
            wait(&mut patience, rare);
        }
        assert_eq!(patience.hope, 0);
    }
}
