//! What was measured: sides that took turns, round by round.

use serde::Serialize;

/// Two or more ways to do the same, measured in turns in one run.
#[derive(Serialize, Clone, Debug)]
pub struct Figure {
    /// What `cargo xtask bench` calls it.
    pub name: String,
    /// Of all values: `ns/request`, `instructions/request`, ...
    pub unit: String,
    /// The ways.
    pub sides: Vec<Side>,
    /// A bare cache line there and back, in nanoseconds: for each round its median before and after.
    pub pings: Vec<[f64; 2]>,
    /// What a reader has to know of this run.
    pub notes: Vec<String>,
}

/// One way.
#[derive(Serialize, Clone, Debug)]
pub struct Side {
    /// Which.
    pub name: String,
    /// One value for each round.
    pub rounds: Vec<f64>,
}

impl Figure {
    /// One without values.
    pub fn new(name: &str, unit: &str) -> Self {
        Self {
            name: name.to_owned(),
            unit: unit.to_owned(),
            sides: Vec::new(),
            pings: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds the value of the next round of `side`.
    pub fn add(&mut self, side: &str, value: f64) {
        match self.sides.iter_mut().find(|known| known.name == side) {
            Some(known) => known.rounds.push(value),
            None => self.sides.push(Side { name: side.to_owned(), rounds: vec![value] }),
        }
    }

    /// Adds what a reader has to know.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }
}

/// The one in the middle; 0 of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match (sorted.get(half), half.checked_sub(1).and_then(|before| sorted.get(before))) {
        (Some(&upper), Some(&lower)) if sorted.len().is_multiple_of(2) => f64::midpoint(lower, upper),
        (Some(&middle), _) => middle,
        (None, _) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_find_their_sides_and_the_middle_is_found() {
        let mut figure = Figure::new("f", "ns");
        for (side, value) in [("a", 1.0), ("b", 2.0), ("a", 3.0)] {
            figure.add(side, value);
        }
        let rounds: Vec<_> =
            figure.sides.iter().map(|side| (side.name.as_str(), side.rounds.len())).collect();
        assert_eq!(rounds, [("a", 2), ("b", 1)]);
        let near = |values: &[f64], wanted: f64| (median(values) - wanted).abs() < 1e-9;
        assert!(near(&[], 0.0) && near(&[5.0], 5.0) && near(&[9.0, 1.0], 5.0) && near(&[9.0, 1.0, 2.0], 2.0));
    }
}
