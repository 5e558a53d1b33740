//! The floor of everything between two cores: one cache line there and back, with nothing else. On a virtual machine it
//! changes several times over with where the hypervisor puts the cores, so what crosses cores stands between two of these.

use std::hint::spin_loop;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cpu::Pinned;
use crate::figure::median;

/// A value that no ping has.
const STOP: u64 = u64::MAX;
/// Round trips between two looks at the clock.
const BATCH: u64 = 64;
/// How long one probe goes on.
const TIME: Duration = Duration::from_millis(10);

/// A cache line to itself, and the one that the machine may fetch with it.
#[repr(align(128))]
pub struct Line(AtomicU64);

impl Line {
    /// One that nobody has written yet.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// One round trip: `ping` is odd and greater than the one before.
    #[inline]
    pub fn send(&self, ping: u64) {
        self.0.store(ping, Ordering::Release);
        while self.0.load(Ordering::Acquire) != ping + 1 {
            spin_loop();
        }
    }

    /// Answers every ping until [`Line::stop`].
    pub fn answer(&self) {
        loop {
            match self.0.load(Ordering::Acquire) {
                STOP => break,
                ping if ping % 2 == 1 => self.0.store(ping + 1, Ordering::Release),
                _ => spin_loop(),
            }
        }
    }

    /// Ends the one who answers. No ping is under way.
    pub fn stop(&self) {
        self.0.store(STOP, Ordering::Release);
    }
}

impl Default for Line {
    fn default() -> Self {
        Self::new()
    }
}

/// Nanoseconds of a round trip between the calling thread and one on processor `other`: the median of batches.
///
/// # Errors
/// If the other thread cannot be kept there.
pub fn ping_pong(other: usize) -> Result<f64> {
    let line = Line::new();
    // It begins on this processor: spinning here would keep it from leaving.
    let there = Barrier::new(2);
    let mut batches = Vec::new();
    thread::scope(|scope| {
        let answers = scope.spawn(|| {
            let pinned = Pinned::to(other);
            there.wait();
            line.answer();
            pinned.map(drop)
        });
        there.wait();
        let mut ping = 1;
        let mut batch = || {
            let began = Instant::now();
            for _ in 0..BATCH {
                line.send(ping);
                ping += 2;
            }
            #[expect(clippy::cast_precision_loss, reason = "milliseconds at most")]
            let took = began.elapsed().as_nanos() as f64 / BATCH as f64;
            took
        };
        batch();
        let until = Instant::now() + TIME;
        while Instant::now() < until {
            batches.push(batch());
        }
        line.stop();
        answers.join().expect("it only spins")
    })?;
    Ok(median(&batches))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_back() {
        if let Some((_, other)) = crate::cpu::pair().unwrap() {
            let took = ping_pong(other).unwrap();
            assert!(took > 0.0, "{took}");
        }
    }
}
