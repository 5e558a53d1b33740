//! Sides that take turns.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::cpu::{self, Pinned};
use crate::figure::Figure;
use crate::ping::ping_pong;

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Each side has so many turns.
    pub rounds: usize,
    /// So long is one.
    pub slice: Duration,
}

impl Plan {
    /// What figures are judged by.
    pub const FULL: Self = Self { rounds: 9, slice: Duration::from_millis(150) };
    /// Enough to see that everything runs.
    pub const QUICK: Self = Self { rounds: 3, slice: Duration::from_millis(10) };
}

/// The processors of a run.
#[derive(Clone, Copy, Debug)]
pub struct Cores {
    /// Of the thread that asks.
    pub here: usize,
    /// Of the one that answers, if there is another.
    pub other: usize,
}

impl Cores {
    /// The first two that this thread may use.
    ///
    /// # Errors
    /// If there are no two.
    pub fn two() -> Result<Self> {
        let (here, other) = cpu::pair()?.context("this needs two processors, and one is allowed")?;
        Ok(Self { here, other })
    }
}

/// One way to do it: gives a value for one turn of about that time.
pub type Turn<'a> = Box<dyn FnMut(Duration) -> Result<f64> + 'a>;

/// Lets each side have a turn that is not counted, and then measures them round by round, every second round in the
/// opposite order, with a bare ping-pong before and after each round. The calling thread stays on `cores.here`.
///
/// # Errors
/// A side's.
pub fn interleave(
    figure: &mut Figure,
    plan: Plan,
    cores: Cores,
    sides: &mut [(&str, Turn<'_>)],
) -> Result<()> {
    let _pinned = Pinned::to(cores.here)?;
    for (name, turn) in sides.iter_mut() {
        turn(plan.slice / 4).with_context(|| format!("{} of {}", name, figure.name))?;
    }
    for round in 0..plan.rounds {
        let before = ping_pong(cores.other)?;
        let mut values = vec![0.0; sides.len()];
        for at in 0..sides.len() {
            let at = if round % 2 == 0 { at } else { sides.len() - 1 - at };
            let (name, turn) = &mut sides[at];
            values[at] = turn(plan.slice).with_context(|| format!("{} of {}", name, figure.name))?;
        }
        figure.pings.push([before, ping_pong(cores.other)?]);
        for ((name, _), value) in sides.iter().zip(values) {
            figure.add(name, value);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_take_turns() {
        let Ok(cores) = Cores::two() else { return };
        let order = std::cell::RefCell::new(String::new());
        let mut figure = Figure::new("f", "ns");
        let turn = |name: &'static str| -> Turn<'_> {
            Box::new(|_| {
                order.borrow_mut().push_str(name);
                Ok(1.0)
            })
        };
        let plan = Plan { rounds: 3, slice: Duration::ZERO };
        interleave(&mut figure, plan, cores, &mut [("a", turn("a")), ("b", turn("b"))]).unwrap();
        assert_eq!(*order.borrow(), "ababbaab");
        assert!(figure.sides.iter().all(|side| side.rounds.len() == 3) && figure.pings.len() == 3);
    }
}
