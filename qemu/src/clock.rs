//! How fast the host's time stamp counter counts, which is also how fast an emulated CPU's does.
//!
//! A guest measures it at boot against an emulated timer. On a host that is short of CPUs that has come out at a fifth
//! of the truth, and then all the guest's clocks run five times too fast: better to tell it.
#![allow(unsafe_code)] // rdtsc

use std::time::{Duration, Instant};

/// Long enough for a part in a thousand, which clocks and timeouts are content with.
const SPAN: Duration = Duration::from_millis(20);

/// Counts per millisecond, where there is such a counter.
pub(crate) fn tsc_khz() -> Option<u64> {
    let (started, first) = together()?;
    std::thread::sleep(SPAN);
    let (ended, last) = together()?;
    let elapsed = ended.duration_since(started).as_nanos();
    let counts = u128::from(last.checked_sub(first)?);
    u64::try_from((counts * 1_000_000).checked_div(elapsed)?).ok().filter(|&khz| khz > 0)
}

/// A time and the counter at it: of a few tries the one that took least.
fn together() -> Option<(Instant, u64)> {
    let attempt = || {
        let before = Instant::now();
        let count = counter()?;
        Some((before.elapsed(), (before, count)))
    };
    let tries: Option<Vec<_>> = (0..8).map(|_| attempt()).collect();
    tries?.into_iter().min_by_key(|(took, _)| *took).map(|(_, both)| both)
}

#[cfg(target_arch = "x86_64")]
fn counter() -> Option<u64> {
    // SAFETY: every x86-64 CPU has the instruction, and Linux lets programs use it.
    Some(unsafe { core::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn counter() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn two_measurements_agree() {
        let (a, b) = (tsc_khz().unwrap(), tsc_khz().unwrap());
        assert!(a.abs_diff(b) < a / 20, "{a} kHz, then {b} kHz");
    }
}
