//! Cycles and instructions, where the machine counts them.

use std::io;

use perf_event::events::Hardware;
use perf_event::{Builder, Counter};

/// What was counted, in the kernel and outside of it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Counted {
    pub(super) cycles: u64,
    pub(super) instructions: u64,
}

/// Counts what this thread does from now on, and the threads that it starts.
pub(super) struct Counters {
    cycles: Counter,
    instructions: Counter,
}

impl Counters {
    /// Most virtual machines have none, and the kernel may keep them from users (perf_event_open(2),
    /// `perf_event_paranoid`).
    pub(super) fn start() -> io::Result<Self> {
        let counter = |event: Hardware| {
            let mut builder = Builder::new().kind(event);
            builder.inherit(true).include_kernel();
            let mut counter = builder.build()?;
            counter.enable()?;
            io::Result::Ok(counter)
        };
        Ok(Self { cycles: counter(Hardware::CPU_CYCLES)?, instructions: counter(Hardware::INSTRUCTIONS)? })
    }

    pub(super) fn read(&mut self) -> io::Result<Counted> {
        Ok(Counted { cycles: self.cycles.read()?, instructions: self.instructions.read()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_grows() {
        // Few virtual machines count.
        let Ok(mut counters) = Counters::start() else { return };
        let before = counters.read().unwrap();
        let sum: u64 = std::hint::black_box(0..100_000_u64).sum();
        assert!(sum > 0);
        let after = counters.read().unwrap();
        assert!(after.instructions > before.instructions && after.cycles > before.cycles);
    }
}
