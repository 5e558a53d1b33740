//! Figures as the measuring programs print them, and what can be said of two sides of one.

use serde::{Deserialize, Serialize};

/// Ways to do the same, measured in turns in one run. `benches::figure` writes it.
#[derive(Serialize, Deserialize, Clone, Default, Debug)]
pub(crate) struct Figure {
    pub(crate) name: String,
    /// Of all values.
    pub(crate) unit: String,
    pub(crate) sides: Vec<Side>,
    /// A bare cache line there and back, in nanoseconds: for each round before and after; none where no core is crossed.
    #[serde(default)]
    pub(crate) pings: Vec<[f64; 2]>,
    #[serde(default)]
    pub(crate) notes: Vec<String>,
}

/// One way.
#[derive(Serialize, Deserialize, Clone, Default, Debug)]
pub(crate) struct Side {
    pub(crate) name: String,
    /// One value for each round.
    pub(crate) rounds: Vec<f64>,
}

/// Where the two cores are, as far as a cache line tells.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// A line there and back takes less than 250 ns.
    Near,
    /// More than 350 ns.
    Far,
    /// Something between, or it changed during the round.
    Unknown,
}

impl State {
    const NEAR_NS: f64 = 250.0;
    const FAR_NS: f64 = 350.0;

    pub(crate) fn of([before, after]: [f64; 2]) -> Self {
        let both = |holds: fn(f64) -> bool| holds(before) && holds(after);
        if both(|ns| ns < Self::NEAR_NS) {
            Self::Near
        } else if both(|ns| ns > Self::FAR_NS) {
            Self::Far
        } else {
            Self::Unknown
        }
    }
}

/// The least, the median and the greatest.
#[derive(Serialize, Clone, Copy, PartialEq, Debug)]
pub(crate) struct Spread {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

impl Spread {
    /// `None` of nothing.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (&low, &high) = (values.first()?, values.last()?);
        let half = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(values[half - 1], values[half])
        } else {
            values[half]
        };
        Some(Self { low, median, high })
    }
}

impl Figure {
    pub(crate) fn side(&self, name: &str) -> Option<&Side> {
        self.sides.iter().find(|side| side.name == name)
    }

    /// The state of a round; `Unknown` if nobody looked.
    pub(crate) fn state(&self, round: usize) -> State {
        self.pings.get(round).map_or(State::Unknown, |ping| State::of(*ping))
    }

    /// The pings of all rounds.
    pub(crate) fn ping(&self) -> Option<Spread> {
        Spread::of(self.pings.iter().flatten().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_that_of_both_ends_of_a_round() {
        assert_eq!(State::of([95.0, 240.0]), State::Near);
        assert_eq!(State::of([360.0, 550.0]), State::Far);
        for mixed in [[95.0, 550.0], [300.0, 300.0], [250.0, 250.0], [350.0, 350.0]] {
            assert_eq!(State::of(mixed), State::Unknown);
        }
    }

    #[test]
    fn a_spread_leaves_out_what_is_no_number() {
        assert_eq!(Spread::of([f64::NAN, f64::INFINITY]), None);
        assert_eq!(Spread::of([3.0, 1.0]), Some(Spread { low: 1.0, median: 2.0, high: 3.0 }));
    }
}
